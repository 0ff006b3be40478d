"""What a labelling pass is to do, as one value that any process on any machine can take up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Work:
    """Which images, which teachers, and how; it can be sent to other processes.

    Attributes:
        sources: name to source, in the order of the pool.
        heads: name to task; every task that needs classes has them.
        teachers: head name to finished model.
        place: where relative paths start, and where derived files are kept.
        settings: what decides the bytes of the store.
    """

    sources: Mapping[str, Source]
    heads: Mapping[str, Task]
    teachers: Mapping[str, Specialist]
    place: Place
    settings: Labelling

    def datasets(self) -> list[Dataset]:
        """The sources, opened."""
        return [
            source.open(name, self.place, None if source.head is None else self.heads[source.head].classes)
            for name, source in self.sources.items()
        ]

    def load(self, device: torch.device) -> list[Teacher]:
        """The teachers, loaded, one a head."""
        return [part.open(head, self.heads[head], self.place.root, device) for head, part in self.teachers.items()]
