"""What a balance of losses is, and the balances that need no gradient of a single head (see `balance.py`)."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from tutelage.models.learner import Learner
from tutelage.training.processes import all_sum, world
from tutelage.types import Field, Maps, Vectors


class BalanceRule(nn.Module, abc.ABC):
    """Makes one training of several losses.

    A step calls `backward` for every micro-batch, then `settle` once. Parameters of the rule are trained with the
    network's, and its whole state is in the checkpoint.
    """

    apart: ClassVar[bool] = False
    """Whether the rule brings the gradients of all processes together itself (in `settle`)."""

    @abc.abstractmethod
    def weights(self) -> Mapping[str, Tensor | float]:
        """The weight of every head that is in force now; in the graph where it is a parameter."""

    def weighted(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The sum of the weighted losses, scalar."""
        weights = self.weights()
        return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """What a step makes smaller, scalar, of the mean losses of the whole step: the figure of the curve."""
        return self.weighted(losses)

    def backward(self, losses: Mapping[str, Tensor], learner: Learner) -> Tensor:
        """Add the gradients of one micro-batch to those of the step.

        Args:
            losses: head name to this micro-batch's share in the mean loss of the step: shares add up over
                micro-batches, and their mean over processes is the whole.
            learner: the network that the losses are of.

        Returns:
            The weighted sum of the losses, scalar, without a graph.
        """
        total = self.weighted(losses)
        total.backward()
        return total.detach()

    def settle(self, learner: Learner, losses: Mapping[str, Tensor], chance: torch.Generator) -> None:
        """Finish the gradients of a step before they are clipped; the weights of the next step may follow from them.

        Args:
            learner: the network.
            losses: the shares of `backward` summed over the micro-batches of this process, without a graph.
            chance: random numbers on the CPU, the same on every process.
        """
        average([parameter.grad for parameter in self.parameters()])


def average(gradients: list[Tensor | None]) -> None:
    """Put the mean over all processes in the place of each gradient."""
    if world() > 1:
        for gradient in gradients:
            if gradient is not None:
                all_sum(gradient).div_(world())


class Weighted(BalanceRule):
    """The sum with one fixed weight a head (MuST section 3.2: L = sum of w_i L_i)."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.fixed = dict(weights)

    def weights(self) -> Mapping[str, float]:
        return self.fixed


class Uncertainty(BalanceRule):
    """Weights from a learned noise a head: Kendall, Gal and Cipolla, CVPR 2018, section 3.2.

    A loss L counts L / (2 s^2) + log s where the head predicts numbers (depth, normals, features), and L / s^2 + log s
    where it predicts classes. What is learned is log s^2, from 0. Detection is counted with the classes: its loss is
    one sum of cross-entropies and box offsets, which the paper does not treat. In a step in which a head has no label
    at all (its loss is exactly 0), its noise is left alone: the paper has every label on every image.

    Args:
        kinds: head name to the kind of its targets.
    """

    scale: Tensor

    def __init__(self, kinds: Mapping[str, type]) -> None:
        super().__init__()
        self.names = list(kinds)
        self.log_variance = nn.Parameter(torch.zeros(len(kinds)))
        scale = torch.tensor([0.5 if kind in (Field, Vectors, Maps) else 1.0 for kind in kinds.values()])
        self.register_buffer("scale", scale, persistent=False)

    def weights(self) -> Mapping[str, Tensor]:
        return dict(zip(self.names, (self.scale * torch.exp(-self.log_variance)).unbind(), strict=True))

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        return self.weighted(losses) + self._noise(torch.stack([losses[name] for name in self.names]))

    def settle(self, learner: Learner, losses: Mapping[str, Tensor], chance: torch.Generator) -> None:
        super().settle(learner, losses, chance)
        # once a step and alike on every process: were it in every micro-batch, it would count too often
        self._noise(all_sum(torch.stack([losses[name] for name in self.names]))).backward()

    def _noise(self, losses: Tensor) -> Tensor:
        """The sum of log s over the heads with labels; losses [T]."""
        return 0.5 * (self.log_variance * (losses > 0)).sum()
