"""What pre-trainings are made from, and what they leave behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import nn

from tutelage.data.quarantine import QUARANTINE, Quarantine
from tutelage.data.source import Dataset
from tutelage.errors import UserError
from tutelage.methods.material import Material, place
from tutelage.models.backbone import Backbone, Expanded
from tutelage.recipe import TEACHER, Recipe
from tutelage.stages import Run, Stage
from tutelage.tasks.task import Task
from tutelage.teachers.own import Checkpoint
from tutelage.teachers.teacher import Specialist, TeacherPart
from tutelage.teachers.trained import Trained
from tutelage.training.checkpoint import Saved, find_model, load_model
from tutelage.training.pretraining import Pretraining, StudentPart
from tutelage.training.x_learner import Distillation, XLearner, distillation_in

STUDENT = StudentPart.title


class Made(NamedTuple):
    """A model and the stage that made it.

    Attributes:
        stage: the last of its stages.
        folder: of the model.
        others: model folders that hold heads of it, where those are not in the model itself.
        expansion: of an X-Learner: the stage that made its expanded backbone, before any squeeze or pruning.
    """

    stage: Stage
    folder: Path
    others: tuple[Path, ...] = ()
    expansion: Stage | None = None


Hired = tuple[Stage, Specialist]
"""A teacher that is ready, and the stage that made or chose it."""


class Labelled(NamedTuple):
    """All pseudo labels: the stage that made or adopted them, and the store's folder."""

    stage: Stage
    root: Path


@dataclass(frozen=True)
class Entry:
    """One pre-training of a recipe.

    Attributes:
        name: of its row in the transfer table.
        folder: of its stage.
        part: what it does.
        without: the head that it was not taught; "" for all others.
    """

    name: str
    folder: str
    part: Pretraining
    without: str = ""

    @property
    def start(self) -> str | None:
        """What it starts from; None: as the recipe's model says."""
        return self.part.start if isinstance(self.part, StudentPart | XLearner) else None

    @property
    def late(self) -> bool:
        """Whether it needs teachers or their labels."""
        return taught(self.part) or (self.start or "").startswith(TEACHER)


def taught(part: Pretraining) -> bool:
    """Whether a pre-training looks at pseudo labels."""
    if isinstance(part, XLearner):
        return part.labels == "all" or (isinstance(part.squeeze, Distillation) and taught(part.squeeze))
    if isinstance(part, Distillation):
        return part.labels == "all"
    return isinstance(part, StudentPart) and part.labels != "human"


@dataclass
class Workshop:
    """What pre-trainings are made from, and those that are made.

    Attributes:
        material: sources and heads.
        teachers: head to teacher, once they are hired.
        labels: once they are there.
        made: by name of the row.
    """

    material: Material
    teachers: dict[str, Hired] = field(default_factory=dict)
    labels: Labelled | None = None
    made: dict[str, Made] = field(default_factory=dict)


def find_start(run: Run, workshop: Workshop, start: str | None) -> tuple[Path | None, list[Stage]]:
    """The model folder that a network starts from, and the stage that made it.

    Raises:
        UserError: it names a teacher that is no model of ours, or nothing that is there.
    """
    if start is None:
        return None, []
    if start in workshop.made:
        return workshop.made[start].folder, [workshop.made[start].stage]
    if start.startswith(TEACHER):
        head = start.removeprefix(TEACHER)
        stage, teacher = workshop.teachers.get(head, (None, None))
        if stage is None or not isinstance(teacher, Checkpoint):
            raise UserError(
                "a network can start from a teacher that is a model of this library only",
                field="start",
                value=start,
                fix=f"heads: {', '.join(workshop.teachers)}",
            )
        return find_model(Path(run.recipe.data) / teacher.path), [stage]
    return find_model(place(run).root / start), []


def refuse_shared(run: Run, stage: Stage, what: str) -> None:
    """Nothing is trained where other processes work in the folder as well, as nobody holds its lock.

    Raises:
        UserError: they do; `what` is not trained yet.
    """
    if run.shared:
        raise UserError(
            f"{what} is not trained yet",
            file=stage.folder,
            fix="run `tutelage label` with this recipe and folder once without --worker, or with finished teachers",
        )


def weights_in(backbone: nn.Module) -> dict[str, int]:
    """What a stage counts of an ordinary backbone."""
    return {"backbone": sum(parameter.numel() for parameter in backbone.parameters())}


def quarantine_of(run: Run, stage: Stage, sources: Mapping[str, Dataset]) -> Quarantine:
    """The list of a stage's unusable images."""
    total = sum(len(dataset) for dataset in sources.values())
    return Quarantine(stage.folder / QUARANTINE, total, run.recipe.quarantine_limit)


def saved(run: Run, folder: Path) -> Saved:
    """A model of this run; the recipe's own kinds of task and backbone are known, a user's included."""
    return load_model(folder, *kinds_of(run.recipe))


def kinds_of(recipe: Recipe) -> tuple[list[type[Task]], list[type[Backbone]]]:
    """The classes of task and of backbone that the models of a recipe are made of, a user's own among them."""
    own = [part.head for part in recipe.teachers.values() if isinstance(part, Trained) and part.head is not None]
    tasks = [*recipe.heads.values(), *own, *(part.head for part in recipe.transfer.values())]
    backbones = [recipe.model.backbone]
    for part in recipe.learners().values():
        if isinstance(part, XLearner):
            backbones += [*part.backbones.values(), *(part.narrow or {}).values()]
        squeeze = distillation_in(part)
        if squeeze is not None and squeeze.backbone is not None:
            backbones.append(squeeze.backbone)
    backbones += [branch for one in backbones if isinstance(one, Expanded) for branch in one.branches.values()]
    return [type(task) for task in tasks], [type(backbone) for backbone in backbones]


def as_teacher(recipe: Recipe, folder: Path, part: TeacherPart | None, head: str | None = None) -> Checkpoint:
    """A model of this run as a finished teacher, which looks at images as a part of the recipe says."""
    tasks, backbones = kinds_of(recipe)
    return Checkpoint(
        path=folder.resolve(),
        head=head,
        scales=(1.0,) if part is None else part.scales,
        flip=part is not None and part.flip,
        tasks=tuple(dict.fromkeys(tasks)),
        backbones=tuple(dict.fromkeys(backbones)),
    )
