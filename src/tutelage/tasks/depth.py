"""Depth for every pixel: in metres, or relative (known up to a scale and a shift of its inverse).

Letters in shapes: R labelled rows, H and W pixels of the input, h and w pixels of an original image, y and x cells.
"""

from __future__ import annotations

import math
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
from tutelage.types import Field, LossSum, Stack, Target

_NEAR, _FAR = 1e-3, 1e4
"""Metres that a prediction can say."""
_TINY = 1e-9
_FLAT = 1e-6
"""Least spread that is divided by."""
_TRIM = 0.2
_SCALES = 4
_SMOOTH = 0.5


class Depth(Task):
    """Three convolutions and a linear layer on the fused map (MuST section 3.2).

    "metric": the head says the logarithm of metres; the loss is the absolute difference of logarithms (the log error
    of Eigen et al. 2014, without the square), which is what the share of depths within a ratio measures.
    "relative": the head says inverse depth up to scale and shift, learned as MiDaS does (Ranftl et al. 2020).
    """

    kind: ClassVar[type] = Field
    reads: ClassVar[Reads] = "fused"

    task: Literal["depth"] = "depth"
    mode: Literal["metric", "relative"] = "metric"
    target: Literal["depth", "inverse"] = "depth"
    """What labels and predictions of a "relative" head hold: depth (its inverse is taken, so metres will do) or
    inverse depth of any scale. A "metric" head holds metres."""
    channels: int | None = Option(None, gt=0)
    """Of the head's hidden layers; left out, as many as the pyramid has."""

    @property
    def holds(self) -> Literal["metres", "relative depth", "relative inverse depth"]:
        """What labels and predictions are numbers of."""
        if self.mode == "metric":
            return "metres"
        return "relative depth" if self.target == "depth" else "relative inverse depth"

    def takes(self, said: Depth) -> bool:
        """Whether what another depth head says is a label of this one: metres serve wherever labels hold depth."""
        return said.holds == self.holds or (said.holds, self.holds) == ("metres", "relative depth")

    def head(self, widths: Widths) -> nn.Module:
        return PixelHead(widths.pyramid, self.channels, 1, exact=True)

    def count(self, targets: Stack) -> Tensor:
        """Valid pixels at stride 4 ("metric"), or images with any such pixel ("relative")."""
        assert isinstance(targets, Field)
        if self.mode == "metric":
            return valid_count(targets.valid)
        return subsample(targets.valid).flatten(1).any(1).sum(dtype=torch.float32)

    def loss(self, output: Tensor, targets: Stack) -> LossSum:
        """The loss at stride 4, in float32: summed over valid pixels ("metric") or over images ("relative").

        Args:
            output: [R,1,ceil(H/4),ceil(W/4)], log metres or inverse depth.
            targets: a stack of fields [R,H,W]; valid depths are positive.
        """
        assert isinstance(targets, Field)
        said = output.float().squeeze(1)
        true, valid = subsample(targets.values).float(), subsample(targets.valid)
        if self.mode == "metric":
            error = (said - true.clamp_min(_NEAR).log()).abs()
            total = torch.where(valid, error, 0.0).sum()
        else:
            true = true if self.target == "inverse" else _inverse(true)
            total = affine_invariant_loss(said, true, valid).sum()
        return LossSum(total, self.count(targets))

    def decode(self, output: Tensor, frames: Sequence[Frame], size: tuple[int, int]) -> list[Target]:
        """Fields at the originals' sizes, valid everywhere, in what the head's labels hold.

        "metric": metres in [0.001, 10000]. "relative" with inverse targets: the inverse depth as predicted.
        "relative" with depth targets: a depth in [1, 10] whose inverse is an affine map of the prediction, so that a
        pseudo label trains another head exactly as the prediction itself would.
        """
        maps = output.detach().float()
        return [self._field(resized_back(m, frame, size)[0]) for m, frame in zip(maps, frames, strict=True)]

    def _field(self, values: Tensor) -> Field:
        if self.mode == "metric":
            values = values.clamp(math.log(_NEAR), math.log(_FAR)).exp()
        elif self.target == "depth":
            low, high = values.aminmax()
            values = 1 / (0.1 + 0.9 * (values - low) / (high - low).clamp_min(_FLAT))
        return Field(values.cpu(), torch.ones(values.shape, dtype=torch.bool))

    def metric(self) -> Metric:
        return DepthErrors(align=self.mode == "relative", inverse=self._holds_inverse)

    def blind(self, targets: Iterable[Target]) -> Blind:
        """At each place of a 16 x 16 grid the median of its valid pixels, exact to half a hundredth of itself.

        A median is the same in depth, in its logarithm and in its inverse. For a "relative" head the metric's fit gives
        it the scale, and the shift, of each image.
        """
        median = Median(math.log(_NEAR), math.log(_FAR), 1e-2)
        for target in targets:
            assert isinstance(target, Field)
            known = target.valid & (target.values > 0)
            median.add(target.values[known].log(), places(*known.shape)[known])
        middle = median.value().exp()

        def said(height: int, width: int) -> Field:
            return Field(middle[places(height, width)], torch.ones(height, width, dtype=torch.bool))

        return said

    def draw(self, image: NDArray[np.uint8], target: Target) -> NDArray[np.uint8]:
        """Near bright, far dark; with the range in metres where it is known. Pixels that are not valid are hatched."""
        assert isinstance(target, Field)
        unit = "m" if self.mode == "metric" else None
        values, valid = target.values, target.valid
        nearness = values if self._holds_inverse else _inverse(values)
        return drawing.depth(image, nearness.numpy(), valid.numpy(), unit)

    @property
    def _holds_inverse(self) -> bool:
        return self.holds == "relative inverse depth"


