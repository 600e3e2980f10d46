"""`remamba eval evidence`: runs over seeds, beside numbers that are worked out by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lab.asked.conditions import make_conditions
from lab.asked.summary import score_conditions, summarise
from remamba import CompressionConfig
from tests.tiny import Run

LENGTHS = (500, 1000)
DATA = {"/there/test-500.jsonl": "aa" * 32, "/there/test-1000.jsonl": "bb" * 32}
WHOLE = CompressionConfig(length=1.0, num_kept=2)
PLAIN = dict.fromkeys(("plain", "constant"), "0000 0000")


def rows_of(right: str, found: str = "1111 1111") -> list[dict[str, Any]]:
    """Two documents a length, two questions each; "1" is a right answer, or evidence found."""
    rows = []
    for length, answers, seen in zip(LENGTHS, right.split(), found.split(), strict=True):
        for i, (answer, is_seen) in enumerate(zip(answers, seen, strict=True)):
            rows.append(
                {
                    "id": f"{length}-{i}",
                    "document": f"{length}-{i // 2}",
                    "metric": "exact",
                    "length": length,
                    "answers": ["blue"],
                    "pred": " blue" if answer == "1" else " red",
                    "kept": [[3 if is_seen == "1" else 7, 0.5]],
                    "span": [0, 10],
                    "ranks": [1 if is_seen == "1" else 4 + i],
                    "evidence": [[2, 5]],
                }
            )
    return rows


def run_of(
    family: Path,
    name: str,
    right: dict[str, str],
    *,
    found: str = "1111 1111",
    retrieval: str = "1010 0000",
    backwards: bool = False,
    status: str = "finished",
    **settings: Any,
) -> Path:
    """A run as `remamba eval planted` leaves it, from each condition's answers to facts."""
    run = family / "asked-test" / name
    for condition, answers in right.items():
        place = run / condition / "predictions"
        place.mkdir(parents=True)
        for task, given in (("facts", answers), ("retrieval", retrieval)):
            rows = rows_of(given, found)
            lines = [json.dumps(row) for row in (reversed(rows) if backwards else rows)]
            (place / f"{task}.jsonl").write_text("\n".join(lines) + "\n")
        seconds = 0.5 if condition == "two-stage" else 0.25
        times: dict[str, Any] = {"length": 500, "documents": 2, "questions": 4, "read": seconds}
        times |= {"first": 0.04, "rest": 0.0, "peak_bytes": None}
        (run / condition / "times.jsonl").write_text(json.dumps(times) + "\n")
    kinds = make_conditions(list(right), WHOLE, has_plain=True, middle=2000, bm25=500)
    scores = summarise(run, kinds, score_conditions(run, kinds))
    (run / "scores.json").write_text(json.dumps(scores))
    base = {"task": "planted", "lengths": list(LENGTHS), "limit": None, "data": DATA}
    record = {"status": status, "settings": {**base, **settings}, "commit": "c0ffee"}
    record |= {"device": "a GPU", "versions": {"torch": "2.0"}}
    (run / "run.json").write_text(json.dumps(record))
    return run


def trained(family: Path, run: str, tokens: Sequence[int], status: str = "finished") -> None:
    """What training leaves: a stage for each count of tokens, of ten seconds."""
    for i, count in enumerate(tokens):
        place = family / run / f"stage-{i}"
        place.mkdir(parents=True)
        record = {"status": status, "tokens": count, "seconds": 10.0, "device": "a GPU"}
        (place / "train.json").write_text(json.dumps({**record, "commit": "c0ffee"}))


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """Seeds 1 and 2 of the form `few`, seeds 2 and 3 of plain."""
    folder = tmp_path / "mamba-10m"
    run_of(folder, "few-s1", {"two-stage": "1111 1100", "stage1": "1000 1000"}, found="1111 1100")
    run_of(
        folder,
        "few-s2",
        {"two-stage": "1100 0100", "stage1": "0000 0000"},
        found="1110 0000",
        backwards=True,
    )
    run_of(folder, "plain-s2", {**PLAIN, "plain": "1000 0010"})
    run_of(folder, "plain-s3", {**PLAIN, "plain": "1111 1111"})
    return folder


