"""The phased mixture: every source continues where it stood, with the shares that were asked."""

import collections

import pytest

from jaxlm.data.config import Phase
from jaxlm.data.mixture import Mixture
from jaxlm.errors import UserError

PHASES = [
  Phase(weights={"a": 0.9, "b": 0.1}),
  Phase(start_row=1003, weights={"a": 0.5, "b": 0.5}),
  Phase(start_row=2000, weights={"a": 1, "b": 1, "late": 2}),
  Phase(start_row=2500, weights={"late": 3}),
]
NAMES = ["b", "late", "a"]


def test_no_row_is_repeated_or_skipped_and_counts_agree():
  """Breaks when positions are computed from the new weights alone (as MapDataset.mix does)."""
  mixture = Mixture(NAMES, PHASES)
  seen = dict.fromkeys(NAMES, 0)
  for row in range(3000):
    assert mixture.counts(row) == seen
    name, position = mixture.locate(row)
    assert position == seen[name]
    seen[name] += 1


def test_shares_are_those_of_the_weights():
  mixture = Mixture(NAMES, PHASES)
  for begin, end, shares in [
    (0, 1003, {"a": 0.9, "b": 0.1}),
    (1003, 2000, {"a": 0.5, "b": 0.5}),
    (2000, 2500, {"a": 0.25, "b": 0.25, "late": 0.5}),
    (2500, 3000, {"late": 1.0}),
  ]:
    found = collections.Counter(mixture.locate(r)[0] for r in range(begin, end))
    for name in NAMES:
      assert abs(found[name] - shares.get(name, 0) * (end - begin)) <= 2
    assert mixture.weights(begin) == pytest.approx({n: shares.get(n, 0.0) for n in NAMES})


def test_sources_are_spread_evenly():
  """Breaks where a source's rows come in runs: any 20 rows hold 2 ± 1 of a tenth."""
  mixture = Mixture(NAMES, PHASES)
  names = [mixture.locate(r)[0] for r in range(1000)]
  assert all(1 <= names[i : i + 20].count("b") <= 3 for i in range(980))


def test_later_phases_and_sources_do_not_touch_earlier_rows():
  """Breaks where a source of weight 0, or the order of the list, moves the others."""
  short = Mixture(["a", "b"], PHASES[:2])
  full = Mixture(NAMES, PHASES)
  assert [short.locate(r) for r in range(2000)] == [full.locate(r) for r in range(2000)]
  assert short.history(2000) == full.history(2000)
  assert short.history() != full.history()


def test_far_rows_are_found_directly():
  row = 10**15 + 7
  mixture = Mixture(["a", "b"], [Phase(weights={"a": 1 / 3, "b": 2 / 3})])
  name, position = mixture.locate(row)
  assert mixture.counts(row)[name] == position
  assert sum(mixture.counts(row).values()) == row


@pytest.mark.parametrize(
  "phases, message",
  [
    ([Phase(start_row=5, weights={"a": 1})], r"start_row=5: the first phase must start at row 0"),
    ([Phase(weights={"a": 1}), Phase(weights={"a": 1})], r"phases\[1\].start_row=0: must be above"),
    ([Phase(weights={"aa": 1})], r"no source is named 'aa' \(did you mean 'a'\?\)"),
    ([Phase(weights={"a": -1.0})], r"weights\['a'\]=-1.0: must be finite and not negative"),
    ([Phase(weights={"a": float("nan")})], r"must be finite"),
    ([Phase(weights={"a": 0.0})], r"no weight above 0"),
    ([Phase()], r"no weight above 0"),
  ],
)
def test_bad_phases_are_refused(phases, message):
  with pytest.raises(UserError, match=message):
    Mixture(["a", "b"], phases)
