"""Two processes with half the batch each learn what one with the whole batch learns, partial labels included."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_extending import Brightness, recipe

import tutelage
from tutelage import stages
from tutelage.data.mixture import Mixture
from tutelage.data.source import Place
from tutelage.errors import UserError
from tutelage.progress import SILENT
from tutelage.stages import Run
from tutelage.training import fit as fitting
from tutelage.training import processes
from tutelage.training.fit import batches_of
from tutelage.training.schedule import Training

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
from torch import nn
from test_extending import Brightness, Tiny, TinyMaps
from tutelage.data.augment import Augment
from tutelage.data.mixture import Mixture
from tutelage.data.source import Place
from tutelage.models.student import Model
from tutelage.tasks import Classification
from tutelage.training.balance import Balance
from tutelage.training.fit import build, fit
from tutelage.training.loop import Diverged
from tutelage.training.processes import barrier, processes, rank, world
from tutelage.training.schedule import Training
from tutelage.training.self_training import PSEUDO, HalfPseudo, Normalised

class Smooth(TinyMaps):  # no batch norm: its statistics are each process's own
    def __init__(self):
        super().__init__()
        for part in self.modules():
            if isinstance(part, nn.Sequential):
                part[1] = nn.Identity()

class Plain(Tiny):
    def build(self, root=None):
        return Smooth()

torch.set_num_threads(1)
with processes():
    place = Place(Path("."), Path("."))
    # one image of "rare" in every fifteen: most of its labels fall to one process, often none to either
    sources = [Brightness(head=h, label="class", images=n).open(h, place) for h, n in (("common", 28), ("rare", 2))]
    heads = {{h: Classification(classes=("dark", "bright")) for h in ("common", "rare")}}
    settings = Training(steps=12, batch=8, accumulate=int(sys.argv[2]), rate=0.05, workers=0, precision="fp32",
                        augment=Augment(), clip=None)
    for mode in {modes!r}:
        student = build(Model(backbone=Plain(), size=64), heads, 0, "s", Path("."))
        rule = Balance(mode="equal" if mode == "halves" else mode).build(heads, (8, 0.05), {{}})
        folder, mixture = Path(sys.argv[1]) / mode, Mixture(sources, seed=3)
        learner = None
        if mode == "halves":  # self-training: what "pool" says of the common head counts as pseudo labels
            sources = [Brightness(head="common", label="class", images=n, first=f).open(name, place)
                       for name, n, f in (("common", 9, 0), ("pool", 14, 50))]
            mixture = Mixture(sources, "paired", 3, first=[0], ratio=(1, 1))
            learner = HalfPseudo(student, ["common"], lambda head, source, id: source == "common")
            rule = Normalised({{"common": 1.0, "rare": 1.0}}, {{"common" + PSEUDO: "common"}}, 1.0, 0.9)
        fit(student, mixture, settings, rule, folder, learner=learner, seed=3, device=torch.device("cpu"), spaces={{}})

    def spoil(module, given, output):  # in one process alone
        return output * float("nan") if rank() == 0 else output

    student = build(Model(backbone=Plain(), size=64), {{"common": heads["common"]}}, 0, "s", Path("."))
    student.heads["common"].register_forward_hook(spoil)
    rule, mixture = Balance(mode="equal").build(["common"], (8, 0.05), {{}}), Mixture(sources[:1], seed=3)
    folder = Path(sys.argv[1]) / "spoilt"
    try:
        fit(student, mixture, settings, rule, folder, seed=3, device=torch.device("cpu"), spaces={{}})
    except Diverged:
        barrier()
        print(f"diverged {{rank()}} of {{world()}}", flush=True)
"""


MODES = ("equal", "uncertainty", "gradnorm", "pcgrad", "halves")


def _train(folder: Path, processes: int, accumulate: int = 1) -> dict[str, torch.Tensor]:
    """The weights of a training with each balance of losses."""
    script = folder / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), modes=MODES))
    out = folder / f"{processes}-{accumulate}"
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*(start if processes > 1 else [sys.executable]), str(script), str(out), str(accumulate)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for number in range(processes):  # that one of them diverges ends all of them, and none waits for ever
        assert f"diverged {number} of {processes}" in done.stdout
    files = {mode: load_file(out / mode / "weights.safetensors") for mode in MODES}
    return {f"{mode} {name}": value for mode, weights in files.items() for name, value in weights.items()}


