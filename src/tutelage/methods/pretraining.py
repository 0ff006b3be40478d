"""Every way of pre-training that a recipe names: the student, its baselines, and the student with something changed.

Each ends as a model folder and is a row of the transfer table. Teachers may start from those that look at human labels
only, or at none; what they do start from comes before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tutelage.data.shared import Union
from tutelage.errors import UserError
from tutelage.methods.hiring import own_form, own_model
from tutelage.methods.material import Material
from tutelage.methods.rehearsal import refuse_other_form
from tutelage.methods.student import train_student
from tutelage.methods.workshop import Entry, Made, Workshop, quarantine_of, refuse_shared, taught, weights_in
from tutelage.methods.x_learner import distil, trainings_of, x_learn
from tutelage.recipe import TEACHER, Recipe
from tutelage.stages import Run
from tutelage.teachers.trained import Trained
from tutelage.training.checkpoint import other_head, same_form
from tutelage.training.pretraining import Pretraining, StudentPart, self_trained
from tutelage.training.processes import device
from tutelage.training.simclr import SimCLR, pretrain_simclr
from tutelage.training.x_learner import Distillation, XLearner


def entries(recipe: Recipe) -> list[Entry]:
    """All pre-trainings of a recipe, the student last."""
    student = recipe.student
    found = [Entry(name, f"baselines/{name}", part) for name, part in recipe.baselines.items()]
    return [*found, *(_changed(recipe, student) if isinstance(student, StudentPart) else ()), student_of(recipe)]


def early(recipe: Recipe) -> list[Entry]:
    """Those that can come before the teachers: neither they nor what they start from needs a teacher."""
    rows = {entry.name: entry for entry in entries(recipe)}

    def waits(entry: Entry) -> bool:
        return entry.late or (entry.start in rows and waits(rows[str(entry.start)]))

    return [entry for entry in rows.values() if not waits(entry)]


def before_teachers(recipe: Recipe) -> list[Entry]:
    """Of those that can come before the teachers: what teachers start from, and what that starts from in turn."""
    known, found = {entry.name: entry for entry in early(recipe)}, dict[str, Entry]()
    for teacher in recipe.teachers.values():
        start = teacher.start if isinstance(teacher, Trained) else None
        while start in known and start not in found:
            found[start] = known[start]
            start = known[start].start
    return list(found.values())


def student_of(recipe: Recipe) -> Entry:
    """The pre-training that the recipe is about."""
    return Entry(recipe.student.title, "student", recipe.student)


def _changed(recipe: Recipe, student: StudentPart) -> list[Entry]:
    """The student with something changed: the sweep of loss weights, and leave-one-out."""
    heads, found = student.heads or tuple(recipe.heads), []
    for head, weights in recipe.sweep.items():
        for weight in weights:
            balance = student.balance.but(
                mode="fixed" if student.balance.mode == "equal" else student.balance.mode,
                weights={**student.balance.weights, head: weight},
            )
            name = weight_row(head, weight)
            found.append(Entry(name, f"sweep/{name}", student.but(balance=balance)))
    if recipe.leave_one_out:
        own = self_trained(student, heads)
        for head in (head for head in heads if head != own):
            rest = tuple(other for other in heads if other != head)
            kept = {name: weight for name, weight in student.balance.weights.items() if name != head}
            part = student.but(heads=rest, balance=student.balance.but(weights=kept))
            found.append(Entry(f"without {head}", f"without/{head}", part, without=head))
    return found


def weight_row(head: str, weight: float) -> str:
    """The row of the student with another weight of a head's loss."""
    return f"{head} weight {weight:g}"


def looked_at(recipe: Recipe) -> list[str]:
    """The sources whose images somebody learns from with the eyes of the teachers; without any such, all."""
    asked = [_pool_of(entry.part) for entry in entries(recipe) if taught(entry.part)]
    if not asked or None in asked:
        return list(recipe.sources)
    names = {name for sources in asked for name in sources or ()}
    return [name for name in recipe.sources if name in names]


def _pool_of(part: Pretraining) -> tuple[str, ...] | None:
    """The sources that a pre-training with pseudo labels learns from; None: all."""
    return part.sources if isinstance(part, StudentPart | Distillation) else None


