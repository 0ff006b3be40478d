"""The whole run as one typed value. YAML is its text form; Python users build the same value and pass it to `run`, or
write it in a file of its own."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field, ValidationError, field_validator, model_validator

from tutelage.downstream import FineTuning as FineTuning
from tutelage.downstream import Probe as Probe
from tutelage.downstream import Start as Start
from tutelage.downstream import TransferSet as TransferSet
from tutelage.errors import UserError
from tutelage.kinds import AnyPretraining, AnySource, AnyTask, AnyTeacher
from tutelage.labels.work import Labelling
from tutelage.models.student import Model
from tutelage.part import Part, changed, nearest, override, parse, read_yaml
from tutelage.teachers import Checkpoint, Trained
from tutelage.training.pretraining import Pretraining, self_trained
from tutelage.training.pretraining import SelfTraining as SelfTraining
from tutelage.training.pretraining import StudentPart as StudentPart
from tutelage.training.x_learner import Distillation as Distillation
from tutelage.training.x_learner import Pruning as Pruning
from tutelage.training.x_learner import XLearner as XLearner
from tutelage.types import Mask

TEACHER = "teacher: "
"""What the names of single specialists begin with, as rows of the transfer table and as starts."""


class Recipe(Part):
    """Everything that a run does."""

    name: str
    method: Literal["must", "transfer"] = "must"
    """`must`: teachers, pseudo labels, student, transfer. `transfer`: the transfer of `initialisations` alone."""
    seed: int = 0
    data: str = "."
    """Relative paths of sources and weights start here; itself relative to where the program is started."""
    heads: dict[str, AnyTask] = {}
    """The outputs that teachers fill and the student learns, by the user's names for them."""
    rounds: int = Field(1, ge=1)
    """How often labels are made and a student learns from them: from the second time on, the student before is the
    teacher of every head that it has (iterated self-training)."""
    sources: dict[str, AnySource] = {}
    """The images to learn from: labelled for one head each, or (no `head`) a pool."""
    fractions: dict[str, float] = {}
    """Source name to the share of its labels (of a pool: of its images) that takes part in learning, above 0: the same
    images for teacher and students, drawn with the seed; a smaller share is a subset of a larger one."""
    held_out: dict[str, AnySource] = {}
    """Labelled images that nothing learns from: teacher against student, and the pictures of the report."""
    model: Model = Model()
    teachers: dict[str, AnyTeacher] = {}
    """One a head: trained here, or a finished model of any make."""
    labelling: Labelling = Labelling()
    labels: str | None = None
    """A labels store that is there already, made from sources of the same names by `tutelage label` or an earlier run:
    it takes the place of the labelling, under the thresholds stated here. Teachers may then be left out."""
    student: AnyPretraining = StudentPart()
    """What the run is for: a student of human and pseudo labels, or an X-Learner."""
    baselines: dict[str, AnyPretraining] = {}
    """Other ways to pre-train, each a row of the transfer table."""
    leave_one_out: bool = False
    """Whether the student is trained again without each head: what its teacher gave to each downstream set. The head
    that a student trains itself on stays: without it there is nothing to train itself on."""
    sweep: dict[str, tuple[float, ...]] = {}
    """Further weights of a head's loss, each a row (MuST section 3.2 chooses the weight of depth so)."""
    initialisations: dict[str, Start] = {}
    """Networks that are there already, each a row of the transfer table."""
    specialists: bool = True
    """Whether every teacher of the student's form is a row."""
    first_row: str | None = None
    """The row that gains are measured from; None: random weights."""
    transfer: dict[str, TransferSet] = {}
    finetuning: FineTuning = FineTuning()
    probe: Probe = Probe()
    study: dict[str, tuple[str, ...]] = {}
    """Variants of this recipe, each a column of the table on the held-out sources: name to settings as after `--set`.
    Pre-trainings that need no teacher are made once for all variants that agree on them."""
    seeds: tuple[int, ...] = (0,)
    """Each is a repetition of the whole transfer table."""
    repeat: Literal["fine-tuning", "everything"] = "fine-tuning"
    """What a further seed repeats: the fine-tunings alone, or teachers, labels and students as well."""
    decoded_gigabytes: float = Field(4.0, ge=0)
    """Downstream sets that are no larger than this when decoded are kept so in the run's folder, for all who train on
    them; 0: none. It does not change the result."""
    quarantine_limit: float = Field(0.005, ge=0, le=1)
    """A stage stops when more than this share of all its images cannot be used."""

    left_out: ClassVar = frozenset(
        {"sources", "held_out", "teachers", "baselines", "initialisations", "transfer", "study"}
    )

    @field_validator(*sorted(left_out), mode="before")
    @classmethod
    def _leave_out(cls, entries: Any) -> Any:
        return {k: v for k, v in entries.items() if v is not None} if isinstance(entries, Mapping) else entries

    @model_validator(mode="after")
    def _images(self) -> Recipe:
        for group in ("sources", "held_out"):
            for name, source in getattr(self, group).items():
                if source.head is not None and source.head not in self.heads:
                    raise ValueError(f"{group}.{name}.head: {_unknown('head', source.head, self.heads)}")
                if source.head is None and group == "held_out":
                    raise ValueError(f"held_out.{name}: a held-out source must name the head that it labels")
        for name, transfer in self.transfer.items():
            for part in ("train", "validation", "test"):
                if getattr(transfer, part).head != name:
                    raise ValueError(f"transfer.{name}.{part}.head must be '{name}', the name of the set")
        tuned = [part for part in self.transfer.values() if "fine-tuning" in part.by]
        if tuned and self.finetuning != FineTuning() and all(part.finetuning is not None for part in tuned):
            raise ValueError(
                "finetuning: nobody reads it, as every downstream set has its own; change `transfer.NAME.finetuning`"
            )
        if self.study and (self.transfer or not self.held_out):
            raise ValueError("study: its variants are compared on `held_out` sources, not by `transfer`")
        for group in ("heads", "sources", "held_out", "transfer", "baselines", "initialisations", "study"):
            for name in getattr(self, group):
                if not name or set(name) & set("/\\\0") or name.startswith("."):
                    raise ValueError(f"{group}: {name!r} cannot name a folder")
        return self

    @model_validator(mode="after")
    def _teaching(self) -> Recipe:
        for head in self.heads:
            if head not in self.teachers and self.labels is None:
                for key, part in self.learners().items():
                    self._refuse_unlabelled(head, key, part)
        if self.heads and not self.teachers and self.labels is None:
            for key, part in self.learners().items():
                for lesson in self._lessons(key, part):
                    if lesson.labels != "human":
                        raise ValueError(
                            f"{lesson.key}.labels: there are no pseudo labels without a teacher; take `human`"
                        )
        for head, teacher in self.teachers.items():
            if head not in self.heads:
                raise ValueError(f"teachers: {_unknown('head', head, self.heads)}")
            averaged = teacher.flip or teacher.scales != (1.0,)
            if isinstance(teacher, Trained) and averaged and self.heads[head].kind is not Mask:
                raise ValueError(f"teachers.{head}: only masks are averaged over scales and flips")
            if isinstance(teacher, Trained) and not any(s.head == head for s in self.sources.values()):
                raise ValueError(f"teachers.{head}: no source labels this head, so its teacher cannot be trained")
        return self

    @model_validator(mode="after")
    def _learning(self) -> Recipe:
        self._check_fractions("", self.fractions)
        for key, part in self._learning_parts():
            for field, known in (("heads", self.heads), ("sources", self.sources)):
                for name in getattr(part, field, None) or ():
                    if name not in known:
                        raise ValueError(f"{key}.{field}: {_unknown(field[:-1], name, known)}")
            if isinstance(part, StudentPart) and part.self_training is not None:
                self._refuse_halves(key, part)
            if isinstance(part, StudentPart | Distillation) and part.labels == "human":
                self._refuse_silence(key, part)
            self._check_fractions(f"{key}.", getattr(part, "fractions", {}))
        self._check_starts()
        if not isinstance(self.student, StudentPart) and (self.sweep or self.leave_one_out or self.rounds > 1):
            raise ValueError(
                f"sweep, leave_one_out and rounds change a student of `kind: student`, not of {self.student.kind}"
            )
        self._check_x_learners()
        if len(self.seeds) > 1 and self.repeat == "fine-tuning" and not self.transfer:
            raise ValueError(
                f"seeds: {len(self.seeds)} would repeat nothing, as there is no `transfer` to fine-tune on; take "
                "`repeat: everything`"
            )
        if self.repeat == "everything" and self.seed not in self.seeds:
            raise ValueError(
                f"seeds: when everything is repeated, the recipe's own seed {self.seed} must be among them"
            )
        for head, weights in self.sweep.items():
            if head not in self.heads:
                raise ValueError(f"sweep: {_unknown('head', head, self.heads)}")
            if not weights or min(weights) <= 0:
                raise ValueError(f"sweep.{head}: give weights above zero")
        if self.leave_one_out and len(getattr(self.student, "heads", None) or self.heads) < 2:
            raise ValueError("leave_one_out: the student must learn two heads or more")
        rows: dict[str, Any] = {**self.baselines, self.student.title: self.student}
        for name in self.baselines:
            seen = [name]
            while (start := getattr(rows[seen[-1]], "start", None)) in rows:
                if start in seen:
                    raise ValueError(f"baselines.{name}.start: these start from each other: {', '.join(seen)}")
                seen.append(start)
        return self

    def _check_starts(self) -> None:
        """Raise ValueError where a training is to go on from what nothing is called, or what it cannot go on from."""
        ours = [f"{TEACHER}{head}" for head, t in self.teachers.items() if isinstance(t, Trained | Checkpoint)]
        students = {key: part for key, part in self.learners().items() if isinstance(part, StudentPart)}
        for key, part in students.items():
            after = [] if part is self.student else [self.student.title]
            self._check_name(f"{key}.start", part.start, [*ours, *self.baselines, *after])
            head = self_trained(part, tuple(self.heads))
            if head is not None and part.start in ours and part.start != f"{TEACHER}{head}":
                raise ValueError(
                    f"{key}.start: it trains itself on '{head}'; of the teachers only '{TEACHER}{head}' fits"
                )
        for head, teacher in self.teachers.items():
            if isinstance(teacher, Trained):
                self._check_name(f"teachers.{head}.start", teacher.start, self.baselines)

    def _check_name(self, key: str, start: str | None, known: Iterable[str]) -> None:
        """Raise ValueError unless a start is one of these names, or may be the path of a model folder."""
        if start is None or start in known:
            return
        if start.startswith(TEACHER) or ("/" not in start and not (Path(self.data) / start).is_dir()):
            raise ValueError(f"{key}: {_unknown('model of ours', start, known)}, or the path of a model folder")

    def _check_x_learners(self) -> None:
        for key, part in self.learners().items():
            if not isinstance(part, XLearner):
                continue
            for task, names in (part.tasks or {}).items():
                for name in names:
                    if name not in self.sources:
                        raise ValueError(f"{key}.tasks.{task}: {_unknown('source', name, self.sources)}")
                    if self.sources[name].head is None:
                        raise ValueError(f"{key}.tasks.{task}: nobody labelled the source '{name}'; give it a head")
            if part.labels == "human" and not any(source.head for source in self.sources.values()):
                raise ValueError(f"{key}: no source has labels to learn from")
            if part.start is not None:
                self._check_start(key, part)

    def _check_start(self, key: str, part: XLearner) -> None:
        """Raise ValueError when an X-Learner is to take an expansion that is not there, or not its own."""
        known = {**self.baselines, self.student.title: self.student}
        others = {name: other for name, other in known.items() if isinstance(other, XLearner) and other != part}
        start = others.get(part.start or "")
        if start is None or start.start is not None:
            raise ValueError(f"{key}.start: {_unknown('other X-Learner', str(part.start), others)}")
        for field in XLearner.model_fields:
            if field not in ("start", "squeeze") and getattr(part, field) != getattr(start, field):
                raise ValueError(f"{key}.{field}: it is not that of '{part.start}', where it starts")

    def learners(self) -> dict[str, Pretraining]:
        """All that is pre-trained, by key."""
        return {"student": self.student, **{f"baselines.{name}": part for name, part in self.baselines.items()}}

    def _learning_parts(self) -> Iterator[tuple[str, Pretraining]]:
        """`learners`, each with the squeeze in it behind it."""
        for key, part in self.learners().items():
            yield key, part
            if isinstance(part, XLearner) and isinstance(part.squeeze, Distillation):
                yield f"{key}.squeeze", part.squeeze

    def _check_fractions(self, key: str, fractions: dict[str, float]) -> None:
        for name, share in fractions.items():
            if name not in self.sources:
                raise ValueError(f"{key}fractions: {_unknown('source', name, self.sources)}")
            if not 0 < share <= 1:
                raise ValueError(f"{key}fractions.{name}: a share is above 0 and at most 1, not {share:g}")

    def _refuse_silence(self, key: str, part: StudentPart | Distillation) -> None:
        """Raise ValueError when there is no human label of something that a student learns. What it starts from may
        have learned a head before."""
        heads, names = part.heads or tuple(self.heads), part.sources or tuple(self.sources)
        silent = [head for head in heads if not any(self.sources[name].head == head for name in names)]
        if len(silent) == len(heads):
            raise ValueError(
                f"{key}.sources: none of {', '.join(names) or 'them'} labels {', '.join(heads)}: with `labels: human` "
                "there is nothing to learn"
            )
        if silent and getattr(part, "start", None) is None:
            raise ValueError(
                f"{key}.heads: none of {', '.join(names)} labels {', '.join(silent)}, so that this would stay random; "
                f"take `heads: [{', '.join(head for head in heads if head not in silent)}]`"
            )

    def _refuse_halves(self, key: str, part: StudentPart) -> None:
        """Raise ValueError when a student cannot train itself as it is asked to."""
        head = self_trained(part, tuple(self.heads))
        if head is None:
            raise ValueError(
                f"{key}.self_training.head: say which of the heads is self-trained: {', '.join(self.heads)}"
            )
        if head not in self.heads or (part.heads is not None and head not in part.heads):
            raise ValueError(f"{key}.self_training.head: {_unknown('head', head, part.heads or self.heads)}")
        names = [name for name in part.sources or self.sources if name in self.sources]
        human = [name for name in names if self.sources[name].head == head]
        if not human:
            raise ValueError(f"{key}.self_training: there is no source that labels the head '{head}'")
        if part.labels == "pseudo":
            raise ValueError(f"{key}.labels: who trains itself learns from human labels too; take `all`, not `pseudo`")
        if part.balance.mode not in ("equal", "fixed", "scaling-rule"):
            raise ValueError(f"{key}.balance.mode: self-training has a balance of its own, not {part.balance.mode}")

    def asks_for(self, head: str) -> bool:
        """Whether somebody learns pseudo labels of a head, so that it must have some."""
        return any(
            lesson.labels == "pseudo" or without
            for key, part in self.learners().items()
            for lesson, without in self._taught(head, key, part)
            if lesson.labels != "human"
        )

    def _taught(self, head: str, key: str, part: Pretraining) -> list[tuple[_Lesson, list[str]]]:
        """The lessons in which a head is learned, with those of their sources that no person labelled for it."""
        found = []
        for lesson in self._lessons(key, part):
            without = [name for name in lesson.sources if self.sources[name].head != head]
            joint = (
                isinstance(part, StudentPart)
                and part.self_training is not None
                and self_trained(part, tuple(self.heads)) != head
                and len(without) < len(lesson.sources)
            )
            if head in lesson.heads and not joint:  # else it learns from the half that people labelled for it
                found.append((lesson, without))
        return found

    def _refuse_unlabelled(self, head: str, key: str, part: Pretraining) -> None:
        """Raise ValueError when a head without a teacher would be learned from images that no person labelled."""
        for lesson, without in self._taught(head, key, part):
            if lesson.labels != "human" and without:
                raise ValueError(
                    f"teachers: the head '{head}' has no teacher; {lesson.key} learns it from {without[0]}, which "
                    "nobody labelled"
                )
            if lesson.labels == "human" and not any(source.head == head for source in self.sources.values()):
                raise ValueError(f"{lesson.key}: no source labels the head '{head}'")

    def _lessons(self, key: str, part: Pretraining) -> list[_Lesson]:
        """All that a pre-training learns from labels."""
        if isinstance(part, StudentPart | Distillation):
            if part.labels == "none":
                return []
            seen = [name for name in part.sources or self.sources if name in self.sources]
            return [_Lesson(key, part.labels, part.heads or tuple(self.heads), seen)]
        if not isinstance(part, XLearner):
            return []
        known = self.sources if part.tasks is None else [name for names in part.tasks.values() for name in names]
        human = [name for name in known if name in self.sources and self.sources[name].head is not None]
        pools = [name for name, source in self.sources.items() if source.head is None]
        heads = tuple(str(self.sources[name].head) for name in human)
        if part.tasks is None and part.labels == "all":
            heads = tuple(self.heads)
        own = _Lesson(key, part.labels, heads, human + (pools if part.labels == "all" else []))
        if isinstance(part.squeeze, Distillation) and part.narrow is None:
            return [own, *self._lessons(f"{key}.squeeze", part.squeeze)]
        return [own]


class _Lesson(NamedTuple):
    """What is learned from labels.

    Attributes:
        key: where the recipe says so.
        labels: whose: `human`, or others' as well.
        heads: that are learned.
        sources: whose images are seen.
    """

    key: str
    labels: str
    heads: tuple[str, ...]
    sources: list[str]


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Why a name cannot be meant."""
    names = list(known)
    return f"there is no {what} '{name}'{nearest(name, names)}; known: {', '.join(names)}"


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
    plain = read_yaml(path)
    return parse(Recipe, override(plain, settings or [], Recipe), path)


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
