"""Labels drawn for a person: what teachers say of the pool, and what all heads say of unseen images beside the truth.

A stage's `pictures.jsonl` lists rows of panels for the report.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tutelage.data.geometry import View, letterbox, move_target
from tutelage.data.loading import Labels
from tutelage.data.source import BadImage, Dataset, UInt8
from tutelage.files import write_atomically, write_json_lines
from tutelage.methods.material import Material
from tutelage.models.student import Student
from tutelage.tasks.task import Task
from tutelage.teachers.teacher import Teacher
from tutelage.training.evaluate import prepare
from tutelage.types import Target

_SIDE = 256
"""Pixels of the shorter side of a drawn picture, at least: small images are enlarged first."""


def enlarge(image: UInt8, target: Target | None = None) -> tuple[UInt8, Target | None]:
    """An image (uint8 [h,w,3]) and a label of it, enlarged by a whole number so that lines and words fit."""
    height, width = image.shape[:2]
    factor = max(1, round(_SIDE / min(height, width)))
    if factor == 1:
        return image, target
    large = Image.fromarray(image).resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    view = View.resize(height, width, height * factor, width * factor)
    return np.asarray(large), None if target is None else move_target(target, view)


def draw(task: Task, image: UInt8, target: Target) -> UInt8:
    """A label on its image, enlarged where the image is small."""
    large, moved = enlarge(image, target)
    assert moved is not None
    return task.draw(large, moved)


def save_picture(path: Path, image: UInt8) -> None:
    """Write a JPEG of uint8 [h,w,3]."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=85)
    write_atomically(path, lambda file: file.write(stream.getvalue()))


def draw_preview(path: Path, teacher: Teacher, dataset: Dataset, count: int = 8) -> None:
    """One picture of a teacher's pseudo labels on the first images of a dataset, two rows high."""
    images = [image for index in range(min(2 * count, len(dataset))) if (image := _read(dataset, index)) is not None][
        :count
    ]
    if not images:
        return
    tiles = []
    for image, raw in zip(images, teacher.predict(images), strict=True):
        kept = teacher.task.pseudo(raw)
        tiles.append(_square(enlarge(image)[0] if kept is None else draw(teacher.task, image, kept)))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % 2)
    half = len(tiles) // 2
    save_picture(path, np.vstack([np.hstack(tiles[:half]), np.hstack(tiles[half:])]))


def draw_pseudo_labels(folder: Path, material: Material, labels: Labels, seed: int, count: int = 8) -> None:
    """Rows of pictures: an image, and the pseudo label of every head on it, as the student will see them."""
    pools = [d for d in material.sources.values() if d.head is None] or list(material.sources.values())
    rng, rows = np.random.default_rng(seed), list[dict[str, Any]]()
    for number in range(count):
        dataset = pools[number % len(pools)]
        index = int(rng.integers(len(dataset)))
        image = _read(dataset, index)
        if image is None:
            continue
        panels: list[tuple[str, UInt8]] = [("photo", enlarge(image)[0])]
        for head, task in material.heads.items():
            target = labels.get(head, dataset.name, dataset.id(index))
            if target is not None:
                panels.append((f"{head}: teacher", draw(task, image, target)))
        rows.append(_row(folder, len(rows), "pseudo labels", f"{dataset.name}/{dataset.id(index)}", panels))
    write_json_lines(folder / "pictures.jsonl", rows)


def draw_comparison(
    folder: Path, material: Material, students: Sequence[Student], device: torch.device, count: int = 12
) -> None:
    """Rows of pictures: an unseen image, and for every head the truth where it is known and the student's word.

    The heads may be those of several networks; of two that have one, the first says it.

    Held-out sources that show the same image (the same bytes) are shown together, with all their truths.
    """
    shared: dict[str, list[tuple[Dataset, int]]] = defaultdict(list)
    each = max(1, -(-count // len(material.held_out)))
    for dataset in material.held_out.values():
        for index in np.linspace(0, len(dataset) - 1, each).astype(int).tolist():
            shared[dataset.sha256(index)].append((dataset, index))
    chosen = sorted(shared.values(), key=len, reverse=True)[:count]
    predictors = [prepare(student, device) for student in students if student.tasks]
    rows: list[dict[str, Any]] = []
    for views in chosen:
        dataset, index = views[0]
        image = _read(dataset, index)
        if image is None:
            continue
        said: dict[str, list[Target]] = {}
        for predictor in predictors:
            heads = [head for head in predictor.student.tasks if head not in said]
            square, frame = letterbox(image, predictor.student.model.size)
            said |= predictor.predict(square[None], [frame], heads)
        truths = {d.head: d.target(i) for d, i in views}
        panels: list[tuple[str, UInt8]] = [("photo", enlarge(image)[0])]
        for head, task in material.heads.items():
            truth = truths.get(head)
            if truth is not None:
                panels.append((f"{head}: truth", draw(task, image, truth)))
            kept = task.pseudo(said[head][0]) if head in said else None
            if kept is not None:
                panels.append((f"{head}: student", draw(task, image, kept)))
        rows.append(_row(folder, len(rows), "predictions", f"{dataset.name}/{dataset.id(index)}", panels))
    write_json_lines(folder / "pictures.jsonl", rows)


def _row(folder: Path, number: int, group: str, image: str, panels: Sequence[tuple[str, UInt8]]) -> dict[str, Any]:
    """Write the panels' files, which are named after the number of the row, and describe them."""
    described = []
    for place, (caption, pixels) in enumerate(panels):
        file = f"pictures/{number:02d}-{place}.jpg"
        save_picture(folder / file, pixels)
        described.append({"file": file, "caption": caption})
    return {"group": group, "image": image, "panels": described}


def _read(dataset: Dataset, index: int) -> UInt8 | None:
    try:
        return dataset.picture(index).read()
    except BadImage:
        return None


def _square(image: UInt8) -> UInt8:
    return np.asarray(Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))
