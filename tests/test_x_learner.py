"""X-Learner as a run: tasks, stages, variants, what is delivered, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from PIL import Image
from test_adopting import near
from test_extending import Brightness, Tiny, TinyMaps

import tutelage
from tutelage.api import predict_files
from tutelage.check import check
from tutelage.data import Pool
from tutelage.data.mixture import order_of
from tutelage.data.scenes import Scenes
from tutelage.data.source import Place
from tutelage.errors import UserError
from tutelage.files import read_json_lines
from tutelage.methods import rehearsal, x_learner
from tutelage.methods.groups import Group, counted, tasks_of
from tutelage.methods.material import Material, open_material
from tutelage.methods.must import must
from tutelage.methods.pretraining import check_starts, entries
from tutelage.methods.rehearsal import rehearse, rehearse_all
from tutelage.methods.x_learner import built, share_of_batch, share_of_one, specialised, trainings_of
from tutelage.models.backbone import Timm
from tutelage.models.pyramid import Pyramid
from tutelage.models.reconciliation import Reconciliation
from tutelage.models.student import Model
from tutelage.part import changed, override, parse, to_yaml, yaml_to_plain
from tutelage.plan import measure
from tutelage.progress import SILENT
from tutelage.recipe import Distillation, FineTuning, Pruning, Recipe, StudentPart, TransferSet, XLearner
from tutelage.report.folder import read_run
from tutelage.report.sizes import sizes
from tutelage.stages import Run
from tutelage.tasks import Classification, Depth, Segmentation
from tutelage.teachers import FunctionTeacher, Trained
from tutelage.training.checkpoint import load_model
from tutelage.training.expansion import Expansion
from tutelage.training.guidance import HINT, Frozen
from tutelage.training.notes import NOTES
from tutelage.training.pretraining import Pretraining
from tutelage.training.pruning import kept, prunable
from tutelage.training.schedule import Training
from tutelage.training.simclr import SimCLR
from tutelage.training.squeeze import Squeeze
from tutelage.transfer.rows import rows_of

STEPS = Training(steps=4, batch=6, rate=0.05, workers=0, precision="fp32")


def resnet(*channels: int) -> Timm:
    return Timm(name="resnet18", options={"layers": [1, 1, 1, 1], "channels": list(channels), "stem_width": 8})


def world(name: str, label: str, head: str, seed: int = 1) -> Scenes:
    return Scenes(world=name, label=label, head=head, images=12, size=32, seed=seed)


PLAIN = XLearner(training=STEPS, alone=2, squeeze=Distillation(training=STEPS))


def recipe(student: XLearner = PLAIN, **baselines: Pretraining) -> Recipe:
    """Two sources of classes and one of masks."""
    return Recipe(
        name="x",
        heads={"things": Classification(), "places": Classification(), "parts": Segmentation()},
        sources={
            "catalogue": world("catalogue", "classes", "things"),
            "indoors": world("indoors", "classes", "places"),
            "workshop": world("workshop", "mask", "parts"),
            "pool": Scenes(world="travels", images=12, size=32, seed=1),
        },
        held_out={"unseen": world("catalogue", "classes", "things", seed=2)},
        model=Model(backbone=resnet(8, 8, 16, 16), pyramid=Pyramid(width=8), size=32),
        student=student,
        baselines=baselines,
    )


def test_every_form_runs_and_is_what_it_says(tmp_path):
    narrow = {"classification": resnet(8, 8, 8, 8), "segmentation": resnet(8, 8, 8, 8)}
    asked = recipe(
        PLAIN.but(squeeze=Distillation(training=STEPS, labels="human", heads=("things",), levels=2)),
        first=PLAIN.but(alone=None, narrow=narrow, specialists=STEPS, hint_levels=2),
        plus=PLAIN.but(specialists=STEPS, squeeze=None, reconciliation=Reconciliation(direction="shallower")),
        pruned=PLAIN.but(start="X-Learner", squeeze=Pruning(training=STEPS, keep=0.25)),
        alone=PLAIN.but(reconciliation=None, alone=4, squeeze=None),
        contrast=SimCLR(training=STEPS, sources=("pool",)),
    )
    names = ["first", "plus", "pruned", "alone", "contrast", "X-Learner"]
    assert [entry.name for entry in entries(asked)] == names
    tutelage.run(asked, tmp_path, SILENT)

    squeezed = load_model(tmp_path)  # as any run's student
    assert squeezed.student.model.backbone == asked.model.backbone
    assert list(squeezed.student.tasks) == ["things"]  # labels taught beside the features
    expanded = load_model(tmp_path / "expansions/student").student
    assert list(expanded.backbone.core.branches) == ["classification", "segmentation"]
    assert not expanded.tasks
    assert expanded.backbone.widths == (16, 16, 32, 32)
    heads = {p.name: list(load_model(p).student.tasks) for p in (tmp_path / "expansions/student/tasks").iterdir()}
    assert heads == {"classification": ["things", "places"], "segmentation": ["parts"]}

    pruned = load_model(tmp_path / "baselines/pruned").student.backbone
    assert kept(pruned.core).weights == round(0.25 * kept(pruned.core).of)
    assert load_model(tmp_path / "baselines/first").student.backbone.widths == (16, 16, 16, 16)
    assert (tmp_path / "narrow/baselines/first/segmentation/model.yaml").is_file()
    assert sorted(p.name for p in (tmp_path / "specialists/baselines/plus").iterdir()) == ["parts", "places", "things"]
    assert not load_model(tmp_path / "baselines/alone").student.backbone.core.reconciliation

    shown = sizes(read_run(tmp_path)).split('<th scope="row">')[1:]
    assert [row.partition("<")[0] for row in shown] == ["alone", "contrast", "first", "plus", "pruned", "X-Learner"]
    assert ["reconciliation" in row for row in shown] == [False, False, True, True, False, True]
    one = sum(p.numel() for p in squeezed.student.backbone.parameters())
    assert shown[1].count(f"<td>{one:,}</td>") == 2
    assert "pruned" in shown[4].split("<td>")[1]
    assert "pruned" not in shown[4].split("<td>")[2]
    assert f"{one:,}" in shown[5].split("<td>")[2]
    assert f"classification {one:,}, segmentation {one:,}" in shown[5].split("<td>")[1]

    measured = {(m.row, m.column) for m in read_run(tmp_path).measurements if m.metric == "top-1"}
    assert measured == {(row, "things") for row in ("first", "plus", "pruned", "alone", "X-Learner")}
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")}
    tutelage.run(asked, tmp_path, SILENT)  # everything is there
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")}


def test_pruning_leaves_a_single_sub_backbones_number_of_weights():
    asked = recipe()
    heads = {"a": {"things": Classification(classes=("x",))}, "b": {"parts": Segmentation(classes=("y",))}}
    whole = built(asked, PLAIN, {task: Group(own, {}) for task, own in heads.items()}, "x")
    one = sum(weight.numel() for weight in prunable(whole.core.branches["a"]))
    of_all = sum(weight.numel() for weight in prunable(whole.core))
    assert of_all > 2 * one, "the layers between them are pruned as well"
    assert share_of_one(whole) == pytest.approx(one / of_all)


@pytest.mark.parametrize(
    ("batch", "accumulate", "share", "found"), [(80, 1, 0.6, 48), (12, 3, 2 / 3, 9), (6, 3, 0.1, 3)]
)
def test_a_share_of_a_batch_can_be_cut_into_its_micro_batches(batch, accumulate, share, found):
    part = share_of_batch(STEPS.but(batch=batch, accumulate=accumulate), share)
    assert (part.batch, part.accumulate, part.steps) == (found, accumulate, STEPS.steps)


def test_what_learns_from_an_expansion_sees_other_batches(tmp_path):
    """The squeeze, the pruned backbone, and all that variant r trains: what they see was not seen in the expansion, in
    the same order and crop."""
    later = ("student", "baselines/pruned", "baselines/r", *(f"narrow/baselines/r/{task}" for task in NARROW))
    orders = {order_of(3, name) for name in later} | {3}
    assert len(orders) == 6
    assert all(0 <= order < 2**31 for order in orders)
    seen: dict[str, list[int]] = {}
    inner = x_learner.Mixture

    class Watched(inner):
        def __init__(self, datasets, mode, seed, *rest, **named):
            super().__init__(datasets, mode, seed, *rest, **named)
            seen.setdefault("order", []).append(self.seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(x_learner, "Mixture", Watched)
        pruned = PLAIN.but(start="X-Learner", squeeze=Pruning(training=STEPS))
        r = PLAIN.but(alone=None, narrow=NARROW)
        tutelage.run(recipe(pruned=pruned, r=r).but(seed=3, held_out={}), tmp_path, SILENT)
    assert sorted(seen["order"]) == sorted([3, *orders]), "both expansions of networks that are alone begin alike"


def test_a_pruned_backbone_has_the_weights_of_the_expansion_and_hints_reach_it(tmp_path, monkeypatch):
    began, hinted = [], []
    prune, expand = x_learner.Pruned.__init__, x_learner.expand

    def cut(self, whole, core, keep):
        began.append(state_of(core))
        prune(self, whole, core, keep)

    def grown(expansion, *rest, **named):
        hinted.append({head: len(guide.guides) for head, guide in expansion.guides.items()})
        expand(expansion, *rest, **named)

    monkeypatch.setattr(x_learner.Pruned, "__init__", cut)
    monkeypatch.setattr(x_learner, "expand", grown)
    plus = PLAIN.but(specialists=STEPS, hint_levels=2, hint_weight=3.0, squeeze=Pruning(training=STEPS))
    tutelage.run(recipe(plus).but(held_out={}), tmp_path, SILENT)
    expanded = state_of(load_model(tmp_path / "expansions/student").student.backbone.core)
    assert began[0].keys() == expanded.keys()
    assert all(value.equal(expanded[name]) for name, value in began[0].items())
    assert hinted == [{"things": 2, "places": 2, "parts": 2}]
    rows = read_json_lines(tmp_path / "expansions/student/curve.jsonl")
    assert rows
    for row in rows:
        assert all(row["weights"][f"{HINT}{head}"] == 3 * row["weights"][head] for head in recipe().heads)
        assert all(row["heads"][f"{HINT}{head}"] > 0 for head in recipe().heads)


def test_weights_that_want_other_colours_are_noted(tmp_path):
    tutelage.run(recipe(PLAIN.but(backbones={"segmentation": Vivid()})).but(held_out={}), tmp_path, SILENT)
    (note,) = read_json_lines(tmp_path / "expansions/student" / NOTES)
    assert note["note"].startswith("X-Learner: the weights of 'segmentation' want images of mean [0.5, 0.5, 0.5]")
    assert "std [0.229, 0.224, 0.225]" in note["note"]


def test_foreign_features_teach_without_any_label(tmp_path):
    teacher = resnet(8, 8, 8, 24)
    torch.save(teacher.build().net.state_dict(), tmp_path / "teacher.pth")
    teachers = {"foreign": teacher.but(weights="teacher.pth")}
    part = Distillation(training=STEPS, sources=("pool",), teachers=teachers, backbone=resnet(8, 8, 8, 12))
    asked = recipe().but(held_out={}, student=part, data=str(tmp_path))
    tutelage.run(asked, tmp_path / "run", SILENT)
    student = load_model(tmp_path / "run").student
    assert not student.tasks
    assert student.backbone.widths[-1] == 12
    assert Frozen.of(student).widths[-1] == 12
    with pytest.raises(UserError, match="a backbone without heads"):
        tutelage.load(tmp_path / "run")
    with pytest.raises(UserError, match=r"RUN/expansions/student/tasks/TASK"):
        predict_files(tmp_path / "run", [], tmp_path / "said", SILENT)


def test_a_squeeze_sees_what_a_part_of_a_source_leaves_to_another(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    for number in range(6):
        Image.new("RGB", (32, 32), (40 * number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
    teacher = resnet(8, 8, 8, 24)
    torch.save(teacher.build().net.state_dict(), tmp_path / "teacher.pth")
    part = Distillation(
        training=STEPS, sources=("a", "b"), fractions={"a": 0.5}, teachers={"it": teacher.but(weights="teacher.pth")}
    )
    seen, inner = [], x_learner.Mixture
    monkeypatch.setattr(x_learner, "Mixture", lambda datasets, *rest: seen.append(datasets) or inner(datasets, *rest))
    pools = {name: Pool(images="photos") for name in ("a", "b")}
    asked = recipe()
    sources = {**asked.sources, **pools}
    asked = asked.but(held_out={}, sources=sources, student=part, data=str(tmp_path))
    tutelage.run(asked, tmp_path / "run", SILENT)
    assert [[(d.name, len(d)) for d in datasets] for datasets in seen] == [[("a", 3), ("b", 3)]]


def test_a_squeeze_says_which_classes_its_share_of_the_labels_has_not(tmp_path):
    few = Distillation(training=STEPS, labels="human", heads=("things",), fractions={"catalogue": 0.1})
    tutelage.run(recipe(PLAIN.but(squeeze=few)), tmp_path, SILENT)
    (note,) = read_json_lines(tmp_path / "student" / NOTES)
    assert note["note"].startswith("X-Learner: the share of catalogue that is learned has no example of ")
    assert not (tmp_path / "expansions/student" / NOTES).exists(), "it learns from all of them"


def test_the_example_of_the_docs_compares_what_has_seen_as_many_images():
    text = (Path(__file__).parents[1] / "docs/x-learner.md").read_text().split("```yaml\n")[1].split("```")[0]
    shown = parse(Recipe, yaml_to_plain(text))
    student, hard = shown.student, shown.baselines["hard sharing"]
    images = {name: part.training.steps * part.training.batch for name, part in shown.baselines.items()}
    whole = student.training.steps * student.training.batch
    squeezed = student.squeeze.training.steps * student.squeeze.training.batch
    assert set(images.values()) == {whole + squeezed}
    assert hard.balance.build(shown.heads, (1, 1.0), {}).weights() == dict.fromkeys(shown.heads, 1 / len(shown.sources))
    for part in shown.baselines.values():
        assert part.training == student.training.but(steps=part.training.steps)
    assert shown.transfer


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["student.alone=5"], "5 steps alone are more than all 4"),
        (["student.hint_weight=3"], "hint_weight: there are no hints without"),
        (["student.squeeze={heads: [things]}"], "heads: without `labels` no head is learned"),
        (["student.tasks={v1.0: [catalogue]}"], "'v1.0' cannot be the name of a task"),
        (["student.tasks={a/b: [catalogue]}"], "'a/b' cannot be the name of a task"),
        (["student.tasks={keys: [catalogue]}"], "'keys' cannot be the name of a task"),
        (["student.tasks={'': [catalogue]}"], "'' cannot be the name of a task"),
        (["student.tasks={reconciliation: [catalogue]}"], "'reconciliation' cannot be the name of a task"),
        (["student.alone=4"], "no step is left for the reconciliation layers"),
        (["student.tasks={a: []}"], "a task needs a source"),
        (["student.tasks={a: [catalogue], b: [catalogue]}"], "the source 'catalogue' is under 'a' too"),
        (["student.tasks={a: [katalog]}"], "there is no source 'katalog'"),
        (["student.tasks={a: [pool]}"], "nobody labelled the source 'pool'"),
        (["student.squeeze={kind: pruning, keep: 1.0}"], "less than 1"),
        (["student.squeeze={kind: pruning, keep: 0}"], "greater than 0"),
        (["student.start=other"], "there is no other X-Learner 'other'"),
        (["student.labels=all"], "teachers: the head 'things' has no teacher; student learns it from indoors"),
        (["student.squeeze.labels=all"], "has no teacher; student.squeeze learns it from indoors"),
        (["student.squeeze={labels: human}", "sources.workshop.head=things"], "squeeze: no source labels the head"),
        (["student.squeeze={sources: [katalog]}"], "student.squeeze.sources: there is no source 'katalog'"),
        (["student.squeeze={labels: human, heads: [thing]}"], "student.squeeze.heads: there is no head 'thing'"),
        (["student.squeeze.fractions={katalog: 0.5}"], "student.squeeze.fractions: there is no source 'katalog'"),
        (
            ["student.squeeze={labels: human, sources: [catalogue, pool]}"],
            r"student.squeeze.heads: none of catalogue, pool labels places, parts, .*; take `heads: \[things\]`",
        ),
        (["leave_one_out=true"], "change a student of `kind: student`"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(settings, said):
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        changed(recipe(), settings)


@pytest.mark.parametrize("part", [StudentPart(), PLAIN.but(labels="all"), Distillation(labels="all")])
def test_pseudo_labels_without_a_teacher_are_refused_although_every_image_has_a_label(part):
    one = {"catalogue": world("catalogue", "classes", "things")}
    with pytest.raises(ValueError, match=r"student.labels: there are no pseudo labels without a teacher; take `human`"):
        Recipe(name="x", heads={"things": Classification()}, sources=one, student=part)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"training": STEPS.but(rate=0.1)}, "training"),
        ({"alone": 1}, "alone"),
        ({"reconciliation": None}, "reconciliation"),
        ({"specialists": STEPS}, "specialists"),
        ({"fractions": {"catalogue": 0.5}}, "fractions"),
        ({"backbones": {"segmentation": resnet(8, 8, 8, 8)}}, "backbones"),
        ({"tasks": {"a": ("catalogue",)}}, "tasks"),
        ({"labels": "all"}, "labels"),
    ],
)
@pytest.mark.parametrize("squeeze", [None, PLAIN.squeeze])
def test_an_expansion_that_was_made_otherwise_is_no_start(changes, field, squeeze):
    labels = {"teachers": {head: Trained(training=STEPS) for head in ("things", "places", "parts")}}
    with pytest.raises(UserError, match=f"baselines.other.{field}: it is not that of 'X-Learner'"):
        recipe().but(**labels, baselines={"other": PLAIN.but(start="X-Learner", squeeze=squeeze, **changes)})


def test_a_narrow_expansion_has_no_start_and_is_none():
    narrow = {"classification": resnet(8, 8, 8, 8), "segmentation": resnet(8, 8, 8, 8)}
    with pytest.raises(UserError, match="start: with `narrow`, the expansion comes last"):
        PLAIN.but(start="X-Learner", narrow=narrow)
    with pytest.raises(ValueError, match=r"baselines\.other\.narrow: it is not that of 'X-Learner'"):
        recipe(PLAIN.but(alone=None, narrow=narrow), other=PLAIN.but(alone=None, start="X-Learner"))
    with pytest.raises(UserError, match="alone: with `narrow`, each task is learned alone for all steps first"):
        PLAIN.but(narrow=narrow)


OTHER_FORMS = [None, Pruning(training=STEPS), Distillation(backbone=resnet(8, 8, 8, 8))]


@pytest.mark.parametrize("wide", [*({"squeeze": squeeze} for squeeze in OTHER_FORMS), {"narrow": "both"}])
def test_an_ordinary_network_does_not_start_from_one_of_another_form(opened, wide):
    wide = wide if "squeeze" in wide else {"narrow": NARROW, "alone": None}
    rows = {"wide": PLAIN.but(**wide), "on": StudentPart(training=STEPS, labels="human", start="wide")}
    with pytest.raises(UserError, match=r"what 'wide' delivers is of another form than 'on'"):
        check_starts(opened[0].but(baselines=rows), opened[1])
    teachers = {"parts": Trained(training=STEPS, start="wide")}
    with pytest.raises(UserError, match=r"what 'wide' delivers is of another form than 'teacher: parts'"):
        check_starts(opened[0].but(baselines={"wide": rows["wide"]}, teachers=teachers), opened[1])


def test_what_starts_from_an_expansion_has_it_unpruned_and_it_is_trained_once(tmp_path, monkeypatch):
    """A row that delivers the expansion itself, and a squeeze of it: both start from an X-Learner that is pruned."""
    squeezed = []
    inner = Squeeze.__init__

    def watched(self, student, expanded, *rest):
        squeezed.append(state_of(expanded._core))
        inner(self, student, expanded, *rest)

    monkeypatch.setattr(x_learner.Squeeze, "__init__", watched)
    asked = recipe(
        PLAIN.but(squeeze=Pruning(training=STEPS, keep=0.25)),
        expanded=PLAIN.but(start="X-Learner", squeeze=None),
        squeezed=PLAIN.but(start="X-Learner"),
    ).but(held_out={})
    with Run(tmp_path, asked, SILENT) as run:
        learned = must(run)
        made, lines = learned.made, [(row.name, row.init) for row in rows_of(run, learned)]
    assert made["expanded"].folder == made["X-Learner"].expansion.folder == tmp_path / "expansions/student"
    assert made["expanded"].stage.folder == tmp_path / "baselines/expanded"
    assert ("expanded", tmp_path / "expansions/student") in lines
    core = load_model(made["expanded"].folder).student.backbone.core
    whole, pruned = kept(core), kept(load_model(made["X-Learner"].folder).student.backbone.core)
    assert pruned.weights == round(0.25 * pruned.of) < whole.weights == whole.of
    own = state_of(core)
    assert all(squeezed[-1][name].equal(value) for name, value in own.items())
    trained = sorted(str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("curve.jsonl"))
    assert trained == ["baselines/squeezed", "expansions/student", "student"]
    cells = [row.split("<td>")[1:] for row in sizes(read_run(tmp_path)).split('<th scope="row">')[1:]]
    parts = [["reconciliation" in cell for cell in row] for row in cells]
    assert parts == [[True, True], [True, False], [False, False]], "expanded, squeezed, and the pruned one"
    assert cells[1][0].split()[0] == cells[0][0].split()[0], "a squeeze of another row's expansion was as large"


def state_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


NARROW = {"classification": resnet(8, 8, 8, 8), "segmentation": resnet(8, 8, 8, 8)}


@pytest.mark.parametrize(
    ("squeeze", "said"),
    [
        (None, "squeeze: with `narrow`, .* it cannot be null"),
        (Pruning(training=STEPS), "squeeze: with `narrow`, .* it cannot prune"),
        (Distillation(labels="human"), r"squeeze\.labels: with `narrow`, .*'human' would be ignored"),
        (Distillation(backbone=resnet(8, 8, 8, 8)), r"squeeze\.backbone: with `narrow`, .* one a task"),
    ],
)
def test_a_narrow_squeeze_refuses_what_it_would_not_do(squeeze, said):
    with pytest.raises(UserError, match=said):
        PLAIN.but(alone=None, narrow=NARROW, squeeze=squeeze)
    plain = PLAIN.but(alone=None, narrow=NARROW).plain() | {"squeeze": None if squeeze is None else squeeze.plain()}
    with pytest.raises(UserError, match=said):
        parse(XLearner, plain)


@pytest.mark.parametrize("tasks", [None, {"classification": ("catalogue", "indoors"), "segmentation": ("workshop",)}])
def test_a_narrow_squeeze_names_the_sources_of_the_tasks_or_none(opened, tasks):
    def groups(*sources: str) -> object:
        part = PLAIN.but(alone=None, tasks=tasks, narrow=NARROW, squeeze=Distillation(sources=sources, labels="none"))
        return tasks_of(opened[0], opened[1], part)

    known = tuple(name for name, source in opened[1].sources.items() if source.head is not None)
    if tasks is not None:
        known = tuple(name for names in tasks.values() for name in names)
    groups(*reversed(known))
    with pytest.raises(UserError, match="'workshop' is left out, which would be ignored") as caught:
        groups(*(name for name in known if name != "workshop"))
    assert caught.value.field == "squeeze.sources"
    with pytest.raises(UserError, match="'pool' is of no task"):
        groups(*known, "pool")


def test_the_narrow_sub_backbones_are_expanded_as_they_were_squeezed(tmp_path, monkeypatch):
    """Variant r: every one begins with the weights that its own task was squeezed into, statistics included."""
    began, inner = [], x_learner.expand
    taught, squeezed = {}, Squeeze.__init__

    def squeezing(self, student, expanded, teachers, levels):
        taught.update({task: state_of(frozen._maps) for task, frozen in teachers.items()})
        squeezed(self, student, expanded, teachers, levels)

    def watched(expansion, *rest, **named):
        began.append((rest[2], {task: state_of(branch) for task, branch in expansion.core.branches.items()}))
        inner(expansion, *rest, **named)

    monkeypatch.setattr(x_learner, "expand", watched)
    monkeypatch.setattr(x_learner.Squeeze, "__init__", squeezing)
    tutelage.run(recipe(PLAIN.but(alone=None, narrow=NARROW)).but(held_out={}), tmp_path, SILENT)
    (first, _), (second, started) = began
    assert (first, second) == (STEPS.steps, 0), "first all steps alone, then none"
    for task, branch in started.items():
        made = load_model(tmp_path / "narrow/student" / task).student.backbone.state_dict()
        assert branch.keys() == made.keys()
        assert all(branch[name].equal(value) for name, value in made.items()), task
        teacher = load_model(tmp_path / "expansions/student/tasks" / task).student.backbone.state_dict()
        assert taught[task].keys() == teacher.keys()
        assert all(taught[task][name].equal(value) for name, value in teacher.items()), task


def test_pseudo_labels_enter_the_expansion_and_the_squeeze(tmp_path, monkeypatch):
    """A source with labels for one task teaches the others as well, and so does a pool; a head that no person labelled
    is a task like any other."""
    student = PLAIN.but(labels="all", squeeze=Distillation(training=STEPS, labels="all"))
    teachers = dict.fromkeys(recipe().heads, Trained(training=STEPS))
    teachers["far"] = FunctionTeacher(make=near, task=Depth())
    # so young a teacher is unsure
    heads = {**recipe().heads, "parts": Segmentation(pseudo_threshold=0.01), "far": Depth()}
    asked = recipe().but(heads=heads, student=student, teachers=teachers, held_out={})
    seen: dict[str, set[tuple[str, str]]] = {"Expansion": set(), "Squeeze": set()}
    counted: dict[str, set[bool]] = {"Expansion": set(), "Squeeze": set()}
    for kind in (Expansion, Squeeze):

        def watched(self, batch, kind=kind, inner=kind.forward):
            found = inner(self, batch)
            for head, labelled in batch.heads.items():
                sources = [batch.ids[row].split("/")[0] for row in labelled.rows.tolist()]
                seen[kind.__name__] |= {(head, source) for source in sources}
                if head == "things":
                    counted[kind.__name__].add(float(found[head].count) == len(sources))
            return found

        monkeypatch.setattr(kind, "forward", watched)
    tutelage.run(asked, tmp_path, SILENT)
    every = {(head, source) for head in asked.heads for source in asked.sources}
    assert seen == {"Expansion": every, "Squeeze": every}
    assert counted == {"Expansion": {True}, "Squeeze": {True}}
    tasks = {path.name for path in (tmp_path / "expansions/student/tasks").iterdir()}
    assert tasks == {"classification", "segmentation", "depth"}
    *_, last = read_json_lines(tmp_path / "expansions/student/curve.jsonl")
    shares = {"things": 2, "places": 2, "parts": 2, "far": 1}  # people's sources, and one more for the teachers
    assert last["weights"] == {head: pytest.approx(n / 7) for head, n in shares.items()}


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> tuple[Recipe, Material]:
    """The recipe with a second source of its first head; and its material."""
    asked, folder = recipe(), tmp_path_factory.mktemp("scenes")
    asked = asked.but(sources={**asked.sources, "more": world("catalogue", "classes", "things", seed=3)})
    return asked, open_material(asked, Place(folder, folder))


class Upright(TinyMaps):
    """A backbone for images of its own size alone."""

    def forward(self, images):
        if images.shape[2] != 64:
            raise ValueError("64 pixels are wanted")
        return super().forward(images)


class ForLarge(Tiny):
    kind: Literal["for-large"] = "for-large"

    @property
    def pretrained(self) -> bool:
        return True

    def build(self, root=None):
        return Upright()


class OwnMaps(TinyMaps):
    """The toy backbone, which can be cut between its maps."""

    def cut(self):
        return [self.stem, *self.stages]


class Own(Tiny):
    kind: Literal["own"] = "own"

    def build(self, root=None):
        return OwnMaps()


class OwnNarrow(Own):
    kind: Literal["own narrow"] = "own narrow"


def test_sub_backbones_of_the_users_own_are_read_back_by_whatever_follows_the_expansion(tmp_path):
    part = PLAIN.but(backbones={"classification": Own()})
    narrow = {"classification": OwnNarrow(), "segmentation": resnet(8, 8, 8, 8)}
    parts = ("train", "validation", "test")
    bright = {n: Brightness(head="level", label="class", images=6, first=9 * i) for i, n in enumerate(parts)}
    asked = recipe(
        part,
        pruned=part.but(start="X-Learner", squeeze=Pruning(training=STEPS)),
        narrow=part.but(alone=None, narrow=narrow),
        other=part.but(start="X-Learner", squeeze=Distillation(training=STEPS, backbone=OwnNarrow())),
    ).but(
        transfer={"level": TransferSet(head=Classification(), **bright)},
        finetuning=FineTuning(training=STEPS, rates=(0.05,), steps=(2,)),
    )
    tutelage.run(asked, tmp_path, SILENT)
    measured = [m for m in read_run(tmp_path).measurements if m.metric == "top-1" and not m.control]
    cells = {(row, column) for row in ("pruned", "narrow", "other", "X-Learner") for column in ("level", "things")}
    assert {(m.row, m.column) for m in measured if m.value is not None} == cells
    for folder, own in (("expansions/student", Own), ("baselines/pruned", Own), ("baselines/narrow", OwnNarrow)):
        backbone = load_model(tmp_path / folder, backbones=[Own, OwnNarrow]).student.model.backbone
        assert isinstance(backbone.branches["classification"], own)
        assert backbone.branches["segmentation"].kind == "timm"
    assert load_model(tmp_path / "baselines/other", backbones=[OwnNarrow]).student.model.backbone == OwnNarrow()
    with pytest.raises(UserError, match=r"branches\.classification: 'own' is not known"):
        load_model(tmp_path / "expansions/student")


def test_all_that_labels_a_head_counts_in_the_average_over_sources(opened):
    """Equation 1: N_t sources a task; all pseudo labels of a head are one more."""
    asked, material = opened
    assert counted(PLAIN, tasks_of(asked, material, PLAIN)) == {"things": 2, "places": 1, "parts": 1}
    every = PLAIN.but(labels="all")
    with_depth = replace(material, heads={**material.heads, "far": Depth()})
    groups = tasks_of(asked, with_depth, every)
    assert counted(every, groups) == {"things": 3, "places": 2, "parts": 2, "far": 1}
    assert list(groups["depth"].heads) == ["far"]
    assert "depth" not in tasks_of(asked, with_depth, PLAIN)
    assert "depth" not in tasks_of(asked, with_depth, every.but(tasks={"a": ("catalogue",)}))
    assert list(specialised(groups)) == ["things", "places", "parts"], "people labelled nothing for the fourth"
    narrow = every.but(alone=None, narrow={**NARROW, "depth": resnet(8, 8, 8, 8)})
    with pytest.raises(UserError, match="the task 'depth' has no source, and with `narrow`"):
        tasks_of(asked, with_depth, narrow)


class Vivid(Own):
    """Weights of its own that want their colours otherwise."""

    kind: Literal["vivid"] = "vivid"

    @property
    def pretrained(self) -> bool:
        return True

    def normalisation(self):
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


OTHER_LEVELS = Timm(name="resnet18", options={"layers": [1, 1, 1, 1], "output_stride": 8})
TWO = {"a": ("catalogue",), "b": ("workshop",)}


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (PLAIN.but(tasks=TWO, backbones={"b": Tiny()}), "'b' cannot be joined"),
        (PLAIN.but(tasks=TWO, backbones={"b": OTHER_LEVELS}), "'a' and 'b' do not have the same levels"),
        (PLAIN.but(tasks=TWO, backbones={"b": Timm(name="resnet18", weights="gone.pth")}), "gone.pth"),
        (PLAIN.but(tasks={"a": ("catalogue",), "b": ("more",)}), "the head 'things' is of two tasks, 'a' and 'b'"),
        (PLAIN.but(backbones={"depth": resnet(8, 8, 8, 8)}), "there is no task 'depth'"),
        (PLAIN.but(tasks={"a": ("catalogue",)}, squeeze=Pruning(training=STEPS)), "there is one sub-backbone alone"),
        (
            PLAIN.but(alone=None, narrow=NARROW, squeeze=Distillation(teachers={"segmentation": ForLarge()})),
            "'segmentation' is both a task and a foreign teacher",
        ),
        (PLAIN.but(specialists=STEPS, hint_levels=5), "the specialist of 'things' has 4 maps"),
        (
            PLAIN.but(alone=None, narrow={"classification": resnet(8, 8, 8, 8)}),
            "'segmentation' has no narrow sub-backbone",
        ),
        (
            PLAIN.but(alone=None, narrow={"classification": resnet(8, 8, 8, 8), "segmentation": OTHER_LEVELS}),
            "do not have the same levels",
        ),
        (PLAIN.but(squeeze=Distillation(levels=5)), "the student has 4 maps"),
        (PLAIN.but(squeeze=Distillation(backbone=Timm(name="resnet18", weights="gone.pth"))), "gone.pth"),
        (PLAIN.but(squeeze=Distillation(teachers={"segmentation": ForLarge()})), "both a task of the expanded"),
        (PLAIN.but(squeeze=Distillation(teachers={"large": ForLarge()})), "'large' cannot look at images of 32 x 32"),
        (Distillation(teachers={"large": ForLarge()}), "'large' cannot look at images of 32 x 32"),
        (Distillation(), "nobody whose features the student could learn"),
    ],
)
def test_networks_that_do_not_fit_are_refused(opened, part, said):
    asked = opened[0].but(student=part)
    with pytest.raises(UserError, match=said) as caught:
        rehearse_all(asked, opened[1])
    assert caught.value.record == "student"


def test_a_teacher_of_features_without_weights_is_named():
    teachers = {"large": ForLarge(), "random": Tiny()}
    with pytest.raises(ValueError, match=r"teachers\.random: a teacher of features needs weights"):
        Distillation(teachers=teachers)
    plain = recipe().plain()
    plain["student"]["squeeze"]["teachers"] = {"net": {"kind": "timm", "name": "resnet18"}}
    with pytest.raises(UserError, match=r"student\.squeeze: .*teachers\.net: a teacher of features needs weights"):
        parse(Recipe, plain)


def test_they_are_refused_before_anything_is_trained(tmp_path):
    """Not after the baselines and the teachers, which come first."""
    hard = StudentPart(training=STEPS, heads=("things",), labels="human")
    asked = recipe(PLAIN.but(squeeze=Distillation(levels=5)), hard=hard)
    asked = asked.but(teachers={"things": Trained(training=STEPS)})
    with pytest.raises(UserError, match="the student has 4 maps"):
        tutelage.run(asked, tmp_path, SILENT)
    assert {path.parent.name for path in tmp_path.rglob("stage.json")} <= {"seen"}
    assert not (tmp_path / "baselines").exists()
    lines = list(check(asked, show=1))
    assert any(wrong and line.startswith("student: the student has 4") for line, wrong in lines), lines


@pytest.mark.parametrize("part", [PLAIN, PLAIN.but(specialists=STEPS, squeeze=Pruning(training=STEPS))])
def test_what_fits_is_put_together_without_a_weight_and_without_a_draw_of_chance(opened, part, monkeypatch):
    built_on = []
    inner = Squeeze.__init__

    def watched(self, student, *rest):
        built_on.append(student.device.type)
        inner(self, student, *rest)

    monkeypatch.setattr(rehearsal.Squeeze, "__init__", watched)
    before = torch.get_rng_state()
    rehearse(*opened, part)
    assert torch.get_rng_state().equal(before)
    assert built_on == (["meta"] if isinstance(part.squeeze, Distillation) else [])


TEXT = """
name: mine
heads: {things: {task: classification}, objects: {task: detection}}
sources:
  things: {format: folders, root: things, head: things}
  photos: {format: coco, images: photos, annotations: photos.json, head: objects}
