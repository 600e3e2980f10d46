"""Log-likelihoods of continuations: batches, compressed prompts, other models."""

from __future__ import annotations

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from remamba import CompressionConfig
from remamba.evals import likelihood
from remamba.evals.likelihood import Pair, log_likelihoods
from remamba.methods.remamba import ReMamba
from tests.tiny import PAPER, tiny_model

LENGTHS = ((1, 1), (2, 5), (30, 3), (41, 1), (12, 12), (80, 2))


def pairs(vocab: int) -> list[Pair]:
    draw = torch.Generator().manual_seed(3)

    def ids(n: int) -> list[int]:
        return torch.randint(vocab, (n,), generator=draw).tolist()

    return [Pair(ids(a), ids(b)) for a, b in LENGTHS]


@pytest.mark.parametrize("compression", [None, PAPER, PAPER.replace(placement="append")], ids=str)
@pytest.mark.parametrize("backbone", ["mamba", "mamba2"])
def test_it_is_the_loss_of_the_continuation(
    backbone: str, compression: CompressionConfig | None, assert_close, monkeypatch
) -> None:
    model = tiny_model(backbone)
    asked = pairs(model.config.vocab_size)
    method = None if compression is None else ReMamba(compression)
    found = log_likelihoods(model, asked, method)
    for pair, (score, _) in zip(asked, found, strict=True):
        ids = torch.tensor([[*pair.prompt, *pair.continuation]])
        labels = ids.clone()
        labels[:, : len(pair.prompt)] = -100
        with torch.no_grad():
            loss = model(ids, labels=labels, compression=compression or False).loss
        assert_close(torch.tensor(score), -loss * len(pair.continuation), torch.float32)
    monkeypatch.setattr(likelihood, "BATCH_TOKENS", 0)
    alone = log_likelihoods(model, asked, method)
    assert_close(torch.tensor([s for s, _ in found]), torch.tensor([s for s, _ in alone]))


@pytest.mark.parametrize("compression", [None, PAPER], ids=["plain", "compressed"])
def test_what_the_model_writes_is_greedy(compression: CompressionConfig | None) -> None:
    model = tiny_model("mamba2")
    prompt = torch.randint(model.config.vocab_size, (1, 40))
    written = model.generate(
        prompt, max_new_tokens=6, do_sample=False, compression=compression or False
    )[0, 40:].tolist()
    other = [*written[:-1], (written[-1] + 1) % model.config.vocab_size]
    method = None if compression is None else ReMamba(compression)
    both = [Pair(prompt[0].tolist(), written), Pair(prompt[0].tolist(), other)]
    found = log_likelihoods(model, both, method)
    assert [is_greedy for _, is_greedy in found] == [True, False]
    assert found[0][0] > found[1][0]


def test_any_causal_model(assert_close) -> None:
    model = MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1)).eval()
    asked = pairs(50)
    for pair, (score, _) in zip(asked, log_likelihoods(model, asked), strict=True):
        ids = torch.tensor([[*pair.prompt, *pair.continuation]])
        with torch.no_grad():
            scores = model(ids).logits[0].log_softmax(-1)
        at = range(len(pair.prompt) - 1, ids.shape[1] - 1)
        expected = sum(scores[i, ids[0, i + 1]] for i in at)
        assert_close(torch.tensor(score), torch.as_tensor(expected), torch.float32)
