"""Published layouts -> `remamba convert` -> the same logits as transformers on the same weights."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    FalconMambaConfig,
    FalconMambaForCausalLM,
    LlamaConfig,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)
from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated

from remamba import ReMambaForCausalLM, cli
from remamba.checkpoints.convert import convert
from remamba.errors import InputError

TOKENS = torch.tensor([[5, 9, 2, 31, 7, 7, 40], [1, 3, 3, 8, 11, 0, 63]])
# transformers 5.17 norms all groups of a Mamba-2 as one: there it is right for one group only
GROUPS = 2 if "group_size" in inspect.signature(MambaRMSNormGated).parameters else 1
SHARED = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def tiny(kind: str, **changes: Any) -> PreTrainedModel:
    """A random model of transformers' own, with scales at which every part shows in the logits."""
    if kind == "mamba":
        config = MambaConfig(**{**SHARED, "state_size": 4, **changes})
        model: PreTrainedModel = MambaForCausalLM(config)
    elif kind == "falcon_mamba":
        config = FalconMambaConfig(**{**SHARED, "state_size": 4, **changes})
        model = FalconMambaForCausalLM(config)
    else:
        sizes = {
            "state_size": 8,
            "head_dim": 8,
            "num_heads": 4,
            "n_groups": GROUPS,
            "chunk_size": 4,
        }
        config = Mamba2Config(**{**SHARED, **sizes, **changes})
        model = Mamba2ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("in_proj.weight", "out_proj.weight", "norm.weight", "D")):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


CASES = {
    "mamba": ("mamba", {}),
    "mamba-untied": ("mamba", {"tie_word_embeddings": False}),
    "mamba-biases": ("mamba", {"use_bias": True, "use_conv_bias": False}),
    "mamba2": ("mamba2", {}),
    "mamba2-tied-one-group": ("mamba2", {"tie_word_embeddings": True, "n_groups": 1}),
    "mamba2-limited-dt": ("mamba2", {"time_step_limit": (0.01, 0.05)}),
    "falcon": ("falcon_mamba", {}),
    "falcon-own-width": ("falcon_mamba", {"expand": 16, "intermediate_size": 32}),
    "falcon-untied": ("falcon_mamba", {"tie_word_embeddings": False, "mixer_rms_eps": 1e-3}),
}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A tiny Mamba in transformers' layout."""
    tiny("mamba").save_pretrained(tmp_path / "published")
    return tmp_path / "published"


def logits_of(folder: Path) -> Tensor:
    model = ReMambaForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(TOKENS, compression=False).logits


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("shard", ["5GB", "4KB"], ids=["single", "sharded"])
def test_same_logits_as_transformers(case: str, shard: str, tmp_path: Path, assert_close) -> None:
    kind, changes = CASES[case]
    theirs = tiny(kind, **changes)
    theirs.save_pretrained(tmp_path / "src", max_shard_size=shard)
    assert (tmp_path / "src" / "model.safetensors.index.json").exists() == (shard == "4KB")
    done = convert(
        tmp_path / "src", tmp_path / "dst", shard_bytes=5000 if shard == "4KB" else 10**9
    )
    assert (done.layout, done.backbone) == ("transformers", kind)
    assert (done.shards > 1) == (shard == "4KB")
    with torch.no_grad():
        expected = theirs(TOKENS).logits
    assert_close(logits_of(tmp_path / "dst"), expected)


def state_spaces(folder: Path, theirs: PreTrainedModel, **changes: Any) -> Path:
    """The same weights in state-spaces' layout: config.json and pytorch_model.bin."""
    config, mamba2 = theirs.config, theirs.config.model_type == "mamba2"
    ssm: dict[str, Any] = {"layer": "Mamba1"}
    if mamba2:
        ssm = {"layer": "Mamba2", "headdim": config.head_dim, "ngroups": config.n_groups}
    values = {
        "d_model": config.hidden_size,
        "d_intermediate": 0,
        "n_layer": config.num_hidden_layers,
        "vocab_size": config.vocab_size - 3,
        "ssm_cfg": ssm | {"d_state": config.state_size},
        "attn_layer_idx": [],
        "attn_cfg": {},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 16,
        "tie_embeddings": config.tie_word_embeddings,
    } | changes
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    tensors = {
        name.replace("backbone.embeddings.", "backbone.embedding."): tensor
        for name, tensor in theirs.state_dict().items()
    }
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_same_logits_from_state_spaces(kind: str, tied: bool, tmp_path: Path, assert_close) -> None:
    theirs = tiny(kind, tie_word_embeddings=tied)
    done = convert(state_spaces(tmp_path / "src", theirs), tmp_path / "dst")
    assert (done.layout, done.backbone) == ("state-spaces", kind)
    with torch.no_grad():
        expected = theirs(TOKENS).logits
    assert_close(logits_of(tmp_path / "dst"), expected)


