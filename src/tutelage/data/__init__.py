"""The readers: one file a format. A new one is added to `SINGLE` in join.py to be written in YAML."""

from tutelage.data.archives import Tar
from tutelage.data.class_paths import ClassPaths
from tutelage.data.coco import CocoBoxes, CocoPanoptic
from tutelage.data.depths import DepthPairs, NormalPairs
from tutelage.data.folders import Folders, Pool
from tutelage.data.join import SINGLE, Join
from tutelage.data.pairs import Masks
from tutelage.data.saved import Arrow
from tutelage.data.scenes import Scenes
from tutelage.data.source import Source
from tutelage.data.tables import Parquet
from tutelage.data.torchvision import TorchvisionSet
from tutelage.data.voc import VocBoxes
from tutelage.data.wider import WiderFace
from tutelage.data.yolo import Yolo

FORMATS: tuple[type[Source], ...] = (*SINGLE, Join)

__all__ = [
    "FORMATS",
    "Arrow",
    "ClassPaths",
    "CocoBoxes",
    "CocoPanoptic",
    "DepthPairs",
    "Folders",
    "Join",
    "Masks",
    "NormalPairs",
    "Parquet",
    "Pool",
    "Scenes",
    "Tar",
    "TorchvisionSet",
    "VocBoxes",
    "WiderFace",
    "Yolo",
]
