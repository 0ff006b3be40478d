"""The augmentation policy: what it plans, what it decodes, what it does to colours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tutelage.data.augment import Augment
from tutelage.data.source import Picture
from tutelage.errors import UserError
from tutelage.part import parse
from tutelage.types import Boxes, Label, Mask


class Array(Picture):
    """An image in memory that can be read at 1/2, 1/4 and 1/8, as a JPEG can."""

    def __init__(self, pixels):
        self.pixels, self.asked = pixels, []
        self.height, self.width = pixels.shape[:2]

    def read(self, scale=1.0):
        self.asked.append(scale)
        divisor = next(d for d in (8, 4, 2, 1) if scale * d <= 1 or d == 1)
        return self.pixels[::divisor, ::divisor].copy()


def test_scales_places_and_flips_are_drawn_evenly():
    rng, augment = np.random.default_rng(0), Augment()
    views = [augment.plan(48, 64, 32, rng) for _ in range(4000)]
    scales = np.array([v.inner_width / 32 for v in views])
    assert scales.min() >= 0.5
    assert scales.max() <= 2
    assert abs(scales.mean() - 1.25) < 0.03
    assert abs(np.quantile(scales, 0.25) - 0.875) < 0.03
    assert all(abs(v.inner_height - 0.75 * v.inner_width) <= 0.875 for v in views)
    assert abs(np.mean([v.flip for v in views]) - 0.5) < 0.04
    for v in views:
        assert v.shown == (min(32, v.inner_height), min(32, v.inner_width))  # the window is filled when it can be
        assert (v.left == 0) or v.inner_width > 32
    free = [(v.pad_left, 32 - v.inner_width) for v in views if v.inner_width < 28]
    assert 0.4 < np.mean([pad / room for pad, room in free]) < 0.6
    cut = [(v.left * v.inner_width / 64, v.inner_width - 32) for v in views if v.inner_width > 40]
    assert 0.4 < np.mean([left / room for left, room in cut]) < 0.6


def test_any_shape_of_image_gives_a_valid_view():
    rng = np.random.default_rng(1)
    for _ in range(2000):
        h, w, size = rng.integers(1, 3000, 3).tolist()
        low, high = sorted(rng.uniform(0.05, 4, 2).tolist())
        view = Augment(scale=(low, high)).plan(h, w, size, rng)
        assert view.shown == (min(size, view.inner_height), min(size, view.inner_width))


def test_only_what_is_needed_is_decoded():
    pixels = np.random.default_rng(0).integers(0, 256, (400, 300, 3), dtype=np.uint8)
    for side, reduction in ((400, 1), (200, 2), (150, 2), (100, 4), (40, 8)):
        picture = Array(pixels)
        image, _ = Augment(scale=(1, 1))(picture, {}, side, np.random.default_rng(0))
        assert image.shape == (3, side, side)
        assert picture.asked == [pytest.approx(side / 400, rel=0.02)]
        assert Augment(scale=(1, 1)).plan(400, 300, side, np.random.default_rng(0)).reduction == reduction


def test_all_labels_go_with_the_image():
    """A red square on black: wherever it goes, its box and its mask go too, the class stays."""
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[10:50, 20:60, 0] = 255
    ids = torch.from_numpy((pixels[..., 0] > 0).astype(np.uint8))
    targets = {"box": Boxes.make([[20, 10, 60, 50]], [3]), "mask": Mask(ids), "class": Label(torch.tensor([0.0, 1]))}
    rng, augment, seen = np.random.default_rng(4), Augment(), 0
    for _ in range(200):
        image, moved = augment(Array(pixels), targets, 64, rng)
        assert image.dtype == torch.uint8
        assert image.is_contiguous()
        red = (image[0] > 128) & (image[1] < 20)
        if len(moved["box"].boxes):
            x1, y1, x2, y2 = moved["box"].boxes[0].round().int().tolist()
            inside = torch.zeros(64, 64, dtype=torch.bool)
            inside[y1:y2, x1:x2] = True
            assert (inside != red).sum() <= 2 * 64  # the rim
            seen += 1
        assert ((moved["mask"].ids == 1) != red).sum() <= 2 * 64
        assert moved["class"] is targets["class"]
    assert seen > 150


def test_the_same_generator_gives_the_same_bits():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    augment = Augment(colour=0.7)
    first, _ = augment(Array(pixels), {}, 32, np.random.default_rng([1, 2]))
    again, _ = augment(Array(pixels), {}, 32, np.random.default_rng([1, 2]))
    other, _ = augment(Array(pixels), {}, 32, np.random.default_rng([1, 3]))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_nothing_switched_on_changes_nothing():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image, _ = Augment(flip=False, scale=(1, 1))(Array(pixels), {}, 32, np.random.default_rng(0))
    assert np.array_equal(image.permute(1, 2, 0), pixels)


def test_colours_against_a_plain_formula():
    image = torch.randint(0, 256, (3, 9, 7), dtype=torch.uint8)
    brightness, contrast, saturation = 1 + 0.4 * (2 * np.random.default_rng(5).random(3) - 1)
    x = image.numpy().astype(float) * brightness
    grey = lambda rgb: 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]  # noqa: E731
    x = (x - grey(x).mean()) * contrast + grey(x).mean()
    x = grey(x) + (x - grey(x)) * saturation
    out = Augment(colour=0.5).recolour(image, np.random.default_rng(5)).numpy()
    assert np.abs(out - x.clip(0, 255)).max() <= 0.51


def test_padding_keeps_its_colour():
    image, _ = Augment(colour=1, scale=(0.5, 0.5))(
        Array(np.full((8, 8, 3), 9, np.uint8)), {}, 8, np.random.default_rng(0)
    )
    assert (image.permute(1, 2, 0).reshape(-1, 3) == torch.tensor([124, 116, 104])).all(1).sum() == 64 - 16


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"scale": [2, 1]}, "smallest, largest"),
        ({"scale": [0, 1]}, "greater than 0"),
        ({"colour": 1.5}, "less than or equal to 1"),
        ({"min_visible": -1}, "greater than or equal to 0"),
        ({"flips": True}, "did you mean 'flip'"),
    ],
)
def test_what_cannot_be_is_refused(wrong, words):
    with pytest.raises(UserError, match=words):
        parse(Augment, wrong)


def test_settings_survive_their_text_form():
    assert parse(Augment, Augment(scale=(1, 1.5)).plain()) == Augment(scale=(1, 1.5))
