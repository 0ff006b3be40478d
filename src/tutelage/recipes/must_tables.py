"""The tables of MuST (Ghiasi et al., ICCV 2021, section 4) as recipes, each in three sizes.

`must-table2` runs on the embedded scenes on two cores, `must-table2-large` on scenes at a real size on a GPU, and
`must-table2-paper` on the paper's own datasets with the paper's settings (appendices A and B), below the folder that
`--set data=` names. Rows are the same in all three, but for two things: the epochs of table 6 are longer on scenes, as
its rows say, and figure 5 takes published checkpoints at the paper's size, where it trains its own on scenes.

In scenes, the world "catalogue" stands for ImageNet, "playground" for Objects365, "workshop" for COCO's masks, "halls"
for the depth sets, and "travels" for JFT, with the shape of what shows most as its class. Every seed repeats
everything: teachers, labels, students, fine-tunings.

Command: tutelage run must-table2 --jobs 2 --out runs/must-table2 (and so on; `must-tables` has the rows of all in one)
Time and figures of each, on scenes with `--set seeds=[0] --jobs 1` at 305290c on one of two busy cores, stand in its
docstring; `tutelage plan must-table2` measures the time for your machine. docs/claims.md has `must-tables` (4458d71)
and table 6 with three seeds and intervals. `-large` and `-paper` were never run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from tutelage.data import Folders, Pool
from tutelage.data.policies import RandAugment
from tutelage.data.scenes import Scenes
from tutelage.data.source import Source
from tutelage.recipe import Recipe, StudentPart
from tutelage.recipes.must_paper import POOL_IMAGES, bootstrapped, on_jft, paper, steps_of
from tutelage.recipes.scenes import SMALL_VIEWS, large, small
from tutelage.tasks import Classification
from tutelage.teachers import Trained
from tutelage.training.pretraining import Pretraining
from tutelage.training.simclr import SimCLR, Views
from tutelage.types import Boxes, Field, Label, Mask

L = TypeVar("L", bound=Pretraining)

SIZES: Mapping[str, Callable[[str], Recipe]] = {"": small, "-large": large, "-paper": paper}
"""Ending of a recipe's name to its teachers, sources and downstream sets."""

STRETCH: Mapping[str, float] = {"": 1.8, "-large": 30.0, "-paper": 1.0}
"""Ending of a recipe's name to what the epochs of table 6 are multiplied by: an epoch of the scenes' pools is short."""

# Not tried: SGD's 0.03 at batch 256 (MoCo, He et al. 2020) for batches of 128.
SIMCLR_RATES: Mapping[str, float] = {"-large": 0.015}
"""Ending of a recipe's name to SimCLR's own peak learning rate; the other sizes have the student's."""

POOL_CLASSES = "pool classes"
SUPERVISED = "supervised"
STRONG = "strong checkpoint"
NOISY = "noisy student"
NOISY_CLASSES = "noisy classes"


