"""The health of a run's labels, with examples drawn for a person."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.data.source import BadImage, Dataset, UInt8
from tutelage.files import write_json_lines
from tutelage.labels.health.health import StoreHealth, store_health, write_health
from tutelage.labels.health.histogram import human_counts
from tutelage.labels.health.sample import read_row
from tutelage.labels.store import Store
from tutelage.methods.material import Material
from tutelage.methods.pictures import draw, enlarge, save_picture
from tutelage.progress import Progress
from tutelage.tasks.task import Task
from tutelage.types import Field, Maps, Target, Vectors

EXAMPLES = "examples.jsonl"
"""In the labels stage's folder: one line an example: head, why, image, score, file."""

Images = Callable[[str, str], UInt8 | None]
"""Source and id to the image, uint8 [h,w,3]; None where it is not to be had."""


def examine(folder: Path, store: Store, material: Material, seed: int, progress: Progress | None = None) -> StoreHealth:
    """Write `health.json`, `examples.jsonl` and the examples' pictures into a folder: what the report shows of labels.

    Args:
        folder: of the labels stage.
        store: the labels, there or elsewhere.
        material: whose heads are looked at; its sources give the images and the people's labels.
        seed: chooses records.
        progress: where the bar is shown.
    """
    spaces = {head: task.classes for head, task in material.heads.items()}
    human = human_counts(material.sources.values(), spaces)
    found = store_health(store, material.heads, human=human, seed=seed, progress=progress)
    wanted = {(e.source, e.id) for head in found.heads for e in head.examples}
    draw_examples(folder, store, found, material.heads, images_of(list(material.sources.values()), wanted))
    write_health(found, folder)
    return found


def draw_examples(
    folder: Path, store: Store, found: StoreHealth, tasks: Mapping[str, Task], images: Images
) -> list[dict[str, Any]]:
    """Draw the examples of a store's health and list them in `examples.jsonl`.

    What the rule keeps is drawn; where it keeps nothing, the plain image. Examples without an image are left out, and
    so are heads without a task.

    Args:
        folder: where `examples.jsonl` and `pictures/` go.
        store: the labels.
        found: its health.
        tasks: head to task: rule and drawing.
        images: where pixels come from.

    Returns:
        The lines of `examples.jsonl`.

    Raises:
        UserError: the store is not the one that was looked at, or is damaged.
    """
    lines: list[dict[str, Any]] = []
    for head in found.heads:
        task = tasks.get(head.head)
        for example in head.examples if task is not None else ():
            image = images(example.source, example.id)
            if image is None or task is None:
                continue
            record = read_row(store, head.head, example.shard, example.row)
            if image.shape[:2] != (record.height, record.width):
                continue
            kept = task.pseudo(record.target)
            file = f"pictures/example-{len(lines):03d}.jpg"
            save_picture(folder / file, _picture(task, image, kept))
            shown = {"image": f"{example.source}/{example.id}", "score": example.score, "file": file}
            lines.append({"head": head.head, "why": example.why, **shown})
    write_json_lines(folder / EXAMPLES, lines)
    return lines


def images_of(datasets: Sequence[Dataset], wanted: set[tuple[str, str]]) -> Images:
    """Some images of datasets, found by one pass over the ids, read when asked for.

    Args:
        datasets: opened sources.
        wanted: source and id of each image that will be asked for; others are not found.
    """
    places: dict[tuple[str, str], tuple[Dataset, int]] = {}
    for dataset in datasets:
        left = {id for source, id in wanted if source == dataset.name}
        for index in range(len(dataset)):
            if not left:
                break
            id = dataset.id(index)
            if id in left:
                left.remove(id)
                places[dataset.name, id] = dataset, index

    def read(source: str, id: str) -> UInt8 | None:
        if (source, id) not in places:
            return None
        dataset, index = places[source, id]
        try:
            return dataset.picture(index).read()
        except BadImage:
            return None

    return read


def _picture(task: Task, image: UInt8, kept: Target | None) -> UInt8:
    """What is kept on its image; beside it where it hides the image (depth, normals, features)."""
    photo = enlarge(image)[0]
    if kept is None:
        return photo
    drawn = draw(task, image, kept)
    return np.hstack([photo, drawn]) if isinstance(kept, Field | Vectors | Maps) else drawn
