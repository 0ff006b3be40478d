"""What a multiply-add costs in SpineNet and in NAS-FPN, against torchvision's ResNet-50 with its FPN.

    OMP_NUM_THREADS=1 python benchmarks/backbones.py [--size 256] [--batch 2] [--rounds 5] [--precision auto]

Forward and backward, training mode, random weights and images, in the precision and memory layout that the training
loop takes by itself. The multiply-adds are those of the convolutions, forward. The reference gets `--batch` images,
every other network as many as come nearest to its multiply-adds. Every round runs each network once, the reference
among them; printed is the median over rounds of (time / multiply-adds) over that of the reference in the same round,
with the least and the greatest (aim <= 1.5). On a CPU it is the processor's time, which other work disturbs less.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from tutelage.models.backbone import Backbone, SpineNet, Torchvision
from tutelage.models.pyramid import Pyramid
from tutelage.training.precision import autocast_dtype, layout_of, place
from tutelage.training.processes import device

REFERENCE = "ResNet-50-FPN"


class Levels(nn.Module):
    """A backbone of this package with its pyramid."""

    def __init__(self, backbone: Backbone, pyramid: Pyramid) -> None:
        super().__init__()
        self.backbone = backbone.build()
        self.pyramid = pyramid.build(self.backbone)

    def forward(self, images: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.pyramid(self.backbone(images))
        return levels


class Reference(nn.Module):
    """Torchvision's, with norms that learn, as all the others have."""

    def __init__(self) -> None:
        super().__init__()
        self.net = resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, trainable_layers=5, norm_layer=nn.BatchNorm2d
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.net(images).values())


def networks() -> dict[str, nn.Module]:
    resnet = Torchvision(name="resnet50")
    return {
        REFERENCE: Reference(),
        "SpineNet-49, swish": Levels(SpineNet(), Pyramid()),
        "SpineNet-49, ReLU": Levels(SpineNet(activation="relu"), Pyramid()),
        "ResNet-50, NAS-FPN x 7": Levels(resnet, Pyramid(kind="nas-fpn")),
        "ResNet-50, NAS-FPN x 7, separable": Levels(resnet, Pyramid(kind="nas-fpn", separable=True)),
    }


def multiply_adds(net: nn.Module, images: Tensor) -> int:
    """Of the convolutions, forward, for these images."""
    found: list[int] = []
    hooks = [
        module.register_forward_hook(lambda m, _, out: found.append(m.weight[0].numel() * out.numel()))
        for module in net.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        net.eval()(images)
    net.train()
    for hook in hooks:
        hook.remove()
    return sum(found)


def seconds(net: nn.Module, images: Tensor, dtype: torch.dtype | None) -> float:
    """One pass forward and backward."""
    net.zero_grad(set_to_none=True)
    clock = time.perf_counter if images.is_cuda else time.process_time
    if images.is_cuda:
        torch.cuda.synchronize()
    start = clock()
    with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
        levels = net(images)
    torch.stack([level.float().mean() for level in levels]).sum().backward()
    if images.is_cuda:
        torch.cuda.synchronize()
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=2, help="images of the reference")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    options = parser.parse_args()
    torch.manual_seed(0)
    where = device()
    dtype = autocast_dtype(options.precision, where)
    layout, nets = layout_of(where, dtype), networks()
    for net in nets.values():
        place(net, where, dtype)
    image = torch.randn(1, 3, options.size, options.size, device=where).contiguous(memory_format=layout)
    each = {name: multiply_adds(net, image) for name, net in nets.items()}
    images = {name: max(1, round(options.batch * each[REFERENCE] / each[name])) for name in nets}
    batches = {name: torch.randn(count, *image.shape[1:], device=where) for name, count in images.items()}
    batches = {name: batch.contiguous(memory_format=layout) for name, batch in batches.items()}
    for name, net in nets.items():
        seconds(net, batches[name], dtype)
    times: dict[str, list[float]] = {name: [] for name in nets}
    for _ in range(options.rounds):
        for name, net in nets.items():
            times[name].append(seconds(net, batches[name], dtype))
    print(f"{options.size} px, {str(dtype or torch.float32)[6:]}, {where.type}")
    work = {name: each[name] * images[name] for name in nets}
    for name, taken in times.items():
        ratios = [
            (own / work[name]) / (other / work[REFERENCE]) for own, other in zip(taken, times[REFERENCE], strict=True)
        ]
        print(
            f"{name:<35} {images[name]:3d} images {work[name] / 1e9:7.2f}B {statistics.median(taken):7.3f} s   "
            f"a multiply-add {statistics.median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
