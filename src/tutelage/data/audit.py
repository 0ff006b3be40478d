"""Reads everything a dataset holds, before anything is trained on it, and says all that is wrong."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.data.source import BadImage, Dataset, Fault, LabelSpace, Picture
from tutelage.errors import UserError
from tutelage.threads import Threads
from tutelage.types import IGNORE, Boxes, Field, Label, Maps, Mask, Target, Vectors

BUCKETS = (64, 128, 256, 512, 1024)
"""Edges of the size buckets, in pixels of the shorter side."""
_CHUNK = 64


@dataclass
class Tally:
    """Counts over some images; tallies add up.

    Attributes:
        ids, hashes: of every image, in order; the hash is "" where the image cannot be read.
        sizes: (height, width) of every image that decodes.
        labelled, unlabelled: images that decode with a usable label, and with none.
        quarantined: images that do not decode, or whose label says nothing: a run sets them aside.
        refused: images whose label contradicts them or its classes: a run stops at the first.
        boxes, ignored_boxes, empty: of Boxes: how many, how many to ignore, images without any.
        classes: int64 [K]: images (Label), boxes (Boxes) or pixels (Mask) a class.
        pixels, valid: of Mask, Field and Vectors: pixels of labelled images, and those with a label.
        low, high: the smallest and the greatest valid value of Field.
        facing: of Vectors: valid pixels with z < 0.
        faults: found while reading.
    """

    classes: NDArray[np.int64]
    ids: list[str] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    labelled: int = 0
    unlabelled: int = 0
    quarantined: int = 0
    refused: int = 0
    boxes: int = 0
    ignored_boxes: int = 0
    empty: int = 0
    pixels: int = 0
    valid: int = 0
    low: float = float("inf")
    high: float = float("-inf")
    facing: int = 0
    faults: list[Fault] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Take in the tally of the images that follow."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(mine, list):
                mine.extend(value)
            else:
                setattr(self, name, {"low": min, "high": max}.get(name, operator.add)(mine, value))


@dataclass
class Audit:
    """What is in a dataset.

    Attributes:
        name, head, space: of the dataset.
        kind: "label", "boxes", "mask", "field", "vectors", or "" where no image is labelled.
        tally: the counts.
        faults: all of them, those of the index first.
        duplicates: groups of ids whose files are the same byte by byte.
    """

    name: str
    head: str | None
    space: LabelSpace | None
    kind: str
    tally: Tally
    faults: list[Fault]
    duplicates: list[list[str]]

    @property
    def images(self) -> int:
        """All images; always labelled + unlabelled + quarantined + refused."""
        return len(self.tally.ids)

    def histogram(self) -> dict[str, int]:
        """Class name to images, boxes or pixels."""
        return {} if self.space is None else dict(zip(self.space.names, self.tally.classes.tolist(), strict=True))

    def buckets(self) -> dict[str, int]:
        """Images by the length of their shorter side, in pixels."""
        short = [min(size) for size in self.tally.sizes]
        names = [f"< {BUCKETS[0]}"]
        names += [f"{a} to {b - 1}" for a, b in itertools.pairwise(BUCKETS)] + [f">= {BUCKETS[-1]}"]
        counts = np.bincount(np.searchsorted(BUCKETS, short, side="right"), minlength=len(names))
        return {name: count for name, count in zip(names, counts.tolist(), strict=True) if count}

    def lines(self, most: int = 20) -> list[str]:
        """A summary for a person, with at most `most` faults and classes spelled out."""
        tally = self.tally
        text = [f"{self.name}" + (f" -> head '{self.head}'" if self.head else " (pool)")]
        text.append(
            f"  images      {self.images}: {tally.labelled} labelled, {tally.unlabelled} unlabelled, "
            f"{tally.quarantined} quarantined" + (f", {tally.refused} refused" if tally.refused else "")
        )
        text += self._size_lines() + self._label_lines() + self._class_lines(most)
        if self.duplicates:
            spare = sum(len(group) - 1 for group in self.duplicates)
            text.append(
                f"  doubles     {spare} images are copies of others, such as {' = '.join(self.duplicates[0][:3])}"
            )
        text.append(f"  faults      {self._fault_counts()}")
        for fault in self.faults[:most]:
            where = " ".join(part for part in (fault.file, fault.record, fault.field) if part)
            text.append(f"    {fault.outcome}: {fault.problem}" + (f": {fault.value}" if fault.value else ""))
            text.append(f"      {where}")
        if len(self.faults) > most:
            text.append(f"    and {len(self.faults) - most} more")
        return text

    def _size_lines(self) -> list[str]:
        if not self.tally.sizes:
            return []
        heights, widths = np.array(self.tally.sizes).T
        parts = [f"{int(f(widths))} x {int(f(heights))}" for f in (np.min, np.median, np.max)]  # each side on its own
        shares = ", ".join(f"{name}: {count}" for name, count in self.buckets().items())
        return [
            f"  size        width x height, each side's least {parts[0]}, median {parts[1]}, greatest {parts[2]}",
            f"  short side  {shares}",
        ]

    def _label_lines(self) -> list[str]:
        tally = self.tally
        share = 100 * tally.valid / max(tally.pixels, 1)
        if self.kind == "boxes":
            return [
                f"  boxes       {tally.boxes}, of them {tally.ignored_boxes} to ignore; {tally.empty} images have none"
            ]
        if self.kind == "mask":
            return [f"  pixels      {100 - share:.1f}% ignored"]
        if self.kind == "field":
            return [f"  depth       {tally.low:.3g} to {tally.high:.3g}, {share:.1f}% of the pixels valid"]
        if self.kind == "vectors":
            facing = 100 * tally.facing / max(tally.valid, 1)
            return [f"  normals     {share:.1f}% of the pixels valid, {facing:.1f}% of those with z < 0"]
        return []

    def _class_lines(self, most: int) -> list[str]:
        ranked = sorted(self.histogram().items(), key=lambda item: -item[1])
        if not ranked:
            return []
        unit = {"boxes": "boxes", "mask": "pixels"}.get(self.kind, "images")
        shown = ", ".join(f"{name} {count}" for name, count in ranked[:most])
        more = f", and {len(ranked) - most} rarer ones" if len(ranked) > most else ""
        return [f"  classes     {len(ranked)}, {unit} each: {shown}{more}"]

    def _fault_counts(self) -> str:
        counts: dict[str, int] = {}
        for fault in self.faults:
            counts[fault.outcome] = counts.get(fault.outcome, 0) + 1
        return ", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "none"


def audit(dataset: Dataset, workers: int = 1, progress: Callable[[int], None] | None = None) -> Audit:
    """Read every image and every label completely; nothing stops it.

    Args:
        dataset: an opened source.
        workers: threads that read at once.
        progress: called with the number of images read since the last call.
    """
    width = len(dataset.space.names) if dataset.space else 0
    total = Tally(np.zeros(width, np.int64))
    kinds: set[str] = set()
    for tally, found in _tallies(dataset, workers):
        total.add(tally)
        kinds |= found
        if progress is not None:
            progress(len(tally.ids))
    kind = min(kinds, default="")
    faults = [*dataset.faults, *total.faults, *_late_faults(dataset, kind, total)]
    return Audit(dataset.name, dataset.head, dataset.space, kind, total, faults, _duplicates(total))


def overlaps(a: Audit, b: Audit) -> list[tuple[str, str]]:
    """Pairs of ids, one of each dataset, whose files are the same byte by byte: training data inside test data, say."""
    known: dict[str, str] = {}
    for id, digest in zip(a.tally.ids, a.tally.hashes, strict=True):
        if digest:
            known.setdefault(digest, id)
    pairs = zip(b.tally.ids, b.tally.hashes, strict=True)
    return [(known[digest], id) for id, digest in pairs if digest in known]


def check_target(target: Target, height: int, width: int, space: LabelSpace | None) -> str | None:
    """What contradicts the promises of `tutelage.types` or the image's size, in words; None when all is well."""
    classes = len(space.names) if space else 0
    if isinstance(target, Label):
        probs = target.probs
        if probs.shape != (classes,):
            return f"probabilities of shape {list(probs.shape)} for {classes} classes"
        return None if bool(((probs >= 0) & (probs <= 1)).all()) else "probabilities outside [0, 1]"
    if isinstance(target, Boxes):
        x1, y1, x2, y2 = target.boxes.unbind(1)
        inside = (x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height) & (x1 < x2) & (y1 < y2)
        if not bool(inside.all()):
            return f"{int((~inside).sum())} boxes outside the image, reversed or of no area"
        fits = (target.classes >= 0) & (target.classes < classes)
        return None if bool(fits.all()) else f"class indices outside 0 to {classes - 1}"
    if isinstance(target, Maps):
        return None if bool(torch.isfinite(target.values).all()) else "values that are not finite"
    pixels = target.ids if isinstance(target, Mask) else target.valid
    if tuple(pixels.shape) != (height, width):
        return f"a label of {pixels.shape[1]} x {pixels.shape[0]} for an image of {width} x {height}"
    if isinstance(target, Mask):
        return None if bool(((pixels < classes) | (pixels == IGNORE)).all()) else f"class ids above {classes - 1}"
    if not bool(torch.isfinite(target.values).all()):
        return "values that are not finite"
    if isinstance(target, Vectors):
        length = target.values.norm(dim=0)[target.valid]
        return None if bool(((length - 1).abs() < 1e-3).all()) else "normals that are not of length 1"
    return None


