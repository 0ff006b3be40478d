"""How a representation is judged, as typed values: downstream sets, fine-tuning, linear probe, and where networks start
(MuST section 3.3 and appendix B.3; X-Learner section 4.2)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tutelage.kinds import AnyBackbone, AnySource, AnyTask
from tutelage.part import Part
from tutelage.training.schedule import Training
from tutelage.types import Label

PROBE = ", linear probe"
"""What a column of probed figures is called after its set."""


def _positive(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if not value or len(set(value)) < len(value) or min(value) <= 0:
        raise ValueError("give at least one, each once, above zero")
    return value


class FineTuning(Part):
    """Fine-tuning on a downstream set: every rate with every number of steps, the best on validation is reported."""

    training: Training = Training(weight_decay=1e-4)
    """The template; `rate` and `steps` are taken from the grid."""
    rates: tuple[float, ...] = (0.005, 0.02, 0.08, 0.32)
    steps: tuple[int, ...] = (5_000, 20_000)
    halving: int | None = Field(None, ge=2)
    """Successive halving (Jamieson and Talwalkar, AISTATS 2016) with this factor: grid points that do badly on
    validation early are stopped; one in `halving` goes on each time. None: every point is trained to its end."""

    pyramid: Literal["loaded", "fresh"] = "loaded"
    """`loaded`: the pyramid comes from the initialisation too, where that has one (MuST section 3.3). `fresh`: the
    backbone alone does; for tables some of whose rows have no pyramid."""

    @field_validator("rates", "steps")
    @classmethod
    def _some(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return _positive(value)


class Probe(Part):
    """A linear classifier on frozen features (X-Learner section 4.2), and nearest neighbours beside it."""

    l2: tuple[float, ...] = tuple(10 ** (-1 - 4 * i / 19) for i in range(20))
    """Weights of the squared norm, in the units of the mean loss; the best on validation is reported."""
    iterations: int = Field(1000, ge=1)
    """Of L-BFGS, at most."""
    neighbours: int = Field(20, ge=1)
    """Of the nearest-neighbour classifier."""
    temperature: float = Field(0.07, gt=0)
    """A neighbour of cosine similarity s votes with weight exp(s / temperature) (Wu et al., CVPR 2018)."""
    batch: int = Field(64, ge=1)
    """Images at a time through the frozen network."""

    @field_validator("l2")
    @classmethod
    def _some(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return _positive(value)


class Start(Part):
    """Where a network of the transfer table comes from, when this run does not make it itself."""

    checkpoint: str | None = None
    """A model folder or the folder of a run; the network then has that model's form."""
    backbone: AnyBackbone | None = None
    """A backbone with its own weights; pyramid and everything else are the recipe's, fresh. None, without a checkpoint
    either: the recipe's network with random weights."""
    control: bool = False
    """Whether it only shows what pre-training is worth: a plain reference, not a candidate."""

    @model_validator(mode="after")
    def _one(self) -> Start:
        if self.checkpoint is not None and self.backbone is not None:
            raise ValueError("give a checkpoint or a backbone, not both")
        return self


class TransferSet(Part):
    """One downstream set. Its three sources name the set itself as their head."""

    head: AnyTask
    train: AnySource
    validation: AnySource
    """Chooses the grid point."""
    test: AnySource
    """Gives the reported figure; shares no image with the other two."""
    copies: Literal["refuse", "drop"] = "refuse"
    """What happens when parts share an image, byte for byte: the run stops, or training leaves out what validation and
    test show, and validation what the test shows (published sets are known to hold some)."""
    size: int | None = Field(None, ge=16)
    """Pixels of the square input; None: the model's."""
    by: tuple[Literal["fine-tuning", "linear-probe"], ...] = ("fine-tuning",)
    """How an initialisation is judged on it: each is a column of the table."""
    finetuning: FineTuning | None = None
    """In place of the recipe's."""
    probe: Probe | None = None
    """In place of the recipe's."""

    @model_validator(mode="after")
    def _ways(self) -> TransferSet:
        if not self.by or len(set(self.by)) < len(self.by):
            raise ValueError("by: name at least one way, each once")
        if "linear-probe" in self.by and self.head.kind is not Label:
            raise ValueError(f"by: only classification is probed linearly, not {self.head.task}")
        return self
