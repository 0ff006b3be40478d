"""A recipe's sources, opened, and its heads with their classes settled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tutelage.data.source import Dataset, LabelSpace, Place, Source
from tutelage.errors import UserError
from tutelage.labels.health.health import task_from
from tutelage.labels.store import MANIFEST, Manifest, Store, find_store, head_folder
from tutelage.recipe import Recipe, TransferSet
from tutelage.stages import Run
from tutelage.tasks.task import Task
from tutelage.teachers.teacher import Specialist, TeacherPart, check_task
from tutelage.training.notes import take_note
from tutelage.training.processes import barrier, rank


@dataclass(frozen=True)
class Material:
    """What a recipe works on.

    Attributes:
        heads: name to task; every task that needs classes has them.
        spaces: name to label space, for heads that have one.
        sources: name to opened source, labelled ones and pools.
        held_out: name to opened source.
    """

    heads: dict[str, Task]
    spaces: dict[str, LabelSpace]
    sources: dict[str, Dataset]
    held_out: dict[str, Dataset]


def place(run: Run) -> Place:
    """Where this run's sources look and keep derived files."""
    return Place(Path(run.recipe.data), run.cache)


def prepare(run: Run, sources: Mapping[str, Source]) -> None:
    """Let sources that derive files from nothing (rendered scenes) do so, side by side."""
    waiting = [source for source in sources.values() if source.to_prepare(place(run)) > 0]
    sizes = [source.to_prepare(place(run)) for source in waiting]
    if waiting and rank() == 0:
        run.each("render the sources", _prepare, [(source,) for source in waiting], sizes)
    barrier()


def _prepare(run: Run, source: Source) -> None:
    with run.progress.bar("render", source.to_prepare(place(run))) as bar:
        source.prepare(place(run), bar.advance)


def open_material(recipe: Recipe, where: Place) -> Material:
    """Open all sources and settle the label space of every head.

    Raises:
        UserError: two sources that label one head with different classes; a head without classes; whatever the
            readers find.
    """
    sources: dict[str, Dataset] = {}
    heads: dict[str, Task] = {}
    spaces: dict[str, LabelSpace] = {}
    for head, task in recipe.heads.items():
        labelled = {name: s for name, s in recipe.sources.items() if s.head == head}
        opened = {name: source.open(name, where, task.classes) for name, source in labelled.items()}
        sources |= opened
        stored = stored_form(recipe, head, where)
        heads[head], space = settle(head, task, opened, recipe.teachers.get(head), where.root, stored)
        if space is not None:
            spaces[head] = space
    sources |= {name: s.open(name, where) for name, s in recipe.sources.items() if s.head is None}
    in_order = {name: sources[name] for name in recipe.sources}
    held_out = {
        name: source.open(name, where, heads[source.head].classes)
        for name, source in recipe.held_out.items()
        if source.head
    }
    return Material(heads, spaces, in_order, held_out)


def settle(
    head: str,
    task: Task,
    opened: Mapping[str, Dataset],
    teacher: TeacherPart | None = None,
    root: Path | None = None,
    stored: Manifest | None = None,
) -> tuple[Task, LabelSpace | None]:
    """A head's task with its classes: from the recipe, from its sources, which must agree, or from its teacher.

    Args:
        head: its name.
        task: as the recipe states it.
        opened: the sources that label the head.
        teacher: who fills the head; a finished model must do this task with these classes.
        root: where the teacher's relative paths start.
        stored: of labels that are there already.
    """
    spaces = {name: dataset.space for name, dataset in opened.items() if dataset.space is not None}
    said = teacher.does(root or Path(), head) if isinstance(teacher, Specialist) else None
    if said is not None and task.classes is None and not spaces:
        task = task.but(classes=said.classes)
    if stored is not None and task.classes is None and not spaces:
        task = task.but(classes=stored.classes)
    if task.classes is not None:
        names = tuple(task.classes)
        for name, found in spaces.items():
            outside = [c for c in found.names if c not in names]
            if outside:
                raise UserError(
                    f"the source {name} has labels that the head {head} has no class for",
                    field=f"heads.{head}.classes",
                    value=outside[:8],
                    fix="name all classes of the labels, or leave `classes` out",
                )
        ids = next((s.ids for s in spaces.values() if s.names == names), ())
        settled, space = task, LabelSpace(names, ids)
    elif spaces:
        space = _common(head, spaces)
        settled = task.but(classes=space.names)
    else:
        settled, space = task, None
    if said is not None:
        check_task(head, settled, said)
    for known in (said, None if stored is None else task_from(stored)):
        settled = settled if known is None else settled.completed(known)
    return settled, space


