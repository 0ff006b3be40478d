"""What each detection of a test set came to, so that average precision can be had for any other choice of images.

Whether a detection is right does not depend on other images; only the order of all detections by score does. So the
matching is done once, and a resample is a matter of counting.

Letters in shapes: D detections and P true boxes of a whole set; N detections and M true boxes of one image; S
resamples; T the ten overlaps of COCO, 0.5, 0.55, ..., 0.95.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tutelage.tasks.evidence import Evidence, Figures, Weights, mean_of_some, ratio

OVERLAPS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)
_MOST = 100
"""Detections of a class in an image that COCO looks at."""


@dataclass(frozen=True)
class Detections(Evidence):
    """Detections and true boxes of a test set, images in order, detections of an image by score.

    Figures of repeated images are those of `AveragePrecision` for a set that holds the image so often, except where a
    right and a wrong detection of one class have exactly one score: which of them comes first is arbitrary anyway.

    Attributes:
        image: int32 [D].
        label: int32 [D], the class.
        score: float32 [D].
        voc: int8 [D], 1 right, 0 wrong, -1 neither, at an overlap of 0.5 (Pascal VOC's rule).
        coco: uint16 [D], bit t is set where the detection is right at overlap t (COCO's rule).
        aside: uint16 [D], bit t is set where it counts neither way at overlap t.
        true_image, true_label: int32 [P], image and class of the true boxes that are not ignored.
        images: int64 scalar, how many images there are.
        classes: int64 scalar.
    """

    kind = "detections"
    image: NDArray[np.int32]
    label: NDArray[np.int32]
    score: NDArray[np.float32]
    voc: NDArray[np.int8]
    coco: NDArray[np.uint16]
    aside: NDArray[np.uint16]
    true_image: NDArray[np.int32]
    true_label: NDArray[np.int32]
    images: NDArray[np.int64]
    classes: NDArray[np.int64]

    @property
    def names(self) -> tuple[str, ...]:
        return ("AP50", "AP")

    def __len__(self) -> int:
        return int(self.images)

    def figure(self, name: str, weights: Weights) -> Figures:
        sums, known = [], []
        for k in np.unique(self.true_label):
            positives = weights[:, self.true_image[self.true_label == k]].sum(1)
            sums.append(
                self._eleven_points(k, weights, positives) if name == "AP50" else self._coco(k, weights, positives)
            )
            known.append(positives > 0)
        if not sums:
            return np.full(len(weights), np.nan)
        return 100 * mean_of_some(np.stack(sums, 1), np.stack(known, 1).astype(np.float64))

    def _eleven_points(self, k: int, weights: Weights, positives: Figures) -> Figures:
        """VOC's average precision of a class: [S]."""
        mine = self._by_score((self.label == k) & (self.voc >= 0))
        hits, precision = _at_hits(weights[:, self.image[mine]], self.voc[mine] == 1, 0.0)
        points = np.ceil(np.arange(11) * positives[:, None] / 10)  # hits that reach a recall, in whole numbers
        return _best_from(hits, precision, points).mean(1)

    def _coco(self, k: int, weights: Weights, positives: Figures) -> Figures:
        """COCO's average precision of a class, over ten overlaps and 101 recalls: [S]."""
        mine = self._by_score(self.label == k)
        counts, total = weights[:, self.image[mine]], np.zeros(len(weights))
        for t in range(len(OVERLAPS)):
            counted = (self.aside[mine] >> t) & 1 == 0
            right = (self.coco[mine][counted] >> t) & 1 == 1
            hits, precision = _at_hits(counts[:, counted], right, np.spacing(1))
            recall = ratio(hits, np.broadcast_to(positives[:, None], hits.shape), 0.0)
            total += _best_from(recall, precision, np.broadcast_to(_RECALLS, (len(weights), 101))).mean(1)
        return total / len(OVERLAPS)

    def _by_score(self, which: NDArray[np.bool_]) -> NDArray[np.int64]:
        some = np.flatnonzero(which)
        return some[np.argsort(-self.score[some], kind="stable")]


def _at_hits(
    counts: NDArray[np.float64], right: NDArray[np.bool_], tiny: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """After each right detection, how many hits there are, and the best precision there or later: both [S,right].

    Between hits precision only falls, so nothing else has to be looked at. `tiny` is added to what is divided by.
    """
    hits, seen = counts[:, right].cumsum(1), counts.cumsum(1)[:, right]
    precision = ratio(hits, np.where(seen > 0, seen + tiny, 0.0), 0.0)
    return hits, np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]


def _best_from(
    reached: NDArray[np.float64], best: NDArray[np.float64], points: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[S,points]: `best` where `reached`, which only grows, first is as much as a point; 0 where it never is."""
    padded = np.pad(best, ((0, 0), (0, 1)))
    return np.stack(
        [row[np.searchsorted(mine, point)] for row, mine, point in zip(padded, reached, points, strict=True)]
    )


def coco_matches(
    boxes: NDArray[np.float32],
    classes: NDArray[np.int64],
    true_boxes: NDArray[np.float32],
    true_classes: NDArray[np.int64],
    ignored: NDArray[np.bool_],
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """COCO's matching in one image (Lin et al. 2014; as pycocotools does it): which detections are right, and which
    count neither way, a bit for each overlap.

    By falling score, a detection takes the free true box of its class that it overlaps most, if it overlaps it enough;
    if none, an ignored one, which is never used up and in which only the detection's own area is the union.

    Args:
        boxes, classes: [N,4] and [N], by falling score.
        true_boxes, true_classes, ignored: [M,4], [M], [M].
    """
    right, aside = np.zeros((len(boxes), len(OVERLAPS)), bool), np.zeros((len(boxes), len(OVERLAPS)), bool)
    aside[list(_beyond(classes))] = True
    overlaps = np.where(classes[:, None] == true_classes, _overlaps(boxes, true_boxes, ignored), -1.0)
    taken = np.zeros((len(OVERLAPS), len(true_boxes)), bool)
    near = overlaps.max(1, initial=-1.0) >= OVERLAPS[0]
    for n in np.flatnonzero(near & ~aside[:, 0]):
        enough = overlaps[n] >= OVERLAPS[:, None]
        free = np.where(enough & ~taken & ~ignored, overlaps[n], -1.0)
        best = free.shape[1] - 1 - free[:, ::-1].argmax(1)  # of equal overlaps the last
        right[n] = free[np.arange(len(OVERLAPS)), best] > 0
        taken[right[n], best[right[n]]] = True
        aside[n] = ~right[n] & (enough & ignored).any(1)
    bits = (1 << np.arange(len(OVERLAPS))).astype(np.uint16)
    return (right * bits).sum(1).astype(np.uint16), (aside * bits).sum(1).astype(np.uint16)


def _beyond(classes: NDArray[np.int64]) -> Iterator[int]:
    """Detections after the first hundred of their class."""
    if len(classes) > _MOST:
        for k in np.unique(classes):
            yield from np.flatnonzero(classes == k)[_MOST:].tolist()


def _overlaps(boxes: NDArray[np.float32], true: NDArray[np.float32], ignored: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[N,M]: the intersection over the union, or, for an ignored box, over the detection.

    Sides are subtracted in float32 and all else is float64, as when boxes go to pycocotools as x, y, width, height.
    """
    sides, true_sides = ((b[:, 2:] - b[:, :2]).astype(np.float64) for b in (boxes, true))
    low, true_low = boxes[:, :2].astype(np.float64), true[:, :2].astype(np.float64)
    high = np.minimum((low + sides)[:, None], true_low + true_sides)
    inner = (high - np.maximum(low[:, None], true_low)).clip(min=0).prod(2)
    union = sides.prod(1)[:, None] + np.where(ignored, 0.0, true_sides.prod(1) - inner)
    return ratio(inner, union, 0.0)
