"""Pools in tar archives, as WebDataset lays them out: key.jpg beside key.json. Nothing is ever extracted."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import field_validator

from tutelage.data.files import FileSource, others_fault
from tutelage.data.packed import Container, PackedDataset, digest_of_text, find_containers, kept_table, read_part
from tutelage.data.pixels import SUFFIXES
from tutelage.data.source import Dataset, Fault, Place
from tutelage.data.tar import Note, Notes, NotTar, read_members
from tutelage.errors import UserError

_VERSION = 1  # of the index files; a change makes all of them anew
_FLUSH = 65_536  # members held as Python objects while an archive is read
_NOTES, _OTHERS = b"notes", b"others"
_TWICE = "a name stands twice in the archive; the last member of this name is taken, as tar does"


class Tar(FileSource):
    """Images without labels in plain tar archives, in the archives' order; ids are "archive.tar/member.jpg".

    Members are images by the ending of their name, others are counted. An index of every archive is made once, by
    reading its headers, and kept in the run's cache; images are then read in any order, each with one read. Compressed
    archives are refused, because nothing in them can be reached without unpacking all that stands before it (and
    images are compressed already). Links, devices, sparse files and names that lead outside are left out and counted.
    `blocks`, `every` and `limit` take members in the order of the archives.
    """

    format: Literal["tar"] = "tar"
    head: None = None
    archives: str
    """A file, a folder, a pattern ("train-*.tar"), or WebDataset's braces ("train-{000..009}.tar")."""
    endings: tuple[str, ...] = ()
    """Take members whose names end so, such as [".jpg"] where masks lie beside the images as ".seg.png"; left out:
    the endings of all image formats that are read."""

    @field_validator("endings")
    @classmethod
    def _check_endings(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not ending.startswith(".") for ending in value):
            raise ValueError("an ending begins with a dot: [.jpg, .png]")
        return tuple(ending.lower() for ending in value)

    def open(self, name: str, place: Place, classes: Sequence[str] | None = None) -> Dataset:
        containers = find_containers(place.root, self.archives, (".tar",), "archives", name)
        endings = self.endings or tuple(sorted(SUFFIXES))
        counts: list[int] = []
        faults: list[Fault] = []
        others = 0
        for container in containers:
            index = _index(container, endings, str(place.cache))
            counts.append(len(index.names))
            others += index.others
            faults += [_fault(container, note) for note in index.notes]
        faults += others_fault(place.root / self.archives, others)
        return _TarDataset(name, containers, counts, faults, self, endings, str(place.cache))


class _TarDataset(PackedDataset):
    def __init__(
        self,
        name: str,
        containers: Sequence[Container],
        counts: Sequence[int],
        faults: list[Fault],
        source: FileSource,
        endings: tuple[str, ...],
        cache: str,
    ) -> None:
        self._endings, self._cache = endings, cache
        super().__init__(name, containers, counts, faults, source)

    def _member(self, index: int) -> tuple[Container, _Index, int]:
        which, row = self._place(index)
        container = self._containers[which]
        return container, _index(container, self._endings, self._cache), row

    def id(self, index: int) -> str:
        container, archive, row = self._member(index)
        return f"{container.label}/{archive.names[row].as_py()}"

    def file(self, index: int) -> str:
        container, archive, row = self._member(index)
        return f"{container.path}: {archive.names[row].as_py()}"

    def _bytes(self, index: int) -> bytes:
        container, archive, row = self._member(index)
        return read_part(container, int(archive.offsets[row]), int(archive.sizes[row]))

    def bytes_of(self, index: int) -> int:
        _, archive, row = self._member(index)
        return int(archive.sizes[row])

    def _named(self, index: int) -> str:
        _, archive, row = self._member(index)
        return str(archive.names[row].as_py())

    def _listed(self, container: int, rows: NDArray[np.int64]) -> bytes:
        names = _index(self._containers[container], self._endings, self._cache).names
        return digest_of_text(names.take(pa.array(rows)))


class _Index(NamedTuple):
    """The images of one archive, memory-mapped.

    Attributes:
        names: Arrow array of text [N].
        offsets, sizes: int64 [N], bytes.
        others: members that are no images by their name.
        notes: what was left out.
    """

    names: pa.Array
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    others: int
    notes: list[Note]


@lru_cache(maxsize=256)  # a process may hold about a thousand open files
def _index(container: Container, endings: tuple[str, ...], cache: str) -> _Index:
    key = f"{_VERSION} {container.key} {' '.join(endings)}"
    table = kept_table(Path(cache), "tar", key, lambda: _scan(container, endings))
    metadata = table.schema.metadata
    return _Index(
        _only_chunk(table, "name"),
        _only_chunk(table, "offset").to_numpy(),
        _only_chunk(table, "size").to_numpy(),
        int(metadata[_OTHERS]),
        [Note(*note) for note in json.loads(metadata[_NOTES])],
    )


def _only_chunk(table: pa.Table, column: str) -> pa.Array:
    chunks = table[column].chunks
    return chunks[0] if chunks else pa.array([], table.schema.field(column).type)


def _scan(container: Container, endings: tuple[str, ...]) -> pa.Table:
    """The index of one archive. Raises UserError: no plain tar archive."""
    notes, counts = Notes(), {"others": 0}
    names: list[pa.Array] = []
    places: list[NDArray[np.int64]] = []
    try:
        descriptor = os.open(container.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"the archive cannot be read: {error.strerror}", file=container.path) from None
    try:
        container.check(os.fstat(descriptor))
        images = (m for m in read_members(descriptor, notes) if _is_image(m.name, endings, counts))
        while some := list(itertools.islice(images, _FLUSH)):
            names.append(pa.array([member.name for member in some], pa.large_string()))
            places.append(np.array([(member.offset, member.size) for member in some], np.int64))
    except NotTar as problem:
        raise UserError(
            "this is no plain tar archive",
            file=container.path,
            value=str(problem),
            fix="unpack it and pack it again without compression (`tar --create`), or name the right files",
        ) from None
    finally:
        os.close(descriptor)
    all_names = pa.concat_arrays(names) if names else pa.array([], pa.large_string())
    all_places = np.concatenate([*places, np.empty((0, 2), np.int64)])
    kept = _last_of_each(all_names, notes)
    table = pa.table(
        {
            "name": all_names.take(pa.array(kept)),
            "offset": pa.array(all_places[kept, 0]),
            "size": pa.array(all_places[kept, 1]),
        }
    )
    return table.replace_schema_metadata({_NOTES: json.dumps(notes.all()), _OTHERS: str(counts["others"])})


def _is_image(name: str, endings: tuple[str, ...], counts: dict[str, int]) -> bool:
    if name.lower().endswith(endings) and not any(part.startswith(".") for part in name.split("/")):
        return True
    counts["others"] += 1
    return False


def _last_of_each(names: pa.Array, notes: Notes) -> NDArray[np.int64]:
    """Numbers of the members that stay: of each name the last."""
    coded = names.dictionary_encode()
    codes = coded.indices.to_numpy()
    last = np.zeros(len(coded.dictionary), np.int64)
    last[codes] = np.arange(len(codes))  # the last of equal codes stays
    for number in np.flatnonzero(last[codes] != np.arange(len(codes))).tolist():
        notes.add(_TWICE, names[number].as_py())
    return np.sort(last)


def _fault(container: Container, note: Note) -> Fault:
    value = f"{note.times:,}" if note.times > 1 else ""
    return Fault(
        container.path, note.example, note.problem, "dropped" if note.problem == _TWICE else "counted", "", value
    )
