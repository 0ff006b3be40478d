"""The kinds of parts that a recipe can name in YAML. In Python, an instance of any subclass takes the place of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tutelage.data import FORMATS
from tutelage.data.source import Source
from tutelage.models.backbone import AnyBackbone as AnyBackbone
from tutelage.part import one_of
from tutelage.tasks import AnyTask as AnyTask
from tutelage.teachers import TEACHERS, TeacherPart
from tutelage.training.pretraining import Pretraining, StudentPart
from tutelage.training.simclr import SimCLR
from tutelage.training.x_learner import Distillation, XLearner

if TYPE_CHECKING:
    AnySource = Source
    AnyTeacher = TeacherPart
    AnyPretraining = Pretraining
else:
    AnySource = one_of(Source, "format", FORMATS)
    AnyTeacher = one_of(TeacherPart, "kind", TEACHERS, default="trained")
    AnyPretraining = one_of(Pretraining, "kind", (StudentPart, SimCLR, XLearner, Distillation), default="student")
