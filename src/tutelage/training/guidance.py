"""Hints: the features of frozen networks that a student's features are to match (He et al., ECCV 2022, X-Learner,
section 3.3, equations 3 and 4; after Romero et al., ICLR 2015, FitNets).

Letters: B images of H x W pixels, C channels of a map of h x w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from tutelage.errors import UserError
from tutelage.models.expanded import Core, ExpandedMaps
from tutelage.models.maps import Backbone, FeatureMaps
from tutelage.models.student import Student
from tutelage.tasks.guide import Guide as Guide
from tutelage.tasks.guide import resized
from tutelage.training.precision import layout_of, place
from tutelage.types import LossSum

HINT = "hint: "
"""What the name of the loss of a hint begins with; the name of its task, teacher or head follows."""

Channels = tuple[float, float, float]


class Shaped(Protocol):
    """What is known of maps before there are any: their strides and their channels, from shallow to deep."""

    @property
    def strides(self) -> tuple[int, ...]: ...
    @property
    def widths(self) -> tuple[int, ...]: ...


class Frozen:
    """A network that is only looked at: its maps of images, without gradients, in evaluation mode.

    It is no module, so that a learner that holds it neither trains nor saves it, nor sends it to other processes, and
    `learner.train()` leaves it as it is. It follows the images from device to device, and computes in the precision of
    the autocast around it; what it gives is float32 all the same.

    Args:
        maps: is taken over, not copied: its weights are frozen, and it stays in evaluation mode.
        mean, std: of RGB in [0, 1], as its own weights want them.
    """

    def __init__(self, maps: FeatureMaps, mean: Channels, std: Channels) -> None:
        self.strides, self.widths = maps.strides, maps.widths
        self._maps, self._inputs = maps.eval().requires_grad_(False), _Inputs(mean, std)

    @classmethod
    def of(cls, student: Student) -> Frozen:
        """The backbone of one of our networks. The student is not to be used otherwise afterwards."""
        return cls(student.backbone, *student.model.normalisation())

    @classmethod
    def of_backbone(cls, part: Backbone, root: Path, *, load: bool = True) -> Frozen:
        """A backbone of any library with its own weights, which sees images normalised as these want them.

        Args:
            part: as in a recipe.
            root: where relative paths of weight files start.
            load: False: with random weights in their place, for its shapes alone.

        Raises:
            UserError: it has no weights, or they cannot be had.
        """
        if not part.pretrained:
            raise UserError(
                "a teacher of features has random weights: there is nothing to learn from it",
                field="weights",
                value=part.plain(),
                fix="name its weights: `weights: FILE`, or the library's own",
            )
        part = part.resolved(root)
        return cls(part.build(root) if load else part.blank().build(), *part.normalisation())

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Uint8 [B,3,H,W] RGB to one float32 map [B,widths[i],H/strides[i],W/strides[i]] a stride."""
        with torch.no_grad():
            return [one.float() for one in self._maps(self._inputs(images, self._maps))]


class FrozenTasks:
    """An expanded backbone that is only looked at: the maps F^t of all its tasks, from one pass.

    It is to all tasks what `Frozen` is to one network.

    Args:
        core: is taken over, as by `Frozen`.
        mean, std: of RGB in [0, 1], as its weights want them.

    Attributes:
        tasks: task name to the strides and channels of its maps.
    """

    def __init__(self, core: Core, mean: Channels, std: Channels) -> None:
        self.tasks = {task: _Shape(core.strides, widths) for task, widths in core.widths.items()}
        self._core, self._inputs = core.eval().requires_grad_(False), _Inputs(mean, std)

    @classmethod
    def of(cls, student: Student) -> FrozenTasks:
        """The expanded backbone of one of our networks. The student is not to be used otherwise afterwards.

        Raises:
            UserError: its backbone is not expanded.
        """
        if not isinstance(student.backbone, ExpandedMaps):
            raise UserError(
                "this model has no expanded backbone, and no features of several tasks",
                field="backbone",
                value=student.model.backbone.kind,
                fix="give the model that an expansion has written",
            )
        return cls(student.backbone.core, *student.model.normalisation())

    def __call__(self, images: Tensor) -> dict[str, list[Tensor]]:
        """Uint8 [B,3,H,W] RGB to the float32 maps of every task, as `Frozen` gives them."""
        with torch.no_grad():
            said = self._core.all(self._inputs(images, self._core))
            return {task: [one.float() for one in maps] for task, maps in said.items()}


