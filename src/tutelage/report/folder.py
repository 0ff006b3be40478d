"""What a run's folder holds, read for the report: nothing is required, and what cannot be read is counted."""

from __future__ import annotations

import datetime
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tutelage.data.quarantine import QUARANTINE
from tutelage.data.source import Fault
from tutelage.errors import UserError, first_line
from tutelage.labels.health.health import FILE, StoreHealth, read_health
from tutelage.part import yaml_to_plain
from tutelage.recipe import TEACHER
from tutelage.report.averages import Parts, averaged, averages
from tutelage.report.tables import BadMeasurement, Measurement
from tutelage.training.notes import NOTES

_STAGE_FILES = frozenset({"stage.json", "done.json"})
_NO_STAGES = frozenset({"cache"})
_STAGE_DEPTH = 6
_JSON_BYTES = 2**24


@dataclass(frozen=True)
class CurvePoint:
    """One line of a training's `curve.jsonl`.

    Attributes:
        step: number of the optimiser step, from 0.
        loss: the balanced sum over heads; NaN where the line has none.
        heads: the loss a head, before balancing.
        images_per_second: images trained on a second; NaN where the line has none.
    """

    step: int
    loss: float
    heads: dict[str, float]
    images_per_second: float = math.nan


@dataclass(frozen=True)
class Panel:
    """One picture of a row: an absolute path inside its stage's folder, and what it shows."""

    file: Path
    caption: str


@dataclass(frozen=True)
class PictureRow:
    """Panels that belong to one image.

    Attributes:
        group: the heading that the row stands under ("pseudo labels", "predictions", ...).
        image: "source/id".
        panels: left to right.
    """

    group: str
    image: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class DrawnExample:
    """One pseudo label drawn.

    Attributes:
        head: its name.
        why: what it was chosen for: "best", "worst", "random".
        image: "source/id".
        score: mean score of what the rule keeps, 0 to 1; None where there is none.
        file: an absolute path inside the labels' folder.
    """

    head: str
    why: str
    image: str
    score: float | None
    file: Path


