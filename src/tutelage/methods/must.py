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
from tutelage.methods.material import Material, note_faults, open_material, place, prepare
from tutelage.methods.pictures import draw_comparison, draw_preview, draw_pseudo_labels
from tutelage.stages import Run, Stage
from tutelage.teachers.own import OwnTeacher
from tutelage.training.balance import Balance
from tutelage.training.checkpoint import Saved, load_model, model_hash
from tutelage.training.evaluate import evaluate
from tutelage.training.fit import build, fit
from tutelage.training.processes import barrier, device, rank
from tutelage.training.schedule import Training

PREVIEW = "preview.jpg"
"""In a teacher's folder: its pseudo labels, drawn as soon as it is trained."""


@dataclass(frozen=True)
class Learned:
    """What a method leaves behind: model folders, and the stages that made them.

    Attributes:
        teachers: head to (stage, model folder).
        student: (stage, model folder).
    """

    teachers: dict[str, tuple[Stage, Path]]
    student: tuple[Stage, Path]


def must(run: Run) -> Learned:
    """Teachers, pseudo labels, student; then teachers against student on the held-out images."""
    recipe = run.recipe
    prepare(run, {**recipe.sources, **{f"{name} (held out)": s for name, s in recipe.held_out.items()}})
    material = open_material(recipe, place(run))
    note_faults(run, "source", material.sources)
    note_faults(run, "held-out source", material.held_out)
    heads = list(material.heads)
    sizes = [images_of(recipe.teachers[head].training) for head in heads]
    trained = run.each("teachers", train_teacher, [(material, head) for head in heads], sizes)
    teachers = dict(zip(heads, trained, strict=True))
    for stage, folder in trained:
        run.progress.say(f"{stage.name + ', drawn:':<34} {folder / PREVIEW}")
    labels = pseudo_label(run, material, teachers)
    student = train_student(run, material, labels)
    compare(run, material, teachers, student)
    return Learned(teachers, student)


def train_teacher(run: Run, material: Material, head: str) -> tuple[Stage, Path]:
    """Step 1: a network with this one head, trained on the human labels of its sources."""
    recipe, teacher = run.recipe, run.recipe.teachers[head]
    part: dict[str, Any] = {
        "head": material.heads[head].plain(),
        "teacher": teacher.plain(),
        "data": recipe.data,
    }
    if teacher.checkpoint is not None:
        folder = Path(recipe.data) / teacher.checkpoint
        stage = run.stage(f"teachers/{head}", part | {"hash": model_hash(folder)})
        if not stage.finished:
            stage.finish()
        return stage, folder
    assert teacher.training is not None
    sources = {name: dataset for name, dataset in material.sources.items() if dataset.head == head}
    part["sources"] = {name: recipe.sources[name].plain() for name in sources}
    stage = run.stage(f"teachers/{head}", part | {"model": recipe.model.plain(), "seed": recipe.seed})
    if stage.finished:
        return stage, stage.folder
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
    return stage, stage.folder


def pseudo_label(run: Run, material: Material, teachers: dict[str, tuple[Stage, Path]]) -> Stage:
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
        loaded = [OwnTeacher(_saved(run, folder), head, device()) for head, (_, folder) in teachers.items()]
        report = label_pool(
            list(material.sources.values()),
            loaded,
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
        if teacher.training is not None
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


def compare(run: Run, material: Material, teachers: dict[str, tuple[Stage, Path]], student: tuple[Stage, Path]) -> None:
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
                teacher = _saved(run, teachers[head][1]).student
                for row, network in (("teacher", teacher), ("student", learned)):
                    found = evaluate(network, head, dataset, device(), _quarantine(run, stage, {name: dataset}))
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


def images_of(training: Training | None) -> int:
    """How many images a training looks at."""
    return 0 if training is None else training.steps * training.batch


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
