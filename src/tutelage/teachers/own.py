"""Our own checkpoints as teachers: one head of a saved network."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tutelage.data.geometry import letterbox
from tutelage.data.source import LabelSpace, UInt8
from tutelage.errors import UserError
from tutelage.teachers.teacher import Teacher
from tutelage.training.checkpoint import Saved
from tutelage.training.evaluate import prepare
from tutelage.types import Target


class OwnTeacher(Teacher):
    """One head of a model folder."""

    def __init__(self, saved: Saved, head: str, device: torch.device) -> None:
        """Take one head of a model that was read.

        Raises:
            UserError: the model has no such head.
        """
        if head not in saved.student.tasks:
            known = list(saved.student.tasks)
            raise UserError(
                "this model has no such head", file=saved.folder, field="head", value=head, fix=f"it has {known}"
            )
        self.head, self.task, self.hash = head, saved.student.tasks[head], saved.hash
        self.space: LabelSpace | None = saved.spaces.get(head)
        self.network = prepare(saved.student, device)

    def predict(self, images: Sequence[UInt8]) -> list[Target]:
        """As `Teacher.predict`: the images are laid into the model's own input size."""
        size = self.network.student.model.size
        laid = [letterbox(image, size) for image in images]
        batch = torch.stack([picture for picture, _ in laid])
        return self.network.predict(batch, [frame for _, frame in laid], [self.head])[self.head]
