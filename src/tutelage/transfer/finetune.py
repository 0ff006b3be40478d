"""Fine-tuning one initialisation on one downstream set (MuST section 3.3 and appendix B.3).

Backbone and pyramid are loaded, the head is fresh; every point of the grid (rate x steps) is trained; the best on the
validation part is scored on the test part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from tutelage.data.quarantine import Quarantine
from tutelage.data.source import Dataset, LabelSpace
from tutelage.errors import UserError
from tutelage.files import write_json
from tutelage.models.student import Model, Student
from tutelage.progress import SILENT, Progress
from tutelage.recipe import FineTuning
from tutelage.tasks.task import Task
from tutelage.training.balance import Balance
from tutelage.training.checkpoint import read_state
from tutelage.training.evaluate import Score, evaluate
from tutelage.training.fit import build, fit
from tutelage.training.loop import Diverged
from tutelage.training.processes import barrier, device, rank


@dataclass(frozen=True)
class Cell:
    """One cell of the transfer table with one seed.

    Attributes:
        model: the network's form.
        name: of the downstream set, which is its head's name as well.
        task: with its classes.
        parts: "train", "validation" and "test".
        settings: the grid.
        init: a model folder to start from; None for the network's own initial weights.
        root: where relative paths of the network's own weight file start, if it names one.
        seed: of head, sampling and augmentation.
    """

    model: Model
    name: str
    task: Task
    parts: Mapping[str, Dataset]
    settings: FineTuning
    init: Path | None
    root: Path
    seed: int


@dataclass(frozen=True)
class Tuned:
    """The outcome of a cell.

    Attributes:
        test: figures on the test part; None when every grid point failed.
        validation: the papers' figure of the chosen point on the validation part.
        rate, steps: the chosen point.
        failed: grid points that diverged, with their reason.
    """

    test: Score | None
    validation: float
    rate: float
    steps: int
    failed: dict[str, str]


def load_shared(student: Student, weights: Path) -> int:
    """Fill backbone and pyramid from a model's weights; heads stay fresh. Returns how many tensors were loaded.

    A pyramid that the file does not have (a classification teacher has none) stays fresh as well.

    Raises:
        UserError: a tensor that is missing or of another shape.
    """
    state, own, loaded = read_state(weights), student.state_dict(), 0
    has_pyramid = any(name.startswith("pyramid.") for name in state)
    with torch.no_grad():
        for name, value in own.items():
            if not (name.startswith("backbone.") or (has_pyramid and name.startswith("pyramid."))):
                continue
            if name not in state or state[name].shape != value.shape:
                found = tuple(state[name].shape) if name in state else "nothing"
                raise UserError(
                    "this checkpoint does not fit the network of the transfer",
                    file=weights,
                    record=name,
                    value=f"expected {tuple(value.shape)}, found {found}",
                    fix="compare checkpoints of one backbone and pyramid",
                )
            value.copy_(state[name])
            loaded += 1
    return loaded


def finetune(
    cell: Cell, folder: Path, quarantine: Quarantine, label: str = "fine-tuning", progress: Progress = SILENT
) -> Tuned:
    """Fill one cell of the transfer table.

    Args:
        cell: what is fine-tuned on what.
        folder: of the stage; finished grid points in it are not trained again.
        quarantine: where images that cannot be read are listed.
        label, progress: how to show it.
    """
    found: dict[tuple[float, int], float] = {}
    failed: dict[str, str] = {}
    points = [(rate, steps) for steps in cell.settings.steps for rate in cell.settings.rates]
    for rate, steps in points:
        path = point_folder(folder, rate, steps) / "point.json"
        if not path.is_file():
            result = _train_point(cell, rate, steps, path.parent, quarantine, label, progress)
            if rank() == 0:
                write_json(path, result)
            barrier()
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["failed"] is None:
            found[rate, steps] = result["validation"]
        else:
            failed[f"rate {rate:g}, {steps} steps"] = result["failed"]
    if not found:
        return Tuned(None, float("nan"), *points[0], failed)
    higher = cell.task.metric().higher_is_better
    rate, steps = max(found, key=lambda point: found[point] if higher else -found[point])
    best = cell.model.build({cell.name: cell.task})
    best.load_state_dict(read_state(point_folder(folder, rate, steps) / "weights.safetensors"))
    test = evaluate(best, cell.name, cell.parts["test"], device(), quarantine)
    return Tuned(test, found[rate, steps], rate, steps, failed)


def point_folder(folder: Path, rate: float, steps: int) -> Path:
    """Where a grid point of a cell lies."""
    return folder / f"rate-{rate:g}-steps-{steps}"


def _train_point(
    cell: Cell, rate: float, steps: int, folder: Path, quarantine: Quarantine, label: str, progress: Progress
) -> dict[str, float | str | None]:
    """Train one grid point and score it on the validation part; a point that diverges fails alone."""
    template = cell.settings.training
    student = build(cell.model, {cell.name: cell.task}, cell.seed, f"{cell.name} {cell.seed}", cell.root)
    if cell.init is not None:
        load_shared(student, cell.init / "weights.safetensors")
    classes = cell.task.classes
    try:
        fit(
            student,
            [cell.parts["train"]],
            template.but(rate=rate, steps=steps, warmup=min(template.warmup, steps // 2)),
            Balance().build([cell.name], (1, 1.0), {}),
            folder,
            seed=cell.seed,
            device=device(),
            spaces={} if classes is None else {cell.name: LabelSpace(tuple(classes))},
            quarantine=quarantine,
            label=label,
            progress=progress,
        )
    except Diverged as error:
        return {"failed": error.problem, "validation": None}
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return {
        "failed": None,
        "validation": evaluate(student, cell.name, cell.parts["validation"], device(), quarantine).value,
    }
