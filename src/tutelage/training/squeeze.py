"""Squeeze: one backbone of single size learns what several frozen ones see (He et al., ECCV 2022, X-Learner, section
3.3, equations 3 and 4); from labels of images as well, where there are any (ours).

Letters: B images, T hints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from tutelage.errors import UserError, first_line
from tutelage.models.learner import Learner
from tutelage.models.maps import FeatureMaps, unused_weights
from tutelage.models.student import Student
from tutelage.training.guidance import HINT, Frozen, FrozenTasks, Guidance, Shaped
from tutelage.training.rules import Weighted
from tutelage.types import Batch, LossSum


class Squeeze(Learner):
    """A student that is to give the features of one or several frozen networks, each through guidance layers.

    With the expanded backbone as its teacher there is one hint a task, and the sum of the losses is equation 3. Foreign
    teachers add theirs in the same way. A student with heads learns from the labels of the batch beside it; backbone
    maps are computed once for both. Images need no label.

    The weights of the guidance layers follow from torch's generator.

    Args:
        student: what is trained, with or without heads.
        expanded: the expanded backbone; None for teachers of other kinds alone.
        teachers: name to a single network.
        levels: how many of the deepest maps are matched; of a teacher with fewer beside one with so many, all.

    Raises:
        UserError: no teacher; one name for two hints; fewer maps than levels; a teacher that cannot look at images of
            the student's size.
    """

    def __init__(
        self,
        student: Student,
        expanded: FrozenTasks | None = None,
        teachers: Mapping[str, Frozen] | None = None,
        levels: int = 1,
    ) -> None:
        super().__init__()
        self.student, self.expanded, self.teachers = student, expanded, dict(teachers or {})
        shapes = _shapes(expanded, self.teachers)
        self.hints = list(shapes)
        # in a list by number: names are the user's, and may be none that a module can have
        most = max(len(shape.strides) for shape in shapes.values())
        asked = {name: min(levels, len(shape.strides)) if levels <= most else levels for name, shape in shapes.items()}
        self.guides = nn.ModuleList(Guidance(student.backbone, shape, asked[name]) for name, shape in shapes.items())
        self._try()
        _train_what_is_matched(student, levels)

    def forward(self, batch: Batch) -> dict[str, LossSum]:
        """The loss of every head, as the student's own, and of every hint; a unit of a hint is an image."""
        student, size = self.student, (batch.images.shape[2], batch.images.shape[3])
        said = self._said(batch.images)
        maps = student.maps(batch.images)
        found = {}
        if len(student.heads):
            features = student.read(maps, size)
            found = {head: student.loss(head, features, batch.heads.get(head)) for head in student.heads}
        for hint, guidance in zip(self.hints, self.guides, strict=True):
            found[f"{HINT}{hint}"] = guidance(maps, said[hint])
        return found

    def count(self, batch: Batch) -> dict[str, Tensor]:
        """Labelled images or pixels a head, 0 where no row is labelled; B a hint."""
        images = torch.tensor(float(len(batch.images)), device=batch.images.device)
        return self.student.count(batch) | {f"{HINT}{hint}": images for hint in self.hints}

    def trunk(self) -> nn.Module:
        return self.student.trunk()

    def shared(self) -> list[nn.Parameter]:
        return self.student.shared()

    def rule(self) -> Weighted:
        """How the losses are added: each counts 1, as in equation 3."""
        return Weighted(dict.fromkeys([*self.student.tasks, *(f"{HINT}{hint}" for hint in self.hints)], 1.0))

    def _said(self, images: Tensor) -> dict[str, list[Tensor]]:
        """Hint to the teacher's maps of uint8 [B,3,H,W] images; an expanded backbone runs once for all its tasks."""
        said = {} if self.expanded is None else self.expanded(images)
        return said | {name: teacher(images) for name, teacher in self.teachers.items()}

    def _try(self) -> None:
        """That every teacher can look at images of the student's size."""
        side = self.student.model.size
        blank = torch.zeros(1, 3, side, side, dtype=torch.uint8)
        looks: dict[str, Callable[[Tensor], object]] = {**self.teachers}
        if self.expanded is not None:
            looks[", ".join(self.expanded.tasks)] = self.expanded
        for name, look in looks.items():
            try:
                look(blank)
            except Exception as error:  # networks of any make have errors of many kinds
                raise UserError(
                    f"the teacher '{name}' cannot look at images of {side} x {side} pixels: {first_line(error)}",
                    field="size",
                    value=side,
                    fix="take a size that it can look at: vision transformers want a multiple of their patch",
                ) from None


def _shapes(expanded: FrozenTasks | None, teachers: Mapping[str, Frozen]) -> dict[str, Shaped]:
    """Hint to the strides and channels of its maps: tasks first, then single teachers."""
    tasks = {} if expanded is None else expanded.tasks
    twice = sorted(set(tasks) & set(teachers))
    if twice:
        raise UserError(
            f"'{twice[0]}' is both a task of the expanded backbone and a teacher",
            field="teachers",
            value=twice[0],
            fix="give the teacher another name",
        )
    if not tasks and not teachers:
        raise UserError(
            "there is nobody whose features the student could learn",
            field="teachers",
            fix="name a teacher, or squeeze an expanded backbone",
        )
    return {**tasks, **teachers}


def _train_what_is_matched(student: Student, levels: int) -> None:
    """Have the weights trained that the matched maps hang on; the student has frozen those that no head of it reads.

    Without heads these are all that is trained, and the others are frozen, since no gradient would reach them.
    """
    maps: FeatureMaps = student.backbone
    matched = range(len(maps.strides))[-levels:]
    unused = unused_weights(maps, matched, student.model.size)
    for name, parameter in maps.named_parameters():
        if name not in unused or not len(student.heads):
            parameter.requires_grad_(name not in unused)
