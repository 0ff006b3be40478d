"""The labels store: what goes in comes out, quickly, and damage is seen."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from kill_labelling import CLASSES, TASKS, BoxesTask, FakeDataset, FakeTeacher, all_teachers, predict_one, records
from PIL import Image

from tutelage.data.source import LabelSpace
from tutelage.errors import UserError
from tutelage.labels import random_access
from tutelage.labels.encoding import CODECS, BadPrediction, Form, decode, encode
from tutelage.labels.labelling import label_pool
from tutelage.labels.png import read_png, write_png
from tutelage.labels.store import LabelsView, Store, read_note
from tutelage.labels.verify import verify
from tutelage.labels.work import Labelling
from tutelage.types import Boxes, Field, Label, Maps, Mask, Target, Vectors


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """47 images of two sources in 5 shards, five heads. Not to be changed by tests."""
    folder = tmp_path_factory.mktemp("labels")
    label_pool([FakeDataset("one", 30), FakeDataset("two!", 17)], all_teachers(), folder, Labelling(shard=10, batch=4))
    return folder


def assert_same(found: Target, wanted: Target) -> None:
    """Equal up to the quantum that the store states."""
    assert type(found) is type(wanted)
    match found, wanted:
        case (Label(), Label()):
            assert found.probs.dtype == torch.float32
            assert torch.equal(found.probs, wanted.probs.half().float())
        case (Boxes(), Boxes()):
            for name in ("boxes", "classes", "scores", "ignore"):
                a, b = getattr(found, name), getattr(wanted, name)
                assert torch.equal(a, b)
                assert a.dtype == b.dtype
        case (Mask(), Mask()):
            assert torch.equal(found.ids, wanted.ids)
            assert (found.confidence is None) == (wanted.confidence is None)
            if found.confidence is not None:
                assert torch.equal(found.confidence, wanted.confidence)
        case (Field(), Field()):
            assert torch.equal(found.valid, wanted.valid)
            assert torch.equal(found.values, torch.where(wanted.valid, wanted.values, 0).half().float())
        case (Maps(), Maps()):
            for name in ("values", "valid", "extent", "stride"):
                assert torch.equal(getattr(found, name).double(), getattr(wanted, name).double())
        case (Vectors(), Vectors()):
            assert torch.equal(found.valid, wanted.valid)
            assert (found.values[:, ~found.valid] == 0).all()
            a, b = found.values[:, found.valid].double(), wanted.values[:, wanted.valid].double()
            angle = torch.atan2(torch.linalg.cross(a, b, dim=0).norm(dim=0), (a * b).sum(0))
            assert (angle.rad2deg() <= 0.4).all()
            assert torch.allclose(a.norm(dim=0), torch.ones(1, dtype=torch.float64), atol=1e-5)


def through_disk(target: Target, size: tuple[int, int], folder: Path, reduce: int = 1) -> Target:
    """One target written by a pass over one image and read back at random."""
    kind = type(target)
    dataset = FakeDataset("one", 1)
    dataset.pixels = lambda index: np.zeros((*size, 3), np.uint8)  # type: ignore[method-assign]
    teacher = FakeTeacher(kind, change=lambda image, old: target)
    label_pool([dataset], [teacher], folder, Labelling(reduce=reduce))
    found = Store(folder).get(teacher.head, "one", "0000.jpg")
    assert found is not None
    return found


# PNG --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize(
    ("dtype", "shape"), [(np.uint8, (7, 5)), (np.uint16, (1, 1)), (np.uint16, (6, 9)), (np.uint8, (4, 3, 3))]
)
def test_png_is_what_pillow_reads(dtype: type, shape: tuple[int, ...], smooth: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    data = write_png(pixels, smooth)
    by_pillow = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(by_pillow.astype(dtype), pixels)
    ours = read_png(data)
    assert np.array_equal(ours, pixels)
    assert ours.dtype == pixels.dtype
    assert ours.flags.writeable


def test_png_damage_is_an_error_and_never_other_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    data = write_png(pixels, smooth=True)
    refused = 0
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 0x10
        try:
            found = read_png(bytes(broken))
        except ValueError:
            refused += 1
        else:  # checksums of chunks, padding bits
            assert np.array_equal(found, pixels)
    assert refused >= 0.75 * len(data)
    for cut in (0, 10, 40, 60):
        with pytest.raises(ValueError, match="PNG"):
            read_png(data[:cut])
    Image.fromarray(np.zeros((4, 4), bool)).save(one_bit := io.BytesIO(), "PNG")
    with pytest.raises(ValueError, match="not a PNG of this store"):
        read_png(one_bit.getvalue())


# Round trips ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(TASKS))
def test_every_kind_comes_back(kind: type, root: Path) -> None:
    store, head = Store(root), kind.__name__.lower()
    for dataset in (FakeDataset("one", 30), FakeDataset("two!", 17)):
        for index in range(len(dataset)):
            found = store.get(head, dataset.name, dataset.id(index))
            assert found is not None
            assert_same(found, predict_one(kind, dataset.pixels(index)))


@pytest.mark.parametrize("kind", list(TASKS))
def test_random_reads_equal_rows_in_order(kind: type, root: Path) -> None:
    store, head = Store(root), kind.__name__.lower()
    rows = records(store.root, head)
    assert [(r.source, r.id) for r in rows] == [
        *(("one", f"{i:04d}.jpg") for i in range(30)),
        *(("two!", f"{i:04d}.jpg") for i in range(17)),
    ]
    for record in reversed(rows):
        found = store.get(head, record.source, record.id)
        assert found is not None
        for name in type(found).__slots__:
            assert torch.equal(getattr(found, name), getattr(record.target, name))
    dataset = FakeDataset("one", 30)
    assert rows[4].sha256 == dataset.sha256(4)
    assert (rows[4].height, rows[4].width) == dataset.pixels(4).shape[:2]
    assert rows[4].teacher == "v1"


def test_unlabelled_is_none_and_not_empty(root: Path) -> None:
    store = Store(root)
    assert store.get("boxes", "one", "9999.jpg") is None
    assert store.get("boxes", "two", "0000.jpg") is None
    empty = [r for r in records(store.root, "boxes") if len(r.target) == 0]  # type: ignore[arg-type]
    assert empty, "the fake teacher finds nothing on some images"
    found = store.get("boxes", empty[0].source, empty[0].id)
    assert isinstance(found, Boxes)
    assert found.boxes.shape == (0, 4)
    assert found.classes.dtype == torch.int64


@pytest.mark.parametrize(
    "target",
    [
        Boxes.make([], []),
        Boxes.make([[0, 0, 5, 4]], [2], [0.05]),
        Mask(torch.full((4, 5), 255, dtype=torch.uint8)),
        Field(torch.zeros(4, 5), torch.zeros(4, 5, dtype=torch.bool)),
        Field(torch.tensor([[65504.0, -3.0, 6e-8, 0.0, 1e-9]] * 4), torch.ones(4, 5, dtype=torch.bool)),
        Vectors(torch.zeros(3, 4, 5), torch.zeros(4, 5, dtype=torch.bool)),
        Vectors(torch.eye(3)[2][:, None, None].expand(3, 4, 5) * -1, torch.ones(4, 5, dtype=torch.bool)),
        Label(torch.tensor([0.0, 1.0, 1e-7])),
    ],
    ids=lambda t: type(t).__name__,
)
def test_extremes_come_back(target: Target, tmp_path: Path) -> None:
    assert_same(through_disk(target, (4, 5), tmp_path), target)


def softmax(classes: int, *seed: int, sharp: float = 3.0) -> torch.Tensor:
    """A distribution as classifiers give it, float32 [classes]."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(sharp * rng.standard_normal(classes)).softmax(0).float()


