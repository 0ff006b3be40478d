"""Every kind of target through random views, against slow per-pixel references in exact fractions."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
import torch

from tutelage.data.geometry import (
    PADDING,
    View,
    letterbox,
    move_image,
    move_target,
    place,
    reduction,
    resample,
)
from tutelage.data.source import BadImage
from tutelage.types import Boxes, Field, Label, Mask, Vectors


def random_view(rng, most=60):
    """Any view: enlarging or shrinking, each axis on its own, cut or padded, mirrored or not."""
    while True:
        h, w, inner_h, inner_w = rng.integers(1, most, 4).tolist()
        size = tuple(rng.integers(1, most, 2).tolist())
        step = reduction(h, w, inner_h, inner_w)
        settings = {}
        for full, window, cut, pad in ((h, size[0], "top", "pad_top"), (w, size[1], "left", "pad_left")):
            if rng.random() < 0.5:
                settings[cut] = int(rng.integers(0, full)) // step * step
            else:
                settings[pad] = int(rng.integers(0, window))
        try:
            return View(h, w, inner_h, inner_w, size, flip=bool(rng.random() < 0.5), **settings)
        except AssertionError:  # a window that shows nothing
            continue


def source_pixel(view, y, x):
    """The pixel of the full image under the centre of output pixel (y, x), or None where nothing is shown."""
    if view.flip:
        x = view.size[1] - 1 - x
    scale_y, scale_x = Fraction(view.inner_height, view.height), Fraction(view.inner_width, view.width)
    place_y = (y - view.pad_top + Fraction(1, 2)) / scale_y + view.top
    place_x = (x - view.pad_left + Fraction(1, 2)) / scale_x + view.left
    inside_y = y >= view.pad_top and place_y + Fraction(1, 2) / scale_y <= view.height
    inside_x = x >= view.pad_left and place_x + Fraction(1, 2) / scale_x <= view.width
    return (floor(place_y), floor(place_x)) if inside_y and inside_x else None


def slow_nearest(view, plane, fill):
    out = np.full((*plane.shape[:-2], *view.size), fill, plane.dtype)
    for y in range(view.size[0]):
        for x in range(view.size[1]):
            here = source_pixel(view, y, x)
            if here is not None:
                out[..., y, x] = plane[..., here[0], here[1]]
    return out


def test_pixel_labels_follow_their_pixels():
    rng = np.random.default_rng(1)
    for _ in range(60):
        view = random_view(rng, most=30)
        shape = (view.height, view.width)
        ids = rng.integers(0, 255, shape, dtype=np.uint8)
        confidence = rng.integers(0, 255, shape, dtype=np.uint8)
        valid = rng.random(shape) < rng.choice([0.7, 1.1])
        depth = rng.random(shape, dtype=np.float32) * valid
        normals = rng.random((3, *shape), dtype=np.float32) * valid

        mask = move_target(Mask(torch.from_numpy(ids), torch.from_numpy(confidence)), view)
        assert np.array_equal(mask.ids, slow_nearest(view, ids, 255))
        assert np.array_equal(mask.confidence, slow_nearest(view, confidence, 0))
        assert move_target(Mask(torch.from_numpy(ids)), view).confidence is None

        field = move_target(Field(torch.from_numpy(depth), torch.from_numpy(valid)), view)
        assert np.array_equal(field.values, slow_nearest(view, depth, 0))
        assert np.array_equal(field.valid, slow_nearest(view, valid, False))
        assert field.valid.dtype == torch.bool

        vectors = move_target(Vectors(torch.from_numpy(normals), torch.from_numpy(valid)), view)
        turned = normals * np.array([-1 if view.flip else 1, 1, 1], np.float32)[:, None, None]
        assert np.array_equal(vectors.values, slow_nearest(view, turned, 0))
        assert np.array_equal(vectors.valid, slow_nearest(view, valid, False))


def test_labels_are_not_changed_in_place():
    normals = torch.ones(3, 4, 4)
    move_target(Vectors(normals, torch.ones(4, 4, dtype=torch.bool)), View(4, 4, 4, 4, (4, 4), flip=True))
    assert (normals == 1).all()


def slow_weights(full, scale, start, count):
    """Rows of a triangle filter in float64, as wide as an output pixel or at least an input pixel. [count, full]"""
    reach, rows = max(1.0, 1 / scale), np.zeros((count, full))
    for u in range(count):
        centre = start + (u + 0.5) / scale
        for j in range(start, full):
            rows[u, j] = max(0.0, 1 - abs(j + 0.5 - centre) / reach)
    return rows / rows.sum(1, keepdims=True)


@pytest.mark.parametrize("reduced", [False, True])
def test_images_are_sampled_at_exact_places(reduced):
    rng, seen = np.random.default_rng(2), set()
    for _ in range(150):
        view = random_view(rng)
        divisor = view.reduction if reduced else 1
        seen.add(divisor)
        shape = (ceil(view.height / divisor), ceil(view.width / divisor))
        pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        (rows, columns), (scale_y, scale_x) = view.shown, view.scale
        down = slow_weights(shape[0], scale_y * divisor, view.top // divisor, rows)
        across = slow_weights(shape[1], scale_x * divisor, view.left // divisor, columns)
        expected = np.einsum("uh,hwc,vw->cuv", down, pixels, across)
        assert np.abs(resample(pixels, view).numpy() - expected).max() <= 1.01
    assert not reduced or seen >= {1, 2, 4}


def test_a_mirrored_padded_image_lies_where_its_labels_lie():
    rng = np.random.default_rng(3)
    for _ in range(60):
        view = random_view(rng, most=30)
        pixels = rng.integers(0, 256, (view.height, view.width, 3), dtype=np.uint8)
        out = move_image(pixels, view)
        assert out.shape == (3, *view.size)
        assert out.is_contiguous()
        labelled = move_target(Mask(torch.zeros(view.height, view.width, dtype=torch.uint8)), view).ids == 0
        shown = resample(pixels, view)
        assert torch.equal(out[:, labelled], (shown.flip(-1) if view.flip else shown).reshape(3, -1))
        assert (out[:, ~labelled] == torch.tensor(PADDING)[:, None]).all()


def slow_boxes(view, boxes, ignore, min_visible):
    """Row number and moved box of each that stays."""
    scale_y, scale_x = view.inner_height / view.height, view.inner_width / view.width
    lit = [(y, x) for y in range(view.size[0]) for x in range(view.size[1]) if source_pixel(view, y, x)]
    low_y, low_x, high_y, high_x = lit[0][0], lit[0][1], lit[-1][0] + 1, lit[-1][1] + 1
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        left = (x1 - view.left) * scale_x + view.pad_left
        right = (x2 - view.left) * scale_x + view.pad_left
        top, bottom = ((y - view.top) * scale_y + view.pad_top for y in (y1, y2))
        if view.flip:
            left, right = view.size[1] - right, view.size[1] - left
        cut = [max(left, low_x), max(top, low_y), min(right, high_x), min(bottom, high_y)]
        wide, high = cut[2] - cut[0], cut[3] - cut[1]
        if wide < 0.1 or high < 0.1:
            continue
        if ignore[number] or wide * high >= min_visible * (right - left) * (bottom - top):
            yield number, cut


def test_boxes_against_a_plain_loop():
    rng, kept = np.random.default_rng(4), 0
    for _ in range(200):
        view = random_view(rng, most=30)
        corners = rng.random((6, 2, 2)) * (view.width, view.height)
        boxes = np.concatenate([corners.min(1), corners.max(1)], 1).astype(np.float32)
        ignore = rng.random(6) < 0.3
        target = Boxes.make(boxes, range(6), scores=np.linspace(0.5, 1, 6), ignore=ignore)
        moved = move_target(target, view, 0.3)
        expected = list(slow_boxes(view, boxes.tolist(), ignore, 0.3))
        assert moved.classes.tolist() == [number for number, _ in expected]
        assert torch.equal(moved.scores, target.scores[moved.classes])
        assert torch.equal(moved.ignore, target.ignore[moved.classes])
        if expected:
            assert np.allclose(moved.boxes, [box for _, box in expected], atol=1e-3)
            kept += len(expected)
    assert kept > 100


def test_a_box_frames_the_same_pixels_before_and_after():
    rng = np.random.default_rng(5)
    for _ in range(100):
        view = random_view(rng)
        x1, y1 = int(rng.integers(0, view.width)), int(rng.integers(0, view.height))
        x2, y2 = int(rng.integers(x1, view.width)) + 1, int(rng.integers(y1, view.height)) + 1
        ids = torch.zeros(view.height, view.width, dtype=torch.uint8)
        ids[y1:y2, x1:x2] = 1
        painted = move_target(Mask(ids), view).ids == 1
        moved = move_target(Boxes.make([[x1, y1, x2, y2]], [0]), view)
        centres_y, centres_x = torch.arange(view.size[0]) + 0.5, torch.arange(view.size[1]) + 0.5
        for left, top, right, bottom in moved.boxes.tolist():
            inside_y = (centres_y > top + 1e-4) & (centres_y < bottom - 1e-4)
            inside_x = (centres_x > left + 1e-4) & (centres_x < right - 1e-4)
            assert painted[inside_y][:, inside_x].all()
            around_y = (centres_y > top - 1e-4) & (centres_y < bottom + 1e-4)
            around_x = (centres_x > left - 1e-4) & (centres_x < right + 1e-4)
            assert painted.sum() == painted[around_y][:, around_x].sum()
        if not len(moved):
            assert not painted.any()


def test_no_boxes_stay_labelled_and_classes_stay_as_they_are():
    view = View(10, 10, 20, 20, (8, 8), top=2, flip=True)
    none = Boxes.make([], [])
    assert len(move_target(none, view)) == 0
    label = Label(torch.tensor([0.2, 0.8]))
    assert move_target(label, view) is label


def test_ignored_boxes_stay_but_not_outside_the_window():
    view = View(10, 10, 10, 10, (5, 5), top=5, left=5)
    target = Boxes.make([[0, 0, 6, 6], [0, 0, 6, 6], [0, 0, 4, 4]], [0, 1, 2], ignore=[False, True, True])
    assert move_target(target, view, 0.5).classes.tolist() == [1]
    assert move_target(target, view, 0.5).boxes.tolist() == [[0, 0, 1, 1]]


def test_letterbox():
    image = np.full((30, 60, 3), 7, np.uint8)
    square, frame = letterbox(image, 16)
    assert frame == (30, 60, 8, 16)
    assert square.shape == (3, 16, 16)
    assert (square[:, :8] == 7).all()
    assert (square[:, 8:] == torch.tensor(PADDING)[:, None, None]).all()
    same = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(letterbox(same, 16)[0].permute(1, 2, 0), same)
    assert letterbox(np.zeros((1, 1, 3), np.uint8), 4)[1] == (1, 1, 4, 4)
    assert letterbox(np.zeros((2, 500, 3), np.uint8), 4)[1] == (2, 500, 1, 4)


def test_a_read_only_image_is_taken_without_a_warning_and_left_alone():
    image = np.arange(75, dtype=np.uint8).reshape(5, 5, 3)
    image.flags.writeable = False
    for view in (View.resize(5, 5, 5, 5), View.resize(5, 5, 9, 3)):
        assert torch.equal(move_image(image, view), move_image(image.copy(), view))


def test_an_image_of_another_size_than_its_header_says_is_refused():
    view = View(100, 80, 50, 40, (50, 40))
    assert move_image(np.zeros((50, 40, 3), np.uint8), view).shape == (3, 50, 40)
    with pytest.raises(BadImage, match="81 x 100 pixels were decoded, the header says 80 x 100"):
        move_image(np.zeros((100, 81, 3), np.uint8), view)
    with pytest.raises(BadImage):  # smaller than shown
        move_image(np.zeros((25, 20, 3), np.uint8), view)


def test_place_is_separable_from_resample():
    view = View(4, 4, 4, 4, (6, 6), pad_top=1, pad_left=2, flip=True)
    shown = torch.arange(48, dtype=torch.uint8).reshape(3, 4, 4)
    assert torch.equal(place(shown, view)[:, 1:5, 0:4], shown.flip(-1))
