"""Geometry of images and labels: one map, exact to the pixel centre, carried through every kind of target.

Letters in shapes: H and W pixels of the output window, h and w pixels of an array that goes in, N boxes.

A `View` cuts a window out of the image and scales it; what the window shows beyond the image is padded. All its
numbers are integers, so that two kinds of target can never round apart. Images are cropped before they are resized:
only the part of the image that the window shows is touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data.grids import move_maps
from tutelage.data.source import BadImage, UInt8
from tutelage.types import IGNORE, Boxes, Field, Label, Maps, Mask, Target, Vectors

PADDING = (124, 116, 104)
"""RGB of what lies outside the image: ImageNet's mean, so that it is near zero once the input is normalised."""

MIN_SIDE = 0.1
"""Output pixels. Boxes that end thinner than this have no area that a detector could be asked for."""

_REDUCTIONS = (8, 4, 2)


class Frame(NamedTuple):
    """How an original image of h x w pixels was laid into the model's input: scaled to `inner`, top left, then padded.

    Attributes:
        height, width: h and w of the original image.
        inner_height, inner_width: its size inside the padded input.
    """

    height: int
    width: int
    inner_height: int
    inner_width: int


@dataclass(frozen=True)
class View:
    """The axis-aligned map from a full-size image to an output window.

    The image is scaled by inner / full, from `left` and `top` on laid into the window at `pad_left` and `pad_top`, and
    the finished window is mirrored if `flip`. So, without a flip, the centre of output pixel u shows the point
    (u + 0.5 - pad_left) / scale + left - 0.5 of the image, in pixel centres.

    Attributes:
        height, width: pixels of the full-size image.
        inner_height, inner_width: pixels of the whole image after scaling.
        size: (H, W) of the window.
        top, left: pixels of the full-size image cut away before the window; multiples of `reduction`, so that an image
            decoded at reduced size can be cut at the same place.
        pad_top, pad_left: pixels of padding in the window before the image begins. An axis is cut or padded, not both.
        flip: mirror the window left to right.
    """

    height: int
    width: int
    inner_height: int
    inner_width: int
    size: tuple[int, int]
    top: int = 0
    left: int = 0
    pad_top: int = 0
    pad_left: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        assert min(self.inner_height, self.inner_width, *self.size) > 0, self
        assert min(self.top, self.left, self.pad_top, self.pad_left) >= 0, self
        assert not (self.top and self.pad_top), self
        assert not (self.left and self.pad_left), self
        assert self.top % self.reduction == 0 == self.left % self.reduction, self
        assert self.shown[0] > 0 < self.shown[1], self

    @classmethod
    def resize(cls, height: int, width: int, new_height: int, new_width: int) -> View:
        """The whole image of height x width, resized to new_height x new_width."""
        return cls(height, width, new_height, new_width, (new_height, new_width))

    @property
    def scale(self) -> tuple[float, float]:
        """Output pixels a pixel of the full-size image: (vertical, horizontal)."""
        return self.inner_height / self.height, self.inner_width / self.width

    @property
    def reduction(self) -> int:
        """1, 2, 4 or 8: the most the image may be divided when it is decoded and still be as large as shown."""
        return reduction(self.height, self.width, self.inner_height, self.inner_width)

    @cached_property
    def shown(self) -> tuple[int, int]:
        """Rows and columns of the window that lie wholly inside the image; they begin at `pad_top` and `pad_left`."""
        rows = (self.height - self.top) * self.inner_height // self.height
        columns = (self.width - self.left) * self.inner_width // self.width
        return min(rows, self.size[0] - self.pad_top), min(columns, self.size[1] - self.pad_left)

    @cached_property
    def corner(self) -> tuple[int, int]:
        """Row and column of the finished window, mirrored or not, where the image begins."""
        right = self.size[1] - self.pad_left - self.shown[1]
        return self.pad_top, right if self.flip else self.pad_left

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """The row of the full-size image under the centre of each shown row; int64 [shown rows]."""
        return self.top + (2 * np.arange(self.shown[0]) + 1) * self.height // (2 * self.inner_height)

    @cached_property
    def columns(self) -> NDArray[np.int64]:
        """The column of the full-size image under the centre of each shown column; int64 [shown columns], mirrored
        with the window.
        """
        columns = self.left + (2 * np.arange(self.shown[1]) + 1) * self.width // (2 * self.inner_width)
        return columns[::-1] if self.flip else columns

    @cached_property
    def seen(self) -> NDArray[np.float64]:
        """The point of the full-size image under each point of the shown part: 3 x 3, of points (x, y, 1) in pixels, of
        which the first covers 0 to 1. The shown part is counted from its own corner, mirrored where the view mirrors.
        """
        scale_y, scale_x = self.scale
        step, start = 1 / scale_x, float(self.left)
        if self.flip:
            start, step = start + self.shown[1] / scale_x, -step
        return np.array([[step, 0, start], [0, 1 / scale_y, self.top], [0, 0, 1]])


