"""What a plan is made of: measured costs of one image or step, and the sums that follow from them.

All times are seconds on one device, all sizes bytes. Every sum is linear in the numbers of images, so that a plan for
this pool is one for any other as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from pydantic import Field

from tutelage.part import Part

INDEX_ROW = 24
"""Bytes a row that finding single labels takes, and telling their images (`labels/random_access.py`)."""


class Assumed(Part):
    """What cannot be measured before the teachers are trained: how much the labels of trained networks will hold.

    The defaults for pixels were measured on trained networks of two recipes: scenes (images of the network's own 64 px)
    and photographs of 0.02 to 0.3 megapixels seen by networks of 96 px. There the bytes of an image grew as the square
    root of its pixels, because what is more than the network saw is interpolated. They fell within a factor of 1.5 of
    this rule. For images smaller than the input the figures are bytes a pixel.
    """

    boxes: int = Field(10, ge=0)
    """Boxes an image with a score worth keeping; 9.6 and 4.5 were met on photographs."""
    mask: float = Field(0.6, gt=0)
    """Bytes of class ids and confidence, times the square root of (pixels of the image x pixels of the input)."""
    field: float = Field(0.8, gt=0)
    """The same of depths, or any other field."""
    vectors: float = Field(1.0, gt=0)
    """The same of normals."""


@dataclass(frozen=True)
class Span:
    """A measured quantity: the mean, and the least and greatest of its samples.

    Attributes:
        mean, low, high: per unit, or in sum.
        samples: batches or steps that were timed; 0 for a sum of several.
    """

    mean: float
    low: float
    high: float
    samples: int = 0

    @classmethod
    def of(cls, samples: Sequence[float], mean: float | None = None) -> Span:
        """From at least one sample; `mean` where it was measured over more than the samples show."""
        middle = sum(samples) / len(samples) if mean is None else mean
        return cls(middle, min(middle, *samples), max(middle, *samples), len(samples))

    def times(self, n: float) -> Span:
        """The cost of n units. Batches are taken to be all as the best or all as the worst, so the range is wide."""
        return Span(self.mean * n, self.low * n, self.high * n, self.samples)

    def plus(self, other: Span) -> Span:
        """Both together."""
        return Span(self.mean + other.mean, self.low + other.low, self.high + other.high)


NOTHING = Span(0.0, 0.0, 0.0)


def together(spans: Iterable[Span]) -> Span:
    """The cost of one after the other."""
    return reduce(Span.plus, spans, NOTHING)


@dataclass(frozen=True)
class SourceCost:
    """One source and what its images cost.

    Attributes:
        name: in the recipe.
        pool: whether it is one that a larger plan has more of.
        images: all of them.
        sampled: how many were read for the plan, evenly spread; `unreadable` of them could not be decoded.
        height, width: median of the sample, pixels.
        file_bytes: mean of an image file; None where images are no files.
        reading: seconds an image, decoding alone.
        rendering: seconds an image, where images are made and not read; else None.
        labelling: seconds an image, of the whole pass with all its teachers.
        index: bytes an image that an opened source keeps in memory.
    """

    name: str
    pool: bool
    images: int
    sampled: int
    unreadable: int
    height: int
    width: int
    file_bytes: float | None
    reading: Span
    rendering: Span | None
    labelling: Span
    index: float


@dataclass(frozen=True)
class Rows:
    """What one head stores of one source.

    Attributes:
        share: of the source's images that get a pseudo label.
        stored: bytes a label in the Parquet files.
        unpacked: bytes a label in the file for random access, that training makes beside them.
    """

    share: float
    stored: float
    unpacked: float


@dataclass(frozen=True)
class HeadCost:
    """One head of the labels store.

    Attributes:
        name: in the recipe.
        teacher: of which make.
        predicting: seconds an image, of this teacher alone; None where the labels are there already.
        rows: source name to its labels.
        file: bytes of a shard besides its rows.
        assumed: where the bytes do not come from this teacher's own predictions: from what; else "".
    """

    name: str
    teacher: str
    predicting: Span | None
    rows: Mapping[str, Rows]
    file: float
    assumed: str


@dataclass(frozen=True)
class TrainingCost:
    """One training of the recipe, or many of a kind (a column of the transfer table).

    Attributes:
        stage: "teachers", "student" or "transfer".
        name: head, pre-training, or column of the transfer table.
        steps: in all, of all repetitions; 0 where frozen features are probed.
        batch: images a step.
        probed: images a step of those that were timed.
        training: seconds an image.
        scoring: seconds an image that is only looked at: scored on validation and test parts, or its frozen features.
        scored: images looked at so, in all.
    """

    stage: str
    name: str
    steps: int
    batch: int
    probed: int
    training: Span
    scoring: Span = NOTHING
    scored: int = 0

    def times(self, n: int) -> TrainingCost:
        """The same so often."""
        return replace(self, steps=self.steps * n, scored=self.scored * n)

    def seconds(self) -> Span:
        return self.training.times(self.steps * self.batch).plus(self.scoring.times(self.scored))


@dataclass(frozen=True)
class Estimate:
    """What a run costs with a pool of some size.

    Attributes:
        pool: images of the sources that grow; `images` with all others.
        labels: head name to bytes in Parquet files, of all stores; `unpacked` of the files made from them for training.
        rendering, teachers, labelling, student, transfer: seconds on one device.
        student_steps: as many epochs as the recipe's steps are now.
        source_index, label_index: bytes in memory (shared by all processes of a machine).
    """

    pool: int
    images: int
    labels: dict[str, float]
    unpacked: float
    rendering: Span
    teachers: Span
    labelling: Span
    student: Span
    transfer: Span
    student_steps: int
    source_index: float
    label_index: float

    @property
    def device(self) -> Span:
        """Seconds of one device for everything."""
        parts = (self.rendering, self.teachers, self.labelling, self.student, self.transfer)
        return together(parts)

    def wall(self, workers: int) -> Span:
        """Seconds to the end, when `workers` devices share the labelling and one does all else, in turn."""
        rest = together((self.rendering, self.teachers, self.student, self.transfer))
        return self.labelling.times(1 / workers).plus(rest)


@dataclass(frozen=True)
class Plan:
    """All that was measured for a recipe.

    Attributes:
        recipe: its name.
        machine: where it was measured.
        cores: of the machine; `load` processes wanted them in the minute before.
        probing: seconds that it took.
        sources, heads, trainings: the costs.
        rendering: seconds to make the images of held-out sources and downstream sets, where they are made, in all.
        shard: images a file of the labels store.
        stored: whether the labels are there already, so that the first round makes none.
        labelled: how often labels are made, each time for all images: by variants, repetitions and rounds.
        memory: bytes at the peak of this process, and of the GPU where there is one.
        assumed: what was taken for granted.
    """

    recipe: str
    machine: str
    cores: int
    load: float
    probing: float
    sources: tuple[SourceCost, ...]
    heads: tuple[HeadCost, ...]
    trainings: tuple[TrainingCost, ...]
    rendering: Span
    shard: int
    stored: bool
    labelled: int
    memory: tuple[int, int]
    assumed: Assumed

    @property
    def pool(self) -> int:
        """Images of the sources that grow: the pools, or all sources where there is no pool."""
        return sum(source.images for source in self._growing())

    def at(self, pool: int | None = None) -> Estimate:
        """The costs with another number of images in the pool; the recipe's own by default.

        The further images are like those of the pools (of all sources where there is no pool) and mixed as now.
        Teachers and downstream sets stay as they are; the student goes through the larger union as often as now.
        """
        factor = 1.0 if pool is None else pool / self.pool
        growing = {source.name for source in self._growing()}
        counts = {s.name: s.images * (factor if s.name in growing else 1.0) for s in self.sources}
        images, before = sum(counts.values()), max(1, sum(s.images for s in self.sources))
        files = math.ceil(sum(counts[s.name] for s in self.sources if s.labelling.mean) / self.shard)
        stores = self.labelled + self.stored
        labels = {
            head.name: stores * (files * head.file + sum(counts[n] * r.share * r.stored for n, r in head.rows.items()))
            for head in self.heads
        }
        unpacked = sum(counts[n] * r.share * r.unpacked for head in self.heads for n, r in head.rows.items())
        rows = sum(counts[n] * r.share for head in self.heads for n, r in head.rows.items())
        student = [t.seconds().times(images / before) for t in self.trainings if t.stage == "student"]
        return Estimate(
            pool=round(self.pool * factor),
            images=round(images),
            labels=labels,
            unpacked=stores * unpacked,
            rendering=together(s.rendering.times(counts[s.name]) for s in self.sources if s.rendering).plus(
                self.rendering
            ),
            teachers=together(t.seconds() for t in self.trainings if t.stage == "teachers"),
            labelling=together(s.labelling.times(self.labelled * counts[s.name]) for s in self.sources),
            student=together(student),
            transfer=together(t.seconds() for t in self.trainings if t.stage == "transfer"),
            student_steps=round(sum(t.steps for t in self.trainings if t.stage == "student") * images / before),
            source_index=sum(counts[s.name] * s.index for s in self.sources),
            label_index=INDEX_ROW * rows,
        )

    def _growing(self) -> list[SourceCost]:
        return [source for source in self.sources if source.pool] or list(self.sources)
