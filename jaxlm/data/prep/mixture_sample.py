"""The text that a tokenizer is trained and measured on: a mixture-weighted sample of a stage."""

import dataclasses
import hashlib
import heapq
import random
from collections.abc import Iterable, Mapping

from jaxlm.data.prep.runs import Record, Unit
from jaxlm.errors import UserError

_HELDOUT_SHARE = 32  # one document in so many is for measuring and never trained on
_ENOUGH = 4  # times its budget: what is read of each source before a corpus counts as seen


@dataclasses.dataclass
class Sample:
  """train: texts. heldout: records to measure on. sha256: of the training texts, in order.

  bytes: taken for training, by source. files: read of all there are. wanted: bytes that the weights
  ask for, by source; {} without weights. A source that has less gives all it has.
  """

  train: list[str]
  heldout: list[Record]
  sha256: str
  bytes: dict[str, int]
  files: tuple[int, int]
  wanted: dict[str, int]

  def short(self) -> dict[str, float]:
    """Source → the share of what was wanted that it had, where that is below 0.95."""
    found = {s: self.bytes.get(s, 0) / b for s, b in self.wanted.items()}
    return {s: round(share, 3) for s, share in found.items() if share < 0.95}


def take(
  units: Iterable[Unit],
  sources: Iterable[str],
  *,
  weights: Mapping[str, float],
  max_bytes: int,
  heldout_bytes: int,
  seed: int,
) -> Sample:
  """Documents of lowest hash of each source, until its share of max_bytes is full.

  Files are read in a random order, and no more of them once every source has been met at
  _ENOUGH times its share, so that a large corpus is not read whole.

  Args:
    sources: all there are. weights: share of each in the sample; {}: as they are.
    heldout_bytes: of each source.

  Raises:
    UserError: a weight names a source that is not there, or no text is left.
  """
  names = sorted(set(sources))
  unknown = sorted(set(weights) - set(names))
  if unknown:
    raise UserError(
      f"tokenizer.weights: no source {', '.join(unknown)}; there are {', '.join(names)}"
    )
  wanted = {s: w for s, w in weights.items() if w > 0}
  whole = sum(wanted.values())
  budget = {s: int(max_bytes * w / whole) + 1 for s, w in wanted.items()}
  train, heldout = _Lowest(), _Lowest()
  seen = dict.fromkeys(names, 0)
  order = list(units)
  random.Random(seed).shuffle(order)
  read = 0
  for unit in order:
    for record in unit.records():
      source = record.source
      size = len(record.text.encode())
      if not record.text.strip():
        continue
      rank = _rank(seed, record.text)
      if rank % _HELDOUT_SHARE == 0:
        heldout.add(source, rank, size, record, heldout_bytes)
      elif not weights or source in budget:
        seen[source] = seen.get(source, 0) + size
        # Without weights all sources share one budget.
        key, room = (source, budget[source]) if weights else ("", max_bytes)
        train.add(key, rank, size, record, room)
    read += 1
    if weights and all(seen.get(s, 0) >= _ENOUGH * b for s, b in budget.items()):
      break
    if not weights and sum(seen.values()) >= _ENOUGH * max_bytes and read >= len(names):
      break
  chosen = train.records()
  if not chosen:
    raise UserError("no text to train the tokenizer on: check the stage before, and the weights")
  texts: list[str] = []
  taken: dict[str, int] = {}
  digest = hashlib.sha256()
  for key, records in chosen.items():
    left = budget[key] if weights else max_bytes
    for record in records:
      data = record.text.encode()[:left]
      text = data.decode("utf-8", "ignore")  # the cut may lie inside of a character
      left -= len(data)
      if text:
        texts.append(text)
        taken[record.source] = taken.get(record.source, 0) + len(data)
        digest.update(len(data).to_bytes(8, "little") + data)
  measured = [r for records in heldout.records().values() for r in records]
  files = (read, len(order))
  return Sample(texts, measured, digest.hexdigest(), dict(sorted(taken.items())), files, budget)


class _Lowest:
  """By key, the records of lowest rank that fill a budget of bytes (the last one overflows it)."""

  def __init__(self) -> None:
    self._heaps: dict[str, list[tuple[int, int, int, Record]]] = {}
    self._sizes: dict[str, int] = {}
    self._count = 0

  def add(self, key: str, rank: int, size: int, record: Record, budget: int) -> None:
    heap = self._heaps.setdefault(key, [])
    held = self._sizes.get(key, 0)
    if held >= budget and -heap[0][0] <= rank:
      return
    self._count += 1
    heapq.heappush(heap, (-rank, self._count, size, record))
    held += size
    while heap and held - heap[0][2] >= budget:
      held -= heapq.heappop(heap)[2]
    self._sizes[key] = held

  def records(self) -> dict[str, list[Record]]:
    return {
      key: [entry[3] for entry in sorted(heap, key=lambda e: (-e[0], e[1]))]
      for key, heap in sorted(self._heaps.items())
    }


def _rank(seed: int, text: str) -> int:
  key = seed.to_bytes(8, "little")
  return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest(), "little")
