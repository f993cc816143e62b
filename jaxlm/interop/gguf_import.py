"""A GGUF file as Hugging Face tensors: names, layouts and config.json."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.errors import UserError
from jaxlm.interop.gguf_families import llama3_factors, part_of, rename, spec_of_arch
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
    self.config = self._config()

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

  def _config(self) -> dict[str, Any]:
    fields, spec = self.file.fields, self._spec
    config: dict[str, Any] = {
      "architectures": [spec.architecture],
      "model_type": spec.model_type,
      **spec.constants,
    }
    for key, name in spec.keys.items():
      value = fields.get(f"{spec.arch}.{key}")
      if isinstance(value, np.ndarray):
        raise UserError(
          f"{self.where}: {spec.arch}.{key} differs between layers: no family here has such layers"
        )
      if value is not None:
        config[name] = _short(value) if isinstance(value, float) else value
    if "token_embd.weight" not in self.file.tensors:
      raise UserError(f"{self.where}: no tensor token_embd.weight there: the file is not whole")
    config["vocab_size"] = self.file.tensors["token_embd.weight"][1][0]
    config["tie_word_embeddings"] = "output.weight" not in self.file.tensors
    for key in ("bos", "eos", "padding"):
      if (value := fields.get(f"tokenizer.ggml.{key}_token_id")) is not None:
        config[f"{key.replace('padding', 'pad')}_token_id"] = int(value)
    if spec.model_type == "gpt2":
      config["scale_attn_weights"] = True
    else:
      self._check_needed(config)
      self._rope(config)
    if spec.model_type == "qwen3":
      config["attention_bias"] = False
    config["dtype"] = "float32"
    return config

  def _check_needed(self, config: dict[str, Any]) -> None:
    for key, name in self._spec.keys.items():
      needed = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count")
      if key in needed and name not in config:
        raise UserError(f"{self.where}: no field {self._spec.arch}.{key}: the file is not whole")
    heads = config["num_attention_heads"]
    config.setdefault("num_key_value_heads", heads)
    config.setdefault("head_dim", config["hidden_size"] // heads)
    config.setdefault("rope_theta", 10000.0)
    config.setdefault("rms_norm_eps", 1e-6)

  def _rope(self, config: dict[str, Any]) -> None:
    arch, fields = self._spec.arch, self.file.fields
    kind = fields.get(f"{arch}.rope.scaling.type", "none")
    factor = fields.get(f"{arch}.rope.scaling.factor")
    config["rope_scaling"] = None
    if kind == "linear" and factor is not None:
      config["rope_scaling"] = {"rope_type": "linear", "factor": _short(factor)}
    elif kind == "yarn" and factor is not None:
      old = fields.get(f"{arch}.rope.scaling.original_context_length")
      config["rope_scaling"] = {"rope_type": "yarn", "factor": _short(factor)}
      if old is not None:
        config["rope_scaling"]["original_max_position_embeddings"] = int(old)
    elif kind != "none":
      raise UserError(f"{self.where}: {arch}.rope.scaling.type={kind!r} is not known")
    if _DERIVED in self.file.tensors:
      config["rope_scaling"] = self._llama3(config)

  def _llama3(self, config: dict[str, Any]) -> dict[str, Any]:
    """The settings that give the factors in the file: Llama 3.1's and 3.2's are tried."""
    found = self.file.read(_DERIVED).reshape(-1)
    # The largest factor stands at the lowest frequency.
    scaling = {
      "rope_type": "llama3",
      "factor": float(found.max()),
      "low_freq_factor": 1.0,
      "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192,
    }
    same = llama3_factors(config["head_dim"], config["rope_theta"], scaling)
    if found.shape != same.shape or not np.allclose(found, same, rtol=1e-5, atol=0):
      raise UserError(
        f"{self.where}: tensor {_DERIVED} holds other factors than Llama 3.1's rule gives: take "
        "safetensors"
      )
    return scaling


def _short(value: float) -> float:
  """The shortest decimal of a float32: 9.99999974e-06 was written for 1e-05."""
  single = np.float32(value)
  return float(str(single)) if math.isfinite(single) else float(value)
