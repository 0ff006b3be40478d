"""The training of an expansion: algorithm 1 and the weights of equation 1 (He et al., ECCV 2022, X-Learner, sections
3.1 and 3.2).

Letters: K steps, tau of them alone; T tasks, task t with N_t sources; N sources of all tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.data.loading import Labels
from tutelage.data.mixture import Mixture
from tutelage.data.quarantine import Quarantine
from tutelage.data.source import LabelSpace
from tutelage.errors import UserError
from tutelage.models.learner import Learner
from tutelage.progress import SILENT, Progress
from tutelage.training.checkpoint import save_model
from tutelage.training.expansion import Expansion
from tutelage.training.fit import batches_of
from tutelage.training.guidance import HINT
from tutelage.training.loop import Batches, train
from tutelage.training.processes import barrier, rank
from tutelage.training.rules import Weighted
from tutelage.training.schedule import Training


class EachAlone(Weighted):
    """The sum over tasks that share no weight: as good as T trainings, each gradient clipped by itself.

    Args:
        weights: of each loss.
        clip: largest norm of the gradient of one task; None: no clipping. The loop itself must not clip.
    """

    def __init__(self, weights: Mapping[str, float], clip: float | None) -> None:
        super().__init__(weights)
        self.clip = clip

    def settle(self, learner: Learner, losses: Mapping[str, Tensor], chance: torch.Generator) -> None:
        super().settle(learner, losses, chance)
        if self.clip is not None:
            assert isinstance(learner, Expansion)
            for task in learner.networks:
                nn.utils.clip_grad_norm_(learner.own(task), self.clip)


def source_weights(
    expansion: Expansion, sources: Mapping[str, int], joint: bool, hint: float = 1.0
) -> dict[str, float]:
    """Weights that make the sum of the losses the average over sources (equation 1).

    A source counts 1 / N_t while its task learns alone, since every sub-backbone has an update of its own, and 1 / N
    jointly. A head that n sources label counts n times as much; inside it, the units of all its sources are averaged
    together, so that one with more of them in a batch counts more.

    Args:
        expansion: whose losses.
        sources: head to the number of sources that label it, at least 1.
        joint: whether the tasks learn jointly.
        hint: weight of a hint, in units of its head's.

    Raises:
        UserError: a head without a source.
    """
    unlabelled = [head for head in expansion.heads if sources.get(head, 0) < 1]
    if unlabelled:
        raise UserError(
            "a head has no source that labels it", field=f"heads.{unlabelled[0]}", fix="give it one, or leave it out"
        )
    found: dict[str, float] = {}
    for student in expansion.networks.values():
        total = sum(sources[head] for head in (expansion.heads if joint else student.tasks))
        for head in student.tasks:
            found[head] = sources[head] / total
            if head in expansion.specialists:
                found[f"{HINT}{head}"] = hint * found[head]
    return found


def expand(
    expansion: Expansion,
    mixture: Mixture,
    settings: Training,
    alone: int,
    folder: Path,
    *,
    sources: Mapping[str, int],
    seed: int,
    device: torch.device,
    spaces: Mapping[str, LabelSpace],
    hint_weight: float = 1.0,
    labels: Labels | None = None,
    quarantine: Quarantine | None = None,
    label: str = "expansion",
    progress: Progress = SILENT,
) -> None:
    """Algorithm 1: tau steps of every sub-backbone alone, the others jointly; then the models are written.

    Both phases are one training, with one schedule and one optimiser's state. Killed at any moment and called again, it
    goes on from its checkpoint. `settings.clip` is of each task's gradient while it learns alone, then of all together.

    Args:
        expansion: on the CPU, with its initial weights; trained in place and left on `device`.
        mixture: of the images of all tasks, drawn with the same seed.
        settings: of both phases together: K steps.
        alone: tau.
        folder: of the stage; what is in it afterwards is said at `save_expansion`.
        sources: head to the number of sources that label it (equation 1).
        seed: of sampling, augmentation and everything random in the network.
        device: where to train.
        spaces: the heads' label spaces.
        hint_weight: weight of a hint, in units of its head's.
        labels: pseudo labels, joined to the images; None for human labels alone.
        quarantine: where images that cannot be read are listed.
        label, progress: how to show it.

    Raises:
        UserError: tau beyond the last step, or at it with reconciliation layers, which would never learn; a head
            without a source.
        Diverged: a loss is no finite number.
    """
    _check_alone(alone, settings.steps, expansion)
    apart, together = (source_weights(expansion, sources, joint, hint_weight) for joint in (False, True))
    how: dict[str, Any] = {"seed": seed, "device": device, "progress": progress}

    def batches(until: int) -> Batches:
        return batches_of(
            mixture,
            expansion.heads,
            expansion.size,
            settings,
            settings.augment,
            seed=seed,
            until=until,
            labels=labels,
            quarantine=quarantine,
        )

    if alone > 0:
        expansion.alone()
        rule = EachAlone(apart, settings.clip)
        single = settings.but(clip=None)
        train(expansion, single, rule, batches(alone), folder, until=alone, label=f"{label}, alone", **how)
    if alone < settings.steps:
        expansion.join()
        rest = batches(settings.steps)
        train(expansion, settings, Weighted(together), rest, folder, shown_from=alone, label=label, **how)
    if rank() == 0:
        save_expansion(folder, expansion, spaces)
    barrier()


def save_expansion(folder: Path, expansion: Expansion, spaces: Mapping[str, LabelSpace]) -> None:
    """Write all models of an expansion: `tasks/TASK/` has the heads of a task on the expanded backbone; the folder
    itself, written last, the backbone without heads, whose maps are those of all tasks side by side."""
    for task, student in expansion.networks.items():
        save_model(folder / "tasks" / task, student, {name: spaces[name] for name in student.tasks if name in spaces})
    save_model(folder, expansion.backbone(), {})


def _check_alone(alone: int, steps: int, expansion: Expansion) -> None:
    """Raises UserError where tau does not leave the steps that it must."""
    if not 0 <= alone <= steps:
        raise UserError(
            "the steps alone do not lie inside the training", field="alone", value=alone, fix=f"0 to {steps}, all steps"
        )
    if alone == steps and expansion.reconciled:
        raise UserError(
            "no step is left for the reconciliation layers, which would never learn",
            field="alone",
            value=alone,
            fix="fewer steps alone, or no reconciliation",
        )
