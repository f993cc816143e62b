"""The safetensors format (https://github.com/huggingface/safetensors#format), checked and streamed.

    8 bytes    little-endian length N of the header
    N bytes    JSON: name → {"dtype", "shape", "data_offsets": [begin, end]}; "__metadata__"
    the rest   the tensors, row-major, without gaps

Read here and not through the library because every refusal is to name the file and the tensor, and
because a tensor is to be copied alone: a mapped file counts as memory until the system takes it.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxlm.errors import UserError

MAX_HEADER = 100_000_000  # the format's own bound
_MAX_DIMS = 32  # NumPy 1's bound
DTYPES: dict[str, np.dtype] = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
  "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
  "I64": np.dtype(np.int64),
  "I32": np.dtype(np.int32),
  "I16": np.dtype(np.int16),
  "I8": np.dtype(np.int8),
  "U64": np.dtype(np.uint64),
  "U32": np.dtype(np.uint32),
  "U16": np.dtype(np.uint16),
  "U8": np.dtype(np.uint8),
  "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class SafetensorsFile:
  """One file. Its header is read and checked at once, its tensors when asked for.

  entries: name → (dtype, shape, first byte in the file).

  Raises:
    UserError: a header or an offset that can't be right; the file is cut short or too long.
  """

  def __init__(self, path: Path):
    self.path = path
    self.metadata: dict[str, str] = {}
    self.entries: dict[str, tuple[np.dtype, tuple[int, ...], int]] = {}
    try:
      size = path.stat().st_size
      with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(MAX_HEADER, size - 8):
          raise self._broken(f"a header of {length} bytes in a file of {size}")
        header = file.read(length)
    except OSError as e:
      raise UserError(f"{path}: {e.strerror or e}; copy it again") from None
    self._parse(header, 8 + length, size)

  def _parse(self, header: bytes, base: int, size: int) -> None:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
      out = dict(pairs)
      if len(out) != len(pairs):
        raise self._broken("a name that stands twice in its header")
      return out

    try:
      values = json.loads(header, object_pairs_hook=unique)
    except UserError:
      raise
    except (ValueError, RecursionError) as e:
      raise self._broken(f"a header that is not JSON ({e})") from None
    if not isinstance(values, dict):
      raise self._broken("a header that is not a JSON object")
    self.metadata = values.pop("__metadata__", None) or {}
    spans = sorted((*self._entry(name, value, base), name) for name, value in values.items())
    end = base
    for first, last, name in spans:
      if first != end:
        what = "overlaps the tensor before it" if first < end else "leaves a gap before it"
        raise self._broken(f"{name}, which {what} (byte {first - base})")
      end = last
    if end != size:
      raise self._broken(f"tensors up to byte {end} in a file of {size} bytes")

  def _entry(self, name: str, value: Any, base: int) -> tuple[int, int]:
    try:
      kind, shape = value["dtype"], tuple(value["shape"])
      first, last = value["data_offsets"]
      good = isinstance(kind, str) and len(shape) <= _MAX_DIMS
      good = good and all(type(n) is int and 0 <= n < 1 << 62 for n in (*shape, first, last))
    except (KeyError, TypeError, ValueError):
      good = False
    if not good:
      raise self._broken(f"{name} without a proper dtype, shape and data_offsets")
    if kind not in DTYPES:
      raise UserError(
        f"{self.path}: tensor {name} has dtype {kind!r}, not one of {', '.join(DTYPES)}: save it in"
        " one of these"
      )
    dtype = DTYPES[kind]
    if math.prod(shape) * dtype.itemsize != last - first:
      raise self._broken(f"{name}: {kind} {list(shape)} is not {last - first} bytes")
    self.entries[name] = dtype, shape, base + first
    return base + first, base + last

  def _broken(self, what: str) -> UserError:
    return UserError(f"{self.path}: not a safetensors file: it has {what}; copy it again")

  def read(self, name: str) -> np.ndarray:
    """A copy of one tensor."""
    dtype, shape, first = self.entries[name]
    out = np.empty(shape, dtype)
    view = memoryview(out.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    try:
      with self.path.open("rb", buffering=0) as file:
        file.seek(first)
        done = 0
        while done < len(view):
          count = file.readinto(view[done : done + (1 << 28)])
          if not count:
            raise UserError(f"{self.path}: ends within tensor {name}; copy it again")
          done += count
    except OSError as e:
      raise UserError(f"{self.path}: tensor {name}: {e.strerror or e}; copy it again") from None
    return out


class SafetensorsWriter:
  """Writes one file, tensor by tensor.

  The header stands first but is known last: room is kept for it, and spaces fill what is left, as
  the format allows. `full` says when another file must be begun.
  """

  def __init__(self, path: Path, *, room: int = 1 << 18):
    self._file = path.open("wb")
    self._room, self._used = room, 64  # of __metadata__ and braces
    self._header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    self._file.write(b" " * room)
    self.nbytes = 0

  def fits(self, name: str, array: np.ndarray) -> bool:
    """Whether the header has room for another tensor."""
    return 8 + self._used + _entry_size(name, array) <= self._room

  def add(self, name: str, array: np.ndarray) -> None:
    """Appends a tensor."""
    assert self.fits(name, array)
    self._used += _entry_size(name, array)
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    self._header[name] = {
      "dtype": NAMES[array.dtype],
      "shape": list(array.shape),
      "data_offsets": [self.nbytes, self.nbytes + data.nbytes],
    }
    for start in range(0, data.nbytes, 1 << 28):
      self._file.write(memoryview(data[start : start + (1 << 28)]))  # type: ignore[arg-type]
    self.nbytes += data.nbytes

  def close(self) -> None:
    """Writes the header."""
    header = json.dumps(self._header, separators=(",", ":")).encode()
    room = self._room - 8
    assert len(header) <= room
    self._file.seek(0)
    self._file.write(room.to_bytes(8, "little") + header.ljust(room))
    self._file.flush()
    os.fsync(self._file.fileno())
    self._file.close()


def _entry_size(name: str, array: np.ndarray) -> int:
  return len(json.dumps(name)) + 96 + 21 * array.ndim
