"""Classification against scikit-learn and formulas written out."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score, top_k_accuracy_score

from tutelage.errors import UserError
from tutelage.tasks.classification import Accuracy, Classification, MeanAveragePrecision
from tutelage.tasks.task import Features, Frame, Widths, no_loss
from tutelage.types import Label, stack

NAMES = ("cat", "dog", "bird", "fish", "newt", "frog", "crow")


def _features(rows: int, width: int = 16) -> Features:
    return Features(torch.randn(rows, width), None, None, (32, 32))


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("smooth", [0.0, 0.1])
def test_the_loss_is_cross_entropy_with_soft_targets(rows, smooth):
    task = Classification(classes=NAMES, label_smoothing=smooth)
    logits, truth = torch.randn(rows, 7), torch.randn(rows, 7).softmax(1)
    loss = task.loss(logits, Label(truth))
    expected = 0.0
    for r in range(rows):
        norm = math.log(sum(math.exp(z) for z in logits[r].tolist()))
        for z, p in zip(logits[r].tolist(), truth[r].tolist(), strict=True):
            expected -= ((1 - smooth) * p + smooth / 7) * (z - norm)
    assert float(loss.sum) == pytest.approx(expected, rel=1e-5)
    assert float(loss.count) == rows == float(task.count(Label(truth)))


def test_several_classes_an_image_are_independent():
    task = Classification(classes=NAMES, multi_label=True, label_smoothing=0.2)
    logits, truth = torch.randn(3, 7), (torch.rand(3, 7) > 0.5).float()
    p, y = logits.sigmoid().double(), truth.double() * 0.8 + 0.1
    expected = -(y * p.log() + (1 - y) * (1 - p).log()).mean(1).sum()
    assert float(task.loss(logits, Label(truth)).sum) == pytest.approx(float(expected), rel=1e-5)
    [said] = task.decode(logits[:1], [Frame(9, 9, 32, 32)], (32, 32))
    assert torch.allclose(said.probs, logits[0].sigmoid())


def test_the_head_its_prediction_and_no_label():
    task = Classification(classes=NAMES)
    head, features = task.head(Widths(16, 8)), _features(4)
    with torch.autocast("cpu", torch.bfloat16):
        output = head(features, None)
    assert output.equal(head(features, None)), "in float32 also under autocast"
    said = task.decode(output, [Frame(9, 9, 32, 32)] * 4, (32, 32))
    assert len(said) == 4
    assert all(s.probs.dtype == torch.float32 and float(s.probs.sum()) == pytest.approx(1) for s in said)
    assert task.pseudo(said[0]) is said[0]
    no_loss(output).backward()
    assert all(float(w.grad.abs().sum()) == 0 for w in head.parameters())
    loss = task.loss(output.detach(), stack(said))
    assert loss.sum.dtype == torch.float32


def test_a_head_without_classes_is_refused():
    with pytest.raises(UserError, match="no classes"):
        Classification().head(Widths(16, 8))


def test_top_1_and_top_5_as_scikit_learn_has_them():
    scores, truth = torch.rand(200, 7).softmax(1), torch.randint(0, 7, (200,))
    metric = Accuracy()
    for s, t in zip(scores, truth, strict=True):
        metric.update(Label(s), Label(torch.eye(7)[t]))
    figures = metric.compute()
    for k in (1, 5):
        expected = top_k_accuracy_score(truth.numpy(), scores.numpy(), k=k, labels=range(7))
        assert figures[f"top-{k}"] == pytest.approx(100 * expected)
    assert figures["mean per class"] == pytest.approx(100 * balanced_accuracy_score(truth, scores.argmax(1)))


def test_few_classes_have_no_top_5_and_nothing_seen_is_nan():
    metric = Classification(classes=("a", "b")).metric()
    assert math.isnan(metric.compute()["top-1"])
    metric.update(Label(torch.tensor([0.4, 0.6])), Label(torch.tensor([0.0, 1.0])))
    assert metric.compute() == {"top-1": 100.0}
    assert math.isnan(MeanAveragePrecision().compute()["mAP"])


def test_mean_average_precision_as_scikit_learn_has_it_with_ties():
    scores = (torch.rand(150, 7) * 20).round() / 20
    truth = (torch.rand(150, 7) > 0.7).float()
    truth[:, 3] = 0  # a class that no image shows is left out
    metric = Classification(classes=NAMES, multi_label=True).metric()
    for s, t in zip(scores, truth, strict=True):
        metric.update(Label(s), Label(t))
    shown = [k for k in range(7) if k != 3]
    expected = np.mean([average_precision_score(truth[:, k].numpy(), scores[:, k].numpy()) for k in shown])
    assert metric.compute()["mAP"] == pytest.approx(100 * expected)


@pytest.mark.parametrize("shape", [(40, 50, 3), (128, 160, 3), (300, 128, 3)])
def test_a_drawing_has_the_size_of_the_image_and_leaves_it_alone(shape):
    image = np.full(shape, 120, np.uint8)
    drawn = Classification(classes=NAMES).draw(image, Label(torch.rand(7).softmax(0)))
    assert drawn.shape == shape
    assert drawn.dtype == np.uint8
    assert (image == 120).all()
