"""The pictures of a report: of which network they are, and which image each shows."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_extending import Brightness, BrightnessDataset, recipe
from test_health import TASKS, pools, teacher

from tutelage.files import read_json_lines
from tutelage.labels.health.health import store_health
from tutelage.labels.labelling import label_pool
from tutelage.labels.store import Store
from tutelage.methods import upstream
from tutelage.methods.examples import draw_examples, images_of
from tutelage.methods.material import Material, open_material, place
from tutelage.methods.pictures import draw_comparison, draw_pseudo_labels
from tutelage.methods.upstream import compare
from tutelage.methods.workshop import STUDENT, Made, Workshop
from tutelage.progress import SILENT
from tutelage.stages import Run
from tutelage.tasks import Classification
from tutelage.types import Mask

ALIKE = ("a_1.jpg", "a-1.jpg", "a/1.jpg")


class Alike(BrightnessDataset):
    """Grey images, each of another brightness, whose ids differ only in what is no letter."""

    def id(self, index):
        return ALIKE[index]

    def _pixels(self, index):
        return np.full((48, 40, 3), 40 + 80 * index, np.uint8)


def test_the_pictures_are_of_the_student_though_another_was_made_after_it(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(
        upstream, "saved", lambda run, folder: SimpleNamespace(student=SimpleNamespace(tasks={}, of=folder.name))
    )
    monkeypatch.setattr(upstream, "draw_comparison", lambda folder, material, students, device: shown.extend(students))
    with Run(tmp_path / "run", recipe(), SILENT) as run:
        names = {STUDENT: "student", "goes on from a baseline": "later"}  # in the order in which they were made
        made = {name: Made(run.stage(folder, {}), tmp_path / folder) for name, folder in names.items()}
        compare(run, Workshop(open_material(run.recipe, place(run)), made=made))
    assert [student.of for student in shown] == ["student"]


def shades(folder) -> dict[str, int]:
    """Image to the grey value of its drawn photo, of what a folder's `pictures.jsonl` names."""
    return {
        row["image"].removeprefix("few/"): np.asarray(Image.open(folder / row["panels"][0]["file"])).mean()
        for row in read_json_lines(folder / "pictures.jsonl")
    }


def test_images_whose_ids_differ_in_punctuation_alone_keep_pictures_of_their_own(tmp_path):
    few = Alike("few", Brightness(head="level", label="class", images=3))
    material = Material({"level": Classification(classes=("dark", "bright"))}, {}, {"few": few}, {"few": few})
    draw_comparison(tmp_path / "evaluate", material, [], torch.device("cpu"))
    draw_pseudo_labels(tmp_path / "labels", material, SimpleNamespace(get=lambda *_: None), seed=0, count=30)
    for stage in ("evaluate", "labels"):
        assert shades(tmp_path / stage) == pytest.approx({id: 40 + 80 * n for n, id in enumerate(ALIKE)}, abs=3)


def test_examples_of_heads_whose_names_differ_in_punctuation_alone_are_all_kept(tmp_path):
    tasks = {name: TASKS[Mask] for name in ("my parts", "my-parts")}
    label_pool(pools(), [teacher(Mask, name) for name in tasks], tmp_path)
    found = store_health(Store(tmp_path), tasks)
    wanted = {(example.source, example.id) for head in found.heads for example in head.examples}
    drawn = draw_examples(tmp_path, Store(tmp_path), found, tasks, images_of(pools(), wanted))
    assert {line["head"] for line in drawn} == set(tasks)
    assert len({line["file"] for line in drawn}) == len(drawn)
