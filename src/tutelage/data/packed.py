"""What readers of packed images share: files that hold many images each, how they are named, found and read.

The index of such a file is made once and kept as a memory-mapped file in the run's cache. Reads state their place in
the file and never move a position, so threads and forked loader processes may share whatever is open.
"""

from __future__ import annotations

import abc
import glob
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tutelage.data.files import FileSource, doubles, find, natural, nearest_beside, several
from tutelage.data.pixels import PackedPicture, check_length
from tutelage.data.source import BadImage, Dataset, Fault
from tutelage.errors import UserError
from tutelage.files import write_atomically

_MOST_NAMES = 1_000_000  # that braces may expand to


@dataclass(frozen=True)
class Container:
    """A file that holds many images, as it was when the source was opened.

    Attributes:
        label: its name in the ids of its images.
        path: where it is.
        size: bytes.
        changed, modified: nanoseconds, the file's ctime and mtime.
    """

    label: str
    path: str
    size: int
    changed: int
    modified: int

    @property
    def key(self) -> str:
        """Hex digest of path, size and time of change: what is derived from the file holds as long as this."""
        return hashlib.sha256(f"{self.path}\n{self.size}\n{self.changed}".encode()).hexdigest()[:32]

    def check(self, status: os.stat_result) -> None:
        """Raise UserError when the file is no longer the one that was opened."""
        if (status.st_size, status.st_mtime_ns) != (self.size, self.modified):
            raise UserError("the file was changed while it was read", file=self.path, fix="run again")


def find_containers(root: Path, given: str, endings: tuple[str, ...], field: str, name: str) -> list[Container]:
    """The files that a recipe names, in natural order of their labels.

    A label is the path below the folder that is given, or below the one in front of the first wildcard: of
    "a/*/x.tar" it is "b/x.tar", of "a/x-{0..9}.tar" it is "x-0.tar".

    Args:
        root: where a relative path starts.
        given: a path, a folder (all files below it), a pattern with *, ? and [], or braces as {000..123} and {a,b}.
        endings: of the files that are taken from a folder.
        field: of the recipe, for messages.
        name: of the source, for messages.

    Raises:
        UserError: nothing there, a member of the braces missing, or a file named twice.
    """
    whole = root / given
    if whole.is_dir():
        base, paths = whole, [str(whole / file) for file in find(whole, endings)[0]]
    elif whole.is_file():
        base, paths = whole.parent, [str(whole)]
    else:
        base = root / os.path.dirname(re.split(r"[*?\[{]", given, maxsplit=1)[0])  # noqa: PTH120
        paths = list(_matches(root, given, field, name))
    if not paths:
        raise UserError(
            f"source '{name}': there is no such file or folder for `{field}`{nearest_beside(whole)}",
            file=whole,
            fix="give a file, a folder, a pattern with *, or braces as {000..123}",
        )
    labels = [os.path.relpath(path, base).replace(os.sep, "/") for path in paths]
    if twice := doubles(labels):
        raise UserError(
            f"source '{name}': files are named twice", field=field, value=several(twice), fix="name each once"
        )
    order = sorted(range(len(paths)), key=lambda i: natural(labels[i]))
    return [look(labels[i], paths[i]) for i in order]


def look(label: str, path: str) -> Container:
    status = os.stat(path)  # noqa: PTH116
    return Container(label, os.path.abspath(path), status.st_size, status.st_ctime_ns, status.st_mtime_ns)  # noqa: PTH100


def _matches(root: Path, given: str, field: str, name: str) -> Iterator[str]:
    missing = []
    for text in _expand(given, field, name):
        path = os.path.join(root, text)  # noqa: PTH118
        found = [path] if os.path.isfile(path) else []  # noqa: PTH113
        if not found and re.search(r"[*?\[]", text):
            found = [os.path.join(root, match) for match in glob.glob(text, root_dir=root, recursive=True)]  # noqa: PTH118,PTH207
            found = [match for match in found if os.path.isfile(match)]  # noqa: PTH113
        elif not found:
            missing.append(text)
        yield from found
    if missing and "{" in given:
        raise UserError(
            f"source '{name}': files that the braces name are not there",
            file=root / given,
            value=several(missing),
            fix="correct the range",
        )


