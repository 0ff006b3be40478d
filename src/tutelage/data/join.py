"""Several sources as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field as Option
from pydantic import field_validator, model_validator

from tutelage.data.archives import Tar
from tutelage.data.class_paths import ClassPaths
from tutelage.data.coco import CocoBoxes, CocoPanoptic
from tutelage.data.depths import DepthPairs, NormalPairs
from tutelage.data.folders import Folders, Pool
from tutelage.data.pairs import Masks
from tutelage.data.saved import Arrow
from tutelage.data.scenes import Scenes
from tutelage.data.source import Dataset, Fault, LabelSpace, Picture, Place, Source
from tutelage.data.tables import Parquet
from tutelage.data.torchvision import TorchvisionSet
from tutelage.data.voc import VocBoxes
from tutelage.data.wider import WiderFace
from tutelage.data.yolo import Yolo
from tutelage.errors import UserError
from tutelage.part import one_of
from tutelage.types import Target

SINGLE: tuple[type[Source], ...] = (
    Folders,
    ClassPaths,
    TorchvisionSet,
    CocoBoxes,
    CocoPanoptic,
    VocBoxes,
    WiderFace,
    Yolo,
    Masks,
    DepthPairs,
    NormalPairs,
    Pool,
    Tar,
    Parquet,
    Arrow,
    Scenes,
)
"""All formats but `join` itself."""

if TYPE_CHECKING:
    AnySingle = Source
else:
    AnySingle = one_of(Source, "format", SINGLE)


class Join(Source):
    """Several sources that label one head as one source: the years 2007 and 2012 of VOC, say.

    Ids are "<name>/<id>" with the names of `sources`. The label space is the head's, where the recipe states one; else
    the classes of the first source, then those that only later ones have.
    """

    format: Literal["join"] = "join"
    sources: dict[str, AnySingle] = Option(min_length=1)
    """The sources by names of yours; a source that states no `head` has that of the join."""

    @model_validator(mode="before")
    @classmethod
    def _give_head(cls, value: Any) -> Any:
        """In text, the head need not be repeated."""
        if not isinstance(value, Mapping) or not isinstance(value.get("sources"), Mapping) or not value.get("head"):
            return value
        sources = {
            name: {"head": value["head"], **source} if isinstance(source, Mapping) else source
            for name, source in value["sources"].items()
        }
        return {**value, "sources": sources}

    @field_validator("sources")
    @classmethod
    def _check_names(cls, value: dict[str, Source]) -> dict[str, Source]:
        for name in value:
            if not name or "/" in name or name.startswith("."):
                raise ValueError(f"{name!r} cannot begin an id: names must not be empty, nor hold a slash")
        return value

    @model_validator(mode="after")
    def _check_heads(self) -> Join:
        for name, source in self.sources.items():
            if source.head != self.head:
                raise ValueError(f"sources.{name}.head: it is {source.head!r}, but that of the join is {self.head!r}")
        return self

    def open(self, name: str, place: Place, classes: Sequence[str] | None = None) -> Dataset:
        opened = {key: source.open(f"{name}.{key}", place, classes) for key, source in self.sources.items()}
        spaces = [dataset.space for dataset in opened.values()]
        if any((space is None) != (spaces[0] is None) for space in spaces):
            raise UserError(
                f"source '{name}': some of the joined sources have classes and some have none",
                field="sources",
                value=list(opened),
                fix="join sources of one kind of label",
            )
        if len({space.names for space in spaces if space is not None}) > 1:
            every = tuple(dict.fromkeys(label for space in spaces if space is not None for label in space.names))
            opened = {key: source.open(f"{name}.{key}", place, every) for key, source in self.sources.items()}
        return _Joined(name, self.head, opened)

    def to_prepare(self, place: Place) -> int:
        return sum(source.to_prepare(place) for source in self.sources.values())

    def prepare(self, place: Place, progress: Callable[[int], None] | None = None) -> None:
        for source in self.sources.values():
            source.prepare(place, progress)


class _Joined(Dataset):
    def __init__(self, name: str, head: str | None, parts: Mapping[str, Dataset]) -> None:
        self.name, self.head = name, head
        self._names, self._parts = list(parts), list(parts.values())
        self.in_files = all(part.in_files for part in self._parts)
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])
        first = self._parts[0].space
        # The category ids of the first source that has the class: reports show them.
        self.space = first
        if first is not None:
            spaces = [part.space for part in self._parts if part.space is not None]
            columns = zip(*(space.ids for space in spaces), strict=True)
            self.space = LabelSpace(first.names, tuple(next((i for i in ids if i >= 0), -1) for ids in columns))
        self.faults: list[Fault] = [fault for part in self._parts for fault in part.faults]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _at(self, index: int) -> tuple[int, int]:
        """The number of the part, and the image's number in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        which = int(np.searchsorted(self._starts, index, side="right")) - 1
        return which, index - int(self._starts[which])

    def id(self, index: int) -> str:
        which, inner = self._at(index)
        return f"{self._names[which]}/{self._parts[which].id(inner)}"

    def picture(self, index: int) -> Picture:
        which, inner = self._at(index)
        return self._parts[which].picture(inner)

    def target(self, index: int) -> Target | None:
        which, inner = self._at(index)
        return self._parts[which].target(inner)

    def labelled(self) -> NDArray[np.int64] | None:
        known = [part.labelled() for part in self._parts]
        if all(numbers is None for numbers in known):
            return None
        whole = [np.arange(len(part)) if n is None else n for part, n in zip(self._parts, known, strict=True)]
        return np.concatenate([n + start for n, start in zip(whole, self._starts[:-1], strict=True)])

    def sha256(self, index: int) -> str:
        which, inner = self._at(index)
        return self._parts[which].sha256(inner)

    def bytes_of(self, index: int) -> int | None:
        which, inner = self._at(index)
        return self._parts[which].bytes_of(inner)

    def file(self, index: int) -> str:
        which, inner = self._at(index)
        return self._parts[which].file(inner)

    def mended(self, index: int) -> list[Fault]:
        which, inner = self._at(index)
        return self._parts[which].mended(inner)

    def changed(self, start: int, stop: int) -> float | None:
        times = []
        for which, part in enumerate(self._parts):
            low, high = max(start, int(self._starts[which])), min(stop, int(self._starts[which + 1]))
            if low < high:
                times.append(part.changed(low - int(self._starts[which]), high - int(self._starts[which])))
        known = [time for time in times if time is not None]
        return max(known) if known and len(known) == len(times) else None