def filled_heads(recipe: Recipe, heads: Iterable[str]) -> list[str]:
    """Those that have pseudo labels: of a teacher, or among the labels that the recipe adopts. A head that is not among
    these, and is learned from them nevertheless, counts, so that who looks for its labels says that there are none."""
    if recipe.labels is None:
        return [head for head in heads if head in recipe.teachers]
    known = Store(find_store(Path(recipe.data) / recipe.labels)).heads()
    return [head for head in heads if head in known or recipe.asks_for(head)]


def stored_form(recipe: Recipe, head: str, where: Place) -> Manifest | None:
    """How the labels that the recipe adopts have a head; None where it adopts none of it."""
    if recipe.labels is None or not filled_heads(recipe, [head]):
        return None
    return Store(find_store(where.root / recipe.labels)).manifest(head)


def check_stored(store: Store, head: str, task: Task) -> None:
    """That the stored labels of a head can be learned as those of its task.

    Raises:
        UserError: another kind of target, other classes, or another meaning, as inverse depth for a head of metres.
    """
    store.check(head, task)
    made_for = task_from(store.manifest(head))  # None for a task of the user's own
    try:
        if made_for is not None:
            check_task(head, task, made_for)
    except UserError as error:
        raise UserError(
            f"the labels of head '{head}' are not those of this task",
            file=head_folder(store.root, head) / MANIFEST,
            field=error.field,
            value=error.value,
            fix="give the head the task that was labelled, or label again",
        ) from None


def _common(head: str, spaces: Mapping[str, LabelSpace]) -> LabelSpace:
    first = next(iter(spaces))
    for name, space in spaces.items():
        if space.names != spaces[first].names:
            only = sorted(set(space.names) ^ set(spaces[first].names))[:8]
            raise UserError(
                f"the sources {first} and {name} label the head {head} with different classes",
                record=name,
                field="head",
                value=only,
                fix=f"name two heads, or state the classes of both under heads.{head}.classes",
            )
    return spaces[first]


def open_transfer(name: str, transfer: TransferSet, where: Place) -> tuple[Task, dict[str, Dataset]]:
    """The parts of one downstream set, and its task with its classes."""
    parts: dict[str, Source] = {p: getattr(transfer, p) for p in ("train", "validation", "test")}
    train = parts["train"].open(name, where, transfer.head.classes)
    task, space = settle(name, transfer.head, {name: train})
    names = None if space is None else space.names
    return task, {"train": train} | {p: parts[p].open(name, where, names) for p in ("validation", "test")}


def note_faults(run: Run, group: str, datasets: Mapping[str, Dataset]) -> None:
    """Note what the readers set aside, mended or counted, once for all runs inside one another: the only fault as a
    whole, of several the first and their number (`tutelage check` lists every fault)."""
    for name, dataset in datasets.items():
        if dataset.faults:
            first, total = dataset.faults[0], len(dataset.faults)
            parts = (f"{first.field} {first.record}".strip(), first.problem, first.value)
            text = f"{': '.join(filter(None, parts))} ({first.outcome})"
            if total > 1:
                text = f"{total} faults in the labels, such as {text}; `tutelage check` lists all"
            take_note(run.root, f"{group} {name}: {text}", run.progress)
