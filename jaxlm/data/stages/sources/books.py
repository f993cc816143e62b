"""What became of the records of each source: counts, licences, years; and whether they balance."""

import collections
import dataclasses
from typing import Any

from jaxlm.data.prep.documents import Corpus, Document
from jaxlm.data.stages import base
from jaxlm.errors import UserError


@dataclasses.dataclass
class Books:
  """Of one source. parts: documents that cutting long ones added."""

  kept: int = 0
  size: int = 0
  parts: int = 0
  cut: int = 0
  seconds: float = 0.0
  licences: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
  years: collections.Counter = dataclasses.field(default_factory=collections.Counter)

  def keep(self, document: Document, size: int) -> None:
    self.kept += 1
    self.size += size
    licence = str(document.origin.get("licence") or "unknown")
    entry = self.licences.setdefault(licence, {"documents": 0, "bytes": 0})
    entry["documents"] += 1
    entry["bytes"] += size
    year = str(document.origin.get("date") or "")[:4]
    self.years[year if year.isdigit() and len(year) == 4 else "unknown"] += 1

  def op(self, name: str, corpus: Corpus) -> dict[str, Any]:
    """`in` is what the source says it met, where it counts that, so that a loss shows."""
    counts = corpus.counts
    dropped = sum(counts.skipped.values())
    met = self.kept - self.parts + dropped if counts.met is None else counts.met
    return {
      "name": f"read {name}",
      "source": name,
      "in": met + self.parts,
      "kept": self.kept,
      "dropped": dropped,
      "reasons": dict(sorted(counts.skipped.items())),
      "errored": 0,
      "bytes_in": self.size,
      "bytes_kept": self.size,
      "seconds": round(self.seconds, 3),
    }

  def report(self, corpus: Corpus) -> dict[str, Any]:
    counts = corpus.counts
    return {
      "counted_on_its_own": counts.met is not None,
      "files_read": counts.files_read,
      "reasons": dict(sorted(counts.skipped.items())),
      "named": dict(sorted(counts.named.items())),
      "other": dict(sorted(counts.other.items())),
      "unknown_extensions": dict(counts.unknown_extensions.most_common(20)),
      "cut": self.cut,
      "added_by_cutting": self.parts,
      "bytes": self.size,
      "seconds": round(self.seconds, 3),
    }


def check(op: dict[str, Any], max_drop_ratio: float, where: str) -> None:
  """UserError for a source that lost a record, or from which nothing came."""
  if op["in"]:
    base.check_books("collect", [op], 1.0, where)
  if not op["kept"] and max_drop_ratio < 1:
    most = sorted(op["reasons"].items(), key=lambda one: -one[1])[:3]
    why = ", ".join(f"{reason}: {count:,}" for reason, count in most) or "nothing is there"
    raise UserError(
      f"config.sources[{op['source']!r}]: no document came of {op['in']:,} records ({why}); correct"
      " the source, or set config.max_drop_ratio=1 to go on without it"
    )


def total(reads: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
  reasons: collections.Counter[str] = collections.Counter()
  for op in reads:
    reasons.update(op["reasons"])
  keys = ("in", "kept", "dropped", "errored", "bytes_in", "bytes_kept")
  return {
    "name": "read",
    **{key: sum(op[key] for op in reads) for key in keys},
    "reasons": dict(sorted(reasons.items())),
    "seconds": round(seconds, 3),
  }
