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
from dataclasses import replace
from functools import partial

from tutelage.recipe import Distillation, Pruning, Recipe, XLearner
from tutelage.recipes.self_training import LONGER
from tutelage.recipes.xlearner_casts import SIZES, small_scenes
from tutelage.recipes.xlearner_rows import (
    ALONE,
    DEEPER,
    FIRST,
    HARD,
    HARD_LONGER,
    HARD_LONGEST,
    LARGER,
    LAST,
    LEVELS,
    MORE,
    MORE_CLASSES,
    MUST,
    ONE_TASK,
    PLUS,
    PRUNED,
    PUBLISHED_LAYERS,
    SEGMENTATION,
    SIMCLR,
    SUPERVISED,
    TAUGHT,
    WHOLE,
    XAVIER,
    Cast,
    X,
    alone,
    must,
    taught,
)
from tutelage.tasks import DeepLab, Segmentation
from tutelage.training.pretraining import Pretraining


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
    cast = small_scenes("xlearner-longer")
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
