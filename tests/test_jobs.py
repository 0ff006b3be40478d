"""Work side by side: what dies, dies alone. (The same on Ray: test_engines.py, which starts one.)"""

import io
import os
import pickle
import signal
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch

from tutelage.errors import UserError
from tutelage.jobs import Jobs, ReportingProgress, _unpack_and_work, share_of
from tutelage.parcel import pack
from tutelage.progress import SILENT, Progress
from tutelage.threads import Threads
from tutelage.training.processes import device


def double(number: int) -> int:
    """Twice the number; 13 ends the process, 99 is refused."""
    time.sleep(0.05)
    if number == 13:
        os._exit(3)
    if number == 99:
        raise UserError("this number is refused", value=number)
    return 2 * number


def buried(number: int) -> int:
    return -number


def test_a_call_whose_process_dies_does_not_take_others_with_it():
    numbers = [1, 13, 2, 3]
    calls = [(number,) for number in numbers]
    with Jobs(2) as jobs, SILENT.bar("", 1) as bar:
        found = jobs.map(double, calls, [1] * len(calls), bar, buried)
        assert found == [-13 if number == 13 else 2 * number for number in numbers]
        with pytest.raises(UserError, match="this number is refused"):
            jobs.map(double, [(1,), (99,), (2,)], [1] * 3, bar, buried)


def meet(folder: Path, number: int) -> str | None:
    """The number of the worker, told when another one is at work as well."""
    (folder / str(number)).touch()
    while len(list(folder.iterdir())) < 2:
        time.sleep(0.01)
    return os.environ.get("LOCAL_RANK")


def test_workers_are_numbered_and_take_the_accelerators_in_turn(tmp_path, monkeypatch):
    with Jobs(2) as jobs, SILENT.bar("", 2) as bar:
        assert sorted(jobs.map(meet, [(tmp_path, 1), (tmp_path, 2)], [1, 1], bar)) == ["0", "1"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for number, index in (("0", 0), ("1", 1), ("2", 0), (None, 0)):
        monkeypatch.setenv("LOCAL_RANK", number) if number else monkeypatch.delenv("LOCAL_RANK")
        assert device() == torch.device("cuda", index)


def test_without_a_burial_a_death_ends_everything():
    with Jobs(2) as jobs, SILENT.bar("", 1) as bar, pytest.raises(Exception, match="a worker process ended"):
        jobs.map(double, [(1,), (13,)], [1, 1], bar)


def linger(folder: Path, number: int) -> None:
    """Waits for another one; 0 is then refused, all others would write on for ever."""
    meet(folder, number)
    if number == 0:
        raise UserError("refused", value=number)
    while True:
        (folder / "written").touch()
        time.sleep(0.01)


def test_nobody_writes_on_after_a_call_has_failed(tmp_path):
    with Jobs(2) as jobs, SILENT.bar("", 2) as bar:
        with pytest.raises(UserError, match="refused"):
            jobs.map(linger, [(tmp_path, 0), (tmp_path, 1)], [1, 1], bar)
        (tmp_path / "written").unlink(missing_ok=True)
        assert jobs.map(double, [(1,), (2,)], [1, 1], bar) == [2, 4]
        assert not (tmp_path / "written").exists()


def whoami(number: int) -> int:
    time.sleep(0.2)
    return os.getpid()


def test_a_process_that_ends_while_it_has_nothing_to_do_is_replaced():
    with Jobs(2) as jobs, SILENT.bar("", 2) as bar:
        known = jobs.map(whoami, [(1,), (2,)], [1, 1], bar)
        os.kill(known[0], signal.SIGKILL)
        with pytest.raises(BrokenProcessPool):  # its death has been noticed, however busy the machine is
            ask_for_ever(jobs._pool)
        assert jobs.map(double, [(1,), (2,)], [1, 1], bar) == [2, 4]


def outspoken(progress: Progress, number: int) -> int:
    """Tells how much is done at each of its steps, and a note at the end."""
    with progress.bar("", number) as bar, progress.bar("", 1, "sets") as other:
        for _ in range(number):
            bar.advance()
        other.advance()
    progress.say(f"note: {number} is done")
    return number


def test_what_workers_say_is_shown_once_before_their_results():
    stream, numbers = io.StringIO(), [3, 5, 7, 9]
    progress = ReportingProgress("images")
    with Jobs(2) as jobs:
        for _ in range(2):  # what the first map's workers said is not left for the second
            with Progress(stream).bar("all", sum(numbers)) as bar:
                assert jobs.map(outspoken, [(progress, number) for number in numbers], numbers, bar) == numbers
                assert bar.done == sum(numbers)
            said = [line for line in stream.getvalue().splitlines() if line.startswith("note")]
            assert sorted(said) == [f"note: {number} is done" for number in numbers]
            stream.truncate(0)
            stream.seek(0)


def test_a_task_of_a_cluster_brings_what_was_said_with_its_result(monkeypatch):
    monkeypatch.setattr("tutelage.jobs._reports", None)
    parcel = pack((outspoken, (ReportingProgress("images"), 4)))
    for _ in range(2):
        assert _unpack_and_work(pickle.loads(pickle.dumps(parcel))) == (4, ["note: 4 is done"])


def begun(pool_of, work):
    """Its one piece of work, begun; then whatever comes when it is closed."""
    with pool_of(1) as pool:
        yield pool.submit(work)


def test_an_abandoned_generator_waits_for_no_thread_and_a_finished_one_for_all():
    go = threading.Event()
    generator = begun(Threads, lambda: go.wait(2))
    future = next(generator)
    generator.close()
    assert not future.done()
    go.set()
    futures = list(begun(Threads, lambda: time.sleep(0.05)))
    assert futures[0].done()


def test_a_cluster_shares_out_its_accelerators_so_that_all_work_at_once():
    for gpus in range(1, 9):
        for count in range(1, 20):
            share = share_of(gpus, count)
            assert gpus * int(1 / share) >= count, "no worker sits on parts of two"
            assert share <= 1
    assert share_of(8, 8) == 1
    assert share_of(1, 4) == 0.25
    assert share_of(0, 4) == 0


def ask_for_ever(pool):
    while True:
        pool.submit(os.getpid).result()
