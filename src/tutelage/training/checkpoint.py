"""Two kinds of files: a finished model (folder: `model.yaml`, `weights.safetensors`) and the state of a training."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import create_model
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from tutelage.data.source import LabelSpace
from tutelage.errors import UserError
from tutelage.files import write_atomically, write_text
from tutelage.models.backbone import BACKBONES, Backbone, Expanded
from tutelage.models.student import Model, Student
from tutelage.part import Part, one_of, parse, read_yaml, to_yaml
from tutelage.tasks import TASKS
from tutelage.tasks.task import Task, Widths

_FORMAT = 1


@dataclass(frozen=True)
class Saved:
    """A model read from its folder.

    Attributes:
        student: in evaluation mode, on the CPU.
        spaces: head name to label space, for the heads that have one.
        hash: hex digest of the architecture and the weights.
        folder: where it was read from.
    """

    student: Student
    spaces: dict[str, LabelSpace]
    hash: str
    folder: Path


def save_model(folder: Path, student: Student, spaces: dict[str, LabelSpace]) -> None:
    """Write a model; the YAML comes last, so that a folder with it is complete."""
    weights = {name: value.detach().cpu().contiguous() for name, value in student.state_dict().items()}
    write_atomically(folder / "weights.safetensors", lambda stream: stream.write(save(weights)))
    about = {
        "format": _FORMAT,
        "model": student.model.plain(),
        "heads": {name: task.plain() for name, task in student.tasks.items()},
        "spaces": {name: {"names": list(s.names), "ids": list(s.ids)} for name, s in spaces.items()},
    }
    write_text(folder / "model.yaml", to_yaml(about))


def load_model(folder: Path, tasks: Sequence[type[Task]] = (), backbones: Sequence[type[Backbone]] = ()) -> Saved:
    """Read a model folder.

    Args:
        folder: holds `model.yaml` and `weights.safetensors`; a stage or run folder that contains one is taken as well.
        tasks, backbones: classes of the user's own that the model uses.

    Raises:
        UserError: no model there, another format version, a task that is not known, weights that do not fit.
    """
    folder = find_model(folder)
    model, heads, spaces = read_architecture(folder, tasks, backbones)
    student = model.build(heads)
    weights_path = folder / "weights.safetensors"
    weights = read_state(weights_path)
    fill(student, weights, weights_path)
    return Saved(student.eval(), spaces, model_hash(folder), folder)


def read_architecture(
    folder: Path, tasks: Sequence[type[Task]] = (), backbones: Sequence[type[Backbone]] = ()
) -> tuple[Model, dict[str, Task], dict[str, LabelSpace]]:
    """A model's form, heads and label spaces; no weights are read. Arguments and errors are those of `load_model`."""
    path = find_model(folder) / "model.yaml"
    about = read_yaml(path)
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise UserError("this model's format is not known", file=path, field="format", fix=f"format {_FORMAT} is read")
    model, heads = _parse_architecture(about, (*TASKS, *tasks), (*BACKBONES, *backbones), path)
    spaces = {name: LabelSpace(tuple(s["names"]), tuple(s["ids"])) for name, s in about["spaces"].items()}
    return model, heads, spaces


def find_model(folder: Path) -> Path:
    """The folder that holds the model: itself, or its `student` stage when it is a run's folder."""
    for candidate in (folder, folder / "student"):
        if (candidate / "model.yaml").is_file():
            return candidate
    raise UserError(
        "there is no model here",
        file=folder,
        fix="give a folder with model.yaml and weights.safetensors, or a finished run",
    )


