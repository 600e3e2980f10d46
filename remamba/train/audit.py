"""A look at what the model will be given, before it is trained on it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from remamba.batch import IGNORE
from remamba.train.batches import StepBatches
from remamba.train.progress import say


def share_with_target(batches: StepBatches) -> float | None:
    """Of the questions of the first four steps, the share whose answer (or evidence) is found."""
    found = [
        batches[i]["score_targets"].any(dim=1)
        for i in range(min(4 * batches.accumulate, len(batches)))
        if batches.score_target is not None and "score_targets" in batches[i]
    ]
    return float(torch.cat(found).float().mean()) if found else None


def show_examples(batches: StepBatches, tokenizer: PreTrainedTokenizerBase, count: int) -> None:
    """Prints the first examples as the model reads them, and what the score should find."""
    shown = 0
    for i in range(len(batches)):
        batch = batches[i]
        rows = len(batch["input_ids"])
        for row in range(rows):
            if shown == count:
                return
            shown += 1
            ids, labels = batch["input_ids"][row], batch["labels"][row]
            prompt = ids[: batch["prompt_lengths"][row]].tolist()
            answer = labels[labels != IGNORE].tolist()
            searched = ids
            say(f"--- example {shown}: step {i // batches.accumulate + 1}, row {row + 1}")
            if "document_ids" in batch:
                document = row // (rows // len(batch["document_ids"]))
                searched = batch["document_ids"][document]
                say(f"document: {_ends(tokenizer.decode(searched))}")
            say(f"prompt: {_ends(tokenizer.decode(prompt))}")
            say(f"labels: {_ends(tokenizer.decode(answer))}")
            if "score_targets" in batch:
                places = batch["score_targets"][row].nonzero()[:, 0].tolist()
                near = [
                    f"{at}: {tokenizer.decode(searched[max(at - 5, 0) : at + 1])!r}"
                    for at in places[:4]
                ]
                say(f"score targets: {', '.join(near) or 'none'}")


def _ends(text: Any, most: int = 400) -> str:
    return repr(text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}")
