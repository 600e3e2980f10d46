"""Requests to answers: many at once, and what is shown of them."""
