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
from typing import Any, NamedTuple

from tutelage.data.quarantine import Quarantine
from tutelage.data.shared import Union
from tutelage.data.source import Dataset
from tutelage.errors import UserError
from tutelage.files import write_json
from tutelage.labels.engines import LOCAL, Engine, join, label
from tutelage.labels.labelling import LabellingReport
from tutelage.labels.store import LabelsView, Store, find_store
from tutelage.labels.work import Work
from tutelage.methods.examples import examine
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


class Labelled(NamedTuple):
    """All pseudo labels: the stage that made or adopted them, and the store's folder."""

    stage: Stage
    root: Path


@dataclass(frozen=True)
class Learned:
    """What a method leaves behind: model folders, and the stages that made them.

    Attributes:
        teachers: head to (stage, finished model).
        student: (stage, model folder).
    """

    teachers: dict[str, Hired]
    student: tuple[Stage, Path]


def must(run: Run, engine: Engine = LOCAL) -> Learned:
    """Teachers, pseudo labels, student; then teachers against student on the held-out images."""
    material, teachers, labels = label_union(run, engine)
    student = train_student(run, material, labels)
    compare(run, material, teachers, student)
    return Learned(teachers, student)


def label_union(run: Run, engine: Engine = LOCAL) -> tuple[Material, dict[str, Hired], Labelled]:
    """Steps 1 and 2: the material, a teacher for every head, and all their labels."""
    material = gather(run)
    teachers = hire(run, material)
    if run.recipe.labels is not None:
        return material, teachers, adopt_labels(run, material, Path(run.recipe.data) / run.recipe.labels)
    return material, teachers, pseudo_label(run, material, teachers, engine)


def join_labelling(run: Run) -> LabellingReport:
    """Step 2 together with other processes that do the same: what `tutelage label --worker` does.

    Raises:
        UserError: a teacher that is still to be trained.
    """
    material = gather(run)
    teachers = hire(run, material)
    stage = open_labels(run, material, teachers)
    return join(order(run, material, teachers), stage.folder, device=device(), progress=run.progress)


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
    heads = [head for head in material.heads if head in run.recipe.teachers]
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
        "training": teacher.training.plain(),
        "data": recipe.data,
        "sources": {name: recipe.sources[name].plain() for name in sources},
        "model": recipe.model.plain(),
        "seed": recipe.seed,
    }
    stage = run.stage(f"teachers/{head}", part)
    if stage.finished:
        return stage
    if run.shared:
        raise UserError(
            f"the teacher of head '{head}' is not trained yet",
            file=stage.folder,
            fix="run `tutelage label` with this recipe and folder once without --worker, or with finished teachers",
        )
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


def pseudo_label(run: Run, material: Material, teachers: dict[str, Hired], engine: Engine = LOCAL) -> Labelled:
    """Step 2: every image of every source gets a label of every head that no human gave it."""
    stage = open_labels(run, material, teachers)
    if stage.finished:
        return Labelled(stage, stage.folder)
    if rank() == 0:
        report = label(
            order(run, material, teachers),
            stage.folder,
            engine=engine,
            device=device(),
            progress=run.progress,
            quarantine=_quarantine(run, stage, material.sources).add,
        )
        run.progress.say(str(report))
        _describe_labels(run, material, stage, stage.folder)
    barrier()
    stage.finish(sources={name: len(dataset) for name, dataset in material.sources.items()})
    return Labelled(stage, stage.folder)


def adopt_labels(run: Run, material: Material, root: Path) -> Labelled:
    """In place of step 2: labels that are there already, joined with the sources by their names and image ids.

    Raises:
        UserError: a head that the store has not, of another kind or other classes; a source of which it knows no image.
    """
    root = find_store(root)
    store = Store(root)
    stage = run.stage("labels", {"store": {head: store.manifest(head).stamp() for head in material.heads}})
    if stage.finished:
        return Labelled(stage, root)
    if rank() == 0:
        for head, task in material.heads.items():
            store.check(head, task)
        store.prepare(list(material.heads))
        _check_join(material, store)
        _describe_labels(run, material, stage, root)
    barrier()
    stage.finish(sources={name: len(dataset) for name, dataset in material.sources.items()})
    return Labelled(stage, root)


