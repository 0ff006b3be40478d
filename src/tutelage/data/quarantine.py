"""The list of what was set aside: one JSON object a line, only ever added to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from tutelage.errors import UserError

QUARANTINE = "quarantine.jsonl"
"""In a stage's folder: the list."""


class Entry(NamedTuple):
    """One image, or one label of it, that is not used.

    Attributes:
        id: "source/id" of the image; with a head in front of it where only that head's label is set aside.
        sha256: hex digest of the image's bytes, "" where they cannot be read.
        stage: the stage of the run that met it.
        reason: what is wrong with it.
    """

    id: str
    sha256: str
    stage: str
    reason: str


class Quarantine:
    """The quarantine list of a run, shared by all its processes through the file.

    A line is one write to a file opened for appending, so lines of several processes do not mix, and a process killed
    in the middle leaves at most a last line without its end, which is passed over. An id is counted once, however
    often and in however many epochs it is met. What was read is always what was used plus what stands here.

    Args:
        path: the JSONL file; it and its folder are made with the first entry.
        total: images (or labels) that the run is going to read.
        limit: the share of them above which `add` stops the run. One is always allowed.
    """

    def __init__(self, path: str | Path, total: int, limit: float = 0.005) -> None:
        self.path, self.total, self.limit = Path(path), total, limit
        self._entries: dict[str, Entry] = {}
        self._read = 0  # bytes of the file that are in _entries
        self._refresh()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def share(self) -> float:
        """Entries divided by `total`, 0 to 1."""
        return len(self) / max(self.total, 1)

    def add(self, id: str, sha256: str, stage: str, reason: str) -> None:
        """Write an entry down, unless its id is there already, and look at the share.

        Raises:
            UserError: more is set aside than `limit` allows.
        """
        self._refresh()
        if id not in self._entries:
            self._append(Entry(id, sha256, stage, reason))
            self._refresh()
        self.check()

    def check(self) -> None:
        """Raise UserError when more is set aside than `limit` allows."""
        if len(self) <= max(1, int(self.limit * self.total)):
            return
        last = next(reversed(self._entries.values()))
        raise UserError(
            f"{len(self)} of {self.total} images or labels cannot be used: {100 * self.share:.2f}%, "
            f"above the limit of {100 * self.limit:g}%",
            file=self.path,
            record=last.id,
            value=last.reason,
            fix="`tutelage check` lists all of them; mend or remove the files and delete this list, or raise the limit",
        )

    def _append(self, entry: Entry) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            line = ("\n" if torn else "") + json.dumps(entry._asdict(), ensure_ascii=False) + "\n"
            os.write(descriptor, line.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _refresh(self) -> None:
        """Take in what was added to the file, by whomever; a last line without an end is left for later."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            fresh = file.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                entry = Entry(**json.loads(line))
            except (ValueError, TypeError):  # a line that a killed process began, or an empty one
                continue
            self._entries.setdefault(entry.id, entry)
