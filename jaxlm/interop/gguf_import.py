"""A GGUF file as Hugging Face tensors: names, layouts and config.json."""

from pathlib import Path

import numpy as np

from jaxlm.errors import UserError
from jaxlm.interop.gguf_config import read_config
from jaxlm.interop.gguf_families import part_of, rename, spec_of_arch
from jaxlm.interop.gguf_file import GgufFile

_DERIVED = "rope_freqs.weight"  # of the config, not of the weights


class GgufTensors:
  """The tensors of a GGUF file; see interop.tensors.Tensors.

  Raises:
    UserError: an architecture or a tensor that is not known.
  """

  def __init__(self, path: Path):
    self.where = str(path)
    self.file = GgufFile(path)
    self._spec = spec_of_arch(str(self.file.fields.get("general.architecture")), self.where)
    self._names: dict[str, str] = {}
    for name in self.file.tensors:
      if name == _DERIVED:
        continue
      found = rename(self._spec.names, name)
      if found is None:
        raise UserError(
          f"{path}: tensor {name} has no place in a {self._spec.arch} model here: take safetensors"
        )
      self._names[found] = name
    table = self.file.tensors.get("token_embd.weight")
    if table is None or len(table[1]) != 2:
      raise UserError(f"{path}: no table token_embd.weight there: the file is not whole")
    self.config = read_config(
      self.file.fields,
      self._spec,
      self.where,
      vocab_size=table[1][0],
      tied="output.weight" not in self.file.tensors,
      factors=self.file.read(_DERIVED) if _DERIVED in self.file.tensors else None,
    )

  def names(self) -> list[str]:
    return list(self._names)

  def _own(self, name: str) -> str:
    if name not in self._names:
      raise UserError(f"{self.where}: no tensor {name} there: the file is not whole")
    return self._names[name]

  def shape(self, name: str) -> tuple[int, ...]:
    own = self._own(name)
    shape = self.file.tensors[own][1]
    return shape[::-1] if part_of(own) in self._spec.transposed else shape

  def dtype(self, name: str) -> np.dtype:
    return self.file.dtype(self._own(name))

  def read(self, name: str) -> np.ndarray:
    own = self._own(name)
    return self._spec.to_hf(self.file.read(own), part_of(own), self.config)
