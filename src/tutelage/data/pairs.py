"""Images beside label files of the same relative stem, and class masks among them."""

from __future__ import annotations

import abc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import Field as Option
from pydantic import model_validator

from tutelage.data.files import (
    FileDataset,
    FileSource,
    doubles,
    existing,
    find,
    inside,
    map_classes,
    natural,
    others_fault,
    read_ids,
    read_text,
    several,
)
from tutelage.data.maps import MAPS, read_index_mask
from tutelage.data.pixels import SUFFIXES
from tutelage.data.source import Dataset, Fault, LabelSpace, Place, UInt8, numbers_of
from tutelage.errors import UserError
from tutelage.types import IGNORE, Mask


class Found(NamedTuple):
    """Images and the label file of each (None where it has none), both as paths below their folders."""

    root: Path
    files: list[str]
    folder: Path
    labels: list[str | None]
    faults: list[Fault]


class PairSource(FileSource, abc.ABC):
    """Images and label files matched by relative path without suffix. Images without a label file are unlabelled, and
    counted."""

    images: Path
    image_suffix: str = ""
    """What the images' stems end in and the label files' do not, such as `_leftImg8bit`."""
    label_suffix: str = ""
    """What the label files' stems end in and the images' do not, such as `_depth`."""
    ids: Path | None = None
    """A list file: the relative stems of the images to take, one a line; every one must have a label. Left out: all."""
    pairs: Path | None = None
    """A list file of pairs, in place of matching by stem: a line holds the path of an image below `images` and that of
    its label file below the labels' folder, with a comma or blanks between; further columns are not read."""

    @model_validator(mode="after")
    def _check_lists(self) -> Self:
        if self.pairs is not None and (self.ids is not None or self.image_suffix):
            raise ValueError("`pairs` says it all: leave out `ids` and `image_suffix`")
        return self

    def match(self, labels: Path, place: Place, name: str, beside: str | None = None) -> Found:
        """Find the pairs.

        Args:
            labels: the folder of label files, as the recipe says it.
            place: where the recipe's paths start.
            name: of the source.
            beside: what the stems of further files end in, which lie beside the labels and are none.

        Raises:
            UserError: nothing matches, two files of one stem, or a listed one is missing.
        """
        root = existing(place.root / self.images, "`images`", name, folder=True)
        folder = existing(place.root / labels, "the labels", name, folder=True)
        if self.pairs is not None:
            rows = _read_pairs(place.root / self.pairs, root, folder, name)
            rows = [rows[i] for i in self.pick(name, [image for image, _ in rows]).tolist()]
            return Found(root, [image for image, _ in rows], folder, [label for _, label in rows], [])
        files, others = find(root, SUFFIXES)
        maps, _ = find(folder, MAPS)
        by_stem = self._stems(maps, self.label_suffix, folder, name)
        if folder == root:  # labels beside the images: what is a label is no image
            own = set(by_stem.values()) if self.label_suffix else set()
            files = [file for file in files if file not in own]
            files = [file for file in files if beside is None or not file.rpartition(".")[0].endswith(beside)]
        elif folder.is_relative_to(root):  # labels in a folder below the images
            below = f"{folder.relative_to(root).as_posix()}/"
            files = [file for file in files if not file.startswith(below)]
        images = self._stems(files, self.image_suffix, root, name)
        stems = list(images)
        faults = others_fault(root, others) if folder != root else []
        if self.ids is not None:
            stems = sorted(read_ids(place.root / self.ids, name), key=natural)  # `blocks` means neighbours
            if missing := [stem for stem in stems if stem not in images or stem not in by_stem]:
                raise UserError(
                    f"source '{name}': listed ids have no image in {root} or no label in {folder}",
                    file=place.root / self.ids,
                    value=several(missing),
                    fix="add the files, or take the ids out of the list",
                )
        kept = self.pick(name, stems, files=[images.get(stem, stem) for stem in stems])
        stems = [stems[i] for i in kept.tolist()]
        found = [by_stem.get(stem) for stem in stems]
        without = sum(label is None for label in found)
        if without == len(found):
            raise UserError(
                f"source '{name}': no image has a label file of the same stem",
                file=folder,
                value=f"{len(images)} images such as {several(list(images), 2)}; {len(by_stem)} labels such as "
                f"{several(list(by_stem), 2)}",
                fix="check the folders, `image_suffix` and `label_suffix`",
            )
        if without:
            value = f"{without} of {len(found)}"
            faults.append(Fault(str(folder), "", "images have no label file: unlabelled", "counted", "", value))
        if alone := sum(stem not in images for stem in by_stem):
            faults.append(Fault(str(folder), "", "label files have no image", "counted", "", str(alone)))
        return Found(root, [images[stem] for stem in stems], folder, found, faults)

    @staticmethod
    def _stems(files: Sequence[str], suffix: str, folder: Path, name: str) -> dict[str, str]:
        """Relative stem without `suffix` to file; files whose stem does not end in it are left out."""
        pairs = [(file.rpartition(".")[0], file) for file in files]
        pairs = [(stem[: len(stem) - len(suffix)], file) for stem, file in pairs if stem.endswith(suffix)]
        if repeated := doubles(stem for stem, _ in pairs):
            raise UserError(
                f"source '{name}': several files have one stem",
                file=folder,
                value=several(repeated),
                fix="keep one file a stem in this folder",
            )
        return dict(pairs)


