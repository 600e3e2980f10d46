"""What `remamba serve` can be told: where it listens, what it keeps, and its limits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import UseAppendAction, arg

from remamba.errors import InputError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
KEY_VARIABLE = "REMAMBA_API_KEY"


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Where the server listens, whom it answers, what it keeps, and its limits."""

    host: Annotated[str, arg(metavar="ADDRESS")] = "127.0.0.1"
    """The address to listen at. One that others can reach needs an API key, or --no-auth."""
    port: Annotated[int, arg(metavar="N")] = 8000
    """The port; 0 takes a free one and tells which."""
    name: Annotated[str | None, arg(metavar="NAME")] = None
    """What clients call the model (default: the last part of --model)."""
    api_key: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="KEY")] = ()
    """A key that clients may send; give it several times for several clients. Others can see it in
    the list of processes: --api-key-file or the variable REMAMBA_API_KEY hide it."""
    api_key_file: Annotated[str | None, arg(metavar="FILE")] = None
    """A file of keys, one on each line."""
    no_auth: bool = False
    """Answer everybody, also at an address that others can reach."""
    allow_origin: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="URL")] = ()
    """A web page's origin (https://chat.example.org) whose scripts may ask; * is any."""
    store: Annotated[str | None, arg(metavar="PLACE")] = None
    """A folder, or a URL that fsspec knows (s3://bucket/place), for uploaded files and the memories
    of documents, so that they outlive a restart; several servers may share it."""
    store_mb: Annotated[int | None, arg(metavar="N")] = None
    """Most megabytes of memories in a folder; those used longest ago are removed."""
    ram_mb: Annotated[int, arg(metavar="N")] = 1024
    """Most megabytes of documents' memories in RAM."""
    gpu_mb: Annotated[int, arg(metavar="N")] = 0
    """Most megabytes of documents' memories on the GPU."""
    slots: Annotated[int, arg(metavar="N")] = 16
    """How many answers are written at once."""
    max_new_tokens: Annotated[int, arg(metavar="N")] = 1024
    """Most tokens of an answer, and what a chat gets that asks for no number."""
    temperature: float = 0.0
    """For requests that name none; 0 takes the likeliest token."""
    max_prompt_tokens: Annotated[int, arg(metavar="N")] = 1_048_576
    """Most tokens of a document, a question, or a prompt."""
    max_body_mb: Annotated[int, arg(metavar="N")] = 64
    """Most megabytes of a request, uploads among them."""
    max_files_mb: Annotated[int, arg(metavar="N")] = 4096
    """Most megabytes of uploaded files that a client may have."""
    max_waiting: Annotated[int, arg(metavar="N")] = 256
    """How many answers may wait beyond those in the slots; who asks then is told to come again."""
    max_waiting_tokens: Annotated[int, arg(metavar="N")] = 8_388_608
    """The same for the tokens of all that is under way."""
    max_per_key: Annotated[int | None, arg(metavar="N")] = None
    """How many answers one key may have under way (default: no bound of its own)."""
    request_timeout: Annotated[float, arg(metavar="SECONDS")] = 600.0
    """A request that is not answered by then is left off."""
    grace: Annotated[float, arg(metavar="SECONDS")] = 30.0
    """After SIGTERM nothing new is taken; what is under way may go on for so long."""
    lenient: bool = False
    """Ignore fields of requests that are not known, and name them in a header, in place of refusing
    them."""

    def __post_init__(self) -> None:
        least = {
            "port": 0, "store_mb": 1, "ram_mb": 0, "gpu_mb": 0, "slots": 1, "max_new_tokens": 1,
            "max_prompt_tokens": 1, "max_body_mb": 1, "max_files_mb": 1, "max_waiting": 0,
            "max_waiting_tokens": 1, "max_per_key": 1, "request_timeout": 0.001, "grace": 0,
            "temperature": 0,
        }  # fmt: skip
        for field, low in least.items():
            value = getattr(self, field)
            if value is not None and value < low:
                raise InputError(f"--{field.replace('_', '-')} {value} must be {low} or above")
        if self.port > 65535:
            raise InputError(f"--port {self.port} must be 65535 or below")
        if self.name is not None and (not self.name.strip() or ":" in self.name):
            raise InputError(
                f"--name {self.name!r} must be a word without a colon, which methods stand behind"
            )
        if self.store_mb is not None and self.store is None:
            raise InputError(f"--store-mb {self.store_mb} needs --store FOLDER")

    def keys(self) -> tuple[str, ...]:
        """All API keys: the options', the file's and the environment's; none: everybody may ask.

        Raises:
            InputError: a key is empty or no ASCII; or there is none, nor --no-auth, where others
                can reach the server.
        """
        found = list(self.api_key)
        if self.api_key_file is not None:
            try:
                lines = Path(self.api_key_file).read_text(encoding="utf-8").splitlines()
            except (OSError, ValueError) as error:
                raise InputError(
                    f"--api-key-file {self.api_key_file} cannot be read: "
                    f"{getattr(error, 'strerror', None) or error}"
                ) from error
            lines = [line.strip() for line in lines if line.strip()]
            if not lines:
                raise InputError(f"--api-key-file {self.api_key_file} is empty: a key on each line")
            found += lines
        if KEY_VARIABLE in os.environ:
            found.append(os.environ[KEY_VARIABLE])
        for key in found:
            if not key.strip() or not key.isascii() or not key.isprintable():
                raise InputError("an API key is empty, or not of printable ASCII characters alone")
        if self.no_auth and found:
            raise InputError("--no-auth contradicts the API keys that are given; leave one out")
        if not found and not self.no_auth and self.host not in LOOPBACK:
            raise InputError(
                f"--host {self.host} can be reached by others: give --api-key-file FILE (or set "
                f"{KEY_VARIABLE}), or --no-auth to answer everybody"
            )
        return tuple(dict.fromkeys(found))
