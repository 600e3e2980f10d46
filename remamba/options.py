"""Command-line options that are made from the fields of the dataclass that they fill."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, TypeVar, get_type_hints

from tyro.conf import arg

METAVARS = {float: "SHARE", int: "N"}
T = TypeVar("T", bound=type)


def own_unless_set(default: str) -> str:
    """How help tells a default, None being the model's own setting."""
    return "(default: the model's own)" if default == "None" else f"(default: {default})"


def field_docs(kind: type) -> dict[str, str]:
    """Field -> the text that stands below it in the source of a dataclass."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for line, below in itertools.pairwise(definition.body):
        match line, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(str(said))):
                docs[name] = " ".join(said.split())
    return docs


def add_options(
    settings: type, choices: Mapping[str, tuple[str, ...]], leave_out: Collection[str] = ()
) -> Callable[[T], T]:
    """A decorator: the fields of the dataclass `settings` become fields of the decorated class.

    Each has the field's name and help, and the default None, which leaves the model's own setting.
    The decorated class is made a dataclass afterwards: `@dataclass` stands above this decorator.

    Args:
        choices: field -> the words that it may be.
        leave_out: fields that become no option.
    """
    docs, types = field_docs(settings), get_type_hints(settings)

    def add(decorated: T) -> T:
        for field in dataclasses.fields(settings):
            if field.name in leave_out:
                continue
            kind: Any = types[field.name]
            metavar = next((m for t, m in METAVARS.items() if t in (kind, *_members(kind))), None)
            if words := choices.get(field.name):  # the settings class tells of a wrong word
                metavar = "|".join(words)
            said = re.sub(r"`(\w+)`", lambda m: "--" + m[1].replace("_", "-"), docs[field.name])
            about = arg(metavar=metavar, help=said, help_behavior_hint=own_unless_set)
            option = Annotated[kind | None, about]
            decorated.__annotations__[field.name] = option
            setattr(decorated, field.name, None)
        return decorated

    return add


def _members(kind: Any) -> tuple[Any, ...]:
    return getattr(kind, "__args__", ())


def given(options: Any, settings: type) -> dict[str, Any]:
    """The fields of the settings class that the options give, by name."""
    values = {each.name: getattr(options, each.name, None) for each in dataclasses.fields(settings)}
    return {name: value for name, value in values.items() if value is not None}
