"""ONNX models and functions as teachers: what they say, image by image, and what is refused before the first one."""

from __future__ import annotations

import importlib
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from tutelage.data import CocoBoxes, Pool
from tutelage.data.source import Place
from tutelage.errors import UserError
from tutelage.labels.labelling import label_pool
from tutelage.labels.store import LabelsView, Store
from tutelage.part import parse, to_yaml, yaml_to_plain
from tutelage.recipe import Recipe, read_recipe
from tutelage.tasks import Classification, Depth, Detection, Normals, Segmentation
from tutelage.teachers import FunctionTeacher, OnnxTeacher
from tutelage.teachers.inputs import Input
from tutelage.teachers.onnx import boxes_in_image
from tutelage.teachers.onnx_data import external_files
from tutelage.teachers.stated import function_source
from tutelage.types import Boxes, Field, Label, Mask

onnx = pytest.importorskip("onnx", reason="onnx, which makes the models of these tests, is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

CPU = torch.device("cpu")
RAW = Input(size=(16, 32), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
CLASSES = ("red", "green", "blue")
SWAP = np.array([[0, 0, 4], [0, 4, 0], [4, 0, 0]], np.float32)  # logits: four times blue, green, red
SHARED = Path(__file__).parent.parent.parent / "shared"
EXAMPLE = Path(__file__).parent.parent / "examples" / "label_photos.py"


def save(path, nodes, shape, outputs, weights=(), kind=TensorProto.FLOAT, location=None):
    """A model of one input "image" in a file; with a location, the first weight is kept there."""
    tensors = [numpy_helper.from_array(value, name) for name, value in weights]
    if location is not None:
        (path.parent / "beside.bin").write_bytes(tensors[0].raw_data)
        tensors[0].ClearField("raw_data")
        tensors[0].data_location = TensorProto.EXTERNAL
        tensors[0].external_data.add(key="location", value=location)
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", kind, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def classifier(path, batch="n", extra=(), output="logits", **options):
    """Mean colour times SWAP."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        *extra,
    ]
    return save(path, nodes, [batch, 3, 16, 32], [output], [("weight", SWAP)], **options)


def pooled(path, channels, batch="n", size=(16, 32), output="maps"):
    """Means of 4 x 4 pixels, through a 1x1 convolution to as many channels; the first repeats red, the last blue."""
    weight = np.zeros((channels, 3, 1, 1), np.float32)
    weight[np.arange(channels), np.arange(channels) % 3] = 8
    nodes = [
        helper.make_node("AveragePool", ["image"], ["small"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Conv", ["small", "weight"], [output]),
    ]
    return save(path, nodes, [batch, 3, *size], [output], [("weight", weight)])


def images(count, size=(16, 32), seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8))


def teacher(path, task, **options):
    part = OnnxTeacher(file=path, task=task, **({"input": RAW} | options))
    return part.open("things", part.does(Path()), Path(), CPU)


def bright_box(outputs, frame, size):
    """The rectangle of bright cells in the red map, as class 1."""
    rows, columns = np.nonzero(outputs[0][0] > 4)
    if len(rows) == 0:
        return Boxes.make([], [])
    cell = size[0] / outputs[0].shape[1]
    box = [columns.min() * cell, rows.min() * cell, (columns.max() + 1) * cell, (rows.max() + 1) * cell]
    return boxes_in_image(torch.tensor([box]), torch.tensor([1]), torch.tensor([0.8]), frame)


# --- what they say --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, "n"])
def test_a_classifier_says_the_softmax_of_its_logits(tmp_path, batch):
    pictures = images(5)
    known = teacher(classifier(tmp_path / "m.onnx", batch), Classification(classes=CLASSES))
    assert known.about["batch"] == (None if batch == "n" else batch)
    logits = np.stack([p.reshape(-1, 3).mean(0) / 255 for p in pictures]) @ SWAP
    wanted = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    said = known.predict(pictures)
    assert all(isinstance(target, Label) for target in said)
    np.testing.assert_allclose(torch.stack([t.probs for t in said]).numpy(), wanted, atol=1e-5)
    np.testing.assert_allclose(known.predict(pictures[3:4])[0].probs.numpy(), wanted[3], atol=1e-5)


def test_a_model_that_only_holds_for_one_image_gets_one_at_a_time(tmp_path):
    """Its input says any number, but a constant shape inside does not."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Reshape", ["mean", "shape"], ["flat"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, ["n", 3, 16, 32], ["flat"], [("shape", np.array([1, 3], np.int64))])
    known = teacher(path, Classification(classes=CLASSES))
    assert known.about["batch"] == 1
    assert [
        int(t.probs.argmax()) for t in known.predict([np.full((9, 9, 3), c, np.uint8) for c in np.eye(3) * 200])
    ] == [
        0,
        1,
        2,
    ]


def test_normalisation_channels_layout_and_bytes(tmp_path):
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:, :, 0] = 200
    task = Classification(classes=CLASSES)

    def mean(path, **options):
        return teacher(path, task, **options).predict([picture])[0].probs.log().numpy()

    def centred(values):
        return values - np.mean(values)

    red = np.array([200 / 255, 0, 0])
    path = classifier(tmp_path / "m.onnx")
    np.testing.assert_allclose(centred(mean(path)), centred(red @ SWAP), atol=1e-5)
    np.testing.assert_allclose(centred(mean(path, channels="bgr")), centred(red[::-1] @ SWAP), atol=1e-5)
    other = RAW.but(mean=(0.5, 0.2, 0.1), std=(0.5, 0.25, 2.0))
    normal = (red - [0.5, 0.2, 0.1]) / [0.5, 0.25, 2.0]
    np.testing.assert_allclose(centred(mean(path, input=other)), centred(normal @ SWAP), atol=1e-5)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["sum"], axes=[1, 2], keepdims=0),
        helper.make_node("Mul", ["sum", "small"], ["logits"]),
    ]
    weights = [("small", np.array(0.01, np.float32))]
    file = save(tmp_path / "b.onnx", nodes, [1, 16, 32, 3], ["logits"], weights, TensorProto.UINT8)
    byte = RAW.but(std=(1 / 255,) * 3)
    np.testing.assert_allclose(centred(mean(file, layout="nhwc", input=byte)), centred([2, 0, 0]), atol=1e-5)


