"""A thread that owns the engine, and what any thread or coroutine asks of it: a server's middle.

    with EngineLoop(reader, store=MemoryStore(reader.model, "memories/"), most_waiting=256) as loop:
        kept = loop.keep(text, method).result()         # a Future[KeptDocument]: read once, pinned
        kept.source                                     # gpu | ram | file | shared | read; None
        stream = loop.ask(Ask(kept.document, "Who signed?"), count=2, timeout=60)
        stream = loop.submit(Request(prompt=ids, options=SamplingOptions(logprobs=5)))
        for piece in stream: ...                        # or: async for piece in stream
        piece.number, piece.text, piece.token_ids, piece.logprobs, piece.finish_reason
        stream.completions, stream.answers              # one for each of `count`, at the end
        stream.cancel(); stream.tokens_read, stream.tokens_to_read
        loop.figures(); loop.drain(30)

`ask`, `submit` and `keep` make tokens of texts in the caller's thread (in a coroutine:
`asyncio.to_thread`). They raise `Busy` when too many wait, `Closed` when the loop takes no more
(`keep` in its future), and InputError for what cannot be answered. What goes wrong later is raised
by the stream, or by the future: the job's own error, `TimedOut`, or `Closed`.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

from remamba.engine.answer import Ask, AskedMethod
from remamba.engine.document import Document
from remamba.engine.engine import Engine
from remamba.engine.entering import AnyJob, ReadJob
from remamba.engine.made import Made
from remamba.engine.reader import Known, Reader
from remamba.engine.request import Job, Request
from remamba.engine.store import Held, MemoryStore
from remamba.engine.stream import Busy, Closed, Inbox, Piece, Stream, TimedOut
from remamba.errors import InputError
from remamba.methods.chunks import Chunks
from remamba.methods.memory import DocumentMemory

__all__ = ["Busy", "Closed", "EngineLoop", "KeptDocument", "Piece", "Stream", "TimedOut"]

CPU_STEP, GPU_STEP = 256, 4096
"""Tokens that are read between two steps of those being answered."""
COUNTED = (
    "finished", "cancelled", "timed_out", "failed", "refused", "generated_tokens", "read_documents"
)  # fmt: skip
ENDED = "the server has shut down before this was answered"
A = TypeVar("A")
B = TypeVar("B")


class KeptDocument:
    """A document whose memory is pinned in the loop's store, until this is closed or forgotten."""

    def __init__(self, document: Document, held: Held | None):
        self.document = document
        """For an `Ask`."""
        self._held = held

    @property
    def key(self) -> str | None:
        """What the store keeps the memory under; None where each question reads the document."""
        return None if self._held is None else self._held.key

    @property
    def source(self) -> str | None:
        """Where the memory came from (see `Held.source`); None where there is none."""
        return None if self._held is None else self._held.source

    def close(self) -> None:
        """The store may evict the memory again."""
        if self._held is not None:
            self._held.close()


