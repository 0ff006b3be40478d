"""The training loop: one for teachers, students and fine-tuning, one visible step.

Letters: B images of a micro-batch, A micro-batches of a step, P processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tutelage.errors import UserError
from tutelage.files import read_json_lines, write_json_lines
from tutelage.models.learner import Learner
from tutelage.progress import SILENT, Progress
from tutelage.training.balance import BalanceRule
from tutelage.training.checkpoint import load_state, save_state
from tutelage.training.precision import autocast_dtype, place
from tutelage.training.processes import all_sum, barrier, rank, world
from tutelage.training.schedule import Training, make_optimiser, rate_at
from tutelage.types import Batch, LossSum

Batches = Callable[[int], Iterable[Batch]]
"""From the first step to the endless (or long enough) micro-batches of this process, from that step on."""


class Diverged(UserError):
    """A loss or gradient that is no finite number; raised before the optimiser moves."""


def train(
    learner: Learner,
    settings: Training,
    rule: BalanceRule,
    batches: Batches,
    folder: Path,
    *,
    seed: int,
    device: torch.device,
    shown_from: int = 0,
    until: int | None = None,
    label: str = "training",
    progress: Progress = SILENT,
) -> bool:
    """Train in place, from the last checkpoint in `folder` if there is one, to the end or to a stop on the way.

    Killed or stopped at any moment and called again, it ends with the weights of an undisturbed run: batches follow
    from the step number, and so does the random state of every step. Writes `curve.jsonl` and `checkpoint.pt` into
    `folder`.

    Args:
        learner: the network with its losses, on the CPU; it is moved to `device` and left there, with the averaged
            weights where the settings ask for an average.
        settings: lengths, rates, precision.
        rule: combines the losses of the heads.
        batches: this process's micro-batches from a given step on, at least to the last step that is trained.
        folder: of the stage.
        seed: of everything random inside the network.
        device: where to train.
        shown_from: the first step that the bar shows; those before it are shown by an earlier call, which did them.
        until: how many of the steps are done before it stops, with a checkpoint to go on from; the rates are those of
            the whole length. None: all. A checkpoint that is further already is left as it is.
        label, progress: how to show it.

    Returns:
        Whether the last step of the settings is done.

    Raises:
        Diverged: naming step, head and images of a loss that is not finite.
    """
    dtype = autocast_dtype(settings.precision, device)
    place(learner.train(), device, dtype)
    rule.to(device)
    trained = [*learner.parameters(), *rule.parameters()]
    optimiser = make_optimiser(settings, nn.ModuleList([learner, rule]))
    average = {n: t.detach().clone() for n, t in learner.state_dict().items()} if settings.ema else None
    parts = {"student": learner, "rule": rule}
    first, seconds = _restore(folder, parts, optimiser, average)
    curve = _Curve(folder, settings.log_every, first, seconds)
    network = learner if rule.apart else _distributed(learner, device)
    stream, saved = iter(batches(first)), time.monotonic()
    last = settings.steps if until is None else min(until, settings.steps)

    with curve, progress.bar(label, (last - shown_from) * settings.batch) as bar:
        bar.skip((min(first, last) - shown_from) * settings.batch)
        for step in range(first, last):
            micro = [next(stream).to(device, non_blocking=True) for _ in range(settings.accumulate)]
            counts = global_counts(learner, micro)
            torch.manual_seed(_mix(seed, step, rank()))
            rate = rate_at(settings, step)
            for group in optimiser.param_groups:
                group["lr"] = rate
            means: dict[str, Tensor] = {}
            for number, batch in enumerate(micro):
                final = number == len(micro) - 1
                with nullcontext() if final or network is learner else network.no_sync():  # type: ignore[operator]
                    with torch.autocast(device.type, dtype, enabled=dtype is not None):
                        sums: dict[str, LossSum] = network(batch)
                    # gradients are averaged over P processes, hence times P: what is left is sum / global count
                    losses = {name: loss.sum * (world() / counts[name]) for name, loss in sums.items()}
                    total = rule.backward(losses, learner)
                    if world() == 1:  # of several processes one alone must not stop: the gradient tells all of them
                        _refuse_nan(total, losses, step, batch)
                means = {name: means.get(name, 0) + loss.detach() for name, loss in losses.items()}
            if curve.due(step) or step == settings.steps - 1:
                curve.add(step, rule, means, rate, settings.batch)
            rule.settle(learner, means, torch.Generator().manual_seed(_mix(seed, step, -1)))
            norm = nn.utils.clip_grad_norm_(trained, settings.clip or float("inf"))
            if not torch.isfinite(norm):
                raise Diverged(
                    f"step {step}: the gradient is {norm.item()}",
                    record=", ".join(micro[0].ids[:8]),
                    fix=_LOWER,
                )
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            if average is not None:
                _follow(average, learner, settings.ema or 0.0)
            bar.advance(settings.batch, curve.note)
            if time.monotonic() - saved > settings.checkpoint_seconds and step < last - 1:
                _save(folder, step + 1, curve.seconds(), parts, optimiser, average)
                saved = time.monotonic()
    if first < last < settings.steps:
        _save(folder, last, curve.seconds(), parts, optimiser, average)
        barrier()  # none may look for the checkpoint before it is there
    if average is not None:
        learner.load_state_dict(average)
    return max(first, last) == settings.steps


_LOWER = "lower the learning rate, add warm-up steps, or set `precision: fp32`"


def global_counts(learner: Learner, micro: list[Batch]) -> dict[str, Tensor]:
    """Labelled units a head over all processes and micro-batches, at least 1, float32 scalars."""
    counts = [learner.count(batch) for batch in micro]
    names = list(counts[0])
    local = torch.zeros(len(names), device=micro[0].images.device)
    for count in counts:
        for position, name in enumerate(names):
            local[position] += count[name]
    return dict(zip(names, all_sum(local).clamp(min=1).unbind(), strict=True))


def _mix(seed: int, step: int, process: int) -> int:
    """One 63-bit number from three, so that neighbouring steps and seeds have unrelated random states."""
    value = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + process * 0x94D049BB133111EB) & (2**64 - 1)
    value ^= value >> 31
    return (value * 0xD6E8FEB86659FD93 & (2**64 - 1)) >> 1


def _refuse_nan(total: Tensor, losses: dict[str, Tensor], step: int, batch: Batch) -> None:
    if torch.isfinite(total):
        return
    for name, loss in losses.items():
        if not torch.isfinite(loss):
            labelled = batch.heads.get(name)
            ids = batch.ids if labelled is None else [batch.ids[row] for row in labelled.rows.tolist()]
            raise Diverged(
                f"step {step}: the loss of head {name} is {loss.item()}",
                record=", ".join(ids),
                fix=f"look at these images' labels; {_LOWER}",
            )
    raise Diverged(f"step {step}: the weighted loss is {total.item()}", record=", ".join(batch.ids), fix=_LOWER)


def _distributed(learner: Learner, device: torch.device) -> nn.Module:
    if world() == 1:
        return learner
    return DistributedDataParallel(learner, device_ids=[device.index] if device.type == "cuda" else None)


@torch.no_grad()
def _follow(average: dict[str, Tensor], learner: Learner, decay: float) -> None:
    """Move the averaged weights a little towards the present ones; norm statistics and counters are copied."""
    trained = {name for name, _ in learner.named_parameters()}
    for name, value in learner.state_dict().items():
        if name in trained:
            average[name].lerp_(value.to(average[name].dtype), 1 - decay)
        else:
            average[name].copy_(value)


def _save(
    folder: Path,
    step: int,
    seconds: float,
    parts: dict[str, nn.Module],
    optimiser: torch.optim.Optimizer,
    average: dict[str, Tensor] | None,
) -> None:
    if rank() == 0:
        state: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
        state |= {"step": step, "seconds": seconds, "optimiser": optimiser.state_dict(), "average": average}
        save_state(folder / "checkpoint.pt", state)


def _restore(
    folder: Path,
    parts: dict[str, nn.Module],
    optimiser: torch.optim.Optimizer,
    average: dict[str, Tensor] | None,
) -> tuple[int, float]:
    """Load the last checkpoint and return the step to go on with and the seconds until then; zeros without one."""
    state = load_state(folder / "checkpoint.pt")
    if state is None:
        return 0, 0.0
    for name, part in parts.items():
        part.load_state_dict(state[name])
    optimiser.load_state_dict(state["optimiser"])
    if average is not None:
        for name, value in state["average"].items():
            average[name].copy_(value)
    return int(state["step"]), float(state.get("seconds", 0.0))  # older checkpoints have none


class _Curve:
    """The learning curve; a context manager that writes it, however the training ends: where it diverges, what came
    before is told. What a killed run wrote after its last checkpoint is forgotten."""

    def __init__(self, folder: Path, every: int, first: int, seconds: float) -> None:
        self.path, self.every, self.note = folder / "curve.jsonl", every, ""
        self.rows = [row for row in read_json_lines(self.path) if row["step"] < first]
        self.before = max([seconds, *(row["seconds"] for row in self.rows[-1:])])
        self.start = self.written = time.monotonic()
        self.mark = first - 1, self.before  # the last step whose images are counted, and when it was done

    def __enter__(self) -> _Curve:
        return self

    def __exit__(self, *error: object) -> None:
        self.write()

    def due(self, step: int) -> bool:
        return step % self.every == 0

    def seconds(self) -> float:
        """Of training until now, those of killed or stopped processes included."""
        return self.before + time.monotonic() - self.start

    def add(self, step: int, rule: BalanceRule, means: dict[str, Tensor], rate: float, batch: int) -> None:
        names = list(means)
        # each process holds its share of sum / global count times P, so the mean over processes is the whole
        values = all_sum(torch.stack([means[name] for name in names]) / world())
        with torch.no_grad():
            total = float(rule(dict(zip(names, values.unbind(), strict=True))))
            weights = {name: float(weight) for name, weight in rule.weights().items()}
        (before, begun), seconds = self.mark, self.seconds()
        speed = (step - before) * batch / max(seconds - begun, 1e-9)
        self.mark = step, seconds
        row = {"step": step, "loss": total, "rate": rate, "images_per_second": speed}
        row |= {"seconds": seconds, "heads": dict(zip(names, values.tolist(), strict=True))}
        row["weights"] = weights
        self.rows.append(row)
        self.note = f"loss {total:.3f}"
        if time.monotonic() - self.written > 10:
            self.write()

    def write(self) -> None:
        if rank() == 0:
            write_json_lines(self.path, self.rows)
            self.written = time.monotonic()
