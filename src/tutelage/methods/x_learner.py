"""X-Learner (He et al., ECCV 2022), section 3, top to bottom.

1. Tasks: every source is labelled for one task; a head a source (3.1, equation 1; `groups.py`).
2. Expansion: a sub-backbone a task learns alone for tau steps, then all learn jointly, reconciliation layers between
   them (3.2, algorithm 1, equations 1 and 2); `training/expanding.py` is the loop.
3. Squeeze: one student of single size learns the features of all tasks (3.3, equations 3 and 4).

The variants of section 3.4 are the same steps in another order, or with another of their parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage.data.loading import Labels
from tutelage.data.mixture import Mixture, order_of, parts_of
from tutelage.data.shared import Union
from tutelage.data.source import Dataset, Unlabelled
from tutelage.methods.groups import Group, counted, tasks_of
from tutelage.methods.guards import say_missing
from tutelage.methods.material import Material
from tutelage.methods.student import pseudo_labels, train_student
from tutelage.methods.workshop import Entry, Made, Workshop, quarantine_of, refuse_shared, saved, weights_in
from tutelage.models.backbone import Backbone
from tutelage.models.expanded import ExpandedMaps, weights_of
from tutelage.recipe import Recipe
from tutelage.stages import Run, Stage
from tutelage.tasks.task import Task
from tutelage.training.expanding import expand, save_expansion, source_weights
from tutelage.training.expansion import Expansion
from tutelage.training.fit import batches_of, build, fit, seeded
from tutelage.training.guidance import Frozen, FrozenTasks
from tutelage.training.loop import train
from tutelage.training.notes import take_note
from tutelage.training.pretraining import StudentPart
from tutelage.training.processes import barrier, device, rank, world
from tutelage.training.pruning import Pruned, kept, prunable
from tutelage.training.rules import Weighted
from tutelage.training.schedule import Training
from tutelage.training.squeeze import Squeeze
from tutelage.training.x_learner import Distillation, Pruning, XLearner

PRUNED = "pruned"
"""What a stage calls the weights of a backbone that are 0 for good."""


def x_learn(run: Run, workshop: Workshop, entry: Entry, part: XLearner) -> Made:
    """Expansion, then squeeze; what is delivered lies in the entry's folder."""
    groups = tasks_of(run.recipe, workshop.material, part)
    if part.narrow is not None:
        return _squeeze_first(run, workshop, entry, part, groups)
    if part.start is not None:
        expansion = workshop.made[part.start].expansion
        assert expansion is not None
    else:
        folder = entry.folder if part.squeeze is None else f"expansions/{entry.folder}"
        expansion = _expand(run, workshop, entry, folder, part, groups)
    if part.squeeze is None:
        taken = _expanded(expansion, groups)
        return taken if part.start is None else taken._replace(stage=_take(run, entry, part, expansion))
    if isinstance(part.squeeze, Pruning):
        pruned = _prune(run, workshop, entry, part, part.squeeze, expansion, groups)
        return _expanded(pruned, groups)._replace(expansion=expansion)
    made = _squeeze(run, workshop, entry, entry.folder, part.squeeze, after=[expansion], expanded=expansion.folder)
    return made._replace(others=_networks(expansion, groups), expansion=expansion)


def distil(run: Run, workshop: Workshop, entry: Entry, part: Distillation) -> Made:
    """The squeeze alone: a student of foreign teachers' features."""
    return _squeeze(run, workshop, entry, entry.folder, part)