class EngineLoop:
    """Answers requests of many threads on one model, in a thread of its own.

    Args:
        reader: whose model it runs. Until the loop is closed this reader reads through the loop,
            from any thread, and answers through `ask` alone.
        store: where documents' memories are kept, which it does not close; None: 1 GiB of RAM.
        most_waiting: how many jobs may wait beyond those in the slots; the next is refused.
        step_tokens: see `Engine`; None: CPU_STEP, on a GPU GPU_STEP.
    """

    def __init__(
        self,
        reader: Reader,
        store: MemoryStore | None = None,
        *,
        most_waiting: int = 256,
        step_tokens: int | None = None,
    ):
        if most_waiting < 0:
            raise InputError(f"most_waiting = {most_waiting} must be 0 or above")
        on_gpu = reader.model.device.type == "cuda"
        self.reader = reader
        self.store = MemoryStore(reader.model) if store is None else store
        self.engine = Engine(
            reader.model, reader.tokenizer, reader.slots, piece_length=reader.piece_length,
            step_tokens=step_tokens or (GPU_STEP if on_gpu else CPU_STEP),
        )  # fmt: skip
        self.most_waiting = most_waiting
        self._known: Known = WeakValueDictionary()
        self._state = threading.Condition()
        self._commands: deque[Callable[[], None]] = deque()
        self._ending = threading.RLock()
        self._is_open, self._is_closing, self._has_ended = True, False, False
        self._under_way = 0
        """Jobs that were let in and are not finished."""
        self._inboxes: dict[Job, Inbox] = {}
        self._readings: dict[ReadJob, Future[DocumentMemory]] = {}
        self._under_reading: WeakValueDictionary[str, ReadJob] = WeakValueDictionary()
        """By what the store keeps the memory under."""
        self._counts: Counter[str] = Counter()
        reader.run_by(self)
        self._thread = threading.Thread(target=self._work, name="remamba-engine", daemon=True)
        self._thread.start()
        atexit.register(_close, weakref.ref(self))

    def __enter__(self) -> EngineLoop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, request: Request, count: int = 1, timeout: float | None = None) -> Stream:
        """The answers to a request, as they grow.

        Args:
            count: see `Engine.submit`.
            timeout: seconds from now after which it is left off.

        Raises:
            Busy, Closed: it was not let in.
            InputError: it cannot be read.
        """
        return self._submit(lambda: (request, None), count, timeout)

    def ask(
        self, ask: Ask, count: int = 1, timeout: float | None = None, client: str = ""
    ) -> Stream:
        """The answers to an ask, as they grow; then `Stream.answers`. See `submit`.

        A document that no memory is kept of is read for this ask; see `keep`.

        Args:
            client: see `Request.client`.
        """

        def make() -> tuple[Request, Made]:
            made = self.reader.request_of(ask, self._known)
            return replace(made.request, client=client), made

        return self._submit(make, count, timeout)

    def keep(
        self,
        document: str | Path | Document,
        method: AskedMethod = None,
        client: str = "",
        owner: str = "",
    ) -> Future[KeptDocument]:
        """A document with its memory from the store, read once whoever asks.

        Where the method needs a reading for each question (`bm25`), there is no memory to keep.

        Args:
            document: the text, a file, or what `Reader.encoded` made of it: its method counts, and
                it is given its memory.
            owner: see `MemoryStore.key_of`.

        Raises:
            InputError: the text or the file cannot be read.
        """
        found = document
        if not isinstance(found, Document):
            found = self.reader.encoded(found, method)
        if not found.method.serves_memory:
            ready: Future[KeptDocument] = Future()
            ready.set_result(KeptDocument(found, None))
            return ready
        job = _reading_of(found, client)
        key = self.store.key_of(job.rows, job.method, owner)

        def made(held: Held) -> KeptDocument:
            found.memory = held.memory
            return KeptDocument(found, held)

        def start() -> Future[DocumentMemory]:
            self._under_reading[key] = job
            return self.read(job)

        return _then(self.store.hold(key, start), made)

    def share_read(self, document: Document, owner: str = "") -> float | None:
        """How much of a document has been read so far; None where it is not being read now."""
        if not document.method.serves_memory:
            return None
        job = _reading_of(document)
        found = self._under_reading.get(self.store.key_of(job.rows, job.method, owner))
        return None if found is None or found.is_finished else found.tokens_read / found.length

    def read(self, job: ReadJob) -> Future[DocumentMemory]:
        """The memory of a document, which no store keeps; cancelling the future leaves it off.

        Raises:
            Busy, Closed: it was not let in.
        """
        self._let_in(1)
        future: Future[DocumentMemory] = Future()

        def begin() -> None:
            self._readings[job] = future
            self.engine.read(job)

        def leave(done: Future[DocumentMemory]) -> None:
            if done.cancelled():
                self._command(lambda: self._leave_reading(job))

        future.add_done_callback(leave)
        self._command(begin)
        return future

    def figures(self) -> dict[str, int]:
        """How many answers are running and waiting, of how many slots; and what has ended how.

        `running`, `waiting`, `slots`, `under_way`; since the start `finished`, `cancelled`,
        `timed_out`, `failed`, `refused`, `generated_tokens`, `read_documents`.
        """
        with self._state:
            now = {"running": self.engine.running, "slots": self.reader.slots}
            waiting = max(self._under_way - now["running"], 0)
            counts = {name: self._counts[name] for name in COUNTED}
            return {**counts, **now, "waiting": waiting, "under_way": self._under_way}

    @property
    def is_ready(self) -> bool:
        """Whether a request would be let in now."""
        with self._state:
            return self._is_open and self._under_way < self.reader.slots + self.most_waiting

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs."""
        return not self._has_ended

    def drain(self, timeout: float | None = None) -> bool:
        """Take nothing more, and wait until all is answered; whether it was, in time."""
        with self._state:
            self._is_open = False
            return self._state.wait_for(lambda: not self._under_way, timeout)

    def close(self, timeout: float | None = 10.0) -> None:
        """Take nothing more, and end what is under way with `Closed`; then the thread ends.

        Args:
            timeout: seconds to wait for the thread, which ends behind the piece that it reads.
        """
        with self._state:
            self._is_open, self._is_closing = False, True
            self._state.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)
        self.reader.run_by(None)

    def _submit(
        self, make: Callable[[], tuple[Request, Made | None]], count: int, timeout: float | None
    ) -> Stream:
        deadline = None if timeout is None else time.monotonic() + timeout
        self._let_in(count)
        try:
            request, made = make()
            lead = self.engine.prepare(request, count)
        except BaseException:
            self._let_out(count)
            raise
        inbox = Inbox([lead, *lead.forks], deadline)

        def begin() -> None:
            self._inboxes.update(dict.fromkeys(inbox.jobs, inbox))
            self.engine.add(lead)

        self._command(begin)
        return Stream(inbox, made, lambda left: self._command(lambda: self._leave(left)))

    def _let_in(self, count: int) -> None:
        """Count jobs in, or refuse them."""
        most = self.reader.slots + self.most_waiting
        with self._state:
            if not self._is_open:
                raise Closed("no more is taken: the server is shutting down")
            if count > most:
                raise InputError(f"{count} answers are asked for; at most {most} can be under way")
            if self._under_way + count > most:
                self._counts["refused"] += count
                raise Busy(f"{self._under_way} are under way already, of {most}; ask again later")
            self._under_way += count

    def _let_out(self, count: int, how: str | None = None, tokens: int = 0) -> None:
        with self._state:
            self._under_way -= count
            self._counts["generated_tokens"] += tokens
            if how is not None:
                self._counts[how] += count
            self._state.notify_all()

    def _command(self, command: Callable[[], None]) -> None:
        """Have the loop's thread do something between two steps."""
        with self._state:
            self._commands.append(command)
            self._state.notify_all()
            if not self._has_ended:
                return
        self._end_all(Closed(ENDED))

    def _leave(self, inbox: Inbox) -> None:
        """Cancel what nobody listens to any more."""
        self.engine.cancel(*inbox.jobs)
        for job in inbox.jobs:
            self._tell(job)

    def _end(self, inbox: Inbox, error: Exception, how: str) -> None:
        """End a request with an error."""
        self.engine.cancel(*inbox.jobs)
        for job in inbox.jobs:
            self._count_out(job, how)
        inbox.fail(error)

    def _count_out(self, job: Job, how: str) -> None:
        if self._inboxes.pop(job, None) is not None:
            self._let_out(1, how, len(job.token_ids))

    def _work(self) -> None:
        """The thread: commands, then a step, as long as there is something to do."""
        error: Exception = Closed(ENDED)
        try:
            while self._wait():
                self._step()
        except BaseException as fault:  # a bug: whoever waits hears of it
            error = fault if isinstance(fault, Exception) else error
            raise
        finally:
            with self._state:
                self._is_open, self._has_ended = False, True
            self._end_all(error)

    def _wait(self) -> bool:
        """Do what was commanded; wait where nothing is to be done; False when it is time to end."""
        with self._state:
            self._state.wait_for(
                lambda: self._commands or self._is_closing or not self.engine.is_idle
            )
            commands, self._commands = self._commands, deque()
            is_closing = self._is_closing
        for command in commands:
            command()
        return not is_closing

    def _step(self) -> None:
        for job in self.engine.step():
            self._tell(job)
        now = time.monotonic()
        late = {
            id(inbox): inbox
            for inbox in self._inboxes.values()
            if inbox.deadline is not None and inbox.deadline < now
        }
        for inbox in late.values():
            self._end(
                inbox, TimedOut("it was not answered in the time that was given"), "timed_out"
            )

    def _tell(self, job: AnyJob) -> None:
        """Tell those who wait what a job has brought."""
        if isinstance(job, ReadJob):
            self._tell_reading(job)
            return
        inbox = self._inboxes.get(job)
        if inbox is None:
            return
        if job.error is not None:
            self._end(inbox, job.error, "failed")
            return
        if job.is_finished:
            self._count_out(job, "cancelled" if job.finish_reason == "cancelled" else "finished")
        inbox.hear(job)

    def _tell_reading(self, job: ReadJob) -> None:
        future = self._readings.pop(job, None)
        if future is None:
            return
        self._let_out(1, "read_documents" if job.memory is not None else None)
        if not future.set_running_or_notify_cancel():
            return
        if job.memory is not None:
            future.set_result(job.memory)
        else:
            future.set_exception(job.error or Closed("the reading was left off"))

    def _leave_reading(self, job: ReadJob) -> None:
        self.engine.cancel(job)
        self._tell_reading(job)

    def _end_all(self, error: Exception) -> None:
        """Give everybody who still waits an error, now that the thread does nothing more."""
        with self._ending:
            while self._commands:  # what was let in and not begun
                self._commands.popleft()()
            for inbox in {id(one): one for one in self._inboxes.values()}.values():
                self._end(inbox, error, "cancelled")
            for job in [*self._readings]:
                self._leave_reading(job)


def _reading_of(document: Document, client: str = "") -> ReadJob:
    """The reading of a document by its method, whole or chunk by chunk."""
    method = document.method
    if isinstance(method, Chunks):
        rows = document.chunk_rows(document.chunks(method.tokens))
        return ReadJob(rows, method, is_cut=True, client=client)
    return ReadJob([document.ids], method, client=client)


def _close(reference: weakref.ref[EngineLoop]) -> None:
    """Close a loop that nobody has closed: a thread amid a step would outlive what it works on."""
    if (loop := reference()) is not None:
        loop.close()


def _then(first: Future[A], make: Callable[[A], B]) -> Future[B]:
    """What is made of a future's result; cancelling it cancels the first."""
    second: Future[B] = Future()

    def arrived(done: Future[A]) -> None:
        if not second.set_running_or_notify_cancel():
            return
        try:
            second.set_result(make(done.result()))
        except BaseException as error:
            second.set_exception(error)

    def left(done: Future[B]) -> None:
        if done.cancelled():
            first.cancel()

    first.add_done_callback(arrived)
    second.add_done_callback(left)
    return second
