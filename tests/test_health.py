"""The health of labels: its figures against slow references, its words, and that every damage is found."""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from kill_labelling import CLASSES, FakeDataset, FakeTeacher, records

from tutelage.data.source import LabelSpace, UInt8
from tutelage.errors import UserError
from tutelage.labels.health.agreement import Agreement, Head, compare, comparisons, rank_correlation, shared_classes
from tutelage.labels.health.findings import Finding, findings, percent
from tutelage.labels.health.health import (
    HeadHealth,
    Storage,
    StoreHealth,
    health,
    human_of,
    read_health,
    rule_in_words,
    store_health,
    task_from,
    write_health,
)
from tutelage.labels.health.histogram import ClassCount, human_counts, never, skews
from tutelage.labels.health.sample import joined, read_row, sample
from tutelage.labels.health.show import lines, show, size
from tutelage.labels.health.statistics import (
    THRESHOLDS,
    BoxesSummary,
    BoxesTally,
    FieldSummary,
    LabelSummary,
    LabelTally,
    MaskSummary,
    MaskTally,
    Quantiles,
    Scores,
    VectorsSummary,
    grid,
)
from tutelage.labels.labelling import label_pool
from tutelage.labels.store import Counts, Store
from tutelage.labels.verify import verify
from tutelage.labels.work import Labelling
from tutelage.methods.examples import draw_examples, images_of
from tutelage.report.page import write_report
from tutelage.tasks import Classification, Depth, Detection, Normals, Segmentation
from tutelage.tasks.task import Task
from tutelage.types import IGNORE, Boxes, Field, Label, Mask, Target, Vectors

TASKS: dict[type, Task] = {
    Label: Classification(classes=CLASSES),
    Boxes: Detection(classes=CLASSES, pseudo_threshold=0.6),
    Mask: Segmentation(classes=CLASSES, pseudo_threshold=0.4),
    Field: Depth(),
    Vectors: Normals(),
}
HEADS = {"things": Boxes, "kinds": Label, "parts": Mask, "depth": Field, "normals": Vectors}
IMAGES = 47


def teacher(kind: type, head: str, task: Task | None = None, **more: Any) -> FakeTeacher:
    """A fake teacher of a real task, whose rule can be read back from the store."""
    made = FakeTeacher(kind, head, **more)
    made.about = {}
    made.task = task or TASKS[kind]  # type: ignore[assignment]
    return made


def pools() -> list[FakeDataset]:
    return [FakeDataset("one", 30, bad=[4]), FakeDataset("second", 17)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """47 images of two sources in 5 shards, five heads. Not to be changed by tests."""
    folder = tmp_path_factory.mktemp("labels")
    label_pool(pools(), [teacher(kind, head) for head, kind in HEADS.items()], folder, Labelling(shard=10, batch=4))
    return folder


@pytest.fixture
def copied(root: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(root, tmp_path / "copied"))


def look(root: Path, head: str, **options: Any) -> HeadHealth:
    return health(Store(root), head, TASKS[HEADS[head]], **options)


# Figures ----------------------------------------------------------------------------------------------------


def test_boxes_are_those_of_a_slow_count(root: Path) -> None:
    found = look(root, "things")
    summary = found.summary
    assert isinstance(summary, BoxesSummary)
    scores, areas, classes, empty, most = [], [], Counter[str](), 0, 0
    for record in records(root, "things"):
        target = record.target
        assert isinstance(target, Boxes)
        kept = [n for n in range(len(target)) if target.scores[n] >= 0.6]
        scores += target.scores.tolist()
        classes.update(CLASSES[int(target.classes[n])] for n in kept)
        for x1, y1, x2, y2 in target.boxes[kept].tolist():
            areas.append((x2 - x1) * (y2 - y1) / (record.height * record.width))
        empty, most = empty + (not kept), max(most, len(kept))
    assert (found.records, found.looked_at, found.counts.undecodable) == (46, 46, 1)
    assert (summary.scores.stored, summary.kept, summary.without, summary.most) == (
        len(scores),
        len(areas),
        empty,
        most,
    )
    assert {c.name: c.pseudo for c in found.classes} == {name: classes[name] for name in CLASSES}
    assert summary.area is not None
    assert summary.area.median == pytest.approx(np.median(areas))
    assert (summary.area.least, summary.area.greatest) == pytest.approx((min(areas), max(areas)))
    for n, count in enumerate(summary.scores.histogram):
        assert count == sum(n <= s / 0.05 < n + 1 or (n == 19 and s == 1) for s in scores)


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.4, 0.7, 0.95])
def test_a_threshold_keeps_what_the_rule_with_it_keeps(threshold: float) -> None:
    """Also for scores that lie on the threshold, as far as their type can."""
    edges = torch.tensor([0.0, *THRESHOLDS, 1.0])
    scores = torch.cat([edges, torch.nextafter(edges, torch.tensor(2.0))[:-1], torch.nextafter(edges, -edges)[1:]])
    boxes = Boxes.make([[0, 0, 1, 1]] * len(scores), [0] * len(scores), scores)
    tally, other = BoxesTally(3), MaskTally(3)
    rule = Detection(classes=CLASSES, pseudo_threshold=threshold)
    images = [boxes, boxes.pick(scores < 0.35), boxes.pick(scores < 0)]
    for target in images:
        tally.add(target, rule.pseudo(target), (1, 1))
    (row,) = (r for r in tally.summary().scores.thresholds if r.threshold == threshold)
    assert row.kept == tally.summary().kept
    assert row.without == tally.summary().without

    mask = Mask(torch.arange(512).reshape(2, 256).clamp(max=256).sub(1).clamp(min=0).mul(0).to(torch.uint8))
    confidence = torch.arange(256).repeat(2, 1).to(torch.uint8)
    sure = Segmentation(classes=CLASSES, pseudo_threshold=threshold)
    for top in (256, 90, 1):
        target = Mask(mask.ids[:, :top], confidence[:, :top])
        other.add(target, sure.pseudo(target), (2, top))
    (row,) = (r for r in other.summary().scores.thresholds if r.threshold == threshold)
    assert row.kept == other.summary().kept
    assert row.without == other.summary().without