@dataclass(frozen=True)
class Cast:
    """Who plays which part.

    Attributes:
        base: a recipe without a table's own rows.
        classes, objects, masks, depth: its heads.
        labelled: the source with classes, whose images tables 2 and 3 learn from.
        detected, segmented: the sources with boxes and masks.
        pool: the unlabelled source.
        pool_images: in an epoch of it.
        pooled: the student as it learns from the pool.
        stretch: what the epochs of table 6 are multiplied by.
        contrast: peak learning rate of SimCLR.
        views: what SimCLR compares.
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
    pool_images: int
    pooled: StudentPart
    stretch: float
    contrast: float
    views: Views

    @classmethod
    def of(cls, name: str, size: str) -> Cast:
        """The parts of one size."""
        base = SIZES[size](name + size).but(seeds=(0, 1, 2), repeat="everything", specialists=False)
        base = base.but(student=base.student.but(heads=tuple(base.heads)))  # whatever heads a table adds
        heads = {task.kind: head for head, task in base.heads.items()}
        sources = {part.head: source for source, part in base.sources.items()}
        student, pool = base.student, base.sources[sources[None]]
        assert isinstance(student, StudentPart)
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
            pool_images=pool.images if isinstance(pool, Scenes) else POOL_IMAGES,
            pooled=on_jft(student) if size == "-paper" else student,
            stretch=STRETCH[size],
            contrast=SIMCLR_RATES.get(size, student.training.rate),
            views=Views() if size else SMALL_VIEWS,
        )

    def student(self, sources: Sequence[str] | None) -> StudentPart:
        """The student as it learns from these sources, None being all: the pool may ask for settings of its own."""
        student = self.base.student
        assert isinstance(student, StudentPart)
        return self.pooled if sources is None or self.pool in sources else student

    def supervised(self) -> StudentPart:
        """Supervised pre-training on the labelled source."""
        return StudentPart(training=self.base.student.training, heads=(self.classes,), labels="human")

    def pool_supervised(self) -> StudentPart:
        """Supervised pre-training on the pool's own classes."""
        training = self.pooled.training
        return StudentPart(training=training, heads=(POOL_CLASSES,), labels="human", sources=(self.pool,))

    def must(self, *heads: str, sources: tuple[str, ...] | None = None) -> StudentPart:
        """A student of some heads, human labels where there are any, on some sources or on all."""
        student = self.student(sources)
        weights = {head: weight for head, weight in student.balance.weights.items() if head in heads}
        return student.but(heads=heads, sources=sources, balance=student.balance.but(weights=weights))

    def pseudo(self, *heads: str, source: str) -> StudentPart:
        """A student of some heads that sees pseudo labels only."""
        return self.must(*heads, sources=(source,)).but(labels="pseudo")

    def simclr(self, source: str) -> SimCLR:
        """SimCLR on the images of one source, for as many steps as the student, at a rate of its own."""
        training = self.student((source,)).training
        return SimCLR(training=training.but(rate=self.contrast), sources=(source,), views=self.views)

    def epochs(self, part: L, number: float) -> L:
        """The same for so many of the paper's epochs of the pool, each as many of ours as `stretch` says."""
        return _for(part, steps_of(number * self.stretch, self.pool_images, part.training.batch))

    def named(self, what: str, number: float) -> str:
        """The name of a row that `epochs` made: with the epochs that it truly has."""
        return f"{what}, {number * self.stretch:g} epochs"

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
    return _for(part, round(part.training.steps * factor))


