"""The one error a user ever has to read: where it is, what is there, and what to do about it."""

from __future__ import annotations

from pathlib import Path


class UserError(ValueError):
    """Something outside the program is wrong: a recipe, a file, a label. The command line exits with code 2.

    Args:
        problem: what is wrong, in one clause.
        file: the file it stands in.
        record: the record inside the file: an image id, a line, a key.
        field: the field of that record.
        value: the value found there (shortened when long).
        fix: what the user can do.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | Path | None = None,
        record: object = None,
        field: str | None = None,
        value: object = None,
        fix: str | None = None,
    ) -> None:
        self.problem, self.file, self.record = problem, file, record
        self.field, self.value, self.fix = field, value, fix
        super().__init__(self._text())

    def _text(self) -> str:
        lines = [self.problem]
        for name in ("file", "record", "field", "value", "fix"):
            entry = getattr(self, name)
            if entry is not None:
                text = repr(entry) if name == "value" else str(entry)
                lines.append(f"  {name + ':':<8}{text if len(text) <= 400 else text[:397] + '...'}")
        return "\n".join(lines)


def first_line(error: BaseException) -> str:
    """What another library's error says, for a message of ours: its first line, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def one_line(error: BaseException) -> str:
    """All that another library's error says on one line, at most 200 characters; its kind where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__
