"""What a run of self-training says in its report: supervised learning against self-training, row by row (Zoph et al.,
NeurIPS 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from tutelage.recipe import TEACHER
from tutelage.report.folder import mapping
from tutelage.report.tables import Table
from tutelage.report.verdict import listed, names

TITLE = "Supervised learning against self-training"
_TEACHER, _STUDENT = "teacher", "student"
_ROUND = f"{_STUDENT}, round "
"""What the names of the students of further rounds begin with."""
_HOLDS: Mapping[int | None, str] = {
    1: "holds against equal training",
    0: "cannot be told from that of equal training",
    -1: "does not hold against equal training",
    None: "may be that of the longer training alone, as no row shows equal training,",
}
"""What is said of a gain over the teacher by how the student compares with equal training."""

_FEW = 3
"""Columns, at most, of which every difference is told with its interval."""


@dataclass(frozen=True)
class Halves:
    """A recipe whose student trains itself, as its table needs it told.

    Attributes:
        rows: name of a row to what it is, in plain words.
        longer: rows that went on from the teacher on human labels alone, for at least as many steps as the student did
            on both: equal training.
        variants: whether the columns are variants of a study; else they are heads.
    """

    rows: Mapping[str, str]
    longer: tuple[str, ...]
    variants: bool

    @classmethod
    def of(cls, recipe: Mapping[str, Any]) -> Halves | None:
        """From a recipe's plain values; None where the student does not train itself."""
        student = mapping(recipe.get("student"))
        if not mapping(student.get("self_training")):
            return None
        parts = {str(name): mapping(part) for name, part in mapping(recipe.get("baselines")).items()}
        rows = {_TEACHER: "supervised learning: the labels that people gave"}
        rows |= {name: _about(part) for name, part in parts.items()}
        rows[_STUDENT] = _about(student)
        steps = _steps(student)
        longer = [
            name for name, part in parts.items() if _alone(part) and _from_teacher(part) and _steps(part) >= steps
        ]
        return cls(rows, tuple(longer), bool(recipe.get("study")))

    @property
    def lead(self) -> str:
        """What rows and columns are."""
        columns = "a column is a variant of the recipe" if self.variants else "a column is a head"
        return (
            "A row is a way of training and "
            f"{columns}; figures are of held-out images that nothing learned from. The teacher is supervised learning, "
            "the student is self-training, and the figures in brackets are gains over the teacher of the same column."
        )

    def listing(self, table: Table) -> str:
        """The rows of a table, explained: HTML."""
        known = [(row, self.rows[row]) for row in table.rows if row in self.rows]
        lines = "".join(f"<li>{escape(row)}: {escape(words)}</li>" for row, words in known)
        return f'<ul class="note">{lines}</ul>' if lines else ""

    def verdict(self, table: Table | None) -> list[str]:
        """Sentences on the table: what holds, then the student against every other row; none without a table."""
        if table is None:
            return []
        sentences = self._heading(table)
        sentences += _against(table, _TEACHER, "Self-training against supervised learning (the student, its teacher)")
        for row in self.longer:
            sentences += _against(table, row, f"Against '{row}', which went on from the same teacher without it")
        for row in self.rows:
            if row not in (_TEACHER, _STUDENT, *self.longer):
                sentences += _against(table, row, f"Against '{row}'")
        before = _STUDENT
        for row in (row for row in table.rows if row.startswith(_ROUND)):
            sentences += _against(table, before, f"Round {row.removeprefix(_ROUND)} against the round before it", row)
            before = row
        if before != _STUDENT:
            sentences.append("A further round is further training, and no row shows as much of it on human labels.")
        return sentences

    def _heading(self, table: Table) -> list[str]:
        """Whether the gain over the teacher is more than equal training would have gained."""
        ways = {c: _way(table, _TEACHER, c) for c in range(len(table.columns))}
        known = [c for c, way in ways.items() if way is not None]
        gained = [c for c in known if ways[c] == 1]
        if not gained:
            return ["Self-training gains nothing over its teacher that can be told."] if known else []
        rival = {c: table.best_of(self.longer, c) for c in gained}
        of: dict[str, list[int]] = {}
        for c in gained:
            row = rival[c]
            way = None if row is None else _way(table, row, c)
            of.setdefault(_HOLDS[way], []).append(c)
        parts = [f"{words} in {_where(table, of[words], len(known))}" for words in _HOLDS.values() if words in of]
        if len(gained) < len(known):
            none = [c for c in known if c not in gained]
            parts.append(f"there is none that can be told in {_where(table, none, len(known))}")
        return [f"The gain of self-training over its teacher {'; '.join(parts)}."]


def _way(table: Table, other: str, column: int) -> int | None:
    """1 where the student is better than another row, -1 where it is worse, 0 where that cannot be told; by the
    interval where it is known, else by the figures. None without figures."""
    sure = table.clearly(_STUDENT, other, column)
    return table.compare(_STUDENT, other, column) if sure is None else sure


