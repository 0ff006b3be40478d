"""Our own checkpoints as teachers: masks of one look, of several sizes, and of mirrored images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tutelage.data import Masks
from tutelage.data.geometry import letterbox
from tutelage.data.quarantine import QUARANTINE, Quarantine
from tutelage.data.source import LabelSpace, Place
from tutelage.errors import UserError
from tutelage.files import read_json_lines
from tutelage.labels.encoding import BadPrediction, Form, encode
from tutelage.methods.material import settle
from tutelage.models.backbone import Timm
from tutelage.models.pyramid import Pyramid
from tutelage.models.student import Model
from tutelage.tasks import Classification, Depth, Segmentation
from tutelage.teachers import own
from tutelage.teachers.own import Checkpoint, _views
from tutelage.teachers.scoring import score_teacher
from tutelage.training.checkpoint import Saved, load_model, save_model
from tutelage.training.evaluate import prepare
from tutelage.types import Mask

NAMES = ("road", "tree", "sky")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A network of 64 pixels with random weights, large enough to make masks of several classes."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    backbone = Timm(name="resnet18", options={"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 32]})
    heads = {"ground": Segmentation(classes=NAMES), "depth": Depth()}
    student = Model(backbone=backbone, pyramid=Pyramid(width=16), size=64).build(heads)
    torch.nn.init.normal_(student.heads["ground"].last.weight, std=1.0)
    save_model(folder, student, {"ground": LabelSpace(NAMES)})
    return folder


def _images(*sizes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (5, 6, 3), dtype=np.uint8) for _ in sizes]
    return [np.kron(c, np.ones((9, 9, 1), np.uint8))[:h, :w] for c, (h, w) in zip(coarse, sizes, strict=True)]


def _open(model: Path, **options):
    part = Checkpoint(path=model, head="ground", **options)
    return part.open("ground", part.does(Path()), Path(), CPU)


def _slow(model: Path, image: np.ndarray, sizes: list[int], flip: bool) -> torch.Tensor:
    """Mean probabilities [K,h,w] of full maps, for an image that fills its input."""
    network, every = prepare(load_model(model).student, CPU), []
    student = network.student
    for size in sizes:
        for mirrored in (False, True) if flip else (False,):
            seen = image[:, ::-1].copy() if mirrored else image
            picture, _ = letterbox(seen, size)
            with torch.no_grad(), torch.autocast("cpu", network.dtype, enabled=network.dtype is not None):
                logits = student.heads["ground"](student.features(picture[None]), None).float()
            full = F.interpolate(logits, size=image.shape[:2], mode="bilinear", align_corners=False)[0].softmax(0)
            every.append(full.flip(-1) if mirrored else full)
    return torch.stack(every).mean(0)


@pytest.mark.parametrize("flip", [False, True])
def test_a_mask_is_the_mean_over_sizes_and_flips(model, flip):
    (image,) = _images((45, 45))
    (mask,) = _open(model, scales=(0.5, 1.0, 1.5), flip=flip).predict([image])
    expected = _slow(model, image, [32, 64, 96], flip)
    clear = expected.topk(2, 0).values.diff(dim=0)[0].abs() > 1e-4
    assert torch.equal(mask.ids[clear].long(), expected.argmax(0)[clear])
    assert float((mask.confidence - 255 * expected.amax(0)).abs().max()) <= 0.51
    assert len(mask.ids.unique()) > 1
    (plain,) = _open(model).predict([image])
    assert (plain.ids != mask.ids).any()


def test_one_look_at_the_models_own_size_is_the_plain_prediction(model):
    images = _images((40, 54), (30, 20))
    network = prepare(load_model(model).student, CPU)
    laid = [letterbox(image, 64) for image in images]
    wanted = network.predict(torch.stack([p for p, _ in laid]), [f for _, f in laid], ["ground"])["ground"]
    for said, mask in zip(_open(model).predict(images), wanted, strict=True):
        assert torch.equal(said.ids, mask.ids)
        assert torch.equal(said.confidence, mask.confidence)


def test_the_mirrored_image_gives_the_mirrored_mask_exactly(model):
    images = _images((40, 54), (30, 20), (45, 54))
    teacher = _open(model, scales=(0.5, 1.0), flip=True)
    for one, other in zip(teacher.predict(images), teacher.predict([i[:, ::-1] for i in images]), strict=True):
        assert torch.equal(one.ids, other.ids.flip(1))
        assert torch.equal(one.confidence, other.confidence.flip(1))
    (one,), (other,) = (_open(model).predict([i]) for i in (images[0], images[0][:, ::-1]))
    assert (one.ids != other.ids.flip(1)).any()


@pytest.mark.parametrize("many", [False, True])
def test_classes_that_exclude_one_another_for_one_of_the_two_alone_are_refused(tmp_path, many):
    backbone = Timm(name="resnet18", options={"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 32]})
    task = Classification(classes=NAMES, multi_label=many)
    save_model(tmp_path, Model(backbone=backbone, size=64).build({"kinds": task}), {"kinds": LabelSpace(NAMES)})
    part = Checkpoint(path=tmp_path)
    part.open("kinds", task.but(label_smoothing=0.1), Path(), CPU)
    with pytest.raises(UserError, match="whether classes exclude one another") as error:
        part.open("kinds", task.but(multi_label=not many), Path(), CPU)
    assert (error.value.field, error.value.value) == ("multi_label", f"{many}, not {not many}")


def test_a_model_of_several_heads_is_asked_for_the_one_that_it_fills(tmp_path):
    backbone = Timm(name="resnet18", options={"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 32]})
    kinds, colours = Classification(classes=NAMES), Classification(classes=("red", "blue"))
    save_model(tmp_path / "two", Model(backbone=backbone, size=64).build({"kinds": kinds, "colours": colours}), {})
    save_model(tmp_path / "one", Model(backbone=backbone, size=64).build({"kinds": kinds}), {})
    two, one = Checkpoint(path=tmp_path / "two"), Checkpoint(path=tmp_path / "one")
    assert settle("colours", Classification(), {}, two, Path())[0].classes == colours.classes
    assert settle("others", Classification(), {}, two.but(head="kinds"), Path())[0].classes == NAMES
    assert settle("others", Classification(), {}, one, Path())[0].classes == NAMES
    assert one.open("others", kinds, Path(), CPU).head == "others"
    with pytest.raises(UserError, match="no head 'others'") as error:
        settle("others", Classification(), {}, two, Path())
    assert "kinds, colours" in str(error.value.fix)


def test_few_images_at_a_time_change_nothing_but_the_memory(model, monkeypatch):
    images = _images((40, 54), (30, 20), (45, 54))
    teacher = _open(model, scales=(1.0, 1.5))
    together = teacher.predict(images)
    monkeypatch.setattr(own, "_HELD", 1)
    for one, other in zip(together, teacher.predict(images), strict=True):
        assert one.ids.shape == other.ids.shape
        assert (one.ids != other.ids).float().mean() < 0.01
        assert (one.confidence.int() - other.confidence.int()).abs().max() <= 1


def test_inputs_are_whole_multiples_of_the_stride():
    assert _views(640, 32, (0.5, 0.75, 1, 1.25, 1.5, 1.75), False) == [
        (side, False) for side in (320, 480, 640, 800, 960, 1120)
    ]
    assert _views(64, 32, (0.5, 0.6, 1.0), True) == [(32, False), (32, True), (64, False), (64, True)]
    assert _views(50, 32, (1.0, 0.1), False) == [(50, False), (32, False)]
    assert _views(224, 14, (1.2,), False) == [(266, False)]


def test_a_vision_transformer_is_looked_at_in_several_sizes():
    backbone = Timm(
        name="vit_tiny_patch16_224",
        options={"depth": 1, "embed_dim": 24, "num_heads": 2, "img_size": 64},
    )
    student = Model(backbone=backbone, pyramid=Pyramid(width=8), size=64).build({"ground": Segmentation(classes=NAMES)})
    teacher = own.OwnTeacher(
        Saved(student.eval(), {}, "v1", Path("vit")), "ground", CPU, scales=(0.7, 1.0, 1.3), flip=True
    )
    (mask,) = teacher.predict(_images((40, 50)))
    assert mask.ids.shape == (40, 50)
    assert teacher.about["sizes"] == [48, 64, 80]


def test_settings_count_in_the_digest_and_are_stated(model):
    plain, scaled, flipped = (
        Checkpoint(path=model, head="ground", **options) for options in ({}, {"scales": (1.0, 1.5)}, {"flip": True})
    )
    assert len({part.digest(Path()) for part in (plain, scaled, flipped)}) == 3
    teacher = _open(model, scales=(0.5, 1.0), flip=True)
    assert teacher.hash != _open(model).hash
    assert teacher.about["sizes"] == [32, 64]
    assert teacher.about["flip"] is True
    assert "sizes" not in _open(model).about


@pytest.mark.parametrize("options", [{"scales": (1.0, 2.0)}, {"flip": True}])
def test_only_masks_are_averaged(model, options):
    part = Checkpoint(path=model, head="depth", **options)
    with pytest.raises(UserError, match="only masks are averaged"):
        part.does(Path())  # what `check` asks
    with pytest.raises(UserError, match="only masks are averaged"):
        part.open("depth", Depth(), Path(), CPU)
    part.but(head="ground").does(Path())


def test_an_image_that_is_gone_is_set_aside_when_a_teacher_is_judged(model, tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "images").mkdir()
    for name in "abc":
        Image.new("RGB", (20, 20), "green").save(tmp_path / f"images/{name}.png")
        Image.new("L", (20, 20), 1).save(tmp_path / f"masks/{name}.png")
    source = Masks(head="ground", images="images", masks="masks", classes=NAMES)
    dataset = source.open("mine", Place(tmp_path, tmp_path))
    (tmp_path / "images/b.png").unlink()
    quarantine = Quarantine(tmp_path / QUARANTINE, 3, limit=1.0)
    assert score_teacher(_open(model), dataset, quarantine).images == 2
    (entry,) = read_json_lines(tmp_path / QUARANTINE)
    assert (entry["id"], entry["sha256"], entry["stage"]) == ("mine/b.png", "", "decode")


def test_a_network_that_fails_gives_what_the_store_refuses(model):
    for options in ({}, {"scales": (0.5, 1.0), "flip": True}):
        teacher = _open(model, **options)
        with torch.no_grad():
            teacher.network.student.heads["ground"].last.bias[0] = float("nan")
        (mask,) = teacher.predict(_images((40, 54)))
        with pytest.raises(BadPrediction, match="not finite"):
            encode(mask, Form("ground", Mask, 3), (40, 54))
