"""Threads that a generator may own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import TracebackType


class Threads(ThreadPoolExecutor):
    """A pool of threads; a context manager that waits for them, unless a generator is closed around it.

    The garbage collector closes a generator that was left unfinished (its caller failed, say) at any moment and in any
    thread, also in one that is just being started. That one holds a lock of the interpreter which a thread that ends
    must have: waiting there can be waiting for ever.
    """

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown(wait=kind is not GeneratorExit, cancel_futures=kind is not None)
