"""The labelling pass on a Ray cluster: one process hands out whole shards, actors with all teachers loaded make them.

The process that hands out takes part in the leases of the store's folder like any other, so that a cluster and other
workers may do one pass together. An actor that dies is replaced, and its shard is given to another one. A job that was
killed leaves whole shards and temporary files only; run again, it goes on.

Images, teachers' files and the store must be at the same paths on all machines, and this package installed there.
Functions and classes of the user's own modules travel with the work (`parcel.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tutelage.cluster import connected
from tutelage.data.source import Place
from tutelage.errors import UserError
from tutelage.labels.claims import Claim, Claims, SetAsideFunction
from tutelage.labels.fit import check_fit
from tutelage.labels.labelling import LabellingReport, ShardPass, finish, open_leases, open_pool, work_off
from tutelage.labels.leases import Patience, Unquestioned
from tutelage.labels.receipts import Receipts
from tutelage.labels.store import Shard
from tutelage.labels.work import Work
from tutelage.labels.writing import Column, Signature
from tutelage.parcel import Parcel, pack
from tutelage.progress import SILENT, Bar, Progress

_DEATHS = 3
"""Actors that may die before the job is given up, for each that was asked for."""


@dataclass(frozen=True)
class _Said:
    """What an actor answers: a fault of the user's data, or what was asked for."""

    problem: str | None = None
    teachers: tuple[tuple[str, tuple[str, ...] | None, str, dict[str, Any]], ...] = ()
    written: tuple[tuple[str, Shard], ...] = ()


class _Actor:
    """A worker of the cluster: opens the work once, and makes one shard a call."""

    def __init__(self, parcel: Parcel, root: str, device: str, decoders: int) -> None:
        self._parcel, self._root, self._device, self._decoders = parcel, Path(root), torch.device(device), decoders
        self._written: list[tuple[str, Shard]] = []

    def open(self) -> _Said:
        """Load everything; what the teachers say of themselves."""
        try:
            work: Work = self._parcel.unpack()
            datasets, teachers = work.datasets(), work.load(self._device)
            check_fit(datasets, teachers)
            pool = open_pool(datasets, work.settings.shard, [teacher.head for teacher in teachers])
            signatures = [Signature.of(teacher) for teacher in teachers]
            columns = [Column(signature, self._root, pool, work.settings, work.limit) for signature in signatures]
        except UserError as error:
            return _Said(str(error))
        readers, writers = ThreadPoolExecutor(self._decoders), ThreadPoolExecutor(self._decoders)
        rights = Unquestioned()
        self._claims = Claims(pool, columns, rights, readers)
        batch, receipt = work.settings.batch, lambda head, shard: self._written.append((head, shard))
        self._pass = ShardPass(pool, columns, teachers, self._claims, rights, batch, readers, writers, receipt)
        return _Said(teachers=tuple((s.head, s.classes, s.teacher, dict(s.about)) for s in signatures))

    def label(self, number: int) -> _Said:
        """Make what is owed of a shard."""
        self._written, self._claims.pending = [], {number: None}
        with SILENT.bar("", 0) as bar:
            try:
                self._pass.go(self._claims.take(bar), bar)
            except UserError as error:
                return _Said(str(error))
        return _Said(written=tuple(self._written))


def label_on_ray(
    work: Work,
    root: Path,
    *,
    workers: int,
    decoders: int,
    address: str | None,
    gpus: float,
    device: torch.device,
    progress: Progress | None,
    quarantine: SetAsideFunction | None,
    patience: Patience,
) -> LabellingReport:
    """Do a labelling pass on a cluster, or what is left of it; see `engines.label`.

    Args:
        work, root, device, progress, quarantine, patience: as there.
        workers: actors.
        decoders: threads of each that read images.
        address: of the cluster; None starts one on this machine, unless this process is connected to one already.
        gpus: that each actor occupies, may be a part of one.

    Raises:
        UserError: Ray is not installed, or not reached; actors die again and again; as `label_pool`.
    """
    root = root.resolve()
    work = replace(work, place=Place(work.place.root.resolve(), work.place.cache.resolve()))
    with connected(address, workers) as ray:
        parcel = pack(work, ray.cloudpickle.dumps)
        options = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0)
        crew = _Crew(ray, lambda: options(_Actor).remote(parcel, str(root), str(device), decoders), workers)
        signatures = [
            Signature(head, work.heads[head], classes, hash, about) for head, classes, hash, about in crew.begin()
        ]
        pool = open_pool(work.datasets(), work.settings.shard, [signature.head for signature in signatures])
        columns = [Column(signature, root, pool, work.settings, work.limit) for signature in signatures]
        leases = open_leases(root, pool, columns, work.settings.batch, patience)
        with ThreadPoolExecutor(decoders) as readers, leases:
            receipts, claims = Receipts(leases.folder, leases.me), Claims(pool, columns, leases, readers, quarantine)
            with (progress or SILENT).bar("label the pool", len(pool)) as bar:
                hand_out = _HandOut(crew, claims, receipts, pool.images, bar)
                work_off(claims, hand_out.go, bar)
            finish(columns, leases, receipts)
    return LabellingReport.of(pool, columns, leases)


