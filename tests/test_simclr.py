"""SimCLR: the loss of the paper, views that a resume repeats, and a backbone that tells images apart afterwards."""

import functools
import io
import math
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tutelage.data.scenes import Scenes
from tutelage.data.source import Picture, Place
from tutelage.errors import UserError
from tutelage.files import read_json_lines, write_json_lines
from tutelage.models.backbone import Backbone, FeatureMaps
from tutelage.models.student import Model
from tutelage.progress import Progress
from tutelage.training import fit, simclr
from tutelage.training.checkpoint import load_model
from tutelage.training.fit import build
from tutelage.training.loop import train
from tutelage.training.notes import NOTES
from tutelage.training.schedule import Training
from tutelage.training.simclr import HEAD, Contrast, SimCLR, Views, nt_xent, pretrain_simclr
from tutelage.types import Batch

CPU = torch.device("cpu")


class Maps(FeatureMaps):
    strides, widths = (16,), (16,)

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 16, 5, 4, 2), nn.ReLU(), nn.Conv2d(16, 16, 5, 4, 2))

    def forward(self, images):
        return [self.net(images)]


class Small(Backbone):
    kind: Literal["small"] = "small"

    @property
    def pretrained(self):
        return False

    def blank(self):
        return self

    def build(self, root=None):
        return Maps()


class Noise(Picture):
    height, width = 50, 40

    def __init__(self):
        self.scales = []
        self.pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
        self.pixels.flags.writeable = False

    def read(self, scale=1.0):
        self.scales.append(scale)
        return self.pixels


MODEL = Model(backbone=Small(), size=32)
PART = SimCLR(
    training=Training(steps=30, batch=16, rate=0.01, optimiser="adamw", workers=0, precision="fp32", warmup=3),
    hidden=32,
    projection=16,
    views=Views(crop=(0.3, 1.0), blur=0.0),
)


def scenes(folder, images=32):
    return Scenes(world="travels", images=images, size=32).open("pool", Place(folder, folder))


# --- the loss --------------------------------------------------------------------------------------------------------


def nt_xent_slowly(one, other, temperature):
    """Equation 1 of the paper and the mean of its algorithm 1, pair by pair."""
    views = F.normalize(torch.cat([one, other]).double(), dim=1)
    pairs, total = len(one), 0.0
    for i in range(2 * pairs):
        mate = (i + pairs) % (2 * pairs)
        likeness = [float(views[i] @ views[k]) / temperature for k in range(2 * pairs)]
        others = sum(np.exp(likeness[k]) for k in range(2 * pairs) if k != i)
        total -= np.log(np.exp(likeness[mate]) / others)
    return total / (2 * pairs)


@pytest.mark.parametrize(("pairs", "temperature"), [(2, 0.1), (5, 0.1), (7, 0.5)])
def test_the_loss_is_that_of_the_paper(pairs, temperature):
    one, other = torch.randn(2, pairs, 6, generator=torch.Generator().manual_seed(pairs)).unbind()
    assert float(nt_xent(one, other, temperature)) == pytest.approx(nt_xent_slowly(one, other, temperature), rel=1e-5)


def test_the_first_view_of_an_image_is_compared_with_its_second():
    learner = Contrast(build(MODEL, {}, 0, "simclr", Path()), PART).eval()  # batch norms must not mix rows here
    one, other = torch.randint(0, 256, (2, 3, 3, 32, 32), dtype=torch.uint8).unbind()
    batch = Batch(torch.cat([one, other], 1), {}, ["a", "b", "c"])
    with torch.no_grad():
        loss = learner(batch)[HEAD]
        apart = nt_xent_slowly(learner.project(one), learner.project(other), 0.1)
    assert float(loss.sum / loss.count) == pytest.approx(apart, rel=1e-4)
    assert float(loss.count) == float(learner.count(batch)[HEAD]) == 6


# --- the views -------------------------------------------------------------------------------------------------------


def test_views_follow_from_their_random_numbers_alone():
    def make(seed):
        return Views()(Noise(), {}, 24, np.random.default_rng([7, seed]))[0]

    state = torch.get_rng_state()
    views = make(1)
    assert torch.get_rng_state().equal(state)
    torch.rand(5)
    assert make(1).equal(views)
    assert not make(2).equal(views)
    assert (views.shape, views.dtype) == ((6, 24, 24), torch.uint8)
    assert not views[:3].equal(views[3:])


def test_views_without_chance_are_the_image_or_its_mirror():
    still = Views(crop=(1.0, 1.0), colour=0.0, grey=0.0, blur=0.0)
    picture = Noise()
    picture.pixels = picture.pixels[:40]  # a square: the whole of it is a crop of every allowed ratio
    picture.height = 40
    whole = torch.from_numpy(np.array(picture.pixels)).permute(2, 0, 1)
    seen = set()
    for seed in range(40):
        for view in still(picture, {}, 40, np.random.default_rng(seed))[0].chunk(2):
            if view.equal(whole):
                seen.add("image")
            elif view.equal(whole.flip(2)):
                seen.add("mirror")
    assert seen == {"image", "mirror"}


def test_every_kind_of_change_is_seen_as_often_as_stated():
    grey, coloured = Views(grey=1.0, colour=0.0, blur=0.0), Views(grey=0.0, colour=1.0, blur=0.0)
    for seed in range(8):
        pair = grey(Noise(), {}, 16, np.random.default_rng(seed))[0]
        assert pair[0].equal(pair[1])
        assert pair[4].equal(pair[5])
        pair = coloured(Noise(), {}, 16, np.random.default_rng(seed))[0]
        assert not pair[0].equal(pair[1])
    sharp, soft = (Views(crop=(1.0, 1.0), colour=0.0, grey=0.0, blur=share) for share in (0.0, 1.0))
    spread = [v(Noise(), {}, 40, np.random.default_rng(2))[0].float().std() for v in (sharp, soft)]
    assert spread[1] < 0.9 * spread[0]