def affine_invariant_loss(said: Tensor, true: Tensor, valid: Tensor) -> Tensor:
    """MiDaS' loss: blind to the scale and shift of either side.

    Each side is shifted by its median and divided by its mean absolute deviation from it over valid pixels; the
    absolute residuals, without the largest fifth, are summed and divided by twice the number of valid pixels; to that
    comes half of the gradient-matching term on 4 resolutions, each divided by its own number of valid pixels.

    Source: Ranftl et al., "Towards robust monocular depth estimation", TPAMI 2020, section 5 (scale- and
    shift-invariant losses, trimmed MAE, multi-scale gradient matching, alpha = 0.5).

    Args:
        said, true: float32 [R,y,x], inverse depth.
        valid: bool [R,y,x].

    Returns:
        float32 [R]; 0 for images without a valid pixel.
    """
    residual = torch.where(valid, _align(said, valid) - _align(true, valid), 0.0)
    count = valid.flatten(1).sum(1)
    # The largest residuals are likely errors of the label: they are cut, not clipped.
    ordered = residual.abs().masked_fill(~valid, math.inf).flatten(1).sort(1).values
    kept = torch.arange(ordered.shape[1], device=said.device) < ((1 - _TRIM) * count)[:, None].ceil()
    data = torch.where(kept, ordered, 0.0).sum(1) / (2 * count.clamp_min(1))
    smooth = torch.zeros_like(data)
    for scale in range(_SCALES):
        step = 2**scale
        smooth = smooth + _gradient_error(residual[:, ::step, ::step], valid[:, ::step, ::step])
    return data + _SMOOTH * smooth


def _align(values: Tensor, valid: Tensor) -> Tensor:
    """[R,y,x] shifted by the median and divided by the mean absolute deviation of valid pixels; 0 where not valid."""
    some = valid.flatten(1).any(1)
    hidden = values.masked_fill(~valid, math.nan).flatten(1)
    middle = torch.where(some[:, None], hidden, 0.0).nanmedian(1).values[:, None, None]
    centred = torch.where(valid, values - middle, 0.0)
    spread = centred.abs().sum((1, 2)) / valid.sum((1, 2)).clamp_min(1)
    return centred / spread.clamp_min(_FLAT)[:, None, None]


