"""What bfloat16 is worth on this device, network by network, as the training loop places it.

    OMP_NUM_THREADS=1 python benchmarks/precision.py [--size 96] [--batch 16] [--rounds 5] [NETWORK ...]

Forward and backward of timm's networks, training mode, random weights and images: in float32, in float32 and bfloat16
as the loop lays them out, and in bfloat16 with every convolution (depthwise ones too). Every round runs each way once;
printed is the median over rounds of the speed over that of plain float32 in the same round, with the least and the
greatest. On a CPU it is the processor's time, which other work disturbs less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch
from torch import nn

from tutelage.training.precision import place
from tutelage.training.processes import device

NETWORKS = ("tf_efficientnet_lite0", "mobilenetv3_small_100", "convnext_atto", "resnet18", "resnet50")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    where, half = device(), torch.bfloat16
    ways: dict[str, tuple[torch.dtype | None, Callable[[nn.Module], object]]] = {
        "float32": (None, lambda net: net.to(where)),
        "float32, placed": (None, lambda net: place(net, where, None)),
        "bfloat16 throughout": (half, lambda net: net.to(where, memory_format=torch.channels_last)),
        "bfloat16, placed": (half, lambda net: place(net, where, half)),
    }
    images = torch.randn(options.batch, 3, options.size, options.size, device=where)
    for name in options.networks:
        nets = {way: timm.create_model(name, num_classes=10).train() for way in ways}
        for way, (_, prepare) in ways.items():
            prepare(nets[way])
        spent: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(options.rounds + 1):
            for way, (dtype, _) in ways.items():
                took = _step(nets[way], images, dtype)
                if number:  # the first round warms up
                    spent[way].append(took)
        print(name)
        for way, times in spent.items():
            ratios = [first / took for first, took in zip(spent["float32"], times, strict=True)]
            print(f"  {way:<20} {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def _step(net: nn.Module, images: torch.Tensor, dtype: torch.dtype | None) -> float:
    """Seconds of one forward and backward pass: of the processor on a CPU, else of the clock."""
    kernel = next(p for p in net.parameters() if p.dim() == 4 and p.shape[2] > 1)
    last = kernel.is_contiguous(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    clock = time.process_time if images.device.type == "cpu" else time.monotonic
    start = clock()
    with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
        loss = net(images).float().square().mean()
    loss.backward()
    net.zero_grad(set_to_none=True)
    if images.device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


if __name__ == "__main__":
    main()
