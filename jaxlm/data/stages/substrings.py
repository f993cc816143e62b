"""Passages that stand in more than one document: found by hashes of windows of words, and cut.

Every window of `substring_words` words is one 64-bit hash. What is repeated is decided on all
tasks' hashes, a part of their range at a time; the passage stays in the first document that holds
it (in the order of the files) and is cut from the others. Compare Lee et al. 2022
(arXiv:2107.06499), who find repeats of at least 50 tokens with a suffix array.

Disk: 16 bytes a word while it runs. Memory: 1/64 of that in the deciding process; of repeated
windows 16 bytes each, which the tasks share (a mapped file).
"""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from datatrove.pipeline.base import PipelineStep

from jaxlm.data.stages.dedup_config import DedupConfig
from jaxlm.data.stages.stage_io import AT, Count, CountedOp, whole_file
from jaxlm.data.stages.words import BETWEEN_SPACES

PARTS = 64  # of the hashes' range
_BUFFER = 1 << 20  # windows
_ROW = np.dtype([("hash", "<u8"), ("at", "<i8")])
_BASE = 0x9E3779B97F4A7C15 | 1  # odd: it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 1 << 64)


def windows(text: str, size: int, salt: str = "") -> tuple[np.ndarray, list[tuple[int, int]]]:
  """Hashes of all windows of `size` words, and each word's place in the text; case does not count.

  A polynomial modulo 2^64 over the words' hashes, by differences of its prefix sums.
  """
  places = [match.span() for match in BETWEEN_SPACES.of(text).finditer(text)]
  count = len(places) - size + 1
  if count < 1:
    return np.zeros(0, np.uint64), places
  seed = xxhash.xxh64_intdigest(salt)
  digests = (
    xxhash.xxh64_intdigest(text[a:b].casefold().encode("utf-8", "surrogatepass"), seed)
    for a, b in places
  )
  words = np.fromiter(digests, np.uint64, len(places))
  up = np.full(len(words), _BASE, np.uint64)
  down = np.full(count, _INVERSE, np.uint64)
  up[0] = down[0] = 1
  with np.errstate(over="ignore"):
    sums = np.concatenate([[np.uint64(0)], np.cumsum(words * np.cumprod(up))])
    found = (sums[size:] - sums[:count]) * np.cumprod(down)
  return found, places


def _salt(document: Any, config: DedupConfig) -> str:
  return "" if config.across_sources else str(document.metadata.get("source", ""))


class CountWindows(PipelineStep):
  """Writes the hashes of a task's windows, sorted into parts of their range."""

  type = "dedup"
  name = "count windows"

  def __init__(self, folder: str | Path, config: DedupConfig):
    super().__init__()
    self.folder = Path(folder)
    self.config = config

  def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
    with contextlib.ExitStack() as stack:
      files = [
        stack.enter_context(whole_file(self.folder / f"{part:02d}" / f"{rank:05d}.windows"))
        for part in range(PARTS)
      ]
      held: list[np.ndarray] = []
      size = 0
      for document in data:
        hashes, _ = windows(
          document.text, self.config.substring_words, _salt(document, self.config)
        )
        rows = np.empty(len(hashes), _ROW)
        # A window that repeats within one document stays there.
        rows["hash"], rows["at"] = hashes, document.metadata[AT]
        held.append(rows)
        size += len(rows)
        if size >= _BUFFER:
          _spread(held, files)
          held, size = [], 0
      _spread(held, files)


def _spread(held: list[np.ndarray], files: list[Any]) -> None:
  if not held:
    return
  rows = np.concatenate(held)
  part = (rows["hash"] >> np.uint64(58)).astype(np.int64)
  order = np.argsort(part, kind="stable")
  ends = np.searchsorted(part[order], np.arange(PARTS + 1))
  for number, file in enumerate(files):
    file.write(rows[order[ends[number] : ends[number + 1]]].tobytes())


def repeated_windows(folder: Path) -> np.ndarray:
  """(hash, the first document that holds it) of windows of at least two documents, by hash."""
  found = []
  for part in range(PARTS):
    files = sorted((folder / f"{part:02d}").glob("*.windows"))
    rows = np.concatenate([np.zeros(0, _ROW), *(np.fromfile(file, _ROW) for file in files)])
    rows = rows[np.lexsort([rows["at"], rows["hash"]])]
    first = np.ones(len(rows), bool)
    first[1:] = rows["hash"][1:] != rows["hash"][:-1]
    starts = np.flatnonzero(first)
    last = np.append(starts[1:], len(rows)) - 1
    many = rows["at"][last] != rows["at"][starts] if len(rows) else np.zeros(0, bool)
    found.append(rows[starts[many]])
  return np.concatenate(found)


class CutWindows(CountedOp):
  """Cuts passages that an earlier document holds."""

  def __init__(self, table: str | Path, config: DedupConfig, counts: Any, removed: Any):
    super().__init__("substring", counts, removed)
    self.table = Path(table)
    self.config = config
    self._table: np.ndarray | None = None

  def start(self) -> None:
    self._table = np.load(self.table, mmap_mode="r")

  def end(self, rank: int) -> None:
    self._table = None

  def judge(self, document: Any, count: Count) -> str | None:
    size, table = self.config.substring_words, self._table
    assert table is not None
    hashes, places = windows(document.text, size, _salt(document, self.config))
    if not len(hashes) or not len(table):
      return None
    at = np.searchsorted(table["hash"], hashes)
    at[at == len(table)] = 0
    row = table[at]
    hit = np.flatnonzero((row["hash"] == hashes) & (row["at"] != document.metadata[AT]))
    if not len(hit):
      return None
    # Windows that overlap or touch are one passage.
    breaks = np.flatnonzero(np.diff(hit) > size)
    starts, ends = hit[np.append(0, breaks + 1)], hit[np.append(breaks, len(hit) - 1)] + size
    pieces, end = [], 0
    for a, b in zip(starts.tolist(), ends.tolist(), strict=True):
      pieces.append(document.text[end : places[a][0]].rstrip())
      end = places[b - 1][1]
    pieces.append(document.text[end:].lstrip())
    text = "\n".join(piece for piece in pieces if piece.strip())
    if not text:
      return "only_repeated_passages"
    count.extra["passages"] += len(starts)
    count.extra["documents"] += 1
    count.extra["characters"] += len(document.text) - len(text)
    document.text = text
    return None
