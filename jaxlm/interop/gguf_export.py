"""Hugging Face tensors as a GGUF file: F32, F16, BF16, or Q8_0."""

import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxlm.errors import UserError
from jaxlm.interop.gguf_config import check_kept, head_dim_of, write_metadata
from jaxlm.interop.gguf_families import llama3_factors, part_of, rename, spec_of_model
from jaxlm.interop.gguf_file import MAGIC, library
from jaxlm.interop.hf_folder import both_spellings
from jaxlm.interop.tensors import check_dtype

ALIGN = 32
# general.file_type (llama.cpp's llama_ftype) of each.
FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}

Stream = Callable[[], Iterable[tuple[str, np.ndarray]]]


def write_gguf(
  path: str | Path,
  config: Mapping[str, Any],
  tensors: Stream,
  tokenizer: Mapping[str, Any],
  kind: str = "F16",
) -> Path:
  """Writes a GGUF file, whole or not at all.

  Vectors and what does not fill whole blocks stay in float32, as llama.cpp's own converter has it.

  Args:
    path: a new file.
    config: config.json.
    tensors: called twice, as sizes stand before data; each tensor is taken alone.
    tokenizer: metadata, from gguf_tokenizer.fields_of.
    kind: a key of FILE_TYPES.

  Raises:
    UserError: a family that GGUF export does not know, or a model that its metadata can't say; the
      place is taken or can't be written.
  """
  if kind not in FILE_TYPES:
    raise UserError(f"--to=gguf:{path}:{kind}: the type must be one of {', '.join(FILE_TYPES)}")
  gguf, file = library(), Path(path)
  if file.exists():
    raise UserError(f"{file}: is there already: name a new file")
  spec = spec_of_model(str(config.get("model_type")))
  config = both_spellings(config)  # a folder of transformers 5 has rope_parameters alone
  back = {hf: own for own, hf in spec.names.items()}
  head = {
    "general.architecture": spec.arch,
    "general.type": "model",
    "general.quantization_version": 2,
    "general.file_type": FILE_TYPES[kind],
    **write_metadata(config, spec),
  }
  entries = []
  factors = _factors(config)
  check_kept(config, head, factors)
  head |= tokenizer
  if factors is not None:
    entries.append(("rope_freqs.weight", factors.shape, "F32"))
  tied = bool(config.get("tie_word_embeddings"))
  for name, array in tensors():
    own = rename(back, name)
    if own is None:
      raise UserError(f"--to=gguf: tensor {name} has no place in a {spec.arch} file: export to hf")
    if tied and own == "output.weight":
      continue
    check_dtype(name, array.dtype)
    # Transposition alone changes a shape, and no tensor's values are needed for it.
    shape = array.shape[::-1] if part_of(own) in spec.transposed else array.shape
    entries.append((own, shape, _kind(shape, kind)))
    del array
  fresh = file.with_name(f".{file.name}.partial")
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    with fresh.open("wb") as out:
      out.write(_header(gguf, head, entries))
      _pad(out)
      if factors is not None:
        _write(out, gguf, factors, "F32")
      for name, array in tensors():
        own = rename(back, name)
        assert own is not None
        if not (tied and own == "output.weight"):
          array = spec.to_gguf(array, part_of(own), config)
          _write(out, gguf, array, _kind(array.shape, kind))
        del array
    fresh.rename(file)
  except OSError as e:
    raise UserError(f"{file}: {e.strerror or e}: free space or choose another place") from None
  finally:
    fresh.unlink(missing_ok=True)
  return file


def _kind(shape: tuple[int, ...], kind: str) -> str:
  if len(shape) < 2 or (kind == "Q8_0" and shape[-1] % 32):
    return "F32"
  return kind


def _write(out: Any, gguf: Any, array: np.ndarray, kind: str) -> None:
  if kind == "Q8_0":
    rows = array.reshape(-1, array.shape[-1])
    step = max(1, (1 << 24) // array.shape[-1])  # the package makes several float32 copies
    for i in range(0, len(rows), step):
      part = np.ascontiguousarray(rows[i : i + step], np.float32)
      out.write(gguf.quants.quantize(part, gguf.GGMLQuantizationType.Q8_0).tobytes())
  else:
    dtypes = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
    with np.errstate(over="ignore"):
      data = np.ascontiguousarray(array, dtypes[kind])
    if kind == "F16" and not np.isfinite(data).all():
      raise UserError("--to=gguf: a weight exceeds float16: choose BF16")
    out.write(memoryview(data.reshape(-1).view(np.uint8)))  # type: ignore[arg-type]
  _pad(out)


def _pad(out: Any) -> None:
  out.write(b"\0" * (-out.tell() % ALIGN))


def _factors(config: Mapping[str, Any]) -> np.ndarray | None:
  scaling = config.get("rope_scaling")
  if not scaling or scaling.get("rope_type") != "llama3":
    return None
  return llama3_factors(head_dim_of(config), float(config.get("rope_theta") or 1e4), scaling)


def _header(gguf: Any, fields: Mapping[str, Any], entries: list[Any]) -> bytes:
  parts = [MAGIC, struct.pack("<IQQ", 3, len(entries), len(fields))]
  for key, value in fields.items():
    parts += [_text(key), _field(value)]
  offset = 0
  for name, shape, kind in entries:
    number = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[number]
    parts.append(_text(name) + struct.pack("<I", len(shape)))
    parts.append(struct.pack(f"<{len(shape)}QIQ", *shape[::-1], int(number), offset))
    offset += -(-(int(np.prod(shape)) // block * size) // ALIGN) * ALIGN
  return b"".join(parts)


def _text(value: str) -> bytes:
  data = value.encode()
  return struct.pack("<Q", len(data)) + data


def _field(value: Any) -> bytes:
  if isinstance(value, list):
    inner = value[0] if value else ""
    if isinstance(inner, int):  # token types: llama.cpp reads int32
      return struct.pack("<IIQ", 9, 5, len(value)) + np.asarray(value, "<i4").tobytes()
    kind, _ = _scalar(inner)
    body = b"".join(_scalar(one)[1] for one in value)
    return struct.pack("<IIQ", 9, kind, len(value)) + body
  kind, data = _scalar(value)
  return struct.pack("<I", kind) + data


def _scalar(value: Any) -> tuple[int, bytes]:
  """(GGUF's type, bytes)."""
  if isinstance(value, str):
    return 8, _text(value)
  if isinstance(value, bool):
    return 7, struct.pack("<?", value)
  if isinstance(value, float):
    return 6, struct.pack("<f", value)
  return (4, struct.pack("<I", value)) if value >= 0 else (5, struct.pack("<i", value))
