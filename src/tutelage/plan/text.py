"""A plan as text, at most 100 columns wide."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tutelage.plan.figures import NOTHING as NO_TIME
from tutelage.plan.figures import Estimate, HeadCost, Plan, SourceCost, Span, TrainingCost

LARGER = (1_000_000, 300_000_000)
"""Pools that a plan is made for as well."""

_BUSY = 0.5  # load a core, before the probe began, above which it is said


def lines(plan: Plan, workers: int = 1) -> Iterator[str]:
    """The whole text.

    Args:
        plan: what was measured.
        workers: devices that share the labelling.
    """
    images = sum(source.images for source in plan.sources)
    yield f"Plan of {plan.recipe}: {images:,} images in {len(plan.sources)} sources, {len(plan.heads)} heads."
    yield f"Measured in {plan.probing:.0f} s on {plan.machine}. Nothing is kept."
    yield "Figures are means of the probe, least to greatest batch in brackets; what is assumed says so."
    yield ""
    yield from _sources(plan.sources)
    yield ""
    if plan.heads:
        yield from _heads(plan.heads)
        yield ""
    yield from _trainings(plan.trainings)
    yield ""
    yield from _estimates(plan, workers)
    yield ""
    yield from _notes(plan, workers)


def _sources(sources: Sequence[SourceCost]) -> Iterator[str]:
    made = any(source.rendering for source in sources)

    def row(name: str, rendered: str, *cells: str) -> str:
        widths = (13, 6, 12, 10, 11, 19)
        line = f"{name[:20]:<20}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        return line + (f"{rendered:>9}" if made else "")

    yield row("SOURCES", "made/s", "images", "read", "size", "file", "decoded/s", "labelled/s")
    for s in sources:
        yield row(
            s.name[: 20 - 7 * s.pool] + " (pool)" * s.pool,
            _rate(s.rendering) if s.rendering else "-",
            f"{s.images:,}",
            f"{s.sampled}",
            f"{s.width}x{s.height}",
            "-" if s.file_bytes is None else amount(s.file_bytes),
            _rate(s.reading),
            _rates(s.labelling),
        )
        if s.unreadable:
            yield f"  {s.unreadable} of the {s.sampled} cannot be read"
    yield "  labelled/s: one pass with all teachers together; the mean includes its beginning and end"


def _heads(heads: Sequence[HeadCost]) -> Iterator[str]:
    yield f"{'LABELS':<20}{'teacher':<14}{'images/s alone':>21}{'an image':>9}   bytes from"
    for h in heads:
        rate = "-" if h.predicting is None else _rates(h.predicting)
        each = [rows.stored for rows in h.rows.values()]
        size = amount(sum(each) / len(each)) if each else "-"
        yield f"{h.name[:19]:<20}{h.teacher[:13]:<14}{rate:>21}{size:>9}   {h.assumed or 'measured'}"


def _trainings(trainings: Sequence[TrainingCost]) -> Iterator[str]:
    yield f"{'TRAINING':<34}{'steps':>11}{'batch':>7}{'images/s':>20}{'timed':>10}{'in all':>18}"
    for t in trainings:
        name = t.name if t.stage == "student" else f"{t.stage.removesuffix('s')}: {t.name}"
        steps, rate = (f"{t.steps:,}", t.training) if t.steps else ("-", t.scoring)
        timed = f"{rate.samples} step{'s' * (rate.samples > 1)}"
        yield f"{name[:33]:<34}{steps:>11}{t.batch:>7,}{_rates(rate):>20}{timed:>10}{_times(t.seconds()):>18}"
        if t.probed != t.batch:
            yield f"  timed with {t.probed} images a step"


def _estimates(plan: Plan, workers: int) -> Iterator[str]:
    """The columns: this pool and larger ones."""
    larger = () if plan.stored or not plan.sources else LARGER
    found = [plan.at(), *(plan.at(n) for n in larger)]

    def row(name: str, show: Callable[[Estimate], str]) -> str:
        return f"{name[:24]:<25}" + "".join(f"{show(estimate):>25}" for estimate in found)

    def span(name: str, of: Callable[[Estimate], Span]) -> str:
        return row(name, lambda estimate: _times(of(estimate)))

    yield row("IN ALL", lambda e: "this recipe" if e is found[0] else f"{_short(e.pool)} in the pool")
    yield row("images", lambda e: f"{e.images:,}")
    for head in plan.heads:
        yield row(f"labels: {head.name}", lambda e, name=head.name: amount(e.labels[name]))  # type: ignore[misc]
    yield row("labels of all heads", lambda e: amount(sum(e.labels.values())))
    yield row("unpacked for training", lambda e: amount(e.unpacked))
    yield row("memory: names of images", lambda e: amount(e.source_index) if e.source_index else "-")
    yield row("memory: places of labels", lambda e: amount(e.label_index))
    if found[-1].rendering != NO_TIME:
        yield span("making images", lambda e: e.rendering)
    yield span("teachers", lambda e: e.teachers)
    yield span("labelling", lambda e: e.labelling)
    yield row("student, steps", lambda e: f"{e.student_steps:,}")
    yield span("student", lambda e: e.student)
    yield span("transfer", lambda e: e.transfer)
    yield span("one device, everything", lambda e: e.device)
    yield span(f"labelling, {workers} device{'s' * (workers > 1)}", lambda e: e.labelling.times(1 / workers))
    yield span("until the end", lambda e: e.wall(workers))


def _notes(plan: Plan, workers: int) -> Iterator[str]:
    host, gpu = plan.memory
    yield f"Peak memory of the probe: {amount(host)}" + (f", on the GPU {amount(gpu)}." if gpu else ".")
    if plan.load > _BUSY * plan.cores:
        yield f"Other programs kept the machine busy (load {plan.load:.1f} on {plan.cores} cores): it can be faster."
    yield "Assumed:"
    yield "- The range takes all batches to be like the fastest, or all like the slowest, that was seen."
    if any(head.assumed for head in plan.heads):
        yield "- Teachers that are still to be trained cost what their network costs with random weights. Their"
        yield "  labels hold what the column 'bytes from' says; pixels: up to the size of the network's input."
        yield "  Of larger images, bytes grow as the square root of the pixels (within a factor of 1.5 where it"
        yield "  was measured). --assume changes these figures."
    if plan.labelled > 1 and plan.heads:
        yield f"- Labels are made {plan.labelled} times (variants, repetitions, rounds): time and bytes are of all."
    if plan.sources and not plan.stored:
        grow = "pools, mixed as now" if any(source.pool for source in plan.sources) else "sources: there is no pool"
        yield f"- Further images are like those of the {grow}. Teachers and downstream sets"
        yield "  stay as they are; the student sees every image as often as now (its steps grow)."
    yield "- Images come from the page cache, as those of the probe did: a slow disk or network adds to it."
    if workers > 1:
        yield f"- {workers} devices label {workers} times as fast as this one. All else is done by one, in turn."
    else:
        yield "- Everything is done by one process, in turn (--jobs does teachers and transfer side by side)."
    yield "Unpacked: before training, labels are copied into files for random access; both stay on disk."
    yield "Not counted: comparison on held-out images, classifiers on frozen features, pictures, report."


# Numbers ------------------------------------------------------------------------------------------------------------


_BYTES = ("B", "kB", "MB", "GB", "TB", "PB")


def amount(count: float) -> str:
    """Bytes in a unit of 1000, three digits."""
    power = 0
    while count >= 999.5 and power < len(_BYTES) - 1:
        count, power = count / 1000, power + 1
    unit = _BYTES[power]
    return f"{count:,.0f} {unit}" if count >= 100 or unit == "B" else f"{count:.3g} {unit}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, two or three digits."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 9.5 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 360_000 else f"{_number(seconds / 3600)} h"


def _times(span: Span) -> str:
    """A sum of seconds with its range, in the mean's unit."""
    if span.mean == 0:
        return "-"
    text = duration(span.mean)
    unit = text.rsplit(" ", 1)[1]
    low, high = (_in(seconds, unit) for seconds in (span.low, span.high))
    return text if low == high else f"{text} ({low}-{high})"


def _in(seconds: float, unit: str) -> str:
    return _number(seconds / {"s": 1, "min": 60, "h": 3600}[unit])


def _rate(span: Span) -> str:
    return _number(1 / span.mean)


def _rates(span: Span) -> str:
    """Images a second with their range."""
    if span.mean == 0:
        return "-"
    mean, low, high = (_number(1 / seconds) for seconds in (span.mean, span.high, span.low))
    return mean if low == high else f"{mean} ({low}-{high})"


def _number(value: float) -> str:
    if value >= 9999.5:
        return f"{value / 1000:,.3g}k" if value < 999_500 else f"{value / 1000:,.0f}k"
    return f"{value:,.0f}" if value >= 9.5 else f"{value:.2g}"


def _short(count: int) -> str:
    return f"{count // 1_000_000:,}M" if count % 1_000_000 == 0 and count else f"{count:,}"
