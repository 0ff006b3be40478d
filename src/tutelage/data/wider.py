"""WIDER FACE: the boxes of faces, from its own text files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from tutelage.data.boxes import BoxDataset, RawBoxes, clean
from tutelage.data.files import (
    FileSource,
    doubles,
    empty_classes,
    existing,
    inside,
    map_classes,
    natural,
    read_text,
    several,
    size_of,
)
from tutelage.data.pixels import SUFFIXES
from tutelage.data.source import Dataset, LabelSpace, Place
from tutelage.errors import UserError

_COLUMNS = ("x", "y", "width", "height", "blur", "expression", "illumination", "invalid", "occlusion", "pose")
"""As the readme.txt beside the boxes has them. (torchvision 0.29 takes the eighth for occlusion and the last for
invalid, which is why its reader is not used.)"""
_INVALID = _COLUMNS.index("invalid")


class WiderFace(FileSource):
    """WIDER FACE (Yang et al., CVPR 2016): one class, "face". Its test part has no labels: a pool.

    A face that is marked invalid (too small or blurred to be sure of) becomes a box to ignore, neither right nor wrong
    to find; faces of no width or height, of which there are some, are dropped and counted; an image without a face is a
    valid negative. The other marks are not read. No file states the images' sizes, so every image is read once when the
    source is opened.
    """

    format: Literal["wider-face"] = "wider-face"
    head: str
    root: Path
    """The folder that holds WIDER_train, WIDER_val and wider_face_split (torchvision calls it "widerface")."""
    split: Literal["train", "val"]
    strict: bool = False
    """Stop at boxes that are reversed, of no area or outside; else they are dropped and counted."""

    def open(self, name: str, place: Place, classes: Sequence[str] | None = None) -> Dataset:
        """See `Source.open`. Raises UserError also for text that is not WIDER FACE's."""
        base = existing(place.root / self.root, "`root`", name, folder=True)
        root = existing(
            base / f"WIDER_{self.split}" / "images", f"the images of split '{self.split}'", name, folder=True
        )
        split_folder = existing(base / "wider_face_split", "the boxes", name, folder=True)
        file = existing(split_folder / f"wider_face_{self.split}_bbx_gt.txt", "the boxes", name)
        entries = _read(file, name)
        missing = [e.image for e in entries if not (inside(e.image) and (root / e.image).is_file())]
        if missing:
            raise UserError(
                f"source '{name}': listed images are not below the folder {root}",
                file=file,
                value=f"{len(missing)} of {len(entries)}, such as {several(missing)}",
                fix=f"unpack WIDER_{self.split}.zip completely",
            )
        entries.sort(key=lambda entry: natural(entry.image))
        entries = [entries[i] for i in self.pick(name, [entry.image for entry in entries]).tolist()]
        space, mapping = map_classes(LabelSpace(("face",)), classes, file, name)
        packed, faults = clean(_raw(entries, int(mapping[0]), root), [str(file)], self.strict, name)
        faults += empty_classes(space, packed.classes, file)
        return BoxDataset(name, self.head, space, root, [entry.image for entry in entries], faults, packed)


class _Entry(NamedTuple):
    """One image: its path, its faces as rows of `_COLUMNS`, and the line of the first of them, from 1."""

    image: str
    faces: list[list[int]]
    line: int


def _read(file: Path, name: str) -> list[_Entry]:
    """The images of a file in its order: a path, the number of faces, a line a face (of zeros, where there is none).

    Raises:
        UserError: a line that is not what should stand there, an image listed twice, or no image at all.
    """
    lines = [line.strip() for line in read_text(file, name).splitlines()]

    def refuse(problem: str, at: int) -> UserError:
        return UserError(
            f"source '{name}': {problem}",
            file=file,
            record=f"line {at + 1}",
            value=lines[at] if at < len(lines) else "the end of the file",
            fix="an image's path, the number of its faces, then a line of ten numbers for each; unpack the file again",
        )

    entries, at = [], 0
    while at < len(lines):
        if not lines[at]:
            at += 1
            continue
        image = lines[at]
        if Path(image).suffix.lower() not in SUFFIXES:
            raise refuse("here should stand the path of an image", at)
        if at + 1 >= len(lines) or not lines[at + 1].isdecimal():
            raise refuse("here should stand how many faces the image has", at + 1)
        first, count = at + 2, int(lines[at + 1])
        faces = []
        for row in range(first, first + count):
            face = _numbers(lines[row]) if row < len(lines) else None
            if face is None:
                raise refuse("here should stand ten whole numbers, one face", row)
            faces.append(face)
        entries.append(_Entry(image, faces, first + 1))
        at = first + count
        if count == 0 and at < len(lines) and _numbers(lines[at]) == [0] * len(_COLUMNS):
            at += 1
    if repeated := doubles(entry.image for entry in entries):
        raise UserError(f"source '{name}': images are listed twice", file=file, value=several(repeated))
    if not entries:
        raise UserError(f"source '{name}': no image is listed", file=file, fix="unpack wider_face_split.zip again")
    return entries


def _numbers(line: str) -> list[int] | None:
    """The ten numbers of a face; None where the line is anything else."""
    words = line.split()
    if len(words) != len(_COLUMNS) or not all(word.removeprefix("-").isdecimal() for word in words):
        return None
    return [int(word) for word in words]


def _raw(entries: Sequence[_Entry], label: int, root: Path) -> RawBoxes:
    rows = [(image, face) for image, entry in enumerate(entries) for face in entry.faces]
    faces = np.array([face for _, face in rows], np.float64).reshape(-1, len(_COLUMNS))
    return RawBoxes(
        boxes=np.concatenate([faces[:, :2], faces[:, :2] + faces[:, 2:4]], 1),
        classes=np.full(len(faces), label, np.int64),
        ignore=faces[:, _INVALID] != 0,
        images=np.array([image for image, _ in rows], np.int64),
        records=[f"line {entry.line + k}" for entry in entries for k in range(len(entry.faces))],
        sizes=np.array([size_of(root / entry.image) for entry in entries], np.float64).reshape(-1, 2),
    )
