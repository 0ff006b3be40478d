"""The embedded default dataset: procedural scenes with exact labels, rendered once into the run's cache."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field as Option
from pydantic import field_validator, model_validator
from pydantic_core import PydanticCustomError

from tutelage.data.arrays import ArrayPicture
from tutelage.data.scenes import cache
from tutelage.data.scenes.noise import LabelNoise
from tutelage.data.scenes.worlds import WORLDS, Kind, World
from tutelage.data.source import Dataset, Fault, LabelSpace, Picture, Place, Source, numbers_of
from tutelage.errors import UserError
from tutelage.part import fingerprint, nearest
from tutelage.types import Boxes, Field, Label, Mask, Target, Vectors

_VERSION = 1
"""Raised whenever the renderer's pixels or labels change, so that old caches are not used."""


class Scenes(Source):
    """Images of one world of procedural scenes (see `tutelage.data.scenes.worlds`).

    Image i depends on world, seed and i alone, so that ranges given by `first` and `images` that do not overlap are
    disjoint parts (training, validation, test) of one world. On a CPU of another maker a few values in ten
    thousand differ: there the mathematics library takes other paths.
    """

    format: Literal["scenes"] = "scenes"
    world: str
    """One of the worlds: catalogue, playground, workshop, halls (upstream), travels (pool), curios, yard, blocks, flat,
    town, hills (downstream); of one object each, with many classes: gallery, landmarks, bench, foyer (upstream),
    courtyard, tabletop, studio, square, moor (downstream); indoors, outdoors."""
    label: Kind | None = None
    """The kind of label the head is given; none for a pool."""
    seed: int = Option(default=0, ge=0, lt=2**63)
    """Another seed, other images."""
    images: int = Option(ge=1, le=100_000_000)
    """How many images."""
    size: int = Option(default=64, ge=16, le=1024)
    """Pixels across and down."""
    first: int = Option(default=0, ge=0, lt=2**62)
    """The number of the first image."""
    noise: LabelNoise | None = None
    """Mistakes in the masks, in place of people who label in haste; left out: they are exact."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where images are rendered; the CPU gives the same pixels everywhere."""

    @field_validator("world")
    @classmethod
    def _known_world(cls, name: str) -> str:
        if name not in WORLDS:
            raise PydanticCustomError(
                "unknown_world",
                "there is no world '{name}'{hint}; known: {known}",
                {"name": name, "hint": nearest(name, WORLDS), "known": ", ".join(WORLDS)},
            )
        return name

    @model_validator(mode="after")
    def _label_belongs_to_head(self) -> Self:
        if (self.label is None) != (self.head is None):
            problem = (
                "a head ('{head}') needs a label: classes, shapes, boxes, mask, depth or normals"
                if self.label is None
                else "the label '{label}' needs a head; a pool has neither"
            )
            raise PydanticCustomError("label_and_head", problem, {"head": str(self.head), "label": str(self.label)})
        if self.noise is not None and self.label != "mask":
            raise PydanticCustomError(
                "noise_of_masks", "noise: only masks can be noisy, not the label {label}", {"label": str(self.label)}
            )
        return self

    def folder(self, place: Place) -> Path:
        """The cache folder of these images and labels. What does not change them (the head) does not change it."""
        parts = [WORLDS[self.world], *(WORLDS[name] for name in WORLDS[self.world].mix)]
        content: dict[str, Any] = {"version": _VERSION, "worlds": [asdict(part) for part in parts]}
        for name in ("label", "seed", "images", "size", "first", "device"):
            content[name] = getattr(self, name)
        if self.noise is not None:
            content["noise"] = self.noise.plain()
        return place.cache / f"scenes-{fingerprint(content)}"

    def to_prepare(self, place: Place) -> int:
        """Images to be rendered before this source can be read: all of them, or none."""
        return 0 if cache.whole(self.folder(place)) else self.images

    def prepare(self, place: Place, progress: cache.Progress | None = None) -> Path:
        """Renders the images into the cache unless they are there; `open` does so too, in silence.

        Args:
            place: where the cache is.
            progress: called with the number of images just finished; never called when all are there.

        Raises:
            UserError: CUDA is asked for and there is none.
        """
        folder = self.folder(place)
        if cache.whole(folder):
            return folder
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("this machine has no CUDA device", field="device", value="cuda", fix="device: cpu")
        with cache.only_one(folder):
            if not cache.whole(folder):  # another process may have made it while we waited
                cache.sweep(folder)
                numbers = range(self.first, self.first + self.images)
                world = WORLDS[self.world]
                cache.render_to(
                    folder, world, self.seed, numbers, self.size, self.label, self.device, progress, self.noise
                )
        return folder

    def open(self, name: str, place: Place, classes: Sequence[str] | None = None) -> ScenesDataset:
        """See `Source.open`; the first time, renders all images.

        Raises:
            UserError: a class of the world that is not among `classes`; see `prepare`.
        """
        space = None if self.label is None else WORLDS[self.world].space(self.label)
        if space is not None and classes is not None:
            for known in space.names:
                if known not in classes:
                    raise UserError(
                        f"the world '{self.world}' has the class '{known}', which is not in the head's label space"
                        f"{nearest(known, classes)}",
                        record=name,
                        field="classes",
                        value=list(classes),
                        fix="add it to the head's classes, or leave the head's classes out",
                    )
        return ScenesDataset(name, self, self.prepare(place), space, classes)


