"""Who does a labelling pass: this process, several of this machine, any number on a shared folder, or a Ray cluster.

All of them leave the same bytes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkContext, SpawnContext
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from tutelage.errors import UserError
from tutelage.jobs import end_with_parent
from tutelage.labels.claims import SetAsideFunction
from tutelage.labels.labelling import LabellingReport, label_pool
from tutelage.labels.leases import PATIENCE, Patience
from tutelage.labels.work import Work
from tutelage.parcel import Parcel, pack
from tutelage.part import Part
from tutelage.progress import Progress


class Engine(Part):
    """What labels a pool; it decides nothing about the labels."""

    kind: Literal["local", "ray"] = "local"
    """`local`: processes of this machine; `ray`: actors of a Ray cluster (`pip install 'ray>=2.40'`)."""
    workers: int = Field(1, ge=1)
    """How many processes or actors, each with all teachers; 1 local one is this process itself."""
    decoders: int = Field(1, ge=1)
    """Threads a worker that read images, and as many that compress labels. With more than one, sources of your own must
    bear being read by several threads."""
    address: str | None = None
    """Ray only: the cluster's address ("auto", or "ray://host:port"); without one, a Ray of this machine is started and
    ended."""
    gpus: float | None = Field(None, ge=0)
    """Ray only: GPUs an actor; by default 1 where the teachers work on CUDA, else none."""


LOCAL = Engine()
"""This process alone."""

START: SpawnContext | ForkContext = multiprocessing.get_context("spawn")
"""How helpers are started: afresh, because a fork would inherit torch's threads."""


def label(
    work: Work,
    root: Path,
    *,
    engine: Engine = LOCAL,
    device: torch.device | None = None,
    progress: Progress | None = None,
    quarantine: SetAsideFunction | None = None,
    patience: Patience = PATIENCE,
) -> LabellingReport:
    """Do a labelling pass, or what is left of it.

    Args:
        work: what is labelled, and by whom.
        root: the store's folder.
        engine: who does it. Other processes may do `join` on the same folder meanwhile.
        device: where the teachers work; the CPU by default. Several local workers on "cuda" take the devices in turn.
        progress: where the bar is shown; it counts what all workers make.
        quarantine: told of every image or prediction that is set aside.
        patience: how long processes wait for each other.

    Returns:
        What became of the images; when it returns, all shards and manifests are there.

    Raises:
        UserError: as `label_pool`; Ray is asked for and is not installed.
    """
    device = torch.device("cpu") if device is None else device
    if engine.kind == "ray":
        from tutelage.labels.ray import label_on_ray

        gpus = engine.gpus if engine.gpus is not None else float(device.type == "cuda")
        return label_on_ray(
            work,
            root,
            workers=engine.workers,
            decoders=engine.decoders,
            address=engine.address,
            gpus=gpus,
            device=device,
            progress=progress,
            quarantine=quarantine,
            patience=patience,
        )
    with _helpers(work, root, engine, device, patience, progress) as watch:
        return join(
            work,
            root,
            device=device,
            decoders=engine.decoders,
            progress=progress,
            quarantine=quarantine,
            patience=patience,
            watch=watch,
        )


def join(
    work: Work,
    root: Path,
    *,
    device: torch.device | None = None,
    decoders: int = 1,
    progress: Progress | None = None,
    quarantine: SetAsideFunction | None = None,
    patience: Patience = PATIENCE,
    watch: Callable[[], None] | None = None,
) -> LabellingReport:
    """Do a labelling pass in this process, together with all that do the same on the same folder, on any machine.

    Every process returns when all shards are there; any of them may be killed, and any may begin later.

    Args:
        work: the same for all.
        root: the store's folder, the same for all.
        device: where the teachers work; the CPU by default.
        decoders: as `Engine.decoders`.
        progress: where the bar is shown; it counts what all make.
        quarantine: told of every image or prediction that is set aside, by whomever.
        patience: how long processes wait for each other.
        watch: called before every shard; what it raises ends the pass.

    Raises:
        UserError: as `label_pool`.
    """
    return label_pool(
        work.datasets(),
        work.load(torch.device("cpu") if device is None else device),
        root,
        work.settings,
        limit=work.limit,
        decoders=decoders,
        progress=progress,
        quarantine=quarantine,
        patience=patience,
        watch=watch,
    )


