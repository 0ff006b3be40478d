"""The rows of the transfer table: where a network starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tutelage.downstream import Start
from tutelage.errors import UserError
from tutelage.methods.must import Learned
from tutelage.methods.pretraining import entries
from tutelage.methods.rehearsal import refuse_dilation, refuse_other_form
from tutelage.methods.workshop import kinds_of
from tutelage.models.maps import Backbone
from tutelage.models.student import Model
from tutelage.part import nearest
from tutelage.recipe import TEACHER, Recipe
from tutelage.stages import Run, Stage
from tutelage.teachers.own import Checkpoint
from tutelage.teachers.teacher import Specialist, digest_of
from tutelage.training.checkpoint import find_model, model_hash, read_architecture
from tutelage.transfer.blind import BLIND

RANDOM = "random initialisation"
INITIAL = "initial weights"


@dataclass(frozen=True)
class Row:
    """One initialisation.

    Attributes:
        name: as the table shows it.
        folder: its name as a folder.
        model: the network's form; with weights of its own where it is to start from them.
        init: a model folder to fill backbone and pyramid from; None for the weights that the network has of its own.
        hash: of that model, where no stage of this run made it, or of the files of the network's own weights; "" where
            there are none.
        made_by: the stage that made it.
        control: whether it only shows what pre-training is worth.
        without: the head that the student was not taught.
    """

    name: str
    folder: str
    model: Model
    init: Path | None = None
    hash: str = ""
    made_by: Stage | None = None
    control: bool = False
    without: str = ""


def rows_of(run: Run, learned: Learned | None) -> list[Row]:
    """Every row of one seed, in the order of the table.

    Random weights, the recipe's initial weights where it names any, networks that are there already, every teacher of
    the student's form, and all that the run pre-trained, the student last. The row that gains are measured from stands
    first.

    Raises:
        UserError: a checkpoint that is not there, or a first row that is none.
    """
    recipe = run.recipe
    blank = recipe.model.but(backbone=recipe.model.backbone.blank())
    rows = [Row(RANDOM, "random", blank, control=True)]
    if recipe.model.backbone.pretrained:
        rows.append(Row(INITIAL, "initial", recipe.model, hash=_digest(recipe, recipe.model.backbone), control=True))
    rows += [_given(recipe, name, start) for name, start in recipe.initialisations.items()]
    if learned is not None:
        rows += [row for head, hired in learned.teachers.items() for row in _teacher(recipe, blank, head, *hired)]
        for entry in entries(recipe):
            made, folder = learned.made[entry.name], entry.folder.replace("/", "-")
            model = _form_of(recipe, made.folder) if made.folder.is_dir() and entry.part.of_another_form else blank
            rows.append(Row(entry.name, folder, model, made.folder, "", made.stage, without=entry.without))
    _check_names([row.name for row in rows], recipe.first_row)
    return sorted(rows, key=lambda row: row.name != recipe.first_row) if recipe.first_row is not None else rows


def check_rows(recipe: Recipe) -> None:
    """Before anything is trained: that networks which are to be there already are, with weights that fit, and that the
    rows have names of their own.

    Raises:
        UserError: as `rows_of`; weights that do not fit, or cannot be had.
    """
    if not recipe.transfer:
        return
    root = Path(recipe.data)
    names = [RANDOM, *([INITIAL] if recipe.model.backbone.pretrained else []), *recipe.initialisations]
    names += [f"{TEACHER}{head}" for head in recipe.teachers] if recipe.specialists else []
    if recipe.method != "transfer":
        names += [entry.name for entry in entries(recipe)]
    _check_names(names, recipe.first_row)
    for name, start in recipe.initialisations.items():
        row = _given(recipe, name, start)
        if row.init is not None:
            refuse_other_form(recipe, row.model, {}, row.init)
        elif start.backbone is not None and start.backbone.pretrained:
            row.model.backbone.build(root)
        refuse_dilation(recipe, name, row.model.backbone)
    refuse_dilation(recipe, RANDOM, recipe.model.backbone)


def _check_names(names: Sequence[str], first: str | None) -> None:
    """Raises UserError where two rows have one name, or the first of the table is none."""
    double = next((name for name in (*names, BLIND) if [*names, BLIND].count(name) > 1), None)
    if double is not None:
        raise UserError("two rows of the transfer table have one name", value=double, fix="name one of them otherwise")
    if first is not None and first not in names:
        raise UserError(
            f"there is no row of this name{nearest(first, names)}",
            field="first_row",
            value=first,
            fix=f"rows: {', '.join(names)}",
        )


def _given(recipe: Recipe, name: str, start: Start) -> Row:
    """A network that is there already."""
    if start.checkpoint is not None:
        folder = find_model(Path(recipe.data) / start.checkpoint)
        return Row(name, f"given-{name}", _form_of(recipe, folder), folder, model_hash(folder), control=start.control)
    if start.backbone is not None:
        backbone = start.backbone.resolved(Path(recipe.data))
        mean, std = backbone.normalisation()
        model = recipe.model.but(backbone=backbone, mean=mean, std=std)
        return Row(name, f"given-{name}", model, hash=_digest(recipe, backbone), control=start.control)
    blank = recipe.model.but(backbone=recipe.model.backbone.blank())
    return Row(name, f"given-{name}", blank, control=start.control)


def _digest(recipe: Recipe, backbone: Backbone) -> str:
    """Of the files of a backbone's weights, "" where it has none."""
    files = backbone.files(Path(recipe.data))
    return digest_of(None, files) if files else ""


def _teacher(recipe: Recipe, blank: Model, head: str, stage: Stage, teacher: Specialist) -> list[Row]:
    """A teacher as a row, if it has the student's form; others cannot be fine-tuned in the same table."""
    if not recipe.specialists or not isinstance(teacher, Checkpoint) or not same_network(recipe, teacher):
        return []
    folder = find_model(Path(recipe.data) / teacher.path)
    return [Row(f"{TEACHER}{head}", f"teacher-{head}", blank, folder, "", stage)]


def same_network(recipe: Recipe, teacher: Checkpoint) -> bool:
    """Whether a teacher has the student's form. The size of its input is no part of it: every row is fine-tuned at the
    downstream set's."""
    model = read_architecture(Path(recipe.data) / teacher.path, teacher.tasks, teacher.backbones)[0]
    return model.but(size=recipe.model.size) == recipe.model.resolved(Path(recipe.data))


def _form_of(recipe: Recipe, folder: Path) -> Model:
    """The form of the network in a model folder, without weights."""
    model = read_architecture(folder, *kinds_of(recipe))[0]
    return model.but(backbone=model.backbone.blank())


def order_of(rows: Mapping[int, list[Row]]) -> dict[str, int]:
    """Row name to its place in the table, over all seeds."""
    names = dict.fromkeys(row.name for of_seed in rows.values() for row in of_seed)
    return {name: place for place, name in enumerate(names)}
