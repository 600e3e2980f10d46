"""Building the mixture: block by block into parts, then drawn and shuffled into Parquet shards."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.mixture.mixture import (
    LONG,
    NORMAL,
    SOURCES,
    Filter,
    Instruction,
    Recipe,
    Source,
    draw_normal,
    draw_order,
    instruction,
    length_report,
)
from remamba.errors import InputError
from remamba.files import (
    check_directory,
    holds_nothing,
    make_directory,
    whole_file,
    write_whole,
    writing,
)
from remamba.json_lines import Row
from remamba.provenance import commit, versions
from remamba.train.encode import Encoder
from remamba.train.progress import duration, say
from remamba.train.records import RecordFile, file_hash
from remamba.train.rows import MANIFEST_FILE

BLOCK_ROWS = 10_000
"""Rows of a source that become one part, whole or not at all."""
SHARD_ROWS = 20_000
BUILD_FILE, PARTS, REPORT_FILE = "build.json", "parts", "report.md"
COUNTED = b"remamba"
"""Where a part keeps what was counted while it was made."""
SHOWN_BAD = 20


@dataclass
class Mixture:
    """One build of the mixture.

    Args:
        output: directory of the shards.
        files: of each source, by its name.
        encoder: of the tokenizer.
        tokenizer: what the tokenizer is called.
        recipe: which rows are taken.
        skip_bad_rows: leave out rows that cannot be used, and count them.
        resume: continue a build that was cut off.
        overwrite: replace what another build wrote.

    Raises:
        InputError: the output is taken, or --resume would continue another build.
    """

    output: Path
    files: dict[str, list[str]]
    encoder: Encoder
    tokenizer: str
    recipe: Recipe = field(default_factory=Recipe)
    skip_bad_rows: bool = False
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        self.parts = self.output / PARTS
        self.settings = {
            "recipe": asdict(self.recipe),
            "tokenizer": self.tokenizer,
            "skip_bad_rows": self.skip_bad_rows,
            "files": {
                name: [[path, Path(path).stat().st_size] for path in paths]
                for name, paths in self.files.items()
            },
        }
        self._prepare()

    def _prepare(self) -> None:
        record = self.output / BUILD_FILE
        check_directory(self.output, f"--output {self.output}")
        if self.output.is_dir() and not holds_nothing(self.output):
            if not record.is_file():
                raise InputError(
                    f"--output {self.output} holds files that are no build; choose another"
                )
            if self.overwrite:
                shutil.rmtree(self.parts, ignore_errors=True)
                for path in [*self.output.glob("data-*.parquet"), self.output / MANIFEST_FILE]:
                    path.unlink(missing_ok=True)
            elif not self.resume:
                raise InputError(
                    f"--output {self.output} already holds a build; choose another directory, or "
                    "give --resume or --overwrite"
                )
            elif json.loads(record.read_text(encoding="utf-8")) != self.settings:
                raise InputError(
                    f"--output {self.output} was begun with other options, files or tokenizer (see "
                    f"{BUILD_FILE}); resume with the same, or choose another directory"
                )
        make_directory(self.output)
        write_whole(record, json.dumps(self.settings, indent=2) + "\n")

    def build(self) -> dict[str, Any]:
        """Makes what is missing and returns the manifest.

        Raises:
            InputError: a row cannot be used; the message begins with its file and line.
        """
        manifest = self.output / MANIFEST_FILE
        if manifest.is_file():
            say(f"{self.output} is complete already")
            return json.loads(manifest.read_text(encoding="utf-8"))
        make_directory(self.parts)
        for source in SOURCES:
            self._make_parts(source)
        paths = sorted(
            (path for source in SOURCES for path in self._parts_of(source)),
            key=lambda path: (not path.name.startswith(SOURCES[0].name), path.name),
        )
        made = self._make_shards(paths)
        write_whole(self.output / REPORT_FILE, report(made))
        write_whole(manifest, json.dumps(made, indent=2) + "\n")
        shutil.rmtree(self.parts)
        return made

    # -- parts ------------------------------------------------------------------------------------

    def _parts_of(self, source: Source) -> list[Path]:
        return list(self.parts.glob(f"{source.name}-*.parquet"))

    def _make_parts(self, source: Source) -> None:
        """Every block of a source becomes a part; those that are there are not made again."""
        started, done = time.monotonic(), 0
        done_file = self.parts / f"{source.name}.done"
        if done_file.is_file():
            return
        for block, rows in enumerate(self._blocks(source)):
            path = self.parts / f"{source.name}-{block:06d}.parquet"
            if path.is_file():
                continue
            self._make_part(path, source, rows)
            done += len(rows)
            seconds = time.monotonic() - started
            say(
                f"{source.name}: {rows[-1][0] + 1:,} rows read, {done / seconds:,.0f} rows/s, "
                f"{duration(seconds)}"
            )
        write_whole(done_file, "")

    def _blocks(self, source: Source) -> Iterator[list[tuple[int, Row | InputError]]]:
        """A source's rows, numbered over all of its files, in blocks."""
        block: list[tuple[int, Row | InputError]] = []
        number = 0
        for path in self.files[source.name]:
            for _, record in RecordFile(path):
                block.append((number, record))
                number += 1
                if len(block) == BLOCK_ROWS:
                    yield block
                    block = []
        if block:
            yield block

    def _make_part(
        self, path: Path, source: Source, rows: list[tuple[int, Row | InputError]]
    ) -> None:
        import pyarrow
        from pyarrow import parquet

        good: list[Instruction] = []
        bad: list[str] = []
        for number, record in rows:
            try:
                if isinstance(record, InputError):
                    raise record
                good.append(instruction(record, source, number))
            except InputError as error:
                if not self.skip_bad_rows:
                    raise
                bad.append(str(error))
        chosen = Filter(self.encoder, self.recipe)
        made = list(chosen(good, source))
        columns = {
            "prompt": [row.prompt for row in made],
            "response": [row.response for row in made],
            "source": [source.name] * len(made),
            "source_row": [row.number for row in made],
            "prompt_tokens": [row.prompt_tokens for row in made],
            "response_tokens": [row.response_tokens for row in made],
            **{name: [name in row.sets for row in made] for name in (LONG, NORMAL)},
        }
        counted = {
            "read": len(rows),
            "bad": len(bad),
            "shown": bad[:SHOWN_BAD],
            "cut": sum(row.is_cut for row in made),
            **chosen.dropped,
        }
        table = pyarrow.table(columns, schema=_schema((LONG, NORMAL)))
        table = table.replace_schema_metadata({COUNTED: json.dumps(counted).encode()})
        with whole_file(path) as part:
            parquet.write_table(table, part, compression="zstd")

    # -- shards -----------------------------------------------------------------------------------

    def _make_shards(self, paths: list[Path]) -> dict[str, Any]:
        """Draws, shuffles and writes the rows of all parts; returns the manifest."""
        from pyarrow import parquet

        counts: dict[str, Counter] = {source.name: Counter() for source in SOURCES}
        shown: list[str] = []
        is_long, is_normal, lengths, owner = [], [], [], []
        for path in paths:
            table = parquet.read_table(path, columns=[LONG, NORMAL, *TOKENS, "source"])
            counted = json.loads(table.schema.metadata[COUNTED])
            shown += counted.pop("shown")
            name = path.name.rsplit("-", 1)[0]
            counts[name].update(counted)
            is_long.append(table[LONG].to_numpy())
            is_normal.append(table[NORMAL].to_numpy())
            lengths.append(sum(table[column].to_numpy() for column in TOKENS) + 1)
            owner += [name] * table.num_rows
        flags = np.concatenate(is_long), np.concatenate(is_normal)
        length, sizes = np.concatenate(lengths), [len(part) for part in is_long]
        normal = flags[1].copy()
        normal[flags[1]] = draw_normal(int(flags[1].sum()), self.recipe)
        taken = flags[0].astype(np.int64) + normal
        total = int(taken.sum())
        if not total:
            raise InputError("no row of these files fits the mixture; are they the right ones?")
        place = draw_order(total, self.recipe)
        shards = self._spread(paths, sizes, flags[0], normal, place)
        by_source: dict[str, dict[str, int]] = {}
        names = np.array(owner)
        for name, counter in counts.items():
            mine = names == name
            by_source[name] = {
                **dict(counter),
                LONG: int((flags[0] & mine).sum()),
                NORMAL: int((normal & mine).sum()),
                "fits the normal set but was not drawn": int((flags[1] & ~normal & mine).sum()),
            }
        return {
            "rows": total,
            "in both sets": int((flags[0] & normal).sum()),
            "lengths": {
                LONG: length_report(length[flags[0]]),
                NORMAL: length_report(length[normal]),
            },
            "sources": by_source,
            "bad rows": shown[:SHOWN_BAD],
            "shards": shards,
            **self.settings,
            "sha256": {
                path: file_hash(Path(path)) for paths in self.files.values() for path in paths
            },
            "versions": versions("pyarrow"),
            "commit": commit(),
        }

    def _spread(
        self, paths: list[Path], sizes: list[int], is_long: NDArray, normal: NDArray, place: NDArray
    ) -> list[dict[str, Any]]:
        """Each row into the shard of its place, then each shard into its order."""
        import pyarrow
        from pyarrow import parquet

        schema = _schema(("set",))
        count = -(-len(place) // SHARD_ROWS)
        names = [f"data-{i:05d}.parquet" for i in range(count)]
        loose = [self.parts / f"{name}.writing" for name in names]
        columns = [*schema.names[:-1]]
        ordered = pyarrow.schema([*schema, ("place", pyarrow.int64())])
        start = used = 0
        with writing(self.parts):
            writers = [parquet.ParquetWriter(path, ordered, compression="zstd") for path in loose]
            for path, size in zip(paths, sizes, strict=True):
                table = parquet.read_table(path, columns=columns)
                for name, flag in ((LONG, is_long), (NORMAL, normal)):
                    rows = np.flatnonzero(flag[start : start + size])
                    mine = place[used : used + len(rows)]
                    used += len(rows)
                    for shard in np.unique(mine // SHARD_ROWS).tolist():
                        here = mine // SHARD_ROWS == shard
                        piece = table.take(rows[here]).append_column(
                            "set", pyarrow.array([name] * int(here.sum()), pyarrow.string())
                        )
                        piece = piece.append_column("place", pyarrow.array(mine[here]))
                        writers[shard].write_table(piece.cast(ordered))
                start += size
            for writer in writers:
                writer.close()
        made = []
        for name, path in zip(names, loose, strict=True):
            table = parquet.read_table(path).sort_by("place").drop_columns(["place"])
            final = self.output / name
            with whole_file(final) as part:
                parquet.write_table(table, part, compression="zstd")
            path.unlink()
            made.append({"name": name, "rows": table.num_rows, "sha256": file_hash(final)})
        return made


TOKENS = ("prompt_tokens", "response_tokens")


def _schema(last: tuple[str, ...]) -> Any:
    """Columns of a part, which has a flag for each set, or of a shard, which has the set."""
    import pyarrow

    kinds = {"set": pyarrow.string(), LONG: pyarrow.bool_(), NORMAL: pyarrow.bool_()}
    return pyarrow.schema(
        [
            ("prompt", pyarrow.string()),
            ("response", pyarrow.string()),
            ("source", pyarrow.string()),
            ("source_row", pyarrow.int64()),
            *((name, pyarrow.int32()) for name in TOKENS),
            *((name, kinds[name]) for name in last),
        ]
    )


def hub_files(source: Source) -> list[str]:
    """A source's files from the hub, kept in its cache.

    Raises:
        InputError: the hub cannot be reached, or has none.
    """
    import huggingface_hub

    option = f"--{source.name}"
    try:
        known = huggingface_hub.list_repo_files(source.repository, repo_type="dataset")
        names = sorted(name for name in known if name.endswith(source.endings))
        say(f"fetching {source.repository}: {', '.join(names)}")
        files = [
            huggingface_hub.hf_hub_download(source.repository, name, repo_type="dataset")
            for name in names
        ]
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{source.repository} cannot be fetched from the hub ({reason}); give its files with "
            f"{option}"
        ) from error
    if not files:
        raise InputError(f"{source.repository} has no data file; give files with {option}")
    return files


def report(manifest: dict[str, Any]) -> str:
    """Counts, what was dropped, and lengths, as Markdown tables."""
    lines = [f"# {manifest['rows']:,} rows", ""]
    sources = manifest["sources"]
    lines += ["| | " + " | ".join(sources) + " |", "| --- |" + " ---: |" * len(sources)]
    for name in dict.fromkeys(key for counts in sources.values() for key in counts):
        cells = [f"{counts.get(name, 0):,}" for counts in sources.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", f"Rows in both sets: {manifest['in both sets']:,}.", "", "Lengths in tokens:", ""]
    lengths = manifest["lengths"]
    lines += ["| | " + " | ".join(lengths) + " |", "| --- |" + " ---: |" * len(lengths)]
    flat = {
        name: {**{k: v for k, v in found.items() if k != "by thousand"},
               **{f"{t[:-1]},000 to {t[:-1]},999": n
                  for t, n in found.get("by thousand", {}).items()}}
        for name, found in lengths.items()
    }  # fmt: skip
    for key in dict.fromkeys(key for found in flat.values() for key in found):
        cells = [f"{found.get(key, 0):,}" for found in flat.values()]
        lines.append(f"| {key} | " + " | ".join(cells) + " |")
    if manifest["bad rows"]:
        lines += ["", "Bad rows, the first of them:", ""]
        lines += [f"- {line}" for line in manifest["bad rows"]]
    return "\n".join(lines) + "\n"
