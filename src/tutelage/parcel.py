"""A value on its way to another process, together with the modules that only this one has.

Classes and functions are pickled by name. A module that was loaded from a user's file (a recipe in Python, with a
decode function of its own) is no name in another process, and perhaps no file on another machine; so its source goes
with the value, as do the modules of the same kind that it uses. Source is the form in which a class is certain to
arrive as it was, which pickled bytecode of a pydantic class is not.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import pickle
import pickletools
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from tutelage.errors import UserError


@dataclass(frozen=True)
class Parcel:
    """A pickled value and the sources of the modules that it needs.

    Attributes:
        content: the pickled value.
        sources: module name to (file, source text).
    """

    content: bytes
    sources: dict[str, tuple[str, str]]

    def unpack(self) -> Any:
        """The value; its modules are made known to this process first."""
        _Sources.install(self.sources)
        return pickle.loads(self.content)


def pack(value: Any, dumps: Callable[[Any], bytes] = pickle.dumps) -> Parcel:
    """A value as a parcel.

    Args:
        value: what is sent.
        dumps: how it is pickled, readable for `pickle.loads`.

    Raises:
        UserError: it holds something that cannot be sent: a lambda, a function inside a function, an open file.
    """
    try:
        content = dumps(value)
    except (pickle.PicklingError, TypeError, AttributeError) as problem:
        raise UserError(
            f"this cannot be sent to another process: {problem}",
            fix="use functions and classes that stand at the top of a module, or label with one worker",
        ) from None
    return Parcel(content, {m.__name__: (str(m.__file__), _source(m)) for m in _own_modules(content)})


def _own_modules(content: bytes) -> list[ModuleType]:
    """The modules that a pickle names, and those that they use, which are not installed."""
    words = {arg for _, arg, _ in pickletools.genops(content) if isinstance(arg, str)}
    names = {name for word in words for name in (word, word.split(" ")[0])}
    waiting = [sys.modules[name] for name in names if name in sys.modules]
    found: dict[str, ModuleType] = {}
    while waiting:
        module = waiting.pop()
        if module.__name__ not in found and _is_own(module):
            found[module.__name__] = module
            waiting += list(_used(module))
    return [found[name] for name in sorted(found)]


def _used(module: ModuleType) -> Iterator[ModuleType]:
    for value in list(vars(module).values()):
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if isinstance(name, str) and name in sys.modules:
            yield sys.modules[name]


def _is_own(module: ModuleType) -> bool:
    """Whether it is the user's: a file of Python that is neither installed nor a part of this package."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py") or module.__name__ in ("__main__", "__mp_main__"):
        return False
    if module.__name__.split(".")[0] == __name__.split(".")[0]:
        return False
    installed = [Path(sysconfig.get_path(key)).resolve() for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    return not any(Path(file).resolve().is_relative_to(folder) for folder in installed)


def _source(module: ModuleType) -> str:
    return Path(str(module.__file__)).read_text(encoding="utf-8")


class _Sources(importlib.abc.MetaPathFinder, importlib.abc.ExecutionLoader):
    """Finds modules by name among the sources that came with a parcel, after everything that is installed."""

    def __init__(self, sources: dict[str, tuple[str, str]]) -> None:
        self._sources = sources

    @classmethod
    def install(cls, sources: dict[str, tuple[str, str]]) -> None:
        """Make sources known to this process. A module that was loaded already stays as it is."""
        if any(name not in sys.modules for name in sources):
            sys.meta_path.append(cls(sources))

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._sources:
            return None
        return importlib.util.spec_from_loader(fullname, self, is_package=self.is_package(fullname))

    def get_filename(self, fullname: str) -> str:
        """The file's name where it came from: `inspect` then finds the source, which teachers' hashes are made of."""
        return self._sources[fullname][0]

    def get_source(self, fullname: str) -> str:
        return self._sources[fullname][1]

    def is_package(self, fullname: str) -> bool:
        return Path(self._sources[fullname][0]).name == "__init__.py"
