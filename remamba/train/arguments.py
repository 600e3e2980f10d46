"""What transformers' Trainer is told: its arguments, the optimizer's groups, the precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from remamba.checkpoints.convert import is_new
from remamba.train.config import TrainArgs
from remamba.train.lora import plain_name

NO_DECAY = ("A_log", ".D", "dt_bias", "theta", "norm.weight", "norm_f.weight")


def training_arguments(args: TrainArgs, steps: int) -> TrainingArguments:
    """What transformers' Trainer is told; everything it offers beyond that is off."""
    settings = TrainingArguments(
        output_dir=args.output,
        max_steps=steps,
        per_device_train_batch_size=1,  # a loader entry is a whole batch
        gradient_accumulation_steps=args.accumulate,
        learning_rate=args.learning_rate,
        # without a bound the norm is still computed, for the log and the check
        max_grad_norm=args.max_grad_norm or float("inf"),
        logging_steps=args.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps" if args.save_steps else "no",
        save_steps=args.save_steps or 500,
        save_total_limit=None,  # `keep_last` deletes the older ones
        seed=args.seed,
        use_cpu=args.device == "cpu",
        ddp_find_unused_parameters=args.method == "remamba",
        report_to=args.report_to,
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        log_level="error",
    )
    if settings.parallel_mode.value == "not_distributed":
        settings._n_gpu = 1  # several GPUs are for torchrun, never for threads in one process
    return settings


def parameter_groups(model: nn.Module, args: TrainArgs) -> list[dict[str, Any]]:
    """The trained parameters by learning rate and weight decay."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            name = plain_name(name)
            is_matrix = parameter.dim() > 1 and not name.endswith(NO_DECAY)
            decays = is_matrix or args.decay_vectors
            groups.setdefault((is_new(name), decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": args.learning_rate * (args.compressor_learning_rate_scale if new else 1.0),
            "weight_decay": args.weight_decay if decays else 0.0,
        }
        for (new, decays), parameters in groups.items()
    ]


def uses_bfloat16(args: TrainArgs, device: torch.device) -> bool:
    """Whether the forward pass runs under bfloat16 autocast."""
    if args.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return args.precision == "bfloat16"
