"""A teacher of any make against human labels."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from tutelage.data.loading import set_aside
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
    metric, labelled = teacher.task.metric(), _labelled(dataset, quarantine)
    ids: list[str] = []
    while rows := list(islice(labelled, batch)):
        for prediction, (_, truth, id) in zip(teacher.predict([image for image, *_ in rows]), rows, strict=True):
            metric.update(prediction, truth)
            ids.append(id)
    return score(metric, len(ids), ids)


def _labelled(dataset: Dataset, quarantine: Quarantine) -> Iterator[tuple[UInt8, Target, str]]:
    for index in range(len(dataset)):
        try:
            truth = dataset.target(index)
            if truth is not None:
                yield dataset.picture(index).read(), truth, dataset.id(index)
        except BadImage as problem:
            image = set_aside(dataset, index, problem)
            quarantine.add(image.id, image.sha256, "decode", image.reason)
