"""What a run of self-training says in its report: supervised learning against self-training, row by row (Zoph et al.,
NeurIPS 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from tutelage.report.tables import Table
from tutelage.report.verdict import listed

TITLE = "Supervised learning against self-training"
_TEACHER, _STUDENT, _START = "teacher", "student", "teacher: "


@dataclass(frozen=True)
class Halves:
    """A recipe whose student trains itself, as its table needs it told.

    Attributes:
        rows: name of a row to what it is, in plain words.
        longer: rows that went on from the teacher on human labels alone, as the student did on both.
        variants: whether the columns are variants of a study; else they are heads.
    """

    rows: Mapping[str, str]
    longer: tuple[str, ...]
    variants: bool

    @classmethod
    def of(cls, recipe: Mapping[str, Any]) -> Halves | None:
        """From a recipe's plain values; None where the student does not train itself."""
        student = _mapping(recipe.get("student"))
        if not _mapping(student.get("self_training")):
            return None
        parts = {str(name): _mapping(part) for name, part in _mapping(recipe.get("baselines")).items()}
        rows = {_TEACHER: "supervised learning: the labels that people gave"}
        rows |= {name: _about(part) for name, part in parts.items()}
        rows[_STUDENT] = _about(student)
        longer = [name for name, part in parts.items() if _alone(part) and _from_teacher(part)]
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
        """Sentences on the table; none where there is none, or teacher or student has no figure."""
        if table is None:
            return []
        sentences = _against(table, _TEACHER, "Self-training against supervised learning (the student, its teacher)")
        for row in self.longer:
            sentences += _against(table, row, f"Against '{row}', which went on from the same teacher without it")
        return sentences


def _against(table: Table, other: str, words: str) -> list[str]:
    """The student against another row: where it is better, by how much, and what of that is beyond the noise."""
    outcome = {c: table.compare(_STUDENT, other, c) for c in range(len(table.columns))}
    known = [c for c, result in outcome.items() if result is not None]
    if not known:
        return []
    parts = []
    for word, sign in (("better", 1), ("level", 0), ("worse", -1)):
        named = [table.columns[c].name for c in known if outcome[c] == sign]
        if named:
            everywhere = "both columns" if len(known) == 2 else f"all {len(known)} columns"
            parts.append(f"{word} in {everywhere if len(named) == len(known) > 1 else listed(named)}")
    text = f"{words}: {'; '.join(parts)}"
    metrics = {table.columns[c].metric for c in known}
    if len(known) > 1 and len(metrics) == 1:
        gains = [(table.mean(_STUDENT, c) or 0.0) - (table.mean(other, c) or 0.0) for c in known]
        text += f"; {table.columns[known[0]].signed(sum(gains) / len(gains))} {metrics.pop()} on average"
    return [f"{text}.", *_sure(table, other, [c for c in known if outcome[c]])]


def _sure(table: Table, other: str, columns: Sequence[int]) -> list[str]:
    """Which of these differences the intervals leave; where there are none, whether the seeds agree."""
    judged = {c: table.clearly(_STUDENT, other, c) for c in columns}
    if not judged or any(way is None for way in judged.values()):
        return _agreement(table, other, columns)
    clear = [table.columns[c].name for c, way in judged.items() if way]
    if not clear:
        return ["By the 95% intervals, all of it is inside the noise."]
    if len(clear) == len(judged):
        return ["By the 95% intervals, all of it is beyond the noise."]
    return [f"By the 95% intervals, what is beyond the noise: {listed(clear)}."]


def _agreement(table: Table, other: str, columns: Sequence[int]) -> list[str]:
    """In how many of these columns every seed shows the same direction; nothing where seeds failed, or there is one."""
    pairs = [(table.cell(_STUDENT, c).values, table.cell(other, c).values) for c in columns]
    if not pairs or any(len(mine) != len(theirs) or len(mine) < 2 for mine, theirs in pairs):
        return []
    same = [len({(a > b) - (a < b) for a, b in zip(mine, theirs, strict=True)}) == 1 for mine, theirs in pairs]
    if all(same):
        return ["Every seed shows the same direction."]
    if not any(same):
        return ["The seeds do not agree on any of these differences."]
    return [f"Every seed shows the same direction in {sum(same)} of these {len(same)} columns."]


def _about(part: Mapping[str, Any]) -> str:
    """A pre-training in plain words."""
    if part.get("kind") == "simclr":
        return "SimCLR, without labels"
    halves, human = bool(_mapping(part.get("self_training"))), part.get("labels") == "human"
    heads = [str(head) for head in part.get("heads") or ()]
    both = f" of {listed(heads)}" if len(heads) > 1 else ""
    if halves and human:
        words = f"joint training: the labels that people gave{both}"
    elif halves:
        ratio = _mapping(part.get("self_training")).get("ratio") or (1, 1)
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
    return part.get("labels") == "human" and not _mapping(part.get("self_training"))


def _from_teacher(part: Mapping[str, Any]) -> bool:
    return str(part.get("start") or "").startswith(_START)


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}
