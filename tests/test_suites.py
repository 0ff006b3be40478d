"""The named suites: the papers' figures, the parts that choose and test, and sets that open where the files lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_downstream_readers import aircraft, cifar, food, ids, image, nyu, pets, textures, voc

from tutelage.data import Join, Scenes
from tutelage.data.source import Dataset, Place
from tutelage.downstream import TransferSet
from tutelage.errors import UserError
from tutelage.part import override, parse, to_yaml, yaml_to_plain
from tutelage.recipe import Recipe
from tutelage.recipes import RECIPES
from tutelage.recipes.suites import (
    SUITES,
    VOC_THINGS,
    must_scenes_suite,
    must_suite,
    recipe_keys,
    xlearner_scenes_suite,
    xlearner_suite,
)
from tutelage.types import Boxes, Field, Label, Mask, Vectors


def parts(entry: TransferSet, root: Path) -> list[Dataset]:
    place = Place(root, root / "cache")
    classes = entry.head.classes
    return [getattr(entry, part).open(part, place, classes) for part in ("train", "validation", "test")]


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_is_a_recipe_in_text(name: str) -> None:
    suite = SUITES[name]()
    recipe = Recipe(name="r", method="transfer", transfer=suite)
    again = parse(Recipe, yaml_to_plain(to_yaml(recipe.plain())))
    assert again.fingerprint() == recipe.fingerprint()
    assert list(again.transfer) == list(suite)
    for entry in suite.values():  # no two parts can be the same images
        assert len({part.fingerprint() for part in (entry.train, entry.validation, entry.test)}) == 3


def test_the_must_suite_is_that_of_appendix_b3() -> None:
    ends = (0.005, 0.32)
    for name, size, batch, steps, rates, jitter in (
        ("CIFAR-100", 256, 512, (5_000, 20_000), ends, (1.0, 1.0)),
        ("Pascal detection", 896, 32, (5_000, 20_000), ends, (0.5, 2.0)),
        ("Pascal segmentation", 512, 64, (5_000, 20_000), ends, (0.5, 2.0)),
        ("NYU depth", 640, 64, (10_000, 40_000), ends, (0.5, 2.0)),
        ("ADE segmentation", 512, 64, (5_000, 20_000), ends, (0.5, 2.0)),  # ours: the appendix leaves it out
        ("DIODE normals", 768, 32, (20_000, 80_000), (0.01, 0.16), (0.5, 2.0)),
    ):
        entry = must_suite()[name]
        assert entry.finetuning is not None
        training = entry.finetuning.training
        assert (entry.size, training.batch, training.augment.scale) == (size, batch, jitter), name
        assert (min(entry.finetuning.steps), max(entry.finetuning.steps)) == steps
        assert (min(entry.finetuning.rates), max(entry.finetuning.rates)) == rates
        np.testing.assert_allclose(np.diff(np.log2(entry.finetuning.rates)), 1)
        assert (training.weight_decay, training.schedule, training.optimiser) == (1e-4, "cosine", "sgd")
        assert entry.by == ("fine-tuning",)


def test_the_xlearner_suite_is_that_of_section_4_2() -> None:
    suite = xlearner_suite()
    probed = {name: entry for name, entry in suite.items() if entry.by == ("linear-probe",)}
    assert len(probed) == 10
    assert {entry.size for entry in probed.values()} == {224}
    for name, steps, rates in (
        ("Pascal detection", 24_000, (0.001, 0.05)),
        ("Pascal segmentation", 33_000, (0.001, 0.07)),
    ):
        finetuning = suite[name].finetuning
        assert finetuning is not None
        assert finetuning.steps == (steps,)
        assert (finetuning.rates[0], finetuning.rates[-1]) == rates
        np.testing.assert_allclose(np.diff(np.log(finetuning.rates)), np.log(rates[1] / rates[0]) / 4, rtol=0.05)
        training = finetuning.training
        assert (training.batch, training.momentum, training.weight_decay) == (16, 0.9, 1e-4)
    assert suite["Pascal segmentation"].head.task == "deeplab"
    assert suite["Pascal segmentation"].size == 513
    assert suite["Pascal detection"].head.task == "detection"


def segmentation(root: Path) -> None:
    base = root / "VOCdevkit/VOC2012"
    stems = [f"2009_{n:06d}" for n in range(12)]
    (base / "SegmentationClass").mkdir()
    (base / "ImageSets/Segmentation").mkdir()
    for stem in stems:
        image(base / f"JPEGImages/{stem}.jpg")
        Image.fromarray(np.full((12, 16), 20, np.uint8)).convert("P").save(base / f"SegmentationClass/{stem}.png")
    (base / "ImageSets/Segmentation/train.txt").write_text("\n".join(stems[:10]))
    (base / "ImageSets/Segmentation/val.txt").write_text("\n".join(stems[10:]))


def ade(root: Path) -> None:
    base = root / "ADEChallengeData2016"
    for split, count in (("training", 20), ("validation", 2)):
        (base / "annotations" / split).mkdir(parents=True)
        for number in range(count):
            image(base / f"images/{split}/{number}.jpg")
            Image.fromarray(np.full((12, 16), 3, np.uint8)).save(base / f"annotations/{split}/{number}.png")
    rows = [f"{k}\t0.1\t1\t1\tthing {k}" for k in range(1, 151)]
    (base / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n" + "\n".join(rows))


def diode(root: Path) -> None:
    for split, count in (("train", 20), ("val", 1)):
        for number in range(count):
            folder = root / f"diode/{split}/outdoor/scene_0000{number % 2}/scan_00000"
            image(folder / f"{number:03d}.png")
            np.save(folder / f"{number:03d}_normal.npy", np.full((12, 16, 3), [0, 0, 1], np.float32))
            np.save(folder / f"{number:03d}_depth_mask.npy", np.ones((12, 16), np.float32))


def walks(root: Path) -> None:
    nyu(root)
    rows = [f"sync/{s}/rgb_{n}.jpg sync/{s}/sync_depth_{n}.png" for s, n in (("kitchen_0003", "00009"),)]
    (root / "nyu/test.txt").write_text("\n".join(rows))
    for number in range(20):
        image(root / f"nyu/a/rgb_{number}.jpg")
        Image.fromarray(np.full((12, 16), 2000, np.uint16)).save(root / f"nyu/a/sync_depth_{number}.png")
    (root / "nyu/train.txt").write_text("\n".join(f"a/rgb_{n}.jpg a/sync_depth_{n}.png" for n in range(20)))


def test_the_must_suite_opens_sets_as_they_are_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar(tmp_path, monkeypatch, fine=True, count=40)
    objects = {f"{n:06d}": [(VOC_THINGS[n], 0)] for n in range(20)}
    base = voc(tmp_path, 2007, objects)
    (base / "ImageSets/Main/trainval.txt").write_text("\n".join(list(objects)[:15]))
    (base / "ImageSets/Main/test.txt").write_text("\n".join(list(objects)[15:]))
    voc(tmp_path, 2012, {f"2008_{n:06d}": [("dog", 0)] for n in range(10)})
    for make in (segmentation, ade, diode, walks):
        make(tmp_path)
    for name, entry in must_suite().items():
        opened = parts(entry, tmp_path)
        train, validation, test = ({dataset.file(i) for i in range(len(dataset))} for dataset in opened)
        assert len(train | validation | test) == sum(map(len, opened)), name
        assert min(len(train), len(validation), len(test)) > 0, name
        assert len({dataset.space for dataset in opened}) == 1, name  # one label space
        for dataset in opened:
            assert dataset.head == name
            target = dataset.target(0)
            assert isinstance(target, entry.head.kind), name
            assert isinstance(target, Label | Boxes | Mask | Field | Vectors)
    detection, masks = (must_suite()[f"Pascal {word}"] for word in ("detection", "segmentation"))
    opened = parts(detection, tmp_path)
    assert [len(dataset) for dataset in opened] == [14 + 9, 1 + 1, 5]
    assert opened[0].space is not None
    assert opened[0].space.names == VOC_THINGS
    assert parts(masks, tmp_path)[0].target(0).ids.unique().tolist() == [20]  # type: ignore[union-attr]
    walked = parts(must_suite()["NYU depth"], tmp_path)
    assert ids(walked[0])[-1] == "a/rgb_18.jpg"
    assert ids(walked[1]) == ["a/rgb_19.jpg"]
    assert parts(must_suite()["DIODE normals"], tmp_path)[0].target(0).values[:, 0, 0].tolist() == [0, 0, -1]  # type: ignore[union-attr]


def test_the_probe_sets_open_as_torchvision_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar(tmp_path, monkeypatch, fine=False)
    for make in (food, aircraft, pets):
        make(tmp_path)
    textures(tmp_path)
    for file in (tmp_path / "dtd/dtd/labels").iterdir():
        file.rename(file.with_name(file.name.replace("3", "1")))
    for name in ("CIFAR10", "Food101", "FGVCAircraft", "OxfordIIITPet", "DTD"):
        entry = xlearner_suite()[name]
        place = Place(tmp_path, tmp_path / "cache")
        train, test = entry.train.open(name, place), entry.test.open(name, place)
        assert not {train.file(i) for i in range(len(train))} & {test.file(i) for i in range(len(test))}
        assert train.space == test.space
    moved = xlearner_suite(str(tmp_path))["Food101"].test.open("x", Place(Path("/nowhere"), tmp_path / "cache"))
    assert len(moved) == 4


def test_the_twins_are_of_the_asked_size_and_apart(tmp_path: Path) -> None:
    for suite, count in ((must_scenes_suite(16, 4), 6), (xlearner_scenes_suite(16, 4), 9)):
        assert len(suite) == count
        for name, entry in suite.items():
            ranges = []
            for part in (entry.train, entry.validation, entry.test):
                assert isinstance(part, Scenes)
                assert part.size == 16
                ranges.append(set(range(part.first, part.first + part.images)))
            assert sum(map(len, ranges)) == len(set.union(*ranges)), name
    assert must_scenes_suite(16, 10)["few masks"].train.images == 3  # type: ignore[attr-defined]
    entry = xlearner_scenes_suite(16, 4)["segmentation"]
    train, _, _ = parts(entry, tmp_path)
    assert isinstance(train.target(0), Mask)
    assert isinstance(must_suite()["Pascal detection"].train, Join)


def test_what_all_sets_share_is_said_once() -> None:
    whole = recipe_keys(must_scenes_suite(16, 4))
    assert {part.finetuning for part in whole["transfer"].values()} == {None}
    assert whole["finetuning"] == must_scenes_suite()["depth"].finetuning
    probed = recipe_keys(xlearner_scenes_suite(16, 4))
    assert {part.finetuning for part in probed["transfer"].values()} == {None}
    assert recipe_keys(must_suite()) == {"transfer": must_suite()}  # batches and steps of their own
    only = {"a": xlearner_suite()["DTD"]}
    assert recipe_keys(only) == {"transfer": only}


@pytest.mark.parametrize(("suite", "pyramid"), [(must_suite, "loaded"), (xlearner_suite, "fresh")])
def test_all_rows_of_a_suite_have_their_pyramid_from_one_place(suite, pyramid) -> None:
    tuned = {name: part.finetuning for name, part in suite().items() if "fine-tuning" in part.by}
    assert "NYU depth" in tuned
    assert {name: way.pyramid for name, way in tuned.items()} == dict.fromkeys(tuned, pyramid)


def test_a_finetuning_that_no_set_reads_is_refused() -> None:
    plain = RECIPES["must-table2-paper"]().plain()
    with pytest.raises(UserError, match="nobody reads it"):
        parse(Recipe, override(plain, ["finetuning.pyramid=fresh"]), "x.yaml")
    mine = override(plain, ["transfer.NYU depth.finetuning.pyramid=fresh"])
    assert parse(Recipe, mine, "x.yaml").transfer["NYU depth"].finetuning.pyramid == "fresh"