def many_classes(classes: int, probs: Callable[[int], torch.Tensor] | None = None) -> FakeTeacher:
    """A classifier of many classes; `probs` is asked with a number that follows from the image."""
    probs = probs or (lambda number: softmax(classes, number))
    teacher = FakeTeacher(Label, "many", change=lambda image, _: Label(probs(int(image.sum()))))
    teacher.space = LabelSpace(tuple(f"class {k}" for k in range(classes)))
    return teacher


def stored(probs: torch.Tensor, folder: Path, top: int = 20) -> torch.Tensor:
    """Probabilities written and read back, in order and at random."""
    label_pool([FakeDataset("one", 1)], [many_classes(len(probs), lambda _: probs)], folder, Labelling(top_classes=top))
    (record,), found = records(folder, "many"), Store(folder).get("many", "one", "0000.jpg")
    assert isinstance(found, Label)
    assert isinstance(record.target, Label)
    assert torch.equal(found.probs, record.target.probs)
    assert found.probs.dtype == torch.float32
    return found.probs


@pytest.mark.parametrize(("classes", "top"), [(1, 1), (256, 1), (256, 20), (257, 257), (300, 1000)])
def test_few_classes_are_stored_in_full(classes: int, top: int, tmp_path: Path) -> None:
    probs = softmax(classes, classes)
    assert torch.equal(stored(probs, tmp_path, top), probs.half().float())


