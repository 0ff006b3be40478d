"""`tutelage check`: read all data of a recipe and say everything that is wrong, before a step is trained."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path

from tutelage.data import FORMATS
from tutelage.data.audit import Audit, audit, overlaps
from tutelage.data.source import Dataset, Place, Source
from tutelage.errors import UserError
from tutelage.labels.store import Store, find_store
from tutelage.methods.material import Material, check_stored, open_transfer, settle, stored_form
from tutelage.methods.pretraining import check_starts
from tutelage.methods.rehearsal import rehearse
from tutelage.progress import SILENT, Progress
from tutelage.recipe import Recipe, TransferSet
from tutelage.tasks.task import Task
from tutelage.transfer.parts import PARTS, find_copies
from tutelage.transfer.rows import check_rows

Line = tuple[str, bool]
"""A line of the output, and whether it states something that must be mended before a run."""


def check(recipe: Recipe, show: int = 20, progress: Progress = SILENT) -> Iterator[Line]:
    """Lines about every source, held-out source and downstream set, and about networks that do not go together, where
    all sources are there; it goes on after a fault.

    Args:
        recipe: what to check.
        show: how many faults and classes of a dataset are written out; all are counted.
        progress: where the bar of a dataset that is read is shown.
    """
    with tempfile.TemporaryDirectory() as cache:
        place = Place(Path(recipe.data), Path(cache))
        yield from _try("model.backbone", partial(recipe.model.backbone.check, place.root))
        opened: dict[str, Dataset] = {}
        heads: dict[str, Task] = {}
        for group in ("sources", "held_out"):
            for name, source in getattr(recipe, group).items():
                classes = None if source.head is None else recipe.heads[source.head].classes
                key = f"{group}.{name}"
                yield from _try(key, partial(_open, opened, key, source, name, place, classes))
        for head, task in recipe.heads.items():
            labelled = {n: d for n, d in opened.items() if d.head == head and n.startswith("sources.")}
            yield from _try(f"heads.{head}", partial(_settle, heads, recipe, head, task, labelled, place))
        sources = {name: opened[f"sources.{name}"] for name in recipe.sources if f"sources.{name}" in opened}
        if len(sources) == len(recipe.sources) and len(heads) == len(recipe.heads):
            for key, part in recipe.learners().items():
                yield from _try(key, partial(rehearse, recipe, Material(heads, {}, sources, {}), part))
            yield from _try("start", partial(check_starts, recipe, Material(heads, {}, sources, {})))
        yield from _try("the table's rows", partial(check_rows, recipe))
        for name, downstream in recipe.transfer.items():
            yield from _try(f"transfer.{name}", partial(_open_set, opened, name, downstream, place))
        audits = {}
        for name, dataset in opened.items():
            # a source of the user's own may not bear to be read by several threads
            threads = (os.cpu_count() or 1) if isinstance(_part_of(recipe, name), FORMATS) else 1
            with progress.bar(f"read {name}", len(dataset)) as bar:
                audits[name] = audit(dataset, threads, bar.advance)
            yield f"[{name}]", False
            for line in audits[name].lines(show):
                yield line, False
            yield from _quarantine_lines(name, audits[name], recipe.quarantine_limit)
            yield from _refused_lines(name, audits[name])
        yield from _seen_lines(audits)
        for name, downstream in recipe.transfer.items():
            yield from _copy_lines(name, downstream, audits)


def _part_of(recipe: Recipe, key: str) -> Source:
    """The source that a dataset was opened from."""
    group, _, name = key.partition(".")
    downstream, _, part = name.rpartition(".")
    found: Source = getattr(recipe.transfer[downstream], part) if group == "transfer" else getattr(recipe, group)[name]
    return found


def _try(name: str, work: Callable[[], object]) -> Iterator[Line]:
    try:
        work()
    except UserError as error:
        yield f"{name}: {error}", True


def _open(
    opened: dict[str, Dataset], key: str, source: Source, name: str, place: Place, classes: tuple[str, ...] | None
) -> None:
    opened[key] = source.open(name, place, classes)


def _settle(
    heads: dict[str, Task], recipe: Recipe, head: str, task: Task, labelled: Mapping[str, Dataset], place: Place
) -> None:
    stored = stored_form(recipe, head, place)
    heads[head] = settle(head, task, labelled, recipe.teachers.get(head), place.root, stored)[0]
    if stored is not None:
        check_stored(Store(find_store(place.root / str(recipe.labels))), head, heads[head])


def _open_set(opened: dict[str, Dataset], name: str, downstream: TransferSet, place: Place) -> None:
    for part, dataset in open_transfer(name, downstream, place)[1].items():
        opened[f"transfer.{name}.{part}"] = dataset


def _quarantine_lines(name: str, found: Audit, limit: float) -> Iterator[Line]:
    unusable = found.tally.quarantined
    if unusable > max(1, int(limit * found.images)):
        share = f"{100 * unusable / max(found.images, 1):.2f}%, a run stops above {100 * limit:g}%: `quarantine_limit`"
        yield f"{name}: {unusable} of {found.images} images cannot be used ({share})", True


def _refused_lines(name: str, found: Audit) -> Iterator[Line]:
    if found.tally.refused:
        yield f"{name}: {found.tally.refused} labels contradict their image or its classes; a run stops at one", True


def _seen_lines(audits: Mapping[str, Audit]) -> Iterator[Line]:
    """Images that are learned from and tested on, byte for byte."""
    tested = [n for n in audits if n.startswith("held_out.") or (n.startswith("transfer.") and n.endswith(".test"))]
    for a, b in product([name for name in audits if name.startswith("sources.")], tested):
        pairs = overlaps(audits[a], audits[b])
        if pairs:
            yield f"{a} and {b} share {len(pairs)} images, for example {pairs[0][0]} and {pairs[0][1]}", True


def _copy_lines(name: str, downstream: TransferSet, audits: Mapping[str, Audit]) -> Iterator[Line]:
    """Images that a later part of the same downstream set shows as well; a fault where a run would stop for them."""
    tallies = {part: audits[key].tally for part in PARTS if (key := f"transfer.{name}.{part}") in audits}
    pairs = {part: zip(tally.ids, tally.hashes, strict=True) for part, tally in tallies.items()}
    hashes = {part: {id: digest for id, digest in pairs.get(part, ()) if digest} for part in PARTS}
    for part, found in find_copies(hashes).items():
        one, other = next(iter(found.items()))
        text = f"transfer.{name}.{part} shares {len(found)} images with the later parts, for example {one} = {other}"
        if downstream.copies == "drop" and len(found) < audits[f"transfer.{name}.{part}"].images:
            yield f"{text}; a run leaves them out (`copies: drop`)", False
        else:
            yield text, True
