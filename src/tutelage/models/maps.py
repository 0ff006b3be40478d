"""What a backbone is: a value in a recipe, and the module it builds, which gives one feature map a stride."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tutelage.errors import UserError
from tutelage.part import Part

Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation of RGB in [0, 1]."""

IMAGENET: Normalisation = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

SIDE = 224
"""Pixels of a blank image from which strides are read: a multiple of 32, and of 14, some transformers' patch."""


class FeatureMaps(nn.Module, abc.ABC):
    """A built backbone.

    Attributes:
        strides: of the maps, increasing. The pyramid needs a hierarchy that holds 8, 16 and 32, or one single stride;
            a dilated backbone ends at 8 or 16.
        widths: channels of each map.
    """

    strides: tuple[int, ...]
    widths: tuple[int, ...]

    @abc.abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Float [B,3,H,W], normalised, to one map [B,widths[i],H/strides[i],W/strides[i]] a stride."""

    def cut(self) -> list[nn.Module]:
        """The modules of `steps`, not yet checked. To be overridden where the maps follow from one another.

        Raises:
            UserError: this backbone cannot be cut.
        """
        raise not_cut(self)

    def steps(self) -> list[nn.Module]:
        """The way to the maps in as many steps: step 0 makes map 0 of the images, step i makes map i of map i - 1.

        Something can so be added to a map before the deeper ones follow from it. The steps are put together of the
        backbone's own modules, which are registered, and stand in its state dict, in their old places alone.

        Raises:
            UserError: this backbone cannot be cut, or what was cut (tried once, on a small random batch) gives other
                maps than `forward`.
        """
        steps = self.cut()
        if not self._tried:
            if not _same(self, steps):
                raise not_cut(self)
            self._tried = next(self.parameters()).device.type != "meta"  # where only shapes could be compared
        return steps

    _tried: bool = False
    """Whether the steps were found to give the maps, in values."""


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

        Raises:
            UserError: an unknown name, options or weights that do not fit, weights that cannot be had.
        """

    def resolved(self, root: Path) -> Backbone:
        """The same backbone with all in it that `build` needs when there is no root: no file beside the recipe."""
        return self

    def files(self, root: Path) -> list[Path]:
        """The user's own files that `build` reads its weights from; a library's downloads are none of them.

        Raises:
            UserError: one is not there.
        """
        return []

    def check(self, root: Path) -> None:
        """That the names and files it states are there; nothing is downloaded.

        Raises:
            UserError: one is not.
        """

    def normalisation(self) -> Normalisation:
        """How its weights want their images; ImageNet's mean and standard deviation where nothing else is known."""
        return IMAGENET

    def dilated(self, stride: int) -> Backbone:
        """The same backbone, its weights with the same names and shapes, with a deepest map of this stride.

        Strides beyond are taken out and the convolutions behind them dilated (Chen et al., 2017, DeepLabv3, section
        3.1).

        Args:
            stride: 8, 16 or 32.

        Raises:
            UserError: this backbone cannot be dilated so far.
        """
        raise not_dilated(self.kind, stride)


def not_dilated(value: object, stride: int) -> UserError:
    """What is said of a backbone that cannot be dilated."""
    return UserError(
        f"this backbone has no deepest map of stride {stride}, and cannot be dilated to it",
        field="backbone",
        value=value,
        fix="take a ResNet, RegNet, ConvNeXt or EfficientNet of timm, a ResNet of torchvision with 50 layers or more, "
        "or a vision transformer with patches of just this size",
    )


