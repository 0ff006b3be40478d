"""MuST on the embedded scenes: no download, from a demonstration of minutes to a real size on a GPU.

Four upstream worlds, each labelled for one task; a pool; six small downstream worlds that mirror the papers' sets
(MuST table 1), surface normals being the task that no teacher was trained for.
"""

from __future__ import annotations

from typing import Any

from tutelage.data.augment import Augment
from tutelage.data.scenes import Scenes
from tutelage.models.backbone import Timm
from tutelage.models.pyramid import Pyramid
from tutelage.models.student import Model
from tutelage.recipe import FineTuning, Labelling, Recipe, StudentPart, TransferSet
from tutelage.tasks import Classification, Depth, Detection, Normals, Segmentation
from tutelage.tasks.task import Task
from tutelage.teachers import Trained
from tutelage.training.balance import Balance
from tutelage.training.schedule import Training
from tutelage.training.simclr import Views

HELD_OUT = 900_000
"""Number of the first held-out image of a world, far behind any that is learned from; test images begin as far behind
those that choose something."""

_DOWNSTREAM = ("curios", "yard", "blocks", "flat", "town", "hills")
_FEW = "blocks"
"""The downstream world with three tenths of the others' training images, as Pascal segmentation has few."""

SMALL_VIEWS = Views(crop=(0.2, 1.0), colour=0.5)
"""SimCLR's views of pictures of 64 px, whose smallest crops of 8% would be of 18 px; colours as the paper has them for
CIFAR-10. Tried on 1,500 images of "catalogue", 300 steps of 32 pairs, AdamW (2026-11-21, one seed): of the views of the
last 50 steps 6 to 7% are nearest to their mate with the paper's views for ImageNet, at rates of 2e-4 and 1e-3; with
these 17, 23 and 29% at 2e-4, 1e-3 and 4e-3; by chance 1.6%."""

_SMALL = Training(
    batch=32,
    optimiser="adamw",
    rate=4e-3,
    weight_decay=1e-2,
    clip=5.0,
    augment=Augment(scale=(0.9, 1.4), colour=0.2),
    workers=0,  # teachers and fine-tunings run side by side, which keeps all cores busy
)

SMALL_TUNING = FineTuning(
    training=_SMALL.but(batch=8, weight_decay=1e-4, warmup=15),
    rates=(5e-4, 2e-3, 8e-3, 3.2e-2),
    steps=(400,),
    halving=4,
)
"""Fine-tuning on a few hundred small pictures, on a CPU: four rates, of which the best after 100 steps goes on to 400,
which costs 1.75 times one training. Weight decay is MuST's 1e-4 (appendix B.3)."""

SMALL_DETECTION = Detection(
    anchor_scale=2.5,
    rpn_samples=32,
    pre_nms_train=200,
    pre_nms_test=150,
    proposals_train=80,
    proposals_test=50,
    rois_per_image=16,
    roi_size=4,
    roi_canonical=56.0,
    roi_convs=0,
    roi_channels=64,
    fc_width=128,
    detections=30,
)
"""Faster R-CNN for pictures of 64 px on a CPU: the paper's parts, narrower and with fewer regions."""


def downstream_heads(detection: Detection) -> dict[str, tuple[str, str, Task]]:
    """MuST's downstream sets on scenes: head to world, label and task."""
    return {
        "fine classes": ("curios", "classes", Classification()),
        "detection": ("yard", "boxes", detection),
        "few masks": ("blocks", "mask", Segmentation()),
        "depth": ("flat", "depth", Depth()),
        "many masks": ("town", "mask", Segmentation()),
        "normals": ("hills", "normals", Normals()),
    }


def scenes(
    name: str,
    model: Model,
    upstream: int,
    pool: int,
    downstream: dict[str, tuple[int, int, int]],
    held_out: int,
    detection: Detection,
    teachers: dict[str, Training],
    student: StudentPart,
    finetuning: FineTuning,
    seeds: tuple[int, ...] = (0,),
) -> Recipe:
    """A MuST recipe on scenes of the model's size.

    Args:
        name: of the recipe.
        model: of teachers, student and transfer alike.
        upstream: images of each upstream world.
        pool: images of the pool.
        downstream: images of (train, validation, test) by downstream world.
        held_out: test images of each upstream world.
        detection: sizes of the detection heads.
        teachers: by head, how each is trained.
        student, finetuning: how these are.
        seeds: of the fine-tunings.
    """

    def world(label: str, world: str, head: str, images: int, first: int = 0) -> Scenes:
        return Scenes(world=world, label=label, head=head, images=images, size=model.size, first=first, seed=1)

    tasks: dict[str, tuple[str, str, Task]] = {
        "objects": ("playground", "boxes", detection),
        "depth": ("halls", "depth", Depth()),
        "materials": ("workshop", "mask", Segmentation()),
        "classes": ("catalogue", "classes", Classification()),
    }
    sources: dict[str, Any] = {w: world(label, w, head, upstream) for head, (w, label, _) in tasks.items()}
    sources["travels"] = Scenes(world="travels", images=pool, size=model.size, seed=1)
    transfer = {}
    for head, (place, label, task) in downstream_heads(detection).items():
        train, validation, test = downstream[place]
        transfer[head] = TransferSet(
            head=task,
            train=world(label, place, head, train),
            validation=world(label, place, head, validation, first=HELD_OUT),
            test=world(label, place, head, test, first=2 * HELD_OUT),
        )
    return Recipe(
        name=name,
        heads={head: task for head, (_, _, task) in tasks.items()},
        sources=sources,
        held_out={w: world(label, w, head, held_out, first=HELD_OUT) for head, (w, label, _) in tasks.items()},
        model=model,
        teachers={head: Trained(training=teachers[head]) for head in tasks},
        labelling=Labelling(shard=1000, batch=64),
        student=student,
        transfer=transfer,
        finetuning=finetuning,
        seeds=seeds,
    )


