"""The transfer table: rows, grid, halving, failures, repeats, refusals."""

import io
import json
import os
import shutil
import time
from functools import partial
from html import escape

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from test_extending import Brightness, Light, Tiny, recipe
from typer.testing import CliRunner

import tutelage
from tutelage import api, cli
from tutelage.check import check
from tutelage.data import Folders, Masks
from tutelage.data.augment import Augment
from tutelage.data.source import Fault, LabelSpace, Place, Subset
from tutelage.downstream import PROBE, FineTuning, Probe, Start, TransferSet
from tutelage.errors import UserError
from tutelage.files import read_json_lines, write_json
from tutelage.jobs import Jobs
from tutelage.methods.material import note_faults, open_material
from tutelage.methods.pretraining import entries, looked_at
from tutelage.methods.rehearsal import rehearse
from tutelage.methods.workshop import STUDENT
from tutelage.models.backbone import Timm
from tutelage.models.pyramid import Pyramid
from tutelage.models.student import Model
from tutelage.progress import SILENT, Progress
from tutelage.recipe import Distillation, Recipe, SelfTraining, XLearner
from tutelage.recipes.suites import SUITES
from tutelage.report import page
from tutelage.report.folder import read_run
from tutelage.report.page import write_report
from tutelage.stages import Run
from tutelage.tasks import Classification, DeepLab, Depth, Detection, Normals, Segmentation
from tutelage.training.balance import Balance
from tutelage.training.checkpoint import load_model, load_state, read_state, save_model
from tutelage.training.evaluate import Score
from tutelage.training.fit import build
from tutelage.training.schedule import Training
from tutelage.transfer import finetune, suite
from tutelage.transfer.blind import BLIND
from tutelage.transfer.compare import IMAGENET, comparison, controlled, imagenet
from tutelage.transfer.finetune import Cell, Point, choose, due, effort, grid, outcome_of, rungs, train_point
from tutelage.transfer.parts import find_copies, open_sets, refuse_silent
from tutelage.transfer.rows import INITIAL, RANDOM, check_rows, rows_of
from tutelage.transfer.suite import transfer
from tutelage.transfer.sweep import best_weight
from tutelage.types import Boxes, Field, Label, Mask, Vectors

QUICK = Training(steps=4, batch=8, rate=0.02, workers=0, augment=Augment(colour=0.0), log_every=1)


def levels(name: str, **changes: object) -> TransferSet:
    """A classification set of bright and dark squares."""
    parts = {
        part: Brightness(head=name, label="class", images=count, first=first)
        for part, count, first in (("train", 16, 400), ("validation", 8, 500), ("test", 8, 600))
    }
    return TransferSet(head=Classification(), **parts).but(**changes)


def table(**changes: object) -> Recipe:
    """A comparison of random weights with random weights."""
    return Recipe(
        name="table",
        method="transfer",
        model=Model(backbone=Tiny(), pyramid=Pyramid(width=16), size=64),
        transfer={"levels": levels("levels")},
        finetuning=FineTuning(training=QUICK, rates=(0.01, 0.03), steps=(4,)),
        initialisations={"again": Start()},
    ).but(**changes)


def results(folder):
    return list(read_json_lines(folder / "results.jsonl"))


def test_everything_is_a_row_and_every_seed_repeats_everything(tmp_path):
    whole = recipe()
    quick = whole.student.but(training=QUICK)
    mine = whole.but(
        held_out={},
        heads={**whole.heads, "of the pool": Classification()},  # has no teacher
        sources={**whole.sources, "pool": Brightness(head="of the pool", label="class", images=16, first=200)},
        teachers={head: part.but(training=QUICK) for head, part in whole.teachers.items()},
        student=quick.but(heads=("level", "light")),
        baselines={
            "supervised": quick.but(heads=("level",), labels="human"),
            "all human": quick.but(labels="human", mixture="equal"),
            "pool human": quick.but(heads=("of the pool", "level"), sources=("pool",)),
            "pseudo": quick.but(heads=("light",), labels="pseudo", sources=("pool",), fractions={"pool": 0.5}),
            "on from the teacher": quick.but(heads=("level",), start="teacher: level"),
        },
        leave_one_out=True,
        sweep={"light": (0.5,)},
        initialisations={"given": Start(control=True)},
        first_row="supervised",
        transfer={"unseen": levels("unseen", by=("fine-tuning", "linear-probe"))},
        finetuning=FineTuning(training=QUICK, rates=(0.02,), steps=(4,)),
        probe=Probe(l2=(1e-1, 1e-3), iterations=20),
        seeds=(0, 1),
        repeat="everything",
    )
    begun = time.monotonic()
    tutelage.run(mine, tmp_path, SILENT)
    elapsed, rows = time.monotonic() - begun, results(tmp_path)
    assert 0 < read_run(tmp_path).seconds <= elapsed  # one process: no stage counts while another is at work
    top = [row for row in rows if row["stage"] == "transfer" and row["metric"] == "top-1"]
    named = sorted({row["order"]: row["row"] for row in top}.items())
    assert [name for _, name in named] == [
        "supervised",
        BLIND,
        RANDOM,
        "given",
        "teacher: level",
        "teacher: light",
        "all human",
        "pool human",
        "pseudo",
        "on from the teacher",
        "light weight 0.5",
        "without level",
        "without light",
        STUDENT,
    ]
    assert {(row["column"], row["seed"]) for row in top} == {
        (column, seed) for column in ("unseen", "unseen, linear probe") for seed in (0, 1)
    }
    assert {row["row"] for row in top if row["control"]} == {BLIND, RANDOM, "given"}
    assert {row["row"]: row["without"] for row in top if "without" in row} == {
        "without level": "level",
        "without light": "light",
    }
    near = [row for row in rows if row["metric"] == "k-NN top-1"]
    assert len(near) == 2 * 13
    for seed in (0, 1):
        there = tmp_path if seed == 0 else tmp_path / "repeats" / "seed-1"
        assert (there / "student" / "model.yaml").is_file()
        assert (there / "teachers" / "level" / "model.yaml").is_file()
    one, other = ((tmp_path / s / "student" / "weights.safetensors").read_bytes() for s in ("", "repeats/seed-1"))
    assert one != other
    assert (tmp_path / "transfer" / "student" / "unseen" / "seed-1" / "evidence.npz").is_file()
    heads = (tmp_path / "baselines" / "supervised" / "model.yaml").read_text()
    assert "level" in heads
    assert "light:" not in heads

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")}
    tutelage.run(mine, tmp_path, SILENT)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")} == before


