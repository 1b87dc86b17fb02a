"""The page's style sheet and its two small scripts."""

from __future__ import annotations

STYLE = """
:root { --ink: #22262b; --soft: #5d6670; --line: #e2e4e7; --tint: #f6f7f8; --link: #00548a;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --serif: Charter, "Bitstream Charter", "Iowan Old Style", "Source Serif 4", Georgia, serif;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; color-scheme: light; }
body { margin: 0; background: #fff; color: var(--ink); font: 17px/1.55 var(--serif); }
.page { max-width: 1240px; margin: 0 auto; padding: 0 28px 72px; }
header { padding: 52px 0 18px; } header h1, header ul { max-width: 900px; }
.overline, nav, figcaption, table, .tools, .condition, .facts, footer, summary, .metric
  { font-family: var(--sans); }
.overline { margin: 0 0 10px; color: var(--soft); font-size: 13px; letter-spacing: .04em; }
h1 { margin: 0 0 18px; font: 600 31px/1.24 var(--serif); letter-spacing: -.008em;
  text-wrap: balance; }
h2 { margin: 0 0 10px; font: 600 22px/1.3 var(--serif); }
h3 { margin: 30px 0 10px; font: 600 17px/1.3 var(--serif); }
h4 { margin: 24px 0 8px; font: italic 400 16px/1.3 var(--serif); color: var(--soft); }
p { margin: 0 0 12px; max-width: 46em; }
header ul { margin: 0; padding-left: 1.1em; }
header li { margin: 0 0 5px; }
.flags { max-width: 900px; margin: 0 0 18px; padding: 10px 16px 8px; background: #fdf6e3;
  border-left: 4px solid #e69f00; font: 14.5px/1.45 var(--sans); }
.flags p { margin: 0 0 5px; font-weight: 600; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
.facts { display: flex; flex-wrap: wrap; gap: 4px 34px; margin: 26px 0 0; padding: 14px 0 0;
  border-top: 1px solid var(--line); font-size: 13px; }
.facts div { min-width: 70px; } .facts dt { color: var(--soft); }
.facts dd { margin: 0; font-size: 16px; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: 0 20px; padding: 12px 0;
  border-bottom: 1px solid var(--line); font-size: 13.5px; line-height: 1.9; }
nav a { white-space: nowrap; }
section { padding: 40px 0 6px; border-bottom: 1px solid var(--line); }
section > p { color: var(--ink); }
figure { margin: 0 0 26px; } .plot { width: 100%; }
figcaption { max-width: 62em; margin-top: 4px; color: var(--soft); font-size: 13.5px;
  line-height: 1.5; }
.scroll { max-height: 560px; margin: 0 0 22px; overflow: auto; }
table { border-collapse: collapse; font-size: 13.5px; line-height: 1.4;
  font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px 5px 6px; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { position: sticky; top: 0; z-index: 1; background: #fff; box-shadow: inset 0 -1px #b9bec4;
  border: 0;
  font-weight: 600; white-space: nowrap; }
th.num, td.num { text-align: right; white-space: nowrap; }
th button { all: unset; cursor: pointer; } th button:hover { color: var(--link); }
th button:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
tr.rejected td { color: var(--soft); } tr.chosen td { background: #fcf8cf; }
table.sortable { width: 100%; } table.sortable td:last-child { width: 40%; }
.only-passing tr.rejected { display: none; } tr.effect td { background: var(--tint); }
table.names td { overflow-wrap: anywhere; }
table.names td:first-child { color: var(--soft); white-space: nowrap; }
table.names td:last-child { font-family: var(--mono); font-size: 12.5px; white-space: pre-wrap; }
details { margin: 0 0 14px; } summary { margin-bottom: 8px; color: var(--soft); font-size: 14px;
  cursor: pointer; }
.tools { font-size: 13.5px; } .tools input { accent-color: var(--ink); }
.exchange { margin: 0 0 14px; border: 1px solid var(--line); border-radius: 5px;
  break-inside: avoid; }
.prompt { max-width: none; max-height: 9em; margin: 0; padding: 8px 14px; overflow: auto;
  background: var(--tint);
  border-bottom: 1px solid var(--line); white-space: pre-wrap; overflow-wrap: anywhere;
    font-size: 16px; }
.replies { display: grid; grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); }
.reply { min-width: 0; padding: 8px 14px 10px; border-left: 1px solid var(--line); }
.reply:first-child { border-left: 0; }
.condition { margin: 0 0 4px; color: var(--soft); font-size: 12.5px; }
.said { max-height: 11em; overflow: auto; font-size: 15.5px; line-height: 1.45;
  white-space: pre-wrap;
  overflow-wrap: anywhere; }
.badge { display: inline-block; margin-left: 6px; padding: 0 6px; border-radius: 3px;
  background: #454b52;
  color: #fff; font-size: 11.5px; line-height: 1.5; }
.metric { margin-left: 6px; white-space: nowrap; }
footer { padding: 22px 0 0; color: var(--soft); font-size: 13.5px; } footer p { max-width: none; }
.warning { padding: 10px 14px; background: var(--tint); border-left: 3px solid #454b52; }
@media (max-width: 700px) { .page { padding: 0 14px 40px; } h1 { font-size: 25px; } body {
  font-size: 16px; } }
@media print {
  body { font-size: 10.5pt; } .page { max-width: none; padding: 0; } nav, .tools, .modebar {
    display: none !important; }
  header { padding-top: 0; } section { padding-top: 18px; } figure, tr { break-inside: avoid; }
    h2, h3 { break-after: avoid; }
  .scroll, .said, .prompt { max-height: none; overflow: visible; } th { position: static; }
  table { font-size: 7.5pt; } td { overflow-wrap: anywhere; }
  table.sortable td:last-child { width: 30%; }
}
"""

