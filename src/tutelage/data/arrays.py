"""Classified images that lie as pixels in one array file of the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.data.source import Dataset, Fault, LabelSpace, Picture, UInt8
from tutelage.files import write_atomically
from tutelage.types import Label


def cached(pixels: UInt8, cache: Path) -> Path:
    """The pixels as an array file of the cache, named by their content."""
    pixels = np.ascontiguousarray(pixels)
    digest = hashlib.sha256(repr(pixels.shape).encode() + hashlib.sha256(pixels.data).digest()).hexdigest()[:16]
    path = cache / f"pixels-{digest}.npy"
    if not path.is_file():
        write_atomically(path, lambda stream: np.save(stream, pixels, allow_pickle=False))
    return path


class ArrayPicture(Picture):
    """An image that lies as pixels in memory, or in a mapped file."""

    def __init__(self, pixels: UInt8) -> None:
        self._pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def read(self, scale: float = 1.0) -> UInt8:
        return np.array(self._pixels)


class PixelDataset(Dataset):
    """Images that lie as pixels in one array file. Loader processes get its name and map it themselves."""

    def __init__(
        self,
        name: str,
        head: str,
        space: LabelSpace,
        path: Path,
        ids: Sequence[str],
        labels: NDArray[np.int64],
        kept: NDArray[np.int64],
        faults: list[Fault],
    ) -> None:
        self.name, self.head, self.space, self.faults = name, head, space, faults
        self._path, self._kept = path, kept
        self._labels = labels[kept].astype(np.int32)
        self._ids = np.array([ids[i] for i in kept.tolist()], np.bytes_)
        self._array: UInt8 | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}

    def _pixels(self, index: int) -> UInt8:
        if self._array is None:
            self._array = np.load(self._path, mmap_mode="r", allow_pickle=False)
        return self._array[int(self._kept[index])]

    def __len__(self) -> int:
        return len(self._kept)

    def id(self, index: int) -> str:
        return str(self._ids[index], "ascii")

    def file(self, index: int) -> str:
        return f"{self._path}[{int(self._kept[index])}]"

    def picture(self, index: int) -> Picture:
        return ArrayPicture(self._pixels(index))

    def target(self, index: int) -> Label:
        return Label.certain(int(self._labels[index]), len(self.space.names) if self.space else 0)

    def sha256(self, index: int) -> str:
        return hashlib.sha256(self._pixels(index).tobytes()).hexdigest()

    def bytes_of(self, index: int) -> int:
        return self._pixels(index).nbytes
