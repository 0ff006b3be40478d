"""How each kind of target is written into columns of the labels store, and read back.

What is stored is the teacher's raw prediction; the pseudo-label rule (a threshold) is applied on reading.

| kind | columns | what is lost |
|---|---|---|
| Label | `probs` list of float16; `classes`, `rest` and `total` null | as for Field |
| Label of many classes | `probs` as above, `classes` list of int32, `rest` float32, `total` int32 | see below |
| Boxes | `boxes` list of float32[4], `classes` list of int32, `scores` list of float32 | scores under `FLOOR` |
| Mask | `mask` 8-bit PNG of class ids, `confidence` 8-bit PNG or null | nothing |
| Field | `values` 16-bit PNG, see below | rounding to float16 (relative 2^-11, absolute 2^-25) |
| Vectors | `values` RGB PNG: round(127 * component) + 128; 0 0 0 = not valid | angles, at most 0.4 degrees |
| Maps | `values` bytes, `shape` list of int32[3], `extent` list of float32[2], `stride` int32 | as for Field |

The 16-bit PNG of a `Field` holds the float16 bit pattern of each value, in the unit of the head (metres, or
relative inverse depth), and 65535 where the value is not valid:
`np.asarray(Image.open(file)).astype("u2").view("f2")` gives the values, NaN where not valid. Positive numbers
keep their order, so that the file can be looked at as a picture.

The bytes of `Maps` are float16, little-endian, channel after channel, NaN where a cell is not valid:
`np.frombuffer(values, "<f2").reshape(shape)`. `extent` and `stride` are those of `tutelage.types.Maps`.

Of more than 256 classes only the likeliest are stored one by one, best first (`Form.top_classes` of them): `classes`
says which they are, `rest` is the sum of all others, `total` the number of all. What is lost is which of the others has
how much: reading spreads the rest evenly over them, so a distribution still sums to 1, and independent probabilities
(several classes an image) keep their sum as well.

With `reduce` 2 or 4, fields and vectors are stored at 1/2 or 1/4 of the size, each pixel the mean of the valid
ones of its block, valid where at least half of the block is; reading brings them back to full size (bilinear,
valid pixels only).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tutelage.errors import UserError
from tutelage.labels.png import read_png, write_png
from tutelage.types import IGNORE, Boxes, Field, Label, Maps, Mask, Target, Vectors

FLOOR = 0.05
"""Boxes with a smaller score are not stored; no threshold below it makes sense later."""

EXACT_CLASSES = 256
"""Label spaces up to this size are stored in full."""

_ROUNDING = 0.01  # pixels that a coordinate may lie outside of its image, by arithmetic alone; clipped
_INVALID = np.uint16(0xFFFF)
_HALF = 65520  # from here on a number is rounded up to infinity in float16


class BadPrediction(ValueError):
    """A prediction that cannot be a label; the message is the reason that goes to the quarantine list."""


@dataclass(frozen=True)
class Form:
    """What the predictions of one head must look like.

    Attributes:
        head: its name, for messages.
        kind: one of the dataclasses of `tutelage.types`.
        classes: size of the label space; None for kinds without one.
        reduce: 1, 2 or 4; fields and vectors are stored at 1/reduce of the size.
        top_classes: of more than `EXACT_CLASSES` classes, how many are stored one by one; at least 1.
    """

    head: str
    kind: type
    classes: int | None
    reduce: int = 1
    top_classes: int = 20


class Codec(NamedTuple):
    """How one kind is stored: its columns, a target as a row of them, and back."""

    columns: list[pa.Field]
    encode: Callable[[Any, Form, tuple[int, int]], dict[str, Any]]
    decode: Callable[[pa.RecordBatch, int, tuple[int, int]], Target]


def encode(target: Target, form: Form, size: tuple[int, int]) -> dict[str, Any]:
    """A prediction as column values.

    Args:
        target: at the image's own size, on the CPU.
        form: what it must look like.
        size: (height, width) of the image.

    Raises:
        BadPrediction: values that are not finite or out of range; the image is to be set aside.
        UserError: another kind, shape or class count than the head's: the teacher does not fit at all.
    """
    if type(target) is not form.kind:
        raise _misfit(form, "kind", type(target).__name__, form.kind.__name__)
    return CODECS[form.kind].encode(target, form, size)


def decode(kind: type, batch: pa.RecordBatch, row: int) -> Target:
    """The raw prediction of one row, at the image's size. Raises ValueError where bytes are damaged."""
    size = (batch.column("height")[row].as_py(), batch.column("width")[row].as_py())
    return CODECS[kind].decode(batch, row, size)


