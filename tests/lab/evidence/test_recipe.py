"""recipes/evidence.py: commands that exist, branches that differ in their form alone."""

from __future__ import annotations

import json
import lzma
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.commands.data_planted import Args as Planted
from lab.commands.eval_planted import Args as Asked
from lab.planted import make_base
from lab.planted.suite import OPEN, Options, make_tasks
from remamba.cli import _parse
from remamba.commands import train

ROOT = Path(__file__).resolve().parents[3]
RECIPE = ROOT / "recipes" / "evidence.py"
COMMANDS = Path(__file__).parent / "commands.txt.xz"
"""What recipes/evidence.sh of commit 9135b37 ran, but for the branch sentences-true, whose option
is gone. A line that begins with # tells its settings; data are sorted by name."""

# Stands in for python: logs the command, sees that what it reads is there, writes what it would.
STUB = """
import json, os, sys
from pathlib import Path

words = sys.argv[1:]
if words[:2] == ["-m", "lab.evidence.keep"]:
    if os.environ.get("REALLY_KEEP"):
        os.execv(sys.executable, [sys.executable, *words])
    Path(words[3]).mkdir(parents=True)
    (Path(words[3]) / "model.safetensors").touch()
    sys.exit()

def given(name):
    if name not in words:
        return []
    rest = words[words.index(name) + 1 :]
    ends = [i for i, word in enumerate(rest) if word.startswith("--")]
    return [Path(word) for word in rest[: min(ends, default=len(rest))]]

with open(os.environ["RECIPE_LOG"], "a") as file:
    file.write(json.dumps(words) + "\\n")
output = given("--output")[-1]
with open(os.environ["RECIPE_LOG"] + "-gpus", "a") as file:
    file.write(f"{output} {os.environ.get('CUDA_VISIBLE_DEVICES', 'any')}\\n")
for path in [*given("--data"), *given("--base"), *given("--model"), *given("--plain")]:
    if not (path if path.suffix else path / "model.safetensors").is_file():
        sys.exit(f"{path} is not there")
if str(output).endswith(os.environ.get("FAILS", "?")):
    sys.exit("as asked")
if output.suffix == ".jsonl":
    output.parent.mkdir(exist_ok=True)
    output.touch()
    sys.exit()
output.mkdir(parents=True, exist_ok=True)
(output / "tokenizer.json").touch()
if "eval" in words:
    (output / "run.json").write_text('{\\n"status": "finished"\\n}')
elif "--tokenizer-only" not in words:
    if os.environ.get("REALLY_KEEP"):
        import numpy
        from safetensors.numpy import save_file

        save_file({"w": numpy.ones(2, "float32")}, output / "model.safetensors")
    else:
        (output / "model.safetensors").touch()
    (output / "config.json").write_text('{"dtype": "float32", "model_type": "remamba"}')
    (output / "train.json").write_text('{\\n"status": "finished"\\n}')
"""
FREE = {"base", "output", "accumulate"}
FORM = {
    *("method", "keep_ratio", "keep_ratio_schedule", "length", "start", "placement", "adaption"),
    *("selector", "window", "value", "importance", "score_loss"),
    *("num_kept", "score_negatives"),
    *("score_target", "stage1_loss", "document_loss"),
}


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """`recipe(**environment)` runs it on a stub; `recipe.log` are the commands."""
    for name in ("train-00", "train-01", "dev"):
        (tmp_path / f"{name}.jsonl.xz").touch()
    (tmp_path / "classes.txt").touch()
    (tmp_path / "stub.py").write_text(STUB)
    stub = tmp_path / "python"
    stub.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{tmp_path}/stub.py" "$@"\n')
    stub.chmod(0o755)

    def run(really_keep: bool = False, **changes: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "BOOKS": str(tmp_path), "OUT": str(tmp_path / "out")}
        environment |= {"PYTHON": str(stub), "WORKERS": "3", "RECIPE_LOG": str(tmp_path / "log")}
        environment |= {"CLASSES": str(tmp_path / "classes.txt"), **changes}
        if really_keep:
            environment["REALLY_KEEP"] = "1"
            stub.write_text(stub.read_text().replace(" -S ", " "))
        return subprocess.run(
            [sys.executable, str(RECIPE)], env=environment, capture_output=True, text=True
        )

    return run


def recorded() -> dict[str, list[str]]:
    """The settings of a run of the former script -> its commands."""
    runs: dict[str, list[str]] = {}
    for line in lzma.decompress(COMMANDS.read_bytes()).decode().splitlines():
        if line.startswith("# "):
            found = runs[line[2:]] = []
        else:
            found.append(line)
    return runs


