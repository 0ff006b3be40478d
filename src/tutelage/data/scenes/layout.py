"""What stands where in each image of a world, in numbers: drawn on the CPU, from (world, seed, image) alone.

Letters in shapes: B images, S things (slots) of an image, hills last. World axes: x right, y down, z ahead, metres,
with the camera in the origin. All arrays are float64 unless said otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from tutelage.data.scenes.materials import MATERIALS
from tutelage.data.scenes.solids import SHAPES, SOLIDS, outline
from tutelage.data.scenes.worlds import WORLDS, World

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_TRIES = 10
_FAR_AWAY = 1e5
_HULL = outline()
_FLAT_TOP = np.array([solid.flat_top for solid in SOLIDS])
_TALL = np.array([solid.tall for solid in SOLIDS])


class Draws:
    """Uniform numbers that depend on (world, seed, image, what, position) only, not on the order of the calls."""

    def __init__(self, world: str, seed: int, images: Ints) -> None:
        start = np.array([_name_number(world), seed % 2**64], dtype=np.uint64)
        self._keys = _mix(_mix(_mix(start[:1]) + start[1:]) + images.astype(np.uint64))

    def __len__(self) -> int:
        return len(self._keys)

    def keys(self, what: str) -> NDArray[np.uint64]:
        """A random 64-bit number an image, [B]."""
        return _mix(self._keys ^ np.array([_name_number(what)], dtype=np.uint64))

    def __call__(self, what: str, between: tuple[float, float] = (0.0, 1.0), shape: tuple[int, ...] = ()) -> Floats:
        """Numbers in [low, high), [B, *shape]."""
        count = int(np.prod(shape, dtype=np.int64))
        keys = self.keys(what)[:, None] + np.arange(count, dtype=np.uint64)[None] * np.uint64(0x9E3779B97F4A7C15)
        unit = (_mix(keys) >> np.uint64(11)).astype(np.float64) / 2.0**53
        low, high = between
        return (low + (high - low) * unit).reshape(len(self), *shape)

    def whole(self, what: str, between: tuple[int, int], shape: tuple[int, ...] = ()) -> Ints:
        """Whole numbers from low to high, both included, [B, *shape]."""
        return np.floor(self(what, (between[0], between[1] + 1), shape)).astype(np.int64)

    def one_of(self, what: str, names: Sequence[str], known: Sequence[str], shape: tuple[int, ...] = ()) -> Ints:
        """Indices into `known` of one of `names`, [B, *shape]."""
        numbers = np.array([known.index(name) for name in names], dtype=np.int64)
        return numbers[self.whole(what, (0, len(names) - 1), shape)]


def _name_number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scatters 64 bits (the finaliser of Steele, Lea and Flood's SplitMix, OOPSLA 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass
class Layout:
    """The contents of B images.

    Attributes:
        present, thing: bool [B,S]; whether the slot is used; whether it is an object (else a hill).
        shape, material: int64 [B,S], indices into `SHAPES` and `MATERIALS`.
        centre: [B,S,3]; half: [B,S,3], half sizes along the body's axes; turn: [B,S,3,3], body axes from world axes.
        camera: [B,3,3], camera axes from world axes; slope: [B], tangent of half the angle of view.
        room: [B,3,3], room axes from world axes; low, high: [B,3], the room's bounds in its axes; top: [B], the
            height coordinate (y) above which walls end.
        stuff: int64 [B,3], materials of ground, walls, ceiling.
        colours: [B,S+3,2,3], linear RGB of the two colours of the slots, then of ground, walls and ceiling.
        frequency: [B,S+3], periods of the pattern a metre; phase: [B,S+3,3], in periods; gloss: [B,S+3] in [0, 1].
        lamp: [B,4], position of the light (last entry 1) or direction towards it (0), in world axes.
        sun, ambient, zenith, horizon: [B,3], linear RGB; haze, noise, blur, soft: [B].
        key: uint64 [B], for the sensor's noise.
    """

    present: NDArray[np.bool_]
    thing: NDArray[np.bool_]
    shape: Ints
    material: Ints
    centre: Floats
    half: Floats
    turn: Floats
    camera: Floats
    slope: Floats
    room: Floats
    low: Floats
    high: Floats
    top: Floats
    stuff: Ints
    colours: Floats
    frequency: Floats
    phase: Floats
    gloss: Floats
    lamp: Floats
    sun: Floats
    ambient: Floats
    zenith: Floats
    horizon: Floats
    haze: Floats
    noise: Floats
    blur: Floats
    soft: Floats
    key: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.present)

    @property
    def slots(self) -> int:
        return self.present.shape[1]


def slots(world: World) -> int:
    """The number of slots S of a world: its most objects and hills together, at least one."""
    parts = [WORLDS[name] for name in world.mix] or [world]
    return max(1, *(part.objects[1] + part.hills[1] for part in parts))


def lay_out(world: World, seed: int, images: Sequence[int] | Ints) -> Layout:
    """The contents of some images of a world."""
    numbers = np.asarray(images, dtype=np.int64)
    if not world.mix:
        return _lay_out(world, Draws(world.name, seed, numbers), slots(world))
    which = Draws(world.name, seed, numbers).whole("look", (0, len(world.mix) - 1))
    rows, parts = [], []
    for number, name in enumerate(world.mix):
        mine = np.flatnonzero(which == number)
        if len(mine):
            rows.append(mine)
            parts.append(_lay_out(WORLDS[name], Draws(world.name, seed, numbers[mine]), slots(world)))
    order = np.argsort(np.concatenate(rows)) if rows else numbers
    if not rows:
        return _lay_out(WORLDS[world.mix[0]], Draws(world.name, seed, numbers), slots(world))
    return Layout(**{f.name: np.concatenate([getattr(p, f.name) for p in parts])[order] for f in fields(Layout)})


def _lay_out(world: World, draws: Draws, slots: int) -> Layout:
    count = len(draws)
    height = draws("height", world.height)
    slope = np.tan(np.radians(draws("view", world.view)) / 2)
    yaw = draws("room yaw", (-0.6, 0.6)) if world.setting != "open" else np.zeros(count)
    room = _turn(1, yaw)
    low, high, top = _room(world, draws, height)
    hills = _hills(world, draws, height)
    things = _things(world, draws, height, slope, room, low, high, hills)
    pitch = np.radians(draws("pitch", world.pitch))
    if world.main:  # look at the first object, a little off
        aim = things["centre"][:, 0]
        pitch = np.arctan2(aim[:, 1], aim[:, 2]) + np.radians(draws("aim", (-4.0, 4.0)))
    camera = _product(_turn(2, np.radians(draws("roll", world.roll))), _turn(0, pitch))
    joined = _join(things, hills, slots)
    return Layout(
        **joined, camera=camera, slope=slope, room=room, low=low, high=high, top=top,
        key=draws.keys("noise"), **_looks(world, draws, slots, joined["half"]), **_light(world, draws, low, high),
    )  # fmt: skip


def _turn(axis: int, angle: Floats) -> Floats:
    """Rotations about one axis, [..., 3, 3]."""
    c, s = np.cos(angle), np.sin(angle)
    turn = np.zeros((*angle.shape, 3, 3))
    i, j = ((1, 2), (2, 0), (0, 1))[axis]
    turn[..., axis, axis] = 1
    turn[..., i, i], turn[..., j, j] = c, c
    turn[..., i, j], turn[..., j, i] = -s, s
    return turn


def _product(a: Floats, b: Floats) -> Floats:
    """Matrix products [..., 3, 3], summed in a fixed order: a library's order may differ between processors."""
    return sum(a[..., :, k, None] * b[..., k, None, :] for k in range(3))  # type: ignore[return-value]


