"""The network of an expansion with its losses: a sub-backbone a task, first each alone, then joined by reconciliation
layers (He et al., ECCV 2022, X-Learner, section 3.2); with hints of specialists, as in X-Learner++ (section 3.4).

Letters: T tasks, tau steps in which each learns alone; R rows of a batch of B images.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from tutelage.errors import UserError
from tutelage.models.expanded import Core, Expanded, ExpandedMaps, Reconciliation
from tutelage.models.learner import Learner
from tutelage.models.maps import Backbone, evaluating
from tutelage.models.student import Model, Student
from tutelage.tasks.task import Task
from tutelage.training.guidance import HINT, Frozen, Guidance
from tutelage.types import Batch, HeadBatch, LossSum


class Expansion(Learner):
    """T networks on one expanded backbone, each with the heads of its task and a pyramid of its own.

    It is made with its reconciliation layers in force, as after tau; `alone` and `join` change between the two phases.
    All its random weights follow from torch's generator.

    Args:
        model: what the networks have in common; its own backbone is not looked at.
        tasks: task name to its heads.
        branches: task name to its sub-backbone.
        reconciliation: the layers between the sub-backbones; None: there are none, they stay alone.
        root: where relative paths of weight files start; None to leave the weights random.
        hints: head to the specialist whose features are hints on this head's images (X-Learner++). They are given in
            every step, before tau and after: the paper does not say until when.
        levels: how many of the deepest maps the hints are about.

    Raises:
        UserError: tasks, heads and sub-backbones that do not go together, or that a network cannot be built of.
    """

    def __init__(
        self,
        model: Model,
        tasks: Mapping[str, Mapping[str, Task]],
        *,
        branches: Mapping[str, Backbone],
        reconciliation: Reconciliation | None = None,
        root: Path | None = None,
        hints: Mapping[str, Frozen] | None = None,
        levels: int = 1,
    ) -> None:
        super().__init__()
        _check(tasks, branches, hints or {})
        backbone = Expanded(branches={t: branches[t] for t in tasks}, reconciliation=reconciliation)
        self._whole = model.but(backbone=backbone).resolved(root or Path())
        students: dict[str, Student] = {}
        for task, heads in tasks.items():
            view = self._whole.but(backbone=self._whole.backbone.but(output=task))
            _refuse_dilation(view, task, heads)
            # only the first network's sub-backbones are kept: the others need not load theirs
            students[task] = view.build(dict(heads), None if students else root)
        _share_one_core(students)
        self.students = nn.ModuleDict(students)
        self._joints = [p for p in self.core.reconciliation.parameters() if p.requires_grad]
        self.specialists = dict(hints or {})
        self.guides = nn.ModuleDict(
            {
                head: Guidance(self.student_of(head).backbone, specialist, levels)
                for head, specialist in self.specialists.items()
            }
        )
        self.register_state_dict_post_hook(_drop_copies)
        self.register_load_state_dict_pre_hook(_bring_back_copies)

    @property
    def core(self) -> Core:
        """The sub-backbones and the layers between them."""
        return _view(next(iter(self.networks.values()))).core

    @property
    def networks(self) -> dict[str, Student]:
        """Task name to the network with its heads, on the expanded backbone."""
        return {task: cast(Student, student) for task, student in self.students.items()}

    @property
    def heads(self) -> list[str]:
        """Of all tasks."""
        return [head for student in self.networks.values() for head in student.tasks]

    @property
    def size(self) -> int:
        """Side of the square input in pixels."""
        return self._whole.size

    @property
    def reconciled(self) -> bool:
        """Whether there are layers between the sub-backbones."""
        return len(self._joints) > 0

    def student_of(self, head: str) -> Student:
        """The network that a head is on."""
        return next(student for student in self.networks.values() if head in student.tasks)

    def alone(self) -> None:
        """k <= tau: every sub-backbone by itself; nothing moves the reconciliation layers, not even weight decay."""
        self._phase(joined=False)

    def join(self) -> None:
        """k > tau: reconciliation layers are in force and learn."""
        self._phase(joined=True)

    def _phase(self, joined: bool) -> None:
        self.core.joined = joined
        for parameter in self._joints:
            parameter.requires_grad_(joined)

    def forward(self, batch: Batch) -> dict[str, LossSum]:
        """The loss of every head and hint; each task's network sees the images that are labelled for one of its heads.

        An image with labels of two tasks goes to both. A task without an image runs on one that is none of its own, so
        that every weight is in the graph; its losses are 0, and the norms of backbone and pyramid take no note of it.
        """
        found: dict[str, LossSum] = {}
        for student in self.networks.values():
            rows = labelled_rows(batch, student.tasks)
            own = part_of(batch, rows if len(rows) else rows.new_zeros(1), student.tasks)
            still = not len(rows) or _is_one_number(student, own.images)
            with evaluating(*_trunk(student)) if still else nullcontext():
                found |= self._losses(student, own)
        return found

    def _losses(self, student: Student, own: Batch) -> dict[str, LossSum]:
        """Those of one task, on its images."""
        maps = student.maps(own.images)
        features = student.read(maps, (own.images.shape[2], own.images.shape[3]))
        found = {head: student.loss(head, features, own.heads[head]) for head in student.tasks}
        for head in student.tasks:
            if head in self.specialists:
                found[f"{HINT}{head}"] = self._hint(head, maps, own)
        return found

    def _hint(self, head: str, maps: Sequence[Tensor], own: Batch) -> LossSum:
        """How far the features of a head's images are from what the specialist makes of the same images."""
        rows, guidance = own.heads[head].rows, self._guidance(head)
        if not len(rows):
            zero = torch.stack([p.sum() for p in guidance.parameters()]).sum() * 0
            return LossSum(zero, zero.detach())
        every = len(rows) == len(own.images)
        said = self.specialists[head](own.images if every else own.images[rows])
        loss: LossSum = guidance(maps if every else [m.index_select(0, rows) for m in maps], said)
        return loss

    def count(self, batch: Batch) -> dict[str, Tensor]:
        """Labelled images or pixels a head, labelled images a hint; 0 where no row is labelled."""
        found: dict[str, Tensor] = {}
        for student in self.networks.values():
            found |= student.count(batch)
            for head in student.tasks:
                if head in self.specialists:
                    found[f"{HINT}{head}"] = self._guidance(head).count(batch.images[: _labelled(batch, head)])
        return found

    def _guidance(self, head: str) -> Guidance:
        return cast(Guidance, self.guides[head])

    def trunk(self) -> nn.Module:
        """The expanded backbone."""
        return self.core

    def shared(self) -> list[nn.Parameter]:
        """The expanded backbone and the pyramids."""
        pyramids = [part for student in self.networks.values() for part in _trunk(student)[1:]]
        return [*self.core.parameters(), *(p for pyramid in pyramids for p in pyramid.parameters())]

    def own(self, task: str) -> list[nn.Parameter]:
        """What the losses of this task alone move before tau: sub-backbone, pyramid, heads, guides."""
        student = self.networks[task]
        parts = [self.core.branches[task], *_trunk(student)[1:], student.heads]
        parts += [self.guides[head] for head in student.tasks if head in self.specialists]
        return [p for part in parts for p in part.parameters()]

    def backbone(self) -> Student:
        """The expanded backbone as a network without heads; its maps are those of all tasks side by side.

        It shares the weights. Torch's random state is left as it was.
        """
        with torch.random.fork_rng(devices=[]):
            whole = self._whole.build({})
        _view(whole).core = self.core
        return whole


