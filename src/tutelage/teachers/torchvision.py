"""Detectors and segmentation models of torchvision as teachers.

Letters in shapes: K classes, H and W pixels of the input, h and w pixels of an original image.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from tutelage.data.source import LabelSpace, UInt8
from tutelage.errors import UserError
from tutelage.models.backbone import find_weights, load_weights
from tutelage.part import nearest
from tutelage.tasks import Detection, Segmentation
from tutelage.tasks.segmentation import Look, check_maskable
from tutelage.tasks.task import Task
from tutelage.teachers.foreign import (
    SCORE_FLOOR,
    DetectedClasses,
    averaged,
    check_names,
    check_outputs,
    check_weights,
    check_whole,
    downloaded,
    in_groups,
    no_number,
    refuse_averaging,
    shown_path,
)
from tutelage.teachers.inputs import Input
from tutelage.teachers.teacher import Specialist, Teacher, check_task, digest_of
from tutelage.types import Boxes, Target

_SHORT_SIDE = 520
"""Pixels at which torchvision's segmentation models were trained and measured."""
_TWO_STAGE = ("faster_rcnn", "mask_rcnn", "keypoint_rcnn")
_FROZEN = frozenset(
    f"{name}_ResNet50_FPN_Weights.COCO_V1" for name in ("FasterRCNN", "MaskRCNN", "KeypointRCNN", "RetinaNet")
)
"""Weights that were trained with a batch norm that adds nothing to the variance."""