def _tallies(dataset: Dataset, workers: int) -> Iterator[tuple[Tally, set[str]]]:
    starts = range(0, len(dataset), _CHUNK)
    if workers <= 1:
        yield from (_tally(dataset, start) for start in starts)
        return
    # Threads do: reading, hashing and decoding, which is nearly all, run outside of Python's lock.
    with Threads(workers) as pool:
        yield from pool.map(partial(_tally, dataset), starts)


def _tally(dataset: Dataset, start: int) -> tuple[Tally, set[str]]:
    tally = Tally(np.zeros(len(dataset.space.names) if dataset.space else 0, np.int64))
    kinds: set[str] = set()
    for index in range(start, min(start + _CHUNK, len(dataset))):
        tally.ids.append(dataset.id(index))
        try:
            tally.hashes.append(dataset.sha256(index))
        except BadImage:
            tally.hashes.append("")
        try:
            picture = _decoded(dataset, index)
            tally.sizes.append((picture.height, picture.width))
            target = dataset.target(index)
            if target is None:
                tally.unlabelled += 1
            else:
                wrong = check_target(target, picture.height, picture.width, dataset.space)
                if wrong is not None:
                    raise UserError(wrong, record=dataset.id(index))
                _count(tally, target)
                kinds.add(type(target).__name__.lower())
            tally.faults += dataset.mended(index)
        except BadImage as error:
            tally.quarantined += 1
            tally.faults.append(_as_fault(error, dataset, index))
        except UserError as error:
            tally.refused += 1
            tally.faults.append(_as_fault(error, dataset, index))
    return tally, kinds


