"""The transfer suite's wall time: grid points side by side on shared decoded data, against one after another.

    python benchmarks/suite.py [--rounds 3] [--jobs 2]

Two downstream sets of JPEGs (classes and masks, 640 x 480), two initialisations, a grid of two rates and two lengths.
"One after another" is how a grid is usually run: one process with all cores but one, a loader process beside it, every
image decoded whenever it is needed. "The suite" is `tutelage transfer` as it comes. The two take turns. Aim: at most
0.6 on two cores, at most 0.4 on a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from loader import make_photos
from PIL import Image

from tutelage import api
from tutelage.data import Folders, Masks
from tutelage.data.augment import Augment
from tutelage.models.backbone import Timm
from tutelage.models.pyramid import Pyramid
from tutelage.models.student import Model
from tutelage.progress import SILENT
from tutelage.recipe import FineTuning, Recipe, Start, TransferSet
from tutelage.tasks import Classification, Segmentation
from tutelage.training.schedule import Training


def make_sets(folder: Path, images: int) -> None:
    """Classes in folders, and masks of eight classes."""
    rng = np.random.default_rng(0)
    for name, share in (("train", 1.0), ("validation", 0.4), ("test", 0.4)):
        for kind in ("classes/a", "classes/b", "pictures"):
            where = folder / kind.replace("classes", f"classes/{name}") if "/" in kind else folder / kind / name
            where.mkdir(parents=True)
            for path in make_photos(where, max(2, int(images * share) // (2 if "/" in kind else 1))):
                with Image.open(path) as image:  # no two parts may share an image
                    noisy = np.asarray(image).astype(np.int16) + rng.integers(-9, 9, (480, 640, 1))
                Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
                if kind == "pictures":
                    mask = folder / "masks" / name / f"{path.stem}.png"
                    mask.parent.mkdir(parents=True, exist_ok=True)
                    small = Image.fromarray(rng.integers(0, 8, (6, 8), dtype=np.uint8))
                    small.resize((640, 480), Image.Resampling.NEAREST).save(mask)
    (folder / "classes.json").write_text(json.dumps([f"class {number}" for number in range(8)]))


def recipe(folder: Path, steps: int, alone: bool) -> Recipe:
    """Two sets, two rows, four grid points."""

    def masks(part: str) -> Masks:
        paths = {"images": f"pictures/{part}", "masks": f"masks/{part}"}
        return Masks(head="masks", classes="classes.json", **paths)

    sets = {
        "classes": TransferSet(
            head=Classification(),
            **{part: Folders(head="classes", root=f"classes/{part}") for part in ("train", "validation", "test")},
        ),
        "masks": TransferSet(head=Segmentation(), **{part: masks(part) for part in ("train", "validation", "test")}),
    }
    training = Training(
        batch=16, optimiser="adamw", rate=1e-3, clip=5.0, augment=Augment(scale=(0.8, 1.5)), workers=int(alone)
    )
    options = {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256]}
    return Recipe(
        name="suite",
        method="transfer",
        data=str(folder),
        model=Model(backbone=Timm(name="resnet18", options=options), pyramid=Pyramid(width=64), size=96),
        transfer=sets,
        finetuning=FineTuning(training=training, rates=(1e-3, 4e-3), steps=(steps // 2, steps)),
        initialisations={"again": Start()},
        decoded_gigabytes=0.0 if alone else 4.0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    threads, ratios = torch.get_num_threads(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_sets(folder, given.images)
        for number in range(given.rounds):
            spent = {}
            for way in ("alone", "suite") if number % 2 else ("suite", "alone"):
                torch.set_num_threads(threads)
                start = time.perf_counter()
                mine = recipe(folder, given.steps, way == "alone")
                api.run(mine, folder / f"{way}-{number}", SILENT, jobs=given.jobs if way == "suite" else 1)
                spent[way] = time.perf_counter() - start
            ratios.append(spent["suite"] / spent["alone"])
            print(f"suite {spent['suite']:.0f} s, one after another {spent['alone']:.0f} s, ratio {ratios[-1]:.2f}")
    print(f"ratio: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
