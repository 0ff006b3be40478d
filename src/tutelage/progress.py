"""Progress of long work: a live bar on a terminal, a plain line now and then in a log file, nothing when silent."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import TextIO

_LINE_SECONDS = 10.0


class Bar:
    """The progress of one stage; a context manager."""

    def __init__(self, label: str, total: int, unit: str, stream: TextIO | None) -> None:
        self.label, self.total, self.unit, self.stream = label, total, unit, stream
        self.done, self.note = 0, ""
        self._start = self._shown = time.monotonic()
        self._skipped = 0
        self._live = None
        if stream is not None and stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = [
                TextColumn("[bold]{task.description:<34}"),
                BarColumn(bar_width=28),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[speed]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            ]
            self._live = Progress(*columns, console=Console(file=stream))
            self._task = self._live.add_task(label, total=total, speed="", note="")

    def skip(self, n: int) -> None:
        """Count work that an earlier run did; it does not enter the speed."""
        self._skipped += n
        self.advance(n)

    def advance(self, n: int = 1, note: str | None = None) -> None:
        """Count `n` more units; `note` is shown behind the bar."""
        self.done += n
        self.note = self.note if note is None else note
        if self._live is not None:
            self._live.update(self._task, completed=self.done, speed=self.speed(), note=self.note)
        elif self.stream is not None and time.monotonic() - self._shown > _LINE_SECONDS:
            self._shown = time.monotonic()
            self._print(f"{100 * self.done / max(self.total, 1):3.0f}%  {self.speed()}  {self._left()}  {self.note}")

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        elif self.stream is not None:
            print(text, file=self.stream, flush=True)

    def speed(self) -> str:
        seconds = time.monotonic() - self._start
        return f"{(self.done - self._skipped) / max(seconds, 1e-9):.0f} {self.unit}/s"

    def _left(self) -> str:
        worked = self.done - self._skipped
        if worked <= 0:
            return ""
        seconds = (time.monotonic() - self._start) * (self.total - self.done) / worked
        return f"{seconds:.0f} s left"

    def _print(self, text: str) -> None:
        assert self.stream is not None
        print(f"{self.label:<34} {text}", file=self.stream, flush=True)

    def __enter__(self) -> Bar:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        elif self.stream is not None and kind is None:
            self._print(f"done in {time.monotonic() - self._start:.1f} s  {self.speed()}  {self.note}")


class Progress:
    """Makes bars. `Progress(None)` is silent."""

    def __init__(self, stream: TextIO | None = sys.stderr) -> None:
        self.stream = stream

    def bar(self, label: str, total: int, unit: str = "images") -> Bar:
        """A bar for `total` units of work; speed is shown in units a second."""
        return Bar(label, total, unit, self.stream)

    def say(self, text: str) -> None:
        """A line of its own."""
        if self.stream is not None:
            print(text, file=self.stream, flush=True)


SILENT = Progress(None)


def speaks() -> bool:
    """Whether this is the one of several processes (torchrun) that speaks; known before they have joined."""
    return os.environ.get("RANK", "0") == "0"
