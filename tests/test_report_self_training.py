"""What a report says of self-training: rows and columns in plain words, and a verdict no kinder than the figures."""

from __future__ import annotations

from typing import Any

import pytest

from tutelage.part import yaml_to_plain
from tutelage.recipes import RECIPES
from tutelage.report.folder import RunFolder
from tutelage.report.page import page
from tutelage.report.self_training import Halves
from tutelage.report.tables import Measurement, main_table
from tutelage.report.verdict import verdict
from tutelage.transfer.statistics import Comparison

RECIPE = """
name: mine
heads: {things: {task: retinanet}}
student: {self_training: {ratio: [1, 3]}, start: "teacher: things"}
baselines:
  longer: {labels: human, start: "teacher: things", sources: [few]}
  weights: {labels: human, sources: [pool], heads: [classes]}
  contrast: {kind: simclr}
  joint: {labels: human, self_training: {head: things}, heads: [things, classes]}
study: {weak: [], strong: [], mixed: []}
"""


def measured(**rows: list[list[float]]) -> list[Measurement]:
    """Rows by name: a list of seeds' figures for each column."""
    return [
        Measurement("upstream", row.replace("_", " "), ("weak", "strong", "mixed")[column], "AP50", value, seed=seed)
        for row, columns in rows.items()
        for column, values in enumerate(columns)
        for seed, value in enumerate(values)
    ]


def halves(**changes: Any) -> Halves:
    found = Halves.of(yaml_to_plain(RECIPE) | changes)
    assert found is not None
    return found


def test_only_a_student_that_trains_itself_has_these_words():
    assert Halves.of({}) is None
    assert Halves.of({"student": {"self_training": None}, "baselines": None}) is None
    assert Halves.of({"student": "nonsense"}) is None
    assert Halves.of(RECIPES["demo"]().plain()) is None
    told = Halves.of(RECIPES["zoph-table7"]().plain())
    assert told is not None
    assert told.longer == ("supervised, as long",)


def test_rows_are_told_in_plain_words():
    rows = halves().rows
    assert rows["teacher"] == "supervised learning: the labels that people gave"
    assert rows["student"] == "self-training: human and pseudo labels, 1 to 3, going on from the teacher"
    assert rows["longer"] == "the labels that people gave, on few, going on from the teacher"
    assert rows["weights"] == "the labels that people gave, on pool"
    assert rows["contrast"] == "SimCLR, without labels"
    assert rows["joint"] == "joint training: the labels that people gave of things and classes"
    table = main_table(measured(teacher=[[1.0]], student=[[2.0]]), "upstream")
    listed = halves(baselines={"<b>": {"labels": "human"}}).listing(table)
    assert listed.count("<li>") == 2, "rows that the table does not have are not explained"


def test_the_verdict_names_columns_gains_and_what_the_seeds_say():
    table = main_table(
        measured(
            teacher=[[20.0, 22.0], [20.0, 22.0], [20.0, 22.0]],
            longer=[[25.0, 25.0], [25.0, 25.0], [25.0, 25.0]],
            student=[[24.0, 25.0], [25.0, 21.0], [19.0, 20.0]],
        ),
        "upstream",
    )
    heading, first, seeds, longer, too = halves().verdict(table)
    assert heading == (
        "The gain of self-training over its teacher does not hold against equal training in weak and strong; "
        "there is none that can be told in mixed."
    )
    # by hand: 24.5, 23.0 and 19.5 against 21.0
    assert first == (
        "Self-training against supervised learning (the student, its teacher): better in weak and strong; "
        "worse in mixed; +1.3 AP50 on average."
    )
    assert seeds == "Every seed shows the same direction in 2 of these 3 columns."
    assert longer.startswith("Against 'longer', which went on from the same teacher without it: worse in all 3 columns")
    assert too == "Every seed shows the same direction in 1 of these 3 columns.", "24 < 25 = 25 is no agreement"
    assert verdict(None, table, [first])[0] == first
    assert "the one student" in verdict(None, table)[0]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"teacher": [[5.0]], "student": [[5.0]]}, "level in weak."),
        ({"teacher": [[5.0], [6.0]], "student": [[7.0], [8.0]]}, "better in both columns; +2.00 AP50 on average."),
        ({"teacher": [[5.0, 6.0]], "student": [[7.0, 5.5]]}, "The seeds do not agree on any of these differences."),
        ({"teacher": [[5.0, 6.0]], "student": [[7.0, 6.0]]}, "The seeds do not agree on any of these differences."),
    ],
)
def test_few_columns_and_seeds(rows, words):
    assert words in " ".join(halves(baselines={}).verdict(main_table(measured(**rows), "upstream")))


