"""The rows of X-Learner's tables (He et al., ECCV 2022, section 4): their names, and how each is pre-trained.

A `Cast` says which sources play which part; `xlearner_casts` has those of scenes and of the paper's own datasets,
`xlearner_real` that of small real photographs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tutelage.models.backbone import Timm
from tutelage.models.expanded import Reconciliation
from tutelage.recipe import Distillation, Recipe, StudentPart, XLearner
from tutelage.teachers import Trained
from tutelage.training.balance import Balance
from tutelage.training.pretraining import Pretraining
from tutelage.training.schedule import Training
from tutelage.training.simclr import SimCLR, Views

SUPERVISED, SIMCLR = "supervised", "SimCLR"
ONE_TASK = "classification alone"
"""All its sources, seen as often as in an expansion: what a sub-backbone would be that is never joined to another."""
HARD, HARD_LONGER = "hard sharing", "hard sharing, as long"
HARD_LONGEST = "hard sharing, as long as r and ++"
X, PLUS, WHOLE = "X-Learner", "X-Learner++", "X-Learner, not squeezed"
ALONE, FIRST, DEEPER, PRUNED = "X-Learner without reconciliation", "X-Learner_r", "X-Learner_t", "X-Learner_p"
LAST, LEVELS = "X-Learner, squeezed at the last level", "X-Learner, squeezed at three levels"
XAVIER = "X-Learner, first layers as published"
TAUGHT, LONGER_SQUEEZE = "X-Learner, labels in the squeeze", "X-Learner, squeezed twice as long"
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


def squeezed_longer(part: XLearner) -> XLearner:
    """The expansion of the row `X`, squeezed for twice as many steps (ours): what of the gap to the expanded backbone a
    longer squeeze closes."""
    assert isinstance(part.squeeze, Distillation)
    training = part.squeeze.training
    return part.but(start=X, squeeze=part.squeeze.but(training=training.but(steps=2 * training.steps)))
