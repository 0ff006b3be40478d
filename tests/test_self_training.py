"""Human and pseudo labels half and half: the mixture, the two losses, their normalisation, rounds."""

import io
import json
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_extending import Brightness, Tiny, recipe
from test_mixture import Counted
from torch import nn

import tutelage
from tutelage import api
from tutelage.check import check
from tutelage.data import CocoBoxes, Folders, Masks, Pool
from tutelage.data.augment import Augment
from tutelage.data.loading import loader
from tutelage.data.mixture import Mixture, part_of, parts_of
from tutelage.data.source import BadImage, LabelSpace, Place
from tutelage.errors import UserError
from tutelage.files import read_json_lines
from tutelage.labels.health.health import HeadHealth, StoreHealth
from tutelage.labels.health.statistics import BoxesSummary, Scores
from tutelage.methods import guards
from tutelage.methods import student as methods_student
from tutelage.methods.guards import missing_classes
from tutelage.methods.pretraining import early
from tutelage.methods.student import learner_of, mixture_of, union_of
from tutelage.methods.upstream import failure
from tutelage.models.student import Model
from tutelage.part import changed, fingerprint, parse, yaml_to_plain
from tutelage.progress import SILENT, Progress
from tutelage.recipe import Recipe, SelfTraining, StudentPart
from tutelage.recipes import RECIPES
from tutelage.report.self_training import Halves
from tutelage.stages import Run
from tutelage.tasks import Classification, Detection, Segmentation
from tutelage.teachers import Trained
from tutelage.training.checkpoint import find_model, load_start, read_state, save_model
from tutelage.training.fit import build, fit
from tutelage.training.loop import Diverged
from tutelage.training.notes import NOTES
from tutelage.training.schedule import Training
from tutelage.training.self_training import PSEUDO, HalfPseudo, Normalised
from tutelage.types import Batch, Boxes, Field, HeadBatch, Label, LossSum, Mask, Vectors, stack, take

CPU = torch.device("cpu")
TASK = Classification(classes=("dark", "bright"))


# --- the mixture ---


def curve(folder: Path) -> list[dict]:
    rows = list(read_json_lines(folder / "curve.jsonl"))
    assert rows, f"{folder} has no curve"
    return rows


def test_half_of_every_batch_is_human_and_nothing_is_left_out():
    sources = [Counted("people", 7), Counted("pool", 30), Counted("more people", 5)]
    mixture = Mixture(sources, "paired", seed=3, first=(0, 2))
    drawn = [mixture.at(n) for n in range(2 * 12 * 30)]
    assert all((number == 1) == (n % 2 == 1) for n, (number, _) in enumerate(drawn))
    human = [place for place in drawn if place[0] != 1]
    for epoch in range(3):  # every human image once in twelve
        assert len(set(human[12 * epoch : 12 * (epoch + 1)])) == 12
    assert set(Counter(place for place in drawn if place[0] == 1).values()) == {12}
    assert mixture.at(mixture.instead(5, 1))[0] == 1
    assert "of 2 images 1 are of people, more people, the others of pool (people 7, pool 30" in mixture.meaning()


def test_a_ratio_is_kept_in_every_block():
    mixture = Mixture([Counted("people", 7), Counted("pool", 30)], "paired", first=(0,), ratio=(2, 3))
    numbers = [mixture.at(n)[0] for n in range(50)]
    assert numbers == [0, 0, 1, 1, 1] * 10
    assert {index for number, index in map(mixture.at, range(7 * 5)) if number == 0} == set(range(7))
    with pytest.raises(UserError, match="no source for the human half"):
        Mixture([Counted("pool", 3)], "paired", first=())
    with pytest.raises(UserError, match="no source for the pseudo half"):
        Mixture([Counted("people", 3)], "paired", first=(0,))


# --- the two losses ---


@pytest.mark.parametrize("index", [[2], [0, 2], [2, 1, 0]])
def test_some_targets_of_a_stack_are_those_targets(index):
    torch.manual_seed(0)
    kinds = [
        [Label(torch.rand(4)) for _ in range(3)],
        [Boxes.make(torch.rand(n, 2).repeat(1, 2) + torch.tensor([0, 0, 1, 1]), [1] * n) for n in (2, 0, 3)],
        [Mask(torch.randint(0, 5, (6, 4), dtype=torch.uint8)) for _ in range(3)],
        [Field(torch.rand(6, 4), torch.rand(6, 4) > 0.5) for _ in range(3)],
        [Vectors(torch.rand(3, 6, 4), torch.rand(6, 4) > 0.5) for _ in range(3)],
    ]
    for targets in kinds:
        found, wanted = take(stack(targets), torch.tensor(index)), stack([targets[n] for n in index])
        for name in found.__slots__:
            one, other = getattr(found, name), getattr(wanted, name)
            assert (one is None and other is None) or torch.equal(one, other)


def student(seed: int = 0) -> "nn.Module":
    return build(Model(backbone=Tiny(), size=32), {"level": TASK, "other": TASK}, seed, "s", Path())


def batch(sources: str, heads: dict[str, list[int]]) -> Batch:
    """One image a letter: h from people, p from the pool."""
    torch.manual_seed(1)
    images = torch.randint(0, 256, (len(sources), 3, 32, 32), dtype=torch.uint8)
    labelled = {}
    for head, rows in heads.items():
        targets = stack([Label(torch.rand(2).softmax(0)) for _ in rows]) if rows else None
        labelled[head] = HeadBatch(torch.tensor(rows, dtype=torch.int64), targets)
    return Batch(images, labelled, [f"{'people' if s == 'h' else 'pool'}/{n}" for n, s in enumerate(sources)])


def by_people(head: str, source: str, id: str) -> bool:
    return source == "people"


@torch.no_grad()
def test_the_halves_are_the_losses_of_their_own_rows():
    network = student().eval()
    learner = HalfPseudo(network, {"level"}, by_people)
    given = batch("hphp", {"level": [0, 1, 2, 3], "other": [1, 3]})
    found, counts, whole = learner(given), learner.count(given), network(given)
    assert list(found) == ["level", f"level{PSEUDO}", "other"]
    assert float(found["level"].sum + found[f"level{PSEUDO}"].sum) == pytest.approx(float(whole["level"].sum), rel=1e-5)
    assert float(found["other"].sum) == pytest.approx(float(whole["other"].sum), rel=1e-5)
    for rows, name in (([0, 2], "level"), ([1, 3], f"level{PSEUDO}")):
        index = torch.tensor(rows)
        targets = take(given.heads["level"].targets, index)
        alone = network(Batch(given.images[index], {"level": HeadBatch(torch.arange(2), targets)}, ["x/0", "x/1"]))
        assert float(found[name].sum) == pytest.approx(float(alone["level"].sum), rel=1e-5)
        assert float(counts[name]) == float(found[name].count) == 2