class _Shape(NamedTuple):
    """The strides and channels of a task's maps."""

    strides: tuple[int, ...]
    widths: tuple[int, ...]


class _Inputs:
    """Images as a frozen network wants them, and the network where the images are."""

    def __init__(self, mean: Channels, std: Channels) -> None:
        self._mean, self._std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (mean, std))
        self._layout = torch.contiguous_format

    def __call__(self, images: Tensor, network: nn.Module) -> Tensor:
        """Float [B,3,H,W] of uint8 [B,3,H,W]; the network is moved where it is not yet on their device."""
        where, dtype = images.device, None
        if where.type != "meta" and torch.is_autocast_enabled(where.type):  # meta: shapes alone
            dtype = torch.get_autocast_dtype(where.type)
        layout = layout_of(where, dtype)  # as the training loop has its own
        if where != self._mean.device or layout is not self._layout:
            place(network, where, dtype)
            self._mean, self._std = self._mean.to(images.device), self._std.to(images.device)
            self._layout = layout
        return ((images - self._mean) / self._std).contiguous(memory_format=layout)


class Guidance(nn.Module):
    """One term of equation 3: the squared L2 distance of a teacher's maps from the guided maps of a student.

    The student's deepest map is matched with the teacher's deepest, the one before with the one before, and so on, each
    by a guide of its own. The paper matches the deepest alone. Where two differ in size, the teacher's is brought to
    the student's: by averaging areas where it is larger both ways, else bilinearly.

    The paper leaves open by what the squared distance is divided. Here a level counts ||.||^2 / (C h w), the mean
    over the numbers of an image, so that a loss neither grows with the width of the teacher nor with the image; levels
    are summed, and a unit of the loss is an image.

    Args:
        student, teacher: strides and channels of both.
        levels: how many maps are matched, at least 1.

    Raises:
        UserError: one of the two has fewer maps.
    """

    def __init__(self, student: Shaped, teacher: Shaped, levels: int = 1) -> None:
        super().__init__()
        for who, shape in (("student", student), ("teacher", teacher)):
            if not 1 <= levels <= len(shape.strides):
                raise UserError(
                    f"the {who} has {len(shape.strides)} maps, of strides {', '.join(map(str, shape.strides))}",
                    field="levels",
                    value=levels,
                    fix=f"from 1 to {len(shape.strides)}",
                )
        self.levels = levels
        pairs = zip(student.widths[-levels:], teacher.widths[-levels:], strict=True)
        self.guides = nn.ModuleList(Guide(own, hint) for own, hint in pairs)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> LossSum:
        """The loss of B images, computed in float32; the count is B.

        Args:
            student: all its maps [B,C,h,w], with their graph.
            teacher: all its maps of the same images, without.
        """
        total = torch.zeros((), device=student[-1].device)
        for guide, own, hint in zip(self.guides, student[-self.levels :], teacher[-self.levels :], strict=True):
            guided = guide(own)
            apart = resized(hint.float(), (own.shape[2], own.shape[3])) - guided
            total = total + apart.square().sum() / guided[0].numel()
        return LossSum(total, self.count(student[-1]))

    def count(self, images: Tensor) -> Tensor:
        """Units in the loss of images [B,...], float32 scalar: B."""
        return torch.tensor(float(len(images)), device=images.device)
