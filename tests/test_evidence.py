"""What images contribute to a figure: a weighted image counts as one that was seen so often, in every metric."""

import contextlib
import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from faster_coco_eval import COCO, COCOeval_faster

from tutelage.errors import UserError
from tutelage.tasks.average_precision import AveragePrecision
from tutelage.tasks.classification import Accuracy, MeanAveragePrecision
from tutelage.tasks.depth import DepthErrors
from tutelage.tasks.evidence import Hits
from tutelage.tasks.normals import AngularErrors
from tutelage.tasks.segmentation import MeanIoU
from tutelage.tasks.task import Metric
from tutelage.training.evaluate import load_evidence, save_evidence, score
from tutelage.types import Boxes, Field, Label, Mask, Vectors

IMAGES = 12


def _labels():
    truth = torch.randint(0, 7, (IMAGES,))
    scores = torch.rand(IMAGES, 7) + F.one_hot(truth, 7) * torch.rand(IMAGES, 1)
    return [(Label(s), Label(F.one_hot(t, 7).float())) for s, t in zip(scores, truth, strict=True)]


def _several():
    scores = (torch.rand(IMAGES, 5) * 8).round() / 8  # with ties
    return [(Label(s), Label((torch.rand(5) > 0.6).float())) for s in scores]


def _masks():
    pairs = []
    for image in range(IMAGES):
        shape = (5 + image % 3, 6)
        truth = torch.randint(0, 4, shape, dtype=torch.uint8)
        said = torch.where(torch.rand(shape) > 0.4, truth, torch.randint(0, 5, shape, dtype=torch.uint8))
        said[said == 4], truth[1, :2] = 255, 255
        said[0, 0] = 255
        pairs.append((Mask(said), Mask(truth.masked_fill(truth == 3, 0) if image else truth)))  # class 3: image 0 only
    pairs[5] = (pairs[5][0], Mask(torch.full_like(pairs[5][1].ids, 255)))  # an image without a labelled pixel
    return pairs


def _fields():
    pairs = []
    for image in range(IMAGES):
        true, valid = torch.rand(4, 5 + image % 2) * 5 + 0.5, torch.rand(4, 5 + image % 2) > 0.2
        said = true * (1 + 0.3 * torch.randn(true.shape)).clamp_min(0.1)
        pairs.append((Field(said, torch.ones_like(valid)), Field(true * valid, valid & (image != 3))))
    return pairs


def _vectors():
    pairs = []
    for image in range(IMAGES):
        true = F.normalize(torch.randn(3, 4, 5), dim=0)
        said = F.normalize(true + 0.4 * torch.randn(3, 4, 5), dim=0)
        valid = torch.rand(4, 5) > 0.2
        pairs.append((Vectors(said, torch.rand(4, 5) > 0.1), Vectors(true * valid, valid & (image != 3))))
    return pairs


def _some_boxes(n, ignored=0.0, scored=False):
    corner, side = torch.rand(n, 2) * 60, torch.rand(n, 2) * 40 + 2
    scores = torch.rand(n) if scored else None
    return Boxes.make(torch.cat([corner, corner + side], 1), torch.randint(0, 3, (n,)), scores, torch.rand(n) < ignored)


def _boxes():
    pairs = []
    for image in range(IMAGES):
        truth = _some_boxes((3, 0, 8, 1)[image % 4], ignored=0.3)
        near = truth.boxes + 3 * torch.randn_like(truth.boxes)
        near[:, 2:] = torch.maximum(near[:, 2:], near[:, :2] + 1)
        rest = _some_boxes((5, 2, 9)[image % 3], scored=True)
        scores = torch.cat([torch.rand(len(truth)), rest.scores])
        found = Boxes.make(torch.cat([near, rest.boxes]), torch.cat([truth.classes, rest.classes]), scores)
        pairs.append((found, truth))
    return pairs


