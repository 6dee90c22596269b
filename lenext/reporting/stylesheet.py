"""How a file of `lenext.reporting.pages` looks: wide and narrow, in the light and the dark."""

STYLE = """
:root { color-scheme: light dark;
  --ink: #1b1f24; --faint: #5c6570; --line: #d8dce2; --back: #fff; --soft: #f5f6f8;
  --mark: #0066a1; --shade: rgb(0 0 0 / .22); --found: #fff3c4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dfe3e8; --faint: #98a2ad; --line: #363e48; --back: #15191e; --soft: #1c2127;
    --mark: #6cbcec; --shade: rgb(0 0 0 / .75); --found: #4a3f14; }
  /* Plots are drawn on white. Turned over they are on black, which adds nothing to what is behind,
     and hues stay what they are. */
  img { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen; }
  img.filled { filter: brightness(.7); mix-blend-mode: normal; }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0; color: var(--ink); background: var(--back);
  font: 16px/1.55 system-ui, sans-serif;
  display: grid; grid-template: auto 1fr / minmax(13rem, 17rem) minmax(0, 1fr); }
a { color: var(--mark); text-underline-offset: .15em; }
:focus-visible { outline: 2px solid var(--mark); outline-offset: 2px; }

nav { grid-area: 1 / 1 / 3; position: sticky; top: 0; height: 100vh; overflow: auto;
  padding: 1.25rem 1rem 2rem; border-right: 1px solid var(--line); font-size: 14px;
  line-height: 1.35; }
nav p { margin: 1.25rem 0 .25rem; color: var(--faint); font-size: 12px; font-weight: 600;
  letter-spacing: .02em; }
nav a { display: block; padding: .25rem 0; color: var(--ink); text-decoration: none;
  overflow-wrap: anywhere; }
nav a:hover { color: var(--mark); text-decoration: underline; }

body > header { padding: 1.5rem 2.5rem 0; }
main { padding: 0 2.5rem 5rem; max-width: 80rem; min-width: 0; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .75rem; }
h2 { font-size: 1.5rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h3 { font-size: 1.125rem; margin: 2.25rem 0 .5rem; }
h3:target, h4:target { background: var(--found); box-shadow: 0 0 0 .3rem var(--found); }
p, li { max-width: 46rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .1rem 1rem; margin: 0;
  font-size: 14px; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
section { border-top: 1px solid var(--line); margin-top: 2.5rem; padding-top: 1.5rem; }
.group { margin: 0; color: var(--faint); font-size: 12px; font-weight: 600;
  letter-spacing: .02em; }
.title { margin: .25rem 0 0; color: var(--faint); }
.up { display: none; font-size: 13px; }
ul { color: var(--faint); font-size: 14px; padding-left: 1.1rem; }
pre { overflow-x: auto; background: var(--soft); padding: .75rem 1rem; border-radius: 4px;
  font-size: 13px; }
code { font-family: ui-monospace, monospace; font-size: .92em; overflow-wrap: anywhere; }
pre code { font-size: 1em; overflow-wrap: normal; }

table { border-collapse: separate; border-spacing: 0; font-size: 14px; line-height: 1.4;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .75rem; border-bottom: 1px solid var(--line); text-align: left; }
th { color: var(--faint); font-weight: 600; vertical-align: bottom; }
td strong { color: var(--mark); }
/* Shadows stand at the edges of the box, and covers, which scroll with the table, hide the one at
   an edge beyond which there is no more. */
.figures { overflow-x: auto; max-width: 100%; width: fit-content; margin: 1rem 0;
  background:
    linear-gradient(to left, var(--back) 40%, transparent) 100% 0 / 3rem 100% no-repeat local,
    linear-gradient(to left, var(--shade), transparent) 100% 0 / .9rem 100% no-repeat scroll,
    var(--back); }
.figures td, .figures th { white-space: nowrap; }
.figures tr > :first-child { position: sticky; left: 0; background: var(--back);
  padding-left: 0; border-right: 1px solid var(--line); }
.figures tr:hover > * { background: var(--soft); }
.figures wbr { display: none; }
.words { margin: 1rem 0; }
.words td { vertical-align: top; }
.words td, .words th { padding-left: 0; }

figure { margin: 1.5rem 0; }
figcaption { color: var(--faint); font-size: 13px; margin-top: .35rem; }
.frame { width: 100%; }
.picture { display: block; position: static; margin: 0; padding: 0; border: 0; width: auto;
  height: auto; overflow: visible; background: none; }
.picture button { display: block; padding: 0; border: 0; background: none; width: 100%;
  cursor: zoom-in; }
.picture img { display: block; max-width: 100%; height: auto; }
.picture:popover-open { position: fixed; inset: 0; width: 100vw; height: 100vh; max-width: none;
  max-height: none; overflow: auto; background: var(--back); display: grid;
  grid-template-columns: minmax(0, 1fr); }
/* As wide as it is or as the window is; in a narrow one wide enough to be read, and scrolled. */
.picture:popover-open button { width: max-content; max-width: max(100%, 80rem); margin: auto;
  cursor: zoom-out; }

@media (max-width: 60rem) {
  body { display: block; }
  nav { position: static; height: auto; border-right: 0; border-bottom: 1px solid var(--line);
    columns: 10rem; column-gap: 1.5rem; padding: 1rem; }
  nav p { break-after: avoid; } nav a { padding: .4rem 0; }
  body > header { padding: 1.25rem 1rem; border-bottom: 1px solid var(--line); }
  main { padding: 0 1rem 4rem; } section:first-child { border: 0; margin: 0; }
  .up { display: block; padding: .4rem 0; }
}
@media (max-width: 45rem) {
  h1 { font-size: 1.5rem; } h2 { font-size: 1.3rem; }
  .figures tr > :first-child { white-space: normal; overflow-wrap: anywhere;
    min-width: 9.25rem; max-width: 9.25rem; padding-right: .5rem; }
  .figures td, .figures th { padding: .3rem .5rem; } .figures wbr { display: inline; }
  .words table, .words tbody, .words tr, .words td { display: block; }
  .words thead { display: none; }
  .words tr { padding: .75rem 0; border-bottom: 1px solid var(--line); }
  .words td { border: 0; padding: .1rem 0; overflow-wrap: anywhere; }
  .words td:first-child { font-weight: 600; }
  .words td:not(:first-child)::before { content: attr(data-label) ": "; color: var(--faint); }
}
@media print { body { display: block; } nav, .up { display: none; } }
"""