def test_classes_are_those_of_a_slow_count(root: Path) -> None:
    found = look(root, "kinds")
    summary = found.summary
    assert isinstance(summary, LabelSummary)
    best = [max(r.target.probs.tolist()) for r in records(root, "kinds")]  # type: ignore[union-attr]
    names = Counter(CLASSES[int(r.target.probs.argmax())] for r in records(root, "kinds"))  # type: ignore[union-attr]
    assert {c.name: c.pseudo for c in found.classes} == {name: names[name] for name in CLASSES}
    assert summary.median == pytest.approx(np.median(best))
    for row in summary.scores.thresholds:
        assert row.kept == sum(b >= np.float32(row.threshold) for b in best)


def test_several_classes_an_image_each_count() -> None:
    tally = LabelTally(3, several=True)
    for probs in ([0.9, 0.5, 0.1], [0.2, 0.6, 0.4], [0.1, 0.1, 0.1]):
        label = Label(torch.tensor(probs))
        tally.add(label, label, (1, 1))
    assert tally.classes.tolist() == [1, 2, 0]


def test_masks_are_those_of_a_slow_count(root: Path) -> None:
    found = look(root, "parts")
    summary = found.summary
    assert isinstance(summary, MaskSummary)
    before, after, pixels = Counter[int](), Counter[int](), 0
    for record in records(root, "parts"):
        target = record.target
        assert isinstance(target, Mask)
        assert target.confidence is not None
        for id, sure in zip(target.ids.flatten().tolist(), target.confidence.flatten().tolist(), strict=True):
            pixels += 1
            before[id] += 1
            after[id if sure >= 0.4 * 255 else IGNORE] += 1
    assert summary.pixels == pixels
    assert summary.kept == pixels - after[IGNORE]
    assert [c.before for c in found.classes] == [before[k] for k in range(3)]
    assert [c.pseudo for c in found.classes] == [after[k] for k in range(3)]
    assert summary.scores.stored == pixels - before[IGNORE] == sum(summary.scores.histogram)


def test_depth_and_normals_are_those_of_a_slow_count(root: Path) -> None:
    fields = [r.target for r in records(root, "depth")]
    values = np.concatenate([t.values[t.valid].numpy() for t in fields])  # type: ignore[union-attr]
    found = look(root, "depth").summary
    assert isinstance(found, FieldSummary)
    assert found.unit == "m"
    assert (found.valid, found.pixels) == (len(values), sum(t.valid.numel() for t in fields))  # type: ignore[union-attr]
    assert found.values is not None
    said = [getattr(found.values, name) for name in ("least", "low", "median", "high", "greatest")]
    assert said == pytest.approx(np.quantile(values.astype(float), [0, 0.01, 0.5, 0.99, 1]).tolist())

    vectors = [r.target for r in records(root, "normals")]
    every = np.concatenate([t.values[:, t.valid].numpy() for t in vectors], 1).astype(float)  # type: ignore[union-attr]
    normals = look(root, "normals").summary
    assert isinstance(normals, VectorsSummary)
    assert normals.mean == pytest.approx(every.mean(1).tolist(), abs=1e-6)
    assert (normals.valid, normals.facing) == (every.shape[1], int((every[2] < 0).sum()))


def test_large_images_enter_quantiles_by_a_grid() -> None:
    map = torch.arange(480 * 640).reshape(480, 640)
    assert 700 < grid(map).numel() < 1500
    assert torch.equal(grid(map[:9, :11]), map[:9, :11])
    assert grid(torch.zeros(1, 100_000)).numel() > 1000
    assert grid(torch.zeros(3, 2, 5000)).shape[0] == 3


