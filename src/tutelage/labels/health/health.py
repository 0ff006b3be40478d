"""The health of a labels store: what is in it, before anything is trained on it.

Counts of images and bytes are exact and come from the manifests; everything else comes from a seeded part of the
records (`sample.py`), all of them where the store is small. The result is a plain value, `health.json` in the store's
folder, that the terminal (`show.py`) and the report of a run show.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field as Option
from pydantic import ValidationError

from tutelage.errors import UserError
from tutelage.files import write_text
from tutelage.labels.health.agreement import Agreement, Head, compare, comparisons
from tutelage.labels.health.histogram import ClassCount
from tutelage.labels.health.sample import Placed, joined, sample
from tutelage.labels.health.statistics import (
    BoxesSummary,
    FieldSummary,
    LabelSummary,
    MaskSummary,
    VectorsSummary,
    kept_of,
    tally_for,
)
from tutelage.labels.store import KINDS, Counts, Manifest, Store, head_folder
from tutelage.part import Part, one_of
from tutelage.progress import SILENT, Progress
from tutelage.tasks import TASKS
from tutelage.tasks.task import Task
from tutelage.types import Boxes, Label

FILE = "health.json"
"""In the store's folder."""

RECORDS = 20_000
"""Records of boxes or classes that are looked at in one head."""
PICTURES = 2_000
"""The same of masks, depth, normals and features, which take milliseconds each to decode."""
TOGETHER = 1_000
"""Images that are looked at in all heads together, for agreement."""
_EXAMPLES = 4
"""Examples of each sort."""


AnySummary = Annotated[
    BoxesSummary | LabelSummary | MaskSummary | FieldSummary | VectorsSummary, Option(discriminator="kind")
]


class Example(Part):
    """A record worth looking at."""

    why: Literal["best", "worst", "random"]
    """`best` and `worst` by the mean score of what the rule keeps; images of which it keeps nothing are neither."""
    source: str
    id: str
    score: float | None
    """Mean score of what is kept, 0 to 1; None where nothing is kept or the kind has no scores."""
    shard: str
    """File of the record."""
    row: int
    """Its row in the file."""


class Storage(Part):
    """Bytes on disk."""

    bytes: int
    shards: int
    least: int
    """Of the smallest shard."""
    greatest: int
    """Of the largest shard."""
    derived: int
    """Files for random access beside the labels: made when first needed, can be deleted."""


class HeadHealth(Part):
    """One head."""

    head: str
    kind: str
    """Of its targets: one of the dataclasses of `tutelage.types`."""
    task: str
    teacher: str
    """The teacher's hash."""
    about: dict[str, Any] = {}
    """What the teacher states of itself."""
    rule: str
    """The pseudo-label rule in words."""
    counts: Counts
    """Exact; `empty` is that of the rule when the labels were made."""
    storage: Storage
    records: int
    """Labels in the store."""
    looked_at: int
    """How many of them the figures below come from."""
    summary: AnySummary
    classes: tuple[ClassCount, ...]
    """In the order of the label space; empty for depth and normals."""
    examples: tuple[Example, ...]


class StoreHealth(Part):
    """A whole store."""

    heads: tuple[HeadHealth, ...]
    agreement: tuple[Agreement, ...]
    """One for each pair of heads that can be compared."""


