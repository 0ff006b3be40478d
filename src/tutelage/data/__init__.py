"""The readers: one file a format. A new one is added to `FORMATS` to be written in YAML."""

from tutelage.data.archives import Tar
from tutelage.data.coco import CocoBoxes, CocoPanoptic
from tutelage.data.depths import DepthPairs, NormalPairs
from tutelage.data.folders import Folders, Pool
from tutelage.data.pairs import Masks
from tutelage.data.saved import Arrow
from tutelage.data.scenes import Scenes
from tutelage.data.source import Source
from tutelage.data.tables import Parquet
from tutelage.data.voc import VocBoxes
from tutelage.data.yolo import Yolo

FORMATS: tuple[type[Source], ...] = (
    Folders,
    CocoBoxes,
    CocoPanoptic,
    VocBoxes,
    Yolo,
    Masks,
    DepthPairs,
    NormalPairs,
    Pool,
    Tar,
    Parquet,
    Arrow,
    Scenes,
)

__all__ = [
    "FORMATS",
    "Arrow",
    "CocoBoxes",
    "CocoPanoptic",
    "DepthPairs",
    "Folders",
    "Masks",
    "NormalPairs",
    "Parquet",
    "Pool",
    "Scenes",
    "Tar",
    "VocBoxes",
    "Yolo",
]