@pytest.mark.parametrize("letters", ["hh", "pp", "hp"])
def test_a_half_without_labels_is_a_zero_in_the_graph(letters):
    learner = HalfPseudo(student(), {"level"}, by_people)
    rows = [n for n, letter in enumerate(letters) if letters != "hp"]  # of "hp" nothing is labelled
    found = learner(batch(letters, {"level": rows, "other": []}))
    empty = {"hh": [f"level{PSEUDO}"], "pp": ["level"], "hp": ["level", f"level{PSEUDO}"]}[letters]
    assert {name for name, loss in found.items() if float(loss.count) == 0} == {*empty, "other"}
    sum(loss.sum for loss in found.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learner.parameters() if p.requires_grad)


@pytest.fixture
def photos(tmp_path):
    """Six photographs that people labelled, for two heads alike, and four more; a pool shows all ten."""
    for number in range(10):
        folder = ("dark", "bright")[number % 2] if number < 6 else "more"
        (tmp_path / "photos" / folder).mkdir(parents=True, exist_ok=True)
        pixels = np.full((32, 32, 3), 60 + 130 * (number % 2) + number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / folder / f"{number}.png")
    (tmp_path / "labelled").mkdir()
    for folder in ("dark", "bright"):
        (tmp_path / "labelled" / folder).symlink_to(tmp_path / "photos" / folder)
    return {
        "pool": Pool(images="photos"),
        "others": Folders(head="other", root="labelled"),
        "people": Folders(head="level", root="labelled"),
    }


def test_an_image_that_a_pool_shows_too_is_in_the_human_half_whichever_comes_first(photos, tmp_path):
    """Kept where its label is, with the labels that other sources have for it; these are people's labels as well."""
    opened = [source.open(name, Place(tmp_path, tmp_path / "cache")) for name, source in photos.items()]
    part = StudentPart(self_training=SelfTraining(head="level"))
    union = union_of(part, ["level", "other"], opened)
    assert [(d.name, len(d)) for d in union.datasets] == [("people", 6), ("pool", 4)]
    assert [d.name for d in union_of(part.but(self_training=None), ["level"], opened).datasets] == ["pool"]
    network, settings = student(), Augment(colour=0.0, flip=0.0, scale=(1.0, 1.0))
    teachers = {head: Trained(training=Training(steps=1)) for head in ("level", "other")}
    heads = {"level": TASK, "other": TASK}
    mine = self_training(heads=heads, teachers=teachers, sources=photos, student=part)
    mixture = mixture_of(mine, part, union.datasets, ["level", "other"])
    (given,) = loader(mixture, ["level", "other"], 32, settings, 8, 0, 0, 1, 0, labels=union.labels(Said()))
    learner, _ = learner_of(mine, part, network, union)
    counts = {name: int(count) for name, count in learner.count(given).items()}
    assert counts == {"level": 4, f"level{PSEUDO}": 4, "other": 4, f"other{PSEUDO}": 4}
    assert [id.partition("/")[0] for id in given.ids] == ["people", "pool"] * 4


def test_a_run_whose_pool_comes_first_and_shows_the_labelled_images_has_both_halves(photos, tmp_path):
    mine = self_training(data=str(tmp_path), sources={name: photos[name] for name in ("pool", "people")})
    tutelage.run(mine, tmp_path / "run", SILENT)
    for row in curve(tmp_path / "run/student"):
        assert row["heads"]["level"] > 0
        assert row["heads"][f"level{PSEUDO}"] > 0
    (note,) = read_json_lines(tmp_path / "run/student" / NOTES)
    assert note["note"].startswith("6 images are shown by several sources")


def test_a_further_round_sees_other_batches(photos, tmp_path, monkeypatch):
    """Its student goes on from the one before it, which saw these already."""
    seeds, kept = [], methods_student.fit

    def watched(*args, **settings):
        seeds.append((settings["label"], settings["seed"]))
        return kept(*args, **settings)

    monkeypatch.setattr(methods_student, "fit", watched)
    mine = self_training(data=str(tmp_path), sources={name: photos[name] for name in ("pool", "people")}, rounds=2)
    tutelage.run(mine, tmp_path / "run", SILENT)
    assert [label for label, _ in seeds] == ["MuST student"] * 2
    assert len({*(seed for _, seed in seeds), mine.seed}) == 3


def test_a_student_that_trains_itself_says_when_its_start_has_no_such_head(photos, tmp_path):
    mine = self_training(data=str(tmp_path), sources={name: photos[name] for name in ("pool", "people")})
    save_model(tmp_path / "start", mine.model.build({"kind": TASK}), {})
    tutelage.run(mine.but(student=mine.student.but(start=str(tmp_path / "start"))), tmp_path / "run", SILENT)
    notes = [row["note"] for row in read_json_lines(tmp_path / "run/student" / NOTES)]
    assert [note for note in notes if "no head 'level'; it begins fresh" in note]


def test_of_a_labelled_source_that_takes_part_in_part_a_pool_shows_the_rest(photos, tmp_path):
    mine = self_training(data=str(tmp_path), sources={name: photos[name] for name in ("people", "pool")})
    tutelage.run(mine.but(fractions={"people": 0.5}), tmp_path / "run", SILENT)
    (note,) = read_json_lines(tmp_path / "run/student" / NOTES)
    assert note["note"].startswith("3 images are shown by several sources")
    for row in curve(tmp_path / "run/student"):
        assert row["heads"][f"level{PSEUDO}"] > 0


def test_where_nothing_is_shown_twice_the_order_of_sources_changes_no_half():
    sources = [Counted("pool", 9), Counted("people", 4), Counted("more", 5), Counted("more people", 3)]
    for dataset in sources:
        dataset.head = "level" if "people" in dataset.name else None
    part = StudentPart(self_training=SelfTraining())
    mine = self_training()
    orders = [
        mixture_of(mine, part, datasets, ["level"])
        for datasets in (sources, union_of(part, ["level"], sources).datasets)
    ]
    drawn = [[(order.datasets[number].name, index) for number, index in map(order.at, range(200))] for order in orders]
    assert drawn[0] == drawn[1]


