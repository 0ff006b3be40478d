"""What the adapters of foreign models share: label spaces, boxes, batches of equal inputs, refusals.

Letters in shapes: N boxes, h and w pixels of an original image.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import urlparse

import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from tutelage.data.source import UInt8
from tutelage.errors import UserError
from tutelage.tasks.segmentation import Look, averaged_mask
from tutelage.teachers.inputs import Input
from tutelage.teachers.teacher import TeacherPart
from tutelage.types import Boxes, Target

SCORE_FLOOR = 0.05
"""Detections below are not asked for: the labels store does not keep them either."""

NO_CLASS = frozenset({"__background__", "background", "no person", "N/A"})
"""Names that detectors give to ids which stand for no class of objects."""

R = TypeVar("R")


def refuse_averaging(part: TeacherPart) -> None:
    """That `scales` and `flip` are left as they are, where there is no mask to average.

    Raises:
        UserError: one of them is set.
    """
    if part.scales != (1.0,) or part.flip:
        raise UserError(
            "only masks are averaged over scales and flips, and this teacher gives none",
            field="flip" if part.flip else "scales",
            value=part.flip or list(part.scales),
            fix="leave out `scales` and `flip`",
        )


def distinct(names: Sequence[str], marks: Sequence[object]) -> tuple[str, ...]:
    """Names, those that several classes share with the class's own mark in brackets: "crane (134)"."""
    often = Counter(names)
    return tuple(f"{n} ({m})" if often[n] > 1 else n for n, m in zip(names, marks, strict=True))


def check_names(names: Sequence[str]) -> None:
    """That class names are there, and differ.

    Raises:
        UserError: no name at all, or one that is given twice.
    """
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice or not names:
        raise UserError(
            "two classes have one name" if twice else "the teacher has no classes",
            field="classes",
            value=twice[:8],
            fix="name every class of the model, in the order of its ids, each differently",
        )


def check_whole(input: Input | None) -> None:
    """That an input shows all of the image; raises UserError otherwise."""
    if input is not None and input.fit == "crop":
        raise UserError(
            "a crop would leave the border of the image without a label",
            field="input.fit",
            value="crop",
            fix="squash or letterbox",
        )


def check_outputs(what: str, said: int, wanted: int) -> None:
    """That a network says as many classes as the label space has.

    Raises:
        UserError: another number.
    """
    if said != wanted:
        raise UserError(
            f"{what} gives {said} classes an image, its label space has {wanted}",
            field="classes",
            value=said,
            fix="name exactly the classes of the weights, in the order of their ids",
        )


def check_weights(net: nn.Module, what: object) -> None:
    """That all weights are numbers.

    Args:
        net: the loaded network.
        what: file, folder or name of the weights, for the message.

    Raises:
        UserError: a weight is infinite or NaN: every prediction would be worthless.
    """
    for name, weight in net.named_parameters():
        if not bool(weight.isfinite().all()):
            raise UserError(
                "the weights hold values that are no numbers", file=str(what), record=name, fix="get the file again"
            )


class DetectedClasses(NamedTuple):
    """The label space of a detector without the ids that stand for no class.

    Attributes:
        names: of the classes that stay.
        ids: the model's own id of each.
        places: int64 [ids of the model], the class of each id, -1 for none.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    places: Tensor

    @classmethod
    def make(cls, names: Sequence[str]) -> DetectedClasses:
        """From the names of all ids of the model, in their order.

        Raises:
            UserError: no class is left, or two have one name.
        """
        ids = tuple(i for i, name in enumerate(names) if name not in NO_CLASS)
        kept = tuple(names[i] for i in ids)
        check_names(kept)
        places = torch.full((len(names),), -1)
        places[list(ids)] = torch.arange(len(ids))
        return cls(kept, ids, places)

    def boxes(self, xyxy: Tensor, ids: Tensor, scores: Tensor, size: tuple[int, int]) -> Boxes:
        """A model's detections as boxes: best first, cut at the image's edge, those without area left out.

        Args:
            xyxy: float [N,4], pixels of the image.
            ids: int64 [N], the model's.
            scores: float [N].
            size: (h, w) of the image.

        Raises:
            UserError: an id that stands for no class.
        """
        xyxy, ids, scores = xyxy.float().cpu(), ids.cpu(), scores.float().cpu()
        known = (ids >= 0) & (ids < len(self.places))
        classes = torch.where(known, self.places[ids.clamp(0, len(self.places) - 1)], -1)
        if bool((classes < 0).any()):
            raise UserError(
                "the teacher finds objects of an id that names no class",
                field="classes",
                value=ids[classes < 0].unique().tolist(),
                fix="name the class of this id",
            )
        found = Boxes.make(clip_boxes_to_image(xyxy, size), classes, scores)
        area = (found.boxes[:, :2] < found.boxes[:, 2:]).all(1)
        order = found.scores.argsort(descending=True, stable=True)
        return found.pick(order[area[order]])


def no_number() -> Boxes:
    """The boxes of an image on which a detector failed: one that is no number, so that the pass sets the image aside
    and does not take it for an image without objects."""
    return Boxes.make([[math.nan] * 4], [0], [math.nan])


def in_groups(keys: Sequence[Hashable], look: Callable[[list[int]], Sequence[R]]) -> list[R]:
    """Results in order, made group by group of equal keys.

    Images whose inputs differ in size are not padded to one another: what a model says of an image must not hang on
    its neighbours.

    Args:
        keys: one an image.
        look: gives one result an image of a group, of which it is told the positions.
    """
    groups: dict[Hashable, list[int]] = {}
    for position, key in enumerate(keys):
        groups.setdefault(key, []).append(position)
    found = {p: r for group in groups.values() for p, r in zip(group, look(group), strict=True)}
    return [found[position] for position in range(len(keys))]


def averaged(
    images: Sequence[UInt8],
    scales: Sequence[float],
    flip: bool,
    look: Callable[[Sequence[UInt8], float, bool], Sequence[Look]],
) -> list[Target]:
    """Masks averaged over looks, in parts so small that all looks at one take about the memory of one at the batch.

    Args:
        images: the batch.
        scales, flip: at which sizes, and whether mirrored as well.
        look: one look at some of them, at a size, mirrored or not.
    """
    views = [(scale, mirrored) for scale in scales for mirrored in ((False, True) if flip else (False,))]
    step, masks = max(1, len(images) // len(views)), list[Target]()
    for start in range(0, len(images), step):
        looks = [look(images[start : start + step], *view) for view in views]
        masks += [averaged_mask(of_one) for of_one in zip(*looks, strict=True)]
    return masks


def downloaded(url: str) -> Path:
    """A weight file of a public address, in torch's own folder for such files, where it stays.

    Args:
        url: where the file's name ends with the beginning of its SHA-256, as torchvision's do, this is checked.

    Raises:
        UserError: no network, or other bytes than promised.
    """
    name = Path(urlparse(url).path).name
    file = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not file.is_file():
        promised = re.search(r"-([0-9a-f]{8,})\.", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(file), promised[1] if promised else None, progress=False)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"the weights cannot be downloaded: {error}",
                file=file,
                value=url,
                fix="check the network, or put the file in this place",
            ) from None
    return file


def shown_path(path: Path | str) -> str:
    """A file or folder as a teacher states it of itself: its name alone, the same on every machine."""
    return Path(path).name
