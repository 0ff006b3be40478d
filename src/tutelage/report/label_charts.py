"""Charts of pseudo labels as inline SVG: scores with what thresholds keep, and classes against the people's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tutelage.labels.health.statistics import BINS, Scores
from tutelage.report.plots import WIDTH, Series, legend, svg

_HEIGHT = 176
_LABEL = 104
_ROW = 22
_NAME = 17
"""Characters of a class name."""


@dataclass(frozen=True)
class Share:
    """One class: its share of the labels (0 to 1), and another to compare with, or None."""

    name: str
    share: float
    other: float | None


def score_chart(scores: Scores, images: int | None) -> str:
    """The distribution of scores as bars, and, over thresholds, the share kept and the images left without any.

    Args:
        scores: of one head.
        images: that were looked at; None where a threshold leaves no image out (classes).
    """
    left, right, top, bottom = 34, WIDTH - 8, 8, _HEIGHT - 24
    highest = max(scores.histogram, default=0) or 1
    parts = []
    for percent in (0, 50, 100):
        y = bottom - percent / 100 * (bottom - top)
        parts.append(f'<path class="axis" d="M{left} {y:.1f}H{right}"/>')
        parts.append(f'<text class="faint" x="{left - 5}" y="{y + 4:.1f}" text-anchor="end">{percent}%</text>')
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x = left + tick * (right - left)
        parts.append(f'<text class="faint" x="{x:.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{tick:g}</text>')
    wide = (right - left) / BINS
    for n, count in enumerate(scores.histogram):
        high = count / highest * (bottom - top)
        place = f'x="{left + n * wide + 1:.1f}" y="{bottom - high:.1f}" width="{wide - 2:.1f}" height="{high:.1f}"'
        parts.append(f'<rect {place} fill="var(--muted)" opacity=".28"/>')
    lines = [([row.share for row in scores.thresholds], "var(--accent)")]
    if images:
        lines.append(([row.without / images for row in scores.thresholds], "var(--c1)"))
    for shares, colour in lines:
        points = (
            f"{left + row.threshold * (right - left):.1f} {bottom - share * (bottom - top):.1f}"
            for row, share in zip(scores.thresholds, shares, strict=True)
        )
        parts.append(f'<path class="line" d="M{"L".join(points)}" style="stroke:{colour}"/>')
    spoken = "; ".join(f"from {row.threshold:g} on {100 * row.share:.0f}%" for row in scores.thresholds[1::4])
    return svg(_HEIGHT, f"share of scores kept: {spoken}", parts)


def score_legend(things: str, images: bool) -> str:
    """What the lines of `score_chart` are."""
    keys = [Series("distribution", "var(--muted)", (), ()), Series(f"{things} kept", "var(--accent)", (), ())]
    if images:
        keys.append(Series("images without any", "var(--c1)", (), ()))
    return legend(keys)


def share_chart(rows: Sequence[Share], what: str) -> str:
    """Shares as bars, the other share as a dark mark on the same line. `what` is for screen readers."""
    height = _ROW * len(rows) + 4
    left, right = _LABEL + 8, WIDTH - 46
    top = max((max(row.share, row.other or 0.0) for row in rows), default=0.0) or 1.0
    parts = []
    for index, row in enumerate(rows):
        y = 4 + index * _ROW
        long = row.share / top * (right - left)
        name = escape(row.name if len(row.name) <= _NAME else row.name[: _NAME - 1] + "…")
        title = escape(row.name)
        parts.append(f'<text x="{_LABEL}" y="{y + 12}" text-anchor="end"><title>{title}</title>{name}</text>')
        place = f'x="{left}" y="{y + 2}" width="{max(long, 0.5):.1f}" height="12"'
        parts.append(f'<rect {place} fill="var(--accent)" opacity=".75"/>')
        if row.other is not None:
            x = left + row.other / top * (right - left)
            parts.append(f'<path d="M{x:.1f} {y - 1}v18" stroke="var(--c1)" stroke-width="2.5"/>')
        parts.append(f'<text x="{WIDTH}" y="{y + 12}" text-anchor="end">{percent_text(row.share)}</text>')
    spoken = "; ".join(f"{row.name} {percent_text(row.share)}" for row in rows)
    return svg(height, f"{what}: {spoken}", parts)


def percent_text(share: float) -> str:
    """A share for a narrow column: 41%, 6.3%, 0.2%."""
    return f"{100 * share:.0f}%" if share >= 0.0995 or share == 0 else f"{100 * share:.1f}%"
