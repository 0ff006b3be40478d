"""Measurements as the tables of the papers: rows are initialisations, columns are tasks, cells are means over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tutelage.methods.workshop import STUDENT
from tutelage.transfer.rows import RANDOM
from tutelage.transfer.statistics import Comparison

MINUS = "\N{MINUS SIGN}"

Judge = Callable[[str, str, str, str], Comparison | None]
"""Called with a row, another row, a column and a metric: their difference with its interval, where it is known."""


class BadMeasurement(ValueError):
    """A line of the results that is no measurement; the message says why."""


@dataclass(frozen=True)
class Measurement:
    """One line of `results.jsonl`.

    Attributes:
        stage: the table it belongs to: "transfer", "upstream", ...
        row: what was measured: an initialisation, or "teacher" and "student".
        column: what it was measured on: a downstream set or a head.
        metric: the figure's name ("top-1", "mIoU", ...).
        value: the figure; None when the measurement failed.
        failed: why there is no value, or "".
        seed: of the run that was measured.
        higher_is_better: for this metric.
        images: how many test images the figure was measured on, when known.
        order: the row's place in its table, from 0; None where the line does not say.
        control: whether the row only shows what pre-training is worth.
        without: the head that the row's student was not taught, or "".
        extras: whatever else the line says (rate, steps, ...).
        average: whether it is the mean of the row's figures in other columns.
    """

    stage: str
    row: str
    column: str
    metric: str
    value: float | None
    failed: str = ""
    seed: int = 0
    higher_is_better: bool = True
    images: int | None = None
    order: int | None = None
    control: bool = False
    without: str = ""
    extras: dict[str, Any] = field(default_factory=dict)
    average: bool = False

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Measurement:
        """A measurement from a line's plain values. A value that is NaN or infinite is a failed measurement.

        A line may have a value and a failure: then other settings failed on the way to it, and the value counts.

        Raises:
            BadMeasurement: a text key is missing, or the value is neither a number nor null.
        """
        for key in ("stage", "row", "column", "metric"):
            if not isinstance(plain.get(key), str) or not plain[key]:
                raise BadMeasurement(f"has no {key}")
        value, failed, extras = plain.get("value"), str(plain.get("failed") or ""), {}
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise BadMeasurement(f"its value is no number: {value!r}")
        if value is not None and not math.isfinite(value):
            failed = failed or ("the value is not a number" if math.isnan(value) else "the value is infinite")
        elif value is not None and failed:
            extras["failed on the way"], failed = failed, ""
        if value is None and not failed:
            failed = "no value"
        seed, images, without = _whole(plain.get("seed")), _whole(plain.get("n")), plain.get("without")
        known = {"stage", "row", "column", "metric", "value", "failed", "seed", "higher_is_better", "n"}
        known |= {"order", "control", "without", "evidence"}
        return cls(
            plain["stage"],
            plain["row"],
            plain["column"],
            plain["metric"],
            None if value is None or failed else float(value),
            failed,
            0 if seed is None else seed,
            plain.get("higher_is_better", True) is not False,
            images,
            _whole(plain.get("order")),
            plain.get("control") is True,
            without if isinstance(without, str) else "",
            {key: entry for key, entry in plain.items() if key not in known and entry not in (None, "")} | extras,
        )


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


@dataclass(frozen=True)
class Cell:
    """The measurements of one row and column over seeds.

    Attributes:
        by_seed: seed to figure, of those that have one, seeds increasing.
        failures: why the other seeds have none.
    """

    by_seed: Mapping[int, float] = field(default_factory=dict)
    failures: tuple[str, ...] = ()

    @property
    def values(self) -> tuple[float, ...]:
        """The figures, in the order of their seeds."""
        return tuple(self.by_seed.values())

    @property
    def n(self) -> int:
        """How many seeds have a figure."""
        return len(self.by_seed)

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.n else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation (divided by n - 1); None below two figures."""
        return statistics.stdev(self.values) if self.n > 1 else None


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: the downstream set or the head.
        metric: the figure in it.
        higher_is_better: for the metric.
        digits: decimals shown, so that the largest figure has about three places.
        images: test images behind a figure, where all measurements agree on it.
        average: whether it is the mean of other columns of the table.
    """

    name: str
    metric: str
    higher_is_better: bool
    digits: int
    images: int | None
    average: bool = False

    def number(self, value: float) -> str:
        """A figure as shown, with a true minus sign."""
        return f"{value:.{self.digits}f}".replace("-", MINUS)

    def signed(self, difference: float) -> str:
        """A difference as shown: "+1.2", "−0.3"; one that rounds to nothing is "±0.0"."""
        text = f"{difference:+.{self.digits}f}"
        return f"±{text[1:]}" if float(text) == 0 else text.replace("-", MINUS)


@dataclass(frozen=True)
class Table:
    """Rows by columns.

    Attributes:
        stage: the measurements' stage.
        rows: names; the first is the base that gains are measured from.
        columns: in order of first appearance, means of other columns last.
        cells: by (row, index of the column); a pair without any measurement is missing.
        controls: the rows that only show what pre-training is worth.
        without: the head that a row's student was not taught, of rows that leave one out.
        judge: tells differences from noise; None where nothing is known of noise.
    """

    stage: str
    rows: tuple[str, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[str, int], Cell]
    controls: tuple[str, ...] = ()
    without: Mapping[str, str] = field(default_factory=dict)
    judge: Judge | None = field(default=None, compare=False)

    @property
    def seeds(self) -> int:
        """The largest number of figures behind one cell."""
        return max((cell.n for cell in self.cells.values()), default=0)

    def cell(self, row: str, column: int) -> Cell:
        return self.cells.get((row, column), Cell())

    def mean(self, row: str, column: int) -> float | None:
        return self.cell(row, column).mean

    def pairs(self, row: str, other: str, column: int) -> list[tuple[float, float]]:
        """The figures of two rows, of the seeds that both have: seeds differ more than many rows do."""
        mine, theirs = self.cell(row, column).by_seed, self.cell(other, column).by_seed
        return [(mine[seed], theirs[seed]) for seed in mine if seed in theirs]

    def difference(self, row: str, other: str, column: int) -> float | None:
        """Mean less another row's mean, over the seeds that both have, in the metric's own unit and sign."""
        pairs = self.pairs(row, other, column)
        return statistics.fmean(mine - theirs for mine, theirs in pairs) if pairs else None

    def gain(self, row: str, column: int) -> float | None:
        """The difference from the base; None for the base itself, and where there is none."""
        return None if row == self.rows[0] else self.difference(row, self.rows[0], column)

    def means(self, row: str, other: str, column: int) -> tuple[float, float] | None:
        """The means of two rows over the seeds that both have; None where there is no such seed."""
        pairs = self.pairs(row, other, column)
        if not pairs:
            return None
        mine, theirs = zip(*pairs, strict=True)
        return statistics.fmean(mine), statistics.fmean(theirs)

    def compare(self, row: str, other: str, column: int) -> int | None:
        """1 when `row` is better than `other` over the seeds that both have, -1 when worse, 0 when their means are
        level at the digits shown; None without both."""
        means = self.means(row, other, column)
        if means is None:
            return None
        digits = self.columns[column].digits
        mine, theirs = (round(mean, digits) for mean in means)
        difference = mine - theirs
        if round(difference, digits) == 0:
            return 0
        return 1 if (difference > 0) == self.columns[column].higher_is_better else -1

    def parts(self) -> Table:
        """The table without the columns that are means of others."""
        return replace(self, columns=tuple(column for column in self.columns if not column.average))

    def interval(self, row: str, other: str, column: int) -> Comparison | None:
        """`row` less `other` with the 95% interval of the difference; None where it is not known."""
        about = self.columns[column]
        if self.judge is None or row == other or not (self.cell(row, column).n and self.cell(other, column).n):
            return None
        found = self.judge(row, other, about.name, about.metric)
        return found if found is not None and math.isfinite(found.low + found.high) else None

    def clearly(self, row: str, other: str, column: int) -> int | None:
        """1 when `row` is better than `other` beyond the noise, -1 when worse, 0 inside the noise; None: not known."""
        found = self.interval(row, other, column)
        if found is None:
            return None
        if not found.clear:
            return 0
        return 1 if (found.low > 0) == self.columns[column].higher_is_better else -1

    def level(self, column: int) -> bool:
        """Whether two rows or more have a figure and all of them are the same at the digits shown."""
        rows = [row for row in self.rows if self.cell(row, column).n]
        return len(rows) > 1 and all(self.compare(row, rows[0], column) == 0 for row in rows)

    def best(self, column: int) -> set[str]:
        """The rows with the best mean at the digits shown; empty unless one row is better than another."""
        rows = [row for row in self.rows if self.cell(row, column).n]
        if len(rows) < 2 or self.level(column):
            return set()
        return {row for row in rows if all((self.compare(row, other, column) or 0) >= 0 for other in rows)}

    def best_of(self, rows: Sequence[str], column: int) -> str | None:
        """The first of `rows` that none of them beats; None when none has a figure."""
        known = [row for row in rows if self.cell(row, column).n]
        return next((r for r in known if all((self.compare(r, o, column) or 0) >= 0 for o in known)), None)

    def failures(self) -> list[tuple[str, str, str]]:
        """(row, column, reason) of every measurement that failed."""
        return [
            (row, column.name, reason)
            for row in self.rows
            for index, column in enumerate(self.columns)
            for reason in self.cell(row, index).failures
        ]


def stages(measurements: Iterable[Measurement]) -> list[str]:
    """The stages measured, "transfer" and "upstream" first."""
    seen = dict.fromkeys(m.stage for m in measurements)
    first = [stage for stage in ("transfer", "upstream") if stage in seen]
    return first + [stage for stage in seen if stage not in first]


def main_tables(measurements: Sequence[Measurement], judges: Mapping[str, Judge]) -> dict[str, Table]:
    """The main table of every stage.

    Args:
        measurements: of all stages.
        judges: what tells differences from noise, of the stages where something does.
    """
    made = {stage: main_table(measurements, stage, judges.get(stage)) for stage in stages(measurements)}
    return {stage: table for stage, table in made.items() if table is not None}


def main_table(measurements: Iterable[Measurement], stage: str, judge: Judge | None = None) -> Table | None:
    """The paper's table of a stage: of each column the metric that appears first. None without measurements."""
    rows = [m for m in measurements if m.stage == stage]
    first = first_metrics(rows)
    return _table([m for m in rows if m.metric == first[m.column]], stage, judge)


