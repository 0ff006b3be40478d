"""Unstructured pruning: of all weights together the smallest are taken out, and the rest is trained on (He et al., ECCV
2022, X-Learner, section 3.4, variant p; after Liu et al., ICLR 2019, "Rethinking the Value of Network Pruning", whose
unstructured method is the magnitude pruning of Han et al., NeurIPS 2015).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.nn.utils.prune import L1Unstructured

from tutelage.errors import UserError
from tutelage.models.learner import Learner
from tutelage.types import Batch, LossSum

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Kept(NamedTuple):
    """What pruning has left of a network.

    Attributes:
        weights: of its convolutions and linear layers, those that are not 0.
        of: all of these.
        others: biases, norms, embeddings: they are never pruned.
    """

    weights: int
    of: int
    others: int


class Pruned(Learner):
    """A learner, a part of whose weights is 0 for good; all others are trained as the learner itself would.

    Making it prunes: of the weights of all convolutions and linear layers in the part, the share `keep` with the
    largest magnitudes stays, whatever layers they are in; once, and not little by little, as Han et al. do in rounds.
    A weight that the part uses in several places counts once.

    A pruned weight stays exactly 0. Its gradient is 0, hence also its momentum, its weight decay and its average. The
    names and the form of all weights stay what they are, at any moment: the learner's networks can be saved as ever.
    Which weights are pruned is in the state dict, so that a training that goes on from its checkpoint goes on with the
    same, whatever the learner's weights were before.

    Args:
        learner: its losses are trained.
        part: of the learner: what is pruned. The backbone, say, without the heads.
        keep: share of the weights that stays, above 0 and below 1.

    Raises:
        UserError: a share that leaves all or nothing; a part without weights that could be pruned.
    """

    def __init__(self, learner: Learner, part: nn.Module, keep: float) -> None:
        super().__init__()
        self.learner = learner
        weights = prunable(part)
        masks = magnitude_masks(weights, keep)
        with torch.no_grad():
            for number, (weight, mask) in enumerate(zip(weights, masks, strict=True)):
                weight.mul_(mask)
                self.register_buffer(f"kept_{number}", mask)
                learns = weight.requires_grad  # what is frozen may learn later, and takes no hook until it does
                weight.requires_grad_(True).register_hook(lambda g, n=number: g * self.get_buffer(f"kept_{n}"))
                weight.requires_grad_(learns)

    def forward(self, batch: Batch) -> dict[str, LossSum]:
        """The learner's losses."""
        found: dict[str, LossSum] = self.learner(batch)
        return found

    def count(self, batch: Batch) -> dict[str, Tensor]:
        return self.learner.count(batch)

    def trunk(self) -> nn.Module:
        return self.learner.trunk()

    def shared(self) -> list[nn.Parameter]:
        return self.learner.shared()


def prunable(module: nn.Module) -> list[nn.Parameter]:
    """The weights of all convolutions and linear layers below a module, each once."""
    found = {id(part.weight): part.weight for part in module.modules() if isinstance(part, _KINDS)}
    return [weight for weight in found.values() if isinstance(weight, nn.Parameter)]


def magnitude_masks(weights: list[nn.Parameter], keep: float) -> list[Tensor]:
    """Which of all numbers in some weights are among the share with the largest magnitudes: bool, of their shapes.

    The number that stays is `keep` times all of them, rounded. Among equals, which ones stay is torch's choice.

    Raises:
        UserError: a share outside (0, 1), or so small that nothing stays; no weights.
    """
    if not 0 < keep < 1:
        raise UserError(
            "the share of the weights that stays must be above 0 and below 1",
            field="keep",
            value=keep,
            fix="for example 0.5",
        )
    sizes = [weight.numel() for weight in weights]
    stay = round(keep * sum(sizes))
    if not stay:
        raise UserError(
            f"of {sum(sizes)} weights of convolutions and linear layers, nothing would stay",
            field="keep",
            value=keep,
            fix="keep more, or prune a part that has such weights",
        )
    with torch.no_grad():
        every = parameters_to_vector(weights)
        mask = L1Unstructured(amount=sum(sizes) - stay).compute_mask(every, torch.ones_like(every, dtype=torch.bool))
    return [one.view_as(weight).clone() for one, weight in zip(mask.split(sizes), weights, strict=True)]


def kept(module: nn.Module) -> Kept:
    """How many weights of a network are not 0; one that is used in several places counts once."""
    weights = prunable(module)
    every = sum(weight.numel() for weight in weights)
    left = sum(int(weight.count_nonzero()) for weight in weights)
    return Kept(left, every, sum(p.numel() for p in module.parameters()) - every)
