"""Rays through a scene: what each one meets first, where light reaches, and which way surfaces face.

Letters in shapes: M rays, F pairs of a ray and a solid that may meet, T surfaces.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.data.scenes.scene import CEILING, GROUND, SKY, WALL, Scene, pick
from tutelage.data.scenes.solids import INF, SOLIDS, Vec, along, dot

FAR = 60.0
"""Metres along the camera axis at which the ground ends and the sky begins."""


class Hits(NamedTuple):
    """What M rays from the camera meet.

    Attributes:
        surface: int64 [M], row of the scene's tables.
        slot: int64 [M], that row's place inside its image: 0..S-1, then ground, wall, ceiling, sky.
        depth: float32 [M], metres along the camera axis; infinite for the sky.
        side: bool [M], whether a wall that was met is a side wall (else the far or the near one).
    """

    surface: Tensor
    slot: Tensor
    depth: Tensor
    side: Tensor


def turned(axes: tuple[Tensor, ...], v: Vec) -> Vec:
    """A matrix (nine columns, row by row) times a vector."""
    x, y, z = (dot(axes[3 * i : 3 * i + 3], v) for i in range(3))
    return x, y, z


def _turned_back(axes: tuple[Tensor, ...], v: Vec) -> Vec:
    """The transposed matrix times a vector."""
    x, y, z = (dot((axes[i], axes[i + 3], axes[i + 6]), v) for i in range(3))
    return x, y, z


def _background(scene: Scene, row: Tensor, d: Vec) -> tuple[Tensor, Tensor, Tensor]:
    """Depth [M], slot [M] and `side` [M] of the room around everything."""
    r = turned(scene.per_image("room", row), d)
    low, high = scene.per_image("low", row), scene.per_image("high", row)
    inverse = [1.0 / c.masked_fill(c.abs() < 1e-9, 1e-9) for c in r]
    x, y, z = (torch.maximum(a * i, b * i) for a, b, i in zip(low, high, inverse, strict=True))
    wall = torch.minimum(x, z)
    depth = torch.minimum(y, wall)
    on_wall = wall < y
    (top,) = scene.per_image("top", row)
    sky = (depth > FAR) | (on_wall & (depth * r[1] < top))
    slot = torch.full_like(row, scene.slots + GROUND)
    slot.masked_fill_(r[1] < 0, scene.slots + CEILING)
    slot.masked_fill_(on_wall, scene.slots + WALL)
    slot.masked_fill_(sky, scene.slots + SKY)
    return depth.masked_fill(sky, INF), slot, x < z


def _pairs(scene: Scene, row: Tensor, d: Vec, origin: Vec | None) -> tuple[Tensor, Tensor]:
    """Rays [F] and surfaces [F] whose bounding spheres they meet ahead of their origin (None: the camera)."""
    rays, surfaces = [], []
    length = dot(d, d)
    first = row * scene.stride
    for slot in range(scene.slots):
        surface = first + slot
        centre = pick(scene.centre, surface)
        if origin is None:
            outside = scene.bound.index_select(0, surface)
        else:
            centre = (centre[0] - origin[0], centre[1] - origin[1], centre[2] - origin[2])
            outside = dot(centre, centre) - scene.reach.index_select(0, surface)
        ahead = dot(centre, d)
        meets = (ahead * ahead >= outside * length) & ((ahead > 0) | (outside < 0))
        ray = torch.nonzero(meets).squeeze(1)
        rays.append(ray)
        surfaces.append(surface.index_select(0, ray))
    return torch.cat(rays), torch.cat(surfaces)


def _meet(scene: Scene, ray: Tensor, surface: Tensor, d: Vec, origin: Vec | None, start: float) -> Tensor:
    """The parameter [F] at which rays meet solids after `start`; infinite where they miss."""
    axes, offset, inverse = (pick(c, surface) for c in (scene.axes, scene.offset, scene.inverse))
    body = turned(axes, (d[0].index_select(0, ray), d[1].index_select(0, ray), d[2].index_select(0, ray)))
    towards = [c * i for c, i in zip(body, inverse, strict=True)]
    place = list(offset)
    if origin is not None:
        local = turned(
            axes, (origin[0].index_select(0, ray), origin[1].index_select(0, ray), origin[2].index_select(0, ray))
        )
        place = [a + b for a, b in zip(local, offset, strict=True)]
    place = [c * i for c, i in zip(place, inverse, strict=True)]
    shape = scene.shape.index_select(0, surface)
    result = torch.full_like(inverse[0], INF)
    for number, solid in enumerate(SOLIDS):
        mine = torch.nonzero(shape == number).squeeze(1)
        if len(mine):
            o, t = pick(tuple(place), mine), pick(tuple(towards), mine)
            result.index_copy_(0, mine, solid.hit((o[0], o[1], o[2]), (t[0], t[1], t[2]), start))
    return result


def trace(scene: Scene, row: Tensor, d: Vec) -> Hits:
    """What rays from the camera meet first.

    Args:
        scene: the scene.
        row: int64 [M], the image of each ray.
        d: its direction in camera axes, with z = 1, so that a ray's parameter is the depth.
    """
    depth, slot, side = _background(scene, row, d)
    # Depth and surface in one integer: the nearest wins whatever the order, and equal depths always end alike.
    best = (depth.view(torch.int32).long() << 32) | (row * scene.stride + slot)
    ray, surface = _pairs(scene, row, d, None)
    t = _meet(scene, ray, surface, d, None, 0.05)
    found = ((t.view(torch.int32).long() << 32) | surface).masked_fill(t == INF, 2**63 - 1)
    best.scatter_reduce_(0, ray, found, "amin")
    surface = best & 0xFFFFFFFF
    return Hits(surface, surface - row * scene.stride, (best >> 32).int().view(torch.float32), side)


def lit(scene: Scene, row: Tensor, origin: Vec, towards: Vec, limit: Tensor) -> Tensor:
    """Whether light arrives: float32 [M], 0 where a solid stands between `origin` and the light.

    Args:
        scene: the scene.
        row: int64 [M], the image of each ray.
        origin: [M] each, a little above the surface, camera axes.
        towards: [M] each, the direction towards the light.
        limit: [M], the parameter at which the light stands.
    """
    ray, surface = _pairs(scene, row, towards, origin)
    t = _meet(scene, ray, surface, towards, origin, 0.0)
    blocked = ray.index_select(0, torch.nonzero(t < limit.index_select(0, ray)).squeeze(1))
    return torch.ones_like(limit).index_fill_(0, blocked, 0.0)


class Facing(NamedTuple):
    """Surface points: place and direction in body and camera axes.

    Attributes:
        local: the point in its body's frame, metres, three [M].
        gradient: the surface's direction there, of unit length up to sign, three [M].
        normal: the unit normal in camera axes, turned towards the camera, three [M].
    """

    local: Vec
    gradient: Vec
    normal: Vec


def facing(scene: Scene, hits: Hits, d: Vec) -> Facing:
    """Where and how the surfaces stand that rays have met; the sky gives finite numbers without meaning."""
    depth = hits.depth.clamp(max=FAR)
    axes, offset = pick(scene.axes, hits.surface), pick(scene.offset, hits.surface)
    at = turned(axes, along((torch.zeros_like(depth),) * 3, d, depth))
    local = (at[0] + offset[0], at[1] + offset[1], at[2] + offset[2])
    wall = hits.slot == scene.slots + WALL
    raw = [(wall & hits.side).float(), (~wall).float(), (wall & ~hits.side).float()]
    inverse = pick(scene.inverse, hits.surface)
    solid = torch.nonzero(hits.slot < scene.slots).squeeze(1)
    shape = scene.shape.index_select(0, hits.surface.index_select(0, solid))
    for number, kind in enumerate(SOLIDS):
        mine = solid.index_select(0, torch.nonzero(shape == number).squeeze(1))
        if len(mine):
            p, i = pick(local, mine), pick(inverse, mine)
            for column, value in zip(raw, kind.normal((p[0] * i[0], p[1] * i[1], p[2] * i[2])), strict=True):
                column.index_copy_(0, mine, value)
    stretched = [c * i for c, i in zip(raw, inverse, strict=True)]
    scale = 1.0 / dot(stretched, stretched).clamp(min=1e-20).sqrt()
    gradient = (stretched[0] * scale, stretched[1] * scale, stretched[2] * scale)
    normal = _turned_back(axes, gradient)
    sign = 1.0 - 2.0 * (dot(normal, d) > 0).float()
    return Facing(local, gradient, (normal[0] * sign, normal[1] * sign, normal[2] * sign))
