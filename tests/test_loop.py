"""The training loop on a network of a few numbers: stops and resumes, with every balance of losses."""

import copy
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from test_extending import Brightness, Tiny
from timm.layers import Conv2dSame
from torch import nn

from tutelage.data.augment import Augment
from tutelage.data.mixture import Mixture
from tutelage.data.source import Place
from tutelage.files import read_json_lines
from tutelage.models.learner import Learner
from tutelage.models.student import Model
from tutelage.progress import Bar, Progress
from tutelage.tasks import Classification
from tutelage.tasks.task import Frame
from tutelage.training import loop, precision
from tutelage.training.balance import Balance
from tutelage.training.checkpoint import load_state, save_state
from tutelage.training.evaluate import prepare
from tutelage.training.fit import build, fit
from tutelage.training.gradients import GradNorm, PCGrad
from tutelage.training.loop import Diverged, train
from tutelage.training.precision import autocast_dtype, place
from tutelage.training.rules import Uncertainty, Weighted
from tutelage.training.schedule import Training
from tutelage.types import Batch, Field, HeadBatch, Label, LossSum

CPU = torch.device("cpu")
HEADS = ("a", "b", "c")
RULES = {
    "equal": lambda: Weighted(dict.fromkeys(HEADS, 1.0)),
    "uncertainty": lambda: Uncertainty({"a": Field, "b": Label, "c": Field}),
    "gradnorm": lambda: GradNorm(list(HEADS), alpha=0.5, rate=0.05),
    "pcgrad": lambda: PCGrad(dict.fromkeys(HEADS, 1.0)),
}
SETTINGS = Training(steps=9, batch=8, rate=0.05, warmup=2, precision="fp32", checkpoint_seconds=1000)


