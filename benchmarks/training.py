"""What one student step costs against single-task steps, and what the loop adds to the bare network.

Usage: python benchmarks/training.py [--size 64] [--batch 32] [--rounds 5]

1. One four-task step against four single-task steps on the same images, each with all its labels (aim <= 0.45).
2. Images a second of the whole loop with its loader against the bare network on a resident batch (aim >= 0.85 on a
   CPU, >= 0.9 on a GPU).
3. Memory of the process while it reads an index of 1,000 and of 1,000,000 images (aim: flat).

All are ratios from one run, the two sides in turn; the median over rounds is printed with the least and the greatest.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tutelage.data.augment import Augment
from tutelage.data.loading import loader
from tutelage.data.mixture import Mixture
from tutelage.data.scenes import Scenes
from tutelage.data.source import Dataset, Place, Subset
from tutelage.models.student import Student
from tutelage.recipes import RECIPES
from tutelage.training.balance import Balance
from tutelage.training.fit import build
from tutelage.training.loop import train
from tutelage.training.precision import autocast_dtype, place
from tutelage.training.processes import device, leave_a_core_to_the_loader
from tutelage.training.schedule import Training, make_optimiser
from tutelage.types import Batch


class AllLabels:
    """The exact labels of scenes of the other heads, as a labels store would give them."""

    def __init__(self, sources: dict[str, Dataset]) -> None:
        self.sources = sources

    def get(self, head: str, source: str, id: str) -> object:
        del source
        return self.sources[head].target(int(id))


def stepper(student: Student, batch: Batch, where: torch.device) -> Callable[[], None]:
    """One optimiser step of the bare network on a resident batch."""
    dtype = autocast_dtype("auto", where)
    place(student.train(), where, dtype)
    optimiser, resident = make_optimiser(Training(rate=1e-4, clip=None), student), batch.to(where)

    def step() -> None:
        with torch.autocast(where.type, dtype, enabled=dtype is not None):
            losses = student(resident)
        torch.stack([loss.sum / loss.count.clamp(min=1) for loss in losses.values()]).sum().backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def seconds(work: Callable[[], object], where: torch.device) -> float:
    start = time.perf_counter()
    work()
    if where.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def show(name: str, ratios: list[float], aim: str) -> None:
    middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
    print(f"{name:<58} {middle:.3f}  ({low:.3f} to {high:.3f}, {len(ratios)} rounds)  {aim}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--size", type=int, default=64)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    where = device()
    leave_a_core_to_the_loader()
    recipe = RECIPES["demo"]()
    model = recipe.model.but(size=given.size)
    print(f"{where}, {torch.get_num_threads()} threads, {given.size} px, batch {given.batch}, {model.backbone}")
    with tempfile.TemporaryDirectory() as cache:
        place = Place(Path(cache), Path(cache))
        kinds = {"classes": "classes", "objects": "boxes", "materials": "mask", "depth": "depth"}
        sources = {
            head: Scenes(world="workshop", label=kind, head=head, images=256, size=given.size).open(head, place)
            for head, kind in kinds.items()
        }
        heads = {h: t if h == "depth" else t.but(classes=sources[h].space.names) for h, t in recipe.heads.items()}
        labels = AllLabels(sources)
        mixture = Mixture([sources["classes"]], seed=0)

        def stream(steps: int, workers: int = 1):
            augment = Augment(scale=(0.9, 1.4), colour=0.2)
            names = list(heads)
            return loader(mixture, names, given.size, augment, given.batch, 0, 0, steps, workers, labels=labels)

        batch = next(stream(1, 0))
        together = stepper(build(model, heads, 0, "all", Path()), batch, where)
        apart = []
        for head, task in heads.items():
            alone = Batch(batch.images, {head: batch.heads[head]}, batch.ids)
            apart.append(stepper(build(model, {head: task}, 0, head, Path()), alone, where))
        for step in (together, *apart):
            step()
        ratios = []
        for _ in range(given.rounds):
            one = seconds(lambda: [together() for _ in range(4)], where)
            four = seconds(lambda: [step() for _ in range(4) for step in apart], where)
            ratios.append(one / four)
        show("one four-task step / four single-task steps", ratios, "aim <= 0.45")

        steps, ratios = 40, []
        for number in range(given.rounds):
            student = build(model, heads, 0, "loop", Path())
            settings = Training(steps=steps, batch=given.batch, rate=1e-4, optimiser="sgd", checkpoint_seconds=1e9)
            rule = Balance().build(list(heads), (1, 1.0), {})
            folder = Path(cache) / f"loop-{number}"
            folder.mkdir()
            whole = seconds(
                lambda s=student, t=settings, r=rule, f=folder: train(
                    s, t, r, lambda first: stream(steps), f, seed=0, device=where
                ),
                where,
            )
            bare = seconds(lambda: [together() for _ in range(steps)], where)
            ratios.append(bare / whole)
        show("images/s of the loop with loader / bare network", ratios, "aim >= 0.85 (CPU), >= 0.9 (GPU)")

        peaks = []
        for count in (1_000, 1_000_000):
            many = Subset(sources["classes"], torch.arange(count).numpy() % 256)
            for _ in loader(Mixture([many], seed=0), ["classes"], given.size, Augment(), 32, 0, 0, 50, 0):
                pass
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        print(f"peak memory with 1,000 and 1,000,000 images: {peaks[0]:.0f} and {peaks[1]:.0f} MiB")


if __name__ == "__main__":
    main()