def test_pretrainings_of_a_recipe_see_what_they_should():
    whole = recipe()
    student = whole.student
    some = whole.but(student=student.but(sources=("levels",)), baselines={"b": student.but(labels="human")})
    assert looked_at(some) == ["levels"]
    assert looked_at(whole) == ["levels", "lights", "pool"]
    found = {entry.name: entry for entry in entries(whole.but(leave_one_out=True, sweep={"light": (2.0,)}))}
    assert found["without level"].part.heads == ("light",)
    assert found["light weight 2"].part.balance.weights == {"light": 2.0}
    assert found["light weight 2"].part.balance.mode == "fixed"
    assert list(found)[-1] == STUDENT
    halves = student.but(self_training=SelfTraining(head="level"))
    left = [entry for entry in entries(whole.but(student=halves, leave_one_out=True)) if entry.without]
    assert [(entry.name, entry.part.heads) for entry in left] == [("without light", ("level",))]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"baselines": {"b": {"heads": ["levle"]}}}, ["baselines.b.heads", "'levle'", "did you mean", "level"]),
        ({"baselines": {"b": {"sources": ["pol"]}}}, ["baselines.b.sources", "pool"]),
        ({"baselines": {"b": {"fractions": {"pool": 0}}}}, ["baselines.b.fractions.pool", "above 0"]),
        ({"baselines": {"a": {"start": "b"}, "b": {"start": "a"}}}, ["start from each other"]),
        ({"baselines": {"b": {"kind": "simclear"}}}, ["simclear", "simclr"]),
        ({"sweep": {"light": [-1]}}, ["sweep.light", "above zero"]),
        ({"leave_one_out": True, "student": {"heads": ["level"]}}, ["leave_one_out", "two heads or more"]),
        ({"repeat": "everything", "seeds": [3]}, ["own seed 0 must be among them"]),
        ({"finetuning": {"rates": []}}, ["finetuning.rates", "at least one"]),
        ({"initialisations": {"x": {"checkpoint": "a", "backbone": {"kind": "timm"}}}}, ["not both"]),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(changes, words):
    from tutelage.part import parse

    plain = recipe().plain()
    del plain["sources"], plain["held_out"], plain["model"], plain["heads"], plain["transfer"], plain["teachers"]
    base = {"heads": {"level": {"task": "classification"}, "light": {"task": "depth"}}, "transfer": {}}
    base["sources"] = {"pool": {"format": "pool", "images": "x"}}
    base["labels"] = "somewhere"
    with pytest.raises(UserError) as caught:
        parse(Recipe, {**plain, **base, **changes}, "r.yaml")
    for word in words:
        assert word in str(caught.value)


def cell(tmp_path, **settings: object) -> Cell:
    """A cell with a grid of four rates and two lengths."""
    found = levels("levels")
    parts = {
        part: getattr(found, part).open("levels", Place(tmp_path, tmp_path)) for part in ("train", "validation", "test")
    }
    task = Classification(classes=parts["train"].space.names)
    model = Model(backbone=Tiny(), pyramid=Pyramid(width=16), size=64)
    tuning = FineTuning(training=QUICK, rates=(0.001, 0.003, 0.01, 0.03), steps=(4, 8)).but(**settings)
    return Cell(tmp_path / "cell", "cell", model, "levels", task, parts, tuning, None, tmp_path, 0, 0.5)


def say(where: Cell, point: Point, *outcomes: tuple[int, float | None, str | None]) -> None:
    rows = [{"until": until, "validation": value, "failed": failed} for until, value, failed in outcomes]
    write_json(point.folder(where) / "point.json", rows)


def test_halving_keeps_the_best_and_trains_them_on(tmp_path):
    where = cell(tmp_path, halving=2)
    points = grid(where.settings)
    assert rungs(where.settings) == 4  # 8, 4, 2, 1
    assert due(where) == [(p, 1) for p in points]
    for number, point in enumerate(points):
        say(where, point, (1, float(number), None) if number != 7 else (1, None, "diverged"))
    assert due(where) == [(points[n], 2) for n in (6, 5, 4)]  # a quarter; that of points[3] is the same step
    for number in (6, 5, 4):
        say(where, points[number], (1, float(number), None), (2, 10.0 - number, None))
    assert due(where) == [(points[4], 4), (points[5], 4)]
    say(where, points[4], (1, 4.0, None), (2, 6.0, None), (4, 7.0, None))
    assert due(where) == [(points[5], 4)]  # a run that was killed between them
    say(where, points[5], (1, 5.0, None), (2, 5.0, None), (4, 1.0, None))
    assert due(where) == [(points[4], 8)]
    say(where, points[4], (1, 4.0, None), (2, 6.0, None), (4, 7.0, None), (8, 8.0, None))
    assert due(where) == []
    exact = cell(tmp_path / "exact")
    assert rungs(exact.settings) == 1
    assert due(exact) == [(point, point.steps) for point in points]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"halving": 2},
        {"halving": 3},
        {"halving": 8},
        {"halving": 4, "steps": (400,)},
        {"halving": 2, "steps": (2,)},
    ],
    ids=str,
)
def test_the_effort_of_a_grid_is_that_of_going_through_it(tmp_path, settings):
    where = cell(tmp_path, **settings)
    points = grid(where.settings)
    done = {point: [] for point in points}
    while calls := due(where):
        for point, until in calls:  # the longest, which are named last, are the best
            done[point].append((until, float(points.index(point)), None))
            say(where, point, *done[point])
    steps = sum(outcomes[-1][0] for outcomes in done.values())
    assert effort(where.settings) == (steps, sum(map(len, done.values())))


def test_the_next_best_takes_the_place_of_a_point_that_fails_later(tmp_path):
    where = cell(tmp_path, halving=4, steps=(8,))
    points = grid(where.settings)
    assert rungs(where.settings) == 2  # 4, 1
    for number, point in enumerate(points):
        say(where, point, (2, float(number), None))
    for number in (3, 2, 1):
        assert due(where) == [(points[number], 8)]
        say(where, points[number], (2, float(number), None), (8, None, "diverged"))
    assert due(where) == [(points[0], 8)]
    say(where, points[0], (2, 0.0, None), (8, None, "diverged"))
    assert due(where) == []
    assert choose(where).test is None


def test_the_next_best_goes_through_the_rungs_that_it_missed(tmp_path):
    where = cell(tmp_path, halving=2, steps=(8,))
    points = grid(where.settings)
    assert rungs(where.settings) == 3  # 4, 2, 1
    for number, point in enumerate(points):
        say(where, point, (2, float(number), None))
    assert due(where) == [(points[3], 4), (points[2], 4)]
    say(where, points[3], (2, 3.0, None), (4, 9.0, None), (8, None, "diverged"))
    say(where, points[2], (2, 2.0, None), (4, None, "diverged"))
    assert due(where) == [(points[1], 4), (points[0], 4)]
    say(where, points[1], (2, 1.0, None), (4, 1.0, None))
    say(where, points[0], (2, 0.0, None), (4, 2.0, None))
    assert due(where) == [(points[0], 8)]


def test_points_that_are_as_good_as_the_last_that_goes_on_go_on_too(tmp_path):
    """A rate that has learned nothing yet is no better than the others that have not."""
    where = cell(tmp_path, halving=4, steps=(8,))
    points = grid(where.settings)
    for point in points:
        say(where, point, (2, 1.0, None))
    assert due(where) == [(point, 8) for point in points]
    say(where, points[0], (2, 1.0, None), (8, 1.0, None))
    say(where, points[1], (2, 1.0, None), (8, 3.0, None))
    assert due(where) == [(point, 8) for point in points[2:]]
    say(where, points[2], (2, 1.5, None), (8, 2.0, None))
    assert due(where) == [], "it is alone in front, so that the places of the others are gone"
    wide = cell(tmp_path / "wide", halving=2, steps=(8,))
    for point, value in zip(points, (5.0, 5.0, 7.0, 5.0), strict=True):
        say(wide, point, (2, value, None))
    assert due(wide) == [(points[2], 4), (points[0], 4), (points[1], 4), (points[3], 4)]


def test_a_table_goes_on_with_the_next_best_when_survivors_diverge(tmp_path, monkeypatch):
    real = finetune.fit

    def fit(student, datasets, settings, *args, until, **kwargs):
        if until == 4 and settings.rate in (0.01, 0.02):
            raise RuntimeError("out of memory")
        return real(student, datasets, settings, *args, until=until, **kwargs)

    monkeypatch.setattr(finetune, "fit", fit)
    figures = iter([3.0, 2.0, 1.0, 0.0] * 2 + [0.5] * 2)  # both rows' four rates for a step; those that are left
    monkeypatch.setattr(finetune, "_validated", lambda *_: next(figures))
    rates = (0.01, 0.02, 0.03, 0.04)
    tutelage.run(table(finetuning=FineTuning(training=QUICK, rates=rates, steps=(4,), halving=4)), tmp_path, SILENT)
    rows = [row for row in results(tmp_path) if row["metric"] == "top-1" and row["row"] != BLIND]
    assert [(row["rate"], row["value"] is None) for row in rows] == [(0.03, False)] * 2
    assert all("rate 0.01, 4 steps: RuntimeError" in row["failed"] for row in rows)


