"""The rows of the requests being answered at once: states, last tokens, and who owns them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from remamba.engine.likelihoods import likelihoods
from remamba.engine.sampling import (
    Sampler,
    choose,
    choose_on_device,
    most_told,
    table_of_draws,
    table_of_forbidden,
    width_of_draws,
    without,
)
from remamba.execution.decode import DecodeStep
from remamba.model.layers import vocabulary_logits
from remamba.model.states import StateCache

T = TypeVar("T")


class Drawn(Protocol):
    """Handle of a step's tokens, which a GPU may still be computing; `tokens()` waits for them."""

    def tokens(self) -> list[int | None]:
        """One for each row there was when the step began; None where its logits were not finite."""

    def likelihoods(self) -> list[list[float]] | None:
        """What `likelihoods` gives for each of these tokens; None where no sampler wants it.

        To be called behind `tokens`.
        """


class Rows(Protocol):
    """Rows of states, each with the token that is read next."""

    runs_ahead: bool
    """Whether a step may begin before the host knows the tokens of the last one."""

    def put(self, cache: StateCache, tokens: Sequence[int], start: int) -> None:
        """Rows from `start`, the first free one, take the cache's states and these tokens."""

    def keep(self, order: list[int]) -> None:
        """Row i becomes what row order[i] was, order[i] >= i; rows not named are dropped."""

    def draw(self, samplers: Sequence[Sampler]) -> Drawn:
        """One more token for each row; samplers one a row."""


class Known:
    """Tokens drawn from logits (b, vocab) at once."""

    def __init__(self, logits: Tensor, samplers: Sequence[Sampler]):
        self._tokens = choose(logits, samplers)
        self._likelihoods = None
        if (count := most_told(samplers)) is not None:
            given = torch.tensor([token or 0 for token in self._tokens], device=logits.device)
            self._likelihoods = likelihoods(logits, given, count).tolist()

    def tokens(self) -> list[int | None]:
        return self._tokens

    def likelihoods(self) -> list[list[float]] | None:
        return self._likelihoods


class GrowingRows:
    """As many rows as requests, so that a step computes no row in vain (on a CPU)."""

    runs_ahead = False

    def __init__(self, model: Any):
        self._model = model
        self.cache: StateCache | None = None
        self._tokens: list[int] = []

    def put(self, cache: StateCache, tokens: Sequence[int], start: int) -> None:
        if self.cache is None:
            self.cache, self._tokens = cache, list(tokens)
        else:
            self.cache = StateCache.side_by_side([self.cache, cache])
            self._tokens += tokens

    def keep(self, order: list[int]) -> None:
        if self.cache is not None:
            self.cache = self.cache.select(torch.tensor(order)) if order else None
        self._tokens = [self._tokens[row] for row in order]

    def draw(self, samplers: Sequence[Sampler]) -> Drawn:
        assert self.cache is not None
        tokens = torch.tensor(self._tokens, device=self._model.device)
        drawn = Known(self.logits(tokens, self.cache), samplers)
        self._tokens = [token or 0 for token in drawn.tokens()]
        return drawn

    def logits(self, tokens: Tensor, cache: StateCache) -> Tensor:
        """Logits (b, vocab) behind one more token (b,) of each row; the cache moves on."""
        backbone, lm_head = self._model.backbone, self._model.lm_head
        hidden = backbone(backbone.embeddings(tokens.unsqueeze(1)), cache=cache)
        return vocabulary_logits(lm_head, hidden[:, 0])


