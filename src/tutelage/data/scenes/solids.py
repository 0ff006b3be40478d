"""The shapes of scenes: unit solids with a closed-form ray intersection and surface normal.

Every solid lives in its own frame, y down, standing on y = 1 and reaching up to y = -1, at most 1 wide to each side.
A scene stretches, turns and moves it. All arithmetic is addition, multiplication, division and square roots, which
every processor rounds alike, so that the same scene has the same pixels everywhere.

Letters in shapes: F rays (fragments) of one shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Vec = tuple[Tensor, Tensor, Tensor]
"""Three coordinates, each [F]: kept apart, because processors like long rows."""

INF = float("inf")
_RING = 0.6
"""Inner radius of the ring."""
_TINY = 1e-9


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """The scalar product, summed in a fixed order."""
    total = a[0] * b[0]
    for x, y in zip(a[1:], b[1:], strict=True):
        total = total + x * y
    return total


def along(o: Vec, d: Vec, t: Tensor) -> Vec:
    """The point o + t d."""
    return o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2]


class Span(NamedTuple):
    """Where a ray is inside a convex body: from `enter` to `leave`, both [F]; enter > leave where it misses."""

    enter: Tensor
    leave: Tensor

    def both(self, other: Span) -> Span:
        return Span(torch.maximum(self.enter, other.enter), torch.minimum(self.leave, other.leave))

    def hit(self, start: float) -> Tensor:
        """The ray's parameter where it enters after `start`, else infinity."""
        return self.enter.masked_fill((self.enter > self.leave) | (self.enter <= start), INF)


def _safe(x: Tensor) -> Tensor:
    """x, moved away from zero so that it can divide."""
    return x.masked_fill(x.abs() < _TINY, _TINY)


def _slab(o: Tensor, d: Tensor, half: float = 1.0) -> Span:
    """Between two parallel planes at -half and +half."""
    inverse = 1.0 / _safe(d)
    a, b = (-half - o) * inverse, (half - o) * inverse
    return Span(torch.minimum(a, b), torch.maximum(a, b))


def _below(o: Tensor, d: Tensor, height: float) -> Span:
    """The half-space where the coordinate is at most `height`."""
    t = (height - o) / _safe(d)
    return Span(t.masked_fill(d > 0, -INF), t.masked_fill(d <= 0, INF))


def _round(o: Sequence[Tensor], d: Sequence[Tensor], radius: float = 1.0) -> Span:
    """Inside a sphere (three coordinates) or an endless cylinder (two).

    The origin is first moved to the point nearest the centre: far from a small body the textbook discriminant
    subtracts two large, nearly equal numbers.
    """
    a = dot(d, d).clamp(min=1e-12)
    middle = -dot(o, d) / a
    near = [x + middle * y for x, y in zip(o, d, strict=True)]
    inside = radius * radius - dot(near, near)
    half = (inside.clamp(min=0) / a).sqrt()
    return Span((middle - half).masked_fill(inside <= 0, INF), (middle + half).masked_fill(inside <= 0, -INF))


def _between(t: Tensor, value: Tensor, low: float, high: float, start: float) -> Tensor:
    """t where it comes after `start` and value lies in [low, high], else infinity."""
    return t.masked_fill((t <= start) | (value < low) | (value > high), INF)


def _sphere_hit(o: Vec, d: Vec, start: float) -> Tensor:
    return _round(o, d).hit(start)


def _sphere_normal(q: Vec) -> Vec:
    return q


def _box_hit(o: Vec, d: Vec, start: float) -> Tensor:
    return _slab(o[0], d[0]).both(_slab(o[1], d[1])).both(_slab(o[2], d[2])).hit(start)


def _box_normal(q: Vec) -> Vec:
    x, y, z = (c.abs() for c in q)
    on_y = (y >= x) & (y >= z)
    on_x = (x >= z) & ~on_y
    on_z = ~(on_x | on_y)
    return q[0].sign() * on_x, q[1].sign() * on_y, q[2].sign() * on_z


def _cylinder_hit(o: Vec, d: Vec, start: float) -> Tensor:
    return _round((o[0], o[2]), (d[0], d[2])).both(_slab(o[1], d[1])).hit(start)


def _cylinder_normal(q: Vec) -> Vec:
    cap = q[1] * q[1] > q[0] * q[0] + q[2] * q[2]
    return q[0] * ~cap, q[1] * cap, q[2] * ~cap


