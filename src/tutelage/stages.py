"""A run's folder: one sub-folder a stage. Finished stages are never done twice; a changed recipe is refused, unless
it asks for other rows, columns or seeds alone.

A stage folder holds `stage.json` (its part of the recipe and what it was made from) from its beginning and
`done.json` from its end.
"""

from __future__ import annotations

import difflib
import fcntl
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

from tutelage.errors import UserError
from tutelage.files import read_json_lines, writable, write_json, write_json_lines, write_text
from tutelage.jobs import Jobs, ReportingProgress
from tutelage.part import changed, fingerprint, to_yaml, yaml_to_plain
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.training.processes import barrier, rank, world

R = TypeVar("R")

OPEN = ("baselines", "first_row", "initialisations", "leave_one_out", "seeds", "study", "sweep", "transfer")
"""What may change in the folder of a run: each of its stages says what it was made from, and none is made from all."""


@dataclass
class Stage:
    """One stage of a run.

    Attributes:
        name: its path below the run's folder.
        folder: where everything it makes lies.
        fingerprint: of its part of the recipe and of the stages it was made from.
        finished: whether it need not be done.
    """

    name: str
    folder: Path
    fingerprint: str
    finished: bool
    _start: float = field(default_factory=time.monotonic)

    def begin(self, spent: float = 0.0) -> None:
        """Its clock starts now, where it was opened long before its work; `spent` seconds went into it elsewhere."""
        self._start = time.monotonic() - spent

    def finish(self, **counts: Any) -> None:
        """Mark it as done; the first process only."""
        if rank() == 0:
            write_json(
                self.folder / "done.json",
                {
                    "seconds": round(time.monotonic() - self._start, 3),
                    "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                    "fingerprint": self.fingerprint,
                    "machine": _machine(),
                    "versions": {name: version(name) for name in ("tutelage", "torch", "torchvision", "timm")},
                    "counts": counts,
                },
            )
            (self.folder / "checkpoint.pt").unlink(missing_ok=True)
        barrier()
        self.finished = True


