"""The control studies of "Rethinking Pre-training and Self-training" (Zoph et al., NeurIPS 2020, sections 4 and 5) on
scenes, on two cores, for detection and for segmentation.

1,500 pictures of a world are labelled: boxes of objects in "playground" stand for COCO, masks of materials in
"workshop" for Pascal VOC. "catalogue", 3,000 pictures of one object each with its class, stands for ImageNet where
networks are pre-trained or classes are learned jointly. Unlike the paper's, the images of self-training are others:
further pictures of the labelled world, which is what a user's pile mostly is, since teachers so young are wrong about
any other world (LOG.md); `--set sources.pool.world=catalogue` gives the paper's. Classes of the pool's own pictures, of
many objects each, cannot be learned at this size. Rows: the teacher is supervised learning, the student is the
teacher with self-training; "supervised, as long" goes on from the teacher for as many steps as the student, on human
labels alone, which the paper does not show: its models are trained until they converge, ours are not. Columns are the
variants of a study; every seed repeats everything. How to read them: `docs/self-training.md`. The same on the paper's
data: `zoph_paper.py`.

Two settings follow from short trainings: boxes of pseudo labels count from a score of 0.3 on (the paper: 0.5), and
tables 3, 4 and 7 are made with Augment-S1 (the paper: S4).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tutelage.data.augment import Augment, augment_s1, augment_s2, augment_s3, augment_s4
from tutelage.data.scenes import LabelNoise, Scenes
from tutelage.models.pyramid import Pyramid
from tutelage.recipe import Recipe, SelfTraining, StudentPart
from tutelage.recipes.scenes import HELD_OUT, SMALL_VIEWS
from tutelage.recipes.self_training import LONGER, SMALL_RETINANET, self_training
from tutelage.tasks import Classification, Segmentation
from tutelage.tasks.task import Task
from tutelage.teachers import Trained
from tutelage.training.schedule import Training
from tutelage.training.simclr import SimCLR

IMAGENET, BETTER, SIMCLR = "ImageNet", "ImageNet++", "SimCLR"
PRETRAINED = "ImageNet Init"
JOINT, JOINT_AND_SELF = "joint training", "joint and self-training"
SAME_IMAGES = "self-training, images of both"
"""Without the classes: the paper's pool has the images of its joint training, ours not."""
NOISY, NOISY_LONGER = "train + aug", "train + aug, as long"
POOL, CATALOGUE, MORE = "pool", "catalogue", "more"
"""Names of rows and of sources; `ImageNet` and `ImageNet++` are the supervised checkpoints themselves."""
CLASSES = "classes"
"""The head that ImageNet's stand-in is labelled for."""

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""At which a teacher looks at an image to label its pixels (section 3.2). Looks are multiples of 32 pixels: at 64 px
these are the four of 32, 64, 96 and 128."""
AUGMENTATIONS: Mapping[str, Augment] = {
    "S1": augment_s1(),
    "S2": augment_s2(),
    "S3": augment_s3(),
    "S4": augment_s4(),
}
"""Augment-S1 to Augment-S4 (section 3.1)."""
SHARES = (0.2, 0.5, 1.0)
"""Of the labels that take part (section 4.2)."""


@dataclass(frozen=True)
class Form:
    """A study's task on scenes.

    Attributes:
        head, task: what is self-trained.
        world, label: where people labelled it.
        pyramid: of all networks.
        pool: further images of the world, which nobody labelled.
        looks: how teachers look at images that they label.
    """

    head: str
    task: Task
    world: str
    label: Literal["boxes", "mask"]
    pyramid: Pyramid
    pool: int
    looks: Mapping[str, Any] = field(default_factory=dict)


BOXES = Form(
    "objects",
    SMALL_RETINANET.but(pseudo_threshold=0.3, pseudo_nms=0.5),
    "playground",
    "boxes",
    Pyramid(width=64),
    2400,
)
MASKS = Form(
    "materials",
    Segmentation(),
    "workshop",
    "mask",
    Pyramid(kind="nas-fpn", width=64, repeats=2, separable=True),
    1200,
    # Mirrored looks are ours: the paper names the scales alone.
    {"scales": SCALES, "flip": True},
)
"""Segmentation has the paper's parts, NAS-FPN with separable convolutions and averaged looks, fewer and narrower."""


