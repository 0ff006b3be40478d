"""What a teacher is: anything that fills one head for an image."""

from __future__ import annotations

import abc
from collections.abc import Sequence

from tutelage.data.source import LabelSpace, UInt8
from tutelage.tasks.task import Task
from tutelage.types import Target


class Teacher(abc.ABC):
    """A specialist for one head.

    Attributes:
        head: the head it fills.
        task: that head's task, which states kind of target and pseudo-label rule.
        space: its label space; None for depth and normals. Checked against the head before the first image.
        hash: hex digest of its weights and settings; every record it makes carries it.
    """

    head: str
    task: Task
    space: LabelSpace | None
    hash: str

    @abc.abstractmethod
    def predict(self, images: Sequence[UInt8]) -> list[Target]:
        """One raw prediction an image (before the pseudo-label rule), at the image's own size, on the CPU.

        Args:
            images: uint8 [h,w,3] RGB each, of any sizes.
        """
