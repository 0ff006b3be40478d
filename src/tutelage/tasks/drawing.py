"""Targets as pictures for a person. All functions take and give uint8 [h,w,3] RGB and leave the size as it is.

Words and lines grow with the picture; from about 128 pixels on they can be read, below that words are left out.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tutelage.types import IGNORE, Boxes

Picture = NDArray[np.uint8]
Color = tuple[int, int, int]

_GREY: Color = (150, 150, 150)
_WORDS_FROM = 96
"""Pixels of the shorter side from which on words are drawn."""


def color(index: int) -> Color:
    """The colour of a class: neighbours differ most, in hue by the golden angle and in turn in lightness."""
    hue = (0.58 + index * 0.6180339887) % 1
    light, saturation = ((0.56, 0.85), (0.42, 0.75), (0.70, 0.80))[index // 5 % 3]
    return tuple(round(255 * c) for c in colorsys.hls_to_rgb(hue, light, saturation))  # type: ignore[return-value]


def boxes(image: Picture, target: Boxes, names: Sequence[str]) -> Picture:
    """Boxes, the best-scored on top, each with its class, and its score where that is below 1; ignored ones grey."""
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    side = min(image.shape[:2])
    line = max(1, round(side / 160))
    order = np.argsort(target.scores.numpy(), kind="stable")
    corners = target.boxes.numpy()
    classes, scores, ignore = target.classes.tolist(), target.scores.tolist(), target.ignore.tolist()
    for n in order.tolist():
        x1, y1, x2, y2 = np.rint(corners[n]).astype(int).tolist()
        outline = _GREY if ignore[n] else color(classes[n])
        x2, y2 = max(x1, x2 - 1), max(y1, y2 - 1)
        pen.rectangle((x1, y1, x2, y2), outline=outline, width=1 if ignore[n] else line)
    taken: list[tuple[int, int, int, int]] = []
    for n in reversed(order.tolist()):  # the best first, so that where words have no room the least sure go without
        if side < _WORDS_FROM or ignore[n]:
            continue
        words = names[classes[n]] if scores[n] >= 1 else f"{names[classes[n]]} {scores[n]:.2f}"
        _tag(pen, corners[n], words, color(classes[n]), canvas.size, taken)
    return np.asarray(canvas)


def masks(image: Picture, ids: Picture, names: Sequence[str]) -> Picture:
    """Classes as a coloured overlay with outlines; pixels of id 255 hatched; a legend of the largest classes.

    Args:
        image: uint8 [h,w,3].
        ids: uint8 [h,w].
        names: of the classes.
    """
    table = np.zeros((256, 3), np.float32)
    table[: len(names)] = [color(k) for k in range(len(names))]
    labelled = ids != IGNORE
    # Colours lie on the picture's brightness, not on its colours: else green on red is neither.
    grey = image.mean(2, dtype=np.float32)[..., None].repeat(3, 2)
    result = 0.35 * (0.5 * image + 0.5 * grey) + 0.65 * table[ids]
    edge = np.zeros(ids.shape, bool)
    edge[1:] |= ids[1:] != ids[:-1]
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    result[edge & labelled] = 0.35 * result[edge & labelled] + 0.65 * 255
    result[~labelled] = _hatched(image, ~labelled)
    shown = np.bincount(ids[labelled], minlength=len(names))
    entries = [(names[k], color(k)) for k in np.argsort(-shown, kind="stable") if k < len(names) and shown[k]]
    return _legend(_bytes(result), entries)


def depth(image: Picture, nearness: NDArray[np.float32], valid: NDArray[np.bool_], unit: str | None) -> Picture:
    """Inverse depth in a perceptual colour map, near bright and far dark, cut at its 2nd and 98th hundredth.

    Args:
        image: uint8 [h,w,3]; seen where there is no depth.
        nearness: float32 [h,w], inverse depth.
        valid: bool [h,w].
        unit: of depth, for a scale of near and far; None where depth has no unit.
    """
    result = np.zeros(image.shape, np.float32)
    result[~valid] = _hatched(image, ~valid)
    if not valid.any():
        return _bytes(result)
    far, near = np.percentile(nearness[valid], (2, 98))
    level = np.clip((nearness - far) / max(near - far, 1e-9), 0, 1)
    result[valid] = _magma()[np.rint(level[valid] * 255).astype(int)]
    return _scale(_bytes(result), 1 / max(near, 1e-9), 1 / max(far, 1e-9), unit) if unit else _bytes(result)


def normals(image: Picture, values: NDArray[np.float32], valid: NDArray[np.bool_]) -> Picture:
    """Right, up and towards the camera as red, green and blue: what faces the camera is light blue.

    Args:
        image: uint8 [h,w,3]; seen where there is no normal.
        values: float32 [3,h,w], unit vectors, x right, y down, z into the scene.
        valid: bool [h,w].
    """
    result = (values.transpose(1, 2, 0) * np.array([1, -1, -1], np.float32) + 1) * 127.5
    result[~valid] = _hatched(image, ~valid)
    return _bytes(result)


def components(
    image: Picture, values: NDArray[np.float32], valid: NDArray[np.bool_], extent: tuple[float, float]
) -> Picture:
    """The first three principal components of vectors, cell by cell, as red, green and blue.

    Colours mean something inside of one picture only: each component reaches from its 2nd to its 98th hundredth,
    and the cell that lies farthest out is bright. Components without spread are grey.

    Args:
        image: uint8 [h,w,3]; seen where there is no vector.
        values: float32 [C,y,x].
        valid: bool [y,x].
        extent: height and width of the image in cells.
    """
    level = np.full((*valid.shape, 3), 0.5)
    if valid.any():
        vectors = values[:, valid].T.astype(np.float64)
        for n, scores in enumerate(_components(vectors - vectors.mean(0))):
            low, high = np.percentile(scores, (2, 98))
            level[valid, n] = np.clip((scores - low) / max(high - low, 1e-12), 0, 1)
    sides = zip(image.shape[:2], extent, valid.shape, strict=True)
    rows, columns = (
        np.minimum((np.arange(side) + 0.5) * reach / side, cells - 1).astype(int) for side, reach, cells in sides
    )
    result = (level * 255)[rows][:, columns].astype(np.float32)
    hidden = ~valid[rows][:, columns]
    result[hidden] = _hatched(image, hidden)
    return _bytes(result)


def _components(centred: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """[N,C] vectors without their mean in up to three main directions: [N] each, those with any spread."""
    wide = centred.shape[1] > len(centred)
    spread, axes = np.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    found = []
    for n in range(len(spread) - 1, max(len(spread) - 4, -1), -1):
        if spread[n] > 1e-9 * max(spread[-1], 1e-12):
            scores = axes[:, n] if wide else centred @ axes[:, n]
            found.append(scores * np.sign(scores[np.abs(scores).argmax()]))
    return found


def bars(image: Picture, rows: Sequence[tuple[str, float]]) -> Picture:
    """A dark strip at the bottom with a bar for each name and its probability in [0, 1], the first highlighted."""
    height, width = image.shape[:2]
    if not rows or min(height, width) < _WORDS_FROM:
        return image.copy()
    size = max(10, round(min(height, width) / 18))
    step, margin = round(size * 1.5), max(3, size // 3)
    rows = rows[: max(1, (height // 2 - margin) // step)]
    top = height - len(rows) * step - margin
    shaded = image.astype(np.float32)
    shaded[top:] = 0.28 * shaded[top:] + 0.72 * np.array([16, 18, 24])
    canvas = Image.fromarray(_bytes(shaded))
    pen, font = ImageDraw.Draw(canvas), _font(size)
    for n, (name, share) in enumerate(rows):
        y = top + margin // 2 + n * step
        fill: Color = (46, 134, 222) if n == 0 else (84, 96, 116)
        length = round((width - 2 * margin) * min(1.0, max(0.0, share)))
        pen.rectangle((margin, y, margin + max(1, length), y + step - 3), fill=fill)
        number = f"{100 * share:.0f}%"
        room = width - 4 * margin - _width(font, number)
        _write(pen, (2 * margin, y + (step - 3) / 2), _shorten(name, font, room), font, "lm")
        _write(pen, (width - 2 * margin, y + (step - 3) / 2), number, font, "rm")
    return np.asarray(canvas)


def _tag(
    pen: ImageDraw.ImageDraw,
    box: Any,
    words: str,
    fill: Color,
    size: tuple[int, int],
    taken: list[tuple[int, int, int, int]],
) -> None:
    """A box's name above it, or inside at its top or bottom; left out where other names already stand."""
    font = _font(max(9, round(min(size) / 26)))
    words = _shorten(words, font, size[0] - 4)
    high, wide = font.size + 3, _width(font, words) + 5
    x = int(np.clip(round(box[0]), 0, max(0, size[0] - wide)))
    for y in (round(box[1]) - high, round(box[1]), round(box[3]) - high, round(box[3])):
        place = (x, int(y), x + int(wide), int(y) + int(high))
        if y >= 0 and y + high <= size[1] and not any(_touch(place, other) for other in taken):
            taken.append(place)
            pen.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=fill)
            ink = (0, 0, 0) if 0.30 * fill[0] + 0.59 * fill[1] + 0.11 * fill[2] > 140 else (255, 255, 255)
            pen.text((x + 2, y + high / 2), words, fill=ink, font=font, anchor="lm")
            return


