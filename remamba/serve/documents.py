"""Documents of requests as tokens, and their memories: kept for questions to come, or not."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import replace

from remamba.engine.document import Document
from remamba.engine.loop import EngineLoop, KeptDocument
from remamba.methods.base import Method
from remamba.serve.limits import Client

MOST_TOKENS = 1_048_576
"""Tokens of documents that stay encoded, so that the next question need not encode them anew; each
takes about 200 bytes."""
MOST_SEEN = 4096
"""Documents that are known to have been there once."""
WORTH_KEEPING = 1024
"""Tokens from which on a document that comes a second time is kept, though nobody asked for it."""


class Documents:
    """The texts that were sent, encoded once. Any thread may use it; owners share nothing."""

    def __init__(self, loop: EngineLoop):
        self._loop = loop
        self._lock = threading.Lock()
        self._encoded: OrderedDict[bytes, Document] = OrderedDict()
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def encoded(self, text: str, method: Method, client: Client) -> Document:
        """A text as tokens, to be read by a method.

        Raises:
            InputError: it is empty.
        """
        digest = _digest(text, client)
        with self._lock:
            found = self._encoded.get(digest)
            if found is not None:
                self._encoded.move_to_end(digest)
        if found is None:
            found = self._loop.reader.encoded(text, method)
            with self._lock:
                self._encoded[digest] = found
                count = sum(map(len, self._encoded.values()))
                while count > MOST_TOKENS and len(self._encoded) > 1:
                    count -= len(self._encoded.popitem(last=False)[1])
        # the one that stays is never read, so that no memory stays with it
        return replace(found, method=method, memory=None, _read={})

    def comes_again(self, document: Document, client: Client) -> bool:
        """Whether a long document has been here before; from now on it has."""
        if len(document) < WORTH_KEEPING:
            return False
        digest = _digest(document.text, client)
        with self._lock:
            was_here = digest in self._seen
            self._seen[digest] = None
            self._seen.move_to_end(digest)
            if len(self._seen) > MOST_SEEN:
                self._seen.popitem(last=False)
        return was_here

    def keep(self, document: Document, client: Client) -> Future[KeptDocument]:
        """The document with its memory; see `EngineLoop.keep`."""
        return self._loop.keep(document, client=client.name, owner=client.owner)

    def share_read(self, document: Document, client: Client) -> float | None:
        """How much of it was read so far; see `EngineLoop.share_read`."""
        return self._loop.share_read(document, client.owner)


def _digest(text: str, client: Client) -> bytes:
    return hashlib.sha256(f"{client.owner}\0{text}".encode()).digest()
