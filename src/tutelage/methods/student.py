"""A student of human and pseudo labels: MuST's (step 3 of `must.py`) and a self-trained one; the supervised baselines
are the same with less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tutelage.data.loading import Labels
from tutelage.data.mixture import Mixture, order_of, parts_of
from tutelage.data.shared import Union
from tutelage.data.source import Dataset, Unlabelled
from tutelage.labels.store import LabelsView, Store
from tutelage.methods.guards import check_pseudo_labels, say_missing
from tutelage.methods.material import Material, filled_heads
from tutelage.methods.workshop import (
    STUDENT,
    Entry,
    Made,
    Workshop,
    find_start,
    quarantine_of,
    refuse_shared,
    weights_in,
)
from tutelage.models.learner import Learner
from tutelage.models.student import Student
from tutelage.recipe import TEACHER, Recipe
from tutelage.stages import Run, Stage
from tutelage.tasks.task import Task
from tutelage.teachers.trained import Trained
from tutelage.training.balance import BalanceRule
from tutelage.training.checkpoint import load_start
from tutelage.training.fit import build, fit
from tutelage.training.notes import take_note
from tutelage.training.pretraining import StudentPart, self_trained
from tutelage.training.processes import device
from tutelage.training.self_training import PSEUDO, HalfPseudo, Normalised


def train_student(run: Run, workshop: Workshop, entry: Entry, student: StudentPart) -> Made:
    """Step 3: one network with its heads on the union of its images, every label weighted alike (3.2)."""
    recipe, material, settings = run.recipe, workshop.material, student.training
    heads = {head: material.heads[head] for head in student.heads or material.heads}
    sources = sources_of(material, student)
    start, after = find_start(run, workshop, student.start)
    if student.labels != "human":
        assert workshop.labels is not None
        after.append(workshop.labels.stage)
    part = {"student": student.plain(), "model": recipe.model.plain(), "seed": recipe.seed, "data": recipe.data}
    part |= {"fractions": {name: share for name, share in recipe.fractions.items() if name in sources}}
    if student.labels == "human" or recipe.labels is not None:  # else the labels were made from them
        part |= {"sources": {name: recipe.sources[name].plain() for name in sources}}
        part |= {"heads": {name: task.plain() for name, task in heads.items()}}
    stage = run.stage(entry.folder, part, after=after, shared=not entry.late)
    if stage.finished:
        return Made(stage, stage.folder)
    refuse_shared(run, stage, f"'{entry.name}'")
    network = build(recipe.model, heads, recipe.seed, entry.folder, Path(recipe.data))
    if start is not None:
        _go_on(run, stage, entry, student, network, start)
    shares = {**recipe.fractions, **student.fractions}
    parts = parts_of(sources.values(), shares, recipe.seed, rest=student.labels != "human")
    union = union_of(student, list(heads), parts)
    if union.shared and entry.name == STUDENT:
        text = f"{union.shared} images are shown by several sources; each is learned once, with all labels"
        take_note(stage.folder, text, run.progress)
    pseudo_only = student.labels == "pseudo"
    datasets = [Unlabelled(dataset) for dataset in union.datasets] if pseudo_only else union.datasets
    learner, rule = learner_of(recipe, student, network, union)
    own = run.noted(entry.folder) if run.note or student.start is not None else ""
    mixture = mixture_of(recipe, student, datasets, list(heads), own)
    run.progress.say(f"{entry.name}: {mixture.meaning()}")
    say_missing(run, stage, entry.name, parts, heads)
    human = student.labels == "human"
    labels = union.labels(None) if human else pseudo_labels(run, workshop, union, heads, pseudo_only)
    fit(
        network,
        mixture,
        settings,
        rule,
        stage.folder,
        learner=learner,
        seed=mixture.seed,
        device=device(),
        spaces=material.spaces,
        labels=labels,
        quarantine=quarantine_of(run, stage, sources),
        label=entry.name,
        progress=run.progress,
    )
    stage.finish(images=sum(len(dataset) for dataset in sources.values()), weights=weights_in(network.backbone))
    return Made(stage, stage.folder)


def _go_on(run: Run, stage: Stage, entry: Entry, student: StudentPart, network: Student, start: Path) -> None:
    """Fill a network from where it starts; note what of a teacher, or of a head of its own, it could not take."""
    from_teacher, own = str(student.start).startswith(TEACHER), self_trained(student, list(network.tasks))
    taken, other = load_start(network, start, own if from_teacher else None)
    notes = [f"the head '{head}' of {student.start} has another form; it begins fresh" for head in other]
    if own is not None and own not in (*taken, *other):
        notes.append(f"{student.start} has no head '{own}'; it begins fresh")
    if from_teacher and not taken and not other:
        fresh = ", ".join(network.tasks)
        notes = [
            f"{student.start} gives backbone and pyramid alone; it has no head of these, which begin fresh: {fresh}"
        ]
    for text in notes:
        take_note(stage.folder, f"{entry.name}: {text}", run.progress)


def union_of(student: StudentPart, heads: Sequence[str], datasets: Sequence[Dataset]) -> Union:
    """The images that a student sees. One that several sources show is kept in the first of them; where the student
    trains itself, in one that labels its head, whichever comes first: it belongs to the human half."""
    own = self_trained(student, heads)
    return Union(sorted(datasets, key=lambda dataset: own is not None and dataset.head != own))


def mixture_of(
    recipe: Recipe, student: StudentPart, datasets: Sequence[Dataset], heads: Sequence[str], name: str = ""
) -> Mixture:
    """Which image comes when. A training that goes on from another, or from another round, has an order of its own,
    which follows from its name; "": the recipe's."""
    halves = student.self_training
    seed = order_of(recipe.seed, name) if name else recipe.seed
    if halves is None:
        return Mixture(datasets, student.mixture, seed)
    head = self_trained(student, heads)
    human = [number for number, dataset in enumerate(datasets) if dataset.head == head]
    return Mixture(datasets, "paired", seed, first=human, ratio=halves.ratio)


def learner_of(recipe: Recipe, student: StudentPart, network: Student, union: Union) -> tuple[Learner, BalanceRule]:
    """What the loop trains, and how its losses become one; the images are those of `union`."""
    rule, halves = balance_of(recipe, student, network.tasks), student.self_training
    if halves is None:
        return network, rule
    head = self_trained(student, list(network.tasks))
    filled = [] if student.labels == "human" else filled_heads(recipe, network.tasks)
    learner = HalfPseudo(network, filled, union.said) if filled else network
    further = {f"{name}{PSEUDO}": name for name in filled}
    if head is not None:
        further |= {name: head for name in network.tasks if name != head and name not in filled}
    weights = {name: float(weight) for name, weight in rule.weights().items()}
    return learner, Normalised(weights, further, halves.alpha, halves.decay, halves.normalise)


def pseudo_labels(run: Run, workshop: Workshop, union: Union, heads: Mapping[str, Task], only: bool = False) -> Labels:
    """The labels of these heads that are not in the sources themselves.

    Args:
        run, workshop: with pseudo labels.
        union: of the images.
        heads: name to task.
        only: whether human labels of other sources are left out.
    """
    assert workshop.labels is not None
    said = {head: heads[head] for head in filled_heads(run.recipe, heads)}
    store = Store(workshop.labels.root)
    check_pseudo_labels(run, store, union, list(said))
    view = LabelsView(store, said)
    return view if only else union.labels(view)


def sources_of(material: Material, student: StudentPart) -> dict[str, Dataset]:
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
