"""Classification sets whose lists are read here, not by torchvision: it gives no paths for them, or has no splits.

Where something is missing, FileNotFoundError is raised; the reader says what should be there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tutelage.data.files import find, in_random_order, read_text
from tutelage.data.pixels import SUFFIXES
from tutelage.errors import UserError

_CALTECH_TRAIN = 30
_SUN_TRAIN = _SUN_TEST = 50


class Listed(NamedTuple):
    """Images of a split as paths below the root, the class of each, and the names of the classes."""

    files: list[str]
    labels: list[int]
    classes: tuple[str, ...]


def pets(root: Path, split: str, name: str) -> Listed:
    """Oxford-IIIT Pets. A line of a list is image, class from 1, species, breed; a class is called like its images
    without their numbers."""
    lines = read_text(_there(root / "oxford-iiit-pet" / "annotations" / f"{split}.txt"), name).splitlines()
    rows = [line.split() for line in lines if line.strip()]
    labels = [int(row[1]) - 1 for row in rows]
    names = {k: row[0].rpartition("_")[0].replace("_", " ").title() for k, row in zip(labels, rows, strict=True)}
    files = [f"oxford-iiit-pet/images/{row[0]}.jpg" for row in rows]
    return Listed(files, labels, tuple(names[k] for k in range(len(names))))


def caltech101(root: Path, split: str, partition: int) -> Listed:
    """Caltech101 without its class of backgrounds: 30 images a class for `train`, the others for `test`."""
    base = _there(root / "caltech101" / "101_ObjectCategories")
    classes = sorted(p.name for p in base.iterdir() if p.is_dir() and p.name != "BACKGROUND_Google")
    drawn = []
    for label in classes:
        files = [f"caltech101/101_ObjectCategories/{label}/{file}" for file in find(base / label, SUFFIXES)[0]]
        drawn.append(_draw(files, split, partition, _CALTECH_TRAIN, len(files)))
    return _by_class(drawn, classes)


def sun397(root: Path, split: str, partition: int, name: str) -> Listed:
    """SUN397 by a published list, or (partition 0) 50 images a class for `train` and 50 others for `test`.

    A class is its folder without the first letter: "/a/apse/indoor" is "apse/indoor".
    """
    base = root / "SUN397"
    folders = read_text(_there(base / "ClassName.txt"), name).split()
    classes = [folder[3:] for folder in folders]
    if partition == 0:
        found = [[f"SUN397{f}/{p.name}" for p in (base / f[1:]).glob("sun_*.jpg")] for f in folders]
        return _by_class([_draw(files, split, 0, _SUN_TRAIN, _SUN_TRAIN + _SUN_TEST) for files in found], classes)
    list_name = f"{'Training' if split == 'train' else 'Testing'}_{partition:02d}.txt"
    places = [base / list_name, base / "Partitions" / list_name, root / list_name]
    listed = next((place for place in places if place.is_file()), None)
    if listed is None:
        raise UserError(
            f"source '{name}': the published lists of SUN397 are not there",
            file=places[0],
            field="partition",
            value=partition,
            fix="unpack Partitions.zip of the set's own page there, or state `partition: 0` for a random split",
        )
    paths = [line.strip() for line in read_text(listed, name).splitlines() if line.strip()]
    number = {folder: k for k, folder in enumerate(folders)}
    return Listed(
        [f"SUN397{path}" for path in paths], [number[path.rpartition("/")[0]] for path in paths], tuple(classes)
    )


def _there(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    return path


def _by_class(drawn: Sequence[Sequence[str]], classes: Sequence[str]) -> Listed:
    labels = [k for k, files in enumerate(drawn) for _ in files]
    return Listed([file for files in drawn for file in files], labels, tuple(classes))


def _draw(files: Sequence[str], split: str, seed: int, few: int, end: int) -> list[str]:
    """The first `few` files of a class in random order for `train`, those after them up to `end` for `test`."""
    order = in_random_order(files, seed).tolist()
    return [files[i] for i in (order[:few] if split == "train" else order[few:end])]
