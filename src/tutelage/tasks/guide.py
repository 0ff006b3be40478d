"""The guidance layer of feature distillation: what a student's features go through before they are compared with a
teacher's (He et al., ECCV 2022, X-Learner, section 3.3, equation 4; after Romero et al., ICLR 2015, FitNets).

Letters: B images, C channels of a map of h x w cells.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.tasks.norm import Norm2d


class Guide(nn.Module):
    """A guidance layer, Norm(Conv(x)) (equation 4): a 1x1 convolution to the teacher's channels, and a batch norm.

    The convolution has no bias: the norm takes it out. The norm has its own scale and shift, without which it could not
    follow features of any mean and spread; it is computed in float32.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm = Norm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B,inputs,h,w] to float32 [B,outputs,h,w]."""
        guided: Tensor = self.norm(self.conv(x).float())
        return guided


def resized(hint: Tensor, size: tuple[int, int]) -> Tensor:
    """A map [B,C,h,w] at another size: by averaging areas where it is larger both ways, else bilinearly."""
    if hint.shape[2:] == size:
        return hint
    if hint.shape[2] >= size[0] and hint.shape[3] >= size[1]:
        return F.interpolate(hint, size, mode="area")
    return F.interpolate(hint, size, mode="bilinear", align_corners=False)
