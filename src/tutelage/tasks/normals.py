"""Surface normals: a unit vector for every pixel.

Letters in shapes: R labelled rows, H and W pixels of the input, h and w pixels of an original image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field as Option
from torch import Tensor, nn

from tutelage.tasks import drawing
from tutelage.tasks.evidence import PixelSums
from tutelage.tasks.pixelwise import PixelHead, resized_back, subsample, valid_count
from tutelage.tasks.positions import Median, places
from tutelage.tasks.task import Blind, Frame, Metric, PerImageMetric, Reads, Task, Widths
from tutelage.types import LossSum, Stack, Target, Vectors

_SHORT = 1e-3
"""Length below which a vector's direction fades out: it bounds the gradient of normalising, also at length zero."""


class Normals(Task):
    """Three convolutions and a linear layer on the fused map (MuST section 3.2); 1 - cosine as the loss.

    Axes are the camera's: x right, y down, z into the scene.
    """

    kind: ClassVar[type] = Vectors
    reads: ClassVar[Reads] = "fused"

    task: Literal["normals"] = "normals"
    channels: int | None = Option(None, gt=0)
    """Of the head's hidden layers; left out, as many as the pyramid has."""

    def head(self, widths: Widths) -> nn.Module:
        return PixelHead(widths.pyramid, self.channels, 3)

    def count(self, targets: Stack) -> Tensor:
        """Valid pixels at stride 4 (`pixelwise.subsample`)."""
        assert isinstance(targets, Vectors)
        return valid_count(targets.valid)

    def loss(self, output: Tensor, targets: Stack) -> LossSum:
        """1 - cosine of the angle to the true normal, summed over valid pixels at stride 4, in float32.

        Args:
            output: vectors of any length [R,3,ceil(H/4),ceil(W/4)].
            targets: a stack of unit vectors [R,3,H,W].
        """
        assert isinstance(targets, Vectors)
        cosine = (_unit(output.float()) * subsample(targets.values)).sum(1)
        error = torch.where(subsample(targets.valid), 1 - cosine, 0.0)
        return LossSum(error.sum(), self.count(targets))

    def decode(self, output: Tensor, frames: Sequence[Frame], size: tuple[int, int]) -> list[Target]:
        """Unit normals at the originals' sizes, made unit again after resizing.

        Where opposite directions cancel to a length below 1e-6 the pixel is not valid. NaN stays, as a valid pixel: a
        network that fails must not look like one that says nothing.
        """
        units = _unit(output.detach().float())
        return [_vectors(resized_back(m, frame, size)) for m, frame in zip(units, frames, strict=True)]

    def metric(self) -> Metric:
        return AngularErrors()

    def blind(self, targets: Iterable[Target]) -> Blind:
        """At each place of a 16 x 16 grid the medians of the three components of its valid pixels, made a unit vector.

        Medians that cancel (a length below 0.001, as where three walls share the pixels evenly) give the normal of a
        surface that faces the camera.
        """
        medians = [Median(-1.0, 1.0, 1e-3) for _ in range(3)]
        for target in targets:
            assert isinstance(target, Vectors)
            at = places(*target.valid.shape)[target.valid]
            for median, values in zip(medians, target.values[:, target.valid], strict=True):
                median.add(values, at)
        middle = torch.stack([median.value() for median in medians])
        length = torch.linalg.vector_norm(middle, dim=0)
        unit = torch.where(length >= 1e-3, middle / length, torch.tensor([0.0, 0.0, -1.0])[:, None])

        def said(height: int, width: int) -> Vectors:
            return Vectors(unit[:, places(height, width)], torch.ones(height, width, dtype=torch.bool))

        return said

    def draw(self, image: NDArray[np.uint8], target: Target) -> NDArray[np.uint8]:
        """x, up and towards the camera as red, green and blue; pixels that are not valid hatched in grey."""
        assert isinstance(target, Vectors)
        return drawing.normals(image, target.values.numpy(), target.valid.numpy())


class AngularErrors(PerImageMetric):
    """Angles between predicted and true normals, pooled over all valid pixels of the set (not averaged over images).

    Shares below 11.25 ("< 11.25 deg", MuST section B.3), 22.5 and 30 degrees, mean and median in degrees. The median
    is read from a histogram of 0.01 degree steps, so that memory does not grow; that histogram is of the whole set, so
    the median is the one figure that is not computed for other weights. Pixels where only the truth is valid, or the
    prediction is NaN, count as 180 degrees.
    """

    name = "< 11.25 deg"
    lower_is_better = frozenset({"mean deg", "median deg"})

    _STEPS = 18000
    _LIMITS = (11.25, 22.5, 30.0)

    def __init__(self) -> None:
        self._pixels: list[int] = []
        self._sums: list[list[float]] = []
        self._histogram = torch.zeros(self._STEPS, dtype=torch.int64)

    def update(self, prediction: Target, truth: Target) -> None:
        assert isinstance(prediction, Vectors)
        assert isinstance(truth, Vectors)
        said, true = prediction.values[:, truth.valid].double(), truth.values[:, truth.valid].double()
        # atan2 of sine and cosine is exact at small angles, where acos loses half of the digits
        sine = torch.linalg.vector_norm(torch.linalg.cross(said, true, dim=0), dim=0)
        angles = torch.rad2deg(torch.atan2(sine, (said * true).sum(0)))
        angles[~prediction.valid[truth.valid] | angles.isnan()] = 180.0
        self._pixels.append(len(angles))
        self._sums.append([*(float((angles < limit).sum()) for limit in self._LIMITS), float(angles.sum())])
        steps = (angles * (self._STEPS / 180)).long().clamp(max=self._STEPS - 1)
        self._histogram += torch.bincount(steps, minlength=self._STEPS)

    def compute(self, weights: NDArray[np.int64] | None = None) -> dict[str, float]:
        figures = super().compute(weights)
        if weights is not None:
            return figures
        n = sum(self._pixels)
        middle = int(torch.searchsorted(self._histogram.cumsum(0), (n + 1) // 2))
        return figures | {"median deg": (middle + 0.5) * 180 / self._STEPS if n else float("nan")}

    def evidence(self) -> PixelSums:
        names = np.array([*(f"< {limit:g} deg" for limit in self._LIMITS), "mean deg"])
        sums = np.array(self._sums, np.float64).reshape(-1, len(names))
        return PixelSums(np.array(self._pixels, np.int64), sums, names, np.array(["percent"] * 3 + ["mean"]))


def _unit(vectors: Tensor) -> Tensor:
    """float32 [R,3,...] divided by their lengths; the gradient stays finite at length zero."""
    return vectors * torch.rsqrt(vectors.square().sum(1, keepdim=True) + _SHORT**2)


def _vectors(values: Tensor) -> Vectors:
    """Raw vectors [3,h,w] as a target on the CPU."""
    values = values.cpu()
    length = torch.linalg.vector_norm(values, dim=0)
    valid = ~(length <= 1e-6)
    return Vectors(torch.where(valid, values / length.clamp_min(1e-6), 0.0), valid)