def check_starts(recipe: Recipe, material: Material) -> None:
    """Before anything is trained: that what trainings go on from is there, and fits as far as that can be known.

    Raises:
        UserError: a folder without a model, or with one of another form; a start from what is expanded or squeezed into
            a backbone of its own; a teacher that starts from what itself needs a teacher; one whose head a student that
            trains itself on it cannot take.
    """
    wanted, root = entries(recipe), Path(recipe.data)
    names, before = {entry.name for entry in wanted}, [entry.name for entry in early(recipe)]
    others = {entry.name for entry in wanted if entry.part.of_another_form}
    starts = {entry.name: entry.start for entry in wanted if isinstance(entry.part, StudentPart)}
    starts |= {f"{TEACHER}{head}": part.start for head, part in recipe.teachers.items() if isinstance(part, Trained)}
    for name, start in starts.items():
        if start in others:
            raise UserError(
                f"what '{start}' delivers is of another form than '{name}': it stays expanded, or is squeezed into a "
                "backbone of its own",
                field="start",
                value=start,
                fix="start from one that is squeezed into the recipe's model",
            )
    for entry in wanted:
        part, start = entry.part, entry.start
        if isinstance(part, StudentPart) and not (start is None or start in names or start.startswith(TEACHER)):
            heads = {head: material.heads[head] for head in part.heads or material.heads}
            refuse_other_form(recipe, recipe.model, heads, root / start)
    taught = {head: part for head, part in recipe.teachers.items() if isinstance(part, Trained)}
    for head, teacher in taught.items():
        first = teacher.start
        if first is not None and first not in names:
            form = {head: own_form(teacher, material.heads[head])}
            refuse_other_form(recipe, own_model(recipe, teacher), form, root / first)
        elif first is not None and first not in before:
            raise UserError(
                "a teacher cannot start from what needs a teacher, or labels of one, itself",
                field=f"teachers.{head}.start",
                value=first,
                fix=f"what comes before the teachers: {', '.join(before) or 'nothing'}",
            )
    for part in (entry.part for entry in wanted if isinstance(entry.part, StudentPart)):
        own = self_trained(part, tuple(recipe.heads))
        if own is not None and part.start == f"{TEACHER}{own}":
            task = material.heads[own]
            if own in taught and not same_form(own_form(taught[own], task), task):
                raise other_head(own, None, [own])


def pretrain(run: Run, workshop: Workshop, wanted: Sequence[Entry]) -> None:
    """Make all of these that are not made yet, side by side as far as one does not start from another."""
    waiting = [entry for entry in wanted if entry.name not in workshop.made]
    names = {entry.name for entry in waiting}
    while waiting:
        ready = [entry for entry in waiting if entry.start not in names]
        calls = [(workshop, entry) for entry in ready]
        sizes = [_images(run.recipe, workshop.material, entry.part) for entry in ready]
        done = run.each("pre-training", pretrain_one, calls, sizes)
        workshop.made |= {entry.name: made for entry, made in zip(ready, done, strict=True)}
        waiting = [entry for entry in waiting if entry.name not in workshop.made]
        names = {entry.name for entry in waiting}


def _images(recipe: Recipe, material: Material, part: Pretraining) -> int:
    """How many its trainings see together."""
    trainings = trainings_of(recipe, material, part) if isinstance(part, XLearner) else [part.training]
    return sum(training.steps * training.batch for training in trainings)


def pretrain_one(run: Run, workshop: Workshop, entry: Entry) -> Made:
    """One pre-training: a stage."""
    if isinstance(entry.part, SimCLR):
        return _contrast(run, workshop.material, entry, entry.part)
    if isinstance(entry.part, StudentPart):
        return train_student(run, workshop, entry, entry.part)
    if isinstance(entry.part, XLearner):
        return x_learn(run, workshop, entry, entry.part)
    if isinstance(entry.part, Distillation):
        return distil(run, workshop, entry, entry.part)
    raise TypeError(f"no way is known to pre-train by {type(entry.part).__name__}")


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
    if stage.finished:
        return Made(stage, stage.folder)
    refuse_shared(run, stage, f"'{entry.name}'")
    student = pretrain_simclr(
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
    images = sum(len(dataset) for dataset in sources.values())
    stage.finish(images=images, weights=weights_in(student.backbone))
    return Made(stage, stage.folder)
