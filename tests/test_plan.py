"""The plan: its sums, what its probe measures, and that it leaves nothing behind."""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from test_extending import Brightness, Light, Tiny, recipe

from tutelage.data.folders import Pool
from tutelage.data.join import Join
from tutelage.data.scenes import Scenes
from tutelage.data.source import Place
from tutelage.errors import UserError
from tutelage.labels.encoding import Form, encode
from tutelage.labels.labelling import label_pool
from tutelage.labels.store import Store
from tutelage.labels.work import Labelling
from tutelage.methods.material import open_material
from tutelage.models.pyramid import Pyramid
from tutelage.plan import Assumed, Plan, Span, measure, plan
from tutelage.plan.clock import Clock, Enough
from tutelage.plan.figures import NOTHING, HeadCost, Rows, SourceCost, TrainingCost
from tutelage.plan.probe import length, look, smaller, spread
from tutelage.plan.teachers import assumption, open_teacher, typical
from tutelage.plan.text import amount, duration, lines
from tutelage.plan.trainings import rows
from tutelage.recipe import FineTuning, StudentPart, TransferSet
from tutelage.tasks import Classification
from tutelage.teachers import Checkpoint
from tutelage.training.checkpoint import load_model, save_model
from tutelage.training.fit import build, fit
from tutelage.types import Boxes, Field, Label


def source(name: str, images: int, pool: bool, seconds: float, rendering: Span | None = None) -> SourceCost:
    span = Span(seconds, seconds / 2, seconds * 2, 3)
    return SourceCost(name, pool, images, 8, 0, 10, 20, 500.0, span, rendering, span, 30.0)


def by_hand(*sources: SourceCost) -> Plan:
    """100 labelled images and 300 of a pool, as round numbers as possible."""
    rows = {"one": Rows(0.0, 0.0, 0.0), "two": Rows(1.0, 1000.0, 1100.0)}
    second = Span(0.01, 0.008, 0.02, 5)
    return Plan(
        recipe="by hand",
        machine="none",
        cores=2,
        load=0.1,
        probing=1.0,
        sources=sources or (source("one", 100, False, 0.1), source("two", 300, True, 0.2, Span(1.0, 1.0, 1.0, 1))),
        heads=(
            HeadCost("things", "checkpoint", Span(0.1, 0.1, 0.1, 2), rows, 50.0, ""),
            HeadCost(
                "depth",
                "trained here",
                Span(1e-4, 9e-5, 2e-4, 9),
                {n: Rows(1.0, 10.0, 11.0) for n in ("one", "two")},
                0.0,
                assumption(Field, Assumed()),
            ),
        ),
        trainings=(
            TrainingCost("teachers", "depth", 100, 4, 4, second),
            TrainingCost("student", "student", 200, 8, 8, second),
            TrainingCost("transfer", "set", 10, 2, 2, second, Span(0.5, 0.5, 0.5, 2), 6),
        ),
        rendering=Span(7.0, 7.0, 7.0),
        shard=100,
        stored=False,
        labelled=1,
        memory=(10**9, 0),
        assumed=Assumed(),
    )


# Sums ---------------------------------------------------------------------------------------------------------------


def test_of_sources_that_are_made_a_few_images_are_made_joined_ones_as_well(tmp_path: Path) -> None:
    one = Scenes(world="catalogue", label="classes", head="classes", images=5000, size=64)
    few = one.but(images=10, seed=5)
    for whole, images, made in (
        (one, 5000, 64),
        (few, 10, 10),
        (Join(head="classes", sources={"a": one, "b": few}), 5010, 74),
    ):
        place = Place(tmp_path, tmp_path / f"cache-{images}")
        assert smaller(whole).to_prepare(place) == made
        opened = smaller(whole).open("some", place)
        assert (len(opened), length(whole, opened)) == (made, images)


def test_the_sums_are_those_of_a_calculation_by_hand():
    found = by_hand().at()
    assert (found.pool, found.images, found.student_steps) == (300, 400, 200)
    assert found.labels == {"things": 300 * 1000 + 4 * 50, "depth": 400 * 10}
    assert found.unpacked == 300 * 1100 + 400 * 11
    assert found.labelling.mean == pytest.approx(100 * 0.1 + 300 * 0.2)
    assert (found.labelling.low, found.labelling.high) == pytest.approx((35, 140))
    assert found.rendering.mean == 300 + 7
    assert found.teachers.mean == pytest.approx(4)
    assert found.student.mean == pytest.approx(16)
    assert found.transfer.mean == pytest.approx(0.2 + 3)
    assert found.device.mean == pytest.approx(307 + 4 + 70 + 16 + 3.2)
    assert found.wall(1) == found.device
    assert found.wall(7).mean == pytest.approx(307 + 4 + 10 + 16 + 3.2)
    assert (found.source_index, found.label_index) == (400 * 30, 24 * (300 + 400))


