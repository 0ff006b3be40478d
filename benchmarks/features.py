"""What it costs to learn stored features, against plain training and against a teacher that runs in every step.

    OMP_NUM_THREADS=1 python benchmarks/features.py [--student resnet18] [--teacher resnet50] [--size 64] [--batch 16]
        [--images 64] [--steps 4] [--rounds 5] [--workers 0]

1. The training loop with its loader, which reads the features from a labels store, against the same loop on people's
   labels of the same images, which trains a classification head (aim <= 1.2); the same with the teacher in the loop.
2. The same steps on resident batches, without a loader.
3. How long the loader alone takes for an image with features, against one with a class; bytes an image in the store.

The student, the images and their augmentation are the same on all sides; weights are random. The sides take turns; the
median of the ratios over rounds is printed with the least and the greatest.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from tutelage.data.augment import Augment
from tutelage.data.loading import loader
from tutelage.data.mixture import Mixture
from tutelage.data.scenes import Scenes
from tutelage.data.source import Dataset, Place
from tutelage.labels.health.sample import read_row
from tutelage.labels.labelling import label_pool
from tutelage.labels.store import LabelsView, Store, shard_file
from tutelage.models.backbone import Timm
from tutelage.models.learner import Learner
from tutelage.models.student import Model
from tutelage.tasks import Classification
from tutelage.tasks.task import Task
from tutelage.teachers import FeatureTeacher
from tutelage.training.fit import build
from tutelage.training.guidance import Frozen
from tutelage.training.loop import train
from tutelage.training.precision import autocast_dtype, place
from tutelage.training.processes import device, leave_a_core_to_the_loader
from tutelage.training.rules import Weighted
from tutelage.training.schedule import Training, make_optimiser
from tutelage.training.squeeze import Squeeze
from tutelage.types import Batch

SIDES = ("plain", "stored", "live")


class Sides:
    """The three ways to train one student.

    Args:
        given: the command line.
        folder: for all files.
        where: the device.
    """

    def __init__(self, given: argparse.Namespace, folder: Path, where: torch.device) -> None:
        self.given, self.folder, self.where, self.runs = given, folder, where, 0
        teacher = Timm(name=given.teacher)
        torch.save(teacher.build().net.state_dict(), folder / "teacher.pth")
        self.part = FeatureTeacher(backbone=teacher.but(weights="teacher.pth"), size=given.size)
        scenes = Scenes(world="catalogue", label="classes", head="things", images=given.images, size=given.size)
        self.dataset: Dataset = scenes.open("scenes", Place(folder, folder))
        assert self.dataset.space is not None
        self.heads: dict[str, dict[str, Task]] = {
            "plain": {"things": Classification(classes=self.dataset.space.names)},
            "stored": {"seen": self.part.does(folder)},
            "live": {},
        }
        opened = self.part.open("seen", self.heads["stored"]["seen"], folder, where)
        label_pool([self.dataset], [opened], folder / "labels")
        self.store = Store(folder / "labels")
        self.store.prepare()

    def learner(self, side: str) -> Learner:
        model = Model(backbone=Timm(name=self.given.student), size=self.given.size)
        student = build(model, self.heads[side], 0, "student", Path())
        if side != "live":
            return student
        assert self.part.backbone is not None
        return Squeeze(student, teachers={"seen": Frozen.of_backbone(self.part.backbone, self.folder)})

    def batches(self, side: str, first: int, steps: int, workers: int) -> Iterator[Batch]:
        labels = LabelsView(self.store, self.heads["stored"]) if side == "stored" else None
        names, given = list(self.heads[side]), self.given
        mixture = Mixture([self.dataset], seed=0)
        return loader(mixture, names, given.size, Augment(), given.batch, 0, first, steps, workers, labels=labels)

    def loop(self, side: str) -> float:
        """Seconds of a whole training."""
        learner = self.learner(side)
        losses = list(learner.rule().weights()) if isinstance(learner, Squeeze) else list(self.heads[side])
        settings = Training(steps=self.given.steps, batch=self.given.batch, rate=1e-4, checkpoint_seconds=1e9)
        self.runs += 1
        folder = self.folder / f"run-{self.runs}"
        folder.mkdir()
        return seconds(
            lambda: train(
                learner,
                settings,
                Weighted(dict.fromkeys(losses, 1.0)),
                lambda first: self.batches(side, first, settings.steps - first, self.given.workers),
                folder,
                seed=0,
                device=self.where,
            ),
            self.where,
        )

    def step(self, side: str) -> Callable[[], None]:
        """One step on a resident batch."""
        dtype = autocast_dtype("auto", self.where)
        learner = self.learner(side)
        place(learner, self.where, dtype)
        optimiser = make_optimiser(Training(rate=1e-4, clip=None), learner.train())
        resident = next(self.batches(side, 0, 1, 0)).to(self.where)

        def one() -> None:
            with torch.autocast(self.where.type, dtype, enabled=dtype is not None):
                losses = learner(resident)
            torch.stack([loss.sum / loss.count.clamp(min=1) for loss in losses.values()]).sum().backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

        return one

    def load(self, side: str) -> float:
        """Seconds to load an image."""
        batches, steps = self.batches(side, 0, self.given.steps, 0), self.given.steps
        return seconds(lambda: list(batches), self.where) / (steps * self.given.batch)


def seconds(work: Callable[[], object], where: torch.device) -> float:
    start = time.perf_counter()
    work()
    if where.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def show(name: str, ratios: list[float], aim: str = "") -> None:
    middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
    print(f"{name:<66} {middle:.3f}  ({low:.3f} to {high:.3f}, {len(ratios)} rounds)  {aim}")


def compare(what: str, rounds: int, work: Callable[[str], float]) -> None:
    """The sides in turn, once unmeasured."""
    for side in SIDES:
        work(side)
    found = [{side: work(side) for side in SIDES} for _ in range(rounds)]
    show(f"{what}: stored features / people's labels", [one["stored"] / one["plain"] for one in found], "aim <= 1.2")
    show(f"{what}: live teacher / people's labels", [one["live"] / one["plain"] for one in found])
    show(f"{what}: stored features / live teacher", [one["stored"] / one["live"] for one in found])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--student", default="resnet18")
    options.add_argument("--teacher", default="resnet50")
    for name, default in (("size", 64), ("batch", 16), ("images", 64), ("steps", 4), ("rounds", 5), ("workers", 0)):
        options.add_argument(f"--{name}", type=int, default=default)
    given = options.parse_args()
    where = device()
    leave_a_core_to_the_loader()
    print(f"{where}, {torch.get_num_threads()} threads, {vars(given)}")
    with tempfile.TemporaryDirectory() as folder:
        sides = Sides(given, Path(folder), where)
        compare("loop", given.rounds, sides.loop)
        steps = {side: sides.step(side) for side in SIDES}
        compare("step", given.rounds, lambda side: seconds(steps[side], where))
        loaded = [(sides.load("stored"), sides.load("plain")) for _ in range(given.rounds)]
        show("loading an image: with features / with a class", [a / b for a, b in loaded])
        print(f"loading an image with features: {1e3 * statistics.median(a for a, _ in loaded):.2f} ms")
        shape = read_row(sides.store, "seen", shard_file(0), 0).target.values.shape
        each = sides.store.manifest("seen").bytes / given.images
        print(f"{' x '.join(map(str, shape))} features in float16: {each / 1e3:.1f} kB an image in the store")


if __name__ == "__main__":
    main()
