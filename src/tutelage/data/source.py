"""What a dataset is to the rest of the program: a `Source` (typed, in the recipe) opens to a `Dataset`.

A source is light: paths and options. A dataset is an index in arrays, never one Python object an image, so that
its size in memory hardly grows with the number of images and is shared between loader processes.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.part import Part
from tutelage.types import Target

UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Place:
    """Where a source may look and write.

    Attributes:
        root: relative paths of a source start here.
        cache: a folder of the run; a source may keep derived files there (rendered scenes, decoded indices).
    """

    root: Path
    cache: Path


@dataclass(frozen=True)
class LabelSpace:
    """The classes of one head, as the dataset names them.

    Attributes:
        names: class names, in the order of class indices.
        ids: the dataset's own category id of each class (equal to the index where it has none); reports show these.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.ids:
            object.__setattr__(self, "ids", tuple(range(len(self.names))))


@dataclass(frozen=True)
class Fault:
    """Something wrong with one record that was set aside or mended, never silently.

    Attributes:
        file, record, field, value: where it stands and what stands there.
        problem: what is wrong.
        outcome: "quarantined" (the record or its label is left out), "refused" (a run stops at it), "dropped" (one box
            of it), "clipped", "masked" (pixels), "converted" or "counted".
    """

    file: str
    record: str
    problem: str
    outcome: str
    field: str = ""
    value: str = ""


class Picture(abc.ABC):
    """One image, not yet decoded: its size is known before its pixels, so that only what is needed is read."""

    height: int
    """Pixels, after the EXIF rotation."""
    width: int
    """Pixels, after the EXIF rotation."""

    @abc.abstractmethod
    def read(self, scale: float = 1.0) -> UInt8:
        """Decode to uint8 [h,w,3], RGB, upright.

        With `scale` < 1 the result may be smaller than the image, by a factor that is at least `scale` (JPEGs can be
        decoded at 1/2, 1/4 and 1/8 for less); h and w then are the image's size divided, rounded up.

        Raises:
            BadImage: the bytes are no image that can be used.
        """


class BadImage(ValueError):
    """An image that cannot be used; the message is the reason that goes to the quarantine list.

    Attributes:
        fix: what to do about it, for who gave this very image; None where the reason says it.
    """

    def __init__(self, reason: str, fix: str | None = None) -> None:
        super().__init__(reason)
        self.fix = fix


class Dataset(abc.ABC):
    """An opened source. Images are numbered from 0; ids are unique and stable.

    Attributes:
        name: the source's name in the recipe.
        head: the head its labels belong to; None for a pool without labels.
        space: the label space of its labels; None for a pool, depth and normals.
        faults: what was found wrong while the index was made (annotations); images show theirs when read.
        in_files: whether `file` is the image itself: two datasets that name one file show one image (`Union`).
    """

    name: str
    head: str | None
    space: LabelSpace | None
    faults: list[Fault]
    in_files: bool = False

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def id(self, index: int) -> str:
        """The image's id, unique inside the source: usually its path below the images folder."""

    @abc.abstractmethod
    def picture(self, index: int) -> Picture:
        """The image. Raises BadImage when not even its header can be read."""

    @abc.abstractmethod
    def target(self, index: int) -> Target | None:
        """The human label in pixels of the full-size image; None when this image has none.

        Raises:
            UserError: a label that contradicts its image or its label space.
            BadImage: an image, or a label, that cannot be used at all (depth without one valid pixel).
        """

    def labelled(self) -> NDArray[np.int64] | None:
        """Which images have a label, of a source that labels a head: their numbers, increasing. None: all of them.

        Readers whose images may lack one know it without reading labels: who learns from labels alone draws no other
        image, and who trains itself takes the others for the pool that they are.
        """
        return None

    @abc.abstractmethod
    def sha256(self, index: int) -> str:
        """Hex digest of the image's bytes (of its pixels where there is no file)."""

    def bytes_of(self, index: int) -> int | None:
        """How many bytes `sha256` is of; None where that is not known without reading them.

        Raises:
            OSError: there is no such file.
        """
        return None

    def listing(self, start: int, stop: int) -> str:
        """Hex digest of the ids of the images from `start` up to, not including, `stop`, in order; reads no image.

        Of one reader, equal ids give equal digests in any process. Readers that hold their ids packed need no loop.
        """
        hasher = hashlib.sha256()
        for index in range(start, stop):
            id = self.id(index).encode()
            hasher.update(len(id).to_bytes(8, "little") + id)
        return hasher.hexdigest()

    def changed(self, start: int, stop: int) -> float | None:
        """When the files that hold these images, or the folders of those, last changed; None where that is not known.

        Returns:
            Seconds since the epoch: the latest status change (ctime, which nobody sets back, unlike mtime). Labels
            made later than that are taken to be of these very bytes, so where there is a doubt the answer is None.
        """
        return None

    def file(self, index: int) -> str:
        """The image's file, for error messages."""
        return self.id(index)

    def mended(self, index: int) -> list[Fault]:
        """What reading this image and its label puts right on the way (converted or masked pixels): for the audit."""
        return []