def _expand(given: str, field: str, name: str) -> Iterator[str]:
    """The names that braces stand for."""
    parts = re.split(r"\{([^{}]*)\}", given)  # outside, inside, outside, ...
    choices: list[Sequence[str]] = []
    most = 1
    for number, part in enumerate(parts):
        choices.append(_choices(part) if number % 2 else [part])
        most *= len(choices[-1])
    if most > _MOST_NAMES:
        raise UserError(
            f"source '{name}': the braces stand for too many names", field=field, value=given, fix=f"{_MOST_NAMES:,} do"
        )
    return map("".join, itertools.product(*choices))


def _choices(inner: str) -> Sequence[str]:
    bounds = re.fullmatch(r"([0-9]{1,18})\.\.([0-9]{1,18})", inner)
    if bounds is None:
        return inner.split(",")
    low, high = sorted(bounds.groups(), key=int)
    padded = any(len(bound) > 1 and bound[0] == "0" for bound in (low, high))
    first, last, width = int(low), int(high), max(len(low), len(high)) if padded else 0
    return Lazy(last - first + 1, lambda number: f"{first + number:0{width}d}")


class Lazy(Sequence[str]):
    """Strings made when they are asked for, such as ids that lie in an index."""

    def __init__(self, count: int, make: Callable[[int], str]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self._make(number) for number in range(self._count)[index]]
        return self._make(range(self._count)[index])


class PackedDataset(Dataset, abc.ABC):
    """Images without labels that lie in containers, in their order there. What is held in memory is a few bytes a file.

    Args:
        name: of the source.
        containers: the files.
        counts: images in each.
        faults: found while the index was made.
        source: says which images are kept; without such options all are, and no index is held in memory.

    Raises:
        UserError: no image is left.
    """

    head = None
    space = None

    def __init__(
        self, name: str, containers: Sequence[Container], counts: Sequence[int], faults: list[Fault], source: FileSource
    ) -> None:
        self.name, self.faults = name, faults
        self._containers = tuple(containers)
        self._starts = np.cumsum([0, *counts])
        self._kept: NDArray[np.int64] | None = None
        self._choose(source)
        if len(self) == 0:
            raise UserError(
                f"source '{name}': no image is left",
                file=self._containers[0].path,
                fix="check what the files hold, `blocks` and `exclude`",
            )

    def _choose(self, source: FileSource) -> None:
        if source.picks:
            self._kept = source.pick(self.name, Lazy(len(self), self.id))

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._kept is None else len(self._kept)

    def _place(self, index: int) -> tuple[int, int]:
        """The container's number, and the image's number in it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        index = index if self._kept is None else int(self._kept[index])
        which = int(np.searchsorted(self._starts, index, side="right")) - 1
        return which, index - int(self._starts[which])

    def _places(self, start: int, stop: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Images [start, stop) as runs: the container's number, and the images' numbers in it."""
        indices = np.arange(start, stop) if self._kept is None else self._kept[start:stop]
        which = np.searchsorted(self._starts, indices, side="right") - 1
        for number in np.unique(which).tolist():
            yield number, indices[which == number] - self._starts[number]

    @abc.abstractmethod
    def _bytes(self, index: int) -> bytes:
        """The encoded image. Raises BadImage. Called from any thread, and in processes forked from this one."""

    @abc.abstractmethod
    def _named(self, index: int) -> str | None:
        """The image's own name, if it has one."""

    @abc.abstractmethod
    def _listed(self, container: int, rows: NDArray[np.int64]) -> bytes:
        """Bytes that are the same when the ids of these images are the same, in the same order."""

    def target(self, index: int) -> None:
        """None: nothing is labelled here."""
        return

    def picture(self, index: int) -> PackedPicture:
        return PackedPicture(partial(self._bytes, index), self._named(index))

    def sha256(self, index: int) -> str:
        return hashlib.sha256(self._bytes(index)).hexdigest()

    def mended(self, index: int) -> list[Fault]:
        return [Fault(self.file(index), self.id(index), note, "converted") for note in self.picture(index).notes]

    def listing(self, start: int, stop: int) -> str:
        """As `Dataset.listing`; from the index, without a loop."""
        hasher = hashlib.sha256(f"{stop - start}\n".encode())
        for container, rows in self._places(start, stop):
            part = self._listed(container, rows)
            hasher.update(f"{self._containers[container].label}\n{len(part)}\n".encode())
            hasher.update(part)
        return hasher.hexdigest()

    def changed(self, start: int, stop: int) -> float | None:
        """As `Dataset.changed`: of the containers, and of the folders they lie in up to where their labels begin."""
        latest = 0.0
        try:
            for which, _ in self._places(start, stop):
                path, label = self._containers[which].path, self._containers[which].label
                latest = max(latest, os.stat(path).st_ctime)  # noqa: PTH116
                for _ in label.split("/"):
                    path = os.path.dirname(path)  # noqa: PTH120
                    latest = max(latest, os.stat(path).st_ctime)  # noqa: PTH116
        except OSError:
            return None
        return latest