@pytest.fixture
def report(remamba: Run, tmp_path: Path) -> Run:
    """Runs the command on families; returns evidence.json's content."""

    def run(*families: Path, main: str = "few") -> Any:
        output = ("--output", tmp_path / "report", "--overwrite", "--json")
        return remamba("eval", "evidence", *families, "--main", main, *output)

    return run


def scores(row: dict[str, Any], key: str = "score", task: str = "facts") -> list[Any]:
    """At 500, at 1,000, at both."""
    return [row["tasks"][task][length][key] for length in ("500", "1000", "all")]


def test_scores_are_means_over_seeds(family: Path, report: Run) -> None:
    found = report(family)["families"]["mamba-10m"]
    assert found["table"] == ["few", "plain", "few: stage1", "constant"]
    few = found["rows"]["few"]
    assert few["seeds"] == [1, 2]
    assert scores(few) == [75.0, 37.5, 56.25]
    assert few["tasks"]["facts"]["500"]["by_seed"] == {"1": 100.0, "2": 50.0}
    assert few["tasks"]["facts"]["500"]["n"] == 4
    assert few["tasks"]["facts"]["500"]["documents"] == 2
    # documents of 100 and 50 on average; a bootstrap over two reaches both
    assert few["tasks"]["facts"]["500"]["interval"] == [50.0, 100.0]
    assert scores(found["rows"]["few: stage1"]) == [12.5, 12.5, 12.5]
    assert found["rows"]["plain"]["seeds"] == [2, 3]
    assert scores(found["rows"]["plain"]) == [62.5, 62.5, 62.5]
    assert found["questions"]["facts"]["all"] == {"n": 8, "documents": 4}


def test_differences_pair_seeds(family: Path, report: Run) -> None:
    found = report(family)["families"]["mamba-10m"]["differences"]
    plain = found["plain"]
    assert plain["seeds"] == [2]  # 1 and 3 have no partner
    assert scores(plain, "difference") == [25.0, 0.0, 12.5]
    assert plain["tasks"]["facts"]["500"]["by_seed"] == {"2": 25.0}
    # at 1,000 tokens: +50 of one document and -50 of the other
    assert scores(plain, "interval")[:2] == [[0.0, 50.0], [-50.0, 50.0]]
    stage1 = found["few: stage1"]
    assert stage1["seeds"] == [1, 2]
    assert stage1["tasks"]["facts"]["500"]["by_seed"] == {"1": 75.0, "2": 50.0}
    assert scores(stage1, "difference") == [62.5, 25.0, 43.75]
    assert scores(plain, "overlap")[0] is True
    assert scores(found["constant"], "overlap") == [False, True, False]


def test_without_a_common_seed_means_are_paired(tmp_path: Path, report: Run) -> None:
    folder = tmp_path / "mamba2-10m"
    run_of(folder, "few-s1", {"two-stage": "1111 1111"})
    run_of(folder, "plain-s2", {"plain": "1100 0000"})
    run_of(folder, "plain-s3", {"plain": "1000 0000"})
    plain = report(folder)["families"]["mamba2-10m"]["differences"]["plain"]
    assert plain["seeds"] == []
    assert scores(plain, "difference") == [62.5, 100.0, 81.25]
    assert plain["tasks"]["facts"]["500"]["by_seed"] == {}
    assert "| plain     |     - |" in (tmp_path / "report" / "report.md").read_text()


