"""The linear probe against scikit-learn on the same features, and nearest neighbours against a plain loop."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.nn import functional as F

from tutelage.data.geometry import letterbox
from tutelage.data.quarantine import Quarantine
from tutelage.data.source import BadImage, Dataset, LabelSpace, Picture
from tutelage.downstream import Probe
from tutelage.errors import UserError
from tutelage.files import read_json_lines
from tutelage.models.backbone import Timm
from tutelage.models.student import Model
from tutelage.tasks.classification import Classification
from tutelage.tasks.task import Features
from tutelage.transfer import probe as probing
from tutelage.transfer.frozen import Embedded, embed, kept
from tutelage.transfer.probe import Fit, linear_probe, logistic_regression, nearest_neighbours, probe
from tutelage.types import Label

CPU = torch.device("cpu")
EXACT = 1e-9  # of the slope; where the two end then agrees to four digits and more, also under the weakest penalty
SETTINGS = Probe(l2=(1e-1, 1e-2, 1e-3), neighbours=5, batch=4)


def data(count: int, width: int, classes: int, seed: int = 0, noise: float = 2.0):
    """Features that overlap between classes, float64 [N,D], with one constant channel, and classes [N]."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, count)
    y[:classes] = np.arange(classes)
    x = np.random.default_rng(99).normal(size=(classes, width))[y] + noise * rng.normal(size=(count, width))
    x[:, 0] = 0.7
    return torch.from_numpy(x), torch.from_numpy(y)


def one_hot(y: torch.Tensor, classes: int) -> torch.Tensor:
    return F.one_hot(y, classes).float()


def sklearn_fit(x, y, c: float) -> LogisticRegression:
    return LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(x.numpy(), y.numpy())


def objective(fit: Fit, x, labels, l2: float) -> torch.Tensor:
    """Written out once more, by PyTorch's own loss."""
    return F.cross_entropy(x @ fit.weight.T + fit.bias, labels.to(x.dtype)) + l2 / 2 * fit.weight.square().sum()


def slope(fit: Fit, x, labels, l2: float) -> float:
    """The largest part of its gradient."""
    ends = Fit(fit.weight.clone().requires_grad_(), fit.bias.clone().requires_grad_())
    objective(ends, x, labels, l2).backward()
    return max(float(part.grad.abs().max()) for part in ends)


@pytest.fixture
def looks(monkeypatch) -> list[int]:
    """Grows by one with every look at the loss and its gradient."""
    found, look = [], probing._Loss.__call__
    monkeypatch.setattr(probing._Loss, "__call__", lambda self, w, b: (found.append(1), look(self, w, b))[1])
    return found


# --- logistic regression


