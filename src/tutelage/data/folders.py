"""Class folders, and plain pools of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.data.files import (
    FileDataset,
    FileSource,
    empty_classes,
    existing,
    find,
    inside,
    map_classes,
    others_fault,
    read_ids,
    several,
)
from tutelage.data.pixels import SUFFIXES
from tutelage.data.source import Dataset, Fault, LabelSpace, Place
from tutelage.errors import UserError
from tutelage.types import Label


class Folders(FileSource):
    """Images in one folder a class: root/<class>/**/*.jpg. Classes are the folders' names, in alphabetical order."""

    format: Literal["folders"] = "folders"
    head: str
    root: Path
    """The folder that holds the class folders."""

    def open(self, name: str, place: Place, classes: Sequence[str] | None = None) -> Dataset:
        root = existing(place.root / self.root, "`root`", name, folder=True)
        names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        if not names:
            raise UserError(
                f"source '{name}': there is no class folder", file=root, fix="one folder a class, in `root`"
            )
        space, mapping = map_classes(LabelSpace(tuple(names)), classes, root, name)
        files: list[str] = []
        numbers: list[int] = []
        others = 0
        for number, label in enumerate(names):
            inner, odd = find(root / label, SUFFIXES)
            files += [f"{label}/{file}" for file in inner]
            numbers += [number] * len(inner)
            others += odd
        folders = np.array(numbers, np.int64)
        kept = self.pick(files, folders)
        labels = mapping[folders[kept]]
        counts = np.bincount(labels, minlength=len(space.names))
        faults = others_fault(root, others) + empty_classes(space, counts, root)
        return _FolderDataset(name, self.head, space, root, [files[i] for i in kept.tolist()], faults, labels)


class _FolderDataset(FileDataset):
    def __init__(
        self,
        name: str,
        head: str,
        space: LabelSpace,
        root: Path,
        files: Sequence[str],
        faults: list[Fault],
        labels: NDArray[np.int64],
    ) -> None:
        super().__init__(name, head, space, root, files, faults)
        self._labels = labels.astype(np.int32)
        self._classes = len(space.names)

    def target(self, index: int) -> Label:
        """A one-hot Label."""
        probs = torch.zeros(self._classes)
        probs[int(self._labels[index])] = 1.0
        return Label(probs)


class Pool(FileSource):
    """Images without labels: everything below a folder, or those that a list names."""

    format: Literal["pool"] = "pool"
    head: None = None
    images: Path
    """The folder."""
    ids: Path | None = None
    """A list file, one path below `images` a line; left out: all images below the folder."""

    def open(self, name: str, place: Place, classes: Sequence[str] | None = None) -> Dataset:
        root = existing(place.root / self.images, "`images`", name, folder=True)
        faults: list[Fault] = []
        if self.ids is None:
            files, others = find(root, SUFFIXES)
            faults = others_fault(root, others)
        else:
            listed = place.root / self.ids
            files = read_ids(listed, name)
            missing = [file for file in files if not (inside(root, file) and (root / file).is_file())]
            if missing:
                raise UserError(
                    f"source '{name}': listed images are not below the folder {root}",
                    file=listed,
                    value=several(missing),
                    fix="give paths relative to `images`, each of a file that is there",
                )
        return _PoolDataset(name, None, None, root, [files[i] for i in self.pick(files).tolist()], faults)


class _PoolDataset(FileDataset):
    def target(self, index: int) -> None:
        """None: nothing is labelled here."""
        return
