"""Figures of a tokenizer on held-out documents, and how a sweep of sizes is shown."""

import html
import math
import time
from collections.abc import Sequence
from typing import Any

from jaxlm.data.prep.runs import Record
from jaxlm.tokenizers.base import Tokenizer, normalized, set_threads

Row = dict[str, Any]


def measure(tokenizer: Tokenizer, records: Sequence[Record]) -> Row:
  """What a tokenizer makes of documents it was not trained on.

  Returns:
    documents, bytes, tokens (without EOS); bytes_per_token, also by_language and by_source;
    fertility (tokens a word between white space; of scripts without spaces it says nothing);
    encode_mb_per_s on one core (10^6 bytes); round_trip_failures; used (share of the vocabulary).
  """
  set_threads(tokenizer, 1)
  started = time.process_time()  # of this process: the machine may do other things
  encoded = [tokenizer.encode(record.text) for record in records]
  seconds = time.process_time() - started
  set_threads(tokenizer, None)
  sums: dict[tuple[str, str], list[int]] = {}
  words = failures = 0
  used: set[int] = set()
  for record, ids in zip(records, encoded):
    size = len(record.text.encode())
    words += len(record.text.split())
    failures += tokenizer.decode(ids) != normalized(tokenizer, record.text)
    used.update(ids)
    for key in (
      ("all", ""),
      ("language", record.language or "unknown"),
      ("source", record.source or "unknown"),
    ):
      entry = sums.setdefault(key, [0, 0])
      entry[0] += size
      entry[1] += len(ids)
  size, tokens = sums.get(("all", ""), [0, 0])

  def groups(kind: str) -> dict[str, float]:
    found = sorted((name, s / max(t, 1)) for (k, name), (s, t) in sums.items() if k == kind)
    return {name: round(value, 4) for name, value in found}

  return {
    "documents": len(records),
    "bytes": size,
    "tokens": tokens,
    "bytes_per_token": round(size / max(tokens, 1), 4),
    "by_language": groups("language"),
    "by_source": groups("source"),
    "fertility": round(tokens / max(words, 1), 4),
    "encode_mb_per_s": round(size / 1e6 / max(seconds, 1e-9), 2),
    "round_trip_failures": failures,
    "used": round(len(used) / tokenizer.vocab_size, 4),
  }


def table(rows: Sequence[Row], chosen: int) -> str:
  """The sweep as lines of text; bytes per token of each language and source."""
  columns = [
    *(f"source {name}" for name in sorted({n for r in rows for n in r["by_source"]})),
    *(f"language {name}" for name in sorted({n for r in rows for n in r["by_language"]})),
  ]
  head = ["size", "vocabulary", "bytes/token", "tokens/word", "MB/s", "used", "lost", *columns]
  lines = [head]
  for row in rows:
    cells = [f"{row['size']:,}" + ("*" if row["size"] == chosen else "")]
    cells += [f"{row['vocab_size']:,}", f"{row['bytes_per_token']:.3f}", f"{row['fertility']:.3f}"]
    cells += [f"{row['encode_mb_per_s']:.2f}", f"{row['used']:.0%}"]
    cells.append(str(row["round_trip_failures"]))
    for column in columns:
      kind, _, name = column.partition(" ")
      value = row[f"by_{kind}"].get(name)
      cells.append("–" if value is None else f"{value:.3f}")
    lines.append(cells)
  widths = [max(map(len, column)) for column in zip(*lines)]
  return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths)) for line in lines)


_COLOURS = ("#1b6ca8", "#c2571a", "#2e7d32", "#8e24aa", "#b8860b", "#00796b", "#c2185b", "#455a64")
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _LEGEND = 640, 360, 56, 24, 48, 170


def draw(rows: Sequence[Row], chosen: int) -> str:
  """Bytes per token against vocabulary size (logarithmic), in all and by source, as SVG."""
  names = sorted({name for row in rows for name in row["by_source"]})
  series = [("all", [(r["vocab_size"], r["bytes_per_token"]) for r in rows])]
  series += [
    (name, [(r["vocab_size"], r["by_source"][name]) for r in rows if name in r["by_source"]])
    for name in names[:7]
    if len(names) > 1
  ]
  xs = [math.log2(x) for _, points in series for x, _ in points] or [0.0]
  ys = [y for _, points in series for _, y in points] or [1.0]
  low_x, high_x = min(xs), max(max(xs), min(xs) + 1)
  low_y, high_y = math.floor(min(ys) * 2) / 2, max(math.ceil(max(ys) * 2) / 2, min(ys) + 0.5)

  def at(x: float, y: float) -> tuple[float, float]:
    right, bottom = _WIDTH - _LEGEND, _HEIGHT - _BOTTOM
    return (
      _LEFT + (math.log2(x) - low_x) / (high_x - low_x) * (right - _LEFT),
      bottom - (y - low_y) / (high_y - low_y) * (bottom - _TOP),
    )

  right, bottom = _WIDTH - _LEGEND, _HEIGHT - _BOTTOM
  parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}"'
    ' font-family="sans-serif" font-size="12" role="img">'
    "<title>bytes per token against vocabulary size</title>"
    f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>'
  ]
  for i in range(5):
    y = low_y + (high_y - low_y) * i / 4
    _, height = at(2**low_x, y)
    parts.append(
      f'<line x1="{_LEFT}" x2="{right}" y1="{height:.1f}" y2="{height:.1f}" stroke="#ddd"/>'
      f'<text x="{_LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{y:.2f}</text>'
    )
  for row in rows:
    x, _ = at(row["vocab_size"], low_y)
    weight = ' font-weight="bold"' if row["size"] == chosen else ""
    parts.append(
      f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle"{weight}>'
      f"{row['vocab_size']:,}</text>"
    )
    if row["size"] == chosen:
      parts.append(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}" stroke="#999"'
        ' stroke-dasharray="4 3"/>'
      )
  middle = (_LEFT + right) / 2
  parts.append(f'<text x="{middle}" y="{bottom + 36}" text-anchor="middle">vocabulary size</text>')
  parts.append(f'<text x="{_LEFT}" y="{_TOP - 8}">bytes per token, held-out documents</text>')
  for number, (name, points) in enumerate(series):
    colour = _COLOURS[number % len(_COLOURS)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points))
    width = 2.5 if number == 0 else 1.5
    parts.append(
      f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
    )
    for point in points:
      x, y = at(*point)
      parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
    y = _TOP + 12 + 18 * number
    parts.append(
      f'<rect x="{right + 14}" y="{y - 9}" width="10" height="10" fill="{colour}"/>'
      f'<text x="{right + 30}" y="{y}">{html.escape(name[:20])}</text>'
    )
  return "".join(parts) + "</svg>\n"
