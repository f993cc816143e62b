"""What a checkpoint is written as for others: a Hugging Face folder or a GGUF file."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError

GGUF_TYPES = ("F32", "F16", "BF16", "Q8_0")


@dataclasses.dataclass
class Export:
  """What is written: config.json, the tensors (as often as asked), tokenizer, generation config."""

  config: dict[str, Any]
  tensors: Callable[[], Iterable[tuple[str, Any]]]
  files: dict[str, bytes]
  generation: dict[str, Any]


def write(export: Export, target: str, dtype: str | None = None) -> Path:
  """Writes hf:PATH or gguf:FILE[:TYPE]; dtype: a name, None: as the tensors are."""
  kind, _, place = target.partition(":")
  if kind == "hf":
    from jaxlm.interop import bundle, hf_folder

    files = dict(export.files)
    if export.generation:
      files[bundle.GENERATION] = (json.dumps(export.generation, indent=2) + "\n").encode()
    return hf_folder.write_folder(place, export.config, _cast(export.tensors(), dtype), files=files)
  from jaxlm.interop import gguf_export, gguf_tokenizer

  path, gguf_type = gguf_place(target)
  fields = gguf_tokenizer.fields_of(export.files, export.config["vocab_size"])
  return gguf_export.write_gguf(path, export.config, export.tensors, fields, gguf_type)


def gguf_place(target: str) -> tuple[str, str]:
  """(path, type) of gguf:FILE[:TYPE], TYPE in any case.

  Raises:
    UserError: a type that is not written.
  """
  place = target.partition(":")[2]
  path, _, kind = place.rpartition(":")
  if not path or "/" in kind or kind.lower().endswith(".gguf"):  # the colon is the path's
    return place, "F16"
  if kind.upper() not in GGUF_TYPES:
    raise UserError(f"--to={target}: the type {kind!r} must be one of {', '.join(GGUF_TYPES)}")
  return path, kind.upper()


def _cast(tensors: Iterable[tuple[str, Any]], dtype: str | None) -> Iterator[tuple[str, Any]]:
  import ml_dtypes
  import numpy as np

  to = None if dtype is None else np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
  for name, array in tensors:
    floating = array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16
    if to is not None and floating:
      with np.errstate(over="ignore"):
        cast = array.astype(to)
      if dtype == "float16" and np.isfinite(array).all() and not np.isfinite(cast).all():
        raise UserError(f"{name}: has weights that exceed float16: use --dtype=bfloat16")
      array = cast
    yield name, array
