"""Pools in tables with a column of encoded images, and such tables in Parquet files."""

from __future__ import annotations

import abc
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tutelage.data.files import FileSource, several
from tutelage.data.packed import Container, PackedDataset, digest_of_text, find_containers, kept_table
from tutelage.data.pixels import check_length
from tutelage.data.source import BadImage, Dataset, Place
from tutelage.errors import UserError, one_line
from tutelage.part import nearest

_KEPT_BYTES = 32 * 2**20
_GROUP_BYTES = 2**31 - 1


class Parquet(FileSource):
    """Images without labels in a column of Parquet files, in the order of files and rows; ids are "file.parquet/row".

    The column is of binary, or of struct<bytes, path> (the Image feature of Hugging Face datasets); cells without bytes
    are set aside one by one. One image is read by unpacking its whole row group, which every reading thread keeps for
    the next one (row groups of up to 32 MiB in all, or a single larger one). So read in order, and write row groups of
    about a hundred images; above 2 GiB they are refused.
    """

    format: Literal["parquet"] = "parquet"
    head: None = None
    files: str
    """A file, a folder, a pattern ("train-*.parquet"), or braces ("train-{000..009}.parquet")."""
    image: str = "image"
    """The column of images."""
    ids: str | None = None
    """A column of text or integers, different in every row of all files, that gives the ids instead of file and row."""

    def open(self, name: str, place: Place, classes: Sequence[str] | None = None) -> Dataset:
        containers = find_containers(place.root, self.files, (".parquet",), "files", name)
        groups = _Groups.read(containers, self.image)
        ids = None if self.ids is None else Ids(containers, _parquet_ids, self.ids, place.cache)
        return _ParquetDataset(name, containers, groups, self, self.image, ids)


class Ids:
    """The ids that a column gives, checked once and then mapped from a file of the cache.

    Args:
        containers: the files.
        read: gives the column of one of them.
        column: its name.
        cache: the folder of derived files.

    Raises:
        UserError: no such column, of another type, with an empty cell, or with an id that stands twice.
    """

    def __init__(
        self,
        containers: Sequence[Container],
        read: Callable[[Container, str], pa.ChunkedArray],
        column: str,
        cache: Path,
    ) -> None:
        self._containers, self._read, self._column, self._cache = tuple(containers), read, column, cache
        self._array: pa.Array | None = None
        self.array()

    def array(self) -> pa.Array:
        """large_string [N], for all rows of all files."""
        array = self._array
        if array is None:
            key = " ".join(["ids 1", self._column, *(container.key for container in self._containers)])
            chunks = kept_table(self._cache, "ids", key, self._make)["id"].chunks
            array = self._array = chunks[0] if chunks else pa.array([], pa.large_string())
        return array

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_array": None}  # the other process maps the file itself

    def _make(self) -> pa.Table:
        parts = []
        for container in self._containers:
            values = self._read(container, self._column)
            kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
            if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                _refuse(container, "the column of ids is neither text nor integers", self._column, str(kind))
            values = values.cast(pa.large_string())
            empty = pc.fill_null(pc.equal(values, ""), True)
            if (row := pc.index(empty, True).as_py()) >= 0:
                _refuse(container, "a row has no id", self._column, "", f"row {row}")
            parts.append(values)
        ids = pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.large_string())
        if pc.count_distinct(ids).as_py() < len(ids):
            counted = ids.value_counts()
            twice = counted.filter(pc.greater(counted.field("counts"), 1)).field("values")
            text = several(twice.slice(0, 100).to_pylist())
            _refuse(self._containers[0], f"{len(twice):,} ids stand in several rows", self._column, text)
        return pa.table({"id": ids})