def test_images_that_are_not_labelled_need_no_shard():
    hand = by_hand(
        dataclasses.replace(source("one", 100, False, 0.1), labelling=NOTHING), source("two", 300, True, 0.2)
    )
    assert hand.at().labels["things"] == 300 * 1000 + 3 * 50
    assert hand.at().labelling.mean == pytest.approx(300 * 0.2)


def test_a_larger_pool_costs_in_proportion():
    hand = by_hand()
    assert hand.at(300) == hand.at()
    small, large, larger = (hand.at(n) for n in (1_000_000, 300_000_000, 600_000_000))
    assert large.images == 300_000_100
    for of in (
        lambda e: e.labels["things"],
        lambda e: e.labels["depth"],
        lambda e: e.labelling.mean,
        lambda e: e.labelling.high,
        lambda e: e.student.low,
        lambda e: e.rendering.mean,
        lambda e: e.label_index,
    ):
        assert of(larger) - of(large) == pytest.approx(of(large) - of(small) * 0 - of(hand.at(0)), rel=1e-6)
    assert large.teachers == small.teachers
    assert large.transfer == small.transfer
    assert large.student_steps == round(200 * 300_000_100 / 400)  # as many epochs


def test_without_a_pool_all_sources_grow_alike():
    one, two = source("one", 100, False, 0.1), source("two", 300, False, 0.2)
    hand = by_hand(one, two)
    assert hand.pool == 400
    assert hand.at(4000).images == 4000
    assert hand.at(4000).labelling.mean == pytest.approx(10 * hand.at().labelling.mean)


def test_spans():
    assert Span.of([2.0, 4.0]) == Span(3.0, 2.0, 4.0, 2)
    assert Span.of([2.0], mean=3.0) == Span(3.0, 2.0, 3.0, 1)
    assert Span(3.0, 2.0, 4.0, 2).times(10) == Span(30.0, 20.0, 40.0, 2)
    assert NOTHING.plus(Span(1.0, 1.0, 1.0)) == Span(1.0, 1.0, 1.0)


def test_the_text_is_narrow_and_names_everything():
    long = dataclasses.replace(
        source("a source with quite a long name", 123_456_789, True, 1e-4), width=10_000, height=10_000
    )
    rows = {long.name: Rows(1.0, 1e6, 1e6)}
    hand = by_hand()
    hand = dataclasses.replace(
        by_hand(*hand.sources, long), heads=tuple(dataclasses.replace(h, rows={**h.rows, **rows}) for h in hand.heads)
    )
    text = list(lines(hand, workers=64))
    assert max(map(len, text)) <= 100
    assert any("300M in the pool" in line for line in text)
    assert any(line.startswith("labelling, 64 devices") for line in text)
    assert any(line.startswith("labels: things") for line in text)
    assert not any("busy" in line for line in text)
    assert any("load 1.5 on 2 cores" in line for line in lines(dataclasses.replace(hand, load=1.5)))
    stored = list(lines(dataclasses.replace(hand, stored=True, labelled=0)))
    assert not any("300M" in line for line in stored)


def test_numbers_are_short():
    assert [amount(n) for n in (0, 999, 1000, 999_600, 1.234e9, 5e15)] == [
        "0 B",
        "999 B",
        "1 kB",
        "1 MB",
        "1.23 GB",
        "5 PB",
    ]
    assert [duration(n) for n in (0.5, 89, 600, 7200, 3.6e7)] == ["0.5 s", "89 s", "10 min", "2.0 h", "10k h"]


# The clock ----------------------------------------------------------------------------------------------------------


def test_the_clock_stops_a_loop_and_leaves_the_first_batch_out():
    clock = Clock(most=3)
    bar = clock.bar("loop", 100)
    for _ in range(3):
        bar.advance(2)
    with pytest.raises(Enough):
        bar.advance(2)
    assert (len(clock.samples), len(clock.warm()), clock.images) == (4, 3, 8)
    once = Clock()
    once.bar("loop", 1).advance(1)
    assert once.warm() == once.samples
    slow = Clock(seconds=0.0).bar("loop", 1)
    with pytest.raises(Enough):
        slow.advance(1)


