"""Decoded data say exactly what the files say, once and for all who ask."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tutelage.data.arrays import PixelDataset, cached
from tutelage.data.augment import Augment
from tutelage.data.coco import CocoBoxes
from tutelage.data.decoded import Decoded, decoded, estimated_bytes
from tutelage.data.depths import DepthPairs, NormalPairs
from tutelage.data.folders import Folders, Pool
from tutelage.data.loading import evaluation_batches, loader
from tutelage.data.mixture import Mixture
from tutelage.data.pairs import Masks
from tutelage.data.quarantine import Quarantine
from tutelage.data.scenes.source import Scenes
from tutelage.data.source import BadImage, Dataset, LabelSpace, Picture, Place, Subset
from tutelage.errors import UserError
from tutelage.files import read_json_lines
from tutelage.types import Boxes, Field, Label, Mask, Vectors

ROOM = 2**30
KINDS = ("pool", "label", "boxes", "mask", "depth", "normals")
NAMES = [f"{number:02d}.{'jpg' if number % 3 else 'png'}" for number in range(9)]


def write_images(folder: Path) -> None:
    """JPEGs, large enough to be decoded at 1/8, one of them turned by its EXIF data, and PNGs."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        image = Image.fromarray(rng.integers(0, 256, (20, 26, 3), dtype=np.uint8)).resize((150 + number, 131))
        exif = image.getexif()
        if number == 4:
            exif[274] = 6
        image.save(folder / name, exif=exif)


def write_labels(root: Path) -> None:
    rng = np.random.default_rng(1)
    for kind in ("masks", "depths", "normals"):
        (root / kind).mkdir()
    entries, boxes = [], []
    for number, name in enumerate(NAMES):
        high, wide = (150 + number, 131) if number == 4 else (131, 150 + number)
        entries.append({"id": number, "file_name": name, "width": wide, "height": high})
        boxes += [
            {
                "id": 100 * number + k,
                "image_id": number,
                "category_id": k % 2,
                "bbox": [k, 2 * k, 20 + k, 30],
                "area": 1,
            }
            | {"iscrowd": k % 2}
            for k in range(number % 3)
        ]
        if number == 7:
            continue  # no dense label
        stem = name.partition(".")[0]
        Image.fromarray(rng.integers(0, 3, (high, wide), dtype=np.uint8)).save(root / "masks" / f"{stem}.png")
        np.save(root / "depths" / f"{stem}.npy", rng.random((high, wide), dtype=np.float32))
        np.save(root / "normals" / f"{stem}.npy", rng.normal(size=(high, wide, 3)).astype(np.float32))
    categories = [{"id": 0, "name": "cup"}, {"id": 1, "name": "car"}]
    content = {"images": entries, "annotations": boxes, "categories": categories}
    (root / "boxes.json").write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_images(tmp_path / "images" / "only")
    write_labels(tmp_path)
    return tmp_path


def opened(kind: str, root: Path) -> Dataset:
    images = root / "images" / "only"
    sources = {
        "pool": Pool(images=images),
        "label": Folders(head="it", root=root / "images"),
        "boxes": CocoBoxes(head="it", images=images, annotations=root / "boxes.json"),
        "mask": Masks(head="it", images=images, masks=root / "masks", classes=("a", "b", "c")),
        "depth": DepthPairs(head="it", images=images, depths=root / "depths"),
        "normals": NormalPairs(head="it", images=images, normals=root / "normals"),
    }
    return sources[kind].open("mine", Place(root, root / "cache"))


