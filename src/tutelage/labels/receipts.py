"""What processes tell the one that writes the manifest: the size and digest of every file that they wrote.

One file a process, only ever added to. It saves reading all labels again for their digests, and nothing depends on it:
a line that is missing, cut short or no longer true (`Shard.note`) means that this shard is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from tutelage.files import read_json_lines, room_for
from tutelage.labels.store import Shard


class Receipts:
    """The receipts of a pass.

    Args:
        folder: that all its processes share.
        process: this one.
    """

    def __init__(self, folder: Path, process: str) -> None:
        self._folder, self._own = folder, folder / f"written-{process}.jsonl"

    def add(self, head: str, shard: Shard) -> None:
        """A file of a head that this process wrote. Raises UserError when the disk is full."""
        with room_for(self._own), self._own.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"head": head, "shard": shard.plain()}) + "\n")

    def read(self, head: str) -> Iterator[Shard]:
        """All files of a head that any process wrote."""
        for file in self._folder.glob("written-*.jsonl"):
            try:
                yield from (Shard(**line["shard"]) for line in read_json_lines(file) if line["head"] == head)
            except (OSError, ValueError, KeyError, TypeError, ValidationError):  # damaged by a crash of its machine
                continue
