"""The door: rows of tokens, masks and lengths become one right-padded batch, and go out again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from remamba.errors import InputError

IGNORE = -100
"""The label of a position that carries no loss."""


@dataclass
class Batch:
    """Right-padded rows: the prompt, then (in training) the answer; token ids or embeddings."""

    input_ids: Tensor | None
    """(b, l) int64."""
    embeds: Tensor | None
    """(b, l, d)."""
    lengths: Tensor
    """(b,) real tokens of each row."""
    prompt_lengths: Tensor
    """(b,) how many of them are prompt."""
    question_lengths: Tensor
    """(b,) how many of the prompt's last tokens are the question; 0 where it is one part."""
    labels: Tensor | None = None
    """(b, l), IGNORE where there is no loss and at every pad."""
    offset: Tensor | None = None
    """(b,) pads that stood on the left of each row; None when none did."""

    @property
    def rows(self) -> int:
        return self.lengths.shape[0]

    @property
    def width(self) -> int:
        given = self.input_ids if self.input_ids is not None else self.embeds
        assert given is not None
        return given.shape[1]

    @property
    def document_lengths(self) -> Tensor:
        return self.prompt_lengths - self.question_lengths

    def take(self, embeddings: nn.Module, index: Tensor) -> Tensor:
        """(b, n, d) embeddings of the positions `index` (b, n) of each row."""
        if self.input_ids is not None:
            return embeddings(self.input_ids.gather(1, index))
        assert self.embeds is not None
        return take_positions(self.embeds, index)

    def part(self, start: Tensor, stop: Tensor) -> Batch:
        """The positions from start (b,) to stop (b,) of each row, as rows of their own."""
        lengths = stop - start
        column = torch.arange(int(lengths.max()), device=lengths.device)
        index = (start[:, None] + column).clamp(max=self.width - 1)
        labels = self.labels
        if labels is not None:
            labels = labels.gather(1, index).masked_fill(column >= lengths[:, None], IGNORE)
        return Batch(
            None if self.input_ids is None else self.input_ids.gather(1, index),
            None if self.embeds is None else take_positions(self.embeds, index),
            lengths,
            torch.minimum(stop, self.prompt_lengths) - start,
            torch.zeros_like(lengths),
            labels,
            self.offset,
        )

    def split(self) -> tuple[Batch, Batch]:
        """Documents, and questions with their answers.

        Raises:
            InputError: a row has no document or no question.
        """
        document = self.document_lengths
        if bool(((self.question_lengths == 0) | (document == 0)).any()):
            raise InputError(
                "placement='before_question' needs a document and a question in every row: give "
                "question_lengths between 1 and the prompt's length - 1"
            )
        return self.part(torch.zeros_like(document), document), self.part(document, self.lengths)


def not_finite(where: str, dtype: torch.dtype) -> InputError:
    """The refusal of values that are not finite, `where` naming them ("the logits of row 0")."""
    mend = "" if dtype == torch.float32 else f", or {dtype} overflows; use float32"
    return InputError(f"{where} are not finite: the weights hold NaN or infinity{mend}")


def take_positions(x: Tensor, index: Tensor) -> Tensor:
    """x (b, l, ...) at index (b, n) -> (b, n, ...)."""
    return x.gather(1, index.view(*index.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:]))


def enter(
    input_ids: Tensor | None,
    attention_mask: Tensor | None = None,
    embeds: Tensor | None = None,
    labels: Tensor | None = None,
    prompt_lengths: Tensor | None = None,
    question_lengths: Tensor | None = None,
) -> Batch:
    """The rows as a right-padded batch; left padding is rolled to the right.

    Raises:
        InputError: neither or both of ids and embeddings, an empty row, a mask of another shape or
            with holes, lengths that do not fit their rows.
    """
    if (input_ids is None) == (embeds is None):
        raise InputError("give either input_ids or inputs_embeds, and not both")
    given = input_ids if input_ids is not None else embeds
    assert given is not None
    if given.dim() != (2 if embeds is None else 3):
        raise InputError(f"the input's shape {tuple(given.shape)} is not (rows, tokens)")
    rows, width = given.shape[:2]
    if attention_mask is None:
        lengths = torch.full((rows,), width, device=given.device)
        offset = torch.zeros_like(lengths)
    else:
        if attention_mask.shape != (rows, width):
            raise InputError(
                f"attention_mask is {tuple(attention_mask.shape)}, the input is ({rows}, {width})"
            )
        lengths, offset = _padding(attention_mask.to(given.device).bool())
    if width == 0 or bool((lengths == 0).any()):
        row = 0 if width == 0 else int((lengths == 0).nonzero()[0])
        raise InputError(f"the prompt of row {row} is empty; it needs at least one token")
    batch = Batch(input_ids, embeds, lengths, lengths, torch.zeros_like(lengths))
    if bool((offset > 0).any()):
        batch = batch.part(offset, offset + lengths)
        batch.offset = offset
    if labels is not None:
        labels = align(labels, batch)
        past_end = torch.arange(labels.shape[1], device=labels.device) >= lengths[:, None]
        batch.labels = labels.masked_fill(past_end, IGNORE)
    batch.prompt_lengths = _prompt_lengths(prompt_lengths, batch)
    if question_lengths is not None:
        batch.question_lengths = _within(
            "question_lengths", question_lengths, 0, batch.prompt_lengths
        )
    return batch