@pytest.mark.parametrize("l2", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("classes", [3, 7])
def test_many_classes_as_scikit_learn(l2, classes):
    x, y = data(120, 6, classes)
    fit = logistic_regression(x, one_hot(y, classes), l2, tolerance=EXACT)
    other = sklearn_fit(x, y, 1 / (len(x) * l2))
    np.testing.assert_allclose(fit.weight.numpy(), other.coef_, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(fit.bias - fit.bias[0], other.intercept_ - other.intercept_[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fit.probabilities(x, False), other.predict_proba(x.numpy()), atol=1e-6)
    theirs = Fit(torch.from_numpy(other.coef_), torch.from_numpy(other.intercept_))
    assert objective(fit, x, one_hot(y, classes), l2) < objective(theirs, x, one_hot(y, classes), l2) + 1e-12
    assert abs(float(fit.bias.sum())) < 1e-9
    assert slope(fit, x, one_hot(y, classes), l2) < 1e-8


@pytest.mark.parametrize("l2", [1e-1, 1e-3, 1e-5])
def test_two_classes_as_scikit_learn_with_half_the_penalty(l2):
    x, y = data(80, 5, 2)
    fit = logistic_regression(x, one_hot(y, 2), l2, tolerance=EXACT)
    other = sklearn_fit(x, y, 2 / (len(x) * l2))
    np.testing.assert_allclose(fit.weight[1:] - fit.weight[:1], other.coef_, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(float(fit.bias[1] - fit.bias[0]), other.intercept_[0], rtol=1e-4)
    np.testing.assert_allclose(fit.probabilities(x, False), other.predict_proba(x.numpy()), atol=1e-6)


@pytest.mark.parametrize("l2", [1e-1, 1e-4])
def test_independent_classes_as_scikit_learn_class_by_class(l2):
    x, y = data(90, 5, 4)
    labels = one_hot(y, 4)
    labels[::3, 1] = 1
    labels = torch.cat([labels, torch.zeros(90, 1), torch.ones(90, 1)], 1)  # and one never seen, one always
    fit = logistic_regression(x, labels, l2, multi_label=True, tolerance=EXACT)
    for k in range(4):
        other = sklearn_fit(x, labels[:, k], 1 / (len(x) * l2))
        np.testing.assert_allclose(fit.weight[k], other.coef_[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(float(fit.bias[k]), other.intercept_[0], rtol=1e-4)
    said = fit.probabilities(x, True)
    assert said.isfinite().all()
    assert (said[:, 4] == 0).all()
    assert (said[:, 5] == 1).all()


def test_a_class_without_images_is_never_said_and_changes_nothing():
    x, y = data(60, 5, 3)
    y[y == 1] = 3  # of classes 0 to 4, 1 and 4 have no image
    fit = logistic_regression(x, one_hot(y, 5), 1e-3, tolerance=EXACT)
    other = sklearn_fit(x, y, 1 / (60 * 1e-3))
    np.testing.assert_allclose(fit.weight[[0, 2, 3]], other.coef_, rtol=1e-4, atol=1e-4)
    said = fit.probabilities(x, False)
    np.testing.assert_allclose(said[:, [0, 2, 3]], other.predict_proba(x.numpy()), atol=1e-6)
    assert (said[:, [1, 4]] == 0).all()
    again = logistic_regression(x, one_hot(y, 5), 1e-4, start=fit)
    assert again.probabilities(x, False).isfinite().all()


def test_one_class_alone_is_always_said():
    x = torch.randn(4, 3)
    for multi_label in (False, True):
        fit = logistic_regression(x, one_hot(torch.ones(4, dtype=torch.int64), 3), 1e-2, multi_label=multi_label)
        assert torch.equal(fit.probabilities(x, multi_label), torch.tensor([[0.0, 1, 0]]).expand(4, 3))


@pytest.mark.parametrize("count", [2, 3])
def test_a_few_images_of_many_channels(count):
    x, y = data(count, 40, count)
    fit = logistic_regression(x, one_hot(y, count), 1e-3, tolerance=EXACT)
    other = sklearn_fit(x, y, (2 if count == 2 else 1) / (count * 1e-3))
    np.testing.assert_allclose(fit.probabilities(x, False), other.predict_proba(x.numpy()), atol=1e-5)


def test_float32_says_the_same():
    x, y = data(200, 8, 5)
    labels = one_hot(y, 5)
    for l2 in (1e-1, 1e-3, 1e-5):
        exact = logistic_regression(x, labels, l2, tolerance=EXACT)
        short = logistic_regression(x.float(), labels, l2)
        assert short.weight.dtype == torch.float32
        np.testing.assert_allclose(short.probabilities(x.float(), False), exact.probabilities(x, False), atol=3e-3)


def test_the_minimum_is_one_also_with_soft_labels():
    x, y = data(50, 4, 3)
    labels = (one_hot(y, 3) * 3 + torch.rand(50, 3, generator=torch.Generator().manual_seed(1))).double()
    labels /= labels.sum(1, keepdim=True)
    fit = logistic_regression(x, labels, 1e-2, tolerance=EXACT)
    assert slope(fit, x, labels, 1e-2) < 1e-7


def test_a_start_leads_to_the_same_end_sooner(looks):
    x, y = data(120, 6, 3)
    labels = one_hot(y, 3)
    before = logistic_regression(x, labels, 2e-3, tolerance=1e-7)
    ends, took = [], []
    for start in (None, before):
        looks.clear()
        ends.append(logistic_regression(x, labels, 1e-3, start=start, tolerance=1e-7).weight)
        took.append(len(looks))
    np.testing.assert_allclose(ends[1], ends[0], atol=1e-3)
    assert took[1] < took[0]


def test_blocks_of_images_add_up_and_iterations_end(monkeypatch, looks):
    x, y = data(50, 4, 3)
    whole = logistic_regression(x, one_hot(y, 3), 1e-3, tolerance=EXACT)
    monkeypatch.setattr(probing, "_ROWS", 7)
    np.testing.assert_allclose(
        logistic_regression(x, one_hot(y, 3), 1e-3, tolerance=EXACT).weight, whole.weight, atol=1e-9
    )
    enough = len(looks)
    looks.clear()
    early = logistic_regression(x, one_hot(y, 3), 1e-5, iterations=3)
    assert 3 <= len(looks) < 10 < enough
    assert slope(early, x, one_hot(y, 3), 1e-5) > 1e-3


# --- nearest neighbours


def voted(train: Embedded, features, count: int, temperature: float) -> np.ndarray:
    """One image after the other."""
    known = train.features.double().numpy()
    said = []
    for row in features.double().numpy():
        similar = known @ row / (np.linalg.norm(known, axis=1) * np.linalg.norm(row))
        best = np.argsort(-similar)[:count]
        weights = np.exp(similar[best] / temperature)
        said.append((weights[:, None] * train.labels.numpy()[best]).sum(0) / weights.sum())
    return np.array(said)


def embedded(count: int, classes: int = 3, seed: int = 0, width: int = 6, noise: float = 1.0) -> Embedded:
    x, y = data(count, width, classes, seed, noise)
    return Embedded(x.float(), one_hot(y, classes), [f"{seed}-{n}" for n in range(count)])


@pytest.mark.parametrize("cells", [2**24, 100])
@pytest.mark.parametrize("count", [1, 7, 30, 500])
def test_neighbours_vote_by_similarity(count, cells, monkeypatch):
    monkeypatch.setattr(probing, "_CELLS", cells)
    train, features = embedded(30), embedded(11, seed=1).features
    said = nearest_neighbours(train, features, count, 0.07)
    np.testing.assert_allclose(said, voted(train, features, count, 0.07), atol=1e-4)
    np.testing.assert_allclose(said.sum(1), 1, atol=1e-5)


def test_neighbours_as_scikit_learn():
    train, features = embedded(60, 4), embedded(25, 4, seed=1).features
    other = KNeighborsClassifier(9, metric="cosine", weights=lambda far: np.exp((1 - far) / 0.07))
    other.fit(train.features.numpy(), train.labels.argmax(1).numpy())
    np.testing.assert_allclose(
        nearest_neighbours(train, features, 9, 0.07), other.predict_proba(features.numpy()), atol=1e-4
    )


def test_neighbours_of_several_classes_of_none_and_of_nothing():
    train = Embedded(torch.eye(3), torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 0]]), ["a", "b", "c"])
    assert nearest_neighbours(train, torch.tensor([[1.0, 0, 0]]), 1, 0.07).tolist() == [[1, 1, 0]]
    assert nearest_neighbours(train, torch.zeros(1, 3), 3, 0.07)[0].tolist() == pytest.approx([1 / 3, 2 / 3, 0])
    assert nearest_neighbours(train, torch.empty(0, 3), 3, 0.07).shape == (0, 3)


# --- the probe on features


def task(classes: int = 3, **options) -> Classification:
    return Classification(classes=tuple("abcdefgh"[:classes]), **options)


def test_the_penalty_is_chosen_on_validation_and_reported_on_test():
    train, validation, test = (embedded(20 + 20 * seed, seed=seed, width=12, noise=1.5) for seed in (1, 2, 3))
    settings = SETTINGS.but(l2=(30.0, 1e-1, 1e-3))
    found = linear_probe(train, validation, test, task(), settings)
    centre = train.features.mean(0)
    scale = (train.features - centre).square().mean().sqrt()
    figures, tests = {}, {}
    for l2 in settings.l2:
        other = sklearn_fit((train.features - centre) / scale, train.labels.argmax(1), 1 / (40 * l2))
        for part, into in ((validation, figures), (test, tests)):
            said = other.predict(((part.features - centre) / scale).numpy())
            into[l2] = 100 * float((said == part.labels.argmax(1).numpy()).mean())
    alone = {l2: linear_probe(train, validation, test, task(), settings.but(l2=(l2,))).validation for l2 in figures}
    assert alone == pytest.approx(figures)
    best = max(figures, key=lambda l2: (figures[l2], l2))
    assert best != max(figures)
    assert len(set(tests.values())) == 3
    assert (found.l2, found.validation) == (best, pytest.approx(figures[best]))
    assert found.test.value == pytest.approx(tests[best])
    assert (found.test.ids, found.test.images) == (tuple(test.ids), 80)
    assert found.test.evidence is not None
    near = voted(train, test.features, 5, 0.07).argmax(1)
    assert found.neighbours.value == pytest.approx(100 * (near == test.labels.argmax(1).numpy()).mean())
    near = voted(train, validation.features, 5, 0.07).argmax(1)
    assert found.neighbours_validation == pytest.approx(100 * (near == validation.labels.argmax(1).numpy()).mean())


def test_of_equal_penalties_the_strongest_is_chosen():
    easy = embedded(30, noise=0.01)
    for l2 in (1e-3, 1e-2, 1e-4):
        assert linear_probe(easy, easy, easy, task(), SETTINGS.but(l2=(l2,))).validation == 100
    found = linear_probe(easy, easy, easy, task(), SETTINGS.but(l2=(1e-3, 1e-2, 1e-4)))
    assert (found.l2, found.edge) == (1e-2, "l2 high")


def test_the_edge_of_the_grid_is_told():
    parts = embedded(40, seed=1), embedded(60, seed=2), embedded(80, seed=3)
    strong, weak = (linear_probe(*parts, task(), SETTINGS.but(l2=(l2,))).validation for l2 in (1e3, 1e-3))
    assert weak > strong
    assert linear_probe(*parts, task(), SETTINGS.but(l2=(1e3, 1e-3))).edge == "l2 low"
    assert linear_probe(*parts, task(), SETTINGS.but(l2=(1e3, 1e-3, 1e3 * 1.1, 1e-12))).edge in ("", "l2 low")
    assert linear_probe(*parts, task(), SETTINGS.but(l2=(1e-3,))).edge == ""


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_the_scale_of_a_networks_features_does_not_matter(factor):
    parts = [embedded(40 + 10 * seed, seed=seed) for seed in (1, 2, 3)]
    scaled = [part._replace(features=part.features * factor) for part in parts]
    one, other = (linear_probe(*group, task(), SETTINGS) for group in (parts, scaled))
    assert (one.l2, one.validation) == (other.l2, pytest.approx(other.validation))
    assert one.test.value == pytest.approx(other.test.value)


def test_features_that_say_nothing_give_the_commonest_class():
    labels = one_hot(torch.tensor([0, 1, 1, 2]), 3)
    flat = Embedded(torch.full((4, 5), 1234.567), labels, list("abcd"))
    assert linear_probe(flat, flat, flat, task(), SETTINGS).test.value == 50


def test_several_classes_an_image_are_scored_by_average_precision():
    parts = []
    for seed in (1, 2, 3):
        part = embedded(50, seed=seed)
        part.labels[::2, 1] = 1
        parts.append(part)
    found = linear_probe(*parts, task(multi_label=True), SETTINGS)
    assert found.test.name == found.neighbours.name == "mAP"
    assert 50 < found.test.value <= 100


def test_validation_without_a_figure_still_chooses():
    train, test = embedded(20, seed=1), embedded(20, seed=2)
    nothing = train._replace(labels=torch.zeros(20, 3))
    found = linear_probe(train, nothing, test, task(multi_label=True), SETTINGS)
    assert math.isnan(found.validation)
    assert found.l2 == 1e-1
    assert found.test is not None


def test_anything_is_better_than_no_figure():
    assert probing._better(1.0, math.nan, True)
    assert not probing._better(math.nan, 1.0, True)
    assert probing._better(1.0, 2.0, False)
    assert not probing._better(1.0, 1.0, False)


def test_features_that_are_not_finite_fail_alone():
    good, bad = embedded(10), embedded(10)
    bad.features[3, 2] = math.inf
    for parts in ((bad, good, good), (good, good, bad)):
        found = linear_probe(*parts, task(), SETTINGS)
        assert found.test is None
        assert found.neighbours is None
        assert "not all finite" in found.failed["features"]


# --- features


class Drawn(Picture):
    def __init__(self, seed: int, broken: bool) -> None:
        self.height, self.width, self.seed, self.broken = 12 + seed % 3, 20, seed, broken

    def read(self, scale: float = 1.0):
        if self.broken:
            raise BadImage("cut short")
        return np.random.default_rng(self.seed).integers(0, 256, (self.height, self.width, 3), dtype=np.uint8)


class Few(Dataset):
    head, space, faults = "it", LabelSpace(("a", "b")), []

    def __init__(self, count: int, unlabelled=(), broken=(), first: int = 0) -> None:
        self.name, self.count, self.unlabelled, self.broken, self.first = "few", count, unlabelled, broken, first

    def __len__(self) -> int:
        return self.count

    def id(self, index: int) -> str:
        return f"{self.first + index}"

    def picture(self, index: int) -> Picture:
        return Drawn(self.first + index, index in self.broken)

    def target(self, index: int) -> Label | None:
        return None if index in self.unlabelled else Label(F.one_hot(torch.tensor(index % 2), 2).float())

    def sha256(self, index: int) -> str:
        return f"digest {index}"


class Network(nn.Module):
    """The part of a student that is probed, small; counts the images it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.model = SimpleNamespace(size=16, fingerprint=lambda: "form")
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.backbone.widths = (4,)
        self.seen = 0

    def features(self, images):
        assert not self.training
        self.seen += len(images)
        return Features(self.backbone(images / 255).mean((2, 3)), None, None, (16, 16))


def test_features_are_those_of_a_classification_head():
    backbone = Timm(name="resnet18", options={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]})
    student = Model(backbone=backbone, size=32).build({"it": task(2)}).train()
    few = Few(5, unlabelled=(2,))
    found = embed(student, few, CPU, batch=2)
    student.eval()
    rows = [0, 1, 3, 4]
    images = torch.stack([letterbox(few.picture(row).read(), 32)[0] for row in rows])
    with torch.no_grad():
        expected = torch.stack([student.features(image[None]).embedding[0] for image in images])
    assert found.features.dtype == torch.float32
    torch.testing.assert_close(found.features, expected)
    assert found.ids == [few.id(row) for row in rows]
    assert found.labels.argmax(1).tolist() == [row % 2 for row in rows]


@pytest.mark.parametrize("count", [0, 1, 9])
def test_embedding_none_one_and_many(count):
    found = embed(Network(), Few(count), CPU, batch=4)
    assert found.features.shape == (count, 4)
    assert len(found.ids) == len(found.labels) == count


def test_what_cannot_be_read_is_set_aside(tmp_path):
    quarantine = Quarantine(tmp_path / "q.jsonl", 9, 0.5)
    found = embed(Network(), Few(9, broken=(1, 5)), CPU, batch=4, quarantine=quarantine)
    assert found.ids == list("0234678")
    assert [entry["id"] for entry in read_json_lines(quarantine.path)] == ["few/1", "few/5"]
    with pytest.raises(UserError, match="cannot be used"):
        embed(Network(), Few(9, broken=(1, 5)), CPU, batch=4)


def test_features_are_computed_once_for_a_network_and_its_images(tmp_path):
    network, file = Network(), tmp_path / "features" / "train.npz"
    first = kept(file, network, Few(6), CPU)
    again = kept(file, network, Few(6), CPU)
    assert network.seen == 6
    assert torch.equal(first.features, again.features)
    assert torch.equal(first.labels, again.labels)
    assert first.ids == again.ids
    kept(file, network, Few(6, first=1), CPU)  # other images
    assert network.seen == 12
    with torch.no_grad():
        network.backbone[1].running_mean += 1
    other = kept(file, network, Few(6, first=1), CPU)  # another network
    assert network.seen == 18
    assert torch.equal(other.features, kept(file, network, Few(6, first=1), CPU).features)
    file.write_bytes(file.read_bytes()[:300])
    kept(file, network, Few(6, first=1), CPU)
    assert network.seen == 24


def test_a_probe_from_images_to_figures_goes_on_where_it_ended(tmp_path):
    network = Network()
    parts = {"train": Few(12), "validation": Few(8, first=20), "test": Few(10, unlabelled=(9,), first=40)}
    found = probe(network, "pets", task(2), parts, SETTINGS, tmp_path)
    assert len(found.test.ids) == 9
    assert network.seen == 29
    assert probe(network, "pets", task(2), parts, SETTINGS, tmp_path).test.values == found.test.values
    assert network.seen == 29


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_part_without_labelled_images_is_named(part, tmp_path):
    parts = {"train": Few(4), "validation": Few(4), "test": Few(4)} | {part: Few(2, unlabelled=(0, 1))}
    with pytest.raises(UserError, match=f"the {part} part of 'pets'"):
        probe(Network(), "pets", task(2), parts, SETTINGS, tmp_path)


def test_a_validation_part_whose_labels_show_no_class_is_named(tmp_path):
    class Bare(Few):
        def target(self, index: int) -> Label:
            return Label(torch.zeros(2))

    parts = {"train": Few(4), "validation": Bare(4), "test": Few(4)}
    with pytest.raises(UserError, match=r"(?s)nothing can be chosen.*pets.*transfer\.pets\.validation"):
        probe(Network(), "pets", task(2, multi_label=True), parts, SETTINGS, tmp_path)
