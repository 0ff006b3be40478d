"""The worlds of scenes: what stands in them, how it is lit and photographed, and what their labels mean.

A world is a set of ranges; image i of a world draws its values from them with numbers that depend on the world, the
seed and i alone. Upstream worlds are each meant to be labelled for one task, the pool for none, and the downstream
worlds share shapes and materials with them but look different: other rooms, lights, palettes and cameras.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from tutelage.data.scenes.materials import MATERIALS
from tutelage.data.scenes.solids import SHAPES
from tutelage.data.source import LabelSpace

Kind = Literal["classes", "shapes", "boxes", "mask", "depth", "normals"]
"""Of a label: "classes" are shapes in materials, "shapes" shapes alone, both of the object that shows most pixels."""

Range = tuple[float, float]
STUFF: tuple[str, ...] = ("ground", "wall", "ceiling", "hill", "sky")
"""What fills a picture between the objects, in the order of the ids in a scene's surfaces."""


@dataclass(frozen=True)
class World:
    """Ranges that a world's images are drawn from: low and high, uniform unless said otherwise.

    Attributes:
        name, line: the name used in recipes and one line for people.
        label: the kind of label that this world is meant for; None for a pool. Any kind can be asked for.
        mask: the label space of its masks: "shapes" (background and one class a shape), "materials" (stuff and one
            class a material) or "all" (stuff and one class for each shape in each material).
        shapes, materials: names of what objects are and are made of.
        mix: names of other worlds; then each image takes the look of one of them, and the fields below are not used.
        setting: "open" (ground and sky), "yard" (ground, walls, sky) or "room" (floor, walls, ceiling).
        room: metres from the camera to the far wall, and the same range for each side wall.
        wall: height of walls in metres (a room's ceiling).
        objects: least and most objects (some find no place); size: their half width in metres.
        distance: metres from the camera on the ground, log-uniform.
        main: the first object stands alone in the middle, `distance` away, the others behind it.
        stack, tumble: chance that an object stands on another one; lies on its side or is turned freely.
        hills: least and most hills; hill: how high they rise, metres.
        height, pitch, roll, view: of the camera; metres over the ground, and degrees: downwards, sideways, and the
            angle of view across the picture.
        lamp: a point light inside instead of the sun; elevation: of the sun in degrees.
        ambient: light from everywhere, where the direct light is about 1.
        soft: 1 for blurred borders of shadows, 0 for hard ones; haze: fraction a metre; noise: of the sensor, where
            white is 1; blur: of the lens.
        hue, saturation, brightness: of objects; contrast: how far a material's two colours are apart.
        period: length of a pattern's period over the object's half width.
        grounds, walls: materials of ground and walls; muted: how grey these are, 0 to 1.
        tint: of the whole picture.
    """

    name: str
    line: str
    label: Kind | None = None
    mask: Literal["shapes", "materials", "all"] = "shapes"
    shapes: tuple[str, ...] = SHAPES
    materials: tuple[str, ...] = MATERIALS
    mix: tuple[str, ...] = ()
    setting: Literal["open", "yard", "room"] = "open"
    room: Range = (6.0, 9.0)
    wall: Range = (2.4, 3.0)
    objects: tuple[int, int] = (3, 7)
    size: Range = (0.3, 0.6)
    distance: Range = (2.5, 8.0)
    main: bool = False
    stack: float = 0.15
    tumble: float = 0.2
    hills: tuple[int, int] = (0, 0)
    hill: Range = (0.4, 1.3)
    height: Range = (1.2, 1.8)
    pitch: Range = (8.0, 16.0)
    roll: Range = (-2.0, 2.0)
    view: Range = (45.0, 60.0)
    lamp: bool = False
    elevation: Range = (25.0, 65.0)
    ambient: Range = (0.35, 0.5)
    soft: Range = (0.5, 1.0)
    haze: Range = (0.0, 0.01)
    noise: Range = (0.004, 0.015)
    blur: Range = (0.0, 0.2)
    hue: Range = (0.0, 1.0)
    saturation: Range = (0.35, 0.9)
    brightness: Range = (0.55, 1.0)
    contrast: Range = (0.45, 0.7)
    period: Range = (0.55, 0.9)
    grounds: tuple[str, ...] = ("plain", "mottled", "checked")
    walls: tuple[str, ...] = ("plain", "bricked", "marbled")
    muted: Range = (0.5, 0.9)
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def names(self, kind: Kind) -> tuple[str, ...] | None:
        """The class names of one kind of label, in the order of class indices; None for depth and normals."""
        if kind == "classes":
            return self.pairs()
        if kind in ("boxes", "shapes"):
            return self.shapes
        if kind == "mask":
            things = {"shapes": self.shapes, "materials": self.materials, "all": self.pairs()}[self.mask]
            return (("background",) if self.mask == "shapes" else STUFF) + things
        return None

    def pairs(self) -> tuple[str, ...]:
        """Every shape in every material: "striped box"; the shape changes slowest."""
        return tuple(f"{material} {shape}" for shape in self.shapes for material in self.materials)

    def space(self, kind: Kind) -> LabelSpace | None:
        """The label space of one kind of label; None for depth and normals."""
        names = self.names(kind)
        return None if names is None else LabelSpace(names)