def _misfit(form: Form, field: str, value: object, wanted: object) -> UserError:
    return UserError(
        f"the teacher of head '{form.head}' predicts something else than the head holds",
        field=field,
        value=value,
        fix=f"a teacher whose predictions have {field} {wanted}",
    )


def _expect_shape(form: Form, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise _misfit(form, f"{name} of shape", tuple(tensor.shape), shape)


def _expect_finite(name: str, tensor: Tensor) -> None:
    if not bool(tensor.isfinite().all()):
        raise BadPrediction(f"{name} are not finite")


def _expect_unit_range(name: str, tensor: Tensor) -> None:
    _expect_finite(name, tensor)
    if len(tensor) and (tensor.min() < 0 or tensor.max() > 1 + 1e-3):
        raise BadPrediction(f"{name} outside [0, 1]: {tensor.min():.4g} to {tensor.max():.4g}")


# Label ------------------------------------------------------------------------------------------------------


def _encode_label(target: Label, form: Form, size: tuple[int, int]) -> dict[str, Any]:
    classes = len(target.probs) if form.classes is None else form.classes
    _expect_shape(form, "probabilities", target.probs, (classes,))
    _expect_unit_range("probabilities", target.probs)
    probs = target.probs.clamp(max=1).numpy()
    if classes <= EXACT_CLASSES or form.top_classes >= classes:
        return {"probs": probs.astype(np.float16), "classes": None, "rest": None, "total": None}
    order = np.argsort(-probs, kind="stable")
    best, others = order[: form.top_classes], order[form.top_classes :]
    return {
        "probs": probs[best].astype(np.float16),
        "classes": best.astype(np.int32),
        "rest": float(probs[others].sum(dtype=np.float64)),
        "total": classes,
    }


def _decode_label(batch: pa.RecordBatch, row: int, size: tuple[int, int]) -> Label:
    probs = torch.from_numpy(batch.column("probs")[row].values.to_numpy().astype(np.float32))
    classes = batch.column("classes")[row]
    if not classes.is_valid:
        return Label(probs)
    ids = torch.from_numpy(classes.values.to_numpy().astype(np.int64))
    total, rest = batch.column("total")[row].as_py(), batch.column("rest")[row].as_py()
    if not len(ids) == len(probs) < total or not 0 <= int(ids.min()) <= int(ids.max()) < total:
        raise ValueError(f"{len(probs)} probabilities of {len(ids)} classes out of {total}")
    return Label(torch.full((total,), rest / (total - len(ids))).index_copy_(0, ids, probs))


# Boxes ------------------------------------------------------------------------------------------------------


def _encode_boxes(target: Boxes, form: Form, size: tuple[int, int]) -> dict[str, Any]:
    n = len(target.scores)
    for name, tensor, shape in (
        ("boxes", target.boxes, (n, 4)),
        ("classes", target.classes, (n,)),
        ("ignore", target.ignore, (n,)),
    ):
        _expect_shape(form, name, tensor, shape)
    if (
        n
        and form.classes is not None
        and not 0 <= int(target.classes.min()) <= int(target.classes.max()) < form.classes
    ):
        raise _misfit(form, "classes", target.classes.unique().tolist(), f"0 to {form.classes - 1}")
    _expect_unit_range("scores", target.scores)
    _expect_finite("boxes", target.boxes)
    if bool(target.ignore.any()):
        raise BadPrediction("boxes marked to be ignored, which only human labels may be")
    kept = target.pick(target.scores >= FLOOR)
    limits = torch.tensor([size[1], size[0], size[1], size[0]], dtype=torch.float32)
    boxes = kept.boxes.clamp(min=0).minimum(limits)
    inside = ((boxes - kept.boxes).abs() <= _ROUNDING).all(1)
    if not bool((inside & (boxes[:, :2] < boxes[:, 2:]).all(1)).all()):
        raise BadPrediction("boxes that are reversed, empty or outside of the image")
    return {
        "boxes": boxes.tolist(),
        "classes": kept.classes.numpy().astype(np.int32),
        "scores": kept.scores.clamp(max=1).numpy(),
    }


def _decode_boxes(batch: pa.RecordBatch, row: int, size: tuple[int, int]) -> Boxes:
    boxes = np.array(batch.column("boxes")[row].values.flatten().to_numpy()).reshape(-1, 4)
    classes = batch.column("classes")[row].values.to_numpy().astype(np.int64)
    scores = np.array(batch.column("scores")[row].values.to_numpy())
    ignore = torch.zeros(len(boxes), dtype=torch.bool)
    return Boxes(torch.from_numpy(boxes), torch.from_numpy(classes), torch.from_numpy(scores), ignore)


# Mask -------------------------------------------------------------------------------------------------------


def _encode_mask(target: Mask, form: Form, size: tuple[int, int]) -> dict[str, Any]:
    _expect_shape(form, "class ids", target.ids, size)
    if target.ids.dtype != torch.uint8:
        raise _misfit(form, "class ids of type", target.ids.dtype, torch.uint8)
    labelled = target.ids[target.ids != IGNORE]
    if form.classes is not None and len(labelled) and int(labelled.max()) >= form.classes:
        raise _misfit(form, "class ids", int(labelled.max()), f"0 to {form.classes - 1}, or {IGNORE}")
    confidence = None
    if target.confidence is not None:
        _expect_shape(form, "confidence", target.confidence, size)
        if target.confidence.dtype != torch.uint8:
            raise _misfit(form, "confidence of type", target.confidence.dtype, "torch.uint8, 255 times the probability")
        if not bool(target.confidence.any()) and not len(labelled):
            raise BadPrediction("no pixel has a class: the network's output is not finite")
        confidence = write_png(target.confidence.numpy(), smooth=True)
    return {"mask": write_png(target.ids.numpy(), smooth=False), "confidence": confidence}


def _decode_mask(batch: pa.RecordBatch, row: int, size: tuple[int, int]) -> Mask:
    confidence = batch.column("confidence")[row]
    return Mask(
        torch.from_numpy(_png(batch, "mask", row)),
        torch.from_numpy(_png(batch, "confidence", row)) if confidence.is_valid else None,
    )


# Field ------------------------------------------------------------------------------------------------------


def _encode_field(target: Field, form: Form, size: tuple[int, int]) -> dict[str, Any]:
    _expect_shape(form, "values", target.values, size)
    _expect_shape(form, "valid", target.valid, size)
    _expect_finite("valid values", target.values[target.valid])
    values, valid = _reduced(target.values[None], target.valid, form.reduce)
    code = values[0].numpy().astype(np.float32)
    if bool(valid.any()) and float(np.abs(code[valid.numpy()]).max()) >= _HALF:
        raise BadPrediction(f"values up to {float(np.abs(code[valid.numpy()]).max()):.4g}; at most 65504 can be stored")
    bits = np.where(valid.numpy(), code, 0).astype(np.float16).view(np.uint16)
    return {"values": write_png(np.where(valid.numpy(), bits, _INVALID), smooth=True)}


def _decode_field(batch: pa.RecordBatch, row: int, size: tuple[int, int]) -> Field:
    bits = _png(batch, "values", row)
    valid = bits != _INVALID
    bits[~valid] = 0
    values = torch.from_numpy(bits.view(np.float16).astype(np.float32))
    full, mask = _enlarged(values[None], torch.from_numpy(valid), size)
    return Field(full[0], mask)


# Vectors ----------------------------------------------------------------------------------------------------


def _encode_vectors(target: Vectors, form: Form, size: tuple[int, int]) -> dict[str, Any]:
    _expect_shape(form, "values", target.values, (3, *size))
    _expect_shape(form, "valid", target.valid, size)
    length = _squares(target.values)[target.valid].sqrt()
    _expect_finite("valid vectors", length)
    if len(length) and float((length - 1).abs().max()) > 0.01:
        raise BadPrediction(f"vectors of length {float(length.min()):.4g} to {float(length.max()):.4g}, not 1")
    values, valid = _reduced(target.values, target.valid, form.reduce)
    unit = _unit(torch.where(valid, values, 0))
    code = np.where(valid.numpy(), np.rint(127 * unit.numpy()) + 128, 0).astype(np.uint8)
    return {"values": write_png(code.transpose(1, 2, 0), smooth=True)}


def _decode_vectors(batch: pa.RecordBatch, row: int, size: tuple[int, int]) -> Vectors:
    code = torch.from_numpy(_png(batch, "values", row)).permute(2, 0, 1).contiguous()
    valid = code[0] != 0  # a valid component is at least 1
    values, valid = _enlarged((code.float() - 128).masked_fill_(~valid, 0), valid, size)
    return Vectors(_unit(values), valid)


# Maps -------------------------------------------------------------------------------------------------------


def _encode_maps(target: Maps, form: Form, size: tuple[int, int]) -> dict[str, Any]:
    channels, *cells = target.values.shape
    _expect_shape(form, "valid", target.valid, (*cells,))
    _expect_shape(form, "extent", target.extent, (2,))
    _expect_finite("valid features", target.values[:, target.valid])
    greatest = float(target.values[:, target.valid].abs().max()) if bool(target.valid.any()) else 0.0
    if greatest >= _HALF:
        raise BadPrediction(f"features up to {greatest:.4g}; at most 65504 can be stored")
    values = target.values.masked_fill(~target.valid, math.nan).to(torch.float16)
    return {
        "values": values.contiguous().numpy().astype("<f2", copy=False).tobytes(),
        "shape": [channels, *cells],
        "extent": target.extent.tolist(),
        "stride": int(target.stride),
    }


def _decode_maps(batch: pa.RecordBatch, row: int, size: tuple[int, int]) -> Maps:
    data, shape = memoryview(batch.column("values")[row].as_buffer()), batch.column("shape")[row].as_py()
    if len(shape) != 3 or len(data) != 2 * math.prod(shape):
        raise ValueError(f"{len(data)} bytes of features for a map of {shape}")
    values = torch.from_numpy(np.frombuffer(data, "<f2").astype(np.float16).reshape(shape))
    valid = ~values[0].isnan()
    if not bool(valid.all()):
        values.masked_fill_(~valid, 0)
    extent = torch.tensor(batch.column("extent")[row].as_py(), dtype=torch.float32)
    return Maps(values, valid, extent, torch.tensor(batch.column("stride")[row].as_py()))


# Shared -----------------------------------------------------------------------------------------------------


def _png(batch: pa.RecordBatch, name: str, row: int) -> NDArray[Any]:
    return read_png(memoryview(batch.column(name)[row].as_buffer()))


def _squares(values: Tensor) -> Tensor:
    """Squared lengths [H,W] of [3,H,W]; plane by plane, 20 times as fast as torch's norm over the first axis."""
    x, y, z = values
    return (x * x).addcmul_(y, y).addcmul_(z, z)


def _unit(values: Tensor) -> Tensor:
    """[3,H,W] at length 1; zeros stay zeros."""
    return values * _squares(values).clamp_(min=1e-12).rsqrt_()


def _reduced(values: Tensor, valid: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """[C,H,W] and [H,W] at 1/factor of the size, rounded up: block means over valid pixels."""
    if factor == 1:
        return values, valid

    def pool(map: Tensor) -> Tensor:
        return F.avg_pool2d(map[None], factor, ceil_mode=True, count_include_pad=False)[0]

    weight = pool(valid[None].float())
    mean = pool(torch.where(valid, values, 0).float()) / weight.clamp(min=1e-6)
    return mean, weight[0] >= 0.5


def _enlarged(values: Tensor, valid: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """[C,h,w] and [h,w] at full size: bilinear between valid pixels; 0 where not valid."""
    height, width = size
    if tuple(valid.shape) == size:
        return values, valid
    factor = next((f for f in (2, 4) if tuple(valid.shape) == (math.ceil(height / f), math.ceil(width / f))), None)
    if factor is None:
        raise ValueError(f"a label of {tuple(valid.shape)} pixels for an image of {size}")
    whole = [n * factor for n in valid.shape]

    def grow(map: Tensor) -> Tensor:
        return F.interpolate(map[None], whole, mode="bilinear", align_corners=False)[0, :, :height, :width]

    mask = valid.repeat_interleave(factor, 0).repeat_interleave(factor, 1)[:height, :width]
    full = grow(values) / grow(valid[None].float()).clamp(min=1e-6)
    return torch.where(mask, full, 0), mask


def _lists(**types: pa.DataType) -> list[pa.Field]:
    return [pa.field(name, pa.list_(kind), nullable=False) for name, kind in types.items()]


def _pngs(*names: str) -> list[pa.Field]:
    return [pa.field(name, pa.binary(), nullable=name == "confidence") for name in names]


CODECS: dict[type, Codec] = {
    Label: Codec(
        [
            *_lists(probs=pa.float16()),
            pa.field("classes", pa.list_(pa.int32())),
            pa.field("rest", pa.float32()),
            pa.field("total", pa.int32()),
        ],
        _encode_label,
        _decode_label,
    ),
    Boxes: Codec(
        _lists(boxes=pa.list_(pa.float32(), 4), classes=pa.int32(), scores=pa.float32()),
        _encode_boxes,
        _decode_boxes,
    ),
    Mask: Codec(_pngs("mask", "confidence"), _encode_mask, _decode_mask),
    Field: Codec(_pngs("values"), _encode_field, _decode_field),
    Vectors: Codec(_pngs("values"), _encode_vectors, _decode_vectors),
    Maps: Codec(
        [
            pa.field("values", pa.large_binary(), nullable=False),  # a shard of them may be more than 2 GB
            *_lists(shape=pa.int32(), extent=pa.float32()),
            pa.field("stride", pa.int32(), nullable=False),
        ],
        _encode_maps,
        _decode_maps,
    ),
}
"""How the kinds of `tutelage.types` are stored."""
