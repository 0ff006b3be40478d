"""The transfer table as files to paste and to compute with."""

from __future__ import annotations

import csv
import io

from tutelage.report.tables import Table
from tutelage.report.text import cell_text, noise_note, seeds_note

_HEADS = (
    *("initialisation", "control", "downstream set", "metric", "lower is better", "mean", "standard deviation"),
    *("seeds", "failed", "test images", "gain", "gain low", "gain high", "noise"),
)


def as_markdown(table: Table) -> str:
    """The table as the page shows it, the best of a column in bold, with what its marks mean below."""
    heads = [f"{c.name} ({c.metric}{'' if c.higher_is_better else ', lower is better'})" for c in table.columns]
    lines = [_line(["initialisation", *heads]), _line(["---", *("---:" for _ in heads)])]
    for row in table.rows:
        cells = [row]
        for index in range(len(table.columns)):
            figure, gain = cell_text(table, row, index)
            shown = f"**{figure}**" if row in table.best(index) else figure
            cells.append(f"{shown} ({gain})" if gain else shown)
        lines.append(_line(cells))
    notes = [f"In brackets: the difference from {table.rows[0]}.", seeds_note(table), noise_note(table)]
    return "\n".join(lines) + "\n\n" + " ".join(filter(None, notes)) + "\n"


def _line(cells: list[str]) -> str:
    escaped = (" ".join(cell.replace("\\", "\\\\").replace("|", "\\|").split()) for cell in cells)
    return f"| {' | '.join(escaped)} |"


def as_csv(table: Table) -> str:
    """A line a cell, unrounded; what is not known is left empty. "noise" says whether the gain is inside it."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_HEADS)
    for row in table.rows:
        for index, column in enumerate(table.columns):
            cell, known = table.cell(row, index), table.interval(row, table.rows[0], index)
            about = (row, _yes(row in table.controls), column.name, column.metric, _yes(not column.higher_is_better))
            figures = (cell.mean, cell.spread, cell.n, len(cell.failures), column.images, table.gain(row, index))
            ends = (known.low, known.high, _yes(not known.clear)) if known is not None else ("", "", "")
            writer.writerow((*about, *("" if value is None else value for value in figures), *ends))
    return stream.getvalue()


def _yes(value: bool) -> str:
    return "yes" if value else "no"
