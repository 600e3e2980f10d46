"""Models that answer: ReMamba through the engine, any other causal model through transformers.

Both decode greedily and give the same text for the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from remamba.engine.engine import Engine, Request, SamplingOptions
from remamba.engine.request import Completion, Job
from remamba.errors import InputError
from remamba.evals.prompting import Text
from remamba.methods.base import Method
from remamba.methods.plain import Plain
from remamba.methods.selection import Kept
from remamba.modeling_remamba import ReMambaForCausalLM
from remamba.pretrained import fingerprint
from remamba.provenance import device_name
from remamba.text import encode

LOOK_AHEAD = 64
"""How many asks wait in the engine beyond those in its slots, so that alike ones meet."""


class Ask(NamedTuple):
    """A text to be continued."""

    key: Any
    text: Text
    max_new_tokens: int
    ends_line: bool = False
    """End at a line break; the first token is neither that nor the end (samsum)."""
    has_document: bool = True
    """False: a question alone, which a model that compresses documents reads as plain Mamba."""


class Answer(NamedTuple):
    """A continuation, or why there is none."""

    key: Any
    text: str
    prompt_tokens: int = 0
    new_tokens: int = 0
    kept: list[tuple[int, float]] | None = None
    """Position and score of each kept token; None for models that keep none."""
    error: str | None = None


class Reader(Protocol):
    """Answers asks, in whatever order they are done."""

    model: Any
    tokenizer: Any

    def answer(self, asks: Sequence[Ask]) -> Iterator[Answer]: ...

    def describe(self) -> dict[str, Any]:
        """What the model is and how it compresses, for run.json."""
        ...


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a whole prompt, with what the tokenizer itself adds around a text."""
    return list(tokenizer(text, verbose=False)["input_ids"])


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of an answer, as the benchmarks' own scripts decode it."""
    return tokenizer.decode(ids, skip_special_tokens=True)


def describe_model(model: Any, method: Method) -> dict[str, Any]:
    """What a model is, where it runs and how it reads, for run.json."""
    return {
        "kind": type(model).__name__,
        "fingerprint": fingerprint(model),
        "device": device_name(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "method": method.to_dict(),
    }


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


class _LineEnd:
    """Options of `generate` that end at a line break, but not with the first token."""

    def __init__(self, tokenizer: Any):
        line_break = tokenizer.encode("\n", add_special_tokens=False)[-1]
        ends = (tokenizer.eos_token_id, line_break)
        self.tokens = [token for token in ends if token is not None]

    def options(self, prompt_tokens: int) -> dict[str, Any]:
        return {"eos_token_id": self.tokens, "min_length": prompt_tokens + 1}


class TransformersReader:
    """Any AutoModelForCausalLM: one prompt at a time, greedily."""

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer = model.eval(), tokenizer

    def describe(self) -> dict[str, Any]:
        return describe_model(self.model, Plain())

    def answer(self, asks: Sequence[Ask]) -> Iterator[Answer]:
        for ask in asks:
            try:
                yield self._answer(ask)
            except (RuntimeError, ValueError, IndexError) as error:
                yield Answer(ask.key, "", error=_one_line(error))

    @torch.inference_mode()
    def _answer(self, ask: Ask) -> Answer:
        prompt = token_ids(self.tokenizer, ask.text.text)
        most = getattr(self.model.config, "max_position_embeddings", None)
        if most is not None and len(prompt) + ask.max_new_tokens > most:
            raise InputError(
                f"a prompt of {len(prompt)} tokens and {ask.max_new_tokens} new ones are more "
                f"than the model's {most} positions; lower --max-length"
            )
        new, _ = generate(self.model, prompt, ask, self.tokenizer)
        return Answer(ask.key, text_of(self.tokenizer, new), len(prompt), len(new))


def generate(
    model: Any, prompt: Sequence[int], ask: Ask, tokenizer: Any, **options: Any
) -> tuple[list[int], Kept | None]:
    """The new tokens of one greedy `generate`, and what a ReMamba kept."""
    ids = torch.tensor([list(prompt)], device=model.device)
    if ask.ends_line:
        options |= _LineEnd(tokenizer).options(len(prompt))
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=ask.max_new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=tokenizer.pad_token_id or 0,
        return_dict_in_generate=True,
        **options,
    )
    return out.sequences[0, len(prompt) :].tolist(), getattr(out, "kept", None)


