"""What the pass survives with the same bytes: deaths at every step, slow workers, changed images, a full disk."""

from __future__ import annotations

import errno
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from kill_labelling import (
    QUICK,
    SHARD,
    STEADY,
    FakeDataset,
    FakeTeacher,
    begin,
    contents,
    ended,
    records,
    redone,
    small_work,
)
from PIL import Image

import tutelage.files
from tutelage.data.folders import Pool as PoolSource
from tutelage.data.source import Place
from tutelage.errors import UserError
from tutelage.labels import labelling, pool, receipts, shards, writing
from tutelage.labels.engines import join, label
from tutelage.labels.labelling import label_pool
from tutelage.labels.leases import Leases
from tutelage.labels.store import Store
from tutelage.labels.verify import verify
from tutelage.labels.work import Labelling
from tutelage.types import Boxes, Field

pytestmark = pytest.mark.usefixtures("no_sync")


# Deaths -----------------------------------------------------------------------------------------------------


def test_a_worker_that_dies_with_a_lease_costs_one_shard(tmp_path: Path, wanted: dict[str, str]) -> None:
    log, root = tmp_path / "log", tmp_path / "store"

    def work() -> None:
        join(small_work(log=log, suicide=tmp_path / "died", after=3, seconds=0.003), root, patience=STEADY)

    workers = [begin(work) for _ in range(3)]
    assert sorted(ended(worker) for worker in workers) == [-signal.SIGKILL, 0, 0]
    assert contents(root) == wanted
    assert 0 < redone(log) <= SHARD


def test_workers_that_all_work_on_the_same_shards(tmp_path: Path, wanted: dict[str, str]) -> None:
    """As if no lease was worth anything."""

    def work() -> None:
        Leases.claim = lambda self, name: True  # type: ignore[method-assign]
        Leases.taken = lambda self: set()  # type: ignore[method-assign]
        join(small_work(), tmp_path, patience=STEADY)

    assert [ended(worker) for worker in [begin(work) for _ in range(3)]] == [0, 0, 0]
    assert contents(tmp_path) == wanted


def test_a_worker_that_is_back_after_its_shard_was_made(tmp_path: Path, wanted: dict[str, str]) -> None:
    """It sleeps in the middle of a shard; the others take it for dead, and finish; then it goes on."""
    root, asleep = tmp_path / "store", tmp_path / "asleep"

    def sleep(image: Any, target: Any) -> Any:
        if not asleep.exists():
            asleep.touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        return target

    def work() -> None:
        given = FakeTeacher.__init__

        def slow(self: FakeTeacher, *args: Any, **options: Any) -> None:
            given(self, *args, **options)
            self.__dict__["predict"] = lambda images: [
                sleep(i, t) for i, t in zip(images, FakeTeacher.predict(self, images), strict=True)
            ]

        FakeTeacher.__init__ = slow  # type: ignore[method-assign]
        join(small_work(), root, patience=QUICK)

    slow = begin(work)
    while not asleep.exists():
        time.sleep(0.01)
    label(small_work(), root, patience=QUICK)
    finished = {name: digest for name, digest in contents(root).items() if not name.startswith(".leases")}
    assert finished == wanted
    before = {file: file.stat().st_ino for file in root.rglob("part-*")}
    os.kill(slow, signal.SIGCONT)
    assert ended(slow) == 0
    assert contents(root) == wanted
    assert {file: file.stat().st_ino for file in root.rglob("part-*")} == before, "it wrote nothing"


STEPS: dict[str, tuple[object, str]] = {
    "before the file": (writing, "write_shard"),
    "after the file, before its name": (Path, "replace"),
    "after the name": (tutelage.files, "sync"),
    "before the receipt": (receipts.Receipts, "add"),
    "before the lease is given back": (Leases, "release"),
    "before the manifest": (writing, "write_manifest"),
    "before the manifest has its name": (shards, "write_text"),
}