def test_vocabulary_is_padded_to_the_multiple(tmp_path: Path) -> None:
    """61 tokens in steps of 16 are 64 rows, as in state-spaces' own loader."""
    convert(state_spaces(tmp_path / "src", tiny("mamba")), tmp_path / "dst")
    config = json.loads((tmp_path / "dst" / "config.json").read_text())
    assert config["vocab_size"] == 64


def test_mamba2_of_state_spaces_has_128_states_unless_said(tmp_path: Path, assert_close) -> None:
    theirs = tiny("mamba2", state_size=128)
    ssm = {"layer": "Mamba2", "headdim": 8, "ngroups": GROUPS}
    convert(state_spaces(tmp_path / "src", theirs, ssm_cfg=ssm), tmp_path / "dst")
    with torch.no_grad():
        assert_close(logits_of(tmp_path / "dst"), theirs(TOKENS).logits)


def test_base_model_without_a_head(tmp_path: Path, assert_close) -> None:
    """MambaModel's files lack the `backbone.` prefix; a tied head needs no tensor of its own."""
    theirs = tiny("mamba")
    theirs.backbone.save_pretrained(tmp_path / "src")
    convert(tmp_path / "src", tmp_path / "dst")
    with torch.no_grad():
        assert_close(logits_of(tmp_path / "dst"), theirs(TOKENS).logits)


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "float16"])
def test_dtype(dtype: str, tmp_path: Path) -> None:
    tiny("mamba").to(torch.bfloat16).save_pretrained(tmp_path / "src")
    assert (
        cli.main(["convert", str(tmp_path / "src"), str(tmp_path / "dst"), "--dtype", dtype]) == 0
    )
    expected = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
    tensors = load_file(tmp_path / "dst" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {expected}
    assert ReMambaForCausalLM.from_pretrained(tmp_path / "dst").dtype == expected


def test_settings_are_stored(published: Path, tmp_path: Path) -> None:
    argv = "--start 0.1 --length 0.5 --keep-ratio 0.25 --placement append --adaption exact"
    dst = tmp_path / "dst"
    code = cli.main(
        ["convert", str(published), str(dst), *argv.split(), "--compressor-init", "tied"]
    )
    assert code == 0
    config = json.loads((dst / "config.json").read_text())
    assert config["model_type"] == "remamba"
    assert config["architectures"] == ["ReMambaForCausalLM"]
    assert config["compressor_init"] == "tied"
    expected = {
        "start": 0.1, "length": 0.5, "keep_ratio": 0.25, "placement": "append", "adaption": "exact",
    }  # fmt: skip
    assert expected.items() <= config["compression"].items()


def test_seed_decides_the_tied_values(published: Path, tmp_path: Path) -> None:
    def key(seed: int) -> Tensor:
        dst = tmp_path / "dst"
        convert(published, dst, compressor_init="tied", seed=seed, overwrite=True)
        return load_file(dst / "model.safetensors")["compressor.key_proj.0.weight"].clone()

    assert torch.equal(key(1), key(1))
    assert not torch.equal(key(1), key(2))


def test_json_is_one_object(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["convert", str(published), str(tmp_path / "dst"), "--json"]) == 0
    said = capsys.readouterr()
    done = json.loads(said.out)
    tensors = load_file(tmp_path / "dst" / "model.safetensors")
    assert done["parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert done["new_parameters"] == 6 * (16 * 16 + 16) + 2 * 32
    assert done["tokenizer"] is False
    assert "no tokenizer" in said.err


def write_tokenizer(folder: Path, tokens: int) -> Path:
    folder.mkdir(exist_ok=True)
    words = models.WordLevel({f"w{i}": i for i in range(tokens)}, unk_token="w0")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "w0"}'
    )
    return folder


@pytest.mark.parametrize("own", [True, False], ids=["own", "--tokenizer"])
def test_tokenizer_is_copied(own: bool, published: Path, tmp_path: Path) -> None:
    folder = write_tokenizer(published if own else tmp_path / "words", 64)
    done = convert(published, tmp_path / "dst", tokenizer=None if own else folder)
    assert done.tokenizer
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "dst" / name).read_bytes() == (folder / name).read_bytes()


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a single-file checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def configure(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))


