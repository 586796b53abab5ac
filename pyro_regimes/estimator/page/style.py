"""The style sheet of the page: light and dark, on a phone, a screen and paper."""

SHEET = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1f2328; --pale: #59636e;
  --line: #d8dee4; --panel: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171c; --text: #e6e9ed; --pale: #a0a8b3; --line: #343b45; --panel: #1d222a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px 20px 48px; max-width: 960px; background: var(--page);
  color: var(--text); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 44px 0 8px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 24px 0 6px; }
p { margin: 8px 0; max-width: 46rem; overflow-wrap: anywhere; }
.under, .note, .caption { color: var(--pale); font-size: .875rem; }
.caption { margin: 14px 0 2px; }
.verdict { background: var(--panel); border-left: 6px solid var(--regime); border-radius: 6px;
  padding: 14px 20px; margin: 20px 0; }
.verdict p { font-size: 1.1rem; margin: 4px 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin: 14px 0 2px; }
.figures div { line-height: 1.25; }
.figures strong { display: block; font-size: 1.2rem; font-weight: 600; }
.figures span { color: var(--pale); font-size: .85rem; }
.swatch { display: inline-block; width: .75em; height: .75em; border-radius: 2px;
  margin-right: .4em; background: var(--regime); }
.scroll { overflow-x: auto; max-width: 100%;
  background:
    linear-gradient(to left, var(--page) 60%, transparent)
      right / 32px calc(100% + 2px) no-repeat local,
    linear-gradient(to left, var(--line), transparent) right / 14px 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums;
  margin: 6px 0; }
th, td { padding: 4px 12px; text-align: right; border-bottom: 1px solid var(--line);
  vertical-align: top; font-weight: 400; }
td { white-space: nowrap; }
thead th { font-weight: 600; vertical-align: bottom; }
thead th:first-child { white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; max-width: 20rem; overflow-wrap: break-word;
  position: sticky; left: 0; background: var(--page); }
.scroll:focus-visible { outline: 2px solid var(--pale); }
th.part { padding-left: 1.4em; color: var(--pale); }
table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
table.facts th { color: var(--pale); white-space: nowrap; }
.interval { display: block; color: var(--pale); font-size: .8rem; }
.small { display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); gap: 10px; }
footer { margin-top: 28px; }
svg { width: 100%; height: auto; display: block; fill: currentColor; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
.narrow { display: none; }
@media (max-width: 620px) {
  body { padding: 16px 16px 32px; }
  .wide { display: none; } .narrow { display: block; }
  th, td { padding: 4px 8px; } th:first-child { min-width: 6rem; max-width: 9.5rem; }
  thead th:first-child { white-space: normal; }
  th.part { padding-left: .7em; }
  .verdict { padding: 12px 14px; }
}
@page { margin: 14mm; }
@media print {
  :root { color-scheme: light; --page: #ffffff; --text: #000000; --pale: #444444; --line: #bbbbbb;
    --panel: #ffffff; }
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  .wide { display: block; } .narrow { display: none; }
  .small { grid-template-columns: repeat(3, 1fr); }
  th, td { padding: 2px 9px; } th:first-child { position: static; }
  h2 { margin-top: 26px; } h2, h3, .caption, .legend { break-after: avoid; }
  svg, tr, .verdict { break-inside: avoid; }
  .scroll { overflow: visible; background: none; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
