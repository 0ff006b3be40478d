"""Self-supervised pre-training by contrast: SimCLR (Chen et al., ICML 2020), the baseline of MuST's tables 2 and 6.

Letters: B images of a micro-batch, S pixels of the model's input, D embedding width, P projection width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from tutelage.data.mixture import Mixture
from tutelage.data.quarantine import Quarantine
from tutelage.data.source import Dataset, Picture
from tutelage.errors import UserError
from tutelage.files import read_json_lines
from tutelage.models.learner import Learner
from tutelage.models.student import Model, Student
from tutelage.part import Part
from tutelage.progress import SILENT, Progress
from tutelage.training.fit import build, fit
from tutelage.training.notes import take_note
from tutelage.training.pretraining import Pretraining
from tutelage.training.processes import world
from tutelage.training.rules import Weighted
from tutelage.training.schedule import Training
from tutelage.types import Batch, LossSum, Target

HEAD = "contrast"
"""The name of the one loss."""

_LEARNED = 0.1
"""Nats below guessing that count as lower than guessing."""


class Views(Part):
    """How the two views of an image are made (section 3 and appendix A of the paper; the defaults are its own)."""

    crop: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.08, 1.0)
    """Share of the image's area that a view shows, drawn evenly from here; its sides are in a ratio of 3:4 to 4:3."""
    colour: float = Field(1.0, ge=0, le=1)
    """Strength s of the colour jitter that 4 of 5 views get: brightness, contrast and saturation by 0.8 s, hue by
    0.2 s. The paper takes 1 for ImageNet and 0.5 for CIFAR-10."""
    grey: float = Field(0.2, ge=0, le=1)
    """Share of the views without colour."""
    blur: float = Field(0.5, ge=0, le=1)
    """Share of the views that are blurred, by a Gaussian of 0.1 to 2 pixels in a window of a tenth of the input."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.crop[0] > self.crop[1]:
            raise ValueError("crop must be [smallest, largest]")
        return self

    def __call__(
        self, picture: Picture, targets: Mapping[str, Target], size: int, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, Target]]:
        """Two views of an image; called by the loader in the place of an `Augment`.

        Args:
            picture: not yet decoded; it is decoded once, at reduced size where the smallest crop allows it.
            targets: are left out.
            size: S.
            rng: all chance comes from here.

        Returns:
            uint8 [6,S,S]: the RGB of one view, then of the other; and no target.

        Raises:
            BadImage: the image does not decode.
        """
        smallest = min(picture.height, picture.width) * self.crop[0] ** 0.5  # side of the smallest crop, about
        pixels = picture.read(min(1.0, size / smallest))
        image = torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))  # a copy: pixels may be read-only
        make = self._transform(size)
        with torch.random.fork_rng(devices=[]):  # the transforms draw from torch's global state
            torch.default_generator.manual_seed(int(rng.integers(2**63)))
            return torch.cat([make(image), make(image)]), {}

    def _transform(self, size: int) -> Callable[[Tensor], Tensor]:
        """One view: uint8 [3,S,S] from uint8 [3,h,w]."""
        from torchvision.transforms import v2

        jitter = v2.ColorJitter(*[0.8 * self.colour] * 3, hue=0.2 * self.colour)
        steps = [
            v2.RandomResizedCrop(size, self.crop, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([jitter], 0.8),
            v2.RandomGrayscale(self.grey),
            v2.RandomApply([v2.GaussianBlur(max(size // 20 * 2 + 1, 3), (0.1, 2.0))], self.blur),
        ]
        whole: Callable[[Tensor], Tensor] = v2.Compose(steps)
        return whole


class SimCLR(Pretraining):
    """Pre-training without labels: two views of an image are to look alike, those of two images different.

    The negatives of an image are the other images of its micro-batch on its process: neither accumulation nor further
    processes add to them.
    """

    title: ClassVar[str] = "SimCLR"
    kind: Literal["simclr"] = "simclr"
    training: Training = Training()
    """`augment` is not looked at: `views` stands in its place."""
    sources: tuple[str, ...] | None = None
    """The sources whose images it sees; None: all."""
    views: Views = Views()
    temperature: float = Field(0.1, gt=0)
    """Of the loss, NT-Xent (section 2.1; 0.1 is best in table 5 of the paper)."""
    hidden: int = Field(2048, ge=1)
    """Width of the projection's hidden layer."""
    projection: int = Field(128, ge=1)
    """P, width of what is compared; the projection is thrown away afterwards."""


