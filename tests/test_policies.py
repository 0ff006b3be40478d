"""Policies: their tables, what their levels mean, what they draw, what they do to colours."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from tutelage.data.augment import Augment, augment_s1, augment_s2, augment_s3, augment_s4
from tutelage.data.operations import MOVES, Reach, amount, recolour
from tutelage.data.policies import TABLES, AutoAugment, RandAugment
from tutelage.errors import UserError
from tutelage.part import parse

# The authors' tables, in their names: operation, probability, level.
PUBLISHED = {
    "v0": """
        TranslateX_BBox .6 4, Equalize .8 10
        TranslateY_Only_BBoxes .2 2, Cutout .8 8
        Sharpness 0 8, ShearX_BBox .4 0
        ShearY_BBox 1 2, TranslateY_Only_BBoxes .6 6
        Rotate_BBox .6 10, Color 1 6""",
    "v1": """
        TranslateX_BBox .6 4, Equalize .8 10
        TranslateY_Only_BBoxes .2 2, Cutout .8 8
        Sharpness 0 8, ShearX_BBox .4 0
        ShearY_BBox 1 2, TranslateY_Only_BBoxes .6 6
        Rotate_BBox .6 10, Color 1 6
        Color 0 0, ShearX_Only_BBoxes .8 4
        ShearY_Only_BBoxes .8 2, Flip_Only_BBoxes 0 10
        Equalize .6 10, TranslateX_BBox .2 2
        Color 1 10, TranslateY_Only_BBoxes .4 6
        Rotate_BBox .8 10, Contrast 0 10
        Cutout .2 2, Brightness .8 10
        Color 1 6, Equalize 1 2
        Cutout_Only_BBoxes .4 6, TranslateY_Only_BBoxes .8 2
        Color .2 8, Rotate_BBox .8 10
        Sharpness .4 4, TranslateY_Only_BBoxes 0 4
        Sharpness 1 4, SolarizeAdd .4 4
        Rotate_BBox 1 8, Sharpness .2 8
        ShearY_BBox .6 10, Equalize_Only_BBoxes .6 8
        ShearX_BBox .2 6, TranslateY_Only_BBoxes .2 10
        SolarizeAdd .6 8, Brightness .8 10""",
    "v2": """
        Color 0 6, Cutout .6 8, Sharpness .4 8
        Rotate_BBox .4 8, Sharpness .4 2, Rotate_BBox .8 10
        TranslateY_BBox 1 8, AutoContrast .8 2
        AutoContrast .4 6, ShearX_BBox .8 8, Brightness 0 10
        SolarizeAdd .2 6, Contrast 0 10, AutoContrast .6 0
        Cutout .2 0, Solarize .8 8, Color 1 4
        TranslateY_BBox 0 4, Equalize .6 8, Solarize 0 10
        TranslateY_BBox .2 2, ShearY_BBox .8 8, Rotate_BBox .8 8
        Cutout .8 8, Brightness .8 8, Cutout .2 2
        Color .8 4, TranslateY_BBox 1 6, Rotate_BBox .6 6
        Rotate_BBox .6 10, BBox_Cutout 1 4, Cutout .2 8
        Rotate_BBox 0 0, Equalize .6 6, ShearY_BBox .6 8
        Brightness .8 8, AutoContrast .4 2, Brightness .2 2
        TranslateY_BBox .4 8, Solarize .4 6, SolarizeAdd .2 10
        Contrast 1 10, SolarizeAdd .2 8, Equalize .2 4""",
    "v3": """
        Posterize .8 2, TranslateX_BBox 1 8
        BBox_Cutout .2 10, Sharpness 1 8
        Rotate_BBox .6 8, Rotate_BBox .8 10
        Equalize .8 10, AutoContrast .2 10
        SolarizeAdd .2 2, TranslateY_BBox .2 8
        Sharpness 0 2, Color .4 8
        Equalize 1 8, TranslateY_BBox 1 8
        Posterize .6 2, Rotate_BBox 0 10
        AutoContrast .6 0, Rotate_BBox 1 6
        Equalize 0 4, Cutout .8 10
        Brightness 1 2, TranslateY_BBox 1 6
        Contrast 0 2, ShearY_BBox .8 0
        AutoContrast .8 10, Contrast .2 10
        Rotate_BBox 1 10, Cutout 1 10
        SolarizeAdd .8 6, Equalize .8 8""",
}
NAMES = {
    "Equalize": "equalize", "AutoContrast": "autocontrast", "Posterize": "posterize", "Solarize": "solarize",
    "SolarizeAdd": "solarize-add", "Color": "colour", "Contrast": "contrast", "Brightness": "brightness",
    "Sharpness": "sharpness", "Cutout": "cutout", "TranslateX": "translate-x", "TranslateY": "translate-y",
    "ShearX": "shear-x", "ShearY": "shear-y", "Rotate": "rotate", "Flip": "flip",
}  # fmt: skip


def published(name):
    for line in PUBLISHED[name].strip().splitlines():
        row = []
        for entry in line.split(","):
            word, probability, level = entry.split()
            where = "boxes" if "_Only_BBoxes" in word else "one box" if word == "BBox_Cutout" else "image"
            plain = word.removesuffix("_Only_BBoxes").removesuffix("_BBox").removeprefix("BBox_")
            row.append((NAMES[plain], float(probability), int(level), where))
        yield tuple(row)


REFERENCES = {
    "autocontrast": lambda im, a: ImageOps.autocontrast(im),
    "equalize": lambda im, a: ImageOps.equalize(im),
    "invert": lambda im, a: ImageOps.invert(im),
    "posterize": lambda im, a: ImageOps.posterize(im, int(a)),
    "solarize": lambda im, a: ImageOps.solarize(im, int(a)),
    "colour": lambda im, a: ImageEnhance.Color(im).enhance(a),
    "contrast": lambda im, a: ImageEnhance.Contrast(im).enhance(a),
    "brightness": lambda im, a: ImageEnhance.Brightness(im).enhance(a),
    "sharpness": lambda im, a: ImageEnhance.Sharpness(im).enhance(a),
}


@pytest.mark.parametrize("operation", sorted(REFERENCES))
def test_colours_against_pillow(operation):
    rng, reach = np.random.default_rng(12), Reach(0, 0)
    exact = ("equalize", "invert", "posterize", "solarize")
    for shape in ((1, 1), (3, 5), (47, 61)):
        for level in (0, 2, 5, 8, 10):
            value = amount(operation, level, reach, rng)
            low, high = sorted(rng.integers(0, 256, 2).tolist()) if level else (0, 255)
            pixels = rng.integers(low, high + 1, (*shape, 3), dtype=np.uint8)
            kept = torch.from_numpy(pixels).permute(2, 0, 1).clone()
            image = kept.clone()
            out = recolour(image, operation, value).permute(1, 2, 0).numpy().astype(int)
            expected = np.asarray(REFERENCES[operation](Image.fromarray(pixels), value)).astype(int)
            assert np.abs(out - expected).max() <= (0 if operation in exact else 2)
            assert torch.equal(image, kept)


def test_solarize_add():
    image = torch.tensor([0, 20, 127, 128, 255], dtype=torch.uint8).expand(3, 1, 5)
    assert recolour(image, "solarize-add", 110.0)[0, 0].tolist() == [110, 130, 237, 128, 255]


def test_levels_mean_what_the_authors_code_says():
    reach, rng = Reach(0.25, 0.125), np.random.default_rng(0)
    sizes = {
        "rotate": (30, 12), "shear-x": (0.3, 0.12), "shear-y": (0.3, 0.12), "translate-x": (0.25, 0.1),
        "translate-y": (0.25, 0.1), "cutout": (0.125, 0.05), "posterize": (4, 1), "solarize": (256, 102),
        "solarize-add": (110, 44), "colour": (1.9, 0.82), "contrast": (1.9, 0.82), "brightness": (1.9, 0.82),
        "sharpness": (1.9, 0.82), "equalize": (0, 0), "autocontrast": (0, 0), "invert": (0, 0), "flip": (0, 0),
    }  # fmt: skip
    for operation, (ten, four) in sizes.items():
        values = [amount(operation, 10, reach, rng) for _ in range(200)]
        assert np.allclose(np.abs(values), ten)
        share = np.mean([v < 0 for v in values])
        assert 0.35 < share < 0.65 if operation in MOVES - {"flip"} else share == 0
        assert abs(amount(operation, 4, reach, rng)) == pytest.approx(four)
    assert amount("posterize", 2, reach, rng) == 1
    assert amount("posterize", 30, reach, rng) == 8


@pytest.mark.parametrize("name", ["v0", "v1", "v2", "v3"])
def test_tables_are_the_published_ones(name):
    assert tuple(tuple(tuple(e) for e in row) for row in TABLES[name]) == tuple(published(name))
    assert len(TABLES[name]) == {"v0": 5, "v1": 20, "v2": 15, "v3": 15}[name]


@pytest.mark.parametrize("name", ["v0", "v2", "v3"])
def test_autoaugment_draws_by_its_table(name):
    rng, policy, count = np.random.default_rng(1), AutoAugment(name=name), 6000
    drawn = Counter((s.operation, s.where) for _ in range(count) for s in policy.draw(rng))
    expected = Counter()
    for row in published(name):
        for operation, probability, _, where in row:
            expected[operation, where] += (1.0 if where == "boxes" else probability) * count / len(TABLES[name])
    for key, number in expected.items():
        assert abs(drawn[key] - number) <= 5 * math.sqrt(number + 1), key
    assert set(drawn) == {key for key, number in expected.items() if number}
    chances = {round(s.chance, 6) for _ in range(200) for s in policy.draw(rng) if s.where == "boxes"}
    assert chances == ({round(0.2 / 3, 6), 0.2} if name == "v0" else set())


def test_the_reach_of_shifts_and_cuts():
    rng = np.random.default_rng(2)
    steps = [s for name in TABLES for _ in range(600) for s in AutoAugment(name=name).draw(rng)]
    most = {}
    for s in steps:
        most[s.operation, s.where] = max(most.get((s.operation, s.where), 0), abs(s.amount))
    assert most["translate-x", "image"] == pytest.approx(0.8 * 250 / 640)
    assert most["translate-y", "boxes"] == pytest.approx(120 / 640)
    assert most["cutout", "image"] == pytest.approx(100 / 640)
    assert most["cutout", "boxes"] == pytest.approx(0.6 * 50 / 640)
    assert most["cutout", "one box"] == pytest.approx(0.75)
    steps = [s for _ in range(400) for s in RandAugment().draw(rng)]
    assert max(s.amount for s in steps if s.operation == "translate-x") == pytest.approx(100 / 640)
    assert max(s.amount for s in steps if s.operation == "cutout") == pytest.approx(40 / 640)


def test_rand_augment_draws_sixteen_operations_and_nothing_evenly():
    rng, policy = np.random.default_rng(3), RandAugment(operations=3, magnitude=10)
    rows = [policy.draw(rng) for _ in range(3000)]
    drawn = Counter(s.operation for row in rows for s in row)
    assert len(drawn) == 16
    assert "flip" not in drawn
    assert all(abs(number - 9000 / 17) < 5 * math.sqrt(9000 / 17) for number in drawn.values())
    assert abs(sum(len(row) < 3 for row in rows) / 3000 - (1 - (16 / 17) ** 3)) < 0.03
    assert {s.where for row in rows for s in row} == {"image"}
    assert {abs(s.amount) for row in rows for s in row if s.operation == "rotate"} == {30.0}


def test_the_four_strengths_are_the_papers():
    assert augment_s1() == Augment(flip=True, scale=(0.8, 1.2), colour=0.0, policy=None)
    assert augment_s2() == augment_s1().but(policy=AutoAugment(name="v0"))
    assert augment_s3() == augment_s2().but(scale=(0.5, 2.0))
    assert augment_s4() == augment_s3().but(policy=RandAugment(operations=2, magnitude=10))


def test_policies_in_text():
    for augment in (augment_s1(), augment_s2(), augment_s4()):
        assert parse(Augment, augment.plain()) == augment
    written = parse(Augment, {"policy": {"kind": "rand-augment", "magnitude": 15}})
    assert written.policy == RandAugment(operations=2, magnitude=15)
    for policy, said in (
        ({"kind": "rand"}, "did you mean 'rand-augment'"),
        ({"kind": "auto-augment", "name": "v9"}, "policy"),
        ({"kind": "rand-augment", "operations": 0}, "policy.operations"),
        ({"magnitude": 3}, "kind"),
    ):
        with pytest.raises(UserError, match=said):
            parse(Augment, {"policy": policy})