def _room(world: World, draws: Draws, height: Floats) -> tuple[Floats, Floats, Floats]:
    """Bounds of the room in its own axes, [B,3] twice, and the y where walls end, [B]."""
    wall = draws("wall", world.wall)
    left, right, ahead = (draws(side, world.room) for side in ("left", "right", "ahead"))
    if world.setting == "open":
        far = np.full_like(height, _FAR_AWAY)
        return np.stack([-far, -far, -far], 1), np.stack([far, height, far], 1), height
    narrow = 0.6 if world.setting == "room" else 0.8
    ceiling = height - wall if world.setting == "room" else np.full_like(height, -_FAR_AWAY)
    ceiling = np.minimum(ceiling, -0.3)
    low = np.stack([-narrow * left, ceiling, np.full_like(height, -3.0)], 1)
    high = np.stack([narrow * right, height, ahead], 1)
    return low, high, ceiling if world.setting == "room" else height - wall


def _hills(world: World, draws: Draws, height: Floats) -> dict[str, NDArray]:
    """Flat ellipsoids, half sunk into the ground; arrays as in `Layout`, with one slot a hill."""
    most = world.hills[1]
    shape = (most,)
    half = np.stack(
        [draws("hill x", (2.0, 5.0), shape), draws("hill y", world.hill, shape), draws("hill z", (2.0, 5.0), shape)],
        -1,
    )
    ahead = np.maximum(half[..., 0], half[..., 2]) + draws("hill ahead", (1.0, 9.0), shape)
    aside = ahead * draws("hill aside", (-0.7, 0.7), shape)
    low = np.broadcast_to(height[:, None], ahead.shape)
    return {
        "present": np.arange(most) < draws.whole("hills", world.hills)[:, None],
        "thing": np.zeros((len(draws), most), dtype=bool),
        "shape": np.full((len(draws), most), SHAPES.index("ball")),
        "material": np.repeat(draws.one_of("ground", world.grounds, MATERIALS)[:, None], most, 1),
        "centre": np.stack([aside, low, ahead], -1),
        "half": half,
        "turn": _turn(1, draws("hill yaw", (0.0, 6.28), shape)),
    }