def test_storage_and_counts_are_those_of_the_files(root: Path) -> None:
    found = look(root, "parts")
    sizes = [file.stat().st_size for file in (root / "parts").glob("part-*.parquet")]
    assert (found.storage.bytes, found.storage.shards) == (sum(sizes), 5)
    assert (found.storage.least, found.storage.greatest, found.storage.derived) == (min(sizes), max(sizes), 0)
    assert found.counts == Store(root).manifest("parts").counts
    assert [size(n) for n in (0, 999, 1000, 12_400, 1.24e9)] == ["0 B", "999 B", "1.0 kB", "12.4 kB", "1.2 GB"]


def test_examples_are_the_best_and_the_worst_of_what_is_kept(root: Path) -> None:
    found = look(root, "things")
    means = {}
    for record in records(root, "things"):
        kept = TASKS[Boxes].pseudo(record.target)
        assert isinstance(kept, Boxes)
        if len(kept):
            means[record.source, record.id] = float(kept.scores.mean())
    order = sorted(means, key=lambda key: -means[key])
    for why, wanted in (("best", order[:4]), ("worst", order[::-1][:4])):
        chosen = [e for e in found.examples if e.why == why]
        assert [(e.source, e.id) for e in chosen] == wanted
        assert [e.score for e in chosen] == pytest.approx([means[key] for key in wanted])
    assert len({(e.source, e.id) for e in found.examples}) == len(found.examples) > 8
    for example in found.examples:
        record = read_row(Store(root), "things", example.shard, example.row)
        assert (record.source, record.id) == (example.source, example.id)


# Sampling ---------------------------------------------------------------------------------------------------


def test_a_small_head_is_read_whole_and_in_order(root: Path) -> None:
    everything = [(p.record.source, p.record.id) for p in sample(Store(root), "parts", 46)]
    assert everything == [(r.source, r.id) for r in records(root, "parts")]


