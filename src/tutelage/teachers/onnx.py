"""ONNX models as teachers, through onnxruntime.

Letters in shapes: B images, N boxes, K classes, H and W pixels of the input, h and w pixels of an original image, y and
x cells of an output map.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor

from tutelage.data.geometry import Frame
from tutelage.data.source import LabelSpace, UInt8
from tutelage.errors import UserError
from tutelage.part import Function
from tutelage.tasks import Classification
from tutelage.tasks.detector import restore
from tutelage.tasks.pixelwise import resized_back
from tutelage.tasks.segmentation import Look
from tutelage.tasks.task import Task
from tutelage.teachers.foreign import averaged, check_outputs, no_number, refuse_averaging, shown_path
from tutelage.teachers.inputs import Input
from tutelage.teachers.onnx_data import external_files
from tutelage.teachers.onnx_session import Array, OnnxSession
from tutelage.teachers.stated import Stated, check_target, function_source
from tutelage.teachers.teacher import Teacher, check_task, digest_of
from tutelage.types import Boxes, Field, Label, Mask, Target

_TINY = 1e-12
"""Least probability whose logarithm is taken."""


class OnnxTeacher(Stated):
    """An ONNX model with one image input.

    Classification, masks and depth are understood as they are; boxes, and all else, take a `decode` function. A model
    whose batch is of a fixed size gets batches of that size. Weights in files of their own must lie in the model's
    folder. Libraries of custom operators are never loaded.
    """

    kind: Literal["onnx"] = "onnx"
    file: Path
    input: Input
    """How the model wants its images. `mean` and `std` are those of RGB in [0, 1]; for pixels from 0 to 255: mean 0 and
    std 1/255, which is also what a model with an input of bytes needs."""
    channels: Literal["rgb", "bgr"] = "rgb"
    """Their order in the input."""
    layout: Literal["nchw", "nhwc"] = "nchw"
    """The order of the input's axes. With `nhwc`, the output map of a segmentation is [y,x,K] as well."""
    input_name: str | None = None
    """Needed only where it is not the model's first and only one."""
    output: str | int | None = None
    """Name or position of the one output that matters; left out, `decode` is given all of them."""
    batched: bool = True
    """Whether the first axis of every output is the batch. False for models that suppress boxes themselves and give
    [N,4] for one image: they get one image at a time, and `decode` the outputs as they are."""
    scores: Literal["logits", "probabilities"] = "logits"
    """What the outputs of classification and segmentation are."""
    decode: Function | None = None
    """Python only: `decode(outputs, frame, size) -> Target`. `outputs` is a list of arrays, those of one image, without
    the batch axis. `frame` (`tutelage.data.geometry.Frame`) says how the image lies in the input of `size` (H, W);
    `boxes_in_image` finds the way back. Needed for boxes and normals; elsewhere it takes the place of what is
    built in: classes [K], masks [K,y,x], depth [y,x]."""

    @model_validator(mode="after")
    def _check_decode(self) -> Self:
        if self.decode is None and self.task.kind not in (Label, Mask, Field):
            raise ValueError(
                f"decode: what an ONNX model's outputs mean for {self.task.task} is not known; give `decode`, a "
                "function, in a recipe that is a Python file (docs/extending.md)"
            )
        if self.decode is None and not self.batched:
            raise ValueError("batched: outputs without a batch axis need `decode`")
        if self.input.fit == "crop" and self.task.kind is not Label:
            raise ValueError("input.fit: a crop would leave the border of the image without a label")
        return self

    def does(self, root: Path, fills: str | None = None) -> Task:
        """As `Specialist.does`."""
        if self.task.kind is not Mask or self.decode is not None:
            refuse_averaging(self)
        return super().does(root)

    def digest(self, root: Path) -> str:
        """As `Specialist.digest`; files of external data belong to the weights."""
        settings = {
            "make": "onnx",
            "task": self.task.task,
            "multi_label": isinstance(self.task, Classification) and self.task.multi_label,
            "input": self.input.plain(),
            "channels": self.channels,
            "layout": self.layout,
            "names": [self.input_name, self.output],
            "batched": self.batched,
            "scores": self.scores,
            "decode": None if self.decode is None else function_source(self.decode),
            "scales": self.scales,
            "flip": self.flip,
        }
        file = root / self.file
        return digest_of(settings, [file, *external_files(file)])

    def open(self, head: str, task: Task, root: Path, device: torch.device) -> Teacher:
        """As `Specialist.open`; the model is tried on a blank image."""
        check_task(head, task, self.does(root))
        digest = self.digest(root)  # finds missing files, and weights that lie elsewhere
        session = OnnxSession(
            root / self.file,
            device,
            sizes=[self.input.scaled(scale) for scale in self.scales],
            channels=self.channels,
            layout=self.layout,
            input_name=self.input_name,
            output=self.output,
            several=self.decode is not None,
            batched=self.batched,
        )
        return _OnnxTeacher(self, head, task, session, digest)


def boxes_in_image(xyxy: Tensor, classes: Tensor, scores: Tensor, frame: Frame) -> Boxes:
    """Boxes found in a model's input, in the original image: best first, cut at its edge.

    Boxes without area there, such as those in the padding, are left out.

    Args:
        xyxy: float [N,4], pixels of the input.
        classes: int64 [N].
        scores: float [N].
        frame: how the image lies in the input.
    """
    found = restore(Boxes.make(xyxy.float(), classes, scores), frame)
    return found.pick(found.scores.argsort(descending=True, stable=True))


