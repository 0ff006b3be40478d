"""How good frozen features are, without training the network: a linear classifier, and nearest neighbours.

X-Learner (He et al., ECCV 2022) section 4.2: logistic regression by L-BFGS, at most 1,000 iterations, the weight of the
L2 penalty from a set "distributed evenly" from 1e-1 to 1e-5. Evenly is taken to mean on a logarithmic scale, as in the
protocol that it follows (Radford et al., ICML 2021); how many values, and whether the penalty stands beside the sum or
the mean of the losses, the paper does not say. Here it is the mean. The weight is chosen on the validation part and
the classifier of the training part alone, not of both, is reported on the test part.

Features are the pooled deepest map, which a classification head reads, in float32, of letterboxed images without
augmentation. Before the regression they are centred and divided by one number, so that their mean square over the
training part is 1: a penalty then weighs the same for every network, and the shape of the features is left as it is
(no channel is rescaled against another). Nearest neighbours (Wu et al., CVPR 2018, section 3.4) see them as they are.

Letters in shapes: N images, M images asked about, D width of the features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.data.quarantine import Quarantine
from tutelage.data.source import Dataset
from tutelage.downstream import Probe
from tutelage.errors import UserError
from tutelage.models.student import Student
from tutelage.progress import SILENT, Progress
from tutelage.tasks.classification import Classification
from tutelage.training.evaluate import Score, score
from tutelage.training.processes import device as own_device
from tutelage.transfer.frozen import Embedded, kept
from tutelage.transfer.parts import refuse_silent
from tutelage.types import Label

_ROWS = 16_384  # images whose logits are held at once
_CELLS = 2**24  # similarities that are held at once
_CURVATURE = 1e4  # of the penalty, as the search sees it


class Fit(NamedTuple):
    """A linear classifier: logits are x @ weight.T + bias.

    Attributes:
        weight: [K,D]; 0 for a class that was not learned.
        bias: [K]; infinite for a class that was not learned: -inf, it was never seen, or inf, it was always seen (only
            where classes are independent).
    """

    weight: Tensor
    bias: Tensor

    def probabilities(self, x: Tensor, multi_label: bool) -> Tensor:
        """[M,K] of features [M,D]: a softmax, or a sigmoid a class."""
        logits = x @ self.weight.T + self.bias
        return logits.sigmoid() if multi_label else logits.softmax(1)


@dataclass(frozen=True)
class Probed:
    """The outcome of probing one initialisation on one downstream set.

    Attributes:
        test: figures of the linear classifier on the test part; None where the features cannot be used.
        validation: the papers' figure on the validation part, at the chosen penalty.
        l2: the chosen penalty.
        edge: on which edge of the grid it lies: "l2 low", "l2 high" or "".
        neighbours: figures of the nearest neighbours on the test part; None as for `test`.
        neighbours_validation: their papers' figure on the validation part.
        failed: what failed, with the reason.
    """

    test: Score | None
    validation: float
    l2: float
    edge: str
    neighbours: Score | None
    neighbours_validation: float
    failed: dict[str, str]


def probe(
    student: Student,
    name: str,
    task: Classification,
    parts: Mapping[str, Dataset],
    settings: Probe,
    folder: Path,
    quarantine: Quarantine | None = None,
    progress: Progress = SILENT,
) -> Probed:
    """Probe a network on a downstream set. Nothing in it is random: seeds do not matter.

    Args:
        student: whose backbone is judged; it is left in evaluation mode on this process's device.
        name: of the downstream set, for messages.
        task: with its classes.
        parts: "train", "validation" and "test".
        settings: of the probe.
        folder: features are kept in its sub-folder `features`, so that a run that was interrupted does not compute
            them again; they may be deleted when the outcome is known. With several processes the first computes them.
        quarantine: where images that cannot be read are listed; None: such an image stops the run.
        progress: how to show it.

    Raises:
        UserError: a part without one labelled image, or a validation part whose labels say nothing.
    """
    device, seen = own_device(), {}
    for part in ("train", "validation", "test"):
        file, label = folder / "features" / f"{part}.npz", f"{name}: features, {part}"
        found = kept(file, student, parts[part], device, settings.batch, quarantine, label, progress)
        if not found.ids:
            raise UserError(
                f"the {part} part of '{name}' has no labelled image that can be used",
                record=name,
                field=part,
                fix="give it images with labels; `tutelage check` lists those that cannot be read",
            )
        if part == "validation":
            refuse_silent(name, task, map(Label, found.labels))
        seen[part] = found.to(device)
    return linear_probe(seen["train"], seen["validation"], seen["test"], task, settings, progress, name)


def linear_probe(
    train: Embedded,
    validation: Embedded,
    test: Embedded,
    task: Classification,
    settings: Probe,
    progress: Progress = SILENT,
    name: str = "",
) -> Probed:
    """Linear classifier and nearest neighbours of `train`, chosen on `validation`, scored on `test`.

    Penalties are tried from strong to weak, each starting where the one before ended; of those that are equally good
    the strongest is chosen.

    Args:
        train, validation, test: on one device; each with at least one image.
        task: gives the metric, and says whether classes are independent (`multi_label`).
        settings: of the probe.
        progress, name: how to show it.
    """
    penalties = sorted(settings.l2, reverse=True)
    if not all(bool(part.features.isfinite().all()) for part in (train, validation, test)):
        reason = {"features": "the network's features are not all finite"}
        return Probed(None, math.nan, penalties[0], "", None, math.nan, reason)

    centre, scale = _centre_and_scale(train.features)
    x, held_out = (((part.features - centre) / scale) for part in (train, validation))
    higher = task.metric().higher_is_better
    best: tuple[float, float, Fit] | None = None
    fit = None
    with progress.bar(f"{name}: linear probe", len(penalties), "fits") as bar:
        for l2 in penalties:
            fit = logistic_regression(
                x, train.labels, l2, multi_label=task.multi_label, iterations=settings.iterations, start=fit
            )
            figure = _score(task, fit.probabilities(held_out, task.multi_label), validation).value
            if best is None or _better(figure, best[0], higher):
                best = figure, l2, fit
            bar.advance()
    assert best is not None
    figure, l2, fit = best
    voted = [
        _score(task, nearest_neighbours(train, part.features, settings.neighbours, settings.temperature), part)
        for part in (validation, test)
    ]
    return Probed(
        test=_score(task, fit.probabilities((test.features - centre) / scale, task.multi_label), test),
        validation=figure,
        l2=l2,
        edge=_edge(l2, penalties),
        neighbours=voted[1],
        neighbours_validation=voted[0].value,
        failed={},
    )


def logistic_regression(
    x: Tensor,
    labels: Tensor,
    l2: float,
    *,
    multi_label: bool = False,
    iterations: int = 1000,
    start: Fit | None = None,
    tolerance: float | None = None,
) -> Fit:
    """The linear classifier of least mean cross entropy plus l2 / 2 times the squared norm of its weights.

    The whole of the data at each step, by L-BFGS with a line search that satisfies the strong Wolfe conditions. The
    bias is not penalised. A softmax over K classes, or with `multi_label` K independent sigmoids, each of which
    minimises the mean of its own loss plus its own penalty.

    In scikit-learn's terms C = 1 / (N l2). With two classes the softmax has a vector of weights for each, w and -w,
    where scikit-learn has one: their difference is scikit-learn's at C = 2 / (N l2).

    A class that no image has (with `multi_label`: or that all have) would drive its bias to infinity; it is left out
    and gets that bias at once.

    Args:
        x: [N,D], float32 or float64, as which everything is computed, on any device. As it is: not rescaled.
        labels: [N,K], probabilities in [0, 1]; without `multi_label` each row sums to 1.
        l2: above 0.
        multi_label: whether classes are independent.
        iterations: at most.
        start: where to begin, such as the classifier of another penalty; None: all zero.
        tolerance: the search ends when no part of the gradient is larger; None: the smaller of 1e-6 and l2 / 100.
            (A gradient of norm g is at most g / l2 away from the minimum.)
    """
    y = labels.to(x.dtype)
    mass = y.sum(0)
    learned = (mass > 0) & (mass < len(y)) if multi_label else mass > 0
    count, width = int(learned.sum()), x.shape[1]
    weight, bias = x.new_zeros(y.shape[1], width), x.new_full((y.shape[1],), -math.inf)
    if multi_label:
        bias[mass >= len(y)] = math.inf
    elif count == 1:
        bias[learned] = 0.0
    if count < (1 if multi_label else 2):
        return Fit(weight, bias)
    y = y[:, learned]
    if start is None:
        w, b = x.new_zeros(count, width), x.new_zeros(count)
    else:
        w, b = start.weight[learned].to(x).clone(), start.bias[learned].to(x).clone()
    close = min(1e-6, l2 / 100) if tolerance is None else tolerance
    _minimise(_Loss(x, y, l2, multi_label), w, b, iterations, close)
    weight[learned] = w
    bias[learned] = b
    return Fit(weight, bias)


def _minimise(loss: _Loss, w: Tensor, b: Tensor, iterations: int, tolerance: float) -> None:
    """L-BFGS in place."""
    # PyTorch's L-BFGS learns nothing from a step of little curvature (less than a fixed 1e-10): under a weak penalty
    # it would stop far from the minimum. In units in which the penalty's curvature is large it does not.
    unit = _CURVATURE / loss.l2
    optimiser = torch.optim.LBFGS(
        [w, b],
        max_iter=iterations,
        max_eval=2 * iterations + 25,  # a step takes one look at the loss, now and then a few
        tolerance_grad=tolerance * unit,
        tolerance_change=torch.finfo(w.dtype).eps / 100,
        line_search_fn="strong_wolfe",
    )

    def look() -> Tensor:
        value, gradient, gradient_of_bias = loss(w, b)
        w.grad, b.grad = gradient * unit, gradient_of_bias * unit
        return value * unit

    optimiser.step(look)


@dataclass(frozen=True)
class _Loss:
    """Mean loss and penalty with their gradient, over blocks of images so that not all logits are held at once."""

    x: Tensor
    y: Tensor
    l2: float
    multi_label: bool

    @torch.no_grad()
    def __call__(self, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The value, float64 because the line search compares values that are nearly equal, and [K,D] and [K]."""
        count = len(self.x)
        value = self.l2 / 2 * w.double().square().sum()
        gradient, gradient_of_bias = self.l2 * w, torch.zeros_like(b)
        for x, y in zip(self.x.split(_ROWS), self.y.split(_ROWS), strict=True):
            logits = x @ w.T + b
            if self.multi_label:
                losses = torch.nn.functional.softplus(logits) - y * logits
                said = logits.sigmoid()
            else:
                losses = y * (logits.logsumexp(1, keepdim=True) - logits)
                said = logits.softmax(1) * y.sum(1, keepdim=True)
            value += losses.sum(dtype=torch.float64) / count
            wrong = (said - y) / count
            gradient += wrong.T @ x
            gradient_of_bias += wrong.sum(0)
        return value, gradient, gradient_of_bias


