"""What Python users call; the command line is a thin layer over it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tutelage.data.folders import Pool
from tutelage.data.geometry import letterbox
from tutelage.data.pixels import FilePicture, pixels_of
from tutelage.data.source import BadImage, LabelSpace, Place, Source, UInt8
from tutelage.errors import UserError
from tutelage.files import write_atomically, write_json, write_text
from tutelage.jobs import Jobs
from tutelage.labels.engines import LOCAL, Engine
from tutelage.labels.engines import label as label_work
from tutelage.labels.labelling import LabellingReport
from tutelage.labels.work import Labelling, Work
from tutelage.methods.material import settle
from tutelage.methods.must import Learned, join_labelling, label_union, must
from tutelage.methods.pictures import draw, save_picture
from tutelage.methods.seen import refuse_seen
from tutelage.methods.upstream import failure
from tutelage.models.backbone import Backbone
from tutelage.part import override, read_yaml
from tutelage.progress import SILENT, Progress, speaks
from tutelage.recipe import Recipe, read_recipe
from tutelage.report.page import write_report
from tutelage.stages import Run
from tutelage.tasks.task import Task
from tutelage.teachers.teacher import Specialist
from tutelage.training.checkpoint import load_model
from tutelage.training.evaluate import Predictor, prepare
from tutelage.training.processes import barrier, device, leave_a_core_to_the_loader, processes, rank, world
from tutelage.transfer.compare import comparison, controlled
from tutelage.transfer.rows import check_rows
from tutelage.transfer.suite import transfer as fill_table
from tutelage.transfer.sweep import best_weight
from tutelage.types import Boxes, Field, Label, Mask, Target


def run(recipe: Recipe, out: str | Path, progress: Progress | None = None, jobs: int | Jobs = 1) -> Path:
    """Do everything a recipe says, in the folder `out`; what is done there already is kept.

    Args:
        recipe: a built-in one, one read from YAML (`tutelage.read_recipe`), or one composed in Python.
        out: the run's folder.
        progress: where progress is shown; by default on standard error.
        jobs: processes that do independent stages (teachers, cells of the transfer table) side by side, or a
            `RayJobs`. Above 1, a script must be guarded by `if __name__ == "__main__":`, as always with Python's
            multiprocessing.

    Returns:
        The path of the report.

    Raises:
        UserError: data, weights or the folder are not what the recipe says; or columns of a study failed, after all
            others are made and the report is written.
    """
    with processes():
        leave_a_core_to_the_loader()
        with Run(Path(out), recipe, progress if progress is not None else Progress(sys.stderr), jobs) as work:
            check_rows(recipe)
            refuse_seen(work)
            failed: list[_Failed] = []
            shown = fill_table(work, _learn(work, failed))
            rows = work.collect_results([line for one, reason in failed for line in failure(one, reason)], shown)
            for head in recipe.sweep:
                found = best_weight(recipe, head, rows)
                if found is not None:
                    work.progress.say(
                        f"{head}: loss weight {found[0]:g} is best on the validation parts ({found[1]:+.1f}%)"
                    )
            if rank() == 0:
                write_report(work.folder)
            barrier()
            if failed:
                told = [f"{one.variant}, seed {one.recipe.seed}: {reason}" for one, reason in failed]
                raise UserError(
                    "some columns failed; the report has the others:\n    " + "\n    ".join(told),
                    file=Path(out) / "report.html",
                    fix="mend the cause and run again: what is finished is kept",
                )
    return Path(out) / "report.html"


_Failed = tuple[Run, str]
"""A variant of a study that could not be made, and why."""


def _learn(run: Run, failed: list[_Failed]) -> dict[int, Learned | None]:
    """By seed of the transfer table, what the method made; what of a study it could not make is added to `failed`."""
    recipe = run.recipe
    if recipe.method == "transfer":
        return dict.fromkeys(recipe.seeds)
    learned: dict[int, Learned | None] = {}
    for variant in run.variants():
        if recipe.repeat == "everything":
            repeats = {seed: variant if seed == recipe.seed else variant.again(seed) for seed in recipe.seeds}
            learned = {seed: _make(repeat, failed) for seed, repeat in repeats.items()}
        else:
            learned = dict.fromkeys(recipe.seeds, _make(variant, failed))
    return learned


def _make(run: Run, failed: list[_Failed]) -> Learned | None:
    """What the method made. A variant of a study fails alone: it is added to `failed`, the others are still made."""
    trace = run.folder / "failed.txt"
    try:
        learned = must(run)
    except Exception as error:
        if not run.variant or world() > 1:  # processes that work together cannot go on apart
            raise
        write_text(trace, traceback.format_exc())
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        failed.append((run, " ".join(reason.split())))
        run.progress.say(f"{run.variant}, seed {run.recipe.seed}, failed; the other columns go on: {failed[-1][1]}")
        return None
    trace.unlink(missing_ok=True)
    return learned


def transfer(
    starts: Sequence[str | Path],
    suite: Recipe | str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    settings: Sequence[str] = (),
    controls: bool = True,
    progress: Progress | None = None,
    jobs: int | Jobs = 1,
) -> Path:
    """Compare networks on labelled sets: the transfer table alone, one row a network.

    Args:
        starts: model folders, runs, or names such as `timm:resnet50` (see `tutelage.transfer.compare.comparison`).
        suite: a recipe, its file, or its plain values: its downstream sets and how they are used.
        out: the run's folder.
        settings: `a.b=c` changes of the suite.
        controls: whether plain ImageNet weights become a row where there are any, and they can be had.
        progress, jobs: as of `run`.

    Returns:
        The path of the report.
    """
    if isinstance(suite, str | Path):
        plain = read_suite(Path(suite))
    else:
        plain = suite.plain() if isinstance(suite, Recipe) else dict(suite)
    file = Path(suite) if isinstance(suite, str | Path) else Path(str(plain.get("name", "suite")))
    plain = override({"initialisations": {}, "finetuning": {}, "probe": {}} | plain, list(settings), Recipe)
    progress = progress if progress is not None else Progress(sys.stderr)
    recipe = comparison([str(start) for start in starts], plain, file)
    if controls:
        recipe = controlled(recipe, progress.say if speaks() else SILENT.say)
    return run(recipe, out, progress, jobs)


def read_suite(path: Path) -> dict[str, Any]:
    """The plain values of a suite's file: YAML, or a Python file with `recipe()`."""
    if path.suffix == ".py":
        return read_recipe(path).plain()
    found = read_yaml(path)
    if not isinstance(found, dict):
        raise UserError("a suite is a mapping", file=path, fix="give keys such as `transfer` and `finetuning`")
    return found