def model_hash(folder: Path) -> str:
    """Hex digest (16 characters) of a model's two files. Raises UserError when one is missing."""
    weights = folder / "weights.safetensors"
    digest = hashlib.sha256((folder / "model.yaml").read_bytes())
    try:
        with weights.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    except OSError as error:
        raise _unreadable(error, weights) from None
    return digest.hexdigest()[:16]


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; raises UserError when it is missing or damaged."""
    try:
        return load_file(path)
    except Exception as error:
        raise _unreadable(error, path) from None


def _unreadable(error: Exception, path: Path) -> UserError:
    return UserError(f"the weights cannot be read: {error}", file=path, fix="train again or restore the file")


_APART = "put model.yaml and weights.safetensors back as they were saved together, or train again"


def fill(module: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    """Load a complete state dict; raises UserError naming the first layer that is missing, left over or misshapen."""
    own = module.state_dict()
    for name, value in own.items():
        if name not in state or state[name].shape != value.shape:
            found = tuple(state[name].shape) if name in state else "nothing"
            raise UserError(
                "the weights do not fit the network",
                file=file,
                record=name,
                value=f"expected {tuple(value.shape)}, found {found}",
                fix=_APART,
            )
    extra = sorted(set(state) - set(own))
    if extra:
        raise UserError("the file holds weights that the network has not", file=file, record=extra[0], fix=_APART)
    module.load_state_dict(state)


def load_shared(student: Student, weights: Path, pyramid: bool = True) -> None:
    """Fill backbone and pyramid from a model's weights; heads stay fresh.

    A pyramid that the file does not have (a classification teacher has none) stays fresh as well; so does any where
    `pyramid` is false.

    Raises:
        UserError: a tensor that is missing or of another shape.
    """
    own, names = student.state_dict(), check_shared(student, weights, pyramid)
    state = read_state(weights)
    with torch.no_grad():
        for name in names:
            own[name].copy_(state[name])


def check_shared(student: Student, weights: Path, pyramid: bool = True) -> list[str]:
    """The names of the tensors that `load_shared` fills, known from shapes alone; raises as it does."""
    try:
        with safe_open(weights, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise _unreadable(error, weights) from None
    parts = ("backbone.", "pyramid.") if pyramid and any(n.startswith("pyramid.") for n in shapes) else ("backbone.",)
    wanted = {name: tuple(value.shape) for name, value in student.state_dict().items() if name.startswith(parts)}
    for name, shape in wanted.items():
        if shapes.get(name) != shape:
            raise UserError(
                "these weights do not fit the network that starts from them",
                file=weights,
                record=name,
                value=f"expected {shape}, found {shapes.get(name, 'nothing')}",
                fix="start from a model with this recipe's backbone and pyramid",
            )
    return list(wanted)


def load_start(student: Student, folder: Path, needed: str | None = None) -> tuple[list[str], list[str]]:
    """Fill a network from a model that it goes on from: backbone and pyramid, and every head that both have.

    A head is taken where its name, its classes and all its shapes are those of the model; others stay fresh.

    Args:
        student: to be filled.
        folder: of the model.
        needed: a head that has to be taken.

    Returns:
        the heads that were taken, and those that the model has in another form.

    Raises:
        UserError: as `load_shared`, or the needed head cannot be taken.
    """
    weights = find_model(folder) / "weights.safetensors"
    load_shared(student, weights)
    state, about = read_state(weights), read_yaml(weights.with_name("model.yaml"))["heads"]
    taken, other = [], []
    for name, task in student.tasks.items():
        if name not in about:
            continue
        own = student.heads[name].state_dict()
        theirs = {key.removeprefix(f"heads.{name}."): v for key, v in state.items() if key.startswith(f"heads.{name}.")}
        shapes = [{key: value.shape for key, value in part.items()} for part in (own, theirs)]
        if shapes[0] == shapes[1] and about[name].get("classes") == task.plain().get("classes"):
            student.heads[name].load_state_dict(theirs)
            taken.append(name)
        else:
            other.append(name)
    if needed is not None and needed not in taken:
        raise other_head(needed, weights.parent, list(about))
    return taken, other


def same_form(one: Task, other: Task) -> bool:
    """Whether the weights of one head can be those of another: the same classes, names and shapes."""
    forms = [{k: v.shape for k, v in task.head(Widths(64, 64)).state_dict().items()} for task in (one, other)]
    return one.classes == other.classes and forms[0] == forms[1]


def other_head(head: str, model: Path | None, heads: Sequence[str]) -> UserError:
    """What is wrong when a student that trains itself on a head cannot take it from its start.

    Args:
        head: its name.
        model: the folder where it starts; None: a model that is not made yet.
        heads: of that model.
    """
    has = "in another form or with other classes" if head in heads else "under another name, or not at all"
    return UserError(
        f"a student that trains itself goes on from its teacher as a whole, but this one has the head '{head}' {has}",
        file=model,
        field="start",
        value=", ".join(heads),
        fix=f"give both the same head (leave `teachers.{head}.head` out), or let the student start elsewhere",
    )


def _parse_architecture(
    about: dict[str, Any], tasks: Sequence[type[Task]], backbones: Sequence[type[Backbone]], path: Path
) -> tuple[Model, dict[str, Task]]:
    """The network's form and its heads, of the built-in and the given kinds."""
    any_backbone: Any = one_of(Backbone, "kind", backbones)
    any_branch: Any = one_of(Backbone, "kind", [kind for kind in backbones if kind is not Expanded])
    any_head: Any = one_of(Task, "task", tasks)
    model = dict(about["model"])
    backbone = model.pop("backbone")
    if backbone.get("kind") == "expanded":  # whose own text form knows the built-in kinds alone
        several: Any = create_model("Branches", __base__=Part, branches=(dict[str, any_branch], ...))
        read: Any = parse(several, {"branches": backbone["branches"]}, path)
        backbone = backbone | {"branches": read.branches}
    fields: dict[str, Any] = {"backbone": (any_backbone, ...), "heads": (dict[str, any_head], ...)}
    kinds: Any = create_model("Architecture", __base__=Part, **fields)
    found: Any = parse(kinds, {"backbone": backbone, "heads": about["heads"]}, path)
    return parse(Model, {**model, "backbone": found.backbone}, path), dict(found.heads)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training's state (tensors and plain values only) atomically."""
    write_atomically(path, lambda stream: torch.save(state, stream))


def load_state(path: Path) -> dict[str, Any] | None:
    """A training's state, or None when there is none. No code is run in reading it."""
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"the checkpoint cannot be read: {error}",
            file=path,
            fix="delete it; the stage then starts from its beginning",
        ) from None
    return state
