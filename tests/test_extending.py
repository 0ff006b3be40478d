"""A new task, reader, backbone and make of teacher, defined here, go through the whole pipeline: docs/extending.md."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import tutelage
from tutelage import api
from tutelage.data.augment import Augment
from tutelage.data.source import Dataset, LabelSpace, Picture, Place, Source
from tutelage.files import read_json_lines
from tutelage.labels.labelling import label_pool
from tutelage.labels.store import Store
from tutelage.models.backbone import Backbone, FeatureMaps
from tutelage.models.pyramid import Pyramid
from tutelage.models.student import Model
from tutelage.progress import SILENT
from tutelage.recipe import FineTuning, Recipe, StudentPart, TransferSet
from tutelage.tasks import Classification
from tutelage.tasks.task import Metric, Task
from tutelage.teachers import Specialist, Trained
from tutelage.teachers.teacher import Teacher, check_task, digest_of
from tutelage.training.schedule import Training
from tutelage.types import Field, Label, LossSum

# --- a reader: noise pictures whose brightness is the label ---------------------------------------------------------


class InMemory(Picture):
    def __init__(self, pixels):
        self.pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def read(self, scale=1.0):
        return self.pixels


class Brightness(Source):
    format: Literal["brightness"] = "brightness"
    images: int
    first: int = 0
    label: Literal["class", "map"] | None = None

    def open(self, name, place, classes: Sequence[str] | None = None):
        return BrightnessDataset(name, self)


class BrightnessDataset(Dataset):
    def __init__(self, name, source):
        self.name, self.head, self.faults, self.source = name, source.head, [], source
        self.space = LabelSpace(("dark", "bright")) if source.label == "class" else None

    def __len__(self):
        return self.source.images

    def id(self, index):
        return f"{self.source.first + index:04d}"

    def _pixels(self, index):
        rng = np.random.default_rng(self.source.first + index)
        level = 60 if (self.source.first + index) % 2 == 0 else 190
        return np.clip(rng.normal(level, 30, (48, 40, 3)), 0, 255).astype(np.uint8)

    def picture(self, index):
        return InMemory(self._pixels(index))

    def target(self, index):
        if self.source.label == "class":
            return Label(F.one_hot(torch.tensor((self.source.first + index) % 2), 2).float())
        if self.source.label == "map":
            values = torch.from_numpy(self._pixels(index)).float().mean(2) / 255
            return Field(values, torch.ones_like(values, dtype=torch.bool))
        return None

    def sha256(self, index):
        return f"{self.source.first + index:064x}"


# --- a task: predict the brightness of every pixel ------------------------------------------------------------------


class LightMetric(Metric):
    name = "mean error"
    lower_is_better = frozenset({"mean error"})

    def __init__(self):
        self.sum, self.count = 0.0, 0

    def update(self, prediction, truth):
        self.sum += float((prediction.values - truth.values).abs()[truth.valid].sum())
        self.count += int(truth.valid.sum())

    def compute(self):
        return {"mean error": self.sum / self.count if self.count else float("nan")}


class LightHead(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Conv2d(width, 1, 1)

    def forward(self, features, targets=None):
        return self.linear(features.fused).squeeze(1)


class Light(Task):
    kind: ClassVar[type] = Field
    reads: ClassVar[str] = "fused"
    task: Literal["light"] = "light"

    def head(self, widths):
        return LightHead(widths.pyramid)

    def count(self, targets):
        return torch.tensor(float(len(targets.values)), device=targets.values.device)

    def loss(self, output, targets):
        wanted = F.adaptive_avg_pool2d(targets.values.unsqueeze(1), output.shape[1:]).squeeze(1)
        return LossSum((output.float() - wanted).square().mean((1, 2)).sum(), self.count(targets))

    def decode(self, output, frames, size):
        found = []
        for row, frame in zip(output.float(), frames, strict=True):
            full = F.interpolate(row[None, None], size=size)[0, 0, : frame.inner_height, : frame.inner_width]
            values = F.interpolate(full[None, None], size=(frame.height, frame.width))[0, 0].cpu()
            found.append(Field(values, torch.ones_like(values, dtype=torch.bool)))
        return found

    def metric(self):
        return LightMetric()

    def draw(self, image, target):
        grey = (target.values.clamp(0, 1) * 255).to(torch.uint8).numpy()
        return np.repeat(grey[:, :, None], 3, 2)


# --- a make of teachers: a rule instead of a network -----------------------------------------------------------------


class Rule(Specialist):
    """Above this mean grey value, a picture is bright."""

    kind: Literal["rule"] = "rule"
    level: float = 125.0

    def does(self, root, fills=None):
        return Classification(classes=("dark", "bright"))

    def digest(self, root):
        return digest_of(self.plain())  # a network adds its weight files: digest_of(settings, [root / self.file])

    def open(self, head, task, root, device):
        check_task(head, task, self.does(root))
        return RuleTeacher(self, head, task, self.digest(root))


class RuleTeacher(Teacher):
    def __init__(self, part, head, task, hash):
        self.head, self.task, self.hash, self.space = head, task, hash, LabelSpace(task.classes)
        self.about = {"make": "rule", "level": part.level}

    def predict(self, images):
        bright = torch.tensor([float(image.mean()) > self.about["level"] for image in images])
        return [Label(probs) for probs in F.one_hot(bright.long(), 2).float()]


# --- a backbone: four strided convolutions --------------------------------------------------------------------------


class TinyMaps(FeatureMaps):
    strides, widths = (4, 8, 16, 32), (8, 8, 16, 16)

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU())
        steps = zip(self.widths, self.widths[1:], strict=False)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in steps
        )

    def forward(self, images):
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps


class Tiny(Backbone):
    kind: Literal["tiny"] = "tiny"

    @property
    def pretrained(self):
        return False

    def blank(self):
        return self

    def build(self, root=None):
        return TinyMaps()


def recipe(checkpoint_seconds: float = 60) -> Recipe:
    training = Training(
        steps=60,
        batch=8,
        rate=0.02,
        workers=0,
        augment=Augment(colour=0.0),
        log_every=5,
        checkpoint_seconds=checkpoint_seconds,
    )
    return Recipe(
        name="extending",
        heads={"level": Classification(), "light": Light()},
        sources={
            "levels": Brightness(head="level", label="class", images=24),
            "lights": Brightness(head="light", label="map", images=24, first=100),
            "pool": Brightness(images=16, first=200),
        },
        held_out={"lights-test": Brightness(head="light", label="map", images=6, first=300)},
        model=Model(backbone=Tiny(), pyramid=Pyramid(width=16), size=64),
        teachers={"level": Trained(training=training), "light": Trained(training=training)},
        student=StudentPart(training=training),
        transfer={
            "unseen-light": TransferSet(
                head=Light(),
                **{
                    part: Brightness(head="unseen-light", label="map", images=8, first=first)
                    for part, first in (("train", 400), ("validation", 500), ("test", 600))
                },
            )
        },
        finetuning=FineTuning(training=training.but(steps=10), rates=(0.02,), steps=(10,)),
    )


class Dim(Light):
    """The same task for a teacher's training alone."""

    task: Literal["dim"] = "dim"