# --- a source of which few images have a label ---


@pytest.fixture
def partly(tmp_path):
    """One folder of twelve photographs, of which four have masks, two have boxes, and one has both."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "masks").mkdir()
    for number in range(12):
        pixels = np.full((32, 32, 3), 60 + 130 * (number % 2) + number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    for number in (1, 4, 6, 9):
        Image.fromarray(np.full((32, 32), number % 2, np.uint8)).save(tmp_path / "masks" / f"{number}.png")
    boxes = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 32, "height": 32} for n in (1, 2)],
        "annotations": [],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    return {
        "photos": Masks(head="level", images="photos", masks="masks", classes=("dark", "bright")),
        "things": CocoBoxes(head="things", images="photos", annotations="boxes.json"),
    }


@pytest.mark.parametrize("order", [("photos", "things"), ("things", "photos")])
def test_images_of_a_labelled_source_that_nobody_labelled_are_its_pool(partly, tmp_path, order):
    place = Place(tmp_path, tmp_path / "cache")
    opened = [partly[name].open(name, place) for name in order]
    part = StudentPart(self_training=SelfTraining(head="level"))
    union = union_of(part, ["level", "things"], parts_of(opened, {"photos": 0.5}, seed=1, rest=True))
    shown = [(d.name, d.head, {d.id(i) for i in range(len(d))}) for d in union.datasets]
    human = shown[0][2]
    assert shown[0][:2] == ("photos", "level")
    assert len(human) == 2
    assert human < {"1.png", "4.png", "6.png", "9.png"}  # half of those with a mask; the other half takes no part ..
    nobody = {f"{n}.png" for n in (0, 2, 3, 5, 7, 8, 10, 11)}
    assert set.union(*(ids for *_, ids in shown[1:])) == nobody | ({"1.png"} - human)  # .. but for what has boxes too
    assert sum(len(ids) for *_, ids in shown[1:]) == len(nobody | ({"1.png"} - human))
    assert {id for id in (f"{n}.png" for n in range(12)) if union.said("level", "photos", id)} == human
    assert union.said("things", "photos", "2.png") or union.said("things", "things", "2.png")
    heads = {"level": Segmentation(), "things": Detection()}
    mine = self_training(heads=heads, labels="somewhere", sources=partly, student=part)
    mixture = mixture_of(mine, part, union.datasets, ["level"])
    for block in range(40):
        number, index = mixture.at(2 * block)
        assert mixture.datasets[number].id(index) in human
        number, index = mixture.at(2 * block + 1)
        assert mixture.datasets[number].id(index) not in human
    assert "photos (labels) 2" in mixture.meaning()
    assert "photos (no labels)" in mixture.meaning()


def test_one_partly_labelled_folder_is_enough_to_train_itself_on(partly, tmp_path):
    """The teacher draws labelled images alone; the student has both halves, without any pool."""
    whole = self_training()
    mine = whole.but(
        data=str(tmp_path),
        heads={"level": Segmentation(pseudo_threshold=0.0)},
        sources={"photos": partly["photos"]},
        held_out={},
    )
    shown = io.StringIO()
    tutelage.run(mine, tmp_path / "run", Progress(shown))
    for row in curve(tmp_path / "run/teachers/level"):
        assert row["heads"]["level"] > 0
    for row in curve(tmp_path / "run/student"):
        assert row["heads"]["level"] > 0
        assert row["heads"][f"level{PSEUDO}"] > 0
    assert "1 are of photos (labels), the others of photos (no labels) (photos (labels) 4," in shown.getvalue()


def test_check_refuses_what_a_run_stops_at(partly, tmp_path):
    """A label that contradicts its image is no image to set aside."""
    mine = self_training(
        data=str(tmp_path), heads={"level": Segmentation()}, sources={"photos": partly["photos"]}, held_out={}
    )
    assert not [text for text, wrong in check(mine) if wrong]
    Image.fromarray(np.full((32, 32), 7, np.uint8)).save(tmp_path / "masks/4.png")
    Image.fromarray(np.zeros((16, 32), np.uint8)).save(tmp_path / "masks/6.png")
    lines = list(check(mine))
    assert [text for text, wrong in lines if wrong] == [
        "sources.photos: 2 labels contradict their image or its classes; a run stops at one"
    ]
    assert sum("refused: " in text for text, _ in lines) == 2
    with pytest.raises(UserError):
        tutelage.run(mine, tmp_path / "run", SILENT)


def test_without_an_image_for_the_pseudo_half_nothing_is_trained(photos, tmp_path):
    mine = self_training(data=str(tmp_path), sources={"people": photos["people"]}, held_out={})
    with pytest.raises(UserError, match="none is left for the pseudo half"):
        tutelage.run(mine, tmp_path / "run", SILENT)
    assert not (tmp_path / "run/teachers").exists()
    faults = [text for text, wrong in check(mine) if wrong]
    assert len(faults) == 1
    assert "none is left for the pseudo half" in faults[0]


# --- the normalisation ---


PSEUDO_OF_IT = {f"it{PSEUDO}": "it"}


def losses(human: float, pseudo: float) -> dict[str, torch.Tensor]:
    return {
        "it": torch.tensor(human, requires_grad=True),
        f"it{PSEUDO}": torch.tensor(pseudo, requires_grad=True),
        "other": torch.tensor(0.5, requires_grad=True),
    }


def test_the_normalised_sum_is_that_of_the_paper():
    alpha, decay, weight = 0.5, 0.9, 3.0
    rule = Normalised({"it": weight, "other": 2.0}, PSEUDO_OF_IT, alpha, decay)
    human_mean = pseudo_mean = None
    for human, pseudo in ((2.0, 40.0), (1.0, 80.0), (3.0, 10.0), (0.5, 20.0)):
        if human_mean is None:
            human_mean, pseudo_mean = human, pseudo
        given = losses(human, pseudo)
        total = rule.backward(given, nn.Identity())
        factor = human_mean / pseudo_mean
        wanted = weight * (human + alpha * factor * pseudo) / (1 + alpha) + 2.0 * 0.5
        assert float(total) == pytest.approx(wanted, rel=1e-6)
        assert float(given["it"].grad) == pytest.approx(weight / (1 + alpha), rel=1e-6)  # none through the averages
        assert float(given[f"it{PSEUDO}"].grad) == pytest.approx(weight * alpha * factor / (1 + alpha), rel=1e-6)
        assert float(given["other"].grad) == 2.0
        rule.settle(nn.Identity(), {name: loss.detach() for name, loss in given.items()}, torch.Generator())
        human_mean = decay * human_mean + (1 - decay) * human
        pseudo_mean = decay * pseudo_mean + (1 - decay) * pseudo
    again = Normalised({"it": weight, "other": 2.0}, PSEUDO_OF_IT, alpha, decay)
    again.load_state_dict(rule.state_dict())
    assert float(again.factors()) == float(rule.factors()) == pytest.approx(human_mean / pseudo_mean, rel=1e-5)


def test_a_half_that_has_no_labels_changes_no_average():
    rule = Normalised({"it": 1.0, "other": 1.0}, PSEUDO_OF_IT, 1.0, 0.5)

    def step(human: float, pseudo: float) -> float:
        given = losses(human, pseudo)
        total = rule.backward(given, nn.Identity())
        rule.settle(nn.Identity(), {name: loss.detach() for name, loss in given.items()}, torch.Generator())
        return float(total)

    assert step(4.0, 0.0) == pytest.approx(2.0 + 0.5)  # no pseudo label yet: nothing to divide by
    assert float(rule.factors()) == 1.0
    assert step(4.0, 100.0) == pytest.approx(
        (4 + 4) / 2 + 0.5
    )  # the first pseudo loss, however late, is its own average
    assert float(rule.factors()) == pytest.approx(0.04)
    step(0.0, 0.0)
    assert float(rule.factors()) == pytest.approx(0.04)
    assert step(4.0, 0.0) == pytest.approx(2.5)
    assert float(Normalised({"it": 1.0}, PSEUDO_OF_IT, 1.0, 0.5, normalise=False).factors()) == 1.0


@pytest.mark.parametrize(
    "shares", [((2.0, 2.0),), ((1.9, 0.1), (0.1, 1.9)), ((1.0, 0.0), (1.0, 2.0)), ((0.0, 2.0), (2.0, 0.0))]
)
def test_the_averages_begin_with_the_losses_of_a_step_however_it_is_cut(shares):
    """Shares of micro-batches, of which one may have no row of a half, add up to losses of 2 and 2."""
    rule = Normalised({"it": 1.0, "other": 1.0}, PSEUDO_OF_IT, 1.0, 0.99)
    for human, pseudo in ((2.0, 2.0), (1.0, 4.0)):
        for first, second in shares:
            rule.backward(losses(first * human / 2, second * pseudo / 2), nn.Identity())
        rule.settle(nn.Identity(), losses(human, pseudo), torch.Generator())
        if human == pseudo:
            assert float(rule.factors()) == 1.0
    assert float(rule.factors()) == pytest.approx((0.99 * 2 + 0.01 * 1) / (0.99 * 2 + 0.01 * 4), rel=1e-6)


def test_averages_whose_human_half_begins_late_are_those_of_whole_steps_too():
    """Nothing is human in the first step; from the second on, one rule sees it whole and the other in two parts."""
    rules = [Normalised({"it": 1.0, "other": 1.0}, PSEUDO_OF_IT, 1.0, 0.9) for _ in range(2)]
    for human, pseudo in ((0.0, 3.0), (2.0, 5.0), (4.0, 1.0)):
        for rule, cuts in zip(rules, ([1.0], [0.25, 0.75]), strict=True):
            for cut in cuts:
                rule.backward(losses(human * cut, pseudo * cut), nn.Identity())
            rule.settle(nn.Identity(), losses(human, pseudo), torch.Generator())
    assert list(rules[0].state_dict()) == ["first", "second"]
    for name, average in rules[0].state_dict().items():
        assert torch.equal(average, rules[1].state_dict()[name])


def test_in_joint_training_the_loss_of_another_head_is_brought_to_the_size_of_the_human_loss():
    alpha, given = 0.5, losses(2.0, 40.0)
    joint = Normalised({"it": 3.0, "other": 2.0}, {"other": "it"}, alpha, 0.9)
    both = Normalised({"it": 3.0, "other": 2.0}, {**PSEUDO_OF_IT, "other": "it"}, alpha, 0.9)
    alone = {name: loss for name, loss in given.items() if name != f"it{PSEUDO}"}
    # The first losses are their own averages: every further loss then counts as much as the human one, times a.
    wanted = 3.0 * 2.0 + 2.0 * alpha * 2.0
    assert float(joint.backward(alone, nn.Identity())) == pytest.approx(wanted / (1 + alpha))
    assert float(both.backward(given, nn.Identity())) == pytest.approx((wanted + 3.0 * alpha * 2.0) / (1 + 2 * alpha))
    assert float(Normalised({"it": 3.0}, {}, alpha, 0.9).backward({"it": given["it"]}, nn.Identity())) == 6.0


class Loud(Classification):
    """Its loss of labels that are not certain, as a teacher's are, is a thousand times as large."""

    def loss(self, output, targets):
        found = super().loss(output, targets)
        return found if float(targets.probs.amax()) == 1 else LossSum(1000 * found.sum, found.count)


