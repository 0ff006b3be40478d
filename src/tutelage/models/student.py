"""The multi-task network: backbone, pyramid, and one head for each named output (MuST section 3.2, figure 3).

Teachers are the same network with one head: the paper keeps the architecture equal on purpose (section 3.2).
Letters: B images, R labelled rows, H and W pixels of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field as Option
from torch import Tensor, nn

from tutelage.errors import UserError
from tutelage.models.backbone import AnyBackbone, Timm
from tutelage.models.learner import Learner
from tutelage.models.levels import pooled
from tutelage.models.maps import IMAGENET, Normalisation, freeze_unused, still
from tutelage.models.pyramid import Pyramid, fuse
from tutelage.part import Part, Positive
from tutelage.tasks.task import Features, Frame, Task, Widths, no_loss
from tutelage.types import Batch, Boxes, HeadBatch, LossSum, Stack, Target, stack, take


class Model(Part):
    """A network in a recipe and in a checkpoint: all that is needed to build it again."""

    backbone: AnyBackbone = Timm()
    pyramid: Pyramid = Pyramid()
    size: int = Option(640, ge=16)
    """Side of the square input in pixels; images are scaled to fit and padded."""
    mean: tuple[float, float, float] | None = None
    """Of RGB in [0, 1], subtracted from the images. Mean and `std` left out: as the backbone's weights want them, of
    random weights ImageNet's."""
    std: tuple[Positive, Positive, Positive] | None = None

    def build(self, heads: dict[str, Task], root: Path | None = None) -> Student:
        """The network with its initial weights; every task must know its classes."""
        return Student(self, heads, root)

    def resolved(self, root: Path) -> Model:
        """The same model with all in it that `build` needs without a root (`Backbone.resolved`), and the normalisation
        that its weights want, where none is stated."""
        backbone = self.backbone.resolved(root)
        if self.mean is not None and self.std is not None:
            return self.but(backbone=backbone)
        mean, std = backbone.normalisation() if backbone.pretrained else IMAGENET
        return self.but(backbone=backbone, mean=self.mean or mean, std=self.std or std)

    def normalisation(self) -> Normalisation:
        """Mean and standard deviation of a resolved model."""
        assert self.mean is not None
        assert self.std is not None
        return self.mean, self.std


