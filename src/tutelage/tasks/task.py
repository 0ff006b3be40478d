"""What a task is: everything that the program needs to know of one kind of output, in one file a task.

Letters in shapes: B images, R labelled rows, D embedding width, C pyramid width, K classes, H and W pixels of the
(square, padded) input; h and w pixels of an original image.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tutelage.data.geometry import Frame as Frame
from tutelage.errors import UserError
from tutelage.part import Part
from tutelage.tasks.evidence import Evidence
from tutelage.types import LossSum, Stack, Target

Reads = Literal["embedding", "pyramid", "fused", "deepest"]
"""What a head looks at: the pooled C5, the levels P3..P7, all levels summed at stride 4, or the backbone's last map."""

FUSED_STRIDE = 4


@dataclass(frozen=True)
class Features:
    """What backbone and pyramid give to the heads. `pyramid`, `fused` and `deepest` are None where no head reads them.

    Attributes:
        embedding: [B,D], average-pooled C5, or the mean of the pooled P3..P7 where the backbone gives these.
        pyramid: P3..P7, each [B,C,H/s,W/s] with strides s = 8, 16, 32, 64, 128 (rounded up).
        fused: [B,C,H/4,W/4], the sum of all levels.
        size: (H, W) of the input.
        deepest: [B,D,H/s,W/s], the backbone's last map, s being its largest stride.
    """

    embedding: Tensor | None
    pyramid: list[Tensor] | None
    fused: Tensor | None
    size: tuple[int, int]
    deepest: Tensor | None = None

    def __len__(self) -> int:
        """B, the number of images."""
        maps = [self.embedding, self.fused, self.deepest, *(self.pyramid or [])]
        return next(len(t) for t in maps if t is not None)

    def rows(self, index: Tensor) -> Features:
        """The features of some images of the batch."""
        pick = lambda t: None if t is None else t.index_select(0, index)  # noqa: E731
        pyramid = None if self.pyramid is None else [level.index_select(0, index) for level in self.pyramid]
        return Features(pick(self.embedding), pyramid, pick(self.fused), self.size, pick(self.deepest))


class Widths(NamedTuple):
    """Channels of the features that a head is built for: D of the embedding and of the backbone's last map, C of the
    pyramid and of the fused map."""

    embedding: int
    pyramid: int


class Metric(abc.ABC):
    """Collects predictions against truths, one image at a time.

    Attributes:
        name: the figure reported first, as the papers name it ("top-1", "AP50", "mIoU", "< 1.25", "< 11.25 deg").
        lower_is_better: names of the figures, among all that `compute` gives, of which less is better.
    """

    name: str
    lower_is_better: frozenset[str] = frozenset()

    @property
    def higher_is_better(self) -> bool:
        """For the figure `name`."""
        return self.name not in self.lower_is_better

    @abc.abstractmethod
    def update(self, prediction: Target, truth: Target) -> None:
        """Add one image; both at the original image's size."""

    @abc.abstractmethod
    def compute(self) -> dict[str, float]:
        """All figures; the one called `name` is among them. Shares are in percent. NaN where nothing was seen."""


class PerImageMetric(Metric, abc.ABC):
    """A metric that keeps what each image contributed: its figures can be had for a test set that is drawn again.

    All of this package's metrics but `FeatureFit` are of this kind. A metric of your own need not be; its figures then
    have no intervals over test images.
    """

    @abc.abstractmethod
    def evidence(self) -> Evidence:
        """What was seen so far, image by image."""

    def compute(self, weights: NDArray[np.int64] | None = None) -> dict[str, float]:
        """All figures, as `Metric.compute`.

        Args:
            weights: int64 [N], how often each image counts; the figures are then those of a metric that has seen each
                image so often. None: once each.
        """
        evidence = self.evidence()
        counted = np.ones(len(evidence)) if weights is None else np.asarray(weights, np.float64)
        if counted.shape != (len(evidence),):
            raise ValueError(f"{len(evidence)} images were seen, the weights are {counted.shape}")
        return {name: float(evidence.figure(name, counted[None])[0]) for name in evidence.names}


Blind = Callable[[int, int], Target]
"""What is said of an image of which height and width alone are known, in pixels."""


