"""What each test image contributed to the figures of a task, so that they can be had for any other choice of images.

A test set is a sample. How much a figure would have been another on other images is found by drawing images again, with
replacement (the bootstrap: Efron 1979), which needs no network when these contributions are kept.

Letters in shapes: N images of a test set, S resamples of it, K classes, F figures.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]
"""[S,N]: how often each image counts in each resample; whole numbers, 0 or more."""
Figures = NDArray[np.float64]
"""[S]: a figure in each resample; NaN where a resample has nothing to measure it on."""


class Evidence(abc.ABC):
    """Contributions, image by image, in the order in which the images were seen. Subclasses are frozen dataclasses of
    arrays only, without pickled objects, so that they can be written as they are.

    Attributes:
        kind: the word that a file knows the class by.
    """

    kind: ClassVar[str]

    @property
    @abc.abstractmethod
    def names(self) -> tuple[str, ...]:
        """The figures that can be computed, the papers' figure first."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """N."""

    @abc.abstractmethod
    def figure(self, name: str, weights: Weights) -> Figures:
        """One of `names`, in every resample: as if each image had been seen as often as its weight says."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All of it by name, for a file; the class is made again from the same names."""
        return {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]


@dataclass(frozen=True)
class Hits(Evidence):
    """Whether the likeliest classes hold the truth.

    Attributes:
        first: bool [N], the likeliest class is the truth.
        among: bool [N], one of the five likeliest is.
        truth: int32 [N], the true class.
        classes: int64 scalar, K.
    """

    kind = "hits"
    first: NDArray[np.bool_]
    among: NDArray[np.bool_]
    truth: NDArray[np.int32]
    classes: NDArray[np.int64]

    @property
    def names(self) -> tuple[str, ...]:
        return ("top-1", "top-5", "mean per class") if int(self.classes) > 5 else ("top-1",)

    def __len__(self) -> int:
        return len(self.first)

    def figure(self, name: str, weights: Weights) -> Figures:
        if name != "mean per class":
            right = self.first if name == "top-1" else self.among
            return 100 * ratio(weights @ right.astype(np.float64), weights.sum(1))
        if not len(self):
            return np.full(len(weights), np.nan)
        order = np.argsort(self.truth, kind="stable")
        starts = np.flatnonzero(np.diff(self.truth[order], prepend=-1))
        mine = weights[:, order]
        return 100 * mean_of_some(
            np.add.reduceat(mine * self.first[order], starts, 1), np.add.reduceat(mine, starts, 1)
        )


@dataclass(frozen=True)
class Ranking(Evidence):
    """Independent scores a class, for average precision over images.

    Attributes:
        scores: float32 [N,K].
        shown: bool [N,K], the image shows the class.
    """

    kind = "ranking"
    scores: NDArray[np.float32]
    shown: NDArray[np.bool_]

    @property
    def names(self) -> tuple[str, ...]:
        return ("mAP",)

    def __len__(self) -> int:
        return len(self.scores)

    def figure(self, name: str, weights: Weights) -> Figures:
        shown = np.flatnonzero(self.shown.any(0)) if len(self) else np.zeros(0, np.int64)
        each = [_average_precision(self.scores[:, k], self.shown[:, k], weights) for k in shown]
        if not each:
            return np.full(len(weights), np.nan)
        sums, known = np.stack([s for s, _ in each], 1), np.stack([positives for _, positives in each], 1)
        return 100 * mean_of_some(sums, known)


def _average_precision(scores: NDArray[np.float32], shown: NDArray[np.bool_], weights: Weights) -> tuple[Figures, ...]:
    """The area under precision over recall times the number of positives, and that number, both [S]."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(scores[order][1:] != scores[order][:-1], True)  # equal scores cannot be told apart: one step
    mine = weights[:, order]
    seen, hits = mine.cumsum(1)[:, last], (mine * shown[order]).cumsum(1)[:, last]
    gained = np.diff(hits, axis=1, prepend=0.0)
    return (gained * ratio(hits, seen, 0.0)).sum(1), hits[:, -1]


@dataclass(frozen=True)
class PixelCounts(Evidence):
    """Pixels of a class in one image: one entry for each class that its truth or its prediction shows.

    Attributes:
        image: int32 [E], the entry's image.
        label: uint8 [E], its class.
        right, true, said: int64 [E], pixels that are and are called this class, that are it, that are called it.
        images: int64 scalar, N.
        classes: int64 scalar, K.
    """

    kind = "pixel counts"
    image: NDArray[np.int32]
    label: NDArray[np.uint8]
    right: NDArray[np.int64]
    true: NDArray[np.int64]
    said: NDArray[np.int64]
    images: NDArray[np.int64]
    classes: NDArray[np.int64]

    @property
    def names(self) -> tuple[str, ...]:
        return ("mIoU", "pixel accuracy")

    def __len__(self) -> int:
        return int(self.images)

    def figure(self, name: str, weights: Weights) -> Figures:
        right, true, said = (weights @ self._dense(counts) for counts in (self.right, self.true, self.said))
        if name == "pixel accuracy":
            return 100 * ratio(right.sum(1), true.sum(1))
        return 100 * mean_of_some(right, true + said - right)

    def _dense(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        dense = np.zeros((len(self), int(self.classes)))
        dense[self.image, self.label] = counts
        return dense


@dataclass(frozen=True)
class PixelSums(Evidence):
    """Sums over the valid pixels of each image, for means over all pixels of the set.

    Attributes:
        pixels: int64 [N], valid ones.
        sums: float64 [N,F].
        columns: str [F], the figures' names.
        forms: str [F]: "mean", "percent" (of the mean), or "root" (of the mean).
    """

    kind = "pixel sums"
    pixels: NDArray[np.int64]
    sums: NDArray[np.float64]
    columns: NDArray[np.str_]
    forms: NDArray[np.str_]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(map(str, self.columns))

    def __len__(self) -> int:
        return len(self.pixels)

    def figure(self, name: str, weights: Weights) -> Figures:
        column = self.names.index(name)
        mean = ratio(weights @ self.sums[:, column], weights @ self.pixels.astype(np.float64))
        form = self.forms[column]
        return 100 * mean if form == "percent" else np.sqrt(mean) if form == "root" else mean


def ratio(above: NDArray[np.float64], below: NDArray[np.float64], empty: float = np.nan) -> NDArray[np.float64]:
    """above / below, of equal shapes, and `empty` where there is nothing below."""
    return np.divide(above, below, out=np.full(above.shape, empty), where=below > 0)


def mean_of_some(above: NDArray[np.float64], below: NDArray[np.float64]) -> Figures:
    """[S] from [S,K]: the mean of above / below over the classes that have something below; NaN where none has."""
    some = below > 0
    return ratio(ratio(above, below, 0.0).sum(1), some.sum(1).astype(np.float64))