"""


def written(student: str, settings: list[str] | None = None) -> XLearner | Distillation:
    """The student of a recipe's text, which its whole text form gives back."""
    plain = yaml_to_plain(f"{TEXT}student: {student}\n")
    found = parse(Recipe, override(plain, settings or [], Recipe))
    assert parse(Recipe, yaml_to_plain(to_yaml(found.plain()))) == found
    return found.student


def published(**said) -> dict:
    """Section 4.1, number by number, but for what is said."""
    values = {"optimiser": "sgd", "momentum": 0.9, "weight_decay": 1e-4, "rate": 0.2, "clip": None, "warmup": 0}
    values |= {"schedule": "steps", "drops": ((0.5, 0.5), (0.7, 0.2), (0.9, 0.1)), "steps": 10_000, "batch": 256}
    return values | said


def shown(training: Training) -> dict:
    return {name: getattr(training, name) for name in published()}


LENGTH = {"steps": 7000, "batch": 64}


@pytest.mark.parametrize(
    ("text", "settings", "expansion", "squeeze"),
    [
        ("{kind: x-learner}", [], {}, {}),
        ("{kind: x-learner, training: {steps: 7000, batch: 64}}", [], LENGTH, LENGTH),
        ("{kind: x-learner}", ["student.training.steps=7000", "student.training.batch=64"], LENGTH, LENGTH),
        (
            "{kind: x-learner, training: {steps: 7000, batch: 64}, squeeze: {labels: human, training: {steps: 9}}}",
            [],
            LENGTH,
            LENGTH | {"steps": 9},
        ),
        ("{kind: x-learner}", ["student.squeeze.training.batch=8"], {}, {"batch": 8}),
        ("{kind: x-learner, training: {rate: 0.3}, squeeze: {kind: pruning}}", [], {"rate": 0.3}, {"rate": 0.3 / 10}),
        ("{kind: x-learner, squeeze: {kind: pruning, training: {rate: 0.3}}}", [], {}, {"rate": 0.3}),
        (
            "{kind: x-learner, training: {schedule: cosine}, squeeze: {training: {clip: 1.0}}}",
            [],
            {"schedule": "cosine"},
            {"schedule": "cosine", "clip": 1.0},
        ),
    ],
)
def test_what_a_text_leaves_out_of_a_schedule_is_as_published_and_the_squeeze_follows(
    text, settings, expansion, squeeze
):
    found = written(text, settings)
    assert shown(found.training) == published(**expansion)
    assert shown(found.squeeze.training) == published(**squeeze)
    assert found.squeeze.kind == ("pruning" if "pruning" in text else "distillation")


