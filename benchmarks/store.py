"""How fast single labels are read, and how many bytes they take.

    OMP_NUM_THREADS=1 python benchmarks/store.py

Reads are random, from the memory-mapped file in the page cache, on one core, decoded to tensors. Bytes are compared
with what people usually keep: JSON lines for classes (six digits) and boxes (two decimals), a PNG by Pillow for class
ids with an .npy (uint8) for the confidence, and an .npy (float32; float16 in brackets) for depths and normals. Both
sides hold id, source, image digest and size. The pictures are smooth surfaces with edges and a little noise, as
predictions have.
"""

from __future__ import annotations

import io
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.nn.functional import interpolate, normalize

from tutelage.labels.encoding import Form, encode
from tutelage.labels.png import read_png, write_png
from tutelage.labels.shards import describe_shard, write_manifest, write_shard
from tutelage.labels.store import Counts, ShardNote, Store, shard_file
from tutelage.types import Boxes, Field, Label, Mask, Target, Vectors

IMAGES, SHARD, READS = 2000, 1000, 3000
KINDS = (Label, Boxes, Mask, Field, Vectors)
CLASSES = {Label: 20, Boxes: 20, Mask: 12}


def smooth(rng: np.random.Generator, size: int, knots: int, channels: int = 1) -> torch.Tensor:
    grid = torch.from_numpy(rng.normal(size=(1, channels, knots, knots)).astype(np.float32))
    return interpolate(grid, (size, size), mode="bicubic")[0]


def make(kind: type, size: int, rng: np.random.Generator) -> Target:
    """A prediction as a network would make it."""
    if kind is Label:
        return Label(torch.from_numpy(rng.normal(0, 3, CLASSES[Label]).astype(np.float32)).softmax(0))
    if kind is Boxes:
        n = int(rng.integers(0, 12))
        low = rng.random((n, 2)) * size * 0.6
        boxes = np.concatenate([low, low + 2 + rng.random((n, 2)) * size * 0.35], 1)
        return Boxes.make(boxes.astype(np.float32), rng.integers(0, 20, n), 0.05 + 0.9 * rng.random(n))
    if kind is Mask:
        logits = 4 * smooth(rng, size, 6, CLASSES[Mask])
        confidence, ids = logits.softmax(0).max(0)
        return Mask(ids.to(torch.uint8), (confidence * 255).to(torch.uint8))
    valid = torch.ones(size, size, dtype=torch.bool)
    noise = torch.from_numpy(rng.normal(0, 1, (3, size, size)).astype(np.float32))
    if kind is Field:
        step = (smooth(rng, size, 5)[0] > 0.3).float()
        return Field(2 + smooth(rng, size, 6)[0].abs() + 1.5 * step + 0.001 * noise[0], valid)
    raw = smooth(rng, size, 6, 3) - torch.tensor([0.0, 0.0, 2.0])[:, None, None] + 0.005 * noise
    return Vectors(normalize(raw, dim=0), valid)