@pytest.mark.parametrize("step", list(STEPS))
def test_a_kill_at_each_step_of_a_commit(step: str, tmp_path: Path, wanted: dict[str, str]) -> None:
    log, root = tmp_path / "log", tmp_path / "store"
    place, name = STEPS[step]
    at = 2 if "manifest" in step else 13 if "lease" not in step else 3

    def work() -> None:
        real, calls = getattr(place, name), [0]

        def dies(*args: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        setattr(place, name, dies)
        join(small_work(log=log), root)

    assert ended(begin(work)) == -signal.SIGKILL
    assert contents(root) != wanted
    join(small_work(log=log), root)
    assert contents(root) == wanted
    assert redone(log) <= SHARD


def test_half_a_receipt_is_no_receipt(tmp_path: Path, wanted: dict[str, str]) -> None:
    with Leases(tmp_path / ".leases", "other"):
        pass
    (tmp_path / ".leases").mkdir()
    (tmp_path / ".leases" / "written-a.jsonl").write_text('{"head": "mask", "shard": {"file": 3}}\n{"head": "ma')
    (tmp_path / ".leases" / "written-b.jsonl").write_bytes(b"\xff\xfe\n")
    label(small_work(), tmp_path)
    assert contents(tmp_path) == wanted


def test_a_late_commit_leaves_a_valid_manifest(tmp_path: Path) -> None:
    """A worker that opened the store before the others finished, and does not see that its shard is there."""
    dataset, teacher = FakeDataset("one", 20), FakeTeacher(Field)
    images = labelling.open_pool([dataset], 10, ["field"])
    late = writing.Column(writing.Signature.of(teacher), tmp_path, images, writing.Labelling(shard=10))
    label_pool([dataset], [FakeTeacher(Field)], tmp_path, Labelling(shard=10))
    before = contents(tmp_path)
    known = [images.know(i) for i in range(10)]
    row = labelling._row
    tally, rows = writing.Tally(late, 0), []
    for i, one in enumerate(known):
        pixels = dataset.pixels(i)
        values, empty = row(late, one, pixels, teacher.predict([pixels])[0])
        rows.append(values)
        tally.label(empty)
    late.find = lambda number: None  # type: ignore[method-assign]
    assert late.commit(0, known, rows, tally, time.time(), lambda: None) is not None
    assert contents(tmp_path) == before
    assert verify(tmp_path) == []


def test_a_pass_with_other_settings_is_refused_while_one_is_at_work(tmp_path: Path) -> None:
    root = tmp_path / "store"
    label(small_work(), root)
    before = contents(root)
    work = small_work(version="v2")

    def hold() -> None:
        Leases(root / ".leases", "another pass").__enter__()
        (tmp_path / "holding").touch()
        time.sleep(60)

    holder = begin(hold)
    while not (tmp_path / "holding").exists():
        time.sleep(0.01)
    try:
        with pytest.raises(UserError, match="another labelling pass"):
            label(work, root)
        assert {k: v for k, v in contents(root).items() if not k.startswith(".leases")} == before
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitid(os.P_PID, holder, os.WEXITED | os.WNOWAIT)
    label(work, root)  # at once: a killed process of this machine is not waited for
    assert ended(holder) == -signal.SIGKILL
    assert not (root / ".leases").exists()
    assert {record.teacher for record in records(root, "mask")} == {"v2"}


# What is kept without reading images ------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for number in range(12):
        file = tmp_path / "photos" / "ab"[number % 2] / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 12), (number, 2 * number, 3)).save(file)
    time.sleep(0.02)  # clocks of files tick every few milliseconds
    monkeypatch.setattr(pool, "_SKEW", 0.0)
    return tmp_path


