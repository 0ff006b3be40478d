"""What was chosen for each cell of the transfer table, seed by seed: learning rate and steps, or the L2 penalty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tutelage.report.tables import Measurement, Table

_EDGES = {
    "rate low": "lowest rate",
    "rate high": "highest rate",
    "steps high": "most steps",
    "l2 low": "lowest L2",
    "l2 high": "highest L2",
}


@dataclass(frozen=True)
class Chosen:
    """What was chosen for one cell with one seed.

    Attributes:
        rate: peak learning rate; None where nothing was fine-tuned.
        steps: as `rate`.
        l2: weight of the penalty; None where nothing was probed.
        edge: where in its grid it lies at the edge: "lowest rate, most steps"; "" where it does not.
    """

    rate: float | None
    steps: int | None
    l2: float | None
    edge: str

    def __str__(self) -> str:
        """Without the edge: "0.02 × 300", "L2 0.1"; "" where nothing is known."""
        if self.l2 is not None:
            return f"L2 {self.l2:.2g}"
        return " × ".join(f"{v:{form}}" for v, form in ((self.rate, "g"), (self.steps, ",d")) if v is not None)


Settings = Mapping[tuple[str, int], Mapping[int, Chosen]]
"""By row and index of the column: seed to what was chosen, in the order of the seeds. A cell without any is missing."""


def settings_of(table: Table, measurements: Sequence[Measurement]) -> Settings:
    """What was chosen for the figures of a table, as far as the measurements say it."""
    places = {(column.name, column.metric): index for index, column in enumerate(table.columns)}
    found: dict[tuple[str, int], dict[int, Chosen]] = {}
    for m in sorted(measurements, key=lambda m: m.seed):
        index, one = places.get((m.column, m.metric)), _chosen(m)
        if m.stage == table.stage and index is not None and m.value is not None and str(one):
            found.setdefault((m.row, index), {})[m.seed] = one
    return found


def _chosen(measured: Measurement) -> Chosen:
    rate, steps, l2 = (_number(measured.extras.get(key)) for key in ("rate", "steps", "l2"))
    edges = str(measured.extras.get("edge") or "").split(",")
    told = ", ".join(_EDGES.get(edge.strip(), edge.strip()) for edge in edges)
    return Chosen(rate, None if steps is None else int(steps), l2, told)


def _number(value: object) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None  # type: ignore[arg-type]


def by_seed(chosen: Mapping[int, Chosen]) -> list[tuple[str, Chosen]]:
    """("seed 3", what was chosen) in the order of the seeds; one entry with "" where all seeds agree."""
    if len(set(chosen.values())) < 2:
        return [("", one) for one in list(chosen.values())[:1]]
    return [(f"seed {seed}", one) for seed, one in chosen.items()]


def settings_grid(table: Table, settings: Settings) -> list[list[str]]:
    """The settings as a table of texts, its heads first, without rows and columns that have none; [] where none has."""
    rows = [row for row in table.rows if any(place[0] == row for place in settings)]
    columns = [index for index in range(len(table.columns)) if any(place[1] == index for place in settings)]
    heads = ["initialisation", *(table.columns[index].name for index in columns)]
    lines = [[row, *(_cell(settings.get((row, index), {})) for index in columns)] for row in rows]
    return [heads, *lines] if lines else []


def _cell(chosen: Mapping[int, Chosen]) -> str:
    """ "0.02 × 300", "seed 0: 0.02 × 300; seed 1: 0.02 × 600 (most steps)", or "–"."""
    texts = (
        (f"{seed}: " if seed else "") + str(one) + (f" ({one.edge})" if one.edge else "")
        for seed, one in by_seed(chosen)
    )
    return "; ".join(texts) or "–"


def settings_note(settings: Settings) -> str:
    """What the settings are and how many lie at an edge, as sentences."""
    every = [one for chosen in settings.values() for one in chosen.values()]
    edges = sum(bool(one.edge) for one in every)
    lead = "Learning rate × steps, or the L2 penalty of a linear probe, chosen on the validation part."
    wide = "choices lie at the edge of their grid, as marked: a wider grid may give better figures."
    return f"{lead} {edges} of {len(every)} {wide}" if edges else lead
