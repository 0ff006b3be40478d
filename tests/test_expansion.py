"""Expansion: algorithm 1 against a plain loop, what moves what, stops and kills, models on disk, hints."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_extending import Brightness, Light
from torch import nn

from tutelage.data.augment import Augment
from tutelage.data.mixture import Mixture
from tutelage.data.source import LabelSpace, Place
from tutelage.errors import UserError
from tutelage.files import read_json_lines
from tutelage.models.backbone import Backbone, FeatureMaps, Timm
from tutelage.models.expanded import Reconciliation
from tutelage.models.pyramid import Pyramid
from tutelage.models.student import Model
from tutelage.progress import SILENT, Bar, Progress
from tutelage.tasks import Classification, DeepLab
from tutelage.training.checkpoint import load_model
from tutelage.training.expanding import EachAlone, expand, save_expansion, source_weights
from tutelage.training.expansion import Expansion, labelled_rows, part_of
from tutelage.training.fit import batches_of
from tutelage.training.guidance import HINT, Frozen
from tutelage.training.schedule import Training
from tutelage.types import Batch, Field, HeadBatch, Label, stack

CPU = torch.device("cpu")
SIZE = 64


class PlainMaps(FeatureMaps):
    """Four strided convolutions, one a map, with norms."""

    strides = (4, 8, 16, 32)

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.widths = widths
        steps = zip((3, *widths), widths, (4, 2, 2, 2), strict=False)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 2 * s - 1, s, s - 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b, s in steps
        )

    def cut(self):
        return list(self.stages)

    def forward(self, images):
        maps = []
        for stage in self.stages:
            maps.append(stage(maps[-1] if maps else images))
        return maps


class Plain(Backbone):
    kind: Literal["plain"] = "plain"
    widths: tuple[int, ...]

    @property
    def pretrained(self):
        return False

    def blank(self):
        return self

    def build(self, root=None):
        return PlainMaps(self.widths)


def tiny(*channels: int) -> Timm:
    return Timm(name="resnet18", options={"layers": [1, 1, 1, 1], "channels": list(channels)})


BRANCHES = {"classes": Plain(widths=(8, 8, 16, 24)), "light": Plain(widths=(8, 8, 8, 16))}
RESNETS = {"classes": tiny(8, 8, 16, 24), "light": tiny(8, 8, 8, 16)}
LEVEL = Classification(classes=("dark", "bright"))
TASKS = {"classes": {"one": LEVEL, "two": LEVEL}, "light": {"map": Light()}}
SPACE = LabelSpace(("dark", "bright"))
SOURCES = {"one": 1, "two": 2, "map": 1}
SETTINGS = Training(
    steps=5,
    batch=8,
    rate=0.02,
    weight_decay=0.1,
    schedule="steps",
    clip=None,
    precision="fp32",
    augment=Augment(),
    workers=0,
    log_every=1,
    checkpoint_seconds=1000,
)
MODEL = Model(pyramid=Pyramid(width=8), size=SIZE)


RECONCILED = Reconciliation()


def expansion(seed: int = 0, reconciliation: Reconciliation | None = RECONCILED, branches=None, **more) -> Expansion:
    torch.manual_seed(seed)
    return Expansion(MODEL, TASKS, branches=branches or BRANCHES, reconciliation=reconciliation, **more)


def specialist(seed: int = 9) -> Frozen:
    torch.manual_seed(seed)
    student = MODEL.but(backbone=Plain(widths=(8, 16, 16, 8))).build({"one": LEVEL})
    for number, part in enumerate(m for m in student.modules() if isinstance(m, nn.BatchNorm2d)):
        part.running_mean.fill_(0.01 * number)  # not those of a fresh network
    return Frozen.of(student)


def mixture() -> Mixture:
    """Two sources of one head, one of another, and one of the other task."""
    kinds = {"a": ("one", "class"), "b": ("two", "class"), "c": ("two", "class"), "d": ("map", "map")}
    opened = [
        Brightness(head=head, label=label, images=10, first=100 * number).open(name, Place(Path(), Path()))
        for number, (name, (head, label)) in enumerate(kinds.items())
    ]
    return Mixture(opened, "equal", seed=1)


def run(folder: Path, learner: Expansion, alone: int, progress: Progress = SILENT, **changes) -> Expansion:
    settings = SETTINGS.but(**changes)
    how = {"seed": 3, "device": CPU, "spaces": {"one": SPACE, "two": SPACE}}
    expand(learner, mixture(), settings, alone, folder, sources=SOURCES, progress=progress, **how)
    return learner


def batch(images: int = 6, **labelled: list[int]) -> Batch:
    """Random images; head to the rows that are labelled."""
    chance = torch.Generator().manual_seed(images)
    pixels = torch.randint(0, 256, (images, 3, SIZE, SIZE), dtype=torch.uint8, generator=chance)
    heads = {}
    for head in ("one", "two", "map"):
        rows = labelled.get(head, [])
        if head == "map":
            targets = [Field(pixels[r].float().mean(0) / 255, torch.ones(SIZE, SIZE, dtype=torch.bool)) for r in rows]
        else:
            targets = [Label(torch.tensor([0.25 * (r % 4), 1 - 0.25 * (r % 4)])) for r in rows]
        heads[head] = HeadBatch(torch.tensor(rows, dtype=torch.int64), stack(targets) if rows else None)
    return Batch(pixels, heads, [f"s/{n}" for n in range(images)])


def same(one: nn.Module, other: nn.Module, **near: float) -> None:
    mine, yours = one.state_dict(), other.state_dict()
    assert mine.keys() == yours.keys()
    for name, value in mine.items():
        if near:
            torch.testing.assert_close(value, yours[name], **near, msg=lambda m, n=name: f"{n}: {m}")
        else:
            assert value.equal(yours[name]), name


def between(learner: Expansion) -> dict[str, nn.Parameter]:
    """The weights of the layers between the sub-backbones."""
    return {name: p for name, p in learner.core.named_parameters() if not name.startswith("branches.")}


# --- algorithm 1 -----------------------------------------------------------------------------------------------------


def plain_algorithm(learner: Expansion, alone: int, settings: Training, clip: float | None = None) -> None:
    """Algorithm 1 with T optimisers and plain loops; networks are only asked for their maps, features and heads."""
    learner.to(memory_format=torch.channels_last)  # as the loop lays weights out on a CPU: other sums round otherwise
    core, nets = learner.core, learner.networks

    def sgd(parameters: list[nn.Parameter]) -> torch.optim.SGD:
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.SGD(groups, lr=1.0, momentum=settings.momentum, foreach=False)

    own = {t: [*core.branches[t].parameters(), *_rest(nets[t])] for t in nets}
    optimisers = {t: sgd(parameters) for t, parameters in own.items()}
    optimisers["layers"] = sgd(list(between(learner).values()))
    rates = [0.02, 0.02, 0.02, 0.01, 0.002]  # by the paper's drops at 50, 70 and 90% of five steps
    stream = iter(
        batches_of(mixture(), learner.heads, SIZE, settings, settings.augment, seed=3, until=settings.steps)(0)
    )

    def mean_loss(task: str, head: str, features, labelled: HeadBatch) -> torch.Tensor:
        loss = nets[task].loss(head, features, labelled)
        return loss.sum / len(labelled.rows)

    def of_task(task: str, given: Batch, maps_of) -> list[torch.Tensor]:
        """One mean loss a head, of the images of its task alone."""
        rows = sorted({int(row) for head in nets[task].tasks for row in given.heads[head].rows})
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in MODEL.resolved(Path()).normalisation())
        maps = maps_of(((given.images[rows].float() - mean) / std).contiguous(memory_format=torch.channels_last))
        features = nets[task].read(maps, (SIZE, SIZE))
        found = []
        for head in nets[task].tasks:
            moved = torch.tensor([rows.index(int(row)) for row in given.heads[head].rows])
            found.append(mean_loss(task, head, features, HeadBatch(moved, given.heads[head].targets)))
        return found

    learner.train()
    for k in range(1, settings.steps + 1):
        given = next(stream)
        for optimiser in optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = rates[k - 1]
        if k <= alone:
            for task, net in nets.items():
                losses = of_task(task, given, core.branches[task])
                counts = [SOURCES[head] for head in net.tasks]
                (sum(n * loss for n, loss in zip(counts, losses, strict=True)) / sum(counts)).backward()
                if clip is not None:
                    nn.utils.clip_grad_norm_(own[task], clip)
                optimisers[task].step()
                optimisers[task].zero_grad()
        else:
            total = 0
            for task, net in nets.items():
                losses = of_task(task, given, lambda images, t=task: core.fused(images, t))
                total = total + sum(SOURCES[head] * loss for head, loss in zip(net.tasks, losses, strict=True)) / 4
            total.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(learner.parameters(), clip)
            for optimiser in optimisers.values():
                optimiser.step()
                optimiser.zero_grad()


def _rest(net) -> Iterator[nn.Parameter]:
    yield from net.heads.parameters()
    if net.pyramid is not None:
        yield from net.pyramid.parameters()


@pytest.mark.parametrize(
    ("alone", "clip", "reconciliation"),
    [
        (2, None, Reconciliation()),
        (3, 0.05, Reconciliation(direction="shallower")),
        (0, None, Reconciliation()),
        (5, 0.05, None),
    ],
)
def test_the_training_is_algorithm_1(tmp_path, alone, clip, reconciliation):
    learner = expansion(reconciliation=reconciliation)
    reference = copy.deepcopy(learner)
    reference.core.joined = True
    plain_algorithm(reference, alone, SETTINGS, clip)
    run(tmp_path, learner, alone, clip=clip)
    same(learner, reference, rtol=1e-4, atol=1e-5)
    assert not any(
        p.equal(q)
        for p, q in zip(learner.parameters(), expansion(reconciliation=reconciliation).parameters(), strict=True)
        if p.dim() > 1
    )
    rows = list(read_json_lines(tmp_path / "curve.jsonl"))
    assert [row["weights"]["two"] for row in rows] == [2 / 3] * alone + [2 / 4] * (5 - alone)


def test_nothing_moves_the_layers_before_tau_and_momentum_is_carried_across(tmp_path):
    learner = expansion()
    before = {name: p.detach().clone() for name, p in between(learner).items()}
    stop_at_join(tmp_path, learner, alone=3)
    assert all(p.equal(before[name]) for name, p in between(learner).items())  # in spite of a weight decay of 0.1
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 3
    moved = list(state["optimiser"]["state"].values())
    assert len(moved) == sum(1 for p in learner.parameters()) - len(before)
    assert all(float(entry["momentum_buffer"].abs().max()) > 0 for entry in moved)
    # the same, with the momentum forgotten at tau, ends elsewhere
    whole = run(tmp_path / "whole", expansion(), 3)
    state["optimiser"]["state"] = {}
    torch.save(state, tmp_path / "checkpoint.pt")
    forgetful = run(tmp_path, expansion(), 3)
    weight = "students.light.pyramid.norms.0.weight"
    assert not whole.state_dict()[weight].allclose(forgetful.state_dict()[weight], atol=1e-5)


def stop_at_join(folder: Path, learner: Expansion, alone: int, **changes) -> None:
    """A kill between the two phases."""

    def dies() -> None:
        raise KeyboardInterrupt

    learner.join = dies
    with pytest.raises(KeyboardInterrupt):
        run(folder, learner, alone, **changes)


# --- kills -----------------------------------------------------------------------------------------------------------


class Killed(Expansion):
    """Dies in a step."""

    at = 0
    seen = 0

    def forward(self, batch):
        if self.seen == self.at:
            raise KeyboardInterrupt
        self.seen += 1
        return super().forward(batch)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder and network of a training with tau = 3, whose weights are averaged."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder, expansion(), 3, ema=0.5)


@pytest.mark.parametrize("kills", [[2, 1], [3], [4, "join"], ["join"]])
def test_a_killed_expansion_ends_with_the_weights_of_an_undisturbed_one(tmp_path, kills, undisturbed):
    """Killed before tau, at it, in the first step beyond it, and between the phases; also where a later start begins
    with the phase alone again, whose steps are done."""
    (folder, whole), ema = undisturbed, 0.5
    for kill in kills:
        learner = expansion()
        if kill == "join":
            stop_at_join(tmp_path, learner, 3, ema=ema)
            continue
        learner.__class__, learner.at = Killed, kill
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, learner, 3, ema=ema, checkpoint_seconds=0)
    same(run(tmp_path, expansion(), 3, ema=ema), whole)
    for path in folder.rglob("weights.safetensors"):
        assert path.read_bytes() == (tmp_path / path.relative_to(folder)).read_bytes()


class Bars(Progress):
    """Keeps all bars."""

    def __init__(self) -> None:
        super().__init__(None)
        self.made: list[Bar] = []

    def bar(self, label: str, total: int, unit: str = "images") -> Bar:
        self.made.append(super().bar(label, total, unit))
        return self.made[-1]


@pytest.mark.parametrize("kill", [None, 2, 4])
def test_the_bars_of_both_phases_show_each_step_once(tmp_path, kill):
    """A worker adds up what they show."""
    if kill is not None:
        learner = expansion()
        learner.__class__, learner.at = Killed, kill
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, learner, 3, checkpoint_seconds=0)
    run(tmp_path, expansion(), 3, progress := Bars())
    batch = SETTINGS.batch
    assert [bar.total for bar in progress.made] == [3 * batch, (SETTINGS.steps - 3) * batch]
    assert [bar.done for bar in progress.made] == [bar.total for bar in progress.made]


# --- what moves what -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("direction", ["deeper", "shallower"])
def test_a_loss_reaches_its_own_task_alone(joined, direction):
    learner = expansion(reconciliation=Reconciliation(direction=direction)).train()
    learner.join() if joined else learner.alone()
    given = batch(one=[0, 1], map=[2, 3])
    for task, head in (("classes", "one"), ("light", "map")):
        learner.zero_grad(set_to_none=True)
        learner(given)[head].sum.backward()
        reached = {id(p) for p in learner.parameters() if p.grad is not None and float(p.grad.abs().max()) > 0}
        into = {id(p) for p in learner.core.reconciliation[task].parameters()} if joined else set()
        assert reached <= {id(p) for p in learner.own(task)} | into
        assert reached & into == into
        assert id(learner.core.branches[task].stages[0][0].weight) in reached


def test_every_weight_is_in_the_graph_whatever_is_labelled_and_the_core_is_there_once():
    learner = expansion(hints={"one": specialist()}).train()
    weights = list(learner.parameters())
    parts = [learner.core, learner.guides, *learner.networks["light"].children(), learner.networks["classes"].heads]
    assert len(weights) == len({id(p) for part in parts for p in part.parameters()})
    assert sum(p.numel() for p in learner.shared()) == sum(
        p.numel() for part in (learner.core, learner.networks["light"].pyramid) for p in part.parameters()
    )
    for phase in (learner.alone, learner.join):
        phase()
        for given in (batch(), batch(one=[1, 2]), batch(map=[0, 3]), batch(1), batch(one=[0, 4], two=[1], map=[2, 3])):
            learner.zero_grad(set_to_none=True)
            losses, counts = learner(given), learner.count(given)
            assert losses.keys() == counts.keys() == {"one", f"{HINT}one", "two", "map"}
            for name, loss in losses.items():
                assert float(loss.count) == float(counts[name]), name
                assert (float(loss.sum.detach()) == 0) == (float(loss.count) == 0), name
            torch.stack([loss.sum for loss in losses.values()]).sum().backward()
            assert all((p.grad is not None) == p.requires_grad for p in weights)
            assert all(p.grad.isfinite().all() for p in weights if p.grad is not None)


def test_a_task_without_an_image_changes_no_statistics_and_keeps_its_modes():
    learner = expansion().train()
    frozen = learner.core.branches["light"].stages[0][1].eval()  # a norm that somebody froze stays frozen
    before, modes = copy.deepcopy(learner.state_dict()), {n: m.training for n, m in learner.named_modules()}
    learner(batch(one=[0, 1], two=[2]))
    changed = {name for name, value in learner.state_dict().items() if not value.equal(before[name])}
    assert changed
    assert all(".branches.classes." in name for name in changed)
    assert {n: m.training for n, m in learner.named_modules()} == modes
    assert not frozen.training


@torch.no_grad()
def test_each_task_sees_the_images_with_its_labels_and_an_image_with_both_goes_to_both():
    learner = expansion().eval()
    given = batch(6, one=[1, 4], two=[4, 5], map=[0, 4])
    assert labelled_rows(given, ["one", "two"]).tolist() == [1, 4, 5]
    part = part_of(given, torch.tensor([1, 4, 5]), ["one", "two"])
    assert part.ids == ["s/1", "s/4", "s/5"]
    assert part.images.equal(given.images[[1, 4, 5]])
    assert [part.heads[head].rows.tolist() for head in ("one", "two")] == [[0, 1], [1, 2]]
    seen = {}
    for task, student in learner.networks.items():
        student.backbone.register_forward_pre_hook(lambda _, given, t=task: seen.update({t: len(given[0])}))
    losses = learner(given)
    assert seen == {"classes": 3, "light": 2}
    for task, student in learner.networks.items():  # in evaluation mode, images do not depend on one another
        for head, loss in student(given).items():
            assert float(loss.sum) == pytest.approx(float(losses[head].sum), rel=1e-5), (task, head)
            assert float(learner.count(given)[head]) == float(loss.count)


def test_the_weights_are_those_of_equation_1():
    learner = expansion(hints={"two": specialist()})
    apart, together = (source_weights(learner, SOURCES, joint, hint=3.0) for joint in (False, True))
    assert apart == {"one": 1 / 3, "two": 2 / 3, f"{HINT}two": 2.0, "map": 1.0}
    assert together == {"one": 1 / 4, "two": 2 / 4, f"{HINT}two": 1.5, "map": 1 / 4}
    with pytest.raises(UserError, match="no source that labels it"):
        source_weights(learner, {"one": 1, "two": 2}, joint=True)


def test_before_tau_the_gradient_of_each_task_is_clipped_by_itself():
    learner = expansion()
    for parameter in learner.parameters():
        parameter.grad = torch.full_like(parameter, 2.0 if parameter.dim() > 1 else 0.0)
    kept = {task: [p.grad.clone() for p in learner.own(task)] for task in TASKS}
    EachAlone({}, clip=1.5).settle(learner, {}, torch.Generator())
    for task, before in kept.items():
        norm = torch.stack([g.square().sum() for g in before]).sum().sqrt()
        for p, g in zip(learner.own(task), before, strict=True):
            torch.testing.assert_close(p.grad, g * 1.5 / norm)


def test_several_processes_find_every_gradient_in_both_phases(tmp_path):
    """torch insists on a gradient for every weight that is not frozen; the second pass would say so."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        learner = expansion(hints={"two": specialist()}).train()
        for phase in (learner.alone, learner.join):
            phase()
            network = nn.parallel.DistributedDataParallel(learner)
            for given in (batch(one=[0, 1]), batch(map=[1, 2]), batch(one=[0, 1], two=[3, 4], map=[1, 2])):
                torch.stack([loss.sum for loss in network(given).values()]).sum().backward()
                assert all((p.grad is not None) == p.requires_grad for p in learner.parameters())
                learner.zero_grad(set_to_none=True)
    finally:
        torch.distributed.destroy_process_group()