def _expand(
    run: Run,
    workshop: Workshop,
    entry: Entry,
    folder: str,
    part: XLearner,
    groups: Mapping[str, Group],
    starts: Mapping[str, Made] | None = None,
) -> Stage:
    """The expansion stage: algorithm 1, with hints of specialists where the part asks for them.

    Args:
        run, workshop, entry, part: as everywhere.
        folder: of the stage.
        groups: the tasks.
        starts: task name to the model that its sub-backbone starts from.
    """
    specialists = _specialists(run, workshop, entry, part, groups)
    after = [made.stage for made in (*specialists.values(), *(starts or {}).values())]
    stage = _open(run, workshop, folder, part.but(squeeze=None, start=None, narrow=None), groups, after)
    if stage.finished:
        return stage
    refuse_shared(run, stage, f"'{entry.name}'")
    hints = {head: Frozen.of(saved(run, made.folder).student) for head, made in specialists.items()}
    expansion = built(run.recipe, part, groups, folder, hints)
    if starts is None:
        _say_normalisation(run, stage, entry, part.backbones)
    for task, start in (starts or {}).items():
        expansion.core.branches[task].load_state_dict(saved(run, start.folder).student.backbone.state_dict())
    parts = _parts(run, workshop, part, groups)
    seed = run.recipe.seed if starts is None else order_of(run.recipe.seed, folder)  # not the views seen before
    mixture, labels = _images(run, workshop, part, groups, parts, seed)
    heads = {head: task for group in groups.values() for head, task in group.heads.items()}
    run.progress.say(f"{entry.name}: {mixture.meaning()}")
    say_missing(run, stage, entry.name, parts, heads)
    expand(
        expansion,
        mixture,
        part.training,
        part.tau,
        stage.folder,
        sources=counted(part, groups),
        hint_weight=part.hint_weight,
        seed=mixture.seed,
        device=device(),
        spaces=workshop.material.spaces,
        labels=labels,
        quarantine=quarantine_of(run, stage, {d.name: d for d in mixture.datasets}),
        label=f"{entry.name}: expansion",
        progress=run.progress,
    )
    stage.finish(images=len(mixture), weights=weights_of(expansion.core))
    return stage


def _take(run: Run, entry: Entry, part: XLearner, expansion: Stage) -> Stage:
    """The stage of a pre-training that delivers another one's expansion, as it lies there: nothing is trained."""
    stage = run.stage(entry.folder, {"start": part.start}, after=[expansion], shared=part.labels == "human")
    if not stage.finished:
        backbone = saved(run, expansion.folder).student.backbone
        assert isinstance(backbone, ExpandedMaps)
        stage.finish(weights=weights_of(backbone.core))
    return stage


def _specialists(
    run: Run, workshop: Workshop, entry: Entry, part: XLearner, groups: Mapping[str, Group]
) -> dict[str, Made]:
    """X-Learner++: head to a network of its own, which learned nothing but this head's source."""
    if part.specialists is None:
        return {}
    made = {}
    for head, names in specialised(groups).items():
        single = StudentPart(
            training=part.specialists, heads=(head,), sources=names, labels="human", fractions=part.fractions
        )
        own = Entry(f"{entry.name}: {head}", f"specialists/{entry.folder}/{head}", single)
        made[head] = train_student(run, workshop, own, single)
    return made


def specialised(groups: Mapping[str, Group]) -> dict[str, tuple[str, ...]]:
    """Head to the sources that people labelled for it: those that a specialist can learn from. Others have none."""
    found: dict[str, tuple[str, ...]] = {}
    for group in groups.values():
        for name, dataset in group.sources.items():
            found[str(dataset.head)] = (*found.get(str(dataset.head), ()), name)
    return found


def built(
    recipe: Recipe, part: XLearner, groups: Mapping[str, Group], name: str, hints: Mapping[str, Frozen] | None = None
) -> Expansion:
    """The networks of the expansion, whose random weights follow from the recipe's seed and a name."""
    seeded(recipe.seed, name)
    return Expansion(
        recipe.model,
        {task: group.heads for task, group in groups.items()},
        branches={task: part.backbones.get(task, recipe.model.backbone) for task in groups},
        reconciliation=part.reconciliation,
        root=Path(recipe.data),
        hints=hints,
        levels=part.hint_levels,
    )