def _read_pairs(file: Path, root: Path, folder: Path, name: str) -> list[tuple[str, str]]:
    """The pairs of a list file, in natural order of the images. Raises UserError: a line that names no two files that
    are there, an image listed twice, or an empty list."""
    rows = []
    for number, line in enumerate(read_text(existing(file, "`pairs`", name), name).splitlines(), 1):
        if not line.strip():
            continue
        columns = [column.strip().lstrip("/") for column in (line.split(",") if "," in line else line.split())]
        there = len(columns) >= 2 and all(
            inside(path) and (base / path).is_file() for base, path in zip((root, folder), columns, strict=False)
        )
        if not there:
            raise UserError(
                f"source '{name}': a line does not name an image below {root} and a label below {folder}",
                file=file,
                record=f"line {number}",
                value=line,
                fix="one pair a line, as paths below these folders, with a comma or blanks between",
            )
        rows.append((columns[0], columns[1]))
    if repeated := doubles(image for image, _ in rows):
        raise UserError(f"source '{name}': images are listed twice", file=file, value=several(repeated))
    if not rows:
        raise UserError(f"source '{name}': the list of pairs is empty", file=file, fix="one pair a line")
    return sorted(rows, key=lambda row: natural(row[0]))


class PairDataset(FileDataset, abc.ABC):
    """Images with one label file each, or none."""

    def __init__(self, name: str, head: str, space: LabelSpace | None, found: Found) -> None:
        super().__init__(name, head, space, found.root, found.files, found.faults)
        self._folder = str(found.folder)
        self._labels = pa.array(found.labels, pa.large_string())

    def label_file(self, index: int) -> Path | None:
        """The label's file, None where the image has none."""
        label = self._labels[index].as_py()
        return None if label is None else Path(self._folder) / label

    def labelled(self) -> NDArray[np.int64] | None:
        return numbers_of(self._labels.is_valid().to_numpy(zero_copy_only=False))


