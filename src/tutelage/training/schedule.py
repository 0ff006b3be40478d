"""How a network is trained, as a typed value; the optimiser and the learning rate that follow from it."""

from __future__ import annotations

import math
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
    """Micro-batches an optimiser step: memory for time; the result is that of the whole batch, batch norms apart."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    rate: float = Field(0.32, gt=0)
    """Peak learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of SGD; the first beta of AdamW."""
    weight_decay: float = Field(4e-5, ge=0)
    """On weights with two or more dimensions; biases and norms are left out."""
    warmup: int = Field(0, ge=0)
    """Steps over which the rate rises linearly; the cosine runs from there to the last step."""
    schedule: Literal["cosine", "constant"] = "cosine"
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
        return self


def rate_at(settings: Training, step: int) -> float:
    """Learning rate of step `step`, counted from 0: linear warm-up, then a cosine to zero at the last step."""
    if step < settings.warmup:
        return settings.rate * (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return settings.rate
    progress = (step - settings.warmup) / (settings.steps - settings.warmup)
    return settings.rate * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimiser(settings: Training, module: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW over the module's parameters; norms and biases without weight decay."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=settings.rate, momentum=settings.momentum, foreach=True)
    return torch.optim.AdamW(groups, lr=settings.rate, betas=(settings.momentum, 0.999), foreach=True)


def autocast_dtype(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> torch.dtype | None:
    """The dtype to autocast to, or None for float32 throughout."""
    if precision == "fp32":
        return None
    if precision == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    return torch.bfloat16 if device.type == "cpu" and _cpu_computes_bf16() else None


def _cpu_computes_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
