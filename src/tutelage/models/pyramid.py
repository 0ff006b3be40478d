"""From backbone maps to the levels P3..P7 that detection reads, and the fused map that pixel tasks read.

Letters: B images, C pyramid width, H and W pixels of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from tutelage.errors import UserError
from tutelage.models.levels import Levels, gives_levels
from tutelage.models.maps import FeatureMaps
from tutelage.models.nasfpn import NASFPN
from tutelage.part import Part
from tutelage.tasks.norm import Norm2d
from tutelage.tasks.task import FUSED_STRIDE


class Pyramid(Part):
    """The feature pyramid with levels P3..P7: FPN as MuST section 3.2 uses it, or NAS-FPN as Zoph et al. (2020) do."""

    kind: Literal["fpn", "nas-fpn", "none"] | None = None
    """`fpn` (Lin et al., CVPR 2017), `nas-fpn` (Ghiasi et al., CVPR 2019), or `none`, for a backbone that gives P3..P7
    itself (SpineNet). Left out: `none` for such a backbone, `fpn` for every other."""
    width: int = Field(256, ge=1)
    """Channels of every level. With `none`, levels of another width go through a 1x1 convolution."""
    repeats: int = Field(7, ge=1)
    """Of NAS-FPN: how many cells there are, one after the other."""
    separable: bool = False
    """Of NAS-FPN: whether its convolutions are depthwise separable."""

    @model_validator(mode="after")
    def _of_its_kind(self) -> Pyramid:
        if self.kind != "nas-fpn" and (self.separable or self.repeats != type(self).model_fields["repeats"].default):
            raise ValueError("`repeats` and `separable` are for `kind: nas-fpn` only")
        return self

    def build(self, maps: FeatureMaps) -> FPN | SimplePyramid | NASFPN | Levels:
        """A module from the backbone's maps to a list of five levels [B,C,H/s,W/s], s = 8, 16, 32, 64, 128.

        Its `inputs` are the positions of the maps that it reads.

        Raises:
            UserError: the backbone's maps have neither the strides 8, 16 and 32 nor one single stride of 8, 14, 16 or
                32, or `kind` is `none` and they are not P3..P7.
        """
        kind = self.kind or ("none" if gives_levels(maps) else "fpn")
        if kind == "none" and not gives_levels(maps):
            raise UserError(
                f"this backbone gives maps of strides {', '.join(map(str, maps.strides))}, not the levels P3..P7",
                field="pyramid.kind",
                value="none",
                fix="take `fpn` or `nas-fpn`, or a backbone of kind `spinenet`",
            )
        if kind == "fpn":
            return self._fpn(maps)
        if len(maps.strides) == 1:
            entry: FPN | SimplePyramid | Levels = self._fpn(maps)
        else:
            inputs = range(len(maps.strides)) if gives_levels(maps) else _positions(maps)
            entry = Levels(inputs, [maps.widths[i] for i in inputs], self.width)
        return entry if kind == "none" else NASFPN(entry, entry.inputs, self.width, self.repeats, self.separable)

    def _fpn(self, maps: FeatureMaps) -> FPN | SimplePyramid:
        """FPN, or what stands for it where there is one map alone."""
        if len(maps.strides) == 1:
            return SimplePyramid(maps.strides[0], maps.widths[0], self.width)
        inputs = _positions(maps)
        return FPN(inputs, [maps.widths[i] for i in inputs], self.width)


def _positions(maps: FeatureMaps) -> list[int]:
    """Where the maps of strides 8, 16 and 32 are; raises UserError where one is not."""
    if not {8, 16, 32} <= set(maps.strides):
        raise UserError(
            "this backbone has neither the strides 8, 16 and 32 nor one single stride",
            field="backbone",
            value=maps.strides,
            fix="use another",
        )
    return [maps.strides.index(s) for s in (8, 16, 32)]


class FPN(nn.Module):
    """Top-down pyramid over C3..C5, two further levels by strided convolutions, and a batch norm on each level.

    The norms without activation after every level follow the authors' public detection code.
    """

    def __init__(self, inputs: list[int], widths: list[int], width: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.fpn = FeaturePyramidNetwork(widths, width)
        self.coarse = CoarseLevels(width)
        self.norms = nn.ModuleList(Norm2d(width) for _ in range(5))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        levels = list(self.fpn({str(i): maps[i] for i in self.inputs}).values())
        levels += self.coarse(levels[-1])
        return [norm(level) for norm, level in zip(self.norms, levels, strict=True)]


class CoarseLevels(nn.Module):
    """P6 and P7 from P5 by strided 3x3 convolutions, with a ReLU before the second.

    Always in float32: torch's bfloat16 convolution on the CPU leaves the gradient of a strided 3x3 kernel partly
    unwritten when its input is a single pixel (torch 2.15), as P6 of a 64 px image is. These maps are tiny.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, p5: Tensor) -> list[Tensor]:
        with torch.autocast(p5.device.type, enabled=False):
            p6 = self.p6(p5.float())
            return [p6, self.p7(F.relu(p6))]


