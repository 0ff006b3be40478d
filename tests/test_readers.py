"""The readers of datasets, against small datasets written here and against real ones where they are at hand."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from tutelage.data.coco import CocoBoxes, CocoPanoptic
from tutelage.data.decoded import decoded
from tutelage.data.depths import DepthPairs, NormalPairs
from tutelage.data.files import FileSource, natural
from tutelage.data.folders import Folders, Pool
from tutelage.data.join import Join
from tutelage.data.normals import Camera, normals_from_depth
from tutelage.data.pairs import Masks
from tutelage.data.source import BadImage, Dataset, LabelSpace, Place, Subset
from tutelage.data.voc import VocBoxes
from tutelage.data.yolo import Yolo
from tutelage.errors import UserError
from tutelage.types import Boxes, Field, Label, Mask, Vectors

REAL = Path(__file__).parents[2] / "shared" / "data"
real = pytest.mark.skipif(not REAL.is_dir(), reason="the real datasets (../shared/data) are not at hand")


def image(path: Path, width: int = 32, height: int = 24, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), "green").save(path, **options)
    return path


def opened(source: FileSource, root: Path, classes: tuple[str, ...] | None = None) -> Dataset:
    return source.open("mine", Place(root, root / "cache"), classes)


def problem(source: FileSource, root: Path, classes: tuple[str, ...] | None = None) -> str:
    """The text of the error that opening ends in."""
    with pytest.raises(UserError) as caught:
        opened(source, root, classes)
    return str(caught.value)


def label_problem(dataset: Dataset, index: int) -> str:
    with pytest.raises(UserError) as caught:
        dataset.target(index)
    return str(caught.value)


# --- what all have in common


def test_what_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image(tmp_path / "x/a.png")
    (tmp_path / "x/lost+found").mkdir()
    image(tmp_path / "x/sub/b.png")
    pool, scan = Pool(images=Path("x")), os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith(("sub", "lost+found")):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)  # whoever tests as root may read everything
    said = problem(pool, tmp_path)
    assert "a folder of images or labels cannot be read: Permission denied" in said
    assert str(tmp_path / "x/sub") in said
    monkeypatch.undo()
    assert len(opened(pool, tmp_path)) == 2
    try:
        (tmp_path / "x" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes no name that is not UTF-8")
    said = problem(pool, tmp_path)
    assert "not UTF-8" in said
    assert r"caf\xe9.png" in said


def test_pick_takes_blocks_then_steps_then_an_even_few() -> None:
    def pool(**options: Any) -> Pool:
        return Pool(images=Path("x"), **options)

    def names(count: int) -> list[str]:
        return [f"{i}.png" for i in range(count)]

    assert pool().pick("mine", names(5)).tolist() == [0, 1, 2, 3, 4]
    assert pool(every=2).pick("mine", names(5)).tolist() == [0, 2, 4]
    assert pool(limit=2).pick("mine", names(10)).tolist() == [0, 5]
    assert pool(limit=20).pick("mine", names(3)).tolist() == [0, 1, 2]
    assert pool(blocks=(0.5, 1), every=2, limit=2).pick("mine", names(12)).tolist() == [6, 8]
    for count in range(30):  # neighbouring blocks share nothing and leave nothing out
        parts = [pool(blocks=b).pick("mine", names(count)).tolist() for b in ((0, 0.3), (0.3, 0.8), (0.8, 1))]
        assert [i for part in parts for i in part] == list(range(count))
    groups = np.array([0] * 4 + [1] * 8)
    assert pool(blocks=(0.5, 1)).pick("mine", names(12), groups).tolist() == [2, 3, 8, 9, 10, 11]
    for bad in ({"blocks": (0.5, 0.5)}, {"blocks": (-0.1, 1)}, {"every": 0}, {"limit": 0}):
        with pytest.raises(ValidationError):
            pool(**bad)


def test_natural_order() -> None:
    assert sorted(["f10.png", "f9.png", "a/f1.png", "f09.png"], key=natural) == [
        "a/f1.png",
        "f09.png",
        "f9.png",
        "f10.png",
    ]


# --- class folders and pools


def folders(root: Path) -> Path:
    for name in ("dog/1.jpg", "dog/deep/2.jpg", "cat/1.png", "cat/.hidden.jpg"):
        image(root / "data" / name)
    (root / "data/cat/Thumbs.db").write_text("x")
    return root


def test_folders(tmp_path: Path) -> None:
    data = opened(Folders(head="animals", root=Path("data")), folders(tmp_path))
    assert [data.id(i) for i in range(len(data))] == ["cat/1.png", "dog/1.jpg", "dog/deep/2.jpg"]
    assert data.space is not None
    assert data.space.names == ("cat", "dog")
    labels = [data.target(i) for i in range(3)]
    assert all(isinstance(label, Label) for label in labels)
    assert [label.probs.tolist() for label in labels if label] == [[1, 0], [0, 1], [0, 1]]
    assert [fault.value for fault in data.faults] == ["1"]  # Thumbs.db
    assert data.picture(0).read().shape == (24, 32, 3)
    assert len(data.sha256(0)) == 64
    again = pickle.loads(pickle.dumps(data))
    assert again.id(2) == data.id(2)


def test_folders_map_to_the_heads_classes_by_name(tmp_path: Path) -> None:
    source = Folders(head="animals", root=Path("data"))
    data = opened(source, folders(tmp_path), ("dog", "horse", "cat"))
    assert data.space is not None
    assert data.space.ids == (1, -1, 0)
    assert [data.target(i).probs.argmax().item() for i in range(3)] == [2, 0, 0]  # type: ignore[union-attr]
    assert "horse" in [fault.record for fault in data.faults]
    text = problem(source, tmp_path, ("cat", "doge"))
    assert "'dog' is not in the head's label space, did you mean 'doge'?" in text


def test_folders_that_are_wrong(tmp_path: Path) -> None:
    assert "no such folder for `root`" in problem(Folders(head="h", root=Path("dat")), folders(tmp_path))
    assert "did you mean 'data'" in problem(Folders(head="h", root=Path("dat")), tmp_path)
    (tmp_path / "empty/cat").mkdir(parents=True)
    assert "no image is left" in problem(Folders(head="h", root=Path("empty")), tmp_path)
    assert "no class folder" in problem(Folders(head="h", root=Path("empty/cat")), tmp_path)
    with pytest.raises(ValidationError):
        Folders(root=Path("data"))  # type: ignore[call-arg]


def test_pool(tmp_path: Path) -> None:
    folders(tmp_path)
    (tmp_path / "data/back").symlink_to(tmp_path / "data")  # must not be walked for ever
    data = opened(Pool(images=Path("data")), tmp_path)
    assert len(data) == 3
    assert data.head is None
    assert data.target(0) is None
    (tmp_path / "list.txt").write_text("dog/1.jpg\n\ncat/1.png\n")
    data = opened(Pool(images=Path("data"), ids=Path("list.txt")), tmp_path)
    assert [data.id(0), data.id(1)] == ["dog/1.jpg", "cat/1.png"]
    (tmp_path / "list.txt").write_text("dog/1.jpg\ngone.jpg\n../list.txt\n")
    text = problem(Pool(images=Path("data"), ids=Path("list.txt")), tmp_path)
    assert "gone.jpg" in text
    assert "../list.txt" in text
    (tmp_path / "list.txt").write_text("dog/1.jpg\ndog/1.jpg\n")
    assert "twice" in problem(Pool(images=Path("data"), ids=Path("list.txt")), tmp_path)


# --- COCO

COCO = CocoBoxes(head="objects", images=Path("images"), annotations=Path("coco.json"))


def coco(root: Path, boxes: list[Any] | None = None, **changes: Any) -> Path:
    """Three images of 32 x 24; annotations of the second given as [category, bbox] or [category, bbox, crowd]."""
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        image(root / "images" / name)
    records = [{"id": 10 + k, "file_name": f"{n}.jpg", "width": 32, "height": 24} for k, n in enumerate("abc")]
    plain: dict[str, Any] = {
        "images": records,
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}],
        "annotations": [
            {"id": 100 + k, "image_id": 11, "category_id": b[0], "bbox": b[1], "iscrowd": b[2] if len(b) > 2 else 0}
            for k, b in enumerate([[90, [1, 2, 3, 4]], [1, [0, 0, 32, 24], 1]] if boxes is None else boxes)
        ],
    }
    (root / "coco.json").write_text(json.dumps({**plain, **changes}))
    return root


def test_coco_with_some_of_its_classes(tmp_path: Path) -> None:
    root = coco(tmp_path, [[90, [1, 2, 3, 4]], [1, [5, 5, 6, 6]], [1, [0, 0, 32, 24], 1]])
    data = opened(COCO.but(only=("person",)), root)
    assert data.space == LabelSpace(("person",), (1,))
    targets = [data.target(i) for i in range(3)]
    assert [len(t) for t in targets if isinstance(t, Boxes)] == [0, 2, 0]
    assert isinstance(targets[1], Boxes)
    assert targets[1].boxes.tolist() == [[5, 5, 11, 11], [0, 0, 32, 24]]
    assert targets[1].classes.tolist() == [0, 0]
    with pytest.raises(UserError, match=r"no such class, did you mean 'person'\?"):
        opened(COCO.but(only=("persn",)), root)
    with pytest.raises(UserError, match="category_id that the JSON does not list"):
        opened(COCO.but(only=("person",)), coco(tmp_path, [[7, [1, 2, 3, 4]]]))


def test_coco_keeps_category_ids_crowds_and_negatives(tmp_path: Path) -> None:
    data = opened(COCO, coco(tmp_path))
    assert data.space is not None
    assert data.space.names == ("person", "toothbrush")
    assert data.space.ids == (1, 90)
    targets = [data.target(i) for i in range(3)]
    assert all(isinstance(t, Boxes) for t in targets)
    assert [len(t) for t in targets] == [0, 2, 0]  # type: ignore[arg-type]
    boxes = targets[1]
    assert isinstance(boxes, Boxes)
    assert boxes.boxes.tolist() == [[1, 2, 4, 6], [0, 0, 32, 24]]
    assert boxes.classes.tolist() == [1, 0]
    assert boxes.ignore.tolist() == [False, True]
    assert boxes.scores.tolist() == [1, 1]
    assert data.faults == []
    mapped = opened(COCO, tmp_path, ("toothbrush", "dog", "person"))
    assert mapped.target(1).classes.tolist() == [0, 2]  # type: ignore[union-attr]
    assert mapped.space is not None
    assert mapped.space.ids == (90, -1, 1)


NAN = float("nan")
BAD_BOXES = {
    "reversed": [8, 8, -4, 4],
    "no area": [8, 8, 0, 4],
    "outside": [40, 3, 5, 5],
    "not finite": [NAN, 3, 5, 5],
    "finite": [3, float("inf"), 5, 5],
    "box is not": "four",
}


def test_coco_drops_and_counts_bad_boxes(tmp_path: Path) -> None:
    rows = [[1, box] for box in BAD_BOXES.values()] + [[90, [30, 20, 10, 10]], [1, [4, 4, 4, 4]]]
    data = opened(COCO, coco(tmp_path, rows))
    boxes = data.target(1)
    assert isinstance(boxes, Boxes)
    assert boxes.boxes.tolist() == [[30, 20, 32, 24], [4, 4, 8, 8]]
    assert [fault.outcome for fault in data.faults] == ["dropped"] * 6 + ["clipped"]
    assert all(word in fault.problem for word, fault in zip(BAD_BOXES, data.faults, strict=False))
    assert data.faults[0].record == "annotation 100"
    assert data.faults[0].file.endswith("coco.json")


def test_rounding_is_not_outside(tmp_path: Path) -> None:
    data = opened(COCO, coco(tmp_path, [[1, [20.1, 12.2, 11.9000001, 11.8000001]], [1, [-1e-7, 0, 4, 4]]]))
    assert data.faults[0].problem == "the class has no example"
    boxes = data.target(1)
    assert isinstance(boxes, Boxes)
    assert boxes.boxes[0, 2:].tolist() == [32, 24]
    assert boxes.boxes.min() == 0


@pytest.mark.parametrize("word", BAD_BOXES)
def test_coco_stops_at_bad_boxes_in_strict_mode(tmp_path: Path, word: str) -> None:
    coco(tmp_path, [[90, [1, 1, 4, 4]], [1, BAD_BOXES[word]]])
    text = problem(COCO.but(strict=True), tmp_path)
    assert word in text
    assert "annotation 101" in text
    assert "coco.json" in text


def test_coco_that_is_wrong(tmp_path: Path) -> None:
    record = {"id": 1, "file_name": "a.jpg", "width": 32, "height": 24}
    kind = {"id": 1, "name": "person"}
    cases: list[tuple[str, dict[str, Any]]] = [
        ("category_id that the JSON does not list", {"boxes": [[7, [0, 0, 1, 1]]]}),
        ("image_id that the JSON does not list", {"images": [record]}),
        ("images are listed twice", {"images": [record, record]}),
        ("images are listed twice", {"images": [record, {**record, "id": 2}]}),
        ("../a.jpg", {"images": [{**record, "file_name": "../a.jpg"}], "annotations": []}),
        ("/etc/passwd", {"images": [{**record, "file_name": "/etc/passwd"}], "annotations": []}),
        ("gone.jpg", {"images": [{**record, "file_name": "gone.jpg"}], "annotations": []}),
        ("needs id, file_name, width and height", {"images": [{**record, "width": 0}]}),
        ("needs id, file_name, width and height", {"images": [{**record, "width": float("inf")}]}),
        ("category_id that the JSON does not list", {"boxes": [[[1], [0, 0, 1, 1]]]}),
        ("lists no image", {"images": []}),
        ("category ids are given twice", {"categories": [kind, kind]}),
        ("class name stands twice", {"categories": [kind, {**kind, "id": 90}]}),
        ("'annotations' is missing", {"annotations": None}),
    ]
    for wanted, changes in cases:
        assert wanted in problem(COCO, coco(tmp_path, **changes)), wanted
    (tmp_path / "coco.json").write_text('{"images": [')
    assert "not JSON" in problem(COCO, tmp_path)
    (tmp_path / "coco.json").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in problem(COCO, tmp_path)


def test_coco_images_that_are_gone_can_be_excluded(tmp_path: Path) -> None:
    coco(tmp_path)
    (tmp_path / "images/c.jpg").unlink()
    assert "c.jpg" in problem(COCO, tmp_path)
    assert [opened(COCO.but(exclude=("c",)), tmp_path).id(k) for k in range(2)] == ["a.jpg", "b.jpg"]


def test_boxes_agree_with_the_upright_image(tmp_path: Path) -> None:
    coco(tmp_path)
    exif = Image.Exif()
    exif[274] = 6
    image(tmp_path / "images/b.jpg", 24, 32, exif=exif)  # stored 24 x 32, seen as 32 x 24, as the JSON says
    data = opened(COCO, tmp_path)
    assert len(data.target(1)) == 2  # type: ignore[arg-type]
    image(tmp_path / "images/b.jpg", 32, 24, exif=exif)  # the JSON states the size as stored
    text = label_problem(opened(COCO, tmp_path), 1)
    assert "as if the EXIF rotation had been left out" in text
    assert "32 x 24, the image has 24 x 32" in text
    image(tmp_path / "images/b.jpg", 50, 50)
    assert "another size" in label_problem(opened(COCO, tmp_path), 1)


def panoptic(root: Path, colours: list[list[int]], segments: list[dict[str, int]]) -> Path:
    """One image with a PNG whose first pixels have the given colours, the others black; one image without."""
    coco(root)
    rgb = np.zeros((24, 32, 3), np.uint8)
    rgb[0, : len(colours)] = colours
    (root / "png").mkdir(exist_ok=True)
    Image.fromarray(rgb).save(root / "png/a.png")
    entry = {"image_id": 10, "file_name": "a.png", "segments_info": segments}
    (root / "panoptic.json").write_text(
        json.dumps({**json.loads((root / "coco.json").read_text()), "annotations": [entry]})
    )
    return root


PANOPTIC = CocoPanoptic(head="all", images=Path("images"), annotations=Path("panoptic.json"), masks=Path("png"))


def test_coco_panoptic(tmp_path: Path) -> None:
    big = {"id": 5 + 256 * 6 + 65536 * 7, "category_id": 90}
    panoptic(tmp_path, [[5, 6, 7], [9, 0, 0], [0, 0, 0]], [big, {"id": 9, "category_id": 1}])
    data = opened(PANOPTIC, tmp_path)
    mask = data.target(0)
    assert isinstance(mask, Mask)
    assert mask.ids.dtype == torch.uint8
    assert mask.ids.shape == (24, 32)
    assert mask.ids[0, :4].tolist() == [1, 0, 255, 255]
    assert data.target(1) is None  # unlabelled, not empty
    panoptic(tmp_path, [[5, 6, 7], [8, 0, 0]], [big])
    text = label_problem(opened(PANOPTIC, tmp_path), 0)
    assert "no segment" in text
    assert "a.png" in text
    assert "8" in text
    for category in (7, [1]):
        panoptic(tmp_path, [[0, 0, 0]], [{"id": 1, "category_id": category}])
        assert "category_id" in problem(PANOPTIC, tmp_path)
    panoptic(tmp_path, [[9, 0, 0]], [{"id": 9, "category_id": 1}, {"id": 9, "category_id": 90}])
    assert "segments of one image have the same id" in problem(PANOPTIC, tmp_path)
    (tmp_path / "png/a.png").unlink()
    assert "PNG is not below" in problem(PANOPTIC, tmp_path)


# --- Pascal VOC

VOC = VocBoxes(head="objects", root=Path("voc"))
BOX = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"


def voc(root: Path, objects: str = "", size: str = "<width>32</width><height>24</height>") -> Path:
    base = root / "voc"
    for name in ("Annotations", "ImageSets/Main"):
        (base / name).mkdir(parents=True, exist_ok=True)
    dog = f"<object><name>dog</name><difficult>0</difficult>{BOX.format(1, 1, 32, 24)}</object>"
    cat = f"<object><name>cat</name><difficult>1</difficult>{BOX.format(3, 4, 3, 4)}</object>"
    for name, things in (("1", dog + cat), ("2", ""), ("3", objects or dog)):
        image(base / "JPEGImages" / f"{name}.jpg")
        (base / f"Annotations/{name}.xml").write_text(f"<annotation><size>{size}</size>{things}</annotation>")
    (base / "ImageSets/Main/train.txt").write_text("1\n2\n")
    (base / "ImageSets/Main/dog_train.txt").write_text("1  1\n2 -1\n3  0\n")
    return root


def test_voc_counts_pixels_from_one(tmp_path: Path) -> None:
    data = opened(VOC.but(split="train"), voc(tmp_path))
    assert [data.id(i) for i in range(len(data))] == ["1.jpg", "2.jpg"]
    assert data.space is not None
    assert data.space.names == ("cat", "dog")
    boxes, nothing = data.target(0), data.target(1)
    assert isinstance(boxes, Boxes)
    assert boxes.boxes.tolist() == [[0, 0, 32, 24], [2, 3, 3, 4]]  # the whole image; one pixel
    assert boxes.classes.tolist() == [1, 0]
    assert boxes.ignore.tolist() == [False, True]
    assert len(nothing) == 0  # type: ignore[arg-type]
    assert len(opened(VOC, tmp_path)) == 3
    assert len(opened(VOC.but(split="dog_train"), tmp_path)) == 2  # -1: not of this class
    zero = opened(VOC.but(one_based=False), tmp_path).target(0)
    assert zero.boxes.tolist() == [[1, 1, 32, 24]]  # type: ignore[union-attr]


def test_voc_deals_with_bad_boxes(tmp_path: Path) -> None:
    rows = [(40, 1, 50, 9), (9, 9, 3, 3), ("x", 1, 5, 5), (30, 20, 40, 30)]
    voc(tmp_path, "".join(f"<object><name>dog</name>{BOX.format(*row)}</object>" for row in rows))
    data = opened(VOC, tmp_path)
    assert data.target(2).boxes.tolist() == [[29, 19, 32, 24]]  # type: ignore[union-attr]
    assert [f.outcome for f in data.faults] == ["dropped"] * 3 + ["clipped"]
    assert data.faults[1].record == "object 2 (dog)"
    assert data.faults[1].file.endswith("3.xml")
    text = problem(VOC.but(strict=True), tmp_path)
    assert "lies outside" in text
    assert "3.xml" in text


def test_a_voc_image_named_unlike_its_xml_is_excluded_by_either_name_and_no_other_is(tmp_path: Path) -> None:
    voc(tmp_path)
    base = tmp_path / "voc"
    (base / "JPEGImages/2.jpg").rename(base / "JPEGImages/x.jpg")
    (base / "Annotations/2.xml").write_text("<annotation><filename>x.jpg</filename></annotation>")
    (base / "Annotations/1.xml").write_text("<annotation><filename>3.jpg</filename></annotation>")  # not what is shown
    for excluded in ("x.jpg", "x", "2"):
        data = opened(VOC.but(exclude=(excluded,)), tmp_path)
        assert [data.id(i) for i in range(len(data))] == ["1.jpg", "3.jpg"]
    data = opened(VOC.but(exclude=("3.jpg",)), tmp_path)
    assert [data.id(i) for i in range(len(data))] == ["1.jpg", "x.jpg"]
    (base / "JPEGImages/x.jpg").unlink()
    assert len(opened(VOC.but(exclude=("2",)), tmp_path)) == 2  # an annotation whose image is gone


def test_voc_that_is_wrong(tmp_path: Path) -> None:
    voc(tmp_path)
    base = tmp_path / "voc"
    (base / "ImageSets/Main/train.txt").write_text("1\n9\n")
    assert "have no XML" in problem(VOC.but(split="train"), tmp_path)
    assert "did you mean 'train.txt'" in problem(VOC.but(split="trian"), tmp_path)
    assert "'cat' is not in" in problem(VOC, tmp_path, ("dog", "cow"))
    (base / "JPEGImages/2.jpg").rename(base / "JPEGImages/x.jpg")
    assert "annotations have no image" in problem(VOC, tmp_path)
    good = (base / "Annotations/1.xml").read_text()
    laughs = '<!DOCTYPE a [<!ENTITY lol "lol"><!ENTITY b "&lol;&lol;">]><annotation>&b;</annotation>'
    for text, word in (
        (laughs, "document types and entities are refused"),
        (good[:-20], "not the XML we read"),
        ("", "empty"),
        ("<annotation><object></object></annotation>", "no class"),
    ):
        for encoding in ("utf-8", "utf-16"):
            (base / "Annotations/1.xml").write_bytes(text.encode(encoding) if text else b"")
            assert word in problem(VOC, tmp_path), (word, encoding)


def test_two_annotations_of_one_voc_image_are_refused(tmp_path: Path) -> None:
    base = voc(tmp_path) / "voc"
    text = (base / "Annotations/1.xml").read_text().replace("<size>", "<filename>1.jpg</filename><size>")
    (base / "Annotations/1_copy.xml").write_text(text)
    said = problem(VOC, tmp_path)
    assert "several annotations are of one image" in said
    assert "1.jpg (1, 1_copy)" in said
    assert len(opened(VOC.but(split="train"), tmp_path)) == 2  # it is not listed


def test_endings_in_capitals_are_read(tmp_path: Path) -> None:
    base = voc(tmp_path) / "voc"
    (base / "Annotations/1.xml").rename(base / "Annotations/1.XML")
    assert len(opened(VOC, tmp_path).target(0)) == 2  # type: ignore[arg-type]
    labels = yolo(tmp_path) / "set/labels/train"
    (labels / "a.txt").rename(labels / "a.TXT")
    assert len(opened(YOLO, tmp_path).target(0)) == 2  # type: ignore[arg-type]


def test_voc_size(tmp_path: Path) -> None:
    voc(tmp_path, size="<width>0</width><height>0</height>")  # as some tools write; the image knows
    data = opened(VOC, tmp_path)
    assert data.target(0).boxes[0].tolist() == [0, 0, 32, 24]  # type: ignore[union-attr]
    voc(tmp_path, size="<width>24</width><height>32</height>")
    assert "another size" in label_problem(opened(VOC, tmp_path), 1)


# --- YOLO

YOLO = Yolo(head="objects", images=Path("set/images/train"), classes=("cat", "dog"))


def yolo(root: Path, text: str = "1 0.5 0.5 1 1\n0 0.25 0.5 0.5 0.5\n") -> Path:
    for name in ("a.jpg", "sub/b.jpg", "c.jpg"):
        image(root / "set/images/train" / name)
    folder = root / "set/labels/train"
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    (folder / "a.txt").write_text(text)
    (folder / "sub/b.txt").write_text("")
    return root


def test_yolo(tmp_path: Path) -> None:
    data = opened(YOLO, yolo(tmp_path))
    assert [data.id(i) for i in range(3)] == ["a.jpg", "c.jpg", "sub/b.jpg"]
    boxes = data.target(0)
    assert isinstance(boxes, Boxes)
    assert boxes.boxes.tolist() == [[0, 0, 32, 24], [0, 6, 16, 18]]
    assert boxes.classes.tolist() == [1, 0]
    assert [len(data.target(i)) for i in (1, 2)] == [0, 0]  # type: ignore[arg-type]
    assert [f.problem for f in data.faults] == ["images have no text file"]
    strict = opened(YOLO.but(missing="unlabelled"), tmp_path)
    assert strict.target(1) is None
    assert len(strict.target(2)) == 0  # type: ignore[arg-type]
    assert opened(YOLO, tmp_path, ("dog", "cat")).target(0).classes.tolist() == [0, 1]  # type: ignore[union-attr]


@pytest.mark.parametrize("names", ["[cat, dog]", "{0: cat, 1: dog}"])
def test_yolo_reads_its_yaml(tmp_path: Path, names: str) -> None:
    (tmp_path / "data.yaml").write_text(f"path: .\nnc: 2\nnames: {names}\n")
    data = opened(YOLO.but(classes=Path("data.yaml")), yolo(tmp_path))
    assert data.space is not None
    assert data.space.names == ("cat", "dog")


def test_yolo_that_is_wrong(tmp_path: Path) -> None:
    for text in ("2 0.5 0.5 1 1", "-1 0.5 0.5 1 1", "0.5 0.5 0.5 1 1", "cat 0.5 0.5 1 1", "nan 0.5 0.5 1 1"):
        answer = problem(YOLO, yolo(tmp_path, text))
        assert "whole number from 0 to 1" in answer
        assert "line 1" in answer
    assert "five columns" in problem(YOLO, yolo(tmp_path, "0 0.1 0.1 0.2 0.2 0.3 0.3"))
    yolo(tmp_path, "0 0.5 0.5 nan 1\n0 2 2 0.1 0.1\n0 0.5 0.5 0 1\n0 0.5 0.5 -1 1\n0 0.9 0.5 0.4 1\n")
    data = opened(YOLO, tmp_path)
    assert [f.outcome for f in data.faults[:5]] == ["dropped"] * 4 + ["clipped"]
    assert data.faults[2].record == "line 3"
    np.testing.assert_allclose(data.target(0).boxes, [[0.7 * 32, 0, 32, 24]], rtol=1e-6)  # type: ignore[union-attr]
    assert "line 1" in problem(YOLO.but(strict=True), tmp_path)
    (tmp_path / "data.yaml").write_text("names: {1: cat, 2: dog}")
    assert "class names cannot be read" in problem(YOLO.but(classes=Path("data.yaml")), tmp_path)
    assert "no such folder for `labels`" in problem(YOLO.but(labels=Path("nowhere")), tmp_path)


# --- masks

MASKS = Masks(head="street", images=Path("images"), masks=Path("masks"), classes=("sky", "road"))


def masks(root: Path, ids: list[int], size: tuple[int, int] = (24, 32)) -> Path:
    image(root / "images/s/a.jpg")
    image(root / "images/s/b.jpg")
    stored = np.full(size, ids[0], np.uint8)
    stored[0, : len(ids)] = ids
    (root / "masks/s").mkdir(parents=True, exist_ok=True)
    Image.fromarray(stored).save(root / "masks/s/a.png")
    return root


def first(dataset: Dataset, count: int) -> list[int]:
    mask = dataset.target(0)
    assert isinstance(mask, Mask)
    return mask.ids[0, :count].tolist()


def test_masks(tmp_path: Path) -> None:
    data = opened(MASKS, masks(tmp_path, [1, 0, 255]))
    assert first(data, 3) == [1, 0, 255]
    assert data.target(1) is None
    assert "unlabelled" in data.faults[0].problem
    assert first(opened(MASKS, tmp_path, ("road", "car", "sky")), 3) == [0, 2, 255]
    ade = MASKS.but(offset=1, ignore=(0,))
    assert first(opened(ade, masks(tmp_path, [1, 2, 0])), 3) == [0, 1, 255]
    (tmp_path / "classes.json").write_text(json.dumps({"0": "void", "200": "road", "7": "sky", "255": "ignore"}))
    data = opened(MASKS.but(classes=Path("classes.json"), ignore=(0, 255)), masks(tmp_path, [7, 200, 0, 255]))
    assert data.space is not None
    assert data.space.names == ("sky", "road")
    assert data.space.ids == (7, 200)
    assert first(data, 4) == [0, 1, 255, 255]
    (tmp_path / "train.txt").write_text("s/a\n")
    assert len(opened(MASKS.but(ids=Path("train.txt")), masks(tmp_path, [1]))) == 1


def test_masks_that_are_wrong(tmp_path: Path) -> None:
    text = label_problem(opened(MASKS, masks(tmp_path, [0, 2, 9, 9])), 0)
    assert "2 (1 pixels), 9 (2 pixels)" in text
    assert "a.png" in text
    assert "another size" in label_problem(opened(MASKS, masks(tmp_path, [0], (24, 30))), 0)
    text = label_problem(opened(MASKS, masks(tmp_path, [0], (32, 24))), 0)
    assert "EXIF" in text
    (tmp_path / "train.txt").write_text("s/a\ns/b\n")
    assert "s/b" in problem(MASKS.but(ids=Path("train.txt")), tmp_path)
    assert "no image has a label file" in problem(MASKS.but(label_suffix="_gt"), tmp_path)
    assert "'sky' is not in" in problem(MASKS, tmp_path, ("road",))
    assert "stored values" in problem(MASKS.but(offset=254), tmp_path)  # 255 would be a class and ignored
    image(tmp_path / "images/s/a.png")
    assert "several files have one stem" in problem(MASKS, tmp_path)


def test_suffixes_tell_images_and_labels_apart(tmp_path: Path) -> None:
    image(tmp_path / "all/1_leftImg8bit.png")
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(tmp_path / "all/1_ids.png")
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(tmp_path / "all/1_colour.png")
    both = MASKS.but(images=Path("all"), masks=Path("all"), image_suffix="_leftImg8bit", label_suffix="_ids")
    data = opened(both, tmp_path)
    assert [data.id(i) for i in range(len(data))] == ["1_leftImg8bit.png"]
    assert first(data, 1) == [0]


def test_labels_below_or_beside_the_images_are_no_images(tmp_path: Path) -> None:
    for name in ("a", "b"):
        image(tmp_path / f"data/{name}.jpg")
        image(tmp_path / f"maps/{name}.png")
    (tmp_path / "data/masks").mkdir()
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(tmp_path / "data/masks/a.png")
    data = opened(MASKS.but(images=Path("data"), masks=Path("data/masks")), tmp_path)
    assert [data.id(i) for i in range(len(data))] == ["a.jpg", "b.jpg"]
    assert data.labelled() is not None
    for name in ("a_depth", "a_depth_mask"):
        Image.fromarray(np.full((24, 32), 5, np.uint16)).save(tmp_path / f"maps/{name}.png")
    depth = DepthPairs(
        **{"head": "far", "images": "maps", "depths": "maps", "label_suffix": "_depth", "mask_suffix": "_depth_mask"}
    )
    data = opened(depth, tmp_path)
    assert [data.id(i) for i in range(len(data))] == ["a.png", "b.png"]


def test_blocks_of_a_list_are_neighbours(tmp_path: Path) -> None:
    for number in range(4):
        image(tmp_path / f"images/{number}.jpg")
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((24, 32), np.uint8)).save(tmp_path / f"masks/{number}.png")
    (tmp_path / "train.txt").write_text("3\n0\n2\n1\n")
    data = opened(MASKS.but(ids=Path("train.txt"), blocks=(0, 0.5)), tmp_path)
    assert [data.id(i) for i in range(len(data))] == ["0.jpg", "1.jpg"]


def test_values_that_no_pixel_has_are_ignored_in_vain(tmp_path: Path) -> None:
    said = label_problem(opened(MASKS.but(ignore=(-1,)), masks(tmp_path, [0, 255])), 0)
    assert "255 (1 pixels)" in said


# --- depth and normals


def test_depth_as_nyu_and_as_diode(tmp_path: Path) -> None:
    image(tmp_path / "rgb/1.jpg")
    stored = np.full((24, 32), 2000, np.uint16)
    stored[0, :3] = 0, 1, 9000
    (tmp_path / "depth").mkdir()
    Image.fromarray(stored).save(tmp_path / "depth/1.png")
    nyu = DepthPairs(head="depth", images=Path("rgb"), depths=Path("depth"), unit=0.001, maximum=5)
    field = opened(nyu, tmp_path).target(0)
    assert isinstance(field, Field)
    assert field.valid[0, :4].tolist() == [False, True, False, True]
    np.testing.assert_allclose(field.values[0, :4], [0, 0.001, 0, 2], rtol=1e-6)

    image(tmp_path / "diode/x/1.png")
    np.save(tmp_path / "diode/x/1_depth.npy", np.full((24, 32, 1), 3.5, np.float32))
    mask = np.ones((24, 32), np.float32)
    mask[5, 5] = 0
    np.save(tmp_path / "diode/x/1_depth_mask.npy", mask)
    diode = DepthPairs(
        head="depth", images=Path("diode"), depths=Path("diode"), label_suffix="_depth", mask_suffix="_depth_mask"
    )
    data = opened(diode, tmp_path)
    field = data.target(0)
    assert len(data) == 1
    assert isinstance(field, Field)
    assert field.valid.sum() == 24 * 32 - 1
    assert field.values[5, 5] == 0
    assert field.values[5, 6] == 3.5
    (tmp_path / "diode/x/1_depth_mask.npy").unlink()
    assert "no validity mask" in problem(diode, tmp_path)


def test_depth_that_is_wrong(tmp_path: Path) -> None:
    image(tmp_path / "rgb/1.jpg")
    (tmp_path / "depth").mkdir()
    source = DepthPairs(head="depth", images=Path("rgb"), depths=Path("depth"))
    odd = np.full((24, 32), 1.0, np.float32)
    odd[0, :3] = np.nan, np.inf, -1
    np.save(tmp_path / "depth/1.npy", odd)
    data = opened(source, tmp_path)
    field = data.target(0)
    assert isinstance(field, Field)
    assert field.valid.sum() == 24 * 32 - 3
    assert torch.isfinite(field.values).all()
    (fault,) = data.mended(0)
    assert (fault.outcome, fault.value) == ("masked", "3")
    np.save(tmp_path / "depth/1.npy", odd * np.nan)
    with pytest.raises(BadImage, match="no valid depth in the whole image"):
        opened(source, tmp_path).target(0)
    np.save(tmp_path / "depth/1.npy", odd[:20])
    assert "another size" in label_problem(opened(source, tmp_path), 0)


def seen(camera: Camera, normal: np.ndarray, distance: float, height: int = 48, width: int = 64) -> np.ndarray:
    """Depth of the plane normal . X = distance, float32 [H,W]."""
    v, u = np.mgrid[:height, :width]
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones_like(u, float)])
    return (distance / np.tensordot(normal, rays, 1)).astype(np.float32)


CAMERA = Camera(fx=60.0, fy=55.0, cx=31.5, cy=20.0)


@pytest.mark.parametrize("normal", [(0, 0, -1), (0.6, 0, -0.8), (0, -0.8, -0.6), (-0.3, 0.5, -0.8)])
def test_normals_of_a_plane_are_exact(normal: tuple[float, float, float]) -> None:
    n = np.array(normal) / np.linalg.norm(normal)
    depth = seen(CAMERA, n, -2.0)
    valid = depth > 0
    vectors, good = normals_from_depth(np.where(valid, depth, 0), valid, CAMERA, window=5, jump=0.2)
    assert good[5:-5, 5:-5].mean() > 0.8
    assert np.abs(vectors - n[:, None, None])[:, good].max() < 2e-3
    assert (vectors[:, ~good] == 0).all()


def test_normals_of_a_sphere_and_of_a_jump() -> None:
    v, u = np.mgrid[:96, :96]
    camera = Camera(fx=100.0, fy=100.0, cx=47.5, cy=47.5)
    rays = np.stack([(u - 47.5) / 100, (v - 47.5) / 100, np.ones(u.shape)])
    middle, radius = np.array([0.0, 0.0, 4.0]), 1.0
    a, b = (rays**2).sum(0), np.tensordot(middle, rays, 1)
    root = b * b - a * (middle @ middle - radius**2)
    hit = root > 0
    depth = np.where(hit, (b - np.sqrt(np.maximum(root, 0))) / a, 6.0).astype(np.float32)  # a wall behind at 6 m
    truth = np.where(hit, (rays * depth - middle[:, None, None]) / radius, np.array([0, 0, -1.0])[:, None, None])
    vectors, good = normals_from_depth(depth, np.ones(u.shape, bool), camera, window=5)
    angle = np.degrees(np.arccos(np.clip((vectors * truth).sum(0)[good], -1, 1)))
    assert np.median(angle) < 0.2
    assert np.percentile(angle, 99) < 5
    assert good.mean() > 0.7
    rim = hit ^ np.roll(hit, 1, 1)  # where ball meets wall nothing may be claimed
    assert not good[rim].any()
    assert vectors[0, 47, 60] > 0.3  # right half faces right
    assert vectors[1, 60, 47] > 0.3  # lower half faces down
    assert vectors[2][good].max() < 0


def test_normals_say_nothing_across_a_small_step() -> None:
    depth = np.full((40, 40), 2.0, np.float32)
    depth[:, 20:] = 2.11  # 5.5%: a plane could still be fitted across
    good = normals_from_depth(depth, np.ones(depth.shape, bool), CAMERA, window=9)[1]
    assert not good[:, 16:24].any()
    assert good[:, :15].all()
    assert good[:, 25:].all()
    assert normals_from_depth(depth, np.ones(depth.shape, bool), CAMERA, window=9, jump=0.06)[1][:, 16:24].any()


def test_normals_where_depth_is_missing() -> None:
    depth = seen(CAMERA, np.array([0, 0, -1.0]), -2.0)
    valid = np.zeros(depth.shape, bool)
    vectors, good = normals_from_depth(depth * 0, valid, CAMERA)
    assert not good.any()
    assert (vectors == 0).all()
    valid[:, 20:22] = True  # too thin to span a window
    assert not normals_from_depth(np.where(valid, depth, 0), valid, CAMERA)[1].any()


def test_normal_pairs(tmp_path: Path) -> None:
    image(tmp_path / "rgb/1.jpg", 64, 48)
    for name in ("depth", "normals"):
        (tmp_path / name).mkdir()
    n = np.array([0.0, -0.6, -0.8])
    np.save(tmp_path / "depth/1.npy", seen(CAMERA, n, -2.0))
    (tmp_path / "camera.json").write_text(json.dumps({**CAMERA.plain(), "width": 64}))
    derived = NormalPairs(
        head="n", images=Path("rgb"), from_depth=True, depths=Path("depth"), camera=Path("camera.json"), maximum=20
    )
    data = opened(derived, tmp_path)
    vectors = data.target(0)
    assert isinstance(vectors, Vectors)
    assert data.head == "n"
    np.testing.assert_allclose(vectors.values[:, 30, 30], n, atol=2e-3)
    again = pickle.loads(pickle.dumps(opened(derived.but(camera=CAMERA), tmp_path))).target(0)
    assert torch.equal(again.values, vectors.values)

    Image.fromarray(np.full((48, 64, 3), [128, 204, 230], np.uint8)).save(tmp_path / "normals/1.png")
    stored = NormalPairs(head="n", images=Path("rgb"), normals=Path("normals"), negate="yz")
    vectors = opened(stored, tmp_path).target(0)
    assert isinstance(vectors, Vectors)
    np.testing.assert_allclose(vectors.values[:, 0, 0], n, atol=6e-3)

    (tmp_path / "camera.json").write_text('{"fx": 1, "fy": 1, "cx": "left"}')
    assert "no camera" in problem(derived, tmp_path)
    for bad in ({"from_depth": False}, {"window": 8}, {"normals": Path("normals")}, {"camera": None}):
        with pytest.raises(UserError):
            derived.but(**bad)
    with pytest.raises(UserError):
        stored.but(negate="q")


# --- memory, and the real thing


def test_an_index_grows_by_bytes_not_objects(tmp_path: Path) -> None:
    def size(images: int) -> int:
        records = [
            {"id": k, "file_name": "a.jpg" if k == 0 else f"{k:08}.jpg", "width": 32, "height": 24}
            for k in range(images)
        ]
        for record in records:
            (tmp_path / "images").mkdir(exist_ok=True)
            (tmp_path / "images" / str(record["file_name"])).touch()
        boxes = [{"id": k, "image_id": k // 2, "category_id": 1, "bbox": [0, 0, 9, 9]} for k in range(2 * images)]
        plain = {"images": records, "annotations": boxes, "categories": [{"id": 1, "name": "x"}]}
        (tmp_path / "coco.json").write_text(json.dumps(plain))
        return len(pickle.dumps(opened(COCO, tmp_path)))

    assert (size(1100) - size(100)) / 1000 < 100  # name 20, size 8, offset 8, two boxes of 21


@real
def test_real_panoptic_and_index_masks_say_the_same() -> None:
    base = Path("coco128")
    panoptic = CocoPanoptic(
        head="h",
        images=base / "images/val2017",
        annotations=base / "annotations/panoptic_val2017.json",
        masks=base / "annotations/panoptic_val2017",
    )
    index = Masks(
        head="h",
        images=base / "images/val2017",
        masks=base / "semantic/val2017",
        classes=base / "semantic/classes.json",
        ignore=(0,),
    )
    a, b = opened(panoptic.but(every=10), REAL), opened(index, REAL)
    assert a.space is not None
    assert b.space is not None
    places = {b.id(i): i for i in range(len(b))}
    names_a, names_b = np.array([*a.space.ids] + [0] * (256 - len(a.space.ids))), np.array([*b.space.ids] + [0] * 127)
    for i in range(len(a)):
        one, two = a.target(i), b.target(places[a.id(i)])
        assert isinstance(one, Mask)
        assert isinstance(two, Mask)
        assert np.array_equal(names_a[one.ids.numpy()], names_b[two.ids.numpy()])


@real
def test_real_datasets_open() -> None:
    kitchen = DepthPairs(head="d", images=Path("kitchen/rgb"), depths=Path("kitchen/depth"), unit=0.001)
    early, late = (opened(kitchen.but(blocks=b), REAL) for b in ((0, 0.8), (0.8, 1)))
    assert (len(early), len(late)) == (280, 70)
    assert early.id(279) < late.id(0)
    raccoon = [opened(VocBoxes(head="r", root=Path("raccoon"), split=s), REAL) for s in ("train", "val")]
    assert [len(d) for d in raccoon] == [150, 50]
    assert all(0 < len(d.target(i)) < 9 for d in raccoon for i in range(0, 50, 9))  # type: ignore[arg-type]
    source = CocoBoxes(
        head="o",
        images=Path("coco128/images/train2017"),
        annotations=Path("coco128/annotations/instances_train2017.json"),
    )
    coco = opened(source, REAL)
    assert coco.space is not None
    assert coco.space.ids[-1] == 90
    assert len(coco) == 128
    assert any(len(coco.target(i)) == 0 for i in range(128))  # type: ignore[arg-type]


def test_excluded_images_are_left_out_and_must_exist(tmp_path):
    for number in range(3):
        folder = tmp_path / "images" / "cat"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / f"{number}.png")
    source = Folders(head="h", root=tmp_path / "images", exclude=("cat/1",))
    dataset = source.open("s", Place(tmp_path, tmp_path))
    assert [dataset.id(i) for i in range(len(dataset))] == ["cat/0.png", "cat/2.png"]
    with pytest.raises(UserError, match="no image of this id"):
        source.but(exclude=("cat/7.png",)).open("s", Place(tmp_path, tmp_path))


def excluded(names: list[str], *ids: str, files: tuple[str, ...] = ()) -> list[str]:
    kept = Pool(images=Path("x"), exclude=ids).pick("mine", names, files=files)
    return [name for number, name in enumerate(names) if number not in kept]


def test_excluded_is_the_image_that_is_named_and_no_other() -> None:
    twins = ["c/img.jpg", "c/img.png", "c/img2.png"]
    assert excluded(twins, "c/img.jpg") == ["c/img.jpg"]
    assert excluded(twins, "c/img") == ["c/img.jpg", "c/img.png"]
    frames = ["frame.0001", "frame.0002", "frame.0003"]
    assert excluded(frames, "frame.0001") == excluded(frames, "frame.0001.JPG") == ["frame.0001"]
    assert excluded([f"{name}.png" for name in frames], "frame.0002") == ["frame.0002.png"]
    assert excluded(["a_0", "a_1"], "a_1_left.png", files=("a_0_left.png", "a_1_left.png")) == ["a_1"]
    for gone in ("c/img.bmp", "img", "frame"):
        with pytest.raises(UserError, match=r"(?s)source 'mine'.*exclude.*fix:"):
            excluded([*twins, *frames], gone)


def test_the_id_that_is_shown_can_be_excluded(tmp_path: Path) -> None:
    for number in (1, 2):
        image(tmp_path / f"all/{number}_leftImg8bit.png")
        Image.fromarray(np.zeros((24, 32), np.uint8)).save(tmp_path / f"all/{number}_ids.png")
    both = MASKS.but(images=Path("all"), masks=Path("all"), image_suffix="_leftImg8bit", label_suffix="_ids")
    for id in ("1_leftImg8bit.png", "1_leftImg8bit", "1"):
        data = opened(both.but(exclude=(id,)), tmp_path)
        assert [data.id(i) for i in range(len(data))] == ["2_leftImg8bit.png"]


# --- which images have a label


def test_every_reader_knows_which_of_its_images_have_a_label(tmp_path: Path) -> None:
    """Without reading labels, it is the images whose target is not None."""
    place = Place(tmp_path, tmp_path / "cache")
    panoptic(tmp_path / "coco", [[5, 6, 7]], [{"id": 5 + 256 * 6 + 65536 * 7, "category_id": 90}])
    yolo(tmp_path / "yolo")
    masks(tmp_path / "masks", [1, 0])
    (tmp_path / "depths").mkdir()
    Image.fromarray(np.full((24, 32), 2000, np.uint16)).save(tmp_path / "depths/b.png")
    images, camera = tmp_path / "masks/images/s", {"fx": 30.0, "fy": 30.0, "cx": 15.5, "cy": 11.5}
    depths = {"images": images, "depths": tmp_path / "depths"}
    parts = [
        PANOPTIC.open("a", Place(tmp_path / "coco", place.cache)),
        YOLO.but(missing="unlabelled").open("b", Place(tmp_path / "yolo", place.cache)),
        MASKS.open("c", Place(tmp_path / "masks", place.cache)),
        DepthPairs(head="far", **depths).open("d", place),
        NormalPairs(head="slopes", from_depth=True, camera=camera, **depths).open("e", place),
    ]
    whole = MASKS.but(images=tmp_path / "masks/images", masks=tmp_path / "masks/masks")
    both = {"one": whole, "two": whole.but(exclude=("s/b.jpg",))}
    parts += [Join(head="street", sources=both).open("f", place), Subset(parts[2], np.array([1, 0, 1]))]
    parts += [decoded(parts[2], tmp_path / "decoded", 10**9)]
    for data in parts:
        known = data.labelled()
        assert known is not None, data.name
        assert 0 < len(known) < len(data)
        assert known.tolist() == [index for index in range(len(data)) if data.target(index) is not None], data.name
    assert opened(YOLO, tmp_path / "yolo").labelled() is None  # a missing file is a negative
    assert opened(COCO, tmp_path / "coco").labelled() is None
    assert Join(head="street", sources={"one": both["two"]}).open("h", place).labelled() is None
