"""lm-evaluation-harness as a client: against the server it finds what it finds in process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import make_reader, serving

TASK = """\
task: TASK
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/rows.jsonl}}
test_split: test
doc_to_text: "{{question}}"
"""
CHOICE = """\
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: gold
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
TEXTS = """\
output_type: generate_until
doc_to_target: answer
generation_kwargs: {until: ["."], max_gen_toks: 9, do_sample: false, temperature: 0.0}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def samples(found: Any, task: str) -> list[Any]:
    return [one["resps"] for one in sorted(found["samples"][task], key=lambda one: one["doc_id"])]


@pytest.mark.slow
def test_the_harness_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Likelihoods and texts, to the last digit; tokens are made by the server too."""
    pytest.importorskip("lm_eval")
    pytest.importorskip("tenacity")  # of its extra `api`
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    from remamba.evals.harness import run_tasks

    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    places = ("Paris", "Lisbon", "Zürich", "東京")
    rows = [
        {
            "question": f"Tom Hill lives in {place}. Who lives in {place}?",
            "choices": [" Tom", " Helen Archer", " the mayor", " café"],
            "gold": 0,
            "answer": "Tom",
        }
        for place in places
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for name, kind in (("tiny_choice", CHOICE), ("tiny_texts", TEXTS)):
        task = TASK.replace("TASK", name).replace("FOLDER", str(tmp_path))
        (tmp_path / f"{name}.yaml").write_text(task + kind, encoding="utf-8")
    reader, names = make_reader(), ["tiny_choice", "tiny_texts"]
    wanted = run_tasks(reader, reader.method, names, include=tmp_path)
    with serving() as server:
        found = evaluator.simple_evaluate(
            "local-completions",
            model_args={
                "model": "tiny",
                "base_url": f"{server.url}/v1/completions",
                "tokenizer_backend": "remote",
                "num_concurrent": 4,
            },
            tasks=list(names),
            task_manager=TaskManager(include_path=str(tmp_path)),
            bootstrap_iters=0,
        )
    for name in names:
        assert samples(found, name) == samples(wanted, name)
        assert found["results"][name] == wanted["results"][name]
