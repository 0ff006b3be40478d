"""How many weights the backbones have while they learn, and in the end (X-Learner, figure 4)."""

from __future__ import annotations

from html import escape
from typing import Any

from tutelage.methods.x_learner import PRUNED
from tutelage.report.folder import RunFolder, Stage
from tutelage.report.measured import scroll


def sizes(run: RunFolder) -> str:
    """A table of all pre-trainings, where one of them has an expanded backbone; else nothing."""
    counted = {stage.name: weights for stage in run.stages if (weights := _weights(stage)) is not None}
    rows = []
    for name, final in counted.items():
        group, _, row = name.partition("/")
        if name != "student" and (group != "baselines" or "/" in row):
            continue
        while_learning = counted.get(f"expansions/{name}", final)
        rows.append((row or "student", while_learning, {part: n for part, n in final.items() if part != PRUNED}))
    if all(len(largest) == 1 for _, largest, _ in rows):
        return ""
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{_said(largest)}</td><td>{_said(final)}</td></tr>'
        for name, largest, final in rows
    )
    head = '<th scope="col">initialisation</th><th scope="col">at its largest</th><th scope="col">delivered</th>'
    return scroll(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>", "weights of the backbones")


def _weights(stage: Stage) -> dict[str, int] | None:
    """Part of the backbone to its weights, as the stage counted them."""
    found: Any = stage.counts.get("weights")
    if not isinstance(found, dict) or not found or not all(isinstance(n, int) for n in found.values()):
        return None
    return {str(part): number for part, number in found.items() if number}


def _said(weights: dict[str, int]) -> str:
    whole = f"{sum(weights.values()):,}"
    if len(weights) == 1:
        return whole
    return f"{whole} <small>({', '.join(f'{escape(part)} {number:,}' for part, number in weights.items())})</small>"
