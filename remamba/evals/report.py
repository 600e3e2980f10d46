"""Reports of a run: report.md, report.json and report.png, with every setting in words."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from remamba.evals import leval
from remamba.evals.longbench import BUCKETS
from remamba.evals.run_folder import RECORD_FILE, read_record
from remamba.evals.scoring import ScoredDataset, ScoredRun
from remamba.evals.statistics import RESAMPLES, Interval, interval, resampled, sign_test
from remamba.evals.tables import needle_table, table
from remamba.files import write_whole
from remamba.methods.base import recorded_method

NAMES = {
    "model": "model",
    "kind": "class",
    "dtype": "numbers",
    "protocol": "protocol",
    "max_length": "maximum length",
    "limit": "first questions of each dataset only",
    "shorten": "documents are shortened first",
    "shorten_tokens": "tokens of a document that are left",
    "baseline": "text baseline (the former option)",
    "baseline_tokens": "tokens a baseline leaves",
    "seed": "seed",
}
"""Settings of run.json that the report tells as they are."""


UNFINISHED = "This run was not finished: scored is what it had answered (go on with --resume)."


def write_report(run: ScoredRun, folder: Path, *, with_figure: bool = True) -> None:
    """Writes report.md and report.json, and report.png where matplotlib is installed."""
    record = read_record(folder) if (folder / RECORD_FILE).is_file() else None
    if record is not None and record.get("status") != "finished":
        sys.stderr.write(f"{UNFINISHED}\n")
    details = describe(run)
    write_whole(folder / "report.json", json.dumps(details, indent=2) + "\n")
    write_whole(folder / "report.md", markdown(run, details, record))
    if not with_figure:
        return
    try:
        from remamba.evals.figures import draw_run
    except ImportError:
        sys.stderr.write("no report.png: matplotlib is not installed (pip install matplotlib)\n")
    else:
        draw_run(run, details, folder / "report.png")


def describe(run: ScoredRun) -> dict[str, Any]:
    """scores.json with intervals, shares of answers, failures, and what was read and kept."""
    samples = {
        name: resampled(
            name,
            found.scores,
            run.task.strata(found.predictions),
            run.task.clusters(found.predictions),
        )
        for name, found in run.datasets.items()
    }
    datasets = {}
    for name, found in run.datasets.items():
        entry = {**found.summary, "interval": interval(samples[name])}
        entry["failed"] = sum(prediction.failed for prediction in found.predictions)
        entry |= {key: value for key, value in _means(found).items() if value is not None}
        if run.task.name == "leval":
            entry["answered"] = leval.shares(name, found.predictions, run.scoring)
            answers = [prediction.answers for prediction in found.predictions]
            constant = entry["constant"]["answer"]
            worth = leval.constant_scores(name, constant, answers, run.scoring)
            entry["constant_p"] = sign_test(found.scores, worth)
        datasets[name] = entry
    return {
        **run.to_dict(),
        "scoring": run.scoring,
        "interval": interval(np.mean(list(samples.values()), axis=0)),
        "resamples": RESAMPLES,
        "missing": run.missing,
        "datasets": datasets,
    }


def _means(found: ScoredDataset) -> dict[str, float | None]:
    """Mean tokens of prompts and answers and of what was kept, where the predictions tell."""
    columns: dict[str, list[float]] = {"prompt_tokens": [], "new_tokens": [], "kept": []}
    for prediction in found.predictions:
        for name, values in columns.items():
            value = prediction.row.get(name)
            if isinstance(value, list):
                value = len(value)
            if isinstance(value, int) and not prediction.failed:
                values.append(value)
    return {
        f"mean_{name}": float(np.mean(values)) if values else None
        for name, values in columns.items()
    }


def markdown(run: ScoredRun, details: dict[str, Any], record: dict[str, Any] | None) -> str:
    """The content of report.md."""
    parts = [f"# {run.task.name}", _settings(run, record), "## Scores", _scores(run, details)]
    if run.task.name == "leval":
        parts += ["## Is it better than a constant answer?", _constants(details)]
        parts += ["## What was answered", _answers(details)]
    if run.task.name == "needle":
        parts += ["## Score by length and depth", *_needles(details)]
    parts += ["## What was read", _reading(details)]
    return "\n\n".join(parts) + "\n"


def _settings(run: ScoredRun, record: dict[str, Any] | None) -> str:
    scoring = {
        "official": "as the benchmark's own evaluator scores",
        "authors": "as the ReMamba authors' evaluator scores (an empty choice earns 0.25)",
    }[run.scoring]
    lines = [f"Scored {scoring}."]
    if record is None:
        return lines[0] + " Predictions without a run.json: how they were made is not known."
    settings = record["settings"]
    if record.get("status") != "finished":
        lines.append(UNFINISHED)
    lines.append(f"Prompts: {record.get('protocol', 'unknown')}; greedy decoding.")
    lines.append(recorded_method(settings).in_words())
    rows = [(NAMES[key], value) for key, value in settings.items() if key in NAMES]
    rows = [(name, value) for name, value in rows if value is not None]
    rows += list(settings.get("needles", {}).items())
    rows += [("device", record.get("device")), ("commit", record.get("commit"))]
    rows += [(name, version) for name, version in (record.get("versions") or {}).items()]
    rows += [(f"sha256 of {name}", digest[:16]) for name, digest in settings["data"].items()]
    return "\n".join(lines) + "\n\n" + table(("setting", "value"), rows)


def _scores(run: ScoredRun, details: dict[str, Any]) -> str:
    has_buckets = run.task.name == "longbench-e"
    header = ["dataset", "n", "score", "95 % interval", *(BUCKETS if has_buckets else ())]
    rows: list[list[Any]] = []
    for name, entry in details["datasets"].items():
        rows.append([name, entry["n"], entry["score"], _range(entry["interval"])])
        if has_buckets:
            rows[-1] += [entry["buckets"][bucket] for bucket in BUCKETS]
    count = sum(entry["n"] for entry in details["datasets"].values())
    rest = [None] * len(BUCKETS) if has_buckets else []
    rows.append(["average", count, details["average"], _range(details["interval"]), *rest])
    groups = {"longbench-e": "bucket", "needle": "length and depth", "planted": "length"}
    group, is_planted = groups.get(run.task.name), run.task.name == "planted"
    notes = [
        f"Intervals: bootstrap over {'documents' if is_planted else 'questions'}, "
        f"{RESAMPLES:,} resamples"
        + (f", inside each {group}." if group else "; questions of one document count apart.")
    ]
    intervals = [entry["interval"] for entry in details["datasets"].values()]
    if any(found.low == found.high for found in intervals):
        notes.append("An interval without width: the questions scored alike, and may be too few.")
    if has_buckets:
        notes.append("A dataset's score is the unweighted mean of its buckets.")
    notes.append("The average is the unweighted mean over the datasets.")
    if run.missing:
        notes.append(f"Not in this run: {', '.join(run.missing)}.")
    return table(header, rows) + "\n\n" + " ".join(notes)


def _range(values: Interval) -> str:
    return f"{values.low:.2f} to {values.high:.2f}"


def _constants(details: dict[str, Any]) -> str:
    rows = []
    for name, entry in details["datasets"].items():
        constant, low, high = entry["constant"], entry["interval"].low, entry["interval"].high
        verdict = "no difference"
        if entry["constant_p"] < 0.05 and not low <= constant["score"] <= high:
            verdict = "above" if low > constant["score"] else "below"
        answer = constant["answer"] or "(empty)"
        p = f"{entry['constant_p']:.3f}"
        rows.append((name, entry["score"], answer, constant["score"], p, verdict))
    header = ("dataset", "score", "best constant answer", "its score", "p", "the model's score is")
    return (
        table(header, rows) + "\n\nThe best constant answer is chosen with the answers at hand. "
        '"No difference": it lies in the model\'s 95 % interval, or a sign test over the questions '
        "has p of 0.05 or more."
    )


def _needles(details: dict[str, Any]) -> list[str]:
    (entry,) = details["datasets"].values()
    parts = [needle_table(entry)]
    if entry["evidence_kept"] is not None:
        parts += ["## Was a token of the needle kept?", needle_table(entry, "evidence_kept")]
        parts.append(f"{entry['evidence_kept']:.2f} % of all; the scores are beside it above.")
    return parts


def _answers(details: dict[str, Any]) -> str:
    lines = []
    for name, entry in details["datasets"].items():
        if entry["answered"]:
            ranked = sorted(entry["answered"].items(), key=lambda pair: -pair[1])
            shares = ", ".join(f"{answer} {100 * share:.1f} %" for answer, share in ranked)
            lines.append(f"- {name}: {shares}")
    return "\n".join(lines) or "No dataset with a choice of answers is in this run."


def _reading(details: dict[str, Any]) -> str:
    header = ("dataset", "tokens of a prompt", "of an answer", "kept", "failed")
    keys = ("mean_prompt_tokens", "mean_new_tokens", "mean_kept")
    rows = [
        (name, *(entry.get(key) for key in keys), entry["failed"])
        for name, entry in details["datasets"].items()
    ]
    return table(header, rows) + "\n\nMeans. Failed predictions count as zero in the scores."