def test_a_point_that_pauses_ends_like_one_that_does_not(tmp_path):
    straight, halting = cell(tmp_path / "a"), cell(tmp_path / "b")
    point = Point(0.03, 8)
    whole = train_point(straight, point, 8, SILENT)
    for until in (2, 5, 8):
        last = train_point(halting, point, until, SILENT)
    assert last._replace(seconds=0.0) == whole._replace(seconds=0.0)
    weights = [c.folder / "rate-0.03-steps-8" / "weights.safetensors" for c in (straight, halting)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert outcome_of(halting, point, 2) is not None


def test_a_point_that_is_killed_while_it_is_validated_keeps_its_training(tmp_path, monkeypatch):
    where, whole = (cell(tmp_path / name, training=QUICK.but(checkpoint_seconds=0)) for name in ("killed", "whole"))
    point, measured = grid(where.settings)[0], finetune.evaluate
    files = [point.folder(c) / "checkpoint.pt" for c in (where, whole)]

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        train_point(where, point, point.steps, SILENT)
    assert load_state(files[0])["step"] == point.steps - 1
    monkeypatch.setattr(finetune, "evaluate", measured)
    ends = [train_point(c, point, point.steps, SILENT) for c in (where, whole)]
    assert ends[0].validation == ends[1].validation
    assert not any(file.exists() for file in files)


def test_the_best_on_validation_is_tested_and_edges_are_told(tmp_path, monkeypatch):
    where = cell(tmp_path, rates=(0.001, 0.03))
    for rate, steps, value in ((0.001, 4, 60.0), (0.001, 8, 40.0), (0.03, 8, 80.0)):
        point = Point(rate, steps)
        say(where, point, (steps, value, None))
        save_model(point.folder(where), build(where.model, {"levels": where.task}, steps, "x", tmp_path), {})
    say(where, Point(0.03, 4), (4, None, "diverged at step 3"))
    found = choose(where)
    assert (found.point, found.validation, found.edge) == (Point(0.03, 8), 80.0, "rate high, steps high")
    assert found.failed == {"rate 0.03, 4 steps": "diverged at step 3"}
    assert found.test.images == 8
    for point in grid(where.settings):
        say(where, point, (point.steps, None, "diverged"))
    nothing = choose(where)
    assert nothing.test is None
    assert len(nothing.failed) == 4


def test_a_point_that_diverges_or_crashes_fails_alone(tmp_path, monkeypatch):
    real = finetune.fit

    def fit(student, datasets, settings, *args, **kwargs):
        if settings.rate == 0.001:
            raise RuntimeError("out of memory\nand more")
        return real(student, datasets, settings, *args, **kwargs)

    monkeypatch.setattr(finetune, "fit", fit)
    mine = table(finetuning=FineTuning(training=QUICK.but(clip=None), rates=(0.001, 1e30, 0.03), steps=(4,)))
    tutelage.run(mine, tmp_path, SILENT)
    rows = [row for row in results(tmp_path) if row["metric"] == "top-1" and row["row"] != BLIND]
    assert all(row["rate"] == 0.03 and row["value"] is not None for row in rows)
    assert "rate 0.001, 4 steps: RuntimeError: out of memory; rate 1e+30, 4 steps: step" in rows[0]["failed"]
    text = (tmp_path / "transfer/random/levels/seed-0/rate-0.001-steps-4/failed.txt").read_text()
    assert "Traceback" in text


def both_ways(**changes: object) -> Recipe:
    """A table in which every row is fine-tuned and probed."""
    sets = {"levels": levels("levels", by=("fine-tuning", "linear-probe"))}
    return table(transfer=sets, probe=Probe(l2=(1e-1,), iterations=20), **changes)


def figures(folder) -> dict[tuple[str, str, str], tuple[float | None, str | None]]:
    """(row, column, metric) to value and failure, without the row that sees no image."""
    rows = [row for row in results(folder) if row["row"] != BLIND]
    return {(row["row"], row["column"], row["metric"]): (row["value"], row.get("failed")) for row in rows}


LOST = [("again", "levels", "top-1")] + [("again", "levels, linear probe", m) for m in ("top-1", "k-NN top-1")]
"""The figures of the row "again" in such a table."""


def test_a_cell_that_crashes_when_it_is_measured_fails_alone_and_can_be_measured_again(tmp_path, monkeypatch):
    mine, out = both_ways(), tmp_path / "crashed"
    tutelage.run(mine, tmp_path / "whole", SILENT)
    whole = figures(tmp_path / "whole")
    real_choose, real_probe = suite.choose, suite.probe

    def choose(where):
        if "again" in where.label:
            raise RuntimeError("CUDA out of memory\nTried to allocate")
        return real_choose(where)

    def probe(network, name, task, parts, settings, folder, *rest):
        if "given-again" in str(folder):
            raise MemoryError
        return real_probe(network, name, task, parts, settings, folder, *rest)

    monkeypatch.setattr(suite, "choose", choose)
    monkeypatch.setattr(suite, "probe", probe)
    tutelage.run(mine, out, SILENT)
    found = figures(out)
    reasons = ["RuntimeError: CUDA out of memory", "MemoryError", "MemoryError"]
    assert {key: found.pop(key) for key in LOST} == {
        key: (None, reason) for key, reason in zip(LOST, reasons, strict=True)
    }
    assert found == {key: value for key, value in whole.items() if key not in LOST}
    assert "CUDA out of memory" in (out / "report.html").read_text()
    stages = [out / "transfer" / "given-again" / name / "seed-0" for name in ("levels", f"levels{PROBE}")]
    assert all("Traceback" in (stage / "failed.txt").read_text() for stage in stages)

    monkeypatch.undo()
    monkeypatch.setattr(finetune, "fit", None)  # what is trained is kept
    for stage in stages:
        (stage / "done.json").unlink()
    tutelage.run(mine, out, SILENT)
    assert figures(out) == whole


class OneDies(Jobs):
    """Measuring the row "again" ends the process."""

    def map(self, work, calls, weights, bar, died=None):
        doomed = [work is suite.fill_cell and "again" in call[1].cell.label for call in calls]
        return [died(*call) if dies else work(*call) for call, dies in zip(calls, doomed, strict=True)]


def test_a_cell_whose_process_dies_when_it_is_measured_fails_alone(tmp_path):
    tutelage.run(both_ways(), tmp_path, SILENT, OneDies(2))
    found = figures(tmp_path)
    assert all(found[key][0] is None and "the process ended" in found[key][1] for key in LOST)
    assert all(value is not None for key, (value, _) in found.items() if key not in LOST)


def test_what_is_no_fault_of_a_cell_ends_the_table(tmp_path, monkeypatch):
    def choose(where):
        raise UserError("this label is wrong")

    monkeypatch.setattr(suite, "choose", choose)
    with pytest.raises(UserError, match="this label is wrong"):
        tutelage.run(table(), tmp_path, SILENT)


def test_every_point_failed_is_no_zero(tmp_path):
    mine = table(finetuning=FineTuning(training=QUICK.but(clip=None), rates=(1e30,), steps=(4,)))
    tutelage.run(mine, tmp_path, SILENT)
    rows = [row for row in results(tmp_path) if row["metric"] == "top-1" and row["row"] != BLIND]
    assert [row["value"] for row in rows] == [None, None]
    assert "failed" in (tmp_path / "report.html").read_text()


def test_a_killed_table_goes_on_where_it_was(tmp_path):
    mine = table()
    tutelage.run(mine, tmp_path / "whole", SILENT)
    tutelage.run(mine, tmp_path / "cut", SILENT)
    stage = tmp_path / "cut" / "transfer" / "given-again" / "levels" / "seed-0"
    (stage / "done.json").unlink()
    shutil.rmtree(stage / "rate-0.01-steps-4")
    (stage / "results.jsonl").unlink()
    kept = (stage / "rate-0.03-steps-4" / "point.json").stat().st_mtime_ns
    save_model(stage / "rate-0.03-steps-4", _weights(stage), {})  # the losers' weights are dropped at the end
    tutelage.run(mine, tmp_path / "cut", SILENT)
    assert results(tmp_path / "cut") == results(tmp_path / "whole")
    assert (stage / "rate-0.03-steps-4" / "point.json").stat().st_mtime_ns == kept


def _weights(stage):
    """Weights in the place of those that were dropped; the chosen point's are trained again."""
    model = Model(backbone=Tiny(), pyramid=Pyramid(width=16), size=64)
    return build(model, {"levels": Classification(classes=("dark", "bright"))}, 0, "x", stage)


def test_parts_that_share_images_are_refused_or_cut(tmp_path):
    same = Brightness(head="levels", label="class", images=6, first=604)
    mine = table(transfer={"levels": levels("levels", train=same)})
    with Run(tmp_path / "a", mine, SILENT) as run, pytest.raises(UserError) as caught:
        open_sets(run)
    assert "shares 4 images" in str(caught.value)
    assert "copies: drop" in str(caught.value)
    assert len(json.loads((tmp_path / "a/sets/levels/copies.json").read_text())["train"]) == 4
    with Run(tmp_path / "b", mine.but(transfer={"levels": levels("levels", train=same, copies="drop")}), SILENT) as run:
        parts = open_sets(run)["levels"].parts
        assert [len(parts[part]) for part in ("train", "validation", "test")] == [2, 8, 8]
        assert set(parts["train"].id(i) for i in range(2)).isdisjoint(parts["test"].id(i) for i in range(8))


@pytest.mark.parametrize(("part", "later"), [("train", "test"), ("validation", "test"), ("train", "validation")])
def test_a_part_that_holds_nothing_but_copies_is_refused(tmp_path, part, later):
    same = {name: Brightness(head="levels", label="class", images=6, first=700) for name in (part, later)}
    mine = table(transfer={"levels": levels("levels", copies="drop", **same)})
    for _ in range(2):  # also when it is known from before
        with Run(tmp_path, mine, SILENT) as run, pytest.raises(UserError) as caught:
            open_sets(run)
        assert f"the {part} part" in str(caught.value)
        assert f"transfer.levels.{part}" in str(caught.value)
        assert "copies: drop" in str(caught.value)


@pytest.mark.parametrize("copies", ["refuse", "drop"])
@pytest.mark.parametrize(("part", "first"), [("train", 505), ("train", 605), ("validation", 605), ("train", 500)])
def test_what_check_says_of_copies_is_what_a_run_does(tmp_path, copies, part, first):
    same = Brightness(head="levels", label="class", images=8 if first % 10 == 0 else 6, first=first)
    mine = table(transfer={"levels": levels("levels", copies=copies, **{part: same})})
    lines = [(line, wrong) for line, wrong in check(mine) if "share" in line]
    ((line, wrong),) = lines
    shared = 8 if first % 10 == 0 else 3  # all of the part, which then is empty, or 505 to 507, or 605 to 607
    assert line.startswith(
        f"transfer.levels.{part} shares {shared} images with the later parts, for example 0{first} = "
    )
    with Run(tmp_path, mine, SILENT) as run:
        assert wrong == (copies == "refuse" or shared == 8)
        if wrong:
            with pytest.raises(UserError, match=r"shares|only images of later parts"):
                open_sets(run)
        else:
            assert "`copies: drop`" in line
            assert len(open_sets(run)["levels"].parts[part]) == 3


def boxes(*rows: tuple[float, bool]) -> Boxes:
    """Boxes of one class: (their left end, whether they are to be ignored)."""
    corners = torch.tensor([[left, 0.0, left + 4, 8.0] for left, _ in rows]).reshape(-1, 4)
    ignore = torch.tensor([hidden for _, hidden in rows], dtype=torch.bool)
    return Boxes(corners, torch.zeros(len(rows), dtype=torch.int64), torch.ones(len(rows)), ignore)


def field(*valid: bool) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(1.0, 7.0).reshape(2, 3), torch.tensor(valid * (6 // len(valid))).reshape(2, 3)


def vectors(*valid: bool) -> Vectors:
    return Vectors(torch.nn.functional.normalize(torch.ones(3, 2, 3), dim=0), field(*valid)[1])


@pytest.mark.parametrize(
    ("task", "silent", "telling"),
    [
        (Classification(classes=("a", "b")), None, Label(torch.tensor([0.0, 1.0]))),
        (Classification(classes=("a", "b"), multi_label=True), Label(torch.zeros(2)), Label(torch.tensor([0.0, 1.0]))),
        (Detection(classes=("a",)), boxes(), boxes((0.0, False))),
        (Detection(classes=("a",)), boxes((1.0, True)), boxes((0.0, False), (9.0, True))),
        (Segmentation(classes=("a", "b")), Mask(torch.full((2, 3), 255)), Mask(torch.tensor([[255, 255, 0]]))),
        (Depth(), Field(*field(False)), Field(*field(True, False))),
        (Depth(mode="relative", target="inverse"), Field(*field(False)), Field(*field(True, False))),
        (Normals(), vectors(False), vectors(True, False)),
        (Light(), Field(*field(False)), Field(*field(True))),
    ],
)
def test_a_validation_part_is_refused_where_nothing_can_be_measured_on_it(task, silent, telling):
    nothing = [] if silent is None else [silent, silent]
    with pytest.raises(UserError) as caught:
        refuse_silent("levels", task, nothing)
    for word in ("levels", "transfer.levels.validation", f"{len(nothing)} labels", "tutelage check"):
        assert word in str(caught.value)
    refuse_silent("levels", task, [*nothing, telling])


class Mended(Brightness):
    """Pictures whose reader dropped a label."""

    def open(self, name, place, classes=None):
        whole = super().open(name, place, classes)
        whole.faults = [Fault("labels.txt", "line 3", "<no> such class", "dropped", "class", "7")]
        return whole


def test_what_readers_mended_is_noted_once_for_a_run(tmp_path):
    of_set = levels("levels")
    train = Mended(**{key: getattr(of_set.train, key) for key in type(of_set.train).model_fields})
    mine = table(transfer={"levels": of_set.but(train=train)}, seeds=(0, 1))
    stream = io.StringIO()
    for _ in range(2):
        tutelage.run(mine, tmp_path, Progress(stream))
    text = "downstream set levels, train: class line 3: <no> such class: 7 (dropped)"
    assert list(read_json_lines(tmp_path / "notes.jsonl")) == [{"note": text}]
    assert f"note: {text}" in stream.getvalue().splitlines()
    assert f"<li>{escape(text)}</li>" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (1, "source photos: images have no label file: unlabelled: 22 of 30 (counted)"),
        (
            3,
            "source photos: 3 faults in the labels, such as images have no label file: unlabelled: 22 of 30 (counted); "
            "`tutelage check` lists all",
        ),
    ],
)
def test_a_note_on_faults_has_their_figures_and_no_empty_parts(tmp_path, count, said):
    dataset = Brightness(images=2).open("photos", Place(tmp_path, tmp_path))
    one = Fault("photos", "", "images have no label file: unlabelled", "counted", "", "22 of 30")
    dataset.faults = [one, *(Fault("photos", "x", "other", "dropped") for _ in range(count - 1))]
    with Run(tmp_path, table(), SILENT) as run:
        note_faults(run, "source", {"photos": dataset})
    assert list(read_json_lines(tmp_path / "notes.jsonl")) == [{"note": said}]


class Silent(Brightness):
    """Pictures with masks of which no pixel is labelled."""

    def open(self, name, place, classes=None):
        whole = super().open(name, place, classes)
        whole.space = LabelSpace(("dark", "bright"))
        whole.target = lambda index: Mask(torch.full((48, 40), 255, dtype=torch.uint8))
        return whole


def test_a_validation_part_without_labels_is_refused_when_a_point_is_first_measured(tmp_path):
    where, masks = cell(tmp_path), Segmentation(classes=("dark", "bright"))
    silent = Silent(head="levels", images=4, first=500).open("levels", Place(tmp_path, tmp_path))
    trained = Subset(where.parts["train"], np.arange(4))
    trained.target = lambda index: Mask(torch.zeros(48, 40, dtype=torch.uint8))
    parts = {**where.parts, "train": trained, "validation": silent}
    where = Cell(**{**where.__dict__, "task": masks, "parts": parts})
    with pytest.raises(UserError, match=r"(?s)nothing can be chosen.*transfer\.levels\.validation"):
        train_point(where, Point(0.03, 4), 4, SILENT)
    assert outcome_of(where, Point(0.03, 4), 4) is None  # it is no failure of the grid point


def test_a_point_without_a_figure_on_labels_that_have_one_fails_alone(tmp_path, monkeypatch):
    real, where = finetune.evaluate, cell(tmp_path)
    score = Score("top-1", frozenset(), {"top-1": float("nan")}, 8)
    monkeypatch.setattr(finetune, "evaluate", lambda *rest: score)
    assert train_point(where, Point(0.03, 4), 4, SILENT).failed == "it has no figure on the validation part"
    monkeypatch.setattr(finetune, "evaluate", real)
    assert train_point(where, Point(0.01, 4), 4, SILENT).failed is None


def test_copies_are_taken_from_the_earlier_part():
    found = find_copies(
        {"train": {"a": "1", "b": "2", "c": "3"}, "validation": {"d": "2", "e": "4"}, "test": {"f": "3", "g": "4"}}
    )
    assert found == {"train": {"b": "validation: d", "c": "test: f"}, "validation": {"e": "test: g"}}
    assert find_copies({"train": {"a": "1", "b": "1"}, "validation": {}, "test": {}}) == {}


def test_a_part_without_images_is_refused(tmp_path):
    class Empty(Brightness):
        def open(self, name, place, classes=None):
            return Subset(super().open(name, place, classes), np.array([], np.int64))

    empty = Empty(head="levels", label="class", images=1)
    mine = table(transfer={"levels": levels("levels", validation=empty)})
    with Run(tmp_path, mine, SILENT) as run, pytest.raises(UserError, match="validation part .* has no images"):  # noqa: RUF043
        open_sets(run)


def test_a_checkpoint_that_does_not_fit_names_layer_and_shapes(tmp_path):
    model = Model(backbone=Tiny(), pyramid=Pyramid(width=16), size=64)
    save_model(tmp_path / "wide", build(model.but(pyramid=Pyramid(width=24)), {}, 0, "x", tmp_path), {})
    where = cell(tmp_path)
    where = Cell(**{**where.__dict__, "init": tmp_path / "wide"})
    network = build(model.but(pyramid=Pyramid(width=24)), {"levels": where.task, "d": where.task}, 0, "x", tmp_path)
    weights = {name: torch.zeros(2, 2) if name == "backbone.weight" else t for name, t in network.state_dict().items()}
    from safetensors.torch import save_file

    name = next(name for name in weights if name.startswith("backbone."))
    weights[name] = torch.zeros(2, 2)
    save_file({k: v.contiguous() for k, v in weights.items()}, tmp_path / "wide" / "weights.safetensors")
    with pytest.raises(UserError) as caught:
        train_point(where, Point(0.03, 8), 8, SILENT)
    assert name in str(caught.value)
    assert "found (2, 2)" in str(caught.value)
    assert "starts from them" in caught.value.problem
    assert "this recipe's backbone and pyramid" in caught.value.fix
    assert not (Point(0.03, 8).folder(where) / "point.json").exists()  # it is no failure of the grid point


@pytest.mark.parametrize("heads", ["", "ab"])
def test_weights_of_another_model_in_a_models_folder_are_refused_with_what_to_do(tmp_path, heads):
    model, task = Model(backbone=Tiny(), pyramid=Pyramid(width=16), size=64), Classification(classes=("x",))
    for name, own in (("model", "a"), ("other", heads)):
        save_model(tmp_path / name, build(model, dict.fromkeys(own, task), 0, "x", tmp_path), {})
    shutil.copy(tmp_path / "other/weights.safetensors", tmp_path / "model/weights.safetensors")
    with pytest.raises(UserError, match=r"the weights do not fit|weights that the network has not") as caught:
        load_model(tmp_path / "model", backbones=[Tiny])
    assert caught.value.file == tmp_path / "model/weights.safetensors"
    assert caught.value.record.startswith("heads.b" if heads else "heads.a")
    assert "as they were saved together" in caught.value.fix


@pytest.mark.parametrize("pyramid", ["loaded", "fresh"])
def test_the_pyramid_is_loaded_or_fresh_and_the_backbone_is_loaded_always(tmp_path, pyramid):
    model = Model(backbone=Tiny(), pyramid=Pyramid(width=16), size=64)
    start = build(model, {"other": Segmentation(classes=("a", "b"))}, 5, "x", tmp_path)
    save_model(tmp_path / "start", start, {})
    where = cell(tmp_path, pyramid=pyramid)
    task = Segmentation(classes=("dark", "bright"))
    where = Cell(**{**where.__dict__, "task": task, "init": tmp_path / "start"})
    network, theirs = where.network().state_dict(), start.state_dict()
    for name, value in network.items():
        if name.startswith("backbone.") or (name.startswith("pyramid.") and pyramid == "loaded"):
            assert torch.equal(value, theirs[name]), name
    convolutions = [name for name in network if name.startswith("pyramid.") and network[name].dim() == 4]
    assert convolutions
    assert all(torch.equal(network[name], theirs[name]) == (pyramid == "loaded") for name in convolutions)


def test_a_row_that_is_not_there_and_double_names_are_refused(tmp_path):
    with Run(tmp_path / "a", table(first_row="studnet"), SILENT) as run, pytest.raises(UserError, match="no row"):
        rows_of(run, None)
    double = table(initialisations={RANDOM: Start()})
    with Run(tmp_path / "b", double, SILENT) as run, pytest.raises(UserError, match="two rows of the transfer table"):
        rows_of(run, None)


def test_networks_of_several_libraries_are_compared(tmp_path, monkeypatch):
    options = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    model = Model(backbone=Timm(name="resnet18", options=options), pyramid=Pyramid(width=16), size=64)
    for name in ("one", "two"):
        save_model(tmp_path / name, build(model, {"x": Classification(classes=("a",))}, 0, name, tmp_path), {})
    plain = table().plain()
    del plain["model"], plain["initialisations"]
    starts = [str(tmp_path / "one"), str(tmp_path / "two"), "random", "timm:resnet10t"]
    found = comparison(starts, plain | {"transfer": {"levels": levels("levels")}}, "suite.yaml")
    assert list(found.initialisations) == ["one", "two", "timm:resnet10t"]
    assert found.model == model.resolved(tmp_path)
    assert found.method == "transfer"
    weights = tmp_path / "tiny.safetensors"
    net = Timm(name="test_resnet").build()
    save_file({k.removeprefix("net."): v.contiguous() for k, v in net.state_dict().items()}, weights)
    given = found.initialisations | {"timm:resnet10t": Start(backbone=Timm(name="test_resnet", weights=str(weights)))}
    quick = found.but(
        initialisations=given, finetuning=FineTuning(training=QUICK, rates=(0.01,), steps=(3,)), seeds=(0, 1)
    )
    tutelage.run(quick, tmp_path / "run", SILENT)
    rows = [row for row in results(tmp_path / "run") if row["metric"] == "top-1"]
    assert [row["row"] for row in rows if row["seed"] == 0] == [BLIND, RANDOM, "one", "two", "timm:resnet10t"]
    assert all(row["value"] is not None for row in rows)


def test_a_weight_file_that_was_replaced_is_another_row(tmp_path):
    tensor = torch.zeros(2)
    save_file({"w": tensor}, tmp_path / "w.safetensors")
    known = Timm(name="test_resnet")
    starts = {"file": Start(backbone=known.but(weights="w.safetensors")), "blank": Start(backbone=known)}
    model = table().model.but(backbone=known.but(weights="w.safetensors"))
    with Run(tmp_path / "run", table(data=str(tmp_path), model=model, initialisations=starts), SILENT) as run:
        before = {row.name: row.hash for row in rows_of(run, None)}
        save_file({"w": tensor}, tmp_path / "w.safetensors")
        assert {row.name: row.hash for row in rows_of(run, None)} == before
        save_file({"w": tensor + 1}, tmp_path / "w.safetensors")
        after = {row.name: row.hash for row in rows_of(run, None)}
    assert after["file"] != before["file"]
    assert after[INITIAL] != before[INITIAL] == before["file"]
    assert before == {RANDOM: "", INITIAL: before["file"], "file": before["file"], "blank": ""}  # others stay
    assert len(before["file"]) == 16


SUITE = """
data: .
transfer:
  kinds:
    head: {task: classification}
    train: {format: scenes, world: yard, label: classes, head: kinds, images: 8, size: 32}
    validation: {format: scenes, world: yard, label: classes, head: kinds, images: 4, size: 32, first: 100}
    test: {format: scenes, world: yard, label: classes, head: kinds, images: 4, size: 32, first: 200}
finetuning: {rates: [0.01], steps: [2], training: {batch: 4, workers: 0}}
"""


def test_networks_of_a_suite_have_names(tmp_path):
    suite = yaml.safe_load(SUITE) | {"initialisations": ["timm:resnet18"]}
    with pytest.raises(UserError, match="the suite's networks need names") as caught:
        comparison(["random"], suite, tmp_path / "suite.yaml")
    assert caught.value.field == "initialisations"


def test_a_folder_in_which_nobody_may_write_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="nothing can be written here: not a directory"):
        tutelage.run(table(), tmp_path / "file" / "run", SILENT)
    monkeypatch.setattr(page, "write_text", lambda *_: os.close(os.open(tmp_path / "file" / "x", os.O_RDONLY)))
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="nothing can be written here"):
        write_report(tmp_path / "run")


