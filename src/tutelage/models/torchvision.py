"""Backbones of torchvision: its classifiers, cut off behind the last map.

The state dict below the module is the plain torchvision model's without the classifier (no renamed keys).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import UserError
from tutelage.models.maps import (
    IMAGENET,
    Backbone,
    FeatureMaps,
    Normalisation,
    last_of_each,
    not_cut,
    not_dilated,
    on_shapes,
    strides_of,
)
from tutelage.models.weights import Match, find_weights, load_weights, not_had
from tutelage.part import nearest


@dataclass(frozen=True)
class _Family:
    """How the models of one file of the library are laid out.

    Attributes:
        trunk: children that follow one another up to the pooling.
        classifier: the child that is removed.
        channels_last: the maps come as [B,h,w,C].
        relu: the last map goes through a ReLU before it is pooled.
    """

    trunk: tuple[str, ...] = ("features",)
    classifier: str = "classifier"
    channels_last: bool = False
    relu: bool = False


_FAMILIES = {
    "resnet": _Family(("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"), "fc"),
    "regnet": _Family(("stem", "trunk_output"), "fc"),
    "shufflenetv2": _Family(("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"), "fc"),
    "mnasnet": _Family(("layers",)),
    "densenet": _Family(relu=True),
    "convnext": _Family(),
    "efficientnet": _Family(),
    "mobilenetv2": _Family(),
    "mobilenetv3": _Family(),
    "vgg": _Family(),
    "swin_transformer": _Family(("features", "norm"), "head", channels_last=True),
}
"""By the file that the models stand in. The others' inputs have one fixed size (vision transformers, MaxViT), or their
maps no whole strides (AlexNet, SqueezeNet, Inception)."""


class Torchvision(Backbone):
    """A classifier of torchvision, classification head removed. Its deepest map is what the classifier pools."""

    kind: Literal["torchvision"] = "torchvision"
    name: str = "resnet50"
    options: dict[str, Any] = {}
    """Further arguments of the library's builder, for example `width_per_group: 32`."""
    weights: str | None = None
    """`torchvision` for the library's own pre-trained weights (they are downloaded), a path to a .safetensors or .pth
    file (read without running code), or `package:NAME/FILE` for a file inside an installed Python package."""
    weights_enum: str | None = None
    """Which of the library's weights are meant, or which a file holds: `ResNet50_Weights.IMAGENET1K_V1`. Left out, the
    default ones of the builder."""
    match: Match = "names"
    """How a weight file's tensors find their places: by name, or in order (each shape must fit)."""

    @property
    def pretrained(self) -> bool:
        return self.weights is not None

    def blank(self) -> Torchvision:
        return self.but(weights=None)

    def build(self, root: Path | None = None) -> FeatureMaps:
        family = _FAMILIES[self._file()]
        net = self._create(pretrained=self.weights == "torchvision" and root is not None)
        if root is not None and self.weights not in (None, "torchvision"):
            load_weights(_cut(net, family), find_weights(str(self.weights), root), self.match)
        return _TorchvisionMaps(_cut(net, family), family)

    def files(self, root: Path) -> list[Path]:
        return [] if self.weights in (None, "torchvision") else [find_weights(str(self.weights), root)]

    def check(self, root: Path) -> None:
        self._enum()
        self.files(root)

    def normalisation(self) -> Normalisation:
        """What torchvision states for the weights of this name."""
        enum = self._enum()
        if enum is None:
            return IMAGENET
        look = enum.transforms()
        return tuple(look.mean), tuple(look.std)

    def dilated(self, stride: int) -> Torchvision:
        file = self._file()
        if stride == 32:
            return self
        if file == "resnet" and self.name not in ("resnet18", "resnet34"):  # their blocks know no dilation
            return self.but(options={**self.options, "replace_stride_with_dilation": [False, stride < 16, True]})
        if file == "mobilenetv3" and stride == 16:
            return self.but(options={**self.options, "dilated": True})
        raise not_dilated(f"torchvision {self.name}", stride)

    def _file(self) -> str:
        """The file of the library that the builder stands in: a key of `_FAMILIES`."""
        from torchvision import models

        known = models.list_models(models)
        if self.name not in known:
            raise UserError(
                f"torchvision has no classifier of this name{nearest(self.name, known)}",
                field="name",
                value=self.name,
                fix="`torchvision.models.list_models(torchvision.models)` lists them",
            )
        file: str = models.get_model_builder(self.name).__module__.rpartition(".")[2]
        if file not in _FAMILIES:
            raise UserError(
                "this classifier of torchvision gives no maps of whole strides for images of any size",
                field="name",
                value=self.name,
                fix=f"take one of {', '.join(_FAMILIES)}, or timm's model of this name",
            )
        return file

    def _enum(self) -> Any:
        """The library's entry for the weights; None for a model without any."""
        from torchvision import models

        self._file()
        known = models.get_model_weights(self.name)
        if self.weights_enum is None:
            return known.DEFAULT if len(known) else None
        if self.weights_enum not in [str(entry) for entry in known]:
            names = [str(entry) for entry in known]
            raise UserError(
                f"torchvision has no such weights{nearest(self.weights_enum, names)}",
                field="weights_enum",
                value=self.weights_enum,
                fix=f"{self.name} has {', '.join(names) or 'none'}",
            )
        return models.get_weight(self.weights_enum)

    def _create(self, pretrained: bool) -> nn.Module:
        from torchvision import models

        enum = self._enum() if pretrained else None
        try:
            net: nn.Module = models.get_model(self.name, weights=enum, progress=False, **self.options)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise UserError(str(error), field="options", value=self.options, fix="correct the options") from None
        except Exception as error:  # no network, a bad hash, options that the weights do not fit
            if not pretrained:
                raise
            raise not_had("torchvision", self.name, error) from None
        return net


def _cut(net: nn.Module, family: _Family) -> nn.Module:
    """The network without its classifier."""
    setattr(net, family.classifier, nn.Identity())
    return net


class _TorchvisionMaps(FeatureMaps):
    """The last map of each stride of a torchvision classifier."""

    def __init__(self, net: nn.Module, family: _Family) -> None:
        super().__init__()
        self.net, self.family = net, family
        self.places = list(range(len(self._chain())))  # all of them, until their strides are known
        maps, _ = on_shapes(self)
        last = last_of_each(strides_of(maps))
        self.strides, self.places = tuple(last), list(last.values())
        self.widths = tuple(maps[place].shape[1] for place in self.places)

    def _chain(self) -> list[nn.Module]:
        """The modules of the trunk, one after the other."""
        children = [self.net.get_submodule(name) for name in self.family.trunk]
        return [m for child in children for m in (child if isinstance(child, nn.Sequential) else [child])]

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = []
        for place, module in enumerate(self._chain()):
            images = module(images)
            if place in self.places:
                maps.append(images)
        if self.family.relu:
            maps[-1] = F.relu(maps[-1])
        return [m.permute(0, 3, 1, 2) for m in maps] if self.family.channels_last else maps

    def cut(self) -> list[nn.Module]:
        if self.family.channels_last:
            raise not_cut(self)
        chain, starts = self._chain(), [0, *(place + 1 for place in self.places)]
        steps: list[nn.Module] = [
            nn.Sequential(*chain[start : place + 1]) for start, place in zip(starts, self.places, strict=False)
        ]
        return [*steps[:-1], nn.Sequential(steps[-1], nn.ReLU())] if self.family.relu else steps
