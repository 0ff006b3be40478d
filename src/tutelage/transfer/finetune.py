"""Fine-tuning one initialisation on one downstream set (MuST section 3.3 and appendix B.3).

Backbone and pyramid are loaded, the head is fresh; the points of the grid (rate x steps) are trained; the best on the
validation part is scored on the test part. Each point lies in a folder of its own and stands for itself: it can be
trained anywhere, gone on with after a kill, and fail without the others.
"""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tutelage.data.mixture import Mixture, parts_of
from tutelage.data.quarantine import QUARANTINE, Quarantine
from tutelage.data.source import Dataset, LabelSpace
from tutelage.downstream import FineTuning
from tutelage.errors import UserError
from tutelage.files import write_json, write_text
from tutelage.models.student import Model, Student
from tutelage.progress import Progress
from tutelage.tasks.task import Task
from tutelage.training.balance import Balance
from tutelage.training.checkpoint import load_shared, read_state
from tutelage.training.evaluate import Score, evaluate
from tutelage.training.fit import build, fit
from tutelage.training.loop import Diverged
from tutelage.training.processes import barrier, device, rank, world
from tutelage.transfer.parts import labels_of, refuse_silent


@dataclass(frozen=True)
class Cell:
    """One cell of the transfer table with one seed.

    Attributes:
        folder: of its stage.
        label: of its bars.
        model: the network's form.
        name: of the downstream set, which is its head's name as well.
        task: with its classes.
        parts: "train", "validation" and "test".
        settings: the grid.
        init: a model folder to start from; None for the network's own initial weights.
        root: where relative paths of the network's own weight file start, if it names one.
        seed: of head, sampling and augmentation.
        limit: share of the images that may be unusable.
    """

    folder: Path
    label: str
    model: Model
    name: str
    task: Task
    parts: Mapping[str, Dataset]
    settings: FineTuning
    init: Path | None
    root: Path
    seed: int
    limit: float

    def network(self) -> Student:
        """As every grid point begins: the initial weights, and a fresh head that follows from the seed."""
        student = build(self.model, {self.name: self.task}, self.seed, f"{self.name} {self.seed}", self.root)
        if self.init is not None:
            load_shared(student, self.init / "weights.safetensors", self.settings.pyramid == "loaded")
        return student

    def quarantine(self) -> Quarantine:
        """The list of its unusable images."""
        total = sum(len(part) for part in self.parts.values())
        return Quarantine(self.folder / QUARANTINE, total, self.limit)


class Point(NamedTuple):
    """One point of a grid: peak learning rate and number of steps."""

    rate: float
    steps: int

    def folder(self, cell: Cell) -> Path:
        """Where it lies."""
        return cell.folder / f"rate-{self.rate:g}-steps-{self.steps}"

    def __str__(self) -> str:
        return f"rate {self.rate:g}, {self.steps} steps"


class Outcome(NamedTuple):
    """How far a point is and how good.

    Attributes:
        until: steps that are done.
        validation: the papers' figure on the validation part; None where it failed.
        failed: why; None where it did not.
        seconds: that it took to come here from the rung before.
    """

    until: int
    validation: float | None
    failed: str | None
    seconds: float = 0.0


@dataclass(frozen=True)
class Tuned:
    """The outcome of a cell.

    Attributes:
        test: figures on the test part; None when every grid point failed.
        validation: the papers' figure of the chosen point on the validation part.
        point: the chosen one.
        edge: on which edges of the grid it lies: "rate low", "rate high", "steps high", or "".
        failed: grid points that failed, with their reason.
    """

    test: Score | None
    validation: float
    point: Point
    edge: str
    failed: dict[str, str]


def grid(settings: FineTuning) -> list[Point]:
    """All points, short ones first."""
    return [Point(rate, steps) for steps in settings.steps for rate in settings.rates]


def rungs(settings: FineTuning) -> int:
    """How often points are compared, the end included: 1 without successive halving."""
    if settings.halving is None:
        return 1
    return 1 + int(math.log(len(grid(settings)), settings.halving) + 1e-9)