class TorchvisionTeacher(Specialist):
    """A detector or a segmentation model of torchvision. Boxes of its mask and keypoint models are used alone."""

    kind: Literal["torchvision"] = "torchvision"
    name: str
    """The builder: `fasterrcnn_resnet50_fpn_v2`, `deeplabv3_resnet50`."""
    weights: str = "torchvision"
    """`torchvision` for the library's own (they are downloaded, and their hash is checked), a path to a .safetensors or
    .pth file (read without running code), or `package:NAME/FILE` for a file inside an installed Python package."""
    weights_enum: str | None = None
    """Which of the library's weights are meant, or which the file's label space is that of:
    `FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1`. Left out, with `torchvision`, the default ones of the builder."""
    classes: tuple[str, ...] | None = None
    """The name of every id of the model, in order. For a detector, `__background__` and `N/A` stand for no class (id 0
    is the background in most of them); for masks, the background is a class like others. Left out, they follow
    from `weights_enum`."""
    options: dict[str, Any] = {}
    """Further arguments of the builder: `min_size`, `box_detections_per_img`."""
    input: Input | None = None
    """Masks only. Left out, an image is looked at in its own ratio with a shorter side of 520 pixels, as the models
    were trained; images of one size go together. One fixed size for all is faster on an accelerator."""

    def does(self, root: Path, fills: str | None = None) -> Task:
        """As `Specialist.does`."""
        names = self._names()
        if self._detects():
            refuse_averaging(self)
            if self.input is not None:
                raise UserError(
                    "torchvision's detectors resize their images themselves",
                    field="input",
                    value=list(self.input.size),
                    fix="leave out `input`; `options: {min_size: ...}` changes the size",
                )
            return Detection(classes=DetectedClasses.make(names).names)
        check_names(names)
        check_maskable(names)
        check_whole(self.input)
        return Segmentation(classes=names)

    def digest(self, root: Path) -> str:
        """As `Specialist.digest`; the library's own weights are downloaded if they are not there yet."""
        settings = {
            "make": "torchvision",
            "name": self.name,
            "weights_enum": self._enum_name(),
            "classes": self._names(),
            "options": self.options,
            "input": None if self.input is None else self.input.plain(),
            "scales": self.scales,
            "flip": self.flip,
        }
        return digest_of(settings, [self._file(root)])

    def open(self, head: str, task: Task, root: Path, device: torch.device) -> Teacher:
        check_task(head, task, self.does(root))
        names, file = self._names(), self._file(root)
        net = self._build(len(names))
        try:
            load_weights(net, file, "names")
        except UserError as error:
            raise UserError(
                error.problem,
                file=error.file,
                record=error.record,
                field="classes",
                value=error.value,
                fix=f"check the model's name, and that `classes` names all its ids (now {len(names)}), also those that "
                "stand for no class, such as __background__",
            ) from None
        check_weights(net, file)
        kind = _Detector if self._detects() else _Segmenter
        return kind(self, head, task, names, net.eval().to(device), file, self.digest(root), device)

    def _build(self, ids: int) -> nn.Module:
        from torchvision.models import get_model

        options = dict(self.options)
        if self._detects():
            two_stage = self._module().endswith(_TWO_STAGE)
            options.setdefault("box_score_thresh" if two_stage else "score_thresh", SCORE_FLOOR)
        try:
            net = get_model(self.name, weights=None, weights_backbone=None, num_classes=ids, **options)
        except (TypeError, ValueError) as error:
            raise UserError(str(error), field="options", value=self.options, fix="correct the options") from None
        if self._enum_name() in _FROZEN:
            for module in net.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eps = 0.0
        return net

    def _module(self) -> str:
        """The file of the library that the builder stands in."""
        from torchvision.models import detection, get_model_builder, list_models, segmentation

        known = [*list_models(detection), *list_models(segmentation)]
        if self.name not in known:
            raise UserError(
                f"torchvision has no detector and no segmentation model of this name{nearest(self.name, known)}",
                field="name",
                value=self.name,
                fix=f"one of {', '.join(known)}",
            )
        return get_model_builder(self.name).__module__

    def _detects(self) -> bool:
        return ".detection." in self._module()

    def _enum(self) -> Any:
        """The library's entry for these weights; None for a file of no stated origin."""
        from torchvision.models import get_model_weights, get_weight

        self._module()
        if self.weights_enum is None:
            return get_model_weights(self.name).DEFAULT if self.weights == "torchvision" else None
        try:
            return get_weight(self.weights_enum)
        except ValueError as error:
            known = [str(entry) for entry in get_model_weights(self.name)]
            raise UserError(
                str(error), field="weights_enum", value=self.weights_enum, fix=f"this builder has {', '.join(known)}"
            ) from None

    def _enum_name(self) -> str | None:
        enum = self._enum()
        return None if enum is None else str(enum)

    def _names(self) -> tuple[str, ...]:
        """Of all ids of the model."""
        enum = self._enum()
        if self.classes is not None:
            if self.weights == "torchvision":
                check_outputs(f"torchvision's {self.name}", len(enum.meta["categories"]), len(self.classes))
            return self.classes
        if enum is None:
            raise UserError(
                "a weight file does not say what its classes are called",
                field="classes",
                value=self.weights,
                fix="state `classes`, or `weights_enum` where they are those of the library's weights",
            )
        return tuple(enum.meta["categories"])

    def _file(self, root: Path) -> Path:
        """The weights on this disk."""
        if self.weights != "torchvision":
            return find_weights(self.weights, root)
        return downloaded(self._enum().url)


class _Loaded(Teacher, abc.ABC):
    """What both kinds share."""

    def __init__(
        self,
        part: TorchvisionTeacher,
        head: str,
        task: Task,
        names: tuple[str, ...],
        net: nn.Module,
        file: Path,
        hash: str,
        device: torch.device,
    ) -> None:
        import torchvision

        self.head, self.task, self.hash = head, task, hash
        self._part, self._names, self._net, self._device = part, names, net, device
        self.about = {
            "make": "torchvision",
            "name": part.name,
            "weights": shown_path(file),
            "library": f"torchvision {torchvision.__version__}",
        }
        self._ready()
        self.predict([np.zeros((64, 64, 3), np.uint8)])

    @abc.abstractmethod
    def _ready(self) -> None:
        """State label space and input."""


