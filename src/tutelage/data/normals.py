"""Surface normals derived from a depth map and a pinhole camera.

A plane n . X = d is seen at depth z along the ray r = ((u - cx) / fx, (v - cy) / fy, 1), X = z r, so its inverse
depth 1 / z = (n / d) . r is linear in the pixel's position. So a plane is fitted to inverse depth over a square window
by least squares: exact for planes, and right for depth cameras, whose noise is even in inverse depth. All windows of
an image are solved at once from sums over boxes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field as Option

from tutelage.data.maps import Bools, Floats
from tutelage.errors import UserError
from tutelage.part import Part

Doubles = NDArray[np.float64]

_EMPTY = 0.6  # share of a window that must be measured
_ROUGH = 0.015  # root mean square residual over inverse depth: above, the window is no plane


class Camera(Part):
    """A pinhole camera; all in pixels of the depth map, the centre of the top left pixel being (0, 0)."""

    fx: Annotated[float, Option(gt=0)]
    fy: Annotated[float, Option(gt=0)]
    cx: float
    cy: float

    @classmethod
    def read(cls, path: Path, name: str) -> Camera:
        """From a JSON object with fx, fy, cx and cy; other keys are left alone. Raises UserError."""
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{key: plain[key] for key in ("fx", "fy", "cx", "cy")})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"source '{name}': this is no camera: {type(error).__name__} {error}",
                file=path,
                fix='a JSON object {"fx": ..., "fy": ..., "cx": ..., "cy": ...} in pixels',
            ) from None


def normals_from_depth(
    metres: Floats, valid: Bools, camera: Camera, window: int = 9, jump: float = 0.05
) -> tuple[Floats, Bools]:
    """Unit normals that face the camera, in camera axes x right, y down, z into the scene.

    Args:
        metres: float32 [H,W], depth along the optical axis (not along the ray).
        valid: bool [H,W].
        camera: of that depth map.
        window: pixels of the window's side, odd.
        jump: neighbours whose depths differ by more than this share of the nearer one lie on two surfaces; a window
            that holds such a pair gives no normal.

    Returns:
        Normals float32 [3,H,W], 0 where not valid; and valid bool [H,W]: depth measured here and in most of the window,
        no jump inside it, and the window close to a plane.
    """
    half = window // 2
    height, width = metres.shape
    weight = valid.astype(np.float64)
    inverse = np.divide(1.0, metres, out=np.zeros((height, width)), where=valid)
    v, u = np.mgrid[:height, :width].astype(np.float64)
    u -= camera.cx
    v -= camera.cy
    layers = np.stack([weight, u * weight, v * weight, inverse, u * inverse, v * inverse, inverse * inverse])
    layers = np.concatenate([layers, np.stack([u * u, u * v, v * v]) * weight])
    count, su, sv, sq, suq, svq, sqq, suu, suv, svv = _box_sums(layers, half)
    n = np.maximum(count, 1)
    mu, mv, mq = su / n, sv / n, sq / n
    cuu, cuv, cvv = suu / n - mu * mu, suv / n - mu * mv, svv / n - mv * mv
    cuq, cvq, cqq = suq / n - mu * mq, svq / n - mv * mq, sqq / n - mq * mq
    determinant = cuu * cvv - cuv * cuv
    spread = np.where(determinant > 1e-3, determinant, 1.0)  # pixels on one line span no plane
    alpha = (cuq * cvv - cvq * cuv) / spread
    beta = (cvq * cuu - cuq * cuv) / spread
    residual = np.sqrt(np.maximum(cqq - alpha * cuq - beta * cvq, 0))
    x, y = alpha * camera.fx, beta * camera.fy
    z = mq - alpha * mu - beta * mv
    length = np.sqrt(x * x + y * y + z * z)
    full = _box_sums(np.ones((1, height, width)), half)[0]
    good = valid & (determinant > 1e-3) & (count >= _EMPTY * full) & (length > 0)
    good &= residual <= _ROUGH * mq
    good &= _box_sums(_jumps(metres, valid, jump)[None], half)[0] < 0.5
    # (x, y, z) points along the ray, away from the camera (inverse depth is positive): the surface faces the other way.
    unit = -np.stack([x, y, z]) / np.where(good, length, 1.0)
    return np.where(good, unit, 0.0).astype(np.float32), good


def _jumps(metres: Floats, valid: Bools, jump: float) -> Doubles:
    """1 at pixels that differ too much from their right or lower neighbour, [H,W]."""
    edges = np.zeros(metres.shape)
    for a, b in (
        ((slice(None), slice(None, -1)), (slice(None), slice(1, None))),
        ((slice(None, -1),), (slice(1, None),)),
    ):
        near = np.minimum(metres[a], metres[b])
        edge = valid[a] & valid[b] & (np.abs(metres[a] - metres[b]) > jump * near)
        edges[a] += edge
        edges[b] += edge
    return edges


def _box_sums(layers: Doubles, half: int) -> Doubles:
    """Sums over the (2 half + 1)^2 pixels around each, fewer at the border; [L,H,W] to [L,H,W]."""
    for axis in (1, 2):
        size = layers.shape[axis]
        zero = np.zeros_like(layers.take([0], axis))
        total = np.concatenate([zero, np.cumsum(layers, axis)], axis)
        middle = np.arange(size)
        layers = total.take(np.minimum(middle + half + 1, size), axis) - total.take(np.maximum(middle - half, 0), axis)
    return layers
