"""Small charts and tables as HTML with inline SVG; every text that goes in is escaped here.

Bars are SVG without text and stretch with the page, labels are HTML: so that they stay readable on
a phone.
"""

import difflib
import html
import re
from collections.abc import Sequence


class Html(str):
  """Text that is HTML already: made here, or escaped; so plain text can not be taken for it."""

  __slots__ = ()


def text(value: object) -> Html:
  """Any value as safe HTML. Html passes as it is."""
  if isinstance(value, Html):
    return value
  # Control characters (they also break some viewers) become visible.
  plain = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "\ufffd", str(value))
  return Html(html.escape(plain, quote=True))


def join(*parts: object) -> Html:
  return Html("".join(text(p) for p in parts))


def number(value: float) -> Html:
  """1234567 → 1,234,567."""
  return text(f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3g}")


def size(value: float) -> Html:
  """Bytes for people: 1.2 MB."""
  for unit in ("B", "kB", "MB", "GB"):
    if abs(value) < 1000:
      return text(f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}")
    value /= 1000
  return text(f"{value:.1f} TB")


def percent(part: float, whole: float) -> Html:
  return text(f"{part / whole:.1%}" if whole else "–")


def bar(parts: Sequence[tuple[str, float]], whole: float, title: str = "") -> Html:
  """One horizontal bar. parts: (CSS class: kept, dropped, errored, before, after), value."""
  pieces, x = [], 0.0
  for kind, value in parts:
    width = 100 * value / whole if whole else 0.0
    if value:
      width = max(width, 0.4)  # something is something
    pieces.append(
      f'<rect class="{kind}" x="{x:.2f}" y="0" width="{max(width - 0.15, 0):.2f}" height="10"/>'
    )
    x += width
  return Html(
    f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" role="img"'
    f' aria-label="{text(title)}"><title>{text(title)}</title>{"".join(pieces)}</svg>'
  )


def histogram(labels: Sequence[str], series: Sequence[tuple[str, str, Sequence[float]]]) -> Html:
  """Columns beside each other. series: (CSS class, name, value by label), in one scale."""
  if not labels:
    return Html('<p class="note">nothing to show</p>')
  top = max((v for _, _, values in series for v in values), default=0) or 1
  slot = 100 / len(labels)
  width = slot * 0.8 / len(series)
  rects = []
  for s, (kind, name, values) in enumerate(series):
    for i, value in enumerate(values):
      height = max(60 * value / top, 0.6) if value else 0
      x = i * slot + slot * 0.1 + s * width
      rects.append(
        f'<rect class="{kind}" x="{x:.2f}" y="{60 - height:.2f}" width="{width * 0.92:.2f}"'
        f' height="{height:.2f}"><title>{text(labels[i])}: {value:,.0f} {text(name)}</title></rect>'
      )
  legend = "".join(
    f'<span class="key"><i class="{kind}"></i>{text(name)}</span>' for kind, name, _ in series
  )
  # On a narrow page every second label is hidden (CSS).
  axis = "".join(f"<span>{text(label)}</span>" for label in labels)
  # Few columns would be walls.
  width_limit = f' style="max-width:{110 * len(labels)}px"' if len(labels) < 8 else ""
  return Html(
    f"<figure{width_limit}><figcaption>{legend}"
    f'<span class="note">highest column: {top:,.0f}</span></figcaption>'
    f'<svg class="columns" viewBox="0 0 100 60" preserveAspectRatio="none" role="img">'
    f'<line x1="0" y1="60" x2="100" y2="60"/>{"".join(rects)}</svg>'
    f'<div class="axis">{axis}</div></figure>'
  )


def table(head: Sequence[object], rows: Sequence[Sequence[object]], left: int = 1) -> Html:
  """A table that scrolls sideways on its own. left: columns of text; the rest are numbers."""
  if not rows:
    return Html('<p class="note">none</p>')

  def cells(values: Sequence[object], tag: str) -> str:
    return "".join(
      f"<{tag}{'' if i < left else ' class=n'}>{text(v)}</{tag}>" for i, v in enumerate(values)
    )

  body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
  return Html(
    f'<div class="scroll"><table><thead><tr>{cells(head, "th")}</tr></thead>'
    f"<tbody>{body}</tbody></table></div>"
  )


def section(title: str, *parts: object, note: str = "") -> Html:
  words = join(Html('<p class="note">'), note, Html("</p>")) if note else Html("")
  name = re.sub(r"[^a-z]+", "-", title.lower()).strip("-")
  return join(
    Html(f'<section id="{name}"><h2>'), title, Html("</h2>"), words, *parts, Html("</section>")
  )


