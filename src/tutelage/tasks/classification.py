"""Classes of a whole image: soft targets, label smoothing, one class or several an image.

Letters in shapes: R labelled rows, N images seen by a metric, D embedding width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field as Option
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.tasks import drawing
from tutelage.tasks.evidence import Hits, Ranking
from tutelage.tasks.task import Blind, Features, Frame, Metric, NoLabels, PerImageMetric, Reads, Task, Widths
from tutelage.types import Label, LossSum, Stack, Target


class Classification(Task):
    """A linear layer on the average-pooled C5 (MuST section 3.2). A teacher's whole distribution is the pseudo label
    (section 3.1: better than hard labels)."""

    kind: ClassVar[type] = Label
    reads: ClassVar[Reads] = "embedding"

    task: Literal["classification"] = "classification"
    label_smoothing: float = Option(0.0, ge=0, lt=1)
    """Share of the target that is spread over all classes (with `multi_label`: pulled towards 1/2)."""
    multi_label: bool = False
    """Independent classes, any number an image: a sigmoid each and binary cross entropy, averaged over classes."""

    def head(self, widths: Widths) -> nn.Module:
        return LinearHead(widths.embedding, len(self.names))

    def count(self, targets: Stack) -> Tensor:
        """R, the number of labelled images."""
        probs = _probs(targets)
        return torch.tensor(float(len(probs)), device=probs.device)

    def loss(self, output: Tensor, targets: Stack) -> LossSum:
        """Cross entropy between the target's distribution and the softmax, summed over images.

        Args:
            output: logits [R,K], any float type; computed in float32.
            targets: a stack of labels [R,K].
        """
        logits, probs, smooth = output.float(), _probs(targets), self.label_smoothing
        if self.multi_label:
            probs = probs * (1 - smooth) + smooth / 2
            total = F.binary_cross_entropy_with_logits(logits, probs, reduction="sum") / probs.shape[1]
        else:
            total = F.cross_entropy(logits, probs, label_smoothing=smooth, reduction="sum")
        return LossSum(total, self.count(targets))

    def decode(self, output: Tensor, frames: Sequence[Frame], size: tuple[int, int]) -> list[Target]:
        """Labels, float32 [K]: the softmax, or with `multi_label` a sigmoid a class."""
        logits = output.detach().float()
        probs = logits.sigmoid() if self.multi_label else logits.softmax(1)
        return [Label(row) for row in probs.cpu()]

    def metric(self) -> Metric:
        return MeanAveragePrecision() if self.multi_label else Accuracy()

    def blind(self, targets: Iterable[Target]) -> Blind:
        """The mean of the labels: the commonest class comes first, and with `multi_label` each is as likely as it is
        common."""
        total, images = torch.zeros(len(self.names), dtype=torch.float64), 0
        for target in targets:
            assert isinstance(target, Label)
            total += target.probs
            images += 1
        if not images:
            raise NoLabels("no image has a label")
        said = Label((total / images).float())
        return lambda height, width: said

    def draw(self, image: NDArray[np.uint8], target: Target) -> NDArray[np.uint8]:
        """A strip at the bottom with the (at most) three likeliest classes as bars."""
        assert isinstance(target, Label)
        best = target.probs.topk(min(3, len(target.probs)))
        rows = [(self.names[k], p) for p, k in zip(best.values.tolist(), best.indices.tolist(), strict=True) if p > 0]
        return drawing.bars(image, rows)


class LinearHead(nn.Module):
    """Logits [R,K] from the embedding [R,D], float32 also under autocast: bfloat16 would make ties of close classes."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Features, targets: Stack | None = None) -> Tensor:
        assert features.embedding is not None
        with torch.autocast(features.embedding.device.type, enabled=False):
            return self.linear(features.embedding.float())


class Accuracy(PerImageMetric):
    """Share of images whose likeliest class (for "top-5": one of the five likeliest) is the truth's likeliest.

    "mean per class" is the share within a class, averaged over the classes that the truth shows. It and "top-5" are
    given where there are more than five classes.
    """

    name = "top-1"

    def __init__(self) -> None:
        self._first: list[bool] = []
        self._among: list[bool] = []
        self._truth: list[int] = []
        self._classes = 0

    def update(self, prediction: Target, truth: Target) -> None:
        assert isinstance(prediction, Label)
        assert isinstance(truth, Label)
        best, true = prediction.probs.topk(min(5, len(prediction.probs))).indices, truth.probs.argmax()
        right = (best == true).tolist()
        self._first.append(right[0])
        self._among.append(any(right))
        self._truth.append(int(true))
        self._classes = len(truth.probs)

    def evidence(self) -> Hits:
        columns = np.array(self._first, bool), np.array(self._among, bool), np.array(self._truth, np.int32)
        return Hits(*columns, np.array(self._classes))


class MeanAveragePrecision(PerImageMetric):
    """ "mAP": average precision a class, averaged over the classes that any image shows (truth of at least 1/2).

    Precision is summed over steps of recall, without interpolation; images of one score are one step.
    """

    name = "mAP"

    def __init__(self) -> None:
        self._scores: list[Tensor] = []
        self._truths: list[Tensor] = []

    def update(self, prediction: Target, truth: Target) -> None:
        assert isinstance(prediction, Label)
        assert isinstance(truth, Label)
        self._scores.append(prediction.probs)
        self._truths.append(truth.probs >= 0.5)

    def evidence(self) -> Ranking:
        if not self._scores:
            return Ranking(np.zeros((0, 0), np.float32), np.zeros((0, 0), bool))
        return Ranking(torch.stack(self._scores).numpy(), torch.stack(self._truths).numpy())


def _probs(targets: Stack) -> Tensor:
    assert isinstance(targets, Label)
    return targets.probs
