"""Where a model's name leads, and which names the package brings."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from remamba import plugins, pretrained
from remamba.errors import InputError


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models and a folder of other files."""
    source = Path(pretrained.locate("remamba-tiny"))
    for name in ("remamba-tiny", "remamba-tiny-plain"):
        (tmp_path / name).mkdir()
        shutil.copyfile(source / "config.json", tmp_path / name / "config.json")
    (tmp_path / "planted").mkdir()
    monkeypatch.setattr(pretrained, "ASSETS", tmp_path)
    monkeypatch.setattr(plugins, "found", lambda kind: ())
    return tmp_path


def test_every_model_of_the_assets_is_found_by_its_name(assets: Path) -> None:
    assert list(pretrained.embedded_models()) == ["remamba-tiny", "remamba-tiny-plain"]
    assert pretrained.locate("remamba-tiny-plain") == str(assets / "remamba-tiny-plain")
    for name in ("planted", "owner/remamba-tiny", "../assets/remamba-tiny"):
        assert pretrained.locate(name) == name
    shutil.rmtree(assets / "remamba-tiny")
    with pytest.raises(InputError, match="not in this installation"):
        pretrained.locate("remamba-tiny")


def test_a_directory_goes_before_an_embedded_model(
    assets: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path_factory.mktemp("here")
    (here / "remamba-tiny-plain").mkdir()
    monkeypatch.chdir(here)
    assert pretrained.locate("remamba-tiny-plain") == "remamba-tiny-plain"


@pytest.mark.parametrize("name", ["remamba-tony", "./remamba-tony"])
def test_an_unknown_name_is_told_the_embedded_ones(assets: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"remamba-tiny or remamba-tiny-plain$"):
        pretrained.check_model(name)


def test_the_models_in_the_package_stay_small() -> None:
    models = pretrained.embedded_models()
    assert {"remamba-tiny", "remamba-tiny-mamba2"} < set(models)
    files = [file for folder in models.values() for file in folder.iterdir()]
    assert sum(file.stat().st_size for file in files) <= 32e6
    for name in models:
        kept = {file.name for file in files if file.parent.name == name}
        assert kept == {
            *("README.md", "config.json", "generation_config.json", "model.safetensors"),
            *("tokenizer.json", "tokenizer_config.json"),
        }
