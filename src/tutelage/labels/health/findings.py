"""What a person should know of a labels store before training on it, in words, with the figure and what to do.

The limits are not learned from anything: they are set where labels of a working teacher do not lie, so that a finding
is a reason to look at the examples, and no finding is no proof.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.labels.health.agreement import Agreement
from tutelage.labels.health.health import HeadHealth, StoreHealth
from tutelage.labels.health.histogram import never, skews
from tutelage.labels.health.statistics import (
    SURE,
    BoxesSummary,
    FieldSummary,
    LabelSummary,
    MaskSummary,
    Scores,
    VectorsSummary,
)

_QUARANTINED = 0.01
"""Share of the images: a pool from the web holds some broken files, seldom one in a hundred."""
_EMPTY = 0.8
"""Share of images without a box: in most photographs something is found."""
_IGNORED = 0.8
"""Share of pixels without a class."""
_SURE_SHARE = 0.95
"""Share of scores of at least 0.99: with more no threshold sorts anything out."""
_SURE_PIXELS = 0.995
"""The same of pixels, most of which are easy: far from any edge."""
_UNSURE = 1.5
"""Middle probability of the likeliest class, in multiples of chance, up to which the teacher knows next to nothing."""
_ONE_CLASS = 0.9
"""Share of one class of all labels, where there are three classes or more."""
_TIMES = 5.0
"""How many times the people's share a teacher's share of a class may be, and the other way round."""
_LARGE = 0.02
"""Share from which on such a class is worth naming."""
_CROWD = 50
"""Boxes an image on average: more come from a threshold that is too low."""
_WHOLE = 0.9
"""Share of the image that the middle box covers: then boxes say no more than classes do."""
_INVALID = 0.5
"""Share of pixels without a value."""
_FLAT = 0.02
"""Standard deviation over mean inside the middle image: depth, or features, hardly vary."""
_METRES = (0.05, 500.0)
"""Between these the middle depth of photographs lies; outside the unit is another one."""
_ALIKE = 0.95
"""Length of the mean normal: 1 where all point the same way."""
_CONTRADICT = 1.2
"""An agreement of at most this multiple of chance."""
_COMPARED = 30
"""Images, boxes or pixels that such a judgement needs at least."""
_NAMED = 6
"""Classes named one by one."""


@dataclass(frozen=True)
class Finding:
    """Attributes:
    head: one head, or two with "and" between.
    text: what was found, with its figure: a sentence.
    advice: what to do: a sentence or two.
    """

    head: str
    text: str
    advice: str


def findings(store: StoreHealth) -> list[Finding]:
    """All findings, head by head, then pairs of heads."""
    found = [Finding(head.head, *words) for head in store.heads for words in _of_head(head)]
    return found + [Finding(" and ".join(pair.heads), *words) for pair in store.agreement for words in _of_pair(pair)]


Words = Iterator[tuple[str, str]]
"""Texts with their advice."""


def _of_head(head: HeadHealth) -> Words:
    counts = head.counts
    if counts.quarantined > _QUARANTINED * counts.read:
        yield (
            f"{percent(counts.quarantined, counts.read)} of the images were set aside: {counts.undecodable:,} cannot "
            f"be read, {counts.faulty:,} got a prediction that is no label.",
            "The reasons stand in quarantine.jsonl of the stage, and in the shards.",
        )
    if not head.looked_at:
        yield (
            "There is no label at all.",
            "Every image has a human label for this head, or was set aside; this head learns from people only.",
        )
        return
    yield from _JUDGES[head.kind](head, head.summary)
    if head.classes:
        yield from _classes(head)


def _boxes(head: HeadHealth, found: BoxesSummary) -> Words:
    if found.scores.stored == 0:
        yield (
            f"No box is stored for any of the {head.looked_at:,} images that were looked at.",
            "The teacher finds nothing: check its weights, its input size and its normalisation.",
        )
        return
    if found.without >= _EMPTY * head.looked_at:
        lower = _other_threshold(found.scores, head.looked_at)
        yield (
            f"{percent(found.without, head.looked_at)} of the images have no box above the threshold ({head.rule}).",
            "The student learns from them that there is nothing to find. "
            + (lower or "No threshold changes that: the teacher finds next to nothing."),
        )
    if found.kept > _CROWD * head.looked_at:
        yield (
            f"{found.kept / head.looked_at:,.0f} boxes are kept an image.",
            "Look at the examples; a higher threshold, or non-maximum suppression across classes, thins them out.",
        )
    if found.area is not None and found.area.median >= _WHOLE:
        yield (
            f"Half of the boxes cover {found.area.median:.0%} of their image or more.",
            "Is the teacher's box decoding right? Such boxes teach classes, not places.",
        )
    yield from _sure(found.scores, "boxes", _SURE_SHARE)


def _label(head: HeadHealth, found: LabelSummary) -> Words:
    chance = 1 / max(1, len(head.classes))
    if found.median is not None and found.median <= _UNSURE * chance:
        yield (
            f"The likeliest class of the middle image has a probability of {found.median:.2g}; chance is {chance:.2g}.",
            "The teacher does not know these images: check its normalisation, or whether the pool shows its classes.",
        )
    yield from _sure(found.scores, "images", _SURE_SHARE)


def _mask(head: HeadHealth, found: MaskSummary) -> Words:
    ignored = found.pixels - found.kept
    if ignored >= _IGNORED * found.pixels:
        half = [row for row in found.scores.thresholds if row.kept >= found.pixels / 2]
        yield (
            f"{percent(ignored, found.pixels)} of the pixels are ignored ({head.rule}).",
            f"A threshold of {half[-1].threshold:g} would keep {half[-1].kept / found.pixels:.0%} of them."
            if half
            else "No threshold keeps half of them: the teacher does not know these images.",
        )
    yield from _sure(found.scores, "pixels", _SURE_PIXELS)


def _field(head: HeadHealth, found: FieldSummary) -> Words:
    if found.valid < _INVALID * found.pixels:
        yield (
            f"Only {percent(found.valid, found.pixels)} of the pixels have a depth.",
            "Look at the examples: what the teacher leaves out, the student is not taught.",
        )
    if found.varied is not None and found.varied <= _FLAT:
        yield (
            f"Depth hardly varies inside an image: by {found.varied:.1%} of its mean on the middle one.",
            "The teacher sees no depth here: check its weights and its normalisation.",
        )
    if found.unit == "m" and found.values is not None and not _METRES[0] <= found.values.median <= _METRES[1]:
        yield (
            f"The middle depth is {found.values.median:.3g} m.",
            "Are these metres? Millimetres, or inverse depth, would look like this.",
        )


def _vectors(head: HeadHealth, found: VectorsSummary) -> Words:
    if found.valid < _INVALID * found.pixels:
        yield (
            f"Only {percent(found.valid, found.pixels)} of the pixels have a normal.",
            "Look at the examples: what the teacher leaves out, the student is not taught.",
        )
    if found.valid and found.facing < 0.5 * found.valid:
        yield (
            f"{percent(found.valid - found.facing, found.valid)} of the normals point away from the camera.",
            "The axes are x right, y down, z into the scene: turn those of the teacher.",
        )
    length = 0.0 if found.mean is None else math.hypot(*found.mean)
    if length >= _ALIKE:
        yield (
            f"Nearly all normals point the same way: their mean has a length of {length:.2f}.",
            "The teacher sees no shape here: check its weights and its normalisation.",
        )


def _maps(head: HeadHealth, found: FieldSummary) -> Words:
    if found.varied is not None and found.varied <= _FLAT:
        yield (
            f"Features hardly differ inside an image: by {found.varied:.1%} of their mean length on the middle one.",
            "The network sees nothing here: check its weights and its normalisation.",
        )


_JUDGES: dict[str, Callable[[HeadHealth, Any], Words]] = {
    "Boxes": _boxes,
    "Label": _label,
    "Mask": _mask,
    "Field": _field,
    "Vectors": _vectors,
    "Maps": _maps,
}


def _sure(scores: Scores, things: str, limit: float) -> Words:
    if scores.stored >= _COMPARED and scores.sure >= limit * scores.stored:
        yield (
            f"Scores pile up at 1: {percent(scores.sure, scores.stored)} of the {things} have at least {SURE}.",
            "No threshold can sort out the wrong ones: look at the worst examples.",
        )


def _classes(head: HeadHealth) -> Words:
    total = sum(entry.pseudo for entry in head.classes)
    if not total:
        return
    missing = never(head.classes)
    if missing:
        yield (
            f"{len(missing)} of {len(head.classes)} classes {'was' if len(missing) == 1 else 'were'} never predicted: "
            f"{named(missing)}.",
            "The student sees them in human labels only. A threshold for a class of its own may bring them back.",
        )
    first = max(head.classes, key=lambda entry: entry.pseudo)
    human = sum(entry.human or 0 for entry in head.classes)
    usual = (first.human or 0) / human if human else 0.0
    if len(head.classes) > 2 and first.pseudo >= _ONE_CLASS * total and usual < _ONE_CLASS / 2:
        yield (
            f"{percent(first.pseudo, total)} of the labels are {first.name}"
            + (f", against {percent(first.human or 0, human)} of the people's." if human else "."),
            "Is the pool like that? Look at the random examples.",
        )
        return
    apart = skews(head.classes)
    much = [s for s in apart if s.times >= _TIMES and s.pseudo >= _LARGE]
    little = [s for s in reversed(apart) if 0 < s.times <= 1 / _TIMES and s.human >= _LARGE]
    for some, word in ((much, "more"), (little, "less")):
        if some:
            shown = "; ".join(f"{s.name} {s.pseudo:.1%} against {s.human:.1%}" for s in some[:3])
            yield (
                f"The teacher gives some classes far {word} often than people did: {shown}.",
                "Where the pool is unlike the training images that may be right; else look at the examples.",
            )


def _of_pair(pair: Agreement) -> Words:
    if pair.value is None or pair.compared < _COMPARED:
        return
    on = f"on {pair.images:,} images"
    if pair.by == "rank correlation":
        if pair.value < 0:
            yield (
                f"What is near for one is far for the other: a rank correlation of {pair.value:.2f} {on}.",
                "One of them holds inverse depth and does not say so: state it in the head (`mode`, `target`).",
            )
    elif pair.by == "angle":
        if pair.value > 60:
            yield (
                f"Their normals differ by {pair.value:.0f} degrees on average {on}.",
                "Do both use the same axes (x right, y down, z into the scene)?",
            )
    elif pair.chance is not None and pair.value <= _CONTRADICT * pair.chance:
        yield (
            f"They agree no better than by chance: {pair.value:.0%} against {pair.chance:.0%} {on}.",
            "At least one of the two does not know these images: compare their examples.",
        )


def _other_threshold(scores: Scores, images: int) -> str:
    """What a lower threshold would do, as a sentence; empty where none leaves a box on half of the images."""
    fit = [row for row in scores.thresholds if row.without <= images / 2]
    if not fit:
        return ""
    return f"A threshold of {fit[-1].threshold:g} would leave a box on {1 - fit[-1].without / images:.0%} of them."


def named(names: Sequence[str], most: int = _NAMED) -> str:
    """Names with commas, the rest counted."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def percent(part: float, whole: float) -> str:
    """A share with as many digits as it needs: 91%, 0.4%, 99.97%."""
    share = 100 * part / whole if whole else 0.0
    close = min(share, 100 - share)
    return f"{share:.{0 if close >= 10 or close == 0 else 1 if close >= 0.1 else 2}f}%"
