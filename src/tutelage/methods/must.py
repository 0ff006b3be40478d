"""Multi-task self-training (Ghiasi et al., ICCV 2021), section 3, top to bottom.

1. Train one specialised teacher a head, on the sources that label it (3.1).
2. Label every image for every head that has no human label on it (3.1, "cross dataset training" in 3.2).
3. Train one student, of the teachers' architecture and augmentation, on the union of all images, human and pseudo
   labels weighted alike (3.2).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tutelage.errors import UserError
from tutelage.files import write_json
from tutelage.labels.engines import LOCAL, Engine, join, label
from tutelage.labels.labelling import LabellingReport
from tutelage.labels.store import LabelsView, Store, find_store
from tutelage.labels.work import Work
from tutelage.methods.examples import examine
from tutelage.methods.guards import refuse_nothing_kept
from tutelage.methods.hiring import PREVIEW, hire_teacher
from tutelage.methods.material import Material, check_stored, filled_heads, note_faults, open_material, place, prepare
from tutelage.methods.pictures import draw_pseudo_labels
from tutelage.methods.pretraining import before_teachers, check_starts, entries, looked_at, pretrain
from tutelage.methods.rehearsal import rehearse_all
from tutelage.methods.student import balance_of
from tutelage.methods.upstream import compare
from tutelage.methods.workshop import (
    STUDENT,
    Hired,
    Labelled,
    Made,
    Workshop,
    as_teacher,
    quarantine_of,
)
from tutelage.stages import Run, Stage
from tutelage.teachers.trained import Trained
from tutelage.training.notes import take_note
from tutelage.training.pretraining import StudentPart, self_trained
from tutelage.training.processes import barrier, device, rank


@dataclass(frozen=True)
class Learned:
    """What a method leaves behind: model folders, and the stages that made them.

    Attributes:
        teachers: head to (stage, finished model).
        made: by name, all pre-trainings, the student among them.
    """

    teachers: dict[str, Hired]
    made: dict[str, Made]

    @property
    def student(self) -> Made:
        return self.made[STUDENT]


def must(run: Run, engine: Engine = LOCAL) -> Learned:
    """Teachers, pseudo labels, student and whatever it is compared with; then teachers against student on the held-out
    images. In further rounds the student is the teacher."""
    workshop = label_union(run, engine)
    pretrain(run, workshop, entries(run.recipe))
    compare(run, workshop)
    learned = Learned(workshop.teachers, workshop.made)
    for number in range(2, run.recipe.rounds + 1):
        learned = _again(run, learned, number, engine)
    return learned


def _again(run: Run, before: Learned, number: int, engine: Engine) -> Learned:
    """A further round: the student labels, and a new one learns; other teachers, what the student starts from, and
    baselines are those of the first round."""
    recipe, learner = run.recipe, run.recipe.student
    assert isinstance(learner, StudentPart)
    heads = learner.heads or tuple(recipe.heads)
    teachers = {head: finished for head, (_, finished) in before.teachers.items()}
    teachers |= {head: as_teacher(recipe, before.student.folder, recipe.teachers.get(head), head) for head in heads}
    if learner.start in before.made:
        learner = learner.but(start=str(before.made[learner.start].folder.resolve()))
    if learner.balance.mode == "scaling-rule":  # a finished teacher has neither batch nor rate: the weights stay
        weights = balance_of(recipe, learner, heads).weights()
        fixed = {head: float(weight) for head, weight in weights.items()}
        learner = learner.but(balance=learner.balance.but(mode="fixed", weights=fixed))
    once = recipe.but(
        teachers=teachers, student=learner, baselines={}, leave_one_out=False, sweep={}, labels=None, rounds=1
    )
    again = run.below(f"rounds/{number}", once, f"round {number}")
    workshop = label_union(again, engine)
    pretrain(again, workshop, entries(once))
    compare(again, workshop)
    return Learned(before.teachers, {**before.made, STUDENT: workshop.made[STUDENT]})


def label_union(run: Run, engine: Engine = LOCAL) -> Workshop:
    """Steps 1 and 2: the material, a teacher for every head, and all their labels.

    Raises:
        UserError: what is wrong with the material; networks that do not go together, though they come last.
    """
    workshop = gather(run)
    check_starts(run.recipe, workshop.material)
    rehearse_all(run.recipe, workshop.material)
    hire(run, workshop)
    labels = run.recipe.labels
    if labels is not None:
        workshop.labels = adopt_labels(run, workshop.material, Path(run.recipe.data) / labels)
    elif workshop.teachers:
        workshop.labels = pseudo_label(run, workshop.material, workshop.teachers, engine)
    return workshop


def join_labelling(run: Run, decoders: int = 1) -> LabellingReport:
    """Step 2 together with other processes that do the same: what `tutelage label --worker` does.

    Args:
        run: the same for all of them.
        decoders: threads that read images, and as many that compress labels.

    Raises:
        UserError: a teacher that is still to be trained.
    """
    workshop = gather(run)
    hire(run, workshop)
    stage = open_labels(run, workshop.material, workshop.teachers)
    work = order(run, workshop.material, workshop.teachers)
    return join(work, stage.folder, device=device(), decoders=decoders, progress=run.progress)


def gather(run: Run) -> Workshop:
    """Open everything that is learned from, and say what is wrong with it."""
    recipe = run.recipe
    prepare(run, {**recipe.sources, **{f"{name} (held out)": s for name, s in recipe.held_out.items()}})
    material = open_material(recipe, place(run))
    note_faults(run, "source", material.sources)
    note_faults(run, "held-out source", material.held_out)
    return Workshop(material)


def hire(run: Run, workshop: Workshop) -> None:
    """Step 1 for all heads: a teacher each, trained here or finished already; and what teachers start from."""
    material, recipe = workshop.material, run.recipe
    heads = [head for head in material.heads if head in recipe.teachers]
    parts = [recipe.teachers[head] for head in heads]
    pretrain(run, workshop, before_teachers(recipe))
    sizes = [part.training.steps * part.training.batch if isinstance(part, Trained) else 0 for part in parts]
    hired = run.each("teachers", hire_teacher, [(workshop, head) for head in heads], sizes)
    for stage, _ in hired:
        if (stage.folder / PREVIEW).is_file():
            run.progress.say(f"{stage.name + ', drawn:':<34} {stage.folder / PREVIEW}")
    workshop.teachers = dict(zip(heads, hired, strict=True))


def pseudo_label(run: Run, material: Material, teachers: dict[str, Hired], engine: Engine = LOCAL) -> Labelled:
    """Step 2: every image of every source gets a label of every head that no human gave it."""
    stage = open_labels(run, material, teachers)
    if stage.finished:
        _note_sizes(run, material, stage)
        return Labelled(stage, stage.folder)
    if rank() == 0:
        report = label(
            order(run, material, teachers),
            stage.folder,
            engine=engine,
            device=device(),
            progress=run.progress,
            quarantine=quarantine_of(run, stage, _labelled(run, material).sources).add,
        )
        run.progress.say(str(report))
        _describe_labels(run, _labelled(run, material), stage, Store(stage.folder))
    barrier()
    stage.finish(sources={name: len(material.sources[name]) for name in looked_at(run.recipe)})
    return Labelled(stage, stage.folder)


def _note_sizes(run: Run, material: Material, stage: Stage) -> None:
    """Say where a source has grown or shrunk since it was labelled: what has no label yet is not learned from."""
    done = json.loads((stage.folder / "done.json").read_text(encoding="utf-8"))
    for name, before in done["counts"]["sources"].items():
        now = len(material.sources[name])
        if now != before:
            text = f"source {name} had {before:,} images when it was labelled and has {now:,} now; to label what has "
            take_note(run.folder, f"{text}changed, delete `labels/stage.json` and `labels/done.json`", run.progress)


def adopt_labels(run: Run, material: Material, root: Path) -> Labelled:
    """In place of step 2: labels that are there already, joined with the sources by their names and image ids.

    Raises:
        UserError: a head that the store has not, or has of another kind, meaning or other classes; a source of which it
            knows no image.
    """
    root = find_store(root)
    store = Store(root)
    without = [head for head in material.heads if head not in filled_heads(run.recipe, material.heads)]
    material = _labelled(run, material)
    stage = run.stage("labels", {"store": {head: store.manifest(head).stamp() for head in material.heads}})
    if stage.finished:
        return Labelled(stage, root)
    if rank() == 0:
        for head in without:
            text = f"the labels that are there have no head '{head}': it has people's labels alone"
            take_note(stage.folder, text, run.progress)
        for head, task in material.heads.items():
            check_stored(store, head, task)
        store.prepare(list(material.heads))
        _check_join(material, store)
        _describe_labels(run, material, stage, store)
    barrier()
    stage.finish(sources={name: len(dataset) for name, dataset in material.sources.items()})
    return Labelled(stage, root)


def _check_join(material: Material, store: Store, sample: int = 50) -> None:
    for name, dataset in material.sources.items():
        asked = {head: np.arange(len(dataset)) for head in material.heads if head != dataset.head}
        if dataset.head is not None and (labelled := dataset.labelled()) is not None:  # the others are a pool
            asked[dataset.head] = np.setdiff1d(np.arange(len(dataset)), labelled)
        some = {head: [dataset.id(i) for i in n[:: max(1, len(n) // sample)].tolist()] for head, n in asked.items()}
        ids = [id for said in some.values() for id in said]
        if ids and not any(store.image(head, name, id) is not None for head, said in some.items() for id in said):
            raise UserError(
                f"the labels know no image of the source '{name}'",
                file=store.root,
                record=f"{name}/{ids[0]}",
                fix="name sources as they were named when they were labelled; ids are paths below the images folder",
            )


def _describe_labels(run: Run, material: Material, stage: Stage, store: Store) -> None:
    """What the report shows of the labels; and the files for random access, here and not in every loader process."""
    store.prepare(list(material.heads))
    manifests = {head: store.manifest(head) for head in material.heads}
    counts = {
        head: m.counts.plain() | {"quarantined": m.counts.quarantined, "bytes": m.bytes}
        for head, m in manifests.items()
    }
    images = max(m.counts.read for m in manifests.values())
    write_json(stage.folder / "report.json", {"images": images, "heads": counts})
    draw_pseudo_labels(stage.folder, material, LabelsView(store, material.heads), run.recipe.seed)
    health = examine(stage.folder, store, material, run.recipe.seed, run.progress)
    heads = tuple(run.recipe.heads)
    learners = [part for part in run.recipe.learners().values() if isinstance(part, StudentPart)]
    refuse_nothing_kept(health, [head for part in learners if (head := self_trained(part, heads)) is not None])


def open_labels(run: Run, material: Material, teachers: dict[str, Hired]) -> Stage:
    """The stage of step 2."""
    recipe, material = run.recipe, _labelled(run, material)
    part = {
        "sources": {name: recipe.sources[name].plain() for name in material.sources},
        "heads": {name: task.plain() for name, task in material.heads.items()},
        "labelling": recipe.labelling.plain(),
    }
    fix = (
        "delete `stage.json` and `done.json` here to label again what other teachers or images make other: heads whose "
        "teacher is the same keep their labels"
    )
    return run.stage("labels", part, after=[stage for stage, _ in teachers.values()], fix=fix)


def order(run: Run, material: Material, teachers: dict[str, Hired]) -> Work:
    """Step 2 as a value that any process can take up."""
    recipe = run.recipe
    finished = {head: teacher for head, (_, teacher) in teachers.items()}
    sources = {name: recipe.sources[name] for name in _labelled(run, material).sources}
    return Work(sources, material.heads, finished, place(run), recipe.labelling, recipe.quarantine_limit)


def _labelled(run: Run, material: Material) -> Material:
    """The part of the material that has pseudo labels: heads that are filled, and images that somebody learns from."""
    recipe = run.recipe
    return replace(
        material,
        heads={head: material.heads[head] for head in filled_heads(recipe, material.heads)},
        sources={name: material.sources[name] for name in looked_at(recipe)},
    )
