"""The transfer table: every initialisation on every downstream set (MuST section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.data.quarantine import Quarantine
from tutelage.data.source import Dataset
from tutelage.methods.material import note_faults, open_transfer, place, prepare
from tutelage.methods.must import Learned
from tutelage.recipe import FineTuning
from tutelage.stages import Run, Stage
from tutelage.tasks.task import Task
from tutelage.teachers.own import Checkpoint
from tutelage.teachers.teacher import Specialist
from tutelage.training.checkpoint import find_model, read_architecture
from tutelage.training.processes import barrier, rank
from tutelage.transfer.finetune import Cell, Tuned, finetune, point_folder


@dataclass(frozen=True)
class Row:
    """One initialisation.

    Attributes:
        name: as the table shows it.
        folder: its name as a folder.
        init: a model folder; None for the weights that the network has from its own.
        pretrained: whether the recipe's weight file is used in place of random weights.
        made_by: the stage that made the model.
    """

    name: str
    folder: str
    init: Path | None
    pretrained: bool
    made_by: Stage | None


def rows_of(run: Run, learned: Learned) -> list[Row]:
    """Random weights, the recipe's initial weights where it names a file, every teacher, the student."""
    rows = [Row("random initialisation", "random", None, False, None)]
    if run.recipe.model.backbone.pretrained:
        rows.append(Row("initial weights", "initial", None, True, None))
    for head, (stage, teacher) in learned.teachers.items():
        folder = _initialises(run, teacher)
        if folder is not None:
            rows.append(Row(f"teacher: {head}", f"teacher-{head}", folder, False, stage))
    rows.append(Row("MuST student", "student", learned.student[1], False, learned.student[0]))
    return rows


def _initialises(run: Run, teacher: Specialist) -> Path | None:
    """The folder of a teacher that has the recipe's architecture; others cannot be fine-tuned in the same table."""
    if not isinstance(teacher, Checkpoint):
        return None
    folder = find_model(Path(run.recipe.data) / teacher.path)
    return folder if read_architecture(folder, teacher.tasks, teacher.backbones)[0] == run.recipe.model else None


def transfer(run: Run, learned: Learned) -> None:
    """Fill the table, one stage a cell and seed; finished cells are kept."""
    recipe, calls, sizes = run.recipe, [], []
    parts_of = ("train", "validation", "test")
    prepare(run, {f"{name} ({p})": getattr(t, p) for name, t in recipe.transfer.items() for p in parts_of})
    for name, downstream in recipe.transfer.items():
        task, parts = open_transfer(name, downstream, place(run))
        note_faults(run, f"downstream set {name},", parts)
        settings = downstream.finetuning or recipe.finetuning
        for seed in recipe.seeds:
            for row in rows_of(run, learned):
                calls.append((row, name, settings, task, parts, seed))
                sizes.append(len(settings.rates) * sum(settings.steps) * settings.training.batch)
    run.each("transfer", fill_cell, calls, sizes)


def fill_cell(
    run: Run,
    row: Row,
    name: str,
    settings: FineTuning,
    task: Task,
    parts: dict[str, Dataset],
    seed: int,
) -> None:
    """One initialisation on one downstream set with one seed: a stage of its own."""
    recipe = run.recipe
    model = recipe.model if row.pretrained else recipe.model.but(backbone=recipe.model.backbone.blank())
    part = {
        "set": recipe.transfer[name].plain() | {"finetuning": settings.plain()},
        "model": model.plain(),
        "seed": seed,
        "init": row.name,
        "data": recipe.data,
    }
    after = [] if row.made_by is None else [row.made_by]
    stage = run.stage(f"transfer/{row.folder}/{name}/seed-{seed}", part, after=after)
    if stage.finished:
        return
    cell = Cell(model, name, task, parts, settings, row.init, Path(recipe.data), seed)
    quarantine = Quarantine(stage.folder / "quarantine.jsonl", sum(map(len, parts.values())), recipe.quarantine_limit)
    tuned = finetune(cell, stage.folder, quarantine, f"{name} from {row.name}", run.progress)
    run.record(stage, _measurements(row, name, task, tuned, seed))
    if rank() == 0:
        _drop_losers(stage.folder, tuned)
    barrier()
    stage.finish(train=len(parts["train"]), validation=len(parts["validation"]), test=len(parts["test"]))


def _measurements(row: Row, name: str, task: Task, tuned: Tuned, seed: int) -> list[dict[str, Any]]:
    same = {
        "stage": "transfer",
        "row": row.name,
        "column": name,
        "seed": seed,
        "rate": tuned.rate,
        "steps": tuned.steps,
    }
    if tuned.failed:
        same["failed"] = "; ".join(f"{point}: {reason}" for point, reason in tuned.failed.items())
    metric = task.metric()
    if tuned.test is None:
        return [same | {"metric": metric.name, "value": None, "higher_is_better": metric.higher_is_better}]
    return [
        same
        | {
            "metric": figure,
            "value": value,
            "higher_is_better": figure not in metric.lower_is_better,
            "n": tuned.test.images,
            "validation": tuned.validation if figure == metric.name else None,
        }
        for figure, value in tuned.test.values.items()
    ]


def _drop_losers(folder: Path, tuned: Tuned) -> None:
    """Keep the weights of the chosen grid point only; the others keep their result and curve."""
    for path in folder.glob("rate-*/weights.safetensors"):
        if path.parent != point_folder(folder, tuned.rate, tuned.steps):
            path.unlink()
            (path.parent / "model.yaml").unlink(missing_ok=True)
