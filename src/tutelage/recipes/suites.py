"""The downstream suites of the papers by name, and their twins on scenes, which run anywhere.

`must`: MuST's six sets (appendix B.3 of the paper). `xlearner`: X-Learner's ten sets for the linear probe, detection,
segmentation and depth (its section 4.2 and table 4). Where a paper gives the two ends of a grid, the grid steps between
them by factors of two (MuST), or evenly on a log scale in five steps (X-Learner). Where a set has no validation part,
one is cut from its training images, and the papers' test images choose nothing. What is not from a paper is said here,
beside it; `docs/suites.md` says where the files must lie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tutelage.data import DepthPairs, Folders, Join, Masks, NormalPairs, Scenes, TorchvisionSet, VocBoxes
from tutelage.data.augment import Augment
from tutelage.data.scenes import PROBED
from tutelage.data.source import Source
from tutelage.downstream import FineTuning, TransferSet
from tutelage.recipes.scenes import HELD_OUT, SMALL_DETECTION, SMALL_TUNING, downstream_heads
from tutelage.tasks import Classification, DeepLab, Depth, Detection, Normals, Segmentation
from tutelage.tasks.task import Task
from tutelage.training.schedule import Training

VOC_THINGS = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""The classes of Pascal VOC; in masks, "background" stands before them."""

REAL_COPIES = ("raccoon-83",)
"""Training images of the raccoon set that are test images as well, byte for byte; `tutelage check` found them."""

_JITTER = (0.5, 2.0)
_WHOLE = (1.0, 1.0)
_LEARN, _CHOOSE = (0.0, 0.9), (0.9, 1.0)
_LEARN_FEW, _CHOOSE_FEW = (0.0, 0.8), (0.8, 1.0)
# NYU and DIODE are walks with a camera, whose neighbouring frames are near-duplicates: blocks, with a gap between.
_LEARN_WALK, _CHOOSE_WALK = (0.0, 0.94), (0.95, 1.0)


def must_suite(root: str = "") -> dict[str, TransferSet]:
    """MuST's six downstream sets, below `root`, fine-tuned as in appendix B.3: cosine, weight decay 1e-4.

    Ours are a warm-up of 500 steps, and the settings of ADE20K, which the appendix leaves out: those of Pascal
    segmentation. CIFAR-100 has no jitter and no class for the background here.
    """
    folder = Path(root)
    return {
        "CIFAR-100": TransferSet(
            head=Classification(),
            **_parts("CIFAR-100", "CIFAR100", folder, "train", _LEARN, _CHOOSE),
            size=256,
            finetuning=_must(512, _WHOLE),
        ),
        "Pascal detection": _voc_boxes("Pascal detection", folder, 896, _must(32)),
        "Pascal segmentation": _voc_masks("Pascal segmentation", Segmentation(), folder, 512, _must(64)),
        "NYU depth": _nyu("NYU depth", folder),
        "ADE segmentation": _ade("ADE segmentation", folder),
        "DIODE normals": _diode("DIODE normals", folder),
    }


