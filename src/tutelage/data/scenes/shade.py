"""Light on surfaces, air and sky: the colour that comes along each ray, in linear RGB.

Letters in shapes: M rays.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.data.scenes.materials import Spot, clouds, shares
from tutelage.data.scenes.scene import GROUND, SKY, Scene, pick
from tutelage.data.scenes.solids import Vec, along, dot
from tutelage.data.scenes.trace import FAR, Facing, Hits, facing, lit, trace

_MIST = 25.0
"""Metres from which the ground fades into the horizon."""


class View(NamedTuple):
    """What M rays show: see `Hits` and `Facing`; `light` float32 [M] is 0 in a shadow, else 1."""

    row: Tensor
    d: Vec
    hits: Hits
    facing: Facing
    light: Tensor


def look(scene: Scene, row: Tensor, d: Vec) -> View:
    """Traces rays from the camera and, from what they meet, rays to the light."""
    hits = trace(scene, row, d)
    face = facing(scene, hits, d)
    point, towards = _light(scene, row, d, hits.depth)
    light = (dot(face.normal, towards) > 0).float()
    ask = torch.nonzero((light > 0) & (hits.slot != scene.slots + SKY)).squeeze(1)
    p, n, l = (pick(v, ask) for v in (point, face.normal, towards))  # noqa: E741
    lift = 2e-3 * (1.0 + hits.depth.index_select(0, ask))
    origin = along((p[0], p[1], p[2]), (n[0], n[1], n[2]), lift)
    ray_row = row.index_select(0, ask)
    (inside,) = scene.per_image("lamp", ray_row)[3:]
    light.index_copy_(0, ask, lit(scene, ray_row, origin, (l[0], l[1], l[2]), 1e9 - inside * (1e9 - 1.0)))
    return View(row, d, hits, face, light)


def _light(scene: Scene, row: Tensor, d: Vec, depth: Tensor) -> tuple[Vec, Vec]:
    """The surface points and the vectors from them to the light (of unit length for the sun)."""
    t = depth.clamp(max=FAR)
    point = (d[0] * t, d[1] * t, d[2] * t)
    lamp = scene.per_image("lamp", row)
    towards = (lamp[0] - lamp[3] * point[0], lamp[1] - lamp[3] * point[1], lamp[2] - lamp[3] * point[2])
    return point, towards


def colour(scene: Scene, view: View, light: Tensor, size: int) -> list[Tensor]:
    """Linear RGB along rays, three [M], not limited to 1.

    Args:
        scene: the scene.
        view: the rays and what they met.
        light: float32 [M] in [0, 1], how much of the direct light arrives.
        size: pixels across the picture, which set how fine patterns may be.
    """
    row, d, hits, face = view.row, view.d, view.hits, view.facing
    length = dot(d, d).sqrt()
    point, towards = _light(scene, row, d, hits.depth)
    albedo = _albedo(scene, view, length, size)
    distance = dot(towards, towards)
    inside = scene.per_image("lamp", row)[3]
    strength = light * (1.0 + 1.2 * inside) / (1.0 + 0.16 * inside * distance)
    near = 1.0 / distance.clamp(min=1e-12).sqrt()
    lambert = (dot(face.normal, towards) * near).clamp(min=0) * strength
    half = [l * near - v / length for l, v in zip(towards, d, strict=True)]  # noqa: E741
    shine = dot(face.normal, half) / dot(half, half).clamp(min=1e-12).sqrt()
    shine = shine.clamp(0.1, 1)  # so that its 32nd power is no denormal number: those are slow
    for _ in range(5):
        shine = shine * shine
    shine = shine * strength * scene.gloss.index_select(0, hits.surface)
    skyward = 0.78 + 0.22 * dot(face.normal, scene.per_image("up", row))
    shelter = skyward * _openness(scene, view, point)
    far = hits.depth.clamp(max=FAR)
    thick = scene.per_image("haze", row)[0] * far
    veil = torch.maximum(thick / (1.0 + thick), ((far - _MIST) / (FAR - _MIST)).clamp(min=0))
    result = []
    columns = (scene.per_image(n, row) for n in ("sun", "ambient", "horizon"))
    for own, sun, around, horizon in zip(albedo, *columns, strict=True):
        value = own * (around * shelter + sun * lambert) + sun * shine
        result.append(value + (horizon - value) * veil)
    open_sky = torch.nonzero(hits.slot == scene.slots + SKY).squeeze(1)
    if len(open_sky):
        for channel, value in zip(result, _sky(scene, row, d, length, open_sky), strict=True):
            channel.index_copy_(0, open_sky, value)
    return result


def _albedo(scene: Scene, view: View, length: Tensor, size: int) -> list[Tensor]:
    """The surfaces' own colours, linear RGB, three [M]."""
    hits, face = view.hits, view.facing
    surface = hits.surface
    frequency = scene.frequency.index_select(0, surface)
    phase = pick(scene.phase, surface)
    x, y, z = (p * frequency + f for p, f in zip(face.local, phase, strict=True))
    gx, gy, gz = (c.abs() for c in face.gradient)
    on_y = (gy >= gx) & (gy >= gz)
    on_x = (gx > gz) & ~on_y
    a, b = x + (z - x) * on_x, y + (z - y) * on_y
    pixel = scene.per_image("slope", view.row)[0] * (2.0 / size)
    slant = (dot(face.normal, view.d) / length).abs().clamp(min=0.05)
    blur = (hits.depth.clamp(max=FAR) * pixel * frequency / slant).clamp(min=1e-3)
    rise = face.local[1] * scene.inverse[1].index_select(0, surface)
    # on the ground a gradient runs ahead; its height would be the same everywhere
    rise = rise + (0.4 * face.local[2] - 2.0 - rise) * (hits.slot == scene.slots + GROUND)
    share = shares(scene.material.index_select(0, surface), Spot(a, b, (x, y, z), rise, blur))
    two = pick(scene.colours, surface)
    return [two[c] + (two[c + 3] - two[c]) * share for c in range(3)]


