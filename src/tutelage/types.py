"""What flows through the program: samples, the six kinds of target, batches, and losses with their counts.

Letters in shapes: B images in a batch, R labelled rows of a batch, N boxes, K classes, H and W pixels.
Every kind of target holds one image's label, or, with a leading R, a stack of R of them; boxes, which
cannot be stacked, are packed (see `BoxStack`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

IGNORE = 255
"""The class id of mask pixels that are not labelled: no loss, no metric."""


class _Tensors:
    """Moves every tensor in a dataclass at once."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        changed = {name: _mapped(getattr(self, name), function) for name in names}
        return replace(self, **changed)  # type: ignore[type-var]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self.map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self.map(lambda t: t.pin_memory())


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A value with every tensor in it changed."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _mapped(one, function) for key, one in value.items()}
    return value.map(function) if isinstance(value, _Tensors) else value


@dataclass(frozen=True, slots=True)
class Label(_Tensors):
    """Classes of a whole image.

    Attributes:
        probs: float32 [K] or [R,K], each in [0, 1]. A hard label is one-hot, a teacher's is a distribution,
            a multi-label one holds an independent probability a class.
    """

    probs: Tensor

    @classmethod
    def certain(cls, number: int, classes: int) -> Label:
        """One class of so many, one-hot."""
        probs = torch.zeros(classes)
        probs[number] = 1.0
        return cls(probs)


@dataclass(frozen=True, slots=True)
class Boxes(_Tensors):
    """Objects of one image. Zero rows mean "labelled, nothing there", which is not the same as unlabelled.

    Attributes:
        boxes: float32 [N,4], x1 y1 x2 y2 in pixels of the image, x1 < x2, y1 < y2, inside the image.
        classes: int64 [N], indices into the head's class names.
        scores: float32 [N] in [0, 1]; 1 for human labels.
        ignore: bool [N]; crowd or difficult objects, neither right nor wrong to find.
    """

    boxes: Tensor
    classes: Tensor
    scores: Tensor
    ignore: Tensor

    @classmethod
    def make(cls, boxes: Any, classes: Any, scores: Any | None = None, ignore: Any | None = None) -> Boxes:
        """Boxes from anything array-like; scores default to 1 and ignore to False."""
        xyxy = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        n = len(xyxy)
        return cls(
            xyxy,
            torch.as_tensor(classes, dtype=torch.int64).reshape(n),
            torch.ones(n) if scores is None else torch.as_tensor(scores, dtype=torch.float32).reshape(n),
            torch.zeros(n, dtype=torch.bool)
            if ignore is None
            else torch.as_tensor(ignore, dtype=torch.bool).reshape(n),
        )

    def __len__(self) -> int:
        return len(self.boxes)

    def pick(self, which: Tensor) -> Boxes:
        """The rows selected by a bool [N] or int64 [M] index."""
        return Boxes(self.boxes[which], self.classes[which], self.scores[which], self.ignore[which])


@dataclass(frozen=True, slots=True)
class BoxStack(_Tensors):
    """The boxes of R images, packed one image after the other.

    Attributes:
        boxes, classes, scores, ignore: as in `Boxes`, [sum of counts, ...].
        counts: int64 [R], boxes of each image; zero is allowed.
    """

    boxes: Tensor
    classes: Tensor
    scores: Tensor
    ignore: Tensor
    counts: Tensor

    def split(self) -> list[Boxes]:
        """The boxes image by image, R entries."""
        counts = self.counts.tolist()
        parts = [getattr(self, f).split(counts) for f in ("boxes", "classes", "scores", "ignore")]
        return [Boxes(*row) for row in zip(*parts, strict=True)]


@dataclass(frozen=True, slots=True)
class Mask(_Tensors):
    """A class for every pixel.

    Attributes:
        ids: uint8 [H,W] or [R,H,W], indices into the head's class names; 255 = not labelled.
        confidence: uint8 of the same shape, the probability of `ids` times 255, or None for human labels.
    """

    ids: Tensor
    confidence: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Field(_Tensors):
    """A number for every pixel: depth in metres, or relative inverse depth, as the head states.

    Attributes:
        values: float32 [H,W] or [R,H,W]; where not valid, 0.
        valid: bool of the same shape.
    """

    values: Tensor
    valid: Tensor


@dataclass(frozen=True, slots=True)
class Vectors(_Tensors):
    """A unit vector for every pixel: the surface normal in camera axes, x right, y down, z into the scene.

    A surface that faces the camera therefore has z < 0.

    Attributes:
        values: float32 [3,H,W] or [R,3,H,W], length 1 where valid, else 0.
        valid: bool [H,W] or [R,H,W].
    """

    values: Tensor
    valid: Tensor