def _where(table: Table, columns: Sequence[int], total: int) -> str:
    """Columns out of so many, in words."""
    if len(columns) == total > 1:
        return "both columns" if total == 2 else f"all {total} columns"
    return names(table, columns)


def _against(table: Table, other: str, words: str, row: str = _STUDENT) -> list[str]:
    """A row against another one: where it is better, by how much, and what of that is beyond the noise."""
    outcome = {c: table.compare(row, other, c) for c in range(len(table.columns))}
    known = [c for c, result in outcome.items() if result is not None]
    if not known:
        return []
    parts = []
    for word, sign in (("better", 1), ("level", 0), ("worse", -1)):
        of = [c for c in known if outcome[c] == sign]
        parts += [f"{word} in {_where(table, of, len(known))}"] if of else []
    parts += _differences(table, row, other, known)
    return [f"{words}: {'; '.join(parts)}.", *_sure(table, row, other, [c for c in known if outcome[c]])]


def _differences(table: Table, row: str, other: str, columns: Sequence[int]) -> list[str]:
    """A row less another one: in a few columns each with its interval, else on average; of one metric."""
    metrics = {table.columns[c].metric for c in columns}
    if len(metrics) > 1:
        return []
    gains = [table.difference(row, other, c) or 0.0 for c in columns]
    intervals = [table.interval(row, other, c) for c in columns]
    if len(columns) <= _FEW and None not in intervals:
        told = []
        for c, gain, found in zip(columns, gains, intervals, strict=True):
            assert found is not None
            about = table.columns[c]
            span = f"[{about.signed(found.low)}, {about.signed(found.high)}]"
            told.append(f"{about.signed(gain)} {span}" + (f" in {about.name}" if len(columns) > 1 else ""))
        return [f"{metrics.pop()} {', '.join(told)}"]
    if len(columns) < 2:
        return []
    return [f"{table.columns[columns[0]].signed(sum(gains) / len(gains))} {metrics.pop()} on average"]


def _sure(table: Table, row: str, other: str, columns: Sequence[int]) -> list[str]:
    """Which of these differences the intervals leave; where there are none, whether the seeds agree."""
    judged = {c: table.clearly(row, other, c) for c in columns}
    if not judged or any(way is None for way in judged.values()):
        return _agreement(table, row, other, columns)
    clear = [table.columns[c].name for c, way in judged.items() if way]
    if not clear:
        return ["By the 95% intervals, all of it is inside the noise."]
    if len(clear) == len(judged):
        return ["By the 95% intervals, all of it is beyond the noise."]
    return [f"By the 95% intervals, what is beyond the noise: {listed(clear)}."]


def _agreement(table: Table, row: str, other: str, columns: Sequence[int]) -> list[str]:
    """In how many of these columns every seed shows the same direction; nothing where seeds failed, or there is one."""
    pairs = [table.pairs(row, other, c) for c in columns]
    if not pairs or any(len(seeds) < 2 for seeds in pairs):
        return []
    same = [len({(a > b) - (a < b) for a, b in seeds}) == 1 for seeds in pairs]
    if all(same):
        return ["Every seed shows the same direction."]
    if not any(same):
        return ["The seeds do not agree on any of these differences."]
    return [f"Every seed shows the same direction in {sum(same)} of these {len(same)} columns."]


def _about(part: Mapping[str, Any]) -> str:
    """A pre-training in plain words."""
    if part.get("kind") == "simclr":
        return "SimCLR, without labels"
    halves, human = bool(mapping(part.get("self_training"))), part.get("labels") == "human"
    heads = [str(head) for head in part.get("heads") or ()]
    both = f" of {listed(heads)}" if len(heads) > 1 else ""
    if halves and human:
        words = f"joint training: the labels that people gave{both}"
    elif halves:
        ratio = mapping(part.get("self_training")).get("ratio") or (1, 1)
        words = f"self-training: human and pseudo labels{both}, {ratio[0]} to {ratio[1]}"
    else:
        words = f"{'the labels that people gave' if human else 'human and pseudo labels'}{both}"
    sources = [str(name) for name in part.get("sources") or ()]
    words += f", on {listed(sources)}" if sources else ""
    start = part.get("start")
    if _from_teacher(part):
        return f"{words}, going on from the teacher"
    return f"{words}, going on from '{start}'" if start else words


def _alone(part: Mapping[str, Any]) -> bool:
    return part.get("labels") == "human" and not mapping(part.get("self_training"))


def _steps(part: Mapping[str, Any]) -> int:
    """Of a training; 0 where they are not stated."""
    steps = mapping(part.get("training")).get("steps")
    return steps if isinstance(steps, int) else 0


def _from_teacher(part: Mapping[str, Any]) -> bool:
    return str(part.get("start") or "").startswith(TEACHER)
