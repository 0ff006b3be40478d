"""Average precision of boxes: Pascal VOC's with 11 recall points, and COCO's.

Letters in shapes: N detections and M true boxes of one image, K classes.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from tutelage.tasks.found import Detections, coco_matches
from tutelage.tasks.task import PerImageMetric
from tutelage.types import Boxes, Target

_OVERLAP = 0.5


class AveragePrecision(PerImageMetric):
    """ "AP50": Pascal VOC 2007's average precision at an IoU of 0.5 with 11 recall points (Everingham et al. 2010; MuST
    section B.3), a mean over classes. "AP": COCO's, a mean over IoU 0.5 to 0.95 and classes.

    Classes without a true box (ignored ones do not count) are left out. A detection is given to the true box of its
    class that it overlaps most; the best-scored of a box is right, further ones are wrong, and those given to an
    ignored box (a difficult one, a crowd) count neither way. Boxes are continuous: no pixel is added to a side, as the
    original program does. Detections of a score that is NaN, which stand for a network that failed, are left out.

    "AP" is computed by faster-coco-eval, which gives pycocotools' figures; for weighted images, by `found.Detections`.
    """

    name = "AP50"

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._found: list[Boxes] = []
        self._true: list[Boxes] = []
        self._right: list[Tensor] = []

    def update(self, prediction: Target, truth: Target) -> None:
        assert isinstance(prediction, Boxes)
        assert isinstance(truth, Boxes)
        found = prediction.pick(~prediction.scores.isnan())
        found = found.pick(found.scores.argsort(descending=True, stable=True))
        self._found.append(found)
        self._true.append(truth)
        self._right.append(_judge(found, truth))

    def compute(self, weights: NDArray[np.int64] | None = None) -> dict[str, float]:
        if weights is not None:
            return super().compute(weights)
        if not sum(int((~t.ignore).sum()) for t in self._true):
            return {"AP50": float("nan"), "AP": float("nan")}
        return {"AP50": 100 * self._voc(), "AP": 100 * self._coco()}

    def evidence(self) -> Detections:
        counts, true = [len(f) for f in self._found], [t.pick(~t.ignore) for t in self._true]
        matches = [_matches(f, t) for f, t in zip(self._found, self._true, strict=True)]
        coco, aside = (np.concatenate([np.zeros(0, np.uint16), *(m[which] for m in matches)]) for which in (0, 1))
        return Detections(
            np.repeat(np.arange(len(counts), dtype=np.int32), counts),
            _joined([f.classes for f in self._found]).astype(np.int32),
            _joined([f.scores for f in self._found]).astype(np.float32),
            _joined(self._right).astype(np.int8),
            coco,
            aside,
            np.repeat(np.arange(len(true), dtype=np.int32), [len(t) for t in true]),
            _joined([t.classes for t in true]).astype(np.int32),
            np.array(len(counts)),
            np.array(self._classes),
        )

    def _voc(self) -> float:
        classes = torch.cat([f.classes for f in self._found])
        scores, right = torch.cat([f.scores for f in self._found]), torch.cat(self._right)
        true = torch.cat([t.classes[~t.ignore] for t in self._true]).bincount(minlength=self._classes)
        precisions = []
        for k in true.nonzero()[:, 0].tolist():
            mine = (classes == k) & (right >= 0)
            order = scores[mine].argsort(descending=True, stable=True)
            precisions.append(_eleven_points(right[mine][order], int(true[k])))
        return sum(precisions) / len(precisions)

    def _coco(self) -> float:
        from faster_coco_eval import COCO, COCOeval_faster

        found = [row for image, boxes in enumerate(self._found, 1) for row in _rows(boxes, image)]
        if not found:
            return 0.0
        true = [row for image, boxes in enumerate(self._true, 1) for row in _rows(boxes, image)]
        for number, row in enumerate(true, 1):
            row["id"] = number
        with contextlib.redirect_stdout(io.StringIO()):
            dataset = COCO(
                {
                    "images": [{"id": image} for image in range(1, len(self._true) + 1)],
                    "categories": [{"id": k, "name": str(k)} for k in range(self._classes)],
                    "annotations": true,
                }
            )
            evaluation = COCOeval_faster(dataset, dataset.loadRes(found), "bbox", print_function=lambda *_: None)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return float(evaluation.stats[0])


def _matches(found: Boxes, truth: Boxes) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    said, true = (found.boxes, found.classes), (truth.boxes, truth.classes, truth.ignore)
    return coco_matches(*(t.numpy() for t in said), *(t.numpy() for t in true))


def _joined(parts: list[Tensor]) -> NDArray[Any]:
    return torch.cat(parts).numpy() if parts else np.zeros(0)


def _judge(found: Boxes, truth: Boxes) -> Tensor:
    """int8 [N], detections being ordered by score: 1 right, 0 wrong, -1 neither."""
    right = torch.zeros(len(found), dtype=torch.int8)
    if not len(found) or not len(truth):
        return right
    same = found.classes[:, None] == truth.classes[None]
    overlap, box = torch.where(same, box_iou(found.boxes, truth.boxes), -1.0).max(1)
    hit = overlap >= _OVERLAP
    given = torch.where(hit, box, len(truth))
    first = torch.full((len(truth) + 1,), len(found)).scatter_reduce(0, given, torch.arange(len(found)), "amin")
    right[first[:-1][first[:-1] < len(found)]] = 1
    right[hit & truth.ignore[box]] = -1
    return right


def _eleven_points(right: Tensor, true: int) -> float:
    """The best precision at recalls of at least 0, 0.1, ..., 1, averaged. `right` is 1 or 0, ordered by score."""
    hits = right.double().cumsum(0)
    precision = hits / torch.arange(1, len(hits) + 1)
    best = [precision[10 * hits >= point * true] for point in range(11)]  # recall >= point / 10, without rounding
    return sum(float(p.max()) if len(p) else 0.0 for p in best) / 11


def _rows(boxes: Boxes, image: int) -> list[dict[str, Any]]:
    """Boxes as COCO's records; ignored ones are crowds."""
    sides = boxes.boxes[:, 2:] - boxes.boxes[:, :2]
    xywh, areas = torch.cat([boxes.boxes[:, :2], sides], 1).tolist(), sides.prod(1).tolist()
    columns = zip(xywh, areas, boxes.classes.tolist(), boxes.scores.tolist(), boxes.ignore.tolist(), strict=True)
    return [
        {"image_id": image, "category_id": k, "bbox": b, "area": a, "score": s, "iscrowd": int(i)}
        for b, a, k, s, i in columns
    ]