class _HandOut:
    """Gives claimed shards to the crew, and takes what it made into account."""

    def __init__(
        self, crew: _Crew, claims: Claims, receipts: Receipts, images: Callable[[int], range], bar: Bar
    ) -> None:
        self._crew, self._claims, self._receipts, self._images, self._bar = crew, claims, receipts, images, bar

    def go(self, claims: Iterator[Claim]) -> None:
        for claim in claims:
            for done, written in self._crew.give(claim):
                self._accept(done, written)
        for done, written in self._crew.rest():
            self._accept(done, written)

    def _accept(self, claim: Claim, written: tuple[tuple[str, Shard], ...]) -> None:
        for head, shard in written:
            self._receipts.add(head, shard)
        self._claims.accept(claim)
        self._bar.advance(len(self._images(claim.number)))


Made = Iterator[tuple[Claim, tuple[tuple[str, Shard], ...]]]
"""Claims that were worked off, and the files that were written for each."""


class _Crew:
    """The actors. One that dies is replaced, and the shard that it had is given out again."""

    def __init__(self, ray: Any, hire: Callable[[], Any], workers: int) -> None:
        self._ray, self._hire, self._left = ray, hire, _DEATHS * workers
        self._opening = {}  # type: dict[Any, Any]
        self._at_work = {}  # type: dict[Any, tuple[Any, Claim]]
        self._idle: list[Any] = []
        self._again: list[Claim] = []
        for _ in range(workers):
            self._replace()

    def _replace(self) -> None:
        actor = self._hire()
        self._opening[actor.open.remote()] = actor

    def begin(self) -> tuple[tuple[str, tuple[str, ...] | None, str, dict[str, Any]], ...]:
        """Wait for the first actor; what its teachers say of themselves."""
        while True:
            for said, claim in self._wait():
                if claim is None:
                    return said.teachers

    def give(self, claim: Claim) -> Made:
        """Hand out a shard as soon as an actor is free; meanwhile what others have made."""
        self._again.append(claim)
        while self._again:
            while self._idle and self._again:
                actor, next_one = self._idle.pop(), self._again.pop(0)
                self._at_work[actor.label.remote(next_one.number)] = actor, next_one
            if self._again:
                yield from ((done, said.written) for said, done in self._wait() if done is not None)

    def rest(self) -> Made:
        """All that is still in work."""
        while self._at_work or self._again:
            while self._again and self._idle:
                actor, next_one = self._idle.pop(), self._again.pop(0)
                self._at_work[actor.label.remote(next_one.number)] = actor, next_one
            yield from ((done, said.written) for said, done in self._wait() if done is not None)

    def _wait(self) -> list[tuple[_Said, Claim | None]]:
        """Answers, at least one unless somebody died. Raises UserError for a fault that an actor found."""
        waiting = [*self._opening, *self._at_work]
        answers: list[tuple[_Said, Claim | None]] = []
        for reference in self._ray.wait(waiting, num_returns=1)[0]:
            claim: Claim | None = None
            if reference in self._opening:
                actor = self._opening.pop(reference)
            else:
                actor, claim = self._at_work.pop(reference)
            try:
                said: _Said = self._ray.get(reference)
            except self._ray.exceptions.RayActorError as death:
                if claim is not None:
                    self._again.append(claim)
                self._mourn(str(death))
                continue
            if said.problem is not None:
                raise UserError(said.problem)
            self._idle.append(actor)
            answers.append((said, claim))
        return answers

    def _mourn(self, death: str) -> None:
        self._left -= 1
        if self._left < 0:
            raise UserError(
                "the actors of this job die again and again",
                value=death.splitlines()[0] if death else None,
                fix="look at the logs of Ray: mostly it is memory; fewer workers, or smaller batches",
            )
        self._replace()
