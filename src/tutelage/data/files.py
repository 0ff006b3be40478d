"""What all readers of files share: which images are taken, how they are found and named, how classes are mapped."""

from __future__ import annotations

import abc
import hashlib
import os
import re
from collections.abc import Container, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field as Option
from pydantic import field_validator

from tutelage.data.pixels import SUFFIXES, FilePicture, sha256_of
from tutelage.data.source import BadImage, Dataset, Fault, LabelSpace, Source
from tutelage.errors import UserError
from tutelage.part import nearest

_TEXT_BYTES = 2 * 2**30


class FileSource(Source, abc.ABC):
    """A source of image files. Its images are sorted by id, numbers inside ids by their value, and then picked."""

    part: tuple[float, float] | None = None
    """Keep the part [a, b) of the images in a random order that their ids and `part_seed` decide, as fractions of them
    (of each class, where an image has one class). It cuts a validation part out of a training set that has none:
    [0, 0.9] and [0.9, 1] share no image. Not for video frames: there `blocks` is right."""
    part_seed: int = 0
    """Another seed, other parts."""
    blocks: tuple[float, float] | None = None
    """Keep the contiguous part [a, b) of those, sorted, as fractions of them (of each class, where an image has one
    class). Blocks part video frames, whose neighbours are near-duplicates: [0, 0.8] and [0.8, 1] share no image."""
    every: Annotated[int, Option(ge=1)] | None = None
    """Keep every n-th image of those."""
    exclude: tuple[str, ...] = ()
    """Ids of images to leave out, copies of test images that `check` found, say. An id without its ending stands for
    every image of that name."""
    limit: Annotated[int, Option(ge=1)] | None = None
    """Keep at most so many of those, spread evenly, so that sorted classes and scenes are all still met."""

    @field_validator("part", "blocks")
    @classmethod
    def _check_share(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 <= value[0] < value[1] <= 1:
            raise ValueError("it must be [a, b] with 0 <= a < b <= 1")
        return value

    @property
    def picks(self) -> bool:
        """Whether any option leaves images out."""
        return bool(self.part or self.blocks or self.every or self.exclude or self.limit)

    def pick(
        self, name: str, ids: Sequence[str], groups: NDArray[np.int64] | None = None, files: Sequence[str] = ()
    ) -> NDArray[np.int64]:
        """Which of the sorted images are kept: int64 indices, increasing.

        Args:
            name: of the source, for messages.
            ids: of all images, with or without the ending of the file's name.
            groups: int64 [len(ids)], `part`, `blocks` and `every` then apply inside each group of equal values.
            files: what `exclude` may call the images besides, one an id.

        Raises:
            UserError: `exclude` names an image that is not there.
        """
        everything = np.arange(len(ids))
        parts = [everything]
        if groups is not None:
            parts = [everything[groups == group] for group in np.unique(groups)]
        kept = []
        for part in parts:
            if self.part is not None:
                part = np.sort(
                    _share(part[in_random_order([ids[i] for i in part.tolist()], self.part_seed)], self.part)
                )
            if self.blocks is not None:
                part = _share(part, self.blocks)
            kept.append(part[:: self.every or 1])
        indices = np.sort(np.concatenate(kept)) if kept else everything
        if self.exclude:
            indices = indices[~np.isin(indices, self._excluded(name, ids, files))]
        if self.limit is not None and self.limit < len(indices):
            indices = indices[np.arange(self.limit) * len(indices) // self.limit]
        return indices

    def _excluded(self, name: str, ids: Sequence[str], files: Sequence[str]) -> list[int]:
        """Where the images that `exclude` names are: those of this very id, else those of this id and any ending."""
        exact: dict[str, list[int]] = {wanted: [] for id in self.exclude for wanted in (id, _without_ending(id))}
        bare: dict[str, list[int]] = {id: [] for id in exact}
        for known in (ids, files):
            for number, id in enumerate(known):
                if id in exact:
                    exact[id].append(number)
                if (stem := _without_ending(id)) in bare:
                    bare[stem].append(number)
        found = []
        for id in self.exclude:
            places = exact[id] or bare[id] or exact[_without_ending(id)]
            if not places:
                hint = nearest(id, ids if _without_ending(id) != id else map(_without_ending, ids))
                raise UserError(
                    f"source '{name}': there is no image of this id{hint}",
                    field="exclude",
                    value=id,
                    fix="give ids as `tutelage check` shows them, with or without the ending; take out what is gone",
                )
            found += places
        return found


def _without_ending(id: str) -> str:
    """An id without the name ending of an image file, where it has one: other dots belong to the name."""
    stem, _, ending = id.rpartition(".")
    return stem if f".{ending.lower()}" in SUFFIXES else id


class FileDataset(Dataset, abc.ABC):
    """A dataset whose images are files below one folder; the names lie packed in an Arrow array.

    Args:
        files: the images' paths below `root`, with forward slashes; they are the ids.
    """

    in_files = True

    def __init__(
        self,
        name: str,
        head: str | None,
        space: LabelSpace | None,
        root: Path,
        files: Sequence[str],
        faults: list[Fault],
    ) -> None:
        if not files:
            raise UserError(
                f"source '{name}': no image is left", file=root, fix="check the folder, `blocks` and the list of ids"
            )
        self.name, self.head, self.space, self.faults = name, head, space, faults
        self._root = str(root)
        self._files = pa.array(files, pa.large_string())
        self._size = (-1, 0, 0)  # index, height, width of the last picture: its label is asked for next. Replaced as a
        # whole, so that a thread never sees the numbers of two pictures mixed.

    def __len__(self) -> int:
        return len(self._files)

    def id(self, index: int) -> str:
        return str(self._files[index].as_py())

    def file(self, index: int) -> str:
        return os.path.join(self._root, self.id(index))  # noqa: PTH118 - pathlib takes six times as long

    def picture(self, index: int) -> FilePicture:
        picture = FilePicture(self.file(index))
        self._size = (index, picture.height, picture.width)
        return picture

    def sha256(self, index: int) -> str:
        return sha256_of(Path(self.file(index)))

    def bytes_of(self, index: int) -> int:
        return os.stat(self.file(index)).st_size  # noqa: PTH116 - as in `file`

    def listing(self, start: int, stop: int) -> str:
        """As `Dataset.listing`; from the packed names, 20 times as fast as one by one."""
        ends = np.frombuffer(self._files.buffers()[1], np.int64, stop - start + 1, 8 * (self._files.offset + start))
        lengths = np.diff(ends).tobytes()
        names = memoryview(self._files.buffers()[2] or b"")[ends[0] : ends[-1]]
        return hashlib.sha256(lengths + hashlib.sha256(names).digest()).hexdigest()

    def changed(self, start: int, stop: int) -> float | None:
        """As `Dataset.changed`: of the files, and of the folders they lie in up to the root.

        A folder that is put in the place of another one is seen by its own status change, up to the root; what lies
        above the root is not looked at.
        """
        latest = 0.0
        folders = {""}
        try:
            for name in self._files.slice(start, stop - start).to_pylist():
                latest = max(latest, os.stat(os.path.join(self._root, name)).st_ctime)  # noqa: PTH116, PTH118
                while (name := name.rpartition("/")[0]) not in folders:
                    folders.add(name)
            return max(latest, *(os.stat(os.path.join(self._root, folder)).st_ctime for folder in folders))  # noqa: PTH116, PTH118
        except OSError:
            return None

    def mended(self, index: int) -> list[Fault]:
        notes = self.picture(index).notes
        return [Fault(self.file(index), self.id(index), note, "converted") for note in notes]

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of the upright image. Raises BadImage."""
        known, height, width = self._size
        if known != index:
            picture = self.picture(index)
            height, width = picture.height, picture.width
        return height, width

    def check_size(self, index: int, size: Sequence[int], file: str, what: str) -> None:
        """Raise UserError unless a label of `size` (height, width) is as large as its upright image."""
        height, width = size
        real = self.size(index)
        if real == (height, width):
            return
        turned = real == (width, height)
        raise UserError(
            f"source '{self.name}': {what} is of another size than the image"
            + (", as if the EXIF rotation had been left out" if turned else ""),
            file=file,
            record=self.id(index),
            field="width x height",
            value=f"{width} x {height}, the image has {real[1]} x {real[0]}",
            fix="label the upright image, or store the image upright without EXIF orientation"
            if turned
            else "give the label made for this image",
        )


def _share(values: NDArray[np.int64], share: tuple[float, float]) -> NDArray[np.int64]:
    """The part [a, b) of an array; neighbouring parts share nothing and leave nothing out."""
    return values[round(share[0] * len(values)) : round(share[1] * len(values))]


def in_random_order(ids: Sequence[str], seed: int = 0) -> NDArray[np.int64]:
    """Positions of ids in an order that a hash of each one and the seed decides, the same everywhere: int64 [len(ids)].

    The order of some of the ids does not depend on which others there are.
    """
    keys = [hashlib.blake2b(f"{seed}/{id}".encode(), digest_size=8).digest() for id in ids]
    return np.array(sorted(range(len(ids)), key=lambda i: (keys[i], ids[i])), np.int64)


def existing(path: Path, what: str, name: str, *, folder: bool = False) -> Path:
    """The path, when it is there. Raises UserError naming what is missing in source `name`, and the nearest name."""
    if path.is_dir() if folder else path.is_file():
        return path
    kind = "folder" if folder else "file"
    raise UserError(
        f"source '{name}': there is no such {kind} for {what}{nearest_beside(path)}",
        file=path,
        fix=f"give the path of a {kind}",
    )


def nearest_beside(path: Path) -> str:
    """What a missing path may have been meant for: the nearest name in its folder, as `nearest` says it."""
    return nearest(path.name, (beside.name for beside in path.parent.iterdir())) if path.parent.is_dir() else ""


def read_text(path: Path, name: str) -> str:
    """A text file as UTF-8. Raises UserError: too large, or not UTF-8."""
    size = path.stat().st_size
    if size > _TEXT_BYTES:
        raise UserError(f"source '{name}': the file is too large", file=path, value=size, fix="at most 2 GiB")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"source '{name}': the file is not UTF-8 text", file=path, value=str(error), fix="save it as UTF-8"
        ) from None


def natural(path: str) -> list[tuple[int, int, str]]:
    """A sorting key that puts frame-9 before frame-10, and numbers before letters."""
    parts = re.split(r"([0-9]+)", path)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part]


def find(folder: Path, suffixes: Container[str]) -> tuple[list[str], int]:
    """The files below a folder, links to folders included, whose name ends in one of `suffixes` (lower case).

    Returns:
        Their paths below the folder with forward slashes, in natural order; and how many other, not hidden, files
        there are.

    Raises:
        UserError: a folder that cannot be read, or such a file whose name is not UTF-8.
    """

    def refuse(problem: OSError) -> None:
        raise UserError(
            f"a folder of images or labels cannot be read: {problem.strerror}",
            file=problem.filename,
            fix="make it readable, or take it away",
        )

    found, others = [], 0
    seen: set[tuple[int, int]] = set()
    for here, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(here)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "lost+found")
        below = os.path.relpath(here, folder).replace(os.sep, "/")
        for file in files:
            if file.startswith("."):
                continue
            if os.path.splitext(file)[1].lower() in suffixes:  # noqa: PTH122
                found.append(_text(file if below == "." else f"{below}/{file}", folder))
            else:
                others += 1
    return sorted(found, key=natural), others


def _text(path: str, folder: Path) -> str:
    """A path below a folder. Raises UserError: it has bytes that are no UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(
            "the name of a file is not UTF-8",
            file=folder,
            record=repr(os.fsencode(path)),
            fix="rename it, or unpack its archive again with the right encoding",
        ) from None
    return path


def inside(path: str) -> bool:
    """Whether a path given by a file stays below its root: relative, without leading out, links not looked at."""
    parts = PurePosixPath(path.replace("\\", "/"))
    return bool(path) and not parts.is_absolute() and ".." not in parts.parts and ":" not in path and "\0" not in path


def several(problems: Sequence[object], most: int = 5) -> str:
    """Some of many, for one message: "a, b, c and 12 more"."""
    text = ", ".join(str(problem) for problem in problems[:most])
    return text + (f" and {len(problems) - most} more" if len(problems) > most else "")


def read_ids(path: Path, name: str) -> list[str]:
    """A list file: one id a line (VOC's lists may carry a second column, which is 1 or -1), blank lines left out.

    Lines whose second column is -1 are left out: VOC means "not of this class" by it.

    Raises:
        UserError: an id given twice, or none at all.
    """
    ids = []
    for line in read_text(existing(path, "the list of ids", name), name).splitlines():
        words = line.split()
        if len(words) == 2 and words[1] in ("-1", "0", "1"):
            if words[1] != "-1":
                ids.append(words[0])
        elif words:
            ids.append(line.strip())
    repeated = doubles(ids)
    if repeated:
        raise UserError(
            f"source '{name}': ids are given twice", file=path, value=several(repeated), fix="list every image once"
        )
    if not ids:
        raise UserError(f"source '{name}': the list of ids is empty", file=path, fix="one id a line")
    return ids


def doubles(values: Iterable[str]) -> list[str]:
    """Those that come more than once, each once, in order."""
    seen: set[str] = set()
    twice: dict[str, None] = {}
    for value in values:
        if value in seen:
            twice[value] = None
        seen.add(value)
    return list(twice)


def map_classes(
    found: LabelSpace, classes: Sequence[str] | None, file: str | Path, name: str
) -> tuple[LabelSpace, NDArray[np.int64]]:
    """The dataset's classes laid into the head's label space, by name.

    Args:
        found: the dataset's own classes.
        classes: the head's label space; None takes the dataset's own.
        file: where the classes stand, for the message.
        name: of the source.

    Returns:
        The label space, its ids the dataset's own (-1 for classes the dataset does not have), and an int64 array that
        gives the new index of each class of `found`.

    Raises:
        UserError: a class of the dataset that is not in `classes`, or a name that stands twice.
    """
    for names, where in ((found.names, "the dataset"), (classes or (), "the head's classes")):
        if repeated := doubles(names):
            raise UserError(
                f"source '{name}': a class name stands twice in {where}",
                file=file,
                value=several(repeated),
                fix="give every class its own name",
            )
    if classes is None:
        return found, np.arange(len(found.names))
    position = {label: index for index, label in enumerate(classes)}
    unknown = [label for label in found.names if label not in position]
    if unknown:
        raise UserError(
            f"source '{name}': the class '{unknown[0]}' is not in the head's label space{nearest(unknown[0], classes)}",
            file=file,
            field="classes",
            value=several(unknown),
            fix="name classes alike, add them under the head's `classes`, or give this source a head of its own",
        )
    mapping = np.array([position[label] for label in found.names], np.int64)
    ids = np.full(len(classes), -1)
    ids[mapping] = found.ids
    return LabelSpace(tuple(classes), tuple(ids.tolist())), mapping


def empty_classes(space: LabelSpace, classes: NDArray[np.integer], file: str | Path) -> list[Fault]:
    """One counted fault for each class without an example. `classes`: the class of every example, [N]."""
    counts = np.bincount(classes, minlength=len(space.names))
    return [
        Fault(str(file), space.names[k], "the class has no example", "counted", "class")
        for k in np.flatnonzero(counts == 0).tolist()
    ]


def others_fault(folder: Path, others: int) -> list[Fault]:
    """A counted fault for files of a folder that were left out because their names are not those of images."""
    if not others:
        return []
    return [Fault(str(folder), "", "files that are no images by their name were left out", "counted", "", str(others))]


def size_of(file: Path) -> tuple[float, float]:
    """Width and height of an image file; without bounds where it is no image, which shows when it is read."""
    try:
        picture = FilePicture(file)
    except BadImage:
        return float("inf"), float("inf")
    return picture.width, picture.height
