"""What teachers share whose task stands in the recipe, because nothing else says it: ONNX models and functions."""

from __future__ import annotations

import abc
import ast
import inspect
import json
import re
import symtable
import textwrap
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FunctionType
from typing import Any

from tutelage.errors import UserError
from tutelage.part import Part, function_name
from tutelage.tasks import AnyTask, Hints
from tutelage.tasks.segmentation import check_maskable
from tutelage.tasks.task import Task
from tutelage.teachers.foreign import check_names
from tutelage.teachers.teacher import Specialist
from tutelage.teachers.timm import read_classes
from tutelage.types import IGNORE, Boxes, Field, Label, Maps, Mask, Target, Vectors


class Stated(Specialist, abc.ABC):
    """A model of which only the recipe says what it does."""

    task: AnyTask
    """What it does, with its classes in the order of the model's ids."""
    classes_file: Path | None = None
    """In place of the task's classes: a JSON list of names, a JSON mapping of the numbers 0, 1, ... to names, or one
    name a line."""

    def does(self, root: Path, fills: str | None = None) -> Task:
        """As `Specialist.does`."""
        kind, classes = self.task.kind, self.task.classes
        if kind in (Field, Vectors, Maps):
            return self.task
        if classes is not None and self.classes_file is not None:
            raise UserError("the classes are given twice", field="classes_file", fix="leave out one of the two")
        if self.classes_file is not None:
            classes = read_classes(root / self.classes_file)
        if classes is None:
            raise UserError(
                "what this model's ids stand for is not known",
                field="task.classes",
                fix="state the task's `classes` in the order of the ids, or `classes_file`",
            )
        check_names(classes)
        if kind is Mask:
            check_maskable(classes)
        return self.task.but(classes=classes)


def check_target(head: str, task: Task, target: Target, size: tuple[int, int]) -> None:
    """That a prediction is a label of a head, whatever its numbers.

    Args:
        head: its name.
        task: its task, with its classes.
        target: what the teacher said.
        size: (h, w) of the image.

    Raises:
        UserError: another kind, shape or class count.
    """
    if type(target) is not task.kind:
        raise _misfit(head, "kind", type(target).__name__, task.kind.__name__)
    classes = 0 if task.classes is None else len(task.classes)
    if isinstance(target, Label):
        _expect(head, "probabilities of shape", tuple(target.probs.shape), (classes,))
    elif isinstance(target, Boxes):
        n = len(target.scores)
        _expect(head, "boxes of shape", tuple(target.boxes.shape), (n, 4))
        _expect(head, "classes of shape", tuple(target.classes.shape), (n,))
        if n and not 0 <= int(target.classes.min()) <= int(target.classes.max()) < classes:
            raise _misfit(head, "classes", target.classes.unique().tolist(), f"0 to {classes - 1}")
    elif isinstance(target, Mask):
        _expect(head, "class ids of shape", tuple(target.ids.shape), size)
        known = target.ids[target.ids != IGNORE]
        if len(known) and int(known.max()) >= classes:
            raise _misfit(head, "class ids", int(known.max()), f"0 to {classes - 1}, or {IGNORE}")
    elif isinstance(target, Maps):
        channels = task.channels if isinstance(task, Hints) else None
        _expect(head, "channels", target.values.shape[:1], (channels or len(target.values),))
        _expect(head, "valid of shape", tuple(target.valid.shape), target.values.shape[1:])
    else:
        shape = size if isinstance(target, Field) else (3, *size)
        _expect(head, "values of shape", tuple(target.values.shape), shape)
        _expect(head, "valid of shape", tuple(target.valid.shape), size)


def _expect(head: str, field: str, value: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if value != wanted:
        raise _misfit(head, field, value, wanted)


def _misfit(head: str, field: str, value: object, wanted: object) -> UserError:
    return UserError(
        f"the teacher of head '{head}' predicts something else than the head holds",
        field=field,
        value=value,
        fix=f"give {field} {wanted}",
    )


def function_source(function: Callable[..., Any]) -> dict[str, str]:
    """What a function does, as text: its source, and that of what it uses of its own module.

    That is whatever its text names of the module, and what that names in turn: functions and classes with their
    decorators and bases, and constants by their value, where they are parts or have a JSON form, or else by the
    statements that assign them. What comes from other modules is not followed, but for such values.

    Returns:
        Name to text.

    Raises:
        UserError: there is no source, as for functions that were typed in or made by a program.
    """
    own = inspect.unwrap(function)
    found: dict[str, str] = {}
    try:
        assigned = _assignments("".join(inspect.findsource(own)[0]))
        _follow(function.__qualname__, function, own, assigned, found)
    except (OSError, TypeError):
        raise UserError(
            "this function has no source text, so nobody could tell when it has changed",
            field="function",
            value=function_name(function),
            fix="put it in a file",
        ) from None
    return found


def _follow(name: str, thing: Any, first: FunctionType, assigned: Mapping[str, str], found: dict[str, str]) -> None:
    """Put the text of a thing of the module of `first`, and of what it uses, into `found`."""
    if name in found:
        return
    own = inspect.unwrap(thing) if callable(thing) else thing
    if inspect.isfunction(own) or inspect.isclass(own):
        if own.__module__ != first.__module__:
            return
        text = inspect.getsource(own)
    else:
        with suppress(TypeError, ValueError):
            found[name] = json.dumps(own.plain() if isinstance(own, Part) else own, sort_keys=True)
            return
        if name not in assigned:  # a module
            return
        text = assigned[name]
    found[name] = text
    for used in sorted(_names(text) & first.__globals__.keys()):
        _follow(used, first.__globals__[used], first, assigned, found)


def _names(text: str) -> set[str]:
    """The names that statements look up in their module, but those that Python gives, such as `__file__`."""
    found: set[str] = set()
    try:
        scopes = [symtable.symtable(textwrap.dedent(text), "", "exec")]
    except SyntaxError:  # the lines of a lambda, which may be part of a statement
        return set(_WORD.findall(text))
    while scopes:
        scope = scopes.pop()
        outermost = scope.get_type() == "module"
        found |= {s.get_name() for s in scope.get_symbols() if s.is_global() or (outermost and s.is_referenced())}
        scopes += scope.get_children()
    return {name for name in found if not name.startswith("__")}


def _assignments(source: str) -> dict[str, str]:
    """Name to the statements of a module, outside of functions and classes, that assign it."""
    found: dict[str, str] = {}
    try:
        waiting: list[ast.AST] = [ast.parse(source)]
    except SyntaxError:  # a cell of a notebook with commands of its own
        return found
    while waiting:
        statement = waiting.pop(0)
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
            text = ast.unparse(statement)
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for name in {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}:
                found[name] = f"{found.get(name, '')}{text}\n"
        waiting += ast.iter_child_nodes(statement)
    return found


_WORD = re.compile(r"[A-Za-z_]\w*")
