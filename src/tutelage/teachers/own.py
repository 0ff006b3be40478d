"""Our own checkpoints as teachers: one head of a saved network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field as Option

from tutelage.data.geometry import letterbox
from tutelage.data.source import LabelSpace, UInt8
from tutelage.errors import UserError
from tutelage.models.backbone import Backbone
from tutelage.tasks.task import Task
from tutelage.teachers.teacher import Specialist, Teacher, check_task, digest_of
from tutelage.training.checkpoint import Saved, find_model, load_model, model_hash, read_architecture
from tutelage.training.evaluate import prepare
from tutelage.types import Target


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

    def _name(self, heads: Iterable[str], fills: str | None = None) -> str:
        known = list(heads)
        name = self.head or (known[0] if fills is None and len(known) == 1 else fills)
        if name not in known:
            raise UserError(
                "this model has no such head",
                file=self.path,
                field="head",
                value=name,
                fix=f"it has {', '.join(known)}",
            )
        return name

    def does(self, root: Path) -> Task:
        """As `Specialist.does`; a model of several heads must be asked for one of them by `head`."""
        heads = read_architecture(root / self.path, self.tasks, self.backbones)[1]
        return heads[self._name(heads)]

    def digest(self, root: Path) -> str:
        settings = {"head": self.head, "scales": self.scales, "flip": self.flip}
        return digest_of([model_hash(find_model(root / self.path)), settings])

    def open(self, head: str, task: Task, root: Path, device: torch.device) -> Teacher:
        saved = load_model(root / self.path, self.tasks, self.backbones)
        name = self._name(saved.student.tasks, head)
        check_task(head, task, saved.student.tasks[name])
        return OwnTeacher(saved, name, device, fills=head, task=task, hash=self.digest(root))


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
    ) -> None:
        """Take one head of a model that was read.

        Args:
            saved: the model.
            name: its head.
            device: where it works.
            fills: the head that is filled, where it has another name.
            task: that head's task; the model's own by default.
            hash: what its records carry; the model's by default.
        """
        self.head, self.task = fills or name, task or saved.student.tasks[name]
        self.space: LabelSpace | None = saved.spaces.get(name)
        self.hash = hash or saved.hash
        model = saved.student.model
        self.about = {
            "make": "tutelage",
            "input": [model.size, model.size],
            "mean": list(model.mean),
            "std": list(model.std),
            "weights": str(saved.folder.name),
        }
        self._name, self.network = name, prepare(saved.student, device)

    def predict(self, images: Sequence[UInt8]) -> list[Target]:
        """As `Teacher.predict`: the images are laid into the model's own input size."""
        size = self.network.student.model.size
        laid = [letterbox(image, size) for image in images]
        batch = torch.stack([picture for picture, _ in laid])
        return self.network.predict(batch, [frame for _, frame in laid], [self._name])[self._name]
