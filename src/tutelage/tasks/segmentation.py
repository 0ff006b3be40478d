"""A class for every pixel.

Letters in shapes: R labelled rows, K classes, H and W pixels of the input, h and w pixels of an original image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field as Option
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import UserError
from tutelage.tasks import drawing
from tutelage.tasks.evidence import PixelCounts
from tutelage.tasks.pixelwise import PixelHead, WayBack, strips, subsample, valid_count
from tutelage.tasks.positions import Counts, places
from tutelage.tasks.task import Blind, Frame, Metric, PerImageMetric, Reads, Task, Widths
from tutelage.tasks.thresholds import COMMON, Threshold, check_names, each
from tutelage.types import IGNORE, LossSum, Mask, Stack, Target


def check_maskable(names: Sequence[str]) -> None:
    """That a mask of bytes can hold the classes; raises UserError otherwise."""
    if len(names) > IGNORE:
        raise UserError(
            "too many classes for a mask",
            field="classes",
            value=len(names),
            fix=f"at most {IGNORE}: masks hold one byte a pixel, and 255 means not labelled",
        )


class Segmentation(Task):
    """Three convolutions and a linear layer on the fused map (MuST section 3.2), cross entropy at stride 4.

    Pseudo labels: pixels of a probability below `pseudo_threshold` become 255, not labelled (section 3.1). The rule is
    applied when labels are read.
    """

    kind: ClassVar[type] = Mask
    reads: ClassVar[Reads] = "fused"

    task: Literal["segmentation"] = "segmentation"
    channels: int | None = Option(None, gt=0)
    """Of the head's hidden layers; left out, as many as the pyramid has."""
    pseudo_threshold: Threshold = COMMON
    """Least probability of a pixel's class in a pseudo label, compared with the stored one (steps of 1/255): a number,
    or a number a class name, `default` standing for all others."""

    @model_validator(mode="after")
    def _check_threshold(self) -> Segmentation:
        check_names(self.pseudo_threshold, self.classes)
        return self

    def head(self, widths: Widths) -> nn.Module:
        """Raises UserError where there are more classes than a mask of uint8 can name beside 255."""
        check_maskable(self.names)
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
        """Masks at the originals' sizes, each of one look (`averaged_mask`)."""
        return [averaged_mask([Look(logits, f, size)]) for logits, f in zip(output.detach(), frames, strict=True)]

    def pseudo(self, target: Target) -> Target | None:
        """Unsure pixels become 255; None when no pixel is left. Masks without confidence stay as they are."""
        assert isinstance(target, Mask)
        if target.confidence is None:
            return target
        ids = target.ids.masked_fill(self._unsure(target.ids, target.confidence), IGNORE)
        return Mask(ids, target.confidence) if bool((ids != IGNORE).any()) else None

    def _unsure(self, ids: Tensor, confidence: Tensor) -> Tensor:
        """bool [h,w]: pixels below the threshold of their class."""
        if isinstance(self.pseudo_threshold, float):
            return confidence.float() < self.pseudo_threshold * 255
        least = np.zeros(IGNORE + 1, np.uint8)
        limits = np.array(each(self.pseudo_threshold, self.names)) * 255
        # A whole number below a limit is below the next whole number; float32, as above.
        least[: len(limits)] = np.ceil(limits.astype(np.float32))
        return torch.from_numpy(confidence.numpy() < least.take(ids.numpy()))

    def metric(self) -> Metric:
        return MeanIoU(len(self.names))

    def blind(self, targets: Iterable[Target]) -> Blind:
        """At each place of a 16 x 16 grid the class that most labelled pixels there have; of equal ones the first."""
        counts = Counts(IGNORE)
        for target in targets:
            assert isinstance(target, Mask)
            known = target.ids != IGNORE
            counts.add(target.ids[known].long(), places(*known.shape)[known])
        commonest = counts.commonest().to(torch.uint8)
        return lambda height, width: Mask(commonest[places(height, width)])

    def draw(self, image: NDArray[np.uint8], target: Target) -> NDArray[np.uint8]:
        """The classes as a colour overlay with outlines, unlabelled pixels hatched in grey, and a legend."""
        assert isinstance(target, Mask)
        return drawing.masks(image, target.ids.numpy(), self.names)


class Look(NamedTuple):
    """What a network says of one image in one input.

    Attributes:
        logits: [K,y,x] of any float type, on any device; the y x x cells cover the whole input, whatever their number.
        frame: how the image, mirrored where `flipped`, lies in the input.
        size: (H, W) of the input.
        flipped: the network saw the image mirrored left to right.
    """

    logits: Tensor
    frame: Frame
    size: tuple[int, int]
    flipped: bool = False


