"""Backbones of Hugging Face transformers: from a folder, or from the hub.

No code of a repository is run, and no pickle is read: safetensors only.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from tutelage.errors import UserError, first_line
from tutelage.models.maps import (
    IMAGENET,
    SIDE,
    Backbone,
    FeatureMaps,
    Normalisation,
    last_of_each,
    not_dilated,
    on_shapes,
    strides_of,
    unused_weights,
)

SAFE = {"trust_remote_code": False}
"""How the library is to load anything."""
_TOKENS: dict[str, dict[str, Any]] = {
    "vit": {"add_pooling_layer": False},
    "deit": {"add_pooling_layer": False},
    "ijepa": {"add_pooling_layer": False},
    "vit_msn": {},
    "clip_vision_model": {},
    "siglip_vision_model": {},
}
"""Plain vision transformers that the library knows as no backbones, with the arguments that leave out their heads. They
say one vector a patch, row by row, behind those of the class and its like."""
_FRESH = "hidden_states_norms"
"""Norms behind the stages, which the library adds to some models when they are backbones; no file holds them."""
_UNNEEDED = ("id2label", "label2id", "architectures", "_name_or_path", "dtype", "problem_type")
"""Entries of a configuration that say nothing of a backbone."""


class Transformers(Backbone):
    """A model of transformers: whatever `AutoBackbone` loads (ResNet, ConvNeXt, Swin, DINOv2, DINOv3, ...), and plain
    vision transformers (ViT, DeiT, I-JEPA, the vision models of CLIP and SigLIP), which give one single map.

    ConvNeXt and Swin get a fresh norm behind each stage, as the library adds it to its backbones.
    """

    kind: Literal["transformers"] = "transformers"
    name: str
    """The folder that `save_pretrained` wrote (`config.json`, `*.safetensors`, best with `preprocessor_config.json`),
    or a repository of the Hugging Face hub."""
    revision: str | None = None
    """Of a repository: the commit that is meant. Branches move, commits do not."""
    download: bool = False
    """Whether a repository may be fetched from the hub; else it must be in the hub's cache on this machine."""
    weights: Literal["transformers"] | None = None
    """`transformers` for the model's own weights; left out, they are random."""
    config: dict[str, Any] | None = None
    """The model's configuration. Left out, it is read from `name`; checkpoints hold it, and need no folder."""
    mean: tuple[float, float, float] | None = None
    """Of RGB in [0, 1]. Left out (with `config`), that of the model's own preprocessing, or ImageNet's."""
    std: tuple[float, float, float] | None = None
    """As `mean`."""

    @model_validator(mode="after")
    def _both(self) -> Transformers:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean: give `mean` and `std`, or neither")
        return self

    @property
    def pretrained(self) -> bool:
        return self.weights is not None

    def blank(self) -> Transformers:
        return self.but(weights=None)

    def resolved(self, root: Path) -> Transformers:
        """With `config`, `mean` and `std`."""
        if self.config is not None:
            return self
        where, how = self._where(root)
        with self._said():
            from transformers import AutoConfig

            config = AutoConfig.from_pretrained(where, **how)
        plain = json.loads(config.to_json_string(use_diff=True))
        mean, std = (self.mean, self.std) if self.mean and self.std else self._preprocessing(root)
        return self.but(config={k: v for k, v in plain.items() if k not in _UNNEEDED}, mean=mean, std=std)

    def files(self, root: Path) -> list[Path]:
        """As `Backbone.files`: those of a folder; of a repository none."""
        return [] if self.weights is None else sorted((root / self.name).glob("*.safetensors"))

    def check(self, root: Path) -> None:
        """As `Backbone.check`; of a repository that may be downloaded, the configuration is."""
        self.resolved(root)

    def normalisation(self) -> Normalisation:
        """That of the model's own preprocessing; where there is none, ImageNet's."""
        known = self.resolved(Path())
        return (known.mean, known.std) if known.mean and known.std else IMAGENET

    def build(self, root: Path | None = None) -> FeatureMaps:
        config, auto, arguments = self.resolved(Path() if root is None else root)._outline()
        if root is None or self.weights is None:
            with self._said():
                return _maps(auto.from_config(config, **arguments).train())
        where, how = self._where(root)
        with self._said():
            with torch.device("meta"):  # `AutoBackbone` itself asks the hub also where there is a folder
                architecture: Any = type(auto.from_config(config, **arguments))
            net, report = architecture.from_pretrained(
                where,
                config=config,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                **arguments,
                **how,
            )
        maps = _maps(net.train())
        lost = [*report["missing_keys"], *report["mismatched_keys"]]
        _check_found(maps, [str(name) for name in lost], where)
        return maps

    def dilated(self, stride: int) -> Transformers:
        """As `Backbone.dilated`: only where no dilation is needed."""
        config, auto, arguments = self.resolved(Path())._outline()
        with self._said(), torch.device("meta"):  # shapes alone
            strides = _maps(auto.from_config(config, **arguments)).strides
        if strides[-1] != stride:
            raise not_dilated(f"transformers {self.name}", stride)
        return self

    def _outline(self) -> tuple[Any, Any, dict[str, Any]]:
        """The configuration, which class of the library builds from it, and with what arguments."""
        plain = dict(self.config or {})
        with self._said():
            from transformers import AutoBackbone, AutoConfig, AutoModel
            from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

            config = AutoConfig.for_model(**plain)
        if config.model_type in _TOKENS:
            return config, AutoModel, _TOKENS[config.model_type]
        if config.model_type not in MODEL_FOR_BACKBONE_MAPPING_NAMES or config.model_type == "timm_backbone":
            raise UserError(
                "this model of transformers is no backbone",
                field="name",
                value=config.model_type,
                fix=f"one of {', '.join([*_TOKENS, *MODEL_FOR_BACKBONE_MAPPING_NAMES])}",
            )
        config.out_features = list(config.stage_names)
        with self._said(), torch.device("meta"):  # which stages are the last of their strides
            last = last_of_each(_Stages(AutoBackbone.from_config(config)).strides)
        config.out_features = [config.stage_names[i] for i in last.values()]
        return config, AutoBackbone, {}

    def _where(self, root: Path) -> tuple[str, dict[str, Any]]:
        """What the library's loaders are asked for, and how."""
        folder = root / self.name
        if folder.is_dir() or self.name.startswith((".", "/", "~")):
            return in_folder(folder, "name")
        return self.name, {**SAFE, "revision": self.revision, "local_files_only": not self.download}

    def _preprocessing(self, root: Path) -> Normalisation:
        """Mean and standard deviation of RGB in [0, 1] that the model's own preprocessing takes out."""
        from transformers import AutoImageProcessor

        where, how = self._where(root)
        try:
            with quiet():
                look = AutoImageProcessor.from_pretrained(where, **how).to_dict()
        except Exception:  # many have none, and it is not needed
            return IMAGENET
        # Its input is (x * factor - mean) / std for x in 0..255.
        factor = 255 * (look.get("rescale_factor") or 1 / 255) if look.get("do_rescale", True) else 255.0
        mean, std = (look.get("image_mean"), look.get("image_std")) if look.get("do_normalize") else (0.0, 1.0)
        return _three(mean, factor), _three(std, factor)

    def _said(self) -> AbstractContextManager[None]:
        """What the library, or the lack of it, finds wrong, as our error."""
        return loading(
            field="name",
            value=self.name,
            fix="give the folder that `save_pretrained` wrote, with config.json and .safetensors"
            + ("; or check the network and the name" if self.download else "; `download: true` asks the hub"),
        )


