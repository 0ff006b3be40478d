"""A comparison of networks that are there already, as a recipe: what `tutelage transfer` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage.downstream import Start
from tutelage.errors import UserError
from tutelage.models.backbone import Timm
from tutelage.models.named import FORMS, parse_start
from tutelage.models.student import Model
from tutelage.part import parse
from tutelage.recipe import Recipe
from tutelage.training.checkpoint import find_model, read_architecture

RANDOM = "random"
IMAGENET = "ImageNet weights"

_OF_SUITE = (
    "name",
    "data",
    "model",
    "transfer",
    "finetuning",
    "probe",
    "seeds",
    "initialisations",
    "first_row",
    "decoded_gigabytes",
    "quarantine_limit",
)
"""What a suite says; all else of a recipe is about learning, which a comparison does not do."""


def comparison(starts: Sequence[str], suite: Mapping[str, Any], file: str | Path, controls: bool = True) -> Recipe:
    """The recipe that compares networks on the downstream sets of a suite.

    Args:
        starts: what is compared, each a row: the folder of a model or of a run, `random`, `timm:NAME`,
            `timm:NAME=FILE`, `torchvision:NAME`, `transformers:FOLDER`. Paths are relative to where the program is
            started.
        suite: a recipe's plain values; of these `transfer`, `finetuning`, `probe`, `seeds`, `data`, `model` and
            `initialisations` count.
        file: where the suite stands, for messages.
        controls: whether a row of plain ImageNet weights of the first network's architecture is added, where there are
            any. Random weights are always a row.

    Raises:
        UserError: nothing to compare, no downstream set, a path without a model, a name that no library knows.
    """
    given = {name: _start(text) for name, text in _names(starts).items()}
    plain = {key: suite[key] for key in _OF_SUITE if key in suite}
    if not plain.get("transfer"):
        raise UserError(
            "a suite names downstream sets",
            file=file,
            field="transfer",
            value=sorted(suite),
            fix="give at least one set with head, train, validation and test",
        )
    model = None if "model" in plain else _model_of(given)
    initialisations = {name: start.plain() for name, start in given.items()}
    plain |= {"method": "transfer", "name": plain.get("name") or Path(file).stem}
    plain["initialisations"] = {**(plain.get("initialisations") or {}), **initialisations}
    if model is not None:
        plain["model"] = model.plain()
    recipe = parse(Recipe, plain, file)
    if not recipe.initialisations:
        raise UserError("there is nothing to compare", field="CHECKPOINT", fix="name at least one network")
    weights = imagenet(recipe) if controls else None
    if weights is not None:
        rows = {IMAGENET: Start(backbone=weights, control=True), **recipe.initialisations}
        recipe = recipe.but(initialisations=rows)
    return recipe


def imagenet(recipe: Recipe) -> Timm | None:
    """The recipe's backbone with timm's own weights; None where timm has none for this form, or it is a row already."""
    backbone = recipe.model.backbone
    if not isinstance(backbone, Timm) or backbone.pretrained:
        return None
    import timm

    changed = {key for key in backbone.options if key not in ("dynamic_img_size", "output_stride")}
    if changed or not timm.is_model_pretrained(backbone.name):
        return None
    return backbone.but(weights="timm")


def _names(starts: Sequence[str]) -> dict[str, str]:
    """A row's name for each: the shortest end of its path that tells it from the others."""
    texts = [text for text in dict.fromkeys(starts) if text != RANDOM]
    for length in range(1, 20):
        found = {_short(text, length): text for text in texts}
        if len(found) == len(texts):
            return found
    raise UserError("two networks to compare cannot be told apart", value=texts, fix="name each once")


def _short(text: str, length: int) -> str:
    if ":" in text:
        return text.replace("/", " ")
    parts = [part for part in Path(text).resolve().parts if part != "/"]
    if parts[-1] == "student":
        length += 1
    return " ".join(parts[-length:])


def _start(text: str) -> Start:
    backbone = parse_start(text)
    if backbone is not None:
        return Start(backbone=backbone)
    path = Path(text)
    if not path.exists():
        raise UserError(
            "there is no such model",
            field="CHECKPOINT",
            value=text,
            fix=f"give a model folder, a run, random, {FORMS}",
        )
    return Start(checkpoint=str(find_model(path).resolve()))


def _model_of(given: Mapping[str, Start]) -> Model:
    """The form of the first of the networks that is compared; pyramid and size of rows without their own follow it."""
    for start in given.values():
        if start.checkpoint is not None:
            return read_architecture(Path(start.checkpoint))[0]
    for start in given.values():
        if start.backbone is not None:
            mean, std = start.backbone.normalisation()
            return Model(backbone=start.backbone.blank(), mean=mean, std=std, size=224)
    return Model()
