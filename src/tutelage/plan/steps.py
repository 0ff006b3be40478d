"""A training that is stopped after a few steps, for what a step takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tutelage.data.quarantine import QUARANTINE, Quarantine
from tutelage.data.source import Dataset
from tutelage.plan.clock import Clock, Enough
from tutelage.plan.figures import NOTHING, Span, TrainingCost
from tutelage.plan.probe import Bench
from tutelage.training.loop import Diverged
from tutelage.training.schedule import Training

_STEPS = 12


def stopped(bench: Bench, settings: Training, work: Callable[[Training, Path, Clock], None]) -> Span:
    """Seconds an image of a training, stopped after some steps.

    Args:
        bench: of the plan.
        settings: of the training; a CPU tries a smaller batch.
        work: trains with these settings, in this folder, and reports to this progress.
    """
    clock, batch = Clock(bench.share, _STEPS), bench.batch(settings.batch)
    if batch != settings.batch:
        settings = settings.but(batch=batch, accumulate=1)
    try:
        work(settings, bench.fresh("training"), clock)
    except Enough:
        pass
    except Diverged:  # the settings were made for weights that a plan does not have
        if not clock.samples:
            raise
    return clock.span()


def aside(folder: Path, datasets: Sequence[Dataset]) -> Quarantine:
    """A list of unusable images that never stops anything."""
    return Quarantine(folder / QUARANTINE, sum(len(dataset) for dataset in datasets), 1.0)


def cost(stage: str, name: str, steps: int, bench: Bench, settings: Training, span: Span) -> TrainingCost:
    """Of a training without scoring."""
    return TrainingCost(stage, name, steps, settings.batch, bench.batch(settings.batch), span, NOTHING, 0)
