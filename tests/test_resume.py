"""A run that is killed at any moment and started again ends with the same weights, bit for bit."""

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_extending import recipe

import tutelage
from tutelage import stages
from tutelage.errors import UserError
from tutelage.progress import SILENT
from tutelage.stages import Run

NURSERY = """
import os, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import tutelage.api
from test_extending import recipe
from tutelage.progress import SILENT
for line in sys.stdin:  # a folder a line; each run is a child of its own, without importing everything again
    child = os.fork()
    if child == 0:
        tutelage.api.run(recipe(checkpoint_seconds=0.0), line.strip(), SILENT)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Nursery:
    """Starts runs quickly, so that many can be killed."""

    def __init__(self):
        script = NURSERY.format(tests=str(Path(__file__).parent))
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, folder: Path) -> int:
        print(folder, file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def exit_code(self) -> int:
        """Waits for the last started run."""
        return int(self.process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.communicate()


def _weights(folder: Path) -> dict[str, dict]:
    return {str(p.relative_to(folder)): load_file(p) for p in sorted(folder.rglob("weights.safetensors"))}


def test_killed_runs_end_with_the_weights_of_an_undisturbed_one(tmp_path):
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    chance, kills = random.Random(5), 0
    with Nursery() as nursery:
        nursery.start(calm)
        assert nursery.exit_code() == 0
        while True:
            before = _trace(rough)
            run = nursery.start(rough)
            # not before something was done: every start gets a little further, and is killed somewhere in its work
            patience = time.monotonic() + 30
            while _trace(rough) == before and not (rough / "report.html").exists() and time.monotonic() < patience:
                time.sleep(0.002)
            time.sleep(chance.uniform(0.0, 0.15))
            if kills < 8:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(run, signal.SIGKILL)
            code = nursery.exit_code()
            if code == 0:
                break
            kills += 1
    assert kills >= 3
    wanted, found = _weights(calm), _weights(rough)
    assert wanted.keys() == found.keys()
    for path, weights in wanted.items():
        for name, value in weights.items():
            assert value.equal(found[path][name]), f"{path} {name}"
    results = [(folder / "results.jsonl").read_text().splitlines() for folder in (calm, rough)]
    assert sorted(results[0]) == sorted(results[1])


def _trace(folder: Path) -> float:
    """Changes whenever a checkpoint, shard or result is written."""
    files = [p for p in folder.rglob("*") if p.name in ("checkpoint.pt", "done.json") or p.suffix == ".parquet"]
    stamps = []
    for path in files:
        try:
            stamps.append(path.stat().st_mtime_ns)
        except FileNotFoundError:  # renamed while we looked
            continue
    return max(stamps, default=0)


def test_a_finished_run_does_nothing_and_a_changed_recipe_is_refused(tmp_path):
    tutelage.run(recipe(), tmp_path / "run", SILENT)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.safetensors")}
    tutelage.run(recipe(), tmp_path / "run", SILENT)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.safetensors")} == before
    with pytest.raises(UserError) as caught:
        tutelage.run(recipe().but(seed=1), tmp_path / "run", SILENT)
    assert "-seed: 0" in str(caught.value)
    assert "+seed: 1" in str(caught.value)


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match="not the folder of a run"):
        tutelage.run(recipe(), tmp_path, SILENT)
    assert [p.name for p in tmp_path.iterdir()] == ["holiday.jpg"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BlockingIOError(errno.EWOULDBLOCK, "taken"), "another process is working in this folder"),
        (OSError(errno.ENOLCK, "No locks available"), "file system cannot lock files: No locks available"),
    ],
)
def test_a_file_system_without_locks_is_no_other_process(tmp_path, monkeypatch, error, said):
    def refuse(*_):
        raise error

    monkeypatch.setattr(stages.fcntl, "flock", refuse)
    with pytest.raises(UserError, match=said):
        stages._lock(tmp_path)


def test_one_process_at_a_time_works_in_a_folder(tmp_path):
    with Run(tmp_path, recipe(), SILENT):
        with pytest.raises(UserError, match="another process is working in this folder"):
            Run(tmp_path, recipe(), SILENT)
        Run(tmp_path, recipe(), SILENT, shared=True)  # who labels with others takes no lock
    with Run(tmp_path, recipe(), SILENT):  # it was given back
        pass