class NoLabels(ValueError):
    """Labels of which none says anything: all pixels are unlabelled, or there is no label at all."""


class Task(Part, abc.ABC):
    """One kind of output with one label space. Subclasses add a literal field `task` and their options.

    To add a task: subclass in any file and pass an instance in a Python recipe; to give it a YAML form, add the class
    to `tutelage.tasks.TASKS`.
    """

    kind: ClassVar[type]
    """The kind of target it is labelled with: one of the dataclasses of `tutelage.types`."""
    reads: ClassVar[Reads]

    task: str
    classes: tuple[str, ...] | None = None
    """The label space. Left out, it is read from the sources that label this head. None for depth, normals and
    features."""

    @property
    def names(self) -> tuple[str, ...]:
        """The classes, once they are known.

        Raises:
            UserError: neither the recipe nor a source states them.
        """
        if not self.classes:
            raise UserError(
                f"a {self.task} head has no classes",
                field="classes",
                fix="state `classes` for the head, or give it a source with labels",
            )
        return self.classes

    def completed(self, known: Task) -> Task:
        """This task with what the recipe leaves open (besides `classes`) taken from who fills the head.

        Args:
            known: what the head's teacher does, or what stored labels were made for; of the same kind of target.

        Raises:
            UserError: it contradicts what the recipe states.
        """
        del known
        return self

    @property
    def stride(self) -> int | None:
        """Of the backbone's last map that the head is made for; None: whatever the backbone has."""
        return None

    @abc.abstractmethod
    def head(self, widths: Widths) -> nn.Module:
        """The head: a module called as `head(features: Features, targets: Stack | None) -> output`.

        `targets` is given in training only (heads that need proposals look at them); in evaluation it is None. The
        output is a tensor, or a dict or list of tensors, that `loss` and `decode` understand.
        """

    @abc.abstractmethod
    def count(self, targets: Stack) -> Tensor:
        """How many labelled units (images or pixels) the loss of these targets is summed over; float32 scalar.

        It must follow from the targets alone: the step divides by the count of all processes before it goes backward.
        """

    @abc.abstractmethod
    def loss(self, output: Any, targets: Stack) -> LossSum:
        """The loss summed over the labelled units of R rows, float32 scalar, and `count(targets)`."""

    def part(self, output: Any, rows: Tensor) -> Any:
        """The output of some rows, int64 [N], as `loss` takes it; None where it cannot be taken apart.

        By default the first dimension of every tensor in an output is that of the rows.
        """
        if isinstance(output, Tensor):
            return output.index_select(0, rows)
        if isinstance(output, dict):
            return {key: self.part(entry, rows) for key, entry in output.items()}
        return type(output)(self.part(entry, rows) for entry in output)

    @abc.abstractmethod
    def decode(self, output: Any, frames: Sequence[Frame], size: tuple[int, int]) -> list[Target]:
        """What the model says, as targets of the original images' sizes, one a frame, on the CPU.

        Args:
            output: of the head in evaluation mode, for len(frames) images.
            frames: how each image was laid into the input.
            size: (H, W) of the input.
        """

    def pseudo(self, target: Target) -> Target | None:
        """The rule that makes a pseudo label of a prediction; None when nothing can be kept. Default: as it is."""
        return target

    @abc.abstractmethod
    def metric(self) -> Metric:
        """A fresh metric."""

    def blind(self, targets: Iterable[Target]) -> Blind | None:
        """What is best said of an image without looking at it: a floor that every network should be above.

        Args:
            targets: the labels to learn it from, each looked at once, so that they need not fit into memory.

        Returns:
            what is said of an image of so many pixels; None where the task knows nothing of the kind (the default).

        Raises:
            NoLabels: none of the targets says anything.
        """
        del targets
        return None

    @abc.abstractmethod
    def draw(self, image: NDArray[np.uint8], target: Target) -> NDArray[np.uint8]:
        """The target drawn for a person: uint8 [h,w,3] from uint8 [h,w,3]."""


def no_loss(output: Any) -> Tensor:
    """A zero that hangs on every tensor of a head's output, for batches where the head has no label."""
    if isinstance(output, Tensor):
        return output.float().sum() * 0
    entries = output.values() if isinstance(output, dict) else output
    return torch.stack([no_loss(entry) for entry in entries]).sum()
