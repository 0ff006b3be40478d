"""Encoded images as pictures: decoded by what is in them, completely, upright, to RGB, or refused with a reason.

What is accepted (decided by content, never by the name): JPEG (of several pictures in one file, as phones write, the
first), PNG, WebP, BMP, TIFF of one page and GIF of one frame. How they become RGB:

- L and 1-bit: the grey value three times, 1-bit as 0 and 255.
- palette: looked up. Transparency of any kind (palette, LA, RGBA, a transparent colour): laid over white.
- 16-bit grey: v * 255 / 65535, rounded. 16-bit colour PNGs: the high byte (that is what Pillow decodes).
- CMYK: Pillow's plain conversion, (255 - C) * (255 - K) / 255; ink profiles are not used. Colour profiles of RGB
  files are not used either.
- 32-bit integers and floats have no known white: refused.

The orientation in the EXIF data is applied exactly once, and a picture's size is the upright one from the start.
"""

from __future__ import annotations

import abc
import hashlib
import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path, PurePath

import numpy as np
from PIL import Image, UnidentifiedImageError

from tutelage.data.source import BadImage, Picture, UInt8
from tutelage.errors import one_line

MAX_BYTES = 128 * 2**20
"""Bytes of an encoded image."""
MAX_PIXELS = 80_000_000
"""Pixels of an image, from its header: below the 89 million at which Pillow suspects a decompression bomb."""
MIN_SIDE = 8
"""Pixels of the shorter side."""
MAX_ASPECT = 32.0
"""Longer side divided by shorter side."""

FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
}
"""The formats that are read, with the name endings that belong to each."""
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
"""The name endings by which image files are found in a folder."""

_DAMAGED = "the file is damaged: copy it again, or give another image"
_SMALLER = "scale it down"
_ORIENTATION = 274  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Set once and for all: guarding every call would reset the warning filters of the whole process for each image.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


