"""A teacher that the run itself trains, on the sources that label its head."""

from __future__ import annotations

from typing import Literal

from tutelage.teachers.teacher import TeacherPart
from tutelage.training.schedule import Training


class Trained(TeacherPart):
    """A network of the recipe's own architecture with this one head (MuST section 3.1)."""

    kind: Literal["trained"] = "trained"
    training: Training
