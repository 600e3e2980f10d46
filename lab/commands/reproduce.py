"""`remamba reproduce`: one of the paper's tables or figures, run by run, into one folder."""

from __future__ import annotations

import contextlib
import dataclasses
import json as json_module
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from lab.commands.reproduce_output import check_output, given_models, identity, open_output
from remamba.commands.model_options import ModelOptions
from remamba.errors import InputError

if TYPE_CHECKING:
    from lab.paper.rows import Recipe, Setting
    from remamba.commands.eval import Args as EvalArgs

Name = Literal[
    "table1", "table2", "table3", "table4", "fig1", "fig3", "fig4", "fig5", "fig6", "fig7"
]


@dataclass(frozen=True, kw_only=True)
class Args:
    """Run every row or point of a table or figure of the paper, and put them together.

    --scale paper needs the benchmark's files and a model for each role, given as ROLE=DIR; without
    them it tells in one line which. --scale tiny needs neither: it draws the item in miniature, in
    minutes on a CPU, by asking the models that come with the package about planted documents that
    come with it too: two readings beside one on a closed set of planted facts, and no more. Rows
    that have no model of their own are other settings of the same weights, not retrained, and are
    called so; --train trains them first, on a GPU, by recipes/evidence.py. A kill loses nothing:
    --resume goes on.

    Example: remamba reproduce table1 --scale tiny --output t1
    """

    name: Annotated[Positional[Name], arg(metavar="NAME")]
    """table1 to table4, fig1, fig3 to fig7 (fig1: its long scores)."""
    output: Annotated[Path, arg(metavar="DIR")]
    """The folder of the runs, the table and the figure."""
    data: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """For --scale paper: the folder of the benchmark's files, as remamba eval takes it; fig6 needs
    none."""
    scale: Literal["tiny", "paper"] = "paper"
    """paper: the paper's settings and benchmarks; tiny: a miniature that needs no data."""
    models: Annotated[tuple[str, ...], arg(metavar="ROLE=DIR ...", help_behavior_hint="")] = ()
    """A model for each role; at scale tiny in place of the embedded ones, and of rows that lack
    one."""
    partial: bool = False
    """For --scale paper: leave out the rows whose models are not given."""
    limit: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Only the first N questions of each dataset; tiny: N documents of each task and length
    (default: by the item, 3 to 12)."""
    train: bool = False
    """For --scale tiny: first train the models of all rows, below DIR/models; needs a GPU and
    --books."""
    books: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """For --train: folder with train-*.jsonl.xz and dev.jsonl.xz, books as JSON lines."""
    resume: bool = False
    """Go on with what is in the output directory."""
    slots: Annotated[int, arg(metavar="N")] = 8
    """For --scale paper: prompts that a ReMamba answers at once."""
    device: str = "auto"
    """Where the models run: auto, cpu, cuda, cuda:1 ..."""
    json: bool = False
    """Print one JSON object in place of a table."""

    def _without_effect(self) -> list[str]:
        """Options that are given, and that this item at this scale has no use for."""
        if self.name == "fig6":  # a benchmark, timed in one go, which prints JSON in any case
            names = ["data", "models", "partial", "limit", "resume", "slots"]
        else:
            names = ["partial", "slots"] if self.scale == "tiny" else []
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return [name for name in names if getattr(self, name) != defaults[name]]

    def check(self) -> None:
        """Raise InputError for values outside their range and options that do not go together."""
        for name in ("limit", "slots"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"--{name} {value} must be at least 1")
        for name in self._without_effect():
            raise InputError(
                f"--{name} {_words(getattr(self, name))}".rstrip()
                + f" has no effect on {self.name} at scale {self.scale}; leave it out"
            )
        if self.scale == "tiny" and self.data is not None:
            raise InputError(
                f"--data {self.data} is for --scale paper; --scale tiny asks questions that come "
                "with the package: leave it out"
            )
        if self.books is not None and not self.train:
            raise InputError(f"--books {self.books} is for --train; give both, or neither")
        if not self.train:
            return
        if self.scale != "tiny" or self.name == "fig6":
            raise InputError("--train goes with --scale tiny, and with all items but fig6")
        if self.books is None:
            raise InputError("--train needs --books DIR, with train-*.jsonl.xz and dev.jsonl.xz")
        if self.models:
            raise InputError(f"--train makes the models; leave --models {self.models[0]} out")


def _words(value: Any) -> str:
    """An option's value as it is written on the command line; "" of a flag."""
    if value is True:
        return ""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def run(args: Args) -> int:
    """Runs what is missing, then prints the table and draws the figure."""
    from lab.paper.rows import RECIPES, ROLES

    args.check()
    if args.name == "fig6":
        from lab.bench.settings import Fig6Args
        from lab.commands import bench

        return bench.run(Fig6Args(output=args.output, scale=args.scale, device=args.device))
    if args.scale == "tiny":
        from lab.commands import miniature

        return miniature.run(args)
    models = given_models(args, ROLES)
    recipe = _check(args, RECIPES[args.name], models)
    _finish(args, recipe, _run_all(args, recipe, models))
    return 0


