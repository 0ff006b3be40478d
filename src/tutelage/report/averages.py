"""The mean over the linear probes, as one more column of the transfer table: AVG Cls of X-Learner (He et al., ECCV
2022, section 4.1)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from tutelage.downstream import PROBE
from tutelage.report.tables import Measurement, first_metrics

AVERAGE = "mean of the probes"
"""The column's name."""

Parts = tuple[tuple[str, str], ...]
"""What a mean is of: (column, metric), two at least."""


def averages(measurements: Sequence[Measurement]) -> Mapping[str, Parts]:
    """The columns that are means of others: that of the probes, where there are two or more."""
    transfer = first_metrics([m for m in measurements if m.stage == "transfer"])
    probes = tuple((column, metric) for column, metric in transfer.items() if column.endswith(PROBE))
    return {AVERAGE: probes} if len(probes) > 1 and AVERAGE not in transfer else {}


def averaged(measurements: Sequence[Measurement], parts: Mapping[str, Parts]) -> list[Measurement]:
    """The means themselves, one a row and seed. A row that lacks one of a mean's columns has no mean: a mean over
    fewer could not be compared."""
    found: dict[tuple[str, int], dict[tuple[str, str], Measurement]] = {}
    for m in measurements:
        if m.stage == "transfer" and m.value is not None:
            found.setdefault((m.row, m.seed), {})[m.column, m.metric] = m
    made = []
    for (row, seed), mine in found.items():
        for name, columns in parts.items():
            of = [mine[column] for column in columns if column in mine]
            if len(of) < len(columns):
                continue
            made.append(
                Measurement(
                    "transfer",
                    row,
                    name,
                    ", ".join(dict.fromkeys(metric for _, metric in columns)),
                    statistics.fmean(m.value for m in of if m.value is not None),
                    seed=seed,
                    higher_is_better=of[0].higher_is_better,
                    images=None if any(m.images is None for m in of) else sum(m.images or 0 for m in of),
                    order=of[0].order,
                    control=of[0].control,
                    without=of[0].without,
                    average=True,
                )
            )
    return made
