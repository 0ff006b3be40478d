"""How a run was made, as a diagram: sources, teachers, pseudo labels, student, transfer, with what each amounts to."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from tutelage.report.folder import RunFolder, Stage, seconds_as_text
from tutelage.training.self_training import PSEUDO
from tutelage.transfer.blind import BLIND

_LINE = 16
_ENTRIES = 7


@dataclass(frozen=True)
class Box:
    """One box of the diagram: a title and short lines."""

    title: str
    lines: tuple[str, ...]


def boxes(run: RunFolder) -> list[Box]:
    """The boxes of a run, in the order of the flow; parts that it does not have are left out."""
    made = [
        Box("sources", _sources(run)),
        Box("teachers", _teachers(run)),
        Box("pseudo labels", _labels(run)),
        Box("student", _student(run)),
        Box("transfer", _transfer(run)),
    ]
    return [box for box in made if box.lines]


def diagram(parts: Sequence[Box]) -> str:
    """The boxes side by side, and for narrow screens below each other (the style sheet shows one of the two)."""
    spoken = escape("; then ".join(f"{box.title}: {', '.join(box.lines)}" for box in parts))
    return _wide(parts, spoken) + _tall(parts, spoken)


def _wide(parts: Sequence[Box], spoken: str) -> str:
    gap, total = 30, 1000
    width = (total - gap * (len(parts) - 1)) / len(parts)
    parts = [_wrapped(box, int((width - 20) / 6.5)) for box in parts]
    height = max(_height(box) for box in parts)
    drawn = []
    for n, box in enumerate(parts):
        x = n * (width + gap)
        drawn.append(_box(box, x, 0, width, height))
        if n:
            drawn.append(_arrow(f"M{x - gap + 5:.0f} {height / 2:.0f}h{gap - 12}m-6 -5l6 5l-6 5"))
    return f'<svg class="wide" viewBox="0 0 {total} {height}" role="img" aria-label="{spoken}">{"".join(drawn)}</svg>'


def _tall(parts: Sequence[Box], spoken: str) -> str:
    gap, width, y = 26, 340, 0
    drawn = []
    for n, box in enumerate(_wrapped(box, 50) for box in parts):
        if n:
            drawn.append(_arrow(f"M{width / 2:.0f} {y + 4}v{gap - 10}m-5 -6l5 6l5 -6"))
            y += gap
        height = _height(box)
        drawn.append(_box(box, 0, y, width, height))
        y += height
    return f'<svg class="tall" viewBox="0 0 {width} {y}" role="img" aria-label="{spoken}">{"".join(drawn)}</svg>'


def _wrapped(box: Box, room: int) -> Box:
    """The box with lines of at most `room` characters; what is continued is set in."""
    wrapper = textwrap.TextWrapper(room, subsequent_indent="\N{NO-BREAK SPACE}" * 3)
    return Box(box.title, tuple(piece for line in box.lines for piece in wrapper.wrap(line)))


def _height(box: Box) -> int:
    return 40 + _LINE * len(box.lines)


def _box(box: Box, x: float, y: float, width: float, height: float) -> str:
    lines = "".join(
        f'<text class="faint" x="{x + 12:.0f}" y="{y + 44 + _LINE * n:.0f}">{escape(line)}</text>'
        for n, line in enumerate(box.lines)
    )
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="9" fill="var(--card)" '
        f'stroke="var(--rule)"/>'
        f'<text class="strong" x="{x + 12:.0f}" y="{y + 23:.0f}">{escape(box.title)}</text>{lines}'
    )


def _arrow(path: str) -> str:
    return f'<path d="{path}" fill="none" stroke="var(--accent)" stroke-width="2" stroke-linecap="round"/>'


def _sources(run: RunFolder) -> tuple[str, ...]:
    images = _images(run.stages)
    lines = []
    for name, source in run.section("sources").items():
        head = source.get("head") if isinstance(source, dict) else None
        count = f": {images[name]:,}" if name in images else ""
        lines.append(f"{name}{count} → {head}" if head else f"{name}{count}, unlabelled")
    return _capped(lines)


def _images(stages: Sequence[Stage]) -> dict[str, int]:
    """Images a source, where a stage has counted them as {"sources": {name: images}}."""
    found: dict[str, int] = {}
    for stage in stages:
        counted: Any = stage.counts.get("sources")
        if isinstance(counted, dict):
            found.update({str(name): n for name, n in counted.items() if isinstance(n, int)})
    return found


def _teachers(run: RunFolder) -> tuple[str, ...]:
    lines = []
    order = list(run.section("teachers"))
    for stage in sorted(run.stages, key=lambda s: order.index(s.name[9:]) if s.name[9:] in order else len(order)):
        parts = stage.name.split("/")
        if parts[0] == "teachers" and len(parts) == 2:
            lines.append(f"{parts[1]}{_effort(stage)}")
    return _capped(lines or list(run.section("teachers")))


def _labels(run: RunFolder) -> tuple[str, ...]:
    lines = []
    for head, counts in run.label_counts.items():
        made = counts.get("pseudo", counts.get("labelled"))
        if made is not None:
            boxes_made = f", {counts['boxes']:,} boxes" if counts.get("boxes") else ""
            lines.append(f"{head}: {made:,} images{boxes_made}")
    return _capped(lines)


def _student(run: RunFolder) -> tuple[str, ...]:
    stage = next((s for s in run.stages if s.name == "student"), None)
    if stage is None:
        return ()
    heads = dict.fromkeys(head.removesuffix(PSEUDO) for point in stage.curve for head in point.heads)
    lines = [f"{len(heads)} head{'' if len(heads) == 1 else 's'}: {', '.join(heads)}"] if heads else []
    if stage.curve:
        lines.append(f"{stage.curve[-1].step + 1:,} steps")
    if stage.seconds is not None:
        lines.append(seconds_as_text(stage.seconds))
    return tuple(lines) or ("done" if stage.done else "not finished",)


def _transfer(run: RunFolder) -> tuple[str, ...]:
    measured = [m for m in run.measurements if m.stage == "transfer"]
    rows = dict.fromkeys(m.row for m in measured if m.row != BLIND)
    sets = dict.fromkeys(m.column for m in measured)
    if not measured:
        return ()
    seeds = {m.seed for m in measured}
    return _capped([f"{len(rows)} initialisations × {_some(len(seeds), 'seed')}", *sets])


def _effort(stage: Stage) -> str:
    facts = [f"{stage.curve[-1].step + 1:,} steps"] if stage.curve else []
    facts += [seconds_as_text(stage.seconds)] if stage.seconds is not None else []
    return f": {', '.join(facts)}" if facts else ""


def _some(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _capped(lines: Sequence[str]) -> tuple[str, ...]:
    if len(lines) <= _ENTRIES:
        return tuple(lines)
    return (*lines[: _ENTRIES - 1], f"and {len(lines) - _ENTRIES + 1} more")