def test_networks_are_compared_from_the_command_line(tmp_path, monkeypatch):
    model = Model(backbone=Timm(name="test_resnet"), pyramid=Pyramid(width=16), size=32)
    for name in ("one", "two"):
        save_model(tmp_path / name, build(model, {"x": Classification(classes=("a",))}, 0, name, tmp_path), {})
    weights = {k.removeprefix("net."): v.contiguous() for k, v in model.backbone.build().state_dict().items()}
    save_file(weights, tmp_path / "tiny.safetensors")
    (tmp_path / "suite.yaml").write_text(SUITE)
    whole = Timm.build

    def offline(self, root=None):
        if self.weights == "timm" and root is not None:
            raise UserError("the weights cannot be had")
        return whole(self, root)

    monkeypatch.setattr(Timm, "build", offline)
    given = f"timm:test_resnet={tmp_path / 'tiny.safetensors'}"
    starts = [str(tmp_path / "one"), str(tmp_path / "two"), given, "random"]
    out = tmp_path / "run"
    asked = ["transfer", *starts, "--suite", str(tmp_path / "suite.yaml"), "--out", str(out), "--jobs", "1"]
    done = CliRunner().invoke(cli.app, asked)
    assert done.exit_code == 0, done.output
    assert "--no-controls" in done.output  # a control was due, and was not to be had
    named = [RANDOM, BLIND, "one", "two", given.replace("/", " ")]
    rows = [row for row in results(out) if row["metric"] == "top-1"]
    assert [row["row"] for row in sorted(rows, key=lambda row: row["order"])] == named
    assert all(row["value"] is not None for row in rows)
    for file in ("transfer.csv", "transfer.md"):
        written = (out / file).read_text()
        assert [name for name in named if name not in written] == []
    assert all(word in done.output for word in ("kinds", "one", "two", RANDOM, BLIND))


