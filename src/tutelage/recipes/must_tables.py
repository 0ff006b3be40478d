"""The tables of MuST (Ghiasi et al., ICCV 2021, section 4) as recipes, each in three sizes.

`must-table2` runs on the embedded scenes on two cores, `must-table2-large` on scenes at a real size on a GPU, and
`must-table2-paper` on the paper's own datasets with the paper's settings (appendices A and B), below the folder that
`--set data=` names. Rows and words are the same in all three.

In scenes, the world "catalogue" stands for ImageNet, "playground" for Objects365, "workshop" for COCO's masks, "halls"
for the depth sets, and "travels" for JFT. Every seed repeats everything: teachers, labels, students, fine-tunings.

Command: tutelage run must-table2 --jobs 2 --out runs/must-table2 (and so on; `must-tables` has the rows of all in one)
Time: `tutelage plan must-table2` measures it for your machine; `must-tables` took a few hours of two busy cores.
Measured: `must-tables` on scenes, three seeds (docs/claims.md): normals < 11.25 deg 13.0 supervised, 16.5 MuST on the
same images, 18.1 MuST on all; the single tables to their reports only; `-large` and `-paper` not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from tutelage.data import Folders, Pool
from tutelage.data.scenes import Scenes
from tutelage.data.source import Source
from tutelage.recipe import Recipe, StudentPart
from tutelage.recipes.must_paper import bootstrapped, paper
from tutelage.recipes.scenes import large, small
from tutelage.tasks import Classification
from tutelage.teachers import Trained
from tutelage.training.pretraining import Pretraining
from tutelage.training.simclr import SimCLR
from tutelage.types import Boxes, Field, Label, Mask

L = TypeVar("L", bound=Pretraining)

SIZES: Mapping[str, Callable[[str], Recipe]] = {"": small, "-large": large, "-paper": paper}
"""Ending of a recipe's name to its teachers, sources and downstream sets."""

POOL_CLASSES = "pool classes"
SUPERVISED = "supervised"
STRONG = "strong checkpoint"


@dataclass(frozen=True)
class Cast:
    """Who plays which part.

    Attributes:
        base: a recipe without a table's own rows.
        classes, objects, masks, depth: its heads.
        labelled: the source with classes, whose images tables 2 and 3 learn from.
        detected, segmented: the sources with boxes and masks.
        pool: the unlabelled source.
    """

    base: Recipe
    classes: str
    objects: str
    masks: str
    depth: str
    labelled: str
    detected: str
    segmented: str
    pool: str

    @classmethod
    def of(cls, name: str, size: str) -> Cast:
        """The parts of one size."""
        base = SIZES[size](name + size).but(seeds=(0, 1, 2), repeat="everything", specialists=False)
        base = base.but(student=base.student.but(heads=tuple(base.heads)))  # whatever heads a table adds
        heads = {task.kind: head for head, task in base.heads.items()}
        sources = {part.head: source for source, part in base.sources.items()}
        return cls(
            base,
            classes=heads[Label],
            objects=heads[Boxes],
            masks=heads[Mask],
            depth=heads[Field],
            labelled=sources[heads[Label]],
            detected=sources[heads[Boxes]],
            segmented=sources[heads[Mask]],
            pool=sources[None],
        )

    def supervised(self, factor: float = 1.0) -> StudentPart:
        """Supervised pre-training on the labelled source, for so many times the student's steps."""
        part = StudentPart(training=self.base.student.training, heads=(self.classes,), labels="human")
        return _longer(part, factor)

    def must(self, *heads: str, source: str | None = None) -> StudentPart:
        """A student of some heads, human labels where there are any, on one source or on all."""
        student = self.base.student
        assert isinstance(student, StudentPart)
        return student.but(heads=heads, sources=None if source is None else (source,))

    def pseudo(self, *heads: str, source: str) -> StudentPart:
        """A student of some heads that sees pseudo labels only."""
        return self.must(*heads, source=source).but(labels="pseudo")

    def simclr(self, source: str, factor: float) -> SimCLR:
        """SimCLR on the images of one source, for so many times the student's steps."""
        return _longer(SimCLR(training=self.base.student.training, sources=(source,)), factor)

    def table(self, baselines: Mapping[str, Pretraining], student: StudentPart, first_row: str) -> Recipe:
        """The recipe of a table; sources that nobody looks at are left out, and the teachers that nobody asks."""
        learners = [student, *(part for part in baselines.values() if isinstance(part, StudentPart))]
        taught = {head for part in learners if part.labels != "human" for head in part.heads or self.base.heads}
        teachers = {head: part for head, part in self.base.teachers.items() if head in taught}
        looked_at = {name for part in (student, *baselines.values()) for name in getattr(part, "sources", None) or ()}
        asked = {*teachers, *(head for part in learners for head in part.heads or self.base.heads)}
        sources = {n: s for n, s in self.base.sources.items() if n in looked_at or s.head in asked}
        heads = {s.head for s in sources.values()} | asked
        return self.base.but(
            heads={head: task for head, task in self.base.heads.items() if head in heads},
            teachers=teachers,
            sources=sources,
            held_out={name: part for name, part in self.base.held_out.items() if part.head in asked},
            baselines=dict(baselines),
            student=student,
            first_row=first_row,
        )


