"""The control that sees no image: what each task says blindly, its row, and what the verdict makes of it."""

import json
import math

import numpy as np
import pytest
import torch
from test_extending import Brightness, InMemory
from test_transfer import cell, levels, results, table
from torch.nn import functional as F

import tutelage
from tutelage.data.quarantine import Quarantine
from tutelage.data.source import BadImage, Subset
from tutelage.downstream import Start
from tutelage.errors import UserError
from tutelage.progress import SILENT
from tutelage.report.flow import boxes
from tutelage.report.folder import read_run
from tutelage.report.noise import Noise
from tutelage.report.tables import Measurement, Table, main_table
from tutelage.report.verdict import verdict
from tutelage.tasks import Classification, Depth, Detection, Hints, Normals, Segmentation
from tutelage.tasks.positions import PLACES, Median, places
from tutelage.tasks.task import NoLabels
from tutelage.training.evaluate import evaluate, load_evidence
from tutelage.transfer import suite
from tutelage.transfer.blind import BLIND, blind_score
from tutelage.transfer.rows import RANDOM
from tutelage.transfer.statistics import Comparison
from tutelage.types import Boxes, Field, Label, Mask, Vectors


def test_the_commonest_class_comes_first():
    task = Classification(classes=("a", "b", "c"))
    labels = [Label(F.one_hot(torch.tensor(k), 3).float()) for k in (1, 0, 1)]
    said = task.blind(iter([*labels, Label(torch.tensor([0.0, 0.5, 0.5]))]))(4, 5)
    assert said.probs.tolist() == [0.25, 0.625, 0.125]


def test_each_of_several_classes_is_as_likely_as_it_is_common():
    task = Classification(classes=("a", "b"), multi_label=True)
    said = task.blind([Label(torch.tensor(row)) for row in ([1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0])])(1, 1)
    assert said.probs.tolist() == [0.25, 0.75]
    metric = task.metric()
    for row in ([1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]):
        metric.update(said, Label(torch.tensor(row)))
    assert metric.compute()["mAP"] == pytest.approx(100 * (1 / 5 + 3 / 5) / 2)  # without order: the share of positives


