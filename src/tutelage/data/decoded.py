"""A small labelled dataset decoded once: pixels and labels in one memory-mapped file, for every training that reads it.

Fine-tuning reads a downstream set hundreds of times: once an epoch, for every point of the grid, every seed and every
initialisation. `decoded` gives a dataset that says exactly the same, bit for bit, without decoding anything again.

The file is an Arrow file with a row an image. `layout` is JSON that says how the row's bytes are to be read:

- `picture`: [height, width], or the reason why the image cannot be opened.
- `levels`: the image as `Picture.read` gives it for a scale of 1, 1/2, 1/4 and 1/8 (JPEGs decode smaller): each
  [height, width], null where it equals the one before, or the reason why it cannot be decoded.
- `sha256`: null, or the reason why there is no digest.
- `target`: null where nothing is labelled, the reason why the label cannot be used, or its kind and, for each array of
  it, [type, shape], null for an array that it does not have.

`pixels` holds the levels' bytes one after the other, `target` those of the label's arrays.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from tutelage.data.arrays import PixelDataset
from tutelage.data.scenes.cache import only_one
from tutelage.data.scenes.source import ScenesDataset
from tutelage.data.source import BadImage, Dataset, Picture, Subset, UInt8
from tutelage.errors import UserError
from tutelage.files import write_atomically
from tutelage.types import Boxes, Field, Label, Maps, Mask, Target, Vectors

_VERSION = 1  # of the file; a change makes all of them anew
_DIVISORS = (1, 2, 4, 8)
_LEVELS = sum(1 / divisor**2 for divisor in _DIVISORS)
_KINDS: dict[str, type[Target]] = {kind.__name__: kind for kind in (Label, Boxes, Mask, Field, Vectors, Maps)}
_COLUMNS = {"id": pa.large_string(), "file": pa.large_string(), "sha256": pa.large_string()} | {
    "layout": pa.large_string(),
    "pixels": pa.large_binary(),
    "target": pa.large_binary(),
}
_SAMPLE = 256  # images that the size of all is judged by
_BLOCK = 32  # images decoded at once, and written as one record batch
_ABANDONED = 3600.0  # seconds after which an unfinished file is taken to be a killed process's

T = TypeVar("T")

Progress = Callable[[int], None]
"""Called with the number of images that were just decoded."""


def decoded(dataset: Dataset, folder: Path, limit_bytes: int, progress: Progress | None = None) -> Dataset:
    """The same dataset with its images and labels decoded, on disk, for all who ask.

    The first call decodes everything; later ones, of any process, find the file. Several processes may call at once:
    one writes, the others wait. The file is found again as long as ids, files and labels are the same and no image
    has changed; to see that, every call reads all labels, so call once and hand the result on (pickled it is a path).
    A file of the same images that no longer holds is removed, and one that is cut or overwritten is made again.

    Args:
        dataset: labelled or not. Rendered scenes and arrays of pixels, which are memory-mapped already, come back as
            they are; so does an empty dataset.
        folder: of derived files.
        limit_bytes: when the decoded images and labels would take more (judged by 256 images, evenly spread), or when
            the disk has not twice as much left, the dataset comes back as it is.
        progress: told about decoded images; never called when the file is there.

    Raises:
        UserError: what the dataset's labels raise; the disk is full.
    """
    if len(dataset) == 0 or isinstance(_innermost(dataset), _MAPPED):
        return dataset
    expected = estimated_bytes(dataset)
    if expected > limit_bytes:
        return dataset
    images, content = _keys(dataset)
    file = folder / f"decoded-{images}-{content}.arrow"
    if _mapped(file, len(dataset)) is None:
        with only_one(folder / f"decoded-{images}"):
            if _mapped(file, len(dataset)) is None:  # another process may have made it while we waited
                _sweep(folder, images)
                if shutil.disk_usage(folder).free < 2 * expected:
                    return dataset
                write_atomically(file, lambda stream: _write(stream, dataset, progress))
    return Decoded(dataset, file)


def estimated_bytes(dataset: Dataset) -> int:
    """About how many bytes `decoded` would take, from the sizes of up to 256 images: at most a third too many."""
    indices = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), _SAMPLE)).round().astype(int)).tolist()
    total = 0.0
    for index in indices:
        try:
            picture = dataset.picture(index)
            total += 3 * picture.height * picture.width * _LEVELS
            total += sum(array.nbytes for array in _arrays(dataset.target(index)) if array is not None)
        except BadImage:
            continue
    return math.ceil(total * len(dataset) / max(len(indices), 1))


class Decoded(Dataset):
    """A decoded dataset; see `decoded`. It pickles as a path: every process maps the file itself.

    `mended` tells nothing: what decoding puts right, the original dataset says.

    Args:
        dataset: what it was made of.
        file: the decoded images and labels.
    """

    def __init__(self, dataset: Dataset, file: Path) -> None:
        self.name, self.head, self.space, self.faults = dataset.name, dataset.head, dataset.space, dataset.faults
        self._path, self._count, self._labelled = file, len(dataset), dataset.labelled()
        self._batches = _mapped(self._path, self._count)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_batches": None}

    def __len__(self) -> int:
        return self._count

    def id(self, index: int) -> str:
        return self._text("id", index)

    def file(self, index: int) -> str:
        return self._text("file", index)

    def sha256(self, index: int) -> str:
        fault = self._layout(index)["sha256"]
        if fault is not None:
            raise BadImage(fault)
        return self._text("sha256", index)

    def picture(self, index: int) -> Picture:
        layout = self._layout(index)
        if isinstance(layout["picture"], str):
            raise BadImage(layout["picture"])
        return _DecodedPicture(layout, self._bytes("pixels", index))

    def labelled(self) -> NDArray[np.int64] | None:
        return self._labelled

    def target(self, index: int) -> Target | None:
        layout = self._layout(index)["target"]
        if isinstance(layout, str):
            raise BadImage(layout)
        if layout is None:
            return None
        kind, arrays = layout
        return _unpack(kind, arrays, self._bytes("target", index))

    def _layout(self, index: int) -> dict[str, Any]:
        layout: dict[str, Any] = json.loads(self._text("layout", index))
        return layout

    def _text(self, column: str, index: int) -> str:
        return str(self._batch(column, index)[index % _BLOCK].as_py())

    def _bytes(self, column: str, index: int) -> UInt8:
        """The bytes of a cell where they lie in the mapped file: not writable."""
        _, offsets, data = self._batch(column, index).buffers()
        start, stop = np.frombuffer(offsets, np.int64, 2, 8 * (index % _BLOCK)).tolist()
        return np.frombuffer(data or b"", np.uint8)[start:stop]

    def _batch(self, column: str, index: int) -> pa.Array:
        if not 0 <= index < self._count:
            raise IndexError(f"image {index} of {self._count}")
        if self._batches is None:
            self._batches = _mapped(self._path, self._count)
            if self._batches is None:
                raise UserError("the decoded images are gone or damaged", file=self._path, fix="run again")
        return self._batches[index // _BLOCK].column(column)


class _DecodedPicture(Picture):
    def __init__(self, layout: dict[str, Any], pixels: UInt8) -> None:
        self.height, self.width = layout["picture"]
        self._levels, self._pixels = layout["levels"], pixels

    def read(self, scale: float = 1.0) -> UInt8:
        """See `Picture.read`; a new, writable, contiguous array."""
        number = sum(scale * divisor <= 1 for divisor in _DIVISORS[1:])
        while self._levels[number] is None:
            number -= 1
        level = self._levels[number]
        if isinstance(level, str):
            raise BadImage(level)
        before = sum(3 * h * w for h, w in (size for size in self._levels[:number] if isinstance(size, list)))
        height, width = level
        return self._pixels[before : before + 3 * height * width].reshape(height, width, 3).copy()


_MAPPED = (ScenesDataset, PixelDataset, Decoded)  # nothing of them has to be decoded


def _unpack(kind: str, layout: Sequence[tuple[str, list[int]] | None], data: UInt8) -> Target:
    """A target from its arrays' bytes; the tensors are new."""
    offset = 0
    columns: list[torch.Tensor | None] = []
    for entry in layout:
        if entry is None:
            columns.append(None)
            continue
        dtype, shape = np.dtype(entry[0]), entry[1]
        end = offset + math.prod(shape) * dtype.itemsize
        columns.append(torch.from_numpy(data[offset:end].copy().view(dtype).reshape(shape)))
        offset = end
    return _KINDS[kind](*columns)  # type: ignore[arg-type]


