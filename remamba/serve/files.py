"""Uploaded documents: each a file of its own, written whole, that only its owner can name."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from remamba.engine.store_files import remote_place
from remamba.errors import InputError
from remamba.fields import shown
from remamba.files import make_directory, write_whole
from remamba.serve.errors import LOG, ApiError
from remamba.serve.limits import Client
from remamba.text import text_of_bytes

FORMAT = "remamba-document-1"
SUFFIX, NOTE = ".document", ".json"
ID = re.compile(r"file-[0-9a-f]{40}")
MOST_NAME = 200
"""Characters of a file's name that are kept."""


@dataclass(frozen=True)
class Record:
    """What is known of a file besides its content."""

    id: str
    filename: str
    bytes: int
    created_at: int
    purpose: str
    format: str = FORMAT


@dataclass
class Note:
    """What became of a file when it was read."""

    tokens: int = 0
    keys: dict[str, str | None] = field(default_factory=dict)
    """Method -> what the store keeps its memory under; None where each question reads anew."""
    error: str | None = None
    """Why it cannot be read."""


class Files:
    """The files of all owners, in a folder or wherever fsspec can write; in RAM without a place.

    A file's id is made of its owner and its content: the same file has the same id on every server
    that shares the place, and is there once. Any thread may use it.

    Args:
        most_bytes: of one owner's files.

    Raises:
        InputError: the place cannot be used.
    """

    def __init__(self, place: str | None, most_bytes: int):
        self._most_bytes = most_bytes
        place = place or f"memory://remamba-{secrets.token_hex(8)}"
        self._remote: Any = None
        if "://" in place and not place.startswith("file://"):
            self._remote, self._root = remote_place(place)
        else:
            self._root = place.removeprefix("file://")

    def check_room(self, client: Client, count: int) -> None:
        """Raise ApiError, 413, where a client's files would have too many bytes with so many."""
        had = sum(size for path, size in self._paths(client) if path.endswith(SUFFIX))
        if had + count > self._most_bytes:
            raise ApiError(
                413, f"your files have {had:,} bytes, and with this one more than the "
                f"{self._most_bytes:,} that are allowed (--max-files-mb); delete some first",
                code="too_many_files",
            )  # fmt: skip

    def put(self, client: Client, filename: str, purpose: str, content: bytes) -> Record:
        """Keep a document's bytes; what is there already stays.

        Raises:
            ApiError: 507, they cannot be written.
        """
        digest = hashlib.sha256(client.owner.encode() + b"\0" + content).hexdigest()
        name = "".join(c for c in re.split(r"[/\\]", filename)[-1] if c.isprintable())[-MOST_NAME:]
        made = Record(f"file-{digest[:40]}", name, len(content), int(time.time()), purpose)
        with suppress(ApiError):
            return self.get(client, made.id)
        head = json.dumps(asdict(made)).encode() + b"\n"
        try:
            self._write(self._path(client, made.id, SUFFIX), head + content)
        except (InputError, OSError) as error:
            LOG.error("an uploaded file cannot be kept", exc_info=error)
            raise ApiError(
                507, "the file cannot be kept: the server's disk is full or cannot be written; "
                "tell whoever runs it", code="storage_full",
            ) from error  # fmt: skip
        return made

    def get(self, client: Client, file_id: str) -> Record:
        """What is known of a file.

        Raises:
            ApiError: 404, the client has no such file.
        """
        return self._load(client, file_id)[0]

    def content(self, client: Client, file_id: str) -> bytes:
        """The bytes of a file, as they were uploaded; see `get`."""
        return self._load(client, file_id)[1]

    def text(self, client: Client, file_id: str) -> str:
        """The text of a file; see `get`."""
        record, content = self._load(client, file_id)
        return text_of_bytes(content, shown(record.filename))

    def all(self, client: Client) -> list[Record]:
        """A client's files, the newest first."""
        found = []
        for path, _ in self._paths(client):
            name = path.rpartition("/")[2]
            if name.endswith(SUFFIX) and ID.fullmatch(name.removesuffix(SUFFIX)):
                with suppress(ApiError):
                    found.append(self.get(client, name.removesuffix(SUFFIX)))
        return sorted(found, key=lambda one: (one.created_at, one.id), reverse=True)

    def delete(self, client: Client, file_id: str) -> Note:
        """Remove a file; what became of it.

        Raises:
            ApiError: 404, the client has no such file.
        """
        self.get(client, file_id)
        note = self.note(client, file_id)
        for suffix in (SUFFIX, NOTE):
            with suppress(FileNotFoundError):
                path = self._path(client, file_id, suffix)
                Path(path).unlink() if self._remote is None else self._remote.rm_file(path)
        return note

    def note(self, client: Client, file_id: str) -> Note:
        """What became of a file when it was read; nothing, where that is not known."""
        try:
            return Note(**json.loads(self._read(self._path(client, file_id, NOTE))))
        except (OSError, ValueError, TypeError):
            return Note()

    def write_note(self, client: Client, file_id: str, note: Note) -> None:
        """Tell what became of a file; where that cannot be written it is left."""
        path = self._path(client, file_id, NOTE)
        try:
            self._write(path, json.dumps(asdict(note)).encode())
        except (InputError, OSError) as error:
            LOG.warning("a file's state cannot be kept: %s", error)

    def _load(self, client: Client, file_id: str) -> tuple[Record, bytes]:
        missing = ApiError(
            404, f"there is no file {shown(file_id)}; GET /v1/files lists yours", param="file_id",
            code="file_not_found",
        )  # fmt: skip
        if not ID.fullmatch(file_id):
            raise missing
        try:
            head, _, content = self._read(self._path(client, file_id, SUFFIX)).partition(b"\n")
        except FileNotFoundError:
            raise missing from None
        digest = hashlib.sha256(client.owner.encode() + b"\0" + content).hexdigest()
        try:
            record = Record(**json.loads(head))
        except (ValueError, TypeError):
            record = None
        if record is None or record.id != file_id or file_id != f"file-{digest[:40]}":
            LOG.error("the file %s is damaged and is not served", file_id)
            raise missing
        return record, content

    def _folder(self, client: Client) -> str:
        return f"{self._root}/{client.owner or 'all'}"

    def _path(self, client: Client, file_id: str, suffix: str) -> str:
        return f"{self._folder(client)}/{file_id}{suffix}"

    def _paths(self, client: Client) -> Iterator[tuple[str, int]]:
        """Each of a client's files, and its bytes."""
        folder = self._folder(client)
        if self._remote is None:
            for path in Path(folder).glob("file-*"):
                with suppress(FileNotFoundError):
                    yield str(path), path.stat().st_size
            return
        with suppress(FileNotFoundError):
            self._remote.invalidate_cache(folder)
            for one in self._remote.ls(folder, detail=True):
                yield one["name"], one["size"]

    def _read(self, path: str) -> bytes:
        return Path(path).read_bytes() if self._remote is None else self._remote.cat_file(path)

    def _write(self, path: str, content: bytes) -> None:
        folder = path.rpartition("/")[0]
        if self._remote is None:
            make_directory(folder)
            write_whole(path, content)
            return
        self._remote.makedirs(folder, exist_ok=True)
        part = f"{folder}/.{secrets.token_hex(8)}.part"
        self._remote.pipe_file(part, content)
        self._remote.mv(part, path)
