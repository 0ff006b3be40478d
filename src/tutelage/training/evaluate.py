"""A trained network against held-out labels."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.data.loading import evaluation_batches
from tutelage.data.quarantine import Quarantine
from tutelage.data.source import Dataset
from tutelage.errors import UserError
from tutelage.files import write_atomically
from tutelage.models.student import Student
from tutelage.tasks.evidence import Evidence, Hits, PixelCounts, PixelSums, Ranking
from tutelage.tasks.found import Detections
from tutelage.tasks.task import Frame, Metric, PerImageMetric
from tutelage.training.precision import autocast_dtype, place
from tutelage.types import Target


@dataclass(frozen=True)
class Predictor:
    """A network ready to predict: in evaluation mode, on its device, in the device's best precision."""

    student: Student
    device: torch.device
    dtype: torch.dtype | None

    @torch.inference_mode()
    def predict(self, images: Tensor, frames: Sequence[Frame], heads: Sequence[str]) -> dict[str, list[Target]]:
        """Targets a head, one an image, at the original sizes, on the CPU.

        Args:
            images: uint8 [B,3,S,S], RGB, padded.
            frames: how each original was laid into its square.
            heads: which to compute.
        """
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            return self.student.predict(images.to(self.device, non_blocking=True), frames, heads)

    @torch.inference_mode()
    def output(self, images: Tensor, head: str) -> Any:
        """What one head says before it is decoded, on the device: for `Task.decode`, or to be averaged first.

        Args:
            images: uint8 [B,3,H,W], RGB, padded.
            head: which.
        """
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            features = self.student.features(images.to(self.device, non_blocking=True))
            return self.student.heads[head](features, None)


def prepare(student: Student, device: torch.device) -> Predictor:
    """Bring a network to a device for prediction."""
    dtype = autocast_dtype("auto", device)
    place(student.eval(), device, dtype)
    return Predictor(student, device, dtype)


@dataclass(frozen=True)
class Score:
    """The figures of one head on one dataset.

    Attributes:
        name: the papers' figure.
        lower_is_better: names of the figures of which less is better.
        values: all figures by name; `name` is among them.
        images: how many were labelled.
        evidence: what each image contributed; None where the metric does not keep it.
        ids: of the labelled images, in the order of the evidence; empty where they are not known.
    """

    name: str
    lower_is_better: frozenset[str]
    values: dict[str, float]
    images: int
    evidence: Evidence | None = None
    ids: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        """The papers' figure."""
        return self.values[self.name]


def evaluate(
    student: Student,
    head: str,
    dataset: Dataset,
    device: torch.device,
    quarantine: Quarantine | None = None,
    batch: int = 64,
) -> Score:
    """Score one head on the labelled images of a dataset.

    Args:
        student: has this head; it is left in evaluation mode on `device`.
        head: which.
        dataset: labels of this head; images without a label are passed over.
        device: where to compute.
        quarantine: where images that cannot be read are listed; None: such an image stops the run.
        batch: images at a time.
    """
    predictor, metric, ids = prepare(student, device), student.tasks[head].metric(), []
    for found in evaluation_batches(dataset, student.model.size, batch, quarantine=quarantine):
        said = predictor.predict(found.images, found.frames, [head])[head]
        for prediction, truth, id in zip(said, found.targets, found.ids, strict=True):
            if truth is not None:
                metric.update(prediction, truth)
                ids.append(id)
    return score(metric, len(ids), ids)


def score(metric: Metric, images: int, ids: Sequence[str] = ()) -> Score:
    """A metric's figures with its name first.

    Args:
        metric: has seen the images.
        images: how many.
        ids: of the images, in the order in which the metric saw them; without them no evidence is kept.
    """
    values = metric.compute()
    ordered = {metric.name: values[metric.name], **values}
    evidence = metric.evidence() if ids and isinstance(metric, PerImageMetric) else None
    return Score(metric.name, metric.lower_is_better, ordered, images, evidence, tuple(ids))


@dataclass(frozen=True)
class KeptEvidence:
    """The evidence of one test, as a file holds it.

    Attributes:
        ids: of the test images, in order.
        evidence: what they contributed.
    """

    ids: tuple[str, ...]
    evidence: Evidence


KINDS: tuple[type[Evidence], ...] = (Hits, Ranking, PixelCounts, PixelSums, Detections)
"""The evidence that files are known to hold."""
_OWN = "evidence."  # before the names of its arrays; older files hold the metric's name as well


def save_evidence(path: Path, found: Score) -> bool:
    """Write the evidence of a score as an `.npz` file of plain arrays, atomically; equal evidence gives equal bytes.

    Args:
        path: of the file.
        found: with its evidence.

    Returns:
        whether there is such a file: there is none where the metric keeps no evidence.
    """
    if found.evidence is None:
        return False
    words = {"kind": found.evidence.kind, "ids": json.dumps(found.ids)}
    # Text as bytes: an array of texts pads all of them to the longest, four bytes a letter.
    arrays: dict[str, Any] = {name: np.frombuffer(text.encode(), np.uint8) for name, text in words.items()}
    arrays |= {f"{_OWN}{name}": array for name, array in found.evidence.arrays().items()}
    write_atomically(path, lambda stream: np.savez_compressed(stream, **arrays))
    return True


def load_evidence(path: Path) -> KeptEvidence:
    """The evidence that `save_evidence` wrote.

    Raises:
        UserError: the file is missing or damaged, or holds a kind that is none of `KINDS`.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        kind, ids = (arrays[name].tobytes().decode() for name in ("kind", "ids"))
        own = {name.removeprefix(_OWN): array for name, array in arrays.items() if name.startswith(_OWN)}
        evidence = {known.kind: known for known in KINDS}[kind](**own)
        names = tuple(map(str, json.loads(ids)))
        if len(names) != len(evidence):
            raise ValueError(f"{len(names)} ids of {len(evidence)} images")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            "the evidence of a test cannot be read",
            file=path,
            value=str(error) or type(error).__name__,
            fix="delete its stage's folder and run again; all but the intervals of this cell is there without it",
        ) from error
    return KeptEvidence(names, evidence)
