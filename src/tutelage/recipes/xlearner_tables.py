"""The tables of X-Learner (He et al., ECCV 2022, section 4) as recipes, each in three sizes.

`xlearner-table2` runs on the embedded scenes on two cores, `xlearner-table2-large` on scenes at a real size on a GPU,
and `xlearner-table2-paper` on the paper's own datasets below the folder that `--set data=` names. In scenes,
"catalogue" stands for ImageNet, and other worlds, each with images of its own, for the further sources.

Every training sees as many images of a source at a step as any other, for as many steps. In units of what hard sharing
sees in all, with five sources: "supervised" 0.2; SimCLR and "supervised, as long" 1, all of one source; MuST 2, its
teachers included; an X-Learner 2, half of it the squeeze, 1 where it is not squeezed; "hard sharing, as long" 2; ++ and
"hard sharing, as long as r and ++" 3; p 1.5; r 3, as each task is learned alone and squeezed before the narrow
sub-backbones are expanded. Every seed repeats everything. Backbones of other sizes than the rest: "not squeezed" has
all sub-backbones and layers, p as many weights, of which those of one sub-backbone are not 0, r two narrow ones, and
table 4's larger one; a linear probe reads the features of all of them.

Command: tutelage run xlearner-table2 --jobs 2 --out runs/xlearner-table2 (and so on; `xlearner-tables` has the rows of
all in one, `xlearner-longer` some of them with four times the training). `-large` and `-paper` were never run.

Fine-tuning takes the backbone alone from a row: a squeezed student has no pyramid. The upstream figures of an X-Learner
are of the expanded backbone, whose heads the squeezed student has not. The weights that variant p prunes learn again in
fine-tuning. On small scenes the squeeze matches three levels, not one, and the layers between tasks begin at zero, not
at random: with random ones the probes were 3.6 points lower, inside the noise of three seeds (docs/claims.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from tutelage.data.scenes import Scenes
from tutelage.data.source import Source
from tutelage.models.backbone import Timm
from tutelage.models.expanded import Reconciliation
from tutelage.models.pyramid import Pyramid
from tutelage.models.student import Model
from tutelage.recipe import Distillation, Probe, Pruning, Recipe, StudentPart, XLearner
from tutelage.recipes.scenes import HELD_OUT, SMALL_DETECTION, SMALL_VIEWS, large, small
from tutelage.recipes.self_training import LONGER
from tutelage.recipes.suites import xlearner_scenes_suite, xlearner_suite
from tutelage.recipes.xlearner_paper import heads as paper_heads
from tutelage.recipes.xlearner_paper import held_out, more_sources, segmentation_sources, sources
from tutelage.tasks import Classification, DeepLab, Detection, Segmentation
from tutelage.tasks.task import Task
from tutelage.teachers import Trained
from tutelage.training.balance import Balance
from tutelage.training.pretraining import Pretraining
from tutelage.training.schedule import Training
from tutelage.training.simclr import SimCLR, Views
from tutelage.types import Boxes, Label, Mask

SUPERVISED, SIMCLR = "supervised", "SimCLR"
ONE_TASK = "classification alone"
"""All its sources, seen as often as in an expansion: what a sub-backbone would be that is never joined to another."""
HARD, HARD_LONGER = "hard sharing", "hard sharing, as long"
HARD_LONGEST = "hard sharing, as long as r and ++"
X, PLUS, WHOLE = "X-Learner", "X-Learner++", "X-Learner, not squeezed"
ALONE, FIRST, DEEPER, PRUNED = "X-Learner without reconciliation", "X-Learner_r", "X-Learner_t", "X-Learner_p"
LAST, LEVELS = "X-Learner, squeezed at the last level", "X-Learner, squeezed at three levels"
XAVIER = "X-Learner, first layers as published"
TAUGHT = "X-Learner, labels in the squeeze"
MORE_CLASSES, MORE, SEGMENTATION = "+ cls sources", "+ cls & det sources", "with segmentation"
LARGER = f"{SEGMENTATION}, larger"
MUST = "MuST"
"""Names of rows; `X` is the recipe's student."""


