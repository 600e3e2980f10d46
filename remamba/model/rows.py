"""Padding in and out: inputs become one right-padded `Batch`, results return padded as given.

Lengths are tensors on the host (the CPU), so that no pass waits for the device to learn a width;
`to_device` copies them to the device where positions are computed from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from remamba.errors import InputError

IGNORE = -100
"""Label of a position without a loss."""


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on the device; a copy from the host does not wait for the device's other work."""
    if x.device.type != "cpu" or torch.device(device).type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def to_host(*given: Tensor) -> list[Tensor]:
    """Integer tensors copied to the host as int64, with one wait for the device at most."""
    away = [x.reshape(-1).long() for x in given if x.device.type != "cpu"]
    joined = iter(torch.cat(away).cpu().split([len(x) for x in away]) if away else ())
    return [x.long() if x.device.type == "cpu" else next(joined).view(x.shape) for x in given]


def cut(x: Tensor, start: Tensor, width: int) -> Tensor:
    """x (b, l, ...) from start (b,) on -> (b, width, ...); past the end the last position.

    A view of x where all rows start at one place, else a copy.
    """
    first = int(start[0]) if len(start) else 0
    if 0 <= first <= x.shape[1] - width and bool((start == first).all()):
        return x[:, first : first + width]
    column = torch.arange(width, device=x.device)
    index = to_device(start, x.device)[:, None] + column
    return take_positions(x, index.clamp(0, x.shape[1] - 1))


