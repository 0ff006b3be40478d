"""Kills the labelling pass at random moments and compares what it leaves with an undisturbed pass, byte by byte.

Run `python tests/kill_labelling.py --kills 100` for a hundred kills; the suite does a few. The small datasets and
teachers here serve the tests of the store and of the pass as well.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import multiprocessing
import os
import random
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tutelage.data.source import BadImage, Dataset, LabelSpace, Picture, Place, Source, UInt8
from tutelage.labels import engines
from tutelage.labels.engines import Engine, label
from tutelage.labels.health.sample import read_row
from tutelage.labels.leases import Patience
from tutelage.labels.store import Record, Store
from tutelage.labels.work import Labelling, Work
from tutelage.tasks.task import Task
from tutelage.teachers.teacher import Specialist, Teacher
from tutelage.types import Boxes, Field, Label, Maps, Mask, Target, Vectors

CLASSES = ("cat", "dog", "bird")
SHARD = 13


def records(root: Path, head: str) -> list[Record]:
    """All records of a store's head, in the order of the pool."""
    store = Store(root)
    places = [(shard.file, row) for shard in store.manifest(head).shards for row in range(shard.rows)]
    return [read_row(store, head, *place) for place in places]


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


class MapsTask(FakeTask):
    kind = Maps
    reads = "deepest"


