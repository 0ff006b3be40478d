"""Backbones of timm, torchvision and transformers: maps against the libraries' own, weights, strides, names."""

import math
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from torchvision import models as tv

from tutelage.errors import UserError
from tutelage.models.backbone import IMAGENET, Expanded, Timm, Torchvision, Transformers
from tutelage.models.maps import on_shapes
from tutelage.models.named import parse_start
from tutelage.models.pyramid import Pyramid
from tutelage.models.student import Model
from tutelage.part import parse
from tutelage.tasks import Classification, Segmentation
from tutelage.training.checkpoint import load_model, save_model

SMALL = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def _said(maps, images=IMAGES):
    with torch.no_grad():
        return maps.eval()(images)


def _shapes(maps, side=64):
    return [(2, width, side // stride, side // stride) for width, stride in zip(maps.widths, maps.strides, strict=True)]


# --- torchvision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "classifier"),
    [
        ("resnet18", "fc"),
        ("regnet_y_400mf", "fc"),
        ("shufflenet_v2_x0_5", "fc"),
        ("mnasnet0_5", "classifier"),
        ("mobilenet_v2", "classifier"),
        ("mobilenet_v3_small", "classifier"),
        ("efficientnet_b0", "classifier"),
        ("swin_t", "head"),
        ("densenet121", "classifier"),
    ],
)
def test_torchvisions_deepest_map_is_what_its_classifier_pools(name, classifier):
    torch.manual_seed(0)
    maps = Torchvision(name=name).build()
    torch.manual_seed(0)
    plain = tv.get_model(name)
    own = {key.removeprefix("net."): value for key, value in maps.state_dict().items()}
    assert all(
        value.equal(own.pop(key)) for key, value in plain.state_dict().items() if not key.startswith(f"{classifier}.")
    )
    assert own == {}
    setattr(plain, classifier, torch.nn.Identity())
    found = _said(maps)
    assert maps.strides == (4, 8, 16, 32)
    assert [tuple(m.shape) for m in found] == _shapes(maps)
    torch.testing.assert_close(found[-1].mean((2, 3)), _said(plain), atol=1e-5, rtol=1e-4)


def test_torchvisions_lower_maps_are_the_last_of_their_strides():
    maps = Torchvision(name="resnet18").build().eval()
    net, found = maps.net, []
    x = net.maxpool(net.relu(net.bn1(net.conv1(IMAGES))))
    for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
        x = layer(x)
        found.append(x)
    assert all(a.equal(b) for a, b in zip(_said(maps), found, strict=True))


def test_strides_are_read_without_a_trace():
    torch.manual_seed(3)
    maps = Torchvision(name="resnet18").build()
    after = torch.get_rng_state()
    torch.manual_seed(3)
    tv.resnet18()
    assert after.equal(torch.get_rng_state())
    assert maps.training
    assert int(maps.net.bn1.num_batches_tracked) == 0
    assert on_shapes(maps, 64)[0][0].device.type == "meta"


def test_torchvisions_weights_come_from_a_file(tmp_path):
    plain = tv.resnet18()
    save_file(plain.state_dict(), tmp_path / "w.safetensors")
    maps = Torchvision(name="resnet18", weights="w.safetensors").build(tmp_path)
    assert maps.net.layer4[1].conv2.weight.equal(plain.layer4[1].conv2.weight)
    with pytest.raises(UserError, match="no such weight file"):
        Torchvision(name="resnet18", weights="elsewhere.pth").check(tmp_path)
    given = Torchvision(name="resnet18", weights="w.safetensors")
    assert given.files(tmp_path) == [tmp_path / "w.safetensors"]
    assert Torchvision(name="resnet18", weights="torchvision").files(tmp_path) == given.blank().files(tmp_path) == []
    assert Expanded(branches={"a": given, "b": given.blank()}).files(tmp_path) == given.files(tmp_path)
    with pytest.raises(UserError, match="not in the file"):
        Torchvision(name="resnet34", weights="w.safetensors").build(tmp_path)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Torchvision(name="resnet5O"), "did you mean 'resnet50'"),
        (Torchvision(name="vit_b_16"), "no maps of whole strides"),
        (Torchvision(name="alexnet"), "no maps of whole strides"),
        (
            Torchvision(name="resnet50", weights="torchvision", weights_enum="ResNet50_Weights.IMAGENET1K_V3"),
            "did you mean 'ResNet50_W",
        ),
        (Torchvision(name="resnet18", options={"layer": 1}), "layer"),
        (Timm(name="resnet5O"), "did you mean 'resnet50'"),
        (Timm(name="resnet18.nobodys"), "nobodys"),
    ],
)
def test_unknown_names_are_said_with_the_nearest(part, message, tmp_path):
    with pytest.raises(UserError, match=message):
        part.build(tmp_path)


