"""The batch norm of heads and pyramids, whose coarsest maps may be a single number a channel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Norm2d(nn.BatchNorm2d):
    """A batch norm that also takes one number a channel: a single image's map of a single cell.

    One number has no spread, so that torch refuses it in training. Here it goes by the running statistics, and is no
    part of them.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,h,w] to [B,C,h,w]."""
        if self.training and x[:, 0].numel() == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)
