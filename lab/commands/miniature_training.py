"""`remamba reproduce --scale tiny --train`: the models of a miniature by recipes/evidence.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from remamba.errors import InputError

if TYPE_CHECKING:
    from lab.commands.reproduce import Args
    from lab.paper.miniatures import Miniature

RECIPE = Path(__file__).parent.parent.parent / "recipes" / "evidence.py"


def train_models(args: Args, miniature: Miniature) -> dict[str, str]:
    """Role -> directory of its model, trained below OUTPUT/models; what is there is kept.

    The family is the paper's (Mamba-2 for table3), or what FAMILY says in the environment, from
    which the recipe has its other settings too; one seed.

    Raises:
        InputError: the recipe, a GPU or the books are missing, or the recipe refuses them.
        SystemExit: the recipe failed.
    """
    import torch

    if not RECIPE.is_file():
        raise InputError(
            f"--train runs recipes/evidence.py, and {RECIPE} is missing: this remamba was not "
            "installed from a checkout; install it with pip install -e CHECKOUT"
        )
    is_toy = os.environ.get("SCALE") == "toy"
    if not torch.cuda.is_available() and not (is_toy and args.device == "cpu"):
        raise InputError(
            "--train needs a GPU, and torch sees none; on a CPU only SCALE=toy in the environment "
            "with --device cpu runs, which learns nothing"
        )
    assert args.books is not None, "checked with the options"
    books = args.books.resolve()
    if not (books / "dev.jsonl.xz").is_file() or not any(books.glob("train-*.jsonl.xz")):
        raise InputError(f"--books {args.books} lacks train-*.jsonl.xz or dev.jsonl.xz; check it")
    family = miniature.backbone or os.environ.get("FAMILY") or "mamba"
    size = "toy" if is_toy else os.environ.get("SIZE") or "10m"
    out = args.output.resolve() / "models"
    environment = {
        **os.environ,
        "BOOKS": str(books),
        "OUT": str(out),
        "FAMILY": family,
        "SIZE": size,
        "SEEDS": "1",
        "BRANCHES": " ".join(dict.fromkeys(miniature.branches.values())) or "none",
        "PYTHON": sys.executable,
    }
    done = subprocess.run([sys.executable, str(RECIPE)], env=environment, stdout=sys.__stderr__)
    if done.returncode == 2:
        raise InputError(f"recipes/evidence.py refused its settings; see above ({out})")
    if done.returncode:
        sys.exit(
            f"remamba: recipes/evidence.py ended with {done.returncode}, see above; --resume goes "
            "on where it was"
        )
    models = out / f"{family}-{size}"
    found = {role: models / "kept" / f"{name}-s1" for role, name in miniature.branches.items()}
    if "base" in miniature.roles:
        found["base"] = models / "base-wide"
    return {role: str(folder) for role, folder in found.items()}
