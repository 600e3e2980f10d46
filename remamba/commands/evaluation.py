"""What the commands that ask models have in common: their options, the model, the run itself."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, arg

from remamba.commands.model_options import ModelOptions
from remamba.engine.loading import resolve_device, resolve_dtype
from remamba.errors import InputError

if TYPE_CHECKING:
    from remamba.evals.items import Item
    from remamba.evals.readers import AnsweringModel
    from remamba.evals.runner import Asking
    from remamba.evals.tasks import Task
    from remamba.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a run's files go, and the model that is asked."""

    output: Annotated[Path, arg(metavar="DIR")]
    """Where predictions, scores and reports go."""
    slots: Annotated[int, arg(metavar="N")] = 8
    """Prompts that a ReMamba answers at once."""
    seed: int = 0
    """Seed of the random selector, and of what is drawn."""
    resume: bool = False
    """Go on with the run in the output directory."""
    retry_failed: bool = False
    """With --resume: ask again what failed."""
    overwrite: bool = False
    """Replace the run in the output directory."""
    json: bool = False
    """Print scores.json in place of a table."""
    reading: OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)

    def check(self) -> None:
        """Raise InputError for values outside their range."""
        if self.slots < 1:
            raise InputError(f"--slots {self.slots} must be at least 1")
        if self.retry_failed and not self.resume:
            raise InputError("--retry-failed asks again what failed in a run; give --resume too")


def model_type(name: str) -> str | None:
    """What a model's config.json says it is; nothing else of the model is read.

    Raises:
        InputError: there is no such model.
    """
    from transformers import PretrainedConfig

    from remamba.pretrained import hub_options_for, is_missing_directory, locate

    place = locate(name)
    if Path(place).is_dir() and not (Path(place) / "config.json").is_file():
        raise InputError(f"--model {place} holds no config.json, so it is no model directory")
    if is_missing_directory(place):
        raise InputError(f"--model {place} is no directory; give a model directory or a hub name")
    try:
        values, _ = PretrainedConfig.get_config_dict(place, **hub_options_for(place))
        return values.get("model_type")
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--model {name} cannot be read ({reason})") from error


def load_reader(options: RunOptions) -> tuple[AnsweringModel, Method]:
    """The model that answers, a ReMamba or any causal model of transformers, and how it reads.

    A published Mamba is read plainly where no method is given, as everywhere else.

    Raises:
        InputError: there is none, or options were given that it does not know.
    """
    from transformers import AutoModelForCausalLM

    from remamba.checkpoints.published import is_published
    from remamba.evals.readers import TransformersReader
    from remamba.methods.plain import Plain
    from remamba.pretrained import locate
    from remamba.text import load_tokenizer

    reading = options.reading
    place = locate(reading.model)
    kind = model_type(reading.model)
    if kind == "remamba" or is_published(place):
        loaded = reading.load(slots=options.slots)
        is_silent = reading.method is None and not reading.changes()
        if loaded.is_untrained and is_silent and not reading.method_options():
            return loaded, Plain()  # the number that others report of the model
        return loaded, reading.chosen(loaded)
    given = [*reading.changes(), *(["method"] if reading.method not in (None, "plain") else [])]
    given += reading.method_options()
    if given:
        raise InputError(
            f"--{given[0].replace('_', '-')} is for ReMamba models, and {reading.model} is a "
            f"{kind}; leave it out, or convert the model (remamba convert)"
        )
    device = resolve_device(reading.device, "--device")
    dtype = resolve_dtype(reading.dtype, device, "--dtype")
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--model {reading.model} cannot be loaded ({reason})") from error
    tokenizer = load_tokenizer(place, model.config.vocab_size)
    return TransformersReader(model.to(device), tokenizer), Plain()


def carry_out(
    options: RunOptions,
    task: Task,
    prepare: Callable[
        [AnsweringModel], tuple[Asking, Mapping[str, Sequence[Item]], dict[str, Any]]
    ],
    scoring: str = "official",
) -> int:
    """Loads the model, asks, scores, reports and prints.

    Args:
        prepare: from the model to how it is asked, the questions by dataset, and the settings
            that make the predictions what they are.
    """
    from remamba.evals.readers import describe_model
    from remamba.evals.report import write_report
    from remamba.evals.run_folder import RunFolder
    from remamba.evals.runner import check_positions, predict, say
    from remamba.evals.scoring import score_folder, write_scores
    from remamba.evals.tables import score_table
    from remamba.pretrained import quiet_transformers
    from remamba.provenance import commit, versions

    folder = RunFolder(options.output, resume=options.resume, overwrite=options.overwrite)
    with quiet_transformers():
        reader, method = load_reader(options)
        asking, items, settings = prepare(reader)
        check_positions(reader, asking, items)
        model = describe_model(reader.model, method)
        device = model.pop("device")
        folder.prepare(
            {"task": task.name, "model": options.reading.model, **model, **settings},
            {
                "command": ["remamba", *sys.argv[1:]],
                "versions": versions(),
                "commit": commit(),
                "device": device,
                "protocol": asking.describe(),
            },
        )
        say(f"{sum(map(len, items.values()))} questions; {asking.describe()}")
        failed = predict(
            options.output,
            items,
            reader,
            method,
            asking,
            seed=options.seed,
            retry_failed=options.retry_failed,
        )
    if failed:
        say(f"{failed} predictions failed and count as zero; --resume --retry-failed asks again")
    scored = score_folder(task, options.output, scoring)
    write_scores(scored, options.output)
    folder.finish(failed=failed)
    write_report(scored, options.output)
    print(json_module.dumps(scored.to_dict()) if options.json else score_table(scored))
    return 0
