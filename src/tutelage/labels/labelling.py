"""The labelling pass: every teacher looks at every image of the pool once, and the store gets what it says.

The pool is all datasets, one after the other, cut into shards of a fixed number of images. A shard is decoded
once for all teachers that still owe it, its labels are committed head by head, and it is forgotten. Labels that
a person gave are kept: an image with a human label for a head gets no pseudo label for it (MuST, section 3). A
pass that was killed goes on at the first shard that is not whole, and ends with the same bytes as one that was
not.

Batches are fixed by the position of images in their shard. An image that cannot be decoded leaves its place in
its batch to a black one, whose prediction is dropped. So its neighbours' labels keep every bit, with any teacher
that lays images into an input of fixed size and works on each alone. (A two-stage detector joins the regions of
a batch in one matrix product; how many the black image adds may change the others in the last bit of a float32.)
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tutelage.data.source import BadImage, Dataset, UInt8
from tutelage.errors import UserError
from tutelage.labels.encoding import BadPrediction, encode
from tutelage.labels.store import Counts
from tutelage.labels.writing import DECODE, LABEL, Column, Known, Pool, Tally, check_fit, digest
from tutelage.progress import SILENT, Bar, Progress
from tutelage.teachers.teacher import Teacher
from tutelage.types import Boxes, Target

Quarantine = Callable[[str, str, str, str], Any]
"""Called as (id, sha256, stage, reason).