def _gradient_error(residual: Tensor, valid: Tensor) -> Tensor:
    """Absolute differences of neighbouring residuals, where both are valid, a valid pixel: [R]."""
    down = (residual[:, 1:] - residual[:, :-1]).abs() * (valid[:, 1:] & valid[:, :-1])
    across = (residual[:, :, 1:] - residual[:, :, :-1]).abs() * (valid[:, :, 1:] & valid[:, :, :-1])
    return (down.sum((1, 2)) + across.sum((1, 2))) / valid.sum((1, 2)).clamp_min(1)


def _inverse(depth: Tensor) -> Tensor:
    """1/depth, and 0 where depth is not positive."""
    return torch.where(depth > 0, 1 / depth.clamp_min(_TINY), 0.0)


class DepthErrors(PerImageMetric):
    """Errors of depth, pooled over all valid pixels of the set (not averaged over images: MuST reports "the percentage
    of predicted depth values").

    With p predicted and t true: "< 1.25" (MuST section B.3), "< 1.25^2", "< 1.25^3": the share of pixels where
    max(p/t, t/p) is below. "AbsRel": mean of |p - t| / t. "SqRel": mean of (p - t)^2 / t. "RMSE": in the unit of the
    truth. "RMSE log": of natural logarithms. "log10": mean of |log10 p - log10 t|. (Eigen et al. 2014, section 4;
    log10: Liu et al. 2015.) Pixels that the prediction leaves out count as a depth of 0.001.

    Args:
        align: fit scale and shift of the predicted inverse depth to the true one by least squares, image by image,
            first (Ranftl et al. 2020, section 6); the result is cut at the farthest depth of the truth.
        inverse: predictions and truths hold inverse depth.
    """

    name = "< 1.25"
    lower_is_better = frozenset({"AbsRel", "SqRel", "RMSE", "RMSE log", "log10"})

    def __init__(self, align: bool = False, inverse: bool = False) -> None:
        self._align, self._inverse = align, inverse
        self._pixels: list[int] = []
        self._sums: list[Tensor] = []

    def update(self, prediction: Target, truth: Target) -> None:
        assert isinstance(prediction, Field)
        assert isinstance(truth, Field)
        valid = truth.valid & (truth.values > 0)
        said, true = prediction.values[valid].double(), truth.values[valid].double()
        known = prediction.valid[valid]
        if self._inverse:
            true = 1 / true
        if self._align and len(true):
            near = said if self._inverse else _inverse(said)
            said = 1 / _fit(near, 1 / true, known).clamp_min(1 / true.max())
        elif self._inverse:
            said = 1 / said.clamp_min(1 / _FAR)
        said = torch.where(known, said, 0.0).clamp_min(_NEAR)
        ratio, square, log = torch.maximum(said / true, true / said), (said - true).square(), (said / true).log()
        self._pixels.append(len(true))
        self._sums.append(
            torch.stack(
                [
                    *((ratio < 1.25**power).sum() for power in (1, 2, 3)),
                    ((said - true).abs() / true).sum(),
                    (square / true).sum(),
                    square.sum(),
                    log.square().sum(),
                    log.abs().sum() / math.log(10),
                ]
            )
        )

    def evidence(self) -> PixelSums:
        sums = torch.stack(self._sums).numpy() if self._sums else np.zeros((0, len(_FIGURES)))
        return PixelSums(np.array(self._pixels, np.int64), sums, np.array([*_FIGURES]), np.array([*_FIGURES.values()]))


_FIGURES = {
    "< 1.25": "percent",
    "< 1.25^2": "percent",
    "< 1.25^3": "percent",
    "AbsRel": "mean",
    "SqRel": "mean",
    "RMSE": "root",
    "RMSE log": "root",
    "log10": "mean",
}
"""What is made of each sum over pixels (`evidence.PixelSums`)."""


def _fit(said: Tensor, true: Tensor, known: Tensor) -> Tensor:
    """float64 [N] `said` scaled and shifted to be nearest to `true` in least squares over `known` entries."""
    if not known.any():
        return said
    x, y = said[known], true[known]
    centred = x - x.mean()
    spread = centred.square().sum()
    scale = (centred * (y - y.mean())).sum() / spread if spread > 0 else torch.zeros_like(spread)
    return scale * (said - x.mean()) + y.mean()