def test_a_bad_suite_ends_the_command_line_with_2(tmp_path, monkeypatch, capsys):
    for text, words in ((SUITE.replace("world: yard", "world: yrad"), "'yrad'"), ("name: nothing", "downstream sets")):
        (tmp_path / "suite.yaml").write_text(text)
        asked = ["transfer", "random", "--suite", str(tmp_path / "suite.yaml"), "--out", str(tmp_path / "run")]
        monkeypatch.setattr("sys.argv", ["tutelage", *asked])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert words in said
    assert not (tmp_path / "run").exists()


def test_a_setting_may_add_rows_that_a_suite_leaves_out(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("tutelage.api.run", lambda recipe, *rest: asked.append(recipe))
    sets = {"depth": SUITES["must-scenes"]()["depth"].but(finetuning=None).plain()}
    suite = {"name": "mine", "model": Model().plain(), "transfer": sets}
    backbone = "{kind: timm, name: test_resnet, weights: a.pth, match: order}"
    settings = [f"initialisations.more={{control: true, backbone: {backbone}}}", "finetuning.steps=[7]"]
    api.transfer(["random"], suite, tmp_path, settings=settings, controls=False)
    assert list(asked[0].initialisations) == ["more"]
    assert asked[0].initialisations["more"].backbone.match == "order"
    assert asked[0].finetuning.steps == (7,)


@pytest.mark.parametrize("name", ["must-table2", "must-table4", "xlearner-table3", "demo"])
def test_the_sets_of_a_recipe_that_learns_are_a_suite_whatever_row_it_measures_from(name, tmp_path):
    asked = cli._suite(name)
    found = comparison(["torchvision:resnet18"], asked, name)
    with Run(tmp_path, found, SILENT) as run:
        assert [row.name for row in rows_of(run, None)] == [RANDOM, *asked["initialisations"], "torchvision:resnet18"]


def test_a_first_row_that_the_comparison_has_is_kept_and_a_misspelt_one_is_refused(tmp_path):
    asked = cli._suite("must-table2")
    for first in (RANDOM, "torchvision:resnet18", f"{IMAGENET} (a1_in1k)"):
        assert comparison(["torchvision:resnet18"], asked | {"first_row": first}, "x").first_row == first
    assert comparison(["random"], cli._suite("must-fig5-paper"), "x").first_row == "ImageNet"  # one that it starts from
    mine = compared("torchvision:resnet18", first_row="torchvision:resnet81")  # of a suite, which learns nothing
    with Run(tmp_path, mine, SILENT) as run, pytest.raises(UserError, match="did you mean 'torchvision:resnet18'"):
        rows_of(run, None)


def compared(*starts: str, **changes: object) -> Recipe:
    """A comparison on the set of levels."""
    return comparison(starts, {"transfer": {"levels": levels("levels")}} | changes, "suite.yaml")


def test_imagenet_weights_become_a_control_where_there_are_any(monkeypatch):
    loaded, said = [], []
    monkeypatch.setattr(Timm, "build", lambda self, root=None: loaded.append(self.name))
    plain = compared("torchvision:resnet18", model=Model(backbone=Timm(name="resnet18")).plain())
    found = controlled(plain, said.append)
    row = f"{IMAGENET} (a1_in1k)"
    assert list(found.initialisations) == [row, "torchvision:resnet18"]
    assert found.initialisations[row] == Start(backbone=Timm(name="resnet18.a1_in1k", weights="timm"), control=True)
    assert loaded == ["resnet18.a1_in1k"]
    assert controlled(compared("torchvision:resnet18"), said.append).initialisations.keys() == {"torchvision:resnet18"}
    assert said == []


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("tf_efficientnet_b0", "aa_in1k"),  # before it stand Noisy Student's, and AdvProp's
        ("convnext_tiny", "fb_in1k"),
        ("vit_base_patch16_224", "augreg_in1k"),
        ("resnet50.tv2_in1k", "tv2_in1k"),
        ("resnet50.fb_swsl_ig1b_ft_in1k", "a1_in1k"),
        ("vit_small_patch14_dinov2", None),
        ("convnextv2_tiny", None),  # masked autoencoders, however finished
        ("hgnetv2_b0", None),  # taught by a network that knows more images
        ("beit_base_patch16_224", None),
    ],
)
def test_the_control_learned_from_the_labels_of_imagenet_alone(name, found):
    weights = imagenet(table(model=Model(backbone=Timm(name=name))))
    assert (weights and weights.name) == (found and f"{name.partition('.')[0]}.{found}")


