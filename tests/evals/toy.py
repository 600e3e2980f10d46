"""Tiny benchmark data in the published formats."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from remamba.evals.leval import BY_THE_STORY
from tests.tiny import TEXT


def longbench_row(number: int, dataset: str = "qasper", **changes: Any) -> dict[str, Any]:
    row = {
        "_id": f"{dataset}-{number}",
        "input": f"Who lives in Paris, {number}?",
        "context": TEXT * (1 + number % 3),
        "answers": ["Tom Hill", "Tom"],
        "length": 2500 * number,
        "dataset": dataset,
        "language": "en",
        "all_classes": ["Tom Hill", "Nobody"] if dataset == "trec" else None,
    }
    return {**row, **changes}


def leval_row(questions: int = 2, **changes: Any) -> dict[str, Any]:
    row = {
        "input": TEXT * 3,
        "instructions": [f"Question {i}. Who?\nA. Tom\nB. Helen" for i in range(questions)],
        "outputs": ["A", "B", "AB"][:questions],
        "source": "toy",
        "evaluation": "exam",
    }
    return {**row, **changes}


def write_rows(path: Path, *rows: Any) -> Path:
    """JSON lines, packed when the name ends so; a row given as bytes is written as it is."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    content = b"".join(line + b"\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def leval_folder(path: Path) -> Path:
    """Four of L-Eval's datasets, two questions each."""
    write_rows(path / "coursera.jsonl", leval_row(2))
    write_rows(path / "tpo.jsonl", leval_row(1), leval_row(1, input=TEXT[30:] * 2))
    gsm = [leval_row(1, instructions=[q], outputs=["so 4"]) for q in ("2 + 2?", "Helen plays")]
    write_rows(path / "gsm100.jsonl.gz", *gsm)
    story = f"Cats fly, True or False? Answer this question {BY_THE_STORY}"
    fiction = leval_row(1, instructions=[story], outputs=["True [fact: False]"])
    write_rows(path / "sci_fi.jsonl", fiction)
    return path


def longbench_folder(path: Path, *datasets: str, rows: int = 4) -> Path:
    """LongBench-E files of a few rows."""
    for dataset in datasets:
        found = [longbench_row(number, dataset) for number in range(rows)]
        write_rows(path / f"{dataset}_e.jsonl", *found)
    return path
