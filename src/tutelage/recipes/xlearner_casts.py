"""Who plays which part in X-Learner's tables (He et al., ECCV 2022, section 4), in three sizes: scenes for two cores,
scenes for a GPU, and the paper's own datasets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from tutelage.data.scenes import Scenes
from tutelage.data.source import Source
from tutelage.models.backbone import Timm
from tutelage.models.expanded import Reconciliation
from tutelage.models.pyramid import Pyramid
from tutelage.models.student import Model
from tutelage.recipe import Probe, Recipe, StudentPart
from tutelage.recipes.scenes import HELD_OUT, SMALL_DETECTION, SMALL_VIEWS, large, small
from tutelage.recipes.suites import xlearner_scenes_suite, xlearner_suite
from tutelage.recipes.xlearner_paper import heads as paper_heads
from tutelage.recipes.xlearner_paper import held_out, more_sources, segmentation_sources, sources
from tutelage.recipes.xlearner_rows import Cast
from tutelage.tasks import Classification, Detection, Segmentation
from tutelage.tasks.task import Task
from tutelage.training.schedule import Training
from tutelage.types import Boxes, Label, Mask

_HALF_RESNET50 = Timm(name="resnet50", options={"channels": [45, 90, 181, 362]})
"""1 / sqrt(2) of ResNet-50's channels, but for the stem's: half of its weights (section 4.4, observation 3)."""

_LARGER_RESNET = Timm(name="resnet152")
"""Of table 4."""

_STEPS = 200_000
"""Of every pre-training at full size; the paper does not say."""


def _schedule(steps: int, batch: int) -> Training:
    """SGD 0.9, weight decay 1e-4, rate 0.2, halved at 50%, then by a fifth and a tenth at 70 and 90% (section 4.1)."""
    return Training(
        steps=steps,
        batch=batch,
        rate=0.2,
        momentum=0.9,
        weight_decay=1e-4,
        clip=None,
        schedule="steps",
        workers=16,
    )


def _on_scenes(
    name: str, base: Recipe, detection: Detection, images: int, training: Training, narrow: Timm, larger: Timm
) -> Cast:
    """Five classification, three detection and two segmentation sources, each with images of its own."""
    worlds: dict[str, tuple[str, str, Task]] = {
        "catalogue": ("catalogue", "classes", Classification()),
        "gallery": ("gallery", "classes", Classification()),
        "landmarks": ("landmarks", "classes", Classification()),
        "playground": ("playground", "boxes", detection),
        "halls": ("halls", "boxes", detection),
        "bench": ("bench", "classes", Classification()),
        "foyer": ("foyer", "classes", Classification()),
        "indoor boxes": ("indoors", "boxes", detection),
        "workshop": ("workshop", "mask", Segmentation()),
        "outdoor masks": ("outdoors", "mask", Segmentation()),
    }
    known: dict[str, Source] = {}
    held_out: dict[str, Source] = {}
    for number, (source, (world, label, _)) in enumerate(worlds.items()):
        part = Scenes(world=world, label=label, head=source, images=images, size=base.model.size, seed=10 + number)
        known[source], held_out[source] = part, part.but(images=images // 8, first=HELD_OUT)
    tested = base.transfer["depth"].train
    assert isinstance(tested, Scenes)
    suite = xlearner_scenes_suite(base.model.size, tested.images, detection)
    recipe = Recipe(
        name=name,
        heads={source: task for source, (_, _, task) in worlds.items()},
        sources=known,
        held_out=held_out,
        model=base.model,
        transfer={column: part.but(finetuning=None) for column, part in suite.items()},
        finetuning=base.finetuning.but(pyramid="fresh"),
        # A fifth of the paper's grid, over the same range, and one beyond: so few images want strong penalties.
        probe=Probe(l2=(1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)),
        student=StudentPart(labels="human"),
        seeds=(0, 1, 2),
        repeat="everything",
    )
    names = tuple(worlds)
    return Cast(recipe, names[:3], names[3:5], training, names[5:7], names[7:8], names[8:], narrow, larger)


def small_scenes(name: str) -> Cast:
    """64 px scenes, a small ResNet: two cores."""
    base = small(name)
    training = base.student.training.but(batch=16, steps=600, warmup=60)
    narrow = Timm(name="resnet18", options={"layers": [1, 1, 1, 1], "channels": [22, 44, 90, 180]})
    larger = Timm(name="resnet18", options={"layers": [2, 2, 2, 2], "channels": [45, 90, 180, 360]})
    # For MuST: detectors so young hardly ever say 0.5.
    cast = _on_scenes(name, base, SMALL_DETECTION.but(pseudo_threshold=0.2), 1200, training, narrow, larger)
    tuning = cast.base.finetuning
    # A quarter of the steps says little about boxes and depth: of rates compared so early, a high one often leads that
    # ends behind. The highest hardly led even then, and is left out.
    whole = tuning.but(rates=(5e-4, 2e-3, 8e-3), halving=None)
    # From a fresh pyramid masks learn late: after the 400 steps of other columns some rows say one class everywhere.
    masks = cast.base.transfer["segmentation"].but(finetuning=tuning.but(steps=(1200,)))
    cast = replace(cast, base=cast.base.but(finetuning=whole, transfer={**cast.base.transfer, "segmentation": masks}))
    # The last map of 64 px has 2 x 2 cells, too few to learn a backbone from: the row `LAST` shows what they give. In
    # so few steps nothing mends the shock of random layers between tasks: the row `XAVIER` shows what these cost.
    return replace(cast, views=SMALL_VIEWS, levels=3, layers=Reconciliation(initial="zero"))


def large_scenes(name: str) -> Cast:
    """128 px scenes, a ResNet-50, the schedule of the paper: a GPU."""
    base = large(name)
    detection = base.heads["objects"]
    assert isinstance(detection, Detection)
    # Ours: a warm-up, and a bound for the gradient, since all weights are random here.
    training = _schedule(base.student.training.steps, 32).but(workers=8, warmup=500, clip=10.0)
    return _on_scenes(name, base, detection, 10_000, training, _HALF_RESNET50, _LARGER_RESNET)


def published(name: str) -> Cast:
    """The paper's sources (its table 1) and downstream sets, ResNet-50; what it leaves out is said in `xlearner_paper`.

    Not measured: it takes the paper's datasets.
    """
    base, more, masks = sources(), more_sources(), segmentation_sources()
    kinds, known = paper_heads(), {**base, **more, **masks}
    heads = {str(part.head): kinds[str(part.head)] for part in known.values()}

    def of(group: Mapping[str, Source], kind: type) -> tuple[str, ...]:
        return tuple(source for source, part in group.items() if heads[str(part.head)].kind is kind)

    recipe = Recipe(
        name=name,
        heads=heads,
        sources=known,
        held_out=held_out(names=known),
        model=Model(backbone=Timm(name="resnet50"), pyramid=Pyramid(width=256), size=640),
        transfer=xlearner_suite(),
        student=StudentPart(labels="human"),
        seeds=(0, 1, 2),
        repeat="everything",
    )
    training = _schedule(_STEPS, 64)
    return Cast(
        recipe,
        of(base, Label),
        of(base, Boxes),
        training,
        of(more, Label),
        of(more, Boxes),
        of(masks, Mask),
        _HALF_RESNET50,
        _LARGER_RESNET,
    )


SIZES: Mapping[str, Callable[[str], Cast]] = {"": small_scenes, "-large": large_scenes, "-paper": published}
"""Ending of a recipe's name to its sources, model and downstream sets."""