# The probe ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def finished(folder: Path, scale: int = 1):
    """The recipe of test_extending with finished teachers, and more images."""
    asked = recipe()
    sources = {name: part.but(images=part.images * scale) for name, part in asked.sources.items()}
    asked = asked.but(sources=sources)
    material = open_material(asked, Place(folder, folder))
    teachers = {}
    for head, task in material.heads.items():
        (folder / head).mkdir()
        spaces = {head: material.spaces[head]} if head in material.spaces else {}
        save_model(folder / head, build(asked.model, {head: task}, 0, head, folder), spaces)
        teachers[head] = Checkpoint(path=folder / head, tasks=(Light,), backbones=(Tiny,))
    return asked.but(teachers=teachers)


def test_a_plan_counts_a_whole_recipe_and_leaves_nothing_behind(temporary):
    threads = torch.get_num_threads()
    found = measure(recipe(), seconds=1)
    assert list(temporary.iterdir()) == []
    assert torch.get_num_threads() == threads
    assert {s.name: (s.images, s.pool, s.sampled) for s in found.sources} == {
        "levels": (24, False, 24),
        "lights": (24, False, 24),
        "pool": (16, True, 16),
    }
    assert {s.name: (s.height, s.width) for s in found.sources}["pool"] == (48, 40)
    assert [(t.stage, t.name, t.steps, t.batch) for t in found.trainings] == [
        ("teachers", "level", 60, 8),
        ("teachers", "light", 60, 8),
        ("student", "student", 60, 8),
        ("transfer", "unseen-light", 4 * 10, 8),  # random, two teachers, student
    ]
    assert found.trainings[-1].scored == 4 * (8 + 8)
    assert all(0 < t.training.low <= t.training.mean <= t.training.high for t in found.trainings)
    shares = {head.name: {name: rows.share for name, rows in head.rows.items()} for head in found.heads}
    assert shares == {"level": {"lights": 1.0, "pool": 1.0}, "light": {"levels": 1.0, "pool": 1.0}}
    light = next(head for head in found.heads if head.name == "light")
    assert light.assumed == "assumed: 0.8 B a pixel, see below"
    assert light.rows["pool"].stored == pytest.approx(0.8 * 48 * 40, rel=0.1)


def test_recipes_without_teachers_are_planned_on_the_images_that_they_learn_from(temporary, monkeypatch):
    seen = {}

    def watched(network, mixture, *args, labels, **settings):
        seen[tuple(network.tasks)] = [dataset.name for dataset in mixture.datasets], labels
        return fit(network, mixture, *args, labels=labels, **settings)

    monkeypatch.setattr("tutelage.plan.trainings.fit", watched)
    hard = recipe().student.but(labels="human")
    asked = recipe().but(teachers={}, student=hard, baselines={"light": hard.but(heads=("light",))}, transfer={})
    found = measure(asked, seconds=0.5)
    assert [(t.name, t.steps) for t in found.trainings] == [("light", 60), ("student", 60)]
    assert seen == {("light",): (["lights"], None), ("level", "light"): (["levels", "lights"], None)}
    assert next(line for line in lines(found) if line.startswith("labelling, ")).split()[-3:] == ["-"] * 3


def test_a_teachers_own_size_and_head_are_planned(tmp_path, temporary, monkeypatch):
    seen = {}

    def watched(network, *args, **settings):
        seen.setdefault(tuple(network.tasks), (network.model.size, dict(network.tasks)))
        return fit(network, *args, **settings)

    monkeypatch.setattr("tutelage.plan.trainings.fit", watched)
    asked, own = recipe(), Classification(label_smoothing=0.1)
    teachers = {
        "level": asked.teachers["level"].but(size=96, head=own),
        "light": asked.teachers["light"].but(size=32),
    }
    asked = asked.but(teachers=teachers, transfer={})
    found = measure(asked, seconds=0.5)
    own = own.but(classes=("dark", "bright"))
    assert seen["level",] == (96, {"level": own})
    assert seen["light",][0] == 32
    assert seen["level", "light"] == (64, {"level": own.but(label_smoothing=0.0), "light": Light()})
    light = next(head for head in found.heads if head.name == "light")
    assert light.rows["pool"].stored == pytest.approx(0.8 * (48 * 40) ** 0.5 * 32, rel=0.1)
    material = open_material(asked, Place(tmp_path, tmp_path))
    open_teacher(asked, material, "level", tmp_path, torch.device("cpu"), Assumed())
    saved = load_model(tmp_path / "teachers" / "level", backbones=[Tiny])
    assert (saved.student.model.size, saved.student.tasks) == (96, {"level": own})


