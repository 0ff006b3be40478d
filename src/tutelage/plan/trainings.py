"""The steps of a run's trainings, timed: the real loop, loader and settings, stopped after a few steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tutelage.data.loading import Labels
from tutelage.data.mixture import Mixture
from tutelage.data.quarantine import Quarantine
from tutelage.data.shared import Union
from tutelage.data.source import Dataset, LabelSpace, Unlabelled
from tutelage.downstream import PROBE
from tutelage.methods.hiring import own_form, own_model, taught_from
from tutelage.methods.material import Material, open_transfer
from tutelage.methods.pretraining import entries
from tutelage.methods.student import learner_of, mixture_of, sources_of
from tutelage.methods.workshop import Entry
from tutelage.models.learner import Learner
from tutelage.models.student import Model, Student
from tutelage.plan.clock import Clock
from tutelage.plan.figures import NOTHING, Span, TrainingCost, together
from tutelage.plan.probe import Bench, length, smaller, spread, time_rendering
from tutelage.plan.steps import aside, cost, stopped
from tutelage.plan.x_learner import time_x_learner
from tutelage.recipe import Distillation, FineTuning, Probe, Recipe, StudentPart, TransferSet, XLearner
from tutelage.tasks.task import Task
from tutelage.teachers import Checkpoint, Trained
from tutelage.training.balance import Balance, BalanceRule
from tutelage.training.evaluate import evaluate
from tutelage.training.fit import build, fit
from tutelage.training.schedule import Training
from tutelage.training.simclr import SimCLR, pretrain_simclr
from tutelage.transfer.finetune import effort
from tutelage.transfer.frozen import embed
from tutelage.transfer.rows import same_network

_SCORED = 16  # images that are looked at to time scoring, or features


def time_teacher(bench: Bench, material: Material, head: str, teacher: Trained) -> TrainingCost:
    """The training of one teacher on all sources of its head."""
    datasets = list(taught_from(bench.recipe, material, head).values())
    rule = Balance().build([head], (1, 1.0), {})
    network = _network(bench, own_model(bench.recipe, teacher), {head: own_form(teacher, material.heads[head])})
    span = _time_steps(bench, network, Mixture(datasets), teacher.training, rule, material.spaces)
    return cost("teachers", head, teacher.training.steps, bench, teacher.training, span)


def time_pretraining(
    bench: Bench, material: Material, samples: Sequence[Dataset], labels: Labels, entry: Entry
) -> list[TrainingCost]:
    """The trainings of one of the pre-trainings, on the images that the probe labelled."""
    settings, part = entry.part.training, entry.part
    name = "student" if entry.folder == "student" else entry.name
    if isinstance(part, XLearner | Distillation):
        return time_x_learner(bench, material, samples, labels, name, part)
    if isinstance(part, SimCLR):
        seen = part.sources or tuple(material.sources)
        span = _time_contrast(bench, [dataset for dataset in samples if dataset.name in seen], part)
    else:
        assert isinstance(part, StudentPart)
        heads = {head: material.heads[head] for head in part.heads or material.heads}
        network = _network(bench, bench.recipe.model, heads)
        names, pseudo = sources_of(material, part), None if part.labels == "human" else labels
        datasets = [dataset for dataset in samples if dataset.name in names]
        if pseudo is not None:  # the images of a labelled source that have no label: these stand for them
            datasets += [Unlabelled(dataset) for dataset in datasets if dataset.labelled() is not None]
        learner, rule = learner_of(bench.recipe, part, network, Union(datasets))
        mixture = mixture_of(bench.recipe, part, datasets, list(heads))
        span = _time_steps(bench, network, mixture, settings, rule, material.spaces, learner=learner, labels=pseudo)
    return [cost("student", name, settings.steps, bench, settings, span)]


def time_transfer(bench: Bench, name: str, transfer: TransferSet) -> tuple[list[TrainingCost], Span]:
    """A downstream set in the transfer table, a column for each way in which it is used: all rows and seeds; and what
    making its images costs."""
    recipe = bench.recipe
    small = {part: smaller(getattr(transfer, part)) for part in ("train", "validation", "test")}
    made = {part: time_rendering(bench, source) for part, source in small.items()}
    task, parts = open_transfer(name, transfer.but(**small), bench.place)
    counts = {part: length(getattr(transfer, part), dataset) for part, dataset in parts.items()}
    network, columns = _network(bench, recipe.model.but(size=transfer.size or recipe.model.size), {name: task}), []
    if "fine-tuning" in transfer.by:
        columns.append(_time_tuning(bench, network, name, transfer.finetuning or recipe.finetuning, parts, counts))
    if "linear-probe" in transfer.by:
        columns.append(_time_probe(bench, network, name, transfer.probe or recipe.probe, parts, counts))
    cells = rows(recipe) * len(recipe.seeds)
    making = together(span.times(counts[part]) for part, span in made.items() if span is not None)
    return [column.times(cells) for column in columns], making


def _time_tuning(
    bench: Bench,
    network: Student,
    name: str,
    settings: FineTuning,
    parts: Mapping[str, Dataset],
    counts: Mapping[str, int],
) -> TrainingCost:
    """Fine-tuning from one initialisation: all grid points, each as far as it comes."""
    template, short, classes = settings.training, settings.steps[0], network.tasks[name].classes
    first = template.but(rate=settings.rates[0], steps=short, warmup=min(template.warmup, short // 2))
    spaces = {} if classes is None else {name: LabelSpace(tuple(classes))}
    rule = Balance().build([name], (1, 1.0), {})
    span = _time_steps(bench, network, Mixture([parts["train"]]), first, rule, spaces)
    steps, validations = effort(settings)
    return replace(
        cost("transfer", name, steps, bench, template, span),
        scoring=_time_looking(
            bench, parts["validation"], lambda some, q: evaluate(network, name, some, bench.device, q)
        ),
        scored=validations * counts["validation"] + counts["test"],
    )


def _time_probe(
    bench: Bench,
    network: Student,
    name: str,
    settings: Probe,
    parts: Mapping[str, Dataset],
    counts: Mapping[str, int],
) -> TrainingCost:
    """Probing one initialisation: no step, and the frozen features of all images; the classifiers are not counted."""
    batch = settings.batch
    span = _time_looking(bench, parts["train"], lambda some, q: embed(network, some, bench.device, batch, q))
    return TrainingCost("transfer", name + PROBE, 0, batch, batch, NOTHING, span, sum(counts.values()))


def rows(recipe: Recipe) -> int:
    """Initialisations in the transfer table, as `transfer.rows` finds them."""
    given = 1 + recipe.model.backbone.pretrained + len(recipe.initialisations)
    if recipe.method == "transfer":
        return given
    teachers = sum(_initialises(recipe, head) for head in recipe.teachers) if recipe.specialists else 0
    return given + teachers + len(entries(recipe))


def _initialises(recipe: Recipe, head: str) -> bool:
    teacher = recipe.teachers[head]
    return same_network(recipe, teacher) if isinstance(teacher, Checkpoint) else isinstance(teacher, Trained)


def _network(bench: Bench, model: Model, heads: Mapping[str, Task]) -> Student:
    """As a run would build it, with random weights, which cost the same."""
    model = model.but(backbone=model.backbone.blank())
    return build(model, dict(heads), bench.recipe.seed, "plan", Path(bench.recipe.data))


def _time_contrast(bench: Bench, samples: Sequence[Dataset], part: SimCLR) -> Span:
    """Seconds an image of SimCLR, stopped after some steps."""
    model = bench.recipe.model.but(backbone=bench.recipe.model.backbone.blank())

    def work(settings: Training, folder: Path, clock: Clock) -> None:
        pretrain_simclr(
            model,
            part.but(training=settings),
            samples,
            folder,
            seed=bench.recipe.seed,
            device=bench.device,
            root=Path(bench.recipe.data),
            quarantine=aside(folder, samples),
            label="plan",
            progress=clock,
        )

    return stopped(bench, part.training, work)


def _time_steps(
    bench: Bench,
    network: Student,
    mixture: Mixture,
    settings: Training,
    rule: BalanceRule,
    spaces: dict[str, LabelSpace],
    *,
    learner: Learner | None = None,
    labels: Labels | None = None,
) -> Span:
    """Seconds an image of the real training, stopped after some steps."""

    def work(settings: Training, folder: Path, clock: Clock) -> None:
        fit(
            network,
            mixture,
            settings,
            rule,
            folder,
            seed=bench.recipe.seed,
            device=bench.device,
            spaces=spaces,
            learner=learner,
            labels=labels,
            quarantine=aside(folder, mixture.datasets),
            progress=clock,
        )

    return stopped(bench, settings, work)


def _time_looking(bench: Bench, dataset: Dataset, look: Callable[[Dataset, Quarantine], object]) -> Span:
    """Seconds an image of going through images, of two goes at some of them; a first one warms up."""
    some, samples = spread(dataset, _SCORED), []
    for _ in range(3):
        start = time.perf_counter()
        look(some, Quarantine(bench.fresh("scoring") / "q.jsonl", len(some), 1.0))
        samples.append((time.perf_counter() - start) / len(some))
    return Span.of(samples[1:])
