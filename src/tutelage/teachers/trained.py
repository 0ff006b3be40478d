"""A teacher that the run itself trains, on the sources that label its head."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tutelage.tasks import AnyTask
from tutelage.teachers.teacher import TeacherPart
from tutelage.training.schedule import Training


class Trained(TeacherPart):
    """A network of the recipe's own architecture with this one head (MuST section 3.1)."""

    kind: Literal["trained"] = "trained"
    training: Training
    size: int | None = Field(None, ge=16)
    """Pixels of its square input; None: the model's."""
    head: AnyTask | None = None
    """Its head while it is trained, where that differs from the recipe's head (label smoothing, say)."""
    start: str | None = None
    """Where backbone and pyramid come from: the name of a baseline that needs no pseudo labels, or a model folder
    (bootstrapping, MuST section 4.3); None: as the recipe's model says."""
