"""What is carried between passes: the states of a batch, and the text behind them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from remamba.errors import InputError
from remamba.fields import shown
from remamba.files import whole_file
from remamba.model.layer_rules import Scaling

CHECKSUM = "checksum"
STATE_FORMAT = "remamba-state-1"


class Text(NamedTuple):
    """What `generate` has read and written with a cache: the text that a next call goes on from.

    The last token of it was generated and is not in the states yet.
    """

    ids: Tensor
    """(b, l) int64, prompt and answer, left-padded; the answer alone where no ids were given."""
    lengths: Tensor
    """(b,) real tokens of each row; on the host."""
    behind_end: Tensor
    """(b,) tokens of padding that each row's states read behind its end token; on the host."""
    is_whole: Tensor
    """() bool, False where the prompt was given as embeddings, so that its ids are not known."""

    @property
    def pending(self) -> Tensor:
        """(b, 1) each row's last token."""
        return self.ids[:, -1:]

    def select(self, index: Tensor) -> Text:
        """The rows `index` (n,)."""
        here = index.to("cpu")
        ids = self.ids.index_select(0, index.to(self.ids.device))
        return Text(ids, self.lengths[here], self.behind_end[here], self.is_whole)

    def begins(self, ids: Tensor, lengths: Tensor) -> bool:
        """Whether each of the right-padded rows (b, n), lengths (b,), begins with its text."""
        if (
            len(ids) != len(self.ids)
            or not bool(self.is_whole)
            or bool((lengths < self.lengths).any())
        ):
            return False
        rows = zip(ids.cpu(), self.ids.cpu(), self.lengths.tolist(), strict=True)
        return all(torch.equal(row[:n], text[len(text) - n :]) for row, text, n in rows)


class StateHome(Protocol):
    """Memory in which a decode step updates the states of a batch in place."""

    def states(self, rows: int) -> tuple[list[Tensor], list[Tensor]]:
        """Copies of the first rows' conv_states and ssm_states."""


