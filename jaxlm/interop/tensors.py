"""Checkpoints of others, read tensor by tensor: the interface, and what opens a path.

A checkpoint is seen as Hugging Face writes it: a config.json and named tensors, each in the layout
that transformers gives it. A GGUF file is presented under the same names and layouts.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from jaxlm.errors import UserError

# torch's pickles run code when they are opened.
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
RECIPE = (
  "from transformers import AutoModelForCausalLM as M; "
  "M.from_pretrained(OLD, weights_only=True).save_pretrained(NEW, safe_serialization=True)"
)


# Weights are numbers of these; in others they stand with scales, or not for numbers.
_FLOATS = tuple(np.dtype(one) for one in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16))


def check_dtype(name: str, dtype: np.dtype) -> None:
  """Raises UserError for a dtype that weights are not read in."""
  if dtype not in _FLOATS:
    raise UserError(
      f"{name}: is {dtype}, and weights are read in {', '.join(one.name for one in _FLOATS)}: take "
      "a checkpoint that is not quantised"
    )


class Tensors(Protocol):
  """The tensors of a checkpoint, none of them in memory.

  config: its config.json. where: its path, for messages.
  """

  config: dict[str, Any]
  where: str

  def names(self) -> list[str]:
    """The names of all tensors, in the file's order."""
    ...

  def shape(self, name: str) -> tuple[int, ...]:
    """A tensor's shape. Raises UserError where there is none of that name."""
    ...

  def dtype(self, name: str) -> np.dtype:
    """A tensor's dtype (bfloat16 and float8 are ml_dtypes')."""
    ...

  def read(self, name: str) -> np.ndarray:
    """One tensor in host memory. Raises UserError where it can't be read."""
    ...


def stream(tensors: Tensors) -> Iterator[tuple[str, np.ndarray]]:
  """(name, array) of each tensor; only one is in memory while the caller keeps no other."""
  for name in tensors.names():
    yield name, tensors.read(name)


def open_tensors(path: str | Path) -> Tensors:
  """The tensors of a Hugging Face folder (safetensors, sharded or not) or of a GGUF file.

  GGUF is dequantised to float32 where it is quantised.

  Raises:
    UserError: nothing there, not safetensors, or damaged: one line that names file and tensor.
  """
  root = Path(path)
  if root.is_dir():
    from jaxlm.interop.hf_folder import Folder

    return Folder(root)
  if not root.exists():
    raise UserError(f"{root}: no such file or directory: name a Hugging Face folder or a .gguf")
  if root.suffix in PICKLES:
    raise refused_pickle(root)
  if root.suffix == ".gguf":
    from jaxlm.interop.gguf_import import GgufTensors

    return GgufTensors(root)
  if root.suffix == ".safetensors":
    raise UserError(f"{root}: a file without its config.json: name the folder that holds both")
  raise UserError(
    f"{root}: neither a folder nor a .gguf file: name a Hugging Face folder or a .gguf"
  )


def refused_pickle(file: Path) -> UserError:
  """The error for weights that are a pickle."""
  return UserError(
    f"{file}: a {file.suffix} file runs code when it is opened, only safetensors are read: convert "
    f"it where you trust it: python -c '{RECIPE}'"
  )