# --- transformers ----------------------------------------------------------------------------------------------------


def _folder(path, config, auto=transformers.AutoBackbone, **arguments):
    """A folder with random weights, larger than those a library starts from."""
    torch.manual_seed(1)
    net = auto.from_config(config, **arguments).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.2)
    net.save_pretrained(path)
    return net


@pytest.mark.parametrize(
    ("config", "norms"),
    [
        (transformers.ResNetConfig(embedding_size=8, **STAGES), False),
        (transformers.ConvNextConfig(**STAGES), True),
        (transformers.SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2), True),
    ],
)
def test_transformers_gives_the_librarys_own_maps(config, norms, tmp_path):
    config.out_features = ["stage1", "stage2", "stage3", "stage4"]
    net = _folder(tmp_path, config)
    maps = Transformers(name=".", weights="transformers").build(tmp_path)
    assert maps.strides == (4, 8, 16, 32)
    assert [tuple(m.shape) for m in _said(maps)] == _shapes(maps)
    assert all(a.equal(b) for a, b in zip(_said(maps), _said(net).feature_maps, strict=True))
    assert any("hidden_states_norms" in name for name in maps.state_dict()) == norms


@pytest.mark.parametrize(
    "config",
    [
        transformers.Dinov2Config(patch_size=14, image_size=28, **SMALL),
        transformers.DINOv3ViTConfig(patch_size=16, image_size=32, **SMALL),
    ],
)
def test_a_transformer_gives_its_last_map_alone(config, tmp_path):
    net = _folder(tmp_path, config)
    images, patch = torch.randn(2, 3, 112, 112), config.patch_size
    maps = Transformers(name=".", weights="transformers").build(tmp_path)
    assert (maps.strides, maps.widths) == ((patch,), (16,))
    assert _said(maps, images)[0].equal(_said(net, images).feature_maps[-1])


@pytest.mark.parametrize(
    ("config", "before", "arguments"),
    [
        (transformers.ViTConfig(image_size=32, **SMALL), 1, {"add_pooling_layer": False}),
        (transformers.DeiTConfig(image_size=32, **SMALL), 2, {"add_pooling_layer": False}),
        (transformers.SiglipVisionConfig(image_size=32, **SMALL), 0, {}),
    ],
)
def test_vectors_of_patches_are_laid_out_row_by_row(config, before, arguments, tmp_path):
    net = _folder(tmp_path, config, transformers.AutoModel, **arguments)
    maps = Transformers(name=".", weights="transformers").build(tmp_path)
    said = net(IMAGES[:, :, :48], interpolate_pos_encoding=True).last_hidden_state
    found = _said(maps, IMAGES[:, :, :48])[0]
    assert found.shape == (2, 16, 3, 4)
    assert found[1, :, 2, 1].equal(said[1, before + 2 * 4 + 1])
    student = Model(backbone=Transformers(name=str(tmp_path)), pyramid=Pyramid(width=8), size=64).build(
        {"a": Segmentation(classes=("x", "y"))}, tmp_path
    )
    student.eval()
    assert student.features(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).fused.shape == (1, 8, 16, 16)