def health(
    store: Store,
    head: str,
    task: Task | None,
    *,
    human: Mapping[str, int] | None = None,
    most: int | None = None,
    seed: int = 0,
) -> HeadHealth:
    """Look at one head.

    Args:
        store: where it lies.
        head: its name.
        task: whose rule is applied; None where it is not known: predictions are then taken as they are stored.
        human: class name to images, boxes or pixels among the teacher's training labels, if they are known.
        most: records to look at; by default `RECORDS`, and `PICTURES` of masks, depth, normals and features.
        seed: chooses them.

    Raises:
        UserError: labels that are unfinished or damaged.
    """
    manifest = store.manifest(head)
    kind = KINDS[manifest.kind]
    names = (task.classes if task is not None else None) or manifest.classes or ()
    tally = tally_for(kind, len(names), task)
    examples = _Examples(seed)
    looked_at = 0
    for placed in sample(store, head, most or (RECORDS if kind in (Label, Boxes) else PICTURES), seed):
        record = placed.record
        sure = tally.add(record.target, kept_of(task, record.target), (record.height, record.width))
        examples.offer(placed, sure)
        looked_at += 1
    counts = zip(names, tally.classes.tolist(), tally.before.tolist(), strict=True)
    return HeadHealth(
        head=head,
        kind=manifest.kind,
        task=str(manifest.task.get("task", "")),
        teacher=manifest.teacher,
        about=manifest.about,
        rule=rule_in_words(task),
        counts=manifest.counts,
        storage=_storage(head_folder(store.root, head), manifest),
        records=sum(shard.rows for shard in manifest.shards),
        looked_at=looked_at,
        summary=tally.summary(),
        classes=tuple(
            ClassCount(name=name, pseudo=after, before=before, human=None if human is None else human.get(name, 0))
            for name, after, before in counts
        ),
        examples=examples.chosen(),
    )


