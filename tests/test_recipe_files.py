"""Recipes as Python files: what they give, how settings reach into them, and what is said when they fail."""

import multiprocessing
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
from typer.testing import CliRunner

from tutelage import cli
from tutelage.data import Pool
from tutelage.errors import UserError
from tutelage.part import changed, override, parse, yaml_to_plain
from tutelage.recipe import Recipe, read_recipe
from tutelage.tasks import Classification
from tutelage.teachers import TeacherPart

FILE = """
def double(number):
    return 2 * number


def make(files, device):
    return lambda images: []


def recipe():
    from tutelage.data import Pool
    from tutelage.recipe import Recipe
    from tutelage.tasks import Classification
    from tutelage.teachers import FunctionTeacher

    task = Classification(classes=("a", "b"))
    return Recipe(
        name="mine",
        heads={"kind": task},
        sources={"pool": Pool(images="pool")},
        teachers={"kind": FunctionTeacher(make=make, task=task)},
    )
"""


@pytest.fixture
def folder(tmp_path):
    """A place for recipe files; what they leave in this process is taken away."""
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def write(folder, text, name="mine_own.py"):
    (folder / name).write_text(text)
    return folder / name


def test_a_function_or_a_value_gives_the_recipe(folder):
    found = read_recipe(write(folder, FILE))
    assert isinstance(found, Recipe)
    assert found.plain()["teachers"]["kind"]["make"] == "mine_own:make"
    assert pickle.loads(pickle.dumps(found)) == found
    value = read_recipe(write(folder, FILE + "\n\nrecipe = recipe()\n", "as_value.py"))
    assert (value.name, value.heads) == (found.name, found.heads)


def test_a_file_that_changed_is_run_afresh(folder):
    assert read_recipe(write(folder, FILE)).name == "mine"
    assert read_recipe(write(folder, FILE.replace('"mine"', '"another"'))).name == "another"


def test_another_process_finds_the_functions(folder):
    read_recipe(write(folder, FILE))
    double = sys.modules["mine_own"].double
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(double, 21).result() == 42


def test_settings_reach_into_a_recipe_without_a_text_form(folder):
    path = write(folder, FILE)
    found = read_recipe(path, ["seed=3", "sources.pool.limit=7", "teachers.kind.version=two", "data=/else"])
    assert (found.seed, found.data, found.sources["pool"].limit) == (3, "/else", 7)
    assert found.teachers["kind"].version == "two"
    assert found.teachers["kind"].make is sys.modules["mine_own"].make
    with pytest.raises(UserError, match=r"(?s)make.*cannot be written as text"):
        read_recipe(path, ["teachers.kind.make=other:make"])


def plain_recipe():
    return Recipe(
        name="x",
        heads={"kind": Classification()},
        sources={"pool": Pool(images="pool", head=None), "more": Pool(images="more")},
        teachers={},
        labels="store",
    )


def test_settings_are_applied_together_and_the_last_one_counts():
    recipe = plain_recipe()
    with pytest.raises(UserError, match="no head 'other'"):
        changed(recipe, ["teachers.other={training: {steps: 5}}"])
    found = changed(
        recipe,
        [
            "seeds=[1]",
            "sources.pool.every=2",
            "sources.pool={format: pool, images: new}",
            "finetuning.rates.1=0.5",
            "sources.more.images=later",
            "sources.pool.limit=5",
        ],
    )
    assert found.seeds == (1,)
    assert found.sources["pool"] == Pool(images="new", limit=5)
    assert found.finetuning.rates == (0.005, 0.5, 0.08, 0.32)
    assert found.model is recipe.model, "what no setting touches stays as it is"
    assert (recipe.seeds, recipe.sources["pool"].limit) == ((0,), None), "the recipe itself does not change"
    both = changed(recipe, ["heads.two={task: depth}", "labels=other"])
    assert list(both.heads) == ["kind", "two"]
    assert changed(recipe, []) is recipe


def test_settings_reach_names_that_contain_dots():
    recipe = plain_recipe()
    recipe = recipe.but(sources={**recipe.sources, "more, v1.5": Pool(images="later")})
    assert list(recipe.sources) == ["pool", "more", "more, v1.5"]
    settings = ["sources.more, v1.5.limit=5", "sources.more.limit=2", "sources.more, v1.5.images=new"]
    found = changed(recipe, settings)
    assert found.sources["more, v1.5"] == Pool(images="new", limit=5)
    assert found.sources["more"].limit == 2
    assert parse(Recipe, override(recipe.plain(), settings, Recipe)) == found
    assert changed(recipe, ["sources.more, v1.5={format: pool, images: x}"]).sources["more, v1.5"] == Pool(images="x")