class StateCache:
    """Convolution windows and SSM states of a batch, one pair a layer.

    `conv_states[i]` is (b, w - 1, channels), the last inputs of the convolution; `ssm_states[i]` is
    float32, (b, e, n) in Mamba and (b, h, p, n) in Mamba-2. Both are None until a pass fills them.

    While a decode step updates the states in place, they lie in its memory (`StateHome`). Whoever
    reads them gets a copy, so that what was read never changes.

    `rule` is what the backbone reads later tokens by, None as plain Mamba: it belongs to the states
    as their numbers do. `kept` is what stage 2 kept of the prompt. `text` is set by `generate`, so
    that the next call continues exactly behind it.
    """

    is_compileable = False

    def __init__(self, num_layers: int):
        self._conv_states: list[Tensor | None] = [None] * num_layers
        self._ssm_states: list[Tensor | None] = [None] * num_layers
        self._home: StateHome | None = None
        self._rows = 0
        self.rule: Scaling | None = None
        self.kept: Any = None
        self.text: Text | None = None

    @property
    def conv_states(self) -> list[Tensor | None]:
        self.move_out()
        return self._conv_states

    @conv_states.setter
    def conv_states(self, states: list[Tensor | None]) -> None:
        self.move_out()
        self._conv_states = states

    @property
    def ssm_states(self) -> list[Tensor | None]:
        self.move_out()
        return self._ssm_states

    @ssm_states.setter
    def ssm_states(self, states: list[Tensor | None]) -> None:
        self.move_out()
        self._ssm_states = states

    def is_at(self, home: StateHome) -> bool:
        return self._home is home

    def move_in(self, home: StateHome) -> None:
        """The states are now those that `home` updates, until somebody reads them."""
        self._rows = self.batch_size
        layers = len(self._conv_states)
        self._conv_states, self._ssm_states = [None] * layers, [None] * layers
        self._home = home

    def move_out(self) -> None:
        """Copy the states out of their home; they are this cache's own again."""
        if self._home is not None:
            home, self._home = self._home, None
            conv, ssm = home.states(self._rows)
            self._conv_states, self._ssm_states = list(conv), list(ssm)

    def __getstate__(self) -> dict[str, Any]:
        self.move_out()
        return self.__dict__

    @property
    def is_filled(self) -> bool:
        return self._home is not None or self._ssm_states[0] is not None

    @property
    def batch_size(self) -> int:
        """Rows held; 0 when nothing has been read."""
        if self._home is not None:
            return self._rows
        return 0 if self._ssm_states[0] is None else self._ssm_states[0].shape[0]

    def update(self, layer: int, conv_state: Tensor, ssm_state: Tensor) -> None:
        self.conv_states[layer] = conv_state
        self.ssm_states[layer] = ssm_state

    def assign(self, other: StateCache) -> None:
        """Take over another cache's states, so that every holder of this cache sees them."""
        self.conv_states, self.ssm_states = other.conv_states, other.ssm_states
        self.rule, self.kept, self.text = other.rule, other.kept, other.text

    def reset(self) -> None:
        """Forget everything: the next pass starts from zero states."""
        self.assign(StateCache(len(self.conv_states)))

    def _map(self, function: Any) -> StateCache:
        other = StateCache(len(self.conv_states))
        for name in ("conv_states", "ssm_states"):
            states = getattr(self, name)
            setattr(other, name, [None if state is None else function(state) for state in states])
        other.rule, other.kept, other.text = self.rule, self.kept, self.text
        return other

    def copy(self) -> StateCache:
        """A cache of its own that holds the same tensors, until a pass replaces them."""
        return self._map(lambda state: state)

    def clone(self) -> StateCache:
        """A cache of its own that shares no storage."""
        return self._map(lambda state: state.clone())

    def select(self, index: Tensor) -> StateCache:
        """The rows `index` (n,), in that order; rows may repeat."""
        chosen = self._map(lambda state: state.index_select(0, index.to(state.device)))
        chosen.kept = None if self.kept is None else self.kept.select(index)
        chosen.text = None if self.text is None else self.text.select(index)
        return chosen

    @classmethod
    def side_by_side(cls, parts: Sequence[StateCache]) -> StateCache:
        """The rows of filled caches, in their order."""
        found = cls(len(parts[0].conv_states))
        found.rule = parts[0].rule
        assert all(part.rule == found.rule for part in parts), "states of several rules"
        for layer in range(len(found.conv_states)):
            conv = [part.conv_states[layer] for part in parts]
            ssm = [part.ssm_states[layer] for part in parts]
            found.update(layer, torch.cat(conv), torch.cat(ssm))  # type: ignore[arg-type]
        return found

    def scale_rows(self, factor: Tensor) -> StateCache:
        """States times `factor` (b,): 0 gives a row that has read nothing, 1 leaves it."""
        return self._map(lambda state: state * factor.to(state).view(-1, *[1] * (state.dim() - 1)))

    def to(self, device: torch.device | str) -> StateCache:
        moved = self._map(lambda state: state.to(device))
        moved.kept = None if self.kept is None else self.kept.to(device)
        return moved

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i takes the states of row `beam_idx[i]` (called by beam search)."""
        self.assign(self.select(beam_idx))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0, because a state has no length; generation asks, and must not cut its inputs by it."""
        return 0

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """The states by name, as they are written to a file."""
        named = {}
        for i, (conv, ssm) in enumerate(zip(self.conv_states, self.ssm_states, strict=True)):
            if conv is None or ssm is None:
                raise InputError("this cache has read nothing yet: there is no state to save")
            named[f"{prefix}layers.{i}.conv_state"] = conv.detach().contiguous()
            named[f"{prefix}layers.{i}.ssm_state"] = ssm.detach().contiguous()
        if self.rule is not None:
            named |= self.rule.tensors(prefix)
        if self.text is not None:
            named |= {f"{prefix}text.{name}": x for name, x in self.text._asdict().items()}
        return named

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], prefix: str = "") -> StateCache:
        layers = sum(name.startswith(prefix) and name.endswith(".ssm_state") for name in tensors)
        cache = cls(layers)
        for i in range(len(cache.conv_states)):
            name = f"{prefix}layers.{i}."
            cache.update(i, tensors[f"{name}conv_state"], tensors[f"{name}ssm_state"])
        cache.rule = Scaling.from_tensors(tensors, prefix)
        if cache.rule is not None and len(cache.rule.factors) != layers:
            raise InputError(
                f"the states of {layers} layers have a rule of {len(cache.rule.factors)} factors; "
                "read the text again"
            )
        if f"{prefix}text.ids" in tensors:
            cache.text = Text(*(tensors[f"{prefix}text.{name}"] for name in Text._fields))
        return cache

    def save(self, path: str | Path, fingerprint: str = "") -> None:
        """Write the states to a safetensors file, bound to a model by its fingerprint."""
        write_tensors(path, self.tensors(), {"format": STATE_FORMAT, "fingerprint": fingerprint})

    @classmethod
    def load(cls, path: str | Path, fingerprint: str = "") -> StateCache:
        """The states of a file.

        Raises:
            InputError: no such file, no state file, or one of another model.
        """
        tensors, metadata = read_tensors(path, STATE_FORMAT)
        check_fingerprint(path, metadata.get("fingerprint", ""), fingerprint)
        return cls.from_tensors(tensors)


def check_fingerprint(path: str | Path, stored: str, wanted: str) -> None:
    """Raise InputError when a state file was written by another model.

    A memory that no file holds may know no model: it has the fingerprint "".
    """
    if wanted and stored and stored != wanted:
        raise InputError(
            f"{path} was written by another model (its fingerprint is {stored:.20}, this model's "
            f"is {wanted}); read the document again with this model"
        )


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file with a checksum in its header."""
    kept = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    with whole_file(path) as part:
        save_file(kept, part, {**metadata, CHECKSUM: checksum(kept, metadata)})


def checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """SHA-256 of the header's values and of each tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(metadata.items()):
        if name != CHECKSUM:
            digest.update(f"{name}={value}\0".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        if tensor.numel():
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_tensors(
    path: str | Path,
    wanted_format: str,
    check: Callable[[dict[str, str]], None] = lambda header: None,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header of a file that `write_tensors` wrote.

    Args:
        check: refuses a header whose values cannot be used, before a tensor is read.

    Raises:
        InputError: there is no such file, it is of another format, it is corrupt, or no fingerprint
            tells whose states they are.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is no file; `remamba read DOCUMENT --output {path}` makes one")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != wanted_format:
                other = shown(metadata.get("format"))
                raise InputError(f"{path} is no {wanted_format} file (its format is {other})")
            check(metadata)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is truncated or corrupt ({error}); write it again") from error
    # files of version 0.1 have none
    if CHECKSUM in metadata and metadata[CHECKSUM] != checksum(tensors, metadata):
        raise InputError(
            f"{path} was changed after it was written (its checksum is another); write it again"
        )
    return tensors, metadata
