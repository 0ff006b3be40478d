"""The labelling pass: every teacher looks at every image of the pool once, and the store gets what it says.

The pool is all datasets, one after the other, cut into shards of a fixed number of images. A shard is decoded
once for all teachers that still owe it, its labels are committed head by head, and it is forgotten. Labels that
a person gave are kept: an image with a human label for a head gets no pseudo label for it (MuST, section 3). A
pass that was killed goes on at the first shard that is not whole, and ends with the same bytes as one that was
not. Any number of processes on any number of machines may do one pass together (`leases.py`): with the same bytes
again, because a shard's name and content do not depend on who makes it.

Batches are fixed by the position of images in their shard. An image that cannot be decoded leaves its place in
its batch to a black one, whose prediction is dropped. So its neighbours' labels keep every bit, with any teacher
that lays images into an input of fixed size and works on each alone. (A two-stage detector joins the regions of
a batch in one matrix product; how many the black image adds may change the others in the last bit of a float32.)
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tutelage.data.source import BadImage, Dataset, UInt8
from tutelage.errors import UserError
from tutelage.labels.claims import Claim, Claims, SetAsideFunction
from tutelage.labels.encoding import BadPrediction, encode
from tutelage.labels.fit import check_fit
from tutelage.labels.leases import PATIENCE, Leases, Patience, Rights
from tutelage.labels.pool import Known, Pool
from tutelage.labels.receipts import Receipts
from tutelage.labels.store import Counts, Shard
from tutelage.labels.work import Labelling
from tutelage.labels.writing import DECODE, LABEL, Column, Signature, Tally
from tutelage.part import fingerprint
from tutelage.progress import SILENT, Bar, Progress
from tutelage.teachers.teacher import Teacher
from tutelage.types import Boxes, Target

LEASES = ".leases"
"""The folder below a store's root in which processes tell each other what they make."""

_BLANK = np.zeros((64, 64, 3), np.uint8)
_POLL = 0.2  # seconds between two looks at what others still hold

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

    @classmethod
    def of(cls, pool: Pool, columns: Sequence[Column], leases: Leases) -> LabellingReport:
        """The end of a pass: its leases are given back. The last process at work takes away what killed ones left."""
        if leases.alone:
            for column in columns:
                column.sweep()
        counts = {column.head: column.counts for column in columns}
        return cls(len(pool), pool.shards, counts, {c.head: c.labelled_now for c in columns})

    def __str__(self) -> str:
        lines = [f"{self.images} images in {self.shards} shards"]
        for head, n in self.counts.items():
            lines.append(
                f"{head}: {n.read} read = {n.labelled} labelled ({self.labelled_now[head]} now) + {n.human} human"
                f" + {n.quarantined} quarantined ({n.undecodable} undecodable, {n.faulty} faulty predictions)"
            )
        return "\n".join(lines)


def open_pool(datasets: Sequence[Dataset], shard: int, human_heads: Iterable[str]) -> Pool:
    """The images of a pass. Raises UserError when there is none."""
    pool = Pool(datasets, shard, human_heads)
    if len(pool) == 0:
        raise UserError("there is no image to label", value=[d.name for d in datasets], fix="give a pool of images")
    return pool


def open_leases(root: Path, pool: Pool, columns: Sequence[Column], batch: int, patience: Patience) -> Leases:
    """The leases of a pass; processes that do the same pass share them, one of another pass is refused."""
    images = [(dataset.name, len(dataset)) for dataset in pool.datasets]
    made_by = sorted((column.head, column.made_by) for column in columns)
    work = fingerprint([images, pool.first(), made_by, pool.shard, sorted(pool.human_heads), batch])
    return Leases(root / LEASES, work, patience)


def label_pool(
    datasets: Sequence[Dataset],
    teachers: Sequence[Teacher],
    root: Path,
    settings: Labelling | None = None,
    *,
    limit: float = 1.0,
    decoders: int = 1,
    progress: Progress | None = None,
    quarantine: SetAsideFunction | None = None,
    patience: Patience = PATIENCE,
    watch: Callable[[], None] | None = None,
) -> LabellingReport:
    """Fill one head a teacher for all images of the datasets that no person labelled for it, in this process.

    Other processes may do the same pass at the same time, on this machine or others: shards are shared out, and each
    process returns when all are there.

    Shards that an earlier pass finished with the same teacher and the same images are kept. A changed teacher or
    label space makes its own head again, changed images make their shards again. Thresholds play no part: they
    are applied when labels are read (`LabelsView`).

    Args:
        datasets: the pool, in this order; names are unique.
        teachers: one a head.
        root: the store's folder.
        settings: what decides the bytes; by default `Labelling()`. Its batch is best a divisor of its shard.
        limit: the share of the pool that may be set aside for a head; 3 images always may.
        decoders: threads that read images while the teachers work, and as many that compress labels. With more
            than one, the datasets must bear being read by several threads.
        progress: where the bar is shown; None for nowhere. It counts what other processes make as well.
        quarantine: told of every image or prediction that is set aside, those of kept shards included, just before its
            shard is committed or counted. After a kill some may be told twice; the store itself lists each once.
        patience: how long processes wait for each other.
        watch: called before every shard; what it raises ends the pass.

    Raises:
        UserError: a label space, kind or shape that does not fit; a store of another pool; another pass at work in
            this folder; faulty predictions for more than 0.1 % of the pool (3 are always allowed), or more images set
            aside than `limit`; a detector that finds nothing on more than 99 % of the first 1,000 images; a full disk.
    """
    settings = settings or Labelling()
    check_fit(datasets, teachers)
    pool = open_pool(datasets, settings.shard, [teacher.head for teacher in teachers])
    columns = [Column(Signature.of(teacher), root, pool, settings, limit) for teacher in teachers]
    readers = ThreadPoolExecutor(decoders, thread_name_prefix="read")
    writers = ThreadPoolExecutor(decoders, thread_name_prefix="compress")
    with readers, writers, open_leases(root, pool, columns, settings.batch, patience) as leases:
        receipts = Receipts(leases.folder, leases.me)
        claims = Claims(pool, columns, leases, readers, quarantine)
        at_work = ShardPass(pool, columns, teachers, claims, leases, settings.batch, readers, writers, receipts.add)
        with (progress or SILENT).bar("label the pool", len(pool)) as bar:
            work_off(claims, lambda taken: at_work.go(taken, bar), bar, watch)
        finish(columns, leases, receipts)
    return LabellingReport.of(pool, columns, leases)