def test_intervals_lie_apart_on_either_side(tmp_path: Path, report: Run) -> None:
    folder = tmp_path / "mamba-10m"
    run_of(folder, "few-s1", {"two-stage": "0000 1111"})
    run_of(folder, "plain-s1", {"plain": "1111 0000"})
    plain = report(folder)["families"]["mamba-10m"]["differences"]["plain"]
    assert scores(plain, "difference") == [-100.0, 100.0, 0.0]
    assert scores(plain, "overlap") == [False, False, True]
    text = (tmp_path / "report" / "report.md").read_text()
    assert "-100.0 (-100.0 to -100.0) *" in text and "+0.0 (+0.0 to +0.0) |" in text


def test_one_seed_is_that_run(tmp_path: Path, report: Run) -> None:
    folder = tmp_path / "mamba-10m"
    answers = {"two-stage": "1101 0100", "stage1": "1000 1000", "drop": "0000 0001"}
    run = run_of(folder, "few-s3", answers, found="1001 0110", retrieval="0111 0010")
    told = json.loads((run / "scores.json").read_text())["conditions"]
    found = report(folder)["families"]["mamba-10m"]
    for condition, label in (
        ("two-stage", "few"),
        ("stage1", "few: stage1"),
        ("drop", "few: drop"),
    ):
        for task, dataset in told[condition]["datasets"].items():
            cells = found["rows"][label]["tasks"][task]
            for key in ("score", "interval", "n"):
                assert cells["all"][key] == dataset[key]
            for length, cell in dataset["lengths"].items():
                for key in ("score", "interval", "n", "documents"):
                    assert cells[length][key] == cell[key]
    for task, dataset in told["two-stage"]["datasets"].items():
        for length, cell in dataset["lengths"].items():
            links = {key: cell["evidence"][key] for key in ("every", "rank", "found", "missed")}
            assert found["links"]["few"][task][length] == links
    times = told["two-stage"]["times"]["500"]
    assert found["times"]["few"]["lengths"]["500"]["both"] == times["read"] + times["answer"] == 260


def test_links_over_seeds(family: Path, report: Run) -> None:
    links = report(family)["families"]["mamba-10m"]["links"]
    assert list(links) == ["few"]
    # seed 1 found 4 of 4 and 2 of 4, seed 2 3 of 4 and none
    assert links["few"]["facts"]["500"] == {
        "every": 87.5,
        "rank": 1.0,
        "found": {"score": pytest.approx(100 * 6 / 7), "n": 7},
        "missed": {"score": 0.0, "n": 1},
    }
    # seed 1: ranks 1 1 6 7; seed 2: 4 5 6 7
    assert links["few"]["facts"]["1000"] == {
        "every": 25.0,
        "rank": (3.5 + 5.5) / 2,
        "found": {"score": 100.0, "n": 2},
        "missed": {"score": pytest.approx(100 / 6), "n": 6},
    }


def test_cost(family: Path, report: Run) -> None:
    trained(family, "few-s1", [100, 200])
    trained(family, "few-s2", [100, 400])
    trained(family, "plain-s2", [300])
    trained(family, "plain-s3", [900], status="running")
    found = report(family)["families"]["mamba-10m"]
    few, plain = found["training"]["few"], found["training"]["plain"]
    assert (few["seeds"], few["stages"], few["tokens"], few["seconds"]) == ([1, 2], 2, 400, 20)
    assert few["by_seed"]["2"] == {"tokens": 500, "seconds": 20}
    assert (plain["seeds"], plain["tokens"]) == ([2], 300)
    assert found["times"]["few"]["lengths"] == {"500": {"read": 250, "answer": 10, "both": 260}}
    assert found["times"]["plain"]["lengths"]["500"]["both"] == 135


