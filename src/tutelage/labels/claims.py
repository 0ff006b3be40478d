"""Which shards are there, which are owed, and which of those this process may make."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tutelage.errors import UserError
from tutelage.labels.leases import Rights
from tutelage.labels.pool import Known, Pool, digest
from tutelage.labels.store import SetAside
from tutelage.labels.writing import DECODE, Column, Found
from tutelage.progress import Bar
from tutelage.threads import Threads

SetAsideFunction = Callable[[str, str, str, str], Any]
"""Called as (id, sha256, stage, reason).

The id is "source/id" of an image that does not decode (stage "decode"), "head/source/id" of a prediction that is no
label (stage "label"). `tutelage.data.quarantine.Quarantine.add` is one.
"""

_CHUNK = 64  # shards that are looked at together
_SCANNERS = 4  # threads: a look is mostly waiting for a disk or a server


@dataclass(frozen=True, eq=False)
class Claim:
    """A shard that this process makes.

    Attributes:
        number: of the shard.
        owing: the heads that owe it.
        known: its images, where they had to be compared with an earlier pass.
        began: seconds since the epoch, before any of its images was read.
    """

    number: int
    owing: tuple[Column, ...]
    known: tuple[Known, ...] | None
    began: float


@dataclass(frozen=True)
class _Look:
    """What is there of one shard: heads that have it, that owe it, and that have it unless its images changed."""

    there: tuple[tuple[Column, Found], ...]
    owing: tuple[Column, ...]
    unsure: tuple[tuple[Column, Found], ...]


class Claims:
    """All shards of a pass, as one process sees them.

    A shard that is there is kept without reading its images when their ids and human labels are the same and none of
    their files changed since; where files cannot tell, the images are read and compared. One that another process made
    or compared after this one began is trusted.

    Attributes:
        pending: numbers of the shards that are not known to be whole, in order.
    """

    def __init__(
        self,
        pool: Pool,
        columns: Sequence[Column],
        rights: Rights,
        readers: ThreadPoolExecutor,
        quarantine: SetAsideFunction | None = None,
    ) -> None:
        self._pool, self._columns, self._rights, self._readers = pool, columns, rights, readers
        self._quarantine = quarantine or (lambda *_: None)
        self.pending: dict[int, None] = dict.fromkeys(range(pool.shards))

    def take(self, bar: Bar) -> Iterator[Claim]:
        """The shards that are owed and free at this moment, lowest first, each claimed just before it is given out."""
        numbers = iter(list(self.pending))
        with Threads(_SCANNERS, thread_name_prefix="scan") as scanners:
            while chunk := list(islice(numbers, _CHUNK)):
                taken = self._rights.taken()
                free = [number for number in chunk if lease(number) not in taken]
                looks = list(self._readers.map(self._judge, free, scanners.map(self._find, free)))
                for number, look in zip(free, looks, strict=True):
                    if not self._settle(number, look, bar):
                        claim = self._claim(number, bar)
                        if claim is not None:
                            yield claim

    def _look(self, number: int) -> _Look:
        return self._readers.submit(self._judge, number, self._find(number)).result()

    def _find(self, number: int) -> list[Found | None]:
        return [column.find(number) for column in self._columns]

    def _judge(self, number: int, found: Sequence[Found | None]) -> _Look:
        """What a shard's files are worth. Only readers touch datasets, which need not bear more threads than those."""
        there, owing, unsure = [], [], []
        for column, known in zip(self._columns, found, strict=True):
            if known is None or known.note.listing != self._pool.listing(number, column.head):
                owing.append(column)
                continue
            unchanged = self._pool.unchanged_since(number, known.seconds, known.now)
            if unchanged or (unchanged is None and known.now):
                there.append((column, known))
            else:
                unsure.append((column, known))
        return _Look(tuple(there), tuple(owing), tuple(unsure))

    def _settle(self, number: int, look: _Look, bar: Bar) -> bool:
        """Count a shard that all heads have; whether they do."""
        if look.owing or look.unsure:
            return False
        self.pending.pop(number)
        self._keep(number, look.there)
        images = len(self._pool.images(number))
        if any(found.now for _, found in look.there):
            bar.advance(images)  # made by others, just now
        else:
            bar.skip(images)
        return True

    def _claim(self, number: int, bar: Bar) -> Claim | None:
        """The right to make a shard, and what is to be made; None where others have it or nothing is owed any more."""
        if self._settle(number, self._look(number), bar) or not self._rights.claim(lease(number)):
            return None
        look, began = self._look(number), time.time()  # again: it may have been made between look and claim
        known: tuple[Known, ...] | None = None
        if look.unsure:
            known = tuple(self._readers.map(self._pool.know, self._pool.images(number)))
            same = [(c, found) for c, found in look.unsure if found.note.images == digest(known, c.head)]
            for column, _ in same:
                column.touch(number, began)
            other = tuple(column for column, found in look.unsure if (column, found) not in same)
            look = _Look((*look.there, *same), (*look.owing, *other), ())
        if self._settle(number, look, bar):
            self._rights.release(lease(number))
            return None
        self.pending.pop(number)
        self._keep(number, look.there)
        owing = tuple(column for column in self._columns if column in look.owing)
        return Claim(number, owing, known, began)

    def done(self, number: int) -> None:
        """A claimed shard was committed for all heads that owed it."""
        self._rights.release(lease(number))

    def accept(self, claim: Claim) -> None:
        """A claimed shard was made by a worker elsewhere, for all heads that owed it.

        Raises:
            UserError: it was not, or not with the teachers and images that this process knows.
        """
        look = self._look(claim.number)
        made = [(column, found) for column, found in (*look.there, *look.unsure) if column in claim.owing]
        if len(made) < len(claim.owing):
            raise UserError(
                "a worker made labels that are not those of this pass",
                record=lease(claim.number),
                value=[column.head for column in claim.owing],
                fix="all machines must see the same images, the same files of the teachers, and the same folder",
            )
        self._keep(claim.number, made)
        self.done(claim.number)

    def _keep(self, number: int, there: Sequence[tuple[Column, Found]]) -> None:
        self.tell({column.head: found.note.quarantined for column, found in there})
        for column, found in there:
            column.keep(number, found)

    def tell(self, aside: dict[str, tuple[SetAside, ...]]) -> None:
        """Tell the quarantine list what one shard set aside; an undecodable image once, though every head lists it."""
        entries = {
            (f"{e.source}/{e.id}" if e.stage == DECODE else f"{head}/{e.source}/{e.id}"): e
            for head, listed in aside.items()
            for e in listed
        }
        for id, entry in entries.items():
            self._quarantine(id, entry.sha256, entry.stage, entry.reason)


def lease(number: int) -> str:
    """The name of a shard's lease."""
    return f"shard-{number:05d}"