def labelled_rows(batch: Batch, heads: Collection[str]) -> Tensor:
    """The rows of a batch that are labelled for any of some heads: int64 [R], increasing."""
    labelled = torch.zeros(len(batch.images), dtype=torch.bool, device=batch.images.device)
    for head in heads:
        if head in batch.heads:
            labelled[batch.heads[head].rows] = True
    return labelled.nonzero()[:, 0]


def part_of(batch: Batch, rows: Tensor, heads: Collection[str]) -> Batch:
    """Some rows of a batch as a batch, with the labels of some heads.

    Args:
        batch: the whole.
        rows: int64 [R], increasing; every row that is labelled for one of `heads` is among them, unless none is.
        heads: names; those that the batch has not are without labels.
    """
    nothing = HeadBatch(rows.new_zeros(0), None)
    given = {head: batch.heads.get(head, nothing) for head in heads}
    if len(rows) == len(batch.images):
        return Batch(batch.images, given, batch.ids)
    # where each labelled row stands among the rows that are left: both are in order
    moved = {head: HeadBatch(torch.searchsorted(rows, h.rows), h.targets) for head, h in given.items()}
    return Batch(batch.images[rows], moved, [batch.ids[row] for row in rows.tolist()])


def _labelled(batch: Batch, head: str) -> int:
    """How many images of a batch are labelled for a head."""
    return len(batch.heads[head].rows) if head in batch.heads else 0