FORMER = {"plain-truncate": "plain-middle"}
ADDED = ("two-stage-bm25", "plain-last", "plain-chunks")
"""Conditions that the former script did not ask."""


def meaning(command: str) -> tuple[str, dict[str, list[Any]]]:
    """A command's name and its options; of two equal ones the last counts."""
    name, *parts = command.split(" --")
    options = {}
    for part in parts:
        option, *values = part.split(" ")
        options[option] = [float(v) if re.fullmatch(r"[\d.e-]+", v) else v for v in values]
    # what the former script called or did otherwise, without effect on its results
    if options.get("selector") in (["random"], ["fixed"]):
        options.pop("window", None)  # windows are of top-K alone
    if options.get("adaption") == ["none"]:
        options.pop("importance", None)
    asked = options.get("conditions", [])
    options |= {"conditions": [FORMER.get(one, one) for one in asked if one not in ADDED]}
    return name, options


@pytest.mark.parametrize("settings", recorded())
def test_the_commands_are_those_of_the_former_script(
    recipe: Callable[..., Any], tmp_path: Path, settings: str
) -> None:
    given = dict(re.findall(r"(\w+)=((?:[^ =]+(?: (?!\w+=))?)*)", settings))
    done = recipe(**given)
    assert done.returncode == 0, done.stderr
    scale = "mamba-10m" if given["SEEDS"] == "1" else "mamba2-toy-base2"
    found = []
    for words in commands(tmp_path):
        words = ["make_base", *words[2:]] if "lab.planted.make_base" in words else words[2:]
        said = " ".join(words).replace(f"{tmp_path}/out", "OUT").replace(str(tmp_path), "BOOKS")
        found.append(said.replace(f"OUT/{scale}", "MODELS").replace("OUT/data/", "DATA/"))
    # files of data are written side by side
    data = [line for line in found if line.startswith("data ")]
    data.sort(key=lambda line: line.split(" --output ")[1])
    ours = [meaning(line) for line in [*data, *(line for line in found if line not in data)]]
    theirs = [meaning(line) for line in recorded()[settings]]
    assert len(ours) == len(theirs) > 30
    for one, other in zip(ours, theirs, strict=True):
        assert one == other


def commands(tmp_path: Path) -> list[list[str]]:
    return [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]


def trained(found: list[list[str]]) -> dict[str, dict[str, Any]]:
    """Run -> its options, as `remamba train` reads them."""
    kind = train.args_type(train.Choice())
    lines = [words[3:] for words in found if words[2:3] == ["train"]]
    runs = [train.train_args(_parse(kind, "train", line)) for line in lines]
    return {args.output.split("/out/")[1].split("/", 1)[1]: args.to_dict() for args in runs}


