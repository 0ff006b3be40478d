"""Self-training (Zoph et al., NeurIPS 2020) on the embedded scenes: one task, few labels, many images without."""

from __future__ import annotations

from tutelage.data.augment import augment_s1
from tutelage.data.scenes import Scenes
from tutelage.models.backbone import Timm
from tutelage.models.pyramid import Pyramid
from tutelage.models.student import Model
from tutelage.recipe import Recipe, SelfTraining, StudentPart
from tutelage.recipes.scenes import HELD_OUT
from tutelage.tasks import RetinaNet
from tutelage.teachers import Trained
from tutelage.training.schedule import Training

LONGER = "supervised, as long"
"""The control: what the student's steps gain on the labels of people alone."""

SMALL_RETINANET = RetinaNet(anchor_scale=2.0, convs=2, channels=64, detections=30, pseudo_threshold=0.3)
"""For pictures of 64 px on a CPU: the paper's parts, narrower. Scores of a detector that was trained so briefly hardly
ever reach the paper's threshold of 0.5."""


def self_training() -> Recipe:
    """Self-training of a detector: 400 labelled pictures, 2,400 without labels; teacher, pseudo labels, student.

    Beside the student stands the control "supervised, as long": from the teacher, as many steps with as many labelled
    pictures, no others.

    Command: tutelage run self-training --out runs/self-training
    Expected: 4 minutes of one busy core; further seeds, `--set seeds=[0,1,2]`, as long each. AP50 of three seeds:
    teacher 33.2, as long 34.0, student 34.5, inside the noise. What self-training gains, and when: docs/claims.md.
    More rounds: --set rounds=2. Fewer labels: --set fractions.playground=0.2. Another detector: --set heads.objects=...
    """
    training = Training(
        steps=600,
        batch=32,
        optimiser="adamw",
        rate=4e-3,
        weight_decay=1e-2,
        warmup=40,
        clip=5.0,
        augment=augment_s1(),
        checkpoint_seconds=20,
    )

    def playground(head: str | None, images: int, first: int) -> Scenes:
        label = None if head is None else "boxes"
        return Scenes(world="playground", label=label, head=head, images=images, size=64, first=first, seed=1)

    student = StudentPart(
        training=training.but(steps=300, batch=64, rate=2e-3),
        self_training=SelfTraining(),
        start="teacher: objects",
    )
    longer = student.training.but(batch=32)
    return Recipe(
        name="self-training",
        heads={"objects": SMALL_RETINANET},
        sources={"playground": playground("objects", 400, 0), "pool": playground(None, 2400, 10_000)},
        held_out={"playground": playground("objects", 300, HELD_OUT)},
        model=Model(
            backbone=Timm(name="resnet18", options={"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256]}),
            pyramid=Pyramid(width=64),
            size=64,
        ),
        teachers={"objects": Trained(training=training)},
        student=student,
        baselines={LONGER: student.but(training=longer, self_training=None, labels="human", sources=("playground",))},
        repeat="everything",
    )
