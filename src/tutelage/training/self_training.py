"""Learning from human and pseudo labels of one task, half and half (Zoph et al., NeurIPS 2020, section 3.1 and
appendix B).

Every batch holds images whose label a person gave and images whose label a teacher gave. The two losses are kept apart,
and the second is brought to the size of the first before they are added:

    L = (L_h + a (m_h / m_p) L_p) / (1 + a)

where m_h and m_p are moving averages of the human loss L_h and the pseudo loss L_p.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping

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
        heads: those with two losses; the others have one.
        said: of a head, a source and an image's id in it: whether a person gave the image its label of that head.
    """

    def __init__(self, student: Student, heads: Collection[str], said: Callable[[str, str, str], bool]) -> None:
        super().__init__()
        self.student, self.halved, self.said = student, frozenset(heads), said

    def forward(self, batch: Batch) -> dict[str, LossSum]:
        """The losses of both halves, from one pass of all images through the network: norms see them together."""
        features, found = self.student.features(batch.images), {}
        for head in self.student.tasks:
            labelled = batch.heads.get(head)
            if head not in self.halved:
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
            if head not in self.halved:
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
        names = (batch.ids[row].partition("/") for row in labelled.rows.tolist())
        by_person = torch.tensor([self.said(head, source, id) for source, _, id in names])
        human, pseudo = by_person.nonzero()[:, 0], (~by_person).nonzero()[:, 0]
        return human.to(labelled.rows.device), pseudo.to(labelled.rows.device)


class Normalised(BalanceRule):
    """The human loss and further ones that are brought to its size (appendix B):

        L = (L_h + a sum_k (m_h / m_k) L_k) / (1 + K a)

    Self-training has one further loss, that of pseudo labels: the paper's equation. In joint training (section 5, "the
    exact setup as self-training") the loss of another head takes that place, or stands beside it (K = 2).

    The averages are of the losses of whole steps over all processes; no gradient flows through them, and they are in
    the checkpoint. Until both losses were seen once, and wherever the further average is 0, the factor m_h / m_k is 1;
    a step in which a loss has no label (it is exactly 0) leaves its average alone.

    Args:
        weights: of each head, without this normalisation; that of a head is of its human and its pseudo loss.
        further: name of each further loss to the head whose human loss it is brought to the size of.
        alpha: a, the weight of a further loss.
        decay: of the averages, a step.
        normalise: whether m_h / m_k is applied; else it is 1.
    """

    first: Tensor
    second: Tensor

    def __init__(
        self,
        weights: Mapping[str, float],
        further: Mapping[str, str],
        alpha: float,
        decay: float,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        self.fixed, self.further = dict(weights), dict(further)
        self.alpha, self.decay, self.normalise = alpha, decay, normalise
        self.register_buffer("first", torch.zeros(len(self.further)))
        self.register_buffer("second", torch.zeros(len(self.further)))
        self._before: tuple[Tensor, Tensor] | None = None

    def factors(self) -> Tensor:
        """m_h / m_k of every further loss, float32 [K]."""
        known = (self.first > 0) & (self.second > 0)
        if not self.normalise:
            known = torch.zeros_like(known)
        return torch.where(known, self.first / self.second.clamp(min=torch.finfo(torch.float32).tiny), 1.0)

    def weights(self) -> Mapping[str, Tensor | float]:
        found: dict[str, Tensor | float] = dict(self.fixed)
        shares = {head: 1 / (1 + self.alpha * count) for head, count in Counter(self.further.values()).items()}
        for head, share in shares.items():
            found[head] = self.fixed[head] * share
        for (name, head), factor in zip(self.further.items(), self.factors().unbind(), strict=True):
            found[name] = self.fixed.get(name, self.fixed[head]) * shares[head] * self.alpha * factor
        return found

    def backward(self, losses: Mapping[str, Tensor], learner: Learner) -> Tensor:
        if not bool(((self.first > 0) & (self.second > 0)).all()):  # the first loss of a kind is its own average
            self._before = self._before or (self.first.clone(), self.second.clone())
            self._follow(losses, begin=True)
        return super().backward(losses, learner)

    def settle(self, learner: Learner, losses: Mapping[str, Tensor], chance: torch.Generator) -> None:
        super().settle(learner, losses, chance)
        if self._before is not None:  # one of several micro-batches has a share of the step's losses, maybe none of one
            self.first, self.second = self._before
            self._before = None
        self._follow(losses)

    @torch.no_grad()
    def _follow(self, losses: Mapping[str, Tensor], begin: bool = False) -> None:
        """Move the averages towards the losses of a step; an average begins with the first loss that it sees. With
        `begin` those that are under way stay."""
        if not self.further:
            return
        for average, names in ((self.first, self.further.values()), (self.second, self.further)):
            mine = torch.stack([losses[name].detach().float() for name in names])
            now = all_sum(mine.clone()) / world()
            moved = torch.where(average > 0, average if begin else average.lerp(now, 1 - self.decay), now)
            average.copy_(torch.where(now > 0, moved, average))