def averaged_mask(looks: Sequence[Look]) -> Mask:
    """The likeliest class of every pixel, probabilities being averaged over looks, on the CPU.

    The logits of each look are resized to the image (bilinear), the softmax is taken there, in float32, flipped looks
    are mirrored back, and the mean decides. The confidence is the mean probability of the class times 255, rounded.
    Source: multi-scale and flip inference, as in Zoph et al. (NeurIPS 2020, section 3.2, scales 0.5 to 1.75).

    An image and its mirror image, each looked at in both ways and in the same order of sizes, get masks that mirror
    each other exactly.

    A network that fails on the image (NaN or infinite logits that leave no probability) gives a mask without a class:
    ids of 255 and a confidence of 0 everywhere, which no softmax can say of at most 255 classes. The labels store
    refuses such a mask.

    Args:
        looks: at least one; all of one image and one label space of at most 255 classes.
    """
    frame = looks[0].frame
    ways = [(WayBack(look.logits, look.frame, look.size), look.flipped) for look in looks]
    ids = torch.empty(frame.height, frame.width, dtype=torch.uint8)
    confidence = torch.empty_like(ids)
    for rows in strips([way for way, _ in ways]):
        probability, index = _likeliest(ways, rows)
        if bool(probability.isnan().any()):
            return Mask(ids.fill_(IGNORE), confidence.zero_())
        ids[rows] = index.to("cpu", torch.uint8)
        confidence[rows] = (probability * 255).round().to("cpu", torch.uint8)
    return Mask(ids, confidence)


def _likeliest(ways: Sequence[tuple[WayBack, bool]], rows: slice) -> tuple[Tensor, Tensor]:
    """The mean probability of the likeliest class, float32 [rows,w], and that class, int64 [rows,w]."""
    if len(ways) == 1 and not ways[0][1]:
        strip = ways[0][0].strip(rows)
        best, index = strip.max(0)
        return (best - strip.logsumexp(0)).exp(), index
    sums: dict[bool, Tensor] = {}
    for way, flipped in ways:  # one sum a side: in what order floats are added must not tell the sides apart
        probs = way.strip(rows).softmax(0)
        sums[flipped] = sums[flipped].add_(probs) if flipped in sums else probs
    total = sums.get(False)
    if True in sums:
        back = sums[True].flip(-1)
        total = back if total is None else total.add_(back)
    assert total is not None
    best, index = total.max(0)
    return best / len(ways), index


class MeanIoU(PerImageMetric):
    """ "mIoU" from one confusion matrix over the whole set, and "pixel accuracy".

    Pixels whose truth is 255 do not count; a prediction of 255 is wrong. Classes that neither truth nor prediction
    shows are left out of the mean.
    """

    name = "mIoU"

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._images = 0
        self._entries: list[NDArray[np.int64]] = []
        """An image each: its number, the class, and the pixels right, true and said, [5,E]."""

    def update(self, prediction: Target, truth: Target) -> None:
        assert isinstance(prediction, Mask)
        assert isinstance(truth, Mask)
        if prediction.ids.shape != truth.ids.shape:
            raise ValueError(f"the prediction is {tuple(prediction.ids.shape)}, the truth {tuple(truth.ids.shape)}")
        k = self._classes
        # All pairs of bytes, in one go over the pixels: looking for the labelled ones first takes several.
        pairs = torch.bincount((truth.ids.int() << 8 | prediction.ids).flatten(), minlength=1 << 16).view(256, 256)
        pairs = pairs[:IGNORE]
        if bool(pairs[k:].any()) or bool(pairs[:, k:IGNORE].any()):
            raise ValueError(f"a mask holds a class id that is none of 0 to {k - 1} and not {IGNORE}")
        confusion = torch.cat([pairs[:k, :k], pairs[:k, IGNORE:]], 1).numpy()
        counts = np.stack([confusion.diagonal(), confusion.sum(1), confusion[:, :-1].sum(0)])
        some = np.flatnonzero(counts.any(0))
        self._entries.append(np.vstack([np.full(len(some), self._images), some, counts[:, some]]))
        self._images += 1

    def evidence(self) -> PixelCounts:
        image, label, right, true, said = np.concatenate([np.zeros((5, 0), np.int64), *self._entries], 1)
        return PixelCounts(
            image.astype(np.int32),
            label.astype(np.uint8),
            right,
            true,
            said,
            np.array(self._images),
            np.array(self._classes),
        )


def _ids(targets: Stack) -> Tensor:
    assert isinstance(targets, Mask)
    return targets.ids