def base(name: str, form: Form, steps: int = 1200) -> Recipe:
    """Teacher, student and the control that is trained as long; 1,500 images with labels, and those for ImageNet.

    Args:
        name: of the recipe.
        form: its task.
        steps: of the teacher; the student has two thirds of them, of twice the images, at half the rate.
    """
    recipe = self_training()
    first = recipe.teachers["objects"]
    assert isinstance(first, Trained)
    training = first.training.but(steps=steps, batch=16, rate=3e-3)

    def human(images: int, first: int) -> Scenes:
        return Scenes(world=form.world, label=form.label, head=form.head, images=images, size=64, first=first, seed=1)

    student = StudentPart(
        training=training.but(steps=steps * 2 // 3, batch=32, rate=1.5e-3, warmup=20),
        self_training=SelfTraining(),
        start=f"teacher: {form.head}",
        heads=(form.head,),
        sources=(form.world, POOL),
    )
    longer = student.but(labels="human", self_training=None, sources=(form.world,))
    return recipe.but(
        name=name,
        heads={form.head: form.task, CLASSES: Classification()},
        sources={
            form.world: human(1500, 0),
            POOL: Scenes(world=form.world, images=form.pool, size=64, first=10_000, seed=1),
            CATALOGUE: imagenet(),
        },
        held_out={form.world: human(1000, HELD_OUT), CATALOGUE: imagenet().but(images=500, first=HELD_OUT)},
        model=recipe.model.but(pyramid=form.pyramid),
        teachers={form.head: Trained(training=training, **form.looks)},
        student=student,
        baselines={LONGER: longer.but(training=longer.training.but(batch=training.batch))},
        seeds=(0, 1, 2),
        repeat="everything",
    )


def imagenet(first: int = 0) -> Scenes:
    """Images of one object each, of 32 classes; people gave them no other label."""
    return Scenes(world="catalogue", label="classes", head=CLASSES, images=3000, size=64, first=first, seed=1)


def _training(recipe: Recipe, form: Form) -> Training:
    teacher = recipe.teachers[form.head]
    assert isinstance(teacher, Trained)
    return teacher.training


def classifier(recipe: Recipe, form: Form, steps: int = 1600, sources: tuple[str, ...] = (CATALOGUE,)) -> StudentPart:
    """Supervised pre-training on the classes; it is made once for all columns."""
    training = _training(recipe, form).but(steps=steps, batch=32, augment=augment_s1())
    return StudentPart(training=training, heads=(CLASSES,), labels="human", sources=sources)


def supervised(recipe: Recipe, form: Form, start: str) -> StudentPart:
    """The teacher's training from other weights."""
    return StudentPart(
        training=_training(recipe, form), heads=(form.head,), labels="human", sources=(form.world,), start=start
    )


def _lengthened(recipe: Recipe, form: Form, *keys: str) -> tuple[str, ...]:
    """What trains these half as long again, as after `--set`: strong augmentation wants it (section 3.2)."""
    steps = _training(recipe, form).steps * 3 // 2
    return tuple(f"{key}.training.steps={steps}" for key in keys)


def _table2(name: str, form: Form) -> Recipe:
    recipe = base(name, form)
    first = (f"teachers.{form.head}", f"baselines.{PRETRAINED}")
    longer = _lengthened(recipe, form, *first)
    trained = (*first, "student", f"baselines.{LONGER}")
    return recipe.but(
        baselines={
            IMAGENET: classifier(recipe, form),
            PRETRAINED: supervised(recipe, form, IMAGENET),
            **recipe.baselines,
        },
        study={
            f"Augment-{k}": (*settings(augment, *trained), *(longer if k != "S1" else ()))
            for k, augment in AUGMENTATIONS.items()
        },
    )


def _table3(name: str, form: Form) -> Recipe:
    recipe = base(name, form)
    starts = {"Rand Init": "null", f"{IMAGENET} Init": IMAGENET, f"{BETTER} Init": BETTER}
    return recipe.but(
        sources={**recipe.sources, MORE: imagenet(20_000)},
        baselines={
            IMAGENET: classifier(recipe, form),
            BETTER: classifier(recipe, form, 4800, (CATALOGUE, MORE)),
            **recipe.baselines,
        },
        study={
            f"{share:.0%}, {name}": (f"fractions.{form.world}={share}", f"teachers.{form.head}.start={start}")
            for share in SHARES
            for name, start in starts.items()
        },
    )


def _table4(name: str, form: Form) -> Recipe:
    recipe = base(name, form)
    first = classifier(recipe, form)
    contrast = SimCLR(training=first.training.but(steps=800, batch=64), sources=(CATALOGUE,), views=SMALL_VIEWS)
    starts = {"Rand Init": "null", f"{IMAGENET} Init": IMAGENET, f"{SIMCLR} Init": SIMCLR}
    return recipe.but(
        baselines={IMAGENET: first, SIMCLR: contrast, **recipe.baselines},
        fractions={form.world: 0.2},
        study={name: (f"teachers.{form.head}.start={start}",) for name, start in starts.items()},
    )


def _table7(name: str, form: Form) -> Recipe:
    recipe = base(name, form)
    student = recipe.student
    assert isinstance(student, StudentPart)
    both = student.but(
        heads=(form.head, CLASSES),
        sources=(form.world, POOL, CATALOGUE),
        self_training=SelfTraining(head=form.head),
    )
    return recipe.but(
        baselines={
            IMAGENET: classifier(recipe, form),
            JOINT: both.but(labels="human", sources=(form.world, CATALOGUE)),
            SAME_IMAGES: student.but(sources=both.sources),
            JOINT_AND_SELF: both,
            **recipe.baselines,
        },
        fractions={form.world: 0.2},
        study={"Rand Init": (), f"{IMAGENET} Init": (f"teachers.{form.head}.start={IMAGENET}",)},
    )


def table2() -> Recipe:
    """Zoph et al. table 2, detection: supervised learning, pre-training, self-training; augmentation of four strengths.

    Command: tutelage run zoph-table2 --jobs 2 --out runs/zoph-table2
    Three seeds, 1 h 55 min of one busy core (docs/claims.md): AP50 under S1: teacher 37.1, from ImageNet's stand-in
    44.9, supervised as long 42.6, student 40.8; under S4 28.5, 35.2, 32.5, 29.8.
    """
    return _table2("zoph-table2", BOXES)


def table2_masks() -> Recipe:
    """Zoph et al. table 2 for segmentation.

    Command: tutelage run zoph-table2-masks --jobs 2 --out runs/zoph-table2-masks
    """
    return _table2("zoph-table2-masks", MASKS)


def table3() -> Recipe:
    """Zoph et al. table 3, detection: a fifth, a half and all of the labels, from three kinds of weights.

    The paper's ImageNet++ has seen more than ImageNet: here it is trained on twice the images, three times as long.

    Command: tutelage run zoph-table3 --jobs 2 --out runs/zoph-table3
    Three seeds, 2 h 45 min of one busy core (docs/claims.md): AP50 of teacher and student with random weights 30.0 and
    31.7, 37.0 and 39.8, 37.1 and 40.8; with ImageNet++ 37.6 and 38.9, 45.1 and 46.4, 48.0 and 49.3.
    """
    return _table3("zoph-table3", BOXES)


def table3_masks() -> Recipe:
    """Zoph et al. table 3 for segmentation.

    Command: tutelage run zoph-table3-masks --jobs 2 --out runs/zoph-table3-masks
    """
    return _table3("zoph-table3-masks", MASKS)


def table4() -> Recipe:
    """Zoph et al. table 4, detection: random, supervised and SimCLR weights, each with and without self-training.

    With a fifth of the labels: the paper's teachers with all of them have converged, these have not.

    Command: tutelage run zoph-table4 --jobs 2 --out runs/zoph-table4
    Three seeds, about 1 h 15 min of one busy core (docs/claims.md): AP50 of teacher and student with random weights
    30.0 and 31.7, with ImageNet's 34.4 and 36.0, with SimCLR's 30.3 and 31.4.
    """
    return _table4("zoph-table4", BOXES)


def table4_masks() -> Recipe:
    """Zoph et al. table 4 for segmentation.

    Command: tutelage run zoph-table4-masks --jobs 2 --out runs/zoph-table4-masks
    """
    return _table4("zoph-table4-masks", MASKS)


def table7() -> Recipe:
    """Zoph et al. table 7, detection: pre-training, joint training, self-training, and sums; a fifth of the labels.

    What classes add to self-training is told by "joint and self-training" less "self-training, images of both".

    Command: tutelage run zoph-table7 --jobs 2 --out runs/zoph-table7
    Three seeds, 1 h 17 min of one busy core (docs/claims.md): AP50 from random and from ImageNet weights: teacher 30.0
    and 34.4, joint training 31.0 and 35.0, self-training 31.7 and 36.0, both 31.6 and 37.0.
    """
    return _table7("zoph-table7", BOXES)


def table7_masks() -> Recipe:
    """Zoph et al. table 7 for segmentation.

    Command: tutelage run zoph-table7-masks --jobs 2 --out runs/zoph-table7-masks
    """
    return _table7("zoph-table7-masks", MASKS)


def table8() -> Recipe:
    """Zoph et al. table 8, segmentation: noisy human labels of further images, or pseudo labels of the same images.

    200 images have exact masks; 1,200 more of the same world ("aug", six times as many, as in Pascal VOC) have noisy
    ones: borders off by up to 2 pixels, a tenth of the objects taken for another material. Rows: the teacher has seen
    the exact masks alone ("train" in the paper), "train + aug" both, the student the exact ones and its teacher's
    labels of the others. All start from ImageNet's stand-in. Where the paper has columns we have rows.

    Command: tutelage run zoph-table8 --jobs 2 --out runs/zoph-table8
    Three seeds, 1 h 3 min of one busy core (docs/claims.md): mIoU of teacher, "train + aug" and student 31.2, 28.7 and
    30.0 under S1, 27.2, 24.0 and 24.3 under S4.
    """
    form, pool = MASKS, "aug-images"
    recipe = base("zoph-table8", form)
    few = recipe.sources[form.world].but(images=200)
    aug = few.but(images=1200, first=30_000, noise=LabelNoise(borders=2, mistaken=0.1))
    student = recipe.student.but(sources=(form.world, pool))
    noisy = supervised(recipe, form, IMAGENET).but(sources=(form.world, "aug"))
    longer = recipe.baselines[LONGER].but(sources=(form.world, "aug"), start=NOISY)
    first = (f"teachers.{form.head}", f"baselines.{NOISY}")
    trained = (*first, "student", f"baselines.{LONGER}", f"baselines.{NOISY_LONGER}")
    return recipe.but(
        sources={
            form.world: few,
            "aug": aug,
            pool: aug.but(label=None, head=None, noise=None),
            CATALOGUE: recipe.sources[CATALOGUE],
        },
        teachers={form.head: recipe.teachers[form.head].but(start=IMAGENET)},
        student=student,
        baselines={IMAGENET: classifier(recipe, form), **recipe.baselines, NOISY: noisy, NOISY_LONGER: longer},
        study={
            "Augment-S1": settings(AUGMENTATIONS["S1"], *trained),
            "Augment-S4": (*settings(AUGMENTATIONS["S4"], *trained), *_lengthened(recipe, form, *first)),
        },
    )


def settings(augment: Augment, *keys: str) -> tuple[str, ...]:
    """What gives these trainings an augmentation, as after `--set`."""
    return tuple(f"{key}.training.augment={json.dumps(augment.plain())}" for key in keys)


TABLES: Mapping[str, Callable[[], Recipe]] = {
    "zoph-table2": table2,
    "zoph-table2-masks": table2_masks,
    "zoph-table3": table3,
    "zoph-table3-masks": table3_masks,
    "zoph-table4": table4,
    "zoph-table4-masks": table4_masks,
    "zoph-table7": table7,
    "zoph-table7-masks": table7_masks,
    "zoph-table8": table8,
}
"""All of them by name."""
