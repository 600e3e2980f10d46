"""ReMambaTrainer: transformers' Trainer with this method's loss, schedule, checks and log."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from remamba.compression_config import CompressionConfig
from remamba.errors import InputError
from remamba.files import write_whole, writing
from remamba.modeling_base import ReMambaOutput
from remamba.modeling_remamba import ReMambaForCausalLM
from remamba.train.arguments import parameter_groups, uses_bfloat16
from remamba.train.audit import gradient_norms, refuse_untrained
from remamba.train.batches import BatchFacts, StepBatches, make_loader
from remamba.train.checkpoints import WRITING, keep_last, seal
from remamba.train.config import TrainArgs
from remamba.train.data import TEXT
from remamba.train.lora import plain_name, save_adapter
from remamba.train.meter import Meter, best_on_target, row_share
from remamba.train.progress import describe, is_main_process, peak_memory, say
from remamba.train.run_folder import LOG_FILE, METER_FILE
from remamba.train.schedule import CompressionSchedule, learning_rate_factor

if TYPE_CHECKING:
    from peft import PeftModel

AUDITED = 8
"""Steps that the audit of the gradients may look at; one is enough in most runs."""


class NotFiniteError(InputError):
    """The loss or its gradient is not finite; the weights are those of the step before."""


@dataclass
class Losses:
    """How one forward pass becomes one number."""

    stage1: float
    score: float
    document: float

    def total(self, out: ReMambaOutput) -> Tensor:
        """The weighted sum of the losses that `out` has."""
        assert out.loss is not None
        loss = out.loss
        for weight, part in (
            (self.stage1, out.stage1_loss),
            (self.score, out.score_loss),
            (self.document, out.document_loss),
        ):
            if weight and part is not None:
                loss = loss + weight * part
        return loss


class _Rhythm(TrainerCallback):
    """Reports on the last step too, and by this run's options rather than a checkpoint's."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        state.logging_steps, state.save_steps = int(args.logging_steps), int(args.save_steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True