def _arrays(target: Target | None) -> list[NDArray[Any] | None]:
    """The arrays of a target in the order of its fields; none where there is no target."""
    if target is None:
        return []
    tensors = [getattr(target, field.name) for field in fields(target)]
    return [None if tensor is None else tensor.numpy() for tensor in tensors]


def _innermost(dataset: Dataset) -> Dataset:
    while isinstance(dataset, Subset):
        dataset = dataset.whole
    return dataset


def _keys(dataset: Dataset) -> tuple[str, str]:
    """Two hex digests: of which images, for which head; and of everything that the file is made from."""
    which = hashlib.sha256(json.dumps([dataset.head, len(dataset)]).encode())
    content = hashlib.sha256(json.dumps([_VERSION, dataset.space and dataset.space.names]).encode())
    changed = _changed(dataset)
    content.update(repr(changed).encode())
    for index in range(len(dataset)):
        which.update(json.dumps([dataset.id(index), dataset.file(index)]).encode())
        if changed is None:
            content.update("{0[0]} {0[1]}".format(_said(dataset.sha256, index)).encode())
        target, fault = _said(dataset.target, index)
        layout, arrays = _target_layout(target), _arrays(target)
        content.update(json.dumps([layout, fault]).encode())
        for array in arrays:
            if array is not None:
                content.update(array.tobytes())
    return which.hexdigest()[:16], content.hexdigest()[:32]


