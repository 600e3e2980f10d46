"""Memory files that were changed: told in one line, whatever was changed of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from remamba import InputError
from remamba.methods.chunks import Chunks
from remamba.methods.scale import Scale
from remamba.model.states import CHECKSUM, checksum
from tests.exactness import FORMS, tiny_model, tokens

METHODS: dict[str, Any] = {
    "chunks": Chunks(32), "remamba": None, "plain": "plain", "scale": Scale(factor=0.5),
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A memory of each kind."""
    folder, model = tmp_path_factory.mktemp("memories"), tiny_model("mamba")
    for name, method in METHODS.items():
        given = {"compression": FORMS["whole"]} if method is None else {"method": method}
        model.read(tokens(1, 70), **given).save(folder / name)
    return {name: folder / name for name in METHODS}


def contents(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118


def load(file: Path) -> None:
    """Loads a memory and asks it."""
    model = tiny_model("mamba")
    with torch.no_grad():
        model(tokens(1, 4), memory=model.load_memory(file))


def refused(file: Path) -> str:
    with pytest.raises(InputError) as caught:
        load(file)
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)
    return str(caught.value)


def test_one_byte_changed(files: dict[str, Path], tmp_path: Path) -> None:
    data = bytearray(files["remamba"].read_bytes())
    for place in (len(data) - 1, len(data) // 2):
        changed = bytearray(data)
        changed[place] ^= 1
        (tmp_path / "m").write_bytes(changed)
        assert "changed after it was written" in refused(tmp_path / "m")


@pytest.mark.parametrize("value", ['""', "NaN", "-1", "[]", "null", "{", '{"name": 3}', "{}"])
def test_a_header_that_tells_no_method(value: str, files: dict[str, Path], tmp_path: Path) -> None:
    tensors, header = contents(files["remamba"])
    for name in ("method", "compression"):
        if name == "compression" and value in ("null", "{}"):
            continue  # what version 0.1 wrote for plain Mamba; and all settings left at their own
        told = {key: header[key] for key in ("format", "fingerprint")} | {name: value}
        save_file(tensors, tmp_path / "m", told)
        refused(tmp_path / "m")


@pytest.mark.parametrize("mark", ["", None, "0123456789abcdef"])
def test_a_fingerprint_that_is_not_the_models(
    mark: str | None, files: dict[str, Path], tmp_path: Path
) -> None:
    tensors, header = contents(files["remamba"])
    told = {key: header[key] for key in ("format", "method")}
    save_file(tensors, tmp_path / "m", told if mark is None else {**told, "fingerprint": mark})
    said = refused(tmp_path / "m")
    assert ("another model" if mark else "does not tell whose states") in said


def test_a_memory_without_its_rule(files: dict[str, Path], tmp_path: Path) -> None:
    """States that a rule has written, and a file that does not tell it; and the reverse."""
    tensors, header = contents(files["scale"])
    rule = tensors.pop("cache.rule.steps")
    told = {key: header[key] for key in ("format", "fingerprint", "method")}
    save_file(tensors, tmp_path / "m", told)
    assert "have no layer rule" in refused(tmp_path / "m")
    tensors, header = contents(files["plain"])
    told = {key: header[key] for key in ("format", "fingerprint", "method")}
    save_file({**tensors, "cache.rule.steps": rule}, tmp_path / "m", told)
    assert "have a layer rule" in refused(tmp_path / "m")


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10**12), st.floats(), st.text(max_size=5),
    st.lists(st.integers(-2, 2), max_size=2),
    st.dictionaries(st.sampled_from(["name", "tokens", "compression", "x"]), st.text(max_size=3)),
)  # fmt: skip


@settings(
    max_examples=250, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(data=st.data())
def test_any_change_of_header_or_tensors(
    data: st.DataObject, files: dict[str, Path], tmp_path: Path
) -> None:
    """With a checksum that fits, as a program would write it: it loads, or is refused in a line."""
    kind = data.draw(st.sampled_from(sorted(METHODS)))
    tensors, header = contents(files[kind])
    del header[CHECKSUM]
    if data.draw(st.booleans()):
        told = json.loads(header["method"])
        place = data.draw(st.sampled_from([*told, "name", "words"]))
        settings_ = told.get("compression")
        if settings_ and data.draw(st.booleans()):
            settings_[data.draw(st.sampled_from(sorted(settings_)))] = data.draw(VALUES)
        else:
            told[place] = data.draw(VALUES)
        header["method"] = json.dumps(told)
    else:
        name = data.draw(st.sampled_from(sorted(tensors)))
        change = data.draw(st.sampled_from(["gone", "shape", "dtype", "values", "row"]))
        tensor = tensors[name]
        if change == "gone":
            del tensors[name]
        elif change == "shape":
            tensors[name] = tensor.reshape(-1)
        elif change == "dtype":
            tensors[name] = tensor.to(data.draw(st.sampled_from([torch.int32, torch.float16])))
        elif change == "row":
            tensors[name] = torch.cat([tensor, tensor])
        elif not tensor.is_floating_point():
            tensors[name] = tensor + data.draw(st.sampled_from([-(2**40), -1, 1, 400, 2**40]))
        else:
            tensors[name] = torch.full_like(tensor, data.draw(st.sampled_from([0.0, 1e30])))
    file = tmp_path / "m"
    save_file(tensors, file, {**header, CHECKSUM: checksum(tensors, header)})
    try:
        load(file)
    except InputError as error:
        assert "\n" not in str(error)