def _longer(part: L, factor: float) -> L:
    """The same for so many times its steps."""
    steps = max(2, round(part.training.steps * factor))
    return part.but(training=part.training.but(steps=steps, warmup=min(part.training.warmup, steps // 2)))


def table2(size: str) -> Recipe:
    """MuST table 2: SimCLR, supervised learning, and MuST, all on the images of the labelled source."""
    cast = Cast.of("must-table2", size)
    every = (cast.classes, cast.masks, cast.objects, cast.depth)
    contrast = cast.simclr(cast.labelled, 800 / 90 if size == "-paper" else 3)
    baselines = {"SimCLR": contrast, SUPERVISED: cast.supervised()}
    return cast.table(baselines, cast.must(*every, source=cast.labelled), SUPERVISED)


def table3(size: str) -> Recipe:
    """MuST table 3: supervised learning, and what pseudo labels of depth, masks and boxes add to it one by one."""
    cast = Cast.of("must-table3", size)
    every = (cast.classes, cast.depth, cast.masks, cast.objects)
    baselines: dict[str, Pretraining] = {SUPERVISED: cast.supervised()}
    baselines["+ depth"] = cast.must(*every[:2], source=cast.labelled)
    baselines["+ depth, masks"] = cast.must(*every[:3], source=cast.labelled)
    return cast.table(baselines, cast.must(*every, source=cast.labelled), SUPERVISED)


def table4(size: str) -> Recipe:
    """MuST table 4: students of pseudo labels alone against their teachers, on their own task and in transfer."""
    cast = Cast.of("must-table4", size)
    heads = (cast.objects, cast.masks)
    baselines = {
        f"student: {head}, {source}": cast.pseudo(head, source=source)
        for head in heads
        for source in (cast.labelled, cast.pool)
    }
    both = cast.pseudo(*heads, source=cast.pool)
    recipe = cast.table(baselines, both, f"teacher: {cast.objects}")
    return recipe.but(specialists=True)


def table5(size: str) -> Recipe:
    """MuST table 5: several tasks from human labels alone, sources drawn equally, and with pseudo labels."""
    cast = Cast.of("must-table5", size)
    heads, sources = (cast.classes, cast.masks, cast.objects), (cast.labelled, cast.segmented, cast.detected)
    alone = cast.base.student.but(heads=heads, labels="human", mixture="equal")
    together = cast.must(*heads).but(sources=sources)
    return cast.table({"supervised multi-task": alone}, together, "supervised multi-task")


def table6(size: str) -> Recipe:
    """MuST table 6: more images without labels, and for longer: SimCLR, supervised learning, pseudo labels, both."""
    cast = Cast.of("must-table6", size)
    pool, teachers = cast.pool, (cast.classes, cast.masks, cast.objects)
    cast = replace(cast, base=_labelled_pool(cast.base, pool))
    baselines: dict[str, Pretraining] = {}
    for epochs in (1, 2, 5):
        baselines[f"SimCLR, {epochs} epochs"] = cast.simclr(pool, epochs / 2.5)
    for epochs in (3, 5, 10):
        part = StudentPart(training=cast.base.student.training, heads=(POOL_CLASSES,), labels="human", sources=(pool,))
        baselines[f"supervised on the pool, {epochs} epochs"] = _longer(part, epochs / 2.5)
    few = cast.pseudo(*teachers, source=pool).but(fractions={pool: 0.25})
    baselines["pseudo labels of a quarter of the pool"] = few
    baselines["pseudo labels, 2.5 epochs"] = cast.pseudo(*teachers, source=pool)
    both = _longer(cast.must(*teachers, POOL_CLASSES, source=pool), 2 / 2.5)
    if both.balance.mode == "scaling-rule":  # which needs a teacher or a weight
        both = both.but(balance=both.balance.but(weights={**both.balance.weights, POOL_CLASSES: 1.0}))
    return cast.table(baselines, both, "supervised on the pool, 3 epochs")


def _labelled_pool(base: Recipe, pool: str) -> Recipe:
    """The pool with classes of its own, as JFT has them."""
    source = base.sources[pool]
    if isinstance(source, Scenes):
        labelled: Source = source.but(head=POOL_CLASSES, label="classes")
    else:
        assert isinstance(source, Pool)
        labelled = Folders(head=POOL_CLASSES, root=source.images)
    heads = {**base.heads, POOL_CLASSES: Classification()}
    return base.but(heads=heads, sources={**base.sources, pool: labelled})


def figure5(size: str) -> Recipe:
    """MuST figure 5: a strong checkpoint, and what MuST adds to it, against ordinary supervised weights."""
    cast = Cast.of("must-fig5", size)
    every, base = (cast.classes, cast.masks, cast.objects, cast.depth), cast.base
    if size == "-paper":  # all networks start from the strong weights, as in the paper
        return cast.table({}, cast.must(*every, source=cast.pool), "ImageNet").but(**bootstrapped(base))
    strong = StudentPart(training=base.student.training, heads=(POOL_CLASSES,), labels="human", sources=(cast.pool,))
    base = _labelled_pool(base, cast.pool)
    teachers = {h: t.but(start=STRONG) if isinstance(t, Trained) else t for h, t in base.teachers.items()}
    cast = replace(cast, base=base.but(teachers=teachers))
    noisy = cast.must(cast.classes).but(start=SUPERVISED)
    baselines: dict[str, Pretraining] = {SUPERVISED: cast.supervised(), "noisy student": noisy}
    baselines[STRONG] = _longer(strong, 3)
    student = cast.pseudo(*every, source=cast.pool).but(start=STRONG)
    return cast.table(baselines, student, SUPERVISED)


def tables(size: str) -> Recipe:
    """The rows of MuST's tables 2 to 6 in one run, which makes teachers, labels and common rows once.

    Row by row: table 2 is SimCLR, supervised and MuST on the labelled source; table 3 goes from supervised over
    "+ depth" and "+ depth, masks" to MuST there; table 4 has the teachers and the students of one head; table 5 is
    "supervised multi-task" against "MuST, three sources"; table 6 has the rows that name the pool. The last row
    learns all heads from all images.
    """
    cast = Cast.of("must-tables", size)
    pool, three = cast.pool, (cast.classes, cast.masks, cast.objects)
    cast = replace(cast, base=_labelled_pool(cast.base, pool))
    every = (cast.classes, cast.depth, cast.masks, cast.objects)
    sources = (cast.labelled, cast.segmented, cast.detected)
    training = cast.base.student.training
    pool_supervised = StudentPart(training=training, heads=(POOL_CLASSES,), labels="human", sources=(pool,))
    rows: dict[str, Pretraining] = {
        "SimCLR": cast.simclr(cast.labelled, 800 / 90 if size == "-paper" else 3),
        SUPERVISED: cast.supervised(),
        "+ depth": cast.must(*every[:2], source=cast.labelled),
        "+ depth, masks": cast.must(*every[:3], source=cast.labelled),
        f"MuST on {cast.labelled}": cast.must(*every, source=cast.labelled),
    }
    for head in (cast.objects, cast.masks):
        for source in (cast.labelled, pool):
            rows[f"student: {head}, {source}"] = cast.pseudo(head, source=source)
    rows |= {
        "supervised multi-task": cast.base.student.but(heads=three, labels="human", mixture="equal"),
        "MuST, three sources": cast.must(*three).but(sources=sources),
        "SimCLR on the pool": cast.simclr(pool, 2),
        "supervised on the pool": pool_supervised,
        "pseudo labels of a quarter of the pool": cast.pseudo(*three, source=pool).but(fractions={pool: 0.25}),
        "pseudo labels of the pool": cast.pseudo(*three, source=pool),
    }
    recipe = cast.table(rows, cast.must(*every), SUPERVISED)
    return recipe.but(specialists=True)


_MADE: Mapping[str, Callable[[str], Recipe]] = {
    "must-table2": table2,
    "must-table3": table3,
    "must-table4": table4,
    "must-table5": table5,
    "must-table6": table6,
    "must-fig5": figure5,
    "must-tables": tables,
}
TABLES: Mapping[str, Callable[[], Recipe]] = {
    f"{name}{size}": partial(make, size) for name, make in _MADE.items() for size in SIZES
}
"""All of them by name."""
