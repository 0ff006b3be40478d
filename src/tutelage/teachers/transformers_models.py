"""Loaded models of transformers at work, one class a task.

Letters in shapes: B images, K classes, H and W pixels of the input, h and w pixels of an original image, y and x cells
of a model's output, Q queries.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.data.geometry import Frame
from tutelage.data.source import LabelSpace, UInt8
from tutelage.errors import UserError
from tutelage.tasks.pixelwise import resized_back
from tutelage.tasks.segmentation import Look
from tutelage.tasks.task import Task
from tutelage.teachers.foreign import SCORE_FLOOR, DetectedClasses, averaged, check_outputs, in_groups, no_number
from tutelage.teachers.inputs import Input
from tutelage.teachers.teacher import Teacher
from tutelage.types import Field, Label, Target

_TINY = 1e-12


@dataclass(frozen=True)
class Model:
    """A network with all that it needs to look at images.

    Attributes:
        net: loaded, in evaluation mode, on the device.
        config: its configuration.
        names: of all its ids; none for depth.
        processor: its own preprocessing and decoding; None where `input` is given.
        input: the user's preprocessing; None where `processor` is given.
        scales, flip: sizes and mirrored views that a mask is averaged over.
        metric: whether depth comes in metres.
        multi_label: whether classes are independent.
        device: where it works.
        hash: what its records carry.
        about: what is stated of it.
    """

    net: nn.Module
    config: Any
    names: tuple[str, ...]
    processor: Any
    input: Input | None
    scales: tuple[float, ...]
    flip: bool
    metric: bool
    multi_label: bool
    device: torch.device
    hash: str
    about: dict[str, Any]


class _Laid(NamedTuple):
    """One image as the model sees it: its tensors [1,...], how it lies in them, and their (H, W)."""

    tensors: dict[str, Tensor]
    frame: Frame
    size: tuple[int, int]

    @property
    def shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        return tuple((name, tuple(tensor.shape)) for name, tensor in self.tensors.items())


class TransformersModel(Teacher, abc.ABC):
    """What the tasks share: images are laid one by one, as the model would see each alone, and run in batches of one
    size."""

    def __init__(self, model: Model, head: str, task: Task) -> None:
        self.head, self.task, self.hash, self._model = head, task, model.hash, model
        self.space = self._space()
        self._settings: dict[str, Any] = {} if model.processor is None else model.processor.to_dict()
        self.about = model.about | self._look_of_inputs()
        try:
            self.predict([np.zeros((96, 128, 3), np.uint8)])
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"the model cannot work on its input: {error}",
                field="input" if model.processor is None else "scales",
                value=model.about["name"],
                fix="state the `input` that it was built for, and leave out `scales` that it cannot work at",
            ) from None

    def _space(self) -> LabelSpace | None:
        return LabelSpace(self._model.names)

    @abc.abstractmethod
    def _decode(self, said: Any, laid: Sequence[_Laid]) -> Sequence[Any]:
        """One entry an image from the model's output for a batch."""

    @torch.inference_mode()
    def predict(self, images: Sequence[UInt8]) -> list[Target]:
        """As `Teacher.predict`."""
        return self._run(images)

    def _run(self, images: Sequence[UInt8], scale: float = 1.0, flip: bool = False) -> list[Any]:
        """`_decode` of every image, in order."""
        laid = [self._lay(image, scale, flip) for image in images]

        def look(group: list[int]) -> Sequence[Any]:
            mine = [laid[position] for position in group]
            batch = {n: torch.cat([one.tensors[n] for one in mine]).to(self._model.device) for n in mine[0].tensors}
            return self._decode(self._model.net(**batch), mine)

        return in_groups([one.shapes for one in laid], look)

    def _lay(self, image: UInt8, scale: float, flip: bool) -> _Laid:
        height, width = image.shape[:2]
        if self._model.input is not None:
            pixels, frame = self._model.input.lay(image, scale, flip)
            return _Laid({"pixel_values": pixels[None]}, frame, self._model.input.scaled(scale))
        seen = np.require(image[:, ::-1] if flip else image, requirements=("C", "W"))
        said = self._model.processor(
            images=torch.from_numpy(seen).permute(2, 0, 1),
            input_data_format="channels_first",
            return_tensors="pt",
            **self._changes(scale),
        )
        tensors = {name: tensor for name, tensor in said.items() if isinstance(tensor, Tensor)}
        size = (tensors["pixel_values"].shape[-2], tensors["pixel_values"].shape[-1])
        inner = size
        if "pixel_mask" in tensors:  # 1 on the image, 0 on what was padded below and to the right of it
            mask = tensors["pixel_mask"][0]
            inner = (int(mask.any(1).sum()), int(mask.any(0).sum()))
        return _Laid(tensors, Frame(height, width, *inner), size)

    def _changes(self, scale: float) -> dict[str, Any]:
        """How the processor is to depart from its own settings."""
        changes: dict[str, Any] = {}
        if scale != 1.0:
            changes["size"] = {side: max(1, round(n * scale)) for side, n in _known(self._settings["size"]).items()}
        return changes

    def _look_of_inputs(self) -> dict[str, Any]:
        """Input size, mean and std, as they are stated of the teacher."""
        stated, own = self._model.input, self._settings
        if stated is not None:
            return {"input": list(stated.size), "mean": list(stated.mean), "std": list(stated.std)}
        size = own.get("size")
        about: dict[str, Any] = {"input": _known(size) if isinstance(size, Mapping) else size}
        for name in ("mean", "std"):
            values = own.get(f"image_{name}") if own.get("do_normalize") else None
            about[name] = list(values) if isinstance(values, Sequence) else values
        return about


