"""Any Python function as a teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tutelage.data.source import LabelSpace, UInt8
from tutelage.errors import UserError
from tutelage.part import Function, function_name
from tutelage.tasks.task import Task
from tutelage.teachers.foreign import refuse_averaging, shown_path
from tutelage.teachers.stated import Stated, check_target, function_source
from tutelage.teachers.teacher import Teacher, check_task, digest_of
from tutelage.types import Target

Predict = Callable[[Sequence[UInt8]], Sequence[Target]]
"""Images, uint8 [h,w,3] RGB each, of any sizes, to one target an image, of the image's size, on the CPU."""


class FunctionTeacher(Stated):
    """A function of yours. In Python recipes only.

    The labels are known by the source text of `make`, of what it uses of its own module, by the bytes of `files` and
    by `version`: change one of them, and the head is labelled again.
    """

    kind: Literal["function"] = "function"
    make: Function
    """Called once in every process that labels, as `make(files, device)`, with the paths of `files` and a
    `torch.device`; it loads the model and returns the function that labels (`Predict`). It stands in a module by its
    own name, so that other processes find it."""
    files: tuple[Path, ...] = ()
    """The weights, and what else it reads. Relative paths start where those of the recipe do."""
    version: str = "1"
    """Change it when something changes that the source text and the files do not show: an imported library, say."""

    def does(self, root: Path, fills: str | None = None) -> Task:
        """As `Specialist.does`."""
        refuse_averaging(self)
        return super().does(root)

    def digest(self, root: Path) -> str:
        """As `Specialist.digest`."""
        settings = {"make": "function", "source": function_source(self.make), "version": self.version}
        return digest_of(settings, [root / file for file in self.files])

    def open(self, head: str, task: Task, root: Path, device: torch.device) -> Teacher:
        """As `Specialist.open`; the function is tried on a blank image."""
        check_task(head, task, self.does(root))
        digest = self.digest(root)  # finds missing files before anything is loaded
        predict = self.make(tuple(root / file for file in self.files), device)
        if not callable(predict):
            raise UserError(
                f"{function_name(self.make)} must return a function that labels images",
                field="make",
                value=type(predict).__name__,
                fix="return a function that takes a list of images and returns a list of targets",
            )
        return _FunctionTeacher(self, head, task, predict, digest)


class _FunctionTeacher(Teacher):
    """The loaded function."""

    def __init__(self, part: FunctionTeacher, head: str, task: Task, predict: Predict, hash: str) -> None:
        self.head, self.task, self.hash = head, task, hash
        self.space = None if task.classes is None else LabelSpace(task.classes)
        self._predict = predict
        self.about: dict[str, Any] = {
            "make": "function",
            "name": function_name(part.make),
            "version": part.version,
            "weights": [shown_path(file) for file in part.files],
        }
        blank = np.zeros((48, 64, 3), np.uint8)
        said = self.predict([blank])
        if len(said) != 1:
            raise UserError(
                f"the teacher of head '{head}' gives {len(said)} predictions for one image",
                field="make",
                value=function_name(part.make),
                fix="one target an image, in the order of the images",
            )
        check_target(head, task, said[0], (48, 64))

    @torch.inference_mode()
    def predict(self, images: Sequence[UInt8]) -> list[Target]:
        """As `Teacher.predict`."""
        return list(self._predict(images))
