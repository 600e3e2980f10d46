"""StepBatches: the batch of every step, a pure function of the seed and the step's number."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from remamba.errors import InputError
from remamba.model.rows import IGNORE
from remamba.train.data import DOCUMENT, TEXT, TokenData

SORTED_TOGETHER = 50
"""Batches whose items are sorted by length among one another."""


class BatchFacts(NamedTuple):
    """Where a pass stands in its step."""

    rows: NDArray
    """(b,) number in the step's whole batch of each row, or of each document that stands apart."""
    lengths: NDArray
    """(b,) tokens of these rows' documents or prompts."""
    answer_weight: float
    """The weight of this pass's mean over its answer tokens, so that the plain mean of all passes
    is the mean over all answer tokens of the step: the share of the step's answer tokens that is
    in this pass, times the number of passes. It is 1 where all passes have equally many."""
    document_weight: float
    """The same for the tokens of documents."""


class StepBatches(Dataset):
    """Entry i is what this process reads in its i-th forward pass.

    Since nothing depends on what was read before, a run can continue at any step, in any number of
    worker processes, and sees the same batches.

    Args:
        data: the tokenized files.
        steps: optimizer steps of the whole run.
        batch_size: items of a step, over all parts.
        questions: of a document in a step.
        seed: of the order and of the sampled questions.
        accumulate: forward passes of a step, one after another.
        process, processes: this one of how many; each reads its part of every batch.
        shared: documents and questions apart, so that the questions share their document's stage 1;
            otherwise every question follows a copy of its document.
        score_target: "answer" | "evidence" adds `score_targets`; None does not.
    """

    def __init__(
        self,
        data: TokenData,
        *,
        steps: int,
        batch_size: int,
        questions: int,
        seed: int,
        accumulate: int = 1,
        process: int = 0,
        processes: int = 1,
        shared: bool = True,
        score_target: str | None = None,
        group_by_length: bool = True,
    ):
        parts = accumulate * processes
        if batch_size % parts:
            raise InputError(
                f"--batch-size = {batch_size} does not divide into {parts} equal parts "
                f"({processes} processes, {accumulate} accumulated passes); choose a multiple"
            )
        self.data, self.steps, self.batch_size = data, steps, batch_size
        self.questions, self.seed = questions, seed
        self.accumulate, self.process, self.processes = accumulate, process, processes
        self.shared, self.score_target = shared, score_target
        self.group_by_length = group_by_length
        self.lengths = data.lengths()
        self.of_kind = [np.flatnonzero(data.kinds == kind) for kind in np.unique(data.kinds)]
        self.batches_per_epoch = sum(-(-len(items) // batch_size) for items in self.of_kind)
        self._epoch: tuple[int, NDArray] | None = None

    def __len__(self) -> int:
        return self.steps * self.accumulate

    def __getitem__(self, i: int) -> dict[str, Any]:
        step, pass_ = divmod(i, self.accumulate)
        size = self.batch_size // (self.accumulate * self.processes)
        low = (pass_ * self.processes + self.process) * size
        return self.collate(step, low, low + size)

    def items(self, step: int) -> NDArray:
        """(batch_size,) the items of a step, all of one kind."""
        epoch, number = divmod(step, self.batches_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self._order(epoch)
        return self._epoch[1][number]

    def where(self, step: int) -> list[str]:
        """Files and lines of a step's items."""
        return [self.data.where(item) for item in self.items(step).tolist()]

    def _order(self, epoch: int) -> NDArray:
        """(batches, batch_size) every item once an epoch; the last batch is filled up."""
        generator = np.random.default_rng([self.seed, 0, epoch])
        batches = []
        for items in self.of_kind:
            order = np.resize(
                generator.permutation(items), -(-len(items) // self.batch_size) * self.batch_size
            )
            if self.group_by_length:
                together = SORTED_TOGETHER * self.batch_size
                for low in range(0, len(order), together):
                    block = order[low : low + together]
                    order[low : low + together] = block[
                        np.argsort(self.lengths[block], kind="stable")
                    ]
            batches.append(order.reshape(-1, self.batch_size))
        joined = np.concatenate(batches)
        return joined[generator.permutation(len(joined))]

    def sample_questions(self, step: int) -> NDArray:
        """(batch_size, n) questions of a step's items; with few, some come twice."""
        items = self.items(step)
        first = self.data.first_question[items]
        counts = self.data.first_question[items + 1] - first
        n = min(self.questions, int(counts.max()))
        generator = np.random.default_rng([self.seed, 1, step])
        return np.stack(
            [
                low + np.resize(generator.permutation(count), n)
                for low, count in zip(first, counts, strict=True)
            ]
        )

    def collate(self, step: int, low: int, high: int) -> dict[str, Any]:
        """The items low to high of a step's batch as tensors, padded on the right.

        Returns:
            kind, num_tokens: of the items; how many real tokens they have.
            about: BatchFacts, which are no input of the model.
            input_ids, attention_mask, labels: (rows, l), rows of one document together.
            prompt_lengths: (rows,); question_lengths: (rows,) where a document stands before it.
            document_ids, document_attention_mask: (items, document l), when shared.
            score_targets: (rows, l) bool, or (rows, document l) when shared; (..., n) where an
                answer has up to n spans of evidence.
        """
        items = self.items(step)[low:high]
        kind = int(self.data.kinds[items[0]])
        if kind == TEXT:
            return {**self._texts(items), "about": self._about(step, low, high, 0)}
        asked = self.sample_questions(step)[low:high]
        numbers = asked.reshape(-1).tolist()
        data = self.data
        is_document = kind == DOCUMENT
        contexts = [data.contexts.row(item) for item in items.tolist()] if is_document else []
        questions = [data.questions.row(q) for q in numbers]
        responses = [data.responses.row(q) for q in numbers]
        prompts = questions
        if is_document and not self.shared:
            copies = [contexts[i // asked.shape[1]] for i in range(len(numbers))]
            prompts = [np.concatenate(pair) for pair in zip(copies, questions, strict=True)]
        whole = [np.concatenate(pair) for pair in zip(prompts, responses, strict=True)]
        ids, lengths = _pad(whole)
        prompt_lengths = np.array([len(prompt) for prompt in prompts])
        position = np.arange(ids.shape[1])
        answer = (position >= prompt_lengths[:, None]) & (position < lengths[:, None])
        batch: dict[str, Any] = {
            "kind": kind,
            "num_tokens": int(lengths.sum()),
            "about": self._about(step, low, high, asked.shape[1]),
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy((position < lengths[:, None]).astype(np.int64)),
            "labels": torch.from_numpy(np.where(answer, ids, IGNORE)),
            "prompt_lengths": torch.from_numpy(prompt_lengths),
        }
        width = ids.shape[1]
        if is_document and self.shared:
            document_ids, document_lengths = _pad(contexts)
            width = document_ids.shape[1]
            mask = np.arange(width) < document_lengths[:, None]
            batch["document_ids"] = torch.from_numpy(document_ids)
            batch["document_attention_mask"] = torch.from_numpy(mask.astype(np.int64))
            batch["num_tokens"] += int(document_lengths.sum())
        elif is_document:
            batch["question_lengths"] = torch.tensor([len(question) for question in questions])
        if self.score_target is not None:
            searched = contexts if is_document else prompts
            batch["score_targets"] = torch.from_numpy(self._targets(asked, searched, width))
        return batch

    def _about(self, step: int, low: int, high: int, questions: int) -> BatchFacts:
        """What a pass must know of its step; `questions` a document, 0 for texts."""
        items = self.items(step)
        kind = int(self.data.kinds[items[0]])
        contexts = self.data.contexts.lengths[items]
        if kind == TEXT:
            learnt, lengths = contexts - 1, contexts
        else:
            asked = self.sample_questions(step)
            learnt = self.data.responses.lengths[asked].sum(axis=1)
            lengths = contexts if kind == DOCUMENT else self.data.questions.lengths[asked[:, 0]]
        rows = np.arange(low, high)
        if kind == DOCUMENT and not self.shared:
            rows = rows.repeat(questions)
        parts = len(items) / (high - low)
        return BatchFacts(
            rows=rows,
            lengths=lengths[rows],
            answer_weight=_share_of(learnt, low, high) * parts,
            document_weight=_share_of(np.maximum(contexts - 1, 0), low, high) * parts,
        )

    def _targets(self, asked: NDArray, contexts: list[NDArray], width: int) -> NDArray:
        """(rows, width) bool: where each row's score should be high.

        (rows, width, n) where a row has several things to find, up to n: each is a row's own.
        """
        finder, evidence = self.data.finder, self.data.evidence
        assert finder is not None
        counts = np.ones_like(asked)
        if self.score_target == "evidence":
            counts = evidence.offsets[asked + 1] - evidence.offsets[asked]
        targets = np.zeros((asked.size, width, max(int(counts.max()), 1)), dtype=bool)
        for i, context in enumerate(contexts):
            row = np.repeat(np.arange(asked.shape[1]), counts[i])
            place = np.concatenate([np.arange(count) for count in counts[i]])
            answers = self.data.answers[asked[i][row]]
            if self.score_target == "answer":
                found = finder.mask(context, answers)
            else:
                spans = np.concatenate([evidence.row(question) for question in asked[i]])
                found = finder.mask_within(context, answers, spans)
            targets[i * asked.shape[1] + row, : len(context), place] = found
        return targets[..., 0] if targets.shape[2] == 1 else targets

    def _texts(self, items: NDArray) -> dict[str, Any]:
        """Pieces of text: every token but the first is to be predicted."""
        ids, lengths = _pad([self.data.contexts.row(item) for item in items.tolist()])
        position = np.arange(ids.shape[1])
        mask = position < lengths[:, None]
        return {
            "kind": TEXT,
            "num_tokens": int(lengths.sum()),
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
            "labels": torch.from_numpy(np.where(mask & (position > 0), ids, IGNORE)),
            "prompt_lengths": torch.ones(len(items), dtype=torch.int64),
        }


def make_loader(batches: StepBatches, workers: int, pin_memory: bool) -> DataLoader:
    """A loader over the steps in their order; its own generator leaves torch's alone."""
    sampler = BatchSampler(SequentialSampler(batches), batch_size=1, drop_last=False)
    return DataLoader(
        batches,
        batch_sampler=sampler,
        collate_fn=_only,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread if workers else None,
        generator=torch.Generator().manual_seed(batches.seed),
    )


def _only(items: list[dict[str, Any]]) -> dict[str, Any]:
    return items[0]


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def _share_of(counts: NDArray, low: int, high: int) -> float:
    """The share of counts that lies in low to high; that of the rows where nothing is counted."""
    total = int(counts.sum())
    return int(counts[low:high].sum()) / total if total else (high - low) / len(counts)


def _pad(arrays: list[NDArray]) -> tuple[NDArray, NDArray]:
    """Arrays of ids as one (n, longest) int64 array, zeros on the right, and their lengths."""
    lengths = np.array([len(array) for array in arrays])
    padded = np.zeros((len(arrays), int(lengths.max())), dtype=np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate(arrays)
    return padded, lengths
