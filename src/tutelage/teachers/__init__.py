"""The teachers: one file a make. A new one is added to `TEACHERS` to be written in YAML."""

from tutelage.teachers.features import FeatureTeacher
from tutelage.teachers.function import FunctionTeacher
from tutelage.teachers.onnx import OnnxTeacher
from tutelage.teachers.own import Checkpoint
from tutelage.teachers.teacher import Specialist, TeacherPart
from tutelage.teachers.timm import TimmTeacher
from tutelage.teachers.torchvision import TorchvisionTeacher
from tutelage.teachers.trained import Trained
from tutelage.teachers.transformers import TransformersTeacher

TEACHERS: tuple[type[TeacherPart], ...] = (
    Trained,
    Checkpoint,
    TimmTeacher,
    TorchvisionTeacher,
    TransformersTeacher,
    OnnxTeacher,
    FeatureTeacher,
)

__all__ = [
    "TEACHERS",
    "Checkpoint",
    "FeatureTeacher",
    "FunctionTeacher",
    "OnnxTeacher",
    "Specialist",
    "TeacherPart",
    "TimmTeacher",
    "TorchvisionTeacher",
    "Trained",
    "TransformersTeacher",
]