def test_distillation_alone_and_specialists_are_trained_as_published():
    assert shown(written("{kind: distillation, training: {steps: 5}}").training) == published(steps=5)
    assert shown(written("{kind: x-learner, specialists: {batch: 5}}").specialists) == published(batch=5)
    assert written("{kind: x-learner, squeeze: null}").squeeze is None


def test_tau_is_a_third_of_the_steps_where_nobody_says_it():
    assert XLearner(training=STEPS.but(steps=3000)).tau == 1000
    assert XLearner(training=STEPS.but(steps=1)).tau == 0
    assert XLearner(training=STEPS.but(steps=9), alone=4).tau == 4


def test_a_squeeze_that_was_given_a_training_keeps_it():
    assert XLearner(training=STEPS, alone=1).squeeze.training == STEPS
    assert XLearner(training=STEPS, alone=1, squeeze=Distillation(levels=2)).squeeze.but(levels=1).training == STEPS
    own = STEPS.but(steps=9)
    assert XLearner(training=STEPS, alone=1, squeeze=Distillation(training=own)).squeeze.training == own


@pytest.mark.parametrize(
    ("text", "settings", "said"),
    [
        ("{kind: x-learner, training: {stepps: 4}}", [], "student.training: unknown key 'stepps', did you mean"),
        ("{kind: x-learner, training: {steps: none}}", [], "student.training.steps: "),
        ("{kind: x-learner, squeeze: {kind: prunning}}", [], "'prunning' is not known, did you mean 'pruning'"),
        ("{kind: x-learner}", ["student.trainig.steps=4"], "there is no key 'trainig'"),
        ("{kind: x-learner}", ["baselines.hard.training.steps=4"], "there is no key 'hard'"),
    ],
)
def test_a_text_that_cannot_be_meant_is_refused(text, settings, said):
    with pytest.raises(UserError, match=said):
        written(text, settings)