def test_a_network_that_is_a_row_already_is_no_control():
    for start in ("timm:resnet50", "timm:resnet50.a1_in1k"):
        assert imagenet(compared(start)) is None
        assert imagenet(compared(start, model=Model(backbone=Timm(name="resnet50")).plain())) is None
    for start in ("timm:resnet50.tv_in1k", "timm:resnet50=weights.pth"):
        assert imagenet(compared("torchvision:resnet18", start)) is None  # the form is torchvision's
        assert imagenet(compared(start, model=Model(backbone=Timm(name="resnet50")).plain())) is not None


def test_a_control_that_cannot_be_had_is_left_out_with_a_note(monkeypatch):
    def offline(self, root=None):
        raise UserError("the weights cannot be had: no route to the host", value=self.name)

    monkeypatch.setattr(Timm, "build", offline)
    said: list[str] = []
    plain = compared("timm:resnet18=weights.pth")
    assert controlled(plain, said.append) is plain
    (note,) = said
    assert "`--no-controls`" in note
    assert "no route to the host" in note
    asked = []
    monkeypatch.setattr(api, "run", lambda recipe, *rest: asked.append(recipe))
    suite = {"transfer": {"depth": SUITES["must-scenes"]()["depth"].plain()}}
    for controls in (True, False):
        api.transfer(["timm:resnet18=weights.pth"], suite, "out", controls=controls, progress=SILENT)
    assert asked[0].initialisations == asked[1].initialisations == plain.initialisations
    shown = io.StringIO()
    for rank in ("0", "1"):  # of two processes that torchrun started the first says so
        monkeypatch.setenv("RANK", rank)
        api.transfer(["timm:resnet18=weights.pth"], suite, "out", progress=Progress(shown))
    assert shown.getvalue().count("no route to the host") == 1


