"""COCO's JSON: boxes of instances, and panoptic segments as semantic masks."""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import Field

from tutelage.data.boxes import BoxDataset, RawBoxes, clean
from tutelage.data.files import (
    FileDataset,
    FileSource,
    doubles,
    empty_classes,
    existing,
    inside,
    map_classes,
    natural,
    read_text,
    several,
)
from tutelage.data.maps import read_colour_ids
from tutelage.data.source import Dataset, Fault, LabelSpace, Place, numbers_of
from tutelage.errors import UserError
from tutelage.part import nearest
from tutelage.types import IGNORE, Mask


class CocoBoxes(FileSource):
    """COCO instances: boxes [x, y, width, height] in pixels. Classes come in the order of the category ids, which stay
    in the label space; crowds become boxes to ignore; an image without annotation is a valid negative."""

    format: Literal["coco"] = "coco"
    head: str
    images: Path
    """The folder that the file names of the JSON start from."""
    annotations: Path
    """The JSON file."""
    strict: bool = False
    """Stop at boxes that are not finite, reversed, of no area or outside; else they are dropped and counted."""
    only: tuple[str, ...] | None = Field(None, min_length=1)
    """The classes that count, `[person, car]`: boxes of others are left out as if nobody had drawn them. None: all."""

    def open(self, name: str, place: Place, classes: Sequence[str] | None = None) -> Dataset:
        root = existing(place.root / self.images, "`images`", name, folder=True)
        file = existing(place.root / self.annotations, "`annotations`", name)
        coco = _Coco.read(file, name)
        if self.only is not None:
            coco = coco.only(self.only)
        space, mapping = map_classes(coco.space, classes, file, name)
        kept = coco.chosen(self, root)
        raw = _raw_boxes(coco, kept, mapping)
        packed, faults = clean(raw, [str(file)], self.strict, name)
        faults += empty_classes(space, packed.classes, file)
        sizes = np.array([(image.width, image.height) for image in kept], np.int64).reshape(-1, 2)
        files = [image.file for image in kept]
        return BoxDataset(name, self.head, space, root, files, faults, packed, sizes, (file, "the image record"))


class CocoPanoptic(FileSource):
    """COCO panoptic: a JSON and a folder of PNGs whose colour is the segment, id = R + 256 G + 65536 B.

    Read as semantic masks over the categories, things and stuff; black pixels belong to no segment and are ignored;
    images without an entry under "annotations" are unlabelled."""

    format: Literal["coco-panoptic"] = "coco-panoptic"
    head: str
    images: Path
    """The folder that the images' file names of the JSON start from."""
    annotations: Path
    """The JSON file."""
    masks: Path
    """The folder that the annotations' file names of the JSON start from."""

    def open(self, name: str, place: Place, classes: Sequence[str] | None = None) -> Dataset:
        root = existing(place.root / self.images, "`images`", name, folder=True)
        masks = existing(place.root / self.masks, "`masks`", name, folder=True)
        file = existing(place.root / self.annotations, "`annotations`", name)
        coco = _Coco.read(file, name)
        space, mapping = map_classes(coco.space, classes, file, name)
        if len(space.names) > IGNORE:
            raise UserError(f"source '{name}': more than {IGNORE} classes", file=file, value=len(space.names))
        kept = coco.chosen(self, root)
        segments = _segments(coco, kept, mapping, masks)
        faults = empty_classes(space, segments.classes, file)
        return _PanopticDataset(name, self.head, space, root, kept, faults, segments, masks)


@dataclass(frozen=True)
class _Image:
    """One record of "images"."""

    id: int | str
    file: str
    width: float
    height: float


