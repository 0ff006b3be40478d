"""Which image is the n-th that training sees: computed from the seed and n alone, so that a run resumes anywhere."""

from __future__ import annotations

import math
import zlib
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Literal

import numpy as np

from tutelage.data.source import Dataset, Subset, Unlabelled
from tutelage.errors import UserError

Mode = Literal["uniform", "equal", "paired"]

_ROUNDS = 6
_WORD = 2**64 - 1


class Mixture:
    """An endless sequence of images drawn from datasets; memory does not depend on how many images there are.

    The datasets form groups. Position n belongs to group n % (number of groups), and each group goes through all images
    of its datasets in a new random order every time round:

    - "uniform": all datasets in one group. Every image of the union is drawn alike (MuST, section 3.3), once an epoch.
    - "equal": each dataset is a group. Every dataset is drawn equally often (the supervised multi-task baseline,
      section 4), small ones therefore repeat sooner. A batch that is a multiple of the number of datasets holds equally
      many of each.
    - "paired": the datasets that `first` tells are one group, all others the second. In every block of a + b positions
      the first a belong to the first group (half human, half pseudo: self-training, Zoph et al. 2020, section 3.2).
      A batch that is a multiple of a + b holds both in exactly this ratio.

    Datasets of one name are the parts of one source: to "equal" they are one.

    Args:
        datasets: the sources, in an order that must not change when a run is resumed.
        mode: as above.
        seed: of the order.
        first: of "paired", the numbers of the datasets in the first group.
        ratio: of "paired", a and b.

    Raises:
        UserError: no dataset, an empty one, or an empty group.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        mode: Mode = "uniform",
        seed: int = 0,
        first: Collection[int] = (),
        ratio: tuple[int, int] = (1, 1),
    ) -> None:
        _check(datasets)
        self.datasets, self.mode, self.seed = list(datasets), mode, seed
        self.counts = [len(d) for d in datasets]
        """Images of each dataset."""
        self._groups, self._turns = _groups(datasets, mode, first, ratio)
        self._ends = [list(accumulate(self.counts[number] for number in group)) for group in self._groups]

    def __len__(self) -> int:
        """Images in the union."""
        return sum(self.counts)

    def at(self, n: int) -> tuple[int, int]:
        """The n-th image, n >= 0: (number of the dataset, index of the image in it)."""
        block, turn = divmod(n, len(self._turns))
        number = self._turns[turn]
        visit = block * self._turns.count(number) + self._turns[:turn].count(number)
        ends = self._ends[number]
        epoch, step = divmod(visit, ends[-1])
        drawn = shuffled(step, ends[-1], mix(self.seed, 1, number, epoch))
        place = bisect_right(ends, drawn)
        dataset = self._groups[number][place]
        return dataset, drawn - (ends[place - 1] if place else 0)

    def instead(self, n: int, attempt: int) -> int:
        """The position to look at when the image at n cannot be used, for attempt = 1, 2, ...; of the same group."""
        return n + attempt * 2**40 * len(self._turns)

    def _names(self) -> list[str]:
        """What the datasets are called: the parts of one source by what they have."""
        names = [dataset.name for dataset in self.datasets]
        return [
            name if names.count(name) == 1 else f"{name} ({'no ' if dataset.head is None else ''}labels)"
            for name, dataset in zip(names, self.datasets, strict=True)
        ]

    def meaning(self) -> str:
        """What one epoch is, in a sentence for the log."""
        names = self._names()
        named = ", ".join(f"{name} {count:,}" for name, count in zip(names, self.counts, strict=True))
        if self.mode == "uniform":
            return f"an epoch is each of the {len(self):,} images of the union once ({named})"
        if self.mode == "paired":
            first, second = (", ".join(names[number] for number in group) for group in self._groups)
            share = self._turns.count(0)
            return f"of {len(self._turns)} images {share} are of {first}, the others of {second} ({named})"
        turn = max(ends[-1] for ends in self._ends) * len(self._ends)
        return f"sources are drawn equally often; the largest has been seen once after {turn:,} images ({named})"


def _groups(
    datasets: Sequence[Dataset], mode: Mode, first: Collection[int], ratio: tuple[int, int]
) -> tuple[list[list[int]], list[int]]:
    """The numbers of each group's datasets, and the group of each position of a block."""
    numbers = list(range(len(datasets)))
    if mode == "uniform":
        return [numbers], [0]
    if mode == "equal":
        named: dict[str, list[int]] = {}
        for number in numbers:
            named.setdefault(datasets[number].name, []).append(number)
        return list(named.values()), list(range(len(named)))
    halves = [[n for n in numbers if (n in first) == inside] for inside in (True, False)]
    for half, what in zip(halves, ("human", "pseudo"), strict=True):
        if not half:
            raise UserError(
                f"there is no source for the {what} half of the batches",
                value=", ".join(dataset.name for dataset in datasets),
                fix="self-training needs images with labels of the head, and others: unlabelled ones, or a pool",
            )
    return halves, [0] * ratio[0] + [1] * ratio[1]