class Run:
    """A run's folder, opened with the recipe that made it or will make it; a context manager, which holds its lock.

    Attributes:
        root: the outermost folder of runs inside one another; its own where it is in none.
        cache: derived files that can be made again: rendered scenes, decoded images, indices.
        note: of a run inside another: what tells its measurements from those around it, or "".
        variant: the column of its measurements on held-out sources, or "": they are named after heads.
        common: a folder for stages that several runs inside one may share; None: there is only one.
        shared: whether other processes, on any machine, work in the folder as well; the lock is then not held, and
            nothing is done but what they can share (labelling).
    """

    def __init__(
        self, folder: Path, recipe: Recipe, progress: Progress, jobs: int | Jobs = 1, *, shared: bool = False
    ) -> None:
        """Open or begin a run.

        Args:
            folder: of the run.
            recipe: what is run.
            progress: where progress is shown.
            jobs: processes that do independent stages side by side, or who does them; 1: no further process is started.
            shared: leave the lock to others, see the attribute.

        Raises:
            UserError: stages here were made by another recipe (the difference is shown), or it is something else, or
                another process is working in it.
        """
        recipe = recipe.but(model=recipe.model.resolved(Path(recipe.data)))
        self.folder, self.recipe, self.shared = folder, recipe, shared
        self.root = folder
        self.cache, self.note, self.variant = folder / "cache", "", ""
        self.common: Path | None = None
        self._opened: set[Path] = set()
        self.jobs = Jobs(1) if world() > 1 else Jobs(jobs) if isinstance(jobs, int) else jobs
        self.progress = progress if rank() == 0 else Progress(None)
        path, text = folder / "recipe.yaml", to_yaml(recipe.plain())
        if path.is_file():
            before = path.read_text(encoding="utf-8")
            if before != text and (shared or (_made(folder) and _lasting(before) != _lasting(text))):
                lines = difflib.unified_diff(
                    before.splitlines(), text.splitlines(), "this run", "your recipe", lineterm="", n=2
                )
                fix = "give another --out, or take the change back"
                raise UserError(
                    "this folder was made by another recipe:\n" + "\n".join(lines),
                    file=path,
                    fix=fix if shared else f"{fix}; only {', '.join(OPEN)} may change",
                )
        elif folder.exists() and (not folder.is_dir() or any(_visible(folder, shared))):
            raise UserError(
                "this is not the folder of a run, and it is not empty", file=folder, fix="give another --out"
            )
        barrier()
        if rank() == 0:
            with writable(folder):
                folder.mkdir(parents=True, exist_ok=True)
                self._lock = None if shared else _lock(folder)
                if not path.is_file() or path.read_text(encoding="utf-8") != text:
                    write_text(path, text)
        barrier()

    def __getstate__(self) -> dict[str, Any]:
        """As a worker of `jobs` sees it: progress is reported to the process that started it."""
        kept = {name: value for name, value in vars(self).items() if name != "_lock"}
        return kept | {"_opened": set(), "progress": ReportingProgress("images"), "jobs": Jobs(1)}

    def each(
        self,
        label: str,
        work: Callable[..., R],
        calls: Sequence[Sequence[Any]],
        images: Sequence[int],
        died: Callable[..., R] | None = None,
    ) -> list[R]:
        """The results of `work(self, *call)` for every call, side by side where the run has several jobs.

        Args:
            label: of the bar.
            work: a function of a module; in a worker it gets this run with progress reported to here.
            calls: its further arguments, which must be picklable.
            images: how many images each call handles, for the bar.
            died: the result of a call whose process ended while it ran, as of `Jobs.map`.
        """
        if type(self.jobs) is Jobs and (self.jobs.count == 1 or len(calls) < 2):
            return [work(self, *call) for call in calls]
        with self.progress.bar(label, sum(images)) as bar:
            return self.jobs.map(work, [(self, *call) for call in calls], images, bar, died)

    def __enter__(self) -> Run:
        self.jobs.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.jobs.__exit__(kind, error, trace)
        if rank() == 0 and self._lock is not None:
            self._lock.close()

    def again(self, seed: int) -> Run:
        """The same run with another seed, in a folder below this one."""
        return self.below(f"repeats/seed-{seed}", self.recipe.but(seed=seed), self.note)

    def below(self, folder: str, recipe: Recipe, note: str = "") -> Run:
        """A run of another recipe inside this one; it shares lock, jobs and derived files.

        Args:
            folder: below this run's.
            recipe: what is run there.
            note: tells its measurements from this run's, see `noted`.
        """
        other = object.__new__(Run)
        other.__dict__.update(self.__dict__)
        other.folder, other.recipe, other.note = self.folder / folder, recipe, note
        return other

    def variants(self) -> list[Run]:
        """The runs of the recipe's study; this one where there is none."""
        found = []
        for name, settings in self.recipe.study.items():
            other = self.below(f"study/{name}", changed(self.recipe.but(study={}), settings))
            other.variant, other.common = name, self.folder / "shared"
            found.append(other)
        return found or [self]

    def noted(self, row: str) -> str:
        """A row's name, told from that of the run around this one."""
        return f"{row}, {self.note}" if self.note else row

    def stage(
        self,
        name: str,
        part: Any,
        after: Sequence[Stage] = (),
        *,
        shared: bool = False,
        again: bool = False,
        fix: str = "delete this folder to make the stage again",
    ) -> Stage:
        """Open a stage.

        Args:
            name: its path below the run's folder.
            part: all of the recipe that it depends on, as plain values. Paths inside the run's own folder are kept as
                from there, so that it may be moved.
            after: the stages whose results it uses.
            shared: whether other variants of a study may use it, when they would make it from the same.
            again: whether it is just made anew where it was made from something else: no other stage goes on from it.
            fix: what to do where it was made from something else.

        Raises:
            UserError: it was.
        """
        content = {"part": part, "after": {stage.name: stage.fingerprint for stage in after}}
        content = _movable(json.loads(json.dumps(content)), f"{self.root.resolve()}{os.sep}")
        folder = self.folder / name
        if shared and self.common is not None:
            folder = self.common / name / fingerprint(content)[:12]
        path = folder / "stage.json"
        other = path.is_file() and json.loads(path.read_text(encoding="utf-8")) != content
        begun = path.is_file() and any(entry.name != path.name for entry in folder.iterdir())
        if other and begun and not again:
            raise UserError(
                f"the stage {name} was made from something else",
                file=path,
                fix=fix,
            )
        barrier()
        if rank() == 0 and (other or not path.is_file()):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "done.json").unlink(missing_ok=True)
            write_json(path, content)
        barrier()
        finished = (folder / "done.json").is_file()
        barrier()  # the first process may be quick: none may take what it finishes now for finished before
        self._opened.add(folder)
        return Stage(name, folder, fingerprint(content), finished)

    def record(self, stage: Stage, rows: Sequence[dict[str, Any]]) -> None:
        """Keep a stage's measurements; the run's `results.jsonl` is all of them together.

        A row has: stage, row, column, metric, value, seed, higher_is_better, and what else is worth knowing.
        """
        if rank() == 0:
            write_json_lines(stage.folder / "results.jsonl", rows)

    def collect_results(
        self, failed: Sequence[dict[str, Any]] = (), shown: Mapping[str, dict[str, Any]] | None = None
    ) -> list[dict[str, Any]]:
        """The measurements of all stages that this process opened, which are those that the recipe asks for, in the
        order in which they finished; writes the run's `results.jsonl`.

        Args:
            failed: lines of what could not be made.
            shown: how each row of the transfer table is shown, which may have changed since it was measured.
        """
        found = [folder / "results.jsonl" for folder in self._opened]
        done = [(_finished(p.parent), str(p), p) for p in found if p.is_file() and (p.parent / "done.json").is_file()]
        rows = [row for _, _, path in sorted(done) for row in read_json_lines(path)] + [*failed]
        if shown:
            rows = [row | shown.get(row["row"], {}) if row.get("stage") == "transfer" else row for row in rows]
        if rank() == 0:
            write_json_lines(self.folder / "results.jsonl", rows)
        return rows