def test_controls_and_forms(tmp_path: Path, report: Run) -> None:
    folder = tmp_path / "mamba-10m"
    own = ("two-stage", "stage1", "random", "fixed", "drop", "model-bm25")
    answers = dict.fromkeys(own, "1000 0000")
    run_of(folder, "few-s1", answers)
    run_of(folder, "whole-s1", {**answers, "two-stage": "1111 1111"})
    run_of(folder, "plain-more-s1", {"stage1": "1100 0000"})
    run_of(folder, "plain-s1", {**PLAIN, "plain-drop20": "0000 0000", "plain-bm25": "0000 0000"})
    found = report(folder)["families"]["mamba-10m"]
    assert found["table"] == [
        *("few", "plain", "plain-more", "few: stage1", "few: random", "few: fixed", "few: drop"),
        *("few: model-bm25", "plain-drop20", "plain-bm25", "constant"),
    ]
    assert "whole: random" not in found["rows"]  # another form's controls are not reported
    text = (tmp_path / "report" / "report.md").read_text()
    forms = text[text.index("### All forms") : text.index("### The links")]
    assert "100.0 (100.0-100.0); 25.0" in forms
    rows = [line.split("|")[1].strip() for line in forms.splitlines() if line.startswith("| ")]
    assert [name for name in rows if name[0] not in "-b"] == [
        *("plain", "plain-more", "few", "whole", "few minus", "whole")
    ] * 2
    whole = found["differences"]["whole"]
    assert scores(whole, "difference") == [-75.0, -100.0, -87.5] and whole["seeds"] == [1]
    assert "-75.0 (-100.0 to -50.0) *" in forms and "-100.0 (-100.0 to -100.0) *" in forms
    assert (tmp_path / "report" / "forms.png").read_bytes()[:4] == b"\x89PNG"
    assert "(forms.png)" in text
    controls = text[text.index("### few minus") : text.index("### All forms")]
    assert "| whole" not in controls


def test_recorded_runs_keep_what_they_read(tmp_path: Path, report: Run) -> None:
    """A condition that was renamed has its new name, one of the former BM25 a name of its own."""
    folder = tmp_path / "mamba-10m"
    own = ("two-stage", "stage1", "model-bm25", "two-stage-bm25")
    run_of(folder, "few-s1", dict.fromkeys(own, "1000 0000"))
    past = {"plain-middle": "1100 0000", "plain-bm25": "1111 0000"}
    place = run_of(folder, "plain-s1", {**PLAIN, **past})
    (place / "plain-middle").rename(place / "plain-truncate")
    scores = json.loads((place / "scores.json").read_text())
    conditions = scores["conditions"]
    conditions["plain-truncate"] = conditions.pop("plain-middle")
    words = "the plain model on the passages that BM25 finds (500 tokens)"
    conditions["plain-bm25"]["words"] = words
    (place / "scores.json").write_text(json.dumps(scores))
    run_of(folder, "plain-s2", {**PLAIN, **past, "plain-bm25": "0000 0000"})
    found = report(folder)["families"]["mamba-10m"]
    assert found["table"] == [
        *("few", "plain", "few: stage1", "few: model-bm25", "few: two-stage-bm25", "plain-middle"),
        *("plain-bm25", "plain-bm25-passages64", "constant"),
    ]
    seeds = {name: found["rows"][name]["seeds"] for name in found["table"][-4:-1]}
    assert seeds == {"plain-middle": [1, 2], "plain-bm25": [2], "plain-bm25-passages64": [1]}


