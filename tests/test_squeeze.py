"""Squeeze: equations 3 and 4 against plain loops, teachers that stay as they are, labels beside hints, kills."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from test_extending import Brightness, Light, Tiny, TinyMaps
from torch import nn

from tutelage.data.augment import Augment
from tutelage.data.mixture import Mixture
from tutelage.data.source import LabelSpace, Place
from tutelage.errors import UserError
from tutelage.files import read_json_lines
from tutelage.models.backbone import Backbone, FeatureMaps, Timm
from tutelage.models.expanded import Expanded, ExpandedMaps, Reconciliation
from tutelage.models.pyramid import Pyramid
from tutelage.models.student import Model, Student
from tutelage.tasks import Classification
from tutelage.training.checkpoint import load_model, save_model
from tutelage.training.fit import fit
from tutelage.training.guidance import HINT, Frozen, FrozenTasks, Guidance, Guide
from tutelage.training.schedule import Training
from tutelage.training.squeeze import Squeeze
from tutelage.types import Batch, Field, HeadBatch, Label, stack

CPU = torch.device("cpu")
SIZE = 64
HEADS = {"level": Classification(classes=("dark", "bright")), "light": Light()}
MODEL = Model(backbone=Tiny(), pyramid=Pyramid(width=8), size=SIZE)
SETTINGS = Training(steps=6, batch=4, rate=0.02, workers=0, augment=Augment(), precision="fp32", checkpoint_seconds=1e3)


class Shape:
    def __init__(self, strides, widths):
        self.strides, self.widths = strides, widths


def tiny(*channels: int) -> Timm:
    return Timm(name="resnet18", options={"layers": [1, 1, 1, 1], "channels": list(channels), "stem_width": 8})


class OtherMaps(FeatureMaps):
    strides, widths = (4, 8, 16, 32), (4, 6, 8, 12)

    def __init__(self):
        super().__init__()
        steps = zip((3, *self.widths), self.widths, (4, 2, 2, 2), strict=False)
        self.stages = nn.ModuleList(nn.Sequential(nn.Conv2d(a, b, s, s), nn.BatchNorm2d(b)) for a, b, s in steps)

    def forward(self, images):
        maps = [images]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


class Other(Tiny):
    kind: Literal["other"] = "other"

    def build(self, root=None):
        return OtherMaps()


def student(heads=None, seed: int = 0, model: Model = MODEL) -> Student:
    torch.manual_seed(seed)
    return model.build({} if heads is None else heads)


def settled(network: nn.Module, seed: int = 3) -> nn.Module:
    """With running statistics that are not those of a fresh network, of no batch either."""
    chance = torch.Generator().manual_seed(seed)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.copy_(torch.randn(norm.num_features, generator=chance) * 0.1)
            norm.running_var.copy_(torch.rand(norm.num_features, generator=chance) + 0.5)
    return network


def teacher(seed: int = 7, backbone: Backbone | None = None) -> Frozen:
    return Frozen.of(settled(student(seed=seed, model=MODEL.but(backbone=backbone or Other()))))


def expanded(
    *channels: tuple[int, ...], seed: int = 5, direction: str = "deeper", output: str | None = None
) -> Student:
    names = ("classes", "objects", "depth")
    branches = {name: tiny(*own) for name, own in zip(names, channels, strict=False)}
    part = Expanded(branches=branches, reconciliation=Reconciliation(direction=direction))
    return settled(student(seed=seed, model=MODEL.but(backbone=part)))


def batch(images: int = 4, **labelled: list[int]) -> Batch:
    """Random images; head to the rows that are labelled."""
    pixels = torch.randint(
        0, 256, (images, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    heads = {}
    for head in HEADS:
        rows = labelled.get(head, [])
        if head == "light":
            targets = [Field(pixels[r].float().mean(0) / 255, torch.ones(SIZE, SIZE, dtype=torch.bool)) for r in rows]
        else:
            targets = [Label(torch.tensor([0.25 * (r % 4), 1 - 0.25 * (r % 4)])) for r in rows]
        heads[head] = HeadBatch(torch.tensor(rows, dtype=torch.int64), stack(targets) if rows else None)
    return Batch(pixels, heads, [f"s/{n}" for n in range(images)])


def total(losses) -> torch.Tensor:
    """The step's loss where every one counts 1."""
    return torch.stack([loss.sum / loss.count.clamp(min=1) for loss in losses.values()]).sum()


