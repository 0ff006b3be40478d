"""One head of the labels store while it is being written: what is there, what is owed, what became of the images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tutelage.errors import UserError
from tutelage.labels.encoding import EXACT_CLASSES, FLOOR, Form
from tutelage.labels.pool import Known, Pool, digest
from tutelage.labels.shards import describe_shard, write_manifest, write_shard
from tutelage.labels.store import (
    MANIFEST,
    VERSION,
    Counts,
    SetAside,
    Shard,
    ShardNote,
    Store,
    head_folder,
    read_footer,
    read_note,
    shard_file,
)
from tutelage.labels.work import Labelling
from tutelage.part import fingerprint
from tutelage.tasks.task import Task
from tutelage.teachers.teacher import Teacher
from tutelage.types import Boxes, Label

DECODE, LABEL = "decode", "label"
"""The stages at which an image is set aside: it cannot be read, or the teacher's prediction is no label."""

FEW = 3
"""So many images may always be set aside: a share of a small pool is less than one."""

_SOME = 16  # images that tell whether a pool is another one
_FAULTY_SHARE = 0.001  # of the pool: more predictions that are no labels stop the pass
_FIRST, _EMPTY_SHARE = 1000, 0.99  # a detector that finds nothing on more of its first images stops the pass


@dataclass(frozen=True)
class Signature:
    """What a teacher says of itself, without the teacher: enough to know its labels.

    Attributes:
        head, task: what it fills.
        classes: its label space; None for kinds without one.
        teacher: its hash.
        about: for the manifest.
    """

    head: str
    task: Task
    classes: tuple[str, ...] | None
    teacher: str
    about: Mapping[str, Any]

    @classmethod
    def of(cls, teacher: Teacher) -> Signature:
        classes = teacher.space.names if teacher.space else teacher.task.classes
        return cls(teacher.head, teacher.task, classes, teacher.hash, teacher.about)


@dataclass(frozen=True)
class Found:
    """A shard that is there, by the same teacher; its images may have changed since.

    Attributes:
        note: its metadata, and `print` the fingerprint of that.
        now: whether it was made, or found good, after this pass began.
        seconds: when its first image was read.
    """

    note: ShardNote
    print: str
    now: bool
    seconds: float


