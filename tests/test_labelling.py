"""The labelling pass: what it leaves out, what it sets aside, when it stops, and that a kill costs one shard."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from kill_labelling import (
    CLASSES,
    TASKS,
    FakeDataset,
    FakeTeacher,
    all_teachers,
    contents,
    kill_until,
    label_small_pool,
    predict_one,
    records,
    run_and_kill,
)

from tutelage.data.source import BadImage, LabelSpace, UInt8
from tutelage.errors import UserError
from tutelage.labels.labelling import label_pool
from tutelage.labels.pool import Known, Pool
from tutelage.labels.store import Store, read_note
from tutelage.labels.work import Labelling
from tutelage.labels.writing import LABEL, Column, Signature, Tally
from tutelage.progress import Progress
from tutelage.types import Boxes, Field, Label, Mask, Target

pytestmark = pytest.mark.usefixtures("no_sync")

SPACE = LabelSpace(CLASSES)


def labelled(root: Path, head: str) -> set[str]:
    return {f"{record.source}/{record.id}" for record in records(root, head)}


def nan_on(dataset: FakeDataset, *indices: int) -> Callable[[UInt8, Target], Target]:
    """Replaces the probabilities of some images by NaN."""
    marked = {dataset.pixels(i).tobytes() for i in indices}
    bad = Label(torch.full((3,), float("nan")))
    return lambda image, target: bad if image.tobytes() in marked else target


# What is labelled -------------------------------------------------------------------------------------------


def test_one_decode_serves_all_teachers(tmp_path: Path) -> None:
    dataset = FakeDataset("one", 25)
    report = label_pool([dataset], all_teachers(), tmp_path, Labelling(shard=10, batch=4))
    assert dataset.reads == 25
    assert all((n.read, n.labelled, n.quarantined, n.human) == (25, 25, 0, 0) for n in report.counts.values())
    assert "boxes: 25 read = 25 labelled (25 now) + 0 human + 0 quarantined" in str(report)


def test_one_image_and_threads_and_batches_change_nothing(tmp_path: Path) -> None:
    label_pool([FakeDataset("one", 1)], all_teachers(), tmp_path / "single")
    assert len(labelled(tmp_path / "single", "mask")) == 1
    for name, batch, decoders in (("a", 1, 1), ("b", 7, 3), ("c", 100, 1)):
        settings = Labelling(shard=10, batch=batch)
        label_pool([FakeDataset("one", 23)], all_teachers(), tmp_path / name, settings, decoders=decoders)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


def test_human_labels_are_kept(tmp_path: Path) -> None:
    boxes = Boxes.make([], [])  # a human label too: a person looked, and there was nothing
    one = FakeDataset("one", 12, head="boxes", human={0: boxes, 5: boxes, 6: boxes, 7: boxes}, space=SPACE)
    pool = FakeDataset("pool", 8)
    teachers = [FakeTeacher(Boxes), FakeTeacher(Mask)]
    report = label_pool([one, pool], teachers, tmp_path, Labelling(shard=10, batch=4))
    assert (report.counts["boxes"].human, report.counts["boxes"].labelled) == (4, 16)
    assert (report.counts["mask"].human, report.counts["mask"].labelled) == (0, 20)
    assert not labelled(tmp_path, "boxes") & {f"one/{i:04d}.jpg" for i in (0, 5, 6, 7)}
    assert len(labelled(tmp_path, "mask")) == 20


def test_images_that_no_teacher_needs_are_not_decoded(tmp_path: Path) -> None:
    human: dict[int, Target] = {i: Label(torch.eye(3)[0]) for i in range(12)}
    dataset = FakeDataset("one", 12, head="label", human=human, space=SPACE)
    report = label_pool([dataset], [FakeTeacher(Label)], tmp_path, Labelling(shard=5))
    assert dataset.reads == 0
    assert report.counts["label"].human == 12
    assert Store(tmp_path).get("label", "one", "0000.jpg") is None
    assert len(Store(tmp_path).manifest("label").shards) == 3


# What is set aside ------------------------------------------------------------------------------------------


def test_an_undecodable_image_changes_nothing_but_its_own_row(tmp_path: Path) -> None:
    told: list[tuple[str, str, str, str]] = []
    good, broken = FakeDataset("one", 21), FakeDataset("one", 21, bad=[0, 6, 20])
    teachers, others = all_teachers(), all_teachers()
    label_pool([good], teachers, tmp_path / "good", Labelling(shard=10, batch=4))
    report = label_pool(
        [broken], others, tmp_path / "bad", Labelling(shard=10, batch=4), quarantine=lambda *entry: told.append(entry)
    )
    assert (teachers[0].seen, others[0].seen) == ([4, 4, 2, 4, 4, 2, 1], [4, 4, 2, 4, 4, 2]), "the same batches"
    for head, n in report.counts.items():
        assert (n.read, n.labelled, n.undecodable) == (21, 18, 3)
        rows = {record.id: record for record in records(tmp_path / "good", head)}
        for record in records(tmp_path / "bad", head):
            for name in type(record.target).__slots__:
                assert torch.equal(getattr(record.target, name), getattr(rows[record.id].target, name))
    assert told == [(f"one/{i:04d}.jpg", broken.sha256(i), "decode", "not an image") for i in (0, 6, 20)], (
        "once an image, not once a head"
    )
    note = read_note(tmp_path / "bad" / "mask" / "part-00000.parquet")
    assert note is not None
    assert [(e.id, e.stage) for e in note.quarantined] == [("0000.jpg", "decode"), ("0006.jpg", "decode")]


def test_a_networks_labels_keep_every_bit_beside_an_undecodable_image(tmp_path: Path) -> None:
    """A convolution over the whole batch, whose sums depend on the size of the batch."""
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 24, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(24, 1, 3, padding=1)
    )
    torch.manual_seed(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)

    class Net(FakeTeacher):
        def predict(self, images: Sequence[UInt8]) -> list[Target]:
            resize = torch.nn.functional.interpolate
            inputs = [torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255 for image in images]
            with torch.no_grad():
                maps = net(torch.cat([resize(image, (32, 32)) for image in inputs]))
            sizes = [image.shape[:2] for image in images]
            fields = [resize(m[None], size)[0, 0] for m, size in zip(maps, sizes, strict=True)]
            return [Field(field, torch.ones_like(field, dtype=torch.bool)) for field in fields]

    for name, bad in (("good", []), ("bad", [2, 9])):
        label_pool([FakeDataset("one", 16, bad=bad)], [Net(Field)], tmp_path / name, Labelling(batch=8))
    good = {record.id: record.target for record in records(tmp_path / "good", "field")}
    rows = records(tmp_path / "bad", "field")
    assert len(rows) == 14
    assert all(torch.equal(row.target.values, good[row.id].values) for row in rows)  # type: ignore[union-attr]


def test_a_faulty_prediction_is_set_aside_for_its_head_only(tmp_path: Path) -> None:
    told: list[Any] = []
    dataset = FakeDataset("one", 200)
    teachers = [FakeTeacher(Label, change=nan_on(dataset, 5, 150)), FakeTeacher(Boxes)]
    report = label_pool([dataset], teachers, tmp_path, quarantine=lambda *entry: told.append(entry))
    n = report.counts["label"]
    assert (n.read, n.labelled, n.faulty, n.undecodable) == (200, 198, 2, 0)
    assert report.counts["boxes"].labelled == 200
    assert [(entry[0], entry[2]) for entry in told] == [
        ("label/one/0005.jpg", "label"),
        ("label/one/0150.jpg", "label"),
    ]
    assert Store(tmp_path).get("label", "one", "0005.jpg") is None
    assert Store(tmp_path).get("boxes", "one", "0005.jpg") is not None


def test_many_faulty_predictions_stop(tmp_path: Path) -> None:
    dataset = FakeDataset("one", 40)
    teacher = FakeTeacher(Label, change=nan_on(dataset, 5, 30, 31, 39))
    with pytest.raises(UserError, match=r"(?s)fails on more than 0.1%.*0039.jpg.*4 of 40"):
        label_pool([dataset], [teacher], tmp_path, Labelling(shard=20))
    assert read_note(tmp_path / "label" / "part-00000.parquet") is not None, "the first shard was good"
    assert Store(tmp_path).heads() == []
    with pytest.raises(UserError, match="fails on more than"):  # counts of the kept shard are not forgotten
        label_pool([dataset], [teacher], tmp_path, Labelling(shard=20))


def test_a_share_of_a_large_pool_may_be_faulty(tmp_path: Path) -> None:
    images = Pool([FakeDataset("one", 5999)], 1000)
    tally = Tally(Column(Signature.of(FakeTeacher(Label)), tmp_path, images, Labelling()), 0)
    for _ in range(5):
        tally.set_aside(Known("one", "a", "", None), LABEL, "NaN")
    with pytest.raises(UserError, match="6 of 5999"):
        tally.set_aside(Known("one", "a", "", None), LABEL, "NaN")


def test_three_faulty_predictions_of_a_small_pool_do_not_stop(tmp_path: Path) -> None:
    """0.1% of 40 images is less than one."""
    dataset = FakeDataset("one", 40)
    teacher = FakeTeacher(Label, change=nan_on(dataset, 5, 20, 21))
    assert label_pool([dataset], [teacher], tmp_path / "three").counts["label"].faulty == 3
    teacher = FakeTeacher(Label, change=nan_on(dataset, 5, 20, 21, 22))
    with pytest.raises(UserError, match="4 of 40"):
        label_pool([dataset], [teacher], tmp_path / "four")


def test_many_undecodable_images_stop_where_there_is_a_limit(tmp_path: Path) -> None:
    good, bad = FakeDataset("one", 200, bad=range(3)), FakeDataset("one", 200, bad=range(4))
    assert label_pool([good], [FakeTeacher(Label)], tmp_path / "three", limit=0.01).counts["label"].undecodable == 3
    with pytest.raises(UserError, match=r"4 of 200 images have no label of head 'label': above the limit of 1.0%"):
        label_pool([bad], [FakeTeacher(Label)], tmp_path / "four", limit=0.01)
    assert label_pool([bad], [FakeTeacher(Label)], tmp_path / "four", limit=0.02).counts["label"].undecodable == 4


@pytest.mark.parametrize("found", [9, 10])
def test_a_detector_that_finds_nothing_stops(found: int, tmp_path: Path) -> None:
    dataset = FakeDataset("one", 1000)
    one = Boxes.make([[0, 0, 2, 2]], [0], [0.6])
    weak = Boxes.make([[0, 0, 2, 2]], [0], [0.4])
    seen = iter(range(2000))
    teacher = FakeTeacher(Boxes, change=lambda image, target: one if next(seen) < found else weak)
    if found == 10:
        assert label_pool([dataset], [teacher], tmp_path, Labelling(shard=300)).counts["boxes"].empty == 990
    else:
        with pytest.raises(UserError, match=r"(?s)finds nothing.*991 of the first 1000"):
            label_pool([dataset], [teacher], tmp_path, Labelling(shard=300))


def test_an_empty_pool_of_boxes_below_a_thousand_images_is_fine(tmp_path: Path) -> None:
    teacher = FakeTeacher(Boxes, change=lambda image, target: Boxes.make([], []))
    report = label_pool([FakeDataset("one", 40)], [teacher], tmp_path)
    assert report.counts["boxes"].labelled == report.counts["boxes"].empty == 40


# Before the first image -------------------------------------------------------------------------------------


def test_what_does_not_fit_stops_before_the_first_image(tmp_path: Path) -> None:
    dataset = FakeDataset("one", 3)
    swapped = FakeTeacher(Label, classes=("dog", "cat", "bird"))
    with pytest.raises(UserError, match=r"(?s)another label space.*class 0 is 'cat', not 'dog'"):
        label_pool([dataset], [swapped], tmp_path)
    with pytest.raises(UserError, match="3 classes, not 2"):
        label_pool([dataset], [FakeTeacher(Label, classes=("cat", "dog"))], tmp_path)
    labelled = FakeDataset("two", 3, head="label", space=LabelSpace(("cat", "cow", "bird")))
    with pytest.raises(UserError, match="class 1 is 'dog', not 'cow'"):
        label_pool([dataset, labelled], [FakeTeacher(Label)], tmp_path)
    with pytest.raises(UserError, match="a head is given twice"):
        label_pool([dataset], [FakeTeacher(Label), FakeTeacher(Label)], tmp_path)
    with pytest.raises(UserError, match="a source is given twice"):
        label_pool([dataset, FakeDataset("one", 2)], [FakeTeacher(Label)], tmp_path)
    with pytest.raises(UserError, match="no image"):
        label_pool([FakeDataset("one", 0)], [FakeTeacher(Label)], tmp_path)
    with pytest.raises(UserError, match="name of a folder"):
        label_pool([dataset], [FakeTeacher(Label, head="a/b")], tmp_path)
    assert dataset.reads == 0
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_of_another_kind_or_count_stops(tmp_path: Path) -> None:
    dataset = FakeDataset("one", 3)
    with pytest.raises(UserError, match="kind"):
        label_pool([dataset], [FakeTeacher(Label, change=lambda i, t: predict_one(Mask, i))], tmp_path)
    short = FakeTeacher(Label)
    short.predict = lambda images: []  # type: ignore[method-assign]
    with pytest.raises(UserError, match="gives 0 predictions for 3 images"):
        label_pool([dataset], [short], tmp_path)
    assert not list(tmp_path.rglob("part-*"))


# Again ------------------------------------------------------------------------------------------------------


def test_a_finished_pass_is_not_done_again(tmp_path: Path) -> None:
    label_small_pool(tmp_path)
    before = contents(tmp_path)
    files = {path: path.stat().st_ino for path in tmp_path.rglob("part-*")}
    stream = io.StringIO()
    teacher = FakeTeacher(Boxes, threshold=0.9)  # a threshold is no reason to label again
    datasets = [FakeDataset("first", 35, bad=[3, 20]), FakeDataset("second", 30, bad=[11])]
    report = label_pool(datasets, [teacher], tmp_path, Labelling(shard=13, batch=4), progress=Progress(stream))
    assert (report.labelled_now["boxes"], report.counts["boxes"].labelled) == (0, 62)
    assert report.counts["boxes"].undecodable == 3
    assert teacher.seen == []
    assert {path: path.stat().st_ino for path in tmp_path.rglob("part-*")} == files, "none was written again"
    assert {f for f, digest in contents(tmp_path).items() if before[f] != digest} == {"boxes/_manifest.json"}
    assert Store(tmp_path).manifest("boxes").task["threshold"] == 0.9
    assert "label the pool" in stream.getvalue()


def test_a_changed_teacher_makes_its_own_head_again(tmp_path: Path) -> None:
    dataset = FakeDataset("one", 20)
    label_pool([dataset], all_teachers(), tmp_path, Labelling(shard=8))
    before = contents(tmp_path)
    teachers = all_teachers()
    teachers[1].hash = "v2"
    report = label_pool([dataset], teachers, tmp_path, Labelling(shard=8))
    assert report.labelled_now == {"label": 0, "boxes": 20, "mask": 0, "field": 0, "vectors": 0, "maps": 0}
    changed = {file for file, digest in contents(tmp_path).items() if before[file] != digest}
    assert {Path(file).parts[0] for file in changed} == {"boxes"}
    assert {record.teacher for record in records(tmp_path, "boxes")} == {"v2"}


def test_a_head_that_is_half_made_again_is_not_finished(tmp_path: Path) -> None:
    dataset = FakeDataset("one", 20)
    label_pool([dataset], [FakeTeacher(Field), FakeTeacher(Mask)], tmp_path, Labelling(shard=8))
    teacher = FakeTeacher(Field, hash="v2")

    def fail(image: UInt8, target: Target) -> Target:
        if len(teacher.seen) == 2:
            raise RuntimeError("out of memory")
        return target

    teacher.change = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        label_pool([dataset], [teacher], tmp_path, Labelling(shard=8))
    assert Store(tmp_path).heads() == ["mask"]
    label_pool(
        [dataset], [FakeTeacher(Field)], tmp_path, Labelling(shard=8)
    )  # back again: only the first shard had changed
    assert {record.teacher for record in records(tmp_path, "field")} == {"v1"}


@pytest.mark.parametrize("change", ["pixels", "human", "more", "fewer"])
def test_changed_images_make_their_shards_again(change: str, tmp_path: Path) -> None:
    before = FakeDataset("one", 20)
    after = FakeDataset("one", {"more": 23, "fewer": 11}.get(change, 20))
    if change == "pixels":
        pixels = after.pixels
        after.pixels = lambda i: pixels(i)[::-1].copy() if i == 9 else pixels(i)  # type: ignore[method-assign]
    if change == "human":
        after.head, after.human = "mask", {9: predict_one(Mask, before.pixels(9))}
    label_pool([before], all_teachers(), tmp_path / "store", Labelling(shard=8))
    report = label_pool([after], all_teachers(), tmp_path / "store", Labelling(shard=8))
    now = {"pixels": 8, "human": 7, "more": 7, "fewer": 3}[change]
    assert report.labelled_now["mask"] == now
    assert report.labelled_now["field"] == (0 if change == "human" else now)
    label_pool([after], all_teachers(), tmp_path / "fresh", Labelling(shard=8))
    assert contents(tmp_path / "store") == contents(tmp_path / "fresh")


def test_a_store_of_another_pool_is_refused(tmp_path: Path) -> None:
    label_pool([FakeDataset("one", 5)], [FakeTeacher(Field)], tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"(?s)another pool.*one/0000.jpg.*begins with 'other/0000.jpg'"):
        label_pool([FakeDataset("other", 5)], [FakeTeacher(Field)], tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("count", [11, 5])
def test_a_pool_of_other_images_with_the_same_names_is_refused(count: int, tmp_path: Path) -> None:
    label_pool([FakeDataset("one", 20)], [FakeTeacher(Field)], tmp_path, Labelling(shard=8))
    before, other = contents(tmp_path), FakeDataset("one", count)
    pixels = other.pixels
    other.pixels = lambda i: 255 - pixels(i)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="another pool: of their first images none is in this one"):
        label_pool([other], [FakeTeacher(Field)], tmp_path, Labelling(shard=8))
    assert contents(tmp_path) == before
    other.pixels = lambda i: pixels(i) if i == 3 else 255 - pixels(i)  # type: ignore[method-assign]
    label_pool([other], [FakeTeacher(Field)], tmp_path, Labelling(shard=8))  # one is left: a pool that has changed


def test_a_shard_that_another_pass_wrote_is_not_certified(tmp_path: Path) -> None:
    dataset, teacher = FakeDataset("one", 5), FakeTeacher(Field)
    label_pool([dataset], [teacher], tmp_path)
    pool = Pool([dataset], 1000)
    column = Column(Signature.of(teacher), tmp_path, pool, Labelling())
    found = column.find(0)
    assert found is not None
    column.keep(0, found)
    label_pool([dataset], [FakeTeacher(Field, hash="another one, of other size")], tmp_path)
    with pytest.raises(UserError, match="another pass wrote this shard meanwhile"):
        column.finish()


def test_a_damaged_shard_is_made_again(tmp_path: Path) -> None:
    dataset = FakeDataset("one", 20)
    label_pool([dataset], all_teachers(), tmp_path, Labelling(shard=8))
    before = contents(tmp_path)
    cut, lost = tmp_path / "mask" / "part-00001.parquet", tmp_path / "label" / "part-00000.parquet"
    cut.write_bytes(cut.read_bytes()[:-9])
    lost.unlink()
    report = label_pool([dataset], all_teachers(), tmp_path, Labelling(shard=8))
    assert report.labelled_now == {"label": 8, "boxes": 0, "mask": 8, "field": 0, "vectors": 0, "maps": 0}
    assert contents(tmp_path) == before


# Kills ------------------------------------------------------------------------------------------------------


def test_kills_at_random_moments_leave_no_trace(tmp_path: Path) -> None:
    assert kill_until(3, tmp_path).kills >= 3


@pytest.mark.parametrize("at", [0, 1, 7, 14])
def test_a_kill_costs_one_shard(at: int, tmp_path: Path) -> None:
    """Killed inside the prediction of batch `at`: 40 images in 4 shards of 5 batches, for two heads."""
    dataset = FakeDataset("one", 40)

    def work() -> None:
        teachers = [FakeTeacher(Field), FakeTeacher(Mask)]

        def kill(image: UInt8, target: Target) -> Target:
            if len(teachers[1].seen) == at + 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return target

        teachers[1].change = kill
        label_pool([dataset], teachers, tmp_path / "killed", Labelling(shard=10, batch=2))

    assert_killed(work)
    teachers = [FakeTeacher(Field), FakeTeacher(Mask)]
    report = label_pool([dataset], teachers, tmp_path / "killed", Labelling(shard=10, batch=2))
    finished = at // 5
    for teacher in teachers:
        assert len(teacher.seen) == 20 - 5 * finished
        assert report.labelled_now[teacher.head] == 40 - 10 * finished
        assert report.counts[teacher.head].labelled == 40
    label_pool([dataset], teachers, tmp_path / "whole", Labelling(shard=10, batch=2))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def assert_killed(work: Callable[[], None]) -> None:
    with pytest.raises(AssertionError, match="by itself"):
        run_and_kill(work, 30)


def test_all_fake_kinds_are_covered() -> None:
    from tutelage.labels.encoding import CODECS

    assert set(TASKS) == set(CODECS)


def test_a_persons_label_that_cannot_be_used_is_never_replaced(tmp_path: Path) -> None:
    dataset = FakeDataset("one", 6, head="field")

    def target(index: int) -> None:
        if index == 2:
            raise BadImage("no depth is valid")

    dataset.target = target
    report = label_pool([dataset], [FakeTeacher(Field), FakeTeacher(Mask)], tmp_path, Labelling(shard=4, batch=2))
    assert (report.counts["field"].human, report.counts["field"].labelled) == (1, 5)
    assert report.counts["mask"].labelled == 6
    store = Store(tmp_path)
    assert store.get("field", "one", "0002.jpg") is None
    assert store.get("mask", "one", "0002.jpg") is not None
    label_pool([dataset], [FakeTeacher(Field), FakeTeacher(Mask)], tmp_path, Labelling(shard=4, batch=2))
    assert Store(tmp_path).get("field", "one", "0002.jpg") is None
