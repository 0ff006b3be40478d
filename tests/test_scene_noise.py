"""Masks of scenes with mistakes: what noise promises, pixel by pixel, and that it is stated, seeded and kept apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tutelage.data.scenes import WORLDS, LabelNoise, Scenes, render
from tutelage.data.scenes.labels import mask_classes, masks, things
from tutelage.data.scenes.noise import noisy_masks
from tutelage.data.source import Place
from tutelage.errors import UserError
from tutelage.part import parse

SIZE = 32
SHOP = WORLDS["workshop"]


def near(region: np.ndarray, row: int, column: int, by: int) -> bool:
    """Whether a region has a pixel at most `by` rows and columns away."""
    return bool(region[max(row - by, 0) : row + by + 1, max(column - by, 0) : column + by + 1].any())


@pytest.mark.parametrize("borders", [1, 2])
def test_borders_move_by_no_more_than_is_stated(borders):
    batch = render(SHOP, 3, range(12), SIZE)
    noisy = noisy_masks(SHOP, batch, LabelNoise(borders=borders), 3, range(12)).numpy()
    exact, surfaces = masks(SHOP, batch).numpy(), batch.surfaces.numpy()
    moved = 0
    for row in range(12):
        for y, x in np.argwhere(noisy[row] != exact[row]):
            # what a wrong pixel shows is there in truth, at most so far away
            assert near(exact[row] == noisy[row, y, x], y, x, borders)
            assert near(surfaces[row] != surfaces[row, y, x], y, x, borders)
            moved += 1
    assert 0.01 < moved / noisy.size < 0.2 * borders


def test_an_object_grows_shrinks_or_stays_as_a_plain_loop_says():
    """One object on a wall: the region is that of the pixels within `by` of it, or without those near its outside."""
    world = replace(SHOP, objects=(1, 1))
    found = {}
    for number in range(24):
        batch = render(world, 0, [number], SIZE)
        slot = int(batch.thing[0].nonzero()[0, 0]) if bool(batch.thing[0].any()) else None
        region = batch.surfaces[0].numpy() == (-1 if slot is None else slot)
        if not 40 < region.sum() < 400:
            continue
        own = int(mask_classes(world, batch)[0, slot])
        noisy = noisy_masks(world, batch, LabelNoise(borders=1), 0, [number])[0].numpy() == own
        ways = {
            1: [[near(region, y, x, 1) for x in range(SIZE)] for y in range(SIZE)],
            0: region,
            -1: [[region[y, x] and not near(~region, y, x, 1) for x in range(SIZE)] for y in range(SIZE)],
        }
        (by,) = [by for by, wanted in ways.items() if np.array_equal(noisy, wanted)]
        found[by] = found.get(by, 0) + 1
    assert set(found) == {-1, 0, 1}


def test_the_stated_share_of_objects_has_another_class():
    numbers, known = range(150), things(SHOP)
    batch = render(SHOP, 1, numbers, 24)
    noisy, exact = noisy_masks(SHOP, batch, LabelNoise(mistaken=0.25), 1, numbers), masks(SHOP, batch)
    wrong = whole = 0
    names: set[int] = set()
    for row in range(len(numbers)):
        for slot in batch.thing[row].nonzero()[:, 0].tolist():
            here = batch.surfaces[row] == slot
            if bool(here.any()):
                (said,), (true,) = noisy[row][here].unique().tolist(), exact[row][here].unique().tolist()
                assert said in known
                whole, wrong = whole + 1, wrong + (said != true)
                names |= {said} if said != true else set()
    assert whole > 400
    assert abs(wrong / whole - 0.25) < 3 * (0.25 * 0.75 / whole) ** 0.5
    assert names == set(known), "every class is mistaken for"
    between = (exact < known.start) | ~torch.isin(
        batch.surfaces, batch.surfaces.new_tensor(range(batch.shape.shape[1]))
    )
    assert torch.equal(noisy[between], exact[between])
    every = noisy_masks(SHOP, batch, LabelNoise(mistaken=1.0), 1, numbers)
    assert torch.equal(every != exact, ~between), "a mistake is never the truth"


def test_mistakes_depend_on_seed_and_number_alone_and_none_are_the_exact_masks():
    noise = LabelNoise(borders=2, mistaken=0.5)
    batch = render(SHOP, 4, range(6), SIZE)
    whole = noisy_masks(SHOP, batch, noise, 4, range(6))
    assert torch.equal(whole[[5, 1]], noisy_masks(SHOP, render(SHOP, 4, [5, 1], SIZE), noise, 4, [5, 1]))
    assert not torch.equal(whole, noisy_masks(SHOP, batch, noise, 5, range(6)))
    assert torch.equal(noisy_masks(SHOP, batch, LabelNoise(), 4, range(6)), masks(SHOP, batch))
    assert noisy_masks(SHOP, render(SHOP, 4, [], SIZE), noise, 4, []).shape == (0, SIZE, SIZE)
    shapes = WORLDS["blocks"]  # whose masks are of another kind
    assert noisy_masks(shapes, render(shapes, 0, [2], SIZE), noise, 0, [2]).max() < len(shapes.names("mask"))


def test_a_source_states_its_noise(tmp_path):
    place = Place(tmp_path, tmp_path)
    exact = Scenes(world="workshop", label="mask", head="masks", images=5, size=SIZE, first=7, seed=4)
    hasty = parse(Scenes, exact.plain() | {"noise": {"borders": 2, "mistaken": 0.5}})
    assert hasty.folder(place) != exact.folder(place)
    assert exact.but(noise=None).folder(place) == exact.folder(place)
    true, said = exact.open("true", place), hasty.open("said", place)
    batch = render(SHOP, 4, range(7, 12), SIZE)
    wanted = noisy_masks(SHOP, batch, hasty.noise, 4, range(7, 12))
    for index in range(5):
        assert said.sha256(index) == true.sha256(index), "the pictures are the same"
        assert torch.equal(said.target(index).ids, wanted[index])
        assert torch.equal(true.target(index).ids, masks(SHOP, batch)[index])
    for changes, words in (({"noise": {"mistaken": 2}}, "mistaken"), ({"noise": {}, "label": "boxes"}, "only masks")):
        with pytest.raises(UserError, match=words):
            parse(Scenes, exact.plain() | changes)
