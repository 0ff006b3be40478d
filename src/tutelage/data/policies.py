"""Augmentation policies: which operations happen to an image, drawn anew for each.

A policy draws `Step`s; `Augment` carries them out, on the image and on all labels.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from pydantic import Field

from tutelage.data.operations import Operation, Reach, Step, Where, amount
from tutelage.part import Part

_COCO = 640  # pixels of the longer side, to which the authors' pixel counts belong


class Policy(Part, abc.ABC):
    """Draws what happens to an image."""

    @abc.abstractmethod
    def draw(self, rng: np.random.Generator) -> Sequence[Step]:
        """Steps for one image, in order. All chance comes from `rng`."""


class RandAugment(Policy):
    """RandAugment (Cubuk et al., NeurIPS 2020): so many operations, drawn evenly with repetition, all of one magnitude.

    The sixteen operations of the authors' public code (TensorFlow Model Garden, official/vision/ops/augment.py), and
    as seventeenth none at all. Magnitudes are on that code's scale too, as the paper is by its authors: 10 is the most
    that AutoAugment was searched with, a turn by 30 degrees, a slope of 0.3. torchvision's RandAugment counts the same
    ranges from 0 to 30, so magnitude 10 here is 30 there.
    """

    kind: Literal["rand-augment"] = "rand-augment"
    operations: int = Field(2, ge=1)
    """Operations an image. Two is the authors' default; Zoph et al. (NeurIPS 2020) do not state theirs."""
    magnitude: float = Field(10.0, ge=0, le=30)
    """Level of all operations. Above 10 goes on in a straight line."""
    translate: float = Field(100 / _COCO, ge=0, le=1)
    """Share of the longer side by which magnitude 10 shifts."""
    cutout: float = Field(40 / _COCO, ge=0, le=1)
    """Half the side of the square that magnitude 10 cuts out, as a share of the longer side."""

    def draw(self, rng: np.random.Generator) -> list[Step]:
        reach, steps = Reach(self.translate, self.cutout), []
        for number in rng.integers(len(_RAND_AUGMENT) + 1, size=self.operations).tolist():
            if number < len(_RAND_AUGMENT):
                operation = _RAND_AUGMENT[number]
                steps.append(Step(operation, amount(operation, self.magnitude, reach, rng)))
        return steps


class AutoAugment(Policy):
    """The learnt policies of Zoph et al., "Learning Data Augmentation Strategies for Object Detection" (ECCV 2020).

    A policy is a list of sub-policies, of which an image gets one, drawn evenly; each of its operations then happens
    with a probability. v0 is the one of the paper's results. Operations on boxes act inside of the boxes of all heads
    (but not of those to ignore): the pixels and pixel labels in there move, the boxes stay. Images without boxes go
    without them.
    """

    kind: Literal["auto-augment"] = "auto-augment"
    name: Literal["v0", "v1", "v2", "v3"] = "v0"

    def draw(self, rng: np.random.Generator) -> list[Step]:
        policy = TABLES[self.name]
        steps = []
        for entry in policy[int(rng.integers(len(policy)))]:
            # each box has its own chance, a third of what is stated, so that few neighbours are changed at once
            on_boxes = entry.where == "boxes"
            if on_boxes or rng.random() < entry.probability:
                size = amount(entry.operation, entry.level, _REACH[entry.where], rng)
                steps.append(Step(entry.operation, size, entry.where, entry.probability / 3 if on_boxes else 1.0))
        return steps


POLICIES: tuple[type[Policy], ...] = (RandAugment, AutoAugment)
"""The policies that can be written in YAML."""


_RAND_AUGMENT: tuple[Operation, ...] = tuple(operation for operation in get_args(Operation) if operation != "flip")

_REACH: dict[Where, Reach] = {
    "image": Reach(250 / _COCO, 100 / _COCO),
    "boxes": Reach(120 / _COCO, 50 / _COCO),
    "one box": Reach(0.0, 0.75),
}


class Entry(NamedTuple):
    """One operation of a sub-policy: it happens with `probability`, at `level` (0 to 10)."""

    operation: Operation
    probability: float
    level: int
    where: Where = "image"


_V0: tuple[tuple[Entry, ...], ...] = (
    (Entry("translate-x", 0.6, 4), Entry("equalize", 0.8, 10)),
    (Entry("translate-y", 0.2, 2, "boxes"), Entry("cutout", 0.8, 8)),
    (Entry("sharpness", 0.0, 8), Entry("shear-x", 0.4, 0)),
    (Entry("shear-y", 1.0, 2), Entry("translate-y", 0.6, 6, "boxes")),
    (Entry("rotate", 0.6, 10), Entry("colour", 1.0, 6)),
)

