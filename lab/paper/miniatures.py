"""The paper's tables and figures in miniature: which rows, at which settings, on which questions.

The questions are planted documents that come with the package (`recipes/miniature.sh`): they
compare two readings with one reading on a closed set of planted facts, and show no more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lab.asked.conditions import NOBODY, WORDS, Condition, map_conditions
from lab.asked.tasks import PlantedDocument, read_documents
from remamba.errors import InputError
from remamba.methods.base import Method
from remamba.methods.remamba import ReMamba

DATA = Path(__file__).parent.parent / "assets" / "planted" / "miniature.jsonl.xz"
LENGTHS = (150, 250, 500, 1000, 2000)
"""Of the documents, in tokens of remamba-tiny."""
TASKS = ("facts", "two-hop", "many-facts", "retrieval")
EXACT = ("facts", "two-hop", "retrieval")
"""Tasks with one short answer that is right or wrong, as L-Eval's closed-ended ones have."""
TWO_STAGE = "two-stage"
CONSTANT = "constant"
"""What a row says nothing over: the most frequent answer of each task, without a model."""
ROLES = {
    TWO_STAGE: "a ReMamba, asked at its own settings",
    "plain": "a Mamba trained on the same data without the second stage",
    "base": "what both were trained from",
    "paper": "a ReMamba trained in the paper's form",
    "random": "a ReMamba trained with random selection",
    "fixed": "a ReMamba trained with fixed selection",
    "multiplicative": "a ReMamba trained with multiplicative adaption",
    "selective": "a ReMamba trained with selective adaption",
    "middle": "a ReMamba trained with a part of the document as the span",
    "append": "a ReMamba trained with the vectors appended",
}
"""Role -> the model that answers, as ROLE=DIR names it; without one see Row.stand_in."""
FORM = ("selector", "adaption", "placement")
"""Settings that a model given for an ablation must have been trained with."""


class Row(NamedTuple):
    """A row of a table, or a line of a figure."""

    name: str
    role: str
    words: str
    paper: str | None
    """Its counterpart among the settings of lab.paper.rows, without the length."""
    changes: dict[str, Any] | None = {}
    """Of the compression that the model has itself; None: read once, without compression."""
    stand_in: str | None = None
    """Label used when the two-stage model stands in for a missing model; None drops the row."""
    retrained: dict[str, Any] | None = {}
    """In place of `changes` where the role has a model of its own, trained in its form."""


class Miniature(NamedTuple):
    """One of the paper's tables or figures."""

    title: str
    shape: str
    """table | lengths | map."""
    rows: tuple[Row, ...]
    branches: Mapping[str, str] = {}
    """Role -> its branch of recipes/evidence.py, for --train."""
    tasks: tuple[str, ...] = TASKS
    lengths: tuple[int, ...] = LENGTHS
    documents: int = 12
    """Of each task and length, unless a limit is given."""
    map_p: tuple[float, ...] = ()
    map_rho: tuple[float, ...] = ()
    backbone: str | None = None
    """The only kind that may answer."""

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of the rows, each once."""
        return tuple(dict.fromkeys(row.role for row in self.rows))

    def read(self, limit: int | None = None) -> tuple[list[PlantedDocument], dict[str, str]]:
        """The documents that are asked about, and the file's sha256 by its name."""
        documents, hashes = read_documents([DATA], LENGTHS, limit or self.documents)
        asked = [d for d in documents if d.task in self.tasks and d.length in self.lengths]
        return asked, {Path(name).name: found for name, found in hashes.items()}


def span(p: float, rho: float, start: float = 0.0, placement: str = "replace") -> dict[str, Any]:
    """The paper's settings s, p and rho; how scores enter stays the model's own."""
    values = {"start": start, "length": p, "keep_ratio": rho, "num_kept": None}
    return {**values, "placement": placement}


def _own(paper: str = "remamba-sft") -> Row:
    return Row(TWO_STAGE, TWO_STAGE, ROLES[TWO_STAGE], paper)


def _plain(paper: str = "mamba-sft") -> Row:
    words = "stage 1 of the same weights (compression off)"
    return Row("plain", "plain", ROLES["plain"], paper, None, words, None)


def _base(paper: str = "mamba-pre") -> Row:
    return Row("base", "base", ROLES["base"], paper, None, None, None)