def _trunk(student: Student) -> list[nn.Module]:
    """Backbone and, where there is one, pyramid."""
    return [student.backbone, *([] if student.pyramid is None else [student.pyramid])]


def _is_one_number(student: Student, images: Tensor) -> bool:
    """Whether the backbone's deepest map of some images has a single number a channel, of which its norms can learn no
    spread."""
    return len(images) == 1 and max(images.shape[2:]) <= student.backbone.strides[-1]


def _view(student: Student) -> ExpandedMaps:
    """The backbone of a network on an expanded backbone."""
    return cast(ExpandedMaps, student.backbone)


def _share_one_core(students: Mapping[str, Student]) -> None:
    """Put the first network's sub-backbones and layers in the place of all others'.

    A weight is frozen only if every network has frozen it: none of them reads it.
    """
    cores = [_view(student).core for student in students.values()]
    others = [dict(core.named_parameters()) for core in cores]
    for name, parameter in cores[0].named_parameters():
        parameter.requires_grad_(any(weights[name].requires_grad for weights in others))
    for student in students.values():
        _view(student).core = cores[0]


_CORE = ".backbone.core."


def _drop_copies(expansion: nn.Module, state: dict[str, Any], prefix: str, about: Any) -> None:
    """Keep the one core under the first network's name alone: a state dict would have it once a network."""
    copies = list(cast(Expansion, expansion).networks)[1:]
    starts = tuple(f"{prefix}students.{task}{_CORE}" for task in copies)
    for name in [name for name in state if name.startswith(starts)]:
        del state[name]


def _bring_back_copies(expansion: nn.Module, state: dict[str, Any], prefix: str, *about: Any) -> None:
    """What `_drop_copies` took out, for torch's strict loading."""
    first, *copies = cast(Expansion, expansion).networks
    start = f"{prefix}students.{first}{_CORE}"
    for name in [name for name in state if name.startswith(start)]:
        for task in copies:
            state[f"{prefix}students.{task}{_CORE}{name.removeprefix(start)}"] = state[name]


def _check(
    tasks: Mapping[str, Mapping[str, Task]], branches: Mapping[str, Backbone], hints: Mapping[str, Frozen]
) -> None:
    """Raises UserError where tasks, heads, sub-backbones and hints do not go together."""
    if not tasks:
        raise UserError("an expansion needs a task", field="tasks", fix="give it sources with labels")
    where: dict[str, str] = {}
    for task, heads in tasks.items():
        if not heads:
            raise UserError(
                "a task has no head: no source is labelled for it", field=f"tasks.{task}", fix="leave it out"
            )
        for head in heads:
            if head in where:
                raise UserError(
                    f"the head '{head}' is of two tasks, '{where[head]}' and '{task}'",
                    field=f"tasks.{task}",
                    value=head,
                    fix="give it to one of them",
                )
            where[head] = task
    for task in [*tasks, *branches]:
        if task not in branches or task not in tasks:
            missing = "sub-backbone" if task in tasks else "head"
            raise UserError(f"the task '{task}' has no {missing}", field="branches", fix=f"tasks: {list(tasks)}")
    unknown = [head for head in hints if head not in where]
    if unknown:
        raise UserError("a hint names no head", field="hints", value=unknown[0], fix=f"heads: {list(where)}")


def _refuse_dilation(view: Model, task: str, heads: Mapping[str, Task]) -> None:
    """Raises UserError where a head wants a backbone dilated: the other tasks' networks share it as it is."""
    for head, wanted in heads.items():
        if wanted.stride is not None and view.backbone.dilated(wanted.stride) != view.backbone:
            raise UserError(
                f"the head '{head}' wants its backbone dilated to stride {wanted.stride}, which an expanded one is not",
                field=f"tasks.{task}",
                value=wanted.task,
                fix="take `task: segmentation`, which reads the pyramid",
            )