def relabel(photos: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Label again: images that were read for their digest, and labels that were made."""
    from tutelage.data import files

    read: list[Path] = []
    real = files.sha256_of
    monkeypatch.setattr(files, "sha256_of", lambda path: (read.append(path), real(path))[1])
    dataset = PoolSource(images=Path("photos")).open("photos", Place(photos, photos))
    report = label_pool([dataset], [FakeTeacher(Field), FakeTeacher(Boxes)], photos / "store", Labelling(shard=4))
    monkeypatch.undo()
    monkeypatch.setattr(pool, "_SKEW", 0.0)
    return len(read), report.labelled_now["field"]


def test_images_are_read_again_only_where_their_files_changed(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert relabel(photos, monkeypatch) == (12, 12)
    assert relabel(photos, monkeypatch) == (0, 0)
    time.sleep(0.02)
    file = photos / "photos" / "a" / "02.png"
    content, status = file.read_bytes(), file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # a copy that keeps times: its ctime tells
    time.sleep(0.02)
    assert relabel(photos, monkeypatch) == (4, 0), "one shard is compared"
    assert relabel(photos, monkeypatch) == (0, 0), "and that is remembered"
    time.sleep(0.02)
    Image.new("RGB", (16, 12), (200, 0, 0)).save(file)
    time.sleep(0.02)
    assert relabel(photos, monkeypatch) == (4, 4)
    assert relabel(photos, monkeypatch) == (0, 0)
    monkeypatch.setattr(pool, "_SKEW", 120.0)
    dataset = PoolSource(images=Path("photos")).open("photos", Place(photos, photos))
    images = labelling.open_pool([dataset], 4, [])
    assert images.unchanged_since(0, time.time() + 60, False) is False, "clocks of two machines may differ so much"
    assert images.unchanged_since(0, time.time() + 60, True) is True


def test_a_folder_in_the_place_of_another_is_noticed(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are older than the labels."""
    other = photos / "other"
    (photos / "photos" / "a").rename(other)
    other.rename(photos / "photos" / "a")
    (photos / "new").mkdir()
    for file in (photos / "photos" / "a").iterdir():
        Image.new("RGB", (16, 12), (9, 9, 9)).save(photos / "new" / file.name)
    time.sleep(0.02)
    assert relabel(photos, monkeypatch) == (12, 12)
    time.sleep(0.02)
    (photos / "photos" / "a").rename(photos / "old")
    (photos / "new").rename(photos / "photos" / "a")
    time.sleep(0.02)
    read, made = relabel(photos, monkeypatch)
    assert made == 8, "two shards hold images of this folder"
    assert read >= 8


def test_a_missing_image_is_set_aside_and_does_not_end_the_pass(photos: Path) -> None:
    dataset = PoolSource(images=Path("photos")).open("photos", Place(photos, photos))
    (photos / "photos" / "b" / "01.png").unlink()
    report = label_pool([dataset], [FakeTeacher(Field)], photos / "store", Labelling(shard=4))
    assert (report.counts["field"].undecodable, report.counts["field"].labelled) == (1, 11)


def test_a_new_human_label_is_noticed_without_reading_images(tmp_path: Path) -> None:
    before, after = FakeDataset("one", 20, head="field"), FakeDataset("one", 20, head="field")
    after.human = {9: FakeTeacher(Field).predict([after.pixels(9)])[0]}
    for dataset in (before, after):
        dataset.changed = lambda start, stop: 0.0  # type: ignore[method-assign]
    label_pool([before], [FakeTeacher(Field), FakeTeacher(Boxes)], tmp_path, Labelling(shard=8))
    report = label_pool([after], [FakeTeacher(Field), FakeTeacher(Boxes)], tmp_path, Labelling(shard=8))
    assert (report.labelled_now, report.counts["field"].human) == ({"field": 7, "boxes": 0}, 1)


def test_listings_tell_lists_apart(photos: Path) -> None:
    dataset = PoolSource(images=Path("photos")).open("photos", Place(photos, photos))
    every = {dataset.listing(a, b) for a in range(12) for b in range(a + 1, 13)}
    assert len(every) == 12 * 13 // 2
    assert dataset.listing(3, 7) == PoolSource(images=Path("photos")).open("x", Place(photos, photos)).listing(3, 7)
    fake = FakeDataset("one", 9)
    assert len({fake.listing(a, b) for a in range(9) for b in range(a + 1, 10)}) == 45


# A full disk ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 700, 21000, "sync"])
def test_a_full_disk_stops_with_its_path_and_goes_on_when_there_is_room(
    room: int | str, tmp_path: Path, wanted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for so many bytes of shards, or for all but the sync."""
    full, written = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), [0]
    with monkeypatch.context() as patch:
        if room == "sync":
            patch.setattr(tutelage.files.os, "fsync", lambda _: (_ for _ in ()).throw(full))
        else:
            real = shards._Hashing.write

            def write(self: Any, data: Any) -> int:
                written[0] += len(data)
                if written[0] > int(room):
                    raise full
                return real(self, data)

            patch.setattr(shards._Hashing, "write", write)
        with pytest.raises(UserError, match=r"(?s)no space left.*part-000.*make room.*run again") as caught:
            label(small_work(), tmp_path)
    assert str(caught.value.file).startswith(str(tmp_path))
    assert not list(tmp_path.rglob("*.part"))
    assert Store(tmp_path).heads() == []
    label(small_work(), tmp_path)
    assert contents(tmp_path) == wanted


def test_a_quota_that_is_used_up(tmp_path: Path, wanted: dict[str, str]) -> None:
    """The kernel itself refuses: no file may be larger than 6,000 bytes."""

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
        with pytest.raises(UserError, match=r"(?s)file too large.*part-.*make room"):
            label(small_work(), tmp_path)

    assert ended(begin(work)) == 0
    assert not list(tmp_path.rglob("*.part"))
    label(small_work(), tmp_path)
    assert contents(tmp_path) == wanted


def test_a_shard_whose_temporary_file_was_taken_away_is_written_again(
    tmp_path: Path, wanted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another process, which took this one for dead and was the last to leave."""
    real, lost = Path.replace, list[Path]()

    def replace(self: Path, target: Any) -> Any:
        if "part-00002.parquet" in self.name and not lost:
            lost.append(self)
            self.unlink()
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    label(small_work(), tmp_path)
    assert lost
    assert contents(tmp_path) == wanted
