"""Models that answer the questions of a benchmark, greedily: a Reader, or a TransformersReader.

Both give the same text for the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

import torch

from remamba.engine.answer import Answer, Ask
from remamba.engine.sampling import SamplingOptions
from remamba.errors import InputError
from remamba.evals.prompting import Text
from remamba.methods.base import Method
from remamba.methods.plain import Plain
from remamba.pretrained import fingerprint
from remamba.provenance import device_name
from remamba.text import encode, end_tokens, text_of


class AnsweringModel(Protocol):
    """What answers: `remamba.Reader`, or a TransformersReader."""

    model: Any
    tokenizer: Any

    def answer_each(
        self, asks: Sequence[Ask], *, errors: Literal["raise", "return"] = "raise"
    ) -> Iterator[tuple[int, Answer]]:
        """Each ask's number and its answer, as soon as it is there."""
        ...


def make_ask(
    text: Text, method: Method, options: SamplingOptions, *, has_document: bool = True
) -> Ask:
    """What a model is asked: document and question apart where the method wants to know both.

    Args:
        has_document: False: a question alone, which a method that compresses documents gives to
            plain Mamba.

    Raises:
        InputError: the method needs the place where the question begins, and it is not known.
    """
    if not method.wants_question:
        return Ask(prompt=text.text, method=method, options=options)
    if not has_document:
        return Ask(prompt=text.text, method=Plain(), options=options)
    if text.split is None:
        raise InputError("the cut lost the place where the question begins")
    prefix, document = text.text[: text.start], text.text[text.start : text.split]
    question = text.text[text.split :]
    return Ask(
        document, question, method=method, options=options, prefix=prefix, template="{question}"
    )


def ends_of_line(tokenizer: Any) -> dict[str, Any]:
    """Sampling options that end at a line break; the first token is neither that nor the end."""
    line_break = encode(tokenizer, "\n", begins=False).ids[-1]
    return {"stop_token_ids": (line_break,), "min_new_tokens": 1}


def describe_model(model: Any, method: Method) -> dict[str, Any]:
    """What a model is, where it runs and how it reads, for run.json."""
    return {
        "kind": type(model).__name__,
        "fingerprint": fingerprint(model),
        "device": device_name(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "method": method.to_dict(),
    }


class TransformersReader:
    """Any AutoModelForCausalLM: one prompt at a time, greedily."""

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer = model.eval(), tokenizer

    def answer_each(
        self, asks: Sequence[Ask], *, errors: Literal["raise", "return"] = "raise"
    ) -> Iterator[tuple[int, Answer]]:
        """See `Reader.answer_each`; an ask is a prompt in one part."""
        for number, ask in enumerate(asks):
            try:
                yield number, self._answer(ask)
            except (RuntimeError, ValueError, IndexError) as error:
                if errors == "raise":
                    raise
                yield number, Answer.failed(error)

    @torch.inference_mode()
    def _answer(self, ask: Ask) -> Answer:
        assert ask.prompt is not None, "other models read prompts in one part"
        prompt, options = encode(self.tokenizer, ask.prompt).ids, ask.options
        most = getattr(self.model.config, "max_position_embeddings", None)
        if most is not None and len(prompt) + options.max_new_tokens > most:
            raise InputError(
                f"a prompt of {len(prompt)} tokens and {options.max_new_tokens} new ones are more "
                f"than the model's {most} positions; lower --max-length"
            )
        ids = torch.tensor([prompt], device=self.model.device)
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=options.max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=self.tokenizer.pad_token_id or 0,
            return_dict_in_generate=True,
            **self._ends(options),
        )
        new = out.sequences[0, len(prompt) :].tolist()
        text = text_of(self.tokenizer, new)
        cuts = [place for stop in options.stop if (place := text.find(stop)) >= 0]
        text = text[: min(cuts, default=len(text))]
        return Answer(text, None, {}, Plain.name, "length", len(prompt), new, None)

    def _ends(self, options: SamplingOptions) -> dict[str, Any]:
        """What `generate` is told of tokens that end a text: the engine's, and the options'."""
        ends = end_tokens(self.model, self.tokenizer) | {*options.stop_token_ids}
        if not ends:
            return {}
        return {"eos_token_id": sorted(ends), "min_new_tokens": options.min_new_tokens}
