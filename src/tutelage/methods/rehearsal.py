"""What is looked at before anything is trained: X-Learners and distillations are put together without their weights,
and both halves of a self-training must have images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from tutelage.errors import UserError
from tutelage.methods.groups import tasks_of
from tutelage.methods.material import Material
from tutelage.methods.student import sources_of
from tutelage.methods.x_learner import joint_of, learned_heads, share_of_one, specialised, unloaded
from tutelage.models.maps import Backbone
from tutelage.models.student import Model, Student
from tutelage.recipe import Distillation, Pruning, Recipe, XLearner
from tutelage.tasks.task import Task
from tutelage.training.checkpoint import check_shared, find_model
from tutelage.training.expansion import Expansion
from tutelage.training.guidance import Frozen, FrozenTasks
from tutelage.training.pretraining import Pretraining, StudentPart, self_trained
from tutelage.training.squeeze import Squeeze
from tutelage.training.x_learner import distillation_in


def rehearse_all(recipe: Recipe, material: Material) -> None:
    """All pre-trainings of a recipe; raises UserError as `rehearse`, which names the pre-training."""
    for key, part in recipe.learners().items():
        try:
            rehearse(recipe, material, part)
        except UserError as error:
            raise UserError(
                error.problem, file=error.file, record=key, field=error.field, value=error.value, fix=error.fix
            ) from error


def rehearse(recipe: Recipe, material: Material, part: Pretraining) -> None:
    """Put together the networks that an X-Learner or a distillation trains, from their shapes; no weights are read.

    Raises:
        UserError: tasks that are none; sub-backbones that cannot be joined; too few levels for the squeeze; a teacher
            that cannot look at images of the student's size; weights that are not there; a student that trains itself
            and has no image without a human label.
    """
    root = Path(recipe.data)
    if isinstance(part, StudentPart):
        _check_halves(material, part)
    squeeze = distillation_in(part)
    if squeeze is not None:
        own = squeeze.backbone or recipe.model.backbone
        _check(root, own, *squeeze.teachers.values())
        if squeeze.backbone is not None:
            _refuse_dilation_of(recipe, part, own)
    if isinstance(part, Distillation):
        _on_shapes(lambda: _squeeze(recipe, material, part))
    if isinstance(part, XLearner):
        _check(root, recipe.model.backbone, *part.backbones.values(), *(part.narrow or {}).values())
        _on_shapes(lambda: _expand(recipe, material, part))


def _check_halves(material: Material, part: StudentPart) -> None:
    """That a student who trains itself has images for its pseudo half."""
    own, sources = self_trained(part, tuple(material.heads)), sources_of(material, part)
    if own is not None and all(d.head == own and d.labelled() is None for d in sources.values()):
        raise UserError(
            f"people labelled every image for the head '{own}': none is left for the pseudo half of the batches",
            field="self_training",
            value=", ".join(sources),
            fix="add a pool, or a source of another head",
        )


def refuse_other_form(recipe: Recipe, model: Model, heads: Mapping[str, Task], folder: Path) -> None:
    """That a network can start from the model in a folder, known from shapes alone.

    Raises:
        UserError: there is none; a layer of backbone or pyramid that is missing or of another shape.
    """
    weights = find_model(folder) / "weights.safetensors"
    blank = model.but(backbone=model.backbone.resolved(Path(recipe.data)).blank())
    _on_shapes(lambda: check_shared(blank.build(dict(heads)), weights))


def _check(root: Path, *backbones: Backbone) -> None:
    """That the names and files of backbones are there."""
    for backbone in backbones:
        backbone.check(root)


def _on_shapes(build: Callable[[], object]) -> None:
    """Build networks on torch's meta device; those that cannot be built without values, or that say that they do not
    fit, with random ones. Torch's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                build()
        except Exception:  # networks of any make have errors of many kinds, and some of being on this device
            build()