def _cone_hit(o: Vec, d: Vec, start: float) -> Tensor:
    # x^2 + z^2 = (k (y + 1))^2 with k = 1/2, apex at y = -1; the mirrored cone above the apex is cut by y >= -1.
    k2, up = 0.25, o[1] + 1.0
    a = _safe(o[0].new_zeros(()) + d[0] * d[0] + d[2] * d[2] - k2 * d[1] * d[1])
    b = o[0] * d[0] + o[2] * d[2] - k2 * up * d[1]
    c = o[0] * o[0] + o[2] * o[2] - k2 * up * up
    square = b * b - a * c
    root = square.clamp(min=0).sqrt()
    best = torch.full_like(a, INF)
    for t in ((-b - root) / a, (-b + root) / a):
        best = torch.minimum(best, _between(t, o[1] + t * d[1], -1.0, 1.0, start).masked_fill(square < 0, INF))
    t = (1.0 - o[1]) / _safe(d[1])
    x, z = o[0] + t * d[0], o[2] + t * d[2]
    return torch.minimum(best, _between(t, x * x + z * z, 0.0, 1.0, start))


def _cone_normal(q: Vec) -> Vec:
    radius = (q[0] * q[0] + q[2] * q[2]).sqrt()
    base = (1.0 - q[1]).abs() < (radius - 0.5 * (q[1] + 1.0)).abs()
    return q[0] * ~base, torch.where(base, 1.0, -0.5 * radius), q[2] * ~base


def _capsule_hit(o: Vec, d: Vec, start: float) -> Tensor:
    side = _round((o[0], o[2]), (d[0], d[2])).hit(start)
    best = _between(side, o[1] + side.clamp(max=1e6) * d[1], -0.5, 0.5, start)
    for centre in (-0.5, 0.5):
        cap = _round((o[0], (o[1] - centre) * 2.0, o[2]), (d[0], d[1] * 2.0, d[2])).hit(start)
        outside = (o[1] + cap.clamp(max=1e6) * d[1]) * (centre * 2.0)
        best = torch.minimum(best, _between(cap, outside, 0.5, 1.0, start))
    return best


def _capsule_normal(q: Vec) -> Vec:
    return q[0], (q[1] - q[1].clamp(-0.5, 0.5)) * 4.0, q[2]


def _pyramid_hit(o: Vec, d: Vec, start: float) -> Tensor:
    span = _below(o[1], d[1], 1.0)
    for side in (0, 2):
        for sign in (1.0, -1.0):
            span = span.both(_below(sign * o[side] - 0.5 * o[1], sign * d[side] - 0.5 * d[1], 0.5))
    return span.hit(start)


def _pyramid_normal(q: Vec) -> Vec:
    x, z = q[0].abs(), q[2].abs()
    base = (1.0 - q[1]).abs() < (torch.maximum(x, z) - 0.5 * (q[1] + 1.0)).abs()
    on_x, on_z = (x >= z) & ~base, (x < z) & ~base
    return q[0].sign() * on_x, torch.where(base, 1.0, -0.5), q[2].sign() * on_z


def _roof_hit(o: Vec, d: Vec, start: float) -> Tensor:
    span = _below(o[1], d[1], 1.0).both(_slab(o[2], d[2]))
    for sign in (1.0, -1.0):
        span = span.both(_below(sign * o[0] - 0.5 * o[1], sign * d[0] - 0.5 * d[1], 0.5))
    return span.hit(start)


def _roof_normal(q: Vec) -> Vec:
    base, end = (1.0 - q[1]).abs(), (1.0 - q[2].abs()).abs()
    slope = (q[0].abs() - 0.5 * (q[1] + 1.0)).abs()
    on_base = (base < end) & (base < slope)
    on_end = (end < slope) & ~on_base
    on_slope = ~(on_base | on_end)
    return q[0].sign() * on_slope, on_base.to(q[0].dtype) - 0.5 * on_slope, q[2].sign() * on_end


def _ring_hit(o: Vec, d: Vec, start: float) -> Tensor:
    outer, inner = (_round((o[0], o[2]), (d[0], d[2]), r) for r in (1.0, _RING))
    best = torch.full_like(o[0], INF)
    for t in (outer.enter, inner.leave):  # the outer wall from outside, the inner wall from inside
        seen = t.masked_fill(t.abs() == INF, 1e6)
        best = torch.minimum(best, _between(seen, o[1] + seen * d[1], -1.0, 1.0, start))
    for height in (-1.0, 1.0):
        t = (height - o[1]) / _safe(d[1])
        x, z = o[0] + t * d[0], o[2] + t * d[2]
        best = torch.minimum(best, _between(t, x * x + z * z, _RING * _RING, 1.0, start))
    return best.masked_fill(best >= 1e6, INF)


