"""The backbones: one file each. A new one is added to `BACKBONES` to be written in YAML."""

from __future__ import annotations

from tutelage.models.expanded import Expanded
from tutelage.models.maps import IMAGENET, Backbone, FeatureMaps, Normalisation
from tutelage.models.spinenet import SpineNet
from tutelage.models.timm import Timm
from tutelage.models.torchvision import Torchvision
from tutelage.models.transformers import Transformers
from tutelage.models.weights import find_weights, load_weights, read_weights

BACKBONES: tuple[type[Backbone], ...] = (Timm, Torchvision, Transformers, SpineNet, Expanded)
"""The backbones that can be written in YAML."""

__all__ = [
    "BACKBONES",
    "IMAGENET",
    "Backbone",
    "Expanded",
    "FeatureMaps",
    "Normalisation",
    "SpineNet",
    "Timm",
    "Torchvision",
    "Transformers",
    "find_weights",
    "load_weights",
    "read_weights",
]
