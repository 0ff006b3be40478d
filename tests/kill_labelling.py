"""Kills the labelling pass at random moments and compares what it leaves with an undisturbed pass, byte by byte.

Run `python tests/kill_labelling.py 100` for a hundred kills; the suite does a few. The small datasets and teachers
here serve the tests of the store and of the pass as well.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tutelage.data.source import BadImage, Dataset, LabelSpace, Picture, UInt8
from tutelage.labels.labelling import label_pool
from tutelage.tasks.task import Task
from tutelage.teachers.teacher import Teacher
from tutelage.types import Boxes, Field, Label, Mask, Target, Vectors

CLASSES = ("cat", "dog", "bird")


class FakePicture(Picture):
    def __init__(self, pixels: UInt8 | None) -> None:
        self._pixels = pixels
        self.height, self.width = (1, 1) if pixels is None else pixels.shape[:2]

    def read(self, scale: float = 1.0) -> UInt8:
        if self._pixels is None:
            raise BadImage("not an image")
        return self._pixels


class FakeDataset(Dataset):
    """Images of many sizes made from their number; `bad` ones do not decode, `human` ones have a label."""

    def __init__(
        self,
        name: str,
        n: int,
        *,
        head: str | None = None,
        human: dict[int, Target] | None = None,
        bad: Sequence[int] = (),
        space: LabelSpace | None = None,
        salt: int = 0,
        seconds: float = 0.0,
    ) -> None:
        self.name, self.n, self.head, self.space, self.faults = name, n, head, space, []
        self.human, self.bad, self.salt, self.seconds = human or {}, set(bad), salt, seconds
        self.reads = 0

    def __len__(self) -> int:
        return self.n

    def id(self, index: int) -> str:
        return f"{index:04d}.jpg"

    def pixels(self, index: int) -> UInt8:
        rng = np.random.default_rng([index, self.salt, len(self.name)])
        return rng.integers(0, 256, (9 + index % 5, 8 + index % 7, 3), dtype=np.uint8)

    def picture(self, index: int) -> Picture:
        self.reads += 1
        time.sleep(self.seconds)
        return FakePicture(None if index in self.bad else self.pixels(index))

    def target(self, index: int) -> Target | None:
        return self.human.get(index)

    def sha256(self, index: int) -> str:
        bad = b"bad" if index in self.bad else b""
        return hashlib.sha256(bad + self.pixels(index).tobytes()).hexdigest()


class FakeTask(Task):
    """A task of which only the rule for pseudo labels is needed here."""

    task: Literal["fake"] = "fake"
    threshold: float = 0.5

    def head(self, widths: Any) -> Any: ...
    def count(self, targets: Any) -> Any: ...
    def loss(self, output: Any, targets: Any) -> Any: ...
    def decode(self, output: Any, frames: Any, size: Any) -> Any: ...
    def metric(self) -> Any: ...
    def draw(self, image: Any, target: Any) -> Any: ...


class LabelTask(FakeTask):
    kind = Label
    reads = "embedding"


class BoxesTask(FakeTask):
    kind = Boxes
    reads = "pyramid"

    def pseudo(self, target: Target) -> Target | None:
        assert isinstance(target, Boxes)
        return target.pick(target.scores >= self.threshold)


class MaskTask(FakeTask):
    kind = Mask
    reads = "fused"


class FieldTask(FakeTask):
    kind = Field
    reads = "fused"


class VectorsTask(FakeTask):
    kind = Vectors
    reads = "fused"


TASKS: dict[type, type[FakeTask]] = {
    Label: LabelTask,
    Boxes: BoxesTask,
    Mask: MaskTask,
    Field: FieldTask,
    Vectors: VectorsTask,
}


def predict_one(kind: type, image: UInt8) -> Target:
    """A prediction that depends on every pixel of the image and on nothing else."""
    height, width = image.shape[:2]
    rng = np.random.default_rng(np.frombuffer(hashlib.sha256(image.tobytes()).digest()[:8], np.uint64))
    unit = torch.from_numpy(rng.random((3, height, width), dtype=np.float32))
    valid = unit[2] > 0.2
    if kind is Label:
        return Label(torch.from_numpy(rng.dirichlet([1.0] * len(CLASSES)).astype(np.float32)))
    if kind is Boxes:
        n = int(rng.integers(0, 4))
        corner = rng.random((n, 2)) * [width / 2, height / 2]
        boxes = np.concatenate([corner, corner + 1 + rng.random((n, 2)) * [width / 3, height / 3]], 1)
        return Boxes.make(boxes.astype(np.float32), rng.integers(0, 3, n), 0.05 + 0.95 * rng.random(n))
    if kind is Mask:
        ids = torch.from_numpy(rng.choice(np.array([0, 1, 2, 255], np.uint8), (height, width)))
        return Mask(ids, (unit[0] * 255).to(torch.uint8))
    if kind is Field:
        return Field(torch.where(valid, 10 * unit[0], 0), valid)
    vectors = torch.nn.functional.normalize(unit - 0.5, dim=0)
    return Vectors(torch.where(valid, vectors, 0), valid)


class FakeTeacher(Teacher):
    """`predict_one` for one kind; `change` may replace single predictions, `seconds` slows each batch down."""

    def __init__(
        self,
        kind: type,
        head: str | None = None,
        hash: str = "v1",
        change: Callable[[UInt8, Target], Target] | None = None,
        seconds: float = 0.0,
        **options: Any,
    ) -> None:
        self.kind, self.head, self.hash = kind, head or kind.__name__.lower(), hash
        self.task = TASKS[kind](**options)
        self.space = LabelSpace(CLASSES) if kind in (Label, Boxes, Mask) else None
        self.change, self.seconds = change or (lambda _, target: target), seconds
        self.seen: list[int] = []

    def predict(self, images: Sequence[UInt8]) -> list[Target]:
        self.seen.append(len(images))
        time.sleep(self.seconds)
        return [self.change(image, predict_one(self.kind, image)) for image in images]


def all_teachers(**options: Any) -> list[FakeTeacher]:
    return [FakeTeacher(kind, **options) for kind in TASKS]


def label_small_pool(root: Path) -> None:
    """130 images in 10 shards for five heads, with undecodable images and some human labels; about 0.5 s."""
    human = {i: Label(torch.eye(3)[i % 3]) for i in range(0, 70, 4)}
    first = FakeDataset("first", 70, head="label", human=human, bad=[3, 40], space=LabelSpace(CLASSES))
    second = FakeDataset("second", 60, bad=[11], seconds=0.0005)
    label_pool([first, second], all_teachers(seconds=0.0005), root, shard=13, batch=4)


def contents(root: Path) -> dict[str, str]:
    """Every file below a folder, by its digest."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run_and_kill(work: Callable[[], None], seconds: float) -> bool:
    """Run in a process of its own, killed after `seconds`; whether it was killed before it ended."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            work()
            status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0, "the pass failed by itself"
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def kill_until(kills: int, folder: Path, seed: int = 0) -> tuple[int, int]:
    """Kill passes at random moments until `kills` did hit; stores compared, and kills. Raises on any difference."""
    rng = random.Random(seed)
    for name in ("warm-up", "undisturbed"):
        start = time.monotonic()
        label_small_pool(folder / name)
        usual = time.monotonic() - start
    wanted = contents(folder / "undisturbed")
    hit = stores = 0
    while hit < kills:
        root = folder / f"store-{stores}"
        while run_and_kill(lambda root=root: label_small_pool(root), rng.uniform(0, usual)):  # type: ignore[misc]
            hit += 1
        found = contents(root)
        assert found == wanted, sorted(set(found.items()) ^ set(wanted.items()))
        stores += 1
    return stores, hit


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        stores, kills = kill_until(int(sys.argv[1]) if len(sys.argv) > 1 else 100, Path(name))
    print(f"{kills} kills, {stores} stores, each the same as an undisturbed one byte by byte")
