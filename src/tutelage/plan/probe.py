"""The probe of a plan: sources are opened, some images read, labelled and stored, all in a temporary folder."""

from __future__ import annotations

import pickle
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch

from tutelage.data.join import Join
from tutelage.data.scenes import Scenes
from tutelage.data.source import BadImage, Dataset, Place, Source, Subset
from tutelage.labels.labelling import label_pool
from tutelage.labels.store import LabelsView
from tutelage.methods.material import Material
from tutelage.plan.clock import Clock
from tutelage.plan.figures import NOTHING, Assumed, Span
from tutelage.plan.teachers import Watched
from tutelage.progress import Bar
from tutelage.recipe import Recipe
from tutelage.training.processes import leave_a_core_to_the_loader
from tutelage.types import Target

CPU_BATCH = 32
"""A larger batch is not tried on a CPU, where an image costs the same in a batch of any size."""
_MADE = 2 * CPU_BATCH  # images that are made of a source that makes its own
_BATCHES = 4  # at most so many are labelled of a source


@dataclass(frozen=True)
class Bench:
    """What every measurement needs.

    Attributes:
        recipe: what is planned.
        folder: temporary; all that is written lies below it.
        device: where networks work.
        share: seconds that one measurement may take, roughly.
        assume: what is taken for granted.
    """

    recipe: Recipe
    folder: Path
    device: torch.device
    share: float
    assume: Assumed

    @property
    def place(self) -> Place:
        return Place(Path(self.recipe.data), self.folder / "cache")

    def fresh(self, name: str) -> Path:
        """A new, empty folder."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))

    def batch(self, wanted: int) -> int:
        """The batch that is tried in place of a recipe's."""
        return min(wanted, CPU_BATCH) if self.device.type == "cpu" else wanted


@contextmanager
def threads_of_a_run() -> Iterator[None]:
    """As many threads as a run computes with; then as many as before."""
    before = torch.get_num_threads()
    leave_a_core_to_the_loader()
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Sources ------------------------------------------------------------------------------------------------------------


def smaller(source: Source, images: int = _MADE) -> Source:
    """The source itself; one that makes its images, or is joined of such, with fewer of them."""
    if isinstance(source, Join):
        return source.but(sources={name: smaller(part, images) for name, part in source.sources.items()})
    return source.but(images=min(images, source.images)) if isinstance(source, Scenes) else source


def length(source: Source, opened: Dataset) -> int:
    """Images of the whole source, of which `smaller` may have been opened."""
    return len(opened) + _left_out(source)


def _left_out(source: Source) -> int:
    """Images that `smaller` leaves out."""
    if isinstance(source, Join):
        return sum(map(_left_out, source.sources.values()))
    return max(0, source.images - _MADE) if isinstance(source, Scenes) else 0


def time_rendering(bench: Bench, source: Source) -> Span | None:
    """Seconds an image that a source (see `smaller`) takes to make its own; None where it reads files."""
    if source.to_prepare(bench.place) == 0:
        return None
    ticks, samples = [time.perf_counter()], []

    def tick(n: int) -> None:
        ticks.append(time.perf_counter())
        samples.append((ticks[-1] - ticks[-2]) / n)

    source.prepare(bench.place, tick)
    return Span.of(samples or [(time.perf_counter() - ticks[0]) / len(source.open("made", bench.place))])


def spread(dataset: Dataset, count: int) -> Subset:
    """Some images, evenly spread over the dataset, in its order."""
    count = min(count, len(dataset))
    return Subset(dataset, np.arange(count, dtype=np.int64) * len(dataset) // max(count, 1))


@dataclass(frozen=True)
class Looked:
    """What reading some images showed; see `SourceCost`."""

    images: int
    unreadable: int
    height: int
    width: int
    file_bytes: float | None
    reading: Span


def look(dataset: Dataset) -> Looked:
    """Decode all images of a (small) dataset in four parts, on one core, and note sizes and times."""
    sizes, files, seconds, unreadable = [(0, 0)], [], [], 0
    for part in np.array_split(np.arange(len(dataset)), min(4, len(dataset))):
        start = time.perf_counter()
        for index in part.tolist():
            try:
                height, width = dataset.picture(index).read().shape[:2]
                sizes.append((height, width))
            except BadImage:
                unreadable += 1
        seconds.append((time.perf_counter() - start) / len(part))
        paths = (Path(dataset.file(index)) for index in part.tolist())
        files += [path.stat().st_size for path in paths if path.is_file()]
    height, width = (round(statistics.median(side)) for side in zip(*(sizes[1:] or sizes), strict=True))
    mean = statistics.mean(files) if files else None
    return Looked(len(dataset), unreadable, height, width, mean, Span.of(seconds))


def index_bytes(dataset: Dataset) -> float:
    """Bytes an image of an opened source: what would be sent to another process, measured and not kept."""
    counter = _Counter()
    pickle.Pickler(cast(IO[bytes], counter), protocol=5).dump(dataset)
    return counter.bytes / max(len(dataset), 1)


class _Counter:
    """A file that keeps the number of bytes only."""

    def __init__(self) -> None:
        self.bytes = 0

    def write(self, data: bytes | pickle.PickleBuffer) -> int:
        size = memoryview(data).nbytes
        self.bytes += size
        return size


# Labelling ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labels:
    """The labels of the probe, a store a source, as the student's loader asks for them.

    Attributes:
        views: source name to its store, read under the heads' rules.
    """

    views: Mapping[str, LabelsView]

    def get(self, head: str, source: str, id: str) -> Target | None:
        return self.views[source].get(head, source, id)


def label_samples(
    bench: Bench, material: Material, teachers: Sequence[Watched], bar: Bar
) -> tuple[dict[str, Subset], dict[str, Span], dict[str, Path]]:
    """Label some images of every source by the pass of a real run.

    Returns:
        By source name: the images; the seconds an image took, all in all; the store. Without teachers there is none.
    """
    batch = bench.batch(bench.recipe.labelling.batch)
    if not teachers:
        return (
            {name: spread(d, batch) for name, d in material.sources.items()},
            dict.fromkeys(material.sources, NOTHING),
            {},
        )
    start = time.perf_counter()
    settings = bench.recipe.labelling.but(batch=batch)
    first = next(iter(material.sources.values()))
    label_pool([spread(first, batch)], teachers, bench.folder / "warm", settings.but(shard=batch))
    fits = bench.share / max(time.perf_counter() - start, 1e-9)  # the first batch also waits for first kernels
    images = batch * (1 if fits < 0.2 else min(_BATCHES, max(2, int(fits))))
    for teacher in teachers:
        teacher.samples.clear()
    samples, spans, roots = {}, {}, {}
    for number, (name, dataset) in enumerate(material.sources.items()):
        samples[name], roots[name] = spread(dataset, images), bench.folder / "labels" / str(number)
        clock, start = Clock(), time.perf_counter()
        label_pool([samples[name]], teachers, roots[name], settings.but(shard=images), progress=clock)
        spans[name] = Span.of(clock.samples, (time.perf_counter() - start) / len(samples[name]))
        bar.advance()
    return samples, spans, roots
