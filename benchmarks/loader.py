"""The loader's speed on one core.

    OMP_NUM_THREADS=1 python benchmarks/loader.py [FOLDER OF JPEGS]

1. Decode, mirror, scale jitter 320..1280 and crop to 512 of photographs with boxes, mask and depth: `Augment` against
   torchvision v2's reference transforms. The two take turns image by image in one process, so that a busy machine
   slows both alike. Aim: at least 2x.
2. The whole loader, to the finished batch, at 64 px from memory-mapped arrays with mask, depth and boxes, and with
   mirroring, jitter and colour. Aim: at most 400 us an image.

Times are processor time. Without a folder, photographs of 640 x 480 are made.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2

from tutelage.data.augment import Augment
from tutelage.data.loading import loader
from tutelage.data.mixture import Mixture
from tutelage.data.pixels import FilePicture
from tutelage.data.source import Dataset, Picture, UInt8
from tutelage.types import Boxes, Field, Mask, Target


def make_photos(folder: Path, count: int) -> list[Path]:
    """JPEGs of 640 x 480 with detail at all scales, as photographs have; about 70-90 kB each."""
    rng, paths = np.random.default_rng(0), []
    for number in range(count):
        image = np.zeros((480, 640, 3))
        for level in range(8):
            cells = rng.normal(size=(max(2, 480 >> level), max(2, 640 >> level), 3)).clip(-3, 3)
            small = Image.fromarray((cells * 40 + 128).astype(np.uint8))
            image += (np.asarray(small.resize((640, 480), Image.Resampling.BICUBIC)) - 128.0) * 0.12 * level
        paths.append(folder / f"{number:03d}.jpg")
        Image.fromarray((image + 128).clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def make_targets(height: int, width: int, rng: np.random.Generator) -> dict[str, Target]:
    """A mask, a depth map and eight boxes."""
    corners = rng.random((8, 2, 2)) * (width, height)
    boxes = np.concatenate([corners.min(1), corners.max(1) + 4], 1).clip(0, (width, height) * 2)
    return {
        "boxes": Boxes.make(boxes, np.arange(8)),
        "mask": Mask(torch.from_numpy(rng.integers(0, 20, (height, width), dtype=np.uint8))),
        "depth": Field(
            torch.from_numpy(rng.random((height, width), dtype=np.float32)),
            torch.ones(height, width, dtype=torch.bool),
        ),
    }


def against_torchvision(paths: list[Path], rounds: int) -> None:
    rng = np.random.default_rng(1)
    ours = Augment(scale=(320 / 512, 1280 / 512))
    theirs = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.ScaleJitter(target_size=(640, 640), scale_range=(0.5, 2.0), antialias=True),
            v2.RandomCrop(512, pad_if_needed=True, fill={tv_tensors.Mask: 255, "others": 0}),
            v2.SanitizeBoundingBoxes(),
        ]
    )
    sizes = [(p.height, p.width) for p in map(FilePicture, paths)]
    labels = [make_targets(*size, rng) for size in sizes]
    wrapped = [_as_tv_tensors(targets, size) for targets, size in zip(labels, sizes, strict=True)]

    def run_ours(i: int) -> None:
        image, _ = ours(FilePicture(paths[i]), labels[i], 512, rng)
        assert image.shape == (3, 512, 512)

    def run_theirs(i: int) -> None:
        image = tv_tensors.Image(decode_jpeg(read_file(str(paths[i])), mode=ImageReadMode.RGB))
        out, _ = theirs(image, wrapped[i])
        assert out.shape == (3, 512, 512)

    seconds = {run_ours: 0.0, run_theirs: 0.0}
    for i in range(min(5, len(paths))):
        run_ours(i)
        run_theirs(i)
    for _ in range(rounds):
        for i in range(len(paths)):
            for run in seconds:
                seconds[run] += _timed(lambda run=run, i=i: run(i))  # type: ignore[misc]
    decode = sum(_timed(lambda path=path: FilePicture(path).read()) for path in paths)  # type: ignore[misc]
    images = rounds * len(paths)
    print(f"{len(paths)} photographs, {images} images each way, one core")
    print(f"  decoding alone (Pillow)  {1e3 * decode / len(paths):6.2f} ms")
    print(f"  torchvision v2           {images / seconds[run_theirs]:6.1f} images/s")
    print(f"  tutelage                 {images / seconds[run_ours]:6.1f} images/s")
    print(f"  ratio                    {seconds[run_theirs] / seconds[run_ours]:6.2f} (aim: 2)")


def _as_tv_tensors(targets: dict[str, Target], size: tuple[int, int]) -> dict[str, torch.Tensor]:
    boxes, mask, depth = targets["boxes"], targets["mask"], targets["depth"]
    assert isinstance(boxes, Boxes)
    assert isinstance(mask, Mask)
    assert isinstance(depth, Field)
    return {
        "boxes": tv_tensors.BoundingBoxes(boxes.boxes, format="XYXY", canvas_size=size),
        "labels": boxes.classes,
        "mask": tv_tensors.Mask(mask.ids),
        "depth": tv_tensors.Mask(depth.values),
    }


def _timed(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


class MappedPicture(Picture):
    def __init__(self, pixels: UInt8) -> None:
        self.pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def read(self, scale: float = 1.0) -> UInt8:
        return self.pixels


class Mapped(Dataset):
    """Images in a memory-mapped array, labelled with masks; depth and boxes come as pseudo labels."""

    name, head, space = "mapped", "mask", None

    def __init__(self, folder: Path, count: int, side: int) -> None:
        rng = np.random.default_rng(0)
        arrays = {
            "images": rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8),
            "masks": rng.integers(0, 20, (count, side, side), dtype=np.uint8),
            "depths": rng.random((count, side, side), dtype=np.float32),
            "boxes": np.tile(np.float32([[4, 4, 20, 30], [10, 30, 50, 60], [30, 5, 60, 40]]), (count, 1, 1)),
        }
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        self.arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in arrays}
        self.faults = []

    def __len__(self) -> int:
        return len(self.arrays["images"])

    def id(self, index: int) -> str:
        return str(index)

    def picture(self, index: int) -> Picture:
        return MappedPicture(self.arrays["images"][index])

    def target(self, index: int) -> Target:
        return Mask(torch.from_numpy(np.array(self.arrays["masks"][index])))

    def sha256(self, index: int) -> str:
        return ""

    def get(self, head: str, source: str, id: str) -> Target | None:
        if head == "depth":
            values = torch.from_numpy(np.array(self.arrays["depths"][int(id)]))
            return Field(values, values >= 0)
        return Boxes.make(np.array(self.arrays["boxes"][int(id)]), [0, 1, 2])


def small_images(folder: Path, images: int) -> None:
    dataset, batch = Mapped(folder, 2000, 64), 64
    for colour in (0.0, 0.5):
        made = loader(
            Mixture([dataset]),
            ["boxes", "mask", "depth"],
            64,
            Augment(colour=colour),
            batch=batch,
            seed=0,
            first_step=0,
            steps=images // batch + 1,
            workers=0,
            labels=dataset,
        )
        next(made)
        steps = images // batch
        seconds = _timed(lambda made=made, steps=steps: [next(made) for _ in range(steps)])  # type: ignore[misc]
        each = 1e6 * seconds / (steps * batch)
        print(f"64 px, mask, depth and boxes, colour {colour:g}: {each:.0f} us an image (aim: 400)")


def main() -> None:
    parser = argparse.ArgumentParser(description="speed of the loader on one core")
    parser.add_argument("folder", nargs="?", type=Path, help="JPEG photographs to use instead of made ones")
    parser.add_argument("--rounds", type=int, default=5, help="times round all photographs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = sorted(options.folder.rglob("*.jpg"))[:60] if options.folder else make_photos(folder, 30)
        against_torchvision(paths, options.rounds)
        small_images(folder, 4000)


if __name__ == "__main__":
    main()
