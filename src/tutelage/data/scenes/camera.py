"""Pictures of scenes with their exact labels: `render(world, seed, images, size)`.

The same (world, seed, image, size) gives the same bits on every CPU, however images are batched: numbers are drawn by
hashing, and pixels are made of additions, multiplications, divisions and square roots one at a time, which
IEEE 754 rounds alike everywhere.

Letters in shapes: B images, S slots, H = W = size pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data.scenes.layout import Layout, lay_out
from tutelage.data.scenes.scene import SKY, Scene, to_scene
from tutelage.data.scenes.shade import View, colour, look
from tutelage.data.scenes.worlds import World

RAYS = {"cpu": 2**17, "cuda": 2**22}
"""Rays at a time: what fits a core's cache; what keeps a GPU busy."""
_SUB = ((-0.375, -0.125), (0.125, -0.375), (0.375, 0.125), (-0.125, 0.375))
"""Where edge pixels are sampled, in pixels from their centre (a square turned by atan(1/2))."""


@dataclass(frozen=True)
class SceneBatch:
    """Images with everything that is known about them. Labels hold at pixel centres.

    Attributes:
        images: uint8 [B,3,H,W], RGB.
        surfaces: uint8 [B,H,W], what each pixel shows: slot 0..S-1, then S ground, S+1 wall, S+2 ceiling, S+3 sky.
        depth: float32 [B,H,W], metres along the camera axis, below `trace.FAR`; 0 for the sky.
        normals: float32 [B,3,H,W], unit normals in camera axes (x right, y down, z ahead), turned towards the camera:
            their product with the pixel's ray is never positive; 0 for the sky.
        focal: float32 [B], focal length in pixels; the optical axis passes the picture's centre, so the ray of pixel
            (column x, row y) is ((x + 0.5 - W/2) / focal, (y + 0.5 - H/2) / focal, 1).
        thing: bool [B,S], slots that hold an object (else a hill, or nothing).
        shape, material: int64 [B,S], indices into `SHAPES` and `MATERIALS`.
    """

    images: Tensor
    surfaces: Tensor
    depth: Tensor
    normals: Tensor
    focal: Tensor
    thing: Tensor
    shape: Tensor
    material: Tensor

    def __len__(self) -> int:
        return len(self.images)


def render(
    world: World,
    seed: int,
    images: Sequence[int] | NDArray[np.int64],
    size: int,
    device: torch.device | str = "cpu",
) -> SceneBatch:
    """Images of a world, by number, in any order.

    Args:
        world: one of `WORLDS`, or your own.
        seed: another seed, other images.
        images: their numbers, from 0; zero of them give empty tensors.
        size: pixels across and down.
        device: where to render and where the result is.
    """
    parts = list(render_parts(world, seed, images, size, device)) or [draw(lay_out(world, seed, []), size, device)]
    if len(parts) == 1:
        return parts[0]
    return SceneBatch(**{name: torch.cat([getattr(p, name) for p in parts]) for name in vars(parts[0])})


