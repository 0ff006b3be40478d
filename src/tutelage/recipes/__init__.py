"""The built-in recipes: plain functions that return a `Recipe`. The exact command stands on top of each, or of its
module."""

from collections.abc import Callable

from tutelage.recipe import Recipe
from tutelage.recipes.must_tables import TABLES as MUST_TABLES
from tutelage.recipes.real import real
from tutelage.recipes.scenes import demo, demo_fast, must_scenes
from tutelage.recipes.self_training import self_training
from tutelage.recipes.xlearner_real import xlearner_real
from tutelage.recipes.xlearner_tables import TABLES as XLEARNER_TABLES
from tutelage.recipes.zoph_paper import TABLES as ZOPH_PAPER
from tutelage.recipes.zoph_real import SETS as ZOPH_REAL
from tutelage.recipes.zoph_tables import TABLES as ZOPH_TABLES

RECIPES: dict[str, Callable[[], Recipe]] = {
    "demo": demo,
    "demo-fast": demo_fast,
    "must-scenes": must_scenes,
    "real": real,
    "self-training": self_training,
    **MUST_TABLES,
    **ZOPH_TABLES,
    **ZOPH_PAPER,
    **ZOPH_REAL,
    **XLEARNER_TABLES,
    "xlearner-real": xlearner_real,
}