class Said:
    """What a teacher says of the pool: right, and not certain."""

    def get(self, head: str, source: str, id: str) -> Label | None:
        bright = int(Path(id).stem) % 2
        return Label(torch.tensor([0.98 - 0.96 * bright, 0.02 + 0.96 * bright])) if source == "pool" else None


@pytest.mark.parametrize("normalise", [True, False])
def test_a_training_with_loud_pseudo_labels_needs_the_normalisation(tmp_path, normalise):
    """The real loop, a network of convolutions: the same weights, batches and rate, with and without."""
    place, head = Place(tmp_path, tmp_path), {"level": Loud(classes=TASK.classes)}
    people = Brightness(head="level", label="class", images=16).open("people", place)
    pool = Brightness(images=24, first=60).open("pool", place)
    network = build(Model(backbone=Tiny(), size=32), head, 0, "s", Path())
    settings = Training(
        steps=30,
        batch=16,
        rate=0.05,
        schedule="constant",
        clip=None,
        workers=0,
        augment=Augment(scale=(1.0, 1.0)),
        precision="fp32",
        log_every=1,
    )
    with suppress(Diverged):
        fit(
            network,
            Mixture([people, pool], "paired", 1, first=(0,)),
            settings,
            Normalised({"level": 1.0}, {f"level{PSEUDO}": "level"}, 1.0, 0.9, normalise),
            tmp_path / "run",
            learner=HalfPseudo(network, {"level"}, by_people),
            seed=1,
            device=CPU,
            spaces={},
            labels=Said(),
        )
    human = [row["heads"]["level"] for row in read_json_lines(tmp_path / "run" / "curve.jsonl")]
    assert human[0] == pytest.approx(0.7, abs=0.1)  # by chance, log 2
    if normalise:
        assert max(human) < 1
        assert max(human[-5:]) < 0.05, "what people said is learned"
    else:
        assert max(human) > 100 or len(human) < settings.steps, "it breaks out, or ends in NaN"