def test_large_pictures_are_decoded_at_the_size_that_the_smallest_crop_needs():
    picture = Noise()
    Views(crop=(0.25, 1.0))(picture, {}, 10, np.random.default_rng(0))
    Views(crop=(0.25, 1.0))(picture, {}, 30, np.random.default_rng(0))
    assert picture.scales == [0.5, 1.0]


def test_settings_that_make_no_view_or_no_pair_are_refused(tmp_path):
    with pytest.raises(ValueError, match="smallest, largest"):
        Views(crop=(0.5, 0.1))
    alone = PART.but(training=PART.training.but(batch=4, accumulate=4))
    with pytest.raises(UserError, match="nothing to differ from"):
        pretrain_simclr(MODEL, alone, [], tmp_path, seed=0, device=CPU, root=Path())


# --- the training ----------------------------------------------------------------------------------------------------


def test_pre_training_brings_views_of_one_image_together(tmp_path, monkeypatch):
    dataset = scenes(tmp_path)
    kept = {}

    def watched(learner, *args, **kwargs):
        kept["before"] = _likeness(learner, dataset)
        done = train(learner, *args, **kwargs)
        kept["after"] = _likeness(learner, dataset)
        return done

    monkeypatch.setattr(fit, "train", watched)
    pretrain_simclr(MODEL, PART, [dataset], tmp_path / "out", seed=0, device=CPU, root=Path())
    same_before, others_before = kept["before"]
    same, others = kept["after"]
    assert same > others
    assert same - others > 2 * (same_before - others_before)
    saved = load_model(tmp_path / "out", backbones=[Small])
    assert saved.student.tasks == {}
    assert all(name.startswith("backbone.") for name in saved.student.state_dict())


def test_a_training_that_ends_no_lower_than_guessing_says_so(tmp_path):
    said, easy = {}, Views(crop=(0.9, 1.0), colour=0.0, grey=0.0, blur=0.0)
    slow = PART.but(training=PART.training.but(rate=1e-9))
    for name, part in {"learns": PART.but(views=easy), "guesses": slow}.items():
        stream = io.StringIO()
        pretrain_simclr(
            MODEL,
            part,
            [scenes(tmp_path)],
            tmp_path / name,
            seed=0,
            device=CPU,
            root=Path(),
            label="a row",
            progress=Progress(stream),
        )
        said[name] = stream.getvalue()
    assert "note:" not in said["learns"]
    assert "note: a row: little may have been learned" in said["guesses"]
    (kept,) = read_json_lines(tmp_path / "guesses" / NOTES)
    assert said["guesses"].splitlines()[-1] == f"note: {kept['note']}"
    assert not (tmp_path / "learns" / NOTES).exists()
    assert f"no lower than that of guessing, {math.log(31):.2f}" in said["guesses"]
    assert f"views.crop, now from {slow.views.crop[0]:g}" in said["guesses"]


@pytest.mark.parametrize(("ended", "noted"), [(2.59, False), (2.62, True), (9.0, True)])
def test_the_last_tenth_of_the_curve_is_compared_with_guessing(tmp_path, monkeypatch, ended, noted):
    """Negatives are those of a micro-batch: 8 images, 15 other views, ln 15 = 2.71."""

    def pretended(learner, settings, rule, batches, folder, **rest):
        write_json_lines(folder / "curve.jsonl", [{"step": n, "loss": 0.0 if n < 90 else ended} for n in range(100)])

    monkeypatch.setattr(fit, "train", pretended)
    part, stream = PART.but(training=PART.training.but(steps=100, accumulate=2)), io.StringIO()
    pretrain_simclr(
        MODEL, part, [scenes(tmp_path)], tmp_path, seed=0, device=CPU, root=Path(), progress=Progress(stream)
    )
    assert ("no lower than that of guessing" in stream.getvalue()) is noted
    assert simclr.chance(8) == pytest.approx(math.log(15))
    same = torch.ones(8, 4)
    assert float(nt_xent(same, same, 0.1)) == pytest.approx(simclr.chance(8), rel=1e-4)


def _likeness(learner, dataset):
    """Mean cosine of two views of one image, and of two images."""
    made = [PART.views(dataset.picture(i), {}, 32, np.random.default_rng([99, i]))[0] for i in range(len(dataset))]
    learner.eval()
    with torch.no_grad():
        one, other = (F.normalize(learner.project(v), dim=1) for v in torch.stack(made).split(3, 1))
    cosines = one @ other.T
    diagonal = cosines.diagonal().mean()
    return float(diagonal), float((cosines.sum() - cosines.trace()) / (len(made) * (len(made) - 1)))


def test_a_killed_pre_training_ends_with_the_same_bits(tmp_path, monkeypatch):
    part = PART.but(training=PART.training.but(steps=6, batch=8, workers=1))
    start = functools.partial(pretrain_simclr, MODEL, part, [scenes(tmp_path, 12)], seed=4, device=CPU, root=Path())
    start(tmp_path / "calm")
    with monkeypatch.context() as patch:
        patch.setattr(fit, "train", lambda *args, **named: train(*args, **named | {"until": 3}))
        start(tmp_path / "killed")
    assert not (tmp_path / "killed" / "model.yaml").exists()
    start(tmp_path / "killed")
    calm, resumed = (load_model(tmp_path / name, backbones=[Small]).student.state_dict() for name in ("calm", "killed"))
    assert all(value.equal(resumed[name]) for name, value in calm.items())