def work_off(
    claims: Claims, make: Callable[[Iterator[Claim]], None], bar: Bar, watch: Callable[[], None] | None = None
) -> None:
    """Until all shards are there: make what is free, and wait for what is in other hands.

    Args:
        claims: all shards.
        make: makes what it is given.
        bar: shows what is settled without being made here.
        watch: called before every shard, and while waiting; what it raises ends the pass.
    """

    def watched() -> Iterator[Claim]:
        for claim in claims.take(bar):
            if watch is not None:
                watch()
            yield claim

    while claims.pending:
        before = len(claims.pending)
        make(watched())
        if len(claims.pending) == before:
            time.sleep(_POLL)
            if watch is not None:
                watch()


def finish(columns: Sequence[Column], leases: Leases, receipts: Receipts) -> None:
    """Write the manifests, one process after the other; all but the first find them written."""
    while not leases.claim("finish"):
        time.sleep(_POLL)
    for column in columns:
        column.take_receipts(receipts.read(column.head))
        column.finish()
    leases.release("finish")


@dataclass(frozen=True)
class _Job:
    """One image to read for one shard; `known` where it had to be compared with an earlier pass."""

    claim: Claim
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


class ShardPass:
    """Makes shards. `readers` read, `writers` compress, the caller's thread does all else in order.

    Args:
        pool: all images.
        columns: one a head.
        teachers: one a column.
        claims: where shards are reported as done.
        rights: asked before each is written.
        batch: images that a teacher sees at once.
        readers: threads that read images.
        writers: threads that compress labels.
        receipt: told of every file that was written, as (head, description).
    """

    def __init__(
        self,
        pool: Pool,
        columns: Sequence[Column],
        teachers: Sequence[Teacher],
        claims: Claims,
        rights: Rights,
        batch: int,
        readers: ThreadPoolExecutor,
        writers: ThreadPoolExecutor,
        receipt: Callable[[str, Shard], Any],
    ) -> None:
        self._pool, self._batch, self._claims, self._rights = pool, batch, claims, rights
        self._teachers = {column.head: teacher for column, teacher in zip(columns, teachers, strict=True)}
        self._readers, self._writers, self._receipt = readers, writers, receipt

    def go(self, claims: Iterator[Claim], bar: Bar) -> None:
        """Make what is claimed, shard after shard; the first images of the next are read while one is finished."""
        ahead = _ahead(self._readers, self._read, self._jobs(claims), 2 * self._batch)
        for claim, pairs in itertools.groupby(ahead, key=lambda pair: pair[0].claim):
            self._label_shard(claim, (read for _, read in pairs), bar)

    def _jobs(self, claims: Iterator[Claim]) -> Iterator[_Job]:
        for claim in claims:
            for offset, image in enumerate(self._pool.images(claim.number)):
                yield _Job(claim, image, claim.known[offset] if claim.known else None)

    def _read(self, job: _Job) -> _Read:
        known = job.known or self._pool.know(job.image)
        if all(column.head == known.human for column in job.claim.owing):
            return _Read(known, None, None)
        dataset, index = self._pool.place(job.image)
        try:
            return _Read(known, dataset.picture(index).read(), None)
        except BadImage as problem:
            return _Read(known, None, str(problem))

    def _label_shard(self, claim: Claim, reads: Iterator[_Read], bar: Bar) -> None:
        images: list[Known] = []
        rows: dict[str, list[dict[str, Any]]] = {column.head: [] for column in claim.owing}
        tallies = {column.head: Tally(column, claim.number) for column in claim.owing}
        waiting: dict[str, _Pending] = {}
        while batch := list(itertools.islice(reads, self._batch)):
            images.extend(read.known for read in batch)
            pending = {column.head: self._label_batch(column, batch, tallies[column.head]) for column in claim.owing}
            _collect(waiting, rows, tallies)  # the batch before: compressed while the teachers worked on this one
            waiting = pending
            bar.advance(len(batch))
        _collect(waiting, rows, tallies)
        self._claims.tell({head: tuple(tally.aside) for head, tally in tallies.items()})
        for column in claim.owing:
            head = column.head
            shard = column.commit(claim.number, images, rows[head], tallies[head], claim.began, self._rights.confirm)
            if shard is not None:
                self._receipt(head, shard)
        self._claims.done(claim.number)

    def _label_batch(self, column: Column, batch: Sequence[_Read], tally: Tally) -> _Pending:
        """One teacher's look at one batch; what it says is compressed in the background."""
        mine = [read for read in batch if read.known.human != column.head]
        tally.human += len(batch) - len(mine)
        if all(read.image is None for read in mine):
            return [(read, None) for read in mine]
        targets = self._teachers[column.head].predict([_BLANK if read.image is None else read.image for read in mine])
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
    row = {"id": known.id, "source": known.source, "image_sha256": known.sha256, "teacher": column.signature.teacher}
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
