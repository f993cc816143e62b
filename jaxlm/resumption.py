"""Which rows and losses a run had, and whether a restart has the same."""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.pipeline import Pipeline

Rows = dict[int, str]  # number of a row among all that the run ever reads -> digest of its content


class Record:
  """Writes a process's batches to a file, a JSON line each; it is run.train's `on_batch`."""

  def __init__(self, file: str | Path):
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    self._stream = Path(file).open("a", encoding="utf-8")  # noqa: SIM115

  def __call__(self, first: int, arrays: dict[str, np.ndarray]) -> None:
    self.write(first=first, rows=digests(arrays))

  def write(self, **values: Any) -> None:
    """A line of one's own; the time is added."""
    self._stream.write(json.dumps({**values, "time": time.time()}) + "\n")
    self._stream.flush()


def digests(arrays: dict[str, np.ndarray]) -> list[str]:
  """A digest (64 bits, hex) of each row of a batch: its ids, documents and weights."""
  names = ("inputs", "targets", "segment_ids", "loss_weights")
  columns = [np.ascontiguousarray(arrays[name]) for name in names]
  out = []
  for i in range(len(columns[0])):
    digest = hashlib.blake2b(digest_size=8)
    for column in columns:
      digest.update(column[i].tobytes())
    out.append(digest.hexdigest())
  return out


def read(file: str | Path) -> list[dict[str, Any]]:
  """The lines of a Record; a last line that was cut short is left out."""
  out = []
  if Path(file).is_file():
    for line in Path(file).read_text(encoding="utf-8").splitlines():
      try:
        out.append(json.loads(line))
      except ValueError:
        break
  return out


def rows_of(lines: list[dict[str, Any]]) -> list[tuple[int, str]]:
  """(number, digest) of each row, in the order in which a process loaded them."""
  return [
    (line["first"] + i, digest)
    for line in lines
    if "rows" in line
    for i, digest in enumerate(line["rows"])
  ]


def expected_rows(pipeline: Pipeline, first: int, count: int) -> Rows:
  """What stands in `count` rows from `first` on, as a single process reads them."""
  out: Rows = {}
  chunk = math.gcd(count, 64)
  with pipeline.iterator(chunk, first) as batches:
    for start in range(first, first + count, chunk):
      for i, digest in enumerate(digests(next(batches))):
        out[start + i] = digest
  return out


def losses(workdir: str | Path) -> dict[int, float]:
  """Step -> loss, as WORKDIR/metrics.jsonl has them ("nan" and "inf" are strings there)."""
  lines = read(Path(workdir) / "metrics.jsonl")
  return {line["step"]: float(line["loss"]) for line in lines if "loss" in line}


@dataclasses.dataclass(frozen=True)
class Step:
  """One step of two runs: the losses (None: not there), whether the rows are the same."""

  step: int
  expected: float | None
  found: float | None
  same_rows: bool

  @property
  def difference(self) -> float:
    """Relative to the expected loss; infinite where one is missing or not finite."""
    if self.expected is None or self.found is None or not self.finite:
      return math.inf
    if self.expected == self.found:
      return 0.0
    difference = abs(self.expected - self.found) / max(abs(self.expected), 1e-30)
    return difference if math.isfinite(difference) else math.inf

  @property
  def finite(self) -> bool:
    """Whether none of the losses is NaN or infinite, which nothing can be compared with."""
    return all(v is None or math.isfinite(v) for v in (self.expected, self.found))


def compare(
  steps: range,
  expected: Mapping[int, float],
  found: Mapping[int, float],
  expected_rows: Rows,
  found_rows: Rows,
  first_row: int,
  batch: int,
) -> list[Step]:
  """The steps of two runs side by side. first_row: the first of the first step."""
  out = []
  for i, step in enumerate(steps):
    numbers = range(first_row + i * batch, first_row + (i + 1) * batch)
    same = all(n in found_rows and found_rows[n] == expected_rows.get(n) for n in numbers)
    out.append(Step(step, expected.get(step), found.get(step), same))
  return out
