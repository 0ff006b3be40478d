"""Anchors: boxes of given sizes at every cell of the pyramid, and what each of them should become.

Letters in shapes: A anchors of an image, N true boxes. Boxes are x1 y1 x2 y2 in pixels of the (padded) input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_area, box_iou

from tutelage.types import Boxes

STRIDES = (8, 16, 32, 64, 128)
"""Of P3 to P7."""
_COVERED = 0.5
"""Share of a negative that lies on an ignored object from which on it is no negative."""


def level_anchors(level: Tensor, stride: int, sides: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """The anchors of a level, float32 [A,4]: row by row of its cells, at a cell's centre, side by side, ratio by ratio.

    Args:
        level: a map of the level, [...,h,w]; only its size and device matter.
        stride: pixels between neighbouring cells.
        sides: of the square anchors, in pixels.
        ratios: height over width; the area stays.
    """
    roots = torch.tensor(ratios, device=level.device).sqrt()
    half = torch.cat([torch.stack([side / roots, side * roots], 1) for side in sides]) / 2
    y, x = ((torch.arange(n, device=level.device) + 0.5) * stride for n in level.shape[-2:])
    centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), 2)[:, :, None]
    return torch.cat([centres - half, centres + half], 3).reshape(-1, 4)


class EveryBoxMatched:
    """Matches by intersection over union; each true box has at least one anchor (as in the authors' detection code).

    An anchor belongs to the box that it overlaps most, the first of equals: it is matched from `positive` on, unmatched
    below `negative`, and neither in between. Then each box takes the anchor that overlaps it most, the first of equals,
    whatever the overlap and whichever box had it; of several boxes that take one anchor, the first has it.

    torchvision's `Matcher` with low-quality matches differs: all equal anchors are taken, and one that overlaps another
    box more stays with that one, so that a box can be left without any.

    Args:
        positive, negative: from 0 to 1, `negative` at most `positive`.
    """

    BELOW_LOW_THRESHOLD = Matcher.BELOW_LOW_THRESHOLD
    BETWEEN_THRESHOLDS = Matcher.BETWEEN_THRESHOLDS

    def __init__(self, positive: float, negative: float) -> None:
        self.matcher = Matcher(positive, negative)

    def __call__(self, overlaps: Tensor) -> Tensor:
        """int64 [A] from IoU [N,A], N at least 1: the box of each anchor, -1 unmatched, -2 neither.

        A box that overlaps no anchor at all takes none.
        """
        index = self.matcher(overlaps)
        best, anchor = overlaps.max(1)
        number = torch.arange(len(best), device=best.device)
        nobody = len(best)
        takers = torch.full_like(index, nobody)
        takers.scatter_reduce_(0, anchor, torch.where(best > 0, number, nobody), "amin")
        return torch.where(takers < nobody, takers, index)


def assign(matcher: Any, boxes: Tensor, truth: Boxes) -> tuple[Tensor, Tensor]:
    """What each of the boxes [A,4] should become.

    Ignored objects are never matched; unmatched boxes that lie on one with at least half their area are no negatives.

    Args:
        matcher: from IoU [N,A] to int64 [A], as torchvision's `Matcher` and `EveryBoxMatched`.
        boxes: anchors or proposals.
        truth: of one image.

    Returns:
        labels: int64 [A], class + 1, 0 for "no object", -1 for neither.
        matched: [A,4], the true box of positives; for others some box that can be encoded without error.
    """
    real, ignored = truth.boxes[~truth.ignore], truth.boxes[truth.ignore]
    labels, matched = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device), boxes
    if len(real):
        index = matcher(box_iou(real, boxes))
        matched = real[index.clamp_min(0)]
        labels = truth.classes[~truth.ignore][index.clamp_min(0)] + 1
        labels = labels.masked_fill(index == matcher.BELOW_LOW_THRESHOLD, 0)
        labels = labels.masked_fill(index == matcher.BETWEEN_THRESHOLDS, -1)
    if len(ignored):
        low = torch.maximum(boxes[:, None, :2], ignored[None, :, :2])
        high = torch.minimum(boxes[:, None, 2:], ignored[None, :, 2:])
        shared = (high - low).clamp_min(0).prod(2).amax(1)
        covered = shared >= _COVERED * box_area(boxes)
        labels = labels.masked_fill(covered & (labels == 0), -1)
    return labels, matched


def not_empty(boxes: Tensor, side: float) -> Tensor:
    """bool [N]: both sides at least `side` pixels (not so where a coordinate is NaN)."""
    return (boxes[:, 2:] - boxes[:, :2] >= side).all(1)