@pytest.mark.parametrize(("classes", "top"), [(257, 20), (1000, 20), (1000, 1), (1000, 999), (21_841, 50)])
@pytest.mark.parametrize("sharp", [0.0, 3.0, 60.0])
def test_of_many_classes_the_likeliest_are_exact_and_the_rest_is_kept(
    classes: int, top: int, sharp: float, tmp_path: Path
) -> None:
    probs = softmax(classes, classes, sharp=sharp)
    found = stored(probs, tmp_path, top)
    best = sorted(range(classes), key=lambda k: (-float(probs[k]), k))[:top]  # of equal ones, the first
    assert torch.equal(found[best], probs[best].half().float())
    others = [k for k in range(classes) if k not in set(best)]
    assert len(found[others].unique()) == 1
    assert float(found[others][0]) == pytest.approx(float(probs[others].double().mean()), rel=1e-6)
    assert float(found.double().sum()) == pytest.approx(1, abs=2**-11)
    assert sharp == 0 or int(found.argmax()) == int(probs.argmax())  # else equal up to the rounding


def test_independent_probabilities_keep_their_sum(tmp_path: Path) -> None:
    """Several classes an image: the sum is not 1, and many classes may be certain."""
    probs = torch.from_numpy(np.random.default_rng(0).random(400).astype(np.float32)) ** 4
    probs[7:30] = 1
    found = stored(probs, tmp_path)
    assert found[7:27].tolist() == [1] * 20
    assert float(found.double().sum()) == pytest.approx(float(probs.double().sum()), rel=1e-5)
    assert found.max() <= 1


def test_a_thousand_classes_take_few_bytes(tmp_path: Path) -> None:
    for top, most in ((20, 180), (1000, 1800)):  # with hashes, ids, and the names of the classes
        folder = tmp_path / str(top)
        label_pool([FakeDataset("one", 500)], [many_classes(1000)], folder, Labelling(top_classes=top))
        assert Store(folder).manifest("many").bytes / 500 < most


@pytest.mark.parametrize(
    ("classes", "total"), [([3, 300], 300), ([-1, 2], 300), ([1, 2, 3], 300), ([0, 1], 2), ([], 300)]
)
def test_a_damaged_list_of_classes_is_an_error(classes: list[int], total: int) -> None:
    schema = pa.schema([pa.field("height", pa.int32()), pa.field("width", pa.int32()), *CODECS[Label].columns])
    row = {"height": 4, "width": 4, "probs": [0.5, 0.25], "classes": classes, "rest": 0.25, "total": total}
    batch = pa.RecordBatch.from_pylist([row], schema)
    with pytest.raises(ValueError, match="classes out of"):
        decode(Label, batch, 0)


def test_all_angles_stay_within_the_quantum(tmp_path: Path) -> None:
    values = torch.nn.functional.normalize(torch.randn(3, 200, 200, generator=torch.Generator().manual_seed(0)), dim=0)
    target = Vectors(values, torch.ones(200, 200, dtype=torch.bool))
    assert_same(through_disk(target, (200, 200), tmp_path), target)


def test_boxes_below_the_floor_go_and_rounding_is_clipped(tmp_path: Path) -> None:
    given = Boxes.make([[0, 0, 2, 2], [-0.005, 0, 5.005, 4], [1, 1, 2, 2]], [0, 1, 2], [0.9, 0.06, 0.049])
    found = through_disk(given, (4, 5), tmp_path)
    assert isinstance(found, Boxes)
    assert found.boxes.tolist() == [[0, 0, 2, 2], [0, 0, 5, 4]]
    assert found.classes.tolist() == [0, 1]


