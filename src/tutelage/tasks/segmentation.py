"""A class for every pixel.

Letters in shapes: R labelled rows, K classes, H and W pixels of the input, h and w pixels of an original image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field as Option
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import UserError
from tutelage.tasks import drawing
from tutelage.tasks.pixelwise import PixelHead, resize_back, subsample, valid_count
from tutelage.tasks.task import Frame, Metric, Reads, Task, Widths
from tutelage.types import IGNORE, LossSum, Mask, Stack, Target


class Segmentation(Task):
    """Three convolutions and a linear layer on the fused map (MuST section 3.2), cross entropy at stride 4.

    Pseudo labels: pixels of a probability below `pseudo_threshold` become 255, not labelled (section 3.1).
    """

    kind: ClassVar[type] = Mask
    reads: ClassVar[Reads] = "fused"

    task: Literal["segmentation"] = "segmentation"
    channels: int | None = Option(None, gt=0)
    """Of the head's hidden layers; left out, as many as the pyramid has."""
    pseudo_threshold: float = Option(0.5, ge=0, le=1)
    """Least probability of a pixel's class in a pseudo label, compared with the stored one (steps of 1/255)."""

    def head(self, widths: Widths) -> nn.Module:
        """Raises UserError where there are more classes than a mask of uint8 can name beside 255."""
        if len(self.names) > IGNORE:
            raise UserError(
                "too many classes for a mask",
                field="classes",
                value=len(self.names),
                fix=f"at most {IGNORE}: masks hold one byte a pixel, and 255 means not labelled",
            )
        return PixelHead(widths.pyramid, self.channels, len(self.names))

    def count(self, targets: Stack) -> Tensor:
        """Labelled pixels at stride 4 (`pixelwise.subsample`)."""
        return valid_count(_ids(targets) != IGNORE)

    def loss(self, output: Tensor, targets: Stack) -> LossSum:
        """Cross entropy summed over labelled pixels at stride 4, in float32.

        Args:
            output: logits [R,K,ceil(H/4),ceil(W/4)].
            targets: a stack of masks, uint8 [R,H,W].
        """
        ids = subsample(_ids(targets)).long()
        total = F.cross_entropy(output.float(), ids, ignore_index=IGNORE, reduction="sum")
        return LossSum(total, self.count(targets))

    def decode(self, output: Tensor, frames: Sequence[Frame], size: tuple[int, int]) -> list[Target]:
        """Masks at the originals' sizes: logits resized bilinearly, then the likeliest class and its softmax.

        The confidence is the probability times 255, rounded.
        """
        return [self._decode(logits, frame, size) for logits, frame in zip(output.detach(), frames, strict=True)]

    def _decode(self, logits: Tensor, frame: Frame, size: tuple[int, int]) -> Mask:
        ids = torch.empty(frame.height, frame.width, dtype=torch.uint8)
        confidence = torch.empty_like(ids)
        for rows, strip in resize_back(logits, frame, size):
            best, index = strip.max(0)
            probability = (best - strip.logsumexp(0)).exp()
            ids[rows] = index.to("cpu", torch.uint8)
            confidence[rows] = (probability * 255).round().to("cpu", torch.uint8)
        return Mask(ids, confidence)

    def pseudo(self, target: Target) -> Target | None:
        """Unsure pixels become 255; None when no pixel is left. Masks without confidence stay as they are."""
        assert isinstance(target, Mask)
        if target.confidence is None:
            return target
        unsure = target.confidence.float() < self.pseudo_threshold * 255
        ids = target.ids.masked_fill(unsure, IGNORE)
        return Mask(ids, target.confidence) if bool((ids != IGNORE).any()) else None

    def metric(self) -> Metric:
        return MeanIoU(len(self.names))

    def draw(self, image: NDArray[np.uint8], target: Target) -> NDArray[np.uint8]:
        """The classes as a colour overlay with outlines, unlabelled pixels hatched in grey, and a legend."""
        assert isinstance(target, Mask)
        return drawing.masks(image, target.ids.numpy(), self.names)


class MeanIoU(Metric):
    """ "mIoU" from one confusion matrix over the whole set, and "pixel accuracy".

    Pixels whose truth is 255 do not count; a prediction of 255 is wrong. Classes that neither truth nor prediction
    shows are left out of the mean.
    """

    name = "mIoU"

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._confusion = torch.zeros(classes, classes + 1, dtype=torch.int64)

    def update(self, prediction: Target, truth: Target) -> None:
        assert isinstance(prediction, Mask)
        assert isinstance(truth, Mask)
        if prediction.ids.shape != truth.ids.shape:
            raise ValueError(f"the prediction is {tuple(prediction.ids.shape)}, the truth {tuple(truth.ids.shape)}")
        k, labelled = self._classes, truth.ids != IGNORE
        said, true = prediction.ids[labelled].long(), truth.ids[labelled].long()
        said[said == IGNORE] = k
        if len(true) and (int(said.max()) > k or int(true.max()) >= k):
            raise ValueError(f"a mask holds a class id that is none of 0 to {k - 1} and not {IGNORE}")
        self._confusion += torch.bincount(true * (k + 1) + said, minlength=k * (k + 1)).view(k, k + 1)

    def compute(self) -> dict[str, float]:
        counts = self._confusion.double()
        right = counts.diagonal()
        union = counts.sum(1) + counts[:, :-1].sum(0) - right
        seen = union > 0
        ious = right[seen] / union[seen]
        return {
            "mIoU": 100 * float(ious.mean()),
            "pixel accuracy": 100 * float(right.sum() / counts.sum()),
        }


def _ids(targets: Stack) -> Tensor:
    assert isinstance(targets, Mask)
    return targets.ids
