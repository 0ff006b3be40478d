"""What the labels of one head amount to, kind by kind: counts over records, taken in one at a time.

Every kind of target has a tally (what is counted) and a summary (the figures, a plain value that can be written down).
A score is a box's score, the probability of an image's likeliest class, or a pixel's confidence.
"""

from __future__ import annotations

import abc
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.part import Part
from tutelage.tasks.classification import Classification
from tutelage.tasks.depth import Depth
from tutelage.tasks.task import Task
from tutelage.types import IGNORE, Boxes, Field, Label, Maps, Mask, Target, Vectors

BINS = 20
"""Of the distribution of scores: [0, 0.05), [0.05, 0.1), ... [0.95, 1]."""
THRESHOLDS = tuple(round(0.05 * n, 2) for n in range(1, BINS))
"""What each of them would keep is counted: 0.05, 0.1, ... 0.95."""
SURE = 0.99
"""From this score on a teacher has no doubt."""
_GRID = 1024
"""Pixels of an image, at most, that enter quantiles: an even grid of them."""
_CUT_OFF = torch.tensor(THRESHOLDS)


class Quantiles(Part):
    """Of a distribution: the least value, the 1st hundredth, the middle, the 99th hundredth and the greatest."""

    least: float
    low: float
    median: float
    high: float
    greatest: float


class Kept(Part):
    """What one threshold alone would keep, whatever the rule is."""

    threshold: float
    kept: int
    """Boxes, images or pixels of at least this score."""
    share: float
    """The same, of all that are stored; 0 where nothing is."""
    without: int
    """Images of which nothing is kept."""


class Scores(Part):
    """Scores of boxes, images or pixels."""

    stored: int
    histogram: tuple[int, ...]
    """`BINS` counts."""
    sure: int
    """Of at least `SURE`."""
    thresholds: tuple[Kept, ...]
    """One for each of `THRESHOLDS`."""


class BoxesSummary(Part):
    """Boxes; all but `scores` after the rule."""

    kind: Literal["Boxes"] = "Boxes"
    scores: Scores
    kept: int
    without: int
    """Images without any box."""
    most: int
    """Boxes of the image that has most."""
    area: Quantiles | None
    """A box's share of its image's area; None where no box is kept."""


class LabelSummary(Part):
    """Classes of images, by the likeliest one."""

    kind: Literal["Label"] = "Label"
    scores: Scores
    kept: int
    """Images that the rule keeps."""
    median: float | None
    """Of the likeliest class's probability; None where there is no image."""


class MaskSummary(Part):
    """Pixels of masks. `scores` are those of pixels that the teacher gave a class, in masks that hold a confidence."""

    kind: Literal["Mask"] = "Mask"
    scores: Scores
    pixels: int
    kept: int
    """Pixels that have a class after the rule; the others are ignored."""
    without: int
    """Images of which no pixel is kept."""


class FieldSummary(Part):
    """Numbers for pixels. `values` are of valid pixels; its quantiles come from a grid of pixels an image.

    Of features (`Maps`) the same for cells; a cell's number is the length of its vector.
    """

    kind: Literal["Field"] = "Field"
    unit: str
    """"m", "relative depth", "relative inverse depth", "length of a feature", or "" where the task does not say."""
    pixels: int
    valid: int
    values: Quantiles | None
    varied: float | None
    """How much values differ inside an image: standard deviation over mean size, the middle image's. Of
    features: the mean distance from the image's mean vector, over the mean length."""


class VectorsSummary(Part):
    """Unit vectors of pixels."""

    kind: Literal["Vectors"] = "Vectors"
    pixels: int
    valid: int
    mean: tuple[float, float, float] | None
    """x, y and z averaged over valid pixels, not normalised: its length is 1 where all agree."""
    facing: int
    """Valid pixels with z < 0: surfaces that face the camera."""


Summary = BoxesSummary | LabelSummary | MaskSummary | FieldSummary | VectorsSummary


class Tally(abc.ABC):
    """Counts over the records of one head.

    Attributes:
        classes: int64 [K], boxes, images or pixels of each class after the rule.
        before: the same before the rule.
    """

    def __init__(self, classes: int) -> None:
        self.classes, self.before = np.zeros(classes, np.int64), np.zeros(classes, np.int64)

    @abc.abstractmethod
    def add(self, raw: Any, kept: Any, size: tuple[int, int]) -> float | None:
        """Take in one record.

        Args:
            raw: the prediction as it is stored.
            kept: what the rule leaves of it; None for nothing.
            size: (height, width) of the image.

        Returns:
            How sure the teacher is of what is kept, 0 to 1; None where nothing is kept or the kind has no scores.
        """

    @abc.abstractmethod
    def summary(self) -> Summary:
        """The figures."""


