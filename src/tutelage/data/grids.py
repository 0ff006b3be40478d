"""Coarse maps through moves of the image: what is known of a place of the image goes where the place goes.

A grid is looked up bilinearly between the centres of its cells. Beyond the outermost centres it is continued, as on the
way from a network's output to the image (`tasks/pixelwise.py`). A vector itself is not changed: that a network says the
mirrored map of a mirrored image is taken for granted.

Letters in shapes: C channels, y and x cells of what goes in, H and W pixels of the window, Y and X cells of the window.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tutelage.types import Maps

Places = NDArray[np.float64]
"""[Y,X]: how many cells lie before a place, along one axis; the first cell covers 0 to 1, its centre is at 0.5."""

_EXACT = 9
"""Decimals of a place that are looked at: so a grid that stays where it is is found bit for bit."""
_ENOUGH = 0.5
"""A place is valid if valid cells have this share in it."""


def move_maps(
    target: Maps,
    back: NDArray[np.float64],
    image: tuple[int, int],
    size: tuple[int, int],
    corner: tuple[int, int],
    shown: tuple[int, int],
) -> Maps:
    """A map of an image, as the map of a window: ceil(H/stride) x ceil(W/stride) cells.

    A cell is valid if its centre shows the image; where the window is no multiple of the stride, the centre of a last
    cell may lie behind the window's edge.

    Args:
        target: of the full-size image.
        back: 3 x 3, the point (x, y, 1) of the image under a point of the shown part, in pixels from its corner.
        image: (height, width) of the full-size image.
        size: (H, W).
        corner, shown: where the shown part begins in the window, and its rows and columns.
    """
    stride = int(target.stride)
    down, across = ((np.arange(-(-side // stride)) + 0.5) * stride for side in size)
    v, u = (down - corner[0])[:, None], (across - corner[1])[None]
    x, y = (line[0] * u + line[1] * v + line[2] for line in back[:2])
    inside = (v >= 0) & (v < shown[0]) & (u >= 0) & (u < shown[1])
    inside = inside & (y >= 0) & (y < image[0]) & (x >= 0) & (x < image[1])
    height, width = target.extent.tolist()
    values, valid = _looked_up(target, y / image[0] * height, x / image[1] * width, inside)
    extent = torch.tensor([side / stride for side in size], dtype=torch.float32)
    return Maps(values, valid, extent, target.stride.clone())


def on_grid(target: Maps, grid: Maps) -> Maps:
    """A map of an image on the grid of another map of the same image; valid where it is, and not where the other is."""
    rows, columns = grid.valid.shape
    shares = [
        (np.arange(count) + 0.5) / whole for count, whole in zip((rows, columns), grid.extent.tolist(), strict=True)
    ]
    height, width = target.extent.tolist()
    y, x = np.broadcast_arrays((shares[0] * height)[:, None], (shares[1] * width)[None])
    values, valid = _looked_up(target, y, x, np.ones((rows, columns), np.bool_))
    return Maps(values, valid, grid.extent, grid.stride)


def forget(target: Maps, region: tuple[slice, slice]) -> None:
    """Make the cells not valid that a region of the window touches, in place.

    Args:
        target: of a window; its tensors belong to it alone.
        region: rows and columns, in pixels.
    """
    stride = int(target.stride)
    rows, columns = (slice(side.start // stride, -(-side.stop // stride)) for side in region)
    target.values[:, rows, columns] = 0
    target.valid[rows, columns] = False


def _looked_up(target: Maps, y: Places, x: Places, inside: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
    """Values [C,Y,X], of the type they had, and bool [Y,X] at some places."""
    rows, columns = target.valid.shape
    upper, lower, down = _between(y, rows)
    left, right, across = _between(x, columns)
    index = np.stack([upper * columns + left, upper * columns + right, lower * columns + left, lower * columns + right])
    weight = np.stack([(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across]) * inside
    known = target.valid.numpy().reshape(-1)
    if not known.all():
        weight *= known[index]
        share = weight.sum(0)
        inside = inside & (share >= _ENOUGH)
        weight = np.where(inside, weight / np.maximum(share, _ENOUGH), 0)
    channels = len(target.values)
    # cell by cell in memory, as the four cells of a place are read whole: much quicker than channel by channel
    cells = target.values.reshape(channels, -1).T.float().contiguous()
    wanted, shares = (torch.from_numpy(np.moveaxis(one, 0, -1).reshape(-1, 4)) for one in (index, weight))
    found = functional.embedding_bag(wanted, cells, mode="sum", per_sample_weights=shares.float())
    values = found.to(target.values.dtype).T.reshape(channels, *inside.shape)
    return values, torch.from_numpy(np.array(inside))


def _between(places: Places, cells: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Places]:
    """The two cells whose centres a place lies between, along one axis, and the share of the second."""
    centred = np.clip(np.round(places, _EXACT) - 0.5, 0, cells - 1)
    first = np.floor(centred).astype(np.intp)
    return first, np.minimum(first + 1, cells - 1), centred - first
