"""The teachers: one file a make. A new one is added to `TEACHERS` to be written in YAML."""

from tutelage.teachers.own import Checkpoint
from tutelage.teachers.teacher import Specialist, TeacherPart
from tutelage.teachers.trained import Trained

TEACHERS: tuple[type[TeacherPart], ...] = (Trained, Checkpoint)

__all__ = ["TEACHERS", "Checkpoint", "Specialist", "TeacherPart", "Trained"]
