"""What a frozen network sees in the labelled images of a dataset, computed once and kept in a file.

Letters in shapes: N images, D width of the features, K classes.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tutelage.data.loading import evaluation_batches
from tutelage.data.quarantine import Quarantine
from tutelage.data.source import Dataset
from tutelage.files import write_atomically
from tutelage.models.student import Student
from tutelage.progress import SILENT, Bar, Progress
from tutelage.training.processes import barrier, rank
from tutelage.types import Label


class Embedded(NamedTuple):
    """The labelled images of a dataset as a frozen network sees them.

    Attributes:
        features: float32 [N,D], the pooled deepest map.
        labels: float32 [N,K], probabilities of classes.
        ids: of the images, N of them.
    """

    features: Tensor
    labels: Tensor
    ids: list[str]

    def to(self, device: torch.device) -> Embedded:
        return Embedded(self.features.to(device), self.labels.to(device), self.ids)


def kept(
    file: Path,
    student: Student,
    dataset: Dataset,
    device: torch.device,
    batch: int = 64,
    quarantine: Quarantine | None = None,
    label: str = "features",
    progress: Progress = SILENT,
) -> Embedded:
    """As `embed`, from `file` where it holds the features of these images by this network; else it is written first.

    With several processes the first computes and the others read. That labels have changed since is not seen.

    Args:
        file: an `.npz` file; a damaged one is written again.
        student, dataset, device, batch, quarantine: as `embed`.
        label, progress: how to show it; nothing is shown where nothing is computed.
    """
    key = _key(student)
    if rank() == 0 and _load(file, key, dataset) is None:
        with progress.bar(label, len(dataset)) as bar:
            _save(file, key, dataset, embed(student, dataset, device, batch, quarantine, bar))
    barrier()
    found = _load(file, key, dataset)
    assert found is not None
    return found


@torch.inference_mode()
def embed(
    student: Student,
    dataset: Dataset,
    device: torch.device,
    batch: int = 64,
    quarantine: Quarantine | None = None,
    bar: Bar | None = None,
) -> Embedded:
    """The features of the labelled images of a dataset, on the CPU, in its order; others are passed over.

    Args:
        student: frozen: in evaluation mode, in float32 throughout; it is left so, on `device`.
        dataset: labels of classes.
        device: where to compute.
        batch: images at a time.
        quarantine: as `probe`.
        bar: told about images.
    """
    student.to(device).eval()
    features, labels = [torch.empty(0, student.backbone.widths[-1])], []
    ids: list[str] = []
    decoders = max(1, torch.get_num_threads())
    for found in evaluation_batches(dataset, student.model.size, batch, decoders, quarantine):
        rows = [row for row, target in enumerate(found.targets) if isinstance(target, Label)]
        if rows:
            pooled = student.features(found.images[rows].to(device, non_blocking=True)).embedding
            assert pooled is not None
            features.append(pooled.float().cpu())
            labels += [target.probs for target in found.targets if isinstance(target, Label)]
            ids += [found.ids[row] for row in rows]
        if bar is not None:
            bar.advance(len(found.ids))
    return Embedded(torch.cat(features), torch.stack(labels) if labels else torch.empty(0, 0), ids)


def _key(student: Student) -> str:
    """Hex digest of all that features depend on: the backbone's weights and how images come in."""
    hasher = hashlib.sha256(student.model.fingerprint().encode())
    for name, value in student.backbone.state_dict().items():
        hasher.update(name.encode())
        hasher.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()


def _save(file: Path, key: str, dataset: Dataset, found: Embedded) -> None:
    about = json.dumps({"key": key, "listing": dataset.listing(0, len(dataset)), "ids": found.ids})
    # Text as bytes: an array of texts would pad all ids to the longest.
    arrays: dict[str, Any] = {"about": np.frombuffer(about.encode(), np.uint8)}
    arrays |= {"features": found.features.numpy(), "labels": found.labels.numpy()}
    write_atomically(file, lambda stream: np.savez(stream, **arrays))


def _load(file: Path, key: str, dataset: Dataset) -> Embedded | None:
    """Features that were kept; None where there are none of this network and these images, or they are damaged."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            about = json.loads(stored["about"].tobytes())
            if (about["key"], about["listing"]) != (key, dataset.listing(0, len(dataset))):
                return None
            return Embedded(torch.from_numpy(stored["features"]), torch.from_numpy(stored["labels"]), about["ids"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