class ScenesDataset(Dataset):
    """Rendered scenes. Workers get the folder's name and map its arrays themselves."""

    def __init__(
        self, name: str, source: Scenes, folder: Path, space: LabelSpace | None, classes: Sequence[str] | None
    ) -> None:
        self.name, self.head, self.faults = name, source.head, list[Fault]()
        self.source, self.folder = source, folder
        self.space = space if space is None or classes is None else LabelSpace(tuple(classes))
        own = () if space is None else space.names
        self._to_space = np.arange(256) if classes is None else np.array([list(classes).index(c) for c in own] or [0])
        self._arrays: dict[str, NDArray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}}

    def _array(self, name: str) -> NDArray:
        if name not in self._arrays:
            self._arrays[name] = np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return self._arrays[name]

    @property
    def world(self) -> World:
        return WORLDS[self.source.world]

    def __len__(self) -> int:
        return self.source.images

    def number(self, index: int) -> int:
        """The image's number in its world."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self.source.first + index

    def id(self, index: int) -> str:
        return f"{self.number(index):06d}"

    def picture(self, index: int) -> Picture:
        self.number(index)
        return ArrayPicture(self._array("images")[index])

    def sha256(self, index: int) -> str:
        self.number(index)
        return hashlib.sha256(self._array("images")[index].tobytes()).hexdigest()

    def bytes_of(self, index: int) -> int:
        return int(self._array("images")[index].nbytes)

    def file(self, index: int) -> str:
        return f"{self.folder / 'images.npy'}[{index}]"

    def labelled(self) -> NDArray[np.int64] | None:
        """As `Dataset.labelled`: where no object is visible there is no class."""
        return numbers_of(self._array("classes") >= 0) if self.source.label in ("classes", "shapes") else None

    def target(self, index: int) -> Target | None:
        """What the source's label says: a class (None where no object is visible), boxes, a mask, depth in metres or
        unit normals (both not valid in the sky); None without a label."""
        self.number(index)
        match self.source.label:
            case "classes" | "shapes":
                number = int(self._array("classes")[index])
                space = self.space
                return None if number < 0 or space is None else Label.certain(self._map(number), len(space.names))
            case "boxes":
                start, end = (int(i) for i in self._array("box_starts")[index : index + 2])
                columns = (self._array(name)[start:end] for name in ("boxes", "box_classes", "box_ignore"))
                edges, classes, ignore = columns
                return Boxes.make(edges.astype(np.float32), self._to_space[classes], ignore=np.array(ignore))
            case "mask":
                return Mask(torch.from_numpy(self._to_space[self._array("mask")[index]].astype(np.uint8)))
            case "depth":
                depth = torch.from_numpy(self._array("depth")[index].astype(np.float32))
                return Field(depth, depth > 0)
            case "normals":
                normals = torch.from_numpy(self._array("normals")[index].astype(np.float32)).permute(2, 0, 1)
                length = normals.square().sum(0).sqrt()
                return Vectors((normals / length.clamp(min=1.0)).contiguous(), length > 0)
        return None

    def _map(self, number: int) -> int:
        return int(self._to_space[number])
