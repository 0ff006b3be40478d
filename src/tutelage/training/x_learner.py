"""X-Learner (He et al., ECCV 2022) as a typed value: expansion, squeeze, and the variants of its section 3.4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from tutelage.models.backbone import AnyBackbone
from tutelage.models.expanded import Reconciliation, check_task_name
from tutelage.part import Part
from tutelage.training.pretraining import Pretraining
from tutelage.training.schedule import Training

_PUBLISHED: dict[str, Any] = {"rate": 0.2, "weight_decay": 1e-4, "clip": None, "schedule": "steps"}
PUBLISHED = Training(**_PUBLISHED)
"""SGD with momentum 0.9, weight decay 1e-4, rate 0.2 falling in steps (section 4.1); batch and length are not in the
paper."""


def _as_published(value: Any) -> Any:
    """The text form of a training, with the published values where it has none."""
    return {**_PUBLISHED, **value} if isinstance(value, Mapping) else value


Published = Annotated[Training, BeforeValidator(_as_published)]
"""A training whose text form is that of `PUBLISHED` where it says nothing else."""

_AFTER_PRUNING = 10
"""By what the rate is divided, as is usual after pruning (Han et al., NeurIPS 2015)."""


class Distillation(Pretraining):
    """A student of single size learns the features of one or several teachers (section 3.3, equations 3 and 4).

    On its own it is feature distillation from foreign backbones; as the squeeze of an X-Learner, the expanded backbone
    gives one hint a task.
    """

    title: ClassVar[str] = "distilled student"
    kind: Literal["distillation"] = "distillation"
    training: Published = PUBLISHED
    """As the squeeze of an X-Learner, what is not said here is that of its expansion."""
    levels: int = Field(1, ge=1)
    """How many of the deepest maps are matched, of a teacher with fewer beside one with so many, all; the paper matches
    the last."""
    sources: tuple[str, ...] | None = None
    """The sources whose images are looked at, labelled or not; None: all."""
    fractions: dict[str, float] = {}
    """Source name to the share of its labels (of a pool: of its images) that takes part, above 0."""
    labels: Literal["none", "human", "all"] = "none"
    """Whether labels teach beside the features (ours): people's, or pseudo labels as well. Each loss counts 1."""
    heads: tuple[str, ...] | None = None
    """The heads that are learned from labels; None: all."""
    backbone: AnyBackbone | None = None
    """What is squeezed into, where it is not the backbone of the recipe's model (ours): a smaller or a larger one."""
    teachers: dict[str, AnyBackbone] = {}
    """Foreign teachers of features by name (ours): backbones with their weights; each has its guidance layers."""

    @property
    def of_another_form(self) -> bool:
        return self.backbone is not None

    @model_validator(mode="after")
    def _check_heads(self) -> Distillation:
        if self.heads is not None and self.labels == "none":
            raise ValueError("heads: without `labels` no head is learned; take `labels: human`, or leave them out")
        return self

    @model_validator(mode="after")
    def _check_teachers(self) -> Distillation:
        for name, teacher in self.teachers.items():
            if not teacher.pretrained:
                raise ValueError(
                    f"teachers.{name}: a teacher of features needs weights, and it has none: with random ones there is "
                    "nothing to learn from it; name a file of weights, or the library's own"
                )
        return self


class Pruning(Part):
    """The expanded backbone itself, without its smallest weights (variant p), trained on with the rest."""

    kind: Literal["pruning"] = "pruning"
    training: Training = PUBLISHED.but(rate=PUBLISHED.rate / _AFTER_PRUNING)
    """Of the fine-tuning after the cut, whose losses are those of the expansion, without hints of specialists; what is
    not said here is that of the expansion, at a tenth of its rate."""
    keep: float | None = Field(None, gt=0, lt=1)
    """Share of the backbone's weights that stays, the largest of all layers together; None: so many that a single
    sub-backbone's number is left."""