def test_a_part_is_chosen_by_the_seed_and_never_too_large(tmp_path: Path) -> None:
    label_pool([FakeDataset("one", 400)], [teacher(Field, "depth")], tmp_path, Labelling(shard=100, batch=50))
    store = Store(tmp_path)
    taken = {}
    for seed in (0, 1):
        taken[seed] = [(p.shard, p.row, p.record.id) for p in sample(store, "depth", 70, seed)]
        assert taken[seed] == [(p.shard, p.row, p.record.id) for p in sample(store, "depth", 70, seed)]
        assert len(set(taken[seed])) == 70
        assert len({shard for shard, _, _ in taken[seed]}) >= 3  # from as many shards as it can
    assert taken[0] != taken[1]
    assert len({row // 20 for _, row, _ in taken[0]}) > 1  # nor only from where they begin
    for shard, row, id in taken[0]:
        assert read_row(store, "depth", shard, row).id == id
    found = health(store, "depth", None, most=70)
    assert (found.looked_at, found.records) == (70, 400)
    assert "70 of 400 records" in "\n".join(lines(StoreHealth(heads=(found,), agreement=()), "x"))


def test_heads_are_joined_by_image_although_rows_differ(tmp_path: Path) -> None:
    empty = Boxes.make([], [])
    one = FakeDataset("one", 90, head="things", human=dict.fromkeys(range(0, 90, 3), empty), space=LabelSpace(CLASSES))
    pair = [teacher(Boxes, "things"), teacher(Mask, "parts")]
    label_pool([one, FakeDataset("two", 30)], pair, tmp_path, Labelling(shard=50, batch=10))
    store = Store(tmp_path)
    for most, wanted in ((1000, 90), (40, 40)):
        images = list(joined(store, ["things", "parts"], most))
        assert len(images) == wanted
        for image in images:
            assert set(image) == {"things", "parts"}
            assert len({(r.source, r.id, r.sha256) for r in image.values()}) == 1
        assert len({(i["parts"].source, i["parts"].id) for i in images}) == wanted


# Classes against people -------------------------------------------------------------------------------------


def counted(**counts: tuple[int, int | None]) -> tuple[ClassCount, ...]:
    return tuple(ClassCount(name=n, pseudo=p, before=p, human=h) for n, (p, h) in counts.items())


def test_what_people_labelled_is_counted() -> None:
    human: dict[int, Target] = {
        0: Boxes.make([[0, 0, 1, 1]] * 3, [0, 2, 2], ignore=[False, False, True]),
        3: Boxes.make([], []),
        5: Boxes.make([[0, 0, 1, 1]], [0]),
    }
    things = FakeDataset("things", 9, head="things", human=human, space=LabelSpace(CLASSES))
    mask = Mask(torch.tensor([[0, 1, 255], [1, 1, 255]], dtype=torch.uint8))
    parts = FakeDataset("parts", 2, head="parts", human={1: mask}, space=LabelSpace(CLASSES))
    pool = FakeDataset("pool", 3)
    heads = {"things": CLASSES, "parts": CLASSES, "depth": None}
    assert human_counts([things, parts, pool], heads) == {
        "things": {"cat": 2, "dog": 0, "bird": 1},
        "parts": {"cat": 1, "dog": 3, "bird": 0},
    }
    assert human_counts([pool], heads) == {}


def test_over_and_under_representation() -> None:
    classes = counted(a=(60, 100), b=(40, 800), c=(0, 100), rare=(0, 1))
    found = skews(classes)
    assert [s.name for s in found] == ["a", "b"]  # c: fewer than ten expected of a hundred labels
    assert found[0].times == pytest.approx(0.6 / (100 / 1001))
    assert never(classes) == []
    many = counted(a=(600, 100), b=(400, 800), c=(0, 100), rare=(0, 1))
    assert never(many) == ["c"]
    assert skews(many)[-1].name == "c"
    assert skews(counted(a=(600, None), c=(0, None))) == []
    assert never(counted(a=(600, None), c=(0, None))) == ["c"]
    assert never(counted(a=(0, None))) == skews(counted(a=(0, 5), b=(0, 5))) == []


# Agreement --------------------------------------------------------------------------------------------------

OTHER = ("Bird ", "fish", "CAT")


def agree(a: Head, b: Head, images: Sequence[tuple[Target | None, Target | None]]) -> Agreement:
    pairs = comparisons([a, b])
    assert len(pairs) == 1
    compare(pairs, [{a.name: (x, (8, 8)), b.name: (y, (8, 8))} for x, y in images])
    return pairs[0].result()


def test_names_are_shared_whatever_their_case() -> None:
    assert shared_classes(CLASSES, OTHER) == {0: 2, 2: 0}
    assert comparisons([Head("a", None, Boxes, CLASSES), Head("b", None, Mask, ("x",))]) == []
    assert comparisons([Head("a", None, Boxes, CLASSES), Head("b", None, Field)]) == []


def test_boxes_against_masks() -> None:
    ids = torch.zeros(8, 8, dtype=torch.uint8)
    ids[:4] = 2  # OTHER: CAT above, "Bird " below, the right column unknown
    ids[:, 7] = IGNORE
    boxes = Boxes.make([[0, 2, 8, 6], [0, 0, 4, 4], [0, 0, 2, 2], [7, 0, 8, 8]], [0, 2, 1, 0])  # dog is not shared
    found = agree(
        Head("a", None, Boxes, CLASSES), Head("b", None, Mask, OTHER), [(boxes, Mask(ids)), (None, Mask(ids))]
    )
    assert found.by == "pixels of a box"
    assert found.value == pytest.approx((0.5 + 0.0) / 2)
    assert found.chance == pytest.approx((28 / 56 + 28 / 56) / 2)
    assert (found.both, found.images, found.compared, found.shared) == (2, 1, 2, ("cat", "bird"))


def test_boxes_against_boxes() -> None:
    first = Boxes.make([[0, 0, 4, 4], [0, 0, 4, 5], [5, 5, 8, 8], [0, 0, 1, 1]], [0, 0, 2, 1])
    second = Boxes.make([[0, 0, 4, 4], [5, 5, 8, 8], [1, 1, 2, 2]], [2, 2, 1])
    nothing = Boxes.make([], [])
    found = agree(
        Head("a", None, Boxes, CLASSES),
        Head("b", None, Boxes, OTHER),
        [(first, second), (nothing, nothing), (first, None)],
    )
    # cat on cat once; bird on CAT is no pair; dog and fish are not shared. Then three boxes against none.
    assert found.value == pytest.approx(2 / (3 + 2 + 3))
    assert (found.both, found.images, found.compared) == (3, 2, 8)


def test_classes_against_boxes_and_classes() -> None:
    cat, dog = Label(torch.tensor([0.8, 0.1, 0.1])), Label(torch.tensor([0.1, 0.8, 0.1]))
    with_cat, without = Boxes.make([[0, 0, 1, 1]], [2]), Boxes.make([[0, 0, 1, 1]], [1])
    images = [(cat, with_cat), (cat, without), (dog, with_cat), (cat, None)]
    found = agree(Head("a", None, Label, CLASSES), Head("b", None, Boxes, OTHER), images)
    assert (found.by, found.value, found.images) == ("class found", pytest.approx(1 / 3), 3)
    assert found.chance == pytest.approx(2 / 4)  # a CAT is on two of the four images
    turned = agree(Head("b", None, Boxes, OTHER), Head("a", None, Label, CLASSES), [(y, x) for x, y in images])
    assert (turned.heads, turned.value) == (("a", "b"), found.value)

    other_cat, fish = Label(torch.tensor([0.1, 0.1, 0.8])), Label(torch.tensor([0.1, 0.8, 0.1]))
    both = [(cat, other_cat), (cat, fish), (dog, fish), (dog, other_cat)]
    same = agree(Head("a", None, Label, CLASSES), Head("b", None, Label, OTHER), both)
    assert (same.value, same.images) == (pytest.approx(1 / 3), 3)  # dog against fish says nothing
    assert same.chance == pytest.approx((2 / 3) * (2 / 3))


def test_masks_against_masks() -> None:
    rng = np.random.default_rng(0)
    x, y = (torch.from_numpy(rng.choice([0, 1, 2, 255], (2, 9, 7)).astype(np.uint8)) for _ in range(2))
    images = [(Mask(x[n]), Mask(y[n])) for n in range(2)]
    found = agree(Head("a", None, Mask, CLASSES), Head("b", None, Mask, OTHER), images)
    names = {0: "cat", 1: "dog", 2: "bird"}, {0: "bird", 1: "fish", 2: "cat"}
    same = compared = 0
    for first, second in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True):
        a, b = names[0].get(first), names[1].get(second)
        if a and b and (a in ("cat", "bird") or b in ("cat", "bird")):
            compared, same = compared + 1, same + (a == b)
    assert (found.compared, found.value) == (compared, pytest.approx(same / compared))


def test_depth_against_depth() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 50), rng.integers(0, 9, 50)
    ranks = [[sum(a < b for a in v) + sum(a == b for a in v) / 2 for b in v] for v in (x.tolist(), y.tolist())]
    assert rank_correlation(x, y) == pytest.approx(np.corrcoef(ranks)[0, 1])
    assert rank_correlation(x, np.ones(50)) is None
    depth = torch.from_numpy(rng.random((8, 8), dtype=np.float32)) + 0.5
    valid = torch.ones(8, 8, dtype=torch.bool)
    near = Field(1 / depth, valid)
    inverse = Depth(mode="relative", target="inverse")
    images = [(Field(depth, valid), near), (None, near), (Field(depth, ~valid), near)]
    found = agree(Head("a", Depth(), Field), Head("b", inverse, Field), images)
    assert (found.value, found.images, found.both) == (pytest.approx(1.0), 1, 3)
    assert agree(Head("a", Depth(), Field), Head("b", Depth(), Field), images).value == pytest.approx(-1.0)


