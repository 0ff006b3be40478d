"""What stands below a table: the intervals of its gains; and, of the transfer table, the chosen settings and what each
teacher gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from tutelage.report.measured import Section, folded, scroll, span
from tutelage.report.settings import Chosen, Settings, by_seed, settings_note
from tutelage.report.tables import Measurement, Table
from tutelage.report.text import NOISE_MARK, noise_note
from tutelage.report.verdict import listed, names, subject

_ON_THE_WAY = "failed on the way"


def intervals(table: Table) -> str:
    """The gains with their 95% intervals, folded away; "" where none is known."""
    rows = []
    for row in table.rows[1:]:
        cells = "".join(_difference(table, row, table.rows[0], c) for c in range(len(table.columns)))
        rows.append(f'<tr><th scope="row">{escape(row)}</th>{cells}</tr>')
    if not noise_note(table):
        return ""
    body = _table(table, "row", rows, "gains with their intervals")
    return folded(f"Differences from {table.rows[0]} with their 95% intervals", body)


def chosen(table: Table, settings: Settings, measurements: Sequence[Measurement]) -> str:
    """The best point of each grid, a line a seed, folded away, and the points that failed; "" where none is known."""
    if not settings:
        return ""
    rows = []
    for row in table.rows:
        cells = "".join(f"<td>{_settings(settings.get((row, c), {}))}</td>" for c in range(len(table.columns)))
        rows.append(f'<tr><th scope="row">{escape(row)}</th>{cells}</tr>')
    body = f"<p>{escape(settings_note(settings))}</p>{_table(table, 'initialisation', rows, 'chosen settings')}"
    main = {(column.name, column.metric) for column in table.columns}
    mine = [m for m in measurements if m.stage == table.stage and (m.column, m.metric) in main]
    failed = [m for m in mine if m.extras.get(_ON_THE_WAY)]
    if failed:
        lines = (f"{m.row}, {m.column}, seed {m.seed}: {m.extras[_ON_THE_WAY]}" for m in failed)
        items = "".join(f"<li>{escape(line)}</li>" for line in lines)
        body += f'<p class="note">Grid points that failed:</p><ul class="note">{items}</ul>'
    return folded("Chosen settings", body)


def _settings(of_seeds: Mapping[int, Chosen]) -> str:
    """What was chosen for one cell as HTML, a line a seed where they differ."""
    lines = []
    for seed, one in by_seed(of_seeds):
        which = f'<span class="spread">{seed}:</span> ' if seed else ""
        lines.append(which + escape(str(one)) + (f' <span class="edge">{escape(one.edge)}</span>' if one.edge else ""))
    return "<br>".join(lines) or "–"


def contributions(table: Table) -> Section:
    """What each teacher gave: the whole student less the one that was not taught the head, on every downstream set."""
    whole, table = subject(table), table.parts()
    left_out = {row: head for row, head in table.without.items() if row != whole}
    if whole is None or not left_out:
        return None
    rows = []
    for row, head in left_out.items():
        cells = "".join(_difference(table, whole, row, c) for c in range(len(table.columns)))
        rows.append(f'<tr><th scope="row">{escape(head)}</th>{cells}</tr>')
    lead = (
        f"The {whole} less the same student that was not taught one head: neither by that head's teacher nor by the "
        "labels that the teacher learned from. Where the difference is good, they helped this downstream set."
    )
    words = " ".join(_gave(table, whole, row, head) for row, head in left_out.items())
    note = f'<p class="note">{escape(noise_note(table))}</p>' if noise_note(table) else ""
    body = f"<p>{escape(lead)}</p>{_table(table, 'head', rows, 'what each teacher gave')}<p>{escape(words)}</p>{note}"
    return "contributions", "What each teacher gave", body


def _gave(table: Table, whole: str, row: str, head: str) -> str:
    """One head in a sentence."""
    outcome = {c: table.clearly(whole, row, c) for c in range(len(table.columns))}
    known = [c for c, way in outcome.items() if way is not None]
    if not known:
        return f"Whether {head} helped cannot be told from noise: there is one seed, and no evidence of single images."
    parts = [
        f"{word} {names(table, [c for c in known if outcome[c] == way])}"
        for way, word in ((1, "helped"), (-1, "hurt"))
        if any(outcome[c] == way for c in known)
    ]
    return f"Beyond the noise, {head} {listed(parts) if parts else 'made no difference'}."


def _difference(table: Table, row: str, other: str, column: int) -> str:
    """A cell: row less other, its interval below."""
    difference, about = table.difference(row, other, column), table.columns[column]
    if difference is None:
        return '<td class="spread">–</td>'
    known, way = table.interval(row, other, column), table.clearly(row, other, column)
    tone = {1: ' class="good"', -1: ' class="bad"'}.get(way or 0, "")
    mark = f" {NOISE_MARK}" if way == 0 else ""
    below = f'<br><span class="spread">{escape(span(about, known))}</span>' if known is not None else ""
    return f"<td><span{tone}>{about.signed(difference)}{mark}</span>{below}</td>"


def _table(table: Table, corner: str, rows: Sequence[str], label: str) -> str:
    heads = "".join(
        f'<th scope="col">{escape(column.name)}<small>{escape(column.metric)}'
        f"{'' if column.higher_is_better else ', lower is better'}</small></th>"
        for column in table.columns
    )
    head = f'<thead><tr><th scope="col">{corner}</th>{heads}</tr></thead>'
    return scroll(f"<table>{head}<tbody>{''.join(rows)}</tbody></table>", label)