@pytest.mark.parametrize("reduce", [2, 4])
@pytest.mark.parametrize("size", [(16, 20), (13, 11), (1, 1), (2, 9), (3, 1)])
def test_reduced_fields_come_back_at_full_size(size: tuple[int, int], reduce: int, tmp_path: Path) -> None:
    h, w = size
    ramp = 1 + torch.arange(w).float().expand(h, w) / 8 + torch.arange(h).float()[:, None] / 4
    valid = torch.ones(h, w, dtype=torch.bool)
    found = through_disk(Field(ramp, valid), size, tmp_path / "field", reduce)
    assert isinstance(found, Field)
    assert found.valid.all()
    assert found.values.shape == size
    assert (found.values - ramp).abs().max() <= (1 / 8 + 1 / 4) * reduce / 2 + 0.01  # half a block off at borders
    tilted = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, -0.9]), dim=0)[:, None, None].expand(3, h, w)
    normals = through_disk(Vectors(tilted, valid), size, tmp_path / "vectors", reduce)
    assert_same(normals, Vectors(tilted, valid))


def test_reduced_blocks_are_means_of_their_valid_pixels(tmp_path: Path) -> None:
    """Against a plain loop: an object beside pixels without depth is not mixed with zeros."""
    values = torch.tensor([[4.0, 8.0, 0.0, 0.0, 2.0], [4.0, 0.0, 0.0, 6.0, 2.0], [1.0, 3.0, 5.0, 5.0, 7.0]])
    valid = values > 0
    label_root = tmp_path / "r"
    through_disk(Field(values, valid), (3, 5), label_root, 2)
    import pyarrow.parquet as pq

    stored = pq.read_table(label_root / "field")["values"][0].as_py()
    found = np.asarray(Image.open(io.BytesIO(stored))).astype("u2").view("f2")
    for row in range(2):
        for column in range(3):
            block = values[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            mask = block > 0
            if mask.float().mean() < 0.5:
                assert np.isnan(found[row, column])
            else:
                assert found[row, column] == pytest.approx(block[mask].mean().item(), rel=1e-3)


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        (Label(torch.tensor([0.5, float("nan"), 0.5])), "not finite"),
        (Label(torch.tensor([2.0, -1.0, 0.0])), "outside"),
        (Boxes.make([[0, 0, float("nan"), 1]], [0]), "not finite"),
        (Boxes.make([[0, 0, 5, 4]], [0], [float("nan")]), "not finite"),
        (Mask(torch.full((4, 5), 255, dtype=torch.uint8), torch.zeros(4, 5, dtype=torch.uint8)), "not finite"),
        (Boxes.make([[2, 0, 1, 1]], [0]), "reversed"),
        (Boxes.make([[0, 0, 9, 1]], [0]), "outside"),
        (Boxes.make([[0, 0, 1, 1]], [0], [1.5]), "outside"),
        (Boxes.make([[0, 0, 1, 1]], [0], ignore=[True]), "ignored"),
        (Field(torch.full((4, 5), float("inf")), torch.ones(4, 5, dtype=torch.bool)), "not finite"),
        (Field(torch.full((4, 5), 7e4), torch.ones(4, 5, dtype=torch.bool)), "65504"),
        (Vectors(torch.ones(3, 4, 5), torch.ones(4, 5, dtype=torch.bool)), "length"),
        (Vectors(torch.full((3, 4, 5), float("nan")), torch.ones(4, 5, dtype=torch.bool)), "not finite"),
    ],
)
def test_bad_values_are_no_labels(target: Target, problem: str) -> None:
    with pytest.raises(BadPrediction, match=problem):
        encode(target, Form("h", type(target), 3), (4, 5))


def test_invalid_pixels_may_hold_anything() -> None:
    field = Field(torch.full((4, 5), float("nan")), torch.zeros(4, 5, dtype=torch.bool))
    for reduce in (1, 2):
        assert encode(field, Form("h", Field, None, reduce), (4, 5))


