"""How a page looks, and the little that moves on it. Without the script the page says the same."""

STYLE = """
html {
  color-scheme: light dark;
  --page: #f7f7f5; --card: #ffffff; --ink: #191c20; --soft: #5d656e; --edge: #e3e4e2; --grid: #ececea;
  --chip: #eef0f2;
  --c0: #2563eb; --c1: #d9570b; --c2: #0d8a72; --c3: #a43bb5; --c4: #b58900; --c5: #c02658; --c6: #5b6b7c;
  --c7: #4d7c0f;
}
@media (prefers-color-scheme: dark) {
  html {
    --page: #0e1114; --card: #161a1f; --ink: #e7e9ec; --soft: #9ba4ae; --edge: #262c33; --grid: #232930;
    --chip: #222830;
    --c0: #6ea0ff; --c1: #ff9550; --c2: #35c9a5; --c3: #d68be6; --c4: #dcb340; --c5: #ff7aa2; --c6: #9fb0c2;
    --c7: #a3cf5b;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto,
    "Helvetica Neue", Arial, "Noto Sans", sans-serif; -webkit-text-size-adjust: 100%;
}
main { max-width: 1180px; margin: 0 auto; padding: 2rem 1.25rem 3rem; display: grid; gap: 1.1rem; }
main > * { min-width: 0; }
h1 { font-size: 1.75rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0 0 0.7rem; letter-spacing: -0.005em; }
h3 { font-size: 0.95rem; margin: 0; }
p { margin: 0; }
small, .soft { color: var(--soft); font-size: 0.84rem; }
header { display: grid; gap: 0.35rem; }
.title { display: flex; flex-wrap: wrap; align-items: center; gap: 0.4rem 0.8rem; }
.state {
  font-size: 0.78rem; font-weight: 600; padding: 0.1rem 0.6rem; border-radius: 1rem; background: var(--chip);
  color: var(--soft);
}
.state.running { color: var(--c0); } .state.finished { color: var(--c2); } .state.stopped { color: var(--c1); }
.progress { height: 6px; border-radius: 3px; background: var(--chip); overflow: hidden; margin-top: 0.3rem; }
.progress i { display: block; height: 100%; background: var(--c0); border-radius: 3px; }
.card { background: var(--card); border: 1px solid var(--edge); border-radius: 12px; padding: 1rem 1.15rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 0.7rem; margin: 0; }
.tiles div {
  background: var(--card); border: 1px solid var(--edge); border-radius: 12px; padding: 0.7rem 0.95rem;
  min-width: 0;
}
.tiles dt { color: var(--soft); font-size: 0.8rem; }
.tiles dd { margin: 0; }
.tiles dd.value {
  font-size: 1.45rem; font-weight: 620; line-height: 1.3; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums;
}
.tiles dd.long { font-size: 1.12rem; line-height: 1.73; }
.tiles dd.more { color: var(--soft); font-size: 0.8rem; line-height: 1.35; }
.charts { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 0.9rem; }
.charts > * { grid-column: span 2; }
.charts > :last-child:nth-child(3n+1) { grid-column: span 6; }
.charts > :last-child:nth-child(3n+2), .charts > :nth-last-child(2):nth-child(3n+1) { grid-column: span 3; }
@media (max-width: 980px) {
  .charts > *, .charts > :nth-last-child(2):nth-child(3n+1) { grid-column: span 3; }
  .charts > :last-child:nth-child(2n+1) { grid-column: span 6; }
  .charts > :last-child:nth-child(2n) { grid-column: span 3; }
}
@media (max-width: 660px) { .charts > *, .charts > :last-child:nth-child(n) { grid-column: span 6; } }
.chart {
  margin: 0; background: var(--card); border: 1px solid var(--edge); border-radius: 12px;
  padding: 0.9rem 1.1rem 0.75rem; display: flex; flex-direction: column;
}
figcaption { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 0.6rem; }
.legend {
  list-style: none; display: flex; flex-wrap: wrap; gap: 0 1rem; padding: 0; margin: 0.2rem 0 0.55rem;
  font-size: 0.84rem; color: var(--soft); min-height: 1.3rem;
}
.legend li { overflow-wrap: anywhere; }
.legend b { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums; }
.key {
  display: inline-block; width: 0.7rem; height: 0.7rem; border-radius: 3px; margin-right: 0.4rem;
  background: var(--c);
}
.key.dashed { background: repeating-linear-gradient(to right, var(--c) 0 4px, transparent 4px 6px); }
.line.dashed { stroke-dasharray: 6 5; }
.key.level {
  height: 0; border-top: 2px dashed var(--soft); background: none; vertical-align: 0.25rem; border-radius: 0;
  width: 1rem;
}
.key.mark { width: 2px; border-radius: 0; background: var(--c5); }
.plot { display: grid; grid-template-columns: 3.1rem minmax(0, 1fr); padding-right: 0.8rem; margin-top: auto; }
.frame { position: relative; height: 190px; border-bottom: 1px solid var(--soft); touch-action: pan-y; }
.tall .frame { height: 340px; }
.frame svg { display: block; width: 100%; height: 100%; overflow: visible; }
.y, .x { position: relative; color: var(--soft); font-size: 0.75rem; font-variant-numeric: tabular-nums; }
.y span { position: absolute; right: 0.5rem; transform: translateY(-50%); white-space: nowrap; line-height: 1; }
.x { grid-column: 2; height: 1.3rem; }
.x em {
  position: absolute; right: calc(100% + 0.5rem); top: 0.45rem; font-style: normal; line-height: 1;
  white-space: nowrap; opacity: 0.85;
}
.x span { position: absolute; top: 0.45rem; transform: translateX(-50%); white-space: nowrap; line-height: 1; }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); }
.c4 { --c: var(--c4); } .c5 { --c: var(--c5); } .c6 { --c: var(--c6); } .c7 { --c: var(--c7); }
svg path { vector-effect: non-scaling-stroke; fill: none; stroke-linejoin: round; stroke-linecap: round; }
.grid { stroke: var(--grid); stroke-width: 1px; } .line { stroke: var(--c); stroke-width: 1.8px; }
svg .band { fill: var(--c); opacity: 0.2; stroke: none; } svg .area { fill: var(--c); opacity: 0.62; stroke: none; }
.dots {
  stroke: var(--c); stroke-width: 6.5px; } .level { stroke: var(--soft); stroke-width: 1.4px;
  stroke-dasharray: 5 5;
}
.mark { stroke: var(--c5); stroke-width: 2px; }
.rule {
  position: absolute; top: 0; bottom: 0; left: calc(var(--at, -1) * 100%); border-left: 1px solid var(--soft);
  display: none; pointer-events: none;
}
.pointed .rule { display: block; }
.rule b {
  position: absolute; top: -0.2rem; left: 0.35rem; font: 600 0.72rem/1 system-ui, sans-serif; white-space: nowrap;
  background: var(--card); padding: 0.15rem 0.25rem; border-radius: 4px;
}
.rule.left b { left: auto; right: 0.35rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.87rem; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 550; color: var(--soft); white-space: nowrap; }
th, td { padding: 0.34rem 0.85rem 0.34rem 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
tr:last-child > * { border-bottom: 0; }
td { overflow-wrap: anywhere; } .numbers td, .numbers thead th { white-space: nowrap; text-align: right; }
.words td, .words thead th { text-align: left; white-space: normal; }
.numbers tr > :first-child {
  text-align: left; white-space: normal; min-width: 7rem; } .numbers td.best { font-weight: 650;
}
.numbers tr > :last-child, .facts tr > :last-child { padding-right: 0; }
.facts th { width: 1%; padding-right: 1.5rem; }
.two {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(430px, 100%), 1fr)); gap: 0.9rem;
  align-items: start;
}
pre {
  margin: 0; font: 0.8rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; columns: 19rem; column-gap: 2rem;
}
summary { cursor: pointer; font-weight: 600; font-size: 1.05rem; } details[open] summary { margin-bottom: 0.7rem; }
.sample + .sample { margin-top: 1.1rem; }
.sample h3 { unicode-bidi: isolate; overflow-wrap: anywhere; }
.sample ol { list-style: none; margin: 0.3rem 0 0; padding: 0; font-size: 0.9rem; }
.sample li { display: grid; grid-template-columns: 5.2rem minmax(0, 1fr); gap: 0.6rem; padding: 0.16rem 0; }
.sample li > :first-child {
  color: var(--soft); font-size: 0.8rem; line-height: 1.7; font-variant-numeric: tabular-nums; text-align: right;
}
.sample bdi { overflow-wrap: anywhere; }
.sample li:last-child bdi { font-weight: 550; }
.fills { display: flex; flex-wrap: wrap; gap: 0.2rem 0.5rem; }
.fill {
  background: linear-gradient(to right, color-mix(in srgb, var(--c0) 26%, transparent) var(--p), var(--chip) var(--p));
  border-radius: 5px; padding: 0 0.5rem; max-width: 100%; overflow-wrap: anywhere;
}
.fill small { margin-left: 0.3rem; }
.axis {
  display: flex; gap: 0.2rem 1rem; flex-wrap: wrap; font-size: 0.87rem; color: var(--soft); align-items: center;
}
.axis label { cursor: pointer; display: inline-flex; gap: 0.35rem; align-items: center; }
.by-step, .by-token { display: grid; gap: 0.9rem; }
body:has(#by-step:checked) .by-token, body:not(:has(#by-step:checked)) .by-step { display: none; }
footer { color: var(--soft); font-size: 0.8rem; }
@media (max-width: 560px) {
  main { padding: 1.2rem 0.75rem 2rem; gap: 0.8rem; } h1 { font-size: 1.4rem; }
  .tiles div:last-child:nth-child(odd) { grid-column: span 2; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 0.5rem; } .tiles dd.value { font-size: 1.2rem; }
  .card, .chart { padding-left: 0.8rem; padding-right: 0.8rem; } .tall .frame { height: 260px; }
  .plot { grid-template-columns: 2.7rem minmax(0, 1fr); } .sample li { grid-template-columns: 3.8rem minmax(0, 1fr); }
  .numbers { font-size: 0.8rem; } .numbers th, .numbers td { padding-right: 0.6rem; }
  .facts th { white-space: normal; width: 34%; padding-right: 0.8rem; }
}
@media print { .card, .chart, .tiles div { break-inside: avoid; } }
"""