def _openness(scene: Scene, view: View, point: Vec) -> Tensor:
    """How much of the surroundings a point sees past the objects, as if these were balls; float32 [M] in (0, 1]."""
    result = torch.ones_like(point[0])
    first = view.row * scene.stride
    for slot in range(scene.slots):
        surface = first + slot
        centre = pick(scene.centre, surface)
        away = (centre[0] - point[0], centre[1] - point[1], centre[2] - point[2])
        girth = scene.girth.index_select(0, surface)
        square = dot(away, away).clamp(min=1e-6)
        covered = dot(view.facing.normal, away) * girth * girth / (square * square.sqrt())
        result = result * (1.0 - 0.75 * covered.clamp(0, 1))
    return result


def _sky(scene: Scene, row: Tensor, d: Vec, length: Tensor, index: Tensor) -> list[Tensor]:
    """The sky's colour along the rays `index`: a gradient, clouds, a glow around the sun."""
    row, length = row.index_select(0, index), length.index_select(0, index)
    x, y, z = (c.index_select(0, index) / length for c in d)
    unit = (x, y, z)
    rise = dot(scene.per_image("up", row), unit).clamp(min=0)
    blend = (2.2 * rise).clamp(max=1).sqrt()
    lamp = scene.per_image("lamp", row)
    glow = (dot(lamp[:3], unit) * (1.0 - lamp[3])).clamp(0.3, 1)
    for _ in range(5):
        glow = glow * glow
    room = scene.per_image("room", row)
    east, north = dot(room[0:3], unit), dot(room[6:9], unit)
    flat = 1.0 / (rise + 0.12)
    shift = scene.key.index_select(0, row).float() * 2.0**-24
    cloud = clouds(east * flat + shift, north * flat - shift) * (4.0 * rise).clamp(max=1)
    result = []
    for low, high, sun in zip(*(scene.per_image(n, row) for n in ("horizon", "zenith", "sun")), strict=True):
        value = low + (high - low) * blend
        value = value + (0.95 * low + 0.05 - value) * (0.8 * cloud)
        result.append(value + 0.25 * sun * glow * (0.3 + glow))
    return result
