"""`remamba eval` end to end on tiny models: predictions, kills, failures, controls, refusals."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from remamba.checkpoints.convert import convert
from remamba.engine import entrance
from remamba.engine.reader import Reader
from remamba.evals import leval, longbench
from tests.evals.toy import leval_folder, leval_row, longbench_folder, longbench_row, write_rows
from tests.tiny import PAPER, WHOLE, Run, save_tiny, tiny_tokenizer

LENGTH = ("--max-length", 660)  # prompts of 160 tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models and the data of both benchmarks."""
    path = tmp_path_factory.mktemp("evals")
    end = {"eos_token_id": 0}
    save_tiny(path / "paper", compression=PAPER, **end)
    save_tiny(path / "whole", compression=WHOLE, **end)
    leval_folder(path / "leval")
    longbench_folder(path / "longbench", "qasper", "trec", "samsum", "lcc")
    return path


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve tokens an answer."""
    for name in longbench.DATASETS:
        monkeypatch.setitem(longbench.new_tokens(), name, 12)
    monkeypatch.setitem(leval.NEW_TOKENS, "authors", 12)


def words(folder: Path, task: str, model: str, output: Path, *more: object) -> list[object]:
    data = folder / task.removesuffix("-e")
    found = ["eval", task, "--data", data, "--model", folder / model, "--output", output]
    return [*found, "--json", *LENGTH, *more]


def rows(run: Path, dataset: str) -> list[dict[str, Any]]:
    text = (run / "predictions" / f"{dataset}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_longbench(folder: Path, remamba: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    scores = remamba(*words(folder, "longbench-e", "paper", out))
    assert list(scores["datasets"]) == ["qasper", "trec", "samsum", "lcc"]
    assert scores == json.loads((out / "scores.json").read_text())
    found = rows(out, "trec")
    assert [row["id"] for row in found] == [f"trec-{i}" for i in range(4)]
    assert all(row["answers"] == ["Tom Hill", "Tom"] for row in found)
    assert [row["length"] for row in found] == [0, 2500, 5000, 7500]
    assert found[0]["all_classes"] == ["Tom Hill", "Nobody"] and "error" not in found[0]
    # p = 0.5 and rho = 0.1 of a prompt of at most 160 tokens
    assert max(len(row["kept"]) for row in found) == 8
    assert all(row["prompt_tokens"] <= 165 and row["new_tokens"] <= 12 for row in found)
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "finished" and record["failed"] == 0
    assert record["settings"]["method"]["compression"]["length"] == 0.5
    assert len(record["settings"]["data"]["qasper_e.jsonl"]) == 64
    report = (out / "report.md").read_text()
    assert "first and last 80, decoded" in report and "p = 0.5 of the prompt" in report
    assert (out / "report.png").read_bytes()[:4] == b"\x89PNG"
    # scores need neither model nor data: the same again from the predictions alone
    again = remamba("eval", "score", "--task", "longbench-e", "--output", out, "--json")
    assert again == scores


def test_leval(folder: Path, remamba: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    more = ("--datasets", "tpo", "sci_fi", "gsm100", "--limit", 1, "--max-length", 2000)
    scores = remamba(*words(folder, "leval", "whole", out, *more))
    assert list(scores["datasets"]) == ["tpo", "gsm100", "sci_fi"]
    assert all(entry["n"] == 1 for entry in scores["datasets"].values())
    constant = scores["datasets"]["sci_fi"]["constant"]
    assert constant == {"answer": "True [fact: False]", "score": 100.0}
    (row,) = rows(out, "sci_fi")
    assert " [fact: " in row["pred"] and row["pred"].endswith("]")
    assert len(row["kept"]) == 6  # of the document, not of the question about the world
    report = (out / "report.md").read_text()
    assert "best constant answer" in report and "p = 1 of the document" in report
    assert "Not in this run: coursera, quality, codeU." in report


def test_samsum_ends_at_a_line_break_but_does_not_begin_with_one(
    folder: Path, remamba: Run, tmp_path: Path
) -> None:
    remamba(*words(folder, "longbench-e", "paper", tmp_path / "run", "--datasets", "samsum"))
    for row in rows(tmp_path / "run", "samsum"):
        assert row["new_tokens"] >= 1 and row["pred"] != ""
        assert "\n" not in row["pred"][:-1]


@pytest.mark.parametrize("task", ["longbench-e", "leval"])
def test_transformers_mamba_and_its_conversion_say_the_same(
    task: str, folder: Path, remamba: Run, tmp_path: Path
) -> None:
    torch.manual_seed(8)
    size = {"vocab_size": len(tiny_tokenizer()), "hidden_size": 24, "num_hidden_layers": 2}
    model = MambaForCausalLM(MambaConfig(**size, state_size=8, eos_token_id=0))
    with torch.no_grad():
        for block in model.backbone.layers:
            block.mixer.out_proj.weight.mul_(8)
    model.save_pretrained(tmp_path / "theirs")
    tiny_tokenizer().save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    common = ("--limit", 2, "--datasets", *(("samsum", "qasper") if "-e" in task else ("gsm100",)))
    for name, more in (("theirs", ()), ("ours", ("--method", "plain"))):
        remamba(*words(folder, task, tmp_path / name, tmp_path / f"run-{name}", *common, *more))
    for dataset in common[3:]:
        ours, theirs = (rows(tmp_path / f"run-{name}", dataset) for name in ("ours", "theirs"))
        assert ours == theirs
        assert len({row["pred"] for row in ours}) > 1  # the prompts matter


def test_a_killed_run_is_resumed_without_repeat_or_loss(
    folder: Path, remamba: Run, tmp_path: Path
) -> None:
    more = ("--slots", 1, "--datasets", "qasper", "lcc")
    asked = words(folder, "longbench-e", "paper", tmp_path / "killed", *more)
    program = (
        "import sys; from remamba import cli; from remamba.evals import longbench\n"
        "longbench.new_tokens().update(dict.fromkeys(longbench.DATASETS, 12))\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, asked)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    file = tmp_path / "killed" / "predictions" / "qasper.jsonl"
    deadline = time.monotonic() + 120
    while not (file.is_file() and file.read_bytes().count(b"\n") >= 1):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    written = file.read_bytes()
    with file.open("ab") as torn:
        torn.write(b'{"id": "qasper-3", "pred": "half of a li')
    remamba(*asked, "--resume")
    assert file.read_bytes().startswith(written)
    remamba(*words(folder, "longbench-e", "paper", tmp_path / "whole", *more))
    for dataset in ("qasper", "lcc"):
        assert rows(tmp_path / "killed", dataset) == rows(tmp_path / "whole", dataset)


def test_a_finished_run_is_not_asked_again(
    folder: Path, remamba: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = words(folder, "leval", "paper", tmp_path / "run", "--datasets", "tpo")
    first = remamba(*asked)

    def nothing(self: object, asks: Any, errors: str) -> Any:
        assert not asks
        return iter(())

    monkeypatch.setattr(Reader, "answer_each", nothing)
    assert remamba(*asked, "--resume") == first


def test_failed_predictions_are_recorded_and_count_as_zero(
    folder: Path, remamba: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = words(folder, "longbench-e", "paper", tmp_path / "run", "--datasets", "qasper")
    plain, made, broken = entrance.prefill, Reader.request_of, None

    def breaking(model: Any, group: Any, options: Any) -> Any:
        if any(job.ids == broken for job in group):
            raise RuntimeError("out of\nmemory")
        return (yield from plain(model, group, options))

    remamba(*asked)
    unbroken = rows(tmp_path / "run", "qasper")

    asked_so_far: list[Any] = []

    def remember(self: Any, ask: Any, known: Any) -> Any:
        nonlocal broken
        found = made(self, ask, known)
        asked_so_far.append(ask)
        if len(asked_so_far) == 2:  # qasper-1
            broken = list(found[0].prompt)
        return found

    monkeypatch.setattr(Reader, "request_of", remember)
    monkeypatch.setattr(entrance, "prefill", breaking)
    scores = remamba(*asked, "--overwrite")
    found = rows(tmp_path / "run", "qasper")
    assert [row["id"] for row in found] == [f"qasper-{i}" for i in range(4)]
    assert found[1]["error"] == "RuntimeError: out of memory" and found[1]["pred"] == ""
    for i in (0, 2, 3):  # scores of a prompt alone and among others differ in their last digits
        assert found[i]["pred"] == unbroken[i]["pred"]
        assert [at for at, _ in found[i]["kept"]] == [at for at, _ in unbroken[i]["kept"]]
    assert scores["datasets"]["qasper"]["n"] == 4
    monkeypatch.setattr(entrance, "prefill", plain)
    remamba(*asked, "--resume")
    assert "error" in rows(tmp_path / "run", "qasper")[1]
    remamba(*asked, "--resume", "--retry-failed")
    assert [row["pred"] for row in rows(tmp_path / "run", "qasper")] == [
        row["pred"] for row in unbroken
    ]


CONTROLS = {
    **{name: ("--selector", name) for name in ("random", "fixed")},
    **{name: ("--method", name) for name in ("plain", "drop", "last", "middle", "last+remamba")},
}


@pytest.mark.parametrize("name", CONTROLS)
def test_controls(name: str, folder: Path, remamba: Run, tmp_path: Path) -> None:
    more = ("--datasets", "lcc", "--limit", 2, *CONTROLS[name])
    remamba(*words(folder, "longbench-e", "paper", tmp_path / "run", *more))
    for row in rows(tmp_path / "run", "lcc"):
        assert "error" not in row
        assert bool(row["kept"]) == (name in ("random", "fixed", "last+remamba"))


@pytest.mark.parametrize("name", ["last", "middle", "bm25"])
def test_shortened_documents(name: str, folder: Path, remamba: Run, tmp_path: Path) -> None:
    more = ("--datasets", "tpo", "--shorten", name, "--shorten-tokens", 60)
    remamba(*words(folder, "leval", "paper", tmp_path / "run", *more, "--max-length", 2000))
    assert "tokens of a document are read" in (tmp_path / "run" / "report.md").read_text()
    without = remamba(
        *words(folder, "leval", "paper", tmp_path / "all", *more[:2], "--max-length", 2000)
    )
    assert without["datasets"]["tpo"]["n"] == 2
    for less, more_read in zip(
        rows(tmp_path / "run", "tpo"), rows(tmp_path / "all", "tpo"), strict=True
    ):
        assert less["prompt_tokens"] < more_read["prompt_tokens"]


def test_truncate_has_another_name(folder: Path, refused: Run, tmp_path: Path) -> None:
    asked = words(folder, "leval", "paper", tmp_path / "run", "--shorten", "truncate")
    assert "--shorten truncate is now called last; give --shorten last" in refused(*asked)
    assert not (tmp_path / "run").exists()


def test_any_causal_model(folder: Path, remamba: Run, refused: Run, tmp_path: Path) -> None:
    size = {"vocab_size": len(tiny_tokenizer()), "hidden_size": 16, "intermediate_size": 16}
    config = LlamaConfig(
        **size, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=300
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    tiny_tokenizer().save_pretrained(tmp_path / "llama")
    asked = words(folder, "longbench-e", tmp_path / "llama", tmp_path / "run", "--datasets", "lcc")
    said = refused(*asked, "--max-length", 2000)
    assert "the model's 300 positions; lower --max-length (for needles, --lengths) by 1212" in said
    assert not (tmp_path / "run").exists()
    assert remamba(*asked)["datasets"]["lcc"]["n"] == 4
    assert rows(tmp_path / "run", "lcc")[0]["kept"] is None
    assert "LlamaForCausalLM" in (tmp_path / "run" / "report.md").read_text()
    said = refused(*asked[:-2], "--output", tmp_path / "x", "--selector", "random")
    assert "--selector is for ReMamba models" in said


def test_directories_of_others_are_refused(
    folder: Path, remamba: Run, refused: Run, tmp_path: Path
) -> None:
    asked = words(folder, "leval", "paper", tmp_path / "run", "--datasets", "tpo", "--limit", 1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    for more in ((), ("--resume",), ("--overwrite",)):
        assert "holds files that are no evaluation" in refused(*asked, *more)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]
    (tmp_path / "run" / "notes.txt").unlink()
    remamba(*asked)
    assert "give --resume or --overwrite" in refused(*asked)
    assert "give one of them" in refused(*asked, "--resume", "--overwrite")
    said = refused(*asked, "--resume", "--selector", "random")
    assert "was begun with method = " in said
    assert "was begun with seed = 0" in refused(*asked, "--resume", "--seed", 1)
    remamba(*asked, "--overwrite", "--seed", 1)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["seed"] == 1


def test_changed_data_is_not_resumed(
    folder: Path, remamba: Run, refused: Run, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "leval" / "tpo.jsonl", leval_row(1)).parent
    asked = words(folder, "leval", "paper", tmp_path / "run")
    asked[asked.index("--data") + 1] = data
    remamba(*asked)
    write_rows(data / "tpo.jsonl", leval_row(1), leval_row(1))
    assert "was begun with data = " in refused(*asked, "--resume")


FINE = longbench_row(1)
BROKEN_LONGBENCH: dict[str, tuple[list[Any], str]] = {
    "no context": ([FINE, longbench_row(2, context=None)], ":2: 'context' is null"),
    "empty context": ([longbench_row(2, context="")], ":1: 'context' is empty"),
    "no input": ([{k: v for k, v in FINE.items() if k != "input"}], ":1: 'input' is missing"),
    "answers null": ([longbench_row(2, answers=None)], ":1: 'answers' is null"),
    "answers empty": ([longbench_row(2, answers=[])], ":1: 'answers' is empty"),
    "length null": ([longbench_row(2, length=None)], ":1: 'length' is null"),
    "no id": ([longbench_row(2, _id=None)], ":1: '_id' is null"),
    "same id": ([FINE, longbench_row(2), FINE], ":3: _id 'qasper-1' was in this file"),
    "other dataset": ([longbench_row(1, "lcc")], ":1: 'dataset' is 'lcc' in a file of qasper"),
    "ten million": ([longbench_row(1, context="x " * 5_000_000)], ":1: 'context' has 10,000,000"),
    "not UTF-8": ([FINE, '{"context": "é"}'.encode("latin-1")], ":2: not UTF-8"),
    "torn": ([FINE, json.dumps(FINE).encode()[:-5]], ":2: no JSON object"),
    "empty": ([], "holds no row"),
    "a list": ([[1]], ":1: a list in place of a row"),
}
BROKEN_LEVAL: dict[str, tuple[str, list[Any], str]] = {
    "more questions": (
        "tpo",
        [leval_row(2, outputs=["A"])],
        ":1: 2 'instructions' and 1 'outputs'",
    ),
    "none": ("tpo", [leval_row(0)], ":1: 0 'instructions'"),
    "empty answer": ("tpo", [leval_row(1), leval_row(1, outputs=[" "])], ":2: question 1 or its"),
    "null answer": ("tpo", [leval_row(1, outputs=[None])], ":1: 'outputs' must be a list of texts"),
    "no fact": ("sci_fi", [leval_row(1, outputs=["True"])], ":1: question 1: 'True' lacks '[fact"),
    "no input": ("tpo", [leval_row(1, input=None)], ":1: 'input' is null"),
    "no number": ("gsm100", [leval_row(1, outputs=["four"])], ":1: question 1: nothing in 'four'"),
}


def check_refused(refused: Run, folder: Path, tmp_path: Path, file: Path, expected: str) -> None:
    task = "longbench-e" if file.name.endswith("_e.jsonl") else "leval"
    asked = words(folder, task, "paper", tmp_path / "run")
    asked[asked.index("--data") + 1] = file.parent
    said = refused(*asked)
    assert str(file) in said and expected in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("case", BROKEN_LONGBENCH)
def test_longbench_rows_that_cannot_be_asked(
    case: str, folder: Path, refused: Run, tmp_path: Path
) -> None:
    broken, expected = BROKEN_LONGBENCH[case]
    longbench_folder(tmp_path / "data", "trec")
    file = write_rows(tmp_path / "data" / "qasper_e.jsonl", *broken)
    check_refused(refused, folder, tmp_path, file, expected)


@pytest.mark.parametrize("case", BROKEN_LEVAL)
def test_leval_rows_that_cannot_be_asked(
    case: str, folder: Path, refused: Run, tmp_path: Path
) -> None:
    dataset, broken, expected = BROKEN_LEVAL[case]
    file = write_rows(tmp_path / "data" / f"{dataset}.jsonl", *broken)
    check_refused(refused, folder, tmp_path, file, expected)


def test_answers_that_name_no_paragraph(folder: Path, refused: Run, tmp_path: Path) -> None:
    row = longbench_row(1, "passage_retrieval_en", answers=["Paragraph 7", "7"])
    file = write_rows(tmp_path / "data" / "passage_retrieval_en_e.jsonl", row)
    check_refused(refused, folder, tmp_path, file, ":1: the answer '7' is no 'Paragraph N'")


def test_truncated_gz(folder: Path, refused: Run, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "data" / "tpo.jsonl.gz", leval_row(2))
    file.write_bytes(file.read_bytes()[:-9])
    check_refused(refused, folder, tmp_path, file, "is truncated or corrupt after line")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--limit", 0), "--limit 0 must be at least 1"),
        (("--slots", 0), "--slots 0 must be at least 1"),
        (("--retry-failed",), "give --resume too"),
        (("--datasets", "hotpotqa"), "--datasets hotpotqa is none of leval's"),
        (("--datasets", "codeU"), "lacks the file of codeU"),
        (("--max-length", 500), "--max-length 500 leaves no prompt"),
        (("--keep-ratio", 2), "keep_ratio (rho) = 2.0 is outside"),
        (("--model", "nowhere/at/all"), "--model nowhere/at/all is no directory"),
    ],
)
def test_options_that_cannot_be_used(
    more: tuple[object, ...], expected: str, folder: Path, refused: Run, tmp_path: Path
) -> None:
    assert expected in refused(*words(folder, "leval", "paper", tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


def test_data_folders_that_cannot_be_used(folder: Path, refused: Run, tmp_path: Path) -> None:
    asked = words(folder, "leval", "paper", tmp_path / "run")
    for place, expected in ((tmp_path / "none", "is no directory"), (tmp_path, "holds no file of")):
        asked[asked.index("--data") + 1] = place
        assert expected in refused(*asked)
