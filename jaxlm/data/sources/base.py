"""What every source of rows offers."""

import abc

import numpy as np


class RowSource(abc.ABC):
  """Random access to rows of ids; shared by threads and sent to worker processes (picklable).

  Attributes:
    name: unique in a mixture.
    seq_len: a row holds seq_len + 1 ids: inputs and targets overlap in all but one.
    vocab_size: every id is below it.
    eos_id: the id that ends a document, or None where a row is one document.
    tokenizer_sha256: fingerprint of the tokenizer that made the ids, or None where not known.
  """

  name: str
  seq_len: int
  vocab_size: int
  eos_id: int | None = None
  tokenizer_sha256: str | None = None

  @abc.abstractmethod
  def __len__(self) -> int:
    """Number of whole rows: what an epoch of training reads."""

  @abc.abstractmethod
  def __getitem__(self, row: int) -> np.ndarray:
    """ids of one row: int32, shape (seq_len + 1,). IndexError outside of [0, len)."""

  @abc.abstractmethod
  def fingerprint(self) -> str:
    """sha256 (hex) of what decides the ids of every row, wherever the files lie."""

  def too_short(self) -> str:
    """Why there is no whole row, and the remedy: the text of the UserError for an empty source."""
    return f"source {self.name!r} has no rows; check its path, or remove it from data.sources"

  def num_evaluation_rows(self) -> int:
    """Rows of an evaluation: as many as it takes to predict every token once."""
    return len(self)

  def evaluation_row(self, i: int) -> np.ndarray:
    """Row i of an evaluation: int32, shape (n,) with 2 <= n <= seq_len + 1."""
    return self[i]