def test_branches_differ_in_their_form_alone(recipe: Callable[..., Any], tmp_path: Path) -> None:
    done = recipe(SEEDS="3", JOBS="3", FAMILY="mamba")
    assert done.returncode == 0, done.stderr
    found = commands(tmp_path)
    asked = []
    for words in found:
        if words[1] == "lab.planted.make_base":
            make_base.build_parser().parse_args(words[2:])
        elif words[2:5] == ["data", "build", "planted"]:
            args = _parse(Planted, "data build planted", words[5:])
            split = args.output.stem.split("-")[0]
            is_held_out = split in ("dev", "test")
            assert args.split == (split if is_held_out else "train")
            books = ["dev"] if is_held_out else ["tra"] * 2
            assert [path.name[:3] for path in args.books] == books
            assert args.tokenizer == tmp_path / "out" / "tokenizer"
            given = {name: getattr(args, name) for name in Options.__dataclass_fields__}
            tasks = tuple(name for name in args.tasks if name != "few-shot")  # needs the classes
            make_tasks(Options(**given | {"tasks": tasks, "weights": None}))
        elif words[2] == "eval":
            asked.append(_parse(Asked, "eval planted", words[4:]))
    runs = trained(found)
    assert [name for name in runs if "/" not in name] == [
        *("base-recall", "base-names", "base-mixed", "base-wide")
    ]
    branches = sorted({name.split("/")[0] for name in runs if "/" in name})
    assert len(branches) == 32
    assert sorted(str(args.output).split("/asked-")[1] for args in asked) == sorted(
        f"{split}/{branch}" for split in ("dev", "test") for branch in branches
    )
    for args in asked:
        assert {path.stem.split("-")[0] for path in args.data} == {args.output.parent.name[6:]}

    forms = {}
    for branch in branches:
        form: list[Any] = []
        for stage in ("read-out", "select", "middle", "long"):
            ours, plain = runs[f"{branch}/{stage}"], runs[f"plain-s3/{stage}"]
            differing = {key for key in ours if ours[key] != plain[key]} - FREE
            if branch == "sentences-no-crowds-s3" and stage == "long":
                assert "data" in differing
                differing -= {"data"}
            if branch == "plain-more-s3":
                assert differing == {"max_steps"} and ours["max_steps"] == 2 * plain["max_steps"]
            else:
                assert differing <= FORM, (branch, differing)
            form.append({key: ours[key] for key in sorted(FORM | {"max_steps", "data"})})
            # only then does a step hold each document once, as these two need
            is_shared = ours["length"] == [1.0, 1.0] and ours["placement"] != "append"
            if ours["method"] == "remamba" and not is_shared:
                needs = (ours["score_negatives"], ours["document_loss"])
                assert needs == ("document", 0.0), branch
        assert form not in forms.values(), f"{branch} is another branch under a second name"
        forms[branch] = form
    assert {form[0]["method"] for name, form in forms.items() if name[:5] == "plain"} == {"mamba"}
    paper = forms["paper-s3"][-1]
    assert paper["length"] == [0.18, 0.18] and paper["keep_ratio"][0] == 0.009
    assert (paper["start"], paper["adaption"], paper["score_loss"]) == (0.0, "selective", 0.0)

    count = len(found)
    assert recipe(SEEDS="3", FAMILY="mamba").returncode == 0
    assert len(commands(tmp_path)) == count  # all of it is there
    assert recipe(SEEDS="4", BRANCHES="whole", FAMILY="mamba").returncode == 0
    added = trained(commands(tmp_path)[count:])
    assert len(added) == 4
    assert all(
        added[f"whole-s4/{s}"]["seed"] != runs[f"whole-s3/{s}"]["seed"] for s in ("select", "long")
    )


def test_the_open_world_is_trained_on_kinds_and_asked_the_open_test(
    recipe: Callable[..., Any], tmp_path: Path
) -> None:
    given = {"SEEDS": "1", "BRANCHES": "plain sentences", "FAMILY": "mamba", "WORLD": "open"}
    done = recipe(**given)
    assert done.returncode == 0, done.stderr
    found = commands(tmp_path)
    tokenizer, base = (words for words in found if words[1] == "lab.planted.make_base")
    assert make_base.build_parser().parse_args(tokenizer[2:]).books_alone
    assert "tokenizer-open" in " ".join(base)
    made = {}
    for words in found:
        if words[2:5] == ["data", "build", "planted"]:
            args = _parse(Planted, "data build planted", words[5:])
            made[args.output.stem] = args
            assert args.output.parent.name == "data-open"
            assert args.tokenizer == tmp_path / "out" / "tokenizer-open"
            make_tasks(Options(**{n: getattr(args, n) for n in Options.__dataclass_fields__}))
    training = [args for args in made.values() if args.split == "train"]
    asked = {task for args in training for task in args.tasks}
    assert {"kinds", "prose"} <= asked and not [task for task in asked if task in OPEN]
    for name, args in made.items():
        if args.split == "train":
            assert {path.name[:5] for path in args.books} == {"train"}
        elif args.split == "dev":
            assert not {*args.tasks} & {*OPEN}
        else:
            assert {*OPEN} < {*args.tasks} and args.tasks[: len(OPEN)] == OPEN
            assert args.documents * args.questions // len(args.tasks) == 512
            assert [path.name[:5] for path in args.apart_from] == ["train", "train"], name
            assert {path.name for path in args.books} == {"dev.jsonl.xz"}
    models = tmp_path / "out" / "mamba-10m-open"
    assert (models / "asked-test" / "sentences-s1" / "run.json").is_file()
    assert recipe(**given | {"WORLD": "closed"}).returncode == 0  # stands beside it
    assert (tmp_path / "out" / "mamba-10m" / "kept" / "plain-s1").is_dir()
    assert recipe(**given | {"WORLD": "flat"}).returncode == 2


