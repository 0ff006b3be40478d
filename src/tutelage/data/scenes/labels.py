"""Labels of scenes, read off the surfaces that the pixels show.

Letters in shapes: B images, S slots, H = W = size pixels, N boxes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.data.scenes.camera import SceneBatch
from tutelage.data.scenes.materials import MATERIALS
from tutelage.data.scenes.solids import SHAPES
from tutelage.data.scenes.worlds import STUFF, World

BOX_SHARE = 0.005
"""An object that fills at least this share of the picture (by visible pixels) has a box."""
IGNORE_SHARE = 0.001
"""One that fills less, but at least this share, has a box that is neither right nor wrong to find; below: none."""


class BoxTable(NamedTuple):
    """The boxes of B images, image after image, slot after slot, on the CPU.

    Attributes:
        boxes: int64 [N,4], x1 y1 x2 y2 in pixels, the borders of the visible pixels.
        classes: int64 [N]; ignore: bool [N]; counts: int64 [B].
    """

    boxes: Tensor
    classes: Tensor
    ignore: Tensor
    counts: Tensor


def _lookup(known: tuple[str, ...], wanted: tuple[str, ...], numbers: Tensor) -> Tensor:
    """Indices into `known` as indices into `wanted`; 0 for names that `wanted` lacks."""
    table = torch.tensor([wanted.index(name) if name in wanted else 0 for name in known], device=numbers.device)
    return table[numbers]


def _pair(world: World, batch: SceneBatch) -> Tensor:
    """The class of each slot among `world.pairs()`, int64 [B,S]."""
    shape = _lookup(SHAPES, world.shapes, batch.shape)
    return shape * len(world.materials) + _lookup(MATERIALS, world.materials, batch.material)


def visible(batch: SceneBatch) -> Tensor:
    """Pixels of each slot that can be seen, int64 [B,S]."""
    count, slots = batch.shape.shape
    flat = batch.surfaces.flatten(1).long()
    seen = torch.zeros(count, slots + 4, dtype=torch.int64, device=flat.device)
    return seen.scatter_add_(1, flat, torch.ones_like(flat))[:, :slots]


def main_classes(world: World, batch: SceneBatch) -> Tensor:
    """The class of the object with the most visible pixels (the first of equals) among `world.pairs()`, int64 [B].

    -1 where no object can be seen.
    """
    seen = visible(batch) * batch.thing
    slots = seen.shape[1]
    first = (seen * slots + torch.arange(slots - 1, -1, -1, device=seen.device)).argmax(1, keepdim=True)
    return torch.where(seen.amax(1) > 0, _pair(world, batch).gather(1, first).squeeze(1), -1)


def main_shapes(world: World, batch: SceneBatch) -> Tensor:
    """The shape of that object, int64 [B]; -1 where no object can be seen."""
    return main_classes(world, batch).div(len(world.materials), rounding_mode="floor")


def masks(world: World, batch: SceneBatch) -> Tensor:
    """The class of every pixel in the world's mask space, uint8 [B,H,W]."""
    return mask_classes(world, batch).gather(1, batch.surfaces.flatten(1).long()).view(batch.surfaces.shape)


def things(world: World) -> range:
    """The classes of objects in the world's mask space; the others are what lies between them."""
    names = world.names("mask")
    assert names is not None
    return range(1 if world.mask == "shapes" else len(STUFF), len(names))


def mask_classes(world: World, batch: SceneBatch) -> Tensor:
    """The class of every surface (`SceneBatch.surfaces`) in the world's mask space, uint8 [B,S+4]."""
    if world.mask == "shapes":
        own = _lookup(SHAPES, world.shapes, batch.shape)
        hill, rest = 0, torch.zeros(4, dtype=torch.int64)
    else:
        own = _lookup(MATERIALS, world.materials, batch.material) if world.mask == "materials" else _pair(world, batch)
        hill, rest = STUFF.index("hill"), torch.tensor([STUFF.index(s) for s in ("ground", "wall", "ceiling", "sky")])
    slots = torch.where(batch.thing, things(world).start + own, hill)
    return torch.cat([slots, rest.to(slots.device).expand(len(slots), 4)], 1).to(torch.uint8)


def boxes(world: World, batch: SceneBatch) -> BoxTable:
    """The tight boxes around what can be seen of each object; see `BOX_SHARE` and `IGNORE_SHARE`."""
    count, slots = batch.shape.shape
    size = batch.surfaces.shape[-1]
    edges = torch.zeros(count, slots, 4, dtype=torch.int64)
    at = torch.arange(size, device=batch.surfaces.device)
    for slot in range(slots):
        here = batch.surfaces == slot
        for column, line in ((0, here.any(1)), (1, here.any(2))):
            edges[:, slot, column] = torch.where(line, at, size).amin(1).cpu()
            edges[:, slot, column + 2] = torch.where(line, at + 1, 0).amax(1).cpu()
    seen, thing = visible(batch).cpu(), batch.thing.cpu()
    keep = thing & (seen >= max(1.0, IGNORE_SHARE * size * size))
    ignore = seen < BOX_SHARE * size * size
    classes = _lookup(SHAPES, world.shapes, batch.shape).cpu()
    return BoxTable(edges[keep], classes[keep], ignore[keep], keep.sum(1))
