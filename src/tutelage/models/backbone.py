"""The backbones: one file each. A new one is added to `BACKBONES` to be written in YAML."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tutelage.models.expanded import Expanded
from tutelage.models.maps import IMAGENET, Backbone, FeatureMaps
from tutelage.models.spinenet import SpineNet
from tutelage.models.timm import Timm
from tutelage.models.torchvision import Torchvision
from tutelage.models.transformers import Transformers
from tutelage.models.weights import find_weights, load_weights
from tutelage.part import one_of

BACKBONES: tuple[type[Backbone], ...] = (Timm, Torchvision, Transformers, SpineNet, Expanded)
"""The backbones that can be written in YAML."""

if TYPE_CHECKING:
    AnyBackbone = Backbone
else:
    AnyBackbone = one_of(Backbone, "kind", BACKBONES)

__all__ = [
    "BACKBONES",
    "IMAGENET",
    "AnyBackbone",
    "Backbone",
    "Expanded",
    "FeatureMaps",
    "SpineNet",
    "Timm",
    "Torchvision",
    "Transformers",
    "find_weights",
    "load_weights",
]
