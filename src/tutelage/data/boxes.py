"""Boxes of a whole dataset in arrays, and the one place where bad boxes are found and dealt with.

Letters: M boxes of the dataset, n images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.data.files import FileDataset
from tutelage.data.source import Fault, LabelSpace
from tutelage.errors import UserError
from tutelage.types import Boxes

_ROUNDING = 1e-5  # of the image's side: what writing with six digits, or x + width, may add, counts as inside

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class RawBoxes:
    """Boxes as a file states them, image by image.

    Attributes:
        boxes: float64 [M,4], x1 y1 x2 y2; anything may stand here, NaN included.
        classes: int64 [M].
        ignore: bool [M].
        images: int64 [M], increasing: the image each belongs to.
        records: M names for messages ("annotation 17", "object 2").
        sizes: float64 [n,2], width and height of each image in the units of the boxes.
    """

    boxes: FloatArray
    classes: IntArray
    ignore: NDArray[np.bool_]
    images: IntArray
    records: Sequence[str]
    sizes: FloatArray


@dataclass(frozen=True)
class PackedBoxes:
    """The boxes of n images, packed.

    Attributes:
        boxes: float32 [M,4]; classes: int32 [M]; ignore: bool [M].
        offsets: int64 [n+1]; image i owns the rows offsets[i] to offsets[i+1].
    """

    boxes: NDArray[np.float32]
    classes: NDArray[np.int32]
    ignore: NDArray[np.bool_]
    offsets: IntArray

    def of(self, index: int) -> Boxes:
        rows = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return Boxes.make(
            torch.from_numpy(self.boxes[rows].copy()),
            torch.from_numpy(self.classes[rows].astype(np.int64)),
            ignore=torch.from_numpy(self.ignore[rows].copy()),
        )


def clean(raw: RawBoxes, files: Sequence[str], strict: bool, name: str) -> tuple[PackedBoxes, list[Fault]]:
    """Boxes that hold what `Boxes` promises: x1 < x2, y1 < y2, inside the image.

    A box that is partly outside is clipped and counted. One that is not finite, reversed, of no area or wholly outside
    is dropped and counted.

    Args:
        raw: the boxes as they stand.
        files: the file of each image's annotations, n (or 1 for all), for messages.
        strict: stop at boxes that would be dropped.
        name: of the source.

    Raises:
        UserError: with `strict`, the first box that would be dropped.
    """
    boxes = raw.boxes.reshape(-1, 4)
    limits = raw.sizes[raw.images].reshape(-1, 2)
    x1, y1, x2, y2 = boxes.T
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(boxes).all(axis=1))
    clipped = np.clip(np.where(finite[:, None], boxes, 0), 0, np.tile(limits, 2)).astype(np.float32)
    with np.errstate(invalid="ignore"):
        problems = [
            (~finite, "the box is not finite"),
            ((x2 < x1) | (y2 < y1), "the box is reversed"),
            ((x2 == x1) | (y2 == y1), "the box has no area"),
            ((x2 <= 0) | (y2 <= 0) | (x1 >= limits[:, 0]) | (y1 >= limits[:, 1]), "the box lies outside the image"),
            ((clipped[:, 2] <= clipped[:, 0]) | (clipped[:, 3] <= clipped[:, 1]), "the box has no area"),
        ]
        past = np.maximum(-boxes, boxes - np.tile(limits, 2)) / np.tile(limits, 2)
        outside = finite & (past > _ROUNDING).any(1)
    which = np.full(len(boxes), -1)
    for code in reversed(range(len(problems))):
        which[problems[code][0]] = code
    faults = []
    for row in np.flatnonzero((which >= 0) | outside).tolist():
        image = int(raw.images[row])
        problem = problems[which[row]][1] if which[row] >= 0 else "the box is partly outside the image"
        file = files[image if len(files) > 1 else 0]
        width, height = (f"{side:g}" for side in raw.sizes[image].tolist())
        value = f"{[round(v, 3) for v in boxes[row].tolist()]} in an image of {width} x {height}"
        if strict and which[row] >= 0:
            raise UserError(
                f"source '{name}': {problem}",
                file=file,
                record=raw.records[row],
                field="box (x1, y1, x2, y2)",
                value=value,
                fix="correct the box, or set `strict: false` to drop and count such boxes",
            )
        outcome = "dropped" if which[row] >= 0 else "clipped"
        faults.append(Fault(file, raw.records[row], problem, outcome, "box", value))
    keep = which < 0
    counts = np.bincount(raw.images[keep], minlength=len(raw.sizes))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    packed = PackedBoxes(clipped[keep], raw.classes[keep].astype(np.int32), raw.ignore[keep], offsets)
    return packed, faults


class BoxDataset(FileDataset):
    """Image files and their packed boxes.

    Args:
        name, head, space, root, files, faults: as of `FileDataset`.
        packed: the boxes.
        sizes: int [n,2], the width and height that annotations state of each image, 0 where they do not; None: nowhere.
        stated: the file or folder that states them, and in what, for messages.
    """

    def __init__(
        self,
        name: str,
        head: str,
        space: LabelSpace,
        root: Path,
        files: Sequence[str],
        faults: list[Fault],
        packed: PackedBoxes,
        sizes: IntArray | None = None,
        stated: tuple[Path, str] = (Path(), ""),
    ) -> None:
        super().__init__(name, head, space, root, files, faults)
        self._packed, self._stated = packed, (str(stated[0]), stated[1])
        self._sizes = None if sizes is None else sizes.astype(np.int32)

    def target(self, index: int) -> Boxes:
        """The image's boxes. Raises UserError when another size is stated than the upright image has."""
        if self._sizes is not None and self._sizes[index].any():
            width, height = self._sizes[index].tolist()
            self.check_size(index, (height, width), *self._stated)
        return self._packed.of(index)