# --- the method ---


def self_training(**changes: object) -> Recipe:
    whole = recipe()
    training = Training(steps=6, batch=8, rate=0.02, workers=0, augment=Augment(), log_every=1)
    return whole.but(
        heads={"level": Classification()},
        sources={name: part for name, part in whole.sources.items() if name in ("levels", "pool")},
        held_out={"levels-test": Brightness(head="level", label="class", images=6, first=300)},
        teachers={"level": whole.teachers["level"].but(training=training)},
        student=StudentPart(training=training, self_training=SelfTraining(), start="teacher: level"),
        transfer={},
    ).but(**changes)


def test_rounds_of_self_training_make_a_student_the_next_teacher(tmp_path):
    tutelage.run(self_training(rounds=2), tmp_path, SILENT)
    rows = [row for row in read_json_lines(tmp_path / "results.jsonl") if row["metric"] == "top-1"]
    assert [row["row"] for row in rows] == ["teacher", "student", "teacher, round 2", "student, round 2"]
    assert rows[1]["value"] == rows[2]["value"]  # the student of the first round is the teacher of the second
    rows = curve(tmp_path / "student")
    assert set(rows[0]["heads"]) == {"level", f"level{PSEUDO}"}
    assert all(row["heads"][f"level{PSEUDO}"] > 0 for row in rows)
    assert find_model(tmp_path) == tmp_path / "student"
    assert find_model(tmp_path / "rounds/2") == tmp_path / "rounds/2/student"
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")}
    tutelage.run(self_training(rounds=2), tmp_path, SILENT)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")} == before


def test_a_run_of_several_rounds_may_be_moved(tmp_path):
    mine = self_training(rounds=2)
    supervised = mine.student.but(labels="human", self_training=None, start=None)
    mine = mine.but(student=mine.student.but(start="sup"), baselines={"sup": supervised})
    tutelage.run(mine, tmp_path / "here", SILENT)
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "here").rglob("stage.json"))
    (tmp_path / "here").rename(tmp_path / "there")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")}
    tutelage.run(mine, tmp_path / "there", SILENT)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")} == before
    told = json.loads((tmp_path / "there/rounds/2/student/stage.json").read_text())["part"]["student"]
    assert told["start"] == "<run>/baselines/sup"


def test_a_teacher_elsewhere_is_named_as_the_recipe_names_it(tmp_path):
    """Nothing but what lies in the run's own folder is named from there: fingerprints stay what they are."""
    part = {"path": str(tmp_path / "elsewhere"), "beside": str(tmp_path / "run-2/student"), "it": str(tmp_path / "run")}
    with Run(tmp_path / "run", self_training(), SILENT) as run:
        stage = run.stage("one", part)
    assert json.loads((stage.folder / "stage.json").read_text())["part"] == part
    assert stage.fingerprint == fingerprint({"part": part, "after": {}})


def test_a_further_round_takes_over_what_the_first_one_made(tmp_path):
    """A teacher of a head that the student has not is trained once; the student starts where it did at first."""
    mine = self_training(rounds=3)
    quick = mine.student.training.but(steps=2)
    others = Brightness(head="other", label="class", images=8, first=200)
    mine = mine.but(
        heads={**mine.heads, "other": Classification()},
        sources={**mine.sources, "others": others},
        teachers={"level": mine.teachers["level"].but(training=quick), "other": Trained(training=quick)},
        student=mine.student.but(training=quick, heads=("level",), self_training=None, start="teacher: other"),
    )
    tutelage.run(mine, tmp_path, SILENT)
    trained = {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("weights.safetensors")}
    assert {name for name in trained if "teachers" in name} == {"teachers/level", "teachers/other"}
    for number in (2, 3):
        assert (tmp_path / f"rounds/{number}/student/model.yaml").is_file()


def test_a_student_goes_on_from_all_of_its_teacher_and_sees_other_batches(tmp_path):
    """The paper's section 3.2: the student's parameters, its head's included, are the teacher's at first."""
    frozen = recipe().student.training.but(steps=2, batch=8, warmup=0, rate=1e-12, weight_decay=0.0, workers=0)
    longer = StudentPart(training=frozen, labels="human", sources=("levels",), start="teacher: level")
    mine = self_training(baselines={"longer": longer})
    tutelage.run(mine.but(student=mine.student.but(training=frozen)), tmp_path, SILENT)
    teacher = read_state(tmp_path / "teachers/level/weights.safetensors")
    assert any(name.startswith("heads.level.") for name in teacher)
    for folder in ("student", "baselines/longer"):
        state = read_state(tmp_path / folder / "weights.safetensors")
        for name, value in teacher.items():
            if value.is_floating_point() and "running" not in name:
                torch.testing.assert_close(state[name], value, rtol=0, atol=1e-6, msg=f"{folder}: {name}")
    known = mine.sources["levels"].open("levels", Place(tmp_path, tmp_path / "cache"))
    orders = [
        mixture_of(mine, part, [known], ["level"], name)
        for part, name in ((longer, "baselines/longer"), (longer, "baselines/other"), (longer.but(start=None), ""))
    ]
    seen = [[order.at(n) for n in range(len(known))] for order in orders]
    assert seen[0] != seen[1] != seen[2] != seen[0]
    assert seen[2] == [Mixture([known], seed=mine.seed).at(n) for n in range(len(known))]


