"""A table of measurements as HTML: figures, gains, what is noise, and what failed."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tutelage.report.plots import dot_panel
from tutelage.report.tables import Column, Measurement, Table
from tutelage.report.text import cell_text, noise_note, seeds_note
from tutelage.report.verdict import subject
from tutelage.transfer.statistics import Comparison

Section = tuple[str, str, str] | None
"""An anchor, a heading and a body, both HTML; None where the run has nothing for it."""

_LISTED = 2000
"""Measurements listed one by one at most."""
TEXT = ' class="text"'
"""Of a cell of words, which are set to the left."""


def table_body(table: Table, label: str) -> str:
    """A table that scrolls inside its own frame, its first column staying in place."""
    mine = subject(table)
    heads = []
    for column in table.columns:
        direction = "" if column.higher_is_better else ", lower is better"
        images = f"<small>{column.images:,} images</small>" if column.images is not None else ""
        heads.append(
            f'<th scope="col">{escape(column.name)}<small>{escape(column.metric)}{direction}</small>{images}</th>'
        )
    rows = []
    for row in table.rows:
        cells = "".join(_cell(table, row, index) for index in range(len(table.columns)))
        marked = ' class="subject"' if row == mine else ""
        rows.append(f'<tr{marked}><th scope="row">{escape(row)}</th>{cells}</tr>')
    stacked = ' class="stacked"' if table.seeds > 1 else ""
    corner = "model" if table.stage == "upstream" else "initialisation"
    return scroll(
        f'<table{stacked}><thead><tr><th scope="col">{corner}</th>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>",
        label,
    )


def _cell(table: Table, row: str, index: int) -> str:
    figure, gain = cell_text(table, row, index)
    if not table.cell(row, index).n:
        return f'<td class="{"fail" if figure == "failed" else "spread"}">{figure}</td>'
    mean, plus, spread = figure.partition(" ±")
    shown = escape(mean)
    if row in table.best(index):
        shown = f'<span class="best" title="best of this column">{shown}</span>'
    if plus:
        shown += f' <span class="spread">±{escape(spread)}</span>'
    if len(table.rows) > 1 and not gain:
        shown += ' <span class="gain"></span>'
    if gain:
        sure, known = table.clearly(row, table.rows[0], index), table.interval(row, table.rows[0], index)
        way = table.compare(row, table.rows[0], index) if sure is None else sure
        tone = {1: " good", -1: " bad"}.get(way or 0, "")
        about = f' title="95% interval {escape(span(table.columns[index], known))}"' if known is not None else ""
        shown += f' <span class="gain{tone}"{about}>({gain})</span>'
    return f"<td>{shown}</td>"


def span(column: Column, found: Comparison) -> str:
    """An interval as text: "+1.2 to +3.4"."""
    return f"{column.signed(found.low)} to {column.signed(found.high)}"


def note(table: Table) -> str:
    """How the figures of a table are to be read."""
    gains = f" In brackets: the difference from {table.rows[0]}." if len(table.rows) > 1 else ""
    best = " Underlined: the best of its column." if len(table.rows) > 1 else ""
    return (
        f'<p class="note">{escape(" ".join(filter(None, (seeds_note(table) + gains + best, noise_note(table)))))}</p>'
    )


def failures(table: Table) -> str:
    """The measurements that failed, as a list; "" where none did."""
    failed = table.failures()
    if not failed:
        return ""
    lines = "".join(f"<li>{escape(f'{row}, {column}, {reason}')}</li>" for row, column, reason in failed)
    return f'<p class="note">Failed measurements:</p><ul class="note">{lines}</ul>'


def dots(table: Table, column: int) -> str:
    """One column as a chart."""
    about = table.columns[column]
    direction = "" if about.higher_is_better else ", lower is better"
    return (
        f'<figure class="card"><figcaption>{escape(about.name)} <small>{escape(about.metric)}{direction}</small>'
        f"</figcaption>{dot_panel(table, column, subject(table))}</figure>"
    )


def scroll(table: str, label: str) -> str:
    """A table in a frame of its own, which scrolls where the screen is narrow."""
    return f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0">{table}</div>'


def folded(summary: str, body: str) -> str:
    """A body that opens when its summary is clicked."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def listing(measurements: Sequence[Measurement]) -> str:
    """Every measurement, a line each."""
    rows = []
    for m in measurements[:_LISTED]:
        value = f"{m.value:.4g}" if m.value is not None else f"failed: {m.failed}"
        extras = ", ".join(
            f"{key} {entry:.4g}" if isinstance(entry, float) else f"{key} {entry}" for key, entry in m.extras.items()
        )
        images = "" if m.images is None else f"{m.images:,}"
        rows.append(
            f'<tr><th scope="row">{escape(m.row)}</th><td class="text">{escape(m.column)}</td>'
            f'<td class="text">{escape(m.metric)}</td><td>{escape(value)}</td><td>{m.seed}</td><td>{images}</td>'
            f'<td class="text">{escape(extras)}</td></tr>'
        )
    words = ("column", "metric", "chosen")
    order = ("row", "column", "metric", "value", "seed", "images", "chosen")
    heads = "".join(f'<th scope="col"{TEXT if name in words else ""}>{name}</th>' for name in order)
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    left = len(measurements) - _LISTED
    return scroll(table, "every measurement") + (
        f'<p class="note">{left:,} more stand in results.jsonl.</p>' if left > 0 else ""
    )
