"""Our own checkpoints as teachers: one head of a saved network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field as Option

from tutelage.data.geometry import letterbox
from tutelage.data.source import LabelSpace, UInt8
from tutelage.errors import UserError
from tutelage.models.backbone import Backbone
from tutelage.tasks.segmentation import Look, Segmentation, averaged_mask
from tutelage.tasks.task import FUSED_STRIDE, Frame, Task
from tutelage.teachers.foreign import refuse_averaging
from tutelage.teachers.teacher import Specialist, Teacher, check_task, digest_of
from tutelage.training.checkpoint import Saved, find_model, load_model, model_hash, read_architecture
from tutelage.training.evaluate import prepare
from tutelage.types import Target

_HELD = 2**27
"""Numbers that the looks at some images may hold until they are averaged: half a gigabyte."""


class Checkpoint(Specialist):
    """A model folder of ours, or the folder of a finished run."""

    kind: Literal["checkpoint"] = "checkpoint"
    path: Path
    head: str | None = None
    """The model's head that is asked, where it has another name than the head that is filled."""
    tasks: tuple[type[Task], ...] = Option((), exclude=True)
    """Python only: classes of your own that the model uses."""
    backbones: tuple[type[Backbone], ...] = Option((), exclude=True)
    """Python only: classes of your own that the model uses."""

    def _asked(self, heads: Mapping[str, Task], fills: str | None = None) -> str:
        known = list(heads)
        name = self.head or (known[0] if len(known) == 1 else fills)
        if name not in known:
            raise UserError(
                f"this model has no head '{name}'" if name else "this model has several heads",
                file=self.path,
                field="head",
                value=name,
                fix=f"name one of its heads: {', '.join(known)}",
            )
        if not isinstance(heads[name], Segmentation):
            refuse_averaging(self)
        return name

    def does(self, root: Path, fills: str | None = None) -> Task:
        """As `Specialist.does`. Of several heads it is asked for `head`, else for the one named as what it fills."""
        heads = read_architecture(root / self.path, self.tasks, self.backbones)[1]
        return heads[self._asked(heads, fills)]

    def digest(self, root: Path) -> str:
        settings = {"head": self.head, "scales": self.scales, "flip": self.flip}
        return digest_of([model_hash(find_model(root / self.path)), settings])

    def open(self, head: str, task: Task, root: Path, device: torch.device) -> Teacher:
        saved = load_model(root / self.path, self.tasks, self.backbones)
        name = self._asked(saved.student.tasks, head)
        check_task(head, task, saved.student.tasks[name])
        return OwnTeacher(
            saved,
            name,
            device,
            fills=head,
            task=task,
            hash=self.digest(root),
            scales=self.scales,
            flip=self.flip,
        )


class OwnTeacher(Teacher):
    """One head of a loaded model."""

    def __init__(
        self,
        saved: Saved,
        name: str,
        device: torch.device,
        *,
        fills: str | None = None,
        task: Task | None = None,
        hash: str | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
    ) -> None:
        """Take one head of a model that was read.

        Args:
            saved: the model.
            name: its head.
            device: where it works.
            fills: the head that is filled, where it has another name.
            task: that head's task; the model's own by default.
            hash: what its records carry; the model's by default.
            scales, flip: as in `TeacherPart`; other values than these are for `Segmentation` only. The input of a scale
                is rounded to a multiple of the backbone's largest stride, which networks need or at least know from
                their training; scales that come to one size are one look.
        """
        self.head, self.task = fills or name, task or saved.student.tasks[name]
        self.space: LabelSpace | None = saved.spaces.get(name)
        self.hash = hash or saved.hash
        model = saved.student.model
        self.about = {
            "make": "tutelage",
            "input": [model.size, model.size],
            "mean": list(model.normalisation()[0]),
            "std": list(model.normalisation()[1]),
            "weights": str(saved.folder.name),
        }
        self._name, self.network = name, prepare(saved.student, device)
        self._views = _views(model.size, min(saved.student.backbone.strides[-1], 32), scales, flip)
        if self._views != [(model.size, False)]:
            self.about |= {"sizes": list(dict.fromkeys(size for size, _ in self._views)), "flip": flip}

    def predict(self, images: Sequence[UInt8]) -> list[Target]:
        """As `Teacher.predict`: the images are laid into the model's own input size, or into one for every look."""
        size = self.network.student.model.size
        if self._views != [(size, False)]:
            return self._averaged(images)
        batch, frames = _lay(images, size)
        return self.network.predict(batch, frames, [self._name])[self._name]

    def _averaged(self, images: Sequence[UInt8]) -> list[Target]:
        """Masks of several looks, of as many images at a time as the memory for their logits allows."""
        cells = sum(size * size for size, _ in self._views) // FUSED_STRIDE**2
        most = max(1, _HELD // (cells * len(self.task.names)))
        masks: list[Target] = []
        for start in range(0, len(images), most):
            looks = [self._looks(images[start : start + most], *view) for view in self._views]
            masks += [averaged_mask(of_one) for of_one in zip(*looks, strict=True)]
        return masks

    def _looks(self, images: Sequence[UInt8], size: int, flipped: bool) -> list[Look]:
        """One look at every image."""
        batch, frames = _lay([np.flip(image, 1) for image in images] if flipped else images, size)
        logits = self.network.output(batch, self._name)
        return [Look(one, frame, (size, size), flipped) for one, frame in zip(logits, frames, strict=True)]


def _views(size: int, stride: int, scales: Sequence[float], flip: bool) -> list[tuple[int, bool]]:
    """The looks at an image: side of the square input, and whether it is mirrored."""
    sides = [size if scale == 1 else max(1, round(size * scale / stride)) * stride for scale in scales]
    return [(side, mirrored) for side in dict.fromkeys(sides) for mirrored in ((False, True) if flip else (False,))]


def _lay(images: Sequence[UInt8], size: int) -> tuple[torch.Tensor, list[Frame]]:
    """Images in square inputs: uint8 [B,3,S,S], and how each lies there."""
    laid = [letterbox(image, size) for image in images]
    return torch.stack([picture for picture, _ in laid]), [frame for _, frame in laid]
