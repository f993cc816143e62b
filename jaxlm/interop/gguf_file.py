"""GGUF files (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): header and raw tensors.

The header is read here: the gguf package's own reader makes an array of every string of the
vocabulary (seconds to minutes), and a damaged file ends it in errors of NumPy. The package knows
the block formats and dequantises them.
"""

import math
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxlm.errors import UserError

MAGIC = b"GGUF"
MAX_HEADER = 1 << 30
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_SCALARS[12] = "d"
_STRING, _ARRAY = 8, 9
_PLAIN = {
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F64": np.dtype(np.float64),
}


class GgufFile:
  """A GGUF file of little-endian version 2 or 3.

  Attributes:
    fields: the metadata; numbers, strings and lists of these (numbers: as NumPy arrays).
    tensors: name → (ggml type's name, shape with the fastest dim last, first byte in the file).

  Raises:
    UserError: not such a file, cut short, split over several files, or the gguf package is missing.
  """

  def __init__(self, path: Path):
    self.path = path
    gguf = library()
    try:
      self._data = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as e:
      raise UserError(f"{path}: can't be read ({e}); copy it again") from None
    self._at = 0
    self.fields: dict[str, Any] = {}
    self.tensors: dict[str, tuple[str, tuple[int, ...], int]] = {}
    if bytes(self._data[:4]) != MAGIC:
      raise UserError(f"{path}: not a GGUF file (it does not begin with GGUF); copy it again")
    self._at = 4
    version = self._number("I")
    if version not in (2, 3):
      raise UserError(f"{path}: GGUF version {version}; versions 2 and 3 (little-endian) are read")
    num_tensors, num_fields = self._number("Q"), self._number("Q")
    for _ in range(num_fields):
      key = self._string()
      self.fields[key] = self._value(self._number("I"), key)
    if self.fields.get("split.count", 1) > 1:
      raise UserError(
        f"{path}: one of {self.fields['split.count']} parts: join them first (llama-gguf-split "
        "--merge)"
      )
    entries = [self._tensor(gguf) for _ in range(num_tensors)]
    align = int(self.fields.get("general.alignment", 32))
    if align < 1 or align & (align - 1):
      raise self._broken(f"an alignment of {align}")
    base = -(-self._at // align) * align
    end = base
    for offset, name, kind, shape, nbytes in sorted(entries):
      if base + offset < end or offset % align:
        raise self._broken(f"tensor {name}, which overlaps another or is not aligned")
      end = base + offset + nbytes
      if end > len(self._data):
        raise self._broken(f"tensor {name} up to byte {end} in a file of {len(self._data)}")
      if name in self.tensors:
        raise self._broken(f"tensor {name} twice")
      self.tensors[name] = kind, shape, base + offset

  def _broken(self, what: str) -> UserError:
    return UserError(f"{self.path}: damaged: it has {what}; copy it again")

  def _take(self, count: int) -> np.ndarray:
    if count > min(MAX_HEADER, len(self._data) - self._at):
      raise self._broken(f"a header that ends within {count} bytes at byte {self._at}")
    self._at += count
    return self._data[self._at - count : self._at]

  def _number(self, code: str) -> Any:
    return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)).tobytes())[0]

  def _string(self) -> str:
    return self._take(self._number("Q")).tobytes().decode("utf-8", "replace")

  def _value(self, kind: int, key: str) -> Any:
    if kind == _STRING:
      return self._string()
    if kind in _SCALARS:
      return self._number(_SCALARS[kind])
    if kind != _ARRAY:
      raise self._broken(f"field {key} of unknown type {kind}")
    inner, count = self._number("I"), self._number("Q")
    if inner == _STRING:
      if count > len(self._data):
        raise self._broken(f"field {key} of {count} strings")
      return [self._string() for _ in range(count)]
    if inner not in _SCALARS:
      raise self._broken(f"field {key} of arrays of type {inner}")
    dtype = np.dtype("<" + _SCALARS[inner])
    return np.frombuffer(self._take(count * dtype.itemsize).tobytes(), dtype)

  def _tensor(self, gguf: Any) -> tuple[int, str, str, tuple[int, ...], int]:
    name, ndim = self._string(), self._number("I")
    if ndim > 8:
      raise self._broken(f"tensor {name} of {ndim} dims")
    shape = tuple(self._number("Q") for _ in range(ndim))[::-1]
    kind, offset = self._number("I"), self._number("Q")
    try:
      kind = gguf.GGMLQuantizationType(kind)
      block, size = gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
      raise UserError(
        f"{self.path}: tensor {name} is of ggml type {kind}, which the installed gguf package does "
        "not know: upgrade it (pip install -U gguf)"
      ) from None
    if shape and shape[-1] % block:
      raise self._broken(f"tensor {name} {shape}, whose rows are no whole blocks of {kind.name}")
    return offset, name, kind.name, shape, math.prod(shape) // block * size

  def dtype(self, name: str) -> np.dtype:
    """What `read` gives: float32 for quantised tensors."""
    return _PLAIN.get(self.tensors[name][0], np.dtype(np.float32))

  def read(self, name: str) -> np.ndarray:
    """A copy of one tensor, dequantised to float32 where it is quantised."""
    gguf = library()
    kind, shape, first = self.tensors[name]
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    data = self._data[first : first + math.prod(shape) // block * size]
    if kind in _PLAIN:
      return np.array(data).view(_PLAIN[kind]).reshape(shape)
    rows = data.reshape(*shape[:-1], shape[-1] // block * size)
    try:
      return gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[kind]).reshape(shape)
    except NotImplementedError:
      raise UserError(
        f"{self.path}: tensor {name} is {kind}, which the gguf package can't dequantise: use a file"
        " of another quantisation"
      ) from None


def library() -> Any:
  """The gguf package. Raises UserError where it is not installed."""
  try:
    import gguf
  except ImportError:
    raise UserError("gguf is not installed: pip install 'jaxlm[interop]'") from None
  return gguf