def test_normals_against_normals() -> None:
    down, into = torch.zeros(3, 5, 5), torch.zeros(3, 5, 5)
    down[1], into[1], into[2] = 1, math.cos(0.5), math.sin(0.5)
    valid = torch.ones(5, 5, dtype=torch.bool)
    found = agree(Head("a", None, Vectors), Head("b", None, Vectors), [(Vectors(down, valid), Vectors(into, valid))])
    assert found.value == pytest.approx(math.degrees(0.5))


def test_a_store_agrees_with_itself(tmp_path: Path) -> None:
    label_pool(
        pools(), [teacher(Mask, "a"), teacher(Mask, "b"), teacher(Field, "c")], tmp_path, Labelling(shard=10, batch=4)
    )
    (pair,) = store_health(Store(tmp_path)).agreement
    assert (pair.value, pair.both, pair.by) == (1.0, 46, "pixels")
    assert 0.2 < (pair.chance or 0) < 0.5


# Findings ---------------------------------------------------------------------------------------------------


def scores_of(values: Sequence[float], images: int = 1) -> Scores:
    tally = BoxesTally(1)
    for part in np.array_split(np.array(values, np.float32), images):
        boxes = Boxes.make([[0, 0, 1, 1]] * len(part), [0] * len(part), part)
        tally.add(boxes, boxes, (1, 1))
    return tally.summary().scores


def head_of(summary: Any, classes: tuple[ClassCount, ...] = (), looked_at: int = 100, **counts: int) -> HeadHealth:
    return HeadHealth(
        head="h",
        kind=summary.kind,
        task="any",
        teacher="t",
        rule="threshold 0.5",
        counts=Counts(**{"read": looked_at, "labelled": looked_at, **counts}),
        storage=Storage(bytes=1, shards=1, least=1, greatest=1, derived=0),
        records=looked_at,
        looked_at=looked_at,
        summary=summary,
        classes=classes,
        examples=(),
    )


def boxes_of(values: Sequence[float], kept: int, without: int, area: float = 0.1, images: int = 100) -> BoxesSummary:
    quantiles = Quantiles(least=area, low=area, median=area, high=area, greatest=area)
    return BoxesSummary(scores=scores_of(values, images), kept=kept, without=without, most=9, area=quantiles)


SPREAD = np.linspace(0.1, 0.9, 200).tolist()
WELL = boxes_of(SPREAD, 120, 20)
EVEN = counted(a=(40, 400), b=(40, 300), c=(40, 300))
DEEP = Quantiles(least=0.5, low=1, median=3, high=9, greatest=10)