def _rise(hills: dict[str, NDArray], x: Floats, z: Floats) -> Floats:
    """How far the ground is raised by hills at points [B] or [B,n], metres."""
    rise = np.zeros_like(x)
    for h in range(hills["present"].shape[1]):
        expand = (slice(None), None) if x.ndim == 2 else (slice(None),)
        part = {name: values[:, h] for name, values in hills.items()}
        dx, dz = x - part["centre"][..., 0][expand], z - part["centre"][..., 2][expand]
        turn = part["turn"]
        u = (turn[:, 0, 0][expand] * dx + turn[:, 0, 2][expand] * dz) / part["half"][:, 0][expand]
        v = (turn[:, 2, 0][expand] * dx + turn[:, 2, 2][expand] * dz) / part["half"][:, 2][expand]
        top = part["half"][:, 1][expand] * np.sqrt(np.maximum(0.0, 1 - u * u - v * v))
        rise = np.maximum(rise, np.where(part["present"][expand], top, 0.0))
    return rise


def _bodies(world: World, draws: Draws) -> dict[str, NDArray]:
    """Shapes, sizes and turns of the objects, before they have a place."""
    most = world.objects[1]
    shape = draws.one_of("shape", world.shapes, SHAPES, (most,))
    radius = draws("size", world.size, (most,))
    tall = _TALL[shape]
    tall = tall[..., 0] + (tall[..., 1] - tall[..., 0]) * draws("tall", shape=(most,))
    deep = draws("deep", (0.85, 1.15), (most,))
    size = radius / np.sqrt(np.maximum(tall, 0.5))  # tall bodies are thinner, so that sizes stay alike
    half = np.stack([size, size * tall, size * deep], -1)
    chance = draws("tumble", shape=(most,))
    lying, free = chance < world.tumble / 2, (chance >= world.tumble / 2) & (chance < world.tumble)
    tip = np.where(lying, np.pi / 2, np.where(free, draws("tip", (0.3, 1.3), (most,)), 0.0))
    yaw = draws("yaw", (0.0, 2 * np.pi), (most,))
    turn = _product(_turn(0, tip), _turn(1, yaw))
    turn = _product(_turn(1, np.where(free, draws("spin", (0.0, 6.28), (most,)), 0.0)), turn)
    return {"shape": shape, "half": half, "turn": turn, "upright": ~(lying | free)}


def _depth_below(shape: Ints, half: Floats, turn: Floats) -> Floats:
    """How far bodies reach down from their centres, metres, [B,S]."""
    points = _HULL[shape]
    down = sum(points[..., k] * (half[..., k] * turn[..., k, 1])[..., None] for k in range(3))
    return np.asarray(down).max(-1)


