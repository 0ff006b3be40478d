"""Frozen networks as teachers of features: what they see in an image, before any class is named."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field as Option
from pydantic import model_validator
from torch import nn

from tutelage.data.geometry import letterbox
from tutelage.data.source import LabelSpace, UInt8
from tutelage.errors import UserError, first_line
from tutelage.models.backbone import AnyBackbone, Backbone, Expanded
from tutelage.models.expanded import ExpandedMaps
from tutelage.tasks.features import Hints, in_image
from tutelage.tasks.task import Task
from tutelage.teachers.foreign import check_weights, refuse_averaging, shown_path
from tutelage.teachers.teacher import Specialist, Teacher, check_task, digest_of
from tutelage.training.checkpoint import find_model, load_model, model_hash, read_architecture
from tutelage.training.guidance import Frozen
from tutelage.types import Target

_SIZE = 224


class FeatureTeacher(Specialist):
    """A backbone of any library with its own weights, or that of a model of ours; its deepest map fills the head."""

    kind: Literal["features"] = "features"
    backbone: AnyBackbone | None = None
    """With its weights: `{kind: timm, name: resnet50.a1_in1k, weights: timm}`."""
    checkpoint: Path | None = None
    """In place of `backbone`: a model folder of ours, or the folder of a finished run."""
    output: str | None = None
    """With the `checkpoint` of an expanded backbone: the task whose features are meant. Left out, those that the model
    itself gives (all tasks', side by side, unless it was saved with one)."""
    size: int | None = Option(None, ge=16)
    """Pixels of the square input, into which images are laid as into a student's. Best the student's own size: features
    of an object depend on its size. Left out, it is the size of the checkpoint, or 224."""
    tasks: tuple[type[Task], ...] = Option((), exclude=True)
    """Python only: classes of your own that the checkpoint uses."""
    backbones: tuple[type[Backbone], ...] = Option((), exclude=True)
    """Python only: classes of your own that the checkpoint uses."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.backbone is None) == (self.checkpoint is None):
            raise ValueError("give either `backbone` or `checkpoint`")
        if self.backbone is not None and not self.backbone.pretrained:
            raise ValueError("backbone: its weights are random: there is nothing to learn from it; name its `weights`")
        if self.output is not None and self.checkpoint is None:
            raise ValueError("output: it names a task of a `checkpoint`; a backbone states its own output")
        return self

    def does(self, root: Path, fills: str | None = None) -> Hints:
        """As `Specialist.does`; the channels follow from the network's shape."""
        refuse_averaging(self)
        return Hints(channels=_channels(self._form(root)))

    def digest(self, root: Path) -> str:
        """As `Specialist.digest`. A backbone of a library is loaded for it: only the library knows its files."""
        if self.checkpoint is not None:
            return self._digest(model_hash(find_model(root / self.checkpoint)), root)
        assert self.backbone is not None
        return self._digest(_state_hash(self.backbone.resolved(root).build(root)), root)

    def open(self, head: str, task: Task, root: Path, device: torch.device) -> Teacher:
        """As `Specialist.open`; the network is tried on a blank image."""
        said = self.does(root)
        check_task(head, task, said)
        frozen, weights = self._load(root)
        return _FeatureTeacher(self, head, task.completed(said), frozen, self._digest(weights, root), root, device)

    def pixels(self, root: Path) -> int:
        """Side of the input."""
        if self.size is not None or self.checkpoint is None:
            return self.size or _SIZE
        return read_architecture(root / self.checkpoint, self.tasks, self.backbones)[0].size

    def _form(self, root: Path) -> Backbone:
        """The backbone without its weights."""
        if self.backbone is not None:
            return self.backbone.resolved(root).blank()
        assert self.checkpoint is not None
        form = read_architecture(root / self.checkpoint, self.tasks, self.backbones)[0].backbone.blank()
        if self.output is None:
            return form
        if not isinstance(form, Expanded) or self.output not in form.branches:
            raise UserError(
                "this model has no features of such a task",
                file=root / self.checkpoint,
                field="output",
                value=self.output,
                fix=f"its tasks: {', '.join(form.branches)}" if isinstance(form, Expanded) else "leave out `output`",
            )
        return form.but(output=self.output)

    def _load(self, root: Path) -> tuple[Frozen, str]:
        """The network, and a digest of its weights alone."""
        if self.backbone is not None:
            part = self.backbone.resolved(root)
            maps = part.build(root)
            check_weights(maps, part.kind)
            return Frozen(maps, *part.normalisation()), _state_hash(maps)
        assert self.checkpoint is not None
        saved = load_model(root / self.checkpoint, self.tasks, self.backbones)
        check_weights(saved.student.backbone, saved.folder)
        if self.output is None:
            return Frozen.of(saved.student), saved.hash
        expanded = saved.student.backbone
        assert isinstance(expanded, ExpandedMaps)
        model = saved.student.model
        return Frozen(ExpandedMaps(expanded.core, self.output), *model.normalisation()), saved.hash

    def _digest(self, weights: str, root: Path) -> str:
        form = None if self.backbone is None else self.backbone.resolved(root).blank().plain()
        settings = {"make": "features", "backbone": form, "output": self.output, "size": self.pixels(root)}
        return digest_of([weights, settings])


class _FeatureTeacher(Teacher):
    """The loaded network, in float32: what is stored is exact to float16, which bfloat16 is not."""

    def __init__(
        self, part: FeatureTeacher, head: str, task: Task, frozen: Frozen, hash: str, root: Path, device: torch.device
    ) -> None:
        self.head, self.task, self.hash = head, task, hash
        self.space: LabelSpace | None = None
        self._frozen, self._size, self._device = frozen, part.pixels(root), device
        self.about: dict[str, Any] = {
            "make": "features",
            "input": [self._size, self._size],
            "channels": frozen.widths[-1],
            "stride": frozen.strides[-1],
        }
        if part.backbone is not None:
            self.about["backbone"] = part.backbone.kind
        if part.checkpoint is not None:
            self.about["weights"] = shown_path(find_model(root / part.checkpoint))
        self._try(head)

    def _try(self, head: str) -> None:
        try:
            self.predict([np.zeros((self._size, self._size, 3), np.uint8)])
        except Exception as error:  # networks of any make have errors of many kinds
            raise UserError(
                f"the teacher of head '{head}' cannot look at images of {self._size} x {self._size} pixels: "
                f"{first_line(error)}",
                field="size",
                value=self._size,
                fix="take a size that it can look at: vision transformers want a multiple of their patch",
            ) from None

    @torch.inference_mode()
    def predict(self, images: Sequence[UInt8]) -> list[Target]:
        """As `Teacher.predict`: the cells that show the image, float32."""
        if not images:
            return []
        laid = [letterbox(image, self._size) for image in images]
        batch = torch.stack([picture for picture, _ in laid]).to(self._device)
        maps = self._frozen(batch)[-1].cpu()
        return [in_image(one, frame, (self._size,) * 2) for one, (_, frame) in zip(maps, laid, strict=True)]


def _channels(form: Backbone) -> int:
    """Of the deepest map of a backbone, from its shape alone."""
    try:
        with torch.device("meta"):
            return form.build().widths[-1]
    except UserError:
        raise
    except Exception:  # a backbone of the user's own that cannot be built without values
        return form.build().widths[-1]


def _state_hash(network: nn.Module) -> str:
    """Hex digest of all numbers in a network."""
    hasher = hashlib.sha256()
    for name, value in network.state_dict().items():
        hasher.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        hasher.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()[:16]
