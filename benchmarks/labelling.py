"""What the labelling pass costs beside its teachers, and what it leaves on disk and in memory.

    OMP_NUM_THREADS=1 python benchmarks/labelling.py [--only pass bytes memory workers ray]

pass     Four networks of ours (classes, boxes, masks, depth) label JPEGs of 256 px. Their bare forward time on resident
         tensors, divided by the time of the whole pass: reading, decoding, laying into the input, forward, predictions
         at the image's size, compression, commits. Aim >= 0.95. Where the rest goes is measured part by part.
bytes    Bytes an image of the four heads against JSON + PNG + .npy of the same labels (aim <= 0.6), and random reads a
         second on one core at 224 px (aim >= 600 records). Pictures and formats are those of benchmarks/store.py.
memory   Peak memory of a process that labels 1,000 and 100,000 images with a cheap teacher (aim: flat).
workers  Two local workers against one (aim >= 1.8 where two cores are free): over the second half of the shards, when
         all workers have begun, and in all.
ray      Two Ray actors against two local workers, likewise.

All are ratios from one run, the sides in turn; the median over rounds is printed with the least and the greatest.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from store import make, usual_bytes

from tutelage.data.folders import Pool
from tutelage.data.geometry import Frame, letterbox
from tutelage.data.source import Dataset, LabelSpace, Picture, Place, UInt8
from tutelage.labels.encoding import Form, encode
from tutelage.labels.engines import Engine, label
from tutelage.labels.labelling import label_pool
from tutelage.labels.store import Store
from tutelage.labels.work import Labelling, Work
from tutelage.models.backbone import Timm
from tutelage.models.pyramid import Pyramid
from tutelage.models.student import Model
from tutelage.tasks import Classification, Depth, Detection, Segmentation
from tutelage.tasks.task import Task
from tutelage.teachers.own import Checkpoint, OwnTeacher
from tutelage.teachers.teacher import Teacher
from tutelage.training.checkpoint import save_model
from tutelage.training.fit import build
from tutelage.training.processes import device, leave_a_core_to_the_loader
from tutelage.types import Label, Target

SIDE = 256  # pixels of the photographs


def names(count: int) -> tuple[str, ...]:
    return tuple(f"class {number}" for number in range(count))


HEADS: dict[str, Task] = {
    "classes": Classification(classes=names(100)),
    "objects": Detection(
        classes=names(20),
        pre_nms_test=300,
        proposals_test=100,
        roi_size=5,
        roi_convs=1,
        roi_channels=64,
        fc_width=256,
        detections=50,
    ),
    "regions": Segmentation(classes=names(20)),
    "depth": Depth(),
}


def write_photos(folder: Path, count: int) -> None:
    """JPEGs with detail at all scales, as photographs have; about 25 kB each."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        image = np.full((SIDE, SIDE, 3), 128.0)
        for level in range(1, 8):
            cells = rng.normal(size=(SIDE >> level, SIDE >> level, 3)).clip(-3, 3)
            small = Image.fromarray((cells * 40 + 128).astype(np.uint8))
            image += (np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) - 128.0) * 0.12 * level
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05d}.jpg", quality=90)


def save_teachers(folder: Path, backbone: str, size: int) -> dict[str, Checkpoint]:
    """Four networks with random weights, as finished teachers."""
    model = Model(backbone=Timm(name=backbone), pyramid=Pyramid(width=64), size=size)
    parts = {}
    for head, task in HEADS.items():
        path = folder / "teachers" / head
        path.mkdir(parents=True)
        space = {} if task.classes is None else {head: LabelSpace(task.classes)}
        save_model(path, build(model, {head: task}, 0, head, folder), space)
        parts[head] = Checkpoint(path=path)
    return parts


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Wall time, and processor time of all threads."""
    start, busy = time.perf_counter(), time.process_time()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - busy


def show(name: str, ratios: Sequence[float], aim: str) -> None:
    middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
    print(f"{name:<62} {middle:.3f}  ({low:.3f} to {high:.3f}, {len(ratios)} rounds)  {aim}", flush=True)


# pass -----------------------------------------------------------------------------------------------------------------


def forward(teachers: Sequence[OwnTeacher], batch: torch.Tensor) -> None:
    """What the teachers' networks compute for a resident batch, and nothing else."""
    for teacher in teachers:
        net = teacher.network
        with torch.inference_mode(), torch.autocast(net.device.type, net.dtype, enabled=net.dtype is not None):
            net.student.heads[teacher.head](net.student.features(batch), None)


