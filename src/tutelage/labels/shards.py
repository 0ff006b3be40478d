"""The files of the labels store, written: a shard or a manifest is there in full or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tutelage.files import write_atomically, write_text
from tutelage.labels.store import (
    KEY,
    KINDS,
    MANIFEST,
    ROWS,
    Counts,
    Manifest,
    Shard,
    ShardNote,
    head_folder,
    note_fingerprint,
    schema_of,
    shard_file,
)
from tutelage.types import Boxes, Label

_SMALL_ROWS = 1000  # a row group of boxes or classes, whose rows are smaller than a row group's own overhead


def write_shard(
    root: Path, number: int, note: ShardNote, rows: Sequence[Mapping[str, Any]], began: float | None = None
) -> Shard:
    """Write one shard, or nothing at all when interrupted. Equal rows and notes give equal bytes.

    Args:
        root: of the store.
        number: of the shard.
        note: its metadata.
        rows: one an image, in the order of the pool.
        began: when the first of its images was read, seconds since the epoch: becomes the file's modification time, so
            that images changed since are known by their own.

    Raises:
        UserError: the disk is full.
    """
    kind = KINDS[note.kind]
    content = note.model_dump_json().encode()
    schema = schema_of(kind).with_metadata({KEY: content})
    columns = {name: [row[name] for row in rows] for name in schema.names}
    table = pa.Table.from_pydict(columns, schema)
    file = head_folder(root, note.head) / shard_file(number)
    hashed: list[_Hashing] = []

    def write(stream: IO[bytes]) -> None:
        hashing = _Hashing(stream)
        hashed[:] = [hashing]
        pq.write_table(
            table,
            pa.PythonFile(hashing, "w"),
            compression="zstd",
            row_group_size=_SMALL_ROWS if kind in (Label, Boxes) else ROWS,
            use_dictionary=["source", "teacher"],
            write_statistics=["id", "source"],
        )
        if began is not None:
            stream.flush()
            os.utime(stream.fileno(), (began, began))

    write_atomically(file, write)
    sha256, size = hashed[0].sha256.hexdigest(), hashed[0].size
    return Shard(file=file.name, rows=len(rows), bytes=size, sha256=sha256, note=note_fingerprint(content))


class _Hashing:
    """A stream that takes the digest of what passes through it: of what was meant, whatever the disk does to it."""

    closed = False

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.sha256, self.size = stream, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        self._stream.write(data)
        self.sha256.update(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        """Left to who opened it."""


def write_manifest(
    root: Path, note: ShardNote, counts: Counts, shards: Sequence[Shard], about: Mapping[str, Any] | None = None
) -> None:
    """Declare a head finished: the very last thing that is written. One that says the same already is left alone."""
    manifest = Manifest(
        head=note.head,
        kind=note.kind,
        task=note.task,
        classes=note.classes,
        teacher=note.teacher,
        about=dict(about or {}),
        made_by=note.made_by,
        counts=counts,
        bytes=sum(shard.bytes for shard in shards),
        shards=tuple(shards),
    )
    file, text = head_folder(root, note.head) / MANIFEST, manifest.model_dump_json(indent=1) + "\n"
    if not file.is_file() or file.read_bytes() != text.encode():
        write_text(file, text)


def describe_shard(file: Path) -> Shard:
    """Rows, size and digest of a shard on disk. Raises ValueError when it cannot be read."""
    try:
        metadata = pq.read_metadata(file)
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        size, note = file.stat().st_size, note_fingerprint(metadata.metadata[KEY])
    except (OSError, pa.ArrowException, KeyError, TypeError) as error:
        raise ValueError(str(error)) from None
    return Shard(file=file.name, rows=metadata.num_rows, bytes=size, sha256=digest, note=note)