class _Scores:
    """Scores, and the best of each image."""

    def __init__(self) -> None:
        self.stored = self.sure = self.images = 0
        self.bins = np.zeros(BINS, np.int64)
        self.best = np.zeros(BINS, np.int64)  # images, by the bin of their best score; [0] also where there is none

    def add(self, scores: Tensor) -> None:
        """Float32 [N] of one image; compared with thresholds as the rules do it, in float32."""
        self.stored, self.images = self.stored + len(scores), self.images + 1
        self.sure += int((scores >= SURE).sum())
        places = torch.bucketize(scores, _CUT_OFF, right=True)
        self.bins += np.bincount(places.numpy(), minlength=BINS)
        self.best[int(places.max()) if len(places) else 0] += 1

    def add_bytes(self, counts: NDArray[np.int64]) -> None:
        """Int64 [256], pixels of one image by their confidence in steps of 1/255."""
        self.stored, self.images = self.stored + int(counts.sum()), self.images + 1
        self.sure += int(counts[_BYTES_SURE].sum())
        np.add.at(self.bins, _BYTE_BINS, counts)
        self.best[_BYTE_BINS[counts.nonzero()[0].max()] if counts.any() else 0] += 1

    def summary(self) -> Scores:
        kept = self.bins[::-1].cumsum()[::-1]
        without = self.best.cumsum()
        rows = tuple(
            Kept(
                threshold=t, kept=int(kept[n]), share=float(kept[n] / max(1, self.stored)), without=int(without[n - 1])
            )
            for n, t in enumerate(THRESHOLDS, 1)
        )
        return Scores(stored=self.stored, histogram=tuple(self.bins.tolist()), sure=self.sure, thresholds=rows)


_BYTES = torch.arange(256, dtype=torch.float32)
_BYTE_BINS = sum((_BYTES.ge(t * 255).numpy().astype(np.int64) for t in THRESHOLDS), np.zeros(256, np.int64))
_BYTES_SURE = _BYTES.ge(SURE * 255).numpy()


class BoxesTally(Tally):
    """Counts boxes."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.scores, self.kept, self.without, self.most = _Scores(), 0, 0, 0
        self.areas: list[NDArray[np.float32]] = []

    def add(self, raw: Boxes, kept: Boxes | None, size: tuple[int, int]) -> float | None:
        self.scores.add(raw.scores)
        self.before += _counts(raw.classes, len(self.before))
        if kept is None or not len(kept):
            self.without += 1
            return None
        self.classes += _counts(kept.classes, len(self.classes))
        self.kept, self.most = self.kept + len(kept), max(self.most, len(kept))
        sides = kept.boxes[:, 2:] - kept.boxes[:, :2]
        self.areas.append((sides.prod(1) / (size[0] * size[1])).numpy())
        return float(kept.scores.mean())

    def summary(self) -> BoxesSummary:
        return BoxesSummary(
            scores=self.scores.summary(),
            kept=self.kept,
            without=self.without,
            most=self.most,
            area=_quantiles(self.areas),
        )


class LabelTally(Tally):
    """Counts images. With `several`, every class of a probability of at least 1/2 counts, else the likeliest one."""

    def __init__(self, classes: int, several: bool = False) -> None:
        super().__init__(classes)
        self.scores, self.kept, self.several = _Scores(), 0, several
        self.best: list[float] = []

    def add(self, raw: Label, kept: Label | None, size: tuple[int, int]) -> float | None:
        sure = raw.probs.max()
        self.scores.add(sure[None])
        self.best.append(float(sure))
        self.before += self._shown(raw)
        if kept is None:
            return None
        self.kept += 1
        self.classes += self._shown(kept)
        return float(kept.probs.max())

    def _shown(self, label: Label) -> NDArray[np.int64]:
        shown = (label.probs >= 0.5).nonzero()[:, 0] if self.several else label.probs.argmax()[None]
        return _counts(shown, len(self.classes))

    def summary(self) -> LabelSummary:
        median = float(np.median(self.best)) if self.best else None
        return LabelSummary(scores=self.scores.summary(), kept=self.kept, median=median)


class MaskTally(Tally):
    """Counts pixels."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.scores, self.pixels, self.kept, self.without = _Scores(), 0, 0, 0

    def add(self, raw: Mask, kept: Mask | None, size: tuple[int, int]) -> float | None:
        self.pixels += raw.ids.numel()
        self.before += _pixels(raw.ids)[: len(self.before)]
        if raw.confidence is not None:
            self.scores.add_bytes(_pixels(raw.confidence[raw.ids != IGNORE]))
        counts = np.zeros(256, np.int64) if kept is None else _pixels(kept.ids)
        counts[IGNORE] = 0
        left = int(counts.sum())
        self.classes += counts[: len(self.classes)]
        self.kept += left
        if kept is None or left == 0:
            self.without += 1
            return None
        return None if kept.confidence is None else float(kept.confidence[kept.ids != IGNORE].float().mean()) / 255

    def summary(self) -> MaskSummary:
        return MaskSummary(scores=self.scores.summary(), pixels=self.pixels, kept=self.kept, without=self.without)


