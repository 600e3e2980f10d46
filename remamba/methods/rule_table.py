"""The table that a layer rule needs: made by `remamba calibrate`, and bound to one model.

A table is a JSON file. Nothing in it is run; all of it is checked before it is used.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from remamba.errors import InputError
from remamba.files import write_whole
from remamba.methods.base import Method
from remamba.model.layer_rules import KINDS
from remamba.pretrained import known_fingerprint

TABLE_FORMAT = "remamba-rule-1"
LEAST_FACTOR, MOST_FACTOR = 0.01, 100.0
"""Bounds of a layer's factor in `scale`."""


@dataclass(frozen=True)
class RuleTable:
    """What a calibration found for one model."""

    method: str
    """The method that reads by it: filter or scale."""
    fingerprint: str
    """The model it was made for."""
    values: dict[str, Any]
    """Of filter: `lengths`, `from_tokens`, how many `channels` a layer has and, for each of
    `layers`, the `channels` that are global and their `thresholds`, a list for each length. Of
    scale: `of`, and `factors`, one for each layer."""
    made: dict[str, Any] = field(default_factory=dict)
    """How and with what it was made; it changes nothing."""

    @property
    def digest(self) -> str:
        """SHA-256 of what reading depends on: 16 hex digits."""
        told = {"method": self.method, "fingerprint": self.fingerprint, "values": self.values}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def save(self, path: str | Path, name: str | None = None) -> None:
        """Write the table.

        Args:
            name: what errors call the file.
        """
        told = {
            "format": TABLE_FORMAT, "method": self.method, "fingerprint": self.fingerprint,
            "digest": self.digest, "made": self.made, "values": self.values,
        }  # fmt: skip
        write_whole(path, json.dumps(told) + "\n", name)

    def check_model(self, path: str, model: Any) -> None:
        """Raise InputError where the table is another model's."""
        own = known_fingerprint(model)
        if self.fingerprint != own:
            raise InputError(
                f"{path} was calibrated for another model (its fingerprint is {self.fingerprint}, "
                f"this model's is {own}); run `remamba calibrate` with this model"
            )

    @functools.cached_property
    def thresholds(self) -> list[Tensor | None]:
        """Of each layer (lengths, channels) float32, -1 for a channel that is left alone."""
        found: list[Tensor | None] = []
        channels = self.values["channels"]
        for layer in self.values["layers"]:
            if not layer["channels"]:
                found.append(None)
                continue
            dense = torch.full((len(self.values["lengths"]), channels), -1.0)
            dense[:, layer["channels"]] = torch.tensor(layer["thresholds"], dtype=torch.float32)
            found.append(dense)
        return found


def load_table(path: str | Path) -> RuleTable:
    """The table of a file; one that has not changed is read once.

    Raises:
        InputError: there is no such file, it is no table, or it was changed by hand.
    """
    try:
        about = Path(path).stat()
    except OSError as error:
        raise InputError(
            f"the rule {path} cannot be read ({error.strerror}); `remamba calibrate` writes one"
        ) from error
    return _load(str(path), about.st_mtime_ns, about.st_size)


@functools.lru_cache(maxsize=8)
def _load(path: str, changed: int, size: int) -> RuleTable:
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(told, dict) or told.get("format") != TABLE_FORMAT:
            raise ValueError(f"its format is not {TABLE_FORMAT}")
        method, fingerprint, values = told["method"], told["fingerprint"], told["values"]
        if not isinstance(fingerprint, str) or not isinstance(values, dict):
            raise ValueError("its fingerprint or its values are missing")
        table = RuleTable(method, fingerprint, values, dict(told["made"]))
        if told["digest"] != table.digest:
            raise ValueError("it was changed after it was written")
        _check_values(method, values)
    except OSError as error:
        raise InputError(f"the rule {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the rule {path} cannot be used ({reason}); write it again with `remamba calibrate`"
        ) from error
    return table


def _check_values(method: str, values: dict[str, Any]) -> None:
    """Raise ValueError (or KeyError, TypeError) for values that no calibration writes."""
    if method == "scale":
        if values["of"] not in KINDS:
            raise ValueError(f"it scales {values['of']!r}")
        _numbers("factors", values["factors"], LEAST_FACTOR, MOST_FACTOR)
        return
    if method != "filter":
        raise ValueError(f"it is for {method!r}, which is no method with a table")
    lengths = values["lengths"]
    _numbers("lengths", [values["from_tokens"], *lengths], 1, 2**53)
    if not lengths or lengths != sorted(set(lengths)):
        raise ValueError("its lengths do not rise")
    _numbers("channels", [values["channels"]], 1, 2**31)
    for layer in values["layers"]:
        channels, thresholds = layer["channels"], layer["thresholds"]
        for channel in channels:
            if type(channel) is not int or not 0 <= channel < values["channels"]:
                raise ValueError(f"there is no channel {channel!r:.40}")
        if len(thresholds) != (len(lengths) if channels else 0):
            raise ValueError("there is not one list of thresholds for each length")
        for row in thresholds:
            if len(row) != len(channels):
                raise ValueError("there is not one threshold for each channel")
            _numbers("thresholds", row, 0, math.inf)


def _numbers(name: str, given: Sequence[Any], least: float, most: float) -> None:
    for number in given:
        if type(number) not in (int, float) or not least <= number <= most or number == math.inf:
            raise ValueError(f"{name} holds {number!r:.40}")


@dataclass(frozen=True)
class Calibrated(Method):
    """A way of reading whose layer rule has a table, which `remamba calibrate` makes."""

    in_place: ClassVar[str] = ""
    """What may be given in place of a table, for messages."""

    rule: str = field(default="", compare=False)
    """The file of the table."""
    digest: str = ""
    """That of the table's values, which are what counts; "" takes it from the file."""

    def __post_init__(self) -> None:
        if not isinstance(self.rule, str) or not isinstance(self.digest, str):
            raise InputError(
                f"the method {self.name} with rule = {self.rule!r:.60}: give the name of a file "
                "that `remamba calibrate` wrote"
            )
        if self.rule and not self.digest:
            object.__setattr__(self, "digest", self._read().digest)

    @property
    def has_rule(self) -> bool:
        return True

    @property
    def serves_memory(self) -> bool:
        return True

    @property
    def wants_question(self) -> bool:
        return False

    def _read(self) -> RuleTable:
        table = load_table(self.rule)
        if table.method != self.name:
            raise InputError(
                f"the rule {self.rule} is of the method {table.method}, not of {self.name}; give "
                f"--method {table.method}, or another file"
            )
        return table

    def _table(self, model: Any) -> RuleTable:
        """The table, made for this model and the one that was meant.

        Raises:
            InputError: it is not.
        """
        if not self.rule:
            raise InputError(
                f"the method {self.name} needs a table for this model, which `remamba calibrate "
                f"--method {self.name}` writes: give it by --rule FILE{self.in_place}; in Python "
                f"by method={{'name': {self.name!r}, 'rule': FILE}}"
            )
        table = self._read()
        if table.digest != self.digest:
            raise InputError(
                f"the rule {self.rule} is no longer the one that was meant (its digest is "
                f"{table.digest}, and was {self.digest}); give the one that was, or read again"
            )
        table.check_model(self.rule, model)
        return table

    def check(self, model: Any) -> None:
        """See `Method.check`; a memory is answered from without its table, so that may be gone."""
        if not self.rule or (Path(self.rule).is_file() and self._read().digest == self.digest):
            self._table(model)
