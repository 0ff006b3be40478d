"""In which precision a network computes, and how its weights lie in memory for that."""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn


def autocast_dtype(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> torch.dtype | None:
    """The dtype to autocast to, or None for float32 throughout."""
    if precision == "fp32":
        return None
    if precision == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    return torch.bfloat16 if device.type == "cpu" and _cpu_computes_bf16() else None


def _cpu_computes_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def layout_of(device: torch.device, dtype: torch.dtype | None) -> torch.memory_format:
    """The memory format in which convolutions are quickest: channels-last in bfloat16, and always on a CPU."""
    last = dtype is torch.bfloat16 or device.type == "cpu"
    return torch.channels_last if last else torch.contiguous_format


def place(network: nn.Module, device: torch.device, dtype: torch.dtype | None) -> None:
    """Move a network to where it computes under autocast to `dtype`, laid out for that.

    Depthwise convolutions of a CPU stay in float32: torch's bfloat16 kernels for them take several times as long (an
    EfficientNet-Lite0 learns 2.4 times as fast so; LOG.md, 2026-11-22).
    """
    network.to(device, memory_format=layout_of(device, dtype))  # type: ignore[call-overload]
    if device.type == "cpu" and dtype is not None:
        for module in network.modules():
            if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels:
                module.__class__ = _in_float32(type(module))  # type: ignore[arg-type]  # mypy takes no class for a key


class _InFloat32(nn.Module):
    """Comes before a kind of convolution: on a CPU it computes in float32, whatever autocast does around it."""

    def forward(self, images: Tensor) -> Tensor:
        if images.device.type != "cpu":
            return super().forward(images)
        with torch.autocast("cpu", enabled=False):
            return super().forward(images.float()).to(images.dtype)


@cache
def _in_float32(kind: type) -> type:
    """The same kind of convolution, weights and names included, but for where it computes."""
    return kind if issubclass(kind, _InFloat32) else type(kind.__name__, (_InFloat32, kind), {})
