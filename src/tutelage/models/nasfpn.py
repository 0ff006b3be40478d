"""NAS-FPN (Ghiasi et al., CVPR 2019): a pyramid of repeated cells, each of seven merges that a search has found.

Letters: B images, C pyramid width. Maps in the docstrings are [B,C,h,w] of one width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.models.levels import EPSILON, LEVELS, enlarge
from tutelage.tasks.norm import Norm2d


class Merge(NamedTuple):
    """One merging cell.

    Attributes:
        level: of the map it makes.
        rule: `sum`, or `attention` (the paper's global pooling): the coarser map plus the finer one, whose channels are
            weighted by the sigmoid of the coarser one's greatest value.
        parents: the two maps it merges. 0 to 4 are the cell's inputs P3..P7, 5 is what the first merge made, and so on.
        joined: an input of its level that no merge reads, which is added.
    """

    level: int
    rule: Literal["sum", "attention"]
    parents: tuple[int, int]
    joined: int | None = None


CELL = (
    Merge(4, "attention", (1, 3)),
    Merge(4, "sum", (1, 5)),
    Merge(3, "sum", (0, 6)),
    Merge(4, "sum", (6, 7)),
    Merge(5, "attention", (7, 8), joined=2),
    Merge(7, "attention", (6, 9), joined=4),
    Merge(6, "attention", (9, 10)),
)
"""The published cell (with 7 merges, as in the authors' code). Its last five merges are its outputs."""

_PLACES = (*LEVELS, *(merge.level for merge in CELL))
"""The level of every map of a cell, inputs first."""
_OUTPUTS = sorted(range(len(_PLACES) - len(LEVELS), len(_PLACES)), key=lambda place: _PLACES[place])


class NASFPN(nn.Module):
    """P3..P7 from P3..P7, through cells one after the other.

    Args:
        entry: makes the first cell's levels of the backbone's maps.
        inputs: positions of the maps that `entry` reads.
        width: C.
        repeats: how many cells.
        separable: whether the convolutions are depthwise separable, as in the segmentation of Zoph et al. (2020).
    """

    def __init__(self, entry: nn.Module, inputs: Sequence[int], width: int, repeats: int, separable: bool) -> None:
        super().__init__()
        self.entry, self.inputs = entry, list(inputs)
        self.cells = nn.ModuleList(_Cell(width, separable) for _ in range(repeats))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        levels: list[Tensor] = self.entry(maps)
        for cell in self.cells:
            levels = cell(levels)
        return levels


class _Cell(nn.Module):
    """The seven merges. Each is followed by ReLU, a 3x3 convolution and a batch norm, in this order."""

    def __init__(self, width: int, separable: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_convolution(width, separable) for _ in CELL)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        sizes = {level: (m.shape[2], m.shape[3]) for level, m in zip(LEVELS, levels, strict=True)}
        maps = list(levels)
        for merge, conv in zip(CELL, self.convs, strict=True):
            # The coarser first; of two of one level, the first.
            coarse, fine = sorted(merge.parents, key=lambda place: -_PLACES[place])
            one, other = (resample(maps[p], _PLACES[p], merge.level, sizes[merge.level]) for p in (coarse, fine))
            merged = one + (other if merge.rule == "sum" else other * one.amax((2, 3), keepdim=True).sigmoid())
            if merge.joined is not None:
                merged = merged + maps[merge.joined]
            maps.append(conv(F.relu(merged)))
        return [maps[place] for place in _OUTPUTS]


def resample(source: Tensor, level: int, target: int, size: tuple[int, int]) -> Tensor:
    """A map of one level brought to another: by max pooling, or by repeating its pixels.

    Args:
        source: the map.
        level, target: its level, and the one it is brought to.
        size: height and width of the result in pixels: ceil(H / 2^target) x ceil(W / 2^target) of an H x W input.
    """
    if level < target:
        return F.max_pool2d(source, 2 ** (target - level), ceil_mode=True)
    return source if level == target else enlarge(source, level - target, size)


def _convolution(width: int, separable: bool) -> nn.Module:
    """3x3 convolution and batch norm. No bias, which the norm would take out."""
    norm = Norm2d(width, eps=EPSILON)
    if not separable:
        return nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), norm)
    depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
    return nn.Sequential(depthwise, nn.Conv2d(width, width, 1, bias=False), norm)