def label_run(
    recipe: Recipe, out: str | Path, progress: Progress | None = None, engine: Engine = LOCAL, jobs: int = 1
) -> Path:
    """The first part of `run`: teachers and labels. `run` goes on from here in the same folder.

    Args:
        recipe: as for `run`.
        out: the run's folder; the labels are in its `labels`.
        progress: where progress is shown; by default on standard error.
        engine: who labels.
        jobs: processes that train teachers side by side.

    Returns:
        The folder of the labels.
    """
    with processes():
        leave_a_core_to_the_loader()
        with Run(Path(out), recipe, progress if progress is not None else Progress(sys.stderr), jobs) as work:
            refuse_seen(work)
            labels = label_union(work, engine).labels
            if labels is None:
                raise UserError("without a teacher nothing is labelled", field="teachers", fix="give one a head")
            return labels.root


def join(recipe: Recipe, out: str | Path, progress: Progress | None = None, *, decoders: int = 1) -> LabellingReport:
    """Label together with any number of other processes that do the same on a shared folder; returns when all is done.

    Args:
        recipe: the same for all of them; its teachers are finished.
        out: the run's folder, the same for all of them.
        progress: where progress is shown; by default on standard error.
        decoders: threads of this process that read images, and as many that compress labels.
    """
    with Run(Path(out), recipe, progress if progress is not None else Progress(sys.stderr), shared=True) as work:
        return join_labelling(work, decoders)


