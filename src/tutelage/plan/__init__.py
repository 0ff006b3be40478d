"""`tutelage plan`: what a run will cost, from a timed probe on this machine and stated assumptions; nothing is trained.

The probe opens the sources, reads some images of each, lets every teacher label them by the pass of a real run (a
teacher that is still to be trained: its network with random weights, which costs the same), and takes a few steps of
every training with the real loop. All it writes lies in a temporary folder.
"""

from __future__ import annotations

import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import torch

from tutelage.data.source import Subset
from tutelage.labels.store import LabelsView, Store
from tutelage.methods.material import Material, filled_heads, open_material
from tutelage.methods.pretraining import entries, looked_at
from tutelage.methods.workshop import STUDENT
from tutelage.plan.figures import NOTHING, Assumed, Estimate, HeadCost, Plan, SourceCost, Span, together
from tutelage.plan.probe import (
    Bench,
    Labels,
    index_bytes,
    label_samples,
    length,
    look,
    smaller,
    threads_of_a_run,
    time_rendering,
)
from tutelage.plan.sizes import head_cost, stored_cost
from tutelage.plan.teachers import open_teacher
from tutelage.plan.text import lines
from tutelage.plan.trainings import time_pretraining, time_teacher, time_transfer
from tutelage.progress import SILENT, Bar, Progress
from tutelage.recipe import Recipe
from tutelage.teachers import Trained
from tutelage.training.processes import device

__all__ = ["Assumed", "Estimate", "Plan", "Span", "measure", "plan"]

R = TypeVar("R")

_HELD_OUT = 16  # images that are made of a held-out source


def plan(
    recipe: Recipe,
    workers: int = 1,
    seconds: float = 60,
    assume: Assumed | None = None,
    progress: Progress | None = None,
) -> Iterator[str]:
    """The plan of a recipe as text, at most 100 columns wide.

    Args:
        recipe: what would be run.
        workers: devices like this one that share the labelling.
        seconds: see `measure`.
        assume: see `measure`.
        progress: where the probe's progress is shown; by default on standard error.

    Raises:
        UserError: data, weights or teachers are not what the recipe says.
    """
    found = measure(recipe, seconds, assume, progress if progress is not None else Progress(sys.stderr))
    yield from lines(found, workers)


def measure(recipe: Recipe, seconds: float = 60, assume: Assumed | None = None, progress: Progress = SILENT) -> Plan:
    """Probe the costs of a recipe on this machine.

    Args:
        recipe: what would be run.
        seconds: how long the probe may take, roughly: opening the sources is not counted, and everything is tried at
            least once, however slow it is.
        assume: what cannot be measured before the teachers are trained.
        progress: where progress is shown.

    Raises:
        UserError: data, weights or teachers are not what the recipe says.
    """
    recipe = recipe.but(model=recipe.model.resolved(Path(recipe.data)))
    start, load, assume = time.monotonic(), os.getloadavg()[0], assume or Assumed()
    trained = sum(isinstance(teacher, Trained) for teacher in recipe.teachers.values())
    learners = entries(recipe) if recipe.sources else []
    parts = len(recipe.sources) + trained + len(learners) + len(recipe.transfer)
    with tempfile.TemporaryDirectory() as name, threads_of_a_run(), progress.bar("probe", parts, "parts") as bar:
        bench = Bench(recipe, Path(name), device(), seconds / (2 * parts), assume)
        small = {name: smaller(source) for name, source in recipe.sources.items()}
        rendering = {name: time_rendering(bench, source) for name, source in small.items()}
        material = open_material(recipe.but(sources=small, held_out={}, study={}), bench.place)
        sources, heads, labels, samples = _label(bench, material, rendering, bar)
        repeats = len(recipe.seeds) if recipe.repeat == "everything" else 1
        columns = repeats * max(1, len(recipe.study))
        trainings = [
            _count(time_teacher(bench, material, head, teacher), bar).times(columns)
            for head, teacher in recipe.teachers.items()
            if isinstance(teacher, Trained)
        ]
        for entry in learners:  # variants share what needs no teacher; in further rounds the student learns alone
            often = (columns if entry.late else repeats) * (recipe.rounds if entry.name == STUDENT else 1)
            costs = _count(time_pretraining(bench, material, samples, labels, entry), bar)
            trainings += [cost.times(often) for cost in costs]
        made = [_held_out(bench)]
        for set_name, transfer in recipe.transfer.items():
            costs, making = _count(time_transfer(bench, set_name, transfer), bar)
            trainings += costs
            made.append(making)
        return Plan(
            recipe=recipe.name,
            machine=_machine(bench.device),
            cores=os.cpu_count() or 1,
            load=load,
            probing=time.monotonic() - start,
            sources=tuple(sources),
            heads=tuple(heads),
            trainings=tuple(trainings),
            rendering=together(made),
            shard=recipe.labelling.shard,
            stored=recipe.labels is not None,
            labelled=columns * (recipe.rounds - (recipe.labels is not None)),
            memory=_memory(bench.device),
            assumed=assume,
        )


def _label(
    bench: Bench, material: Material, rendering: dict[str, Span | None], bar: Bar
) -> tuple[list[SourceCost], list[HeadCost], Labels, list[Subset]]:
    """Read and label some images of every source."""
    recipe = bench.recipe
    asked = filled_heads(recipe, material.heads)
    teachers = [open_teacher(recipe, material, head, bench.folder, bench.device, bench.assume) for head in asked]
    samples, spans, roots = label_samples(bench, material, teachers, bar)
    sources, looked = [], looked_at(recipe)
    for name, dataset in material.sources.items():
        seen, made = look(samples[name]), rendering[name]
        sources.append(
            SourceCost(
                name=name,
                pool=dataset.head is None,
                images=length(recipe.sources[name], dataset),
                sampled=seen.images,
                unreadable=seen.unreadable,
                height=seen.height,
                width=seen.width,
                file_bytes=seen.file_bytes,
                reading=seen.reading,
                rendering=made,
                labelling=spans[name] if name in looked else NOTHING,
                index=0.0 if made is not None else index_bytes(dataset),
            )
        )
    heads = [
        head_cost(recipe, teacher, {name: roots[name] for name in looked}, bench.assume)
        if recipe.labels is None
        else stored_cost(recipe, teacher.head, teacher.task.kind)
        for teacher in teachers
    ]
    views = {
        name: LabelsView(Store(root), {head: material.heads[head] for head in asked}) for name, root in roots.items()
    }
    return sources, heads, Labels(views), list(samples.values())


def _held_out(bench: Bench) -> Span:
    """Seconds to make the held-out images that are made; 0 for files."""
    spent = [NOTHING]
    for source in bench.recipe.held_out.values():
        span = time_rendering(bench, smaller(source, _HELD_OUT))
        if span is not None:
            spent.append(span.times(source.to_prepare(bench.place)))
    return together(spent)


def _count(result: R, bar: Bar) -> R:
    bar.advance()
    return result


def _memory(where: torch.device) -> tuple[int, int]:
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib * 1024, torch.cuda.max_memory_allocated() if where.type == "cuda" else 0


def _machine(where: torch.device) -> str:
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else f"CPU ({platform.machine()})"
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} of them for networks"
