"""How fast scenes are rendered, with all label maps: images a second at 64, 128 and 256 px.

    OMP_NUM_THREADS=1 python benchmarks/scenes.py [world ...]

One CPU thread; a CUDA device too where there is one. CPU figures are by processor time, so that neighbours on a busy
machine do not count. The label maps are those of all five tasks, boxes included.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

from tutelage.data.scenes import POOL, WORLDS, World, render
from tutelage.data.scenes.labels import boxes, main_classes, masks

IMAGES = {"cpu": {64: 128, 128: 32, 256: 8}, "cuda": {64: 8192, 128: 2048, 256: 512}}


def everything(world: World, size: int, device: str) -> None:
    images = IMAGES[device][size]
    step = images if device == "cpu" else max(1, 2**23 // size**2)
    for start in range(0, images, step):
        batch = render(world, 0, range(start, min(images, start + step)), size, device)
        masks(world, batch)
        boxes(world, batch)
        main_classes(world, batch)
    if device == "cuda":
        torch.cuda.synchronize()


def rate(world: World, size: int, device: str) -> float:
    clock: Callable[[], float] = time.process_time if device == "cpu" else time.perf_counter
    everything(world, size, device)  # warm up
    best = float("inf")
    for _ in range(3):
        start = clock()
        everything(world, size, device)
        best = min(best, clock() - start)
    return IMAGES[device][size] / best


def main() -> None:
    torch.set_num_threads(1)
    names = sys.argv[1:] or [POOL.name, "catalogue", "workshop", "hills"]
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    print(f"{'images/s':<12}" + "".join(f"{d + ' ' + str(s):>12}" for d in devices for s in IMAGES[d]))
    for name in names:
        figures = [rate(WORLDS[name], size, device) for device in devices for size in IMAGES[device]]
        print(f"{name:<12}" + "".join(f"{figure:>12.1f}" for figure in figures), flush=True)


if __name__ == "__main__":
    main()
