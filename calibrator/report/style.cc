#include "calibrator/report/style.h"

namespace fixpoint {

// Colours are variables, so that dark is one list of other values. Sequential classes s0 to s7 run
// from the paper towards the strongest contrast through yellow, green and blue, rising or falling
// in lightness all the way; diverging d0 to d8 go from blue to orange through the paper. Both hold
// for the usual kinds of colour blindness. Text on paper has a contrast of at least 4.5.
const char kReportStyle[] = R"css(
:root {
  color-scheme: light dark;
  --paper: #fbfbf9; --box: #ffffff; --sunk: #f1f1ed; --ink: #1b1e23; --soft: #596069;
  --line: #d9dbd6; --grid: #e6e7e2; --blue: #1d5c9e; --orange: #a84f00; --mark: #ffe2a8;
  --s0: #fbf3c4; --s1: #e9e09a; --s2: #c5d295; --s3: #93b998; --s4: #5e9c9e; --s5: #397b9d;
  --s6: #28568f; --s7: #1a2b62;
  --d0: #17497f; --d1: #3d7ab8; --d2: #86b0da; --d3: #c9dcee; --d4: #eeeeea; --d5: #f8d9b9;
  --d6: #eba769; --d7: #ce6f1f; --d8: #8f4203;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --box: #1b1f25; --sunk: #23282f; --ink: #e7e7e3; --soft: #a4abb4;
    --line: #363c45; --grid: #2b3038; --blue: #79b4f2; --orange: #f2a65a; --mark: #62481a;
    --s0: #222c4b; --s1: #244374; --s2: #2c608f; --s3: #3e8097; --s4: #609f96; --s5: #95bb89;
    --s6: #cdd587; --s7: #fff3a6;
    --d0: #add2ff; --d1: #6aa5e6; --d2: #43719f; --d3: #314a66; --d4: #2d3138; --d5: #57412f;
    --d6: #91602f; --d7: #d98a3a; --d8: #ffc486;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 var(--sans); }
header, main, footer { max-width: 82rem; margin: 0 auto; padding: 0 clamp(16px, 4vw, 48px); }
header { padding-top: clamp(24px, 5vw, 56px); }
footer { padding-top: 8px; padding-bottom: 48px; color: var(--soft); font-size: 0.875rem; }
p, li { max-width: 46rem; }
h1 { font-size: clamp(1.5rem, 1.1rem + 1.8vw, 2.25rem); line-height: 1.2; margin: 0.15em 0 0.5em;
  letter-spacing: -0.012em; text-wrap: balance; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 2.6rem 0 0.5rem; padding-top: 1.1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 0.35rem; }
a { color: var(--blue); text-underline-offset: 0.18em; text-decoration-thickness: 1px; }
:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; }
.soft, .cut { color: var(--soft); }
.kind { margin: 0; color: var(--soft); font-size: 0.875rem; letter-spacing: 0.02em; }
.verdict { font-size: clamp(1.05rem, 1rem + 0.4vw, 1.2rem); margin: 0 0 1.2rem; max-width: 52rem; }
.remarks { margin: 1.2rem 0; padding: 0.6rem 1rem 0.6rem 2rem; background: var(--sunk);
  border-left: 4px solid var(--orange); border-radius: 0 6px 6px 0; overflow-wrap: anywhere; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; margin: 1.4rem 0 0; padding: 0;
  list-style: none; font-size: 0.9375rem; }
nav a { display: inline-block; padding: 0.3rem 0; }

.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: 12px;
  margin: 0; max-width: 52rem; }
.tiles div { display: flex; flex-direction: column; background: var(--box); padding: 12px 16px;
  border: 1px solid var(--line); border-radius: 8px; }
.tiles dt { color: var(--soft); font-size: 0.875rem; }
.tiles dd { margin: 0; }
.tiles .figure { font-size: 1.75rem; line-height: 1.3; font-weight: 600; letter-spacing: -0.01em; }
.tiles .more { color: var(--soft); font-size: 0.875rem; }

.scroll { overflow-x: auto; background: var(--box); border: 1px solid var(--line);
  border-radius: 8px; margin: 0.8rem 0; max-width: 100%; }