# --- equations 3 and 4, number by number ---


def guided_slowly(x: np.ndarray, guide: Guide) -> np.ndarray:
    """Norm(Conv(x)) of [B,C,h,w], the norm over the batch and all pixels."""
    weight, norm = guide.conv.weight.detach().numpy()[:, :, 0, 0], guide.norm
    said = np.zeros((len(x), len(weight), *x.shape[2:]))
    for b, image in enumerate(x):
        for y in range(x.shape[2]):
            for z in range(x.shape[3]):
                said[b, :, y, z] = weight.astype(float) @ image[:, y, z]
    for c in range(len(weight)):
        mean = said[:, c].sum() / said[:, c].size
        spread = ((said[:, c] - mean) ** 2).sum() / said[:, c].size
        one = (said[:, c] - mean) / np.sqrt(spread + norm.eps)
        said[:, c] = one * float(norm.weight.detach()[c]) + float(norm.bias.detach()[c])
    return said


def sized_slowly(hint: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A square map at another size, pixel by pixel: means of areas where that is smaller, else bilinear."""
    own, side = hint.shape[2], size[0]
    found = np.zeros((*hint.shape[:2], *size))
    for y in range(side):
        for x in range(side):
            if own >= side:
                rows, columns = (slice(p * own // side, -(-(p + 1) * own // side)) for p in (y, x))
                found[:, :, y, x] = hint[:, :, rows, columns].mean((2, 3))
                continue
            places = []
            for place in (y, x):
                at = min(max((place + 0.5) * own / side - 0.5, 0), own - 1)
                low = int(at)
                places.append(((low, 1 - (at - low)), (min(low + 1, own - 1), at - low)))
            for row, down in places[0]:
                for column, across in places[1]:
                    found[:, :, y, x] += down * across * hint[:, :, row, column]
    return found


def distance_slowly(own: np.ndarray, hint: np.ndarray, guide: Guide) -> float:
    """||F - G(F^)||^2 over the numbers of an image, summed over the images."""
    apart = sized_slowly(hint.astype(float), own.shape[2:]) - guided_slowly(own.astype(float), guide)
    return sum(number**2 for number in apart.ravel()) / apart[0].size


@torch.no_grad()
def shifted(module: nn.Module) -> nn.Module:
    """Guides whose norms do not have the scales and shifts of fresh ones."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.weight.uniform_(0.5, 2.0)
            norm.bias.normal_()
    return module


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize(
    ("levels", "strides", "sides"),
    [
        (1, (4, 8, 16, 32), (16, 8, 4, 2)),
        (3, (4, 8, 16, 32), (16, 8, 4, 2)),
        (2, (8, 16), (12, 4)),  # a teacher with finer maps
        (1, (64,), (1,)),  # and with one that is coarser
        (2, (32, 32), (2, 3)),
    ],
)
def test_a_term_of_equation_3_is_that_of_plain_loops(images, levels, strides, sides):
    torch.manual_seed(0)
    own, hints = (3, 5, 4, 6), (4, 7, 2, 5)[: len(strides)]
    guidance = shifted(Guidance(Shape((4, 8, 16, 32), own), Shape(strides, hints), levels)).train()
    mine = [torch.randn(images, c, side, side) * 3 + 1 for c, side in zip(own, (12, 6, 4, 2), strict=True)]
    if sides[0] == 16:
        mine = [torch.randn(images, c, side, side) for c, side in zip(own, sides, strict=True)]
    theirs = [torch.randn(images, c, side, side) for c, side in zip(hints, sides, strict=True)]
    loss = guidance(mine, theirs)
    pairs = zip(mine[-levels:], theirs[-levels:], guidance.guides, strict=True)
    wanted = sum(distance_slowly(m.numpy(), t.numpy(), guide) for m, t, guide in pairs)
    assert float(loss.sum.detach()) == pytest.approx(wanted, rel=1e-4)
    assert float(loss.count) == float(guidance.count(mine[0])) == images


def test_equation_3_is_the_sum_over_the_tasks_of_an_expanded_backbone():
    channels = (8, 8, 16, 24), (8, 16, 16, 8), (8, 8, 8, 16)
    source = expanded(*channels)
    core, images = source.backbone.core, batch().images
    learner = shifted(Squeeze(student(), FrozenTasks.of(source))).train()
    losses = learner(batch())
    assert (
        list(losses) == list(learner.rule().weights()) == [f"{HINT}{task}" for task in ("classes", "objects", "depth")]
    )
    with torch.no_grad():
        maps = learner.student.maps(images)
        wanted = 0.0
        for task, guidance in zip(("classes", "objects", "depth"), learner.guides, strict=True):
            hint = core.fused((images - source.mean) / source.std, task)[-1]
            term = distance_slowly(maps[-1].numpy(), hint.numpy(), guidance.guides[0])
            assert float(losses[f"{HINT}{task}"].sum) == pytest.approx(term, rel=1e-4)
            wanted += term / len(images)
    assert float(total(losses).detach()) == pytest.approx(wanted, rel=1e-4)
    assert {name: float(count) for name, count in learner.count(batch()).items()} == dict.fromkeys(losses, 4.0)


def test_a_single_number_has_no_spread_and_goes_through_the_running_statistics():
    guide = shifted(settled(Guide(3, 2))).train()
    x, norm = torch.randn(1, 3, 1, 1), guide.norm
    wanted = (guide.conv(x) - norm.running_mean.view(1, 2, 1, 1)) / (
        norm.running_var.view(1, 2, 1, 1) + norm.eps
    ).sqrt()
    wanted = wanted * norm.weight.view(1, 2, 1, 1) + norm.bias.view(1, 2, 1, 1)
    torch.testing.assert_close(guide(x), wanted)
    assert int(norm.num_batches_tracked) == 0


def test_the_distance_is_computed_in_float32_under_autocast():
    torch.manual_seed(0)
    guidance = Guidance(Shape((32,), (8,)), Shape((32,), (512,))).train()
    own, hint = torch.randn(2, 8, 4, 4), torch.randn(2, 512, 4, 4) * 0.01 + 30
    with torch.no_grad():
        guidance.guides[0].norm.bias.fill_(30)
        guidance.guides[0].norm.weight.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        loss, guided = guidance([own], [hint]), guidance.guides[0](own)
    assert loss.sum.dtype == guided.dtype == torch.float32
    # bfloat16 knows no number between 30 and 30.125: it would see no distance, or one that is far too large
    assert float(loss.sum.detach()) == pytest.approx(float((hint - 30).square().sum()) / (512 * 16), rel=1e-3)


# --- teachers stay as they are ---


def test_a_teacher_is_no_part_of_the_learner_and_stays_as_it_is():
    source = expanded((8, 8, 16, 24), (8, 16, 16, 8))
    foreign = settled(student(seed=7, model=MODEL.but(backbone=Other())))
    learner = Squeeze(student(HEADS), FrozenTasks.of(source), {"one": Frozen.of(foreign)}, levels=2)
    before = {n: t.clone() for net in (source, foreign) for n, t in net.state_dict().items()}
    learner.train()
    parts = (source.backbone.core, foreign.backbone)
    assert not any(module.training for part in parts for module in part.modules())
    total(learner(batch(level=[0, 1], light=[2]))).backward()
    for part in parts:
        assert not any(p.requires_grad or p.grad is not None for p in part.parameters())
    after = {n: t for net in (source, foreign) for n, t in net.state_dict().items()}
    assert all(after[n].equal(t) for n, t in before.items())
    assert {name.split(".")[0] for name in learner.state_dict()} == {"student", "guides"}
    own = {id(p) for p in [*learner.student.parameters(), *learner.guides.parameters()]}
    assert {id(p) for p in learner.parameters()} == own
    assert not own & {id(p) for part in parts for p in part.parameters()}


def test_an_expanded_backbone_looks_at_a_batch_once_for_all_its_tasks():
    source = expanded((8, 8, 16, 24), (8, 16, 16, 8))
    seen = []
    for branch in source.backbone.core.branches.values():
        branch.net.conv1.register_forward_hook(lambda part, given, said: seen.append(len(given[0])))
    learner = Squeeze(student(), FrozenTasks.of(source)).train()
    seen.clear()
    learner(batch())
    assert seen == [4, 4]


@pytest.mark.parametrize("direction", ["deeper", "shallower"])
def test_the_features_of_a_task_are_those_that_its_own_network_gives(direction):
    source = expanded((8, 8, 16, 24), (8, 16, 16, 8), direction=direction)
    together = FrozenTasks.of(source)
    said = together(batch().images)
    for task in ("classes", "objects"):
        alone = Frozen(ExpandedMaps(source.backbone.core, task), *MODEL.resolved(Path()).normalisation())
        assert (alone.widths, alone.strides) == (together.tasks[task].widths, together.tasks[task].strides)
        for one, other in zip(alone(batch().images), said[task], strict=True):
            torch.testing.assert_close(one, other)
    with pytest.raises(UserError, match="no expanded backbone"):
        FrozenTasks.of(student())


def test_a_teacher_computes_in_the_ambient_precision_and_gives_float32():
    one = teacher()
    exact = one(batch().images)
    with torch.autocast("cpu", torch.bfloat16):
        rough = one(batch().images)
    assert all(m.dtype == torch.float32 for m in rough)
    assert not any(m.requires_grad for m in (*rough, *exact))
    assert 0 < float((rough[-1] - exact[-1]).abs().max()) < 0.1 * float(exact[-1].abs().max())
    torch.testing.assert_close(one(batch().images), exact)  # and back


def test_a_foreign_teacher_sees_images_normalised_as_its_own_weights_want_them(tmp_path):
    name, options = "vit_tiny_patch16_224.augreg_in21k", {"embed_dim": 12, "depth": 1, "num_heads": 2}
    torch.manual_seed(4)
    net = timm.create_model(name, num_classes=0, dynamic_img_size=True, **options).eval()
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    part = Timm(name=name, options=options, weights="w.safetensors")
    foreign = Frozen.of_backbone(part, tmp_path)
    assert (foreign.widths, foreign.strides) == ((12,), (16,))
    images = batch().images
    with torch.no_grad():
        wanted = net.forward_intermediates((images / 255 - 0.5) / 0.5, indices=[0], intermediates_only=True)[0]
    torch.testing.assert_close(foreign(images)[0], wanted)
    learner = Squeeze(student(), teachers={"dino.v2/large": foreign}).train()  # a name that no module could have
    assert total(learner(batch())).requires_grad
    with pytest.raises(UserError, match="random weights"):
        Frozen.of_backbone(part.blank(), tmp_path)


# --- labels and hints ---


def gradients(learner: Squeeze | Student, given: Batch, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    losses = {name: loss for name, loss in learner(given).items() if name in names}
    learner.zero_grad()
    total(losses).backward()
    network = learner.student if isinstance(learner, Squeeze) else learner
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in network.named_parameters()}


def test_labels_and_hints_together_are_the_sum_of_both_alone():
    given = batch(level=[0, 2], light=[1, 2, 3])
    learner = Squeeze(student(HEADS), teachers={"one": teacher()}).train()
    together = gradients(learner, given, ("level", "light", f"{HINT}one"))
    hints = gradients(learner, given, (f"{HINT}one",))
    labels = gradients(student(HEADS).train(), given, ("level", "light"))
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, hints[name] + labels[name], rtol=1e-4, atol=1e-5, msg=name)
    assert any(g.abs().sum() > 0 for g in labels.values())
    counts = {name: float(count) for name, count in learner.count(given).items()}
    assert counts == {"level": 2, "light": 3, f"{HINT}one": 4}


