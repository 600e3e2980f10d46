"""Requests to answers, many at a time, and what is shown of the kept words."""
