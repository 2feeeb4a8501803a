"""The report's style sheet: light, dark and on paper. Contrasts of text are 4.5:1 or more."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #f7f8f8; --card: #ffffff; --line: #dfe4e6; --grid: #e3e7e9;
  --ink: #17222b; --muted: #55636d; --accent: #0b6375; --tint: #e8f1f2;
  --worst: #b83a0c; --worst-tint: #fbeee8; --good: #1d6b45; --good-tint: #e7f2ec;
  --wait: #7a5a00; --wait-tint: #f8f1dc;
  --bar-strong: #1f7a8c; --bar-soft: #a9cfd6;
  --heat-1: #fdf3ec; --heat-2: #fbe3d5; --heat-3: #f8cfb8; --heat-4: #f3b797; --heat-5: #ec9a74;
  --series-1: #0072b2; --series-2: #8a6500; --series-3: #00795a;
  --series-4: #97458a; --series-5: #3d6f9c; --series-6: #6b6f2a;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #10171b; --card: #182126; --line: #2d3a41; --grid: #2c383f;
    --ink: #e8eef0; --muted: #a2b1b8; --accent: #6fc7d6; --tint: #1c2f35;
    --worst: #ff9468; --worst-tint: #3a231a; --good: #74cfa0; --good-tint: #173026;
    --wait: #e8c468; --wait-tint: #332b15;
    --bar-strong: #4fb3c4; --bar-soft: #2b5a66;
    --heat-1: #2a2725; --heat-2: #3b2c26; --heat-3: #4f3125; --heat-4: #653825; --heat-5: #7d3f25;
    --series-1: #5cb3ec; --series-2: #e0b040; --series-3: #3fc79c;
    --series-4: #dd9ad3; --series-5: #a9c8e6; --series-6: #c3c76a;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", "Liberation Sans", sans-serif;
}
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 1rem; top: 1rem; background: var(--card); padding: .5rem 1rem; }
.wrap { max-width: 1120px; margin: 0 auto; padding: 0 1.5rem; }
header { padding: 3rem 0 1rem; }
h1 { margin: 0 0 .35rem; font-size: 2.1rem; line-height: 1.2; letter-spacing: -.015em;
  font-weight: 650; overflow-wrap: anywhere; text-wrap: balance; }
h2 { margin: 3.2rem 0 .4rem; font-size: 1.35rem; letter-spacing: -.01em; font-weight: 640; }
h3 { margin: 0 0 .3rem; font-size: 1rem; font-weight: 640; }
p { margin: .3rem 0 .9rem; max-width: 46rem; }
a { color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; border-radius: 2px; }
.eyebrow { margin: 0 0 .5rem; color: var(--muted); font-size: .86rem; }
.lead { font-size: 1.12rem; color: var(--ink); max-width: 50rem; }
.quiet { color: var(--muted); font-size: .9rem; }
.state { display: inline-block; padding: .1rem .65rem; border-radius: 1rem; font-size: .82rem;
  font-weight: 600; background: var(--tint); color: var(--accent); }
.state.completed { background: var(--good-tint); color: var(--good); }
.state.failed { background: var(--worst-tint); color: var(--worst); }
.state.running { background: var(--wait-tint); color: var(--wait); }
.notice { border-left: 3px solid var(--worst); background: var(--worst-tint);
  padding: .7rem 1rem; border-radius: 0 8px 8px 0; max-width: 50rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.3rem; list-style: none; padding: 0;
  margin: 1.4rem 0 0; font-size: .92rem; }
nav a { text-decoration: none; } nav a:hover { text-decoration: underline; }

.tiles + p { margin-top: 1rem; }
.tiles { display: grid; grid-template-columns: repeat(12, 1fr); gap: 1px; margin: 1.4rem 0 0;
  background: var(--line); border: 1px solid var(--line); border-radius: 12px; overflow: hidden; }
.tile { background: var(--card); padding: 1rem 1.2rem 1.05rem; min-width: 0;
  grid-column: span 3; }
.tile.main { grid-column: span 6; }
.tile.third { grid-column: span 4; }
.tile.half { grid-column: span 6; }
.tile dt { color: var(--muted); font-size: .86rem; }
.tile dd { margin: 0; }
.tile .figure { font-size: 1.55rem; font-weight: 620; line-height: 1.3; letter-spacing: -.015em;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.tile.main .figure { font-size: 2.6rem; }
.tile.third .figure { font-size: 2.1rem; }
.tile.worst .figure { color: var(--worst); }
.tile .figure small { display: inline-block; font-size: .5em; font-weight: 600; letter-spacing: 0; }
.tile .quiet { line-height: 1.4; margin-top: .15rem; overflow-wrap: anywhere; }

.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.2rem;
  align-items: start; margin-top: 1.1rem; }
figure, .card { margin: 0; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; padding: 1.1rem 1.2rem; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
figure svg * { stroke-linejoin: round; }
figcaption p:not(.verdict) { color: var(--muted); font-size: .9rem; line-height: 1.45;
  margin-bottom: .7rem; }
summary { cursor: pointer; color: var(--accent); font-size: .9rem; padding: .2rem 0; }
details h3 { padding-top: .6rem; }
details > *:not(summary) { margin-top: .6rem; }
figure details { margin-top: .5rem; }
/* A last figure that would stand alone takes the whole row: words left, drawing right. */
@media print, (min-width: 821px) {
  .charts > figure:last-child:nth-child(odd) { grid-column: span 2; display: grid;
    grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 0 1.2rem; }
  .charts > figure:last-child:nth-child(odd) details { grid-column: 1 / -1; }
}

.scroll { overflow: auto; border: 1px solid var(--line); border-radius: 12px;
  background: var(--card); margin: 1rem 0; max-height: 34rem; }
figure .scroll, details .scroll { max-height: 22rem; }
.scroll.whole { max-height: none; }
.pin th:first-child { position: sticky; left: 0; background: var(--card); z-index: 1; }
.pin thead th:first-child { z-index: 2; }
table { border-collapse: collapse; width: 100%; font-size: .92rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .5rem .75rem; border-bottom: 1px solid var(--line);
  vertical-align: top; }
thead th { position: sticky; top: 0; background: var(--card); color: var(--muted);
  font-weight: 600; font-size: .85rem; box-shadow: inset 0 -1px var(--line); white-space: nowrap; }
tbody tr:last-child > *, tfoot tr:last-child > * { border-bottom: 0; }
tbody th { font-weight: 600; overflow-wrap: anywhere; min-width: 4.5rem; }
td.n, th.n { text-align: right; white-space: nowrap; }
tfoot th { white-space: nowrap; }
tfoot th, tfoot td { border-top: 2px solid var(--line); font-weight: 640; }
.mark { display: inline-block; margin-left: .4rem; padding: 0 .4rem; border-radius: .6rem;
  font-size: .76rem; font-weight: 600; color: var(--worst); background: var(--worst-tint); }
.left { color: var(--worst); }
.mark.alone { display: block; width: max-content; margin: .2rem 0 0; }
.interval { color: var(--muted); font-weight: 400; white-space: nowrap; }
td .interval { display: block; font-size: .88em; }
.tile .figure .interval { font-size: .5em; letter-spacing: 0; }
.accounts td.budget { min-width: 6.5rem; }
.accounts td.accountant { min-width: 9rem; }
.accounts .since { color: var(--muted); font-size: .84rem; font-weight: 400; }
.gauge { height: .5rem; margin-top: .35rem; border-radius: .25rem; overflow: hidden;
  background: var(--bar-soft); }
.gauge span { display: block; height: 100%; background: var(--bar-strong); }
.gauge.low span { background: var(--worst); }
.groups thead th, .heat thead th { white-space: normal; vertical-align: bottom; min-width: 5.2rem; }
.groups .part th { background: var(--page); color: var(--muted); font-size: .85rem; }
.groups .whole > * { font-weight: 640; }
.groups tr.apart > * { color: var(--muted); }
tfoot .out > * { border-top: 1px solid var(--line); font-weight: 400; white-space: normal; }
.remark { display: block; width: max-content; max-width: 10rem; font-size: .8rem; font-weight: 400;
  color: var(--muted); }
.heat-1 { background: var(--heat-1); } .heat-2 { background: var(--heat-2); }
.heat-3 { background: var(--heat-3); } .heat-4 { background: var(--heat-4); }
.heat td.heat-5 { background: var(--heat-5); font-weight: 640; }
h3.apart { margin: 1.8rem 0 -.4rem; }
.terms th, .terms td:nth-child(2) { min-width: 8.5rem; }
.terms td:nth-child(3) { min-width: 16rem; }
td.when { white-space: nowrap; }
td.why { min-width: 12rem; }
td.why div + div { margin-top: .15rem; }
.settings { columns: 290px; column-gap: 1.2rem; margin: 1.1rem 0 0; }
.settings .card { break-inside: avoid; margin-bottom: 1.2rem; }
.settings dl, .facts { margin: 0; display: grid; grid-template-columns: auto minmax(0, 1fr);
  gap: .25rem 1rem; font-size: .9rem; }
.facts.way { margin: 1.4rem 0 1rem; }
.settings h3 { text-transform: capitalize; }
.settings dt, .facts dt { color: var(--muted); overflow-wrap: anywhere; }
.settings dd, .facts dd { margin: 0; overflow-wrap: anywhere; }
.settings dd { text-align: right; font-variant-numeric: tabular-nums; }
code, pre { font: .84em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
code { overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card); padding: 1rem;
  border: 1px solid var(--line); border-radius: 12px; }

.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr));
  gap: 1.2rem; margin-top: 1.1rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; border-radius: 8px;
  overflow: hidden; margin-bottom: .7rem; background: #000; align-items: center; }
.pair.single { grid-template-columns: 1fr; }
figure svg.picture { background: #000; overflow: hidden; max-height: 360px; }
.picture path { fill: none; stroke-width: 2px; vector-effect: non-scaling-stroke; }
.picture .truth { stroke: #56c4ff; }
.picture .predicted { stroke: #ffb000; stroke-dasharray: 5 4; }
.key { display: inline-block; width: 1.7rem; height: .6rem; margin: 0 .3rem 0 0;
  vertical-align: middle; background: #000; border-radius: 2px;
  background-repeat: no-repeat; background-position: center; background-size: 76% 2px; }
.key.truth { background-image: linear-gradient(#56c4ff, #56c4ff); }
.key.predicted { background-image: repeating-linear-gradient(
  90deg, #ffb000 0 5px, #000 5px 8px); }
.scores { margin: .4rem 0 0; display: grid; grid-template-columns: auto minmax(3rem, 1fr) auto;
  gap: .25rem .7rem; font-size: .9rem; align-items: center; }
.scores .bar { height: .55rem; border-radius: .3rem; background: var(--tint); overflow: hidden; }
.scores .bar span { display: block; height: 100%; background: var(--bar-strong); }
.scores .n { font-variant-numeric: tabular-nums; text-align: right; }
.verdict { font-weight: 620; margin: 0; }
.columns { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 1.2rem;
  margin-top: 1.1rem; }
.columns.two { grid-template-columns: repeat(2, minmax(0, 1fr)); margin: 1.2rem 0; }
.columns p { font-size: .93rem; }
.columns p:last-child { margin-bottom: 0; }
.columns ul { margin: .3rem 0 0; padding-left: 1.1rem; font-size: .93rem; }
.columns li { margin: .35rem 0; }
.card.caution { border-color: var(--worst); }
.card.caution h3 { color: var(--worst); }
footer { margin: 3rem 0 2.5rem; padding-top: 1rem; border-top: 1px solid var(--line); }

@media screen and (max-width: 820px) {
  .tile { grid-column: span 6; } .tile.main, .tile.third { grid-column: span 12; }
  .charts, .columns, .columns.two { grid-template-columns: minmax(0, 1fr); }
}
@media screen and (max-width: 520px) {
  .wrap { padding: 0 1rem; } header { padding-top: 1.8rem; } h1 { font-size: 1.6rem; }
  .tile { padding: .8rem .9rem; } .tile.main .figure { font-size: 2rem; }
  .tile .figure { font-size: 1.25rem; }
  figure svg text { font-size: 11.5px !important; }
  figure, .card { padding: .9rem; } th, td { padding: .45rem .6rem; }
  .terms thead { display: none; } .terms tr, .terms th, .terms td { display: block; }
  .terms th, .terms td:nth-child(2) { border: 0; padding-bottom: 0; }
  .terms td:nth-child(n) { min-width: 0; } .terms td + td { padding-top: .1rem; }
  .facts { grid-template-columns: minmax(0, 1fr); gap: 0; } .facts dd { margin-bottom: .5rem; }
}
@page { margin: 14mm; }
@media print {
  body { background: none; font-size: 10pt; }
  nav, .skip, details:not([open]) { display: none; }
  h2 { margin-top: 1.8rem; } footer { margin: 1rem 0 0; }
  .wrap { max-width: none; padding: 0; } header { padding-top: 0; }
  .scroll, details .scroll { max-height: none; overflow: visible; }
  thead th, .pin th:first-child { position: static; }
  h2, h3 { break-after: avoid; } figure, .card, .tiles, tr { break-inside: avoid; }
  .state, .mark, .bar, .gauge, .gauge span, .picture, .key, .heat td { print-color-adjust: exact; }
}
"""
