"""The audit, which reads all and stops at nothing, and the quarantine list, which stops when too much is set aside."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tutelage.data.audit import audit, check_target, overlaps
from tutelage.data.coco import CocoBoxes
from tutelage.data.depths import DepthPairs, NormalPairs
from tutelage.data.folders import Folders, Pool
from tutelage.data.pairs import Masks
from tutelage.data.quarantine import Quarantine
from tutelage.data.source import Dataset, LabelSpace, Place, Source, Subset
from tutelage.errors import UserError
from tutelage.types import Boxes, Field, Label, Mask, Vectors


def noise(path: Path, seed: int, width: int = 32, height: int = 24) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def opened(source: Source, root: Path) -> Dataset:
    return source.open("mine", Place(root, root / "cache"))


def test_an_audit_of_folders_counts_everything_and_stops_at_nothing(tmp_path: Path) -> None:
    noise(tmp_path / "a/1.png", 1)
    noise(tmp_path / "a/2.png", 2, 600, 100)
    (tmp_path / "a/3.png").write_bytes((tmp_path / "a/1.png").read_bytes())
    (tmp_path / "b").mkdir()
    (tmp_path / "b/4.png").write_bytes(b"")
    (tmp_path / "b/5.jpg").write_text("<html>")
    Image.fromarray(np.zeros((24, 32), np.uint16)).save(tmp_path / "b/6.png")
    (tmp_path / "c").mkdir()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    seen: list[int] = []
    report = audit(opened(Folders(head="h", root=Path()), tmp_path), progress=seen.append)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    tally = report.tally
    assert report.images == 6 == sum(seen)
    assert (tally.labelled, tally.unlabelled, tally.quarantined) == (4, 0, 2)
    assert report.histogram() == {"a": 3, "b": 1, "c": 0}
    assert report.buckets() == {"< 64": 3, "64 to 127": 1}
    assert report.duplicates == [["a/1.png", "a/3.png"]]
    assert report.kind == "label"
    found = {(f.outcome, f.record) for f in report.faults}
    assert found == {("counted", "c"), ("quarantined", "b/4.png"), ("quarantined", "b/5.jpg"), ("converted", "b/6.png")}
    text = "\n".join(report.lines())
    for words in ("4 labelled, 0 unlabelled, 2 quarantined", "a 3, b 1, c 0", "0 bytes", "a/1.png = a/3.png"):
        assert words in text
    assert "and 3 more" in "\n".join(report.lines(most=1))


def test_an_audit_of_boxes(tmp_path: Path) -> None:
    for k in range(3):
        noise(tmp_path / f"{k}.png", k)
    (tmp_path / "2.png").unlink()
    noise(tmp_path / "2.png", 2, 50, 50)
    plain = {
        "images": [{"id": k, "file_name": f"{k}.png", "width": 32, "height": 24} for k in range(3)],
        "categories": [{"id": 7, "name": "x"}, {"id": 9, "name": "y"}],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 9, "bbox": [0, 0, 9, 9]},
            {"id": 2, "image_id": 0, "category_id": 9, "bbox": [9, 9, 90, 9], "iscrowd": 1},
            {"id": 3, "image_id": 0, "category_id": 9, "bbox": [9, 9, 0, 9]},
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(plain))
    report = audit(opened(CocoBoxes(head="h", images=Path(), annotations=Path("coco.json")), tmp_path))
    tally = report.tally
    assert (tally.labelled, tally.refused, tally.boxes, tally.ignored_boxes, tally.empty) == (2, 1, 2, 1, 1)
    assert tally.quarantined == 0
    assert "2 labelled, 0 unlabelled, 0 quarantined, 1 refused" in " ".join(report.lines())
    assert report.histogram() == {"x": 0, "y": 2}
    assert sorted(f.outcome for f in report.faults) == ["clipped", "counted", "dropped", "refused"]
    assert "2, of them 1 to ignore; 1 images have none" in "\n".join(report.lines())


def test_an_audit_of_masks_depth_normals_and_a_pool(tmp_path: Path) -> None:
    noise(tmp_path / "images/a.png", 0)
    noise(tmp_path / "images/b.png", 1)
    ids = np.zeros((24, 32), np.uint8)
    ids[:12] = 255
    depth = np.full((24, 32), 2.0, np.float32)
    depth[0, 0], depth[:6] = 4.0, np.nan
    depth[23, 0] = 4.0
    away = np.zeros((24, 32, 3), np.float32)
    away[..., 2] = 1
    for name in ("masks", "depth", "normals"):
        (tmp_path / name).mkdir()
    Image.fromarray(ids).save(tmp_path / "masks/a.png")
    np.save(tmp_path / "depth/a.npy", depth)
    np.save(tmp_path / "normals/a.npy", away)
    images = Path("images")
    report = audit(opened(Masks(head="h", images=images, masks=Path("masks"), classes=("x", "y")), tmp_path))
    assert (report.tally.labelled, report.tally.unlabelled) == (1, 1)
    assert report.histogram() == {"x": 12 * 32, "y": 0}
    assert "50.0% ignored" in "\n".join(report.lines())
    assert any(f.problem == "no mask holds the class" and f.record == "y" for f in report.faults)

    report = audit(opened(DepthPairs(head="h", images=images, depths=Path("depth")), tmp_path))
    assert (report.tally.low, report.tally.high) == (2.0, 4.0)
    assert "2 to 4, 75.0% of the pixels valid" in "\n".join(report.lines())
    assert any(f.outcome == "masked" and f.value == str(6 * 32) for f in report.faults)

    report = audit(opened(NormalPairs(head="h", images=images, normals=Path("normals")), tmp_path))
    assert any("point away from the camera" in f.problem for f in report.faults)
    fixed = audit(opened(NormalPairs(head="h", images=images, normals=Path("normals"), negate="z"), tmp_path))
    assert not any("point away" in f.problem for f in fixed.faults)

    pool = audit(opened(Pool(images=images), tmp_path))
    assert (pool.kind, pool.tally.unlabelled, pool.faults) == ("", 2, [])
    assert "(pool)" in pool.lines()[0]


def test_threads_find_the_same(tmp_path: Path) -> None:
    for k in range(70):
        noise(tmp_path / f"{k}.png", k)
    (tmp_path / "66.png").write_bytes(b"x")
    data = opened(Pool(images=Path()), tmp_path)
    one, two = audit(data), audit(data, workers=2)
    assert one.lines() == two.lines()
    assert one.tally.hashes == two.tally.hashes
    assert two.tally.ids == [data.id(i) for i in range(70)]


def test_overlaps_across_datasets_and_subsets(tmp_path: Path) -> None:
    for k in range(4):
        noise(tmp_path / f"train/{k}.png", k)
        noise(tmp_path / f"test/t{k}.png", k + 3)
    (tmp_path / "test/broken.png").write_bytes(b"")
    (tmp_path / "train/broken.png").write_bytes(b"")
    train = opened(Pool(images=Path("train")), tmp_path)
    a, b = audit(train), audit(opened(Pool(images=Path("test")), tmp_path))
    assert ("3.png", "t0.png") in overlaps(a, b)
    assert len(overlaps(a, b)) == 2  # and the two empty files
    assert audit(Subset(train, np.array([1]))).tally.ids == ["1.png"]


def test_targets_that_break_their_promises_are_told() -> None:
    space = LabelSpace(("x", "y"))
    valid = torch.ones(4, 6, dtype=torch.bool)
    facing = torch.stack([torch.zeros(4, 6), torch.zeros(4, 6), -torch.ones(4, 6)])
    good = [
        Label(torch.tensor([0.3, 0.7])),
        Boxes.make([], []),
        Boxes.make([[0, 0, 6, 4]], [1]),
        Mask(torch.full((4, 6), 255, dtype=torch.uint8)),
        Field(torch.ones(4, 6), valid),
        Vectors(facing, valid),
    ]
    assert [check_target(target, 4, 6, space) for target in good] == [None] * 6
    bad = [
        (Label(torch.tensor([0.3])), "shape"),
        (Label(torch.tensor([0.3, 1.7])), "outside"),
        (Boxes.make([[0, 0, 7, 4]], [1]), "boxes outside"),
        (Boxes.make([[3, 0, 3, 4]], [1]), "boxes outside"),
        (Boxes.make([[0, 0, float("nan"), 4]], [1]), "boxes outside"),
        (Boxes.make([[0, 0, 6, 4]], [2]), "class indices"),
        (Mask(torch.zeros(6, 4, dtype=torch.uint8)), "4 x 6 for an image of 6 x 4"),
        (Mask(torch.full((4, 6), 2, dtype=torch.uint8)), "class ids"),
        (Field(torch.full((4, 6), float("nan")), valid), "not finite"),
        (Vectors(facing * 1.01, valid), "length 1"),
    ]
    for target, word in bad:
        assert word in (check_target(target, 4, 6, space) or ""), word


def test_quarantine_keeps_counts_and_stops(tmp_path: Path) -> None:
    path = tmp_path / "deep/quarantine.jsonl"
    first = Quarantine(path, total=400, limit=0.005)
    assert not path.exists()
    first.add("s/1", "ab", "train", "cannot be decoded")
    first.add("s/1", "ab", "train", "again, in the next epoch")
    assert len(first) == 1
    second = Quarantine(path, total=400)
    second.add("s/2", "", "label", "0 bytes")
    first.add("s/2", "", "label", "0 bytes")
    assert len(first) == 2
    assert first.share == 2 / 400
    with pytest.raises(UserError) as caught:
        second.add("s/3", "cd", "train", "an ümlaut\nand a new line")
    assert "3 of 400" in str(caught.value)
    assert "0.75%" in str(caught.value)
    assert "s/3" in str(caught.value)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["s/1", "s/2", "s/3"]
    assert lines[2] == {"id": "s/3", "sha256": "cd", "stage": "train", "reason": "an ümlaut\nand a new line"}


def test_quarantine_survives_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    Quarantine(path, 10_000).add("a", "", "train", "bad")
    with path.open("a") as file:
        file.write('{"id": "b", "sha')
    again = Quarantine(path, 10_000)
    assert len(again) == 1
    again.add("c", "", "train", "bad")
    assert len(again) == len(Quarantine(path, 10_000)) == 2
    again.add("a", "", "train", "known")
    assert [line[:9] for line in path.read_text().splitlines()] == ['{"id": "a', '{"id": "b', '{"id": "c']


def test_one_bad_image_never_stops_a_small_run(tmp_path: Path) -> None:
    small = Quarantine(tmp_path / "q.jsonl", total=8)
    small.add("a", "", "train", "bad")
    with pytest.raises(UserError):
        small.add("b", "", "train", "bad")


def _add_many(path: Path, start: int) -> None:
    list_ = Quarantine(path, total=10**6)
    for k in range(40):
        list_.add(f"{start}/{k}", "0" * 64, "train", "x" * 300)


def test_several_writers_write_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    workers = [threading.Thread(target=_add_many, args=(path, k)) for k in range(4)]  # each opens the file for itself
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    lines = [line for line in path.read_text().splitlines() if line]  # an empty one is a guard against a torn line
    assert len(lines) == 160
    assert len(Quarantine(path, total=10**6)) == 160