@dataclass(frozen=True, slots=True)
class Maps(_Tensors):
    """A vector for every cell of a coarse grid on the image: features of a network.

    The first cell begins in the image's corner. The image's edge may lie inside of a last cell, or a little behind it:
    `extent` says where. The same holds for a window that was cut out of an image.

    Attributes:
        values: float16 or float32 [C,y,x] or [R,C,y,x]; where not valid, 0.
        valid: bool [y,x] or [R,y,x].
        extent: float32 [2] or [R,2], height and width of the image in cells; each is more than 0.
        stride: int64 scalar or [R], at least 1: pixels of a network's input that a side of a cell stands for. A window
            of H x W pixels has ceil(H/stride) x ceil(W/stride) cells, whatever grid it was made from.
    """

    values: Tensor
    valid: Tensor
    extent: Tensor
    stride: Tensor

    @classmethod
    def whole(cls, values: Tensor, extent: tuple[float, float] | None = None, stride: int = 32) -> Maps:
        """A grid [C,y,x] that is valid everywhere; by default the image ends where the last cells end."""
        height, width = values.shape[1:]
        return cls(
            values,
            torch.ones(height, width, dtype=torch.bool),
            torch.tensor(extent or (height, width), dtype=torch.float32),
            torch.tensor(stride),
        )


Target = Label | Boxes | Mask | Field | Vectors | Maps
Stack = Label | BoxStack | Mask | Field | Vectors | Maps


def stack(targets: Sequence[Target]) -> Stack:
    """R targets of one kind and one size as a stack with a leading R (boxes: packed). R must be at least 1."""
    kind = type(targets[0])
    if any(type(t) is not kind for t in targets):
        raise TypeError(f"one head's targets must be of one kind, got {sorted({type(t).__name__ for t in targets})}")
    if kind is Boxes:
        joined = [torch.cat([getattr(t, f) for t in targets]) for f in ("boxes", "classes", "scores", "ignore")]
        boxes, classes, scores, ignore = joined
        return BoxStack(boxes, classes, scores, ignore, torch.tensor([len(t) for t in targets]))  # type: ignore[arg-type]
    columns: dict[str, Any] = {}
    for field in fields(kind):
        values = [getattr(t, field.name) for t in targets]
        columns[field.name] = None if any(v is None for v in values) else torch.stack(values)
    stacked: Stack = kind(**columns)  # type: ignore[assignment]
    return stacked


def take(targets: Stack, index: Tensor) -> Stack:
    """Some entries of a stack, int64 [N] of its R, as a stack; N must be at least 1."""
    if isinstance(targets, BoxStack):
        images = targets.split()
        return stack([images[number] for number in index.tolist()]).to(index.device)
    whole = {field.name: getattr(targets, field.name) for field in fields(targets)}
    columns: dict[str, Any] = {name: None if v is None else v.index_select(0, index) for name, v in whole.items()}
    return type(targets)(**columns)


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with the labels it has.

    Attributes:
        image: uint8 [3,H,W], RGB.
        targets: head name to target. A head that is no key is *unlabelled*.
        id: unique inside its source.
        source: the name of its source.
    """

    image: Tensor
    targets: dict[str, Target]
    id: str
    source: str


@dataclass(frozen=True, slots=True)
class HeadBatch(_Tensors):
    """The labelled rows of a batch for one head.

    Attributes:
        rows: int64 [R], increasing; which images of the batch are labelled. R may be 0.
        targets: a stack of R targets, or None when R is 0.
    """

    rows: Tensor
    targets: Stack | None


@dataclass(frozen=True, slots=True)
class Batch(_Tensors):
    """Images of one size with, for every head of the model, the rows that are labelled.

    Attributes:
        images: uint8 [B,3,H,W], RGB.
        heads: one entry a head, also for heads without a labelled row.
        ids: "source/id" of each image.
    """

    images: Tensor
    heads: dict[str, HeadBatch]
    ids: list[str]


def collate(samples: Sequence[Sample], heads: Iterable[str]) -> Batch:
    """Samples of one image size as a batch; targets of heads that are not asked for are left out."""
    columns = {}
    for name in heads:
        rows = [row for row, sample in enumerate(samples) if name in sample.targets]
        targets = stack([samples[row].targets[name] for row in rows]) if rows else None
        columns[name] = HeadBatch(torch.tensor(rows, dtype=torch.int64), targets)
    images = torch.stack([s.image for s in samples])
    return Batch(images, columns, [f"{s.source}/{s.id}" for s in samples])


@dataclass(frozen=True, slots=True)
class LossSum:
    """A loss before division: scalar sum (in the graph) over `count` labelled units (images or pixels).

    The step divides by the count summed over all processes and accumulated batches, so that every labelled
    unit weighs alike however the batch was cut.
    """

    sum: Tensor
    count: Tensor