def _alone(look: World, **changes: Any) -> World:
    """A world that looks like another and has one object in the middle, few behind it; its classes are many."""
    common: dict[str, Any] = {"label": "classes", "objects": (1, 4), "main": True, "stack": 0.0, "tumble": 0.1}
    return replace(look, **{**common, **changes})


_CATALOGUE = World(
    "catalogue",
    "one object before a plain ground, close up: classes are a shape in a material",
    label="classes",
    shapes=("ball", "box", "cylinder", "cone", "capsule", "pyramid", "ring", "dome"),
    materials=("plain", "striped", "checked", "dotted"),
    setting="yard",
    room=(5.0, 8.0),
    wall=(6.0, 7.0),
    objects=(1, 4),
    size=(0.42, 0.6),
    distance=(2.3, 3.2),
    main=True,
    stack=0.0,
    height=(0.9, 1.7),
    view=(40.0, 52.0),
    elevation=(35.0, 75.0),
    grounds=("plain", "shaded", "marbled"),
    walls=("plain", "shaded"),
)
_PLAYGROUND = World(
    "playground",
    "many objects on open ground under a blue sky: boxes by shape",
    label="boxes",
    shapes=("ball", "box", "cylinder", "cone", "pyramid", "ring"),
    objects=(1, 6),
    size=(0.4, 0.8),
    distance=(2.6, 7.0),
    hills=(0, 2),
    height=(1.2, 2.2),
    pitch=(8.0, 18.0),
    grounds=("plain", "mottled", "checked", "striped"),
)
_WORKSHOP = World(
    "workshop",
    "a lamp-lit room full of things: masks by material, with floor, walls and ceiling",
    label="mask",
    mask="materials",
    setting="room",
    room=(4.5, 8.0),
    objects=(4, 9),
    size=(0.35, 0.65),
    distance=(2.2, 6.5),
    stack=0.3,
    lamp=True,
    ambient=(0.4, 0.6),
    haze=(0.0, 0.0),
    walls=("plain", "bricked", "striped"),
    grounds=("plain", "gridded", "checked"),
)
_HALLS = World(
    "halls",
    "halls and passages of many sizes with columns and crates: depth in metres",
    label="depth",
    shapes=("box", "cylinder", "cone", "ball", "pyramid", "roof", "ring"),
    setting="room",
    room=(5.0, 14.0),
    wall=(2.6, 4.5),
    objects=(3, 8),
    size=(0.3, 0.8),
    distance=(2.0, 11.0),
    stack=0.35,
    height=(1.1, 2.0),
    pitch=(2.0, 14.0),
    view=(50.0, 70.0),
    lamp=True,
    ambient=(0.35, 0.6),
    haze=(0.0, 0.02),
    grounds=("plain", "gridded", "checked", "marbled"),
    walls=("plain", "bricked", "gridded", "shaded"),
)
_INDOORS = World(
    "indoors",
    "rooms of every kind, full of things",
    setting="room",
    room=(4.0, 10.0),
    objects=(1, 9),
    size=(0.25, 0.8),
    distance=(1.8, 8.0),
    stack=0.25,
    tumble=0.35,
    height=(0.8, 2.2),
    pitch=(0.0, 35.0),
    roll=(-8.0, 8.0),
    view=(40.0, 70.0),
    lamp=True,
    ambient=(0.25, 0.65),
    noise=(0.005, 0.03),
    blur=(0.0, 0.5),
    saturation=(0.1, 0.95),
    brightness=(0.35, 1.0),
    contrast=(0.3, 0.75),
    period=(0.45, 1.1),
    grounds=MATERIALS,
    walls=MATERIALS,
    muted=(0.2, 0.95),
)
_OUTDOORS = World(
    "outdoors",
    "open country of every kind, full of things",
    setting="open",
    objects=(1, 9),
    size=(0.25, 0.9),
    distance=(2.0, 10.0),
    tumble=0.35,
    hills=(0, 3),
    height=(0.9, 3.0),
    pitch=(4.0, 30.0),
    roll=(-10.0, 10.0),
    view=(40.0, 70.0),
    elevation=(12.0, 80.0),
    ambient=(0.25, 0.6),
    haze=(0.0, 0.05),
    noise=(0.005, 0.03),
    blur=(0.0, 0.5),
    saturation=(0.1, 0.95),
    brightness=(0.35, 1.0),
    contrast=(0.3, 0.75),
    period=(0.45, 1.1),
    grounds=MATERIALS,
    muted=(0.2, 0.95),
)
_GALLERY = _alone(
    _INDOORS,
    name="gallery",
    line="one object in a room of some kind, many classes",
    shapes=("ball", "box", "cylinder", "pyramid", "roof", "ring"),
    materials=("plain", "gridded", "striped", "checked"),
    size=(0.42, 0.62),
    distance=(1.8, 2.6),
    height=(0.8, 1.8),
    pitch=(0.0, 25.0),
    roll=(-5.0, 5.0),
    ambient=(0.35, 0.65),
    contrast=(0.45, 0.75),
    period=(0.55, 0.9),
)
_LANDMARKS = _alone(
    _OUTDOORS,
    name="landmarks",
    line="one object in open country of some kind, many classes",
    shapes=("ball", "box", "cone", "capsule", "ring", "dome"),
    materials=("plain", "striped", "dotted", "checked"),
    size=(0.42, 0.65),
    distance=(2.0, 3.0),
    height=(0.9, 2.0),
    pitch=(4.0, 22.0),
    roll=(-5.0, 5.0),
    ambient=(0.35, 0.6),
    contrast=(0.45, 0.75),
    period=(0.55, 0.9),
)
_BENCH = _alone(
    _WORKSHOP,
    name="bench",
    line="one object on a workshop's floor, many classes",
    shapes=("ball", "box", "cone", "capsule", "gem", "dome"),
    materials=("plain", "bricked", "ringed", "dotted"),
    size=(0.4, 0.6),
    distance=(1.9, 2.7),
)
_FOYER = _alone(
    _HALLS,
    name="foyer",
    line="one object in a hall, many classes",
    shapes=("box", "cylinder", "cone", "roof", "ring"),
    materials=("striped", "checked", "marbled", "plain"),
    size=(0.42, 0.65),
    distance=(1.9, 2.8),
    pitch=(4.0, 16.0),
    view=(45.0, 58.0),
)
_TRAVELS = World(
    "travels",
    "the pool: pictures from everywhere, half of them of one object; without labels",
    mix=("catalogue", "playground", "workshop", "halls", "gallery", "gallery", "landmarks", "landmarks"),
)
_CURIOS = World(
    "curios",
    "one curio on a shelf in dim lamp light, many fine classes (as CIFAR-100)",
    label="classes",
    shapes=("ball", "box", "cylinder", "capsule", "pyramid", "roof"),
    materials=("striped", "checked", "dotted", "gridded"),
    setting="room",
    room=(3.6, 5.0),
    objects=(2, 5),
    size=(0.4, 0.6),
    distance=(1.9, 2.7),
    main=True,
    stack=0.0,
    tumble=0.3,
    height=(0.7, 1.6),
    roll=(-6.0, 6.0),
    view=(42.0, 56.0),
    lamp=True,
    ambient=(0.25, 0.4),
    noise=(0.01, 0.03),
    blur=(0.1, 0.4),
    saturation=(0.15, 0.7),
    brightness=(0.45, 0.9),
    contrast=(0.35, 0.6),
    grounds=("marbled", "mottled", "striped"),
    walls=("bricked", "shaded", "mottled"),
    tint=(1.0, 0.9, 0.72),
)
_YARD = World(
    "yard",
    "a walled yard in low evening sun: boxes by shape (as Pascal VOC detection)",
    label="boxes",
    shapes=("ball", "box", "cylinder", "cone", "capsule", "pyramid", "ring", "gem"),
    setting="yard",
    room=(6.0, 11.0),
    wall=(1.6, 3.2),
    objects=(1, 7),
    size=(0.35, 0.65),
    distance=(2.6, 7.5),
    tumble=0.35,
    height=(1.3, 2.4),
    pitch=(10.0, 22.0),
    roll=(-5.0, 5.0),
    elevation=(12.0, 30.0),
    ambient=(0.4, 0.55),
    noise=(0.01, 0.03),
    saturation=(0.2, 0.7),
    brightness=(0.4, 0.9),
    grounds=("bricked", "mottled", "gridded", "marbled"),
    walls=("bricked", "marbled", "shaded"),
    tint=(1.0, 0.92, 0.8),
)
_BLOCKS = World(
    "blocks",
    "toys on a table seen from above: masks by shape, few images (as Pascal VOC segmentation)",
    label="mask",
    mask="shapes",
    shapes=("ball", "box", "cylinder", "cone", "capsule", "pyramid", "roof", "ring"),
    setting="yard",
    room=(6.0, 8.0),
    wall=(2.0, 3.0),
    objects=(3, 8),
    size=(0.28, 0.5),
    distance=(1.6, 4.2),
    stack=0.2,
    tumble=0.4,
    height=(2.0, 3.0),
    pitch=(35.0, 55.0),
    roll=(-20.0, 20.0),
    view=(45.0, 58.0),
    elevation=(40.0, 80.0),
    ambient=(0.4, 0.6),
    saturation=(0.4, 1.0),
    grounds=("ringed", "marbled", "checked", "striped"),
    muted=(0.4, 0.8),
)
_FLAT = World(
    "flat",
    "small furnished rooms: depth in metres (as NYU depth)",
    label="depth",
    shapes=("box", "cylinder", "ball", "cone", "capsule", "dome", "gem"),
    setting="room",
    room=(3.0, 6.5),
    wall=(2.2, 2.8),
    objects=(3, 8),
    size=(0.25, 0.55),
    distance=(1.5, 5.0),
    stack=0.3,
    tumble=0.15,
    height=(1.1, 1.7),
    pitch=(8.0, 24.0),
    roll=(-4.0, 4.0),
    view=(55.0, 65.0),
    lamp=True,
    ambient=(0.45, 0.65),
    noise=(0.01, 0.03),
    blur=(0.1, 0.4),
    saturation=(0.1, 0.6),
    grounds=("bricked", "striped", "marbled"),
    walls=("plain", "shaded", "striped", "mottled"),
    tint=(1.0, 0.96, 0.88),
)
_TOWN = World(
    "town",
    "a hazy open place with low walls: masks of stuff and of each shape in each material (as ADE20K)",
    label="mask",
    mask="all",
    shapes=("box", "cylinder", "cone", "ball", "roof", "dome"),
    materials=("plain", "striped", "checked", "bricked"),
    setting="yard",
    room=(7.0, 14.0),
    wall=(0.8, 3.5),
    objects=(4, 9),
    size=(0.4, 0.85),
    distance=(2.6, 9.0),
    stack=0.25,
    tumble=0.1,
    hills=(0, 2),
    height=(1.4, 2.6),
    pitch=(6.0, 18.0),
    haze=(0.01, 0.05),
    saturation=(0.15, 0.65),
    brightness=(0.5, 1.0),
    grounds=("gridded", "bricked", "mottled", "plain"),
    walls=("bricked", "gridded", "plain"),
    tint=(0.92, 0.97, 1.05),
)
_HILLS = World(
    "hills",
    "hilly country with scattered rocks and a tilted camera: surface normals (as DIODE)",
    label="normals",
    shapes=("ball", "box", "pyramid", "roof", "gem", "dome", "cone"),
    setting="open",
    objects=(4, 9),
    size=(0.35, 1.0),
    distance=(2.6, 8.0),
    stack=0.1,
    tumble=0.6,
    hills=(3, 5),
    hill=(0.8, 2.4),
    height=(1.4, 2.6),
    pitch=(8.0, 28.0),
    roll=(-15.0, 15.0),
    view=(50.0, 65.0),
    elevation=(20.0, 70.0),
    haze=(0.0, 0.03),
    hue=(0.02, 0.45),
    saturation=(0.1, 0.55),
    brightness=(0.35, 0.85),
    contrast=(0.25, 0.5),
    grounds=("mottled", "marbled", "plain"),
    tint=(1.0, 0.98, 0.92),
)

