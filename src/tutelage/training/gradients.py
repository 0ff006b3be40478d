"""Balances that look at the gradient of each head by itself: GradNorm and PCGrad.

Letters: T heads, N numbers of a parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from tutelage.models.learner import Learner
from tutelage.training.processes import all_sum, world
from tutelage.training.rules import BalanceRule, average


class GradNorm(BalanceRule):
    """Weights that let all heads pull alike at the last shared layer: Chen et al., ICML 2018, section 3, algorithm 1.

    The norm of a head's weighted gradient there is moved towards the mean norm of all heads times r^alpha, r being how
    much of its first loss the head still has, over the mean of that. The weights always sum to T. The layer is the last
    weight of the learner's trunk that every loss reaches.

    The paper leaves open how a weight follows the gradient of its |norm - target|. Here log w does, by plain descent,
    with norms in units of their mean: the same relative pace for losses of any scale, and no weight can turn negative.

    A head without a label in a step (its gradient is exactly 0) takes no part in it.

    Args:
        names: of the heads.
        alpha: of the target: 0 asks for equal norms, more lets heads that learn slowly pull harder.
        rate: how far log w goes in a step for a norm that is the mean.
    """

    log_weights: Tensor
    first: Tensor

    def __init__(self, names: list[str], alpha: float, rate: float) -> None:
        super().__init__()
        self.names, self.alpha, self.rate = names, alpha, rate
        self.register_buffer("log_weights", torch.zeros(len(names)))
        self.register_buffer("first", torch.full((len(names),), float("nan")))  # losses of each head's first step
        self._layer: list[nn.Parameter] = []  # in a list, so that it is no parameter of this module
        self._pulls: Tensor | None = None

    def weights(self) -> Mapping[str, Tensor]:
        return dict(zip(self.names, self.log_weights.exp().unbind(), strict=True))

    def backward(self, losses: Mapping[str, Tensor], learner: Learner) -> Tensor:
        if not self._layer:
            self._layer = [_last_reached(learner, losses)]
        pulls = [torch.autograd.grad(losses[name], self._layer, retain_graph=True)[0] for name in self.names]
        stacked = torch.stack(pulls)
        self._pulls = stacked if self._pulls is None else self._pulls + stacked
        return super().backward(losses, learner)

    @torch.no_grad()
    def settle(self, learner: Learner, losses: Mapping[str, Tensor], chance: torch.Generator) -> None:
        assert self._pulls is not None
        norms = (all_sum(self._pulls) / world()).flatten(1).norm(dim=1)
        self._pulls = None
        here = all_sum(torch.stack([losses[name] for name in self.names])) / world()
        takes_part = norms > 0
        if not takes_part.any():
            return
        self.first.copy_(torch.where(self.first.isnan() & takes_part, here, self.first))
        norms = norms * self.log_weights.exp()
        norms = norms / norms[takes_part].mean()
        left = here / self.first
        target = (left / left[takes_part].mean()) ** self.alpha
        slope = torch.where(takes_part, norms * torch.sign(norms - target), 0)
        self.log_weights.sub_(self.rate * slope)
        self.log_weights.sub_(self.log_weights.exp().mean().log())


def _last_reached(learner: Learner, losses: Mapping[str, Tensor]) -> nn.Parameter:
    """The last weight (two dimensions or more) of the trunk that every loss depends on."""
    for parameter in reversed([p for p in learner.trunk().parameters() if p.requires_grad and p.dim() > 1]):
        reached = (torch.autograd.grad(x, parameter, retain_graph=True, allow_unused=True) for x in losses.values())
        if all(gradient is not None for (gradient,) in reached):
            return parameter
    raise ValueError("the learner's trunk has no weight that every loss depends on")


class PCGrad(BalanceRule):
    """Takes out of each head's gradient what works against another's: Yu et al., NeurIPS 2020, algorithm 1.

    Of the parameters that heads share, each head's gradient (of its weighted loss, over the whole step and all
    processes) is projected, one other head after the other in random order, onto the plane normal to the other's
    gradient if they point against each other; the sum of what is left is the step. Parameters of one head alone keep
    their gradient. A step costs one way back through the shared parameters a head, and their gradients T times.

    Args:
        weights: head name to the fixed weight of its loss.
    """

    apart: ClassVar[bool] = True

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.fixed = dict(weights)
        self._gradients: list[Tensor | None] = []  # of each shared parameter [T,N]; None where no loss reaches it

    def weights(self) -> Mapping[str, float]:
        return self.fixed

    def backward(self, losses: Mapping[str, Tensor], learner: Learner) -> Tensor:
        shared, own = _apart(learner)
        rows: list[tuple[Tensor | None, ...]] = []
        for number, (name, loss) in enumerate(losses.items(), 1):
            gradients = torch.autograd.grad(
                self.fixed[name] * loss, [*shared, *own], retain_graph=number < len(losses), allow_unused=True
            )
            rows.append(gradients[: len(shared)])
            for parameter, gradient in zip(own, gradients[len(shared) :], strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        for place, (parameter, *column) in enumerate(zip(shared, *rows, strict=True)):
            found = _stack(column, parameter)
            if len(self._gradients) == place:
                self._gradients.append(found)
            elif found is not None:
                before = self._gradients[place]
                self._gradients[place] = found if before is None else before + found
        return self.weighted({name: loss.detach() for name, loss in losses.items()})

    @torch.no_grad()
    def settle(self, learner: Learner, losses: Mapping[str, Tensor], chance: torch.Generator) -> None:
        shared, own = _apart(learner)
        average([*self._gradients, *(parameter.grad for parameter in own)])
        products = torch.stack([g @ g.T for g in self._gradients if g is not None]).sum(0)
        shares = projected(products.cpu().double(), chance).to(products)
        for parameter, gradients in zip(shared, self._gradients, strict=True):
            if gradients is not None:
                parameter.grad = (shares @ gradients).view_as(parameter)
        self._gradients = []


def projected(products: Tensor, chance: torch.Generator) -> Tensor:
    """How much of each head's gradient is in the sum of the projected ones.

    All that the projections do is written in the gradients themselves and depends on their products alone.

    Args:
        products: float64 [T,T], the inner products of the heads' gradients.
        chance: of the order in which a head meets the others.

    Returns:
        float64 [T]. All 1 where no two gradients point against each other.
    """
    heads = len(products)
    shares = torch.eye(heads, dtype=products.dtype)
    for head, row in enumerate(shares):
        for other in torch.randperm(heads, generator=chance).tolist():
            along = row @ products[other]
            if other != head and along < 0:
                row[other] -= along / products[other, other]
    return shares.sum(0)


def _apart(learner: Learner) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trained parameters that losses share, and all others."""
    shared = [p for p in learner.shared() if p.requires_grad]
    known = {id(p) for p in shared}
    return shared, [p for p in learner.parameters() if p.requires_grad and id(p) not in known]


def _stack(gradients: list[Tensor | None], parameter: nn.Parameter) -> Tensor | None:
    """The gradients of one parameter as [T,N], zeros where a loss does not reach it; None where none does."""
    if all(gradient is None for gradient in gradients):
        return None
    return torch.stack([torch.zeros_like(parameter) if g is None else g for g in gradients]).flatten(1)