def xlearner_suite(root: str = "") -> dict[str, TransferSet]:
    """X-Learner's downstream sets, below `root`: ten linear probes at 224 px, Pascal detection and segmentation, NYU.

    The paper names nine of its ten classification sets, "from the suite of Kornblith et al." (CVPR 2019). Of the three
    others there, DTD is the tenth here: Birdsnap's photographs can hardly be had any more, and Pascal VOC 2007, which
    has several labels an image, is in the suite already. Training and validation images together, as most who use
    this suite do, are learned from, but for a fifth (CIFAR and Food-101: a tenth) that chooses the L2.

    Pascal detection: Faster R-CNN, 24,000 steps of 16 images; a square of 1088 px gives photographs of 500 x 375 a
    shorter side of 816, where the paper has 800. Segmentation: DeepLabv3, 33,000 steps of 16 images of 513 px; the
    jitter is that of DeepLabv3 (Chen et al. 2017, section 4.1). Both: SGD, momentum 0.9, weight decay 1e-4; the cosine
    is ours. For NYU (table 4) the paper gives no settings: MuST's, but for a fresh pyramid.
    """
    folder = Path(root)
    probes: dict[str, tuple[str, tuple[float, float], tuple[float, float]]] = {
        "CIFAR10": ("train", _LEARN, _CHOOSE),
        "CIFAR100": ("train", _LEARN, _CHOOSE),
        "Food101": ("train", _LEARN, _CHOOSE),
        "StanfordCars": ("train", _LEARN_FEW, _CHOOSE_FEW),
        "FGVCAircraft": ("train+val", _LEARN_FEW, _CHOOSE_FEW),
        "OxfordIIITPet": ("trainval", _LEARN_FEW, _CHOOSE_FEW),
        "Flowers102": ("train+val", _LEARN_FEW, _CHOOSE_FEW),
        "Caltech101": ("train", _LEARN_FEW, _CHOOSE_FEW),
        "SUN397": ("train", _LEARN_FEW, _CHOOSE_FEW),
        "DTD": ("train+val", _LEARN_FEW, _CHOOSE_FEW),
    }
    suite = {
        name: TransferSet(
            head=Classification(), **_parts(name, name, folder, split, learn, choose), size=224, by=("linear-probe",)
        )
        for name, (split, learn, choose) in probes.items()
    }
    suite["Pascal detection"] = _voc_boxes(
        "Pascal detection", folder, 1088, _xlearner(24_000, (0.001, 0.0027, 0.007, 0.019, 0.05), _WHOLE)
    )
    suite["Pascal segmentation"] = _voc_masks(
        "Pascal segmentation", DeepLab(), folder, 513, _xlearner(33_000, (0.001, 0.0029, 0.0084, 0.024, 0.07), _JITTER)
    )
    depth = _nyu("NYU depth", folder)
    assert depth.finetuning is not None
    # as in the two above: hard sharing would bring a pyramid, which no squeezed student has
    suite["NYU depth"] = depth.but(finetuning=depth.finetuning.but(pyramid="fresh"))
    return suite


