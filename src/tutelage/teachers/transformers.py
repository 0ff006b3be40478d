"""Models of Hugging Face transformers as teachers: classes, boxes, masks, depth; from a folder or a pinned commit.

No code of a repository is run, and no pickle is read: safetensors only.

Letters in shapes: K classes, H and W pixels of the input, h and w pixels of an original image.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import model_validator
from torch import nn

from tutelage.errors import UserError, first_line
from tutelage.models.transformers import SAFE, in_folder, loading, quiet
from tutelage.tasks import Classification, Depth, Detection, Segmentation
from tutelage.tasks.segmentation import check_maskable
from tutelage.tasks.task import Task
from tutelage.teachers.foreign import (
    NO_CLASS,
    DetectedClasses,
    check_names,
    check_outputs,
    check_weights,
    check_whole,
    distinct,
    refuse_averaging,
    shown_path,
)
from tutelage.teachers.inputs import Input
from tutelage.teachers.teacher import Specialist, Teacher, check_task, digest_of
from tutelage.teachers.transformers_models import OPENED, Model

Kind = Literal["classification", "detection", "segmentation", "depth"]
Measure = Literal["metric", "relative"]

_ENDINGS: dict[str, Kind] = {
    "ForImageClassification": "classification",
    "ForImageClassificationWithTeacher": "classification",
    "ForObjectDetection": "detection",
    "ForSemanticSegmentation": "segmentation",
    "ForUniversalSegmentation": "segmentation",
    "ForInstanceSegmentation": "segmentation",
    "ForDepthEstimation": "depth",
}
"""How the names of architectures end."""
_UNIVERSAL = ("mask2former", "maskformer")
"""Models whose masks are made of queries, each with a class of its own."""
_METRIC = ("glpn", "zoedepth", "depth_pro", "tipsv2_dpt")
"""Families that say metres."""
_FIX = "a folder or commit with config.json and .safetensors of a model that the library itself knows"
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


class TransformersTeacher(Specialist):
    """Any model of transformers that an auto class loads for one of four tasks: image classification, object detection,
    semantic segmentation (Mask2Former and MaskFormer among them), depth estimation."""

    kind: Literal["transformers"] = "transformers"
    folder: Path | None = None
    """What `save_pretrained` wrote: `config.json`, `*.safetensors` and, best, `preprocessor_config.json`."""
    name: str | None = None
    """In place of `folder`: a repository of the Hugging Face hub; it is downloaded."""
    revision: str | None = None
    """With `name`: the full hash of the commit that is meant (40 hex digits). Branches move, commits do not."""
    task: Kind | None = None
    """Left out, it follows from the model's architecture."""
    depth: Measure | None = None
    """What a depth model says: metres, or inverse depth up to a scale and a shift. Left out, the model's configuration
    or its family decides."""
    input: Input | None = None
    """In place of the model's own preprocessing, and needed where it has none. Not for detection."""
    classes: tuple[str, ...] | None = None
    """In place of the configuration's names of all ids, in their order. For a detector, `N/A` and `__background__`
    stand for no class."""

    @model_validator(mode="after")
    def _check_origin(self) -> TransformersTeacher:
        if (self.folder is None) == (self.name is None):
            raise ValueError("give `folder`, or `name` with `revision`")
        if self.name is not None and not re.fullmatch("[0-9a-f]{40}", self.revision or ""):
            raise ValueError("revision: with `name`, give the full hash of a commit (40 hex digits), as a branch moves")
        if self.folder is not None and self.revision is not None:
            raise ValueError("revision: a folder has none; leave it out")
        return self

    def does(self, root: Path, fills: str | None = None) -> Task:
        """As `Specialist.does`."""
        config = self._config(root)
        kind = self._kind(config)
        if kind != "segmentation":
            refuse_averaging(self)
        if kind == "depth":
            metric = self._measure(config) == "metric"
            return Depth() if metric else Depth(mode="relative", target="inverse")
        names = self._names(config, kind)
        if kind == "detection":
            return Detection(classes=DetectedClasses.make(names).names)
        check_names(names)
        if kind == "segmentation":
            check_maskable(names)
            return Segmentation(classes=names)
        return Classification(classes=names, multi_label=config.problem_type == "multi_label_classification")

    def digest(self, root: Path) -> str:
        """As `Specialist.digest`. A commit's hash stands for its files."""
        settings = {
            "make": "transformers",
            "name": self.name,
            "revision": self.revision,
            "task": self.task,
            "depth": self.depth,
            "input": None if self.input is None else self.input.plain(),
            "classes": self.classes,
            "scales": self.scales,
            "flip": self.flip,
        }
        return digest_of(settings, self._files(root))

    def open(self, head: str, task: Task, root: Path, device: torch.device) -> Teacher:
        said, config = self.does(root), self._config(root)
        kind = self._kind(config)
        check_task(head, task, said)
        processor = None if self.input is not None else self._processor(root)
        if kind == "detection" and processor is None:
            raise UserError(
                "boxes need the model's own preprocessing",
                file=self.folder,
                field="input",
                fix="leave out `input`, and put the model's preprocessor_config.json beside its weights",
            )
        if kind != "classification":
            check_whole(self.input)
        model = Model(
            net=self._load(config, kind, root).to(device),
            config=config,
            names=() if kind == "depth" else self._names(config, kind),
            processor=processor,
            input=self.input,
            scales=self.scales,
            flip=self.flip,
            metric=isinstance(said, Depth) and said.mode == "metric",
            multi_label=isinstance(said, Classification) and said.multi_label,
            device=device,
            hash=self.digest(root),
            about=self._about(config),
        )
        return OPENED[kind](model, head, task)

    def _about(self, config: Any) -> dict[str, Any]:
        import transformers

        return {
            "make": "transformers",
            "name": self.name or shown_path(str(self.folder)),
            "architecture": config.model_type,
            "weights": "safetensors",
            "revision": self.revision,
            "library": f"transformers {transformers.__version__}",
        }

    def _where(self, root: Path) -> tuple[str, dict[str, Any]]:
        """What the library's loaders are asked for, and how."""
        if self.folder is not None:
            return in_folder(root / self.folder, "folder")
        return str(self.name), {**SAFE, "revision": self.revision}

    def _files(self, root: Path) -> list[Path]:
        """Those of a folder that decide what is said; none for a commit."""
        folder = Path(self._where(root)[0])
        if self.folder is None:
            return []
        settings = ("config.json",) if self.input else ("config.json", *_PROCESSORS)
        return [folder / name for name in settings if (folder / name).is_file()] + sorted(folder.glob("*.safetensors"))

    def _config(self, root: Path) -> Any:
        where, how = self._where(root)
        with loading(file=where, fix=_FIX):
            from transformers import AutoConfig

            return AutoConfig.from_pretrained(where, **how)

    def _processor(self, root: Path) -> Any:
        """The model's own preprocessing.

        Raises:
            UserError: it has none.
        """
        from transformers import AutoImageProcessor

        where, how = self._where(root)
        try:
            with quiet():
                return AutoImageProcessor.from_pretrained(where, **how)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(
                f"how this model wants its images cannot be read: {first_line(error)}",
                file=where,
                field="input",
                fix="put its preprocessor_config.json beside its weights, or state `input`",
            ) from None

    def _kind(self, config: Any) -> Kind:
        architectures = config.architectures or []
        found = {k for ending, k in _ENDINGS.items() if any(a.endswith(ending) for a in architectures)}
        if self.task is not None and found <= {self.task}:
            return self.task
        if self.task is None and len(found) == 1:
            return found.pop()
        raise UserError(
            "the model does another task" if self.task else "the model's task is none that we know",
            file=self.folder or self.name,
            field="task",
            value=self.task or architectures,
            fix=f"its architecture says {', '.join(architectures) or 'nothing'}; we know {', '.join(get_args(Kind))}",
        )

    def _names(self, config: Any, kind: Kind) -> tuple[str, ...]:
        """Of all ids of the model."""
        stated = {int(i): str(name) for i, name in config.id2label.items()}
        count = max(stated, default=-1) + 1
        if self.classes is not None:
            check_outputs("the model", count, len(self.classes))
            return self.classes
        gaps = [i for i in range(count) if i not in stated]
        if gaps and kind != "detection":
            raise UserError(
                "ids of the model have no name",
                file=self.folder or self.name,
                field="id2label",
                value=gaps[:8],
                fix="state `classes`",
            )
        names = [stated.get(i, "N/A") for i in range(count)]
        return tuple(n if n in NO_CLASS else d for n, d in zip(names, distinct(names, range(count)), strict=True))

    def _measure(self, config: Any) -> Measure:
        """What a depth model says."""
        known = config.to_dict()
        stated, backbone = known.get("depth_estimation_type"), known.get("backbone_config") or {}
        if stated is not None:
            if self.depth is not None and self.depth != stated:
                raise UserError(
                    "the model's configuration says otherwise", field="depth", value=self.depth, fix=f"it is {stated}"
                )
            return "metric" if stated == "metric" else "relative"
        if self.depth is not None:
            return self.depth
        if config.model_type in _METRIC:
            return "metric"
        # MiDaS 3.0 and 3.1; on a DINOv2, DPT was published for metres of several scenes
        if config.model_type == "dpt" and not str(backbone.get("model_type")).startswith("dino"):
            return "relative"
        raise UserError(
            "whether this model says metres or relative inverse depth is not known",
            file=self.folder or self.name,
            field="depth",
            value=config.model_type,
            fix="state `depth: metric` or `depth: relative`, as its authors say",
        )

    def _load(self, config: Any, kind: Kind, root: Path) -> nn.Module:
        import transformers

        universal = config.model_type in _UNIVERSAL
        auto = {
            "classification": transformers.AutoModelForImageClassification,
            "detection": transformers.AutoModelForObjectDetection,
            "segmentation": transformers.AutoModelForUniversalSegmentation
            if universal
            else transformers.AutoModelForSemanticSegmentation,
            "depth": transformers.AutoModelForDepthEstimation,
        }[kind]
        where, how = self._where(root)
        with loading(file=where, fix=_FIX):
            net, report = auto.from_pretrained(
                where, config=config, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **how
            )
        lost = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        if lost:
            raise UserError(
                f"{len(lost)} of the network's weights are not in the file, or of another shape",
                file=where,
                record=lost[0],
                fix="check that config.json and the weights are of one model, with this head",
            )
        check_weights(net, where)
        return net.eval()
