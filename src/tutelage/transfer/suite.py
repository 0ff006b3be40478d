"""The transfer table: every initialisation on every downstream set (MuST section 3.3; X-Learner section 4.2)."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.data.quarantine import QUARANTINE, Quarantine
from tutelage.downstream import PROBE, FineTuning, Probe
from tutelage.errors import UserError
from tutelage.methods.must import Learned
from tutelage.stages import Run, Stage
from tutelage.tasks.classification import Classification
from tutelage.tasks.task import Metric, NoLabels
from tutelage.training.evaluate import Score, save_evidence
from tutelage.training.processes import barrier, rank, world
from tutelage.transfer.blind import BLIND, blind_score
from tutelage.transfer.finetune import (
    Cell,
    Outcome,
    Point,
    choose,
    crash,
    drop_losers,
    due,
    grid,
    lost_point,
    spent,
    train_point,
)
from tutelage.transfer.parts import Opened, open_sets
from tutelage.transfer.probe import probe
from tutelage.transfer.rows import Row, order_of, rows_of


@dataclass(frozen=True)
class Work:
    """A cell that is not filled yet: its stage, what is computed, and what goes into its measurements."""

    stage: Stage
    cell: Cell
    probe: Probe | None
    about: dict[str, Any]


_Unseen = tuple[Stage, str, Opened, list[dict[str, Any]]]
"""What `fill_blind` is called with."""


def transfer(run: Run, learned: Mapping[int, Learned | None]) -> dict[str, dict[str, Any]]:
    """Fill the table, one stage a cell and seed; finished cells are kept.

    Args:
        run: its recipe names the downstream sets.
        learned: by seed, what the method made; None where there is none.

    Returns:
        Row name to how it is shown: its place in the table, and whether it is a control.
    """
    if not run.recipe.transfer:
        return {}
    rows = {seed: rows_of(run, found) for seed, found in learned.items()}
    # The row that gains are measured from stays the first; the control that sees no image comes next.
    order = {name: place + (place > 0) for name, place in order_of(rows).items()} | {BLIND: 1}
    sets = open_sets(run)
    unseen = [_open_blind(run, name, opened, learned) for name, opened in sets.items()]
    unseen = [call for call in unseen if not call[0].finished]
    run.each(BLIND, fill_blind, unseen, [_read_blind(opened) for _, _, opened, _ in unseen])
    work = [
        unit
        for seed in learned
        for name in run.recipe.transfer
        for row in rows[seed]
        for unit in _open(run, row, name, sets[name], seed, order[row.name])
        if not unit.stage.finished
    ]
    tuned = [unit for unit in work if unit.probe is None]
    while calls := [(unit.cell, *go) for unit in tuned for go in due(unit.cell)]:
        sizes = [until * cell.settings.training.batch for cell, _, until in calls]
        run.each("fine-tuning", fill_point, calls, sizes, died=lost)
    run.each("test", fill_cell, [(unit,) for unit in work], [_read(unit) for unit in work], died=lost_cell)
    controls = {row.name: row.control for found in rows.values() for row in found} | {BLIND: True}
    return {name: {"order": place, "control": controls[name]} for name, place in order.items()}


def _read(unit: Work) -> int:
    """Images that are read to fill a cell: a probe reads all parts."""
    parts = unit.cell.parts
    return len(parts["test"]) if unit.probe is None else sum(len(dataset) for dataset in parts.values())


def _open(run: Run, row: Row, name: str, opened: Opened, seed: int, order: int) -> list[Work]:
    """The cells of one row and set: one for each way in which the set is used."""
    recipe, wanted, found = run.recipe, run.recipe.transfer[name], []
    model = row.model.but(size=wanted.size or recipe.model.size)
    for way in wanted.by:
        settings: FineTuning | Probe = wanted.finetuning or recipe.finetuning
        if way == "linear-probe":
            settings = wanted.probe or recipe.probe
        part = {
            "set": wanted.but(by=(way,), finetuning=None, probe=None).plain(),
            way: settings.plain(),
            "model": model.plain(),
            "seed": seed,
            "init": row.name,
            "hash": row.hash,
            "data": recipe.data,
            "images": opened.images,
        }
        column = f"{name}{PROBE if way == 'linear-probe' else ''}"
        stage = run.stage(
            f"transfer/{row.folder}/{column}/seed-{seed}",
            part,
            after=[] if row.made_by is None else [row.made_by],
            fix="where its network or the set's images have changed, delete this folder (for images, "
            f"`transfer/*/{column}`, so that no column mixes two test sets) to measure again; else give another --out",
        )
        cell = Cell(
            stage.folder,
            f"{name} from {row.name}",
            model,
            name,
            opened.task,
            opened.parts,
            wanted.finetuning or recipe.finetuning,
            row.init,
            Path(recipe.data),
            seed,
            recipe.quarantine_limit,
        )
        about: dict[str, Any] = {"stage": "transfer", "row": row.name, "order": order, "seed": seed}
        about |= {"column": column, "control": row.control}
        about |= {"without": row.without} if row.without else {}
        found.append(Work(stage, cell, settings if isinstance(settings, Probe) else None, about))
    return found


def _open_blind(run: Run, name: str, opened: Opened, seeds: Iterable[int]) -> _Unseen:
    """The control that sees no image, on one set. It is the same for every seed and every way, and stands in each."""
    wanted, data = run.recipe.transfer[name], run.recipe.data
    kept, every = wanted.but(size=None, finetuning=None, probe=None), list(seeds)
    part = {"set": kept.plain(), "seeds": every, "init": BLIND, "data": data, "images": opened.images}
    stage = run.stage(f"transfer/blind/{name}", part, again=True)
    same = {"stage": "transfer", "row": BLIND, "order": 1, "control": True}
    columns = [name + (PROBE if way == "linear-probe" else "") for way in wanted.by]
    return stage, name, opened, [same | {"seed": seed, "column": column} for seed in every for column in columns]


def _read_blind(opened: Opened) -> int:
    """Images or labels that are read for the control that sees no image."""
    return len(opened.parts["train"]) + len(opened.parts["test"])


def fill_blind(run: Run, stage: Stage, name: str, opened: Opened, about: list[dict[str, Any]]) -> None:
    """The figures of the control that sees no image, for each line of `about`; ends its stage. It may crash alone.

    Raises:
        UserError: the data are not what they should be.
    """
    parts, total = opened.parts, sum(len(dataset) for dataset in opened.parts.values())
    quarantine = Quarantine(stage.folder / QUARANTINE, total, run.recipe.quarantine_limit)
    test, failed = None, {}
    stage.begin()
    try:
        test = blind_score(name, opened.task, parts, quarantine, run.progress)
    except NoLabels as error:
        failed = {"failed": f"the training part says nothing: {error}"}
    except UserError:
        raise
    except Exception as error:
        if world() > 1:  # the others may wait for this process
            raise
        failed = {"failed": crash(stage.folder, error)}
    # A task that has nothing to say blindly has no such row: that is no failure.
    lines = [line | failed for line in about] if test is not None or failed else []
    run.record(stage, [row for line in lines for row in _figures(line, test, None, opened.task.metric())])
    if rank() == 0 and test is not None:
        save_evidence(stage.folder / "evidence.npz", test)
    barrier()
    stage.finish(train=len(parts["train"]), test=len(parts["test"]))


def fill_point(run: Run, cell: Cell, point: Point, until: int) -> Outcome:
    """One grid point, up to a step."""
    return train_point(cell, point, until, run.progress)


def lost(run: Run, cell: Cell, point: Point, until: int) -> Outcome:
    """One grid point whose process ended."""
    return lost_point(cell, point, until)


def fill_cell(run: Run, work: Work) -> None:
    """The figures of a cell, once its grid points are trained; ends its stage. A cell that crashes, fails alone.

    Raises:
        UserError: the data are not what they should be, which is no fault of the cell.
    """
    work.stage.begin(0.0 if work.probe is not None else spent(work.cell))
    try:
        rows, test = _tuned(work) if work.probe is None else _probed(run, work, work.probe)
    except UserError:
        raise
    except Exception as error:
        if world() > 1:
            raise
        rows, test = _crashed(work, crash(work.stage.folder, error)), None
    _end(run, work, rows, test)


def lost_cell(run: Run, work: Work) -> None:
    """A cell whose process ended; ends its stage."""
    _end(run, work, _crashed(work, "the process ended while it was measured, perhaps for want of memory"), None)


def _probed(run: Run, work: Work, settings: Probe) -> tuple[list[dict[str, Any]], Score | None]:
    """The lines of a probe and of the nearest neighbours beside it, and the probe's score."""
    cell, metric = work.cell, work.cell.task.metric()
    assert isinstance(cell.task, Classification)
    network, aside = cell.network(), cell.quarantine()
    found = probe(network, cell.name, cell.task, cell.parts, settings, work.stage.folder, aside, run.progress)
    same = work.about | {"l2": found.l2, "edge": found.edge} | _failed(found.failed)
    rows = _figures(same, found.test, found.validation, metric)
    near = _figures(work.about | _failed(found.failed), found.neighbours, found.neighbours_validation, metric)
    return rows + _as_neighbours(near), found.test


