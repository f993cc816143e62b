"""The training pipeline: sources → mixture → order → rows → batches of this host, and evaluation.

Everything is a Grain MapDataset (no filter, no packing), so any row is found from its number alone
and the whole state is one integer: the rows consumed. It holds across another number of hosts,
threads, workers and another batch size.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np

from jaxlm import configlib
from jaxlm.data.config import DataConfig
from jaxlm.data.mixture import Mixture, proportional
from jaxlm.data.order import BlockShuffle
from jaxlm.data.rows import batch_from_rows, clear_padding
from jaxlm.data.sources.base import RowSource
from jaxlm.data.task import Task, TaskConfig, Vocabulary
from jaxlm.errors import UserError
from jaxlm.tokenizers.base import CARD, load_tokenizer

# Length of an endless MapDataset; len() must stay below 2**63.
_ENDLESS = 1 << 60


class BatchIterator(Iterator[dict[str, np.ndarray]]):
  """Endless batches of one host. next_row: rows of all hosts consumed so far; the whole state."""

  def __init__(self, batches: grain.DatasetIterator, next_row: int, global_batch_size: int):
    self._batches = batches
    self._global_batch_size = global_batch_size
    self.next_row = next_row

  def __next__(self) -> dict[str, np.ndarray]:
    batch = next(self._batches)
    self.next_row += self._global_batch_size
    return batch

  def close(self) -> None:
    """Stops reading threads and worker processes."""
    self._batches.close()

  def __enter__(self) -> "BatchIterator":
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()


class Pipeline:
  """What a DataConfig describes, opened. See build_pipeline.

  Attributes:
    sources: by name, sorted. mixture: row → source. eos_id, tokenizer_sha256: common to the sources
      (the last: None where no source knows its own). vocab_size: theirs, and the ids that the task
      adds. task: None: each next token is asked for.
  """

  def __init__(self, config: DataConfig, sources: Sequence[RowSource]):
    self.config = config
    self.sources = sorted(sources, key=lambda source: source.name)
    for source in self.sources:
      if len(source) == 0:
        raise UserError(source.too_short())
    self.vocab_size: int = _common(self.sources, "vocab_size", "a vocab_size of")
    self.eos_id: int | None = _common(self.sources, "eos_id", "an eos_id of")
    self.tokenizer_sha256: str | None = _common(
      [s for s in self.sources if s.tokenizer_sha256 is not None],
      "tokenizer_sha256",
      "the tokenizer",
    )
    self.task: Task | None = None
    if config.task is not None:
      self.task = _build_task(config.task, self.sources[0], self.sources, config.seed)
      self.vocab_size += self.task.added
    phases = config.phases or proportional({s.name: len(s) for s in self.sources})
    self.mixture = Mixture([s.name for s in self.sources], phases)
    self._orders = {
      s.name: BlockShuffle(
        len(s),
        name=s.name,
        seed=config.seed,
        block_rows=config.block_rows,
        window_blocks=config.window_blocks,
        shuffle=config.shuffle,
      )
      for s in self.sources
    }

  def fingerprint(self, until_row: int | None = None) -> str:
    """sha256 (hex) of everything that decides which ids stand in which row.

    until_row: only what decides rows [0, until_row). So a run that stopped at row n may continue
    with other weights or added sources from n on exactly if fingerprint(n) is the same.
    Batch size, hosts, threads and workers do not count.
    """
    config = self.config
    history = self.mixture.history(until_row)
    used = sorted({name for _, weights in history for name in weights})
    fingerprints = {s.name: s.fingerprint() for s in self.sources if s.name in used}
    values: dict[str, Any] = {
      "seq_len": config.seq_len,
      "seed": config.seed if config.shuffle else None,
      "block_rows": config.block_rows if config.shuffle else None,
      "window_blocks": config.window_blocks if config.shuffle else None,
      "attend_across_documents": config.attend_across_documents,
      "predict_first_token": config.predict_first_token,
      "phases": history,
      "sources": fingerprints,
    }
    if config.task is not None:
      values["task"] = configlib.to_dict(config.task)
      values["seed"] = config.seed
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

  def locate(self, row: int) -> tuple[str, int]:
    """The source's name and the row within it that stand at a global row."""
    name, position = self.mixture.locate(row)
    return name, self._orders[name].row(position)

  def epochs(self, row: int) -> dict[str, float]:
    """Passes over each source after `row` rows in all."""
    counts = self.mixture.counts(row)
    return {s.name: counts[s.name] / len(s) for s in self.sources}

  def iterator(
    self,
    global_batch_size: int,
    start_row: int = 0,
    shard_index: int = 0,
    shard_count: int = 1,
  ) -> BatchIterator:
    """Endless batches of this host's part of each global batch.

    Args:
      global_batch_size: rows of a step over all hosts.
      start_row: rows consumed before: the next_row of the iterator that is continued.
      shard_index, shard_count: this host's contiguous slice of the global batch. Count groups of
        hosts with different data, not processes, where one replica spans several hosts.

    Returns:
      dicts of inputs, targets, segment_ids, positions (int32) and loss_weights (float32), each of
      shape (global_batch_size // shard_count, seq_len); see rows.batch_from_rows.
    """
    config = self.config
    local = _local_size(global_batch_size, shard_index, shard_count)
    assert start_row >= 0
    selection = _HostRows(self, start_row, global_batch_size, shard_index * local, local)
    parents = [grain.MapDataset.source(source) for source in self.sources]
    rows = grain.MapDataset.select_from_datasets(parents, selection)
    batches = rows.batch(local, drop_remainder=True).map_with_index(
      _MakeBatch(
        self.eos_id,
        config.attend_across_documents,
        config.predict_first_token,
        self.task,
        _Numbers(start_row + shard_index * local, global_batch_size, local),
      )
    )
    threads = grain.ReadOptions(
      num_threads=config.num_threads,
      prefetch_buffer_size=max(config.prefetch, config.num_threads) if config.num_threads else 0,
    )
    dataset = batches.to_iter_dataset(threads)
    if config.num_workers:
      _check_workers()
      dataset = dataset.mp_prefetch(
        grain.MultiprocessingOptions(
          num_workers=config.num_workers, per_worker_buffer_size=config.prefetch
        )
      )
    return BatchIterator(iter(dataset), start_row, global_batch_size)


