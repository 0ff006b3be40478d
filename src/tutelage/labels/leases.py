"""Who makes which shard, among any number of processes on a shared folder, without a server.

    <folder>/alive-<process>            what it works on, and a number that it raises every few seconds
    <folder>/<name>.<generation>        a lease; holds the process that owns it

A lease is created exclusively: a file of its own is linked to the lease's name, which NFS does in one step. A lease
whose owner is gone is taken over by creating the next generation, exclusively again.

Leases only save work: what is made under them is committed atomically and has the same bytes whoever makes it, so
that a mistake here costs time and no label. No clock is compared with another machine's. An observer takes a process
for dead when it has seen its number unchanged for `patience` seconds of its own clock, and counts long gaps between
two looks, in which it may have been asleep itself, as short ones. A dead process of its own machine it knows at once.
A process that hangs for ever and still shows life keeps its shard: it has to be ended by hand, or by the batch system.
"""

from __future__ import annotations

import abc
import errno
import hashlib
import os
import re
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tutelage.errors import UserError
from tutelage.files import room_for

_ALIVE = "alive-"
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EACCES)
_POLL = 0.2


@dataclass(frozen=True)
class Patience:
    """How long processes wait for each other.

    Attributes:
        beat: seconds between two signs of life.
        dead: seconds without one, after which a process of another machine is taken for dead. It must be well above
            `beat` and above the time that the shared folder may hide a change (NFS: some ten seconds).
    """

    beat: float = 5.0
    dead: float = 60.0


PATIENCE = Patience()
"""What is used where nothing else is asked for."""


class Rights(abc.ABC):
    """Who may make what."""

    @abc.abstractmethod
    def claim(self, name: str) -> bool:
        """Whether this process may make `name` now. Never waits."""

    @abc.abstractmethod
    def taken(self) -> set[str]:
        """The names that other living processes hold at this moment."""

    @abc.abstractmethod
    def release(self, name: str) -> None:
        """Give a name back."""

    @abc.abstractmethod
    def confirm(self) -> None:
        """Before something is written. Raises UserError where it must not be."""


class Unquestioned(Rights):
    """The rights of a worker that does what one process tells it, which holds the leases."""

    def claim(self, name: str) -> bool:
        return True

    def taken(self) -> set[str]:
        return set()

    def release(self, name: str) -> None:
        return

    def confirm(self) -> None:
        return


@dataclass
class _Sight:
    """What was last seen of a process, when, and for how long it has been the same."""

    content: str | None
    last: float
    unchanged: float = 0.0


