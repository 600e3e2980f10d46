"""Uploaded documents on their way to memories, and what a client is told of them."""

from __future__ import annotations

import asyncio
from typing import Any

from remamba.engine.document import Document
from remamba.engine.loop import Closed, KeptDocument
from remamba.engine.store import MemoryStore
from remamba.errors import InputError
from remamba.methods.base import Method
from remamba.serve.documents import Documents
from remamba.serve.errors import LOG, ApiError, refused
from remamba.serve.files import Files, Note, Record
from remamba.serve.limits import Admission, Client
from remamba.text import text_of_bytes

PURPOSES = ("user_data", "assistants")


class Uploads:
    """Takes files in, has them read, and tells what became of them.

    Args:
        method: how a file is read before anybody asks.
        most_tokens: of a document.
    """

    def __init__(
        self,
        files: Files,
        documents: Documents,
        store: MemoryStore,
        admission: Admission,
        method: Method,
        most_tokens: int,
    ):
        self._files, self._documents, self._store = files, documents, store
        self._admission, self._method, self._most_tokens = admission, method, most_tokens
        self._readings: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._under_way: dict[tuple[str, str], Document] = {}

    async def take(
        self, client: Client, filename: str, purpose: str, content: bytes, is_read: bool
    ) -> dict[str, Any]:
        """Keep a file, and begin to read it.

        Raises:
            ApiError: it cannot be used, or not be kept.
        """
        if purpose not in PURPOSES:
            raise refused(f"purpose = {purpose!a}: use {' or '.join(PURPOSES)}", "purpose")
        record = await asyncio.to_thread(self._put, client, filename, purpose, content)
        place = (client.owner, record.id)
        if is_read and place not in self._readings and not self._admission.is_draining:
            task = asyncio.create_task(self._read(client, record))
            self._readings[place] = task
            task.add_done_callback(lambda _: self._forget(place))
        return await asyncio.to_thread(self.told, client, record)

    def _forget(self, place: tuple[str, str]) -> None:
        self._readings.pop(place, None)
        self._under_way.pop(place, None)

    def _put(self, client: Client, filename: str, purpose: str, content: bytes) -> Record:
        self._files.check_room(client, len(content))
        try:
            text = text_of_bytes(content, "the file")
            count = len(self._documents.encoded(text, self._method, client))
        except InputError as error:
            raise refused(str(error), "file") from error
        if count > self._most_tokens:
            raise refused(
                f"the file has {count:,} tokens, and at most {self._most_tokens:,} are read "
                "(--max-prompt-tokens); send less", "file", "context_length_exceeded",
            )  # fmt: skip
        return self._files.put(client, filename, purpose, content)

    async def _read(self, client: Client, record: Record) -> None:
        """Read a file; what goes wrong is noted, and the first question reads it then."""
        try:
            text = await asyncio.to_thread(self._files.text, client, record.id)
            found = await asyncio.to_thread(self._documents.encoded, text, self._method, client)
            self._under_way[client.owner, record.id] = found
            with self._admission.enter(client) as ticket:
                ticket.weigh(len(found))
                future = await asyncio.to_thread(self._documents.keep, found, client)
                kept = await asyncio.wrap_future(future)
            await asyncio.to_thread(self.noted, client, record.id, kept)
            kept.close()
        except (ApiError, Closed):  # too much is under way, or the server ends
            return
        except InputError as error:
            note = Note(error=" ".join(str(error).split()))
            await asyncio.to_thread(self._files.write_note, client, record.id, note)
        except Exception as error:
            LOG.error("an uploaded file was not read", exc_info=error)

    def noted(self, client: Client, file_id: str, kept: KeptDocument) -> None:
        """Remember where the memory of a file is, so that it goes when the file does."""
        name, document = str(kept.document.method.to_dict()), kept.document
        note = self._files.note(client, file_id)
        if note.keys.get(name, "") != kept.key:
            note.keys[name] = kept.key
            note.tokens, note.error = len(document), None
            self._files.write_note(client, file_id, note)

    def told(self, client: Client, record: Record) -> dict[str, Any]:
        """A file as OpenAI's clients read it."""
        note = self._files.note(client, record.id)
        status = "uploaded"
        if note.error is not None:
            status = "error"
        elif any(key is None or self._store.holds(key) for key in note.keys.values()):
            status = "processed"
        share, document = None, self._under_way.get((client.owner, record.id))
        if document is not None:
            share = self._documents.share_read(document, client)
        return {
            "id": record.id,
            "object": "file",
            "bytes": record.bytes,
            "created_at": record.created_at,
            "filename": record.filename,
            "purpose": record.purpose,
            "status": status,
            "status_details": note.error,
            "remamba": {"tokens": note.tokens or None, "read": share},
        }

    def listed(
        self, client: Client, limit: int, after: str | None, order: str, purpose: str | None
    ) -> dict[str, Any]:
        """A page of a client's files.

        Raises:
            ApiError: there is no file of the id `after`.
        """
        found = self._files.all(client)
        found = [one for one in found if purpose in (None, one.purpose)]
        if order == "asc":
            found.reverse()
        if after is not None:
            ids = [one.id for one in found]
            if after not in ids:
                raise refused(f"after = {after!a} is none of your files", "after")
            found = found[ids.index(after) + 1 :]
        page = [self.told(client, one) for one in found[:limit]]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
        return {"object": "list", "data": page, "has_more": len(found) > limit, **ends}

    async def delete(self, client: Client, file_id: str) -> dict[str, Any]:
        """Remove a file, and the memories that were read of it.

        Raises:
            ApiError: 404, there is no such file.
        """
        note = await asyncio.to_thread(self._files.delete, client, file_id)
        if (task := self._readings.get((client.owner, file_id))) is not None:
            task.cancel()
        for key in note.keys.values():
            if key is not None:
                await asyncio.to_thread(self._store.forget, key)
        return {"id": file_id, "object": "file", "deleted": True}

    def stop(self) -> None:
        """Leave off what is read for nobody but later questions."""
        for task in list(self._readings.values()):
            task.cancel()
