"""A teacher for one head: trained here (MuST, section 3.1), or finished already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tutelage.data.mixture import Mixture, parts_of
from tutelage.data.source import Dataset
from tutelage.errors import UserError
from tutelage.methods.guards import say_missing
from tutelage.methods.material import Material
from tutelage.methods.pictures import draw_preview
from tutelage.methods.workshop import Hired, Workshop, as_teacher, find_start, quarantine_of, refuse_shared, saved
from tutelage.models.student import Model
from tutelage.recipe import Recipe
from tutelage.stages import Run, Stage
from tutelage.tasks.task import Task
from tutelage.teachers.own import OwnTeacher
from tutelage.teachers.teacher import Specialist
from tutelage.teachers.trained import Trained
from tutelage.training.balance import Balance
from tutelage.training.checkpoint import load_shared
from tutelage.training.fit import build, fit
from tutelage.training.pretraining import StudentPart, self_trained
from tutelage.training.processes import device, rank

PREVIEW = "preview.jpg"
"""In a teacher's folder: its pseudo labels, drawn as soon as it is trained."""


def hire_teacher(run: Run, workshop: Workshop, head: str) -> Hired:
    """Step 1 for one head."""
    recipe, part, material = run.recipe, run.recipe.teachers[head], workshop.material
    if isinstance(part, Trained):
        stage = train_teacher(run, workshop, head, part)
        return stage, as_teacher(recipe, stage.folder, part)
    assert isinstance(part, Specialist)
    task = material.heads[head]
    asked = {"head": task.plain(), "teacher": part.plain(), "digest": part.digest(Path(recipe.data))}
    stage = run.stage(f"teachers/{head}", asked)
    if not stage.finished:
        if rank() == 0:
            teacher = part.open(head, task, Path(recipe.data), device())
            draw_preview(stage.folder / PREVIEW, teacher, _pool(material))
        stage.finish()
    return stage, part


def train_teacher(run: Run, workshop: Workshop, head: str, teacher: Trained) -> Stage:
    """A network with this one head, trained on the human labels of its sources (3.1)."""
    recipe, material = run.recipe, workshop.material
    start, after = find_start(run, workshop, teacher.start)
    sources = taught_from(recipe, material, head)
    fractions = {name: share for name, share in recipe.fractions.items() if name in sources}
    task, model = own_form(teacher, material.heads[head]), own_model(recipe, teacher)
    part = {
        "head": task.plain(),
        "training": teacher.training.plain(),
        "data": recipe.data,
        "sources": {name: recipe.sources[name].plain() for name in sources},
        "model": model.plain(),
        "seed": recipe.seed,
        "fractions": fractions,
    }
    stage = run.stage(f"teachers/{head}", part, after=after)
    if stage.finished:
        return stage
    refuse_shared(run, stage, f"the teacher of head '{head}'")
    network = build(model, {head: task}, recipe.seed, f"teacher {head}", Path(recipe.data))
    if start is not None:
        load_shared(network, start / "weights.safetensors")
    parts = parts_of(sources.values(), fractions, recipe.seed)
    say_missing(run, stage, f"teacher: {head}", parts, {head: task})
    fit(
        network,
        Mixture(parts, seed=recipe.seed),
        teacher.training,
        Balance().build([head], (1, 1.0), {}),
        stage.folder,
        seed=recipe.seed,
        device=device(),
        spaces=material.spaces,
        quarantine=quarantine_of(run, stage, sources),
        label=f"teacher: {head}",
        progress=run.progress,
    )
    if rank() == 0:
        draw_preview(stage.folder / PREVIEW, OwnTeacher(saved(run, stage.folder), head, device()), _pool(material))
    stage.finish(images=sum(len(d) for d in sources.values()))
    return stage


def own_form(teacher: Trained, task: Task) -> Task:
    """A teacher's head while it is trained; `task` is the recipe's, with its classes."""
    return task if teacher.head is None else teacher.head.but(classes=task.classes)


def own_model(recipe: Recipe, teacher: Trained) -> Model:
    """A teacher's network: the recipe's, at the teacher's size of input."""
    return recipe.model if teacher.size is None else recipe.model.but(size=teacher.size)


def taught_from(recipe: Recipe, material: Material, head: str) -> dict[str, Dataset]:
    """The sources whose labels a teacher learns from: all that label its head. Where a student that names its sources
    trains itself on this head, those of them: both then have the same human labels (Zoph et al. 2020, section 3.1)."""
    student, seen = recipe.student, None
    if isinstance(student, StudentPart) and self_trained(student, tuple(recipe.heads)) == head:
        seen = student.sources
    return {
        name: dataset
        for name, dataset in material.sources.items()
        if dataset.head == head and (seen is None or name in seen)
    }


def _pool(material: Material) -> Any:
    """A source to show pseudo labels on: the first pool, or the first source when there is none."""
    datasets = list(material.sources.values())
    if not datasets:
        raise UserError("there is no source", field="sources", fix="name at least one")
    return next((d for d in datasets if d.head is None), datasets[0])