def test_in_bfloat16_a_sub_backbone_that_was_looked_at_still_learns():
    """The other task's pass casts its weights without a gradient; autocast must not hand these on."""
    learner = expansion().train()
    given = batch(one=[0, 1], map=[2, 3])
    found = []
    for precise in (True, False):
        learner.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            total = torch.stack([loss.sum for loss in learner(given).values()]).sum()
        total.backward()
        found.append({name: p.grad.norm() for name, p in learner.named_parameters() if p.dim() > 1})
    for name, norm in found[0].items():
        assert float(found[1][name]) >= 0.2 * float(norm), name


# --- what is left on disk --------------------------------------------------------------------------------------------


def test_a_state_dict_has_the_core_once_and_no_specialist():
    learner, other = (expansion(seed, hints={"two": specialist()}) for seed in (0, 1))
    state = learner.state_dict()
    assert len({value.data_ptr() for value in state.values() if value.numel()}) == len(
        [value for value in state.values() if value.numel()]
    )
    assert {name.partition(".core.")[0] for name in state if ".core." in name} == {"students.classes.backbone"}
    assert not any("specialist" in name or "teacher" in name for name in state)
    assert {name for name, _ in learner.named_parameters()} <= state.keys()
    other.load_state_dict(state)
    same(other, learner)
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({name: value for name, value in state.items() if "branches.light.stages.0.0" not in name})
    wrapped = nn.ModuleDict({"inside": other})  # with a prefix as well
    assert len(wrapped.state_dict()) == len(state)
    wrapped.load_state_dict({f"inside.{name}": value for name, value in state.items()})


