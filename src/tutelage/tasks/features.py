"""Features as a head: the deepest map of a frozen network, learned like any other label.

It is the squeeze of X-Learner (He et al., ECCV 2022, section 3.3, equations 3 and 4) with the teacher's features read
from a labels store instead of computed in every step.

Letters in shapes: R labelled rows, C channels of the teacher's map, y and x cells of the student's deepest map, H and W
pixels of the input, h and w pixels of an original image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field as Option
from torch import Tensor, nn

from tutelage.data.grids import on_grid
from tutelage.errors import UserError
from tutelage.tasks import drawing
from tutelage.tasks.guide import Guide, resized
from tutelage.tasks.task import Features, Frame, Metric, Reads, Task, Widths
from tutelage.types import LossSum, Maps, Stack, Target

_TINY = 1e-6


class Hints(Task):
    """A guidance layer on the backbone's deepest map; squared L2 to the teacher's map as the loss.

    Nobody labels such a head by hand: its teacher is a frozen network (`kind: features`), or labels are there already.
    """

    kind: ClassVar[type] = Maps
    reads: ClassVar[Reads] = "deepest"

    task: Literal["features"] = "features"
    channels: int | None = Option(None, gt=0)
    """C of the teacher's map. Left out, it is read from the teacher, or from the labels that are there."""

    def completed(self, known: Task) -> Task:
        """As `Task.completed`: the channels. Raises UserError where two are stated that differ."""
        said = known.channels if isinstance(known, Hints) else None
        if self.channels is None or said is None:
            return self.but(channels=self.channels or said)
        if self.channels != said:
            raise UserError(
                f"the teacher's features have {said} channels, the head's {self.channels}",
                field="channels",
                value=self.channels,
                fix="leave out the head's `channels`, or give a teacher or labels of so many",
            )
        return self

    def head(self, widths: Widths) -> nn.Module:
        """As `Task.head`. Raises UserError where the channels are not known."""
        if self.channels is None:
            raise UserError(
                "a features head does not know how many channels its labels have",
                field="channels",
                fix="give the head a teacher (`kind: features`), or state `channels`",
            )
        return _GuidedHead(widths.embedding, self.channels)

    def count(self, targets: Stack) -> Tensor:
        """Images with any valid cell."""
        assert isinstance(targets, Maps)
        return targets.valid.flatten(1).any(1).sum(dtype=torch.float32)

    def loss(self, output: Tensor, targets: Stack) -> LossSum:
        """The squared distance, averaged over channels and over the valid cells of an image, summed over images.

        Where all cells are valid this is the loss of `training/guidance.py`, ||.||^2 / (C y x) an image. A target of
        another grid than the output's is brought to it; a cell then counts as much as it is valid.

        Args:
            output: float32 [R,C,y,x].
            targets: a stack of maps [R,C,...], of grids on the same window.
        """
        assert isinstance(targets, Maps)
        size = (output.shape[2], output.shape[3])
        weight = resized(targets.valid[:, None].float(), size)
        hint = resized(targets.values.float(), size) / weight.clamp_min(_TINY)
        apart = weight[:, 0] * (hint - output.float()).square().mean(1)
        each = apart.sum((1, 2)) / weight.sum((1, 2, 3)).clamp_min(_TINY)
        return LossSum(each.sum(), self.count(targets))

    def decode(self, output: Tensor, frames: Sequence[Frame], size: tuple[int, int]) -> list[Target]:
        """The cells that show the image, float32."""
        return [in_image(one, frame, size) for one, frame in zip(output.detach().float().cpu(), frames, strict=True)]

    def metric(self) -> Metric:
        return FeatureFit()

    def draw(self, image: NDArray[np.uint8], target: Target) -> NDArray[np.uint8]:
        """The three directions in which the cells of this image differ most, as red, green and blue."""
        assert isinstance(target, Maps)
        extent = (float(target.extent[0]), float(target.extent[1]))
        return drawing.components(image, target.values.float().numpy(), target.valid.numpy(), extent)


class _GuidedHead(nn.Module):
    """Equation 4 on the backbone's last map."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.guide = Guide(inputs, outputs)

    def forward(self, features: Features, targets: Stack | None = None) -> Tensor:
        """Float32 [R,C,y,x]; targets are not looked at."""
        assert features.deepest is not None
        guided: Tensor = self.guide(features.deepest)
        return guided


def in_image(map: Tensor, frame: Frame, size: tuple[int, int]) -> Maps:
    """A network's map of a padded input, as the map of the image: the cells whose centres lie in it, at least one.

    Args:
        map: [C,y,x], on the CPU; cell i of y covers H/y pixels.
        frame: how the original lies in the input, from its first pixel on.
        size: (H, W) of the input.
    """
    cells = map.shape[1:]
    height, width = frame.inner_height * cells[0] / size[0], frame.inner_width * cells[1] / size[1]
    rows, columns = (min(most, max(1, math.ceil(e - 0.5))) for e, most in zip((height, width), cells, strict=True))
    stride = max(1, round(max(size[0] / cells[0], size[1] / cells[1])))
    return Maps.whole(map[:, :rows, :columns].contiguous(), (height, width), stride)


class FeatureFit(Metric):
    """How much of the true features is predicted, over all valid cells of the set (not averaged over images).

    "R2": the share of variance explained, 1 - SSE / SST, in percent; SST is about the mean of each channel over the
    set, so that predicting these means scores 0. "cosine": of the angle between the predicted and the true vector of a
    cell, averaged over cells, from -1 to 1. Cells that the prediction leaves out, or where it is NaN, count as zeros.
    """

    name = "R2"

    def __init__(self) -> None:
        self._cells, self._missed, self._squares, self._cosines = 0, 0.0, 0.0, 0.0
        self._sum: NDArray[np.float64] | None = None

    def update(self, prediction: Target, truth: Target) -> None:
        """As `Metric.update`; the prediction may be on another grid."""
        assert isinstance(prediction, Maps)
        assert isinstance(truth, Maps)
        said = on_grid(prediction, truth).values[:, truth.valid].double().nan_to_num(0.0, 0.0, 0.0)
        true = truth.values[:, truth.valid].double()
        self._sum = true.sum(1).numpy() + (0.0 if self._sum is None else self._sum)
        self._cells += true.shape[1]
        self._missed += float((said - true).square().sum())
        self._squares += float(true.square().sum())
        self._cosines += float(torch.cosine_similarity(said, true, dim=0).sum())

    def compute(self) -> dict[str, float]:
        if self._sum is None or not self._cells:
            return {"R2": math.nan, "cosine": math.nan}
        spread = self._squares - float(np.square(self._sum).sum()) / self._cells
        share = 1 - self._missed / spread if spread > 0 else math.nan
        return {"R2": 100 * share, "cosine": self._cosines / self._cells}
