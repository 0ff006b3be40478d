"""Surface normals against plain loops."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tutelage.tasks.normals import AngularErrors, Normals
from tutelage.tasks.pixelwise import subsample
from tutelage.tasks.task import Features, Frame, Widths
from tutelage.types import Vectors


def _vectors(*shape: int, keep: float = 0.7) -> Vectors:
    """Random unit vectors; `shape` is [..., H, W]."""
    raw = F.normalize(torch.randn(*shape[:-2], 3, *shape[-2:]), dim=-3)
    valid = torch.rand(*shape) < keep
    return Vectors(raw * valid.unsqueeze(-3), valid)


@pytest.mark.parametrize("rows", [1, 3])
def test_the_loss_is_one_minus_cosine_over_valid_pixels(rows):
    task, targets = Normals(), _vectors(rows, 16, 16)
    output = torch.randn(rows, 3, 4, 4)
    loss = task.loss(output, targets)
    true, valid = subsample(targets.values), subsample(targets.valid)
    expected = 0.0
    for r, y, x in valid.nonzero().tolist():
        said = output[r, :, y, x].tolist()
        length = math.sqrt(sum(v * v for v in said))
        expected += 1 - sum(a * b for a, b in zip(said, true[r, :, y, x].tolist(), strict=True)) / length
    assert float(loss.sum) == pytest.approx(expected, abs=1e-4)
    assert float(loss.count) == int(valid.sum()) == float(task.count(targets))


def test_gradients_are_finite_at_length_zero_under_autocast_and_without_valid_pixels():
    task = Normals()
    still = torch.zeros(2, 3, 4, 4, requires_grad=True)
    task.loss(still, _vectors(2, 16, 16)).sum.backward()
    assert still.grad.isfinite().all()
    assert float(still.grad.abs().sum()) > 0
    head = task.head(Widths(4, 8))
    with torch.autocast("cpu", torch.bfloat16):
        output = head(Features(None, None, torch.randn(2, 8, 4, 4), (16, 16)), None)
        loss = task.loss(output, _vectors(2, 16, 16, keep=0.0))
    assert (float(loss.sum.detach()), float(loss.count), loss.sum.dtype) == (0, 0, torch.float32)
    loss.sum.backward()
    assert all(float(w.grad.abs().sum()) == 0 for w in head.parameters())


def test_predictions_are_unit_vectors_of_the_originals_size():
    frames = [Frame(40, 20, 16, 8), Frame(5, 9, 9, 16), Frame(1, 1, 16, 16)]
    output = torch.randn(3, 3, 4, 4, requires_grad=True)
    for frame, said in zip(frames, Normals().decode(output, frames, (16, 16)), strict=True):
        assert said.values.shape == (3, frame.height, frame.width)
        assert not said.values.requires_grad
        assert said.valid.all()
        assert torch.allclose(said.values.norm(dim=0), torch.ones(frame.height, frame.width), atol=1e-5)
    [nothing] = Normals().decode(torch.zeros(1, 3, 4, 4), frames[:1], (16, 16))
    assert not nothing.valid.any()
    assert float(nothing.values.abs().sum()) == 0


def test_angles_are_pooled_over_the_set():
    metric, angles = Normals().metric(), []
    for shape in ((9, 7), (30, 20), (1, 1)):
        truth = _vectors(*shape)
        said = Vectors(
            F.normalize(truth.values + 0.3 * torch.randn(3, *shape), dim=0), torch.ones(shape, dtype=torch.bool)
        )
        metric.update(said, truth)
        for y, x in truth.valid.nonzero().tolist():
            cosine = sum(
                a * b for a, b in zip(said.values[:, y, x].tolist(), truth.values[:, y, x].tolist(), strict=True)
            )
            angles.append(math.degrees(math.acos(min(1.0, max(-1.0, cosine)))))
    figures = metric.compute()
    for limit in (11.25, 22.5, 30):
        assert figures[f"< {limit:g} deg"] == pytest.approx(100 * np.mean(np.array(angles) < limit))
    assert figures["mean deg"] == pytest.approx(np.mean(angles), abs=1e-3)
    assert figures["median deg"] == pytest.approx(sorted(angles)[(len(angles) + 1) // 2 - 1], abs=0.011)
    assert metric.name in figures
    assert metric.higher_is_better
    assert metric.lower_is_better < set(figures)


def test_perfect_opposite_missing_and_nothing():
    truth = _vectors(6, 6, keep=1.0)
    metric = AngularErrors()
    assert all(math.isnan(v) for v in metric.compute().values())
    metric.update(truth, truth)
    assert metric.compute()["< 11.25 deg"] == 100
    assert metric.compute()["mean deg"] < 0.01
    opposite = AngularErrors()
    opposite.update(Vectors(-truth.values, truth.valid), truth)
    opposite.update(Vectors(truth.values, ~truth.valid), truth)
    assert opposite.compute()["mean deg"] == pytest.approx(180)
    assert opposite.compute()["median deg"] == pytest.approx(180, abs=0.01)


def test_a_drawing_shows_what_faces_the_camera_in_light_blue():
    values = torch.zeros(3, 64, 64)
    values[2, :32] = -1  # faces the camera
    values[1, 32:] = -1  # faces up
    valid = torch.ones(64, 64, dtype=torch.bool)
    valid[:, 60:] = False
    drawn = Normals().draw(np.zeros((64, 64, 3), np.uint8), Vectors(values, valid))
    assert drawn[5, 5].tolist() == [128, 128, 255]
    assert drawn[50, 5].tolist() == [128, 255, 128]
    assert (drawn[:, 60:, 0] == drawn[:, 60:, 2]).all()