def label(
    pool: Source | Mapping[str, Source] | str | Path,
    teachers: Mapping[str, Specialist],
    out: str | Path,
    *,
    heads: Mapping[str, Task] | None = None,
    settings: Labelling | None = None,
    engine: Engine = LOCAL,
    progress: Progress | None = None,
) -> LabellingReport:
    """Label a pool of images with finished models: a labels store, with no recipe and no training around it.

    Args:
        pool: a source, several by name, or the path of a folder of images. A single one gets the name "pool".
        teachers: head name to finished model.
        out: the folder of the store; what is there already is kept.
        heads: head name to task where it is not just what the teacher does: another threshold, say.
        settings: batch, shard size and what else decides the bytes.
        engine: who labels: this process, several, or Ray.
        progress: where progress is shown; by default on standard error.

    Raises:
        UserError: images, models or the folder are not what they should be.
    """
    if not isinstance(pool, Mapping):
        pool = {"pool": pool if isinstance(pool, Source) else Pool(images=Path(pool))}
    root = Path()
    tasks: dict[str, Task] = {}
    for head, teacher in teachers.items():
        tasks[head] = settle(head, (heads or {}).get(head, teacher.does(root, head)), {}, teacher, root)[0]
    work = Work(pool, tasks, dict(teachers), Place(root, Path(out) / ".cache"), settings or Labelling())
    shown = progress if progress is not None else Progress(sys.stderr)
    return label_work(work, Path(out), engine=engine, device=device(), progress=shown)


@dataclass(frozen=True)
class Loaded:
    """A model ready to look at images.

    Attributes:
        heads: name to task.
        spaces: name to label space, for heads that have one.
    """

    heads: dict[str, Task]
    spaces: dict[str, LabelSpace]
    _predictor: Predictor

    def predict(self, image: str | Path | Image.Image | UInt8 | torch.Tensor) -> dict[str, Target]:
        """What every head says of one image, at the image's own size.

        Args:
            image: a file, a PIL image, which is read as its file is (turned as EXIF says, transparency over white), an
                array uint8 [h,w,3] RGB, or a tensor uint8 [3,h,w] RGB on any device.

        Raises:
            UserError: a file that is no usable image, or an array of another shape or dtype.
        """
        pixels = as_pixels(image)
        square, frame = letterbox(pixels, self._predictor.student.model.size)
        said = self._predictor.predict(square[None], [frame], list(self.heads))
        kept = {head: self.heads[head].pseudo(targets[0]) for head, targets in said.items()}
        return {head: target for head, target in kept.items() if target is not None}


def load(path: str | Path, tasks: Sequence[type[Task]] = (), backbones: Sequence[type[Backbone]] = ()) -> Loaded:
    """A model from its folder (or the student of a finished run), on the GPU if there is one.

    Args:
        path: a folder with model.yaml and weights.safetensors, or a run's folder.
        tasks, backbones: classes of your own that the model uses.

    Raises:
        UserError: as `load_model`, and where the model is a backbone alone, which has nothing to say of an image.
    """
    saved = load_model(Path(path), tasks, backbones)
    if not saved.student.tasks:
        raise UserError(
            "this model is a backbone without heads: it has features of an image, and nothing to say of it",
            file=saved.folder,
            field="heads",
            fix="give a model with heads; those of an X-Learner are on its expanded backbone, each task's in "
            "RUN/expansions/student/tasks/TASK. A backbone can be fine-tuned (`tutelage transfer`) or teach features",
        )
    return Loaded(saved.student.tasks, saved.spaces, prepare(saved.student, device()))


