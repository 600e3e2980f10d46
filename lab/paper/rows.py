"""The paper's evaluations as recipes: which model, at which settings, on which benchmark."""

from __future__ import annotations

from typing import NamedTuple


class Setting(NamedTuple):
    """One run of a recipe."""

    name: str
    """The row's name in the paper, and the run's folder."""
    role: str
    """Which model is asked; the user names one for each role."""
    max_length: int
    compression: dict[str, float | str]
    """Options of the model, by name; of plain models only the method "plain"."""
    paper: float | None = None
    """The paper's average."""


class Recipe(NamedTuple):
    """One of the paper's tables or figures."""

    title: str
    task: str
    shape: str
    """table | lengths | ratios."""
    settings: tuple[Setting, ...]

    @property
    def roles(self) -> tuple[str, ...]:
        """The models it needs, each once."""
        return tuple(dict.fromkeys(setting.role for setting in self.settings))


ROLES = {
    "remamba": "a ReMamba trained from mamba-2.8b",
    "mamba": "mamba-2.8b, finetuned on the same data",
    "mamba-pretrained": "mamba-2.8b as published",
    "llama": "open_llama_3b, finetuned on the same data",
    "llama-pretrained": "open_llama_3b as published",
    "remamba2": "a ReMamba trained from mamba2-2.7b",
    "mamba2": "mamba2-2.7b, finetuned on the same data",
    "mamba2-pretrained": "mamba2-2.7b as published",
    "random": "a ReMamba trained with random selection",
    "fixed": "a ReMamba trained with fixed selection",
    "multiplicative": "a ReMamba trained with multiplicative adaption",
    "middle": "a ReMamba trained with s from 0.1 to 0.3",
    "special": "a ReMamba trained with the vectors appended",
}
"""Role -> what the user must bring at the paper's scale."""
PLAIN: dict[str, float | str] = {"method": "plain"}
LENGTHS = tuple(range(2000, 10_000, 1000))


def _span(p: float, rho: float, **more: float | str) -> dict[str, float | str]:
    return {"start": 0.0, "length": p, "keep_ratio": rho, "placement": "replace", **more}


PAPER = _span(0.18, 0.009)


def _sweep(rows: tuple[tuple[str, str, dict[str, float | str]], ...]) -> tuple[Setting, ...]:
    return tuple(
        Setting(f"{name}-{length}", role, length, options)
        for name, role, options in rows
        for length in LENGTHS
    )


RECIPES = {
    "table1": Recipe(
        "Table 1: LongBench-E",
        "longbench-e",
        "table",
        (
            Setting("llama2-3b-pre", "llama-pretrained", 2000, PLAIN, 28.18),
            Setting("llama2-3b-sft", "llama", 2000, PLAIN, 29.42),
            Setting("mamba-pre", "mamba-pretrained", 6000, PLAIN, 8.39),
            Setting("mamba-sft", "mamba", 6000, PLAIN, 24.63),
            Setting("remamba-sft", "remamba", 6000, PAPER, 27.86),
        ),
    ),
    "table2": Recipe(
        "Table 2: closed-ended tasks of L-Eval",
        "leval",
        "table",
        (
            Setting("llama2-3b-pre", "llama-pretrained", 2000, PLAIN, 20.01),
            Setting("llama2-3b-sft", "llama", 2000, PLAIN, 22.92),
            Setting("mamba-pre", "mamba-pretrained", 6000, PLAIN, 15.29),
            Setting("mamba-sft", "mamba", 6000, PLAIN, 22.19),
            Setting("remamba-sft", "remamba", 6000, _span(0.20, 0.05), 23.83),
        ),
    ),
    "table3": Recipe(
        "Table 3: Mamba-2 on LongBench-E",
        "longbench-e",
        "table",
        (
            Setting("mamba2-pre", "mamba2-pretrained", 6000, PLAIN, 6.29),
            Setting("mamba2-sft", "mamba2", 6000, PLAIN, 24.69),
            Setting("remamba2-sft", "remamba2", 6000, _span(0.25, 0.05), 26.33),
        ),
    ),
    "table4": Recipe(
        "Table 4: where the span starts, on LongBench-E",
        "longbench-e",
        "table",
        (
            Setting("remamba", "remamba", 6000, PAPER, 27.86),
            *(
                Setting(f"middle{s:.1f}", "middle", 6000, _span(0.18, 0.009) | {"start": s}, paper)
                for s, paper in (
                    (0.0, 25.96),
                    (0.1, 26.45),
                    (0.2, 26.86),
                    (0.3, 26.56),
                    (0.4, 26.43),
                )
            ),
            Setting("special", "special", 6000, _span(1.0, 0.009) | {"placement": "append"}, 15.76),
        ),
    ),
    "fig1": Recipe(
        "Figure 1, its long scores: LongBench-E at 2,000 tokens",
        "longbench-e",
        "table",
        (
            Setting("mamba-pre", "mamba-pretrained", 2000, PLAIN),
            Setting("llama2-3b-pre", "llama-pretrained", 2000, PLAIN),
            Setting("mamba2-pre", "mamba2-pretrained", 2000, PLAIN),
        ),
    ),
    "fig3": Recipe(
        "Figure 3: LongBench-E against the maximum length",
        "longbench-e",
        "lengths",
        _sweep((("mamba-sft", "mamba", PLAIN), ("remamba-sft", "remamba", PAPER))),
    ),
    "fig4": Recipe(
        "Figure 4: L-Eval against the maximum length",
        "leval",
        "lengths",
        _sweep((("mamba-sft", "mamba", PLAIN), ("remamba-sft", "remamba", _span(0.20, 0.05)))),
    ),
    "fig5": Recipe(
        "Figure 5: the ablations on LongBench-E",
        "longbench-e",
        "lengths",
        _sweep(
            (
                ("mamba-sft", "mamba", PLAIN),
                ("remamba-sft", "remamba", PAPER),
                ("random-select", "random", _span(0.18, 0.009, selector="random", adaption="none")),
                ("fix-select", "fixed", _span(0.18, 0.009, selector="fixed", adaption="none")),
                ("multiplicative", "multiplicative", _span(0.18, 0.009, adaption="multiplicative")),
            )
        ),
    ),
    # the paper's text does not tell the figure's grid: this one is ours, around its best point
    "fig7": Recipe(
        "Figure 7: LongBench-E over p and rho",
        "longbench-e",
        "ratios",
        tuple(
            Setting(f"p{p:g}-rho{rho:g}", "remamba", 6000, _span(p, rho))
            for p in (0.10, 0.14, 0.18, 0.22, 0.26, 0.30)
            for rho in (0.005, 0.009, 0.03, 0.05, 0.1)
        ),
    ),
}
"""Recipe names as the command has them. Figure 6, of speed, is `remamba bench fig6`."""