def _check(datasets: Sequence[Dataset]) -> None:
    if not datasets:
        raise UserError("there is no source to draw images from", fix="name at least one source")
    for dataset in datasets:
        if len(dataset) == 0:
            raise UserError("a source has no images", record=dataset.name, fix="check its paths, or leave it out")


def part_of(dataset: Dataset, share: float, seed: int) -> Dataset:
    """The share (0, 1] of a dataset's images that takes part, at least one; all of them are the dataset itself.

    Seed and name decide the part, so that teacher and student, who mix different sources, see the same of one. A
    smaller share is a subset of a larger one.

    Raises:
        UserError: no share.
    """
    if not 0 < share <= 1:
        raise UserError(
            "a fraction must be a share of the images", record=dataset.name, value=share, fix="above 0, at most 1"
        )
    whole = len(dataset)
    count = max(1, math.ceil(round(whole * share, 6)))  # 100 x 0.07 are seven images, and not 7.000000000000001
    if count >= whole:
        return dataset
    key = mix(seed, 2, zlib.crc32(dataset.name.encode()))  # of an order that the share does not change
    return Subset(dataset, np.fromiter((shuffled(index, whole, key) for index in range(count)), np.int64, count))


def parts_of(
    datasets: Iterable[Dataset], fractions: Mapping[str, float], seed: int, rest: bool = False
) -> list[Dataset]:
    """What takes part of each dataset: a share of the images that have a label; of a pool, of all its images.

    Args:
        datasets: the sources.
        fractions: name to share; sources that are not named take part with all labels.
        seed: of the choice.
        rest: whether images of a labelled source that have no label take part too, all of them, as a pool of the same
            name: where teachers label them.

    Raises:
        UserError: no share; a labelled source without a label, where nobody else labels its images.
    """
    parts: list[Dataset] = []
    for dataset in datasets:
        known = dataset.labelled() if dataset.head is not None else None
        whole = dataset if known is None else Subset(dataset, known)
        if known is None or len(known):
            parts.append(part_of(whole, fractions.get(dataset.name, 1.0), seed))
        elif not rest:
            raise UserError("no image of a source has a label", record=dataset.name, fix="leave the source out")
        if known is not None and rest:
            parts.append(Unlabelled(Subset(dataset, np.setdiff1d(np.arange(len(dataset)), known))))
    return parts


def shuffled(i: int, size: int, key: int) -> int:
    """Where i goes in a random permutation of 0 .. size-1 that is chosen by a 64-bit key; nothing is stored.

    A Feistel network over pairs of digits permutes a square a little larger than `size`; what lands outside is sent
    through again until it is inside (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """
    side = math.isqrt(size - 1) + 1 if size > 1 else 1
    while True:
        high, low = divmod(i, side)
        for number in range(_ROUNDS):
            high, low = low, (high + _scramble(key + number * 0x9E3779B97F4A7C15 + low)) % side
        i = high * side + low
        if i < size:
            return i


def order_of(seed: int, name: str) -> int:
    """The seed of an order of its own, for a training that goes on from another or learns from one: else it would see
    that one's batches again, augmented alike."""
    return mix(seed, zlib.crc32(name.encode())) >> 33


def mix(*values: int) -> int:
    """A 64-bit number that depends on all values and their order."""
    state = 0
    for value in values:
        state = _scramble(state + (value & _WORD) + 0x9E3779B97F4A7C15)
    return state


def _scramble(x: int) -> int:
    """The finaliser of splitmix64 (Steele et al., 2014): every output bit depends on every input bit."""
    x &= _WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    return x ^ (x >> 31)
