"""Multi-task self-training (Ghiasi et al., ICCV 2021), section 3, top to bottom.

1. Train one specialised teacher a head, on the sources that label it (3.1).
2. Label every image for every head that has no human label on it (3.1, "cross dataset training" in 3.2).
3. Train one student, of the teachers' architecture and augmentation, on the union of all images, human and pseudo
   labels weighted alike (3.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.data.quarantine import Quarantine
from tutelage.data.source import Dataset
from tutelage.errors import UserError
from tutelage.files import write_json
from tutelage.labels.labelling import label_pool
from tutelage.labels.store import LabelsView, Store
from tutelage.labels.work import Work
from tutelage.methods.material import Material, note_faults, open_material, place, prepare
from tutelage.methods.pictures import draw_comparison, draw_preview, draw_pseudo_labels
from tutelage.stages import Run, Stage
from tutelage.teachers.own import Checkpoint, OwnTeacher
from tutelage.teachers.scoring import score_teacher
from tutelage.teachers.teacher import Specialist
from tutelage.teachers.trained import Trained
from tutelage.training.balance import Balance
from tutelage.training.checkpoint import Saved, load_model
from tutelage.training.evaluate import evaluate
from tutelage.training.fit import build, fit
from tutelage.training.processes import barrier, device, rank

PREVIEW = "preview.jpg"
"""In a teacher's folder: its pseudo labels, drawn as soon as it is trained."""


Hired = tuple[Stage, Specialist]
"""A teacher that is ready, and the stage that made or chose it."""


@dataclass(frozen=True)
class Learned:
    """What a method leaves behind: model folders, and the stages that made them.

    Attributes:
        teachers: head to (stage, finished model).
        student: (stage, model folder).
    """

    teachers: dict[str, Hired]
    student: tuple[Stage, Path]


def must(run: Run) -> Learned:
    """Teachers, pseudo labels, student; then teachers against student on the held-out images."""
    material = gather(run)
    teachers = hire(run, material)
    labels = pseudo_label(run, material, teachers)
    student = train_student(run, material, labels)
    compare(run, material, teachers, student)
    return Learned(teachers, student)


def gather(run: Run) -> Material:
    """Open everything that is learned from, and say what is wrong with it."""
    recipe = run.recipe
    prepare(run, {**recipe.sources, **{f"{name} (held out)": s for name, s in recipe.held_out.items()}})
    material = open_material(recipe, place(run))
    note_faults(run, "source", material.sources)
    note_faults(run, "held-out source", material.held_out)
    return material


def hire(run: Run, material: Material) -> dict[str, Hired]:
    """Step 1 for all heads: a teacher each, trained here or finished already."""
    heads = list(material.heads)
    parts = [run.recipe.teachers[head] for head in heads]
    sizes = [part.training.steps * part.training.batch if isinstance(part, Trained) else 0 for part in parts]
    hired = run.each("teachers", hire_teacher, [(material, head) for head in heads], sizes)
    for stage, _ in hired:
        if (stage.folder / PREVIEW).is_file():
            run.progress.say(f"{stage.name + ', drawn:':<34} {stage.folder / PREVIEW}")
    return dict(zip(heads, hired, strict=True))


def hire_teacher(run: Run, material: Material, head: str) -> Hired:
    """Step 1 for one head."""
    recipe, part = run.recipe, run.recipe.teachers[head]
    if isinstance(part, Trained):
        stage = train_teacher(run, material, head, part)
        model = Checkpoint(
            path=stage.folder.resolve(),
            scales=part.scales,
            flip=part.flip,
            tasks=tuple({type(task) for task in recipe.heads.values()}),
            backbones=(type(recipe.model.backbone),),
        )
        return stage, model
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


def train_teacher(run: Run, material: Material, head: str, teacher: Trained) -> Stage:
    """A network with this one head, trained on the human labels of its sources (3.1)."""
    recipe = run.recipe
    sources = {name: dataset for name, dataset in material.sources.items() if dataset.head == head}
    part = {
        "head": material.heads[head].plain(),
        "teacher": teacher.plain(),
        "data": recipe.data,
        "sources": {name: recipe.sources[name].plain() for name in sources},
        "model": recipe.model.plain(),
        "seed": recipe.seed,
    }
    stage = run.stage(f"teachers/{head}", part)
    if stage.finished:
        return stage
    network = build(recipe.model, {head: material.heads[head]}, recipe.seed, f"teacher {head}", Path(recipe.data))
    fit(
        network,
        list(sources.values()),
        teacher.training,
        Balance().build([head], (1, 1.0), {}),
        stage.folder,
        seed=recipe.seed,
        device=device(),
        spaces=material.spaces,
        quarantine=_quarantine(run, stage, sources),
        label=f"teacher: {head}",
        progress=run.progress,
    )
    if rank() == 0:
        draw_preview(stage.folder / PREVIEW, OwnTeacher(_saved(run, stage.folder), head, device()), _pool(material))
    stage.finish(images=sum(len(d) for d in sources.values()))
    return stage