def as_pixels(image: str | Path | Image.Image | UInt8 | torch.Tensor) -> UInt8:
    """uint8 [h,w,3] RGB of anything that `Loaded.predict` takes."""
    if isinstance(image, str | Path | Image.Image):
        file = None if isinstance(image, Image.Image) else image
        try:
            return pixels_of(image) if isinstance(image, Image.Image) else FilePicture(Path(image)).read()
        except ValueError as error:
            fix = error.fix if isinstance(error, BadImage) else None
            raise UserError(f"this image cannot be used: {error}", file=file, fix=fix) from None
    if isinstance(image, torch.Tensor):
        image = (image.permute(1, 2, 0) if image.dim() == 3 else image).cpu().numpy()
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise UserError(
            "an image must be uint8 RGB: an array [h,w,3] or a tensor [3,h,w]",
            value=f"{array.dtype} {array.shape}",
        )
    return array


def predict_files(checkpoint: Path, images: Sequence[Path], out: Path, progress: Progress) -> int:
    """Pictures and JSON of all heads for image files; returns how many could not be read.

    For `cat.jpg`, the folder gets `cat.json`, a picture a head (`cat-HEAD.jpg`), and the pixels of dense heads:
    masks as index PNG (`cat-HEAD.png`), depth and normals as float32 arrays (`cat-HEAD.npy`). A further `cat.jpg`, of
    another folder, becomes `cat-2`.

    Raises:
        UserError: no model; the folder is one of the images', some of which could be written over.
    """
    if any(path.resolve().parent == out.resolve() for path in images):
        raise UserError(
            "what is said would be written among the images", file=out, field="--out", fix="give a folder of its own"
        )
    model, failed = load(checkpoint), 0
    taken: set[str] = set()
    with progress.bar("predict", len(images)) as bar:
        for path in images:
            names = (f"{path.stem}-{number}" for number in count(2))
            stem = next(name for name in chain([path.stem], names) if name not in taken)
            taken.add(stem)
            try:
                pixels = as_pixels(path)
            except UserError as error:
                progress.say(str(error))
                failed += 1
                continue
            said = model.predict(pixels)
            entry: dict[str, Any] = {
                "image": str(path),
                "height": pixels.shape[0],
                "width": pixels.shape[1],
                "heads": {},
            }
            for head, target in said.items():
                save_picture(out / f"{stem}-{head}.jpg", draw(model.heads[head], pixels, target))
                entry["heads"][head] = describe(target, model.spaces.get(head), out, f"{stem}-{head}")
            write_json(out / f"{stem}.json", entry)
            bar.advance()
    return failed


def describe(target: Target, space: LabelSpace | None, out: Path, stem: str) -> dict[str, Any]:
    """A target as plain values; dense ones are written to a file of their own beside it."""
    names, ids = (space.names, space.ids) if space is not None else ((), ())
    if isinstance(target, Label):
        top = target.probs.topk(min(5, len(target.probs)))
        return {
            "classes": [
                {"class": names[i], "probability": p}
                for p, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)
            ]
        }
    if isinstance(target, Boxes):
        rows = zip(target.boxes.tolist(), target.classes.tolist(), target.scores.tolist(), strict=True)
        return {"boxes": [{"class": names[c], "category_id": ids[c], "score": s, "xyxy": b} for b, c, s in rows]}
    if isinstance(target, Mask):
        picture = Image.fromarray(target.ids.numpy())
        write_atomically(out / f"{stem}.png", lambda stream: picture.save(stream, "PNG"))
        share = torch.bincount(target.ids.flatten().long(), minlength=256).double() / target.ids.numel()
        classes = {names[i]: round(float(share[i]), 5) for i in range(len(names)) if share[i] > 0}
        return {"file": f"{stem}.png", "classes": classes, "ignored": round(float(share[255]), 5)}
    values = target.values.numpy()
    write_atomically(out / f"{stem}.npy", lambda stream: np.save(stream, values))
    if isinstance(target, Field):
        known = target.values[target.valid]
        low, high = (float(known.min()), float(known.max())) if len(known) else (None, None)
        return {"file": f"{stem}.npy", "minimum": low, "maximum": high}
    return {"file": f"{stem}.npy"}
