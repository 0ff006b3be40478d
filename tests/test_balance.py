"""Balances of losses on problems with a known answer, by themselves and in the training loop."""

import pytest
import torch
from torch import nn

from tutelage.errors import UserError
from tutelage.models.learner import Learner
from tutelage.tasks import Classification, Depth, Detection, Normals
from tutelage.training.balance import Balance
from tutelage.training.gradients import GradNorm, PCGrad, projected
from tutelage.training.loop import train
from tutelage.training.rules import Uncertainty
from tutelage.training.schedule import Training
from tutelage.types import Batch, Boxes, Field, HeadBatch, Label, LossSum, Vectors

CPU = torch.device("cpu")


def batch(rows=4, labelled=None):
    """Pictures without content; `labelled`: head name to how many rows have a label, all where it is left out."""
    heads = {name: HeadBatch(torch.arange(n), None) for name, n in (labelled or {}).items()}
    return Batch(torch.zeros(rows, 3, 1, 1, dtype=torch.uint8), heads, [f"s/{i}" for i in range(rows)])


class Toy(Learner):
    """One shared matrix, any differentiable loss of it a head."""

    def __init__(self, start, **losses):
        super().__init__()
        self.shared_matrix = nn.Parameter(torch.tensor(start))
        self.own = nn.ParameterDict({name: nn.Parameter(torch.ones(())) for name in losses})
        self.losses = losses

    def count(self, batch):
        rows = len(batch.images)
        return {
            name: torch.tensor(float(len(batch.heads[name].rows) if name in batch.heads else rows))
            for name in self.losses
        }

    def forward(self, batch):
        counts = self.count(batch)
        return {
            name: LossSum((loss(self.shared_matrix) + (self.own[name] - 3) ** 2) * counts[name], counts[name])
            for name, loss in self.losses.items()
        }

    def shared(self):
        return [self.shared_matrix]


def run(learner, rule, folder, micro=None, **settings):
    """Train on the same step again and again, its micro-batches being `micro`."""
    micro = micro or [batch()]
    steps = Training(batch=4 * len(micro), accumulate=len(micro), precision="fp32", **settings)

    def batches(first):
        while True:
            yield from micro

    assert train(learner, steps, rule, batches, folder, seed=0, device=CPU)


# --- learned uncertainty ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro", [1, 3])
def test_uncertainties_end_where_kendalls_losses_are_smallest(tmp_path, micro):
    fixed = {"depth": 4.0, "normals": 0.25, "classes": 2.0, "boxes": 0.5}
    learner = Toy([[0.0]], **{name: lambda w, v=value: v + 0 * w.sum() for name, value in fixed.items()})
    for own in learner.own.values():
        own.data.fill_(3.0)  # their losses are what is fixed, and nothing else
    rule = Uncertainty({"depth": Field, "normals": Vectors, "classes": Label, "boxes": Boxes})
    run(learner, rule, tmp_path, [batch()] * micro, steps=250, rate=0.1, warmup=10)
    variance = dict(zip(fixed, rule.log_variance.detach().exp().tolist(), strict=True))
    # smallest of L / (2 v) + log(v) / 2 is at v = L; of L / v + log(v) / 2 at v = 2 L
    assert variance == pytest.approx({"depth": 4.0, "normals": 0.25, "classes": 4.0, "boxes": 1.0}, rel=0.01)
    weights = {name: float(w.detach()) for name, w in rule.weights().items()}
    assert weights == pytest.approx({name: 1 / (2 * value) for name, value in fixed.items()}, rel=0.01)
    least = sum(0.5 + 0.5 * torch.tensor(v).log().item() for v in variance.values())
    assert float(rule({name: torch.tensor(value) for name, value in fixed.items()}).detach()) == pytest.approx(
        least, abs=1e-3
    )


def test_the_noise_of_a_head_without_labels_is_left_alone(tmp_path):
    learner = Toy([[1.0]], seen=lambda w: 5 + w.square().sum(), unseen=lambda w: w.square().sum())
    rule = Uncertainty({"seen": Field, "unseen": Field})
    run(learner, rule, tmp_path, [batch(labelled={"unseen": 0})], steps=20, rate=0.01)
    assert rule.log_variance[1] == 0
    assert rule.log_variance[0] > 0


# --- PCGrad ----------------------------------------------------------------------------------------------------------


