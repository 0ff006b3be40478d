"""Every way of pre-training that a recipe names: the student, its baselines, and the student with something changed.

Each ends as a model folder and is a row of the transfer table. Those that look at human labels only, or at none, come
before the teachers, which may start from them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tutelage.data.mixture import Mixture
from tutelage.data.quarantine import Quarantine
from tutelage.data.shared import Union
from tutelage.data.source import Dataset, Unlabelled
from tutelage.errors import UserError
from tutelage.labels.store import LabelsView, Store
from tutelage.methods.guards import say_missing
from tutelage.methods.material import Material, place
from tutelage.models.learner import Learner
from tutelage.models.student import Student
from tutelage.recipe import TEACHER, Recipe
from tutelage.stages import Run, Stage
from tutelage.tasks.task import Task
from tutelage.teachers.own import Checkpoint
from tutelage.teachers.teacher import Specialist
from tutelage.teachers.trained import Trained
from tutelage.training.balance import BalanceRule
from tutelage.training.checkpoint import find_model, load_shared
from tutelage.training.fit import build, fit
from tutelage.training.pretraining import Pretraining, StudentPart, self_trained
from tutelage.training.processes import device
from tutelage.training.self_training import HalfPseudo, Normalised
from tutelage.training.simclr import SimCLR, pretrain_simclr

STUDENT = "MuST student"


class Made(NamedTuple):
    """A model and the stage that made it."""

    stage: Stage
    folder: Path


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
        return self.part.start if isinstance(self.part, StudentPart) else None

    @property
    def late(self) -> bool:
        """Whether it needs teachers or their labels."""
        return isinstance(self.part, StudentPart) and (
            self.part.labels != "human" or (self.start or "").startswith(TEACHER)
        )


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


def entries(recipe: Recipe) -> list[Entry]:
    """All pre-trainings of a recipe, the student last."""
    student, heads = recipe.student, recipe.student.heads or tuple(recipe.heads)
    found = [Entry(name, f"baselines/{name}", part) for name, part in recipe.baselines.items()]
    for head, weights in recipe.sweep.items():
        for weight in weights:
            balance = student.balance.but(
                mode="fixed" if student.balance.mode == "equal" else student.balance.mode,
                weights={**student.balance.weights, head: weight},
            )
            name = weight_row(head, weight)
            found.append(Entry(name, f"sweep/{name}", student.but(balance=balance)))
    if recipe.leave_one_out:
        for head in heads:
            rest = tuple(other for other in heads if other != head)
            kept = {name: weight for name, weight in student.balance.weights.items() if name != head}
            part = student.but(heads=rest, balance=student.balance.but(weights=kept))
            found.append(Entry(f"without {head}", f"without/{head}", part, without=head))
    return [*found, Entry(STUDENT, "student", student)]


def weight_row(head: str, weight: float) -> str:
    """The row of the student with another weight of a head's loss."""
    return f"{head} weight {weight:g}"


def looked_at(recipe: Recipe) -> list[str]:
    """The sources whose images somebody learns from with the eyes of the teachers; without any such, all."""
    students = [entry.part for entry in entries(recipe) if isinstance(entry.part, StudentPart)]
    asked = [part.sources for part in students if part.labels != "human"]
    if not asked or None in asked:
        return list(recipe.sources)
    names = {name for sources in asked for name in sources or ()}
    return [name for name in recipe.sources if name in names]


def pretrain(run: Run, workshop: Workshop, wanted: Sequence[Entry]) -> None:
    """Make all of these that are not made yet, side by side as far as one does not start from another."""
    waiting = [entry for entry in wanted if entry.name not in workshop.made]
    names = {entry.name for entry in waiting}
    while waiting:
        ready = [entry for entry in waiting if entry.start not in names]
        calls = [(workshop, entry) for entry in ready]
        sizes = [entry.part.training.steps * entry.part.training.batch for entry in ready]
        done = run.each("pre-training", pretrain_one, calls, sizes)
        workshop.made |= {entry.name: made for entry, made in zip(ready, done, strict=True)}
        waiting = [entry for entry in waiting if entry.name not in workshop.made]
        names = {entry.name for entry in waiting}


def pretrain_one(run: Run, workshop: Workshop, entry: Entry) -> Made:
    """One pre-training: a stage."""
    if isinstance(entry.part, SimCLR):
        return _contrast(run, workshop.material, entry, entry.part)
    if isinstance(entry.part, StudentPart):
        return train_student(run, workshop, entry, entry.part)
    raise TypeError(f"no way is known to pre-train by {type(entry.part).__name__}")


