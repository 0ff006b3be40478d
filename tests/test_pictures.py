"""The pictures of a report: of which network they are, and which image each shows."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_extending import Brightness, BrightnessDataset, recipe
from test_health import TASKS, pools, teacher

from tutelage.data.source import Place
from tutelage.files import read_json_lines
from tutelage.labels.health.health import store_health
from tutelage.labels.labelling import label_pool
from tutelage.labels.store import Store
from tutelage.methods import pictures, upstream
from tutelage.methods.examples import draw_examples, images_of
from tutelage.methods.material import Material, open_material, place
from tutelage.methods.pictures import draw_comparison, draw_pseudo_labels
from tutelage.methods.upstream import compare
from tutelage.methods.workshop import STUDENT, Made, Workshop
from tutelage.progress import SILENT
from tutelage.stages import Run
from tutelage.tasks import Classification
from tutelage.types import Label, Mask

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


def test_of_two_networks_with_one_head_the_first_is_drawn(tmp_path, monkeypatch):
    """What an X-Learner delivers, where labels taught in its squeeze, comes before its expansion."""
    asked = {}

    def predict(student, images, frames, heads):
        asked.setdefault(student.name, []).append(heads)
        return {head: [Label(torch.tensor([1.0, 0.0]))] for head in heads}

    def prepared(student, device):
        return SimpleNamespace(student=student, predict=partial(predict, student))

    monkeypatch.setattr(pictures, "prepare", prepared)
    size = SimpleNamespace(size=64)
    task = Classification(classes=("dark", "bright"))
    both = [SimpleNamespace(name=n, tasks=heads, model=size) for n, heads in (("own", ["a"]), ("other", ["a", "b"]))]
    dataset = Brightness(head="a", label="class", images=3).open("few", Place(tmp_path, tmp_path))
    material = Material({"a": task, "b": task}, {}, {}, {"few": dataset})
    draw_comparison(tmp_path, material, both, torch.device("cpu"), count=2)
    assert asked == {"own": [["a"]] * 2, "other": [["b"]] * 2}


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