def pad_rows(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of token ids as (b, longest) int64, zeros on the right, and their mask alike."""
    mask = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    ids = torch.zeros_like(mask)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask


@dataclass
class Batch:
    """Right-padded rows: the prompt, then (in training) the answer; token ids or embeddings."""

    input_ids: Tensor | None
    """(b, l) int64."""
    embeds: Tensor | None
    """(b, l, d)."""
    lengths: Tensor
    """(b,) real tokens of each row; on the host, as all lengths."""
    prompt_lengths: Tensor
    """(b,) how many of them are prompt."""
    question_lengths: Tensor
    """(b,) how many of the prompt's last tokens are the question; 0 where it is one part."""
    labels: Tensor | None = None
    """(b, l), IGNORE where there is no loss and at every pad."""
    offset: Tensor | None = None
    """(b,) pads that stood on the left of each row; None when none did."""
    given_width: int | None = None
    """Width of the rows as they were given, where it was more than the longest row; else None."""

    @property
    def given(self) -> Tensor:
        """The ids or the embeddings."""
        x = self.input_ids if self.input_ids is not None else self.embeds
        assert x is not None
        return x

    @property
    def rows(self) -> int:
        return self.lengths.shape[0]

    @property
    def width(self) -> int:
        return self.given.shape[1]

    @property
    def device(self) -> torch.device:
        return self.given.device

    @property
    def document_lengths(self) -> Tensor:
        return self.prompt_lengths - self.question_lengths

    def take(self, embeddings: nn.Module, index: Tensor | slice) -> Tensor:
        """(b, n, d) embeddings of the positions `index`, (b, n) or the same in each row."""
        x = self.given
        x = x[:, index] if isinstance(index, slice) else take_positions(x, index)
        return embeddings(x) if self.input_ids is not None else x

    def embeds_of(self, embeddings: nn.Module) -> Callable[[int, int], Tensor]:
        """(begin, end) -> (b, end - begin, d), the embeddings of the rows' positions there."""
        return lambda begin, end: self.take(embeddings, slice(begin, end))

    def select(self, index: Tensor) -> Batch:
        """The rows `index` (n,), on the host, in that order; they may repeat."""
        away = to_device(index, self.device)
        given = (self.input_ids, self.embeds, self.labels)
        ids, embeds, labels = (None if x is None else x.index_select(0, away) for x in given)
        lengths = self.lengths[index]
        return Batch(
            ids, embeds, lengths, self.prompt_lengths[index], self.question_lengths[index], labels
        )

    def twice(self) -> Batch:
        """The rows with each prompt given once more in front of itself; labels as they were."""
        prompts = self.prompt_lengths
        lengths = self.lengths + prompts
        column = torch.arange(int(lengths.max()))
        index = column - torch.where(column < prompts[:, None], 0, prompts[:, None])
        index = to_device(index.clamp(0, self.width - 1), self.device)
        x = self.given
        x = take_positions(x, index)
        ids, embeds = (x, None) if self.input_ids is not None else (None, x)
        return Batch(ids, embeds, lengths, 2 * prompts, self.question_lengths)

    def part(self, start: Tensor, stop: Tensor) -> Batch:
        """The positions from start (b,) to stop (b,) of each row, as rows of their own."""
        lengths = stop - start
        width = int(lengths.max())
        labels = self.labels
        if labels is not None:
            labels = ignore_pads(cut(labels, start, width), lengths)
        return Batch(
            None if self.input_ids is None else cut(self.input_ids, start, width),
            None if self.embeds is None else cut(self.embeds, start, width),
            lengths,
            torch.minimum(stop, self.prompt_lengths) - start,
            torch.zeros_like(lengths),
            labels,
            self.offset,
            self.given_width,
        )

    def without(self, start: Tensor, stop: Tensor) -> Batch:
        """The rows without their positions from start (b,) on and before stop (b,)."""
        removed, lengths = stop - start, self.lengths - (stop - start)
        column = torch.arange(int(lengths.max()))
        index = column + torch.where(column < start[:, None], 0, removed[:, None])
        index = to_device(index.clamp(max=self.width - 1), self.device)
        labels = self.labels
        if labels is not None:
            labels = ignore_pads(labels.gather(1, index), lengths)
        return Batch(
            None if self.input_ids is None else take_positions(self.input_ids, index),
            None if self.embeds is None else take_positions(self.embeds, index),
            lengths,
            self.prompt_lengths - removed,
            self.question_lengths,
            labels,
            self.offset,
            self.given_width,
        )

    def behind(self, tokens: Tensor, embeddings: nn.Module) -> Batch:
        """The rows with tokens (b, n), int64, in front of each; the labels do not count them."""
        n = tokens.shape[1]
        tokens = to_device(tokens, self.device)
        labels, lengths = self.labels, self.lengths + n
        if labels is not None:
            labels = torch.cat([labels.new_full((self.rows, n), IGNORE), labels], dim=1)
        ids = None if self.input_ids is None else torch.cat([tokens, self.input_ids], dim=1)
        embeds = self.embeds
        if embeds is not None:
            embeds = torch.cat([embeddings(tokens).to(embeds), embeds], dim=1)
        prompts = self.prompt_lengths + n
        return Batch(ids, embeds, lengths, prompts, self.question_lengths, labels)

    def split(self) -> tuple[Batch, Batch]:
        """Documents, and questions with their answers.

        Raises:
            InputError: a row has no document or no question.
        """
        document = self.document_lengths
        if bool(((self.question_lengths == 0) | (document == 0)).any()):
            raise InputError(
                "this way of reading needs a document and a question in every row: give "
                "question_lengths between 1 and the prompt's length - 1"
            )
        return self.part(torch.zeros_like(document), document), self.part(document, self.lengths)


def take_positions(x: Tensor, index: Tensor) -> Tensor:
    """x (b, l, ...) at index (b, n) -> (b, n, ...)."""
    return x.gather(1, index.view(*index.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:]))


def past_end(lengths: Tensor, width: int, device: torch.device) -> Tensor:
    """(b, width) bool on the device: True at or past each row's length."""
    return torch.arange(width, device=device) >= to_device(lengths, device)[:, None]


def ignore_pads(labels: Tensor, lengths: Tensor) -> Tensor:
    """labels (b, l) with IGNORE at or past each row's length."""
    if bool((lengths >= labels.shape[1]).all()):
        return labels
    return labels.masked_fill(past_end(lengths, labels.shape[1], labels.device), IGNORE)