CASES = {
    "top-1": (Accuracy, _labels),
    "mAP": (MeanAveragePrecision, _several),
    "mIoU": (lambda: MeanIoU(4), _masks),
    "depth": (DepthErrors, _fields),
    "aligned depth": (lambda: DepthErrors(align=True), _fields),
    "normals": (AngularErrors, _vectors),
    "AP": (lambda: AveragePrecision(4), _boxes),
}
case = pytest.mark.parametrize(("make", "pairs"), CASES.values(), ids=CASES.keys())
WEIGHTS = [
    np.ones(IMAGES, np.int64),
    np.array([0, 2, 1, 0, 3, 1, 0, 0, 4, 0, 1, 0]),
    np.array([5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    np.zeros(IMAGES, np.int64),
]


def _seen(make, pairs, counts=None):
    metric = make()
    for index, pair in enumerate(pairs):
        for _ in range(1 if counts is None else int(counts[index])):
            metric.update(*pair)
    return metric


@case
def test_a_weight_counts_as_an_image_seen_so_often(make, pairs):
    pairs = pairs()
    metric = _seen(make, pairs)
    for weights in WEIGHTS:
        found = metric.compute(weights)
        assert all(map(math.isnan, found.values())) == (not weights.any())
        if weights.any():
            expected = _seen(make, pairs, weights).compute()
            expected.pop("median deg", None)
            assert found.keys() == expected.keys()
            assert found == pytest.approx(expected, rel=1e-12)


@case
def test_many_resamples_at_once_are_those_one_by_one(make, pairs):
    evidence = _seen(make, pairs()).evidence()
    weights = np.stack(WEIGHTS).astype(float)
    for name in evidence.names:
        alone = [float(evidence.figure(name, row[None])[0]) for row in weights]
        assert evidence.figure(name, weights) == pytest.approx(alone, rel=1e-12, nan_ok=True)


@case
def test_evidence_comes_back_from_its_file(make, pairs, tmp_path):
    metric, ids = _seen(make, pairs()), [f"ä/{n}\udc80" for n in range(IMAGES)]
    found = score(metric, IMAGES, ids)
    assert found.value == pytest.approx(metric.compute()[metric.name])
    assert save_evidence(tmp_path / "a.npz", found)
    assert save_evidence(tmp_path / "b.npz", found)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    again = load_evidence(tmp_path / "a.npz")
    assert (again.ids, type(again.evidence)) == (tuple(ids), type(found.evidence))
    for name in again.evidence.names:
        whole = again.evidence.figure(name, np.ones((1, IMAGES)))
        assert float(whole[0]) == pytest.approx(found.values[name], rel=1e-9)


@case
def test_nothing_seen_is_no_figure(make, pairs):
    metric = make()
    assert all(map(math.isnan, metric.compute(np.zeros(0, np.int64)).values()))
    evidence = metric.evidence()
    assert evidence.figure(evidence.names[0], np.zeros((3, 0))).shape == (3,)
    with pytest.raises(ValueError, match="0 images were seen"):
        metric.compute(np.ones(2, np.int64))


# COCO's average precision, which is the one that is computed twice


def _faster_coco_eval(pairs):
    """AP of the pairs, by the library, from records written here."""

    def rows(boxes, image):
        for (x1, y1, x2, y2), k, s, i in zip(*(getattr(boxes, f).tolist() for f in boxes.__slots__), strict=True):
            box = [x1, y1, x2 - x1, y2 - y1]
            record = {"image_id": image, "category_id": k, "bbox": box, "area": box[2] * box[3]}
            yield record | {"score": s, "iscrowd": int(i)}

    true = [row for image, (_, t) in enumerate(pairs, 1) for row in rows(t, image)]
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO(
            {
                "images": [{"id": image + 1} for image in range(len(pairs))],
                "categories": [{"id": k} for k in range(4)],
                "annotations": [row | {"id": n} for n, row in enumerate(true, 1)],
            }
        )
        found = dataset.loadRes([row for image, (f, _) in enumerate(pairs, 1) for row in rows(f, image)])
        evaluation = COCOeval_faster(dataset, found, "bbox", print_function=lambda *_: None)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * float(evaluation.stats[0])


@pytest.mark.parametrize("seed", range(6))
def test_own_coco_ap_is_the_librarys(seed):
    torch.manual_seed(seed)
    pairs = _boxes()
    metric = _seen(lambda: AveragePrecision(4), pairs)
    assert metric.compute(WEIGHTS[0])["AP"] == pytest.approx(_faster_coco_eval(pairs), rel=1e-9)
    assert metric.compute(WEIGHTS[0]) == pytest.approx(metric.compute(), rel=1e-9)
    repeated = [pair for pair, count in zip(pairs, WEIGHTS[1], strict=True) for _ in range(count)]
    assert metric.compute(WEIGHTS[1])["AP"] == pytest.approx(_faster_coco_eval(repeated), rel=1e-9)


def test_coco_looks_at_a_hundred_detections_of_a_class_in_an_image():
    found = Boxes.make([[0, 0, 10, 10]] * 120, [0] * 120, torch.linspace(0.9, 0.1, 120))
    late = found.boxes.clone()
    late[:110] += 50  # the first right one is the 111th
    pairs = [(Boxes(late, found.classes, found.scores, found.ignore), Boxes.make([[0, 0, 10, 10]], [0]))]
    metric = _seen(lambda: AveragePrecision(1), pairs)
    assert metric.compute(np.ones(1, np.int64))["AP"] == metric.compute()["AP"] == 0
    assert metric.compute(np.ones(1, np.int64))["AP50"] == metric.compute()["AP50"] > 0


def test_crowds_take_any_number_and_equal_overlaps_go_to_the_last():
    crowd = Boxes.make([[0, 0, 40, 40], [0, 0, 10, 10], [0, 0, 10, 10]], [0, 0, 0], None, [True, False, False])
    found = Boxes.make([[0, 0, 10, 10], [20, 20, 30, 30], [21, 20, 31, 30], [0, 0, 10, 10], [0, 0, 10, 9]], [0] * 5)
    pairs = [(Boxes(found.boxes, found.classes, torch.linspace(0.9, 0.5, 5), found.ignore), crowd)]
    metric = _seen(lambda: AveragePrecision(1), pairs)
    assert metric.compute(np.ones(1, np.int64))["AP"] == pytest.approx(_faster_coco_eval(pairs), rel=1e-9)
    evidence = metric.evidence()
    assert evidence.coco.tolist() == [1023, 0, 0, 1023, 0]
    assert evidence.aside.tolist() == [0, 1023, 1023, 0, 1023]  # inside the crowd, whatever is left of it


def test_of_two_boxes_that_overlap_equally_the_last_is_taken():
    truth = Boxes.make([[0, 0, 12, 10], [3, 0, 15, 10]], [0, 0])
    found = Boxes.make([[1.5, 0, 13.5, 10], [0, 0, 12, 10]], [0, 0], [0.9, 0.8])
    metric = _seen(lambda: AveragePrecision(1), [(found, truth)])
    assert metric.evidence().coco.tolist() == [0b111111, 1023]  # the first is left for the second detection
    assert metric.compute(np.ones(1, np.int64))["AP"] == pytest.approx(_faster_coco_eval([(found, truth)]), rel=1e-9)


# Files and metrics that are something else


class Own(Metric):
    name = "own"

    def update(self, prediction, truth):
        pass

    def compute(self):
        return {"own": 1.0}


def test_a_metric_of_ones_own_keeps_no_evidence(tmp_path):
    found = score(Own(), 2, ["a", "b"])
    assert (found.value, found.evidence) == (1.0, None)
    assert not save_evidence(tmp_path / "evidence.npz", found)
    assert not list(tmp_path.iterdir())


def test_a_file_with_the_metrics_name_is_read_as_well(tmp_path):
    """As they were written before."""
    found = score(_seen(Accuracy, _labels()), IMAGES, [str(n) for n in range(IMAGES)])
    save_evidence(tmp_path / "new.npz", found)
    with np.load(tmp_path / "new.npz") as new:
        np.savez_compressed(tmp_path / "old.npz", metric=np.frombuffer(b"top-1", np.uint8), **new)
    new, old = (load_evidence(tmp_path / f"{name}.npz") for name in ("new", "old"))
    assert new.ids == old.ids
    assert all(np.array_equal(array, old.evidence.arrays()[name]) for name, array in new.evidence.arrays().items())


@pytest.mark.parametrize("damage", ["cut", "text", "missing", "unknown", "ids"])
def test_a_damaged_file_is_named(tmp_path, damage, monkeypatch):
    if damage == "unknown":
        monkeypatch.setattr(Hits, "kind", "of another time")
    file = tmp_path / "evidence.npz"
    found = score(_seen(Accuracy, _labels()), IMAGES, [str(n) for n in range(IMAGES - (damage == "ids"))])
    save_evidence(file, found)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-300])
    elif damage == "text":
        file.write_text("no archive")
    elif damage == "missing":
        file.unlink()
    monkeypatch.undo()
    with pytest.raises(UserError, match="cannot be read") as told:
        load_evidence(file)
    assert str(file) in str(told.value)
