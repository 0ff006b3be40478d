"""What an X-Learner's steps cost, and what their graphs hold.

    OMP_NUM_THREADS=1 python benchmarks/x_learner.py [--backbone resnet50] [--size 128] [--batch 8] [--rounds 5]

1. One joint expansion step of T sub-backbones, each with `--batch` images of its own task, against T separate steps of
   single-task networks on the same images, T = 2 and 3 (aim <= 1.15); the same before tau, where nothing is joined.
2. One squeeze step with the features of 2 tasks given, as a store would, against plain training of the student with a
   classification head on the same images (aim <= 1.2); the same with the expanded backbone computing them.
3. What the graph of a joint step holds, against the sum over the separate steps: bytes of all that is kept for the way
   back in float32, weights left out (aim: 1, and the layers' own inputs). It is counted, not sampled.

Random weights and images, in the precision and memory layout that the training loop takes by itself. The two sides in
turn; the median over rounds is printed with the least and the greatest. On a CPU it is the processor's time, which
other work disturbs less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tutelage.models.backbone import Backbone, FeatureMaps, Timm
from tutelage.models.expanded import Reconciliation
from tutelage.models.learner import Learner
from tutelage.models.student import Model
from tutelage.tasks import Classification
from tutelage.training.expansion import Expansion
from tutelage.training.guidance import Frozen, FrozenTasks
from tutelage.training.precision import autocast_dtype, place
from tutelage.training.processes import device
from tutelage.training.schedule import Training, make_optimiser
from tutelage.training.squeeze import Squeeze
from tutelage.types import Batch, HeadBatch, Label, LossSum, stack

TASKS = ("one", "two", "three")
CLASSES = tuple(f"class {number}" for number in range(10))


class Given(FeatureMaps):
    """Features that were computed before."""

    def __init__(self, maps: list[Tensor], strides: tuple[int, ...]) -> None:
        super().__init__()
        self.maps, self.strides, self.widths = maps, strides, tuple(one.shape[1] for one in maps)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [one[: len(images)] for one in self.maps]


def batch(size: int, *images: int) -> Batch:
    """Random images, so many of each task, labelled for its head alone."""
    pixels = torch.randint(0, 256, (sum(images), 3, size, size), dtype=torch.uint8)
    heads, first = {}, 0
    for task, own in zip(TASKS, images, strict=False):
        targets = stack([Label(torch.eye(len(CLASSES))[number % len(CLASSES)]) for number in range(own)])
        heads[task] = HeadBatch(torch.arange(first, first + own), targets)
        first += own
    return Batch(pixels, heads, [f"s/{number}" for number in range(len(pixels))])


def alone(whole: Batch, task: str) -> Batch:
    """The images of one task."""
    own = whole.heads[task]
    rows = torch.arange(len(own.rows))
    return Batch(
        whole.images[own.rows], {task: HeadBatch(rows, own.targets)}, [whole.ids[r] for r in own.rows.tolist()]
    )


class Step:
    """A training step of a learner on a resident batch."""

    def __init__(self, learner: Learner, given: Batch, where: torch.device) -> None:
        self.dtype, self.where = autocast_dtype("auto", where), where
        self.learner = learner.train()
        place(self.learner, where, self.dtype)
        self.given = given.to(where)
        self.optimiser = make_optimiser(Training(rate=1e-4, clip=None), learner)

    def losses(self) -> dict[str, LossSum]:
        with torch.autocast(self.where.type, self.dtype, enabled=self.dtype is not None):
            found: dict[str, LossSum] = self.learner(self.given)
        return found

    def __call__(self) -> None:
        losses = self.losses().values()
        torch.stack([loss.sum / loss.count.clamp(min=1) for loss in losses]).sum().backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def held(self) -> int:
        """Bytes that the graph of a step keeps, each storage once, without the weights.

        In float32: under autocast the weights' copies, which do not grow with the images, would be counted too.
        """
        kept: dict[int, Tensor] = {}
        weights = {p.untyped_storage().data_ptr() for p in self.learner.parameters()}

        def pack(value: Tensor) -> Tensor:
            pointer = value.untyped_storage().data_ptr()
            if pointer not in weights:
                kept[pointer] = value  # held, so that no other storage gets its place
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            losses = self.learner(self.given)
        del losses
        return sum(value.untyped_storage().nbytes() for value in kept.values())


def seconds(work: Callable[[], object], where: torch.device) -> float:
    if where.type == "cuda":
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(name: str, one: list[Step], others: list[Step], rounds: int, aim: str) -> None:
    """Time of some steps over that of others."""
    for step in (*one, *others):
        step()
    ratios = []
    for _ in range(rounds):
        mine, theirs = (seconds(lambda s=side: [step() for step in s], one[0].where) for side in (one, others))
        ratios.append(mine / theirs)
    middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
    print(f"{name:<66} {middle:.3f}  ({low:.3f} to {high:.3f}, {rounds} rounds)  {aim}", flush=True)


def expansion(model: Model, backbone: Backbone, tasks: int, joined: bool) -> Expansion:
    names = TASKS[:tasks]
    heads = {task: {task: Classification(classes=CLASSES)} for task in names}
    branches = dict.fromkeys(names, backbone)
    made = Expansion(model, heads, branches=branches, reconciliation=Reconciliation())
    made.join() if joined else made.alone()
    return made


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--backbone", default="resnet50", help="of timm")
    options.add_argument("--size", type=int, default=128)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    where, backbone = device(), Timm(name=given.backbone)
    model = Model(backbone=backbone, size=given.size)
    print(f"{where}, {torch.get_num_threads()} threads, {given.backbone}, {given.size} px, {given.batch} images a task")
    for tasks in (2, 3):
        whole = batch(given.size, *[given.batch] * tasks)
        head = Classification(classes=CLASSES)
        apart = [Step(model.build({task: head}), alone(whole, task), where) for task in TASKS[:tasks]]
        for joined, when, aim in ((False, "alone", ""), (True, "joint", "aim <= 1.15")):
            step = Step(expansion(model, backbone, tasks, joined), whole, where)
            compare(f"one {when} step of {tasks} tasks / {tasks} separate steps", [step], apart, given.rounds, aim)
            held, sum_of = step.held(), sum(single.held() for single in apart)
            mine, theirs = held / 2**20, sum_of / 2**20
            print(f"    its graph holds {mine:.1f} MiB, the separate ones {theirs:.1f}: {mine / theirs:.3f}")
            del step
        del apart

    source = expansion(model, backbone, 2, joined=True).backbone()
    frozen, images = FrozenTasks.of(source), batch(given.size, given.batch)
    said = {task: Given(maps, source.backbone.strides) for task, maps in frozen(images.images.to(where)).items()}
    ready = {task: Frozen(maps, *model.resolved(Path()).normalisation()) for task, maps in said.items()}
    plain = Step(model.build({TASKS[0]: Classification(classes=CLASSES)}), images, where)
    for name, learner, aim in (
        ("features given", Squeeze(model.build({}), teachers=ready), "aim <= 1.2"),
        ("features computed", Squeeze(model.build({}), frozen), ""),
    ):
        step = Step(learner, images, where)
        compare(f"one squeeze step of 2 tasks, {name} / plain training", [step], [plain], given.rounds, aim)


if __name__ == "__main__":
    main()