def unloaded(recipe: Recipe, part: XLearner, groups: Mapping[str, Group]) -> Expansion:
    """The networks of the expansion with random weights throughout: for their shapes, and for what a step costs."""
    root = Path(recipe.data)
    model = recipe.model.but(backbone=recipe.model.backbone.resolved(root).blank())
    branches = {task: backbone.resolved(root).blank() for task, backbone in part.backbones.items()}
    return built(recipe.but(model=model), part.but(backbones=branches), groups, "unloaded")


def trainings_of(recipe: Recipe, material: Material, part: XLearner) -> list[Training]:
    """All its trainings. With `narrow`, one stands for the squeezes of all tasks, whose batches are together as
    large."""
    trainings = [] if part.start is not None else [part.training] * (1 if part.narrow is None else 2)
    if part.start is None and part.specialists is not None:
        trainings += [part.specialists] * len(specialised(tasks_of(recipe, material, part)))
    if part.squeeze is not None:
        trainings.append(part.squeeze.training)
    return trainings


def joint_of(part: XLearner) -> XLearner:
    """Variant r: the expansion of the narrow sub-backbones, each of which was alone before."""
    plain = {"specialists": None, "hint_levels": 1, "hint_weight": 1.0}
    return part.but(backbones=part.narrow, narrow=None, alone=0, **plain)


def _say_normalisation(run: Run, stage: Stage, entry: Entry, backbones: Mapping[str, Backbone]) -> None:
    """Note which weights get their images otherwise normalised than they want: all networks see the same ones."""
    mean, std = run.recipe.model.normalisation()
    for name, backbone in backbones.items():
        backbone = backbone.resolved(Path(run.recipe.data))
        if backbone.pretrained and backbone.normalisation() != (mean, std):
            wanted = "mean {} and std {}".format(*map(list, backbone.normalisation()))
            text = (
                f"{entry.name}: the weights of '{name}' want images of {wanted}; they get those of the model, mean "
                f"{list(mean)} and std {list(std)}. To have theirs for all: `model.mean` and `model.std`"
            )
            take_note(stage.folder, text, run.progress)


def learned_heads(material: Material, part: Distillation) -> dict[str, Task]:
    """The heads that a squeeze learns from labels beside the features."""
    return {} if part.labels == "none" else {head: material.heads[head] for head in part.heads or material.heads}


def _parts(run: Run, workshop: Workshop, part: XLearner, groups: Mapping[str, Group]) -> list[Dataset]:
    """What takes part of the tasks' sources, and of the pools where these have labels too."""
    datasets = [dataset for group in groups.values() for dataset in group.sources.values()]
    if part.labels == "all":
        datasets += [dataset for dataset in workshop.material.sources.values() if dataset.head is None]
    return parts_of(datasets, {**run.recipe.fractions, **part.fractions}, run.recipe.seed, rest=part.labels == "all")


def _images(
    run: Run, workshop: Workshop, part: XLearner, groups: Mapping[str, Group], parts: Sequence[Dataset], seed: int
) -> tuple[Mixture, Labels | None]:
    """Which image comes when, every source as often as any other (3.1); and the labels that are not in the sources."""
    if part.labels != "all":
        return Mixture(parts, "equal", seed), None
    union = Union(parts)
    heads = {head: task for group in groups.values() for head, task in group.heads.items()}
    return Mixture(union.datasets, "equal", seed), pseudo_labels(run, workshop, union, heads)


def _open(
    run: Run, workshop: Workshop, folder: str, part: XLearner, groups: Mapping[str, Group], after: list[Stage]
) -> Stage:
    """The stage of an expansion."""
    recipe = run.recipe
    names = [name for group in groups.values() for name in group.sources]
    about: dict[str, Any] = {
        "expansion": part.plain(),
        "tasks": {task: list(group.sources) for task, group in groups.items()},
        "model": recipe.model.plain(),
        "sources": {name: recipe.sources[name].plain() for name in names},
        "heads": {head: task.plain() for group in groups.values() for head, task in group.heads.items()},
        "fractions": {name: share for name, share in recipe.fractions.items() if name in names},
        "seed": recipe.seed,
        "data": recipe.data,
    }
    if part.labels == "all":
        assert workshop.labels is not None
        after = [*after, workshop.labels.stage]
    return run.stage(folder, about, after=after, shared=part.labels == "human")


