"""What the evidence trains: the branches and in what they differ, the sizes, and the stages."""

from __future__ import annotations

from dataclasses import dataclass

from chain import Options

Stage = tuple[str, tuple[str, ...], Options]
"""Name, files of data, options of `remamba train`."""

BRANCHES: dict[str, tuple[str | None, Options]] = {
    "plain": (None, {"method": "mamba", "document_loss": 0.3}),
    "plain-more": ("plain", {"times": 2}),
    # Whole sentences: a name and a value may stand on both sides of the token found.
    "sentences": (
        "window-relative",
        {"window": 16, "score_negatives": "batch", "kept": 128, "select": (0.15, 0.6)},
    ),
    "sentences-random": ("sentences-no-score", {"selector": "random", "window": 1}),
    # A part of the document (s = 0): no loss on it, whose vectors would see what comes later.
    "paper": (
        None,
        {"method": "remamba", "start": 0, "length": (0.18, 0.18), "adaption": "selective",
         "accumulate": 4, "rho": 0.009},
    ),
    "p20": ("paper", {"length": (0.2, 0.2), "rho": 0.05}),
    "plain-bare": ("plain", {"document_loss": None}),  # beside forms without this loss
    "sentences-no-score": ("sentences", {"score_negatives": "document", "score_loss": 0}),
    "sentences-answer": ("sentences", {"score_target": "answer"}),
    "sentences-own": ("sentences", {"score_negatives": "document"}),
    "sentences-tokens": ("sentences", {"window": 1}),
    "sentences-share": ("sentences", {"kept": None, "rho": 0.03}),
    "sentences-256": ("sentences", {"kept": 256}),
    "sentences-no-crowds": ("sentences", {"last": ("long",)}),
    "sentences-fixed": ("sentences-no-score", {"selector": "fixed", "window": 1}),
    "sentences-none": ("sentences", {"adaption": "none", "importance": "relu"}),
    "sentences-selective": ("sentences", {"adaption": "selective"}),
    "sentences-multiplicative": ("sentences", {"adaption": "multiplicative"}),
    "sentences-before": ("sentences", {"placement": "before_question"}),
    "sentences-append": (
        "sentences",
        {"placement": "append", "score_negatives": "document", "document_loss": 0,
         "accumulate": 4},
    ),
    # A vector that carries its token, and an alpha that leaves out all but the best.
    "window-relative": (
        "window", {"value": "residual", "adaption": "exact", "importance": "relative"}
    ),
    "relative-batch": ("window-relative", {"score_negatives": "batch"}),
    "few": ("window-residual", {"kept": 24}),
    "few-relative": ("window-relative", {"kept": 24}),
    "few-pairs": ("few-relative", {"window": 2}),
    "few-tokens": ("few-relative", {"window": 1, "kept": 16}),
    "window-residual": ("window", {"value": "residual"}),
    # What is found is an answer's last token: words of several tokens must come whole.
    "window": ("whole-evidence", {"window": 4}),
    # The whole document (p = 1).
    "whole": (
        None,
        {"method": "remamba", "length": (1, 1), "stage1_loss": 1, "score_loss": 1,
         "adaption": "multiplicative", "document_loss": 0.3},
    ),
    "whole-evidence": ("whole", {"score_target": "evidence"}),
    "paper-score": ("paper", {"stage1_loss": 1, "score_loss": 1}),
    "p20-score": ("p20", {"stage1_loss": 1, "score_loss": 1}),
}  # fmt: skip
"""Branch -> the branch it differs from, and in what: options of `remamba train` (None: its
default), and those of FORM. This is also the order in which they run."""
MAIN = tuple(BRANCHES)[:6]
"""What conclusions rest on."""
FORM: Options = {
    "rho": 0.015,  # in the end
    "select": (0.08, 0.4),  # rho in the stage of this name
    "kept": None,  # places kept of every document from the stage middle on, in place of rho
    "last": ("crowds-long", "long"),  # data of the last stage
    "times": 1,  # its steps, as a multiple; 2 is about the compute of two stages
}
"""What a branch may set that is no option of `remamba train`."""


def form(name: str) -> Options:
    """All that a branch sets."""
    base, differences = BRANCHES[name]
    return {**(FORM if base is None else form(base)), **differences}


@dataclass(frozen=True)
class Scale:
    """What differs between the evidence and its toy."""

    seeds: str
    branches: str
    rows: int
    tune_rows: int
    test_lengths: tuple[int, ...]
    tune_lengths: tuple[int, ...]
    tokenizer: Options
    """Of the tokenizer, beside its defaults."""
    shape: Options
    """Of the base; without any its size tells."""
    documents: dict[str, int]
    """Of each file of data."""
    steps: dict[str, int]
    """Of each stage."""
    recall_batch: int
    """Documents of a step; so are the next three."""
    select_batch: int
    middle_batch: int
    long_batch: int
    middle_tokens: tuple[int, int]
    long_tokens: tuple[int, int]


