"""Masked tokens: which are chosen, and what is shown in their place."""

import numpy as np

from jaxlm.data.chance import random_bits, uniform
from jaxlm.data.task import MaskedConfig, Task, Vocabulary
from jaxlm.errors import UserError
from jaxlm.tokenizers.symbols import control_ids, word_edges

_USUAL = ("<mask>", "[MASK]", "<|mask|>")


class Masking(Task):
  """See MaskedConfig. mask_id: the mask symbol's.

  Raises:
    UserError: a named symbol that the tokenizer has not; whole words without a tokenizer.
  """

  evaluated = True
  masked = True

  def __init__(self, config: MaskedConfig, ids: Vocabulary, seed: int):
    self._config, self._seed = config, seed
    self.mask_id = _mask_id(config, ids)
    self.added = 1 if self.mask_id == ids.vocab_size else 0
    special = np.zeros(ids.vocab_size + self.added, bool)
    special[[self.mask_id, *([] if ids.eos_id is None else [ids.eos_id])]] = True
    if ids.tokenizer is not None:
      special[: ids.vocab_size] |= ids.tokenizer.token_bytes() == 0
    self._special = special
    self._ordinary = np.flatnonzero(~special).astype(np.int32)
    if not self._ordinary.size:
      raise UserError("config.data.task: the vocabulary has no token that stands for text")
    self._edges = None
    if config.whole_words:
      if ids.tokenizer is None:
        raise UserError(
          "config.data.task.whole_words: needs a dataset with its tokenizer: set it to false"
        )
      self._edges = word_edges(ids.tokenizer)

  def on_batch(self, batch: dict[str, np.ndarray], numbers: np.ndarray) -> None:
    ids = batch["inputs"]
    chosen = self.choose(ids, batch["segment_ids"], numbers)
    T = ids.shape[1]
    shown = uniform(self._seed, "mask/shown", numbers, T)
    which = random_bits(self._seed, "mask/token", numbers, T) % np.uint64(self._ordinary.size)
    hidden = chosen & (shown < self._config.mask)
    random = chosen & ~hidden & (shown < self._config.mask + self._config.random)
    batch["targets"][...] = ids
    batch["loss_weights"][...] = chosen
    ids[random] = self._ordinary[which[random]]
    ids[hidden] = self.mask_id

  def choose(self, ids: np.ndarray, segments: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """bool, like ids: the tokens to be found. segments: 0 is padding."""
    eligible = ~self._special[ids] & (segments > 0)
    count = eligible.sum(axis=1)
    wanted = np.maximum(np.rint(self._config.rate * count), np.minimum(count, 1)).astype(np.int64)
    bits = random_bits(self._seed, "mask/chosen", numbers, ids.shape[1])
    if self._edges is None:
      first = np.tile(np.arange(ids.shape[1]), (ids.shape[0], 1))
      size = np.ones_like(first)
    else:
      first, size = self._words(ids, segments, eligible)
      bits = np.take_along_axis(bits, first, axis=1)
    # All tokens of a word have its first token's bits, so a stable sort leaves them together.
    bits = np.where(eligible, bits, np.uint64(2**64 - 1))
    order = np.argsort(bits, axis=1, kind="stable")
    if self._edges is None:
      taken = np.broadcast_to(np.arange(order.shape[1]) < wanted[:, None], order.shape)
    else:
      size = np.where(eligible, size, 0)
      firsts = np.take_along_axis(first, order, axis=1)
      taken = _fitting(np.take_along_axis(size, order, axis=1), firsts == order, wanted)
    chosen = np.empty_like(eligible)
    np.put_along_axis(chosen, order, taken, axis=1)
    return eligible & chosen

  def _words(
    self, ids: np.ndarray, segments: np.ndarray, eligible: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """For each token, the column of its word's first token, and the word's length."""
    assert self._edges is not None
    begins, ends = self._edges
    safe = np.minimum(ids, begins.size - 1)  # an added id is special, so not eligible
    joined = ends[safe[:, :-1]] & begins[safe[:, 1:]]
    joined &= eligible[:, :-1] & eligible[:, 1:] & (segments[:, :-1] == segments[:, 1:])
    starts = np.pad(~joined, ((0, 0), (1, 0)), constant_values=True)
    T = ids.shape[1]
    first = np.maximum.accumulate(np.where(starts, np.arange(T), 0), axis=1)
    word = np.cumsum(starts.reshape(-1)).reshape(ids.shape) - 1
    return first, np.bincount(word.reshape(-1))[word]


def _fitting(size: np.ndarray, begins: np.ndarray, wanted: np.ndarray) -> np.ndarray:
  """The tokens taken when words are tried in the order of the columns and those that no longer fit
  are passed over, as BERT does; a row in which none fits takes its first.

  Args:
    size: int (B, T), the length of the word that the token is part of; 0: can't be taken.
    begins: bool (B, T), whether the token is its word's first.
    wanted: int (B,), the most tokens to take.
  """
  left, taken = wanted.copy(), np.zeros(size.shape, bool)
  for column in range(size.shape[1]):
    fits = begins[:, column] & (size[:, column] > 0) & (size[:, column] <= left)
    left = left - np.where(fits, size[:, column], 0)
    taken[:, column] = fits
    if not left.any():
      break
  taken[:, 0] |= (left == wanted) & (wanted > 0)
  # A word's tokens stand side by side: each does what its first does.
  starts = np.maximum.accumulate(np.where(begins, np.arange(size.shape[1]), 0), axis=1)
  return np.take_along_axis(taken, starts, axis=1) & (size > 0)


def _mask_id(config: MaskedConfig, ids: Vocabulary) -> int:
  known = {} if ids.tokenizer is None else control_ids(ids.tokenizer)
  if config.symbol is not None:
    if config.symbol not in known:
      raise UserError(
        f"config.data.task.symbol={config.symbol!r}: the tokenizer has no such control symbol (it "
        f"has {', '.join(sorted(known)) or 'none'}); none adds one"
      )
    return known[config.symbol]
  return next((known[name] for name in _USUAL if name in known), ids.vocab_size)