The id is "source/id" of an image that does not decode (stage "decode"), "head/source/id" of a prediction that is no
label (stage "label"). `tutelage.data.quarantine.Quarantine.add` is one.
"""

_BLANK = np.zeros((64, 64, 3), np.uint8)

J = TypeVar("J")
R = TypeVar("R")


@dataclass(frozen=True)
class LabellingReport:
    """What a pass did. For every head: read = labelled + human + quarantined.

    Attributes:
        images: images in the pool.
        shards: shards of the pool.
        counts: head name to what became of the images, shards of earlier passes included.
        labelled_now: head name to the number of labels made by this pass; the others were there already.
    """

    images: int
    shards: int
    counts: dict[str, Counts]
    labelled_now: dict[str, int]

    def __str__(self) -> str:
        lines = [f"{self.images} images in {self.shards} shards"]
        for head, n in self.counts.items():
            lines.append(
                f"{head}: {n.read} read = {n.labelled} labelled ({self.labelled_now[head]} now) + {n.human} human"
                f" + {n.quarantined} quarantined ({n.undecodable} undecodable, {n.faulty} faulty predictions)"
            )
        return "\n".join(lines)


def label_pool(
    datasets: Sequence[Dataset],
    teachers: Sequence[Teacher],
    root: Path,
    *,
    skip_human: bool = True,
    shard: int = 1000,
    batch: int = 32,
    reduce: int = 1,
    decoders: int = 1,
    progress: Progress | None = None,
    quarantine: Quarantine | None = None,
) -> LabellingReport:
    """Fill one head a teacher for all images of the datasets.

    Shards that an earlier pass finished with the same teacher and the same images are kept. A changed teacher or
    label space makes its own head again, changed images make their shards again. Thresholds play no part: they
    are applied when labels are read (`LabelsView`).

    Args:
        datasets: the pool, in this order; names are unique.
        teachers: one a head.
        root: the store's folder.
        skip_human: whether images with a human label for a head are left out of that head.
        shard: images a shard.
        batch: images that a teacher sees at once, best a divisor of `shard`.
        reduce: 1, 2 or 4: fields and vectors are stored at 1/reduce of the image's size.
        decoders: threads that read images while the teachers work, and as many that compress labels. With more
            than one, the datasets must bear being read by several threads.
        progress: where the bar is shown; None for nowhere.
        quarantine: told of every image or prediction that is set aside, just before its shard is committed. After
            a kill, those of the shard in work may be told twice; the store itself lists each once.

    Raises:
        UserError: a label space, kind or shape that does not fit; a store of another pool; faulty predictions for
            more than 0.1 % of the pool; a detector that finds nothing on more than 99 % of its first 1,000 images.
    """
    if shard < 1 or batch < 1 or reduce not in (1, 2, 4):
        raise ValueError(f"shard {shard} and batch {batch} must be at least 1, reduce {reduce} one of 1, 2, 4")
    check_fit(datasets, teachers)
    pool = Pool(datasets, shard)
    if len(pool) == 0:
        raise UserError("there is no image to label", value=[d.name for d in datasets], fix="give a pool of images")
    columns = [Column(teacher, root, pool, reduce) for teacher in teachers]
    readers = ThreadPoolExecutor(decoders, thread_name_prefix="read")
    writers = ThreadPoolExecutor(decoders, thread_name_prefix="compress")
    with readers, writers, (progress or SILENT).bar("label the pool", len(pool)) as bar:
        _Pass(pool, columns, skip_human, batch, readers, writers, quarantine or (lambda *_: None)).go(bar)
    for column in columns:
        column.finish()
    counts = {column.head: column.counts for column in columns}
    return LabellingReport(len(pool), pool.shards, counts, {c.head: c.labelled_now for c in columns})


@dataclass(frozen=True)
class _Job:
    """One image to read for one shard; `known` where it had to be compared with an earlier pass."""

    shard: int
    owing: tuple[Column, ...]
    image: int
    known: Known | None


@dataclass(frozen=True)
class _Read:
    """An image as it goes to the teachers; without one, no teacher needs it, or `problem` says what is wrong."""

    known: Known
    image: UInt8 | None
    problem: str | None


_Row = tuple[dict[str, Any], bool]
"""A row of the store, and whether the pseudo-label rule leaves no box of it."""

_Pending = list[tuple[_Read, Future[_Row] | None]]
"""One batch for one head, rows in the making; None for an image that could not be decoded."""


class _Pass:
    """The pass over all shards. `readers` read, `writers` compress, the caller's thread does all else in order."""

    def __init__(
        self,
        pool: Pool,
        columns: Sequence[Column],
        skip_human: bool,
        batch: int,
        readers: ThreadPoolExecutor,
        writers: ThreadPoolExecutor,
        quarantine: Quarantine,
    ) -> None:
        self._pool, self._columns, self._batch = pool, columns, batch
        self._readers, self._writers, self._quarantine = readers, writers, quarantine
        self._human_heads = frozenset(c.head for c in columns) if skip_human else frozenset()

    def go(self, bar: Bar) -> None:
        ahead = _ahead(self._readers, self._read, self._jobs(bar), 2 * self._batch)
        shards = itertools.groupby(ahead, key=lambda pair: (pair[0].shard, pair[0].owing))
        for (number, owing), pairs in shards:
            self._label_shard(number, owing, (read for _, read in pairs), bar)

    def _jobs(self, bar: Bar) -> Iterator[_Job]:
        """What has to be read, shard after shard, passing over what is finished."""
        for number in range(self._pool.shards):
            images = self._pool.images(number)
            notes = {column.head: column.earlier(number) for column in self._columns}
            known = list(self._readers.map(self._know, images)) if any(notes.values()) else None
            owing = []
            for column in self._columns:
                note = notes[column.head]
                if note is not None and known is not None and note.images == digest(known, column.head):
                    column.keep(note)
                else:
                    owing.append(column)
            if not owing:
                bar.skip(len(images))
                continue
            for offset, image in enumerate(images):
                yield _Job(number, tuple(owing), image, known[offset] if known else None)

    def _know(self, image: int) -> Known:
        dataset, index = self._pool.place(image)
        labelled = dataset.head in self._human_heads and dataset.target(index) is not None
        return Known(dataset.name, dataset.id(index), dataset.sha256(index), dataset.head if labelled else None)

    def _read(self, job: _Job) -> _Read:
        known = job.known or self._know(job.image)
        if all(column.head == known.human for column in job.owing):
            return _Read(known, None, None)
        dataset, index = self._pool.place(job.image)
        try:
            return _Read(known, dataset.picture(index).read(), None)
        except BadImage as problem:
            return _Read(known, None, str(problem))

    def _label_shard(self, number: int, owing: Sequence[Column], reads: Iterator[_Read], bar: Bar) -> None:
        images: list[Known] = []
        rows: dict[str, list[dict[str, Any]]] = {column.head: [] for column in owing}
        tallies = {column.head: Tally(column, len(self._pool)) for column in owing}
        waiting: dict[str, _Pending] = {}
        while batch := list(itertools.islice(reads, self._batch)):
            images.extend(read.known for read in batch)
            pending = {column.head: self._label_batch(column, batch, tallies[column.head]) for column in owing}
            _collect(waiting, rows, tallies)  # the batch before: compressed while the teachers worked on this one
            waiting = pending
            bar.advance(len(batch))
        _collect(waiting, rows, tallies)
        aside = {
            (f"{e.source}/{e.id}" if e.stage == DECODE else f"{head}/{e.source}/{e.id}"): e
            for head, tally in tallies.items()
            for e in tally.aside
        }  # an image once, though every head lists it
        for id, entry in aside.items():
            self._quarantine(id, entry.sha256, entry.stage, entry.reason)
        for column in owing:
            column.commit(number, images, rows[column.head], tallies[column.head])

    def _label_batch(self, column: Column, batch: Sequence[_Read], tally: Tally) -> _Pending:
        """One teacher's look at one batch; what it says is compressed in the background."""
        mine = [read for read in batch if read.known.human != column.head]
        tally.human += len(batch) - len(mine)
        if all(read.image is None for read in mine):
            return [(read, None) for read in mine]
        targets = column.teacher.predict([_BLANK if read.image is None else read.image for read in mine])
        if len(targets) != len(mine):
            raise UserError(
                f"the teacher of head '{column.head}' gives {len(targets)} predictions for {len(mine)} images",
                fix="one prediction an image, in the order of the images",
            )
        return [
            (read, None if read.image is None else self._writers.submit(_row, column, read.known, read.image, target))
            for read, target in zip(mine, targets, strict=True)
        ]