def _movable(plain: Any, root: str) -> Any:
    """A plain value whose paths below a folder do not say where that is."""
    if isinstance(plain, dict):
        return {key: _movable(value, root) for key, value in plain.items()}
    if isinstance(plain, list):
        return [_movable(value, root) for value in plain]
    return f"<run>/{plain.removeprefix(root)}" if isinstance(plain, str) and plain.startswith(root) else plain


def _visible(folder: Path, shared: bool) -> list[str]:
    """What stands in a folder; where it is shared, another process may just be writing its first (hidden) file."""
    return [path.name for path in folder.iterdir() if not (shared and path.name.startswith("."))]


def _made(folder: Path) -> bool:
    """Whether a run left anything but a look at its images: until then its recipe may still change."""
    return any(path.parent.name != "seen" for path in folder.rglob("done.json"))


def _lasting(recipe: str) -> dict[str, Any]:
    """What of a recipe's text may not change in the folder of its run. Without a study the run itself is what each of
    a study's variants would be, so that there is one or there is none."""
    plain = yaml_to_plain(recipe)
    if not isinstance(plain, dict):
        return {}
    return {k: v for k, v in plain.items() if k not in OPEN} | {"study": bool(plain.get("study"))}


def _lock(folder: Path) -> IO[bytes]:
    """The folder's lock, held as long as the returned file is open; a killed process lets it go."""
    stream = (folder / ".lock").open("wb")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        raise UserError(
            "another process is working in this folder", file=folder, fix="wait for it, or end it"
        ) from None
    except OSError as problem:
        stream.close()
        raise UserError(
            f"this folder's file system cannot lock files: {problem.strerror}",
            file=folder,
            fix="take another --out, or have the file system mounted with locks (flock)",
        ) from None
    return stream


def _finished(folder: Path) -> float:
    return (folder / "done.json").stat().st_mtime


def _machine() -> str:
    import torch

    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "no accelerator"
    return f"{os.cpu_count()} cores, {platform.machine()}, {accelerator}, Python {platform.python_version()}"
