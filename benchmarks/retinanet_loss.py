"""What RetinaNet's loss costs on a batch without boxes against one with boxes, and against torchvision's focal loss.

Usage: python benchmarks/retinanet_loss.py [--size 320] [--batch 4] [--classes 20] [--boxes 8] [--rounds 9]

The head's output stands still; timed are matching, the loss and the gradient of that output, on the CPU or, where
there is one, on the GPU. Ratios come from one run, the sides in turn; the median over rounds is printed with the least
and the greatest. Aim: without boxes at most 1.0.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from tutelage.tasks import RetinaNet
from tutelage.tasks.retinanet import focal_loss
from tutelage.tasks.task import Features, Widths
from tutelage.types import Boxes, stack


def boxes(number: int, size: int, classes: int) -> Boxes:
    """Boxes of 1/16 to 1/2 of the side, anywhere."""
    side = size * (1 / 16 + torch.rand(number, 2) * 7 / 16)
    corner = torch.rand(number, 2) * (size - side)
    return Boxes.make(torch.cat([corner, corner + side], 1), torch.randint(0, classes, (number,)))


def seconds(work: Callable[[], Tensor], leaves: list[Tensor]) -> float:
    start = time.perf_counter()
    torch.autograd.grad(work(), leaves, allow_unused=True)
    if leaves[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(name: str, sides: tuple[Callable[[], Tensor], Callable[[], Tensor]], leaves: list[Tensor], n: int) -> None:
    """The first side's time over the second's."""
    for work in sides:
        seconds(work, leaves)
    ratios, spent = [], []
    for number in range(n):
        times = {side: seconds(sides[side], leaves) for side in ((0, 1) if number % 2 else (1, 0))}
        ratios.append(times[0] / times[1])
        spent.append(times[1])
    middle = statistics.median(ratios)
    print(
        f"{name:<52} {middle:.3f}  ({min(ratios):.3f} to {max(ratios):.3f}; {1000 * statistics.median(spent):.1f} ms)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("size", 320), ("batch", 4), ("classes", 20), ("boxes", 8), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = RetinaNet(classes=tuple(map(str, range(given.classes))), convs=0)
    levels = [torch.randn(given.batch, 8, *[-(-given.size // s)] * 2, device=device) for s in (8, 16, 32, 64, 128)]
    size = (given.size, given.size)
    with torch.no_grad():
        output = task.head(Widths(8, 8)).to(device)(Features(None, levels, None, size))
    leaves = [output[name].requires_grad_() for name in ("logits", "deltas")]
    full = stack([boxes(given.boxes, given.size, given.classes) for _ in range(given.batch)]).to(device)
    none = stack([Boxes.make([], [])] * given.batch).to(device)
    compare(
        "a batch without boxes / with boxes",
        (lambda: task.loss(output, none).sum, lambda: task.loss(output, full).sum),
        leaves,
        given.rounds,
    )
    labels = torch.zeros(leaves[0].shape[:2], dtype=torch.int64, device=device)
    labels[:, ::500] = 1

    def torchvisions() -> Tensor:
        one_hot = torch.nn.functional.one_hot(labels, given.classes + 1)[..., 1:].to(leaves[0])
        return sigmoid_focal_loss(leaves[0], one_hot, 0.25, 1.5, "sum")

    compare(
        "the focal loss alone / torchvision's",
        (lambda: focal_loss(leaves[0], labels, 0.25, 1.5), torchvisions),
        leaves,
        given.rounds,
    )


if __name__ == "__main__":
    main()
