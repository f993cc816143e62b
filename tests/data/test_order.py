"""The order of rows: a bijection in every epoch, different between epochs and sources."""

import pytest

from jaxlm.data.order import _ROUNDS, BlockShuffle, Permutation


@pytest.mark.parametrize("size", [*range(1, 40), 97, 1000, 4097])
def test_permutation_is_a_bijection_with_inverse(size):
  """Breaks where a Feistel round is not undone in reverse order, or cycles are cut short."""
  p = Permutation(size, tuple(range(11, 11 + _ROUNDS)))
  image = [p(x) for x in range(size)]
  assert sorted(image) == list(range(size))
  assert [p.inverse(y) for y in image] == list(range(size))


@pytest.mark.parametrize("num_rows", [1, 2, 3, 7, 8, 9, 31, 32, 33, 63, 64, 65, 100, 257, 1000])
@pytest.mark.parametrize("block_rows, window_blocks", [(1, 1), (4, 2), (8, 4), (64, 16)])
def test_each_epoch_reads_each_row_once(num_rows, block_rows, window_blocks):
  """Breaks where the short last block is counted as whole, wherever in the order it lands."""
  for seed in range(3):
    order = BlockShuffle(
      num_rows, name="a", seed=seed, block_rows=block_rows, window_blocks=window_blocks
    )
    for epoch in range(3):
      rows = [order.row(epoch * num_rows + i) for i in range(num_rows)]
      assert sorted(rows) == list(range(num_rows))


def _epoch(epoch, num_rows=500, **kwargs):
  order = BlockShuffle(num_rows, block_rows=8, window_blocks=4, **kwargs)
  return [order.row(epoch * num_rows + i) for i in range(num_rows)]


def test_epochs_sources_and_seeds_have_their_own_orders():
  """Breaks with a seed of `seed + epoch`: then (seed 0, epoch 1) is (seed 1, epoch 0)."""
  orders = [
    tuple(_epoch(epoch, name=name, seed=seed))
    for epoch in range(3)
    for name in ("a", "b")
    for seed in range(3)
  ]
  assert len(set(orders)) == len(orders)
  assert tuple(range(500)) not in orders


def test_a_window_reads_few_blocks_and_mixes_them():
  """The point of the block shuffle: neighbours in time come from window_blocks places."""
  rows = _epoch(0, num_rows=8 * 64, name="a", seed=0)
  for begin in range(0, len(rows), 32):
    window = rows[begin : begin + 32]
    assert len({r // 8 for r in window}) == 4
    assert len({r // 8 for r in window[:8]}) > 1
  firsts = [rows[begin] // 8 for begin in range(0, len(rows), 32)]
  assert firsts != sorted(firsts)


def test_positions_far_out_cost_no_memory():
  """Breaks where an epoch's order is stored."""
  order = BlockShuffle(10**12, name="a", seed=0)
  rows = {order.row(10**12 * 3 + i) for i in range(1000)}
  assert len(rows) == 1000 and max(rows) > 10**11


def test_the_order_is_uniform_enough():
  """Each row's place in an epoch has about the mean and spread of a uniform one."""
  n, trials = 64, 400
  order = BlockShuffle(n, name="a", seed=5, block_rows=4, window_blocks=4)
  places = [[order.row(e * n + i) for e in range(trials)] for i in (0, 17, 63)]
  for place in places:
    assert abs(sum(place) / trials - (n - 1) / 2) < 5 * n / (12 * trials) ** 0.5
    assert len(set(place)) == n


def test_no_shuffle_is_the_identity():
  order = BlockShuffle(5, name="a", seed=0, shuffle=False)
  assert [order.row(k) for k in range(12)] == [k % 5 for k in range(12)]


def test_the_order_never_changes_between_versions():
  """Golden: a changed order would repeat and skip rows of every resumed run."""
  order = BlockShuffle(1000, name="web", seed=7)
  assert [order.row(k) for k in range(6)] == GOLDEN


GOLDEN = [604, 545, 256, 367, 880, 420]