class TableDataset(PackedDataset):
    def __init__(
        self,
        name: str,
        containers: Sequence[Container],
        counts: Sequence[int],
        source: FileSource,
        column: str,
        ids: Ids | None,
    ) -> None:
        self._column, self._ids = column, ids
        super().__init__(name, containers, counts, [], source)

    @abc.abstractmethod
    def _cell(self, container: int, row: int) -> pa.Scalar:
        """The cell of an image. Raises BadImage."""

    def id(self, index: int) -> str:
        which, row = self._place(index)
        if self._ids is None:
            return f"{self._containers[which].label}/{row}"
        return str(self._ids.array()[int(self._starts[which]) + row].as_py())

    def file(self, index: int) -> str:
        which, row = self._place(index)
        return f"{self._containers[which].path}: row {row}"

    def _bytes(self, index: int) -> bytes:
        cell = self._cell(*self._place(index))
        path = _path(cell)
        if pa.types.is_struct(cell.type) and cell.is_valid:
            cell = cell["bytes"]
        if not cell.is_valid:
            raise BadImage(f"the cell holds a path ('{path}') and no bytes" if path else "the cell is null")
        data = cell.as_buffer()
        check_length(max(data.size, 1))  # before it is copied; that nothing is there shows when it is decoded
        return bytes(data.to_pybytes())

    def _named(self, index: int) -> str | None:
        return _path(self._cell(*self._place(index)))

    def _listed(self, container: int, rows: NDArray[np.int64]) -> bytes:
        if self._ids is None:
            return rows.astype("<i8").tobytes()
        return digest_of_text(self._ids.array().take(pa.array(rows + self._starts[container])))


def _path(cell: pa.Scalar) -> str | None:
    """The path that stands beside an image's bytes."""
    if not pa.types.is_struct(cell.type) or not cell.is_valid or cell.type.get_field_index("path") < 0:
        return None
    path = cell["path"]
    return path.as_buffer().to_pybytes().decode(errors="backslashreplace") if path.is_valid else None


def check_column(container: Container, schema: pa.Schema, column: str) -> None:
    """Raise UserError unless the column is there and holds images."""
    kind = column_type(container, schema, column)
    if pa.types.is_struct(kind):
        number = kind.get_field_index("bytes")
        path = kind.get_field_index("path")
        fits = number >= 0 and _is_binary(kind.field(number).type)
        fits &= path < 0 or pa.types.is_string(kind.field(path).type) or pa.types.is_large_string(kind.field(path).type)
    else:
        fits = _is_binary(kind)
    if not fits:
        _refuse(
            container, "the column holds no encoded images: neither binary nor struct<bytes, path>", column, str(kind)
        )


def column_type(container: Container, schema: pa.Schema, column: str) -> pa.DataType:
    if schema.names.count(column) != 1:
        _refuse(container, f"there is no such column{nearest(column, schema.names)}", column, ", ".join(schema.names))
    return schema.field(column).type


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _refuse(container: Container, problem: str, column: str, value: str, record: str | None = None) -> None:
    fix = "name the right column (`image`, `ids`), or write the file again"
    raise UserError(problem, file=container.path, record=record, field=column, value=value or None, fix=fix)


@contextmanager
def reading(container: Container) -> Iterator[None]:
    """Turns what Arrow raises on a broken file into a UserError that names it."""
    try:
        yield
    except UserError:
        raise
    except (OSError, pa.ArrowException, ValueError) as error:
        raise UserError(
            "the file cannot be read as a table",
            file=container.path,
            value=one_line(error),
            fix="write it again, or name the right files",
        ) from None


# --- Parquet


