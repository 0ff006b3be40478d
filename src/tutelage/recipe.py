"""The whole run as one typed value. YAML is its text form; Python users build the same value and pass it to `run`, or
write it in a file of its own."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError, model_validator

from tutelage.data import FORMATS
from tutelage.data.source import Source
from tutelage.errors import UserError
from tutelage.labels.work import Labelling
from tutelage.models.student import Model
from tutelage.part import Part, changed, nearest, one_of, override, parse, read_yaml
from tutelage.tasks import TASKS
from tutelage.tasks.task import Task
from tutelage.teachers import TEACHERS, TeacherPart, Trained
from tutelage.training.balance import Balance
from tutelage.training.schedule import Training
from tutelage.types import Mask

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
    teachers: dict[str, AnyTeacher] = {}
    """One a head: trained here, or a finished model of any make."""
    labelling: Labelling = Labelling()
    labels: str | None = None
    """A labels store that is there already, made from sources of the same names by `tutelage label` or an earlier run:
    it takes the place of the labelling, under the thresholds stated here. Teachers may then be left out."""
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
            if head not in self.teachers and self.labels is None:
                raise ValueError(f"teachers: the head '{head}' has no teacher")
        for head, teacher in self.teachers.items():
            if head not in self.heads:
                raise ValueError(f"teachers: there is no head '{head}'{nearest(head, self.heads)}")
            averaged = teacher.flip or teacher.scales != (1.0,)
            if isinstance(teacher, Trained) and averaged and self.heads[head].kind is not Mask:
                raise ValueError(f"teachers.{head}: only masks are averaged over scales and flips")
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


def read_recipe(path: str | Path, settings: list[str] | None = None) -> Recipe:
    """A recipe from its YAML file, or from a Python file, with `a.b=c` settings applied.

    A Python file has a function `recipe()` that returns a `Recipe`, or a value of this name. It is run as a module of
    its own name, and its folder stands first on the import path from then on, so that other processes find its
    functions and classes.

    Raises:
        UserError: whatever is wrong with the text, its keys, or the Python file.
    """
    path = Path(path)
    if path.suffix == ".py":
        return changed(_run_recipe_file(path), settings or [])
    return parse(Recipe, override(read_yaml(path), settings or []), path)


def _run_recipe_file(path: Path) -> Recipe:
    if not path.is_file():
        raise UserError("there is no such file", file=path, fix="give the path of a recipe (YAML or Python)")
    try:
        module = _import_file(path.resolve())
        found = vars(module).get("recipe")
        if callable(found):
            found = found()
    except UserError:
        raise
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)]
        raise UserError(
            f"the recipe does not fit ({error.title}):\n    " + "\n    ".join(lines),
            file=path,
            record=_line(error, path.resolve()),
            fix="correct these fields",
        ) from None
    except Exception as error:
        raise UserError(
            f"the recipe file fails: {type(error).__name__}: {error}",
            file=path,
            record=_line(error, path.resolve()),
            fix="correct the file",
        ) from error
    if not isinstance(found, Recipe):
        raise UserError(
            "this file gives no recipe",
            file=path,
            field="recipe",
            value=None if found is None else type(found).__name__,
            fix="define a function `recipe()` that returns a `tutelage.recipe.Recipe`",
        )
    return found


def _import_file(path: Path) -> ModuleType:
    """A file as the module of its name, run afresh."""
    name = path.stem
    before = sys.modules.get(name)
    taken = before is not None and vars(before).get("__file__") != str(path)
    folder = str(path.parent)
    if not taken and before is None:
        known = importlib.util.find_spec(name) if "." not in name else None
        taken = "." in name or (known is not None and known.origin != str(path))
    if taken:
        raise UserError(
            "a recipe file cannot have the name of another module, or dots in its name",
            file=path,
            value=name,
            fix="rename the file",
        )
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _line(error: BaseException, path: Path) -> str | None:
    """The last line of a file that an error passed through."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"line {lines[-1]}" if lines else None
