"""What was learned, on held-out human labels of the upstream tasks: teachers against student, and all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage.methods.pictures import draw_comparison
from tutelage.methods.workshop import STUDENT, Made, Workshop, quarantine_of, saved
from tutelage.models.student import Student
from tutelage.stages import Run, Stage
from tutelage.teachers.own import Checkpoint
from tutelage.teachers.scoring import score_teacher
from tutelage.training.evaluate import evaluate, save_evidence
from tutelage.training.processes import device, rank


def compare(run: Run, workshop: Workshop) -> None:
    """Teachers against student, and whatever else learned their heads, on held-out human labels of the upstream tasks;
    pictures of the student's predictions beside the truth."""
    recipe, material = run.recipe, workshop.material
    part = {"held_out": {name: source.plain() for name, source in recipe.held_out.items()}}
    made = [*(stage for stage, _ in workshop.teachers.values()), *(made.stage for made in workshop.made.values())]
    stage = run.stage("evaluate", part, after=made, again=True)
    if stage.finished:
        return
    if rank() == 0 and material.held_out:
        networks = {name: _networks(run, found) for name, found in workshop.made.items()}
        learned = {run.noted("student" if name == STUDENT else name): found for name, found in networks.items()}
        rows = []
        with run.progress.bar("teachers against student", len(material.held_out), "sets") as bar:
            for name in material.held_out:
                rows += _scores(run, stage, workshop, name, learned)
                bar.advance(1, name)
        run.record(stage, rows)
        draw_comparison(stage.folder, material, networks[recipe.student.title], device())
    stage.finish()


def _scores(
    run: Run, stage: Stage, workshop: Workshop, name: str, learned: Mapping[str, Sequence[Student]]
) -> list[dict[str, Any]]:
    """The teacher of a held-out source's head, and every network that learned this head, on it; what each image
    contributed is kept in files beside the lines that name them."""
    dataset = workshop.material.held_out[name]
    head, aside = dataset.head, quarantine_of(run, stage, {name: dataset})
    assert head is not None
    scores = {}
    if head in workshop.teachers:
        task = workshop.material.heads[head]
        hired = workshop.teachers[head][1]
        if isinstance(hired, Checkpoint):  # measured by one look, as the student is: averaged looks are for labels
            hired = hired.but(scales=(1.0,), flip=False)
        teacher = hired.open(head, task, Path(run.recipe.data), device())
        scores[run.noted("teacher")] = score_teacher(teacher, dataset, aside)
    for row, networks in learned.items():
        judged = next((network for network in networks if head in network.tasks), None)
        if judged is not None:
            scores[row] = evaluate(judged, head, dataset, device(), aside)
    lines, place = [], list(workshop.material.held_out).index(name)
    for number, (row, found) in enumerate(scores.items()):
        same: dict[str, Any] = {"stage": "upstream", "row": row, "seed": run.recipe.seed, "n": found.images}
        same["column"] = _column(run, head, name)
        file = f"evidence-{place}-{number}.npz"
        kept = {"evidence": file} if save_evidence(stage.folder / file, found) else {}
        lines += [
            same | {"metric": metric, "value": value, "higher_is_better": metric not in found.lower_is_better} | kept
            for metric, value in found.values.items()
        ]
    return lines


def failure(run: Run, reason: str) -> list[dict[str, Any]]:
    """What stands in the table for a variant that could not be made, in place of figures: its last student, failed."""
    rounds, lines = run.recipe.rounds, []
    for name, source in run.recipe.held_out.items():
        head = str(source.head)
        task = run.recipe.heads[head]
        metric = task.model_copy(update={"classes": task.classes or ("",)}).metric()  # for its name alone
        same: dict[str, Any] = {"stage": "upstream", "row": "student" if rounds == 1 else f"student, round {rounds}"}
        same |= {"column": _column(run, head, name), "metric": metric.name, "value": None, "failed": reason}
        lines.append(same | {"seed": run.recipe.seed, "higher_is_better": metric.higher_is_better})
    return lines


def _column(run: Run, head: str, name: str) -> str:
    """What the column of a held-out source is called: the variant of a study, the head, and the source if need be."""
    of_head = [other.head for other in run.recipe.held_out.values()]
    column = head if of_head.count(head) == 1 else f"{head} ({name})"
    if not run.variant:
        return column
    return run.variant if len(of_head) == 1 else f"{run.variant}, {column}"


def _networks(run: Run, made: Made) -> list[Student]:
    """What a pre-training made, by which its heads are judged: an X-Learner has a network a task beside what it
    delivers, which comes first where it has the head too."""
    return [saved(run, folder).student for folder in (made.folder, *made.others)]
