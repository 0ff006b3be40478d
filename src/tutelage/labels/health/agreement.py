"""Whether teachers say the same where they speak of the same thing: a figure for each pair of heads that has one.

Two heads speak of the same thing where class names are equal but for upper and lower case, or where both hold depth,
or both normals. Compared is what the rules leave, on images that both heads label. For shares stands beside each
figure what it would be by chance: figures near it mean that the two know nothing of each other.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from tutelage.labels.health.statistics import grid, unit_of
from tutelage.part import Part
from tutelage.tasks.task import Task
from tutelage.types import IGNORE, Boxes, Field, Label, Mask, Target, Vectors

_OVERLAP = 0.5
"""IoU from which on two boxes are the same object."""
_FEWEST = 10
"""Pixels, at least, that a rank correlation or a mean angle of one image is made from."""
_PRESENT = 0.01
"""Share of an image's labelled pixels from which on a class is in the picture."""

By = Literal["pixels of a box", "boxes matched", "class found", "class", "pixels", "rank correlation", "angle"]
"""What was measured:

pixels of a box: share of a box's labelled pixels that have its class in the mask, averaged over boxes. By chance: the
    same for the whole image.
boxes matched: 2 m / (a + b) for m pairs of boxes of one class with an IoU of at least 0.5, a and b boxes.
class found: share of images whose likeliest class is among the boxes, or on at least 1% of the mask's labelled pixels.
    By chance: how often these classes are found on all images that both label.
class: share of images of one likeliest class, of those where either names a class that both know.
pixels: share of pixels of one class, of those where both name a class and either names one that both know.
rank correlation: Spearman's, of depths valid in both, averaged over images; inverse depth is turned first.
angle: between normals valid in both, in degrees, averaged over images.
"""

MEANINGS: dict[By, str] = {
    "pixels of a box": "of a box's pixels have its class in the mask",
    "boxes matched": "of boxes have a partner of their class (IoU >= 0.5)",
    "class found": "of images show what their class says",
    "class": "of images have the same class",
    "pixels": "of pixels have the same class",
    "rank correlation": "rank correlation of depth",
    "angle": "degrees between normals",
}


class Agreement(Part):
    """One pair of heads."""

    heads: tuple[str, str]
    by: By
    value: float | None
    """A share, a correlation or an angle in degrees; None where nothing could be compared."""
    chance: float | None = None
    """What a share would be by chance."""
    shared: tuple[str, ...] = ()
    """Class names that both know, as the first head writes them."""
    both: int
    """Images with labels of both heads that were looked at."""
    images: int
    """Of these, images that enter the figure."""
    compared: int
    """Boxes, images or pixels that enter the figure."""


@dataclass(frozen=True)
class Head:
    """One side of a pair: its name, its task where that is known, its kind and its classes."""

    name: str
    task: Task | None
    kind: type
    classes: tuple[str, ...] = ()


class Comparison(abc.ABC):
    """One pair of heads while images are looked at. `a` and `b` may be turned against the order they were given in.

    Attributes:
        by: what is measured.
        to_b: int64 [classes of a + 1], the class of b with the same name; -1 for none and for the last entry.
    """

    by: By

    def __init__(self, a: Head, b: Head, shared: Mapping[int, int]) -> None:
        self.a, self.b = a, b
        self.shared = dict(shared)
        self.to_b = torch.full((len(a.classes) + 1,), -1, dtype=torch.int64)
        for mine, other in self.shared.items():
            self.to_b[mine] = other
        self.both = self.images = self.compared = 0
        self.sum = self.by_chance = 0.0

    @abc.abstractmethod
    def add(self, a: Any, b: Any, size: tuple[int, int]) -> None:
        """Take in what the rules leave of one image's two labels (None for nothing)."""

    def value(self) -> float | None:
        """The figure; None where nothing was compared."""
        return self.sum / self.compared if self.compared else None

    def chance(self) -> float | None:
        """What it would be by chance; None where that is not known."""
        return None

    def result(self) -> Agreement:
        names = tuple(self.a.classes[k] for k in sorted(self.shared))
        return Agreement(
            heads=(self.a.name, self.b.name),
            by=self.by,
            value=self.value(),
            chance=self.chance() if self.compared else None,
            shared=names,
            both=self.both,
            images=self.images,
            compared=self.compared,
        )