def fill(root: Path, kind: type, size: int) -> tuple[str, list[int]]:
    """A head of `IMAGES` labels; returns its name and the bytes that the usual files would take (two figures)."""
    rng, usual = np.random.default_rng(0), [0, 0]
    note = ShardNote(
        head=kind.__name__.lower(), kind=kind.__name__, task={}, classes=None, teacher="0" * 16, settings={},
        made_by="0", pool="pool/0", images="0", counts=Counts(),
    )  # fmt: skip
    form, pictures = Form(note.head, kind, CLASSES.get(kind)), [make(kind, size, rng) for _ in range(64)]
    shards = []
    for number in range(IMAGES // SHARD):
        rows = []
        for index in range(number * SHARD, (number + 1) * SHARD):
            target = make(kind, size, rng) if kind in (Label, Boxes) else pictures[index % len(pictures)]
            common = {"id": f"images/{index:08d}.jpg", "source": "pool", "image_sha256": f"{rng.bytes(32).hex()}"}
            rows.append(
                {**common, "teacher": note.teacher, "height": size, "width": size, **encode(target, form, (size, size))}
            )
            for which, n in enumerate(usual_bytes(target, {**common, "height": size, "width": size})):
                usual[which] += n
        write_shard(root, number, note, rows)
        shards.append(describe_shard(root / note.head / shard_file(number)))
    write_manifest(root, note, Counts(read=IMAGES, labelled=IMAGES), shards)
    return note.head, usual


def usual_bytes(target: Target, common: dict[str, Any]) -> Sequence[int]:
    """Of JSON + PNG + .npy, with float32 and with float16 arrays."""
    line: dict[str, Any] = dict(common)
    arrays, png = [], 0
    if isinstance(target, Label):
        line["probs"] = [round(p, 6) for p in target.probs.tolist()]
    elif isinstance(target, Boxes):
        boxes = [[round(v, 2) for v in box] for box in target.boxes.tolist()]
        scores = [round(s, 4) for s in target.scores.tolist()]
        line["objects"] = [
            {"bbox": box, "category_id": c, "score": s}
            for box, c, s in zip(boxes, target.classes.tolist(), scores, strict=True)
        ]
    elif isinstance(target, Mask):
        stream = io.BytesIO()
        Image.fromarray(target.ids.numpy()).save(stream, "PNG")
        png = len(stream.getvalue())
        assert target.confidence is not None
        arrays.append(target.confidence.numpy())
    else:
        arrays.append(target.values.numpy())
    text = len(json.dumps(line)) + 1
    halves = [a if a.dtype == np.uint8 else a.astype(np.float16) for a in arrays]
    return [text + png + sum(npy_bytes(a) for a in kind) for kind in (arrays, halves)]


def npy_bytes(array: np.ndarray[Any, Any]) -> int:
    np.save(stream := io.BytesIO(), array)
    return len(stream.getvalue())


def reads_a_second(store: Store, head: str) -> float:
    rng = random.Random(0)
    ids = [f"images/{rng.randrange(IMAGES):08d}.jpg" for _ in range(READS)]
    for id in ids[:200]:
        assert store.get(head, "pool", id) is not None
    start = time.process_time()
    for id in ids:
        store.get(head, "pool", id)
    return READS / (time.process_time() - start)


def parquet_reads_a_second(root: Path, head: str) -> float:
    """The same rows out of the Parquet files themselves: the row group that holds them."""
    rng, n = random.Random(0), 60
    files = [pq.ParquetFile(root / head / shard_file(i)) for i in range(IMAGES // SHARD)]
    start = time.process_time()
    for _ in range(n):
        file, row = files[rng.randrange(len(files))], rng.randrange(SHARD)
        group, rest = divmod(row, file.metadata.row_group(0).num_rows)
        file.read_row_group(group, use_threads=False).slice(rest, 1).to_pylist()
    return n / (time.process_time() - start)


def png_speed(size: int) -> str:
    """Our reader against Pillow's on the same file, microseconds."""
    target = make(Field, size, np.random.default_rng(0))
    assert isinstance(target, Field)
    data = write_png(target.values.numpy().astype(np.float16).view(np.uint16), smooth=True)
    spent = []
    for read in (read_png, lambda data: np.array(Image.open(io.BytesIO(data)))):
        read(data)
        start = time.process_time()
        for _ in range(200):
            read(data)
        spent.append((time.process_time() - start) / 200 * 1e6)
    return f"one 16-bit PNG of {size} px: {spent[0]:.0f} us, Pillow {spent[1]:.0f} us ({spent[1] / spent[0]:.1f} x)"


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'':>4} {'kind':<8}{'reads/s':>9}{'Parquet':>9}{'bytes':>9}{'usual':>9}{'ratio':>7}  (float16)")
    for size in (64, 224):
        ours, theirs = 0, [0, 0]
        with tempfile.TemporaryDirectory() as name:
            for kind in KINDS:
                head, usual = fill(Path(name), kind, size)
                store = Store(Path(name))
                store.prepare([head])
                took = store.manifest(head).bytes
                ours, theirs = ours + took, [a + b for a, b in zip(theirs, usual, strict=True)]
                half = f"  ({took / usual[1]:.2f})" if usual[1] != usual[0] else ""
                print(
                    f"{size:>4} {head:<8}{reads_a_second(store, head):>9.0f}"
                    f"{parquet_reads_a_second(Path(name), head):>9.0f}{took / IMAGES:>9.0f}"
                    f"{usual[0] / IMAGES:>9.0f}{took / usual[0]:>7.2f}{half}",
                    flush=True,
                )
        print(f"{size:>4} all five heads: {ours / theirs[0]:.2f} of the usual bytes ({ours / theirs[1]:.2f})")
        print(png_speed(size))


if __name__ == "__main__":
    main()
