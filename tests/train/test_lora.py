"""Adapters: merging changes nothing, PEFT reads ours, we read the authors'; idle ones refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from remamba import ReMambaForCausalLM
from remamba.cli import main
from remamba.errors import InputError
from remamba.model.mamba2 import Mamba2Mixer
from remamba.train import trainer as trainer_module
from remamba.train.config import TrainArgs
from remamba.train.lora import (
    COMPRESSION_FILE,
    CONFIG_FILE,
    PREFIX,
    WEIGHTS_FILE,
    adapter_config,
    add_adapters,
    hold_frozen_in_bfloat16,
    load_adapter,
    merge,
    plain_name,
    save_adapter,
)
from remamba.train.run import train
from tests.train.toy import save_base, write_documents

FAMILIES = ("mamba", "mamba2", "falcon_mamba")
SELECTIVE = {"length": 0.5, "keep_ratio": 0.3, "adaption": "selective"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {
        family: save_base(
            tmp_path_factory.mktemp(family), backbone_type=family, compression=SELECTIVE
        )
        for family in FAMILIES
    }


def make_args(base: str, folder: Path, **changes: Any) -> TrainArgs:
    given: dict[str, Any] = {
        "base": base, "data": (str(folder / "d.jsonl"),), "output": str(folder / "run"),
        "device": "cpu", "max_steps": 4, "batch_size": 4, "questions_per_document": 2,
        "warmup_steps": 0, "learning_rate": 1e-2, "logging_steps": 2, "save_steps": 2,
        "parameters": "lora", "lora_rank": 4,
    }  # fmt: skip
    return TrainArgs(**{**given, **changes})


@pytest.fixture
def run_args(bases: dict[str, str], tmp_path: Path) -> Callable[..., TrainArgs]:
    write_documents(tmp_path / "d.jsonl", count=24)

    def make(family: str = "mamba2", **changes: Any) -> TrainArgs:
        return make_args(bases[family], tmp_path, **changes)

    return make


def adapted_model(args: TrainArgs) -> Any:
    """Every trained tensor moved away from its initial value."""
    model = ReMambaForCausalLM.from_pretrained(args.base)
    kind = model.config.backbone_type
    adapted = add_adapters(model, adapter_config(args, kind), with_dt_bias=kind == "mamba2")
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return adapted


def logits_of(model: Any, with_compression: bool = True) -> torch.Tensor:
    ids = torch.randint(0, 280, (2, 31), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        out = model.eval()(input_ids=ids, compression=None if with_compression else False)
    return out.logits


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_equals_not_merged_and_peft_reads_the_adapter(
    run_args: Callable[..., TrainArgs],
    family: str,
    tmp_path: Path,
    assert_close: Callable[..., None],
) -> None:
    import peft

    args = run_args(family)
    adapted = adapted_model(args)
    save_adapter(adapted, tmp_path / "adapter")
    expected = [logits_of(adapted, on) for on in (True, False)]
    base = ReMambaForCausalLM.from_pretrained(args.base)
    assert not torch.allclose(logits_of(base, False), expected[1], atol=1e-2)

    stock = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    merge(tmp_path / "adapter", tmp_path / "merged")
    plain = ReMambaForCausalLM.from_pretrained(tmp_path / "merged")
    again = load_adapter(ReMambaForCausalLM.from_pretrained(args.base), tmp_path / "adapter")
    for on, logits in zip((True, False), expected, strict=True):
        assert torch.equal(logits_of(stock, on), logits)
        assert torch.equal(logits_of(again, on), logits)
        assert_close(logits_of(plain, on), logits)
    assert not plain.config.tie_word_embeddings
    assert not torch.equal(plain.lm_head.weight, plain.backbone.embeddings.weight)
    ids = torch.arange(40)[None]
    greedy = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6)
    assert torch.equal(
        adapted.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6),
        greedy,
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["remamba", "mamba"])
def test_what_is_trained(run_args: Callable[..., TrainArgs], family: str, method: str) -> None:
    args = run_args(family, method=method)
    train(args)
    before = dict(load_file(Path(args.base) / "model.safetensors"))
    saved = {plain_name(n): t for n, t in load_file(Path(args.output) / WEIGHTS_FILE).items()}
    dt = {"dt_bias"} if family == "mamba2" else {"dt_proj.weight", "dt_proj.bias"}
    in_full = {f"backbone.layers.{i}.mixer.{name}" for i in range(2) for name in dt}
    if method == "remamba":
        in_full |= {f"backbone.layers.{i}.mixer.adaption.theta" for i in range(2)}
        in_full |= {name for name in before if name.startswith("compressor.")}
    assert {name for name in saved if "lora_" not in name} == in_full
    for name in in_full:
        assert not torch.equal(saved[name], before[name]), name
    ends = {"backbone.embeddings.lora_embedding", "lm_head.lora"}
    inner = {f"backbone.layers.{i}.mixer.{p}_proj.lora" for i in range(2) for p in ("in", "out")}
    assert {name.split("_A")[0] for name in saved if "lora_" in name and "_A" in name} == (
        ends | inner
    )
    for name, tensor in saved.items():
        assert tensor.any(), name
    norms = json.loads((Path(args.output) / "gradients.json").read_text())
    assert len(norms) == len(saved)
    assert min(norms.values()) > 0


def test_a_resumed_adapter_equals_an_uninterrupted_one(
    run_args: Callable[..., TrainArgs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_args(output=str(tmp_path / "whole"))
    train(whole)
    parts = run_args(output=str(tmp_path / "parts"))
    compute_loss = trainer_module.ReMambaTrainer.compute_loss

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return compute_loss(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer_module.ReMambaTrainer, "compute_loss", interrupted)
        train(parts)
    train(dataclasses.replace(parts, resume=True))
    expected = load_file(tmp_path / "whole" / WEIGHTS_FILE)
    for name, tensor in load_file(tmp_path / "parts" / WEIGHTS_FILE).items():
        assert torch.equal(tensor, expected[name]), name
    # a finished run that is resumed writes the same again
    train(dataclasses.replace(parts, resume=True))
    for name, tensor in load_file(tmp_path / "parts" / WEIGHTS_FILE).items():
        assert torch.equal(tensor, expected[name]), name


def test_bfloat16_holds_frozen_matrices_only(run_args: Callable[..., TrainArgs]) -> None:
    args = run_args("mamba", precision="bfloat16")
    summary = train(args)
    assert summary["steps"] == 4
    tensors = load_file(Path(args.output) / WEIGHTS_FILE).values()
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    adapted = adapted_model(args)
    exact = logits_of(adapted)
    hold_frozen_in_bfloat16(adapted)
    halved = {
        plain_name(name) for name, p in adapted.named_parameters() if p.dtype == torch.bfloat16
    }
    layer = {f"mixer.{part}.weight" for part in ("in_proj", "out_proj", "x_proj")}
    assert {"lm_head.weight"} | {f"backbone.layers.{i}.{n}" for i in range(2) for n in layer} == {
        # PEFT keeps the frozen originals of what it trains in full
        name for name in halved if "original_module" not in name
    }  # fmt: skip
    with torch.autocast("cpu", torch.bfloat16):
        close = logits_of(adapted)
    assert (close - exact).abs().max() < 0.05 * exact.abs().max()


def test_an_adapter_that_is_not_used_is_refused(
    run_args: Callable[..., TrainArgs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the authors' code, where out_proj's weight was read and its adapter never ran."""
    forward = Mamba2Mixer.forward

    class Reads(torch.nn.Module):
        def __init__(self, linear: Any):
            super().__init__()
            self.weight = linear.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.weight)

    def past_the_adapter(self: Any, *args: Any, **kwargs: Any) -> Any:
        module = self.out_proj
        self.out_proj = Reads(module)
        try:
            return forward(self, *args, **kwargs)
        finally:
            self.out_proj = module

    monkeypatch.setattr(Mamba2Mixer, "forward", past_the_adapter)
    with pytest.raises(InputError, match=r"no gradient to .*0\.mixer\.out_proj\.lora_A"):
        train(run_args())
    args = run_args(check_gradients=False, overwrite=True, max_steps=1)
    assert train(args)["steps"] == 1