class Contrast(Learner):
    """The network of a SimCLR training.

    The projection has batch norms behind both layers, as in the authors' public code (the paper does not speak of
    them); their statistics are of one process's micro-batch.

    Args:
        student: a network without heads: what is kept.
        part: widths and temperature.
    """

    def __init__(self, student: Student, part: SimCLR) -> None:
        super().__init__()
        self.student = student
        width = student.backbone.widths[-1]
        self.projection = nn.Sequential(
            nn.Linear(width, part.hidden, bias=False),
            nn.BatchNorm1d(part.hidden),
            nn.ReLU(),
            nn.Linear(part.hidden, part.projection, bias=False),
            nn.BatchNorm1d(part.projection, affine=False),
        )
        self.temperature = part.temperature

    def project(self, views: Tensor) -> Tensor:
        """What is compared, [V,P], of V views, uint8 [V,3,S,S]."""
        projected: Tensor = self.projection(self.student.features(views).embedding)
        return projected

    def forward(self, batch: Batch) -> dict[str, LossSum]:
        """The loss of B pairs of views, images being uint8 [B,6,S,S]; a unit is a view."""
        pairs = batch.images.unflatten(1, (2, 3))
        one, other = self.project(pairs.transpose(0, 1).flatten(0, 1)).float().chunk(2)
        with torch.autocast(one.device.type, enabled=False):
            mean = nt_xent(one, other, self.temperature)
        count = self.count(batch)[HEAD]
        return {HEAD: LossSum(mean * count, count)}

    def count(self, batch: Batch) -> dict[str, Tensor]:
        return {HEAD: torch.tensor(2.0 * len(batch.images), device=batch.images.device)}

    def trunk(self) -> nn.Module:
        return self.student.backbone


def nt_xent(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """The loss of two float32 [B,P], the n-th rows being views of one image: the mean over all 2B views (equation 1 and
    algorithm 1). Memory grows as the square of B; with libraries' general losses it grows as the cube."""
    views = F.normalize(torch.cat([one, other]), dim=1)
    likeness = (views @ views.T / temperature).fill_diagonal_(-torch.inf)
    mates = torch.arange(len(views), device=views.device).roll(len(one))
    return F.cross_entropy(likeness, mates)


def pretrain_simclr(
    model: Model,
    part: SimCLR,
    datasets: Sequence[Dataset],
    folder: Path,
    *,
    seed: int,
    device: torch.device,
    root: Path,
    quarantine: Quarantine | None = None,
    label: str = "SimCLR",
    progress: Progress = SILENT,
) -> Student:
    """Train the backbone of a model, write it into `folder` as a model without heads, and return it.

    Every image of the union is seen alike, labels are not looked at. A killed training goes on from its checkpoint. One
    that ends no better than guessing ends as any other, and says so.

    Args:
        model: its backbone is trained, its pyramid is not built.
        part: of the recipe.
        datasets: whose images are seen: those of `part.sources`, chosen by the caller.
        folder: of the stage.
        seed: of weights, sampling and views.
        device: where to train.
        root: where relative paths of the backbone's weight file start, if it names one.
        quarantine: where images that cannot be read are listed.
        label, progress: how to show it.

    Raises:
        UserError: micro-batches of a single image, which has no negatives.
        Diverged: the loss is no finite number.
    """
    settings = part.training
    if settings.batch // (settings.accumulate * world()) < 2:
        raise UserError(
            "an image alone in its micro-batch has nothing to differ from",
            field="training.batch",
            value=settings.batch,
            fix=f"at least {2 * settings.accumulate * world()}",
        )
    learner = Contrast(build(model, {}, seed, "simclr", root), part)
    fit(
        learner.student,
        Mixture(datasets, seed=seed),
        settings,
        Weighted({HEAD: 1.0}),
        folder,
        seed=seed,
        device=device,
        spaces={},
        learner=learner,
        augment=part.views,
        quarantine=quarantine,
        label=label,
        progress=progress,
    )
    _say_chance(folder, settings, part.views, label, progress)
    return learner.student


def chance(pairs: int) -> float:
    """The loss, in nats, of who tells no view of a micro-batch of `pairs` images from another.

    Each view's mate is one of the 2 x pairs - 1 others (equation 1 of the paper), all of which are then equally likely.
    """
    return math.log(2 * pairs - 1)


def _say_chance(folder: Path, settings: Training, views: Views, label: str, progress: Progress) -> None:
    """Say so when the last tenth of the curve is not below chance.

    Such a network may still find the mates of more views than by chance, with too much confidence where it fails.
    """
    rows = [row for row in read_json_lines(folder / "curve.jsonl") if row["step"] >= 0.9 * (settings.steps - 1)]
    ended = sum(row["loss"] for row in rows) / max(len(rows), 1)
    # negatives are those of a micro-batch: more processes or accumulation make the task no harder
    guessing = chance(settings.batch // (settings.accumulate * world()))
    if rows and not ended < guessing - _LEARNED:
        take_note(
            folder,
            f"{label}: little may have been learned: the loss ended at {ended:.2f}, no lower than that of "
            f"guessing, {guessing:.2f}; make the views milder (views.crop, now from {views.crop[0]:g}, and "
            f"views.colour, now {views.colour:g}) or train for longer",
            progress,
        )
