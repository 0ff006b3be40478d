"""What the numbers say, in a paragraph of plain sentences: computed, and no kinder than they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tutelage.downstream import PROBE
from tutelage.methods.workshop import STUDENT
from tutelage.recipe import TEACHER
from tutelage.report.tables import Table
from tutelage.transfer.blind import BLIND
from tutelage.transfer.rows import INITIAL, RANDOM


def verdict(
    transfer: Table | None,
    upstream: Table | None,
    told: Sequence[str] | None = None,
    asked: bool = True,
    learned_once: bool = False,
) -> list[str]:
    """Sentences on the transfer table and the upstream table; either may be missing.

    Args:
        transfer, upstream: the tables.
        told: what is said of the upstream table in place of the usual words (`Halves.verdict`).
        asked: whether the recipe asks for any figure.
        learned_once: whether seeds repeat the fine-tuning alone, not what was learned before.
    """
    sentences = []
    if transfer is not None:
        sentences += _on_transfer(transfer)
    if upstream is not None:
        sentences += _on_upstream(upstream) if told is None else told
    measured = [table for table in (transfer, upstream) if table is not None and table.seeds]
    failed = sum(len(table.failures()) for table in (transfer, upstream) if table is not None)
    if not measured and not asked:
        return ["Nothing is measured: the recipe names no held-out source and no downstream set."]
    if not measured and failed:
        return [f"There is no figure: {_counted(failed, 'measurement').lower()} failed; the report says why."]
    if not measured:
        return ["Nothing has been measured yet: the stages that fill the tables have not finished."]
    if all(table.seeds == 1 for table in measured):
        sentences.append("All figures come from one seed: how much another seed would change is not known.")
    elif any(table.seeds == 1 for table in measured):
        single = next(table.stage for table in measured if table.seeds == 1)
        sentences.append(f"The {single} figures come from one seed: small differences there may be noise.")
    if learned_once and transfer is not None and transfer.seeds > 1:
        sentences.append(
            "The seeds repeat the fine-tuning alone: how much another pre-training would change is not known."
        )
    if failed:
        sentences.append(f"{_counted(failed, 'measurement')} failed; the report says why.")
    return sentences


def subject(table: Table) -> str | None:
    """The row that the verdict is about: the MuST student, or else the last row that is some student."""
    students = [row for row in table.rows if row == STUDENT or row.lower().endswith("student")]
    return STUDENT if STUDENT in students else students[-1] if students else None


def networks(table: Table) -> Table:
    """The table without the control that sees no image, which is no way to initialise a network."""
    return replace(table, rows=tuple(row for row in table.rows if row != BLIND))


def _on_transfer(whole: Table) -> list[str]:
    whole = whole.parts()
    table, student = networks(whole), subject(whole)
    if student is None:
        return [_leaders(table), *_against_controls(whole), *_against_blind(whole)]
    measured = [c for c in range(len(table.columns)) if table.cell(student, c).n]
    if not measured:
        return [f"The {student} has not been transferred to any downstream set yet."]
    best = [c for c in measured if table.best(c) == {student}]
    shared = [c for c in measured if student in table.best(c)]
    sentences = []
    # A set that is both fine-tuned and probed has two columns.
    known = {column.name for column in table.columns}
    things = "column" if any(f"{name}{PROBE}" in known for name in known) else "downstream set"
    if len(table.rows) > 1:
        ties = f", and level with the best on {_word(len(shared) - len(best))} more" if len(shared) > len(best) else ""
        second = {c: table.best_of([row for row in table.rows if row != student], c) for c in best}
        sentences.append(
            f"Of {_word(len(table.rows))} ways to initialise a network, the {student} is the best on "
            f"{_of(len(best), len(measured), things)}{_clear_ones(table, student, second)}{ties}."
        )
    if student not in table.controls:
        sentences += _against_controls(whole, student)
    sentences += _against_blind(whole)
    teachers = [row for row in table.rows if row.startswith(TEACHER)]
    if teachers:
        sentences += _against_teachers(table, student, teachers, measured)
    level = [c for c in measured if table.level(c)]
    if level:
        sentences.append(f"On {names(table, level)} all rows have the same figure, which compares nothing.")
    return sentences


def _against_controls(table: Table, student: str | None = None) -> list[str]:
    """The student, or else the best row of each set, against the controls.

    Whether pre-training helped is told against a network without it and against what sees no image; every other
    control is a pre-training too, and has a sentence of its own.
    """
    rows = [student] if student else [r for r in table.rows if r not in table.controls and r not in table.without]
    mine = {c: row for c in range(len(table.columns)) if (row := table.best_of(rows, c)) is not None}
    bare = next((row for row in (INITIAL, RANDOM) if row in table.controls), None)
    who = "It" if student else "The best start that was pre-trained"
    if not student and len(rows) > 1:
        who += f" (the best of {_word(len(rows))} by these very figures, which flatters it)"
    told = [] if bare is None else _helped(table, mine, bare, who)
    others = [row for row in table.controls if row not in (bare, BLIND)]
    return told + [sentence for row in others for sentence in _against(table, mine, row)]


def _helped(table: Table, mine: Mapping[int, str], bare: str, who: str) -> list[str]:
    """Whether pre-training helped at all.

    Args:
        table: with controls.
        mine: column to the row that is judged.
        bare: the control that is a network without pre-training.
        who: the judged rows, as the subject of a sentence.
    """
    base = [row for row in table.controls if row in (bare, BLIND)]
    pairs = {c: (row, table.best_of(base, c) or "") for c, row in mine.items() if table.cell(bare, c).n}
    if not pairs:
        return []
    outcome = {c: table.compare(*pair, c) for c, pair in pairs.items()}
    better, worse = ([c for c in pairs if outcome[c] == way] for way in (1, -1))
    whom = bare if len(base) == 1 else f"both {listed(base)}"
    text = f"{who} is better than {whom} on {_of(len(better), len(pairs))}"
    if better:
        most = max(better, key=lambda c: _relative(table, *pairs[c], c))
        text += f", most on {_pair(table, *pairs[most], most)}"
    if worse:
        text += f", and worse{'' if len(base) == 1 else ' than one of them'} on {names(table, worse)}"
    return [f"{text}.", *_beyond_noise(table, pairs, bare)]


_CLEAR = {1: "clearly better", -1: "clearly worse", 0: "no clear difference"}
_SHOWN = {1: "better", -1: "worse", 0: "level"}


def _against(table: Table, mine: Mapping[int, str], other: str) -> list[str]:
    """Rows by column against one control that is pre-trained as well; what intervals say counts where there are any."""
    found = _outcomes(table, mine, other)
    total = sum(map(len, found.values()))
    parts = [
        f"{word} on {_of(total, total, 'set') if len(some) == total > 2 else names(table, some)}"
        for word, some in found.items()
    ]
    return [f"Against {other}: {', '.join(parts)}."] if parts else []


def _outcomes(table: Table, mine: Mapping[int, str], other: str) -> dict[str, list[int]]:
    """How rows by column compare with another row, in words, each with its columns: by the interval where it is known,
    else by the figures."""
    found: dict[str, list[int]] = {word: [] for words in (_CLEAR, _SHOWN) for word in words.values()}
    for c, row in mine.items():
        sure, shown = table.clearly(row, other, c), table.compare(row, other, c)
        if shown is not None:
            found[_SHOWN[shown] if sure is None else _CLEAR[sure]].append(c)
    return {word: some for word, some in found.items() if some}


def _against_blind(table: Table) -> list[str]:
    """Which networks are not above what can be said without looking at an image."""
    judged = [c for c in range(len(table.columns)) if table.cell(BLIND, c).n]
    rows = {c: [row for row in networks(table).rows if table.cell(row, c).n] for c in judged}
    poor = {c: [row for row in rows[c] if table.compare(row, BLIND, c) != 1] for c in judged}
    near = {c: [r for r in rows[c] if r not in poor[c] and table.clearly(r, BLIND, c) == 0] for c in judged}
    told = []
    for words, found in (("No better", poor), ("Better, but inside the noise,", near)):
        some = [f"{_poor(found[c], len(rows[c]))} on {table.columns[c].name}" for c in judged if found[c]]
        told += [f"{words} than {BLIND}, which never looks at an image: {'; '.join(some)}."] if some else []
    compared = sum(bool(some) for some in rows.values())
    if told or not compared:
        return told
    return [f"Every other row is better than {BLIND}, which never looks at an image."]


def _poor(rows: Sequence[str], total: int) -> str:
    """Some of so many rows, by name where they are few."""
    if len(rows) == total > 1:
        return "both other rows" if total == 2 else f"all {_word(total)} other rows"
    return listed(rows) if len(rows) < 4 else f"{_word(len(rows))} of the {_word(total)} other rows"


def _beyond_noise(table: Table, pairs: Mapping[int, tuple[str, str]], bare: str) -> list[str]:
    """Of the comparisons by column with a network without pre-training, or what sees no image: what intervals leave."""
    sure = {c: table.clearly(*pair, c) for c, pair in pairs.items()}
    judged = [c for c in sure if sure[c] is not None]
    if not judged:
        return []
    helped, worse, unsure = ([c for c in judged if sure[c] == way] for way in (1, -1, 0))
    # To lose against what sees no image is no harm done by pre-training: that is told against the network.
    unseen = [c for c in worse + unsure if pairs[c][1] == BLIND]
    hurt = [c for c in worse if table.clearly(pairs[c][0], bare, c) == -1]
    unsure = [c for c in unsure if c not in unseen]
    if not helped and not hurt and not unseen:
        return ["All of these differences are inside the noise: whether pre-training helped cannot be told."]
    parts = [f"pre-training helped on {_of(len(helped), len(judged))}"]
    parts += [f"hurt on {names(table, hurt)}"] if hurt else []
    parts += [f"had no effect beyond the noise on {names(table, unsure)}"] if unsure else []
    parts += [f"led to nothing above {BLIND} on {names(table, sorted(unseen))}"] if unseen else []
    return [f"By the 95% intervals, {listed(parts)}."]


def _against_teachers(table: Table, student: str, teachers: Sequence[str], measured: Sequence[int]) -> list[str]:
    rival = {c: table.best_of(teachers, c) for c in measured}
    known = [c for c in measured if rival[c] is not None]
    if not known:
        return []
    better = [c for c in known if table.compare(student, rival[c] or "", c) == 1]
    behind = [c for c in known if table.compare(student, rival[c] or "", c) == -1]
    whom = "the only teacher" if len(teachers) == 1 else "the best single teacher, chosen anew for each set,"
    clear = _clear_ones(table, student, {c: rival[c] for c in better})
    text = f"It beats {whom} on {_of(len(better), len(known))}{clear}"
    if behind:
        lag = max(behind, key=lambda c: _relative(table, student, rival[c] or "", c))
        text += f"; it is furthest behind on {_pair(table, student, rival[lag] or '', lag)}"
    return [text + "."]


def _clear_ones(table: Table, student: str, rivals: Mapping[int, str | None]) -> str:
    """In how many of the columns a row is ahead of its rival beyond the noise; "" where that is not known."""
    ways = [table.clearly(student, rival, c) for c, rival in rivals.items() if rival is not None]
    if not ways or None in ways:
        return ""
    return f" ({_word(ways.count(1)) if 1 in ways else 'none'} of them by more than the noise)"


def _on_upstream(table: Table) -> list[str]:
    student = subject(table)
    if student is None or "teacher" not in table.rows:
        return []
    found = _outcomes(table, dict.fromkeys(range(len(table.columns)), student), "teacher")
    parts = [f"{word} on {names(table, some)}" for word, some in found.items()]
    return [f"On the teachers' own tasks, the one student against each teacher: {', '.join(parts)}."] if parts else []


def _leaders(table: Table) -> str:
    """Without a student: who leads where."""
    led = [(column.name, sorted(table.best(c))) for c, column in enumerate(table.columns) if table.best(c)]
    if not led:
        return "There is too little in the transfer table to compare initialisations."
    text = "The best initialisation is " + "; ".join(f"on {name}: {' and '.join(rows)}" for name, rows in led)
    first = {c: min(best) for c in range(len(table.columns)) if len(best := table.best(c)) == 1}
    second = {c: table.best_of([row for row in table.rows if row != first[c]], c) for c in first}
    ways = [table.clearly(first[c], rival, c) for c, rival in second.items() if rival is not None]
    if None in ways or not ways:
        return f"{text}."
    ahead = _of(ways.count(1), len(ways), "column")
    return f"{text}. Ahead of the second best by more than the noise: on {ahead}."


def _relative(table: Table, row: str, other: str, column: int) -> float:
    """How large a difference is beside the larger figure: comparable between metrics of different units."""
    mine, theirs = table.means(row, other, column) or (0.0, 0.0)
    return abs(mine - theirs) / max(abs(mine), abs(theirs), 1e-12)


def _pair(table: Table, row: str, other: str, column: int) -> str:
    """A comparison with its figures: "fine-classes (top-1 34.8 against 12.0)"."""
    about, means = table.columns[column], table.means(row, other, column)
    assert means is not None
    mine, theirs = map(about.number, means)
    return f"{about.name} ({about.metric} {mine} against {theirs})"


def names(table: Table, columns: Sequence[int]) -> str:
    """The names of columns as part of a sentence."""
    return listed([table.columns[c].name for c in columns])


def listed(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"; at least one."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


_WORDS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def _word(count: int) -> str:
    return _WORDS[count] if 0 < count < len(_WORDS) else str(count)


def _of(count: int, total: int, things: str = "") -> str:
    """As in "four of the six downstream sets", "all six", "none of the six", "the one downstream set"."""
    if total == 1:
        noun = things or "set"
        return f"the one {noun}" if count else f"none (there is one {noun})"
    noun = f" {things}s" if things else ""
    if count == total:
        return f"all {_word(total)}{noun}"
    return f"{_word(count) if count else 'none'} of the {_word(total)}{noun}"


def _counted(count: int, thing: str) -> str:
    return f"{_word(count).capitalize()} {thing}{'' if count == 1 else 's'}"
