"""MuST on the paper's own datasets, with the settings of its appendices A and B.

`docs/suites.md` says where the sources and the downstream sets lie below the folder named by `data`. JFT was never
published: the folder `jft` stands for it, and epochs are counted as if it had JFT's 300 million images.

What the paper does not state is taken from the authors' public detection code or from the neighbouring setting:
learning rate and warm-up of the student (those of the detection teacher), weight of the depth loss (1; the paper swept
it) and the loss itself (MiDaS').
"""

from __future__ import annotations

from typing import Any

from tutelage.data import CocoBoxes, CocoPanoptic, Folders, Pool
from tutelage.data.augment import Augment
from tutelage.data.policies import RandAugment
from tutelage.data.source import Source
from tutelage.downstream import FineTuning, Start
from tutelage.models.backbone import Timm
from tutelage.models.student import Model
from tutelage.recipe import Recipe, StudentPart
from tutelage.recipes.suites import must_suite
from tutelage.tasks import Classification, Depth, Detection, Segmentation
from tutelage.teachers import Trained
from tutelage.teachers.transformers import TransformersTeacher
from tutelage.training.balance import Balance
from tutelage.training.schedule import Training

POOL_IMAGES = 300_000_000
"""Images of JFT (table 1): what an epoch of the pool is."""


def steps_of(epochs: float, images: int, batch: int) -> int:
    """Optimiser steps of so many epochs."""
    return round(epochs * images / batch)


def paper(name: str) -> Recipe:
    """Sources, teachers, student and downstream sets of the paper (appendices A and B); ResNet-152, 640 px.

    Not measured: it takes the paper's datasets and thousands of GPU hours.
    """
    training = Training(
        steps=steps_of(90, 1_281_167, 256),
        batch=256,
        rate=0.32,
        weight_decay=4e-5,
        warmup=2000,
        augment=Augment(scale=(0.5, 2.0)),
        workers=16,
    )
    classes = training.but(
        steps=steps_of(400, 1_281_167, 2048),
        batch=2048,
        rate=0.8,
        augment=Augment(policy=RandAugment(magnitude=15, translate=100 / 224, cutout=40 / 224)),
    )
    return Recipe(
        name=name,
        heads={
            "classes": Classification(),
            "objects": Detection(),
            "masks": Segmentation(),
            "depth": Depth(mode="relative", target="inverse"),
        },
        sources={**_labelled("train"), "jft": Pool(images="jft")},
        held_out=_labelled("val"),
        model=Model(backbone=Timm(name="resnet152"), size=640),
        teachers={
            "classes": Trained(training=classes, size=224, head=Classification(label_smoothing=0.1)),
            "objects": Trained(training=training.but(steps=steps_of(140, 600_000, 256))),
            "masks": Trained(training=training.but(steps=steps_of(384, 118_287, 256)), size=896),
            "depth": TransformersTeacher(folder="midas"),
        },
        student=StudentPart(training=training, balance=Balance(mode="scaling-rule", weights={"depth": 1.0})),
        transfer=must_suite(),
        finetuning=FineTuning(),
    )


def _labelled(split: str) -> dict[str, Source]:
    """The sources of the teachers that are trained here; `val` is what table 4 measures them and their students on."""
    return {
        "imagenet": Folders(head="classes", root=f"imagenet/{split}"),
        "objects365": CocoBoxes(
            head="objects", images=f"objects365/{split}", annotations=f"objects365/annotations/{split}.json"
        ),
        "coco": CocoPanoptic(
            head="masks",
            images=f"coco/{split}2017",
            annotations=f"coco/annotations/panoptic_{split}2017.json",
            masks=f"coco/annotations/panoptic_{split}2017",
        ),
    }


def on_jft(student: StudentPart) -> StudentPart:
    """The student as it learns from the pool: loss weights are learned, after Kendall et al. (section 3.2), and weight
    decay is 3e-6 (appendix B.2)."""
    training = student.training.but(weight_decay=3e-6)
    return student.but(training=training, balance=Balance(mode="uncertainty"))


def bootstrapped(base: Recipe) -> dict[str, Any]:
    """What figure 5 changes: EfficientNet-B7, everything from the weights in `strong.safetensors`; two rows beside."""
    name = "tf_efficientnet_b7"
    return {
        "model": base.model.but(backbone=Timm(name=name, weights="strong.safetensors")),
        "initialisations": {
            "ImageNet": Start(backbone=Timm(name=f"{name}.aa_in1k", weights="timm")),
            "Noisy Student": Start(backbone=Timm(name=f"{name}.ns_jft_in1k", weights="timm")),
        },
    }