def slope(*vector):
    """The loss whose gradient is this vector everywhere."""
    return lambda w: (w.flatten() * torch.tensor(vector)).sum()


def gradient(rule, losses, heads=(), micro=1):
    """What the rule gives to the shared matrix in a step, and to each head's own parameter."""
    learner = Toy([[0.0] * 3], **losses)
    for _ in range(micro):
        found = {name: loss.sum / loss.count / micro for name, loss in learner(batch()).items()}
        rule.backward(found, learner)
    rule.settle(learner, {n: x.detach() for n, x in found.items()}, torch.Generator().manual_seed(1))
    return learner.shared_matrix.grad.flatten(), [p.grad.item() for p in learner.own.values()]


@pytest.mark.parametrize("micro", [1, 2])
def test_gradients_against_each_other_are_projected(micro):
    # a = (1,0,0), b = (-1,1,0), a.b = -1: a becomes a + b/2 = (.5,.5,0), b becomes b + a = (0,1,0)
    found, own = gradient(PCGrad({"a": 1.0, "b": 1.0}), {"a": slope(1.0, 0, 0), "b": slope(-1.0, 1.0, 0)}, micro=micro)
    torch.testing.assert_close(found, torch.tensor([0.5, 1.5, 0.0]))
    assert own == [-4.0, -4.0]  # of (own - 3)^2 at 1: theirs alone


def test_gradients_that_agree_are_summed_as_they_are():
    found, _ = gradient(PCGrad({"a": 1.0, "b": 2.0}), {"a": slope(1.0, 0, 2.0), "b": slope(0, 1.0, 0.5)})
    torch.testing.assert_close(found, torch.tensor([1.0, 2.0, 3.0]))


def test_a_head_without_a_gradient_changes_nothing():
    losses = {"a": slope(1.0, 0, 0), "none": slope(0.0, 0.0, 0.0), "unreached": lambda w: torch.ones(())}
    found, _ = gradient(PCGrad(dict.fromkeys(losses, 1.0)), losses)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0, 0.0]))


