"""What should be known of a result although nothing failed: said at once, and kept beside it for the report."""

from __future__ import annotations

from pathlib import Path

from tutelage.files import read_json_lines, write_json_lines
from tutelage.progress import Progress
from tutelage.training.processes import rank

NOTES = "notes.jsonl"
"""In a stage's folder, or a run's: a line `{"note": text}` for each."""


def take_note(folder: Path, text: str, progress: Progress) -> None:
    """Say a sentence and keep it in the folder of a stage or a run, once however often that is begun; the first process
    does."""
    if rank() != 0:
        return
    progress.say(f"note: {text}")
    kept = list(read_json_lines(folder / NOTES))
    if {"note": text} not in kept:
        write_json_lines(folder / NOTES, [*kept, {"note": text}])
