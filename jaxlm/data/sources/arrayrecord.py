"""Rows out of ArrayRecord files, one record a row."""

import bisect
import itertools
import threading
from typing import Any

import numpy as np

from jaxlm.data.sources.base import RowSource
from jaxlm.data.sources.files import checked_row, content_fingerprint, local_files
from jaxlm.errors import UserError

# Reading ahead is for sequential access; at random it multiplies the bytes read.
_RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"


class ArrayRecordSource(RowSource):
  """Each record: seq_len + 1 little-endian ids of `dtype`. Write with `group_size:1`: a record of a
  larger group costs the decompression of the whole group.

  Raises:
    UserError: no file, a damaged or empty file, a row of another length, an id out of range.
  """

  def __init__(
    self,
    name: str,
    path: str,
    dtype: str,
    vocab_size: int,
    eos_id: int | None,
    seq_len: int,
  ):
    self.name = name
    self.seq_len = seq_len
    self.vocab_size = vocab_size
    self.eos_id = eos_id
    self._dtype = np.dtype(dtype)
    self._files = local_files(name, path)
    self._setup()
    self._counts = [self._reader(i).num_records() for i in range(len(self._files))]
    for file, count in zip(self._files, self._counts):
      if not count:
        raise UserError(
          f"{file}: no records: empty, or not an ArrayRecord file; remove it or write it again"
        )
    self._ends = list(itertools.accumulate(self._counts))
    # The first row shows a wrong seq_len, dtype or vocab_size before training starts.
    self[0]

  def _setup(self) -> None:
    self._lock = threading.Lock()
    self._readers: list[Any] = [None] * len(self._files)

  def __getstate__(self) -> dict[str, Any]:
    return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_readers")}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._setup()

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, row: int) -> np.ndarray:
    if not 0 <= row < len(self):
      raise IndexError(f"row {row} is not in [0, {len(self)}) of source {self.name!r}")
    i = bisect.bisect_right(self._ends, row)
    local = row - (self._ends[i - 1] if i else 0)
    try:
      record = self._reader(i).read([local])[0]
    except (RuntimeError, ValueError, IndexError) as e:
      raise UserError(
        f"{self._files[i]}: record {local} cannot be read ({_line(e)}); copy the file again"
      ) from None
    if len(record) % self._dtype.itemsize:
      raise UserError(
        f"{self._files[i]}: record {local} has {len(record)} bytes, no multiple of dtype"
        f" {self._dtype.str}; set the source's dtype to that of the file"
      )
    ids = np.frombuffer(record, self._dtype)
    return checked_row(ids, str(self._files[i]), local, self.seq_len, self.vocab_size)

  def __repr__(self) -> str:
    return f"ArrayRecordSource({self.name!r}, {len(self)} rows of {self.seq_len})"

  def fingerprint(self) -> str:
    settings = f"arrayrecord/{self._dtype.str}/{self.vocab_size}/{self.eos_id}"
    return content_fingerprint(settings, self._files, self._counts)

  def _reader(self, i: int) -> Any:
    if self._readers[i] is None:
      # array_record has no wheels for some platforms, and nothing else needs it.
      try:
        from array_record.python.array_record_module import ArrayRecordReader
      except ImportError as e:
        raise UserError(
          f"source {self.name!r}: array_record cannot be imported ({_line(e)});"
          " `pip install array-record`, or use TokenShardsConfig"
        ) from None
      with self._lock:
        if self._readers[i] is None:
          try:
            self._readers[i] = ArrayRecordReader(str(self._files[i]), _RANDOM_ACCESS)
          except (RuntimeError, ValueError, OSError) as e:
            raise UserError(
              f"{self._files[i]}: not a readable ArrayRecord file ({_line(e)}); write it again"
            ) from None
    return self._readers[i]


def _line(error: Exception) -> str:
  return str(error).strip().split("\n")[0][:200]