class Student(Learner):
    """Backbone, pyramid (only if a head reads it) and heads.

    Args:
        model: what to build.
        heads: name to task.
        root: where relative paths of weight files start; None to leave the weights random.

    Raises:
        UserError: heads that cannot share a network, or a backbone that they cannot be put on.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Model, heads: dict[str, Task], root: Path | None = None) -> None:
        super().__init__()
        self.model, self.tasks = model.resolved(root or Path()), heads
        reads = {task.reads for task in heads.values()}
        self.fused, self.deepest = "fused" in reads, "deepest" in reads
        stride = _stride(heads)
        backbone = self.model.backbone if stride is None else self.model.backbone.dilated(stride)
        self.backbone = backbone.build(root)
        self.pyramid = model.pyramid.build(self.backbone) if reads & {"pyramid", "fused"} else None
        read = set() if self.pyramid is None else set(self.pyramid.inputs)
        self.pooled = pooled(self.backbone)
        if not read or "embedding" in reads:
            read |= set(self.pooled)
        if self.deepest:
            read.add(len(self.backbone.strides) - 1)
        freeze_unused(self.backbone, sorted(read), model.size)
        widths = Widths(self.backbone.widths[-1], model.pyramid.width)
        self.heads = nn.ModuleDict({name: task.head(widths) for name, task in heads.items()})
        mean, std = self.model.normalisation()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)

    def features(self, images: Tensor) -> Features:
        """Features of uint8 [B,3,H,W] RGB images."""
        return self.read(self.maps(images), (images.shape[2], images.shape[3]))

    def maps(self, images: Tensor) -> list[Tensor]:
        """The backbone's maps of uint8 [B,3,H,W] RGB images, one a stride (`FeatureMaps`)."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        maps: list[Tensor] = self.backbone(((images - self.mean) / self.std).contiguous(memory_format=layout))
        return maps

    def read(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Features:
        """What heads read, from the backbone's maps of images of H x W pixels."""
        levels = None if self.pyramid is None else self.pyramid(maps)
        fused = fuse(levels, size) if self.fused and levels is not None else None
        averages = [maps[i].mean((2, 3)) for i in self.pooled]
        embedding = averages[0] if len(averages) == 1 else torch.stack(averages).mean(0)
        return Features(embedding, levels, fused, size, maps[-1] if self.deepest else None)

    @property
    def channels_last(self) -> bool:
        """Whether the weights are stored channels-last; the images then follow."""
        kernel = next(p for p in self.backbone.parameters() if p.dim() == 4)
        return kernel.shape[2] * kernel.shape[3] > 1 and kernel.is_contiguous(memory_format=torch.channels_last)

    def forward(self, batch: Batch) -> dict[str, LossSum]:
        """The loss of every head on its labelled rows; a head without any gives 0, with every weight in the graph.

        A head without labels runs on one row, so that all heads run in every step on every process: the one pattern
        that keeps distributed training in step.
        """
        features = self.features(batch.images)
        return {name: self.loss(name, features, batch.heads.get(name)) for name in self.heads}

    def count(self, batch: Batch) -> dict[str, Tensor]:
        """Labelled images or pixels a head, 0 where no row is labelled."""
        return {name: self.count_of(name, batch.heads.get(name), batch.images.device) for name in self.tasks}

    def count_of(self, name: str, labelled: HeadBatch | None, device: torch.device) -> Tensor:
        """Labelled images or pixels among some rows of a head, float32 scalar."""
        if labelled is None or labelled.targets is None:
            return torch.zeros((), device=device)
        return self.tasks[name].count(labelled.targets)

    def trunk(self) -> nn.Module:
        """The backbone: a head may read its pooled last map without the pyramid."""
        return self.backbone

    def shared(self) -> list[nn.Parameter]:
        """Backbone and pyramid."""
        return [*self.backbone.parameters(), *([] if self.pyramid is None else self.pyramid.parameters())]

    def loss(self, name: str, features: Features, labelled: HeadBatch | None) -> LossSum:
        """The loss of a head on some labelled rows of a batch with these features."""
        head, task = self.heads[name], self.tasks[name]
        if labelled is None or labelled.targets is None:
            with still(head):  # an image that nobody labelled for it is none of its statistics
                output = head(features.rows(torch.zeros(1, dtype=torch.int64, device=self.device)), self._nothing(task))
            return LossSum(no_loss(output), torch.zeros((), device=self.device))
        every = len(labelled.rows) == len(features)
        output = head(features if every else features.rows(labelled.rows), labelled.targets)
        return task.loss(output, labelled.targets)

    def losses(self, name: str, features: Features, labelled: HeadBatch, parts: Sequence[Tensor]) -> list[LossSum]:
        """A head's losses on several parts of its labelled rows, from one pass where its task allows it.

        Args:
            name: of the head.
            features: of the batch.
            labelled: at least one row with its target.
            parts: int64 [N] each, numbers of labelled rows (not of images); N may be 0.
        """
        assert labelled.targets is not None
        task, every = self.tasks[name], len(labelled.rows) == len(features)
        output = self.heads[name](features if every else features.rows(labelled.rows), labelled.targets)
        found = []
        for index in parts:
            if not len(index):
                found.append(LossSum(no_loss(output), torch.zeros((), device=self.device)))
                continue
            targets, own = take(labelled.targets, index), task.part(output, index)
            if own is None:
                found.append(self.loss(name, features, HeadBatch(labelled.rows[index], targets)))
            else:
                found.append(task.loss(own, targets))
        return found

    def _nothing(self, task: Task) -> Stack | None:
        """An image without objects, for heads that look at their targets while they compute."""
        return stack([Boxes.make([], [])]).to(self.device) if task.kind is Boxes else None

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @torch.no_grad()
    def predict(
        self, images: Tensor, frames: Sequence[Frame], heads: Sequence[str] | None = None
    ) -> dict[str, list[Target]]:
        """What every head (or those named) says of uint8 [B,3,H,W] images, at the original images' sizes.

        The network must be in evaluation mode.
        """
        features = self.features(images)
        outputs: dict[str, Any] = {name: self.heads[name](features, None) for name in heads or self.heads}
        return {name: self.tasks[name].decode(output, frames, features.size) for name, output in outputs.items()}


def _stride(heads: dict[str, Task]) -> int | None:
    """The stride of the last map that heads ask for; None where none asks.

    Raises:
        UserError: two ask for different ones, or one stands beside a head on the pyramid, which needs a backbone that
            is not dilated.
    """
    asked = {name: task.stride for name, task in heads.items() if task.stride is not None}
    if not asked:
        return None
    name, stride = next(iter(asked.items()))
    other = next((n for n, s in asked.items() if s != stride), None)
    other = other or next((n for n, task in heads.items() if task.reads in ("pyramid", "fused")), None)
    if other is not None:
        raise UserError(
            f"the heads '{name}' and '{other}' cannot share a backbone: the first wants it dilated to stride {stride}",
            field=f"heads.{other}",
            value=heads[other].task,
            fix="give each a network of its own, or take `task: segmentation`, which reads the pyramid",
        )
    return stride
