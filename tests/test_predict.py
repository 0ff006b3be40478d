"""`tutelage predict`: pictures and JSON of all heads, named after the images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tutelage
from tutelage.api import as_pixels, predict_files
from tutelage.data.source import LabelSpace
from tutelage.errors import UserError
from tutelage.models.backbone import Timm
from tutelage.models.pyramid import Pyramid
from tutelage.models.student import Model
from tutelage.progress import SILENT
from tutelage.tasks import Classification, Depth, Normals, Segmentation
from tutelage.training.checkpoint import save_model

NAMES = ("road", "tree", "sky")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    backbone = Timm(name="resnet18", options={"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 32]})
    heads = {
        "kind": Classification(classes=NAMES),
        "ground": Segmentation(classes=NAMES, pseudo_threshold=0.1),
        "depth": Depth(),
        "normals": Normals(),
    }
    student = Model(backbone=backbone, pyramid=Pyramid(width=16), size=64).build(heads)
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, student, {name: LabelSpace(NAMES) for name in ("kind", "ground")})
    return folder


def photo(path: Path, height: int = 20, width: int = 30) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_what_stands_in_the_files_is_what_the_model_says(model, tmp_path):
    image, out = photo(tmp_path / "in" / "cat.png"), tmp_path / "said"
    assert predict_files(model, [image], out, SILENT) == 0
    said = tutelage.load(model).predict(image)
    plain = json.loads((out / "cat.json").read_text())
    assert (plain["image"], plain["height"], plain["width"]) == (str(image), 20, 30)
    found = plain["heads"]
    best = int(said["kind"].probs.argmax())
    assert found["kind"]["classes"][0] == {
        "class": NAMES[best],
        "probability": pytest.approx(float(said["kind"].probs[best])),
    }
    ids = np.asarray(Image.open(out / found["ground"]["file"]))
    np.testing.assert_array_equal(ids, said["ground"].ids.numpy())
    assert found["ground"]["classes"] == {
        name: pytest.approx(float((ids == number).mean()), abs=1e-5)
        for number, name in enumerate(NAMES)
        if (ids == number).any()
    }
    np.testing.assert_array_equal(np.load(out / found["depth"]["file"]), said["depth"].values.numpy())
    assert found["depth"]["minimum"] == pytest.approx(float(said["depth"].values.min()))
    assert np.load(out / found["normals"]["file"]).shape == (3, 20, 30)
    assert {path.name for path in out.glob("*.jpg")} == {f"cat-{head}.jpg" for head in said}


def test_no_image_takes_the_name_of_another_and_a_broken_one_is_counted(model, tmp_path, capsys):
    images = [photo(tmp_path / folder / name) for folder, name in (("a", "x.png"), ("b", "x.png"), ("b", "x-2.png"))]
    broken = tmp_path / "b" / "broken.png"
    broken.write_bytes(b"no image")
    out = tmp_path / "said"
    assert predict_files(model, [*images, broken], out, SILENT) == 1
    names = {path.stem: json.loads(path.read_text())["image"] for path in out.glob("*.json")}
    assert names == dict(zip(("x", "x-2", "x-2-2"), map(str, images), strict=True))


@pytest.mark.parametrize(
    ("kind", "problem", "fix"),
    [
        ("small", "too small: 1 x 1", "give a larger image"),
        ("truncated", "cannot be decoded", "the file is damaged"),
        ("empty", r"empty \(0 bytes\)", "the file is damaged"),
        ("text", "not an image of a format", "give a JPEG, PNG or WebP"),
        ("folder", "cannot be read: Is a directory", "name the image files in it"),
        ("absent", "cannot be read: No such file", "check the path"),
    ],
)
def test_the_advice_fits_what_is_wrong_with_an_image(tmp_path, kind, problem, fix):
    path = tmp_path / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    match kind:
        case "small":
            Image.new("RGB", (1, 1)).save(path)
        case "truncated":
            path.write_bytes(whole[: len(whole) // 2])
        case "empty" | "text":
            path.write_bytes(b"" if kind == "empty" else b"not a picture")
        case "folder":
            path = tmp_path
        case "absent":
            path.unlink()
    with pytest.raises(UserError, match=problem) as caught:
        as_pixels(path)
    assert (caught.value.fix or "").startswith(fix)


def test_nothing_is_written_among_the_images(model, tmp_path):
    images = [photo(tmp_path / name) for name in ("cat.png", "cat-ground.png")]
    before = [path.read_bytes() for path in images]
    with pytest.raises(UserError, match=r"among the images"):
        predict_files(model, images, tmp_path, SILENT)
    assert [path.read_bytes() for path in images] == before
    assert sorted(tmp_path.iterdir()) == sorted(images)
