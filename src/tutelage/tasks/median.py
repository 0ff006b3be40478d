"""The median of more numbers than fit into memory."""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.tasks.task import NoLabels


class Median:
    """The median of all numbers that were added, from a histogram: nothing is sampled, and their order does not matter.

    Args:
        low, high: numbers outside count as the nearer of the two.
        step: between the numbers that are told apart; the median is exact to half of it.
    """

    def __init__(self, low: float, high: float, step: float) -> None:
        self._low, self._step = low, step
        self._counts = torch.zeros(round((high - low) / step) + 1, dtype=torch.int64)

    def add(self, values: Tensor) -> None:
        """Count numbers, [N] of any float type."""
        last = len(self._counts) - 1
        places = ((values.float() - self._low) / self._step).round().clamp(0, last).long()
        self._counts += places.bincount(minlength=last + 1)

    def value(self) -> float:
        """The lower median.

        Raises:
            NoLabels: nothing was added.
        """
        count = int(self._counts.sum())
        if not count:
            raise NoLabels("no pixel of any image is valid")
        return self._low + int(torch.searchsorted(self._counts.cumsum(0), (count + 1) // 2)) * self._step