def _padding(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Real tokens of each row (b,) and the pads on its left (b,)."""
    lengths, offset = mask.sum(dim=1), mask.int().argmax(dim=1)
    position = torch.arange(mask.shape[1], device=mask.device)
    whole = (position >= offset[:, None]) & (position < (offset + lengths)[:, None])
    if holes := (mask != whole).any(dim=1).nonzero().flatten().tolist():
        raise InputError(
            f"attention_mask of row {holes[0]} has holes; pad on the left or on the right only"
        )
    return lengths, offset


def _prompt_lengths(given: Tensor | None, batch: Batch) -> Tensor:
    """(b,) tokens of each prompt: as given, or up to the first label, or the whole row."""
    if given is not None:
        return _within("prompt_lengths", given, 1, batch.lengths)
    if batch.labels is None:
        return batch.lengths
    labelled = batch.labels != IGNORE
    first = torch.where(labelled.any(dim=1), labelled.int().argmax(dim=1), batch.lengths)
    return torch.where(first > 0, first, batch.lengths)


def _within(name: str, given: Tensor, low: int, high: Tensor) -> Tensor:
    given = torch.as_tensor(given, device=high.device)
    if given.is_floating_point():
        raise InputError(f"{name} = {given.tolist()} must be whole numbers")
    if given.shape != high.shape or bool(((given < low) | (given > high)).any()):
        raise InputError(
            f"{name} = {given.tolist()} must lie, row by row, between {low} and {high.tolist()}"
        )
    return given


def align(x: Tensor, batch: Batch) -> Tensor:
    """A per-position tensor (b * n, l, ...) given beside the rows, moved as `enter` moved them."""
    if batch.offset is None:
        return x
    offset = batch.offset.repeat_interleave(x.shape[0] // batch.rows)
    index = offset[:, None] + torch.arange(batch.width, device=x.device)
    return take_positions(x, index.clamp(max=x.shape[1] - 1))


def flush_right(x: Tensor, lengths: Tensor) -> Tensor:
    """Right-padded rows (b, l, ...) with their pads moved to the left."""
    index = torch.arange(x.shape[1], device=x.device) - (x.shape[1] - lengths)[:, None]
    return take_positions(x, index % max(x.shape[1], 1))


def leave(x: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
    """Right-padded results (b, l, ...) as the caller padded: on the left if the rows were."""
    return x if batch.offset is None else flush_right(x, lengths)


class Window:
    """The positions from start (b,) on, `width` of them, gathered from states that come in pieces.

    What lies before or behind all pieces is zero; who uses a window masks by length.
    """

    def __init__(self, start: Tensor, width: int):
        self.start, self.width = start, width
        self.states: Tensor | None = None

    def add(self, begin: int, hidden: Tensor) -> None:
        """Take what falls into the window from hidden (b, n, d), the states from `begin` on."""
        rows, n, d = hidden.shape
        first = self.start - begin
        lowest, highest = int(first.min()), int(first.max())
        if lowest == highest == 0 and n == self.width:
            self.states = hidden
            return
        if self.states is None:
            self.states = hidden.new_zeros(rows, self.width, d)
        low, high = max(0, -highest), min(self.width, n - lowest)
        if low >= high:
            return
        index = first[:, None] + torch.arange(low, high, device=hidden.device)
        inside = ((index >= 0) & (index < n)).unsqueeze(-1)
        found = take_positions(hidden, index.clamp(0, n - 1))
        self.states[:, low:high] = torch.where(inside, found, self.states[:, low:high])


def gather_windows(pieces: Iterable[tuple[int, Tensor]], *windows: Window) -> list[Tensor]:
    """Run through the pieces of a pass; each window's states, (b, width, d)."""
    for begin, hidden in pieces:
        for window in windows:
            window.add(begin, hidden)
    return [window.states for window in windows if window.states is not None]
