"""The benchmarks' own files from the hub, kept in its cache."""

from __future__ import annotations

import zipfile
from pathlib import Path

from remamba.errors import InputError
from remamba.evals import leval, longbench
from remamba.files import make_directory, write_whole

HUB = "hub"
"""What --data says for the hub."""
REPOSITORIES = {"longbench-e": "THUDM/LongBench", "leval": "L4NLP/LEval"}


def fetch(task: str) -> Path:
    """The folder with a benchmark's files, downloaded if they are not there.

    LongBench comes as one archive (data.zip), whose 13 files are unpacked beside it; L-Eval as
    files.

    Raises:
        InputError: the hub cannot be reached, or its files are not as they were.
    """
    import huggingface_hub

    name = REPOSITORIES[task]
    try:
        if task == "longbench-e":
            archive = Path(huggingface_hub.hf_hub_download(name, "data.zip", repo_type="dataset"))
            return _unpack(archive)
        patterns = [f"*{dataset}.jsonl" for dataset in leval.DATASETS]
        place = Path(
            huggingface_hub.snapshot_download(name, repo_type="dataset", allow_patterns=patterns)
        )
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"--data hub: {name} cannot be fetched ({reason}); give the folder of its files"
        ) from error
    found = sorted({file.parent for file in place.rglob(f"{leval.DATASETS[0]}.jsonl")})
    if len(found) != 1:
        raise InputError(f"--data hub: {place} is laid out in another way; give --data DIR")
    return found[0]


def _unpack(archive: Path) -> Path:
    folder = archive.parent / "longbench-e"
    make_directory(folder)
    with zipfile.ZipFile(archive) as packed:
        members = {Path(name).name: name for name in packed.namelist()}
        for dataset in longbench.DATASETS:
            name = f"{dataset}_e.jsonl"
            if name not in members:
                raise ValueError(f"{archive} holds no {name}")
            if not (folder / name).is_file():
                write_whole(folder / name, packed.read(members[name]))
    return folder
