"""`report`: what every stage did to the documents, as one HTML file and the same numbers as JSON.

Every document is read once; memory holds counters and samples only.
"""

import datetime
import gzip
import heapq
import json
import math
import re
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxlm.data.manifest import INDEX_ITEM_SIZE, Manifest
from jaxlm.data.stages import base
from jaxlm.data.stages.card import EXAMPLES, MAX_REASONS, TOP, render
from jaxlm.data.stages.chain import (
  HashSample,
  Reservoir,
  TopCounter,
  chain,
  clip,
  reason_of,
  removed_ops,
)
from jaxlm.errors import UserError

PAIRS = 4  # duplicates shown beside what they duplicate, of each op
MAX_FIELDS = 40  # numeric metadata fields followed of an op and reason
_SCORE = re.compile(r"score|rate|ratio|prob|perplexity|ppl|fraction", re.IGNORECASE)
_FLAG = re.compile(r"^(harm|pii)[_.]")
_UNKNOWN = "unknown"

Json = dict[str, Any]


def report(
  output: str | Path,
  *,
  dataset: str | Path | None = None,
  out: str | Path | None = None,
  tokens_planned: float | None = None,
  seq_len: int = 1024,
  seed: int = 0,
) -> tuple[Path, Path]:
  """Writes the card of the last finished stage and all before it.

  Args:
    output: the directory of the stages (or one stage's).
    dataset: a tokenised dataset made of them: adds tokens, packing and epochs.
    out: the HTML file to write; the JSON goes beside it. None: <output>/report.html.
    tokens_planned: of the training, for the epochs. seq_len: of its rows.
    seed: of the examples.

  Returns:
    The HTML file and the JSON file.
  """
  values = collect(
    output, dataset=dataset, tokens_planned=tokens_planned, seq_len=seq_len, seed=seed
  )
  root = Path(output)
  if (root / base.RECORD).is_file():
    root = root.parent  # nothing is added to a stage's own directory
  page = Path(out) if out is not None else root / "report.html"
  if page.is_dir():
    page = page / "report.html"
  data = page.with_suffix(".json")
  try:
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(values), encoding="utf-8", errors="replace")
    data.write_text(
      json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace"
    )
  except OSError as error:
    raise UserError(f"{error.filename or page}: {error.strerror or error}; give --out") from None
  return page, data


# ---- numbers ----------------------------------------------------------------------------------


def collect(
  output: str | Path,
  *,
  dataset: str | Path | None = None,
  tokens_planned: float | None = None,
  seq_len: int = 1024,
  seed: int = 0,
) -> Json:
  """All numbers and examples of the report as JSON values."""
  stages = chain(output)
  scans = [_Scan(directory, record, seed) for directory, record in stages]
  first, end = scans[0], scans[-1]
  alone = len(scans) == 1
  # What came out of the first stage is the raw text; with one stage alone, all that it saw.
  before_lengths = first.lengths["kept"] + (first.lengths["removed"] if alone else Counter())
  before_domains = first.kept_domains.merged(first.removed_domains) if alone else first.kept_domains
  spoken = next((s for s in scans if set(s.kept_languages.counts) - {_UNKNOWN}), first)
  spoken_whole = spoken is not first or alone
  before_languages = (
    spoken.kept_languages.merged(spoken.removed_languages)
    if spoken_whole
    else spoken.kept_languages
  )
  named = [str(r["config"]["name"]) for _, r in stages if (r.get("config") or {}).get("name")]
  values: Json = {
    "name": named[-1] if named else Path(output).resolve().name,
    "last_stage": end.record["stage"],
    "stages": [s.header() for s in scans],
    "seconds": sum(float(s.record.get("seconds") or 0) for s in scans),
    "documents_in": first.record["in"],
    "documents_kept": end.record["kept"],
    "bytes_in": first.record.get("bytes_in", 0),
    "bytes_kept": end.record.get("bytes_out", 0),
    "funnel": [s.funnel() for s in scans],
    "examples": [e for s in scans for e in s.examples()],
    "near_threshold": [e for s in scans for e in s.near_threshold()],
    "lengths": _lengths(before_lengths, end.lengths["kept"]),
    "lengths_before": "all documents" if alone else f"kept by {first.record['stage']}",
    "languages": _shares(before_languages, end.kept_languages),
    "languages_before": f"{'seen' if spoken_whole else 'kept'} by {spoken.record['stage']}",
    "domains_before": _top(before_domains),
    "domains_after": _top(end.kept_domains),
    "domains_exact": before_domains.exact and end.kept_domains.exact,
    "duplicates": [d for s in scans for d in s.duplicates()],
    "flags": _flag_rates(scans),
    "contamination": [t for s in scans for t in s.record.get("tasks") or []],
    "over_removal": [r for s in scans for r in s.over_removal()],
    "sources": _sources(scans),
    "licences": _top(end.licences, None),
    "dataset": None,
  }
  if dataset is not None:
    by_source = {name: size for name, _, size in end.sources.top()}
    values["dataset"] = _dataset(dataset, by_source, tokens_planned, seq_len)
  return values


