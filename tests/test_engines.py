"""One pass, whoever does it: the same bytes, and the death of a worker costs at most one shard."""

from __future__ import annotations

import importlib.util
import io
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from kill_labelling import (
    QUICK,
    begin,
    contents,
    ended,
    redone,
    small_work,
)
from test_jobs import buried, double, outspoken
from test_transfer import table

import tutelage
import tutelage.files
from tutelage.cluster import connected
from tutelage.data.source import Place
from tutelage.errors import UserError
from tutelage.files import read_json_lines
from tutelage.jobs import RayJobs, ReportingProgress
from tutelage.labels import engines, labelling
from tutelage.labels.claims import Claim
from tutelage.labels.engines import Engine, join, label
from tutelage.labels.ray import _Crew, _Said
from tutelage.parcel import Parcel, pack
from tutelage.progress import SILENT, Progress


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed process wrote is safe in the kernel; only a power cut needs the sync, and it is slow."""
    monkeypatch.setattr(tutelage.files.os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one process leaves."""
    root = tmp_path_factory.mktemp("alone")
    label(small_work(), root)
    return contents(root)


# Engines ----------------------------------------------------------------------------------------------------


def test_two_local_workers_leave_the_same_bytes(tmp_path: Path, wanted: dict[str, str]) -> None:
    said, aside, root = io.StringIO(), [], tmp_path / "store"
    (tmp_path / "company").mkdir()
    report = label(
        small_work(seconds=0.01, company=tmp_path / "company", log=tmp_path / "log"),
        root,
        engine=Engine(workers=2),
        progress=Progress(said),
        quarantine=lambda *entry: aside.append(entry),
    )
    assert contents(root) == wanted
    assert redone(tmp_path / "log") == 0
    assert "done in" in said.getvalue()
    assert "note" not in said.getvalue()
    assert (report.labelled_now["mask"], report.counts["label"].human) == (62, 9)
    assert sorted(entry[0] for entry in aside) == ["first/0003.jpg", "first/0020.jpg", "second/0011.jpg"]


def test_a_helper_that_has_not_begun_is_not_waited_for(
    tmp_path: Path, wanted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "START", multiprocessing.get_context("fork"))
    monkeypatch.setattr(engines, "end_with_parent", lambda: None)
    monkeypatch.setattr(Parcel, "unpack", lambda self: time.sleep(60))
    label(small_work(), tmp_path, engine=Engine(workers=2))
    assert contents(tmp_path) == wanted


def test_local_workers_share_the_work(tmp_path: Path, wanted: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "START", multiprocessing.get_context("fork"))
    log = tmp_path / "log"
    report = label(small_work(seconds=0.01, log=log), tmp_path / "store", engine=Engine(workers=3), patience=QUICK)
    assert contents(tmp_path / "store") == wanted
    assert redone(log) == 0
    assert report.labelled_now["mask"] == 62, "those of all workers"


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_that_join_on_a_shared_folder(workers: int, tmp_path: Path, wanted: dict[str, str]) -> None:
    log, root = tmp_path / "log", tmp_path / "store"
    others = [begin(lambda: join(small_work(log=log, seconds=0.005), root, patience=QUICK)) for _ in range(workers - 1)]
    report = join(small_work(log=log, seconds=0.005), root, patience=QUICK)
    assert [ended(other) for other in others] == [0] * (workers - 1)
    assert contents(root) == wanted
    assert redone(log) == 0
    assert report.counts["boxes"].labelled == report.labelled_now["boxes"] == 62
    again = join(small_work(log=log), root, patience=QUICK)
    assert set(again.labelled_now.values()) == {0}
    assert redone(log) == 0
    assert contents(root) == wanted


def test_a_ray_of_this_machine_leaves_the_same_bytes(tmp_path: Path, wanted: dict[str, str]) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    with connected(None, 2):  # Ray is started once, for the labels and for independent jobs
        report = label(small_work(), tmp_path, engine=Engine(kind="ray"))
        with RayJobs(2) as jobs, SILENT.bar("", 1) as bar:
            assert jobs.map(double, [(1,), (13,), (2,), (3,)], [1] * 4, bar, buried) == [2, -13, 4, 6]
            with pytest.raises(UserError, match="this number is refused"):
                jobs.map(double, [(1,), (99,)], [1, 1], bar, buried)
            stream, calls = io.StringIO(), [(ReportingProgress("images"), n) for n in (1, 2)]
            with Progress(stream).bar("", 2) as bar:
                assert jobs.map(outspoken, calls, [1, 1], bar) == [1, 2]
            assert sorted(stream.getvalue().splitlines()[:2]) == ["note: 1 is done", "note: 2 is done"]
        tutelage.run(table(), tmp_path.parent / "by ray", SILENT, RayJobs(2))
    tutelage.run(table(), tmp_path.parent / "here", SILENT)
    here, there = (sorted(map(str, read_json_lines(tmp_path.parent / n / "results.jsonl"))) for n in ("here", "by ray"))
    assert here == there, "grid points and cells of a transfer table are tasks of the cluster"
    assert contents(tmp_path) == wanted
    assert report.labelled_now["mask"] == 62


