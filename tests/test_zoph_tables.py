"""The control studies of Zoph et al. as recipes: what they are made of, on scenes, the paper's data, real sets."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from test_extending import Tiny

from tutelage.check import check
from tutelage.data.quarantine import Quarantine
from tutelage.data.scenes import LabelNoise, Scenes
from tutelage.data.source import Place
from tutelage.files import read_json_lines
from tutelage.methods.material import open_material
from tutelage.methods.must import must
from tutelage.part import changed
from tutelage.progress import SILENT
from tutelage.recipe import Recipe
from tutelage.recipes import RECIPES
from tutelage.recipes.zoph_paper import TABLES as PAPER
from tutelage.recipes.zoph_real import SETS
from tutelage.recipes.zoph_tables import NOISY, SCALES, TABLES
from tutelage.stages import Run
from tutelage.training.checkpoint import load_model
from tutelage.training.evaluate import evaluate, load_evidence
from tutelage.types import Mask

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", [*TABLES, *PAPER, *SETS])
def test_every_column_is_a_recipe_and_the_command_is_told(name):
    make = RECIPES[name]
    recipe = make()
    assert f"tutelage run {name} " in (make.__doc__ or "").partition("Command: ")[2]
    assert recipe.student.self_training is not None
    assert recipe.student.start == f"teacher: {recipe.student.heads[0]}"  # section 3.2
    variants = [changed(recipe.but(study={}), settings) for settings in recipe.study.values()]
    assert all(one != other for one, other in combinations(variants, 2))
    for variant in variants:
        for head, teacher in variant.teachers.items():
            mask = variant.heads[head].kind is Mask
            assert (teacher.scales, teacher.flip) == ((SCALES, True) if mask else ((1.0,), False))
    if name not in PAPER:
        assert recipe.seeds == (0, 1, 2)
        assert recipe.repeat == "everything"


@pytest.mark.parametrize("name", list(TABLES))
def test_no_image_of_scenes_is_learned_from_and_tested_on(name):
    recipe = TABLES[name]()
    for learned in recipe.sources.values():
        for tested in recipe.held_out.values():
            assert isinstance(learned, Scenes)
            assert isinstance(tested, Scenes)
            apart = learned.first + learned.images <= tested.first or tested.first + tested.images <= learned.first
            assert apart or learned.world != tested.world


@pytest.mark.parametrize("name", ["zoph-table2", "zoph-table3", "zoph-table4", "zoph-table7"])
def test_segmentation_has_the_columns_and_rows_of_detection(name):
    boxes, masks = TABLES[name](), TABLES[f"{name}-masks"]()
    assert list(boxes.study) == list(masks.study)
    assert list(boxes.baselines) == list(masks.baselines)
    assert masks.model.pyramid.kind == "nas-fpn"
    assert {part.kind for part in boxes.baselines.values()} == {part.kind for part in masks.baselines.values()}


def test_the_noisy_images_are_the_pool_of_table_8():
    recipe = TABLES["zoph-table8"]()
    aug, pool = recipe.sources["aug"], recipe.sources["aug-images"]
    assert aug.noise == LabelNoise(borders=2, mistaken=0.1)
    assert (pool.world, pool.seed, pool.first, pool.images) == (aug.world, aug.seed, aug.first, aug.images)
    assert (pool.head, pool.label, pool.noise) == (None, None, None)
    assert recipe.sources["workshop"].noise is None
    assert recipe.held_out["workshop"].noise is None
    assert recipe.baselines[NOISY].sources == ("workshop", "aug")
    assert "aug" not in recipe.student.sources


def small_table8() -> Recipe:
    """Table 8 with networks and trainings that take a second; no pre-training."""
    recipe = TABLES["zoph-table8"]()

    def brief(part):
        return part.but(training=part.training.but(steps=2, batch=4, warmup=0, workers=0))

    return recipe.but(
        heads={"materials": recipe.heads["materials"].but(pseudo_threshold=0.0)},
        sources={name: s.but(images=6, size=32) for name, s in recipe.sources.items() if name != "catalogue"},
        held_out={name: s.but(images=5, size=32) for name, s in recipe.held_out.items() if name != "catalogue"},
        model=recipe.model.but(
            backbone=Tiny(),
            pyramid=recipe.model.pyramid.but(width=8, repeats=1),
            size=32,
        ),
        teachers={"materials": brief(recipe.teachers["materials"]).but(start=None)},
        student=brief(recipe.student),
        baselines={NOISY: brief(recipe.baselines[NOISY]).but(start=None)},
        study={},
        seeds=(0,),
    )


def test_a_teacher_has_the_human_labels_of_its_student_and_is_measured_by_one_look(tmp_path):
    with Run(tmp_path, small_table8(), SILENT) as run:
        must(run)
    learned = {
        row: json.loads((tmp_path / folder / "stage.json").read_text())["part"]["sources"]
        for row, folder in (("teacher", "teachers/materials"), (NOISY, f"baselines/{NOISY}"), ("nobody", "labels"))
    }
    assert set(learned["teacher"]) == {"workshop"}
    assert set(learned[NOISY]) == {"workshop", "aug"}
    assert set(learned["nobody"]) == {"workshop", "aug-images"}, "nobody asks a teacher for what was labelled in haste"
    lines = read_json_lines(tmp_path / "evaluate/results.jsonl")
    rows = {row["row"]: row["value"] for row in lines if row["metric"] == "mIoU"}
    assert set(rows) == {"teacher", NOISY, "student"}
    for row in (row for row in lines if row["metric"] == "mIoU"):
        kept = load_evidence(tmp_path / "evaluate" / row["evidence"])
        assert kept.evidence.figure("mIoU", np.ones((1, len(kept.ids))))[0] == pytest.approx(row["value"])
    held_out = small_table8().held_out["workshop"].open("x", Place(tmp_path, tmp_path / "cache"))
    for row, folder in (("teacher", "teachers/materials"), ("student", "student")):
        aside = Quarantine(tmp_path / "aside.jsonl", 5, 1.0)
        found = evaluate(load_model(tmp_path / folder, backbones=[Tiny]).student, "materials", held_out, CPU, aside)
        assert rows[row] == pytest.approx(found.values["mIoU"], abs=1e-6)


# --- the paper's own data ---


@pytest.mark.parametrize(
    ("table", "column", "wanted"),
    [  # (training, steps, batch, rate), section 3.2
        (2, "Augment-S1, Rand Init", {"teacher": (45_000, 256, 0.32), "student": (95_087, 512, 0.32)}),
        (2, "Augment-S4, ImageNet Init", {"teacher": (120_000, 256, 0.32), "backbone": "tf_efficientnet_b7.aa_in1k"}),
        (3, "20%, ImageNet++ Init", {"fractions": {"coco": 0.2}, "backbone": "tf_efficientnet_b7.ns_jft_in1k"}),
        (4, "Rand Init", {"backbone": "resnet50", "size": 640, "pyramid": None}),
        (5, "SpineNet-143", {"teacher": (463_000, 128, 0.14), "backbone": "143", "size": 1280}),
        (5, "SpineNet-190", {"teacher": (370_400, 128, 0.15), "student": (185_200, 256, 0.15), "backbone": "190"}),
        (6, "EfficientNet-B7", {"teacher": (40_000, 256, 0.08), "student": (40_000, 512, 0.08), "pyramid": "nas-fpn"}),
        (6, "EfficientNet-L2", {"teacher": (20_000, 256, 0.2), "student": (20_000, 256, 0.2), "size": 512}),
        (7, "Rand Init", {"fractions": {"coco": 0.2}, "teacher": (120_000, 256, 0.32)}),
        (8, "Augment-S1", {"teacher": (40_000, 256, 0.08), "backbone": "tf_efficientnet_b7.ns_jft_in1k"}),
    ],
)
def test_the_papers_figures_are_the_recipes_values(table, column, wanted):
    recipe = PAPER[f"zoph-table{table}-paper"]()
    recipe = changed(recipe.but(study={}), recipe.study[column])
    (teacher,) = recipe.teachers.values()
    found = {
        "fractions": recipe.fractions,
        "backbone": recipe.model.backbone.name,
        "size": recipe.model.size,
        "pyramid": recipe.model.pyramid.kind,
    }
    for name, part in (("teacher", teacher), ("student", recipe.student)):
        found[name] = (part.training.steps, part.training.batch, part.training.rate)
    assert {key: found[key] for key in wanted} == wanted
    decay = teacher.training.weight_decay
    assert decay == {1: 1e-4, 5: 4e-5, 6: 1e-5, 8: 1e-5}.get(table, 1e-4)


def test_augmentations_are_those_of_their_columns():
    recipe = PAPER["zoph-table2-paper"]()
    for strength, scale, kind in (
        ("S1", (0.8, 1.2), None),
        ("S2", (0.8, 1.2), "auto-augment"),
        ("S3", (0.5, 2.0), "auto-augment"),
        ("S4", (0.5, 2.0), "rand-augment"),
    ):
        variant = changed(recipe.but(study={}), recipe.study[f"Augment-{strength}, Rand Init"])
        for part in (variant.teachers["objects"], variant.student):
            augment = part.training.augment
            assert augment.scale == scale
            assert (augment.policy.kind if augment.policy else None) == kind
            assert kind != "rand-augment" or augment.policy.magnitude == 10


@pytest.mark.parametrize("name", list(PAPER))
def test_without_the_papers_data_the_missing_folders_are_told_and_nothing_else(name, tmp_path):
    said = [text for text, wrong in check(changed(PAPER[name](), [f"data={tmp_path}"])) if wrong]
    assert len(said) >= 3
    assert all("there is no such" in text and str(tmp_path) in text for text in said), said


# --- real photographs ---


@pytest.mark.skipif(not DATA.is_dir(), reason="the real photographs are not beside the repository")
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("zoph-raccoon", (75, 72, 50)),
        ("zoph-coco128", (128, 1000, 128)),
        ("zoph-camvid", (110, 257, 101)),
        ("zoph-cifar10", (1000, 9000, 2000)),
    ],
)
def test_real_sets_open_and_share_no_image(name, sizes, tmp_path):
    recipe = SETS[name]().but(data=str(DATA))
    material = open_material(recipe, Place(DATA, tmp_path))
    parts = [material.sources["labelled"], material.sources["pool"], material.held_out["test"]]
    assert tuple(len(part) for part in parts) == sizes
    step = max(1, max(sizes) // 1000)  # of the largest set, some
    seen = [{part.sha256(index) for index in range(0, len(part), step)} for part in parts]
    for one, other in combinations(seen, 2):
        assert not one & other
    head = recipe.student.heads[0]
    assert parts[0].head == parts[2].head == head
    assert parts[1].head != head, "nobody reads the labels of the pool"
