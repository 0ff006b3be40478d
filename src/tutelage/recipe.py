"""The whole run as one typed value. YAML is its text form; Python users build the same value and pass it to `run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from tutelage.data import FORMATS
from tutelage.data.source import Source
from tutelage.labels.work import Labelling
from tutelage.models.student import Model
from tutelage.part import Part, nearest, one_of, override, parse, read_yaml
from tutelage.tasks import TASKS
from tutelage.tasks.task import Task
from tutelage.teachers import TEACHERS, TeacherPart, Trained
from tutelage.training.balance import Balance
from tutelage.training.schedule import Training

if TYPE_CHECKING:
    AnySource = Source
    AnyTask = Task
    AnyTeacher = TeacherPart
else:
    AnySource = one_of(Source, "format", FORMATS)
    AnyTask = one_of(Task, "task", TASKS)
    AnyTeacher = one_of(TeacherPart, "kind", TEACHERS, default="trained")


class StudentPart(Part):
    """How the student learns from human and pseudo labels."""

    training: Training = Training()
    balance: Balance = Balance()
    mixture: Literal["uniform", "equal"] = "uniform"
    """`uniform` over the union of all images (MuST section 3.2), or `equal` shares a source."""


class FineTuning(Part):
    """Fine-tuning on a downstream set: every rate with every number of steps, the best on validation is reported."""

    training: Training = Training(weight_decay=1e-4)
    """The template; `rate` and `steps` are taken from the grid."""
    rates: tuple[float, ...] = (0.005, 0.02, 0.08, 0.32)
    steps: tuple[int, ...] = (5_000, 20_000)


class TransferSet(Part):
    """One downstream set. Its three sources name the set itself as their head."""

    head: AnyTask
    train: AnySource
    validation: AnySource
    """Chooses the grid point."""
    test: AnySource
    """Gives the reported figure; shares no image with the other two."""
    finetuning: FineTuning | None = None
    """In place of the recipe's."""


class Recipe(Part):
    """Everything that a run does."""

    name: str
    method: Literal["must"] = "must"
    seed: int = 0
    data: str = "."
    """Relative paths of sources and weights start here; itself relative to where the program is started."""
    heads: dict[str, AnyTask]
    """The outputs that teachers fill and the student learns, by the user's names for them."""
    sources: dict[str, AnySource]
    """The images to learn from: labelled for one head each, or (no `head`) a pool."""
    held_out: dict[str, AnySource] = {}
    """Labelled images that nothing learns from: teacher against student, and the pictures of the report."""
    model: Model = Model()
    teachers: dict[str, AnyTeacher]
    """One a head: trained here, or a finished model of any make."""
    labelling: Labelling = Labelling()
    student: StudentPart = StudentPart()
    transfer: dict[str, TransferSet] = {}
    finetuning: FineTuning = FineTuning()
    seeds: tuple[int, ...] = (0,)
    """Of the fine-tunings: each is a repetition of the whole transfer table."""
    quarantine_limit: float = Field(0.005, ge=0, le=1)
    """The run stops when more than this share of a source's images cannot be used."""

    @model_validator(mode="after")
    def _agree(self) -> Recipe:
        for group in ("sources", "held_out"):
            for name, source in getattr(self, group).items():
                if source.head is not None and source.head not in self.heads:
                    raise ValueError(
                        f"{group}.{name}.head: there is no head '{source.head}'{nearest(source.head, self.heads)}; "
                        f"known: {', '.join(self.heads)}"
                    )
                if source.head is None and group == "held_out":
                    raise ValueError(f"held_out.{name}: a held-out source must name the head that it labels")
        for head in self.heads:
            if head not in self.teachers:
                raise ValueError(f"teachers: the head '{head}' has no teacher")
        for head, teacher in self.teachers.items():
            if head not in self.heads:
                raise ValueError(f"teachers: there is no head '{head}'{nearest(head, self.heads)}")
            if isinstance(teacher, Trained) and not any(s.head == head for s in self.sources.values()):
                raise ValueError(f"teachers.{head}: no source labels this head, so its teacher cannot be trained")
        for name, transfer in self.transfer.items():
            for part in ("train", "validation", "test"):
                if getattr(transfer, part).head != name:
                    raise ValueError(f"transfer.{name}.{part}.head must be '{name}', the name of the set")
        for group in ("heads", "sources", "held_out", "transfer"):
            for name in getattr(self, group):
                if not name or set(name) & set("/\\\0") or name.startswith("."):
                    raise ValueError(f"{group}: {name!r} cannot name a folder")
        return self


def read_recipe(path: Path, settings: list[str] | None = None) -> Recipe:
    """A recipe from its YAML file, with `a.b=c` settings applied.

    Raises:
        UserError: whatever is wrong with the text or its keys.
    """
    return parse(Recipe, override(read_yaml(path), settings or []), path)
