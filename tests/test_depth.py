"""Depth: both losses and all figures against plain loops."""

import math

import numpy as np
import pytest
import torch

from tutelage.errors import UserError
from tutelage.tasks.depth import Depth, DepthErrors, affine_invariant_loss
from tutelage.tasks.pixelwise import subsample
from tutelage.tasks.task import Features, Frame, Widths
from tutelage.teachers.teacher import check_task
from tutelage.types import Field, stack


def _field(*shape: int, keep: float = 0.7) -> Field:
    valid = torch.rand(*shape) < keep
    return Field((torch.rand(*shape) * 9 + 0.5) * valid, valid)


@pytest.mark.parametrize("rows", [1, 3])
def test_the_metric_loss_is_the_difference_of_logarithms(rows):
    task, targets, output = Depth(), _field(rows, 16, 16), torch.randn(rows, 1, 4, 4)
    loss = task.loss(output, targets)
    true, valid = subsample(targets.values), subsample(targets.valid)
    expected = sum(
        abs(float(output[r, 0, y, x]) - math.log(float(true[r, y, x]))) for r, y, x in valid.nonzero().tolist()
    )
    assert float(loss.sum) == pytest.approx(expected, rel=1e-5)
    assert float(loss.count) == int(valid.sum()) == float(task.count(targets))


