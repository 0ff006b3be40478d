"""What a teacher is: anything that fills one head for an image; and what stands for it in a recipe."""

from __future__ import annotations

import abc
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import field_validator

from tutelage.data.source import LabelSpace, UInt8
from tutelage.errors import UserError
from tutelage.part import Part
from tutelage.tasks import Classification, Depth
from tutelage.tasks.task import Task
from tutelage.types import Target


class Teacher(abc.ABC):
    """A model at work for one head.

    Attributes:
        head: the head it fills.
        task: that head's task, which states kind of target and pseudo-label rule.
        space: its label space; None for depth and normals. Checked against the head before the first image.
        hash: hex digest of its weights and of all settings that can change a prediction; every record carries it.
        about: what it states of itself, as plain values: make, input size, normalisation, weights. It is kept in the
            manifest of the labels.
    """

    head: str
    task: Task
    space: LabelSpace | None
    hash: str
    about: dict[str, Any]

    @abc.abstractmethod
    def predict(self, images: Sequence[UInt8]) -> list[Target]:
        """One raw prediction an image (before the pseudo-label rule), at the image's own size, on the CPU.

        A prediction that holds NaN is passed on as it is: the pass sets this image aside.

        Args:
            images: uint8 [h,w,3] RGB each, of any sizes.

        Raises:
            UserError: an output of another shape or class count than the head's.
        """


class TeacherPart(Part):
    """A teacher in a recipe. Subclasses add a literal field `kind` and what they need."""

    kind: str
    scales: tuple[float, ...] = (1.0,)
    """Masks only: sizes at which every image is looked at, as multiples of the input size; probabilities are averaged
    (Zoph et al. 2020: 0.5, 0.75, 1, 1.25, 1.5, 1.75)."""
    flip: bool = False
    """Masks only: every size is looked at mirrored as well."""

    @field_validator("scales")
    @classmethod
    def _check_scales(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or not all(0.1 <= scale <= 4 for scale in value) or len(set(value)) < len(value):
            raise ValueError("give at least one scale, each once, from 0.1 to 4")
        return value


class Specialist(TeacherPart, abc.ABC):
    """A model that is finished, of any make.

    To add a make: subclass, implement its three methods, and pass an instance in a Python recipe; to give it a YAML
    form, add the class to `tutelage.teachers.TEACHERS`.
    """

    @abc.abstractmethod
    def does(self, root: Path, fills: str | None = None) -> Task:
        """The task it does, with its classes; read from settings and small files, without loading weights.

        Args:
            root: relative paths start here.
            fills: the head that it is to fill: a model of several heads is asked for the one of this name.

        Raises:
            UserError: a file that is missing or is not what it should be.
        """

    @abc.abstractmethod
    def digest(self, root: Path) -> str:
        """Hex digest of the weights and of all settings that can change a prediction, without loading: `Teacher.hash`.

        Args:
            root: relative paths start here.

        Raises:
            UserError: a file that is missing.
        """

    @abc.abstractmethod
    def open(self, head: str, task: Task, root: Path, device: torch.device) -> Teacher:
        """Load it.

        Args:
            head: the head it fills.
            task: that head's task, with its classes; of the same kind as `does` says.
            root: relative paths start here.
            device: where it works.

        Raises:
            UserError: a missing library (naming the extra to install), missing or unfitting weights, another kind of
                task, another class count.
        """


def digest_of(settings: Any, files: Sequence[Path] = ()) -> str:
    """Hex digest (16 characters) of plain settings and of the bytes of files, in this order.

    Raises:
        UserError: a file that cannot be read.
    """
    hasher = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for file in files:
        try:
            with file.open("rb") as stream:
                hasher.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise UserError(f"the file cannot be read: {error.strerror}", file=file) from None
    return hasher.hexdigest()[:16]


def check_task(head: str, task: Task, said: Task) -> None:
    """That a teacher does what its head asks for.

    Args:
        head: the head it is to fill.
        task: that head's.
        said: what the teacher does.

    Raises:
        UserError: another kind of task, other classes, classes that exclude one another for one of the two alone,
            depth of another measure, or what `Task.completed` refuses, as features of another width.
    """
    if said.kind is not task.kind:
        raise UserError(
            f"the teacher of head '{head}' does another task",
            field="task",
            value=said.task,
            fix=f"the head's task is {task.task}: give a teacher of that kind, or a head of the teacher's",
        )
    if said.classes is not None and task.classes is not None and said.classes != task.classes:
        raise UserError(
            f"the teacher of head '{head}' has another label space than the head",
            field="classes",
            value=difference(said.classes, task.classes),
            fix="leave out the head's `classes`, or give a teacher of exactly these classes, in this order",
        )
    if isinstance(said, Classification) and isinstance(task, Classification) and said.multi_label != task.multi_label:
        raise UserError(
            f"the head '{head}' and its teacher do not agree on whether classes exclude one another",
            field="multi_label",
            value=f"{said.multi_label}, not {task.multi_label}",
            fix=f"heads.{head}: multi_label: {str(said.multi_label).lower()}; or give a teacher that says "
            f"{str(task.multi_label).lower()}",
        )
    if isinstance(said, Depth) and isinstance(task, Depth) and not task.takes(said):
        fit = f"mode: {said.mode}" + (f", target: {said.target}" if said.mode == "relative" else "")
        raise UserError(
            f"the labels of head '{head}' mean something else than its teacher's predictions",
            field="mode" if said.mode != task.mode else "target",
            value=f"{said.holds}, not {task.holds}",
            fix=f"heads.{head}: {fit}; or give a teacher that says {task.holds}",
        )
    task.completed(said)


def difference(said: Sequence[str], wanted: Sequence[str]) -> str:
    """The first way in which two lists of classes differ, in words."""
    if len(said) != len(wanted):
        return f"{len(said)} classes, not {len(wanted)}"
    at = next(i for i, (a, b) in enumerate(zip(said, wanted, strict=True)) if a != b)
    return f"class {at} is '{said[at]}', not '{wanted[at]}'"
