"""Which sources make which task of an X-Learner (section 3.1), and how many stand behind a head's loss (equation 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tutelage.data.source import Dataset
from tutelage.errors import UserError
from tutelage.methods.material import Material
from tutelage.recipe import Recipe
from tutelage.tasks.task import Task
from tutelage.training.x_learner import Distillation, XLearner
from tutelage.types import Boxes, Field, Label, Maps, Mask, Vectors

KINDS: Mapping[type, str] = {
    Label: "classification",
    Boxes: "detection",
    Mask: "segmentation",
    Field: "depth",
    Vectors: "normals",
    Maps: "features",
}
"""What tasks are called that the recipe does not name."""


@dataclass(frozen=True)
class Group:
    """A task: what its sub-backbone learns.

    Attributes:
        heads: name to task.
        sources: those that are labelled for it.
    """

    heads: dict[str, Task]
    sources: dict[str, Dataset]


def tasks_of(recipe: Recipe, material: Material, part: XLearner) -> dict[str, Group]:
    """Task name to its heads and sources. Where pseudo labels teach and nobody says the tasks, heads that people
    labelled no source for are learned as well.

    Raises:
        UserError: with `narrow`, a task without a narrow sub-backbone or without a source, or a squeeze of other
            sources, or by a foreign teacher that is called as a task.
    """
    named = part.tasks
    if named is None:
        named = {}
        for name, dataset in material.sources.items():
            if dataset.head is not None:
                kind = KINDS[material.heads[dataset.head].kind]
                named[kind] = (*named.get(kind, ()), name)
    groups: dict[str, Group] = {}
    for task, names in named.items():
        sources = {name: material.sources[name] for name in names}
        heads = {str(dataset.head): material.heads[str(dataset.head)] for dataset in sources.values()}
        groups[task] = Group(heads, sources)
    if part.tasks is None and part.labels == "all":
        for head, wanted in material.heads.items():
            groups.setdefault(KINDS[wanted.kind], Group({}, {})).heads.setdefault(head, wanted)
    for field in ("backbones", "narrow"):
        for task in getattr(part, field) or {}:
            if task not in groups:
                raise UserError(f"there is no task '{task}'", field=field, value=task, fix=f"tasks: {list(groups)}")
    if part.narrow is not None and set(part.narrow) != set(groups):
        missing = min(set(groups) - set(part.narrow))
        raise UserError(
            f"the task '{missing}' has no narrow sub-backbone", field="narrow", fix="name one for every task"
        )
    if part.narrow is not None and not all(group.sources for group in groups.values()):
        empty = next(task for task, group in groups.items() if not group.sources)
        raise UserError(
            f"the task '{empty}' has no source, and with `narrow` each is squeezed on its own sources",
            field="narrow",
            fix="name the tasks under `tasks`, without this one",
        )
    if part.narrow is not None and isinstance(part.squeeze, Distillation):
        for name in groups:
            if name in part.squeeze.teachers:
                raise UserError(
                    f"'{name}' is both a task and a foreign teacher",
                    field="squeeze.teachers",
                    value=name,
                    fix="give the teacher another name",
                )
        if part.squeeze.sources is not None:
            _check_seen({name for group in groups.values() for name in group.sources}, set(part.squeeze.sources))
    return groups


def _check_seen(learned: set[str], named: set[str]) -> None:
    """That the sources which a squeeze into `narrow` names are those of the tasks, all of which it sees."""
    if learned == named:
        return
    odd = sorted(named - learned)
    what = f"'{odd[0]}' is of no task" if odd else f"'{min(learned - named)}' is left out"
    raise UserError(
        f"with `narrow`, each task's sub-backbone is squeezed on all sources of its task and no others: {what}, which "
        "would be ignored",
        field="squeeze.sources",
        value=sorted(named),
        fix=f"leave it out, or name {', '.join(sorted(learned))}",
    )


def counted(part: XLearner, groups: Mapping[str, Group]) -> dict[str, int]:
    """Head to the sources that label it: what the averages of equation 1 are over. All pseudo labels are one more."""
    more = int(part.labels == "all")
    return {
        head: sum(dataset.head == head for dataset in group.sources.values()) + more
        for group in groups.values()
        for head in group.heads
    }
