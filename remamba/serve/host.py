"""What the routes of one server share: the loop, the store, names, keys, files and limits."""

from __future__ import annotations

import time
from typing import Any

from remamba.engine.loop import EngineLoop
from remamba.engine.reader import Reader
from remamba.engine.store import MemoryStore
from remamba.methods.base import Method
from remamba.serve.answering import Answering
from remamba.serve.asked import Asked, Asking
from remamba.serve.documents import Documents
from remamba.serve.errors import ApiError
from remamba.serve.limits import Admission, Client, Keys, Ticket
from remamba.serve.models import Models
from remamba.serve.replies import Words
from remamba.serve.settings import ServeSettings

MEGA = 1_000_000


class Host:
    """A model and all that serves it. Closing it ends what is under way.

    Args:
        reader: it belongs to the host until that is closed.
        method: how documents are read where a request names only the model; None: see `Models`.
    """

    def __init__(self, reader: Reader, settings: ServeSettings, method: Method | None = None):
        self.settings = settings
        self.reader = reader
        self.keys = Keys(settings.keys())
        self.started = int(time.time())
        place = None if settings.store is None else f"{settings.store.rstrip('/')}/memories"
        self.store = MemoryStore(
            reader.model,
            place,
            ram_bytes=settings.ram_mb * MEGA,
            gpu_bytes=settings.gpu_mb * MEGA,
            file_bytes=None if settings.store_mb is None else settings.store_mb * MEGA,
        )
        most = reader.slots + settings.max_waiting
        self.admission = Admission(most, settings.max_waiting_tokens, settings.max_per_key)
        # the door is the admission's; a request that is in may also need a reading
        self.loop = EngineLoop(reader, self.store, most_waiting=2 * most)
        self.models = Models(reader, settings.name or own_name(reader.name), method)
        self.documents = Documents(self.loop)
        self.words = Words(reader.tokenizer)
        self.asking = Asking(
            self.models, self.documents, reader.tokenizer, settings, self.text_of_file
        )

    @property
    def is_ready(self) -> bool:
        """Whether a request would be let in now."""
        return self.loop.is_ready and self.admission.has_room and not self.admission.is_draining

    def text_of_file(self, client: Client, file_id: str) -> str:
        """The text of an uploaded file.

        Raises:
            ApiError: 404, this client has no such file.
        """
        raise ApiError(404, f"there is no file {file_id}", param="file_id")

    def answering(self, asked: Asked, ticket: Ticket) -> Answering:
        """What is asked, on its way."""
        return Answering(asked, ticket, self.loop, self.documents, self.settings.request_timeout)

    def close(self) -> None:
        """End what is under way, and wait for what is being written to the store."""
        self.admission.is_draining = True
        self.loop.close()
        self.store.close()


def own_name(model: str) -> str:
    """What clients call a model: the last part of its directory's or hub name."""
    return model.rstrip("/").rpartition("/")[2].replace(":", "-") or "remamba"


def details(host: Host) -> dict[str, Any]:
    """What a server says of itself."""
    figures = host.loop.figures()
    return {
        "model": host.models.name,
        "running": figures["running"],
        "waiting": host.admission.answers - figures["running"],
        "slots": figures["slots"],
    }