def _paper(p: float, rho: float, paper: str = "remamba-sft") -> Row:
    words = f"{ROLES['paper']}, at s = 0, p = {p:g}, rho = {rho:g}"
    return Row("paper", "paper", words, paper, span(p, rho), None, span(p, rho))


def _ablation(name: str, paper: str, changes: dict[str, Any]) -> Row:
    ((setting, value),) = changes.items()
    return Row(name, name, ROLES[name], paper, changes, f"as two-stage, {setting} {value}")


def _middle(start: float) -> Row:
    words = f"the span from s = {start:g} on, p = 0.18, rho = 0.009"
    settings = span(0.18, 0.009, start)
    return Row(f"s{start:.1f}", "middle", words, f"middle{start:.1f}", settings, words, settings)


ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random-select", {"selector": "random"}),
    "fixed": ("fix-select", {"selector": "fixed"}),
    "multiplicative": ("multiplicative", {"adaption": "multiplicative"}),
    "selective": ("remamba-sft", {"adaption": "selective"}),
}
"""Rows of Figure 5 -> their counterpart in the paper, and the setting that is changed."""
_APPENDED = "the vectors of the whole document (rho = 0.009) after the prompt"
_FEW: dict[str, Any] = {"tasks": ("facts", "retrieval"), "lengths": (250, 500, 1000)}
_MAIN = {TWO_STAGE: "sentences", "plain": "plain"}

MINIATURES = {
    "table1": Miniature(
        "Table 1 in miniature: base, plain and two-stage on all tasks",
        "table",
        (_base(), _plain(), _own(), _paper(0.18, 0.009)),
        {**_MAIN, "paper": "paper"},
    ),
    "table2": Miniature(
        "Table 2 in miniature: base, plain and two-stage on tasks with one right answer",
        "table",
        (_base(), _plain(), _own(), _paper(0.20, 0.05)),
        {**_MAIN, "paper": "p20"},
        EXACT,
    ),
    "table3": Miniature(
        "Table 3 in miniature: base, plain and two-stage of Mamba-2 on all tasks",
        "table",
        (
            _base("mamba2-pre"),
            _plain("mamba2-sft"),
            _own("remamba2-sft"),
            _paper(0.25, 0.05, "remamba2-sft"),
        ),
        {**_MAIN, "paper": "p20"},
        backbone="mamba2",
    ),
    "table4": Miniature(
        "Table 4 in miniature: where the span starts",
        "table",
        (
            _own("remamba"),
            *map(_middle, (0.0, 0.1, 0.2, 0.3, 0.4)),
            Row(
                "append",
                "append",
                ROLES["append"],
                "special",
                span(1.0, 0.009, placement="append"),
                _APPENDED,
            ),
        ),
        {TWO_STAGE: "sentences", "middle": "paper", "append": "sentences-append"},
        **_FEW,
        documents=5,
    ),
    "fig1": Miniature(
        "Figure 1 in miniature, its long scores: the base against length", "lengths", (_base(),)
    ),
    "fig3": Miniature(
        "Figure 3 in miniature: plain and two-stage against length, all tasks",
        "lengths",
        (_plain(), _own(), _paper(0.18, 0.009)),
        {**_MAIN, "paper": "paper"},
    ),
    "fig4": Miniature(
        "Figure 4 in miniature: plain and two-stage against length, tasks with one right answer",
        "lengths",
        (_plain(), _own(), _paper(0.20, 0.05)),
        {**_MAIN, "paper": "p20"},
        EXACT,
    ),
    "fig5": Miniature(
        "Figure 5 in miniature: the ablations against length",
        "lengths",
        (
            _plain(),
            _own(),
            *(_ablation(name, *told) for name, told in ABLATIONS.items()),
        ),
        # these differ from `sentences` in one setting each
        {**_MAIN, **{name: f"sentences-{name}" for name in ABLATIONS}},
        documents=8,
    ),
    "fig7": Miniature(
        "Figure 7 in miniature: two-stage over p and rho",
        "map",
        (_own(), _plain()),
        {TWO_STAGE: "sentences"},
        **_FEW,
        documents=3,
        map_p=(0.10, 0.18, 0.30, 1.0),
        map_rho=(0.009, 0.03, 0.1),
    ),
}
"""By the names that the command has. Figure 6, of speed, is `remamba bench fig6`."""