class Regressions(Learner):
    """Three heads on one layer; head number h regresses colour h of a pixel, times 3^h, where it is labelled."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(5)
        self.layer = nn.Linear(3, 4)
        self.drop = nn.Dropout(dropout)
        self.outputs = nn.ModuleDict({name: nn.Linear(4, 1) for name in HEADS})

    def count(self, batch):
        return {name: torch.tensor(float(len(batch.heads[name].rows))) for name in HEADS}

    def forward(self, batch):
        pixels = batch.images[:, :, 0, 0] / 255
        features, counts = self.drop(torch.tanh(self.layer(pixels))), self.count(batch)
        losses = {}
        for number, name in enumerate(HEADS):
            error = self.outputs[name](features)[:, 0] - pixels[:, number] * 3**number
            losses[name] = LossSum(error[batch.heads[name].rows].square().sum(), counts[name])
        return losses

    def trunk(self):
        return self.layer


def micro_batches(first, accumulate=1):
    """Those from a step on: of the same images however they are cut, one in three unlabelled a head."""
    rows = 8 // accumulate
    for number in count(first * accumulate):
        start = number * rows
        images = [torch.randint(0, 256, (3, 1, 1), generator=_chance(i)) for i in range(start, start + rows)]
        labelled = {name: [row for row in range(rows) if (start + row + h) % 3] for h, name in enumerate(HEADS)}
        heads = {name: HeadBatch(torch.tensor(r, dtype=torch.int64), None) for name, r in labelled.items()}
        yield Batch(torch.stack(images).to(torch.uint8), heads, [f"s/{i}" for i in range(start, start + rows)])


def _chance(image):
    return torch.Generator().manual_seed(image)


def run(folder, rule="equal", dropout=0.0, batches=None, until=None, progress=None, **changes):
    """A training, or a leg of it; the network and the rule as they are afterwards, and whether it came to its end."""
    settings, learner, balance = SETTINGS.but(**changes), Regressions(dropout), RULES[rule]()
    batches = batches or (lambda first: micro_batches(first, settings.accumulate))
    more = {} if progress is None else {"progress": progress}
    done = train(learner, settings, balance, batches, folder, seed=3, device=CPU, until=until, **more)
    return learner.state_dict() | {f"rule.{name}": value for name, value in balance.state_dict().items()}, done


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.equal(other[name]), name


# --- stops on the way ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_a_training_in_three_legs_ends_with_the_bits_of_one_in_one_go(tmp_path, rule):
    how = {"rule": rule, "dropout": 0.3, "accumulate": 2, "ema": 0.8}
    whole, done = run(tmp_path / "whole", **how)
    assert done
    rungs = [run(tmp_path / "legs", until=until, **how) for until in (3, 7, 20)]
    assert [done for _, done in rungs] == [False, False, True]
    same(rungs[-1][0], whole)
    rows = [list(read_json_lines(tmp_path / name / "curve.jsonl")) for name in ("whole", "legs")]
    told = [[(row["step"], row["loss"], row["heads"], row["weights"]) for row in table] for table in rows]
    assert told[0] == told[1]


def test_a_stop_is_made_once_and_takes_no_more_batches_than_it_needs(tmp_path):
    seen = []

    def batches(first):
        for batch in islice(micro_batches(first), 4 - first):
            seen.append(batch.ids[0])
            yield batch

    stopped, done = run(tmp_path, batches=batches, until=4)
    assert not done
    assert len(seen) == 4
    again, done = run(tmp_path, batches=batches, until=4)  # as after a kill in what followed the stop
    assert not done
    assert len(seen) == 4
    same(again, stopped)
    further, _ = run(tmp_path, batches=batches, until=2)  # the checkpoint is further already, and stays so
    same(further, stopped)
    same(run(tmp_path)[0], run(tmp_path / "whole")[0])


def test_at_a_stop_the_network_has_the_weights_that_it_would_deliver(tmp_path):
    averaged, _ = run(tmp_path / "averaged", until=5, ema=0.9)
    trained, _ = run(tmp_path / "trained", until=5)
    state = torch.load(tmp_path / "averaged" / "checkpoint.pt", weights_only=True)
    same(averaged, dict(state["average"]))
    same(trained, dict(state["student"]))
    assert not averaged["layer.weight"].equal(trained["layer.weight"])


def test_a_killed_training_goes_on_from_its_checkpoint(tmp_path):
    whole, _ = run(tmp_path / "whole", rule="gradnorm", dropout=0.3)

    def dies(first):
        yield from islice(micro_batches(first), 6)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", rule="gradnorm", dropout=0.3, batches=dies, checkpoint_seconds=0)
    firsts = []
    resumed, _ = run(
        tmp_path / "killed", rule="gradnorm", dropout=0.3, batches=lambda n: (firsts.append(n), micro_batches(n))[1]
    )
    assert firsts == [6]
    same(resumed, whole)


@pytest.mark.parametrize("stops", [[None], [3, 7, None], [4, None], [1, 2, None]])
@pytest.mark.parametrize("known", [True, False])
def test_the_curve_tells_the_speed_of_what_was_trained_since_whatever_stops_there_were(
    tmp_path, monkeypatch, stops, known
):
    now = [0.0]  # a batch takes a second
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def batches(first):
        for batch in micro_batches(first):
            now[0] += 1
            yield batch

    for until in stops:
        now[0] += 1000
        run(tmp_path, until=until, batches=batches, log_every=4)
        state = load_state(tmp_path / "checkpoint.pt")
        if not known and state is not None:  # as it was written before
            state.pop("seconds", None)
            save_state(tmp_path / "checkpoint.pt", state)
    rows = list(read_json_lines(tmp_path / "curve.jsonl"))
    assert [row["step"] for row in rows] == [0, 4, 8]
    assert [row["images_per_second"] for row in rows] == pytest.approx([8.0, 8.0, 8.0])
    if known:
        assert [row["seconds"] for row in rows] == [1, 5, 9]


def test_the_bar_ends_at_the_stop(tmp_path):
    totals = []

    class Told(Progress):
        def bar(self, label, total, unit="images"):
            totals.append((label, total))
            return Bar(label, total, unit, None)

    run(tmp_path, until=4, progress=Told(None))
    assert totals == [("training", 4 * 8)]


def test_a_student_that_stops_is_not_saved_before_its_end(tmp_path):
    sources = [Brightness(head="it", label="class", images=12).open("it", Place(Path(), Path()))]
    settings = Training(steps=3, batch=4, rate=0.02, workers=0, augment=Augment(), precision="fp32")

    def leg(until):
        student = build(
            Model(backbone=Tiny(), size=32), {"it": Classification(classes=("dark", "bright"))}, 0, "s", Path()
        )
        rule = Balance().build(["it"], (4, 0.02), {})
        return fit(
            student, Mixture(sources, seed=1), settings, rule, tmp_path, seed=1, device=CPU, spaces={}, until=until
        )

    assert leg(2) is False
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "curve.jsonl"}
    assert leg(None) is True
    assert (tmp_path / "model.yaml").is_file()


# --- every balance in the loop ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_accumulated_micro_batches_do_what_the_whole_batch_does(tmp_path, rule):
    whole, _ = run(tmp_path / "whole", rule)
    cut, _ = run(tmp_path / "cut", rule, accumulate=4)
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert not whole["layer.weight"].equal(Regressions().layer.weight)


def test_the_balances_differ(tmp_path):
    found = [run(tmp_path / rule, rule)[0]["layer.weight"] for rule in RULES]
    assert all(not a.allclose(b, rtol=1e-3) for n, a in enumerate(found) for b in found[:n])


@pytest.mark.parametrize("rule", RULES)
def test_a_loss_that_is_no_number_is_refused_whatever_the_balance(tmp_path, rule):
    class Broken(Regressions):
        def forward(self, batch):
            losses = super().forward(batch)
            return losses | {"b": LossSum(losses["b"].sum * float("nan"), losses["b"].count)}

    learner, balance = Broken(), RULES[rule]()
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    with pytest.raises(Diverged, match="head b is nan"):
        train(learner, SETTINGS, balance, micro_batches, tmp_path, seed=3, device=CPU)
    same(learner.state_dict(), before)


def test_the_curve_shows_the_weights_in_force(tmp_path):
    run(tmp_path, "uncertainty", steps=3, log_every=1)
    rows = list(read_json_lines(tmp_path / "curve.jsonl"))
    assert rows[0]["weights"] == {"a": 0.5, "b": 1.0, "c": 0.5}
    assert rows[0]["loss"] == pytest.approx(sum(rows[0]["weights"][h] * rows[0]["heads"][h] for h in HEADS))
    assert rows[2]["weights"] != rows[0]["weights"]


# --- precision


@pytest.mark.parametrize(("native", "wanted"), [(True, torch.bfloat16), (False, None)])
def test_a_gpu_computes_in_bfloat16_where_it_does_so_natively(monkeypatch, native, wanted):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert autocast_dtype("auto", torch.device("cuda")) == wanted


def test_depthwise_convolutions_of_a_cpu_compute_in_float32_and_others_as_autocast_says():
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(4, 8, 1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        Conv2dSame(8, 8, 3, stride=2, groups=8),  # timm's, which pads as TensorFlow does
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
    )
    placed = copy.deepcopy(plain)
    for _ in range(2):  # twice is once
        place(placed, CPU, torch.bfloat16)
    assert list(placed.state_dict()) == list(plain.state_dict())
    maps = torch.randn(2, 4, 15, 15).to(memory_format=torch.channels_last)
    for one, other in zip(placed, plain.to(memory_format=torch.channels_last), strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            found, low = one(maps), other(maps)
        exact = other(maps.float())
        assert isinstance(one, type(other))
        assert torch.equal(found, exact.to(maps.dtype) if 1 < one.groups == one.in_channels else low)
        assert torch.equal(one(maps.float()), exact)  # without autocast nothing changes
        found.float().sum().backward()
        maps = found.detach()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in placed.parameters())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_network_is_laid_out_for_convolutions_that_are_quick(dtype):
    network = timm.create_model("tf_efficientnet_lite0", num_classes=2)
    kinds = [type(module) for module in network.modules()]
    place(network, CPU, dtype)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in network.parameters() if p.dim() == 4)
    changed = [old for old, new in zip(kinds, map(type, network.modules()), strict=True) if old is not new]
    assert {kind.__name__ for kind in changed} == (set() if dtype is None else {"Conv2d", "Conv2dSame"})
    assert len(changed) == (0 if dtype is None else 16)


class Lowly(Regressions):
    """Says in which precision it computes."""

    def __init__(self, dropout=0.0):
        super().__init__(dropout)
        self.seen = set()

    def forward(self, batch):
        self.seen.add(self.layer(batch.images[:, :, 0, 0] / 255).dtype)
        return super().forward(batch)


@pytest.mark.parametrize("rule", RULES)
def test_in_bf16_it_computes_in_bfloat16_keeps_float32_weights_and_resumes(tmp_path, rule):
    def leg(name, batches=micro_batches, **changes):
        learner, settings = Lowly(), SETTINGS.but(precision="bf16", ema=0.8, **changes)
        train(learner, settings, RULES[rule](), batches, tmp_path / name, seed=3, device=CPU)
        assert learner.seen == {torch.bfloat16}
        return learner.state_dict()

    def dies(first):
        yield from islice(micro_batches(first), 5)
        raise KeyboardInterrupt

    whole, (exact, _) = leg("whole"), run(tmp_path / "exact", rule, ema=0.8)
    assert all(value.dtype == torch.float32 for value in whole.values())
    for name, value in whole.items():
        torch.testing.assert_close(value, exact[name], rtol=0.1, atol=0.05)
    assert not whole["layer.weight"].equal(exact["layer.weight"])
    with pytest.raises(KeyboardInterrupt):
        leg("killed", dies, checkpoint_seconds=0)
    same(leg("killed"), whole)


@pytest.mark.parametrize(
    ("asked", "native", "wanted"),
    [("fp32", True, None), ("bf16", False, torch.bfloat16), ("auto", True, torch.bfloat16), ("auto", False, None)],
)
def test_a_cpu_computes_as_it_is_asked_and_else_in_what_it_knows(monkeypatch, asked, native, wanted):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": native})
    assert autocast_dtype(asked, CPU) == wanted


@pytest.mark.parametrize("native", [True, False])
def test_a_prediction_is_computed_in_the_best_precision_and_told_in_float32(monkeypatch, native):
    monkeypatch.setattr(precision, "_cpu_computes_bf16", lambda: native)
    torch.manual_seed(0)
    ready = prepare(Model(backbone=Tiny(), size=32).build({"it": Classification(classes=("a", "b"))}), CPU)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    seen = []
    ready.student.backbone.register_forward_hook(lambda module, images, maps: seen.append(maps[-1].dtype))
    assert ready.output(images, "it").dtype == torch.float32
    assert seen == [torch.bfloat16 if native else torch.float32]
    said = ready.predict(images, [Frame(32, 32, 32, 32)] * 2, ["it"])["it"]
    assert [label.probs.dtype for label in said] == [torch.float32] * 2


def curve(folder):
    return [(row["step"], row["loss"], row["heads"]) for row in read_json_lines(folder / "curve.jsonl")]


def test_what_was_told_after_the_last_checkpoint_of_a_killed_training_is_told_once(tmp_path):
    def dies(first):
        yield from islice(micro_batches(first), 4)
        raise KeyboardInterrupt

    run(tmp_path / "whole", log_every=1)
    run(tmp_path / "killed", log_every=1, until=3)  # leaves a checkpoint
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", log_every=1, batches=dies)  # and none beyond it
    assert [step for step, *_ in curve(tmp_path / "killed")] == list(range(7))
    run(tmp_path / "killed", log_every=1)
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")


class Steep(Regressions):
    """From the fourth step on its loss is a number, and its gradient is none."""

    steps = 0

    def forward(self, batch):
        losses = super().forward(batch)
        self.steps += 1
        if self.steps > 3:
            losses["b"] = LossSum(losses["b"].sum + (0 * self.layer.weight).sum().sqrt(), losses["b"].count)
        return losses


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_that_is_no_number_moves_no_weight_and_the_curve_until_then_is_kept(tmp_path, rule, clip):
    learner, before = Steep(), []

    def batches(first):
        for given in micro_batches(first):
            before.append(copy.deepcopy(learner.state_dict()))
            yield given

    with pytest.raises(Diverged, match="step 3: the gradient is nan") as caught:
        train(learner, SETTINGS.but(log_every=1, clip=clip), RULES[rule](), batches, tmp_path, seed=3, device=CPU)
    assert caught.value.record.startswith("s/24, s/25")
    same(learner.state_dict(), before[3])
    assert [step for step, *_ in curve(tmp_path)][:3] == [0, 1, 2]


class Normed(Regressions):
    """With a batch norm."""

    def __init__(self, dropout=0.0):
        super().__init__(dropout)
        self.layer = nn.Sequential(self.layer, nn.BatchNorm1d(4))


def test_of_averaged_weights_the_statistics_are_the_last_ones(tmp_path):
    ends = {}
    for ema in (None, 0.8):
        learner = Normed()
        train(learner, SETTINGS.but(ema=ema), RULES["equal"](), micro_batches, tmp_path / f"{ema}", seed=3, device=CPU)
        ends[ema] = learner.state_dict()
    statistics = {name for name in ends[None] if "running" in name or "batches" in name}
    assert len(statistics) == 3
    for name, value in ends[None].items():
        assert value.equal(ends[0.8][name]) == (name in statistics), name
