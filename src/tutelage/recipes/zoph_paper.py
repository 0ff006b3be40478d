"""The studies of "Rethinking Pre-training and Self-training" (Zoph et al., NeurIPS 2020) on the paper's own datasets,
with the settings of its section 3.2.

The folder named by `data` holds, each as it is published unless said otherwise:
- `coco/train2017`, `coco/val2017` and `coco/annotations/instances_*2017.json`.
- `imagenet/train`: a folder a class.
- `openimages/train`: the images of Open Images (table 5).
- `VOCdevkit/VOC2012` with `JPEGImages`, `SegmentationClass` and `ImageSets/Segmentation` (tables 6 and 8). Of the
  augmented set, index pictures in `SegmentationClassAug`; in `ImageSets/Segmentation`, `aug.txt` with the ids that
  VOC's own lists do not have, and `aug_images.txt` with the file names of these images.
- `simclr/resnet50.safetensors`: the published checkpoint before fine-tuning, with timm's names of weights (table 4).
Other checkpoints are timm's: EfficientNet-B7 trained with AutoAugment is the paper's ImageNet, with Noisy Student its
ImageNet++.

What the paper's text does not state, and what stands here in its place:
- the length of a student's training: 95,000 steps of the detector, from section 5, where 19 epochs of ImageNet are seen
  at 256 images a step; of segmentation as long as the teacher's;
- of the detector's supervised training with Augment-S2 and S3, and from other than random weights (appendix H): as long
  as with S4 from random weights;
- a = 1, the decay of the moving averages 0.99, momentum 0.9, gradients cut at norm 10;
- EfficientNets and ResNets are trained without stochastic depth and without DropBlock, of which the text says nothing;
  timm takes `drop_path_rate` among `model.backbone.options`, DropBlock is not built in;
- batch norms are of each process' own images, where the paper's are of all; a warm-up begins at a thousandth of the
  rate, where the paper's begins at a hundredth;
- segmentation: 512 px, 500 steps of warm-up (the authors' public code), 256 channels of the pyramid, mirrored looks;
- SpineNet: as in Du et al. (CVPR 2020) and its public code, at half the batch and rate for as many epochs; students for
  half as long as their teachers.
Rows: the teacher is supervised learning, the student self-training. Segmentation has the tables that it has in the
paper, 6 and 8; tables 2 to 5 and 7 are of detection. Nothing here was measured: it takes thousands of
accelerator hours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tutelage.data import CocoBoxes, Folders, Masks, Pool
from tutelage.data.augment import Augment
from tutelage.data.source import Source
from tutelage.models.backbone import Timm
from tutelage.models.pyramid import Pyramid
from tutelage.models.spinenet import SpineNet
from tutelage.models.student import Model
from tutelage.recipe import Recipe, SelfTraining, StudentPart
from tutelage.recipes.must_paper import steps_of
from tutelage.recipes.suites import VOC_THINGS
from tutelage.recipes.zoph_tables import (
    AUGMENTATIONS,
    JOINT,
    JOINT_AND_SELF,
    NOISY,
    SCALES,
    SHARES,
    settings,
)
from tutelage.tasks import Classification, RetinaNet, Segmentation
from tutelage.teachers import Trained
from tutelage.training.schedule import Training

B7, L2 = "tf_efficientnet_b7", "tf_efficientnet_l2"
INITS: Mapping[str, tuple[str | None, str]] = {
    "Rand Init": (None, B7),
    "ImageNet Init": ("timm", f"{B7}.aa_in1k"),
    "ImageNet++ Init": ("timm", f"{B7}.ns_jft_in1k"),
}
"""Weights and timm name of EfficientNet-B7 in section 3.1 (table 1)."""


def _init(weights: str | None, name: str) -> str:
    """The setting that gives all networks a backbone."""
    return f"model.backbone={json.dumps(Timm(name=name, weights=weights).plain())}"


def _coco(split: str) -> CocoBoxes:
    return CocoBoxes(
        head="objects",
        images=f"coco/{split}2017",
        annotations=f"coco/annotations/instances_{split}2017.json",
    )


def detection(name: str, pool: Source) -> Recipe:
    """RetinaNet with EfficientNet-B7 on COCO, Augment-S4 (section 3.2)."""
    training = Training(
        steps=120_000,
        batch=256,
        rate=0.32,
        weight_decay=1e-4,
        warmup=1000,
        augment=AUGMENTATIONS["S4"],
        workers=16,
    )
    return Recipe(
        name=name,
        heads={"objects": RetinaNet()},
        sources={"coco": _coco("train"), "pool": pool},
        held_out={"coco": _coco("val")},
        model=Model(backbone=Timm(name=B7), size=640),
        teachers={"objects": Trained(training=training)},
        student=StudentPart(
            training=training.but(steps=steps_of(19, 1_281_167, 256), batch=512),
            self_training=SelfTraining(),
            start="teacher: objects",
            heads=("objects",),
        ),
    )


def segmentation(name: str) -> Recipe:
    """NAS-FPN with EfficientNet-B7 on Pascal VOC 2012, from ImageNet++, Augment-S4 (section 3.2); the pool is its
    augmented set."""
    training = Training(
        steps=40_000,
        batch=256,
        rate=0.08,
        weight_decay=1e-5,
        warmup=500,
        augment=AUGMENTATIONS["S4"],
        workers=16,
    )
    weights, network = INITS["ImageNet++ Init"]
    return Recipe(
        name=name,
        heads={"masks": Segmentation(classes=("background", *VOC_THINGS))},
        sources={
            "voc": _voc("train"),
            "aug-images": Pool(
                images="VOCdevkit/VOC2012/JPEGImages", ids="VOCdevkit/VOC2012/ImageSets/Segmentation/aug_images.txt"
            ),
        },
        held_out={"voc": _voc("val")},
        model=Model(
            backbone=Timm(name=network, weights=weights),
            pyramid=Pyramid(kind="nas-fpn", repeats=7, separable=True),
            size=512,
        ),
        teachers={"masks": Trained(training=training, scales=SCALES, flip=True)},
        student=StudentPart(
            training=training.but(batch=512), self_training=SelfTraining(), start="teacher: masks", heads=("masks",)
        ),
    )


def _voc(split: str, masks: str = "SegmentationClass") -> Masks:
    root = "VOCdevkit/VOC2012"
    return Masks(
        head="masks",
        images=f"{root}/JPEGImages",
        masks=f"{root}/{masks}",
        ids=f"{root}/ImageSets/Segmentation/{split}.txt",
        classes=("background", *VOC_THINGS),
    )


def table2() -> Recipe:
    """Zoph et al. table 2 on COCO and ImageNet: random and ImageNet weights under Augment-S1 to S4.

    Rows and columns: what is a row of pre-training in the paper is a column here, as networks of a run start alike.

    Command: tutelage run zoph-table2-paper --set data=/datasets --out runs/zoph-table2-paper
    """
    steps = {"S1": 45_000, "S2": 120_000, "S3": 120_000, "S4": 120_000}
    return detection("zoph-table2-paper", Pool(images="imagenet/train")).but(
        study={
            f"Augment-{k}, {init}": (
                _init(*INITS[init]),
                *settings(augment, "teachers.objects", "student"),
                f"teachers.objects.training.steps={steps[k]}",
            )
            for k, augment in AUGMENTATIONS.items()
            for init in ("Rand Init", "ImageNet Init")
        }
    )


def table3() -> Recipe:
    """Zoph et al. table 3 on COCO and ImageNet: a fifth, a half and all of the labels, from three kinds of weights.

    Command: tutelage run zoph-table3-paper --set data=/datasets --out runs/zoph-table3-paper
    """
    return detection("zoph-table3-paper", Pool(images="imagenet/train")).but(
        study={
            f"{share:.0%}, {init}": (_init(*weights), f"fractions.coco={share}")
            for share in SHARES
            for init, weights in INITS.items()
        }
    )


def table4() -> Recipe:
    """Zoph et al. table 4 on COCO and ImageNet: ResNet-50 from random, supervised and SimCLR weights.

    Command: tutelage run zoph-table4-paper --set data=/datasets --out runs/zoph-table4-paper
    """
    starts: dict[str, tuple[str | None, str]] = {
        "Rand Init": (None, "resnet50"),
        "ImageNet Init": ("timm", "resnet50.tv_in1k"),
        "SimCLR Init": ("simclr/resnet50.safetensors", "resnet50"),
    }
    recipe = detection("zoph-table4-paper", Pool(images="imagenet/train"))
    return recipe.but(
        model=recipe.model.but(backbone=Timm(name="resnet50")),
        study={init: (_init(*weights),) for init, weights in starts.items()},
    )


def table5() -> Recipe:
    """Zoph et al. table 5 on COCO and Open Images: SpineNet-143 and 190 at 1280 px, Augment-S3 for the student alone.

    Without AutoAugment the teachers have the jitter of SpineNet's own recipe, 0.1 to 1.9. Soft-NMS with sigma 0.3.

    Command: tutelage run zoph-table5-paper --set data=/datasets --out runs/zoph-table5-paper
    """
    recipe = detection("zoph-table5-paper", Pool(images="openimages/train"))
    spine = Training(
        steps=2 * 231_500,
        batch=128,
        rate=0.14,
        weight_decay=4e-5,
        warmup=2 * 2000,
        schedule="steps",
        drops=_last_epochs(500),
        augment=Augment(scale=(0.1, 1.9)),
        workers=16,
    )
    student = spine.but(steps=231_500, batch=256, augment=AUGMENTATIONS["S3"])
    large = {
        "model.backbone": SpineNet(name="190", stochastic_depth=0.2).plain(),
        "model.pyramid.width": 512,
        "heads.objects.convs": 7,
        "heads.objects.channels": 512,
        "teachers.objects.training.steps": 2 * 185_200,
        "student.training.steps": 185_200,
    }
    for key in ("teachers.objects.training", "student.training"):
        large |= {f"{key}.rate": 0.15, f"{key}.drops": _last_epochs(400)}
    return recipe.but(
        heads={"objects": RetinaNet(activation="swish", soft_nms=0.3)},
        model=Model(backbone=SpineNet(name="143", stochastic_depth=0.16), size=1280),
        teachers={"objects": Trained(training=spine)},
        student=recipe.student.but(training=student),
        study={
            "SpineNet-143": (),
            "SpineNet-190": tuple(f"{key}={json.dumps(value)}" for key, value in large.items()),
        },
    )


def _last_epochs(epochs: int) -> tuple[tuple[float, float], ...]:
    """A tenth of the rate in the last 30 epochs, a tenth of that in the last 10 (Du et al., section 5.1)."""
    return ((1 - 30 / epochs, 0.1), (1 - 10 / epochs, 0.1))


def table6() -> Recipe:
    """Zoph et al. table 6 on Pascal VOC and its augmented set: NAS-FPN with EfficientNet-B7 and L2 from ImageNet++.

    Command: tutelage run zoph-table6-paper --set data=/datasets --out runs/zoph-table6-paper
    """
    large: dict[str, Any] = {"teachers.masks.training.steps": 20_000, "student.training.steps": 20_000}
    large |= {"teachers.masks.training.rate": 0.2, "student.training.rate": 0.2, "student.training.batch": 256}
    return segmentation("zoph-table6-paper").but(
        study={
            "EfficientNet-B7": (),
            "EfficientNet-L2": (
                _init("timm", f"{L2}.ns_jft_in1k"),
                *(f"{key}={json.dumps(value)}" for key, value in large.items()),
            ),
        }
    )


def table7() -> Recipe:
    """Zoph et al. table 7 on COCO and ImageNet: pre-, joint and self-training and their sums, a fifth of the labels.

    Command: tutelage run zoph-table7-paper --set data=/datasets --out runs/zoph-table7-paper
    """
    recipe = detection("zoph-table7-paper", Pool(images="imagenet/train"))
    both = recipe.student.but(heads=("objects", "classes"), self_training=SelfTraining(head="objects"))
    return recipe.but(
        heads={**recipe.heads, "classes": Classification()},
        sources={**recipe.sources, "pool": Folders(head="classes", root="imagenet/train")},
        baselines={JOINT: both.but(labels="human"), JOINT_AND_SELF: both},
        fractions={"coco": 0.2},
        study={init: (_init(*INITS[init]),) for init in ("Rand Init", "ImageNet Init")},
    )


def table8() -> Recipe:
    """Zoph et al. table 8 on Pascal VOC: its augmented set with the labels that people gave it, or with pseudo labels.

    The weights are ImageNet++: the paper's table says ImageNet, with the figures that its table 6 has for ImageNet++.

    Command: tutelage run zoph-table8-paper --set data=/datasets --out runs/zoph-table8-paper
    """
    recipe = segmentation("zoph-table8-paper")
    teacher = recipe.teachers["masks"]
    assert isinstance(teacher, Trained)
    noisy = StudentPart(training=teacher.training, heads=("masks",), labels="human", sources=("voc", "aug"))
    return recipe.but(
        sources={**recipe.sources, "aug": _voc("aug", "SegmentationClassAug")},
        student=recipe.student.but(sources=("voc", "aug-images")),
        baselines={NOISY: noisy},
        study={
            f"Augment-{k}": settings(AUGMENTATIONS[k], "teachers.masks", "student", f"baselines.{NOISY}")
            for k in ("S1", "S4")
        },
    )


TABLES: Mapping[str, Callable[[], Recipe]] = {
    "zoph-table2-paper": table2,
    "zoph-table3-paper": table3,
    "zoph-table4-paper": table4,
    "zoph-table5-paper": table5,
    "zoph-table6-paper": table6,
    "zoph-table7-paper": table7,
    "zoph-table8-paper": table8,
}
"""All of them by name."""