def predict(teachers: Sequence[OwnTeacher], batch: torch.Tensor, frames: Sequence[Frame]) -> None:
    """The same, and labels at the size of the images, on the CPU: all that a teacher is there for."""
    for teacher in teachers:
        teacher.network.predict(batch, frames, [teacher.head])


def the_pass(folder: Path, parts: dict[str, Checkpoint], given: argparse.Namespace) -> None:
    where = device()
    dataset = Pool(images=str(folder / "photos")).open("pool", Place(folder, folder))
    opened = [part.open(head, HEADS[head], folder, where) for head, part in parts.items()]
    teachers = [teacher for teacher in opened if isinstance(teacher, OwnTeacher)]
    images = [dataset.picture(index).read() for index in range(given.batch)]
    size = teachers[0].network.student.model.size
    laid = [letterbox(image, size) for image in images]
    resident, frames = torch.stack([picture for picture, _ in laid]).to(where), [frame for _, frame in laid]
    batches = len(dataset) // given.batch
    label_pool([_Held(images[:2])], teachers, folder / "warm")
    predict(teachers, resident[:2], frames[:2])
    spent: dict[str, list[tuple[float, float]]] = {"forward": [], "predict": [], "pass": []}
    for number in range(given.rounds):
        spent["forward"].append(seconds(lambda: [forward(teachers, resident) for _ in range(batches)]))
        root = folder / f"pass-{number}"
        spent["pass"].append(
            seconds(
                lambda r=root: label_pool([dataset], teachers, r, Labelling(batch=given.batch), decoders=given.decoders)
            )
        )  # type: ignore[misc]
        spent["predict"].append(seconds(lambda: [predict(teachers, resident, frames) for _ in range(batches)]))
    for clock, which in enumerate(("time", "processor time")):
        for name in ("forward", "predict"):
            ratios = [a[clock] / b[clock] for a, b in zip(spent[name], spent["pass"], strict=True)]
            show(f"{which}: four teachers' {name} / the whole pass", ratios, "aim >= 0.95")
    wall, busy = (statistics.median(pair[clock] for pair in spent["pass"]) / len(dataset) for clock in (0, 1))
    print(f"  the pass: {1 / wall:.1f} images/s; {1e3 * wall:.1f} ms an image, {1e3 * busy:.1f} ms of processor time")
    for name, run in parts_of_the_pass(dataset, teachers, images, resident, frames, folder):
        one, its = (1e3 * value / given.batch for value in seconds(run))
        print(f"  {name:<44}{one:8.2f} ms an image, {its:8.2f} ms of processor time")