def _tuned(work: Work) -> tuple[list[dict[str, Any]], Score | None]:
    """The lines of a fine-tuning, and its score; the weights of all points but the chosen one are dropped."""
    cell, found = work.cell, choose(work.cell)
    same = work.about | {"rate": found.point.rate, "steps": found.point.steps, "edge": found.edge}
    if rank() == 0:
        drop_losers(cell, found.point)
    return _figures(same | _failed(found.failed), found.test, found.validation, cell.task.metric()), found.test


def _crashed(work: Work, reason: str) -> list[dict[str, Any]]:
    """The lines of a cell that has no figure."""
    rows = _figures(work.about | {"failed": reason}, None, None, work.cell.task.metric())
    return rows if work.probe is None else rows + _as_neighbours(rows)


def _as_neighbours(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same lines under the names of the nearest neighbours' figures."""
    return [row | {"metric": f"k-NN {row['metric']}"} for row in rows]


def _end(run: Run, work: Work, rows: Sequence[dict[str, Any]], test: Score | None) -> None:
    """Keep the lines of a cell and end its stage."""
    cell, stage = work.cell, work.stage
    run.record(stage, rows)
    if rank() == 0 and test is not None:
        save_evidence(stage.folder / "evidence.npz", test)
    barrier()
    points = {} if work.probe is not None else {"points": len(grid(cell.settings))}
    stage.finish(**{part: len(dataset) for part, dataset in cell.parts.items()}, **points)
    if rank() == 0:
        shutil.rmtree(stage.folder / "features", ignore_errors=True)


def _failed(failed: Mapping[str, str]) -> dict[str, str]:
    """What failed on the way, as one text; nothing where nothing did."""
    return {"failed": "; ".join(f"{what}: {reason}" for what, reason in failed.items())} if failed else {}


def _figures(
    same: dict[str, Any], test: Score | None, validation: float | None, metric: Metric
) -> list[dict[str, Any]]:
    """A line for every figure of a score, the papers' first; one without a value where there is no score."""
    if test is None:
        return [same | {"metric": metric.name, "value": None, "higher_is_better": metric.higher_is_better}]
    return [
        same
        | {
            "metric": figure,
            "value": None if math.isnan(value) else value,
            "higher_is_better": figure not in test.lower_is_better,
            "n": test.images,
            "validation": validation if figure == metric.name else None,
        }
        for figure, value in test.values.items()
    ]