def same_target(one, other) -> bool:
    if one is None or other is None:
        return one is other
    return type(one) is type(other) and all(
        (a is None and b is None) or (a.dtype == b.dtype and torch.equal(a, b))
        for a, b in ((getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    )


def said(question, *about):
    """What a dataset answers, or the text of the BadImage that it raises."""
    try:
        return question(*about)
    except BadImage as error:
        return f"bad: {error}"


def assert_same(one: Dataset, other: Dataset) -> None:
    assert len(one) == len(other)
    assert (one.name, one.head, one.space, one.faults) == (other.name, other.head, other.space, other.faults)
    for index in range(len(one)):
        assert (one.id(index), one.file(index)) == (other.id(index), other.file(index))
        assert said(one.sha256, index) == said(other.sha256, index)
        targets = said(one.target, index), said(other.target, index)
        assert targets[0] == targets[1] if isinstance(targets[0], str) else same_target(*targets)
        pictures = said(one.picture, index), said(other.picture, index)
        if isinstance(pictures[0], str):
            assert pictures[0] == pictures[1]
            continue
        assert pictures[0].height == pictures[1].height
        assert pictures[0].width == pictures[1].width
        for scale in (1.0, 0.7, 0.5, 0.49, 0.25, 0.2, 0.125, 0.01):
            a, b = said(pictures[0].read, scale), said(pictures[1].read, scale)
            assert a == b if isinstance(a, str) else np.array_equal(a, b), (index, scale)


def written(folder: Path) -> list[Path]:
    return sorted(folder.glob("decoded-*.arrow"))


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_what_the_files_say(kind, root):
    plain = opened(kind, root)
    quick = decoded(plain, root / "cache", ROOM)
    assert isinstance(quick, Decoded)
    assert_same(plain, quick)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_batches_are_the_same_bit_for_bit(kind, root):
    plain = opened(kind, root)
    quick = decoded(plain, root / "cache", ROOM)

    def batches(dataset, size):
        mixture = Mixture([dataset], seed=3)
        augment = Augment(colour=0.4, scale=(0.2, 1.0))
        return list(loader(mixture, ["it"], size, augment, batch=5, seed=1, first_step=0, steps=4, workers=0))

    for one, other in zip(batches(plain, 64), batches(quick, 64), strict=True):
        assert one.ids == other.ids
        assert torch.equal(one.images, other.images)
        a, b = one.heads["it"], other.heads["it"]
        assert torch.equal(a.rows, b.rows)
        assert same_target(a.targets, b.targets)
    for one, other in zip(*(evaluation_batches(d, 32, 4) for d in (plain, quick)), strict=True):
        assert torch.equal(one.images, other.images)
        assert (one.frames, one.ids) == (other.frames, other.ids)
        assert all(np.array_equal(a, b) for a, b in zip(one.originals, other.originals, strict=True))
        assert all(same_target(a, b) for a, b in zip(one.targets, other.targets, strict=True))


def test_rows_of_several_blocks_are_found(root, monkeypatch):
    monkeypatch.setattr("tutelage.data.decoded._BLOCK", 4)
    plain = opened("boxes", root)
    assert_same(plain, decoded(plain, root / "cache", ROOM))


class Made(Dataset):
    """Targets of every kind in one dataset, with what readers of files never give."""

    space = None

    def __init__(self, whole: Dataset) -> None:
        self.whole, self.name, self.head, self.faults, self.asked = whole, "made", "it", [], 0

    def __len__(self):
        return 6

    def id(self, index):
        return f"{index}é"

    def picture(self, index):
        return self.whole.picture(index)

    def target(self, index):
        self.asked += 1
        rows = torch.arange(12.0).view(3, 4)
        return [
            Label(torch.tensor([0.2, 0.8])),
            Boxes.make([], []),
            Boxes.make([[0, 1, 2, 3.5]], [1], [0.25], [True]),
            Mask(torch.ones(4, 5, dtype=torch.uint8), torch.full((4, 5), 7, dtype=torch.uint8)),
            Field(rows.T, rows.T > 3),
            Vectors(torch.rand(4, 5, 3, generator=torch.Generator().manual_seed(0)).permute(2, 0, 1), torch.eye(4) > 0),
        ][index]

    def sha256(self, index):
        return f"digest {index}"


def test_every_array_of_every_kind_comes_back_and_can_be_written_to(root):
    made = Made(opened("pool", root))
    quick = decoded(made, root / "cache", ROOM)
    assert_same(made, quick)
    for index in range(6):
        for field in fields(quick.target(index)):
            if (tensor := getattr(quick.target(index), field.name)) is not None and tensor.numel():
                before = tensor.clone()
                tensor.add_(1) if tensor.dtype is not torch.bool else tensor.logical_not_()
                assert torch.equal(getattr(quick.target(index), field.name), before)
    pixels = quick.picture(0).read()
    pixels[:] = 0
    assert quick.picture(0).read().any()


class Half(Picture):
    """A picture that is never decoded smaller than by half."""

    height, width = 20, 30

    def read(self, scale=1.0):
        return np.full((10, 15, 3) if scale <= 0.5 else (20, 30, 3), 7 if scale <= 0.5 else 5, np.uint8)


def test_levels_that_equal_the_one_before_are_kept_once(root):
    made = Made(opened("pool", root))
    made.picture = lambda index: Half()
    quick = decoded(made, root / "cache", ROOM)
    assert_same(made, quick)
    assert estimated_bytes(made) > 6 * 3 * 20 * 30


def break_images(root: Path) -> None:
    images = root / "images" / "only"
    (images / NAMES[1]).write_bytes((images / NAMES[1]).read_bytes()[:2000])  # cut: the header is whole
    (images / NAMES[2]).write_bytes(b"no image")
    (images / NAMES[3]).write_bytes(b"")
    (root / "depths" / "05.npy").unlink()
    np.save(root / "depths" / "05.npy", np.zeros((131, 155), np.float32))  # no valid pixel


def test_images_that_cannot_be_used_fail_with_the_same_words(root):
    plain = opened("depth", root)
    break_images(root)
    gone = root / "images" / "only" / NAMES[8]
    gone.unlink()
    quick = decoded(plain, root / "cache", ROOM)
    assert_same(plain, quick)
    found = []
    for name, dataset in (("plain", plain), ("quick", quick)):
        quarantine = Quarantine(root / f"{name}.jsonl", 9, 1.0)
        batches = list(evaluation_batches(dataset, 32, 4, quarantine=quarantine))
        found.append((list(read_json_lines(quarantine.path)), [id for batch in batches for id in batch.ids]))
    assert found[0] == found[1]
    assert len(found[0][0]) == 5


def test_a_label_that_contradicts_its_image_stops_the_run(root):
    Image.new("L", (10, 10)).save(root / "masks" / "05.png")
    with pytest.raises(UserError, match="another size"):
        decoded(opened("mask", root), root / "cache", ROOM)
    assert written(root / "cache") == []


def test_it_is_decoded_once(root, monkeypatch):
    seen: list[int] = []
    plain = opened("mask", root)
    first = decoded(plain, root / "cache", ROOM, seen.append)
    assert sum(seen) == len(plain)
    monkeypatch.setattr("tutelage.data.decoded._write", None)
    again = decoded(opened("mask", root), root / "cache", ROOM, seen.append)
    assert sum(seen) == len(plain)
    assert_same(first, again)


def later(path: Path, write) -> None:
    """Change a file so that the clock of the file system must show it."""
    time.sleep(0.02)
    write(path)


@pytest.mark.parametrize("changed", ["image", "label", "class"])
def test_changes_are_noticed_and_the_old_file_goes(changed, root):
    old = decoded(opened("mask", root), root / "cache", ROOM)
    before = written(root / "cache")
    if changed == "image":
        later(root / "images" / "only" / NAMES[0], lambda path: Image.new("RGB", (150, 131), "red").save(path))
    elif changed == "label":
        later(root / "masks" / "00.png", lambda path: Image.new("L", (150, 131), 2).save(path))
    plain = opened("mask", root)
    if changed == "class":
        source = Masks(head="it", images=root / "images" / "only", masks=root / "masks", classes=("b", "a", "c"))
        plain = source.open("mine", Place(root, root), ("a", "b", "c"))
    new = decoded(plain, root / "cache", ROOM)
    assert_same(plain, new)
    assert len(written(root / "cache")) == 1
    assert written(root / "cache") != before
    old.picture(0).read()  # who has it open keeps it


def test_where_changes_of_files_are_not_told_the_digests_of_the_bytes_count(root):
    made = Made(opened("pool", root))
    decoded(made, root / "cache", ROOM)
    before = written(root / "cache")
    made.sha256 = lambda index: f"other digest {index}"
    assert decoded(made, root / "cache", ROOM).sha256(2) == "other digest 2"
    assert written(root / "cache") != before


def test_subsets_of_one_dataset_lie_side_by_side(root):
    plain = opened("mask", root)
    parts = [Subset(plain, np.array(some)) for some in ([4, 1, 8], [0, 7], [2])]
    quick = [decoded(part, root / "cache", ROOM) for part in parts]
    for one, other in zip(parts, quick, strict=True):
        assert_same(one, other)
    assert len(written(root / "cache")) == 3


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "fewer"])
def test_a_damaged_file_is_made_again(damage, root):
    plain = opened("boxes", root)
    decoded(plain, root / "cache", ROOM)
    (file,) = written(root / "cache")
    content = file.read_bytes()
    if damage == "fewer":
        decoded(Subset(plain, np.arange(2)), root / "other", ROOM)
        content = written(root / "other")[0].read_bytes()
    file.unlink()  # not overwritten: on a memory-mapped file that would change what is read, as nothing here does
    file.write_bytes({"cut": content[:-50], "empty": b"", "other": b"x" * 5000, "fewer": content}[damage])
    assert_same(plain, decoded(plain, root / "cache", ROOM))