def _slow_affine_invariant(said: np.ndarray, true: np.ndarray, valid: np.ndarray) -> float:
    """One image, pixel by pixel, from the paper's formulas."""
    count = int(valid.sum())

    def align(values):
        inside = sorted(values[valid].tolist())
        middle = inside[(len(inside) - 1) // 2]
        spread = sum(abs(v - middle) for v in inside) / len(inside)
        return (values - middle) / spread

    residual = align(said) - align(true)
    ordered = sorted(abs(residual[valid]).tolist())
    total = sum(ordered[: math.ceil(0.8 * count)]) / (2 * count)
    for scale in range(4):
        step = 2**scale
        part, inside, gradient = residual[::step, ::step], valid[::step, ::step], 0.0
        for y in range(part.shape[0]):
            for x in range(part.shape[1]):
                if y + 1 < part.shape[0] and inside[y, x] and inside[y + 1, x]:
                    gradient += abs(part[y + 1, x] - part[y, x])
                if x + 1 < part.shape[1] and inside[y, x] and inside[y, x + 1]:
                    gradient += abs(part[y, x + 1] - part[y, x])
        total += 0.5 * gradient / max(1, int(inside.sum()))
    return total


def test_the_relative_loss_is_midas():
    said, true = torch.randn(4, 11, 13), torch.rand(4, 11, 13)
    valid = torch.rand(4, 11, 13) < 0.7
    valid[2] = False
    loss = affine_invariant_loss(said, true, valid)
    for r in (0, 1, 3):
        expected = _slow_affine_invariant(said[r].double().numpy(), true[r].double().numpy(), valid[r].numpy())
        assert float(loss[r]) == pytest.approx(expected, rel=1e-4)
    assert float(loss[2]) == 0
    assert torch.allclose(affine_invariant_loss(3 * said + 5, 0.1 * true - 1, valid), loss, rtol=1e-3)
    assert float(affine_invariant_loss(2 * true + 1, true, valid).max()) < 1e-4


@pytest.mark.parametrize("mode", ["metric", "relative"])
def test_gradients_are_finite_whatever_is_valid(mode):
    task = Depth(mode=mode)
    head = task.head(Widths(4, 8))
    targets = stack([_field(32, 32, keep=k) for k in (1.0, 0.0, 0.0)])
    targets.valid[1, 2, 2], targets.values[1, 2, 2] = True, 2.0  # a single pixel
    features = Features(None, None, torch.randn(3, 8, 8, 8), (32, 32))
    with torch.autocast("cpu", torch.bfloat16):
        output = head(features, None)
        loss = task.loss(output, targets)
    assert output.dtype == loss.sum.dtype == loss.count.dtype == torch.float32
    assert float(loss.count) == (65 if mode == "metric" else 2)
    loss.sum.backward()
    assert all(w.grad.isfinite().all() for w in head.parameters())
    head.zero_grad()
    flat = torch.full((3, 1, 8, 8), 0.3, requires_grad=True)  # no spread to divide by
    task.loss(flat, targets).sum.backward()
    assert flat.grad.isfinite().all()
    empty = task.loss(head(features, None), _field(3, 32, 32, keep=0.0))
    assert (float(empty.sum.detach()), float(empty.count)) == (0, 0)
    empty.sum.backward()
    assert all(float(w.grad.abs().sum()) == 0 for w in head.parameters())


def test_metric_predictions_are_metres_of_the_originals_size():
    frames = [Frame(40, 20, 16, 8), Frame(5, 9, 9, 16), Frame(1, 1, 16, 16)]
    said = Depth().decode(torch.full((3, 1, 4, 4), math.log(2.5)), frames, (16, 16))
    for frame, field in zip(frames, said, strict=True):
        assert field.values.shape == field.valid.shape == (frame.height, frame.width)
        assert torch.allclose(field.values, torch.tensor(2.5))
        assert field.valid.all()
    wild = Depth().decode(torch.full((1, 1, 4, 4), 1e6), frames[:1], (16, 16))
    assert float(wild[0].values.max()) <= 10001


@pytest.mark.parametrize("target", ["depth", "inverse"])
def test_a_relative_prediction_is_a_label_that_says_the_same(target):
    task = Depth(mode="relative", target=target)
    output = torch.randn(1, 1, 8, 8)
    [said] = task.decode(output, [Frame(32, 32, 32, 32)], (32, 32))
    if target == "depth":
        assert 1 <= float(said.values.min()) <= float(said.values.max()) <= 10.001
    again = -3 + 2 * (1 / said.values if target == "depth" else said.values)
    loss = task.loss(subsample(again)[None, None], stack([said]))
    assert float(loss.sum) < 1e-4
    metric = task.metric()
    metric.update(said, said)
    assert metric.compute()["< 1.25"] == 100


def test_figures_are_pooled_over_the_pixels_of_the_set():
    metric = Depth().metric()
    pairs = []
    for shape in ((9, 7), (20, 30), (1, 1)):
        truth = _field(*shape)
        said = Field(torch.rand(shape) * 9 + 0.5, torch.ones(shape, dtype=torch.bool))
        metric.update(said, truth)
        pairs += [(float(said.values[y, x]), float(truth.values[y, x])) for y, x in truth.valid.nonzero().tolist()]
    n, figures = len(pairs), metric.compute()
    for power, name in ((1, "< 1.25"), (2, "< 1.25^2"), (3, "< 1.25^3")):
        assert figures[name] == pytest.approx(100 * sum(max(p / t, t / p) < 1.25**power for p, t in pairs) / n)
    assert figures["AbsRel"] == pytest.approx(sum(abs(p - t) / t for p, t in pairs) / n)
    assert figures["RMSE"] == pytest.approx(math.sqrt(sum((p - t) ** 2 for p, t in pairs) / n))
    assert figures["log10"] == pytest.approx(sum(abs(math.log10(p / t)) for p, t in pairs) / n)
    assert metric.higher_is_better
    assert figures["SqRel"] == pytest.approx(sum((p - t) ** 2 / t for p, t in pairs) / n)
    assert figures["RMSE log"] == pytest.approx(math.sqrt(sum(math.log(p / t) ** 2 for p, t in pairs) / n))
    assert metric.lower_is_better == {"AbsRel", "SqRel", "RMSE", "RMSE log", "log10"} < set(figures)


def test_relative_figures_are_those_after_the_best_scale_and_shift():
    truth, noise = _field(20, 20, keep=1.0), 0.05 * torch.randn(20, 20)
    near = 1 / truth.values + noise
    whole = torch.ones(20, 20, dtype=torch.bool)
    metric = DepthErrors(align=True)
    metric.update(Field(1 / (7 * near.clamp_min(0.01) + 3), whole), truth)
    x = (7 * near.clamp_min(0.01) + 3).double().flatten().numpy()
    y = 1 / truth.values.double().flatten().numpy()
    scale, shift = np.polyfit(x, y, 1)
    depth = 1 / np.maximum(scale * x + shift, y.min())
    ratio = np.maximum(depth * y, 1 / (depth * y))
    assert metric.compute()["< 1.25"] == pytest.approx(100 * np.mean(ratio < 1.25))
    assert metric.compute()["AbsRel"] == pytest.approx(np.mean(abs(depth * y - 1)), rel=1e-4)
    inverse = DepthErrors(align=True, inverse=True)
    inverse.update(Field(7 * near.clamp_min(0.01) + 3, whole), Field(1 / truth.values, whole))
    assert inverse.compute()["AbsRel"] == pytest.approx(metric.compute()["AbsRel"], rel=1e-3)


def test_missing_predictions_are_wrong_and_nothing_is_nan():
    truth = _field(8, 8, keep=1.0)
    metric = DepthErrors()
    assert all(math.isnan(v) for v in metric.compute().values())
    metric.update(Field(truth.values, torch.zeros(8, 8, dtype=torch.bool)), truth)
    assert metric.compute()["< 1.25^3"] == 0
    constant = DepthErrors(align=True)
    constant.update(Field(torch.ones(8, 8), truth.valid), truth)  # no spread: the fit is the mean
    assert math.isfinite(constant.compute()["AbsRel"])


@pytest.mark.parametrize("shape", [(40, 50), (128, 160)])
def test_a_drawing_is_brighter_where_it_is_near(shape):
    image = np.full((*shape, 3), 120, np.uint8)
    depth = torch.linspace(1, 5, shape[1]).expand(shape).contiguous()
    valid = torch.ones(shape, dtype=torch.bool)
    for task, values in ((Depth(), depth), (Depth(mode="relative", target="inverse"), 1 / depth)):
        drawn = task.draw(image, Field(values, valid))
        assert drawn.shape == image.shape
        assert int(drawn[3, 2].sum()) > int(drawn[3, -3].sum())
    assert Depth().draw(image, Field(depth * 0, ~valid)).shape == image.shape


METRES, DEPTH, INVERSE = Depth(), Depth(mode="relative"), Depth(mode="relative", target="inverse")


@pytest.mark.parametrize("head", [METRES, DEPTH, INVERSE])
@pytest.mark.parametrize("said", [METRES, DEPTH, INVERSE, Depth(target="inverse", channels=3)])
def test_a_teacher_of_another_measure_is_refused(head, said):
    """Metres serve wherever labels hold depth; `target` says nothing of a metric head, `channels` nothing of labels."""
    metres = said.mode == "metric"
    if head.holds == said.holds or (head is DEPTH and metres):
        check_task("far", head, said)
        return
    with pytest.raises(UserError, match="labels of head 'far' mean something else") as raised:
        check_task("far", head, said)
    error = raised.value
    assert error.field == ("mode" if metres or head is METRES else "target")
    assert error.value == f"{said.holds}, not {head.holds}"
    wanted = "mode: metric" if metres else f"mode: relative, target: {said.target}"
    assert error.fix == f"heads.far: {wanted}; or give a teacher that says {head.holds}"
