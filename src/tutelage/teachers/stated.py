"""What teachers share whose task stands in the recipe, because nothing else says it: ONNX models and functions."""

from __future__ import annotations

import abc
import inspect
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

from tutelage.errors import UserError
from tutelage.part import Part, function_name, one_of
from tutelage.tasks import TASKS, Hints
from tutelage.tasks.segmentation import check_maskable
from tutelage.tasks.task import Task
from tutelage.teachers.foreign import check_names
from tutelage.teachers.teacher import Specialist
from tutelage.teachers.timm import read_classes
from tutelage.types import IGNORE, Boxes, Field, Label, Maps, Mask, Target, Vectors

if TYPE_CHECKING:
    AnyTask = Task
else:
    AnyTask = one_of(Task, "task", TASKS)


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

    That are the module's functions and classes it names, those that these name, and constants: parts, and values with
    a JSON form. What comes from other modules is not followed.

    Returns:
        Name to text; the function itself by "module:name".

    Raises:
        UserError: there is no source, as for functions that were typed in or made by a program.
    """
    found: dict[str, str] = {}
    try:
        _follow(function_name(function), function, function.__module__, found)
    except (OSError, TypeError):
        raise UserError(
            "this function has no source text, so nobody could tell when it has changed",
            field="function",
            value=function_name(function),
            fix="put it in a file",
        ) from None
    return found


def _follow(name: str, thing: Any, module: str, found: dict[str, str]) -> None:
    """Put the text of a thing, and of what it uses, into `found`."""
    if name in found:
        return
    if inspect.isfunction(thing) or inspect.isclass(thing):
        if thing.__module__ != module:
            return
        found[name] = inspect.getsource(thing)
        methods = [thing] if inspect.isfunction(thing) else [m for m in vars(thing).values() if inspect.isfunction(m)]
        for method in methods:
            for used in sorted(_names(method.__code__) & set(method.__globals__)):
                _follow(used, method.__globals__[used], module, found)
        return
    with suppress(TypeError, ValueError):  # a module, a model: no constant
        found[name] = json.dumps(thing.plain() if isinstance(thing, Part) else thing, sort_keys=True)


def _names(code: CodeType) -> set[str]:
    """The names that a function looks up, inner functions included."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(_names, inner))