def pseudo_label(run: Run, material: Material, teachers: dict[str, Hired]) -> Stage:
    """Step 2: every image of every source gets a label of every head that no human gave it."""
    recipe = run.recipe
    part = {
        "sources": {name: source.plain() for name, source in recipe.sources.items()},
        "heads": {name: task.plain() for name, task in material.heads.items()},
        "labelling": recipe.labelling.plain(),
    }
    stage = run.stage("labels", part, after=[stage for stage, _ in teachers.values()])
    if stage.finished:
        return stage
    if rank() == 0:
        store = Store(stage.folder)
        work = Work(
            recipe.sources,
            material.heads,
            {head: teacher for head, (_, teacher) in teachers.items()},
            place(run),
            recipe.labelling,
        )
        report = label_pool(
            list(material.sources.values()),
            work.load(device()),
            stage.folder,
            shard=recipe.labelling.shard,
            batch=recipe.labelling.batch,
            progress=run.progress,
            quarantine=_quarantine(run, stage, material.sources).add,
        )
        counts = {
            head: c.plain() | {"quarantined": c.quarantined, "bytes": store.manifest(head).bytes}
            for head, c in report.counts.items()
        }
        write_json(stage.folder / "report.json", {"images": report.images, "heads": counts})
        store.prepare(list(teachers))  # here, once, and not in every loader process
        draw_pseudo_labels(stage.folder, material, LabelsView(Store(stage.folder), material.heads), run.recipe.seed)
    barrier()
    stage.finish(sources={name: len(dataset) for name, dataset in material.sources.items()})
    return stage


def train_student(run: Run, material: Material, labels: Stage) -> tuple[Stage, Path]:
    """Step 3: one network with all heads on the union of all images, every label weighted alike."""
    recipe = run.recipe
    part = {
        "student": recipe.student.plain(),
        "model": recipe.model.plain(),
        "seed": recipe.seed,
        "data": recipe.data,
    }
    stage = run.stage("student", part, after=[labels])
    if stage.finished:
        return stage, stage.folder
    settings = recipe.student.training
    scales = {
        head: (teacher.training.batch, teacher.training.rate)
        for head, teacher in recipe.teachers.items()
        if isinstance(teacher, Trained)
    }
    network = build(recipe.model, material.heads, recipe.seed, "student", Path(recipe.data))
    fit(
        network,
        list(material.sources.values()),
        settings,
        recipe.student.balance.build(list(material.heads), (settings.batch, settings.rate), scales),
        stage.folder,
        seed=recipe.seed,
        device=device(),
        spaces=material.spaces,
        mode=recipe.student.mixture,
        labels=LabelsView(Store(labels.folder), material.heads),
        quarantine=_quarantine(run, stage, material.sources),
        label="student",
        progress=run.progress,
    )
    stage.finish(images=sum(len(d) for d in material.sources.values()))
    return stage, stage.folder


def compare(run: Run, material: Material, teachers: dict[str, Hired], student: tuple[Stage, Path]) -> None:
    """Teachers against student on held-out human labels of the upstream tasks; pictures of both beside the truth."""
    recipe = run.recipe
    part = {"held_out": {name: source.plain() for name, source in recipe.held_out.items()}}
    stage = run.stage("evaluate", part, after=[*(s for s, _ in teachers.values()), student[0]])
    if stage.finished:
        return
    if rank() == 0 and material.held_out:
        rows = []
        learned = _saved(run, student[1]).student
        of_head = [dataset.head for dataset in material.held_out.values()]
        alone = {head: of_head.count(head) == 1 for head in of_head}
        with run.progress.bar("teachers against student", 2 * len(material.held_out), "sets") as bar:
            for name, dataset in material.held_out.items():
                head = dataset.head
                assert head is not None
                task, quarantine = material.heads[head], _quarantine(run, stage, {name: dataset})
                teacher = teachers[head][1].open(head, task, Path(recipe.data), device())
                scores = {
                    "teacher": score_teacher(teacher, dataset, quarantine),
                    "student": evaluate(learned, head, dataset, device(), quarantine),
                }
                for row, found in scores.items():
                    rows += [
                        {
                            "stage": "upstream",
                            "row": row,
                            "column": head if alone[head] else f"{head} ({name})",
                            "metric": metric,
                            "value": value,
                            "seed": recipe.seed,
                            "higher_is_better": metric not in found.lower_is_better,
                            "n": found.images,
                        }
                        for metric, value in found.values.items()
                    ]
                    bar.advance(1, f"{name}: {found.name} {found.value:.1f}")
        run.record(stage, rows)
        draw_comparison(stage.folder, material, learned, device())
    stage.finish()


def _saved(run: Run, folder: Path) -> Saved:
    """A model of this run; the recipe's own kinds of task and backbone are known, a user's included."""
    recipe = run.recipe
    return load_model(folder, [type(task) for task in recipe.heads.values()], [type(recipe.model.backbone)])


def _quarantine(run: Run, stage: Stage, sources: Mapping[str, Dataset]) -> Quarantine:
    total = sum(len(dataset) for dataset in sources.values())
    return Quarantine(stage.folder / "quarantine.jsonl", total, run.recipe.quarantine_limit)


def _pool(material: Material) -> Any:
    """A source to show pseudo labels on: the first pool, or the first source when there is none."""
    datasets = list(material.sources.values())
    if not datasets:
        raise UserError("there is no source", field="sources", fix="name at least one")
    return next((d for d in datasets if d.head is None), datasets[0])
