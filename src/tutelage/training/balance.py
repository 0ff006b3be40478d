"""How the losses of several heads become one, as a typed value (MuST section 3.2: L = sum of w_i L_i)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from tutelage.errors import UserError
from tutelage.part import Part
from tutelage.tasks.task import Task
from tutelage.training.gradients import GradNorm, PCGrad
from tutelage.training.rules import BalanceRule as BalanceRule
from tutelage.training.rules import Uncertainty, Weighted


class Balance(Part):
    """The loss weights in a recipe."""

    mode: Literal["equal", "fixed", "scaling-rule", "uncertainty", "gradnorm", "pcgrad"] = "equal"
    """`equal`: every head 1. `fixed`: as in `weights`, 1 where none is given. `scaling-rule`: from the batch sizes and
    learning rates of teacher and student (MuST section 3.2); entries of `weights` go before it (MuST swept the weight
    of depth). `uncertainty`: from a learned noise a head (Kendall et al., CVPR 2018). `gradnorm`: heads pull alike at
    the last shared layer (Chen et al., ICML 2018). `pcgrad`: conflicts between the heads' gradients are taken out (Yu
    et al., NeurIPS 2020), with losses weighted as in `fixed`."""
    weights: dict[str, float] = {}
    alpha: float = Field(1.5, ge=0)
    """Of `gradnorm`: 0 asks for equal gradient norms, more lets heads that learn slowly pull harder."""
    weight_rate: float = Field(0.025, gt=0, lt=1)
    """Of `gradnorm`: the relative change of a weight in one step."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.weights and self.mode not in ("fixed", "scaling-rule", "pcgrad"):
            raise ValueError(f"weights: the mode `{self.mode}` takes none; `fixed`, `scaling-rule` and `pcgrad` do")
        return self

    def build(
        self,
        heads: Mapping[str, Task] | Sequence[str],
        student: tuple[int, float],
        teachers: Mapping[str, tuple[int, float]],
    ) -> BalanceRule:
        """The rule for these heads.

        Args:
            heads: names, with their tasks where the mode is `uncertainty`, which treats classes and numbers apart.
            student: (batch, learning rate) of this training.
            teachers: the same of each head's teacher, where there is one.

        Raises:
            UserError: a weight for a head that is not there; the scaling rule for a head without a teacher or weight.
        """
        unknown = sorted(set(self.weights) - set(heads))
        if unknown:
            raise UserError(
                "a loss weight names no head",
                field="balance.weights",
                value=unknown[0],
                fix=f"heads: {list(heads)}",
            )
        if self.mode == "uncertainty":
            if not isinstance(heads, Mapping):
                raise TypeError("uncertainty weights follow from the heads' tasks: give heads as name to task")
            return Uncertainty({name: task.kind for name, task in heads.items()})
        if self.mode == "gradnorm":
            return GradNorm(list(heads), self.alpha, self.weight_rate)
        if self.mode == "scaling-rule":
            return Weighted({name: self._scaled(name, student, teachers) for name in heads})
        weights = {name: self.weights.get(name, 1.0) for name in heads}
        return PCGrad(weights) if self.mode == "pcgrad" else Weighted(weights)

    def _scaled(self, name: str, student: tuple[int, float], teachers: Mapping[str, tuple[int, float]]) -> float:
        """A head's weight by the scaling rule, or the one that is stated."""
        if name in self.weights:
            return self.weights[name]
        if name not in teachers:
            raise UserError(
                "the scaling rule needs a teacher's batch size and learning rate",
                field="balance.weights",
                record=name,
                fix="give this head a weight",
            )
        return scaling_rule(*student, *teachers[name])


def scaling_rule(batch: int, rate: float, teacher_batch: int, teacher_rate: float) -> float:
    """w = b_s lr_t / (b_t lr_s): MuST section 3.2, after the linear scaling of rates with batch size."""
    return (batch * teacher_rate) / (teacher_batch * rate)
