"""The PNG files inside the labels store: ordinary PNGs that any program opens, written to be read fast.

Every row of a file uses one and the same filter, either none (0) or "difference to the row above" (2). Undoing that
is one running sum over the whole picture, 1.5 to 1.8 times as fast as Pillow's decoder, which must expect anything
(`benchmarks/store.py`). The format is that of the PNG specification, second edition (ISO/IEC 15948): chunks in
section 11, filters in section 9.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NONE, _UP = 0, 2
_LEVEL = 6  # of zlib: written once and read in every epoch, so small and quick to read is worth slower writing
_SMOOTH_LEVEL = 4  # 6 makes depth and confidence 3% smaller and takes two and a half times as long
_GREY, _RGB = 0, 2


def write_png(pixels: NDArray[Any], smooth: bool) -> bytes:
    """Encode a picture; equal pictures give equal bytes (with one version of zlib).

    Args:
        pixels: uint8 [H,W], uint16 [H,W] or uint8 [H,W,3]; H and W at least 1.
        smooth: whether neighbours are close in value (depths, probabilities) rather than equal or unrelated
            (class ids); only the size of the file depends on it.
    """
    height, width = pixels.shape[:2]
    big_endian = np.ascontiguousarray(pixels, dtype=">u2" if pixels.dtype == np.uint16 else np.uint8)
    flat = big_endian.view(np.uint8).reshape(height, -1)
    rows = np.empty((height, 1 + flat.shape[1]), np.uint8)
    rows[:, 0] = _UP if smooth else _NONE
    rows[:, 1:] = flat
    if smooth:
        rows[1:, 1:] -= flat[:-1]
    colour = _RGB if pixels.ndim == 3 else _GREY
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, colour, 0, 0, 0)
    data = zlib.compress(rows.data, _SMOOTH_LEVEL if smooth else _LEVEL)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def read_png(data: bytes | memoryview) -> NDArray[Any]:
    """Decode a picture that `write_png` made: the same array, writable.

    Raises:
        ValueError: damaged bytes, or a PNG of another writer that uses what this reader leaves out.
    """
    view = memoryview(data).cast("B")
    header, body = view[:33], view[33:]
    if len(view) < 57 or header[:8] != _SIGNATURE or header[12:16] != b"IHDR" or body[4:8] != b"IDAT":
        raise ValueError("not a PNG of this store")
    width, height, bits, colour, *rest = struct.unpack(">IIBBBBB", header[16:29])
    if (bits, colour) not in ((8, _GREY), (16, _GREY), (8, _RGB)) or rest != [0, 0, 0]:
        raise ValueError("not a PNG of this store")
    row = 1 + width * (3 if colour == _RGB else bits // 8)
    length = int.from_bytes(body[:4], "big")
    try:
        raw = zlib.decompress(body[8 : 8 + length], bufsize=height * row)
    except zlib.error as error:
        raise ValueError(f"damaged PNG: {error}") from None
    if len(raw) != height * row:
        raise ValueError(f"damaged PNG: {len(raw)} bytes of pixels, not {height * row}")
    rows = np.frombuffer(raw, np.uint8).reshape(height, row)
    if (rows[:, 0] != rows[0, 0]).any() or rows[0, 0] not in (_NONE, _UP):
        raise ValueError("not a PNG of this store: mixed row filters")
    flat = np.cumsum(rows[:, 1:], axis=0, dtype=np.uint8) if rows[0, 0] == _UP else rows[:, 1:].copy()
    if colour == _RGB:
        return flat.reshape(height, width, 3)
    return flat.view(">u2").astype(np.uint16) if bits == 16 else flat


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