def test_what_killed_processes_left_is_swept_and_what_lives_is_not(root):
    plain = opened("boxes", root)
    decoded(plain, root / "cache", ROOM)
    (file,) = written(root / "cache")
    file.unlink()
    dead, alive = (file.with_name(f".{file.name}.{who}.part") for who in ("dead", "alive"))
    dead.touch()
    alive.touch()
    os.utime(dead, (0, 0))
    decoded(plain, root / "cache", ROOM)
    assert alive.exists()
    assert not dead.exists()


def test_a_file_that_went_away_is_named(root):
    quick = decoded(opened("boxes", root), root / "cache", ROOM)
    fresh = pickle.loads(pickle.dumps(quick))
    (file,) = written(root / "cache")
    file.unlink()
    quick.picture(8)
    with pytest.raises(UserError, match="gone or damaged"):
        fresh.picture(8)


def test_it_pickles_as_a_path(root):
    quick = decoded(opened("mask", root), root / "cache", ROOM)
    quick.picture(0).read()
    data = pickle.dumps(quick)
    assert len(data) < 1500
    assert_same(quick, pickle.loads(data))


def test_forked_processes_read_the_same_file(root):
    quick = decoded(opened("mask", root), root / "cache", ROOM)
    mixture = Mixture([quick], seed=3)
    here, there = (
        list(loader(mixture, ["it"], 32, Augment(), batch=3, seed=1, first_step=0, steps=3, workers=workers))
        for workers in (0, 1)
    )
    assert all(torch.equal(a.images, b.images) for a, b in zip(here, there, strict=True))


