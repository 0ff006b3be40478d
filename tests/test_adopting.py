"""Labels made once serve later runs: under another rule, without teachers, joined by source and image id."""

from pathlib import Path

import pytest
import torch
from test_extending import Brightness, Light, recipe

import tutelage
from tutelage import api
from tutelage.check import check
from tutelage.data.source import Place
from tutelage.errors import UserError
from tutelage.files import read_json_lines
from tutelage.labels.labelling import label_pool
from tutelage.labels.store import Store
from tutelage.progress import SILENT
from tutelage.recipe import Recipe, StudentPart
from tutelage.tasks import Depth, Segmentation
from tutelage.teachers import FunctionTeacher, Trained
from tutelage.types import Field


def short() -> Recipe:
    whole = recipe()
    quick = whole.student.training.but(steps=4)
    return whole.but(
        transfer={},
        teachers={head: Trained(training=quick) for head in whole.heads},
        student=StudentPart(training=quick),
    )


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder as `tutelage label` leaves it. Not to be changed by tests."""
    out = tmp_path_factory.mktemp("adopting") / "run"
    assert api.label_run(short(), out, SILENT) == out / "labels"
    assert not (out / "student").exists()
    return out


def test_a_run_goes_on_where_labelling_ended(labelled, tmp_path):
    made = {file: file.stat().st_mtime_ns for file in labelled.rglob("part-*.parquet")}
    assert tutelage.run(short(), labelled, SILENT).is_file()
    assert {file: file.stat().st_mtime_ns for file in labelled.rglob("part-*.parquet")} == made


def test_labels_take_the_place_of_teachers(labelled, tmp_path):
    adopting = short().but(labels=str(labelled / "labels"), teachers={})
    assert tutelage.run(adopting, tmp_path / "run", SILENT).is_file()
    rows = list(read_json_lines(tmp_path / "run" / "results.jsonl"))
    assert {row["row"] for row in rows} == {"student"}
    assert not list((tmp_path / "run").rglob("part-*.parquet"))


def test_labels_of_other_sources_or_tasks_are_refused(labelled, tmp_path):
    adopting = short().but(labels=str(labelled), teachers={})
    renamed = dict(adopting.sources)
    renamed["pile"] = renamed.pop("pool")
    with pytest.raises(UserError, match="no image of the source 'pile'"):
        tutelage.run(adopting.but(sources=renamed), tmp_path / "renamed", SILENT)
    other = adopting.but(heads={**adopting.heads, "light": Segmentation(classes=("a", "b"))}, held_out={})
    sources = {name: source for name, source in other.sources.items() if source.head != "light"}
    with pytest.raises(UserError, match="not those of this task"):
        tutelage.run(other.but(sources=sources), tmp_path / "other", SILENT)
    with pytest.raises(UserError, match="no finished labels"):
        tutelage.run(adopting.but(labels=str(tmp_path)), tmp_path / "nothing", SILENT)


def near(files, device):
    return lambda images: [Field(torch.ones(i.shape[:2]), torch.ones(i.shape[:2], dtype=torch.bool)) for i in images]


def test_labels_of_another_meaning_are_refused_before_a_run_and_by_check(tmp_path):
    inverse = Depth(mode="relative", target="inverse")
    teacher = FunctionTeacher(make=near, task=inverse).open("far", inverse, tmp_path, torch.device("cpu"))
    pool = Brightness(images=4, first=200)
    label_pool([pool.open("pool", Place(tmp_path, tmp_path))], [teacher], tmp_path / "labels")
    adopting = short().but(labels="labels", teachers={}, held_out={}, data=str(tmp_path), sources={"pool": pool})
    for head, fits in ((inverse, True), (Depth(), False), (Depth(mode="relative"), False)):
        faults = [line for line, wrong in check(adopting.but(heads={"far": head})) if wrong]
        assert any("not those of this task" in line for line in faults) != fits, faults
    with pytest.raises(
        UserError, match=r"(?s)not those of this task.*_manifest.json.*relative inverse depth, not metres"
    ):
        tutelage.run(adopting.but(heads={"far": Depth()}), tmp_path / "run", SILENT)


def test_a_head_needs_a_teacher_or_labels():
    with pytest.raises(UserError, match="the head 'light' has no teacher"):
        short().but(teachers={"level": short().teachers["level"]})
    assert short().but(labels="somewhere", teachers={}).heads["light"] == Light()


def test_workers_join_where_the_teachers_are_ready(labelled, tmp_path):
    with pytest.raises(UserError, match="not trained yet"):
        api.join(short(), tmp_path / "run", SILENT)
    before = {head: Store(labelled / "labels").manifest(head).stamp() for head in ("level", "light")}
    report = api.join(short(), labelled, SILENT)
    assert report.labelled_now == {"level": 0, "light": 0}
    assert {head: Store(labelled / "labels").manifest(head).stamp() for head in before} == before