def details(summary: object, *parts: object, is_open: bool = False) -> Html:
  state = " open" if is_open else ""
  return join(
    Html(f"<details{state}><summary>"), summary, Html("</summary>"), *parts, Html("</details>")
  )


def marked_pair(a: str, b: str) -> tuple[Html, Html]:
  """Two texts with the words that differ marked."""
  left, right = (re.findall(r"\s+|[^\s]+", t) for t in (a, b))
  out: tuple[list[str], list[str]] = ([], [])
  matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
  for kind, a0, a1, b0, b1 in matcher.get_opcodes():
    for side, words in ((0, left[a0:a1]), (1, right[b0:b1])):
      piece = text("".join(words))
      out[side].append(piece if kind == "equal" or not piece else f"<mark>{piece}</mark>")
  return Html("".join(out[0])), Html("".join(out[1]))


def page(title: str, *parts: object) -> str:
  """One HTML file that needs nothing else: no script, no font, no network."""
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\';'
    " style-src 'unsafe-inline'\">"
    f'<meta name="color-scheme" content="light dark"><title>{text(title)}</title>'
    f"<style>{_CSS}</style></head><body><main>{join(*parts)}</main></body></html>\n"
  )


_CSS = """
:root{--page:#f6f6f3;--card:#fff;--ink:#16191d;--soft:#5c646d;--line:#e1e2dd;--kept:#2a78d6;
--dropped:#e0662b;--errored:#b3261e;--before:#9aa3ad;--mark:#ffe08a}
@media(prefers-color-scheme:dark){:root{--page:#111315;--card:#1a1d20;--ink:#e8eaed;--soft:#9aa3ad;
--line:#30353a;--kept:#4f97ec;--dropped:#e8793f;--errored:#f2766b;--before:#6c757e;--mark:#6b5200}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1040px;margin:0 auto;padding:20px 14px 60px}
h1{font-size:1.7rem;line-height:1.2;margin:.2em 0;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:0 0 .5em}h3{font-size:1rem;margin:1.2em 0 .4em}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:16px;
margin:14px 0}
.note{color:var(--soft);font-size:.86rem;margin:.2em 0 .7em}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:10px;margin:14px 0}
.tiles div{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:10px 14px}
.tiles b{display:block;font-size:1.35rem;font-variant-numeric:tabular-nums}
.tiles span{color:var(--soft);font-size:.82rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.88rem}
th{color:var(--soft);font-weight:500;white-space:nowrap}
th,td{text-align:left;padding:5px 10px 5px 0;border-bottom:1px solid var(--line);
vertical-align:top}
td{overflow-wrap:anywhere;min-width:4.5em}td:not(.n){min-width:7.5em}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.op{padding:9px 0;border-bottom:1px solid var(--line)}.op:last-child{border:0}
.row{display:flex;flex-wrap:wrap;justify-content:space-between;gap:2px 14px;font-size:.9rem}
.row b{overflow-wrap:anywhere}.row span{color:var(--soft);font-variant-numeric:tabular-nums}
svg.bar{display:block;width:100%;height:12px;margin:4px 0;border-radius:3px;background:var(--line)}
td svg.bar{min-width:70px}
svg.columns{display:block;width:100%;height:170px}svg line{stroke:var(--line);stroke-width:.6}
.kept,.after{fill:var(--kept);background:var(--kept)}
.dropped{fill:var(--dropped);background:var(--dropped)}
.errored{fill:var(--errored);background:var(--errored)}
.before{fill:var(--before);background:var(--before)}
figure{margin:0}figcaption{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:.86rem}
.key i{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:6px}
.axis{display:flex;font-size:.7rem;color:var(--soft)}
.axis span{flex:1;text-align:center;white-space:nowrap;overflow:hidden}
details{border-top:1px solid var(--line);padding:7px 0}
summary{cursor:pointer;overflow-wrap:anywhere}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--page);border:1px solid var(--line);
border-radius:8px;padding:9px 11px;margin:6px 0;font:13px/1.45 ui-monospace,monospace;
max-height:24em;overflow-y:auto}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:12px}.pair>div{min-width:0}
mark{background:var(--mark);color:inherit;border-radius:2px}code{font-size:.85em}
@media(max-width:640px){.pair{grid-template-columns:1fr}
.axis span:nth-child(even){visibility:hidden}
body{font-size:15px}section{padding:13px}}
"""
