"""Recipes and the command line: what is wrong is said before anything is trained, with exit code 2."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_extending import recipe as python_recipe

from tutelage.cli import list_recipes, main
from tutelage.errors import UserError
from tutelage.part import changed, parse, to_yaml, yaml_to_plain
from tutelage.recipe import Recipe
from tutelage.recipes import RECIPES
from tutelage.recipes.self_training import self_training


@pytest.mark.parametrize("name", list(RECIPES))
def test_built_in_recipes_survive_their_text_form(name):
    recipe = RECIPES[name]()
    assert recipe.name == name
    assert parse(Recipe, yaml_to_plain(to_yaml(recipe.plain()))) == recipe


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heads": {}}, ["there is no head"]),
        ({"teachers": {}}, ["has no teacher"]),
        ({"sources": {}}, ["no source labels this head"]),
        ({"held_out": {"x": {"format": "pool", "images": "x"}}}, ["must name the head"]),
        ({"seed": "one"}, ["seed", "'one'"]),
        ({"stduent": {}}, ["unknown key 'stduent'", "did you mean 'student'"]),
    ],
)
def test_contradictions_are_named(change, words):
    plain = RECIPES["real"]().plain() | change
    with pytest.raises(UserError) as caught:
        parse(Recipe, plain, "r.yaml")
    for word in words:
        assert word in str(caught.value)


def test_names_that_are_no_folder_names_are_refused():
    with pytest.raises(ValueError, match="cannot name a folder"):
        python_recipe().but(held_out={"../x": python_recipe().held_out["lights-test"]})


@pytest.fixture
def tutelage(tmp_path, monkeypatch, capsys):
    """The command line in this process, in `tmp_path`: (exit code, what it said, what it said of errors)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["tutelage", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


def _folders(root: Path, bad: bool) -> None:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8)).save(root / name / f"{number}.png")
    if bad:
        for number in range(3):
            (root / "cat" / f"broken{number}.jpg").write_bytes(b"<html>not an image</html>")


def _recipe_file(folder: Path) -> Path:
    path = folder / "mine.yaml"
    path.write_text(
        """
name: mine
heads: {pets: {task: classification}}
sources: {pets: {format: folders, root: pets, head: pets}}
held_out: {test: {format: folders, root: test, head: pets}}
teachers: {pets: {training: {steps: 2, batch: 4}}}
"""
    )
    return path


def test_check_reads_everything_and_says_what_is_wrong(tmp_path, tutelage):
    _folders(tmp_path / "pets", bad=True)
    _folders(tmp_path / "test", bad=False)
    code, said, _ = tutelage("check", str(_recipe_file(tmp_path)))
    assert code == 2
    assert "broken0.jpg" in said
    assert "3 of 11 images cannot be used" in said
    assert "sources.pets and held_out.test share 8 images" in said


def test_check_is_content_with_clean_data(tmp_path, tutelage):
    _folders(tmp_path / "pets", bad=False)
    (tmp_path / "test").mkdir()
    _folders(tmp_path / "all", bad=False)
    for name in ("cat", "dog"):
        (tmp_path / "test" / name).mkdir()
        Image.new("RGB", (32, 32), (len(name), 9, ord(name[0]))).save(tmp_path / "test" / name / "x.png")
    assert tutelage("check", str(_recipe_file(tmp_path)))[0] == 0


@pytest.mark.parametrize("command", ["run demo", "demo", "label demo", "transfer random --suite real"])
def test_of_several_processes_the_first_one_speaks(tmp_path, tutelage, monkeypatch, command):
    for work in ("run", "label_run", "transfer"):
        monkeypatch.setattr(f"tutelage.api.{work}", lambda *_, **__: tmp_path / "report.html")
    monkeypatch.setattr("tutelage.report.text.plain_report", lambda out: "the table")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        code, said, _ = tutelage(*command.split(), "--out", str(tmp_path))
        assert code == 0
        assert bool(said) == (rank == "0"), said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "demoo", "--out", "x"), ["did you mean 'demo'"]),
        (("run", "none.yaml", "--out", "x"), ["no such file", "none.yaml"]),
        (("run", "mine.yaml", "--out", "x"), ["pets"]),  # the folder is not there
        (("run", "mine.yaml", "--out", "x", "--set", "sede=1"), ["unknown key 'sede'", "did you mean 'seed'"]),
        (("predict", "nowhere", "a.jpg", "--out", "x"), ["no model here"]),
        (("report", "nowhere"), ["not the folder of a run"]),
    ],
)
def test_bad_input_exits_with_2_and_one_clear_error(tmp_path, tutelage, arguments, words):
    _recipe_file(tmp_path)
    code, _, errors = tutelage(*arguments)
    assert code == 2
    for word in ["error:", *words]:
        assert word in errors


def test_every_recipe_is_listed_with_its_own_line(capsys):
    list_recipes()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)
    said = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}
    assert said["must-table2-paper"] == said["must-table2"] != said["must-table3"]
    assert not any("partial" in text for text in said.values())


def test_seeds_that_would_repeat_nothing_are_refused():
    once = self_training()
    assert changed(once, ["seeds=[0, 1]"]).seeds == (0, 1)
    with pytest.raises(UserError, match=r"seeds: 2 would repeat nothing.*take `repeat: everything`"):
        changed(once, ["seeds=[0, 1]", "repeat=fine-tuning"])