def detail_table(measurements: Iterable[Measurement], stage: str) -> Table | None:
    """The other metrics of a stage, one column a (set, metric). None when there are none."""
    rows = [m for m in measurements if m.stage == stage]
    first = first_metrics(rows)
    return _table([m for m in rows if m.metric != first[m.column]], stage)


def first_metrics(measurements: Sequence[Measurement]) -> dict[str, str]:
    """Column to the metric that appears first in it, which is its main one."""
    first: dict[str, str] = {}
    for measured in measurements:
        first.setdefault(measured.column, measured.metric)
    return first


def _table(measurements: Sequence[Measurement], stage: str, judge: Judge | None = None) -> Table | None:
    if not measurements:
        return None
    by_column: dict[tuple[str, str], list[Measurement]] = {}
    for measured in measurements:
        by_column.setdefault((measured.column, measured.metric), []).append(measured)
    by_column = {key: by_column[key] for key in _grouped(by_column)}
    cells: dict[tuple[str, int], Cell] = {}
    for index, group in enumerate(by_column.values()):
        for row in dict.fromkeys(m.row for m in group):
            mine = sorted((m for m in group if m.row == row), key=lambda m: m.seed)
            values = {m.seed: m.value for m in mine if m.value is not None}
            cells[row, index] = Cell(values, tuple(f"seed {m.seed}: {m.failed}" for m in mine if m.failed))
    rows = _ordered_rows(measurements)
    controls = {m.row for m in measurements if m.control} or {RANDOM}
    return Table(
        stage,
        rows,
        tuple(_column(g) for g in by_column.values()),
        cells,
        tuple(row for row in rows if row in controls),
        {m.row: m.without for m in measurements if m.without},
        judge,
    )


