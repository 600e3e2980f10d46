"""A look at what the model will be given, and at what it will learn from that, before training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from remamba.errors import InputError
from remamba.train.batches import StepBatches
from remamba.train.meter import any_span

PROBE = 0.02
"""Standard deviation of what stands in for an adapter's zeros while gradients are looked at."""


def gradient_norms(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    passes: list[int],
    reduce: Callable[[Tensor], Tensor],
) -> dict[str, float]:
    """The gradient norm of every trained tensor, of as few passes as it takes to move them all.

    The product of an adapter's two factors begins at zero, one factor being zero: that one gets
    small random values meanwhile, or else the other's gradient would be zero in the soundest
    model. Weights, gradients and random numbers are afterwards as they were.

    Args:
        loss_of: the loss of a pass.
        passes: which to try, one after another.
        reduce: sums a tensor over all processes.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found: dict[str, float] = {}
    with _probed(model):
        for number in passes:
            loss_of(number).backward()
            zero = torch.zeros((), device=next(iter(trained.values())).device)
            norms = [zero if p.grad is None else p.grad.float().norm() for p in trained.values()]
            found = dict(zip(trained, reduce(torch.stack(norms)).tolist(), strict=True))
            if all(found.values()):
                break
    return found


@contextmanager
def _probed(model: nn.Module) -> Iterator[None]:
    zeros = [
        parameter
        for name, parameter in model.named_parameters()
        if ".lora_" in name and parameter.requires_grad and not bool(parameter.any())
    ]
    devices = [p.device for p in model.parameters() if p.is_cuda][:1]
    with torch.random.fork_rng(devices=devices):
        for parameter in zeros:
            nn.init.normal_(parameter, std=PROBE)
        try:
            yield
        finally:
            for parameter in zeros:
                nn.init.zeros_(parameter)
            model.zero_grad(set_to_none=True)


def refuse_untrained(norms: dict[str, float], passes: int) -> None:
    """Raise InputError when a tensor that is to be trained has no gradient."""
    if idle := [name for name, norm in norms.items() if norm == 0]:
        more = f" and {len(idle) - 3} more" if len(idle) > 3 else ""
        raise InputError(
            f"the first {passes} passes give no gradient to {', '.join(idle[:3])}{more}: they "
            "would not be trained. Leave them out (--train-in-full, --lora-targets, --adaption), "
            "or give --no-check-gradients"
        )


def share_with_target(batches: StepBatches) -> float | None:
    """Of the questions of the first four steps, the share whose answer (or evidence) is found."""
    found = [
        any_span(batches[i]["score_targets"]).any(dim=1)
        for i in range(min(4 * batches.accumulate, len(batches)))
        if batches.score_target is not None and "score_targets" in batches[i]
    ]
    return float(torch.cat(found).float().mean()) if found else None


def shared_saving(batches: StepBatches) -> float | None:
    """Share of the tokens of the first four steps that sharing documents spares stage 1.

    Questions of a document that share its stage 1 read it once; as separate rows, each would read
    it again. None where nothing is shared.
    """
    together = apart = 0
    for i in range(min(4 * batches.accumulate, len(batches))):
        batch = batches[i]
        if "document_ids" in batch:
            documents = int(batch["document_attention_mask"].sum())
            questions = int(batch["prompt_lengths"].sum())
            together += documents + questions
            apart += documents * len(batch["input_ids"]) // len(batch["document_ids"]) + questions
    return 1 - together / apart if apart else None