class EncodedPicture(Picture, abc.ABC):
    """An encoded image. Its bytes are fetched and its header checked at once; pixels are decoded by `read`.

    Attributes:
        height, width: pixels, upright.
        notes: what is unusual but handled (a conversion, a name that does not fit the content), for the audit.

    Args:
        name: what the image is called, for the note on names; None where it has no name of its own.

    Raises:
        BadImage: no bytes, too many bytes or pixels, too small, too long and thin, animated, or not an image we read.
    """

    def __init__(self, name: str | PurePath | None) -> None:
        self._image: Image.Image | None = _open(self._bytes())
        self._turn = _orientation(self._image)
        width, height = self._image.size
        self.stored = (height, width)
        self.height, self.width = (width, height) if self._turn >= 5 else (height, width)
        _check_size(self.height, self.width)
        self.notes = _notes(self._image, None if name is None else PurePath(name))

    @abc.abstractmethod
    def _bytes(self) -> bytes:
        """The encoded image, fetched anew. Raises BadImage."""

    def read(self, scale: float = 1.0) -> UInt8:
        """See `Picture.read`; a new, writable, contiguous array.

        Raises:
            BadImage: the pixels cannot be decoded to the last.
        """
        image, self._image = self._image, None  # decoding uses the header up; a second read starts afresh
        if image is None:
            image = _open(self._bytes())
        try:
            if scale <= 0.5 and image.format in ("JPEG", "MPO"):
                divisor = next(d for d in (8, 4, 2) if scale * d <= 1)
                image.draft(None, (max(image.width // divisor, 1), max(image.height // divisor, 1)))
            image.load()
            return _upright(image, self._turn)
        except BadImage:
            raise
        except Exception as error:  # Pillow raises a dozen kinds on broken data, all meaning the same
            raise BadImage(f"cannot be decoded: {one_line(error)}", _DAMAGED) from None


class FilePicture(EncodedPicture):
    """An image file; see `EncodedPicture`. Raises BadImage as that, and where there is no file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        super().__init__(self.path)

    def _bytes(self) -> bytes:
        return read_bytes(self.path)


class PackedPicture(EncodedPicture):
    """An image inside a larger file; see `EncodedPicture`.

    Args:
        fetch: gives its bytes, again at every call; it may raise BadImage, and may be called from any thread.
        name: of the image, if it has one.
    """

    def __init__(self, fetch: Callable[[], bytes], name: str | None = None) -> None:
        self._fetch = fetch
        super().__init__(name)

    def _bytes(self) -> bytes:
        data = self._fetch()
        check_length(len(data))
        return data


def check_length(size: int) -> None:
    """Raise BadImage unless an encoded image of `size` bytes is neither empty nor above MAX_BYTES."""
    if size == 0:
        raise BadImage("empty (0 bytes)", _DAMAGED)
    if size > MAX_BYTES:
        raise BadImage(f"more than {MAX_BYTES:,} bytes", _SMALLER)


def read_bytes(path: Path) -> bytes:
    """The bytes of an image file. Raises BadImage when there is none, when it is empty or above MAX_BYTES."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(min(size, MAX_BYTES) + 1)  # a larger request would first clear as much memory
    except OSError as error:
        fix = "name the image files in it" if path.is_dir() else "check the path"
        raise BadImage(f"cannot be read: {error.strerror}", fix) from None
    check_length(len(data))
    return data


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes. Raises BadImage when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror}") from None


def open_checked(data: bytes) -> Image.Image:
    """An image of an accepted format with its header read, and no more than MAX_PIXELS pixels.

    Raises:
        BadImage: anything else.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=list(FORMATS))
    except UnidentifiedImageError:
        raise BadImage(
            f"not an image of a format we read (it begins with {data[:16]!r})", "give a JPEG, PNG or WebP"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(f"too many pixels: {one_line(error)}", _SMALLER) from None
    except Exception as error:
        raise BadImage(f"the header cannot be read: {one_line(error)}", _DAMAGED) from None
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(f"too many pixels: {image.width} x {image.height}, at most {MAX_PIXELS:,}", _SMALLER)
    return image


def _open(data: bytes) -> Image.Image:
    image = open_checked(data)
    try:  # Pillow counts the frames of some formats by walking through the file
        several = image.format in ("GIF", "WEBP", "PNG", "TIFF") and getattr(image, "is_animated", False)
    except Exception as error:
        raise BadImage(f"the header cannot be read: {one_line(error)}", _DAMAGED) from None
    if several:
        raise BadImage("animated, or of several pages", "save one picture of it as a file of its own")
    if image.mode == "P" and image.palette is None:
        raise BadImage("the header cannot be read: a picture of palette colours without its palette", _DAMAGED)
    return image


def _check_size(height: int, width: int) -> None:
    short, long = sorted((height, width))
    if short < MIN_SIDE:
        raise BadImage(
            f"too small: {width} x {height}, the shorter side must have {MIN_SIDE} pixels", "give a larger image"
        )
    if long > short * MAX_ASPECT:
        raise BadImage(f"too long and thin: {width} x {height}, at most {MAX_ASPECT:g} to 1", "cut it")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation still to be applied, 1 to 8."""
    if image.format == "TIFF":  # Pillow turns TIFFs itself, and states their upright size
        return 1
    if image.format == "PNG" and "exif" not in image.info:  # asking would decode the whole image
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # EXIF data that nobody can parse turns no picture
        return 1
    return value if value in _TURNS else 1


def pixels_of(image: Image.Image) -> UInt8:
    """What `EncodedPicture.read` gives of the image's file: upright RGB, a new, writable, contiguous array.

    Raises:
        BadImage: pixels without a known range, or of a mode that cannot be converted.
    """
    turn = _orientation(image)
    image.load()  # which turns a TIFF
    return _upright(image, turn)


def _upright(image: Image.Image, orientation: int) -> UInt8:
    if orientation > 1:
        image = image.transpose(_TURNS[orientation])
    return np.array(np.asarray(_rgb(image)))  # a quarter faster than np.array of the image itself


def _rgb(image: Image.Image) -> Image.Image:
    """The decoded image as mode RGB, as the head of this file says."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise BadImage(f"pixels of mode {image.mode} (32 bit) have no known range; save it as 8 or 16 bit")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    try:
        return image.convert("RGB")
    except ValueError:
        raise BadImage(f"pixels of mode {image.mode} cannot be converted to RGB") from None


def _notes(image: Image.Image, name: PurePath | None) -> list[str]:
    notes = []
    known = FORMATS["JPEG" if image.format == "MPO" else str(image.format)]
    if name is not None and name.suffix.lower() not in known:
        notes.append(f"the name ends in '{name.suffix}' but the content is {image.format}")
    if image.mode == "CMYK":
        notes.append("CMYK converted to RGB without an ink profile")
    if image.mode.startswith("I;16"):
        notes.append("16 bit rescaled to 8 bit")
    if image.has_transparency_data:
        notes.append("transparency laid over white")
    return notes
