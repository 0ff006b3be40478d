"""The report: a run's folder as one HTML file that needs nothing else, on a desk, a phone or paper."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

from tutelage.data.source import Fault
from tutelage.files import writable, write_text
from tutelage.labels.health.findings import named
from tutelage.report.curves import first_of, transfer_curves, upstream_curves
from tutelage.report.export import as_csv, as_markdown
from tutelage.report.flow import boxes, diagram
from tutelage.report.folder import PictureRow, RunFolder, Stage, moment_as_text, read_run, seconds_as_text
from tutelage.report.labels import heads_body, summary_body
from tutelage.report.measured import Section, dots, failures, folded, listing, note, scroll, table_body
from tutelage.report.noise import Noise, noises
from tutelage.report.pictures import drawn, embed
from tutelage.report.self_training import TITLE, Halves
from tutelage.report.settings import settings_of
from tutelage.report.sizes import sizes
from tutelage.report.style import CSS
from tutelage.report.tables import Table, detail_table, main_tables
from tutelage.report.text import words_of
from tutelage.report.transfer import chosen, contributions, intervals

_FAULTS = 20

_TITLES = {
    "transfer": "Transfer",
    "upstream": "Teacher against student",
}
_LEADS = {
    "transfer": "Each initialisation is fine-tuned on each downstream set and measured on images that neither training "
    "nor the choice of settings has seen.",
    "upstream": "Each specialist and the one student on the task that the specialist was trained for, on held-out "
    "images.",
}
_COUNTS = {
    "read": "images read",
    "human": "labelled by people",
    "labelled": "labelled by the teacher",
    "pseudo": "labelled by the teacher",
    "empty": "of these empty",
    "bytes": "size",
}
_PSEUDO = "pseudo labels"
_PICTURES = {
    _PSEUDO: (
        "Pseudo labels",
        "What the teachers say about images that nobody labelled. The student learns from these.",
    ),
    "predictions": (
        "Predictions on unseen images",
        "All heads of the one student on images it was not trained on, beside the truth where there is one.",
    ),
}


def write_report(run: Path) -> Path:
    """Write `report.html` into a run's folder and return its path; beside it, where there is a transfer table, that
    table as `transfer.md` and `transfer.csv`.

    The page is complete in itself: styles, charts and pictures are inside. Parts that the run does not have (yet) are
    left out or said; files that cannot be read are counted at the end of the page.

    Raises:
        UserError: there is no such folder, or nobody may write there.
    """
    found = read_run(run)
    judges = noises(found)
    tables = main_tables(found.measurements, {stage: noise.between for stage, noise in judges.items()})
    file, whole = run / "report.html", page(found, tables, judges.values())
    with writable(run):
        write_text(file, whole)
        if "transfer" in tables:
            settings = settings_of(tables["transfer"], found.measurements)
            write_text(run / "transfer.md", as_markdown(tables["transfer"], settings))
            write_text(run / "transfer.csv", as_csv(tables["transfer"], settings))
    return file


def page(run: RunFolder, tables: Mapping[str, Table], judges: Iterable[Noise] = ()) -> str:
    """The whole page as HTML text.

    Args:
        run: what the folder holds.
        tables: the main table of each stage.
        judges: of the tables; the evidence that they could not use is looked at last, when all tables are read.
    """
    faults = list(run.faults)
    sections = [_measured(run, table) for stage, table in tables.items() if stage in _TITLES]
    if "transfer" in tables:
        sections.insert(1, contributions(tables["transfer"]))
    sections += [_curves(run), *_pictures(run, faults), _labels(run)]
    sections += [_measured(run, table) for stage, table in tables.items() if stage not in _TITLES]
    words = f'<div class="verdict"><p>{escape(words_of(run, tables))}</p></div>'
    sections += [
        _notes(run),
        _made(run),
        _faults([*faults, *(fault for noise in judges for fault in noise.faults)], run.path),
    ]
    shown = [section for section in sections if section]
    title = escape(str(run.recipe.get("name") or run.path.resolve().name))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{title} · tutelage</title>\n'
        f'<style>{CSS}</style>\n</head>\n<body>\n<main>\n<header>\n<p class="eyebrow">tutelage report</p>\n'
        f'<h1>{title}</h1>\n<p class="meta">{escape(_meta(run))}</p>\n{words}\n{_contents(shown)}</header>\n'
        + "\n".join(f'<section id="{anchor}">\n<h2>{head}</h2>\n{body}\n</section>' for anchor, head, body in shown)
        + f"\n<footer>\n{_footer()}\n</footer>\n</main>\n</body>\n</html>\n"
    )


def _meta(run: RunFolder) -> str:
    facts = []
    moments = sorted(stage.finished for stage in run.stages if stage.finished)
    if moments:
        facts.append(moment_as_text(moments[-1]))
    if run.seconds:
        facts.append(f"{seconds_as_text(run.seconds)} of work")
    facts += sorted({stage.machine for stage in run.stages if stage.machine})
    seeds = sorted({m.seed for m in run.measurements})
    if seeds:
        facts.append(f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}")
    unfinished = sum(not stage.done for stage in run.stages)
    if unfinished:
        facts.append(f"{unfinished} stage{'' if unfinished == 1 else 's'} not finished")
    return " · ".join(facts)


def _contents(sections: Sequence[tuple[str, str, str]]) -> str:
    if len(sections) < 3:
        return ""
    links = "".join(f'<a href="#{anchor}">{head}</a>' for anchor, head, _ in sections)
    return f'<nav aria-label="Contents">{links}</nav>\n'


def _measured(run: RunFolder, table: Table) -> Section:
    stage, title, lead = table.stage, _TITLES.get(table.stage, table.stage), _LEADS.get(table.stage, "")
    halves = Halves.of(run.recipe) if stage == "upstream" else None
    if halves is not None:
        title, lead = TITLE, halves.lead
    parts = [f"<p>{escape(lead)}</p>" if lead else "", table_body(table, f"{stage}: main metrics")]
    parts += [note(table), "" if halves is None else halves.listing(table), failures(table)]
    if stage == "transfer":
        panels = (dots(table, column) for column in range(len(table.columns)))
        parts.append(f'<div class="grid">{"".join(panels)}</div>')
        parts.append(
            f'<p class="note">The dashed line marks {escape(table.rows[0])}. Every panel has a scale of its own, '
            "which does not start at zero.</p>"
        )
    parts.append(intervals(table))
    if stage == "transfer":
        weights = sizes(run)
        settings = settings_of(table, run.measurements)
        parts += [
            chosen(table, settings, run.measurements),
            folded("Weights of the backbones", weights) if weights else "",
        ]
    detail = detail_table(run.measurements, stage)
    if detail is not None:
        parts.append(folded("Other metrics", table_body(detail, f"{stage}: other metrics") + failures(detail)))
    parts.append(folded("Every single measurement", listing([m for m in run.measurements if m.stage == stage])))
    return _anchor(stage), escape(title), "\n".join(part for part in parts if part)


def _curves(run: RunFolder) -> Section:
    panels, fine = upstream_curves(run), transfer_curves(run)
    if not panels and not fine:
        return None
    parts = ["<p>Training loss over steps; a head has one colour throughout.</p>"]
    if panels:
        parts.append(f'<div class="grid">{"".join(panels)}</div>')
    others = upstream_curves(run, first=False)
    if others:
        parts.append(folded("Further variants and seeds", f'<div class="grid">{"".join(others)}</div>'))
    if fine:
        parts.append(folded("Fine-tuning on the downstream sets", f'<div class="grid">{"".join(fine)}</div>'))
    return "curves", "Learning curves", "\n".join(parts)


def _pictures(run: RunFolder, faults: list[Fault]) -> list[Section]:
    """One section a group of pictures, pseudo labels and predictions first."""
    rows = [row if first_of(run, stage) else _named(row, stage) for stage in run.stages for row in stage.pictures]
    rows.sort(key=lambda row: [*_PICTURES, row.group].index(row.group))
    groups = embed(rows, faults)
    if run.health is not None:  # it stands there without pictures, too
        groups = {_PSEUDO: groups.pop(_PSEUDO, []), **groups}
    sections: list[Section] = []
    for group, members in groups.items():
        title, lead = _PICTURES.get(group, (group[:1].upper() + group[1:], ""))
        body = f"<p>{lead}</p>" if lead else ""
        if group == _PSEUDO and run.health is not None:
            body += summary_body(run.health)
        if members:
            body += f'<div class="rows">{"".join(drawn(row) for row in members)}</div>'
        left = sum(row.group == group for row in rows) - len(members)
        if left:
            body += f'<p class="note">{left} more lie in the run\'s folder.</p>'
        if group == _PSEUDO and run.health is not None:
            body += heads_body(run.health, run.examples, faults)
        sections.append((_anchor(f"pictures {group}"), escape(title), body))
    return sections


def _named(row: PictureRow, stage: Stage) -> PictureRow:
    """A row of pictures that tells the variant and the seed it is of."""
    return replace(row, image=f"{row.image} ({stage.name.rpartition('/')[0]})")


def _labels(run: RunFolder) -> Section:
    if not run.label_counts or run.health is not None:  # the health says all of it and more
        return None
    known = dict.fromkeys(key for counts in run.label_counts.values() for key in counts)
    keys = [key for key in _COUNTS if key in known] + [key for key in known if key not in _COUNTS]
    heads = "".join(f'<th scope="col">{escape(_COUNTS.get(key, key))}</th>' for key in keys)
    rows = "".join(
        f'<tr><th scope="row">{escape(head)}</th>'
        + "".join(f"<td>{_count(key, counts.get(key))}</td>" for key in keys)
        + "</tr>"
        for head, counts in run.label_counts.items()
    )
    table = f'<table><thead><tr><th scope="col">head</th>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    lead = "<p>What the student learned from, counted in images a head unless the column says otherwise.</p>"
    return "labels", "Labels", lead + scroll(table, "labels a head")


def _count(key: str, value: int | None) -> str:
    if value is None:
        return "–"
    return f"{value / 1e6:,.1f} MB" if key == "bytes" else f"{value:,}"


def _notes(run: RunFolder) -> Section:
    """What was noted of the run, and while stages were made: each text once, with the stages that it is of."""
    of: dict[str, list[str]] = {}
    for stage in run.stages:
        for text in stage.notes:
            of.setdefault(text, []).append(stage.name)
    lines = [f"<li>{escape(text)}</li>" for text in run.notes]
    lines += [f"<li>{escape(text)} <small>({escape(named(names, 3))})</small></li>" for text, names in of.items()]
    return ("notes", "Notes", f'<ul class="note">{"".join(lines)}</ul>') if lines else None


def _made(run: RunFolder) -> Section:
    flow = boxes(run)
    parts = [f'<figure class="flow">{diagram(flow)}</figure>' if len(flow) > 1 else "", _times(run.stages)]
    versions: dict[str, list[str]] = {}
    for stage in run.stages:
        for library, version in stage.versions.items():
            versions.setdefault(library, [])
            if version not in versions[library]:
                versions[library].append(version)
    if versions:
        told = ", ".join(f"{library} {' / '.join(found)}" for library, found in versions.items())
        parts.append(f'<p class="note">Versions: {escape(told)}.</p>')
    if run.recipe_text:
        recipe = f'<pre tabindex="0" aria-label="recipe.yaml">{escape(run.recipe_text)}</pre>'
        parts.append(folded("The recipe", recipe))
    body = "\n".join(part for part in parts if part)
    return ("made", "How it was made", body) if body else None


def _times(all_stages: Sequence[Stage]) -> str:
    """Stages with their times: those of one first folder summed, and all of them folded away."""
    if not all_stages:
        return ""
    groups: dict[str, list[Stage]] = {}
    for stage in all_stages:
        groups.setdefault(stage.name.split("/")[0], []).append(stage)
    finished = {name: min((s.finished or "~") for s in members) for name, members in groups.items()}
    rows = []
    for name in sorted(groups, key=lambda g: finished[g]):
        members = groups[name]
        done = sum(stage.done for stage in members)
        state = "finished" if done == len(members) else "not finished" if not done else f"{done} finished"
        count = "1 stage" if len(members) == 1 else f"{len(members)} stages"
        rows.append((name, f"{count}, {state}", _duration(members)))
    table = _stage_table(rows)
    if len(all_stages) == len(groups):
        return table
    each = [(s.name, moment_as_text(s.finished) if s.done else "not finished", _duration([s])) for s in all_stages]
    return table + folded("Every stage", _stage_table(each))


def _duration(members: Sequence[Stage]) -> str:
    known = [stage.seconds for stage in members if stage.seconds is not None]
    return seconds_as_text(sum(known)) if known else "–"


def _stage_table(rows: Sequence[tuple[str, str, str]]) -> str:
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="text">{escape(state)}</td><td>{escape(time)}</td></tr>'
        for name, state, time in rows
    )
    head = '<th scope="col">stage</th><th scope="col" class="text">state</th><th scope="col">time</th>'
    return scroll(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>", "stages and times")


def _faults(faults: Sequence[Fault], run: Path) -> Section:
    if not faults:
        return None
    lines = []
    for fault in faults[:_FAULTS]:
        place = fault.file.removeprefix(f"{run}/").removeprefix(f"{run.resolve()}/")
        lines.append(f"<li>{escape(', '.join(p for p in (place, fault.record, fault.problem) if p))}</li>")
    left = f'<p class="note">and {len(faults) - _FAULTS:,} more</p>' if len(faults) > _FAULTS else ""
    lead = f"<p>{len(faults):,} entries of the run's files could not be used as they stand.</p>"
    return "faults", "Left out of this report", f'{lead}<ul class="note">{"".join(lines)}</ul>{left}'


def _footer() -> str:
    return (
        '<p class="note">Made by tutelage from the files of the run; '
        "the figures stand in results.jsonl beside this page.</p>"
    )


def _anchor(name: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower())
