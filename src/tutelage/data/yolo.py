"""YOLO's text labels: a line a box, "class cx cy width height", as fractions of the image's sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.data.boxes import PackedBoxes, RawBoxes, clean
from tutelage.data.files import (
    FileDataset,
    FileSource,
    empty_classes,
    existing,
    find,
    map_classes,
    others_fault,
    read_text,
)
from tutelage.data.pixels import SUFFIXES
from tutelage.data.source import Dataset, Fault, LabelSpace, Place, numbers_of
from tutelage.errors import UserError
from tutelage.part import read_yaml
from tutelage.types import Boxes


class Yolo(FileSource):
    """A folder of images and a folder of text files with the same relative stems."""

    format: Literal["yolo"] = "yolo"
    head: str
    images: Path
    labels: Path | None = None
    """The folder of the text files; left out, `images` with its last part called "images" replaced by "labels"."""
    classes: Path | tuple[str, ...]
    """The class names in order, or a data.yaml with `names` as a list, or as a mapping from 0 on."""
    missing: Literal["negative", "unlabelled"] = "negative"
    """What an image without a text file is: an image without objects, as YOLO has it, or one nobody labelled."""
    strict: bool = False
    """Stop at boxes that are not finite, reversed, of no area or outside; else they are dropped and counted."""

    def open(self, name: str, place: Place, classes: Sequence[str] | None = None) -> Dataset:
        root = existing(place.root / self.images, "`images`", name, folder=True)
        folder = existing(self._labels(root, place, name), "`labels`", name, folder=True)
        names, stated = self._names(place, name)
        space, mapping = map_classes(LabelSpace(names), classes, stated, name)
        files, others = find(root, SUFFIXES)
        files = [files[i] for i in self.pick(name, files).tolist()]
        written = {text.rpartition(".")[0]: text for text in find(folder, (".txt",))[0]}  # .TXT as well
        stems = [file.rpartition(".")[0] for file in files]
        texts = [folder / written.get(stem, f"{stem}.txt") for stem in stems]
        labelled = np.array([stem in written for stem in stems], np.bool_)
        if not labelled.any():
            raise UserError(
                f"source '{name}': no image has a text file of its own name", file=folder, fix="check `labels`"
            )
        raw = _read_all(texts, labelled, len(names), name)
        packed, faults = clean(raw, [str(text) for text in texts], self.strict, name)
        packed.classes[:] = mapping[packed.classes]
        faults += others_fault(root, others)
        if not labelled.all():
            value = f"{int((~labelled).sum())} of {len(files)}, taken as {self.missing}"
            faults.append(Fault(str(folder), "", "images have no text file", "counted", "", value))
        faults += empty_classes(space, packed.classes, folder)
        if self.missing == "negative":
            labelled[:] = True
        return _YoloDataset(name, self.head, space, root, files, faults, packed, labelled)

    def _labels(self, root: Path, place: Place, name: str) -> Path:
        if self.labels is not None:
            return place.root / self.labels
        parts = list(root.parts)
        if "images" not in parts:
            raise UserError(
                f"source '{name}': `labels` must be given", file=root, fix="the folder of the text files, as `labels`"
            )
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        return Path(*parts)

    def _names(self, place: Place, name: str) -> tuple[tuple[str, ...], Path]:
        if not isinstance(self.classes, Path):
            return self.classes, Path("classes")
        file = existing(place.root / self.classes, "`classes`", name)
        plain = read_yaml(file)
        names = plain.get("names") if isinstance(plain, Mapping) else None
        if isinstance(names, Mapping) and sorted(names, key=str) == sorted(range(len(names)), key=str):
            names = [names[k] for k in range(len(names))]
        if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
            raise UserError(
                f"source '{name}': the class names cannot be read",
                file=file,
                field="names",
                value=names,
                fix="names: [first, second], or names: {0: first, 1: second}",
            )
        return tuple(names), file


def _read_all(texts: Sequence[Path], labelled: NDArray[np.bool_], classes: int, name: str) -> RawBoxes:
    boxes: list[list[float]] = []
    numbers: list[int] = []
    images: list[int] = []
    records: list[str] = []
    for image in np.flatnonzero(labelled).tolist():
        for number, line in enumerate(read_text(texts[image], name).splitlines(), 1):
            if not line.strip():
                continue
            label, box = _read_line(line, classes, texts[image], number, name)
            boxes.append(box)
            numbers.append(label)
            images.append(image)
            records.append(f"line {number}")
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    half = corners[:, 2:] / 2
    corners = np.concatenate([corners[:, :2] - half, corners[:, :2] + half], 1)
    return RawBoxes(
        boxes=corners,
        classes=np.array(numbers, np.int64),
        ignore=np.zeros(len(boxes), np.bool_),
        images=np.array(images, np.int64),
        records=records,
        sizes=np.ones((len(texts), 2)),
    )


def _read_line(line: str, classes: int, file: Path, number: int, name: str) -> tuple[int, list[float]]:
    """Class index and [cx, cy, width, height]. Raises UserError: not five columns, or a class out of range."""
    words = line.split()
    if len(words) != 5:
        raise UserError(
            f"source '{name}': a line must have five columns",
            file=file,
            record=f"line {number}",
            value=line,
            fix="class cx cy width height; outlines and points of other YOLO tasks are not boxes",
        )
    try:
        label, box = float(words[0]), [float(word) for word in words[1:]]
    except ValueError:
        label, box = -1.0, []
    if not box or not label.is_integer() or not 0 <= label < classes:
        raise UserError(
            f"source '{name}': the class must be a whole number from 0 to {classes - 1}, the others numbers",
            file=file,
            record=f"line {number}",
            value=line,
            fix="correct the line, or add the class to `classes`",
        )
    return int(label), box


class _YoloDataset(FileDataset):
    """The boxes stay fractions until an image is asked for, so that opening reads no image."""

    def __init__(
        self,
        name: str,
        head: str,
        space: LabelSpace,
        root: Path,
        files: Sequence[str],
        faults: list[Fault],
        packed: PackedBoxes,
        labelled: NDArray[np.bool_],
    ) -> None:
        super().__init__(name, head, space, root, files, faults)
        self._packed, self._labelled = packed, labelled

    def labelled(self) -> NDArray[np.int64] | None:
        return numbers_of(self._labelled)

    def target(self, index: int) -> Boxes | None:
        """The image's boxes in pixels; None where `missing: unlabelled` applies. Raises BadImage."""
        if not self._labelled[index]:
            return None
        height, width = self.size(index)
        part = self._packed.of(index)
        return Boxes(part.boxes * torch.tensor([width, height] * 2), part.classes, part.scores, part.ignore)