def _expand(recipe: Recipe, material: Material, part: XLearner) -> None:
    """All networks of an X-Learner, in their order."""
    groups, squeezed, narrow = tasks_of(recipe, material, part), part.squeeze, part.narrow
    expansion = unloaded(recipe, part if narrow is None else part.but(reconciliation=None, narrow=None), groups)
    if part.specialists is not None:
        for head in specialised(groups):
            single = _single(recipe, recipe.model.backbone, material, (head,))
            _check_hints(part, f"the specialist of '{head}' has", single.backbone.strides)
        _check_hints(part, "the sub-backbones have", expansion.core.strides)
    if narrow is None:
        _check_expanded(recipe, part, expansion)
        if isinstance(squeezed, Pruning) and squeezed.keep is None and share_of_one(expansion) >= 1:
            raise UserError(
                "there is one sub-backbone alone: as many weights as one has are all of them",
                field="squeeze.keep",
                fix="say which share of the weights stays",
            )
        if isinstance(squeezed, Distillation):
            _squeeze(recipe, material, squeezed, FrozenTasks.of(expansion.backbone()))
        return
    assert isinstance(squeezed, Distillation)
    for task, network in expansion.networks.items():
        _squeeze(
            recipe, material, squeezed.but(labels="none"), teachers={task: Frozen.of(network)}, backbone=narrow[task]
        )
    _check_expanded(recipe, part, unloaded(recipe, joint_of(part), groups))


def _check_hints(part: XLearner, who: str, strides: Sequence[int]) -> None:
    """That there are as many maps as the hints are about."""
    if part.hint_levels > len(strides):
        raise UserError(
            f"{who} {len(strides)} maps, of strides {', '.join(map(str, strides))}",
            field="hint_levels",
            value=part.hint_levels,
            fix=f"from 1 to {len(strides)}",
        )


def _check_expanded(recipe: Recipe, part: XLearner, expansion: Expansion) -> None:
    """That what stays expanded can be fine-tuned on all downstream sets."""
    if part.stays_expanded:
        _refuse_dilation_of(recipe, part, expansion.backbone().model.backbone)


def _refuse_dilation_of(recipe: Recipe, part: Pretraining, backbone: Backbone) -> None:
    """`refuse_dilation` of the row that a pre-training is."""
    rows = {**recipe.baselines, recipe.student.title: recipe.student}
    row = next((name for name, other in rows.items() if other == part), part.title)
    refuse_dilation(recipe, row, backbone)


def refuse_dilation(recipe: Recipe, row: str, backbone: Backbone) -> None:
    """That a row's backbone can be dilated where the head of a downstream set wants that.

    Raises:
        UserError: it cannot.
    """
    for name, wanted in recipe.transfer.items():
        try:
            if wanted.head.stride is not None:
                backbone.dilated(wanted.head.stride)
        except UserError as error:
            raise UserError(
                f"the row '{row}' cannot be fine-tuned on '{name}': {error.problem}",
                field=f"transfer.{name}.head",
                value=type(wanted.head).__name__,
                fix="take a head that reads the pyramid (`task: segmentation`), or leave the row out",
            ) from None


def _squeeze(
    recipe: Recipe,
    material: Material,
    part: Distillation,
    expanded: FrozenTasks | None = None,
    teachers: Mapping[str, Frozen] | None = None,
    backbone: Backbone | None = None,
) -> None:
    """The student of a squeeze and its teachers."""
    root = Path(recipe.data)
    foreign = {name: Frozen.of_backbone(one, root, load=False) for name, one in part.teachers.items()}
    backbone = backbone or part.backbone or recipe.model.backbone
    student = _single(recipe, backbone, material, tuple(learned_heads(material, part)))
    Squeeze(student, expanded, {**(teachers or {}), **foreign}, part.levels)


def _single(recipe: Recipe, backbone: Backbone, material: Material, heads: tuple[str, ...]) -> Student:
    """A network of single size with some heads."""
    model = recipe.model.but(backbone=backbone.resolved(Path(recipe.data)).blank())
    return model.build({head: material.heads[head] for head in heads})
