"""Learning curves as small multiples: one panel a teacher, the student with all its heads, one a downstream set."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tutelage.methods.workshop import STUDENT
from tutelage.recipe import TEACHER
from tutelage.report.folder import CurvePoint, RunFolder, Stage, seconds_as_text
from tutelage.report.plots import Series, legend, line_panel
from tutelage.report.style import HEAD_COLOURS
from tutelage.transfer.rows import RANDOM


def upstream_curves(run: RunFolder, first: bool = True) -> list[str]:
    """One HTML figure a training stage outside `transfer/`, in the order teachers, student, others.

    Args:
        run: whose stages.
        first: those of `first_of`, or all others.
    """
    colours = _head_colours(run)
    trained = [s for s in run.stages if s.curve and not s.name.startswith("transfer/") and first_of(run, s) == first]
    places = {"student": len(colours), **{f"teachers/{head}": n for n, head in enumerate(colours)}}
    trained.sort(key=lambda s: places.get(s.name, len(colours) + 1))
    return [
        _figure(stage.name.replace("teachers/", TEACHER), _by_head(stage, colours), _about(stage)) for stage in trained
    ]


def first_of(run: RunFolder, stage: Stage) -> bool:
    """Whether a stage is no further variant and no further seed of a study; without a study, every stage is first."""
    variants = list(run.section("study"))
    inside = stage.name.split("/")
    return not variants or ("repeats" not in inside and (inside[0] != "study" or inside[1] == variants[0]))


def transfer_curves(run: RunFolder) -> list[str]:
    """One HTML figure a downstream set, a line an initialisation (its first seed)."""
    colours = _head_colours(run)
    rows = dict.fromkeys(m.row for m in run.measurements if m.stage == "transfer")
    sets = {name: n for n, name in enumerate(run.section("transfer"))}
    panels: dict[str, dict[str, Stage]] = {}
    for stage in run.stages:
        parts = stage.name.split("/")
        if parts[0] == "transfer" and len(parts) > 2 and stage.curve:
            panels.setdefault(parts[2], {}).setdefault(stage.init or parts[1], stage)
    order = {row: n for n, row in enumerate(rows)}
    return [
        _figure(
            where,
            [
                _line(row, _row_colour(row, colours), lines[row].curve, row == RANDOM)
                for row in sorted(lines, key=lambda row: order.get(row, len(order)))
            ],
        )
        for where, lines in sorted(panels.items(), key=lambda item: sets.get(item[0], len(sets)))
    ]


def _by_head(stage: Stage, colours: dict[str, str]) -> list[Series]:
    """A line a head; the balanced sum as well where there are several."""
    heads = list(dict.fromkeys(head for point in stage.curve for head in point.heads))
    if len(heads) < 2:
        name = heads[0] if heads else stage.name.split("/")[-1]
        return [_line(name, colours.get(name, "var(--ink)"), stage.curve)]
    lines = [
        Series(
            head,
            colours.get(head, "var(--ink)"),
            [p.step for p in stage.curve],
            [p.heads.get(head, float("nan")) for p in stage.curve],
        )
        for head in heads
    ]
    return [*lines, _line("weighted sum", "var(--ink)", stage.curve, dashed=True)]


def _line(name: str, colour: str, curve: Sequence[CurvePoint], dashed: bool = False) -> Series:
    return Series(name, colour, [p.step for p in curve], [p.loss for p in curve], dashed)


def _figure(title: str, series: Sequence[Series], about: str = "") -> str:
    return (
        f'<figure class="card"><figcaption>{escape(title)} <small class="below">{escape(about)}</small></figcaption>'
        f"{line_panel(f'Training loss of {title}', series)}{legend(series)}</figure>"
    )


def _about(stage: Stage) -> str:
    """Time and speed: the median of images per second, which a pause does not distort."""
    facts = [seconds_as_text(stage.seconds)] if stage.seconds is not None else []
    speeds = sorted(p.images_per_second for p in stage.curve if p.images_per_second > 0)
    if speeds:
        facts.append(f"{speeds[len(speeds) // 2]:,.0f} images/s")
    return " · ".join(facts)


def _head_colours(run: RunFolder) -> dict[str, str]:
    """A colour a head, the same in every chart; heads beyond the palette start again from its beginning."""
    heads = dict.fromkeys(run.section("heads"))
    heads.update(dict.fromkeys(s.name.split("/")[1] for s in run.stages if s.name.startswith("teachers/")))
    heads.update(dict.fromkeys(h for s in run.stages if s.name == "student" for p in s.curve for h in p.heads))
    return {head: f"var(--c{n % HEAD_COLOURS})" for n, head in enumerate(heads)}


def _row_colour(row: str, colours: dict[str, str]) -> str:
    if row == STUDENT:
        return "var(--ink)"
    if row == RANDOM:
        return "var(--muted)"
    return colours.get(row.removeprefix(TEACHER), "var(--ink)")
