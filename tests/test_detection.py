"""Detection: the network against torchvision's, the figures against a plain loop and pycocotools."""

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import box_iou

from tutelage.tasks.average_precision import AveragePrecision
from tutelage.tasks.detection import Detection, _assign
from tutelage.tasks.task import Features, Frame, Widths, no_loss
from tutelage.types import Boxes, stack

NAMES = ("cup", "ball", "cat")
SMALL = Detection(
    classes=NAMES, anchor_scale=2, rois_per_image=32, roi_channels=8, fc_width=16, proposals_train=50, proposals_test=50
)


def _features(rows: int, size: tuple[int, int] = (64, 96), width: int = 8) -> Features:
    levels = [torch.randn(rows, width, -(-size[0] // s), -(-size[1] // s)) for s in (8, 16, 32, 64, 128)]
    return Features(None, levels, None, size)


def _boxes(n: int, size: tuple[int, int] = (64, 96), scored: bool = False, ignore: float = 0.0) -> Boxes:
    """Random boxes, on a coarse grid so that they often meet, with coarse scores so that they often tie."""
    corner = torch.rand(n, 2) * torch.tensor([size[1] - 24.0, size[0] - 24.0])
    corner = (corner / 8).round() * 8
    side = 8 + (torch.rand(n, 2) * 2).round() * 8
    scores = ((torch.rand(n) * 10).round() + 1) / 12 if scored else None
    return Boxes.make(torch.cat([corner, corner + side], 1), torch.randint(0, 3, (n,)), scores, torch.rand(n) < ignore)


IMAGES = {
    "one": [_boxes(1)],
    "batched": [_boxes(3), _boxes(0), _boxes(5, ignore=0.5)],
    "empty": [_boxes(0)],
    "all ignored": [Boxes.make([[0, 0, 96, 64]], [0], ignore=[True])],
}


@pytest.mark.parametrize("which", IMAGES)
@pytest.mark.parametrize("autocast", [False, True])
def test_losses_are_finite_and_reach_every_weight(which, autocast):
    head, targets = SMALL.head(Widths(4, 8)), stack(IMAGES[which])
    features = _features(len(IMAGES[which]))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = head(features, targets)
        loss = SMALL.loss(output, targets)
    assert all(value.dtype == torch.float32 and value.isfinite() for value in output.values())
    assert float(loss.count) == len(IMAGES[which]) == float(SMALL.count(targets))
    assert float(loss.sum.detach()) == pytest.approx(
        len(IMAGES[which]) * sum(float(v.detach()) for v in output.values()), rel=1e-5
    )
    if which in ("empty", "all ignored"):
        assert float(output["box"].detach()) == float(output["proposal"].detach()) == 0
    if which == "all ignored":
        assert float(output["class"].detach()) == 0
    loss.sum.backward()
    assert all(w.grad is not None and w.grad.isfinite().all() for w in head.parameters())


def test_a_head_without_a_label_gives_zero_in_the_graph():
    head = SMALL.head(Widths(4, 8))
    no_loss(head(_features(1), stack([Boxes.make([], [])]))).backward()
    assert all(float(w.grad.abs().sum()) == 0 for w in head.parameters())
    with pytest.raises(ValueError, match="needs boxes"):
        head(_features(1), None)


class _Given(nn.Module):
    """Stands for a part of torchvision's network and gives what it was told."""

    def __init__(self, *values):
        super().__init__()
        self.values = values[0] if len(values) == 1 else values

    def forward(self, *_):
        return self.values


def test_the_proposal_network_is_torchvisions():
    task = SMALL.but(rpn_samples=100_000, proposals_test=300)
    rpn = task.head(Widths(4, 8)).rpn
    nn.init.normal_(rpn.objectness.weight, std=0.5)
    nn.init.normal_(rpn.deltas.weight, std=0.5)
    features, truths = _features(2), [_boxes(4), _boxes(0)]
    maps = list(features.pyramid)
    hidden = maps
    for conv in rpn.hidden:
        hidden = [conv(h).relu() for h in hidden]
    anchors = torch.cat([rpn._anchors(m, s) for m, s in zip(maps, (8, 16, 32, 64, 128), strict=True)])
    theirs = RegionProposalNetwork(
        _Given([anchors, anchors]),
        _Given([rpn.objectness(h) for h in hidden], [rpn.deltas(h) for h in hidden]),
        *(0.7, 0.3, 100_000, 0.5),
        *({"training": 2000, "testing": 1000}, {"training": 50, "testing": 300}),
        nms_thresh=0.7,
    )
    images = ImageList(torch.zeros(2, 3, 64, 96), [(64, 96)] * 2)
    targets = [{"boxes": t.boxes} for t in truths]
    _, expected = theirs(images, dict(enumerate(maps)), targets)
    proposals, losses = rpn(maps, features.size, truths)
    assert float(losses["objectness"].detach()) == pytest.approx(float(expected["loss_objectness"].detach()), rel=1e-5)
    assert float(losses["proposal"].detach()) == pytest.approx(float(expected["loss_rpn_box_reg"].detach()), rel=1e-5)
    assert len(proposals) == 2
    theirs.eval(), rpn.eval()
    expected, _ = theirs(images, dict(enumerate(maps)))
    proposals, _ = rpn(maps, features.size, None)
    for mine, other in zip(proposals, expected, strict=True):
        assert torch.allclose(mine[:-1], other, atol=1e-3)
        assert mine[-1].tolist() == [0, 0, 96, 64]


def test_the_box_head_is_torchvisions():
    task = SMALL.but(rois_per_image=100_000, detections=20)
    roi = task.head(Widths(4, 8)).roi
    nn.init.normal_(roi.scores.weight, std=1.0)
    nn.init.normal_(roi.deltas.weight, std=1.0)
    theirs = RoIHeads(
        roi.pool, roi.body, _Predictor(roi), 0.5, 0.5, 100_000, 0.25, None, task.score_floor, task.nms, task.detections
    )
    features, truths = _features(2), [_boxes(4), _boxes(0)]
    maps = dict(zip(roi.names, features.pyramid, strict=False))
    proposals = [_boxes(40).boxes + torch.rand(40, 4) for _ in range(2)]
    targets = [{"boxes": t.boxes, "labels": t.classes + 1} for t in truths]
    _, expected = theirs(maps, list(proposals), [(64, 96)] * 2, targets)
    losses = roi.losses(features.pyramid, features.size, proposals, truths)
    assert float(losses["class"].detach()) == pytest.approx(float(expected["loss_classifier"].detach()), rel=1e-4)
    assert float(losses["box"].detach()) == pytest.approx(float(expected["loss_box_reg"].detach()), rel=1e-4)
    assert float(losses["box"].detach()) > 0
    theirs.eval()
    expected, _ = theirs(maps, proposals, [(64, 96)] * 2)
    found = roi.detect(features.pyramid, features.size, proposals)
    assert found["counts"].tolist() == [len(e["scores"]) for e in expected]
    assert min(found["counts"].tolist()) > 0
    assert torch.allclose(found["boxes"], torch.cat([e["boxes"] for e in expected]), atol=1e-3)
    assert torch.allclose(found["scores"], torch.cat([e["scores"] for e in expected]), atol=1e-5)
    assert torch.equal(found["classes"] + 1, torch.cat([e["labels"] for e in expected]))


class _Predictor(nn.Module):
    def __init__(self, roi):
        super().__init__()
        self.roi = roi

    def forward(self, hidden):
        return self.roi.scores(hidden), self.roi.deltas(hidden)


def test_anchors_sit_on_cell_centres_with_one_area_a_level():
    rpn = SMALL.but(anchor_scale=4.0).head(Widths(4, 8)).rpn
    anchors = rpn._anchors(torch.zeros(1, 8, 2, 3), 16).view(2, 3, 3, 4)
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2
    side = anchors[..., 2:] - anchors[..., :2]
    assert torch.allclose(centre[1, 2], torch.tensor([40.0, 24.0]).expand(3, 2))
    assert torch.allclose(side.prod(-1), torch.tensor(64.0**2))
    assert torch.allclose(side[0, 0, :, 1] / side[0, 0, :, 0], torch.tensor([0.5, 1.0, 2.0]))


def test_ignored_objects_are_neither_positive_nor_negative():
    truth = Boxes.make([[0, 0, 40, 40], [60, 0, 96, 36]], [2, 1], ignore=[False, True])
    boxes = torch.tensor(
        [[0.0, 0, 40, 38], [60, 0, 96, 36], [60, 0, 70, 10], [50, 30, 62, 60], [0, 0, 40, 13], [0, 0, 40, 27]]
    )
    head = SMALL.head(Widths(4, 8))
    labels, matched = _assign(head.rpn.matcher, boxes, truth)
    assert labels.tolist() == [3, -1, -1, 0, -1, -1]  # the last two overlap the true box by 0.325 and 0.675
    assert matched[0].tolist() == [0, 0, 40, 40]
    labels, _ = _assign(head.roi.matcher, boxes, truth)
    assert labels.tolist() == [3, -1, -1, 0, 0, 3]
    close = torch.tensor([[0.0, 0, 40, 21], [0, 0, 40, 19]])
    assert _assign(head.roi.matcher, close, truth)[0].tolist() == [3, 0]


def test_large_proposals_are_pooled_from_high_levels():
    roi = SMALL.but(roi_canonical=32.0).head(Widths(4, 8)).roi
    levels = {f"P{n}": torch.full((1, 8, 2**9 // 2**n, 2**9 // 2**n), float(n)) for n in range(3, 7)}
    sides = torch.tensor([8.0, 16, 33, 65, 129, 400])
    rois = torch.stack([0 * sides, 0 * sides, sides, sides], 1)
    pooled = roi.pool(levels, [rois], [(512, 512)])
    assert pooled.mean((1, 2, 3)).tolist() == pytest.approx([3, 3, 4, 5, 6, 6])


def test_detections_are_those_of_the_original_image():
    frame = Frame(height=200, width=192, inner_height=64, inner_width=96)
    output = {
        "boxes": torch.tensor([[9.6, 6.4, 48, 32], [0, 0, 96, 96], [0, 70, 96, 90], [1, 1, 2, 2]]),
        "classes": torch.tensor([1, 0, 2, 2]),
        "scores": torch.tensor([0.9, 0.5, 0.4, 0.3]),
        "counts": torch.tensor([3, 0, 1]),
    }
    first, second, third = SMALL.decode(output, [frame] * 3, (96, 96))
    assert torch.allclose(first.boxes, torch.tensor([[19.2, 20, 96, 100], [0, 0, 192, 200]]), atol=1e-4)
    assert first.classes.tolist() == [1, 0]  # the third lies in the padding
    assert len(second) == 0
    assert len(third) == 1
    kept = SMALL.pseudo(first)
    assert kept.scores.tolist() == pytest.approx([0.9, 0.5])
    assert len(SMALL.pseudo(third)) == 0


@pytest.mark.parametrize("size", [(64, 96), (96, 96), (40, 72)])
@pytest.mark.parametrize("autocast", [False, True])
def test_detection_runs_at_any_size(size, autocast):
    head = SMALL.but(score_floor=0.0).head(Widths(4, 8)).eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = head(_features(3, size), None)
        found = SMALL.decode(output, [Frame(*size, *size)] * 3, size)
    assert len(found) == 3
    for boxes in found:
        assert 0 < len(boxes) <= SMALL.detections
        assert boxes.boxes.dtype == boxes.scores.dtype == torch.float32
        assert (boxes.boxes >= 0).all()
        assert (boxes.boxes <= torch.tensor([*size[::-1], *size[::-1]])).all()
        assert (boxes.scores.diff() <= 0).all()


class _Eyes(nn.Module):
    """A pyramid of averaged pixels and positions: enough to see where a bright square stands."""

    def forward(self, images):
        levels = [nn.functional.avg_pool2d(images, s, ceil_mode=True) for s in (8, 16, 32, 64, 128)]
        return Features(None, [self.widen(level) for level in levels], None, (64, 64))

    def __init__(self):
        super().__init__()
        self.widen = nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.ReLU())


def test_it_learns_to_find_squares():
    task = SMALL.but(classes=("red", "blue"), anchor_scale=3.0, roi_size=4, rois_per_image=16)
    eyes, head = _Eyes(), task.head(Widths(4, 16))
    optimiser = torch.optim.AdamW([*eyes.parameters(), *head.parameters()], 5e-3)

    def scene():
        image, kind = torch.zeros(2, 64, 64), int(torch.randint(2, ()))
        x, y = (torch.randint(0, 5, (2,)) * 8).tolist()
        image[kind, y : y + 24, x : x + 24] = 1
        return image, Boxes.make([[x, y, x + 24, y + 24]], [kind])

    for _ in range(60):
        images, truths = zip(*(scene() for _ in range(8)), strict=True)
        targets = stack(truths)
        loss = task.loss(head(eyes(torch.stack(images)), targets), targets)
        optimiser.zero_grad()
        (loss.sum / loss.count).backward()
        optimiser.step()
    images, truths = zip(*(scene() for _ in range(40)), strict=True)
    head.eval()
    with torch.inference_mode():
        output = head(eyes(torch.stack(images)), None)
    metric = task.metric()
    for said, truth in zip(task.decode(output, [Frame(64, 64, 64, 64)] * 40, (64, 64)), truths, strict=True):
        metric.update(said, truth)
    assert metric.compute()["AP50"] > 90


def _slow_voc(found: list[Boxes], true: list[Boxes], classes: int) -> float:
    """The development kit's procedure, one detection after the other."""
    precisions = []
    for k in range(classes):
        total = sum(
            int(c == k and not i) for t in true for c, i in zip(t.classes.tolist(), t.ignore.tolist(), strict=True)
        )
        if not total:
            continue
        rows = [(float(f.scores[n]), m, n) for m, f in enumerate(found) for n in range(len(f)) if f.classes[n] == k]
        rows.sort(key=lambda row: -row[0])
        taken, hits, misses, curve = set(), 0, 0, []
        for _, m, n in rows:
            best, which = -1.0, -1
            for j in range(len(true[m])):
                if true[m].classes[j] == k:
                    overlap = float(box_iou(found[m].boxes[n : n + 1], true[m].boxes[j : j + 1]))
                    if overlap > best:
                        best, which = overlap, j
            if best >= 0.5 and true[m].ignore[which]:
                continue
            if best >= 0.5 and (m, which) not in taken:
                taken.add((m, which))
                hits += 1
            else:
                misses += 1
            curve.append((hits / total, hits / (hits + misses)))
        points = [max((p for r, p in curve if r >= t / 10 - 1e-12), default=0.0) for t in range(11)]
        precisions.append(sum(points) / 11)
    return 100 * sum(precisions) / len(precisions)


def test_ap50_is_vocs_with_difficult_objects_ties_and_empty_images():
    true = [_boxes(n, ignore=0.3) for n in (4, 0, 7, 1, 12, 3, 0, 9, 6, 6)]
    found = [_boxes(n, scored=True) for n in (9, 3, 7, 0, 20, 5, 0, 9, 15, 15)]
    found += [Boxes(t.boxes, t.classes, torch.rand(len(t)), t.ignore & False) for t in true]
    true += true
    metric = AveragePrecision(4)  # nobody shows the fourth class
    for f, t in zip(found, true, strict=True):
        order = torch.randperm(len(f))
        metric.update(f.pick(order).pick(order.argsort()), t)
    figures = metric.compute()
    assert figures["AP50"] == pytest.approx(_slow_voc(found, true, 4))
    assert 10 < figures["AP50"] < 90
    assert figures["AP"] == pytest.approx(_pycocotools(found, true, 4))
    assert metric.name in figures


def _pycocotools(found: list[Boxes], true: list[Boxes], classes: int) -> float:
    def rows(boxes):
        for image, b in enumerate(boxes, 1):
            for (x1, y1, x2, y2), k, s, i in zip(*(getattr(b, f).tolist() for f in b.__slots__), strict=True):
                area = (x2 - x1) * (y2 - y1)
                box = [x1, y1, x2 - x1, y2 - y1]
                yield {"image_id": image, "category_id": k, "bbox": box, "area": area, "score": s, "iscrowd": int(i)}

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": image} for image in range(1, len(true) + 1)],
            "categories": [{"id": k} for k in range(classes)],
            "annotations": [{**row, "id": n} for n, row in enumerate(rows(true), 1)],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes([{**row} for row in rows(found)]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * float(evaluation.stats[0])


def test_figures_at_the_ends(capsys):
    truth, nothing = _boxes(5), Boxes.make([], [])
    perfect, blind, bare = (AveragePrecision(3) for _ in range(3))
    perfect.update(truth, truth)
    perfect.update(nothing, nothing)
    assert perfect.compute() == {"AP50": pytest.approx(100), "AP": pytest.approx(100)}
    blind.update(nothing, truth)
    assert blind.compute() == {"AP50": 0, "AP": 0}
    bare.update(truth, nothing)
    assert all(math.isnan(v) for v in bare.compute().values())
    assert all(math.isnan(v) for v in AveragePrecision(3).compute().values())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("shape", [(40, 50), (128, 160), (300, 128)])
def test_a_drawing_has_the_size_of_the_image(shape):
    image = np.full((*shape, 3), 120, np.uint8)
    drawn = SMALL.draw(image, _boxes(6, (40, 50), scored=True, ignore=0.3))
    assert drawn.shape == image.shape
    assert (drawn != image).any()
    assert (SMALL.draw(image, Boxes.make([], [])) == image).all()
