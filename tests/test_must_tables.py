"""MuST's tables as recipes: what the paper states of them, in every size, and that their students can be trained."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tutelage.data.policies import RandAugment
from tutelage.data.scenes import Scenes
from tutelage.data.source import Place
from tutelage.methods.must import Learned
from tutelage.methods.student import balance_of
from tutelage.models.backbone import Timm
from tutelage.models.pyramid import Pyramid
from tutelage.models.student import Model
from tutelage.recipe import Recipe, StudentPart
from tutelage.recipes.must_paper import POOL_IMAGES
from tutelage.recipes.must_tables import NOISY, NOISY_CLASSES, POOL_CLASSES, SIZES, STRONG, TABLES
from tutelage.recipes.scenes import demo, demo_fast, large, small
from tutelage.recipes.suites import must_scenes_suite
from tutelage.tasks import Classification, Depth
from tutelage.teachers import Trained
from tutelage.teachers.own import Checkpoint
from tutelage.training.checkpoint import save_model
from tutelage.training.simclr import SimCLR, Views
from tutelage.transfer.finetune import grid, rungs
from tutelage.transfer.rows import rows_of
from tutelage.types import IGNORE

JFT = ("must-table4-paper", "must-table6-paper", "must-fig5-paper", "must-tables-paper")


def students(recipe: Recipe) -> dict[str, StudentPart]:
    """Every student of a recipe by row."""
    parts = {**recipe.baselines, "student": recipe.student}
    return {row: part for row, part in parts.items() if isinstance(part, StudentPart)}


@pytest.mark.parametrize("name", TABLES)
def test_the_losses_of_every_student_can_be_weighed(name):
    recipe = TABLES[name]()
    for row, part in students(recipe).items():
        heads = {head: recipe.heads[head] for head in part.heads or recipe.heads}
        assert set(balance_of(recipe, part, heads).weights()) == set(heads), row


def test_weights_of_the_paper_follow_the_images():
    """Section 3.2 and appendix B.2: the scaling rule and 4e-5 on ImageNet, learned weights and 3e-6 on JFT."""
    for name in TABLES:
        recipe = TABLES[name]()
        for row, part in students(recipe).items():
            on_pool = part.labels != "human" and (part.sources is None or "jft" in part.sources)
            on_pool = on_pool or part.heads == (POOL_CLASSES,)
            if not name.endswith("-paper"):
                assert part.balance.mode in ("equal", "scaling-rule"), (name, row)
            elif on_pool:
                assert name in JFT
                assert part.training.weight_decay == 3e-6, (name, row)
                assert part.balance.mode == "uncertainty" or part.heads == (POOL_CLASSES,), (name, row)
            else:
                assert part.training.weight_decay == 4e-5, (name, row)
                assert part.balance.mode == "scaling-rule" or len(part.heads or ()) == 1, (name, row)
                assert part.balance.weights in ({}, {"depth": 1.0}), (name, row)
    paper = TABLES["must-table2-paper"]().student
    assert (paper.balance.mode, paper.balance.weights) == ("scaling-rule", {"depth": 1.0})


def test_depth_of_the_paper_is_what_midas_says():
    depth = TABLES["must-table2-paper"]().heads["depth"]
    assert depth.takes(Depth(mode="relative", target="inverse"))
    assert not depth.takes(Depth())


def test_masks_of_the_paper_are_cocos_as_published_and_black_is_no_class(tmp_path):
    for folder, name in (("train2017", "9.jpg"), ("annotations/panoptic_train2017", "9.png")):
        (tmp_path / "coco" / folder).mkdir(parents=True)
        pixels = np.zeros((8, 16, 3), np.uint8)
        pixels[:, :2] = [[7, 1, 0], [5, 0, 0]]
        Image.fromarray(pixels).save(tmp_path / "coco" / folder / name)
    segments = [{"id": 263, "category_id": 200}, {"id": 5, "category_id": 1}]
    about = {
        "images": [{"id": 9, "file_name": "9.jpg", "width": 16, "height": 8}],
        "categories": [{"id": 1, "name": "person"}, {"id": 200, "name": "rug-merged"}],
        "annotations": [{"image_id": 9, "file_name": "9.png", "segments_info": segments}],
    }
    (tmp_path / "coco/annotations/panoptic_train2017.json").write_text(json.dumps(about))
    opened = TABLES["must-table2-paper"]().sources["coco"].open("coco", Place(tmp_path, tmp_path))
    assert opened.space.names == ("person", "rug-merged")
    assert opened.target(0).ids.tolist() == [[1, 0] + [IGNORE] * 14] * 8


def test_teachers_of_the_paper_and_their_students_are_measured_on_held_out_images_of_their_own():
    for name in ("must-table4-paper", "must-tables-paper"):
        recipe = TABLES[name]()
        for source, part in recipe.held_out.items():
            learned = recipe.sources[source]
            assert part.head == learned.head
            assert part != learned
            assert "train" not in json.dumps(part.plain())
        assert {recipe.sources[source].head for source in recipe.held_out} == {"classes", "objects", "masks"} & set(
            recipe.teachers
        )


@pytest.mark.parametrize(("size", "stretch"), [("", 1.8), ("-large", 30), ("-paper", 1)])
def test_table_6_has_the_epochs_that_its_rows_name(size, stretch):
    recipe = TABLES[f"must-table6{size}"]()
    pool = next(s for s in recipe.sources.values() if s.head == POOL_CLASSES)
    images = pool.images if isinstance(pool, Scenes) else POOL_IMAGES
    found = []
    for row, part in recipe.baselines.items():
        epochs = part.training.steps * part.training.batch / images
        found.append(epochs / stretch)
        named = re.search(r"([\d.]+) epochs", row)
        if named:
            assert epochs == pytest.approx(float(named[1]), rel=0.01), row
    paper = (1, 2, 5, 3, 5, 10, 2.5, 2.5)  # the quarter of the pool has the steps of the whole
    assert found == pytest.approx(paper, rel=0.01)
    training = recipe.student.training
    assert training.steps * training.batch / images == pytest.approx(2 * stretch, rel=0.01)
    assert recipe.first_row in recipe.baselines


@pytest.mark.parametrize("size", ["", "-large"])
def test_the_noisy_student_of_scenes_knows_nothing_of_the_pools_classes(size):
    recipe = TABLES[f"must-fig5{size}"]()
    noisy, student = recipe.baselines[NOISY], recipe.student
    assert noisy.heads == (NOISY_CLASSES,)
    assert noisy.start is None
    assert isinstance(noisy.training.augment.policy, RandAugment)
    teacher = recipe.teachers[NOISY_CLASSES]
    assert isinstance(teacher, Trained)
    assert teacher.start is None
    others = [part for head, part in recipe.teachers.items() if head != NOISY_CLASSES]
    assert [part.start for part in others] == [STRONG] * 4
    assert NOISY_CLASSES not in student.heads
    assert student.start == STRONG
    assert {recipe.sources[name].head for name in noisy.sources} == {NOISY_CLASSES, POOL_CLASSES}
    steps = {row: part.training.steps // student.training.steps for row, part in recipe.baselines.items()}
    assert steps == {"supervised": 1, NOISY: 3, STRONG: 3}
    same = [source.but(head=None, label=None) for source in recipe.sources.values() if source.world == "catalogue"]
    assert len(same) == 2
    assert same[0] == same[1]


def test_figure_5_of_the_paper_is_one_epoch_of_jft():
    training = TABLES["must-fig5-paper"]().student.training
    assert training.steps * training.batch == pytest.approx(POOL_IMAGES, rel=1e-4)


def test_simclr_sees_the_paper_s_views_but_for_the_smallest_pictures():
    for name in TABLES:
        recipe = TABLES[name]()
        for part in recipe.baselines.values():
            if isinstance(part, SimCLR):
                small = not name.endswith(("-paper", "-large"))
                assert part.views == (Views(crop=(0.2, 1.0), colour=0.5) if small else Views()), name
                assert (part.training.rate == recipe.student.training.rate) is not name.endswith("-large"), name


def test_teachers_of_another_input_size_are_rows(tmp_path):
    """Table 4 of the paper has a teacher of 896 pixels, for students of 640."""
    model = Model(
        backbone=Timm(name="resnet18", options={"layers": [1, 1, 1, 1], "channels": [4, 4, 4, 4]}),
        pyramid=Pyramid(width=4),
        size=64,
    )
    for name, kept in (("same", model), ("large", model.but(size=96)), ("wide", model.but(pyramid=Pyramid(width=8)))):
        heads = {"things": Classification(classes=("a", "b"))}
        save_model(tmp_path / name, kept.build(heads), {})
    teachers = {name: (None, Checkpoint(path=tmp_path / name)) for name in ("same", "large", "wide")}
    recipe = Recipe(name="x", model=model)
    made = {"MuST student": SimpleNamespace(folder=tmp_path / "none", stage=None)}
    rows = rows_of(SimpleNamespace(recipe=recipe), Learned(teachers, made))
    assert [row.name for row in rows if row.name.startswith("teacher")] == ["teacher: same", "teacher: large"]
    assert all(row.model == model for row in rows)  # they are fine-tuned as all rows are


def test_few_masks_are_few_in_every_size():
    for recipe in (demo(), demo_fast(), small("x"), large("x")):
        images = {column: part.train.images for column, part in recipe.transfer.items()}
        many = images.pop("many masks")
        assert images.pop("few masks") == many * 3 // 10
        assert set(images.values()) == {many}
    twin = must_scenes_suite()
    assert twin["few masks"].train.images == small("x").transfer["few masks"].train.images


def test_small_fine_tunings_try_four_rates_for_a_quarter_of_their_steps():
    settings = small("x").finetuning
    assert len(grid(settings)) == 4
    assert rungs(settings) == 2
    assert (settings.steps, settings.training.weight_decay, settings.training.warmup) == ((400,), 1e-4, 15)
    for recipe, steps in ((demo(), 300), (demo_fast(), 10)):
        assert (recipe.finetuning.rates, recipe.finetuning.steps) == ((4e-3,), (steps,))


def test_every_size_has_every_table():
    assert len(TABLES) == 7 * len(SIZES)
