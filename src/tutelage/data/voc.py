"""Pascal VOC boxes: one XML an image, lists of ids a split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from tutelage.data.boxes import BoxDataset, RawBoxes, clean
from tutelage.data.files import (
    FileSource,
    doubles,
    empty_classes,
    existing,
    find,
    inside,
    map_classes,
    natural,
    read_ids,
    several,
    size_of,
)
from tutelage.data.pixels import SUFFIXES
from tutelage.data.source import Dataset, LabelSpace, Place
from tutelage.errors import UserError

_XML_BYTES = 16 * 2**20


class VocBoxes(FileSource):
    """Pascal VOC: JPEGImages, Annotations and ImageSets/Main below one root.

    VOC counts pixels from 1 and includes the last one, so a box is read as (xmin - 1, ymin - 1, xmax, ymax): from the
    left edge of its first pixel to the right edge of its last, as wide as the pixels it covers. `one_based: false` is
    for XML written with corners counted from 0, read as they are. Difficult objects become boxes to ignore. An
    annotation without objects is a valid negative. Classes are the names found in all annotations, sorted, unless the
    head states them.
    """

    format: Literal["voc"] = "voc"
    head: str
    root: Path
    """The folder that holds the others."""
    split: str | None = None
    """The list ImageSets/Main/<split>.txt; left out: every annotation."""
    images: Path = Path("JPEGImages")
    annotations: Path = Path("Annotations")
    one_based: bool = True
    """Whether pixels are counted from 1."""
    strict: bool = False
    """Stop at boxes that are not finite, reversed, of no area or outside; else they are dropped and counted."""

    def open(self, name: str, place: Place, classes: Sequence[str] | None = None) -> Dataset:
        root = existing(place.root / self.root, "`root`", name, folder=True)
        images = existing(root / self.images, "`images`", name, folder=True)
        folder = existing(root / self.annotations, "`annotations`", name, folder=True)
        found, _ = find(folder, (".xml",))
        written = {xml[: -len(".xml")]: folder / xml for xml in found}  # .XML as well
        stems = list(written)
        # All of them, not the split's only: every split must have the same label space.
        every = {stem: _read_xml(xml, name) for stem, xml in written.items()}
        names = tuple(sorted({thing.label for note in every.values() for thing in note.things}))
        if not names:
            raise UserError(f"source '{name}': no annotation holds an object", file=folder, fix="check `annotations`")
        space, mapping = map_classes(LabelSpace(names), classes, folder, name)
        if self.split is not None:
            stems = self._listed(root, folder, set(stems), name)
        shown = _image_files(images, [(stem, every[stem].file) for stem in stems])
        kept = self.pick(name, stems, files=[file or stem for file, stem in zip(shown, stems, strict=True)]).tolist()
        stems, files = [stems[i] for i in kept], _complete([(stems[i], shown[i]) for i in kept], images, name)
        xmls = [str(written[stem]) for stem in stems]
        index = {label: int(mapping[k]) for k, label in enumerate(names)}
        raw = self._raw([every[stem] for stem in stems], index, [images / file for file in files])
        packed, faults = clean(raw, xmls, self.strict, name)
        faults += empty_classes(space, packed.classes, folder)
        sizes = np.array([every[stem].size for stem in stems], np.int64).reshape(-1, 2)
        stated = (folder, "the XML's <size>")
        return BoxDataset(name, self.head, space, images, files, faults, packed, sizes, stated)

    def _listed(self, root: Path, folder: Path, known: set[str], name: str) -> list[str]:
        listed = root / "ImageSets" / "Main" / f"{self.split}.txt"
        stems = read_ids(listed, name)
        missing = [stem for stem in stems if stem not in known]
        if missing:
            raise UserError(
                f"source '{name}': listed images have no XML in {folder}",
                file=listed,
                value=several(missing),
                fix="add the annotations, or take these ids out of the list",
            )
        return sorted(stems, key=natural)

    def _raw(self, notes: Sequence[_Note], index: dict[str, int], files: Sequence[Path]) -> RawBoxes:
        rows = [(image, thing) for image, note in enumerate(notes) for thing in note.things]
        boxes = np.array([thing.box for _, thing in rows], np.float64).reshape(-1, 4)
        if self.one_based:
            boxes[:, :2] -= 1
        sizes = [note.size if note.size != (0, 0) else size_of(file) for note, file in zip(notes, files, strict=True)]
        return RawBoxes(
            boxes=boxes,
            classes=np.array([index[thing.label] for _, thing in rows], np.int64),
            ignore=np.array([thing.difficult for _, thing in rows], np.bool_),
            images=np.array([image for image, _ in rows], np.int64),
            records=[f"object {thing.number} ({thing.label})" for _, thing in rows],
            sizes=np.array(sizes, np.float64).reshape(-1, 2),
        )


class _Thing(NamedTuple):
    """One object: its class, xmin ymin xmax ymax as written (NaN for what is no number), its place in the file."""

    label: str
    box: tuple[float, float, float, float]
    difficult: bool
    number: int


class _Note(NamedTuple):
    """One XML file: width and height ((0, 0) where not stated), the image's file name if stated, the objects."""

    size: tuple[int, int]
    file: str | None
    things: list[_Thing]