@pytest.mark.parametrize(
    "target",
    [
        Label(torch.ones(4) / 4),
        Boxes.make([[0, 0, 1, 1]], [3]),
        Mask(torch.full((4, 5), 3, dtype=torch.uint8)),
        Mask(torch.zeros(5, 4, dtype=torch.uint8)),
        Mask(torch.zeros(4, 5, dtype=torch.int64)),
        Mask(torch.zeros(4, 5, dtype=torch.uint8), torch.full((4, 5), 0.87)),
        Field(torch.zeros(1, 4, 5), torch.ones(4, 5, dtype=torch.bool)),
        Vectors(torch.zeros(4, 5, 3), torch.ones(4, 5, dtype=torch.bool)),
    ],
)
def test_misfits_stop(target: Target) -> None:
    with pytest.raises(UserError, match="the teacher of head 'h' predicts something else"):
        encode(target, Form("h", type(target), 3), (4, 5))
    other = next(kind for kind in CODECS if kind is not type(target))
    with pytest.raises(UserError, match="kind"):
        encode(target, Form("h", other, 3), (4, 5))


# The files --------------------------------------------------------------------------------------------------


COLUMNS = {
    "boxes": ["boxes", "classes", "scores"],
    "label": ["probs", "classes", "rest", "total"],
    "many": ["probs", "classes", "rest", "total"],
    "mask": ["mask", "confidence"],
    "field": ["values"],
    "vectors": ["values"],
}