def test_what_is_written_says_what_was_trained(tmp_path):
    learner = expansion(branches=RESNETS).eval()
    with torch.no_grad():
        for number, value in enumerate(learner.core.state_dict().values()):  # no norm is as it was made
            if value.is_floating_point():
                value.add_(0.01 * (number % 7))
    save_expansion(tmp_path, learner, {"one": SPACE, "two": SPACE})
    _compare(learner, tmp_path)


@torch.no_grad()
def _compare(learner: Expansion, tmp_path: Path) -> None:
    images = batch().images
    for task, student in learner.networks.items():
        saved = load_model(tmp_path / "tasks" / task, tasks=[Light])
        assert saved.spaces == {head: SPACE for head in student.tasks if head != "map"}
        wanted, found = student.features(images), saved.student.features(images)
        for head in student.tasks:
            assert saved.student.heads[head](found).equal(student.heads[head](wanted))
    whole = load_model(tmp_path)
    assert not whole.student.tasks
    assert whole.student.backbone.widths == (16, 16, 24, 40)
    each = [student.maps(images) for student in learner.networks.values()]
    for found, *wanted in zip(whole.student.maps(images), *each, strict=True):
        torch.testing.assert_close(found, torch.cat(wanted, 1))
    state = torch.random.get_rng_state()
    assert learner.backbone().backbone.core is learner.core
    assert torch.random.get_rng_state().equal(state)


