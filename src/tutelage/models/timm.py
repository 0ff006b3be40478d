"""Backbones of the timm library.

The state dict below the module is the plain timm model's (no renamed keys), so that weights travel both ways.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tutelage.errors import UserError
from tutelage.models.maps import IMAGENET, Backbone, FeatureMaps, Normalisation, last_of_each, not_cut, not_dilated
from tutelage.models.weights import Match, find_weights, load_weights, not_had
from tutelage.part import nearest


class Timm(Backbone):
    """A model of the timm library, classification head removed."""

    kind: Literal["timm"] = "timm"
    name: str = "resnet50"
    options: dict[str, Any] = {}
    """Further arguments of `timm.create_model`, for example `layers: [1, 1, 1, 1]`."""
    weights: str | None = None
    """`timm` for the library's own pre-trained weights (they are downloaded), a path to a .safetensors or .pth file
    (read without running code), or `package:NAME/FILE` for a file inside an installed Python package."""
    match: Match = "names"
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

    def files(self, root: Path) -> list[Path]:
        return [] if self.weights in (None, "timm") else [find_weights(str(self.weights), root)]

    def check(self, root: Path) -> None:
        pretraining_of(self.name)
        self.files(root)

    def normalisation(self) -> Normalisation:
        """What timm states for the pre-training of this name."""
        known = pretraining_of(self.name)
        if known is None or len(known.mean) != 3:
            return IMAGENET
        return tuple(known.mean), tuple(known.std)

    def tagged(self) -> Timm:
        """The same backbone, named with the tag of the weights that timm means by its name, where it has any."""
        known = pretraining_of(self.name)
        return self.but(name=f"{self.name.partition('.')[0]}.{known.tag}") if known is not None and known.tag else self

    def dilated(self, stride: int) -> Timm:
        changed = self.but(options={**self.options, "output_stride": stride})
        for backbone in (self, changed):
            try:
                with torch.device("meta"):  # shapes alone
                    strides = _TimmMaps(backbone._create(pretrained=False)).strides
            except (UserError, AssertionError, NotImplementedError):
                if backbone is self:
                    raise
                break
            if strides[-1] == stride:
                return backbone
        raise not_dilated(f"timm {self.name}", stride)

    def _create(self, pretrained: bool) -> nn.Module:
        from timm.models.vision_transformer import VisionTransformer

        pretraining_of(self.name)
        net = self._once(pretrained, self.options)
        if pretrained and self.options:
            self._refuse_further(net)
        if isinstance(net, VisionTransformer) and "dynamic_img_size" not in self.options:
            # any input size, not the pre-training one alone, nor whole patches alone
            return self._once(pretrained, {"dynamic_img_pad": True, **self.options, "dynamic_img_size": True})
        return net

    def _refuse_further(self, net: nn.Module) -> None:
        """Raises UserError where options give the network weights that timm's pre-trained one has not: without its
        classifier timm loads what there is, and leaves the others random."""
        with torch.device("meta"):
            known = self._once(False, {}).state_dict()
        further = [name for name in net.state_dict() if name not in known]
        if further:
            raise UserError(
                f"{len(further)} of the network's tensors are not among timm's weights of this name",
                record=further[0],
                field="options",
                value=self.options,
                fix="take out the options that change its layers, or `weights: null`",
            )

    def _once(self, pretrained: bool, options: dict[str, Any]) -> nn.Module:
        import timm

        try:
            return timm.create_model(self.name, pretrained=pretrained, num_classes=0, **options)
        except TypeError as error:
            raise UserError(str(error), field="options", value=self.options, fix="correct the options") from None
        except Exception as error:  # the hub's client, and the network below it, have errors of many kinds
            if not pretrained:
                raise
            raise not_had("timm", self.name, error) from None


def pretraining_of(name: str) -> Any:
    """What timm knows of the weights of this name; None for a network without any. Raises UserError: no such name."""
    import timm
    from timm.models import get_pretrained_cfg

    if not timm.is_model(name.split(".")[0]):
        raise UserError(
            f"timm has no model of this name{nearest(name, timm.list_models())}",
            field="name",
            value=name,
            fix="`timm.list_models()` lists them",
        )
    try:
        return get_pretrained_cfg(name)
    except RuntimeError as error:
        raise UserError(str(error), field="name", value=name, fix="`timm.list_pretrained()` lists them") from None


class _TimmMaps(FeatureMaps):
    """The last map of each stride of a timm model."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        info: Any = net.feature_info
        entries = [info[i] for i in range(len(info))] if isinstance(info, list) else list(info.info)
        last = last_of_each([int(entry["reduction"]) for entry in entries])
        self.strides, self.indices = tuple(last), list(last.values())
        self.widths = tuple(int(entries[i]["num_chs"]) for i in self.indices)
        self.ends = [str(entries[i].get("module")) for i in self.indices]

    def forward(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.net.forward_intermediates(  # type: ignore[operator]
            images, indices=self.indices, intermediates_only=True, output_fmt="NCHW"
        )
        return maps

    def cut(self) -> list[nn.Module]:
        """Behind the modules that timm names as those that give the maps; the others follow in their written order."""
        steps: list[nn.Module] = []
        here: list[nn.Module] = []
        for name, module in _parts(self.net, self.ends):
            here.append(module)
            if name == self.ends[len(steps)]:
                steps.append(nn.Sequential(*here))
                here = []
                if len(steps) == len(self.ends):
                    return steps
        raise not_cut(self)


def _parts(module: nn.Module, ends: Sequence[str], before: str = "") -> Iterator[tuple[str, nn.Module]]:
    """A network's children by name; a plain sequence in which some `ends` lie is taken apart."""
    for name, child in module.named_children():
        path = before + name
        if isinstance(child, nn.Sequential) and any(end.startswith(path + ".") for end in ends):
            yield from _parts(child, ends, path + ".")
        else:
            yield path, child
