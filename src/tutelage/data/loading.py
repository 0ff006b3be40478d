"""Batches for training and evaluation.

What a training batch holds follows from (seed, position) of its images alone: it is the same with any number of loader
processes, after any resume, and N processes together see what one process with N times the batch sees.
"""

from __future__ import annotations

import signal
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from tutelage.data.geometry import Frame, letterbox
from tutelage.data.mixture import Mixture
from tutelage.data.quarantine import Quarantine
from tutelage.data.source import BadImage, Dataset, Picture, UInt8
from tutelage.errors import UserError
from tutelage.threads import Threads
from tutelage.types import Batch, Field, Mask, Sample, Target, Vectors, collate

ATTEMPTS = 100
"""Images in a row that may be unusable before the loader gives up."""


class Labels(Protocol):
    """Pseudo labels, joined to images by source and id."""

    def get(self, head: str, source: str, id: str) -> Target | None:
        """The label of one head in pixels of the full-size image; None where there is none."""


class Augmentation(Protocol):
    """How a training image and its labels are changed: as of `Augment`, which is one."""

    def __call__(
        self, picture: Picture, targets: Mapping[str, Target], size: int, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, Target]]:
        """uint8 [3,size,size] and the labels of that window."""


class SetAside(NamedTuple):
    """One image that could not be used: "source/id", hex digest of its bytes ("" when unreadable), the reason."""

    id: str
    sha256: str
    reason: str


@dataclass(frozen=True)
class _Made:
    """What a loader process hands over: a batch or the error that stops the run; and what was set aside."""

    batch: Batch | None
    aside: list[SetAside]
    error: UserError | None = None

    def pin_memory(self) -> _Made:
        return self if self.batch is None else replace(self, batch=self.batch.pin_memory())


@dataclass(frozen=True)
class _Batches(TorchDataset[_Made]):
    """Step number to batch."""

    mixture: Mixture
    heads: tuple[str, ...]
    size: int
    augment: Augmentation
    batch: int
    seed: int
    labels: Labels | None
    rank: int
    world: int

    def __getitem__(self, step: int) -> _Made:
        aside: list[SetAside] = []
        first = (step * self.world + self.rank) * self.batch
        try:
            samples = [self._usable(n, aside) for n in range(first, first + self.batch)]
        except UserError as error:
            return _Made(None, aside, error)
        return _Made(collate(samples, self.heads), aside)

    def _usable(self, n: int, aside: list[SetAside]) -> Sample:
        """The image at position n or, when it cannot be used, the first that can at the positions kept for it."""
        for attempt in range(ATTEMPTS):
            position = self.mixture.instead(n, attempt)
            number, index = self.mixture.at(position)
            dataset = self.mixture.datasets[number]
            try:
                return self._sample(dataset, index, position)
            except BadImage as error:
                aside.append(set_aside(dataset, index, error))
        raise UserError(
            f"{ATTEMPTS} images in a row cannot be used",
            file=dataset.file(index),
            record=aside[-1].id,
            value=aside[-1].reason,
            fix="`tutelage check` lists all images that cannot be read",
        )

    def _sample(self, dataset: Dataset, index: int, position: int) -> Sample:
        picture, id = dataset.picture(index), dataset.id(index)
        targets = {}
        for head in self.heads:
            target = dataset.target(index) if head == dataset.head else None
            if target is None and self.labels is not None:
                target = self.labels.get(head, dataset.name, id)
            if target is not None:
                _check_size(target, picture, dataset, index, head)
                targets[head] = target
        rng = np.random.default_rng([self.seed, position])
        image, targets = self.augment(picture, targets, self.size, rng)
        return Sample(image, targets, id, dataset.name)