def test_a_finished_teacher_of_the_students_form_is_a_row_at_any_size(tmp_path):
    asked = finished(tmp_path)
    models = {"level": asked.model.but(size=96), "light": asked.model.but(pyramid=Pyramid(width=8))}
    assert rows(asked) == 4  # random, both teachers, student
    for head, model in models.items():
        save_model(tmp_path / head, build(model, {"light": Light()}, 0, head, tmp_path), {})
    assert rows(asked) == 3
    assert rows(asked.but(specialists=False)) == 2


def test_a_comparison_alone_is_planned(temporary):
    found = measure(recipe().but(method="transfer", sources={}, held_out={}, heads={}, teachers={}), seconds=0.5)
    assert [(t.stage, t.steps) for t in found.trainings] == [("transfer", 10)]
    assert found.at().device == found.at().transfer
    assert any(line.startswith("transfer: unseen-light") for line in lines(found))


@pytest.mark.parametrize(
    ("changes", "taught", "early", "student"),
    [
        ({}, 1, 1, 1),
        ({"study": {"a": (), "b": ()}}, 2, 1, 2),
        ({"repeat": "everything", "seeds": (0, 1, 2)}, 3, 3, 3),
        ({"rounds": 4}, 1, 1, 4),
        ({"study": {"a": (), "b": ()}, "repeat": "everything", "seeds": (0, 1, 2), "rounds": 4}, 6, 3, 24),
    ],
    ids=["once", "study", "seeds", "rounds", "all"],
)
def test_everything_costs_as_often_as_it_is_made(temporary, changes, taught, early, student):
    asked = recipe().but(transfer={})
    human = StudentPart(training=asked.student.training, labels="human", heads=("level",))
    found = measure(asked.but(baselines={"early": human}, **changes), seconds=0.5)
    steps = {"level": 60 * taught, "light": 60 * taught, "early": 60 * early, "student": 60 * student}
    assert {t.name: t.steps for t in found.trainings} == steps
    # Every student learns from labels of its own.
    once, all_of = dataclasses.replace(found, labelled=1).at(), found.at()
    assert all_of.labelling.mean == pytest.approx(student * once.labelling.mean)
    assert all_of.labels == pytest.approx({head: student * size for head, size in once.labels.items()})
    assert (all_of.unpacked, all_of.label_index) == pytest.approx((student * once.unpacked, once.label_index))
    assert max(map(len, lines(found))) <= 100
    assert any(f"made {student} times" in line for line in lines(found)) == (student > 1)


def test_images_that_no_student_of_the_teachers_sees_are_not_labelled(temporary):
    asked = recipe().but(transfer={})
    found = measure(asked.but(student=asked.student.but(sources=("pool", "lights"))), seconds=0.5)
    assert {s.name for s in found.sources if s.labelling != NOTHING} == {"pool", "lights"}
    assert {head.name: set(head.rows) for head in found.heads} == {"level": {"pool", "lights"}, "light": {"pool"}}


def test_measured_bytes_are_those_of_the_pass(tmp_path, temporary):
    asked = finished(tmp_path, scale=10)
    found = measure(asked, seconds=1)
    assert {head.assumed for head in found.heads} == {""}
    assert [t.stage for t in found.trainings] == ["student", "transfer"]
    material = open_material(asked, Place(tmp_path, tmp_path))
    teachers = [t.open(h, material.heads[h], tmp_path, torch.device("cpu")) for h, t in asked.teachers.items()]
    label_pool(list(material.sources.values()), teachers, tmp_path / "store")
    said = found.at().labels
    for head in said:
        real = Store(tmp_path / "store").manifest(head).bytes
        assert said[head] == pytest.approx(real, rel=0.5 if head == "level" else 0.15)


def test_labels_that_are_there_are_not_made_and_not_touched(tmp_path, temporary):
    asked = finished(tmp_path)
    material = open_material(asked, Place(tmp_path, tmp_path))
    teachers = [t.open(h, material.heads[h], tmp_path, torch.device("cpu")) for h, t in asked.teachers.items()]
    store = tmp_path / "store"
    label_pool(list(material.sources.values()), teachers, store, Labelling(shard=20))
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    text = list(plan(asked.but(labels=str(store), teachers={}), seconds=0.5, progress=None))
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
    total = amount(sum(Store(store).manifest(head).bytes for head in ("level", "light")))
    assert next(line for line in text if line.startswith("labels of all heads")).split("heads")[1].strip() == total
    assert next(line for line in text if line.startswith("labelling ")).split()[-1] == "-"
    assert next(line for line in text if line.startswith("level ")).split()[1:3] == ["stored", "-"]


