"""Label images: class ids, depth and normals as files hold them. Unlike photographs they are never rescaled, never
turned and never converted, and lossy formats are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tutelage.data.pixels import MAX_PIXELS, open_checked, read_bytes
from tutelage.data.source import BadImage, UInt8
from tutelage.errors import UserError

MAPS = frozenset((".png", ".tif", ".tiff", ".bmp", ".gif", ".npy", ".npz"))
"""The name endings by which label files are found in a folder."""

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]

_EDGE = (0.5, 1.5)  # a stored normal shorter or longer than this is no direction at all
_OFF = 0.01
_NPZ_BYTES = 2**30  # unpacked


class Depth(NamedTuple):
    """Depth in metres, float32 [H,W], 0 where not valid; `valid` bool [H,W]; `odd`: how many pixels held NaN, an
    infinity or a number that is not positive without being one of the stated invalid values."""

    metres: Floats
    valid: Bools
    odd: int


class Normals(NamedTuple):
    """Unit normals float32 [3,H,W], 0 where not valid; `valid` bool [H,W]; `mended`: how many were off unit length by
    more than 1% and were renormalised; `odd`: how many were no direction at all and were masked, zeros not counted."""

    vectors: Floats
    valid: Bools
    mended: int
    odd: int


def read_index_mask(path: str | Path) -> UInt8:
    """The stored ids of an index mask, uint8 [H,W]: a palette, grey or 1-bit image, or 16 bit with no id above 255.

    Raises:
        UserError: not such an image, or an id above 255.
    """
    image = _load(Path(path))
    if image.mode in ("P", "L"):
        return np.array(image)
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        wide = np.asarray(image)
        if wide.size and (wide.max() > 255 or wide.min() < 0):
            raise _unfit(
                path, "ids above 255", int(wide.max()), "give classes ids from 0 to 254; 255 is kept for ignore"
            )
        return wide.astype(np.uint8)
    raise _unfit(path, "not an index mask", f"mode {image.mode}", "one channel a pixel holding the class id, as PNG")


def read_colour_ids(path: str | Path) -> NDArray[np.int32]:
    """The ids of a colour-coded PNG, int32 [H,W]: R + 256 G + 65536 B (COCO panoptic). Raises UserError."""
    image = _load(Path(path))
    if image.mode != "RGB":
        raise _unfit(path, "not a colour-coded mask", f"mode {image.mode}", "a PNG with 8 bit RGB")
    red, green, blue = np.asarray(image).astype(np.int32).transpose(2, 0, 1)
    return red + 256 * green + 65536 * blue


def read_depth(path: str | Path, unit: float, invalid: Sequence[float] = (0.0,), maximum: float | None = None) -> Depth:
    """A depth map: 16-bit (or 8-bit) grey PNG, 16-bit or float TIFF, .npy or .npz with one array, [H,W] or [H,W,1].

    Args:
        unit: metres for a stored 1 (0.001 for millimetres).
        invalid: stored values that mean "not measured".
        maximum: metres; what is deeper is not valid.

    Raises:
        UserError: a file that is none of these.
    """
    stored = _array(Path(path))
    if stored.ndim == 3 and stored.shape[2] == 1:
        stored = stored[:, :, 0]
    if stored.ndim != 2 or stored.dtype.kind not in "uif":
        raise _unfit(path, "not a depth map", f"{stored.dtype} {list(stored.shape)}", "one number a pixel, [H,W]")
    stated = np.zeros(stored.shape, np.bool_)
    for value in invalid:
        stated |= stored == value
    with np.errstate(over="ignore", invalid="ignore"):
        metres = stored.astype(np.float32) * np.float32(unit)
        valid = np.isfinite(metres) & (metres > 0) & ~stated
    odd = int((~valid & ~stated).sum())
    if maximum is not None:
        valid &= ~(metres > maximum)
    return Depth(np.where(valid, metres, np.float32(0)), valid, odd)


def read_valid(path: str | Path) -> Bools:
    """A validity mask, bool [H,W], from .npy, .npz or an index image: true where not zero. Raises UserError."""
    if Path(path).suffix.lower() not in (".npy", ".npz"):
        return read_index_mask(path) != 0
    stored = _array(Path(path))
    if stored.ndim == 3 and stored.shape[2] == 1:
        stored = stored[:, :, 0]
    if stored.ndim != 2 or stored.dtype.kind not in "buif":
        raise _unfit(path, "not a validity mask", f"{stored.dtype} {list(stored.shape)}", "one number a pixel, [H,W]")
    return np.nan_to_num(stored) != 0


def read_normals(path: str | Path, negate: str = "") -> Normals:
    """Normals from an RGB image with n = v / 127.5 - 1, or .npy/.npz [H,W,3].

    Zero vectors are not valid. Lengths off by more than 1% are renormalised; below 0.5 or above 1.5 (black pixels of
    an RGB image, say), or not finite, they are masked.

    Args:
        negate: the letters of the axes to negate, for files whose axes are not x right, y down, z into the scene.

    Raises:
        UserError: a file that is none of these.
    """
    stored = _array(Path(path))
    if stored.ndim != 3 or stored.shape[2] != 3 or stored.dtype.kind not in "uif":
        raise _unfit(
            path, "not a map of normals", f"{stored.dtype} {list(stored.shape)}", "three numbers a pixel, [H,W,3]"
        )
    if stored.dtype == np.uint8:
        coded = (stored == 127) | (stored == 128)  # the grey that stands for a zero vector
        vectors = np.where(coded.all(2, keepdims=True), np.float32(0), stored.astype(np.float32) / 127.5 - 1)
    else:
        vectors = stored.astype(np.float32)
    vectors *= np.array([-1.0 if axis in negate else 1.0 for axis in "xyz"], np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        length = np.sqrt((vectors * vectors).sum(2))
        valid = (length >= _EDGE[0]) & (length <= _EDGE[1])
        off = valid & (np.abs(length - 1) > _OFF)
    odd = int((~valid & (length != 0)).sum())
    unit = np.where(valid[..., None], vectors, 0) / np.where(valid, length, 1)[..., None]
    return Normals(np.ascontiguousarray(unit.transpose(2, 0, 1), np.float32), valid, int(off.sum()), odd)


def _load(path: Path) -> Image.Image:
    try:
        image = open_checked(read_bytes(path))
        if image.format in ("JPEG", "MPO", "WEBP"):
            raise BadImage(f"{image.format} changes values when it is saved; use PNG")
        image.load()
    except BadImage as error:
        raise UserError(f"the label image cannot be used: {error}", file=path, fix="save it again, as PNG") from None
    except Exception as error:  # as with photographs: Pillow raises many kinds on broken data
        raise UserError(
            f"the label image cannot be decoded: {error or type(error).__name__}",
            file=path,
            fix="save it again, as PNG",
        ) from None
    return image


def _array(path: Path) -> NDArray[np.generic]:
    """The array of a .npy or .npz file (never unpickled), or the pixels of an image."""
    if path.suffix.lower() not in (".npy", ".npz"):
        image = _load(path)
        if image.mode in ("1", "P"):
            raise _unfit(path, "not of numbers a pixel", f"mode {image.mode}", "grey or RGB, without a palette")
        return np.asarray(image)
    try:
        if path.suffix.lower() == ".npy":
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            with np.load(path, allow_pickle=False) as archive:
                members = archive.zip.infolist()
                if len(members) != 1 or members[0].file_size > _NPZ_BYTES:
                    raise ValueError(f"wanted is one array of at most {_NPZ_BYTES:,} bytes")
                stored = archive[archive.files[0]]
    except Exception as error:  # zip, header and pickle errors alike
        raise UserError(f"the array cannot be read: {error}", file=path, fix="save it with numpy.save") from None
    if stored.size > 4 * MAX_PIXELS:
        raise _unfit(path, "too many pixels", list(stored.shape), f"at most {MAX_PIXELS:,}")
    return np.asarray(stored)


def _unfit(path: str | Path, problem: str, value: object, fix: str) -> UserError:
    return UserError(
        f"the label file is {problem}" if problem[:3] == "not" else f"the label file has {problem}",
        file=path,
        value=value,
        fix=fix,
    )
