"""The style sheet of `html_page` and `svg_chart`: colours for light, dark and paper, each named once."""

from __future__ import annotations

SERIES_COLORS = 6
"""Classes s1 to s6 there are; each has a colour that tells it from its neighbours, also to colour-blind eyes."""

PAGE_STYLE = """
:root {
  --paper: #ffffff; --panel: #f5f6f8; --ink: #1d2129; --soft: #5b6472; --line: #d9dde3; --link: #1f5fa8;
  --s1: #2468b2; --s2: #d2691e; --s3: #2e8b67; --s4: #9a4f96; --s5: #a58a12; --s6: #5b6472;
  --good: #1f7a4d; --warn: #a96a00; --bad: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181d; --panel: #1e2229; --ink: #e7e9ec; --soft: #a0a8b4; --line: #353b45; --link: #85b7f0;
    --s1: #6aa9ec; --s2: #f0975a; --s3: #63c39b; --s4: #cf8dcb; --s5: #d6bd4e; --s6: #a0a8b4;
    --good: #63c39b; --warn: #e5ad4f; --bad: #f28b82;
  }
}
@media print {
  :root {
    --paper: #ffffff; --panel: #ffffff; --ink: #000000; --soft: #444444; --line: #bbbbbb; --link: #000000;
    --s1: #1b549a; --s2: #b8560f; --s3: #1f7050; --s4: #7d3b79; --s5: #7d680a; --s6: #444444;
    --good: #17603c; --warn: #855300; --bad: #8f1d17;
  }
}
* { box-sizing: border-box; }
html { background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 60rem;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; line-height: 1.55;
  font-variant-numeric: tabular-nums;
}
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0; font-weight: 650; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 0 0 .9rem; font-weight: 650; }
h3 { font-size: 1rem; margin: 1.6rem 0 .5rem; font-weight: 650; }
p { margin: 0 0 .75rem; max-width: 46rem; overflow-wrap: anywhere; }
a { color: var(--link); }
section { margin-top: 2.6rem; padding-top: 1.4rem; border-top: 1px solid var(--line); }
.subtitle { color: var(--soft); margin: .5rem 0 0; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; list-style: none; padding: 0; margin: 1.1rem 0 0; }
nav a { text-decoration: none; font-size: .92rem; }
nav a:hover { text-decoration: underline; }
ul { padding-left: 1.2rem; margin: 0 0 .75rem; max-width: 46rem; }
.callout { border-left: .3rem solid var(--soft); background: var(--panel); padding: 1rem 1.25rem .5rem; }
.callout, .figures { margin: 0 0 1.25rem; }
.callout .word { font-size: 1.35rem; line-height: 1.25; font-weight: 700; margin-bottom: .5rem; }
.callout.good { border-color: var(--good); } .callout.good .word { color: var(--good); }
.callout.warn { border-color: var(--warn); } .callout.warn .word { color: var(--warn); }
.callout.bad { border-color: var(--bad); } .callout.bad .word { color: var(--bad); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.6rem, 1fr)); gap: .75rem; }
.figures div { background: var(--panel); border: 1px solid transparent; padding: .75rem 1rem; }
.figures dt { color: var(--soft); font-size: .85rem; }
.figures dd { margin: .1rem 0 0; font-size: 1.3rem; line-height: 1.3; font-weight: 600; }
.figures small { display: block; font-size: .82rem; font-weight: 400; color: var(--soft); }
.scroll { overflow-x: auto; margin: 0 0 1.25rem; }
table { border-collapse: collapse; font-size: .92rem; min-width: 50%; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; }
th, td { padding: .38rem 1.1rem .38rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--soft); font-weight: 500; border-bottom: 1px solid var(--soft); }
.pairs th { color: var(--soft); font-weight: 400; white-space: nowrap; }
.pairs td { overflow-wrap: anywhere; }
th.number, td.number { text-align: right; white-space: nowrap; }
figure { margin: 0 0 1.5rem; overflow-x: auto; }
figure svg { min-width: 32rem; }
/* What is wider than the window has a shadow where there is more of it; the covers move with the content, and reach
   a pixel over its edges, where fractions of one would let the shadow through. */
.scroll, figure {
  background:
    linear-gradient(to right, var(--paper) 40%, transparent) left -1px top / 2.4rem 100% no-repeat local,
    linear-gradient(to left, var(--paper) 40%, transparent) right -1px top / 2.4rem 100% no-repeat local,
    linear-gradient(to right, var(--line), transparent) left / 1rem 100% no-repeat scroll,
    linear-gradient(to left, var(--line), transparent) right / 1rem 100% no-repeat scroll;
}
figcaption { color: var(--soft); font-size: .88rem; margin-top: .4rem; max-width: 46rem; }
figure svg, figure img { display: block; width: 100%; height: auto; max-width: 100%; }
figure img { width: auto; }
details { margin: 0 0 1.25rem; } summary { cursor: pointer; color: var(--link); }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); }
footer { color: var(--soft); font-size: .85rem; }
svg text { font-size: 13px; fill: var(--ink); }
svg .soft { fill: var(--soft); font-size: 12px; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .axis { stroke: var(--soft); stroke-width: 1; }
svg .whisker { stroke: var(--ink); stroke-width: 1.4; fill: none; }
svg .s1 { --c: var(--s1); } svg .s2 { --c: var(--s2); } svg .s3 { --c: var(--s3); }
svg .s4 { --c: var(--s4); } svg .s5 { --c: var(--s5); } svg .s6 { --c: var(--s6); }
svg .fill { fill: var(--c); }
svg .band { fill: var(--c); opacity: .16; }
svg .stroke { stroke: var(--c); fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .s2.stroke { stroke-dasharray: 7 4; } svg .s3.stroke { stroke-dasharray: 2 4; }
svg .s4.stroke { stroke-dasharray: 10 3 2 3; } svg .s5.stroke { stroke-dasharray: 4 3; }
svg .s6.stroke { stroke-dasharray: 1 3; }
@media print {
  html { font-size: 80%; } body { padding: 0; max-width: none; } nav { display: none; }
  section, figure, .callout, .figures, tr { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .callout { border: 1px solid var(--line); border-left-width: .3rem; } .figures div { border-color: var(--line); }
  .scroll, figure { overflow: visible; background: none; }
}
"""
