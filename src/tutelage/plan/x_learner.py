"""The trainings of an X-Learner, timed: specialists, expansion, squeeze; and of feature distillation alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tutelage.data.loading import Labels
from tutelage.data.mixture import Mixture
from tutelage.data.source import Dataset, Unlabelled
from tutelage.methods.groups import Group, counted, tasks_of
from tutelage.methods.material import Material
from tutelage.methods.x_learner import learned_heads, specialised, unloaded
from tutelage.plan.clock import Clock
from tutelage.plan.figures import TrainingCost
from tutelage.plan.probe import Bench
from tutelage.plan.steps import aside, cost, stopped
from tutelage.recipe import Distillation, Pruning, XLearner
from tutelage.training.expanding import expand
from tutelage.training.expansion import Expansion
from tutelage.training.fit import build, fit
from tutelage.training.guidance import Frozen, FrozenTasks
from tutelage.training.schedule import Training
from tutelage.training.squeeze import Squeeze


def time_x_learner(
    bench: Bench,
    material: Material,
    samples: Sequence[Dataset],
    labels: Labels,
    name: str,
    part: XLearner | Distillation,
) -> list[TrainingCost]:
    """What it trains, each with the steps that it has.

    An expansion is taken to be joint from its first step, which is an upper bound; a specialist to cost as much as the
    expansion of its one source; pruning as much as the expansion.

    Args:
        bench, material: of the plan.
        samples: some images of every source, whose names they have.
        labels: the pseudo labels of these.
        name: of the pre-training.
        part: the pre-training.
    """
    some = {dataset.name: dataset for dataset in samples}
    if isinstance(part, Distillation):
        return [_time_squeeze(bench, material, some, labels, name, part, None)]
    groups = {
        task: Group(group.heads, {source: some[source] for source in group.sources})
        for task, group in tasks_of(bench.recipe, material, part).items()
    }
    found = []
    if part.start is None:
        found.append(_time_expansion(bench, material, groups, labels, f"{name}: expansion", part))
    if part.start is None and part.specialists is not None:
        steps = part.specialists.steps * len(specialised(groups))
        found.append(replace(found[0], name=f"{name}: specialists", steps=steps, batch=part.specialists.batch))
    if part.narrow is not None:
        teachers = part.but(reconciliation=None, alone=part.training.steps, narrow=None)
        found.append(_time_expansion(bench, material, groups, labels, f"{name}: teachers", teachers))
    if isinstance(part.squeeze, Pruning):
        pruned = part.but(training=part.squeeze.training, alone=0)
        found.append(_time_expansion(bench, material, groups, labels, f"{name}: pruned", pruned))
    elif part.squeeze is not None:
        expansion = _unloaded(bench, part, groups)
        # With `narrow`, one a task, whose batches are together as large as this one.
        found.append(_time_squeeze(bench, material, some, labels, f"{name}: squeeze", part.squeeze, expansion))
    return found


def _unloaded(bench: Bench, part: XLearner, groups: Mapping[str, Group]) -> Expansion:
    """The networks of an expansion with random weights, which cost the same."""
    return unloaded(bench.recipe, part.but(backbones=part.narrow or part.backbones), groups)


def _time_expansion(
    bench: Bench, material: Material, groups: Mapping[str, Group], labels: Labels, name: str, part: XLearner
) -> TrainingCost:
    expansion = _unloaded(bench, part, groups)
    datasets = [dataset for group in groups.values() for dataset in group.sources.values()]

    def work(settings: Training, folder: Path, clock: Clock) -> None:
        expand(
            expansion,
            Mixture(datasets, "equal"),
            settings,
            settings.steps if part.reconciliation is None else 0,
            folder,
            sources=counted(part, groups),
            seed=bench.recipe.seed,
            device=bench.device,
            spaces=material.spaces,
            labels=labels if part.labels == "all" else None,
            quarantine=aside(folder, datasets),
            progress=clock,
        )

    return cost("student", name, part.training.steps, bench, part.training, stopped(bench, part.training, work))


def _time_squeeze(
    bench: Bench,
    material: Material,
    some: Mapping[str, Dataset],
    labels: Labels,
    name: str,
    part: Distillation,
    expansion: Expansion | None,
) -> TrainingCost:
    recipe = bench.recipe
    heads = learned_heads(material, part)
    datasets: list[Dataset] = [some[source] for source in part.sources or some]
    if part.labels == "none":
        datasets = [Unlabelled(dataset) for dataset in datasets]
    backbone = (part.backbone or recipe.model.backbone).resolved(Path(recipe.data))
    model = recipe.model.but(backbone=backbone.blank())
    learner = Squeeze(
        build(model, heads, recipe.seed, "plan", Path(recipe.data)),
        None if expansion is None else FrozenTasks.of(expansion.backbone()),
        {teacher: Frozen.of_backbone(foreign, Path(recipe.data)) for teacher, foreign in part.teachers.items()},
        part.levels,
    )

    def work(settings: Training, folder: Path, clock: Clock) -> None:
        fit(
            learner.student,
            Mixture(datasets, "equal"),
            settings,
            learner.rule(),
            folder,
            seed=recipe.seed,
            device=bench.device,
            spaces=material.spaces,
            learner=learner,
            labels=labels if part.labels == "all" else None,
            quarantine=aside(folder, datasets),
            progress=clock,
        )

    return cost("student", name, part.training.steps, bench, part.training, stopped(bench, part.training, work))
