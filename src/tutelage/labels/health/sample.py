"""A part of a store's records, read quickly: whole row groups, chosen by a seed.

Row groups are what Parquet reads at once, so that some thousand records of a store of any size cost some thousand
reads and not a pass over it. Neighbours in the pool come together, which is why the groups are taken from as many
shards as possible.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tutelage.errors import UserError, first_line
from tutelage.labels.encoding import decode
from tutelage.labels.store import KINDS, Record, Store, head_folder

_BLOCK = 20
"""Neighbouring images that are read together where heads are joined; as many as a row group of pictures holds."""


@dataclass(frozen=True)
class Placed:
    """A record, and the file and row where it stands."""

    shard: str
    row: int
    record: Record


def sample(store: Store, head: str, most: int, seed: int = 0) -> Iterator[Placed]:
    """Up to `most` records of a head; all of them, in the order of the pool, where there are no more.

    Raises:
        UserError: the head is unfinished, or a shard that is read is damaged.
    """
    manifest = store.manifest(head)
    kind, folder = KINDS[manifest.kind], head_folder(store.root, head)
    shards = [shard for shard in manifest.shards if shard.rows]
    everything = sum(shard.rows for shard in shards) <= most
    rng = np.random.default_rng(seed)
    if not everything:
        shards = [shards[i] for i in rng.permutation(len(shards))[: math.ceil(most / _BLOCK)]]
    quota, left = math.ceil(most / max(1, len(shards))), most
    for shard in shards:
        with _opened(folder / shard.file) as file:
            starts = _starts(file)
            groups = list(range(len(starts) - 1))
            if not everything:
                groups = rng.permutation(groups).tolist()
            taken = 0
            for group in groups:
                if left == 0 or (not everything and taken >= quota):
                    break
                batch = _group(file, group)
                for row in range(min(len(batch), left)):
                    yield Placed(shard.file, starts[group] + row, _record(kind, batch, row))
                taken, left = taken + len(batch), left - min(len(batch), left)


def read_row(store: Store, head: str, shard: str, row: int) -> Record:
    """One record by its place, as `sample` gave it. Raises UserError where the shard is gone or damaged."""
    kind = KINDS[store.manifest(head).kind]
    with _opened(head_folder(store.root, head) / shard) as file:
        starts = _starts(file)
        if not 0 <= row < starts[-1]:
            raise ValueError(f"the shard has no row {row}: other labels than those that were looked at")
        group = int(np.searchsorted(starts, row, side="right")) - 1
        return _record(kind, _group(file, group), row - starts[group])


def joined(store: Store, heads: Sequence[str], most: int, seed: int = 0) -> Iterator[dict[str, Record]]:
    """Up to `most` images that at least two of the heads have a label of, each as head to record.

    Raises:
        UserError: as `sample`.
    """
    manifests = {head: store.manifest(head) for head in heads}
    files: dict[str, list[str]] = {}
    for head, manifest in manifests.items():
        for shard in manifest.shards:
            if shard.rows:
                files.setdefault(shard.file, []).append(head)
    shared = sorted(name for name, having in files.items() if len(having) > 1)
    rng = np.random.default_rng(seed)
    chosen = [shared[i] for i in rng.permutation(len(shared))[: math.ceil(most / _BLOCK)]]
    quota, left = math.ceil(most / max(1, len(chosen))), most
    for name in chosen:
        if left == 0:
            return
        parts = [_Part(store.root, head, KINDS[manifests[head].kind], name) for head in files[name]]
        keys = [key for key in dict.fromkeys(k for part in parts for k in part.rows) if _in_two(parts, key)]
        wanted = _blocks(keys, min(quota, left), rng)
        for key in wanted:
            yield {part.head: part.read(key) for part in parts if key in part.rows}
        left -= len(wanted)


Key = tuple[str, str]
"""Source and id of an image."""


class _Part:
    """One shard of one head, with the row of every image; keeps the row group read last."""

    def __init__(self, root: Path, head: str, kind: type, name: str) -> None:
        self.head, self._kind, self._file = head, kind, head_folder(root, head) / name
        with _opened(self._file) as file:
            self._starts = _starts(file)
            table = file.read(columns=["source", "id"], use_threads=False)
        pairs = zip(table["source"].to_pylist(), table["id"].to_pylist(), strict=True)
        self.rows = {key: row for row, key in enumerate(pairs)}
        self._last: tuple[int, pa.RecordBatch] | None = None

    def read(self, key: Key) -> Record:
        row = self.rows[key]
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        if self._last is None or self._last[0] != group:
            with _opened(self._file) as file:
                self._last = group, _group(file, group)
        with _explained(self._file):
            return _record(self._kind, self._last[1], row - self._starts[group])


def _in_two(parts: Sequence[_Part], key: Key) -> bool:
    return sum(key in part.rows for part in parts) > 1


def _blocks(keys: Sequence[Key], count: int, rng: np.random.Generator) -> list[Key]:
    """`count` of the keys: blocks of neighbours from anywhere, in order."""
    if len(keys) <= count:
        return list(keys)
    blocks = [keys[start : start + _BLOCK] for start in range(0, len(keys), _BLOCK)]
    chosen: list[int] = []
    found = 0
    for block in rng.permutation(len(blocks)).tolist():
        if found >= count:
            break
        chosen.append(block)
        found += len(blocks[block])
    return [key for block in sorted(chosen) for key in blocks[block]][:count]


def _record(kind: type, batch: pa.RecordBatch, row: int) -> Record:
    source, id, sha256, teacher = (batch.column(c)[row].as_py() for c in ("source", "id", "image_sha256", "teacher"))
    height, width = (batch.column(c)[row].as_py() for c in ("height", "width"))
    return Record(source, id, sha256, teacher, height, width, decode(kind, batch, row))


def _starts(file: pq.ParquetFile) -> list[int]:
    """Number of the first row of each row group, and the number of rows."""
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    return [0, *np.cumsum(sizes).tolist()]


def _group(file: pq.ParquetFile, group: int) -> pa.RecordBatch:
    table = file.read_row_group(group, use_threads=False).combine_chunks()
    return table.to_batches()[0]


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    with _explained(path), pq.ParquetFile(path) as file:
        yield file


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Faults of reading as an error that names the file."""
    try:
        yield
    except (OSError, pa.ArrowException, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"these labels cannot be read: {first_line(error)}",
            file=path,
            fix="`tutelage labels show --verify` lists every damaged shard; delete those and label again",
        ) from None