def _read_xml(path: Path, name: str) -> _Note:
    """One annotation. Raises UserError: too large, not XML, a document type (which could define entities), no class."""
    data = path.read_bytes() if path.stat().st_size <= _XML_BYTES else b""
    try:
        if not data:
            raise ValueError(f"the file is empty or above {_XML_BYTES:,} bytes")
        _refuse_document_type(data)
        tree = ElementTree.fromstring(data)
    except (expat.ExpatError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(
            f"source '{name}': this is not the XML we read: {error}", file=path, fix="export the annotation again"
        ) from None
    things = []
    for number, entry in enumerate(tree.findall("object"), 1):
        label = (entry.findtext("name") or "").strip()
        if not label:
            raise UserError(
                f"source '{name}': an object has no class", file=path, record=f"object {number}", field="name"
            )
        box = tuple(_number(entry.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
        difficult = (entry.findtext("difficult") or "0").strip() not in ("0", "")
        things.append(_Thing(label, (box[0], box[1], box[2], box[3]), difficult, number))
    sides = [_number(tree.findtext(f"size/{side}")) for side in ("width", "height")]
    size = (int(sides[0]), int(sides[1])) if all(side >= 1 and side < 2**31 for side in sides) else (0, 0)
    file = (tree.findtext("filename") or "").strip()
    return _Note(size, file or None, things)


def _refuse_document_type(data: bytes) -> None:
    """Raise ValueError at a document type: only there can entities be defined, which could expand without end."""

    def refuse(*_: object) -> None:
        raise ValueError("document types and entities are refused")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(data, True)


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def _image_files(images: Path, wanted: Sequence[tuple[str, str | None]]) -> list[str | None]:
    """The image of each annotation: the one of its own stem, else the one its `filename` states, below `images`; None
    where neither is there."""
    found, _ = find(images, SUFFIXES)
    by_stem = {str(PurePosixPath(file).with_suffix("")): file for file in found}
    there = set(found)
    return [by_stem.get(stem) or (stated if stated in there and inside(stated) else None) for stem, stated in wanted]


def _complete(files: Sequence[tuple[str, str | None]], images: Path, name: str) -> list[str]:
    """The images of some annotations, given by their stems. Raises UserError where one is missing, or is two's."""
    if missing := [stem for stem, file in files if file is None]:
        raise UserError(
            f"source '{name}': annotations have no image in {images}",
            file=images,
            value=several(missing),
            fix="add the images, named like their XML files",
        )
    shown = [file for _, file in files if file is not None]
    if repeated := doubles(shown):
        raise UserError(
            f"source '{name}': several annotations are of one image",
            file=images,
            value=several([f"{file} ({', '.join(stem for stem, f in files if f == file)})" for file in repeated]),
            fix="keep one of them, or correct their `filename`",
        )
    return shown