class SimplePyramid(nn.Module):
    """A pyramid from one map, for plain vision transformers (after Li et al., ECCV 2022, ViTDet).

    The map is brought to strides 8, 16 and 32 by transposed convolutions or max pooling, projected, and smoothed.

    Raises:
        UserError: a stride other than 8, 14, 16 and 32.
    """

    def __init__(self, stride: int, channels: int, width: int) -> None:
        super().__init__()
        if stride not in (8, 14, 16, 32):
            raise UserError(
                "a pyramid cannot be made of one map of this stride",
                field="backbone",
                value=stride,
                fix="use a backbone with a stride (a transformer's patch) of 8, 14, 16 or 32 pixels",
            )
        # Patches of 14 pixels are taken for such of 16 first, and the levels then resized: heads rely on strides 8..128
        base = 16 if stride == 14 else stride
        self.inputs, self.stride = [0], stride
        self.rescale = nn.ModuleList(_rescale(base / target, channels) for target in (8, 16, 32))
        self.project = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, width, 1, bias=False),
                Norm2d(width),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                Norm2d(width),
            )
            for _ in range(3)
        )
        self.coarse = CoarseLevels(width)
        self.norms = nn.ModuleList(Norm2d(width) for _ in range(2))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        levels = [project(rescale(maps[0])) for rescale, project in zip(self.rescale, self.project, strict=True)]
        if self.stride == 14:
            pixels = [side * 14 for side in maps[0].shape[2:]]
            levels = [_resized(level, pixels, stride) for level, stride in zip(levels, (8, 16, 32), strict=True)]
        coarse = self.coarse(levels[-1])
        return [*levels, *(norm(level) for norm, level in zip(self.norms, coarse, strict=True))]


def _rescale(factor: float, channels: int) -> nn.Module:
    """A module that makes a map `factor` times as large (4, 2, 1, 1/2 or 1/4)."""
    if factor == 1:
        return nn.Identity()
    if factor < 1:
        return nn.MaxPool2d(round(1 / factor), ceil_mode=True)
    if factor == 2:
        return nn.ConvTranspose2d(channels, channels, 2, stride=2)
    return nn.Sequential(
        nn.ConvTranspose2d(channels, channels, 2, stride=2),
        Norm2d(channels),
        nn.GELU(),
        nn.ConvTranspose2d(channels, channels, 2, stride=2),
    )


def fuse(levels: list[Tensor], size: tuple[int, int]) -> Tensor:
    """All levels, each resized bilinearly to stride 4, summed without weights (MuST section 3.2; no parameters).

    Args:
        levels: maps [B,C,h,w] of any sizes.
        size: (H, W) of the input.
    """
    total = _resized(levels[0], size, FUSED_STRIDE)
    for level in levels[1:]:
        total = total + _resized(level, size, FUSED_STRIDE)
    return total


def _resized(level: Tensor, size: Sequence[int], stride: int) -> Tensor:
    """A map, resized bilinearly to a stride of an input of `size` (H, W), rounded up."""
    return F.interpolate(level, size=[-(-side // stride) for side in size], mode="bilinear", align_corners=False)
