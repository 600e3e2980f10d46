"""Training end to end on a tiny model: losses fall, runs resume exactly, wrong input is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from remamba import ReMambaForCausalLM
from remamba.cli import main
from remamba.compression_config import CompressionConfig
from remamba.errors import InputError
from remamba.train import trainer as trainer_module
from remamba.train.arguments import parameter_groups
from remamba.train.batches import StepBatches
from remamba.train.config import TrainArgs
from remamba.train.data import read_data
from remamba.train.run import train
from remamba.train.schedule import CompressionSchedule, learning_rate_factor
from remamba.train.trainer import NotFiniteError
from tests.train.toy import make_tokenizer, save_base, write_documents, write_rows

Options = Callable[..., TrainArgs]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def options(base: str, tmp_path: Path) -> Options:
    """TrainArgs for a few steps on toy documents."""
    data = write_documents(tmp_path / "d.jsonl", count=24)

    def make(**changes: Any) -> TrainArgs:
        given: dict[str, Any] = {
            "base": base,
            "data": (data,),
            "output": str(tmp_path / "run"),
            "device": "cpu",
            "max_steps": 4,
            "batch_size": 4,
            "questions_per_document": 2,
            "warmup_steps": 2,
            "learning_rate": 3e-3,
            "logging_steps": 2,
            "save_steps": 0,
        }
        return TrainArgs(**{**given, **changes})

    return make


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def log_of(folder: str | Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    timed = ("seconds", "tokens_per_second", "memory_gib")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def test_losses_fall_and_the_score_finds_the_answer(options: Options, tmp_path: Path) -> None:
    args = options(
        max_steps=60, batch_size=8, score_loss=0.5, stage1_loss=1.0, document_loss=0.1,
        keep_ratio=(0.2, 1.0), keep_ratio_schedule="anneal", logging_steps=10,
    )  # fmt: skip
    summary = train(args)
    log = log_of(args.output)
    assert [line["step"] for line in log] == [1, 10, 20, 30, 40, 50, 60]
    for name in ("answer_loss", "stage1_loss", "document_loss"):
        assert log[-1][name] < 0.85 * log[0][name]
    assert log[-1]["score_loss"] < 0.2 * log[0]["score_loss"]
    assert log[-1]["found"] > 0.8 > log[0]["found"]
    assert log[-1]["keep_ratio"] < 0.3 < log[0]["keep_ratio"]
    parts = log[3]
    assert parts["loss"] == pytest.approx(
        parts["answer_loss"] + parts["stage1_loss"] + 0.5 * parts["score_loss"]
        + 0.1 * parts["document_loss"], rel=1e-5,
    )  # fmt: skip
    assert summary["steps"] == 60
    record = json.loads((tmp_path / "run" / "train.json").read_text())
    assert record["status"] == "finished"
    assert record["args"]["score_loss"] == 0.5
    model = ReMambaForCausalLM.from_pretrained(args.output)
    assert model.config.compression_config.keep_ratio == 0.2
    written = {path.suffix for path in (tmp_path / "run").iterdir()}
    # the one .py lets transformers find the package
    assert written <= {".json", ".jsonl", ".safetensors", ".png", ".py"}


def test_the_score_is_told_from_other_documents_where_each_stands_once(
    options: Options, tmp_path: Path
) -> None:
    found = {}
    for negatives in ("document", "batch"):
        args = options(
            max_steps=1, score_loss=0.5, score_negatives=negatives,
            output=str(tmp_path / negatives),
        )  # fmt: skip
        train(args)
        found[negatives] = log_of(args.output)[0]["score_loss"]
    assert found["batch"] > found["document"]  # more to be told from
    with pytest.raises(InputError, match="--score-negatives batch needs the whole document"):
        train(options(score_loss=0.5, score_negatives="batch", length=(0.2, 0.2)))


@pytest.mark.parametrize("placement", ["replace", "before_question"])
def test_a_shared_document_gives_the_loss_of_separate_rows(
    base: str, options: Options, placement: str, assert_close: Callable[..., None]
) -> None:
    args = options()
    model = ReMambaForCausalLM.from_pretrained(base).train()
    data = read_data(
        args.data,
        make_tokenizer(),
        vocab_size=model.config.vocab_size,
        max_length=100,
        score_target="answer",
    )
    given: dict[str, Any] = {"steps": 2, "batch_size": 4, "questions": 2, "seed": 0}
    compression = model.config.compression_config.replace(placement=placement)
    found = []
    for shared in (True, False):
        batch = StepBatches(data, shared=shared, score_target="answer", **given)[0]
        del batch["kind"], batch["num_tokens"], batch["about"]
        model.zero_grad()
        out = model(**batch, compression=compression, with_stage1_loss=True, return_logits=False)
        (out.loss + out.stage1_loss + out.score_loss).backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append((out.loss, out.stage1_loss, out.score_loss, gradients))
    (*together, gradients), (*apart, other_gradients) = found
    for one, other in zip(together, apart, strict=True):
        assert_close(one, other)
    for one, other in zip(gradients, other_gradients, strict=True):
        assert_close(one, other)


def test_the_saving_of_a_shared_document_is_told(
    options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    args = options(check_gradients=False, max_steps=1)
    train(args)
    data = read_data(args.data, make_tokenizer(), vocab_size=512, max_length=100)
    batch = StepBatches(data, steps=1, batch_size=4, questions=2, seed=args.seed)[0]
    documents = int(batch["document_attention_mask"].sum())
    questions = int(batch["prompt_lengths"].sum())
    # two questions a document: one reading of it is spared
    share = documents / (2 * documents + questions)
    assert f"which spares it {100 * share:.0f} % of its tokens" in capsys.readouterr().err


@pytest.mark.parametrize("selector", ["topk", "random"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selector: str
) -> None:
    changes: dict[str, Any] = {
        "max_steps": 6, "save_steps": 3, "score_loss": 0.5, "selector": selector,
        "keep_ratio": (0.1, 0.9), "length": (1.0, 1.0), "save_total_limit": 2,
    }  # fmt: skip
    whole = options(output=str(tmp_path / "whole"), **changes)
    train(whole)
    parts = options(output=str(tmp_path / "parts"), **changes)
    compute_loss = trainer_module.ReMambaTrainer.compute_loss

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return compute_loss(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer_module.ReMambaTrainer, "compute_loss", interrupted)
        train(parts)
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    summary = train(dataclasses.replace(parts, resume=True))
    assert summary["steps"] == 6
    expected = weights(whole.output)
    for name, weight in weights(parts.output).items():
        assert torch.equal(weight, expected[name]), name
    assert log_of(parts.output) == log_of(whole.output)
    record = json.loads((tmp_path / "whole" / "train.json").read_text())
    assert summary["tokens"] == record["tokens"]
    assert summary["accuracy"] == record["accuracy"]

    again = train(dataclasses.replace(parts, resume=True))
    assert again["steps"] == 6
    further = train(dataclasses.replace(parts, resume=True, max_steps=8))
    assert further["steps"] == 8


def test_mamba_trains_everything_but_the_new_parameters(base: str, options: Options) -> None:
    args = options(method="mamba", score_loss=0.5, stage1_loss=1.0)
    train(args)
    before = weights(base)
    for name, weight in weights(args.output).items():
        is_new = name.startswith("compressor.") or name.endswith("theta")
        assert torch.equal(weight, before[name]) == is_new, name
    assert {"stage1_loss", "score_loss", "num_kept"}.isdisjoint(log_of(args.output)[-1])
    assert ReMambaForCausalLM.from_pretrained(args.output).config.method == "plain"
    # a plain model is a base like any other: the selection comes back
    args = options(base=args.output, output=args.output + "-2")
    train(args)
    settings = ReMambaForCausalLM.from_pretrained(args.output).config.compression_config
    assert settings.selector == "topk"


def test_both_methods_read_the_same_for_whole_epochs(options: Options, tmp_path: Path) -> None:
    tokens = set()
    for method in ("remamba", "mamba"):
        args = options(method=method, max_steps=None, epochs=1.5, output=str(tmp_path / method))
        summary = train(args)
        assert summary["steps"] == 9
        tokens.add(summary["tokens"])
    assert len(tokens) == 1


def test_bfloat16_keeps_float32_weights(options: Options) -> None:
    args = options(precision="bfloat16", score_loss=0.5, stage1_loss=1.0)
    train(args)
    assert {weight.dtype for weight in weights(args.output).values()} == {torch.float32}
    assert json.loads((Path(args.output) / "train.json").read_text())["bfloat16"]


def test_accumulated_passes_are_one_step(options: Options, tmp_path: Path) -> None:
    for passes in (1, 2):
        train(options(accumulate=passes, output=str(tmp_path / str(passes)), max_steps=2))
    one, two = log_of(tmp_path / "1"), log_of(tmp_path / "2")
    assert two[-1]["grad_norm"] == pytest.approx(one[-1]["grad_norm"], rel=1e-4)
    assert two[-1]["loss"] == pytest.approx(one[-1]["loss"], rel=1e-5)


def test_gradient_checkpointing_changes_no_result(options: Options, tmp_path: Path) -> None:
    for on in (False, True):
        train(options(gradient_checkpointing=on, output=str(tmp_path / str(on))))
    recomputed = weights(tmp_path / "True")
    for name, weight in weights(tmp_path / "False").items():
        torch.testing.assert_close(recomputed[name], weight, rtol=1e-5, atol=1e-6)


def test_all_kinds_of_rows_train_together_until_accurate(options: Options, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": " the key1 is val1."}] * 4
    rows += [{"prompt": " Where is the key1", "response": " val1"}] * 8
    rows += [{"document": " key1 val1.", "question": " key1", "response": " val1"}] * 8
    args = options(
        data=(write_rows(tmp_path / "m.jsonl", rows),), max_steps=200, learning_rate=2e-2,
        stop_accuracy=0.95, stop_window=3, logging_steps=1, lr_scheduler="constant",
    )  # fmt: skip
    summary = train(args)
    assert summary["steps"] < 200
    assert summary["accuracy"] >= 0.95
    assert "reached 0.95" in summary["stopped"]


def test_a_partial_span_trains_on_separate_rows(options: Options) -> None:
    args = options(
        start=0.1, length=(0.2, 0.6), keep_ratio=(0.2, 0.4), score_loss=0.5, adaption="selective"
    )
    train(args)
    log = log_of(args.output)
    assert weights(args.output)["backbone.layers.0.mixer.adaption.theta"].abs().max() > 0
    assert 0.2 <= log[-1]["length"] <= 0.6
    assert log[-1]["score_loss"] > 0


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    total, clip = trainer_module.Losses.total, trainer_module.ReMambaTrainer._clip_grad_norm
    passes: list[int] = []
    before: dict[str, torch.Tensor] = {}
    models: list[torch.nn.Module] = []

    def broken(self: Any, out: Any) -> torch.Tensor:
        passes.append(1)
        return total(self, out) * (float("nan") if len(passes) == 3 else 1.0)

    def watched(self: Any, model: torch.nn.Module) -> torch.Tensor:
        models.append(model)
        before.update({n: p.detach().clone() for n, p in model.named_parameters()})
        return clip(self, model)

    monkeypatch.setattr(trainer_module.Losses, "total", broken)
    monkeypatch.setattr(trainer_module.ReMambaTrainer, "_clip_grad_norm", watched)
    args = options(save_steps=1, save_total_limit=9, check_gradients=False)
    with pytest.raises(NotFiniteError, match=r"at step 3 \(rows .*d.jsonl:\d+, ") as error:
        train(args)
    named = str(error.value).count("d.jsonl:")
    assert named == 4
    for name, parameter in models[-1].named_parameters():
        assert torch.equal(parameter, before[name])
    assert sorted(path.name for path in Path(args.output).glob("checkpoint-*")) == [
        "checkpoint-1",
        "checkpoint-2",
    ]


def test_a_step_that_is_not_finite_is_skipped_without_asking_the_host(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the host looks only when it reports; until then the optimizer skips by itself."""
    raise_if_broken = trainer_module.ReMambaTrainer._raise_if_broken
    total, passes, reports = trainer_module.Losses.total, [], []
    weights_at: list[torch.Tensor] = []

    def broken(self: Any, out: Any) -> torch.Tensor:
        passes.append(1)
        return total(self, out) * (float("inf") if len(passes) == 2 else 1.0)

    def seldom(self: Any) -> None:
        weights_at.append(self.trained.backbone.embeddings.weight.detach().clone())
        if reports:
            raise_if_broken(self)

    log = trainer_module.ReMambaTrainer.log

    def reported(self: Any, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.state.global_step > 1:
            reports.append(1)
        log(self, logs, start_time)

    monkeypatch.setattr(trainer_module.Losses, "total", broken)
    monkeypatch.setattr(trainer_module.ReMambaTrainer, "_raise_if_broken", seldom)
    monkeypatch.setattr(trainer_module.ReMambaTrainer, "log", reported)
    with pytest.raises(NotFiniteError, match="at step 2 "):
        train(options(logging_steps=4, check_gradients=False))
    assert len(passes) == 4
    assert not torch.equal(weights_at[0], weights_at[2])
    assert torch.equal(weights_at[2], weights_at[-1])
    assert torch.isfinite(weights_at[-1]).all()


def test_an_output_that_is_taken_is_refused(options: Options, tmp_path: Path) -> None:
    args = options(max_steps=1)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    for change in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(InputError, match="other"):
            train(options(output=str(other), **change))
    with pytest.raises(InputError, match="is a file"):
        train(options(output=str(other / "thesis.txt")))
    train(args)
    with pytest.raises(InputError, match="already holds a training run"):
        train(args)
    (Path(args.output) / "notes.txt").write_text("mine")
    train(dataclasses.replace(args, overwrite=True, max_steps=2))
    assert [line["step"] for line in log_of(args.output)] == [1, 2]
    assert (Path(args.output) / "notes.txt").exists()


def test_overwriting_begins_when_all_has_been_checked(options: Options, tmp_path: Path) -> None:
    """Whatever is refused, the old run stays as it was."""
    args = options(max_steps=1, save_steps=1)
    train(args)

    def files() -> dict[str, bytes]:
        found = Path(args.output).rglob("*")
        return {str(path): path.read_bytes() for path in found if path.is_file()}

    before = files()
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": 3}\n')
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": " key1", "response": " val1"}])
    checkpoint = str(Path(args.output) / "checkpoint-1")
    for changes, said in (
        ({"data": (str(bad),)}, "bad.jsonl"),
        ({"base": str(tmp_path / "nowhere")}, "nowhere"),
        ({"data": (prompts,), "document_loss": 0.5}, "needs rows with a document"),
        ({"batch_size": 3, "accumulate": 2}, "does not divide"),
        ({"base": args.output}, "lies in --output"),
        ({"base": checkpoint}, "lies in --output"),
        ({"data": (args.output + "/log.jsonl",)}, "would clear"),
    ):
        with pytest.raises(InputError, match=said):
            train(options(overwrite=True, **changes))
        assert files() == before
    with pytest.raises(InputError, match=r"bad.jsonl"):
        train(dataclasses.replace(args, resume=True, data=(str(bad),)))
    assert files() == before
    train(dataclasses.replace(args, overwrite=True, save_steps=0))
    assert not Path(checkpoint).exists()


def test_a_refused_run_leaves_no_directory(options: Options, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        train(options(base=str(tmp_path / "nowhere")))
    assert not (tmp_path / "run").exists()


def test_before_question_needs_documents(options: Options, tmp_path: Path) -> None:
    """Prompts are refused before training starts; texts have no second stage, and are none."""
    rows: list[dict[str, Any]] = [{"text": " the key1 is val1."}]
    rows += [{"document": " key1 val1.", "question": " key1", "response": " val1"}]
    prompt = {"prompt": " key1", "response": " val1"}
    data = write_rows(tmp_path / "m.jsonl", [*rows, prompt])
    with pytest.raises(InputError, match=r"before_question needs a document.*m.jsonl:3"):
        train(options(data=(data,), placement="before_question"))
    assert not (tmp_path / "run").exists()
    output = str(tmp_path / "mamba")
    train(options(data=(data,), placement="before_question", output=output, method="mamba"))
    data = write_rows(tmp_path / "n.jsonl", rows)
    train(options(data=(data,), placement="before_question"))


def test_training_refuses_the_tokenizers_that_ask_refuses(
    base: str, options: Options, tmp_path: Path
) -> None:
    for content, said in ((None, "holds no tokenizer.json"), ("{}", "tokenizer.json cannot be")):
        shutil.copytree(base, tmp_path / "base", dirs_exist_ok=True)
        for file in (tmp_path / "base").glob("tokenizer*"):
            file.unlink()
        if content is not None:
            (tmp_path / "base" / "tokenizer.json").write_text(content)
        with pytest.raises(InputError, match=said):
            train(options(base=str(tmp_path / "base")))
    small = save_base(tmp_path / "small")
    model = ReMambaForCausalLM.from_pretrained(small)
    model.resize_token_embeddings(model.config.vocab_size - 1)
    model.save_pretrained(small)
    with pytest.raises(InputError, match=r"tokenizer.json has \d+ tokens"):
        train(options(base=small))


def test_a_broken_loss_ends_the_command_in_one_line(
    options: Options, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self: Any, out: Any) -> torch.Tensor:
        return out.loss * float("nan")

    monkeypatch.setattr(trainer_module.Losses, "total", broken)
    args = options()
    command = ["train", "--base", args.base, "--data", *args.data, "--output", args.output]
    assert main([*command, "--max-steps", "2", "--batch-size", "4", "--device", "cpu"]) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("remamba: the loss or its gradient is not finite at step 1")
    assert not any("Traceback" in line for line in err)


def test_resuming_another_run_is_refused(options: Options) -> None:
    args = options(max_steps=1, save_steps=1)
    train(args)
    with pytest.raises(InputError, match="was trained with --seed 42, not 7"):
        train(dataclasses.replace(args, resume=True, seed=7))
    path = Path(args.data[0])
    path.write_text(path.read_text() + path.read_text())
    with pytest.raises(InputError, match="has changed since"):
        train(dataclasses.replace(args, resume=True, max_steps=2))


def test_an_interrupted_run_without_checkpoint_starts_again(options: Options) -> None:
    args = options(max_steps=2, save_steps=2)
    train(args)
    shutil.rmtree(Path(args.output) / "checkpoint-2")
    summary = train(dataclasses.replace(args, resume=True))
    assert summary["steps"] == 2
    assert [line["step"] for line in log_of(args.output)] == [1, 2]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"score_loss": 0.5, "score_target": "evidence"}, "has an 'evidence'"),
        ({"document_loss": 0.5}, "needs rows with a document"),
        ({"length": (0.5, 0.5), "start": 0.6}, "reach past the end"),
        ({"device": "cuda"}, "no GPU"),
    ],
)
def test_options_that_nothing_can_feed_are_refused(
    options: Options, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    if "device" in changes and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    rows = [{"prompt": " key1", "response": " val1"}]
    with pytest.raises(InputError, match=said):
        train(options(data=(write_rows(tmp_path / "p.jsonl", rows),), **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"data": ()},
        {"max_steps": 0},
        {"epochs": 1.0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"keep_ratio": (0.5, 0.1)},
        {"length": (0.0, 0.5)},
        {"keep_ratio_schedule": "anneal"},
        {"resume": True, "overwrite": True},
        {"stop_accuracy": 1.5},
        {"score_loss": -1.0},
        {"betas": (0.9, 1.0)},
        {"output": ""},
    ],
)
def test_options_out_of_range_are_refused(options: Options, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError) as error:
        options(**changes)
    assert "--" in str(error.value)
    assert "\n" not in str(error.value)


