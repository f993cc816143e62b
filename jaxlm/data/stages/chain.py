"""The finished stages of an output and how they follow each other; sampling in bounded memory."""

import hashlib
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from jaxlm.data.stages import base
from jaxlm.errors import UserError

_T = TypeVar("_T")


def finished(output: str | Path) -> list[Path]:
  """Every finished stage directory of an output, by name."""
  return sorted(file.parent for file in Path(output).glob(f"*/{base.RECORD}"))


def upstream_dir(directory: str | Path, entry: Mapping[str, Any]) -> Path:
  """Where the stage before lies: at its recorded path, or beside `directory` if both were moved."""
  directory, recorded = Path(directory), Path(str(entry.get("path", "")))
  beside = directory.parent / recorded.name
  choices = [beside, base.stage_dir(directory.parent, entry["stage"], entry["fingerprint"])]
  choices.append(recorded if recorded.is_absolute() else directory / recorded)
  return next((c for c in choices if (c / base.RECORD).is_file()), beside)


def last(output: str | Path) -> Path:
  """The finished stage that no other follows; of several, the one written last.

  output may also be a stage's own directory.
  """
  output = Path(output)
  if (output / base.RECORD).is_file():
    return output
  directories = finished(output)
  if not directories:
    raise UserError(f"{output}: no finished stage; run `python -m jaxlm.data collect` first")
  followed = {
    upstream_dir(d, entry).resolve()
    for d in directories
    for entry in base.read_stage(d).get("upstream", [])
  }
  ends = [d for d in directories if d.resolve() not in followed] or directories
  return max(ends, key=lambda d: ((d / base.RECORD).stat().st_mtime, d.name))


def chain(output: str | Path) -> list[tuple[Path, dict[str, Any]]]:
  """(directory, record) of the last finished stage and all before it, the first stage first."""
  found: dict[Path, dict[str, Any]] = {}

  def visit(directory: Path) -> None:
    if directory in found:
      return
    record = base.read_stage(directory)
    for entry in record.get("upstream", []):
      visit(upstream_dir(directory, entry))
    found[directory] = record

  visit(last(output))
  return list(found.items())


def removed_ops(directory: str | Path, record: Mapping[str, Any]) -> list[str]:
  """Ops whose removed documents are on disk: in the order of the record, then any other."""
  root = Path(directory) / "removed"
  named = [op["name"] for op in record.get("ops", [])]
  there = (
    {str(file.parent.relative_to(root)) for file in sorted(root.rglob("*.jsonl.gz"))}
    if root.is_dir()
    else set()
  )
  # An op may write into sub-directories of its own folder; those belong to the op.
  extra = sorted(t for t in there if not any(t == n or t.startswith(f"{n}/") for n in named))
  return [n for n in named if (root / n).is_dir()] + extra


def reason_of(document: Mapping[str, Any], default: str = "") -> str:
  """Why a document was removed: ours, or the one of datatrove's exclusion writer."""
  metadata = document.get("metadata") or {}
  return str(metadata.get("reason") or metadata.get("filter_reason") or default or "unspecified")


def clip(text: str, limit: int = 600) -> str:
  """The beginning of a text, with a mark where it was cut."""
  return text if len(text) <= limit else text[:limit] + f" … (+{len(text) - limit:,} characters)"


class Reservoir(Generic[_T]):
  """A uniform sample of a stream, the same for the same seed and stream."""

  def __init__(self, size: int, seed: str):
    self.items: list[_T] = []
    self.seen = 0
    self._size = size
    self._random = random.Random(seed)

  def add(self, item: _T) -> None:
    self.seen += 1
    if len(self.items) < self._size:
      self.items.append(item)
    elif (slot := self._random.randrange(self.seen)) < self._size:
      self.items[slot] = item


class HashSample:
  """Counts by key, exact up to `limit` keys; beyond, of a sample of keys chosen by their hash.

  scale: what counts of keys must be multiplied with (1: they are exact).
  """

  def __init__(self, limit: int = 1 << 20):
    self.counts: dict[str, int] = {}
    self._limit = limit
    self._level = 0

  @property
  def scale(self) -> int:
    return 1 << self._level

  def covers(self, key: str) -> bool:
    """Whether the key is among those sampled."""
    return not self._level or _hash(key) & (self.scale - 1) == 0

  def add(self, key: str) -> None:
    if not self.covers(key):
      return
    self.counts[key] = self.counts.get(key, 0) + 1
    while len(self.counts) > self._limit:
      self._level += 1
      self.counts = {k: n for k, n in self.counts.items() if self.covers(k)}


class TopCounter:
  """Counts of the most frequent keys; forgets rare ones beyond `limit` keys.

  exact: nothing was forgotten.
  """

  def __init__(self, limit: int = 100_000):
    self.counts: dict[str, list[int]] = {}
    self.exact = True
    self._limit = limit

  def add(self, key: str, size: int) -> None:
    entry = self.counts.setdefault(key, [0, 0])
    entry[0] += 1
    entry[1] += size
    if len(self.counts) > self._limit:
      self.exact = False
      keep = sorted(self.counts.items(), key=lambda item: (-item[1][0], item[0]))
      self.counts = dict(keep[: self._limit // 2])

  def merged(self, other: "TopCounter") -> "TopCounter":
    out = TopCounter(self._limit)
    out.exact = self.exact and other.exact
    for counter in (self, other):
      for key, (n, size) in counter.counts.items():
        entry = out.counts.setdefault(key, [0, 0])
        entry[0] += n
        entry[1] += size
    return out

  def top(self, n: int | None = None) -> Iterator[tuple[str, int, int]]:
    """(key, documents, bytes), the most documents first."""
    ranked = sorted(self.counts.items(), key=lambda item: (-item[1][0], item[0]))
    return ((key, count, size) for key, (count, size) in ranked[:n])


def _hash(key: str) -> int:
  return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8).digest())
