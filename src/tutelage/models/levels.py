"""The levels of a pyramid, P3..P7: their strides, their sizes, and the way from one to another.

A map of level l has stride 2^l. Sizes are rounded up at every halving: of an input of H x W pixels, whatever these are,
it has ceil(H / 2^l) x ceil(W / 2^l), and its pixel y lies over the pixels from y * 2^k on of the map k levels finer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.models.maps import FeatureMaps
from tutelage.tasks.norm import Norm2d

LEVELS = (3, 4, 5, 6, 7)
STRIDES = tuple(2**level for level in LEVELS)
EPSILON = 1e-3
"""Of batch norms, as in the configurations of Zoph et al. (2020) for SpineNet and NAS-FPN."""


def gives_levels(maps: FeatureMaps) -> bool:
    """Whether a backbone gives just the levels P3..P7, and needs no pyramid."""
    return maps.strides == STRIDES


def pooled(maps: FeatureMaps) -> tuple[int, ...]:
    """Positions of the maps whose averages over their pixels are averaged into the embedding.

    All of them for a backbone that gives P3..P7 at one width (SpineNet's own classifier, "all" in the authors' code,
    averages the levels resized to P3; for sides that are multiples of 128 this is the same), else the last.
    """
    every = len(maps.strides)
    return tuple(range(every)) if gives_levels(maps) and len(set(maps.widths)) == 1 else (every - 1,)


def size_at(level: int, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels of a level's map, of an input of `size`."""
    return -(-size[0] // 2**level), -(-size[1] // 2**level)


def enlarge(coarse: Tensor, levels: int, size: tuple[int, int]) -> Tensor:
    """A map [B,C,h,w] brought `levels` levels down by repeating its pixels, cut to `size`, where the finer map ends."""
    repeated = F.interpolate(coarse, scale_factor=2.0**levels, mode="nearest")
    return repeated[:, :, : size[0], : size[1]]


class Levels(nn.Module):
    """Backbone maps as P3..P7 of one width: by a 1x1 convolution with a batch norm where the width is another.

    Where there are fewer than five, the further levels are made by max pooling (Ghiasi et al., CVPR 2019).
    With five maps of the right width it is the identity, and has no weights.
    """

    def __init__(self, inputs: Sequence[int], widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.inputs = list(inputs)
        self.project = nn.ModuleList(nn.Identity() if own == width else projection(own, width) for own in widths)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        levels = [project(maps[i]) for i, project in zip(self.inputs, self.project, strict=True)]
        while len(levels) < len(LEVELS):
            levels.append(F.max_pool2d(levels[-1], 2, ceil_mode=True))
        return levels


def projection(inputs: int, outputs: int) -> nn.Module:
    """A 1x1 convolution and a batch norm. No bias: the norm takes it out."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), Norm2d(outputs, eps=EPSILON))