class _Handle:
    """An open file, closed with its last user."""

    def __init__(self, container: Container) -> None:
        self.number = os.open(container.path, os.O_RDONLY | os.O_CLOEXEC)
        container.check(os.fstat(self.number))

    def __del__(self) -> None:
        if "number" in vars(self):  # opening may have failed
            os.close(self.number)


_opened = lru_cache(maxsize=64)(_Handle)  # few, because a process may hold about a thousand open files


def read_part(container: Container, offset: int, size: int) -> bytes:
    """An image that lies in a container as it is.

    Raises:
        BadImage: the file cannot be read, or ends too early, or the image is too large.
        UserError: the file was changed since the source was opened.
    """
    if size == 0:
        return b""
    check_length(size)
    try:
        handle = _opened(container)
        data = os.pread(handle.number, size, offset)
        while 0 < len(data) < size:  # some file systems give less than was asked for
            more = os.pread(handle.number, size - len(data), offset + len(data))
            if not more:
                break
            data += more
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror}") from None
    if len(data) < size:
        raise BadImage(f"cut: {len(data):,} of {size:,} bytes are there")
    return data


def kept_table(cache: Path, kind: str, key: str, make: Callable[[], pa.Table]) -> pa.Table:
    """A derived table, memory-mapped; made first where it is not there whole.

    Several processes may make it at once: each writes the same bytes, and the last rename stays.

    Args:
        cache: the folder.
        kind: the first word of the file's name.
        key: what the table is made from, in full.
        make: makes it.
    """
    file = cache / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.arrow"
    table = _mapped(file)
    if table is None:
        made = make().combine_chunks()
        write_atomically(file, lambda stream: _write(stream, made))
        table = _mapped(file)
        assert table is not None
    return table


def _write(stream: Any, table: pa.Table) -> None:
    with pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)


def _mapped(file: Path) -> pa.Table | None:
    try:
        return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    except (OSError, pa.ArrowException):  # none, or not whole: an Arrow file ends with what is needed to open it
        return None


def digest_of_text(values: pa.Array) -> bytes:
    """SHA-256 of an Arrow array of large_string, [N], without nulls: equal for equal texts in equal order."""
    _, offsets, data = values.buffers()
    if len(values) == 0 or data is None:
        return hashlib.sha256(str(len(values)).encode()).digest()
    bounds = np.frombuffer(offsets, np.int64)[values.offset : values.offset + len(values) + 1]
    hasher = hashlib.sha256(np.diff(bounds).tobytes())
    hasher.update(memoryview(data)[bounds[0] : bounds[-1]])
    return hasher.digest()