def test_a_classifiers_folder_serves_as_a_backbone_and_a_cut_one_is_refused(tmp_path):
    torch.manual_seed(0)
    config = transformers.ResNetConfig(embedding_size=8, layer_type="basic", num_labels=5, **STAGES)
    net = transformers.ResNetForImageClassification(config)
    net.save_pretrained(tmp_path)
    part = Transformers(name=str(tmp_path), weights="transformers")
    assert [file.name for file in part.files(tmp_path)] == ["model.safetensors"]
    assert part.blank().files(tmp_path) == []
    maps = part.build(tmp_path)
    pooled = net.eval().resnet(IMAGES).pooler_output[:, :, 0, 0]
    torch.testing.assert_close(_said(maps)[-1].mean((2, 3)), pooled)
    assert "id2label" not in part.resolved(tmp_path).config
    state = {name: value for name, value in net.state_dict().items() if "stages.2" not in name}
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="not in the file"):
        part.build(tmp_path)


def test_what_is_no_backbone_of_transformers_is_refused(tmp_path):
    with pytest.raises(UserError, match="no model of transformers in this folder"):
        Transformers(name="./nowhere").check(tmp_path)
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is no backbone"):
        Transformers(name=str(tmp_path)).build(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be loaded"):
        Transformers(name=str(tmp_path)).check(tmp_path)


def test_without_the_library_its_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "transformers.utils", None)
    with pytest.raises(UserError, match="pip install 'transformers"):
        Transformers(name="a/b").resolved(tmp_path)


# --- what the three have in common -----------------------------------------------------------------------------------


def _starts(tmp_path):
    """A backbone of each kind that starts from files in a folder."""
    options = {"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 32]}
    save_file(timm.create_model("resnet18", num_classes=0, **options).state_dict(), tmp_path / "timm.safetensors")
    save_file(tv.resnet18().state_dict(), tmp_path / "torchvision.safetensors")
    _folder(tmp_path / "hf", transformers.Dinov2Config(patch_size=16, image_size=32, **SMALL))
    look = transformers.ViTImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.2, 0.1])
    look.save_pretrained(tmp_path / "hf")
    return [
        Timm(name="resnet18", options=options, weights="timm.safetensors"),
        Torchvision(name="resnet18", weights="torchvision.safetensors"),
        Transformers(name="hf", weights="transformers"),
    ]


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_a_model_is_built_again_from_its_files_alone(kind, tmp_path, monkeypatch):
    start, saved = tmp_path / "start", tmp_path / "saved"
    start.mkdir()
    backbone = _starts(start)[kind]
    backbone.check(start)
    mean, std = backbone.resolved(start).normalisation()
    model = Model(pyramid=Pyramid(width=8), size=64).but(backbone=backbone, mean=mean, std=std)
    student = model.build({"masks": Segmentation(classes=("a", "b"))}, start).eval()
    save_model(saved, student, {})
    start.rename(tmp_path / "gone")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", None)
    again = load_model(saved).student
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert student.features(images).fused.equal(again.features(images).fused)
    assert again.model == student.model == model.resolved(tmp_path / "gone")
    assert parse(type(backbone), backbone.plain()) == backbone
    assert not backbone.blank().pretrained


def test_a_model_is_normalised_as_its_weights_want_it_unless_it_says_otherwise(tmp_path):
    half = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    vit = Timm(name="vit_tiny_patch16_224", options={"depth": 1, "embed_dim": 24})
    torch.save(vit.build().net.state_dict(), tmp_path / "vit.pth")
    start = vit.but(weights="vit.pth")
    assert Model(backbone=start).resolved(tmp_path).normalisation() == half
    assert Model(backbone=vit).resolved(tmp_path).normalisation() == IMAGENET
    own = Model(backbone=start, mean=(0.1, 0.2, 0.3))
    assert own.resolved(tmp_path).normalisation() == ((0.1, 0.2, 0.3), half[1])
    student = Model(backbone=start, size=32).build({"kinds": Classification(classes=("a", "b"))}, tmp_path)
    assert student.mean.flatten().tolist() == student.std.flatten().tolist() == [127.5] * 3
    save_model(tmp_path / "saved", student, {})
    assert load_model(tmp_path / "saved").student.model.normalisation() == half