@pytest.mark.parametrize("heads", [{}, HEADS])
@pytest.mark.parametrize("labelled", [{}, {"level": [1]}])
def test_every_weight_is_in_the_graph_whatever_is_labelled(heads, labelled):
    learner = Squeeze(student(heads), teachers={"one": teacher()}).train()
    losses = learner(batch(2, **labelled))
    total(losses).backward()
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None, name
    for head in heads:
        assert float(losses[head].count) == len(labelled.get(head, []))
    assert list(losses) == list(learner.count(batch(2))) == list(learner.rule().weights())
    assert (learner.trunk(), len(learner.shared())) == (learner.student.backbone, len(learner.student.shared()))


class NormedMaps(FeatureMaps):
    """A norm behind each level, as some backbones have: what reads no level needs not its norm."""

    strides, widths = TinyMaps.strides, TinyMaps.widths

    def __init__(self):
        super().__init__()
        self.net = TinyMaps()
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in self.widths)

    def forward(self, images):
        return [norm(one) for norm, one in zip(self.norms, self.net(images), strict=True)]


class Normed(Tiny):
    kind: Literal["normed"] = "normed"

    def build(self, root=None):
        return NormedMaps()


class LevelMaps(FeatureMaps):
    """P3..P7 of one width: all of them are in the embedding, also where nobody reads it."""

    strides, widths = (8, 16, 32, 64, 128), (8,) * 5

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.Conv2d(3, 8, 1) for _ in self.widths)

    def forward(self, images):
        return [one(images[:, :, ::s, ::s]) for one, s in zip(self.norms, self.strides, strict=True)]


