"""The steps of a run's trainings, timed: the real loop, loader and settings, stopped after a few steps."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from tutelage.data.loading import Labels
from tutelage.data.quarantine import Quarantine
from tutelage.data.source import Dataset, LabelSpace
from tutelage.methods.material import Material, open_transfer
from tutelage.models.student import Student
from tutelage.plan.clock import Clock, Enough
from tutelage.plan.figures import NOTHING, Span, TrainingCost, together
from tutelage.plan.probe import Bench, length, smaller, spread, time_rendering
from tutelage.recipe import Recipe, TransferSet
from tutelage.tasks.task import Task
from tutelage.teachers import Checkpoint, Trained
from tutelage.training.balance import Balance, BalanceRule
from tutelage.training.checkpoint import find_model, read_architecture
from tutelage.training.evaluate import evaluate
from tutelage.training.fit import build, fit
from tutelage.training.loop import Diverged
from tutelage.training.schedule import Training

_STEPS = 12
_SCORED = 16  # images that are scored at a time


def time_teacher(bench: Bench, material: Material, head: str, teacher: Trained) -> TrainingCost:
    """The training of one teacher on all sources of its head."""
    datasets = [dataset for dataset in material.sources.values() if dataset.head == head]
    rule = Balance().build([head], (1, 1.0), {})
    network = _network(bench, {head: material.heads[head]})
    span = _time_steps(bench, network, datasets, teacher.training, rule, material.spaces)
    return _cost("teachers", head, teacher.training.steps, bench, teacher.training, span)


def time_student(bench: Bench, material: Material, samples: Sequence[Dataset], labels: Labels) -> TrainingCost:
    """The student's training, on the images that the probe labelled."""
    recipe, settings = bench.recipe, bench.recipe.student.training
    scales = {
        head: (teacher.training.batch, teacher.training.rate)
        for head, teacher in recipe.teachers.items()
        if isinstance(teacher, Trained)
    }
    rule = recipe.student.balance.build(list(material.heads), (settings.batch, settings.rate), scales)
    network = _network(bench, material.heads)
    span = _time_steps(
        bench, network, samples, settings, rule, material.spaces, mode=recipe.student.mixture, labels=labels
    )
    return _cost("student", "student", settings.steps, bench, settings, span)


def time_transfer(bench: Bench, name: str, transfer: TransferSet) -> tuple[TrainingCost, Span]:
    """A column of the transfer table: all rows, seeds and grid points; and what making its images costs."""
    recipe, settings = bench.recipe, transfer.finetuning or bench.recipe.finetuning
    small = {part: smaller(getattr(transfer, part)) for part in ("train", "validation", "test")}
    made = {part: time_rendering(bench, source) for part, source in small.items()}
    task, parts = open_transfer(name, transfer.but(**small), bench.place)
    counts = {part: length(getattr(transfer, part), dataset) for part, dataset in parts.items()}
    template, steps = settings.training, settings.steps[0]
    first = template.but(rate=settings.rates[0], steps=steps, warmup=min(template.warmup, steps // 2))
    network = _network(bench, {name: task})
    spaces = {} if task.classes is None else {name: LabelSpace(tuple(task.classes))}
    rule = Balance().build([name], (1, 1.0), {})
    span = _time_steps(bench, network, [parts["train"]], first, rule, spaces)
    cells, points = rows(recipe) * len(recipe.seeds), len(settings.rates) * len(settings.steps)
    cost = TrainingCost(
        stage="transfer",
        name=name,
        steps=cells * len(settings.rates) * sum(settings.steps),
        batch=template.batch,
        probed=bench.batch(template.batch),
        training=span,
        scoring=_time_scoring(bench, network, name, parts["validation"]),
        scored=cells * (points * counts["validation"] + counts["test"]),
    )
    return cost, together(span.times(counts[part]) for part, span in made.items() if span is not None)


def rows(recipe: Recipe) -> int:
    """Initialisations in the transfer table: random, a weight file, teachers of the recipe's architecture, student."""
    return 2 + recipe.model.backbone.pretrained + sum(_initialises(recipe, head) for head in recipe.teachers)


def _initialises(recipe: Recipe, head: str) -> bool:
    teacher = recipe.teachers[head]
    if not isinstance(teacher, Checkpoint):
        return isinstance(teacher, Trained)
    folder = find_model(Path(recipe.data) / teacher.path)
    return read_architecture(folder, teacher.tasks, teacher.backbones)[0] == recipe.model


def _network(bench: Bench, heads: Mapping[str, Task]) -> Student:
    """As a run would build it, with random weights, which cost the same."""
    model = bench.recipe.model
    return build(
        model.but(backbone=model.backbone.blank()), dict(heads), bench.recipe.seed, "plan", Path(bench.recipe.data)
    )


def _time_steps(
    bench: Bench,
    network: Student,
    datasets: Sequence[Dataset],
    settings: Training,
    rule: BalanceRule,
    spaces: dict[str, LabelSpace],
    *,
    mode: Literal["uniform", "equal"] = "uniform",
    labels: Labels | None = None,
) -> Span:
    """Seconds an image of the real training, stopped after some steps."""
    clock = Clock(bench.share, _STEPS)
    batch = bench.batch(settings.batch)
    if batch != settings.batch:
        settings = settings.but(batch=batch, accumulate=1)
    folder = bench.fresh("training")
    total = sum(len(dataset) for dataset in datasets)
    try:
        fit(
            network,
            datasets,
            settings,
            rule,
            folder,
            seed=bench.recipe.seed,
            device=bench.device,
            spaces=spaces,
            mode=mode,
            labels=labels,
            quarantine=Quarantine(folder / "quarantine.jsonl", total, 1.0),
            progress=clock,
        )
    except Enough:
        pass
    except Diverged:  # the settings were made for weights that a plan does not have
        if not clock.samples:
            raise
    return clock.span()


def _time_scoring(bench: Bench, network: Student, head: str, dataset: Dataset) -> Span:
    """Seconds an image of scoring, of two goes at some images; the first of which warms up."""
    some, samples = spread(dataset, _SCORED), []
    for _ in range(3):
        start = time.perf_counter()
        evaluate(network, head, some, bench.device, Quarantine(bench.fresh("scoring") / "q.jsonl", len(some), 1.0))
        samples.append((time.perf_counter() - start) / len(some))
    return Span.of(samples[1:])


def _cost(stage: str, name: str, steps: int, bench: Bench, settings: Training, span: Span) -> TrainingCost:
    return TrainingCost(stage, name, steps, settings.batch, bench.batch(settings.batch), span, NOTHING, 0)
