"""The expanded backbone: equation 2 against a plain loop, who learns from what, and that cut backbones stay whole."""

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tutelage.errors import UserError
from tutelage.models.backbone import Expanded, FeatureMaps, SpineNet, Timm, Torchvision
from tutelage.models.expanded import Reconciliation, weights_of
from tutelage.models.pyramid import Pyramid
from tutelage.models.student import Model
from tutelage.part import parse
from tutelage.tasks import Classification
from tutelage.training.checkpoint import load_model, save_model

WIDTHS = {"a": (8, 16, 24, 32), "b": (16, 8, 8, 24), "c": (8, 8, 16, 16)}

VIT = Timm(name="vit_tiny_patch16_224", options={"depth": 1, "embed_dim": 24})


def _resnet(*channels, **options):
    return Timm(name="resnet18", options={"layers": [1, 1, 1, 1], "channels": list(channels), **options})


def _core(tasks="ab", direction="deeper", kernel=1, seed=0, mixed=True):
    """An expanded backbone in float64 with weights and statistics that are nowhere 0 or 1."""
    torch.manual_seed(seed)
    branches = {t: _resnet(*WIDTHS[t if mixed else "a"]) for t in tasks}
    core = Expanded(branches=branches, reconciliation=Reconciliation(direction=direction, kernel=kernel)).build().core
    with torch.no_grad():
        for tensor in (*core.parameters(), *(b for n, b in core.named_buffers() if n.endswith(("mean", "var")))):
            tensor.add_(0.1 * torch.rand_like(tensor))
    return core.double()


def _images(count=2, height=64, width=64, seed=1):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _stages(branch):
    """The four stages of a ResNet, written out."""
    net = branch.net
    return [
        lambda x: net.layer1(net.maxpool(net.act1(net.bn1(net.conv1(x))))),
        lambda x: net.layer2(x),
        lambda x: net.layer3(x),
        lambda x: net.layer4(x),
    ]


