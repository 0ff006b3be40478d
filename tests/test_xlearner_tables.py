"""What the recipes of X-Learner's tables promise: sources, budgets of images, weights of losses, sizes of networks."""

from types import SimpleNamespace

import pytest
import torch

from tutelage.methods import rehearsal
from tutelage.methods.material import Material
from tutelage.methods.rehearsal import rehearse_all
from tutelage.models.backbone import Timm
from tutelage.models.expanded import Reconciliation
from tutelage.recipe import Distillation, Pruning, Recipe, StudentPart, XLearner
from tutelage.recipes.self_training import LONGER
from tutelage.recipes.xlearner_real import xlearner_real
from tutelage.recipes.xlearner_rows import (
    ALONE,
    DEEPER,
    FIRST,
    HARD,
    HARD_LONGER,
    HARD_LONGEST,
    LARGER,
    MORE,
    MUST,
    ONE_TASK,
    PLUS,
    PRUNED,
    SEGMENTATION,
    SIMCLR,
    SUPERVISED,
    TAUGHT,
    WHOLE,
    XAVIER,
    X,
)
from tutelage.recipes.xlearner_tables import TABLES
from tutelage.tasks import Classification, DeepLab, Detection, Segmentation
from tutelage.training.pretraining import Pretraining
from tutelage.training.simclr import SimCLR
from tutelage.transfer.rows import check_rows

WHOLE_TABLES = ("xlearner-tables", "xlearner-tables-large", "xlearner-tables-paper")


def rows(recipe: Recipe) -> dict[str, Pretraining]:
    return {**recipe.baselines, recipe.student.title: recipe.student}


def images(recipe: Recipe, part: Pretraining) -> float:
    """Images that are seen for a row, all its stages together."""
    own = part.training.steps * part.training.batch
    if isinstance(part, StudentPart):
        teachers = recipe.teachers.values() if part.labels == "all" else ()
        return own + sum(teacher.training.steps * teacher.training.batch for teacher in teachers)
    if isinstance(part, SimCLR | Distillation):
        return own
    assert isinstance(part, XLearner)
    sources = sum(len(names) for names in part.tasks.values())
    first = sources * part.specialists.steps * part.specialists.batch if part.specialists is not None else 0
    last = 0 if part.squeeze is None else part.squeeze.training.steps * part.squeeze.training.batch
    return own * (2 if part.narrow is not None else 1) + first + last


@pytest.mark.parametrize("name", WHOLE_TABLES)
def test_rows_see_as_many_images_as_the_recipe_says(name):
    recipe = TABLES[name]()
    unit = images(recipe, recipe.baselines[HARD])
    found = {row: images(recipe, part) / unit for row, part in rows(recipe).items()}
    share = len(recipe.baselines[ONE_TASK].sources) / len(recipe.baselines[HARD].sources)
    one = 1 / len(recipe.baselines[HARD].sources)
    wanted = {SUPERVISED: one, LONGER: 1, SIMCLR: 1, ONE_TASK: share, HARD: 1, HARD_LONGER: 2, MUST: 2, X: 2, WHOLE: 1}
    wanted |= {ALONE: 2, TAUGHT: 2, DEEPER: 2, PLUS: 3, PRUNED: 1.5, FIRST: 3, HARD_LONGEST: 3}
    for row, budget in wanted.items():
        assert found[row] == pytest.approx(budget, abs=0.01), row
    for further in (MORE, SEGMENTATION):
        assert found[f"{X}, {further}"] == pytest.approx(found[f"{HARD_LONGER}, {further}"]), further
        assert found[f"{X}, {further}"] > found[X], further


@pytest.mark.parametrize("name", [*TABLES, "xlearner-real"])
def test_every_source_has_its_share_of_a_batch_and_of_the_loss(name):
    """Equation 1: the average over the sources, for hard sharing as for an X-Learner."""
    recipe = xlearner_real() if name == "xlearner-real" else TABLES[name]()
    each = set()
    for row, part in rows(recipe).items():
        if isinstance(part, XLearner):
            names = [name for group in part.tasks.values() for name in group]
            each.add(part.training.batch / len(names))
        elif isinstance(part, StudentPart) and part.labels == "human":
            if not row.startswith(LONGER):
                each.add(part.training.batch / len(part.sources))
            assert part.mixture == "equal"
            assert part.balance.mode == "fixed"
            of_head = {head: sum(recipe.sources[n].head == head for n in part.sources) for head in part.heads}
            for head, count in of_head.items():
                assert part.balance.weights[head] == pytest.approx(count / len(part.sources)), (row, head)
    assert len(each) == 1