def demo() -> Recipe:
    """MuST in a few minutes on two cores: 64 px scenes, a small ResNet.

    Command: tutelage demo --out runs/demo
    Measured on two cores: `make demo` 5 min 6 s (LOG.md, 2026-11-21).
    """
    steps = {"classes": 300, "objects": 450, "materials": 150, "depth": 150}
    return _small("demo", upstream=800, pool=1200, steps=steps, student=450, tuning=300, test=100)


def demo_fast() -> Recipe:
    """The same in about a minute: it shows the way, not the result.

    Command: tutelage demo --fast --out runs/demo-fast
    Measured on two cores: 49 s (LOG.md, 2026-11-21).
    """
    steps = {"classes": 80, "objects": 120, "materials": 50, "depth": 50}
    return _small("demo-fast", upstream=160, pool=240, steps=steps, student=60, tuning=10, test=32)


def _small(name: str, upstream: int, pool: int, steps: dict[str, int], student: int, tuning: int, test: int) -> Recipe:
    """Steps are of 32 images for teachers and student, of 8 for the fine-tunings."""

    def trained(steps: int) -> Training:
        return _SMALL.but(checkpoint_seconds=20, steps=steps, warmup=steps // 10, log_every=max(1, steps // 40))

    return scenes(
        name,
        model=Model(
            backbone=Timm(name="resnet18", options={"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256]}),
            pyramid=Pyramid(width=64),
            size=64,
        ),
        upstream=upstream,
        pool=pool,
        downstream={world: (160 if world != _FEW else 48, test // 2, test) for world in _DOWNSTREAM},
        held_out=test,
        detection=SMALL_DETECTION,
        teachers={head: trained(count) for head, count in steps.items()},
        student=StudentPart(training=trained(student).but(workers=1), balance=Balance()),
        finetuning=FineTuning(training=trained(tuning).but(batch=8), rates=(4e-3,), steps=(tuning,)),
    )


def small(name: str) -> Recipe:
    """What the tables of the papers are made of on two cores: 64 px scenes, a small ResNet; fine-tuned as SMALL_TUNING
    says."""
    steps = {"classes": 600, "objects": 600, "materials": 250, "depth": 250}
    recipe = _small(name, upstream=1500, pool=3000, steps=steps, student=450, tuning=400, test=200)
    often = recipe.finetuning.training  # how often it saves and logs
    tuned = SMALL_TUNING.training.but(
        steps=often.steps, log_every=often.log_every, checkpoint_seconds=often.checkpoint_seconds
    )
    return recipe.but(finetuning=SMALL_TUNING.but(training=tuned))


def must_scenes() -> Recipe:
    """MuST on 128 px scenes with a ResNet-50: tens of thousands of images, for a GPU.

    Command: tutelage run must-scenes --out runs/must-scenes
    Not measured yet.
    """
    return large("must-scenes").but(seeds=(0, 1, 2))


def large(name: str) -> Recipe:
    """What the tables of the papers are made of on a GPU: 128 px scenes, a ResNet-50."""
    training = Training(
        steps=4000,
        batch=128,
        optimiser="sgd",
        rate=0.08,
        weight_decay=4e-5,
        warmup=200,
        augment=Augment(scale=(0.5, 2.0)),
        workers=8,
    )
    return scenes(
        name,
        model=Model(backbone=Timm(name="resnet50"), pyramid=Pyramid(width=256), size=128),
        upstream=10_000,
        pool=20_000,
        downstream={world: (1000 if world != _FEW else 300, 300, 1000) for world in _DOWNSTREAM},
        held_out=1000,
        detection=Detection(anchor_scale=3.0, roi_canonical=112.0, rois_per_image=128),
        teachers={head: training for head in ("classes", "objects", "materials", "depth")},
        student=StudentPart(training=training.but(steps=12_000, warmup=500), balance=Balance(mode="scaling-rule")),
        finetuning=FineTuning(
            training=training.but(batch=32, weight_decay=1e-4, warmup=50), rates=(0.01, 0.04), steps=(1000,)
        ),
    )
