"""Boxes of objects: Faster R-CNN on the pyramid.

Letters in shapes: R labelled rows, C pyramid width, K classes, A anchors of an image, P proposals of an image, M
sampled RoIs of a batch, N detections. Boxes are float32 x1 y1 x2 y2 in pixels of the (padded) input; all arithmetic on
them, and all losses, are float32 whatever autocast does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from pydantic import Field as Option
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, Matcher
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.ops import MultiScaleRoIAlign, batched_nms, clip_boxes_to_image
from torchvision.ops.poolers import LevelMapper

from tutelage.part import Positive
from tutelage.tasks.anchors import STRIDES, level_anchors, not_empty
from tutelage.tasks.anchors import assign as _assign
from tutelage.tasks.detector import Detector, certain, failed, restore
from tutelage.tasks.task import Features, Frame, Widths
from tutelage.types import Boxes, BoxStack, LossSum, Stack, Target

_HUBER = 1 / 9
"""Where the box losses turn from square to straight (torchvision's)."""


class Detection(Detector):
    """Faster R-CNN with a proposal network of two hidden convolutions and a box head of four convolutions and one fully
    connected layer on P3..P7 (MuST section 3.2). Defaults are torchvision's Faster R-CNN v2; the box head is normalised
    by groups (Wu and He 2018), which, unlike batch norm, is the same for one image and for none.

    Ignored boxes are never positives. Anchors and proposals that would be negatives are left out where at least half
    of their area lies on an ignored box.

    The rule for pseudo labels is `Detector`'s.
    """

    task: Literal["detection"] = "detection"
    anchor_scale: float = Option(4.0, gt=0)
    """Side of a level's square anchor in strides of the level: 4 gives 32 to 512 pixels on P3 to P7."""
    anchor_ratios: tuple[Positive, ...] = Option((0.5, 1.0, 2.0), min_length=1)
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

    def head(self, widths: Widths) -> nn.Module:
        return FasterRCNN(self, widths.pyramid, len(self.names))

    def loss(self, output: dict[str, Tensor], targets: Stack) -> LossSum:
        """The four losses of the head, each a mean over the images, summed and times R."""
        count = self.count(targets)
        return LossSum(torch.stack(list(output.values())).sum() * count, count)

    def part(self, output: dict[str, Tensor], rows: Tensor) -> None:
        """None: proposals are drawn, and losses computed, for all rows together."""
        return

    def decode(self, output: dict[str, Tensor], frames: Sequence[Frame], size: tuple[int, int]) -> list[Target]:
        """Detections in pixels of the originals, best first, clipped to the image; those in the padding are dropped.

        An image on which the network failed (`FasterRCNN`) has one box of a score that is NaN, so that it is not taken
        for an image without objects.
        """
        counts = output["counts"].tolist()
        parts = zip(*(output[f].cpu().split(counts) for f in ("boxes", "classes", "scores")), strict=True)
        return [restore(Boxes.make(*part), frame) for part, frame in zip(parts, frames, strict=True)]


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
        anchors = [self._anchors(level, s) for level, s in zip(levels, STRIDES, strict=True)]
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
        return level_anchors(level, stride, [self.task.anchor_scale * stride], self.task.anchor_ratios)

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
            some = not_empty(box, 1e-3)
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
        self.pool.scales = [1 / stride for stride in STRIDES[: task.roi_levels]]
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
            self._suppress(b, s) if fine else failed(s, size)
            for b, s, fine in zip(boxes.split(counts), scores.split(counts), works.tolist(), strict=True)
        ]
        packed = {name: torch.cat([getattr(f, name) for f in found]) for name in ("boxes", "classes", "scores")}
        return packed | {"counts": torch.tensor([len(f) for f in found], device=logits.device)}

    def _suppress(self, boxes: Tensor, scores: Tensor) -> Boxes:
        """The best detections of one image from boxes [P,K+1,4] and probabilities [P,K+1]."""
        proposal, kind = (scores[:, 1:] > self.task.score_floor).nonzero(as_tuple=True)
        box, score = boxes[proposal, kind + 1], scores[proposal, kind + 1]
        some = not_empty(box, 1e-2)
        return self.task.reported(certain(box[some], kind[some], score[some]))
