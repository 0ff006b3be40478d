"""The rules that make a pseudo label of a prediction: thresholds a class, hard and soft suppression, and failures."""

import math
import re

import pytest
import torch

from tutelage.errors import UserError
from tutelage.part import parse, yaml_to_plain
from tutelage.tasks import Classification, Depth, Detection, Normals, Segmentation
from tutelage.tasks.suppression import soft_suppress, suppress
from tutelage.tasks.task import Features, Frame, Widths
from tutelage.types import Boxes, Label, Mask

NAMES = ("cup", "ball", "cat")


def _boxes(n: int, classes: int = 3) -> Boxes:
    """Random boxes on a grid, so that they often meet, with coarse scores, so that they often tie."""
    corner = (torch.rand(n, 2) * 5).round() * 8
    side = 8 + (torch.rand(n, 2) * 3).round() * 8
    return Boxes.make(
        torch.cat([corner, corner + side], 1), torch.randint(0, classes, (n,)), (torch.rand(n) * 20).round() / 20
    )


def _iou(a: list[float], b: list[float]) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, wide) * max(0.0, high)
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / both if shared else 0.0


# Thresholds -------------------------------------------------------------------------------------------------


def _task(text: str):
    plain = yaml_to_plain(text)
    return parse({"detection": Detection, "segmentation": Segmentation}[plain["task"]], plain)


def test_boxes_need_the_score_of_their_class():
    task = _task("""
        task: detection
        classes: [cup, ball, cat]
        pseudo_threshold: {ball: 0.3, default: 0.8}
    """)
    assert task.plain()["pseudo_threshold"] == {"ball": 0.3, "default": 0.8}
    assert parse(Detection, task.plain()) == task
    scores = [0.79, 0.8, 0.29, 0.3, 0.5, 0.95]
    found = Boxes.make([[0, 0, 1, 1]] * 6, [0, 0, 1, 1, 2, 2], scores)
    kept = task.pseudo(found)
    assert kept.classes.tolist() == [0, 1, 2]
    assert kept.scores.tolist() == pytest.approx([0.8, 0.3, 0.95])
    assert task.but(pseudo_threshold={"cat": 0.5}).pseudo(found).classes.tolist() == [0, 0, 2, 2]  # others: 0.5
    nothing = Boxes.make([], [])
    assert len(task.pseudo(nothing)) == 0
    assert Detection().pseudo_threshold == 0.5
    assert _task("{task: detection, pseudo_threshold: 0.2}").pseudo_threshold == 0.2


def test_pixels_need_the_probability_of_their_class():
    task = _task("{task: segmentation, classes: [cup, ball, cat], pseudo_threshold: {ball: 0.2, default: 0.9}}")
    ids = torch.tensor([[0, 0, 1, 1, 2, 255]], dtype=torch.uint8)
    said = Mask(ids, torch.tensor([[229, 230, 50, 51, 128, 0]], dtype=torch.uint8))
    assert task.pseudo(said).ids.tolist() == [[255, 0, 255, 1, 255, 255]]
    assert said.ids is ids
    assert ids.tolist() == [[0, 0, 1, 1, 2, 255]]
    assert task.pseudo(Mask(ids)).ids is ids


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 0.35, 0.5, 0.6, 0.7, 0.999, 1.0])
def test_one_threshold_for_every_class_is_the_single_one(threshold):
    boxes = _boxes(200)
    boxes.scores[:3] = torch.tensor([threshold, 0, 1])
    one, each = (Detection(classes=NAMES, pseudo_threshold=t) for t in (threshold, {"default": threshold}))
    assert torch.equal(one.pseudo(boxes).scores, each.pseudo(boxes).scores)
    mask = Mask(torch.randint(0, 3, (16, 16)).to(torch.uint8), torch.arange(256).view(16, 16).to(torch.uint8))
    one, each = (Segmentation(classes=NAMES, pseudo_threshold=t) for t in (threshold, {"default": threshold}))
    assert torch.equal(one.pseudo(mask).ids, each.pseudo(mask).ids)


@pytest.mark.parametrize(
    ("threshold", "problem"),
    [
        ("{bal: 0.3}", r"no class 'bal', did you mean 'ball'\?; known: cup, ball, cat, default"),
        ("{ball: 1.3}", r"pseudo_threshold.ball: .*less than or equal to 1 \(got 1.3\)$"),
        ("1.3", r"pseudo_threshold: .*less than or equal to 1 \(got 1.3\)$"),
        ("high", r"pseudo_threshold: .*a valid number"),
    ],
)
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_thresholds_that_do_not_fit_are_named(task, threshold, problem):
    with pytest.raises(UserError) as caught:
        _task(f"{{task: {task}, classes: [cup, ball, cat], pseudo_threshold: {threshold}}}")
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert len(lines) == 3  # what does not fit, once, and what to do
    assert re.search(problem, lines[1]), lines[1]