class XLearner(Pretraining):
    """Many sources for many tasks: one sub-backbone a task, joined by reconciliation layers; then squeezed."""

    title: ClassVar[str] = "X-Learner"
    kind: Literal["x-learner"] = "x-learner"
    training: Published = PUBLISHED
    """Of the expansion: K steps, of images from all sources in equal shares."""
    alone: int | None = Field(None, ge=0)
    """tau of algorithm 1: so many steps every sub-backbone learns alone. None: a third of them; the paper does not say
    how many."""
    tasks: dict[str, tuple[str, ...]] | None = None
    """Task name to its sources, a sub-backbone each; None: the labelled sources, by the kind of their labels."""
    labels: Literal["human", "all"] = "human"
    """`all`: pseudo labels count as further sources (ours): each head learns from every image that has any label of it,
    pools included."""
    fractions: dict[str, float] = {}
    """Source name to the share of its labels (of a pool: of its images) that takes part, above 0."""
    backbones: dict[str, AnyBackbone] = {}
    """Task name to its sub-backbone; the recipe's model says it for all others."""
    reconciliation: Reconciliation | None = Reconciliation()
    """None: the sub-backbones stay alone ("w/o Rec", table 5)."""
    specialists: Published | None = None
    """X-Learner++: a network a source is trained so first, and its features are hints in the expansion."""
    hint_weight: float = Field(1.0, gt=0)
    """Of these hints: so many times the weight of the head's own loss."""
    hint_levels: int = Field(1, ge=1)
    """How many of the deepest maps they are about."""
    narrow: dict[str, AnyBackbone] | None = None
    """X-Learner_r: what was trained (each task alone) is squeezed into these sub-backbones first, one a task; they are
    then expanded, and stay so. Each is meant to have 1 / sqrt(tasks) of the channels."""
    start: str | None = None
    """The name of another X-Learner of this recipe whose expansion is taken, before any squeeze or pruning: all but
    `squeeze` must then be said as there. None: one of its own."""
    squeeze: Distillation | Pruning | None = Field(Distillation(), discriminator="kind", validate_default=True)
    """By distillation, where its text does not state another kind. None: the expanded backbone is what is delivered,
    every level being the maps of all tasks side by side."""

    @field_validator("squeeze", mode="before")
    @classmethod
    def _follow(cls, value: Any, info: ValidationInfo) -> Any:
        """A squeeze whose training is that of the expansion wherever it says nothing else."""
        whole = info.data.get("training")
        if not isinstance(whole, Training):  # what is wrong with it is said already
            return value
        if isinstance(value, Distillation | Pruning):
            given = "training" in value.model_fields_set
            return value if given else value.but(training=_after(whole, value.kind))
        if not isinstance(value, Mapping):
            return value
        value = {"kind": "distillation", **value}
        said = value.get("training", {})
        if isinstance(said, Mapping):
            value["training"] = {**dict(_after(whole, value["kind"])), **said}
        return value

    @property
    def tau(self) -> int:
        """The steps that every sub-backbone learns alone."""
        return self.training.steps // 3 if self.alone is None else self.alone

    @model_validator(mode="after")
    def _check(self) -> XLearner:
        if self.tau > self.training.steps:
            raise ValueError(f"alone: {self.alone} steps alone are more than all {self.training.steps}")
        if self.tau == self.training.steps and self.reconciliation is not None and self.start is None:
            raise ValueError("alone: no step is left for the reconciliation layers; shorten it, or set them to null")
        if self.specialists is None:
            for field in ("hint_levels", "hint_weight"):
                if getattr(self, field) != type(self).model_fields[field].default:
                    raise ValueError(f"{field}: there are no hints without `specialists`")
        if self.tasks is not None:
            seen: dict[str, str] = {}
            for task, sources in self.tasks.items():
                check_task_name(task)
                if not sources:
                    raise ValueError(f"tasks.{task}: a task needs a source")
                for source in sources:
                    if source in seen:
                        raise ValueError(f"tasks.{task}: the source '{source}' is under '{seen[source]}' too")
                    seen[source] = task
            for field in ("backbones", "narrow"):
                for task in getattr(self, field) or {}:
                    if task not in self.tasks:
                        raise ValueError(f"{field}: there is no task '{task}'; known: {', '.join(self.tasks)}")
        if self.narrow is not None and self.start is not None:
            raise ValueError("start: with `narrow`, the expansion comes last, and is one of its own")
        if self.narrow is not None and self.alone is not None:
            raise ValueError(
                "alone: with `narrow`, each task is learned alone for all steps first, and these are joined from the "
                "first step; leave it out"
            )
        if self.narrow is not None:
            self._check_narrow_squeeze()
        return self

    @property
    def stays_expanded(self) -> bool:
        """Whether an expanded backbone is what is delivered."""
        return not isinstance(self.squeeze, Distillation) or self.narrow is not None

    @property
    def of_another_form(self) -> bool:
        return not isinstance(self.squeeze, Distillation) or self.narrow is not None or self.squeeze.of_another_form

    def _check_narrow_squeeze(self) -> None:
        """That nothing is said of a squeeze into `narrow` that it would not do; its sources are checked in
        `tasks_of`, where those of the tasks are known."""
        squeeze = self.squeeze
        if squeeze is None:
            raise ValueError("squeeze: with `narrow`, the squeeze comes first and makes these; it cannot be null")
        if isinstance(squeeze, Pruning):
            raise ValueError("squeeze: with `narrow`, the squeeze comes first and distils; it cannot prune")
        if squeeze.labels != "none":
            raise ValueError(
                "squeeze.labels: with `narrow`, a sub-backbone is squeezed a task, and no labels teach: "
                f"'{squeeze.labels}' would be ignored; leave it out"
            )
        if squeeze.backbone is not None:
            raise ValueError(
                "squeeze.backbone: with `narrow`, that names what is squeezed into, one a task; leave it out"
            )


def distillation_in(part: Pretraining) -> Distillation | None:
    """The distillation that a pre-training is, or has as its squeeze; None: there is none."""
    last = part.squeeze if isinstance(part, XLearner) else part
    return last if isinstance(last, Distillation) else None


def _after(whole: Training, kind: str) -> Training:
    """How a squeeze of this kind is trained after such an expansion."""
    return whole.but(rate=whole.rate / _AFTER_PRUNING) if kind == "pruning" else whole