def _ring_normal(q: Vec) -> Vec:
    radius = (q[0] * q[0] + q[2] * q[2]).sqrt()
    cap = (1.0 - q[1].abs()).abs() < torch.minimum((1.0 - radius).abs(), (radius - _RING).abs())
    outward = torch.where(radius < 0.5 * (1.0 + _RING), -1.0, 1.0) * ~cap
    return q[0] * outward, q[1].sign() * cap, q[2] * outward


def _dome_hit(o: Vec, d: Vec, start: float) -> Tensor:
    ball = _round((o[0], 0.5 * (o[1] - 1.0), o[2]), (d[0], 0.5 * d[1], d[2]))
    return ball.both(_below(o[1], d[1], 1.0)).hit(start)


def _dome_normal(q: Vec) -> Vec:
    y = 0.5 * (q[1] - 1.0)
    base = (1.0 - q[1]).abs() < (1.0 - (q[0] * q[0] + y * y + q[2] * q[2]).sqrt()).abs()
    return q[0] * ~base, torch.where(base, 1.0, 0.5 * y), q[2] * ~base


def _gem_hit(o: Vec, d: Vec, start: float) -> Tensor:
    span = Span(torch.full_like(o[0], -INF), torch.full_like(o[0], INF))
    for y, z in ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)):
        span = span.both(_slab(o[0] + y * o[1] + z * o[2], d[0] + y * d[1] + z * d[2]))
    return span.hit(start)


def _gem_normal(q: Vec) -> Vec:
    return q[0].sign(), q[1].sign(), q[2].sign()


class Solid(NamedTuple):
    """One shape.

    Attributes:
        name: its class name.
        hit: (origin, direction, start) -> the smallest ray parameter above `start` at which the ray meets the
            surface, [F]; infinity where it does not.
        normal: the surface's outward direction at a point of the surface, not of unit length.
        flat_top: whether another solid can stand on it.
        tall: height over width at which it looks like itself, low and high.
    """

    name: str
    hit: Callable[[Vec, Vec, float], Tensor]
    normal: Callable[[Vec], Vec]
    flat_top: bool
    tall: tuple[float, float]


SOLIDS: tuple[Solid, ...] = (
    Solid("ball", _sphere_hit, _sphere_normal, False, (0.8, 1.1)),
    Solid("box", _box_hit, _box_normal, True, (0.7, 1.4)),
    Solid("cylinder", _cylinder_hit, _cylinder_normal, True, (0.8, 1.6)),
    Solid("cone", _cone_hit, _cone_normal, False, (1.1, 1.8)),
    Solid("capsule", _capsule_hit, _capsule_normal, False, (1.7, 2.3)),
    Solid("pyramid", _pyramid_hit, _pyramid_normal, False, (0.8, 1.4)),
    Solid("roof", _roof_hit, _roof_normal, False, (0.7, 1.2)),
    Solid("ring", _ring_hit, _ring_normal, True, (0.3, 0.7)),
    Solid("dome", _dome_hit, _dome_normal, False, (0.4, 0.65)),
    Solid("gem", _gem_hit, _gem_normal, False, (1.0, 1.5)),
)
SHAPES: tuple[str, ...] = tuple(solid.name for solid in SOLIDS)


def outline() -> NDArray[np.float64]:
    """Points on the convex hull of each unit solid, [shapes, P, 3]: how far down a turned solid reaches."""
    angle = np.arange(12) * (2 * np.pi / 12)
    circle = np.stack([np.cos(angle), np.zeros(12), np.sin(angle)], 1)

    def level(y: float, radius: float) -> NDArray[np.float64]:
        return circle * radius + np.array([0.0, y, 0.0])

    square = np.array([[x, 0.0, z] for x in (-1.0, 1.0) for z in (-1.0, 1.0)])
    apex, up = np.array([[0.0, -1.0, 0.0]]), np.array([0.0, 1.0, 0.0])
    half = np.sqrt(0.5)
    ball = np.concatenate([apex, -apex, level(0, 1), level(-half, half), level(half, half)])
    drum = np.concatenate([level(-1, 1), level(1, 1)])
    points = {
        "ball": ball,
        "box": np.concatenate([square - up, square + up]),
        "cylinder": drum,
        "cone": np.concatenate([apex, level(1, 1)]),
        "capsule": np.concatenate([apex, -apex, level(-0.5, 1), level(0.5, 1)]),
        "pyramid": np.concatenate([apex, square + up]),
        "roof": np.concatenate([square * [0, 0, 1] - up, square + up]),
        "ring": drum,
        "dome": np.concatenate([apex, level(1, 1), level(0, 0.866)]),
        "gem": np.concatenate([apex, -apex, circle[::3]]),
    }
    most = max(len(p) for p in points.values())
    return np.stack([np.resize(points[name], (most, 3)) for name in SHAPES])
