"""Rows of any length out of flat token shards."""

import hashlib
import os

import numpy as np

from jaxlm.data.manifest import Manifest
from jaxlm.data.shards import TokenShards
from jaxlm.data.sources.base import RowSource


class TokenShardsSource(RowSource):
  """Row r is tokens[r·seq_len : r·seq_len + seq_len + 1]: rows are arithmetic, there is no index.

  Neighbouring rows share one token, which is the last target of one and the first input of the
  next. Tokens behind the last whole row are not trained on (fewer than seq_len + 1).

  Raises:
    UserError: the dataset is missing, incomplete, or has no such split.
  """

  def __init__(
    self,
    name: str,
    path: str | os.PathLike[str],
    split: str,
    seq_len: int,
    manifest: Manifest | None = None,
  ):
    self.name = name
    self.seq_len = seq_len
    self.shards = TokenShards(path, split, manifest)
    self.vocab_size = self.shards.manifest.vocab_size
    self.eos_id: int = self.shards.manifest.eos_id
    self.tokenizer_sha256 = self.shards.manifest.tokenizer_sha256

  def __len__(self) -> int:
    return max(self.shards.num_tokens - 1, 0) // self.seq_len

  def __getitem__(self, row: int) -> np.ndarray:
    if not 0 <= row < len(self):
      raise IndexError(f"row {row} is not in [0, {len(self)}) of source {self.name!r}")
    return self.shards.tokens(row * self.seq_len, self.seq_len + 1)

  def __repr__(self) -> str:
    return f"TokenShardsSource({self.name!r}, {self.shards!r}, seq_len={self.seq_len})"

  def too_short(self) -> str:
    return (
      f"{self.shards.path}: split {self.shards.split!r} has {self.shards.num_tokens} tokens, one"
      f" row takes {self.seq_len + 1}; lower data.seq_len (at most"
      f" {max(self.shards.num_tokens - 1, 0)}) or add text and run `python -m jaxlm.prepare` again"
    )

  def fingerprint(self) -> str:
    manifest = self.shards.manifest
    parts = [manifest.dtype, str(manifest.eos_id), str(manifest.vocab_size)]
    parts += [f"{s.tokens}:{s.sha256}" for s in manifest.split(self.shards.split).shards]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()

  def num_evaluation_rows(self) -> int:
    return -(-self.shards.num_tokens // self.seq_len)

  def evaluation_row(self, i: int) -> np.ndarray:
    """Predicts tokens [i·seq_len, (i + 1)·seq_len), fewer in the last row.

    The input of the first token of the split is EOS, as it is for every other document, so that
    bits per byte cover all of the text.
    """
    begin = i * self.seq_len
    end = min(begin + self.seq_len, self.shards.num_tokens)
    if not 0 <= begin < end:
      raise IndexError(f"evaluation row {i} is not in [0, {self.num_evaluation_rows()})")
    if begin:
      return self.shards.tokens(begin - 1, end - begin + 1)
    first = np.array([self.eos_id], np.int32)
    return np.concatenate([first, self.shards.tokens(0, end)])