def mask_of(pixels: int, kept: int, values: Sequence[float] = SPREAD) -> MaskSummary:
    return MaskSummary(scores=scores_of(values), pixels=pixels, kept=kept, without=0)


def field_of(valid: int = 90, values: Quantiles = DEEP, varied: float = 0.3) -> FieldSummary:
    return FieldSummary(unit="m", pixels=100, valid=valid, values=values, varied=varied)


@pytest.mark.parametrize(
    ("head", "wanted"),
    [
        (head_of(WELL, EVEN), None),
        (
            head_of(boxes_of(SPREAD[::-1], 9, 91), EVEN),
            "91.0% of the images have no box above the threshold",
        ),
        (head_of(boxes_of([], 0, 100)), "No box is stored for any of the 100 images"),
        (head_of(boxes_of(SPREAD, 5100, 0), EVEN), "51 boxes are kept an image"),
        (head_of(boxes_of(SPREAD, 120, 20, area=0.97), EVEN), "Half of the boxes cover 97% of their image"),
        (head_of(boxes_of([1.0] * 200, 120, 20), EVEN), "Scores pile up at 1: 100% of the boxes"),
        (head_of(WELL, EVEN, undecodable=2, faulty=1), "3.0% of the images were set aside: 2 cannot be read, 1 got"),
        (head_of(WELL, EVEN, looked_at=0), "There is no label at all"),
        (head_of(WELL, counted(a=(40, 400), b=(40, 300), x=(0, 300))), "1 of 3 classes was never predicted: x."),
        (head_of(WELL, counted(a=(96, 300), b=(2, 300), c=(2, 300))), "96.0% of the labels are a, against 33%"),
        (head_of(WELL, counted(a=(96, 950), b=(2, 25), c=(2, 25))), None),
        (
            head_of(WELL, counted(a=(50, 20), b=(10, 400), c=(40, 400))),
            "more often than people did: a 50.0% against",
        ),
        (
            head_of(WELL, counted(a=(90, 450), b=(95, 450), c=(3, 100))),
            "less often than people did: c 1.6% against",
        ),
        (head_of(LabelSummary(scores=scores_of(SPREAD), kept=1, median=0.4), EVEN), "chance is 0.33"),
        (head_of(LabelSummary(scores=scores_of(SPREAD), kept=1, median=0.7), EVEN), None),
        (head_of(mask_of(100, 3), EVEN), "97.0% of the pixels are ignored"),
        (head_of(mask_of(100, 60), EVEN), None),
        (head_of(mask_of(100, 60, [1.0] * 99), EVEN), "100% of the pixels have at least 0.99"),
        (head_of(field_of()), None),
        (head_of(field_of(valid=20)), "Only 20% of the pixels have a depth"),
        (head_of(field_of(varied=0.01)), "Depth hardly varies inside an image: by 1.0%"),
        (head_of(field_of(values=DEEP.but(median=3000.0))), "The middle depth is 3e+03 m"),
        (head_of(VectorsSummary(pixels=9, valid=9, mean=(0.1, 0, -0.5), facing=8)), None),
        (head_of(VectorsSummary(pixels=9, valid=8, mean=(0.1, 0, 0.5), facing=2)), "75% of the normals point away"),
        (head_of(VectorsSummary(pixels=9, valid=9, mean=(0, 0, -0.99), facing=9)), "all normals point the same way"),
    ],
)
def test_findings_say_what_is_wrong_and_only_that(head: HeadHealth, wanted: str | None) -> None:
    found = findings(StoreHealth(heads=(head,), agreement=()))
    if wanted is None:
        assert found == []
    else:
        assert len(found) == 1, found
        assert wanted in found[0].text
        assert found[0].advice


def pair_of(by: Any, value: float, chance: float | None = None, compared: int = 100) -> list[Finding]:
    pair = Agreement(heads=("a", "b"), by=by, value=value, chance=chance, both=200, images=100, compared=compared)
    return findings(StoreHealth(heads=(), agreement=(pair,)))


def test_teachers_that_contradict_are_found() -> None:
    assert "no better than by chance: 20% against 19% on 100 images" in pair_of("class", 0.2, 0.19)[0].text
    assert "inverse depth" in pair_of("rank correlation", -0.4)[0].advice
    assert "differ by 80 degrees" in pair_of("angle", 80.0)[0].text
    for usual in (pair_of("class", 0.6, 0.2), pair_of("rank correlation", 0.5), pair_of("angle", 20.0)):
        assert usual == []
    assert pair_of("class", 0.2, 0.19, compared=5) == []


