"""One pass over a stage's documents: what the report counts and samples of them."""

import datetime
import math
import re
import urllib.parse
from collections import Counter
from pathlib import Path
from typing import Any

from jaxlm.data.stages import base
from jaxlm.data.stages.card_limits import EXAMPLES, MAX_REASONS, TOP
from jaxlm.data.stages.chain import (
  HashSample,
  Reservoir,
  TopCounter,
  clip,
  reason_of,
  removed_ops,
)
from jaxlm.data.stages.report_samples import Ends, numbers, shown_document

PAIRS = 4  # duplicates shown beside what they duplicate, of each op
MAX_FIELDS = 40  # numeric metadata fields followed of an op and reason
UNKNOWN = "unknown"
_SCORE = re.compile(r"score|rate|ratio|prob|perplexity|ppl|fraction", re.IGNORECASE)
_FLAG = re.compile(r"^(harm|pii)[_.]")

Json = dict[str, Any]


class Scan:
  """Counters and samples of one stage, filled by one pass over its documents."""

  def __init__(self, directory: Path, record: Json, seed: int):
    self.directory, self.record = directory, record
    self.lengths: dict[str, Counter[int]] = {"kept": Counter(), "removed": Counter()}
    self.kept_languages, self.removed_languages = TopCounter(), TopCounter()
    self.kept_domains, self.removed_domains = TopCounter(), TopCounter()
    self.licences, self.sources = TopCounter(), TopCounter()
    # field → what ("language", "domain") → value → [documents, flagged, removed, flagged removed]
    self.flags: dict[str, dict[str, dict[str, list[int]]]] = {}
    self.removed_by: dict[tuple[str, str], TopCounter] = {}  # (op, what)
    self._samples: dict[tuple[str, str], Reservoir[Json]] = {}
    self._reasons: dict[str, Counter[str]] = {}
    self._near: dict[tuple[str, str, str], Ends] = {}
    self._kept_near: dict[str, Ends] = {}
    self._clusters: dict[str, HashSample] = {}
    self._pairs: dict[str, Reservoir[Json]] = {}
    self._originals: dict[str, Json] = {}
    self._wanted: set[str] = set()  # ids that duplicates point at
    self._seed = seed
    for op in removed_ops(directory, record):
      for document in base.iter_documents(directory, op):
        self._removed(op, document)
    for document in base.iter_documents(directory):
      self._kept(document)

  def _seen(self, document: Json, removed: bool) -> tuple[str, str]:
    metadata = document.get("metadata") or {}
    size = len(document.get("text", "").encode("utf-8", "replace"))
    language = _language(metadata)
    domain = _domain(metadata.get("url"))
    self.lengths["removed" if removed else "kept"][length_bin(len(document.get("text", "")))] += 1
    (self.removed_languages if removed else self.kept_languages).add(language, size)
    if domain:
      (self.removed_domains if removed else self.kept_domains).add(domain, size)
    for field, value in metadata.items():
      if _FLAG.match(field):
        self._flag(field, _is_flagged(field, value), language, domain, removed)
    identity = str(document.get("id"))
    if identity in self._wanted:
      self._originals[identity] = shown_document(document)
    return language, domain

  def _flag(self, field: str, flagged: bool, language: str, domain: str, removed: bool) -> None:
    groups = self.flags.setdefault(field, {"language": {}, "domain": {}})
    for what, value in (("language", language), ("domain", domain)):
      # Domains are many: only the first 20,000 met have a row of their own.
      if not value or (value not in groups[what] and len(groups[what]) >= 20_000):
        continue
      counts = groups[what].setdefault(value, [0, 0, 0, 0])
      counts[0] += 1
      counts[1] += flagged
      counts[2] += removed
      counts[3] += flagged and removed

  def _removed(self, op: str, document: Json) -> None:
    language, domain = self._seen(document, removed=True)
    self.removed_by.setdefault((op, "language"), TopCounter()).add(language, 0)
    if domain:
      self.removed_by.setdefault((op, "domain"), TopCounter()).add(domain, 0)
    reasons = self._reasons.setdefault(op, Counter())
    reason = clip(reason_of(document, op), 80)
    if reason not in reasons and len(reasons) >= MAX_REASONS:
      reason = "other reasons"
    reasons[reason] += 1
    sample = self._samples.setdefault(
      (op, reason), Reservoir(EXAMPLES, f"{self._seed}/{self.record['stage']}/{op}/{reason}")
    )
    shown = shown_document(document)
    sample.add(shown)
    original = (document.get("metadata") or {}).get("duplicate_of")
    for field, value in numbers(document) if original is None else ():
      if field in self._kept_near or len(self._kept_near) < MAX_FIELDS:
        self._kept_near.setdefault(field, Ends())
        self._near.setdefault((op, reason, field), Ends()).add(value, document)
    if original is not None:
      self._clusters.setdefault(op, HashSample()).add(str(original))
      pairs = self._pairs.setdefault(
        op, Reservoir(PAIRS, f"{self._seed}/{self.record['stage']}/{op}/pairs")
      )
      pairs.add({"removed": shown, "original": str(original)})
      # Only those that are still drawn: the set stays as small as the sample.
      self._wanted = {p["original"] for drawn in self._pairs.values() for p in drawn.items}

  def _kept(self, document: Json) -> None:
    self._seen(document, removed=False)
    metadata = document.get("metadata") or {}
    size = len(document.get("text", "").encode("utf-8", "replace"))
    self.licences.add(str(metadata.get("licence") or metadata.get("license") or UNKNOWN), size)
    self.sources.add(str(metadata.get("source") or UNKNOWN), size)
    for field, value in numbers(document):
      if field in self._kept_near:
        self._kept_near[field].add(value, document)

  # ---- results

  def header(self) -> Json:
    written = (self.directory / base.RECORD).stat().st_mtime
    keys = ("stage", "fingerprint", "versions", "seconds")
    return {key: self.record.get(key) for key in keys} | {
      "directory": self.directory.name,
      "finished": datetime.datetime.fromtimestamp(written, datetime.UTC).isoformat(
        timespec="seconds"
      ),
      "config": self.record.get("config", {}),
    }

  def funnel(self) -> Json:
    keys = ("stage", "in", "kept", "dropped", "errored", "bytes_in", "bytes_out")
    ops = []
    for op in self.record.get("ops", []):
      ops.append(dict(op))
      if not op.get("reasons"):
        ops[-1]["reasons"] = dict(self._reasons.get(op["name"], Counter()).most_common())
    return {key: self.record.get(key, 0) for key in keys} | {"ops": ops}

  def examples(self) -> list[Json]:
    return [
      {
        "stage": self.record["stage"],
        "op": op,
        "reason": reason,
        "count": sample.seen,
        "documents": sample.items,
      }
      for (op, reason), sample in self._samples.items()
    ]

  def near_threshold(self) -> list[Json]:
    """Groups whose scores lie wholly on one side of those kept: the threshold is between them."""
    found = []
    for (op, reason, field), removed in self._near.items():
      kept = self._kept_near[field]
      words = set(re.findall(r"[a-z]{4,}", f"{op} {reason}".lower()))
      named = words & set(re.findall(r"[a-z]{4,}", field.lower()))
      # A score that no name ties to the op: of few documents all may lie beyond by chance.
      scored = _SCORE.search(field) and removed.count >= 5
      if not kept.count or not (named or scored):
        continue
      if removed.highest < kept.lowest:
        below, above = removed.top(), kept.bottom()
      elif removed.lowest > kept.highest:
        below, above = removed.bottom(), kept.top()
      else:
        continue
      found.append(
        {
          "stage": self.record["stage"],
          "op": op,
          "reason": reason,
          "field": field,
          "removed": [{"value": v, **d} for v, d in below],
          "kept": [{"value": v, **d} for v, d in above],
        }
      )
    return found

  def duplicates(self) -> list[Json]:
    found = []
    for op, clusters in self._clusters.items():
      sizes: Counter[int] = Counter(_power(n + 1) for n in clusters.counts.values())
      pairs = []
      for pair in self._pairs[op].items:
        original = self._originals.get(pair["original"])
        pairs.append({"removed": pair["removed"], "kept": original, "kept_id": pair["original"]})
      pairs.sort(key=lambda p: p["kept"] is None)
      found.append(
        {
          "stage": self.record["stage"],
          "op": op,
          "clusters": len(clusters.counts) * clusters.scale,
          "removed": self._pairs[op].seen,
          "largest": max(clusters.counts.values()) + 1,
          "exact": clusters.scale == 1,
          "sizes": {_power_label(p): sizes[p] * clusters.scale for p in range(1, max(sizes) + 1)},
          "pairs": pairs,
        }
      )
    return found

  def over_removal(self) -> list[Json]:
    """Per op: which languages and domains it removes more of than of all documents."""
    found = []
    everything = self.record["in"]
    for (op, what), counter in self.removed_by.items():
      if what == "language":
        seen = self.kept_languages.merged(self.removed_languages)
      else:
        seen = self.kept_domains.merged(self.removed_domains)
      total = sum(n for _, n, _ in counter.top())
      for value, documents, _ in seen.top(TOP):
        removed = counter.counts.get(value, [0, 0])[0]
        share, average = removed / documents, total / everything if everything else 0
        # Below a few documents a share says nothing.
        if documents >= 5 and removed >= 2 and average and share > 1.5 * average:
          found.append(
            {
              "stage": self.record["stage"],
              "op": op,
              "by": what,
              "value": value,
              "documents": documents,
              "removed": removed,
              "times_average": share / average,
            }
          )
    return sorted(found, key=lambda row: -row["times_average"])[: 2 * TOP]


def _is_flagged(field: str, value: Any) -> bool:
  """A count or rate above 0, a probability above one half, any text or list that is not empty."""
  if isinstance(value, float) and re.search(r"score|prob", field):
    return value > 0.5
  return bool(value) and value != "0"


def _language(metadata: Json) -> str:
  """Code has no language that an identifier could tell; it is a row of its own."""
  code = metadata.get("format") == "code"
  return str(metadata.get("language") or ("(code)" if code else UNKNOWN))


def _domain(url: Any) -> str:
  if not isinstance(url, str) or "://" not in url:
    return ""
  try:
    return (urllib.parse.urlsplit(url).hostname or "").removeprefix("www.")
  except ValueError:
    return ""


# Length bins: two for each factor of 10.
def length_bin(length: int) -> int:
  return 0 if length < 1 else 1 + int(2 * math.log10(length) + 1e-9)


def _power(n: int) -> int:
  return max(n, 1).bit_length() - 1


def _power_label(power: int) -> str:
  low, high = 1 << power, (2 << power) - 1
  return str(low) if low == high else f"{low}–{high}"