def test_null_leaves_an_entry_out():
    recipe = plain_recipe()
    found = changed(recipe, ["sources.more=null", "rounds=2"])
    assert list(found.sources) == ["pool"]
    assert parse(Recipe, override(recipe.plain(), ["sources.more=null", "rounds=2"], Recipe)) == found
    without = {key: value for key, value in recipe.plain().items() if key != "first_row"}
    assert parse(Recipe, override(without, ["first_row=null", "rounds=2"], Recipe)) == recipe.but(rounds=2)
    later = ["student={kind: x-learner}", "student.reconciliation=null", "student.squeeze=null"]  # fields, not entries
    assert override({"name": "x"}, later, Recipe)["student"] == {
        "kind": "x-learner",
        "reconciliation": None,
        "squeeze": None,
    }
    for apply in (lambda s: changed(recipe, s), lambda s: override(recipe.plain(), s, Recipe)):
        with pytest.raises(UserError, match="did you mean 'more'"):
            apply(["sources.moore=null"])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("sede=1", "unknown key 'sede', did you mean 'seed'"),
        ("sources.poool.limit=1", "unknown key 'poool', did you mean 'pool'"),
        ("sources.pool.limit=-1", r"limit.*greater than or equal"),
        ("seed.x=1", "cannot be set inside a single value"),
        ("seeds.7=1", "no position of a list of 1"),
        ("seed", "must look like a.b=value"),
        ("student.training.stpes=1", r"(?s)unknown key 'stpes', did you mean 'steps'"),
        ("teachers.kind={kind: foreign}", "'foreign' is not known"),
    ],
)
def test_settings_that_do_not_fit(setting, words):
    with pytest.raises(UserError, match=words):
        changed(plain_recipe(), [setting])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n", r"(?s)gives no recipe.*define a function"),
        ("recipe = 'mine.yaml'\n", r"(?s)gives no recipe.*'str'"),
        ("def recipe():\n    return None\n", "gives no recipe"),
        ("def recipe():\n    x = {}\n    return x['a']\n", r"(?s)fails: KeyError: 'a'.*line 3"),
        ("import nowhere_at_all\n", r"(?s)fails: ModuleNotFoundError.*line 1"),
        ("def recipe(:\n", r"(?s)fails: SyntaxError.*line 1"),
        (FILE.replace("sources=", "source="), r"(?s)does not fit \(Recipe\).*unknown key 'source'.*line 17"),
        (FILE.replace('("a", "b")', "5"), r"(?s)does not fit \(Classification\).*classes: .*line 16"),
    ],
)
def test_faults_of_the_file(folder, text, words):
    path = write(folder, text, "faulty.py")
    with pytest.raises(UserError, match=words) as caught:
        read_recipe(path)
    assert caught.value.file == path
    assert "faulty" not in sys.modules or "nowhere" not in text, "what failed to load is not kept"


@pytest.mark.parametrize("name", ["json.py", "sqlite3.py", "tutelage.py", "with.dots.py"])
def test_names_of_other_modules_are_refused(folder, name):
    """sqlite3 is not imported yet, but would be hidden from then on."""
    with pytest.raises(UserError, match="rename the file"):
        read_recipe(write(folder, FILE, name))
    assert str(folder) not in sys.path
    with pytest.raises(UserError, match="no such file"):
        read_recipe(folder / "none.py")


def test_the_command_line_takes_python_files(folder):
    path = write(folder, FILE)
    shown = CliRunner().invoke(cli.app, ["recipe", "show", str(path), "--set", "seed=5"])
    assert shown.exit_code == 0, shown.output
    assert "seed: 5" in shown.output
    assert "make: mine_own:make" in shown.output
    failed = CliRunner().invoke(cli.app, ["recipe", "show", str(folder / "none.py")])
    assert isinstance(failed.exception, UserError)
    assert "no such file" in str(failed.exception)


def test_parts_of_a_users_own_class_keep_their_class():
    class Special(TeacherPart):
        kind: str = "special"
        inner: Pool
        level: int = 1

    part = changed(Special(inner=Pool(images="pool")), ["inner.limit=9", "flip=true"])
    assert isinstance(part, Special)
    assert (part.inner.limit, part.flip, part.level) == (9, True, 1)


def test_a_date_is_a_name_as_any_other():
    assert yaml_to_plain("name: 2026-10-01") == {"name": "2026-10-01"}
    assert override({"name": "x"}, ["name=2026-10-01"]) == {"name": "2026-10-01"}