def test_a_head_of_another_form_begins_fresh(tmp_path):
    mine = self_training()
    wide = Classification(classes=("dark", "bright", "odd"))
    save_model(tmp_path, mine.model.build({"level": wide}), {"level": LabelSpace(wide.classes)})
    network = mine.model.build({"level": TASK})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(UserError, match="has the head 'level' in another form"):
        load_start(mine.model.build({"level": TASK}), tmp_path, needed="level")
    with pytest.raises(UserError, match="has the head 'other' under another name"):
        load_start(mine.model.build({"other": TASK}), tmp_path, needed="other")
    assert load_start(network, tmp_path) == ([], ["level"])
    after = network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("heads."))
    assert not all(torch.equal(after[name], before[name]) for name in before if name.startswith("backbone."))


class Deep(Classification):
    """A teacher's head with a layer more."""

    def head(self, widths):
        return nn.Sequential(super().head(widths), nn.Linear(2, 2))


def test_what_a_student_cannot_go_on_from_is_refused_before_anything_is_trained(tmp_path):
    mine = self_training()
    deep = mine.but(teachers={"level": mine.teachers["level"].but(head=Deep())})
    with pytest.raises(UserError, match="the head 'level' in another form"):
        tutelage.run(deep, tmp_path / "deep", SILENT)
    gone = mine.but(baselines={"on": mine.student.but(self_training=None, labels="human", start="not/there")})
    with pytest.raises(UserError, match="there is no model here"):
        tutelage.run(gone, tmp_path / "gone", SILENT)
    for name in ("deep", "gone"):
        assert {path.parent.name for path in (tmp_path / name).rglob("stage.json")} <= {"seen"}


def test_a_student_of_another_head_takes_the_backbone_of_a_teacher_and_says_so(tmp_path):
    """Bootstrapping (MuST section 4.3)."""
    mine, stream = self_training(), io.StringIO()
    mine = mine.but(
        heads={**mine.heads, "other": Classification()},
        sources={**mine.sources, "others": Brightness(head="other", label="class", images=8, first=200)},
        baselines={
            "other": StudentPart(
                training=mine.student.training, heads=("other",), labels="human", start="teacher: level"
            )
        },
        student=mine.student.but(heads=("level",)),
    )
    tutelage.run(mine, tmp_path, Progress(stream))
    (note,) = read_json_lines(tmp_path / "baselines/other" / NOTES)
    assert "teacher: level gives backbone and pyramid alone" in note["note"]
    assert f"note: {note['note']}" in stream.getvalue().splitlines()
    assert "MuST student: of 2 images 1 are of levels, the others of " in stream.getvalue()
    assert not (tmp_path / "student" / NOTES).exists()


def test_a_study_is_a_table_of_variants_that_share_what_they_can(tmp_path):
    quick = recipe().student.training.but(steps=4, batch=8, warmup=0)
    first = StudentPart(training=quick, labels="human", sources=("levels",))
    mine = self_training()
    both = mine.student.but(heads=("level", "of the pool"), self_training=SelfTraining(head="level"))
    mine = mine.but(
        heads={**mine.heads, "of the pool": Classification()},  # people labelled the pool for another task
        sources={**mine.sources, "pool": Brightness(head="of the pool", label="class", images=16, first=200)},
        student=mine.student.but(heads=("level",)),
        baselines={"first": first.but(heads=("level",)), "joint": both.but(labels="human"), "joint and self": both},
        teachers={"level": mine.teachers["level"].but(start="first")},
        study={
            "half": ("student.fractions={levels: 0.5}",),
            "strong": ("teachers.level.training.augment.colour=0.5", "student.training.augment.colour=0.5"),
        },
        seeds=(0, 1),
        repeat="everything",
    )
    tutelage.run(mine, tmp_path, SILENT)
    rows = [row for row in read_json_lines(tmp_path / "results.jsonl") if row["metric"] == "top-1"]
    assert {(row["row"], row["column"], row["seed"]) for row in rows} == {
        (row, column, seed)
        for row in ("teacher", "student", "first", "joint", "joint and self")
        for column in ("half", "strong")
        for seed in (0, 1)
    }
    assert len(list((tmp_path / "shared/baselines/first").iterdir())) == 2  # one a seed, for both variants
    assert (tmp_path / "study/strong/repeats/seed-1/student/model.yaml").is_file()
    joint, self_too = (
        list(read_json_lines(tmp_path / "study/half/baselines" / name / "curve.jsonl"))
        for name in ("joint", "joint and self")
    )
    assert set(joint[0]["heads"]) == {"level", "of the pool"}
    assert set(self_too[0]["heads"]) == {"level", f"level{PSEUDO}", "of the pool"}
    for first, count in ((joint[0], 2), (self_too[0], 3)):  # all losses are as large as that of people's labels
        sizes = [first["weights"][name] * loss for name, loss in first["heads"].items()]
        assert sizes == pytest.approx([first["heads"]["level"] / count] * count, rel=0.01)
    teachers = [tmp_path / "study" / name / "teachers/level/weights.safetensors" for name in ("half", "strong")]
    assert teachers[0].read_bytes() != teachers[1].read_bytes()


def test_a_column_that_fails_is_told_in_the_table_and_the_others_are_made(tmp_path, monkeypatch):
    mine = self_training(
        study={"broken": ("student.training.rate=0.01",), "whole": ()},
        seeds=(0, 1),
        repeat="everything",
    )
    faults = {0: UserError("nothing is kept", value="<0.5>"), 1: RuntimeError("no memory\nat all")}
    made = api.must

    def fragile(run):
        if run.recipe.name == "alone":
            raise RuntimeError("alone")
        if run.variant == "broken" and faults:
            raise faults[run.recipe.seed]
        return made(run)

    monkeypatch.setattr(api, "must", fragile)
    stream = io.StringIO()
    with pytest.raises(UserError) as caught:
        tutelage.run(mine, tmp_path, Progress(stream))
    for seed, reason in ((0, "nothing is kept value: '<0.5>'"), (1, "RuntimeError: no memory at all")):
        assert f"broken, seed {seed}: {reason}" in str(caught.value)
        assert f"broken, seed {seed}, failed; the other columns go on: {reason}" in stream.getvalue()
    rows = [row for row in read_json_lines(tmp_path / "results.jsonl") if row["metric"] == "top-1"]
    assert {(r["row"], r["column"], r["seed"]) for r in rows if r["value"] is not None} == {
        (row, "whole", seed) for row in ("teacher", "student") for seed in (0, 1)
    }
    report = (tmp_path / "report.html").read_text()
    assert '<td class="fail">failed</td>' in report
    assert "<li>student, broken, seed 0: nothing is kept value: &#x27;&lt;0.5&gt;&#x27;</li>" in report
    assert "RuntimeError" in (tmp_path / "study/broken/repeats/seed-1/failed.txt").read_text()
    faults.clear()
    tutelage.run(mine, tmp_path, SILENT)
    assert "failed" not in (tmp_path / "results.jsonl").read_text()
    assert not list(tmp_path.rglob("failed.txt"))
    with pytest.raises(RuntimeError, match="alone"):
        tutelage.run(mine.but(study={}, name="alone"), tmp_path / "alone", SILENT)