def _things(
    world: World,
    draws: Draws,
    height: Floats,
    slope: Floats,
    room: Floats,
    low: Floats,
    high: Floats,
    hills: dict[str, NDArray],
) -> dict[str, NDArray]:
    """Objects with their places; arrays as in `Layout`, with one slot an object."""
    most, count = world.objects[1], len(draws)
    body = _bodies(world, draws)
    wanted = np.arange(most) < draws.whole("objects", world.objects)[:, None]
    x, z = _candidates(world, draws, slope)
    present = np.zeros((count, most), dtype=bool)
    stacked, covered = present.copy(), present.copy()
    place = np.zeros((count, most, 3))
    stacks = draws("stack", shape=(most,)) < world.stack
    rows = np.arange(count)
    for s in range(most):
        radius = np.sqrt((body["half"][:, s] ** 2)[:, [0, 2]].sum(-1)) * 0.95
        if s:
            below = s - 1
            on = stacks[:, s] & wanted[:, s] & present[:, below] & body["upright"][:, below]
            on &= ~stacked[:, below] & _FLAT_TOP[body["shape"][:, below]]
            _fit_on(body, s, below, on)
            stacked[:, s], covered[:, below] = on, on
        inside = np.ones(x[:, s].shape, dtype=bool)
        for axis, cos, sin in ((0, room[:, 0, 0], room[:, 0, 2]), (2, room[:, 2, 0], room[:, 2, 2])):
            along = cos[:, None] * x[:, s] + sin[:, None] * z[:, s]
            inside &= (along > (low[:, axis] + radius)[:, None]) & (along < (high[:, axis] - radius)[:, None])
        for other in range(s):
            gap = np.sqrt((x[:, s] - place[:, other, :1]) ** 2 + (z[:, s] - place[:, other, 2:]) ** 2)
            reach = radius + np.sqrt((body["half"][:, other] ** 2)[:, [0, 2]].sum(-1)) * 0.95
            inside &= (gap > reach[:, None]) | ~present[:, other, None]
        pick = inside.argmax(1)
        present[:, s] = wanted[:, s] & (inside[rows, pick] | stacked[:, s] | (world.main and s == 0))
        place[:, s, 0], place[:, s, 2] = x[rows, s, pick], z[rows, s, pick]
        foot = height - _rise(hills, place[:, s, 0], place[:, s, 2])
        if s:
            on = stacked[:, s]
            place[on, s] = place[on, s - 1]
            foot = np.where(on, place[:, s - 1, 1] - body["half"][:, s - 1, 1], foot)
        place[:, s, 1] = foot - _depth_below(body["shape"][:, s], body["half"][:, s], body["turn"][:, s])
    return {
        "present": present,
        "thing": np.ones((count, most), dtype=bool),
        "shape": body["shape"],
        "material": draws.one_of("material", world.materials, MATERIALS, (most,)),
        "centre": place,
        "half": body["half"],
        "turn": body["turn"],
    }


def _candidates(world: World, draws: Draws, slope: Floats) -> tuple[Floats, Floats]:
    """Places to try for each object: x and z [B,S,tries] inside the camera's view."""
    shape = (world.objects[1], _TRIES)
    near, far = world.distance
    z = near * (far / near) ** draws("ahead", shape=shape)
    x = z * slope[:, None, None] * draws("aside", (-0.85, 0.85), shape)
    if world.main:  # the others stand further behind, off the middle
        z[:, 1:] += draws("behind", (1.2, 3.0), shape)[:, 1:]
        x[:, 0] *= 0.15
        side = np.where(x[:, 1:] < 0, -1.0, 1.0)
        x[:, 1:] = side * np.maximum(np.abs(x[:, 1:]), 0.45 * z[:, 1:] * slope[:, None, None])
    return x, z


def _fit_on(body: dict[str, NDArray], s: int, below: int, on: NDArray[np.bool_]) -> None:
    """Sets object s upright and makes it small enough to stand on the object below, where `on`."""
    half = body["half"]
    room = 0.8 * np.minimum(half[:, below, 0], half[:, below, 2])
    factor = np.minimum(1.0, room / np.maximum(half[:, s, 0], half[:, s, 2]))
    half[:, s] *= np.where(on, factor, 1.0)[:, None]
    yaw = np.arctan2(body["turn"][:, s, 0, 2], body["turn"][:, s, 0, 0])
    body["turn"][:, s] = np.where(on[:, None, None], _turn(1, yaw), body["turn"][:, s])
    body["upright"][:, s] |= on


def _join(things: dict[str, NDArray], hills: dict[str, NDArray], slots: int) -> dict[str, NDArray]:
    """Objects, then hills, then unused slots."""
    joined = {}
    for name, values in things.items():
        both = np.concatenate([values, hills[name]], 1)
        spare = slots - both.shape[1]
        filler = np.zeros((len(both), spare, *both.shape[2:]), dtype=both.dtype)
        if name == "half":
            filler += 1
        joined[name] = np.concatenate([both, filler], 1)
    return joined


def _rgb(hue: Floats, saturation: Floats, value: Floats) -> Floats:
    """Linear RGB [..., 3] of hue, saturation and value (each in [0, 1], in display terms)."""
    sector = np.stack([hue * 6 + shift for shift in (0.0, 4.0, 2.0)], -1) % 6.0
    pure = np.clip(np.abs(sector - 3.0) - 1.0, 0, 1)
    display = value[..., None] * (1 - saturation[..., None] * (1 - pure))
    return display * display  # the picture is a square root of light