@dataclass(frozen=True)
class _Helper:
    """A process that helps.

    Attributes:
        process: itself.
        line: on which it says what is wrong.
        gate: 0 while it starts, 1 when it has begun, 2 when it need not begin any more.
    """

    process: multiprocessing.process.BaseProcess
    line: connection.Connection
    gate: Synchronized[int]

    def said(self) -> str | None:
        """What is wrong, once it has said so."""
        try:
            return str(self.line.recv()) if self.line.poll() else None
        except (EOFError, OSError):
            return None

    def send_home(self) -> None:
        """All shards are there: stop it, unless it has begun; then it ends soon, and tidies up."""
        with self.gate.get_lock():
            idle = self.gate.value == 0
            self.gate.value = 2 if idle else self.gate.value
        if idle:
            self.process.terminate()
        self.process.join()


class _Watch:
    """Looks after the helpers: an error of one ends the pass, a death is said, and its shards are taken over."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._helpers: list[_Helper] = []

    def add(self, helper: _Helper) -> None:
        self._helpers.append(helper)

    def __call__(self) -> None:
        for helper in list(self._helpers):
            said, code = helper.said(), helper.process.exitcode
            if said is not None:
                raise UserError(said)
            if code is not None:
                self._helpers.remove(helper)
                if code != 0:
                    how = f"signal {-code}" if code < 0 else f"exit code {code}"
                    self._say(f"a labelling process ended by {how}; the others take over its shards")

    def dismiss(self) -> None:
        """The pass is done."""
        for helper in self._helpers:
            helper.send_home()
            said = helper.said()
            if said is not None:
                self._say(f"a labelling process had stopped, the others did without it: {said}")

    def stop(self) -> None:
        """The pass has failed."""
        for helper in self._helpers:
            helper.process.terminate()
        for helper in self._helpers:
            helper.process.join()

    def _say(self, text: str) -> None:
        if self._progress is not None:
            self._progress.say(f"note: {text}")


@contextlib.contextmanager
def _helpers(
    work: Work, root: Path, engine: Engine, device: torch.device, patience: Patience, progress: Progress | None
) -> Iterator[_Watch | None]:
    """All workers but the first, as processes that end with this one; each, this one too, has its share of threads."""
    if engine.workers == 1:
        yield None
        return
    parcel, watch, threads = pack(work), _Watch(progress), torch.get_num_threads()
    share = max(1, (os.cpu_count() or 1) // engine.workers)
    try:
        for number in range(1, engine.workers):
            line, other_end = START.Pipe(duplex=False)
            gate = START.Value("i", 0)
            where = _device_of(number, device)
            arguments = (other_end, gate, parcel, str(root), where, share, engine.decoders, patience)
            process = START.Process(target=_help, args=arguments, daemon=True, name=f"label-{number}")
            process.start()
            other_end.close()
            watch.add(_Helper(process, line, gate))
        torch.set_num_threads(min(share, threads))
        yield watch
        watch.dismiss()
    except BaseException:
        watch.stop()
        raise
    finally:
        torch.set_num_threads(threads)


def _device_of(number: int, device: torch.device) -> str:
    if device.type != "cuda":
        return str(device)
    return f"cuda:{((device.index or 0) + number) % torch.cuda.device_count()}"


def _help(
    line: connection.Connection,
    gate: Synchronized[int],
    parcel: Parcel,
    root: str,
    device: str,
    threads: int,
    decoders: int,
    patience: Patience,
) -> None:
    """A helper's whole life."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        work = parcel.unpack()
        with gate.get_lock():
            if gate.value == 2:
                return
            gate.value = 1
        join(work, Path(root), device=torch.device(device), decoders=decoders, patience=patience)
    except UserError as error:
        line.send(str(error))
