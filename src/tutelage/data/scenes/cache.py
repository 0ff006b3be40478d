"""Rendered scenes on disk: arrays that are written once and memory-mapped ever after.

A cache folder holds `.npy` arrays, one row an image, and `scenes.json`, written last, which names every array with its
size. A folder without it, or whose arrays have another size, is made again.

Letters in shapes: N images of the source, T boxes of all images, H = W = size pixels.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.data.scenes import labels
from tutelage.data.scenes.camera import SceneBatch, render_parts
from tutelage.data.scenes.noise import LabelNoise, noisy_masks
from tutelage.data.scenes.worlds import Kind, World
from tutelage.files import sync

_MANIFEST = "scenes.json"
_BOX_FILES: dict[str, type] = {"boxes": np.int16, "box_classes": np.uint8, "box_ignore": np.bool_}
"""The first columns of `labels.BoxTable` as they are stored."""

Progress = Callable[[int], None]
"""Called with the number of images that were just finished."""


def dense(kind: Kind | None, size: int) -> dict[str, tuple[type, tuple[int, ...]]]:
    """The arrays with one row an image: name -> type and shape of a row.

    images: uint8 RGB. classes: int16, -1 = no label. mask: uint8. depth: float16 metres, 0 = none (relative error at
    most 2**-11, depths stay below 60 m). normals: int8, 127 times the unit vector, all 0 = none (error below 0.5
    degrees). Boxes are packed instead: `boxes` int16 [T,4], `box_classes` uint8 [T], `box_ignore` bool [T],
    `box_starts` int64 [N+1].
    """
    rows: dict[str, tuple[type, tuple[int, ...]]] = {"images": (np.uint8, (size, size, 3))}
    if kind in ("classes", "shapes"):
        rows["classes"] = (np.int16, ())
    elif kind == "mask":
        rows["mask"] = (np.uint8, (size, size))
    elif kind == "depth":
        rows["depth"] = (np.float16, (size, size))
    elif kind == "normals":
        rows["normals"] = (np.int8, (size, size, 3))
    return rows


def _encode(kind: Kind | None, world: World, batch: SceneBatch) -> dict[str, NDArray]:
    """The dense arrays' rows of a batch."""
    rows = {"images": batch.images.permute(0, 2, 3, 1).cpu().numpy()}
    if kind == "classes":
        rows["classes"] = labels.main_classes(world, batch).cpu().numpy()
    elif kind == "shapes":
        rows["classes"] = labels.main_shapes(world, batch).cpu().numpy()
    elif kind == "mask":
        rows["mask"] = labels.masks(world, batch).cpu().numpy()
    elif kind == "depth":
        rows["depth"] = batch.depth.cpu().numpy()
    elif kind == "normals":
        rows["normals"] = (batch.normals.permute(0, 2, 3, 1) * 127.0).round().to(torch.int8).cpu().numpy()
    return rows


def render_to(
    folder: Path,
    world: World,
    seed: int,
    numbers: range,
    size: int,
    kind: Kind | None,
    device: str = "cpu",
    progress: Progress | None = None,
    noise: LabelNoise | None = None,
) -> None:
    """Renders images `numbers` of a world with one kind of label into a new folder (see `dense`).

    Args:
        folder: must not exist; appears whole or not at all.
        world, seed, numbers, size: what is rendered.
        kind: the label; None for a pool.
        device: "cpu" or "cuda".
        progress: told about finished images.
        noise: mistakes in the masks; None: they are exact.
    """
    temporary = folder.with_name(f"{folder.name}.part-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _fill(temporary, world, seed, numbers, size, kind, device, progress, noise)
        temporary.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fill(
    folder: Path,
    world: World,
    seed: int,
    numbers: range,
    size: int,
    kind: Kind | None,
    device: str,
    progress: Progress | None,
    noise: LabelNoise | None,
) -> None:
    arrays = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=(len(numbers), *shape))
        for name, (dtype, shape) in dense(kind, size).items()
    }
    tables, done = [], 0
    for batch in render_parts(world, seed, numbers, size, device):
        for name, rows in _encode(kind, world, batch).items():
            arrays[name][done : done + len(batch)] = rows
        if kind == "mask" and noise is not None:
            mine = numbers[done : done + len(batch)]
            arrays["mask"][done : done + len(batch)] = noisy_masks(world, batch, noise, seed, mine).numpy()
        if kind == "boxes":
            tables.append(labels.boxes(world, batch))
        done += len(batch)
        if progress is not None:
            progress(len(batch))
    for array in arrays.values():
        array.flush()
    del arrays
    if kind == "boxes":
        counts = torch.cat([t.counts for t in tables]).numpy()
        np.save(folder / "box_starts.npy", np.concatenate([[0], counts.cumsum()]).astype(np.int64))
        for column, (name, dtype) in enumerate(_BOX_FILES.items()):
            np.save(folder / f"{name}.npy", torch.cat([t[column] for t in tables]).numpy().astype(dtype))
    _write_manifest(folder)


def _write_manifest(folder: Path) -> None:
    files = sorted(folder.glob("*.npy"))
    for file in files:
        sync(file)
    manifest = folder / _MANIFEST
    manifest.write_text(json.dumps({file.name: file.stat().st_size for file in files}, indent=1) + "\n")
    sync(manifest)
    sync(folder)


def whole(folder: Path) -> bool:
    """Whether a cache folder is complete: every array its manifest names is there in full."""
    try:
        sizes = json.loads((folder / _MANIFEST).read_text())
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Lets one process at a time make `folder`; the others wait. A process that dies lets go."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def sweep(folder: Path) -> None:
    """Removes a broken cache folder and what killed processes left of earlier tries. Only under `only_one`."""
    for debris in [*folder.parent.glob(f"{folder.name}.part-*"), folder]:
        shutil.rmtree(debris, ignore_errors=True)
