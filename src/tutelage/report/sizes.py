"""How many weights the backbones have while they learn, and in the end (X-Learner, figure 4)."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from tutelage.methods.x_learner import PRUNED
from tutelage.recipe import Distillation, StudentPart, XLearner
from tutelage.report.folder import RunFolder, Stage
from tutelage.report.measured import scroll
from tutelage.training.simclr import SimCLR

_TITLES = {part.model_fields["kind"].default: part.title for part in (StudentPart, SimCLR, XLearner, Distillation)}
"""What the student's row is called in the transfer table, by its kind."""


def sizes(run: RunFolder) -> str:
    """A table of all pre-trainings, where one of them has an expanded backbone; else nothing.

    "At its largest" is the largest network that a pre-training is made from, its own or that of another row.
    """
    counted = {stage.name: weights for stage in run.stages if (weights := _weights(stage)) is not None}
    after = {stage.name: stage.after for stage in run.stages}
    rows = []
    for name, final in counted.items():
        group, _, row = name.partition("/")
        if name != "student" and (group != "baselines" or "/" in row):
            continue
        made_from = [counted[stage] for stage in _before(name, after) if stage in counted]
        while_learning = max(final, *made_from, key=lambda weights: sum(weights.values())) if made_from else final
        title = row or _TITLES.get(run.section("student").get("kind"), "student")
        rows.append((title, while_learning, {part: n for part, n in final.items() if part != PRUNED}))
    if all(len(largest) == 1 for _, largest, _ in rows):
        return ""
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{_said(largest)}</td><td>{_said(final)}</td></tr>'
        for name, largest, final in rows
    )
    head = '<th scope="col">initialisation</th><th scope="col">at its largest</th><th scope="col">delivered</th>'
    return scroll(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>", "weights of the backbones")


def _before(name: str, after: Mapping[str, tuple[str, ...]]) -> list[str]:
    """All stages that a stage is made from, directly or not."""
    found: list[str] = []
    waiting = [*after.get(name, ())]
    while waiting:
        stage = waiting.pop()
        if stage not in found:
            found.append(stage)
            waiting += after.get(stage, ())
    return found


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
