"""The cache of training data: what read_data makes of files, kept for the next run on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from remamba.errors import InputError
from remamba.files import make_directory, whole_file
from remamba.provenance import package_version
from remamba.train.data import TokenData, read_data
from remamba.train.encode import Encoder
from remamba.train.progress import say
from remamba.train.ragged import Ragged
from remamba.train.records import file_hash
from remamba.train.rows import data_files
from remamba.train.targets import AnswerFinder

READING = (
    *("json_lines", "text", "train/chat", "train/data", "train/data_cache", "train/encode"),
    *("train/ragged", "train/records", "train/rows", "train/targets"),
)
"""The modules that tell what `read_data` makes of a file, and how it is kept: a change of one makes
all anew."""
ABOUT = "about"
ARRAYS = ("kinds", "first_question", "sources", "answers")
RAGGED = ("contexts", "questions", "responses", "evidence")
FINDER_ARRAYS = ("group", "begins", "ends")


def read_cached(
    folder: str | None, files: Sequence[str], tokenizer: Any, *, vocab_size: int, **options: Any
) -> TokenData:
    """What `read_data` gives, from a file in `folder` where an earlier call has left it.

    Args:
        folder: made when it is not there; None keeps nothing.
        options: of `read_data`.

    Raises:
        InputError: as `read_data`, or `folder` cannot be made.
    """
    paths = data_files(files)
    hashes = None if folder is None else _hashes(paths)
    if folder is None or hashes is None:
        return read_data(files, tokenizer, vocab_size=vocab_size, **options)
    make_directory(folder, f"--data-cache {folder}")
    key = _key(
        # its ending says how a file is read
        files=[(Path(path).suffix, hashes[path]) for path in paths],
        tokenizer=_traits(tokenizer, vocab_size),
        options={"vocab_size": vocab_size, **options},
    )
    place = Path(folder) / f"{key}.npz"
    data = _load(place, paths, hashes)
    if data is not None:
        say(f"data from the cache: {place}")
        return data
    data = read_data(files, tokenizer, vocab_size=vocab_size, **options)
    # a file that was changed meanwhile is not the one that the key names
    if data.hashes == hashes:
        _save(place, data)
    return data


def _hashes(paths: Sequence[str]) -> dict[str, str] | None:
    """SHA-256 of each file; None when one of them cannot be read."""
    if not all(Path(path).is_file() for path in paths):
        return None
    try:
        return {path: file_hash(Path(path)) for path in paths}
    except OSError:
        return None


def _key(**parts: Any) -> str:
    text = json.dumps({"code": _code(), **parts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _code() -> list[str]:
    """SHA-256 of each module of READING."""
    package = Path(__file__).parent.parent
    return [file_hash(package / f"{name}.py") for name in READING]


def _traits(tokenizer: Any, vocab_size: int) -> dict[str, Any]:
    """All of a tokenizer that Encoder and Chat go by."""
    encoder = Encoder(tokenizer, vocab_size)
    return {
        "backend": encoder.backend.to_str(),
        "prefix": encoder.prefix.tolist(),
        "eos": encoder.eos.tolist(),
        "special": [tokenizer.special_tokens_map, sorted(tokenizer.all_special_ids)],
        "template": getattr(tokenizer, "chat_template", None),
        "versions": [package_version(name) for name in ("tokenizers", "transformers")],
    }


def _save(place: Path, data: TokenData) -> None:
    """Writes a file as a whole or not at all; says so when it cannot be written."""
    try:
        with whole_file(place) as part, part.open("wb") as file:
            np.savez(file, **_pack(data))
    except InputError as error:
        say(f"data cache: {error}; going on without it")


def _load(place: Path, paths: list[str], hashes: dict[str, str]) -> TokenData | None:
    """The data that a file keeps; None when there is none or it cannot be used."""
    try:
        with place.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return _unpack(dict(arrays.items()), paths, hashes)
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever numpy and zipfile raise on a broken file
        say(f"data cache: {place} cannot be used ({type(error).__name__}); making it anew")
        return None


def _pack(data: TokenData) -> dict[str, Any]:
    """All of a TokenData but its paths, as named arrays."""
    about = {"counts": data.counts}
    arrays = {ABOUT: np.array(json.dumps(about)), **{name: getattr(data, name) for name in ARRAYS}}
    ragged = {name: getattr(data, name) for name in RAGGED}
    if data.finder is not None:
        arrays |= {name: getattr(data.finder, name) for name in FINDER_ARRAYS}
        ragged["patterns"] = data.finder.patterns
    for name, (flat, offsets) in ragged.items():
        arrays |= {f"{name}.flat": flat, f"{name}.offsets": offsets}
    return arrays


def _unpack(arrays: dict[str, Any], paths: list[str], hashes: dict[str, str]) -> TokenData:
    """The TokenData of `_pack`, whose files lie at `paths`."""
    about = json.loads(arrays[ABOUT].item())

    def ragged(name: str) -> Ragged:
        return Ragged(arrays[f"{name}.flat"], arrays[f"{name}.offsets"])

    finder = None
    if "patterns.flat" in arrays:
        finder = AnswerFinder(ragged("patterns"), *(arrays[name] for name in FINDER_ARRAYS))
    parts: dict[str, Any] = {name: arrays[name] for name in ARRAYS}
    parts |= {name: ragged(name) for name in RAGGED}
    return TokenData(**parts, files=paths, finder=finder, hashes=hashes, counts=about["counts"])