def test_projections_are_those_of_the_papers_algorithm():
    gradients = torch.randn(5, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    shares = projected(gradients @ gradients.T, torch.Generator().manual_seed(9))
    order = torch.Generator().manual_seed(9)
    total = torch.zeros(7, dtype=torch.float64)
    for i in range(5):  # vector by vector, as it is printed
        vector = gradients[i].clone()
        for j in torch.randperm(5, generator=order).tolist():
            if j != i and vector @ gradients[j] < 0:
                vector -= (vector @ gradients[j]) / (gradients[j] @ gradients[j]) * gradients[j]
        total += vector
    torch.testing.assert_close(shares @ gradients, total)
    assert not torch.allclose(total, gradients.sum(0))


# --- GradNorm --------------------------------------------------------------------------------------------------------


def test_gradients_of_norms_1_and_100_get_weights_100_to_1(tmp_path):
    learner = Toy([[0.0, 0.0]], small=slope(0.6, 0.8), large=slope(100.0, 0.0))
    rule = GradNorm(["small", "large"], alpha=0.0, rate=0.025)
    run(learner, rule, tmp_path, [batch(), batch()], steps=250, rate=1e-6, clip=None)
    weights = {name: float(weight) for name, weight in rule.weights().items()}
    assert weights == pytest.approx({"small": 200 / 101, "large": 2 / 101}, rel=0.03)
    assert sum(weights.values()) == pytest.approx(2)


def test_two_regressions_whose_losses_differ_by_100_are_learned_alike(tmp_path):
    # one network cannot reach both goals; with any fixed weights but 100 to 1 it ends nearer to one of them. Where it
    # rests, both gradients are equally long whatever the weights: it is alpha that brings the losses together
    goals = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    learner = Toy(
        [[0.0, 0.0]],
        small=lambda w: (w - goals[0]).square().sum(),
        large=lambda w: 100 * (w - goals[1]).square().sum(),
    )
    for own in learner.own.values():
        own.data.fill_(3.0)
    rule = GradNorm(["small", "large"], alpha=1.5, rate=0.025)
    run(learner, rule, tmp_path, steps=500, rate=0.002, clip=None, momentum=0.0, schedule="constant")
    weights = {name: float(weight) for name, weight in rule.weights().items()}
    assert weights == pytest.approx({"small": 200 / 101, "large": 2 / 101}, rel=0.1)
    torch.testing.assert_close(learner.shared_matrix.detach(), torch.tensor([[1.5, 1.5]]), atol=0.1, rtol=0)


def test_a_step_of_the_weights_goes_down_the_papers_loss():
    rule, alpha = GradNorm(["a", "b", "c"], alpha=0.7, rate=0.01), 0.7
    rule.first.copy_(torch.tensor([4.0, 2.0, 1.0]))
    losses = {"a": slope(1.0, 2.0, 0.0), "b": slope(0.0, 0.5, 0.0), "c": slope(3.0, 0.0, 1.0)}
    gradient(rule, losses)
    norms = torch.tensor([5.0, 0.25, 10.0], dtype=torch.float64).sqrt()
    left = torch.tensor([4.0, 4.0, 4.0], dtype=torch.float64) / torch.tensor([4.0, 2.0, 1.0])  # (own - 3)^2 is 4
    log_weights = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    pulls = log_weights.exp() * norms
    target = (pulls.mean() * (left / left.mean()) ** alpha).detach()
    ((pulls - target).abs().sum() / pulls.mean().detach()).backward()
    wanted = (-0.01 * log_weights.grad).exp()
    wanted = wanted * 3 / wanted.sum()
    torch.testing.assert_close(torch.stack(list(rule.weights().values())).double(), wanted)


def test_a_head_without_labels_takes_no_part_in_the_balance(tmp_path):
    learner = Toy([[1.0, 0.0]], a=lambda w: w.square().sum(), b=lambda w: 9 * w.square().sum(), c=lambda w: w.sum())
    rule = GradNorm(["a", "b", "c"], alpha=0.0, rate=0.02)
    run(learner, rule, tmp_path, [batch(labelled={"c": 0})], steps=200, rate=1e-4, clip=None, momentum=0.0)
    weights = rule.weights()
    assert float(weights["a"] / weights["b"]) == pytest.approx(9, rel=0.05)
    assert rule.first.isnan().tolist() == [False, False, True]
    assert all(weight.isfinite() for weight in weights.values())


def test_the_layer_is_the_last_that_every_loss_reaches():
    class Branches(Toy):
        def __init__(self):
            super().__init__([[1.0]], a=None, b=None)
            self.layers = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1), nn.BatchNorm1d(1))

        def forward(self, batch):
            early = self.layers[1](self.layers[0](self.shared_matrix))
            return {
                "a": LossSum(early.sum(), torch.ones(())),
                "b": LossSum(self.layers[2](early).sum(), torch.ones(())),
            }

        def trunk(self):
            return self.layers

    learner, rule = Branches(), GradNorm(["a", "b"], 0.0, 0.1)
    rule.backward({name: loss.sum for name, loss in learner(batch()).items()}, learner)
    assert [id(p) for p in rule._layer] == [id(learner.layers[1].weight)]


# --- in a recipe -----------------------------------------------------------------------------------------------------


def test_a_recipe_names_each_balance():
    heads = {
        "classes": Classification(classes=("a", "b")),
        "depth": Depth(),
        "normals": Normals(),
        "boxes": Detection(classes=("a",)),
    }
    build = lambda **keys: Balance(**keys).build(heads, (1, 1.0), {})  # noqa: E731
    uncertain = {name: float(w.detach()) for name, w in build(mode="uncertainty").weights().items()}
    assert uncertain == {"classes": 1.0, "depth": 0.5, "normals": 0.5, "boxes": 1.0}
    gradnorm = build(mode="gradnorm", alpha=0.5, weight_rate=0.1)
    assert (gradnorm.alpha, gradnorm.rate, set(gradnorm.weights())) == (0.5, 0.1, set(heads))
    surgery = build(mode="pcgrad", weights={"depth": 3.0})
    assert surgery.weights() == {"classes": 1.0, "depth": 3.0, "normals": 1.0, "boxes": 1.0}
    assert surgery.apart


@pytest.mark.parametrize("mode", ["equal", "uncertainty", "gradnorm"])
def test_stated_weights_are_refused_where_nothing_would_come_of_them(mode):
    with pytest.raises(ValueError, match="takes none"):
        Balance(mode=mode, weights={"depth": 2.0})
    with pytest.raises(UserError, match="takes none"):
        Balance(mode="fixed", weights={"depth": 2.0}).but(mode=mode)
