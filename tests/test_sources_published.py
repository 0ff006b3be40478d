"""The sources of X-Learner's table 1, on tiny sets laid out like the originals, and against torchvision's readers."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from test_downstream_readers import class_name, content, ids, image, opened, problem, reference
from test_suites import ade

from tutelage.data import ClassPaths, CocoBoxes, Folders, Masks, WiderFace
from tutelage.data.source import Dataset, Place
from tutelage.errors import UserError
from tutelage.kinds import AnySource
from tutelage.part import yaml_to_plain
from tutelage.recipes.xlearner_paper import (
    COCO_STUFF,
    heads,
    held_out,
    more_sources,
    segmentation_sources,
    sources,
)
from tutelage.tasks import TASKS
from tutelage.types import Boxes, Mask

DOCS = Path(__file__).parent.parent / "docs" / "suites.md"


def names(data: Dataset) -> tuple[str, ...]:
    assert data.space is not None
    return data.space.names


def classes_of(data: Dataset) -> list[str]:
    return [class_name(data, i) for i in range(len(data))]


# --- Places365

PLACES = ClassPaths(
    head="h",
    images="places365/data_large",
    list="places365/places365_train_challenge.txt",
    classes="places365/categories_places365.txt",
)
SCENES = ("/a/airfield", "/a/apartment_building/outdoor", "/b/bakery/shop")


def places(root: Path) -> None:
    base = root / "places365"
    rows = []
    for number, label in enumerate(SCENES):
        for image_number in (3 - number, 12):  # 12 before 3 in no order but that of the list
            rows.append(f"{label}/{image_number:08d}.jpg {number}")
            for size in ("large", "256"):
                image(base / f"data_{size}{label}/{image_number:08d}.jpg")
    (base / "places365_train_challenge.txt").write_text("\n".join(reversed(rows)) + "\n")
    for number in range(1, 4):
        image(base / f"val_large/Places365_val_{number:08d}.jpg")
    (base / "places365_val.txt").write_text("".join(f"Places365_val_{n:08d}.jpg {n % 3}\n" for n in range(1, 4)))
    (base / "categories_places365.txt").write_text("".join(f"{label} {n}\n" for n, label in enumerate(SCENES)))


def test_places_is_what_torchvision_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    places(tmp_path)
    base = tmp_path / "places365"
    known = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in base.glob("*.txt")}
    lists = {split: (file, known.get(file, "")) for split, (file, _) in datasets.Places365._FILE_LIST_META.items()}
    monkeypatch.setattr(datasets.Places365, "_FILE_LIST_META", lists)
    meta = ("categories_places365.txt", known["categories_places365.txt"])
    monkeypatch.setattr(datasets.Places365, "_CATEGORIES_META", meta)
    (base / "data_large_challenge").symlink_to(base / "data_large")  # the name that torchvision gives it
    data = opened(PLACES, tmp_path)
    assert names(data) == SCENES
    assert content(data) == reference(datasets.Places365(base, "train-challenge"))
    assert ids(data)[:2] == ["b/bakery/shop/00000012.jpg", "b/bakery/shop/00000001.jpg"]  # the list's order
    assert classes_of(data)[:3] == ["/b/bakery/shop"] * 2 + ["/a/apartment_building/outdoor"]
    assert data.faults == []
    val = PLACES.but(images=Path("places365/val_large"), list=Path("places365/places365_val.txt"))
    data = opened(val, tmp_path)
    assert content(data) == reference(datasets.Places365(base, "val"))
    assert classes_of(data) == [SCENES[1], SCENES[2], SCENES[0]]
    assert names(data) == SCENES
    small = opened(PLACES.but(images=Path("places365/data_256")), tmp_path)
    assert ids(small) == ids(opened(PLACES, tmp_path))
    mapped = opened(PLACES, tmp_path, (*reversed(SCENES), "/z/zoo"))
    assert classes_of(mapped) == classes_of(small)
    assert [fault.record for fault in mapped.faults] == ["/z/zoo"]
    with pytest.raises(UserError, match="'/a/airfield' is not in the head's label space"):
        opened(PLACES, tmp_path, SCENES[1:])


def test_numbers_of_a_list_mean_the_numbers_of_the_names(tmp_path: Path) -> None:
    places(tmp_path)
    file = tmp_path / "places365/categories_places365.txt"
    by_number = classes_of(opened(PLACES, tmp_path))
    file.write_text("".join(f"{label} {n}\n" for n, label in reversed([*enumerate(SCENES)])))
    assert classes_of(opened(PLACES, tmp_path)) == by_number
    file.write_text("first\nsecond class\nBoeing 737\n")  # names alone, one of which ends in a number
    assert names(opened(PLACES, tmp_path)) == ("first", "second class", "Boeing 737")
    assert names(opened(PLACES.but(classes=("a", "b", "c", "d")), tmp_path)) == ("a", "b", "c", "d")
    for text, word in (
        ("a 0\nb 2\nc 3\n", "not numbered from 0 to 2"),
        ("a 0\nb 1\n", "has no name: there are 2"),
        ("", "has no name: there are 0"),
        ("a\na\nb\n", "stands twice"),
    ):
        file.write_text(text)
        assert word in problem(PLACES, tmp_path), text


def test_a_list_keeps_its_order_and_is_cut_class_by_class(tmp_path: Path) -> None:
    rows = [f"x{n % 2}/{n}.png {n % 2}" for n in range(40)]
    for row in rows:
        image(tmp_path / "set" / row.split()[0], 8, 8)
    (tmp_path / "list.txt").write_text("\r\n".join(rows))
    whole = ClassPaths(head="h", images="set", list="list.txt", classes=("even", "odd"))
    assert ids(opened(whole, tmp_path)) == [row.split()[0] for row in rows]
    left, right = (opened(whole.but(part=part), tmp_path) for part in ((0, 0.8), (0.8, 1)))
    assert sorted(classes_of(left)) == ["even"] * 16 + ["odd"] * 16
    assert sorted(ids(left) + ids(right)) == sorted(ids(opened(whole, tmp_path)))
    few = opened(whole.but(exclude=("x0/0",), limit=3), tmp_path)
    assert len(few) == 3
    assert "x0/0.png" not in ids(opened(whole.but(exclude=("x0/0",)), tmp_path))
    again = pickle.loads(pickle.dumps(few))
    assert content(again) == content(few)
    assert again.listing(0, 3) == few.listing(0, 3)


def test_lists_that_cannot_be_read_say_where(tmp_path: Path) -> None:
    places(tmp_path)
    file = tmp_path / "places365/places365_train_challenge.txt"
    good = file.read_text()
    for text, words in (
        ("\n \n", ["the list is empty", str(file)]),
        (good + "/a/airfield/00000012.jpg\n", ["line 7", "not a path and the number of its class", "12.jpg"]),
        (good + "/a/airfield/00000012.jpg 1\n", ["line 7", "listed twice"]),
        (good + "/../x.jpg 1\n", ["line 7", "leads out of the folder"]),
        (good + "C:/x.jpg 1\n", ["line 7", "leads out of the folder"]),
        ("\n" + good.replace(" 2", " 3"), ["line 2", "has no name: there are 3"]),
        (good + "/a/airfield/9.jpg 1\n/n/none/1.jpg 0", ["2 of 8", "a/airfield/9.jpg", "n/none/1.jpg", "data_large"]),
    ):
        file.write_text(text)
        said = problem(PLACES, tmp_path)
        assert "source 'mine'" in said
        for word in words:
            assert word in said, text
    for field in ("images", "list", "classes"):
        assert f"for `{field}`" in problem(PLACES.but(**{field: Path("places365/nothing")}), tmp_path)
    file.write_bytes(b"\xff\xfe 0")
    assert "not UTF-8" in problem(PLACES, tmp_path)
    for options, word in (
        ({"list": "l"}, "either `classes`"),
        ({"list": "l", "classes": "c", "folders": 1}, "either `classes`"),
        ({"classes": ("a",)}, "numbers in a `list`"),
        ({"folders": 0}, "greater than or equal to 1"),
    ):
        with pytest.raises(ValidationError, match=word):
            ClassPaths(head="h", images="i", **options)


# --- iNaturalist 2021

SPECIES = (
    "00000_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae_Lumbricus_terrestris",
    "00001_Animalia_Arthropoda_Arachnida_Araneae_Agelenidae_Eratigena_duellica",
    "00002_Plantae_Tracheophyta_Magnoliopsida_Rosales_Rosaceae_Rosa_canina",
)


def species(root: Path) -> None:
    for split in ("train", "val"):
        for label in SPECIES:
            for letter in "ab":
                image(root / f"inat2021/{split}/{label}/{letter}0f2.jpg")


def test_inaturalist_is_what_torchvision_says(tmp_path: Path) -> None:
    from torchvision import datasets

    species(tmp_path)
    (tmp_path / "inat2021/2021_train").symlink_to(tmp_path / "inat2021/train")  # torchvision's name of it
    data = opened(Folders(head="h", root="inat2021/train"), tmp_path)
    theirs = datasets.INaturalist(tmp_path / "inat2021", "2021_train")
    assert list(names(data)) == theirs.all_categories
    theirs.classes = theirs.all_categories
    assert content(data) == reference(theirs)
    assert [ids(data)[i].split("_")[0] for i in range(6)] == [f"{n:05d}" for n in (0, 0, 1, 1, 2, 2)]


# --- CompCars and Tsinghua Dogs


def compcars(root: Path, images: int = 3) -> None:
    base = root / "compcars/data"
    for model in ("78/3", "78/12", "9/101"):
        for number in range(images):
            stem = f"{model}/{2009 + number % 2}/{number:x}f{model[-1]}"
            image(base / f"image/{stem}.jpg")
            (base / f"label/{stem}").parent.mkdir(parents=True, exist_ok=True)
            (base / f"label/{stem}.txt").write_text("4\n1\n1 1 14 10 \n")
    (base / "misc").mkdir()
    (base / "misc/make_model_name.mat").write_bytes(b"MATLAB 5.0")
    lists = base / "train_test_split/classification"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("78/3/2010/1f3.jpg\n9/101/2009/0f1.jpg\n78/3/2009/0f3.jpg\n")
    (lists / "test.txt").write_text("9/101/2010/1f1.jpg\n78/3/2009/2f3.jpg\n")


def test_compcars_are_models_by_the_folders(tmp_path: Path) -> None:
    compcars(tmp_path)
    every = ClassPaths(head="h", images="compcars/data/image", folders=2)
    data = opened(every, tmp_path)
    assert names(data) == ("9/101", "78/3", "78/12")  # numbers by their value
    assert len(data) == 9
    assert classes_of(data) == ["/".join(id.split("/")[:2]) for id in ids(data)]
    image(tmp_path / "compcars/data/image/sample.jpg")
    (tmp_path / "compcars/data/image/9/list.txt").write_text("")
    stray = opened(every, tmp_path)
    assert ids(stray) == ids(data)
    assert sorted(fault.value for fault in stray.faults) == ["1", "1"]  # an image above the models; a text file
    lists = Path("compcars/data/train_test_split/classification")
    train, test = (opened(every.but(list=lists / f"{split}.txt"), tmp_path) for split in ("train", "test"))
    assert ids(train) == ["78/3/2010/1f3.jpg", "9/101/2009/0f1.jpg", "78/3/2009/0f3.jpg"]
    assert classes_of(train) == ["78/3", "9/101", "78/3"]
    assert names(train) == names(test) == ("9/101", "78/3")
    makes = opened(every.but(folders=1), tmp_path)
    assert names(makes) == ("9", "78")
    (tmp_path / lists / "train.txt").write_text("78/3/2010/1f3.jpg\nsample.jpg\n")
    text = problem(every.but(list=lists / "train.txt"), tmp_path)
    assert "line 2" in text
    assert "not 2 folders deep" in text
    assert "not 9 folders deep" in problem(every.but(folders=9), tmp_path)
    (tmp_path / "empty").mkdir()
    assert "there is no image" in problem(every.but(images=Path("empty")), tmp_path)


BREEDS = {"1160-n000003-Siberian_husky": 2, "200-n000008-Airedale": 3, "1043-n000001-Shiba_Dog": 2}


def dogs(root: Path) -> None:
    base = root / "tsinghua-dogs"
    (base / "TrainAndValList").mkdir(parents=True)
    rows = [f"{breed}/n10{k}{n}.jpg" for k, (breed, count) in enumerate(BREEDS.items()) for n in range(count)]
    for row in rows:
        image(base / "low-resolution" / row)
        (base / "Low-Annotations" / row).parent.mkdir(parents=True, exist_ok=True)
        (base / "Low-Annotations" / f"{row}.xml").write_text("<annotation/>")
    for split, part in (
        ("train", [r for r in rows if r[-5] != "0"]),
        ("validation", [r for r in rows if r[-5] == "0"]),
    ):
        text = "\ufeff" + "".join(f".//{row}\n" for row in part)  # with a byte order mark, as it is published
        (base / f"TrainAndValList/{split}.lst").write_text(text, encoding="utf-8")


def test_tsinghua_dogs_are_breeds_by_the_folders(tmp_path: Path) -> None:
    dogs(tmp_path)
    base = Path("tsinghua-dogs")
    source = ClassPaths(head="h", images=base / "low-resolution", list=base / "TrainAndValList/train.lst", folders=1)
    train = opened(source, tmp_path)
    test = opened(source.but(list=base / "TrainAndValList/validation.lst"), tmp_path)
    husky, airedale, shiba = BREEDS
    assert names(train) == names(test) == (airedale, shiba, husky)  # by the counts that begin them
    assert ids(train) == [
        "1160-n000003-Siberian_husky/n1001.jpg",
        "200-n000008-Airedale/n1011.jpg",
        "200-n000008-Airedale/n1012.jpg",
        "1043-n000001-Shiba_Dog/n1021.jpg",
    ]
    assert classes_of(train) == [id.split("/")[0] for id in ids(train)]
    assert len(test) == 3
    (tmp_path / base / "low-resolution/200-n000008-Airedale/n1012.jpg").unlink()
    text = problem(source, tmp_path)
    assert "1 of 4, such as 200-n000008-Airedale/n1012.jpg" in text
    assert "train.lst" in text


# --- WIDER FACE

FACES = WiderFace(head="h", root="widerface", split="train")
# x y width height blur expression illumination invalid occlusion pose
PARADE = """\
0--Parade/0_Parade_marchingband_1_849.jpg
1
4 3 12 9 0 0 1 0 0 1 
0--Parade/0_Parade_Parade_0_452.jpg
0
0 0 0 0 0 0 0 0 0 0 
0--Parade/0_Parade_Parade_0_53.jpg
5
2 1 5 6 2 0 0 0 2 0 
10 4 3 4 1 0 0 1 0 0 
7 7 0 4 0 0 0 0 0 0 
28 20 9 9 0 0 0 0 1 0 
-2 -1 6 5 0 0 0 1 0 0 
"""  # noqa: W291 - so they are


def faces(root: Path, text: str = PARADE) -> None:
    base = root / "widerface"
    (base / "wider_face_split").mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        (base / f"wider_face_split/wider_face_{split}_bbx_gt.txt").write_text(text)
        for line in text.splitlines():
            if line.endswith(".jpg"):
                image(base / f"WIDER_{split}/images/{line}", 32, 24)


def test_wider_face(tmp_path: Path) -> None:
    from torchvision import datasets

    faces(tmp_path)
    (tmp_path / "widerface/WIDER_test").mkdir()  # without it, torchvision reads nothing
    data = opened(FACES, tmp_path)
    parade = "0--Parade/0_Parade_"
    order = [f"{parade}Parade_0_53.jpg", f"{parade}Parade_0_452.jpg", f"{parade}marchingband_1_849.jpg"]
    assert ids(data) == order  # 53 before 452
    assert names(data) == ("face",)
    theirs = {
        Path(info["img_path"]).name: info["annotations"]["bbox"] for info in datasets.WIDERFace(tmp_path).img_info
    }
    for index, id in enumerate(order):
        target = data.target(index)
        assert isinstance(target, Boxes)
        box = theirs[Path(id).name].float()
        box[:, 2:] += box[:, :2]
        for side, limit in enumerate((32, 24, 32, 24)):
            box[:, side].clamp_(0, limit)
        whole = box[(box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])]  # not the one without width
        assert target.boxes.tolist() == whole.tolist()
        assert set(target.classes.tolist()) <= {0}
    many, none, one = (data.target(i) for i in range(3))
    assert many.ignore.tolist() == [False, True, False, True]  # type: ignore[union-attr] - the eighth column
    assert one.ignore.tolist() == [False]  # type: ignore[union-attr] - its third and last marks are no such thing
    assert len(none) == 0  # type: ignore[arg-type] - labelled, nobody there
    said = [(fault.record, fault.problem, fault.outcome) for fault in data.faults]
    assert said == [
        ("line 11", "the box has no area", "dropped"),
        ("line 12", "the box is partly outside the image", "clipped"),
        ("line 13", "the box is partly outside the image", "clipped"),
    ]
    text = problem(FACES.but(strict=True), tmp_path)
    assert "line 11" in text
    assert "[7.0, 7.0, 7.0, 11.0] in an image of 32 x 24" in text
    assert ids(opened(FACES.but(exclude=(order[0],)), tmp_path)) == order[1:]
    person = opened(FACES, tmp_path, ("hand", "face"))
    assert person.target(0).classes.tolist() == [1] * 4  # type: ignore[union-attr]
    assert pickle.loads(pickle.dumps(data)).target(0).boxes.tolist() == many.boxes.tolist()  # type: ignore[union-attr]


def test_wider_face_without_a_line_of_zeros_or_with_a_broken_image(tmp_path: Path) -> None:
    faces(tmp_path, PARADE.replace("0 0 0 0 0 0 0 0 0 0 \n", ""))
    (tmp_path / "widerface/WIDER_train/images/0--Parade/0_Parade_marchingband_1_849.jpg").write_bytes(b"no image")
    data = opened(FACES, tmp_path)
    assert [len(data.target(i)) for i in range(3)] == [4, 0, 1]  # type: ignore[arg-type]


def test_text_that_is_not_wider_faces_says_where(tmp_path: Path) -> None:
    assert "for `root`" in problem(FACES, tmp_path)
    faces(tmp_path)
    for text, words in (
        ("", ["no image is listed"]),
        ("WIDER FACE v2\n3\n", ["line 1", "the path of an image", "WIDER FACE v2"]),
        (PARADE.replace("\n1\n", "\nx\n"), ["line 2", "how many faces", "'x'"]),
        (PARADE.replace("\n1\n", "\n2\n"), ["line 4", "ten whole numbers", "0_452.jpg"]),
        (PARADE.replace("\n5\n", "\n4\n"), ["line 13", "the path of an image", "-2 -1 6 5"]),
        (PARADE.replace("\n5\n", "\n6\n"), ["line 14", "ten whole numbers", "the end of the file"]),
        (PARADE.replace("2 1 5 6 2 0 0 0 2 0", "2 1 5 6 2 0 0 0 2"), ["line 9", "ten whole numbers"]),
        (PARADE.replace("2 1 5 6", "2 1 5.5 6"), ["line 9", "5.5"]),
        (PARADE[: PARADE.index("1\n")], ["line 2", "how many faces", "the end of the file"]),
        (PARADE + PARADE, ["listed twice", "0_53.jpg"]),
        (PARADE.replace("_53.jpg", "_54.jpg"), ["1 of 3", "0_54.jpg", "unpack WIDER_train.zip"]),
        (PARADE.replace("0--Parade/0_Parade_Parade_0_53", "../x"), ["1 of 3", "../x.jpg"]),
    ):
        (tmp_path / "widerface/wider_face_split/wider_face_train_bbx_gt.txt").write_text(text)
        said = problem(FACES, tmp_path)
        assert "wider_face_train_bbx_gt.txt" in said
        for word in words:
            assert word in said, text
    (tmp_path / "widerface/wider_face_split/wider_face_val_bbx_gt.txt").unlink()
    assert "wider_face_val_bbx_gt.txt" in problem(FACES.but(split="val"), tmp_path)
    (tmp_path / "widerface/WIDER_val").rename(tmp_path / "widerface/elsewhere")
    assert "the images of split 'val'" in problem(FACES.but(split="val"), tmp_path)
    with pytest.raises(ValidationError, match="'train' or 'val'"):
        WiderFace(head="h", root="widerface", split="test")


# --- COCO, Objects365 and COCO-Stuff


def boxes_json(file: Path, paths: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    plain = {
        "images": [{"id": n, "file_name": path, "width": 16, "height": 12} for n, path in enumerate(paths)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1 + n % 2, "bbox": [1.5, 2, 4 + n, 5], "iscrowd": 0, "isfake": 0}
            for n in range(len(paths))
        ],
        "categories": [{"id": 2, "name": "Sneakers"}, {"id": 1, "name": "Person"}],
        "licenses": [{"name": None, "url": None, "id": 1}],
    }
    file.write_text(json.dumps(plain))


def test_objects365_is_plain_coco_with_the_patches_of_its_paths(tmp_path: Path) -> None:
    base = tmp_path / "objects365"
    stated = ["images/v1/patch8/objects365_v1_00420917.jpg", "images/v2/patch16/objects365_v2_00908725.jpg"]
    boxes_json(base / "annotations/zhiyuan_objv2_train.json", stated)
    for path in stated:
        image(base / "train" / path)  # as the authors' own addresses lay it
    source = CocoBoxes(head="h", images=base / "train", annotations=base / "annotations/zhiyuan_objv2_train.json")
    data = opened(source, tmp_path)
    assert ids(data) == stated
    assert names(data) == ("Person", "Sneakers")
    targets = [data.target(i) for i in range(2)]
    assert [t.boxes.tolist() for t in targets] == [[[1.5, 2, 5.5, 7]], [[1.5, 2, 6.5, 7]]]  # type: ignore[union-attr]
    assert [t.classes.tolist() for t in targets] == [[0], [1]]  # type: ignore[union-attr]
    for path in stated:  # patches right below the folder, and links beside it, as docs/suites.md says
        image(tmp_path / "flat/train" / "/".join(path.split("/")[2:]))
    (tmp_path / "links/images").mkdir(parents=True)
    for version in ("v1", "v2"):
        (tmp_path / f"links/images/{version}").symlink_to(tmp_path / "flat/train")
    assert ids(opened(source.but(images=tmp_path / "links"), tmp_path)) == stated
    assert "objects365_v1_00420917.jpg" in problem(source.but(images=tmp_path / "flat/train"), tmp_path)


def stuff(root: Path) -> None:
    for split in ("train2017", "val2017"):
        for number in (9, 25):
            image(root / f"coco/{split}/{number:012d}.jpg")
            stored = np.full((12, 16), 255, np.uint8)
            stored[:6], stored[6:9] = 181, number
            (root / f"coco/stuffthingmaps/{split}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(stored).save(root / f"coco/stuffthingmaps/{split}/{number:012d}.png")


def test_coco_stuff_counts_its_pixels_from_zero(tmp_path: Path) -> None:
    from torchvision.models._meta import _COCO_CATEGORIES

    stuff(tmp_path)
    source = segmentation_sources()["stuff"]
    data = opened(source, tmp_path)
    assert names(data) == COCO_STUFF
    mask = data.target(0)
    assert isinstance(mask, Mask)
    assert mask.ids[::3, 0].tolist() == [181, 181, 9, 255]
    assert (COCO_STUFF[181], COCO_STUFF[9]) == ("wood", "traffic light")
    # The things have the ids of COCO, less one; those that COCO never labelled lie between.
    assert len(COCO_STUFF) == len(set(COCO_STUFF)) == 182
    for id, name in enumerate(_COCO_CATEGORIES):
        if id and name != "N/A":
            assert COCO_STUFF[id - 1] == name
    silent = {COCO_STUFF[id - 1] for id, name in enumerate(_COCO_CATEGORIES) if name == "N/A"} | {COCO_STUFF[90]}
    assert silent == {
        *("blender", "desk", "door", "eye glasses", "hair brush", "hat"),
        *("mirror", "plate", "shoe", "street sign", "window"),
    }
    assert list(COCO_STUFF[91:]) == sorted(COCO_STUFF[91:])  # the stuff is in alphabetical order
    assert (COCO_STUFF[91], COCO_STUFF[109], COCO_STUFF[156]) == ("banner", "desk-stuff", "sky-other")
    # labels.txt counts from 1; the command in docs/suites.md makes names of it.
    (tmp_path / "labels.txt").write_text("".join(f"{n}: {name}\n" for n, name in enumerate(("unlabeled", *COCO_STUFF))))
    (line,) = [line for line in DOCS.read_text().splitlines() if line.startswith("python -c")]
    made = subprocess.run([sys.executable, "-c", line.split('"')[1]], cwd=tmp_path, capture_output=True, check=True)
    (tmp_path / "stuff.json").write_bytes(made.stdout)
    assert isinstance(source, Masks)
    assert opened(source.but(classes=Path("stuff.json")), tmp_path).space == data.space


# --- the recipe


def whole(root: Path) -> None:
    """All ten sets, where the recipe looks for them."""
    for make in (places, species, dogs, faces, stuff, ade):
        make(root)
    compcars(root, images=25)
    for split in ("train", "val"):
        for label in ("n01440764", "n01443537"):
            image(root / f"imagenet/{split}/{label}/{label}_{split}.JPEG")
        boxes_json(root / f"coco/annotations/instances_{split}2017.json", ["000000000009.jpg", "000000000025.jpg"])
        image(root / f"objects365/{split}/obj365_{split}_000000000001.jpg")
        boxes_json(root / f"objects365/annotations/{split}.json", [f"obj365_{split}_000000000001.jpg"])


def test_the_sources_of_table_1_open_as_they_are_published(tmp_path: Path) -> None:
    whole(tmp_path)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    learn = {**sources(), **more_sources(), **segmentation_sources()}
    assert list(sources()) == ["imagenet", "inat", "places", "coco", "objects365"]
    assert list(learn) == [*sources(), "cars", "dogs", "faces", "ade", "stuff"]
    judged = held_out()
    assert set(judged) == set(heads()) == set(learn)
    for name, source in learn.items():
        train, test = opened(source, tmp_path), opened(judged[name], tmp_path)
        assert train.head == test.head == name
        assert train.space == test.space, name
        assert not {train.file(i) for i in range(len(train))} & {test.file(i) for i in range(len(test))}, name
        assert isinstance(train.target(0), heads()[name].kind), name
        assert isinstance(test.target(0), heads()[name].kind), name
    assert sorted(str(path) for path in tmp_path.rglob("*") if "cache" not in path.name) == before
    assert [len(opened(part["cars"], tmp_path)) for part in (learn, judged)] == [22 * 3, 3 * 3]  # 0.88 of 25 a model
    moved = sources(str(tmp_path))["places"].open("x", Place(Path("/nowhere"), tmp_path / "cache"))
    assert len(moved) == 6


def test_the_lines_of_the_documentation_are_the_recipe(tmp_path: Path) -> None:
    section = DOCS.read_text().split("## Sets to learn from")[1]
    plain = yaml_to_plain(section.split("```yaml\n")[1].split("```")[0])["sources"]
    learn = {**sources(), **more_sources(), **segmentation_sources()}
    assert set(plain) == set(learn)
    for name, text in plain.items():
        said = TypeAdapter(AnySource).validate_python(text)
        if name == "stuff":
            said = said.but(classes=COCO_STUFF)
        assert said.fingerprint() == learn[name].fingerprint(), name
        assert TypeAdapter(AnySource).validate_python(learn[name].plain()).fingerprint() == said.fingerprint()
    assert {type(task) for task in heads().values()} <= set(TASKS)
    assert list(heads(sources())) == list(sources())
