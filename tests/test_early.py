"""What can be known before a step is trained is said then, by `check` and by a run, which leaves its folder free."""

import pytest
from test_extending import recipe

import tutelage
from tutelage.check import check
from tutelage.errors import UserError
from tutelage.models.backbone import Timm
from tutelage.models.student import Model
from tutelage.progress import SILENT
from tutelage.recipe import Start
from tutelage.stages import Run
from tutelage.tasks import Classification
from tutelage.training.checkpoint import save_model


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A model folder whose backbone is another one than the recipe's."""
    folder = tmp_path_factory.mktemp("narrow")
    part = Timm(name="resnet18", options={"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 32]})
    task = Classification(classes=("dark", "bright"))
    save_model(folder, Model(backbone=part, size=64).build({"level": task}), {})
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (lambda at: {"first_row": "supervisd"}, "no row of this name"),
        (lambda at: {"baselines": {"image-blind": recipe().student}}, "two rows of the transfer table have one name"),
        (lambda at: {"initialisations": {"mine": Start(checkpoint=str(at / "nowhere"))}}, "there is no model here"),
        (lambda at: {"initialisations": {"mine": Start(backbone=Timm(name="resnet18x"))}}, "no model of this name"),
        (
            lambda at: {"initialisations": {"m": Start(backbone=Timm(name="resnet18", weights=str(at / "w.pth")))}},
            "no such weight file",
        ),
        (lambda at: {"student": recipe().student.but(start=str(at))}, "do not fit the network that starts from them"),
        (
            lambda at: {"teachers": {**recipe().teachers, "level": recipe().teachers["level"].but(start=str(at))}},
            "do not fit the network that starts from them",
        ),
    ],
)
def test_what_can_be_known_is_said_before_a_step_is_trained_and_the_folder_stays_free(narrow, tmp_path, changes, words):
    mine = recipe().but(**changes(narrow))
    with pytest.raises(UserError, match=words):
        tutelage.run(mine, tmp_path / "run", SILENT)
    assert not list((tmp_path / "run").rglob("curve.jsonl"))
    assert any(words in text for text, wrong in check(mine) if wrong)
    with Run(tmp_path / "run", recipe(), SILENT):  # the mended recipe may have the folder
        assert "supervisd" not in (tmp_path / "run/recipe.yaml").read_text()
    (tmp_path / "run/student").mkdir()
    (tmp_path / "run/student/done.json").write_text("{}")
    with pytest.raises(UserError, match="made by another recipe"):
        Run(tmp_path / "run", recipe().but(quarantine_limit=0.1), SILENT)
