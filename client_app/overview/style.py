"""The overview's style sheet: light, dark and on paper. Contrasts of text are 4.5:1 or more."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #f7f8f8; --card: #ffffff; --line: #dfe4e6; --ink: #17222b; --muted: #55636d;
  --accent: #0b6375; --tint: #e8f1f2; --bar: #1f7a8c; --warn: #8f2a05; --warn-tint: #fbe9e1;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #10171b; --card: #182126; --line: #2d3a41; --ink: #e8eef0; --muted: #a2b1b8;
    --accent: #6fc7d6; --tint: #1c2f35; --bar: #4fb3c4; --warn: #ffb090; --warn-tint: #43261a;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", "Liberation Sans", sans-serif;
}
.banner { position: sticky; top: 0; z-index: 3; margin: 0; padding: .6rem 1.5rem; text-align: center;
  color: var(--warn); background: var(--warn-tint); border-bottom: 1px solid var(--warn); }
.wrap { max-width: 1120px; margin: 0 auto; padding: 0 1.5rem; }
header { padding: 2rem 0 .5rem; }
h1 { margin: 0 0 .2rem; font-size: 2rem; letter-spacing: -.015em; font-weight: 650; }
h2 { margin: 2.6rem 0 .3rem; font-size: 1.35rem; font-weight: 640; scroll-margin-top: 3.5rem; }
h3 { margin: 1.6rem 0 .2rem; font-size: 1rem; font-weight: 640; }
p { margin: .3rem 0 .9rem; max-width: 50rem; } .banner { max-width: none; }
ul { margin: .3rem 0; }
a { color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; border-radius: 2px; }
.quiet { color: var(--muted); font-size: .9rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.3rem; list-style: none; padding: 0;
  margin: 1.2rem 0 0; font-size: .92rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.2rem, 1fr)); gap: .7rem;
  margin: 1.2rem 0 0; }
.tile, .card, figure { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: .8rem 1rem; }
.tile dt { color: var(--muted); font-size: .86rem; } .tile dd { margin: 0; }
.tile .quiet { font-size: .8rem; line-height: 1.35; }
.figure { font-size: 1.6rem; font-weight: 620; line-height: 1.3; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem;
  margin-top: 1rem; align-items: start; }
.card { padding: .9rem 1rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 640; font-size: 1rem; padding-bottom: .35rem; }
th, td { text-align: left; padding: .5rem .75rem; vertical-align: top;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--muted); font-weight: 600; font-size: .85rem; }
tbody th { font-weight: 600; }
tbody tr:last-child > * { border-bottom: 0; }
td.n, th.n { text-align: right; white-space: nowrap; }
.bars th, .bars td { border: 0; padding: .14rem .3rem; }
.bars th { padding-left: 0; font-weight: 400; width: 45%; overflow-wrap: anywhere; }
.bars .track { width: 40%; padding-right: 0; vertical-align: middle; }
.track svg { display: block; width: 100%; height: .6rem; background: var(--tint); border-radius: 2px; }
.track rect { fill: var(--bar); }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.scroll { overflow: auto; border: 1px solid var(--line); border-radius: 10px; background: var(--card);
  margin: 1rem 0; }
code { font: .88em ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.6rem, 1fr)); gap: .8rem;
  margin-top: 1rem; }
figure { margin: 0; overflow: hidden; break-inside: avoid; }
.frame { background: #000; height: 128px; display: flex; align-items: center;
  justify-content: center; }
.frame img { display: block; }
.frame.none { background: var(--tint); color: var(--ink); padding: .6rem; text-align: center;
  font-size: .8rem; overflow-wrap: anywhere; }
figcaption { padding: .45rem .6rem .55rem; font-size: .78rem; line-height: 1.4; color: var(--muted);
  overflow-wrap: anywhere; }
figcaption b { color: var(--ink); }
footer { margin: 2.5rem 0 2rem; padding-top: 1rem; border-top: 1px solid var(--line); }
@media screen and (max-width: 520px) {
  .wrap { padding: 0 1rem; } .charts { grid-template-columns: minmax(0, 1fr); }
  .banner { padding: .5rem 1rem; font-size: .9rem; }
}
@page { margin: 14mm; }
@media print {
  body { background: none; font-size: 10pt; } nav { display: none; }
  .banner { position: static; border: 1px solid var(--warn); }
  .wrap { max-width: none; padding: 0; } .scroll { overflow: visible; }
  h2, h3 { break-after: avoid; } .card, .tile, tr { break-inside: avoid; }
  .banner, .frame, .track svg { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
