"""Whatever a file or a command line says: it is used, or refused in one line; never a traceback.

2,000 draws in all, the same in every run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import io
import json
import math
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from remamba import CompressionConfig, InputError, ReMambaConfig, ReMambaForCausalLM, cli
from remamba.checkpoints.layouts import read_config
from remamba.engine.engine import Engine
from remamba.engine.sampling import SamplingOptions
from remamba.methods.base import METHODS, method_of
from remamba.methods.memory import MEMORY_FORMAT, DocumentMemory
from remamba.model.states import CHECKSUM, checksum
from remamba.train.config import TrainArgs
from remamba.train.lora import read_adapter
from remamba.train.run_folder import RunFolder
from tests.tiny import TEXT, tiny_model, tiny_tokenizer

DRAWS = {
    "config.json": 350, "published": 400, "settings": 600, "memory": 250, "adapter": 100,
    "train.json": 100, "command line": 200,
}  # fmt: skip
LONGEST = 600
"""Characters of a refusal."""

numbers = st.sampled_from(
    [-1, 0, 1, 2, 3, 7, 24, 10**6, 10**9, 10**12, 10**30, 10**400, -(10**12), 0.5, -0.5, 1e-300,
     1e300, math.nan, math.inf, -math.inf]
)  # fmt: skip
words = st.sampled_from(
    ["", "x", "0", "5", "-1", "nan", "1e400", "null", "auto", "plain", "remamba", "topk", "float32",
     "float8", "int64", "last+remamba", "+", "{question}", "é\n\x00\ud800", "x" * 5000,
     "+".join(["last"] * 3000)]
)  # fmt: skip
leaves = st.one_of(st.none(), st.booleans(), numbers, words)
hostile = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["a", "name", "0"]), inner)
    ),
    max_leaves=4,
)


def drawn(name: str) -> Callable[[Any], Any]:
    """So many draws of DRAWS, the same in every run."""
    return settings(
        max_examples=DRAWS[name],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def used_or_refused(call: Callable[[], Any]) -> Any:
    """What a call gives, or None where it refuses in one line."""
    try:
        return call()
    except InputError as error:
        said = str(error)
        assert said and "\n" not in said and len(said) <= LONGEST, said[:2000]
        return None


def write_json(file: Path, values: Any) -> None:
    file.write_text(json.dumps(values), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, its memory, a document, and files that are none of these."""
    place = tmp_path_factory.mktemp("hostile")
    settings = CompressionConfig(length=1.0, num_kept=3)
    model = tiny_model("mamba", hidden_size=8, state_size=2, compression=settings)
    model.save_pretrained(place / "model")
    tiny_tokenizer().save_pretrained(place / "model")
    model.read(torch.arange(9)[None]).save(place / "document.memory")
    (place / "doc.txt").write_text(TEXT, encoding="utf-8")
    (place / "binary").write_bytes(bytes(9))
    (place / "empty").mkdir()
    (place / "rows.jsonl").write_text('{"text": "a"}\n')
    return place


CONFIG_FIELDS = (
    *(name for name in ReMambaConfig().to_dict()),
    *("torch_dtype", "num_labels", "quantization_config", "output_attentions", "self", "nonsense"),
    *("reading", "compression_config", "dt_limit", "use_bfloat16", "per_layer_config"),
)
GENERATION = (
    *("eos_token_id", "pad_token_id", "bos_token_id", "max_length", "temperature", "do_sample"),
    *("cache_implementation", "compile_config", "watermarking_config", "num_beams", "other"),
)
SETTINGS = tuple(field.name for field in dataclasses.fields(CompressionConfig))
changed = st.dictionaries(st.sampled_from(CONFIG_FIELDS), hostile, min_size=1, max_size=3)
compressions = st.dictionaries(st.sampled_from([*SETTINGS, "other"]), hostile, max_size=3)


