"""A comparison of networks that are there already, as a recipe: what `tutelage transfer` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage.downstream import Start
from tutelage.errors import UserError
from tutelage.methods.workshop import kinds_of
from tutelage.models.backbone import Backbone, Timm
from tutelage.models.expanded import Expanded
from tutelage.models.named import FORMS, parse_start
from tutelage.models.student import Model
from tutelage.part import parse
from tutelage.recipe import Recipe
from tutelage.training.checkpoint import find_model, read_architecture
from tutelage.transfer.rows import INITIAL, RANDOM

_BLANK = "random"
"""What stands for random weights among the networks to compare."""
IMAGENET = "ImageNet weights"
"""What the row is called before the tag of its weights, as in "ImageNet weights (a1_in1k)"."""

_NOT_PLAIN = {"ft", "jft", "ns", "ssld", "swag", "in12k", "in21k", "in22k", "dist", "distilled", "adv", "ap", "ijepa"}
"""Parts of timm's tags that tell of more than labels of ImageNet-1k: other images before them, a teacher, a pretext."""

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


def comparison(starts: Sequence[str], suite: Mapping[str, Any], file: str | Path) -> Recipe:
    """The recipe that compares networks on the downstream sets of a suite.

    Args:
        starts: what is compared, each a row: the folder of a model or of a run, `random`, `timm:NAME`,
            `timm:NAME=FILE`, `torchvision:NAME`, `transformers:FOLDER`. Paths are relative to where the program is
            started. Random weights are always a row.
        suite: a recipe's plain values; of these `transfer`, `finetuning`, `probe`, `seeds`, `data`, `model` and
            `initialisations` count, and `first_row` where the comparison has it: that of a recipe that learns may name
            what is learned there.
        file: where the suite stands, for messages.

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
    own = plain.get("initialisations") or {}
    if not isinstance(own, Mapping):
        raise UserError(
            "the suite's networks need names",
            file=file,
            field="initialisations",
            value=own,
            fix="a mapping such as `timm: {backbone: {kind: timm, name: resnet50, weights: timm}}`",
        )
    model = None if "model" in plain else _model_of(given)
    initialisations = {name: start.plain() for name, start in given.items()}
    plain |= {"method": "transfer", "name": plain.get("name") or Path(file).stem}
    plain["initialisations"] = {**own, **initialisations}
    here, first = (RANDOM, INITIAL, *plain["initialisations"]), str(plain.get("first_row"))
    if suite.get("sources") and first not in here and not first.startswith(IMAGENET):
        plain["first_row"] = None
    if model is not None:
        plain["model"] = model.plain()
    recipe = parse(Recipe, plain, file)
    if not recipe.initialisations:
        raise UserError("there is nothing to compare", field="CHECKPOINT", fix="name at least one network")
    return recipe


def controlled(recipe: Recipe, say: Callable[[str], None]) -> Recipe:
    """A comparison with a row of pre-trained weights, where there are any and they can be had: those that the first
    checkpoint began with ("initial weights"), or else plain ImageNet weights.

    Args:
        recipe: of `comparison`.
        say: called with a note where they cannot be had: nobody asked for this row, so it stops nothing.
    """
    if recipe.model.backbone.pretrained:
        return recipe  # which is a row then
    own, plain = _began_with(recipe), imagenet(recipe)
    if own is not None:
        name, weights = INITIAL, own.backbone
    elif plain is not None:
        name, weights = f"{IMAGENET} ({plain.name.partition('.')[2]})", plain
    else:
        return recipe
    rows = [start.backbone for start in recipe.initialisations.values() if start.backbone is not None]
    if name in recipe.initialisations or _exact(weights) in map(_exact, rows):
        return recipe
    try:
        weights.build(Path(recipe.data))
    except UserError as error:
        say(f"note: the row of {name} is left out (`--no-controls` asks for none): {error.problem}")
        return recipe
    if own is not None and weights.blank() == recipe.model.backbone:  # which makes it a row, normalised as it was
        return recipe.but(model=recipe.model.but(backbone=weights, mean=own.mean, std=own.std))
    return recipe.but(initialisations={name: Start(backbone=weights, control=True), **recipe.initialisations})


def _began_with(recipe: Recipe) -> Model | None:
    """The form of the first checkpoint of a comparison, where it names the weights that its training began with."""
    for start in recipe.initialisations.values():
        if start.checkpoint is not None:
            model = read_architecture(find_model(Path(recipe.data) / start.checkpoint), *kinds_of(recipe))[0]
            return model if model.backbone.pretrained and not isinstance(model.backbone, Expanded) else None
    return None


def _exact(backbone: Backbone) -> Backbone:
    """A backbone whose weights are named with their tag, where they have one."""
    return backbone.tagged() if isinstance(backbone, Timm) else backbone


def imagenet(recipe: Recipe) -> Timm | None:
    """The recipe's backbone with weights that timm learned from the labels of ImageNet-1k alone, named with their tag.

    The name's own tag is taken where it is such a one, or else the first that timm lists. None where timm has none for
    this form, or the network is a row already.
    """
    backbone = recipe.model.backbone
    if not isinstance(backbone, Timm) or backbone.pretrained:
        return None
    from timm.models import get_arch_pretrained_cfgs

    if {key for key in backbone.options if key not in ("dynamic_img_size", "output_stride")}:
        return None
    known = get_arch_pretrained_cfgs(backbone.name.partition(".")[0])
    plain = [name for name, about in known.items() if about.has_weights and _is_plain(name.partition(".")[2])]
    if not plain:
        return None
    weights = backbone.but(name=backbone.name if backbone.name in plain else plain[0], weights="timm")
    rows = [start.backbone for start in recipe.initialisations.values()]
    return None if weights in [row.tagged() for row in rows if isinstance(row, Timm)] else weights


def _is_plain(tag: str) -> bool:
    """Whether weights of this tag were learned from the labels of ImageNet-1k, and from nothing else."""
    return tag.split("_")[-1] == "in1k" and not _NOT_PLAIN & set(tag.split("_"))


def _names(starts: Sequence[str]) -> dict[str, str]:
    """A row's name for each: the shortest end of its path that tells it from the others."""
    texts = [text for text in dict.fromkeys(starts) if text != _BLANK]
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
    """The form of the first checkpoint that is compared, or else of the first backbone; pyramid and size of rows that
    have none follow it."""
    for start in given.values():
        if start.checkpoint is not None:
            model = read_architecture(Path(start.checkpoint))[0]
            return model.but(backbone=model.backbone.blank())
    for start in given.values():
        if start.backbone is not None:
            mean, std = start.backbone.normalisation()
            return Model(backbone=start.backbone.blank(), mean=mean, std=std, size=224)
    return Model()
