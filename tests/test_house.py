"""The house: imports run one way, without circles; the command line answers at once."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "tutelage"

# Lowest first. A module may import from its own floor (without a circle) and from the floors below.
FLOORS = [
    {"cluster", "errors", "files", "jobs", "parcel", "part", "progress", "threads", "types"},
    {"data"},
    {"tasks"},
    {"models"},
    {"training"},
    {"teachers"},
    {"labels"},
    {"kinds"},
    {"downstream"},
    {"recipe"},
    {"stages"},
    {"methods"},
    {"transfer"},
    {"report"},
    {"recipes"},
    {"api", "check", "plan"},
    {"cli"},
    {"__main__", "__init__"},
]


def _module(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {_module(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, also inside functions and under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tutelage":
            base = node.module.removeprefix("tutelage").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix(".")
                found.add(inner if inner in MODULES else base or "__init__")
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("tutelage.") for a in node.names if a.name.startswith("tutelage.")}
    return found


def _floor(module: str) -> int:
    top = module.split(".")[0]
    floors = [number for number, floor in enumerate(FLOORS) if top in floor]
    assert floors, f"{module} has no floor in tests/test_house.py"
    return floors[0]


def test_imports_never_run_upwards():
    wrong = [
        f"{module} imports {other}"
        for module, path in MODULES.items()
        if module not in ("__init__", "__main__")
        for other in _imports(path)
        if _floor(other) > _floor(module)
    ]
    assert wrong == []


def test_there_is_no_circle_of_imports():
    graph = {module: _imports(path) & set(MODULES) - {module} for module, path in MODULES.items()}
    done: set[str] = set()
    while ready := {module for module, needs in graph.items() if module not in done and needs <= done}:
        done |= ready
    assert set(graph) - done - {"__init__"} == set()


@pytest.mark.parametrize("module", ["tutelage", "tutelage.cli"])
def test_heavy_libraries_are_imported_late(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'timm', 'pyarrow', 'matplotlib') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