def test_weights_of_a_deeper_network_are_refused(tmp_path):
    def resnet(*layers: int) -> Timm:
        return Timm(name="resnet18", options={"layers": list(layers), "channels": [8, 8, 8, 8]})

    whole = {**resnet(1, 1, 1, 2).build().net.state_dict(), "fc.weight": torch.zeros(3, 8), "fc.bias": torch.zeros(3)}
    torch.save(whole, tmp_path / "deep.pth")
    resnet(1, 1, 1, 2).but(weights="deep.pth").build(tmp_path)
    with pytest.raises(UserError, match="the file is of a deeper network") as caught:
        resnet(1, 1, 1, 1).but(weights="deep.pth").build(tmp_path)
    assert caught.value.record.startswith("layer4.1.")


def test_options_that_give_a_network_more_than_timm_has_weights_for_are_refused(monkeypatch):
    made = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **options: made(name, **options))  # no download
    Timm(name="resnet18", weights="timm", options={"drop_path_rate": 0.1}).build(Path())
    with pytest.raises(UserError, match="are not among timm's weights of this name") as caught:
        Timm(name="resnet18", weights="timm", options={"layers": [2, 2, 3, 2]}).build(Path())
    assert caught.value.record.startswith("layer3.2.")


def test_images_are_normalised_as_the_weights_want_them(tmp_path):
    half = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert Timm(name="vit_tiny_patch16_224").normalisation() == half
    assert Timm(name="resnet18").normalisation() == IMAGENET
    assert Torchvision(name="swin_t").normalisation() == IMAGENET
    hf = _starts(tmp_path)[2]
    for found, wanted in zip(hf.resolved(tmp_path).normalisation(), [(0.5, 0.4, 0.3), (0.2, 0.2, 0.1)], strict=True):
        assert found == pytest.approx(wanted)
    look = transformers.ViTImageProcessor(do_rescale=False, image_mean=[127.5] * 3, image_std=[51] * 3)
    look.save_pretrained(tmp_path / "hf")  # works on 0..255
    assert hf.resolved(tmp_path).normalisation() == ((0.5,) * 3, (0.2,) * 3)
    look = transformers.ViTImageProcessor(do_normalize=False)
    look.save_pretrained(tmp_path / "hf")
    assert hf.resolved(tmp_path).normalisation() == ((0.0,) * 3, (1.0,) * 3)
    for file in (tmp_path / "hf").glob("*processor*"):
        file.unlink()
    assert hf.resolved(tmp_path).normalisation() == IMAGENET


