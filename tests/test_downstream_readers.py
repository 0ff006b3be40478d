"""The readers of the downstream sets, on tiny sets laid out like the originals, against torchvision's own datasets."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from tutelage.data import DepthPairs, Folders, Join, Masks, NormalPairs, Scenes, TorchvisionSet, VocBoxes
from tutelage.data.source import Dataset, Place, Source
from tutelage.errors import UserError
from tutelage.kinds import AnySource
from tutelage.types import Boxes, Field, Label, Mask, Vectors

RNG = np.random.default_rng(0)
scipy = pytest.mark.skipif(importlib.util.find_spec("scipy") is None, reason="scipy is not installed")


def image(path: Path, width: int = 16, height: int = 12) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return path


def opened(source: Source, root: Path, classes: tuple[str, ...] | None = None) -> Dataset:
    return source.open("mine", Place(root, root / "cache"), classes)


def problem(source: Source, root: Path) -> str:
    with pytest.raises(UserError) as caught:
        opened(source, root)
    return str(caught.value)


def ids(data: Dataset) -> list[str]:
    return [data.id(i) for i in range(len(data))]


def class_name(data: Dataset, index: int) -> str:
    label = data.target(index)
    assert isinstance(label, Label)
    assert label.probs.sum() == 1
    assert data.space is not None
    return data.space.names[int(label.probs.argmax())]


def content(data: Dataset) -> list[tuple[bytes, str]]:
    """Pixels and class of every image, in any order."""
    return sorted((data.picture(i).read().tobytes(), class_name(data, i)) for i in range(len(data)))


def reference(dataset: Any) -> list[tuple[bytes, str]]:
    """The same of a torchvision dataset."""
    pairs = [dataset[i] for i in range(len(dataset))]
    return sorted((np.asarray(im.convert("RGB")).tobytes(), dataset.classes[int(k)]) for im, k in pairs)


def torchvision_set(name: str, split: str, **options: Any) -> TorchvisionSet:
    return TorchvisionSet(head="h", name=name, root="sets", split=split, **options)


# --- sets of files


def food(root: Path) -> None:
    lists: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for label in ("pizza", "apple_pie"):
        for number in range(6):
            image(root / f"food-101/images/{label}/{number}.jpg")
            lists["train" if number < 4 else "test"].setdefault(label, []).append(f"{label}/{number}")
    (root / "food-101/meta").mkdir()
    for split, plain in lists.items():
        (root / f"food-101/meta/{split}.json").write_text(json.dumps(plain))


def aircraft(root: Path) -> None:
    base = root / "fgvc-aircraft-2013b/data"
    names = ["A300B4", "Boeing 737-700"]
    for split, start in (("train", 0), ("val", 2), ("test", 4)):
        rows = [f"{start + k:07d} {names[k]}" for k in range(2)]
        for row in rows:
            image(base / f"images/{row.split()[0]}.jpg")
        (base / f"images_variant_{split}.txt").write_text("\n".join(rows) + "\n")
    (base / "variants.txt").write_text("\n".join(names) + "\n")


def textures(root: Path) -> None:
    base = root / "dtd/dtd"
    (base / "labels").mkdir(parents=True)
    for split, numbers in (("train", (1, 2)), ("val", (3,)), ("test", (4,))):
        rows = [f"{label}/{label}_{n:04d}.jpg" for label in ("dotted", "banded") for n in numbers]
        for row in rows:
            image(base / "images" / row)
        (base / f"labels/{split}3.txt").write_text("\n".join(rows) + "\n")


def pets(root: Path) -> None:
    base = root / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    for split, numbers in (("trainval", (1, 2)), ("test", (3,))):
        rows = [
            f"{label}_{n} {k} 1 1"
            for k, label in enumerate(("Abyssinian", "american_pit_bull_terrier"), 1)
            for n in numbers
        ]
        for row in rows:
            image(base / f"images/{row.split()[0]}.jpg")
        (base / f"annotations/{split}.txt").write_text("\n".join(rows) + "\n")


def cars(root: Path) -> None:
    from scipy.io import savemat

    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    record = np.dtype([("fname", object), ("class", object)])
    for folder, file in (
        ("cars_train", base / "devkit/cars_train_annos.mat"),
        ("cars_test", base / "cars_test_annos_withlabels.mat"),
    ):
        rows = [(f"{n:05d}.jpg", 1 + n % 2) for n in range(1, 5)]
        for name, _ in rows:
            image(base / folder / name)
        savemat(file, {"annotations": np.array(rows, record)})
    savemat(base / "devkit/cars_meta.mat", {"class_names": np.array(["Audi TT Coupe", "Fiat 500"], object)})


def flowers(root: Path, patch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat
    from torchvision import datasets

    base = root / "flowers-102"
    for number in range(1, 7):
        image(base / f"jpg/image_{number:05d}.jpg")
    savemat(base / "imagelabels.mat", {"labels": np.array([[77, 1, 77, 1, 77, 102]])})
    savemat(base / "setid.mat", {"trnid": [[6, 1]], "valid": [[3, 2]], "tstid": [[5, 4]]})
    files = dict(datasets.Flowers102._file_dict)
    for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat")):
        files[key] = (name, hashlib.md5((base / name).read_bytes()).hexdigest())
    patch.setattr(datasets.Flowers102, "_file_dict", files)


def test_sets_of_files_are_what_torchvision_says(tmp_path: Path) -> None:
    from torchvision import datasets

    root = tmp_path / "sets"
    for make in (food, aircraft, textures, pets):
        make(root)
    for name, split, options, theirs in (
        ("Food101", "train", {}, datasets.Food101(root, "train")),
        ("Food101", "test", {}, datasets.Food101(root, "test")),
        ("FGVCAircraft", "trainval", {}, None),
        ("FGVCAircraft", "val", {}, datasets.FGVCAircraft(root, "val")),
        ("DTD", "train", {"partition": 3}, datasets.DTD(root, "train", 3)),
        ("OxfordIIITPet", "trainval", {}, datasets.OxfordIIITPet(root, "trainval")),
        ("OxfordIIITPet", "test", {}, datasets.OxfordIIITPet(root, "test")),
    ):
        source = torchvision_set(name, split, **options)
        if theirs is None:
            assert "images_variant_trainval.txt" in problem(source, tmp_path)
            continue
        data = opened(source, tmp_path)
        assert data.space is not None
        assert list(data.space.names) == theirs.classes
        assert content(data) == reference(theirs)
        assert data.faults == []
        assert Path(data.file(0)) == root / data.id(0)
    both = opened(torchvision_set("FGVCAircraft", "train+val"), tmp_path)
    halves = [datasets.FGVCAircraft(root, split) for split in ("train", "val")]
    assert content(both) == sorted(reference(halves[0]) + reference(halves[1]))
    assert ids(both) == [f"fgvc-aircraft-2013b/data/images/{n:07d}.jpg" for n in range(4)]  # sorted, whatever the list


@scipy
def test_sets_with_matlab_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    root = tmp_path / "sets"
    cars(root)
    flowers(root, monkeypatch)
    for split in ("train", "test"):
        data = opened(torchvision_set("StanfordCars", split), tmp_path)
        assert content(data) == reference(datasets.StanfordCars(root, split))
        data = opened(torchvision_set("Flowers102", split), tmp_path)
        assert content(data) == reference(datasets.Flowers102(root, split))
        assert data.space is not None
        assert len(data.space.names) == 102
        assert len(data.faults) == 100  # classes without an image, counted
    mapped = opened(torchvision_set("StanfordCars", "test"), tmp_path, ("Fiat 500", "Saab", "Audi TT Coupe"))
    assert [class_name(mapped, i) for i in range(2)] == ["Fiat 500", "Audi TT Coupe"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("StanfordCars", "Flowers102"):
        text = problem(torchvision_set(name, "train"), tmp_path)
        assert "need scipy" in text
        assert "pip install 'scipy>=1.11'" in text


# --- sets of pixels


def cifar(root: Path, patch: pytest.MonkeyPatch, fine: bool, count: int = 4) -> None:
    from torchvision import datasets

    kind, key = (datasets.CIFAR100, "fine_labels") if fine else (datasets.CIFAR10, "labels")
    base = root / kind.base_folder
    base.mkdir(parents=True, exist_ok=True)

    def store(name: str, plain: dict[str, Any]) -> str:
        (base / name).write_bytes(pickle.dumps(plain))
        return hashlib.md5((base / name).read_bytes()).hexdigest()

    def batch(name: str) -> list[str]:
        pixels = RNG.integers(0, 256, (count, 3072), np.uint8)
        return [name, store(name, {"data": pixels, key: ([0, 1, 1, 2] * count)[:count]})]

    patch.setattr(kind, "train_list", [batch(name) for name, _ in kind.train_list])
    patch.setattr(kind, "test_list", [batch(name) for name, _ in kind.test_list])
    names = {kind.meta["key"]: ["cat", "dog", "frog"]}
    patch.setattr(kind, "meta", {**kind.meta, "md5": store(kind.meta["filename"], names)})


def stl10(root: Path, patch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    base = root / "stl10_binary"
    base.mkdir(parents=True)

    def store(name: str) -> list[str]:
        labels = np.array([1, 3, 2], np.uint8)
        data = RNG.integers(0, 256, 3 * 3 * 96 * 96, np.uint8) if "_X" in name else labels
        (base / name).write_bytes(data.tobytes())
        return [name, hashlib.md5(data.tobytes()).hexdigest()]

    patch.setattr(datasets.STL10, "train_list", [store(name) for name, _ in datasets.STL10.train_list])
    patch.setattr(datasets.STL10, "test_list", [store(name) for name, _ in datasets.STL10.test_list])
    (base / "class_names.txt").write_text("airplane\nbird\ncar\n")


def test_sets_of_pixels_are_what_torchvision_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    root = tmp_path / "sets"
    cifar(root, monkeypatch, fine=False)
    cifar(root, monkeypatch, fine=True)
    stl10(root, monkeypatch)
    for name, split, theirs in (
        ("CIFAR10", "train", datasets.CIFAR10(root, train=True)),
        ("CIFAR10", "test", datasets.CIFAR10(root, train=False)),
        ("CIFAR100", "train", datasets.CIFAR100(root, train=True)),
        ("STL10", "train", datasets.STL10(root, "train")),
        ("STL10", "test", datasets.STL10(root, "test")),
    ):
        data = opened(torchvision_set(name, split), tmp_path)
        assert content(data) == reference(theirs)
        assert ids(data) == [f"{split}/{i:05d}" for i in range(len(theirs))]
        np.testing.assert_array_equal(data.picture(1).read(), np.asarray(theirs[1][0]))
        assert data.sha256(1) == hashlib.sha256(np.asarray(theirs[1][0]).tobytes()).hexdigest()
    assert len(opened(torchvision_set("CIFAR100", "train+test"), tmp_path)) == 8
    # Twenty pictures and their labels of one file, which loader processes map for themselves.
    data = opened(torchvision_set("CIFAR10", "train", exclude=("train/00003",)), tmp_path)
    assert len(data) == 19
    assert data.id(3) == "train/00004"
    data.picture(0)
    packed = pickle.dumps(data)
    assert len(packed) < 20_000 < 19 * 3072
    again = pickle.loads(packed)
    assert content(again) == content(data)
    made = sorted(p.name for p in (tmp_path / "cache").iterdir())
    opened(torchvision_set("CIFAR10", "train"), tmp_path)
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == made


def test_a_set_that_is_missing_or_changed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    root = tmp_path / "sets"
    assert "no such folder for `root`" in problem(torchvision_set("CIFAR10", "train"), tmp_path)
    root.mkdir()
    splits = {"OxfordIIITPet": "trainval"}
    for name in TorchvisionSet.model_fields["name"].annotation.__args__:  # type: ignore[union-attr]
        text = problem(torchvision_set(name, splits.get(name, "train")), tmp_path)
        assert f"source 'mine': {name} cannot be read from this folder" in text, name
        assert str(root) in text
        assert "have below it" in text
    cifar(root, monkeypatch, fine=False)
    batch = root / "cifar-10-batches-py/data_batch_2"
    batch.write_bytes(batch.read_bytes()[:-1] + b"x")
    text = problem(torchvision_set("CIFAR10", "test"), tmp_path)
    assert "not found or corrupted" in text
    assert "cifar-10-batches-py" in text
    food(root)
    (root / "food-101/images/pizza/2.jpg").unlink()
    text = problem(torchvision_set("Food101", "train"), tmp_path)
    assert "listed images are missing, such as food-101/images/pizza/2.jpg" in text
    (root / "food-101/meta/train.json").write_text("{")
    assert "JSONDecodeError" in problem(torchvision_set("Food101", "train"), tmp_path)
    asked: list[bool] = []
    monkeypatch.setattr(datasets.Food101, "_download", lambda self: asked.append(True))
    problem(torchvision_set("Food101", "train"), tmp_path)
    assert asked == []
    problem(torchvision_set("Food101", "train", download=True), tmp_path)
    assert asked == [True]


def test_splits_that_cannot_be(tmp_path: Path) -> None:
    for name, split, options, word in (
        ("CIFAR10", "val", {}, "has no split 'val'"),
        ("Food101", "tset", {}, "did you mean 'test'"),
        ("FGVCAircraft", "trainval+val", {}, "twice"),
        ("CIFAR10", "train+train", {}, "twice"),
        ("DTD", "train", {"partition": 11}, "partitions 1 to 10"),
        ("CIFAR10", "train", {"partition": 0}, "partitions 1 to 1"),
        ("MNIST", "train", {}, "Input should be"),
    ):
        with pytest.raises(ValidationError, match=word):
            torchvision_set(name, split, **options)


# --- splits of our own


def test_caltech_learns_from_thirty_a_class(tmp_path: Path) -> None:
    from torchvision import datasets

    base = tmp_path / "sets/caltech101/101_ObjectCategories"
    for label, count in (("ant", 33), ("yin_yang", 31), ("BACKGROUND_Google", 2)):
        for number in range(1, count + 1):
            image(base / f"{label}/image_{number:04d}.jpg", 8, 8)
    train, test = (opened(torchvision_set("Caltech101", split), tmp_path) for split in ("train", "test"))
    names = [[class_name(data, i) for i in range(len(data))] for data in (train, test)]
    assert names == [["ant"] * 30 + ["yin_yang"] * 30, ["ant"] * 3 + ["yin_yang"]]
    theirs = datasets.Caltech101(tmp_path / "sets")
    pairs = [theirs[i] for i in range(len(theirs))]
    whole = sorted((np.asarray(im).tobytes(), theirs.categories[k]) for im, k in pairs)
    assert sorted(content(train) + content(test)) == whole
    assert ids(opened(torchvision_set("Caltech101", "train"), tmp_path)) == ids(train)
    other = opened(torchvision_set("Caltech101", "train", partition=2), tmp_path)
    assert len(other) == 60
    assert ids(other) != ids(train)


def test_sun_follows_its_lists_or_draws_fifty(tmp_path: Path) -> None:
    from torchvision import datasets

    base = tmp_path / "sets/SUN397"
    names = ["/a/abbey", "/a/apse/indoor", "/a/apse/outdoor"]
    for folder in names:
        for number in range(4):
            image(base / folder[1:] / f"sun_{number}.jpg", 8, 8)
    (base / "ClassName.txt").write_text("\n".join(names) + "\n")
    source = torchvision_set("SUN397", "train")
    text = problem(source, tmp_path)
    assert "lists of SUN397 are not there" in text
    assert "partition: 0" in text
    for list_name, numbers in (("Training_01.txt", (0, 2)), ("Testing_01.txt", (1,))):
        rows = [f"{folder}/sun_{n}.jpg" for folder in names for n in numbers]
        (base / list_name).write_text("\n".join(rows) + "\n")
    data = opened(source, tmp_path)
    assert data.space is not None
    assert data.space.names == ("abbey", "apse/indoor", "apse/outdoor")
    assert [class_name(data, i) for i in range(6)] == [n for n in data.space.names for _ in range(2)]
    assert {id.rpartition("_")[2] for id in ids(data)} == {"0.jpg", "2.jpg"}
    theirs = datasets.SUN397(tmp_path / "sets")
    assert set(content(data)) < set(reference(theirs))
    assert len(opened(torchvision_set("SUN397", "test"), tmp_path)) == 3
    for number in range(4, 103):
        image(base / f"a/abbey/sun_{number}.jpg", 8, 8)
    parts = [ids(opened(torchvision_set("SUN397", split, partition=0), tmp_path)) for split in ("train", "test")]
    assert [sum("abbey" in id for id in part) for part in parts] == [50, 50]  # of 103: three are left over
    assert not set(parts[0]) & set(parts[1])
    (base / "Testing_01.txt").write_text("/a/abbey/sun_1.jpg\n/b/bar/sun_1.jpg\n")
    assert "KeyError '/b/bar'" in problem(torchvision_set("SUN397", "test"), tmp_path)


# --- parts cut at random


def test_a_random_part_is_of_each_class_and_stays(tmp_path: Path) -> None:
    for label, count in (("a", 20), ("b", 10), ("c", 1)):
        for number in range(count):
            image(tmp_path / f"set/{label}/{number}.png", 8, 8)
    whole = Folders(head="h", root="set")
    left, right = (ids(opened(whole.but(part=part), tmp_path)) for part in ((0, 0.8), (0.8, 1)))
    assert sorted(left + right) == sorted(ids(opened(whole, tmp_path)))
    assert [sum(id[0] == label for id in left) for label in "abc"] == [16, 8, 1]
    names = [f"a/{n}.png" for n in range(20)]  # by its definition: the order of hashes of seed and id
    order = sorted(names, key=lambda id: hashlib.blake2b(f"0/{id}".encode(), digest_size=8).digest())
    assert {id for id in left if id[0] == "a"} == set(order[:16])
    assert left != [*names[:16], *(f"b/{n}.png" for n in range(8)), "c/0.png"]
    assert ids(opened(whole.but(part=(0, 0.8)), tmp_path)) == left
    assert ids(opened(whole.but(part=(0, 0.8), part_seed=1), tmp_path)) != left
    some = opened(whole.but(part=(0, 0.8), every=2, limit=3), tmp_path)  # the part comes first
    assert set(ids(some)) < set(left)
    assert len(some) == 3
    with pytest.raises(ValidationError, match="0 <= a < b <= 1"):
        Folders(head="h", root="set", part=(0.8, 0.2))


# --- VOC

VOC = VocBoxes(head="things", root="VOCdevkit/VOC2007", split="trainval")


def voc(root: Path, year: int, objects: dict[str, list[tuple[str, int]]]) -> Path:
    """Images of 16 x 12 with objects of (class, difficult), each of the box 1 1 8 6."""
    base = root / f"VOCdevkit/VOC{year}"
    for folder in ("Annotations", "ImageSets/Main"):
        (base / folder).mkdir(parents=True)
    for stem, things in objects.items():
        image(base / f"JPEGImages/{stem}.jpg")
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>8</xmax><ymax>6</ymax></bndbox>"
        part = f"<part><name>head</name>{box.replace('8', '2')}</part>"  # VOC 2012 has such; they are no objects
        text = "".join(f"<object><name>{k}</name><difficult>{d}</difficult>{box}{part}</object>" for k, d in things)
        size = "<size><width>16</width><height>12</height></size>"
        (base / f"Annotations/{stem}.xml").write_text(f"<annotation>{size}{text}</annotation>")
    (base / "ImageSets/Main/trainval.txt").write_text("\n".join(objects) + "\n")
    return base


def test_joined_years_of_voc(tmp_path: Path) -> None:
    voc(tmp_path, 2007, {"000005": [("dog", 0), ("cat", 1)], "000007": []})
    voc(tmp_path, 2012, {"2008_000002": [("horse", 0)], "2008_000003": [("cat", 0)]})
    both = Join(head="things", sources={"07": VOC, "12": VOC.but(root=Path("VOCdevkit/VOC2012"))})
    data = opened(both, tmp_path)
    assert ids(data) == ["07/000005.jpg", "07/000007.jpg", "12/2008_000002.jpg", "12/2008_000003.jpg"]
    assert data.space is not None
    assert data.space.names == ("cat", "dog", "horse")
    targets = [data.target(i) for i in range(4)]
    assert [t.classes.tolist() for t in targets if isinstance(t, Boxes)] == [[1, 0], [], [2], [0]]
    assert [t.ignore.tolist() for t in targets if isinstance(t, Boxes)] == [[False, True], [], [False], [False]]
    assert data.file(3).endswith("VOC2012/JPEGImages/2008_000003.jpg")
    assert data.picture(2).read().shape == (12, 16, 3)
    single = opened(VOC.but(root=Path("VOCdevkit/VOC2012")), tmp_path)
    assert data.sha256(3) == single.sha256(1)
    assert data.changed(0, 4) is not None
    assert data.mended(1) == []
    assert data.head == "things"
    mapped = opened(both, tmp_path, ("horse", "dog", "cat"))
    assert mapped.space is not None
    assert mapped.space.names == ("horse", "dog", "cat")
    assert mapped.target(3).classes.tolist() == [2]  # type: ignore[union-attr]
    for index in (-1, 4):
        with pytest.raises(IndexError):
            data.id(index)
    again = pickle.loads(pickle.dumps(data))
    assert again.listing(1, 4) == data.listing(1, 4)


def test_a_join_in_text_states_its_head_once(tmp_path: Path) -> None:
    year = {"format": "voc", "root": "VOCdevkit/VOC2007"}
    join = TypeAdapter(AnySource).validate_python({"format": "join", "head": "h", "sources": {"a": year}})
    assert isinstance(join, Join)
    assert join.sources["a"].head == "h"
    again = TypeAdapter(AnySource).validate_python(join.plain())
    assert again.fingerprint() == join.fingerprint()
    for bad, word in (
        ({"a/b": year}, "cannot begin an id"),
        ({}, "at least 1"),
        ({"a": {**year, "head": "other"}}, "'other', but that of the join is 'h'"),
        ({"a": {**year, "rot": "x"}}, "did you mean 'root'"),
    ):
        with pytest.raises(ValidationError, match=word):
            TypeAdapter(AnySource).validate_python({"format": "join", "head": "h", "sources": bad})


def test_a_join_needs_one_kind_of_label_and_prepares_its_parts(tmp_path: Path) -> None:
    voc(tmp_path, 2007, {"1": [("dog", 0)]})
    depth = Scenes(world="flat", label="depth", head="things", images=2, size=16)
    mixed = Join(head="things", sources={"a": VOC, "b": depth})
    assert mixed.to_prepare(Place(tmp_path, tmp_path / "cache")) == 2
    seen: list[int] = []
    mixed.prepare(Place(tmp_path, tmp_path / "cache"), seen.append)
    assert sum(seen) == 2
    assert "some have none" in problem(mixed, tmp_path)
    pair = opened(Join(head="things", sources={"a": depth, "b": depth.but(first=5)}), tmp_path)
    assert ids(pair) == ["a/000000", "a/000001", "b/000005", "b/000006"]
    assert pair.space is None
    assert isinstance(pair.target(3), Field)


def test_voc_segmentation(tmp_path: Path) -> None:
    from torchvision import datasets

    base = tmp_path / "VOCdevkit/VOC2012"
    stored = np.zeros((12, 16), np.uint8)
    stored[2:6, 3:9], stored[6, 3:9] = 15, 255  # a person with its white border
    for stem in ("2007_000032", "2007_000033", "2008_000002"):
        image(base / f"JPEGImages/{stem}.jpg")
    for stem in ("2007_000032", "2007_000033"):
        palette = Image.fromarray(stored).convert("P")
        palette.putpalette(RNG.integers(0, 256, 768, np.uint8).tolist())
        (base / "SegmentationClass").mkdir(exist_ok=True)
        palette.save(base / f"SegmentationClass/{stem}.png")
    (base / "ImageSets/Segmentation").mkdir(parents=True)
    (base / "ImageSets/Segmentation/train.txt").write_text("2007_000032\n2007_000033\n")
    source = Masks(
        head="h",
        images=base / "JPEGImages",
        masks=base / "SegmentationClass",
        ids=base / "ImageSets/Segmentation/train.txt",
        classes=tuple(f"class {k}" for k in range(21)),
    )
    data = opened(source, tmp_path)
    assert len(data) == 2
    mask = data.target(0)
    assert isinstance(mask, Mask)
    theirs = datasets.VOCSegmentation(tmp_path, "2012", "train")
    with Image.open(theirs.masks[0]) as shown:
        np.testing.assert_array_equal(mask.ids, np.asarray(shown))
    with Image.open(theirs.images[0]) as shown:
        np.testing.assert_array_equal(data.picture(0).read(), np.asarray(shown))
    assert mask.ids.unique().tolist() == [0, 15, 255]


# --- ADE20K, NYU, DIODE


def test_ade20k_takes_its_names_from_its_table(tmp_path: Path) -> None:
    base = tmp_path / "ADEChallengeData2016"
    image(base / "images/training/ADE_train_00000001.jpg")
    stored = np.array([[0, 1], [2, 150]], np.uint8).repeat(6, 0).repeat(8, 1)
    (base / "annotations/training").mkdir(parents=True)
    Image.fromarray(stored).save(base / "annotations/training/ADE_train_00000001.png")
    names = ["wall", "building, edifice", *(f"thing {k}" for k in range(3, 150)), "flag "]
    rows = [f"{k} \t0.1\t10\t1\t{name}" for k, name in enumerate(names, 1)]  # some of its cells end in blanks
    (base / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n" + "\n".join(rows) + "\n")
    source = Masks(
        head="h",
        images=base / "images/training",
        masks=base / "annotations/training",
        classes=base / "objectInfo150.txt",
        ignore=(0,),
    )
    data = opened(source, tmp_path)
    assert data.space is not None
    assert data.space.names == tuple(name.strip() for name in names)
    assert data.space.ids == tuple(range(1, 151))
    mask = data.target(0)
    assert isinstance(mask, Mask)
    assert mask.ids[::6, ::8].tolist() == [[255, 0], [1, 149]]
    (base / "objectInfo150.txt").write_text("\n".join(names) + "\n")  # plain lines
    listed = opened(source.but(offset=1), tmp_path)
    assert listed.space == data.space
    for text in ("Idx\tTitle\n1\twall\n", "Idx\tName\n1\n", "Idx\tName\nx\twall\n"):
        (base / "objectInfo150.txt").write_text(text)
        assert "class names cannot be read" in problem(source, tmp_path)


def nyu(root: Path) -> None:
    for scene, number in (("kitchen_0003", 10), ("kitchen_0003", 9), ("bath_0001", 1)):
        image(root / f"nyu/sync/{scene}/rgb_{number:05d}.jpg")
        stored = np.full((12, 16), 1000 * number, np.uint16)
        Image.fromarray(stored).save(root / f"nyu/sync/{scene}/sync_depth_{number:05d}.png")


def test_nyu_by_a_list_of_pairs(tmp_path: Path) -> None:
    nyu(tmp_path)
    rows = [
        "/kitchen_0003/rgb_00010.jpg /kitchen_0003/sync_depth_00010.png 518.8579",
        "kitchen_0003/rgb_00009.jpg\tkitchen_0003/sync_depth_00009.png",
        "",
        "bath_0001/rgb_00001.jpg,bath_0001/sync_depth_00001.png",
    ]
    (tmp_path / "nyu/train.txt").write_text("\n".join(rows))
    source = DepthPairs(head="h", images="nyu/sync", depths="nyu/sync", pairs="nyu/train.txt", unit=0.001, maximum=9.5)
    data = opened(source, tmp_path)
    assert ids(data) == ["bath_0001/rgb_00001.jpg", "kitchen_0003/rgb_00009.jpg", "kitchen_0003/rgb_00010.jpg"]
    values = [data.target(i) for i in range(2)]
    assert [float(v.values.max()) for v in values if isinstance(v, Field)] == [1.0, 9.0]
    assert ids(opened(source.but(blocks=(0.0, 0.34)), tmp_path)) == ["bath_0001/rgb_00001.jpg"]
    for text, word in (
        ("", "the list of pairs is empty"),
        ("bath_0001/rgb_00001.jpg\n", "line 1"),
        ("\nbath_0001/rgb_00001.jpg gone.png\n", "line 2"),
        (f"{tmp_path}/x.jpg bath_0001/sync_depth_00001.png", "does not name"),
        ("../sync/bath_0001/rgb_00001.jpg bath_0001/sync_depth_00001.png", "does not name"),
        ("bath_0001/rgb_00001.jpg bath_0001/sync_depth_00001.png\n" * 2, "listed twice"),
    ):
        (tmp_path / "nyu/train.txt").write_text(text)
        assert word in problem(source, tmp_path), text
    with pytest.raises(ValidationError, match="leave out `ids`"):
        DepthPairs(head="h", images="i", depths="d", pairs="p", ids="x")


def test_diode_normals(tmp_path: Path) -> None:
    stem = "00010_00090_outdoor_050_000"
    folder = tmp_path / "diode/train/outdoor/scene_00010/scan_00090"
    image(folder / f"{stem}.png")
    stored = np.zeros((12, 16, 3), np.float32)
    stored[:6] = 0, 0.6, 0.8  # y up, z towards the camera: a slope that rises away
    stored[6:] = 0, 1, 0  # the ground
    stored[0, 0] = 0
    mask = np.ones((12, 16), np.float32)
    mask[3, 3] = 0
    np.save(folder / f"{stem}_normal.npy", stored)
    np.save(folder / f"{stem}_depth.npy", np.ones((12, 16, 1), np.float32))
    np.save(folder / f"{stem}_depth_mask.npy", mask)
    source = NormalPairs(
        head="h",
        images="diode/train/outdoor",
        normals="diode/train/outdoor",
        label_suffix="_normal",
        mask_suffix="_depth_mask",
        negate="yz",
    )
    data = opened(source, tmp_path)
    assert ids(data) == [f"scene_00010/scan_00090/{stem}.png"]
    normals = data.target(0)
    assert isinstance(normals, Vectors)
    assert torch.allclose(normals.values[:, 1, 1], torch.tensor([0, -0.6, -0.8]))
    assert torch.equal(normals.values[:, 8, 1], torch.tensor([0.0, -1, 0]))
    assert (~normals.valid).nonzero().tolist() == [[0, 0], [3, 3]]
    assert normals.values[:, 3, 3].tolist() == [0, 0, 0]
    assert data.mended(0) == []
    stored[6:] = 0, 0.6, 0.8
    np.save(folder / f"{stem}_normal.npy", stored)
    assert opened(source, tmp_path).mended(0) == []
    (fault,) = opened(source.but(negate=""), tmp_path).mended(0)
    assert "face away from the camera" in fault.problem
    np.save(folder / f"{stem}_depth_mask.npy", mask[:6])
    with pytest.raises(UserError, match="another size than its label"):
        opened(source, tmp_path).target(0)
    (folder / f"{stem}_depth_mask.npy").unlink()
    assert "have no validity mask" in problem(source, tmp_path)
