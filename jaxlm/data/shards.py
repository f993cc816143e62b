"""Flat token shards: written once, then read at random as one long array of ids."""

import array
import bisect
import hashlib
import os
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from jaxlm.data.labels import LABELS, LabelWriter
from jaxlm.data.manifest import ITEM_SIZES, Manifest, Shard
from jaxlm.errors import UserError

__all__ = ["LABELS", "ShardWriter", "TokenShards"]


class ShardWriter:
  """Writes the documents of one split as DIR/<split>/shard-NNNNN.{bin,idx}.

  What names the documents, if given, goes to shard-NNNNN.ids.jsonl.gz, a line each.

  A document is never cut: a shard is closed by the first document that takes it to shard_tokens or
  over. Files carry temporary names until their shard is complete, so a reader never sees half a
  shard; leaving the `with` block by an exception removes the unfinished one.

  Args:
    directory: the dataset's directory. split: sub-directory, e.g. "train".
    dtype: "<u2" or "<u4" (see manifest.dtype_for).
    eos_id: appended to every document.
    shard_tokens: tokens of a full shard.
    vocab_size: ids at or above it are refused; None: only what the dtype cannot hold.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    split: str,
    dtype: str,
    eos_id: int,
    shard_tokens: int = 2**28,
    vocab_size: int | None = None,
  ):
    if dtype not in ITEM_SIZES:
      raise UserError(f"dtype={dtype!r}: must be one of {sorted(ITEM_SIZES)}")
    if shard_tokens < 1:
      raise UserError(f"shard_tokens={shard_tokens}: must be at least 1")
    # Rows are int32 in memory, hence the second bound.
    limit = min(1 << 8 * ITEM_SIZES[dtype], 1 << 31)
    self._limit = limit if vocab_size is None else min(limit, vocab_size)
    if not 0 <= eos_id < self._limit:
      raise UserError(f"eos_id={eos_id}: must be in [0, {self._limit}) for dtype {dtype}")
    self._root = Path(directory)
    self._split = split
    self._dtype = np.dtype(dtype)
    self._eos_id = eos_id
    self._shard_tokens = shard_tokens
    self._shards: list[Shard] = []
    self._file: BinaryIO | None = None
    self._closed = False
    (self._root / split).mkdir(parents=True, exist_ok=True)

  def add(self, ids: np.ndarray, num_bytes: int, label: str | None = None) -> None:
    """Appends one document.

    Args:
      ids: integers, shape (n,), without EOS.
      num_bytes: size of the document's UTF-8 text.
      label: a line of JSON that names it; for all documents of a split or none.

    Raises:
      UserError: an id out of range, or EOS inside of the document (it would split it in two).
    """
    assert not self._closed, "the writer is closed"
    ids = np.asarray(ids)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
      raise UserError(f"a document must be a 1-D array of integers, not {ids.dtype}{ids.shape}")
    if ids.size:
      low, high = int(ids.min()), int(ids.max())
      if low < 0 or high >= self._limit:
        bad = low if low < 0 else high
        raise UserError(
          f"token id {bad} is out of range [0, {self._limit}) for {self._split}:"
          " check that the tokenizer is the dataset's own"
        )
      if (ids == self._eos_id).any():
        raise UserError(
          f"a document of {self._split} holds the EOS id {self._eos_id}: the tokenizer must not"
          " make EOS from text (declare it as a control symbol)"
        )
    if self._file is None:
      self._open()
    assert self._file is not None
    out = np.empty(ids.size + 1, self._dtype)
    out[:-1] = ids
    out[-1] = self._eos_id
    self._file.write(out.data)
    self._hash.update(out.data)
    self._tokens += out.size
    self._bytes += num_bytes
    self._ends.append(self._tokens)
    if label is not None:
      self._labels.add(label)
    if self._tokens >= self._shard_tokens:
      self._finish()

  def close(self) -> list[Shard]:
    """Completes the last shard; returns all of them in order. May be called again."""
    if self._file is not None:
      self._finish()
    self._closed = True
    return list(self._shards)

  def __enter__(self) -> "ShardWriter":
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    if kind is None:
      self.close()
    else:
      self._abort()

  def _open(self) -> None:
    self._name = f"{self._split}/shard-{len(self._shards):05d}.bin"
    self._temporary = self._root / (self._name + ".tmp")
    self._file = self._temporary.open("wb", buffering=1 << 20)
    self._hash = hashlib.sha256()
    self._ends = array.array("Q")
    self._labels = LabelWriter((self._root / self._name).with_suffix(LABELS))
    self._tokens = self._bytes = 0

  def _finish(self) -> None:
    assert self._file is not None
    _sync_close(self._file)
    self._file = None
    if sys.byteorder == "big":
      self._ends.byteswap()
    index = self._ends.tobytes()
    shard = Shard(
      file=self._name,
      tokens=self._tokens,
      docs=len(self._ends),
      bytes=self._bytes,
      sha256=self._hash.hexdigest(),
      index_sha256=hashlib.sha256(index).hexdigest(),
    )
    final = self._root / shard.index_file
    index_temporary = final.with_name(final.name + ".tmp")
    f = index_temporary.open("wb")
    f.write(index)
    _sync_close(f)
    index_temporary.replace(final)
    if self._labels.count:
      assert self._labels.count == len(self._ends), "labels are for all documents or none"
      self._labels.finish()
    self._temporary.replace(self._root / shard.file)
    self._shards.append(shard)

  def _abort(self) -> None:
    self._closed = True
    if self._file is not None:
      self._file.close()
      self._file = None
      self._temporary.unlink(missing_ok=True)
      self._labels.abort()


def _sync_close(f: BinaryIO) -> None:
  with f:
    f.flush()
    os.fsync(f.fileno())


class TokenShards:
  """Random access over the concatenation of a split's shards.

  Files are memory-mapped on first use and sizes are checked on construction. Objects may be shared
  by threads and sent to other processes (the maps stay behind and are opened anew).

  Attributes:
    path: the dataset's directory. split: name. manifest: the dataset's manifest.
    num_tokens, num_docs: of the split.
  """

  def __init__(
    self, directory: str | os.PathLike[str], split: str = "train", manifest: Manifest | None = None
  ):
    self.path = Path(directory)
    self.split = split
    self.manifest = manifest if manifest is not None else Manifest.load(self.path)
    info = self.manifest.split(split)
    self.manifest.verify_split(self.path, split, full=False)
    self.num_tokens = info.tokens
    self.num_docs = info.docs
    # A file of no bytes cannot be mapped.
    self._shards = [s for s in info.shards if s.tokens]
    self._token_ends = _running_sums([s.tokens for s in self._shards])
    self._doc_ends = _running_sums([s.docs for s in self._shards])
    self._setup()

  def _setup(self) -> None:
    self._lock = threading.Lock()
    # One slot a file, filled by a single assignment: a reader sees None or a complete map.
    self._bins: list[np.ndarray | None] = [None] * len(self._shards)
    self._indices: list[np.ndarray | None] = [None] * len(self._shards)

  def __getstate__(self) -> dict[str, Any]:
    dropped = ("_lock", "_bins", "_indices")
    return {k: v for k, v in self.__dict__.items() if k not in dropped}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._setup()

  def __repr__(self) -> str:
    return f"TokenShards({str(self.path)!r}, {self.split!r}, {self.num_tokens} tokens)"

  def tokens(self, start: int, count: int) -> np.ndarray:
    """ids [start, start + count) as int32, shape (count,); may cross shard edges.

    Raises:
      IndexError: the range leaves [0, num_tokens).
      UserError: an id is not below the manifest's vocab_size (the file was changed).
    """
    if start < 0 or count < 0 or start + count > self.num_tokens:
      raise IndexError(f"[{start}, {start + count}) leaves [0, {self.num_tokens}) of {self!r}")
    out = np.empty(count, np.int32)
    done = 0
    shard = bisect.bisect_right(self._token_ends, start)
    while done < count:
      begin = start + done - (self._token_ends[shard - 1] if shard else 0)
      part = self._bin(shard)[begin : begin + count - done]
      out[done : done + part.size] = part
      # One pass over a few kB; a silent out-of-range id would train on a clamped embedding.
      if int(part.max()) >= self.manifest.vocab_size:
        raise UserError(
          f"{self.path / self._shards[shard].file}: holds id {int(part.max())}, but vocab_size is"
          f" {self.manifest.vocab_size}; make the dataset again with `python -m jaxlm.prepare`"
        )
      done += part.size
      shard += 1
    return out

  def document(self, i: int) -> np.ndarray:
    """Document i as int32, its EOS included. IndexError where i is not in [0, num_docs)."""
    if not 0 <= i < self.num_docs:
      raise IndexError(f"document {i} is not in [0, {self.num_docs}) of {self!r}")
    shard = bisect.bisect_right(self._doc_ends, i)
    local = i - (self._doc_ends[shard - 1] if shard else 0)
    ends = self._index(shard)
    begin = int(ends[local - 1]) if local else 0
    end = int(ends[local])
    if not begin < end <= self._shards[shard].tokens:
      raise UserError(
        f"{self.path / self._shards[shard].index_file}: document {local} ends at {end}, which is"
        " not possible; copy the file again, or make the dataset again with"
        " `python -m jaxlm.prepare`"
      )
    first = self._token_ends[shard - 1] if shard else 0
    return self.tokens(first + begin, end - begin)

  def _bin(self, shard: int) -> np.ndarray:
    return self._map(self._bins, shard, self._shards[shard].file, self.manifest.dtype)

  def _index(self, shard: int) -> np.ndarray:
    return self._map(self._indices, shard, self._shards[shard].index_file, "<u8")

  def _map(self, slots: list[np.ndarray | None], shard: int, file: str, dtype: str) -> np.ndarray:
    mapped = slots[shard]
    if mapped is None:
      with self._lock:
        mapped = slots[shard]
        if mapped is None:
          try:
            # asarray: slicing np.memmap itself costs several µs for its subclass bookkeeping.
            mapped = np.asarray(np.memmap(self.path / file, dtype=dtype, mode="r"))
          except (OSError, ValueError) as e:
            raise UserError(
              f"{self.path / file}: cannot be mapped ({e}); copy it again, or make the dataset"
              " again with `python -m jaxlm.prepare`"
            ) from None
          slots[shard] = mapped
    return mapped


def _running_sums(counts: list[int]) -> list[int]:
  total, out = 0, []
  for n in counts:
    total += n
    out.append(total)
  return out
