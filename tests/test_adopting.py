"""Labels made once serve later runs: under another rule, without teachers, joined by source and image id."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from kill_labelling import records
from PIL import Image
from test_extending import Brightness, Light, recipe
from typer.testing import CliRunner

import tutelage
from tutelage import api
from tutelage.check import check
from tutelage.cli import app
from tutelage.data import Masks, Pool
from tutelage.data.source import Place
from tutelage.errors import UserError
from tutelage.files import read_json_lines
from tutelage.labels.labelling import label_pool
from tutelage.labels.store import Store
from tutelage.progress import SILENT
from tutelage.recipe import Distillation, Pruning, Recipe, SelfTraining, StudentPart, XLearner
from tutelage.tasks import Classification, Depth, Segmentation
from tutelage.teachers import Checkpoint, FunctionTeacher, Trained
from tutelage.training.notes import NOTES
from tutelage.training.self_training import PSEUDO
from tutelage.training.simclr import SimCLR
from tutelage.types import Field, Label, Mask


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


def test_a_student_trains_itself_on_labels_that_are_there_already(labelled, tmp_path):
    """Two losses, the second brought to the size of the first; joint training on human labels has no pseudo loss."""
    quick = short().student.training.but(log_every=1)
    mine = StudentPart(training=quick, heads=("level",), self_training=SelfTraining())
    joint = mine.but(heads=None, labels="human", self_training=SelfTraining(head="level"), sources=("levels", "lights"))
    adopting = short().but(labels=str(labelled), teachers={}, student=mine, baselines={"joint": joint})
    tutelage.run(adopting, tmp_path, SILENT)
    for folder, names in (("student", ["level", f"level{PSEUDO}"]), ("baselines/joint", ["level", "light"])):
        first = next(read_json_lines(tmp_path / folder / "curve.jsonl"))
        assert list(first["heads"]) == names
        sizes = [first["weights"][name] * loss for name, loss in first["heads"].items()]
        assert sizes == pytest.approx([first["heads"]["level"] / 2] * 2, rel=1e-3)


def test_a_further_round_labels_with_a_student_of_labels_that_were_there(labelled, tmp_path):
    adopting = short().but(labels=str(labelled), teachers={}, rounds=2)
    tutelage.run(adopting, tmp_path, SILENT)
    for head in ("level", "light"):
        made = Store(tmp_path / "rounds/2/labels").manifest(head)
        assert made.teacher == Checkpoint(path=tmp_path / "student", head=head).digest(tmp_path)
    assert (tmp_path / "rounds/2/student/model.yaml").is_file()


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


@pytest.fixture
def photos(tmp_path):
    """Eight photographs, three with masks, and a store of what a teacher says of the others."""
    rng = np.random.default_rng(0)
    for folder in ("photos", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(8):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(tmp_path / f"photos/{number}.png")
    for number in (1, 4, 6):
        Image.fromarray(np.full((32, 32), number % 2, np.uint8)).save(tmp_path / f"masks/{number}.png")
    source = Masks(head="ground", images="photos", masks="masks", classes=("a", "b"))
    task = Segmentation(classes=("a", "b"))
    teacher = FunctionTeacher(make=upper, task=task).open("ground", task, tmp_path, torch.device("cpu"))
    label_pool([source.open("photos", Place(tmp_path, tmp_path / "cache"))], [teacher], tmp_path / "labels")
    return short().but(
        labels="labels",
        teachers={},
        held_out={},
        data=str(tmp_path),
        heads={"ground": Segmentation()},
        sources={"photos": source},
        student=StudentPart(training=short().student.training, self_training=SelfTraining()),
    )


def upper(files, device):
    def say(images):
        masks = [torch.zeros(image.shape[:2], dtype=torch.uint8) for image in images]
        return [Mask(mask, torch.full_like(mask, 255)) for mask in masks]

    return say


def test_labels_of_a_partly_labelled_source_are_looked_for_under_its_name(photos, tmp_path):
    tutelage.run(photos, tmp_path / "run", SILENT)
    assert (
        not (tmp_path / "run" / NOTES).is_file() or "have no pseudo label" not in (tmp_path / "run" / NOTES).read_text()
    )
    renamed = photos.but(sources={"fotos": photos.sources["photos"]})
    with pytest.raises(UserError, match="no image of the source 'fotos'"):
        tutelage.run(renamed, tmp_path / "renamed", SILENT)


def test_images_that_came_later_are_noted_and_others_of_the_same_name_are_refused(photos, tmp_path):
    """Of labels that are adopted, and of those that a run has made itself."""
    for name in ("x", "y"):
        (tmp_path / f"photos/{name}.png").write_bytes((tmp_path / "photos/0.png").read_bytes())
    tutelage.run(photos, tmp_path / "later", SILENT)
    notes = [row["note"] for row in read_json_lines(tmp_path / "later" / NOTES)]
    assert "source photos: 2 of 7 images that were looked at have no pseudo label of 'ground'" in notes
    task = Segmentation(classes=("a", "b"))
    own = photos.but(labels=None, teachers={"ground": FunctionTeacher(make=upper, task=task)})
    api.label_run(own, tmp_path / "own", SILENT)
    Image.new("RGB", (32, 32), "red").save(tmp_path / "photos/0.png")
    for mine, out in ((photos, "other"), (own, "own")):
        with pytest.raises(UserError, match="not the one that was labelled for the head 'ground'") as error:
            tutelage.run(mine, tmp_path / out, SILENT)
        assert error.value.record == "photos/0.png"


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


def threshold(files, device):
    level = float(files[0].read_text())
    return lambda images: [Label(torch.eye(2)[int(image.mean() > level)]) for image in images]


def test_of_a_run_whose_one_teacher_changed_the_other_heads_keep_their_labels(tmp_path):
    heads = {name: Classification(classes=("dark", "bright")) for name in ("first", "second")}
    for name in heads:
        (tmp_path / name).write_text("100")
    mine = short().but(
        heads=heads,
        sources={"pool": Brightness(images=20)},
        held_out={},
        data=str(tmp_path),
        teachers={name: FunctionTeacher(make=threshold, task=task, files=(name,)) for name, task in heads.items()},
    )
    labels = api.label_run(mine, tmp_path / "run", SILENT)
    stamps = {name: Store(labels).manifest(name).stamp() for name in heads}
    files = {file: file.stat().st_ino for file in labels.rglob("part-*.parquet")}  # one that is made again is another
    (tmp_path / "first").write_text("1000")  # whatever there is is dark to it
    with pytest.raises(UserError, match="the stage teachers/first was made from something else"):
        api.label_run(mine, tmp_path / "run", SILENT)
    shutil.rmtree(tmp_path / "run/teachers/first")
    with pytest.raises(UserError, match="the stage labels was made from something else") as caught:
        api.label_run(mine, tmp_path / "run", SILENT)
    assert caught.value.file.parent == labels
    for name in ("stage.json", "done.json"):
        assert f"`{name}`" in caught.value.fix
        (labels / name).unlink()
    api.label_run(mine, tmp_path / "run", SILENT)
    assert {row.target.probs.tolist()[1] for row in records(labels, "first")} == {0.0}
    assert {name for name in heads if Store(labels).manifest(name).stamp() == stamps[name]} == {"second"}
    assert {file.parent.name for file, inode in files.items() if file.stat().st_ino == inode} == {"second"}


def test_a_pool_that_has_grown_since_it_was_labelled_is_named_with_the_way_out(tmp_path):
    def photo(number: int) -> None:
        Image.new("RGB", (32, 32), (80 * number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")

    (tmp_path / "photos").mkdir()
    (tmp_path / "level").write_text("20")
    task = Classification(classes=("dark", "bright"))
    mine = short().but(
        heads={"first": task},
        sources={"pile": Pool(images="photos")},
        held_out={},
        data=str(tmp_path),
        teachers={"first": FunctionTeacher(make=threshold, task=task, files=("level",))},
    )
    photo(1), photo(2)
    labels = api.label_run(mine, tmp_path / "run", SILENT)
    api.label_run(mine, tmp_path / "run", SILENT)
    assert not (tmp_path / "run" / NOTES).exists()
    photo(3)
    api.label_run(mine, tmp_path / "run", SILENT)
    (note,) = read_json_lines(tmp_path / "run" / NOTES)
    assert note["note"].startswith("source pile had 2 images when it was labelled and has 3 now; to label what has ")
    for name in ("stage.json", "done.json"):
        assert f"`labels/{name}`" in note["note"]
        (labels / name).unlink()
    api.label_run(mine, tmp_path / "run", SILENT)
    assert len(list(records(labels, "first"))) == 3


def test_workers_join_where_the_teachers_are_ready(labelled, tmp_path):
    with pytest.raises(UserError, match="not trained yet"):
        api.join(short(), tmp_path / "run", SILENT)
    before = {head: Store(labelled / "labels").manifest(head).stamp() for head in ("level", "light")}
    report = api.join(short(), labelled, SILENT)
    assert report.labelled_now == {"level": 0, "light": 0}
    assert {head: Store(labelled / "labels").manifest(head).stamp() for head in before} == before


def test_a_worker_has_readers_and_takes_no_option_of_a_pass_of_its_own(tmp_path, monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(api, "join", lambda recipe, out, *, decoders: asked.append(decoders))
    command = ["label", "demo", "--out", str(tmp_path / "run"), "--worker"]
    assert CliRunner().invoke(app, [*command, "--decoders", "4"]).exit_code == 0
    for option, value in (("--engine", "ray"), ("--workers", "2"), ("--address", "auto"), ("--jobs", "2")):
        refused = CliRunner().invoke(app, [*command, option, value])
        assert isinstance(refused.exception, UserError)
        assert option in str(refused.exception)
    assert asked == [4]


QUICK = short().student.training
HUMAN = StudentPart(training=QUICK, labels="human")
EARLY = {
    "supervised": HUMAN,
    "contrast": SimCLR(training=QUICK, sources=("pool",)),
    "expanded": XLearner(training=QUICK, alone=2, squeeze=None),
    "cut": XLearner(training=QUICK, alone=2, squeeze=Pruning(training=QUICK)),
    "squeezed": XLearner(training=QUICK, alone=2, squeeze=Distillation(training=QUICK, labels="none")),
}


def starting_from(name: str) -> Recipe:
    teachers = {head: Trained(training=QUICK, start=name) for head in short().heads}
    return short().but(baselines={name: EARLY[name]}, teachers=teachers)


@pytest.mark.parametrize("name", EARLY)
def test_workers_train_nothing_that_a_teacher_starts_from(tmp_path, name):
    told = rf"'{name}' is not trained yet(.|\n)* once without --worker"
    with pytest.raises(UserError, match=told):
        api.join(starting_from(name), tmp_path, SILENT)
    expansion = tmp_path / "expansions/baselines" / name
    if expansion.is_dir():  # were it finished, what follows it is refused as well
        (expansion / "done.json").write_text("{}")
        with pytest.raises(UserError, match=told):
            api.join(starting_from(name), tmp_path, SILENT)
        assert (tmp_path / "baselines" / name / "stage.json").is_file()
    assert not list(tmp_path.rglob("curve.jsonl"))


def test_labelling_trains_what_teachers_start_from_and_nothing_else(tmp_path):
    rows = {"first": HUMAN, "second": HUMAN.but(start="first"), "third": HUMAN.but(start="first")}
    teachers = {"level": Trained(training=QUICK, start="second"), "light": Trained(training=QUICK)}
    starting = short().but(baselines=rows, teachers=teachers)
    api.label_run(starting, tmp_path, SILENT)
    assert {path.parent.name for path in (tmp_path / "baselines").rglob("done.json")} == {"first", "second"}
    assert api.join(starting, tmp_path, SILENT).labelled_now == {"level": 0, "light": 0}


def test_heads_and_images_that_nobody_learns_from_teachers_need_no_stored_labels(labelled, tmp_path):
    """As in a study of joint training, where the classes are people's alone and another source's."""
    store = shutil.copytree(labelled / "labels", tmp_path / "labels")
    shutil.rmtree(store / "light")
    quick = short().student.training
    mine = StudentPart(training=quick, heads=("level",), sources=("levels", "pool"), self_training=SelfTraining())
    joint = StudentPart(training=quick, labels="human")
    lights = {"more": Brightness(head="light", label="map", images=8, first=900)}
    whole = short()
    adopting = whole.but(
        labels=str(store), teachers={}, sources={**whole.sources, **lights}, student=mine, baselines={"joint": joint}
    )
    assert not [text for text, wrong in check(adopting) if wrong]
    assert tutelage.run(adopting, tmp_path / "run", SILENT).is_file()
    (note,) = read_json_lines(tmp_path / "run/labels" / NOTES)
    assert "no head 'light'" in note["note"]
    with pytest.raises(UserError, match="no finished labels for head 'light'"):
        tutelage.run(adopting.but(student=StudentPart(training=quick)), tmp_path / "needed", SILENT)
