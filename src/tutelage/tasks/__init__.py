"""The tasks: one file each. A new one is added to `TASKS` to be written in YAML."""

from typing import TYPE_CHECKING

from tutelage.part import one_of
from tutelage.tasks.classification import Classification
from tutelage.tasks.deeplab import DeepLab
from tutelage.tasks.depth import Depth
from tutelage.tasks.detection import Detection
from tutelage.tasks.features import Hints
from tutelage.tasks.normals import Normals
from tutelage.tasks.retinanet import RetinaNet
from tutelage.tasks.segmentation import Segmentation
from tutelage.tasks.task import Task

TASKS: tuple[type[Task], ...] = (Classification, Detection, RetinaNet, Segmentation, DeepLab, Depth, Normals, Hints)

if TYPE_CHECKING:
    AnyTask = Task
else:
    AnyTask = one_of(Task, "task", TASKS)

__all__ = [
    "TASKS",
    "AnyTask",
    "Classification",
    "DeepLab",
    "Depth",
    "Detection",
    "Hints",
    "Normals",
    "RetinaNet",
    "Segmentation",
]
