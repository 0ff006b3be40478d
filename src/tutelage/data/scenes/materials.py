"""The materials of scenes: two colours and a pattern that says how much of the second one a point shows.

Patterns are functions of a point on the surface, computed with additions, multiplications and square roots only (see
`solids`). Their edges are as wide as a pixel's footprint, so that they fade to an even mix in the distance and do
not flicker.

Letters in shapes: F points.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.data.scenes.solids import Vec

_CELLS = 16


class Spot(NamedTuple):
    """A point on a surface, as patterns see it; every entry is [F].

    Attributes:
        a, b: coordinates in the face that the surface is nearest to, in periods of the pattern; b runs along the
            vertical on upright faces.
        solid: three coordinates in the body, in periods.
        rise: -1 at the top of the body to 1 at its foot.
        blur: width of a pixel on the surface, in periods.
    """

    a: Tensor
    b: Tensor
    solid: Vec
    rise: Tensor
    blur: Tensor

    def take(self, index: Tensor) -> Spot:
        x, y, z = (c.index_select(0, index) for c in self.solid)
        flat = (t.index_select(0, index) for t in (self.a, self.b, self.rise, self.blur))
        a, b, rise, blur = flat
        return Spot(a, b, (x, y, z), rise, blur)


def _wave(x: Tensor) -> Tensor:
    """A triangle wave of period 1: distance to the nearest whole number, minus 1/4; -1/4 to 1/4."""
    return (x - (x + 0.5).floor()).abs() - 0.25


def _edge(distance: Tensor, blur: Tensor) -> Tensor:
    """0 where the signed distance is negative, 1 where positive, a ramp one pixel wide between."""
    return (distance / blur + 0.5).clamp(0, 1)


def _plain(spot: Spot) -> Tensor:
    return torch.zeros_like(spot.a)


def _striped(spot: Spot) -> Tensor:
    return _edge(_wave(0.8 * spot.a + 0.6 * spot.b), spot.blur)


def _checked(spot: Spot) -> Tensor:
    a, b = _edge(_wave(0.8 * spot.a), spot.blur) - 0.5, _edge(_wave(0.8 * spot.b), spot.blur) - 0.5
    return 0.5 + 2.0 * a * b


def _dotted(spot: Spot) -> Tensor:
    a, b = _wave(spot.a) + 0.25, _wave(spot.b) + 0.25
    return 1.0 - _edge((a * a + b * b).sqrt() - 0.3, spot.blur)


def _marbled(spot: Spot) -> Tensor:
    x, y, z = spot.solid
    bend = _noise((1.3 * x, 1.3 * y, 1.3 * z)) + 0.5 * _noise((2.9 * x, 2.9 * y, 2.9 * z))
    vein = (_wave(0.4 * x + 0.3 * z + 1.1 * bend) + 0.25) * 2.0
    return vein * vein * (1.0 - spot.blur.clamp(max=1)) + 0.33 * spot.blur.clamp(max=1)


def _ringed(spot: Spot) -> Tensor:
    return _edge(_wave((spot.a * spot.a + spot.b * spot.b).sqrt()), spot.blur)


def _bricked(spot: Spot) -> Tensor:
    row = (spot.b * 1.8).floor()
    along = spot.a * 0.9 + 0.5 * row
    across = (0.5 - ((spot.b * 1.8) - row - 0.5).abs()) / 1.8
    joint = (0.5 - (along - along.floor() - 0.5).abs()) / 0.9
    return 1.0 - _edge(torch.minimum(joint, across) - 0.06, spot.blur)


def _shaded(spot: Spot) -> Tensor:
    return (0.5 + 0.5 * spot.rise).clamp(0, 1)


def _gridded(spot: Spot) -> Tensor:
    line = torch.minimum(_wave(1.1 * spot.a), _wave(1.1 * spot.b)) + 0.25
    return 1.0 - _edge(line - 0.1, spot.blur)


def _mottled(spot: Spot) -> Tensor:
    x, y, z = spot.solid
    noise = _noise((2.4 * x, 2.4 * y, 2.4 * z)) + 0.4 * _noise((5.3 * x, 5.3 * y, 5.3 * z))
    return _edge(noise - 0.7, 0.15 + 2.0 * spot.blur)


class Material(NamedTuple):
    """A pattern and its class name. `pattern` gives the share of the second colour, float32 [F] in [0, 1]."""

    name: str
    pattern: Callable[[Spot], Tensor]


_ALL: tuple[Material, ...] = (
    Material("plain", _plain),
    Material("striped", _striped),
    Material("checked", _checked),
    Material("dotted", _dotted),
    Material("marbled", _marbled),
    Material("ringed", _ringed),
    Material("bricked", _bricked),
    Material("shaded", _shaded),
    Material("gridded", _gridded),
    Material("mottled", _mottled),
)
MATERIALS: tuple[str, ...] = tuple(material.name for material in _ALL)


@functools.cache
def _lattice(device: torch.device) -> Tensor:
    """Fixed random numbers in [0, 1) on a 16 x 16 x 16 grid that repeats, float32 [4096]."""
    number = torch.arange(_CELLS**3, dtype=torch.int64)
    for factor in (0x45D9F3B, 0x119DE1F3):
        number = ((number ^ (number >> 15)) * factor + 0x9E3779B9) & 0x7FFFFFFF
    return ((number >> 7).float() / 2.0**24).to(device)


def _noise(point: Vec) -> Tensor:
    """Smooth noise in [0, 1]: values on the grid, blended between neighbours; float32 [F]."""
    low = [c.floor() for c in point]
    part = [c - f for c, f in zip(point, low, strict=True)]
    part = [f * f * (3.0 - 2.0 * f) for f in part]
    cell = [f.to(torch.int32) for f in low]
    first = [c & (_CELLS - 1) for c in cell]
    second = [(c + 1) & (_CELLS - 1) for c in cell]
    table = _lattice(point[0].device)

    def at(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return table.index_select(0, (x * _CELLS + y) * _CELLS + z)

    def blend(a: Tensor, b: Tensor, f: Tensor) -> Tensor:
        return a + (b - a) * f

    faces = []
    for x in (first[0], second[0]):
        edges = [blend(at(x, y, first[2]), at(x, y, second[2]), part[2]) for y in (first[1], second[1])]
        faces.append(blend(edges[0], edges[1], part[1]))
    return blend(faces[0], faces[1], part[0])


def shares(material: Tensor, spot: Spot) -> Tensor:
    """The share of the second colour at points of mixed materials.

    Args:
        material: integer [F], indices into `MATERIALS`.
        spot: the points.

    Returns:
        float32 [F] in [0, 1].
    """
    share = torch.zeros_like(spot.a)
    for number, entry in enumerate(_ALL):
        index = torch.nonzero(material == number).squeeze(1)
        if entry.pattern is not _plain and len(index):
            share.index_copy_(0, index, entry.pattern(spot.take(index)))
    return share


def clouds(east: Tensor, north: Tensor) -> Tensor:
    """How cloudy the sky is in a direction, float32 [F] in [0, 1]."""
    height = torch.full_like(east, 0.37)
    cover = _noise((1.1 * east, height, 1.1 * north)) + 0.5 * _noise((2.7 * east, height, 2.7 * north))
    return ((cover - 0.75) * 2.5).clamp(0, 1)