def test_weights_are_loaded_and_those_that_no_task_reads_are_frozen(tmp_path):
    save_file(tiny(8, 8, 16, 24).build().net.state_dict(), tmp_path / "one.safetensors")
    save_file(tiny(8, 8, 8, 16).build().net.state_dict(), tmp_path / "two.safetensors")
    files = {"classes": "one.safetensors", "light": "two.safetensors"}
    branches = {task: part.but(weights=files[task]) for task, part in RESNETS.items()}
    learner = expansion(branches=branches, root=tmp_path)
    for task, file in files.items():
        for student in learner.networks.values():
            for name, value in load_file(tmp_path / file).items():
                assert value.equal(student.backbone.core.branches[task].net.state_dict()[name])

    class Odd(PlainMaps):
        """With a weight that no map hangs on, and one that is meant to stay as it is."""

        def __init__(self, widths):
            super().__init__(widths)
            self.spare = nn.Parameter(torch.ones(1))
            self.stages[1][0].bias.requires_grad_(False)

    class Made(Plain):
        def build(self, root=None):
            return Odd(self.widths)

    learner = expansion(branches={"classes": Made(widths=(8, 8, 8, 8)), "light": BRANCHES["light"]})
    learner.alone()
    learner.join()
    frozen = {name for name, p in learner.core.named_parameters() if not p.requires_grad}
    assert frozen == {"branches.classes.spare", "branches.classes.stages.1.0.bias"}