class Column:
    """One head of the store while it is being written.

    Args:
        signature: of the teacher that fills it.
        root: the store's folder.
        pool: what it is filled for.
        settings: what decides the bytes.
        limit: the share of the pool that may be set aside.

    Raises:
        UserError: the folder holds labels of another pool, or of another version of the store.
    """

    def __init__(self, signature: Signature, root: Path, pool: Pool, settings: Labelling, limit: float = 1.0) -> None:
        self.signature, self.head, self.task = signature, signature.head, signature.task
        self.counts, self.labelled_now = Counts(), 0
        self._root, self._pool, self._limit = root, pool, limit
        self._folder = head_folder(root, self.head)
        names = signature.classes
        classes = None if names is None else len(names)
        self.form = Form(self.head, self.task.kind, classes, settings.reduce, settings.top_classes)
        self._note = self._blank_note(names)
        self._prints: dict[int, str] = {}
        self._first = _FirstImages(self.head)
        self._receipts: dict[str, Shard] = {}
        self._manifest_before = b""
        if (self._folder / MANIFEST).is_file():
            self._manifest_before = (self._folder / MANIFEST).read_bytes()
            self.take_receipts(Store(root).manifest(self.head).shards)
        self._before = {file.name: _stamp(file.stat()) for file in _shard_files(self._folder)}
        self._refuse_other_pool()

    @property
    def made_by(self) -> str:
        """Fingerprint of what decides its labels, but the images."""
        return self._note.made_by

    def _blank_note(self, names: tuple[str, ...] | None) -> ShardNote:
        settings = {"reduce": self.form.reduce} | ({"floor": FLOOR} if self.task.kind is Boxes else {})
        if self.task.kind is Label and (self.form.classes or 0) > EXACT_CLASSES:
            settings["top_classes"] = self.form.top_classes
        kind = self.task.kind.__name__
        return ShardNote(
            head=self.head,
            kind=kind,
            task=self.task.plain(),
            classes=names,
            teacher=self.signature.teacher,
            settings=settings,
            made_by=fingerprint([VERSION, self.head, kind, names, self.signature.teacher, settings]),
            pool=self._pool.first(),
            images="",
            counts=Counts(),
        )

    def _refuse_other_pool(self) -> None:
        """Labels of a pool that has changed are made again where it has, all of them where all images were replaced in
        their place; those of another pool stay as they are. Images are read only where names or number differ."""
        file = self._folder / shard_file(0)
        note = read_note(file)
        if note is None:
            return
        if note.pool != self._pool.first():
            raise UserError(
                "the labels here are those of another pool",
                file=self._folder,
                field="first image",
                value=note.pool,
                fix=f"this pool begins with '{self._pool.first()}': label into another folder, or delete this one",
            )
        fewer = len(self._before) > self._pool.shards
        if (fewer or note.listing != self._pool.listing(0, self.head)) and not self._shows_any_of(file):
            raise UserError(
                "the labels here are those of another pool: of their first images none is in this one",
                file=self._folder,
                field="images",
                fix="label into another folder, or delete this one",
            )

    def _shows_any_of(self, file: Path) -> bool:
        """Whether the pool's first images include one that a shard has labels of, by name and bytes. Some are read."""
        with suppress(OSError, pa.ArrowException):
            rows = pq.read_table(file, columns=["source", "id", "image_sha256"]).to_pydict()
            known = dict(zip(zip(rows["source"], rows["id"], strict=True), rows["image_sha256"], strict=True))
            images = [image for image in self._pool.images(0) if self._pool.name(image) in known]
            some = images[:: -(-len(images) // _SOME)] if images else []
            return not known or any(known[self._pool.name(i)] == self._pool.know(i).sha256 for i in some)
        return True

    def find(self, number: int) -> Found | None:
        """A shard that is there, whole as far as its footer tells, and by the same teacher."""
        file = self._folder / shard_file(number)
        try:
            status = file.stat()
        except FileNotFoundError:
            return None
        footer = read_footer(file)
        if footer is None or footer[0].made_by != self.made_by:
            return None
        return Found(*footer, _stamp(status) != self._before.get(file.name), status.st_mtime)

    def touch(self, number: int, began: float) -> None:
        """Note when the images of a shard that is there were last compared with it: its file's modification time."""
        try:
            os.utime(self._folder / shard_file(number), (began, began))
        except OSError:  # somebody else's file, or gone: it is compared again next time
            return

    def keep(self, number: int, found: Found) -> None:
        """Count a shard that is there. Raises UserError where that is a reason to stop."""
        if found.now:
            self.labelled_now += found.note.counts.labelled
        self._count(number, found.note.counts, found.print)

    def commit(
        self,
        number: int,
        images: Sequence[Known],
        rows: list[dict[str, Any]],
        tally: Tally,
        began: float,
        confirm: Callable[[], None],
    ) -> Shard | None:
        """Write one shard, unless another process was faster; until `finish`, the head is unfinished.

        Args:
            number: of the shard.
            images: all of it.
            rows: its labels.
            tally: what became of the images.
            began: when the first of them was read, seconds since the epoch.
            confirm: asked just before the writing; raises where it must not be.
        """
        note = self._note.but(
            listing=self._pool.listing(number, self.head, images),
            images=digest(images, self.head),
            counts=tally.counts(len(images)),
            quarantined=tuple(tally.aside),
        )
        found = self.find(number)
        if found is not None and found.note.images == note.images:
            self.keep(number, found)
            return None
        confirm()
        self._retire_manifest()
        try:
            shard = write_shard(self._root, number, note, rows, began)
        except FileNotFoundError:  # taken for dead, and its temporary file taken away
            shard = write_shard(self._root, number, note, rows, began)
        self.take_receipts([shard])
        self.labelled_now += len(rows)
        self._count(number, note.counts, shard.note)
        return shard

    def _retire_manifest(self) -> None:
        """Before the first change: the manifest of an earlier pass is no longer true. One that was written since then,
        by a process that finished the same work, stays."""
        file = self._folder / MANIFEST
        if self._manifest_before and file.is_file() and file.read_bytes() == self._manifest_before:
            file.unlink(missing_ok=True)

    def _count(self, number: int, counts: Counts, print: str) -> None:
        self._prints[number] = print
        self.counts = self.counts.plus(counts)
        if self.task.kind is Boxes:
            self._first.add(number, counts.labelled, counts.empty)

    def check_faults(self, faulty: int, aside: int, last: str, reason: str) -> None:
        """The two limits of what may be set aside. Raises UserError.

        Args:
            faulty: predictions that are no labels.
            aside: all images without a label, those that do not decode included.
            last: the image met last, and `reason` why it is set aside.
        """
        total = len(self._pool)
        if faulty > max(FEW, _FAULTY_SHARE * total):
            raise UserError(
                f"the teacher of head '{self.head}' fails on more than {_FAULTY_SHARE:.1%} of the pool",
                record=last,
                value=f"{reason} ({faulty} of {total} images so far)",
                fix="look at this teacher's predictions: weights, preprocessing, number format",
            )
        if aside > max(FEW, self._limit * total):
            raise UserError(
                f"{aside} of {total} images have no label of head '{self.head}': above the limit of {self._limit:.1%}",
                record=last,
                value=reason,
                fix="mend or remove the files, or raise the limit (`quarantine_limit`)",
            )

    def during(self, number: int, tally: Tally) -> None:
        """Raises UserError when nearly all of the pool's first labels are empty."""
        self._first.during(number, tally.labelled, tally.empty)

    def take_receipts(self, shards: Iterable[Shard]) -> None:
        """Remember descriptions of files, so that these need not be read again for the manifest."""
        self._receipts |= {f"{shard.file} {shard.note}": shard for shard in shards}

    def finish(self) -> None:
        """Take away what a larger pool left behind, and write the manifest. Every shard has been counted."""
        self.check_faults(self.counts.faulty, self.counts.quarantined, self.head, "counted over all shards")
        names = {shard_file(number) for number in range(self._pool.shards)}
        for file in _shard_files(self._folder):
            if file.name not in names:
                self._retire_manifest()
                file.unlink(missing_ok=True)
        shards = [self._describe(number) for number in range(self._pool.shards)]
        write_manifest(self._root, self._note, self.counts, shards, self.signature.about)

    def _describe(self, number: int) -> Shard:
        file = self._folder / shard_file(number)
        known = self._receipts.get(f"{file.name} {self._prints[number]}")
        try:
            if known is not None and known.bytes == file.stat().st_size:
                return known
            shard = describe_shard(file)
        except (OSError, ValueError) as problem:
            raise UserError(f"a shard that was there cannot be read: {problem}", file=file, fix="run again") from None
        if shard.note != self._prints[number]:
            raise UserError("another pass wrote this shard meanwhile", file=file, fix="run again when it has ended")
        return shard

    def sweep(self) -> None:
        """Take away the temporary files of processes that were killed. No other process may be at work."""
        for pattern in (".part-*.parquet.*.part", f".{MANIFEST}.*.part"):
            for debris in self._folder.glob(pattern):
                debris.unlink(missing_ok=True)


def _shard_files(folder: Path) -> list[Path]:
    return list(folder.glob("part-*.parquet"))


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_ino, status.st_mtime_ns


class _FirstImages:
    """Whether a detector finds anything on the first thousand labelled images of the pool, whoever labels them."""

    def __init__(self, head: str) -> None:
        self._head, self._decided = head, False
        self._waiting: dict[int, tuple[int, int]] = {}
        self._next = self._labelled = self._empty = 0

    def add(self, number: int, labelled: int, empty: int) -> None:
        """A shard that is whole."""
        self._waiting[number] = labelled, empty
        while not self._decided and self._next in self._waiting:
            labelled, empty = self._waiting.pop(self._next)
            self._next, self._labelled, self._empty = self._next + 1, self._labelled + labelled, self._empty + empty
            self._judge(self._labelled, self._empty)
        if self._decided:
            self._waiting.clear()

    def during(self, number: int, labelled: int, empty: int) -> None:
        """A shard in work."""
        if number == self._next and not self._decided:
            self._judge(self._labelled + labelled, self._empty + empty)

    def _judge(self, labelled: int, empty: int) -> None:
        if labelled < _FIRST:
            return
        if empty > _EMPTY_SHARE * labelled:
            raise UserError(
                f"the detector of head '{self._head}' finds nothing",
                value=f"no box left by the pseudo-label rule on {empty} of the first {labelled} images",
                fix="check its weights and label space, or lower the threshold of the task",
            )
        self._decided = True


class Tally:
    """What became of one shard's images for one head, and the reasons to stop.

    Args:
        column: the head, with the counts of the shards before.
        number: of the shard.
    """

    def __init__(self, column: Column, number: int) -> None:
        self._column, self._number = column, number
        self.labelled = self.human = self.undecodable = self.faulty = self.empty = 0
        self.aside: list[SetAside] = []

    def set_aside(self, image: Known, stage: str, reason: str) -> None:
        """Count an image without a label. Raises UserError at too many of them."""
        self.aside.append(SetAside(source=image.source, id=image.id, sha256=image.sha256, stage=stage, reason=reason))
        self.undecodable += stage == DECODE
        self.faulty += stage != DECODE
        before = self._column.counts
        self._column.check_faults(
            before.faulty + self.faulty, before.quarantined + len(self.aside), f"{image.source}/{image.id}", reason
        )

    def label(self, empty: bool) -> None:
        """Count a label. Raises UserError when nearly all of the first thousand are empty."""
        self.labelled += 1
        self.empty += empty
        self._column.during(self._number, self)

    def counts(self, read: int) -> Counts:
        """The shard's counts; `read` is the number of its images."""
        counts = Counts(
            read=read,
            labelled=self.labelled,
            human=self.human,
            undecodable=self.undecodable,
            faulty=self.faulty,
            empty=self.empty,
        )
        assert counts.read == counts.labelled + counts.human + counts.quarantined
        return counts
