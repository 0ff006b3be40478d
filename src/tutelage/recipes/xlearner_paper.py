"""The sources that X-Learner learns from (its table 1), as they are published; every source labels a head of its name.

`docs/suites.md`, section "Sets to learn from", says where the files must lie below the folder that the recipe names as
`data`. What the paper leaves open is ours, and said here beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tutelage.data import ClassPaths, CocoBoxes, Folders, Masks, WiderFace
from tutelage.data.source import Source
from tutelage.tasks import Classification, Detection, Segmentation
from tutelage.tasks.task import Task

# "91 + 91": the things of COCO, eleven of which nobody has outlined (street sign, hat, shoe, eye glasses, plate,
# mirror, window, desk, door, blender, hair brush), then the stuff. A pixel of the maps holds the place in this list.
_THINGS = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, street sign,
stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, hat, backpack,
umbrella, shoe, eye glasses, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat,
baseball glove, skateboard, surfboard, tennis racket, bottle, plate, wine glass, cup, fork, knife, spoon, bowl,
banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed,
mirror, dining table, window, desk, toilet, door, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven,
toaster, sink, refrigerator, blender, book, clock, vase, scissors, teddy bear, hair drier, toothbrush, hair brush
"""
_STUFF = """
banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, ceiling-tile,
cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble, floor-other,
floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, grass, gravel, ground-other,
hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow,
plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea,
shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table, tent, textile-other,
towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood,
water-other, waterdrops, window-blind, window-other, wood
"""
COCO_STUFF = tuple(" ".join((_THINGS.strip() + ", " + _STUFF.strip()).split()).split(", "))
"""The names of COCO-Stuff's pixel values 0 to 181, in order: its labels.txt from "1: person" on, counted from 0."""

_CARS = (0.0, 0.88)
"""The share of CompCars' 136,726 photographs of whole cars, model by model, that is learned from. The paper counts 120k
images; the published list of the set's own classification task has 16,016, of 431 of its 1,716 models."""

_CLASSES = ("imagenet", "inat", "places", "cars", "dogs")
_BOXES = ("coco", "objects365", "faces")
_MASKS = ("ade", "stuff")


def sources(root: str = "") -> dict[str, Source]:
    """The base setting, below `root`: ImageNet, iNat2021 and Places365 (Challenge) with classes, COCO and Objects365
    with boxes."""
    return _of(("imagenet", "inat", "places", "coco", "objects365"), Path(root), learn=True)


def more_sources(root: str = "") -> dict[str, Source]:
    """What the extended setting adds: CompCars and Tsinghua Dogs with classes, WIDER FACE with boxes."""
    return _of(("cars", "dogs", "faces"), Path(root), learn=True)


def segmentation_sources(root: str = "") -> dict[str, Source]:
    """What "w/ seg" adds: ADE20K and COCO-Stuff with masks."""
    return _of(_MASKS, Path(root), learn=True)


def held_out(root: str = "", names: Iterable[str] = (*_CLASSES, *_BOXES, *_MASKS)) -> dict[str, Source]:
    """The validation parts of these sources, by the same names; of CompCars, the photographs that are left.

    Table 3 judges sources by such; which images of CompCars those were, it does not say.
    """
    return _of(names, Path(root), learn=False)


def heads(names: Iterable[str] = (*_CLASSES, *_BOXES, *_MASKS)) -> dict[str, Task]:
    """The heads of these sources, by their names. Detection is Faster R-CNN, as it is downstream, and segmentation the
    three convolutions of MuST: the paper does not say with which heads it learns from these sources."""
    every: dict[str, Task] = {
        **{name: Classification() for name in _CLASSES},
        **{name: Detection() for name in _BOXES},
        **{name: Segmentation() for name in _MASKS},
    }
    return {name: every[name] for name in names}


def _of(names: Iterable[str], root: Path, learn: bool) -> dict[str, Source]:
    every = {**_with_classes(root, learn), **_with_boxes(root, learn), **_with_masks(root, learn)}
    return {name: every[name] for name in names}


def _with_classes(root: Path, learn: bool) -> dict[str, Source]:
    places, dogs = root / "places365", root / "tsinghua-dogs"
    images, listed = ("data_large", "train_challenge") if learn else ("val_large", "val")
    return {
        "imagenet": Folders(head="imagenet", root=root / "imagenet" / ("train" if learn else "val")),
        "inat": Folders(head="inat", root=root / "inat2021" / ("train" if learn else "val")),
        "places": ClassPaths(
            head="places",
            images=places / images,
            list=places / f"places365_{listed}.txt",
            classes=places / "categories_places365.txt",
        ),
        "cars": ClassPaths(
            head="cars", images=root / "compcars/data/image", folders=2, part=_CARS if learn else (_CARS[1], 1.0)
        ),
        "dogs": ClassPaths(
            head="dogs",
            images=dogs / "low-resolution",
            list=dogs / "TrainAndValList" / ("train.lst" if learn else "validation.lst"),
            folders=1,
        ),
    }


def _with_boxes(root: Path, learn: bool) -> dict[str, Source]:
    coco, objects = root / "coco", root / "objects365"
    split = "train" if learn else "val"
    return {
        "coco": CocoBoxes(
            head="coco", images=coco / f"{split}2017", annotations=coco / f"annotations/instances_{split}2017.json"
        ),
        "objects365": CocoBoxes(
            head="objects365", images=objects / split, annotations=objects / f"annotations/{split}.json"
        ),
        "faces": WiderFace(head="faces", root=root / "widerface", split="train" if learn else "val"),
    }


def _with_masks(root: Path, learn: bool) -> dict[str, Source]:
    ade, coco = root / "ADEChallengeData2016", root / "coco"
    part, split = ("training", "train2017") if learn else ("validation", "val2017")
    return {
        "ade": Masks(
            head="ade",
            images=ade / "images" / part,
            masks=ade / "annotations" / part,
            classes=ade / "objectInfo150.txt",
            ignore=(0,),
        ),
        "stuff": Masks(head="stuff", images=coco / split, masks=coco / "stuffthingmaps" / split, classes=COCO_STUFF),
    }
