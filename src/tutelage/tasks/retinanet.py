"""Boxes of objects in one step: RetinaNet on the pyramid.

Letters in shapes: R labelled rows, C pyramid width, K classes, A anchors of an image, M candidates of a batch. Boxes
are float32 x1 y1 x2 y2 in pixels of the (padded) input; all arithmetic on them, and all losses, are float32 whatever
autocast does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field as Option
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import clip_boxes_to_image

from tutelage.tasks.anchors import STRIDES, EveryBoxMatched, assign, level_anchors, not_empty
from tutelage.tasks.detector import Detector, certain, failed, restore
from tutelage.tasks.norm import Norm2d
from tutelage.tasks.task import Features, Frame, Widths
from tutelage.types import BoxStack, LossSum, Stack, Target

_CODER = BoxCoder((1.0, 1.0, 1.0, 1.0))
"""Shift of the centre in sides of the anchor, logarithm of the ratio of sides."""


class RetinaNet(Detector):
    """RetinaNet (Lin et al., ICCV 2017) on P3..P7: for every anchor a score a class, by itself, and a shift to the box.

    It is the detector of Zoph et al. 2020 (section 3.2). Defaults are those of the authors' public detection code,
    which differ from Lin et al. in the norms of the sub-nets, `focal_gamma` (2), `negative_iou` (0.4) and the box loss
    (smooth L1 of weight 1). Anchors are matched as `EveryBoxMatched` does. Ignored boxes are never matched; unmatched
    anchors are left out of the loss where at least half of their area lies on an ignored box.

    With P positive anchors the loss is (focal loss of all anchors and classes + `box_weight` * Huber loss of the
    positives' shifts / 4) / (P + 1). The program divides sums by counts that must follow from the labels alone. P does
    not: it depends on the size of the input as well. So a unit is an image, as everywhere with boxes, and the sum is R
    times the quotient above, with the P of these R images: of one process and micro-batch, as the authors divide on
    each of their devices. A batch that is cut differently has a slightly different loss, as with `Detection`.

    The divisor is at least `least_positives` times R. At 1 this changes nothing where every image has a box, since it
    has a positive anchor then. Where few or none have, the loss is a mean over the images: it grows neither with R nor
    by the luck of a single positive.

    The rule for pseudo labels is `Detector`'s.
    """

    task: Literal["retinanet"] = "retinanet"
    anchor_scale: float = Option(4.0, gt=0)
    """Side of a level's smallest square anchor in strides of the level: 4 gives 32 to 512 pixels on P3 to P7."""
    anchor_sizes: int = Option(3, ge=1)
    """Anchors of one shape at one place: their sides divide the step from a level to the next (a factor of two)."""
    anchor_ratios: tuple[Annotated[float, Option(gt=0)], ...] = Option((1.0, 2.0, 0.5), min_length=1)
    """Height over width; the area stays."""
    convs: int = Option(4, ge=0)
    """Hidden 3x3 convolutions of each of the two sub-nets."""
    channels: int = Option(256, gt=0)
    """Of the hidden convolutions."""
    activation: Literal["relu", "swish"] = "relu"
    """After each of them; the SpineNet recipes use `swish`."""
    prior: float = Option(0.01, gt=0, lt=1)
    """The score of every class at every anchor when training starts."""
    positive_iou: float = Option(0.5, gt=0, le=1)
    """An anchor that overlaps a box at least so much (IoU) is to find it."""
    negative_iou: float = Option(0.5, ge=0, le=1)
    """An anchor that overlaps all boxes less than this is to find nothing; in between, it is left out of the loss."""
    focal_alpha: float = Option(0.25, ge=0, le=1)
    """Weight of the positives in the class loss; the negatives have one minus this."""
    focal_gamma: float = Option(1.5, ge=0)
    """The higher, the less classes count that are right already; 0 is cross entropy."""
    huber_delta: float = Option(0.1, gt=0)
    """Where the box loss turns from square to straight, in units of the shifts."""
    box_weight: float = Option(50.0, ge=0)
    least_positives: float = Option(1.0, gt=0)
    """Positive anchors an image that the losses are divided by at least."""
    pre_nms: int = Option(5000, gt=0)
    """Candidates of an image and class that go into `nms` or `soft_nms`, at most."""

    @model_validator(mode="after")
    def _check_overlaps(self) -> Self:
        if self.negative_iou > self.positive_iou:
            raise ValueError(
                f"negative_iou: {self.negative_iou} is above positive_iou, {self.positive_iou}; an anchor would be both"
            )
        return self

    def head(self, widths: Widths) -> nn.Module:
        return DenseHead(self, widths.pyramid, len(self.names))

    def loss(self, output: dict[str, Tensor], targets: Stack) -> LossSum:
        """The loss times R, float32, as the class says it.

        Args:
            output: of `DenseHead`.
            targets: a stack of boxes in pixels of the input, of the R rows.
        """
        assert isinstance(targets, BoxStack)
        logits, deltas, anchors = output["logits"], output["deltas"], output["anchors"]
        matcher = EveryBoxMatched(self.positive_iou, self.negative_iou)
        matches = [assign(matcher, anchors, truth) for truth in targets.split()]
        labels = torch.stack([label for label, _ in matches])
        positive = labels > 0
        wanted = torch.cat([matched[label > 0] for label, matched in matches])
        goal = _CODER.encode_single(wanted, anchors.expand(len(labels), -1, -1)[positive])
        kind = focal_loss(logits, labels, self.focal_alpha, self.focal_gamma)
        box = F.huber_loss(deltas[positive], goal, delta=self.huber_delta, reduction="sum") / 4
        divisor = (positive.sum() + 1).clamp(min=self.least_positives * len(labels))
        count = self.count(targets)
        return LossSum((kind + self.box_weight * box) * (count / divisor), count)

    def part(self, output: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        """Logits and shifts of some rows; the anchors are those of all."""
        return {key: entry if key == "anchors" else entry.index_select(0, rows) for key, entry in output.items()}

    def decode(self, output: dict[str, Tensor], frames: Sequence[Frame], size: tuple[int, int]) -> list[Target]:
        """Detections in pixels of the originals, best first, clipped to the image; those in the padding are dropped.

        An image on which the network failed, its features or the head's output not being finite, has one box of a score
        that is NaN, so that it is not taken for an image without objects.
        """
        logits, deltas, anchors = (output[name].detach() for name in ("logits", "deltas", "anchors"))
        # Sums are finite where all numbers are, and make no copy of the logits, which are many.
        works = output["finite"] & logits.sum((1, 2)).isfinite() & deltas.sum((1, 2)).isfinite()
        row, anchor, kind = (logits > torch.tensor(self.score_floor).logit()).nonzero(as_tuple=True)
        score = logits[row, anchor, kind].sigmoid()
        best = best_of_each(row * logits.shape[2] + kind, score, self.pre_nms)  # rows stay together, in their order
        row, anchor, kind, score = row[best], anchor[best], kind[best], score[best]
        boxes = _CODER.decode_single(deltas[row, anchor], anchors[anchor])
        boxes = clip_boxes_to_image(boxes, size)
        some = not_empty(boxes, 1e-2)
        counts = row[some].bincount(minlength=len(logits)).tolist()
        parts = zip(*(t[some].split(counts) for t in (boxes, kind, score)), strict=True)
        found = [
            self.reported(certain(*part)) if fine else failed(logits, size)
            for part, fine in zip(parts, works.tolist(), strict=True)
        ]
        return [restore(boxes.to("cpu"), frame) for boxes, frame in zip(found, frames, strict=True)]


def focal_loss(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """The focal loss (Lin et al. 2017, section 3) summed over all anchors and classes; a scalar of the logits' type.

    With p the probability of the wrong answer, an anchor and class gives -w p^gamma log(1 - p), w being `alpha` where
    the class is there and 1 - `alpha` where it is not. All is computed from logarithms of sigmoids, so that value and
    gradient are finite for every finite logit, also for a gamma below 1. (torchvision's `sigmoid_focal_loss` raises a
    difference to the power of gamma, whose gradient is NaN at 0 then, and wants a one-hot tensor of the size of the
    logits.)

    Args:
        logits: [R,A,K], each class by itself.
        labels: int64 [R,A], class + 1, 0 for no class, -1 for anchors that are left out.
    """
    row, anchor = (labels > 0).nonzero(as_tuple=True)
    there = (row, anchor, labels[row, anchor] - 1)
    wrong = logits.index_put(there, -logits[there])  # the logit of p
    loss = -(gamma * F.logsigmoid(wrong)).exp() * F.logsigmoid(-wrong)
    absent = loss.sum(2)[labels >= 0].sum()
    return (1 - alpha) * absent + (2 * alpha - 1) * loss[there].sum()


def best_of_each(group: Tensor, score: Tensor, most: int) -> Tensor:
    """The index of the `most` best-scored of each group, group after group, best first; of equals the earlier.

    Args:
        group: int64 [M], not negative, in any order.
        score: [M].
    """
    order = score.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    sorted_group = group[order]
    rank = torch.arange(len(order), device=order.device) - torch.searchsorted(sorted_group, sorted_group)
    return order[rank < most]


class DenseHead(nn.Module):
    """Two sub-nets, for classes and for shifts, each with weights that all levels share.

    The output is a dict: "logits" float32 [R,A,K]; "deltas" float32 [R,A,4], as torchvision's `BoxCoder` of weights 1
    codes them; "anchors" float32 [A,4]; in evaluation also "finite", bool [R], whether all features of a row are.
    Anchors go level by level, and within one as `level_anchors` lays them.
    """

    def __init__(self, task: RetinaNet, width: int, classes: int) -> None:
        super().__init__()
        self.task, self.anchors = task, task.anchor_sizes * len(task.anchor_ratios)
        self.classes = SubNet(task, width, self.anchors * classes, -math.log((1 - task.prior) / task.prior))
        self.deltas = SubNet(task, width, self.anchors * 4, 0.0)

    def forward(self, features: Features, targets: Any = None) -> dict[str, Tensor]:
        """The output; targets are not looked at."""
        levels = features.pyramid
        assert levels is not None
        output = {"logits": self._flat(self.classes(levels)), "deltas": self._flat(self.deltas(levels))}
        output["anchors"] = torch.cat([self._anchors(level, s) for level, s in zip(levels, STRIDES, strict=True)])
        if not self.training:
            output["finite"] = torch.stack([level.isfinite().flatten(1).all(1) for level in levels]).all(0)
        return output

    def _flat(self, maps: list[Tensor]) -> Tensor:
        """Maps [R,anchors*n,h,w] of all levels as float32 [R,A,n]."""
        n = maps[0].shape[1] // self.anchors
        return torch.cat([m.float().permute(0, 2, 3, 1).reshape(len(m), -1, n) for m in maps], 1)

    def _anchors(self, level: Tensor, stride: int) -> Tensor:
        side, number = self.task.anchor_scale * stride, self.task.anchor_sizes
        return level_anchors(level, stride, [side * 2 ** (n / number) for n in range(number)], self.task.anchor_ratios)


class SubNet(nn.Module):
    """Hidden 3x3 convolutions, each with batch norm and activation, and a 3x3 convolution to the output.

    Convolutions are shared by the levels. Each level has norms of its own, since statistics differ between levels (as
    in the authors' code). All weights start from N(0, 0.01).

    Args:
        width: C.
        out: channels of the output.
        bias: of the output when training starts.
    """

    def __init__(self, task: RetinaNet, width: int, out: int, bias: float) -> None:
        super().__init__()
        widths = [width] + [task.channels] * task.convs
        self.hidden = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.ModuleList(Norm2d(c) for c in widths[1:]) for _ in STRIDES)
        self.last = nn.Conv2d(widths[-1], out, 3, padding=1)
        for conv in (*self.hidden, self.last):
            nn.init.normal_(conv.weight, std=0.01)
        nn.init.constant_(self.last.bias, bias)  # type: ignore[arg-type]
        self.activation = nn.ReLU() if task.activation == "relu" else nn.SiLU()

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Maps [R,C,h,w] to maps [R,out,h,w]."""
        maps = []
        for level, norms in zip(levels, self.norms, strict=True):
            for conv, norm in zip(self.hidden, norms, strict=True):  # type: ignore[call-overload]
                level = self.activation(norm(conv(level)))
            maps.append(self.last(level))
        return maps
