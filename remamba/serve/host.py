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
from remamba.serve.files import Files
from remamba.serve.limits import Admission, Keys, Ticket
from remamba.serve.metrics import Metrics
from remamba.serve.models import Models
from remamba.serve.replies import Words
from remamba.serve.settings import ServeSettings
from remamba.serve.uploads import Uploads

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
        place = None if settings.store is None else settings.store.rstrip("/")
        # without a place they are in RAM
        most = settings.max_files_mb if place else min(settings.max_files_mb, settings.ram_mb)
        self.files = Files(place and f"{place}/files", most * MEGA)
        self.store = MemoryStore(
            reader.model,
            place and f"{place}/memories",
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
        self.metrics = Metrics(self.loop, self.store, self.admission)
        self.words = Words(reader.tokenizer)
        self.asking = Asking(
            self.models, self.documents, reader.tokenizer, settings, self.files.text
        )
        self.uploads = Uploads(
            self.files,
            self.documents,
            self.store,
            self.admission,
            self.models.method,
            settings.max_prompt_tokens,
        )

    @property
    def is_ready(self) -> bool:
        """Whether a request would be let in now."""
        return self.loop.is_ready and self.admission.has_room and not self.admission.is_draining

    def told(self) -> dict[str, Any]:
        """What the server says of itself."""
        figures = self.loop.figures()
        waiting = max(self.admission.answers - figures["running"], 0)
        now = {"running": figures["running"], "waiting": waiting, "slots": figures["slots"]}
        status = "draining" if self.admission.is_draining else "busy"
        return {
            "status": "ready" if self.is_ready else status, "model": self.models.name, **now
        }  # fmt: skip

    def answering(self, asked: Asked, ticket: Ticket) -> Answering:
        """What is asked, on its way."""
        return Answering(
            asked, ticket, self.loop, self.documents, self.settings.request_timeout,
            self.uploads.noted, self.metrics,
        )  # fmt: skip

    def close(self) -> None:
        """End what is under way, and wait for what is being written to the store."""
        self.admission.is_draining = True
        self.loop.close()
        self.store.close()


def own_name(model: str) -> str:
    """What clients call a model: the last part of its directory's or hub name."""
    return model.rstrip("/").rpartition("/")[2].replace(":", "-") or "remamba"