def choose_models(
    miniature: Miniature, given: Mapping[str, str], embedded: Collection[str], default: str
) -> dict[str, str]:
    """Role -> the model that plays it; a role without one is absent.

    Args:
        given: what the user names for a role.
        embedded: names of the models in the package.
        default: of these the two-stage one; "DEFAULT-ROLE" plays another role. Where only Mamba-2
            may answer, it is "DEFAULT-mamba2".

    Raises:
        InputError: a model is given for a role that no row has; or none is in the package that may
            answer, and none is given.
    """
    for role in given:
        if role not in miniature.roles:
            raise InputError(
                f"--models {role}={given[role]}: at scale tiny no row is a {role} here; give one "
                f"of {', '.join(miniature.roles)}"
            )
    if TWO_STAGE in given:  # the embedded ones were trained on other data
        return dict(given)
    stem = default if miniature.backbone is None else f"{default}-{miniature.backbone}"
    if miniature.backbone is not None and stem not in embedded:
        raise InputError(
            f"no {miniature.backbone} model is in the package; give --models {TWO_STAGE}=DIR, or "
            "--train"
        )
    found = {role: f"{stem}-{role}" for role in miniature.roles if f"{stem}-{role}" in embedded}
    if TWO_STAGE in miniature.roles:
        found[TWO_STAGE] = stem
    return {**found, **given}


class Asked(NamedTuple):
    """A row as it is asked."""

    row: Row
    condition: Condition
    is_stand_in: bool
    """The two-stage model answers in place of the role's own."""


def plan_rows(miniature: Miniature, own: Mapping[str, Method]) -> tuple[list[Asked], list[str]]:
    """The rows that can be asked, and a line for each that cannot.

    Args:
        own: role -> the compression that its model has itself.

    Raises:
        InputError: a model is not of the form that its role says, or no row is left.
    """
    asked, lines = [], []
    for row in miniature.rows:
        stands_in = row.role not in own
        if stands_in and row.stand_in is None:
            lines.append(
                f"{row.name} is left out: there is no model for it ({row.words}); give "
                f"--models {row.role}=DIR, or --train"
            )
        elif not (stands_in and _is_same_form(row, own[TWO_STAGE])):
            asked.append(_asked(row, own, stands_in))
    if not asked:
        raise InputError(f"no row can be asked: {lines[0]}")
    return asked, lines


def _is_same_form(row: Row, own: Method) -> bool:
    """An adaption is no ablation where the model has it."""
    adaption = own.compression.adaption if isinstance(own, ReMamba) else None
    return row.role in ("multiplicative", "selective") and adaption == row.role


def _asked(row: Row, own: Mapping[str, Method], stands_in: bool) -> Asked:
    role = TWO_STAGE if stands_in else row.role
    changes = row.changes if stands_in else row.retrained
    if changes is None:
        # named as in other planted runs: it is no model of its own
        name = "stage1" if stands_in else row.name
        words = row.stand_in if stands_in else row.words
        return Asked(row, Condition(name, words or row.words, role), stands_in)
    method = own[role]
    if not isinstance(method, ReMamba):
        raise InputError(f"--models {role}: this model compresses nothing; give a ReMamba")
    settings = method.compression
    trained_so = {} if stands_in or changes else row.changes or {}
    for name in FORM:
        if (wanted := trained_so.get(name)) not in (None, getattr(settings, name)):
            raise InputError(
                f"--models {role}: this model has {name} {getattr(settings, name)}, and not "
                f"{wanted}; give {ROLES[role]}"
            )
    words = (row.stand_in if stands_in else None) or row.words
    return Asked(
        row, Condition(row.name, words, role, ReMamba(settings.replace(**changes))), stands_in
    )


def plan_conditions(
    miniature: Miniature, asked: Sequence[Asked], own: Mapping[str, Method]
) -> list[Condition]:
    """All that is asked: the rows, the best constant answers, then the cells of a map."""
    rows = [*(one.condition for one in asked), Condition(CONSTANT, WORDS[CONSTANT], NOBODY)]
    if not miniature.map_p:
        return rows
    main = own[TWO_STAGE]
    assert isinstance(main, ReMamba), "the rows compress"
    cells = map_conditions(main.compression, miniature.map_p, miniature.map_rho)
    return [*rows, *(replace(cell, answers_by=TWO_STAGE) for cell in cells)]
