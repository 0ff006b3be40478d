"""The report: arithmetic of its tables against figures worked out by hand, and a page that stands on its own."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from tutelage.cli import app
from tutelage.downstream import PROBE
from tutelage.errors import UserError
from tutelage.report import plots
from tutelage.report.averages import AVERAGE
from tutelage.report.export import as_csv, as_markdown
from tutelage.report.folder import moment_as_text, read_run, seconds_as_text
from tutelage.report.noise import Noise, noises
from tutelage.report.page import write_report
from tutelage.report.pictures import embed
from tutelage.report.tables import BadMeasurement, Measurement, detail_table, main_table
from tutelage.report.text import cell_text, plain_report
from tutelage.report.verdict import verdict
from tutelage.tasks.evidence import Hits
from tutelage.training.evaluate import Score, save_evidence
from tutelage.transfer.blind import BLIND
from tutelage.transfer.statistics import Comparison

HEADS = ("objects", "things", "street", "depth")
SETS = {
    "fine-classes": ("top-1", "teacher: objects"),
    "few-boxes": ("AP50", "teacher: things"),
    "few-masks": ("mIoU", "teacher: street"),
    "rooms": ("< 1.25", "teacher: depth"),
    "many-masks": ("mIoU", "teacher: street"),
    "normals": ("< 11.25 deg", "teacher: depth"),
}
FIGURES = {
    "random initialisation": (12.0, 30.7, 46.2, 71.9, 28.0, 61.6),
    "teacher: objects": (20.7, 30.2, 43.9, 73.4, 29.9, 60.9),
    "teacher: things": (19.5, 44.6, 45.1, 74.0, 30.3, 61.8),
    "teacher: street": (19.8, 41.6, 55.0, 81.7, 36.2, 63.9),
    "teacher: depth": (19.3, 37.5, 47.7, 81.3, 33.4, 65.0),
    "MuST student": (34.8, 42.4, 54.1, 84.8, 38.7, 66.2),
}


def line(row: str, column: str, value: float | None, **more: Any) -> dict[str, Any]:
    base = {"stage": "transfer", "row": row, "column": column, "metric": "top-1", "value": value, "seed": 0}
    return {**base, "higher_is_better": True, **more}


def measured(lines: Iterable[dict[str, Any]]) -> list[Measurement]:
    return [Measurement.of(entry) for entry in lines]


def write_lines(file: Path, lines: Iterable[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(entry) + "\n" for entry in lines))


def fake_run(run: Path, seeds: int = 1, side: int = 96, rows: int = 3) -> Path:
    """A run's folder as a finished run leaves it: every part there, figures and pictures made up."""
    noise = np.random.default_rng(0)
    run.mkdir(parents=True, exist_ok=True)
    (run / "recipe.yaml").write_text(_recipe_text())
    write_lines(run / "results.jsonl", _results(noise, seeds))
    for n, head in enumerate(HEADS):
        _stage(run / "teachers" / head, 38.0 + 9 * n, _curve(noise, [head], 600, 2.0 - 0.3 * n))
    _stage(run / "labels", 71.0, counts={"sources": {"animals": 3000, "crowd": 3000, "alley": 3000, "range": 3000}})
    counts = {h: {"read": 12000, "labelled": 9000, "human": 3000, "empty": 0, "quarantined": 0} for h in HEADS}
    counts["things"] |= {"boxes": 23451, "empty": 310, "quarantined": 2}
    (run / "labels" / "report.json").write_text(json.dumps({"heads": counts}))
    _stage(run / "student", 164.2, _curve(noise, HEADS, 1200, 2.2), moment="2026-01-01T10:04:00Z")
    for row in FIGURES:
        for name in SETS:
            slug = re.sub(r"[^a-z0-9]+", "-", row.lower())
            for seed in range(seeds):
                folder = run / "transfer" / slug / name / f"seed-{seed}"
                _stage(folder, 4.1, moment="2026-01-01T10:09:00Z", init=row)
                write_lines(folder / "rate-0.05-steps-300" / "curve.jsonl", _curve(noise, [name], 300, 1.5))
                (folder / "rate-0.05-steps-300" / "weights.safetensors").touch()
    _stage(run / "evaluate", 9.4, moment="2026-01-01T10:05:00Z")
    for folder, group in (("labels", "pseudo labels"), ("evaluate", "predictions")):
        _pictures(noise, run / folder, group, side, rows)
    return run


def _recipe_text() -> str:
    names = zip(("animals", "crowd", "alley", "range"), HEADS, strict=True)
    sources = "".join(f"  {name}:\n    format: scenes\n    head: {head}\n" for name, head in names)
    heads = "".join(f"  {head}:\n    task: any\n" for head in HEADS)
    sets = "".join(f"  {name}:\n    head: any\n" for name in SETS)
    rest = f"heads:\n{heads}teachers:\n{heads}transfer:\n{sets}"
    return f"name: MuST on scenes\nseed: 0\nsources:\n{sources}  pool:\n    format: scenes\n{rest}"


def _results(noise: np.random.Generator, seeds: int) -> Iterable[dict[str, Any]]:
    for seed in range(seeds):
        for row, figures in FIGURES.items():
            for (name, (metric, _)), value in zip(SETS.items(), figures, strict=True):
                off = 0.0 if seeds == 1 else float(noise.normal(0, 1.2))
                extras = {"n": 400, "rate": 0.05, "steps": 300, "seed": seed}
                yield line(row, name, value + off, metric=metric, **extras)
                if name == "rooms":
                    worse = (100 - value) / 100
                    yield line(row, name, worse, metric="abs. rel.", higher_is_better=False, **extras)
    pairs = (("top-1", 61, 58), ("AP50", 48, 49), ("mIoU", 52, 52), ("< 1.25", 80, 84))
    for head, (metric, *pair) in zip(HEADS, pairs, strict=True):
        for row, value in zip(("teacher", "student"), pair, strict=True):
            for seed in range(seeds):
                yield line(row, head, float(value) + seed, stage="upstream", metric=metric, n=500, seed=seed)


def _curve(noise: np.random.Generator, heads: Iterable[str], steps: int, start: float) -> list[dict[str, Any]]:
    points = []
    for step in (*range(0, steps, 5), steps - 1):
        fall = {
            h: (start - 0.2 * n) * math.exp(-step / (80 + 60 * n)) + 0.15 + 0.1 * n + abs(float(noise.normal(0, 0.03)))
            for n, h in enumerate(heads)
        }
        points.append(
            {"step": step, "loss": sum(fall.values()), "rate": 0.1, "images_per_second": 310.0, "heads": fall}
        )
    return points