class BoxesInMask(Comparison):
    """Boxes against a mask."""

    by = "pixels of a box"

    def add(self, a: Boxes | None, b: Mask | None, size: tuple[int, int]) -> None:
        before = self.compared
        if a is None or b is None:
            return
        for (x1, y1, x2, y2), theirs in zip(a.boxes.round().int().tolist(), self.to_b[a.classes].tolist(), strict=True):
            inside = b.ids[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]
            labelled = int((inside != IGNORE).sum())
            if theirs < 0 or not labelled:
                continue
            self.compared += 1
            self.sum += int((inside == theirs).sum()) / labelled
            self.by_chance += int((b.ids == theirs).sum()) / int((b.ids != IGNORE).sum())
        self.images += self.compared > before

    def chance(self) -> float:
        return self.by_chance / self.compared


class BoxesMatched(Comparison):
    """Boxes against boxes; a pair is made of the two that overlap most, then of those that are left."""

    by = "boxes matched"

    def add(self, a: Boxes | None, b: Boxes | None, size: tuple[int, int]) -> None:
        theirs = torch.tensor(list(self.shared.values()), dtype=torch.int64)
        first = None if a is None else a.pick(self.to_b[a.classes] >= 0)
        second = None if b is None else b.pick(torch.isin(b.classes, theirs))
        n, m = (0 if boxes is None else len(boxes) for boxes in (first, second))
        self.compared += n + m
        self.images += n + m > 0
        if first is None or second is None or not n or not m:
            return
        overlap = box_iou(first.boxes, second.boxes)
        overlap[self.to_b[first.classes][:, None] != second.classes] = 0
        while float(overlap.max()) >= _OVERLAP:
            i, j = divmod(int(overlap.argmax()), m)
            self.sum += 2
            overlap[i], overlap[:, j] = 0, 0


class ClassFound(Comparison):
    """The class of an image against boxes or a mask."""

    by = "class found"

    def __init__(self, a: Head, b: Head, shared: Mapping[int, int]) -> None:
        super().__init__(a, b, shared)
        self.present = np.zeros(len(b.classes), np.int64)
        self.said = np.zeros(len(b.classes), np.int64)

    def add(self, a: Label | None, b: Boxes | Mask | None, size: tuple[int, int]) -> None:
        found = _present(b, len(self.present))
        self.present += found
        if a is None:
            return
        theirs = int(self.to_b[int(a.probs.argmax())])
        if theirs >= 0:
            self.said[theirs] += 1
            self.sum += bool(found[theirs])
            self.images, self.compared = self.images + 1, self.compared + 1

    def chance(self) -> float:
        return float((self.said * self.present).sum() / (self.compared * self.both))


class SameName(Comparison, abc.ABC):
    """What two heads name, things of one kind counted: images or pixels."""

    def __init__(self, a: Head, b: Head, shared: Mapping[int, int]) -> None:
        super().__init__(a, b, shared)
        self.table = np.zeros((2, len(self.shared) + 1), np.int64)
        self.number = torch.full((len(b.classes) + 1,), len(self.shared), dtype=torch.int64)  # shared classes first
        for n, theirs in enumerate(self.shared.values()):
            self.number[theirs] = n

    def count(self, mine: Tensor, theirs: Tensor) -> None:
        """Take in one image: int64 [N] classes of a, and [N] classes of b."""
        first, second = self.number[self.to_b[mine]], self.number[theirs]
        either = (first < len(self.shared)) | (second < len(self.shared))
        first, second = first[either], second[either]
        for row, side in enumerate((first, second)):
            self.table[row] += np.bincount(side.numpy(), minlength=len(self.shared) + 1)
        self.compared += len(first)
        self.images += len(first) > 0
        self.sum += int((first == second).sum())

    def chance(self) -> float:
        shares = self.table[:, :-1] / max(1, self.compared)
        return float((shares[0] * shares[1]).sum())


class SameClass(SameName):
    """The class of an image against the class of an image."""

    by = "class"

    def add(self, a: Label | None, b: Label | None, size: tuple[int, int]) -> None:
        if a is not None and b is not None:
            self.count(a.probs.argmax()[None], b.probs.argmax()[None])


class SamePixels(SameName):
    """A mask against a mask."""

    by = "pixels"

    def add(self, a: Mask | None, b: Mask | None, size: tuple[int, int]) -> None:
        if a is not None and b is not None:
            both = (a.ids != IGNORE) & (b.ids != IGNORE)
            self.count(a.ids[both].long(), b.ids[both].long())


