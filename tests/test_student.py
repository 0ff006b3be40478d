"""The network: partial labels, weights that travel, backbones of every form."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from tutelage.errors import UserError
from tutelage.models.backbone import Timm, load_weights
from tutelage.models.pyramid import CoarseLevels, Pyramid, SimplePyramid, fuse
from tutelage.models.spinenet import SpineNet
from tutelage.models.student import Model
from tutelage.tasks import Classification, Depth, Detection, Normals, RetinaNet, Segmentation
from tutelage.training.balance import Balance
from tutelage.training.checkpoint import load_model, save_model
from tutelage.training.loop import Diverged, global_counts, train
from tutelage.training.schedule import Training
from tutelage.types import Batch, Boxes, Field, HeadBatch, Label, Mask, Vectors, stack

SMALL = Timm(name="resnet18", options={"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 32]})
HEADS = {
    "classes": Classification(classes=("a", "b", "c")),
    "boxes": Detection(classes=("a", "b"), rois_per_image=8, roi_convs=1, roi_channels=8, fc_width=16, roi_size=3),
    "masks": Segmentation(classes=("a", "b")),
    "depth": Depth(),
    "normals": Normals(),
}


def _model(**changes):
    return Model(backbone=SMALL, pyramid=Pyramid(width=16), size=64).but(**changes)


def _targets(head, rows):
    up = torch.tensor([0.0, -1.0, 0.0]).view(3, 1, 1).expand(3, 64, 64)
    all_valid = torch.ones(64, 64, dtype=torch.bool)
    one = {
        "classes": Label(torch.tensor([0.2, 0.8, 0.0])),
        "boxes": Boxes.make([[8, 8, 40, 40]], [1]),
        "masks": Mask(torch.ones(64, 64, dtype=torch.uint8)),
        "depth": Field(torch.full((64, 64), 2.0), all_valid),
        "normals": Vectors(up.clone(), all_valid),
    }[head]
    return HeadBatch(torch.tensor(rows, dtype=torch.int64), stack([one] * len(rows)) if rows else None)


def _batch(labelled):
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Batch(images, {h: _targets(h, labelled.get(h, [])) for h in HEADS}, [f"s/{i}" for i in range(4)])


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("labelled", [{}, {"boxes": [2]}, {"masks": [0, 1, 2, 3], "depth": [1, 3], "classes": [0]}])
def test_every_weight_is_in_the_graph_whatever_is_labelled(labelled, precision):
    torch.manual_seed(0)
    student = _model().build(HEADS).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
        losses = student(_batch(labelled))
    torch.stack([loss.sum for loss in losses.values()]).sum().backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    for head, loss in losses.items():
        assert (loss.count > 0) == bool(labelled.get(head)), head
        if not labelled.get(head):
            assert loss.sum == 0
            assert all(p.grad.abs().sum() == 0 for p in student.heads[head].parameters()), head


@pytest.mark.parametrize(
    "model",
    [
        _model(),
        _model(pyramid=Pyramid(kind="nas-fpn", width=16, repeats=1)),
        _model(backbone=Timm(name="vit_tiny_patch16_224", options={"img_size": 64, "depth": 1, "embed_dim": 12})),
        Model(backbone=SpineNet(name="49S"), pyramid=Pyramid(width=16), size=128),
    ],
    ids=["fpn", "nas-fpn", "vit", "spinenet"],
)
def test_one_image_of_which_the_coarsest_level_has_one_cell_can_be_learned_from(model):
    """A batch of 8 in as many parts (`accumulate`), or over as many processes."""
    torch.manual_seed(0)
    student = model.build({"boxes": RetinaNet(classes=("a", "b"), convs=1, channels=8)}).train()
    before = {name: value.clone() for name, value in student.state_dict().items() if "running_mean" in name}
    images = torch.randint(0, 256, (1, 3, model.size, model.size), dtype=torch.uint8)
    batch = Batch(images, {"boxes": _targets("boxes", [0])}, ["s/0"])
    assert student.features(images).pyramid[-1].shape[2:] == (1, 1)
    student(batch)["boxes"].sum.backward()
    moved = {name for name, value in student.state_dict().items() if name in before and not value.equal(before[name])}
    assert moved  # the norms of larger maps learn their statistics
    assert any(name not in moved for name in before if "heads" in name)  # one number a channel has none


def test_a_head_without_a_label_keeps_its_statistics():
    torch.manual_seed(0)
    student = _model().build(HEADS | {"retina": RetinaNet(classes=("a",), convs=1, channels=8)}).train()
    before = {name: value.clone() for name, value in student.state_dict().items() if "running" in name}
    student(_batch({"depth": [1, 3]}))
    own = {name for name, value in student.state_dict().items() if name in before and not value.equal(before[name])}
    of_heads = {name.split(".")[1] for name in before if name.startswith("heads.")}
    assert {"depth", "masks", "retina"} <= of_heads
    assert {name.split(".")[1] for name in own if name.startswith("heads.")} == {"depth"}
    assert all(norm.momentum == 0.1 for norm in student.modules() if isinstance(norm, torch.nn.BatchNorm2d))


def test_heads_see_only_their_own_rows():
    torch.manual_seed(0)
    student = _model().build(HEADS).eval()  # batch norms must not mix rows here
    batch = _batch({"depth": [1, 3]})
    with torch.no_grad():
        together = student(batch)["depth"].sum
        apart = [
            student(Batch(batch.images[[i]], {**batch.heads, "depth": _targets("depth", [0])}, ["s"]))["depth"].sum
            for i in (1, 3)
        ]
    torch.testing.assert_close(together, sum(apart))


def test_a_model_survives_its_files(tmp_path):
    torch.manual_seed(0)
    student = _model().build(HEADS).eval()
    save_model(tmp_path, student, {})
    again = load_model(tmp_path).student
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    for a, b in zip(student.features(images).pyramid, again.features(images).pyramid, strict=True):
        assert a.equal(b)
    assert again.model == student.model
    assert again.tasks == student.tasks


def test_damaged_and_foreign_weights_are_named(tmp_path):
    save_model(tmp_path, _model().build({"depth": Depth()}), {})
    (tmp_path / "weights.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be read"):
        load_model(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="do not fit"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="no model here"):
        load_model(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("stride", "side"), [(8, 200), (14, 224), (14, 210), (14, 518), (16, 208), (16, 560), (32, 224), (32, 416)]
)
def test_the_levels_of_one_map_have_the_strides_that_heads_rely_on(stride, side):
    levels = SimplePyramid(stride, 4, 4).eval()([torch.randn(1, 4, side // stride, side // stride + 1)])
    wide = (side // stride + 1) * stride  # not square: the sides must not be mixed up
    assert [tuple(level.shape[2:]) for level in levels] == [
        (-(-side // s), -(-wide // s)) for s in (8, 16, 32, 64, 128)
    ]


def test_what_a_14_pixel_patch_shows_is_at_its_place_on_every_level():
    pyramid = SimplePyramid(14, 1, 1).eval()
    pyramid.rescale = torch.nn.ModuleList(torch.nn.Upsample(scale_factor=f) for f in (2, 1, 0.5))
    pyramid.project = torch.nn.ModuleList(torch.nn.Identity() for _ in range(3))
    bright = torch.zeros(1, 1, 16, 16)
    bright[..., 9:, :] = 1  # from pixel 126 of 224 downwards
    for level, stride in zip(pyramid([bright])[:3], (8, 16, 32), strict=True):
        edge = (level[0, 0, :, 0] < 0.5).sum().item() * stride
        assert abs(edge - 126) <= stride / 2 + 7, stride


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        (Model(), {"size": 0}),
        (Model(), {"std": (0.2, 0.0, 0.2)}),
        (Pyramid(), {"width": 0}),
        (Detection(), {"anchor_ratios": ()}),
        (Detection(), {"anchor_ratios": (1.0, -2.0)}),
    ],
)
def test_numbers_that_no_network_can_have_are_refused(part, wrong):
    with pytest.raises(UserError, match=r"greater than|at least"):
        part.but(**wrong)


@pytest.mark.parametrize("held", [[torch.zeros(2)], torch.zeros(2), {"state_dict": [1]}, {"a": torch.zeros(2)}])
def test_a_file_without_weights_by_name_is_refused(held, tmp_path):
    torch.save(held, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"holds no weights by name|not in the file") as error:
        load_weights(torch.nn.Linear(2, 2), tmp_path / "w.pth", "names")
    assert error.value.file == tmp_path / "w.pth"


def test_a_patch_of_another_size_is_refused():
    patch12 = Timm(name="vit_tiny_patch16_224", options={"depth": 1, "patch_size": 12, "img_size": 336})
    with pytest.raises(UserError, match="one map of this stride") as error:
        Model(backbone=patch12, pyramid=Pyramid(width=16), size=336).build({"depth": Depth()})
    assert error.value.field == "backbone"


@pytest.mark.parametrize(
    ("name", "options", "strides"),
    [
        ("resnet18", {}, (4, 8, 16, 32)),
        ("tf_efficientnet_lite0", {}, (4, 8, 16, 32)),
        ("convnext_atto", {}, (4, 8, 16, 32)),
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 2, "depths": (1, 1, 1, 1)}, (4, 8, 16, 32)),
        ("vit_tiny_patch16_224", {"depth": 2}, (16,)),
    ],
)
def test_timm_backbones_of_every_form_give_the_pyramid(name, options, strides):
    maps = Timm(name=name, options=options).build()
    pyramid = Pyramid(width=8).build(maps)
    images = torch.randn(2, 3, 64, 64)
    found = maps(images)
    assert maps.strides == strides
    assert [tuple(m.shape) for m in found] == [
        (2, w, 64 // s, 64 // s) for w, s in zip(maps.widths, strides, strict=True)
    ]
    levels = pyramid(found)
    assert [tuple(level.shape) for level in levels] == [(2, 8, n, n) for n in (8, 4, 2, 1, 1)]
    assert fuse(levels, (64, 64)).shape == (2, 8, 16, 16)


def test_the_backbones_weights_are_plain_timm_weights():
    net = timm.create_model("resnet18", num_classes=0, **SMALL.options)
    own = SMALL.build().state_dict()
    assert {name.removeprefix("net.") for name in own} == set(net.state_dict())


def test_weights_by_order_fit_shape_by_shape(tmp_path):
    net = timm.create_model("resnet18", num_classes=0, **SMALL.options)
    other = {f"layer{i:03d}": torch.randn_like(v.float()) for i, v in enumerate(net.state_dict().values()) if v.dim()}
    torch.save({**other, "fc": torch.zeros(10, 32)}, tmp_path / "w.pth")
    load_weights(net, tmp_path / "w.pth", "order")
    assert net.conv1.weight.equal(other["layer000"])
    other["layer001"] = torch.zeros(3)
    torch.save(other, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"bn1\.weight is \(64,\)"):
        load_weights(net, tmp_path / "w.pth", "order")


def test_weights_that_hold_code_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("gotcha",))

    torch.save({"a": Evil()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="cannot be read"):
        load_weights(torch.nn.Linear(1, 1), tmp_path / "w.pth", "names")


def test_an_unknown_backbone_is_named_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'resnet50'"):
        Timm(name="resnet5O").build()


def test_coarse_levels_have_exact_gradients_under_bfloat16():
    torch.manual_seed(0)
    coarse = CoarseLevels(8)
    single = torch.randn(2, 8, 1, 1)
    for _ in range(3):  # torch's own bfloat16 kernel leaves parts of this gradient unwritten
        junk = [torch.full((8, 8, 3, 3), float("nan"), dtype=torch.bfloat16) for _ in range(8)]
        del junk
        coarse.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            torch.stack([level.float().sum() for level in coarse(single)]).sum().backward()
        corners = torch.ones(3, 3, dtype=torch.bool)
        corners[1, 1] = False
        assert (coarse.p7.weight.grad[:, :, corners] == 0).all()


def test_counts_run_over_all_micro_batches():
    batches = [_batch({"classes": [0, 1], "depth": [2]}), _batch({"classes": [3]})]
    counts = global_counts(_model().build(HEADS), batches)
    assert counts["classes"] == 3
    assert counts["depth"] == 16 * 16  # pixels at stride 4
    assert counts["masks"] == 1  # nothing labelled: at least 1, the loss being 0


def test_a_loss_that_is_no_number_stops_before_the_optimiser_moves(tmp_path):
    torch.manual_seed(0)
    student = _model().build({"classes": HEADS["classes"], "depth": Depth()})
    before = {n: v.clone() for n, v in student.named_parameters()}
    bad = _batch({"classes": [0], "depth": [1, 2]})
    bad.heads["depth"].targets.values[1] = float("nan")
    bad = Batch(bad.images, {h: bad.heads[h] for h in ("classes", "depth")}, bad.ids)
    rule = Balance().build(["classes", "depth"], (4, 1.0), {})
    settings = Training(steps=2, batch=4, precision="fp32")
    with pytest.raises(Diverged) as caught:
        train(student, settings, rule, lambda first: iter([bad] * 2), tmp_path, seed=0, device=torch.device("cpu"))
    for word in ("step 0", "head depth", "s/1, s/2"):
        assert word in str(caught.value)
    assert all(v.equal(before[n]) for n, v in student.named_parameters())


def test_the_average_of_the_weights_is_what_is_delivered(tmp_path):
    batch = _batch({"classes": [0, 1, 2, 3]})
    batch = Batch(batch.images, {"classes": batch.heads["classes"]}, batch.ids)
    settings = Training(steps=3, batch=4, rate=0.1, precision="fp32", schedule="constant")

    def weights(ema, seen):
        torch.manual_seed(0)
        student = _model().build({"classes": HEADS["classes"]})

        def batches(first):
            while True:
                seen.append(student.backbone.net.conv1.weight.detach().clone())
                yield batch

        rule = Balance().build(["classes"], (4, 1.0), {})
        folder = tmp_path / str(ema)
        train(student, settings.but(ema=ema), rule, batches, folder, seed=0, device=torch.device("cpu"))
        return student.backbone.net.conv1.weight.detach()

    steps: list = []
    last = weights(None, steps)
    average = steps[0]
    for after in (steps[1], steps[2], last):
        average = 0.75 * average + 0.25 * after
    torch.testing.assert_close(weights(0.75, []), average)