def store_health(
    store: Store,
    tasks: Mapping[str, Task | None] | None = None,
    *,
    human: Mapping[str, Mapping[str, int]] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> StoreHealth:
    """Look at the finished heads, and at how they agree.

    Args:
        store: where they lie.
        tasks: heads to look at, with the tasks whose rules are applied (None where that is not known); by default all
            heads, with the tasks that the labels were made for.
        human: head to class counts, see `health`.
        seed: chooses what is looked at.
        progress: where the bar is shown; None for nowhere.

    Raises:
        UserError: labels that are unfinished or damaged.
    """
    known = stored_tasks(store) if tasks is None else tasks
    names = [name for name in store.heads() if name in known]
    found = []
    with (progress or SILENT).bar("look at the labels", len(names) + 1, "heads") as bar:
        for name in names:
            found.append(health(store, name, known.get(name), human=(human or {}).get(name), seed=seed))
            bar.advance(1, name)
        agreement = agreements(store, known, seed=seed)
        bar.advance()
    return StoreHealth(heads=tuple(found), agreement=agreement)


def agreements(
    store: Store, tasks: Mapping[str, Task | None], most: int = TOGETHER, seed: int = 0
) -> tuple[Agreement, ...]:
    """How the heads of a store agree, pair by pair, on up to `most` images. Raises UserError as `store_health`."""
    manifests = {name: store.manifest(name) for name in store.heads() if name in tasks}
    heads = [Head(name, tasks[name], KINDS[m.kind], m.classes or ()) for name, m in manifests.items()]
    pairs = comparisons(heads)
    entering = sorted({side.name for pair in pairs for side in (pair.a, pair.b)})
    images = (
        {head: (kept_of(tasks.get(head), r.target), (r.height, r.width)) for head, r in records.items()}
        for records in (joined(store, entering, most, seed) if pairs else ())
    )
    compare(pairs, images)
    return tuple(pair.result() for pair in pairs)


class _AnyTask(Part):
    """Reads a task from the plain form in a manifest."""

    task: one_of(Task, "task", TASKS)  # type: ignore[valid-type]


def stored_tasks(store: Store) -> dict[str, Task | None]:
    """The tasks as they were when the labels were made; None for tasks of a user's own kind."""
    return {head: task_from(store.manifest(head)) for head in store.heads()}


def task_from(manifest: Manifest, plain: Mapping[str, Any] | None = None) -> Task | None:
    """A head's task from its plain form; None for a task of a user's own kind.

    Args:
        manifest: of the head; its classes are filled in.
        plain: another form than the manifest's, such as one with another threshold.
    """
    values = dict(manifest.task if plain is None else plain)
    if values.get("task") not in {kind.model_fields["task"].default for kind in TASKS}:
        return None
    try:
        return _AnyTask.model_validate({"task": values | {"classes": manifest.classes}}).task
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(
            "this does not fit the head's task",
            record=manifest.head,
            field=str(first["loc"][-1]),
            value=first["msg"],
            fix=f"keys of a {values['task']} head: {', '.join(manifest.task)}",
        ) from None


def rule_in_words(task: Task | None) -> str:
    """The pseudo-label rule of a task, short."""
    if task is None:
        return "not known: shown as stored"
    plain = task.plain()
    rules = [f"{key.removeprefix('pseudo_')} {_value(value)}" for key, value in plain.items() if _rules(key, value)]
    return ", ".join(rules) or "kept as predicted"


def _rules(key: str, value: Any) -> bool:
    return key.startswith("pseudo_") and value is not None


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {entry:g}" for name, entry in value.items())
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _storage(folder: Path, manifest: Manifest) -> Storage:
    sizes = [shard.bytes for shard in manifest.shards]
    derived = sum(file.stat().st_size for file in folder.glob("_random-access.*"))
    return Storage(
        bytes=manifest.bytes,
        shards=len(sizes),
        least=min(sizes, default=0),
        greatest=max(sizes, default=0),
        derived=derived,
    )


class _Examples:
    """The best, the worst and some others of the records that it is offered."""

    def __init__(self, seed: int) -> None:
        self._rng, self._count = np.random.default_rng([seed, 1]), 0
        self._best: list[tuple[float, int, Placed]] = []
        self._worst: list[tuple[float, int, Placed]] = []
        self._random: list[tuple[Placed, float | None]] = []

    def offer(self, placed: Placed, sure: float | None) -> None:
        self._count += 1
        if sure is not None:
            for heap, value in ((self._best, sure), (self._worst, -sure)):
                entry = (value, -self._count, placed)  # of equal ones the first
                (heapq.heappush if len(heap) < _EXAMPLES else heapq.heappushpop)(heap, entry)
        if len(self._random) < _EXAMPLES:
            self._random.append((placed, sure))
        elif (place := int(self._rng.integers(self._count))) < _EXAMPLES:
            self._random[place] = placed, sure

    def chosen(self) -> tuple[Example, ...]:
        best = [_example("best", placed, value) for value, _, placed in sorted(self._best, reverse=True)]
        worst = [_example("worst", placed, -value) for value, _, placed in sorted(self._worst, reverse=True)]
        shown = {(e.source, e.id) for e in best}
        worst = [e for e in worst if (e.source, e.id) not in shown]
        shown |= {(e.source, e.id) for e in worst}
        others = [_example("random", *pair) for pair in self._random]
        return (*best, *worst, *(e for e in others if (e.source, e.id) not in shown))


def _example(why: Literal["best", "worst", "random"], placed: Placed, score: float | None) -> Example:
    record = placed.record
    return Example(why=why, source=record.source, id=record.id, score=score, shard=placed.shard, row=placed.row)


def write_health(found: StoreHealth, root: Path) -> Path:
    """Write `health.json` into a store's folder and return its path."""
    write_text(root / FILE, found.model_dump_json(indent=1) + "\n")
    return root / FILE


def read_health(file: Path) -> StoreHealth:
    """Read a `health.json`. Raises UserError where it is missing or is none of this version."""
    try:
        return StoreHealth.model_validate_json(file.read_bytes())
    except OSError as error:
        raise UserError(f"the health of the labels cannot be read: {error.strerror}", file=file) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(
            "this is no health of labels, or one of another version",
            file=file,
            field=".".join(map(str, first["loc"])) or None,
            value=first["msg"],
            fix="`tutelage labels show` looks at the labels again",
        ) from None


def human_of(found: StoreHealth) -> dict[str, dict[str, int]]:
    """The people's class counts of the heads that have them, as `store_health` takes them."""
    counts = {head.head: {c.name: c.human for c in head.classes if c.human is not None} for head in found.heads}
    return {head: known for head, known in counts.items() if known}