def test_names_are_checked_once_the_classes_are_known():
    task = _task("{task: detection, pseudo_threshold: {bal: 0.3}}")
    with pytest.raises(ValueError, match="did you mean 'ball'"):
        task.but(classes=NAMES)
    assert task.but(classes=("bal",)).pseudo(Boxes.make([[0, 0, 1, 1]], [0], [0.3])).scores.tolist()


# Suppression ------------------------------------------------------------------------------------------------


def _slow(boxes: Boxes, iou: float, agnostic: bool) -> list[int]:
    """One box after the other, as the text says."""
    rows, kinds = boxes.boxes.tolist(), boxes.classes.tolist()
    kept: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: -float(boxes.scores[i])):
        if all((kinds[i] != kinds[j] and not agnostic) or _iou(rows[i], rows[j]) <= iou for j in kept):
            kept.append(i)
    return kept


def _slow_soft(boxes: Boxes, sigma: float, floor: float, agnostic: bool, most: int) -> list[tuple[int, float]]:
    """Bodla et al. 2017, figure 2, with plain numbers."""
    rows, kinds = boxes.boxes.tolist(), boxes.classes.tolist()
    left, out = dict(enumerate(boxes.scores.tolist())), []
    while left:
        best = max(left, key=lambda i: (left[i], -i))
        score = left.pop(best)
        if score < floor or len(out) == most:
            break
        out.append((best, score))
        for i in left:
            if agnostic or kinds[i] == kinds[best]:
                left[i] *= math.exp(-(_iou(rows[best], rows[i]) ** 2) / sigma)
    return out


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("n", [0, 1, 2, 60])
def test_suppression_is_the_slow_one(n, agnostic):
    boxes = _boxes(n)
    for iou in (0.0, 0.3, 0.5, 1.0):
        kept, wanted = suppress(boxes, iou, agnostic), _slow(boxes, iou, agnostic)
        for field in Boxes.__slots__:
            assert torch.equal(getattr(kept, field), getattr(boxes, field)[wanted])
            assert getattr(kept, field).dtype == getattr(boxes, field).dtype
    if n == 60:
        assert 3 < len(suppress(boxes, 0.3, agnostic)) < n


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("n", [0, 1, 2, 60])
def test_soft_suppression_is_the_slow_one(n, agnostic):
    boxes = _boxes(n)
    before = boxes.scores.clone()
    for sigma, floor, most in ((0.3, 0.05, 100), (0.5, 0.0, 100), (0.01, 0.2, 100), (0.3, 0.05, 7), (1e-4, 0.0, 100)):
        kept = soft_suppress(boxes, sigma, floor, agnostic, most)
        wanted = _slow_soft(boxes, sigma, floor, agnostic, most)
        assert kept.scores.tolist() == pytest.approx([score for _, score in wanted], abs=1e-6)
        assert torch.equal(kept.boxes, boxes.boxes[[i for i, _ in wanted]])
        assert torch.equal(kept.classes, boxes.classes[[i for i, _ in wanted]])
        assert kept.scores.dtype == torch.float32
    assert torch.equal(boxes.scores, before)


def test_classes_stay_apart_also_where_float32_could_not_tell_pixels():
    """Some implementations move each class far away; at 2,000 classes of large images that costs whole pixels."""
    box = torch.tensor([[9000.0, 9000, 9010, 9010], [9004, 9000, 9014, 9010]])  # IoU 6/14
    boxes = Boxes.make(box.repeat(2, 1), [1999, 1999, 0, 0], [0.9, 0.8, 0.7, 0.6])
    assert len(suppress(boxes, 6 / 14 + 1e-6)) == 4
    assert suppress(boxes, 6 / 14 - 1e-6).scores.tolist() == pytest.approx([0.9, 0.7])


def test_boxes_without_area_and_nan_scores_do_no_harm():
    boxes = Boxes.make([[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 4, 4]], [0, 0, 0], [0.9, 0.8, 0.7])
    assert soft_suppress(boxes).scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert suppress(boxes, 0.5).scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    failed = Boxes.make([[0, 0, 4, 4]], [0], [math.nan])
    assert soft_suppress(failed).scores.isnan().tolist() == [True]
    assert suppress(failed, 0.5, True).scores.isnan().tolist() == [True]


