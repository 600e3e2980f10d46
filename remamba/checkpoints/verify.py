"""Whether a model computes what it should: equalities that hold for any, and published answers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from remamba.bare_model import BaseReMamba
from remamba.checkpoints.layouts import TRANSFORMERS_CONFIGS, fetch
from remamba.checkpoints.published import is_published
from remamba.errors import InputError
from remamba.execution.decode import DecodeStep
from remamba.execution.passes import PassOptions
from remamba.execution.steps import finish
from remamba.methods.base import Method
from remamba.methods.plain import Plain
from remamba.methods.reference import two_stages
from remamba.methods.remamba import ReMamba
from remamba.model.layers import vocabulary_logits
from remamba.model.rows import pad_rows
from remamba.model.states import StateCache
from remamba.pretrained import locate
from remamba.text import encode, text_of

KNOWN = Path(__file__).with_name("known_answers.json")
"""Answers that published checkpoints are known to give, with their source."""
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}
"""How far two ways to the same logits may lie apart, as a part of the largest."""
PUBLISHED_BOUND = 1e-3
"""Of the published logits, absolute and as a part of each, as their own test has it."""
PIECE = 37
DECODED = 8
"""Tokens that are read one by one in place of all at once."""


class Check(NamedTuple):
    """One check and what came of it."""

    name: str
    passed: bool | None
    """None: it was not made."""
    difference: float | None
    """The largest, as a part of the largest logit; None where there is none."""
    bound: float | None
    words: str
    """What was compared; why it was not."""


@dataclass(frozen=True)
class Verification:
    """A model to be verified.

    Args:
        name: as it was named: a directory or a hub name.
        tokens: length of the random texts that are read.
        answers_of: the published checkpoint whose recorded answers are asked for; None: the one
            of the model's own name, if it is among them.
        against: a directory in transformers' layout that is to compute the same; None: the model's
            own, if it is in that layout.
    """

    model: BaseReMamba
    tokenizer: Any
    name: str
    tokens: int = 128
    answers_of: str | None = None
    against: str | None = None

    def checks(self) -> Iterator[Check]:
        """Each check as soon as it has been made.

        Raises:
            InputError: `answers_of` or `against` names nothing that can be used.
        """
        yield self._weights()
        for name, words, check in (
            ("batch", "rows of three lengths together = each alone", self._batch),
            ("pieces", f"read in pieces of {PIECE} tokens = read whole", self._pieces),
            ("decoding", f"{DECODED} tokens one by one = read whole", self._decoding),
            ("memory", "a memory saved and loaded = one kept, to the bit", self._memory),
            ("equations", "the method = the paper's equations, for one row", self._equations),
            ("transformers", "transformers' own class on the same weights", self._transformers),
        ):
            yield self._compared(name, words, check)
        yield from self._known_answers()

    def _compared(
        self, name: str, words: str, check: Callable[[], tuple[Tensor, Tensor] | str]
    ) -> Check:
        with torch.no_grad():
            found = check()
        if isinstance(found, str):
            return Check(name, None, None, None, found)
        ours, others = (x.float().cpu() for x in found)
        if ours.shape != others.shape:
            told = f"{tuple(ours.shape)} logits and {tuple(others.shape)}"
            return Check(name, False, None, None, f"{words}: {told}")
        difference = float((ours - others).abs().max() / others.abs().max().clamp(min=1e-30))
        bound = 0.0 if name == "memory" else BOUNDS[self.model.dtype]
        # a difference that is no number is no equality
        return Check(name, difference <= bound, difference, bound, words)

    # what is read, and how

    def _ids(self, length: int, seed: int = 0) -> Tensor:
        """(length,) random tokens."""
        drawn = torch.Generator().manual_seed(seed)
        return torch.randint(self.model.config.vocab_size, (length,), generator=drawn)

    def _logits(
        self,
        rows: list[Tensor],
        method: Method | None = None,
        *,
        cache: StateCache | None = None,
        **options: Any,
    ) -> Tensor:
        """(rows, vocab) behind each row."""
        ids, mask = pad_rows([row.tolist() for row in rows])
        batch = self.model.enter(ids, mask)
        asked = PassOptions(tail=1, **options)
        passage = finish(self.model.passing(batch, method or Plain(), None, cache, asked))
        return vocabulary_logits(self.model.lm_head, passage.hidden[:, -1])

    # the checks

    def _weights(self) -> Check:
        bad = [n for n, x in self.model.named_parameters() if not bool(torch.isfinite(x).all())]
        words = "no NaN and no infinity among the weights"
        if bad:
            words += f": {bad[0]} has some" + (f", and {len(bad) - 1} more" if bad[1:] else "")
        return Check("weights", not bad, None, None, words)

    def _batch(self) -> tuple[Tensor, Tensor]:
        lengths = (self.tokens, self.tokens // 2, self.tokens // 3)
        rows = [self._ids(length, seed) for seed, length in enumerate(lengths)]
        return self._logits(rows), torch.cat([self._logits([row]) for row in rows])

    def _pieces(self) -> tuple[Tensor, Tensor]:
        rows = [self._ids(self.tokens)]
        return self._logits(rows, piece_length=PIECE), self._logits(rows)

    def _decoding(self) -> tuple[Tensor, Tensor]:
        ids, cache = self._ids(self.tokens), self.model.new_cache()
        logits = self._logits([ids[:-DECODED]], cache=cache)
        step = DecodeStep(self.model, 1)
        step.refresh()
        step.load(cache, 0)
        for token in ids[-DECODED:]:
            step.tokens[0] = token
            logits = step.run(1)[:1].clone()
        return logits, self._logits([ids])

    def _memory(self) -> tuple[Tensor, Tensor]:
        """By the model's own method; by plain Mamba where that reads anew for each question."""
        method = self.model.resolve_method()
        if not method.serves_memory:
            method = Plain()
        memory = self.model.read(self._ids(self.tokens)[None], method=method)
        question = self.model.enter(self._ids(PIECE, 1)[None])
        with tempfile.TemporaryDirectory() as folder:
            memory.save(Path(folder) / "memory")
            loaded = self.model.load_memory(Path(folder) / "memory")
        kept, found = (
            finish(self.model.passing(question, None, one, None, PassOptions(tail=1))).hidden
            for one in (memory, loaded)
        )
        head = self.model.lm_head
        return vocabulary_logits(head, found[:, -1]), vocabulary_logits(head, kept[:, -1])

    def _equations(self) -> tuple[Tensor, Tensor] | str:
        method = self.model.resolve_method()
        if not isinstance(method, ReMamba):
            return f"the model reads by {method.name}, and the paper's equations are remamba's"
        ids = self._ids(self.tokens)
        place = ids.to(self.model.device)
        expected = two_stages(self.model, place, method.compression).logits[-1:]
        return self._logits([ids], method), expected

    def _transformers(self) -> tuple[Tensor, Tensor] | str:
        from transformers import AutoModelForCausalLM

        given = self.against
        if given is None and not is_published(self.name):
            return (
                "a ReMamba has no other implementation; --against DIR compares it with what it "
                "was converted from"
            )
        folder = fetch(locate(given or self.name))
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if values.get("model_type") not in TRANSFORMERS_CONFIGS:
            if given is not None:
                raise InputError(
                    f"--against {given}: its config.json names no model of transformers' layout"
                )
            return "state-spaces' layout, which transformers' classes do not read"
        theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=self.model.dtype)
        theirs = theirs.to(self.model.device).eval()
        ids = self._ids(self.tokens)
        if theirs.config.vocab_size != self.model.config.vocab_size:
            raise InputError(
                f"--against {given}: it knows {theirs.config.vocab_size:,} tokens, and {self.name} "
                f"{self.model.config.vocab_size:,}: it is another model"
            )
        expected = theirs(ids[None].to(self.model.device), use_cache=False).logits[:, -1]
        return self._logits([ids]), expected

    # published answers

    def _known_answers(self) -> Iterator[Check]:
        answers = known_answers()
        name = self.answers_of or next(
            (key for key in answers if self.name.rstrip("/").endswith(key.split("/")[-1])), None
        )
        if name is None:
            words = "no answers of this model are recorded; --answers-of NAME compares with another"
            yield Check("published", None, None, None, f"{words} ({', '.join(answers)})")
            return
        if name not in answers:
            raise InputError(
                f"--answers-of {name}: no such answers are recorded; there are {', '.join(answers)}"
            )
        for answer in answers[name]:
            yield from self._answer(name, answer)

    def _answer(self, name: str, answer: dict[str, Any]) -> Iterator[Check]:
        own = str(self.model.dtype).removeprefix("torch.")
        label = f"{name}, {answer['prompt']!r}"
        if own != answer["dtype"]:
            words = f"{label}: recorded in {answer['dtype']}; give --dtype {answer['dtype']}"
            yield Check("published", None, None, None, words)
            return
        ids = torch.tensor(encode(self.tokenizer, answer["prompt"]).ids)
        with torch.no_grad():
            if wanted := answer.get("first_logits"):
                found = self._logits([ids[:1]])[0, : len(wanted)].float().cpu()
                expected = torch.tensor(wanted)
                apart = (found - expected).abs() / (1 + expected.abs())
                difference = float(apart.max())
                passed = difference <= PUBLISHED_BOUND
                words = f"{label}: {len(wanted)} logits of its first position"
                yield Check("published", passed, difference, PUBLISHED_BOUND, words)
            text = self._continued(ids, answer["new_tokens"])
        wanted, same = answer["text"], _common(text, answer["text"])
        told = f"{label}: {same} of {len(wanted)} characters as recorded"
        passed = same == len(wanted)
        if own != "float32":
            told += " (16-bit arithmetic may part from it behind the first words)"
            passed = same > len(answer["prompt"])
        yield Check("published", passed, None, None, told)

    def _continued(self, ids: Tensor, count: int) -> str:
        """The prompt and its greedy continuation."""
        cache = self.model.new_cache()
        logits = self._logits([ids], cache=cache)
        step = DecodeStep(self.model, 1)
        step.refresh()
        step.load(cache, 0)
        written = ids.tolist()
        for _ in range(count):
            written.append(int(logits[0].argmax()))
            step.tokens[0] = written[-1]
            logits = step.run(1)[:1]
        return text_of(self.tokenizer, written)


def known_answers() -> dict[str, list[dict[str, Any]]]:
    """Checkpoint -> what it is known to answer: prompt, dtype, text, and perhaps logits."""
    read: dict[str, Any] = json.loads(KNOWN.read_text(encoding="utf-8"))
    found: dict[str, list[dict[str, Any]]] = read["checkpoints"]
    return found


def _common(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
                min(len(one), len(other)))  # fmt: skip
