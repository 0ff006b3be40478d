"""Images and labels that are turned, sheared or shifted on their way into the window of a `View`.

Letters in shapes: H and W pixels of the window, h and w pixels of the full-size image, N boxes.

The move and the view are one map, so that every pixel and every label is looked up once. A place of the window shows
the image if it lies inside the view's shown part and the move came from inside the image; all else is empty: padding
colour in the image, not labelled in the labels. Image and labels decide that by the same numbers.

What becomes of the third dimension: depths stay as they are. The normals become those of the surface that has these
depths in the moved picture. For a turn (a camera that rolls) that is the turned vector. For a shear with the 2 x 2
matrix A it is the vector (A^-T (x, y), z), scaled to length 1: moving the points (X, Y, Z) of a scene to (A (X, Y), Z)
gives exactly the sheared picture, and normals go with the inverse transpose. Scaling alike in both directions is a
longer focal length, as in `View`, and changes neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tutelage.data.geometry import PADDING, View, blank, divisor_of, move_target
from tutelage.data.grids import move_maps
from tutelage.data.source import UInt8
from tutelage.types import IGNORE, Boxes, Field, Label, Maps, Mask, Target, Vectors

Matrix = NDArray[np.float64]
"""3 x 3, of points (x, y, 1) in pixels; the first pixel covers 0 to 1, its centre is at 0.5."""


@dataclass(frozen=True, eq=False)
class Warp:
    """An affine move of the full-size image inside its own frame, and the view of what results.

    Attributes:
        view: which window of the moved image becomes the input, in what size, mirrored or not.
        move: where each point of the image goes, in pixels of the full-size image. It can be inverted.
    """

    view: View
    move: Matrix

    @cached_property
    def back(self) -> Matrix:
        """The point of the full-size image under each point of the shown part, which is counted from its own corner
        and mirrored where the view mirrors.
        """
        back: Matrix = np.linalg.inv(self.move) @ self.view.seen
        return back

    @cached_property
    def found(self) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """For each place of the shown part, [rows,columns]: the pixel of the full-size image under its centre, counted
        row by row (0 where there is none), and whether there is one.
        """
        x, y = (np.floor(axis).astype(np.int32) for axis in self._centres(self.back, np.float64))
        # as unsigned, what lies before the image is large too
        inside = (x.view(np.uint32) < self.view.width) & (y.view(np.uint32) < self.view.height)
        return np.where(inside, y * np.intp(self.view.width) + x, 0), inside

    def _centres(self, back: Matrix, kind: type[np.floating[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
        """x and y, each [rows,columns], of what `back` finds under the centres of the shown part."""
        rows, columns = (np.arange(count) + 0.5 for count in self.view.shown)
        x, y = (
            (line[0] * columns).astype(kind)[None] + (line[1] * rows + line[2]).astype(kind)[:, None]
            for line in back[:2]
        )
        return x, y

    def show(self, pixels: UInt8) -> Tensor:
        """The shown part of an image: uint8 [3,rows,columns], mirrored, not yet padded; empty places have PADDING.

        Bilinear between pixel centres. An image that shrinks to less than half is averaged over whole blocks of pixels
        first, so that a pixel of the result stands for at most two of what is sampled.

        Args:
            pixels: uint8 [h,w,3], at full size or decoded at 1/2, 1/4 or 1/8 of it.

        Raises:
            BadImage: the array is of a size that the full-size image cannot have given.
        """
        divisor = divisor_of(pixels, self.view)
        block = max(1, int(1 / (max(self.view.scale) * divisor)))
        unit = divisor * block  # pixels of the full-size image that a sampled one stands for
        back = self.back.copy()
        back[:2] /= unit
        part, (left, top) = self._part(pixels, back, block)
        empty = ~self.found[1]
        if part is None:
            return torch.tensor(PADDING, dtype=torch.uint8)[:, None, None].expand(3, *self.view.shown).clone()
        if block > 1:
            part = functional.avg_pool2d(part, block, ceil_mode=True)
        back[:2, 2] -= left, top
        # grid_sample counts from -1 to 1 over the whole part
        back[:2] *= np.array([[2 / part.shape[-1]], [2 / part.shape[-2]]])
        back[:2, 2] -= 1
        grid = torch.from_numpy(np.stack(self._centres(back, np.float32), -1))
        sampled = functional.grid_sample(part[None], grid[None], "bilinear", "border", align_corners=False)[0]
        shown = sampled.round_().to(torch.uint8)
        if empty.any():
            blank(shown, empty)
        return shown

    def _part(self, pixels: UInt8, back: Matrix, block: int) -> tuple[Tensor | None, tuple[int, int]]:
        """The part of an image that is sampled, float32 [3,...] (None: nothing is), and the block it begins at."""
        rows, columns = self.view.shown
        corners = back[:2] @ np.array([[0, columns, 0, columns], [0, 0, rows, rows], [1, 1, 1, 1]])
        low = np.maximum(np.floor(corners.min(1)).astype(int) - 1, 0)
        high = (np.ceil(corners.max(1)).astype(int) + 1) * block
        left, top = int(low[0]), int(low[1])
        part = pixels[top * block : max(0, int(high[1])), left * block : max(0, int(high[0]))]
        if not part.size:
            return None, (left, top)
        planes = torch.from_numpy(np.moveaxis(part, -1, 0).astype(np.float32, order="C"))
        return planes, (left, top)

    def nearest(self, plane: Tensor, fill: int) -> Tensor:
        """The nearest pixel of [...,h,w] under each pixel of the window, [...,H,W]; `fill` where nothing is shown."""
        source: NDArray[Any] = plane.numpy()
        view, (index, inside) = self.view, self.found
        assert source.shape[-2:] == (view.height, view.width), (source.shape, view)
        lead = source.shape[:-2]
        shown = source.reshape(*lead, -1).take(index, axis=-1)
        np.copyto(shown, np.asarray(fill, source.dtype), where=~inside)
        if view.shown == view.size:
            return torch.from_numpy(shown)
        window = np.full((*lead, *view.size), fill, source.dtype)
        (top, left), (rows, columns) = view.corner, view.shown
        window[..., top : top + rows, left : left + columns] = shown
        return torch.from_numpy(window)

    def move_target(self, target: Target, min_visible: float = 0.0) -> Target:
        """A label through the warp, as `geometry.move_target` takes it through a view.

        A box becomes the smallest upright box around its moved corners, cut at the edges of window and image.
        """
        if isinstance(target, Label):
            return target
        if isinstance(target, Boxes):
            return move_target(self._around(target), self.view, min_visible)
        if isinstance(target, Mask):
            confidence = None if target.confidence is None else self.nearest(target.confidence, 0)
            return Mask(self.nearest(target.ids, IGNORE), confidence)
        if isinstance(target, Maps):
            view = self.view
            return move_maps(target, self.back, (view.height, view.width), view.size, view.corner, view.shown)
        values, valid = self.nearest(target.values, 0), self.nearest(target.valid, 0)
        if isinstance(target, Field):
            return Field(values, valid)
        self._turn_normals(values.numpy())
        return Vectors(values, valid)

    def _around(self, target: Boxes) -> Boxes:
        if len(target) == 0:
            return target
        corners = target.boxes.numpy().astype(np.float64)[:, [[0, 1], [2, 1], [0, 3], [2, 3]]]
        moved = corners @ self.move[:2, :2].T + self.move[:2, 2]
        around = np.concatenate([moved.min(1), moved.max(1)], 1).astype(np.float32)
        return Boxes(torch.from_numpy(around), target.classes, target.scores, target.ignore)

    def _turn_normals(self, values: NDArray[np.float32]) -> None:
        """[3,H,W], in place: as the head of this file says; what is zero stays zero."""
        plane = self.move[:2, :2] * np.array([[-1.0 if self.view.flip else 1.0], [1.0]])
        turn = np.linalg.inv(plane).T * np.sqrt(abs(np.linalg.det(plane)))
        (xx, xy), (yx, yy) = turn.astype(np.float32)
        x, y = values[0] * xx + values[1] * xy, values[0] * yx + values[1] * yy
        values[0], values[1] = x, y
        if not np.allclose(turn @ turn.T, np.eye(2), atol=1e-9):
            length = np.sqrt(x * x + y * y + values[2] * values[2])
            values /= np.maximum(length, np.float32(1e-6))
