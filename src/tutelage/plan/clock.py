"""Time taken of the real loops, through the bar that they move with every batch; and stopped, through the same bar."""

from __future__ import annotations

import time

from tutelage.plan.figures import Span
from tutelage.progress import Bar, Progress


class Enough(Exception):
    """Raised out of a loop that was watched long enough."""


class Clock(Progress):
    """Progress that is not shown but timed.

    Args:
        seconds: the loop is stopped at the first batch that ends later than so long after it began. The very first is
            given ten times as long and the second three times, because the first alone says little.
        most: samples after which it is stopped anyway; None to watch it to its end.
    """

    def __init__(self, seconds: float = float("inf"), most: int | None = None) -> None:
        super().__init__(None)
        self.seconds, self.most = seconds, most
        self.samples: list[float] = []
        """Seconds an image, one a batch, in their order."""
        self.images = 0

    def bar(self, label: str, total: int, unit: str = "images") -> Bar:
        return _Ticking(self, total)

    def warm(self) -> list[float]:
        """The samples without the first, where there are others: it waits for loader processes and first kernels."""
        return self.samples[1:] or self.samples

    def span(self) -> Span:
        """Seconds an image, warm."""
        return Span.of(self.warm())


class _Ticking(Bar):
    def __init__(self, clock: Clock, total: int) -> None:
        super().__init__("", total, "images", None)
        self._clock, self._began = clock, time.perf_counter()
        self._last = self._began

    def skip(self, n: int) -> None:
        """Work that was not done takes no time."""

    def advance(self, n: int = 1, note: str | None = None) -> None:
        now, clock = time.perf_counter(), self._clock
        clock.samples.append((now - self._last) / max(n, 1))
        clock.images += n
        self._last = now
        patience = clock.seconds * {1: 10, 2: 3}.get(len(clock.samples), 1)
        if now - self._began > patience or (clock.most is not None and len(clock.samples) > clock.most):
            raise Enough
