"""Of boxes that overlap, the best stays: non-maximum suppression, hard and soft, on `Boxes`.

`Detector` uses it; decode functions of foreign detectors may as well. N is the number of boxes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import batched_nms, nms

from tutelage.types import Boxes


def suppress(boxes: Boxes, iou: float, class_agnostic: bool = False) -> Boxes:
    """Hard suppression: a box goes where a better one that stays overlaps it by more than `iou`.

    Args:
        boxes: [N], on any device; N may be 0.
        iou: intersection over union, from 0 to 1.
        class_agnostic: boxes of any class suppress each other; else only those of one class do.

    Returns:
        those that stay, best first; of equal scores the earlier one is the better.
    """
    # In float64: classes are kept apart by moving each of them far away, where float32 would lose pixels.
    xyxy, scores = boxes.boxes.double(), boxes.scores.double()
    keep = nms(xyxy, scores, iou) if class_agnostic else batched_nms(xyxy, scores, boxes.classes, iou)
    return boxes.pick(keep)


def soft_suppress(
    boxes: Boxes,
    sigma: float = 0.3,
    floor: float = 0.05,
    class_agnostic: bool = False,
    most: int | None = None,
) -> Boxes:
    """Soft suppression: boxes that overlap a better one lose score instead of being dropped.

    The best box is taken out, the scores of those left are multiplied by exp(-IoU^2 / sigma), and so on.

    Source: Bodla et al., "Soft-NMS", ICCV 2017, section 3, the Gaussian form, with their sigma of 0.5; Zoph et al. 2020
    (section 3.2) use 0.3, which is the default here.

    Args:
        boxes: [N], on any device; N may be 0. Scores that are NaN stay NaN.
        sigma: above 0; the smaller, the nearer to hard suppression.
        floor: boxes whose score falls below are dropped.
        class_agnostic: boxes of any class weaken each other; else only those of one class do.
        most: as many boxes at most. The work grows with it, times N.

    Returns:
        those that stay with their new scores, best first; of equal scores the earlier one is the better.
    """
    corners = boxes.boxes.cpu().numpy().astype(np.float64)
    scores = boxes.scores.cpu().numpy().astype(np.float64)
    classes = np.zeros(len(scores), np.int64) if class_agnostic else boxes.classes.cpu().numpy()
    together = {kind: np.flatnonzero(classes == kind) for kind in np.unique(classes)}
    taken: list[int] = []
    final: list[float] = []
    for _ in range(len(scores) if most is None else min(len(scores), most)):
        best = int(scores.argmax())
        if scores[best] < floor:
            break
        taken.append(best)
        final.append(float(scores[best]))
        rows = together[classes[best]]
        scores[rows] *= np.exp(-(_overlaps(corners[best], corners[rows]) ** 2) / sigma)
        scores[taken] = -1  # below every floor; each time, because the line above multiplies them as well
    kept = boxes.pick(torch.tensor(taken, dtype=torch.int64, device=boxes.scores.device))
    return Boxes(kept.boxes, kept.classes, torch.tensor(final).to(kept.scores), kept.ignore)


def _overlaps(one: NDArray[np.float64], many: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of a box [4] with boxes [N,4]; 0 where they share no area."""
    sides = np.minimum(one[2:], many[:, 2:]) - np.maximum(one[:2], many[:, :2])
    shared = np.maximum(sides, 0).prod(1)
    union = (one[2:] - one[:2]).prod() + (many[:, 2:] - many[:, :2]).prod(1) - shared
    return np.divide(shared, union, out=np.zeros(len(many)), where=shared > 0)
