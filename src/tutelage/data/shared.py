"""Images that several sources show: one image of the union, with all its human labels.

Two sources show the same image when both name the same file, as boxes and masks for one folder of photographs do.
Copies of a file under other names are other images.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tutelage.data.loading import Labels
from tutelage.data.source import Dataset, Subset
from tutelage.types import Target


@dataclass(frozen=True)
class _Elsewhere:
    """Where else the images of one source are shown; a row for each further place.

    Attributes:
        keys: uint64 [N], hashes of the images' ids, increasing.
        datasets: int64 [N], numbers of the other datasets.
        indices: int64 [N], the images' numbers there.
    """

    keys: NDArray[np.uint64]
    datasets: NDArray[np.int64]
    indices: NDArray[np.int64]


class Union:
    """Datasets without the images that an earlier one of them shows already.

    Attributes:
        datasets: in the given order; a dataset of which nothing is left is left out.
        shared: how many images were shown again.
    """

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self._all = list(datasets)
        files = {number: _files(d) for number, d in enumerate(datasets) if d.in_files}
        self._elsewhere: dict[str, _Elsewhere] = {}
        self.shared = 0
        first: dict[int, tuple[int, int]] = {}  # of shared files only: where they are kept
        doubled = _doubled(list(files.values()))
        rows: dict[int, list[tuple[int, int, int]]] = {}
        self.datasets: list[Dataset] = []
        for number, dataset in enumerate(self._all):
            left = np.arange(len(dataset))
            if number in files:
                again = []
                for index in np.flatnonzero(np.isin(files[number], doubled)).tolist():
                    file = int(files[number][index])
                    keeper, kept = first.setdefault(file, (number, index))
                    if keeper != number and _same_name(self._all[keeper].id(kept), dataset.id(index)):
                        again.append(index)
                        rows.setdefault(keeper, []).append((_hash(self._all[keeper].id(kept)), number, index))
                left = np.delete(left, again)
                self.shared += len(again)
            if len(left):
                self.datasets.append(dataset if len(left) == len(dataset) else Subset(dataset, left))
        for keeper, found in rows.items():
            found.sort()
            self._elsewhere[self._all[keeper].name] = _Elsewhere(
                np.array([row[0] for row in found], np.uint64),
                np.array([row[1] for row in found], np.int64),
                np.array([row[2] for row in found], np.int64),
            )

    def labels(self, pseudo: Labels | None) -> Labels:
        """Labels of the other heads of an image: what a person said in another source; else the pseudo label."""
        return _HumanFirst(self._all, self._elsewhere, pseudo)


@dataclass(frozen=True)
class _HumanFirst:
    datasets: Sequence[Dataset]
    elsewhere: Mapping[str, _Elsewhere]
    pseudo: Labels | None

    def get(self, head: str, source: str, id: str) -> Target | None:
        """As `Labels.get`."""
        places = self.elsewhere.get(source)
        if places is not None:
            start, stop = (int(np.searchsorted(places.keys, np.uint64(_hash(id)), side)) for side in ("left", "right"))
            for row in range(start, stop):
                other, index = self.datasets[places.datasets[row]], int(places.indices[row])
                shown = other.head == head and _same_name(id, other.id(index))
                target = other.target(index) if shown else None
                if target is not None:
                    return target
        return None if self.pseudo is None else self.pseudo.get(head, source, id)


def _files(dataset: Dataset) -> NDArray[np.uint64]:
    """A hash of every image's file: uint64 [N]. Links to folders are followed, a link that is itself a file is not."""
    folder = lru_cache(maxsize=4096)(os.path.realpath)

    def key(index: int) -> int:
        where, name = os.path.split(dataset.file(index))
        return _hash(f"{folder(where)}/{name}")

    return np.fromiter((key(index) for index in range(len(dataset))), np.uint64, len(dataset))


def _doubled(files: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """The hashes that stand in more than one array; each array has its own only once."""
    values, counts = np.unique(
        np.concatenate([np.unique(f) for f in files] or [np.empty(0, np.uint64)]), return_counts=True
    )
    return values[counts > 1]


def _same_name(a: str, b: str) -> bool:
    """Whether two ids end in the same file name: guards against two paths of one hash."""
    return a.rpartition("/")[2] == b.rpartition("/")[2]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