def test_unfinished_runs_are_left_out(
    family: Path, report: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = report(family)
    run_of(family, "few-s4", {"two-stage": "0000 0000"}, status="running")
    (family / "asked-test" / "paper-s1").mkdir()
    trained(family, "pairs-s1", [100])
    trained(family, "few-s1", [100])
    output = str(tmp_path / "report")
    words = ["eval", "evidence", str(family), "--main", "few", "--output", output, "--resume"]
    from remamba import cli

    assert cli.main(words) == 0
    assert capsys.readouterr().err.splitlines() == [
        "mamba-10m: left out: few-s4, paper-s1 (not finished); pairs-s1 (not asked)"
    ]
    after = json.loads((tmp_path / "report" / "evidence.json").read_text())
    assert after["families"]["mamba-10m"]["rows"] == before["families"]["mamba-10m"]["rows"]
    text = (tmp_path / "report" / "report.md").read_text()
    assert "- left out, not finished: few-s4, paper-s1" in text


def test_report_has_all_parts(family: Path, report: Run, tmp_path: Path) -> None:
    other = tmp_path / "mamba2-10m"
    run_of(other, "few-s1", {"two-stage": "1111 0000", "stage1": "0000 0000"})
    trained(other, "few-s1", [1234])
    found = report(family, other)
    folder = tmp_path / "report"
    assert json.loads((folder / "evidence.json").read_text()) == found
    text = (folder / "report.md").read_text()
    for part in ("Scores", "few minus each other row", "All forms", "The links of the chain"):
        assert text.count(f"### {part}\n") == 2
    assert "75.0 (50.0-100.0)" in text and "c0ffee" in text and "a GPU" in text
    assert "| facts                 | 4 / 2 | 4 / 2 | 8 / 4 |" in text and "1,234" in text
    assert "forms.png" not in text and not (folder / "forms.png").exists()  # there are no others
    for name in ("scores.png", "difference.png", "links.png"):
        assert (folder / name).read_bytes()[:4] == b"\x89PNG" and f"({name})" in text


def test_without_matplotlib_there_is_no_figure(
    family: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from remamba import cli

    monkeypatch.setitem(sys.modules, "lab.evidence.figures", None)
    output = tmp_path / "report"
    words = ["eval", "evidence", str(family), "--main", "few", "--output", str(output)]
    assert cli.main(words) == 0
    said = capsys.readouterr()
    assert said.err == "no figure: matplotlib is not installed (pip install matplotlib)\n"
    assert "| few         | 2 (1 2) | 75.0 (50.0-100.0) |" in said.out
    assert not list(output.glob("*.png")) and ".png" not in (output / "report.md").read_text()


def ask(family: Path, output: Path, main: str = "few") -> list[object]:
    return ["eval", "evidence", family, "--main", main, "--output", output]


def test_other_data_are_refused(family: Path, refused: Run, tmp_path: Path) -> None:
    other = {**DATA, "/there/test-1000.jsonl": "cc" * 32}
    run_of(family, "paper-s1", {"two-stage": "0000 0000"}, data=other)
    said = refused(*ask(family, tmp_path / "report"))
    assert f"{Path('asked-test') / 'few-s1'} and" in said and "paper-s1 were asked" in said
    assert "bbbbbbbb" in said and "cccccccc" in said
    assert not (tmp_path / "report").exists()


def test_data_may_lie_elsewhere(family: Path, report: Run) -> None:
    moved = {f"/moved{name}": digest for name, digest in DATA.items()}
    run_of(family, "paper-s1", {"two-stage": "0000 0000"}, data=moved)
    assert "paper" in report(family)["families"]["mamba-10m"]["rows"]


def test_other_questions_are_refused(family: Path, refused: Run, tmp_path: Path) -> None:
    file = family / "asked-test/plain-s3/plain/predictions/facts.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    said = refused(*ask(family, tmp_path / "report"))
    assert "plain-s3/plain answers 7 questions of facts, and few-s1 8" in said


def test_main_needs_a_finished_run(family: Path, refused: Run, tmp_path: Path) -> None:
    run_of(family, "whole-s1", {"two-stage": "0000 0000"}, status="running")
    for main in ("whole", "plain", "nobody"):
        said = refused(*ask(family, tmp_path / "report", main))
        assert f"--main {main} has no finished run" in said and "choose of few" in said


def test_folders_that_cannot_be_used(family: Path, refused: Run, tmp_path: Path) -> None:
    output = tmp_path / "report"
    assert "has no asked-dev" in refused(*ask(family, output), "--split", "dev")
    assert "has no asked-test" in refused(*ask(tmp_path / "nowhere", output))
    twice = ["eval", "evidence", family, family, *ask(family, output)[3:]]
    assert "two folders are named mamba-10m" in refused(*twice)
    output.mkdir()
    (output / "mine.txt").write_text("not a report")
    assert "choose another directory" in refused(*ask(family, output))
    assert not (output / "report.md").exists()
