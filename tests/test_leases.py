"""Leases: one owner at a time, none for ever, no clock of another machine; a mistake costs work, never a label."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from kill_labelling import QUICK, STEADY

from tutelage.errors import UserError
from tutelage.labels import leases as module
from tutelage.labels.leases import Leases, Patience


def stranger(folder: Path, work: str = "work", patience: Patience = QUICK) -> Leases:
    """A process of another machine, as far as anybody can see; it shows no life before it is entered."""
    other = Leases(folder, work, patience)
    other.me = "othermachine.host-1-1-" + other.me.rpartition("-")[2]
    return other


def until(true: object, seconds: float = 5.0) -> bool:
    """Whether something becomes true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / ".leases"
    with Leases(folder, "work") as a, Leases(folder, "work") as b:
        assert a.claim("x")
        assert a.claim("x"), "its own"
        assert not b.claim("x")
        assert b.claim("y")
        assert (a.taken(), b.taken()) == ({"y"}, {"x"})
        a.release("x")
        assert b.claim("x")
        assert not a.claim("x")
    assert (a.alone, b.alone) == (True, False)
    assert not folder.exists(), "the last one takes the folder away"


def test_who_was_buried_knows_it_before_the_next_beat(tmp_path: Path) -> None:
    with Leases(tmp_path / "l", "work", STEADY) as a:
        a.confirm()
        a._alive(a.me).unlink()
        a.confirm()
        assert a._alive(a.me).exists()
        a._alive(a.me).unlink()
        other = Leases(a.folder, "other work", STEADY)
        other._appear()
        with pytest.raises(UserError, match="another labelling pass"):
            a.confirm()
        other._alive(other.me).unlink()


def test_many_claim_at_once_and_one_gets_it(tmp_path: Path) -> None:
    with Leases(tmp_path / "l", "work") as a:
        others = [stranger(a.folder) for _ in range(8)]
        for other in others:
            other._appear()
        won: list[str] = []
        start = threading.Barrier(9)

        def claim(who: Leases) -> None:
            start.wait()
            for name in map(str, range(40)):
                if who.claim(name):
                    won.append(name)

        threads = [threading.Thread(target=claim, args=(who,)) for who in (a, *others)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(won, key=int) == [str(n) for n in range(40)]
        for other in others:
            other._alive(other.me).unlink()


def test_a_killed_process_of_this_machine_is_known_at_once(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        held = Leases(tmp_path, "work", STEADY)
        held._appear()
        held.claim("x")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # killed, and still a zombie
    with Leases(tmp_path / ".", "work", STEADY) as leases:
        assert leases.taken() == set()
        assert leases.claim("x")
    os.waitpid(child, 0)


def test_a_silent_process_of_another_machine_is_given_up_after_its_time(tmp_path: Path) -> None:
    dead = stranger(tmp_path)
    dead._appear()
    assert dead.claim("x")
    with Leases(tmp_path, "work", QUICK) as leases:
        begun = time.monotonic()
        assert not leases.claim("x")
        assert until(lambda: leases.claim("x"))
        assert time.monotonic() - begun >= QUICK.dead
        assert sorted(file.name for file in tmp_path.glob("x.*")) == ["x.0", "x.1"], "the next generation"
        leases.release("x")
        assert not list(tmp_path.glob("x.*"))
    assert leases.alone
    assert not list(tmp_path.glob("*")), "what the dead one left is gone as well"


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"no process"])
def test_a_lease_that_a_crash_of_a_machine_left_without_content(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.0").write_bytes(content)
    with Leases(tmp_path, "work", Patience(0.05, 0.1)) as leases:
        assert not leases.claim("x")
        assert until(lambda: leases.claim("x"))


def test_nobody_sees_half_a_sign_of_life(tmp_path: Path) -> None:
    """An empty one would look like that of another work."""
    leases, seen, end = Leases(tmp_path, "work", QUICK), set[str](), threading.Event()
    leases._appear()

    def look() -> None:
        while not end.is_set():
            seen.add(leases._alive(leases.me).read_text())

    watcher = threading.Thread(target=look)
    watcher.start()
    for _ in range(300):
        leases._appear()
    end.set()
    watcher.join()
    assert seen == {leases._sign()}


def test_a_slow_process_that_shows_life_keeps_its_lease(tmp_path: Path) -> None:
    with stranger(tmp_path) as slow, Leases(tmp_path, "work", QUICK) as leases:
        assert slow.claim("x")
        assert not until(lambda: leases.claim("x"), 3 * QUICK.dead)


def test_an_observer_that_was_asleep_does_not_take_others_for_dead(tmp_path: Path, monkeypatch: object) -> None:
    """Its own clock jumps by an hour between two looks: that is at most a quarter of the patience."""
    slow = stranger(tmp_path)
    slow._appear()
    slow.claim("x")
    leases = Leases(tmp_path, "work", STEADY)
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])  # type: ignore[attr-defined]
    assert not leases.claim("x")
    for _ in range(3):
        now[0] += 3600
        assert not leases.claim("x")
    now[0] += 3600
    leases._appear()
    assert leases.claim("x")