def _stage(
    folder: Path,
    seconds: float,
    curve: Any = None,
    counts: Any = None,
    moment: str = "2026-01-01T10:00:00Z",
    init: str = "",
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stage.json").write_text(json.dumps({"part": {"init": init} if init else {}}))
    done = {"seconds": seconds, "finished": moment, "versions": {"torch": "2.15.0"}, "machine": "2 cores"}
    (folder / "done.json").write_text(json.dumps(done | ({"counts": counts} if counts else {})))
    if curve:
        write_lines(folder / "curve.jsonl", curve)


def _pictures(noise: np.random.Generator, folder: Path, group: str, side: int, rows: int) -> None:
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    lines = []
    for row in range(rows):
        photo = _photo(noise, side)
        panels = [("photo", photo)]
        for n, head in enumerate(HEADS):
            whats = ("teacher",) if group == "pseudo labels" else ("truth", "student")
            panels += [(f"{head}: {what}", _painted(photo, n, m)) for m, what in enumerate(whats)]
        entries = []
        for n, (caption, picture) in enumerate(panels):
            picture.save(folder / "pictures" / f"{row:03d}-{n}.png")
            entries.append({"file": f"pictures/{row:03d}-{n}.png", "caption": caption})
        lines.append({"group": group, "image": f"pool/{row:06d}", "panels": entries})
    write_lines(folder / "pictures.jsonl", lines)


def _photo(noise: np.random.Generator, side: int) -> Image.Image:
    down = np.linspace(190, 90, side)[:, None, None] + noise.normal(0, 6, (side, side, 3))
    picture = Image.fromarray(np.clip(down, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for _ in range(3):
        x, y = (int(v) for v in noise.integers(4, side * 2 // 3, 2))
        pen.ellipse((x, y, x + side // 4, y + side // 4), fill=tuple(int(v) for v in noise.integers(40, 230, 3)))
    return picture


def _painted(photo: Image.Image, head: int, shift: int) -> Image.Image:
    picture, side = photo.copy(), photo.width
    pen = ImageDraw.Draw(picture)
    box = (side // 4 + 3 * shift, side // 4, side * 3 // 4 + 3 * shift, side * 3 // 4)
    if head < 2:
        pen.rectangle(box, outline=(255, 210, 0), width=2)
        return picture
    pen.rectangle(box, fill=(40 + 60 * head, 90, 200 - 40 * head))
    return picture if head == 2 else picture.convert("L").convert("RGB")


# Tables


def test_mean_spread_and_gain_are_those_worked_out_by_hand() -> None:
    lines = [line("random initialisation", "a", v, seed=s) for s, v in enumerate((10.0, 12.0, 14.0))]
    lines += [line("MuST student", "a", v, seed=s) for s, v in enumerate((20.0, 21.0, 25.0))]
    table = main_table(measured(lines), "transfer")
    assert table is not None
    student = table.cell("MuST student", 0)
    assert (student.n, table.seeds) == (3, 3)
    assert student.mean == pytest.approx(22.0)
    assert student.spread == pytest.approx(math.sqrt((4 + 1 + 9) / 2))  # divided by n - 1
    assert table.gain("MuST student", 0) == pytest.approx(10.0)
    assert table.gain("random initialisation", 0) is None
    assert table.best(0) == {"MuST student"}


def test_one_seed_has_no_spread_and_one_row_no_best() -> None:
    table = main_table(measured([line("only", "a", 5.0)]), "transfer")
    assert table is not None
    assert table.cell("only", 0).spread is None
    assert table.best(0) == set()
    assert main_table([], "transfer") is None
    assert main_table(measured([line("only", "a", 5.0)]), "upstream") is None


def test_lower_is_better_turns_the_comparison_but_not_the_sign_of_the_difference() -> None:
    lines = [line(r, "a", v, metric="RMSE", higher_is_better=False) for r, v in (("base", 0.5), ("x", 0.4), ("y", 0.6))]
    table = main_table(measured(lines), "transfer")
    assert table is not None
    assert table.best(0) == {"x"}
    assert table.compare("x", "base", 0) == 1
    assert table.compare("y", "base", 0) == -1
    assert table.columns[0].signed(table.gain("x", 0) or 0) == "\N{MINUS SIGN}0.100"


def test_figures_that_look_level_are_level() -> None:
    lines = [line("base", "a", 30.0), line("x", "a", 40.04), line("y", "a", 39.96)]
    table = main_table(measured(lines), "transfer")
    assert table is not None
    assert table.best(0) == {"x", "y"}
    assert table.compare("x", "y", 0) == 0
    assert table.columns[0].signed(0.04) == table.columns[0].signed(-0.04) == "±0.0"


def test_a_column_of_equal_figures_has_no_best() -> None:
    table = main_table(measured(line(r, "a", 8.58) for r in ("base", "x", "MuST student")), "transfer")
    assert table is not None
    assert table.level(0)
    assert table.best(0) == set()
    assert "On a all rows have the same figure" in " ".join(verdict(table, None))


def test_the_first_metric_of_a_column_makes_the_main_table_and_the_rest_the_details() -> None:
    lines = [line("r", "a", 1.0), line("r", "a", 2.0, metric="top-5"), line("r", "b", 3.0, metric="mIoU")]
    lines += [line("s", "a", 5.0), line("s", "a", 4.0, metric="top-5")]
    main, detail = main_table(measured(lines), "transfer"), detail_table(measured(lines), "transfer")
    assert main is not None
    assert detail is not None
    assert [(c.name, c.metric) for c in main.columns] == [("a", "top-1"), ("b", "mIoU")]
    assert [(c.name, c.metric) for c in detail.columns] == [("a", "top-5")]
    assert (main.mean("s", 0), detail.mean("s", 0)) == (5.0, 4.0)
    assert main.mean("s", 1) is None


def test_rows_stand_in_the_papers_order_whatever_finished_first() -> None:
    rows = ("MuST student", "teacher: b", "random initialisation", "teacher: a")
    table = main_table(measured(line(r, "a", 1.0) for r in rows), "transfer")
    assert table is not None
    assert table.rows == ("random initialisation", "teacher: b", "teacher: a", "MuST student")


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_failed_seed_is_told_and_does_not_enter_the_mean(value: float | None) -> None:
    lines = [line("base", "a", 1.0), line("x", "a", 4.0), line("x", "a", value, seed=1)]
    table = main_table(measured(lines), "transfer")
    assert table is not None
    assert table.mean("x", 0) == 4.0
    assert [(row, column) for row, column, _ in table.failures()] == [("x", "a")]


def test_a_value_counts_although_other_settings_failed_on_the_way() -> None:
    measured_line = Measurement.of(line("r", "a", 3.0, failed="rate 0.3: the loss became NaN", validation=None))
    assert (measured_line.value, measured_line.failed) == (3.0, "")
    assert measured_line.extras == {"failed on the way": "rate 0.3: the loss became NaN"}


@pytest.mark.parametrize("change", [{"row": None}, {"metric": ""}, {"value": "3"}, {"value": True}])
def test_a_line_that_is_no_measurement_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadMeasurement):
        Measurement.of(line("r", "a", 1.0) | change)


def test_the_number_of_test_images_is_shown_where_all_agree() -> None:
    table = main_table(
        measured([line("r", "a", 1.0, n=9), line("s", "a", 1.0, n=9), line("r", "b", 1.0, n=8)]), "transfer"
    )
    assert table is not None
    assert [c.images for c in table.columns] == [9, 8]
    table = main_table(measured([line("r", "a", 1.0, n=9), line("s", "a", 1.0, n=8)]), "transfer")
    assert table is not None
    assert table.columns[0].images is None


# Verdict


def test_the_verdict_counts_what_the_table_shows(tmp_path: Path) -> None:
    run = read_run(fake_run(tmp_path))
    text = " ".join(verdict(main_table(run.measurements, "transfer"), main_table(run.measurements, "upstream")))
    assert (
        "Of six ways to initialise a network, the MuST student is the best on four of the six downstream sets" in text
    )  # not few-boxes, not few-masks
    assert "better than random initialisation on all six, most on fine-classes (top-1 34.8 against 12.0)" in text
    assert "chosen anew for each set, on four of the six" in text
    assert "furthest behind on few-boxes (AP50 42.4 against 44.6)" in text
    assert "better on things and depth, worse on objects, level on street" in text
    assert "one seed" in text


def test_the_verdict_says_on_how_many_sets_the_student_is_clearly_ahead(tmp_path: Path) -> None:
    run = read_run(fake_run(tmp_path))

    def judge(row: str, other: str, column: str, metric: str) -> Comparison:
        return Comparison(1.0, 0.5, 2.0, 3, 10) if column == "depth" else Comparison(1.0, -0.5, 2.0, 3, 10)

    text = " ".join(verdict(main_table(run.measurements, "transfer", judge), None))
    assert "the best on four of the six downstream sets (none of them by more than the noise)" in text
    assert "chosen anew for each set, on four of the six (none of them by more than the noise)" in text
    columns = main_table(run.measurements, "transfer").columns
    led = next(column.name for column in columns if column.name not in ("few-boxes", "few-masks"))
    clear = Comparison(
        1.0, *((0.5, 2.0) if next(c for c in columns if c.name == led).higher_is_better else (-2.0, -0.5)), 3, 10
    )
    some = main_table(run.measurements, "transfer", lambda r, o, c, m: clear if c == led else judge(r, o, c, m))
    assert "downstream sets (one of them by more than the noise)" in " ".join(verdict(some, None))


def test_the_verdict_knows_what_the_seeds_do_not_repeat() -> None:
    lines = [line(r, "a", v + s, seed=s) for r, v in (("random initialisation", 1.0), ("x", 3.0)) for s in (0, 1)]
    table = main_table(measured(lines), "transfer")
    told = "how much another pre-training would change is not known"
    assert told in " ".join(verdict(table, None, learned_once=True))
    assert told not in " ".join(verdict(table, None))


def test_the_best_of_several_is_named_with_what_the_noise_leaves() -> None:
    values = {"random initialisation": (1.0, 1.0), "x": (5.0, 2.0), "y": (3.0, 1.5), BLIND: (0.5, 0.5)}
    lines = [line(r, c, v, control=v < 1.2) for r, pair in values.items() for c, v in zip("ab", pair, strict=True)]

    def judge(row: str, other: str, column: str, metric: str) -> Comparison:
        return Comparison(1.0, 0.5 if column == "a" else -0.5, 2.0, 1, 10)

    text = " ".join(verdict(main_table(measured(lines), "transfer", judge), None))
    assert "on a: x; on b: x. Ahead of the second best by more than the noise: on one of the two columns." in text
    assert "The best start that was pre-trained (the best of two by these very figures, which flatters it) is" in text
    assert (
        f"Better, but inside the noise, than {BLIND}, which never looks at an image: all three other rows on b." in text
    )
    names = {"a": "a", "b": f"a{PROBE}"}
    lines = [
        {**entry, "column": names[entry["column"]], "row": entry["row"].replace("x", "student")} for entry in lines
    ]
    assert "on all two columns" in verdict(main_table(measured(lines), "transfer"), None)[0]


def test_the_verdict_does_not_flatter() -> None:
    lines = [line(r, "a", v) for r, v in (("random initialisation", 9.0), ("teacher: t", 8.0), ("MuST student", 7.0))]
    text = " ".join(verdict(main_table(measured(lines), "transfer"), None))
    assert "on none (there is one downstream set)" in text
    assert "worse on a" in text
    assert "furthest behind on a (top-1 7.00 against 8.00)" in text


def test_the_verdict_weighs_differences_against_the_seeds(tmp_path: Path) -> None:
    lines = [line("random initialisation", "clear", v, seed=s) for s, v in enumerate((10.0, 11.0))]
    lines += [line("MuST student", "clear", v, seed=s) for s, v in enumerate((20.0, 21.3))]
    lines += [line("random initialisation", "noisy", v, seed=s) for s, v in enumerate((10.0, 20.0))]
    lines += [line("MuST student", "noisy", v, seed=s) for s, v in enumerate((18.0, 16.0))]
    write_lines(tmp_path / "results.jsonl", lines)
    text = " ".join(plain_report(tmp_path).split())
    assert (
        "By the 95% intervals, pre-training helped on one of the two and had no effect beyond the noise on noisy"
        in text
    )
    assert "over the 2 seeds alone" in text
    assert "one seed" not in text


def test_without_figures_the_verdict_says_so() -> None:
    assert "Nothing has been measured yet" in verdict(None, None)[0]
    failed = main_table(measured([line("MuST student", "a", None, failed="out of memory")]), "transfer")
    assert verdict(failed, None) == ["There is no figure: one measurement failed; the report says why."]
    led = " ".join(verdict(main_table(measured([line("x", "a", 1.0), line("y", "a", 2.0)]), "transfer"), None))
    assert "on a: y" in led


# What is noise: figures with their evidence

COMPARED = {
    "random initialisation": {"order": 0, "control": True},
    "initial weights": {"order": 1, "control": True},
    "few labels": {"order": 2},
    "MuST student without depth": {"order": 3, "without": "depth"},
    "MuST student": {"order": 4},
}
SHARES = {"fine": (0.2, 0.5, 0.52, 0.55, 0.75), "flat": (0.5, 0.51, 0.5, 0.52, 0.5)}


def compared_run(run: Path, seeds: int = 2, images: int = 300, ending: str = "") -> Path:
    """A run's folder with a transfer table only and the evidence of every image; `ending` is that of its columns."""
    random = np.random.default_rng(0)
    lines = []
    for name, shares in SHARES.items():
        hard = random.random(images)
        ids = [f"{name}-{n}" for n in range(images)]
        for seed in range(seeds):
            for (row, about), share in zip(COMPARED.items(), shares, strict=True):
                folder = run / "transfer" / row.replace(" ", "-") / (name + ending) / f"seed-{seed}"
                right = hard + random.normal(0, 0.05, images) < share
                evidence = Hits(right, right, np.zeros(images, np.int32), np.array(2))
                found = Score("top-1", frozenset(), {"top-1": 100 * right.mean()}, images, evidence, tuple(ids))
                more = about | {"seed": seed, "n": images, "rate": 0.02, "steps": 300 * (1 + seed)}
                more["edge"] = "rate low" if row == "few labels" else ""
                mine = [line(row, name + ending, found.value, **more)]
                _stage(folder, 1.0)
                save_evidence(folder / "evidence.npz", found)
                write_lines(folder / "results.jsonl", mine)
                lines += mine
    write_lines(run / "results.jsonl", lines[::-1])
    return run


def test_rows_stand_in_the_order_that_the_run_wrote(tmp_path: Path) -> None:
    table = main_table(read_run(compared_run(tmp_path)).measurements, "transfer")
    assert table is not None
    assert table.rows == tuple(COMPARED)
    assert table.controls == ("random initialisation", "initial weights")
    assert table.without == {"MuST student without depth": "depth"}


def test_gains_inside_the_noise_are_marked(tmp_path: Path) -> None:
    run = read_run(compared_run(tmp_path))
    noise = Noise(run)
    table = main_table(run.measurements, "transfer", noise.between)
    assert table is not None
    fine, flat = (n for n, _ in sorted(enumerate(table.columns), key=lambda c: c[1].name))
    assert table.clearly("MuST student", table.rows[0], fine) == 1
    assert table.clearly(table.rows[0], "MuST student", fine) == -1
    assert table.clearly("MuST student", table.rows[0], flat) == 0
    found = table.interval("MuST student", table.rows[0], fine)
    assert found is not None
    assert (found.seeds, found.images) == (2, 300)
    assert found.low < (table.gain("MuST student", fine) or 0) < found.high
    assert "≈" not in cell_text(table, "MuST student", fine)[1]
    assert cell_text(table, "MuST student", flat)[1].endswith(" ≈")
    assert noise.faults == []
    text = " ".join(verdict(table, None))
    assert "It is better than initial weights on one of the two" in text
    assert (
        "By the 95% intervals, pre-training helped on one of the two and had no effect beyond the noise on flat. "
        "Against random initialisation: clearly better on fine, no clear difference on flat." in text
    )


def against(figures: dict[str, tuple[float, ...]], clear: float | None = None) -> str:
    """The verdict on some rows and the sets a, b, ...; differences of at least `clear` are beyond the noise."""
    controls = {"random initialisation", "image-blind", "ImageNet weights (a1_in1k)", "mine"}
    rows = [line(r, "abcd"[n], v, control=r in controls) for r, values in figures.items() for n, v in enumerate(values)]
    known = {(row["row"], row["column"]): row["value"] for row in rows}

    def judge(row: str, other: str, column: str, metric: str) -> Comparison:
        apart = known[row, column] - known[other, column]
        return Comparison(apart, apart - (clear or 0), apart + (clear or 0), 1, 9)

    return " ".join(verdict(main_table(measured(rows), "transfer", None if clear is None else judge), None))


def test_pretraining_is_judged_against_none_and_other_pretraining_in_a_sentence_of_its_own() -> None:
    base = {"random initialisation": (10.0, 10.0, 10.0), "image-blind": (5.0, 5.0, 5.0)}
    figures = base | {"ImageNet weights (a1_in1k)": (90.0, 10.0, 30.0), "MuST student": (50.0, 50.0, 31.0)}
    text = against(figures, clear=2.0)
    assert "It is better than both random initialisation and image-blind on all three" in text
    assert (
        "By the 95% intervals, pre-training helped on all three. Against ImageNet weights (a1_in1k): clearly better on "
        "b, clearly worse on a, no clear difference on c." in text
    )
    text = against(figures)
    assert "Against ImageNet weights (a1_in1k): better on b and c, worse on a." in text
    assert "95%" not in text
    one = {row: values[:1] for row, values in figures.items()}
    assert "Against ImageNet weights (a1_in1k): clearly worse on a." in against(one, clear=2.0)
    assert "helped on the one set" in against(one, clear=2.0)


def test_upstream_figures_inside_the_noise_are_no_gain() -> None:
    figures = {"teacher": (40.0, 50.0, 60.0, 10.0), "student": (40.1, 59.0, 50.0, 10.0)}
    rows = [line(r, "abcd"[n], v, stage="upstream") for r, values in figures.items() for n, v in enumerate(values)]

    def judge(row: str, other: str, column: str, metric: str) -> Comparison | None:
        apart = figures[row]["abcd".index(column)] - figures[other]["abcd".index(column)]
        return None if column == "d" else Comparison(apart, apart - 2, apart + 2, 1, 9)

    said = "On the teachers' own tasks, the one student against each teacher: "
    text = " ".join(verdict(None, main_table(measured(rows), "upstream", judge)))
    assert f"{said}clearly better on b, clearly worse on c, no clear difference on a, level on d." in text
    text = " ".join(verdict(None, main_table(measured(rows), "upstream")))
    assert f"{said}better on a and b, worse on c, level on d." in text


def test_controls_that_are_all_pretrained_say_nothing_of_none() -> None:
    figures = {"mine": (90.0, 10.0, 30.0), "other": (91.0, 11.0, 31.0), "image-blind": (5.0, 5.0, 5.0)}
    text = against(figures, clear=0.5)
    assert "Against mine: clearly better on all three sets." in text
    assert "pre-training helped" not in text
    assert "random" not in text


def test_upstream_rows_of_one_stage_name_their_evidence(tmp_path: Path) -> None:
    random, lines, ids = np.random.default_rng(1), [], tuple(map(str, range(200)))
    _stage(tmp_path / "evaluate", 1.0)
    for number, (row, share) in enumerate((("teacher", 0.4), ("student", 0.6), ("other", 0.42))):
        right = random.random(200) < share
        found = Score("top-1", frozenset(), {}, 200, Hits(right, right, np.zeros(200, np.int32), np.array(2)), ids)
        assert save_evidence(tmp_path / "evaluate" / f"evidence-{number}.npz", found)
        more = {"stage": "upstream", "evidence": f"evidence-{number}.npz", "n": 200}
        lines.append(line(row, "fine", 100 * right.mean(), **more))
    write_lines(tmp_path / "evaluate" / "results.jsonl", lines)
    run = read_run(tmp_path)
    found = noises(run)["upstream"].between("student", "teacher", "fine", "top-1")
    assert found is not None
    assert found.images == 200
    assert found.low < lines[1]["value"] - lines[0]["value"] < found.high
    assert found.low > 0
    near = noises(run)["upstream"].between("other", "teacher", "fine", "top-1")
    assert near is not None
    assert near.low < 0 < near.high
    with pytest.raises(UserError, match="the transfer figures of this run have no row 'student'") as caught:
        noises(run)["transfer"].between("student", "teacher", "fine", "top-1")
    assert "name another `stage`" in (caught.value.fix or "")


def test_names_that_the_run_does_not_have_are_no_noise(tmp_path: Path) -> None:
    lines = [line("MuST student", "rooms", 1.0), line("other", "rooms", 2.0), line("failed", "rooms", None)]
    lines += [line("other", "boxes", 1.0, metric="AP50")]
    write_lines(tmp_path / "results.jsonl", lines)
    noise = Noise(read_run(tmp_path))
    for absent in (
        ("MuST student", "other", "rooms", "top-1"),  # a seed, and no evidence
        ("MuST student", "failed", "rooms", "top-1"),
        ("other", "MuST student", "boxes", "AP50"),  # an empty cell
    ):
        assert noise.between(*absent) is None
    for wrong, what in (
        (("MUST student", "other", "rooms", "top-1"), "row 'MUST student', did you mean 'MuST student'"),
        (("other", "MuST stdent", "rooms", "top-1"), "row 'MuST stdent', did you mean 'MuST student'"),
        (("MuST student", "other", "room", "top-1"), "column 'room', did you mean 'rooms'"),
        (("MuST student", "other", "rooms", "top1"), "metric 'top1', did you mean 'top-1'"),
        (("MuST student", "other", "rooms", "AP50"), "metric 'AP50'$"),  # of another column
    ):
        with pytest.raises(UserError) as caught:
            noise.between(*wrong)
        assert re.search(f"have no {what}", caught.value.problem)


def test_stages_that_finish_after_the_table_are_shown(tmp_path: Path) -> None:
    write_lines(tmp_path / "results.jsonl", [line("a", "x", 1.0), line("b", "x", 2.0)])
    for row, value, later in (("a", 1.5, False), ("b", 2.5, True), ("c", 3.0, True)):
        folder = tmp_path / "transfer" / row
        write_lines(folder / "results.jsonl", [line(row, "x", value)])
        for name in ("stage.json", "done.json"):
            (folder / name).write_text("{}")
        when = (tmp_path / "results.jsonl").stat().st_mtime_ns + (10**9 if later else -(10**9))
        os.utime(folder / "done.json", ns=(when, when))
    found = read_run(tmp_path)
    assert {m.row: m.value for m in found.measurements} == {"a": 1.0, "b": 2.5, "c": 3.0}
    assert not found.faults


def test_what_no_seed_changes_is_not_clear(tmp_path: Path) -> None:
    lines = [line(row, "a", value, seed=s) for row, value in (("first", 9.0), ("other", 9.01)) for s in range(3)]
    write_lines(tmp_path / "results.jsonl", lines)
    assert Noise(read_run(tmp_path)).between("other", "first", "a", "top-1") is None


def test_rows_are_compared_over_the_seeds_that_both_have(tmp_path: Path) -> None:
    lines = [line("random initialisation", "a", v, seed=s) for s, v in enumerate((10.0, 20.0, 30.0))]
    lines += [line("MuST student", "a", v, seed=s) for s, v in ((1, 19.0), (2, 29.5))]
    lines.append(line("MuST student", "a", None, seed=0, failed="out of memory"))
    write_lines(tmp_path / "results.jsonl", lines)
    run = read_run(tmp_path)
    table = main_table(run.measurements, "transfer", Noise(run).between)
    assert table is not None
    assert table.mean("MuST student", 0) == 24.25
    assert table.gain("MuST student", 0) == table.difference("MuST student", "random initialisation", 0) == -0.75
    assert table.compare("MuST student", "random initialisation", 0) == -1
    assert table.best(0) == {"random initialisation"}
    found = table.interval("MuST student", "random initialisation", 0)
    assert found is not None
    assert found.low <= -0.75 <= found.high


def test_tables_intervals_and_words_tell_the_same_difference_where_a_seed_failed(tmp_path: Path) -> None:
    lines = [line("random initialisation", "a", v, seed=s, control=True) for s, v in enumerate((10.0, 20.0, 30.0))]
    lines += [line("MuST student", "a", v, seed=s) for s, v in ((1, 25.0), (2, 36.0))]
    write_lines(tmp_path / "results.jsonl", lines)
    text = " ".join(checked(tmp_path).text.split())
    assert text.count("+5.5") == 2  # in the table, and with its interval; the means of all seeds are 10.5 apart
    assert "+10.5" not in text
    assert "most on a (top-1 30.5 against 25.0)" in text


def test_where_less_is_better_a_clear_loss_of_the_figure_is_a_gain(tmp_path: Path) -> None:
    rows = (("random initialisation", 9.0), ("better", 3.0), ("worse", 12.0))
    more = {"metric": "RMSE", "higher_is_better": False}
    lines = [line(row, "a", value * (1 + seed / 100), seed=seed, **more) for row, value in rows for seed in range(3)]
    write_lines(tmp_path / "results.jsonl", lines)
    run = read_run(tmp_path)
    table = main_table(run.measurements, "transfer", Noise(run).between)
    assert table is not None
    assert [table.clearly(row, "random initialisation", 0) for row in ("better", "worse")] == [1, -1]


def test_a_table_without_a_student_is_compared_with_its_controls_too(tmp_path: Path) -> None:
    lines = [line(r, "a", v, control=c) for r, v, c in (("torch", 9.0, False), ("random initialisation", 3.0, True))]
    text = " ".join(verdict(main_table(measured(lines), "transfer"), None))
    assert "The best start that was pre-trained is better than random initialisation on the one set" in text
    lines[1]["value"] = 12.0
    text = " ".join(verdict(main_table(measured(lines), "transfer"), None))
    assert "on none (there is one set), and worse on a" in text


def test_the_page_tells_settings_intervals_and_what_each_teacher_gave(tmp_path: Path) -> None:
    page = checked(compared_run(tmp_path))
    text = " ".join(page.text.split())
    assert "What each teacher gave" in text
    assert "Beyond the noise, depth helped fine." in text
    assert "seed 0: 0.02 × 300" in text
    assert "0.02 × 600 lowest rate" in text
    assert "4 of 20 choices lie at the edge of their grid" in text
    assert "paired bootstrap over 2 seeds and the test images" in text
    assert "with their 95% intervals" in text
    html = (tmp_path / "report.html").read_text()
    gave = html[html.index('<section id="contributions"') :]
    table = main_table(read_run(tmp_path).measurements, "transfer")
    assert table is not None
    column = [c.name for c in table.columns].index("fine")
    gain = (table.mean("MuST student", column) or 0) - (table.mean("MuST student without depth", column) or 0)
    assert f'<span class="good">+{gain:.1f}</span>' in gave[: gave.index("</section>")]


def test_one_seed_and_evidence_have_intervals_over_images(tmp_path: Path) -> None:
    text = " ".join(plain_report(compared_run(tmp_path, seeds=1)).split())
    assert "the test images alone, as there is one seed" in text
    assert "≈" in text
    assert "All figures come from one seed" in text


def test_evidence_of_a_row_that_is_asked_for_no_longer_is_not_that_of_another_of_its_name(tmp_path: Path) -> None:
    run = compared_run(tmp_path)
    wanted = noises(read_run(run))["transfer"].between("MuST student", "random initialisation", "fine", "top-1")
    mine, left = (run / "transfer" / name / "fine" / "seed-0" for name in ("MuST-student", "given-MuST-student"))
    shutil.copytree(mine, left)
    assert sorted([mine, left])[-1] == left, "the later one would count"
    other = run / "transfer" / "random-initialisation" / "fine" / "seed-0" / "evidence.npz"
    (left / "evidence.npz").write_bytes(other.read_bytes())
    rows = [row | {"value": 1.0} for row in map(json.loads, (left / "results.jsonl").read_text().splitlines())]
    write_lines(left / "results.jsonl", rows)
    found = noises(read_run(run))["transfer"].between("MuST student", "random initialisation", "fine", "top-1")
    assert found == wanted


def test_evidence_that_cannot_be_used_is_told_and_the_seeds_are_left(tmp_path: Path) -> None:
    run = compared_run(tmp_path)
    (run / "transfer" / "MuST-student" / "fine" / "seed-0" / "evidence.npz").write_text("cut")
    other = run / "transfer" / "MuST-student" / "flat" / "seed-1" / "evidence.npz"
    other.write_bytes((run / "transfer" / "MuST-student" / "fine" / "seed-1" / "evidence.npz").read_bytes())
    page = checked(run)
    assert "the evidence of a test cannot be read" in page.text
    assert "not tested on the same images" in page.text
    assert "elsewhere over the 2 seeds alone" in page.text


def test_the_table_can_be_pasted_and_computed_with(tmp_path: Path) -> None:
    run = compared_run(tmp_path)
    write_report(run)
    rows = list(csv.DictReader(io.StringIO((run / "transfer.csv").read_text())))
    assert len(rows) == len(COMPARED) * len(SHARES)
    mine = next(row for row in rows if row["initialisation"] == "MuST student" and row["downstream set"] == "fine")
    table = main_table(read_run(run).measurements, "transfer")
    assert table is not None
    column = [c.name for c in table.columns].index("fine")
    assert float(mine["mean"]) == table.mean("MuST student", column)
    assert float(mine["gain low"]) < float(mine["gain"]) < float(mine["gain high"])
    assert (mine["noise"], mine["seeds"], mine["test images"]) == ("no", "2", "300")
    base = next(row for row in rows if row["initialisation"] == "random initialisation")
    assert (base["gain"], base["gain low"], base["noise"], base["control"]) == ("", "", "", "yes")
    lines = (run / "transfer.md").read_text().splitlines()
    assert lines[0].startswith("| initialisation | ")
    assert all(text.count("|") == 4 for text in lines[: 2 + len(COMPARED)])
    assert sum("**" in text for text in lines) >= 1
    assert "≈" in lines[3 + len(COMPARED)]


def test_the_chosen_settings_stand_beside_the_figures(tmp_path: Path) -> None:
    run = compared_run(tmp_path)
    probed = {"metric": "top-1", "l2": 0.1, "edge": "l2 high"}
    lines = [line("few labels", f"seen{PROBE}", 50.0 + seed, seed=seed, order=2, **probed) for seed in (0, 1)]
    lines += [line("few labels", f"seen{PROBE}", 40.0, seed=0, order=2, metric="k-NN top-1")]
    lines += [line("few labels", f"seen{PROBE}", None, seed=2, order=2, failed="no", **probed)]
    with (run / "results.jsonl").open("a") as stream:
        stream.writelines(json.dumps(entry) + "\n" for entry in lines)
    write_report(run)
    rows = list(csv.DictReader(io.StringIO((run / "transfer.csv").read_text())))
    found = {
        (row["initialisation"], row["downstream set"]): tuple(row[key] for key in ("rate", "steps", "L2", "edge"))
        for row in rows
    }
    assert found["MuST student", "fine"] == ("0.02;0.02", "300;600", "", "")
    assert found["few labels", "flat"] == ("0.02;0.02", "300;600", "", "lowest rate;lowest rate")
    assert found["few labels", f"seen{PROBE}"] == ("", "", "0.1;0.1", "highest L2;highest L2")
    assert found["MuST student", f"seen{PROBE}"] == ("",) * 4
    said = "seed 0: 0.02 × 300 (lowest rate); seed 1: 0.02 × 600 (lowest rate)"
    note = "6 of 22 choices lie at the edge of their grid"
    markdown = (run / "transfer.md").read_text().split("Chosen settings")[1]
    cells = {text.split(" | ")[0].strip("| "): text.strip("| ").split(" | ")[1:] for text in markdown.splitlines()}
    assert sorted(cells["few labels"]) == sorted([said, said, "L2 0.1 (highest L2)"])
    assert cells["MuST student"].count("–") == 1
    assert note in markdown
    text = plain_report(run, width=400)
    assert text.count(said) == 2
    assert "L2 0.1 (highest L2)" in text
    assert note in " ".join(text.split())


def test_a_run_ends_with_its_tables_on_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = compared_run(tmp_path)
    monkeypatch.setattr("tutelage.api.run", lambda recipe, out, jobs: out / "report.html")
    result = CliRunner().invoke(app, ["run", "demo", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert plain_report(out) in result.output
    assert result.output.rstrip().endswith("report.html")
    monkeypatch.setenv("RANK", "1")
    assert not CliRunner().invoke(app, ["run", "demo", "--out", str(out)]).output


def test_without_settings_there_is_no_table_of_them(tmp_path: Path) -> None:
    lines = [line("a", "c", 1.0), line("b", "c", 2.0, rate=math.nan, steps=None)]
    write_lines(tmp_path / "results.jsonl", lines)
    write_report(tmp_path)
    assert "Chosen" not in (tmp_path / "transfer.md").read_text()
    assert "chosen settings" not in plain_report(tmp_path)


def test_names_cannot_break_a_table_that_is_pasted() -> None:
    table = main_table(measured([line("a|b\n", "c\nd", 1.0), line("e", "c\nd", 2.0)]), "transfer")
    assert table is not None
    assert [text.replace("\\|", "").count("|") for text in as_markdown(table, {}).splitlines()[:4]] == [3] * 4
    assert len(list(csv.DictReader(io.StringIO(as_csv(table, {}))))) == 2


def test_without_a_transfer_there_is_no_table_to_paste(tmp_path: Path) -> None:
    write_lines(tmp_path / "results.jsonl", [line("teacher", "a", 1.0, stage="upstream")])
    write_report(tmp_path)
    assert not list(tmp_path.glob("transfer.*"))


# Page


class Checker(HTMLParser):
    """Balanced tags, and what a page points at."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.links: list[str] = []
        self.text = ""
        self.ids: list[str] = []
        self.bare: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        named = dict(attrs)
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "data")]
        self.ids += [v for k, v in attrs if k == "id" and v]
        if (tag == "img" and not named.get("alt")) or (tag == "th" and not named.get("scope")):
            self.bare.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def checked(run: Path) -> Checker:
    """The written page, parsed; checks what holds for every page."""
    file = write_report(run)
    assert file == run / "report.html"
    html = file.read_text()
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    assert checker.bare == []
    assert len(set(checker.ids)) == len(checker.ids)
    for link in checker.links:
        assert link.startswith("data:image/") or link[1:] in checker.ids, link
    assert checker.tags["script"] == checker.tags["link"] == checker.tags["iframe"] == 0
    assert "url(" not in html
    assert "@import" not in html
    assert not [p for p in run.iterdir() if p.name.endswith(".part")]
    return checker


def test_notes_of_stages_are_a_list_each_text_once(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    assert ">Notes<" not in write_report(run).read_text()
    write_lines(run / "student" / "notes.jsonl", [{"note": "no <cat> was seen"}, {"note": "a head begins fresh"}])
    write_lines(run / "teachers" / "objects" / "notes.jsonl", [{"note": "no <cat> was seen"}])
    text = write_report(run).read_text()
    assert text.count("no &lt;cat&gt; was seen <small>(student, teachers/objects)</small>") == 1
    assert "<li>a head begins fresh <small>(student)</small></li>" in text
    assert ">Notes</h2>" in text


def test_what_a_stage_set_aside_is_noted_with_a_count(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    aside = [{"id": f"pool/{k}.jpg", "sha256": "", "stage": "student", "reason": "it is <cut> short"} for k in (1, 2)]
    for stage in ("student", *(f"transfer/cell-{k}" for k in range(5))):
        write_lines(run / stage / "stage.json", [{"part": {}}])
        write_lines(run / stage / "quarantine.jsonl", [*aside, {**aside[0], "reason": "met again"}])
    text = write_report(run).read_text()
    assert (
        "<li>2 of its images or labels were set aside, such as pool/1.jpg: it is &lt;cut&gt; short (quarantine.jsonl) "
        "<small>(student, transfer/cell-0, transfer/cell-1 and 3 more)</small></li>"
    ) in text


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_finished_run_makes_a_whole_page(tmp_path: Path, seeds: int) -> None:
    page = checked(fake_run(tmp_path / "run", seeds))
    for heading in (
        "Transfer",
        "Teacher against student",
        "Learning curves",
        "Pseudo labels",
        "Labels",
        "How it was made",
    ):
        assert heading in page.text
    assert page.tags["img"] == 3 * (1 + 4) + 3 * (1 + 8)
    assert page.tags["svg"] == 6 + 5 + 6 + 2  # dots, trainings, fine-tuned sets, the flow twice
    assert ("One seed." in page.text) == (seeds == 1)
    assert "23,451" in page.text
    assert "animals: 3,000 → objects" in page.text
    assert "1,200 steps" in page.text
    assert (tmp_path / "run" / "report.html").stat().st_size < 6e6
    if seeds == 1:
        assert "(+22.8)" in page.text


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_an_empty_folder_and_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    page = checked(tmp_path / "run")
    assert "Nothing has been measured yet" in page.text
    assert page.tags["table"] == page.tags["svg"] == 0
    with pytest.raises(UserError, match="no such run"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize("section", ["held_out", "transfer"])
def test_a_run_that_asks_for_no_figure_says_so(tmp_path: Path, section: str) -> None:
    (tmp_path / "recipe.yaml").write_text("held_out: {}\ntransfer: {}\n")
    for said in (checked(tmp_path).text, plain_report(tmp_path)):
        assert "Nothing is measured: the recipe names no held-out source and no downstream set." in said
        assert "have not finished" not in said
    (tmp_path / "recipe.yaml").write_text(f"{section}: {{a: {{format: coco}}}}\n")
    assert "have not finished" in checked(tmp_path).text


@pytest.mark.parametrize(
    "part", ["recipe.yaml", "results.jsonl", "teachers", "labels", "student", "transfer", "evaluate"]
)
def test_each_part_may_be_missing(tmp_path: Path, part: str) -> None:
    run = fake_run(tmp_path / "run", rows=1, side=16)
    target = run / part
    if target.is_dir():
        target.rename(tmp_path / "away")
    else:
        target.unlink()
    assert checked(run).text  # whole, well-formed and self-contained without it


def test_hostile_names_are_text(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", rows=1, side=16)
    evil = "<script>alert('x')</script>\" onload=\"x"
    lines = [line(evil, evil, 1.0, metric=evil, more=evil), line("b", evil, 2.0, metric=evil, stage=evil)]
    lines += [
        line("c", evil, None, metric=evil, failed=evil),
        line("teacher", evil, 1.0, stage="upstream", metric=evil),
    ]
    write_lines(run / "results.jsonl", lines)
    (run / "recipe.yaml").write_text(json.dumps({"name": evil, "sources": {evil: {"head": evil}, "pool": None}}))
    (run / "labels" / "report.json").write_text(json.dumps({"heads": {evil: {evil: 3, "pseudo": 4}}}))
    points = [{"step": n, "loss": 1.0, "heads": {evil: 1.0, "b": 2.0}} for n in range(3)]
    write_lines(run / "student" / "curve.jsonl", points)
    entry = {"group": evil, "image": evil, "panels": [{"file": "pictures/000-0.png", "caption": f"{evil}: {evil}"}]}
    write_lines(run / "labels" / "pictures.jsonl", [entry, {**entry, "panels": [{"file": evil, "caption": ""}]}])
    for folder in (run / "teachers" / "<b>bold", run / "transfer" / "<b>bold" / "<i>set" / "seed-0"):
        _stage(folder, 1.0, points)
    page = checked(run)
    assert page.tags["script"] == page.tags["b"] == 0
    assert evil in page.text
    assert "<script" not in (run / "report.html").read_text()


def test_broken_files_are_counted_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", rows=1, side=16)
    with (run / "results.jsonl").open("a") as stream:
        stream.write('{"row": 3}\n[1]\n' + json.dumps(line("MuST student", "rooms", 90.0, metric="< 1.25")) + '\n{"cut')
    (run / "student" / "done.json").write_text("{")
    (run / "recipe.yaml").write_text("a: [")
    with (run / "student" / "curve.jsonl").open("a") as stream:
        stream.write('{"step": 1300, "loss": NaN, "heads": {"depth": null}}\n{"loss": 1}\n')
    (run / "labels" / "pictures" / "000-1.png").write_bytes(b"<html>not found</html>")
    outside = {"group": "g", "image": "i", "panels": [{"file": "../recipe.yaml", "caption": "c"}]}
    write_lines(run / "evaluate" / "pictures.jsonl", [outside])
    page = checked(run)
    assert "Left out of this report" in page.text
    for told in (
        "line 52",
        "no picture that can be shown",
        "no such picture: ../recipe.yaml",
        "has no step",
        "no readable YAML",
    ):
        assert told in page.text, told
    assert "90.0" in page.text  # the later line about the same cell counts
    measured_rooms = [m for m in read_run(run).measurements if m.row == "MuST student" and m.metric == "< 1.25"]
    assert [m.value for m in measured_rooms] == [90.0]


def test_columns_and_teachers_stand_in_the_recipes_order(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", rows=1, side=16)
    lines = (run / "results.jsonl").read_text().splitlines(keepends=True)
    (run / "results.jsonl").write_text("".join(sorted(lines, key=lambda text: text[::-1])))
    table = main_table(read_run(run).measurements, "transfer")
    assert table is not None
    assert [column.name for column in table.columns] == list(SETS)
    assert table.rows == tuple(FIGURES)


def test_a_probe_stands_beside_the_fine_tuning_of_its_set(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("transfer: {a: {}, b: {}}")
    write_lines(tmp_path / "results.jsonl", [line("r", c, 1.0) for c in ("b, linear probe", "c", "b", "a")])
    table = main_table(read_run(tmp_path).measurements, "transfer")
    assert table is not None
    assert [column.name for column in table.columns] == ["a", "b", "b, linear probe", "c"]


def test_two_probes_and_more_have_a_mean_with_an_interval_of_its_own(tmp_path: Path) -> None:
    found = read_run(compared_run(tmp_path, seeds=1, ending=PROBE))
    noise = Noise(found)
    table = main_table(found.measurements, "transfer", noise.between)
    assert table is not None
    mean = len(table.columns) - 1
    fine, flat = range(mean)
    assert (table.columns[mean].name, table.columns[mean].metric) == (AVERAGE, "top-1")
    student = ("MuST student", "few labels")
    for row in COMPARED:
        assert table.mean(row, mean) == pytest.approx(((table.mean(row, fine) or 0) + (table.mean(row, flat) or 0)) / 2)
    interval = table.interval(*student, mean)
    assert interval is not None
    assert interval.images == 600

    def hits(row: str, name: str) -> NDArray[np.bool_]:
        file = tmp_path / "transfer" / row.replace(" ", "-") / (name + PROBE) / "seed-0" / "evidence.npz"
        with np.load(file) as kept:
            return np.asarray(kept["evidence.first"])

    gains = [100.0 * hits(student[0], name) - 100.0 * hits(student[1], name) for name in SHARES]
    random = np.random.default_rng(11)
    drawn = [np.mean([random.choice(of_set, 300).mean() for of_set in gains]) for _ in range(2000)]
    assert (interval.low, interval.high) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.6)
    # A mean over the sets is no further set.
    assert "on one of the two downstream sets" in " ".join(verdict(table, None))


def test_a_row_that_lacks_a_probe_has_no_mean(tmp_path: Path) -> None:
    lines = [line(row, f"{name}{PROBE}", 1.0) for row in ("x", "y") for name in "ab"][:-1]
    write_lines(tmp_path / "results.jsonl", [*lines, line("x", "c", 9.0)])
    means = [m for m in read_run(tmp_path).measurements if m.average]
    assert [(m.row, m.column, m.value) for m in means] == [("x", AVERAGE, 1.0)]


def test_while_a_run_goes_on_the_finished_stages_count(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", rows=1, side=16)
    (run / "results.jsonl").unlink()
    stage = run / "transfer" / "must-student" / "rooms" / "seed-0"
    write_lines(stage / "results.jsonl", [line("MuST student", "rooms", 5.0)])
    assert [m.value for m in read_run(run).measurements] == [5.0]
    (stage / "done.json").unlink()
    assert read_run(run).measurements == ()
    assert "1 stage not finished" in checked(run).text


def test_of_a_grid_the_kept_training_gives_the_curve(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", rows=1, side=16)
    stage = run / "transfer" / "must-student" / "rooms" / "seed-0"
    write_lines(stage / "rate-0.01-steps-300" / "curve.jsonl", [{"step": 7, "loss": 1.0, "heads": {}}])
    found = {s.name: s for s in read_run(run).stages}
    assert len(found["transfer/must-student/rooms/seed-0"].curve) == 61
    assert found["transfer/must-student/rooms/seed-0"].init == "MuST student"
    assert not [name for name in found if "rate-" in name]


def test_failed_cells_stand_in_the_table_with_their_reason(tmp_path: Path) -> None:
    lines = [line("random initialisation", "a", 1.0), line("MuST student", "a", math.nan)]
    lines.append(line("teacher: t", "a", None, failed="the loss became NaN at step 7"))
    write_lines(tmp_path / "results.jsonl", lines)
    page = checked(tmp_path)
    assert "teacher: t, a, seed 0: the loss became NaN at step 7" in page.text
    assert "MuST student, a, seed 0: the value is not a number" in page.text
    assert "Two measurements failed" in page.text


def test_pictures_share_the_budget_between_groups(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", side=64, rows=6)
    rows = [row for stage in read_run(run).stages for row in stage.pictures]
    everything = embed(rows, [])
    assert {group: len(members) for group, members in everything.items()} == {"pseudo labels": 6, "predictions": 6}
    size = sum(len(p.uri) for members in everything.values() for row in members for p in row.panels)
    some = embed(rows, [], budget=size // 2)
    assert {group: len(members) for group, members in some.items()} in (
        {"pseudo labels": 3, "predictions": 3},
        {"pseudo labels": 3, "predictions": 2},
    )


def test_large_pictures_are_made_smaller(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", side=400, rows=1)
    rows = [row for stage in read_run(run).stages for row in stage.pictures]
    panels = [p for members in embed(rows, []).values() for row in members for p in row.panels]
    assert {(p.width, p.height) for p in panels} == {(320, 320)}
    assert all(p.uri.startswith("data:image/jpeg;base64,") for p in panels)


# Charts, times and the terminal


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.2, 7.9), (99.1, 99.4), (1e-5, 3e-5), (0.0, 12345.0)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = plots._ticks(low, high, 4)
    assert 2 <= len(ticks) <= 5
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in ticks)
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0])


def test_a_long_curve_is_averaged_and_gaps_stay_gaps() -> None:
    y = [math.nan if 400 <= n < 600 else 1.0 + n % 2 for n in range(1600)]
    thin = plots._thinned(plots.Series("a", "red", range(1600), y))
    assert len(thin.x) == 160
    assert {round(v, 6) for v in thin.y if math.isfinite(v)} == {1.5}
    assert [len(piece) for piece in plots._pieces(thin)] == [40, 100]


@pytest.mark.parametrize("values", [[], [math.nan], [2.0], [0.0, 0.0], [-1.0, 5.0], [1e-3, 10.0]])
def test_any_curve_can_be_drawn(values: list[float]) -> None:
    svg = plots.line_panel("x", [plots.Series("a", "red", range(len(values)), values)])
    assert "nan" not in svg.lower().replace("no finite", "")
    assert svg.startswith("<svg")
    assert ("log scale" in svg) == (values == [1e-3, 10.0])


def test_times_for_people() -> None:
    assert [seconds_as_text(s) for s in (3.21, 59.4, 200, 7500)] == ["3.2 s", "59 s", "3 min 20 s", "2 h 05 min"]
    assert moment_as_text("2026-01-01T12:00:00+02:00") == "2026-01-01 10:00 UTC"
    assert moment_as_text("yesterday") == "yesterday"


def test_the_terminal_gets_the_same_figures(tmp_path: Path) -> None:
    text = plain_report(fake_run(tmp_path / "run"), width=140)
    assert "34.8* (+22.8)" in text
    assert "four of the six downstream sets" in " ".join(text.split())
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 140