class ReMambaTrainer(Trainer):
    """Trains on StepBatches.

    Args:
        model: to train, in float32; or its PeftModel.
        args: of the run.
        batches: its steps.
        schedule: of the compression; None trains plain Mamba.
        arguments: of transformers' Trainer.
        save_extra: called with each saved directory; the tokenizer is saved there.
    """

    def __init__(
        self,
        model: ReMambaForCausalLM | PeftModel,
        args: TrainArgs,
        batches: StepBatches,
        schedule: CompressionSchedule | None,
        arguments: TrainingArguments,
        save_extra: Callable[[str], Any] | None = None,
    ):
        config: Any = model.config
        use_cache = config.use_cache
        super().__init__(model=model, args=arguments, train_dataset=batches)
        config.use_cache = use_cache  # the saved model is for generation
        self.remove_callback(PrinterCallback)
        self.add_callback(_Rhythm)
        self.model_accepts_loss_kwargs = False  # a step's loss is the mean over its passes
        self.loss_is_scaled_for_ga = False
        self.run_args, self.batches, self.schedule = args, batches, schedule
        self.save_extra = save_extra
        self.trained = model
        self.losses = Losses(args.stage1_loss, args.score_loss, args.document_loss)
        device = self.args.device
        self.meter = Meter(device, args.stop_window)
        self.autocast = uses_bfloat16(args, device)
        self.stopped = "all steps done"
        self._writing: str | None = None
        self._broken = torch.zeros((), device=device)
        self._sound_steps = torch.zeros((), dtype=torch.int64, device=device)
        self._first_step = 0
        self._last = (time.perf_counter(), 0, 0)
        self._latest: dict[str, float] = {}

    # -- what is trained, and how fast ----------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW in one fused kernel, which can also skip a step without asking the host."""
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(
                parameter_groups(model or self.trained, self.run_args),
                lr=self.run_args.learning_rate,
                betas=self.run_args.betas,
                fused=self.args.device.type in ("cpu", "cuda"),
            )
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LambdaLR:
        if self.lr_scheduler is None:
            factor = learning_rate_factor(self.run_args, num_training_steps)
            self.lr_scheduler = LambdaLR(optimizer or self.create_optimizer(), factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_train_dataloader(self) -> DataLoader:
        workers = self.run_args.workers
        on_gpu = self.args.device.type == "cuda"
        if workers is None:
            workers = 2 if on_gpu else 0
        return make_loader(self.batches, workers, pin_memory=on_gpu)

    # -- a step ---------------------------------------------------------------------------------

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        device = self.args.device
        return {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in inputs.items()
        }

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of one forward pass; the model is called exactly once."""
        kind, tokens, about = inputs.pop("kind"), inputs.pop("num_tokens"), inputs.pop("about")
        compression = self._compression_of(kind, self.state.global_step, about)
        out, loss = self._losses_of(model, inputs, compression, about)
        self._measure(out, loss, tokens, inputs.get("score_targets"), is_text=kind == TEXT)
        if compression is not None:
            if compression.keep_ratio is not None:
                self._latest["keep_ratio"] = compression.keep_ratio
            self._latest["length"] = compression.length
        return (loss, out) if return_outputs else loss

    def _compression_of(self, kind: int, step: int, about: BatchFacts) -> CompressionConfig | None:
        if self.schedule is None or kind == TEXT:
            return None
        return self.schedule.at(step, about.rows, about.lengths)

    def _losses_of(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        compression: CompressionConfig | None,
        about: BatchFacts,
    ) -> tuple[ReMambaOutput, Tensor]:
        """The model's output, its losses weighted so that passes average to the step's loss."""
        with self.precision():
            out = model(
                **inputs,
                compression=compression or False,
                score_negatives=self.run_args.score_negatives,
                with_stage1_loss=self.losses.stage1 > 0 and compression is not None,
                with_document_loss=self.losses.document > 0 and "document_ids" in inputs,
                return_logits=False,
                use_cache=False,
            )
            if about.answer_weight != 1.0:
                out.loss = out.loss * about.answer_weight
                if out.stage1_loss is not None:
                    out.stage1_loss = out.stage1_loss * about.answer_weight
            if out.document_loss is not None and about.document_weight != 1.0:
                out.document_loss = out.document_loss * about.document_weight
            return out, self.losses.total(out)

    def audit(self) -> dict[str, float]:
        """The gradient norm of every trained tensor, before the first step; by plain names.

        Raises:
            InputError: one has none, so that it would not be trained.
        """
        steps = range(min(AUDITED, self.batches.steps))
        kinds = [int(self.batches.data.kinds[self.batches.items(step)[0]]) for step in steps]
        passes = [step * self.batches.accumulate for step in steps]
        # texts do not pass through the compressor
        if self.schedule is not None:
            passes = [p for p, kind in zip(passes, kinds, strict=True) if kind != TEXT] or passes

        def loss_of(number: int) -> Tensor:
            inputs = self._prepare_inputs(self.batches[number])
            kind, _, about = inputs.pop("kind"), inputs.pop("num_tokens"), inputs.pop("about")
            compression = self._compression_of(kind, number // self.batches.accumulate, about)
            return self._losses_of(self.trained, inputs, compression, about)[1]

        self.trained.train()
        norms = gradient_norms(self.trained, loss_of, passes, self.sum_over_processes)
        norms = {plain_name(name): norm for name, norm in norms.items()}
        refuse_untrained(norms, len(passes))
        return norms

    def precision(self) -> AbstractContextManager:
        """bfloat16 over float32 weights, or nothing."""
        if self.autocast:
            return torch.autocast(self.args.device.type, torch.bfloat16)
        return nullcontext()

    @torch.no_grad()
    def _measure(
        self, out: ReMambaOutput, loss: Tensor, tokens: int, targets: Tensor | None, is_text: bool
    ) -> None:
        parts = {
            "loss": loss,
            "answer_loss": out.loss,
            "stage1_loss": out.stage1_loss,
            "score_loss": out.score_loss,
            "document_loss": out.document_loss,
        }
        shares: dict[str, tuple[Tensor, Tensor] | None] = {}
        if not is_text:
            shares = {
                "accuracy": row_share(out.correct),
                "stage1_accuracy": row_share(out.stage1_correct),
                "found": None,
            }
        if out.kept is not None and out.kept.index.shape[1]:
            self._latest["num_kept"] = out.kept.index.shape[1]
            if targets is not None:
                shares["found"] = best_on_target(out, targets)
        self.meter.add(parts, shares, tokens)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Clips, and makes sure that a gradient that is not finite changes no weight.

        On a GPU the host does not look: the optimizer's kernel skips the step, and every later one,
        until the next report raises.
        """
        norm = super()._clip_grad_norm(model)
        if isinstance(norm, DTensor):  # of weights in shards
            norm = norm.full_tensor()
        self.meter.add_norm(norm)
        self._broken = torch.maximum(self._broken, 1.0 - torch.isfinite(norm).float())
        self._sound_steps += self._broken == 0
        inner: Any = getattr(self.optimizer, "optimizer", self.optimizer)
        inner.found_inf = self._broken  # read by the fused kernel
        if self.args.device.type != "cuda":
            self._raise_if_broken()
        return norm

    def _raise_if_broken(self) -> None:
        if not self._broken.item():
            return
        step = self._first_step + int(self._sound_steps.item())
        rows = self.batches.where(step)
        shown = ", ".join(rows[:8]) + (", ..." if len(rows) > 8 else "")
        raise NotFiniteError(
            f"the loss or its gradient is not finite at step {step + 1} (rows {shown}); the "
            "weights were not changed by it. Lower --learning-rate, or try --precision float32"
        )

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """0: counting would walk over all parameters in every step."""
        return 0

    # -- reports --------------------------------------------------------------------------------

    def start_clock(self, step: int) -> None:
        """Called before training: the first step of this process, counted from 0."""
        self._first_step = step
        self._last = (time.perf_counter(), step, self.total_tokens())

    def sum_over_processes(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, "sum") if self.args.world_size > 1 else values

    def total_tokens(self) -> int:
        """Tokens read so far, by all processes."""
        if self.args.world_size == 1:
            return self.meter.tokens
        tokens = torch.tensor([self.meter.tokens], device=self.args.device)
        return int(self.sum_over_processes(tokens))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One line on stderr and one in log.jsonl; stops training when it is accurate enough."""
        if "learning_rate" not in logs:  # the Trainer's own summary at the end
            return
        self._raise_if_broken()
        step = self.state.global_step
        now, tokens = time.perf_counter(), self.total_tokens()
        seconds, steps = now - self._last[0], step - self._last[1]
        report: dict[str, Any] = {
            "step": step,
            **self.meter.report(self.sum_over_processes),
            **self._latest,
        }
        report["learning_rate"] = logs["learning_rate"]
        report["tokens"] = tokens
        report["seconds"] = round(self.meter.seconds + seconds, 3)
        report["tokens_per_second"] = round((tokens - self._last[2]) / max(seconds, 1e-9))
        left = (self.state.max_steps - step) * seconds / max(steps, 1)
        report["memory_gib"] = peak_memory(self.args.device)
        self.meter.seconds += seconds
        self._last = (now, step, tokens)
        super().log(dict(report), start_time)
        if is_main_process():
            log = Path(self.run_args.output) / LOG_FILE
            with writing(log), log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(report) + "\n")
        say(describe(report, self.state.max_steps, left))
        self._maybe_stop()

    def _maybe_stop(self) -> None:
        if self.run_args.stop_accuracy is None:
            return
        accuracy, full = self.meter.recent_accuracy(self.sum_over_processes)
        if full and accuracy is not None and accuracy >= self.run_args.stop_accuracy:
            self.stopped = (
                f"accuracy {accuracy:.4f} over {self.run_args.stop_window} steps reached "
                f"{self.run_args.stop_accuracy}"
            )
            say(f"stopping at step {self.state.global_step}: {self.stopped}")
            self.control.should_training_stop = True
            self.control.should_save = self.run_args.save_steps > 0

    # -- files ----------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        return self._writing or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes a checkpoint aside, and renames it once every process has written its part."""
        self._raise_if_broken()
        output = Path(self.run_args.output)
        name = f"checkpoint-{self.state.global_step}"
        folder = output / WRITING / name
        self._writing = str(output / WRITING)
        try:
            with writing(output / name):
                super()._save_checkpoint(model, trial)
            state = self.meter.state_dict(self.sum_over_processes)
            self.accelerator.wait_for_everyone()
            if self.args.should_save and folder.is_dir():
                state["seconds"] += time.perf_counter() - self._last[0]
                write_whole(folder / METER_FILE, json.dumps(state))
                seal(folder, output / name)
                keep_last(output, self.run_args.save_total_limit)
        except InputError:
            shutil.rmtree(folder, ignore_errors=True)  # what a full disk took of it
            raise
        finally:
            self._writing = None
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """The model (or its adapter) in safetensors, and its tokenizer; nothing pickled."""
        if not self.args.should_save:
            return
        folder = output_dir or self.run_args.output
        with writing(folder):
            self._save_into(folder, state_dict)

    def _save_into(self, folder: str, state_dict: dict | None) -> None:
        unwrapped = self.accelerator.unwrap_model(self.model)
        if self.run_args.parameters == "lora":
            save_adapter(unwrapped, folder, state_dict)
        else:
            # gathered from shards, the tied head is a copy of the embeddings
            if state_dict is not None and unwrapped.config.tie_word_embeddings:
                state_dict.pop("lm_head.weight", None)
            unwrapped.save_pretrained(folder, state_dict=state_dict)
        if self.save_extra is not None:
            self.save_extra(folder)
