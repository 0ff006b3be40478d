"""The teachers of a plan: finished ones as they are, and stand-ins for those that a run would train."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tutelage.data.source import UInt8
from tutelage.methods.hiring import own_form, own_model
from tutelage.methods.material import Material
from tutelage.plan.figures import Assumed
from tutelage.recipe import Recipe
from tutelage.teachers import Checkpoint, Specialist, TeacherPart, Trained
from tutelage.teachers.teacher import Teacher
from tutelage.training.checkpoint import save_model
from tutelage.training.fit import build
from tutelage.types import Boxes, Field, Label, Mask, Target, Vectors

_CORNERS = (0.05, 0.5)
"""Least and greatest side of an assumed box, as a share of the image's."""


class Watched(Teacher):
    """A teacher whose predictions are timed and, where it is a stand-in, made to look like a trained one's.

    Args:
        teacher: who predicts.
        assume: for a stand-in, what a trained teacher would say; None to pass its words on.
    """

    def __init__(self, teacher: Teacher, assume: Assumed | None) -> None:
        self._teacher, self._assume, self._rng = teacher, assume, np.random.default_rng(0)
        self.head, self.task, self.space = teacher.head, teacher.task, teacher.space
        self.hash, self.about = teacher.hash, teacher.about
        self.samples: list[float] = []
        """Seconds an image, one a batch."""

    def predict(self, images: Sequence[UInt8]) -> list[Target]:
        start = time.perf_counter()
        said = self._teacher.predict(images)
        self.samples.append((time.perf_counter() - start) / max(len(images), 1))
        if self._assume is None:
            return said
        classes = 1 if self.space is None else len(self.space.names)
        return [
            typical(target, image.shape[:2], self._assume, self._rng, classes)
            for target, image in zip(said, images, strict=True)
        ]


def typical(said: Target, size: tuple[int, ...], assume: Assumed, rng: np.random.Generator, classes: int) -> Target:
    """What a trained network might say where random weights are far from it; pixels are passed on as they are.

    Args:
        said: the prediction of random weights.
        size: (h, w) of the image.
        assume: how many boxes.
        rng: draws probabilities as sharp as those of a trained classifier, and boxes.
        classes: of the head.
    """
    if isinstance(said, Label):
        logits = torch.from_numpy(rng.normal(0, 3, len(said.probs)).astype(np.float32))
        return Label(logits.softmax(0))
    if isinstance(said, Boxes):
        n, (height, width) = assume.boxes, size[:2]
        sides = rng.uniform(*_CORNERS, (n, 2)) * (width, height)
        low = rng.random((n, 2)) * ((width, height) - sides)
        boxes = np.concatenate([low, low + sides], 1).astype(np.float32)
        return Boxes.make(boxes, rng.integers(0, classes, n), rng.uniform(0.05, 1, n))
    return said


def assumption(kind: type, assume: Assumed) -> str:
    """In words, where the bytes of a trained teacher's labels come from."""
    if kind is Label:
        return "assumed: sharp probabilities"
    if kind is Boxes:
        return f"assumed: {assume.boxes} boxes an image"
    rate = pixel_bytes(kind, assume)
    return "measured with random weights" if rate is None else f"assumed: {rate:g} B a pixel, see below"


def pixel_bytes(kind: type, assume: Assumed) -> float | None:
    """Of a kind of pixels, see `Assumed`; None for other kinds."""
    return {Mask: assume.mask, Field: assume.field, Vectors: assume.vectors}.get(kind)


def make(part: TeacherPart | None) -> str:
    """Which make of teacher a recipe names."""
    return part.kind if isinstance(part, Specialist) else "trained here"


def open_teacher(
    recipe: Recipe, material: Material, head: str, folder: Path, device: torch.device, assume: Assumed
) -> Watched:
    """The teacher of a head as the run would open it; a stand-in has its network with random weights.

    Args:
        recipe: what is planned.
        material: its heads with their classes.
        head: which.
        folder: for the stand-in's weights.
        device: where it works.
        assume: what a stand-in says.

    Raises:
        UserError: whatever is wrong with a finished teacher.
    """
    part, task, root = recipe.teachers.get(head), material.heads[head], Path(recipe.data)
    if isinstance(part, Specialist):
        return Watched(part.open(head, task, root, device), None)
    model, form = recipe.model, task
    if isinstance(part, Trained):
        model, form = own_model(recipe, part), own_form(part, task)
    model = model.but(backbone=model.backbone.blank())
    place = folder / "teachers" / head
    place.mkdir(parents=True)
    spaces = {head: material.spaces[head]} if head in material.spaces else {}
    save_model(place, build(model, {head: form}, recipe.seed, f"plan {head}", root), spaces)
    stand_in = Checkpoint(path=place.resolve(), tasks=(type(form),), backbones=(type(model.backbone),))
    if part is not None:
        stand_in = stand_in.but(scales=part.scales, flip=part.flip)
    return Watched(stand_in.open(head, task, root, device), assume)
