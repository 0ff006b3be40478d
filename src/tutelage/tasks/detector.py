"""What all tasks of boxes share: which detections are reported, pseudo labels, metric, drawing.

Letters in shapes: N detections. Boxes are x1 y1 x2 y2 in pixels, of the (padded) input until `restore`.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field as Option
from pydantic import model_validator
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

from tutelage.tasks import drawing
from tutelage.tasks.average_precision import AveragePrecision
from tutelage.tasks.suppression import soft_suppress, suppress
from tutelage.tasks.task import Blind, Frame, Metric, Reads, Task
from tutelage.tasks.thresholds import COMMON, Threshold, check_names, each
from tutelage.types import Boxes, BoxStack, Stack, Target


class Detector(Task, abc.ABC):
    """A task of boxes on the pyramid. Subclasses bring a head with its loss.

    Pseudo labels: boxes of a score of at least `pseudo_threshold` (MuST section 3.1; Zoph et al. 2020, section 3.2, use
    0.5 as well), then, if `pseudo_nms` is set, of overlapping ones the best; an image where none is left is a labelled
    image without objects. This rule is applied when labels are read. What `nms` or `soft_nms` did before, when the
    network predicted, is in the stored labels.
    """

    kind: ClassVar[type] = Boxes
    reads: ClassVar[Reads] = "pyramid"

    score_floor: float = Option(0.05, ge=0, le=1)
    """Detections below are not reported."""
    nms: float = Option(0.5, gt=0, le=1)
    """Detections of one class that overlap more (IoU) than this with a better one are dropped."""
    soft_nms: float | None = Option(None, gt=0)
    """In place of `nms`: detections of one class that overlap a better one lose score, by a Gaussian of this sigma
    (Bodla et al. 2017; Zoph et al. 2020 use 0.3), and are dropped below `score_floor`. It acts when the network
    predicts, so a teacher labels anew when it changes."""
    detections: int = Option(100, gt=0)
    """Detections an image, at most."""
    pseudo_threshold: Threshold = COMMON
    """Least score of a box in a pseudo label: a number, or a number a class name, `default` standing for all others."""
    pseudo_nms: float | None = Option(None, gt=0, le=1)
    """Boxes of a pseudo label that overlap a better one of any class by more (IoU) than this are dropped. It acts when
    labels are read, on the boxes that the threshold leaves."""

    @model_validator(mode="after")
    def _check_threshold(self) -> Self:
        check_names(self.pseudo_threshold, self.classes)
        return self

    def count(self, targets: Stack) -> Tensor:
        """R, the number of labelled images."""
        assert isinstance(targets, BoxStack)
        return torch.tensor(float(len(targets.counts)), device=targets.counts.device)

    def reported(self, candidates: Boxes) -> Boxes:
        """Of one image's candidates [N], all above `score_floor`, those that `nms` or `soft_nms` leaves, best first."""
        if self.soft_nms is not None:
            return soft_suppress(candidates, self.soft_nms, self.score_floor, most=self.detections)
        keep = batched_nms(candidates.boxes, candidates.scores, candidates.classes, self.nms)
        return candidates.pick(keep[: self.detections])

    def pseudo(self, target: Target) -> Target | None:
        """Boxes of a sufficient score, and of those, with `pseudo_nms`, the ones no better one covers, best first.

        Scores are kept.
        """
        assert isinstance(target, Boxes)
        if isinstance(self.pseudo_threshold, float):
            kept = target.pick(target.scores >= self.pseudo_threshold)
        else:
            kept = target.pick(target.scores >= torch.tensor(each(self.pseudo_threshold, self.names))[target.classes])
        return kept if self.pseudo_nms is None else suppress(kept, self.pseudo_nms, class_agnostic=True)

    def metric(self) -> Metric:
        return AveragePrecision(len(self.names))

    def blind(self, targets: Iterable[Target]) -> Blind:
        """No box at all, whatever the labels: an average precision of 0.

        Boxes that are the same in every image would be found right now and then, but all with one score: average
        precision then depends on the order in which the images stand, and is no floor.
        """
        del targets
        nothing = Boxes.make([], [])
        return lambda height, width: nothing

    def draw(self, image: NDArray[np.uint8], target: Target) -> NDArray[np.uint8]:
        """Boxes with class names, and scores where they are below 1; ignored boxes thin and grey."""
        assert isinstance(target, Boxes)
        return drawing.boxes(image, target, self.names)


def certain(boxes: Tensor, classes: Tensor, scores: Tensor) -> Boxes:
    """Boxes of which none is ignored, on the device of the tensors."""
    return Boxes(boxes, classes, scores, torch.zeros_like(classes, dtype=torch.bool))


def failed(scores: Tensor, size: tuple[int, int]) -> Boxes:
    """The detections of an image on which the network failed: the whole input as class 0 with a score of NaN.

    NaN scores pass no floor, so such an image would look like one without objects.

    Args:
        scores: any tensor of the device and type of scores.
        size: (H, W) of the input.
    """
    whole = scores.new_tensor([[0.0, 0.0, size[1], size[0]]])
    return certain(whole, torch.zeros(1, dtype=torch.int64, device=scores.device), scores.new_full((1,), math.nan))


def restore(found: Boxes, frame: Frame) -> Boxes:
    """Boxes of the padded input as boxes of the original image, clipped to it; those in the padding are dropped."""
    scale = torch.tensor([frame.width / frame.inner_width, frame.height / frame.inner_height])
    boxes = clip_boxes_to_image(found.boxes * scale.repeat(2), (frame.height, frame.width))
    inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return Boxes(boxes, found.classes, found.scores, found.ignore).pick(inside)