class DepthRanks(Comparison):
    """Depth against depth, whatever their units; inverse depth is turned."""

    by = "rank correlation"

    def add(self, a: Field | None, b: Field | None, size: tuple[int, int]) -> None:
        if a is None or b is None:
            return
        both = grid(a.valid & b.valid)
        x, y = grid(a.values)[both].numpy(), grid(b.values)[both].numpy()
        found = rank_correlation(x, y) if len(x) >= _FEWEST else None
        if found is not None:
            inverse = [unit_of(head.task) == "relative inverse depth" for head in (self.a, self.b)]
            self.sum += -found if inverse[0] != inverse[1] else found
            self.images, self.compared = self.images + 1, self.compared + 1


class NormalAngles(Comparison):
    """Normals against normals."""

    by = "angle"

    def add(self, a: Vectors | None, b: Vectors | None, size: tuple[int, int]) -> None:
        if a is None or b is None:
            return
        both = grid(a.valid & b.valid)
        if int(both.sum()) >= _FEWEST:
            x, y = grid(a.values)[:, both].double(), grid(b.values)[:, both].double()
            sine = torch.linalg.vector_norm(torch.linalg.cross(x, y, dim=0), dim=0)
            self.sum += float(torch.rad2deg(torch.atan2(sine, (x * y).sum(0))).mean())
            self.images, self.compared = self.images + 1, self.compared + 1


def rank_correlation(x: NDArray[Any], y: NDArray[Any]) -> float | None:
    """Spearman's: Pearson's correlation of ranks, equal values sharing their mean rank; None where one is constant."""
    first, second = (ranks - ranks.mean() for ranks in (_ranks(x), _ranks(y)))
    size = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / size if size > 0 else None


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place.reshape(-1)]


def _present(target: Boxes | Mask | None, classes: int) -> NDArray[np.int64]:
    """1 for each class that is in the picture, else 0."""
    if target is None:
        return np.zeros(classes, np.int64)
    if isinstance(target, Boxes):
        return (np.bincount(target.classes.numpy(), minlength=classes)[:classes] > 0).astype(np.int64)
    counts = np.bincount(target.ids.numpy().ravel(), minlength=256)
    counts[IGNORE] = 0
    return (counts[:classes] >= max(1.0, _PRESENT * counts.sum())).astype(np.int64)


_PAIRS: dict[tuple[type, type], type[Comparison]] = {
    (Boxes, Mask): BoxesInMask,
    (Boxes, Boxes): BoxesMatched,
    (Label, Boxes): ClassFound,
    (Label, Mask): ClassFound,
    (Label, Label): SameClass,
    (Mask, Mask): SamePixels,
    (Field, Field): DepthRanks,
    (Vectors, Vectors): NormalAngles,
}


def comparisons(heads: Sequence[Head]) -> list[Comparison]:
    """An empty comparison for every pair of heads that can be compared."""
    found: list[Comparison] = []
    for a, b in combinations(heads, 2):
        for first, second in ((a, b), (b, a)):
            made = _PAIRS.get((first.kind, second.kind))
            shared = shared_classes(first.classes, second.classes)
            if made is not None and (shared or first.kind in (Field, Vectors)):
                found.append(made(first, second, shared))
                break
    return found


def shared_classes(a: Sequence[str], b: Sequence[str]) -> dict[int, int]:
    """Index in a to index in b of names that are equal but for case and outer blanks."""
    known = {name.strip().casefold(): index for index, name in reversed(list(enumerate(b)))}
    places = ((index, known.get(name.strip().casefold())) for index, name in enumerate(a))
    return {index: place for index, place in places if place is not None}


def compare(pairs: Sequence[Comparison], images: Iterable[Mapping[str, tuple[Target | None, tuple[int, int]]]]) -> None:
    """Take images into all comparisons.

    Args:
        pairs: they are changed.
        images: head to what its rule leaves of one image (None for nothing) and the image's (height, width); heads
            without a label of the image are left out.
    """
    for labels in images:
        for pair in pairs:
            if pair.a.name in labels and pair.b.name in labels:
                pair.both += 1
                (first, size), (second, _) = labels[pair.a.name], labels[pair.b.name]
                pair.add(first, second, size)