class Levelled(Tiny):
    kind: Literal["levelled"] = "levelled"

    def build(self, root=None):
        return LevelMaps()


@pytest.mark.parametrize(
    ("backbone", "heads", "levels", "trained"),
    [
        (Normed(), {}, 1, {3}),
        (Normed(), {}, 3, {1, 2, 3}),
        (Normed(), HEADS, 1, {1, 2, 3}),  # heads on the pyramid read strides 8, 16 and 32
        (Normed(), HEADS, 4, {0, 1, 2, 3}),
        (Normed(), {"level": HEADS["level"]}, 2, {2, 3}),
        (Levelled(), {}, 2, {3, 4}),
        (Levelled(), {"level": HEADS["level"]}, 2, {0, 1, 2, 3, 4}),
    ],
)
def test_every_level_that_is_matched_learns(backbone, heads, levels, trained):
    network = student(heads, model=MODEL.but(backbone=backbone))
    learner = Squeeze(network, teachers={"one": teacher()}, levels=levels).train()
    total(learner(batch(level=[0], light=[1]))).backward()
    assert {n for n, norm in enumerate(network.backbone.norms) if norm.weight.requires_grad} == trained
    assert {n for n, norm in enumerate(network.backbone.norms) if norm.weight.grad is not None} == trained
    assert all(p.grad is not None for p in learner.parameters() if p.requires_grad)


