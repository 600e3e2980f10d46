"""The types and ranges of settings, whatever brought them: a file, the command line, a call."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from remamba.errors import InputError

LARGEST = 2**24
"""The most that any size of a model may be: no matrix of two such sizes is beyond what is counted
in 64 bits."""
MOST_INTEGER = 2**63 - 1
SHOWN = 60
"""Characters of a value that a message shows."""


def shown(value: Any) -> str:
    """A value as messages tell it: on one line, and not all of a long one."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of thousands of digits
        return f"an integer of {value.bit_length():,} bits"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def check_value(
    name: str, value: Any, kind: Any, low: float | None = None, high: float | None = None
) -> None:
    """Raise InputError unless a value is of a kind and within bounds.

    Args:
        name: as messages say it: a field's, or a flag.
        kind: bool, int, float, str, a Literal, a union of kinds (None for a missing value), a tuple
            or list of kinds, or a class. Truth values are no numbers, integers are floats, and a
            float is finite.
        low, high: of a number, both allowed.
    """
    if not _is(value, kind):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        bare = name.startswith("--")  # there is no null on a command line
        words = _words(kind, bare=bare)
        if is_number and not _is_finite(value):
            words = words.replace("a number", "a finite number")
        raise InputError(f"{name} = {shown(value)} must be {words}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    low = -MOST_INTEGER if low is None and isinstance(value, int) else low
    high = MOST_INTEGER if high is None and isinstance(value, int) else high
    if (low is None or low <= value) and (high is None or value <= high):
        return
    bounds = f"of at least {low:,}"
    if low is None or (high is not None and value > high):
        bounds = f"of at most {high:,}"
    raise InputError(f"{name} = {shown(value)} must be {_words(kind, bare=True)} {bounds}")


def check_fields(settings: Any, label: Callable[[str], str] = str) -> None:
    """Raise InputError unless each field of a dataclass has the type that it is annotated with.

    Args:
        label: a field's name as messages say it.
    """
    kinds = field_kinds(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            check_fields(value, label)
        check_value(label(field.name), value, kinds[field.name])


_kinds: dict[type, dict[str, Any]] = {}


def field_kinds(settings: type) -> dict[str, Any]:
    """Field of a dataclass -> the kind that `check_value` takes."""
    if settings not in _kinds:
        kinds = get_type_hints(settings)
        _kinds[settings] = {one.name: kinds[one.name] for one in dataclasses.fields(settings)}
    return _kinds[settings]


def _is(value: Any, kind: Any) -> bool:
    origin, members = get_origin(kind), get_args(kind)
    if kind is Any or kind is None or kind is type(None):
        return kind is Any or value is None
    if origin is Literal:
        return any(type(value) is type(word) and value == word for word in members)
    if origin in (Union, types.UnionType):
        return any(_is(value, member) for member in members)
    if origin in (tuple, list):
        if not isinstance(value, origin):
            return False
        if origin is list or members[1:] == (...,):
            return all(_is(each, members[0]) for each in value)
        return len(value) == len(members) and all(map(_is, value, members))
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return _is_finite(value)
    return isinstance(value, origin or kind)


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


WORDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text",
    dict: "settings by name",
}  # fmt: skip


def _words(kind: Any, *, bare: bool = False) -> str:
    """What a kind is called; `bare` leaves out null."""
    origin, members = get_origin(kind), get_args(kind)
    if kind is None or kind is type(None):
        return "null"
    if origin is Literal:
        return f"one of {', '.join(map(str, members))}"
    if origin in (Union, types.UnionType):
        named = [each for each in members if not (bare and each is type(None))]
        return " or ".join(_words(each) for each in named)
    if origin in (tuple, list):
        each = " and ".join(_words(one) for one in members if one is not ...)
        return f"a list of {each}"
    return WORDS.get(kind) or f"a {getattr(origin or kind, '__name__', kind)}"
