"""transformers' Auto classes know ReMamba, whichever of the two packages is imported first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import tiny_model

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny model."""
    place = tmp_path_factory.mktemp("auto") / "model"
    tiny_model().save_pretrained(place)
    return place


def run(program: str | Path, saved: Path) -> None:
    """Runs a program, or a script, in a fresh interpreter; `sys.argv[1]` is the model's place."""
    words = [str(program)] if isinstance(program, Path) else ["-c", f"import sys\n{program}"]
    done = subprocess.run(
        [sys.executable, *words, str(saved)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "imports",
    [
        "import remamba; from transformers import AutoConfig",
        "from transformers import AutoConfig; import remamba",
        "import transformers; import remamba; from transformers import AutoConfig",
    ],
)
def test_configurations_in_either_order(imports: str, saved: Path) -> None:
    run(
        f"{imports}\n"
        "config = AutoConfig.from_pretrained(sys.argv[1])\n"
        "assert type(config) is sys.modules['remamba'].ReMambaConfig",
        saved,
    )


@pytest.mark.parametrize(
    "imports",
    [
        "import remamba; from transformers import AutoModel, AutoModelForCausalLM",
        "from transformers import AutoModel, AutoModelForCausalLM; import remamba",
        "from transformers import AutoConfig; import remamba; from transformers import AutoModel",
        "from remamba import ReMambaForCausalLM; from transformers import AutoModel",
        "from remamba.errors import InputError; from transformers import Trainer",
    ],
)
def test_models_in_either_order(imports: str, saved: Path) -> None:
    run(
        f"{imports}\n"
        "from transformers import AutoModel, AutoModelForCausalLM\n"
        "remamba = sys.modules['remamba']\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "assert type(model) is remamba.ReMambaForCausalLM\n"
        "assert type(AutoModel.from_config(model.config)) is remamba.ReMambaModel\n"
        "assert type(AutoModel.from_pretrained(sys.argv[1])) is remamba.ReMambaModel",
        saved,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "within",
    [
        "transformers.modeling_utils",
        "transformers.generation.utils",
        "remamba.generation",
    ],
)
def test_models_when_a_module_that_they_need_imports_the_auto_classes(
    within: str, saved: Path
) -> None:
    """Our models cannot be imported from within such a module: they are registered behind it."""
    run(
        f"""
import builtins, importlib
import remamba
plain, asked = builtins.__import__, []
def circular(name, globals=None, *rest, **options):
    if (globals or {{}}).get("__name__") == {within!r} and not asked:
        asked.append(name)
        importlib.import_module("transformers.models.auto.modeling_auto")
    return plain(name, globals, *rest, **options)
builtins.__import__ = circular
from remamba import ReMambaForCausalLM
assert asked
from transformers import AutoModelForCausalLM
assert type(AutoModelForCausalLM.from_pretrained(sys.argv[1])) is ReMambaForCausalLM
""",
        saved,
    )


def test_one_own_registration_stays(saved: Path) -> None:
    """Who registers a class of one's own for our configuration keeps it, whatever is imported."""
    run(
        """
import remamba
from transformers import AutoModelForCausalLM
class Own(remamba.ReMambaForCausalLM): pass
AutoModelForCausalLM.register(remamba.ReMambaConfig, Own, exist_ok=True)
import remamba.engine.engine, remamba.commands.ask
assert type(AutoModelForCausalLM.from_pretrained(sys.argv[1])) is Own
""",
        saved,
    )


def test_import_alone_loads_neither_package(saved: Path) -> None:
    """Also with transformers imported, as long as its Auto classes are not."""
    run(
        "import transformers\nbefore = set(sys.modules)\nimport remamba\n"
        "new = {name for name in set(sys.modules) - before if not name.startswith('remamba')}\n"
        "assert not {name.split('.')[0] for name in new} & {'torch', 'transformers'}, new",
        saved,
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_worker_processes(method: str, saved: Path, tmp_path: Path) -> None:
    """A pickled configuration and model reach a worker, which knows the Auto classes, too."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import remamba

def work(config, model, place):
    from transformers import AutoConfig, AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(place)
    return [type(x) for x in (config, model, AutoConfig.from_pretrained(place), loaded)]

if __name__ == "__main__":
    model = remamba.ReMambaForCausalLM.from_pretrained(sys.argv[1])
    with ProcessPoolExecutor(1, get_context({method!r})) as pool:
        found = pool.submit(work, model.config, model, sys.argv[1]).result()
    assert found == [remamba.ReMambaConfig, remamba.ReMambaForCausalLM] * 2, found
""")
    run(script, saved)


def test_modules_keep_their_loaders(saved: Path) -> None:
    """Sources are found, by tracebacks and `inspect`, as without the finder."""
    run(
        """
import inspect
import remamba
from remamba import errors
from transformers import AutoConfig
for module in (errors, inspect.getmodule(AutoConfig)):
    assert type(module.__loader__).__name__ == "SourceFileLoader"
    assert module.__spec__.loader is module.__loader__
    assert inspect.getsource(module)
""",
        saved,
    )
