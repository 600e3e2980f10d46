"""`remamba eval short`: our models in lm-evaluation-harness, where that is installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from tests.evals.toy import write_rows
from tests.tiny import PAPER, Run, save_tiny, tiny_tokenizer

TASK = """
task: toy
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_target: gold
doc_to_choice: choices
metric_list:
  - metric: acc
  - metric: acc_norm
"""


def toy_task(folder: Path) -> Path:
    """A folder with the definition of the task `toy` and its data."""
    rows = [
        {
            "q": f"Who lives in house {i}?\nAnswer:",
            "choices": ["Tom", "Helen Archer"],
            "gold": i % 2,
        }
        for i in range(6)
    ]
    file = write_rows(folder / "data.jsonl", *rows)
    (folder / "toy.yaml").write_text(TASK.format(file=file))
    return folder


def test_without_the_harness(refused: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "remamba.evals.harness", raising=False)
    said = refused("eval", "short", "--output", tmp_path / "run")
    assert "short tasks need lm-evaluation-harness" in said and "remamba[eval]" in said
    assert "give --overwrite" in refused("eval", "short", "--output", tmp_path / "x", "--resume")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["remamba", "plain"])
def test_run(method: str, remamba: Run, refused: Run, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    save_tiny(tmp_path / "model", compression=PAPER, eos_token_id=0)
    words = ("eval", "short", "--model", tmp_path / "model", "--output", tmp_path / "run")
    more = ("--tasks", "toy", "--include", toy_task(tmp_path / "tasks"), "--method", method)
    found = remamba(*words, *more, "--json")
    entry = found["datasets"]["toy"]
    assert entry["n"] == 6 and found["average"] == entry["score"] and "acc_norm" in entry
    text = (tmp_path / "run" / "predictions" / "toy.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    right = sum(row["pred"] == row["answers"][0] for row in rows)
    assert entry["score"] == pytest.approx(100 * right / 6)
    assert "give --resume or --overwrite" in refused(*words, *more)
    assert "is not known to" in refused(*words, "--tasks", "nosuch", "--overwrite")


def test_likelihoods_are_the_harness_own(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from remamba.checkpoints.convert import convert
    from remamba.commands.evaluation import RunOptions, load_reader
    from remamba.commands.model_options import ModelOptions
    from remamba.evals.harness import HarnessModel

    size = {"vocab_size": len(tiny_tokenizer()), "hidden_size": 24, "num_hidden_layers": 2}
    MambaForCausalLM(MambaConfig(**size, eos_token_id=0)).save_pretrained(tmp_path / "theirs")
    tiny_tokenizer().save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    asked = [("Who lives in Paris?", " Tom Hill"), ("", "Helen"), ("The café ", " is closed")]

    def requests(kind: str, arguments: list[tuple[str, ...]]) -> list[Instance]:
        return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]

    theirs = HFLM(str(tmp_path / "theirs"), device="cpu", dtype="float32", batch_size=1)
    for name, more in (("theirs", {}), ("ours", {"method": "plain"})):
        reading = ModelOptions(model=str(tmp_path / name), device="cpu", **more)
        ours = HarnessModel(*load_reader(RunOptions(output=tmp_path, reading=reading)))
        pairs = requests("loglikelihood", asked)
        expected, found = theirs.loglikelihood(pairs), ours.loglikelihood(pairs)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
        scores = [torch.tensor([score for score, _ in side]) for side in (found, expected)]
        torch.testing.assert_close(*scores, rtol=1e-5, atol=1e-5)
        whole = requests("loglikelihood_rolling", [("Tom Hill lives in Paris.",)])
        rolled = (ours.loglikelihood_rolling(whole), theirs.loglikelihood_rolling(whole))
        torch.testing.assert_close(*map(torch.tensor, rolled), rtol=1e-5, atol=1e-5)
        until = requests(
            "generate_until",
            [("Who lives?", {"until": ["x"], "max_gen_toks": 9})],  # type: ignore[list-item]
        )
        assert ours.generate_until(until) == theirs.generate_until(until)
