"""What `tutelage labels show` prints: the health of a store as text, and every damaged file of it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from tutelage.errors import UserError
from tutelage.labels.health.agreement import MEANINGS, Agreement
from tutelage.labels.health.findings import findings, named, percent
from tutelage.labels.health.health import (
    FILE,
    HeadHealth,
    StoreHealth,
    human_of,
    read_health,
    store_health,
    stored_tasks,
    task_from,
)
from tutelage.labels.health.histogram import never, skews
from tutelage.labels.health.statistics import (
    THRESHOLDS,
    BoxesSummary,
    FieldSummary,
    LabelSummary,
    MaskSummary,
    Quantiles,
    Scores,
    VectorsSummary,
)
from tutelage.labels.store import Store, find_store
from tutelage.part import nearest, override
from tutelage.progress import Progress
from tutelage.tasks.task import Task

WIDTH = 100
"""Columns of the text."""
_NAME = 13
"""Columns before a line's content."""
_RANKED = 8
"""Classes listed."""
_EXAMPLES = 3
"""Of each sort."""
_BLOCKS = " ▁▂▃▄▅▆▇█"
_THINGS = {"Boxes": "boxes", "Label": "images", "Mask": "pixels"}


def tasks_with(store: Store, settings: Sequence[str] = ()) -> dict[str, Task | None]:
    """The tasks of a store with other rules: settings such as `things.pseudo_threshold=0.3`.

    Raises:
        UserError: a head that the store does not have, or a key that its task does not have.
    """
    tasks = stored_tasks(store)
    for setting in settings:
        head = setting.split(".", 1)[0]
        if head not in tasks:
            raise UserError(
                f"there are no labels of a head '{head}'{nearest(head, tasks)}",
                value=setting,
                fix=f"HEAD.KEY=VALUE with a head of this store: {', '.join(tasks)}",
            )
    if settings:
        plain = {head: {} if task is None else task.plain() for head, task in tasks.items()}
        changed = override(plain, settings)
        tasks = {head: task_from(store.manifest(head), values) for head, values in changed.items()}
    return tasks


def show(
    folder: Path,
    settings: Sequence[str] = (),
    *,
    progress: Progress | None = None,
) -> Iterator[str]:
    """The health of a store as lines of text, at most 100 columns wide; nothing is written.

    Args:
        folder: of the store, or of a run.
        settings: other rules to look through, such as `things.pseudo_threshold=0.3`.
        progress: where the bar is shown.

    Raises:
        UserError: no finished labels, damaged ones, or settings that do not fit.
    """
    store = Store(find_store(folder))
    tasks = tasks_with(store, settings)
    known = store.root / FILE  # where a run leaves the class counts of its teachers' training labels
    human = human_of(read_health(known)) if known.is_file() else None
    yield from lines(store_health(store, tasks, human=human, progress=progress), str(store.root))


def lines(found: StoreHealth, name: str) -> Iterator[str]:
    """A store's health as lines of text."""
    total = sum(head.storage.bytes for head in found.heads)
    yield f"Labels in {name}: {len(found.heads)} head{'s' * (len(found.heads) != 1)}, {size(total)}"
    yield ""
    concerns = findings(found)
    if concerns:
        yield "Look at this first"
        for concern in concerns:
            yield from _wrapped(f"! {concern.head}: {concern.text}", "  ", "    ")
            yield from _wrapped(concern.advice, "    ", "    ")
    else:
        yield "Nothing conspicuous."
    for head in found.heads:
        yield ""
        yield from head_lines(head)
    if found.agreement:
        yield ""
        yield "Agreement between teachers"
        for pair in found.agreement:
            yield from _wrapped(agreement_line(pair), "  ", "    ")


def head_lines(head: HeadHealth) -> Iterator[str]:
    """One head's health as lines of text."""
    yield f"{head.head} ({head.task}, teacher {head.teacher})"
    counts = head.counts
    aside = f" ({counts.undecodable:,} undecodable, {counts.faulty:,} faulty predictions)" if counts.quarantined else ""
    yield from _line(
        "images",
        f"{counts.read:,} read = {counts.labelled:,} labelled + {counts.human:,} human + "
        f"{counts.quarantined:,} quarantined{aside}",
    )
    yield from _line("looked at", looked_at(head))
    about = ", ".join(f"{key} {value}" for key, value in head.about.items() if isinstance(value, str | int | float))
    if about:
        yield from _line("teacher", about)
    yield from _line("rule", head.rule)
    match head.summary:
        case BoxesSummary() as found:
            yield from _boxes(head, found)
        case LabelSummary() as found:
            yield from _scores(found.scores, head)
        case MaskSummary() as found:
            yield from _mask(head, found)
        case FieldSummary() as found:
            share = percent(found.valid, found.pixels)
            yield from _line("valid", f"{share} of the pixels")
            yield from _line("values", quantiles(found.values, found.unit))
        case VectorsSummary() as found:
            yield from _line("valid", f"{percent(found.valid, found.pixels)} of the pixels")
            if found.mean is not None:
                x, y, z = found.mean
                facing = percent(found.facing, found.valid)
                yield from _line("direction", f"mean x {x:+.2f}, y {y:+.2f}, z {z:+.2f}; {facing} face the camera")
    if head.classes:
        yield from _classes(head)
    for why in ("best", "worst", "random"):
        shown = [(f"{e.source}/{e.id}", e.score) for e in head.examples if e.why == why][:_EXAMPLES]
        if shown:
            images = (image if score is None else f"{image} ({score:.2f})" for image, score in shown)
            yield from _line(why, ", ".join(images))
    yield from _line("storage", storage(head))