class _Scan:
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
    self._near: dict[tuple[str, str, str], _Ends] = {}
    self._kept_near: dict[str, _Ends] = {}
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
    language = str(metadata.get("language") or _UNKNOWN)
    domain = _domain(metadata.get("url"))
    self.lengths["removed" if removed else "kept"][_bin(len(document.get("text", "")))] += 1
    (self.removed_languages if removed else self.kept_languages).add(language, size)
    if domain:
      (self.removed_domains if removed else self.kept_domains).add(domain, size)
    for field, value in metadata.items():
      if _FLAG.match(field):
        self._flag(field, _is_flagged(field, value), language, domain, removed)
    identity = str(document.get("id"))
    if identity in self._wanted:
      self._originals[identity] = _shown(document)
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
    shown = _shown(document)
    sample.add(shown)
    original = (document.get("metadata") or {}).get("duplicate_of")
    for field, value in _numbers(document) if original is None else ():
      if field in self._kept_near or len(self._kept_near) < MAX_FIELDS:
        self._kept_near.setdefault(field, _Ends())
        self._near.setdefault((op, reason, field), _Ends()).add(value, document)
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
    self.licences.add(str(metadata.get("licence") or metadata.get("license") or _UNKNOWN), size)
    self.sources.add(str(metadata.get("source") or _UNKNOWN), size)
    for field, value in _numbers(document):
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


class _Ends:
  """The documents with the lowest and the highest values of a stream."""

  def __init__(self) -> None:
    self.count = 0
    self.lowest, self.highest = math.inf, -math.inf
    self._low: list[tuple[float, int, Json]] = []
    self._high: list[tuple[float, int, Json]] = []

  def add(self, value: float, document: Json) -> None:
    self.count += 1
    self.lowest, self.highest = min(self.lowest, value), max(self.highest, value)
    for heap, key in ((self._low, -value), (self._high, value)):
      rank = (key, -self.count)  # of equal values, those met first stay
      if len(heap) < EXAMPLES:
        heapq.heappush(heap, (*rank, _shown(document)))
      elif rank > heap[0][:2]:
        heapq.heapreplace(heap, (*rank, _shown(document)))

  def bottom(self) -> list[tuple[float, Json]]:
    return [(-key, d) for key, _, d in sorted(self._low, key=lambda e: e[:2], reverse=True)]

  def top(self) -> list[tuple[float, Json]]:
    return [(key, d) for key, _, d in sorted(self._high, key=lambda e: e[:2], reverse=True)]


def _shown(document: Json) -> Json:
  metadata = document.get("metadata") or {}
  return {
    "id": str(document.get("id", "")),
    "url": str(metadata.get("url") or ""),
    "reason": reason_of(document, "–"),
    "text": clip(document.get("text", "")),
    "characters": len(document.get("text", "")),
    "numbers": dict(_numbers(document)),
  }


def _numbers(document: Json) -> Iterator[tuple[str, float]]:
  for field, value in (document.get("metadata") or {}).items():
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
      yield field, value


def _is_flagged(field: str, value: Any) -> bool:
  """A count or rate above 0, a probability above one half, any text or list that is not empty."""
  if isinstance(value, float) and re.search(r"score|prob", field):
    return value > 0.5
  return bool(value) and value != "0"


def _domain(url: Any) -> str:
  if not isinstance(url, str) or "://" not in url:
    return ""
  try:
    return (urllib.parse.urlsplit(url).hostname or "").removeprefix("www.")
  except ValueError:
    return ""


# Length bins: two for each factor of 10.
def _bin(length: int) -> int:
  return 0 if length < 1 else 1 + int(2 * math.log10(length) + 1e-9)


