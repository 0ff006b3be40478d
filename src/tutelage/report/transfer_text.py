"""The transfer table for the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group
from rich.text import Text

from tutelage.report.folder import read_run
from tutelage.report.noise import Noise
from tutelage.report.settings import settings_of
from tutelage.report.tables import main_table
from tutelage.report.text import as_rich, plain, settings_as_rich
from tutelage.report.verdict import verdict


def transfer_text(run: Path, width: int = 120) -> str:
    """The transfer table of a run, its chosen settings and what it says, as plain text, lines of at most `width`
    characters.

    Raises:
        UserError: there is no such folder.
    """
    found = read_run(run)
    table = main_table(found.measurements, "transfer", Noise(found).between)
    words = Text(" ".join(verdict(table, None)))
    if table is None:
        return plain(words, width)
    settings = settings_as_rich(table, settings_of(table, found.measurements))
    return plain(Group(as_rich(table), *settings, words), width)