def _three(values: Any, factor: float) -> tuple[float, float, float]:
    """One number a channel, from one or three, over a factor."""
    red, green, blue = values if isinstance(values, list | tuple) else (values,) * 3
    return red / factor, green / factor, blue / factor


def in_folder(folder: Path, field: str) -> tuple[str, dict[str, Any]]:
    """What the library's loaders are asked for, and how, for a saved model.

    Args:
        folder: what `save_pretrained` wrote.
        field: that names the folder, for the message.

    Raises:
        UserError: there is no model in it.
    """
    if not (folder / "config.json").is_file():
        raise UserError(
            "there is no model of transformers in this folder",
            file=folder,
            field=field,
            value="config.json",
            fix="give the folder that `save_pretrained` wrote",
        )
    return str(folder), {**SAFE, "local_files_only": True}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The library's own bars and notes are held back; what is wrong comes as an error."""
    try:
        from transformers.utils import logging
    except ImportError:
        raise UserError(
            "this needs the library transformers", field="kind", fix="pip install 'transformers>=4.56'"
        ) from None
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def loading(**where: Any) -> Iterator[None]:
    """What the library finds wrong with a model, as a UserError; `where` are further arguments of it."""
    try:
        with quiet():
            yield
    except UserError:
        raise
    except Exception as error:  # its loaders, the hub's client and the network have errors of many kinds
        raise UserError(f"the model cannot be loaded: {first_line(error)}", **where) from None


def _check_found(maps: FeatureMaps, lost: list[str], where: str) -> None:
    """That a file held every weight that the maps hang on.

    Raises:
        UserError: one is missing, or has another shape.
    """
    unused = unused_weights(maps, range(len(maps.strides)), SIDE)
    held = {"net." + name for name in lost if _FRESH not in name} - unused
    if held:
        raise UserError(
            f"{len(held)} of the network's weights are not in the file, or of another shape",
            file=where,
            record=min(held).removeprefix("net."),
            fix="check that config.json and the weights are of one model",
        )


def _maps(net: nn.Module) -> FeatureMaps:
    """A network of the library as maps."""
    config: Any = net.config
    return _Tokens(net, config.patch_size) if config.model_type in _TOKENS else _Stages(net)


class _Stages(FeatureMaps):
    """The stages that the library's own backbones give out, as the configuration names them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        maps, _ = on_shapes(self)
        self.strides = tuple(strides_of(maps))
        self.widths = tuple(m.shape[1] for m in maps)

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.net(images).feature_maps)


class _Tokens(FeatureMaps):
    """The last vectors of a plain vision transformer, laid out as the patches they stand for."""

    def __init__(self, net: nn.Module, patch: int) -> None:
        super().__init__()
        config: Any = net.config
        self.net, self.patch = net, patch
        self.strides, self.widths = (patch,), (int(config.hidden_size),)

    def forward(self, images: Tensor) -> list[Tensor]:
        down, across = images.shape[2] // self.patch, images.shape[3] // self.patch
        said: Tensor = self.net(images, interpolate_pos_encoding=True).last_hidden_state
        patches = said[:, said.shape[1] - down * across :]
        return [patches.transpose(1, 2).reshape(len(images), -1, down, across)]