class _OnnxTeacher(Teacher):
    """The loaded model."""

    def __init__(self, part: OnnxTeacher, head: str, task: Task, session: OnnxSession, hash: str) -> None:
        import onnxruntime

        self.head, self.task, self.hash = head, task, hash
        self.space = None if task.classes is None else LabelSpace(task.classes)
        self._part, self._session = part, session
        self.about: dict[str, Any] = {
            "make": "onnx",
            "input": list(part.input.size),
            "fit": part.input.fit,
            "mean": list(part.input.mean),
            "std": list(part.input.std),
            "channels": part.channels,
            "layout": part.layout,
            "outputs": session.outputs,
            "batch": session.batch,
            "weights": shown_path(part.file),
            "provider": session.provider,
            "library": f"onnxruntime {onnxruntime.__version__}",
        }
        blank = np.zeros((48, 64, 3), np.uint8)
        if part.decode is None:
            self._check_scores(session.run(part.input.batch([blank])[0])[0][0])
        check_target(head, task, self.predict([blank])[0], (48, 64))

    def _check_scores(self, said: Array) -> None:
        """That `scores` is true: a softmax over probabilities would make every label nearly even."""
        if self.task.kind is Field or (isinstance(self.task, Classification) and self.task.multi_label):
            return
        values = self._maps(said) if self.task.kind is Mask else self._vector(said)
        shares = len(values) > 1 and bool((values >= 0).all()) and bool(((values.sum(0) - 1).abs() < 1e-3).all())
        if shares != (self._part.scores == "probabilities") and bool(values.isfinite().all()):
            raise UserError(
                f"the model's output is {'a probability' if shares else 'not a probability'} a class",
                file=self._part.file,
                field="scores",
                value=self._part.scores,
                fix=f"scores: {'probabilities' if shares else 'logits'}",
            )

    @torch.inference_mode()
    def predict(self, images: Sequence[UInt8]) -> list[Target]:
        """As `Teacher.predict`."""
        if self.task.kind is Mask and self._part.decode is None:
            return averaged(images, self._part.scales, self._part.flip, self._look)
        batch, frames = self._part.input.batch(images)
        return [self._target(said, frame) for said, frame in zip(self._session.run(batch), frames, strict=True)]

    def _target(self, said: list[Array], frame: Frame) -> Target:
        decode, size = self._part.decode, self._part.input.size
        if decode is not None:
            if self.task.kind is Boxes and any(a.dtype.kind == "f" and bool(np.isnan(a).any()) for a in said):
                return no_number()  # a threshold would drop it without a word
            target: Target = decode(said, frame, size)
            return target
        if self.task.kind is Label:
            return self._label(self._vector(said[0]))
        values = resized_back(self._plane(said[0])[None], frame, size)[0]
        return Field(values, torch.ones(values.shape, dtype=torch.bool))

    def _look(self, images: Sequence[UInt8], scale: float, flip: bool) -> list[Look]:
        batch, frames = self._part.input.batch(images, scale, flip)
        logits = [self._maps(said[0]) for said in self._session.run(batch)]
        if self._part.scores == "probabilities":
            logits = [maps.clamp_min(_TINY).log() for maps in logits]
        size = self._part.input.scaled(scale)
        return [Look(maps, frame, size, flip) for maps, frame in zip(logits, frames, strict=True)]

    def _label(self, scores: Tensor) -> Label:
        if self._part.scores == "probabilities":
            return Label(scores)
        many = isinstance(self.task, Classification) and self.task.multi_label
        return Label(scores.sigmoid() if many else scores.softmax(0))

    def _vector(self, said: Array) -> Tensor:
        """float32 [K]; axes of length 1 beside it are dropped."""
        if max(said.shape, default=1) != said.size:
            raise self._misshapen(said, "[K]")
        check_outputs("the model", said.size, len(self.task.names))
        return torch.from_numpy(said.reshape(-1).astype(np.float32))

    def _maps(self, said: Array) -> Tensor:
        """float32 [K,y,x]."""
        if said.ndim != 3:
            raise self._misshapen(said, "[K,y,x]" if self._part.layout == "nchw" else "[y,x,K]")
        maps = torch.from_numpy(said.astype(np.float32))
        maps = maps.permute(2, 0, 1) if self._part.layout == "nhwc" else maps
        check_outputs("the model", len(maps), len(self.task.names))
        return maps

    def _plane(self, said: Array) -> Tensor:
        """float32 [y,x]; one further axis of length 1 is dropped."""
        if said.ndim == 3 and 1 in (said.shape[0], said.shape[-1]):
            said = said[0] if said.shape[0] == 1 else said[..., 0]
        if said.ndim != 2:
            raise self._misshapen(said, "[y,x]")
        return torch.from_numpy(said.astype(np.float32))

    def _misshapen(self, said: Array, wanted: str) -> UserError:
        return UserError(
            f"an output for one image must be {wanted}",
            file=self._part.file,
            field="output",
            value=said.shape,
            fix="choose another `output`, or give a `decode` function",
        )