def test_the_audit_changes_nothing(run_args: Callable[..., TrainArgs], tmp_path: Path) -> None:
    saved = []
    for check in (True, False):
        args = run_args(
            check_gradients=check, output=str(tmp_path / str(check)), selector="random",
            lora_dropout=0.1,
        )  # fmt: skip
        train(args)
        saved.append(load_file(Path(args.output) / WEIGHTS_FILE))
    for name, tensor in saved[0].items():
        assert torch.equal(tensor, saved[1][name]), name


def published(adapted: Any, folder: Path) -> None:
    """Our adapter under the names of the authors' (lblankl/ReMamba)."""
    save_adapter(adapted, folder)
    (folder / COMPRESSION_FILE).unlink()
    names = {"query_proj": "Q_proj", "key_proj": "K_proj", "value_proj": "V_proj"}
    theirs = {}
    for name, tensor in load_file(folder / WEIGHTS_FILE).items():
        for ours, other in names.items():
            name = name.replace(f"compressor.{ours}", f"backbone.{other}")
        theirs[name.replace("adaption.theta", "ret_bias.param")] = tensor
    model = adapted.get_base_model()
    # PEFT stores the two ends whole where they have adapters
    for name, module in (
        ("backbone.embeddings", model.backbone.embeddings),
        ("lm_head", model.lm_head),
    ):
        theirs[f"{PREFIX}{name}.base_layer.weight"] = module.base_layer.weight.detach().clone()
    save_file(theirs, folder / WEIGHTS_FILE, {"format": "pt"})
    config = json.loads((folder / CONFIG_FILE).read_text())
    config["modules_to_save"] = [*names.values(), "ret_bias", "dt_proj"]
    config["task_type"] = "CAUSAL_LM"
    (folder / CONFIG_FILE).write_text(json.dumps(config))