def not_cut(maps: FeatureMaps) -> UserError:
    """What is said of a backbone whose maps cannot be had one after the other."""
    inner = next((type(child).__name__ for child in maps.children()), type(maps).__name__)
    return UserError(
        "this backbone cannot be cut between its maps",
        field="backbone",
        value=inner,
        fix="take a ResNet, RegNet, ConvNeXt, EfficientNet or MobileNetV3 of timm, or a ResNet of torchvision",
    )


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Some modules, and all in them, are in evaluation mode for a while; each then gets its own mode back."""
    before = [(module, module.training) for root in modules for module in root.modules()]
    try:
        for root in modules:
            root.eval()
        yield
    finally:
        for module, training in before:
            module.training = training


@contextlib.contextmanager
def still(module: nn.Module) -> Iterator[None]:
    """The batch norms in a module keep their running statistics as they are for a while, in training mode too."""
    norms = [norm for norm in module.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
    before = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum


def _same(maps: FeatureMaps, steps: Sequence[nn.Module], side: int = 64) -> bool:
    """Whether steps give a backbone's own maps; shapes alone are compared where there are no values (torch's meta)."""
    weight = next(maps.parameters())
    device = weight.device
    noise = torch.randn(2, 3, side, side, generator=torch.Generator("cpu").manual_seed(0), device="cpu").to(weight)
    precise = contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
    with evaluating(maps), torch.no_grad(), precise:
        try:
            here, said = noise, []
            for step in steps:
                here = step(here)
                said.append((here, here.clone()))  # a later step might write into its input
            own = maps(noise)
        except Exception:  # a module of any make: what was cut wrongly can fail anywhere
            return False
    if [m.shape for m in own] != [kept.shape for _, kept in said]:
        return False
    if device.type == "meta":
        return True
    near = all((m - kept).abs().max() <= 1e-3 * m.abs().max() for m, (_, kept) in zip(own, said, strict=True))
    return near and all(now.equal(kept) for now, kept in said)


def on_shapes(module: nn.Module, side: int = SIDE) -> tuple[list[Tensor], dict[str, Tensor]]:
    """What a module says of a blank image, computed on shapes alone (torch's meta device): quick, and nothing changes.

    Args:
        module: from float [B,3,H,W] to a list of maps.
        side: H and W.

    Returns:
        the maps [1,C,h,w], without values, and the stand-ins of the module's parameters that they are computed from.
    """
    parameters = {n: p.detach().to("meta").requires_grad_() for n, p in module.named_parameters()}
    buffers = {n: b.detach().to("meta") for n, b in module.named_buffers()}
    training = module.training
    try:
        images = torch.empty(1, 3, side, side, device="meta")
        return list(functional_call(module.eval(), {**parameters, **buffers}, (images,))), parameters
    finally:
        module.train(training)


def unused_weights(maps: FeatureMaps, read: Sequence[int], side: int) -> set[str]:
    """Names of the weights that some maps do not hang on: of last norms, mask tokens, poolers, of stages nobody reads.

    Args:
        maps: a backbone.
        read: positions of the maps that are read.
        side: pixels of the square input.
    """
    try:
        said, parameters = on_shapes(maps, side)
        torch.stack([said[i].float().sum() for i in read]).sum().backward()
    except Exception:  # a module of any make: what cannot be computed on shapes alone is taken to be in use
        return set()
    return {name for name, parameter in parameters.items() if parameter.grad is None}


def freeze_unused(maps: FeatureMaps, read: Sequence[int], side: int) -> None:
    """Freeze the weights of `unused_weights`; the arguments are the same.

    They keep their places in the state dict, so that weights travel. No gradient would ever reach them, and training in
    several processes insists that one reaches every weight that is not frozen.
    """
    unused = unused_weights(maps, read, side)
    for name, parameter in maps.named_parameters():
        if name in unused:
            parameter.requires_grad_(False)


def last_of_each(strides: Sequence[int]) -> dict[int, int]:
    """Stride to the position of its last map; strides below 4 are left out where there are several."""
    last = {stride: number for number, stride in enumerate(strides)}
    return {s: last[s] for s in sorted(last) if s >= 4 or len(last) == 1}


def strides_of(maps: Sequence[Tensor], side: int = SIDE) -> list[int]:
    """The strides of maps [B,C,h,w] of a square input.

    Raises:
        UserError: a map that is no square, or no whole number of times smaller than the input.
    """
    wrong = [tuple(m.shape[2:]) for m in maps if m.shape[2] != m.shape[3] or side % m.shape[3]]
    if wrong:
        raise UserError(
            f"this backbone makes maps of {wrong[0][0]} x {wrong[0][1]} from {side} pixels, which is no whole stride",
            field="name",
            fix="use another",
        )
    return [side // m.shape[3] for m in maps]