def test_weights_that_nothing_hangs_on_are_frozen():
    config = {"model_type": "dinov2", "patch_size": 16, "image_size": 32, **SMALL}
    for backbone, frozen in (
        (Transformers(name="x", config=config), {"embeddings.mask_token"}),
        (Timm(name="test_efficientnet"), {"conv_head.weight", "bn2.weight", "bn2.bias"}),
        (Timm(name="resnet18"), set()),
    ):
        model = Model(backbone=backbone, pyramid=Pyramid(width=8), size=64)
        net = model.build({"head": Segmentation(classes=("a",))}).backbone.net
        assert {name for name, p in net.named_parameters() if not p.requires_grad} == frozen
        student = model.build({"head": Segmentation(classes=("a",)), "label": Classification(classes=("a",))})
        features = student.features(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
        (features.fused.sum() + features.embedding.sum()).backward()
        assert {n for n, p in student.backbone.net.named_parameters() if p.grad is None} == frozen


def test_which_weights_are_frozen_follows_from_what_is_read():
    config = {"model_type": "convnext", **STAGES}
    convnext = Model(backbone=Transformers(name="x", config=config), pyramid=Pyramid(width=8), size=64)
    for head, read in ((Classification(classes=("a",)), {4}), (Segmentation(classes=("a",)), {2, 3, 4})):
        net = convnext.build({"head": head}).backbone.net
        alive = {name.split(".")[1] for name, p in net.named_parameters() if "states_norms" in name and p.requires_grad}
        assert alive == {f"stage{number}" for number in read}


@pytest.mark.parametrize(
    ("part", "stride"),
    [
        (Timm(name="resnet18"), 16),
        (Timm(name="test_efficientnet"), 8),
        (Timm(name="vit_tiny_patch16_224", options={"depth": 1}), 16),
        (Torchvision(name="resnet50"), 8),
        (Torchvision(name="resnet50"), 16),
        (Torchvision(name="mobilenet_v3_small"), 16),
    ],
)
def test_dilated_backbones_keep_their_weights_and_end_at_the_stride(part, stride):
    plain, dilated = part.build(), part.dilated(stride).build()
    shapes = lambda maps: {name: value.shape for name, value in maps.state_dict().items()}  # noqa: E731
    assert shapes(plain) == shapes(dilated)
    assert dilated.strides[-1] == stride
    assert on_shapes(dilated, 64)[0][-1].shape[2:] == (64 // stride, 64 // stride)
    assert dilated.widths[-1] == plain.widths[-1]


@pytest.mark.parametrize(
    ("part", "stride"),
    [
        (Timm(name="densenet121"), 16),
        (Timm(name="vit_tiny_patch16_224"), 8),
        (Torchvision(name="resnet18"), 16),
        (Torchvision(name="convnext_tiny"), 16),
        (Torchvision(name="mobilenet_v3_small"), 8),
        (Transformers(name="x", config={"model_type": "resnet", "embedding_size": 8, **STAGES}), 16),
    ],
)
def test_backbones_that_cannot_be_dilated_say_which_can(part, stride):
    with pytest.raises(UserError, match="cannot be dilated") as caught:
        part.dilated(stride)
    assert "ResNet" in caught.value.fix


def test_command_line_forms(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dino").mkdir()
    assert parse_start("timm:resnet50.a1_in1k") == Timm(name="resnet50.a1_in1k", weights="timm")
    assert parse_start("timm:resnet18=a/w.pth") == Timm(name="resnet18", weights=str(tmp_path / "a/w.pth"))
    assert parse_start("timm:resnet18=package:p/w.pth") == Timm(name="resnet18", weights="package:p/w.pth")
    assert parse_start("torchvision:swin_t") == Torchvision(name="swin_t", weights="torchvision")
    assert parse_start("torchvision:swin_t=w.pth").weights == str(tmp_path / "w.pth")
    assert parse_start("transformers:dino") == Transformers(name=str(tmp_path / "dino"), weights="transformers")
    assert parse_start("transformers:facebook/dinov2-small").download
    for other in ("runs/mine", "random", "C:/models", "timm", ""):
        assert parse_start(other) is None
    for wrong in ("timm:", "timm:=w.pth", "timm:resnet18=", "transformers:", "transformers:../no/such/folder"):
        with pytest.raises(UserError):
            parse_start(wrong)


@pytest.mark.parametrize("text", ["timm:resnet18", "torchvision:resnet18", "transformers:someone/something"])
def test_weights_that_cannot_be_downloaded_are_one_error(text, tmp_path, monkeypatch):
    def unplugged(*arguments, **named):
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unplugged)
    with pytest.raises(UserError) as caught:
        parse_start(text).build(tmp_path)
    assert "weights: FILE" in caught.value.fix or "save_pretrained" in caught.value.fix


@pytest.mark.parametrize("size", [56, 64])
def test_a_vit_of_timm_takes_images_that_are_no_whole_number_of_patches(size):
    maps = Timm(name="vit_tiny_patch16_224", options={"depth": 1, "patch_size": 14}).build().eval()
    with torch.no_grad():
        (found,) = maps(torch.randn(1, 3, size, size))
    assert found.shape[2:] == (math.ceil(size / 14), math.ceil(size / 14))