def test_places_are_a_grid_over_an_image_of_any_size():
    assert places(16, 16).tolist() == torch.arange(256).view(16, 16).tolist()
    assert places(1, 2).tolist() == [[0, 8]]
    large = places(160, 48)
    assert large[0].tolist() == [k // 3 for k in range(48)]
    assert large[:, 0].tolist() == [k // 10 * 16 for k in range(160)]


def test_each_place_has_its_commonest_class():
    task = Segmentation(classes=("a", "b", "c"))
    # Left halves: 2 in three of four; right halves: 0 in two, 1 in one, nothing labelled in one.
    halves = [(2, 0), (2, 0), (1, 1), (2, 255)]
    masks = [
        Mask(torch.tensor([left, right], dtype=torch.uint8).repeat_interleave(8).repeat(16, 1))
        for left, right in halves
    ]
    said = task.blind(iter(masks))(2, 4)
    assert said.ids.dtype == torch.uint8
    assert said.ids.tolist() == [[2, 2, 0, 0], [2, 2, 0, 0]]
    one = task.blind([Mask(torch.tensor([[1, 1, 2]], dtype=torch.uint8))])(16, 16)
    assert one.ids[5].tolist() == [1] * 16, "places that no label says anything of have the commonest of all"
    metric = task.metric()
    metric.update(said, Mask(torch.tensor([[0, 2, 2, 0], [255, 2, 1, 0]], dtype=torch.uint8)))
    assert metric.compute()["pixel accuracy"] == pytest.approx(100 * 4 / 7)


def depths(*sizes: tuple[int, int]) -> list[Field]:
    found = [Field(torch.rand(size) * 9 + 0.5, torch.rand(size) < 0.6) for size in sizes]
    for field in found:
        field.values[~field.valid] = 1e3  # nobody is to look at it
    return found


def test_depth_is_the_median_of_the_valid_pixels_of_each_place():
    fields = depths((32, 48), (20, 37), (16, 16), (64, 33))
    fields.append(Field(torch.zeros(50, 50), torch.ones(50, 50, dtype=torch.bool)))  # no depth
    said = Depth().blind(iter(fields))(32, 32)
    assert said.valid.all()
    for row, column in ((0, 0), (7, 3), (15, 15)):
        seen = []
        for field in fields[:4]:
            height, width = field.values.shape
            for y in range(height):
                for x in range(width):
                    if y * 16 // height == row and x * 16 // width == column and field.valid[y, x]:
                        seen.append(float(field.values[y, x]))
        wanted = sorted(seen)[(len(seen) - 1) // 2]
        assert said.values[2 * row, 2 * column].item() == pytest.approx(wanted, rel=6e-3)
        assert said.values[2 * row + 1, 2 * column + 1] == said.values[2 * row, 2 * column]


@pytest.mark.parametrize("target", ["depth", "inverse"])
def test_relative_depth_without_any_structure_is_worth_the_fit_alone(target):
    task, truth = Depth(mode="relative", target=target), depths((8, 8))[0]
    metric = task.metric()
    metric.update(task.blind([Field(torch.full((32, 32), 77.0), torch.ones(32, 32, dtype=torch.bool))])(8, 8), truth)
    true = truth.values[truth.valid].double()
    true = 1 / true if target == "inverse" else true
    ratio = true * (1 / true).mean()
    wanted = 100 * (torch.maximum(ratio, 1 / ratio) < 1.25).double().mean().item()
    assert metric.compute()["< 1.25"] == pytest.approx(wanted)


def test_normals_are_the_medians_of_each_place_made_a_unit_vector():
    targets, seen = [], []
    for size in ((32, 32), (16, 48), (64, 16)):
        values = F.normalize(torch.randn(3, *size) + torch.tensor([1.0, 0.5, -2.0])[:, None, None], dim=0)
        valid = torch.rand(size) < 0.7
        seen.append(values[:, valid & (places(*size) == 37)].numpy())
        targets.append(Vectors(torch.where(valid, values, 0.0), valid))
    middle = np.sort(np.concatenate(seen, 1), 1)
    middle = middle[:, (middle.shape[1] - 1) // 2]
    said = Normals().blind(iter(targets))(16, 16)
    assert said.valid.all()
    torch.testing.assert_close(torch.linalg.vector_norm(said.values, dim=0), torch.ones(16, 16))
    wanted = torch.from_numpy(middle / np.linalg.norm(middle))
    torch.testing.assert_close(said.values[:, 2, 5], wanted, atol=2e-3, rtol=0)


def test_normals_that_cancel_face_the_camera():
    whole = torch.ones(16, 16, dtype=torch.bool)
    walls = [Vectors(-torch.eye(3)[axis][:, None, None].expand(3, 16, 16), whole) for axis in range(3)]
    said = Normals().blind(walls)(2, 2).values
    assert said.flatten(1).T.tolist() == [[0, 0, -1]] * 4


def test_boxes_are_none():
    task = Detection(classes=("a", "b"))
    said = task.blind([])(10, 10)
    assert len(said) == 0
    metric = task.metric()
    metric.update(said, Boxes.make([[1, 1, 5, 5]], [0]))
    metric.update(said, Boxes.make([], []))
    assert metric.compute() == {"AP50": 0.0, "AP": 0.0}
    weights = np.array([[1.0, 1.0], [2.0, 0.0]])
    assert all((metric.evidence().figure(name, weights) == 0).all() for name in ("AP50", "AP"))


def test_features_are_not_said_and_their_labels_not_looked_at():
    assert Hints(channels=3).blind(iter([pytest.fail])) is None


@pytest.mark.parametrize(
    ("task", "targets"),
    [
        (Classification(classes=("a",)), []),
        (Segmentation(classes=("a",)), [Mask(torch.full((2, 2), 255, dtype=torch.uint8))]),
        (Depth(), [Field(torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool))]),
        (Normals(), [Vectors(torch.zeros(3, 2, 2), torch.zeros(2, 2, dtype=torch.bool))]),
        (Normals(), []),
    ],
)
def test_labels_that_say_nothing_are_told(task, targets):
    with pytest.raises(NoLabels, match=r"no .* (label|labelled|valid)"):
        task.blind(iter(targets))


def test_a_median_of_none_one_and_many():
    median = Median(0.0, 1.0, 0.25)

    def add(*values: float) -> None:
        median.add(torch.tensor(values), torch.full((len(values),), 3))

    with pytest.raises(NoLabels):
        median.value()
    add(0.6)
    assert median.value().tolist() == [0.5] * PLACES  # where nothing was seen, that of all
    add(-3.0, 7.0, 0.9, 0.26)
    assert median.value()[3] == 0.5
    add(0.3)
    assert median.value()[3] == 0.25  # of an even number the lower


# Its row


def odd_one(name: str = "levels", **changes: object):
    """A set of five and seven images, of which more are bright than dark."""
    train, test = (Brightness(head=name, label="class", images=n, first=f) for n, f in ((5, 401), (7, 601)))
    return levels(name, train=train, test=test).but(**changes)


def test_the_row_stands_in_every_column_of_every_seed(tmp_path, monkeypatch):
    mine = table(transfer={"levels": odd_one(by=("fine-tuning", "linear-probe"))}, first_row="again", seeds=(0, 1))
    tutelage.run(mine, tmp_path, SILENT)
    rows = [row for row in results(tmp_path) if row["row"] == BLIND]
    assert {row["metric"] for row in rows} == {"top-1"}
    assert [(row["column"], row["seed"]) for row in rows] == [
        (column, seed) for seed in (0, 1) for column in ("levels", "levels, linear probe")
    ]
    for row in rows:
        assert row["value"] == pytest.approx(400 / 7)  # 601, 603, 605 and 607 are bright
        assert (row["n"], row["control"], row["validation"], row["higher_is_better"]) == (7, True, None, True)

    found = read_run(tmp_path)
    noise = Noise(found)
    shown = main_table(found.measurements, "transfer", noise.between)
    assert shown.rows == ("again", BLIND, RANDOM)
    assert shown.controls == (BLIND, RANDOM)
    for column in range(2):
        between = shown.interval(RANDOM, BLIND, column)
        assert (between.seeds, between.images) == (2, 7)
    assert noise.faults == []
    kept = load_evidence(tmp_path / "transfer" / "blind" / "levels" / "evidence.npz")
    assert kept.evidence.figure("top-1", np.ones((1, 7)))[0] == pytest.approx(400 / 7)
    assert boxes(found)[-1].lines[0] == "2 initialisations × 2 seeds"

    monkeypatch.setattr(suite, "blind_score", lambda *_: pytest.fail("it was computed again"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")}
    tutelage.run(mine, tmp_path, SILENT)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")} == before
    assert [row for row in results(tmp_path) if row["row"] == BLIND] == rows


class Dumb(Brightness):
    """Pictures with a map of which no pixel is valid."""

    def open(self, name, place, classes=None):
        whole = super().open(name, place, classes)
        known = whole.target
        whole.target = lambda index: Field(known(index).values, torch.zeros(48, 40, dtype=torch.bool))
        return whole


def test_labels_of_the_training_part_that_say_nothing_fail_that_row_alone(tmp_path):
    parts = {
        part: made(head="far", label="map", images=4, first=first)
        for part, made, first in (("train", Dumb, 400), ("validation", Brightness, 500), ("test", Brightness, 600))
    }
    far = odd_one().but(head=Depth(), **parts)
    tutelage.run(table(transfer={"far": far}), tmp_path, SILENT)
    (row,) = [row for row in results(tmp_path) if row["row"] == BLIND]
    assert row["value"] is None
    assert (row["metric"], row["failed"]) == (
        "< 1.25",
        "the training part says nothing: no pixel of any image is labelled",
    )
    assert not (tmp_path / "transfer" / "blind" / "far" / "evidence.npz").exists()
    others = [row for row in results(tmp_path) if row["row"] != BLIND and row["metric"] == "< 1.25"]
    assert len(others) == 2
    assert all(row["value"] is not None for row in others)


def test_a_crash_fails_that_row_alone(tmp_path, monkeypatch):
    def crashing(*_):
        raise MemoryError("of labels")

    monkeypatch.setattr(suite, "blind_score", crashing)
    tutelage.run(table(), tmp_path, SILENT)
    found = [row for row in results(tmp_path) if row["row"] == BLIND]
    assert {(row["value"], row["failed"]) for row in found} == {(None, "MemoryError: of labels")}
    assert "Traceback" in (tmp_path / "transfer" / "blind" / "levels" / "failed.txt").read_text()
    assert all(row["value"] is not None for row in results(tmp_path) if row["row"] != BLIND)


def test_a_row_of_that_name_is_refused(tmp_path):
    with pytest.raises(UserError, match="one name"):
        tutelage.run(table(initialisations={BLIND: Start()}), tmp_path, SILENT)


class Torn(InMemory):
    def read(self, scale=1.0):
        raise BadImage("torn")


def test_the_same_images_are_measured_as_of_a_network(tmp_path):
    where = cell(tmp_path)
    train, test = (Subset(where.parts[part], np.arange(8)) for part in ("train", "test"))
    whole, known = test.picture, train.target
    test.picture = lambda index: Torn(whole(index).read()) if index == 2 else whole(index)

    def target(index):
        if index == 3:
            raise BadImage("no label")
        return None if index == 5 else known(index)

    train.target = target
    aside = Quarantine(tmp_path / "aside.jsonl", 16, 0.5)
    found = blind_score("levels", where.task, {"train": train, "test": test}, aside)
    network = evaluate(where.network(), "levels", test, torch.device("cpu"), Quarantine(tmp_path / "b.jsonl", 16, 0.5))
    assert found.ids == network.ids
    assert len(found.ids) == found.images == 7
    entries = [json.loads(line) for line in (tmp_path / "aside.jsonl").read_text().splitlines()]
    assert [(entry["id"], entry["reason"]) for entry in entries] == [
        (f"levels/{train.id(3)}", "no label"),
        (f"levels/{test.id(2)}", "torn"),
    ]
    assert found.value == pytest.approx(300 / 7)  # it says dark, by four labels to two; the torn image is dark


# What the verdict makes of it


def shown(figures: dict[str, tuple[float, ...]], clear: float = math.inf) -> Table:
    """A table of sets a, b, ...; differences of at least `clear` are beyond the noise."""
    lines = [
        {"stage": "transfer", "row": row, "column": "abc"[n], "metric": "top-1", "value": value, "order": order}
        | {"control": row in (BLIND, RANDOM, "initial weights")}
        for order, (row, values) in enumerate(figures.items())
        for n, value in enumerate(values)
    ]
    known = {(line["row"], line["column"]): line["value"] for line in lines}

    def judge(row, other, column, metric):
        apart = known[row, column] - known[other, column]
        return Comparison(apart, apart - clear, apart + clear, 1, 9)

    found = main_table([Measurement.of(line) for line in lines], "transfer", judge if math.isfinite(clear) else None)
    assert found is not None
    return found


def test_rows_below_it_are_told():
    figures = {
        RANDOM: (20.0, 40.0, 5.0),
        BLIND: (30.0, 30.0, 30.0),
        "initial weights": (25.0, 45.0, 31.0),
        "teacher: a": (26.0, 46.0, 32.0),
        "MuST student": (28.0, 50.0, 33.0),
    }
    text = " ".join(verdict(shown(figures), None))
    assert "Of four ways to initialise a network, the MuST student is the best on all three downstream sets." in text
    assert "It is better than both image-blind and initial weights on two of the three" in text
    assert "and worse than one of them on a. Against random initialisation: better on all three sets." in text
    assert (
        "No better than image-blind, which never looks at an image: all four other rows on a; random initialisation "
        "on c." in text
    )
    text = " ".join(verdict(shown({row: values[1:2] for row, values in figures.items()}), None))
    assert "Every other row is better than image-blind, which never looks at an image." in text


def test_to_lose_against_it_is_not_to_be_hurt():
    figures = {RANDOM: (20.0, 40.0, 24.0), BLIND: (30.0, 30.0, 30.0), "MuST student": (25.0, 50.0, 20.0)}
    text = " ".join(verdict(shown(figures, clear=2.0), None))
    assert (
        "By the 95% intervals, pre-training helped on one of the three, hurt on c and led to nothing above image-blind "
        "on a and c." in text
    )


def test_it_does_not_lead_among_initialisations():
    figures = {RANDOM: (20.0,), BLIND: (30.0,), "one": (25.0,), "other": (24.0,)}
    text = " ".join(verdict(shown(figures), None))
    assert "The best initialisation is on a: one." in text
    assert "all three other rows on a" in text
