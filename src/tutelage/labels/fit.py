"""Whether sources, heads and teachers fit together: asked before the first image is read."""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.data.source import Dataset
from tutelage.errors import UserError
from tutelage.labels.encoding import CODECS
from tutelage.teachers.teacher import Teacher, difference


def check_fit(datasets: Sequence[Dataset], teachers: Sequence[Teacher]) -> None:
    """Names, kinds and label spaces, before any image is read. Raises UserError."""
    for what, names in (("source", [d.name for d in datasets]), ("head", [t.head for t in teachers])):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"a {what} is given twice", field=what, value=twice, fix=f"give each {what} once")
    for teacher in teachers:
        if teacher.task.kind not in CODECS:
            kinds = ", ".join(kind.__name__ for kind in CODECS)
            raise UserError("targets of this kind cannot be stored", value=teacher.task.kind, fix=f"known: {kinds}")
        given = teacher.space.names if teacher.space else None
        if teacher.task.classes is not None:
            _check_space(teacher.head, given, teacher.task.classes)
        for dataset in datasets:
            if dataset.head == teacher.head and dataset.space is not None:
                _check_space(teacher.head, given, dataset.space.names)


def _check_space(head: str, given: tuple[str, ...] | None, wanted: tuple[str, ...]) -> None:
    if given == wanted:
        return
    raise UserError(
        f"the teacher of head '{head}' has another label space than the head",
        field="classes",
        value="no classes" if given is None else difference(given, wanted),
        fix=f"a teacher of these {len(wanted)} classes, in this order: {', '.join(wanted)}",
    )