# --- hints -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [1, 2])
def test_a_hint_is_the_distance_to_what_the_specialist_makes_of_the_heads_images(levels):
    teacher = specialist()
    learner = expansion(hints={"two": teacher}, levels=levels).train()
    given = batch(6, one=[0, 1], two=[2, 4, 5], map=[3])
    apart = copy.deepcopy(learner)
    loss = learner(given)[f"{HINT}two"]
    # the guide's norm sees the head's rows, the sub-backbone's norms all rows of the task
    student = apart.networks["classes"]
    maps = [m[[2, 3, 4]] for m in student.maps(given.images[[0, 1, 2, 4, 5]])]
    wanted = apart.guides["two"](maps, teacher(given.images[[2, 4, 5]]))
    torch.testing.assert_close(loss.sum, wanted.sum)
    assert float(learner.count(given)[f"{HINT}two"]) == float(loss.count) == float(wanted.count)
    loss.sum.backward()
    reached = {name for name, p in learner.named_parameters() if p.grad is not None and float(p.grad.abs().max()) > 0}
    assert {name for name, _ in learner.named_parameters() if name.startswith("guides.")} <= reached
    assert any(".branches.classes." in name for name in reached)
    assert not any(".branches.light." in name or ".heads." in name for name in reached)


def test_specialists_are_not_trained_and_hints_change_what_is(tmp_path):
    teacher = specialist()
    before = teacher(batch().images)
    hinted = expansion(hints={"one": teacher})
    plain = expansion()
    with torch.no_grad():
        for name, value in plain.state_dict().items():
            assert value.equal(hinted.state_dict()[name])  # the same start
    sources = {"sources": SOURCES, "seed": 3, "device": CPU, "spaces": {}}
    expand(hinted, mixture(), SETTINGS, 2, tmp_path / "hinted", hint_weight=2.0, **sources)
    expand(plain, mixture(), SETTINGS, 2, tmp_path / "plain", **sources)
    assert all(a.equal(b) for a, b in zip(teacher(batch().images), before, strict=True))
    rows = list(read_json_lines(tmp_path / "hinted" / "curve.jsonl"))
    assert rows[0]["weights"][f"{HINT}one"] == pytest.approx(2 / 3)
    own, other = ("classes", "light")
    weights = [
        {task: learner.core.branches[task].stages[0][0].weight for task in (own, other)} for learner in (hinted, plain)
    ]
    assert not weights[0][own].allclose(weights[1][own], rtol=1e-3)
    assert not any("guide" in name for name in load_file(tmp_path / "hinted" / "weights.safetensors"))