@dataclass(frozen=True)
class _Coco:
    """A COCO JSON after its cross-references are checked; Python objects, gone once the index is made."""

    file: Path
    name: str
    images: list[_Image]
    space: LabelSpace
    annotations: list[dict[str, Any]]

    @classmethod
    def read(cls, file: Path, name: str) -> _Coco:
        """Raises UserError: not COCO's layout, doubled ids, unknown references."""
        try:
            plain = json.loads(read_text(file, name))
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"source '{name}': this is not JSON: {error}", file=file, fix="export it again") from None
        for key in ("images", "annotations", "categories"):
            entries = plain.get(key) if isinstance(plain, dict) else None
            if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
                raise UserError(f"source '{name}': COCO's list '{key}' is missing", file=file, field=key)
        images = _read_images(plain["images"], file, name)
        images.sort(key=lambda image: natural(image.file))
        return cls(file, name, images, _read_space(plain["categories"], file, name), plain["annotations"])

    def only(self, names: Sequence[str]) -> _Coco:
        """The same with some of its classes. Raises UserError: a class that it has not, an id that it does not list."""
        unknown = [name for name in names if name not in self.space.names]
        if unknown:
            raise UserError(
                f"source '{self.name}': there is no such class{nearest(unknown[0], self.space.names)}",
                file=self.file,
                field="only",
                value=several(unknown),
                fix="name classes as the JSON's categories do",
            )
        self._refuse("category_id", self.space.ids)
        kept = [(label, id) for label, id in zip(self.space.names, self.space.ids, strict=True) if label in names]
        space = LabelSpace(tuple(label for label, _ in kept), tuple(id for _, id in kept))
        mine = [a for a in self.annotations if a["category_id"] in space.ids]
        return replace(self, space=space, annotations=mine)

    def chosen(self, source: FileSource, root: Path) -> list[_Image]:
        """The images that a source picks. Raises UserError: files missing or outside `root`."""
        kept = [self.images[i] for i in source.pick(self.name, [image.file for image in self.images]).tolist()]
        gone = [image.file for image in kept if not (inside(image.file) and (root / image.file).is_file())]
        if gone:
            raise UserError(
                f"source '{self.name}': images named in the JSON are not below the folder {root}",
                file=self.file,
                field="file_name",
                value=several(gone),
                fix="correct `images`, or name these images in `exclude`",
            )
        return kept

    def of(self, kept: Sequence[_Image]) -> tuple[list[tuple[int, dict[str, Any]]], dict[int, int]]:
        """The annotations of the kept images as (position of the image, annotation), sorted by position; and the
        class of each category id. Raises UserError: an image or category id that the JSON does not list."""
        known = {image.id for image in self.images}
        self._refuse("image_id", known)
        place = {image.id: position for position, image in enumerate(kept)}
        mine = [(place[a["image_id"]], a) for a in self.annotations if a["image_id"] in place]
        mine.sort(key=lambda pair: pair[0])
        return mine, {category: k for k, category in enumerate(self.space.ids)}

    def _refuse(self, field: str, known: Container[Any]) -> None:
        wrong = [a for a in self.annotations if not _is_one_of(a.get(field), known)]
        if wrong:
            raise UserError(
                f"source '{self.name}': annotations have a {field} that the JSON does not list",
                file=self.file,
                record="annotation " + several([a.get("id") for a in wrong]),
                field=field,
                value=several(list(dict.fromkeys(str(a.get(field)) for a in wrong))),
                fix=f"add what they mean to the JSON, or correct the {field}",
            )


def _is_one_of(value: Any, known: Container[Any]) -> bool:
    """Whether an id is known; what cannot be an id, such as a list, is not."""
    return isinstance(value, int | str) and value in known


_MOST_PIXELS = 1e6  # of a side


def _read_images(entries: list[dict[str, Any]], file: Path, name: str) -> list[_Image]:
    images = []
    for entry in entries:
        sides = [entry.get("width"), entry.get("height")]
        usable = isinstance(entry.get("id"), int | str) and isinstance(entry.get("file_name"), str)
        if not usable or not all(isinstance(s, int | float) and 0 < s < _MOST_PIXELS for s in sides):
            raise UserError(
                f"source '{name}': an image record needs id, file_name, width and height",
                file=file,
                record=f"image {entry.get('id')}",
                value={k: entry.get(k) for k in ("id", "file_name", "width", "height")},
                fix="export the JSON again, complete",
            )
        images.append(_Image(entry["id"], entry["file_name"], entry["width"], entry["height"]))
    for field in ("id", "file"):
        if repeated := doubles(str(getattr(image, field)) for image in images):
            raise UserError(
                f"source '{name}': images are listed twice",
                file=file,
                field="file_name" if field == "file" else field,
                value=several(repeated),
                fix="list every image once, with an id of its own",
            )
    if not images:
        raise UserError(f"source '{name}': the JSON lists no image", file=file, field="images")
    return images


def _read_space(entries: list[dict[str, Any]], file: Path, name: str) -> LabelSpace:
    for entry in entries:
        if not isinstance(entry.get("id"), int) or not isinstance(entry.get("name"), str):
            raise UserError(
                f"source '{name}': a category needs a whole number as id, and a name", file=file, value=entry
            )
    if repeated := doubles(str(entry["id"]) for entry in entries):
        raise UserError(
            f"source '{name}': category ids are given twice", file=file, value=several(repeated), fix="one name an id"
        )
    if not entries:
        raise UserError(f"source '{name}': the JSON lists no category", file=file, field="categories")
    entries = sorted(entries, key=lambda entry: entry["id"])
    return LabelSpace(tuple(e["name"] for e in entries), tuple(e["id"] for e in entries))


