"""The operations that augmentation policies are made of, and what their levels mean.

Levels, ranges and the operations' meaning are those of the authors' public detection code (Zoph et al., "Learning Data
Augmentation Strategies for Object Detection", ECCV 2020). Level 10 is the most that AutoAugment was searched with. A
higher level posterizes and solarizes *less* there, and level 10 solarizes nothing. Lengths, which stand in pixels
there, are shares of the image's longer side here (of 640 pixels, as COCO's images have), so that small images are not
emptied.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data.warp import Matrix

Operation = Literal[
    "autocontrast",
    "equalize",
    "invert",
    "posterize",
    "solarize",
    "solarize-add",
    "colour",
    "contrast",
    "brightness",
    "sharpness",
    "cutout",
    "flip",
    "rotate",
    "shear-x",
    "shear-y",
    "translate-x",
    "translate-y",
]

Where = Literal["image", "boxes", "one box"]
"""On the whole image; on each box by its own chance; on one box, drawn evenly."""

MOVES: frozenset[Operation] = frozenset({"flip", "rotate", "shear-x", "shear-y", "translate-x", "translate-y"})
"""Operations that move pixels, and labels with them. All others change colours."""

_EITHER_WAY: frozenset[Operation] = MOVES - {"flip"}
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601
_VALUES = np.arange(256)


class Reach(NamedTuple):
    """What level 10 means for the two operations whose reach differs from policy to policy.

    Attributes:
        translate: share of the longer side by which pixels are shifted.
        cutout: half the side of the square that is cut out, as a share of the longer side; for "one box" the sides of
            the rectangle as shares of the box's.
    """

    translate: float
    cutout: float


class Step(NamedTuple):
    """An operation that is to happen.

    Attributes:
        operation: which.
        amount: degrees, slope, share of a length, threshold, bits or factor; of moves, of either sign.
        where: on what.
        chance: of each box, where it is done on "boxes".
    """

    operation: Operation
    amount: float
    where: Where = "image"
    chance: float = 1.0


def amount(operation: Operation, level: float, reach: Reach, rng: np.random.Generator) -> float:
    """What a level means for an operation, as in `Step`; half of all moves go the other way."""
    share = level / 10
    size = {
        "posterize": max(1.0, min(8.0, float(int(share * 4)))),  # TensorFlow's shift by 8 bits leaves one
        "solarize": float(int(share * 256)),
        "solarize-add": float(int(share * 110)),
        "colour": share * 1.8 + 0.1,
        "contrast": share * 1.8 + 0.1,
        "brightness": share * 1.8 + 0.1,
        "sharpness": share * 1.8 + 0.1,
        "cutout": share * reach.cutout,
        "rotate": share * 30.0,
        "shear-x": share * 0.3,
        "shear-y": share * 0.3,
        "translate-x": share * reach.translate,
        "translate-y": share * reach.translate,
    }.get(operation, 0.0)
    return -size if operation in _EITHER_WAY and rng.random() < 0.5 else size


def move_of(step: Step, height: float, width: float, side: float) -> Matrix:
    """Where a move takes each point of a picture of height x width.

    Turned about its centre, sheared along its first row or column.

    Args:
        step: a move.
        height, width: pixels of what is moved.
        side: pixels of the longer side of the whole image, of which shifts are a share.
    """
    move = np.eye(3)
    match step.operation:
        case "flip":
            move[0, 0], move[0, 2] = -1, width
        case "rotate":
            angle = np.deg2rad(step.amount)
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            centre = np.array([width / 2, height / 2])
            move[:2, :2], move[:2, 2] = turn, centre - turn @ centre
        case "shear-x":
            move[0, 1] = step.amount
        case "shear-y":
            move[1, 0] = step.amount
        case "translate-x":
            move[0, 2] = step.amount * side
        case "translate-y":
            move[1, 2] = step.amount * side
        case _:
            raise AssertionError(step)
    return move


def recolour(image: Tensor, operation: Operation, amount: float) -> Tensor:
    """uint8 [3,h,w] from uint8 [3,h,w], RGB, with other colours.

    As Pillow's operations of these names; results are rounded down, as there. Contrast is about the mean grey (the
    authors' code divides by 256 instead of the number of pixels and so whitens most images; that slip is not repeated).

    Args:
        image: at least one pixel. It is not changed.
        operation: any that changes colours, "cutout" apart.
        amount: as in `Step`.
    """
    if operation == "colour":
        return _saturate(image, amount)
    if operation == "sharpness":
        return _sharpen(image, amount)
    pixels = image.numpy()
    if operation == "invert":
        return torch.from_numpy(255 - pixels)
    if operation == "autocontrast" or operation == "equalize":
        tables = [_stretch(plane) if operation == "autocontrast" else _equalize(plane) for plane in pixels]
        return torch.from_numpy(np.stack([t.take(plane) for t, plane in zip(tables, pixels, strict=True)]))
    return torch.from_numpy(_table(operation, amount, pixels).take(pixels))


def _saturate(image: Tensor, factor: float) -> Tensor:
    """Away from grey (factor > 1) or towards it."""
    grey = image[0] * _GREY[0]
    grey.add_(image[1], alpha=_GREY[1]).add_(image[2], alpha=_GREY[2]).round_()
    return image.float().mul_(factor).add_(grey, alpha=1 - factor).clamp_(0, 255).to(torch.uint8)


def _sharpen(image: Tensor, factor: float) -> Tensor:
    """Away from a smoothed image (factor > 1) or towards it: 3 x 3 pixels, the middle one weighing 5 of 13. Pixels at
    the edge stay as they are.
    """
    out = image.clone()
    if min(image.shape[1:]) < 3:
        return out
    values = image.float()
    middle = values[:, 1:-1, 1:-1]
    lines = (values[:, :-2] + values[:, 1:-1]).add_(values[:, 2:])
    smooth = (lines[..., :-2] + lines[..., 1:-1]).add_(lines[..., 2:]).add_(middle, alpha=4).mul_(1 / 13).round_()
    out[:, 1:-1, 1:-1] = smooth.mul_(1 - factor).add_(middle, alpha=factor).clamp_(0, 255)
    return out


def _table(operation: Operation, amount: float, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What becomes of each value, uint8 [256], where it is the same in all channels."""
    values: NDArray[Any]
    match operation:
        case "posterize":
            values = _VALUES & (256 - (1 << (8 - int(amount))))
        case "solarize":
            values = np.where(amount > _VALUES, _VALUES, 255 - _VALUES)
        case "solarize-add":
            values = np.where(_VALUES < 128, _VALUES + int(amount), _VALUES)
        case "brightness":
            values = _VALUES * amount
        case "contrast":
            grey = float(np.dot(_GREY, [plane.mean() for plane in pixels]))
            values = grey + (_VALUES - grey) * amount
        case _:
            raise AssertionError(operation)
    return np.clip(values, 0, 255).astype(np.uint8)


def _stretch(plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The darkest value becomes 0, the lightest 255."""
    low, high = int(plane.min()), int(plane.max())
    table = _VALUES if low == high else np.clip((_VALUES - low) * 255 // (high - low), 0, 255)
    return table.astype(np.uint8)


def _equalize(plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each value becomes the share of pixels below it, by Pillow's whole numbers."""
    counts = np.bincount(plane.reshape(-1), minlength=256)
    step = int(counts.sum() - counts[int(plane.max())]) // 255
    if step == 0:
        return _VALUES.astype(np.uint8)
    below = (counts.cumsum() - counts + step // 2) // step
    return np.clip(below, 0, 255).astype(np.uint8)