def test_pseudo_nms_acts_on_what_the_threshold_leaves():
    found = Boxes.make(
        [[0, 0, 10, 10], [0, 0, 10, 9], [0, 1, 10, 10], [50, 0, 60, 10]], [2, 1, 0, 1], [0.7, 0.6, 0.9, 0.55]
    )
    task = Detection(classes=NAMES, pseudo_nms=0.5)
    assert task.pseudo(found).scores.tolist() == pytest.approx([0.9, 0.55])  # of any class, the best stays
    choosy = task.but(pseudo_threshold={"cup": 0.95})
    assert choosy.pseudo(found).scores.tolist() == pytest.approx([0.7, 0.55])  # the best one was not sure enough
    assert task.but(pseudo_nms=None).pseudo(found).scores.tolist() == pytest.approx([0.7, 0.6, 0.9, 0.55])
    assert len(task.pseudo(Boxes.make([], []))) == 0


def _box_head(task: Detection):
    head = task.head(Widths(4, 8)).eval()
    torch.nn.init.normal_(head.roi.scores.weight, std=1.0)
    return head


def _levels(rows: int) -> Features:
    return Features(None, [torch.randn(rows, 8, 64 // s, 64 // s) for s in (8, 16, 32, 64, 64)], None, (64, 64))


SMALL = Detection(classes=NAMES, roi_channels=8, fc_width=16, proposals_test=40, score_floor=0.1, detections=30)


def test_soft_nms_takes_the_place_of_nms_when_the_network_predicts():
    head, features = _box_head(SMALL), _levels(2)
    with torch.no_grad():
        every = _run(head, SMALL.but(nms=1.0, detections=1000), features)
        hard, soft = (_run(head, task, features) for task in (SMALL, SMALL.but(soft_nms=0.3)))
    for all_boxes, kept, weakened in zip(every, hard, soft, strict=True):
        wanted = _slow_soft(all_boxes, 0.3, 0.1, False, 30)
        assert weakened.scores.tolist() == pytest.approx([s for _, s in wanted], abs=1e-5)
        assert torch.equal(weakened.boxes, all_boxes.boxes[[i for i, _ in wanted]])
        assert not torch.equal(kept.boxes, weakened.boxes)
        assert 1 < len(weakened) <= 30


def _run(head, task: Detection, features: Features) -> list[Boxes]:
    head.roi.task = task
    return task.decode(head(features, None), [Frame(64, 64, 64, 64)] * len(features), (64, 64))


# Failures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("level", [0, 4])
def test_a_detector_that_fails_does_not_say_that_nothing_is_there(level, value):
    head, features = _box_head(SMALL), _levels(3)
    with torch.no_grad():
        fine = _run(head, SMALL, features)
        features.pyramid[level][1, 3, 0, 0] = value
        found = _run(head, SMALL, features)
    assert found[1].scores.isnan().tolist() == [True]
    assert found[1].boxes.tolist() == [[0, 0, 64, 64]]
    for row in (0, 2):
        assert torch.equal(found[row].boxes, fine[row].boxes)
    assert len(SMALL.pseudo(found[1])) == 0
    metric = SMALL.metric()
    for said in found:
        metric.update(said, Boxes.make([[0, 0, 64, 64]], [0]))
    assert 0 <= metric.compute()["AP50"] <= 100


def test_a_box_head_of_nan_weights_fails_on_every_image():
    head = _box_head(SMALL)
    with torch.no_grad():
        head.roi.scores.bias[1] = math.nan
        assert [b.scores.isnan().tolist() for b in _run(head, SMALL, _levels(2))] == [[True], [True]]


@pytest.mark.parametrize(
    ("task", "shape"),
    [
        (Depth(), (1, 8, 8)),
        (Depth(mode="relative"), (1, 8, 8)),
        (Depth(mode="relative", target="inverse"), (1, 8, 8)),
        (Normals(), (3, 8, 8)),
        (Classification(classes=NAMES), (3,)),
        (Classification(classes=NAMES, multi_label=True), (3,)),
    ],
)
def test_nan_comes_through_decoding_and_metrics(task, shape):
    output = torch.randn(2, *shape)
    output[1].view(-1)[2] = math.nan
    fine, failed = task.decode(output, [Frame(20, 30, 22, 32)] * 2, (32, 32))
    for target, finite in ((fine, True), (failed, False)):
        values = target.probs if isinstance(target, Label) else target.values[..., target.valid]
        assert bool(values.isfinite().all()) is finite
    metric = task.metric()
    metric.update(failed, fine)
    metric.compute()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_mask_of_nan_names_no_class(value):
    task = Segmentation(classes=NAMES, pseudo_threshold=0.0)
    output = torch.randn(2, 3, 8, 8)
    output[1, 2, 7, 7] = value
    fine, failed = task.decode(output, [Frame(20, 30, 32, 32)] * 2, (32, 32))
    assert (fine.ids < 3).all()
    assert (fine.confidence > 84).all()
    assert (failed.ids == 255).all()
    assert (failed.confidence == 0).all()
    assert task.pseudo(failed) is None
    metric = task.metric()
    metric.update(failed, fine)
    assert metric.compute()["pixel accuracy"] == 0
