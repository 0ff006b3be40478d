"""Learning from human and pseudo labels of one task, half and half (Zoph et al., NeurIPS 2020, section 3.1 and
appendix B).

Every batch holds images whose label a person gave and images whose label a teacher gave. The two losses are kept apart,
and the second is brought to the size of the first before they are added:

    L = (L_h + a (m_h / m_p) L_p) / (1 + a)

where m_h and m_p are moving averages of the human loss L_h and the pseudo loss L_p.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from tutelage.models.learner import Learner
from tutelage.models.student import Student
from tutelage.training.processes import all_sum, world
from tutelage.training.rules import BalanceRule
from tutelage.types import Batch, HeadBatch, LossSum, take

PSEUDO = ": pseudo labels"
"""What the name of the second loss of a head ends with."""


class HalfPseudo(Learner):
    """A student with two losses a head that teachers fill: one of people's labels, one of pseudo labels.

    Args:
        student: what is trained.
        human: head name to the sources whose labels of it people gave; heads that are no key have one loss.
    """

    def __init__(self, student: Student, human: Mapping[str, Collection[str]]) -> None:
        super().__init__()
        self.student = student
        self.human = {head: frozenset(sources) for head, sources in human.items()}

    def forward(self, batch: Batch) -> dict[str, LossSum]:
        """The losses of both halves, from one pass of all images through the network: norms see them together."""
        features, found = self.student.features(batch.images), {}
        for head in self.student.tasks:
            labelled = batch.heads.get(head)
            if head not in self.human:
                found[head] = self.student.loss(head, features, labelled)
            elif labelled is None or labelled.targets is None:
                found[head] = self.student.loss(head, features, None)
                found[f"{head}{PSEUDO}"] = LossSum(found[head].sum, found[head].count)
            else:
                halves = self.student.losses(head, features, labelled, self._halves(batch, head, labelled))
                found[head], found[f"{head}{PSEUDO}"] = halves
        return found

    def count(self, batch: Batch) -> dict[str, Tensor]:
        """Labelled images or pixels of each loss, 0 where no row is labelled."""
        found: dict[str, Tensor] = {}
        for head, task in self.student.tasks.items():
            labelled = batch.heads.get(head)
            if head not in self.human:
                found[head] = self.student.count_of(head, labelled, batch.images.device)
                continue
            nothing = torch.zeros((), device=batch.images.device)
            found[head] = found[f"{head}{PSEUDO}"] = nothing
            if labelled is not None and labelled.targets is not None:
                for name, index in zip((head, f"{head}{PSEUDO}"), self._halves(batch, head, labelled), strict=True):
                    found[name] = task.count(take(labelled.targets, index)) if len(index) else nothing
        return found

    def trunk(self) -> nn.Module:
        return self.student.trunk()

    def shared(self) -> list[nn.Parameter]:
        return self.student.shared()

    def _halves(self, batch: Batch, head: str, labelled: HeadBatch) -> tuple[Tensor, Tensor]:
        """The numbers of the labelled rows that people labelled, and of the others."""
        sources = [id.partition("/")[0] for id in batch.ids]
        by_person = torch.tensor([sources[row] in self.human[head] for row in labelled.rows.tolist()])
        human, pseudo = by_person.nonzero()[:, 0], (~by_person).nonzero()[:, 0]
        return human.to(labelled.rows.device), pseudo.to(labelled.rows.device)


class Normalised(BalanceRule):
    """The sum of both halves, the pseudo loss brought to the size of the human loss (appendix B).

    The averages are of the losses of whole steps over all processes; no gradient flows through them, and they are in
    the checkpoint. Until both losses were seen once, and wherever the pseudo average is 0, the factor m_h / m_p is 1;
    a step in which a half has no label (its loss is exactly 0) leaves that half's average alone.

    Args:
        heads: the heads with two losses.
        weights: of each loss, without this normalisation; both halves of a head have the head's.
        alpha: a, the weight of the pseudo half.
        decay: of the averages, a step.
        normalise: whether m_h / m_p is applied; else it is 1.
    """

    human: Tensor
    pseudo: Tensor

    def __init__(
        self, heads: Collection[str], weights: Mapping[str, float], alpha: float, decay: float, normalise: bool = True
    ) -> None:
        super().__init__()
        self.heads, self.fixed = list(heads), dict(weights)
        self.alpha, self.decay, self.normalise = alpha, decay, normalise
        self.register_buffer("human", torch.zeros(len(self.heads)))
        self.register_buffer("pseudo", torch.zeros(len(self.heads)))

    def factors(self) -> Tensor:
        """m_h / m_p of every head with two losses, float32 [T]."""
        known = (self.human > 0) & (self.pseudo > 0)
        if not self.normalise:
            known = torch.zeros_like(known)
        return torch.where(known, self.human / self.pseudo.clamp(min=torch.finfo(torch.float32).tiny), 1.0)

    def weights(self) -> Mapping[str, Tensor | float]:
        found: dict[str, Tensor | float] = dict(self.fixed)
        for head, factor in zip(self.heads, self.factors().unbind(), strict=True):
            weight = self.fixed[head] / (1 + self.alpha)
            found[head], found[f"{head}{PSEUDO}"] = weight, weight * self.alpha * factor
        return found

    def backward(self, losses: Mapping[str, Tensor], learner: Learner) -> Tensor:
        if not bool((self.human > 0).any()):  # the very first losses are their own averages
            self._follow(losses)
        return super().backward(losses, learner)

    def settle(self, learner: Learner, losses: Mapping[str, Tensor], chance: torch.Generator) -> None:
        super().settle(learner, losses, chance)
        self._follow(losses)

    @torch.no_grad()
    def _follow(self, losses: Mapping[str, Tensor]) -> None:
        """Move the averages towards the losses of a step; an average begins with the first loss that it sees."""
        for average, names in (
            (self.human, self.heads),
            (self.pseudo, [f"{head}{PSEUDO}" for head in self.heads]),
        ):
            mine = torch.stack([losses[name].detach().float() for name in names])
            now = all_sum(mine.clone()) / world()
            moved = torch.where(average > 0, average.lerp(now, 1 - self.decay), now)
            average.copy_(torch.where(now > 0, moved, average))
