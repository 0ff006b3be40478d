"""Masks as hasty people draw them: borders that are off, objects that are taken for something else.

They stand for labels such as the augmented set of Pascal VOC, which is coarser than the set it adds to (Zoph et al.,
NeurIPS 2020, section 5, table 8).

Letters in shapes: B images, S slots, H = W = size pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from tutelage.data.scenes.camera import SceneBatch
from tutelage.data.scenes.labels import mask_classes, things
from tutelage.data.scenes.worlds import World
from tutelage.part import Part


class LabelNoise(Part):
    """How wrong the masks of a source are. An image's mistakes depend on the source's seed and its number alone."""

    borders: int = Field(default=0, ge=0, le=64)
    """Pixels: every object is drawn too large or too small all round, by a number from 0 to this, each way and each
    number alike. Where it is too small, the mask shows what is next to it."""
    mistaken: float = Field(default=0.0, ge=0, le=1)
    """The share of objects that are given another class: one of the world's other classes of objects, all alike."""


def noisy_masks(world: World, batch: SceneBatch, noise: LabelNoise, seed: int, numbers: Sequence[int]) -> Tensor:
    """The class of every pixel in the world's mask space, with mistakes: uint8 [B,H,W], on the CPU.

    Args:
        world, batch: what is shown.
        noise: how wrong the masks are.
        seed: of the source.
        numbers: of the images in their world, B of them.
    """
    classes, known = mask_classes(world, batch).cpu(), things(world)
    surfaces = batch.surfaces.cpu()
    drawn = []
    for row, number in enumerate(numbers):
        # a line of numbers an object: which objects there are does not change what the first ones draw
        chance = np.random.default_rng((_STREAM, seed, number)).random((batch.shape.shape[1], 3))
        table, here = classes[row].clone(), batch.thing[row].cpu().nonzero()[:, 0].tolist()
        for slot in here:
            if chance[slot, 0] < noise.mistaken and len(known) > 1:
                table[slot] = _another(int(table[slot]), known, chance[slot, 1])
        drawn.append(table[_redrawn(surfaces[row], here, chance[:, 2], noise.borders).long()])
    return torch.stack(drawn) if drawn else surfaces.clone()


_STREAM = 8
"""Tells these numbers from others that are drawn with the same seed."""


def _another(own: int, known: range, chance: float) -> int:
    """One of the other classes, all alike."""
    return known[(own - known.start + 1 + int(chance * (len(known) - 1))) % len(known)]


def _redrawn(surfaces: Tensor, slots: Sequence[int], chance: NDArray[np.float64], most: int) -> Tensor:
    """Surfaces uint8 [H,W] with the objects in `slots` grown or shrunk, later ones over earlier ones."""
    result = surfaces.clone()
    for slot in slots:
        by = int(chance[slot] * (2 * most + 1)) - most
        region = surfaces == slot
        if by > 0:
            result[_grown(region, by)] = slot
        elif by < 0:
            lost = region & _grown(~region, -by)
            result[lost] = _around(surfaces, region, -by)[lost]
    return result


def _grown(region: Tensor, by: int) -> Tensor:
    """bool [H,W]: the pixels that lie at most `by` rows and columns from a region."""
    return F.max_pool2d(region[None].float(), 2 * by + 1, stride=1, padding=by)[0] > 0


def _around(surfaces: Tensor, region: Tensor, by: int) -> Tensor:
    """What lies around a region, carried `by` pixels into it: uint8 [H,W]. Of several neighbours, that of the highest
    number, so that ground and walls go before other objects."""
    found = torch.where(region, 0, surfaces.int() + 1).float()
    for _ in range(by):
        spread = F.max_pool2d(found[None], 3, stride=1, padding=1)[0]
        found = torch.where(found > 0, found, spread)
    return (found - 1).clamp(min=0).to(torch.uint8)
