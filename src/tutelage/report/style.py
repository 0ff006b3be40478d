"""The look of the report: one style sheet, light and dark, screen, phone and paper."""

HEAD_COLOURS = 8
"""How many colours `--c0`, `--c1`, ... there are."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #fbfaf7; --card: #ffffff; --ink: #1d1f23; --muted: #5c626b; --rule: #dedcd5; --soft: #f1efe9;
  --accent: #0b6e69; --accent-soft: #e2f1ef; --good: #1b6e33; --bad: #ab2b1e;
  --c0: #0072b2; --c1: #c4540a; --c2: #00805c; --c3: #a6448a; --c4: #8a6d00; --c5: #3a55c4; --c6: #7a5230;
  --c7: #5c626b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14161a; --card: #1c1f24; --ink: #e9e8e4; --muted: #a3a9b2; --rule: #353a42; --soft: #24282e;
    --accent: #5fd0c5; --accent-soft: #15332f; --good: #7fd494; --bad: #ff9d8f;
    --c0: #5fb6ea; --c1: #f5934f; --c2: #43c59c; --c3: #dd8fc6; --c4: #dcbc45; --c5: #94a8ff; --c6: #c79c73;
    --c7: #a3a9b2;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
  overflow-wrap: break-word;
}
main { max-width: 1080px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1, h2 {
  font-family: Charter, "Iowan Old Style", "Palatino Linotype", Georgia, "DejaVu Serif", serif; line-height:
  1.2;
}
h1 { font-size: clamp(1.7rem, 5vw, 2.4rem); margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.4rem; margin: 3.2rem 0 .4rem; }
h3 { font-size: 1rem; margin: 1.8rem 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; }
.eyebrow { color: var(--accent); font-weight: 600; margin: 0 0 .3rem; }
.meta, .note, figcaption small { color: var(--muted); font-size: .875rem; }
.verdict {
  font-size: 1.12rem; line-height: 1.6; border-left: 4px solid var(--accent); padding: .1rem 0 .1rem 1.1rem;
  margin: 1.4rem 0;
}
.verdict p { max-width: 50rem; }
.findings { font-size: 1rem; border-color: var(--c1); }
.findings li { margin: .35rem 0; max-width: 50rem; }
nav { margin: 1.2rem 0 0; font-size: .9rem; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; }
a { color: var(--accent); }
.scroll {
  overflow-x: auto; border: 1px solid var(--rule); border-radius: 10px; background: var(--card); margin:
  .9rem 0;
}
.scroll:focus-visible, summary:focus-visible, a:focus-visible {
  outline: 3px solid var(--accent); outline-offset: 2px;
}
table {
  border-collapse: separate; border-spacing: 0; width: 100%; font-size: .925rem; font-variant-numeric:
  tabular-nums;
}
th, td { padding: .55rem .8rem; text-align: right; vertical-align: baseline; border-bottom: 1px solid var(--rule); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { font-weight: 600; vertical-align: bottom; background: var(--soft); }
thead small { display: block; color: var(--muted); font-weight: 400; font-size: .8rem; }
th:first-child {
  text-align: left; position: sticky; left: 0; z-index: 1; background: var(--card); font-weight: 500;
  min-width: 8.5rem;
}
thead th:first-child { background: var(--soft); }
td.text, th.text { text-align: left; }
tr.subject > * { background: var(--accent-soft); }
tr.subject > th { font-weight: 700; }
td { white-space: nowrap; }
td.text { white-space: normal; }
.gain { font-size: .85em; color: var(--muted); display: inline-block; min-width: 4.2em; }
.stacked .gain { display: block; }
.gain:empty { min-width: 3.6em; }
.stacked .gain:empty { display: none; }
.good { color: var(--good); } .bad { color: var(--bad); }
.best {
  font-weight: 700; text-decoration: underline; text-decoration-color: var(--accent);
  text-decoration-thickness: 2px; text-underline-offset: .25em;
}
.spread { color: var(--muted); font-weight: 400; }
.fail { color: var(--bad); }
.edge { color: var(--bad); font-size: .85em; }
.grid {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr)); gap: 1rem; margin:
  .9rem 0;
}
figure { margin: 0; }
.card {
  background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: .8rem .9rem;
  break-inside: avoid; min-width: 0;
}
.card > figcaption { font-weight: 600; font-size: .95rem; line-height: 1.35; }
.card > figcaption small { font-weight: 400; }
.card > figcaption small.below { display: block; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text {
  font: 11.5px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: var(--ink);
  font-variant-numeric: tabular-nums;
}
svg .faint { fill: var(--muted); } svg .strong { font-weight: 700; }
svg .axis { stroke: var(--rule); stroke-width: 1; fill: none; }
svg .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.legend {
  display: flex; flex-wrap: wrap; gap: .1rem .9rem; font-size: .8rem; color: var(--muted); margin-top:
  .3rem;
}
.legend span { display: inline-flex; align-items: center; gap: .35rem; }
.legend i { width: .9rem; height: .2rem; border-radius: 2px; flex: none; }
.pictures { display: flex; flex-wrap: wrap; gap: .8rem 1rem; align-items: flex-start; margin-top: .5rem; }
.pictures > * { flex: 1 1 120px; max-width: 210px; }
.pictures img { display: block; width: 100%; height: auto; border-radius: 6px; background: var(--soft); }
.pictures figcaption { font-size: .8rem; color: var(--muted); line-height: 1.3; margin-top: .25rem; }
.pair { display: flex; flex-direction: column; gap: .5rem; }
.pair > figure { flex: 1; min-width: 0; }
.pictures > .abreast { flex: 2 1 256px; max-width: 436px; flex-direction: row; gap: 1rem; }
.rows { display: grid; gap: 1rem; margin: .9rem 0; }
.tall { display: none; }
details { margin: .9rem 0; }
summary { cursor: pointer; color: var(--accent); font-weight: 600; padding: .3rem 0; }
pre {
  background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 1rem; overflow:
  auto; font-size: .82rem; line-height: 1.45; max-height: 36rem; margin: .5rem 0;
}
pre, code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
ul { padding-left: 1.2rem; margin: .5rem 0; }
footer { margin-top: 3.5rem; border-top: 1px solid var(--rule); padding-top: .8rem; }
@media (max-width: 640px) {
  main { padding: 1.4rem .9rem 3rem; }
  h2 { margin-top: 2.4rem; }
  .verdict { font-size: 1.04rem; padding-left: .9rem; }
  table { font-size: .875rem; }
  th, td { padding: .5rem .55rem; }
  .gain { display: block; }
  .gain:empty { display: none; }
  th:first-child {
    min-width: 7.2rem; width: 7.2rem; max-width: 7.2rem; overflow-wrap: break-word; border-right: 1px solid
    var(--rule);
  }
  .wide { display: none; } .tall { display: block; }
  .pictures > figure { flex: 0 0 calc(50% - .5rem); }
  .pictures > .pair { flex: 0 0 100%; flex-direction: row; max-width: none; gap: 1rem; }
}
@media print {
  :root {
    color-scheme: light; --page: #fff; --card: #fff; --ink: #000; --muted: #444; --rule: #bbb; --soft: #f3f3f3;
    --accent: #0b6e69; --accent-soft: #eef6f5; --good: #1b6e33; --bad: #ab2b1e;
    --c0: #0072b2; --c1: #c4540a; --c2: #00805c; --c3: #a6448a; --c4: #8a6d00; --c5: #3a55c4; --c6: #7a5230;
    --c7: #5c626b;
  }
  main { max-width: none; padding: 0; }
  body { font-size: 11pt; }
  .scroll, pre { overflow: visible; max-height: none; }
  pre { white-space: pre-wrap; }
  table { font-size: 8.5pt; } th, td { padding: .3rem .35rem; } th:first-child { position: static; min-width: 0; }
  td { white-space: normal; }
  .pictures > * { flex: 0 0 110px; }
  h2, h3 { break-after: avoid; }
  tr, .card { break-inside: avoid; }
  nav { display: none; }
}
"""