def train_student(run: Run, workshop: Workshop, entry: Entry, student: StudentPart) -> Made:
    """Step 3: one network with its heads on the union of its images, every label weighted alike (3.2)."""
    recipe, material, settings = run.recipe, workshop.material, student.training
    heads = {head: material.heads[head] for head in student.heads or material.heads}
    sources = _sources(material, student)
    start, after = find_start(run, workshop, student.start)
    if student.labels != "human":
        assert workshop.labels is not None
        after.append(workshop.labels.stage)
    part = {"student": student.plain(), "model": recipe.model.plain(), "seed": recipe.seed, "data": recipe.data}
    part |= {"fractions": {name: share for name, share in recipe.fractions.items() if name in sources}}
    if student.labels == "human":
        part |= {"sources": {name: recipe.sources[name].plain() for name in sources}}
        part |= {"heads": {name: task.plain() for name, task in heads.items()}}
    stage = run.stage(entry.folder, part, after=after, shared=not entry.late)
    if stage.finished:
        return Made(stage, stage.folder)
    network = build(recipe.model, heads, recipe.seed, entry.folder, Path(recipe.data))
    if start is not None:
        load_shared(network, start / "weights.safetensors")
    union = Union(list(sources.values()))
    if union.shared and entry.name == STUDENT:
        run.progress.say(
            f"note: {union.shared} images are shown by several sources; each is learned once, with all labels"
        )
    view = None
    if workshop.labels is not None and student.labels != "human":
        view = LabelsView(Store(workshop.labels.root), {h: t for h, t in heads.items() if h in _said(run, workshop)})
    pseudo_only = student.labels == "pseudo"
    datasets = [Unlabelled(dataset) for dataset in union.datasets] if pseudo_only else union.datasets
    learner, rule = learner_of(recipe, student, network, datasets)
    mixture = mixture_of(recipe, student, datasets, list(heads))
    say_missing(run, entry.name, mixture, heads, mixture.fractions)
    fit(
        network,
        mixture,
        settings,
        rule,
        stage.folder,
        learner=learner,
        seed=recipe.seed,
        device=device(),
        spaces=material.spaces,
        labels=view if pseudo_only else union.labels(view),
        quarantine=quarantine_of(run, stage, sources),
        label=entry.name,
        progress=run.progress,
    )
    stage.finish(images=sum(len(dataset) for dataset in sources.values()))
    return Made(stage, stage.folder)


def mixture_of(recipe: Recipe, student: StudentPart, datasets: Sequence[Dataset], heads: Sequence[str]) -> Mixture:
    """Which image comes when."""
    names = {dataset.name for dataset in datasets}
    asked = {**recipe.fractions, **student.fractions}
    fractions, halves = {name: share for name, share in asked.items() if name in names}, student.self_training
    if halves is None:
        return Mixture(datasets, student.mixture, recipe.seed, fractions)
    head = self_trained(student, heads)
    human = [dataset.name for dataset in datasets if dataset.head == head]
    return Mixture(datasets, "paired", recipe.seed, fractions, first=human, ratio=halves.ratio)


def learner_of(
    recipe: Recipe, student: StudentPart, network: Student, datasets: Sequence[Dataset]
) -> tuple[Learner, BalanceRule]:
    """What the loop trains, and how its losses become one."""
    rule, halves = balance_of(recipe, student, network.tasks), student.self_training
    if halves is None:
        return network, rule
    human = {head: {d.name for d in datasets if d.head == head} for head in network.tasks if head in recipe.teachers}
    weights = {head: float(weight) for head, weight in rule.weights().items()}
    return HalfPseudo(network, human), Normalised(list(human), weights, halves.alpha, halves.decay, halves.normalise)


def _said(run: Run, workshop: Workshop) -> Collection[str]:
    """The heads that have pseudo labels."""
    return workshop.material.heads if run.recipe.labels is not None else workshop.teachers


def _sources(material: Material, student: StudentPart) -> dict[str, Dataset]:
    """The sources whose images a student sees."""
    if student.sources is not None:
        return {name: material.sources[name] for name in student.sources}
    if student.labels != "human":
        return material.sources
    heads = student.heads or tuple(material.heads)
    return {name: dataset for name, dataset in material.sources.items() if dataset.head in heads}


def balance_of(recipe: Recipe, student: StudentPart, heads: Mapping[str, Task] | Sequence[str]) -> BalanceRule:
    """How the losses of these heads become one."""
    scales = {
        head: (teacher.training.batch, teacher.training.rate)
        for head, teacher in recipe.teachers.items()
        if isinstance(teacher, Trained)
    }
    settings = student.training
    return student.balance.build(heads, (settings.batch, settings.rate), scales)


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


def _contrast(run: Run, material: Material, entry: Entry, part: SimCLR) -> Made:
    recipe = run.recipe
    sources = {name: material.sources[name] for name in part.sources or material.sources}
    about = {
        "simclr": part.plain(),
        "model": recipe.model.plain(),
        "sources": {name: recipe.sources[name].plain() for name in sources},
        "seed": recipe.seed,
        "data": recipe.data,
    }
    stage = run.stage(entry.folder, about, shared=True)
    if not stage.finished:
        pretrain_simclr(
            recipe.model,
            part,
            Union(list(sources.values())).datasets,
            stage.folder,
            seed=recipe.seed,
            device=device(),
            root=Path(recipe.data),
            quarantine=quarantine_of(run, stage, sources),
            label=entry.name,
            progress=run.progress,
        )
        stage.finish(images=sum(len(dataset) for dataset in sources.values()))
    return Made(stage, stage.folder)


def quarantine_of(run: Run, stage: Stage, sources: Mapping[str, Dataset]) -> Quarantine:
    """The list of a stage's unusable images."""
    total = sum(len(dataset) for dataset in sources.values())
    return Quarantine(stage.folder / "quarantine.jsonl", total, run.recipe.quarantine_limit)
