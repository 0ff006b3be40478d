"""tutelage: many single-task datasets, specialist models and unlabelled images in; one general vision model out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tutelage.errors import UserError

if TYPE_CHECKING:
    from tutelage.api import Loaded, label, load, run
    from tutelage.recipe import Recipe, read_recipe

__all__ = ["Loaded", "Recipe", "UserError", "label", "load", "read_recipe", "run"]


def __getattr__(name: str) -> Any:
    """The public names, imported when first used: torch takes seconds, `tutelage --help` must not."""
    if name in ("Loaded", "label", "load", "run"):
        from tutelage import api

        return getattr(api, name)
    if name in ("Recipe", "read_recipe"):
        from tutelage import recipe

        return getattr(recipe, name)
    raise AttributeError(f"module 'tutelage' has no attribute {name!r}")
