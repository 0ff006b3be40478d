"""Backbones as they are named on a command line."""

from __future__ import annotations

import re
from pathlib import Path

from tutelage.errors import UserError
from tutelage.models.backbone import Backbone, Timm, Torchvision, Transformers

FORMS = "timm:NAME, timm:NAME=FILE, torchvision:NAME, torchvision:NAME=FILE, transformers:FOLDER"
"""All that `parse_start` understands, for messages and help."""


def parse_start(text: str) -> Backbone | None:
    """A backbone with its weights, from one of `FORMS`; None where the text has none of these forms.

    Without a file, `timm:` and `torchvision:` mean the library's own weights, which are downloaded when the backbone is
    built, unless they are there already. `transformers:` takes the name of a hub's repository as well. Files and
    folders are looked for from the working directory, and written in full.

    Raises:
        UserError: a form without a name, or with an empty file; a folder that is not there.
    """
    kind, colon, rest = text.partition(":")
    if not colon or kind not in ("timm", "torchvision", "transformers"):
        return None
    name, equals, file = rest.partition("=")
    if kind == "transformers":
        return _transformers(rest)
    if not name or (equals and not file):
        raise UserError("a network is named in one of these forms", value=text, fix=FORMS)
    weights = _full(file) if file else kind
    return Timm(name=name, weights=weights) if kind == "timm" else Torchvision(name=name, weights=weights)


def _transformers(name: str) -> Transformers:
    if name and Path(name).expanduser().is_dir():
        return Transformers(name=_full(name), weights="transformers")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name, re.ASCII):
        raise UserError(
            "there is no such folder, and no repository of a hub has such a name",
            value=f"transformers:{name}",
            fix="give the folder that `save_pretrained` wrote",
        )
    return Transformers(name=name, weights="transformers", download=True)


def _full(path: str) -> str:
    """A path from the root of the disk; files inside Python packages stay as they are."""
    return path if path.startswith("package:") else str(Path(path).expanduser().absolute())
