"""The report's main tables for the terminal."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from tutelage.report.folder import read_run
from tutelage.report.tables import Table, main_table, stages
from tutelage.report.verdict import verdict


def terminal_report(run: Path) -> RenderableType:
    """The verdict and one table a stage, to be printed by a rich console.

    Raises:
        UserError: there is no such folder.
    """
    measurements = read_run(run).measurements
    tables = {stage: table for stage in stages(measurements) if (table := main_table(measurements, stage))}
    words = Text(" ".join(verdict(tables.get("transfer"), tables.get("upstream"))))
    return Group(*(_as_rich(table) for table in tables.values()), words)


def plain_report(run: Path, width: int = 120) -> str:
    """The same as plain text, lines of at most `width` characters."""
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None, force_terminal=False).print(terminal_report(run))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def cell_text(table: Table, row: str, column: int) -> tuple[str, str]:
    """A cell's figure ("34.8 ± 1.2", "failed" or "–") and its gain ("+22.8" or "")."""
    cell, about = table.cell(row, column), table.columns[column]
    if cell.mean is None:
        return ("failed" if cell.failures else "–"), ""
    figure = about.number(cell.mean)
    if cell.spread is not None:
        figure += f" ± {about.number(cell.spread)}"
    if cell.n != table.seeds:
        figure += f" (n = {cell.n})"
    gain = table.gain(row, column)
    return figure, "" if gain is None else about.signed(gain)


def seeds_note(table: Table) -> str:
    """How the figures are to be read, as a sentence."""
    if table.seeds < 2:
        return "One seed."
    return f"Mean ± sample standard deviation over n = {table.seeds} seeds, unless a cell says otherwise."


def _as_rich(table: Table) -> RichTable:
    drawn = RichTable(
        title=Text(table.stage, style="bold"),
        title_justify="left",
        caption=Text(f"In brackets: difference from {table.rows[0]}. {seeds_note(table)} * best of its column."),
        caption_justify="left",
    )
    drawn.add_column("", no_wrap=False)
    for column in table.columns:
        arrow = "" if column.higher_is_better else "\nlower is better"
        drawn.add_column(Text(f"{column.name}\n{column.metric}{arrow}"), justify="right")
    for row in table.rows:
        cells = [Text(row)]
        for index in range(len(table.columns)):
            figure, gain = cell_text(table, row, index)
            best = row in table.best(index)
            text = Text(f"{figure}{'*' if best else ''}", style="bold" if best else "")
            cells.append(text.append(f" ({gain})", style="dim") if gain else text)
        drawn.add_row(*cells)
    return drawn
