"""Datatrove steps of the stage dedup."""

import json
import math
import re
import struct
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import xxhash
from datatrove.pipeline.base import PipelineStep

from jaxlm.data.stages.dedup_config import DedupConfig, LineUnit
from jaxlm.data.stages.stage_io import AT, Count, CountedOp, whole_file

# hi, lo: xxh128 of the text; url: xxh64, 0 for none.
RECORD = np.dtype(
  [
    ("at", "<i8"),
    ("hi", "<u8"),
    ("lo", "<u8"),
    ("url", "<u8"),
    ("length", "<i8"),
    ("score", "<f8"),
    ("priority", "<i4"),
  ]
)
_PACK = struct.Struct("<qQQQqdi")
_BLANK = re.compile(r"\n\s*\n")


def normal_url(url: str) -> str:
  """A URL without what does not tell documents apart."""
  try:
    parts = urlsplit(url.strip())
  except ValueError:
    return url.strip()
  bare = parts._replace(scheme=parts.scheme.lower(), netloc=parts.netloc.lower(), fragment="")
  return bare.geturl().rstrip("/")


class Scan(PipelineStep):
  """Records of every document that passes: what decides which of several duplicates stays."""

  type = "dedup"
  name = "scan"

  def __init__(self, folder: str | Path, config: DedupConfig):
    super().__init__()
    self.folder = Path(folder)
    self.config = config

  def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
    priority = {name: i for i, name in enumerate(self.config.source_priority)}
    with (
      whole_file(self.folder / f"{rank:05d}.records") as records,
      whole_file(self.folder / f"{rank:05d}.ids", "w") as ids,
    ):
      for document in data:
        records.write(self._record(document, priority))
        ids.write(json.dumps(document.id) + "\n")
        yield document

  def _record(self, document: Any, priority: dict[str, int]) -> bytes:
    config, metadata = self.config, document.metadata
    source = str(metadata.get("source", ""))
    scope = "" if config.across_sources else f"{source}\0"
    text = document.text
    if config.exact_normalise:
      text = " ".join(text.casefold().split())
    digest = xxhash.xxh128_intdigest((scope + text).encode("utf-8", "surrogatepass"))
    url = str(metadata.get("url") or "")
    key = scope + normal_url(url)
    if "part" in metadata:  # of a long document that collect has cut: all parts have its url
      key += f"\0{metadata['part']}"
    url_hash = xxhash.xxh64_intdigest(key.encode("utf-8", "surrogatepass")) if url else 0
    try:
      score = float(metadata.get(config.score_field))
    except (TypeError, ValueError):
      score = -np.inf
    if not math.isfinite(score):
      score = -np.inf
    rest = (url_hash, len(document.text), score, priority.get(source, len(priority)))
    return _PACK.pack(document.metadata[AT], digest >> 64, digest & (2**64 - 1), *rest)


def parts_of(text: str, unit: LineUnit) -> list[str]:
  """The lines or paragraphs of a text."""
  return text.split("\n") if unit is LineUnit.LINE else _BLANK.split(text)


def _hash_part(part: str, min_chars: int) -> int | None:
  part = " ".join(part.casefold().split())
  if len(part) < min_chars:
    return None
  return xxhash.xxh64_intdigest(part.encode("utf-8", "surrogatepass"))


class CountLines(PipelineStep):
  """In how many documents of this task each line or paragraph stands."""

  type = "dedup"
  name = "count lines"

  def __init__(self, folder: str | Path, config: DedupConfig):
    super().__init__()
    self.folder = Path(folder)
    self.config = config

  def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
    seen: Counter[int] = Counter()
    for document in data:
      parts = parts_of(document.text, self.config.lines)
      found = {_hash_part(part, self.config.line_min_chars) for part in parts}
      seen.update(one for one in found if one is not None)
    table = np.array(sorted(seen.items()), dtype=np.uint64).reshape(-1, 2)
    with whole_file(self.folder / f"{rank:05d}.npy") as file:
      np.save(file, table)


def repeated_lines(folder: Path, config: DedupConfig) -> np.ndarray:
  """Sorted hashes of what stands in too many documents of all tasks."""
  tables = [np.load(file) for file in sorted(folder.glob("*.npy"))]
  table = np.concatenate(tables) if tables else np.zeros((0, 2), np.uint64)
  hashes, place = np.unique(table[:, 0], return_inverse=True)
  counts = np.bincount(place, weights=table[:, 1].astype(np.float64), minlength=len(hashes))
  return hashes[counts > config.line_max_documents]


class DropLines(CountedOp):
  """Takes repeated lines or paragraphs out of documents."""

  def __init__(self, table: str | Path, config: DedupConfig, counts: Any, removed: Any):
    super().__init__("lines", counts, removed)
    self.table = Path(table)
    self.config = config
    self._repeated: set[int] = set()

  def start(self) -> None:
    self._repeated = set(np.load(self.table).tolist())

  def judge(self, document: Any, count: Count) -> str | None:
    unit = self.config.lines
    parts = parts_of(document.text, unit)
    kept = [p for p in parts if _hash_part(p, self.config.line_min_chars) not in self._repeated]
    if len(kept) == len(parts):
      return None
    text = ("\n" if unit is LineUnit.LINE else "\n\n").join(kept)
    if not text.strip():
      return "only_repeated_lines"
    count.extra["lines"] += len(parts) - len(kept)
    count.extra["documents"] += 1
    document.text = text
    return None
