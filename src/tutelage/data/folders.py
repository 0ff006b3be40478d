"""Class folders, and plain pools of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import model_validator

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
    read_text,
    several,
)
from tutelage.data.packed import Lazy
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
        kept = self.pick(name, files, folders)
        labels = mapping[folders[kept]]
        faults = others_fault(root, others) + empty_classes(space, labels, root)
        return ClassDataset(name, self.head, space, root, [files[i] for i in kept.tolist()], faults, labels)


class ClassDataset(FileDataset):
    """Image files of one class each. `labels`: int64 [N], indices into the names of `space`."""

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
        return Label.certain(int(self._labels[index]), self._classes)


class Pool(FileSource):
    """Images without labels: everything below a folder, or those that a list names, in its order."""

    format: Literal["pool"] = "pool"
    head: None = None
    images: Path | None = None
    """The folder; it may be left out beside a `list` of absolute paths."""
    ids: Path | None = None
    """A list file, one path below `images` a line; every file must be there. Left out: all images below the folder."""
    list: Path | None = None
    """A list file that may be long, one path a line: below `images`, or absolute where `images` is left out. The lines
    are the ids. Whether a file is there shows when it is read: then a missing one is set aside."""

    @model_validator(mode="after")
    def _check_paths(self) -> Self:
        if self.images is None and (self.list is None or self.ids is not None):
            raise ValueError("give `images`, a folder, or a `list` of absolute paths")
        if self.list is not None and self.ids is not None:
            raise ValueError("give `ids` or `list`, not both")
        return self

    def open(self, name: str, place: Place, classes: Sequence[str] | None = None) -> Dataset:
        if self.list is not None:
            root = None
            if self.images is not None:
                root = existing(place.root / self.images, "`images`", name, folder=True)
            lines = read_list(place.root / self.list, root, name)
            kept = self.pick(name, Lazy(len(lines), lambda number: str(lines[number].as_py())))
            if len(kept) < len(lines):
                lines = lines.take(pa.array(kept))
            return _PoolDataset(name, None, None, root or Path("/"), lines, [])
        assert self.images is not None
        root = existing(place.root / self.images, "`images`", name, folder=True)
        faults: Sequence[Fault] = []
        if self.ids is None:
            files, others = find(root, SUFFIXES)
            faults = others_fault(root, others)
        else:
            listed = place.root / self.ids
            files = read_ids(listed, name)
            missing = [file for file in files if not (inside(file) and (root / file).is_file())]
            if missing:
                raise UserError(
                    f"source '{name}': listed images are not below the folder {root}",
                    file=listed,
                    value=several(missing),
                    fix="give paths relative to `images`, each of a file that is there",
                )
        return _PoolDataset(name, None, None, root, [files[i] for i in self.pick(name, files).tolist()], [*faults])


class _PoolDataset(FileDataset):
    def target(self, index: int) -> None:
        """None: nothing is labelled here."""
        return


def read_list(file: Path, root: Path | None, name: str) -> pa.Array:
    """The paths of a list file: large_string [N], in its order, blank lines and blanks around paths left out.

    Args:
        file: one path a line.
        root: the folder that the paths start from; None where they must be absolute.
        name: of the source, for messages.

    Raises:
        UserError: no list, nothing in it, a path that stands twice, or one that leads out of `root`.
    """
    paths, numbers = lines_of(read_text(existing(file, "`list`", name), name))
    if not len(paths):
        raise UserError(f"source '{name}': the list is empty", file=file, fix="one path a line")

    def refuse(problem: str, index: int, fix: str) -> None:
        record, value = f"line {numbers[index]}", paths[index].as_py()
        raise UserError(f"source '{name}': {problem}", file=file, record=record, value=value, fix=fix)

    odd = r"^/|\.\.|[:\\\x00]" if root is not None else r"^[^/]|\x00"
    for index in np.flatnonzero(pc.match_substring_regex(paths, odd).to_numpy(zero_copy_only=False)).tolist():
        if root is None:
            refuse("a path is not absolute", index, "give absolute paths, or the folder they start from as `images`")
        if root is not None and not inside(paths[index].as_py()):
            refuse(f"a path leads out of the folder {root}", index, "give paths below `images`")
    if pc.count_distinct(paths).as_py() < len(paths):
        refuse("a path stands twice", first_double(paths), "list every image once")
    return paths


def lines_of(text: str) -> tuple[pa.Array, NDArray[np.int64]]:
    """Lines that are not blank, as large_string [N], and their numbers from 1, int64 [N]."""
    lines = pc.utf8_trim_whitespace(pc.split_pattern(pa.array([text], pa.large_string()), "\n").flatten())
    there = pc.not_equal(lines, "")
    return lines.filter(there), np.flatnonzero(there.to_numpy(zero_copy_only=False)) + 1


def first_double(values: pa.Array) -> int:
    """The number of the first value that stood before."""
    codes = values.dictionary_encode().indices.to_numpy()
    _, firsts = np.unique(codes, return_index=True)
    return int(np.setdiff1d(np.arange(len(codes)), firsts)[0])
