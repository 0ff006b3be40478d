"""What the training loop trains: anything that turns a batch into one loss a head."""

from __future__ import annotations

import abc

from torch import Tensor, nn

from tutelage.types import Batch, LossSum


class Learner(nn.Module, abc.ABC):
    """A network with its losses. To be trained by `training.loop.train`, a module needs no more than this."""

    @abc.abstractmethod
    def forward(self, batch: Batch) -> dict[str, LossSum]:
        """Head name to loss, with the same heads for every batch and every parameter in the graph.

        The number of units in each loss is that of `count`.
        """

    @abc.abstractmethod
    def count(self, batch: Batch) -> dict[str, Tensor]:
        """Head name to the number of labelled units in a batch, float32 scalars, from the batch alone.

        It is asked before the network runs: the step divides by the count of all processes and micro-batches.
        """

    def trunk(self) -> nn.Module:
        """The part that every loss goes through, with nothing of it after the place where the heads part."""
        return self

    def shared(self) -> list[nn.Parameter]:
        """The parameters that more than one loss may reach."""
        return list(self.trunk().parameters())