def _touch(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _legend(image: Picture, entries: Sequence[tuple[str, Color]]) -> Picture:
    """Names with their colours at the bottom left, as many (of at most 6) as fit into less than half of the height."""
    height, width = image.shape[:2]
    if not entries or min(height, width) < _WORDS_FROM:
        return image
    font = _font(max(9, round(min(height, width) / 26)))
    step = font.size + 4
    shown = entries[: min(6, max(1, int(height * 0.45 / step)))]
    texts = [_shorten(name, font, width / 2) for name, _ in shown]
    wide = round(max(_width(font, text) for text in texts) + step + 8)
    top = round(height - len(shown) * step - 4)
    shaded = image.astype(np.float32)
    shaded[top:, :wide] = 0.3 * shaded[top:, :wide] + 0.7 * np.array([16, 18, 24])
    canvas = Image.fromarray(_bytes(shaded))
    pen = ImageDraw.Draw(canvas)
    for n, (text, (_, fill)) in enumerate(zip(texts, shown, strict=True)):
        y = top + 2 + n * step
        pen.rectangle((4, y + 2, step - 2, y + step - 4), fill=fill)
        _write(pen, (step + 3, y + step / 2 - 1), text, font, "lm")
    return np.asarray(canvas)


def _scale(image: Picture, near: float, far: float, unit: str) -> Picture:
    """The colour map as a small bar at the bottom left, with what its ends mean."""
    height, width = image.shape[:2]
    if min(height, width) < _WORDS_FROM:
        return image
    font = _font(max(9, round(min(height, width) / 26)))
    left, right = f"{near:.2g} {unit}", f"{far:.2g} {unit}"
    high, long = font.size + 6, round(width / 5)
    x = 4 + _width(font, left) + 4
    wide = round(x + long + 4 + _width(font, right) + 5)
    if wide > width:
        return image
    top = round(height - high)
    result = image.astype(np.float32)
    result[top:, :wide] = 0.25 * result[top:, :wide] + 0.75 * np.array([16, 18, 24])
    x1 = round(x)
    ramp = _magma()[np.linspace(255, 0, long).astype(int)]
    result[top + 4 : height - 4, x1 : x1 + long] = ramp
    canvas = Image.fromarray(_bytes(result))
    pen = ImageDraw.Draw(canvas)
    _write(pen, (4, top + high / 2), left, font, "lm")
    _write(pen, (x1 + long + 4, top + high / 2), right, font, "lm")
    return np.asarray(canvas)


def _hatched(image: Picture, where: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Colours [n,3] of the pixels `where`: the picture in pale grey under diagonal stripes."""
    y, x = np.nonzero(where)
    pitch = max(6, round(min(image.shape[:2]) / 24))
    pale = 0.35 * image[y, x].mean(1, dtype=np.float32) + 0.65 * 175
    stripe = (x + y) % pitch < max(1, pitch // 5)
    return np.where(stripe, 235.0, pale)[:, None].repeat(3, 1).astype(np.float32)


@lru_cache(maxsize=1)
def _magma() -> NDArray[np.float32]:
    """A colour map [256,3] whose lightness grows evenly."""
    from matplotlib import colormaps  # slow to import, and only pictures of depth need it

    return (colormaps["magma"](np.arange(256))[:, :3] * 255).astype(np.float32)


@lru_cache(maxsize=32)
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _width(font: Any, text: str) -> float:
    return float(font.getlength(text))


def _shorten(text: str, font: Any, room: float) -> str:
    """The text, or its beginning with three dots where it is wider than `room` pixels."""
    if _width(font, text) <= room:
        return text
    while text and _width(font, text + "...") > room:
        text = text[:-1]
    return text + "..."


def _write(pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, font: Any, anchor: str) -> None:
    pen.text(place, text, fill=(255, 255, 255), font=font, anchor=anchor)


def _bytes(values: NDArray[Any]) -> Picture:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
