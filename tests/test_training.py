"""The loop's arithmetic: schedules, weights, counts; what stops it; and that a killed training loses nothing."""

import math

import pytest
import torch

from tutelage.errors import UserError
from tutelage.training.balance import Balance, scaling_rule
from tutelage.training.schedule import Training, make_optimiser, rate_at


def test_warm_up_is_linear_and_the_cosine_runs_from_its_end_to_the_last_step():
    settings = Training(steps=110, warmup=10, rate=0.4, batch=2)
    assert [rate_at(settings, step) for step in range(10)] == pytest.approx([0.04 * (i + 1) for i in range(10)])
    assert rate_at(settings, 10) == pytest.approx(0.4)
    assert rate_at(settings, 60) == pytest.approx(0.2)
    assert rate_at(settings, 109) == pytest.approx(0.2 * (1 + math.cos(math.pi * 99 / 100)))


def test_biases_and_norms_have_no_weight_decay():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    groups = make_optimiser(Training(weight_decay=0.1), net).param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert [decays[id(p)] for p in net.parameters()] == [0.1, 0.0, 0.0, 0.0]


def test_settings_that_contradict_themselves_are_refused():
    with pytest.raises(ValueError, match="equal micro-batches"):
        Training(batch=10, accumulate=3)
    with pytest.raises(ValueError, match="shorter"):
        Training(steps=5, warmup=5)


def test_the_scaling_rule_is_the_papers():
    # the paper's own numbers (appendix B): student 256; ImageNet teacher 2048 at 0.8, detection teacher 256 at 0.32
    assert scaling_rule(256, 0.32, 2048, 0.8) == pytest.approx(256 * 0.8 / (2048 * 0.32))
    assert scaling_rule(256, 0.32, 256, 0.32) == 1.0


def test_loss_weights():
    losses = {"a": torch.tensor(1.0), "b": torch.tensor(10.0)}
    equal = Balance().build(["a", "b"], (1, 1.0), {})
    fixed = Balance(mode="fixed", weights={"b": 0.5}).build(["a", "b"], (1, 1.0), {})
    scaled = Balance(mode="scaling-rule", weights={"b": 3.0}).build(["a", "b"], (64, 0.1), {"a": (32, 0.4)})
    assert [float(rule(losses)) for rule in (equal, fixed, scaled)] == [11.0, 6.0, 8.0 + 30.0]


def test_loss_weights_that_lead_nowhere_are_refused():
    with pytest.raises(UserError, match="names no head"):
        Balance(mode="fixed", weights={"c": 1.0}).build(["a"], (1, 1.0), {})
    with pytest.raises(UserError, match="scaling rule needs"):
        Balance(mode="scaling-rule").build(["a"], (1, 1.0), {})
