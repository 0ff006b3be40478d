"""What would make a result worthless without anybody noticing: stopped or said before a student learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tutelage.data.mixture import Mixture
from tutelage.data.source import Subset
from tutelage.errors import UserError
from tutelage.labels.health.health import StoreHealth
from tutelage.labels.health.histogram import human_counts
from tutelage.labels.health.show import head_lines
from tutelage.labels.health.statistics import BoxesSummary, LabelSummary, MaskSummary
from tutelage.stages import Run
from tutelage.tasks.task import Task


def refuse_nothing_kept(health: StoreHealth, heads: Sequence[str]) -> None:
    """That the pseudo-label rule keeps something of what a teacher said.

    Raises:
        UserError: with the distribution of the scores, from which another threshold can be read.
    """
    for head in health.heads:
        summary = head.summary
        if head.head not in heads or not isinstance(summary, BoxesSummary | LabelSummary | MaskSummary):
            continue
        if head.records and not summary.kept:
            raise UserError(
                f"the pseudo-label rule keeps nothing of what the teacher of head '{head.head}' said:\n    "
                + "\n    ".join(head_lines(head)),
                field=f"heads.{head.head}.pseudo_threshold",
                value=head.rule,
                fix="lower the threshold (the labels are kept as they are), or train the teacher for longer",
            )


def missing_classes(
    mixture: Mixture, tasks: Mapping[str, Task], fractions: Mapping[str, float]
) -> dict[str, list[str]]:
    """Of sources of which only a share takes part: the classes that the share has no example of, though the whole has.

    Args:
        mixture: which images take part.
        tasks: of the heads, with their classes.
        fractions: source name to share; others are not looked at.
    """
    found = {}
    for number, dataset in enumerate(mixture.datasets):
        task = tasks.get(dataset.head or "")
        if fractions.get(dataset.name, 1.0) >= 1 or task is None or task.classes is None:
            continue
        part = Subset(dataset, np.array(mixture.part(number), np.int64))
        spaces = {str(dataset.head): task.classes}
        some, whole = (human_counts([d], spaces).get(str(dataset.head), {}) for d in (part, dataset))
        gone = [name for name, count in whole.items() if count and not some.get(name)]
        if gone:
            found[dataset.name] = gone
    return found


def say_missing(
    run: Run, name: str, mixture: Mixture, tasks: Mapping[str, Task], fractions: Mapping[str, float]
) -> None:
    """Warn of them; `name` is whose training it is."""
    for source, gone in missing_classes(mixture, tasks, fractions).items():
        run.progress.say(f"note: {name}: the share of {source} that is learned has no example of {', '.join(gone)}")
