"""What the process costs that hands out the shards of a very large pool: its memory, and the scan when it begins again.

    OMP_NUM_THREADS=1 python benchmarks/coordinator.py --shards 30000

Nothing is decoded and no teacher runs: the pool has ids by arithmetic, 10,000 images a shard, and simulated workers
answer at once with stub files, which hold a real note and as many row groups as a real shard of boxes or classes. One
worker in a hundred dies with its shard. All else is what really runs: claims, leases, replaced workers, receipts,
counts, manifests. The aim at 30,000 shards and 300 million rows: under 4 GB, a resume scan under 5 minutes.

Dense heads (masks, depths, normals) have smaller row groups, so their footers are larger: that is timed on one file.
"""

from __future__ import annotations

import argparse
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tutelage.data.source import Dataset, Picture
from tutelage.labels.claims import Claim, Claims
from tutelage.labels.labelling import finish, open_leases, open_pool, work_off
from tutelage.labels.leases import PATIENCE
from tutelage.labels.pool import Pool
from tutelage.labels.ray import _Crew, _HandOut, _Said
from tutelage.labels.receipts import Receipts
from tutelage.labels.store import KEY, Counts, Shard, head_folder, note_fingerprint, schema_of, shard_file
from tutelage.labels.work import Labelling
from tutelage.labels.writing import Column, Signature
from tutelage.progress import SILENT
from tutelage.tasks.classification import Classification
from tutelage.tasks.detection import Detection
from tutelage.tasks.task import Task
from tutelage.types import Mask

ROWS = 10_000
WORKERS = 64
NAMES = tuple(f"class {k}" for k in range(80))
HEADS: dict[str, Task] = {"classes": Classification(classes=NAMES), "boxes": Detection(classes=NAMES)}


class Numbered(Dataset):
    """Images that are nothing but their number."""

    name, head, space, faults = "pool", None, None, []

    def __init__(self, images: int) -> None:
        self._images = images

    def __len__(self) -> int:
        return self._images

    def id(self, index: int) -> str:
        return f"images/{index:09d}.jpg"

    def picture(self, index: int) -> Picture:
        raise NotImplementedError

    def target(self, index: int) -> None:
        return None

    def sha256(self, index: int) -> str:
        raise AssertionError("the scan reads no image")

    def listing(self, start: int, stop: int) -> str:
        return f"{start:032d}{stop:032d}"

    def changed(self, start: int, stop: int) -> float | None:
        return 0.0


