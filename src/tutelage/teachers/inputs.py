"""How foreign models want their images: size, fit, normalisation.

Letters in shapes: B images, H and W pixels of the input, h and w pixels of an original image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field as Option
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from tutelage.data.geometry import Frame
from tutelage.data.source import UInt8
from tutelage.part import Part


class Input(Part):
    """The input of a model, as it was trained."""

    size: tuple[int, int] = (224, 224)
    """(H, W) in pixels."""
    fit: Literal["squash", "letterbox", "crop"] = "squash"
    """`squash`: the whole image at exactly this size; `letterbox`: the whole image at its own ratio, top left, padded
    with the mean colour; `crop`: the middle of the image, for classifiers only, because masks and boxes would miss the
    rest."""
    crop: float = Option(0.875, gt=0, le=1)
    """With `crop`: the share of the resized image's shorter side that is kept."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Always with antialiasing."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of RGB in [0, 1], subtracted from the images."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def lay(self, image: UInt8, scale: float = 1.0, flip: bool = False) -> tuple[Tensor, Frame]:
        """One image as the model sees it.

        Args:
            image: uint8 [h,w,3], RGB.
            scale: the input is this much larger or smaller, rounded to pixels.
            flip: mirror the image left to right first.

        Returns:
            float32 [3,H,W], normalised; and how the (perhaps mirrored) image lies in it.
        """
        size = self.scaled(scale)
        array = np.require(image[:, ::-1] if flip else image, requirements=("C", "W"))
        pixels = torch.from_numpy(array).permute(2, 0, 1)
        height, width = image.shape[:2]
        if self.fit == "crop":
            ratio = max(size[0] / (height * self.crop), size[1] / (width * self.crop))
            inner = (max(size[0], round(height * ratio)), max(size[1], round(width * ratio)))
            laid = transforms.center_crop(self._resized(pixels, inner), list(size))
            return self._normalised(laid), Frame(height, width, *size)
        if self.fit == "squash":
            return self._normalised(self._resized(pixels, size)), Frame(height, width, *size)
        inner = _inside(height, width, size)
        laid = torch.zeros(3, *size)
        laid[:, : inner[0], : inner[1]] = self._normalised(self._resized(pixels, inner))
        return laid, Frame(height, width, *inner)

    def batch(self, images: Sequence[UInt8], scale: float = 1.0, flip: bool = False) -> tuple[Tensor, list[Frame]]:
        """As `lay`, for B images: float32 [B,3,H,W] and B frames."""
        laid = [self.lay(image, scale, flip) for image in images]
        return torch.stack([picture for picture, _ in laid]), [frame for _, frame in laid]

    def scaled(self, scale: float) -> tuple[int, int]:
        """(H, W) at a multiple of the size."""
        return max(1, round(self.size[0] * scale)), max(1, round(self.size[1] * scale))

    def _resized(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        mode = InterpolationMode.BICUBIC if self.interpolation == "bicubic" else InterpolationMode.BILINEAR
        return transforms.resize(pixels, list(size), interpolation=mode, antialias=True)

    def _normalised(self, pixels: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (self.mean, self.std))
        return (pixels.float() - mean) / std


def _inside(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    ratio = min(size[0] / height, size[1] / width)
    return max(1, min(size[0], round(height * ratio))), max(1, min(size[1], round(width * ratio)))
