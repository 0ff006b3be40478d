"""Typed values with a text form: the base of everything that a recipe is made of.

A recipe is a tree of `Part`s: frozen, validated, comparable. Its text form is YAML. A part that comes in
several kinds (a source, a task) carries the kind in a literal field, and `one_of` lets exactly those kinds be
written in YAML, while Python users may pass any instance of the base class, their own included.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar, Union

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    InstanceOf,
    PlainSerializer,
    PlainValidator,
    SerializeAsAny,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from tutelage.errors import UserError

_YAML_BYTES = 4 * 2**20
_YAML_DEPTH = 40


class Part(BaseModel):
    """A frozen, typed value. Unknown keys are refused with the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    left_out: ClassVar[frozenset[str]] = frozenset()
    """The fields of entries by name of which one that is given as null is left out."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            for key in value:
                if key not in cls.model_fields:
                    raise PydanticCustomError(
                        "unknown_key",
                        "unknown key '{key}'{hint}; known: {known}",
                        {
                            "key": str(key),
                            "hint": nearest(str(key), cls.model_fields),
                            "known": ", ".join(cls.model_fields),
                        },
                    )
        return value

    def plain(self) -> dict[str, Any]:
        """The value as dicts, lists, strings and numbers, ready for YAML or JSON."""
        return self.model_dump(mode="json")

    def fingerprint(self) -> str:
        """Hex digest of the value: equal values have equal fingerprints."""
        return fingerprint(self.plain())

    def but(self, **changes: Any) -> Self:
        """The same value with some fields changed, validated again; raises UserError where they do not fit."""
        for key in changes:
            if key not in type(self).model_fields:
                raise TypeError(f"{type(self).__name__} has no field {key!r}{nearest(key, type(self).model_fields)}")
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        try:
            return type(self)(**{**fields, **changes})
        except ValidationError as error:
            said = "; ".join(e["msg"].removeprefix("Value error, ") for e in error.errors(include_url=False))
            raise UserError(said, fix="correct these values") from None


P = TypeVar("P", bound=Part)


def one_of(base: type, key: str, kinds: Sequence[type[Part]], default: str | None = None) -> Any:
    """The annotation of a field that holds one of `kinds` (told apart in text by the literal field `key`).

    Where the text leaves the key out, the kind is `default`, if there is one.

    Instances of any subclass of `base`, the user's own included, are accepted as they are.
    """
    by_name = {kind.model_fields[key].default: kind for kind in kinds}

    def kind_of(value: Any) -> str | None:
        if isinstance(value, base):
            return "instance"
        name = value.get(key, default) if isinstance(value, Mapping) else None
        return None if name is None else str(name)

    tagged: list[Any] = [Annotated[kind, Tag(str(name))] for name, kind in by_name.items()]
    tagged.append(Annotated[InstanceOf[base], Tag("instance")])  # type: ignore[misc,valid-type]
    union: Any = Union[tuple(tagged)]  # noqa: UP007 - the kinds are known when the program runs
    every: Any = SerializeAsAny
    return Annotated[every[union], Discriminator(kind_of)]


def function_name(function: Callable[..., Any]) -> str:
    """A function as text: "module:name". It says which one was meant; it is never looked up again."""
    # what a script calls `__main__` has another name in the processes that the script starts
    return f"{function.__module__.replace('__mp_main__', '__main__')}:{function.__qualname__}"


def _check_function(value: Any) -> Any:
    if isinstance(value, str):
        raise PydanticCustomError("function", "a function cannot be written as text: make the recipe a Python file")
    if not inspect.isfunction(value) or "<" in value.__qualname__:
        raise PydanticCustomError(
            "function",
            "it must be a function that stands in a module by its own name, no lambda and no function inside another: "
            "other processes have to find it",
        )
    return value


Positive = Annotated[float, Field(gt=0)]
"""A number above zero."""

Function = Annotated[Callable[..., Any], PlainValidator(_check_function), PlainSerializer(function_name, str)]
"""The annotation of a field that holds a Python function of a module. Its text form cannot be read back."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint such as ", did you mean 'classes'?", or nothing when no known word is close."""
    close = difflib.get_close_matches(word, [str(k) for k in known], n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else ""


def fingerprint(plain: Any) -> str:
    """Hex digest (16 characters of SHA-256) of a plain value; dict order does not matter."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def parse(kind: type[P], plain: Any, file: str | Path | None = None) -> P:
    """A plain value as a part.

    Raises:
        UserError: naming every key that is unknown, missing or of the wrong type.
    """
    try:
        return kind.model_validate(plain)
    except ValidationError as error:
        lines = [_explain(dict(entry), plain) for entry in error.errors(include_url=False)]
        raise UserError(
            "the recipe does not fit:\n    " + "\n    ".join(lines),
            file=file,
            fix="correct these keys; `tutelage recipe show demo` prints a complete example",
        ) from None


def _explain(entry: dict[str, Any], plain: Any) -> str:
    """One validation error as a line: the path as the user wrote it, what is wrong, what was given."""
    steps, here = [], plain
    for number, step in enumerate(entry["loc"], 1):
        inside = isinstance(here, dict) and step in here
        missing = entry["type"] == "missing" and number == len(entry["loc"])
        if inside or missing or isinstance(here, list):  # else it is a tag of pydantic's union, not a key
            steps.append(str(step))
        if inside or (isinstance(here, list) and isinstance(step, int) and step < len(here)):
            here = here[step]
    message, context = entry["msg"], entry.get("ctx", {})
    if entry["type"] == "union_tag_invalid":
        known = [k.strip("' ") for k in context["expected_tags"].split(",") if "instance" not in k]
        message = f"{context['tag']!r} is not known{nearest(context['tag'], known)}; known: {', '.join(known)}"
    elif entry["type"] == "union_tag_not_found":
        message = "it must be a mapping that states its kind (sources: `format`, heads: `task`, teachers: `kind`)"
    elif not isinstance(entry["input"], dict | list):
        message += f" (got {entry['input']!r})"
    return f"{'.'.join(steps) + ': ' if steps else ''}{message}"


class _StrictLoader(yaml.SafeLoader):
    """Safe loading that refuses a key given twice and anchors, which recipes do not need."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("anchors and aliases (&, *) are not allowed in a recipe")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: the key {key!r} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


# A date is text here, as it would be in quotes: nothing in a recipe is one, and `name: 2026-10-01` is a name.
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path) -> Any:
    """A YAML file as plain values.

    Raises:
        UserError: missing or oversized file, text that is not YAML, doubled keys, anchors, too deep nesting.
    """
    if not path.is_file():
        raise UserError("there is no such file", file=path, fix="give the path of a recipe (YAML)")
    if path.stat().st_size > _YAML_BYTES:
        raise UserError("the file is too large for a recipe", file=path, value=path.stat().st_size, fix="at most 4 MiB")
    return yaml_to_plain(path.read_text(encoding="utf-8", errors="replace"), path)


