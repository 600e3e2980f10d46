"""p and rho of every row: drawn from seed, step and row, and by length."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from remamba import ReMambaForCausalLM
from remamba.compression_config import CompressionConfig, RowCompression
from remamba.errors import InputError
from remamba.train.batches import StepBatches
from remamba.train.config import TrainArgs
from remamba.train.data import read_data
from remamba.train.schedule import CompressionSchedule
from tests.train.toy import make_tokenizer, save_base, write_documents, write_rows

BASE = CompressionConfig()


def schedule(**options: Any) -> CompressionSchedule:
    args = TrainArgs(base="b", data=("d",), output="o", **options)
    return CompressionSchedule.from_args(args, BASE, 100)


def test_every_row_of_a_step_draws_its_own() -> None:
    plan = schedule(length=(0.1, 0.3), keep_ratio=(0.05, 0.2))
    whole = plan.at(3, np.arange(8))
    assert isinstance(whole, RowCompression)
    assert len(set(whole.drawn_lengths)) == len(set(whole.drawn_keep_ratios)) == 8
    assert all(0.1 <= p <= 0.3 for p in whole.drawn_lengths)
    assert all(0.05 <= rho <= 0.2 for rho in whole.drawn_keep_ratios)
    assert whole.length == pytest.approx(np.mean(whole.drawn_lengths))
    parts = [plan.at(3, rows) for rows in (np.array([6, 7]), np.arange(6))]
    assert all(isinstance(part, RowCompression) for part in parts)
    assert parts[1].spans + parts[0].spans == whole.drawn_lengths  # type: ignore[operator]
    assert plan.at(4, np.arange(8)) != whole
    assert schedule(length=(0.1, 0.3), keep_ratio=(0.05, 0.2), seed=1).at(3, np.arange(8)) != whole
    # equal rows need no tuples
    assert type(schedule(length=(0.2, 0.2)).at(3, np.arange(8))) is CompressionConfig


def test_the_released_rule_for_short_and_for_long_prompts() -> None:
    plan = schedule(length=(0.3, 0.3), short_prompt=(1600, 0.1), keep_last=1500)
    lengths = np.array([1, 1600, 1601, 2000, 6000])
    found = plan.at(0, np.arange(5), lengths)
    assert isinstance(found, RowCompression)
    span = np.ceil(np.array(found.drawn_lengths) * lengths - 1e-9)
    assert span.tolist() == [1, 160, 101, 500, 1800]
    assert not plan.is_shared and not plan.covers_all_tokens
    whole = {"length": (1.0, 1.0), "placement": "replace"}
    assert schedule(**whole).is_shared and not schedule(**whole, keep_last=5).is_shared
    with pytest.raises(InputError, match="reach past the end"):
        schedule(length=(0.3, 0.3), start=0.5, short_prompt=(9, 0.6))


def test_as_many_places_of_every_row() -> None:
    plan = schedule(num_kept=7)
    assert plan.at(0, np.arange(3), np.array([5, 50, 500])).num_kept == 7
    assert plan.for_evaluation().num_kept == 7
    args = TrainArgs(base="b", data=("d",), output="o", keep_ratio=(0.1, 0.1))
    again = CompressionSchedule.from_args(args, plan.for_evaluation(), 100)
    assert again.settings.num_kept is None and again.for_evaluation().keep_ratio == 0.1
    args = dataclasses.replace(args, keep_ratio=None)
    assert CompressionSchedule.from_args(args, plan.for_evaluation(), 9).settings.num_kept == 7
    with pytest.raises(InputError, match=r"--keep-ratio 0\.1 0\.8 speaks of a share"):
        schedule(num_kept=7, keep_ratio=(0.1, 0.8))
    with pytest.raises(InputError, match=r"--eval-keep-ratio 0\.1 speaks"):
        schedule(num_kept=7, eval_keep_ratio=0.1)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"keep_ratio_schedule": "anneal"}, "anneal needs --keep-ratio"),
        ({"keep_last": -1}, "--keep-last = -1"),
        ({"short_prompt": (0, 0.1)}, "--short-prompt 0 0.1"),
        ({"short_prompt": (9, 1.5)}, "--short-prompt 9 1.5"),
    ],
)
def test_wrong_numbers_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        schedule(**options)


def test_rows_draw_alike_in_every_division_of_a_step(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    data = read_data(
        [write_documents(tmp_path / "d.jsonl")], tokenizer, vocab_size=len(tokenizer),
        max_length=100,
    )  # fmt: skip
    given: dict[str, Any] = {"steps": 4, "batch_size": 8, "questions": 2, "seed": 0}
    plan = schedule(length=(0.1, 0.3))
    for shared in (True, False):
        whole = StepBatches(data, shared=shared, **given)[2]["about"]
        drawn = plan.at(2, whole.rows, whole.lengths).spans
        parts = []
        for part in range(4):
            batches = StepBatches(
                data, shared=shared, accumulate=2, processes=2, process=part % 2, **given
            )
            parts.append(batches[4 + part // 2]["about"])
        assert sum((plan.at(2, a.rows, a.lengths).spans for a in parts), ()) == drawn
        assert np.concatenate([a.lengths for a in parts]).tolist() == whole.lengths.tolist()
        assert np.mean([a.answer_weight for a in parts]) == pytest.approx(1.0)
        assert len(whole.rows) == (8 if shared else 16)


def test_passes_of_unlike_answers_average_to_the_mean_over_all(tmp_path: Path) -> None:
    rows = [{"prompt": " key1", "response": " val1" * (1 + i)} for i in range(8)]
    tokenizer = make_tokenizer()
    data = read_data(
        [write_rows(tmp_path / "p.jsonl", rows)], tokenizer, vocab_size=len(tokenizer),
        max_length=100,
    )  # fmt: skip
    given: dict[str, Any] = {"steps": 1, "batch_size": 8, "questions": 1, "seed": 0}
    whole = StepBatches(data, **given)[0]
    assert whole["about"].answer_weight == whole["about"].document_weight == 1.0
    parts = [StepBatches(data, accumulate=4, **given)[i] for i in range(4)]
    total = int((whole["labels"] != -100).sum())
    for part in parts:
        counted = int((part["labels"] != -100).sum())
        assert part["about"].answer_weight == pytest.approx(4 * counted / total)


@pytest.mark.parametrize("placement, length", [("replace", None), ("append", None), ("replace", 1)])
def test_a_batch_of_rows_with_their_own_p_and_rho_is_each_alone(
    tmp_path: Path, assert_close: Callable[..., None], placement: str, length: int | None
) -> None:
    torch.manual_seed(0)
    model = ReMambaForCausalLM.from_pretrained(save_base(tmp_path / "base")).eval()
    lengths = [17, 9, 26]
    ids = torch.randint(2, model.config.vocab_size, (3, 26))
    mask = torch.arange(26) < torch.tensor(lengths)[:, None]
    drawn = (1.0, 1.0, 1.0) if length else (0.2, 0.9, 0.5)
    ratios = (0.3, 0.7, 0.1)
    base = model.config.compression_config.replace(placement=placement, adaption="selective")
    together = model(
        ids,
        attention_mask=mask,
        compression=RowCompression(**base.to_dict(), drawn_lengths=drawn, drawn_keep_ratios=ratios),
    )
    for row, size in enumerate(lengths):
        settings = base.replace(length=drawn[row], keep_ratio=ratios[row])
        alone = model(ids[row : row + 1, :size], compression=settings)
        count = alone.logits.shape[1]
        assert_close(together.logits[row, :count], alone.logits[0])
        kept = alone.kept.index.shape[1]
        assert int(together.kept.lengths[row]) == kept
        assert together.kept.index[row, :kept].tolist() == alone.kept.index[0].tolist()


def test_a_row_outside_the_ranges_is_refused() -> None:
    with pytest.raises(InputError, match=r"length \(p\) = 1\.5"):
        RowCompression(drawn_lengths=(0.5, 1.5), drawn_keep_ratios=(0.5, 0.5))
    with pytest.raises(InputError, match="swallow the last token"):
        RowCompression(start=0.6, drawn_lengths=(0.5,), drawn_keep_ratios=(0.5,))