def test_the_advice_names_a_threshold_that_helps() -> None:
    low = boxes_of([0.3] * 100, 0, 100)
    (found,) = findings(StoreHealth(heads=(head_of(low, EVEN),), agreement=()))
    assert "A threshold of 0.3 would leave a box on 100% of them" in found.advice
    (found,) = findings(StoreHealth(heads=(head_of(mask_of(200, 3, [0.7] * 150), EVEN),), agreement=()))
    assert "A threshold of 0.7 would keep 75% of them" in found.advice
    assert [percent(n, 10000) for n in (0, 3, 40, 950, 5000, 9997, 10000)] == [
        "0%", "0.03%", "0.4%", "9.5%", "50%", "99.97%", "100%",
    ]  # fmt: skip


# Text -------------------------------------------------------------------------------------------------------


def test_the_text_fits_and_names_every_head(root: Path) -> None:
    text = list(show(root))
    assert max(len(line) for line in text) <= 100
    joined_text = "\n".join(text)
    for words in (
        "5 heads",
        "things (detection, teacher v1)",
        "47 read = 46 labelled + 0 human + 1 quarantined (1 undecodable",
        "all 46 records",
        "threshold 0.6",
        "at least       .05 .10",
        "without any %",
        "things and parts:",
        "kinds and parts:",
        "kinds and things:",
    ):
        assert words in joined_text, words
    assert list(show(root)) == text


def test_the_text_looks_through_other_rules(root: Path, tmp_path: Path) -> None:
    text = "\n".join(show(root, ["things.pseudo_threshold=0.9", "parts.pseudo_threshold={cat: 0.9, default: 0.1}"]))
    assert "rule          threshold 0.9" in text
    assert "cat 0.9" in text
    assert rule_in_words(None) == "not known: shown as stored"
    for setting, wrong in (("thing.x=1", "did you mean 'things'"), ("things.pseudo_treshold=1", "pseudo_treshold")):
        with pytest.raises(UserError, match=wrong):
            list(show(root, [setting]))
    with pytest.raises(UserError, match="no finished labels"):
        list(show(tmp_path))


def test_a_task_of_a_users_own_is_shown_as_stored(tmp_path: Path) -> None:
    other = FakeTeacher(Boxes)
    other.about = {}
    label_pool([FakeDataset("one", 3)], [other], tmp_path)
    assert task_from(Store(tmp_path).manifest("boxes")) is None
    assert "not known: shown as stored" in "\n".join(show(tmp_path))


def test_extremes_of_size(tmp_path: Path) -> None:
    """One image; heads without a label, because people gave them all; a detector that finds nothing."""
    empty = Boxes.make([], [])
    only = FakeDataset("one", 1, head="things", human={0: empty}, space=LabelSpace(CLASSES))
    teachers = [teacher(kind, head) for head, kind in HEADS.items()]
    nothing = teacher(Boxes, "nothing", change=lambda image, target: Boxes.make([], []))
    label_pool([only], [*teachers, nothing], tmp_path, Labelling(batch=3))
    found = store_health(Store(tmp_path))
    of = {head.head: head for head in found.heads}
    assert (of["things"].looked_at, of["parts"].looked_at, of["things"].counts.human) == (0, 1, 1)
    text = "\n".join(lines(found, "x"))
    assert "There is no label at all" in text
    assert "No box is stored" in text
    undecodable = tmp_path / "bad"
    label_pool([FakeDataset("one", 1, bad=[0])], teachers, undecodable)
    for head in store_health(Store(undecodable)).heads:
        assert (head.looked_at, head.examples) == (0, ())


def test_health_is_written_and_read_back(root: Path, tmp_path: Path) -> None:
    human = {"things": {"cat": 4, "dog": 5}}
    found = store_health(Store(root), human=human)
    assert read_health(write_health(found, tmp_path)) == found
    assert human_of(found) == {"things": {"cat": 4, "dog": 5, "bird": 0}}
    assert store_health(Store(root), human=human) == found
    (tmp_path / "health.json").write_text('{"heads": 3}')
    with pytest.raises(UserError, match="no health of labels"):
        read_health(tmp_path / "health.json")


def test_people_of_a_run_are_known_to_the_text(copied: Path) -> None:
    write_health(store_health(Store(copied), human={"things": {"cat": 400, "dog": 5, "bird": 3}}), copied)
    assert "people 98.0%" in " ".join(" ".join(show(copied)).split())


# Damage -----------------------------------------------------------------------------------------------------


def files_of(faults: Sequence[Any]) -> set[str]:
    return {fault.file for fault in faults}


def shards(root: Path) -> list[Path]:
    return sorted(root.glob("*/part-*.parquet"))


def test_a_whole_store_has_no_faults(root: Path) -> None:
    assert verify(root) == []


