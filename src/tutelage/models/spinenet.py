"""SpineNet (Du et al., CVPR 2020): a backbone whose scale goes down and up, and that gives P3..P7 without a pyramid.

Letters: B images, C channels, H and W pixels of the input. A map of level l has stride 2^l.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from tutelage.models.levels import EPSILON, LEVELS, STRIDES, enlarge, size_at
from tutelage.models.maps import Backbone, FeatureMaps
from tutelage.tasks.norm import Norm2d

Kind = Literal["bottleneck", "residual"]
Name = Annotated[
    Literal["49S", "49", "96", "143", "190"],
    BeforeValidator(lambda name: str(name) if isinstance(name, int) else name),  # as YAML reads 49
]
Activation = Literal["swish", "relu"]


class Block(NamedTuple):
    """One block of the scale-permuted network.

    Attributes:
        level: of its map.
        kind: `bottleneck` (1x1, 3x3, 1x1, four times as wide at its ends) or `residual` (3x3, 3x3).
        parents: the two maps that are resampled and summed into its input. 0 and 1 are those of the stem's two blocks,
            2 is that of the first block here, and so on.
        joined: a map of its level and width that no other block reads; it is added as it is.
    """

    level: int
    kind: Kind
    parents: tuple[int, int]
    joined: int | None = None


BLOCKS = (
    Block(2, "bottleneck", (0, 1)),
    Block(4, "residual", (0, 1)),
    Block(3, "bottleneck", (2, 3)),
    Block(4, "bottleneck", (2, 4)),
    Block(6, "residual", (3, 5)),
    Block(4, "bottleneck", (3, 5)),
    Block(5, "residual", (6, 7)),
    Block(7, "residual", (6, 8)),
    Block(5, "bottleneck", (8, 9)),
    Block(5, "bottleneck", (8, 10)),
    Block(4, "bottleneck", (5, 10)),
    Block(3, "bottleneck", (4, 10)),
    Block(5, "bottleneck", (7, 12), joined=11),
    Block(7, "bottleneck", (5, 14)),
    Block(6, "bottleneck", (12, 14)),
)
"""SpineNet-49 (block by block in the authors' code). The last five give the levels P4, P3, P5, P7 and P6."""

_WIDTHS = {2: 64, 3: 128, 4: 256, 5: 256, 6: 256, 7: 256}
"""Filters of a block by its level: its 3x3 convolutions' channels, before scaling."""


class Scaling(NamedTuple):
    """How a model of the family is made from SpineNet-49 (section 3.4, and the authors' code).

    Attributes:
        width: factor of all filters.
        alpha: factor of the channels that are resampled (alpha in section 3.2).
        repeats: how often each block is repeated.
        endpoints: channels of P3..P7.
    """

    width: float
    alpha: float
    repeats: int
    endpoints: int


SCALINGS: dict[str, Scaling] = {
    "49S": Scaling(0.65, 0.5, 1, 128),
    "49": Scaling(1.0, 0.5, 1, 256),
    "96": Scaling(1.0, 0.5, 2, 256),
    "143": Scaling(1.0, 1.0, 3, 256),
    "190": Scaling(1.3, 1.0, 4, 512),
}


class SpineNet(Backbone):
    """A model of the SpineNet family. It gives P3..P7; a pyramid of kind `none` takes them as they are.

    The width of such a pyramid should be that of the levels: 128 for 49S, 512 for 190, 256 for the others. Sides that
    are no multiples of 128 are rounded up at every halving; maps that are repeated to a finer level are cut where it
    ends. A classifier reads the mean of the five levels' averages.
    """

    kind: Literal["spinenet"] = "spinenet"
    name: Name = "49"
    """Which of the family, by its depth; 49S is a narrower 49."""
    activation: Activation = "swish"
    """`swish` or `relu`. The paper's first tables use ReLU, its best figures and those of Zoph et al. (2020) swish."""
    stochastic_depth: float = Field(0.0, ge=0, lt=1)
    """Probability that the residual branch of the last block is left out for an image while training; the n-th of the
    15 blocks has n / 15 of it. The authors' longest trainings use 0.2."""

    @property
    def pretrained(self) -> bool:
        return False

    def blank(self) -> SpineNet:
        return self

    def build(self, root: Path | None = None) -> FeatureMaps:
        return _ScalePermuted(SCALINGS[self.name], self.activation, self.stochastic_depth)


class _ScalePermuted(FeatureMaps):
    """Stem, the blocks in their order, and a 1x1 convolution on each of the last five."""

    def __init__(self, scaling: Scaling, activation: Activation, drop: float) -> None:
        super().__init__()
        self.strides, self.widths = STRIDES, (scaling.endpoints,) * len(LEVELS)
        self.stem = nn.Sequential(_convolution(3, 64, 7, activation, stride=2), nn.MaxPool2d(3, stride=2, padding=1))
        filters = int(_WIDTHS[2] * scaling.width)
        self.start = nn.ModuleList(
            _group("bottleneck", channels, filters, scaling.repeats, activation, 0.0) for channels in (64, 4 * filters)
        )
        made = [Block(2, "bottleneck", (0, 0))] * 2  # what the stem's two blocks would be here
        nodes = []
        for number, block in enumerate(BLOCKS, 1):
            parents = [made[place] for place in block.parents]
            nodes.append(_Node(block, parents, scaling, activation, drop * number / len(BLOCKS)))
            made.append(block)
        self.nodes = nn.ModuleList(nodes)
        self.places = [2 + max(n for n, block in enumerate(BLOCKS) if block.level == level) for level in LEVELS]
        self.endpoints = nn.ModuleList(
            _convolution(_channels(made[place], scaling), scaling.endpoints, 1, activation) for place in self.places
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _initialise(module)

    def forward(self, images: Tensor) -> list[Tensor]:
        size = (images.shape[2], images.shape[3])
        maps = [self.stem(images)]
        for group in self.start:
            maps.append(group(maps[-1]))
        maps = maps[1:]
        for block, node in zip(BLOCKS, self.nodes, strict=True):
            joined = None if block.joined is None else maps[block.joined]
            maps.append(node([maps[place] for place in block.parents], joined, size_at(block.level, size)))
        return [endpoint(maps[place]) for place, endpoint in zip(self.places, self.endpoints, strict=True)]


class _Node(nn.Module):
    """Two maps resampled and summed, and the blocks behind them."""

    def __init__(
        self, block: Block, parents: list[Block], scaling: Scaling, activation: Activation, drop: float
    ) -> None:
        super().__init__()
        self.resample = nn.ModuleList(Resample(parent, block, scaling, activation) for parent in parents)
        self.activation = _activation(activation)
        filters = int(_WIDTHS[block.level] * scaling.width)
        self.blocks = _group(block.kind, _channels(block, scaling), filters, scaling.repeats, activation, drop)

    def forward(self, parents: list[Tensor], joined: Tensor | None, size: tuple[int, int]) -> Tensor:
        one, other = (resample(m, size) for resample, m in zip(self.resample, parents, strict=True))
        merged = one + other if joined is None else one + other + joined
        blocks: Tensor = self.blocks(self.activation(merged))
        return blocks


class Resample(nn.Module):
    """A parent's map [B,C,h,w] brought to the level and width of a block (section 3.2).

    1x1 convolution to alpha times the parent's filters; then a strided 3x3 convolution and, for every further level, a
    3x3 max pooling of stride 2, or repeated pixels; then a 1x1 convolution to the block's channels.
    """

    def __init__(self, parent: Block, block: Block, scaling: Scaling, activation: Activation) -> None:
        super().__init__()
        channels = _channels(parent, scaling)
        narrow = int((channels // 4 if parent.kind == "bottleneck" else channels) * scaling.alpha)
        self.levels = block.level - parent.level
        self.narrow = _convolution(channels, narrow, 1, activation)
        self.halve = _Halving(narrow, activation) if self.levels > 0 else None
        self.widen = _convolution(narrow, _channels(block, scaling), 1, None)

    def forward(self, source: Tensor, size: tuple[int, int]) -> Tensor:
        """[B,C',h',w'] with h', w' = `size`, that of the block's level."""
        x = self.narrow(source)
        if self.halve is not None:
            x = self.halve(x)
            for _ in range(self.levels - 1):
                x = F.max_pool2d(x, 3, stride=2, padding=1)
        elif self.levels < 0:
            x = enlarge(x, -self.levels, size)
        widened: Tensor = self.widen(x)
        return widened


class _Halving(nn.Module):
    """A strided 3x3 convolution with norm and activation.

    A map that is one pixel wide goes through it in float32: torch's bfloat16 kernel on the CPU leaves the gradient of
    such a convolution partly unwritten (torch 2.15). Levels 5 to 7 of small images are such maps.
    """

    def __init__(self, width: int, activation: Activation) -> None:
        super().__init__()
        self.layers = _convolution(width, width, 3, activation, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[3] > 1 or x.device.type != "cpu":
            halved: Tensor = self.layers(x)
        else:
            with torch.autocast("cpu", enabled=False):
                halved = self.layers(x.to(next(self.parameters()).dtype))
        return halved


class _Residual(nn.Module):
    """A residual block of either kind, [B,C,h,w] to [B,C',h,w]: C' is `filters`, or four times that."""

    def __init__(self, kind: Kind, channels: int, filters: int, activation: Activation, drop: float) -> None:
        super().__init__()
        outputs = 4 * filters if kind == "bottleneck" else filters
        kernels = (1, 3, 1) if kind == "bottleneck" else (3, 3)
        widths = (channels, *(filters,) * (len(kernels) - 1), outputs)
        self.branch = nn.Sequential(
            *(
                _convolution(widths[n], widths[n + 1], kernel, activation if n + 1 < len(kernels) else None)
                for n, kernel in enumerate(kernels)
            )
        )
        self.shortcut = nn.Identity() if channels == outputs else _convolution(channels, outputs, 1, None)
        self.drop = StochasticDepth(drop, "row")
        self.activation = _activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        summed: Tensor = self.activation(self.drop(self.branch(x)) + self.shortcut(x))
        return summed


def _group(kind: Kind, channels: int, filters: int, repeats: int, activation: Activation, drop: float) -> nn.Module:
    """A block, repeated; only the first may change the width."""
    outputs = 4 * filters if kind == "bottleneck" else filters
    blocks = [_Residual(kind, channels, filters, activation, drop)]
    blocks += [_Residual(kind, outputs, filters, activation, drop) for _ in range(repeats - 1)]
    return nn.Sequential(*blocks)


def _channels(block: Block, scaling: Scaling) -> int:
    """C of the map that a block makes."""
    filters = int(_WIDTHS[block.level] * scaling.width)
    return 4 * filters if block.kind == "bottleneck" else filters


def _convolution(
    inputs: int, outputs: int, kernel: int, activation: Activation | None, stride: int = 1
) -> nn.Sequential:
    """Convolution, batch norm and, unless it is None, activation; padded on all sides by half the kernel."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    layers: list[nn.Module] = [conv, Norm2d(outputs, eps=EPSILON)]
    return nn.Sequential(*layers, *([] if activation is None else [_activation(activation)]))


def _activation(name: Activation) -> nn.Module:
    return nn.SiLU() if name == "swish" else nn.ReLU()


@torch.no_grad()
def _initialise(conv: nn.Conv2d) -> None:
    """The authors' initial weights: normal with variance 1 / fan-in, cut at two deviations of the uncut one.

    By the inverse of the distribution, several times as fast as `nn.init.trunc_normal_`, which draws until all fit.
    """
    deviation = conv.weight[0].numel() ** -0.5 / 0.87962566103423978  # the cut takes this factor of it away
    edge = math.erf(2 / 2**0.5)
    conv.weight.uniform_(-edge, edge).erfinv_().mul_(deviation * 2**0.5)