# --- what is refused -------------------------------------------------------------------------------------------------


def test_what_leads_nowhere_is_refused_before_a_step(tmp_path):
    for alone, reconciliation, said in (
        (6, None, "do not lie inside"),
        (-1, None, "do not lie inside"),
        (5, Reconciliation(), "would never learn"),
    ):
        with pytest.raises(UserError, match=said):
            run(tmp_path / "never", expansion(reconciliation=reconciliation), alone)
    with pytest.raises(UserError, match="no source that labels it"):
        expand(expansion(), mixture(), SETTINGS, 2, tmp_path / "never", sources={}, seed=0, device=CPU, spaces={})
    assert not (tmp_path / "never").exists()
    for tasks, branches, hints, said in (
        ({}, {}, {}, "needs a task"),
        ({"classes": {}}, BRANCHES, {}, "no head"),
        ({"classes": {"one": LEVEL}, "light": {"one": LEVEL}}, BRANCHES, {}, "of two tasks, 'classes' and 'light'"),
        (TASKS, {"classes": BRANCHES["classes"]}, {}, "'light' has no sub-backbone"),
        ({"classes": {"one": LEVEL}}, BRANCHES, {}, "'light' has no head"),
        (TASKS, BRANCHES, {"three": specialist()}, "a hint names no head"),
        (
            {**TASKS, "light": {"map": DeepLab(classes=("a", "b"))}},
            RESNETS,
            {},
            "dilated to stride 16, which an expanded",
        ),
    ):
        with pytest.raises(UserError, match=said):
            Expansion(MODEL, tasks, branches=branches, hints=hints)