def _squeeze(
    run: Run,
    workshop: Workshop,
    entry: Entry,
    folder: str,
    part: Distillation,
    *,
    after: Sequence[Stage] = (),
    expanded: Path | None = None,
    teachers: Mapping[str, Path] | None = None,
    backbone: Backbone | None = None,
) -> Made:
    """The squeeze stage: one student learns what its teachers make of the same images.

    Args:
        run, workshop, entry, part: as everywhere; foreign teachers are in the part.
        folder: of the stage.
        after: the stages that made the teachers.
        expanded: the model of an expanded backbone, whose tasks are a hint each.
        teachers: name to the model of a single one.
        backbone: of the student, where neither the part nor the recipe's model says which.
    """
    recipe, material, backbone = run.recipe, workshop.material, backbone or part.backbone
    sources = {name: material.sources[name] for name in part.sources or material.sources}
    heads = learned_heads(material, part)
    model = recipe.model if backbone is None else recipe.model.but(backbone=backbone)
    about: dict[str, Any] = {
        "squeeze": part.plain(),
        "model": model.plain(),
        "sources": {name: recipe.sources[name].plain() for name in sources},
        "heads": {head: task.plain() for head, task in heads.items()},
        "fractions": {name: share for name, share in recipe.fractions.items() if name in sources},
        "seed": recipe.seed,
        "data": recipe.data,
    }
    labelled = [workshop.labels.stage] if part.labels == "all" and workshop.labels is not None else []
    stage = run.stage(folder, about, after=[*after, *labelled], shared=not entry.late)
    if stage.finished:
        return Made(stage, stage.folder)
    refuse_shared(run, stage, f"'{entry.name}'")
    root = Path(recipe.data)
    learner = Squeeze(
        build(model, heads, recipe.seed, folder, root),
        None if expanded is None else FrozenTasks.of(saved(run, expanded).student),
        {name: Frozen.of(saved(run, path).student) for name, path in (teachers or {}).items()}
        | {name: Frozen.of_backbone(foreign, root) for name, foreign in part.teachers.items()},
        part.levels,
    )
    if backbone is not None:
        _say_normalisation(run, stage, entry, {folder.rpartition("/")[2]: backbone})
    parts = parts_of(sources.values(), {**recipe.fractions, **part.fractions}, recipe.seed, rest=True)
    datasets, labels = _looked_at(run, workshop, part, parts, heads)
    mixture = Mixture(datasets, "equal", order_of(recipe.seed, folder))  # not the views that the expansion saw
    say_missing(run, stage, entry.name, parts, heads)
    fit(
        learner.student,
        mixture,
        part.training,
        learner.rule(),
        stage.folder,
        seed=mixture.seed,
        device=device(),
        spaces=material.spaces,
        learner=learner,
        labels=labels,
        quarantine=quarantine_of(run, stage, sources),
        label=f"{entry.name}: squeeze",
        progress=run.progress,
    )
    stage.finish(images=sum(len(dataset) for dataset in sources.values()), weights=weights_in(learner.student.backbone))
    return Made(stage, stage.folder)


def _looked_at(
    run: Run, workshop: Workshop, part: Distillation, parts: Sequence[Dataset], heads: Mapping[str, Task]
) -> tuple[Sequence[Dataset], Labels | None]:
    """The images of a squeeze, and their labels, where these are learned as well."""
    union = Union(parts)
    if part.labels == "none":
        return [Unlabelled(dataset) for dataset in union.datasets], None
    return union.datasets, pseudo_labels(run, workshop, union, heads) if part.labels == "all" else union.labels(None)