def enter(
    input_ids: Tensor | None,
    attention_mask: Tensor | None = None,
    embeds: Tensor | None = None,
    labels: Tensor | None = None,
    prompt_lengths: Tensor | None = None,
    question_lengths: Tensor | None = None,
    *,
    vocab_size: int | None = None,
    device: torch.device | None = None,
) -> Batch:
    """The rows as a right-padded batch; left padding is moved to the right.

    This is the only place in a prefill that waits for a GPU: all that must be known of tensors
    there is read at once. It does not wait where the tensors come from the host.

    Args:
        vocab_size: token ids outside it are refused; None looks at none.
        device: where the batch is to lie; None leaves it where it is.

    Raises:
        InputError: neither or both of ids and embeddings, no rows, an empty row, a mask of another
            shape or with holes, lengths that do not fit their rows, a token outside the vocabulary.
    """
    if (input_ids is None) == (embeds is None):
        raise InputError("give either input_ids or inputs_embeds, and not both")
    check_rows(input_ids, embeds)
    given = input_ids if input_ids is not None else embeds
    assert given is not None
    rows, width = given.shape[:2]
    if width == 0:
        raise InputError("the prompt of row 0 is empty; it needs at least one token")
    for name, x in (("attention_mask", attention_mask), ("labels", labels)):
        if x is not None and x.shape != (rows, width):
            raise InputError(f"{name} is {tuple(x.shape)}, the input is ({rows}, {width})")
    mask = None if attention_mask is None else attention_mask.bool()
    nothing = torch.zeros(rows, dtype=torch.int64)
    lengths, offset, prompts, questions, first, holes, range_ = to_host(
        nothing + width if mask is None else mask.sum(dim=1),
        nothing if mask is None else mask.int().argmax(dim=1),
        nothing if prompt_lengths is None else _whole("prompt_lengths", prompt_lengths),
        nothing if question_lengths is None else _whole("question_lengths", question_lengths),
        nothing if labels is None or prompt_lengths is not None else _first_label(labels, mask),
        nothing if mask is None else _has_holes(mask),
        nothing if input_ids is None or vocab_size is None else _range(input_ids),
    )
    if bool(holes.any()):
        raise InputError(
            f"attention_mask of row {int(holes.argmax())} has holes; pad on the left or on the "
            "right only"
        )
    if bool((lengths == 0).any()):
        row = int((lengths == 0).nonzero()[0])
        raise InputError(f"the prompt of row {row} is empty; it needs at least one token")
    if vocab_size is not None and bool(((range_ < 0) | (range_ >= vocab_size)).any()):
        raise InputError(
            f"token id {int(range_.min() if range_.min() < 0 else range_.max())} is outside the "
            f"vocabulary of {vocab_size}; is the tokenizer another model's?"
        )
    if device is not None:
        input_ids, embeds, labels = (
            None if x is None else to_device(x, device) for x in (input_ids, embeds, labels)
        )
    batch = Batch(input_ids, embeds, lengths, lengths, nothing)
    if bool((offset > 0).any()):
        batch = batch.part(offset, offset + lengths)
        batch.offset = offset
    elif rows and int(lengths.max()) < width:  # no row is as long as its padding
        batch = batch.part(nothing, lengths)
    if batch.width < width:
        batch.given_width = width
    if labels is not None:
        batch.labels = ignore_pads(align(labels, batch), lengths)
    if prompt_lengths is not None:
        batch.prompt_lengths = _within("prompt_lengths", prompts, 1, lengths)
    elif labels is not None:
        first = first - offset  # up to the first label, or the whole row
        batch.prompt_lengths = torch.where((first > 0) & (first < lengths), first, lengths)
    else:
        batch.prompt_lengths = lengths
    if question_lengths is not None:
        batch.question_lengths = _within("question_lengths", questions, 0, batch.prompt_lengths)
    return batch