@drawn("config.json")
@given(
    changes=st.one_of(changed, st.builds(lambda c: {"compression": c}, compressions), st.just({})),
    generation=st.one_of(
        st.just({}),
        st.dictionaries(st.sampled_from(GENERATION), hostile, max_size=2),
        hostile,
    ),
)
def test_config_json(changes: dict[str, Any], generation: Any, folder: Path) -> None:
    """What is accepted loads and reads; so with a generation_config.json."""
    values = json.loads((folder / "model" / "config.json").read_text())
    spoilt = folder / "spoilt"
    spoilt.mkdir(exist_ok=True)
    if not (spoilt / "model.safetensors").exists():
        (spoilt / "model.safetensors").symlink_to(folder / "model" / "model.safetensors")
    write_json(spoilt / "config.json", {**values, **changes})
    write_json(spoilt / "generation_config.json", generation)

    def read() -> None:
        model = ReMambaForCausalLM.from_pretrained(spoilt)
        with torch.no_grad():
            model(torch.tensor([[1, 2, 3]]), method="plain")
        Engine(model, tiny_tokenizer())

    used_or_refused(read)


PUBLISHED = (
    {"model_type": "mamba", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1},
    {"model_type": "falcon_mamba", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1},
    {"model_type": "mamba2", "vocab_size": 9, "hidden_size": 32, "head_dim": 8, "num_heads": 8},
    {"d_model": 8, "n_layer": 1, "vocab_size": 9, "ssm_cfg": {"layer": "Mamba2"}},
)
PUBLISHED_FIELDS = (
    *("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "state_size", "expand"),
    *("time_step_rank", "time_step_limit", "num_heads", "head_dim", "n_groups", "hidden_act"),
    *("num_labels", "dtype", "eos_token_id", "d_model", "n_layer", "ssm_cfg", "rms_norm"),
    *("pad_vocab_size_multiple", "attn_layer_idx", "residual_in_fp32", "layer_norm_epsilon"),
)


@drawn("published")
@given(
    values=st.sampled_from(PUBLISHED),
    changes=st.dictionaries(st.sampled_from(PUBLISHED_FIELDS), hostile, min_size=1, max_size=2),
)
def test_published_config_json(
    values: dict[str, Any], changes: dict[str, Any], folder: Path
) -> None:
    place = folder / "published"
    place.mkdir(exist_ok=True)
    write_json(place / "config.json", {**values, **changes})
    used_or_refused(lambda: read_config(place))


TRAIN_FIELDS = tuple(field.name for field in dataclasses.fields(TrainArgs))
TRAINING = {"base": "b", "data": ("d",), "output": "o"}
methods = st.recursive(
    st.one_of(
        hostile,
        st.fixed_dictionaries(
            {"name": st.sampled_from([*METHODS, "truncate", "", 5])},
            optional={
                "tokens": leaves, "candidates": leaves, "choice": leaves, "start": leaves,
                "length": leaves, "compression": st.one_of(compressions, hostile), "x": leaves,
            },
        ),
    ),
    lambda inner: st.fixed_dictionaries(
        {"name": st.sampled_from(["last", "bm25", "plain"]), "reader": inner}
    ),
    max_leaves=3,
)  # fmt: skip


@drawn("settings")
@given(
    compression=compressions,
    method=methods,
    sampling=st.dictionaries(
        st.sampled_from([field.name for field in dataclasses.fields(SamplingOptions)]), hostile
    ),
    training=st.dictionaries(st.sampled_from([*TRAIN_FIELDS, "x"]), hostile, max_size=3),
)
def test_settings(
    compression: dict[str, Any],
    method: Any,
    sampling: dict[str, Any],
    training: dict[str, Any],
) -> None:
    for call in (
        lambda: CompressionConfig.from_dict(compression),
        lambda: CompressionConfig().replace(**compression),
        lambda: method_of(method).in_words(),
        lambda: SamplingOptions(**sampling),
        lambda: TrainArgs(**{**TRAINING, **training}),
    ):
        used_or_refused(call)


@functools.cache
def memory_parts(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    return load_file(file), header


headers = st.dictionaries(
    st.sampled_from(["format", "fingerprint", "method", "compression", CHECKSUM, "other"]),
    st.one_of(
        st.none(), words.filter(lambda text: "\ud800" not in text), methods.map(json.dumps),
        st.just("[" * 100_000), st.just(MEMORY_FORMAT),
    ),
    max_size=3,
)  # fmt: skip
tensors = st.dictionaries(
    st.sampled_from(["hidden", "span.start", "span.stop", "lengths", "input_ids",
                     "cache.layers.0.ssm_state", "cache.layers.0.conv_state",
                     "cache.layers.7.ssm_state", "cache.text.ids"]),
    st.one_of(
        st.none(),
        st.builds(
            lambda shape, value, dtype: torch.full(shape, value, dtype=dtype),
            st.lists(st.integers(0, 9), max_size=3),
            st.sampled_from([0, 1, 9, 120]),
            st.sampled_from([torch.float32, torch.int64, torch.uint8, torch.bool]),
        ),
    ),
    max_size=2,
)  # fmt: skip


@drawn("memory")
@given(header=headers, changes=tensors, is_sealed=st.booleans())
def test_memories(
    header: dict[str, str | None], changes: dict[str, Any], is_sealed: bool, folder: Path
) -> None:
    """What loads can be asked."""
    parts, told = memory_parts(folder / "document.memory")
    parts = {n: x for n, x in {**parts, **changes}.items() if x is not None}
    told = {n: x for n, x in {**told, **header}.items() if x is not None}
    if is_sealed:
        told[CHECKSUM] = checksum(parts, told)
    file = folder / "spoilt.memory"
    save_file({name: tensor.contiguous() for name, tensor in parts.items()}, file, told)
    used_or_refused(lambda: DocumentMemory.load(file))
    model = loaded(folder / "model")

    def ask() -> None:
        memory = model.load_memory(file)
        if not memory.method.needs_text:
            question = torch.tensor([[5, 6]] * memory.documents)
            with torch.no_grad():
                model(question, memory=memory)

    used_or_refused(ask)


@functools.cache
def loaded(place: Path) -> ReMambaForCausalLM:
    return ReMambaForCausalLM.from_pretrained(place)


ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["in_proj"]}
ADAPTER_FIELDS = (
    *ADAPTER, "lora_dropout", "modules_to_save", "rank_pattern", "alpha_pattern", "use_dora",
    "base_model_name_or_path", "task_type", "bias", "init_lora_weights", "layers_to_transform",
    "target_parameters", "loftq_config", "unknown",
)  # fmt: skip


@drawn("adapter")
@given(
    changes=st.one_of(
        st.dictionaries(st.sampled_from(ADAPTER_FIELDS), hostile, min_size=1, max_size=2), hostile
    )
)
def test_adapters(changes: Any, folder: Path) -> None:
    place = folder / "adapter"
    place.mkdir(exist_ok=True)
    save_file({"x": torch.zeros(1)}, place / "adapter_model.safetensors")
    is_whole = isinstance(changes, dict)
    write_json(place / "adapter_config.json", {**ADAPTER, **changes} if is_whole else changes)
    used_or_refused(lambda: read_adapter(place))


@drawn("train.json")
@given(
    record=st.one_of(
        hostile,
        st.fixed_dictionaries(
            {},
            optional={
                "args": st.one_of(
                    hostile, st.dictionaries(st.sampled_from(TRAIN_FIELDS), hostile, max_size=3)
                ),
                "base_reading": st.one_of(
                    hostile, st.fixed_dictionaries({"method": hostile, "compression": hostile})
                ),
                "data": st.one_of(hostile, st.just({"rows.jsonl": 5})),
            },
        ),
    )
)
def test_resumed_runs(record: Any, folder: Path) -> None:
    place = folder / "run"
    place.mkdir(exist_ok=True)
    write_json(place / "train.json", record)
    args = TrainArgs(**{**TRAINING, "output": str(place), "resume": True})
    used_or_refused(lambda: RunFolder(args).check_hashes({}))


@functools.cache
def options_of(command: str) -> dict[str, Any]:
    """Flag -> kind of its value, of all options of a command; positional ones have no dashes."""
    module_name, _, args_name = cli.COMMANDS[command][0].partition(":")
    module = importlib.import_module(module_name)
    args = getattr(module, args_name or "Args", None) or module.args_type(module.Choice())
    return dict(_flags(args))


def _flags(args: type) -> Iterator[tuple[str, Any]]:
    for name, kind in get_type_hints(args, include_extras=True).items():
        plain = get_args(kind)[0] if get_origin(kind) is typing.Annotated else kind
        if dataclasses.is_dataclass(plain):
            yield from _flags(typing.cast(type, plain))
        elif "Positional" in str(kind):
            yield name, plain
        else:
            yield "--" + name.replace("_", "-"), plain


FILES = ("doc.txt", "document.memory", "binary", "empty", "nosuch", "rows.jsonl", "run", "out", "")
WORDS_OF: dict[Any, tuple[str, ...]] = {
    int: ("-1", "0", "1", "2", "3", "40", "1000000000000", "9" * 30),
    float: ("-1", "0", "0.2", "0.5", "1", "2", "nan", "inf", "1e-300", "1e300", "1e400"),
    Path: FILES,
    str: (
        *("", "x", "é\n", "\udcff", "x" * 4000, "a,b", "Who: {question}\\n", "cpu", "cuda:7"),
        *("plain", "remamba", "chunks", "bm25", "last+remamba", "bm25+bm25", "twice", "auto"),
        *("topk", "random", "replace", "append", "before_question", "exact", "none", "residual"),
        *("relative", "evidence", "paper", "last", *FILES),
    ),
}
ODD_WORDS = ("--nosuch", "--", "-", "true", "[]", "{}", "+".join(["last"] * 3000), "x", "nan", "-1")


def joined(parts: list[list[str]]) -> list[str]:
    return [word for part in parts for word in part]


def words_of(kind: Any) -> st.SearchStrategy[list[str]]:
    """What may stand behind a flag: mostly what can be read as its kind, in range or not."""
    origin, members = get_origin(kind), [one for one in get_args(kind) if one is not type(None)]
    if kind is bool:
        return st.just([])
    if origin is Literal:
        return st.sampled_from([[str(word)] for word in members])
    if origin is tuple:
        several = members[1:] == [...]
        one = words_of(members[0])
        sizes = st.integers(1, 3) if several else st.just(len(members))
        return sizes.flatmap(lambda size: st.lists(one, min_size=size, max_size=size).map(joined))
    if members:
        return st.one_of([words_of(one) for one in members])
    return st.sampled_from([[word] for word in WORDS_OF.get(kind, FILES)])


ENDS = {
    # the last one counts: what is right so far does not run for long, and nothing is downloaded
    "ask": ["--max-new-tokens", "2", "--device", "cpu"],
    "generate": ["--max-new-tokens", "2", "--device", "cpu"],
    "read": ["--device", "cpu"],
    "train": ["--base", "empty", "--device", "cpu"],
    "eval": ["--model", "empty"],
    "eval needle": ["--model", "empty"],
    "eval short": ["--model", "empty"],
}  # fmt: skip
WHOLE = {
    "ask": ["--model", "model", "--document", "doc.txt", "--question", "Who?"],
    "read": ["doc.txt", "--model", "model", "--output", "out.memory", "--overwrite"],
    "generate": ["--model", "model", "--prompt", "Tom"],
    "convert": ["model", "out"],
    "train": ["--base", "empty", "--data", "rows.jsonl", "--output", "out"],
    "merge": ["empty", "out"],
    "eval": ["leval", "--data", "empty", "--output", "out"],
    "eval needle": ["--data", "empty", "--output", "out"],
    "eval short": ["--output", "out"],
    "eval score": ["empty", "--task", "leval", "--output", "out"],
    "eval table": ["empty"],
    "eval compare": ["empty", "run"],
    "doctor": ["--nosuch"],
}
"""Of each command, words that can be read; none of them lasts."""


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    command = draw(st.sampled_from([*WHOLE, *("ask", "generate", "read", "train") * 3]))
    line = draw(st.sampled_from([*[WHOLE[command]] * 5, []]))
    options = {flag: kind for flag, kind in options_of(command).items() if flag.startswith("--")}
    for flag in draw(st.lists(st.sampled_from(sorted(options)), max_size=4, unique=True)):
        line = [*line, flag, *draw(words_of(options[flag]))]
    if draw(st.integers(0, 9)) == 0:
        line = [*line, draw(st.sampled_from(ODD_WORDS))]
    return [*command.split(), *line, *ENDS.get(command, [])]


@drawn("command line")
@given(line=command_lines())
def test_command_lines(line: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = cli.main(line)
        except SystemExit as left:
            code = left.code or 0
    assert code in (0, 2), (code, said.getvalue())
    if code == 2:
        last = said.getvalue().splitlines()[-1]
        longest = LONGEST + 5 * sum(map(len, line))  # a long word may come back
        assert last.startswith(("remamba: ", "usage: ", "  ")) and len(last) <= longest, last


def test_the_draws_are_two_thousand() -> None:
    assert sum(DRAWS.values()) == 2000
