"""Boxes of objects: Faster R-CNN on the pyramid.

Letters in shapes: R labelled rows, C pyramid width, K classes, A anchors of an image, P proposals of an image, M
sampled RoIs of a batch, N detections. Boxes are float32 x1 y1 x2 y2 in pixels of the (padded) input; all arithmetic on
them, and all losses, are float32 whatever autocast does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field as Option
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, Matcher
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.ops import MultiScaleRoIAlign, batched_nms, box_area, box_iou, clip_boxes_to_image
from torchvision.ops.poolers import LevelMapper

from tutelage.tasks import drawing
from tutelage.tasks.average_precision import AveragePrecision
from tutelage.tasks.suppression import soft_suppress, suppress
from tutelage.tasks.task import Features, Frame, Metric, Reads, Task, Widths
from tutelage.tasks.thresholds import COMMON, Threshold, check_names, each
from tutelage.types import Boxes, BoxStack, LossSum, Stack, Target

_STRIDES = (8, 16, 32, 64, 128)
_HUBER = 1 / 9
"""Where the box losses turn from square to straight (torchvision's)."""
_COVERED = 0.5
"""Share of a negative that lies on an ignored object from which on it is no negative."""


class Detection(Task):
    """Faster R-CNN with a proposal network of two hidden convolutions and a box head of four convolutions and one fully
    connected layer on P3..P7 (MuST section 3.2). Defaults are torchvision's Faster R-CNN v2; the box head is normalised
    by groups (Wu and He 2018), which, unlike batch norm, is the same for one image and for none.

    Ignored boxes are never positives. Anchors and proposals that would be negatives are left out where at least half
    of their area lies on an ignored box.

    Pseudo labels: boxes of a score of at least `pseudo_threshold` (section 3.1), then, if `pseudo_nms` is set, of
    overlapping ones the best; an image where none is left is a labelled image without objects. This rule is applied
    when labels are read. What `nms` or `soft_nms` did before, when the network predicted, is in the stored labels.
    """

    kind: ClassVar[type] = Boxes
    reads: ClassVar[Reads] = "pyramid"

    task: Literal["detection"] = "detection"
    anchor_scale: float = Option(4.0, gt=0)
    """Side of a level's square anchor in strides of the level: 4 gives 32 to 512 pixels on P3 to P7."""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width; the area stays."""
    rpn_convs: int = Option(2, ge=1)
    rpn_samples: int = Option(256, gt=0)
    """Anchors an image in the proposal network's loss, at most half of them positive."""
    pre_nms_train: int = Option(2000, gt=0)
    """Anchors a level that go into non-maximum suppression, in training."""
    pre_nms_test: int = Option(1000, gt=0)
    proposals_train: int = Option(2000, gt=0)
    """Proposals an image, in training."""
    proposals_test: int = Option(1000, gt=0)
    rpn_nms: float = Option(0.7, gt=0, le=1)
    rois_per_image: int = Option(512, gt=0)
    """Proposals an image in the box head's loss, at most a quarter of them positive."""
    roi_size: int = Option(7, gt=0)
    """Cells a side of a pooled proposal."""
    roi_levels: int = Option(4, ge=1, le=5)
    """Proposals are pooled from P3 and up to this many levels."""
    roi_canonical: float = Option(224.0, gt=0)
    """Side of a proposal that is pooled from P4; twice the side, one level up (FPN, Lin et al. 2017, equation 1)."""
    roi_convs: int = Option(4, ge=0)
    roi_channels: int = Option(256, gt=0)
    fc_width: int = Option(1024, gt=0)
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
    def _check_threshold(self) -> Detection:
        check_names(self.pseudo_threshold, self.classes)
        return self

    def head(self, widths: Widths) -> nn.Module:
        return FasterRCNN(self, widths.pyramid, len(self.names))

    def count(self, targets: Stack) -> Tensor:
        """R, the number of labelled images."""
        assert isinstance(targets, BoxStack)
        return torch.tensor(float(len(targets.counts)), device=targets.counts.device)

    def loss(self, output: dict[str, Tensor], targets: Stack) -> LossSum:
        """The four losses of the head, each a mean over the images, summed and times R."""
        count = self.count(targets)
        return LossSum(torch.stack(list(output.values())).sum() * count, count)

    def decode(self, output: dict[str, Tensor], frames: Sequence[Frame], size: tuple[int, int]) -> list[Target]:
        """Detections in pixels of the originals, best first, clipped to the image; those in the padding are dropped.

        An image on which the network failed (`FasterRCNN`) has one box of a score that is NaN, so that it is not taken
        for an image without objects.
        """
        counts = output["counts"].tolist()
        parts = zip(*(output[f].cpu().split(counts) for f in ("boxes", "classes", "scores")), strict=True)
        return [_restore(Boxes.make(*part), frame) for part, frame in zip(parts, frames, strict=True)]

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

    def draw(self, image: NDArray[np.uint8], target: Target) -> NDArray[np.uint8]:
        """Boxes with class names, and scores where they are below 1; ignored boxes thin and grey."""
        assert isinstance(target, Boxes)
        return drawing.boxes(image, target, self.names)


def _restore(found: Boxes, frame: Frame) -> Boxes:
    """Boxes of the padded input as boxes of the original image."""
    scale = torch.tensor([frame.width / frame.inner_width, frame.height / frame.inner_height])
    boxes = clip_boxes_to_image(found.boxes * scale.repeat(2), (frame.height, frame.width))
    inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return Boxes(boxes, found.classes, found.scores, found.ignore).pick(inside)


class FasterRCNN(nn.Module):
    """The head. In training its output is four losses ("objectness", "proposal", "class", "box": float32 scalars);
    in evaluation the detections of all images, packed: "boxes" [N,4], "classes" int64 [N], "scores" [N], best first
    within an image, and "counts" int64 [R].

    Where the features or the outputs of an image are not finite, its only detection is the whole input as class 0 with
    a score of NaN: NaN scores pass no floor, so the image would look like one without objects.
    """

    def __init__(self, task: Detection, width: int, classes: int) -> None:
        super().__init__()
        self.rpn = ProposalNetwork(task, width)
        self.roi = BoxHead(task, width, classes)

    def forward(self, features: Features, targets: Stack | None = None) -> dict[str, Tensor]:
        """Raises ValueError in training without targets: proposals are matched to them."""
        assert features.pyramid is not None
        if not self.training:
            proposals, _ = self.rpn(features.pyramid, features.size, None)
            return self.roi.detect(features.pyramid, features.size, proposals)
        if not isinstance(targets, BoxStack):
            raise ValueError("a detection head in training needs boxes; an image without any is a label too")
        truths = targets.split()
        proposals, losses = self.rpn(features.pyramid, features.size, truths)
        return losses | self.roi.losses(features.pyramid, features.size, proposals, truths)


class ProposalNetwork(nn.Module):
    """The region proposal network (Ren et al. 2015), shared over levels, without classes."""

    def __init__(self, task: Detection, width: int) -> None:
        super().__init__()
        self.task = task
        self.hidden = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(task.rpn_convs))
        self.objectness = nn.Conv2d(width, len(task.anchor_ratios), 1)
        self.deltas = nn.Conv2d(width, 4 * len(task.anchor_ratios), 1)
        for conv in (*self.hidden, self.objectness, self.deltas):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)
        self.coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        self.matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
        self.sampler = BalancedPositiveNegativeSampler(task.rpn_samples, 0.5)

    def forward(
        self, levels: list[Tensor], size: tuple[int, int], truths: list[Boxes] | None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals [P,4] of each image, and, where there are truths, the losses.

        The whole image is always a proposal, so no image is without one.
        """
        scores, deltas = self._predict(levels)
        anchors = [self._anchors(level, s) for level, s in zip(levels, _STRIDES, strict=True)]
        proposals = self._propose([s.detach() for s in scores], [d.detach() for d in deltas], anchors, size)
        if truths is None:
            return proposals, {}
        return proposals, self._losses(torch.cat(scores, 1), torch.cat(deltas, 1), torch.cat(anchors), truths)

    def _predict(self, levels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """A level: logits [R,A] and box deltas [R,A,4], float32, in the order of the anchors."""
        scores, deltas = [], []
        for level in levels:
            for conv in self.hidden:
                level = F.relu(conv(level))
            scores.append(self.objectness(level).float().permute(0, 2, 3, 1).flatten(1))
            delta = self.deltas(level).float().permute(0, 2, 3, 1)
            deltas.append(delta.reshape(len(delta), -1, 4))
        return scores, deltas

    def _anchors(self, level: Tensor, stride: int) -> Tensor:
        """[A,4]: at the centre of every cell, row by row, one for each ratio."""
        ratios = torch.tensor(self.task.anchor_ratios, device=level.device).sqrt()
        side = self.task.anchor_scale * stride
        half = torch.stack([side / ratios, side * ratios], 1) / 2
        y, x = ((torch.arange(n, device=level.device) + 0.5) * stride for n in level.shape[2:])
        centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), 2)[:, :, None]
        return torch.cat([centres - half, centres + half], 3).reshape(-1, 4)

    def _propose(
        self, scores: list[Tensor], deltas: list[Tensor], anchors: list[Tensor], size: tuple[int, int]
    ) -> list[Tensor]:
        task, best, boxes, levels = self.task, [], [], []
        before = task.pre_nms_train if self.training else task.pre_nms_test
        after = task.proposals_train if self.training else task.proposals_test
        for number, (score, delta, anchor) in enumerate(zip(scores, deltas, anchors, strict=True)):
            top = score.topk(min(before, score.shape[1]), 1)
            picked = delta.gather(1, top.indices[:, :, None].expand(-1, -1, 4))
            box = self.coder.decode_single(picked.flatten(0, 1), anchor[top.indices].flatten(0, 1))
            best.append(top.values)
            boxes.append(clip_boxes_to_image(box, size).view_as(picked))
            levels.append(torch.full_like(top.indices, number))
        whole = torch.tensor([[0.0, 0.0, size[1], size[0]]], device=scores[0].device)
        proposals = []
        for box, score, level in zip(torch.cat(boxes, 1), torch.cat(best, 1), torch.cat(levels, 1), strict=True):
            some = _not_empty(box, 1e-3)
            keep = batched_nms(box[some], score[some], level[some], task.rpn_nms)[:after]
            proposals.append(torch.cat([box[some][keep], whole]))
        return proposals

    def _losses(self, scores: Tensor, deltas: Tensor, anchors: Tensor, truths: list[Boxes]) -> dict[str, Tensor]:
        matches = [_assign(self.matcher, anchors, truth) for truth in truths]
        labels = torch.stack([label.clamp(max=1) for label, _ in matches])
        positive, negative = (torch.stack(picked).bool() for picked in self.sampler(list(labels)))
        sampled = positive | negative
        count = sampled.sum().clamp_min(1)
        wanted = torch.stack([matched for _, matched in matches])[positive]
        goal = self.coder.encode_single(wanted, anchors.expand(len(truths), -1, -1)[positive])
        objectness = F.binary_cross_entropy_with_logits(scores[sampled], labels[sampled].float(), reduction="sum")
        box = F.smooth_l1_loss(deltas[positive], goal, beta=_HUBER, reduction="sum")
        return {"objectness": objectness / count, "proposal": box / count}


class BoxHead(nn.Module):
    """Classes and finer boxes for proposals (Fast R-CNN, Girshick 2015)."""

    def __init__(self, task: Detection, width: int, classes: int) -> None:
        super().__init__()
        self.task = task
        self.names = [f"P{level + 3}" for level in range(task.roi_levels)]
        self.pool = MultiScaleRoIAlign(self.names, task.roi_size, 2)
        # Given, not inferred from the first batch's sizes, which are wrong where a level's size was rounded up.
        self.pool.scales = [1 / stride for stride in _STRIDES[: task.roi_levels]]
        self.pool.map_levels = LevelMapper(3, 2 + task.roi_levels, task.roi_canonical, 4)
        groups = math.gcd(32, task.roi_channels)
        shape = (width, task.roi_size, task.roi_size)
        norm = partial(nn.GroupNorm, groups)
        self.body = FastRCNNConvFCHead(shape, [task.roi_channels] * task.roi_convs, [task.fc_width], norm)
        self.scores = nn.Linear(task.fc_width, classes + 1)
        self.deltas = nn.Linear(task.fc_width, 4 * (classes + 1))
        nn.init.normal_(self.scores.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        nn.init.zeros_(self.scores.bias)
        nn.init.zeros_(self.deltas.bias)
        self.coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
        self.matcher = Matcher(0.5, 0.5)
        self.sampler = BalancedPositiveNegativeSampler(task.rois_per_image, 0.25)

    def _predict(self, levels: list[Tensor], size: tuple[int, int], rois: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [M,K+1], 0 being "no object", and box deltas [M,K+1,4] of the RoIs of all images, float32."""
        maps = dict(zip(self.names, levels, strict=False))
        hidden = self.body(self.pool(maps, rois, [size] * len(rois)))
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.float()
            deltas = self.deltas(hidden)
            return self.scores(hidden), deltas.view(len(deltas), -1, 4)

    def losses(
        self, levels: list[Tensor], size: tuple[int, int], proposals: list[Tensor], truths: list[Boxes]
    ) -> dict[str, Tensor]:
        """ "class" and "box", each a mean over the sampled proposals of all images."""
        rois, labels, goals = [], [], []
        for proposal, truth in zip(proposals, truths, strict=True):
            # Without the true boxes among the proposals, the head would see no positive at first.
            proposal = torch.cat([proposal, truth.boxes[~truth.ignore]])
            label, matched = _assign(self.matcher, proposal, truth)
            (positive,), (negative,) = self.sampler([label])
            picked = (positive | negative).nonzero()[:, 0]
            if not len(picked):  # all of it ignored: one RoI of label -1 keeps every weight in the graph
                picked = picked.new_zeros(1)
            rois.append(proposal[picked])
            labels.append(label[picked])
            goals.append(self.coder.encode_single(matched[picked], proposal[picked]))
        scores, deltas = self._predict(levels, size, rois)
        label, goal = torch.cat(labels), torch.cat(goals)
        count = (label >= 0).sum().clamp_min(1)
        positive = (label > 0).nonzero()[:, 0]
        kind = F.cross_entropy(scores, label, ignore_index=-1, reduction="sum")
        box = F.smooth_l1_loss(deltas[positive, label[positive]], goal[positive], beta=_HUBER, reduction="sum")
        return {"class": kind / count, "box": box / count}

    def detect(self, levels: list[Tensor], size: tuple[int, int], proposals: list[Tensor]) -> dict[str, Tensor]:
        """Detections, as `FasterRCNN` packs them."""
        logits, deltas = self._predict(levels, size, proposals)
        counts = [len(p) for p in proposals]
        boxes = clip_boxes_to_image(self.coder.decode(deltas.flatten(1), proposals), size)
        scores = logits.softmax(1)
        finite = (scores.isfinite().all(1) & boxes.isfinite().flatten(1).all(1)).split(counts)
        works = torch.stack([level.isfinite().flatten(1).all(1) for level in levels]).all(0)
        works &= torch.stack([rows.all() for rows in finite])
        found = [
            self._suppress(b, s) if fine else _failed(s, size)
            for b, s, fine in zip(boxes.split(counts), scores.split(counts), works.tolist(), strict=True)
        ]
        packed = {name: torch.cat([f[name] for f in found]) for name in ("boxes", "classes", "scores")}
        return packed | {"counts": torch.tensor([len(f["scores"]) for f in found], device=logits.device)}

    def _suppress(self, boxes: Tensor, scores: Tensor) -> dict[str, Tensor]:
        """The best detections of one image from boxes [P,K+1,4] and probabilities [P,K+1]."""
        task = self.task
        proposal, kind = (scores[:, 1:] > task.score_floor).nonzero(as_tuple=True)
        box, score = boxes[proposal, kind + 1], scores[proposal, kind + 1]
        some = _not_empty(box, 1e-2)
        box, score, kind = box[some], score[some], kind[some]
        if task.soft_nms is not None:
            found = Boxes(box, kind, score, torch.zeros_like(kind, dtype=torch.bool))
            found = soft_suppress(found, task.soft_nms, task.score_floor, most=task.detections)
            return {"boxes": found.boxes, "classes": found.classes, "scores": found.scores}
        keep = batched_nms(box, score, kind, task.nms)[: task.detections]
        return {"boxes": box[keep], "classes": kind[keep], "scores": score[keep]}


def _failed(scores: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    """The detections of an image whose numbers are none; `scores` says where and of what type."""
    whole = scores.new_tensor([[0.0, 0.0, size[1], size[0]]])
    nothing = scores.new_full((1,), math.nan)
    return {"boxes": whole, "classes": torch.zeros(1, dtype=torch.int64, device=scores.device), "scores": nothing}


def _not_empty(boxes: Tensor, side: float) -> Tensor:
    """bool [N]: both sides at least `side` pixels (not so where a coordinate is NaN)."""
    return (boxes[:, 2:] - boxes[:, :2] >= side).all(1)


def _assign(matcher: Any, boxes: Tensor, truth: Boxes) -> tuple[Tensor, Tensor]:
    """What each of the boxes [A,4] should become.

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