# --- what is refused ---


def test_what_cannot_be_squeezed_is_refused_before_a_step():
    with pytest.raises(UserError, match="nobody"):
        Squeeze(student())
    with pytest.raises(UserError, match="'classes' is both"):
        Squeeze(student(), FrozenTasks.of(expanded((8, 8, 16, 24))), {"classes": teacher()})
    with pytest.raises(UserError, match="the student has 4 maps"):
        Squeeze(student(), teachers={"one": teacher()}, levels=5)
    vit = Timm(name="vit_tiny_patch16_224", options={"embed_dim": 12, "depth": 1, "num_heads": 2})
    with pytest.raises(UserError, match="the teacher has 1 map"):
        Squeeze(student(), teachers={"one": teacher(backbone=vit)}, levels=2)
    beside = Squeeze(student(), teachers={"one": teacher(backbone=vit), "two": teacher()}, levels=2)
    assert [len(guide.guides) for guide in beside.guides] == [1, 2]  # all that it has, beside one that has so many
    fixed = vit.but(options={**vit.options, "dynamic_img_size": False})  # takes images of its own size alone
    with pytest.raises(UserError, match="'one' cannot look at images of 72 x 72"):
        Squeeze(student(model=MODEL.but(size=72)), teachers={"one": teacher(backbone=fixed)})
    with pytest.raises(UserError):
        Guidance(Shape((32,), (8,)), Shape((32,), (8,)), 0)