class Masks(PairSource):
    """Images and index masks: one channel, the pixel's value is its class (ADE20K, CamVid, VOC's SegmentationClass).

    ADE20K: `classes: objectInfo150.txt`, `ignore: [0]` (or a list of names with `offset: 1`). VOC: `masks:
    SegmentationClass`, `ids: ImageSets/Segmentation/train.txt`; its white borders, 255, are ignored.
    """

    format: Literal["masks"] = "masks"
    head: str
    masks: Path
    classes: Path | tuple[str, ...]
    """The class names in order, or a JSON file with such a list or with names by stored value, {"0": "sky", ...}; or a
    text file with one name a line, or a table with tabs whose head names the columns "Idx" and "Name" (ADE20K)."""
    offset: Annotated[int, Option(ge=0, le=254)] = 0
    """The stored value of the first class, where the names are a list."""
    ignore: tuple[int, ...] = (255,)
    """Stored values that mean "not labelled"; names that a JSON file gives to them are not classes."""

    def open(self, name: str, place: Place, classes: Sequence[str] | None = None) -> Dataset:
        own, stated = self._space(place, name)
        space, mapping = map_classes(own, classes, stated, name)
        if len(space.names) > IGNORE:
            raise UserError(f"source '{name}': more than {IGNORE} classes", file=stated, value=len(space.names))
        table = np.full(256, -1, np.int16)
        table[list(own.ids)] = mapping
        table[[value for value in self.ignore if 0 <= value < 256]] = IGNORE
        return _MaskDataset(name, self.head, space, self.match(self.masks, place, name), table)

    def _space(self, place: Place, name: str) -> tuple[LabelSpace, Path]:
        if not isinstance(self.classes, Path):
            return self._listed(self.classes, Path("classes"), name), Path("classes")
        file = existing(place.root / self.classes, "`classes`", name)
        try:
            plain = (
                _names_in_text(read_text(file, name)) if file.suffix == ".txt" else json.loads(read_text(file, name))
            )
            if isinstance(plain, list):
                return self._listed([str(label) for label in plain], file, name), file
            named = {int(value): str(label) for value, label in plain.items()}
        except (ValueError, AttributeError, RecursionError) as error:
            raise UserError(
                f"source '{name}': the class names cannot be read: {error}",
                file=file,
                fix='a JSON list of names, an object {"0": "first", "1": "second"}, or a text file of one name a line',
            ) from None
        ids = sorted(value for value in named if value not in self.ignore)
        return self._checked(LabelSpace(tuple(named[value] for value in ids), tuple(ids)), file, name), file

    def _listed(self, names: Sequence[str], file: Path, name: str) -> LabelSpace:
        ids = tuple(range(self.offset, self.offset + len(names)))
        return self._checked(LabelSpace(tuple(names), ids), file, name)

    def _checked(self, space: LabelSpace, file: Path, name: str) -> LabelSpace:
        wrong = [value for value in space.ids if not 0 <= value <= 255 or value in self.ignore]
        if wrong or not space.names:
            raise UserError(
                f"source '{name}': classes need stored values from 0 to 255 that `ignore` does not list, and one class",
                file=file,
                field="classes",
                value=several(wrong),
                fix="check `classes`, `offset` and `ignore`",
            )
        return space


def _names_in_text(text: str) -> list[str] | dict[str, str]:
    """Class names from lines, or by value from a table with the columns Idx and Name. Raises ValueError."""
    lines = [line for line in text.splitlines() if line.strip()]
    head = [cell.strip().lower() for cell in lines[0].split("\t")] if lines else []
    if len(head) < 2:
        return [line.strip() for line in lines]
    value, name = head.index("idx"), head.index("name")
    rows = [line.split("\t") for line in lines[1:]]
    if short := [line for line, row in zip(lines[1:], rows, strict=True) if len(row) < len(head)]:
        raise ValueError(f"too few columns: {short[0]!r}")
    return {row[value].strip(): row[name].strip() for row in rows}


class _MaskDataset(PairDataset):
    def __init__(self, name: str, head: str, space: LabelSpace, found: Found, table: NDArray[np.int16]) -> None:
        super().__init__(name, head, space, found)
        self._unknown = table < 0
        self._table = np.where(self._unknown, IGNORE, table).astype(np.uint8)

    def target(self, index: int) -> Mask | None:
        """The mask. Raises UserError: another size than the image, or a value that is no class."""
        file = self.label_file(index)
        if file is None:
            return None
        stored = read_index_mask(file)
        self.check_size(index, stored.shape, str(file), "the mask")
        self._check_values(index, stored, file)
        return Mask(torch.from_numpy(self._table[stored]))

    def _check_values(self, index: int, stored: UInt8, file: Path) -> None:
        seen = np.bincount(stored.ravel(), minlength=256)
        wrong = np.flatnonzero((seen > 0) & self._unknown)
        if len(wrong):
            raise UserError(
                f"source '{self.name}': the mask holds a value that is no class",
                file=file,
                record=self.id(index),
                field="pixel value",
                value=", ".join(f"{value} ({seen[value]} pixels)" for value in wrong[:5].tolist()),
                fix="name it in `classes`, or list it in `ignore`; check `offset`",
            )