def nearest_neighbours(train: Embedded, features: Tensor, neighbours: int, temperature: float) -> Tensor:
    """What the nearest training images say of others: float32 [M,K], their labels' weighted mean.

    A neighbour of cosine similarity s has weight exp(s / temperature) (Wu et al., CVPR 2018, section 3.4); features
    that are all zero are similar to nothing.

    Args:
        train: at least one image.
        features: float32 [M,D].
        neighbours: how many; where there are fewer training images, all.
        temperature: above 0.
    """
    known = torch.nn.functional.normalize(train.features, dim=1)
    count = min(neighbours, len(known))
    said = [train.labels.new_empty(0, train.labels.shape[1])]
    for block in features.split(max(1, _CELLS // max(len(known), count * train.labels.shape[1]))):
        similar, nearest = (torch.nn.functional.normalize(block, dim=1) @ known.T).topk(count, dim=1)
        votes = (similar / temperature).softmax(1)  # the weights over their sum, without large numbers on the way
        said.append(torch.einsum("mn,mnk->mk", votes, train.labels[nearest]))
    return torch.cat(said)


def _centre_and_scale(x: Tensor) -> tuple[Tensor, float]:
    """The mean [D] of features, and the root mean square of what is left without it; 1 where nothing is left."""
    blocks = x.split(_ROWS)  # in float64, which would need much memory for all at once
    centre = torch.stack([block.sum(0, dtype=torch.float64) for block in blocks]).sum(0) / len(x)
    left = math.sqrt(sum(float((block.double() - centre).square().sum()) for block in blocks) / x.numel())
    whole = math.sqrt(sum(float(block.double().square().sum()) for block in blocks) / x.numel())
    return centre.to(x.dtype), left if left > 1e-6 * whole else 1.0


def _score(task: Classification, said: Tensor, truth: Embedded) -> Score:
    metric = task.metric()
    for prediction, label in zip(said.float().cpu(), truth.labels.cpu(), strict=True):
        metric.update(Label(prediction), Label(label))
    return score(metric, len(truth.ids), truth.ids)


def _better(figure: float, than: float, higher: bool) -> bool:
    """Whether a figure is better; anything is better than none."""
    return not math.isnan(figure) and (math.isnan(than) or (figure > than if higher else figure < than))


def _edge(l2: float, penalties: Sequence[float]) -> str:
    if len(penalties) == 1:
        return ""
    return {max(penalties): "l2 high", min(penalties): "l2 low"}.get(l2, "")