@pytest.mark.parametrize(
    ("starts", "suite", "words"),
    [
        (["nowhere"], {}, ["there is no such model", "nowhere", "timm:NAME"]),
        (["random"], {}, ["nothing to compare"]),
        (["timm:resnet18"], {"transfer": {}}, ["names downstream sets"]),
    ],
)
def test_a_comparison_of_nothing_is_refused(starts, suite, words):
    plain = table().plain() | {"transfer": {"levels": levels("levels")}, "initialisations": {}}
    plain["model"] = Model().plain()
    with pytest.raises(UserError) as caught:
        comparison(starts, plain | suite, "suite.yaml")
    for word in words:
        assert word in str(caught.value)


def test_the_best_weight_of_a_sweep_is_found_on_validation():
    mine = recipe().but(sweep={"light": (0.5, 2.0, 4.0)})

    def row(name, column, validation, seed=0, higher=True, value=0.0):
        same = {"stage": "transfer", "metric": "m", "value": value, "higher_is_better": higher}
        return same | {"row": name, "column": column, "validation": validation, "seed": seed}

    rows = [row(STUDENT, "a", 50.0), row(STUDENT, "b", 4.0, higher=False), row(STUDENT, "c", 10.0, seed=1)]
    half = [row("light weight 0.5", "a", 55.0), row("light weight 0.5", "b", 5.0, higher=False)]  # +10%, -25%
    twice = [row("light weight 2", "a", 49.0), row("light weight 2", "b", 3.0, higher=False)]  # -2%, +25%
    alone = [row("light weight 4", "c", 90.0, seed=2), row("light weight 4", "a", None, value=99.0)]  # no pair
    weight, worth = best_weight(mine, "light", rows + half + twice + alone)
    assert weight == 2.0
    assert worth == pytest.approx(11.5)
    assert best_weight(mine, "light", rows + half) == (1.0, 0.0)
    assert best_weight(mine, "light", rows + alone) is None

    near = [
        row(name, "a", value) | {"metric": "k-NN m"} for name, value in ((STUDENT, 1.0), ("light weight 0.5", 90.0))
    ]
    assert best_weight(mine, "light", rows + half + near) == (1.0, 0.0)  # what stands beside the probe does not count

    slow = mine.student.training.but(rate=mine.student.training.rate / 4)  # w = b_s lr_t / (b_t lr_s)
    scaled = mine.but(student=mine.student.but(training=slow, balance=Balance(mode="scaling-rule")))
    assert best_weight(scaled, "light", rows + half) == (pytest.approx(4.0), 0.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"test": None}, ["transfer.levels.test"]),
        ({"validation": {"format": "folders", "head": "other", "root": "x"}}, ["transfer.levels.validation.head"]),
        ({"by": ["linear-probe"], "head": {"task": "depth"}}, ["only classification is probed"]),
        ({"by": []}, ["name at least one way"]),
    ],
)
def test_a_suite_that_does_not_fit_is_refused(change, words):
    entry = {"head": {"task": "classification"}}
    entry |= {part: {"format": "folders", "head": "levels", "root": part} for part in ("train", "validation", "test")}
    entry = {key: value for key, value in (entry | change).items() if value is not None}
    with pytest.raises(UserError) as caught:
        comparison(["timm:resnet18"], {"transfer": {"levels": entry}}, "suite.yaml")
    for word in words:
        assert word in str(caught.value)


def test_a_label_outside_the_heads_classes_is_refused(tmp_path):
    narrow = levels("levels").but(head=Classification(classes=("dark",)))
    with Run(tmp_path, table(transfer={"levels": narrow}), SILENT) as run, pytest.raises(UserError, match="bright"):
        open_sets(run)


def test_decoded_sets_change_nothing(tmp_path):
    for name, size in (("kept", 1.0), ("read", 0.0)):
        tutelage.run(table(decoded_gigabytes=size), tmp_path / name, SILENT)
    assert results(tmp_path / "kept") == results(tmp_path / "read")
    assert list((tmp_path / "kept" / "cache" / "decoded").rglob("*")) != []
    assert not (tmp_path / "read" / "cache" / "decoded").exists()


def test_a_table_without_sets_is_nothing(tmp_path):
    with Run(tmp_path, table(transfer={}), SILENT) as run:
        transfer(run, {0: None})
    assert not (tmp_path / "transfer").exists()


@pytest.fixture
def begun(tmp_path):
    """A model folder whose network began with the weights of a file, and the file."""
    part = Timm(name="test_resnet", weights=str(tmp_path / "first.safetensors"))
    model = Model(backbone=part.blank(), pyramid=Pyramid(width=16), size=64)
    network = model.build({"level": Classification(classes=("dark", "bright"))})
    save_file(network.backbone.net.state_dict(), tmp_path / "first.safetensors")
    network.model = model.but(backbone=part)
    save_model(tmp_path / "mine", network, {})
    return tmp_path


