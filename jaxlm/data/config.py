"""Configs of the training data: sources, mixture phases, order and loading."""

import abc
import dataclasses
import difflib
import math
import typing

from jaxlm.data.task import TaskConfig
from jaxlm.errors import UserError

if typing.TYPE_CHECKING:  # built lazily: this module stays importable in milliseconds
  from jaxlm.data.sources.base import RowSource


@dataclasses.dataclass(kw_only=True)
class SourceConfig(abc.ABC):
  """Where rows come from. A new source is a subclass with `build`, in a file of its own.

  name: unique among the sources; it is the key in Phase.weights and part of the shuffle's seed, so
  renaming a source reorders its rows.
  """

  name: str = "data"

  @abc.abstractmethod
  def build(self, seq_len: int) -> "RowSource":
    """The source that serves rows of seq_len + 1 ids."""

  def validate(self, path: str) -> None:
    """UserError with the dotted path for a value that can not work."""
    if not self.name:
      raise UserError(f"{path}.name='': give the source a name")


@dataclasses.dataclass(kw_only=True)
class TokenShardsConfig(SourceConfig):
  """A dataset made by `python -m jaxlm.prepare`. path: its directory (holds manifest.json)."""

  path: str
  split: str = "train"

  def build(self, seq_len: int) -> "RowSource":
    from jaxlm.data.sources.token_shards import TokenShardsSource

    return TokenShardsSource(self.name, self.path, self.split, seq_len)

  def validate(self, path: str) -> None:
    super().validate(path)
    if not self.path:
      raise UserError(f"{path}.path='': name a dataset made by `python -m jaxlm.prepare`")


@dataclasses.dataclass(kw_only=True)
class SyntheticConfig(SourceConfig):
  """Uniformly random ids, the same on every machine: for tests and for timing without data.

  document_len: tokens of a document, its EOS (id 0) included; None: no documents, no EOS.
  """

  vocab_size: int
  num_rows: int = 1 << 20
  seed: int = 0
  document_len: int | None = None

  def build(self, seq_len: int) -> "RowSource":
    from jaxlm.data.sources.synthetic import SyntheticSource

    return SyntheticSource(
      self.name, self.vocab_size, self.num_rows, self.seed, self.document_len, seq_len
    )

  def validate(self, path: str) -> None:
    super().validate(path)
    if not 2 <= self.vocab_size < 1 << 31:
      raise UserError(f"{path}.vocab_size={self.vocab_size}: must be in [2, 2**31)")
    if self.num_rows < 1:
      raise UserError(f"{path}.num_rows={self.num_rows}: must be at least 1")
    if self.document_len is not None and self.document_len < 2:
      raise UserError(f"{path}.document_len={self.document_len}: must be at least 2, or none")


@dataclasses.dataclass(kw_only=True)
class ArrayRecordConfig(SourceConfig):
  """ArrayRecord files whose records are rows: seq_len + 1 little-endian ids each.

  path: a file or a glob. dtype: "<u2", "<u4" or "<i4". vocab_size: ids at or above it are refused.
  eos_id: the id that ends a document; None: a row is one document.
  """

  path: str
  vocab_size: int
  dtype: str = "<u2"
  eos_id: int | None = None

  def build(self, seq_len: int) -> "RowSource":
    from jaxlm.data.sources.arrayrecord import ArrayRecordSource

    return ArrayRecordSource(
      self.name, self.path, self.dtype, self.vocab_size, self.eos_id, seq_len
    )

  def validate(self, path: str) -> None:
    super().validate(path)
    if self.dtype not in ("<u2", "<u4", "<i4"):
      raise UserError(f"{path}.dtype={self.dtype!r}: must be one of <u2, <u4, <i4")
    _check_vocab(path, self.vocab_size, self.eos_id)


@dataclasses.dataclass(kw_only=True)
class ParquetConfig(SourceConfig):
  """Parquet files with a column of integer lists: seq_len + 1 ids each, already tokenised.

  path: a file or a glob. Random reads fetch whole row groups: keep them small (some MB), and keep
  data.block_rows at about the rows of one group.
  """

  path: str
  vocab_size: int
  column: str = "input_ids"
  eos_id: int | None = None

  def build(self, seq_len: int) -> "RowSource":
    from jaxlm.data.sources.parquet import ParquetSource

    return ParquetSource(self.name, self.path, self.column, self.vocab_size, self.eos_id, seq_len)

  def validate(self, path: str) -> None:
    super().validate(path)
    _check_vocab(path, self.vocab_size, self.eos_id)


