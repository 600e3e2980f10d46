"""The run behind `remamba train`: read, load, train, save."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, set_seed

from remamba.errors import InputError
from remamba.modeling_remamba import ReMambaForCausalLM
from remamba.pretrained import check_model, locate, quiet_transformers
from remamba.provenance import commit, device_name, versions
from remamba.quantised import check_numbers
from remamba.text import load_tokenizer, settle_chat_template, settle_end
from remamba.train.arguments import training_arguments, uses_bfloat16
from remamba.train.audit import share_with_target, shared_saving
from remamba.train.batches import StepBatches
from remamba.train.config import TrainArgs
from remamba.train.data import DOCUMENT, PROMPT, TEXT, TokenData
from remamba.train.data_cache import read_cached
from remamba.train.lora import (
    adapter_config,
    add_adapters,
    freeze_idle,
    hold_frozen_in_bfloat16,
    load_adapter,
)
from remamba.train.progress import amount, peak_memory, say
from remamba.train.run_folder import METER_FILE, RunFolder
from remamba.train.schedule import CompressionSchedule
from remamba.train.trainer import ReMambaTrainer

if TYPE_CHECKING:
    from peft import PeftModel


def train(args: TrainArgs) -> dict[str, Any]:
    """Trains as `args` says and saves the model to `args.output`.

    Returns:
        The summary: steps, tokens, seconds, accuracy of the last steps (None without questions),
        what stopped the run, and the directory.

    Raises:
        InputError: an option, a row or a directory cannot be used.
        NotFiniteError: the loss or its gradient became infinite or NaN.
    """
    with quiet_transformers():
        return _train(args)


def _train(args: TrainArgs) -> dict[str, Any]:
    _check_machine(args)
    folder = RunFolder(args)
    # an adapter's checkpoint is read over the base
    from_base = folder.checkpoint is None or args.parameters == "lora"
    source = locate(args.base) if from_base else str(folder.checkpoint)
    check_numbers(source, check_model(source)[0])
    set_seed(args.seed)
    model = ReMambaForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = load_tokenizer(source, model.config.vocab_size)
    data = _read(args, tokenizer, model.config.vocab_size)
    settle_end(model, tokenizer)
    folder.check_hashes(data.hashes)
    say(data.summary())
    template = settle_chat_template(tokenizer, has_chats=data.counts["chats"] > 0)
    say(template)

    own = folder.record.get("base_reading") or model.config.reading
    model.config.reading = own
    steps = _count_steps(args, data)
    schedule = CompressionSchedule.from_args(args, model.config.compression_config, steps)
    _check_losses(args, schedule, data)
    arguments = training_arguments(args, steps)
    trained = _choose_parameters(model, args, schedule, folder, arguments.device)
    model.config.reading = {
        "method": "remamba" if args.method == "remamba" else "plain",
        "compression": schedule.for_evaluation().to_dict(),
    }
    batches = _batches(args, data, steps, schedule, arguments.process_index, arguments.world_size)
    trainer = ReMambaTrainer(
        trained,
        args,
        batches,
        schedule if args.method == "remamba" else None,
        arguments,
        save_extra=tokenizer.save_pretrained,
    )
    _introduce(args, trainer, trained, schedule, steps)
    record = {
        "status": "running",
        "args": args.to_dict(),
        "base_reading": own,
        "chat_template": template,
        "data": data.hashes,
        "versions": versions(),
        "commit": commit(),
        "device": device_name(arguments.device),
        "processes": arguments.world_size,
        "bfloat16": trainer.autocast,
    }
    folder.prepare()
    folder.write_record(record)
    if folder.checkpoint is None and args.check_gradients:
        folder.write_gradients(_audit(trainer))
    if folder.checkpoint is not None:
        state = json.loads((folder.checkpoint / METER_FILE).read_text())
        trainer.meter.load_state_dict(state, is_first=arguments.process_index == 0)
        say(f"resuming after step {folder.step}")
    if folder.step < steps:
        trainer.start_clock(folder.step)
        trainer.train(
            resume_from_checkpoint=None if folder.checkpoint is None else str(folder.checkpoint)
        )
    else:
        trainer.state.global_step = folder.step
    trainer.save_model(args.output)
    summary = _summary(args, trainer)
    folder.write_record({**record, "status": "finished", **summary})
    folder.draw_curves()
    return summary


def _check_machine(args: TrainArgs) -> None:
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no GPU is available here; choose --device cpu or auto")
    if args.report_to != "none" and not find_spec(args.report_to):
        raise InputError(f"--report-to {args.report_to} needs it installed: pip install it first")
    if args.parameters == "lora" and not find_spec("peft"):
        raise InputError("--parameters lora needs PEFT: pip install '.[train]' in the checkout")


def _read(args: TrainArgs, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> TokenData:
    return read_cached(
        args.data_cache,
        args.data,
        tokenizer,
        vocab_size=vocab_size,
        max_length=args.max_length,
        long_rows=args.long_rows,
        score_target=_score_target(args),
    )


def _score_target(args: TrainArgs) -> str | None:
    return args.score_target if args.score_loss > 0 and args.method == "remamba" else None


def _batches(
    args: TrainArgs,
    data: TokenData,
    steps: int,
    schedule: CompressionSchedule,
    process: int = 0,
    processes: int = 1,
) -> StepBatches:
    return StepBatches(
        data,
        steps=steps,
        batch_size=args.batch_size,
        questions=args.questions_per_document,
        seed=args.seed,
        accumulate=args.accumulate,
        process=process,
        processes=processes,
        shared=args.method == "mamba" or schedule.is_shared,
        score_target=_score_target(args),
        group_by_length=args.group_by_length,
    )


def _count_steps(args: TrainArgs, data: TokenData) -> int:
    if args.max_steps is not None:
        return args.max_steps
    an_epoch = sum(-(-int(count) // args.batch_size) for count in np.bincount(data.kinds))
    return max(math.ceil((args.epochs or 1.0) * an_epoch - 1e-9), 1)


def _check_losses(args: TrainArgs, schedule: CompressionSchedule, data: TokenData) -> None:
    """Raise InputError when a loss was asked for that nothing here can feed."""
    documents = bool((data.kinds == DOCUMENT).any())
    if args.document_loss and not documents:
        raise InputError("--document-loss needs rows with a document; --data has none")
    whole = schedule.is_shared and schedule.covers_all_tokens
    if args.document_loss and args.method == "remamba" and not whole:
        raise InputError(
            "--document-loss needs the whole document as the span: give --start 0 --length 1 1 "
            "with --placement replace or before_question"
        )
    settings, prompts = schedule.settings, (data.kinds == PROMPT).nonzero()[0]
    if args.method == "remamba" and settings.placement == "before_question" and len(prompts):
        raise InputError(
            f"placement before_question needs a document in every row, and {len(prompts)} rows "
            f"are prompts (the first is {data.where(int(prompts[0]))}); give them a document, or "
            "choose --placement replace or append"
        )
    if _score_target(args) == "evidence" and not len(data.evidence.flat):
        raise InputError(
            "--score-target evidence: no question of --data has an 'evidence'; add it, or "
            "choose --score-target answer"
        )
    if args.score_negatives == "batch" and _score_target(args) and not schedule.is_shared:
        raise InputError(
            "--score-negatives batch needs the whole document as the span, since a step then holds "
            "each document once: give --start 0 --length 1 1 with --placement replace, or "
            "--placement before_question"
        )
    if args.score_loss and (data.kinds == TEXT).all():
        raise InputError("--score-loss needs rows with an answer; --data holds texts only")


def _choose_parameters(
    model: ReMambaForCausalLM,
    args: TrainArgs,
    schedule: CompressionSchedule,
    folder: RunFolder,
    device: torch.device,
) -> ReMambaForCausalLM | PeftModel:
    """The model to train: itself, or with adapters in it; what has no use is frozen."""
    if args.gradient_checkpointing:
        # the newer name, and the one it replaced
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable({"use_reentrant": False})
        else:
            model.gradient_checkpointing_enable({"use_reentrant": False})
    trained: ReMambaForCausalLM | PeftModel = model
    if args.parameters == "lora":
        if folder.checkpoint is None:
            backbone_type = model.config.backbone_type
            trained = add_adapters(
                model,
                adapter_config(args, backbone_type),
                with_dt_bias="dt" in args.train_in_full and backbone_type == "mamba2",
            )
        else:
            trained = load_adapter(model, folder.checkpoint, is_trainable=True)
        if uses_bfloat16(args, device):
            hold_frozen_in_bfloat16(trained)
    frozen = freeze_idle(trained, args, schedule.settings)
    if frozen and args.method == "remamba":
        kinds = sorted({name.split(".")[-1] if name.endswith("theta") else name.split(".")[1]
                        for name in frozen})  # fmt: skip
        say(f"not trained, since nothing here depends on them: {', '.join(kinds)}")
    return trained


def _introduce(
    args: TrainArgs,
    trainer: ReMambaTrainer,
    model: torch.nn.Module,
    schedule: CompressionSchedule,
    steps: int,
) -> None:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    precision = "bfloat16 over float32" if uses_bfloat16(args, trainer.args.device) else "float32"
    say(
        f"training {amount(trained)} parameters for {steps:,} steps on "
        f"{device_name(trainer.args.device)}, {precision}"
    )
    if args.method == "remamba":
        settings = schedule.settings
        saving = shared_saving(trainer.batches)
        how = "one copy of the document a question"
        if saving is not None:
            how = f"questions share stage 1, which spares it {100 * saving:.0f} % of its tokens"
        (p_low, p_high), (low, high) = schedule.length, schedule.keep_ratio
        down = "" if schedule.kind == "uniform" else " (from high to low)"
        kept = f"rho {low:g} to {high:g}{down}"
        if settings.num_kept is not None:
            kept = f"K {settings.num_kept}"
        say(
            f"compression: start {settings.start:g}, p {p_low:g} to {p_high:g}, {kept}, "
            f"{settings.selector}, {settings.placement}, {settings.adaption}; {how}"
        )
    share = share_with_target(trainer.batches)
    if share is not None:
        say(f"score loss: {100 * share:.0f} % of the questions of the first steps have a target")


def _audit(trainer: ReMambaTrainer) -> dict[str, float]:
    """Gradient norms by tensor; none where the weights do not lie on this device as a whole."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        say("gradients are not checked before the first step, since the weights are in shards")
        return {}
    norms = trainer.audit()
    least = min(norms, key=lambda name: norms[name])
    say(
        f"gradients checked: all {len(norms)} trained tensors have one, the least "
        f"{norms[least]:.1e} ({least}); gradients.json lists them"
    )
    return norms


def _summary(args: TrainArgs, trainer: ReMambaTrainer) -> dict[str, Any]:
    accuracy, _ = trainer.meter.recent_accuracy(trainer.sum_over_processes)
    return {
        "steps": trainer.state.global_step,
        "tokens": trainer.total_tokens(),
        "seconds": round(trainer.meter.seconds, 3),
        "tokens_per_second": round(trainer.total_tokens() / max(trainer.meter.seconds, 1e-9)),
        "memory_gib": peak_memory(trainer.args.device),
        "accuracy": accuracy,
        "stopped": trainer.stopped,
        "output": args.output,
    }