def test_compression_is_drawn_from_the_seed_and_the_step(options: Options) -> None:
    base = CompressionConfig(placement="append", num_kept=3)
    args = options(length=(0.1, 0.3), keep_ratio=(0.05, 0.2))
    schedule = CompressionSchedule.from_args(args, base, 100)
    drawn = [schedule.at(step) for step in range(50)]
    assert drawn == [CompressionSchedule.from_args(args, base, 100).at(step) for step in range(50)]
    assert len({(c.length, c.keep_ratio) for c in drawn}) == 50
    assert all(0.1 <= c.length <= 0.3 and 0.05 <= c.keep_ratio <= 0.2 for c in drawn)
    assert {(c.placement, c.num_kept, c.selector) for c in drawn} == {("append", None, "topk")}
    assert schedule.for_evaluation().keep_ratio == pytest.approx(0.125)
    kept = CompressionSchedule.from_args(options(), base, 100).at(0)
    assert (kept.length, kept.num_kept) == (base.length, 3)


def test_rho_anneals_geometrically(options: Options) -> None:
    args = options(keep_ratio=(0.01, 1.0), keep_ratio_schedule="anneal")
    schedule = CompressionSchedule.from_args(args, CompressionConfig(), 101)
    for step, middle in ((0, 1.0), (50, 0.1), (100, 0.01), (200, 0.01)):
        ratio = schedule.at(step).keep_ratio
        assert 0.8 * middle <= ratio <= min(1.2 * middle, 1.0)
    assert schedule.for_evaluation().keep_ratio == 0.01