def test_processes_and_accumulation_weigh_every_label_alike(tmp_path):
    alone = _train(tmp_path, 1)
    layers = [alone[f"{mode} backbone.stem.0.weight"] for mode in MODES]
    assert all(not a.allclose(b, rtol=1e-3) for n, a in enumerate(layers) for b in layers[:n])
    for found, apart in ((_train(tmp_path, 2), ()), (_train(tmp_path, 1, accumulate=4), ("halves",))):
        # averages of a loss begin with the first micro-batch that has it: with several, with a share of the step
        for name, value in ((n, v) for n, v in alone.items() if not n.startswith(apart)):
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


RUN = """
import sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import tutelage
from test_extending import recipe
from tutelage.progress import SILENT
tutelage.run(recipe(), sys.argv[1], SILENT)
"""


def test_the_whole_pipeline_runs_on_two_processes(tmp_path):
    script, out = tmp_path / "run.py", tmp_path / "run"
    script.write_text(RUN.format(tests=str(Path(__file__).parent)))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*start, str(script), str(out)], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    found = {(row["stage"], row["row"]): row["value"] for row in rows}
    tuned = ("random initialisation", "teacher: level", "teacher: light", "MuST student")
    assert len(rows) == len(found), "each is measured once"
    assert found.keys() == {("upstream", "teacher"), ("upstream", "student"), *(("transfer", name) for name in tuned)}
    assert max(found["upstream", name] for name in ("teacher", "student")) < 0.2  # an untrained head is off by more
    assert (out / "report.html").is_file()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("done.json")}
    tutelage.run(recipe(), out, SILENT)  # in one process: what two have finished is finished
    assert {path: path.stat().st_mtime_ns for path in out.rglob("done.json")} == before


def test_processes_agree_on_what_is_finished(tmp_path, monkeypatch):
    """Two processes, as threads: the second comes out of a meeting only when the first waits at the next one."""
    meeting, here, found = threading.Barrier(2, timeout=20), threading.local(), {}

    def meet():
        meeting.wait()
        while here.rank == 1 and meeting.n_waiting == 0 and first.is_alive():
            time.sleep(0.001)

    def work(rank):
        here.rank = rank
        with Run(tmp_path, recipe(), SILENT) as run:
            stage = run.stage("some", {"seed": 0})
            found[rank] = stage.finished
            stage.finish()

    monkeypatch.setattr(stages, "barrier", meet)
    monkeypatch.setattr(stages, "rank", lambda: here.rank)
    first, second = (threading.Thread(target=work, args=[rank]) for rank in (0, 1))
    for thread in (first, second):
        thread.start()
    for thread in (first, second):
        thread.join()
    assert found == {0: False, 1: False}, "what one of them finishes now was not finished before"


def test_a_batch_is_shared_out_evenly_or_refused(monkeypatch):
    mixture = Mixture([Brightness(images=12).open("pool", Place(Path(), Path()))], seed=1)
    settings, seen = Training(steps=2, batch=12, accumulate=2, workers=0), []
    for rank in range(3):
        monkeypatch.setattr(fitting, "world", lambda: 3)
        monkeypatch.setattr(fitting, "rank", lambda r=rank: r)
        seen.append([b.ids for b in batches_of(mixture, [], 16, settings, settings.augment, seed=1)(0)])
    assert [len(ids) for of_rank in seen for ids in of_rank] == [2] * 12
    monkeypatch.setattr(fitting, "world", lambda: 1)
    monkeypatch.setattr(fitting, "rank", lambda: 0)
    alone = [b.ids for b in batches_of(mixture, [], 16, settings.but(accumulate=1), settings.augment, seed=1)(0)]
    for step in range(2):
        together = [id for of_rank in seen for ids in of_rank[2 * step : 2 * step + 2] for id in ids]
        assert sorted(together) == sorted(alone[step])
    monkeypatch.setattr(fitting, "world", lambda: 4)
    with pytest.raises(UserError, match="a batch of 12 cannot be shared by 4 processes x 2"):
        batches_of(mixture, [], 16, settings, settings.augment, seed=1)


@pytest.mark.parametrize(("cores", "said", "wanted"), [(8, None, [7]), (1, None, [1]), (None, None, [1]), (8, "3", [])])
def test_all_cores_but_one_compute_unless_it_is_said_otherwise(monkeypatch, cores, said, wanted):
    asked = []
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setenv("OMP_NUM_THREADS", said) if said else monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    processes.leave_a_core_to_the_loader()
    assert asked == wanted
