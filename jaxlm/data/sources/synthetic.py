"""Random ids that cost no disk and are the same everywhere."""

import hashlib

import numpy as np

from jaxlm.data.sources.base import RowSource


class SyntheticSource(RowSource):
  """Rows cut from one stream of hashed positions, laid out as TokenShardsSource lays out rows.

  Counter-based (SplitMix64; Steele, Lea and Flood 2014), not a generator of numpy's, whose streams
  may change between versions. With document_len, every document_len-th token is EOS (id 0).
  """

  def __init__(
    self,
    name: str,
    vocab_size: int,
    num_rows: int,
    seed: int,
    document_len: int | None,
    seq_len: int,
  ):
    self.name = name
    self.seq_len = seq_len
    self.vocab_size = vocab_size
    self.eos_id = None if document_len is None else 0
    self._num_rows = num_rows
    self._seed = seed
    self._document_len = document_len
    key = hashlib.sha256(f"synthetic/{seed}".encode()).digest()
    self._key = np.uint64(int.from_bytes(key[:8], "little"))

  def __len__(self) -> int:
    return self._num_rows

  def __getitem__(self, row: int) -> np.ndarray:
    if not 0 <= row < self._num_rows:
      raise IndexError(f"row {row} is not in [0, {self._num_rows}) of source {self.name!r}")
    begin = row * self.seq_len
    where = np.arange(begin, begin + self.seq_len + 1, dtype=np.uint64)
    x = where * np.uint64(0x9E3779B97F4A7C15) + self._key
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    if self._document_len is None:
      return (x % np.uint64(self.vocab_size)).astype(np.int32)
    ids = (x % np.uint64(self.vocab_size - 1)).astype(np.int32) + np.int32(1)
    ids[(where + np.uint64(1)) % np.uint64(self._document_len) == 0] = 0
    return ids

  def __repr__(self) -> str:
    return f"SyntheticSource({self.name!r}, {self._num_rows} rows of {self.seq_len})"

  def fingerprint(self) -> str:
    text = f"synthetic/{self.vocab_size}/{self._num_rows}/{self._seed}/{self._document_len}"
    return hashlib.sha256(text.encode()).hexdigest()
