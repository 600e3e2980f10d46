"""The laboratory's commands, which `remamba` lists behind its own."""

COMMANDS = {
    "data build planted": (
        "lab.commands.data_planted",
        "long documents with facts to ask for, from your books",
    ),
    "data build openorca-longalpaca": (
        "lab.commands.data_mixture",
        "the paper's training mixture, from the hub or from files",
    ),
    "eval planted": (
        "lab.commands.eval_planted",
        "ask about planted data under many conditions, evidence looked up",
    ),
    "eval open": (
        "lab.commands.eval_open",
        "ask what no training has: new names, values, sentences, kinds of facts",
    ),
    "eval evidence": (
        "lab.commands.eval_evidence",
        "the runs of recipes/evidence.py over their seeds, as one report",
    ),
    "bench ops": ("lab.commands.bench:OpsArgs", "time each op beside its floors and peers"),
    "bench generate": ("lab.commands.bench:GenerateArgs", "time prefill and decoding"),
    "bench step": ("lab.commands.bench:StepArgs", "time a training step beside mamba_ssm"),
    "bench long": ("lab.commands.bench:LongArgs", "read a very long prompt, and check it"),
    "bench gaps": ("lab.commands.bench:GapsArgs", "time streams while documents enter"),
    "bench fig6": ("lab.commands.bench:Fig6Args", "the paper's Figure 6: speed by length"),
    "reproduce": ("lab.commands.reproduce", "run one of the paper's tables or figures"),
}
"""Command words -> (module, one-line help), as in `remamba.cli.COMMANDS`."""
