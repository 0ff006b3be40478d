"""What would make a result worthless without anybody noticing: stopped or said before a student learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from contextlib import suppress

import numpy as np

from tutelage.data.shared import Union
from tutelage.data.source import BadImage, Dataset, Subset
from tutelage.errors import UserError
from tutelage.labels.health.health import StoreHealth
from tutelage.labels.health.histogram import class_counts
from tutelage.labels.health.show import head_lines
from tutelage.labels.health.statistics import BoxesSummary, LabelSummary, MaskSummary
from tutelage.labels.random_access import short_digest
from tutelage.labels.store import Store
from tutelage.stages import Run, Stage
from tutelage.tasks.task import Task
from tutelage.training.notes import take_note


def refuse_nothing_kept(health: StoreHealth, heads: Sequence[str]) -> None:
    """That the pseudo-label rule keeps something of what a teacher said.

    Raises:
        UserError: with the distribution of the scores, from which another threshold can be read, if there are any.
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
                fix=_LOWER if summary.scores.stored else _LONGER,
            )


_LONGER = "train the teacher for longer, in a new `--out`: a lower threshold has nothing to keep either"
_LOWER = (
    "lower the threshold in a new `--out`, with `labels: THIS/labels` in place of the teachers (THIS: this run's "
    "folder), so that nothing is labelled again; a student that starts from its teacher then starts from "
    "`THIS/teachers/HEAD`. Or train the teacher for longer"
)


def missing_classes(parts: Sequence[Dataset], tasks: Mapping[str, Task]) -> dict[str, list[str]]:
    """Of sources of which only a share takes part: the classes that the share has no example of, though the whole has.

    Labels are read one by one until every class is found; no image is decoded.

    Args:
        parts: of the sources (`part_of`); whole ones are not looked at.
        tasks: of the heads, with their classes.
    """
    found = {}
    for part in parts:
        task = tasks.get(part.head or "")
        if not isinstance(part, Subset) or task is None or task.classes is None:
            continue
        known = part.whole.labelled()
        if known is not None and len(known) == len(part):  # all that there is
            continue
        inside, classes = set(part.indices.tolist()), set(range(len(task.classes)))
        absent = classes - _classes_of(part.whole, sorted(inside), classes)
        gone = _classes_of(part.whole, sorted(set(range(len(part.whole))) - inside), absent)
        if gone:
            found[part.name] = [task.classes[index] for index in sorted(gone)]
    return found


def _classes_of(dataset: Dataset, images: Sequence[int], wanted: Set[int]) -> set[int]:
    """Which of the wanted classes the labels of these images have."""
    found: set[int] = set()
    for index in images:
        if len(found) == len(wanted):
            break
        with suppress(BadImage, UserError):  # training sets these aside, and says so
            target = dataset.target(index)
            if target is not None:
                found |= wanted & set(np.flatnonzero(class_counts(target, max(wanted) + 1)).tolist())
    return found


def say_missing(run: Run, stage: Stage, name: str, parts: Sequence[Dataset], tasks: Mapping[str, Task]) -> None:
    """Warn of them; `name` is whose training the stage is."""
    for source, gone in missing_classes(parts, tasks).items():
        text = f"{name}: the share of {source} that is learned has no example of {', '.join(gone)}"
        take_note(stage.folder, text, run.progress)


_SAMPLE = 200
"""So many images of a source are looked for among the labels; of every tenth of them the bytes are compared."""


def check_pseudo_labels(run: Run, store: Store, union: Union, heads: Sequence[str]) -> None:
    """That images have the pseudo labels that were made of them: they may have been exchanged or added since.

    Some images of every source are looked at, evenly spread. Those without a label are noted: labelling set them aside,
    or never saw them.

    Raises:
        UserError: another image has this name by now.
    """
    for dataset in union.datasets:
        indices = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), _SAMPLE)).round().astype(int)).tolist()
        for head in (head for head in heads if head != dataset.head):
            asked = [index for index in indices if not union.said(head, dataset.name, dataset.id(index))]
            made = {index: store.image(head, dataset.name, dataset.id(index)) for index in asked}
            known = [index for index, digest in made.items() if digest is not None]
            for index in known[::10]:
                with suppress(BadImage, OSError):  # training sets it aside, and says so
                    if short_digest(dataset.sha256(index)) != made[index]:
                        raise UserError(
                            f"this image is not the one that was labelled for the head '{head}'",
                            file=dataset.file(index),
                            record=f"{dataset.name}/{dataset.id(index)}",
                            fix="label again, in another --out or after deleting `labels/stage.json` and "
                            "`labels/done.json` here; or put the images back",
                        )
            if len(known) < len(asked):
                text = f"source {dataset.name}: {len(asked) - len(known)} of {len(asked)} images that were looked at "
                take_note(run.folder, f"{text}have no pseudo label of '{head}'", run.progress)