@pytest.mark.parametrize(
    ("part", "steps"),
    [
        (PLAIN.but(squeeze=None), 4),
        (PLAIN.but(specialists=STEPS.but(steps=3), squeeze=Pruning(training=STEPS.but(steps=2))), 4 + 3 * 3 + 2),
        (PLAIN.but(alone=None, narrow=NARROW, specialists=STEPS), 4 + 3 * 4 + 4 + 4),
        (PLAIN.but(start="other", squeeze=None), 0),
        (PLAIN.but(start="other"), 4),
    ],
)
def test_the_bar_counts_the_images_of_all_trainings(opened, part, steps):
    assert sum(training.steps for training in trainings_of(*opened, part)) == steps


def test_a_plan_names_every_training():
    narrow = {"classification": resnet(8, 8, 8, 8), "segmentation": resnet(8, 8, 8, 8)}
    plus = PLAIN.but(specialists=STEPS.but(steps=3))
    asked = recipe(
        plus,
        first=PLAIN.but(alone=None, narrow=narrow),
        pruned=plus.but(start="X-Learner", squeeze=Pruning(training=STEPS.but(steps=2))),
    )
    found = {training.name: training.steps for training in measure(asked, seconds=1).trainings}
    assert found == {
        "first: expansion": 4,
        "first: teachers": 4,
        "first: squeeze": 4,
        "pruned: pruned": 2,
        "student: expansion": 4,
        "student: specialists": 9,
        "student: squeeze": 4,
    }
