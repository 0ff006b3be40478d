"""All images of a pass as one row, cut into shards; and what tells whether a shard's images are still the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.data.source import BadImage, Dataset

_SKEW = 120.0
"""Seconds by which the clocks of the images' file server and of the machine that labelled may differ; images that
changed within this time before their labels were made are compared by content."""


@dataclass(frozen=True)
class Known:
    """An image before it is decoded. `human` is the head that a person labelled it for, and that is to be kept."""

    source: str
    id: str
    sha256: str
    human: str | None


class Pool:
    """All datasets as one row of images, cut into shards.

    Args:
        datasets: in the order of the pool.
        shard: images a shard.
        human_heads: heads for which human labels are kept in place of pseudo labels.
    """

    def __init__(self, datasets: Sequence[Dataset], shard: int, human_heads: Iterable[str] = ()) -> None:
        self.datasets, self.shard, self.human_heads = datasets, shard, frozenset(human_heads)
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

    def name(self, image: int) -> tuple[str, str]:
        """Source and id of an image."""
        dataset, index = self.place(image)
        return dataset.name, dataset.id(index)

    def first(self) -> str:
        return "/".join(self.name(0))

    def know(self, image: int) -> Known:
        """An image by its bytes, which are read, and whether a person labelled it.

        An image that cannot even be read has the digest "".
        """
        dataset, index = self.place(image)
        try:
            sha256 = dataset.sha256(index)
        except BadImage:
            sha256 = ""
        return Known(dataset.name, dataset.id(index), sha256, dataset.head if self._human(dataset, index) else None)

    def _human(self, dataset: Dataset, index: int) -> bool:
        """Whether a person labelled it. A label that cannot be used counts: it is never replaced by a pseudo label."""
        if dataset.head not in self.human_heads:
            return False
        try:
            return dataset.target(index) is not None
        except BadImage:
            return True

    def listing(self, number: int, head: str, known: Sequence[Known] | None = None) -> str:
        """For one head, a digest of a shard's ids and of which of its images a person labelled; reads no pixels.

        Args:
            number: of the shard.
            head: whose human labels count.
            known: the shard's images, where they are known already.
        """
        hasher, offset = hashlib.sha256(), 0
        for dataset, start, stop in self._runs(number):
            flags: list[bool] = []
            if dataset.head == head and head in self.human_heads:
                human = (self._human(dataset, index) for index in range(start, stop))
                flags = list(human) if known is None else [k.human == head for k in known[offset:][: stop - start]]
            labelled = bytes(flags) if any(flags) else b""
            hasher.update(repr((dataset.name, dataset.listing(start, stop), labelled)).encode())
            offset += stop - start
        return hasher.hexdigest()

    def unchanged_since(self, number: int, seconds: float, just_now: bool) -> bool | None:
        """Whether no file of a shard's images changed after its labels were made; None: not known.

        Args:
            number: of the shard.
            seconds: since the epoch: when the labels were made.
            just_now: whether that was during this pass.
        """
        latest = [dataset.changed(start, stop) for dataset, start, stop in self._runs(number)]
        if any(change is None for change in latest):
            return None
        return max(change for change in latest if change is not None) + (0 if just_now else _SKEW) < seconds

    def _runs(self, number: int) -> Iterator[tuple[Dataset, int, int]]:
        """The datasets that a shard takes images from, each with its first and last index."""
        images = self.images(number)
        for dataset, start, stop in zip(
            self.datasets, self._starts[:-1].tolist(), self._starts[1:].tolist(), strict=True
        ):
            if max(start, images.start) < min(stop, images.stop):
                yield dataset, max(start, images.start) - start, min(stop, images.stop) - start


def digest(images: Iterable[Known], head: str) -> str:
    """What one shard of a head is made from: the images in order, and which of them a person labelled."""
    hasher = hashlib.sha256()
    for known in images:
        hasher.update(repr((known.source, known.id, known.sha256, known.human == head)).encode())
    return hasher.hexdigest()
