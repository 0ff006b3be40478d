"""What every way of pre-training has in common, so that a recipe can name several and compare them."""

from __future__ import annotations

import abc
from typing import Literal

from tutelage.part import Part
from tutelage.training.balance import Balance
from tutelage.training.schedule import Training


class Pretraining(Part, abc.ABC):
    """A way to make a backbone from a recipe's sources: one row of the transfer table."""

    kind: str
    training: Training = Training()


class StudentPart(Pretraining):
    """How a student learns from human and pseudo labels: as MuST does, or with less, as its baselines do.

    Supervised pre-training is one head with `labels: human`; the supervised multi-task baseline is all heads with
    `labels: human` and `mixture: equal` (section 4.2): an image without a label of a head adds nothing to its loss.
    """

    kind: Literal["student"] = "student"
    training: Training = Training()
    balance: Balance = Balance()
    mixture: Literal["uniform", "equal"] = "uniform"
    """`uniform` over the union of all images (MuST section 3.2), or `equal` shares a source."""
    heads: tuple[str, ...] | None = None
    """The heads that it learns; None: all."""
    sources: tuple[str, ...] | None = None
    """The sources whose images it sees; None: all that have a label for it."""
    fractions: dict[str, float] = {}
    """Source name to the share of its images that takes part, above 0; a smaller share is a subset of a larger one."""
    labels: Literal["all", "human", "pseudo"] = "all"
    """`all`: human labels where there are any, else pseudo labels. `pseudo`: as if nobody had labelled anything."""
    start: str | None = None
    """Where backbone and pyramid come from: `teacher: HEAD`, the name of a baseline, or a model folder; None: as the
    recipe's model says."""
