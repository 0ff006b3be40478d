"""The control that never looks at an image: what the labels of the training part alone say of the test part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tutelage.data.loading import evaluation_batches, set_aside
from tutelage.data.quarantine import Quarantine
from tutelage.data.source import BadImage, Dataset
from tutelage.progress import SILENT, Bar, Progress
from tutelage.tasks.task import Task
from tutelage.training.evaluate import Score, score
from tutelage.types import Target

BLIND = "image-blind"
"""The row's name."""

_SIDE = 32
"""Pixels of the input that test images are laid into, though nobody looks at them."""


def blind_score(
    name: str,
    task: Task,
    parts: Mapping[str, Dataset],
    quarantine: Quarantine | None = None,
    progress: Progress = SILENT,
) -> Score | None:
    """The figures of `Task.blind` on the test part of a downstream set. Nothing in it is random.

    Test images are read just as for a network, so that the same ones are measured, in the same order; of the training
    part the labels alone are read.

    Args:
        name: of the downstream set, for the bar.
        task: with its classes.
        parts: "train" and "test" are looked at.
        quarantine: where images and labels that cannot be used are listed; None: such a test image stops the run, and
            such a training label is passed over.
        progress: how to show it.

    Returns:
        None where the task knows nothing that could be said.

    Raises:
        NoLabels: the labels of the training part say nothing.
        UserError: a label that contradicts its image; more is set aside than the quarantine allows.
    """
    train, test = parts["train"], parts["test"]
    ids: list[str] = []
    metric = task.metric()
    with progress.bar(f"{name}: {BLIND}", len(train) + len(test)) as bar:
        said = task.blind(_labels(train, quarantine, bar))
        if said is None:
            return None
        for found in evaluation_batches(test, _SIDE, 16, quarantine=quarantine):
            for frame, truth, id in zip(found.frames, found.targets, found.ids, strict=True):
                if truth is not None:
                    metric.update(said(frame.height, frame.width), truth)
                    ids.append(id)
            bar.advance(len(found.ids))
    return score(metric, len(ids), ids)


def _labels(dataset: Dataset, quarantine: Quarantine | None, bar: Bar) -> Iterator[Target]:
    """The labels of a dataset, one by one; those that cannot be used are set aside."""
    for index in range(len(dataset)):
        target = None
        try:
            target = dataset.target(index)
        except BadImage as error:
            if quarantine is not None:
                image = set_aside(dataset, index, error)
                quarantine.add(image.id, image.sha256, BLIND, image.reason)
        bar.advance()
        if target is not None:
            yield target
