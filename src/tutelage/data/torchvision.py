"""The classification sets of torchvision.datasets, in the folders that torchvision itself makes and reads.

torchvision knows where the files of a set lie and what they mean; images are decoded here, by the rules for all images.
CIFAR and STL10 have no files of images: their pixels are laid into the cache once and mapped from there, so that they
take no memory and all processes share them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field as Option
from pydantic import model_validator

from tutelage.data.arrays import PixelDataset, cached
from tutelage.data.files import (
    FileSource,
    doubles,
    empty_classes,
    existing,
    map_classes,
    natural,
    several,
)
from tutelage.data.folders import ClassDataset
from tutelage.data.published import Listed, caltech101, pets, sun397
from tutelage.data.source import Dataset, Fault, LabelSpace, Place, UInt8
from tutelage.errors import UserError
from tutelage.part import nearest

if TYPE_CHECKING:
    from torchvision import datasets

SetName = Literal[
    "Caltech101",
    "CIFAR10",
    "CIFAR100",
    "DTD",
    "FGVCAircraft",
    "Flowers102",
    "Food101",
    "OxfordIIITPet",
    "StanfordCars",
    "STL10",
    "SUN397",
]


class _About(NamedTuple):
    """What a set has: its splits, how many partitions into them, and what lies below `root`."""

    splits: tuple[str, ...]
    layout: str
    partitions: int = 1


_TRAIN_TEST, _TRAIN_VAL_TEST = ("train", "test"), ("train", "val", "test")
_SETS: dict[SetName, _About] = {
    "Caltech101": _About(_TRAIN_TEST, "caltech101/101_ObjectCategories/<class>/*.jpg", 10**6),
    "CIFAR10": _About(_TRAIN_TEST, "cifar-10-batches-py/data_batch_1 to 5, test_batch, batches.meta"),
    "CIFAR100": _About(_TRAIN_TEST, "cifar-100-python/train, test, meta"),
    "DTD": _About(_TRAIN_VAL_TEST, "dtd/dtd/images/<class>/*.jpg and dtd/dtd/labels/train1.txt ...", 10),
    "FGVCAircraft": _About(
        (*_TRAIN_VAL_TEST, "trainval"),
        "fgvc-aircraft-2013b/data/images/*.jpg, variants.txt and images_variant_train.txt ...",
    ),
    "Flowers102": _About(_TRAIN_VAL_TEST, "flowers-102/jpg/*.jpg, imagelabels.mat and setid.mat"),
    "Food101": _About(_TRAIN_TEST, "food-101/images/<class>/*.jpg and food-101/meta/train.json, test.json"),
    "OxfordIIITPet": _About(
        ("trainval", "test"), "oxford-iiit-pet/images/*.jpg and oxford-iiit-pet/annotations/trainval.txt, test.txt"
    ),
    "StanfordCars": _About(
        _TRAIN_TEST,
        "stanford_cars/cars_train/*.jpg, cars_test/*.jpg, cars_test_annos_withlabels.mat, devkit/cars_train_annos.mat "
        "and devkit/cars_meta.mat",
    ),
    "STL10": _About(_TRAIN_TEST, "stl10_binary/train_X.bin, train_y.bin, test_X.bin, ... and class_names.txt"),
    "SUN397": _About(
        _TRAIN_TEST, "SUN397/<letter>/<class>/*.jpg, SUN397/ClassName.txt and SUN397/Training_01.txt ...", 10
    ),
}


class _Held(NamedTuple):
    """Images of a split as pixels, uint8 [N,H,W,3], the class of each, and the names of the classes."""

    pixels: UInt8
    labels: list[int]
    classes: tuple[str, ...]


class TorchvisionSet(FileSource):
    """A classification set of torchvision, in the folder that torchvision made. Ids are paths below `root`, or
    "train/00041" where a set has no files of images; `blocks`, `part` and `every` apply inside each class.

    Splits are the sets' own. Two sets have none:

    - Caltech101: `train` is 30 images of each class, drawn at random by `partition`, any number from 1; `test` is all
      the others (Kornblith et al., CVPR 2019, appendix). "BACKGROUND_Google" is no class, as torchvision has it: 101.
    - SUN397: `partition` 1 to 10 are the ten published pairs of lists, Training_01.txt and Testing_01.txt, 50 images a
      class each (Xiao et al., CVPR 2010), below SUN397, SUN397/Partitions or `root`. `partition` 0 needs no lists: 50
      images of each class for `train` and 50 others for `test`, drawn at random.
    """

    format: Literal["torchvision"] = "torchvision"
    head: str
    name: SetName
    """The class of torchvision.datasets."""
    root: Path
    """The folder that torchvision was given as `root`."""
    split: str
    """Such as "train", "val" or "test"; "train+val" for the union."""
    partition: int = Option(1, ge=0)
    """Which of the partitions into splits: DTD and SUN397 have ten, Caltech101 as many as you like."""
    download: bool = False
    """Whether torchvision may fetch the set when it is not there."""

    @model_validator(mode="after")
    def _check_split(self) -> TorchvisionSet:
        known, parts = _SETS[self.name].splits, self.split.split("+")
        for part in parts:
            if part not in known:
                raise ValueError(f"{self.name} has no split '{part}'{nearest(part, known)}; known: {', '.join(known)}")
        if len(set(parts)) < len(parts) or ("trainval" in parts and set(parts) & {"train", "val"}):
            raise ValueError(f"split: '{self.split}' takes the same images twice")
        least, most = 0 if self.name == "SUN397" else 1, _SETS[self.name].partitions
        if not least <= self.partition <= most:
            raise ValueError(f"partition: {self.name} has partitions {least} to {most}")
        return self

    def open(self, name: str, place: Place, classes: Sequence[str] | None = None) -> Dataset:
        """See `Source.open`. Raises UserError also where files of the set are missing or not the published ones."""
        root = place.root / self.root
        if not self.download:
            existing(root, "`root`", name, folder=True)
        with _explained(self, root, name):
            found = [self._read(root, split, name) for split in self.split.split("+")]
        if any(one.classes != found[0].classes for one in found):
            raise self._wrong(root, name, "its splits have different classes")
        space, mapping = map_classes(LabelSpace(found[0].classes), classes, root, name)
        labels = mapping[np.concatenate([one.labels for one in found]).astype(np.int64)]
        if isinstance(found[0], _Held):
            pixels = np.concatenate([one.pixels for one in found if isinstance(one, _Held)])
            ids = [f"{s}/{i:05d}" for s, one in zip(self.split.split("+"), found, strict=True) for i in _range(one)]
            kept = self.pick(name, ids, labels)
            faults = self._empty(space, labels[kept], root, name)
            return PixelDataset(name, self.head, space, cached(pixels, place.cache), ids, labels, kept, faults)
        files = [file for one in found if isinstance(one, Listed) for file in one.files]
        if missing := [file for file in files if not (root / file).is_file()]:
            raise self._wrong(root, name, f"listed images are missing, such as {several(missing, 3)}")
        if repeated := doubles(files):
            raise self._wrong(root, name, f"images are listed twice, such as {several(repeated, 3)}")
        order = np.array(sorted(range(len(files)), key=lambda i: natural(files[i])), np.int64)
        files, labels = [files[i] for i in order.tolist()], labels[order]
        kept = self.pick(name, files, labels)
        faults = self._empty(space, labels[kept], root, name)
        return ClassDataset(name, self.head, space, root, [files[i] for i in kept.tolist()], faults, labels[kept])

    def _empty(self, space: LabelSpace, labels: NDArray[np.int64], root: Path, name: str) -> list[Fault]:
        if not len(labels):
            raise UserError(f"source '{name}': no image is left", file=root, fix="check `part`, `blocks` and `exclude`")
        return empty_classes(space, labels, root)

    def _wrong(self, root: Path, name: str, why: str) -> UserError:
        get = "or get it from its authors" if self.name == "StanfordCars" else "or state `download: true`"
        return UserError(
            f"source '{name}': {self.name} cannot be read from this folder: {why}",
            file=root,
            field="root",
            fix=f"have below it {_SETS[self.name].layout}, as published, {get}",
        )

    def _read(self, root: Path, split: str, name: str) -> Listed | _Held:
        from torchvision import datasets

        # A loader that only gives back the path: torchvision then says which file has which class, and decodes nothing.
        given: dict[str, Any] = {"root": str(root), "download": self.download}
        paths = {**given, "split": split, "loader": str}
        match self.name:
            case "CIFAR10":
                return _pixels(datasets.CIFAR10(**given, train=split == "train"))
            case "CIFAR100":
                return _pixels(datasets.CIFAR100(**given, train=split == "train"))
            case "STL10":
                return _stl10(datasets.STL10(**given, split=split))
            case "DTD":
                return _paths(datasets.DTD(**paths, partition=self.partition), root)
            case "FGVCAircraft":
                return _paths(datasets.FGVCAircraft(**paths), root)
            case "Flowers102":
                return _paths(datasets.Flowers102(**paths), root)
            case "Food101":
                return _paths(datasets.Food101(**paths), root)
            case "StanfordCars":
                return _paths(datasets.StanfordCars(**{**paths, "download": False}), root)
            case "OxfordIIITPet":
                if self.download:
                    datasets.OxfordIIITPet(**given)
                return pets(root, split, name)
            case "Caltech101":
                if self.download:
                    datasets.Caltech101(**given)
                return caltech101(root, split, self.partition)
            case "SUN397":
                if self.download:
                    datasets.SUN397(**given)
                return sun397(root, split, self.partition, name)


@contextmanager
def _explained(source: TorchvisionSet, root: Path, name: str) -> Iterator[None]:
    """What torchvision raises, as a UserError; sets whose labels are Matlab files need scipy."""
    if source.name in ("StanfordCars", "Flowers102") and importlib.util.find_spec("scipy") is None:
        raise UserError(
            f"source '{name}': the labels of {source.name} are Matlab files, which need scipy",
            fix="pip install 'scipy>=1.11'",
        )
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a missing folder, a wrong checksum, a cut file, an odd line: a dozen kinds
        text = str(error) if isinstance(error, RuntimeError | OSError) else f"{type(error).__name__} {error}"
        raise source._wrong(root, name, " ".join(text.split()) or type(error).__name__) from error


def _paths(
    dataset: datasets.DTD | datasets.FGVCAircraft | datasets.Flowers102 | datasets.Food101 | datasets.StanfordCars,
    root: Path,
) -> Listed:
    """The files of a torchvision dataset that was given `str` as its loader."""
    pairs = [dataset[index] for index in range(len(dataset))]
    files = [PurePath(path).relative_to(root).as_posix() for path, _ in pairs]
    return Listed(files, [int(label) for _, label in pairs], tuple(dataset.classes))


def _pixels(dataset: datasets.CIFAR10) -> _Held:
    return _Held(np.asarray(dataset.data, np.uint8), list(dataset.targets), tuple(dataset.classes))


def _stl10(dataset: datasets.STL10) -> _Held:
    return _Held(dataset.data.transpose(0, 2, 3, 1), dataset.labels.tolist(), tuple(dataset.classes))


def _range(one: Listed | _Held) -> range:
    return range(len(one.labels))