def test_the_learning_rate_warms_up_and_falls(options: Options) -> None:
    for kind, middle in (("cosine", 0.55), ("linear", 0.55), ("constant", 1.0)):
        args = options(warmup_steps=10, lr_scheduler=kind, min_learning_rate_share=0.1)
        factor = learning_rate_factor(args, 110)
        assert factor(0) == pytest.approx(0.1)
        assert factor(9) == factor(10) == 1.0
        assert factor(60) == pytest.approx(middle)
        assert factor(110) == pytest.approx(1.0 if kind == "constant" else 0.1)


def test_new_parameters_learn_slower_and_vectors_do_not_decay(base: str, options: Options) -> None:
    model = ReMambaForCausalLM.from_pretrained(base)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = set()
    for group in parameter_groups(model, options(learning_rate=1.0, weight_decay=0.1)):
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.add(name)
            is_new = name.startswith("compressor.") or name.endswith("theta")
            assert group["lr"] == (0.5 if is_new else 1.0)
            vector = name.endswith(("bias", "A_log", ".D", "theta", "norm.weight", "norm_f.weight"))
            assert group["weight_decay"] == (0.0 if vector else 0.1), name
    assert seen == set(names.values())


def test_the_command_prints_one_object_or_one_line(
    options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    args = options()
    command = [
        "train", "--base", args.base, "--data", *args.data, "--output", args.output,
        "--max-steps", "2", "--batch-size", "4", "--device", "cpu", "--length", "1", "1",
        "--keep-ratio", "0.2", "0.5", "--score-loss", "0.5", "--json",
    ]  # fmt: skip
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["steps"] == 2
    assert "step 2/2" in err
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
