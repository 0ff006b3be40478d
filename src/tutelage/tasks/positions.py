"""What labels of pixels say of each place in an image of whatever size: medians, commonest classes, by histograms.

Letters: P cells of a grid over the image, N pixels, B bins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.tasks.task import NoLabels

_SIDE = 16
PLACES = _SIDE**2
"""P: a grid of 16 x 16 cells lies over every image. An image is known by its places alone, not by its size."""


def places(height: int, width: int) -> Tensor:
    """The cell of every pixel, int64 [height,width], row by row from the top left."""
    down, across = (torch.arange(side) * _SIDE // side for side in (height, width))
    return down[:, None] * _SIDE + across


class Counts:
    """How often each bin was seen at each place. Nothing is sampled, and the order of additions does not matter.

    Args:
        bins: B.
    """

    def __init__(self, bins: int) -> None:
        self._counts = torch.zeros(PLACES, bins, dtype=torch.int64)

    def add(self, bins: Tensor, at: Tensor) -> None:
        """Count pixels: their bins and their places, both int64 [N]."""
        width = self._counts.shape[1]
        self._counts += (at * width + bins).bincount(minlength=self._counts.numel()).view(PLACES, width)

    def commonest(self) -> Tensor:
        """The commonest bin of each place, of equal ones the first, int64 [P].

        Raises:
            NoLabels: nothing was added.
        """
        return self._filled().argmax(1)

    def median(self) -> Tensor:
        """The lower median bin of each place, int64 [P]. Raises NoLabels: nothing was added."""
        counts = self._filled()
        half = (counts.sum(1, keepdim=True) + 1) // 2
        return torch.searchsorted(counts.cumsum(1), half)[:, 0]

    def _filled(self) -> Tensor:
        """The counts; a place that nothing was added to has those of all places together."""
        every = self._counts.sum(0)
        if not bool(every.any()):
            raise NoLabels("no pixel of any image is labelled")
        return torch.where(self._counts.any(1, keepdim=True), self._counts, every)


class Median:
    """The median of numbers at each place.

    Args:
        low, high: numbers outside count as the nearer of the two.
        step: between the numbers that are told apart; a median is exact to half of it.
    """

    def __init__(self, low: float, high: float, step: float) -> None:
        self._low, self._step, self._last = low, step, round((high - low) / step)
        self._counts = Counts(self._last + 1)

    def add(self, values: Tensor, at: Tensor) -> None:
        """Count numbers, [N] of any float type, at places int64 [N]."""
        bins = ((values.float() - self._low) / self._step).round().clamp(0, self._last)
        self._counts.add(bins.long(), at)

    def value(self) -> Tensor:
        """float32 [P]; the lower median of an even number. Raises NoLabels: nothing was added."""
        return self._low + self._counts.median() * self._step
