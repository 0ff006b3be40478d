"""What policies do to images and labels: every label lands where its pixel lands."""

from __future__ import annotations

import math
from collections import Counter
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from tutelage.data.augment import Augment, augment_s2, augment_s3, augment_s4
from tutelage.data.geometry import PADDING, View, move_target, resample
from tutelage.data.operations import MOVES, Step, move_of
from tutelage.data.policies import AutoAugment, Policy, RandAugment
from tutelage.data.source import Picture
from tutelage.data.warp import Warp
from tutelage.types import Boxes, Field, Label, Mask, Vectors


class Fixed(Policy):
    """Always the same steps."""

    kind: Literal["fixed"] = "fixed"
    steps: tuple[Step, ...]

    def draw(self, rng):
        return list(self.steps)


class Ramp(Picture):
    """Red tells the column, green the row: a straight line, which neither bilinear sampling nor averaging bends."""

    def __init__(self, height, width):
        self.height, self.width = height, width
        self.gain = 255 / max(height, width)

    def read(self, scale=1.0):
        divisor = next(d for d in (8, 4, 2, 1) if scale * d <= 1 or d == 1)
        y, x = ((np.arange(-(-side // divisor)) + 0.5) * divisor * self.gain for side in (self.height, self.width))
        y, x = np.broadcast_arrays(y[:, None], x[None])
        return np.stack([x, y, np.full_like(x, 9)], -1).round().astype(np.uint8)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=0)


def all_kinds(height, width, rng):
    """Labels of all kinds that tell which pixel they belong to; 10% of the depths are not valid."""
    y, x = np.mgrid[:height, :width]
    number = torch.from_numpy((y * width + x).astype(np.float32))
    corners = rng.random((4, 2, 2)) * (width, height)
    boxes = np.concatenate([corners.min(1), corners.max(1) + 1], 1).clip(0, (width, height) * 2)
    normals = unit(np.stack([np.cos(x), np.sin(y), -1.0 - (x + y) % 2])).astype(np.float32)
    valid = torch.from_numpy(rng.random((height, width)) < 0.9)
    ids = torch.from_numpy((number.numpy() % 251).astype(np.uint8))
    return {
        "boxes": Boxes.make(boxes, range(4), scores=[1, 0.9, 0.8, 0.7], ignore=[False, False, False, True]),
        "mask": Mask(ids, 255 - ids),
        "number": Field(number + 1, torch.ones(height, width, dtype=torch.bool)),
        "depth": Field(number * valid, valid),
        "normals": Vectors(torch.from_numpy(normals) * valid, valid),
        "class": Label(torch.tensor([0.0, 1.0])),
    }


def undo(step, x, y, height, width):
    """Where a point came from, step by step and in plain numbers."""
    a = step.amount
    side = max(height, width)
    match step.operation:
        case "translate-x":
            return x - a * side, y
        case "translate-y":
            return x, y - a * side
        case "shear-x":
            return x - a * y, y
        case "shear-y":
            return x, y - a * x
        case "flip":
            return width - x, y
        case "rotate":
            angle, x, y = math.radians(-a), x - width / 2, y - height / 2
            turned = math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y
            return turned[0] + width / 2, turned[1] + height / 2
    raise AssertionError(step)


def origins(view, steps):
    """x and y of the full-size image under the centre of each output pixel, NaN outside, [2,H,W]."""
    out = np.full((2, *view.size), np.nan)
    for row in range(view.size[0]):
        for column in range(view.size[1]):
            across = view.size[1] - 1 - column if view.flip else column
            y = (row + 0.5 - view.pad_top) * view.height / view.inner_height + view.top
            x = (across + 0.5 - view.pad_left) * view.width / view.inner_width + view.left
            rows, columns = view.shown
            if not (0 <= row - view.pad_top < rows and 0 <= across - view.pad_left < columns):
                continue
            for step in reversed(steps):
                x, y = undo(step, x, y, view.height, view.width)
            if 0 <= x < view.width and 0 <= y < view.height:
                out[:, row, column] = x, y
    return out


def random_moves(rng, operations=None):
    chosen = operations or rng.choice(sorted(MOVES), rng.integers(1, 4)).tolist()
    most = {"rotate": 90, "flip": 0, "shear-x": 0.9, "shear-y": 0.9, "translate-x": 0.5, "translate-y": 0.5}
    return tuple(Step(operation, float(rng.uniform(-1, 1)) * most[operation]) for operation in chosen)


def labels_of(moved, width):
    """From the labels of a window the pixel that each place shows: x, y, and which places show one."""
    number, here = moved["number"].values.numpy().astype(int) - 1, moved["number"].valid.numpy()
    return number % width, number // width, here


@pytest.mark.parametrize("operation", [*sorted(MOVES), "several"])
def test_every_label_lands_where_its_pixel_lands(operation):
    """All moves, all sizes, cut and padded and mirrored: against the plain formulas, pixel for pixel."""
    rng, seen = np.random.default_rng(sum(map(ord, operation))), 0
    for _ in range(14):
        height, width, size = rng.integers(5, 70, 3).tolist()
        steps = random_moves(rng, None if operation == "several" else [operation])
        low = float(rng.choice([0.2, 0.7, 1.6]))
        augment = Augment(scale=(low, low * 1.4), policy=Fixed(steps=steps), min_visible=0.0)
        targets, seed = all_kinds(height, width, rng), int(rng.integers(2**31))
        view = augment.plan(height, width, size, np.random.default_rng(seed))
        picture = Ramp(height, width)
        image, moved = augment(picture, targets, size, np.random.default_rng(seed))

        expected = origins(view, steps)
        inside = ~np.isnan(expected[0])
        x, y, here = labels_of(moved, width)
        edge = (
            np.abs(expected - expected.round()).min(0) < 1e-9
        )  # a centre exactly between two pixels may go either way
        assert (here == inside)[~edge].all()
        sure = here & ~edge
        assert np.array_equal(x[sure], np.floor(expected[0][sure]))
        assert np.array_equal(y[sure], np.floor(expected[1][sure]))
        seen += int(sure.sum())

        # the other kinds show the same pixels
        assert (moved["mask"].ids.numpy()[here] == (y * width + x)[here] % 251).all()
        assert (moved["mask"].confidence.numpy()[here] == 255 - (y * width + x)[here] % 251).all()
        assert (moved["mask"].ids.numpy()[~here] == 255).all()
        depth, valid = moved["depth"].values.numpy(), moved["depth"].valid.numpy()
        source = targets["depth"].valid.numpy()
        assert np.array_equal(valid, here & source[y.clip(0), x.clip(0)])
        assert np.array_equal(depth, np.where(valid, y * width + x, 0))
        assert np.array_equal(moved["normals"].valid.numpy(), valid)
        assert np.allclose(np.linalg.norm(moved["normals"].values, axis=0), valid, atol=1e-5)
        assert moved["class"] is targets["class"]

        # and so does the image: its colours tell the place, to the rounding of a colour, but at the very edge
        planes = image.numpy().astype(float)
        assert (image[:, ~here] == torch.tensor(PADDING)[:, None]).all()
        margin = 0.5 * max(1, *(1 / s for s in view.scale)) + 1
        for axis, side in ((0, width), (1, height)):
            there = (
                expected[axis].clip(margin, side - margin) if side > 2 * margin else np.full(expected[0].shape, np.nan)
            )
            middle = here & (there == expected[axis])
            assert np.abs(planes[axis][middle] - expected[axis][middle] * picture.gain).max(initial=0) <= 1.51
    assert seen > 3000 or operation == "several"


def test_boxes_hold_what_they_held():
    """Pixels marked inside of a box are inside of the moved box, which is no larger than its turned corners need."""
    rng, kept = np.random.default_rng(5), 0
    for _ in range(150):
        height, width, size = rng.integers(8, 60, 3).tolist()
        steps = random_moves(rng)
        x1, y1 = int(rng.integers(0, width)), int(rng.integers(0, height))
        x2, y2 = int(rng.integers(x1, width)) + 1, int(rng.integers(y1, height)) + 1
        ids = torch.zeros(height, width, dtype=torch.uint8)
        ids[y1:y2, x1:x2] = 1
        targets = {"boxes": Boxes.make([[x1, y1, x2, y2]], [0]), "mask": Mask(ids)}
        augment = Augment(scale=(0.5, 2.0), policy=Fixed(steps=steps), min_visible=0.0)
        _, moved = augment(Ramp(height, width), targets, size, rng)
        rows, columns = np.nonzero(moved["mask"].ids.numpy() == 1)
        if not len(moved["boxes"]):
            assert len(rows) == 0 or min(np.ptp(rows), np.ptp(columns)) == 0
            continue
        left, top, right, bottom = moved["boxes"].boxes[0].tolist()
        assert 0 <= left < right <= size
        assert 0 <= top < bottom <= size
        if len(rows):
            kept += 1
            assert left - 1e-3 <= columns.min() + 0.5 <= columns.max() + 0.5 <= right + 1e-3
            assert top - 1e-3 <= rows.min() + 0.5 <= rows.max() + 0.5 <= bottom + 1e-3
    assert kept > 80


def test_moved_boxes_against_their_corners():
    rng = np.random.default_rng(6)
    for _ in range(60):
        steps = random_moves(rng)
        view = View(40, 50, 80, 100, (200, 200), pad_top=int(rng.integers(50)), flip=bool(rng.random() < 0.5))
        move = np.eye(3)
        for step in steps:
            move = move_of(step, 40, 50, 50) @ move
        x1, y1 = rng.random(2) * (25, 20)
        x2, y2 = rng.random(2) * (25, 20) + (25, 20)
        spots = np.array([[x1, x2, x1, x2], [y1, y1, y2, y2], [1, 1, 1, 1]])
        x, y, _ = move @ spots
        back = [undo_all(steps, px, py, 40, 50) for px, py in zip(x, y, strict=True)]
        assert np.allclose(back, spots[:2].T)
        x, y = x.clip(0, 50) * 2, y.clip(0, 40) * 2 + view.pad_top
        x = 200 - x if view.flip else x
        moved = Warp(view, move).move_target(Boxes.make([[x1, y1, x2, y2]], [3], scores=[0.5]))
        if min(np.ptp(x), np.ptp(y)) > 0.11:
            assert np.allclose(moved.boxes, [[x.min(), y.min(), x.max(), y.max()]], atol=1e-3)
            assert (moved.classes.tolist(), moved.scores.tolist()) == ([3], [0.5])


def undo_all(steps, x, y, height, width):
    for step in reversed(steps):
        x, y = undo(step, x, y, height, width)
    return x, y


def test_boxes_of_which_little_is_left_go_unless_ignored():
    boxes = Boxes.make([[0, 0, 10, 10], [0, 0, 10, 10], [30, 30, 40, 40]], [0, 1, 2], ignore=[False, True, False])
    steps = (Step("translate-x", -9.5 / 40),)
    _, moved = Augment(flip=False, scale=(1, 1), policy=Fixed(steps=steps))(
        Ramp(40, 40), {"boxes": boxes}, 40, np.random.default_rng(0)
    )
    assert moved["boxes"].classes.tolist() == [1, 2]
    assert np.allclose(moved["boxes"].boxes, [[0, 0, 0.5, 10], [20.5, 30, 30.5, 40]])
    none, steps = Boxes.make([], []), random_moves(np.random.default_rng(1))
    for policy in (Fixed(steps=steps), AutoAugment(name="v1"), RandAugment()):
        _, moved = Augment(policy=policy)(Ramp(20, 30), {"boxes": none}, 16, np.random.default_rng(0))
        assert len(moved["boxes"]) == 0


def test_normals_are_those_of_the_moved_surface():
    """A slanted plane, its depth given at every pixel: after any move the normals fit the depths that are there."""
    rng = np.random.default_rng(7)
    for _ in range(40):
        height, width = 40, 50
        slope_x, slope_y = rng.uniform(-1.5, 1.5, 2)
        y, x = np.mgrid[:height, :width]
        depth = torch.from_numpy((slope_x * x + slope_y * y + 500).astype(np.float32))
        normal = unit(np.array([slope_x, slope_y, -1.0]))
        everywhere = torch.ones(height, width, dtype=torch.bool)
        plane = torch.from_numpy(np.tile(normal[:, None, None], (1, height, width)).astype(np.float32))
        move = np.eye(3)
        for step in random_moves(rng, rng.choice(["rotate", "shear-x", "shear-y", "flip"], 2).tolist()):
            move = move_of(step, height, width, width) @ move
        warp = Warp(View(height, width, height, width, (height, width), flip=bool(rng.random() < 0.5)), move)
        field = warp.move_target(Field(depth, everywhere))
        rows, columns = np.nonzero(field.valid.numpy())
        if len(rows) < 200:
            continue
        design = np.stack([columns, rows, np.ones(len(rows))], 1)
        fit, *_ = np.linalg.lstsq(design, field.values.numpy()[rows, columns], rcond=None)
        expected = unit(np.array([fit[0], fit[1], -1.0]))
        vectors = warp.move_target(Vectors(plane, everywhere)).values.numpy()[:, rows, columns]
        assert np.abs(vectors - expected[:, None]).max() < 0.03  # depths of nearest pixels are off by half a pixel


def test_a_turn_turns_normals_and_a_zoom_does_not():
    plane = torch.from_numpy(np.tile(unit(np.array([0.6, 0.0, -0.8]))[:, None, None], (1, 20, 20)).astype(np.float32))
    normals = Vectors(plane, torch.ones(20, 20, dtype=torch.bool))
    turn = move_of(Step("rotate", 90.0), 20, 20, 20)
    moved = Warp(View(20, 20, 40, 40, (40, 40)), turn).move_target(normals)
    assert moved.valid.all()
    assert np.allclose(moved.values[:, 20, 20], [0, 0.6, -0.8], atol=1e-6)  # x turns to y, which points down
    mirrored = Warp(View(20, 20, 40, 40, (40, 40), flip=True), np.eye(3)).move_target(normals)
    assert np.allclose(mirrored.values[:, 20, 20], [-0.6, 0, -0.8], atol=1e-6)


def test_labels_are_not_changed_in_place():
    rng = np.random.default_rng(8)
    targets = all_kinds(20, 30, rng)
    kept = {name: target.map(torch.clone) for name, target in targets.items()}
    pixels = Ramp(20, 30).read()
    before = pixels.copy()

    class Own(Ramp):
        def read(self, scale=1.0):
            return pixels

    for number in range(40):
        augment = Augment(flip=False, scale=(1, 1), policy=AutoAugment(name="v1"))
        augment(Own(20, 30), targets, 30, np.random.default_rng(number))
    assert np.array_equal(pixels, before)
    for name, target in targets.items():
        for field in ("boxes", "ids", "confidence", "values", "valid", "probs"):
            if getattr(target, field, None) is not None:
                assert torch.equal(getattr(target, field), getattr(kept[name], field))
    one = np.full((1, 1, 3), 200, np.uint8)

    class Pixel(Ramp):
        def read(self, scale=1.0):
            return one

    image, _ = Augment(flip=False, policy=Fixed(steps=(Step("invert", 0.0),)))(Pixel(1, 1), {}, 1, rng)
    assert image.tolist() == [[[55]]] * 3
    assert (one == 200).all()


def test_moves_by_nothing_change_nothing():
    rng = np.random.default_rng(9)
    targets = all_kinds(31, 27, rng)
    still = tuple(Step(operation, 0.0) for operation in ("rotate", "shear-x", "shear-y", "translate-x", "translate-y"))
    inside = tuple(step._replace(where="boxes") for step in still)
    colours = (Step("solarize", 256.0), Step("solarize-add", 0.0), Step("posterize", 8.0), Step("brightness", 1.0))
    colours += (Step("colour", 1.0), Step("contrast", 1.0), Step("sharpness", 1.0), Step("cutout", 0.0))
    for steps in (still, inside, colours):
        plain, labels = Augment()(Ramp(31, 27), targets, 24, np.random.default_rng(1))
        image, moved = Augment(policy=Fixed(steps=steps))(Ramp(31, 27), targets, 24, np.random.default_rng(1))
        assert torch.equal(image, plain)
        for name in labels:
            same(moved[name], labels[name])


def same(a, b):
    for field in a.__dataclass_fields__:
        x, y = getattr(a, field), getattr(b, field)
        assert (x is None and y is None) or torch.equal(x, y)


def test_what_moves_inside_a_box_takes_its_pixel_labels_along_and_leaves_the_rest():
    rng, changed = np.random.default_rng(10), 0
    operations = sorted(MOVES)
    for number in range(48):
        height, width = rng.integers(30, 60, 2).tolist()
        size = max(height, width)
        targets = all_kinds(height, width, rng)
        x1, y1 = int(rng.integers(0, width - 12)), int(rng.integers(0, height - 12))
        x2, y2 = int(rng.integers(x1 + 10, width + 1)), int(rng.integers(y1 + 10, height + 1))
        targets["boxes"] = Boxes.make([[x1, y1, x2, y2], [0, 0, width, height]], [0, 1], ignore=[False, True])
        operation = operations[number % len(operations)]
        step = random_moves(rng, [operation])[0]._replace(where="boxes")
        augment = Augment(flip=False, scale=(1, 1), policy=Fixed(steps=(step,)))
        view = augment.plan(height, width, size, np.random.default_rng(3))
        top, left = view.corner
        image, moved = augment(Ramp(height, width), targets, size, np.random.default_rng(3))
        x, y, here = labels_of(moved, width)
        same(moved["boxes"], move_target(targets["boxes"], view))

        expected = np.full((2, size, size), np.nan)
        expected[:, top : top + height, left : left + width] = np.mgrid[:height, :width][::-1]
        inside = expected.copy()[:, top + y1 : top + y2, left + x1 : left + x2]
        for row in range(y2 - y1):
            for column in range(x2 - x1):
                wide, high = x2 - x1, y2 - y1
                spot = step._replace(amount=step.amount * size / max(wide, high)) if "trans" in operation else step
                px, py = undo(spot, column + 0.5, row + 0.5, high, wide)
                shown = 0 <= px < wide and 0 <= py < high
                inside[:, row, column] = (math.floor(px) + x1, math.floor(py) + y1) if shown else np.nan
        expected[:, top + y1 : top + y2, left + x1 : left + x2] = inside
        shown = ~np.isnan(expected[0])
        assert (here == shown).mean() > 0.999
        both = here & shown
        assert ((x == expected[0]) & (y == expected[1]))[both].mean() > 0.999
        assert np.array_equal(moved["mask"].ids.numpy()[here], ((y * width + x) % 251)[here])
        assert (moved["mask"].ids.numpy()[~here] == 255).all()
        assert (image[:, ~here] == torch.tensor(PADDING)[:, None]).all()
        gain = Ramp(height, width).gain
        assert np.abs(image[0].numpy()[here] - (x[here] + 0.5) * gain).max() <= gain + 1
        assert np.abs(image[1].numpy()[here] - (y[here] + 0.5) * gain).max() <= gain + 1
        outside = np.ones((size, size), bool)
        outside[top + y1 : top + y2, left + x1 : left + x2] = False
        plain, _ = augment.but(policy=None)(Ramp(height, width), {}, size, np.random.default_rng(3))
        assert torch.equal(image[:, outside], plain[:, outside])
        changed += not torch.equal(image, plain)
    assert changed > 40


def test_normals_turn_inside_a_box_too():
    plane = np.tile(unit(np.array([0.6, 0.0, -0.8]))[:, None, None], (1, 30, 30)).astype(np.float32)
    targets = {
        "normals": Vectors(torch.from_numpy(plane), torch.ones(30, 30, dtype=torch.bool)),
        "boxes": Boxes.make([[10, 10, 20, 20]], [0]),
    }
    steps = (Step("flip", 0.0, "boxes"),)
    _, moved = Augment(flip=False, scale=(1, 1), policy=Fixed(steps=steps))(
        Ramp(30, 30), targets, 30, np.random.default_rng(0)
    )
    x = moved["normals"].values[0].numpy()
    assert np.allclose(x[10:20, 10:20], -0.6)
    x[10:20, 10:20] = 0.6
    assert np.allclose(x, 0.6)


def test_boxes_of_all_heads_have_their_own_chance():
    step = Step("invert", 0.0, "boxes", 0.25)
    boxes = {
        f"head {left}": Boxes.make([[left, 0, left + 10, 10], [left, 20, left + 10, 30]], [0, 0]) for left in (0, 10)
    }
    augment, hits = Augment(flip=False, scale=(1, 1), policy=Fixed(steps=(step,))), Counter()
    plain, _ = augment.but(policy=None)(Ramp(30, 30), {}, 30, np.random.default_rng(0))
    for number in range(400):
        image, _ = augment(Ramp(30, 30), boxes, 30, np.random.default_rng(number))
        for y, x in ((5, 5), (25, 5), (5, 15), (25, 15)):
            hits[y, x] += bool((image[:, y, x] != plain[:, y, x]).any())
        assert torch.equal(image[:, :, 20:], plain[:, :, 20:])
    assert all(65 < count < 135 for count in hits.values())
    assert len(hits) == 4


@pytest.mark.parametrize(("scale", "flip"), [(1.0, False), (0.5, True), (1.7, True)])
def test_a_cutout_is_a_square_about_any_point_and_labels_stay(scale, flip):
    targets, areas = all_kinds(40, 60, np.random.default_rng(0)), []
    augment = Augment(flip=flip, scale=(scale, scale), policy=Fixed(steps=(Step("cutout", 0.1),)), min_visible=0)
    for number in range(60):
        image, moved = augment(Ramp(40, 60), targets, 60, np.random.default_rng(number))
        plain, labels = augment.but(policy=None)(Ramp(40, 60), targets, 60, np.random.default_rng(number))
        for name in labels:
            same(moved[name], labels[name])
        rows, columns = np.nonzero((image != plain).any(0).numpy())
        if len(rows):
            block = image[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert (block.permute(1, 2, 0) == torch.tensor(PADDING)).all()
            assert max(block.shape[1:]) <= round(12 * scale) + 1
            areas.append(block.shape[1] * block.shape[2])
    assert max(areas) >= round(12 * scale) ** 2 * 0.8
    assert len(areas) > 20


def test_cutouts_in_boxes():
    targets = {"boxes": Boxes.make([[10, 20, 30, 50], [40, 5, 44, 9]], [0, 0])}
    picture = Ramp(60, 60)
    plain = Augment(flip=False, scale=(1, 1))(picture, {}, 60, np.random.default_rng(0))[0]
    for step in (Step("cutout", 0.5, "one box"), Step("cutout", 0.05, "boxes", 1.0)):
        both = set()
        for number in range(60):
            image, _ = Augment(flip=False, scale=(1, 1), policy=Fixed(steps=(step,)))(
                picture, targets, 60, np.random.default_rng(number)
            )
            changed = (image != plain).any(0)
            big, small = changed[:, :37].nonzero(), changed[:, 37:].nonzero()
            both.add((len(big) > 0, len(small) > 0))
            if step.where == "one box" and len(big):
                assert (big.max(0).values - big.min(0).values + 1 <= torch.tensor([16, 11])).all()
            elif step.where == "boxes":
                assert not changed[:20].logical_and(torch.arange(60) < 37).any()
                assert len(big) <= 6 * 6 + 13
        assert both == ({(True, False), (False, True)} if step.where == "one box" else {(True, True)})
    nothing = Augment(flip=False, scale=(1, 1), policy=Fixed(steps=(Step("cutout", 0.5, "one box"),)))
    assert torch.equal(nothing(picture, {}, 60, np.random.default_rng(0))[0], plain)


def test_empty_places_keep_the_paddings_colour():
    steps = (Step("rotate", 30.0), Step("translate-y", 0.2), Step("invert", 0.0), Step("shear-x", 0.3, "boxes"))
    steps += (Step("equalize", 0.0), Step("brightness", 1.9))
    targets = all_kinds(40, 50, np.random.default_rng(0))
    for number in range(20):
        image, moved = Augment(policy=Fixed(steps=steps), colour=0.5)(
            Ramp(40, 50), targets, 48, np.random.default_rng(number)
        )
        empty = moved["mask"].ids == 255
        assert empty.any()
        assert (image[:, empty] == torch.tensor(PADDING)[:, None]).all()


@pytest.mark.parametrize("moves", [(Step("rotate", 30.0),), (Step("translate-y", 0.9), Step("translate-x", 0.9))])
def test_jitter_leaves_the_padding_of_moves_as_it_is(moves):
    targets = {"mask": Mask(torch.zeros(40, 50, dtype=torch.uint8))}
    for number in range(10):
        augment = Augment(scale=(1, 1), policy=Fixed(steps=moves), colour=1.0)
        image, moved = augment(Ramp(40, 50), targets, 48, np.random.default_rng(number))
        empty = moved["mask"].ids == 255
        assert empty.any()
        assert (image[:, empty] == torch.tensor(PADDING)[:, None]).all()


def test_contrast_is_about_the_mean_of_what_is_shown():
    """Of a grey picture contrast and saturation then change nothing: all of it becomes one multiple of the grey."""
    empty = np.eye(4, 6) > 0
    image = torch.full((3, 4, 6), 60, dtype=torch.uint8)
    image[:, empty] = torch.tensor(PADDING, dtype=torch.uint8)[:, None]
    for seed in range(10):
        seen = Augment(colour=1.0).recolour(image, np.random.default_rng(seed), empty)
        brightness = 0.2 + 1.6 * np.random.default_rng(seed).random()
        assert (seen[:, ~empty].int() - 60 * brightness).abs().max() <= 0.51
        assert torch.equal(seen[:, empty], image[:, empty])


def test_a_window_that_shows_nothing_of_the_image():
    steps = (Step("translate-x", 0.9), Step("translate-y", -0.9))
    targets = all_kinds(20, 20, np.random.default_rng(0))
    image, moved = Augment(scale=(4, 4), policy=Fixed(steps=(*steps, Step("equalize", 0.0))))(
        Ramp(20, 20), targets, 10, np.random.default_rng(2)
    )
    assert not moved["depth"].valid.any()
    assert (image.reshape(3, -1) == torch.tensor(PADDING)[:, None]).all()


def test_images_that_shrink_are_averaged_not_picked():
    """A fine chequer becomes grey; picking pixels would leave black and white."""
    y, x = np.mgrid[:96, :96]
    pixels = np.repeat((((y + x) % 2) * 255).astype(np.uint8)[..., None], 3, -1)
    warp = Warp(View(96, 96, 24, 24, (24, 24)), move_of(Step("rotate", 20.0), 96, 96, 96))
    shown = warp.show(pixels)[:, warp.found[1]]
    assert 126 <= shown.min() <= shown.max() <= 129
    half = np.zeros((48, 48, 3), np.uint8)
    half[:24] = 200
    small, large = warp.show(half), warp.show(half.repeat(2, 0).repeat(2, 1))  # decoded at 1/2, and in full
    assert (small.int() - large.int()).abs().max() <= 1


def test_unturned_images_are_sampled_as_a_view_does():
    """At whole scales the one map and the resampling of a `View` agree."""
    rng = np.random.default_rng(11)
    smooth = np.asarray(Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((32, 24)))
    for view in (View(24, 32, 24, 32, (24, 32)), View(24, 32, 48, 64, (48, 64)), View(24, 32, 36, 48, (20, 20), top=3)):
        first = int(view.top > 0)  # what is cut away above is not looked at by a view
        off = Warp(view, np.eye(3)).show(smooth).int() - resample(smooth, view).int()
        assert off[:, first:].abs().max() <= 1


@pytest.mark.parametrize("augment", [augment_s2(), augment_s3(), augment_s4(), Augment(policy=AutoAugment(name="v1"))])
def test_the_same_generator_gives_the_same_bits(augment):
    targets, different = all_kinds(37, 53, np.random.default_rng(0)), 0
    for number in range(12):
        pair = [augment(Ramp(37, 53), targets, 32, np.random.default_rng([number, 1])) for _ in range(2)]
        other, _ = augment(Ramp(37, 53), targets, 32, np.random.default_rng([number, 2]))
        assert torch.equal(pair[0][0], pair[1][0])
        for name in targets:
            same(pair[0][1][name], pair[1][1][name])
        different += not torch.equal(other, pair[0][0])
    assert different >= 11


@pytest.mark.parametrize("name", ["v1", "v2", "v3", "rand"])
def test_any_image_goes_through_any_policy(name):
    """One pixel, one row, far larger or smaller than the window; labels stay what their kinds promise."""
    rng = np.random.default_rng(13)
    policy = RandAugment(operations=3, magnitude=30) if name == "rand" else AutoAugment(name=name)
    for height, width, size in [(1, 1, 1), (1, 40, 9), (50, 1, 8), (90, 70, 7), (5, 6, 33), (17, 31, 16)] * 8:
        image, moved = Augment(scale=(0.5, 2.0), policy=policy, colour=0.2)(
            Ramp(height, width), all_kinds(height, width, rng), size, rng
        )
        assert (image.shape, image.dtype, image.is_contiguous()) == ((3, size, size), torch.uint8, True)
        boxes = moved["boxes"].boxes
        assert ((boxes >= 0) & (boxes <= size)).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (moved["mask"].ids.shape, moved["mask"].ids.dtype) == ((size, size), torch.uint8)
        x, y, here = labels_of(moved, width)
        assert np.array_equal(moved["mask"].ids.numpy(), np.where(here, (y * width + x) % 251, 255))
        assert moved["depth"].valid.dtype == torch.bool
        valid = moved["depth"].valid.numpy()
        assert np.array_equal(moved["depth"].values.numpy()[valid], (y * width + x)[valid])
        assert (moved["depth"].values[~moved["depth"].valid] == 0).all()
        lengths = moved["normals"].values.norm(dim=0)
        assert torch.allclose(lengths, moved["normals"].valid.float(), atol=1e-5)
        assert moved["normals"].values.dtype == torch.float32
