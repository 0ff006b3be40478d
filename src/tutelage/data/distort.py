"""The steps of a policy, carried out: on the image and on every label.

All moves of the whole image come first, joined with scale and crop to one map (`Warp`), so that pixels and labels are
looked up once. Then the other steps follow in their order, on the shown part of the finished window. AutoAugment's
policies move the image before they cut or touch boxes, and colours know no place; so this differs from one step after
the other in little: what one move takes out of the picture and the next one brings back is not lost, colour statistics
are those of the shown part, and a square that RandAugment cuts before a turn stays upright.

Empty places (outside the image; where the content of a box moved away) have the padding's colour at the end, whatever
happened to colours. A cutout is filled with that colour but keeps its labels, as in the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data.geometry import PADDING, View, blank, move_target
from tutelage.data.grids import forget
from tutelage.data.operations import MOVES, Step, move_of, recolour
from tutelage.data.warp import Warp
from tutelage.types import Boxes, Field, Maps, Mask, Target, Vectors

Region = tuple[slice, slice]
"""Rows and columns of the window."""


def whole_move(steps: Sequence[Step], view: View) -> Warp | None:
    """The view with all moves of the whole image; None where they change nothing."""
    height, width = view.height, view.width
    move = np.eye(3)
    for step in steps:
        if step.operation in MOVES and step.where == "image":
            move = move_of(step, height, width, max(height, width)) @ move
    return None if np.array_equal(move, np.eye(3)) else Warp(view, move)


@dataclass
class Window:
    """A finished window with its labels, which the steps change in place.

    Attributes:
        image: uint8 [3,H,W], RGB, of this window alone.
        targets: labels of the window; their tensors belong to it alone, those of boxes and classes apart.
        view: which part of the window shows the image.
        empty: bool [H,W], where there is no image.
    """

    image: Tensor
    targets: Mapping[str, Target]
    view: View
    empty: NDArray[np.bool_]

    @classmethod
    def of(cls, image: Tensor, targets: Mapping[str, Target], view: View, warp: Warp | None) -> Window:
        window = cls(image, targets, view, np.ones(view.size, dtype=np.bool_))
        window.empty[window.shown] = False if warp is None else ~warp.found[1]
        return window

    @property
    def shown(self) -> Region:
        (top, left), (rows, columns) = self.view.corner, self.view.shown
        return slice(top, top + rows), slice(left, left + columns)

    @property
    def boxes(self) -> NDArray[np.float32]:
        """x1 y1 x2 y2 of all heads' boxes, [N,4], those to ignore apart."""
        found = [t.boxes[~t.ignore].numpy() for t in self.targets.values() if isinstance(t, Boxes)]
        return np.concatenate(found) if found else np.zeros((0, 4), np.float32)

    @property
    def side(self) -> int:
        """Pixels of the longer side of the whole image, as it is scaled."""
        return max(self.view.inner_height, self.view.inner_width)

    def apply(self, steps: Sequence[Step], rng: np.random.Generator) -> None:
        """All steps but the moves of the whole image. Places and boxes are drawn from `rng`."""
        changed = False
        for step in steps:
            if step.where == "one box":
                self._cut_in_box(step, rng)
            elif step.where == "boxes":
                for region in self._regions(step.chance, rng):
                    self._change(step, region, rng)
            elif step.operation == "cutout":
                self._cut_in_image(step, rng)
            elif step.operation not in MOVES:
                self._change(step, self.shown, rng)
            else:
                continue
            changed = True
        if changed and self.empty[self.shown].any():
            blank(self.image, self.empty)

    def _regions(self, chance: float, rng: np.random.Generator) -> Iterator[Region]:
        """The boxes whose turn it is, in a random order."""
        boxes = self.boxes
        order = rng.permutation(len(boxes))
        for number in order[rng.random(len(boxes)) < chance].tolist():
            yield self._region(*boxes[number].tolist())

    def _region(self, x1: float, y1: float, x2: float, y2: float) -> Region:
        """The pixels that a rectangle touches, as far as they are shown; it may be none."""
        rows, columns = self.shown
        top, bottom = max(rows.start, math.floor(y1)), min(rows.stop, math.ceil(y2))
        left, right = max(columns.start, math.floor(x1)), min(columns.stop, math.ceil(x2))
        return slice(top, max(top, bottom)), slice(left, max(left, right))

    def _change(self, step: Step, region: Region, rng: np.random.Generator) -> None:
        rows, columns = region
        if step.operation in MOVES:
            self._move(step, region)
        elif step.operation == "cutout":
            y, x = rng.uniform(rows.start, rows.stop), rng.uniform(columns.start, columns.stop)
            half = step.amount * self.side
            top, bottom = max(rows.start, round(y - half)), min(rows.stop, round(y + half))
            left, right = max(columns.start, round(x - half)), min(columns.stop, round(x + half))
            self._fill((slice(top, max(top, bottom)), slice(left, max(left, right))))
        else:
            self.image[:, rows, columns] = recolour(self.image[:, rows, columns], step.operation, step.amount)

    def _move(self, step: Step, region: Region) -> None:
        """Move what is inside a region, pixels and pixel labels; what leaves it is gone.

        A coarse map cannot follow: what it knew of the region is no longer valid.
        """
        rows, columns = region
        height, width = rows.stop - rows.start, columns.stop - columns.start
        move = move_of(step, height, width, self.side)
        if np.array_equal(move, np.eye(3)):
            return
        warp = Warp(View.resize(height, width, height, width), move)
        part = self.image[:, rows, columns]
        part[:] = warp.show(np.ascontiguousarray(part.permute(1, 2, 0).numpy()))
        empty = self.empty[rows, columns]
        empty[:] = warp.nearest(torch.from_numpy(empty), 1).numpy()
        for target in self.targets.values():
            if isinstance(target, Maps):
                forget(target, region)
            elif isinstance(target, Mask | Field | Vectors):
                inside = target.map(lambda tensor: tensor[..., rows, columns])
                moved = warp.move_target(inside)
                for field in fields(inside):
                    old = getattr(inside, field.name)
                    if old is not None:
                        old[:] = getattr(moved, field.name)

    def _cut_in_image(self, step: Step, rng: np.random.Generator) -> None:
        """A square about any point of the whole image, of which the window may show a part or nothing."""
        view = self.view
        x, y = rng.uniform(0, view.width), rng.uniform(0, view.height)
        half = step.amount * max(view.height, view.width)
        square = move_target(Boxes.make([[x - half, y - half, x + half, y + half]], [0]), view)
        assert isinstance(square, Boxes)
        for left, top, right, bottom in square.boxes.round().int().tolist():
            self._fill((slice(top, bottom), slice(left, right)))

    def _cut_in_box(self, step: Step, rng: np.random.Generator) -> None:
        """A rectangle about any point of one box, with a share of the box's sides; it may reach over the box's edge."""
        boxes = self.boxes
        if len(boxes) == 0:
            return
        x1, y1, x2, y2 = boxes[int(rng.integers(len(boxes)))].tolist()
        x, y = rng.uniform(x1, x2), rng.uniform(y1, y2)
        wide, high = step.amount * (x2 - x1) / 2, step.amount * (y2 - y1) / 2
        self._fill(self._region(round(x - wide), round(y - high), round(x + wide), round(y + high)))

    def _fill(self, region: Region) -> None:
        self.image[:, region[0], region[1]] = torch.tensor(PADDING, dtype=torch.uint8)[:, None, None]
