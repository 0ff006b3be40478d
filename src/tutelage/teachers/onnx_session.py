"""An ONNX model at work in onnxruntime: one image input, batches of the size that the model takes.

Letters in shapes: B images, H and W pixels of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.errors import UserError, first_line

Array = NDArray[Any]

_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}


class OnnxSession:
    """A loaded model that was tried on blank images.

    Attributes:
        outputs: names of the outputs that are asked for.
        batch: images that the model takes at a time; None for any number.
        provider: what works inside onnxruntime: "CPUExecutionProvider" or "CUDAExecutionProvider".
    """

    def __init__(
        self,
        file: Path,
        device: torch.device,
        *,
        sizes: Sequence[tuple[int, int]],
        channels: Literal["rgb", "bgr"],
        layout: Literal["nchw", "nhwc"],
        input_name: str | None,
        output: str | int | None,
        several: bool,
        batched: bool,
    ) -> None:
        """Load a model and try it.

        Args:
            file: the model.
            device: where it works, if onnxruntime was built for it.
            sizes: (H, W) of the inputs that it will be given.
            channels, layout, input_name, output, batched: as in `OnnxTeacher`.
            several: whether several outputs can be used.

        Raises:
            UserError: onnxruntime is missing or cannot load the model; no input for images of these sizes; no such
                output, or several where one is needed; the model fails on a blank image.
        """
        self._file, self._channels, self._layout, self._batched = file, channels, layout, batched
        self._session = _load(file, device)
        self.provider: str = self._session.get_providers()[0]
        entry = self._find_input(input_name)
        self._input: str = entry.name
        if entry.type not in _TYPES:
            raise UserError(
                "the model's input is of a type that no image has",
                file=file,
                value=entry.type,
                fix=f"one of {', '.join(_TYPES)}",
            )
        self._type = _TYPES[entry.type]
        self.outputs = self._find_outputs(output, several)
        for size in sizes:
            self._check_input(list(entry.shape), size)
        fixed = entry.shape[0] if isinstance(entry.shape[0], int) and entry.shape[0] > 0 else None
        self.batch: int | None = fixed if batched else 1
        if self.batch is None and not self._takes_several(sizes[0]):
            self.batch = 1
        for size in sizes:
            self._try(size)

    def run(self, images: Tensor) -> list[list[Array]]:
        """The outputs of every image, without the batch axis.

        Args:
            images: float32 [B,3,H,W], RGB, normalised.

        Raises:
            UserError: an output whose first axis is not the batch.
        """
        rows: list[list[Array]] = []
        step = self.batch or len(images)
        for part in images.split(step):
            missing = step - len(part)
            full = part if not missing else torch.cat([part, part.new_zeros(missing, *part.shape[1:])])
            said = self._run(full)
            if not self._batched:
                rows.append(said)
                continue
            for name, array in zip(self.outputs, said, strict=True):
                if array.ndim == 0 or len(array) != step:
                    raise UserError(
                        f"the first axis of the model's output '{name}' is not the batch",
                        file=self._file,
                        value=array.shape,
                        fix="batched: false, with a `decode` function that understands the outputs of one image",
                    )
            rows += [[array[row] for array in said] for row in range(len(part))]
        return rows

    def _run(self, images: Tensor) -> list[Array]:
        if self._channels == "bgr":
            images = images.flip(1)
        if self._layout == "nhwc":
            images = images.permute(0, 2, 3, 1)
        if self._type is np.uint8:
            images = images.round().clamp(0, 255)
        given = np.ascontiguousarray(images.numpy().astype(self._type))
        said: list[Array] = self._session.run(self.outputs, {self._input: given})
        return said

    def _find_input(self, name: str | None) -> Any:
        entries = {entry.name: entry for entry in self._session.get_inputs()}
        if len(entries) != 1 or (name is not None and name not in entries):
            raise UserError(
                "the model has no such input" if len(entries) == 1 else "the model wants more than an image",
                file=self._file,
                field="input_name",
                value=name,
                fix=f"its inputs: {', '.join(entries)}; export it with the images as the only one",
            )
        return next(iter(entries.values()))

    def _find_outputs(self, output: str | int | None, several: bool) -> list[str]:
        names: list[str] = [entry.name for entry in self._session.get_outputs()]
        if output is None and (several or len(names) == 1):
            return names
        if isinstance(output, int) and 0 <= output < len(names):
            return [names[output]]
        if isinstance(output, str) and output in names:
            return [output]
        raise UserError(
            "the model has several outputs" if output is None else "the model has no such output",
            file=self._file,
            field="output",
            value=output,
            fix=f"choose one of {', '.join(names)}",
        )

    def _check_input(self, stated: list[Any], size: tuple[int, int]) -> None:
        """That images fit the model's input, as far as it states numbers."""
        wanted = [None, 3, *size] if self._layout == "nchw" else [None, *size, 3]
        if len(stated) == 4 and all(
            need is None or not isinstance(said, int) or said <= 0 or said == need
            for said, need in zip(stated, wanted, strict=True)
        ):
            return
        other, axis = ("nhwc", 3) if self._layout == "nchw" else ("nchw", 1)
        raise UserError(
            f"the model's input has another shape than images of {size[0]} x {size[1]} pixels, {self._layout}",
            file=self._file,
            field="input",
            value=stated,
            fix=f"layout: {other}"
            if len(stated) == 4 and stated[axis] == 3
            else "state `input.size` as (H, W) of the model; it must take 3 channels",
        )

    def _takes_several(self, size: tuple[int, int]) -> bool:
        """Whether a batch of two comes out as two: models that only hold for one image are common."""
        try:
            return all(array.ndim > 0 and len(array) == 2 for array in self._run(torch.zeros(2, 3, *size)))
        except Exception:  # onnxruntime's errors share no base class of their own
            return False

    def _try(self, size: tuple[int, int]) -> None:
        try:
            self.run(torch.zeros(1, 3, *size))
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"the model cannot work on an image of its input: {first_line(error)}",
                file=self._file,
                field="input",
                value=list(size),
                fix="state `input` as the model was exported",
            ) from None


def _load(file: Path, device: torch.device) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UserError(
            "onnxruntime is not installed", field="kind", value="onnx", fix="pip install 'onnxruntime>=1.20'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads leave the cores to others
    options.log_severity_level = 3  # errors
    cuda = device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    providers: list[Any] = [("CUDAExecutionProvider", {"device_id": device.index or 0})] if cuda else []
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=[*providers, "CPUExecutionProvider"])
    except Exception as error:
        raise UserError(
            f"onnxruntime cannot load this model: {first_line(error)}",
            file=file,
            fix="give an .onnx file of standard operators, with its weights beside it",
        ) from None