def must_scenes_suite(
    size: int = 64, images: int = 160, detection: Detection = SMALL_DETECTION
) -> dict[str, TransferSet]:
    """The twin of `must` on scenes: the six downstream worlds, in the order of MuST's table 1.

    Args:
        size: pixels of the rendered images; the network's input is the recipe's.
        images: to learn from and to test on; half as many choose. "few masks" has three tenths to learn from, as
            Pascal segmentation has few.
        detection: sizes of the detection head; the default is for pictures of 64 px.
    """
    return {
        name: TransferSet(
            head=task,
            **_scenes(name, world, label, size, images * 3 // 10 if name == "few masks" else images, images),
            finetuning=SMALL_TUNING,
        )
        for name, (world, label, task) in downstream_heads(detection).items()
    }


def xlearner_scenes_suite(
    size: int = 64, images: int = 160, detection: Detection = SMALL_DETECTION
) -> dict[str, TransferSet]:
    """The twin of `xlearner` on scenes: linear probes of the shape and material of one object, in six worlds that look
    like the downstream worlds, detection, segmentation by a small DeepLabv3, and depth. Arguments as in
    `must_scenes_suite`; probes, of 20 to 24 classes, have five times as many images to learn from and to test on, the
    others two and a half times as many to learn from.
    """
    many = 5 * images
    suite = {
        world.name: TransferSet(
            head=Classification(),
            **_scenes(world.name, world.name, "classes", size, many, many),
            by=("linear-probe",),
        )
        for world in PROBED
    }
    columns: dict[str, tuple[str, str, Task]] = {
        "detection": ("yard", "boxes", detection),
        "segmentation": ("blocks", "mask", DeepLab(channels=64)),
        "depth": ("flat", "depth", Depth()),
    }
    for name, (world, label, task) in columns.items():
        sources = _scenes(name, world, label, size, many // 2, images)
        suite[name] = TransferSet(head=task, **sources, finetuning=SMALL_TUNING)
    return suite


def real_suite(root: str = "") -> dict[str, TransferSet]:
    """Small sets of real photographs, below `root`, laid out as the recipe `real` states; for two cores.

    Objects photographed (cifar10, clothing; also probed linearly), one class of boxes (raccoon), masks of streets
    (camvid), depth and normals of a kitchen, whose neighbouring frames are near-duplicates: blocks with gaps between.
    """
    folder, walk = Path(root), ((0.0, 0.45), (0.48, 0.58), (0.74, 1.0))
    tuning = SMALL_TUNING.but(
        training=SMALL_TUNING.training.but(batch=16), rates=(5e-4, 2e-3, 8e-3), steps=(300,), halving=3
    )
    both: Any = ("fine-tuning", "linear-probe")

    def cifar(split: str, **cut: Any) -> Folders:
        return Folders(head="cifar10", root=folder / "cifar10" / split, **cut)

    def clothing(split: str) -> Folders:
        return Folders(head="clothing", root=folder / "clothing" / split)

    def raccoons(split: str, **cut: Any) -> VocBoxes:
        return VocBoxes(head="raccoon", root=folder / "raccoon", split=split, **cut)

    def street(split: str, **cut: Any) -> Masks:
        base = folder / "camvid"
        paths = {"images": base / "images" / split, "masks": base / "masks" / split, "classes": base / "classes.json"}
        return Masks(head="camvid", **paths, **cut)

    def depth(blocks: tuple[float, float]) -> DepthPairs:
        base = folder / "kitchen"
        return DepthPairs(head="kitchen depth", images=base / "rgb", depths=base / "depth", unit=0.001, blocks=blocks)

    def normals(blocks: tuple[float, float]) -> NormalPairs:
        base = folder / "kitchen"
        paths = {"images": base / "rgb", "depths": base / "depth", "camera": base / "camera.json"}
        return NormalPairs(head="kitchen normals", from_depth=True, unit=0.001, blocks=blocks, **paths)

    learn, choose = {"blocks": (0.0, 0.8)}, {"blocks": (0.85, 1.0)}
    parts: dict[str, tuple[Task, tuple[Source, Source, Source], Any]] = {
        "cifar10": (
            Classification(),
            (cifar("train", part=(0.0, 0.2)), cifar("train", part=(0.9, 0.95)), cifar("val", limit=1000)),
            both,
        ),
        "clothing": (Classification(), (clothing("train"), clothing("validation"), clothing("test")), both),
        "raccoon": (
            SMALL_DETECTION.but(anchor_scale=3.0, detections=100),
            (
                raccoons("train", part=(0.0, 0.8), exclude=REAL_COPIES),
                raccoons("train", part=(0.8, 1.0), exclude=REAL_COPIES),
                raccoons("val"),
            ),
            ("fine-tuning",),
        ),
        "camvid": (
            Segmentation(),
            (street("train", **learn), street("train", **choose), street("val")),
            ("fine-tuning",),
        ),
        "kitchen depth": (Depth(), (depth(walk[0]), depth(walk[1]), depth(walk[2])), ("fine-tuning",)),
        "kitchen normals": (Normals(), (normals(walk[0]), normals(walk[1]), normals(walk[2])), ("fine-tuning",)),
    }
    return {
        name: TransferSet(head=task, train=one, validation=two, test=three, by=by, finetuning=tuning)
        for name, (task, (one, two, three), by) in parts.items()
    }


def recipe_keys(suite: Mapping[str, TransferSet]) -> dict[str, Any]:
    """A suite as keys of a recipe, `transfer` and `finetuning`: where all sets are fine-tuned alike, the recipe says
    how, so that one change of it is a change for all."""
    tuned = {name: part for name, part in suite.items() if "fine-tuning" in part.by}
    ways = [part.finetuning for part in tuned.values()]
    if not ways or ways[0] is None or any(way != ways[0] for way in ways):
        return {"transfer": dict(suite)}
    sets = {name: part.but(finetuning=None) if name in tuned else part for name, part in suite.items()}
    return {"transfer": sets, "finetuning": ways[0]}


SUITES: dict[str, Callable[[], dict[str, TransferSet]]] = {
    "must": must_suite,
    "xlearner": xlearner_suite,
    "real": real_suite,
    "must-scenes": must_scenes_suite,
    "xlearner-scenes": xlearner_scenes_suite,
}
"""The suites by name; sets are relative to the folder that the recipe names as `data`."""


def _must(
    batch: int,
    scale: tuple[float, float] = _JITTER,
    steps: tuple[int, ...] = (5_000, 10_000, 20_000),
    rates: tuple[float, ...] = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32),
) -> FineTuning:
    training = Training(batch=batch, weight_decay=1e-4, warmup=500, augment=Augment(scale=scale), workers=8)
    return FineTuning(training=training, rates=rates, steps=steps)


def _xlearner(steps: int, rates: tuple[float, ...], scale: tuple[float, float]) -> FineTuning:
    training = Training(batch=16, momentum=0.9, weight_decay=1e-4, warmup=500, augment=Augment(scale=scale), workers=8)
    return FineTuning(training=training, rates=rates, steps=(steps,), pyramid="fresh")


def _parts(
    head: str, name: str, folder: Path, split: str, learn: tuple[float, float], choose: tuple[float, float]
) -> dict[str, Any]:
    whole = TorchvisionSet(head=head, name=name, root=folder, split=split)
    return {"train": whole.but(part=learn), "validation": whole.but(part=choose), "test": whole.but(split="test")}


def _voc_boxes(head: str, folder: Path, size: int, finetuning: FineTuning) -> TransferSet:
    """VOC 2007 and 2012 trainval, tested on VOC 2007 test."""

    def years(part: tuple[float, float]) -> Source:
        return Join(
            head=head,
            sources={
                year: VocBoxes(head=head, root=folder / f"VOCdevkit/VOC{year}", split="trainval", part=part)
                for year in ("2007", "2012")
            },
        )

    return TransferSet(
        head=Detection(classes=VOC_THINGS),
        train=years(_LEARN),
        validation=years(_CHOOSE),
        test=VocBoxes(head=head, root=folder / "VOCdevkit/VOC2007", split="test"),
        size=size,
        finetuning=finetuning,
    )


def _voc_masks(head: str, task: Task, folder: Path, size: int, finetuning: FineTuning) -> TransferSet:
    """VOC 2012 train, tested on val."""
    base = folder / "VOCdevkit/VOC2012"
    lists = base / "ImageSets/Segmentation"
    whole = Masks(
        head=head,
        images=base / "JPEGImages",
        masks=base / "SegmentationClass",
        ids=lists / "train.txt",
        classes=("background", *VOC_THINGS),
    )
    return TransferSet(
        head=task,
        train=whole.but(part=_LEARN),
        validation=whole.but(part=_CHOOSE),
        test=whole.but(ids=lists / "val.txt"),
        size=size,
        finetuning=finetuning,
    )


def _nyu(head: str, folder: Path) -> TransferSet:
    """NYU depth v2, in 47,584 images of videos and the 654 labelled test images."""
    base = folder / "nyu"
    whole = DepthPairs(head=head, images=base, depths=base, pairs=base / "train.txt", unit=0.001, maximum=10.0)
    return TransferSet(
        head=Depth(),
        train=whole.but(blocks=_LEARN_WALK),
        validation=whole.but(blocks=_CHOOSE_WALK),
        test=whole.but(pairs=base / "test.txt"),
        size=640,
        finetuning=_must(64, steps=(10_000, 20_000, 40_000)),
    )


def _ade(head: str, folder: Path) -> TransferSet:
    """ADE20K's scene parsing benchmark: 20,210 images, tested on its 2,000 validation images."""
    base = folder / "ADEChallengeData2016"
    whole = Masks(
        head=head,
        images=base / "images/training",
        masks=base / "annotations/training",
        classes=base / "objectInfo150.txt",
        ignore=(0,),
    )
    return TransferSet(
        head=Segmentation(),
        train=whole.but(part=_LEARN_WALK),
        validation=whole.but(part=_CHOOSE_WALK),
        test=whole.but(images=base / "images/validation", masks=base / "annotations/validation"),
        size=512,
        finetuning=_must(64),
    )


def _diode(head: str, folder: Path) -> TransferSet:
    """The outdoor half of DIODE: 16,884 images, tested on its 446 validation images."""
    train, test = folder / "diode/train/outdoor", folder / "diode/val/outdoor"
    whole = NormalPairs(
        head=head, images=train, normals=train, label_suffix="_normal", mask_suffix="_depth_mask", negate="yz"
    )
    return TransferSet(
        head=Normals(),
        train=whole.but(blocks=_LEARN_WALK),
        validation=whole.but(blocks=_CHOOSE_WALK),
        test=whole.but(images=test, normals=test),
        size=768,
        finetuning=_must(32, steps=(20_000, 40_000, 80_000), rates=(0.01, 0.02, 0.04, 0.08, 0.16)),
    )


def _scenes(head: str, world: str, label: str, size: int, learn: int, test: int) -> dict[str, Any]:
    whole = Scenes(world=world, label=label, head=head, images=learn, size=size, seed=1)
    return {
        "train": whole,
        "validation": whole.but(images=max(1, test // 2), first=HELD_OUT),
        "test": whole.but(images=test, first=2 * HELD_OUT),
    }
