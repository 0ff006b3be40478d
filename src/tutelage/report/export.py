"""The transfer table as files to paste and to compute with."""

from __future__ import annotations

import csv
import io

from tutelage.report.settings import Settings, settings_grid, settings_note
from tutelage.report.tables import Table
from tutelage.report.text import cell_text, noise_note, seeds_note

_HEADS = (
    *("initialisation", "control", "downstream set", "metric", "lower is better", "mean", "standard deviation"),
    *("seeds", "failed", "test images", "gain", "gain low", "gain high", "noise"),
    *("rate", "steps", "L2", "edge"),
)


def as_markdown(table: Table, settings: Settings) -> str:
    """The table as the page shows it, the best of a column in bold, with what its marks mean below; then, where any are
    known, the chosen settings as a table of their own."""
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
    lines += ["", " ".join(filter(None, notes))]
    grid = settings_grid(table, settings)
    if grid:
        lines += ["", "Chosen settings", "", _line(grid[0]), _line(["---" for _ in grid[0]])]
        lines += [*map(_line, grid[1:]), "", settings_note(settings)]
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    escaped = (" ".join(cell.replace("\\", "\\\\").replace("|", "\\|").split()) for cell in cells)
    return f"| {' | '.join(escaped)} |"


def as_csv(table: Table, settings: Settings) -> str:
    """A line a cell, unrounded; what is not known is left empty. "noise" says whether the gain is inside it. Chosen
    settings of several seeds stand in one field, in the order of the seeds that have a figure, with ";" between."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_HEADS)
    for row in table.rows:
        for index, column in enumerate(table.columns):
            cell, known = table.cell(row, index), table.interval(row, table.rows[0], index)
            about = (row, _yes(row in table.controls), column.name, column.metric, _yes(not column.higher_is_better))
            figures = (cell.mean, cell.spread, cell.n, len(cell.failures), column.images, table.gain(row, index))
            ends = (known.low, known.high, _yes(not known.clear)) if known is not None else ("", "", "")
            mine = settings.get((row, index), {}).values()
            chosen = [_joined([getattr(one, name) for one in mine]) for name in ("rate", "steps", "l2", "edge")]
            writer.writerow((*about, *("" if value is None else value for value in figures), *ends, *chosen))
    return stream.getvalue()


def _joined(values: list[object]) -> str:
    """Values of several seeds in one field; "" where no seed has any."""
    texts = ["" if value is None else str(value) for value in values]
    return ";".join(texts) if any(texts) else ""


def _yes(value: bool) -> str:
    return "yes" if value else "no"