def _prune(
    run: Run,
    workshop: Workshop,
    entry: Entry,
    part: XLearner,
    cut: Pruning,
    expansion: Stage,
    groups: Mapping[str, Group],
) -> Stage:
    """Variant p: the smallest weights of the expanded backbone are taken out, and the rest goes on learning."""
    recipe = run.recipe
    stage = _open(run, workshop, entry.folder, part, groups, [expansion])
    if stage.finished:
        return stage
    refuse_shared(run, stage, f"'{entry.name}'")
    whole = built(run.recipe, part, groups, entry.folder)
    for network, folder in zip(whole.networks.values(), _networks(expansion, groups), strict=True):
        network.load_state_dict(saved(run, folder).student.state_dict())
    parts = _parts(run, workshop, part, groups)
    mixture, labels = _images(run, workshop, part, groups, parts, order_of(recipe.seed, entry.folder))
    batches = batches_of(
        mixture,
        whole.heads,
        whole.size,
        cut.training,
        cut.training.augment,
        seed=mixture.seed,
        labels=labels,
        quarantine=quarantine_of(run, stage, {d.name: d for d in mixture.datasets}),
    )
    train(
        Pruned(whole, whole.core, cut.keep or share_of_one(whole)),
        cut.training,
        Weighted(source_weights(whole, counted(part, groups), joint=True)),
        batches,
        stage.folder,
        seed=mixture.seed,
        device=device(),
        label=f"{entry.name}: pruned",
        progress=run.progress,
    )
    if rank() == 0:
        save_expansion(stage.folder, whole, workshop.material.spaces)
    barrier()
    left = kept(whole.core)
    stage.finish(images=len(mixture), weights={"not zero": left.weights + left.others, PRUNED: left.of - left.weights})
    return stage


def share_of_one(whole: Expansion) -> float:
    """The share of an expanded backbone's weights that a single sub-backbone has; of unlike ones, the mean of them."""
    branches = [sum(w.numel() for w in prunable(branch)) for branch in whole.core.branches.values()]
    return sum(branches) / len(branches) / sum(w.numel() for w in prunable(whole.core))


def _squeeze_first(run: Run, workshop: Workshop, entry: Entry, part: XLearner, groups: Mapping[str, Group]) -> Made:
    """Variant r: each task is learned alone, squeezed into a narrow sub-backbone, and these are expanded."""
    assert part.narrow is not None
    assert isinstance(part.squeeze, Distillation)
    alone = part.but(reconciliation=None, alone=part.training.steps, narrow=None)
    teachers = _expand(run, workshop, entry, f"expansions/{entry.folder}", alone, groups)
    count = sum(len(group.sources) for group in groups.values())
    starts = {
        task: _squeeze(
            run,
            workshop,
            entry,
            f"narrow/{entry.folder}/{task}",
            part.squeeze.but(
                training=share_of_batch(part.squeeze.training, len(groups[task].sources) / count),
                sources=tuple(groups[task].sources),
                labels="none",
            ),
            after=[teachers],
            teachers={task: folder},
            backbone=part.narrow[task],
        )
        for task, folder in zip(groups, _networks(teachers, groups), strict=True)
    }
    return _expanded(_expand(run, workshop, entry, entry.folder, joint_of(part), groups, starts), groups)


def share_of_batch(training: Training, share: float) -> Training:
    """With this share of the images a step, rounded to what processes and micro-batches can divide evenly."""
    unit = training.accumulate * world()
    return training.but(batch=unit * max(1, round(training.batch * share / unit)))


def _expanded(stage: Stage, groups: Mapping[str, Group]) -> Made:
    """An expanded backbone as what is delivered."""
    return Made(stage, stage.folder, _networks(stage, groups), stage)


def _networks(stage: Stage, groups: Mapping[str, Group]) -> tuple[Path, ...]:
    """The models with the heads of every task."""
    return tuple(stage.folder / "tasks" / task for task in groups)