D = "backbone.layers.1.mixer.D"


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"these are no tensors at all" * 9)


def llama(folder: Path) -> None:
    LlamaConfig(hidden_size=16, num_attention_heads=4).save_pretrained(folder)


def shardless(folder: Path) -> None:
    index = {"weight_map": {"backbone.norm_f.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def bad_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("[]")


def bad_bin(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 no archive")


def pickled_object(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"x": Path("evil")}, folder / "pytorch_model.bin")


def pickled_list(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save([torch.zeros(2)], folder / "pytorch_model.bin")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, "model.safetensors is truncated or corrupt"),
    "garbage": (garbage, "model.safetensors is truncated or corrupt"),
    "corrupt bin": (bad_bin, "pytorch_model.bin is corrupt"),
    "pickled object": (pickled_object, "pytorch_model.bin is corrupt, or no file of tensors"),
    "pickled list": (pickled_list, "pytorch_model.bin holds a list"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
    "missing shard": (shardless, "model-00001-of-00001.safetensors is missing"),
    "bad index": (bad_index, "is no index of weights"),
    "no config": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    "config no json": (lambda f: (f / "config.json").write_text("{"), "config.json is no JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "holds no JSON object"),
    "config empty": (lambda f: (f / "config.json").write_text("{}"), "names no model_type"),
    "config of a size": (lambda f: configure(f, hidden_size="wide"), "config.json: "),
    "config negative": (lambda f: configure(f, num_hidden_layers=0), "num_hidden_layers = 0"),
    "another activation": (lambda f: configure(f, hidden_act="relu"), "hidden_act='relu'"),
    "another architecture": (llama, "is of a 'llama' model; known are mamba, mamba2, falcon"),
    "a remamba": (lambda f: configure(f, model_type="remamba"), "is a ReMamba already"),
    "missing tensor": (
        lambda f: rewrite(f, lambda t: t.pop(D)),
        f"1 tensor is missing: {D}",
    ),
    "extra tensor": (
        lambda f: rewrite(f, lambda t: t.update(extra=torch.zeros(1))),
        "1 tensor is unexpected: backbone.extra",
    ),
    "wrong shape": (
        lambda f: rewrite(f, lambda t: t.update({D: torch.zeros(31)})),
        f"1 tensor is of the wrong shape: {D} is (31,), not (32,)",
    ),
    "fewer layers": (lambda f: configure(f, num_hidden_layers=1), "10 tensors are unexpected"),
    "quantized": (
        lambda f: rewrite(f, lambda t: t.update({D: torch.zeros(32, dtype=torch.int8)})),
        f"{D} is torch.int8",
    ),
    "another head": (
        lambda f: rewrite(f, lambda t: t.update({"lm_head.weight": torch.ones(64, 16)})),
        "lm_head.weight differs from the embeddings",
    ),
    "large tokenizer": (
        lambda f: write_tokenizer(f, 65),
        "has 65 tokens, the model's vocabulary 64",
    ),
    "corrupt tokenizer": (
        lambda f: (f / "tokenizer.json").write_text("{"),
        "tokenizer.json cannot be read",
    ),
}


@pytest.mark.parametrize("fault", list(BROKEN))
def test_broken_source_is_one_line(
    fault: str, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    breaking, expected = BROKEN[fault]
    breaking(published)
    before = sorted(tmp_path.iterdir())
    assert cli.main(["convert", str(published), str(tmp_path / "dst")]) == 2
    said = capsys.readouterr()
    assert expected in said.err
    assert said.err.startswith("remamba: ") and said.err.count("\n") == 1
    assert said.out == ""
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rms_norm": False}, "rms_norm=false"),
        ({"attn_layer_idx": [1]}, "attn_layer_idx=[1] is a hybrid"),
        ({"d_intermediate": 8}, "d_intermediate=8 is a hybrid"),
        ({"ssm_cfg": {"layer": "Mamba3"}}, "ssm_cfg.layer='Mamba3'"),
        ({"ssm_cfg": {"layer": "Mamba2", "D_has_hdim": True}}, "ssm_cfg.D_has_hdim=True"),
        ({"ssm_cfg": {"stride": 2}}, "ssm_cfg.stride is unknown"),
        ({"ssm_cfg": {"d_state": 5}}, "of the wrong shape"),
        ({"vocab_size": 70}, "of the wrong shape: backbone.embeddings.weight is (64, 16)"),
        ({"d_model": "x"}, "config.json: "),
    ],
    ids=str,
)
def test_unsupported_state_spaces(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    source = state_spaces(tmp_path / "src", tiny("mamba"), **changes)
    with pytest.raises(InputError) as error:
        convert(source, tmp_path / "dst")
    assert expected in str(error.value)
    assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--dtype", "int8"], "invalid choice 'int8'"),
        (["--compressor-init", "zeros"], "invalid choice 'zeros'"),
        (["--length", "1.5"], "1.5 is outside (0, 1]"),
        (["--tokenizer", "/no/such/place"], "/no/such/place does not exist"),
        (["--tokenizer", "."], "holds no tokenizer.json"),
        (["--tokenizer", "some/where"], "some/where is no directory here, and no tokenizer"),
    ],
    ids=str,
)
def test_unusable_option_is_one_line(
    argv: list[str], expected: str, published: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["convert", str(published), "dst", *argv]) == 2
    err = capsys.readouterr().err
    assert expected in err and err.count("\n") == 1
    assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("/no/such/place", "/no/such/place does not exist"),
        ("./nothing", "./nothing does not exist"),
        ("state-spaces/mamba-130m-hf", "is no directory here, and no such repository"),
    ],
)
def test_unreachable_source_is_one_line(source: str, expected: str, tmp_path: Path, capsys) -> None:
    """The hub is off in tests, as on a machine without a network."""
    assert cli.main(["convert", source, str(tmp_path / "dst")]) == 2
    err = capsys.readouterr().err
    assert expected in err and err.count("\n") == 1


