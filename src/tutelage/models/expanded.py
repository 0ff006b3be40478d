"""The expanded backbone of X-Learner (He et al., ECCV 2022, section 3.2): one sub-backbone a task, joined by layers.

Letters as in `reconciliation.py`; F is E with all that is received (equation 2). B images, C channels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from tutelage.errors import UserError
from tutelage.models.maps import Backbone, FeatureMaps, Normalisation, evaluating
from tutelage.models.reconciliation import Reconciliation, fitted
from tutelage.models.spinenet import SpineNet
from tutelage.models.timm import Timm
from tutelage.models.torchvision import Torchvision
from tutelage.models.transformers import Transformers
from tutelage.part import one_of

if TYPE_CHECKING:
    Branch = Backbone
else:
    Branch = one_of(Backbone, "kind", (Timm, Torchvision, Transformers, SpineNet))


class Core(nn.Module):
    """The sub-backbones and the layers between them. All views of one expanded backbone share one.

    A task's features are made of its own sub-backbone and of the layers into it, and gradients reach these alone: what
    another sub-backbone gives is detached before a layer takes it.

    Attributes:
        branches: the sub-backbone of every task.
        reconciliation: task t to task k to the `Link` from k to t; empty where there are none.
        joined: whether the layers take part. While they do not, every sub-backbone is alone.
        strides: of the levels, which all sub-backbones share.
        widths: task to the channels of its levels.
    """

    def __init__(self, branches: Mapping[str, FeatureMaps], reconciliation: Reconciliation | None) -> None:
        super().__init__()
        self.branches = nn.ModuleDict(branches)
        self.strides = next(iter(branches.values())).strides
        self.widths = {task: maps.widths for task, maps in branches.items()}
        self.reconciliation = nn.ModuleDict()
        if reconciliation is not None and len(branches) > 1:
            for t, target in branches.items():
                links = {k: reconciliation.link(source, target) for k, source in branches.items() if k != t}
                self.reconciliation[t] = nn.ModuleDict(links)
        self.joined = True
        self.shallower = reconciliation is not None and reconciliation.direction == "shallower"

    def fused(self, images: Tensor, task: str) -> list[Tensor]:
        """F of one task, one map [B,C,h,w] a level, of normalised images, float [B,3,H,W].

        The other sub-backbones look at the images as frozen networks: in evaluation mode, with their running
        statistics, which stay as they are, and without gradients.
        """
        with evaluating(*(branch for k, branch in self.branches.items() if k != task and self._linked)):
            return self._fuse(images, (task,))[task]

    def all(self, images: Tensor) -> dict[str, list[Tensor]]:
        """F of every task, as `fused` gives it, all at once; every sub-backbone is in its own mode, with gradients.

        From deeper to shallower levels (X-Learner_t) a sub-backbone runs twice: first alone, as a frozen network, for
        what the others receive.
        """
        return self._fuse(images, tuple(self.branches))

    def _fuse(self, images: Tensor, learning: Collection[str]) -> dict[str, list[Tensor]]:
        """F of the tasks in `learning`, with gradients for these."""
        if not self._linked:
            return {task: self._branch(task)(images) for task in learning}
        return (self._shallower if self.shallower else self._deeper)(images, learning)

    def _deeper(self, images: Tensor, learning: Collection[str]) -> dict[str, list[Tensor]]:
        """Equation 2, all sub-backbones in one step from level to level: each goes on from what was fused."""
        steps = {task: self._branch(task).steps() for task in self.branches}
        learns = {task: task in learning and torch.is_grad_enabled() for task in steps}
        before = dict.fromkeys(steps, images)
        received: dict[str, dict[str, Tensor]] = {task: {} for task in steps}
        found: dict[str, list[Tensor]] = {task: [] for task in learning}
        for level in range(len(self.strides)):
            own = {}
            for task, way in steps.items():
                with torch.set_grad_enabled(learns[task]):
                    own[task] = way[level](before[task])
            last = level + 1 == len(self.strides)
            for task in learning if last else steps:  # nobody asks for the others' deepest features
                with torch.set_grad_enabled(learns[task]):
                    for k, link in self._links(task):
                        received[task][k] = link(level, own[k].detach(), received[task].get(k))
                    before[task] = _summed(own[task], received[task].values())
                if task in found:
                    found[task].append(before[task])
        return found

    def _shallower(self, images: Tensor, learning: Collection[str]) -> dict[str, list[Tensor]]:
        """Equation 2 from deeper to shallower levels: E of the other tasks comes first, from each of them alone."""
        asked = [k for k in self.branches if set(learning) - {k}]
        with evaluating(*(self.branches[k] for k in asked)), torch.no_grad():
            own = {k: self._branch(k)(images) for k in asked}
        found: dict[str, list[Tensor]] = {task: [] for task in learning}
        for task, maps in found.items():
            received = [link(own[k]) for k, link in self._links(task)]
            for level, step in enumerate(self._branch(task).steps()):
                maps.append(_summed(step(maps[-1] if maps else images), [levels[level] for levels in received]))
        return found

    @property
    def _linked(self) -> bool:
        """Whether the sub-backbones see anything of one another."""
        return self.joined and len(self.reconciliation) > 0

    def _branch(self, task: str) -> FeatureMaps:
        branch = self.branches[task]
        assert isinstance(branch, FeatureMaps)
        return branch

    def _links(self, task: str) -> list[tuple[str, nn.Module]]:
        """The layers into a task, with the tasks they come from."""
        links = self.reconciliation[task]
        assert isinstance(links, nn.ModuleDict)
        return list(links.items())


class ExpandedMaps(FeatureMaps):
    """A view of an expanded backbone: the features of one task, or those of all, one behind the other in channels."""

    def __init__(self, core: Core, output: str | None) -> None:
        super().__init__()
        self.core, self.output = core, output
        self.strides = core.strides
        all_tasks = zip(*core.widths.values(), strict=True)
        self.widths = tuple(sum(level) for level in all_tasks) if output is None else core.widths[output]

    def forward(self, images: Tensor) -> list[Tensor]:
        if self.output is not None:
            return self.core.fused(images, self.output)
        levels = zip(*self.core.all(images).values(), strict=True)
        return [torch.cat([fitted(m, maps[0]) for m in maps], 1) for maps in levels]


class Expanded(Backbone):
    """One sub-backbone a task, joined by reconciliation layers: what the expansion of X-Learner trains.

    All sub-backbones look at the same images, and have the same number of levels with the same strides; their widths
    may differ.
    """

    kind: Literal["expanded"] = "expanded"
    branches: dict[str, Branch] = Field(min_length=1)
    """Task to its sub-backbone. Where there are reconciliation layers between several, each must be one that can be
    cut between its maps: no vision transformer, no SpineNet."""
    reconciliation: Reconciliation | None = Reconciliation()
    """None: the sub-backbones stand side by side, each alone."""
    output: str | None = None
    """The task whose features are the maps. Left out, those of all tasks are, side by side in channels."""

    @field_validator("branches")
    @classmethod
    def _names(cls, branches: dict[str, Backbone]) -> dict[str, Backbone]:
        for task, branch in branches.items():
            check_task_name(task)
            if isinstance(branch, Expanded):
                raise ValueError(f"{task}: a sub-backbone cannot be an expanded backbone itself")
        return branches

    @model_validator(mode="after")
    def _one_of_them(self) -> Expanded:
        if self.output is not None and self.output not in self.branches:
            raise ValueError(f"output: there is no sub-backbone '{self.output}'; known: {', '.join(self.branches)}")
        return self

    @property
    def pretrained(self) -> bool:
        return any(branch.pretrained for branch in self.branches.values())

    def blank(self) -> Expanded:
        return self.but(branches={task: branch.blank() for task, branch in self.branches.items()})

    def resolved(self, root: Path) -> Expanded:
        return self.but(branches={task: branch.resolved(root) for task, branch in self.branches.items()})

    def files(self, root: Path) -> list[Path]:
        return [file for branch in self.branches.values() for file in branch.files(root)]

    def build(self, root: Path | None = None) -> ExpandedMaps:
        """As `Backbone.build`; the layers have first weights as `Reconciliation.initial` says, biases 0.

        Raises:
            UserError: as well where sub-backbones differ in their levels, or one cannot be cut between its maps.
        """
        branches = {task: branch.build(root) for task, branch in self.branches.items()}
        _check_levels(branches)
        if self.reconciliation is not None and len(branches) > 1:
            for task, maps in branches.items():
                try:
                    maps.steps()
                except UserError as error:
                    raise UserError(
                        f"the sub-backbone '{task}' cannot be joined to others: {error.problem}",
                        field=f"branches.{task}",
                        value=self.branches[task].plain(),
                        fix=f"{error.fix}; or leave out the layers between them: `reconciliation: null`",
                    ) from None
        return ExpandedMaps(Core(branches, self.reconciliation), self.output)

    def check(self, root: Path) -> None:
        """As `Backbone.check`, and that the sub-backbones fit together, from their shapes alone."""
        for branch in self.branches.values():
            branch.check(root)
        try:
            with torch.device("meta"):
                self.resolved(root).blank().build()
        except UserError:
            raise
        except Exception:  # a backbone of the user's own that cannot be built without values: `build` will say
            return

    def normalisation(self) -> Normalisation:
        """That of the sub-backbones with loaded weights; where there are none, of the output's, or of the first.

        Raises:
            UserError: weights that want their images in different ways.
        """
        wanted = {task: branch.normalisation() for task, branch in self.branches.items() if branch.pretrained}
        if not wanted:
            return self.branches[self.output or next(iter(self.branches))].normalisation()
        one = next(iter(wanted))
        for other, normalisation in wanted.items():
            if normalisation != wanted[one]:
                raise UserError(
                    f"the sub-backbones '{one}' and '{other}' want the same images normalised in different ways",
                    field="branches",
                    value={one: wanted[one], other: normalisation},
                    fix="start them from weights of one kind, or state the model's `mean` and `std`",
                )
        return wanted[one]

    def dilated(self, stride: int) -> Expanded:
        """As `Backbone.dilated`. With reconciliation layers only where nothing changes: they belong to the strides."""
        branches = {task: branch.dilated(stride) for task, branch in self.branches.items()}
        if self.reconciliation is not None and len(branches) > 1 and branches != self.branches:
            raise UserError(
                f"an expanded backbone with reconciliation layers cannot be dilated to stride {stride}: they join maps "
                "of the strides that it has",
                field="backbone",
                value=self.kind,
                fix="put heads on it that read the pyramid or the undilated maps, or squeeze it first",
            )
        return self.but(branches=branches)


RECONCILIATION = "reconciliation"
"""What `weights_of` calls the layers between sub-backbones; no task has this name."""


def weights_of(core: Core) -> dict[str, int]:
    """How many weights an expanded backbone has (the paper's figure 4), by task; those of the reconciliation layers
    last. What no map hangs on counts as well."""
    parts = {**core.branches, RECONCILIATION: core.reconciliation}
    return {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}


def check_task_name(task: str) -> None:
    """Raises ValueError where a task's name can be neither that of a module nor of a folder."""
    try:
        nn.ModuleDict({task: nn.Identity()})
        usable = task != RECONCILIATION and not set(task) & set("/\\\0")
    except KeyError:
        usable = False
    if not usable:
        raise ValueError(f"'{task}' cannot be the name of a task: no dots or slashes, and none of torch's words")


def _check_levels(branches: Mapping[str, FeatureMaps]) -> None:
    """That all sub-backbones have the same levels.

    Raises:
        UserError: naming two that do not, or one whose strides are no multiples of one another.
    """
    first, own = next((task, maps.strides) for task, maps in branches.items())
    for task, maps in branches.items():
        if maps.strides != own:
            raise UserError(
                f"the sub-backbones '{first}' and '{task}' do not have the same levels: "
                f"{len(own)} (strides {', '.join(map(str, own))}) and "
                f"{len(maps.strides)} (strides {', '.join(map(str, maps.strides))})",
                field=f"branches.{task}",
                fix="take sub-backbones with the same number of levels and the same strides; widths may differ",
            )
    if any(deep % fine for fine, deep in pairwise(own)):
        raise UserError(
            f"the strides of the sub-backbone '{first}' are no multiples of one another",
            field=f"branches.{first}",
            value=own,
            fix="take another",
        )


def _summed(own: Tensor, received: Collection[Tensor]) -> Tensor:
    """E plus all that is received, as precise as E."""
    for part in received:
        own = own + fitted(part, own).to(own.dtype)
    return own