class _Detector(_Loaded):
    """The model resizes and normalises images itself, and gives boxes in their own pixels."""

    def _ready(self) -> None:
        self._classes = DetectedClasses.make(self._names)
        self.space = LabelSpace(self._classes.names, self._classes.ids)
        net: Any = self._net
        if isinstance(net, GeneralizedRCNN):  # masks and key points cost much, and nobody asks for them
            net.roi_heads.mask_roi_pool = net.roi_heads.keypoint_roi_pool = None
        transform = net.transform
        shorter = transform.fixed_size or transform.min_size
        self.about |= {
            "input": list(shorter),
            "longer side": transform.max_size,
            "mean": list(transform.image_mean),
            "std": list(transform.image_std),
        }
        self._failed = torch.zeros((), dtype=torch.bool, device=self._device)
        for module in _watched(self._net):
            module.register_forward_hook(self._watch)

        @lru_cache(10_000)
        def padded(height: int, width: int) -> tuple[int, ...]:
            blank = torch.empty(3, height, width, device="meta")  # shapes without arithmetic
            return tuple(transform([blank])[0].tensors.shape)

        self._padded = padded

    def _watch(self, module: nn.Module, given: Any, said: Any) -> None:
        """Take note of values that are no numbers: suppression would drop them without a word."""
        for tensor in _tensors(said):
            self._failed |= ~tensor.sum().isfinite()

    @torch.inference_mode()
    def predict(self, images: Sequence[UInt8]) -> list[Target]:
        """As `Teacher.predict`; images of one size, once resized, go through the model together."""
        return list(
            in_groups([self._padded(*i.shape[:2]) for i in images], lambda g: self._look([images[p] for p in g]))
        )

    def _look(self, images: Sequence[UInt8]) -> list[Boxes]:
        pixels = [
            torch.from_numpy(np.require(i, requirements=("C", "W"))).to(self._device).permute(2, 0, 1).float() / 255
            for i in images
        ]
        self._failed.zero_()
        said = self._net(pixels)
        if bool(self._failed):
            return [no_number()] if len(images) == 1 else [self._look([image])[0] for image in images]
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        return [
            self._classes.boxes(s["boxes"], s["labels"], s["scores"], size) for s, size in zip(said, sizes, strict=True)
        ]


class _Segmenter(_Loaded):
    """Logits at the size of the input, laid back to the image."""

    def _ready(self) -> None:
        self.space = LabelSpace(self._names)
        fixed = self._part.input
        stated = fixed or Input()
        self.about |= {
            "input": [_SHORT_SIDE] if fixed is None else list(fixed.size),
            "mean": list(stated.mean),
            "std": list(stated.std),
        }

    @torch.inference_mode()
    def predict(self, images: Sequence[UInt8]) -> list[Target]:
        """As `Teacher.predict`."""
        inputs = [self._part.input or _own_ratio(image) for image in images]
        return in_groups(
            [i.size for i in inputs], lambda group: self._look(inputs[group[0]], [images[p] for p in group])
        )

    def _look(self, input: Input, images: Sequence[UInt8]) -> list[Target]:
        return averaged(images, self._part.scales, self._part.flip, partial(self._view, input))

    def _view(self, input: Input, images: Sequence[UInt8], scale: float, flip: bool) -> list[Look]:
        batch, frames = input.batch(images, scale, flip)
        logits = self._net(batch.to(self._device))["out"]
        check_outputs(f"torchvision's {self._part.name}", logits.shape[1], len(self._names))
        return [Look(row, frame, input.scaled(scale), flip) for row, frame in zip(logits, frames, strict=True)]


def _own_ratio(image: UInt8) -> Input:
    """The input that keeps an image's ratio, rounded as torchvision's own preprocessing does."""
    height, width = image.shape[:2]
    longer = int(_SHORT_SIDE * max(height, width) / min(height, width))
    return Input(size=(_SHORT_SIDE, longer) if height <= width else (longer, _SHORT_SIDE))


def _watched(net: Any) -> list[nn.Module]:
    """The parts of a detector after which a value that is no number could get lost."""
    if isinstance(net, GeneralizedRCNN):
        return [net.backbone, net.rpn.head, net.roi_heads.box_predictor]
    return [net.backbone, net.head]


def _tensors(said: Any) -> list[Tensor]:
    """The tensors of an output, however nested."""
    if isinstance(said, Tensor):
        return [said]
    entries = said.values() if isinstance(said, dict) else said
    return [tensor for entry in entries for tensor in _tensors(entry)]
