"""Our models in lm-evaluation-harness: the short tasks of Figure 1, or any other of its tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager

from remamba.errors import InputError
from remamba.evals.likelihood import Pair, log_likelihoods
from remamba.evals.readers import AnsweringModel, Ask, SamplingOptions
from remamba.methods.base import Method
from remamba.methods.plain import Plain
from remamba.text import encode, text_of

SHORT_TASKS = ("hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande", "openbookqa")
"""The six tasks of Figure 1."""


class HarnessModel(TemplateLM):
    """A model as the harness asks it: log-likelihoods, and greedy texts.

    A method that wants to know where the question begins gives way to plain Mamba, since these
    prompts have one part.
    """

    def __init__(self, reader: AnsweringModel, method: Method):
        super().__init__()
        self.reader, self.tokenizer = reader, reader.tokenizer
        self.method = Plain() if method.wants_question else method

    @property
    def eot_token_id(self) -> int:
        for token in (self.tokenizer.eos_token_id, self.tokenizer.bos_token_id):
            if token is not None:
                return token
        raise InputError("the tokenizer has no end-of-text token to stand before an empty prompt")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        return encode(self.tokenizer, string, begins=add_special_tokens is not False).ids

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [Pair(context, continuation) for _, context, continuation in requests]
        return log_likelihoods(self.reader.model, pairs, self.method)

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Of whole texts, however long: a state has no window, so nothing is cut into pieces."""
        texts = [self.tok_encode(request.args[0], False) for request in requests]
        pairs = [Pair([self.eot_token_id], ids) for ids in texts]
        return [score for score, _ in log_likelihoods(self.reader.model, pairs)]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        asks, stops = [], []
        for request in requests:
            prompt, options = request.args
            until = options.get("until") or []
            stops.append([stop for stop in ([until] if isinstance(until, str) else until) if stop])
            drawn = SamplingOptions(options.get("max_gen_toks", 256), stop=tuple(stops[-1]))
            asks.append(Ask(prompt=prompt, method=self.method, options=drawn))
        found = [""] * len(asks)
        for number, answer in self.reader.answer_each(asks, errors="return"):
            if answer.error is not None:
                raise InputError(f"a prompt could not be answered: {answer.error}")
            text = text_of(self.tokenizer, answer.token_ids)
            for stop in stops[number]:
                text = text.split(stop)[0]
            found[number] = text
        return found


def run_tasks(
    reader: AnsweringModel,
    method: Method,
    names: Sequence[str],
    *,
    limit: int | None = None,
    shots: int | None = None,
    include: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The harness's results: `results` by task, and `samples`.

    Args:
        shots: solved examples before each question; None: as each task says.
        include: a folder with task definitions of one's own.

    Raises:
        InputError: a task is unknown, or its data cannot be had.
    """
    manager = TaskManager(include_path=None if include is None else str(include))
    if unknown := sorted(set(names) - set(manager.all_tasks)):
        raise InputError(f"--tasks {unknown[0]} is not known to lm-evaluation-harness")
    try:
        found = evaluator.simple_evaluate(
            HarnessModel(reader, method),
            tasks=list(names),
            num_fewshot=shots,
            limit=limit,
            task_manager=manager,
            bootstrap_iters=0,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    except (OSError, ConnectionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"the data of {', '.join(names)} cannot be had ({reason})") from error
    assert found is not None, "one process evaluates"
    return found