class Classifier(TransformersModel):
    """Labels, float32 [K]."""

    def _decode(self, said: Any, laid: Sequence[_Laid]) -> list[Target]:
        check_outputs("the model", said.logits.shape[-1], len(self._model.names))
        logits = said.logits.float()
        probs = logits.sigmoid() if self._model.multi_label else logits.softmax(1)
        return [Label(row) for row in probs.cpu()]


class _Whole(TransformersModel):
    """Tasks that need all of the image: a middle crop is left out of the preprocessing."""

    def _changes(self, scale: float) -> dict[str, Any]:
        cropped = bool(self._settings.get("do_center_crop"))
        return super()._changes(scale) | ({"do_center_crop": False} if cropped else {})


class Detector(_Whole):
    """Boxes, decoded by the processor, which knows the model's scores."""

    def _space(self) -> LabelSpace:
        self._classes = DetectedClasses.make(self._model.names)
        return LabelSpace(self._classes.names, self._classes.ids)

    def _decode(self, said: Any, laid: Sequence[_Laid]) -> list[Target]:
        # some models have one output more than classes, for "no object"
        outputs, classes = said.logits.shape[-1], len(self._model.names)
        check_outputs("the model", outputs - 1 if outputs == classes + 1 else outputs, classes)
        sizes = [(one.frame.height, one.frame.width) for one in laid]
        rows = self._model.processor.post_process_object_detection(said, threshold=SCORE_FLOOR, target_sizes=sizes)
        fine = (said.logits.flatten(1).isfinite().all(1) & said.pred_boxes.flatten(1).isfinite().all(1)).tolist()
        return [
            self._classes.boxes(row["boxes"], row["labels"], row["scores"], size) if good else no_number()
            for row, size, good in zip(rows, sizes, fine, strict=True)
        ]


class Segmenter(_Whole):
    """Masks, averaged over all views that are asked for."""

    @torch.inference_mode()
    def predict(self, images: Sequence[UInt8]) -> list[Target]:
        """As `Teacher.predict`."""
        return averaged(images, self._model.scales, self._model.flip, self._look)

    def _look(self, images: Sequence[UInt8], scale: float, flip: bool) -> list[Look]:
        return [look._replace(flipped=flip) for look in self._run(images, scale, flip)]

    def _decode(self, said: Any, laid: Sequence[_Laid]) -> list[Look]:
        """Logits [K,y,x] with the way back."""
        universal = "masks_queries_logits" in said
        logits = _scores(said.class_queries_logits, said.masks_queries_logits) if universal else said.logits
        check_outputs("the model", logits.shape[1], len(self._model.names))
        return [Look(row, one.frame, one.size) for row, one in zip(logits, laid, strict=True)]


def _scores(classes: Tensor, masks: Tensor) -> Tensor:
    """Logits of the classes at every cell, from queries (Cheng et al. 2021, section 3.4, semantic inference).

    A class's score is the sum over queries of the class's probability times the mask's; the softmax of what is
    returned is each class's share of all scores.

    Args:
        classes: logits [B,Q,K+1], the last being "no object".
        masks: logits [B,Q,y,x].

    Returns:
        float32 [B,K,y,x].
    """
    scores = torch.einsum("bqk,bqyx->bkyx", classes.float().softmax(-1)[..., :-1], masks.float().sigmoid())
    return scores.clamp_min(_TINY).log()


class DepthModel(_Whole):
    """Fields: metres, valid where positive; or inverse depth up to scale and shift, valid everywhere."""

    def _space(self) -> None:
        return None

    def _decode(self, said: Any, laid: Sequence[_Laid]) -> list[Target]:
        sizes = [(one.frame.height, one.frame.width) for one in laid]
        processor, family = self._model.processor, self._model.config.model_type
        if processor is None:
            maps = [
                resized_back(m[None], one.frame, one.size)[0] for m, one in zip(said.predicted_depth, laid, strict=True)
            ]
        elif family == "zoedepth":  # it pads, and must know by how much
            rows = processor.post_process_depth_estimation(said, source_sizes=sizes, target_sizes=sizes)
            maps = [row["predicted_depth"] for row in rows]
        else:
            rows = processor.post_process_depth_estimation(said, target_sizes=sizes)
            maps = [row["predicted_depth"] for row in rows]
        return [self._field(m.float().reshape(size).cpu()) for m, size in zip(maps, sizes, strict=True)]

    def _field(self, values: Tensor) -> Field:
        # what is no number stays valid, so that it is found
        valid = ~(values <= 0) if self._model.metric else torch.ones(values.shape, dtype=torch.bool)
        return Field(torch.where(valid, values, 0.0), valid)

    def _look_of_inputs(self) -> dict[str, Any]:
        if self._settings.get("do_pad") and self._model.config.model_type != "zoedepth":
            raise UserError(
                "the model's preprocessing pads images, and does not say where",
                field="do_pad",
                value=True,
                fix="state `input`, or set do_pad to false in preprocessor_config.json",
            )
        return super()._look_of_inputs() | {"depth": "metres" if self._model.metric else "relative inverse depth"}


OPENED: dict[str, type[TransformersModel]] = {
    "classification": Classifier,
    "detection": Detector,
    "segmentation": Segmenter,
    "depth": DepthModel,
}
"""Who works, by task."""


def _known(size: Any) -> dict[str, int]:
    """The sides that a processor's size states."""
    return {side: n for side, n in size.items() if n is not None}
