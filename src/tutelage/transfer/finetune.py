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
class Tuned:
    """The outcome of one cell of the transfer table.

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
        UserError: a backbone tensor that is missing or of another shape.
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
    model: Model,
    name: str,
    task: Task,
    parts: Mapping[str, Dataset],
    spaces: dict[str, LabelSpace],
    settings: FineTuning,
    init: Path | None,
    root: Path,
    seed: int,
    folder: Path,
    label: str,
    progress: Progress = SILENT,
) -> Tuned:
    """One cell of the transfer table.

    Args:
        model: the network's form.
        name: of the downstream set, which is its head's name as well.
        task: with its classes.
        parts: "train", "validation" and "test".
        spaces: the set's label space by its name.
        settings: the grid.
        init: a model folder to start from; None for the initial weights.
        root: where relative paths of the network's own weight file start, if it names one.
        seed: of head, sampling and augmentation.
        folder: of the stage; finished grid points in it are not trained again.
        label, progress: how to show it.
    """
    points = [(rate, steps) for steps in settings.steps for rate in settings.rates]
    found: dict[tuple[float, int], float] = {}
    failed: dict[str, str] = {}
    for rate, steps in points:
        place = folder / f"rate-{rate:g}-steps-{steps}"
        path = place / "point.json"
        if not path.is_file():
            result = _point(
                model,
                name,
                task,
                parts,
                spaces,
                settings,
                init,
                root,
                seed,
                place,
                (rate, steps),
                label,
                progress,
            )
            if rank() == 0:
                write_json(path, result)
            barrier()
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["failed"] is None:
            found[rate, steps] = result["validation"]
        else:
            failed[f"rate {rate:g}, {steps} steps"] = result["failed"]
    if not found:
        return Tuned(None, float("nan"), points[0][0], points[0][1], failed)
    higher = task.metric().higher_is_better
    rate, steps = max(found, key=lambda point: found[point] if higher else -found[point])
    best = model.build({name: task})
    best.load_state_dict(read_state(folder / f"rate-{rate:g}-steps-{steps}" / "weights.safetensors"))
    return Tuned(evaluate(best, name, parts["test"], device()), found[rate, steps], rate, steps, failed)


def _point(
    model: Model,
    name: str,
    task: Task,
    parts: Mapping[str, Dataset],
    spaces: dict[str, LabelSpace],
    settings: FineTuning,
    init: Path | None,
    root: Path,
    seed: int,
    folder: Path,
    point: tuple[float, int],
    label: str,
    progress: Progress,
) -> dict[str, float | str | None]:
    """Train one grid point and score it on the validation part; a point that diverges fails alone."""
    rate, steps = point
    training = settings.training.but(rate=rate, steps=steps, warmup=min(settings.training.warmup, steps // 2))
    student = build(model, {name: task}, seed, f"{name} {seed}", root)
    if init is not None:
        load_shared(student, init / "weights.safetensors")
    try:
        fit(
            student,
            [parts["train"]],
            training,
            Balance().build([name], (1, 1.0), {}),
            folder,
            seed=seed,
            device=device(),
            spaces=spaces,
            label=label,
            progress=progress,
        )
    except Diverged as error:
        return {"failed": error.problem, "validation": None}
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return {"failed": None, "validation": evaluate(student, name, parts["validation"], device()).value}