def test_the_weights_that_a_checkpoint_began_with_are_a_control_that_may_be_missing(begun):
    said: list[str] = []
    file = begun / "first.safetensors"
    plain = compared(str(begun / "mine"))
    assert not plain.model.backbone.pretrained
    found = controlled(plain, said.append)
    assert found.model == plain.model.but(backbone=Timm(name="test_resnet", weights=str(file)))
    with Run(begun / "run", found, SILENT) as run:
        rows = {row.name: row for row in rows_of(run, None)}
        assert list(rows) == [RANDOM, INITIAL, "mine"]
        assert rows[INITIAL].control
    other = compared(
        str(begun / "mine"), model=Model(backbone=Timm(name="resnet18")).plain()
    )  # the suite has a form of its own
    assert controlled(other, said.append).initialisations[INITIAL].backbone == found.model.backbone
    assert controlled(other, said.append).model == other.model
    already = compared(str(begun / "mine"), f"timm:test_resnet={file}")
    assert controlled(already, said.append) is already
    within = {"data": str(begun), "initialisations": {"old": {"checkpoint": "mine"}}}  # a path of the suite's own
    assert controlled(compared("random", **within), said.append).initialisations.keys() == {"old"} | {INITIAL}
    assert not said
    file.unlink()
    assert controlled(plain, said.append) is plain
    assert "the row of initial weights is left out" in said[0]
    check_rows(plain)  # what it began with is not needed


def test_a_checkpoint_that_does_not_fit_is_named_before_a_row_is_trained(begun):
    mine = compared(str(begun / "mine"))
    weights = begun / "mine/weights.safetensors"
    state = read_state(weights)
    name = next(name for name in state if name.endswith("conv1.weight"))
    save_file(state | {name: state[name][:, :1].contiguous()}, weights)
    with pytest.raises(UserError, match="do not fit") as caught:
        check_rows(mine)
    assert caught.value.record == name
    weights.unlink()
    with pytest.raises(UserError, match="weights"):
        check_rows(mine)


def test_a_folder_may_have_the_name_of_a_suite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    assert "clothing" in cli._suite("real")["transfer"]


def test_a_set_that_is_refused_is_mended_in_the_same_folder(tmp_path):
    same = levels("levels").test.but(images=4)
    mine = table(transfer={"levels": levels("levels", train=same)})
    with pytest.raises(UserError, match="copies: drop"):
        tutelage.run(mine, tmp_path / "run", SILENT)
    more = levels("levels", train=levels("levels").train, copies="drop")
    tutelage.run(mine.but(transfer={"levels": more}), tmp_path / "run", SILENT)


def test_images_that_are_added_to_a_set_do_not_mix_two_test_sets(tmp_path):
    random = np.random.default_rng(0)

    def photo(part, kind, number):
        path = tmp_path / "data" / part / kind / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (32, 32, 3), np.uint8)).save(path)
        return path

    for part in ("train", "validation", "test"):
        for kind in ("a", "b"):
            first = photo(part, kind, 0), photo(part, kind, 1)
    one = {part: Folders(head="kinds", root=part) for part in ("train", "validation", "test")}
    tuned = FineTuning(training=QUICK, rates=(0.01,), steps=(1,))
    whole = TransferSet(head=Classification(), finetuning=tuned, **one)
    mine = table(data=str(tmp_path / "data"), transfer={"kinds": whole}, finetuning=FineTuning())
    tutelage.run(mine, tmp_path / "run", SILENT)
    tutelage.run(mine, tmp_path / "run", SILENT)
    photo("test", "a", 2)
    with pytest.raises(UserError, match="was made from something else") as caught:
        tutelage.run(mine, tmp_path / "run", SILENT)
    assert "`transfer/*/kinds`" in caught.value.fix
    for folder in (tmp_path / "run/transfer").glob("*/kinds"):
        shutil.rmtree(folder)
    shutil.copy(first[0], tmp_path / "data/train/b/copy.png")  # of a test image: the set is looked through again
    with pytest.raises(UserError, match="copies: drop"):
        tutelage.run(mine, tmp_path / "run", SILENT)
    (tmp_path / "data/train/b/copy.png").unlink()
    tutelage.run(mine, tmp_path / "run", SILENT)
    assert {m.images for m in read_run(tmp_path / "run").measurements} == {5}


def test_a_head_that_wants_a_dilated_backbone_is_refused_beside_a_row_that_stays_expanded(tmp_path):
    whole, small = recipe(), {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    part = XLearner(training=QUICK, alone=1, squeeze=None)
    masks = Masks(head="masks", images="i", masks="m", classes=("a", "b"))
    wanted = TransferSet(head=DeepLab(output_stride=8), train=masks, validation=masks, test=masks)
    mine = whole.but(
        model=Model(backbone=Timm(name="resnet18", options=small), pyramid=Pyramid(width=16), size=64),
        student=part,
        transfer={"masks": wanted},
    )
    material = open_material(mine, Place(tmp_path, tmp_path))

    def tried(**changes: object) -> None:
        other = mine.but(**changes)
        check_rows(other)
        rehearse(other, material, other.student)

    with pytest.raises(UserError, match="cannot be fine-tuned on 'masks': an expanded backbone") as caught:
        tried()
    assert caught.value.field == "transfer.masks.head"
    tried(transfer={"masks": wanted.but(head=Segmentation())})
    tried(student=part.but(squeeze={"kind": "distillation"}))
    with pytest.raises(UserError, match="the row 'X-Learner' cannot be fine-tuned on 'masks'"):
        tried(student=part.but(squeeze=Distillation(backbone=Tiny())))
    tried(student=part.but(reconciliation=None))
    tried(student=part.but(tasks={"levels": ("levels",)}))  # one sub-backbone, joined to nothing
    beside = mine.but(student=part.but(squeeze={"kind": "distillation"}), baselines={"whole": part})
    with pytest.raises(UserError, match="the row 'whole' cannot be fine-tuned"):
        rehearse(beside, material, part)
    with pytest.raises(UserError, match="the row 'random initialisation' cannot be fine-tuned on 'masks'"):
        tried(model=whole.model)
    with pytest.raises(UserError, match="the specialist of 'level' has 4 maps") as caught:
        tried(student=part.but(squeeze={"kind": "distillation"}, specialists=QUICK, hint_levels=5))
    assert caught.value.field == "hint_levels"


CRASHES = {
    "a point": (finetune, "fit"),
    "a cell": (suite, "choose"),
    "the row that sees no image": (suite, "blind_score"),
    "a variant": (api, "must"),
}


@pytest.mark.parametrize("what", list(CRASHES))
def test_of_several_processes_none_goes_on_after_a_crash(tmp_path, monkeypatch, what):
    """The others wait for it: one that wrote down a failure and went on would leave them waiting."""

    def fail(*_, **__):
        raise RuntimeError("out of memory")

    module, name = CRASHES[what]
    monkeypatch.setattr(module, name, fail)
    monkeypatch.setattr(module, "world", lambda: 2)
    study = recipe().but(transfer={}, study={"one": ("seed=1",), "two": ("seed=2",)})
    if what == "a point":
        begin = partial(train_point, cell(tmp_path), Point(0.03, 4), 4, SILENT)
    else:
        begin = partial(tutelage.run, study if what == "a variant" else table(), tmp_path, SILENT)
    with pytest.raises(RuntimeError, match="out of memory"):
        begin()
    assert not list(tmp_path.rglob("failed.txt"))
    assert not list(tmp_path.glob("cell/*/point.json"))
    assert not list(tmp_path.glob("transfer/random/*/*/done.json"))
