"""Rows out of Parquet files that hold token ids already."""

import bisect
import collections
import itertools
import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxlm.data.sources.base import RowSource
from jaxlm.data.sources.files import checked_row, content_fingerprint, local_files
from jaxlm.errors import UserError

_CACHED_GROUPS = 32


class ParquetSource(RowSource):
  """A column of integer lists, each of seq_len + 1 ids.

  Parquet reads whole row groups. The last 32 are kept decoded, so an order that stays near
  (config.DataConfig.block_rows) reads each group about once; a full shuffle would read a group a
  row.

  Raises:
    UserError: no file, not Parquet, no such column or one of another type, a row of another length,
      an id out of range.
  """

  def __init__(
    self, name: str, path: str, column: str, vocab_size: int, eos_id: int | None, seq_len: int
  ):
    self.name = name
    self.seq_len = seq_len
    self.vocab_size = vocab_size
    self.eos_id = eos_id
    self._column = column
    self._files = local_files(name, path)
    self._setup()
    self._groups: list[tuple[int, int]] = []  # (file, row group) in order
    group_rows: list[int] = []
    self._counts: list[int] = []
    for i, file in enumerate(self._files):
      meta = self._open(i).metadata
      _check_column(self._open(i).schema_arrow, column, str(file))
      self._counts.append(meta.num_rows)
      for g in range(meta.num_row_groups):
        self._groups.append((i, g))
        group_rows.append(meta.row_group(g).num_rows)
    self._ends = list(itertools.accumulate(group_rows))
    if not self._ends or not self._ends[-1]:
      raise UserError(f"source {name!r}: {path}: no rows; correct the path or write them again")
    # The first row shows a wrong seq_len or vocab_size before training starts.
    self[0]

  def _setup(self) -> None:
    self._lock = threading.Lock()
    self._open_files: dict[int, pq.ParquetFile] = {}
    self._cache: collections.OrderedDict[int, tuple[np.ndarray, np.ndarray]] = (
      collections.OrderedDict()
    )

  def __getstate__(self) -> dict[str, Any]:
    dropped = ("_lock", "_open_files", "_cache")
    return {k: v for k, v in self.__dict__.items() if k not in dropped}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._setup()

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, row: int) -> np.ndarray:
    if not 0 <= row < len(self):
      raise IndexError(f"row {row} is not in [0, {len(self)}) of source {self.name!r}")
    group = bisect.bisect_right(self._ends, row)
    local = row - (self._ends[group - 1] if group else 0)
    offsets, ids = self._group(group)
    file, number = self._groups[group]
    where = f"{self._files[file]} (row group {number})"
    part = ids[offsets[local] : offsets[local + 1]]
    return checked_row(part, where, local, self.seq_len, self.vocab_size)

  def __repr__(self) -> str:
    return f"ParquetSource({self.name!r}, {len(self)} rows of {self.seq_len})"

  def fingerprint(self) -> str:
    settings = f"parquet/{self._column}/{self.vocab_size}/{self.eos_id}"
    return content_fingerprint(settings, self._files, self._counts)

  def _open(self, i: int) -> pq.ParquetFile:
    if i not in self._open_files:
      try:
        self._open_files[i] = pq.ParquetFile(self._files[i])
      except (pa.ArrowException, OSError) as e:
        line = str(e).strip().split("\n")[0]
        raise UserError(
          f"{self._files[i]}: not a readable Parquet file ({line}); copy it again"
        ) from None
    return self._open_files[i]

  def _group(self, group: int) -> tuple[np.ndarray, np.ndarray]:
    # A ParquetFile is not safe to share between threads, so the lock covers the read as well.
    with self._lock:
      if group in self._cache:
        self._cache.move_to_end(group)
        return self._cache[group]
      file, number = self._groups[group]
      try:
        table = self._open(file).read_row_group(number, columns=[self._column])
      except (pa.ArrowException, OSError) as e:
        line = str(e).strip().split("\n")[0]
        raise UserError(
          f"{self._files[file]}: row group {number} cannot be read ({line}); copy it again"
        ) from None
      lists = table.column(0).combine_chunks()
      if isinstance(lists, pa.ChunkedArray):  # no chunk at all, or more than one can hold
        lists = pa.concat_arrays(lists.chunks)
      lengths = lists.value_lengths()
      ids = lists.flatten()
      if lengths.null_count or ids.null_count:
        raise UserError(
          f"{self._files[file]}: row group {number} has empty (null) ids; write it without them"
        )
      sizes = lengths.to_numpy(zero_copy_only=False).astype(np.int64)
      offsets = np.concatenate([[0], np.cumsum(sizes)])
      entry = (offsets, ids.to_numpy(zero_copy_only=False))
      self._cache[group] = entry
      if len(self._cache) > _CACHED_GROUPS:
        self._cache.popitem(last=False)
      return entry


def _check_column(schema: pa.Schema, column: str, file: str) -> None:
  if column not in schema.names:
    raise UserError(
      f"{file}: no column {column!r}; set column to one of: {', '.join(schema.names)}"
    )
  kind = schema.field(column).type
  is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
  if not (is_list and pa.types.is_integer(kind.value_type)):
    raise UserError(f"{file}: column {column!r} is {kind}; lists of integers are needed")
