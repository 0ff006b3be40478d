"""Files that are either there in full or not there at all."""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tutelage.errors import UserError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file under a temporary name in the same folder, sync it, and rename it into place.

    The temporary name is `.<name>.<unique>.part`; no other process on any machine has the same.

    Raises:
        UserError: the disk is full, or a quota is used up; nothing is left behind then.
    """
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        try:
            with temporary.open("wb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Turns "no space left" and its kin, while something is written, into a UserError that names the path."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise UserError(
            f"the file cannot be written: {(error.strerror or 'no room').lower()}",
            file=path,
            fix="make room on this disk, or in your quota, and run again: what is finished is kept",
        ) from error


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Turns what a folder in which nobody may write answers into a UserError that names it."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
        raise UserError(
            f"nothing can be written here: {(error.strerror or 'not permitted').lower()}",
            file=folder,
            fix="take another folder, or make this one writable",
        ) from error


def sync(path: Path) -> None:
    """Make what was written to a file, or the renames inside a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_atomically(path, lambda stream: stream.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a JSON-lines file; a last line cut short by a crash is left out."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            if line.endswith("\n"):
                yield json.loads(line)


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a JSON-lines file atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