SCALES = {
    "full": Scale(
        seeds="1 2 3", branches=" ".join(BRANCHES), rows=512, tune_rows=96,
        test_lengths=(500, 1000, 2000, 4000, 6000, 8000), tune_lengths=(1000, 8000), tokenizer={},
        shape={},
        documents={
            "short": 60000, "names": 80000, "crowds": 8000, "crowds-long": 5000, "starts": 40000,
            "quotes": 16000, "text": 20000, "middle": 20000, "long": 10000,
        },
        steps={
            "recall": 500, "names": 1500, "mixed": 800, "wide": 600,
            "read-out": 120, "select": 250, "middle": 300, "long": 400,
        },
        recall_batch=256, select_batch=192, middle_batch=64, long_batch=32,
        middle_tokens=(250, 900), long_tokens=(700, 2000),
    ),
    "toy": Scale(
        seeds="1", branches="plain sentences paper", rows=16, tune_rows=8,
        test_lengths=(300,), tune_lengths=(300,),
        tokenizer={"vocab_size": 1024, "sample_mb": 0.2, "word_weight": 20},
        shape={"hidden_size": 64, "layers": 2, "state_size": 16, "head_dim": 16},
        documents={
            "short": 64, "names": 64, "crowds": 32, "crowds-long": 16, "starts": 32,
            "quotes": 16, "text": 16, "middle": 32, "long": 16,
        },
        steps={
            "recall": 6, "names": 4, "mixed": 4, "wide": 2,
            "read-out": 2, "select": 2, "middle": 2, "long": 2,
        },
        recall_batch=8, select_batch=8, middle_batch=4, long_batch=4,
        middle_tokens=(250, 400), long_tokens=(300, 500),
    ),
}  # fmt: skip


def base_stages(scale: Scale) -> list[Stage]:
    """From random weights to the base of all branches."""
    end = {"warmup_steps": 20, "min_learning_rate_share": 0.3, "questions_per_document": 8}
    return [
        # Recall: answers by the kind of fact alone.
        ("recall", ("short",),
         {"batch_size": scale.recall_batch, "questions_per_document": 4, "learning_rate": 2e-3,
          "warmup_steps": 100}),
        # Documents with one or two kinds of facts force it to read names.
        ("names", ("names",),
         {"batch_size": scale.recall_batch, "questions_per_document": 6, "learning_rate": 2e-3,
          "warmup_steps": 50, "lr_scheduler": "linear", "min_learning_rate_share": 0.3,
          "stop_accuracy": 0.9, "stop_window": 25}),
        # All tasks, and text.
        ("mixed", ("short", "names", "crowds", "quotes", "middle", "text"),
         {"batch_size": scale.middle_batch, "learning_rate": 1.5e-3, **end}),
        ("wide", ("crowds", "middle", "long", "text"),
         {"batch_size": scale.long_batch, "learning_rate": 1e-3, **end}),
    ]  # fmt: skip


def branch_stages(name: str, scale: Scale) -> list[Stage]:
    """From the base to a branch: what all branches share, and what this one sets."""
    branch = form(name)
    rho, select, kept, last, times = (branch.pop(key) for key in FORM)
    stages: list[tuple[str, tuple[str, ...], tuple[float, float], Options]] = [
        # Nearly every place is kept: Value learns to be read before anything is left out, on the
        # shortest documents, where that begins soonest.
        ("read-out", ("starts",), (0.99, 1),
         {"batch_size": scale.recall_batch, "questions_per_document": 3, "learning_rate": 1e-3,
          "lr_scheduler": "constant"}),
        # Fewer and fewer places are kept: the score learns which.
        ("select", ("short", "names", "quotes"), select,
         {"batch_size": scale.select_batch, "accumulate": 2, "questions_per_document": 4,
          "learning_rate": 1.2e-3, "min_learning_rate_share": 0.5}),
        # All tasks; then the length and the ratio that the model is for.
        ("middle", ("crowds", "middle"), (0.05, 0.1),
         {"batch_size": scale.middle_batch, "questions_per_document": 4, "learning_rate": 1e-3,
          "min_learning_rate_share": 0.5}),
        ("long", last, (rho, 0.05),
         {"batch_size": scale.long_batch, "questions_per_document": 6, "learning_rate": 8e-4}),
    ]  # fmt: skip
    found = []
    for stage, files, ratios, own in stages:
        share: Options = {}
        if branch["method"] == "remamba":
            # rho falls from the higher to the lower
            share = {"keep_ratio_schedule": "anneal", "keep_ratio": ratios}
            if kept is not None and stage in ("middle", "long"):
                share = {"num_kept": kept}
        steps = {"max_steps": scale.steps[stage] * times, "warmup_steps": 20}
        found.append((stage, files, {**share, **steps, **own, **branch}))
    return found


def conditions(name: str) -> tuple[str, ...]:
    """How a branch is asked; beside two stages the controls that share their weights."""
    if name == "plain":
        return (
            *("plain", "plain-drop20", "plain-middle", "plain-last", "plain-bm25"),
            *("plain-chunks", "constant"),
        )
    if name.startswith("plain-"):
        return ("stage1",)  # itself
    if name in ("sentences", "window-relative"):
        return ("two-stage", "stage1", "random", "fixed", "drop", "model-bm25", "two-stage-bm25")
    return ("two-stage", "stage1")