def test_a_failure_has_the_metric_of_its_head_where_classes_are_not_known_yet(tmp_path):
    mine = self_training(heads={"level": Segmentation(pseudo_threshold={"sky": 0.7})}, rounds=2)
    with Run(tmp_path, mine, SILENT) as run:
        (line,) = failure(run, "why")
    assert (line["row"], line["column"], line["metric"]) == ("student, round 2", "level", "mIoU")


def test_a_training_in_halves_goes_on_bit_for_bit(tmp_path):
    place = Place(tmp_path, tmp_path)
    people = Brightness(head="level", label="class", images=9).open("people", place)
    others = Brightness(head="level", label="class", images=14, first=50).open("pool", place)
    settings = Training(steps=6, batch=8, rate=0.05, workers=0, augment=Augment(), precision="fp32")

    def run(name: str, stops: list[int | None]) -> bytes:
        for until in stops:
            network = student()
            fit(
                network,
                Mixture([people, others], "paired", 1, first=(0,)),
                settings,
                Normalised({"level": 1.0, "other": 1.0}, {f"level{PSEUDO}": "level"}, 1.0, 0.9),
                tmp_path / name,
                learner=HalfPseudo(network, {"level"}, by_people),
                seed=1,
                device=CPU,
                spaces={},
                until=until,
            )
        return (tmp_path / name / "weights.safetensors").read_bytes()

    assert run("straight", [None]) == run("halting", [2, 5, None])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"self_training": {"head": "levle"}}, ["student.self_training.head", "'levle'"]),
        ({"self_training": {}, "sources": ["pool"]}, ["no source that labels the head 'level'"]),
        ({"self_training": {"ratio": [1, 0]}}, ["ratio"]),
        ({"self_training": {}, "labels": "pseudo"}, ["student.labels", "take `all`, not `pseudo`"]),
        ({"labels": "human", "sources": ["pool", "others"]}, ["student.sources", "none of pool, others labels level"]),
        ({"self_training": {}, "balance": {"mode": "pcgrad"}}, ["self-training has a balance of its own"]),
        ({"start": "teacher: levle"}, ["student.start", "did you mean 'teacher: level'"]),
        ({"start": "teacher: web"}, ["student.start", "no model of ours 'teacher: web'"]),
        ({"start": "MuST student"}, ["student.start: there is no model of ours 'MuST student'"]),
        ({"start": "frist"}, ["student.start", "did you mean 'first'", "the path of a model folder"]),
        (
            {"self_training": {}, "heads": ["level"], "start": "teacher: other"},
            ["student.start", "only 'teacher: level'"],
        ),
    ],
)
def test_self_training_that_cannot_work_is_refused(changes, words):
    plain = {
        "name": "x",
        "heads": {name: {"task": "classification"} for name in ("level", "other", "web")},
        "sources": {
            "levels": {"format": "folders", "head": "level", "root": "a"},
            "others": {"format": "folders", "head": "other", "root": "c"},
            "pool": {"format": "pool", "images": "b"},
        },
        "teachers": {
            "level": {"training": {"steps": 5}},
            "other": {"training": {"steps": 5}, "start": "first"},
            "web": {"kind": "timm", "name": "resnet18"},  # no model of ours to go on from
        },
        "student": {"heads": ["level"], **changes},
        "baselines": {"first": {"labels": "human", "heads": ["level"]}},
    }
    with pytest.raises(UserError) as caught:
        parse(Recipe, plain, "r.yaml")
    for word in words:
        assert word in str(caught.value)


def test_a_teacher_starts_only_from_what_needs_no_teacher(tmp_path):
    mine = self_training()
    on, plain = mine.student, mine.student.but(self_training=None, labels="human", start=None)
    rows = {"first": plain, "on": on, "further": plain.but(start="on")}

    def starting_from(name):
        teacher = mine.teachers["level"].but(start=name)
        return mine.but(teachers={"level": teacher}, baselines=rows)

    assert [entry.name for entry in early(starting_from("first"))] == ["first"]
    for late in ("on", "further"):
        with pytest.raises(UserError, match=rf"field: +teachers\.level\.start\n.*value: +'?{late}'?\n.*: first"):
            tutelage.run(starting_from(late), tmp_path / late, SILENT)
        assert not (tmp_path / late / "teachers").exists()


def test_starts_that_may_be_meant_are_taken(tmp_path):
    """Another head's teacher without self-training, another baseline, a folder by its path or by its name alone."""
    mine = self_training()
    plain = mine.student.but(self_training=None)
    (tmp_path / "there").mkdir()
    for start in ("teacher: level", "other", "MuST student", "not/there/yet", "there"):
        mine.but(baselines={"other": plain, "this": plain.but(start=start)}, data=str(tmp_path))
    with pytest.raises(UserError, match=r"teachers.level.start.*did you mean 'other'"):
        mine.but(baselines={"other": plain}, teachers={"level": mine.teachers["level"].but(start="othre")})
    with pytest.raises(UserError, match="these start from each other: other, MuST student"):
        mine.but(student=plain.but(start="other"), baselines={"other": plain.but(start="MuST student")})
    with pytest.raises(UserError, match=r"teachers\.level\.start"):
        mine.but(teachers={"level": mine.teachers["level"].but(start="teacher: level")})


