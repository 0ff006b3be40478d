"""Segmentation by DeepLabv3 (Chen et al., 2017, "Rethinking atrous convolution"), beside the head on the pyramid.

Letters in shapes: R labelled rows, D channels of the deepest map, K classes, H and W pixels of the input, s its stride.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field as Option
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import ASPP

from tutelage.tasks.norm import Norm2d
from tutelage.tasks.segmentation import Segmentation, check_maskable
from tutelage.tasks.task import FUSED_STRIDE, Features, Reads, Widths

_RATES = (6, 12, 18)
"""Dilation of the parallel convolutions at stride 16; twice as much at stride 8 (section 3.3)."""


class DeepLab(Segmentation):
    """DeepLabv3's head on the backbone's deepest map; the backbone is dilated to `output_stride`, and has no pyramid.

    The logits are resized bilinearly, and the loss is taken at stride 4, as for all pixel tasks here. The paper takes
    it at the input's size (section 4.1), and so does torchvision: that is 16 times the memory.
    """

    reads: ClassVar[Reads] = "deepest"

    task: Literal["deeplab"] = "deeplab"  # type: ignore[assignment]
    channels: int = Option(256, gt=0)
    """Of the head's hidden layers."""
    output_stride: Literal[8, 16] = 16
    """Of the deepest map. 8 is finer, and four times the work in the backbone's last two stages."""

    @property
    def stride(self) -> int:
        return self.output_stride

    def head(self, widths: Widths) -> nn.Module:
        """Raises UserError where there are more classes than a mask of uint8 can name beside 255."""
        check_maskable(self.names)
        rates = [rate * 16 // self.output_stride for rate in _RATES]
        return DeepLabHead(widths.embedding, self.channels, len(self.names), rates)


class DeepLabHead(nn.Module):
    """Atrous spatial pyramid pooling, one more convolution, and a linear 1x1.

    `layers` is laid out as torchvision's module of this name, so that its weights fit.

    Args:
        width: D.
        channels: of the hidden layers.
        classes: K.
        rates: dilation of the parallel convolutions.
    """

    def __init__(self, width: int, channels: int, classes: int, rates: Sequence[int]) -> None:
        super().__init__()
        pooling: Any = ASPP(width, rates, channels)
        pooling.convs[-1][2] = Norm2d(channels)  # behind the image's average, which has one value a channel and row
        self.layers = nn.Sequential(
            pooling,
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, classes, 1),
        )

    def forward(self, features: Features, targets: Any = None) -> Tensor:
        """Logits, float32 [R,K,ceil(H/4),ceil(W/4)]; targets are not looked at."""
        assert features.deepest is not None
        logits = self.layers(features.deepest)
        cells = [-(-side // FUSED_STRIDE) for side in features.size]
        return F.interpolate(logits.float(), size=cells, mode="bilinear", align_corners=False)
