"""Images of one class each, where the class stands in the image's path, or behind the path in a list.

Lists of millions of lines are usual (Places365-Challenge has eight million), so lines stay packed in Arrow arrays.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field as Option
from pydantic import model_validator

from tutelage.data.files import (
    FileSource,
    empty_classes,
    existing,
    find,
    inside,
    map_classes,
    natural,
    others_fault,
    read_text,
    several,
)
from tutelage.data.folders import ClassDataset, first_double, lines_of
from tutelage.data.packed import Lazy
from tutelage.data.pixels import SUFFIXES
from tutelage.data.source import Dataset, Fault, LabelSpace, Place
from tutelage.errors import UserError


class ClassPaths(FileSource):
    """Images of one class each, by a list or by their folders. Give one of `classes` and `folders`:

    - `classes`: a line of the list holds a path and the number of its class, from 0, with blanks between (Places365;
      Caffe's lists of ImageNet).
    - `folders`: the first so many folders of a path are its class: 1 for "<breed>/1.jpg" (Tsinghua Dogs), 2 for
      "<make>/<model>/<year>/1.jpg" (CompCars). Classes are called like these folders, in natural order: of the list's
      paths, where there is one, so that a class that only another list names is not among them.

    Images keep the order of the list. Paths may begin with "/", "./" or ".//", and start from `images` all the same.
    """

    format: Literal["class-paths"] = "class-paths"
    head: str
    images: Path
    """The folder that the paths start from."""
    list: Path | None = None
    """A list file, one image a line; every image must be there. Left out: all images below the folder."""
    classes: Path | tuple[str, ...] | None = None
    """The names of the numbers, in order, or a text file with one name a line, or with a name and its number a line."""
    folders: int | None = Option(None, ge=1)
    """How many of the folders that a path begins with are the class."""

    @model_validator(mode="after")
    def _check_class(self) -> Self:
        if (self.classes is None) == (self.folders is None):
            raise ValueError("give either `classes`, with numbers in the list, or `folders`")
        if self.classes is not None and self.list is None:
            raise ValueError("`classes` are those of the numbers in a `list`: give one, or `folders`")
        return self

    def open(self, name: str, place: Place, classes: Sequence[str] | None = None) -> Dataset:
        """See `Source.open`. Raises UserError also for a wrong line of the list, or a listed image that is missing."""
        root = existing(place.root / self.images, "`images`", name, folder=True)
        faults: list[Fault] = []
        if self.list is None:
            found, others = find(root, SUFFIXES)
            lines = _Lines(root, name, pa.array(found, pa.large_string()), None)
            faults = others_fault(root, others)
        else:
            lines = _Lines.read(existing(place.root / self.list, "`list`", name), name)
        if self.folders is None:
            files, numbers = lines.numbered()
            own, stated = self._names(place, name)
            if over := np.flatnonzero(numbers >= len(own)).tolist():
                lines.refuse(
                    f"the class has no name: there are {len(own)}",
                    over[0],
                    "check that `list` and `classes` belong together",
                )
        else:
            files = lines.text if self.list is None else lines.paths(lines.text)
            files, numbers, own, short = _by_folder(files, lines, self.folders)
            stated = lines.file
            if short:
                problem = f"images are not {self.folders} folders deep, and were left out"
                faults.append(Fault(str(root), "", problem, "counted", "", str(short)))
        if self.list is not None:
            _check_files(files, lines, root)
        space, mapping = map_classes(LabelSpace(own), classes, stated, name)
        kept = self.pick(name, Lazy(len(files), lambda number: str(files[number].as_py())), numbers)
        labels = mapping[numbers[kept]]
        faults += empty_classes(space, labels, stated)
        return ClassDataset(name, self.head, space, root, files.take(pa.array(kept)), faults, labels)

    def _names(self, place: Place, name: str) -> tuple[tuple[str, ...], Path]:
        """The names of the numbers, and where they stand."""
        if isinstance(self.classes, tuple):
            return self.classes, Path("classes")
        assert self.classes is not None
        file = existing(place.root / self.classes, "`classes`", name)
        rows = [line.strip() for line in read_text(file, name).splitlines() if line.strip()]
        pairs = [row.rsplit(None, 1) for row in rows]
        if not rows or not all(len(pair) == 2 and pair[1].isdecimal() for pair in pairs):
            return tuple(rows), file
        if sorted(int(number) for _, number in pairs) != [*range(len(rows))]:
            raise UserError(
                f"source '{name}': the classes are not numbered from 0 to {len(rows) - 1}",
                file=file,
                value=several([number for _, number in pairs]),
                fix="one name a line, or a name and its number, each number once",
            )
        return tuple(label for label, _ in sorted(pairs, key=lambda pair: int(pair[1]))), file


class _Lines:
    """The lines of a list, or the paths found in a folder: `text`, large_string [N]; `numbers` int64 [N], from 1, of
    the lines in `file`, None where there is no list."""

    def __init__(self, file: Path, name: str, text: Any, numbers: NDArray[np.int64] | None) -> None:
        self.file, self.name, self.text, self.numbers = file, name, text, numbers

    @classmethod
    def read(cls, file: Path, name: str) -> _Lines:
        """Raises UserError: an empty list."""
        lines, numbers = lines_of(read_text(file, name))
        if not len(numbers):
            raise UserError(f"source '{name}': the list is empty", file=file, fix="one image a line")
        return cls(file, name, lines, numbers)

    def refuse(self, problem: str, index: int, fix: str) -> NoReturn:
        record = "" if self.numbers is None else f"line {self.numbers[index]}"
        value = self.text[index].as_py()
        raise UserError(f"source '{self.name}': {problem}", file=self.file, record=record, value=value, fix=fix)

    def numbered(self) -> tuple[Any, NDArray[np.int64]]:
        """Paths, large_string [N], and the class numbers behind them, int64 [N]. Raises UserError: a line without."""
        columns = pc.extract_regex(self.text, r"^(?P<path>.*\S)\s+(?P<number>[0-9]{1,9})$")
        if columns.null_count:
            index = int(np.flatnonzero(columns.is_null().to_numpy(zero_copy_only=False))[0])
            self.refuse("a line is not a path and the number of its class", index, "such as: harbor/0001.jpg 17")
        paths, numbers = columns.flatten()
        return self.paths(paths), numbers.cast(pa.int64()).to_numpy()

    def paths(self, stated: Any) -> Any:
        """The stated paths as paths below the folder of images, large_string [N].

        Raises:
            UserError: a path that leads out of the folder, or that stands twice.
        """
        paths = pc.replace_substring_regex(stated, r"^(?:\.?/+)+", "")
        odd = pc.match_substring_regex(paths, r"\.\.|[:\\\x00]|^$").to_numpy(zero_copy_only=False)
        for index in np.flatnonzero(odd).tolist():
            if not inside(paths[index].as_py()):
                self.refuse("a path leads out of the folder of images", index, "give paths below `images`")
        if pc.count_distinct(paths).as_py() < len(paths):
            self.refuse("an image is listed twice", first_double(paths), "list every image once")
        return paths


def _by_folder(files: Any, lines: _Lines, depth: int) -> tuple[Any, NDArray[np.int64], tuple[str, ...], int]:
    """The class of each path by its first `depth` folders.

    Returns:
        The paths, without those of a folder (not of a list) that are less deep; int64 [N], indices into the names; the
        names; and how many paths were left out.

    Raises:
        UserError: a listed path that is less deep, or no path that is deep enough.
    """
    if not len(files):
        raise UserError(f"source '{lines.name}': there is no image", file=lines.file, fix="check `images`")
    labels = pc.extract_regex(files, f"^(?P<label>[^/]+(?:/[^/]+){{{depth - 1}}})/")
    short = np.flatnonzero(labels.is_null().to_numpy(zero_copy_only=False))
    if len(short) and (lines.numbers is not None or len(short) == len(files)):
        lines.refuse(
            f"the path is not {depth} folders deep", int(short[0]), "check `folders`, and where `images` points"
        )
    deep = labels.is_valid()
    coded = labels.filter(deep).field("label").dictionary_encode()
    found = coded.dictionary.to_pylist()
    order = sorted(range(len(found)), key=lambda k: natural(found[k]))
    rank = np.empty(len(found), np.int64)
    rank[order] = np.arange(len(found))
    return files.filter(deep), rank[coded.indices.to_numpy()], tuple(found[k] for k in order), len(short)


def _check_files(files: Any, lines: _Lines, root: Path) -> None:
    """Raise UserError for listed images that are not there. Each folder is listed once: far fewer calls than images."""
    coded = pc.replace_substring_regex(files, r"[^/]*$", "").dictionary_encode()
    codes, folders = coded.indices.to_numpy(), coded.dictionary.to_pylist()
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(folders) + 1))
    missing: list[str] = []
    for number, folder in enumerate(folders):
        here = files.take(pa.array(order[bounds[number] : bounds[number + 1]])).to_pylist()
        try:
            with os.scandir(root / folder) as entries:
                there = {entry.name for entry in entries}
        except OSError:
            there = set()
        missing += [path for path in here if path[len(folder) :] not in there]
    if missing:
        raise UserError(
            f"source '{lines.name}': listed images are not below the folder {root}",
            file=lines.file,
            value=f"{len(missing)} of {len(files)}, such as {several(missing)}",
            fix="check `images`, unpack what is missing, or take the lines out of the list",
        )
