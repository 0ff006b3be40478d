"""What the pixel tasks share: their head, labels at the head's resolution, and the way back to the original image.

Letters in shapes: R rows, C channels in, K channels out, H and W pixels of the input, h and w pixels of an original
image, y and x cells of the head's output (stride 4; foreign models give maps of other strides, which find their way
back as well).

A cell's label is the pixel at its centre: of the H/y pixels that cell i covers, number floor((i + 1/2) * H/y), which
for stride 4 is pixel 4i + 2. Labels are never averaged, so that no class and no depth arises that nobody labelled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.tasks.task import FUSED_STRIDE, Features, Frame

_STRIP = 2**23
"""Numbers computed at a time on the way back: whole class maps of a large image would fill the memory."""


class PixelHead(nn.Module):
    """Three 3x3 convolutions with batch norm and ReLU, then a linear 1x1, on the fused map (MuST section 3.2).

    The last layer starts from N(0, 0.01), the others from He's initialisation.

    Args:
        width: C.
        channels: of the hidden layers; None for C.
        out: K.
        exact: compute the last layer in float32 also under autocast, for outputs that need more than bfloat16's 8 bits.
    """

    def __init__(self, width: int, channels: int | None, out: int, exact: bool = False) -> None:
        super().__init__()
        hidden = channels or width
        layers: list[nn.Module] = []
        for inputs in (width, hidden, hidden):
            conv = nn.Conv2d(inputs, hidden, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            layers += [conv, nn.BatchNorm2d(hidden), nn.ReLU(inplace=True)]
        self.hidden = nn.Sequential(*layers)
        self.last = nn.Conv2d(hidden, out, 1)
        nn.init.normal_(self.last.weight, std=0.01)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]
        self.exact = exact

    def forward(self, features: Features, targets: Any = None) -> Tensor:
        """[R,K,H/4,W/4]; targets are not looked at."""
        assert features.fused is not None
        hidden = self.hidden(features.fused)
        if not self.exact:
            return self.last(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            return self.last(hidden.float())


def subsample(labels: Tensor) -> Tensor:
    """Labels [...,H,W] at the cells of the head's output [...,ceil(H/4),ceil(W/4)], each the pixel at its centre."""
    height, width = labels.shape[-2:]
    if height % FUSED_STRIDE == 0 and width % FUSED_STRIDE == 0:
        half = FUSED_STRIDE // 2
        return labels[..., half::FUSED_STRIDE, half::FUSED_STRIDE]
    rows, columns = (
        torch.tensor(_centres(side, -(-side // FUSED_STRIDE)), device=labels.device) for side in (height, width)
    )
    return labels.index_select(-2, rows).index_select(-1, columns)


def valid_count(valid: Tensor) -> Tensor:
    """How many cells are labelled, float32 scalar, from full-size bool [R,H,W]."""
    return subsample(valid).sum(dtype=torch.float32)


def resized_back(maps: Tensor, frame: Frame, size: tuple[int, int]) -> Tensor:
    """An output map at the original image's size, bilinear (cell centres, no aligned corners), in one step.

    Cells whose label would lie in the padding were never trained, so they are not looked at: the last cells inside
    are continued to the border.

    Args:
        maps: [K,y,x], of one padded input; cell i of y covers H/y pixels, whatever y is.
        frame: how the original lies in the input.
        size: (H, W) of the input.

    Returns:
        float32 [K,h,w].
    """
    way = WayBack(maps, frame, size)
    return torch.cat([way.strip(rows) for rows in strips([way])], dim=1)


class WayBack:
    """An output map that can be asked for any rows of the original image.

    Args:
        maps: [K,y,x], of one padded input.
        frame: how the original lies in the input.
        size: (H, W) of the input.
    """

    def __init__(self, maps: Tensor, frame: Frame, size: tuple[int, int]) -> None:
        classes, cells_down, cells_across = maps.shape
        self._maps, self.height = maps, frame.height
        self._columns = _neighbours(frame.width, frame.inner_width, size[1], cells_across, maps.device)
        self._rows = _neighbours(frame.height, frame.inner_height, size[0], cells_down, maps.device)
        # Where the map has more rows than the image, a strip of the image is made from a higher one of the map.
        self.numbers = classes * frame.width * max(1, -(-cells_down // frame.height))
        """Computed for one row of the image."""

    def strip(self, rows: slice) -> Tensor:
        """float32 [K,rows,w]: these rows of the image, bilinear between the centres of cells."""
        left, right, across = self._columns
        upper, lower, down = (index[rows] for index in self._rows)
        first, last = int(upper[0]), int(lower[-1]) + 1
        maps = self._maps[:, first:last].float()
        wide = torch.lerp(maps[:, :, left], maps[:, :, right], across)
        return torch.lerp(wide[:, upper - first], wide[:, lower - first], down[:, None])


def strips(ways: Sequence[WayBack]) -> Iterator[slice]:
    """The rows of the image, top to bottom, as many at a time as keep the memory small; all ways are of one image."""
    height = ways[0].height
    step = max(1, _STRIP // max(way.numbers for way in ways))
    for top in range(0, height, step):
        yield slice(top, min(top + step, height))


def _centres(side: int, cells: int) -> list[int]:
    """The pixel at the centre of each of the cells that share `side` pixels."""
    return [(2 * i + 1) * side // (2 * cells) for i in range(cells)]


def _neighbours(
    original: int, inner: int, side: int, cells: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Along one axis, the two cells that each pixel of the original lies between, and the share of the second.

    All [original]: int64, int64, float32.
    """
    last = max(0, sum(centre < inner for centre in _centres(side, cells)) - 1)
    pixels = (torch.arange(original, dtype=torch.float64) + 0.5) * (inner / original)
    places = (pixels * (cells / side) - 0.5).clamp(0, last)
    first = places.floor().long()
    share = (places - first).float()
    return first.to(device), (first + 1).clamp(max=last).to(device), share.to(device)