def _row(column: Column, known: Known, image: UInt8, target: Target) -> _Row:
    height, width = image.shape[:2]
    values = encode(target, column.form, (height, width))
    kept = column.task.pseudo(target) if isinstance(target, Boxes) else None
    empty = isinstance(target, Boxes) and not (isinstance(kept, Boxes) and len(kept) > 0)
    row = {"id": known.id, "source": known.source, "image_sha256": known.sha256, "teacher": column.teacher.hash}
    return {**row, "height": height, "width": width, **values}, empty


def _collect(waiting: dict[str, _Pending], rows: dict[str, list[dict[str, Any]]], tallies: dict[str, Tally]) -> None:
    """Put the finished rows of a batch into their shard, in the order of the pool."""
    for head, pending in waiting.items():
        for read, future in pending:
            if future is None:
                tallies[head].set_aside(read.known, DECODE, read.problem or "")
                continue
            try:
                row, empty = future.result()
            except BadPrediction as problem:
                tallies[head].set_aside(read.known, LABEL, str(problem))
            else:
                tallies[head].label(empty)
                rows[head].append(row)


def _ahead(threads: ThreadPoolExecutor, work: Callable[[J], R], jobs: Iterable[J], most: int) -> Iterator[tuple[J, R]]:
    """Jobs with their results, in order; at most `most` are begun before they are asked for."""
    begun: deque[tuple[J, Future[R]]] = deque()
    for job in jobs:
        begun.append((job, threads.submit(work, job)))
        if len(begun) == most:
            first, future = begun.popleft()
            yield first, future.result()
    for first, future in begun:
        yield first, future.result()
