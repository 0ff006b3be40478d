"""Augmentation in training: one policy for all kinds of target.

The geometric part (`plan`) makes a `View` from the image's size alone, before a pixel is decoded; the photometric part
(`recolour`) changes colours and no label. They are independent of each other. A `Policy` adds operations of both sorts;
its moves of the whole image become one map with the view (see `distort`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field as Option
from pydantic import model_validator
from torch import Tensor

from tutelage.data.distort import Window, whole_move
from tutelage.data.geometry import View, blank, fit, move_target, pad, place, reduction, resample
from tutelage.data.policies import POLICIES, AutoAugment, Policy, RandAugment
from tutelage.data.source import Picture
from tutelage.part import Part, one_of
from tutelage.types import Target

if TYPE_CHECKING:
    AnyPolicy = Policy
else:
    AnyPolicy = one_of(Policy, "kind", POLICIES)

_COLOUR_RANGE = 0.8
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Augment(Part):
    """What happens to a training image, and with it to all its labels. The defaults are MuST's (appendix A)."""

    flip: bool = True
    """Mirror every second image, at random, left to right."""
    scale: tuple[Annotated[float, Option(gt=0)], Annotated[float, Option(gt=0)]] = (0.5, 2.0)
    """Scale jitter: the image's longer side becomes the model's input size times a number drawn evenly from here; then
    a random window of the input's size is cut out, or the image is laid at random into the padded window. [1, 1]: the
    whole image, always as large as fits."""
    colour: float = Option(0.0, ge=0, le=1)
    """Strength c of colour jitter: brightness, contrast and saturation are each multiplied by a number drawn evenly
    from 1 - 0.8 c to 1 + 0.8 c. 0: none, as in MuST."""
    policy: AnyPolicy | None = None
    """RandAugment, or a learnt AutoAugment policy, on top of these; None: neither."""
    min_visible: float = Option(0.1, ge=0, le=1)
    """Boxes of which a smaller share is left in the window are no longer asked for."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError("scale must be [smallest, largest]")
        return self

    def __call__(
        self, picture: Picture, targets: Mapping[str, Target], size: int, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, Target]]:
        """An image with its labels, augmented.

        Args:
            picture: not yet decoded; it is decoded at reduced size where that is enough.
            targets: head name to label, of the full-size image.
            size: S, pixels of the square that the model sees.
            rng: all chance comes from here.

        Returns:
            uint8 [3,S,S], RGB, contiguous, and the labels of that window.

        Raises:
            BadImage: the image does not decode.
        """
        view = self.plan(picture.height, picture.width, size, rng)
        steps = [] if self.policy is None else self.policy.draw(rng)
        warp = whole_move(steps, view)
        pixels = picture.read(min(1.0, max(view.scale)))
        shown = resample(pixels, view) if warp is None else warp.show(pixels)
        if self.colour:
            shown = self.recolour(shown, rng, None if warp is None else ~warp.found[1])
        if warp is None:
            image = place(shown, view)
            moved = {head: move_target(t, view, self.min_visible) for head, t in targets.items()}
        else:
            image = pad(shown, view)
            moved = {head: warp.move_target(t, self.min_visible) for head, t in targets.items()}
        if steps:
            image = image.clone()  # one pixel may still be the picture's own
            Window.of(image, moved, view, warp).apply(steps, rng)
        return image, moved

    def plan(self, height: int, width: int, size: int, rng: np.random.Generator) -> View:
        """The geometric part: which window of an image of height x width becomes the square that the model sees."""
        chance, mirror, down, across = rng.random(4).tolist()
        side = size * (self.scale[0] + (self.scale[1] - self.scale[0]) * chance)
        inner_height, inner_width = fit(height, width, side)
        step = reduction(height, width, inner_height, inner_width)
        top, pad_top = _window(height, inner_height, size, step, down)
        left, pad_left = _window(width, inner_width, size, step, across)
        flip = self.flip and mirror < 0.5
        return View(height, width, inner_height, inner_width, (size, size), top, left, pad_top, pad_left, flip)

    def recolour(self, image: Tensor, rng: np.random.Generator, empty: NDArray[np.bool_] | None = None) -> Tensor:
        """The photometric part: uint8 [3,H,W] from uint8 [3,H,W], RGB, a new tensor.

        Brightness, then contrast about the image's mean grey, then saturation, as one step without rounding between.

        Args:
            image: what is shown.
            rng: the chance.
            empty: bool [H,W], where there is no image: these places have no part in the mean, and the padding's colour
                afterwards. None: nowhere.
        """
        brightness, contrast, saturation = (1 + self.colour * _COLOUR_RANGE * (2 * rng.random(3) - 1)).tolist()
        colours = image.float()
        grey = (colours[0] * _GREY[0]).add_(colours[1], alpha=_GREY[1]).add_(colours[2], alpha=_GREY[2])
        gain = brightness * contrast
        if empty is not None and not empty.any():
            empty = None
        known = grey if empty is None else grey[torch.from_numpy(~empty)]
        offset = brightness * (1 - contrast) * float(known.mean() if known.numel() else 0)
        grey.mul_(gain * (1 - saturation)).add_(offset)
        found = colours.mul_(gain * saturation).add_(grey).round_().clamp_(0, 255).to(torch.uint8)
        if empty is not None:
            blank(found, empty)
        return found


def augment_s1() -> Augment:
    """Augment-S1 of Zoph et al., "Rethinking Pre-training and Self-training" (NeurIPS 2020), section 3: flip, scale
    jitter (0.8, 1.2), crop.
    """
    return Augment(scale=(0.8, 1.2))


def augment_s2() -> Augment:
    """Augment-S2 (as `augment_s1`): AutoAugment with S1."""
    return Augment(scale=(0.8, 1.2), policy=AutoAugment())


def augment_s3() -> Augment:
    """Augment-S3 (as `augment_s1`): AutoAugment with large scale jitter (0.5, 2.0)."""
    return Augment(scale=(0.5, 2.0), policy=AutoAugment())


def augment_s4() -> Augment:
    """Augment-S4 (as `augment_s1`): RandAugment of magnitude 10 with large scale jitter (0.5, 2.0)."""
    return Augment(scale=(0.5, 2.0), policy=RandAugment(magnitude=10))


def _window(full: int, inner: int, size: int, step: int, chance: float) -> tuple[int, int]:
    """Along one axis: pixels of the full image to cut away (a multiple of `step`), and pixels to pad, before it."""
    if inner <= size:
        return 0, int(chance * (size - inner + 1))
    start = int(chance * (inner - size + 1))
    return start * full // inner // step * step, 0
