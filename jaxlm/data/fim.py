"""Fill-in-the-middle: documents with their middle moved to the end, and back."""

import numpy as np

from jaxlm.data.chance import uniform
from jaxlm.data.task import FillInTheMiddleConfig, FimSplit, Task, Vocabulary
from jaxlm.errors import UserError
from jaxlm.tokenizers.base import Tokenizer, is_lossless
from jaxlm.tokenizers.symbols import control_ids

# Prefix, suffix, middle in published vocabularies.
_USUAL = (
  ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
  ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
  ("<PRE>", "<SUF>", "<MID>"),
)
Symbols = tuple[int, int, int]
_SHORTEST = 8  # tokens; shorter documents stay as they are


def rearrange(
  prefix: np.ndarray, middle: np.ndarray, suffix: np.ndarray, symbols: Symbols, *, spm: bool
) -> np.ndarray:
  """<prefix> p <suffix> s <middle> m, or with spm <prefix> <suffix> s <middle> p m."""
  pre, suf, mid = ([symbol] for symbol in symbols)
  if spm:
    return np.concatenate([pre, suf, suffix, mid, prefix, middle])
  return np.concatenate([pre, prefix, suf, suffix, mid, middle])


def restore(ids: np.ndarray, symbols: Symbols) -> np.ndarray:
  """What `rearrange` was given, joined again; ids without symbols as they are."""
  pre, suf, mid = symbols
  if not ids.size or ids[0] != pre:
    return ids
  at_suffix, at_middle = (int(np.flatnonzero(ids == one)[0]) for one in (suf, mid))
  first, suffix = ids[1:at_suffix], ids[at_suffix + 1 : at_middle]
  return np.concatenate([first, ids[at_middle + 1 :], suffix])


class FillInTheMiddle(Task):
  """See FillInTheMiddleConfig. symbols: the ids of prefix, suffix, middle.

  Raises:
    UserError: a named symbol that the tokenizer has not; characters without a tokenizer.
  """

  def __init__(self, config: FillInTheMiddleConfig, ids: Vocabulary, seed: int):
    self._config, self._seed, self._eos = config, seed, ids.eos_id
    self.symbols = _symbols(config, ids)
    self.added = 3 if self.symbols[0] == ids.vocab_size else 0
    self._tokenizer: Tokenizer | None = None
    if config.split is FimSplit.CHARACTER:
      if ids.tokenizer is None:
        raise UserError(
          "config.data.task.split=CHARACTER: needs a dataset with its tokenizer: use TOKEN"
        )
      if not is_lossless(ids.tokenizer):
        raise UserError(
          "config.data.task.split=CHARACTER: encodes pieces again; this tokenizer does not give "
          "every text back (it may put a space before each piece): use TOKEN"
        )
      self._tokenizer = ids.tokenizer

  def on_rows(self, rows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    rows = rows.copy()
    chances = uniform(self._seed, "fim", numbers, 4 * rows.shape[1])
    for row, chance in zip(rows, chances.reshape(len(rows), -1, 4)):
      ends = [] if self._eos is None else np.flatnonzero(row == self._eos).tolist()
      begin = 0
      for i, end in enumerate([*ends, row.size]):
        changed, order, *cuts = chance[i]
        if end - begin >= _SHORTEST and changed < self._config.rate:
          row[begin:end] = self._changed(row[begin:end], cuts, spm=order < self._config.spm_rate)
        begin = end + 1
    return rows

  def on_batch(self, batch: dict[str, np.ndarray], numbers: np.ndarray) -> None:
    batch["loss_weights"][np.isin(batch["targets"], self.symbols)] = 0

  def _changed(self, ids: np.ndarray, cuts: list[float], *, spm: bool) -> np.ndarray:
    """As many ids, rearranged at the two cuts, which are shares of the document."""
    parts = None if self._tokenizer is None else self._cut_text(ids, cuts)
    if parts is None:
      kept = ids[: ids.size - 3]
      a, b = sorted(int(cut * (kept.size + 1)) for cut in cuts)
      parts = kept[:a], kept[a:b], kept[b:]
    return rearrange(*parts, self.symbols, spm=spm)

  def _cut_text(
    self, ids: np.ndarray, cuts: list[float]
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The three pieces, cut between characters and encoded again, as long as fits; None where that
    can't be: a row that begins or ends within a character, a suffix shorter than what is in the
    way, or an encoding that got shorter."""
    assert self._tokenizer is not None
    try:
      text = self._tokenizer.decode_bytes(ids.tolist()).decode("utf-8")
    except UnicodeDecodeError:
      return None
    a, b = sorted(int(cut * (len(text) + 1)) for cut in cuts)
    p, m, s = (
      np.asarray(self._tokenizer.encode(piece), ids.dtype)
      for piece in (text[:a], text[a:b], text[b:])
    )
    over = p.size + m.size + s.size + 3 - ids.size
    return (p, m, s[: s.size - over]) if 0 <= over <= s.size else None


def _symbols(config: FillInTheMiddleConfig, ids: Vocabulary) -> Symbols:
  known = {} if ids.tokenizer is None else control_ids(ids.tokenizer)
  for names in _USUAL if config.symbols is None else (config.symbols,):
    if all(name in known for name in names):
      pre, suf, mid = (known[name] for name in names)
      return pre, suf, mid
  if config.symbols is not None:
    raise UserError(
      f"config.data.task.symbols={config.symbols}: the tokenizer has no such control symbols (it "
      f"has {', '.join(sorted(known)) or 'none'}); none adds three"
    )
  return ids.vocab_size, ids.vocab_size + 1, ids.vocab_size + 2