class StaticRows:
    """`capacity` rows at fixed addresses, which a CUDA graph updates and draws tokens for.

    A drawn token goes into the next step without passing the host, which may therefore begin that
    step on a GPU before it has seen the token.
    """

    def __init__(self, model: Any, capacity: int):
        self.runs_ahead = model.device.type == "cuda"
        self.step = DecodeStep(model, capacity)
        self._table = torch.zeros(4, capacity, device=model.device)
        self._forbidden: dict[int, Tensor] = {}
        """Tokens a row -> (capacity, tokens), where a captured step looks for them."""
        # two steps are under way at most
        self._tickets = [_Ticket(capacity, model.device) for _ in range(2)]

    def put(self, cache: StateCache, tokens: Sequence[int], start: int) -> None:
        if start == 0:
            self.step.refresh()
        self.step.load(cache, start)
        given = torch.tensor(tokens, device=self.step.device)
        self.step.tokens[start : start + len(tokens)] = given

    def keep(self, order: list[int]) -> None:
        for target, source in enumerate(order):
            if source != target:
                self.step.move(source, target)

    def draw(self, samplers: Sequence[Sampler]) -> Drawn:
        width = width_of_draws(samplers)
        ticket = self._tickets[0]
        self._tickets.reverse()
        if width:
            ticket.table[:, : len(samplers)] = table_of_draws(samplers)
            self._table.copy_(ticket.table, non_blocking=True)
        count, told = self._put_forbidden(samplers), most_told(samplers)
        drawn = self.step.run(
            len(samplers), partial(self._choose, width, count, told), name=(width, count, told)
        )
        tokens, values = drawn
        rows = len(samplers)
        ticket.send(tokens[:rows], None if values is None else values[:rows])
        return ticket

    def _put_forbidden(self, samplers: Sequence[Sampler]) -> int:
        """Lay down what no row may draw next; how many tokens a row that is, 0 for nothing."""
        given = table_of_forbidden(samplers)
        if given is None:
            return 0
        rows, count = given.shape
        if count not in self._forbidden:
            shape = (len(self.step.tokens), count)
            self._forbidden[count] = torch.full(shape, -1, device=self.step.device)
        held = self._forbidden[count]
        held[:rows] = given.to(held.device)
        held[rows:] = -1
        return count

    def _choose(
        self, width: int, forbidden: int, told: int | None, logits: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        allowed = logits
        if forbidden:
            allowed = without(logits, self._forbidden[forbidden][: len(logits)])
        token = choose_on_device(allowed, self._table[:, : len(logits)], width)
        self.step.tokens[: len(logits)] = token.clamp(min=0)
        return token, None if told is None else likelihoods(logits, token, told)


class _Ticket:
    """The host's memory for one running step: its table of draws goes in, its tokens come out."""

    def __init__(self, capacity: int, device: torch.device):
        on_gpu = device.type == "cuda"
        self.table = torch.zeros(4, capacity, pin_memory=on_gpu)
        self._tokens = torch.zeros(capacity, dtype=torch.long, pin_memory=on_gpu)
        self._told: dict[int, Tensor] = {}
        """Values a row -> (capacity, values), where these likelihoods arrive."""
        self._count, self._width = 0, 0
        self._arrived = torch.cuda.Event() if on_gpu else None

    def send(self, tokens: Tensor, told: Tensor | None) -> None:
        """Start copying tokens and likelihoods to the host; `tokens()` waits for them."""
        self._count, self._width = len(tokens), 0 if told is None else told.shape[1]
        self._tokens[: self._count].copy_(tokens, non_blocking=True)
        if told is not None:
            if self._width not in self._told:
                shape = (len(self._tokens), self._width)
                self._told[self._width] = torch.zeros(shape, pin_memory=tokens.is_cuda)
            self._told[self._width][: self._count].copy_(told, non_blocking=True)
        if self._arrived is not None:
            self._arrived.record(torch.cuda.current_stream(tokens.device))

    def tokens(self) -> list[int | None]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return [None if t < 0 else t for t in self._tokens[: self._count].tolist()]

    def likelihoods(self) -> list[list[float]] | None:
        return self._told[self._width][: self._count].tolist() if self._width else None


class Slots(Generic[T]):
    """Up to `capacity` owners of rows, in the rows' order."""

    def __init__(self, capacity: int, rows: Rows):
        self.capacity = capacity
        self.rows = rows
        self.owners: list[T] = []

    @property
    def free(self) -> int:
        return self.capacity - len(self.owners)

    def put(self, cache: StateCache, owners: Sequence[T], tokens: Sequence[int]) -> None:
        """Take in new owners: row i of the cache, and the token behind it, for owner i."""
        assert cache.batch_size == len(owners) <= self.free, (cache.batch_size, self.free)
        self.rows.put(cache, tokens, len(self.owners))
        self.owners += owners

    def clear(self) -> None:
        """Free all rows, whatever state a step that failed has left them in."""
        self.owners = []
        self.rows.keep([])

    def drop(self, owners: Sequence[T]) -> None:
        """Free the rows of these owners; those who hold none are passed over."""
        leaving = {id(owner) for owner in owners}
        kept = [row for row, owner in enumerate(self.owners) if id(owner) not in leaving]
        if len(kept) == len(self.owners):
            return
        # the last ones move into the holes, so that few move
        held = set(kept)
        order = [row if row in held else kept.pop() for row in range(len(kept))]
        self.rows.keep(order)
        self.owners = [self.owners[row] for row in order]
