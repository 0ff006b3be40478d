"""The control studies of "Rethinking Pre-training and Self-training" (Zoph et al., NeurIPS 2020, sections 4 and 5) on
scenes: detection in the world "playground" stands for COCO, the single objects of "catalogue" for ImageNet.

As in the paper, the same images serve pre-training (with their classes) and self-training (without). Rows: the teacher
is supervised learning, the student is the teacher with self-training; "supervised, as long" goes on from the teacher
for as many steps as the student, on human labels alone, which the paper does not show: its models are trained until
they converge. Columns are the variants of a study; every seed repeats everything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from tutelage.data.augment import Augment, augment_s1, augment_s2, augment_s3, augment_s4
from tutelage.data.scenes import Scenes
from tutelage.recipe import Recipe, SelfTraining, StudentPart
from tutelage.recipes.self_training import self_training
from tutelage.tasks import Classification
from tutelage.teachers import Trained
from tutelage.training.simclr import SimCLR

IMAGENET, BETTER, SIMCLR = "ImageNet", "ImageNet++", "SimCLR"
LONGER, PRETRAINED = "supervised, as long", "ImageNet Init"
JOINT, JOINT_AND_SELF = "joint training", "joint and self-training"
"""Names of rows; `ImageNet` and `ImageNet++` are the supervised checkpoints themselves."""


def base(name: str) -> Recipe:
    """Teacher, student and the control that is trained as long; 600 pictures with boxes, 2,400 with classes."""
    recipe = self_training()
    teacher = recipe.teachers["objects"]
    assert isinstance(teacher, Trained)
    catalogue = Scenes(world="catalogue", label="classes", head="classes", images=2400, size=64, seed=1)
    student = recipe.student.but(heads=("objects",))
    longer = student.but(labels="human", self_training=None, sources=("playground",))
    return recipe.but(
        name=name,
        heads={**recipe.heads, "classes": Classification()},
        sources={
            "playground": recipe.sources["playground"].but(images=600),
            "catalogue": catalogue,
        },
        student=student,
        baselines={LONGER: longer.but(training=longer.training.but(batch=teacher.training.batch))},
        seeds=(0, 1, 2),
        repeat="everything",
    )


def classifier(recipe: Recipe, steps: float) -> StudentPart:
    """Supervised pre-training on the classes of the catalogue, for so many times the teacher's steps."""
    teacher = recipe.teachers["objects"]
    assert isinstance(teacher, Trained)
    training = teacher.training.but(steps=round(teacher.training.steps * steps), augment=augment_s1())
    return StudentPart(training=training, heads=("classes",), labels="human", sources=("catalogue",))


def supervised(recipe: Recipe, start: str) -> StudentPart:
    """The teacher's training from other weights."""
    teacher = recipe.teachers["objects"]
    assert isinstance(teacher, Trained)
    return StudentPart(
        training=teacher.training, heads=("objects",), labels="human", sources=("playground",), start=start
    )


def table2() -> Recipe:
    """Zoph et al. table 2: supervised learning, pre-training and self-training under augmentation of four strengths.

    Command: tutelage run zoph-table2 --out runs/zoph-table2
    """
    recipe = base("zoph-table2")
    first = classifier(recipe, 1)
    policies = {"S1": augment_s1(), "S2": augment_s2(), "S3": augment_s3(), "S4": augment_s4()}
    trained = ("teachers.objects", "student", f"baselines.{LONGER}", f"baselines.{PRETRAINED}")
    return recipe.but(
        baselines={IMAGENET: first, PRETRAINED: supervised(recipe, IMAGENET), **recipe.baselines},
        study={f"Augment-{k}": tuple(_augment(key, augment) for key in trained) for k, augment in policies.items()},
    )


def table3() -> Recipe:
    """Zoph et al. table 3: self-training with a fifth, a half and all of the labels, from three kinds of weights.

    Command: tutelage run zoph-table3 --out runs/zoph-table3
    """
    recipe = base("zoph-table3")
    first = classifier(recipe, 1).but(fractions={"catalogue": 0.5})
    starts = {"Rand Init": "null", f"{IMAGENET} Init": IMAGENET, f"{BETTER} Init": BETTER}
    return recipe.but(
        baselines={IMAGENET: first, BETTER: classifier(recipe, 2), **recipe.baselines},
        study={
            f"{share:.0%}, {name}": (f"fractions.playground={share}", f"teachers.objects.start={start}")
            for share in (0.2, 0.5, 1.0)
            for name, start in starts.items()
        },
    )


def table4() -> Recipe:
    """Zoph et al. table 4: random, supervised and SimCLR weights, each with and without self-training.

    Command: tutelage run zoph-table4 --out runs/zoph-table4
    """
    recipe = base("zoph-table4")
    first = classifier(recipe, 1)
    contrast = SimCLR(training=first.training.but(steps=2 * first.training.steps), sources=("catalogue",))
    starts = {"Rand Init": "null", f"{IMAGENET} Init": IMAGENET, f"{SIMCLR} Init": SIMCLR}
    return recipe.but(
        baselines={IMAGENET: first, SIMCLR: contrast, **recipe.baselines},
        study={name: (f"teachers.objects.start={start}",) for name, start in starts.items()},
    )


def table7() -> Recipe:
    """Zoph et al. table 7: pre-training, joint training and self-training, and their sums, with a fifth of the labels.

    Command: tutelage run zoph-table7 --out runs/zoph-table7
    """
    recipe = base("zoph-table7")
    both = recipe.student.but(heads=("objects", "classes"), self_training=SelfTraining(head="objects"))
    rows = {IMAGENET: classifier(recipe, 1), JOINT: both.but(labels="human"), JOINT_AND_SELF: both, **recipe.baselines}
    return recipe.but(
        baselines=rows,
        fractions={"playground": 0.2},
        study={"Rand Init": (), f"{IMAGENET} Init": (f"teachers.objects.start={IMAGENET}",)},
    )


def _augment(key: str, augment: Augment) -> str:
    """The setting that gives a training this augmentation."""
    return f"{key}.training.augment={json.dumps(augment.plain())}"


TABLES: Mapping[str, Callable[[], Recipe]] = {
    "zoph-table2": table2,
    "zoph-table3": table3,
    "zoph-table4": table4,
    "zoph-table7": table7,
}
"""All of them by name."""