.scroll.tall { max-height: min(70vh, 40rem); overflow-y: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; line-height: 1.4; }
th, td { padding: 7px 12px; text-align: left; vertical-align: top; }
thead th { font-weight: 600; color: var(--soft); white-space: nowrap; vertical-align: bottom;
  background: var(--box); border-bottom: 1px solid var(--line); }
.tall thead th { position: sticky; top: 0; z-index: 1; box-shadow: 0 1px 0 var(--line); }
tbody th { font-weight: 400; }
tbody tr + tr > * { border-top: 1px solid var(--grid); }
.num { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td svg { display: block; margin: 2px 0 0; }
td svg.bar { margin-top: 5px; }
.note { min-width: 13rem; color: var(--soft); overflow-wrap: anywhere; }
.name { display: inline-block; min-width: 8rem; overflow-wrap: anywhere; }
tr.shipped > * { background: var(--sunk); font-weight: 600; }
tr.shipped .note { font-weight: 400; color: var(--ink); }
tr.rest td { color: var(--soft); font-style: italic; }
details { margin: 0.8rem 0; }
summary { cursor: pointer; color: var(--blue); padding: 0.3rem 0; width: fit-content; }

.chart { margin: 0.8rem 0; padding: 8px 16px 10px 60px; background: var(--box);
  border: 1px solid var(--line); border-radius: 8px; }
.chart p { max-width: none; }
.panel { display: block; width: 100%; }
.panel, .inner { overflow: visible; }
.panel-head { margin: 8px 0 2px -44px; font-size: 0.875rem; line-height: 1.4; }
.panel-head b { font-weight: 600; margin-right: 0.4em; }
.key { white-space: nowrap; color: var(--soft); margin-left: 0.6em; }
.key svg { margin-right: 0.35em; }
.x-title { margin: 0; text-align: center; color: var(--soft); font-size: 0.8125rem; }
.tick { font: 11.5px var(--sans); fill: var(--soft); font-variant-numeric: tabular-nums; }
.middle { text-anchor: middle; }
.end { text-anchor: end; }
.grid { stroke: var(--grid); }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; vector-effect: non-scaling-stroke; }
.dots { fill: none; stroke-width: 7; stroke-linecap: round; vector-effect: non-scaling-stroke; }
.raw { stroke: var(--blue); stroke-opacity: 0.38; stroke-width: 1; }
.smooth { stroke: var(--blue); }
.held { stroke: var(--orange); }
.rate { stroke: var(--soft); }
.hit { fill: transparent; }
.hit:hover { fill: var(--ink); fill-opacity: 0.12; }
.kept { stroke: var(--ink); stroke-dasharray: 4 3; }
.mark { font: 600 12px var(--sans); fill: var(--ink); paint-order: stroke; stroke: var(--box);
  stroke-width: 4px; stroke-linejoin: round; }
.forest .zero { stroke: var(--soft); stroke-dasharray: 2 2; }
.forest .error { stroke: var(--soft); stroke-width: 2; }
.forest .point { fill: var(--soft); }
.forest.strong .error { stroke: var(--blue); }
.forest.strong .point { fill: var(--blue); }
.bar rect { fill: var(--soft); fill-opacity: 0.55; }
.bar.strong rect { fill: var(--blue); fill-opacity: 1; }

.maps { display: flex; flex-wrap: wrap; gap: 16px; margin: 0.8rem 0; }
.maps figure { margin: 0; padding: 10px 14px 12px; background: var(--box);
  border: 1px solid var(--line); border-radius: 8px; max-width: 100%; min-width: 0;
  flex: 1 1 auto; }