def _looks(world: World, draws: Draws, slots: int, half: Floats) -> dict[str, NDArray]:
    """Colours and patterns of the slots, then of ground, walls and ceiling."""
    shape = (slots + 3,)
    hue = draws("hue", world.hue, shape)
    saturation = draws("saturation", world.saturation, shape)
    value = draws("brightness", world.brightness, shape)
    contrast = draws("contrast", world.contrast, shape)
    other_hue = hue + draws("other hue", (0.2, 0.8), shape)
    other_saturation = draws("other saturation", world.saturation, shape)
    muted = draws("muted", world.muted, (3,))
    saturation[:, slots:] *= 1 - muted
    other_saturation[:, slots:] *= 1 - muted
    contrast[:, slots:] *= 0.45  # the ground must not shout
    value[:, slots:] = draws("ground brightness", (0.5, 0.85), (3,))
    value[:, slots + 2] = draws("ceiling brightness", (0.75, 0.95))
    bright = _rgb(hue, saturation, value)
    dark = _rgb(other_hue % 1.0, other_saturation, np.maximum(value - contrast, 0.06))
    swap = (draws("swap", shape=shape) < 0.5)[..., None]
    period = draws("period", world.period, shape)
    body = (half[..., 0] * half[..., 1] * half[..., 2]) ** (1 / 3)
    metres = np.concatenate([period[:, :slots] * body, draws("ground period", (0.5, 1.1), (3,))], 1)
    stuff = [draws.one_of("ground", world.grounds, MATERIALS), draws.one_of("walls", world.walls, MATERIALS)]
    gloss = draws("gloss", (0.0, 0.5), shape)
    gloss[:, slots:] *= 0.1
    phase = draws("phase", (0.1, 0.9), (slots + 3, 3))
    colours = np.stack([np.where(swap, dark, bright), np.where(swap, bright, dark)], 2)
    hills = slice(world.objects[1], world.objects[1] + world.hills[1])  # of the ground's stuff, a little apart
    shift = draws("hill colour", (0.75, 1.2), (world.hills[1], 1, 3))
    colours[:, hills] = np.minimum(colours[:, None, slots] * shift, 1.0)
    metres[:, hills] = metres[:, None, slots] * 1.3
    gloss[:, hills] = 0.0
    return {
        "colours": colours,
        "frequency": 1 / metres,
        "phase": phase,
        "gloss": gloss,
        "stuff": np.stack([*stuff, np.full(len(draws), MATERIALS.index("plain"))], 1),
    }


def _light(world: World, draws: Draws, low: Floats, high: Floats) -> dict[str, NDArray]:
    """Light, air and sensor."""
    count = len(draws)
    azimuth, elevation = draws("azimuth", (-2.4, 2.4)), np.radians(draws("elevation", world.elevation))
    # towards the light; azimuth 0 is behind the camera
    sun = [np.sin(azimuth) * np.cos(elevation), -np.sin(elevation), -np.cos(azimuth) * np.cos(elevation)]
    lamp = np.stack([*sun, np.zeros(count)], 1)
    if world.lamp:
        x, z = draws("lamp x", (-1.8, 1.8)), draws("lamp z", (-0.5, 3.0))
        lamp = np.stack([x, np.maximum(low[:, 1] + 0.25, -2.5), z, np.ones(count)], 1)
    warm = draws("warm", (0.0, 1.0))
    tint = np.array(world.tint) ** 2
    strength = draws("sun", (0.85, 1.25))[:, None]
    sky_hue = draws("sky hue", (0.54, 0.63))
    zenith = _rgb(sky_hue, draws("sky saturation", (0.35, 0.75)), draws("sky brightness", (0.6, 0.95)))
    horizon = _rgb(sky_hue + draws("horizon hue", (-0.5, 0.02)) * (warm > 0.6), 0.12 + 0 * warm, 0.88 + 0.1 * warm)
    ambient = draws("ambient", world.ambient)[:, None] * (0.6 + 0.4 * zenith / zenith.max(1, keepdims=True))
    return {
        "lamp": lamp,
        "sun": strength * np.stack([np.ones(count), 1 - 0.12 * warm, 1 - 0.3 * warm], 1) * tint,
        "ambient": ambient * tint,
        "zenith": zenith * tint,
        "horizon": horizon * tint,
        "haze": draws("haze", world.haze),
        "noise": draws("noise", world.noise),
        "blur": draws("blur", world.blur),
        "soft": draws("soft", world.soft),
    }