@dataclasses.dataclass(kw_only=True)
class Phase:
  """Mixture weights from one row on, until the next phase starts.

  start_row: rows of all sources consumed before it (step × global_batch_size).
  weights: source name → relative weight; a source that is not named gets 0.
  """

  start_row: int = 0
  weights: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(kw_only=True)
class DataConfig:
  """What is read, in which order, and how fast.

  seq_len: tokens of a row. phases: empty: one phase, weights proportional to tokens.
  seed, shuffle: the order within each epoch of each source.
  block_rows, window_blocks: the shuffle permutes blocks of block_rows neighbouring rows, then the
    rows of window_blocks blocks: larger mixes better, smaller reads fewer places.
  attend_across_documents: False: attention and positions restart at each document of a row.
  predict_first_token: False: no loss on the first token of a document (its input is EOS).
  task: what is asked of a row (see task.py): MaskedConfig for encoders, FillInTheMiddleConfig,
    PrefixConfig; None: each next token.
  num_threads: reading threads of a process (0: read in the caller's thread); num_workers: reading
    processes (0: none; needs a start through one of jaxlm's commands); prefetch: batches in store.
    None of the three changes a row.
  """

  seq_len: int = 1024
  sources: list[SourceConfig] = dataclasses.field(default_factory=list)
  phases: list[Phase] = dataclasses.field(default_factory=list)
  seed: int = 0
  shuffle: bool = True
  block_rows: int = 64
  window_blocks: int = 16
  attend_across_documents: bool = False
  predict_first_token: bool = True
  task: TaskConfig | None = None
  num_threads: int = 1
  num_workers: int = 0
  prefetch: int = 2

  def validate(self, path: str = "data") -> None:
    """UserError with the dotted path for a value that can not work; opens no file."""
    lower = {
      "seq_len": 2,
      "block_rows": 1,
      "window_blocks": 1,
      "num_threads": 0,
      "num_workers": 0,
      "prefetch": 1,
    }
    for key, least in lower.items():
      if getattr(self, key) < least:
        raise UserError(f"{path}.{key}={getattr(self, key)}: must be at least {least}")
    if not self.sources:
      raise UserError(f"{path}.sources: empty; add at least one source")
    for i, source in enumerate(self.sources):
      source.validate(f"{path}.sources[{i}]")
      if any(s.name == source.name for s in self.sources[:i]):
        raise UserError(
          f"{path}.sources[{i}].name={source.name!r}: taken by another source; give each its own"
        )
    if self.task is not None:
      self.task.validate(f"{path}.task")
    validate_phases(self.phases, [s.name for s in self.sources], f"{path}.phases")


def validate_phases(phases: list[Phase], names: list[str], path: str) -> None:
  """Phases start at row 0 and increase; their weights are finite, known and not all 0."""
  for i, phase in enumerate(phases):
    where = f"{path}[{i}]"
    if i == 0 and phase.start_row != 0:
      raise UserError(f"{where}.start_row={phase.start_row}: the first phase must start at row 0")
    if i and phase.start_row <= phases[i - 1].start_row:
      raise UserError(
        f"{where}.start_row={phase.start_row}: must be above the one before,"
        f" {phases[i - 1].start_row}"
      )
    for name, weight in phase.weights.items():
      if name not in names:
        close = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}"
        raise UserError(f"{where}.weights: no source is named {name!r} ({hint})")
      if not (math.isfinite(weight) and weight >= 0):
        raise UserError(f"{where}.weights[{name!r}]={weight}: must be finite and not negative")
    if not any(weight > 0 for weight in phase.weights.values()):
      raise UserError(f"{where}.weights: no weight above 0; name at least one source")


def _check_vocab(path: str, vocab_size: int, eos_id: int | None) -> None:
  if not 1 <= vocab_size < 1 << 31:
    raise UserError(f"{path}.vocab_size={vocab_size}: must be in [1, 2**31)")
  if eos_id is not None and not 0 <= eos_id < vocab_size:
    raise UserError(f"{path}.eos_id={eos_id}: must be below vocab_size={vocab_size}, or none")
