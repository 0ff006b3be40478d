"""How the losses of several heads become one (MuST section 3.2: L = sum of w_i L_i)."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from tutelage.errors import UserError
from tutelage.part import Part


class BalanceRule(nn.Module, abc.ABC):
    """Combines the mean losses of all heads. It may have parameters, which are then trained with the network's."""

    @abc.abstractmethod
    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        """Head name to scalar mean loss, to one scalar."""


class Weighted(BalanceRule):
    """The sum with one fixed weight a head."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.weights = dict(weights)

    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        return torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()


class Balance(Part):
    """The loss weights in a recipe."""

    mode: Literal["equal", "fixed", "scaling-rule"] = "equal"
    """`equal`: every head 1. `fixed`: as in `weights`, 1 where none is given. `scaling-rule`: from the batch sizes and
    learning rates of teacher and student; entries of `weights` go before it (MuST swept the weight of depth)."""
    weights: dict[str, float] = {}

    def build(
        self, heads: list[str], student: tuple[int, float], teachers: Mapping[str, tuple[int, float]]
    ) -> BalanceRule:
        """The rule for these heads.

        Args:
            heads: names.
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
                fix=f"heads: {heads}",
            )
        if self.mode != "scaling-rule":
            return Weighted({name: self.weights.get(name, 1.0) if self.mode == "fixed" else 1.0 for name in heads})
        weights = {}
        for name in heads:
            if name in self.weights:
                weights[name] = self.weights[name]
            elif name in teachers:
                weights[name] = scaling_rule(*student, *teachers[name])
            else:
                raise UserError(
                    "the scaling rule needs a teacher's batch size and learning rate",
                    field="balance.weights",
                    record=name,
                    fix="give this head a weight",
                )
        return Weighted(weights)


def scaling_rule(batch: int, rate: float, teacher_batch: int, teacher_rate: float) -> float:
    """w = b_s lr_t / (b_t lr_s): MuST section 3.2, after the linear scaling of rates with batch size."""
    return (batch * teacher_rate) / (teacher_batch * rate)
