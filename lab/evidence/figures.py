"""Figures of the evidence: a row of panels for each family, a panel for each task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.asked.conditions import PASSAGES64
from lab.evidence.summary import ALL, SHOWN, forms_of
from remamba.evals.figures import plt, save

Families = Mapping[str, Mapping[str, Any]]


def draw_scores(families: Families, main: str, file: Path) -> bool:
    """Score against length with its interval as a band; False where there is nothing to draw."""
    labels = [main, "plain", "plain-more", f"{main}: stage1", f"{main}: model-bm25"]
    labels += [f"{main}: model-bm25{PASSAGES64}", f"{main}: two-stage-bm25"]

    def panel(axes: Any, family: Mapping[str, Any], task: str) -> bool:
        for number, (label, marker) in enumerate(zip(labels, "osD^vX*", strict=True)):
            if label in family["rows"]:
                cells = _alone(family["rows"][label]["tasks"][task])
                scores = [cell["score"] for cell in cells.values()]
                lows, highs = zip(*(cell["interval"] for cell in cells.values()), strict=True)
                line = {"color": f"C{number}", "marker": marker, "label": label}
                axes.plot(list(cells), scores, **line)
                axes.fill_between(list(cells), lows, highs, color=f"C{number}", alpha=0.15)
        axes.set_ylim(-3, 103)
        return True

    return _draw(families, panel, "score", file)


def draw_differences(families: Families, main: str, file: Path) -> bool:
    """Main minus plain against length, with intervals; False where there is nothing to draw."""

    def panel(axes: Any, family: Mapping[str, Any], task: str) -> bool:
        if (found := family["differences"].get("plain")) is None:
            return False
        cells = _alone(found["tasks"][task])
        values = [cell["difference"] for cell in cells.values()]
        lows = [max(0.0, cell["difference"] - cell["interval"][0]) for cell in cells.values()]
        highs = [max(0.0, cell["interval"][1] - cell["difference"]) for cell in cells.values()]
        axes.axhline(0, color="black", linewidth=0.8)
        label = f"{main} minus plain"
        axes.errorbar(list(cells), values, [lows, highs], marker="o", capsize=3, label=label)
        return True

    return _draw(families, panel, "difference", file)


def draw_links(families: Families, main: str, file: Path) -> bool:
    """Found, and right where found, against length; False where there is nothing to draw."""

    def panel(axes: Any, family: Mapping[str, Any], task: str) -> bool:
        links = family["links"].get(main, {}).get(task, {})
        found = {int(n): link["every"] for n, link in links.items() if "every" in link}
        right = {int(n): link["found"]["score"] for n, link in links.items() if "found" in link}
        if found:
            axes.plot(list(found), list(found.values()), "o-", label="all evidence found")
        if right:
            axes.plot(list(right), list(right.values()), "s-", label="right where all found")
        axes.set_ylim(-3, 103)
        return bool(found)

    return _draw(families, panel, "%", file)


def draw_forms(families: Families, main: str, file: Path) -> bool:
    """Each form's score at the longest length; False where none has forms beside the main table's.

    Args:
        main: stands out in colour.
    """
    shown = {
        name: forms
        for name, family in families.items()
        if set(forms := forms_of(family)) - set(family["table"])
    }
    tasks = [t for t in SHOWN if any(t in families[name]["questions"] for name in shown)]
    if not tasks:
        return False
    heights = [0.26 * len(forms) + 0.9 for forms in shown.values()]
    figure, grid = plt.subplots(
        len(shown),
        len(tasks),
        figsize=(1.6 + 3.8 * len(tasks), sum(heights)),
        squeeze=False,
        sharey="row",
        gridspec_kw={"height_ratios": heights},
    )
    for row, (name, forms) in zip(grid, shown.items(), strict=True):
        for axes, task in zip(row, tasks, strict=True):
            known = families[name]["rows"]
            length = max(_alone(known[main]["tasks"].get(task, {})), default=None)
            if length is None:
                axes.axis("off")
                continue
            for place, label in enumerate(forms):
                cell = known[label]["tasks"][task][str(length)]
                low, high = cell["interval"]
                reach = [[max(0.0, cell["score"] - low)], [max(0.0, high - cell["score"])]]
                color = "C0" if label == main else "0.4"
                axes.errorbar([cell["score"]], [place], xerr=reach, fmt="o", capsize=3, color=color)
            axes.set_yticks(range(len(forms)), forms, fontsize=7)
            axes.set_xlim(-3, 103)
            axes.set_title(f"{name}: {task}, {length:,} tokens", fontsize=9)
            axes.grid(alpha=0.3)
        row[0].invert_yaxis()
    figure.supxlabel("score", fontsize=9)
    save(figure, file)
    return True


def _alone(cells: Mapping[str, Any]) -> dict[int, Any]:
    return {int(length): cell for length, cell in cells.items() if length != ALL}


def _draw(families: Families, panel: Any, label: str, file: Path) -> bool:
    tasks = [task for task in SHOWN if any(task in f["questions"] for f in families.values())]
    if not tasks:
        return False
    size = (4.6 * len(tasks), 3.2 * len(families) + 0.6)
    figure, grid = plt.subplots(len(families), len(tasks), figsize=size, squeeze=False)
    lines: dict[str, Any] = {}
    for row, (name, family) in zip(grid, families.items(), strict=True):
        for axes, task in zip(row, tasks, strict=True):
            if task not in family["questions"] or not panel(axes, family, task):
                axes.axis("off")
                continue
            lengths = list(_alone(family["questions"][task]))
            axes.set_xscale("log", base=2)
            axes.set_xticks(lengths, [f"{length:,}" for length in lengths], fontsize=7)
            axes.set_title(f"{name}: {task}", fontsize=9)
            axes.grid(alpha=0.3)
            handles, labels = axes.get_legend_handles_labels()
            lines |= dict(zip(labels, handles, strict=True))
    if lines:
        figure.supxlabel("tokens", fontsize=9)
        figure.supylabel(label, fontsize=9)
        grid[0][0].legend(lines.values(), lines.keys(), fontsize=7)
        save(figure, file)
    else:
        plt.close(figure)
    return bool(lines)
