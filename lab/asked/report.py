"""A planted run as a page: report.md, report.png, and the maps over p and rho."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.asked.conditions import BM25, Condition
from lab.asked.summary import REFERENCE, compare_conditions, summarise
from remamba.evals.scoring import SCORES_FILE, ScoredRun
from remamba.evals.statistics import RESAMPLES
from remamba.evals.tables import table
from remamba.files import write_whole

WRITTEN = (SCORES_FILE, "report.md", "report.png", "map.json", "map.png")
PASSAGES_NOTE = (
    "BM25's passages are whole paragraphs, in the document's order; of a paragraph that is longer "
    "than all that is left, sentences. Retrieval tells nothing against it: the number of the "
    "paragraph that it ranks first answers that task without a model."
)


def write_summary(
    folder: Path,
    conditions: Sequence[Condition],
    runs: Mapping[str, ScoredRun],
    record: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes scores.json, report.md and, with matplotlib, report.png; with a map also map.*.

    Returns:
        The content of scores.json.
    """
    summary = summarise(folder, conditions, runs)
    pairs = compare_conditions(runs, list(summary["conditions"]))
    cells = summary["map"]
    write_whole(folder / SCORES_FILE, json.dumps(summary, indent=2) + "\n")
    if cells:
        write_whole(folder / "map.json", json.dumps({"cells": cells}, indent=2) + "\n")
    write_whole(folder / "report.md", markdown(conditions, summary, pairs, record))
    try:
        from lab.asked.figures import draw_lengths, draw_map
    except ImportError:
        sys.stderr.write("no report.png: matplotlib is not installed (pip install matplotlib)\n")
        return summary
    draw_lengths(summary["conditions"], folder / "report.png")
    if cells:
        draw_map(cells, folder / "map.png")
    return summary


def markdown(
    conditions: Sequence[Condition],
    summary: Mapping[str, Any],
    pairs: Mapping[str, Any],
    record: Mapping[str, Any],
) -> str:
    """The content of report.md; `pairs` as `compare_conditions` gives them."""
    shown = summary["conditions"]
    parts = ["# planted", _settings(conditions, record)]
    parts += ["## Scores", score_table(summary), _notes(shown)]
    if evidence := _evidence(shown):
        parts += ["## The evidence", *evidence]
    if pairs:
        parts.append(f"## {REFERENCE} beside each other condition")
        parts.append(paired_table(pairs))
        parts.append(
            "Difference: two-stage minus the condition, on the same questions; its interval draws "
            "documents. Better, worse: questions on which two-stage scores so. p: two-sided sign "
            "test over these (McNemar's exact test where answers are right or wrong), which takes "
            "the questions of one document for independent."
        )
    if summary["map"]:
        parts += ["## Two-stage by span length p and keep ratio rho", _map(summary["map"])]
    if times := _times(shown):
        parts += ["## Time and memory", *times]
    return "\n\n".join(parts) + "\n"


def score_table(summary: Mapping[str, Any]) -> str:
    """Task and length down, conditions across: scores with their intervals."""
    shown = summary["conditions"]
    first = next(iter(shown.values()))
    rows: list[list[Any]] = []
    for task, dataset in first["datasets"].items():
        for length, cell in dataset["lengths"].items():
            found = (entry["datasets"][task]["lengths"][length] for entry in shown.values())
            rows.append([task, _number(length), cell["n"], *map(score_words, found)])
    count = sum(dataset["n"] for dataset in first["datasets"].values())
    averages = ({"score": entry["average"], **entry} for entry in shown.values())
    rows.append(["average", None, count, *map(score_words, averages)])
    return table(["task", "tokens", "n", *shown], rows)


def score_words(cell: Mapping[str, Any]) -> str:
    """A score with its interval: "81.2 (75.0-87.5)"."""
    low, high = cell["interval"]
    return f"{cell['score']:.1f} ({low:.1f}-{high:.1f})"


def _number(length: str) -> str:
    return f"{int(length):,}"


def _notes(shown: Mapping[str, Any]) -> str:
    documents = sum(
        cell["documents"]
        for dataset in next(iter(shown.values()))["datasets"].values()
        for cell in dataset["lengths"].values()
    )
    said = (
        f"In brackets the 95 % interval: bootstrap over the {documents} documents, {RESAMPLES:,} "
        "resamples; one without width means that all questions scored alike. A task's lengths "
        "weigh alike, and so do the tasks in the average."
    )
    has_passages = any(name.endswith(BM25) for name in shown)
    return f"{said} {PASSAGES_NOTE}" if has_passages else said


