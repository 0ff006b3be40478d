"""Every file of a labels store read again: what is missing, cut short, changed, too much, or does not decode."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tutelage.data.source import Fault
from tutelage.errors import UserError, first_line
from tutelage.labels.encoding import decode
from tutelage.labels.store import KINDS, MANIFEST, Manifest, Shard, Store, check_shard, read_note
from tutelage.progress import SILENT, Progress

_ROWS = 20
"""Decoded at a time."""


def verify(root: Path, progress: Progress | None = None) -> list[Fault]:
    """All that is wrong with a store; an empty list where nothing is.

    Every shard's bytes are compared with the manifest's size and SHA-256, then every row is decoded. Files that pandas
    and DuckDB would read beside the shards, and heads without a manifest, are faults too. Files for random access are
    derived, carry their own stamp, and are not looked at; so are names that begin with a dot: a pass may be at work.

    Args:
        root: the folder of the heads' folders.
        progress: where the bar is shown; None for nowhere.

    Raises:
        UserError: there are no labels at all.
    """
    files = [*root.glob(f"*/{MANIFEST}"), *root.glob("*/part-*.parquet")]
    folders = sorted({file.parent for file in files if not file.parent.name.startswith(".")})
    if not folders:
        raise UserError("there are no labels here", file=root, fix="give the folder that `tutelage label` wrote")
    faults: list[Fault] = []
    manifests: dict[Path, Manifest] = {}
    for folder in folders:
        if not (folder / MANIFEST).is_file():
            faults.append(_fault(folder / MANIFEST, "the head has shards but no manifest: its pass did not finish"))
            continue
        try:
            manifests[folder] = Store(root).manifest(folder.name)
        except (UserError, OSError) as error:
            faults.append(_fault(folder / MANIFEST, first_line(error)))
    total = sum(len(manifest.shards) for manifest in manifests.values())
    with (progress or SILENT).bar("verify the labels", total, "shards") as bar:
        for folder, manifest in manifests.items():
            faults += _head_faults(folder, manifest)
            for shard in manifest.shards:
                problem = shard_problem(folder, shard, manifest)
                if problem is not None:
                    faults.append(_fault(folder / shard.file, problem))
                bar.advance(1, folder.name)
    return faults


def shard_problem(folder: Path, shard: Shard, manifest: Manifest) -> str | None:
    """What is wrong with one shard, its rows included, or None."""
    problem = check_shard(folder, shard)
    if problem is not None:
        return problem
    file = folder / shard.file
    note = read_note(file)
    if note is None:
        return "the shard's metadata cannot be read"
    for name in ("head", "kind", "classes", "teacher", "made_by"):
        if getattr(note, name) != getattr(manifest, name):
            return f"the shard is of another {name.replace('_', ' ')} than the manifest"
    try:
        return _row_problem(file, shard, KINDS[manifest.kind])
    except (OSError, pa.ArrowException, KeyError) as error:
        return f"the shard cannot be read: {first_line(error)}"


def _row_problem(file: Path, shard: Shard, kind: type) -> str | None:
    rows = 0
    with pq.ParquetFile(file) as opened:
        for batch in opened.iter_batches(batch_size=_ROWS, use_threads=False):
            for row in range(len(batch)):
                try:
                    decode(kind, batch, row)
                except (ValueError, OSError, pa.ArrowException) as error:
                    id = batch.column("id")[row].as_py()
                    return f"row {rows + row} ({id}) does not decode: {first_line(error)}"
            rows += len(batch)
    return None if rows == shard.rows else f"the shard has {rows} rows, not {shard.rows}"


def _head_faults(folder: Path, manifest: Manifest) -> Iterator[Fault]:
    """Files that do not belong there, and counts that do not add up."""
    known = {shard.file for shard in manifest.shards}
    for path in sorted(folder.iterdir()):
        if path.name[0] not in "._" and path.name not in known:
            yield _fault(path, "the file is not of these labels, but is read with them by other programs")
    rows = sum(shard.rows for shard in manifest.shards)
    if rows != manifest.counts.labelled:
        yield _fault(folder / MANIFEST, f"it counts {manifest.counts.labelled} labels, its shards {rows}")


def _fault(file: Path, problem: str) -> Fault:
    return Fault(str(file), file.name, problem, "counted")
