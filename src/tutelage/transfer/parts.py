"""The parts of downstream sets: opened, made sure to share no image, and decoded once for all who train on them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tutelage.data.decoded import decoded
from tutelage.data.source import BadImage, Dataset, Subset
from tutelage.downstream import TransferSet
from tutelage.errors import UserError
from tutelage.files import write_json
from tutelage.methods.material import note_faults, open_transfer, place, prepare
from tutelage.part import fingerprint
from tutelage.stages import Run
from tutelage.tasks.task import Task
from tutelage.training.processes import barrier, rank
from tutelage.types import Target

PARTS = ("train", "validation", "test")


class Opened(NamedTuple):
    """A downstream set: its task with its classes, its three parts, and a fingerprint of which images these are."""

    task: Task
    parts: dict[str, Dataset]
    images: str


def open_sets(run: Run) -> dict[str, Opened]:
    """All downstream sets of a recipe.

    Raises:
        UserError: a part without images, also once copies are left out, or an image that stands in two parts of a set.
    """
    sets = run.recipe.transfer
    prepare(run, {f"{name} ({part})": getattr(s, part) for name, s in sets.items() for part in PARTS})
    read = [open_transfer(name, s, place(run)) for name, s in sets.items()]
    opened = [Opened(task, parts, _listed(parts)) for task, parts in read]
    for (name, of_recipe), found in zip(sets.items(), opened, strict=True):
        note_faults(run, f"downstream set {name},", found.parts)
        _refuse_empty(name, of_recipe, found.parts, "has no images")
    sizes = [sum(len(part) for part in found.parts.values()) for found in opened]
    calls = list(zip(sets, sets.values(), opened, strict=True))
    ready = run.each("look through the downstream sets", _ready, calls, sizes)
    return dict(zip(sets, ready, strict=True))


def _ready(run: Run, name: str, of_recipe: TransferSet, opened: Opened) -> Opened:
    """A set whose parts are apart, decoded where that is small enough to keep."""
    asked = {part: getattr(of_recipe, part).plain() for part in PARTS}
    asked |= {"copies": of_recipe.copies, "images": opened.images}
    stage = run.stage(f"sets/{name}", asked, again=True)
    if not stage.finished:
        if rank() == 0:
            hashes = {}
            with run.progress.bar(f"look through {name}", sum(map(len, opened.parts.values()))) as bar:
                for part, dataset in opened.parts.items():
                    hashes[part] = hashed(dataset)
                    bar.advance(len(dataset))
            copies = find_copies(hashes)
            write_json(stage.folder / "copies.json", copies)
            if of_recipe.copies == "refuse":
                refuse_copies(name, copies, stage.folder / "copies.json")
        barrier()
        stage.finish(**{part: len(dataset) for part, dataset in opened.parts.items()})
    copies = json.loads((stage.folder / "copies.json").read_text(encoding="utf-8"))
    parts = {part: without(dataset, set(copies.get(part, {}))) for part, dataset in opened.parts.items()}
    _refuse_empty(name, of_recipe, parts, "has only images of later parts, which `copies: drop` leaves out")
    limit = int(run.recipe.decoded_gigabytes * 2**30 / len(PARTS))
    if limit:
        parts = {part: decoded(d, run.cache / "decoded" / name / part, limit) for part, d in parts.items()}
    barrier()
    return Opened(opened.task, parts, opened.images)


def _listed(parts: Mapping[str, Dataset]) -> str:
    """A fingerprint of the ids of all images of a set."""
    return fingerprint({part: dataset.listing(0, len(dataset)) for part, dataset in parts.items()})


def _refuse_empty(name: str, of_recipe: TransferSet, parts: Mapping[str, Dataset], why: str) -> None:
    """Raise UserError when a part of a set has no images."""
    for part, dataset in parts.items():
        if len(dataset) == 0:
            raise UserError(
                f"the {part} part of a downstream set {why}",
                record=name,
                field=f"transfer.{name}.{part}",
                value=getattr(of_recipe, part).plain(),
                fix="give it images: without them nothing can be trained, chosen or measured",
            )


def refuse_silent(name: str, task: Task, validation: Iterable[Target]) -> None:
    """Raise UserError when no label of the validation part of a set says anything: nothing can be chosen on it.

    They say something when they themselves, taken as predictions, have a figure.
    """
    metric, count = task.metric(), 0
    for label in validation:
        metric.update(label, label)
        count += 1
    if math.isnan(metric.compute()[metric.name]):
        raise UserError(
            "no label of the validation part of a downstream set says anything (no box, no pixel, no class), so that "
            "nothing can be chosen on it",
            record=name,
            field=f"transfer.{name}.validation",
            value=f"{count} labels, no {metric.name}",
            fix="give it images whose labels show something; `tutelage check` tells what labels hold",
        )


def labels_of(dataset: Dataset) -> Iterator[Target]:
    """The labels of a dataset, one by one, without those that cannot be read."""
    for index in range(len(dataset)):
        target = None
        with suppress(BadImage):
            target = dataset.target(index)
        if target is not None:
            yield target


def hashed(dataset: Dataset) -> dict[str, str]:
    """Id to digest of the image's bytes; images that cannot be read are left out."""
    found: dict[str, str] = {}
    for index in range(len(dataset)):
        with suppress(BadImage, OSError):
            found[dataset.id(index)] = dataset.sha256(index)
    return found


def find_copies(hashes: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Of each part, the images that a later part shows as well, byte for byte: id to "part: id there"."""
    seen: dict[str, str] = {}
    copies: dict[str, dict[str, str]] = {}
    for part in reversed(PARTS):
        copies[part] = {id: seen[digest] for id, digest in hashes[part].items() if digest in seen}
        seen |= {digest: f"{part}: {id}" for id, digest in hashes[part].items() if digest not in seen}
    return {part: found for part, found in copies.items() if found}


def refuse_copies(name: str, copies: Mapping[str, Mapping[str, str]], file: Path) -> None:
    """Raise UserError when two parts of a set share an image."""
    for part, found in copies.items():
        shown = ", ".join(f"{id} = {other}" for id, other in list(found.items())[:3])
        raise UserError(
            f"the {part} part of a downstream set shares {len(found)} images with the later parts, which are not to "
            f"be seen before; all stand in {file}",
            record=name,
            field=f"transfer.{name}.{part}",
            value=shown,
            fix="cut the parts apart, or set `copies: drop` to leave these images out",
        )


def without(dataset: Dataset, ids: set[str]) -> Dataset:
    """A dataset without some of its images."""
    if not ids:
        return dataset
    left = [index for index in range(len(dataset)) if dataset.id(index) not in ids]
    return Subset(dataset, np.array(left, np.int64))