def _settings(conditions: Sequence[Condition], record: Mapping[str, Any]) -> str:
    settings = record["settings"]
    lines = [
        f"- {c.name}: {c.words}" + ("" if c.compression is None else f". {c.method.in_words()}")
        for c in conditions
        if not c.is_of_map
    ]
    rows: list[tuple[str, Any]] = []
    for name in ("model", "plain"):
        if (model := settings.get(name)) is not None:
            words = f"{model['name']} ({model['kind']}, {model['dtype']}, {model['fingerprint']})"
            rows.append((name, words))
    if settings.get("limit") is not None:
        rows.append(("first documents of each task and length only", settings["limit"]))
    rows += [("seed", settings["seed"]), ("questions answered at once", record.get("slots"))]
    rows += [("device", record.get("device")), ("commit", record.get("commit"))]
    rows += list((record.get("versions") or {}).items())
    rows += [(f"sha256 of {name}", digest[:16]) for name, digest in settings["data"].items()]
    return "Greedy decoding.\n\n" + "\n".join(lines) + "\n\n" + table(("setting", "value"), rows)


EVIDENCE = (
    ("every", "all found %"), ("any", "any found %"), ("value", "answer kept %"), ("rank", "rank"),
    ("worst", "worst rank"),
)  # fmt: skip
SUBSETS = (
    ("found", "score where all found"), ("missed", "where not"), ("inside", "evidence in the span"),
    ("outside", "outside"), ("across", "across"), ("where_stage1_wrong", "where stage1 is wrong"),
)  # fmt: skip


def _evidence(shown: Mapping[str, Any]) -> list[str]:
    """A table for each condition that selects or shortens."""
    parts = []
    for name, entry in shown.items():
        told = [
            (task, length, cell["evidence"])
            for task, dataset in entry["datasets"].items()
            for length, cell in dataset["lengths"].items()
            if cell["evidence"] is not None
        ]
        numbers = [pair for pair in EVIDENCE if any(pair[0] in found for *_, found in told)]
        subsets = [pair for pair in SUBSETS if any(pair[0] in found for *_, found in told)]
        rows = [
            [task, _number(length)]
            + [found.get(key) for key, _ in numbers]
            + [_subset(found.get(key)) for key, _ in subsets]
            for task, length, found in told
        ]
        if rows:
            header = ["task", "tokens", *(words for _, words in (*numbers, *subsets))]
            parts.append(f"### {name}\n\n{table(header, rows)}")
    if parts:
        parts.append(
            "Found: a token of the evidence was kept (of what lies in the span), or where a "
            "document was only shortened, all of the evidence was left. Rank: median place of the "
            "best-scored evidence token among the span's positions, 1 = best; worst rank: that of "
            "the evidence that ranks lowest. Numbers of questions in brackets."
        )
    return parts


def _subset(found: Mapping[str, Any] | None) -> str | None:
    return None if found is None else f"{found['score']:.1f} ({found['n']})"


def paired_table(pairs: Mapping[str, Any]) -> str:
    """Condition and task down; `pairs` as `compare_conditions` gives them."""
    rows: list[list[Any]] = []
    for name, found in pairs.items():
        for task, pair in [*found["datasets"].items(), ("average", None)]:
            values = found["average"] if pair is None else pair._asdict()
            (low, high), gain = values["difference"], values["second"] - values["first"]
            row = [name, task, values["n"], values["first"], values["second"], f"{gain:+.2f}"]
            row.append(f"{low:+.2f} to {high:+.2f}")
            rest = ["-"] * 3 if pair is None else [pair.better, pair.worse, _probability(pair.p)]
            rows.append([*row, *rest])
    header = ["condition", "task", "n", "its score", REFERENCE, "difference", "95 % interval"]
    return table([*header, "better", "worse", "p"], rows)


def _probability(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _map(cells: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [f"{cell['p']:g}", f"{cell['rho']:g}", score_words(cell), cell["evidence_kept"]]
        for cell in cells
    ]
    return table(["p", "rho", "score", "all evidence in the span kept %"], rows)


def _times(shown: Mapping[str, Any]) -> list[str]:
    keys = ("groups", "read", "answer", "peak_mib")
    rows = [
        [name, _number(length), *(found[key] for key in keys)]
        for name, entry in shown.items()
        for length, found in entry["times"].items()
    ]
    if not rows:
        return []
    header = ["condition", "tokens", "groups", "read", "answer", "peak MiB"]
    return [
        table(header, rows),
        "Medians over groups of documents, in ms. Read: a document (one reading serves all "
        "conditions of the same weights and documents); answer: a question's answer, the document "
        "read before, or with it where it is read again for each. A group's time is divided by its "
        "documents or questions: to wait for one alone takes longer.",
    ]
