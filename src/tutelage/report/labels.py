"""The report's section on pseudo labels: what the teachers said, before anything was trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tutelage.data.source import Fault
from tutelage.labels.health.agreement import MEANINGS, Agreement
from tutelage.labels.health.findings import Finding, findings, named, percent
from tutelage.labels.health.health import HeadHealth, StoreHealth
from tutelage.labels.health.histogram import ClassCount, never, skews
from tutelage.labels.health.show import looked_at, quantiles, size, storage
from tutelage.labels.health.statistics import (
    BoxesSummary,
    FieldSummary,
    LabelSummary,
    MaskSummary,
    Scores,
    VectorsSummary,
)
from tutelage.report.folder import DrawnExample, Panel, PictureRow
from tutelage.report.label_charts import Share, score_chart, score_legend, share_chart
from tutelage.report.measured import TEXT, folded, scroll
from tutelage.report.pictures import drawn, embed
from tutelage.report.plots import Series, legend

_SHOWN = 8
"""Classes in a chart."""
_BUDGET = 2_000_000
"""Bytes of base64 text for all examples."""
_SORTS = {
    "best": "Best: the highest mean score of what is kept",
    "worst": "Worst that is kept: the lowest mean score",
    "random": "Others, by chance",
}


def summary_body(found: StoreHealth) -> str:
    """What stands out in the labels of a run, and tables over all heads, as HTML."""
    parts = [_findings(findings(found)), _overview(found), _agreement(found.agreement)]
    return "\n".join(part for part in parts if part)


def heads_body(found: StoreHealth, examples: Sequence[DrawnExample], faults: list[Fault]) -> str:
    """The labels of a run head by head as HTML.

    Args:
        found: the health of the labels.
        examples: drawn ones.
        faults: examples that cannot be shown are added.
    """
    pictures = _examples(examples, faults)
    return "\n".join(_head(head, pictures.get(head.head, "")) for head in found.heads)


def _findings(found: Sequence[Finding]) -> str:
    if not found:
        return '<p class="note">Nothing conspicuous was found in them.</p>'
    lines = "".join(
        f"<li><strong>{escape(entry.head)}</strong>: {escape(entry.text)} "
        f'<span class="note">{escape(entry.advice)}</span></li>'
        for entry in found
    )
    return f'<div class="verdict findings"><ul>{lines}</ul></div>'


def _overview(found: StoreHealth) -> str:
    heads = ("head", "labelled", "by people", "set aside", "kept", "nothing kept", "size", "a record")
    rows = []
    for head in found.heads:
        counts = head.counts
        kept, without = _kept(head)
        each = size(head.storage.bytes / head.records) if head.records else "–"
        images = (f"{n:,}" for n in (counts.labelled, counts.human, counts.quarantined))
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in (*images, kept, without, size(head.storage.bytes), each))
        rows.append(f'<tr><th scope="row">{escape(head.head)}</th>{cells}</tr>')
    note = (
        '<p class="note">Images labelled by the teacher and by people, and set aside because they could not be read or '
        "got a prediction that is no label; what the rule keeps, and images of which it keeps nothing; bytes of the "
        "labels.</p>"
    )
    return _table(heads, rows, "pseudo labels a head") + note


def _kept(head: HeadHealth) -> tuple[str, str]:
    """What the rule keeps, and the share of images of which it keeps nothing."""
    images = head.looked_at
    match head.summary:
        case BoxesSummary() as found:
            return f"{found.kept / max(1, images):.2g} boxes an image", percent(found.without, images)
        case MaskSummary() as found:
            return f"{percent(found.kept, found.pixels)} of pixels", percent(found.without, images)
        case LabelSummary() as found:
            return f"{percent(found.kept, images)} of images", percent(images - found.kept, images)
        case FieldSummary() | VectorsSummary() as found:
            return f"{percent(found.valid, found.pixels)} of pixels", "–"


def _agreement(pairs: Sequence[Agreement]) -> str:
    if not pairs:
        return ""
    rows = []
    for pair in pairs:
        chance = "–" if pair.chance is None else f"{pair.chance:.0%}"
        cells = f"<td>{_figure(pair)}</td><td>{chance}</td><td>{pair.images:,} of {pair.both:,}</td>"
        words = MEANINGS[pair.by], named(pair.shared) or "–"
        cells += "".join(f'<td{TEXT} style="min-width:13rem">{escape(word)}</td>' for word in words)
        rows.append(f'<tr><th scope="row">{escape(" and ".join(pair.heads))}</th>{cells}</tr>')
    table = _table(("heads", "agreement", "by chance", "images"), rows, "agreement", ("what", "classes both know"))
    return "<h3>Agreement between teachers</h3>" + table


def _figure(pair: Agreement) -> str:
    if pair.value is None:
        return "–"
    if pair.by in ("rank correlation", "angle"):
        return f"{pair.value:.2f}" if pair.by == "rank correlation" else f"{pair.value:.0f}°"
    return f"{pair.value:.0%}"


def _head(head: HeadHealth, pictures: str) -> str:
    facts = [f"Rule: {head.rule}. Looked at: {looked_at(head)}.", f"Stored: {storage(head)}.", *_facts(head)]
    parts = [f"<h3>{escape(head.head)}</h3>"]
    parts += [f'<p class="note">{escape(" ".join(facts))}</p>']
    cards = _cards(head)
    if cards:
        parts.append(f'<div class="grid">{"".join(cards)}</div>')
    scores = _scores_of(head)
    if scores is not None and scores.stored:
        parts.append(folded(f"{head.head}: what every threshold would keep", _thresholds(scores, head)))
    if pictures:
        parts.append(folded(f"{head.head}: examples", pictures))
    return "\n".join(parts)


def _facts(head: HeadHealth) -> list[str]:
    match head.summary:
        case BoxesSummary(area=area) if area is not None:
            return [f"A box covers {area.median:.0%} of its image in the middle, {area.low:.1%} to {area.high:.0%}."]
        case FieldSummary(values=values, unit=unit) if values is not None:
            return [f"Values: {quantiles(values, unit)}."]
        case VectorsSummary() as found if found.mean is not None:
            x, y, z = found.mean
            return [f"Mean direction x {x:+.2f}, y {y:+.2f}, z {z:+.2f}; {percent(found.facing, found.valid)} face it."]
        case _:
            return []


def _cards(head: HeadHealth) -> list[str]:
    cards = []
    scores, things = _scores_of(head), _things(head)
    if scores is not None and scores.stored:
        images = None if isinstance(head.summary, LabelSummary) else head.looked_at
        chart = score_chart(scores, images) + score_legend(things, images is not None)
        cards.append(_card("Scores and thresholds", "share from each threshold on", chart))
    if any(entry.pseudo for entry in head.classes):
        cards.append(_classes(head.classes, things))
    if isinstance(head.summary, MaskSummary) and any(entry.before for entry in head.classes):
        lost = [
            Share(entry.name, 1 - entry.pseudo / entry.before, None)
            for entry in sorted(head.classes, key=lambda e: -e.before)
            if entry.before
        ]
        chart = share_chart(lost[:_SHOWN], "share of a class's pixels that is ignored")
        cards.append(_card("Ignored", "of each class's pixels", chart))
    return cards


def _classes(classes: Sequence[ClassCount], things: str) -> str:
    total = sum(entry.pseudo for entry in classes)
    human = sum(entry.human or 0 for entry in classes)
    ranked = sorted(classes, key=lambda entry: (-entry.pseudo, -(entry.human or 0)))
    apart = skews(classes)
    ends = [apart[0].name, apart[-1].name] if apart else []
    shown = [entry for entry in ranked[:_SHOWN] if entry.pseudo or entry.human]
    shown += [entry for entry in ranked[_SHOWN:] if entry.name in ends]
    rows = [Share(e.name, e.pseudo / total, (e.human or 0) / human if human else None) for e in shown]
    keys = [Series("teacher", "var(--accent)", (), ()), Series("people", "var(--c1)", (), ())]
    notes = []
    if apart:
        over, under = apart[0], apart[-1]
        notes.append(f"Most over: {over.name} ({over.pseudo:.1%} against {over.human:.1%}).")
        notes.append(f"Most under: {under.name} ({under.pseudo:.1%} against {under.human:.1%}).")
    missing = never(classes)
    if missing:
        notes.append(f"Never: {named(missing, 4)}.")
    chart = share_chart(rows, f"classes of {things}") + (legend(keys) if human else "")
    note = f'<p class="note">{escape(" ".join(notes))}</p>' if notes else ""
    return _card("Classes", f"share of {things}, {len(classes)} classes", chart + note)


def _thresholds(scores: Scores, head: HeadHealth) -> str:
    things, images = _things(head), head.looked_at
    heads = ["at least", f"{things} kept", "share"]
    whole = not isinstance(head.summary, LabelSummary)
    rows = []
    for row in scores.thresholds:
        cells = f"<td>{row.kept:,}</td><td>{percent(row.kept, scores.stored)}</td>"
        cells += f"<td>{percent(row.without, images)}</td>" if whole else ""
        rows.append(f'<tr><th scope="row">{row.threshold:.2f}</th>{cells}</tr>')
    return _table([*heads, "images without any"] if whole else heads, rows, f"thresholds of {head.head}")


def _scores_of(head: HeadHealth) -> Scores | None:
    return head.summary.scores if isinstance(head.summary, BoxesSummary | LabelSummary | MaskSummary) else None


def _things(head: HeadHealth) -> str:
    return {"Boxes": "boxes", "Label": "images"}.get(head.kind, "pixels")


def _examples(examples: Sequence[DrawnExample], faults: list[Fault]) -> dict[str, str]:
    """Head to its drawn examples as HTML, best, worst and others each in a row."""
    rows: dict[tuple[str, str], list[Panel]] = {}
    for example in examples:
        score = "" if example.score is None else f" ({example.score:.2f})"
        caption = f"{example.image}{score}".replace(": ", ":")  # a colon would make it a head's name
        rows.setdefault((example.head, example.why), []).append(Panel(example.file, caption))
    in_order = sorted(rows, key=lambda key: [*_SORTS, key[1]].index(key[1]))
    named_rows = [PictureRow(head, _SORTS.get(why, why), tuple(rows[head, why])) for head, why in in_order]
    found = embed(named_rows, faults, _BUDGET)
    return {
        head: f'<div class="rows">{"".join(drawn(row) for row in members)}</div>' for head, members in found.items()
    }


def _table(heads: Sequence[str], rows: Sequence[str], label: str, words: Sequence[str] = ()) -> str:
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    columns += "".join(f'<th scope="col"{TEXT}>{escape(name)}</th>' for name in words)
    return scroll(f"<table><thead><tr>{columns}</tr></thead><tbody>{''.join(rows)}</tbody></table>", label)


def _card(title: str, what: str, body: str) -> str:
    caption = f"<figcaption>{escape(title)} <small>{escape(what)}</small></figcaption>"
    return f'<figure class="card">{caption}{body}</figure>'
