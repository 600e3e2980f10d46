"""One request on its way through the loop: its documents' memories, and its growing answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from remamba.engine.answer import Answer
from remamba.engine.kept_words import KeptWord, kept_words
from remamba.engine.loop import EngineLoop, KeptDocument, Piece, Stream
from remamba.engine.request import Completion
from remamba.serve.asked import Asked, Prompt, Question
from remamba.serve.documents import Documents
from remamba.serve.limits import Client, Ticket
from remamba.serve.metrics import Metrics

HEARTBEAT = 5.0
"""Seconds between the signs of life of a request that has no text yet."""
REUSED = ("gpu", "ram", "file", "shared")
"""Sources of a memory that was not read for the one who asks."""


class Grown(NamedTuple):
    """Something new of a request."""

    number: int
    """Which of all its answers."""
    piece: Piece


class Usage(NamedTuple):
    """What a request took, in tokens."""

    prompt: int
    completion: int
    cached: int
    """Of the prompt: those whose states were there already."""
    written: int
    """Of the prompt: those whose states were read for this request, and are kept."""


class Answering:
    """The answers to one request; closing it lets go of all that it holds.

    Args:
        seconds: how long it may take.
        note: told of each uploaded file whose memory was held.
    """

    def __init__(
        self,
        asked: Asked,
        ticket: Ticket,
        loop: EngineLoop,
        documents: Documents,
        seconds: float,
        note: Callable[[Client, str, KeptDocument], None],
        metrics: Metrics,
    ):
        self.asked = asked
        self.streams: list[Stream] = []
        """One for each item of what is asked."""
        self._kept: list[KeptDocument | None] = []
        self._ticket, self._loop, self._documents = ticket, loop, documents
        self._note, self._metrics = note, metrics
        self._deadline = time.monotonic() + seconds
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """See that documents are read, and have the answers begun.

        Raises:
            Exception: why they cannot be.
        """
        for item in self.asked.items:
            self._kept.append(await self._keep(item))
        for item, kept in zip(self.asked.items, self._kept, strict=True):
            self.streams.append(await asyncio.to_thread(self._start, item, kept))

    async def _keep(self, item: Question | Prompt) -> KeptDocument | None:
        if isinstance(item, Prompt) or not item.is_kept:
            return None
        future = await asyncio.to_thread(self._documents.keep, item.document, self.asked.client)
        kept = await asyncio.wait_for(asyncio.wrap_future(future), self._left)
        if item.file_id is not None:
            await asyncio.to_thread(self._note, self.asked.client, item.file_id, kept)
        return kept

    def _start(self, item: Question | Prompt, kept: KeptDocument | None) -> Stream:
        options, client = self.asked.options, self.asked.client
        if isinstance(item, Prompt):
            request = item.request(options, client)
            return self._loop.submit(request, self.asked.count, self._left)
        ask = item.ask(options, item.document if kept is None else kept.document)
        return self._loop.ask(ask, self.asked.count, self._left, client.name)

    @property
    def _left(self) -> float:
        """Seconds that are left to it."""
        return max(self._deadline - time.monotonic(), 0.0)

    def progress(self) -> float | None:
        """The share that was read of what is being read, where it is known."""
        for item, kept in zip(self.asked.items, [*self._kept, None], strict=False):
            if kept is None and isinstance(item, Question) and item.is_kept:
                return self._loop.share_read(item.document, self.asked.client.owner)
        # behind a memory there is little left to read
        streams = [s for s, kept in zip(self.streams, self._kept, strict=False) if kept is None]
        total = sum(stream.tokens_to_read for stream in streams)
        return sum(stream.tokens_read for stream in streams) / total if total else None

    async def grow(self) -> AsyncIterator[Grown | None]:
        """What is new, as it comes; None as a sign of life where nothing is.

        Raises:
            Exception: what has ended it.
        """
        news: asyncio.Queue[Grown | Exception | None] = asyncio.Queue()
        self._tasks += [asyncio.create_task(_beat(news)), asyncio.create_task(self._run(news))]
        ends, last = 0, dict[int, float]()
        begun = time.perf_counter()
        while ends < len(self.asked.items) * self.asked.count:
            found = await news.get()
            if isinstance(found, Exception):
                raise found
            if found is not None:
                now = time.perf_counter()
                if found.number in last:
                    self._metrics.between.observe(now - last[found.number])
                elif not last:
                    self._metrics.first.observe(now - begun)
                last[found.number] = now
                ends += found.piece.finish_reason is not None
            elif last:
                continue
            yield found
        self._count()

    async def _run(self, news: asyncio.Queue[Any]) -> None:
        try:
            await self.begin()
            firsts = range(0, len(self.streams) * self.asked.count, self.asked.count)
            pairs = zip(firsts, self.streams, strict=True)
            await asyncio.gather(*(self._listen(first, one, news) for first, one in pairs))
        except Exception as error:
            news.put_nowait(error)

    @staticmethod
    async def _listen(first: int, stream: Stream, news: asyncio.Queue[Any]) -> None:
        async for piece in stream:
            news.put_nowait(Grown(first + piece.number, piece))

    async def finish(self) -> None:
        """Wait until all is answered.

        Raises:
            Exception: why it is not.
        """
        await self.begin()
        for stream in self.streams:
            await stream.result_async()
        self._count()

    def _count(self) -> None:
        usage = self.usage
        self._metrics.prompt_tokens.inc(usage.prompt)
        self._metrics.cached_tokens.inc(usage.cached)

    def close(self) -> None:
        """Let go: the slots are free behind the step that is under way."""
        for task in self._tasks:
            task.cancel()
        for stream in self.streams:
            stream.cancel()
        for kept in self._kept:
            if kept is not None:
                kept.close()
        self._ticket.close()

    # what is told of the answers, once they are there

    @property
    def completions(self) -> list[Completion]:
        """All answers, those of one item together."""
        return [done for stream in self.streams for done in stream.completions]

    @property
    def usage(self) -> Usage:
        """What the request has taken."""
        prompt = cached = written = 0
        read: set[str] = set()
        for kept, stream in zip(self._kept, self.streams, strict=True):
            count = stream.completions[0].prompt_tokens
            prompt += count
            if kept is None or kept.source is None:
                continue
            document = count - stream.tokens_to_read
            assert kept.key is not None
            # of several questions of a request about one document the first one had it read
            if kept.source in REUSED or kept.key in read:
                cached += document
            else:
                written += document
            read.add(kept.key)
        drawn = sum(len(done.token_ids) for done in self.completions)
        return Usage(prompt, 0 if self.asked.is_silent else drawn, cached, written)

    def sources(self) -> list[str | None]:
        """Where each item's memory came from, see `Held.source`."""
        return [None if kept is None else kept.source for kept in self._kept]

    def kept(self, number: int) -> tuple[Sequence[KeptWord] | None, Answer | None]:
        """The words that were kept for an answer, and the answer where a document was asked."""
        item = self.asked.items[number // self.asked.count]
        stream, own = self.streams[number // self.asked.count], number % self.asked.count
        if isinstance(item, Question):
            answer = stream.answer(own)
            return answer.kept, answer
        kept = stream.completion(own).kept
        if kept is None:
            return None, None
        return kept_words(item.text, item.encoded.offsets, kept), None


async def _beat(news: asyncio.Queue[Any]) -> None:
    while True:
        await asyncio.sleep(HEARTBEAT)
        news.put_nowait(None)


async def unless_left(receive: Any, work: Coroutine[Any, Any, Any]) -> Any:
    """What some work gives; None where the client leaves before, and the work is then cancelled.

    Args:
        receive: the ASGI application's, the body of the request having been read.
    """

    async def leave() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    leaving, working = asyncio.create_task(leave()), asyncio.create_task(work)
    try:
        await asyncio.wait({leaving, working}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (leaving, working):
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(leaving, working, return_exceptions=True)
