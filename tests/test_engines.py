"""One pass, whoever does it: the same bytes, and the death of a worker costs at most one shard."""

from __future__ import annotations

import importlib.util
import io
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from kill_labelling import (
    SHARD,
    STEADY,
    FakeDataset,
    FakeTeacher,
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
from tutelage.labels.claims import Claim, Claims
from tutelage.labels.engines import Engine, join, label
from tutelage.labels.labelling import label_pool
from tutelage.labels.leases import Unquestioned
from tutelage.labels.ray import _Crew, _Said
from tutelage.labels.work import Labelling
from tutelage.labels.writing import Column, Signature
from tutelage.parcel import Parcel, pack
from tutelage.progress import SILENT, Progress
from tutelage.types import Field

pytestmark = pytest.mark.usefixtures("no_sync")


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
    woken = tmp_path / "woken"

    def sleep(parcel: Parcel) -> None:
        time.sleep(20)  # it is ended long before, unless it is waited for
        woken.touch()

    monkeypatch.setattr(engines, "START", multiprocessing.get_context("fork"))
    monkeypatch.setattr(engines, "end_with_parent", lambda: None)
    monkeypatch.setattr(Parcel, "unpack", sleep)
    label(small_work(), tmp_path / "store", engine=Engine(workers=2))
    assert not woken.exists()
    assert contents(tmp_path / "store") == wanted


def test_local_workers_share_the_work(tmp_path: Path, wanted: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "START", multiprocessing.get_context("fork"))
    log = tmp_path / "log"
    report = label(small_work(seconds=0.01, log=log), tmp_path / "store", engine=Engine(workers=3), patience=STEADY)
    assert contents(tmp_path / "store") == wanted
    assert redone(log) == 0
    assert report.labelled_now["mask"] == 62, "those of all workers"


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_that_join_on_a_shared_folder(workers: int, tmp_path: Path, wanted: dict[str, str]) -> None:
    log, root = tmp_path / "log", tmp_path / "store"
    others = [
        begin(lambda: join(small_work(log=log, seconds=0.005), root, patience=STEADY)) for _ in range(workers - 1)
    ]
    report = join(small_work(log=log, seconds=0.005), root, patience=STEADY)
    assert [ended(other) for other in others] == [0] * (workers - 1)
    assert contents(root) == wanted
    assert redone(log) == 0
    assert report.counts["boxes"].labelled == report.labelled_now["boxes"] == 62
    again = join(small_work(log=log), root, patience=STEADY)
    assert set(again.labelled_now.values()) == {0}
    assert redone(log) == 0
    assert contents(root) == wanted


def test_a_ray_of_this_machine_leaves_the_same_bytes(tmp_path: Path, wanted: dict[str, str]) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    with connected(None, 2):  # Ray is started once, for the labels and for independent jobs
        report = label(small_work(), tmp_path / "store", engine=Engine(kind="ray"))
        with RayJobs(2) as jobs, SILENT.bar("", 1) as bar:
            assert jobs.map(double, [(1,), (13,), (2,), (3,)], [1] * 4, bar, buried) == [2, -13, 4, 6]
            with pytest.raises(UserError, match="this number is refused"):
                jobs.map(double, [(1,), (99,)], [1, 1], bar, buried)
            stream, calls = io.StringIO(), [(ReportingProgress("images"), n) for n in (1, 2)]
            with Progress(stream).bar("", 2) as bar:
                assert jobs.map(outspoken, calls, [1, 1], bar) == [1, 2]
            assert sorted(stream.getvalue().splitlines()[:2]) == ["note: 1 is done", "note: 2 is done"]
        tutelage.run(table(), tmp_path / "by ray", SILENT, RayJobs(2))
    tutelage.run(table(), tmp_path / "here", SILENT)
    here, there = (sorted(map(str, read_json_lines(tmp_path / n / "results.jsonl"))) for n in ("here", "by ray"))
    assert here == there, "grid points and cells of a transfer table are tasks of the cluster"
    assert contents(tmp_path / "store") == wanted
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
        label(small_work(), tmp_path, engine=Engine(workers=2), patience=STEADY)


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


TEACHERS = (("mask", None, "v1", {}),)


class Loading(PretendRay):
    """Whose actors say one after the other what they are told to say when they load; None: it dies."""

    def __init__(self, *said: _Said | None) -> None:
        super().__init__([])
        self.said = list(said)

    def hire(self) -> Any:
        actor, said = super().hire(), self.said.pop(0) if self.said else _Said(teachers=TEACHERS)
        actor.open = types.SimpleNamespace(remote=lambda: lambda: self._load(said))
        return actor

    def _load(self, said: _Said | None) -> _Said:
        if said is None:
            raise self.Died("the machine is gone")
        return said


def test_actors_that_die_while_they_load_are_replaced_and_faults_are_told() -> None:
    ray = Loading(None, None)
    crew = _Crew(ray, ray.hire, 1)
    assert crew.begin() == TEACHERS
    claims = [Claim(number, (), None, 0.0) for number in range(3)]
    made = [done.number for claim in claims for done, _ in crew.give(claim)] + [d.number for d, _ in crew.rest()]
    assert sorted(made) == [0, 1, 2]
    assert ray.hired == 1 + 2
    ray = Loading(_Said(problem="no such weights"))
    with pytest.raises(UserError, match="no such weights"):
        _Crew(ray, ray.hire, 1).begin()
    ray = Loading(*[None] * 9)
    with pytest.raises(UserError, match=r"(?s)die again and again.*the machine is gone"):
        _Crew(ray, ray.hire, 1).begin()
    assert ray.hired == 1 + 3


def test_labels_that_a_worker_elsewhere_made_of_something_else_are_refused(tmp_path: Path) -> None:
    """Its machine has other files of the teacher, or another folder."""
    dataset = FakeDataset("one", 10)
    pool = labelling.open_pool([dataset], 5, ["field"])
    column = Column(Signature.of(FakeTeacher(Field)), tmp_path, pool, Labelling(shard=5))
    with ThreadPoolExecutor(1) as readers, SILENT.bar("", 10) as bar:
        claims = Claims(pool, [column], Unquestioned(), readers)
        first, second = claims.take(bar)
        with pytest.raises(UserError, match="not those of this pass") as nothing:
            claims.accept(first)
        assert (nothing.value.record, nothing.value.value) == ("shard-00000", ["field"])
        label_pool([dataset], [FakeTeacher(Field, hash="v2")], tmp_path, Labelling(shard=5))
        with pytest.raises(UserError, match="not those of this pass"):
            claims.accept(first)
        label_pool([dataset], [FakeTeacher(Field)], tmp_path, Labelling(shard=5))
        for claim in (first, second):
            claims.accept(claim)
    assert (column.counts.labelled, column.labelled_now) == (10, 10)


class TaskFailed(Exception):
    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class WorkerCrashed(Exception): ...


class OutOfMemory(Exception): ...


class NodeDied(Exception): ...


class PretendCluster:
    """Runs a task when its result is asked for; those of the numbers in `lost` went down with what they ran on."""

    exceptions = types.SimpleNamespace(
        RayTaskError=TaskFailed, WorkerCrashedError=WorkerCrashed, OutOfMemoryError=OutOfMemory, NodeDiedError=NodeDied
    )
    cloudpickle = pickle

    def __init__(self, death: type[Exception] = NodeDied, lost: tuple[int, ...] = (), gpus: float = 0.0) -> None:
        self.death, self.lost, self.gpus, self.cancelled = death, lost, gpus, list[int]()
        self.options: dict[str, Any] = {}

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 8.0} | ({"GPU": self.gpus} if self.gpus else {})

    def remote(self, **options: Any) -> Any:
        self.options = options
        return lambda function: types.SimpleNamespace(
            remote=lambda parcel: parcel.unpack
        )  # the task: its parcel, packed

    def wait(self, tasks: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return tasks[-1:], tasks[:-1]

    def get(self, task: Any) -> Any:
        work, call = task()
        if call[0] in self.lost:
            raise self.death("gone")
        try:
            return work(*call), []
        except UserError as error:
            raise TaskFailed(error) from None

    def cancel(self, task: Any) -> None:
        self.cancelled.append(task()[1][0])


def mapped(cluster: PretendCluster, numbers: list[int], died: Any = None, **options: Any) -> list[int]:
    jobs = RayJobs(2, **options)
    jobs._ray = cluster
    with jobs, SILENT.bar("", len(numbers)) as bar:
        return jobs.map(double, [(n,) for n in numbers], [1] * len(numbers), bar, died)


@pytest.mark.parametrize("death", [WorkerCrashed, OutOfMemory, NodeDied])
def test_a_task_that_goes_down_with_its_machine_is_buried_or_ends_everything(death: type[Exception]) -> None:
    assert mapped(PretendCluster(death, (13,)), [1, 13, 2], buried) == [2, -13, 4]
    with pytest.raises(death):
        mapped(PretendCluster(death, (13,)), [1, 13, 2])


def test_what_a_task_refuses_ends_the_others_and_tasks_share_the_accelerators() -> None:
    cluster = PretendCluster()
    with pytest.raises(UserError, match="this number is refused"):
        mapped(cluster, [1, 99], buried)
    assert cluster.cancelled == [1]
    assert cluster.options == {"num_cpus": 1, "num_gpus": 0.0, "max_retries": 0}
    for gpus, asked, share in ((1.0, None, 0.5), (4.0, None, 1.0), (1.0, 0.25, 0.25)):
        mapped(cluster := PretendCluster(gpus=gpus), [1, 2], gpus=asked)
        assert cluster.options["num_gpus"] == share


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Any:
    """In the place of the library: what it was asked for."""
    fake, kept = types.ModuleType("ray"), types.ModuleType("ray.cloudpickle")
    fake.told, fake.running, fake.problem = [], False, None

    def init(**settings: Any) -> None:
        fake.told.append(settings)
        if fake.problem is not None:
            raise fake.problem

    fake.init, fake.is_initialized = init, lambda: fake.running
    fake.shutdown = lambda: fake.told.append("ended")
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setitem(sys.modules, "ray.cloudpickle", kept)
    return fake


def test_a_cluster_that_was_started_here_is_ended_here_and_no_other(ray: Any) -> None:
    with pytest.raises(KeyError), connected(None, 3):
        raise KeyError
    started, ended = ray.told
    assert (started["address"], started["num_cpus"] >= 3, ended) == ("local", True, "ended")
    ray.told.clear()
    with connected("auto", 3) as found:
        assert found is ray
    assert ray.told[0]["address"] == "auto"
    assert "num_cpus" not in ray.told[0], "a cluster that is there has the cores that it has"
    ray.told.clear()
    ray.running = True
    with connected("auto", 3):
        pass
    assert ray.told == []


def test_a_cluster_that_is_not_reached_is_named(ray: Any) -> None:
    ray.problem = ConnectionError("no node answers\nand a page of advice")
    with pytest.raises(UserError, match=r"Ray cannot be reached: no node answers") as caught, connected("10.0.0.1", 1):
        pass
    assert (caught.value.field, caught.value.value) == ("address", "10.0.0.1")
    assert "advice" not in str(caught.value)
    assert "ended" not in ray.told


def test_a_helper_that_dies_is_told_and_its_shard_is_made_by_others(
    tmp_path: Path, wanted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "START", multiprocessing.get_context("fork"))
    mine, count, died = os.getpid(), labelling.Tally.label, tmp_path / "died"

    def die(*arguments: Any) -> None:
        if os.getpid() != mine:
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        while not died.exists():
            time.sleep(0.005)
        count(*arguments)

    monkeypatch.setattr(labelling.Tally, "label", die)
    shown, log = io.StringIO(), tmp_path / "log"
    label(small_work(log=log), tmp_path / "store", engine=Engine(workers=2), progress=Progress(shown))
    assert "note: a labelling process ended by signal 9; the others take over its shards" in shown.getvalue()
    assert contents(tmp_path / "store") == wanted
    assert 0 < redone(log) <= SHARD


@pytest.mark.parametrize(
    ("number", "device", "wanted"),
    [(1, "cpu", "cpu"), (1, "cuda", "cuda:1"), (3, "cuda:2", "cuda:1"), (4, "cuda", "cuda:0")],
)
def test_workers_take_the_accelerators_in_turn(monkeypatch, number, device, wanted):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert engines._device_of(number, torch.device(device)) == wanted
