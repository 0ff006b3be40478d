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


def test_the_rate_falls_in_steps_at_shares_of_all_steps():
    settings = Training(steps=100, warmup=10, rate=0.2, batch=2, schedule="steps")
    rates = [rate_at(settings, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.02 * (i + 1) for i in range(10)])
    # the paper's factors, one after another: 0.5, then 0.5 x 0.2, then 0.5 x 0.2 x 0.1
    wanted = [0.2] * 40 + [0.1] * 20 + [0.02] * 20 + [0.002] * 10
    assert rates[10:] == pytest.approx(wanted)
    # every share falls on the step that it names, also where its product with the steps is a hair above
    for percent in range(1, 100):
        sharp = Training(steps=100, rate=1.0, schedule="steps", drops=((percent / 100, 0.5),))
        assert [rate_at(sharp, percent - 1), rate_at(sharp, percent)] == [1.0, 0.5]
    assert rate_at(settings.but(drops=()), 99) == 0.2
    assert rate_at(Training(steps=3, rate=1.0, schedule="steps"), 2) == 0.5  # two thirds


def test_biases_and_norms_have_no_weight_decay():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    groups = make_optimiser(Training(weight_decay=0.1), net).param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert [decays[id(p)] for p in net.parameters()] == [0.1, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_a_frozen_part_is_in_the_groups_and_nothing_moves_it(optimiser):
    """So that the optimiser's state can be loaded where the part is frozen no longer."""

    def step(net, made):
        net(torch.ones(2, 3)).square().sum().backward()
        made.step()
        made.zero_grad(set_to_none=True)

    settings = Training(optimiser=optimiser, rate=0.1, weight_decay=0.5)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    net[1].requires_grad_(False)
    before, made = [p.clone() for p in net.parameters()], make_optimiser(settings, net)
    assert sum(len(group["params"]) for group in made.param_groups) == 4
    step(net, made)
    assert [p.equal(b) for p, b in zip(net.parameters(), before, strict=True)] == [False, False, True, True]
    thawed = net.requires_grad_(True)
    further = make_optimiser(settings, thawed)
    further.load_state_dict(made.state_dict())
    assert len(further.state) == 2  # of the part that moved
    step(thawed, further)
    assert not any(p.equal(b) for p, b in zip(thawed.parameters(), before, strict=True))


def test_settings_that_contradict_themselves_are_refused():
    with pytest.raises(ValueError, match="equal micro-batches"):
        Training(batch=10, accumulate=3)
    with pytest.raises(ValueError, match="shorter"):
        Training(steps=5, warmup=5)
    for drops in (((0.5, 0.5), (0.5, 0.2)), ((0.7, 0.5), (0.5, 0.2)), ((0.0, 0.5),), ((1.0, 0.5),)):
        with pytest.raises(ValueError, match="must increase inside"):
            Training(drops=drops)
    for factor in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="above 0"):
            Training(drops=((0.5, factor),))


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