@pytest.mark.parametrize("preset", ["released", "paper"])
def test_narrow_backbone_names_tied(preset: str, tmp_path: Path) -> None:
    tiny("mamba", expand=1).save_pretrained(tmp_path / "src")
    with pytest.raises(InputError, match=r"needs 64 rows .* use compressor_init='tied'"):
        convert(tmp_path / "src", tmp_path / "dst", compressor_init=preset)
    convert(tmp_path / "src", tmp_path / "dst", compressor_init="tied")


def test_destination_is_kept(published: Path, tmp_path: Path) -> None:
    """Results never overwrite; and --overwrite replaces a ReMamba, nothing else."""
    dst = tmp_path / "dst"
    convert(published, dst)
    written = (dst / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="is not empty"):
        convert(published, dst)
    convert(published, dst, compressor_init="tied", overwrite=True)
    assert (dst / "model.safetensors").read_bytes() != written

    written = (dst / "model.safetensors").read_bytes()
    truncate(published)
    with pytest.raises(InputError):
        convert(published, dst, overwrite=True)
    assert (dst / "model.safetensors").read_bytes() == written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dst", "published"]


def test_overwrite_spares_what_is_no_remamba(published: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    for target in (precious, published, tmp_path):
        with pytest.raises(InputError):
            convert(published, target, overwrite=True)
    assert (precious / "thesis.txt").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        convert(published, tmp_path / "file")


def test_empty_directory_is_filled(published: Path, tmp_path: Path) -> None:
    (tmp_path / "dst").mkdir()
    convert(published, tmp_path / "dst")
    assert (tmp_path / "dst" / "model.safetensors").is_file()


def test_failure_while_writing_leaves_nothing(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("remamba.checkpoints.convert.save_file", full)
    with pytest.raises(InputError, match="dst cannot be written: the disk is full"):
        convert(published, tmp_path / "dst")
    assert [path.name for path in tmp_path.iterdir()] == ["published"]


def test_bin_shards(tmp_path: Path, assert_close) -> None:
    """Several pytorch_model files with an index, as early hub repositories have them."""
    theirs = tiny("mamba")
    theirs.save_pretrained(tmp_path / "src")
    tensors = load_file(tmp_path / "src" / "model.safetensors")
    (tmp_path / "src" / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[:7], names[7:]), start=1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, tmp_path / "src" / file)
        weight_map |= dict.fromkeys(part, file)
    index = json.dumps({"weight_map": weight_map})
    (tmp_path / "src" / "pytorch_model.bin.index.json").write_text(index)
    convert(tmp_path / "src", tmp_path / "dst")
    with torch.no_grad():
        assert_close(logits_of(tmp_path / "dst"), theirs(TOKENS).logits)


def test_source_may_be_a_moved_copy(published: Path, tmp_path: Path) -> None:
    """The result does not refer to its source."""
    convert(published, tmp_path / "dst")
    before = logits_of(tmp_path / "dst")
    shutil.rmtree(published)
    shutil.move(tmp_path / "dst", tmp_path / "elsewhere")
    assert torch.equal(logits_of(tmp_path / "elsewhere"), before)
