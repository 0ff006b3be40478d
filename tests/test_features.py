"""Features as a head: coarse maps through moves of the image, the loss, the store, teachers, and a run with them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from test_distort import Fixed, Ramp
from test_extending import Brightness, BrightnessDataset
from test_geometry import random_view
from test_squeeze import Other, settled, student, tiny

import tutelage
from tutelage.data.augment import Augment
from tutelage.data.decoded import _arrays, _target_layout, _unpack
from tutelage.data.geometry import View, letterbox, move_target
from tutelage.data.grids import on_grid
from tutelage.data.operations import Step, move_of
from tutelage.data.source import Place
from tutelage.data.warp import Warp
from tutelage.errors import UserError
from tutelage.labels.encoding import BadPrediction, Form, encode
from tutelage.labels.health.health import health
from tutelage.labels.labelling import label_pool
from tutelage.labels.store import LabelsView, Store
from tutelage.labels.work import Labelling
from tutelage.methods.material import open_material
from tutelage.models.expanded import Expanded
from tutelage.models.pyramid import Pyramid
from tutelage.models.student import Model
from tutelage.plan import measure
from tutelage.progress import SILENT
from tutelage.recipe import Recipe, StudentPart
from tutelage.tasks import Classification, Depth
from tutelage.tasks.features import FeatureFit, Hints, in_image
from tutelage.tasks.guide import Guide
from tutelage.tasks.task import Features, Frame, Widths
from tutelage.teachers import FeatureTeacher, FunctionTeacher, Trained
from tutelage.training.checkpoint import load_model, save_model
from tutelage.training.guidance import Frozen, Guidance
from tutelage.training.schedule import Training
from tutelage.training.squeeze import Squeeze
from tutelage.types import Batch, Field, HeadBatch, Maps, collate, stack, take

CPU = torch.device("cpu")
STEPS = Training(steps=4, batch=6, rate=0.05, workers=0, precision="fp32", augment=Augment())


def random_maps(rng, channels=3, cells=(2, 3), extent=None, stride=32, dtype=torch.float32):
    values = torch.from_numpy(rng.normal(size=(channels, *cells)).astype(np.float32)).to(dtype)
    return Maps.whole(values, extent, stride)


def coordinates(height, width, cells, extent, stride):
    """A map whose two channels tell the row and the column of the image under the centre of each cell, in pixels."""
    y = (np.arange(cells[0]) + 0.5) * height / extent[0]
    x = (np.arange(cells[1]) + 0.5) * width / extent[1]
    values = np.stack(np.broadcast_arrays(y[:, None], x[None])).astype(np.float32)
    return Maps.whole(torch.from_numpy(values), extent, stride), (y, x)


def ramps(height, width):
    """The same for every pixel."""
    y, x = np.mgrid[:height, :width].astype(np.float32) + 0.5
    valid = torch.ones(height, width, dtype=torch.bool)
    return [Field(torch.from_numpy(values), valid) for values in (y, x)]


# --- moves ---


def random_grid(rng):
    """Cells, how many of them the image covers, and a stride: an odd one, so that a cell's centre is a pixel's."""
    cells = rng.integers(1, 7, 2).tolist()
    extent = tuple(max(0.3, cells[k] - 0.5 + 0.99 * rng.random()) for k in range(2))
    return cells, extent, int(rng.choice([1, 3, 5, 7]))


@pytest.mark.parametrize("warped", [False, True])
def test_a_ramp_stays_the_ramp_wherever_its_pixels_go(warped):
    rng, compared = np.random.default_rng(0), 0
    for _ in range(90):
        view, (cells, extent, stride) = random_view(rng), random_grid(rng)
        maps, (y, x) = coordinates(view.height, view.width, cells, extent, stride)
        move = lambda target, view=view: move_target(target, view)  # noqa: E731
        if warped:
            steps = [Step(name, float(rng.uniform(-0.6, 0.6))) for name in ("rotate", "shear-x", "translate-y")]
            matrix = np.eye(3)
            for step in steps:
                matrix = move_of(step, view.height, view.width, max(view.height, view.width)) @ matrix
            move = Warp(view, matrix).move_target
        moved = move(maps)
        assert moved.valid.shape == tuple(math.ceil(side / stride) for side in view.size)
        assert moved.extent.tolist() == pytest.approx([side / stride for side in view.size])
        assert int(moved.stride) == stride
        assert (moved.values[:, ~moved.valid] == 0).all()
        pixels = [move(field) for field in ramps(view.height, view.width)]
        for row, column in np.ndindex(*moved.valid.shape):
            v, u = row * stride + stride // 2, column * stride + stride // 2
            shown = v < view.size[0] and u < view.size[1] and bool(pixels[0].valid[v, u])
            assert bool(moved.valid[row, column]) == shown
            if shown:  # the nearest pixel is at most half a pixel of the image away; a ramp ends at the last centres
                for said, true, centres in zip(moved.values[:, row, column], pixels, (y, x), strict=True):
                    wanted = min(max(float(true.values[v, u]), centres[0]), centres[-1])
                    assert abs(float(said) - wanted) <= 0.5 + 1e-3
                compared += 1
    assert compared > 300


def test_a_grid_is_looked_up_bilinearly_at_exact_places():
    maps = Maps.whole(torch.tensor([[[0.0, 1.0], [10.0, 11.0]]]), stride=2)
    twice = move_target(
        maps, View.resize(4, 4, 8, 8)
    )  # four cells a side, their centres at 1/4, 3/4, 5/4, 7/4 of a cell
    assert torch.allclose(twice.values[0, :, 0], torch.tensor([0.0, 2.5, 7.5, 10.0]))
    assert torch.allclose(twice.values[0, 0], torch.tensor([0.0, 0.25, 0.75, 1.0]))
    half = move_target(maps, View.resize(4, 4, 2, 2))
    assert half.values.flatten().tolist() == [5.5]
    mirrored = move_target(maps, View(4, 4, 4, 4, (4, 4), flip=True))
    assert torch.equal(mirrored.values, maps.values.flip(-1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("height", "width"), [(224, 224), (300, 500), (7, 131)])
def test_without_augmentation_every_bit_stays(height, width, dtype):
    """What a network saw of a letterboxed image comes back as it was."""
    size = 224
    frame = letterbox(np.zeros((height, width, 3), np.uint8), size)[1]
    stored = in_image(torch.randn(5, 7, 7), frame, (size, size))
    stored = Maps(stored.values.to(dtype), stored.valid, stored.extent, stored.stride)
    view = View(height, width, frame.inner_height, frame.inner_width, (size, size))
    found = move_target(stored, view)
    rows, columns = stored.valid.shape
    assert found.values.dtype == dtype
    if frame.inner_height > 16:
        assert torch.equal(found.values[:, :rows, :columns], stored.values)
    inside = (torch.arange(7)[:, None] < rows) & (torch.arange(7) < columns)
    # of an image that is less than half a cell high, no cell's centre shows anything
    assert torch.equal(found.valid, inside & (frame.inner_height > 16))


def test_cells_that_are_not_valid_do_not_speak():
    maps = Maps.whole(torch.tensor([[[5.0, float("inf"), 3.0]]]), stride=4)
    maps = Maps(maps.values.nan_to_num(posinf=0), torch.tensor([[True, False, True]]), maps.extent, maps.stride)
    same = move_target(maps, View.resize(4, 12, 4, 12))
    assert torch.equal(same.values, maps.values)
    assert torch.equal(same.valid, maps.valid)
    # a quarter of a cell away from a valid one: what it says, undiluted; from the other: nothing
    shifted = move_target(maps, View(4, 12, 4, 12, (4, 12), left=1))
    assert shifted.valid.tolist() == [[True, False, True]]
    assert shifted.values[0, 0].tolist() == [5.0, 0.0, 3.0]


def test_what_a_policy_moves_inside_a_box_is_forgotten():
    rng = np.random.default_rng(3)
    maps = random_maps(rng, cells=(8, 8), stride=8)
    boxes = tutelage.types.Boxes.make([[9.0, 17.0, 24.0, 30.0]], [0])
    inside = Step("translate-y", 0.2, "boxes", 1.0)
    augment = Augment(flip=False, scale=(1, 1), policy=Fixed(steps=(inside,)))
    _, moved = augment(Ramp(64, 64), {"maps": maps, "boxes": boxes}, 64, rng)
    gone = torch.zeros(8, 8, dtype=torch.bool)
    gone[2:4, 1:3] = True
    assert torch.equal(~moved["maps"].valid, gone)
    assert torch.equal(moved["maps"].values, torch.where(gone, 0, maps.values))
    assert bool(maps.valid.all())  # the label itself is as it was


def test_stacks_and_files_take_them_like_any_other_kind():
    rng = np.random.default_rng(4)
    three = [random_maps(rng, dtype=torch.float16) for _ in range(3)]
    joined = stack(three)
    assert joined.values.shape == (3, 3, 2, 3)
    assert joined.extent.shape == (3, 2)
    assert joined.stride.tolist() == [32, 32, 32]
    assert torch.equal(take(joined, torch.tensor([2, 0])).values[1], three[0].values)
    assert joined.to("meta").valid.shape == (3, 2, 3)
    layout = _target_layout(three[0])
    data = b"".join(array.tobytes() for array in _arrays(three[0]))
    again = _unpack(*layout, np.frombuffer(data, np.uint8))
    assert all(torch.equal(getattr(again, f), getattr(three[0], f)) for f in ("values", "valid", "extent", "stride"))


# --- the task ---


def hints(output, frames, size):
    return Hints(channels=3).decode(output, frames, size)


def test_the_loss_is_that_of_a_plain_loop():
    rng = np.random.default_rng(5)
    images = [random_maps(rng, cells=(3, 4), dtype=torch.float16) for _ in range(4)]
    valid = torch.from_numpy(rng.random((4, 3, 4)) < 0.6)
    valid[1], valid[3] = True, False
    images = [Maps(m.values * v, v, m.extent, m.stride) for m, v in zip(images, valid, strict=True)]
    output = torch.from_numpy(rng.normal(size=(4, 3, 3, 4)).astype(np.float32))
    total = 0.0
    for image in range(3):
        cells = [(y, x) for y in range(3) for x in range(4) if valid[image, y, x]]
        errors = [
            (float(images[image].values[c, y, x]) - float(output[image, c, y, x])) ** 2
            for y, x in cells
            for c in range(3)
        ]
        total += sum(errors) / len(errors)
    found = Hints(channels=3).loss(output, stack(images))
    assert float(found.sum) == pytest.approx(total, rel=1e-5)
    assert float(found.count) == 3  # the last image has nothing valid
    parts = [Hints(channels=3).loss(output[n : n + 1], stack([images[n]])) for n in range(4)]
    assert float(sum(p.sum for p in parts)) == pytest.approx(total, rel=1e-5)
    assert [float(p.count) for p in parts] == [1, 1, 1, 0]
    assert float(parts[3].sum) == 0


@pytest.mark.parametrize("cells", [(2, 2), (4, 4), (3, 5), (1, 1)])
def test_the_loss_is_that_of_guidance_on_any_grid(cells):
    class Shape:
        strides, widths = (32,), (3,)

    chance = torch.Generator().manual_seed(1)
    hint, own = (torch.randn(5, 3, *side, generator=chance) for side in (cells, (2, 3)))
    guidance = Guidance(Shape(), Shape())
    wanted = guidance([own], [hint])
    output = guidance.guides[0](own).detach()
    found = Hints(channels=3).loss(output, stack([Maps.whole(one) for one in hint]))
    assert float(found.sum) == pytest.approx(wanted.sum.item(), rel=1e-5)
    assert float(found.count) == float(wanted.count) == 5


def test_partly_valid_cells_count_as_much_as_they_are():
    values = torch.tensor([[[2.0, 4.0], [0.0, 0.0]]])
    target = Maps(values, torch.tensor([[True, True], [False, False]]), torch.tensor([2.0, 2.0]), torch.tensor(32))
    found = Hints(channels=1).loss(torch.zeros(1, 1, 1, 2), stack([target]))  # each column half valid
    assert float(found.sum) == pytest.approx((4 + 16) / 2)


def test_the_head_is_a_guidance_layer_on_the_deepest_map():
    head = Hints(channels=6).head(Widths(4, 256))
    features = Features(None, None, None, (64, 64), torch.randn(2, 4, 2, 2))
    assert head(features, None).shape == (2, 6, 2, 2)
    assert isinstance(head.guide, Guide)
    assert head(features.rows(torch.tensor([0])), None).shape == (1, 6, 2, 2)
    with pytest.raises(UserError, match="does not know how many channels"):
        Hints().head(Widths(4, 256))


def test_the_figures_are_those_of_numpy():
    rng = np.random.default_rng(6)
    metric, said_all, true_all = FeatureFit(), [], []
    assert all(math.isnan(value) for value in metric.compute().values())
    for _ in range(3):
        truth, said = random_maps(rng, channels=4), random_maps(rng, channels=4)
        truth.valid[0, 1] = False
        truth.values[:, 0, 1] = 0
        said = Maps(truth.values + 0.3 * said.values, said.valid, said.extent, said.stride)
        metric.update(said, truth)
        said_all.append(said.values[:, truth.valid].numpy().T)
        true_all.append(truth.values[:, truth.valid].numpy().T)
    said, true = np.concatenate(said_all).astype(float), np.concatenate(true_all).astype(float)
    share = 1 - ((said - true) ** 2).sum() / ((true - true.mean(0)) ** 2).sum()
    cosine = (said * true).sum(1) / np.linalg.norm(said, axis=1) / np.linalg.norm(true, axis=1)
    assert metric.compute() == pytest.approx({"R2": 100 * share, "cosine": cosine.mean()})
    assert metric.name == "R2"
    assert metric.higher_is_better


def test_a_prediction_on_another_grid_and_a_failed_one():
    maps, _ = coordinates(40, 60, (8, 12), (8.0, 12.0), 5)
    coarse, _ = coordinates(40, 60, (4, 6), (4.0, 6.0), 10)
    inner = on_grid(coarse, maps).values[:, 1:-1, 1:-1]
    assert torch.allclose(inner, maps.values[:, 1:-1, 1:-1])
    metric = FeatureFit()
    metric.update(Maps.whole(torch.full((2, 8, 12), math.nan)), maps)
    found = metric.compute()
    assert found["R2"] < 0
    assert found["cosine"] == 0


def test_a_networks_map_is_cut_to_the_image():
    output = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).reshape(2, 3, 4, 4)
    frames = [Frame(50, 100, 64, 128), Frame(10, 300, 4, 128)]
    wide, thin = hints(output, frames, (128, 128))
    assert torch.equal(wide.values, output[0, :, :2])
    assert wide.extent.tolist() == [2.0, 4.0]
    assert int(wide.stride) == 32
    assert thin.values.shape == (3, 1, 4)  # less than half a cell high, and yet a row
    assert thin.extent.tolist() == [0.125, 4.0]
    assert hints(output[:0], [], (128, 128)) == []


def test_a_drawing_shows_where_the_image_differs():
    photo = np.full((64, 96, 3), 100, np.uint8)
    values = torch.zeros(8, 2, 3)
    values[:, :, 0] = torch.arange(8.0)[:, None]
    drawn = Hints().draw(photo, Maps.whole(values))
    assert drawn.shape == photo.shape
    assert (drawn[:, :32] == drawn[0, 0]).all()
    assert (drawn[:, 32:] == drawn[0, -1]).all()
    assert (drawn[0, 0] != drawn[0, -1]).any()
    flat = Hints().draw(photo, Maps.whole(torch.ones(8, 2, 3)))
    assert (flat == flat[0, 0]).all()
    hidden = Maps(values, torch.zeros(2, 3, dtype=torch.bool), torch.tensor([2.0, 3.0]), torch.tensor(32))
    assert (Hints().draw(photo, hidden).mean(2) > 100).all()  # all hatched


# --- the store ---


def test_labels_come_back_rounded_to_half_precision_and_open_elsewhere(tmp_path):
    sources, teacher = squares(7), opened(tmp_path)
    label_pool([sources], [teacher], tmp_path / "labels", Labelling(shard=4))
    store = Store(tmp_path / "labels")
    for index in range(7):
        wanted = teacher.predict([sources.picture(index).read()])[0]
        found = store.get("seen", "pool", sources.id(index))
        assert torch.equal(found.values, wanted.values.half())
        assert torch.equal(found.extent, wanted.extent)
        assert bool(found.valid.all())
        assert int(found.stride) == 32
    rows = pq.read_table(tmp_path / "labels/seen/part-00000.parquet").to_pylist()
    first = np.frombuffer(rows[0]["values"], "<f2").reshape(rows[0]["shape"])
    assert np.array_equal(first, store.get("seen", "pool", sources.id(0)).values.numpy())
    assert store.manifest("seen").task == {"task": "features", "classes": None, "channels": 12}

    found = health(store, "seen", Hints(channels=12))
    assert found.summary.unit == "length of a feature"
    assert found.summary.pixels == found.summary.valid == 7 * 4
    lengths = [store.get("seen", "pool", sources.id(n)).values.float().norm(dim=0) for n in range(7)]
    assert found.summary.values.median == pytest.approx(float(torch.stack(lengths).flatten().quantile(0.5)), rel=1e-4)
    assert any("length of a feature" in line for line in tutelage.labels.health.show.show(tmp_path / "labels"))


def test_invalid_cells_are_kept_apart(tmp_path):
    maps = random_maps(np.random.default_rng(7))
    maps.valid[1, 2] = False
    maps.values[:, 1, 2] = 0
    pool = squares(1)
    teacher = FunctionTeacher(make=_says, task=Hints(channels=3)).open("seen", Hints(channels=3), tmp_path, CPU)
    teacher._predict = lambda images: [maps for _ in images]
    label_pool([pool], [teacher], tmp_path / "labels")
    found = Store(tmp_path / "labels").get("seen", "pool", pool.id(0))
    assert torch.equal(found.valid, maps.valid)
    assert torch.equal(found.values, maps.values.half())


def test_a_function_that_states_a_measure_or_a_width_must_keep_to_the_heads(tmp_path):
    def opened(said, task):
        return FunctionTeacher(make=_says, task=said).open("seen", task, tmp_path, CPU)

    with pytest.raises(UserError, match="features have 3 channels, the head's 4"):
        opened(Hints(channels=3), Hints(channels=4))
    opened(Hints(), Hints(channels=3))  # the blank image shows how many there are
    with pytest.raises(UserError, match="does another task"):
        opened(Depth(), Hints(channels=3))
    unused = FunctionTeacher(make=_metres, task=Depth(target="inverse"))  # of metres, `target` says nothing
    unused.open("far", Depth(), tmp_path, CPU)


def _metres(files, device):
    return lambda images: [Field(torch.ones(i.shape[:2]), torch.ones(i.shape[:2], dtype=torch.bool)) for i in images]


def _says(files, device):
    return lambda images: [Maps.whole(torch.zeros(3, 2, 2)) for _ in images]


@pytest.mark.parametrize("value", [math.nan, math.inf, 7e4])
def test_numbers_that_cannot_be_stored_are_no_labels(value):
    maps = random_maps(np.random.default_rng(8))
    maps.values[0, 0, 0] = value
    with pytest.raises(BadPrediction, match="features"):
        encode(maps, Form("seen", Maps, None), (10, 10))
    maps.valid[0, 0] = False
    assert encode(maps, Form("seen", Maps, None), (10, 10))["shape"] == [3, 2, 3]


# --- teachers ---


class Squares(BrightnessDataset):
    """Noise of 64 x 64 pixels."""

    def _pixels(self, index):
        return np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def squares(images: int):
    return Squares("pool", Brightness(images=images))


def weights(folder: Path, *channels: int, seed: int = 2):
    """A small ResNet with its weights in a file."""
    torch.manual_seed(seed)
    part = tiny(*channels)
    torch.save(settled(part.build()).net.state_dict(), folder / f"teacher-{seed}.pth")
    return part.but(weights=f"teacher-{seed}.pth")


def opened(folder: Path, size: int = 64):
    part = FeatureTeacher(backbone=weights(folder, 8, 8, 8, 12), size=size)
    return part.open("seen", part.does(folder), folder, CPU)


def test_a_backbone_says_its_deepest_map_of_the_image(tmp_path):
    part = FeatureTeacher(backbone=weights(tmp_path, 8, 8, 8, 12), size=96)
    assert part.does(tmp_path) == Hints(channels=12)
    teacher = part.open("seen", Hints(), tmp_path, CPU)
    assert teacher.task == Hints(channels=12)
    assert teacher.hash == part.digest(tmp_path) != part.but(size=64).digest(tmp_path)
    assert teacher.hash != part.but(backbone=weights(tmp_path, 8, 8, 8, 12, seed=9)).digest(tmp_path)
    rng = np.random.default_rng(9)
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((50, 50), (40, 90), (90, 40))]
    square, wide, high = teacher.predict(images)
    frozen = Frozen.of_backbone(part.backbone, tmp_path)
    for said, image in zip((square, wide, high), images, strict=True):
        laid, _ = letterbox(image, 96)
        whole = frozen(laid[None])[-1][0]
        rows, columns = said.valid.shape
        assert torch.allclose(said.values, whole[:, :rows, :columns], atol=1e-5)
    assert (square.valid.shape, wide.valid.shape, high.valid.shape) == ((3, 3), (1, 3), (3, 1))
    assert wide.extent.tolist() == pytest.approx([43 / 32, 3])
    assert teacher.predict([]) == []


def test_a_model_of_ours_says_what_it_sees_for_one_task(tmp_path):
    branches = {"things": tiny(8, 8, 8, 12), "places": tiny(8, 8, 8, 16)}
    model = Model(backbone=Expanded(branches=branches, reconciliation=None), pyramid=Pyramid(width=8), size=64)
    whole = settled(student(model=model))
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", whole, {})
    part = FeatureTeacher(checkpoint=Path("model"))
    image = np.random.default_rng(10).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    both = Frozen.of(load_model(tmp_path / "model").student)(pixels)[-1][0]
    for output, channels in ((None, slice(0, 28)), ("places", slice(12, 28))):
        mine = part.but(output=output)
        teacher = mine.open("seen", Hints(), tmp_path, CPU)
        assert teacher.task.channels == channels.stop - channels.start
        assert teacher.hash == mine.digest(tmp_path)
        assert torch.allclose(teacher.predict([image])[0].values, both[channels], atol=1e-5)
    assert len({part.but(output=output).digest(tmp_path) for output in (None, "things", "places")}) == 3
    with pytest.raises(UserError, match="no features of such a task"):
        part.but(output="faces").does(tmp_path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "either `backbone` or `checkpoint`"),
        ({"backbone": Other(), "checkpoint": Path("x")}, "either `backbone` or `checkpoint`"),
        ({"backbone": Other()}, "its weights are random"),
        ({"backbone": tiny(8, 8, 8, 8).but(weights="x.pth"), "output": "things"}, "names a task of a `checkpoint`"),
    ],
)
def test_a_teacher_that_cannot_be_meant_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        FeatureTeacher(**settings)


def test_a_teacher_that_does_not_fit_is_refused(tmp_path):
    part = FeatureTeacher(backbone=weights(tmp_path, 8, 8, 8, 12), size=64)
    with pytest.raises(UserError, match="features have 12 channels, the head's 16"):
        part.open("seen", Hints(channels=16), tmp_path, CPU)
    with pytest.raises(UserError, match="does another task"):
        part.open("seen", Classification(classes=("a",)), tmp_path, CPU)
    with pytest.raises(UserError, match="only masks are averaged"):
        part.but(flip=True).does(tmp_path)
    with pytest.raises(UserError, match="no such weight file"):
        part.but(backbone=tiny(8, 8, 8, 12).but(weights="none.pth")).digest(tmp_path)


# --- training from the store ---


def test_a_student_of_stored_features_learns_what_a_live_squeeze_teaches(tmp_path):
    pool, teacher = squares(6), opened(tmp_path)
    label_pool([pool], [teacher], tmp_path / "labels")
    view = LabelsView(Store(tmp_path / "labels"), {"seen": teacher.task})
    plain, samples = Augment(flip=False, scale=(1, 1)), []
    for index in range(len(pool)):
        targets = {"seen": view.get("seen", "pool", pool.id(index))}
        image, moved = plain(pool.picture(index), targets, 64, np.random.default_rng(index))
        samples.append(tutelage.types.Sample(image, moved, pool.id(index), "pool"))
    batch = collate(samples, ["seen"])

    stored = student({"seen": teacher.task}).train()
    live = Squeeze(student(), teachers={"seen": Frozen.of_backbone(weights(tmp_path, 8, 8, 8, 12), tmp_path)}).train()
    live.student.backbone.load_state_dict(stored.backbone.state_dict())
    live.guides[0].guides[0].load_state_dict(stored.heads["seen"].guide.state_dict())
    one, other = stored(batch)["seen"], live(batch)["hint: seen"]
    assert float(one.count) == float(other.count) == 6
    assert one.sum.item() == pytest.approx(other.sum.item(), rel=1e-4)
    one.sum.backward()
    other.sum.backward()
    pairs = zip(stored.backbone.parameters(), live.student.backbone.parameters(), strict=True)
    moved = [(a.grad, b.grad) for a, b in pairs if b.grad is not None]
    most = max(float(b.abs().max()) for _, b in moved)
    assert len(moved) > 10
    assert most > 1e-3
    for a, b in moved:
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3 * most)
    some = torch.tensor([1, 4])
    rest = Batch(batch.images, {"seen": HeadBatch(some, take(batch.heads["seen"].targets, some))}, batch.ids)
    assert float(stored(rest)["seen"].count) == 2  # partial labels are labels


def must(folder: Path, channels: int = 12) -> Recipe:
    """Labels of people for one head, features of a foreign network for the other."""
    return Recipe(
        name="features",
        data=str(folder),
        heads={"level": Classification(), "seen": Hints()},
        sources={
            "levels": Brightness(head="level", label="class", images=12),
            "pool": Brightness(images=8, first=200),
        },
        model=Model(backbone=tiny(8, 8, 8, 8), pyramid=Pyramid(width=8), size=64),
        teachers={
            "level": Trained(training=STEPS),
            "seen": FeatureTeacher(backbone=weights(folder, 8, 8, 8, channels), size=64),
        },
        student=StudentPart(training=STEPS),
    )


def test_labels_and_features_teach_one_student(tmp_path):
    recipe = must(tmp_path)
    tutelage.run(recipe, tmp_path / "run", SILENT)
    trained = load_model(tmp_path / "run").student
    assert trained.tasks["seen"] == Hints(channels=12)
    said = tutelage.load(tmp_path / "run").predict(np.zeros((48, 64, 3), np.uint8))
    assert said["seen"].values.shape == (12, 1, 2)
    store = Store(tmp_path / "run/labels")
    assert store.manifest("seen").counts.labelled == 20  # all images: nobody labels features by hand
    assert store.manifest("level").counts.labelled == 8

    place, again = Place(tmp_path, tmp_path), recipe.but(labels="run/labels", teachers={})
    assert open_material(again, place).heads["seen"] == Hints(channels=12)  # then from the labels
    with pytest.raises(UserError, match="features have 12 channels, the head's 9"):
        open_material(again.but(heads={**again.heads, "seen": Hints(channels=9)}), place)


def test_a_plan_says_how_many_bytes_features_take(tmp_path):
    found = measure(must(tmp_path, 256), seconds=0.5)
    seen = next(head for head in found.heads if head.name == "seen")
    assert seen.teacher == "features"
    assert seen.assumed == ""
    raw = 256 * 4 * 2  # float16; about half of the numbers are the zeros of a ReLU, which compress
    assert 0.4 * raw < seen.rows["pool"].stored < raw
    assert seen.rows["pool"].unpacked == pytest.approx(raw, rel=0.2)
