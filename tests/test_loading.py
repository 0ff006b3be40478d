"""Batches: the same from any number of processes and after any resume; bad images change no neighbour."""

from __future__ import annotations

import multiprocessing
import threading
import time
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch

from tutelage.data.augment import Augment
from tutelage.data.geometry import letterbox
from tutelage.data.loading import evaluation_batches, loader
from tutelage.data.mixture import Mixture
from tutelage.data.quarantine import Quarantine
from tutelage.data.source import BadImage, Dataset, Picture
from tutelage.errors import UserError
from tutelage.files import read_json_lines
from tutelage.types import Boxes, Field, Label, Mask

HEADS = ("things", "parts", "kind", "depth")


class Drawn(Picture):
    def __init__(self, seed, broken):
        self.seed, self.broken = seed, broken
        self.height, self.width = (20 + seed % 5, 24 + seed % 3)

    def read(self, scale=1.0):
        if self.broken:
            raise BadImage("cut short")
        shape = (self.height, self.width, 3)
        return np.random.default_rng(self.seed).integers(0, 256, shape, dtype=np.uint8)


class Made(Dataset):
    """Images drawn from their number; even ones are labelled, some of the others cannot be read."""

    space = None

    def __init__(self, name, head, count, broken=()):
        self.name, self.head, self.count, self.broken, self.faults = name, head, count, set(broken), []

    def __len__(self):
        return self.count

    def id(self, index):
        return f"{index:04d}"

    def picture(self, index):
        return Drawn(index + 1000 * len(self.name), index in self.broken)

    def target(self, index):
        if index % 2:
            return None
        if self.head == "things":
            return Boxes.make([[2, 2, 20, 18], [5, 5, 9, 12]][: index % 3], range(index % 3))
        picture = self.picture(index)
        rng = np.random.default_rng(index)
        return Mask(torch.from_numpy(rng.integers(0, 5, (picture.height, picture.width), dtype=np.uint8)))

    def sha256(self, index):
        return f"digest {index}"


class Pseudo:
    """Labels for two heads, of every image whose number is no multiple of three."""

    def get(self, head, source, id):
        number = int(id)
        if number % 3 == 0:
            return None
        if head == "kind":
            return Label(torch.tensor([0.25, 0.75]))
        if head == "depth":
            picture = Drawn(number + 1000 * len(source), False)
            values = torch.full((picture.height, picture.width), float(number))
            return Field(values, values > 0)
        return None


def mixture(broken=(), mode="uniform"):
    return Mixture([Made("boxed", "things", 23, broken), Made("cut up", "parts", 17), Made("pool", None, 30)], mode, 5)


def batches(mix=None, first=0, steps=6, workers=0, batch=4, **more):
    mix = mixture() if mix is None else mix
    augment = Augment(colour=0.4)
    return loader(
        mix, HEADS, 16, augment, batch, seed=9, first_step=first, steps=steps, workers=workers, labels=Pseudo(), **more
    )


def flat(value):
    """All tensors and strings inside a batch, in order."""
    if is_dataclass(value):
        value = [getattr(value, f.name) for f in fields(value)]
    elif isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [leaf for entry in value for leaf in flat(entry)]
    return [value]