class Leases(Rights):
    """The leases of one process; a context manager.

    On entering it shows that it is alive, and refuses to work beside another kind of work. On leaving it gives back
    what it holds, and the last one takes the folder away.

    Attributes:
        me: this process, a name that no other process anywhere has.
        alone: after leaving: whether no other process is at work, so that its debris may be taken away.
    """

    def __init__(self, folder: Path, work: str, patience: Patience = PATIENCE) -> None:
        """Nothing is written before entering.

        Args:
            folder: of the leases, shared by all.
            work: fingerprint of what is made; processes of another work are refused while one is at it.
            patience: how long processes wait for each other.
        """
        self.folder, self.work, self.patience = folder, work, patience
        self.me = f"{_machine()}-{os.getpid()}-{_status(os.getpid())[1]}-{uuid.uuid4().hex[:12]}"
        self.alone = False
        self._held: dict[str, int] = {}
        self._sights: dict[str, _Sight] = {}
        self._known_dead: set[str] = set()
        self._counter = 0
        self._end, self._buried = threading.Event(), threading.Event()
        self._beating = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Leases:
        self._appear()
        self._beating.start()
        try:
            self._refuse_other_work()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._beating.join()
        for name in list(self._held):
            self.release(name)
        self._alive(self.me).unlink(missing_ok=True)
        self.alone = self._is_last(wait=kind is None)
        if self.alone:
            for file in self._files():
                if not file.name.startswith(_ALIVE):  # a process that begins just now
                    file.unlink(missing_ok=True)
            self._remove_folder()

    # Leases -------------------------------------------------------------------------------------------------

    def claim(self, name: str) -> bool:
        """As `Rights.claim`: nobody else has it, or who had it is gone."""
        latest = max(self._generations(name), default=-1)
        if latest >= 0:
            owner = self._owner(f"{name}.{latest}")
            if owner == self.me:
                return True
            if owner is not None and not self._dead(owner):
                return False
        if not self._create(f"{name}.{latest + 1}"):
            return False
        self._held[name] = latest + 1
        return True

    def taken(self) -> set[str]:
        found: dict[str, int] = {}
        for file in self._files():
            name, _, generation = file.name.rpartition(".")
            if generation.isdecimal() and not name.startswith("."):
                found[name] = max(found.get(name, 0), int(generation))
        owners = {name: self._owner(f"{name}.{generation}") for name, generation in found.items()}
        return {n for n, owner in owners.items() if owner is not None and owner != self.me and not self._dead(owner)}

    def release(self, name: str) -> None:
        """As `Rights.release`; the leases of the dead that it was taken over from go as well."""
        mine = self._held.pop(name, None)
        if mine is not None:
            for generation in sorted(self._generations(name)):
                if generation <= mine:
                    (self.folder / f"{name}.{generation}").unlink(missing_ok=True)

    def confirm(self) -> None:
        """As `Rights.confirm`: this process may have been taken for dead, and other work may have begun since."""
        if self._buried.is_set() or not self._alive(self.me).exists():  # the next beat may be seconds away
            self._buried.clear()
            self._appear()
            self._refuse_other_work()

    def _generations(self, name: str) -> list[int]:
        ends = (file.name.removeprefix(f"{name}.") for file in self._files() if file.name.startswith(f"{name}."))
        return [int(end) for end in ends if end.isdecimal()]

    def _owner(self, lease: str) -> str | None:
        """The process that holds a lease; one that nobody is where a crash of its machine left no name."""
        owner = self._read(self.folder / lease)
        return owner if owner is None or re.fullmatch(r"[A-Za-z0-9._-]+", owner) else "nobody"

    def _create(self, name: str) -> bool:
        target, own = self.folder / name, self.folder / f".{self.me}.lease"
        with room_for(target):
            for attempt in range(2):
                try:
                    own.write_text(self.me, encoding="ascii")
                    os.link(own, target)
                    return True
                except FileExistsError:
                    return own.stat().st_nlink == 2  # NFS: it was done, and the answer was lost
                except FileNotFoundError:  # the last one to leave took the folder away
                    if attempt:
                        raise
                    self._appear()
                except OSError as error:
                    if error.errno not in _NO_LINKS:
                        raise
                    return self._create_without_links(target)
                finally:
                    own.unlink(missing_ok=True)
        raise AssertionError

    def _create_without_links(self, target: Path) -> bool:
        try:
            with target.open("x", encoding="ascii") as stream:
                stream.write(self.me)
        except FileExistsError:
            return False
        return True

    # Life and death -----------------------------------------------------------------------------------------

    def _alive(self, process: str) -> Path:
        return self.folder / f"{_ALIVE}{process}"

    def _sign(self) -> str:
        return f"{self.work} {self._counter:012d}"

    def _appear(self) -> None:
        with room_for(self.folder):
            for _ in range(10):
                try:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    own = self.folder / f".{self.me}.sign"  # nobody must see half a sign
                    own.write_text(self._sign(), encoding="ascii")
                    own.replace(self._alive(self.me))
                    return
                except FileNotFoundError:  # between the two, the last one to leave took the folder away
                    continue
        raise UserError("the folder is taken away again and again", file=self.folder, fix="run again")

    def _beat(self) -> None:
        while not self._end.wait(self.patience.beat):
            self._counter += 1
            try:
                with self._alive(self.me).open("r+", encoding="ascii") as stream:
                    stream.write(self._sign())
            except FileNotFoundError:
                self._buried.set()
            except OSError:  # a full disk or a server that is away: others may take over, and no label is lost
                continue

    def _dead(self, process: str) -> bool:
        """Whether a process is certainly gone; to be asked now and then, each time is a look."""
        if process == self.me:
            return False
        if process in self._known_dead or _gone(process):
            return True
        content, now = self._read(self._alive(process)), time.monotonic()
        sight = self._sights.get(process)
        if sight is None or sight.content != content:
            self._sights[process] = _Sight(content, now)
            return False
        sight.unchanged += min(now - sight.last, self.patience.dead / 4)
        sight.last = now
        if sight.unchanged >= self.patience.dead:
            self._known_dead.add(process)
        return process in self._known_dead

    def _others(self) -> list[str]:
        """The other processes that have shown themselves here, and have not left."""
        names = (file.name.removeprefix(_ALIVE) for file in self._files() if file.name.startswith(_ALIVE))
        return [name for name in names if name != self.me]

    def _refuse_other_work(self) -> None:
        first = {process: self._read(self._alive(process)) for process in self._others()}
        strange = {p: sign for p, sign in first.items() if sign is not None and sign.split(" ")[0] != self.work}
        while strange:
            for process, sign in list(strange.items()):
                if self._dead(process):
                    self._alive(process).unlink(missing_ok=True)
                    del strange[process]
                elif _here(process) or self._read(self._alive(process)) not in (sign, None):
                    raise UserError(
                        "another labelling pass, with other images, teachers or settings, is at work in this folder",
                        file=self.folder.parent,
                        record=process,
                        fix="wait for its end or end it, or label into another folder",
                    )
                elif not self._alive(process).exists():
                    del strange[process]
            if strange:
                time.sleep(min(_POLL, self.patience.dead / 10))

    def _is_last(self, wait: bool) -> bool:
        """Whether all others are gone. Those that show life will look themselves when they leave."""
        first: dict[str, str | None] = {}
        while others := self._others():
            for process in others:
                sign = self._read(self._alive(process))
                if self._dead(process):
                    self._alive(process).unlink(missing_ok=True)
                elif _here(process) or first.setdefault(process, sign) != sign or not wait:
                    return False
            time.sleep(min(_POLL, self.patience.dead / 10))
        return True

    # Files --------------------------------------------------------------------------------------------------

    def _files(self) -> list[Path]:
        try:
            return list(self.folder.iterdir())
        except FileNotFoundError:
            return []

    def _read(self, file: Path) -> str | None:
        try:
            return file.read_text(encoding="ascii", errors="replace")
        except OSError:
            return None

    def _remove_folder(self) -> None:
        try:
            self.folder.rmdir()
        except OSError:  # it is not empty: somebody has just begun
            return


def _machine() -> str:
    """This boot of this machine, and its numbering of processes: where a process number means what it means here."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        seen = f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux: no process is ever known to be of this machine, which costs patience only
        seen = uuid.uuid4().hex
    name = re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname())
    return f"{hashlib.sha256(seen.encode()).hexdigest()[:12]}.{name}"


def _status(pid: int) -> tuple[str, str]:
    """The state of a process of this machine (Z: killed, and not yet buried), and the clock tick at which it began."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", ""
    fields = text.rpartition(")")[2].split()
    return fields[0], fields[19]


def _here(process: str) -> bool:
    return process.startswith(f"{_machine()}-")


def _gone(process: str) -> bool:
    """Whether it was a process of this machine, and is no more."""
    if not _here(process):
        return False
    _, pid, begun, _ = process.split("-")
    state, now = _status(int(pid))
    return state in ("", "Z", "X") or now != begun
