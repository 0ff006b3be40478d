"""What every way of pre-training has in common, so that a recipe can name several and compare them."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tutelage.part import Part
from tutelage.training.balance import Balance
from tutelage.training.schedule import Training


class Pretraining(Part, abc.ABC):
    """A way to make a backbone from a recipe's sources: one row of the transfer table."""

    title: ClassVar[str]
    """What its row is called where it is the recipe's student."""
    kind: str
    training: Training = Training()

    @property
    def of_another_form(self) -> bool:
        """Whether what is delivered is no network of the recipe's model, but one that the part names or joins."""
        return False


class SelfTraining(Part):
    """How a student learns from human and pseudo labels half and half (Zoph et al., NeurIPS 2020, section 3)."""

    head: str | None = None
    """The head that is self-trained; None: the student's only one. Sources that label it are the human half of every
    batch, all others the pseudo half. Further heads learn from both halves (joint training, section 5), their losses
    brought to the size of the human loss as well."""
    ratio: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (1, 1)
    """Human to pseudo images in a batch."""
    alpha: float = Field(1.0, gt=0)
    """a in L = (L_h + a (m_h / m_p) L_p) / (1 + a), appendix B: the weight of the pseudo half."""
    decay: float = Field(0.99, ge=0, lt=1)
    """Of the moving averages m_h and m_p, a step."""
    normalise: bool = True
    """False: the factor m_h / m_p is left out, to see what it is good for."""


class StudentPart(Pretraining):
    """How a student learns from human and pseudo labels: as MuST does, or with less, as its baselines do.

    Supervised pre-training is one head with `labels: human`; the supervised multi-task baseline is all heads with
    `labels: human` and `mixture: equal` (section 4.2): an image without a label of a head adds nothing to its loss.
    """

    title: ClassVar[str] = "MuST student"
    kind: Literal["student"] = "student"
    training: Training = Training()
    balance: Balance = Balance()
    mixture: Literal["uniform", "equal"] = "uniform"
    """`uniform` over the union of all images (MuST section 3.2), or `equal` shares a source."""
    self_training: SelfTraining | None = None
    """Human and pseudo labels in halves of their own, in place of `mixture`; None: every label counts alike."""
    heads: tuple[str, ...] | None = None
    """The heads that it learns; None: all."""
    sources: tuple[str, ...] | None = None
    """The sources whose images it sees; None: all that have a label for it."""
    fractions: dict[str, float] = {}
    """Source name to the share of its labels (of a pool: of its images) that takes part, above 0; a smaller share is a
    subset of a larger one."""
    labels: Literal["all", "human", "pseudo"] = "all"
    """`all`: human labels where there are any, else pseudo labels. `pseudo`: as if nobody had labelled anything."""
    start: str | None = None
    """What it goes on from, backbone, pyramid and all heads that both have: `teacher: HEAD`, the name of a baseline, or
    the path of a model folder; None: as the recipe's model says. A student that trains itself takes the head of a
    teacher where it starts as well, or is refused."""


def self_trained(student: StudentPart, heads: Sequence[str] = ()) -> str | None:
    """The head that a student trains itself on; None where it does not, or where that is not said.

    Args:
        student: whose.
        heads: all heads of the recipe, for a student that names none.
    """
    if student.self_training is None:
        return None
    if student.self_training.head is not None:
        return student.self_training.head
    own = student.heads or heads
    return own[0] if len(own) == 1 else None
