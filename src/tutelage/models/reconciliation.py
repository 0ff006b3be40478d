"""The layers that join the sub-backbones of an X-Learner (He et al., ECCV 2022, section 3.2, equation 2).

Letters: t the task that receives, k another task, i and j levels (positions of maps) of D, E what a sub-backbone's own
layers give at a level, R what task t receives of task k there. B images, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.models.maps import FeatureMaps
from tutelage.part import Part


class Reconciliation(Part):
    """The layers that join sub-backbones. All are plain convolutions, linear, with no norm and no activation."""

    direction: Literal["deeper", "shallower"] = "deeper"
    """Where a level's features go besides the same level: to all deeper ones (equation 2), or to all shallower ones
    (X-Learner_t, section 3.4)."""
    kernel: Literal[1, 3] = 1
    """Side of the kernels that carry features on from level to level: strided ones to deeper levels (gamma_a), ones
    behind an upsampling to shallower levels (gamma_c). Those between tasks at one level (gamma_b) are always 1x1. The
    paper leaves it open."""

    initial: Literal["xavier", "zero"] = "xavier"
    """The first weights between tasks (gamma_b): `xavier`, uniform after Glorot and Bengio (2010), as published
    (section 4.1); `zero` (ours): when tasks are joined, each gives what it gave alone, and takes in of the others what
    its loss asks for. Those from level to level are always as published."""

    def link(self, source: FeatureMaps, target: FeatureMaps) -> Link:
        """All the layers from one sub-backbone to another, of the same strides."""
        link = (Deeper if self.direction == "deeper" else Shallower)(source, target, self.kernel)
        if self.initial == "zero":
            for layer in link.across:
                nn.init.zeros_(layer.get_parameter("weight"))
        return link


class Link(nn.Module):
    """The reconciliation layers from one sub-backbone (k) to another (t), of all levels.

    In equation 2, gamma_{j -> i} is gamma_b at level j and, behind it, one gamma_a (or gamma_c) a step from level j to
    level i. Here one gamma_b a level and one gamma_a a step serve all of these (the paper does not say). They are
    linear, so the sum over j at level i follows from that of the level before:

        R_i = gamma_b(E_i) + gamma_a(R_{i-1})

    in D steps and not in D (D + 1) / 2. It holds with biases in gamma_b, which travel on with the features, and none in
    gamma_a: the recursion would add one a level, the sum one a term.

    Attributes:
        across: gamma_b of every level, 1x1.
        along: gamma_a, number i from level i to level i + 1; or gamma_c, number i from level i + 1 to level i.
    """

    def __init__(self, source: FeatureMaps, target: FeatureMaps, along: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        self.across = nn.ModuleList(nn.Conv2d(k, t, 1) for k, t in zip(source.widths, target.widths, strict=True))
        self.along = nn.ModuleList(along)
        for layer in (*self.across, *self.along):
            assert isinstance(layer, nn.Conv2d)
            nn.init.xavier_uniform_(layer.weight)  # Glorot and Bengio (2010), as in section 4.1
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class Deeper(Link):
    """Layers from each level to the same and all deeper ones; gamma_a is as strided as the levels lie apart."""

    def __init__(self, source: FeatureMaps, target: FeatureMaps, kernel: int) -> None:
        ratios = [coarse // fine for fine, coarse in pairwise(target.strides)]
        # with this padding a map of n pixels becomes one of ceil(n / stride) pixels, whatever the kernel
        layers = [
            nn.Conv2d(a, b, kernel, stride=ratio, padding=kernel // 2, bias=False)
            for (a, b), ratio in zip(pairwise(target.widths), ratios, strict=True)
        ]
        super().__init__(source, target, layers)

    def forward(self, level: int, own: Tensor, before: Tensor | None) -> Tensor:
        """R_i from E_i of task k [B,C,h,w] and R_{i-1}, which is None at level 0."""
        here: Tensor = self.across[level](own)
        return here if before is None else here + fitted(self.along[level - 1](before), here)


class Shallower(Link):
    """Layers from each level to the same and all shallower ones; gamma_c repeats pixels, then convolves."""

    def __init__(self, source: FeatureMaps, target: FeatureMaps, kernel: int) -> None:
        widths = pairwise(target.widths)
        super().__init__(source, target, [nn.Conv2d(b, a, kernel, padding=kernel // 2, bias=False) for a, b in widths])

    def forward(self, own: Sequence[Tensor]) -> list[Tensor]:
        """R of every level from E of every level of task k, [B,C,h,w] each."""
        received: list[Tensor] = []
        for level in reversed(range(len(own))):
            here = self.across[level](own[level])
            if received:
                here = here + self.along[level](F.interpolate(received[0], size=here.shape[2:], mode="nearest"))
            received.insert(0, here)
        return received


def fitted(maps: Tensor, like: Tensor) -> Tensor:
    """A map at the size of another: they differ by a pixel where a backbone rounds down and not up."""
    if maps.shape[2:] == like.shape[2:]:
        return maps
    return F.interpolate(maps, size=like.shape[2:], mode="bilinear", align_corners=False)
