"""Pictures inside the page: made small, within a budget of bytes."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import zip_longest
from pathlib import Path

from PIL import Image

from tutelage.data.source import Fault
from tutelage.report.folder import Panel, PictureRow

_SIDE = 320
"""Longest side of an embedded picture, in pixels."""
_PIXELS = 64_000_000
_BUDGET = 4_000_000
"""Bytes of base64 text for all pictures of a page."""
_ABREAST = 7
"""Panels in one line at most."""
_ROWS = 12
"""Rows a group at most."""


@dataclass(frozen=True)
class Embedded:
    """A picture as a data URI with its size in pixels, and its caption."""

    uri: str
    width: int
    height: int
    caption: str


@dataclass(frozen=True)
class EmbeddedRow:
    """A `PictureRow` with its panels embedded; those that could not be read are left out."""

    image: str
    panels: tuple[Embedded, ...]


def embed(rows: Iterable[PictureRow], faults: list[Fault], budget: int = _BUDGET) -> dict[str, list[EmbeddedRow]]:
    """Group to rows, as many as fit into the budget: the first row of every group, then the second, and so on.

    Pictures that cannot be read are added to `faults`.
    """
    groups: dict[str, list[PictureRow]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    embedded: dict[str, list[EmbeddedRow]] = {group: [] for group in groups}
    in_turn = zip_longest(*([(group, row) for row in members[:_ROWS]] for group, members in groups.items()))
    for entry in (entry for turn in in_turn for entry in turn if entry is not None):
        group, row = entry
        panels = tuple(p for panel in row.panels if (p := _embed(panel, faults)) is not None)
        budget -= sum(len(p.uri) for p in panels)
        if budget < 0:
            break
        if panels:
            embedded[group].append(EmbeddedRow(row.image, panels))
    return {group: members for group, members in embedded.items() if members}


def drawn(row: EmbeddedRow) -> str:
    """One row as HTML: panels without a head, then those of each head together ("objects: truth", "objects: student").

    A few panels stand in one line; with more of them, those of one head stand below each other.
    """
    alone = [p for p in row.panels if ": " not in p.caption]
    heads: dict[str, list[Embedded]] = {}
    for panel in row.panels:
        head, colon, _ = panel.caption.partition(": ")
        if colon:
            heads.setdefault(head, []).append(panel)
    kind = "pair abreast" if len(row.panels) <= _ABREAST else "pair"
    columns = ""
    for panels in heads.values():
        figures = _figures(panels, row.image)
        columns += figures if len(panels) == 1 else f'<div class="{kind}">{figures}</div>'
    return (
        f'<figure class="card"><figcaption><small>{escape(row.image)}</small></figcaption>'
        f'<div class="pictures">{_figures(alone, row.image)}{columns}</div></figure>'
    )


def _figures(panels: Sequence[Embedded], image: str) -> str:
    return "".join(
        f'<figure><img src="{p.uri}" width="{p.width}" height="{p.height}" loading="lazy" decoding="async" '
        f'alt="{escape(f"{p.caption}, image {image}")}"><figcaption>{escape(p.caption)}</figcaption></figure>'
        for p in panels
    )


def _embed(panel: Panel, faults: list[Fault]) -> Embedded | None:
    try:
        data, size, kind = _shrunk(panel.file)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        faults.append(Fault(str(panel.file), panel.caption, f"no picture that can be shown: {error}", "dropped"))
        return None
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Embedded(uri, *size, panel.caption)


def _shrunk(file: Path) -> tuple[bytes, tuple[int, int], str]:
    """Encoded bytes, (width, height) and kind: the file itself where it is small, else a smaller JPEG."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=("PNG", "JPEG")) as picture:
            if picture.width * picture.height > _PIXELS:
                raise ValueError(f"{picture.width} x {picture.height} pixels are too many")
            small, kind = max(picture.size) <= _SIDE, str(picture.format).lower()
            rgb = picture.convert("RGB")
    rgb.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    rgb.save(stream, "JPEG", quality=86, subsampling=0, optimize=True)
    if small and file.stat().st_size <= stream.tell():
        return file.read_bytes(), rgb.size, kind
    return stream.getvalue(), rgb.size, "jpeg"