def _ask(root: Path, start, told) -> None:
    plain = opened("depth", root)
    start.wait()
    seen: list[int] = []
    quick = decoded(plain, root / "cache", ROOM, seen.append)
    told.put((sum(seen), [quick.picture(index).read().sum() for index in range(len(quick))]))


def test_of_several_processes_one_decodes(root):
    context = multiprocessing.get_context("fork")
    start, told = context.Barrier(3), context.Queue()
    asking = [context.Process(target=_ask, args=(root, start, told)) for _ in range(3)]
    for process in asking:
        process.start()
    answers = [told.get(timeout=30) for _ in asking]
    for process in asking:
        process.join()
    assert sorted(count for count, _ in answers) == [0, 0, 9]
    assert all(sums == answers[0][1] for _, sums in answers)


def test_too_large_a_set_stays_as_it_is(root):
    plain = opened("depth", root)
    limit = estimated_bytes(plain)
    assert decoded(plain, root / "cache", limit - 1) is plain
    assert written(root / "cache") == []
    assert isinstance(decoded(plain, root / "cache", limit), Decoded)
    size = written(root / "cache")[0].stat().st_size
    assert 0.7 * limit < size < limit + 20_000


def test_a_full_disk_leaves_the_set_as_it_is(root, monkeypatch):
    plain = opened("mask", root)
    free = 2 * estimated_bytes(plain) - 1
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": free}))
    assert decoded(plain, root / "cache", ROOM) is plain


class Empty(Made):
    def __len__(self):
        return 0


def test_empty_and_mapped_datasets_come_back_as_they_are(root):
    empty = Empty(opened("pool", root))
    assert decoded(empty, root / "cache", ROOM) is empty
    scenes = Scenes(head="it", label="classes", world="catalogue", images=2, size=16)
    rendered = scenes.open("mine", Place(root, root / "cache"))
    assert decoded(rendered, root / "cache", ROOM) is rendered
    some = Subset(rendered, np.array([1]))
    assert decoded(some, root / "cache", ROOM) is some
    path = cached(np.zeros((3, 8, 8, 3), np.uint8), root / "cache")
    space, every = LabelSpace(("a",)), np.arange(3)
    pixels = PixelDataset("mine", "it", space, path, ["0", "1", "2"], np.zeros(3, np.int64), every, [])
    assert decoded(pixels, root / "cache", ROOM) is pixels
    quick = decoded(opened("label", root), root / "cache", ROOM)
    assert decoded(quick, root / "cache", ROOM) is quick


def test_numbers_outside_are_refused(root):
    quick = decoded(opened("label", root), root / "cache", ROOM)
    for index in (-1, len(quick)):
        with pytest.raises(IndexError):
            quick.picture(index)
