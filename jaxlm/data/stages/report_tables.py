"""Tables of the report that are made of several stages' scans."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from jaxlm.data.stages.card_limits import TOP
from jaxlm.data.stages.chain import TopCounter
from jaxlm.data.stages.report_scan import Scan

Json = dict[str, Any]


def lengths(before: Counter[int], after: Counter[int]) -> list[Json]:
  used = [b for b in (*before, *after)]
  if not used:
    return []
  return [
    {"from": _bin_label(b), "before": before[b], "after": after[b]}
    for b in range(min(used), max(used) + 1)
  ]


def _bin_label(number: int) -> str:
  if not number:
    return "0"
  low = math.ceil(10 ** ((number - 1) / 2) - 1e-9)
  for unit, size in (("M", 10**6), ("k", 1000)):
    if low >= size:
      return f"{float(f'{low / size:.2g}'):g}{unit}"
  return str(low)


def language_shares(before: TopCounter, after: TopCounter) -> list[Json]:
  both = before.merged(after)
  none = [0, 0]
  return [
    {
      "language": key,
      "documents_before": before.counts.get(key, none)[0],
      "bytes_before": before.counts.get(key, none)[1],
      "documents_after": after.counts.get(key, none)[0],
      "bytes_after": after.counts.get(key, none)[1],
    }
    for key, _, _ in both.top(3 * TOP)
  ]


def flag_rates(scans: list[Scan]) -> list[Json]:
  """Of documents with a harm_ or pii_ field: those kept at the end, and all removed before."""
  totals: dict[tuple[str, str, str], list[int]] = {}
  for scan in scans:
    for field, groups in scan.flags.items():
      for what, rows in groups.items():
        for value, (documents, flagged, removed, both) in rows.items():
          counts = totals.setdefault((field, what, value), [0, 0, 0, 0])
          counts[2] += removed
          counts[3] += both
          counts[0] += documents if scan is scans[-1] else removed
          counts[1] += flagged if scan is scans[-1] else both
  found = []
  for field, what in sorted({key[:2] for key in totals}, key=lambda k: (k[0], k[1] == "domain")):
    ranked = [(v, c) for (f, w, v), c in totals.items() if (f, w) == (field, what)]
    ranked.sort(key=lambda row: (-row[1][0], row[0]))
    for value, (documents, flagged, removed, both) in ranked[
      : TOP if what == "language" else TOP // 2
    ]:
      found.append(
        {
          "field": field,
          "by": what,
          "value": value,
          "documents": documents,
          "flagged": flagged,
          "removed": removed,
          "flagged_removed": both,
        }
      )
  return found


def top(counter: TopCounter, n: int | None = TOP) -> list[Json]:
  return [{"name": k, "documents": d, "bytes": b} for k, d, b in counter.top(n)]


def source_table(scans: list[Scan]) -> list[Json]:
  start: Mapping[str, Json] = scans[0].record.get("by_source", {})
  kept = {name: (d, b) for name, d, b in scans[-1].sources.top()}
  names = list(dict.fromkeys([*kept, *sorted(start)]))
  return [
    {
      "name": name,
      "documents_in": start.get(name, {}).get("in"),
      "documents_kept": kept.get(name, (0, 0))[0],
      "bytes_kept": kept.get(name, (0, 0))[1],
    }
    for name in names
  ]