def test_a_teachers_own_form_of_a_head_is_a_users_class_too(tmp_path):
    quick = Trained(training=recipe().student.training.but(steps=2))
    asked = recipe().but(
        heads={"light": Light()},
        sources={"lights": Brightness(head="light", label="map", images=6), "pool": Brightness(images=4, first=200)},
        held_out={},
        transfer={},
        teachers={"light": quick.but(head=Dim())},
    )
    api.label_run(asked, tmp_path, SILENT)
    assert Store(tmp_path / "labels").manifest("light").counts.labelled == 4


def test_a_users_own_task_reader_and_backbone_go_through_the_whole_pipeline(tmp_path):
    report = tutelage.run(recipe(), tmp_path / "run", SILENT)
    assert report.is_file()

    rows = list(read_json_lines(tmp_path / "run" / "results.jsonl"))
    upstream = {row["row"]: row["value"] for row in rows if row["stage"] == "upstream"}
    assert upstream["teacher"] < 0.2  # the brightness of a picture is easily learned; an untrained head is off by more
    assert upstream["student"] < 0.2
    transfer = [row for row in rows if row["stage"] == "transfer"]
    assert {row["row"] for row in transfer} == {
        "random initialisation",
        "teacher: level",
        "teacher: light",
        "MuST student",
    }
    assert all(row["higher_is_better"] is False for row in transfer)

    model = tutelage.load(tmp_path / "run", tasks=[Light], backbones=[Tiny])
    said = model.predict(np.full((48, 40, 3), 190, np.uint8))
    assert said["light"].values.shape == (48, 40)
    assert said["level"].probs.argmax() == 1


def test_a_users_own_make_of_teacher_labels_a_pool(tmp_path):
    pool = Brightness(images=10).open("pool", Place(tmp_path, tmp_path))
    rule = Rule()
    teacher = rule.open("level", rule.does(tmp_path), tmp_path, torch.device("cpu"))
    report = label_pool([pool], [teacher], tmp_path / "labels")
    assert report.counts["level"].labelled == 10
    store = Store(tmp_path / "labels")
    said = [store.get("level", "pool", pool.id(index)) for index in range(10)]
    assert [int(label.probs.argmax()) for label in said] == [0, 1] * 5
    assert store.manifest("level").teacher == rule.digest(tmp_path) != rule.but(level=9).digest(tmp_path)


def test_a_users_own_make_of_teacher_goes_through_a_run(tmp_path):
    whole = recipe()
    mine = whole.but(
        heads={"level": Classification()},
        sources={"pool": whole.sources["pool"]},
        held_out={"levels-test": Brightness(head="level", label="class", images=6, first=300)},
        teachers={"level": Rule()},
        transfer={},
        student=StudentPart(training=whole.student.training.but(steps=20)),
    )
    assert tutelage.run(mine, tmp_path / "run", SILENT).is_file()
    rows = list(read_json_lines(tmp_path / "run" / "results.jsonl"))
    assert {row["row"]: row["value"] for row in rows if row["metric"] == "top-1"}["teacher"] == 100
    said = tutelage.load(tmp_path / "run", backbones=[Tiny]).predict(np.full((48, 40, 3), 190, np.uint8))
    assert said["level"].probs.shape == (2,)