def looked_at(head: HeadHealth) -> str:
    """How many records the figures come from."""
    if head.looked_at == head.records:
        return f"all {head.records:,} records"
    return f"{head.looked_at:,} of {head.records:,} records, chosen by a seed; the figures below are theirs"


def storage(head: HeadHealth) -> str:
    """Bytes of a head in words."""
    found = head.storage
    each = size(found.bytes / head.records) if head.records else "nothing"
    derived = f"; {size(found.derived)} derived beside them" if found.derived else ""
    shards = f"{found.shards:,} shard{'s' * (found.shards != 1)} of {size(found.least)} to {size(found.greatest)}"
    return f"{size(found.bytes)}, {each} a record, in {shards}{derived}"


def quantiles(found: Quantiles | None, unit: str) -> str:
    """A distribution in words."""
    if found is None:
        return "none"
    unit = f" {unit}" if unit == "m" else f" ({unit})" if unit else ""
    named = f"1% {found.low:.3g}, median {found.median:.3g}, 99% {found.high:.3g}"
    return f"least {found.least:.3g}, {named}, greatest {found.greatest:.3g}{unit}"


def agreement_line(pair: Agreement) -> str:
    """How two heads agree, as a sentence."""
    who = f"{pair.heads[0]} and {pair.heads[1]}"
    names = f"; shared: {named(pair.shared)}" if pair.shared else ""
    if pair.value is None:
        return f"{who}: nothing to compare on {pair.both:,} images that both label{names}"
    chance = "" if pair.chance is None else f" ({pair.chance:.0%} by chance)"
    figure = f"{pair.value:.2f}" if pair.by == "rank correlation" else f"{pair.value:.0f}"
    figure = figure if pair.by in ("rank correlation", "angle") else f"{pair.value:.0%}"
    return f"{who}: {figure} {MEANINGS[pair.by]}{chance}, on {pair.images:,} of {pair.both:,} images{names}"


def size(count: float) -> str:
    """Bytes for people: 235 B, 12.4 kB, 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def _boxes(head: HeadHealth, found: BoxesSummary) -> Iterator[str]:
    images = max(1, head.looked_at)
    yield from _line(
        "boxes",
        f"{found.scores.stored:,} stored, {found.kept:,} kept: {found.kept / images:.2g} an image, "
        f"at most {found.most:,}; {percent(found.without, head.looked_at)} of the images have none",
    )
    if found.area is not None:
        area = found.area
        yield from _line(
            "size", f"share of the image: 1% {area.low:.2g}, median {area.median:.2g}, 99% {area.high:.2g}"
        )
    yield from _scores(found.scores, head)


def _mask(head: HeadHealth, found: MaskSummary) -> Iterator[str]:
    ignored = percent(found.pixels - found.kept, found.pixels)
    yield from _line("pixels", f"{ignored} ignored; images that keep none: {found.without:,}")
    raw = sum(entry.before for entry in head.classes)
    if raw:
        lost = sorted((e for e in head.classes if e.before), key=lambda e: e.pseudo / e.before)
        shown = ", ".join(f"{e.name} {percent(e.before - e.pseudo, e.before)}" for e in lost[:_RANKED])
        yield from _line("ignored", f"most of: {shown}")
    yield from _scores(found.scores, head)


def _scores(scores: Scores, head: HeadHealth) -> Iterator[str]:
    """The distribution above its thresholds, and what each of those would keep: four columns a threshold."""
    if not scores.stored:
        yield from _line("scores", "none stored")
        return
    top = max(scores.histogram)
    bars = "".join(f"   {_BLOCKS[-(-8 * n // top)]}" for n in scores.histogram[1:])
    things, rows = _THINGS[head.kind], scores.thresholds
    yield from _line("scores", bars, wrap=False)
    yield from _line("at least", "".join(f"{f'{t:.2f}'[1:]:>4}" for t in THRESHOLDS), wrap=False)
    yield from _line(f"{things} %", "".join(f"{100 * row.share:>4.0f}" for row in rows), wrap=False)
    if head.kind != "Label":
        without = (f"{100 * row.without / max(1, head.looked_at):>4.0f}" for row in rows)
        yield from _line("without any %", "".join(without), wrap=False)


def _classes(head: HeadHealth) -> Iterator[str]:
    total = sum(entry.pseudo for entry in head.classes)
    human = sum(entry.human or 0 for entry in head.classes)
    ranked = sorted((e for e in head.classes if e.pseudo), key=lambda e: -e.pseudo)
    shown = [
        f"{e.name} {percent(e.pseudo, total)}" + (f" (people {percent(e.human or 0, human)})" if human else "")
        for e in ranked[:_RANKED]
    ]
    more = f" and {len(ranked) - _RANKED} more" if len(ranked) > _RANKED else ""
    yield from _line("classes", f"{len(ranked)} of {len(head.classes)}: {', '.join(shown)}{more}")
    apart = skews(head.classes)
    if apart:
        over, under = apart[0], apart[-1]
        yield from _line("most over", f"{over.name}: {over.pseudo:.1%} against {over.human:.1%} of the people's labels")
        yield from _line(
            "most under", f"{under.name}: {under.pseudo:.1%} against {under.human:.1%} of the people's labels"
        )
    missing = never(head.classes)
    if missing:
        yield from _line("never", named(missing, 12))


def _line(name: str, text: str, wrap: bool = True) -> Iterator[str]:
    start = f"  {name:<{_NAME}} "
    if wrap:
        yield from _wrapped(text, start, " " * len(start))
    else:
        yield (start + text).rstrip()


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
