"""Typed values and their text form: what is wrong is said by name, with the nearest right one."""

from typing import Literal

import pytest

from tutelage.errors import UserError
from tutelage.part import Part, fingerprint, function_name, one_of, override, parse, read_yaml, to_yaml, yaml_to_plain


class Animal(Part):
    kind: str


class Cat(Animal):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(Animal):
    kind: Literal["dog"] = "dog"
    weight: float


class Zoo(Part):
    name: str = "zoo"
    animals: dict[str, one_of(Animal, "kind", (Cat, Dog))] = {}


def test_round_trip_through_yaml():
    zoo = Zoo(animals={"tom": Cat(lives=3), "rex": Dog(weight=2.5)})
    assert parse(Zoo, yaml_to_plain(to_yaml(zoo.plain()))) == zoo


def test_an_instance_of_a_users_own_kind_is_taken_as_it_is():
    class Axolotl(Animal):
        kind: str = "axolotl"
        gills: int = 6

    zoo = Zoo(animals={"a": Axolotl()})
    assert isinstance(zoo.animals["a"], Axolotl)
    assert zoo.plain()["animals"]["a"] == {"kind": "axolotl", "gills": 6}


@pytest.mark.parametrize(
    ("plain", "words"),
    [
        ({"nmae": "x"}, ["unknown key 'nmae'", "did you mean 'name'"]),
        ({"animals": {"t": {"kind": "cat", "livs": 1}}}, ["animals.t: unknown key 'livs'", "'lives'"]),
        (
            {"animals": {"t": {"kind": "cta"}}},
            ["animals.t: 'cta' is not known", "did you mean 'cat'", "cat, dog"],
        ),
        ({"animals": {"t": {"lives": 1}}}, ["animals.t:", "states its kind"]),
        ({"animals": {"t": {"kind": "dog", "weight": "heavy"}}}, ["animals.t.weight:", "'heavy'"]),
        ({"animals": {"t": {"kind": "dog"}}}, ["animals.t.weight: Field required"]),
    ],
)
def test_what_is_wrong_is_named(plain, words):
    with pytest.raises(UserError) as caught:
        parse(Zoo, plain, "zoo.yaml")
    for word in [*words, "zoo.yaml"]:
        assert word in str(caught.value)


def test_all_faults_are_named_at_once():
    with pytest.raises(UserError) as caught:
        parse(Zoo, {"animals": {"a": {"kind": "dog"}, "b": {"kind": "cow"}}})
    assert "animals.a.weight" in str(caught.value)
    assert "animals.b" in str(caught.value)


def test_overrides_follow_the_path():
    plain = {"a": {"b": [1, {"c": 2}]}, "n": None}
    assert override(plain, ["a.b.1.c=3", "a.b.0=x", "a.new=1e-4", "n.m=true"]) == {
        "a": {"b": ["x", {"c": 3}], "new": "1e-4"},
        "n": {"m": True},
    }
    assert plain == {"a": {"b": [1, {"c": 2}]}, "n": None}


def test_an_override_finds_keys_that_contain_dots():
    plain = {"rows": {"v1": {"steps": 1}, "v1.5": {"steps": 1}, "v1.5.x": None}, "list": [{"a.b": 1}]}
    settings = ["rows.v1.5.steps=4", "rows.v1.steps=2", "rows.v1.5.new=7", "rows.v1.5.x.more=9", "list.0.a.b=3"]
    assert override(plain, settings) == {
        "rows": {"v1": {"steps": 2}, "v1.5": {"steps": 4, "new": 7}, "v1.5.x": {"more": 9}},
        "list": [{"a.b": 3}],
    }
    assert override(plain, ["rows.v1.5=2"])["rows"] == {**plain["rows"], "v1.5": 2}
    made = override(plain, ["rows.new={w2.5: {steps: 1}}", "rows.new.w2.5.steps=3", "rows.v1.5={a.b: 1}"])
    assert made["rows"] == {**plain["rows"], "new": {"w2.5": {"steps": 3}}, "v1.5": {"a.b": 1}}
    with pytest.raises(UserError, match="there is no key 'v2', did you mean"):
        override(plain, ["rows.v2.5.steps=4"])


@pytest.mark.parametrize("setting", ["a", "=1", "a.x.y=1", "a.b.7=1", "a.b.0.c=1"])
def test_an_override_that_leads_nowhere_is_refused(setting):
    with pytest.raises(UserError):
        override({"a": {"b": [1]}}, [setting])


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\na: 2\n",
        "a: &x 1\nb: *x\n",
        "a: [",
        "[" * 60 + "]" * 60,
        "!!python/object:os.system x",
        "a: !x y",
    ],
)
def test_yaml_that_is_not_plain_is_refused(text):
    with pytest.raises(UserError):
        yaml_to_plain(text)


def test_a_missing_and_an_oversized_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")
    large = tmp_path / "large.yaml"
    large.write_text("#" * (5 * 2**20))
    with pytest.raises(UserError, match="too large"):
        read_yaml(large)


def test_fingerprints_ignore_the_order_of_keys_and_notice_values():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert Cat(lives=1).fingerprint() != Cat(lives=2).fingerprint()


def test_but_changes_and_validates():
    assert Cat().but(lives=1) == Cat(lives=1)
    with pytest.raises(TypeError, match="did you mean 'lives'"):
        Cat().but(livs=1)


def test_a_function_of_a_script_has_one_name_in_all_its_processes(monkeypatch):
    for module in ("__main__", "__mp_main__"):
        monkeypatch.setattr(override, "__module__", module)
        assert function_name(override) == "__main__:override"