@pytest.mark.parametrize("clock", [-1e6, 1e6])
def test_clocks_do_not_matter(clock: float, tmp_path: Path) -> None:
    """Files with times from another century change nothing."""
    with stranger(tmp_path) as other, Leases(tmp_path, "work", QUICK) as leases:
        other.claim("x")
        for _ in range(3):
            for file in tmp_path.iterdir():
                os.utime(file, (time.time() + clock, time.time() + clock))
            assert not leases.claim("x")
            time.sleep(0.2)


def test_two_that_take_over_at_once_do_not_both_get_it(tmp_path: Path) -> None:
    dead = stranger(tmp_path)
    dead._appear()
    dead.claim("x")
    with Leases(tmp_path, "work", QUICK) as a, Leases(tmp_path, "work", QUICK) as b:
        for who in (a, b):
            who._known_dead.add(dead.me)
        assert [a.claim("x"), b.claim("x")] == [True, False]


def test_a_filesystem_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(module.os, "link", refuse)
    with Leases(tmp_path / "l", "work") as a, Leases(tmp_path / "l", "work") as b:
        assert a.claim("x")
        assert not b.claim("x")
    assert not (tmp_path / "l").exists()


def test_a_link_whose_answer_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def forget(*names: Path) -> None:
        link(*names)
        raise FileExistsError

    monkeypatch.setattr(module.os, "link", forget)
    with Leases(tmp_path, "work") as leases:
        assert leases.claim("x")


def test_other_work_is_refused_while_somebody_is_at_it(tmp_path: Path) -> None:
    with (
        Leases(tmp_path, "a", QUICK) as first,
        pytest.raises(UserError, match="another labelling pass"),
        Leases(tmp_path, "b", QUICK),
    ):
        pass
    with (
        stranger(tmp_path, "a"),
        pytest.raises(UserError, match="another labelling pass"),
        Leases(tmp_path, "b", QUICK),
    ):
        pass
    dead = stranger(tmp_path, "a")
    dead._appear()
    with Leases(tmp_path, "b", QUICK):
        assert not dead._alive(dead.me).exists()
        with pytest.raises(UserError, match="another labelling pass"):  # back from a long sleep
            until(lambda: (dead._buried.set(), dead.confirm()))
    assert first.alone


def test_one_that_was_taken_for_dead_shows_itself_again(tmp_path: Path) -> None:
    with Leases(tmp_path, "work", QUICK) as leases:
        leases._alive(leases.me).unlink()
        assert until(leases._buried.is_set)
        leases.confirm()
        assert leases._alive(leases.me).is_file()


def test_two_that_leave_at_once_leave_nothing(tmp_path: Path) -> None:
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        both = [Leases(folder, "work", QUICK).__enter__(), Leases(folder, "work", QUICK).__enter__()]
        threads = [threading.Thread(target=who.__exit__, args=(None, None, None)) for who in both]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not folder.exists()