DRAW = """
"use strict";
(async () => {
  const plots = [...document.querySelectorAll(".plot")];
  const root = document.documentElement;
  let drawn = 0;
  for (const plot of plots) {
    const spec = JSON.parse(document.getElementById(plot.dataset.spec).textContent);
    const config = {
      responsive: true, displaylogo: false, typesetMath: false,
      showSendToCloud: false, plotlyServerURL: "",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
      toImageButtonOptions: {format: "svg", filename: plot.dataset.name},
    };
    try {
      await Plotly.newPlot(plot, spec.data, spec.layout, config);
      drawn += 1;
    } catch (error) {
      plot.textContent = "This figure could not be drawn.";
      console.error(plot.dataset.name, error);
    }
    await new Promise((resolve) => setTimeout(resolve));
  }
  root.dataset.drawn = `${drawn}/${plots.length}`;
  const resize = () => plots.forEach((plot) => Plotly.Plots.resize(plot));
  window.addEventListener("beforeprint", resize);
  window.addEventListener("afterprint", resize);
})();
"""

TABLES = """
"use strict";
const key = (row, column) => {
  const text = row.cells[column].dataset.sort;
  const number = Number(text === "inf" ? Infinity : text);
  return text === "" || Number.isNaN(number) ? text : number;
};
const compare = (a, b) => typeof a === typeof b
  ? (typeof a === "number" ? (a < b ? -1 : a > b ? 1 : 0) : a.localeCompare(b))
  : typeof a === "number" ? -1 : 1;
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows].map((row) => [key(row, column), row]);
    rows.sort((a, b) => (down ? -1 : 1) * compare(a[0], b[0]));
    table.tBodies[0].append(...rows.map((pair) => pair[1]));
  }));
}
for (const box of document.querySelectorAll("input.filter")) {
  const table = box.closest("section").querySelector("table");
  box.addEventListener("change", () => table.classList.toggle("only-passing", box.checked));
}
"""
