"""A layout as tensors: everything a ray needs to know, in camera axes, one table row a surface.

Letters in shapes: B images, S slots, T = B * (S + 4) surfaces: each image's slots, then ground, wall, ceiling and sky.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tutelage.data.scenes.layout import Layout
from tutelage.data.scenes.solids import SHAPES

GROUND, WALL, CEILING, SKY = range(4)
"""Surfaces of an image after its slots."""
EXTRA = 4


@dataclass(frozen=True)
class Scene:
    """B images ready to be traced; float32 unless said otherwise.

    Attributes:
        slots: S.
        axes: nine [T], body axes from camera axes, row by row; offset: three [T]; a camera point p is axes p + offset
            in its body's frame, in metres.
        inverse: three [T], one over the half sizes (1 for ground, walls and ceiling).
        centre: three [T], camera axes; bound: [T], squared distance of the centre minus squared bounding radius
            (infinite for unused slots and for what is no solid); reach: [T], squared bounding radius of what throws
            shadows (minus infinity for the rest: hills are too flat to matter); girth: [T], mean half size of
            objects, 0 for everything else.
        shape, material: int64 [T].
        colours: six [T], linear RGB of the first and the second colour.
        frequency, gloss: [T]; phase: three [T].
        image: values of each image, each a tuple of [B]: `room` (nine, room axes from camera axes), `low`, `high`
            (three each), `top`, `lamp` (four), `sun`, `ambient`, `zenith`, `horizon` (three each), `up` (three),
            `haze`, `noise`, `blur`, `soft`, `slope` (one each).
        key: int64 [B], below 2**31.
    """

    slots: int
    axes: tuple[Tensor, ...]
    offset: tuple[Tensor, ...]
    inverse: tuple[Tensor, ...]
    centre: tuple[Tensor, ...]
    bound: Tensor
    reach: Tensor
    girth: Tensor
    shape: Tensor
    material: Tensor
    colours: tuple[Tensor, ...]
    frequency: Tensor
    gloss: Tensor
    phase: tuple[Tensor, ...]
    image: dict[str, tuple[Tensor, ...]]
    key: Tensor

    @property
    def stride(self) -> int:
        """Surfaces an image."""
        return self.slots + EXTRA

    def per_image(self, name: str, row: Tensor) -> tuple[Tensor, ...]:
        """The values `name` of the image of each ray."""
        return tuple(values.index_select(0, row) for values in self.image[name])


def pick(columns: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, ...]:
    """Some entries of every column."""
    return tuple(column.index_select(0, index) for column in columns)


def _columns(values: np.ndarray, device: torch.device, rows: int) -> tuple[Tensor, ...]:
    """An array whose first `rows` axes count rows as contiguous float32 columns, one for each entry of a row."""
    entries = math.prod(values.shape[rows:])
    flat = np.ascontiguousarray(values.reshape(math.prod(values.shape[:rows]), entries).T.astype(np.float32))
    return tuple(torch.from_numpy(column).to(device) for column in flat)


def _rotate(turn: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Rotated vectors [..., 3], summed in a fixed order."""
    return np.asarray(sum(turn[..., :, k] * vector[..., k, None] for k in range(3)))


def _reach(layout: Layout) -> np.ndarray:
    """Squared radii [B,S] of balls around the centres that hold the solids."""
    x, y, z = (layout.half[..., k] for k in range(3))
    wide = np.maximum(x, z)
    largest = np.maximum(wide, y) ** 2
    drum = wide**2 + y**2
    corner = x**2 + y**2 + z**2
    by_shape = {"ball": largest, "gem": largest, "capsule": largest, "box": corner, "pyramid": corner, "roof": corner}
    every = np.stack([by_shape.get(name, drum) for name in SHAPES], -1)
    return np.take_along_axis(every, layout.shape[..., None], -1)[..., 0] * 1.002


def to_scene(layout: Layout, device: torch.device) -> Scene:
    """The tensors of a layout. All geometry is done in float64 on the CPU and rounded once."""
    count, slots = len(layout), layout.slots
    camera = layout.camera[:, None]
    # body axes from camera axes: turn * camera^T, [B,S,3,3]
    axes = np.asarray(sum(layout.turn[..., :, None, k] * camera[..., None, :, k] for k in range(3)))
    room = np.asarray(sum(layout.room[:, :, None, k] * layout.camera[:, None, :, k] for k in range(3)))
    centre = _rotate(np.broadcast_to(camera, axes.shape), layout.centre)
    offset = -_rotate(axes, centre)
    reach = _reach(layout)
    bound = np.where(layout.present, (centre**2).sum(-1) - reach, np.inf)
    shadow = np.where(layout.present & layout.thing, reach, -np.inf)
    girth = np.where(layout.present & layout.thing, layout.half.mean(-1), 0.0)

    def table(things: np.ndarray, extra: np.ndarray | float) -> tuple[Tensor, ...]:
        """Values of the slots [B,S,...] followed by those of the EXTRA surfaces, as columns [T]."""
        tail = np.broadcast_to(extra, (count, EXTRA, *things.shape[2:]))
        return _columns(np.concatenate([things, tail], 1), device, 2)

    def with_sky(values: np.ndarray) -> tuple[Tensor, ...]:
        """Values [B,S+3,...] with a row for the sky, which has no look of its own."""
        return table(values[:, :slots], np.concatenate([values[:, slots:], values[:, -1:]], 1))

    def whole(things: np.ndarray, extra: np.ndarray | int) -> Tensor:
        tail = np.broadcast_to(extra, (count, EXTRA))
        return torch.from_numpy(np.concatenate([things, tail], 1).reshape(-1)).to(device)

    up = -layout.camera[:, :, 1]
    lamp = np.concatenate([_rotate(layout.camera, layout.lamp[:, :3]), layout.lamp[:, 3:]], 1)
    image = {"room": room, "lamp": lamp, "up": up}
    names = ("low", "high", "top", "sun", "ambient", "zenith", "horizon", "haze", "noise", "blur", "soft", "slope")
    image |= {name: getattr(layout, name) for name in names}
    stuff = np.concatenate([layout.stuff, layout.stuff[:, -1:]], 1)
    return Scene(
        slots=slots,
        axes=table(axes, room[:, None]),
        offset=table(offset, 0.0),
        inverse=table(1 / layout.half, 1.0),
        centre=table(centre, 0.0),
        bound=table(bound, np.inf)[0],
        reach=table(shadow, -np.inf)[0],
        girth=table(girth, 0.0)[0],
        shape=whole(layout.shape, -1),
        material=whole(layout.material, stuff),
        colours=with_sky(layout.colours),
        frequency=with_sky(layout.frequency)[0],
        gloss=with_sky(layout.gloss)[0],
        phase=with_sky(layout.phase),
        image={name: _columns(values, device, 1) for name, values in image.items()},
        key=torch.from_numpy((layout.key >> np.uint64(33)).astype(np.int64)).to(device),
    )
