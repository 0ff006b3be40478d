"""One head of the labels store while it is being written: what is there, what is owed, what became of the images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.data.source import Dataset
from tutelage.errors import UserError
from tutelage.labels.encoding import CODECS, FLOOR, Form
from tutelage.labels.store import (
    MANIFEST,
    VERSION,
    Counts,
    SetAside,
    Shard,
    ShardNote,
    Store,
    describe_shard,
    head_folder,
    read_note,
    shard_file,
    write_manifest,
    write_shard,
)
from tutelage.part import fingerprint
from tutelage.teachers.teacher import Teacher
from tutelage.types import Boxes

DECODE, LABEL = "decode", "label"
"""The stages at which an image is set aside: it cannot be read, or the teacher's prediction is no label."""

_FAULTY_SHARE = 0.001  # of the pool: more predictions that are no labels stop the pass
_FIRST, _EMPTY_SHARE = 1000, 0.99  # a detector that finds nothing on more of its first images stops the pass


class Pool:
    """All datasets as one row of images, cut into shards.

    Args:
        datasets: in the order of the pool.
        shard: images a shard.
    """

    def __init__(self, datasets: Sequence[Dataset], shard: int) -> None:
        self.datasets, self.shard = datasets, shard
        self._starts = np.cumsum([0, *(len(d) for d in datasets)])
        self.shards = -(-len(self) // shard)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def place(self, image: int) -> tuple[Dataset, int]:
        """The dataset of an image, and its index there."""
        which = int(np.searchsorted(self._starts, image, side="right")) - 1
        return self.datasets[which], image - int(self._starts[which])

    def images(self, number: int) -> range:
        """The images of a shard."""
        return range(number * self.shard, min((number + 1) * self.shard, len(self)))

    def first(self) -> str:
        dataset, index = self.place(0)
        return f"{dataset.name}/{dataset.id(index)}"


@dataclass(frozen=True)
class Known:
    """An image before it is decoded. `human` is the head that a person labelled it for, and that is to be kept."""

    source: str
    id: str
    sha256: str
    human: str | None


def digest(images: Iterable[Known], head: str) -> str:
    """What one shard of a head is made from: the images in order, and which of them a person labelled."""
    hasher = hashlib.sha256()
    for known in images:
        hasher.update(repr((known.source, known.id, known.sha256, known.human == head)).encode())
    return hasher.hexdigest()


class Column:
    """One head of the store while it is being written.

    Args:
        teacher: who fills it.
        root: the store's folder.
        pool: what it is filled for.
        reduce: 1, 2 or 4, see `encoding`.

    Raises:
        UserError: the folder holds labels of another pool, or of another version of the store.
    """

    def __init__(self, teacher: Teacher, root: Path, pool: Pool, reduce: int) -> None:
        self.teacher, self.head, self.task = teacher, teacher.head, teacher.task
        self.counts, self.labelled_now = Counts(), 0
        self._root, self._pool, self._folder = root, pool, head_folder(root, teacher.head)
        names = teacher.space.names if teacher.space else teacher.task.classes
        self.form = Form(self.head, self.task.kind, None if names is None else len(names), reduce)
        self._note = self._blank_note(names)
        self._written: set[str] = set()
        self._earlier: tuple[Shard, ...] = ()
        if (self._folder / MANIFEST).is_file():
            self._earlier = Store(root).manifest(self.head).shards
        self._refuse_other_pool()

    def _blank_note(self, names: tuple[str, ...] | None) -> ShardNote:
        settings = {"reduce": self.form.reduce} | ({"floor": FLOOR} if self.task.kind is Boxes else {})
        kind = self.task.kind.__name__
        return ShardNote(
            head=self.head,
            kind=kind,
            task=self.task.plain(),
            classes=names,
            teacher=self.teacher.hash,
            settings=settings,
            made_by=fingerprint([VERSION, self.head, kind, names, self.teacher.hash, settings]),
            pool=self._pool.first(),
            images="",
            counts=Counts(),
        )

    def _refuse_other_pool(self) -> None:
        note = read_note(self._folder / shard_file(0))
        if note is not None and note.pool != self._pool.first():
            raise UserError(
                "the labels here are those of another pool",
                file=self._folder,
                field="first image",
                value=note.pool,
                fix=f"this pool begins with '{self._pool.first()}': label into another folder, or delete this one",
            )

    def earlier(self, number: int) -> ShardNote | None:
        """The note of a shard that is there, by the same teacher; its images may have changed since."""
        note = read_note(self._folder / shard_file(number))
        return note if note is not None and note.made_by == self._note.made_by else None

    def keep(self, note: ShardNote) -> None:
        """Count a shard that is there."""
        self.counts = self.counts.plus(note.counts)

    def commit(self, number: int, images: Sequence[Known], rows: list[dict[str, Any]], tally: Tally) -> None:
        """Write one shard; from now on the head is unfinished until `finish`."""
        (self._folder / MANIFEST).unlink(missing_ok=True)
        note = self._note.but(
            images=digest(images, self.head), counts=tally.counts(len(images)), quarantined=tuple(tally.aside)
        )
        write_shard(self._root, number, note, rows)
        self._written.add(shard_file(number))
        self.labelled_now += len(rows)
        self.keep(note)

    def finish(self) -> None:
        """Take away what a killed pass or a larger pool left behind, and write the manifest."""
        names = [shard_file(number) for number in range(self._pool.shards)]
        for file in self._folder.glob("part-*.parquet"):
            if file.name not in names:
                (self._folder / MANIFEST).unlink(missing_ok=True)
                file.unlink()
        for debris in self._folder.glob(".*.part"):
            debris.unlink(missing_ok=True)
        known = {shard.file: shard for shard in self._earlier if shard.file not in self._written}
        shards = [self._describe(name, known.get(name)) for name in names]
        write_manifest(self._root, self._note, self.counts, shards)

    def _describe(self, name: str, known: Shard | None) -> Shard:
        file = self._folder / name
        return known if known is not None and known.bytes == file.stat().st_size else describe_shard(file)


class Tally:
    """What became of one shard's images for one head, and the two reasons to stop.

    Args:
        column: the head, with the counts of the shards before.
        pool: images in the pool, which the share of faulty predictions refers to.
    """

    def __init__(self, column: Column, pool: int) -> None:
        self._column, self._pool = column, pool
        self.labelled = self.human = self.undecodable = self.faulty = self.empty = 0
        self.aside: list[SetAside] = []

    def set_aside(self, image: Known, stage: str, reason: str) -> None:
        """Count an image without a label. Raises UserError at too many faulty predictions."""
        entry = SetAside(source=image.source, id=image.id, sha256=image.sha256, stage=stage, reason=reason)
        self.aside.append(entry)
        if stage == DECODE:
            self.undecodable += 1
            return
        self.faulty += 1
        total = self._column.counts.faulty + self.faulty
        if total > _FAULTY_SHARE * self._pool:
            raise UserError(
                f"the teacher of head '{self._column.head}' fails on more than {_FAULTY_SHARE:.1%} of the pool",
                record=f"{image.source}/{image.id}",
                value=f"{reason} ({total} of {self._pool} images so far)",
                fix="look at this teacher's predictions: weights, preprocessing, number format",
            )

    def label(self, empty: bool) -> None:
        """Count a label. Raises UserError when nearly all of the first thousand are empty."""
        self.labelled += 1
        self.empty += empty
        nothing = self._column.counts.empty + self.empty
        if self._column.counts.labelled + self.labelled == _FIRST and nothing > _EMPTY_SHARE * _FIRST:
            raise UserError(
                f"the detector of head '{self._column.head}' finds nothing",
                value=f"no box left by the pseudo-label rule on {nothing} of the first {_FIRST} images",
                fix="check its weights and label space, or lower the threshold of the task",
            )

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


def check_fit(datasets: Sequence[Dataset], teachers: Sequence[Teacher]) -> None:
    """Names, kinds and label spaces, before any image is read. Raises UserError."""
    for what, names in (("source", [d.name for d in datasets]), ("head", [t.head for t in teachers])):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"a {what} is given twice", field=what, value=twice, fix=f"give each {what} once")
    for teacher in teachers:
        if teacher.task.kind not in CODECS:
            kinds = ", ".join(kind.__name__ for kind in CODECS)
            raise UserError("targets of this kind cannot be stored", value=teacher.task.kind, fix=f"known: {kinds}")
        given = teacher.space.names if teacher.space else None
        if teacher.task.classes is not None:
            _check_space(teacher.head, given, teacher.task.classes)
        for dataset in datasets:
            if dataset.head == teacher.head and dataset.space is not None:
                _check_space(teacher.head, given, dataset.space.names)


def _check_space(head: str, given: tuple[str, ...] | None, wanted: tuple[str, ...]) -> None:
    if given == wanted:
        return
    if given is None or len(given) != len(wanted):
        value = "no classes" if given is None else f"{len(given)} classes: {', '.join(given)}"
    else:
        at = next(i for i, (a, b) in enumerate(zip(given, wanted, strict=True)) if a != b)
        value = f"class {at} is '{given[at]}', not '{wanted[at]}'"
    raise UserError(
        f"the teacher of head '{head}' has another label space than the head",
        field="classes",
        value=value,
        fix=f"a teacher of these {len(wanted)} classes, in this order: {', '.join(wanted)}",
    )
