"""`remamba eval planted`: shared readings change no answer; reports say what the rows say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lab.asked.conditions import WORDS
from remamba import cli
from remamba.methods.base import Method, method_of
from remamba.methods.chunks import Chunks
from remamba.methods.decimate import Decimate
from remamba.methods.memory import DocumentMemory
from remamba.methods.passages import Passages
from remamba.methods.plain import Plain
from remamba.methods.remamba import ReMamba
from remamba.methods.shorten import Drop
from remamba.methods.twice import Twice
from remamba.text import encode
from tests.tiny import BEFORE, PAPER, TEXT, WHOLE, Run, save_tiny, tiny_model, tiny_tokenizer

QUESTIONS = (" Who plays?", " Who lives in Paris, tell me?", " Where is the café?")


def row(number: int, task: str = "facts", repeats: int = 2, questions: int = 2) -> dict[str, Any]:
    """A document of about 50 tokens a repeat; its evidence is a name at two places."""
    document = f"Row {number}. " + TEXT * repeats
    places = [document.index("Helen"), document.rindex("Helen")]
    asked = {
        "answers": ["Helen", "Tom"],
        "response": " Helen",
        "evidence": [[place, place + 12] for place in places],
    }
    return {
        "id": f"{task}-{number}",
        "task": task,
        "metric": "f1" if task == "many-facts" else "exact",
        "new_tokens": 5,
        "tokens": 50 * repeats,
        "document": document,
        "questions": [{"question": QUESTIONS[i], **asked} for i in range(questions)],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and data."""
    path = tmp_path_factory.mktemp("planted")
    for name, settings in (("whole", WHOLE), ("before", BEFORE), ("paper", PAPER)):
        save_tiny(path / name, compression=settings)
    save_tiny(path / "plain", seed=5)
    rows = [row(i) for i in range(3)] + [row(3, repeats=5, questions=3)]
    rows += [row(4, "many-facts", 4), row(5, "many-facts", 4)]
    (path / "data.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    (path / "text.txt").write_text(TEXT * 6)
    for method, options in (("filter", ["--decay", "0"]), ("scale", ["--steps", "2"])):
        words = ["calibrate", "--model", path / "plain", "--text", path / "text.txt", "--method"]
        words += [method, "--window-tokens", 40, "--windows", 2, "--device", "cpu", *options]
        assert cli.main([str(word) for word in (*words, "--output", path / f"{method}.json")]) == 0
    return path


def ask(folder: Path, model: str, output: Path, *more: object) -> list[object]:
    words: list[object] = ["eval", "planted", "--data", folder / "data.jsonl", "--output", output]
    words += ["--model", folder / model, "--lengths", 100, 200, "--device", "cpu", "--json"]
    words += [
        "--plain",
        folder / "plain",
        "--middle-tokens",
        40,
        "--last-tokens",
        30,
        "--bm25-tokens",
        60,
    ]
    words += ["--chunk-tokens", 33, "--decimate-tokens", 40]
    return [*words, *rules(folder), *more]


def rules(folder: Path) -> list[object]:
    return ["--filter-rule", folder / "filter.json", "--scale-rule", folder / "scale.json"]


def predictions(folder: Path) -> dict[str, dict[str, Any]]:
    """All of a condition's rows by id."""
    lines = [f.read_text().splitlines() for f in sorted((folder / "predictions").iterdir())]
    return {(found := json.loads(line))["id"]: found for some in lines for line in some}


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A whole run of all conditions and a map, and its scores.json."""
    output = tmp_path_factory.mktemp("finished") / "run"
    words = ask(folder, "whole", output, "--lengths-p", 0.5, 1, "--keep-ratios", 0.1)
    assert cli.main([str(word) for word in words]) == 0
    return output, json.loads((output / "scores.json").read_text())


def test_every_condition_answers_every_question(finished: tuple[Path, dict[str, Any]]) -> None:
    output, summary = finished
    assert list(summary["conditions"]) == list(WORDS)
    for name in [*WORDS, "map/p0.5-rho0.1", "map/p1-rho0.1"]:
        assert len(predictions(output / name)) == 13
    report = (output / "report.md").read_text()
    assert "## The evidence" in report and "## Time and memory" in report
    assert "BM25's passages are whole paragraphs" in report
    for name in ("report.png", "map.png"):
        assert (output / name).read_bytes()[:4] == b"\x89PNG"
    assert [(cell["p"], cell["rho"]) for cell in summary["map"]] == [(0.5, 0.1), (1.0, 0.1)]


@pytest.mark.parametrize(
    ("condition", "model", "method"),
    [
        ("plain-filter", "plain", "filter"),
        ("plain-scale", "plain", "scale"),
        ("plain-decimate", "plain", Decimate(40)),
        ("plain-chunks", "plain", Chunks(33)),
        ("plain-twice", "plain", Twice()),
        ("two-stage", "whole", ReMamba(WHOLE)),
        ("stage1", "whole", Plain()),
        ("fixed", "whole", ReMamba(WHOLE.replace(selector="fixed"))),
        ("drop", "whole", Drop(0.0, 1.0)),
        ("plain", "plain", Plain()),
        ("map/p0.5-rho0.1", "whole", ReMamba(WHOLE.replace(length=0.5, keep_ratio=0.1))),
    ],
)
def test_answers_are_those_of_each_prompt_alone(
    condition: str, model: str, method: Method | str, folder: Path, finished: Any
) -> None:
    if isinstance(method, str):  # by a table
        method = method_of({"name": method, "rule": str(folder / f"{method}.json")})
    alone = tiny_model(seed=5 if model == "plain" else 3)
    found = predictions(finished[0] / condition)
    for line in (folder / "data.jsonl").read_text().splitlines()[2:5]:
        given = json.loads(line)
        document = encode(tiny_tokenizer(), given["document"]).ids
        for i, question in enumerate(given["questions"]):
            ids = encode(tiny_tokenizer(), question["question"], begins=False).ids
            out = alone.generate(
                torch.tensor([document + ids]),
                question_lengths=torch.tensor([len(ids)]),
                method=method,
                max_new_tokens=5,
                do_sample=False,
                pad_token_id=0,
                return_dict_in_generate=True,
            )
            told = found[f"{given['id']}-{i}"]
            new = out.sequences[0, len(document) + len(ids) :].tolist()
            assert told["pred"] == tiny_tokenizer().decode(new, skip_special_tokens=True)
            if not isinstance(method, ReMamba):
                assert told["kept"] is None
                continue
            assert [at for at, _ in told["kept"]] == [at for at, _ in out.kept.rows()[0]]


def test_a_kept_needle_shows_in_spans_and_ranks(folder: Path, finished: Any) -> None:
    lines = (folder / "data.jsonl").read_text().splitlines()
    documents = {one["id"]: one["document"] for one in map(json.loads, lines)}
    for told in predictions(finished[0] / "two-stage").values():
        ids = encode(tiny_tokenizer(), documents[told["document"]]).ids
        for start, stop in told["evidence"]:
            assert tiny_tokenizer().decode(ids[start:stop]).strip().startswith("Helen Archer")
        for start, stop in told["value"]:
            assert tiny_tokenizer().decode(ids[start:stop]).strip() == "Helen"
        # K = 6 places: an evidence is kept when it ranks among them
        kept = [any(a <= at < b for at, _ in told["kept"]) for a, b in told["evidence"]]
        assert kept == [rank <= 6 for rank in told["ranks"]]
        assert told["span"] == [0, len(ids)]


def test_one_reading_serves_all_conditions(
    folder: Path, remamba: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    whole = ReMamba.read

    def counted(*given: Any) -> tuple[DocumentMemory, Any]:
        read.append(given[2].rows)
        return whole(*given)

    monkeypatch.setattr(ReMamba, "read", counted)
    names = ("two-stage", "stage1", "random", "fixed", "drop")
    remamba(*ask(folder, "before", tmp_path / "run", "--conditions", *names))
    assert sum(read) == 6  # each document once


def test_resumed_is_whole(folder: Path, finished: Any, remamba: Run, tmp_path: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(finished[0], output)
    for file in output.glob("*/predictions/*.jsonl"):
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join(lines[::2]) + lines[1][:20])  # a kill in the middle of a line
    (output / "two-stage" / "times.jsonl").unlink()
    more = ("--lengths-p", 0.5, 1, "--keep-ratios", 0.1)
    remamba(*ask(folder, "whole", output, *more, "--resume"))
    files = sorted(finished[0].rglob("predictions/*.jsonl"))
    assert len(files) == 2 * (len(WORDS) + 2)
    for file in files:
        assert (output / file.relative_to(finished[0])).read_bytes() == file.read_bytes()


def test_shortened_documents(folder: Path, finished: Any) -> None:
    lines = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    sizes = {one["id"]: len(encode(tiny_tokenizer(), one["document"]).ids) for one in lines}
    asked = {q: len(encode(tiny_tokenizer(), q, begins=False).ids) for q in QUESTIONS}
    for name, most in (
        ("plain-drop20", None),
        ("plain-middle", 40),
        ("plain-last", 30),
        ("plain-bm25", 60),
    ):
        for told in predictions(finished[0] / name).values():
            size = sizes[told["document"]]
            read = told["prompt_tokens"] - asked[QUESTIONS[int(told["id"].rsplit("-")[-1])]]
            if most is None:
                assert read == size - int(0.2 * size)
                assert told["left"] == [a >= int(0.2 * size) for a, _ in told["evidence"]]
            elif most == 40:
                assert read == 40
                assert told["left"] == [b <= 20 or a >= size - 20 for a, b in told["evidence"]]
            elif most == 30:
                assert read == 30
                assert told["left"] == [a >= size - 30 for a, _ in told["evidence"]]
            else:
                assert read <= 60


@pytest.mark.parametrize("model", ["whole", "before", "paper"])
def test_bm25_before_two_stages(model: str, folder: Path, remamba: Run, tmp_path: Path) -> None:
    """Each answer is that of the excerpt alone; what was kept is told by the document's places."""
    settings = {"whole": WHOLE, "before": BEFORE, "paper": PAPER}[model]
    names = ("two-stage-bm25", "model-bm25")
    remamba(*ask(folder, model, tmp_path / "run", "--conditions", *names))
    tokenizer, alone = tiny_tokenizer(), tiny_model()
    found = {name: predictions(tmp_path / "run" / name) for name in names}
    for line in (folder / "data.jsonl").read_text().splitlines()[2:5]:
        given = json.loads(line)
        document, offsets = encode(tokenizer, given["document"])
        for i, question in enumerate(given["questions"]):
            ids = encode(tokenizer, question["question"], begins=False).ids
            left = Passages(given["document"], offsets, 60).best(question["question"]).tokens
            assert 0 < len(left) <= 60 < len(document)
            prompt = torch.tensor([[document[place] for place in left] + ids])
            for name, compression in zip(names, (settings, False), strict=True):
                out = alone.generate(
                    prompt,
                    question_lengths=torch.tensor([len(ids)]),
                    compression=compression,
                    max_new_tokens=5,
                    do_sample=False,
                    pad_token_id=0,
                    return_dict_in_generate=True,
                )
                told = found[name][f"{given['id']}-{i}"]
                new = out.sequences[0, prompt.shape[1] :].tolist()
                assert told["pred"] == tokenizer.decode(new, skip_special_tokens=True)
                there = [set(range(a, b)) <= set(left) for a, b in told["evidence"]]
                assert told["left"] == there
                if compression is False:
                    assert told["kept"] is None
                    continue
                kept = [left[at] for at, _ in out.kept.rows()[0]]
                assert [at for at, _ in told["kept"]] == kept
                if model != "paper":
                    # what was cut away lies in the span and was not found
                    assert told["span"] == [0, len(document)]
                    some = [bool({*range(a, b)} & {*left}) for a, b in told["evidence"]]
                    assert [rank is not None for rank in told["ranks"]] == some


def test_constant_is_the_most_frequent_answer(finished: Any) -> None:
    found = predictions(finished[0] / "constant").values()
    assert {told["pred"] for told in found} == {"Helen"}
    entry = finished[1]["conditions"]["constant"]
    assert entry["average"] == 100.0 and entry["times"] == {}


def test_the_summary_says_what_the_rows_say(finished: Any, remamba: Run) -> None:
    output, summary = finished
    for name, entry in summary["conditions"].items():
        rows = predictions(output / name)
        for task, dataset in entry["datasets"].items():
            for length, cell in dataset["lengths"].items():
                here = [
                    told
                    for told in rows.values()
                    if told["task"] == task and told["length"] == int(length)
                ]
                assert (cell["n"], cell["documents"]) == (
                    len(here),
                    len({told["document"] for told in here}),
                )
                if name == "two-stage":
                    every = [all(rank <= 6 for rank in told["ranks"]) for told in here]
                    assert cell["evidence"]["every"] == pytest.approx(100 * np.mean(every))
                    best = [min(told["ranks"]) for told in here]
                    assert cell["evidence"]["rank"] == np.median(best)
                    assert cell["evidence"]["where_stage1_wrong"]["n"] == len(here)
        again = remamba("eval", "score", "--task", "planted", "--output", output / name, "--json")
        assert again["average"] == pytest.approx(entry["average"])
    found = remamba("eval", "compare", output / "stage1", output / "two-stage", "--json")
    pair = summary["paired"]["stage1"]["datasets"]["facts"]
    assert found["datasets"]["facts"] == pair


def test_the_papers_form_tells_inside_from_outside(
    folder: Path, remamba: Run, tmp_path: Path
) -> None:
    found = remamba(*ask(folder, "paper", tmp_path / "run", "--conditions", "two-stage", "stage1"))
    cells = found["conditions"]["two-stage"]["datasets"]["many-facts"]["lengths"]["200"]
    assert cells["evidence"]["across"]["n"] == 4  # the first name inside, the last one behind
    assert "inside" not in cells["evidence"]
    for told in predictions(tmp_path / "run" / "two-stage").values():
        assert told["ranks"][0] is not None and told["ranks"][1] is None


def test_random_selection_draws_by_question_and_seed(
    folder: Path, remamba: Run, refused: Run, tmp_path: Path
) -> None:
    """Whoever else is asked beside it changes nothing."""
    random = ("--conditions", "random")
    for name, more in (("many", ()), ("one", ("--slots", 1)), ("few", ("--limit", 1))):
        remamba(*ask(folder, "whole", tmp_path / name, *random, *more))
    many, one, few = (predictions(tmp_path / n / "random") for n in ("many", "one", "few"))
    kept = [{name: row["kept"] for name, row in found.items()} for found in (many, one, few)]
    assert kept[0] == kept[1] and kept[2].items() < kept[0].items()
    words = ask(folder, "whole", tmp_path / "many", *random, "--resume", "--seed", 1)
    assert "was begun with seed = 0" in refused(*words)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--conditions", "plane"), "--conditions plane: choose of two-stage"),
        (("--conditions", "random", "--method", "plain"), "needs a model that compresses"),
        (("--lengths-p", 0.5), "give both or neither"),
        (("--slots", 0), "--slots 0 must be at least 1"),
        (
            ("--conditions", "plain-truncate"),
            "--conditions plain-truncate is now called plain-middle; give --conditions",
        ),
        (("--middle-tokens", 1), "--middle-tokens 1 must be at least 2"),
        (("--data", "nothing.jsonl"), "nothing.jsonl is no file"),
        (("--lengths-p", 2, "--keep-ratios", 0.1), "length (p) = 2.0 is outside"),
    ],
)
def test_options_that_cannot_be_used(
    more: tuple[object, ...], expected: str, folder: Path, refused: Run, tmp_path: Path
) -> None:
    assert expected in refused(*ask(folder, "whole", tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


def test_plain_conditions_need_a_plain_model(folder: Path, refused: Run, tmp_path: Path) -> None:
    words = ask(folder, "whole", tmp_path / "run", "--conditions", "plain-bm25")
    at = words.index("--plain")
    assert "give --plain DIR" in refused(*words[:at], *words[at + 2 :])


def test_conditions_by_a_table_need_one_of_the_plain_model(
    folder: Path, refused: Run, tmp_path: Path
) -> None:
    words = ask(folder, "whole", tmp_path / "run", "--conditions", "plain-filter")
    at = words.index("--filter-rule")
    assert "give --filter-rule FILE" in refused(*words[:at], *words[at + 2 :])
    words[words.index("--plain") + 1] = folder / "whole"
    assert "filter.json was calibrated for another model" in refused(*words)
    assert not (tmp_path / "run").exists()


def test_answers_end_with_the_text(folder: Path, remamba: Run, tmp_path: Path) -> None:
    given = json.loads((folder / "data.jsonl").read_text().splitlines()[0])
    tokenizer = tiny_tokenizer()
    ids = encode(tokenizer, given["document"]).ids
    ids = ids + encode(tokenizer, given["questions"][0]["question"], begins=False).ids
    out = tiny_model().generate(
        torch.tensor([ids]), method="plain", max_new_tokens=5, do_sample=False, pad_token_id=0
    )
    new = out[0, len(ids) :].tolist()
    save_tiny(tmp_path / "ends", compression=WHOLE, eos_token_id=new[3])
    words = ask(folder, "whole", tmp_path / "run", "--conditions", "stage1")
    words[words.index(folder / "whole")] = tmp_path / "ends"
    remamba(*words)
    told = predictions(tmp_path / "run" / "stage1")["facts-0-0"]
    assert told["new_tokens"] == new.index(new[3])
    ended = new[: new.index(new[3])]
    assert told["pred"] == tokenizer.decode(ended, skip_special_tokens=True)
