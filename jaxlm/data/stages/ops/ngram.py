"""A byte n-gram language model in numpy: small, quick to train, of any language and of code.

Interpolated as Witten and Bell 1991 (Chen and Goodman 1999, section 2.3):

  p(c | h) = (n(hc) + t(h) p(c | h')) / (n(h) + t(h))

with n the counts, t(h) how many different bytes follow h, h' the context without its first byte.
Counts lie in tables addressed by a hash of the n-gram, with a tag of 16 bits that says which one
has the place; one that finds it taken is left out, of n(h) too, so that probabilities sum to 1.
For text of up to some 20 GB (counts of 32 bits).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.stages.stage_io import whole_file
from jaxlm.errors import UserError

FORMAT = 1
_TABLES = ("tags", "counts", "totals", "kinds")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_BLOCK = 1 << 22  # bytes that are counted at once


class NgramModel:
  """Counts of 1- to order-grams of bytes.

  Args:
    order: of the longest n-gram. bits: of the number of places of each table (14 bytes each).
  """

  def __init__(self, order: int = 5, bits: int = 22):
    self.order, self.bits = order, bits
    sizes = [1] + [1 << bits] * order
    # By the length n of an n-gram: what owns the place; how often; as a context (not the longest):
    # the sum of the counts of what follows it, and how many different bytes those are.
    self.tags = [np.zeros(size, np.uint16) for size in sizes]
    self.counts = [np.zeros(size, np.uint32) for size in sizes]
    self.totals = [np.zeros(size, np.uint32) for size in sizes[:-1]]
    self.kinds = [np.zeros(size, np.uint32) for size in sizes[:-1]]

  def _places(self, data: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each n-gram of the bytes: its place in the table and its tag, which is not 0."""
    if n == 0:  # one before each byte
      return np.zeros(len(data), np.int64), np.zeros(len(data), np.uint16)
    size = len(data) - n + 1
    value = np.zeros(size, np.uint64)
    for i in range(n):
      value = (value ^ (data[i : i + size] + np.uint64(1))) * _MULTIPLIER
      value ^= value >> np.uint64(29)
    place = (value >> np.uint64(64 - self.bits)).astype(np.int64)
    return place, (value & np.uint64(0xFFFF)).astype(np.uint16) | np.uint16(1)

  def add(self, text: bytes) -> None:
    """Counts one document."""
    for start in range(0, len(text), _BLOCK):
      data = np.frombuffer(text[start : start + _BLOCK], np.uint8).astype(np.uint64)
      for n in range(1, min(self.order, len(data)) + 1):
        self._count(data, n)

  def _count(self, data: np.ndarray, n: int) -> None:
    place, tag = self._places(data, n)
    both = (place << 16) | tag
    found, first, times = np.unique(both, return_index=True, return_counts=True)
    place, tag = found >> 16, (found & 0xFFFF).astype(np.uint16)
    free = np.flatnonzero(self.tags[n][place] == 0)
    free = free[np.argsort(times[free], kind="stable")]  # of several, the most frequent is last
    self.tags[n][place[free]] = tag[free]
    context, context_tag = (one[first] for one in self._places(data, n - 1))
    own = (self.tags[n][place] == tag) & (self.tags[n - 1][context] == context_tag)
    place, context, times = place[own], context[own], times[own].astype(np.uint32)
    new = self.counts[n][place] == 0
    self.counts[n][place] += times
    np.add.at(self.totals[n - 1], context, times)
    np.add.at(self.kinds[n - 1], context[new], 1)

  def bits_per_byte(self, text: bytes) -> float:
    """Mean of -log2 p over the bytes; the first ones have shorter contexts."""
    data = np.frombuffer(text, np.uint8).astype(np.uint64)
    if not len(data):
      return 0.0
    chance = np.full(len(data), 1 / 256)
    for n in range(1, min(self.order, len(data)) + 1):
      context, context_tag = (one[: len(data) - n + 1] for one in self._places(data, n - 1))
      known = self.tags[n - 1][context] == context_tag
      total = np.where(known, self.totals[n - 1][context], 0).astype(np.float64)
      kinds = np.where(known, self.kinds[n - 1][context], 0)
      place, tag = self._places(data, n)
      count = np.where(known & (self.tags[n][place] == tag), self.counts[n][place], 0)
      tail = chance[n - 1 :]  # of the bytes that have a context so long
      mixed = (count + kinds * tail) / np.maximum(total + kinds, 1)
      chance[n - 1 :] = np.where(kinds > 0, mixed, tail)
    return float(-np.log2(chance).mean())

  def perplexity(self, text: str) -> float:
    """2 to the bits per byte."""
    return float(2.0 ** self.bits_per_byte(text.encode("utf-8", "replace")))

  def save(self, path: str | Path) -> None:
    """Writes the model; whole or not at all, the same bytes for the same counts."""
    arrays: dict[str, Any] = {
      f"{name}{i}": array for name in _TABLES for i, array in enumerate(getattr(self, name))
    }
    with whole_file(Path(path)) as file:
      np.savez_compressed(file, header=np.array([FORMAT, self.order, self.bits]), **arrays)

  @classmethod
  def load(cls, path: str | Path) -> "NgramModel":
    """Reads a model. Raises UserError for anything else."""
    try:
      with np.load(Path(path).expanduser(), allow_pickle=False) as found:
        version, order, bits = (int(one) for one in found["header"])
        if version != FORMAT:
          raise UserError(
            f"{path}: an n-gram model of format {version}, not {FORMAT}; train it anew"
          )
        model = cls(order, 1)
        model.bits = bits
        for name in _TABLES:
          setattr(model, name, [found[f"{name}{i}"] for i in range(len(getattr(model, name)))])
    except (OSError, ValueError, KeyError, EOFError) as error:
      raise UserError(f"{path}: no n-gram model ({error}); train one with train-ngram") from None
    return model


def train(texts: Iterable[str], order: int, bits: int) -> NgramModel:
  """The model of the texts."""
  model = NgramModel(order, bits)
  for text in texts:
    model.add(text.encode("utf-8", "replace"))
  return model
