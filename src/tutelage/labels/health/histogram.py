"""How often each class is labelled by the teacher, and by people: what the teacher sees too often or never."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tutelage.data.source import BadImage, Dataset
from tutelage.errors import UserError
from tutelage.part import Part
from tutelage.types import IGNORE, Boxes, Label, Mask, Target

_EXPECTED = 10
"""Labels of a class, at least, that the people's shares let expect, before its absence or rarity means anything."""
_HUMAN_LABELS = 20_000
_HUMAN_MASKS = 1_000
"""Human labels of a source that are counted at most; masks have to be decoded."""


class ClassCount(Part):
    """One class: images, boxes or pixels."""

    name: str
    pseudo: int
    """After the rule."""
    before: int
    """Before the rule."""
    human: int | None = None
    """Among the labels that the teacher learned from; None where they are not known."""


@dataclass(frozen=True)
class Skew:
    """A class that teacher and people give different shares of all labels.

    Attributes:
        name: of the class.
        pseudo, human: its shares, 0 to 1.
    """

    name: str
    pseudo: float
    human: float

    @property
    def times(self) -> float:
        """The teacher's share over the people's; infinite where people never gave the class."""
        return self.pseudo / self.human if self.human > 0 else float("inf")


def skews(classes: Sequence[ClassCount]) -> list[Skew]:
    """Classes by how much the teacher's share exceeds the people's, the most over-represented first.

    Empty where the human counts are not known or there is one class only. Classes too rare to judge are left out: fewer
    than ten labels by the teacher, and fewer than ten expected of it.
    """
    pseudo = sum(entry.pseudo for entry in classes)
    human = sum(entry.human or 0 for entry in classes)
    if not pseudo or not human or len(classes) < 2:
        return []
    found = [
        Skew(entry.name, entry.pseudo / pseudo, (entry.human or 0) / human)
        for entry in classes
        if max(entry.pseudo, (entry.human or 0) / human * pseudo) >= _EXPECTED
    ]
    return sorted(found, key=lambda skew: (-skew.times, skew.human))


def never(classes: Sequence[ClassCount]) -> list[str]:
    """Classes that the teacher never gives although it should have: people's shares, or even ones, let expect ten."""
    pseudo = sum(entry.pseudo for entry in classes)
    human = sum(entry.human or 0 for entry in classes)
    share = {entry.name: (entry.human or 0) / human if human else 1 / len(classes) for entry in classes}
    return [entry.name for entry in classes if not entry.pseudo and share[entry.name] * pseudo >= _EXPECTED]


def human_counts(datasets: Iterable[Dataset], heads: Mapping[str, Sequence[str] | None]) -> dict[str, dict[str, int]]:
    """What people labelled, head by head: class name to images, boxes or pixels.

    Of a large source an even part is counted. Labels that cannot be used are left out. Heads without classes, and
    those that nobody labelled, have no entry.

    Args:
        datasets: opened sources; pools do not matter.
        heads: head to its classes.
    """
    found: dict[str, dict[str, int]] = {}
    for dataset in datasets:
        names = None if dataset.head is None else heads.get(dataset.head)
        if dataset.head is None or not names:
            continue
        counts = np.zeros(len(names), np.int64)
        for target in _targets(dataset):
            counts += class_counts(target, len(names))
        if counts.any():
            known = found.setdefault(dataset.head, dict.fromkeys(names, 0))
            for name, count in zip(names, counts.tolist(), strict=True):
                known[name] += count
    return found


def class_counts(target: Target, classes: int) -> NDArray[np.int64]:
    """int64 [K]: a label's classes (of a probability of at least 1/2), boxes but the ignored ones, or pixels."""
    if isinstance(target, Label):
        return (target.probs >= 0.5).numpy().astype(np.int64)
    if isinstance(target, Boxes):
        return np.bincount(target.classes[~target.ignore].numpy(), minlength=classes)[:classes]
    if isinstance(target, Mask):
        return np.bincount(target.ids[target.ids != IGNORE].numpy(), minlength=classes)[:classes]
    return np.zeros(classes, np.int64)


def _targets(dataset: Dataset) -> Iterable[Target]:
    done, index, step = 0, 0, 1
    while index < len(dataset):
        try:
            target = dataset.target(index)
        except (BadImage, UserError):
            target = None
        if target is not None:
            if done == 0:
                most = _HUMAN_MASKS if isinstance(target, Mask) else _HUMAN_LABELS
                step = max(1, len(dataset) // most)
            done += 1
            yield target
        index += step