def _gamma(core, k, t, j, i, maps, sizes):
    """gamma_{j -> i}^{k -> t}: one gamma_b, then gamma_a (j <= i) or gamma_c (j >= i) as often as needed."""
    link = core.reconciliation[t][k]
    maps = F.conv2d(maps.detach(), link.across[j].weight, link.across[j].bias)
    for step in range(j, i):
        weight = link.along[step].weight
        maps = F.conv2d(maps, weight, stride=2, padding=weight.shape[2] // 2)
    for step in reversed(range(i, j)):
        weight = link.along[step].weight
        maps = F.conv2d(F.interpolate(maps, size=sizes[step]), weight, padding=weight.shape[2] // 2)
    return maps


def _equation_2(core, images, shallower=False):
    """F of every task, term by term."""
    tasks, levels = list(core.branches), range(4)
    stages = {t: _stages(core.branches[t]) for t in tasks}
    own, fused = {t: [] for t in tasks}, {t: [] for t in tasks}
    if shallower:  # the others run first, alone
        for t in tasks:
            for i in levels:
                own[t].append(stages[t][i](own[t][-1] if i else images))
    sizes = [(-(-images.shape[2] // s), -(-images.shape[3] // s)) for s in (4, 8, 16, 32)]
    for i in levels:
        now = {t: stages[t][i](fused[t][-1] if i else images) for t in tasks}
        if not shallower:
            for t in tasks:
                own[t].append(now[t])
        for t in tasks:
            total = now[t]
            for k in tasks:
                if k != t:
                    for j in range(i, 4) if shallower else range(i + 1):
                        total = total + _gamma(core, k, t, j, i, own[k][j], sizes)
            fused[t].append(total)
    return fused


def _loss(maps):
    return sum((m * torch.linspace(-1, 2, m.numel(), dtype=m.dtype).view_as(m)).mean() for m in maps)


# --- equation 2 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["deeper", "shallower"])
@pytest.mark.parametrize(
    ("tasks", "kernel", "size"), [("ab", 1, (64, 64)), ("abc", 3, (64, 64)), ("abc", 1, (70, 45)), ("ab", 3, (39, 97))]
)
def test_features_are_equation_2(tasks, kernel, size, direction):
    core, images = _core(tasks, direction, kernel).eval(), _images(2, *size)
    with torch.no_grad():
        expected = _equation_2(core, images, direction == "shallower")
        found = core.all(images)
        for task in tasks:
            alone = core.fused(images, task)
            for level in range(4):
                torch.testing.assert_close(found[task][level], expected[task][level])
                torch.testing.assert_close(alone[level], expected[task][level])
                assert alone[level].shape[1] == core.widths[task][level]


@pytest.mark.parametrize("direction", ["deeper", "shallower"])
@pytest.mark.parametrize("count", [0, 1])
def test_no_image_and_a_single_one(count, direction):
    core = _core("ab", direction, 3).eval()
    two = core.fused(_images(2), "a")
    for level, found in enumerate(core.fused(_images(2)[:count], "a")):
        torch.testing.assert_close(found, two[level][:count])


@pytest.mark.parametrize("direction", ["deeper", "shallower"])
def test_gradients_are_those_of_the_detached_equation(direction):
    core, images = _core("abc", direction, 3).train(), _images()
    plain = copy.deepcopy(core)
    _loss(core.fused(images, "b")).backward()
    for task in "ac":
        plain.branches[task].eval()
    reference = _own_mode_last(plain, images, "b") if direction == "shallower" else _equation_2(plain, images)["b"]
    _loss(reference).backward()
    for (name, found), expected in zip(core.named_parameters(), plain.parameters(), strict=True):
        learns = name.startswith(("branches.b.", "reconciliation.b."))
        assert (found.grad is not None) == learns, name
        if learns:
            torch.testing.assert_close(found.grad, expected.grad, msg=name)


def _own_mode_last(core, images, task):
    """F of one task from shallower layers: equation 2 above would run its sub-backbone twice."""
    with torch.no_grad():
        own = {k: core.branches[k](images) for k in core.branches if k != task}
    sizes, fused = [m.shape[2:] for m in next(iter(own.values()))], []
    for i, stage in enumerate(_stages(core.branches[task])):
        total = stage(fused[-1] if i else images)
        for k in own:
            for j in range(i, 4):
                total = total + _gamma(core, k, task, j, i, own[k][j], sizes)
        fused.append(total)
    return fused


# --- who learns from what --------------------------------------------------------------------------------------------


def _leaves(maps):
    """Addresses of the parameters in the graph of some maps."""
    todo, seen, found = [m.grad_fn for m in maps], set(), set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad":
            found.add(id(node.variable))
        todo += [following for following, _ in node.next_functions]
    return found


@pytest.mark.parametrize("direction", ["deeper", "shallower"])
def test_no_graph_of_another_sub_backbone_is_held(direction):
    core, images = _core("abc", direction).train(), _images()
    for task in "abc":
        own = {id(p) for p in (*core.branches[task].parameters(), *core.reconciliation[task].parameters())}
        assert _leaves(core.fused(images, task)) == own
        assert _leaves(core.all(images)[task]) == own


def test_what_is_kept_for_gradients_is_the_levels_alone():
    core, images = _core("ab").train(), _images()

    def kept(run):
        held = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: (held.update({t.data_ptr(): t.numel()}), t)[1], lambda t: t
        ):
            maps = run()
        assert maps
        return sum(held.values())

    weights = sum(p.numel() for p in core.reconciliation["a"].parameters())
    received = [w * (64 // s) ** 2 * 2 for w, s in zip(core.widths["b"], core.strides, strict=True)]  # into gamma_b
    carried = [w * (64 // s) ** 2 * 2 for w, s in zip(core.widths["a"], core.strides, strict=True)]  # into gamma_a
    more = kept(lambda: core.fused(images, "a")) - kept(lambda: core.branches["a"](images))
    assert 0 < more <= sum(received) + 2 * sum(carried) + weights


@pytest.mark.parametrize("direction", ["deeper", "shallower"])
def test_the_others_are_watched_as_they_are(direction):
    core = _core("ab", direction).train()
    core.branches["b"].net.bn1.eval()  # a mode of its own
    modes = {name: module.training for name, module in core.named_modules()}
    before = {name: value.clone() for name, value in core.named_buffers()}
    core.fused(_images(), "a")
    assert {name: module.training for name, module in core.named_modules()} == modes
    for name, value in core.named_buffers():
        assert value.equal(before[name]) == name.startswith("branches.b."), name
    hook = core.branches["a"].net.layer3.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        core.fused(_images(), "a")
    hook.remove()
    assert {name: module.training for name, module in core.named_modules()} == modes
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("direction", ["deeper", "shallower"])
def test_all_at_once_counts_each_batch_once(direction):
    core = _core("ab", direction).train()
    start = copy.deepcopy(core)
    core.all(_images())
    for task in "ab":
        assert int(core.branches[task].net.bn1.num_batches_tracked) == 1
        start.branches[task].net.bn1(start.branches[task].net.conv1(_images()))
        assert core.branches[task].net.bn1.running_mean.equal(start.branches[task].net.bn1.running_mean)
    with torch.no_grad():
        assert not any(m.requires_grad for maps in core.all(_images()).values() for m in maps)


@pytest.mark.parametrize("direction", ["deeper", "shallower"])
def test_weights_that_were_watched_learn_later_in_the_same_autocast(direction):
    start, images = _core("ab", direction).float().train(), [_images(seed=s).float() for s in (1, 2)]

    def gradients(together):
        core = copy.deepcopy(start)  # the statistics move
        if together:
            with torch.autocast("cpu", torch.bfloat16):
                maps = [core.fused(images[0], "a"), core.fused(images[1], "b")]
        else:
            maps = []
            for task, one in zip("ab", images, strict=True):
                with torch.autocast("cpu", torch.bfloat16):
                    maps.append(core.fused(one, task))
        assert all(m.isfinite().all() for found in maps for m in found)
        sum(_loss([m.float() for m in found]) for found in maps).backward()
        return {name: parameter.grad for name, parameter in core.named_parameters()}

    together, apart = gradients(True), gradients(False)
    assert all(gradient is not None for gradient in together.values())
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, apart[name], msg=name)


@pytest.mark.parametrize("linked", ["not joined", "no layers", "one task"])
def test_alone_is_the_plain_backbone_and_nobody_else_runs(linked):
    tasks = "a" if linked == "one task" else "ab"
    branches = {t: _resnet(*WIDTHS[t]) for t in tasks}
    layers = None if linked == "no layers" else Reconciliation()
    core = Expanded(branches=branches, reconciliation=layers).build().core.eval()
    core.joined = linked != "not joined"
    if len(tasks) > 1:
        core.branches["b"].net.conv1.register_forward_hook(lambda *_: 1 / 0)
    images = _images().float()
    assert all(x.equal(y) for x, y in zip(core.fused(images, "a"), core.branches["a"](images), strict=True))
    assert (len(core.reconciliation) == 0) == (linked != "not joined")


@pytest.mark.parametrize("direction", ["deeper", "shallower"])
def test_features_of_all_tasks_stand_side_by_side(direction):
    part = Expanded(branches={t: _resnet(*WIDTHS[t]) for t in "ab"}, reconciliation=Reconciliation(direction=direction))
    maps = part.build().train()
    assert maps.widths == (24, 24, 32, 56)
    assert maps.strides == (4, 8, 16, 32)
    found = maps(_images().float())
    assert [m.shape[1] for m in found] == [24, 24, 32, 56]
    _loss(found[-1:]).backward()
    assert all(p.grad is not None for p in maps.parameters())
    maps.eval()
    every = maps.core.all(_images().float())
    for level, one in enumerate(maps(_images().float())):
        assert one.equal(torch.cat([every["a"][level], every["b"][level]], 1))


def test_sizes_follow_the_receiver_where_backbones_round_differently():
    down = Timm(name="convnext_atto", options={"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]})
    for direction in ("deeper", "shallower"):
        layers = Reconciliation(direction=direction, kernel=3)
        core = Expanded(branches={"up": _resnet(*WIDTHS["a"]), "down": down}, reconciliation=layers).build().core
        found = core.eval().all(_images(1, 70, 70).float())
        assert [m.shape[2] for m in found["up"]] == [18, 9, 5, 3]
        assert [m.shape[2] for m in found["down"]] == [17, 8, 4, 2]
        maps = Expanded(branches={"up": _resnet(*WIDTHS["a"]), "down": down}).build()(_images(2, 70, 70).float())
        assert [tuple(m.shape[1:]) for m in maps] == [(16, 18, 18), (32, 9, 9), (48, 5, 5), (64, 3, 3)]


# --- the layers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [1, 3])
def test_layers_start_as_glorot_and_bengio_say(kernel):
    torch.manual_seed(0)
    wide = {t: _resnet(64, 96, 128, 160) for t in "ab"}
    link = Expanded(branches=wide, reconciliation=Reconciliation(kernel=kernel)).build().core.reconciliation["a"]["b"]
    assert all(layer.bias is None for layer in link.along)
    assert all(layer.bias.count_nonzero() == 0 for layer in link.across)
    pairs = [(layer, w, w, 1) for layer, w in zip(link.across, (64, 96, 128, 160), strict=True)]
    pairs += [(layer, *two, kernel) for layer, two in zip(link.along, pairwise((64, 96, 128, 160)), strict=True)]
    for layer, inputs, outputs, side in pairs:
        bound = (6 / ((inputs + outputs) * side**2)) ** 0.5
        assert layer.weight.shape == (outputs, inputs, side, side)
        assert layer.weight.abs().max() <= bound
        assert float(layer.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.03)


@pytest.mark.parametrize("direction", ["deeper", "shallower"])
def test_layers_that_start_at_zero_change_nothing_and_learn(direction):
    torch.manual_seed(0)
    branches = {t: _resnet(*WIDTHS[t]) for t in "ab"}
    core = Expanded(branches=branches, reconciliation=Reconciliation(direction=direction, initial="zero")).build().core
    joined = core.eval().fused(_images().float(), "a")
    core.joined = False
    for ours, theirs in zip(joined, core.fused(_images().float(), "a"), strict=True):
        assert ours.equal(theirs)
    sum(m.square().sum() for m in joined).backward()
    link = core.reconciliation["a"]["b"]
    assert all(layer.weight.grad.count_nonzero() > 0 for layer in link.across)
    assert all(layer.weight.count_nonzero() > 0 for layer in link.along)


@pytest.mark.parametrize(("direction", "kernel"), [("deeper", 1), ("shallower", 3)])
def test_weights_are_counted(direction, kernel):
    counted = weights_of(_core("abc", direction, kernel))
    expected = 0
    for t in "abc":
        for k in set("abc") - {t}:
            expected += sum(x * y + y for x, y in zip(WIDTHS[k], WIDTHS[t], strict=True))
            expected += sum(x * y * kernel**2 for x, y in pairwise(WIDTHS[t]))
    plain = {t: sum(p.numel() for p in _resnet(*WIDTHS[t]).build().parameters()) for t in "abc"}
    assert counted == {**plain, "reconciliation": expected}


# --- the part in a recipe --------------------------------------------------------------------------------------------


def test_a_student_on_one_task_freezes_the_others_and_travels(tmp_path):
    heads = {"x": Classification(classes=("one", "two"))}
    backbone = Expanded(branches={t: _resnet(*WIDTHS[t]) for t in "ab"}, output="b")
    torch.manual_seed(0)
    student = Model(backbone=backbone, pyramid=Pyramid(width=8), size=64).build(heads).eval()
    free = {name for name, p in student.backbone.named_parameters() if p.requires_grad}
    own = {
        n
        for n, _ in student.backbone.named_parameters()
        if n.startswith(("core.branches.b.", "core.reconciliation.b."))
    }
    assert free == own
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    save_model(tmp_path, student, {})
    again = load_model(tmp_path).student
    assert again.model == student.model
    assert again.features(images).embedding.equal(student.features(images).embedding)
    assert student.features(images).embedding.shape == (2, 24)


def test_it_is_written_in_yaml():
    branches = {"a": {"name": "resnet18"}, "b": {"kind": "torchvision", "name": "resnet18"}}
    plain = {"kind": "expanded", "branches": {"a": {"kind": "timm", **branches["a"]}, "b": branches["b"]}}
    part = parse(Model, {"backbone": plain}).backbone
    assert part.branches == {"a": Timm(name="resnet18"), "b": Torchvision(name="resnet18")}
    assert part.reconciliation == Reconciliation()
    assert parse(Expanded, part.plain()) == part
    assert parse(Expanded, {**plain, "reconciliation": None}).reconciliation is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"branches": {}}, "at least 1"),
        ({"output": "c"}, "no sub-backbone 'c'; known: a"),
        ({"branches": {"a.b": {"kind": "timm"}}}, "'a.b' cannot be the name"),
        ({"branches": {"keys": {"kind": "timm"}}}, "'keys' cannot be the name"),
        ({"branches": {"a": {"kind": "expanded", "branches": {"b": {"kind": "timm"}}}}}, "'expanded' is not known"),
        ({"branches": {"a": Expanded(branches={"b": SpineNet()})}}, "cannot be an expanded backbone itself"),
        ({"reconciliation": {"kernel": 5}}, "kernel"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        parse(Expanded, {"branches": {"a": {"kind": "timm"}}, **changes})


@pytest.mark.parametrize("way", ["build", "check"])
@pytest.mark.parametrize(
    ("branches", "layers", "message"),
    [
        (
            {"a": _resnet(8, 8, 8, 8), "b": VIT},
            None,
            r"'a' and 'b' .* 4 \(strides 4, 8, 16, 32\) and 1 \(strides 16\)",
        ),
        (
            {"a": _resnet(8, 8, 8, 8), "b": _resnet(8, 8, 8, 8), "c": _resnet(8, 8, 8, 8, output_stride=16)},
            Reconciliation(),
            r"'a' and 'c' .* 4 \(strides 4, 8, 16, 32\) and 3 \(strides 4, 8, 16\)",
        ),
        ({"a": VIT, "b": VIT}, Reconciliation(), "'a' cannot be joined to others"),
    ],
)
def test_sub_backbones_that_do_not_fit_together_are_named(branches, layers, message, way, tmp_path):
    part = Expanded(branches=branches, reconciliation=layers)
    with pytest.raises(UserError, match=message):
        part.build() if way == "build" else part.check(tmp_path)


def test_checking_builds_on_shapes_alone(tmp_path):
    state = torch.get_rng_state()
    Expanded(branches={t: _resnet(*WIDTHS[t]) for t in "ab"}).check(tmp_path)
    assert torch.get_rng_state().equal(state)


def test_what_is_asked_of_a_backbone_is_asked_of_all():
    a, b = _resnet(8, 8, 8, 8), Timm(name="vit_tiny_patch16_224", weights="timm")
    both = Expanded(branches={"a": a, "b": b})
    assert both.pretrained
    assert not both.blank().pretrained
    assert both.normalisation() == b.normalisation() != a.normalisation()
    assert both.blank().but(output="b").normalisation() == b.normalisation()
    assert both.blank().normalisation() == a.normalisation()
    with pytest.raises(UserError, match="'a' and 'b' want the same images normalised"):
        both.but(branches={"a": a.but(weights="timm"), "b": b}).normalisation()
    pair = Expanded(branches={"a": a, "b": a})
    assert pair.dilated(32) == pair
    with pytest.raises(UserError, match="with reconciliation layers cannot be dilated to stride 16"):
        pair.dilated(16)
    assert pair.but(reconciliation=None).dilated(16).build().strides == (4, 8, 16)


# --- cut backbones ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part",
    [
        _resnet(8, 16, 24, 32),
        Timm(name="resnet26d", options={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "stem_width": 8}),
        Timm(name="regnetx_002"),
        Timm(name="convnext_atto", options={"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}),
        Timm(name="efficientnet_b0"),
        Timm(name="efficientnet_lite0"),
        Timm(name="mobilenetv3_small_050"),
        Torchvision(name="resnet18"),
    ],
    ids=lambda part: f"{part.kind}-{part.name}",
)
def test_steps_give_the_maps_and_are_the_same_modules(part):
    torch.manual_seed(0)
    maps = part.build()
    names, mode = list(maps.state_dict()), {n: m.training for n, m in maps.named_modules()}
    numbers = {name: value.clone() for name, value in maps.named_buffers()}
    state = torch.get_rng_state()
    steps = maps.steps()
    assert torch.get_rng_state().equal(state)
    assert list(maps.state_dict()) == names
    assert {n: m.training for n, m in maps.named_modules()} == mode
    assert all(value.equal(numbers[name]) for name, value in maps.named_buffers())
    with torch.no_grad():
        for parameter in maps.parameters():  # the steps follow the weights
            parameter.add_(0.02 * torch.randn_like(parameter))
    images, maps = _images(2, 70, 58).float(), maps.eval()
    own, here = maps(images), images
    assert len(steps) == len(own) == 4
    for step, expected in zip(maps.steps(), own, strict=True):
        here = step(here)
        torch.testing.assert_close(here, expected)


@pytest.mark.parametrize(
    "part",
    [
        VIT,
        Timm(name="swin_tiny_patch4_window7_224", options={"depths": [1, 1, 1, 1], "embed_dim": 24}),
        Torchvision(name="swin_t"),
        SpineNet(),
    ],
    ids=lambda part: f"{part.kind}-{part.name}",
)
def test_what_cannot_be_cut_says_what_can(part):
    with torch.device("meta"):
        maps = part.build()
    with pytest.raises(UserError, match=r"cannot be cut(.|\n)*take a ResNet, RegNet, ConvNeXt, EfficientNet"):
        maps.steps()


class _Own(FeatureMaps):
    """A backbone of the user's own, with a cut that is wrong in one of several ways."""

    def __init__(self, fault):
        super().__init__()
        self.strides, self.widths, self.fault = (4, 8), (4, 8), fault
        self.first, self.second = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 8, 2, 2)

    def forward(self, images):
        first = self.first(images)
        return [first, self.second(first.relu())]

    def cut(self):
        between = {"left out": [], "written over": [nn.ReLU(inplace=True)]}.get(self.fault, [nn.ReLU()])
        steps = [self.first, nn.Sequential(*between, self.second)]
        return steps[:1] if self.fault == "too few" else steps


@pytest.mark.parametrize("fault", [None, "left out", "written over", "too few"])
def test_steps_that_do_not_give_the_maps_are_refused(fault):
    torch.manual_seed(0)
    maps = _Own(fault)
    if fault is None:
        assert len(maps.steps()) == 2
        assert len(_Own(None).double().steps()) == 2
        return
    with pytest.raises(UserError, match="cannot be cut"):
        maps.steps()