@dataclass(frozen=True)
class Stage:
    """One stage's folder.

    Attributes:
        name: the folder below the run's, with "/" between parts.
        done: whether `done.json` is there.
        seconds: wall-clock time of the stage; None while unfinished or not said.
        finished: moment of the end, as the file has it (ISO 8601), or "".
        versions: library to version.
        machine: a sentence, or "".
        counts: whatever the stage counted.
        after: the stages whose results it uses.
        init: the row of the transfer table that this stage fills; "" for other stages.
        curve: the training curve, by increasing step; empty for stages that do not train. Of a grid of trainings, the
            one whose weights were kept.
        pictures: the rows of `pictures.jsonl`.
        notes: what should be known of it although nothing failed, from `notes.jsonl`, and what it set aside.
    """

    name: str
    done: bool
    seconds: float | None = None
    finished: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    machine: str = ""
    counts: dict[str, Any] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    init: str = ""
    curve: tuple[CurvePoint, ...] = ()
    pictures: tuple[PictureRow, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunFolder:
    """Everything that the report is made of.

    Attributes:
        path: the run's folder.
        recipe_text: `recipe.yaml` as it stands, or "".
        recipe: the same as plain values; {} when it is missing or no YAML mapping.
        measurements: the usable lines of `results.jsonl`, columns and teachers in the recipe's order; of lines that
            measure the same thing, the last. While a run goes on, those of its finished stages.
        stages: sorted by name.
        label_counts: head to what `labels/report.json` counts for it.
        faults: what was left out, and why.
        health: what is in the labels store, from `labels/health.json`; None where there is none.
        examples: the usable lines of `labels/examples.jsonl`.
        notes: what should be known of all of it, such as faults of its sources; what a stage noted stands there.
        averages: the columns of the transfer table that are means of others, and of which; they are among the
            measurements as well.
    """

    path: Path
    recipe_text: str
    recipe: dict[str, Any]
    measurements: tuple[Measurement, ...]
    stages: tuple[Stage, ...]
    label_counts: dict[str, dict[str, int]]
    faults: tuple[Fault, ...]
    health: StoreHealth | None = None
    examples: tuple[DrawnExample, ...] = ()
    notes: tuple[str, ...] = ()
    averages: Mapping[str, Parts] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Time of all finished stages together."""
        return sum(stage.seconds or 0.0 for stage in self.stages)

    @property
    def asked(self) -> bool:
        """Whether the recipe asks for any figure; True where there is no recipe to tell."""
        return not self.recipe or bool(self.section("held_out") or self.section("transfer"))

    @property
    def learned_once(self) -> bool:
        """Whether seeds repeat the fine-tuning of networks that this run pre-trained, and not the pre-training."""
        return self.recipe.get("method") != "transfer" and self.recipe.get("repeat") == "fine-tuning"

    def section(self, key: str) -> Mapping[str, Any]:
        """A mapping of the recipe (`sources`, `heads`, ...), empty when it has none of that name."""
        return {str(name): entry for name, entry in mapping(self.recipe.get(key)).items()}


def read_run(path: Path) -> RunFolder:
    """Read a run's folder; every part may be missing.

    Raises:
        UserError: there is no such folder.
    """
    if not path.is_dir():
        raise UserError("there is no such run", file=path, fix="give the folder that `tutelage run` wrote")
    faults: list[Fault] = []
    recipe_text, recipe = _recipe(path / "recipe.yaml", faults)
    stages = tuple(_stage(path, folder, faults) for folder in sorted(_stage_folders(path)))
    measurements = _ordered(_measurements(path / "results.jsonl", _later(path, stages), faults), recipe)
    means = averages(measurements)
    return RunFolder(
        path=path,
        recipe_text=recipe_text,
        recipe=recipe,
        measurements=(*measurements, *averaged(measurements, means)),
        stages=stages,
        label_counts=_label_counts(path / "labels" / "report.json", faults),
        health=_health(path / "labels" / FILE, faults),
        examples=_examples(path / "labels", faults),
        notes=_noted(path, faults),
        averages=means,
        faults=tuple(faults),
    )


def _recipe(file: Path, faults: list[Fault]) -> tuple[str, dict[str, Any]]:
    if not file.is_file():
        return "", {}
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        plain = yaml_to_plain(text, file)
    except (UserError, yaml.YAMLError) as error:
        faults.append(_fault(file, "", f"no readable YAML: {first_line(error)}"))
        return text, {}
    return text, plain if isinstance(plain, dict) else {}


def _ordered(measurements: Iterable[Measurement], recipe: Mapping[str, Any]) -> tuple[Measurement, ...]:
    """Columns and teachers as the recipe names them, whatever finished first; what it does not name comes after."""
    columns = {name: n for n, name in enumerate([*_names(recipe, "held_out"), *_names(recipe, "transfer")])}
    teachers = {f"{TEACHER}{name}": n for n, name in enumerate(_names(recipe, "heads"), 1)}
    variants = _names(recipe, "study")

    def place(measured: Measurement) -> tuple[int, int, bool, int]:
        of_study = (n for n, v in enumerate(variants) if f"{measured.column}, ".startswith(f"{v}, "))  # "variant, head"
        name = measured.column if measured.column in columns else measured.column.split(",")[0]  # "set, linear probe"
        return (
            next(of_study, len(variants)),
            columns.get(name, len(columns)),
            name != measured.column,
            teachers.get(measured.row, 0),
        )

    return tuple(sorted(measurements, key=place))


def _names(recipe: Mapping[str, Any], key: str) -> list[str]:
    return [str(name) for name in mapping(recipe.get(key))]


def _later(path: Path, stages: Iterable[Stage]) -> list[Path]:
    """The results of stages that finished after those of the whole run were written, if ever: the run is going on."""
    whole = path / "results.jsonl"
    since = whole.stat().st_mtime_ns if whole.is_file() else 0
    done = (path / stage.name for stage in stages if stage.done)
    return [folder / whole.name for folder in done if (folder / "done.json").stat().st_mtime_ns > since]


def _measurements(whole: Path, later: Sequence[Path], faults: list[Fault]) -> tuple[Measurement, ...]:
    by_cell: dict[tuple[object, ...], Measurement] = {}
    first = [whole] if whole.is_file() else []
    for file, number, plain in ((path, *entry) for path in (*first, *later) for entry in json_lines(path, faults)):
        try:
            measured = Measurement.of(plain)
        except BadMeasurement as problem:
            faults.append(_fault(file, f"line {number}", str(problem)))
            continue
        key = (measured.stage, measured.row, measured.column, measured.metric, measured.seed)
        if key in by_cell and (file == whole or not first):
            faults.append(_fault(file, f"line {number}", "measures the same as an earlier line; the later one counts"))
        by_cell[key] = measured
    return tuple(by_cell.values())


def _stage_folders(path: Path) -> Iterator[Path]:
    for here, folders, files in os.walk(path):
        folder = Path(here)
        depth = len(folder.relative_to(path).parts)
        folders[:] = (
            [] if depth >= _STAGE_DEPTH else [f for f in folders if not f.startswith(".") and f not in _NO_STAGES]
        )
        if depth and _STAGE_FILES & set(files):
            folders.clear()  # what lies below belongs to this stage: the grid points of a fine-tuning
            yield folder


def _stage(run: Path, folder: Path, faults: list[Fault]) -> Stage:
    done, about = _json_object(folder / "done.json", faults), _json_object(folder / "stage.json", faults)
    seconds = done.get("seconds")
    return Stage(
        name=folder.relative_to(run).as_posix(),
        done=(folder / "done.json").is_file(),
        seconds=_number(seconds) if _finite(seconds) else None,
        finished=str(done.get("finished", "")),
        versions={str(k): str(v) for k, v in mapping(done.get("versions")).items()},
        machine=str(done.get("machine", "")),
        counts=dict(mapping(done.get("counts"))),
        after=tuple(str(name) for name in mapping(about.get("after"))),
        init=str(mapping(about.get("part")).get("init", "")),
        curve=_curve(_curve_file(folder), faults),
        pictures=_pictures(folder, faults),
        notes=(*_noted(folder, faults), *_set_aside(folder / QUARANTINE, faults)),
    )


def _noted(folder: Path, faults: list[Fault]) -> tuple[str, ...]:
    return tuple(str(plain["note"]) for _, plain in json_lines(folder / NOTES, faults) if plain.get("note"))


def _set_aside(file: Path, faults: list[Fault]) -> tuple[str, ...]:
    """A sentence on what a stage set aside; none where that was nothing."""
    entries: dict[str, str] = {}
    for _, plain in json_lines(file, faults):
        entries.setdefault(str(plain.get("id", "")), str(plain.get("reason", "")))
    if not entries:
        return ()
    first, reason = next(iter(entries.items()))
    return (f"{len(entries):,} of its images or labels were set aside, such as {first}: {reason} ({file.name})",)


def _curve_file(folder: Path) -> Path:
    """The stage's own curve, or that of its chosen grid point, the only one whose weights were kept."""
    own = folder / "curve.jsonl"
    chosen = sorted(path.parent for path in folder.glob("*/weights.safetensors"))
    return own if own.is_file() or not chosen else chosen[0] / "curve.jsonl"


def _curve(file: Path, faults: list[Fault]) -> tuple[CurvePoint, ...]:
    by_step: dict[int, CurvePoint] = {}  # a resumed training writes the steps after its checkpoint again
    for number, plain in json_lines(file, faults):
        step = plain.get("step")
        if not isinstance(step, int) or isinstance(step, bool):
            faults.append(_fault(file, f"line {number}", "has no step"))
            continue
        heads = {str(k): _number(v) for k, v in mapping(plain.get("heads")).items()}
        by_step[step] = CurvePoint(
            step,
            _number(plain.get("loss")),
            heads,
            _number(plain.get("images_per_second")),
        )
    return tuple(by_step[step] for step in sorted(by_step))


def _pictures(folder: Path, faults: list[Fault]) -> tuple[PictureRow, ...]:
    file, rows = folder / "pictures.jsonl", []
    for number, plain in json_lines(file, faults):
        panels = []
        listed = plain.get("panels")
        for entry in listed if isinstance(listed, list) else []:
            picture = _picture(folder, entry, file, number, faults)
            if picture is not None:
                panels.append(Panel(picture, str(mapping(entry).get("caption", ""))))
        if panels:
            rows.append(PictureRow(str(plain.get("group", "pictures")), str(plain.get("image", "")), tuple(panels)))
    return tuple(rows)


def _picture(folder: Path, entry: Any, file: Path, number: int, faults: list[Fault]) -> Path | None:
    """The picture that an entry names, where it is there and inside its folder."""
    name = mapping(entry).get("file", "")
    picture = (folder / str(name)).resolve()
    if picture.is_relative_to(folder.resolve()) and picture.is_file():
        return picture
    faults.append(_fault(file, f"line {number}", f"no such picture: {name}"))
    return None


def _examples(folder: Path, faults: list[Fault]) -> tuple[DrawnExample, ...]:
    file, found = folder / "examples.jsonl", []
    for number, plain in json_lines(file, faults):
        picture = _picture(folder, plain, file, number, faults)
        if picture is not None:
            head, why, image = (str(plain.get(key, "")) for key in ("head", "why", "image"))
            score = plain.get("score")
            found.append(DrawnExample(head, why, image, _number(score) if _finite(score) else None, picture))
    return tuple(found)


def _health(file: Path, faults: list[Fault]) -> StoreHealth | None:
    if not file.is_file():
        return None
    try:
        return read_health(file)
    except UserError as error:
        faults.append(_fault(file, error.field or "", str(error.value or error.problem)))
        return None


def _label_counts(file: Path, faults: list[Fault]) -> dict[str, dict[str, int]]:
    heads = mapping(_json_object(file, faults).get("heads"))
    return {
        str(head): {str(k): int(v) for k, v in mapping(counts).items() if _finite(v)} for head, counts in heads.items()
    }


def _json_object(file: Path, faults: list[Fault]) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        if file.stat().st_size > _JSON_BYTES:
            raise ValueError("larger than 16 MiB")
        plain = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        faults.append(_fault(file, "", f"no readable JSON: {error}"))
        return {}
    return plain if isinstance(plain, dict) else {}


def json_lines(file: Path, faults: list[Fault]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers from 1 and objects; other lines, such as one cut short by a crash, are counted."""
    if not file.is_file():
        return
    with file.open(encoding="utf-8", errors="replace") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                plain = json.loads(line)
            except (ValueError, RecursionError):
                plain = None
            if isinstance(plain, dict):
                yield number, plain
            else:
                faults.append(_fault(file, f"line {number}", "no JSON object; cut short?"))


def _fault(file: Path, record: str, problem: str) -> Fault:
    return Fault(str(file), record, problem, "dropped")


def mapping(value: Any) -> Mapping[Any, Any]:
    """A plain value of a file as a mapping; an empty one where it is none."""
    return value if isinstance(value, Mapping) else {}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: Any) -> float:
    return float(value) if _finite(value) else math.nan


def seconds_as_text(seconds: float) -> str:
    """A duration for people: "12 s", "3 min 20 s", "2 h 05 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def moment_as_text(moment: str) -> str:
    """An ISO 8601 moment as "2026-01-01 10:00 UTC"; other text as it is."""
    try:
        parsed = datetime.datetime.fromisoformat(moment)
    except ValueError:
        return moment
    if parsed.tzinfo is not None:
        return parsed.astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return parsed.strftime("%Y-%m-%d %H:%M")