def yaml_to_plain(text: str, file: str | Path | None = None) -> Any:
    """YAML text as plain values; raises UserError as `read_yaml` does."""
    try:
        plain = yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise UserError(f"this is not the YAML we read: {error}", file=file, fix="correct the text") from None
    if _depth(plain) > _YAML_DEPTH:
        raise UserError("nested too deeply", file=file, fix=f"at most {_YAML_DEPTH} levels")
    return plain


def to_yaml(plain: Any) -> str:
    """Plain values as YAML text, keys in their own order."""
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)


def override(plain: Any, settings: Sequence[str], kind: type[Part] | None = None) -> Any:
    """A copy of a plain value with `a.b.c=value` settings applied; values are read as YAML.

    Keys that are there may contain dots: of those that the rest of a path begins with, the longest is meant.

    Args:
        plain: the value.
        settings: are applied in this order.
        kind: what `plain` is the text form of: a path may then lead through fields that the text leaves out.

    Raises:
        UserError: a setting without "=", or a path that leads through something that is no mapping or list.
    """
    before, plain = plain, json.loads(json.dumps(plain))
    for setting in settings:
        steps, value = _split(setting)
        here: Any = plain
        walked: list[str] = []
        while len(steps := _joined(steps, here)) > 1:
            step, *steps = steps
            walked.append(step)
            if isinstance(here, dict) and step not in here and _is_field(kind, before, walked):
                here[step] = {}
            here = _step(here, step, setting)
        last = steps[0]
        if isinstance(here, list):
            here[_index(here, last, setting)] = value
        elif isinstance(here, dict):
            entries = kind is not None and len(walked) == 1 and walked[0] in kind.left_out
            if value is None and last not in here and entries:
                raise UserError(
                    f"there is no '{last}' to leave out{nearest(last, here)}",
                    value=setting,
                    fix=f"known: {', '.join(here)}",
                )
            here[last] = value
        else:
            raise UserError(f"'{last}' cannot be set inside a single value", value=setting, fix="check the path")
    return plain


def _is_field(kind: type[Part] | None, plain: Any, path: Sequence[str]) -> bool:
    """Whether a path leads to a field of a part, in the value that a text form stands for."""
    try:
        here: Any = None if kind is None else kind.model_validate(plain)
    except ValidationError:
        return False
    for step in path[:-1]:
        here = dict(here).get(step) if isinstance(here, Part | Mapping) else None
    return isinstance(here, Part) and path[-1] in type(here).model_fields