def reduction(height: int, width: int, inner_height: int, inner_width: int) -> int:
    """The largest of 1, 2, 4 and 8 by which height x width can be divided without getting smaller than inner."""
    for divisor in _REDUCTIONS:
        if inner_height * divisor <= height and inner_width * divisor <= width:
            return divisor
    return 1


def move_image(pixels: UInt8, view: View) -> Tensor:
    """An image through a view: uint8 [3,H,W] from uint8 [h,w,3].

    Args:
        pixels: the image, at full size or decoded at 1/2, 1/4 or 1/8 of it, but not smaller than shown.
        view: in coordinates of the full-size image.

    Raises:
        BadImage: the array is of a size that the full-size image cannot have given.
    """
    return place(resample(pixels, view), view)


def resample(pixels: UInt8, view: View) -> Tensor:
    """The part of an image that a view shows: uint8 [3,rows,columns] as in `view.shown`, not yet mirrored or padded.

    Bilinear, with antialiasing where the image shrinks. Pixels cut away at the top and the left are not looked
    at, as if that were the image's edge.
    """
    divisor = divisor_of(pixels, view)
    rows, columns = view.shown
    top, left = view.top // divisor, view.left // divisor
    # the last row and column shown, and the pixels after them that the filter reaches
    bottom = top + _ceil((rows + 1) * view.height, view.inner_height * divisor) + 1
    right = left + _ceil((columns + 1) * view.width, view.inner_width * divisor) + 1
    part = pixels[top:bottom, left:right]
    if (view.inner_height * divisor, view.inner_width * divisor) == (view.height, view.width):
        return _planes(part[:rows, :columns])
    same = (rows == part.shape[0], columns == part.shape[1])
    if any(same):
        # torch skips an axis whose length stays, whatever scale is stated; it can only be one that grows, or stays, and
        # there a doubled last pixel changes nothing
        part = np.pad(part, ((0, int(same[0])), (0, int(same[1])), (0, 0)), "edge")
    scale_y, scale_x = (value * divisor for value in view.scale)
    # interpolate() takes a size or a scale, and would derive one from the other by rounding; the exact map needs both
    return torch.ops.aten._upsample_bilinear2d_aa(_planes(part)[None], (rows, columns), False, scale_y, scale_x)[0]


def _planes(pixels: UInt8) -> Tensor:
    """uint8 [3,h,w] from uint8 [h,w,3]; shared where torch can share it: writable and in whole rows."""
    if not pixels.flags.writeable or not pixels.flags.c_contiguous:
        pixels = np.array(pixels, order="C")
    return torch.from_numpy(pixels).permute(2, 0, 1)


def place(shown: Tensor, view: View) -> Tensor:
    """A resampled part in its window, mirrored and padded: uint8 [3,H,W], contiguous, from uint8 [3,rows,columns]."""
    return pad(shown.flip(-1) if view.flip else shown, view)


def pad(shown: Tensor, view: View) -> Tensor:
    """The shown part, mirrored already where the view mirrors, in its window: as `place`."""
    if view.shown == view.size:
        return shown.contiguous()
    window = torch.empty((3, *view.size), dtype=torch.uint8)
    for channel, value in enumerate(PADDING):
        window[channel].fill_(value)
    (top, left), (rows, columns) = view.corner, view.shown
    window[:, top : top + rows, left : left + columns] = shown
    return window


def blank(image: Tensor, empty: NDArray[np.bool_]) -> None:
    """Give the empty places [H,W] of an image, uint8 [3,H,W], the padding's colour, in place."""
    for channel, value in zip(image.numpy(), PADDING, strict=True):
        np.copyto(channel, value, where=empty)


