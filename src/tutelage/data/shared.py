"""Images that several sources show: one image of the union, with all its human labels.

Two sources show the same image when both name the same file, as boxes and masks for one folder of photographs do.
Copies of a file under other names are other images.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tutelage.data.loading import Labels
from tutelage.data.source import BadImage, Dataset, Subset
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

    Datasets of one name are the parts of one source.

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
        rows: dict[str, list[tuple[int, int, int]]] = {}
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
                        shown = self._all[keeper]
                        rows.setdefault(shown.name, []).append((_hash(shown.id(kept)), number, index))
                left = np.delete(left, again)
                self.shared += len(again)
            if len(left):
                self.datasets.append(dataset if len(left) == len(dataset) else Subset(dataset, left))
        self._heads = {dataset.name: dataset.head for dataset in datasets if dataset.head is not None}
        names = Counter(dataset.name for dataset in datasets)
        self._keys = {d.name: _keys(d) for d in datasets if d.head is not None and names[d.name] > 1}
        for name, found in rows.items():
            found.sort()
            self._elsewhere[name] = _Elsewhere(
                np.array([row[0] for row in found], np.uint64),
                np.array([row[1] for row in found], np.int64),
                np.array([row[2] for row in found], np.int64),
            )

    def labels(self, pseudo: Labels | None) -> Labels:
        """Labels of the other heads of an image: what a person said in another source; else the pseudo label."""
        return _HumanFirst(self, pseudo)

    def said(self, head: str, source: str, id: str) -> bool:
        """Whether a person gave an image of a source its label of a head, there or elsewhere; no label is read."""
        if self._heads.get(source) == head:
            keys = self._keys.get(source)
            if keys is None or _span(keys, id):
                return True
        return any(True for _ in self.elsewhere(head, source, id))

    def elsewhere(self, head: str, source: str, id: str) -> Iterator[tuple[Dataset, int]]:
        """Where else an image of a source is shown among those of a source that labels a head: dataset and index."""
        if source not in self._elsewhere:
            return
        places = self._elsewhere[source]
        for row in _span(places.keys, id):
            other, index = self._all[places.datasets[row]], int(places.indices[row])
            if other.head == head and _same_name(id, other.id(index)):
                yield other, index


@dataclass(frozen=True)
class _HumanFirst:
    union: Union
    pseudo: Labels | None

    def get(self, head: str, source: str, id: str) -> Target | None:
        """As `Labels.get`."""
        for dataset, index in self.union.elsewhere(head, source, id):
            try:
                target = dataset.target(index)
            except BadImage:  # a person's label that cannot be used takes nothing else from the image
                return None
            if target is not None:
                return target
        return None if self.pseudo is None else self.pseudo.get(head, source, id)


def _keys(dataset: Dataset) -> NDArray[np.uint64]:
    """Hashes of the images' ids: uint64 [N], increasing."""
    return np.sort(np.fromiter((_hash(dataset.id(index)) for index in range(len(dataset))), np.uint64, len(dataset)))


def _span(keys: NDArray[np.uint64], id: str) -> range:
    """Where an id's hash stands among increasing ones."""
    key = np.uint64(_hash(id))
    return range(int(np.searchsorted(keys, key)), int(np.searchsorted(keys, key, "right")))


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
