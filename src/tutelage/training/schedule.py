"""How a network is trained, as a typed value; the optimiser and the learning rate that follow from it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from tutelage.data.augment import Augment
from tutelage.part import Part


class Training(Part):
    """Settings of one training run. Sizes are in pixels, lengths in optimiser steps, batches over all processes."""

    steps: int = Field(10_000, ge=1)
    batch: int = Field(256, ge=1)
    """Images an optimiser step, over all processes and accumulated micro-batches."""
    accumulate: int = Field(1, ge=1)
    """Micro-batches an optimiser step: memory for time. The result is that of the whole batch, but for batch norms and
    for RetinaNet, which divides by the positive anchors of a micro-batch."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    rate: float = Field(0.32, gt=0)
    """Peak learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of SGD; the first beta of AdamW."""
    weight_decay: float = Field(4e-5, ge=0)
    """On weights with two or more dimensions; biases and norms are left out."""
    warmup: int = Field(0, ge=0)
    """Steps over which the rate rises linearly; the cosine runs from there to the last step."""
    schedule: Literal["cosine", "constant", "steps"] = "cosine"
    """After the warm-up: a cosine to zero, the same rate to the end, or one that falls in steps, by `drops`."""
    drops: tuple[tuple[float, float], ...] = ((0.5, 0.5), (0.7, 0.2), (0.9, 0.1))
    """Of the schedule `steps`: from this share of all steps on, warm-up included, the rate is so many times what it was
    before. The defaults are those of X-Learner (He et al., ECCV 2022, section 4.1), which states shares and factors;
    that the factors multiply, to 0.5, 0.1 and 0.01 of the rate, is our reading of it."""
    clip: float | None = Field(10.0, gt=0)
    """Largest gradient norm; None: no clipping."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, which is then what the stage delivers; None: off."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bfloat16 autocast where the device computes it natively."""
    augment: Augment = Augment()
    workers: int = Field(1, ge=0)
    """Loader processes a training process; 0 loads in the process itself."""
    checkpoint_seconds: float = Field(60, ge=0)
    """Time between two checkpoints. It does not change the result."""
    log_every: int = Field(10, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Training:
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} cannot be cut into {self.accumulate} equal micro-batches")
        if self.warmup >= self.steps:
            raise ValueError(f"warmup {self.warmup} must be shorter than the {self.steps} steps")
        shares = [share for share, _ in self.drops]
        if any(not 0 < share < 1 for share in shares) or any(b <= a for a, b in pairwise(shares)):
            raise ValueError(f"drops: the shares of the steps must increase inside (0, 1), they are {shares}")
        if any(not 0 < factor < math.inf for _, factor in self.drops):
            raise ValueError(f"drops: factors must be above 0, they are {[factor for _, factor in self.drops]}")
        return self


def rate_at(settings: Training, step: int) -> float:
    """Learning rate of step `step`, counted from 0: linear warm-up, then what the schedule says."""
    if step < settings.warmup:
        return settings.rate * (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return settings.rate
    if settings.schedule == "steps":
        # the quotient, and not share x steps, which may be a hair above the step that is meant: 0.07 x 100 > 7
        return settings.rate * math.prod(factor for share, factor in settings.drops if step / settings.steps >= share)
    progress = (step - settings.warmup) / (settings.steps - settings.warmup)
    return settings.rate * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimiser(settings: Training, module: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW over the module's parameters; norms and biases without weight decay.

    Frozen parameters are in the groups as well. Without a gradient nothing moves them, not even weight decay; and the
    optimiser's state fits the groups also where a part is frozen for some of the steps only.
    """
    weights = list(module.parameters())
    groups = [
        {"params": [p for p in weights if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in weights if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimiser == "sgd":
        # Not fused: torch's fused momentum fails where some weights got their first gradient later than others.
        return torch.optim.SGD(groups, lr=settings.rate, momentum=settings.momentum, foreach=True)
    return torch.optim.AdamW(groups, lr=settings.rate, betas=(settings.momentum, 0.999), fused=True)