def end_of(settings: FineTuning, point: Point, rung: int) -> int:
    """Steps that a point has done when it is compared; rungs are numbered from 0."""
    return math.ceil(point.steps / (settings.halving or 1) ** (rungs(settings) - 1 - rung))


def places(settings: FineTuning, entered: int) -> int:
    """How many points of those that entered a rung enter the next."""
    return math.ceil(entered / (settings.halving or 1))


def effort(settings: FineTuning) -> tuple[int, int]:
    """What filling a cell takes where no point fails and no two are equally good: steps in all, and how often the
    validation part is scored.

    Points of several lengths go through the rungs together: the longest are taken to win, which is the most that it can
    cost.
    """
    points, steps, scored = grid(settings), 0, 0
    for rung in range(rungs(settings)):
        more = [end_of(settings, p, rung) - (end_of(settings, p, rung - 1) if rung else 0) for p in points]
        steps, scored = steps + sum(more), scored + sum(n > 0 for n in more)
        points = points[-places(settings, len(points)) :]
    return steps, scored


def due(cell: Cell) -> list[tuple[Point, int]]:
    """The points to be trained next, with the number of steps; none when there is nothing left to train.

    Without successive halving these are all, to their end. With it, all enter the first rung; of those that came
    through a rung, the best in `halving` on validation enter the next, and all that are as good as the last of them:
    early on, several may have learned nothing yet. A point's share of its steps grows by the same factor, up to all of
    them at the last rung. A point that fails gives all places that it had to the next best, which are then due.
    """
    points = grid(cell.settings)
    ends = {point: outcome_of(cell, point, point.steps) for point in points}
    lost = {point for point, end in ends.items() if end is not None and end.failed is not None}
    for rung in range(rungs(cell.settings)):
        until = {point: end_of(cell.settings, point, rung) for point in points}
        known = {point: outcome_of(cell, point, until[point]) for point in points}
        waiting = [(point, until[point]) for point, found in known.items() if found is None]
        if waiting:
            return waiting
        whole = {p: o.validation for p, o in known.items() if o and o.validation is not None and p not in lost}
        points = _through(ranked(cell.task, whole), whole, places(cell.settings, len(points)))
    return []


def _through(points: list[Point], found: Mapping[Point, float], count: int) -> list[Point]:
    """The first so many of some points in the order of their rank, and those behind that equal the last of them."""
    last = {found[point] for point in points[:count][-1:]}
    return points[:count] + [point for point in points[count:] if found[point] in last]


def ranked(task: Task, found: Mapping[Point, float]) -> list[Point]:
    """Points from the best to the worst; of equal ones the one that was named first."""
    sign = -1 if task.metric().higher_is_better else 1
    return sorted(found, key=lambda point: sign * found[point] if not math.isnan(found[point]) else math.inf)


def outcome_of(cell: Cell, point: Point, until: int) -> Outcome | None:
    """What is known of a point after so many steps; None when it is not that far. A failure holds from then on."""
    path = point.folder(cell) / "point.json"
    if not path.is_file():
        return None
    for plain in json.loads(path.read_text(encoding="utf-8")):
        found = Outcome(**plain)
        if found.until == until or (found.failed is not None and found.until <= until):
            return found
    return None


def train_point(cell: Cell, point: Point, until: int, progress: Progress) -> Outcome:
    """Train one grid point up to a step and score it on the validation part; one that fails, fails alone.

    Raises:
        UserError: the data or the initial weights are not what they should be, which is no fault of the point; the
            labels of the validation part say nothing.
    """
    found = outcome_of(cell, point, until)
    if found is not None:
        return found
    begun = time.monotonic()
    try:
        value = _train(cell, point, until, progress)
        found = Outcome(until, value, None)
        if math.isnan(value):
            found = Outcome(until, None, "it has no figure on the validation part")
    except Diverged as error:
        found = Outcome(until, None, error.problem)
    except UserError:
        raise
    except Exception as error:
        if world() > 1:  # the others may be in the middle of a step that waits for this process
            raise
        found = Outcome(until, None, crash(point.folder(cell), error))
    found = found._replace(seconds=round(time.monotonic() - begun, 3))
    _note(cell, point, found)
    return found


