"""Which further files an ONNX model keeps its weights in, read from the model file alone.

An ONNX file is a protocol buffer; tensors may name another file, a "location", in their external data. They are found
by walking the messages that can hold tensors, without decoding any weight.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tutelage.errors import UserError

_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""Message to its fields, by number, that lead to tensors and their external data (onnx.proto)."""

_DEEPEST = 200


class _Field(NamedTuple):
    """One field of a message: its number, and where its bytes are; None for plain numbers."""

    number: int
    span: tuple[int, int] | None


def external_files(model: Path) -> tuple[Path, ...]:
    """The files of external data, in alphabetical order; all lie in the model's folder or below it.

    Raises:
        UserError: the model cannot be read or is no ONNX file; data elsewhere.
    """
    try:
        if model.stat().st_size == 0:
            raise ValueError("it is empty")
        with model.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            names = {_text(content, span) for span in _locations(content, "model", (0, len(content)), 0)}
    except OSError as error:
        raise UserError(f"the model cannot be read: {error.strerror}", file=model, fix="check the path") from None
    except (ValueError, IndexError) as error:
        raise UserError(f"this is no ONNX model: {error}", file=model, fix="give an .onnx file") from None
    return tuple(_beside(model, name) for name in sorted(names))


def _beside(model: Path, name: str) -> Path:
    folder, file = model.parent.resolve(), (model.parent / name).resolve()
    if not file.is_relative_to(folder) or file == folder:
        raise UserError(
            "the model wants to read weights from outside its folder",
            file=model,
            field="location",
            value=name,
            fix="keep the weights in the model's own folder",
        )
    return file


def _locations(content: mmap.mmap, message: str, span: tuple[int, int], depth: int) -> Iterator[tuple[int, int]]:
    """Where the names of files stand."""
    if depth > _DEEPEST:
        raise ValueError("it is nested too deeply")
    if message == "entry":
        fields = {field.number: field.span for field in _fields(content, span)}
        key, value = fields.get(1), fields.get(2)
        if key is not None and value is not None and _text(content, key) == "location":
            yield value
        return
    for field in _fields(content, span):
        inner = _INSIDE[message].get(field.number)
        if inner is not None and field.span is not None:
            yield from _locations(content, inner, field.span, depth + 1)


def _fields(content: mmap.mmap, span: tuple[int, int]) -> Iterator[_Field]:
    """The fields of a message; raises ValueError where it is none."""
    at, end = span
    while at < end:
        tag, at = _number(content, at, end)
        wire = tag & 7
        if tag < 8:
            raise ValueError("it holds bytes that no ONNX file holds")
        if wire == 2:
            length, at = _number(content, at, end)
            if at + length > end:
                raise ValueError("it is cut off")
            yield _Field(tag >> 3, (at, at + length))
            at += length
        elif wire == 0:
            at = _number(content, at, end)[1]
            yield _Field(tag >> 3, None)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
            yield _Field(tag >> 3, None)
        else:
            raise ValueError("it holds bytes that no ONNX file holds")


def _number(content: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = shift = 0
    while at < end and shift < 70:
        byte = content[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
    raise ValueError("it is cut off, or holds bytes that no ONNX file holds")


def _text(content: mmap.mmap, span: tuple[int, int]) -> str:
    return content[slice(*span)].decode("utf-8", errors="replace")
