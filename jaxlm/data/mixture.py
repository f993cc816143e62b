"""Which source serves which row: weights by phase, in closed form.

Recomputing a mixture from new weights moves every source's position: rows are then read twice or
never. Here each phase continues every source where the phases before left it, and the counts are a
formula of the row, so any row of any phase is found without replaying the rows before it.
"""

import bisect
import dataclasses
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from jaxlm.data.config import Phase, validate_phases


@dataclasses.dataclass(frozen=True)
class _Resolved:
  start_row: int
  weights: tuple[int, ...]  # by source, in the order of the names
  offsets: tuple[int, ...]  # rows that each source served before this phase


class Mixture:
  """The map row → (source name, position in that source's endless sequence).

  Sources are taken in the order of their names, so the order of a config's list does not matter.
  Two mixtures whose phases agree below a row agree on all rows below it, whatever sources and
  phases come later.

  Args:
    names: of the sources. phases: at least one; see config.Phase.
  """

  def __init__(self, names: Sequence[str], phases: Sequence[Phase]):
    assert phases and len(set(names)) == len(names)
    validate_phases(list(phases), list(names), "phases")
    self.names = tuple(sorted(names))
    self._phases: list[_Resolved] = []
    for phase in phases:
      offsets = self._counts(phase.start_row)
      weights = _integers([phase.weights.get(name, 0) for name in self.names])
      self._phases.append(_Resolved(phase.start_row, weights, offsets))
    self._starts = [p.start_row for p in self._phases]

  def locate(self, row: int) -> tuple[str, int]:
    """The name of the source that serves a row >= 0, and the position in it."""
    phase = self._phases[bisect.bisect_right(self._starts, row) - 1]
    before = remaining = row - phase.start_row
    after = remaining + 1
    total = sum(phase.weights)
    # The same splitting as _split, at two neighbouring rows at once: exactly one count differs.
    for i, weight in enumerate(phase.weights):
      a = _share(before, weight, total)
      b = _share(after, weight, total)
      if b > a:
        return self.names[i], phase.offsets[i] + a
      before, after, total = before - a, after - b, total - weight
    raise AssertionError(f"row {row} has no source")

  def counts(self, row: int) -> dict[str, int]:
    """Rows that each source serves among the rows [0, row)."""
    return dict(zip(self.names, self._counts(row)))

  def weights(self, row: int) -> dict[str, float]:
    """The weights in force at a row; they sum to 1."""
    phase = self._phases[bisect.bisect_right(self._starts, row) - 1]
    total = sum(phase.weights)
    return {name: w / total for name, w in zip(self.names, phase.weights)}

  def history(self, until_row: int | None = None) -> list[tuple[int, dict[str, int]]]:
    """Phases that start below until_row (None: all), without the sources of weight 0."""
    return [
      (p.start_row, {n: w for n, w in zip(self.names, p.weights) if w})
      for p in self._phases
      if until_row is None or p.start_row < until_row
    ]

  def _counts(self, row: int) -> tuple[int, ...]:
    if not self._phases:
      return (0,) * len(self.names)
    phase = [p for p in self._phases if p.start_row <= row][-1]
    served = _split(row - phase.start_row, phase.weights)
    return tuple(a + b for a, b in zip(phase.offsets, served))


def _share(rows: int, weight: int, total: int) -> int:
  """round(rows · weight / total), exactly. Grows by 0 or 1 with each row since weight <= total."""
  return (2 * rows * weight + total) // (2 * total) if weight else 0


def _split(rows: int, weights: Sequence[int]) -> tuple[int, ...]:
  """How many of the first `rows` rows each source serves; sums to rows, each grows by 0 or 1.

  The first source takes its rounded share, the second its share of what is left, and so on. (To
  round the cumulative weights instead would let a source's count fall.)
  """
  total, out = sum(weights), []
  for weight in weights:
    n = _share(rows, weight, total)
    out.append(n)
    rows, total = rows - n, total - weight
  assert rows == 0
  return tuple(out)


def _integers(weights: Sequence[float]) -> tuple[int, ...]:
  """Integers in the same ratio. Read as decimals, so that 0.1 is 1/10 and not a binary fraction."""
  fractions = [Fraction(str(w)) for w in weights]
  scale = math.lcm(*(f.denominator for f in fractions))
  whole = [int(f * scale) for f in fractions]
  divisor = math.gcd(*whole)
  return tuple(w // divisor for w in whole)


def proportional(rows: Mapping[str, int]) -> list[Phase]:
  """One phase with weights proportional to the rows (and so to the tokens) of the sources."""
  return [Phase(weights=dict(rows))]
