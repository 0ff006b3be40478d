"""A network, data and settings in; a trained network in a folder out: for teachers, students and fine-tuning."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from tutelage.data.loading import Augmentation, Labels, loader
from tutelage.data.mixture import Mixture
from tutelage.data.quarantine import Quarantine
from tutelage.data.source import LabelSpace
from tutelage.errors import UserError
from tutelage.models.learner import Learner
from tutelage.models.student import Model, Student
from tutelage.progress import SILENT, Progress
from tutelage.tasks.task import Task
from tutelage.training.balance import BalanceRule
from tutelage.training.checkpoint import save_model
from tutelage.training.loop import Batches, train
from tutelage.training.processes import barrier, rank, world
from tutelage.training.schedule import Training
from tutelage.types import Batch


def build(model: Model, heads: dict[str, Task], seed: int, name: str, root: Path) -> Student:
    """A network whose random weights follow from the seed and a name alone."""
    seeded(seed, name)
    return model.build(heads, root)


def seeded(seed: int, name: str) -> None:
    """Set torch's random state from the seed and a name."""
    torch.manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))


def fit(
    student: Student,
    mixture: Mixture,
    settings: Training,
    rule: BalanceRule,
    folder: Path,
    *,
    seed: int,
    device: torch.device,
    spaces: dict[str, LabelSpace],
    learner: Learner | None = None,
    augment: Augmentation | None = None,
    labels: Labels | None = None,
    quarantine: Quarantine | None = None,
    until: int | None = None,
    label: str = "training",
    progress: Progress = SILENT,
) -> bool:
    """Train `student` on a mixture of images and write the model into `folder` (the first process does).

    Args:
        student: on the CPU; trained in place and left on `device`.
        mixture: of the images, drawn with the same seed.
        settings, rule: of the training loop.
        folder: of the stage; a killed training goes on from its checkpoint there.
        seed: of sampling, augmentation and everything random in the network.
        device: where to train.
        spaces: the heads' label spaces, kept in the model's file.
        learner: what the loop trains, where the student's losses are put together in another way; None: the student.
        augment: what is done to the images; None: what the settings say.
        labels: pseudo labels, joined to the images by source and id; None for human labels alone.
        quarantine: where images that cannot be read are listed.
        until: how many of the steps are done before it stops, with a checkpoint to go on from and no model written;
            None: all. The student then has the weights that it would deliver.
        label, progress: how to show it.

    Returns:
        Whether the last step is done and the model written.
    """
    batches = batches_of(
        mixture,
        list(student.tasks),
        student.model.size,
        settings,
        settings.augment if augment is None else augment,
        seed=seed,
        until=until,
        labels=labels,
        quarantine=quarantine,
    )
    done = train(
        student if learner is None else learner,
        settings,
        rule,
        batches,
        folder,
        seed=seed,
        device=device,
        until=until,
        label=label,
        progress=progress,
    )
    if done and rank() == 0:
        save_model(folder, student, {name: spaces[name] for name in student.tasks if name in spaces})
    barrier()
    return done


def batches_of(
    mixture: Mixture,
    heads: Sequence[str],
    size: int,
    settings: Training,
    augment: Augmentation,
    *,
    seed: int,
    until: int | None = None,
    labels: Labels | None = None,
    quarantine: Quarantine | None = None,
) -> Batches:
    """This process's micro-batches of a training, from any of its steps on; arguments as of `loader` and `train`.

    Raises:
        UserError: a batch that the processes cannot share.
    """
    micro = settings.batch // (settings.accumulate * world())
    if micro * settings.accumulate * world() != settings.batch:
        raise UserError(
            f"a batch of {settings.batch} cannot be shared by {world()} processes x {settings.accumulate} parts of it",
            field="training.batch",
            value=settings.batch,
            fix=f"take a multiple of {world() * settings.accumulate}",
        )
    last = settings.steps if until is None else min(until, settings.steps)

    def batches(first: int) -> Iterator[Batch]:
        return loader(
            mixture,
            heads,
            size,
            augment,
            batch=micro,
            seed=seed,
            first_step=first * settings.accumulate,
            steps=max(last - first, 0) * settings.accumulate,
            workers=settings.workers,
            labels=labels,
            quarantine=quarantine,
            rank=rank(),
            world=world(),
        )

    return batches
