"""The order of a source's rows: a block shuffle that is computed, not stored.

An epoch's order is a bijection of [0, num_rows) evaluated at one position at a time, so 10 rows and
10 billion rows cost the same memory. Blocks of neighbouring rows are permuted over the whole
source; then the rows of each window of consecutive permuted blocks are permuted among themselves.
Reads thus touch window_blocks places at a time, whatever the size of the source.

The permutation is a Feistel network over a mixed-radix domain with cycle walking (Black and
Rogaway, "Ciphers with arbitrary finite domains", 2002). It is written out here, rather than taken
from a library, because a changed order would silently repeat and skip rows of a resumed run.
"""

import functools
import hashlib
import math

_MASK = (1 << 64) - 1
_ROUNDS = 6


class Permutation:
  """A keyed bijection of [0, size) with its inverse; O(1) memory, some µs a call."""

  __slots__ = ("_keys", "_left", "_right", "_size")

  def __init__(self, size: int, keys: tuple[int, ...]):
    assert size >= 1 and len(keys) == _ROUNDS
    self._size = size
    # The domain left × right is at most sqrt(size) + 1 larger than size: cycles are walked rarely.
    self._left = math.isqrt(size - 1) + 1
    self._right = -(-size // self._left)
    self._keys = keys

  def __call__(self, x: int) -> int:
    while True:
      high, low = divmod(x, self._right)
      for i in range(0, _ROUNDS, 2):
        high = (high + _mix(low, self._keys[i])) % self._left
        low = (low + _mix(high, self._keys[i + 1])) % self._right
      x = high * self._right + low
      if x < self._size:
        return x

  def inverse(self, y: int) -> int:
    while True:
      high, low = divmod(y, self._right)
      for i in range(_ROUNDS - 2, -1, -2):
        low = (low - _mix(high, self._keys[i + 1])) % self._right
        high = (high - _mix(low, self._keys[i])) % self._left
      y = high * self._right + low
      if y < self._size:
        return y


class BlockShuffle:
  """Row number for every position of an endless sequence of differently shuffled epochs.

  Args:
    num_rows: rows of the source; position k is in epoch k // num_rows.
    name, seed: both are hashed with the epoch. With seed + epoch alone, two sources with
      neighbouring seeds would replay each other's orders one epoch apart.
    block_rows, window_blocks: see the module's docstring.
    shuffle: False: every epoch is 0, 1, 2, …
  """

  def __init__(
    self,
    num_rows: int,
    *,
    name: str,
    seed: int,
    block_rows: int = 64,
    window_blocks: int = 16,
    shuffle: bool = True,
  ):
    assert num_rows >= 1 and block_rows >= 1 and window_blocks >= 1
    self.num_rows = num_rows
    self._seed = f"{seed}/{name}"
    self._block = block_rows
    self._window = block_rows * window_blocks
    self._window_blocks = window_blocks
    self._num_blocks = -(-num_rows // block_rows)
    # The last block in file order may be short; it can land in any slot of the permuted order.
    self._deficit = self._num_blocks * block_rows - num_rows
    self._shuffle = shuffle

  def row(self, position: int) -> int:
    """The row in [0, num_rows) that stands at a position >= 0."""
    epoch, x = divmod(position, self.num_rows)
    if not self._shuffle:
      return x
    blocks, short_slot = _epoch_blocks(self._seed, epoch, self._num_blocks)
    short_window, short_local = divmod(short_slot, self._window_blocks)
    # Windows after the one with the short block begin `deficit` rows early.
    if x < (short_window + 1) * self._window - self._deficit:
      window = x // self._window
      begin = window * self._window
    else:
      window = (x + self._deficit) // self._window
      begin = window * self._window - self._deficit
    slots = min(self._window_blocks, self._num_blocks - window * self._window_blocks)
    size = slots * self._block
    has_short = window == short_window
    if has_short:
      size -= self._deficit
    local = _window_rows(self._seed, epoch, window, size)(x - begin)
    if has_short and local >= (short_local + 1) * self._block - self._deficit:
      local += self._deficit
    slot, offset = divmod(local, self._block)
    return blocks(window * self._window_blocks + slot) * self._block + offset


@functools.lru_cache(maxsize=256)
def _epoch_blocks(seed: str, epoch: int, num_blocks: int) -> tuple[Permutation, int]:
  """The permutation slot → block of an epoch, and the slot of the last block."""
  blocks = Permutation(num_blocks, _keys(f"{seed}/{epoch}/blocks"))
  return blocks, blocks.inverse(num_blocks - 1)


@functools.lru_cache(maxsize=1024)
def _window_rows(seed: str, epoch: int, window: int, size: int) -> Permutation:
  return Permutation(size, _keys(f"{seed}/{epoch}/window/{window}"))


def _keys(text: str) -> tuple[int, ...]:
  digest = hashlib.blake2b(text.encode(), digest_size=8 * _ROUNDS).digest()
  return tuple(int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(_ROUNDS))


def _mix(x: int, key: int) -> int:
  """32 well-mixed bits of x under a key (the finaliser of SplitMix64, shortened)."""
  x = (x ^ key) * 0xBF58476D1CE4E5B9 & _MASK
  x = (x ^ x >> 29) * 0x94D049BB133111EB & _MASK
  return x >> 32
