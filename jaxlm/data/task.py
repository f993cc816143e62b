"""What is asked of a row, beside predicting each next token (plain data: imports no numpy).

A task is made on the host, as a function of data.seed and of the row's number among all rows that
the run consumes. So every epoch differs, and neither a restart nor another mesh, number of hosts,
threads or batch size changes a token. (Keys on devices would give that too, but not whole words
or re-encoded pieces, which take the tokenizer.) An evaluation counts its own rows: its masks are
the same whenever it is made.
"""

import abc
import dataclasses
import enum
from typing import TYPE_CHECKING

from jaxlm.errors import UserError

if TYPE_CHECKING:
  import numpy as np

  from jaxlm.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """What a task must know of the ids: tokenizer is None where the data carries none."""

  vocab_size: int
  eos_id: int | None
  tokenizer: "Tokenizer | None"


class Task:
  """What changes rows. Overrides what it needs; picklable.

  Attributes:
    added: ids that follow the tokenizer's own, for symbols that it has not.
    evaluated: whether an evaluation asks the same.
    masked: targets are the tokens themselves; see MaskedConfig.
  """

  added: int = 0
  evaluated: bool = False
  masked: bool = False

  def on_rows(self, rows: "np.ndarray", numbers: "np.ndarray") -> "np.ndarray":
    """Changed ids, (rows, seq_len + 1), EOS where it was. numbers: of the rows, from 0."""
    return rows

  def on_batch(self, batch: "dict[str, np.ndarray]", numbers: "np.ndarray") -> None:
    """Changes in place what rows.batch_from_rows made."""


@dataclasses.dataclass(kw_only=True)
class TaskConfig(abc.ABC):
  """A task. A new one is a subclass."""

  @abc.abstractmethod
  def build(self, ids: Vocabulary, seed: int) -> Task:
    """The task over these ids. Raises UserError for what the data lacks."""

  def validate(self, path: str) -> None:
    """UserError with the dotted path for a value that can not work."""
    del path  # subclasses have values to check


@dataclasses.dataclass(kw_only=True)
class MaskedConfig(TaskConfig):
  """Masked tokens are to be found (Devlin et al. 2019, arXiv:1810.04805); for an EncoderConfig.

  Attributes:
    rate: the share of each row's tokens that is chosen, rounded; at least one. Loss is on those
      alone. Control symbols (EOS) are never chosen.
    mask, random: the shares of the chosen that are shown as the mask symbol and as any token; the
      rest is shown as it is.
    whole_words: choose words, all of their tokens, up to the share.
    symbol: the mask's name among the tokenizer's control symbols; None: <mask>, [MASK] or <|mask|>,
      or else an id that follows the tokenizer's own (model.vocab_size is one more then).
  """

  rate: float = 0.15
  mask: float = 0.8
  random: float = 0.1
  whole_words: bool = False
  symbol: str | None = None

  def build(self, ids: Vocabulary, seed: int) -> Task:
    from jaxlm.data.mlm import Masking

    return Masking(self, ids, seed)

  def validate(self, path: str) -> None:
    if not 0 < self.rate < 1:
      raise UserError(f"{path}.rate={self.rate}: must be above 0 and below 1")
    if self.mask < 0 or self.random < 0 or self.mask + self.random > 1:
      raise UserError(
        f"{path}.mask={self.mask}, random={self.random}: must be shares whose sum is at most 1"
      )


class FimSplit(enum.Enum):
  """Where a document may be cut. TOKEN: between tokens. CHARACTER: anywhere; pieces are encoded
  again, as they will be when someone asks for a middle (Bavarian et al. 2022, section 4.4)."""

  TOKEN = "token"
  CHARACTER = "character"


@dataclasses.dataclass(kw_only=True)
class FillInTheMiddleConfig(TaskConfig):
  """Documents with their middle moved to the end (Bavarian et al. 2022, arXiv:2207.14255).

  A document (or what a row holds of it) becomes <prefix> p <suffix> s <middle> m, or in the other
  order <prefix> <suffix> s <middle> p m. The three symbols take the places of the last three tokens
  of s (CHARACTER: of as many as it takes), so that EOS and all other documents stay where they
  are. No loss is on predicting a symbol. An evaluation reads from left to right.

  Attributes:
    rate: the share of documents that is changed.
    spm_rate: the share of those in the second order.
    split: where the two cuts may be.
    symbols: names of prefix, suffix, middle among the tokenizer's control symbols; None: the usual
      ones, or else three ids that follow the tokenizer's own.
  """

  rate: float = 0.5
  spm_rate: float = 0.5
  split: FimSplit = FimSplit.TOKEN
  symbols: tuple[str, str, str] | None = None

  def build(self, ids: Vocabulary, seed: int) -> Task:
    from jaxlm.data.fim import FillInTheMiddle

    return FillInTheMiddle(self, ids, seed)

  def validate(self, path: str) -> None:
    for name in ("rate", "spm_rate"):
      if not 0 <= getattr(self, name) <= 1:
        raise UserError(f"{path}.{name}={getattr(self, name)}: must be between 0 and 1")


@dataclasses.dataclass(kw_only=True)
class PrefixConfig(TaskConfig):
  """Prefix-LM (Raffel et al. 2020, arXiv:1910.10683): the beginning of a document is seen by all of
  it, and the rest is predicted.

  Attributes:
    rate: the share of documents that have a prefix; the others are causal throughout. The prefix
      takes a share of the document that is uniform in [0, 1).
  """

  rate: float = 1.0

  def build(self, ids: Vocabulary, seed: int) -> Task:
    from jaxlm.data.prefix import Prefix

    return Prefix(self, seed)

  def validate(self, path: str) -> None:
    if not 0 <= self.rate <= 1:
      raise UserError(f"{path}.rate={self.rate}: must be between 0 and 1")