def _grouped(keys: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """(column, metric) pairs with those of one column side by side."""
    by_column: dict[str, list[tuple[str, str]]] = {}
    for key in keys:
        by_column.setdefault(key[0], []).append(key)
    return [key for group in by_column.values() for key in group]


def _column(group: Sequence[Measurement]) -> Column:
    largest = max((abs(m.value) for m in group if m.value is not None), default=0.0)
    digits = 1 if largest >= 10 else 2 if largest >= 1 else 3
    images = {m.images for m in group if m.value is not None}  # a measurement that failed tells none
    return Column(
        group[0].column,
        group[0].metric,
        group[0].higher_is_better,
        digits,
        images.pop() if len(images) == 1 else None,
        group[0].average,
    )


def _ordered_rows(measurements: Sequence[Measurement]) -> tuple[str, ...]:
    """Rows in the recipe's order where the measurements say it; otherwise as they appear, but the base first and the
    student last, in whatever order the stages finished."""
    places = {RANDOM: 0, "teacher": 0, STUDENT: 2, "student": 2}
    stated = {m.row: m.order for m in measurements if m.order is not None}
    rows = dict.fromkeys(m.row for m in measurements)
    return tuple(sorted(rows, key=lambda row: (stated.get(row, len(rows)), places.get(row, 1))))
