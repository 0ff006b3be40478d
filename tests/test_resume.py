"""A run that is killed at any moment and started again ends with the same weights, bit for bit."""

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
from tutelage.errors import UserError
from tutelage.progress import SILENT

SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
import tutelage
from test_extending import recipe
from tutelage.progress import SILENT
if __name__ == "__main__":
    tutelage.run(recipe(checkpoint_seconds=0.0), sys.argv[1], SILENT)
"""


def _start(folder: Path) -> subprocess.Popen:
    script = folder.parent / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    return subprocess.Popen([sys.executable, str(script), str(folder)], env={**os.environ, "OMP_NUM_THREADS": "1"})


def _weights(folder: Path) -> dict[str, dict]:
    return {str(p.relative_to(folder)): load_file(p) for p in sorted(folder.rglob("weights.safetensors"))}


def test_killed_runs_end_with_the_weights_of_an_undisturbed_one(tmp_path):
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    calm.mkdir()
    assert _start(calm / "run").wait() == 0
    rough.mkdir()
    chance = random.Random(5)
    kills = 0
    while True:
        process = _start(rough / "run")
        # not before something happens: a trace of work in the folder, then a moment more
        before = _trace(rough / "run")
        while process.poll() is None and _trace(rough / "run") == before:
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 0.6))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert process.returncode == 0
    assert kills >= 2
    wanted, found = _weights(calm / "run"), _weights(rough / "run")
    assert wanted.keys() == found.keys()
    for path, weights in wanted.items():
        for name, value in weights.items():
            assert value.equal(found[path][name]), f"{path} {name}"
    results = [(folder / "run" / "results.jsonl").read_text() for folder in (calm, rough)]
    assert sorted(results[0].splitlines()) == sorted(results[1].splitlines())


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
