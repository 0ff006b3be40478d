"""A trained network against held-out labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tutelage.data.loading import evaluation_batches
from tutelage.data.quarantine import Quarantine
from tutelage.data.source import Dataset
from tutelage.models.student import Student
from tutelage.tasks.task import Frame, Metric
from tutelage.training.schedule import autocast_dtype
from tutelage.types import Target


@dataclass(frozen=True)
class Predictor:
    """A network ready to predict: in evaluation mode, on its device, in the device's best precision."""

    student: Student
    device: torch.device
    dtype: torch.dtype | None

    @torch.inference_mode()
    def predict(self, images: Tensor, frames: Sequence[Frame], heads: Sequence[str]) -> dict[str, list[Target]]:
        """Targets a head, one an image, at the original sizes, on the CPU.

        Args:
            images: uint8 [B,3,S,S], RGB, padded.
            frames: how each original was laid into its square.
            heads: which to compute.
        """
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            return self.student.predict(images.to(self.device, non_blocking=True), frames, heads)

    @torch.inference_mode()
    def output(self, images: Tensor, head: str) -> Any:
        """What one head says before it is decoded, on the device: for `Task.decode`, or to be averaged first.

        Args:
            images: uint8 [B,3,H,W], RGB, padded.
            head: which.
        """
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            features = self.student.features(images.to(self.device, non_blocking=True))
            return self.student.heads[head](features, None)


def prepare(student: Student, device: torch.device) -> Predictor:
    """Bring a network to a device for prediction."""
    dtype = autocast_dtype("auto", device)
    layout = torch.channels_last if dtype is torch.bfloat16 else torch.contiguous_format
    student.to(device, memory_format=layout).eval()  # type: ignore[call-overload]
    return Predictor(student, device, dtype)


@dataclass(frozen=True)
class Score:
    """The figures of one head on one dataset.

    Attributes:
        name: the papers' figure.
        lower_is_better: names of the figures of which less is better.
        values: all figures by name; `name` is among them.
        images: how many were labelled.
    """

    name: str
    lower_is_better: frozenset[str]
    values: dict[str, float]
    images: int

    @property
    def value(self) -> float:
        """The papers' figure."""
        return self.values[self.name]


def evaluate(
    student: Student,
    head: str,
    dataset: Dataset,
    device: torch.device,
    quarantine: Quarantine | None = None,
    batch: int = 64,
) -> Score:
    """Score one head on the labelled images of a dataset.

    Args:
        student: has this head; it is left in evaluation mode on `device`.
        head: which.
        dataset: labels of this head; images without a label are passed over.
        device: where to compute.
        quarantine: where images that cannot be read are listed; None: such an image stops the run.
        batch: images at a time.
    """
    predictor, metric, images = prepare(student, device), student.tasks[head].metric(), 0
    for found in evaluation_batches(dataset, student.model.size, batch, quarantine=quarantine):
        said = predictor.predict(found.images, found.frames, [head])[head]
        for prediction, truth in zip(said, found.targets, strict=True):
            if truth is not None:
                metric.update(prediction, truth)
                images += 1
    return score(metric, images)


def score(metric: Metric, images: int) -> Score:
    """A metric's figures with its name first."""
    values = metric.compute()
    ordered = {metric.name: values[metric.name], **values}
    return Score(metric.name, metric.lower_is_better, ordered, images)