def _check(args: Args, recipe: Recipe, models: dict[str, str]) -> Recipe:
    """The recipe with the rows that can be run.

    Raises:
        InputError: the data or a model is missing, or the directory holds something else.
    """
    from lab.paper.rows import ROLES

    missing = [role for role in recipe.roles if role not in models]
    needs = [f"--models {role}=DIR ({ROLES[role]})" for role in missing]
    if args.partial and len(missing) < len(recipe.roles):
        needs = []
        recipe = recipe._replace(settings=tuple(s for s in recipe.settings if s.role in models))
    if args.data is None:
        needs.insert(0, f"--data DIR (the files of {recipe.task})")
    if needs:
        raise InputError(
            f"{args.name} at scale {args.scale} is {len(recipe.settings)} runs of {recipe.task} "
            f"and lacks {'; '.join(needs)}"
        )
    check_output(args)
    return recipe


def _eval_args(args: Args, recipe: Recipe, setting: Setting, model: str) -> EvalArgs:
    from remamba.commands.eval import Args as EvalArgs
    from remamba.evals.run_folder import RECORD_FILE

    assert args.data is not None
    folder = args.output / setting.name
    options: dict[str, Any] = {"model": model, "device": args.device, **setting.compression}
    return EvalArgs(
        task=recipe.task,  # type: ignore[arg-type]
        data=args.data,
        output=folder,
        max_length=setting.max_length,
        limit=args.limit,
        slots=args.slots,
        resume=(folder / RECORD_FILE).is_file(),
        reading=ModelOptions(**options),
    )


def _run_all(args: Args, recipe: Recipe, models: dict[str, str]) -> dict[str, float]:
    """The average score of each row or point; what was there is not asked again."""
    from remamba.commands import eval as eval_command
    from remamba.commands.evaluation import model_type
    from remamba.evals.items import DataFolder
    from remamba.evals.scoring import SCORES_FILE
    from remamba.evals.tasks import find_task

    runs = [_eval_args(args, recipe, s, models[s.role]) for s in recipe.settings]
    # all that can be wrong with data and models is told before anything is written or asked
    eval_command.read_items(runs[0], find_task(recipe.task), DataFolder(runs[0].data))
    for role in recipe.roles:
        model_type(models[role])
    open_output(args)
    averages = {}
    for number, (setting, asked) in enumerate(zip(recipe.settings, runs, strict=True), 1):
        print(f"{setting.name} ({number} of {len(runs)})", file=sys.stderr)
        with contextlib.redirect_stdout(sys.stderr):
            eval_command.run(asked)
        scores = json_module.loads((asked.output / SCORES_FILE).read_text(encoding="utf-8"))
        averages[setting.name] = scores["average"]
    return averages


def _finish(args: Args, recipe: Recipe, averages: dict[str, float]) -> None:
    from remamba.evals.overview import load_runs, runs_table
    from remamba.evals.tables import table
    from remamba.files import write_whole

    runs = load_runs([args.output / setting.name for setting in recipe.settings])
    said = runs_table(runs)
    if any(setting.paper is not None for setting in recipe.settings):
        rows = [(s.name, averages[s.name], s.paper) for s in recipe.settings]
        said += "\n\n" + table(("run", "average", "the paper's"), rows)
    write_whole(args.output / "report.md", f"# {recipe.title}\n\n{said}\n")
    if recipe.shape != "table":
        _draw(args.output / f"{args.name}.png", recipe, averages)
    if args.json:
        print(json_module.dumps({**identity(args), "averages": averages}))
    else:
        print(said)


def _draw(file: Path, recipe: Recipe, averages: dict[str, float]) -> None:
    try:
        from remamba.evals import figures
    except ImportError:
        print("no figure: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
        return
    if recipe.shape == "lengths":
        lines: dict[str, list[tuple[int, float]]] = {}
        for setting in recipe.settings:
            label = setting.name.rpartition("-")[0]
            lines.setdefault(label, []).append((setting.max_length, averages[setting.name]))
        drawn = figures.length_figure(lines)
    else:
        cells = {
            (float(s.compression["keep_ratio"]), float(s.compression["length"])): averages[s.name]
            for s in recipe.settings
        }
        limits = (min(cells.values()), max(cells.values()))
        drawn = figures.heat_map(cells, ("rho", "p"), recipe.title, limits)
    figures.save(drawn, file)