def test_the_published_adapter_is_read(
    run_args: Callable[..., TrainArgs], tmp_path: Path, assert_close: Callable[..., None]
) -> None:
    args = run_args("mamba")
    adapted = adapted_model(args)
    published(adapted, tmp_path / "theirs")
    names = set(load_file(tmp_path / "theirs" / WEIGHTS_FILE))
    assert {
        f"{PREFIX}backbone.Q_proj.0.weight",
        f"{PREFIX}backbone.layers.1.mixer.ret_bias.param",
        f"{PREFIX}backbone.layers.0.mixer.dt_proj.weight",
        f"{PREFIX}backbone.embeddings.lora_embedding_A",
    } <= names
    command = ["merge", str(tmp_path / "theirs"), str(tmp_path / "m"), "--base", args.base]
    assert main(command) == 0
    plain = ReMambaForCausalLM.from_pretrained(tmp_path / "m")
    assert_close(logits_of(plain), logits_of(adapted))

    # as the authors evaluated it: one tensor with both adapters
    summed = merge(tmp_path / "theirs", tmp_path / "sum", base=args.base, sum_tied=True)
    assert summed.tied
    one = ReMambaForCausalLM.from_pretrained(tmp_path / "sum").backbone.embeddings.weight
    base = ReMambaForCausalLM.from_pretrained(args.base).backbone.embeddings.weight
    both = plain.backbone.embeddings.weight + plain.lm_head.weight - base
    assert_close(one.detach(), both.detach())


def test_merge_refuses_in_one_line(
    run_args: Callable[..., TrainArgs],
    bases: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = run_args("mamba2")
    save_adapter(adapted_model(args), tmp_path / "a")
    torn = shutil.copytree(tmp_path / "a", tmp_path / "torn")
    weights = load_file(torn / WEIGHTS_FILE)
    del weights[f"{PREFIX}lm_head.lora_A.weight"]
    save_file(weights, torn / WEIGHTS_FILE)
    capsys.readouterr()
    for given, said in (
        ([str(tmp_path / "a"), "--base", bases["mamba"]], "theta is (4,), this model's is (64,)"),
        ([str(tmp_path / "a"), "--base", str(tmp_path / "nowhere")], "nowhere is no directory"),
        ([args.base], "holds no adapter_config.json"),
        ([str(torn)], "lacks 1 tensors, the first is base_model.model.lm_head.lora_A.weight"),
        ([str(tmp_path / "a"), "--base", str(tmp_path / "a")], "remamba merge"),
    ):
        assert main(["merge", given[0], str(tmp_path / "m"), *given[1:]]) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1
    assert not (tmp_path / "m").exists()
    assert main(["merge", str(tmp_path / "a"), str(tmp_path / "m"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["base"] == args.base
    assert (tmp_path / "m" / "tokenizer.json").is_file()
    assert main(["merge", str(tmp_path / "a"), str(tmp_path / "m")]) == 2
