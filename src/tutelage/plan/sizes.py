"""How many bytes labels take, read from the metadata of shards: the probe's own, or those that are there already."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tutelage.labels.encoding import CODECS
from tutelage.labels.store import Store, find_store, head_folder, shard_file
from tutelage.plan.figures import Assumed, HeadCost, Rows, Span
from tutelage.plan.teachers import Watched, assumption, make, pixel_bytes
from tutelage.recipe import Recipe
from tutelage.teachers import Specialist
from tutelage.types import Mask

_LOOKED_AT = 20  # shards of a store that is there already
_LEFT_OUT = ("image_sha256", "teacher")  # of the files for random access


class _Size(NamedTuple):
    """Bytes a row in Parquet, bytes a row when training unpacks it, and bytes of a shard besides its rows."""

    stored: float
    unpacked: float
    file: float


def head_cost(recipe: Recipe, teacher: Watched, roots: Mapping[str, Path], assume: Assumed) -> HeadCost:
    """What the probe's stores say of one head; a stand-in's pixels are taken from what is assumed instead.

    Args:
        recipe: what is planned.
        teacher: who filled the head.
        roots: source name to store, of one shard.
        assume: what is taken for granted.
    """
    head, kind = teacher.head, teacher.task.kind
    reduce = 1 if kind is Mask else recipe.labelling.reduce
    stand_in = not isinstance(recipe.teachers.get(head), Specialist)
    rate = pixel_bytes(kind, assume) if stand_in else None
    rows, files = {}, []
    for source, root in roots.items():
        file, counts = head_folder(root, head) / shard_file(0), Store(root).manifest(head).counts
        found = _size(file, kind, pictures=rate is None)
        files.append(found.file)
        if counts.labelled:
            assumed = 0.0 if rate is None else rate * _mean_pixels(file, teacher.about["input"][0], reduce)
            rows[source] = Rows(counts.labelled / counts.read, found.stored + assumed, found.unpacked + assumed)
    predicting = Span.of(teacher.samples) if teacher.samples else None
    words = assumption(kind, assume) if stand_in else ""
    return HeadCost(head, make(recipe.teachers.get(head)), predicting, rows, statistics.mean(files), words)


def stored_cost(recipe: Recipe, head: str, kind: type) -> HeadCost:
    """A head whose labels are there already: their bytes, taken as evenly spread over the sources."""
    store = Store(find_store(Path(recipe.data) / str(recipe.labels)))
    manifest = store.manifest(head)
    shards = [head_folder(store.root, head) / shard.file for shard in manifest.shards if shard.rows][:_LOOKED_AT]
    unpacked = sum(map(_unpacked, shards)) / max(1, sum(pq.read_metadata(shard).num_rows for shard in shards))
    share = manifest.counts.labelled / max(1, manifest.counts.read)
    each = Rows(share, manifest.bytes / max(1, manifest.counts.labelled), unpacked)
    return HeadCost(head, "stored", None, dict.fromkeys(recipe.sources, each), 0.0, "")


def _size(file: Path, kind: type, *, pictures: bool) -> _Size:
    """Of a small shard, with its pictures (class ids, depths, ...) or without.

    A few rows are mostly beginnings of columns, so that a row counts what the second half adds to the first.
    """
    table = pq.read_table(file)
    if not pictures:
        table = table.drop_columns([column.name for column in CODECS[kind].columns if pa.types.is_binary(column.type)])
    plain = table.drop_columns(list(_LEFT_OUT)).nbytes / max(1, len(table))
    half = len(table) // 2
    first, whole = _written(table[:half]), _written(table)
    each = (whole - first) / max(1, len(table) - half)
    return _Size(each, plain, whole - each * len(table))


def _written(table: pa.Table) -> int:
    """Bytes of a Parquet file, compressed as those of the store."""
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream, compression="zstd", use_dictionary=["source", "teacher"])
    return int(stream.tell())


def _unpacked(file: Path) -> int:
    """Bytes of a large shard when training unpacks it, from its metadata alone."""
    about = pq.read_metadata(file)
    columns = [
        about.row_group(group).column(number)
        for group in range(about.num_row_groups)
        for number in range(about.num_columns)
    ]
    return sum(c.total_uncompressed_size for c in columns if c.path_in_schema not in _LEFT_OUT)


def _mean_pixels(file: Path, size: int, reduce: int) -> float:
    """What the assumed rate refers to (see `Assumed`), mean over the images of a shard.

    Args:
        file: with the images' heights and widths.
        size: of the network's input.
        reduce: maps are stored at 1/reduce of the image's size.
    """
    table = pq.read_table(file, columns=["height", "width"])
    sides = np.sqrt(table["height"].to_numpy().astype(np.float64) * table["width"].to_numpy()) / reduce
    return float((sides * np.minimum(sides, size)).mean())