def test_probabilities_are_taken_as_they_are_and_must_be_named(tmp_path):
    softmax = [helper.make_node("Softmax", ["logits"], ["probs"], axis=1)]
    path = classifier(tmp_path / "m.onnx", extra=softmax, output="probs")
    task = Classification(classes=CLASSES)
    (said,) = teacher(path, task, scores="probabilities").predict(images(1))
    logits = images(1)[0].reshape(-1, 3).mean(0) / 255 @ SWAP
    np.testing.assert_allclose(said.probs.numpy(), np.exp(logits) / np.exp(logits).sum(), atol=1e-5)
    with pytest.raises(UserError, match=r"(?s)a probability a class.*scores: probabilities"):
        teacher(path, task)
    with pytest.raises(UserError, match="not a probability"):
        teacher(classifier(tmp_path / "l.onnx"), task, scores="probabilities")
    many = teacher(classifier(tmp_path / "l.onnx"), Classification(classes=CLASSES, multi_label=True))
    np.testing.assert_allclose(many.predict(images(1))[0].probs.numpy(), 1 / (1 + np.exp(-logits)), atol=1e-5)


@pytest.mark.parametrize("batch", [1, "n"])
def test_masks_lie_where_the_colours_are(tmp_path, batch):
    """Colours in quarters of a picture twice as large as the input, in its own ratio and not."""
    colours = np.eye(3, dtype=np.uint8)[[0, 1, 2, 0]] * 255
    for size, input in (((32, 64), RAW), ((32, 32), RAW.but(fit="letterbox"))):
        picture = np.repeat(np.repeat(colours.reshape(2, 2, 3), size[0] // 2, 0), size[1] // 2, 1)
        known = teacher(pooled(tmp_path / "m.onnx", 3, batch), Segmentation(classes=CLASSES), input=input)
        first, second = known.predict([picture, picture[:, ::-1].copy()])
        wanted = torch.from_numpy(picture.argmax(2).astype(np.uint8))
        assert isinstance(first, Mask)
        assert first.ids.shape == size
        assert float((first.ids == wanted).float().mean()) > 0.95
        assert float((second.ids == wanted.flip(1)).float().mean()) > 0.95
        assert first.confidence is not None
        assert int(first.confidence[2, 2]) == round(255 / (1 + 2 * np.exp(-8)))


def test_masks_are_averaged_over_scales_and_flips(tmp_path, monkeypatch):
    """The model moves every colour four pixels to the left, which looking both ways makes up for."""
    task = Segmentation(classes=CLASSES)
    weight = np.zeros((3, 3, 1, 3), np.float32)
    weight[:, :, 0, 2] = 8 * np.eye(3)
    nodes = [
        helper.make_node("AveragePool", ["image"], ["small"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Conv", ["small", "weight"], ["maps"], pads=[0, 1, 0, 1]),
    ]
    path = save(tmp_path / "m.onnx", nodes, ["n", 3, "h", "w"], ["maps"], [("weight", weight)])
    picture = images(1)[0]
    once, other = teacher(path, task, scales=(0.5, 1.0)).predict([picture, picture[:, ::-1].copy()])
    assert not torch.equal(once.ids, other.ids.flip(1))
    known = teacher(path, task, scales=(0.5, 1.0), flip=True)
    plain, mirrored = known.predict([picture, picture[:, ::-1].copy()])
    assert torch.equal(plain.ids, mirrored.ids.flip(1)), "looked at both ways, left and right are alike"
    assert not torch.equal(plain.confidence, teacher(path, task).predict([picture])[0].confidence)
    run, seen = known._session.run, []
    monkeypatch.setattr(known._session, "run", lambda batch: seen.append(len(batch)) or run(batch))
    many = known.predict([picture] * 7)
    assert seen == [1] * 28, "all looks at one part take about the memory of one at the batch: 7 images, 4 looks"
    assert all(torch.equal(mask.confidence, plain.confidence) for mask in many)
    with pytest.raises(UserError, match=r"another shape than images of 8 x 16"):
        teacher(pooled(tmp_path / "f.onnx", 3), task, scales=(0.5, 1.0))
    with pytest.raises(UserError, match="only masks are averaged"):
        teacher(classifier(tmp_path / "c.onnx"), Classification(classes=CLASSES), flip=True)


def test_depth_is_laid_back_to_the_image(tmp_path):
    ramp = np.repeat(np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 32, 0), 3, 2)
    known = teacher(pooled(tmp_path / "m.onnx", 1), Depth(mode="relative", target="inverse"))
    (said,) = known.predict([ramp])
    assert isinstance(said, Field)
    assert said.values.shape == (32, 64)
    inner = said.values[:, 4:-4] - 8 * torch.from_numpy(ramp[:, 4:-4, 0].astype(np.float32)) / 255
    assert float(inner.abs().max()) < 0.05
    part = OnnxTeacher(file=tmp_path / "m.onnx", input=RAW, task=Depth(mode="relative", target="inverse"))
    with pytest.raises(UserError, match=r"(?s)mean something else.*mode"):
        part.open("things", Depth(), Path(), CPU)


@pytest.mark.parametrize("fit", ["squash", "letterbox"])
def test_boxes_are_what_the_decode_function_makes_of_the_outputs(tmp_path, fit):
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[16:48, 32:64] = 255
    known = teacher(
        pooled(tmp_path / "m.onnx", 3, 1), Detection(classes=("a", "b")), decode=bright_box, input=RAW.but(fit=fit)
    )
    found, nothing = known.predict([picture, np.zeros_like(picture)])
    assert found.boxes.tolist() == [[32, 16, 64, 48]]
    assert (found.classes.tolist(), len(nothing)) == ([1], 0)


def test_boxes_in_the_padding_are_dropped_and_the_best_comes_first():
    from tutelage.data.geometry import Frame

    frame = Frame(50, 100, 16, 32)  # in an input of 32 x 32
    boxes = torch.tensor([[0.0, 0, 16, 8], [0, 20, 10, 30], [16, 8, 40, 20]])
    found = boxes_in_image(boxes, torch.tensor([0, 1, 2]), torch.tensor([0.5, 0.9, 0.7]), frame)
    assert found.classes.tolist() == [2, 0]
    assert found.boxes.tolist() == [[50, 25, 100, 50], [0, 0, 50, 25]]
    assert len(boxes_in_image(boxes[:0], torch.tensor([], dtype=torch.int64), torch.tensor([]), frame)) == 0


def two_outputs(outputs, frame, size):
    assert [array.ndim for array in outputs] == [2, 1], "no axis is taken away"
    return boxes_in_image(torch.from_numpy(outputs[0]), torch.zeros(1, dtype=torch.int64), torch.ones(1), frame)


def test_outputs_without_a_batch_axis(tmp_path):
    """As detectors give them that suppress boxes inside the model: boxes [N,4], scores [N]."""
    nodes = [helper.make_node("Identity", ["box"], ["boxes"]), helper.make_node("Identity", ["score"], ["scores"])]
    weights = [("box", np.array([[0, 0, 16, 8]], np.float32)), ("score", np.ones(1, np.float32))]
    path = save(tmp_path / "m.onnx", nodes, [1, 3, 16, 32], ["boxes", "scores"], weights)
    known = teacher(path, Detection(classes=("a",)), decode=two_outputs, batched=False)
    assert [t.boxes.tolist() for t in known.predict(images(2, (32, 64)))] == [[[0, 0, 32, 16]]] * 2
    with pytest.raises(ValueError, match="need `decode`"):
        OnnxTeacher(file=path, input=RAW, task=Classification(classes=CLASSES), batched=False)


def test_an_output_that_is_no_number_is_set_aside_and_not_taken_for_an_empty_image(tmp_path):
    """A decode function's threshold would drop every box without a word."""

    nodes = [
        helper.make_node("AveragePool", ["image"], ["small"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Log", ["small"], ["maps"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, ["n", 3, 16, 32], ["maps"])
    low = RAW.but(mean=(0.0, 0.0, 0.0), std=(-1.0, -1.0, -1.0))  # anything but black is below zero
    known = teacher(path, Detection(classes=("a", "b")), decode=bright_box, input=low)
    black, bright = known.predict([np.zeros((16, 32, 3), np.uint8), np.full((16, 32, 3), 9, np.uint8)])
    assert len(black) == 0
    assert bool(bright.scores.isnan().all())
    assert len(bright) == 1


# --- what is refused ------------------------------------------------------------------------------------------------


def test_faults_of_files(tmp_path):
    task = Classification(classes=CLASSES)
    with pytest.raises(UserError, match=r"(?s)cannot be read: No such file.*none.onnx"):
        teacher(tmp_path / "none.onnx", task)
    for name, content in (("text", b"<html>not found</html>"), ("empty", b""), ("zeros", bytes(1000))):
        (tmp_path / f"{name}.onnx").write_bytes(content)
        with pytest.raises(UserError, match=f"(?s)ONNX model.*{name}.onnx"):
            teacher(tmp_path / f"{name}.onnx", task)
    whole = classifier(tmp_path / "m.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[:-20])
    with pytest.raises(UserError, match=r"(?s)no ONNX model: it is cut off.*cut.onnx"):
        teacher(tmp_path / "cut.onnx", task)
    other = [helper.make_node("Secret", ["image"], ["y"], domain="com.other")]
    with pytest.raises(UserError, match="onnxruntime cannot load this model"):
        teacher(save(tmp_path / "custom.onnx", other, [1, 3, 16, 32], ["y"]), task)


def test_weights_beside_the_model_belong_to_it_and_others_are_not_read(tmp_path):
    (tmp_path / "inner").mkdir()
    task = Classification(classes=CLASSES)
    path = classifier(tmp_path / "inner" / "m.onnx", location="beside.bin")
    assert external_files(path) == ((tmp_path / "inner" / "beside.bin").resolve(),)
    before = teacher(path, task)
    (tmp_path / "inner" / "beside.bin").write_bytes((2 * SWAP).tobytes())
    after = teacher(path, task)
    assert after.hash != before.hash
    assert not torch.allclose(after.predict(images(1))[0].probs, before.predict(images(1))[0].probs)
    (tmp_path / "secret.bin").write_bytes(SWAP.tobytes())
    (tmp_path / "inner" / "link.bin").symlink_to(tmp_path / "secret.bin")
    for location in ("../secret.bin", str(tmp_path / "secret.bin"), "link.bin"):
        path = classifier(tmp_path / "inner" / "bad.onnx", location=location)
        with pytest.raises(UserError, match="outside its folder"):
            teacher(path, task)
    path = classifier(tmp_path / "inner" / "gone.onnx", location="gone.bin")
    with pytest.raises(UserError, match=r"(?s)cannot be read.*gone.bin"):
        teacher(path, task)


def test_shapes_and_classes_that_do_not_fit(tmp_path):
    path = classifier(tmp_path / "m.onnx")
    with pytest.raises(UserError, match=r"(?s)gives 3 classes an image, its label space has 2"):
        teacher(path, Classification(classes=CLASSES[:2]))
    with pytest.raises(UserError, match=r"(?s)images of 24 x 32 pixels, nchw.*16, 32"):
        teacher(path, Classification(classes=CLASSES), input=RAW.but(size=(24, 32)))
    with pytest.raises(UserError, match=r"another shape"):
        teacher(path, Classification(classes=CLASSES), layout="nhwc")
    nhwc = [helper.make_node("ReduceMean", ["image"], ["y"], axes=[1, 2], keepdims=0)]
    with pytest.raises(UserError, match="layout: nhwc"):
        teacher(save(tmp_path / "n.onnx", nhwc, [1, 16, 32, 3], ["y"]), Classification(classes=CLASSES))
    with pytest.raises(UserError, match=r"(?s)label space has 4"):
        teacher(pooled(tmp_path / "s.onnx", 3), Segmentation(classes=(*CLASSES, "more")))
    with pytest.raises(UserError, match=r"(?s)must be \[y,x\].*\(3, 4, 8\)"):
        teacher(pooled(tmp_path / "s.onnx", 3), Depth())
    with pytest.raises(UserError, match=r"(?s)must be \[K\]"):
        teacher(pooled(tmp_path / "s.onnx", 3), Classification(classes=CLASSES))
    with pytest.raises(UserError, match="no such output"):
        teacher(path, Classification(classes=CLASSES), output="other")
    with pytest.raises(UserError, match="no such input"):
        teacher(path, Classification(classes=CLASSES), input_name="other")
    part = OnnxTeacher(file=path, input=RAW, task=Classification(classes=CLASSES))
    with pytest.raises(UserError, match=r"(?s)another label space than the head.*class 0 is 'red'"):
        part.open("things", Classification(classes=CLASSES[::-1]), Path(), CPU)
    with pytest.raises(UserError, match="does another task"):
        part.open("things", Segmentation(classes=CLASSES), Path(), CPU)


def wrong_class(outputs, frame, size):
    return Boxes.make([[0, 0, 1, 1]], [7])


def wrong_kind(outputs, frame, size):
    return Label(torch.ones(2))


def test_faults_of_decode(tmp_path):
    path = pooled(tmp_path / "m.onnx", 3)
    for task in (Detection(classes=("a",)), Normals()):
        with pytest.raises(ValueError, match=r"(?s)give `decode`, a function, in a recipe that is a Python file"):
            OnnxTeacher(file=path, input=RAW, task=task)
    with pytest.raises(UserError, match=r"(?s)classes.*\[7\].*0 to 1"):
        teacher(path, Detection(classes=("a", "b")), decode=wrong_class)
    with pytest.raises(UserError, match=r"(?s)kind.*'Label'.*Boxes"):
        teacher(path, Detection(classes=("a", "b")), decode=wrong_kind)
    with pytest.raises(ValueError, match="no lambda"):
        OnnxTeacher(file=path, input=RAW, task=Detection(classes=("a",)), decode=lambda *_: None)
    with pytest.raises(UserError, match=r"task.classes"):
        teacher(path, Segmentation())


def test_the_text_form(tmp_path):
    (tmp_path / "names.txt").write_text("red\ngreen\nblue\n")
    text = """
name: mine
heads: {colour: {task: classification}}
sources: {pool: {format: pool, images: .}}
teachers:
  colour:
    kind: onnx
    file: m.onnx
    task: {task: classification}
    classes_file: names.txt
    input: {size: [16, 32], mean: [0, 0, 0], std: [1, 1, 1]}
"""
    recipe = parse(Recipe, yaml_to_plain(text))
    part = recipe.teachers["colour"]
    assert isinstance(part, OnnxTeacher)
    assert part.does(tmp_path).classes == CLASSES
    assert parse(Recipe, yaml_to_plain(to_yaml(recipe.plain()))) == recipe
    classifier(tmp_path / "m.onnx")
    assert part.digest(tmp_path) != part.but(channels="bgr").digest(tmp_path)
    with pytest.raises(UserError, match=r"(?s)decode.*cannot be written as text.*Python file"):
        parse(Recipe, yaml_to_plain(text + "    decode: my.module:decode\n"))


# --- functions ------------------------------------------------------------------------------------------------------

LEVEL = 0.5


def brightest(images):
    return [
        Label(torch.tensor(image.reshape(-1, 3).sum(0) / max(1, image.sum()), dtype=torch.float32)) for image in images
    ]


def make_brightest(files, device):
    assert all(file.is_file() for file in files)
    return brightest


def make_nothing(files, device):
    assert LEVEL


def make_short(files, device):
    return lambda images: []


def make_long(files, device):
    return lambda images: [Label(torch.ones(4)) for _ in images]


def test_a_function_is_a_teacher(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"one")
    part = FunctionTeacher(make=make_brightest, task=Classification(classes=CLASSES), files=("weights.bin",))
    assert pickle.loads(pickle.dumps(part)) == part
    assert part.plain()["make"] == f"{__name__}:make_brightest"
    known = part.open("colour", part.does(tmp_path), tmp_path, CPU)
    assert [int(t.probs.argmax()) for t in known.predict(list(np.eye(3, dtype=np.uint8)[:, None, None] * 200))] == [
        0,
        1,
        2,
    ]
    assert known.predict([]) == []
    assert known.hash == part.digest(tmp_path) == part.but(version="1").digest(tmp_path)
    assert known.about["weights"] == ["weights.bin"]
    assert known.hash != part.but(version="2").digest(tmp_path)
    assert known.hash != part.but(make=make_short).digest(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"two")
    assert known.hash != part.digest(tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(UserError, match=r"(?s)cannot be read.*weights.bin"):
        part.open("colour", part.does(tmp_path), tmp_path, CPU)


def test_a_function_is_known_by_what_it_uses_of_its_module():
    assert set(function_source(make_brightest)) == {"make_brightest", "brightest"}
    assert function_source(make_nothing)["LEVEL"] == "0.5"


_USED = """
import functools, torch
import numpy as np
if True:
    MEAN = np.array([0.5])
BOUND = functools.partial(int, base=2)

def twice(function):
    @functools.wraps(function)
    def both(x):
        return function(x) * 2
    return both

@torch.no_grad()
def logits(x):
    return normalise(x)

def normalise(x):
    return x - MEAN

@functools.lru_cache
def kept():
    return BOUND

class Base:
    scale = 3

class Own(Base):
    @staticmethod
    def there():
        return helper()
    @property
    def here(self):
        return 1

def helper():
    return 4

@twice
def make(files, device):
    '''Says __file__ and unused.'''
    return lambda images: logits(Own.there() + kept())

unused = x = 5
"""


def test_what_a_function_uses_is_found_behind_decorators_classes_and_values(tmp_path, monkeypatch):
    def digests(text: str) -> dict[str, str]:
        name = f"used{len(list(tmp_path.iterdir()))}"
        (tmp_path / f"{name}.py").write_text(text)
        return function_source(importlib.import_module(name).make)

    monkeypatch.syspath_prepend(str(tmp_path))
    known = digests(_USED)
    assert set(known) == {
        *("make", "twice", "logits", "normalise", "MEAN", "kept", "BOUND", "Own", "Base", "helper"),
    }
    for before, after in (("[0.5]", "[0.6]"), ("base=2", "base=8"), ("* 2", "* 3"), ("x - MEAN", "x + MEAN")):
        assert digests(_USED.replace(before, after)) != known, before
    assert digests(_USED.replace("scale = 3", "scale = 4")) != known
    assert digests(_USED.replace("return 4", "return 5")) != known
    assert digests(_USED.replace("x = 5", "x = 6")) == known


def test_a_function_without_text_is_refused():
    nowhere: dict = {"__name__": __name__}
    exec("def made(files, device): return None", nowhere)
    with pytest.raises(UserError, match="no source text"):
        function_source(nowhere["made"])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_nothing, "must return a function that labels"),
        (make_short, "gives 0 predictions for one image"),
        (make_long, r"(?s)probabilities of shape.*\(4,\).*\(3,\)"),
    ],
)
def test_faults_of_functions(make, words):
    part = FunctionTeacher(make=make, task=Classification(classes=CLASSES))
    with pytest.raises(UserError, match=words):
        part.open("colour", part.does(Path()), Path(), CPU)


def test_a_function_in_text_is_refused():
    plain = {"task": {"task": "classification"}, "kind": "function", "make": "a:b"}
    with pytest.raises(UserError, match="'function' is not known"):
        parse(Recipe, {"name": "x", "heads": {}, "sources": {}, "teachers": {"a": plain}})
    with pytest.raises(ValueError, match="cannot be written as text"):
        FunctionTeacher(make="a:b", task=Classification(classes=CLASSES))
    with pytest.raises(UserError, match="only masks are averaged"):
        FunctionTeacher(make=make_long, task=Classification(classes=CLASSES), flip=True).does(Path())


# --- real models ----------------------------------------------------------------------------------------------------

real = pytest.mark.skipif(
    not (SHARED / "teachers" / "fastestdet.onnx").is_file(),
    reason="the real models (../shared/teachers) are not at hand",
)


@pytest.fixture
def example():
    yield read_recipe(EXAMPLE, [f"data={SHARED}"])
    sys.path.remove(str(EXAMPLE.parent))
    del sys.modules["label_photos"]


@real
def test_a_real_detector_finds_the_large_objects_of_real_photographs(example):
    """FastestDet on 25 COCO photographs. On all 128: 70 % of large objects at a score of 0.5."""
    coco = CocoBoxes(
        head="boxes",
        images="data/coco128/images/val2017",
        annotations="data/coco128/annotations/instances_val2017.json",
    ).open("coco", Place(SHARED, Path()))
    part = example.teachers["boxes"]
    assert coco.space.names == part.task.classes
    known = part.open("boxes", example.heads["boxes"], SHARED, CPU)
    large = found = 0
    for index in range(25):
        truth = coco.target(index)
        if truth is None:
            continue
        (said,) = known.predict([coco.picture(index).read()])
        said = said.pick(said.scores >= 0.5)
        sides = truth.boxes[:, 2:] - truth.boxes[:, :2]
        truth = truth.pick((sides.prod(1) >= 96**2) & ~truth.ignore)
        fits = (box_iou(truth.boxes, said.boxes) >= 0.5) & (truth.classes[:, None] == said.classes)
        large, found = large + len(truth), found + int(fits.any(1).sum())
    assert large > 40
    assert found / large > 0.6


@real
def test_the_example_labels_photographs(example, tmp_path):
    """The ONNX and the TensorFlow Lite teacher in one pass over a golden retriever, a tabby and an airliner."""
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    wanted = {"n02099601.jpg": "dog", "n02123045.jpg": "cat", "n02690373.jpg": "airplane"}
    for file in wanted:
        (tmp_path / "pool").mkdir(exist_ok=True)
        (tmp_path / "pool" / file).symlink_to(SHARED / "data" / "photos" / file)
    pool = Pool(images="pool").open("photos", Place(tmp_path, tmp_path / "cache"))
    heads = {head: example.heads[head] for head in ("boxes", "masks")}
    teachers = [example.teachers[head].open(head, task, SHARED, CPU) for head, task in heads.items()]
    report = label_pool([pool], teachers, tmp_path / "labels")
    assert all(counts.labelled == 3 for counts in report.counts.values())
    said = LabelsView(Store(tmp_path / "labels"), heads)
    for file, name in wanted.items():
        boxes, mask = said.get("boxes", "photos", file), said.get("masks", "photos", file)
        assert name in [heads["boxes"].names[k] for k in boxes.classes.tolist()]
        counts = torch.bincount(mask.ids.flatten().long(), minlength=256)[1:255]
        shown = heads["masks"].names[1 + int(counts.argmax())]
        assert shown == {"airplane": "aeroplane"}.get(name, name)
