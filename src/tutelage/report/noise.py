"""What of a table is noise: the intervals of differences, from the evidence that lies beside the figures."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from statistics import fmean

import numpy as np

from tutelage.data.source import Fault
from tutelage.errors import UserError
from tutelage.part import nearest
from tutelage.report.folder import RunFolder, json_lines
from tutelage.training.evaluate import KeptEvidence, load_evidence
from tutelage.transfer.statistics import Comparison, Resampled, Resampling, check_same_images, difference

FILE = "evidence.npz"
"""Of the lines that name no file of their own."""
_RESAMPLES = 1000
_FEWER = {"AP50": 300, "AP": 100, "mAP": 300}
"""Average precision is slow to compute: it sorts all detections of the set."""

_EQUAL = 1e-9

_Key = tuple[str, str, int]
"""Row, column, seed."""


class Noise:
    """Intervals of differences between rows of one of a run's tables; each is computed when it is asked for, once.

    Where the test images of a cell are not known one by one (the file is missing or damaged, the metric keeps no
    evidence, the other row was tested on other images), seeds alone are drawn, if there are several.

    Args:
        run: what its folder holds.
        stage: of the table's measurements.

    Attributes:
        faults: evidence that could not be used; it grows while intervals are asked for.
    """

    def __init__(self, run: RunFolder, stage: str = "transfer") -> None:
        self.faults: list[Fault] = []
        self._run, self._stage = run, stage
        self._tests: dict[_Key, KeptEvidence | None] = {}
        self._first: dict[str, KeptEvidence] = {}
        self._resamplings: dict[tuple[str, int], Resampling] = {}
        self._figures: dict[tuple[_Key, str], Resampled | None] = {}
        self._found: dict[tuple[str, str, str, str], Comparison | None] = {}
        self._measured = [m for m in run.measurements if m.stage == stage]
        self._values = {(m.row, m.column, m.metric, m.seed): m.value for m in self._measured if m.value is not None}

    def between(self, row: str, other: str, column: str, metric: str) -> Comparison | None:
        """`row` less `other` over the seeds that both have; None where nothing can be drawn again: no evidence, and
        one seed or seeds that change nothing.

        It fits `tables.Judge`.

        Raises:
            UserError: a row, column or metric that the run has no measurement of, not even one that failed.
        """
        key = row, other, column, metric
        if key not in self._found:
            for name in (row, other):
                self._check("row", name, (m.row for m in self._measured))
            self._check("column", column, (m.column for m in self._measured))
            self._check("metric", metric, (m.metric for m in self._measured if m.column == column))
            self._found[key] = self._between(*key)
        return self._found[key]

    def _check(self, what: str, name: str, known: Iterable[str]) -> None:
        names = list(dict.fromkeys(known))
        if name not in names:
            raise UserError(
                f"the {self._stage} figures of this run have no {what} '{name}'{nearest(name, names)}",
                file=self._run.path,
                field=what,
                value=name,
                fix=f"known: {', '.join(names)}" if names else "name another `stage`, or measure first",
            )

    def _between(self, row: str, other: str, column: str, metric: str) -> Comparison | None:
        mine, theirs = (
            {seed: v for (r, c, m, seed), v in self._values.items() if (r, c, m) == (which, column, metric)}
            for which in (row, other)
        )
        seeds = sorted(set(mine) & set(theirs))
        drawn = [[self._resampled((which, column, seed), metric) for seed in seeds] for which in (row, other)]
        known = [[entry for entry in side if entry is not None] for side in drawn]
        if seeds and all(len(side) == len(seeds) for side in known):
            return difference(known[0], known[1], self._images(column))
        differences = [mine[seed] - theirs[seed] for seed in seeds]
        if not seeds or max(differences) - min(differences) <= _EQUAL:  # one seed, or what no seed changes
            return None
        return difference([Resampled(mine[s]) for s in seeds], [Resampled(theirs[s]) for s in seeds])

    def _resampled(self, key: _Key, metric: str) -> Resampled | None:
        if (key, metric) not in self._figures and key[1] in self._run.averages:
            self._figures[key, metric] = self._mean(key)
        if (key, metric) not in self._figures:
            test = self._test(key)
            usable = test is not None and metric in test.evidence.names and len(test.evidence) > 0
            self._figures[key, metric] = self._draw(key[1], test, metric) if usable and test is not None else None
        return self._figures[key, metric]

    def _mean(self, key: _Key) -> Resampled | None:
        """The figure of a column that is the mean of others.

        Sets of equal size are drawn alike: as it should be where they are of the same images, and no harm where not.
        Where figures have different numbers of resamples, the first ones that all have count.
        """
        row, column, seed = key
        parts = [self._resampled((row, part, seed), metric) for part, metric in self._run.averages[column]]
        draws = [part.draws for part in parts if part is not None and part.draws is not None]
        if len(draws) < len(parts):
            return None
        most = min(map(len, draws))
        return Resampled(
            fmean(part.value for part in parts if part is not None), np.mean([drawn[:most] for drawn in draws], axis=0)
        )

    def _images(self, column: str) -> int:
        """How many test images a column has; the mean of columns has those of all."""
        parts = self._run.averages.get(column)
        if parts is not None:
            return sum(self._images(part) for part, _ in parts)
        return len(self._first[column].ids)

    def _draw(self, column: str, test: KeptEvidence, metric: str) -> Resampled:
        count = _FEWER.get(metric, _RESAMPLES)
        if (column, count) not in self._resamplings:
            self._resamplings[column, count] = Resampling(len(test.ids), resamples=count)
        return self._resamplings[column, count].figure(test.evidence, metric)

    def _test(self, key: _Key) -> KeptEvidence | None:
        """The evidence of a cell and seed, if it is of the same images as that of the column's other cells."""
        if key not in self._tests:
            self._tests[key] = self._load(key)
        return self._tests[key]

    def _load(self, key: _Key) -> KeptEvidence | None:
        file = self._files.get(key)
        if file is None:
            return None
        try:
            test = load_evidence(file)
            check_same_images([self._first.setdefault(key[1], test), test])
        except UserError as error:
            self.faults.append(Fault(str(file), "", f"{error.problem}: {error.value}", "dropped"))
            return None
        return test

    @cached_property
    def _files(self) -> dict[_Key, Path]:
        """Where the evidence of each row, column and seed lies: beside the lines that name them, and whose figures are
        the run's. Another row of the same name may have left its own behind."""
        found: dict[_Key, Path] = {}
        for stage in self._run.stages:
            lines = self._run.path / stage.name / "results.jsonl"
            for _, line in json_lines(lines, []) if stage.done else ():
                row, column, seed = line.get("row"), line.get("column"), line.get("seed", 0)
                file = lines.with_name(Path(str(line.get("evidence", FILE))).name or FILE)
                if line.get("stage") != self._stage or not isinstance(seed, int) or not file.is_file():
                    continue
                if self._values.get((str(row), str(column), str(line.get("metric")), seed)) == line.get("value"):
                    found[str(row), str(column), seed] = file
        return found


def noises(run: RunFolder) -> dict[str, Noise]:
    """Of the stages whose tests keep evidence."""
    return {stage: Noise(run, stage) for stage in ("transfer", "upstream")}