def build_pipeline(config: DataConfig) -> Pipeline:
  """Checks the config and opens its sources (sizes only; no row is read).

  Raises:
    UserError: a value that can not work, a source that is missing, damaged or shorter than a row,
      or sources that were not made with one tokenizer.
  """
  config.validate()
  return Pipeline(config, [source.build(config.seq_len) for source in config.sources])


def evaluation_batches(
  source: RowSource,
  batch_size: int,
  *,
  max_rows: int | None = None,
  shard_index: int = 0,
  shard_count: int = 1,
  attend_across_documents: bool = False,
  task: TaskConfig | None = None,
  seed: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
  """Every token of a source predicted once, in order, in batches as of Pipeline.iterator.

  Args:
    source: rows, also of a split that is shorter than one row.
    batch_size: rows of a batch over all shards.
    max_rows: stop after so many rows. shard_index, shard_count: as in Pipeline.iterator.
    task, seed: as in DataConfig. A masked evaluation asks for the share that is chosen by the rows'
      numbers, always the same; fill-in-the-middle asks for each next token.

  Yields:
    As many batches on every shard: the last row and the last batch are padded with weight 0 and
    segment 0. Sums over shards and batches of loss · weight and of weight are exact.
  """
  local = _local_size(batch_size, shard_index, shard_count)
  total = source.num_evaluation_rows()
  if max_rows is not None:
    total = min(total, max_rows)
  if total < 1:
    raise UserError(f"source {source.name!r}: no tokens to evaluate; check its path and split")
  asked = None if task is None else _build_task(task, source, [source], seed)
  if asked is not None and not asked.evaluated:
    asked = None
  return _evaluation_batches(
    source, batch_size, total, shard_index, local, attend_across_documents, asked
  )


def _evaluation_batches(
  source: RowSource,
  batch_size: int,
  total: int,
  shard_index: int,
  local: int,
  attend_across_documents: bool,
  task: Task | None,
) -> Iterator[dict[str, np.ndarray]]:
  for first in range(0, total, batch_size):
    rows = np.zeros((local, source.seq_len + 1), np.int32)
    lengths = np.zeros(local, np.int64)
    for j in range(local):
      i = first + shard_index * local + j
      if i < total:
        ids = source.evaluation_row(i)
        rows[j, : ids.size] = ids
        lengths[j] = ids.size - 1
    batch = batch_from_rows(rows, source.eos_id, attend_across_documents=attend_across_documents)
    clear_padding(batch, lengths)
    if task is not None:
      numbers = np.arange(local, dtype=np.uint64) + np.uint64(first + shard_index * local)
      task.on_batch(batch, numbers)
    yield batch


class _HostRows(grain.transforms.DatasetSelectionMap):
  """Local row of one host → (index of the source, row in it)."""

  def __init__(
    self, pipeline: Pipeline, start_row: int, global_batch_size: int, first: int, local: int
  ):
    self._mixture = pipeline.mixture
    self._orders = [pipeline._orders[s.name] for s in pipeline.sources]
    self._index = {s.name: i for i, s in enumerate(pipeline.sources)}
    self._start = start_row + first
    self._global = global_batch_size
    self._local = local

  def __len__(self) -> int:
    return _ENDLESS

  def __getitem__(self, index: int) -> tuple[int, int]:
    batch, within = divmod(index, self._local)
    name, position = self._mixture.locate(self._start + batch * self._global + within)
    source = self._index[name]
    return source, self._orders[source].row(position)


@dataclasses.dataclass(frozen=True)
class _Numbers:
  """Which rows of all that a run consumes stand in a host's batch."""

  first: int
  stride: int
  count: int

  def of(self, batch: int) -> np.ndarray:
    return np.arange(self.count, dtype=np.uint64) + np.uint64(self.first + batch * self.stride)


class _MakeBatch(grain.transforms.MapWithIndex):
  """Whole batches are cut at once: numpy's cost a call is as large as that of a row."""

  def __init__(
    self,
    eos_id: int | None,
    attend_across_documents: bool,
    predict_first_token: bool,
    task: Task | None,
    numbers: _Numbers,
  ):
    self._task, self._numbers = task, numbers
    self._eos_id = eos_id
    self._attend = attend_across_documents
    self._predict_first = predict_first_token

  def map_with_index(self, index: int, element: np.ndarray) -> dict[str, np.ndarray]:
    if self._task is not None:
      numbers = self._numbers.of(index)
      element = self._task.on_rows(element, numbers)
    batch = batch_from_rows(
      element,
      self._eos_id,
      attend_across_documents=self._attend,
      predict_first_token=self._predict_first,
    )
    if self._task is not None:
      self._task.on_batch(batch, numbers)
    return batch


def _build_task(
  config: TaskConfig, ids: RowSource, sources: Sequence[RowSource], seed: int
) -> Task:
  """The task over the ids that the sources share."""
  tokenizer = None
  for source in sources:
    shards = getattr(source, "shards", None)
    directory = None if shards is None else Path(shards.path) / "tokenizer"
    if directory is not None and (directory / CARD).is_file():
      tokenizer = load_tokenizer(directory)
      break
  return config.build(Vocabulary(ids.vocab_size, ids.eos_id, tokenizer), seed)


def _local_size(batch_size: int, shard_index: int, shard_count: int) -> int:
  if batch_size < 1 or batch_size % shard_count:
    raise UserError(
      f"a batch of {batch_size} rows cannot be split evenly over {shard_count} hosts;"
      " choose a batch size that is a multiple of the number of hosts"
    )
  assert 0 <= shard_index < shard_count
  return batch_size // shard_count


def _common(sources: Sequence[RowSource], key: str, what: str) -> Any:
  """The value that all sources share; UserError naming two that differ."""
  values = [getattr(s, key) for s in sources]
  for source, value in zip(sources, values):
    if value != values[0]:
      a, b = (str(v)[:12] for v in (values[0], value))
      raise UserError(
        f"data.sources: {sources[0].name!r} has {what} {a}, {source.name!r} has {b}: one mixture"
        " takes one tokenizer; make both datasets with the same one"
      )
  return values[0] if values else None


def _check_workers() -> None:
  from absl import flags

  # Grain passes its own flags to the workers and fails deep inside where none were parsed.
  if not flags.FLAGS.is_parsed():
    raise UserError(
      "data.num_workers: worker processes need parsed flags; start through a jaxlm command, call"
      " absl.flags.FLAGS(sys.argv) first, or set data.num_workers=0"
    )