def _raw_boxes(coco: _Coco, kept: Sequence[_Image], mapping: NDArray[np.int64]) -> RawBoxes:
    mine, class_of = coco.of(kept)
    coco._refuse("category_id", class_of)
    boxes = np.array([_xywh(a.get("bbox")) for _, a in mine], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return RawBoxes(
        boxes=boxes,
        classes=mapping[np.array([class_of[a["category_id"]] for _, a in mine], np.int64)],
        ignore=np.array([bool(a.get("iscrowd", 0)) for _, a in mine], np.bool_),
        images=np.array([position for position, _ in mine], np.int64),
        records=[f"annotation {a.get('id')}" for _, a in mine],
        sizes=np.array([(image.width, image.height) for image in kept], np.float64).reshape(-1, 2),
    )


def _xywh(bbox: Any) -> list[float]:
    """Four numbers; what is none becomes NaN, which `clean` reports."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        return [float("nan")] * 4
    return [float(v) if isinstance(v, int | float) else float("nan") for v in bbox]


@dataclass(frozen=True)
class _Segments:
    """The segments of n images, packed.

    Attributes:
        ids: int32 [M], increasing inside an image; classes: uint8 [M].
        offsets: int64 [n+1].
        files: the PNG of each image, null where it has none.
    """

    ids: NDArray[np.int32]
    classes: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    files: pa.Array


def _segments(coco: _Coco, kept: Sequence[_Image], mapping: NDArray[np.int64], masks: Path) -> _Segments:
    mine, class_of = coco.of(kept)
    files: list[str | None] = [None] * len(kept)
    rows: list[tuple[int, int, int]] = []
    for position, annotation in mine:
        record = f"image {annotation['image_id']}"
        file, segments = annotation.get("file_name"), annotation.get("segments_info")
        fault = None
        if not isinstance(file, str) or not inside(file) or not (masks / file).is_file():
            fault = ("the panoptic PNG is not below the folder of masks", "file_name", file)
        elif files[position] is not None:
            fault = ("an image has two panoptic annotations", "image_id", annotation["image_id"])
        elif not isinstance(segments, list) or not all(
            isinstance(s, dict) and isinstance(s.get("id"), int) and 0 <= s["id"] < 2**24 for s in segments
        ):
            fault = ("segments_info must be a list of segments with an id below 2^24", "segments_info", segments)
        elif strange := [s.get("category_id") for s in segments if not _is_one_of(s.get("category_id"), class_of)]:
            fault = ("segments have a category_id that the JSON does not list", "category_id", several(strange))
        elif twice := doubles(str(s["id"]) for s in segments):
            fault = ("segments of one image have the same id", "segments_info", several(twice))
        if fault is not None:
            problem, field, value = fault
            raise UserError(
                f"source '{coco.name}': {problem}",
                file=coco.file,
                record=record,
                field=field,
                value=value,
                fix="correct this record",
            )
        files[position] = file
        rows += [(position, s["id"], int(mapping[class_of[s["category_id"]]])) for s in segments or ()]
    table = np.array(sorted(rows), np.int64).reshape(-1, 3)
    offsets = np.searchsorted(table[:, 0], np.arange(len(kept) + 1))
    packed = pa.array(files, pa.large_string())
    return _Segments(table[:, 1].astype(np.int32), table[:, 2].astype(np.uint8), offsets, packed)


class _PanopticDataset(FileDataset):
    def __init__(
        self,
        name: str,
        head: str,
        space: LabelSpace,
        root: Path,
        images: Sequence[_Image],
        faults: list[Fault],
        segments: _Segments,
        masks: Path,
    ) -> None:
        super().__init__(name, head, space, root, [image.file for image in images], faults)
        self._segments, self._masks = segments, str(masks)

    def labelled(self) -> NDArray[np.int64] | None:
        return numbers_of(self._segments.files.is_valid().to_numpy(zero_copy_only=False))

    def target(self, index: int) -> Mask | None:
        """The semantic mask. Raises UserError: another size than the image, a colour that is no segment's id."""
        png = self._segments.files[index].as_py()
        if png is None:
            return None
        file = Path(self._masks) / png
        pixels = read_colour_ids(file)
        self.check_size(index, pixels.shape, str(file), "the panoptic PNG")
        rows = slice(int(self._segments.offsets[index]), int(self._segments.offsets[index + 1]))
        ids = np.concatenate([self._segments.ids[rows], [2**24]])  # a last id that no pixel has
        found = np.searchsorted(ids, pixels)
        classes = np.append(self._segments.classes[rows], IGNORE).astype(np.uint8)[found]
        wrong = (ids[found] != pixels) & (pixels != 0)
        if wrong.any():
            raise UserError(
                f"source '{self.name}': a colour of the panoptic PNG is no segment of the image",
                file=file,
                record=self.id(index),
                field="id = R + 256 G + 65536 B",
                value=several(np.unique(pixels[wrong]).tolist()),
                fix="add the segment to segments_info, or paint these pixels black",
            )
        classes[pixels == 0] = IGNORE
        return Mask(torch.from_numpy(classes))
