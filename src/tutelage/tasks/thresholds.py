"""The least score that a pseudo label needs: one for all classes, or one a class.

K is the number of classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

from pydantic import Discriminator, Tag
from pydantic import Field as Option

from tutelage.part import nearest

DEFAULT = "default"
"""The key that stands for all classes that a mapping does not name."""

COMMON = 0.5
"""MuST section 3.1; also for the classes that a mapping without `DEFAULT` does not name."""

Share = Annotated[float, Option(ge=0, le=1)]

# The tags only keep messages short: a number is compared with the first form alone, a mapping with the second.
Threshold = Annotated[
    Annotated[Share, Tag("one")] | Annotated[dict[str, Share], Tag("each")],
    Discriminator(lambda value: "each" if isinstance(value, Mapping) else "one"),
]
"""A number from 0 to 1, or such a number by class name, `default` standing for all other classes."""


def check_names(threshold: float | Mapping[str, float], classes: Sequence[str] | None) -> None:
    """That a mapping names only classes that there are. Without classes, which may follow from the data, all is well.

    Raises:
        ValueError: naming the unknown class and the nearest known one.
    """
    if classes is None or not isinstance(threshold, Mapping):
        return
    known = {*classes, DEFAULT}
    for name in threshold:
        if name not in known:
            raise ValueError(f"pseudo_threshold: there is no class '{name}'{nearest(name, known)}{_listed(classes)}")


def each(threshold: Mapping[str, float], classes: Iterable[str]) -> list[float]:
    """The thresholds of K classes in their order."""
    common = threshold.get(DEFAULT, COMMON)
    return [threshold.get(name, common) for name in classes]


def _listed(classes: Sequence[str]) -> str:
    some = ", ".join(classes[:20])
    return f"; known: {some}{', ...' if len(classes) > 20 else ''}, {DEFAULT}"