def test_the_recipes_of_the_documentation_are_recipes():
    text = (Path(__file__).parent.parent / "docs" / "self-training.md").read_text()
    first, study = (block.split("```")[0] for block in text.split("```yaml\n")[1:])
    alone, table = (parse(Recipe, yaml_to_plain(words), "docs") for words in (first, first + study))
    assert alone.study == {}
    variants = [changed(table.but(study={}), settings) for settings in table.study.values()]
    assert [variant.fractions for variant in variants] == [{"labelled": 0.2}, {}]
    assert table.repeat == "everything"
    for one in (alone, *variants, RECIPES["self-training"]()):
        told = Halves.of(one.plain())
        assert told is not None
        assert told.longer == ("supervised, as long",)
        control, mine = one.baselines["supervised, as long"], one.student
        assert (control.start, control.labels, control.self_training) == (mine.start, "human", None)
        ratio = mine.self_training.ratio
        assert control.training.batch == mine.training.batch * ratio[0] // sum(ratio), "as many labelled images"


# --- what would make it worthless ---


def test_a_pool_that_holds_held_out_images_is_refused(tmp_path):
    mine = self_training()
    pool = Brightness(images=16, first=296)  # the held-out ones begin at 300
    with pytest.raises(UserError) as caught:
        tutelage.run(mine.but(sources={**mine.sources, "pool": pool}), tmp_path, SILENT)
    assert "6 images that are learned from are test images as well" in str(caught.value)
    assert "held_out.levels-test: " in str(caught.value)
    assert not (tmp_path / "teachers").exists()


def test_a_threshold_that_keeps_nothing_stops_with_the_scores(tmp_path):
    mine = self_training()

    class Strict(Classification):
        def pseudo(self, target):
            return None

    with pytest.raises(UserError) as caught:
        tutelage.run(mine.but(heads={"level": Strict()}), tmp_path, SILENT)
    assert "keeps nothing of what the teacher of head 'level' said" in str(caught.value)
    assert "at least" in str(caught.value)
    for words in ("in a new `--out`", "`labels: THIS/labels` in place of", "starts from `THIS/teachers/HEAD`"):
        assert words in str(caught.value)
    assert not (tmp_path / "student").exists()

    start = str(tmp_path / "teachers" / "level")
    later = mine.but(teachers={}, labels=str(tmp_path / "labels"), student=mine.student.but(start=start))
    tutelage.run(later, tmp_path / "new", SILENT)  # as advised
    assert (tmp_path / "new/student/model.yaml").is_file()


def test_where_a_teacher_said_nothing_a_lower_threshold_is_no_advice(monkeypatch):
    monkeypatch.setattr(guards, "head_lines", lambda head: ["the scores"])

    def advice(stored: int) -> str:
        scores = Scores(stored=stored, histogram=(), sure=0, thresholds=())
        summary = BoxesSummary(scores=scores, kept=0, without=5, most=0, area=None)
        head = HeadHealth.model_construct(head="objects", summary=summary, records=5, rule="at least 0.5")
        with pytest.raises(UserError, match="the scores") as caught:
            guards.refuse_nothing_kept(StoreHealth.model_construct(heads=(head,), agreement=()), ["objects"])
        return str(caught.value.fix)

    assert advice(0).startswith("train the teacher for longer, in a new `--out`")
    assert advice(1).startswith("lower the threshold in a new `--out`, with `labels: THIS/labels`")
    assert max(map(len, map(advice, (0, 1)))) <= 400  # what a message shows of it


def test_a_share_without_a_class_is_told(tmp_path):
    place = Place(tmp_path, tmp_path)
    source = Brightness(head="level", label="class", images=12).open("levels", place)
    other = Brightness(head="level", label="class", images=12, first=50).open("whole", place)
    tasks = {"level": Classification(classes=source.space.names)}
    few = {"levels": 0.01, "whole": 1.0}
    parts = parts_of([source, other], few, seed=0)
    assert (len(parts[0]), parts[1]) == (1, other)
    (gone,) = missing_classes(parts, tasks)["levels"]
    assert gone == source.space.names[1 - int(parts[0].target(0).probs.argmax())]
    assert missing_classes([source, other], tasks) == {}


class Rare(Counted):
    """Labels of which all are of the first class but those of `odd` images; it counts what is read."""

    head = "it"

    def __init__(self, count, odd, usual, other):
        super().__init__("rare", count)
        self.odd, self.usual, self.other, self.read = odd, usual, other, 0

    def target(self, index):
        self.read += 1
        if index == 3:
            raise BadImage("a label that cannot be used")
        return self.other if index in self.odd else self.usual


@pytest.mark.parametrize(
    ("count", "usual", "other", "task"),
    [
        (4_500, Label(torch.tensor([1.0, 0.0])), Label(torch.tensor([0.0, 1.0])), TASK),
        (4_500, Mask(torch.zeros(2, 2).byte()), Mask(torch.eye(2).byte()), Segmentation(classes=("a", "b"))),
    ],
)
def test_one_example_among_many_is_found_wherever_it_stands(count, usual, other, task):
    tasks = {"it": task}
    inside = sorted(part_of(Counted("rare", count), 0.5, seed=0).indices.tolist())
    outside = sorted(set(range(count)) - set(inside))
    for odd in inside[-2:]:  # what takes every second image misses one of two neighbours
        mine = Rare(count, {odd}, usual, other)
        assert missing_classes([part_of(mine, 0.5, seed=0)], tasks) == {}
        assert mine.read == inside.index(odd) + 1, "nothing is read once all are found"
    for odd in (outside[-1], outside[100]):
        mine = Rare(count, {odd}, usual, other)
        assert missing_classes([part_of(mine, 0.5, seed=0)], tasks) == {"rare": [task.classes[1]]}
    assert missing_classes([part_of(Rare(count, set(), usual, other), 0.5, seed=0)], tasks) == {}


def test_a_run_says_keeps_and_reports_that_a_share_lacks_a_class(tmp_path):
    stream, few = io.StringIO(), {"levels": 0.01}
    mine = self_training(fractions=few)
    mine = mine.but(baselines={"alone": mine.student.but(labels="human", self_training=None, sources=("levels",))})
    tutelage.run(mine, tmp_path, Progress(stream))
    told = [line for line in stream.getvalue().splitlines() if "no example of" in line]
    for name, folder in (
        ("teacher: level", "teachers/level"),
        ("alone", "baselines/alone"),
        ("MuST student", "student"),
    ):
        (note,) = read_json_lines(tmp_path / folder / NOTES)
        assert note["note"].startswith(f"{name}: the share of levels that is learned has no example of ")
        assert f"note: {note['note']}" in told
        assert note["note"] in (tmp_path / "report.html").read_text()
    assert len(told) == 3
