"""The HTTP server: OpenAI's interface to one model, over the engine's loop.

request -> gate.py (key, size) -> app.py (routes) -> schemas.py (what may be asked)
        -> chat.py (messages to document and question) -> answering.py (through the loop)
        -> replies.py (answers as OpenAI's clients read them)
"""
