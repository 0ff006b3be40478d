"""Charts as inline SVG. Colours are the style sheet's variables, so that a chart follows light, dark and paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tutelage.report.tables import Table

WIDTH = 304
"""Pixels (of the view box) of every chart."""
_LABEL = 120
"""Pixels (of the view box) for row names in a dot panel."""
_LINE_HEIGHT = 176
_POINTS = 160
"""A longer curve is averaged down to this many points."""
_LOG_FROM = 8.0
"""A curve whose largest value is this many times its smallest is drawn on a log scale."""


@dataclass(frozen=True)
class Series:
    """One line: colour is a CSS colour such as "var(--c0)"; x and y of equal length; y may hold NaN (a gap)."""

    name: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


def dot_panel(table: Table, column: int, subject: str | None) -> str:
    """One column of a table as dots on a common scale: a row a line, ± spread as a bar, single seeds as small dots.

    The dashed line marks the base. The scale does not start at zero.
    """
    about = table.columns[column]
    low, high = _range(table, column)
    height = 24 * len(table.rows) + 26
    left, right = _LABEL + 8, WIDTH - 46

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    parts = []
    for tick in _ticks(low, high, 4):
        x = place(tick)
        parts.append(f'<path class="axis" d="M{x:.1f} 4V{height - 20}"/>')
        parts.append(f'<text class="faint" x="{x:.1f}" y="{height - 6}" text-anchor="middle">{_short(tick)}</text>')
    base = table.mean(table.rows[0], column)
    if base is not None:
        x = place(base)
        parts.append(f'<path d="M{x:.1f} 4V{height - 20}" stroke="var(--muted)" stroke-dasharray="3 3"/>')
    for index, row in enumerate(table.rows):
        cell, y = table.cell(row, column), 16 + 24 * index
        mine = row == subject
        colour = "var(--accent)" if mine else "var(--muted)"
        weight = ' class="strong"' if mine else ""
        label = _clip(f"without {table.without[row]}" if row in table.without else row)
        parts.append(
            f'<text x="{_LABEL}" y="{y + 4}" text-anchor="end"{weight}><title>{escape(row)}</title>{label}</text>'
        )
        if cell.mean is None:
            word = "failed" if cell.failures else "not measured"
            parts.append(f'<text class="faint" x="{left}" y="{y + 4}">{word}</text>')
            continue
        if cell.spread is not None:
            ends = place(cell.mean - cell.spread), place(cell.mean + cell.spread)
            parts.append(f'<path d="M{ends[0]:.1f} {y}H{ends[1]:.1f}" stroke="{colour}" stroke-width="2"/>')
            parts += [
                f'<circle cx="{place(v):.1f}" cy="{y}" r="2" fill="{colour}" opacity=".45"/>' for v in cell.values
            ]
        parts.append(f'<circle cx="{place(cell.mean):.1f}" cy="{y}" r="{6 if mine else 4.5}" fill="{colour}"/>')
        parts.append(f'<text x="{WIDTH}" y="{y + 4}" text-anchor="end"{weight}>{about.number(cell.mean)}</text>')
    spoken = "; ".join(
        f"{row} {about.number(mean)}" for row in table.rows if (mean := table.mean(row, column)) is not None
    )
    return svg(height, f"{about.name}, {about.metric}: {spoken or 'nothing measured'}", parts)


def line_panel(title: str, series: Sequence[Series]) -> str:
    """Lines over steps; a log scale where the values span most of a decade. `title` is for screen readers."""
    steps = [v for s in series for v in s.x]
    series = [_thinned(s) for s in series]
    values = [v for s in series for v in s.y if math.isfinite(v)]
    if not values:
        return svg(24, title, ['<text class="faint" x="0" y="14">no finite value</text>'])
    log = min(values) > 0 and max(values) > _LOG_FROM * min(values)
    low, high = (math.log10(min(values)), math.log10(max(values))) if log else (min(values), max(values))
    low, high = _padded(low, high)
    first, last = min(steps), max(max(steps), min(steps) + 1)
    left, right, top, bottom = 38, WIDTH - 8, 8, _LINE_HEIGHT - 24

    def across(step: float) -> float:
        return left + (step - first) / (last - first) * (right - left)

    def up(value: float) -> float:
        return bottom - ((math.log10(value) if log else value) - low) / (high - low) * (bottom - top)

    parts = []
    for tick in _log_ticks(low, high) if log else _ticks(low, high, 4):
        y = up(tick)
        parts.append(f'<path class="axis" d="M{left} {y:.1f}H{right}"/>')
        parts.append(f'<text class="faint" x="{left - 5}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    for tick in _ticks(first, last, 4):
        x, y = across(tick), _LINE_HEIGHT - 8
        parts.append(f'<text class="faint" x="{x:.1f}" y="{y}" text-anchor="middle">{_short(tick)}</text>')
    for line in series:
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        for piece in _pieces(line):
            path = "L".join(f"{across(x):.1f} {up(y):.1f}" for x, y in piece)
            if len(piece) == 1:
                path += "h.1"
            parts.append(f'<path class="line" d="M{path}" style="stroke:{line.colour}"{dash}/>')
    scale = ", log scale" if log else ""
    return svg(_LINE_HEIGHT, f"{title}, over steps {first:g} to {last:g}{scale}", parts)


def legend(series: Sequence[Series]) -> str:
    """The names of several lines with their colours; nothing for a single one."""
    if len(series) < 2:
        return ""
    keys = "".join(f'<span><i style="background:{_swatch(line)}"></i>{escape(line.name)}</span>' for line in series)
    return f'<div class="legend">{keys}</div>'


def _swatch(line: Series) -> str:
    if not line.dashed:
        return line.colour
    return f"repeating-linear-gradient(90deg,{line.colour} 0 5px,transparent 5px 8px)"


def svg(height: int, spoken: str, parts: Sequence[str]) -> str:
    """A chart of its parts; `spoken` is for screen readers."""
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(spoken)}">{"".join(parts)}</svg>'


def _range(table: Table, column: int) -> tuple[float, float]:
    ends = []
    for row in table.rows:
        cell = table.cell(row, column)
        if cell.mean is not None:
            ends += [*cell.values, cell.mean - (cell.spread or 0), cell.mean + (cell.spread or 0)]
    return _padded(min(ends), max(ends)) if ends else (0.0, 1.0)


def _padded(low: float, high: float) -> tuple[float, float]:
    """The range with 6% of air, and never empty."""
    air = (high - low) * 0.06 or abs(high) * 0.05 or 0.5
    return low - air, high + air


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers inside [low, high]: multiples of 1, 2 or 5 times a power of ten, at most about + 1 of them."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((power * m for m in (1, 2, 5) if power * m >= rough), power * 10)
    return [step * n for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Values inside [10^low, 10^high]: powers of ten, with 2 and 5 where the range is short."""
    inside = [1.0] if high - low > 2.5 else [1.0, 2.0, 5.0] if high - low > 0.9 else [1.0, 1.5, 2.0, 3.0, 5.0, 7.0]
    ticks = [m * 10.0**p for p in range(math.floor(low), math.ceil(high) + 1) for m in inside]
    return [t for t in ticks if low <= math.log10(t) <= high]


def _short(value: float) -> str:
    """A tick label: 1.5k, 0.05, 12."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    if abs(value) >= 1000:
        return f"{value / 1000:.3g}k"
    return f"{0.0 if abs(value) < 1e-12 else value:.3g}".replace("-", "\N{MINUS SIGN}")


def _clip(name: str, length: int = 21) -> str:
    return escape(name if len(name) <= length else name[: length - 1] + "…")


def _thinned(line: Series) -> Series:
    """The mean of each of `_POINTS` equal pieces of a longer curve; NaN entries are left out of a mean."""
    size = math.ceil(len(line.x) / _POINTS)
    if size < 2:
        return line
    x, y = [], []
    for start in range(0, len(line.x), size):
        values = [v for v in line.y[start : start + size] if math.isfinite(v)]
        x.append(line.x[min(start + size, len(line.x)) - 1])
        y.append(sum(values) / len(values) if values else math.nan)
    return Series(line.name, line.colour, x, y, line.dashed)


def _pieces(line: Series) -> list[list[tuple[float, float]]]:
    """The runs of finite points."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(line.x, line.y, strict=True):
        if math.isfinite(y):
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]
