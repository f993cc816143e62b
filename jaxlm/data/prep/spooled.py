"""The spool of `prepare` as units of work for the shuffle."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxlm.data.prep.documents import Spool
from jaxlm.data.prep.runs import Record

UNIT_BYTES = 1 << 26  # of text


class SharedSpool(Spool):
  """A spool that other processes read too."""

  def __init__(self, file: Path):
    super().__init__(file)
    self.path = file

  def flush(self) -> None:
    """Call before another process reads."""
    self._file.flush()

  def __enter__(self) -> "SharedSpool":
    return self

  def place(self, i: int) -> tuple[int, int]:
    """Offset and size of text i in the file."""
    return self._starts[i], self._sizes[i]


@dataclasses.dataclass(frozen=True)
class SpoolUnit:
  """Texts of a spool. texts: (number, offset, size, label, split) of each."""

  number: int
  size: int
  path: Path
  texts: list[tuple[int, int, int, str, int]]

  def records(self) -> Iterator[Record]:
    with self.path.open("rb") as file:
      for number, offset, size, label, split in self.texts:
        file.seek(offset)
        source = str(json.loads(label).get("source", ""))
        yield Record(number, file.read(size).decode(), label, source=source, split=split)


def units(spool: SharedSpool, splits: Sequence[tuple[int, Sequence[int]]]) -> list[SpoolUnit]:
  """Units of about UNIT_BYTES. splits: (split, indices of its texts)."""
  spool.flush()
  out: list[SpoolUnit] = []
  texts: list[tuple[int, int, int, str, int]] = []
  size = 0
  for split, indices in splits:
    for i in sorted(indices):  # in the order of the file
      texts.append((i, *spool.place(i), spool.label(i), split))
      size += spool.size(i)
      if size >= UNIT_BYTES:
        out.append(SpoolUnit(len(out), size, spool.path, texts))
        texts, size = [], 0
  if texts:
    out.append(SpoolUnit(len(out), size, spool.path, texts))
  return out