TABLES: dict[str, tuple[tuple[Entry, ...], ...]] = {
    "v0": _V0,
    "v1": (
        *_V0,
        (Entry("colour", 0.0, 0), Entry("shear-x", 0.8, 4, "boxes")),
        (Entry("shear-y", 0.8, 2, "boxes"), Entry("flip", 0.0, 10, "boxes")),
        (Entry("equalize", 0.6, 10), Entry("translate-x", 0.2, 2)),
        (Entry("colour", 1.0, 10), Entry("translate-y", 0.4, 6, "boxes")),
        (Entry("rotate", 0.8, 10), Entry("contrast", 0.0, 10)),
        (Entry("cutout", 0.2, 2), Entry("brightness", 0.8, 10)),
        (Entry("colour", 1.0, 6), Entry("equalize", 1.0, 2)),
        (Entry("cutout", 0.4, 6, "boxes"), Entry("translate-y", 0.8, 2, "boxes")),
        (Entry("colour", 0.2, 8), Entry("rotate", 0.8, 10)),
        (Entry("sharpness", 0.4, 4), Entry("translate-y", 0.0, 4, "boxes")),
        (Entry("sharpness", 1.0, 4), Entry("solarize-add", 0.4, 4)),
        (Entry("rotate", 1.0, 8), Entry("sharpness", 0.2, 8)),
        (Entry("shear-y", 0.6, 10), Entry("equalize", 0.6, 8, "boxes")),
        (Entry("shear-x", 0.2, 6), Entry("translate-y", 0.2, 10, "boxes")),
        (Entry("solarize-add", 0.6, 8), Entry("brightness", 0.8, 10)),
    ),
    "v2": (
        (Entry("colour", 0.0, 6), Entry("cutout", 0.6, 8), Entry("sharpness", 0.4, 8)),
        (Entry("rotate", 0.4, 8), Entry("sharpness", 0.4, 2), Entry("rotate", 0.8, 10)),
        (Entry("translate-y", 1.0, 8), Entry("autocontrast", 0.8, 2)),
        (Entry("autocontrast", 0.4, 6), Entry("shear-x", 0.8, 8), Entry("brightness", 0.0, 10)),
        (Entry("solarize-add", 0.2, 6), Entry("contrast", 0.0, 10), Entry("autocontrast", 0.6, 0)),
        (Entry("cutout", 0.2, 0), Entry("solarize", 0.8, 8), Entry("colour", 1.0, 4)),
        (Entry("translate-y", 0.0, 4), Entry("equalize", 0.6, 8), Entry("solarize", 0.0, 10)),
        (Entry("translate-y", 0.2, 2), Entry("shear-y", 0.8, 8), Entry("rotate", 0.8, 8)),
        (Entry("cutout", 0.8, 8), Entry("brightness", 0.8, 8), Entry("cutout", 0.2, 2)),
        (Entry("colour", 0.8, 4), Entry("translate-y", 1.0, 6), Entry("rotate", 0.6, 6)),
        (Entry("rotate", 0.6, 10), Entry("cutout", 1.0, 4, "one box"), Entry("cutout", 0.2, 8)),
        (Entry("rotate", 0.0, 0), Entry("equalize", 0.6, 6), Entry("shear-y", 0.6, 8)),
        (Entry("brightness", 0.8, 8), Entry("autocontrast", 0.4, 2), Entry("brightness", 0.2, 2)),
        (Entry("translate-y", 0.4, 8), Entry("solarize", 0.4, 6), Entry("solarize-add", 0.2, 10)),
        (Entry("contrast", 1.0, 10), Entry("solarize-add", 0.2, 8), Entry("equalize", 0.2, 4)),
    ),
    "v3": (
        (Entry("posterize", 0.8, 2), Entry("translate-x", 1.0, 8)),
        (Entry("cutout", 0.2, 10, "one box"), Entry("sharpness", 1.0, 8)),
        (Entry("rotate", 0.6, 8), Entry("rotate", 0.8, 10)),
        (Entry("equalize", 0.8, 10), Entry("autocontrast", 0.2, 10)),
        (Entry("solarize-add", 0.2, 2), Entry("translate-y", 0.2, 8)),
        (Entry("sharpness", 0.0, 2), Entry("colour", 0.4, 8)),
        (Entry("equalize", 1.0, 8), Entry("translate-y", 1.0, 8)),
        (Entry("posterize", 0.6, 2), Entry("rotate", 0.0, 10)),
        (Entry("autocontrast", 0.6, 0), Entry("rotate", 1.0, 6)),
        (Entry("equalize", 0.0, 4), Entry("cutout", 0.8, 10)),
        (Entry("brightness", 1.0, 2), Entry("translate-y", 1.0, 6)),
        (Entry("contrast", 0.0, 2), Entry("shear-y", 0.8, 0)),
        (Entry("autocontrast", 0.8, 10), Entry("contrast", 0.2, 10)),
        (Entry("rotate", 1.0, 10), Entry("cutout", 1.0, 10)),
        (Entry("solarize-add", 0.8, 6), Entry("equalize", 0.8, 8)),
    ),
}
"""Policy name to sub-policies (the authors' public code, tensorflow/tpu, autoaugment_utils.py). Some operations have
the probability 0 or a level that changes nothing; they are kept, as the draw of a sub-policy counts them."""
