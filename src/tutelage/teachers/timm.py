"""Classifiers of the timm library as teachers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tutelage.data.source import LabelSpace, UInt8
from tutelage.errors import UserError
from tutelage.models.backbone import find_weights, load_weights
from tutelage.models.timm import pretraining_of
from tutelage.tasks import Classification
from tutelage.tasks.task import Task
from tutelage.teachers.foreign import (
    check_names,
    check_outputs,
    check_weights,
    distinct,
    downloaded,
    refuse_averaging,
    shown_path,
)
from tutelage.teachers.inputs import Input
from tutelage.teachers.teacher import Specialist, Teacher, check_task, digest_of
from tutelage.types import Label, Target


class TimmTeacher(Specialist):
    """A classifier of the timm library."""

    kind: Literal["timm"] = "timm"
    name: str
    """As `timm.list_models()` writes it, with a pre-training's tag where one is meant: `resnet50.a1_in1k`."""
    weights: str = "timm"
    """`timm` for the library's own weights of this name (they are downloaded), a path to a .safetensors or .pth file
    (read without running code), or `package:NAME/FILE` for a file inside an installed Python package."""
    revision: str | None = None
    """With `timm`: the commit of the weights' repository on the Hugging Face hub; left out, the newest. The bytes of
    the file are part of the digest either way."""
    match: Literal["names", "order"] = "names"
    """How a weight file's tensors find their places: by name, or in order (each shape must fit)."""
    options: dict[str, Any] = {}
    """Further arguments of `timm.create_model`."""
    input: Input | None = None
    """Left out, it is what timm states for the pre-trained weights of this name."""
    classes: tuple[str, ...] | None = None
    """In the order of the network's outputs. Left out (with `classes_file`), a network of an ImageNet's size has its
    classes, named by the first WordNet lemma ("tench"); where several share it, with their WordNet id: "crane
    (n02012849)"."""
    classes_file: Path | None = None
    """In place of `classes`: a JSON list of names, a JSON mapping of the numbers 0, 1, ... to names, or one name a
    line."""
    multi_label: bool = False
    """The classes are independent: a sigmoid each, in place of a softmax over all."""

    def does(self, root: Path, fills: str | None = None) -> Classification:
        """As `Specialist.does`."""
        refuse_averaging(self)
        return Classification(classes=self._classes(root), multi_label=self.multi_label)

    def digest(self, root: Path) -> str:
        """As `Specialist.digest`; the library's own weights are downloaded if they are not there yet."""
        settings = {
            "make": "timm",
            "name": self.name,
            "options": self.options,
            "match": self.match,
            "input": self._input().plain(),
            "multi_label": self.multi_label,
        }
        return digest_of(settings, [self._file(root)])

    def open(self, head: str, task: Task, root: Path, device: torch.device) -> Teacher:
        said = self.does(root)
        check_task(head, task, said)
        file = self._file(root)
        net = self._load(file, len(said.names))
        check_weights(net, file)
        return _TimmTeacher(self, head, task, said.names, net, file, self.digest(root), device)

    def _load(self, file: Path, classes: int) -> nn.Module:
        import timm

        options = {"num_classes": classes, **self.options}
        try:
            if self.weights == "timm":  # the library reads the file: it knows which old names to translate
                overlay = {"file": str(file), "source": None}
                return timm.create_model(self.name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
            net = timm.create_model(self.name, pretrained=False, **options)
        except TypeError as error:
            raise UserError(str(error), field="options", value=self.options, fix="correct the options") from None
        except RuntimeError as error:
            raise UserError(f"the weights do not fit: {error}", file=file, fix="check name and options") from None
        load_weights(net, file, self.match)
        return net

    def _pretraining(self) -> dict[str, Any]:
        """What timm knows of the weights of this name; nothing for a network without any."""
        known = pretraining_of(self.name)
        return {} if known is None else known.to_dict()

    def _input(self) -> Input:
        if self.input is not None:
            return self.input
        from timm.data import resolve_data_config

        known, size = self._pretraining(), self.options.get("img_size")
        found = resolve_data_config({"img_size": size} if isinstance(size, int) else {}, known) if known else {}
        mode, crop, filter = (found.get(field) for field in ("crop_mode", "crop_pct", "interpolation"))
        if filter not in ("bilinear", "bicubic") or not (mode == "center" or (mode == "squash" and crop == 1)):
            raise UserError(
                "how this network wants its images does not follow from timm",
                field="input",
                value={"crop_mode": mode, "crop_pct": crop, "interpolation": filter},
                fix="state `input`: size, fit, crop, interpolation, mean and std",
            )
        return Input(
            size=found["input_size"][1:],
            fit="crop" if mode == "center" else "squash",
            crop=crop,
            interpolation=filter,
            mean=found["mean"],
            std=found["std"],
        )

    def _classes(self, root: Path) -> tuple[str, ...]:
        count = self._pretraining().get("num_classes")
        if "num_classes" in self.options:
            raise UserError(
                "the number of classes follows from their names",
                field="options",
                value={"num_classes": self.options["num_classes"]},
                fix="leave it out, and state `classes`",
            )
        if self.classes is not None and self.classes_file is not None:
            raise UserError("the classes are given twice", field="classes_file", fix="leave out one of the two")
        if self.classes_file is not None:
            names: tuple[str, ...] | None = read_classes(root / self.classes_file)
        else:
            names = self.classes or imagenet_classes(count)
        if names is None:
            raise UserError(
                "the classes of this network do not follow from timm",
                field="classes",
                value=count,
                fix="state `classes` or `classes_file`: one name an output, in order",
            )
        check_names(names)
        if self.weights == "timm" and count:  # else timm would put a random layer in place of the trained one
            check_outputs(f"timm's {self.name}", count, len(names))
        return names

    def _file(self, root: Path) -> Path:
        """The weights on this disk."""
        if self.weights != "timm":
            return find_weights(self.weights, root)
        known = self._pretraining()
        if known.get("custom_load") or not (known.get("hf_hub_id") or known.get("url")):
            raise UserError(
                "timm has no weights of this name that we can read",
                field="weights",
                value=self.name,
                fix="give a .safetensors file",
            )
        if not known.get("hf_hub_id"):
            return downloaded(known["url"])
        from huggingface_hub import hf_hub_download

        try:
            inside = known.get("hf_hub_filename") or "model.safetensors"
            return Path(hf_hub_download(known["hf_hub_id"], inside, revision=self.revision))
        except Exception as error:  # the hub's client, and the network below it, have errors of many kinds
            raise UserError(
                f"timm's weights cannot be downloaded: {error}",
                field="weights",
                value=self.name,
                fix="check network and name, or give a .safetensors file",
            ) from None


class _TimmTeacher(Teacher):
    """The loaded classifier."""

    def __init__(
        self,
        part: TimmTeacher,
        head: str,
        task: Task,
        names: tuple[str, ...],
        net: nn.Module,
        file: Path,
        hash: str,
        device: torch.device,
    ) -> None:
        import timm

        self.head, self.task, self.space, self.hash = head, task, LabelSpace(names), hash
        self._input, self._multi_label, self._device = part._input(), part.multi_label, device
        # channels last: twice as fast for depthwise convolutions on a CPU, and no slower elsewhere
        self._net = net.float().eval().to(device).to(memory_format=torch.channels_last)
        self.about = {
            "make": "timm",
            "name": part.name,
            "input": list(self._input.size),
            "fit": self._input.fit,
            "mean": list(self._input.mean),
            "std": list(self._input.std),
            "weights": shown_path(file),
            "revision": file.parent.name if file.parent.parent.name == "snapshots" else None,  # the hub's own folders
            "library": f"timm {timm.__version__}",
        }
        with torch.inference_mode():
            said = self._probe()
        check_outputs(f"timm's {part.name}", said, len(names))

    def _probe(self) -> int:
        """Classes that the network says of a blank image of its input size."""
        blank = torch.zeros(1, 3, *self._input.size, device=self._device)
        try:
            said = self._net(blank)
        except (RuntimeError, AssertionError) as error:
            raise UserError(
                f"the network cannot work on its input: {error}",
                field="input",
                value=list(self._input.size),
                fix="state `input` with the size that the network was built for",
            ) from None
        if not isinstance(said, Tensor) or said.ndim != 2:
            raise UserError("the network is no classifier", field="name", value=self.about["name"], fix="give one")
        return said.shape[1]

    @torch.inference_mode()
    def predict(self, images: Sequence[UInt8]) -> list[Target]:
        """As `Teacher.predict`: the whole distribution, float32 [K]."""
        if not images:
            return []
        batch = self._input.batch(images)[0].to(self._device, memory_format=torch.channels_last)
        logits = self._net(batch).float()
        probs = logits.sigmoid() if self._multi_label else logits.softmax(1)
        return [Label(row) for row in probs.cpu()]


def imagenet_classes(count: int | None) -> tuple[str, ...] | None:
    """The names of an ImageNet of this many classes, in the usual order; None where there is none of that size."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": count})
    if subset is None:
        return None
    ids, lemmas = ImageNetInfo(subset).label_names(), ImageNetInfo(subset).label_descriptions()
    return distinct([text.split(",")[0].strip() for text in lemmas], ids)


def read_classes(file: Path) -> tuple[str, ...]:
    """Class names from a JSON list, a JSON mapping of the numbers 0, 1, ... to names, or a text with one a line.

    Raises:
        UserError: the file is missing or something else.
    """
    try:
        text = file.read_text(encoding="utf-8")
        plain = json.loads(text) if file.suffix == ".json" else [line.strip() for line in text.strip().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(
            f"the classes cannot be read: {error}", file=file, field="classes_file", fix="correct the path, or the JSON"
        ) from None
    if isinstance(plain, dict):
        try:
            plain = [plain[str(i)] for i in range(len(plain))]
        except KeyError as error:
            raise UserError(
                "the classes are not numbered 0, 1, 2, ...",
                file=file,
                field=str(error.args[0]),
                fix="give a list of names",
            ) from None
    if not isinstance(plain, list) or not all(isinstance(name, str) and name for name in plain):
        raise UserError(
            "these are no class names", file=file, fix='a JSON list ["cat", "dog"], or a text with one name a line'
        )
    return tuple(plain)