def _check_join(material: Material, store: Store, sample: int = 50) -> None:
    for name, dataset in material.sources.items():
        ids = [dataset.id(i) for i in range(0, len(dataset), max(1, len(dataset) // sample))]
        heads = [head for head in material.heads if head != dataset.head]
        if heads and not any(store.get(head, name, id) is not None for id in ids for head in heads):
            raise UserError(
                f"the labels know no image of the source '{name}'",
                file=store.root,
                record=f"{name}/{ids[0]}",
                fix="name sources as they were named when they were labelled; ids are paths below the images folder",
            )


def _describe_labels(run: Run, material: Material, stage: Stage, root: Path) -> None:
    """What the report shows of the labels; and the files for random access, here and not in every loader process."""
    store = Store(root)
    store.prepare(list(material.heads))
    manifests = {head: store.manifest(head) for head in material.heads}
    counts = {
        head: m.counts.plain() | {"quarantined": m.counts.quarantined, "bytes": m.bytes}
        for head, m in manifests.items()
    }
    images = max(m.counts.read for m in manifests.values())
    write_json(stage.folder / "report.json", {"images": images, "heads": counts})
    draw_pseudo_labels(stage.folder, material, LabelsView(Store(root), material.heads), run.recipe.seed)
    examine(stage.folder, store, material, run.recipe.seed, run.progress)


def open_labels(run: Run, material: Material, teachers: dict[str, Hired]) -> Stage:
    """The stage of step 2."""
    recipe = run.recipe
    part = {
        "sources": {name: source.plain() for name, source in recipe.sources.items()},
        "heads": {name: task.plain() for name, task in material.heads.items()},
        "labelling": recipe.labelling.plain(),
    }
    return run.stage("labels", part, after=[stage for stage, _ in teachers.values()])


def order(run: Run, material: Material, teachers: dict[str, Hired]) -> Work:
    """Step 2 as a value that any process can take up."""
    finished = {head: teacher for head, (_, teacher) in teachers.items()}
    return Work(
        run.recipe.sources, material.heads, finished, place(run), run.recipe.labelling, run.recipe.quarantine_limit
    )


def train_student(run: Run, material: Material, labels: Labelled) -> tuple[Stage, Path]:
    """Step 3: one network with all heads on the union of all images, every label weighted alike."""
    recipe = run.recipe
    part = {
        "student": recipe.student.plain(),
        "model": recipe.model.plain(),
        "seed": recipe.seed,
        "data": recipe.data,
    }
    stage = run.stage("student", part, after=[labels.stage])
    if stage.finished:
        return stage, stage.folder
    settings = recipe.student.training
    scales = {
        head: (teacher.training.batch, teacher.training.rate)
        for head, teacher in recipe.teachers.items()
        if isinstance(teacher, Trained)
    }
    network = build(recipe.model, material.heads, recipe.seed, "student", Path(recipe.data))
    union = Union(list(material.sources.values()))
    if union.shared:
        run.progress.say(
            f"note: {union.shared} images are shown by several sources; each is learned once, with all labels"
        )
    fit(
        network,
        union.datasets,
        settings,
        recipe.student.balance.build(list(material.heads), (settings.batch, settings.rate), scales),
        stage.folder,
        seed=recipe.seed,
        device=device(),
        spaces=material.spaces,
        mode=recipe.student.mixture,
        labels=union.labels(LabelsView(Store(labels.root), material.heads)),
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
                scores = {"student": evaluate(learned, head, dataset, device(), quarantine)}
                if head in teachers:
                    teacher = teachers[head][1].open(head, task, Path(recipe.data), device())
                    scores = {"teacher": score_teacher(teacher, dataset, quarantine), **scores}
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
