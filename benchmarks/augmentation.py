"""Augment-S4 with all labels against torchvision's RandAugment on the image alone, on one core.

    OMP_NUM_THREADS=1 python benchmarks/augmentation.py

Images of 640 x 480 in memory, mirrored, scale jitter (0.5, 2.0), a window of 512 x 512, two operations of magnitude
10 (30 on torchvision's scale). Ours moves boxes, a mask, a depth map and normals along; torchvision's transforms get
the image.
The two take turns image by image in one process, so that a busy machine slows both alike; times are processor time.
Aim: at least 0.8 of torchvision's images a second.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from tutelage.data.augment import Augment, augment_s1, augment_s2, augment_s3, augment_s4
from tutelage.data.source import Picture, UInt8
from tutelage.types import Boxes, Field, Mask, Target, Vectors

HEIGHT, WIDTH, SIZE = 480, 640, 512


class InMemory(Picture):
    def __init__(self, pixels: UInt8) -> None:
        self.pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def read(self, scale: float = 1.0) -> UInt8:
        return self.pixels


def make(rng: np.random.Generator) -> tuple[UInt8, dict[str, Target]]:
    """A smooth image with noise, eight boxes, a mask, a depth map and normals; a tenth of the pixels is not valid."""
    coarse = torch.from_numpy(rng.integers(0, 256, (1, 3, 15, 20)).astype(np.float32))
    image = torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bicubic")[0].numpy()
    image = image + rng.normal(0, 8, image.shape)
    pixels = np.ascontiguousarray(np.moveaxis(image, 0, -1).clip(0, 255).astype(np.uint8))
    corners = rng.random((8, 2, 2)) * (WIDTH, HEIGHT)
    boxes = np.concatenate([corners.min(1), corners.max(1) + 4], 1).clip(0, (WIDTH, HEIGHT) * 2)
    valid = torch.from_numpy(rng.random((HEIGHT, WIDTH)) < 0.9)
    normals = torch.from_numpy(rng.normal(size=(3, HEIGHT, WIDTH)).astype(np.float32))
    return pixels, {
        "boxes": Boxes.make(boxes, np.arange(8)),
        "mask": Mask(torch.from_numpy(rng.integers(0, 20, (HEIGHT, WIDTH), dtype=np.uint8))),
        "depth": Field(torch.from_numpy(rng.random((HEIGHT, WIDTH), dtype=np.float32)) * valid, valid),
        "normals": Vectors(normals / normals.norm(dim=0) * valid, valid),
    }


def theirs(interpolation: v2.InterpolationMode) -> v2.Compose:
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.ScaleJitter(target_size=(SIZE, SIZE), scale_range=(0.5, 2.0), antialias=True),
            v2.RandomCrop(SIZE, pad_if_needed=True, fill=124),
            v2.RandAugment(2, 30, interpolation=interpolation),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=600, help="images each way")
    count = parser.parse_args().images
    rng = np.random.default_rng(0)
    samples = [make(rng) for _ in range(8)]
    torch.manual_seed(0)

    def ours(augment: Augment, labelled: bool = True) -> Callable[[int], torch.Tensor]:
        def run(i: int) -> torch.Tensor:
            pixels, targets = samples[i % len(samples)]
            return augment(InMemory(pixels), targets if labelled else {}, SIZE, rng)[0]

        return run

    def peer(transform: v2.Compose) -> Callable[[int], torch.Tensor]:
        images = [tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1).contiguous()) for pixels, _ in samples]
        return lambda i: transform(images[i % len(images)])

    reference = "torchvision, image alone"
    runs = {
        reference: peer(theirs(v2.InterpolationMode.NEAREST)),
        "torchvision, bilinear": peer(theirs(v2.InterpolationMode.BILINEAR)),
        "Augment-S4, image alone": ours(augment_s4(), labelled=False),
        "Augment-S4, all labels": ours(augment_s4()),
        "Augment-S3, all labels": ours(augment_s3()),
        "Augment-S2, all labels": ours(augment_s2()),
        "Augment-S1, all labels": ours(augment_s1()),
    }
    seconds = dict.fromkeys(runs, 0.0)
    for i in range(-5, count):
        for name, run in runs.items():
            start = time.process_time()
            assert run(i).shape == (3, SIZE, SIZE)
            if i >= 0:
                seconds[name] += time.process_time() - start
    print(f"{count} images each way, {WIDTH} x {HEIGHT} to {SIZE} x {SIZE}, {torch.get_num_threads()} thread(s)")
    for name, spent in seconds.items():
        print(f"  {name:26s} {1e3 * spent / count:6.2f} ms   ratio {seconds[reference] / spent:5.2f}")
    print("  aim: Augment-S4 with all labels at least 0.80 of torchvision's speed on the image alone")


if __name__ == "__main__":
    main()