def crash(folder: Path, error: Exception) -> str:
    """What is said of an error that nobody foresaw: one line; its traceback is kept in the folder's `failed.txt`."""
    if rank() == 0:
        write_text(folder / "failed.txt", "".join(traceback.format_exception(error)))
    return ": ".join(filter(None, (type(error).__name__, *str(error).splitlines()[:1])))


def lost_point(cell: Cell, point: Point, until: int) -> Outcome:
    """What is written down of a point whose process ended while it was trained."""
    found = Outcome(until, None, "the process ended while it trained, perhaps for want of memory")
    _note(cell, point, found)
    return found


def _note(cell: Cell, point: Point, found: Outcome) -> None:
    path = point.folder(cell) / "point.json"
    if rank() == 0:
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        write_json(path, [*before, found._asdict()])
        if found.failed is not None or found.until == point.steps:  # not before: a kill would lose the training
            (path.parent / "checkpoint.pt").unlink(missing_ok=True)
    barrier()


def _train(cell: Cell, point: Point, until: int, progress: Progress) -> float:
    """The figure on validation after so many steps."""
    template, classes = cell.settings.training, cell.task.classes
    settings = template.but(rate=point.rate, steps=point.steps, warmup=min(template.warmup, point.steps // 2))
    student = cell.network()
    folder, quarantine = point.folder(cell), cell.quarantine()
    fit(
        student,
        Mixture(parts_of([cell.parts["train"]], {}, cell.seed), seed=cell.seed),
        settings,
        Balance().build({cell.name: cell.task}, (1, 1.0), {}),
        folder,
        seed=cell.seed,
        device=device(),
        spaces={} if classes is None else {cell.name: LabelSpace(tuple(classes))},
        quarantine=quarantine,
        until=until,
        label=cell.label,
        progress=progress,
    )
    return _validated(student, cell, quarantine)


def _validated(student: Student, cell: Cell, quarantine: Quarantine) -> float:
    """The papers' figure on the validation part; NaN where its labels have one but these predictions have none.

    Raises:
        UserError: its labels say nothing.
    """
    validation = cell.parts["validation"]
    found = evaluate(student, cell.name, validation, device(), quarantine).value
    if math.isnan(found):
        refuse_silent(cell.name, cell.task, labels_of(validation))
    return found


def spent(cell: Cell) -> float:
    """Seconds that went into the grid points of a cell."""
    files = [point.folder(cell) / "point.json" for point in grid(cell.settings)]
    lines = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
    return sum(Outcome(**plain).seconds for of_point in lines for plain in of_point)


def choose(cell: Cell) -> Tuned:
    """The best point of a trained cell on validation, and its figures on the test part."""
    last, failed = {}, {}
    for point in grid(cell.settings):
        found = outcome_of(cell, point, point.steps)
        if found is not None and found.validation is not None:
            last[point] = found.validation
        elif found is not None and found.failed is not None:
            failed[str(point)] = found.failed
    if not last:
        return Tuned(None, float("nan"), grid(cell.settings)[0], "", failed)
    best = ranked(cell.task, last)[0]
    student = cell.model.build({cell.name: cell.task})
    student.load_state_dict(read_state(best.folder(cell) / "weights.safetensors"))
    test = evaluate(student, cell.name, cell.parts["test"], device(), cell.quarantine())
    return Tuned(test, last[best], best, _edge(cell.settings, best), failed)


def _edge(settings: FineTuning, point: Point) -> str:
    """Where the grid might have been too small."""
    edges = []
    if len(settings.rates) > 1 and point.rate == min(settings.rates):
        edges.append("rate low")
    if len(settings.rates) > 1 and point.rate == max(settings.rates):
        edges.append("rate high")
    if len(settings.steps) > 1 and point.steps == max(settings.steps):
        edges.append("steps high")
    return ", ".join(edges)


def drop_losers(cell: Cell, chosen: Point) -> None:
    """Keep the weights of the chosen grid point only; the others keep their outcome and curve."""
    model = ("weights.safetensors", "model.yaml")
    for path in cell.folder.glob("rate-*"):
        for name in ("checkpoint.pt", *(() if path == chosen.folder(cell) else model)):
            (path / name).unlink(missing_ok=True)
