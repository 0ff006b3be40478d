"""What a labelling pass is to do, as one value that any process on any machine can take up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field

from tutelage.data.source import Dataset, Place, Source
from tutelage.part import Part
from tutelage.tasks.task import Task
from tutelage.teachers.teacher import Specialist, Teacher


class Labelling(Part):
    """The pass that labels every image for every head: what decides the bytes of the store."""

    batch: int = Field(32, ge=1)
    """Images that a teacher sees at once."""
    shard: int = Field(1000, ge=1)
    """Images a file of the labels store."""
    reduce: Literal[1, 2, 4] = 1
    """Depths and normals are stored at 1/reduce of the image's size."""
    top_classes: int = Field(20, ge=1)
    """Class labels of more than 256 classes: how many of the likeliest are stored, besides the sum of all others."""


@dataclass(frozen=True)
class Work:
    """Which images, which teachers, and how; it can be sent to other processes.

    Attributes:
        sources: name to source, in the order of the pool.
        heads: name to task; every task that needs classes has them.
        teachers: head name to finished model.
        place: where relative paths start, and where derived files are kept.
        settings: what decides the bytes of the store.
        limit: the share of the images that may be set aside for a head before the pass stops; 3 always may.
    """

    sources: Mapping[str, Source]
    heads: Mapping[str, Task]
    teachers: Mapping[str, Specialist]
    place: Place
    settings: Labelling
    limit: float = 0.005

    def datasets(self) -> list[Dataset]:
        """The sources, opened."""
        return [
            source.open(name, self.place, None if source.head is None else self.heads[source.head].classes)
            for name, source in self.sources.items()
        ]

    def load(self, device: torch.device) -> list[Teacher]:
        """The teachers, loaded, one a head."""
        return [part.open(head, self.heads[head], self.place.root, device) for head, part in self.teachers.items()]