def divisor_of(pixels: UInt8, view: View) -> int:
    """By how much an image was divided when it was decoded: 1, 2, 4 or 8; raises BadImage as `move_image`."""
    height, width = pixels.shape[:2]
    divisor = 1
    while divisor <= view.reduction:
        if (height, width) == (_ceil(view.height, divisor), _ceil(view.width, divisor)):
            return divisor
        divisor *= 2
    raise BadImage(f"{width} x {height} pixels were decoded, the header says {view.width} x {view.height}")


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def move_target(target: Target, view: View, min_visible: float = 0.0) -> Target:
    """A label through a view; what belongs to the full-size image comes out belonging to the window.

    Args:
        target: of the full-size image. A `Label` stays as it is. Boxes are moved and cut at the window's and the
            image's edge. Of masks, fields and vectors the nearest pixel is taken; outside the image nothing is labelled
            (255, or not valid). Mirroring turns the x of vectors round. `Maps` are looked up bilinearly (`grids.py`).
        view: the map.
        min_visible: boxes of which a smaller share of the area is still to be seen are left out, unless they are
            `ignore`; so are all that end thinner than MIN_SIDE.
    """
    if isinstance(target, Label):
        return target
    if isinstance(target, Boxes):
        return _move_boxes(target, view, min_visible)
    if isinstance(target, Mask):
        confidence = None if target.confidence is None else _nearest(target.confidence, view, 0)
        return Mask(_nearest(target.ids, view, IGNORE), confidence)
    if isinstance(target, Maps):
        return move_maps(target, view.seen, (view.height, view.width), view.size, view.corner, view.shown)
    values, valid = _nearest(target.values, view, 0), _move_valid(target.valid, view)
    if isinstance(target, Field):
        return Field(values, valid)
    if view.flip:
        values[0].neg_()
    return Vectors(values, valid)


def _nearest(plane: Tensor, view: View, fill: int) -> Tensor:
    """The nearest pixel of [...,h,w] under each pixel of the window, [...,H,W]."""
    source: NDArray[Any] = plane.numpy()
    assert source.shape[-2:] == (view.height, view.width), (source.shape, view)
    rows, columns = view.rows, view.columns
    first, last = int(rows[0]), int(rows[-1]) + 1
    if last - first > len(rows):  # taking columns costs most, so it is done on the fewest rows
        shown = source.take(rows, axis=-2).take(columns, axis=-1)
    else:
        shown = source[..., first:last, :].take(columns, axis=-1).take(rows - first, axis=-2)
    if view.shown == view.size:
        return torch.from_numpy(shown)
    window = np.full((*source.shape[:-2], *view.size), fill, source.dtype)
    (top, left), (height, width) = view.corner, view.shown
    window[..., top : top + height, left : left + width] = shown
    return torch.from_numpy(window)


def _move_valid(valid: Tensor, view: View) -> Tensor:
    """As `_nearest`, but quick where all is valid, as in most pseudo labels: there is nothing to look up."""
    if not valid.numpy().all():
        return _nearest(valid, view, 0)
    window = torch.zeros(view.size, dtype=torch.bool)
    (top, left), (rows, columns) = view.corner, view.shown
    window[top : top + rows, left : left + columns] = True
    return window


def _move_boxes(target: Boxes, view: View, min_visible: float) -> Boxes:
    if len(target) == 0:
        return target
    (scale_y, scale_x), (rows, columns), (top, left) = view.scale, view.shown, view.corner
    shift_y, shift_x = view.pad_top - view.top * scale_y, view.pad_left - view.left * scale_x
    boxes = target.boxes.numpy()
    if view.flip:
        boxes, scale_x, shift_x = boxes[:, [2, 1, 0, 3]], -scale_x, view.size[1] - shift_x
    boxes = boxes * np.array((scale_x, scale_y) * 2) + np.array((shift_x, shift_y) * 2)
    cut = np.minimum(np.maximum(boxes, (left, top) * 2), (left + columns, top + rows) * 2)
    (wide, high), (full_wide, full_high) = (cut[:, 2:] - cut[:, :2]).T, (boxes[:, 2:] - boxes[:, :2]).T
    seen = wide * high >= full_wide * full_high * min_visible - 1e-6
    keep = (np.minimum(wide, high) >= MIN_SIDE) & (seen | target.ignore.numpy())
    moved = torch.from_numpy(cut.astype(np.float32))
    all_kept = Boxes(moved, target.classes, target.scores, target.ignore)
    return all_kept if keep.all() else all_kept.pick(torch.from_numpy(keep))


def letterbox(image: UInt8, size: int) -> tuple[Tensor, Frame]:
    """A whole image in a square input, as models see it in evaluation: longer side = `size`, top left, padded.

    Args:
        image: uint8 [h,w,3], RGB.
        size: S, pixels.

    Returns:
        uint8 [3,S,S], and how to find the way back.
    """
    height, width = image.shape[:2]
    inner_height, inner_width = fit(height, width, size)
    view = View(height, width, inner_height, inner_width, (size, size))
    return move_image(image, view), Frame(height, width, inner_height, inner_width)


def fit(height: int, width: int, side: float) -> tuple[int, int]:
    """(height, width) scaled so that the longer side is `side`, rounded, at least one pixel."""
    ratio = side / max(height, width)
    return max(1, round(height * ratio)), max(1, round(width * ratio))
