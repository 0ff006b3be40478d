"""Procedural scenes with exact labels for all tasks: worlds, the renderer, and the source `Scenes`."""

from tutelage.data.scenes.camera import SceneBatch, render
from tutelage.data.scenes.noise import LabelNoise
from tutelage.data.scenes.source import Scenes, ScenesDataset
from tutelage.data.scenes.worlds import DOWNSTREAM, POOL, PROBED, UPSTREAM, WORLDS, World

__all__ = [
    "DOWNSTREAM",
    "POOL",
    "PROBED",
    "UPSTREAM",
    "WORLDS",
    "LabelNoise",
    "SceneBatch",
    "Scenes",
    "ScenesDataset",
    "World",
    "render",
]