class PretendRay:
    """Actors that answer when they are asked, or die."""

    class Died(Exception):
        pass

    exceptions = types.SimpleNamespace(RayActorError=Died)

    def __init__(self, deaths: Sequence[int]) -> None:
        self.asked, self.hired, self._deaths = list[int](), 0, list(deaths)

    def hire(self) -> Any:
        self.hired += 1

        def make(number: int) -> Callable[[], Any]:
            self.asked.append(number)
            return lambda: self._answer(number)

        opened = types.SimpleNamespace(remote=lambda: lambda: _Said(teachers=(("mask", None, "v1", {}),)))
        return types.SimpleNamespace(open=opened, label=types.SimpleNamespace(remote=make))

    def _answer(self, number: int) -> Any:
        if number in self._deaths:
            self._deaths.remove(number)
            raise self.Died("killed by signal 9\nand more")
        return _Said(problem="bad teacher") if number == 99 else _Said()

    def wait(self, references: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return references[-1:], references[:-1]

    def get(self, reference: Any) -> Any:
        return reference()


def test_shards_of_actors_that_die_are_given_out_again() -> None:
    def claim(number: int) -> Claim:
        return Claim(number, (), None, 0.0)

    ray = PretendRay(deaths=[0, 3, 3, 7])
    crew = _Crew(ray, ray.hire, 2)
    assert crew.begin() == (("mask", None, "v1", {}),)
    made = [done.number for n in range(8) for done, _ in crew.give(claim(n))] + [d.number for d, _ in crew.rest()]
    assert sorted(made) == list(range(8))
    assert sorted(ray.asked) == [0, 0, 1, 2, 3, 3, 3, 4, 5, 6, 7, 7]
    assert ray.hired == 2 + 4
    with pytest.raises(UserError, match="bad teacher"):
        list(crew.give(claim(99))) + list(crew.rest())
    ray = PretendRay(deaths=[5] * 9)
    crew = _Crew(ray, ray.hire, 1)
    with pytest.raises(UserError, match=r"(?s)die again and again.*killed by signal 9'"):
        list(crew.give(claim(5))) + list(crew.rest())
    assert ray.hired == 1 + 3


def test_a_fault_that_a_helper_finds_ends_the_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "START", multiprocessing.get_context("fork"))
    mine, count = os.getpid(), labelling.Tally.label

    def fail(*arguments: Any) -> None:
        if os.getpid() != mine:
            raise UserError("no such weights", file="weights.pt")
        time.sleep(0.005)
        count(*arguments)

    monkeypatch.setattr(labelling.Tally, "label", fail)
    with pytest.raises(UserError, match=r"(?s)no such weights.*weights.pt"):
        label(small_work(), tmp_path, engine=Engine(workers=2), patience=QUICK)


def test_ray_that_is_missing_or_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"(?s)needs Ray.*pip install 'ray>=2.40'"):
        label(small_work(), tmp_path, engine=Engine(kind="ray"))


# Work on its way --------------------------------------------------------------------------------------------


def test_modules_that_are_not_installed_travel_with_the_work(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_words.py").write_text("WORD = 'decoded'\n")
    (tmp_path / "mine" / "my_recipe.py").write_text(
        "import my_words\n"
        "from tutelage.part import Part\n"
        "class Teacher(Part):\n    size: int = 3\n"
        "    def say(self): return [my_words.WORD] * self.size\n"
        "def decode(value): return Teacher(size=value)\n"
    )
    code = (
        "import pickle, sys; from pathlib import Path\n"
        "parcel = pickle.loads(Path(sys.argv[1]).read_bytes())\n"
        "decode, teacher = parcel.unpack()\n"
        "import inspect\n"
        "print(*(inspect.getsource(thing).split('(')[0] for thing in (decode, type(teacher))))\n"
        "print(decode(2).say(), teacher.say(), type(teacher).__module__)\n"
    )
    sys.path.insert(0, str(tmp_path / "mine"))
    try:
        recipe = importlib.import_module("my_recipe")
        (tmp_path / "parcel").write_bytes(pickle.dumps(pack((recipe.decode, recipe.Teacher(size=1)))))
    finally:
        sys.path.remove(str(tmp_path / "mine"))
        for name in ("my_recipe", "my_words"):
            sys.modules.pop(name, None)
    shutil.rmtree(tmp_path / "mine")  # the other machine does not have it
    command = [sys.executable, "-c", code, str(tmp_path / "parcel")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    said = "def decode class Teacher\n['decoded', 'decoded'] ['decoded'] my_recipe\n"
    assert done.stdout == said, done.stderr
    assert pack(Place(Path(), Path())).sources == {}


def test_what_cannot_be_sent_says_so() -> None:
    with pytest.raises(UserError, match=r"(?s)cannot be sent.*top of a module"):
        pack(lambda: None)