def _decoded(dataset: Dataset, index: int) -> Picture:
    """The picture, after its pixels were decoded and measured. Raises BadImage."""
    picture = dataset.picture(index)
    shape = picture.read().shape
    if shape != (picture.height, picture.width, 3):
        raise BadImage(f"it decodes to {list(shape)}, its header says {picture.width} x {picture.height}")
    return picture


def _as_fault(error: BadImage | UserError, dataset: Dataset, index: int) -> Fault:
    if isinstance(error, BadImage):
        return Fault(dataset.file(index), dataset.id(index), str(error), "quarantined", "image")
    value = "" if error.value is None else str(error.value)
    file = str(error.file or dataset.file(index))
    return Fault(file, dataset.id(index), error.problem, "refused", error.field or "label", value)


def _count(tally: Tally, target: Target) -> None:
    tally.labelled += 1
    size = len(tally.classes)
    if isinstance(target, Label):
        tally.classes += (target.probs >= 0.5).numpy().astype(np.int64)
    elif isinstance(target, Boxes):
        tally.boxes += len(target)
        tally.ignored_boxes += int(target.ignore.sum())
        tally.empty += len(target) == 0
        tally.classes += np.bincount(target.classes.numpy(), minlength=size)
    elif isinstance(target, Mask):
        seen = np.bincount(target.ids.numpy().ravel(), minlength=256)
        tally.classes += seen[:size]
        tally.pixels += target.ids.numel()
        tally.valid += target.ids.numel() - int(seen[IGNORE])
    else:
        tally.pixels += target.valid.numel()
        tally.valid += int(target.valid.sum())
        if isinstance(target, Field) and bool(target.valid.any()):
            values = target.values[target.valid]
            tally.low, tally.high = min(tally.low, float(values.min())), max(tally.high, float(values.max()))
        elif isinstance(target, Vectors):
            tally.facing += int((target.valid & (target.values[2] < 0)).sum())


def _late_faults(dataset: Dataset, kind: str, total: Tally) -> list[Fault]:
    """What only shows over all images: classes that no mask holds, normals that point away from the camera."""
    faults = []
    if kind == "mask" and dataset.space is not None:
        for k in np.flatnonzero(total.classes == 0).tolist():
            faults.append(Fault(dataset.name, dataset.space.names[k], "no mask holds the class", "counted", "class"))
    if kind == "vectors" and total.facing < 0.5 * total.valid:
        problem = (
            "most normals point away from the camera: other axes than x right, y down, z into the scene? (`negate`)"
        )
        value = f"{total.facing} of {total.valid} pixels have z < 0"
        faults.append(Fault(dataset.name, "", problem, "counted", "z", value))
    return faults


def _duplicates(total: Tally) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for id, digest in zip(total.ids, total.hashes, strict=True):
        if digest:
            groups.setdefault(digest, []).append(id)
    return [group for group in groups.values() if len(group) > 1]