def numbers_of(labelled: NDArray[np.bool_]) -> NDArray[np.int64] | None:
    """What `Dataset.labelled` says, from a flag an image."""
    return None if labelled.all() else np.flatnonzero(labelled)


class Source(Part, abc.ABC):
    """One dataset in a recipe. Subclasses add a literal field `format` and the paths they need.

    To add a format: subclass, implement `open`, and pass an instance in a Python recipe; to give it a YAML form, add
    the class to `SINGLE` in `tutelage/data/join.py`.
    """

    format: str
    head: str | None = None
    """The head that the labels belong to, as named under `heads`; none for a pool of unlabelled images."""

    @abc.abstractmethod
    def open(self, name: str, place: Place, classes: Sequence[str] | None = None) -> Dataset:
        """Read the index.

        Args:
            name: the source's name in the recipe, for messages.
            place: where relative paths start, and a folder for derived files.
            classes: the head's label space where the recipe states one; labels are mapped to it by name.

        Raises:
            UserError: a missing path, an empty dataset, duplicate ids, or a class that is not among `classes`.
        """

    def to_prepare(self, place: Place) -> int:
        """Images for which `prepare` has something to do; 0 for a source that reads its files as they are."""
        return 0

    def prepare(self, place: Place, progress: Callable[[int], None] | None = None) -> Any:
        """Make derived files below `place.cache` ahead of `open`, which otherwise makes them.

        Args:
            place: where the cache is.
            progress: called with the number of images just finished.
        """


class Borrowed(Dataset):
    """The images of another dataset, some of which is told otherwise.

    Attributes:
        whole: the other.
    """

    def __init__(self, whole: Dataset) -> None:
        self.whole = whole
        self.name, self.head, self.space, self.faults = whole.name, whole.head, whole.space, whole.faults
        self.in_files = whole.in_files

    def place(self, index: int) -> int:
        """The number of an image in the other."""
        return index

    def __len__(self) -> int:
        return len(self.whole)

    def id(self, index: int) -> str:
        return self.whole.id(self.place(index))

    def picture(self, index: int) -> Picture:
        return self.whole.picture(self.place(index))

    def target(self, index: int) -> Target | None:
        return self.whole.target(self.place(index))

    def labelled(self) -> NDArray[np.int64] | None:
        return self.whole.labelled()

    def sha256(self, index: int) -> str:
        return self.whole.sha256(self.place(index))

    def bytes_of(self, index: int) -> int | None:
        return self.whole.bytes_of(self.place(index))

    def file(self, index: int) -> str:
        return self.whole.file(self.place(index))

    def mended(self, index: int) -> list[Fault]:
        return self.whole.mended(self.place(index))


class Subset(Borrowed):
    """Some images of a dataset, in a given order (int64 indices)."""

    def __init__(self, whole: Dataset, indices: NDArray[np.int64]) -> None:
        super().__init__(whole)
        self.indices = indices

    def place(self, index: int) -> int:
        return int(self.indices[index])

    def __len__(self) -> int:
        return len(self.indices)

    def labelled(self) -> NDArray[np.int64] | None:
        known = self.whole.labelled()
        return None if known is None else np.flatnonzero(np.isin(self.indices, known))


class Unlabelled(Borrowed):
    """The images of a dataset, as if nobody had labelled them."""

    def __init__(self, whole: Dataset) -> None:
        super().__init__(whole)
        self.head, self.space, self.faults = None, None, []

    def target(self, index: int) -> Target | None:
        return None

    def labelled(self) -> NDArray[np.int64] | None:
        return None

    def mended(self, index: int) -> list[Fault]:
        return []
