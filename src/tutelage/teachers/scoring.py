"""A teacher of any make against human labels."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from tutelage.data.quarantine import Quarantine
from tutelage.data.source import BadImage, Dataset, UInt8
from tutelage.teachers.teacher import Teacher
from tutelage.training.evaluate import Score, score
from tutelage.types import Target


def score_teacher(teacher: Teacher, dataset: Dataset, quarantine: Quarantine, batch: int = 32) -> Score:
    """A teacher's figures on the labelled images of a dataset.

    Args:
        teacher: of the head that the dataset labels.
        dataset: images without a label are passed over.
        quarantine: where images that cannot be read are listed.
        batch: images at a time.
    """
    metric, images, labelled = teacher.task.metric(), 0, _labelled(dataset, quarantine)
    while rows := list(islice(labelled, batch)):
        for prediction, (_, truth) in zip(teacher.predict([image for image, _ in rows]), rows, strict=True):
            metric.update(prediction, truth)
            images += 1
    return score(metric, images)


def _labelled(dataset: Dataset, quarantine: Quarantine) -> Iterator[tuple[UInt8, Target]]:
    for index in range(len(dataset)):
        try:
            truth = dataset.target(index)
            if truth is not None:
                yield dataset.picture(index).read(), truth
        except BadImage as problem:
            quarantine.add(f"{dataset.name}/{dataset.id(index)}", dataset.sha256(index), "decode", str(problem))