def test_longer_is_four_times_as_long_in_every_row_and_nothing_else():
    longer, plain = TABLES["xlearner-longer"](), TABLES["xlearner-tables"]()
    assert {LONGER, HARD, HARD_LONGER, ALONE, XAVIER, WHOLE, TAUGHT, X} == set(rows(longer))
    for row, part in rows(longer).items():
        assert images(longer, part) == 4 * images(plain, rows(plain)[row]), row
    assert longer.transfer == plain.transfer
    assert longer.model == plain.model


def test_the_scenes_have_the_sources_that_the_tables_need():
    for name in ("xlearner-tables", "xlearner-tables-large"):
        recipe = TABLES[name]()
        kinds = [type(recipe.heads[source.head]) for source in recipe.sources.values()]
        assert kinds.count(Classification) >= 3
        assert kinds.count(Detection) >= 2
        assert kinds.count(Segmentation) >= 2
        places = [(source.world, source.seed) for source in recipe.sources.values()]
        assert len(set(places)) == len(places)
        assert recipe.seeds == (0, 1, 2)


@pytest.mark.parametrize("size", ["", "-large", "-paper"])
def test_a_narrow_sub_backbone_has_half_of_the_weights(size):
    """Section 4.4: two of them are as large as one."""
    recipe = TABLES[f"xlearner-tables{size}"]()
    narrow = recipe.baselines[FIRST].narrow
    assert len(narrow) == 2

    def weights(backbone: Timm) -> int:
        return sum(p.numel() for p in backbone.build().parameters())

    whole = weights(recipe.model.backbone.blank())
    assert sum(map(weights, narrow.values())) / whole == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", TABLES)
def test_no_set_wants_a_dilated_backbone_beside_a_row_that_stays_expanded(name):
    recipe = TABLES[name]()
    check_rows(recipe)
    expanded = [row for row, part in rows(recipe).items() if isinstance(part, XLearner) and part.stays_expanded]
    wanted = {WHOLE} if name == "xlearner-longer" else {WHOLE, PRUNED, FIRST}
    assert wanted <= set(expanded) or not expanded
    assert any(isinstance(part.head, DeepLab) for part in recipe.transfer.values()) == (not expanded)


@pytest.mark.parametrize("size", ["", "-large", "-paper"])
def test_the_larger_row_of_table_4_is_larger_before_the_squeeze_and_after_it(size):
    recipe = TABLES[f"xlearner-table4{size}"]()
    part = recipe.baselines[f"{X}, {LARGER}"]
    assert list(part.tasks) == list(part.backbones) == ["classification", "detection", "segmentation"]
    assert all(backbone == part.squeeze.backbone for backbone in part.backbones.values())

    def weights(backbone: Timm) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in backbone.blank().build().parameters())

    assert weights(part.squeeze.backbone) > 2 * weights(recipe.model.backbone)


def test_variants_of_one_expansion_share_it():
    recipe = TABLES["xlearner-table6"]()
    for row in (WHOLE, PRUNED):
        part = recipe.baselines[row]
        assert part.start == X
        assert part.but(start=None, squeeze=recipe.student.squeeze) == recipe.student
    assert isinstance(recipe.baselines[PRUNED].squeeze, Pruning)
    assert recipe.baselines[PLUS].hint_levels == recipe.student.squeeze.levels == 3
    without = TABLES["xlearner-table5"]()
    published = without.baselines[XAVIER]
    assert published.reconciliation == Reconciliation()
    assert published.but(reconciliation=Reconciliation(initial="zero")) == without.student
    assert TABLES["xlearner-table5-paper"]().student.reconciliation == Reconciliation()
    assert without.baselines[ALONE].reconciliation is None
    assert without.baselines[ALONE].but(reconciliation=without.student.reconciliation) == without.student


@pytest.mark.parametrize("name", ["xlearner-tables", "xlearner-tables-paper"])
def test_ordinary_and_narrow_networks_can_be_put_together(name, monkeypatch):
    """From shapes, as before a run: full sub-backbones, the squeeze into narrow ones, and these joined."""
    recipe = TABLES[name]()
    recipe = recipe.but(student=recipe.baselines[FIRST], baselines={})
    heads = {head: task.but(classes=("a", "b", "c")) for head, task in recipe.heads.items()}
    sources = {source: SimpleNamespace(name=source, head=part.head) for source, part in recipe.sources.items()}
    built = []
    monkeypatch.setattr(rehearsal.Squeeze, "_try", lambda learner: built.append(learner.student.device.type))
    rehearse_all(recipe, Material(heads, {}, sources, {}))
    assert built
    assert set(built) == {"meta"}
