"""The report's main tables for the terminal."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from tutelage.report.folder import RunFolder, read_run
from tutelage.report.noise import noises
from tutelage.report.self_training import TITLE, Halves
from tutelage.report.settings import Settings, settings_grid, settings_note, settings_of
from tutelage.report.tables import Table, main_tables
from tutelage.report.verdict import verdict

NOISE_MARK = "\N{ALMOST EQUAL TO}"
"""Stands behind a gain that is inside the noise."""


def terminal_report(run: Path) -> RenderableType:
    """The verdict and one table a stage, to be printed by a rich console.

    Raises:
        UserError: there is no such folder.
    """
    found = read_run(run)
    tables = main_tables(found.measurements, {stage: noise.between for stage, noise in noises(found).items()})
    titles = {} if Halves.of(found.recipe) is None else {"upstream": TITLE}
    drawn: list[RenderableType] = []
    for stage, table in tables.items():
        drawn.append(as_rich(table, titles.get(stage, stage)))
        if stage == "transfer":
            drawn += settings_as_rich(table, settings_of(table, found.measurements))
    return Group(*drawn, Text(words_of(found, tables)))


def words_of(run: RunFolder, tables: Mapping[str, Table]) -> str:
    """What the numbers of a run say, as one paragraph."""
    halves, upstream = Halves.of(run.recipe), tables.get("upstream")
    told = None if halves is None else halves.verdict(upstream)
    return " ".join(verdict(tables.get("transfer"), upstream, told, run.asked, run.learned_once))


def plain_report(run: Path, width: int = 120) -> str:
    """The same as plain text, lines of at most `width` characters."""
    return plain(terminal_report(run), width)


def plain(drawn: RenderableType, width: int) -> str:
    """What a rich console would show, without colours, lines of at most `width` characters."""
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None, force_terminal=False).print(drawn)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def cell_text(table: Table, row: str, column: int) -> tuple[str, str]:
    """A cell's figure ("34.8 ± 1.2", "failed" or "–") and its gain ("+22.8", "+0.3 ≈" inside the noise, or "")."""
    cell, about = table.cell(row, column), table.columns[column]
    if cell.mean is None:
        return ("failed" if cell.failures else "–"), ""
    figure = about.number(cell.mean)
    if cell.spread is not None:
        figure += f" ± {about.number(cell.spread)}"
    if cell.n != table.seeds:
        figure += f" (n = {cell.n})"
    gain = table.gain(row, column)
    if gain is None:
        return figure, ""
    noise = table.clearly(row, table.rows[0], column) == 0
    return figure, f"{about.signed(gain)} {NOISE_MARK}" if noise else about.signed(gain)


def seeds_note(table: Table) -> str:
    """How the figures are to be read, as a sentence."""
    if table.seeds < 2:
        return "One seed."
    return f"Mean ± sample standard deviation over n = {table.seeds} seeds, unless a cell says otherwise."


def noise_note(table: Table) -> str:
    """What the marks of noise mean, as sentences; "" where no difference has an interval."""
    columns = range(len(table.columns))
    found = [table.interval(row, table.rows[0], c) for row in table.rows[1:] for c in columns]
    bases = {
        f"{entry.seeds} seeds and the test images"
        if entry.images and entry.seeds > 1
        else f"the {entry.seeds} seeds alone"
        if entry.seeds > 1
        else "the test images alone, as there is one seed: how much another seed would change is not in it"
        for entry in found
        if entry is not None
    }
    if not bases:
        return ""
    return (
        f"{NOISE_MARK} inside the noise: the 95% interval of the difference contains zero (paired bootstrap over "
        f"{'; elsewhere over '.join(sorted(bases))}). Of twenty differences of nothing, one is expected to look clear."
    )


def as_rich(table: Table, title: str | None = None) -> RichTable:
    """The table as a rich console draws it; without a title it has its stage's name."""
    drawn = RichTable(
        title=Text(title or table.stage, style="bold"),
        title_justify="left",
        caption=Text(
            f"In brackets: difference from {table.rows[0]}. {seeds_note(table)} * best of its column. "
            f"{noise_note(table)}"
        ),
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


def settings_as_rich(table: Table, settings: Settings) -> list[RichTable]:
    """The chosen settings as a rich console draws them: one table; none where no settings are known."""
    grid = settings_grid(table, settings)
    if not grid:
        return []
    drawn = RichTable(
        title=Text("chosen settings", style="bold"),
        title_justify="left",
        caption=Text(settings_note(settings)),
        caption_justify="left",
    )
    for head in grid[0]:
        drawn.add_column(Text(head))
    for line in grid[1:]:
        drawn.add_row(*map(Text, line))
    return [drawn]