def check_rows(input_ids: object, embeds: object = None) -> None:
    """Raise InputError unless what is given, of the two, is a tensor that holds rows."""
    for name, x, axes in (
        ("input_ids", input_ids, "(rows, tokens)"),
        ("inputs_embeds", embeds, "(rows, tokens, hidden size)"),
    ):
        if x is None:
            continue
        if not isinstance(x, Tensor):
            raise InputError(
                f"{name} is a {type(x).__name__}; give a tensor of shape {axes}, "
                "torch.tensor([[...]])"
            )
        wanted = axes.count(",") + 1
        if x.dim() != wanted:
            mend = f"; one row is {name}[None]" if x.dim() == wanted - 1 else ""
            raise InputError(f"the shape {tuple(x.shape)} of {name} is not {axes}{mend}")
        if x.shape[0] == 0:
            raise InputError(f"{name} is {tuple(x.shape)}: it has no rows; give at least one")


def _has_holes(mask: Tensor) -> Tensor:
    """(b,) bool, True where padding stands between a row's real tokens."""
    steps = mask.int().diff(dim=1).abs().sum(dim=1)
    return steps + mask[:, 0] + mask[:, -1] > 2


def _first_label(labels: Tensor, mask: Tensor | None) -> Tensor:
    """(b,) where each row's first label stands; the row's width, or more, where it has none."""
    labelled = labels != IGNORE
    if mask is not None:
        labelled = labelled & mask.to(labels.device)
    first = labelled.int().argmax(dim=1)
    return torch.where(labelled.any(dim=1), first, 2 * labels.shape[1])


def _range(ids: Tensor) -> Tensor:
    """(2,) the lowest and the highest id; (0,) where there are no ids."""
    return torch.stack(ids.aminmax()) if ids.numel() else ids.new_zeros(0)


def _whole(name: str, given: Tensor) -> Tensor:
    given = torch.as_tensor(given)
    if given.is_floating_point():
        raise InputError(f"{name} = {given.tolist()} must be whole numbers")
    return given


def _within(name: str, given: Tensor, low: int, high: Tensor) -> Tensor:
    if given.shape != high.shape or bool(((given < low) | (given > high)).any()):
        raise InputError(
            f"{name} = {given.tolist()} must lie, row by row, between {low} and {high.tolist()}"
        )
    return given


def align(x: Tensor, batch: Batch) -> Tensor:
    """A per-position tensor (b * n, l, ...) given beside the rows, moved as `enter` moved them."""
    if batch.offset is None:
        return x[:, : batch.width]
    return cut(x, batch.offset.repeat_interleave(x.shape[0] // batch.rows), batch.width)


def flush_right(x: Tensor, lengths: Tensor) -> Tensor:
    """Right-padded rows (b, l, ...) with their pads moved to the left."""
    width = x.shape[1]
    if bool((lengths == width).all()):
        return x
    index = torch.arange(width, device=x.device) - to_device(width - lengths, x.device)[:, None]
    return take_positions(x, index % max(width, 1))


def leave(x: Tensor, lengths: Tensor, batch: Batch, pad: int = 0) -> Tensor:
    """Right-padded results as the caller padded: on the left if the rows were.

    Results of exactly the rows' positions (nothing was compressed) come back where those stood, as
    wide as the rows were given. A spliced sequence has no such places; it is as wide as its longest
    row.

    Args:
        x: (b, l, ...).
        lengths: (b,) real positions of x.
        batch: the rows as they were given.
        pad: what stands where x has nothing.
    """
    if batch.given_width is not None and torch.equal(lengths, batch.lengths):
        column = torch.arange(batch.given_width, device=x.device).expand(len(x), -1)
        if batch.offset is not None:
            column = column - to_device(batch.offset, x.device)[:, None]
        inside = (column >= 0) & (column < x.shape[1])
        found = take_positions(x, column.clamp(0, max(x.shape[1] - 1, 0)))
        return found.masked_fill(~inside.view(*inside.shape, *[1] * (x.dim() - 2)), pad)
    return x if batch.offset is None else flush_right(x, lengths)