def _changed(dataset: Dataset) -> float | None:
    """As `Dataset.changed`, of all images; of a subset, those of the whole dataset, which is more than needed."""
    whole = _innermost(dataset)
    return whole.changed(0, len(whole))


def _said(question: Callable[[Any], T], about: Any) -> tuple[T | None, str | None]:
    """An answer of a dataset, or the reason of the BadImage that came in its place."""
    try:
        return question(about), None
    except BadImage as error:
        return None, str(error)


def _target_layout(target: Target | None) -> list[Any] | None:
    if target is None:
        return None
    arrays = _arrays(target)
    return [type(target).__name__, [None if a is None else [a.dtype.name, list(a.shape)] for a in arrays]]


def _write(stream: IO[bytes], dataset: Dataset, progress: Progress | None) -> None:
    schema = pa.schema(list(_COLUMNS.items()))
    # At most four: decoding leaves Python's lock, but other processes want the cores too.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool, pa.ipc.new_file(stream, schema) as writer:
        for start in range(0, len(dataset), _BLOCK):
            block = range(start, min(start + _BLOCK, len(dataset)))
            rows = list(_rows(dataset, block, pool))
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema))
            if progress is not None:
                progress(len(block))


def _rows(dataset: Dataset, block: range, pool: ThreadPoolExecutor) -> Iterator[dict[str, Any]]:
    """The rows of a block. Datasets are asked from this thread only; pixels are decoded in others."""
    found = [(_said(dataset.picture, index), _said(dataset.target, index)) for index in block]
    levels = pool.map(_levels, [picture for (picture, _), _ in found])
    for index, ((picture, fault), (target, odd)), (sizes, pixels) in zip(block, found, levels, strict=True):
        digest, no_digest = _said(dataset.sha256, index)
        layout = {
            "picture": fault if picture is None else [picture.height, picture.width],
            "levels": sizes,
            "sha256": no_digest,
            "target": _target_layout(target) if odd is None else odd,
        }
        yield {
            "id": dataset.id(index),
            "file": dataset.file(index),
            "sha256": digest,
            "layout": json.dumps(layout),
            "pixels": pixels,
            "target": b"".join(array.tobytes() for array in _arrays(target) if array is not None),
        }


def _levels(picture: Picture | None) -> tuple[list[list[int] | str | None], bytes]:
    """The levels of an image as `layout` states them, and their bytes one after the other."""
    if picture is None:
        return [], b""
    read = [_said(picture.read, scale) for scale in (1.0, 1 / _DIVISORS[-1])]
    if _same(*read):  # most formats decode at full size only
        middle = [read[0]] * (len(_DIVISORS) - 2)
    else:
        middle = [_said(picture.read, 1 / divisor) for divisor in _DIVISORS[1:-1]]
    every = [read[0], *middle, read[1]]
    sizes: list[list[int] | str | None] = []
    parts: list[bytes] = []
    for number, (pixels, fault) in enumerate(every):
        if number and _same(every[number - 1], every[number]):
            sizes.append(None)
        elif pixels is None:
            sizes.append(fault)
        else:
            sizes.append(list(pixels.shape[:2]))
            parts.append(pixels.tobytes())
    return sizes, b"".join(parts)


def _same(one: tuple[UInt8 | None, str | None], other: tuple[UInt8 | None, str | None]) -> bool:
    if one[0] is None or other[0] is None:
        return one[0] is other[0] and one[1] == other[1]
    return one[0].shape == other[0].shape and bool((one[0] == other[0]).all())


def _mapped(file: Path, count: int) -> list[pa.RecordBatch] | None:
    """The record batches of a whole file of so many images; None where there is none, or it is damaged."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate(full=True)  # offsets that lead out of the file would end the process
    except (OSError, pa.ArrowException):
        return None
    lengths = [min(_BLOCK, count - start) for start in range(0, count, _BLOCK)]
    fits = reader.schema == pa.schema(list(_COLUMNS.items())) and [len(batch) for batch in batches] == lengths
    return batches if fits else None


def _sweep(folder: Path, images: str) -> None:
    """Remove what was decoded of these images before they, or their labels, changed, and what killed processes left."""
    for file in folder.glob(f"decoded-{images}-*.arrow"):
        file.unlink(missing_ok=True)
    for file in folder.glob(f".decoded-{images}-*.part"):
        if time.time() - file.stat().st_mtime > _ABANDONED:
            file.unlink(missing_ok=True)
