"""`remamba calibrate`, and the commands that read by what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from remamba.methods.rule_table import load_table
from tests.tiny import QUESTION, TEXT, WHOLE, Run, save_tiny


def calibrate(folder: Path, method: str, output: Path, *more: object) -> list[object]:
    words = ["calibrate", "--model", folder / "whole", "--method", method, "--device", "cpu"]
    return [*words, "--text", folder / "doc.txt", "--output", output, "--window-tokens", 30, *more]


@pytest.fixture(scope="module")
def tables(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from remamba import cli

    place = tmp_path_factory.mktemp("tables")
    for method, more in (("filter", ("--decay", 0)), ("scale", ("--steps", 2))):
        words = calibrate(folder, method, place / method, "--windows", 2, *more)
        assert cli.main([str(word) for word in words]) == 0
    return {method: place / method for method in ("filter", "scale")}


def test_it_tells_what_it_made(folder: Path, remamba: Run, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({name: TEXT * 3}) + "\n" for name in ("document", "text")))
    words = calibrate(folder, "scale", tmp_path / "t.json", "--steps", 1, "--json")
    words[words.index("--text")] = "--data"
    words[words.index(folder / "doc.txt")] = rows
    told = remamba(*words)
    table = load_table(tmp_path / "t.json")
    assert told["digest"] == table.digest and told["fingerprint"] == table.fingerprint
    assert told["made"] == table.made
    assert table.made["steps"] == 1 and table.made["seed"] == 0 and table.made["windows"] > 2
    assert table.made["perplexity"]["scaled"] <= table.made["perplexity"]["plain"]


@pytest.mark.parametrize("method", ["filter", "scale"])
def test_a_document_and_its_memory_are_read_by_the_table(
    method: str, folder: Path, tables: dict[str, Path], remamba: Run, tmp_path: Path
) -> None:
    given = ["--model", folder / "whole", "--device", "cpu", "--json"]
    by_table = ["--method", method, "--rule", tables[method]]
    document, short = ["--document", folder / "doc.txt"], ["--max-new-tokens", 6]
    question = ["--question", QUESTION]
    whole = remamba("ask", *given, *document, *question, *short, *by_table)
    assert whole["method"]["name"] == method
    assert whole["method"]["digest"] == load_table(tables[method]).digest
    remamba("read", folder / "doc.txt", *given, *by_table, "--output", tmp_path / "memory")
    found = remamba("ask", *given, "--memory", tmp_path / "memory", *question, *short)
    texts = [told["answers"][0]["answer"] for told in (whole, found)]
    assert texts[0] == texts[1]


def test_what_cannot_be_used_is_one_line(
    folder: Path, tables: dict[str, Path], refused: Run, tmp_path: Path
) -> None:
    out = tmp_path / "t.json"
    assert "give --text FILE or --data FILE" in refused(
        "calibrate", "--model", folder / "whole", "--method", "scale", "--output", out
    )
    assert "--decay has no effect with --method scale" in refused(
        *calibrate(folder, "scale", out, "--decay", 0.1)
    )
    assert "--clip 1 must be a share" in refused(*calibrate(folder, "filter", out, "--clip", 1))
    assert "--steps 0 must be at least 1" in refused(*calibrate(folder, "scale", out, "--steps", 0))
    long = calibrate(folder, "filter", out)
    long[long.index(30)] = 99_999
    assert "no text has 99,999 tokens" in refused(*long)
    assert "--overwrite" in refused(*calibrate(folder, "filter", tables["filter"]))
    assert not out.exists()
    ask = ["ask", "--document", folder / "doc.txt", "--question", QUESTION, "--device", "cpu"]
    ask += ["--model", folder / "whole"]
    for more, said in (
        (("--method", "filter"), "needs a table for this model"),
        (("--method", "filter", "--rule", tables["scale"]), "is of the method scale"),
        (("--method", "plain", "--rule", tables["scale"]), "--rule"),
        (("--method", "scale", "--rule", tables["scale"], "--factor", 0.5), "give either rule"),
        (("--method", "decimate", "--decimate-layers", 7), "the model's layers are 0 to 1"),
        (("--method", "filter", "--factor", 0.5), "--factor 0.5 has no effect with the method"),
        (("--method", "scale", "--rule", tmp_path / "none.json"), "none.json cannot be read"),
    ):
        assert said in refused(*ask, *more)
    ask[ask.index(folder / "whole")] = save_tiny(tmp_path / "other", seed=5, compression=WHOLE)
    for method, table in tables.items():
        said = refused(*ask, "--method", method, "--rule", table)
        assert f"{table} was calibrated for another model" in said
