"""One pass of a backbone over rows, in pieces where they are long; gathering its states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from remamba.errors import InputError
from remamba.execution.prefill import run_backbone
from remamba.execution.steps import Steps
from remamba.model.backbone import Backbone
from remamba.model.layer_rules import LayerRule
from remamba.model.rows import cut, to_device
from remamba.model.states import StateCache
from remamba.model.time_step import Adaption


def not_finite(where: str, dtype: torch.dtype) -> InputError:
    """The InputError for values that are not finite; `where` names them ("the logits of row 0")."""
    mend = "" if dtype == torch.float32 else f", or {dtype} overflows; use float32"
    return InputError(f"{where} are not finite: the weights hold NaN or infinity{mend}")


def check_finite(logits: Tensor) -> None:
    """Raise InputError where a row of logits (b, ..., vocab) holds NaN or infinity."""
    if not bool(torch.isfinite(logits).all()):
        row = int((~torch.isfinite(logits)).flatten(1).any(dim=1).nonzero()[0])
        raise not_finite(f"the logits of row {row}", logits.dtype)


class Window:
    """The states of `width` positions from start (b,) on, gathered while a pass goes by in pieces.

    Positions before the first piece or behind the last are zero; its user masks them by length.
    """

    def __init__(self, start: Tensor, width: int):
        self.start, self.width = start, width
        self.states: Tensor | None = None

    def add(self, begin: int, hidden: Tensor) -> None:
        """Take what lies in the window from hidden (b, n, d), the states from `begin` on."""
        rows, n, d = hidden.shape
        first = self.start - begin
        lowest, highest = int(first.min()), int(first.max())
        if lowest == highest == 0 and n == self.width:
            self.states = hidden
            return
        low, high = max(0, -highest), min(self.width, n - lowest)
        if self.states is None:
            # a copy, so that the rest of the piece is let go
            if low < high and high - low == self.width and lowest >= 0 and highest + high <= n:
                self.states = cut(hidden, first, self.width).clone()
                return
            self.states = hidden.new_zeros(rows, self.width, d)
        if low >= high:
            return
        found = cut(hidden, first + low, high - low)
        if lowest + low < 0 or highest + high > n:
            column = torch.arange(low, high, device=hidden.device)
            index = to_device(first, hidden.device)[:, None] + column
            inside = ((index >= 0) & (index < n)).unsqueeze(-1)
            found = torch.where(inside, found, self.states[:, low:high])
        self.states[:, low:high] = found


def gather_windows(pieces: Iterable[tuple[int, Tensor]], *windows: Window) -> Steps[list[Tensor]]:
    """Run a pass to its end, and return the states of each window, (b, width, d)."""
    for begin, hidden in pieces:
        for window in windows:
            window.add(begin, hidden)
        yield hidden.shape[0] * hidden.shape[1]
    return [window.states for window in windows if window.states is not None]


class LayerStates:
    """Every layer's states in the last pass that ran, from its pieces.

    A method's last pass is its last stage, whose sequence the logits belong to.
    """

    def __init__(self) -> None:
        self._pieces: list[list[Tensor]] = []

    def add(self, begin: int, states: list[Tensor]) -> None:
        """Take the states (b, n, d) of the positions from `begin` on; 0 begins a new pass."""
        if begin == 0:
            self._pieces = []
        self._pieces.append(states)

    def joined(self) -> list[Tensor]:
        """(b, l, d) behind each layer, then behind the final norm."""
        layers = zip(*self._pieces, strict=True)
        return [layer[0] if len(layer) == 1 else torch.cat(layer, dim=1) for layer in layers]


READ_AT_ONCE = 65_536
"""Most positions in one piece, all rows counted, where gradients are off."""


class PassOptions(NamedTuple):
    """Options of one backbone pass. They change speed, memory and what is told, never results."""

    piece_length: int | None = None
    """Tokens of a row that the backbone reads at once. None: whole rows; with gradients off, pieces
    of READ_AT_ONCE positions where rows are longer."""
    tail: int = 0
    """Return the states of this many positions at the end of each row; 0: of all."""
    with_stage1: bool = False
    """Also return stage 1's states of every position, answers included."""
    layers: LayerStates | None = None
    """Gets every layer's states of the last pass; None: they are not kept."""
    most: int | None = None
    """Most positions that the backbone reads at once, all rows counted; None: no such bound."""

    @property
    def for_reading(self) -> PassOptions:
        """The same sizes of pieces, for a reading whose states are not asked for."""
        return PassOptions(self.piece_length, most=self.most)


def run_pass(
    backbone: Backbone,
    embeds: Callable[[int, int], Tensor],
    lengths: Tensor,
    cache: StateCache | None,
    how: PassOptions,
    adaption: Adaption | None = None,
    rule: LayerRule | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Last-layer states of a sequence, piece by piece: (begin, (b, n, d)).

    Args:
        embeds: (begin, end) -> (b, end - begin, d), the sequence's embeddings there.
        lengths: (b,) real positions of each row; on the host.
        cache: the pass starts from its states, if it has any, and leaves its own in it.
        adaption: the kept positions of stage 2.
        rule: what becomes of the time steps; None: what the cache's states are to be gone on with.
    """
    width = int(lengths.max())
    piece_length = how.piece_length
    if piece_length is None:
        most = max(READ_AT_ONCE // len(lengths), 1)
        piece_length = max(width, 1) if torch.is_grad_enabled() else most
    elif piece_length < 1:
        raise InputError(f"piece_length = {piece_length} must be at least 1")
    if how.most is not None:
        piece_length = min(piece_length, max(how.most // len(lengths), 1))
    if width > piece_length and cache is None:
        cache = StateCache(len(backbone.layers))
    for begin in range(0, max(width, 1), piece_length):
        end = min(begin + piece_length, width)
        real = (lengths - begin).clamp(0, end - begin)
        piece = None if adaption is None else adaption.piece(begin, end)
        every: list[Tensor] | None = None if how.layers is None else []
        own = None if rule is None else rule.piece(begin, end)
        hidden = run_backbone(backbone, embeds(begin, end), real, piece, cache, every, own)
        if how.layers is not None and every is not None:
            how.layers.add(begin, every)
        yield begin, hidden


def collect(pieces: Iterator[tuple[int, Tensor]], lengths: Tensor, tail: int) -> Steps[Tensor]:
    """All states of a pass (tail = 0), or each row's last `tail`, (b, tail, d).

    Where no row has so many, as many as the longest has.
    """
    if tail:
        tail = min(tail, int(lengths.max()))
        window = Window(lengths - tail, tail)
    else:
        window = Window(torch.zeros_like(lengths), int(lengths.max()))
    return (yield from gather_windows(pieces, window))[0]