def _for(part: L, steps: int) -> L:
    """The same for so many steps, 2 at least."""
    steps = max(2, steps)
    return part.but(training=part.training.but(steps=steps, warmup=min(part.training.warmup, steps // 2)))


def table2(size: str) -> Recipe:
    """MuST table 2: SimCLR, supervised learning, and MuST, all on the images of the labelled source.

    19 min; top-1 9.5, 18.0, 14.0; depth < 1.25 67.3, 66.3, 70.0 (random weights 7.0; 65.8).
    """
    cast = Cast.of("must-table2", size)
    every = (cast.classes, cast.masks, cast.objects, cast.depth)
    contrast = _longer(cast.simclr(cast.labelled), 800 / 90 if size == "-paper" else 3)
    baselines = {"SimCLR": contrast, SUPERVISED: cast.supervised()}
    return cast.table(baselines, cast.must(*every, sources=(cast.labelled,)), SUPERVISED)


def table3(size: str) -> Recipe:
    """MuST table 3: supervised learning, and what pseudo labels of depth, masks and boxes add to it one by one.

    25 min; top-1 18.0, 17.5, 15.5, 17.0; depth < 1.25 66.3, 69.9, 67.6, 68.8; AP50 8.0, 6.7, 8.9, 10.2.
    """
    cast = Cast.of("must-table3", size)
    every = (cast.classes, cast.depth, cast.masks, cast.objects)
    baselines: dict[str, Pretraining] = {SUPERVISED: cast.supervised()}
    baselines["+ depth"] = cast.must(*every[:2], sources=(cast.labelled,))
    baselines["+ depth, masks"] = cast.must(*every[:3], sources=(cast.labelled,))
    return cast.table(baselines, cast.must(*every, sources=(cast.labelled,)), SUPERVISED)


def table4(size: str) -> Recipe:
    """MuST table 4: students of pseudo labels alone against their teachers, on their own task and in transfer.

    All students have the same number of steps, whatever their images: 90 epochs of ImageNet in the paper.

    34 min; detection AP50: teacher of boxes 16.2, its students 5.8 and 8.3.
    """
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
    """MuST table 5: several tasks from human labels alone, sources drawn equally, and with pseudo labels.

    13 min; top-1 8.5 and 13.5, AP50 9.7 and 9.6, depth < 1.25 69.7 and 70.5.
    """
    cast = Cast.of("must-table5", size)
    heads, sources = (cast.classes, cast.masks, cast.objects), (cast.labelled, cast.segmented, cast.detected)
    together = cast.must(*heads, sources=sources)
    alone = together.but(labels="human", mixture="equal")
    return cast.table({"supervised multi-task": alone}, together, "supervised multi-task")


def table6(size: str) -> Recipe:
    """MuST table 6: more images without labels, and for longer: SimCLR, supervised learning, pseudo labels, both.

    Epochs are of the whole pool: steps x batch = epochs x images. The paper has SimCLR for 1, 2, 5 of them, supervised
    learning for 3, 5, 10, pseudo labels for 2.5, and both for 2 (the last row). The pool of scenes is small (3,000
    images, 20,000 in `-large`): there all of these are 1.8 times as many, or 30 times in `-large`, in the same ratios.
    The quarter of the pool, which the paper has not, takes as many steps as the whole.

    Three seeds, 2 h 3 min: top-1 SimCLR 6.7, 7.0, 9.7, supervised 11.8, 11.7, 14.7, pseudo labels 15.2 (of a quarter
    14.0), both 10.8; random weights 7.5.
    """
    cast = Cast.of("must-table6", size)
    pool, teachers = cast.pool, (cast.classes, cast.masks, cast.objects)
    cast = replace(cast, base=_labelled_pool(cast.base, pool))
    supervised = "supervised on the pool"
    baselines: dict[str, Pretraining] = {}
    for epochs in (1, 2, 5):
        baselines[cast.named("SimCLR", epochs)] = cast.epochs(cast.simclr(pool), epochs)
    for epochs in (3, 5, 10):
        baselines[cast.named(supervised, epochs)] = cast.epochs(cast.pool_supervised(), epochs)
    whole = cast.epochs(cast.pseudo(*teachers, source=pool), 2.5)
    baselines["pseudo labels of a quarter of the pool"] = whole.but(fractions={pool: 0.25})
    baselines[cast.named("pseudo labels", 2.5)] = whole
    both = cast.epochs(cast.must(*teachers, POOL_CLASSES, sources=(pool,)), 2)
    if both.balance.mode == "scaling-rule":  # which needs a teacher or a weight
        both = both.but(balance=both.balance.but(weights={**both.balance.weights, POOL_CLASSES: 1.0}))
    return cast.table(baselines, both, cast.named(supervised, 3))


def _labelled_pool(base: Recipe, pool: str) -> Recipe:
    """The pool with classes of its own, as JFT has them; on scenes the shape of what shows most."""
    source = base.sources[pool]
    if isinstance(source, Scenes):
        labelled: Source = source.but(head=POOL_CLASSES, label="shapes")
    else:
        assert isinstance(source, Pool)
        labelled = Folders(head=POOL_CLASSES, root=source.images)
    heads = {**base.heads, POOL_CLASSES: Classification()}
    return base.but(heads=heads, sources={**base.sources, pool: labelled})


def figure5(size: str) -> Recipe:
    """MuST figure 5: a strong checkpoint, and what MuST adds to it, against ordinary supervised weights.

    At the paper's size: MuST for one epoch of the pool, from the strong weights, as its teachers; beside it the
    published ImageNet and Noisy Student weights. On scenes the run makes the checkpoints itself. In brackets: steps, as
    multiples of a student's (450, or 12,000 in `-large`).
    - "supervised" (1 x): classes of the labelled source.
    - "noisy student" (3 x): fresh, on the labelled source and the pool; its pseudo labels are of a class teacher that
      started fresh as well and saw the labelled source alone; RandAugment is the noise. Dropout and stochastic depth of
      Xie et al. (CVPR 2020) are left out.
    - "strong checkpoint" (3 x): the pool's own classes, from people.
    - the student (1 x, after the 3 x of its start): from the strong checkpoint, as are all four of its teachers, on the
      pool with pseudo labels alone.

    Three seeds, 1 h 45 min: supervised, noisy student, strong checkpoint, student: top-1 14.5, 14.7, 15.0, 23.0; AP50
    6.9, 8.2, 8.4, 13.4; depth < 1.25 66.2, 66.7, 67.7, 71.3.
    """
    cast = Cast.of("must-fig5", size)
    every, base = (cast.classes, cast.masks, cast.objects, cast.depth), cast.base
    if size == "-paper":  # all networks start from the strong weights, as in the paper
        student = cast.epochs(cast.must(*every, sources=(cast.pool,)), 1)
        return cast.table({}, student, "ImageNet").but(**bootstrapped(base))
    base = _labelled_pool(base, cast.pool)
    # A second head of the same classes, so that a second teacher can fill it: one that never saw the pool's classes.
    again = f"{cast.labelled}-noisy"
    base = base.but(
        heads={**base.heads, NOISY_CLASSES: base.heads[cast.classes]},
        sources={**base.sources, again: base.sources[cast.labelled].but(head=NOISY_CLASSES)},
        teachers={**base.teachers, NOISY_CLASSES: base.teachers[cast.classes]},
    )
    cast = replace(cast, base=base)
    noisy = _longer(cast.must(NOISY_CLASSES, sources=(again, cast.pool)), 3)
    policy = RandAugment(translate=100 / 224, cutout=40 / 224)  # the authors' pixels, in pictures of 224
    augment = noisy.training.augment.but(policy=policy)
    baselines: dict[str, Pretraining] = {
        SUPERVISED: cast.supervised(),
        NOISY: noisy.but(training=noisy.training.but(augment=augment)),
        STRONG: _longer(cast.pool_supervised(), 3),
    }
    student = cast.pseudo(*every, source=cast.pool).but(start=STRONG)
    recipe = cast.table(baselines, student, SUPERVISED)
    strong = (head for head, teacher in base.teachers.items() if head != NOISY_CLASSES and isinstance(teacher, Trained))
    return recipe.but(
        teachers={**recipe.teachers, **{head: recipe.teachers[head].but(start=STRONG) for head in strong}}
    )


def tables(size: str) -> Recipe:
    """The rows of MuST's tables 2 to 6 in one run, which makes teachers, labels and common rows once.

    Row by row: table 2 is SimCLR, supervised and MuST on the labelled source; table 3 goes from supervised over
    "+ depth" and "+ depth, masks" to MuST there; table 4 has the teachers and the students of one head; table 5 is
    "supervised multi-task" against "MuST, three sources"; table 6 has the rows that name the pool. The last row
    learns all heads from all images. All have the student's steps, but for "SimCLR" (3 times as many; 800 / 90 in the
    paper) and "SimCLR on the pool" (twice).
    """
    cast = Cast.of("must-tables", size)
    pool, three = cast.pool, (cast.classes, cast.masks, cast.objects)
    cast = replace(cast, base=_labelled_pool(cast.base, pool))
    every = (cast.classes, cast.depth, cast.masks, cast.objects)
    sources = (cast.labelled, cast.segmented, cast.detected)
    together = cast.must(*three, sources=sources)
    rows: dict[str, Pretraining] = {
        "SimCLR": _longer(cast.simclr(cast.labelled), 800 / 90 if size == "-paper" else 3),
        SUPERVISED: cast.supervised(),
        "+ depth": cast.must(*every[:2], sources=(cast.labelled,)),
        "+ depth, masks": cast.must(*every[:3], sources=(cast.labelled,)),
        f"MuST on {cast.labelled}": cast.must(*every, sources=(cast.labelled,)),
    }
    for head in (cast.objects, cast.masks):
        for source in (cast.labelled, pool):
            rows[f"student: {head}, {source}"] = cast.pseudo(head, source=source)
    rows |= {
        "supervised multi-task": together.but(labels="human", mixture="equal"),
        "MuST, three sources": together,
        "SimCLR on the pool": _longer(cast.simclr(pool), 2),
        "supervised on the pool": cast.pool_supervised(),
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
