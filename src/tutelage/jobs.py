"""Independent pieces of work side by side, in processes of their own.

Small networks leave most cores idle: two trainings with one thread each are faster than one with two. The processes
are started afresh (a fork would inherit torch's threads), and they end when the process that started them does, however
it ends, so that nothing goes on writing into a run that was killed.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import connection
from multiprocessing.queues import Queue
from queue import Empty
from types import TracebackType
from typing import Any, TypeVar

from tutelage.progress import Bar, Progress

R = TypeVar("R")

_reports: Queue[int] | None = None


class _Reporting(Bar):
    """A bar in a worker: it tells the starting process how much was done."""

    def __init__(self) -> None:
        super().__init__("", 0, "", None)

    def skip(self, n: int) -> None:
        self.advance(n)

    def advance(self, n: int = 1, note: str | None = None) -> None:
        assert _reports is not None
        _reports.put(n)


class ReportingProgress(Progress):
    """Progress in a worker: bars that count `unit` are reported, all others are silent."""

    def __init__(self, unit: str) -> None:
        super().__init__(None)
        self.unit = unit

    def bar(self, label: str, total: int, unit: str = "images") -> Bar:
        return _Reporting() if unit == self.unit and _reports is not None else super().bar(label, total, unit)


class Jobs:
    """A pool of worker processes, started when first used; a context manager.

    Attributes:
        count: how many work at once; 1: everything happens in this process.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None
        self._reports: Queue[int] | None = None

    def map(self, work: Callable[..., R], calls: Sequence[Sequence[Any]], weights: Iterable[int], bar: Bar) -> list[R]:
        """The results of `work(*call)` for every call, in the order of the calls.

        Args:
            work: a function that can be pickled.
            calls: its arguments, which can be pickled.
            weights: how much each call adds to the bar; what its workers did not report is added when it ends.
            bar: shows the whole.

        Raises:
            Whatever the first failing call raises; calls that have not begun are given up.
        """
        pool = self._started()
        futures: dict[Future[R], int] = {
            pool.submit(work, *call): weight for call, weight in zip(calls, weights, strict=True)
        }
        waiting, finished = set(futures), 0
        while waiting:
            done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            finished += sum(futures[future] for future in done)
            bar.advance(self._reported())
            for future in done:
                if future.exception() is not None:
                    for other in waiting:
                        other.cancel()
                    future.result()
        bar.advance(max(0, finished - bar.done))
        return [future.result() for future in futures]

    def _reported(self) -> int:
        total = 0
        assert self._reports is not None
        while True:
            try:
                total += self._reports.get_nowait()
            except Empty:
                return total

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._reports = context.Queue()
            threads = max(1, (os.cpu_count() or 1) // self.count)
            self._pool = ProcessPoolExecutor(self.count, context, _begin, (threads, self._reports))
        return self._pool

    def __enter__(self) -> Jobs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)
            self._pool = None


def _begin(threads: int, reports: Queue[int]) -> None:
    """In a fresh worker: its share of the cores, the way to report, and the watch over the process that started it."""
    global _reports
    import torch

    torch.set_num_threads(threads)
    _reports = reports
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """In a thread of a started process: end it when the process that started it ends, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
