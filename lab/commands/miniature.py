"""`remamba reproduce NAME --scale tiny`: small models and questions of the package in its rows."""

from __future__ import annotations

import json as json_module
import sys
from typing import TYPE_CHECKING, Any

from lab.commands.eval_planted import describe, finish_folder, prepare_folders
from remamba.commands.model_options import ModelOptions
from remamba.errors import InputError

if TYPE_CHECKING:
    from lab.commands.reproduce import Args
    from lab.paper.miniatures import Miniature
    from remamba import Reader

SLOTS, SEED = 32, 0


def run(args: Args) -> int:
    """Asks what is missing, writes report.md, scores.json and the figure, prints the tables.

    Raises:
        InputError: a model cannot be used, or the output holds something else.
    """
    from lab.asked.run import PlantedRun
    from lab.asked.summary import score_conditions, summarise
    from lab.commands.miniature_training import train_models
    from lab.commands.reproduce_output import check_output, given_models, open_output
    from lab.paper.miniature_report import as_json, draw, markdown
    from lab.paper.miniatures import (
        LENGTHS,
        MINIATURES,
        ROLES,
        choose_models,
        plan_conditions,
        plan_rows,
    )
    from remamba.evals.runner import say
    from remamba.evals.scoring import SCORES_FILE
    from remamba.files import write_whole
    from remamba.pretrained import EMBEDDED, embedded_models, quiet_transformers
    from remamba.provenance import commit, device_name, versions

    miniature = MINIATURES[args.name]
    given = given_models(args, ROLES)
    models = {}
    if not args.train:
        models = choose_models(miniature, given, embedded_models(), EMBEDDED)
    check_output(args)
    documents, hashes = miniature.read(args.limit)
    if args.train:
        open_output(args)
        models = train_models(args, miniature)
    with quiet_transformers():
        loaded = _load(args, miniature, models)
        own = {role: found.model.resolve_method() for role, found in loaded.items()}
        asked, missing = plan_rows(miniature, own)
        conditions = plan_conditions(miniature, asked, own)
        needed = {condition.answers_by for condition in conditions}
        loaded = {role: found for role, found in loaded.items() if role in needed}
        described = {role: _describe(found) for role, found in loaded.items()}
        device = next(iter(loaded.values())).model.device
        settings: dict[str, Any] = {"task": "planted", **described, "lengths": list(LENGTHS)}
        settings |= {"limit": args.limit, "seed": SEED, "data": hashes}
        facts: dict[str, Any] = {"command": ["remamba", *sys.argv[1:]], "slots": SLOTS}
        facts |= {"versions": versions(), "commit": commit(), "device": device_name(device)}
        if not args.train:
            open_output(args)
        folders = prepare_folders(args.output, conditions, settings, facts, resume=args.resume)
        for line in missing:
            say(line)
        count = sum(len(document.questions) for document in documents)
        say(f"{len(documents)} documents, {count} questions, {len(conditions)} settings")
        PlantedRun(args.output, conditions, documents, loaded, SEED).run()
    runs = score_conditions(args.output, conditions)
    for condition in conditions:
        finish_folder(folders[condition.name], runs[condition.name])
    summary = summarise(args.output, conditions, runs)
    write_whole(args.output / SCORES_FILE, json_module.dumps(summary, indent=2) + "\n")
    said = markdown(args.name, miniature, asked, missing, summary, runs, described)
    write_whole(args.output / "report.md", said)
    draw(args.name, miniature, asked, summary, args.output)
    if args.json:
        about = {"name": args.name, "scale": args.scale, "limit": args.limit, "missing": missing}
        print(json_module.dumps({**about, **as_json(asked, summary, described)}))
    else:
        print(said, end="")
    return 0


def _load(args: Args, miniature: Miniature, models: dict[str, str]) -> dict[str, Reader]:
    """Role -> its model.

    Raises:
        InputError: one cannot be loaded, or is not of the kind that the rows are about.
    """
    from lab.paper.miniatures import plan_rows

    if not models:
        plan_rows(miniature, {})
    # small models: the same answers on every device are worth more than speed
    options = ModelOptions(device=args.device, dtype="float32")
    loaded = {}
    for role, name in models.items():
        loaded[role] = options.load(name, SLOTS)
        kind = loaded[role].model.config.backbone_type
        if miniature.backbone not in (None, kind):
            raise InputError(
                f"{args.name} is about {miniature.backbone}, and {name} is a {kind}; give "
                f"--models {role}=DIR"
            )
    return loaded


def _describe(loaded: Reader) -> dict[str, Any]:
    config, model = loaded.model.config, loaded.model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {**describe(loaded), "kind": config.backbone_type, "parameters": parameters}