_COURTYARD = _alone(
    _YARD,
    name="courtyard",
    line="one object in the yard, in evening sun, many classes",
    shapes=("ball", "box", "cone", "capsule", "pyramid", "gem"),
    materials=("plain", "checked", "ringed", "striped"),
    size=(0.42, 0.62),
    distance=(2.0, 2.9),
    tumble=0.15,
    height=(0.9, 1.8),
    pitch=(6.0, 18.0),
)
_TABLETOP = _alone(
    _BLOCKS,
    name="tabletop",
    line="one toy on a table seen from above, many classes",
    shapes=("ball", "box", "cylinder", "pyramid", "roof", "ring"),
    materials=("plain", "dotted", "checked", "gridded"),
    size=(0.36, 0.52),
    distance=(1.7, 2.4),
    tumble=0.3,
)
_STUDIO = _alone(
    _FLAT,
    name="studio",
    line="one object in a small room, many classes",
    shapes=("box", "cylinder", "ball", "capsule", "dome"),
    materials=("striped", "bricked", "dotted", "checked"),
    size=(0.38, 0.56),
    distance=(1.7, 2.5),
    view=(42.0, 54.0),
)
_SQUARE = _alone(
    _TOWN,
    name="square",
    line="one object on a hazy square, many classes",
    size=(0.45, 0.7),
    distance=(2.2, 3.2),
    height=(1.0, 1.9),
)
_MOOR = _alone(
    _HILLS,
    name="moor",
    line="one rock in hilly country, many classes",
    shapes=("ball", "box", "pyramid", "gem", "cone"),
    materials=("plain", "shaded", "striped", "ringed"),
    size=(0.45, 0.7),
    distance=(2.2, 3.2),
    tumble=0.25,
    hills=(1, 3),
    hill=(0.4, 1.3),
    height=(1.0, 1.9),
    pitch=(6.0, 20.0),
    roll=(-8.0, 8.0),
    contrast=(0.35, 0.6),
)

UPSTREAM: tuple[World, ...] = (_CATALOGUE, _PLAYGROUND, _WORKSHOP, _HALLS)
"""Worlds for the specialist teachers, each labelled for one task: classes, boxes, mask, depth."""
POOL: World = _TRAVELS
"""The unlabelled mixture."""
DOWNSTREAM: tuple[World, ...] = (_CURIOS, _YARD, _BLOCKS, _FLAT, _TOWN, _HILLS)
"""Small worlds for transfer, in the order of MuST's table 1: classes, boxes, mask, depth, mask, normals."""
PROBED: tuple[World, ...] = (_CURIOS, _COURTYARD, _TABLETOP, _STUDIO, _SQUARE, _MOOR)
"""Worlds with one object in the middle, each with the look of a downstream world: for linear probes."""
_MORE: tuple[World, ...] = (_GALLERY, _LANDMARKS, _BENCH, _FOYER, _INDOORS, _OUTDOORS)
WORLDS: dict[str, World] = {world.name: world for world in (*UPSTREAM, POOL, *DOWNSTREAM, *PROBED, *_MORE)}
"""All worlds by name."""