def same(a, b):
    a, b = flat(a), flat(b)
    return len(a) == len(b) and all(
        torch.equal(x, y) and x.dtype == y.dtype if isinstance(x, torch.Tensor) else x == y
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")  # on fewer cores
def test_workers_change_no_bit():
    expected = list(batches())
    assert len(expected) == 6
    for workers in (1, 4):
        assert same(expected, list(batches(workers=workers)))


def test_a_resume_changes_no_bit():
    whole = list(batches(steps=8))
    assert same(whole[3:], list(batches(first=3, steps=5)))
    assert same(whole[5:], list(batches(first=5, steps=3, workers=2)))
    assert list(batches(steps=0)) == []


def test_processes_together_see_what_one_sees():
    one = list(batches(batch=8, steps=3))
    two = [list(batches(batch=4, steps=3, rank=rank, world=2)) for rank in (0, 1)]
    for step in range(3):
        assert torch.equal(one[step].images, torch.cat([two[rank][step].images for rank in (0, 1)]))
        assert one[step].ids == two[0][step].ids + two[1][step].ids


def test_torchs_own_random_numbers_are_left_alone():
    for workers in (0, 1):
        torch.manual_seed(3)
        next(batches(workers=workers, steps=1))
        drawn = torch.rand(3)
        torch.manual_seed(3)
        assert torch.equal(drawn, torch.rand(3))


def test_every_image_carries_all_labels_it_has():
    for batch in batches(steps=20):
        assert set(batch.heads) == set(HEADS)
        assert batch.images.shape == (4, 3, 16, 16)
        assert batch.images.dtype == torch.uint8
        for row, name in enumerate(batch.ids):
            source, number = name.split("/")
            has = {head for head in HEADS if row in batch.heads[head].rows}
            expected = {"kind", "depth"} if int(number) % 3 else set()
            if int(number) % 2 == 0:
                expected |= {"boxed": {"things"}, "cut up": {"parts"}, "pool": set()}[source]
            assert has == expected
        depth = batch.heads["depth"]
        for row, values, valid in zip(depth.rows, *flat(depth.targets or [[], []])[:2], strict=True):
            assert (values[valid] == int(batch.ids[row].split("/")[1])).all()


def test_an_epoch_holds_every_image_once():
    ids = [name for batch in batches(batch=7, steps=10) for name in batch.ids]
    assert len(set(ids)) == len(ids) == 70


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_listed_and_replaced_and_its_neighbours_stay(workers, tmp_path):
    broken = {2, 3, 8}
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", total=70, limit=0.1)
    whole = list(batches(steps=35))  # two epochs: met twice, listed once
    mended = list(batches(mixture(broken), steps=35, workers=workers, quarantine=quarantine))
    bad = {f"boxed/{index:04d}" for index in broken}
    replaced = 0
    for before, after in zip(whole, mended, strict=True):
        for row, name in enumerate(before.ids):
            if name in bad:
                assert after.ids[row] not in bad
                replaced += 1
            else:
                assert after.ids[row] == name
                assert torch.equal(before.images[row], after.images[row])
    assert replaced == 6
    assert {entry["id"] for entry in read_json_lines(quarantine.path)} == bad
    lines = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert all("cut short" in line and "digest" in line and "training" in line for line in lines)


@pytest.mark.parametrize("workers", [0, 1])
def test_without_a_quarantine_a_bad_image_stops_the_run(workers):
    with pytest.raises(UserError, match="cannot be used") as error:
        list(batches(mixture(broken=range(23)), steps=35, workers=workers))
    assert error.value.record.startswith("boxed/")
    assert error.value.value == "cut short"


def test_nothing_but_bad_images_ends(tmp_path):
    bad = Mixture([Made("boxed", "things", 5, range(5))])
    with pytest.raises(UserError, match="100 images in a row"):
        list(batches(bad, steps=1, quarantine=Quarantine(tmp_path / "q.jsonl", total=5, limit=1)))


class WrongSize(Made):
    def target(self, index):
        return Mask(torch.zeros(3, 4, dtype=torch.uint8))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_label_of_another_size_is_named(workers):
    with pytest.raises(UserError, match="another size") as error:
        list(batches(Mixture([WrongSize("cut up", "parts", 5)]), workers=workers))
    assert error.value.field == "parts"
    assert error.value.value.startswith("4 x 3, the image has")
    assert "Traceback" not in str(error.value)
    with pytest.raises(UserError, match="another size"):
        list(evaluation_batches(WrongSize("cut up", "parts", 5), 16, 2))


def test_leaving_early_ends_the_loaders_and_makes_no_more(monkeypatch):
    read, whole = multiprocessing.get_context("fork").Value("i", 0), Drawn.read

    def counted(self, scale=1.0):
        with read.get_lock():
            read.value += 1
        return whole(self, scale)

    monkeypatch.setattr(Drawn, "read", counted)
    before = set(multiprocessing.active_children())
    made = batches(steps=10**9, workers=2)
    next(made)
    made.close()
    assert set(multiprocessing.active_children()) == before
    assert 4 <= read.value <= 4 * (2 * 2 + 1), "what two loaders have ahead, and the batch that was taken"


def test_an_endless_run_needs_no_memory_for_it():
    big = Mixture([Made("pool", None, 10**9)])
    assert len(next(batches(big, first=10**9, steps=10**12)).ids) == 4


def test_evaluation_is_in_order_and_whole():
    dataset = Made("boxed", "things", 7)
    for batch, workers in ((3, 1), (7, 3), (20, 2)):
        made = list(evaluation_batches(dataset, 16, batch, workers))
        assert [len(b.ids) for b in made] == [min(batch, 7 - first) for first in range(0, 7, batch)]
        index = 0
        for images, frames, originals, targets, ids in made:
            for image, frame, original, target, name in zip(images, frames, originals, targets, ids, strict=True):
                assert name == f"{index:04d}"
                assert np.array_equal(original, dataset.picture(index).read())
                square, expected = letterbox(original, 16)
                assert torch.equal(image, square)
                assert frame == expected
                assert (target is None) == bool(index % 2)
                index += 1
        assert index == 7


def test_evaluation_leaves_bad_images_out_and_lists_them(tmp_path):
    for broken, left in (({2, 6}, 5), (set(range(7)), 0)):
        quarantine = Quarantine(tmp_path / f"{left}.jsonl", total=7, limit=1)
        made = list(evaluation_batches(Made("boxed", "things", 7, broken), 16, 3, quarantine=quarantine))
        ids = [name for batch in made for name in batch.ids]
        assert ids == [f"{i:04d}" for i in range(7) if i not in broken]
        assert {entry["id"] for entry in read_json_lines(quarantine.path)} == {f"boxed/{i:04d}" for i in broken}
        assert len(ids) == left
    with pytest.raises(UserError, match="cannot be used"):
        list(evaluation_batches(Made("boxed", "things", 7, {4}), 16, 3))


def test_evaluation_ends_its_threads():
    before = threading.active_count()
    made = evaluation_batches(Made("boxed", "things", 50), 16, 3)
    next(made)
    made.close()  # which does not wait for them
    late = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < late:
        time.sleep(0.01)
    assert threading.active_count() == before