# It holds no sign that XML would need escaped, so that the page is well-formed as XML, too.
SCRIPT = """
"use strict";
const charts = [...document.querySelectorAll(".chart")].map(figure => {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const values = [...figure.querySelectorAll(".legend b:not(.fixed)")];
  return {figure, data, values, last: values.map(value => value.textContent)};
});
function nearest(places, x) {
  let best = 0;
  places.forEach((place, number) => { if (Math.abs(places[best] - x) > Math.abs(place - x)) best = number; });
  return best;
}
function point(share, name) {
  for (const {figure, data, values} of charts) {
    if (data.name !== name) continue;
    figure.classList.add("pointed");
    const rule = figure.querySelector(".rule");
    rule.style.setProperty("--at", share);
    rule.classList.toggle("left", share > 0.6);
    const x = share * data.end;
    let at = x;
    data.curves.forEach((curve, number) => {
      const found = nearest(curve.x, x);
      if (number === 0) at = curve.x[found];
      values[number].textContent = curve.text[found];
    });
    const place = Math.round(at).toLocaleString("en");
    rule.firstChild.textContent = data.name === "step" ? "step " + place : place + " " + data.name + "s";
  }
}
function leave() {
  for (const {figure, values, last} of charts) {
    figure.classList.remove("pointed");
    values.forEach((value, number) => { value.textContent = last[number]; });
  }
}
for (const {figure, data} of charts) {
  const frame = figure.querySelector(".frame");
  const follow = event => {
    const box = frame.getBoundingClientRect();
    point(Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)), data.name);
  };
  frame.addEventListener("pointermove", follow);
  frame.addEventListener("pointerdown", follow);
  frame.addEventListener("pointerleave", leave);
}
const written = document.querySelector("time");
function age() {
  const minutes = Math.round((Date.now() - new Date(written.dateTime)) / 60000);
  const hours = Math.round(minutes / 60);
  const told = minutes > 2880 ? Math.round(hours / 24) + " days" : minutes > 120 ? hours + " h" : minutes + " min";
  written.title = written.textContent;
  written.parentElement.querySelector(".age").textContent = minutes > 0 ? " (" + told + " ago)" : "";
}
age();
if (document.body.dataset.running) {
  setInterval(age, 30000);
  setInterval(() => { if (!document.hidden) location.reload(); }, 30000);
}
"""