TASKS: dict[type, type[FakeTask]] = {
    Label: LabelTask,
    Boxes: BoxesTask,
    Mask: MaskTask,
    Field: FieldTask,
    Vectors: VectorsTask,
    Maps: MapsTask,
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
    if kind is Maps:
        return Maps.whole(unit[:, : height // 4, : width // 4].half(), (height / 4, width / 4), stride=4)
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
        self.about = {"make": "fake"}
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


class FakeSource(Source):
    """Opens to a `FakeDataset`, in any process."""

    format: Literal["fake"] = "fake"
    images: int
    bad: tuple[int, ...] = ()
    labelled: int = 0
    """Every so-manieth image has a human label for its head."""
    seconds: float = 0.0

    def open(self, name: str, place: Place, classes: Sequence[str] | None = None) -> FakeDataset:
        every = range(0, self.images, self.labelled) if self.labelled else ()
        human: dict[int, Target] = {i: Label(torch.eye(3)[i % 3]) for i in every}
        space = None if self.head is None else LabelSpace(CLASSES)
        return FakeDataset(
            name, self.images, head=self.head, human=human, bad=self.bad, space=space, seconds=self.seconds
        )


class FakeSpecialist(Specialist):
    """Opens to a `FakeTeacher` of the head's kind, in any process."""

    kind: Literal["fake"] = "fake"
    version: str = "v1"
    seconds: float = 0.0
    suicide: Path | None = None
    """The process that first makes this file dies, in the middle of a batch."""
    after: int = 0
    """How many batches it lives before that."""
    company: Path | None = None
    """A folder in which every process that opens it leaves its number; nobody predicts before there are two."""
    log: Path | None = None
    """Where every image leaves a line with the head."""

    def does(self, root: Path, fills: str | None = None) -> Task:
        raise NotImplementedError

    def digest(self, root: Path) -> str:
        return self.version

    def open(self, head: str, task: Task, root: Path, device: torch.device) -> FakeTeacher:
        teacher = FakeTeacher(task.kind, head, self.version, seconds=self.seconds)
        if self.company is not None:
            (self.company / str(os.getpid())).touch()

        def die(image: UInt8, target: Target) -> Target:
            while self.company is not None and len(list(self.company.iterdir())) < 2:
                time.sleep(0.01)
            if self.log is not None:
                with self.log.open("a") as stream:
                    stream.write(f"{head}\n")
            if self.suicide is not None and len(teacher.seen) > self.after:
                try:
                    self.suicide.touch(exist_ok=False)
                except FileExistsError:
                    return target
                os.kill(os.getpid(), signal.SIGKILL)
            return target

        teacher.change = die
        return teacher


def small_work(**options: Any) -> Work:
    """65 images in 5 shards for five heads, with undecodable images and some human labels; about 0.3 s."""
    sources = {
        "first": FakeSource(images=35, head="label", labelled=4, bad=(3, 20)),
        "second": FakeSource(images=30, bad=(11,), seconds=0.0005),
    }
    heads = {kind.__name__.lower(): task() for kind, task in TASKS.items()}
    teachers = {head: FakeSpecialist(**{"seconds": 0.0005} | options) for head in heads}
    return Work(sources, heads, teachers, Place(Path(), Path()), Labelling(shard=SHARD, batch=4))


QUICK = Patience(beat=0.05, dead=0.5)
"""For tests: a process of another machine that shows no life for half a second is dead."""
STEADY = Patience(beat=0.05, dead=60.0)
"""For tests on one machine: a death is known at once by the process's number, a slow one is not taken for dead."""


def label_small_pool(root: Path) -> None:
    """`small_work`, done here."""
    label(small_work(), root)


def contents(root: Path) -> dict[str, str]:
    """Every file below a folder, by its digest."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def begin(work: Callable[[], object]) -> int:
    """Run in a process of its own; its number. It ends with 0 unless something was raised."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def ended(child: int) -> int:
    """How a process that `begin` made ended: 0, 1, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_and_kill(work: Callable[[], None], seconds: float) -> bool:
    """Run in a process of its own, killed after `seconds`; whether it was killed before it ended."""
    child = begin(work)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0, "the pass failed by itself"
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return ended(child) == -signal.SIGKILL


NEEDED = Counter({kind.__name__.lower(): 65 for kind in TASKS}) - Counter(label=9)
"""Predictions of `small_work` undisturbed: images that do not decode leave a black one in their place, and 9 have
human labels for one head."""


def redone(log: Path) -> int:
    """The images that a head was made to look at again; the most of all heads. None may have been left out."""
    looked = Counter(log.read_text().split())
    assert all(looked[head] >= n for head, n in NEEDED.items()), looked
    return max(looked[head] - n for head, n in NEEDED.items())


@dataclass
class Kills:
    """What kills did.

    Attributes:
        kills, stores: how many hit, and how many stores were finished in spite of them.
        shards: that were redone, counted in images and rounded up, over all kills.
        most: the same for the worst store, divided by its kills.
    """

    kills: int = 0
    stores: int = 0
    shards: float = 0.0
    most: float = 0.0


def kill_until(kills: int, folder: Path, seed: int = 0) -> Kills:
    """Kill processes at random moments until `kills` did hit; compare every store with an undisturbed one.

    Stores are made in turn by one process, by three on a shared folder, and by a job with two workers. In the place of
    a killed process a new one begins, until the store is whole.

    Raises:
        AssertionError: a store differs, or an image is lost or twice in it, or a kill cost more than one shard.
    """
    rng, done = random.Random(seed), Kills()
    for name in ("warm-up", "undisturbed"):
        start = time.monotonic()
        label_small_pool(folder / name)
        usual = time.monotonic() - start
    wanted = contents(folder / "undisturbed")
    while done.kills < kills:
        root, log = folder / f"store-{done.stores}", folder / f"log-{done.stores}"
        workers, engine = [(1, Engine()), (3, Engine()), (1, Engine(workers=2))][done.stores % 3]
        before = done.kills
        _label_under_fire(root, log, workers, engine, usual, rng, done)
        assert contents(root) == wanted, sorted(set(contents(root).items()) ^ set(wanted.items()))
        _count_images(root)
        hits, again = done.kills - before, redone(log) / SHARD
        limit = hits * (engine.workers if workers == 1 else 1)  # with the job die its workers
        assert again <= limit, f"{again:.1f} shards were redone for {hits} kills"
        done.stores, done.shards, done.most = done.stores + 1, done.shards + again, max(done.most, again / max(hits, 1))
    return done


def _label_under_fire(
    root: Path, log: Path, workers: int, engine: Engine, seconds: float, rng: random.Random, done: Kills
) -> None:
    def work() -> None:
        engines.START = multiprocessing.get_context("fork")
        label(small_work(log=log), root, engine=engine, patience=STEADY)

    running, whole = [begin(work) for _ in range(workers)], False
    while running:
        time.sleep(rng.uniform(0, seconds))
        victim = running.pop(rng.randrange(len(running)))
        if not whole:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        status = ended(victim)
        assert status in (0, -signal.SIGKILL), "the pass failed by itself"
        done.kills += status != 0
        whole = whole or status == 0
        if not whole:
            running.append(begin(work))


def _count_images(root: Path) -> None:
    """No image is lost, and none is twice."""
    for head, n in (("label", 54), ("mask", 62)):
        ids = [(record.source, record.id) for record in records(root, head)]
        assert len(ids) == len(set(ids)) == n


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = kill_until(options.kills, Path(name), options.seed)
    print(
        f"{found.kills} kills, {found.stores} stores, all of the bytes of an undisturbed one: 0 lost, 0 twice;"
        f" {found.shards / found.kills:.2f} shards redone a kill (at most {found.most:.2f} in one store)"
    )