def test_scenes_are_counted_in_full_and_made_in_part(temporary):
    asked = recipe()
    pool = Scenes(world="travels", images=100_000, size=32)
    found = measure(asked.but(sources={**asked.sources, "pool": pool}, transfer={}, held_out={}), seconds=0.5)
    last = found.sources[-1]
    assert (last.images, last.index) == (100_000, 0.0)
    assert last.sampled <= 64
    assert last.rendering is not None
    assert found.at().rendering.mean == pytest.approx(100_000 * last.rendering.mean)
    assert list(temporary.iterdir()) == []


def test_a_set_that_is_probed_costs_its_frozen_features_and_no_step(temporary):
    asked, one = recipe(), Brightness(head="kinds", label="class", images=20)
    parts = {"train": one, "validation": one.but(images=10, first=20), "test": one.but(images=5, first=30)}
    probed = TransferSet(head=Classification(), **parts, by=("linear-probe",))
    both = probed.but(by=("fine-tuning", "linear-probe"))
    halving = FineTuning(training=asked.finetuning.training, rates=(0.01, 0.02, 0.04, 0.08), steps=(10,), halving=4)
    asked = asked.but(transfer={"kinds": both}, finetuning=halving, specialists=False, seeds=(0, 1))
    rows = 2 * 2  # random and student, with two seeds
    tuning = ("kinds", rows * (4 * 3 + 7), rows * (5 * 10 + 5))  # four points to step 3, the best to step 10
    features = ("kinds, linear probe", 0, rows * 35)
    found = measure(asked, seconds=0.5)
    assert [(t.name, t.steps, t.scored) for t in found.trainings if t.stage == "transfer"] == [tuning, features]
    found = measure(asked.but(transfer={"kinds": probed}), seconds=0.5)
    assert [(t.name, t.steps, t.scored) for t in found.trainings if t.stage == "transfer"] == [features]
    assert found.at().transfer.mean == pytest.approx(rows * 35 * found.trainings[-1].scoring.mean)
    assert next(line for line in lines(found) if line.startswith("transfer: kinds, linear")).split()[4:6] == ["-", "64"]


def test_faults_are_named(tmp_path, temporary):
    asked = recipe()
    with pytest.raises(UserError, match="there is no such folder"):
        measure(asked.but(sources={**asked.sources, "pool": Pool(images="nowhere")}, data=str(tmp_path)))
    teachers = {**asked.teachers, "light": Checkpoint(path="nowhere", tasks=(Light,), backbones=(Tiny,))}
    with pytest.raises(UserError, match="there is no model here"):
        measure(asked.but(teachers=teachers, data=str(tmp_path)))
    assert list(temporary.iterdir()) == []


def test_images_that_cannot_be_read_are_counted(tmp_path):
    from PIL import Image

    for number in range(5):
        Image.new("RGB", (30 + number, 20)).save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    seen = look(Pool(images=".").open("pool", Place(tmp_path, tmp_path)))
    assert (seen.images, seen.unreadable, seen.height) == (5, 1, 20)
    assert seen.file_bytes == pytest.approx(np.mean([p.stat().st_size for p in tmp_path.glob("*.png")]))


@pytest.mark.parametrize("boxes", [0, 1, 300])
def test_assumed_boxes_can_be_stored(boxes):
    rng = np.random.default_rng(0)
    said = typical(Boxes.make([], []), (17, 33), Assumed(boxes=boxes), rng, 5)
    row = encode(said, Form("head", Boxes, 5), (17, 33))
    assert len(row["scores"]) == boxes


def test_assumed_probabilities_are_sharp():
    said = typical(Label(torch.full((10,), 0.1)), (4, 4), Assumed(), np.random.default_rng(0), 10)
    assert isinstance(said, Label)
    assert float(said.probs.sum()) == pytest.approx(1)
    assert float(said.probs.max()) > 0.4


def test_a_sample_is_spread_over_its_source():
    dataset = Brightness(images=100).open("one", Place(Path(), Path()))
    assert [int(i) for i in spread(dataset, 4).indices] == [0, 25, 50, 75]
    assert len(spread(dataset, 1000)) == 100