class Stubs:
    """Writes a shard as fast as a file can be written: the same bytes every time, but for what the note says."""

    def __init__(self, root: Path, pool: Pool, columns: list[Column]) -> None:
        self._root, self._pool = root, pool
        self._templates = {column.head: (column, *self._template(column)) for column in columns}

    def _template(self, column: Column) -> tuple[bytes, bytes]:
        """A file whose note has a listing of 64 letters x; and that note."""
        note = column._note.but(
            listing="x" * 64, images="y" * 64, counts=Counts(read=ROWS, labelled=ROWS, empty=ROWS // 10)
        )
        schema, content = schema_of(column.task.kind), note.model_dump_json().encode()
        row = dict.fromkeys(("id", "source", "image_sha256", "teacher"), "x") | {"height": 1, "width": 1}
        rows = [
            row
            | {field.name: ([] if pa.types.is_list(field.type) else None) for field in schema if field.name not in row}
        ]
        table = pa.Table.from_pylist(rows * (ROWS // 1000), schema.with_metadata({KEY: content}))
        pq.write_table(table, sink := pa.BufferOutputStream(), row_group_size=1, compression="zstd")
        return sink.getvalue().to_pybytes(), content

    def write(self, number: int) -> tuple[tuple[str, Shard], ...]:
        written = []
        for head, (column, file, content) in self._templates.items():
            listing = self._pool.listing(number, column.head).encode()
            path = head_folder(self._root, head) / shard_file(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.replace(b"x" * 64, listing))
            print_ = note_fingerprint(content.replace(b"x" * 64, listing))
            size = len(file)
            written.append((head, Shard(file=path.name, rows=ROWS, bytes=size, sha256="0" * 64, note=print_)))
        return tuple(written)


class Died(Exception):
    """A worker that is gone."""


class Simulated:
    """A cluster in which every answer is there at once, and one worker in a hundred dies."""

    exceptions = SimpleNamespace(RayActorError=Died)

    def __init__(self, stubs: Stubs | None, deaths: float) -> None:
        self._stubs, self._deaths, self._rng = stubs, deaths, random.Random(0)
        self.died = 0

    def hire(self) -> Any:
        def answer(do: Callable[..., _Said]) -> Any:
            return SimpleNamespace(remote=lambda *arguments: _Reference(lambda: do(*arguments)))

        return SimpleNamespace(open=answer(_Said), label=answer(self._label))

    def wait(self, references: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        chosen = self._rng.randrange(len(references))
        return [references[chosen]], references[:chosen] + references[chosen + 1 :]

    def get(self, reference: Any) -> _Said:
        return reference.answer()

    def _label(self, number: int) -> _Said:
        if self._rng.random() < self._deaths:
            self.died += 1
            raise Died("killed")
        assert self._stubs is not None
        return _Said(written=self._stubs.write(number))


class _Reference:
    def __init__(self, answer: Callable[[], _Said]) -> None:
        self.answer = answer


def coordinate(root: Path, shards: int, deaths: float) -> tuple[int, int, float, float]:
    """One pass of the coordinator: shards given out, workers that died, seconds of all but the end, seconds of that."""
    pool = open_pool([Numbered(shards * ROWS)], ROWS, [])
    columns = [
        Column(Signature(head, task, NAMES, "0" * 16, {}), root, pool, Labelling(shard=ROWS))
        for head, task in HEADS.items()
    ]
    cluster = Simulated(Stubs(root, pool, columns), deaths)
    given, start = [0], time.perf_counter()
    with ThreadPoolExecutor(1) as readers, open_leases(root, pool, columns, 32, PATIENCE) as leases:
        receipts, claims = Receipts(leases.folder, leases.me), Claims(pool, columns, leases, readers)
        with SILENT.bar("", len(pool)) as bar:
            crew = _Crew(cluster, cluster.hire, WORKERS)
            crew._left = 10**9  # 1% of 30,000: more deaths than a real job would bear
            crew.begin()
            hand_out = _HandOut(crew, claims, receipts, pool.images, bar)

            def count(taken: Iterator[Claim]) -> Iterator[Claim]:
                for claim in taken:
                    given[0] += 1
                    yield claim

            work_off(claims, lambda taken: hand_out.go(count(taken)), bar)
        ended = time.perf_counter()
        finish(columns, leases, receipts)
    assert all(column.counts.read == shards * ROWS for column in columns)
    return given[0], cluster.died, ended - start, time.perf_counter() - ended


def dense_footer() -> float:
    """Milliseconds to read the footer of a shard of 10,000 masks."""
    fields = schema_of(Mask)
    row = dict.fromkeys(("id", "source", "image_sha256", "teacher"), "x") | {
        "height": 1,
        "width": 1,
        "mask": b"",
        "confidence": b"",
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "dense.parquet"
        pq.write_table(pa.Table.from_pylist([row] * ROWS, fields), file, row_group_size=20, compression="zstd")
        start = time.perf_counter()
        for _ in range(20):
            pq.read_metadata(file)
        return (time.perf_counter() - start) / 20 * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--deaths", type=float, default=0.01, help="share of the shards with which a worker dies")
    options = parser.parse_args()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        for what in ("from nothing", "resume scan"):
            given, died, took, end = coordinate(Path(folder), options.shards, options.deaths)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(
                f"{what:<13} {options.shards} shards, {options.shards * ROWS:,} rows, {len(HEADS)} heads: {given} given"
                f" out, {died} workers died, {took:.1f} s, manifests {end:.1f} s; peak {peak / 2**10:.0f} MB"
                f" ({before / 2**10:.0f} MB before)",
                flush=True,
            )
    footer = dense_footer()
    print(
        f"the footer of a dense shard: {footer:.2f} ms; one thread reads those of a dense head in"
        f" {footer * options.shards / 1e3:.0f} s"
    )


if __name__ == "__main__":
    main()