def changed(part: P, settings: Sequence[str]) -> P:
    """A part with `a.b.c=value` settings applied, as `override` does to a plain value, validated again.

    The value need not have a text form: what no setting touches stays the very same object.

    Raises:
        UserError: as `override`, and whatever does not fit.
    """
    paths = []
    for setting in settings:
        steps, value = _split(setting)
        paths.append((steps, value, setting))
    result: P = _changed(part, paths) if paths else part
    return result


def _changed(here: Any, paths: list[tuple[list[str], Any, str]]) -> Any:
    """`here` with values put at the ends of paths; all changes of one part are validated together."""
    groups: dict[str, list[tuple[list[str], Any, str]]] = {}
    for steps, given, setting in paths:
        steps = _joined(steps, here)
        groups.setdefault(steps[0], []).append((steps, given, setting))
    changes: dict[Any, Any] = {}
    for step, group in groups.items():
        key, value = _entry(here, step, group)
        deeper: list[tuple[list[str], Any, str]] = []
        for steps, given, setting in group:
            if len(steps) > 1:
                deeper.append((steps[1:], given, setting))
            else:  # as a whole, and what was said before of its inside no longer counts
                value, deeper = given, []
        changes[key] = _changed({} if value is None else value, deeper) if deeper else value
    if isinstance(here, Part):
        try:
            return type(here)(**{**dict(here), **changes})
        except ValidationError as error:
            lines = [_explain(dict(entry), changes) for entry in error.errors(include_url=False)]
            raise UserError(
                "the settings do not fit:\n    " + "\n    ".join(lines),
                value=[setting for _, _, setting in paths],
                fix="correct these settings",
            ) from None
    if isinstance(here, Mapping):
        return {**here, **changes}
    return [changes.get(number, entry) for number, entry in enumerate(here)]


def _entry(here: Any, step: str, group: list[tuple[list[str], Any, str]]) -> tuple[Any, Any]:
    """The key that the first step of paths means, and what is there."""
    setting = group[0][2]
    if isinstance(here, list | tuple):
        number = _index(here, step, setting)
        return number, here[number]
    if not isinstance(here, Part | Mapping):
        raise UserError(f"'{step}' cannot be set inside a single value", value=setting, fix="check the path")
    known = list(type(here).model_fields) if isinstance(here, Part) else list(here)
    entries = isinstance(here, Mapping) and any(isinstance(entry, Part) for entry in here.values())
    gone = entries and group[0][1] is None  # null leaves an entry out: it must be there
    if step not in known and (isinstance(here, Part) or len(group[0][0]) > 1 or gone):
        raise UserError(
            f"unknown key '{step}'{nearest(step, known)}", value=setting, fix=f"known: {', '.join(map(str, known))}"
        )
    return step, getattr(here, step) if isinstance(here, Part) else here.get(step)


def _split(setting: str) -> tuple[list[str], Any]:
    """Path and value of a setting."""
    path, equals, text = setting.partition("=")
    if not equals or not path:
        raise UserError("a setting must look like a.b=value", value=setting, fix="for example --set seed=1")
    return path.split("."), yaml_to_plain(text, "--set")


def _joined(steps: list[str], here: Any) -> list[str]:
    """The steps of a path from a value on, those joined into one that make up the longest key which it has there."""
    keys = here if isinstance(here, Mapping) else ()
    for number in range(len(steps), 1, -1):
        key = ".".join(steps[:number])
        if key in keys:
            return [key, *steps[number:]]
    return steps


def _step(here: Any, step: str, setting: str) -> Any:
    if isinstance(here, list):
        return here[_index(here, step, setting)]
    if isinstance(here, dict):
        if step not in here:
            raise UserError(
                f"there is no key '{step}'{nearest(step, here)}",
                value=setting,
                fix=f"known: {', '.join(here)}",
            )
        if here[step] is None:
            here[step] = {}
        return here[step]
    raise UserError(f"'{step}' cannot be looked up inside a single value", value=setting, fix="check the path")


def _index(here: Sequence[Any], step: str, setting: str) -> int:
    if not step.isdigit() or int(step) >= len(here):
        raise UserError(f"'{step}' is no position of a list of {len(here)}", value=setting, fix="positions start at 0")
    return int(step)


def _depth(value: Any, level: int = 0) -> int:
    if level > _YAML_DEPTH:
        return level
    if isinstance(value, dict):
        return max((_depth(v, level + 1) for v in value.values()), default=level + 1)
    if isinstance(value, list):
        return max((_depth(v, level + 1) for v in value), default=level + 1)
    return level