class _Groups(NamedTuple):
    """The row groups of all files, one after the other.

    Attributes:
        starts: int64 [G+1], the first row of each among the rows of all files.
        numbers: int64 [G], the number of each in its file.
        counts: rows of each file.
    """

    starts: NDArray[np.int64]
    numbers: NDArray[np.int64]
    counts: list[int]

    @classmethod
    def read(cls, containers: Sequence[Container], column: str) -> _Groups:
        """From the files' footers. Raises UserError: no Parquet file, no such column, too large a row group."""
        rows: list[int] = []
        numbers: list[int] = []
        counts = []
        for container in containers:
            with reading(container):
                footer = _footer(container)
                schema = footer.schema.to_arrow_schema()
            check_column(container, schema, column)
            leaves = [k for k in range(len(footer.schema)) if _is_below(footer.schema.column(k).path, column)]
            groups = [footer.row_group(g) for g in range(footer.num_row_groups)]
            for number, group in enumerate(groups):
                size = sum(group.column(k).total_uncompressed_size for k in leaves)
                if not (0 <= size <= _GROUP_BYTES and group.num_rows >= 0):
                    raise UserError(
                        "a row group is too large to be unpacked for one image",
                        file=container.path,
                        record=f"row group {number}",
                        value=f"{size:,} bytes",
                        fix="write the file again with a smaller `row_group_size`, such as 100",
                    )
            rows += [group.num_rows for group in groups]
            numbers += range(len(groups))
            counts.append(sum(group.num_rows for group in groups))
        return cls(np.cumsum([0, *rows]), np.array(numbers, np.int64), counts)


@lru_cache(maxsize=16)  # it may take longer to read than a row group
def _footer(container: Container) -> pq.FileMetaData:
    container.check(os.stat(container.path))  # noqa: PTH116
    return pq.read_metadata(container.path)


def _is_below(path: str, column: str) -> bool:
    return path == column or path.startswith(f"{column}.")


def _parquet_ids(container: Container, column: str) -> pa.ChunkedArray:
    with reading(container), pq.ParquetFile(container.path) as file:
        column_type(container, file.schema_arrow, column)
        return file.read(columns=[column], use_threads=False).column(column)


class _ParquetDataset(TableDataset):
    def __init__(
        self,
        name: str,
        containers: Sequence[Container],
        groups: _Groups,
        source: FileSource,
        column: str,
        ids: Ids | None,
    ) -> None:
        self._groups = groups
        self._unpacked = _Unpacked()
        super().__init__(name, containers, groups.counts, source, column, ids)

    def _cell(self, container: int, row: int) -> pa.Scalar:
        whole = int(self._starts[container]) + row
        group = int(np.searchsorted(self._groups.starts, whole, side="right")) - 1
        first, behind = self._groups.starts[group : group + 2].tolist()
        column = self._unpacked.get(group, partial(self._unpack, container, group))
        if len(column) != behind - first:
            raise BadImage(f"row group {self._groups.numbers[group]} has not the rows that the file states")
        return column[whole - first]

    def _unpack(self, container: int, group: int) -> pa.ChunkedArray:
        # A file is opened for each row group: an open one could not be shared by threads, nor with a forked process.
        file, number = self._containers[container], int(self._groups.numbers[group])
        try:
            with pq.ParquetFile(file.path, metadata=_footer(file), pre_buffer=False) as opened:
                file.check(os.stat(file.path))  # noqa: PTH116
                return opened.read_row_group(number, columns=[self._column], use_threads=False).column(self._column)
        except (OSError, pa.ArrowException) as error:
            raise BadImage(f"row group {number} cannot be read: {one_line(error)}") from None


class _Unpacked(threading.local):
    """The row groups that this thread unpacked last."""

    def __init__(self) -> None:
        self._columns: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._bytes = 0

    def get(self, group: int, unpack: Callable[[], pa.ChunkedArray]) -> pa.ChunkedArray:
        column = self._columns.get(group)
        if column is None:
            column = self._columns[group] = unpack()
            self._bytes += column.nbytes
            while len(self._columns) > 1 and self._bytes > _KEPT_BYTES:
                self._bytes -= self._columns.popitem(last=False)[1].nbytes
        self._columns.move_to_end(group)
        return column

    def __reduce__(self) -> tuple[Any, ...]:
        return _Unpacked, ()  # another process begins with none