.maps figcaption { font-size: 0.875rem; line-height: 1.4; max-width: 36rem; }
.maps figcaption b { font-weight: 600; }
.pair { display: flex; flex-wrap: wrap; gap: 0 12px; }
.pair h4 { font-size: 0.8125rem; font-weight: 600; color: var(--soft); margin: 10px 0 0 34px; }
.heat, .legend { display: block; max-width: 100%; height: auto; forced-color-adjust: none; }
.legend { margin-top: 12px; overflow: visible; }
.cell.hollow { fill: none; stroke: var(--line); stroke-dasharray: 2 2; }
.cell:hover { stroke: var(--ink); stroke-width: 1.5; }
.wide { fill: var(--ink); stroke: var(--box); stroke-width: 1.5; pointer-events: none; }
.s0 { fill: var(--s0); } .s1 { fill: var(--s1); } .s2 { fill: var(--s2); } .s3 { fill: var(--s3); }
.s4 { fill: var(--s4); } .s5 { fill: var(--s5); } .s6 { fill: var(--s6); } .s7 { fill: var(--s7); }
.sz { fill: var(--sunk); }
.d0 { fill: var(--d0); } .d1 { fill: var(--d1); } .d2 { fill: var(--d2); } .d3 { fill: var(--d3); }
.d4 { fill: var(--d4); } .d5 { fill: var(--d5); } .d6 { fill: var(--d6); } .d7 { fill: var(--d7); }
.d8 { fill: var(--d8); }

.sample { margin: 1.2rem 0; background: var(--box); border: 1px solid var(--line);
  border-radius: 8px; overflow: hidden; }
.sample > * { padding: 10px 16px; max-width: none; margin: 0; }
.prompt { background: var(--sunk); border-bottom: 1px solid var(--line); }
.twins { display: grid; grid-template-columns: 1fr 1fr; gap: 0; padding: 0; }
.twins > div { padding: 10px 16px 14px; min-width: 0; }
.twins > div + div { border-left: 1px solid var(--line); }
.text { white-space: pre-wrap; overflow-wrap: anywhere; overflow: auto; max-height: 26rem;
  font-size: 0.9375rem; tab-size: 4; }
.sample h4 { margin: 0 0 2px; font-size: 0.8125rem; font-weight: 600; color: var(--soft); }
.sample .same { border-top: 1px solid var(--line); color: var(--soft); font-size: 0.875rem; }
mark { background: var(--mark); color: inherit; border-radius: 3px; padding: 1px 2px;
  box-decoration-break: clone; -webkit-box-decoration-break: clone;
  text-decoration: underline; text-decoration-thickness: 2px; text-underline-offset: 3px;
  text-decoration-color: var(--orange); }
mark.end { margin-left: 4px; font-size: 0.8125rem; font-style: italic; text-decoration: none; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: 0 24px; align-items: start; }
.columns > div { min-width: 0; }
.columns h3 { margin-top: 1rem; }
.pairs th { white-space: nowrap; color: var(--soft); width: 1%; }
.pairs td { overflow-wrap: anywhere; min-width: 9rem; }

@media screen and (max-width: 900px) {
  /* What a row is about stays in sight while its figures scroll. */
  tbody th { position: sticky; left: 0; background: var(--box); box-shadow: 1px 0 0 var(--line); }
  thead th:first-child { position: sticky; left: 0; z-index: 2; box-shadow: 1px 0 0 var(--line); }
  .name { min-width: 6.5rem; }
}
@media (max-width: 640px) {
  th, td { padding: 6px 9px; }
  .twins { grid-template-columns: 1fr; }
  .twins > div + div { border-left: 0; border-top: 1px solid var(--line); }
  .chart { padding: 6px 12px 8px 52px; }
  .panel-head { margin-left: -40px; }
  .maps figure { width: 100%; }
  .tiles .figure { font-size: 1.5rem; }
}
@media print {
  body { font-size: 10.5pt; background: #fff; }
  header, main, footer { max-width: none; padding-left: 0; padding-right: 0; }
  nav { display: none; }
  .scroll, .scroll.tall, .text { overflow: visible; max-height: none; }
  table { font-size: 8pt; }
  th, td { padding: 3px 6px; }
  .note, .name { min-width: 5.5rem; }
  .hit, .bar { display: none; }
  .cell, mark, tr.shipped > *, .legend { print-color-adjust: exact;
    -webkit-print-color-adjust: exact; }
  figure, .sample, tr, .tiles, .chart { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
)css";

}  // namespace fixpoint