def test_a_chain_that_was_cut_off_goes_on_where_it_was(
    recipe: Callable[..., Any], tmp_path: Path
) -> None:
    toy = {"SCALE": "toy", "BRANCHES": "whole few plain", "really_keep": True}
    done = recipe(**toy, FAILS="whole-s1/middle")
    assert done.returncode == 1 and "logs/whole-s1.log" in done.stderr
    models = tmp_path / "out" / "mamba2-toy"
    assert "as asked" in (models / "logs" / "whole-s1.log").read_text()
    assert not (models / "kept" / "whole-s1").exists()
    assert not (models / "asked-test" / "whole-s1").exists()
    assert (models / "asked-test" / "few-s1").exists()  # those behind it went on

    (models / "whole-s1" / "select" / "train.json").write_text('{"status": "running"}')
    before = len(commands(tmp_path))
    done = recipe(**toy)
    assert done.returncode == 0, done.stderr
    again = trained(commands(tmp_path)[before:])
    assert list(again)[:3] == [f"whole-s1/{stage}" for stage in ("select", "middle", "long")]
    assert [args["overwrite"] for args in again.values()] == [True, False, False]

    from safetensors.numpy import load_file
    from safetensors.torch import load_file as load_torch

    weights = load_torch(models / "kept" / "plain-s1" / "model.safetensors")
    assert str(weights["w"].dtype) == "torch.bfloat16"
    config = json.loads((models / "kept" / "plain-s1" / "config.json").read_text())
    assert config == {"dtype": "bfloat16", "model_type": "remamba"}
    assert str(load_file(models / "base" / "model.safetensors")["w"].dtype) == "float32"
    assert not list(models.glob("*-s1/*/model.safetensors"))


def test_branches_go_round_the_gpus_and_the_base_stays(
    recipe: Callable[..., Any], tmp_path: Path
) -> None:
    given = {"SCALE": "toy", "BRANCHES": "plain paper few", "SEEDS": "1 2"}
    done = recipe(**given, GPUS="0 2", JOBS="2", CUDA_VISIBLE_DEVICES="7")
    assert done.returncode == 0, done.stderr
    used: dict[str, set[str]] = {}
    for line in (tmp_path / "log-gpus").read_text().splitlines():
        output, gpu = line.rsplit(" ", 1)
        branch = re.search(r"(plain|paper|few)-s\d", output)
        used.setdefault(branch.group() if branch else "base", set()).add(gpu)
    assert used.pop("base") == {"7"}
    # no conclusion rests on "few"
    assert sorted(used) == ["few-s1", "paper-s1", "paper-s2", "plain-s1", "plain-s2"]
    assert all(len(gpus) == 1 for gpus in used.values())
    assert set.union(*used.values()) == {"0", "2"}

    for stage in ("none", "plain"):
        recipe(**given | {"BRANCHES": stage}, OUT=str(tmp_path / stage))
    assert not list((tmp_path / "none").rglob("*-s1"))
    assert (tmp_path / "none/mamba2-toy/base-wide/model.safetensors").is_file()


def test_a_base_of_another_seed_stands_beside_the_first(
    recipe: Callable[..., Any], tmp_path: Path
) -> None:
    given = {"SCALE": "toy", "BRANCHES": "plain", "FAMILY": "mamba"}
    seeds: dict[str, list[Any]] = {}
    for base_seed in ("0", "2"):
        before = len(commands(tmp_path)) if (tmp_path / "log").exists() else 0
        done = recipe(**given, BASE_SEED=base_seed)
        assert done.returncode == 0, done.stderr
        found = commands(tmp_path)[before:]
        made = [words for words in found if "--family" in words]
        assert [words[words.index("--seed") + 1] for words in made] == [base_seed]
        assert any("planted" in words and "build" in words for words in found) is (base_seed == "0")
        for name, run in trained(found).items():
            seeds.setdefault(name, []).append(run["seed"])
    assert all((len(set(pair)) == 2) is name.startswith("base-") for name, pair in seeds.items())
    assert (tmp_path / "out" / "mamba-toy-base2" / "kept" / "plain-s1").is_dir()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"BRANCHES": "plain wholly"}, "wholly is unknown"),
        ({"FAMILY": "llama"}, "FAMILY=llama"),
        ({"SCALE": "huge"}, "SCALE=huge"),
        ({"BASE_SEED": "two"}, "BASE_SEED=two"),
        ({"BOOKS": "/nowhere"}, "/nowhere holds no train"),
    ],
)
def test_a_wrong_variable_is_told_before_anything_runs(
    recipe: Callable[..., Any], tmp_path: Path, changes: dict[str, str], told: str
) -> None:
    done = recipe(**changes)
    assert done.returncode == 2 and told in done.stderr
    assert not (tmp_path / "log").exists()