def _bin_label(number: int) -> str:
  if not number:
    return "0"
  low = math.ceil(10 ** ((number - 1) / 2) - 1e-9)
  return f"{low / 1e6:.2g}M" if low >= 10**6 else f"{low / 1e3:.2g}k" if low >= 1000 else str(low)


def _power(n: int) -> int:
  return max(n, 1).bit_length() - 1


def _power_label(power: int) -> str:
  low, high = 1 << power, (2 << power) - 1
  return str(low) if low == high else f"{low}–{high}"


def _lengths(before: Counter[int], after: Counter[int]) -> list[Json]:
  used = [b for b in (*before, *after)]
  if not used:
    return []
  return [
    {"from": _bin_label(b), "before": before[b], "after": after[b]}
    for b in range(min(used), max(used) + 1)
  ]


def _shares(before: TopCounter, after: TopCounter) -> list[Json]:
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


def _flag_rates(scans: list[_Scan]) -> list[Json]:
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


def _top(counter: TopCounter, n: int | None = TOP) -> list[Json]:
  return [{"name": k, "documents": d, "bytes": b} for k, d, b in counter.top(n)]


def _sources(scans: list[_Scan]) -> list[Json]:
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


# ---- the dataset ------------------------------------------------------------------------------


def sidecar(directory: Path, shard_file: str) -> Path:
  """The list of a shard's documents, one JSON object a line, in the order of the shard."""
  return directory / Path(shard_file).with_suffix(".ids.jsonl.gz")


def _dataset(
  directory: str | Path, by_source: dict[str, int], planned: float | None, seq_len: int
) -> Json:
  import numpy as np

  root = Path(directory)
  manifest = Manifest.load(root)
  splits = {}
  by_sidecar: Counter[str] = Counter()
  has_sidecars = True
  for name, split in manifest.splits.items():
    longer, beyond = 0, 0
    for shard in split.shards:
      index = root / shard.index_file
      if not shard.docs:
        continue
      try:
        ends = np.memmap(index, dtype="<u8", mode="r")
      except (OSError, ValueError) as error:
        raise UserError(f"{index}: {error}; copy the dataset again") from None
      if ends.size != shard.docs:
        raise UserError(
          f"{index}: {ends.size * INDEX_ITEM_SIZE} bytes, the manifest says {shard.docs} documents;"
          " copy the dataset again"
        )
      sizes = np.diff(np.concatenate([[0], ends.astype(np.int64)]))
      longer += int((sizes > seq_len).sum())
      beyond += int(np.maximum(sizes - seq_len, 0).sum())
      listing = sidecar(root, shard.file)
      has_sidecars = has_sidecars and (name != "train" or listing.is_file())
      if name == "train" and has_sidecars:
        with gzip.open(listing, "rt", encoding="utf-8") as lines:
          for line, size in zip(lines, sizes, strict=False):
            by_sidecar[str(json.loads(line).get("source") or _UNKNOWN)] += int(size)
    rows = max(split.tokens - 1, 0) // seq_len
    splits[name] = {
      "tokens": split.tokens,
      "documents": split.docs,
      "bytes": split.bytes,
      "bytes_per_token": split.bytes / split.tokens if split.tokens else None,
      "rows": rows,
      "tokens_behind_the_last_row": max(split.tokens - 1 - rows * seq_len, 0),
      "documents_a_row": split.docs / rows if rows else None,
      "documents_longer_than_a_row": longer,
      "tokens_beyond_a_row": beyond,
    }
  train = manifest.splits.get("train")
  tokens = train.tokens if train else 0
  whole = sum(by_source.values())
  exact = has_sidecars and bool(by_sidecar)
  if exact:
    per_source: dict[str, float] = dict(by_sidecar.most_common())
  else:
    per_source = {n: tokens * size / whole for n, size in by_source.items()} if whole else {}
  return {
    "name": manifest.name,
    "fingerprint": manifest.fingerprint(),
    "tokenizer_sha256": manifest.tokenizer_sha256,
    "vocab_size": manifest.vocab_size,
    "seq_len": seq_len,
    "splits": splits,
    "tokens_by_source": per_source,
    "tokens_by_source_exact": exact,
    "tokens_planned": planned,
    "epochs_planned": planned / tokens if planned and tokens else None,
  }