@pytest.fixture(scope="module")
def every_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 images in 3 shards, six heads, one of 300 classes; with the derived files, which must not be in the way."""
    folder = tmp_path_factory.mktemp("every head")
    label_pool([FakeDataset("one", 25)], [*all_teachers(), many_classes(300)], folder, Labelling(shard=10))
    Store(folder).prepare()
    return folder


def assert_rows(folder: Path, head: str, rows: list[dict[str, Any]]) -> None:
    """Rows as a foreign library gives them are what the store itself reads."""
    known = records(folder, head)
    assert [row["id"] for row in rows] == [record.id for record in known] == [f"{i:04d}.jpg" for i in range(25)]
    for row, record in zip(rows, known, strict=True):
        assert (row["height"], row["width"], row["teacher"]) == (record.height, record.width, record.teacher)
        assert row["image_sha256"] == record.sha256
        assert list(row)[6:] == COLUMNS[head]
        match record.target:
            case Boxes(boxes=boxes, scores=scores):
                assert np.array_equal(np.array([list(box) for box in row["boxes"]]).reshape(-1, 4), boxes.numpy())
                assert np.array_equal(np.array(row["scores"], np.float32), scores.numpy())
            case Label(probs=probs):
                full = np.full(len(probs), np.nan, np.float32)
                if head == "many":
                    full[:] = row["rest"] / (row["total"] - len(row["probs"]))
                    full[np.array(row["classes"])] = row["probs"]
                else:
                    full[:] = row["probs"]
                    assert row["classes"] is row["rest"] is row["total"] is None
                assert np.allclose(full, probs.numpy(), rtol=1e-6, atol=0)
            case Mask(ids=ids):
                assert np.array_equal(np.asarray(Image.open(io.BytesIO(row["mask"]))), ids.numpy())
            case Field(values=values, valid=valid):
                found = np.asarray(Image.open(io.BytesIO(row["values"]))).astype("u2").view("f2")
                assert np.array_equal(found[valid], values[valid].numpy())
            case Vectors(valid=valid):
                assert np.array_equal(np.asarray(Image.open(io.BytesIO(row["values"])))[..., 0] > 0, valid.numpy())


@pytest.mark.parametrize("head", COLUMNS)
def test_pandas_and_arrow_read_the_folder_as_it_is(head: str, every_head: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    import pyarrow.dataset

    frame = pandas.read_parquet(every_head / head)
    nothing = frame.astype(object).where(frame.notna(), None)  # pandas has no null of a number
    assert_rows(every_head, head, nothing.to_dict("records"))
    if head == "label":
        assert frame["probs"][0].dtype == np.float16
    assert pyarrow.dataset.dataset(every_head / head).count_rows() == 25


@pytest.mark.parametrize("head", COLUMNS)
def test_duckdb_reads_the_files_as_they_are(head: str, every_head: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is not installed")
    with duckdb.connect() as connection:
        found = connection.sql(f"select * from '{every_head / head}/*.parquet' order by id")
        assert_rows(every_head, head, [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()])
        if head == "boxes":
            sql = f"select count(*) from (select unnest(scores) s from '{every_head / head}/*.parquet') where s >= 0.5"
            wanted = sum(int((r.target.scores >= 0.5).sum()) for r in records(every_head, head))  # type: ignore[union-attr]
            assert connection.sql(sql).fetchall() == [(wanted,)]


@pytest.mark.parametrize("head", COLUMNS)
def test_hugging_face_datasets_opens_the_folder_as_it_is(head: str, every_head: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    found = datasets.load_dataset(str(every_head / head), cache_dir=str(tmp_path), split="train")
    assert_rows(every_head, head, list(found))


def test_a_depth_is_read_by_pillow_in_one_line(root: Path) -> None:
    import pyarrow.parquet as pq

    data = pq.read_table(root / "field", columns=["values"])["values"][5].as_py()
    values = np.asarray(Image.open(io.BytesIO(data))).astype("u2").view("f2")
    wanted = predict_one(Field, FakeDataset("one", 30).pixels(5))
    assert isinstance(wanted, Field)
    assert np.array_equal(np.isnan(values), ~wanted.valid.numpy())
    assert np.array_equal(values[wanted.valid], wanted.values[wanted.valid].half().numpy())


def test_manifest_and_notes_say_what_is_there(root: Path) -> None:
    store = Store(root)
    assert store.heads() == ["boxes", "field", "label", "maps", "mask", "vectors"]
    manifest = store.manifest("boxes")
    assert [s.rows for s in manifest.shards] == [10, 10, 10, 10, 7]
    assert manifest.bytes == sum(f.stat().st_size for f in (root / "boxes").glob("part-*.parquet"))
    assert (manifest.counts.read, manifest.counts.labelled) == (47, 47)
    assert manifest.classes == CLASSES
    note = read_note(root / "boxes" / "part-00004.parquet")
    assert note is not None
    assert note.counts.read == 7
    assert note.task["threshold"] == 0.5
    assert note.settings == {"reduce": 1, "floor": 0.05}
    assert note.teacher == "v1"


def test_the_view_applies_the_threshold_on_reading(root: Path) -> None:
    store = Store(root)
    for threshold in (0.3, 0.8):
        view = LabelsView(store, {"boxes": BoxesTask(threshold=threshold), "mask": TASKS[Mask]()})
        for record in records(store.root, "boxes"):
            assert isinstance(record.target, Boxes)
            found = view.get("boxes", record.source, record.id)
            assert isinstance(found, Boxes)
            assert len(found) == int((record.target.scores >= threshold).sum())
            assert view.get("mask", record.source, record.id) is not None
            assert view.get("depth", record.source, record.id) is None
        assert view.get("boxes", "one", "nothing.jpg") is None


def test_an_opened_store_is_small_to_send(root: Path) -> None:
    store = Store(root)
    assert store.get("mask", "one", "0001.jpg") is not None
    data = pickle.dumps(LabelsView(store, {"mask": TASKS[Mask]()}))
    assert len(data) < 2000
    assert pickle.loads(data).get("mask", "one", "0001.jpg") is not None


# Damage -----------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Path:
    label_pool([FakeDataset("one", 12)], [FakeTeacher(Boxes), FakeTeacher(Mask)], tmp_path, Labelling(shard=5))
    return tmp_path


def test_damaged_shards_are_named(own: Path) -> None:
    store = Store(own)
    assert verify(own) == []
    flipped, cut, lost = ((own / "boxes" / f"part-{i:05d}.parquet") for i in range(3))
    data = bytearray(flipped.read_bytes())
    data[len(data) // 3] ^= 1
    flipped.write_bytes(bytes(data))
    cut.write_bytes(cut.read_bytes()[:-7])
    lost.unlink()
    faults = verify(own)
    assert [(f.record, f.problem.split()[-1] if "bytes, not" in f.problem else f.problem) for f in faults] == [
        ("part-00000.parquet", "the shard's bytes have changed since it was written"),
        ("part-00001.parquet", str(store.manifest("boxes").shards[1].bytes)),
        ("part-00002.parquet", "the shard is missing"),
    ]
    with pytest.raises(UserError, match=r"changed(.|\n)*part-00000"):
        store.get("boxes", "one", "0000.jpg")


def test_a_damaged_record_is_an_error(own: Path) -> None:
    Store(own).prepare(["mask"])
    file = own / "mask" / "_random-access.arrow"
    data = file.read_bytes()
    start = data.index(b"IDAT") + 8
    file.write_bytes(data[:start] + bytes([data[start] ^ 0xFF]) + data[start + 1 :])
    with pytest.raises(UserError, match=r"(?s)damaged.*_random-access.arrow.*one/0000.jpg"):
        Store(own).get("mask", "one", "0000.jpg")


@pytest.mark.parametrize("damage", ["cut arrow", "no index", "cut index", "foreign index"])
def test_derived_files_are_made_again(damage: str, own: Path) -> None:
    Store(own).prepare(["boxes"])
    arrow, index = own / "boxes" / "_random-access.arrow", own / "boxes" / "_random-access.npy"
    if damage == "cut arrow":
        arrow.write_bytes(arrow.read_bytes()[:100])
    elif damage == "no index":
        index.unlink()
    elif damage == "cut index":
        index.write_bytes(index.read_bytes()[:-20])
    else:
        np.save(index, np.zeros(3))
    assert Store(own).get("boxes", "one", "0003.jpg") is not None


def test_a_kill_between_both_derived_files_leaves_none_that_looks_whole(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(own).prepare(["boxes"])
    arrow = own / "boxes" / "_random-access.arrow"

    def stop(path: Path, write: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(random_access, "write_atomically", stop)
    files = sorted((own / "boxes").glob("part-*.parquet"))
    with pytest.raises(KeyboardInterrupt):
        random_access.RandomAccess(own / "boxes", Boxes, "other").build(files)
    assert not arrow.exists()


def test_new_labels_replace_the_derived_files(own: Path) -> None:
    before = Store(own).get("boxes", "one", "0001.jpg")
    one_box = Boxes.make([[0, 0, 3, 3]], [1], [0.7])
    teacher = FakeTeacher(Boxes, hash="v2", change=lambda image, old: one_box)
    label_pool([FakeDataset("one", 12)], [teacher], own, Labelling(shard=5))
    after = Store(own).get("boxes", "one", "0001.jpg")
    assert isinstance(before, Boxes)
    assert isinstance(after, Boxes)
    assert after.boxes.tolist() == [[0, 0, 3, 3]]


def test_manifests_that_cannot_be_used(own: Path) -> None:
    store, file = Store(own), own / "boxes" / "_manifest.json"
    good = file.read_text()
    file.write_text(good[:-20])
    with pytest.raises(UserError, match="damaged"):
        store.manifest("boxes")
    file.write_text(good.replace('"version": 2', '"version": 1'))
    with pytest.raises(UserError, match="another version"):
        store.manifest("boxes")
    file.unlink()
    with pytest.raises(UserError, match=r"(?s)no finished labels.*finished here: mask"):
        records(store.root, "boxes")
    with pytest.raises(UserError, match="name of a folder"):
        store.manifest("../boxes")


def test_colliding_hashes_are_told_apart(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.labels.random_access._hash", lambda source, id: 7)
    store = Store(own)
    for record in records(store.root, "boxes"):
        found = store.get("boxes", record.source, record.id)
        assert isinstance(found, Boxes)
        assert isinstance(record.target, Boxes)
        assert torch.equal(found.boxes, record.target.boxes)
    assert store.get("boxes", "one", "no.jpg") is None


def test_labels_of_another_version_are_told_from_damaged_ones(tmp_path: Path) -> None:
    label_pool([FakeDataset("one", 4)], [FakeTeacher(Label)], tmp_path)
    head = Store(tmp_path).heads()[0]
    file = tmp_path / head / "_manifest.json"
    file.write_text('{"version": 1, "head": "label"}')
    with pytest.raises(UserError, match="another version"):
        Store(tmp_path).manifest(head)
    file.write_text('{"version": 2}')
    with pytest.raises(UserError, match="damaged"):
        Store(tmp_path).manifest(head)