@pytest.mark.parametrize("seed", range(3))
def test_a_flipped_bit_is_found_wherever_it_is(copied: Path, seed: int) -> None:
    rng = random.Random(seed)
    for file in shards(copied):
        content = bytearray(file.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
    assert files_of(verify(copied)) == {str(file) for file in shards(copied)}
    assert len(shards(copied)) == 25


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_shard_cut_short_is_found_at_any_length(copied: Path, share: float) -> None:
    for file in shards(copied):
        content = file.read_bytes()
        file.write_bytes(content[: int(share * len(content))])
    assert files_of(verify(copied)) == {str(file) for file in shards(copied)}


def test_missing_and_foreign_files_are_found(copied: Path) -> None:
    gone, extra = copied / "parts" / "part-00002.parquet", copied / "things" / "part-00009.parquet"
    gone.unlink()
    shutil.copy(copied / "things" / "part-00000.parquet", extra)
    (copied / "things" / ".part-00001.parquet.7.part").write_bytes(b"a writer at work")
    (copied / "things" / "_random-access.npy").write_bytes(b"derived")
    assert files_of(verify(copied)) == {str(gone), str(extra)}


def test_heads_without_a_manifest_and_with_a_damaged_one_are_found(copied: Path) -> None:
    none, broken, wrong = (copied / head / "_manifest.json" for head in ("depth", "parts", "kinds"))
    none.unlink()
    broken.write_text(broken.read_text()[:-40])
    plain = json.loads(wrong.read_text())
    plain["counts"]["labelled"] -= 1
    wrong.write_text(json.dumps(plain))
    assert files_of(verify(copied)) == {str(none), str(broken), str(wrong)}
    with pytest.raises(UserError, match="no labels here"):
        verify(copied / "depth" / "nowhere")


def rewritten(file: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change a shard's table, and its entry in the manifest with it."""
    pq.write_table(change(pq.read_table(file)), file, compression="zstd")
    manifest = file.parent / "_manifest.json"
    plain = json.loads(manifest.read_text())
    (entry,) = (shard for shard in plain["shards"] if shard["file"] == file.name)
    entry |= {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    manifest.write_text(json.dumps(plain))


def test_rows_that_do_not_decode_and_shards_of_another_head_are_found(copied: Path) -> None:
    def spoil(table: pa.Table) -> pa.Table:
        masks = table["mask"].to_pylist()
        masks[3] = masks[3][: len(masks[3]) // 2]
        return table.set_column(table.schema.get_field_index("mask"), table.schema.field("mask"), [masks])

    def rename(table: pa.Table) -> pa.Table:
        note = json.loads(table.schema.metadata[b"tutelage"]) | {"teacher": "another"}
        return table.replace_schema_metadata({b"tutelage": json.dumps(note).encode()})

    spoiled, renamed = copied / "parts" / "part-00001.parquet", copied / "depth" / "part-00000.parquet"
    rewritten(spoiled, spoil)
    rewritten(renamed, rename)
    found = {fault.file: fault.problem for fault in verify(copied)}
    assert set(found) == {str(spoiled), str(renamed)}
    assert "row 3 (0013.jpg) does not decode" in found[str(spoiled)]
    assert "another teacher" in found[str(renamed)]
    with pytest.raises(UserError, match="--verify") as caught:
        look(copied, "parts")
    assert caught.value.file == spoiled


# Pictures ---------------------------------------------------------------------------------------------------


def test_examples_are_drawn_and_shown_in_the_report(root: Path, tmp_path: Path) -> None:
    store, run = Store(root), tmp_path / "run"
    tasks = {head: TASKS[HEADS[head]] for head in ("things", "depth")}
    found = store_health(store, tasks, human={"things": {"cat": 400, "dog": 5, "bird": 3}})
    wanted = {(e.source, e.id) for head in found.heads for e in head.examples}
    images: Callable[[str, str], UInt8 | None] = images_of(pools(), wanted)
    assert images("one", "nowhere.jpg") is None
    assert images("one", "0004.jpg") is None  # not asked for, and no image
    (run / "labels").mkdir(parents=True)
    (run / "labels" / "stage.json").write_text("{}")
    drawn = draw_examples(run / "labels", store, found, tasks, images)
    assert len(drawn) == sum(len(head.examples) for head in found.heads)
    assert all((run / "labels" / entry["file"]).is_file() for entry in drawn)
    write_health(found, run / "labels")
    html = write_report(run).read_text()
    assert html.count("<img") == len(drawn)
    for words in ("Pseudo labels", "Most over: ", "what every threshold would keep"):
        assert words in html, words
    assert "Left out of this report" not in html
    (run / "labels" / "health.json").write_text("{")
    assert "Left out of this report" in write_report(run).read_text()


def test_examples_without_their_images_are_left_out(root: Path, tmp_path: Path) -> None:
    found = store_health(Store(root))
    tasks = {head: TASKS[kind] for head, kind in HEADS.items()}
    assert draw_examples(tmp_path, Store(root), found, tasks, lambda source, id: None) == []
    other_size = np.zeros((5, 5, 3), np.uint8)
    assert draw_examples(tmp_path, Store(root), found, tasks, lambda source, id: other_size) == []