def test_every_round_is_told_from_the_one_before_it():
    rows = {"teacher": [[20.0, 21.0]], "student": [[25.0, 26.0]], "student,_round_2": [[24.0, 25.5]]}
    table = main_table(measured(**rows, **{"student,_round_3": [[28.0, 29.0]]}), "upstream")
    said = halves().verdict(table)
    first, second, third = said[-5], said[-3], said[-1]
    assert first.startswith("Round 2 against the round before it: worse in weak")
    assert second.startswith("Round 3 against the round before it: better in weak")
    assert "no row shows as much of it" in third
    assert not [
        text for text in halves().verdict(main_table(measured(**{"student": [[25.0]]}), "upstream")) if "ound" in text
    ]


def test_nothing_measured_says_nothing():
    assert halves().verdict(None) == []
    assert halves().verdict(main_table(measured(teacher=[[5.0]]), "upstream")) == []


def test_the_page_speaks_of_self_training(tmp_path):
    found = tuple(measured(teacher=[[20.0, 22.0]], longer=[[21.0, 20.0]], student=[[24.0, 25.0]]))
    run = RunFolder(tmp_path, RECIPE, yaml_to_plain(RECIPE), found, (), {}, ())
    text = page(run, {"upstream": main_table(found, "upstream")})
    for words in (
        "Supervised learning against self-training",
        "a column is a variant of the recipe",
        "<li>longer: the labels that people gave, on few, going on from the teacher</li>",
        "better in weak.",
        "Every seed shows the same direction.",
    ):
        assert words in text
    assert "specialist" not in text
    plain = run.recipe | {"student": {}}
    assert "Teacher against student" in page(
        RunFolder(tmp_path, "", plain, found, (), {}, ()), {"upstream": main_table(found, "upstream")}
    )


def test_intervals_say_what_is_beyond_the_noise():
    ways = {"weak": (1.0, 2.0), "mixed": (-1.0, 2.0), "strong": (-2.0, -1.0)}

    def judge(row, other, column, metric):
        return Comparison(0.5, *ways[column], 2, 10)

    found = measured(teacher=[[20.0], [20.0], [20.0]], student=[[21.0], [21.0], [19.0]])
    sentences = halves(baselines={}).verdict(main_table(found, "upstream", judge))
    assert sentences[0] == (
        "The gain of self-training over its teacher may be that of the longer training alone, as no row shows equal "
        "training, in weak; there is none that can be told in strong and mixed."
    )
    assert "; AP50 +1.0 [+1.0, +2.0] in weak, +1.0 [−2.0, −1.0] in strong" in sentences[1]
    assert sentences[2] == "By the 95% intervals, what is beyond the noise: weak and strong."
    ways["mixed"] = (0.5, 2.0)
    assert "all of it is beyond" in halves(baselines={}).verdict(main_table(found, "upstream", judge))[2]
    ways |= dict.fromkeys(ways, (-1.0, 1.0))
    sentences = halves(baselines={}).verdict(main_table(found, "upstream", judge))
    assert sentences[0] == "Self-training gains nothing over its teacher that can be told."
    assert "all of it is inside" in sentences[2]


def test_every_row_with_a_figure_is_compared_and_a_gain_is_held_against_equal_training():
    table = main_table(
        measured(
            teacher=[[20.0], [20.0], [20.0]],
            longer=[[21.0], [23.0], [22.0]],
            brief=[[30.0], [30.0], [30.0]],
            joint=[[25.0], [19.0], [22.0]],
            student=[[22.0], [22.0], [22.0]],
        ),
        "upstream",
    )
    part = yaml_to_plain(RECIPE)
    rows = part["baselines"] | {"brief": part["baselines"]["longer"] | {"training": {"steps": 9}}}
    rows["longer"] = rows["longer"] | {"training": {"steps": 10}}
    told = halves(baselines=rows, student=part["student"] | {"training": {"steps": 10}})
    assert told.longer == ("longer",), "fewer steps are no equal training"
    sentences = told.verdict(table)
    assert sentences[0] == (
        "The gain of self-training over its teacher holds against equal training in weak; cannot be told from that of "
        "equal training in mixed; does not hold against equal training in strong."
    )
    assert "Against 'joint': better in strong; level in mixed; worse in weak; ±0.0 AP50 on average." in sentences
    assert "Against 'brief': worse in all 3 columns; −8.0 AP50 on average." in sentences
    assert not any("'weights'" in sentence or "'contrast'" in sentence for sentence in sentences), "they have no figure"


@pytest.mark.parametrize("name", ["zoph-table7", "zoph-table8"])
def test_joint_and_noisy_rows_of_the_built_in_tables_get_a_sentence(name):
    recipe = RECIPES[name]().plain()
    rows = [row for row in recipe["baselines"] if row not in ("ImageNet",)]
    figures = {row: [[1.0], [2.0]] for row in ["teacher", *rows, "student"]}
    found = [
        Measurement("upstream", row, column, "AP50", value[0])
        for row, columns in figures.items()
        for column, value in zip(("a", "b"), columns, strict=True)
    ]
    told = Halves.of(recipe)
    assert told is not None
    sentences = told.verdict(main_table(found, "upstream"))
    for row in rows:
        assert sum(sentence.startswith(f"Against '{row}'") for sentence in sentences) == 1