def loader(
    mixture: Mixture,
    heads: Sequence[str],
    size: int,
    augment: Augmentation,
    batch: int,
    seed: int,
    first_step: int,
    steps: int,
    workers: int,
    labels: Labels | None = None,
    quarantine: Quarantine | None = None,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """Training batches first_step, first_step + 1, ... of `steps` in all.

    An image has its human label for its source's own head and the pseudo labels of the other heads (of its own too
    where the human one is missing). An image that cannot be used is listed in `quarantine` and replaced by one drawn
    from the same mixture; its neighbours in the batch do not change.

    Args:
        mixture: which image comes when.
        heads: the model's; each is in every batch, labelled rows or not.
        size: S, pixels of the square images.
        augment: how images and labels are changed.
        batch: images a batch of this process.
        seed: of augmentation, at least 0.
        first_step: number of the first batch; batch k of a resumed run is batch k of one that never stopped.
        steps: how many batches to give.
        workers: loader processes; 0 loads in this one.
        labels: pseudo labels; None for human labels alone.
        quarantine: where unusable images are listed; None: such an image stops the run.
        rank, world: number of this training process and of all.

    Raises:
        UserError: a label that contradicts its image; an unusable image where there is no quarantine; too many.
    """
    batches = _Batches(mixture, tuple(heads), size, augment, batch, seed, labels, rank, world)
    made = DataLoader(
        batches,
        batch_size=None,
        sampler=range(first_step, first_step + steps),
        num_workers=workers,
        # Said, because in a process that was spawned the default is to spawn, and import torch, for every loader.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_interrupts,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else starting it would move torch's global random numbers, and a resume differ
    )
    told: set[str] = set()
    for entry in made:
        for image in entry.aside:
            if image.id not in told:
                told.add(image.id)
                _tell(quarantine, image, "training")
        if entry.error is not None:
            raise entry.error
        yield entry.batch


def _as_it_is(made: Any) -> Any:
    return made


def _leave_interrupts(worker: int) -> None:
    """Ctrl-C goes to every process of the terminal; the one that trains ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class EvaluationBatch(NamedTuple):
    """Images as they are, in the order of the dataset.

    Attributes:
        images: uint8 [B,3,S,S], RGB, each laid into the padded square.
        frames: how, one an image.
        originals: uint8 [h,w,3] each, at full size.
        targets: human labels in pixels of the originals; None where there is none.
        ids: of the images, unique in their source.
    """

    images: Tensor
    frames: list[Frame]
    originals: list[UInt8]
    targets: list[Target | None]
    ids: list[str]


def evaluation_batches(
    dataset: Dataset,
    size: int,
    batch: int,
    workers: int = 1,
    quarantine: Quarantine | None = None,
) -> Iterator[EvaluationBatch]:
    """All images of a dataset once, in order, decoded ahead in the background.

    Args:
        dataset: `picture` and `target` are called from one background thread only, in order.
        size: S, pixels of the square images.
        batch: images a batch; the last may hold fewer.
        workers: threads that decode.
        quarantine: where unusable images are listed, which are then left out; None: such an image stops the run.

    Raises:
        UserError: as `loader`.
    """
    ahead: deque[Future[_Laid | SetAside]] = deque()
    laid: list[_Laid] = []
    with Threads(1) as finder, Threads(max(1, workers)) as decoders:
        for index in range(len(dataset)):
            ahead.append(decoders.submit(_lay, dataset, index, finder.submit(_find, dataset, index), size))
            if len(ahead) > 2 * batch:
                _take(ahead.popleft(), laid, quarantine)
            if len(laid) == batch:
                yield _join(laid)
                laid = []
        while ahead:
            _take(ahead.popleft(), laid, quarantine)
            if laid and (len(laid) == batch or not ahead):
                yield _join(laid)
                laid = []


class _Laid(NamedTuple):
    image: Tensor
    frame: Frame
    original: UInt8
    target: Target | None
    id: str


def _find(dataset: Dataset, index: int) -> tuple[Picture, Target | None, str]:
    picture, target = dataset.picture(index), dataset.target(index)
    if target is not None:
        _check_size(target, picture, dataset, index, dataset.head or "")
    return picture, target, dataset.id(index)


def _lay(
    dataset: Dataset, index: int, found: Future[tuple[Picture, Target | None, str]], size: int
) -> _Laid | SetAside:
    try:
        picture, target, id = found.result()
        original = picture.read()
        return _Laid(*letterbox(original, size), original, target, id)
    except BadImage as error:
        return set_aside(dataset, index, error)


def _take(future: Future[_Laid | SetAside], laid: list[_Laid], quarantine: Quarantine | None) -> None:
    result = future.result()
    if isinstance(result, SetAside):
        _tell(quarantine, result, "evaluation")
    else:
        laid.append(result)


def _join(laid: list[_Laid]) -> EvaluationBatch:
    images, frames, originals, targets, ids = zip(*laid, strict=True)
    return EvaluationBatch(torch.stack(images), list(frames), list(originals), list(targets), list(ids))


def _tell(quarantine: Quarantine | None, image: SetAside, stage: str) -> None:
    if quarantine is None:
        raise UserError(
            "an image cannot be used",
            record=image.id,
            value=image.reason,
            fix="take it out, or mend it; `tutelage check` lists all such images",
        )
    quarantine.add(image.id, image.sha256, stage, image.reason)


def set_aside(dataset: Dataset, index: int, error: BadImage) -> SetAside:
    """What a quarantine list says of an image that cannot be used; no digest where not even its bytes can be read."""
    try:
        digest = dataset.sha256(index)
    except (BadImage, OSError):
        digest = ""
    return SetAside(f"{dataset.name}/{dataset.id(index)}", digest, str(error))


def _check_size(target: Target, picture: Picture, dataset: Dataset, index: int, head: str) -> None:
    """Raise UserError unless a label of pixels is as large as its image."""
    if isinstance(target, Mask):
        height, width = target.ids.shape
    elif isinstance(target, Field | Vectors):
        height, width = target.valid.shape
    else:
        return
    if (height, width) != (picture.height, picture.width):
        raise UserError(
            "a label is of another size than its image",
            file=dataset.file(index),
            record=f"{dataset.name}/{dataset.id(index)}",
            field=head,
            value=f"{width} x {height}, the image has {picture.width} x {picture.height}",
            fix="give the label that was made for this image",
        )
