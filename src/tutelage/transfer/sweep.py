"""Which of the swept weights of a head's loss is the best, by the validation parts of all downstream sets."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from tutelage.methods.pretraining import weight_row
from tutelage.methods.student import balance_of
from tutelage.methods.workshop import STUDENT
from tutelage.recipe import Recipe, StudentPart


def best_weight(recipe: Recipe, head: str, rows: Iterable[Mapping[str, Any]]) -> tuple[float, float] | None:
    """The best weight of a head, among those that were swept and the student's own.

    The test parts are not looked at. A weight's worth is the mean, over columns and seeds, of the relative improvement
    of the validation figure over the student's; those in which one of the two has no figure do not count. Of every
    column the main metric, which its rows name first, is looked at alone: not the nearest neighbours beside a probe.

    Args:
        recipe: what was run.
        head: a key of its `sweep`.
        rows: the measurements of its transfer table, as in `results.jsonl`.

    Returns:
        The weight and its worth, in percent (0 for the student's own weight); None where nothing can be compared.
    """
    known: dict[str, dict[tuple[str, int], tuple[float, bool]]] = {}
    main: dict[str, str] = {}
    for row in rows:
        if row.get("stage") != "transfer":
            continue
        metric = main.setdefault(row["column"], row["metric"])
        if row["metric"] == metric and row.get("validation") is not None:
            place = (row["column"], row["seed"])
            known.setdefault(row["row"], {})[place] = (row["validation"], row["higher_is_better"])
    mine, worth = known.get(STUDENT, {}), {}
    for weight in recipe.sweep[head]:
        other = known.get(weight_row(head, weight), {})
        gains = [
            (value - mine[place][0]) / abs(mine[place][0]) * (100 if higher else -100)
            for place, (value, higher) in other.items()
            if place in mine and mine[place][0] != 0
        ]
        if gains:
            worth[weight] = statistics.fmean(gains)
    if not worth:
        return None
    best = max(worth, key=lambda weight: worth[weight])
    return (best, worth[best]) if worth[best] > 0 else (_own_weight(recipe, head), 0.0)


def _own_weight(recipe: Recipe, head: str) -> float:
    """The weight of a head's loss in the student itself."""
    student = recipe.student
    assert isinstance(student, StudentPart)  # others have no sweep
    return float(balance_of(recipe, student, student.heads or list(recipe.heads)).weights()[head])