class FieldTally(Tally):
    """Counts pixels with a number. `unit` is said in the summary."""

    def __init__(self, unit: str) -> None:
        super().__init__(0)
        self.unit, self.pixels, self.valid = unit, 0, 0
        self.least, self.greatest = np.inf, -np.inf
        self.grids: list[NDArray[np.float32]] = []
        self.varied: list[float] = []

    def add(self, raw: Field, kept: Field | None, size: tuple[int, int]) -> float | None:
        self.pixels += raw.valid.numel()
        values = torch.empty(0) if kept is None else kept.values[kept.valid]
        if kept is None or not len(values):
            return None
        self.valid += len(values)
        low, high = values.aminmax()
        self.least, self.greatest = min(self.least, float(low)), max(self.greatest, float(high))
        self.grids.append(grid(kept.values)[grid(kept.valid)].numpy())
        mean = float(values.abs().mean())
        self.varied.append(float(values.std(correction=0)) / mean if mean > 0 else 0.0)
        return None

    def summary(self) -> FieldSummary:
        inside = _quantiles(self.grids)
        if inside is not None:
            inside = inside.but(least=self.least, greatest=self.greatest)
        varied = float(np.median(self.varied)) if self.varied else None
        return FieldSummary(unit=self.unit, pixels=self.pixels, valid=self.valid, values=inside, varied=varied)


class VectorsTally(Tally):
    """Counts pixels with a direction."""

    def __init__(self) -> None:
        super().__init__(0)
        self.pixels = self.valid = self.facing = 0
        self.sum = torch.zeros(3, dtype=torch.float64)

    def add(self, raw: Vectors, kept: Vectors | None, size: tuple[int, int]) -> float | None:
        self.pixels += raw.valid.numel()
        if kept is not None:
            self.valid += int(kept.valid.sum())
            self.facing += int((kept.valid & (kept.values[2] < 0)).sum())
            self.sum += torch.where(kept.valid, kept.values, 0).double().sum((1, 2))
        return None

    def summary(self) -> VectorsSummary:
        x, y, z = (self.sum / max(1, self.valid)).tolist()
        mean = (x, y, z) if self.valid else None
        return VectorsSummary(pixels=self.pixels, valid=self.valid, mean=mean, facing=self.facing)


class MapsTally(Tally):
    """Counts cells with a vector, by the vectors' lengths."""

    def __init__(self) -> None:
        super().__init__(0)
        self._lengths = FieldTally("length of a feature")
        self._varied: list[float] = []

    def add(self, raw: Maps, kept: Maps | None, size: tuple[int, int]) -> float | None:
        self._lengths.add(_lengths(raw), None if kept is None else _lengths(kept), size)
        if kept is not None and int(kept.valid.sum()) > 1:
            vectors = kept.values[:, kept.valid].float()
            mean = float(vectors.norm(dim=0).mean())
            apart = float((vectors - vectors.mean(1, keepdim=True)).norm(dim=0).mean())
            self._varied.append(apart / mean if mean > 0 else 0.0)
        return None

    def summary(self) -> FieldSummary:
        return self._lengths.summary().but(varied=float(np.median(self._varied)) if self._varied else None)


def _lengths(maps: Maps) -> Field:
    """The length of every cell's vector."""
    return Field(maps.values.float().norm(dim=0), maps.valid)


def tally_for(kind: type, classes: int, task: Task | None) -> Tally:
    """An empty tally for targets of a kind.

    Args:
        kind: one of the dataclasses of `tutelage.types`.
        classes: size of the label space; 0 where there is none.
        task: of the head, if it is known.
    """
    if kind is Boxes:
        return BoxesTally(classes)
    if kind is Label:
        return LabelTally(classes, isinstance(task, Classification) and task.multi_label)
    if kind is Mask:
        return MaskTally(classes)
    if kind is Field:
        return FieldTally(unit_of(task))
    if kind is Maps:
        return MapsTally()
    assert kind is Vectors
    return VectorsTally()


def grid(map: Tensor) -> Tensor:
    """An even grid of at most about `_GRID` pixels of [...,H,W]; all of them where there are no more."""
    height, width = map.shape[-2:]
    step = max(1, round((height * width / _GRID) ** 0.5))
    return map[..., min(step // 2, height - 1) :: step, min(step // 2, width - 1) :: step]


def unit_of(task: Task | None) -> str:
    """What a field's numbers are: "m", "relative depth", "relative inverse depth"; "" where the task does not say."""
    if not isinstance(task, Depth):
        return ""
    return "m" if task.holds == "metres" else task.holds


def kept_of(task: Task | None, raw: Target) -> Target | None:
    """What the task's rule leaves; the prediction itself where the task is not known."""
    return raw if task is None else task.pseudo(raw)


def _counts(classes: Tensor, size: int) -> NDArray[np.int64]:
    return np.bincount(classes.numpy(), minlength=size)[:size]


def _pixels(ids: Tensor) -> NDArray[np.int64]:
    """int64 [256], how often each value stands in uint8 [...]."""
    return np.bincount(ids.numpy().ravel(), minlength=256)


def _quantiles(parts: list[NDArray[np.float32]]) -> Quantiles | None:
    """Of all values of some arrays; None where there is none."""
    values = np.concatenate(parts) if parts else np.empty(0, np.float32)
    if not len(values):
        return None
    found = np.quantile(values.astype(np.float64), [0, 0.01, 0.5, 0.99, 1]).tolist()
    return Quantiles(**dict(zip(Quantiles.model_fields, found, strict=True)))