# --- the training ---


class Dying(Frozen):
    """A teacher with which the process dies."""

    left = 4

    def __call__(self, images):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().__call__(images)


def run(folder: Path, heads=None, hint: Frozen | None = None, seed: int = 0, **changes) -> tuple[Squeeze, bool]:
    kinds = {"levels": ("level", "class", 0), "lights": ("light", "map", 100), "pool": ("", None, 200)}
    opened = [
        Brightness(head=head or None, label=label, images=8, first=first).open(name, Place(Path(), Path()))
        for name, (head, label, first) in kinds.items()
    ]
    hint = hint or teacher()
    learner = Squeeze(student(heads, seed=seed), teachers={"one": hint})
    spaces = {"level": LabelSpace(("dark", "bright"))}
    until, settings = changes.pop("until", None), SETTINGS.but(**changes)
    named = {"learner": learner, "seed": 3, "device": CPU, "spaces": spaces, "until": until}
    done = fit(learner.student, Mixture(opened, seed=1), settings, learner.rule(), folder, **named)
    return learner, done


def test_images_without_any_label_are_enough_and_the_hint_is_learned(tmp_path):
    learner, done = run(tmp_path, steps=25)
    assert done
    given, fresh = batch(8), Squeeze(student(), teachers={"one": teacher()})
    with torch.no_grad():
        after, before = (float(total(one.train()(given))) for one in (learner, fresh))
    assert after < 0.9 * before
    saved = load_model(tmp_path, backbones=(Tiny,))
    for name, value in saved.student.state_dict().items():
        assert value.equal(learner.student.state_dict()[name]) or "batches" in name or "running" in name, name
    assert not any("guide" in name for name in load_file(tmp_path / "weights.safetensors"))


@pytest.mark.parametrize("heads", [None, HEADS])
def test_killed_or_stopped_it_ends_with_the_weights_of_one_run(tmp_path, heads):
    whole, _ = run(tmp_path / "whole", heads)
    dying = Dying.of(settled(student(seed=7, model=MODEL.but(backbone=Other()))))
    dying.left = 5  # one look before the first step
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", heads, dying, checkpoint_seconds=0)
    assert torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)["step"] == 4
    killed, _ = run(tmp_path / "killed", heads, seed=8)
    _, first = run(tmp_path / "stopped", heads, until=2)
    assert not first
    assert not (tmp_path / "stopped" / "model.yaml").exists()
    stopped, second = run(tmp_path / "stopped", heads)
    assert second
    for other in (killed, stopped):
        for name, value in whole.state_dict().items():
            assert value.equal(other.state_dict()[name]), name
    space = {"level": LabelSpace(("dark", "bright"))} if heads else {}
    assert load_model(tmp_path / "whole", tasks=(Light,), backbones=(Tiny,)).spaces == space


def test_a_saved_expansion_is_a_teacher(tmp_path):
    source = expanded((8, 8, 16, 24), (8, 16, 16, 8))
    said = FrozenTasks.of(source)(batch().images)
    save_model(tmp_path, source, {})
    again = FrozenTasks.of(load_model(tmp_path).student)(batch().images)
    for task, maps in said.items():
        assert all(one.equal(other) for one, other in zip(maps, again[task], strict=True))


def test_every_head_and_every_hint_counts_one(tmp_path):
    """Equation 3 is a sum over tasks."""
    learner = Squeeze(student(HEADS), teachers={"one": teacher(), "two": teacher()})
    assert learner.rule().weights() == {"level": 1, "light": 1, f"{HINT}one": 1, f"{HINT}two": 1}
    run(tmp_path, HEADS)
    rows = read_json_lines(tmp_path / "curve.jsonl")
    assert {tuple(row["weights"].items()) for row in rows} == {(("level", 1), ("light", 1), (f"{HINT}one", 1))}