PUBLISHED_LAYERS = Reconciliation()
"""Between sub-backbones: those of the paper."""


@dataclass(frozen=True)
class Cast:
    """Who plays which part.

    Attributes:
        base: heads, all sources, model, transfer; no way of pre-training yet.
        classes, boxes: the sources of the base setting.
        training: of one source's share, everywhere.
        more_classes, more_boxes, masks: those of the extended settings.
        narrow: sub-backbones with 1 / sqrt(2) of the channels, for variant r; None: there is no such row.
        larger: than the model's, for a row of table 4; None: there is no such row.
        views: what SimCLR compares.
        levels: at which an X-Learner is squeezed.
        layers: between its sub-backbones.
    """

    base: Recipe
    classes: tuple[str, ...]
    boxes: tuple[str, ...]
    training: Training
    more_classes: tuple[str, ...] = ()
    more_boxes: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    narrow: Timm | None = None
    larger: Timm | None = None
    views: Views = field(default_factory=Views)
    levels: int = 1
    layers: Reconciliation = PUBLISHED_LAYERS

    @property
    def setting(self) -> tuple[str, ...]:
        """The sources of the base setting."""
        return (*self.classes, *self.boxes)

    def schedule(self, count: int) -> Training:
        """Of a training that sees so many sources at every step."""
        return self.training.but(batch=self.training.batch * count)

    def heads(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Of some sources."""
        return tuple(dict.fromkeys(str(self.base.sources[name].head) for name in names))

    def hard(self, names: tuple[str, ...]) -> StudentPart:
        """One backbone for all: equation 1 without an expansion; with one source, supervised pre-training."""
        heads = self.heads(names)
        share = 1 / len(names)
        return StudentPart(
            training=self.schedule(len(names)),
            heads=heads,
            sources=names,
            labels="human",
            mixture="equal",
            balance=Balance(mode="fixed", weights={head: share for head in heads}),
        )

    def longer(self, name: str) -> StudentPart:
        """Supervised pre-training on one source, of as many images as hard sharing sees."""
        part = self.hard((name,))
        return part.but(training=self.schedule(len(self.setting)))

    def hard_longer(self, names: tuple[str, ...] | None = None, times: int = 2) -> StudentPart:
        """Hard sharing for more steps, of the base setting unless said otherwise: twice as many images are as many as
        expansion and squeeze see, three times as many what variants r and ++ see."""
        part = self.hard(names or self.setting)
        training = part.training
        return part.but(training=training.but(steps=times * training.steps, warmup=times * training.warmup))

    def simclr(self, name: str) -> SimCLR:
        """On the images of one source, as many as hard sharing sees."""
        return SimCLR(training=self.schedule(len(self.setting)), sources=(name,), views=self.views)

    def x_learner(
        self,
        classes: tuple[str, ...] | None = None,
        boxes: tuple[str, ...] | None = None,
        masks: tuple[str, ...] = (),
    ) -> XLearner:
        """The default form, of the base setting unless said otherwise; a third of its steps are alone."""
        tasks = {"classification": classes or self.classes, "detection": boxes or self.boxes}
        if masks:
            tasks["segmentation"] = masks
        seen = tuple(name for names in tasks.values() for name in names)
        training = self.schedule(len(seen))
        return XLearner(
            training=training,
            tasks=tasks,
            reconciliation=self.layers,
            squeeze=Distillation(training=training, sources=seen, levels=self.levels),
        )

    def plus(self, part: XLearner) -> XLearner:
        """X-Learner++: a specialist a source first, which sees what its source's share in the expansion is; the hints
        are about the levels of the squeeze."""
        return part.but(specialists=self.training, hint_levels=self.levels)

    def table(self, rows: Mapping[str, Pretraining], student: XLearner, first_row: str) -> Recipe:
        """The recipe of a table; sources that nobody looks at are left out. MuST's teachers are there where a row needs
        them, each trained on its source for as many steps and images as the source has anywhere."""
        seen = {name for part in (student, *rows.values()) for name in _sources(part)}
        known = {name: part for name, part in self.base.sources.items() if name in seen}
        heads = {part.head for part in known.values()}
        taught = any(isinstance(part, StudentPart) and part.labels == "all" for part in rows.values())
        return self.base.but(
            heads={head: task for head, task in self.base.heads.items() if head in heads},
            sources=known,
            held_out={name: part for name, part in self.base.held_out.items() if part.head in heads},
            teachers={head: Trained(training=self.training) for head in self.heads(self.setting)} if taught else {},
            specialists=False,
            baselines=dict(rows),
            student=student,
            first_row=first_row,
        )


def _sources(part: Pretraining) -> tuple[str, ...]:
    """The sources that a pre-training names."""
    if isinstance(part, XLearner):
        return tuple(name for names in (part.tasks or {}).values() for name in names)
    assert isinstance(part, StudentPart | SimCLR | Distillation)
    return part.sources or ()


def _on_scenes(
    name: str, base: Recipe, detection: Detection, images: int, training: Training, narrow: Timm, larger: Timm
) -> Cast:
    """Five classification, three detection and two segmentation sources, each with images of its own."""
    worlds: dict[str, tuple[str, str, Task]] = {
        "catalogue": ("catalogue", "classes", Classification()),
        "gallery": ("gallery", "classes", Classification()),
        "landmarks": ("landmarks", "classes", Classification()),
        "playground": ("playground", "boxes", detection),
        "halls": ("halls", "boxes", detection),
        "bench": ("bench", "classes", Classification()),
        "foyer": ("foyer", "classes", Classification()),
        "indoor boxes": ("indoors", "boxes", detection),
        "workshop": ("workshop", "mask", Segmentation()),
        "outdoor masks": ("outdoors", "mask", Segmentation()),
    }
    known: dict[str, Source] = {}
    held_out: dict[str, Source] = {}
    for number, (source, (world, label, _)) in enumerate(worlds.items()):
        part = Scenes(world=world, label=label, head=source, images=images, size=base.model.size, seed=10 + number)
        known[source], held_out[source] = part, part.but(images=images // 8, first=HELD_OUT)
    tested = base.transfer["depth"].train
    assert isinstance(tested, Scenes)
    suite = xlearner_scenes_suite(base.model.size, tested.images, detection)
    recipe = Recipe(
        name=name,
        heads={source: task for source, (_, _, task) in worlds.items()},
        sources=known,
        held_out=held_out,
        model=base.model,
        transfer={column: part.but(finetuning=None) for column, part in suite.items()},
        finetuning=base.finetuning.but(pyramid="fresh"),
        # A fifth of the paper's grid, over the same range, and one beyond: so few images want strong penalties.
        probe=Probe(l2=(1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)),
        student=StudentPart(labels="human"),
        seeds=(0, 1, 2),
        repeat="everything",
    )
    names = tuple(worlds)
    return Cast(recipe, names[:3], names[3:5], training, names[5:7], names[7:8], names[8:], narrow, larger)


def _small(name: str) -> Cast:
    """64 px scenes, a small ResNet: two cores."""
    base = small(name)
    training = base.student.training.but(batch=16, steps=600, warmup=60)
    narrow = Timm(name="resnet18", options={"layers": [1, 1, 1, 1], "channels": [22, 44, 90, 180]})
    larger = Timm(name="resnet18", options={"layers": [2, 2, 2, 2], "channels": [45, 90, 180, 360]})
    # For MuST: detectors so young hardly ever say 0.5.
    cast = _on_scenes(name, base, SMALL_DETECTION.but(pseudo_threshold=0.2), 1200, training, narrow, larger)
    tuning = cast.base.finetuning
    # A quarter of the steps says little about boxes and depth: of rates compared so early, a high one often leads that
    # ends behind. The highest hardly led even then, and is left out.
    whole = tuning.but(rates=(5e-4, 2e-3, 8e-3), halving=None)
    # From a fresh pyramid masks learn late: after the 400 steps of other columns some rows say one class everywhere.
    masks = cast.base.transfer["segmentation"].but(finetuning=tuning.but(steps=(1200,)))
    cast = replace(cast, base=cast.base.but(finetuning=whole, transfer={**cast.base.transfer, "segmentation": masks}))
    # The last map of 64 px has 2 x 2 cells, too few to learn a backbone from: the row `LAST` shows what they give. In
    # so few steps nothing mends the shock of random layers between tasks: the row `XAVIER` shows what these cost.
    return replace(cast, views=SMALL_VIEWS, levels=3, layers=Reconciliation(initial="zero"))


def _large(name: str) -> Cast:
    """128 px scenes, a ResNet-50, the schedule of the paper: a GPU."""
    base = large(name)
    detection = base.heads["objects"]
    assert isinstance(detection, Detection)
    # Ours: a warm-up, and a bound for the gradient, since all weights are random here.
    training = paper_schedule(base.student.training.steps, 32).but(workers=8, warmup=500, clip=10.0)
    return _on_scenes(name, base, detection, 10_000, training, HALF_RESNET50, LARGER_RESNET)


def _paper(name: str) -> Cast:
    """The paper's sources (its table 1) and downstream sets, ResNet-50; what it leaves out is said in `xlearner_paper`.

    Not measured: it takes the paper's datasets.
    """
    base, more, masks = sources(), more_sources(), segmentation_sources()
    kinds, known = paper_heads(), {**base, **more, **masks}
    heads = {str(part.head): kinds[str(part.head)] for part in known.values()}

    def of(group: Mapping[str, Source], kind: type) -> tuple[str, ...]:
        return tuple(source for source, part in group.items() if heads[str(part.head)].kind is kind)

    recipe = Recipe(
        name=name,
        heads=heads,
        sources=known,
        held_out=held_out(names=known),
        model=Model(backbone=Timm(name="resnet50"), pyramid=Pyramid(width=256), size=640),
        transfer=xlearner_suite(),
        student=StudentPart(labels="human"),
        seeds=(0, 1, 2),
        repeat="everything",
    )
    training = paper_schedule(PAPER_STEPS, 64)
    return Cast(
        recipe,
        of(base, Label),
        of(base, Boxes),
        training,
        of(more, Label),
        of(more, Boxes),
        of(masks, Mask),
        HALF_RESNET50,
        LARGER_RESNET,
    )


HALF_RESNET50 = Timm(name="resnet50", options={"channels": [45, 90, 181, 362]})
"""1 / sqrt(2) of ResNet-50's channels, but for the stem's: half of its weights (section 4.4, observation 3)."""

LARGER_RESNET = Timm(name="resnet152")
"""Of table 4."""

PAPER_STEPS = 200_000
"""Of every pre-training at full size; the paper does not say."""


def paper_schedule(steps: int, batch: int) -> Training:
    """SGD 0.9, weight decay 1e-4, rate 0.2, halved at 50%, then by a fifth and a tenth at 70 and 90% (section 4.1)."""
    return Training(
        steps=steps,
        batch=batch,
        rate=0.2,
        momentum=0.9,
        weight_decay=1e-4,
        clip=None,
        schedule="steps",
        workers=16,
    )


SIZES: Mapping[str, Callable[[str], Cast]] = {"": _small, "-large": _large, "-paper": _paper}
"""Ending of a recipe's name to its sources, model and downstream sets."""


def _cast(name: str, size: str) -> Cast:
    return SIZES[size](name + size)


def table2(size: str) -> Recipe:
    """X-Learner table 2: supervised, SimCLR, hard sharing, X-Learner, ++, and with segmentation as a third task.

    Rows that are trained as long as an X-Learner's expansion and squeeze together are ours.
    """
    cast = _cast("xlearner-table2", size)
    plain = cast.x_learner()
    rows = {
        SUPERVISED: cast.hard(cast.classes[:1]),
        LONGER: cast.longer(cast.classes[0]),
        SIMCLR: cast.simclr(cast.classes[0]),
        HARD: cast.hard(cast.setting),
        HARD_LONGER: cast.hard_longer(),
        f"{HARD_LONGER}, {SEGMENTATION}": cast.hard_longer((*cast.setting, *cast.masks)),
        PLUS: cast.plus(plain),
        f"{X}, {SEGMENTATION}": cast.x_learner(masks=cast.masks),
    }
    return cast.table(rows, plain, SUPERVISED)


def table3(size: str) -> Recipe:
    """X-Learner table 3: further sources, for hard sharing (of as many images, which is ours) and for X-Learner."""
    cast = _cast("xlearner-table3", size)
    classes, boxes = (*cast.classes, *cast.more_classes), (*cast.boxes, *cast.more_boxes)
    rows = {
        HARD_LONGER: cast.hard_longer(),
        f"{HARD_LONGER}, {MORE_CLASSES}": cast.hard_longer((*classes, *cast.boxes)),
        f"{HARD_LONGER}, {MORE}": cast.hard_longer((*classes, *boxes)),
        f"{X}, {MORE_CLASSES}": cast.x_learner(classes),
        f"{X}, {MORE}": cast.x_learner(classes, boxes),
    }
    return cast.table(rows, cast.x_learner(), HARD_LONGER)


def table4(size: str) -> Recipe:
    """X-Learner table 4: X-Learner and ++ against MuST, of one backbone; and X-Learner with segmentation as a third
    task and a larger backbone, before the squeeze and after it.

    The paper's MuST is a published one, of the larger backbone and with teachers of masks and depth; here it learns
    what X-Learner does, from teachers of classes and boxes. The downstream sets are those of the other tables.
    """
    cast = _cast("xlearner-table4", size)
    plain, third = cast.x_learner(), cast.x_learner(masks=cast.masks)
    assert isinstance(third.squeeze, Distillation)
    assert cast.larger is not None
    large = third.but(
        backbones={task: cast.larger for task in third.tasks or {}}, squeeze=third.squeeze.but(backbone=cast.larger)
    )
    return cast.table({MUST: must(cast), PLUS: cast.plus(plain), f"{X}, {LARGER}": large}, plain, MUST)


def table5(size: str) -> Recipe:
    """X-Learner table 5: with and without reconciliation layers."""
    cast = _cast("xlearner-table5", size)
    plain = cast.x_learner()
    return cast.table({ALONE: alone(plain), **_as_published(cast, plain)}, plain, ALONE)


def table6(size: str) -> Recipe:
    """X-Learner table 6: the variants of section 3.4."""
    cast = _cast("xlearner-table6", size)
    plain = cast.x_learner()
    rows = {
        HARD: cast.hard(cast.setting),
        HARD_LONGER: cast.hard_longer(),
        HARD_LONGEST: cast.hard_longer(times=3),
        **_variants(cast, plain),
        PLUS: cast.plus(plain),
    }
    return _undilated(cast.table(rows, plain, HARD))


def tables(size: str) -> Recipe:
    """The rows of X-Learner's tables 2 to 6 in one run, which makes common rows once; further sources come at once."""
    cast = _cast("xlearner-tables", size)
    plain, classes = cast.x_learner(), (*cast.classes, *cast.more_classes)
    boxes = (*cast.boxes, *cast.more_boxes)
    rows: dict[str, Pretraining] = {
        SUPERVISED: cast.hard(cast.classes[:1]),
        LONGER: cast.longer(cast.classes[0]),
        f"{LONGER}, {cast.boxes[0]}": cast.longer(cast.boxes[0]),
        SIMCLR: cast.simclr(cast.classes[0]),
        ONE_TASK: cast.hard(cast.classes),
        HARD: cast.hard(cast.setting),
        HARD_LONGER: cast.hard_longer(),
        HARD_LONGEST: cast.hard_longer(times=3),
        f"{HARD_LONGER}, {MORE}": cast.hard_longer((*classes, *boxes)),
        f"{HARD_LONGER}, {SEGMENTATION}": cast.hard_longer((*cast.setting, *cast.masks)),
        MUST: must(cast),
        f"{X}, {MORE}": cast.x_learner(classes, boxes),
        f"{X}, {SEGMENTATION}": cast.x_learner(masks=cast.masks),
        ALONE: alone(plain),
        **_as_published(cast, plain),
        **_variants(cast, plain),
        TAUGHT: taught(cast, plain),
        PLUS: cast.plus(plain),
    }
    return _undilated(cast.table(rows, plain, LONGER))


def _undilated(recipe: Recipe) -> Recipe:
    """Masks by the head on the pyramid: an expanded backbone (variants r and p) cannot be dilated for DeepLabv3."""
    changed = {
        name: part.but(head=Segmentation()) if isinstance(part.head, DeepLab) else part
        for name, part in recipe.transfer.items()
    }
    return recipe.but(transfer=changed)


def longer() -> Recipe:
    """The rows that X-Learner's main claims are about, on small scenes, with four times the training of the other
    recipes on these: their figures rise with every further step, so that a row that is trained twice is behind."""
    cast = _small("xlearner-longer")
    cast = replace(cast, training=cast.training.but(steps=4 * cast.training.steps))
    plain = cast.x_learner()
    rows: dict[str, Pretraining] = {
        LONGER: cast.longer(cast.classes[0]),
        HARD: cast.hard(cast.setting),
        HARD_LONGER: cast.hard_longer(),
        ALONE: alone(plain),
        **_as_published(cast, plain),
        WHOLE: plain.but(start=X, squeeze=None),
        TAUGHT: taught(cast, plain),
    }
    return _undilated(cast.table(rows, plain, HARD_LONGER))


def must(cast: Cast) -> StudentPart:
    """MuST's student on the base setting: every image with a label of every head, a person's or a teacher's."""
    return cast.hard(cast.setting).but(labels="all", mixture="uniform")


def alone(part: XLearner) -> XLearner:
    """Without reconciliation layers; all else stays, the weights of the losses before and after tau included."""
    return part.but(reconciliation=None)


def taught(cast: Cast, part: XLearner) -> XLearner:
    """People's labels teach beside the features when the expansion of the row `X` is squeezed (ours)."""
    assert isinstance(part.squeeze, Distillation)
    return part.but(start=X, squeeze=part.squeeze.but(labels="human", heads=cast.heads(cast.setting)))


def _as_published(cast: Cast, plain: XLearner) -> dict[str, XLearner]:
    """A row with the published first weights between tasks, where the cast has others."""
    return {} if cast.layers == PUBLISHED_LAYERS else {XAVIER: plain.but(reconciliation=PUBLISHED_LAYERS)}


def _variants(cast: Cast, plain: XLearner) -> dict[str, Pretraining]:
    """r, t and p; and (ours) the expanded backbone as it is, and a squeeze at other levels. The last three have the
    expansion of the row `X`."""
    assert isinstance(plain.squeeze, Distillation)
    assert cast.narrow is not None
    half = plain.squeeze.training
    # A tenth of the rate, as is usual after pruning (Han et al., NeurIPS 2015).
    half = half.but(steps=half.steps // 2, warmup=half.warmup // 2, rate=half.rate / 10)
    return {
        FIRST: plain.but(narrow={task: cast.narrow for task in plain.tasks or {}}),
        DEEPER: plain.but(reconciliation=cast.layers.but(direction="shallower")),
        PRUNED: plain.but(start=X, squeeze=Pruning(training=half)),
        WHOLE: plain.but(start=X, squeeze=None),
        LEVELS if cast.levels == 1 else LAST: plain.but(
            start=X, squeeze=plain.squeeze.but(levels=3 if cast.levels == 1 else 1)
        ),
    }


_MADE: Mapping[str, Callable[[str], Recipe]] = {
    "xlearner-table2": table2,
    "xlearner-table3": table3,
    "xlearner-table4": table4,
    "xlearner-table5": table5,
    "xlearner-table6": table6,
    "xlearner-tables": tables,
}
TABLES: Mapping[str, Callable[[], Recipe]] = {
    **{f"{name}{size}": partial(make, size) for name, make in _MADE.items() for size in SIZES},
    "xlearner-longer": longer,
}
"""All of them by name."""
