"""Pruning: the share with the largest magnitudes stays, all else is 0 for good, through any training and any kill."""

from itertools import islice

import numpy as np
import pytest
import torch
from test_loop import HEADS, SETTINGS, Regressions, micro_batches
from torch import nn
from torch.nn.utils import prune

from tutelage.errors import UserError
from tutelage.models.backbone import Timm
from tutelage.models.expanded import Expanded, Reconciliation
from tutelage.models.learner import Learner
from tutelage.models.student import Model
from tutelage.training.checkpoint import load_model, save_model
from tutelage.training.loop import train
from tutelage.training.pruning import Kept, Pruned, kept, magnitude_masks, prunable
from tutelage.training.rules import Weighted

CPU = torch.device("cpu")
EQUAL = dict.fromkeys(HEADS, 1.0)


class Wider(Regressions):
    """With a wider layer, so that there is something to take out, and dropout."""

    def __init__(self, seed=5):
        super().__init__(dropout=0.2)
        torch.manual_seed(seed)
        self.layer = nn.Linear(3, 12)
        self.outputs = nn.ModuleDict({name: nn.Linear(12, 1) for name in HEADS})


class Odd(Learner):
    """Weights of many kinds, some in two places, one used without its layer being called."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.conv = nn.Conv2d(3, 4, 3)
        self.up = nn.ConvTranspose2d(4, 3, 2)
        self.norm = nn.BatchNorm2d(4)
        self.same = nn.ModuleList([self.conv, nn.Linear(5, 5)])
        self.tied = nn.Linear(5, 5)
        self.tied.weight = self.same[1].weight
        self.attention = nn.MultiheadAttention(4, 2)
        self.places = nn.Parameter(torch.randn(7, 4) * 1e-6)
        self.words = nn.Embedding(3, 4)

    def forward(self, batch):
        raise NotImplementedError

    def count(self, batch):
        raise NotImplementedError


def run(folder, learner, batches=micro_batches, until=None, **changes):
    settings = SETTINGS.but(weight_decay=0.3, momentum=0.9, rate=0.01).but(**changes)
    given = (lambda first: batches(first, settings.accumulate)) if batches is micro_batches else batches
    train(learner, settings, Weighted(EQUAL), given, folder, seed=3, device=CPU, until=until)
    return learner


# --- what stays ---


@pytest.mark.parametrize("keep", [0.001, 0.1, 0.5, 0.73, 0.999])
def test_the_largest_magnitudes_of_all_layers_together_stay(keep):
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape) * scale) for shape, scale in (((8, 3, 3, 3), 1), ((40, 20), 0.1))]
    masks = magnitude_masks(weights, keep)
    flat = np.abs(np.concatenate([w.detach().numpy().ravel() for w in weights]))
    stay = round(keep * flat.size)
    threshold = np.sort(flat)[::-1][stay - 1]
    for weight, mask in zip(weights, masks, strict=True):
        assert mask.dtype == torch.bool
        np.testing.assert_array_equal(mask.numpy(), np.abs(weight.detach().numpy()) >= threshold)
    assert sum(int(mask.sum()) for mask in masks) == stay


def test_weights_of_convolutions_and_linear_layers_are_pruned_each_once():
    learner = Odd()
    sizes = sorted(weight.numel() for weight in prunable(learner))
    assert sizes == [16, 25, 48, 108]  # attention's out_proj, the tied linear, the transposed convolution, the other
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    Pruned(learner, learner, 0.25)
    after = learner.state_dict()
    assert list(after) == list(before)
    pruned = {name for name, value in after.items() if not value.equal(before[name])}
    assert pruned == {"conv.weight", "up.weight", "same.0.weight", "same.1.weight", "tied.weight"} | {
        "attention.out_proj.weight"
    }
    assert learner.tied.weight is learner.same[1].weight
    assert kept(learner)[:2] == (round(0.25 * 197), 197)
    everything = sum(p.numel() for p in learner.parameters())
    assert kept(learner) == Kept(49, 197, everything - 197)


def test_networks_that_share_one_core_are_pruned_once_and_their_heads_are_not():
    small = Timm(name="resnet18", options={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16], "stem_width": 8})
    part = Expanded(branches={"a": small, "b": small}, reconciliation=Reconciliation(), output="a")
    torch.manual_seed(0)
    one, other = (Model(backbone=part.but(output=task), size=64).build({}) for task in ("a", "b"))
    other.backbone.core = one.backbone.core

    class Both(Learner):
        def __init__(self):
            super().__init__()
            self.students, self.head = nn.ModuleList([one, other]), nn.Linear(16, 3)

        def forward(self, batch):
            raise NotImplementedError

        def count(self, batch):
            raise NotImplementedError

    learner = Both()
    head = learner.head.weight.clone()
    pruned = Pruned(learner, learner.students, 0.5)
    found = kept(learner.students)
    assert found.weights == round(0.5 * found.of)
    assert found == kept(one.backbone.core) == kept(other)
    assert learner.head.weight.equal(head)
    assert sum(name.startswith("kept_") for name, _ in pruned.named_buffers()) == len(prunable(one.backbone))


@pytest.mark.parametrize("keep", [0.0, 1.0, -0.1, 1.5, 100, float("nan")])
def test_a_share_outside_0_and_1_is_refused(keep):
    with pytest.raises(UserError, match="above 0 and below 1"):
        Pruned(Wider(), nn.Linear(2, 2), keep)


def test_a_share_that_leaves_nothing_is_refused():
    learner = Wider()
    before = learner.layer.weight.clone()
    with pytest.raises(UserError, match="of 72 weights"):
        Pruned(learner, learner, 0.001)
    with pytest.raises(UserError, match="of 0 weights"):
        Pruned(learner, nn.BatchNorm2d(3), 0.5)
    assert learner.layer.weight.equal(before)


# --- what training does with it ---


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"optimiser": "adamw"},
        {"ema": 0.8, "accumulate": 2},
        {"momentum": 0.0, "clip": 0.1},
    ],
)
def test_what_is_pruned_stays_0_and_all_else_learns(tmp_path, how):
    learner = Wider()
    pruned = Pruned(learner, learner, 0.4)
    before = [weight.detach().clone() for weight in prunable(learner)]
    run(tmp_path, pruned, **how)
    for weight, was in zip(prunable(learner), before, strict=True):
        assert (weight[was == 0] == 0).all()
        assert (weight[was != 0] != was[was != 0]).all()
    assert kept(learner).weights == round(0.4 * kept(learner).of)


def test_what_was_frozen_when_it_was_pruned_stays_pruned_when_it_learns(tmp_path):
    learner = Wider()
    learner.layer.weight.requires_grad_(False)
    pruned = Pruned(learner, learner, 0.4)
    assert not learner.layer.weight.requires_grad
    learner.layer.weight.requires_grad_(True)
    before = learner.layer.weight.detach().clone()
    run(tmp_path, pruned)
    assert ((learner.layer.weight == 0) == (before == 0)).all()
    assert not learner.layer.weight.equal(before)


def test_training_is_that_of_torchs_own_pruned_layers(tmp_path):
    """Which hold a mask and a whole weight, and multiply them at every pass."""

    class Masked(Wider):
        def __init__(self):
            super().__init__()
            places = [(self.layer, "weight"), *((head, "weight") for head in self.outputs.values())]
            prune.global_unstructured(places, prune.L1Unstructured, amount=72 - round(0.4 * 72))

    learner, theirs = Wider(), Masked()
    run(tmp_path / "ours", Pruned(learner, learner, 0.4), clip=0.5)
    run(tmp_path / "theirs", theirs, clip=0.5)
    layers = zip((learner.layer, *learner.outputs.values()), (theirs.layer, *theirs.outputs.values()), strict=True)
    for mine, other in layers:
        torch.testing.assert_close(mine.weight, other.weight_orig * other.weight_mask)
        torch.testing.assert_close(mine.bias, other.bias)


def test_killed_and_gone_on_it_ends_with_the_same_weights_pruned(tmp_path):
    whole = run(tmp_path / "whole", Pruned(learner := Wider(), learner, 0.4), ema=0.9)

    def dies(first):
        yield from islice(micro_batches(first), 5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", Pruned(again := Wider(), again, 0.4), dies, ema=0.9, checkpoint_seconds=0)
    other = Wider(seed=6)  # of other weights, hence with another choice before the checkpoint is read
    rest = run(tmp_path / "killed", Pruned(other, other, 0.4), ema=0.9)
    assert whole.state_dict().keys() == rest.state_dict().keys()
    for name, value in whole.state_dict().items():
        assert value.equal(rest.state_dict()[name]), name
    assert kept(other) == kept(learner)


def test_a_pruned_network_is_saved_and_read_as_any_other(tmp_path):
    small = Timm(name="resnet18", options={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16], "stem_width": 8})
    student = Model(backbone=small, size=64).build({})
    names = list(student.state_dict())
    Pruned(student, student.backbone, 0.3)
    assert list(student.state_dict()) == names
    save_model(tmp_path, student, {})
    assert kept(load_model(tmp_path).student) == kept(student)
    assert kept(student).weights == round(0.3 * kept(student).of)