def parts_of_the_pass(
    dataset: Dataset,
    teachers: Sequence[OwnTeacher],
    images: list[UInt8],
    resident: torch.Tensor,
    frames: Sequence[Frame],
    folder: Path,
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Every part of the pass for one batch, to be timed alone; in the pass some go on side by side."""
    numbers, size = range(len(images)), teachers[0].network.student.model.size
    yield "hash of the file", lambda: [dataset.sha256(i) for i in numbers]
    yield "read and decode", lambda: [dataset.picture(i).read() for i in numbers]
    yield (
        f"lay into the input ({len(teachers)} times)",
        lambda: [torch.stack([letterbox(image, size)[0] for image in images]) for _ in teachers],
    )
    for teacher in teachers:
        yield f"{teacher.head}: forward", lambda t=teacher: forward([t], resident)  # type: ignore[misc]
        yield f"{teacher.head}: forward and predictions", lambda t=teacher: predict([t], resident, frames)  # type: ignore[misc]
        said, form = teacher.predict(images), form_of(teacher.task)
        yield (
            f"{teacher.head}: encode and compress",
            lambda s=said, f=form: [encode(t, f, i.shape[:2]) for t, i in zip(s, images, strict=True)],  # type: ignore[misc]
        )
        root, alone = folder / f"commit-{teacher.head}", _Replay(teacher, said)
        yield (
            f"{teacher.head}: encode, compress, commit a shard",
            lambda a=alone, r=root: label_pool([_Held(images)], [a], r, Labelling(batch=len(images))),  # type: ignore[misc]
        )


def form_of(task: Task) -> Form:
    return Form("", task.kind, None if task.classes is None else len(task.classes))


class _Replay(Teacher):
    """Says again what was said before, for nothing."""

    def __init__(self, teacher: Teacher, said: list[Target]) -> None:
        self.head, self.task, self.space = teacher.head, teacher.task, teacher.space
        self.hash, self.about, self._said = teacher.hash, teacher.about, said

    def predict(self, images: Sequence[UInt8]) -> list[Target]:
        return self._said[: len(images)]


class _Resident(Picture):
    def __init__(self, pixels: UInt8) -> None:
        self.pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def read(self, scale: float = 1.0) -> UInt8:
        return self.pixels


class _Held(Dataset):
    """Images in memory; image n is that of n modulo their number."""

    name, head, space = "held", None, None

    def __init__(self, images: list[UInt8], count: int | None = None) -> None:
        self.images, self.count, self.faults = images, len(images) if count is None else count, []

    def __len__(self) -> int:
        return self.count

    def id(self, index: int) -> str:
        return f"images/{index:09d}.jpg"

    def picture(self, index: int) -> Picture:
        return _Resident(self.images[index % len(self.images)])

    def target(self, index: int) -> Target | None:
        return None

    def sha256(self, index: int) -> str:
        return f"{index * 0x9E3779B97F4A7C15F39CC0605CEDC8341082276BF3A27251 % 2**256:064x}"


# bytes ----------------------------------------------------------------------------------------------------------------


class _Made(Teacher):
    """Says what a network might say, as benchmarks/store.py makes it; keeps count of the usual bytes of it."""

    def __init__(self, head: str, task: Task) -> None:
        self.head, self.task = head, task
        self.space = None if task.classes is None else LabelSpace(task.classes)
        self.hash, self.about, self.usual = "made", {}, 0
        self._rng = np.random.default_rng(0)

    def predict(self, images: Sequence[UInt8]) -> list[Target]:
        said = [make(self.task.kind, image.shape[0], self._rng) for image in images]
        common = {"id": f"images/{0:09d}.jpg", "source": "held", "image_sha256": "0" * 64, "height": 224, "width": 224}
        self.usual += sum(usual_bytes(target, common)[0] for target in said)
        return said


def the_bytes(folder: Path, given: argparse.Namespace) -> None:
    """As many classes as `make` draws."""
    tasks = {"classes": Classification(classes=names(20)), "objects": Detection(classes=names(20))}
    tasks |= {"regions": Segmentation(classes=names(12)), "depth": Depth()}
    teachers, root = [_Made(head, task) for head, task in tasks.items()], folder / "bytes"
    pixels = np.zeros((224, 224, 3), np.uint8)
    label_pool([_Held([pixels], given.labels)], teachers, root)
    store, ours, spent = Store(root), 0, 0.0
    for teacher in teachers:
        took, rate = store.manifest(teacher.head).bytes, reads_a_second(store, teacher.head, given.labels)
        ours, spent = ours + took, spent + 1 / rate
        each, theirs = took / given.labels, teacher.usual / given.labels
        print(f"  {teacher.head:<8}{each:>9,.0f} bytes an image, usual {theirs:>9,.0f}; {rate:>8,.0f} reads/s a core")
    usual = sum(teacher.usual for teacher in teachers)
    print(f"{'bytes of four heads / JSON + PNG + .npy':<62} {ours / usual:.3f}  aim <= 0.6")
    print(f"{'records read a second and core at 224 px, heads in turn':<62} {4 / spent:.0f}  aim >= 600")
    print(f"{'images with all four labels a second and core':<62} {1 / spent:.0f}")


def reads_a_second(store: Store, head: str, count: int, reads: int = 2000) -> float:
    """Random reads of one head from the page cache, decoded to tensors, in processor time."""
    store.prepare([head])
    ids = [f"images/{n:09d}.jpg" for n in np.random.default_rng(0).integers(0, count, reads).tolist()]
    for id in ids[:100]:
        assert store.get(head, "held", id) is not None
    start = time.process_time()
    for id in ids:
        store.get(head, "held", id)
    return reads / (time.process_time() - start)


# memory ---------------------------------------------------------------------------------------------------------------


class _Cheap(Teacher):
    head, task, space = "classes", Classification(classes=names(3)), LabelSpace(names(3))
    hash, about = "cheap", {}

    def predict(self, images: Sequence[UInt8]) -> list[Target]:
        return [Label(torch.tensor([0.2, 0.3, 0.5])) for _ in images]


def peak(count: int) -> None:
    """In a process of its own: label so many images, and print the peak memory in MiB."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    with tempfile.TemporaryDirectory() as root:
        label_pool([_Held([pixels], count)], [_Cheap()], Path(root), Labelling(batch=250))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def the_memory(counts: Sequence[int]) -> None:
    peaks = []
    for count in counts:
        command = [sys.executable, __file__, "--peak", str(count)]
        start = time.perf_counter()
        peaks.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(f"  {count:>9,} images: {peaks[-1]:.0f} MiB at the peak, {time.perf_counter() - start:.1f} s", flush=True)
    name = f"peak memory with {counts[-1]:,} images / with {counts[0]:,}"
    print(f"{name:<62} {peaks[-1] / peaks[0]:.3f}  aim: flat")


# workers --------------------------------------------------------------------------------------------------------------


def rates(work: Work, root: Path, engine: Engine) -> tuple[float, float]:
    """Images a second over the second half of the shards, by the times of their commits, and in all."""
    start = time.perf_counter()
    report = label(work, root, engine=engine, device=device())
    spent = time.perf_counter() - start
    files = list(root.glob("depth/part-*.parquet"))  # the last head of a shard to be committed
    times = sorted(file.stat().st_ctime_ns / 1e9 for file in files)
    half = len(times) // 2
    return (len(times) - 1 - half) * work.settings.shard / (times[-1] - times[half]), report.images / spent


def the_engines(
    folder: Path, parts: dict[str, Checkpoint], given: argparse.Namespace, one: Engine, two: Engine, aim: str
) -> None:
    """The second engine against the first."""
    settings = Labelling(shard=given.shard, batch=given.shard)
    place = Place(folder, folder / "cache")
    work = Work({"pool": Pool(images=str(folder / "many"))}, HEADS, parts, place, settings)
    steady, everything = [], []
    for number in range(given.engine_rounds):
        found = []
        for engine in (one, two):
            root = folder / f"engine-{engine.kind}-{engine.workers}-{number}-{len(found)}"
            found.append(rates(work, root, engine))
            print(
                f"  {engine.kind}, {engine.workers}: {found[-1][0]:.1f} images/s, {found[-1][1]:.1f} in all", flush=True
            )
        steady.append(found[1][0] / found[0][0])
        everything.append(found[1][1] / found[0][1])
    name = f"{two.workers} {two.kind} / {one.workers} {one.kind}"
    show(f"{name}, second half of the shards", steady, aim)
    show(f"{name}, in all, start included", everything, "")


def main() -> None:
    every = ("pass", "bytes", "memory", "workers", "ray")
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", nargs="+", choices=every, default=every)
    options.add_argument("--backbone", default="resnet18")
    options.add_argument("--size", type=int, default=224, help="pixels of the teachers' input")
    options.add_argument("--images", type=int, default=64)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--decoders", type=int, default=1, help="threads that read, and that compress")
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--labels", type=int, default=400, help="labels a head, where bytes are counted")
    options.add_argument("--engine-rounds", type=int, default=1)
    options.add_argument("--many", type=int, default=640, help="images where workers are compared")
    options.add_argument("--shard", type=int, default=20, help="images a shard, where workers are compared")
    options.add_argument("--pools", type=int, nargs=2, default=(1_000, 100_000))
    options.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.peak is not None:
        peak(given.peak)
        return
    leave_a_core_to_the_loader()
    print(f"{device()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {given.backbone} at {given.size} px")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = save_teachers(folder, given.backbone, given.size)
        write_photos(folder / "photos", given.images // given.batch * given.batch)
        if {"workers", "ray"} & set(given.only):
            write_photos(folder / "many", given.many)
        if "pass" in given.only:
            the_pass(folder, parts, given)
        if "bytes" in given.only:
            the_bytes(folder, given)
        if "memory" in given.only:
            the_memory(given.pools)
        if "workers" in given.only:
            the_engines(folder, parts, given, Engine(), Engine(workers=2), "aim >= 1.8 with two free cores")
        if "ray" in given.only:
            the_engines(folder, parts, given, Engine(workers=2), Engine(kind="ray", workers=2), "")


if __name__ == "__main__":
    main()