def render_parts(
    world: World,
    seed: int,
    images: Sequence[int] | NDArray[np.int64],
    size: int,
    device: torch.device | str = "cpu",
) -> Iterator[SceneBatch]:
    """As `render`, some images at a time."""
    device = torch.device(device)
    numbers = np.asarray(images, dtype=np.int64)
    step = max(1, RAYS.get(device.type, 2**20) // size**2)
    for start in range(0, len(numbers), step):
        yield draw(lay_out(world, seed, numbers[start : start + step]), size, device)


@torch.no_grad()
def draw(layout: Layout, size: int, device: torch.device | str = "cpu") -> SceneBatch:
    """The picture of a layout: all its images at once."""
    device = torch.device(device)
    scene, count = to_scene(layout, device), len(layout)
    pixel = torch.arange(count * size * size, device=device)
    view = _look(scene, pixel, 0.0, 0.0, size)
    shape = (count, size, size)
    surfaces = view.hits.slot.to(torch.uint8).view(shape)
    normals = torch.stack(view.facing.normal).view(3, *shape).transpose(0, 1)
    sky = surfaces == scene.slots + SKY
    normals = normals.masked_fill(sky[:, None], 0.0)
    light = _soften(scene, view.light.view(shape), surfaces).view(-1)
    linear = torch.stack(colour(scene, view, light, size))
    edges = torch.nonzero(_edges(surfaces, normals).view(-1)).squeeze(1)
    if len(edges):
        linear.index_copy_(1, edges, _smooth(scene, edges, size))
    return SceneBatch(
        images=_develop(scene, linear.view(3, *shape).transpose(0, 1)),
        surfaces=surfaces,
        depth=view.hits.depth.view(shape).masked_fill(sky, 0.0),
        normals=normals.contiguous(),
        focal=0.5 * size / scene.image["slope"][0],
        thing=torch.from_numpy(layout.present & layout.thing).to(device),
        shape=torch.from_numpy(layout.shape).to(device),
        material=torch.from_numpy(layout.material).to(device),
    )


def _look(scene: Scene, pixel: Tensor, right: Tensor | float, down: Tensor | float, size: int) -> View:
    """Rays through pixels [M] (numbered through the batch), some way (in pixels) off their centres."""
    row = pixel // (size * size)
    inside = pixel - row * (size * size)
    y = inside // size
    (slope,) = scene.per_image("slope", row)
    unit = slope * (2.0 / size)
    column, line = (inside - y * size).float() + (0.5 - 0.5 * size), y.float() + (0.5 - 0.5 * size)
    return look(scene, row, ((column + right) * unit, (line + down) * unit, torch.ones_like(unit)))


def _smooth(scene: Scene, pixel: Tensor, size: int) -> Tensor:
    """The mean colour [3,M] of four rays a pixel."""
    right, down = (
        torch.tensor(shift, device=pixel.device).repeat_interleave(len(pixel)) for shift in zip(*_SUB, strict=True)
    )
    view = _look(scene, pixel.repeat(len(_SUB)), right, down, size)
    # a highlight must not outshine the other three rays
    rays = torch.stack(colour(scene, view, view.light, size)).clamp(max=1.0).view(3, len(_SUB), -1)
    return ((rays[:, 0] + rays[:, 1]) + (rays[:, 2] + rays[:, 3])) * 0.25


def _shifted(image: Tensor, down: int, right: int) -> Tensor:
    """[..., H, W] moved, with its border repeated."""
    size = image.shape[-1]
    at = torch.arange(size, device=image.device)
    return image.index_select(-2, (at - down).clamp(0, size - 1)).index_select(-1, (at - right).clamp(0, size - 1))


def _edges(surfaces: Tensor, normals: Tensor) -> Tensor:
    """Pixels at the border of a surface or at a crease: bool [B,H,W]."""
    result = torch.zeros_like(surfaces, dtype=torch.bool)
    for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        other = _shifted(normals, down, right)
        bend = normals[:, 0] * other[:, 0] + normals[:, 1] * other[:, 1] + normals[:, 2] * other[:, 2]
        result |= (_shifted(surfaces, down, right) != surfaces) | ((bend < 0.9) & (bend != 0))
    return result


def _soften(scene: Scene, light: Tensor, surfaces: Tensor) -> Tensor:
    """Shadows with blurred borders, each surface for itself; how much is the image's `soft`."""
    blurred, step = light, 1
    while step <= max(1, light.shape[-1] // 64):
        for down, right in ((step, 0), (0, step)):
            total, weight = blurred, torch.ones_like(light)
            for sign in (-1, 1):
                same = (_shifted(surfaces, sign * down, sign * right) == surfaces).float()
                total = total + _shifted(blurred, sign * down, sign * right) * same
                weight = weight + same
            blurred = total / weight
        step *= 2
    return light + (blurred - light) * scene.image["soft"][0][:, None, None]


def _develop(scene: Scene, linear: Tensor) -> Tensor:
    """Lens, tone and sensor: linear RGB [B,3,H,W] to uint8."""
    image = linear * 1.15 / (1.0 + 0.15 * linear)  # bright places keep some drawing
    blur = scene.image["blur"][0][:, None, None, None]
    for down, right in ((0, 1), (1, 0)):
        sides = _shifted(image, down, right) + _shifted(image, -down, -right)
        image = image + (0.25 * sides - 0.5 * image) * blur
    image = image.clamp(0, 1).sqrt() + _grain(scene, image.shape) * scene.image["noise"][0][:, None, None, None]
    return (image * 255.0 + 0.5).floor().clamp(0, 255).to(torch.uint8)


def _grain(scene: Scene, shape: torch.Size) -> Tensor:
    """The sensor's noise [B,3,H,W]: mean 0, deviation 1, a triangular distribution, fixed by image and pixel."""
    channels, height, width = shape[1:]
    pixel = torch.arange(channels * height * width, device=scene.key.device)
    bits = (pixel[None] * 0x9E3779B1 + scene.key[:, None]) & 0x7FFFFFFF
    for factor in (0x2C1B3C6D, 0x297A2D39):  # products of 31-bit numbers stay below 2**62
        bits = (((bits ^ (bits >> 15)) * factor) & 0x3FFFFFFFFFFFFFFF) >> 12 & 0x7FFFFFFF
    two = (bits & 0x3FFF) + ((bits >> 15) & 0x3FFF)
    return ((two.float() + 1.0) * 2.0**-14 - 1.0).view(shape) * 2.4494897
