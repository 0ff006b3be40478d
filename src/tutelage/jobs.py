"""Independent pieces of work side by side, in processes of their own.

Small networks leave most cores idle: two trainings with one thread each are faster than one with two. The processes
are started afresh (a fork would inherit torch's threads), and they end when the process that started them does, however
it ends, so that nothing goes on writing into a run that was killed.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing import connection
from multiprocessing.sharedctypes import Synchronized
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Protocol, TypeVar

from tutelage.cluster import connected
from tutelage.parcel import Parcel, pack
from tutelage.progress import Bar, Progress

R = TypeVar("R")


class _Reports(Protocol):
    """What workers put there arrives before their results: how much was done, and lines that are to be shown."""

    def put(self, item: int | str) -> None: ...
    def get(self) -> int | str: ...
    def empty(self) -> bool: ...


_reports: _Reports | None = None


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
    """Progress in a worker: bars that count `unit` and what is said are reported, all other bars are silent."""

    def __init__(self, unit: str) -> None:
        super().__init__(None)
        self.unit = unit

    def bar(self, label: str, total: int, unit: str = "images") -> Bar:
        return _Reporting() if unit == self.unit and _reports is not None else super().bar(label, total, unit)

    def say(self, text: str) -> None:
        if _reports is not None:
            _reports.put(text)


class Jobs:
    """A pool of worker processes, started when first used; a context manager.

    Attributes:
        count: how many work at once; 1: everything happens in this process.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None
        self._reports: _Reports | None = None
        self._end: connection.Connection | None = None

    def map(
        self,
        work: Callable[..., R],
        calls: Sequence[Sequence[Any]],
        weights: Iterable[int],
        bar: Bar,
        died: Callable[..., R] | None = None,
    ) -> list[R]:
        """The results of `work(*call)` for every call, in the order of the calls.

        Args:
            work: a function that can be pickled.
            calls: its arguments, which can be pickled.
            weights: how much each call adds to the bar; what its workers did not report is added when it ends.
            bar: shows the whole, and what the workers say.
            died: `died(*call)`, in this process, is the result of a call whose process ended while it ran (for want of
                memory, or by a fault of a library). None: that ends everything.

        Raises:
            Whatever the first failing call raises. Calls that have not begun are given up, and processes that are at
            work are ended first: nobody writes on into what its caller has let go of.
        """
        results: dict[int, R] = {}
        sizes, alone = list(weights), deque[int]()
        together = list(range(len(calls)))
        while together or alone:
            batch, shared = (together, True) if together else ([alone.popleft()], False)
            together = []
            try:
                lost, suspects = self._submit(work, calls, sizes, batch, bar, results)
            except BaseException:
                self._give_up()
                raise
            if not lost:
                continue
            self._pool = None  # it is broken
            if died is None:
                raise BrokenProcessPool("a worker process ended while it worked; the system's log may say why")
            if shared:  # who was at work when it broke goes on alone, to find out whose fault it was
                alone.extend(number for number in lost if number in suspects or not suspects)
                together = [number for number in lost if suspects and number not in suspects]
            else:
                results[batch[0]] = died(*calls[batch[0]])
        return [results[number] for number in range(len(calls))]

    def _submit(
        self,
        work: Callable[..., R],
        calls: Sequence[Sequence[Any]],
        sizes: Sequence[int],
        batch: Sequence[int],
        bar: Bar,
        results: dict[int, R],
    ) -> tuple[list[int], set[int]]:
        """Do some of the calls; returns those that were lost with the pool, and those of them that were at work."""
        pool, futures = self._started(), dict[Future[R], int]()
        try:
            for number in batch:
                futures[pool.submit(work, *calls[number])] = number
        except BrokenProcessPool:  # a process ended that had nothing to do
            if not futures:
                self._pool = None
                return self._submit(work, calls, sizes, batch, bar, results)
        waiting, finished, before = set(futures), 0, bar.done
        lost: list[int] = []
        running: set[int] = set()
        while waiting:
            now = {futures[future] for future in waiting if future.running()}
            running = now or running
            done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            assert self._reports is not None
            bar.advance(_shown(self._reports, bar))
            for future in done:
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    lost.append(futures[future])
                elif error is not None:
                    raise error
                else:
                    finished += sizes[futures[future]]
                    results[futures[future]] = future.result()
        bar.advance(max(0, finished - (bar.done - before)))
        lost += [number for number in batch if number not in futures.values()]
        return sorted(lost), running

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._reports = context.SimpleQueue()
            threads = max(1, (os.cpu_count() or 1) // self.count)
            end, self._end = context.Pipe(duplex=False)
            told = threads, self._reports, context.Value("i", 0), end
            self._pool = ProcessPoolExecutor(self.count, context, _begin, told)
        return self._pool

    def _give_up(self) -> None:
        """End all workers, whatever they are at, and wait until they are gone."""
        if self._pool is not None:
            assert self._end is not None
            self._end.send_bytes(b"end")  # nobody reads it, so that every worker sees it
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def __enter__(self) -> Jobs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._give_up()
        elif self._pool is not None:
            self._pool.shutdown()
            self._pool = None


class RayJobs(Jobs):
    """The same on a Ray cluster: every call is a task of its own, on any machine.

    The run's folder, the data and this package must be at the same paths on all machines.

    Attributes:
        count: how many work at once.
        gpus: that each occupies, may be a part of one; None: those of the cluster are shared out evenly.
    """

    def __init__(self, count: int, address: str | None = None, gpus: float | None = None) -> None:
        super().__init__(count)
        self.address, self.gpus = address, gpus
        self._stack = ExitStack()
        self._ray: Any = None

    def map(
        self,
        work: Callable[..., R],
        calls: Sequence[Sequence[Any]],
        weights: Iterable[int],
        bar: Bar,
        died: Callable[..., R] | None = None,
    ) -> list[R]:
        """As of `Jobs`."""
        if self._ray is None:
            self._ray = self._stack.enter_context(connected(self.address, self.count))
        ray, sizes = self._ray, list(weights)
        gpus = share_of(int(ray.cluster_resources().get("GPU", 0)), self.count) if self.gpus is None else self.gpus
        options = {"num_cpus": 1, "num_gpus": gpus, "max_retries": 0}
        remote = ray.remote(**options)(_unpack_and_work)
        results: dict[int, R] = {}
        numbers: dict[Any, int] = {}
        ahead = deque(range(len(calls)))
        while ahead or numbers:
            while ahead and len(numbers) < self.count:
                number = ahead.popleft()
                numbers[remote.remote(pack((work, tuple(calls[number])), ray.cloudpickle.dumps))] = number
            ready, _ = ray.wait(list(numbers), num_returns=1)
            number = numbers.pop(ready[0])
            try:
                results[number], said = ray.get(ready[0])
                for text in said:
                    bar.say(text)
            except ray.exceptions.RayTaskError as error:
                for other in numbers:
                    ray.cancel(other)
                raise error.cause from None
            except (
                ray.exceptions.WorkerCrashedError,
                ray.exceptions.OutOfMemoryError,
                ray.exceptions.NodeDiedError,
            ):
                if died is None:
                    raise
                results[number] = died(*calls[number])
            bar.advance(sizes[number])
        return [results[number] for number in range(len(calls))]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ray = None
        self._stack.close()


def share_of(gpus: int, count: int) -> float:
    """What each of so many workers may occupy of an accelerator, so that all work at once: Ray puts no worker on parts
    of two. 0 where there is none."""
    return math.floor(1e4 / math.ceil(count / gpus)) / 1e4 if gpus else 0.0


def _unpack_and_work(parcel: Parcel) -> tuple[Any, list[str]]:
    """In a task of the cluster: the result, and what was said."""
    global _reports
    _compute_with(1)
    _reports = SimpleQueue[int | str]()
    work, call = parcel.unpack()
    result, said = work(*call), []
    while not _reports.empty():
        said.append(_reports.get())
    return result, [report for report in said if isinstance(report, str)]


def _shown(reports: _Reports, bar: Bar) -> int:
    """Show what workers have said; returns how much they have done."""
    done = 0
    while not reports.empty():
        report = reports.get()
        if isinstance(report, str):
            bar.say(report)
        else:
            done += report
    return done


def _begin(threads: int, reports: _Reports, begun: Synchronized[int], end: connection.Connection) -> None:
    """In a fresh worker: its share of the cores, its number, by which it takes one of several accelerators, the way to
    report, and the watch over the process that started it.

    Args:
        threads: its share.
        reports: what it says.
        begun: how many workers of the pool began before it.
        end: something to read here ends it.
    """
    global _reports
    _compute_with(threads)
    with begun.get_lock():
        os.environ["LOCAL_RANK"] = str(begun.value)
        begun.value += 1
    _reports = reports
    threading.Thread(target=end_with_parent, args=[end], daemon=True).start()


def _compute_with(threads: int) -> None:
    """Let torch use so many threads; it is not imported for that, which takes seconds that the work may not need."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    else:
        os.environ["OMP_NUM_THREADS"] = str(threads)


def end_with_parent(*also: connection.Connection) -> None:
    """In a thread of a started process: end it when the process that started it ends, however that ends, or when there
    is something to read in a connection."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel, *also])
    os._exit(1)
