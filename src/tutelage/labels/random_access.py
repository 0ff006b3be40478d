"""Fast reading of single labels: the Parquet files of one head, unpacked once into a memory-mapped file.

Finding one row in Parquet means decompressing a row group; here it is a binary search and a few page reads.
The two files are derived from the labels, carry the digest of those, and may be deleted at any time:

    _random-access.arrow    an Arrow IPC file, uncompressed: the rows in the order of the pool
    _random-access.npy      uint64 [2,N]: sorted hashes of (source, id), and where each row stands
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tutelage.files import write_atomically
from tutelage.labels.encoding import CODECS, decode
from tutelage.types import Target

_KEY = b"tutelage.made-from"
_IMAGE = "image"  # the column of short digests
_CHUNK = 1000  # rows a record batch: what is held in memory while the file is made
_OPEN_BATCHES = 4096  # views of record batches that are kept; a few kilobytes each


class RandomAccess:
    """Single labels of one head.

    Args:
        folder: the head's folder.
        kind: the kind of its targets.
        stamp: digest of the labels that the files must have been made from.
    """

    def __init__(self, folder: Path, kind: type, stamp: str) -> None:
        self.file, self._index_file = folder / "_random-access.arrow", folder / "_random-access.npy"
        self._kind, self._stamp = kind, stamp
        self._reader: pa.ipc.RecordBatchFileReader | None = None
        self._index: NDArray[np.uint64] = np.empty((2, 0), np.uint64)
        self._batches: dict[int, pa.RecordBatch] = {}

    def usable(self) -> bool:
        """Whether the files are there, whole, and made from these labels."""
        try:
            self._open()
        except (OSError, pa.ArrowException, ValueError):
            return False
        return True

    def build(self, shards: Sequence[Path]) -> None:
        """Make the files; memory holds one shard and 16 bytes a row."""
        names = ["id", "source", "height", "width", *(column.name for column in CODECS[self._kind].columns)]
        image = pa.field(_IMAGE, pa.uint64(), nullable=False)
        keys: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
        places: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]

        def write(stream: IO[bytes]) -> None:
            schema = pq.read_schema(shards[0])
            schema = pa.schema([*(schema.field(name) for name in names), image], metadata={_KEY: self._stamp})
            number = 0
            with pa.ipc.new_file(stream, schema) as writer:
                for shard in shards:
                    with pq.ParquetFile(shard) as file:
                        table = file.read(columns=[*names, "image_sha256"], use_threads=False).combine_chunks()
                    images = pa.array(map(short_digest, table["image_sha256"].to_pylist()), pa.uint64())
                    table = table.select(names).append_column(image, images)
                    for batch in table.to_batches(max_chunksize=_CHUNK):
                        writer.write_batch(batch)
                        pairs = zip(batch["source"].to_pylist(), batch["id"].to_pylist(), strict=True)
                        keys.append(np.fromiter((_hash(*pair) for pair in pairs), np.uint64, len(batch)))
                        places.append((number << 32) + np.arange(len(batch), dtype=np.uint64))
                        number += 1
            # The index stands first: the Arrow file, which is there last, is what makes the pair usable.
            key, place = np.concatenate(keys), np.concatenate(places)
            order = np.argsort(key, kind="stable")
            write_atomically(self._index_file, lambda other: np.save(other, np.stack([key[order], place[order]])))

        self.file.unlink(missing_ok=True)  # an older one would fit no longer once its index is another
        write_atomically(self.file, write)
        self._open()

    def get(self, source: str, id: str) -> Target | None:
        """The raw prediction of one image, or None. Raises ValueError where its bytes are damaged."""
        place = self._find(source, id)
        return None if place is None else decode(self._kind, *place)

    def image(self, source: str, id: str) -> int | None:
        """`short_digest` of the image that was labelled, or None where there is no label."""
        place = self._find(source, id)
        return None if place is None else int(place[0].column(_IMAGE)[place[1]].as_py())

    def _find(self, source: str, id: str) -> tuple[pa.RecordBatch, int] | None:
        """The batch and the row of one image."""
        assert self._reader is not None
        key = np.uint64(_hash(source, id))
        position = int(np.searchsorted(self._index[0], key))
        while position < self._index.shape[1] and self._index[0, position] == key:
            number, row = divmod(int(self._index[1, position]), 1 << 32)
            batch = self._batch(number)
            if batch.column("id")[row].as_py() == id and batch.column("source")[row].as_py() == source:
                return batch, row
            position += 1  # another image of the same hash
        return None

    def _open(self) -> None:
        reader = pa.ipc.open_file(pa.memory_map(str(self.file)))
        if reader.schema.metadata.get(_KEY) != self._stamp.encode():
            raise ValueError("made from other labels")
        if _IMAGE not in reader.schema.names:
            raise ValueError("made by an earlier version")
        index = np.load(self._index_file, mmap_mode="r", allow_pickle=False)
        if index.dtype != np.uint64 or index.ndim != 2 or len(index) != 2:
            raise ValueError("not an index")
        self._reader, self._index = reader, np.asarray(index)  # a memmap's own indexing is slow
        self._batches.clear()

    def _batch(self, number: int) -> pa.RecordBatch:
        batch = self._batches.get(number)
        if batch is None:
            assert self._reader is not None
            if len(self._batches) >= _OPEN_BATCHES:
                self._batches.clear()
            batch = self._batches[number] = self._reader.get_batch(number)
        return batch


def short_digest(sha256: str) -> int:
    """The first 8 bytes of a hex digest as a number: enough to tell an image from another of its name."""
    return int(sha256[:16] or "0", 16)


def _hash(source: str, id: str) -> int:
    text = f"{len(source)}/{source}/{id}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
