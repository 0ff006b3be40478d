"""A recipe may grow in the folder of its run: what is made stays as it is, and the tables are as if made at once."""

import shutil

import pytest
from test_extending import recipe

import tutelage
from tutelage.errors import UserError
from tutelage.files import read_json_lines
from tutelage.progress import SILENT
from tutelage.recipe import Recipe, Start, StudentPart
from tutelage.report.folder import read_run
from tutelage.report.tables import main_table
from tutelage.stages import Run
from tutelage.teachers import Trained

ROW = "people's labels"


def small() -> Recipe:
    """A run of a teacher and its student, of few steps, which repeats everything a seed."""
    first = recipe()
    training = first.student.training.but(steps=5)
    part = StudentPart(training=training)
    return first.but(
        heads={"level": first.heads["level"]},
        sources={name: first.sources[name] for name in ("levels", "pool")},
        held_out={"levels-test": first.sources["levels"].but(images=6, first=300)},
        teachers={"level": Trained(training=training)},
        student=part,
        baselines={ROW: part.but(labels="human")},
        finetuning=first.finetuning.but(training=training, steps=(5,)),
        repeat="everything",
    )


def grown() -> Recipe:
    """The same with a further seed, downstream set and pre-training, all before those that are there."""
    first = small()
    column = first.transfer["unseen-light"]
    parts = {part: getattr(column, part).but(head="again") for part in ("train", "validation", "test")}
    return first.but(
        baselines={"of the pool": first.student.but(sources=("pool",)), **first.baselines},
        transfer={"again": column.but(**parts), **first.transfer},
        seeds=(1, 0),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The run of `small`."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    tutelage.run(small(), folder, SILENT)
    return folder


@pytest.fixture
def made(finished, tmp_path):
    """A copy of it: a run may be moved."""
    return shutil.copytree(finished, tmp_path / "run")


def figures(folder):
    """All measurements, whatever finished first."""
    rows = read_json_lines(folder / "results.jsonl")
    return sorted(({k: v for k, v in row.items() if k != "evidence"} for row in rows), key=str)


def test_a_grown_recipe_keeps_what_is_made_and_gives_the_tables_of_a_run_made_at_once(made, tmp_path):
    before = figures(made)
    together = ("evaluate/", "transfer/blind/", "seen/")  # of all rows, seeds or columns: these are made again
    files = {path.relative_to(made).as_posix(): path.read_bytes() for path in made.rglob("done.json")}
    kept = {name: text for name, text in files.items() if not name.startswith(together)}
    assert len(kept) > 8
    tutelage.run(grown(), made, SILENT)
    assert all((made / name).read_bytes() == text for name, text in kept.items())

    tutelage.run(grown(), tmp_path / "at once", SILENT)
    assert figures(made) == figures(tmp_path / "at once")
    for name in ("transfer.csv", "transfer.md"):
        assert (made / name).read_text() == (tmp_path / "at once" / name).read_text()
    upstream = main_table(read_run(made).measurements, "upstream")
    assert upstream.rows[0] == "teacher", "from which gains are measured there"

    tutelage.run(small(), made, SILENT)  # what is not asked for stays, and is not shown
    assert figures(made) == before
    assert (made / "baselines/of the pool/weights.safetensors").is_file()


def test_a_mistake_in_a_further_row_does_not_lock_the_folder(made):
    wrong = small().but(initialisations={"mine": Start(checkpoint=str(made / "nowhere"))})
    with pytest.raises(UserError, match="there is no model here"):
        tutelage.run(wrong, made, SILENT)
    with Run(made, small(), SILENT):
        pass


def test_a_row_that_is_there_may_not_change(made):
    row = small().baselines[ROW]
    other = small().but(baselines={ROW: row.but(training=row.training.but(steps=11))})
    with pytest.raises(UserError, match=f"baselines/{ROW} was made from something else"):
        tutelage.run(other, made, SILENT)


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"seeds": (0, 3)}, True),
        ({"sweep": {"level": (2.0,)}}, True),
        ({"baselines": {"more": small().student}}, True),
        ({"seed": 1, "seeds": (0, 1)}, False),
        ({"seeds": (1,), "repeat": "fine-tuning"}, False),
        ({"student": small().student.but(labels="human")}, False),
        ({"transfer": {}, "study": {"a": ()}}, False),
    ],
)
def test_rows_columns_and_seeds_alone_may_change(tmp_path, changes, allowed):
    with Run(tmp_path / "run", small(), SILENT) as run:
        run.stage("student", {}).finish()
    if not allowed:
        with pytest.raises(UserError, match="another recipe"):
            Run(tmp_path / "run", small().but(**changes), SILENT)
    with pytest.raises(UserError, match=r"or take the change back$"):  # who labels together needs the very same
        Run(tmp_path / "run", small().but(**changes), SILENT, shared=True)
    if allowed:
        with Run(tmp_path / "run", small().but(**changes), SILENT):
            pass


def test_columns_of_a_study_stand_as_the_recipe_names_them(tmp_path):
    plain = small().but(transfer={}, seeds=(0,), baselines={})
    more, less = (f"student.training.steps={steps}" for steps in (6, 4))
    tutelage.run(plain.but(study={"a": (more,), "z": (less,)}), tmp_path / "run", SILENT)
    tutelage.run(plain.but(study={"a": (more,), "m": (), "z": (less,)}), tmp_path / "run", SILENT)
    names = [column.name for column in main_table(read_run(tmp_path / "run").measurements, "upstream").columns]
    assert names == ["a", "m", "z"]


def test_a_student_of_labels_that_are_there_is_told_from_one_of_other_settings(made, tmp_path):
    plain = small().but(transfer={}, seeds=(0,), baselines={}, labels=str(made), teachers={})
    tutelage.run(plain.but(study={"a": ("heads.level.label_smoothing=0.1",)}), tmp_path / "other", SILENT)
    with pytest.raises(UserError, match="some columns failed"):
        tutelage.run(plain.but(study={"a": ("heads.level.label_smoothing=0.2",)}), tmp_path / "other", SILENT)
    assert "made from something else" in (tmp_path / "other/study/a/failed.txt").read_text()