class ReMambaReader:
    """A ReMamba with continuous batching.

    Args:
        method: how prompts are read. One that wants to know the question reads a prompt in two
            parts, what ends with the document and the question; others read it as one.
        slots: how many prompts are answered at once.
        piece_length: tokens that a prefill reads at once.
        seed: of the random selector.
    """

    def __init__(
        self,
        model: ReMambaForCausalLM,
        tokenizer: Any,
        method: Method,
        *,
        slots: int = 8,
        piece_length: int | None = None,
        seed: int = 0,
    ):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.method, self.seed = method, seed
        self.slots, self.piece_length = slots, piece_length

    def describe(self) -> dict[str, Any]:
        return describe_model(self.model, self.method)

    def answer(self, asks: Sequence[Ask]) -> Iterator[Answer]:
        batched = [ask for ask in asks if not ask.ends_line]
        yield from self._run(batched, self.slots)
        for ask in asks:
            if ask.ends_line:
                try:
                    yield self._answer_line(ask)
                except (InputError, RuntimeError) as error:
                    yield Answer(ask.key, "", error=_one_line(error))

    def _run(self, asks: Sequence[Ask], slots: int) -> Iterator[Answer]:
        """The engine's answers; after an error of the machine each alone, to find whose it was."""
        engine = Engine(self.model, self.tokenizer, slots, piece_length=self.piece_length)
        waiting, open_asks = list(reversed(asks)), dict[Job, Ask]()
        while waiting or open_asks:
            while waiting and len(open_asks) < slots + LOOK_AHEAD:
                ask = waiting.pop()
                try:
                    open_asks[engine.submit(self._request(ask))] = ask
                except InputError as error:
                    yield Answer(ask.key, "", error=_one_line(error))
            try:
                moved = engine.step()
            except RuntimeError as error:  # out of memory among them
                engine.cancel(*open_asks)
                left = [*open_asks.values(), *reversed(waiting)]
                if len(left) == 1:
                    yield Answer(left[0].key, "", error=_one_line(error))
                    return
                for ask in left:
                    yield from self._run([ask], 1)
                return
            for job in moved:
                if job.is_finished:
                    yield self._finished(open_asks.pop(job), job)

    def _finished(self, ask: Ask, job: Job) -> Answer:
        if job.error is not None:
            return Answer(ask.key, "", error=_one_line(job.error))
        done: Completion = job.completion
        new = done.token_ids
        text = text_of(self.tokenizer, new)
        return Answer(ask.key, text, done.prompt_tokens, len(new), done.kept)

    def _request(self, ask: Ask) -> Request:
        document, prompt, method = self._parts(ask)
        return Request(
            prompt=None if document else prompt,
            document=document,
            question=prompt if document else None,
            options=SamplingOptions(max_new_tokens=ask.max_new_tokens, seed=self.seed),
            method=method,
        )

    def _parts(self, ask: Ask) -> tuple[list[int] | None, list[int], Method]:
        """The document's tokens, the question's (or the whole prompt's), and the method."""
        method, (text, split) = self.method, ask.text
        if not method.wants_question:
            return None, token_ids(self.tokenizer, text), method
        if not ask.has_document:
            return None, token_ids(self.tokenizer, text), Plain()
        if split is None:
            raise InputError("the cut lost the place where the question begins")
        document = encode(self.tokenizer, text[:split]).ids
        return document, encode(self.tokenizer, text[split:], begins=False).ids, method

    @torch.inference_mode()
    def _answer_line(self, ask: Ask) -> Answer:
        """By `generate`: the engine's stop strings know no least length."""
        document, prompt, method = self._parts(ask)
        options: dict[str, Any] = {"method": method}
        if document:
            options["question_lengths"] = torch.tensor([len(prompt)], device=self.model.device)
            prompt = document + prompt
        torch.manual_seed(self.seed)
        new, kept = generate(
            self.model, prompt, ask, self.tokenizer, piece_length=self.piece_length, **options
        )
        rows = None if kept is None else kept.rows()[0]
        return Answer(ask.key, text_of(self.tokenizer, new), len(prompt), len(new), rows)
