"""Runs: encoded documents on disk between the two passes of the shuffle, sorted by their key.

    RUNS/<unit>-<k>.meta    one record a document (META), sorted by `high`
    RUNS/<unit>-<k>.ids     their ids, in that order, without EOS
    RUNS/<unit>-<k>.labels  their labels, in that order
    RUNS/<unit>.json        written last: the unit is done

A document's key is a hash of the seed, its text and its place, so the order of the shuffle is
decided here, whatever process encodes the document and however many of them there are.
"""

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

TRAIN, HELDOUT, OPEN = 0, 1, 2  # OPEN: decided when all documents are known
META = np.dtype(
  [
    ("high", "<u8"),  # orders the documents
    ("low", "<u8"),  # of the text alone: equal texts are held out together
    ("unit", "<u4"),
    ("number", "<u4"),
    ("tokens", "<u8"),
    ("bytes", "<u8"),
    ("label", "<u4"),  # bytes of it
    ("source", "<u2"),  # in the unit's list
    ("split", "u1"),
  ]
)


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
  """A document to encode. number: its place in the unit. label: JSON that names it."""

  number: int
  text: str
  label: str
  source: str = ""
  language: str = ""
  licence: str = ""
  split: int = OPEN


class Unit(Protocol):
  """Documents that one task encodes: a file of a stage, a part of a spool."""

  @property
  def number(self) -> int: ...

  @property
  def size(self) -> int:
    """Bytes of text, or about that: for progress."""
    ...

  def records(self) -> Iterator[Record]: ...


class Run:
  """Encoded documents in memory, up to bucket_bytes of text, then a run on disk."""

  def __init__(self, unit: int, seed: int, dtype: str):
    self._unit, self._seed, self._dtype = unit, seed, dtype
    self._rows: list[tuple[Any, ...]] = []
    self._ids: list[np.ndarray] = []
    self._labels: list[bytes] = []
    self.bytes = 0

  def add(self, record: Record, data: bytes, ids: list[int], source: int) -> None:
    """data: the UTF-8 text."""
    low, high = keys(self._seed, data, self._unit, record.number)
    label = record.label.encode("utf-8", "replace")
    sizes = (len(ids), len(data), len(label), source, record.split)
    self._rows.append((high, low, self._unit, record.number, *sizes))
    self._ids.append(np.array(ids, self._dtype))
    self._labels.append(label)
    self.bytes += len(data)

  def write(self, stem: Path) -> None:
    """Writes the three files, in the order of the keys."""
    meta = np.array(self._rows, META)
    order = np.lexsort((meta["number"], meta["high"]))
    with stem.with_suffix(".ids").open("wb") as file:
      for i in order:
        file.write(self._ids[i].data)
    with stem.with_suffix(".labels").open("wb") as file:
      for i in order:
        file.write(self._labels[i])
    with stem.with_suffix(".meta").open("wb") as file:
      file.write(meta[order].tobytes())


def keys(seed: int, data: bytes, unit: int, number: int) -> tuple[int, int]:
  """(low, high) of a document."""
  content = hashlib.blake2b(data, digest_size=16, key=seed.to_bytes(8, "little")).digest()
  place = unit.to_bytes(8, "little") + number.to_bytes(8, "little")
  order = hashlib.blake2b(content + place, digest_size=8).digest()
  return int.from_bytes(content[:8], "little"), int.from_bytes(order, "little")


@dataclasses.dataclass
class Done:
  """What a unit's task says when it is finished.

  runs: number of them. sources: names, by the number in META. docs, bytes, tokens (without EOS):
  sums. normalised: documents that the tokenizer's own rules changed. compared: documents encoded by
  the reference too. skipped: reason → documents. shares: [docs, bytes, tokens] by "source\\tNAME",
  "language\\tSOURCE\\tNAME" and "licence\\tSOURCE\\tNAME".
  """

  unit: int
  runs: int = 0
  sources: list[str] = dataclasses.field(default_factory=list)
  docs: int = 0
  bytes: int = 0
  tokens: int = 0
  normalised: int = 0
  compared: int = 0
  skipped: dict[str, int] = dataclasses.field(default_factory=dict)
  shares: dict[str, list[int]] = dataclasses.field(default_factory=dict)

  def count(self, record: Record, size: int, tokens: int) -> None:
    self.docs, self.bytes, self.tokens = self.docs + 1, self.bytes + size, self.tokens + tokens
    source = record.source or "unknown"
    for name in (
      f"source\t{source}",
      f"language\t{source}\t{record.language or 'unknown'}",
      f"licence\t{source}\t{record.licence or 'unknown'}",
    ):
      share = self.shares.setdefault(name, [0, 0, 0])
      for i, value in enumerate((1, size, tokens)):
        share[i] += value

  def write(self, folder: Path) -> None:
    fresh = folder / f".{self.unit:06d}.{os.getpid()}"
    fresh.write_text(json.dumps(dataclasses.asdict(self), sort_keys=True), encoding="utf-8")
    fresh.replace(folder / f"{self.unit:06d}.json")

  @classmethod
  def read(cls, folder: Path, unit: int) -> "Done | None":
    """None where the unit's task did not finish."""
    try:
      return cls(**json.loads((folder / f"{unit:06d}.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
      return None


def stem(folder: Path, unit: int, run: int) -> Path:
  """Where a run lies, without suffix."""
  return folder / f"{unit:06d}-{run:04d}"


def read_meta(folder: Path, unit: int, run: int) -> np.ndarray:
  """A run's records."""
  return np.fromfile(stem(folder, unit, run).with_suffix(".meta"), META)


def total(found: list[Done]) -> Done:
  """The sum of all units."""
  out = Done(unit=-1)
  skipped: Counter[str] = Counter()
  for one in found:
    for key in ("runs", "docs", "bytes", "tokens", "normalised", "compared"):
      setattr(out, key, getattr(out, key) + getattr(one, key))
    skipped.update(one.skipped)
    for name, share in one.shares.items():
      out.shares[name] = [a + b for a, b in zip(out.shares.get(name, [0, 0, 0]), share)]
    out.sources = sorted({*out.sources, *one.sources})
  out.skipped = dict(sorted(skipped.items()))
  out.shares = dict(sorted(out.shares.items()))
  return out
