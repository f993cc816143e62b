"""GGUF's metadata and config.json, each from the other."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxlm.errors import UserError
from jaxlm.interop.gguf_families import Spec, llama3_factors, spec_of_arch

# Numbers that a config.json may write without a point, and readers take as float32 alone.
_FLOATS = (
  "attention.layer_norm_rms_epsilon",
  "attention.layer_norm_epsilon",
  "rope.freq_base",
  "attn_logit_softcapping",
  "final_logit_softcapping",
)
# Of rope.scaling.*, what is read; others are refused unless they are as here.
_SCALING: dict[str, Any] = {
  "type": ...,
  "factor": ...,
  "original_context_length": ...,
  "finetuned": ...,
  "attn_factor": 1.0,
  "yarn_ext_factor": 1.0,
  "yarn_attn_factor": 1.0,
  "yarn_beta_fast": 32.0,
  "yarn_beta_slow": 1.0,
}
_NEEDED = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count")
_GEMMA2_27B = 46  # layers


def write_metadata(config: Mapping[str, Any], spec: Spec) -> dict[str, Any]:
  """The metadata of a model, without the tokenizer's and the file's own.

  Args:
    config: config.json in transformers 4's spelling (or both).

  Raises:
    UserError: what the architecture's metadata can't say; see also `check_kept`.
  """
  arch = spec.arch
  out: dict[str, Any] = {}
  for key, name in spec.keys.items():
    value = config.get(name)
    if value is not None:
      out[f"{arch}.{key}"] = float(value) if key in _FLOATS else value
  if arch == "gpt2":
    out.setdefault("gpt2.feed_forward_length", 4 * config["n_embd"])
    return out
  head_dim = head_dim_of(config)
  out[f"{arch}.attention.key_length"] = out[f"{arch}.attention.value_length"] = head_dim
  out[f"{arch}.rope.dimension_count"] = head_dim
  out[f"{arch}.rope.freq_base"] = float(config.get("rope_theta") or 1e4)
  scaling = config.get("rope_scaling") or {}
  how = scaling.get("rope_type") or scaling.get("type", "default")
  if how in ("linear", "yarn"):
    out[f"{arch}.rope.scaling.type"] = how
    out[f"{arch}.rope.scaling.factor"] = float(scaling["factor"])
    if "original_max_position_embeddings" in scaling:
      key = f"{arch}.rope.scaling.original_context_length"
      out[key] = int(scaling["original_max_position_embeddings"])
  elif how not in ("default", "llama3") or (how == "llama3" and arch != "llama"):
    raise UserError(
      f"--to=gguf: rope scaling {how!r} has no place in GGUF's arch {arch}: export to hf"
    )
  absent = ["attention_bias", "mlp_bias", "use_sliding_window"]
  absent += ["sliding_window"] if spec.model_type == "mistral" else []
  for name in absent:
    if config.get(name):
      raise UserError(f"--to=gguf: {name}={config[name]} has no place in arch {arch}: export to hf")
  return out


def check_kept(
  config: Mapping[str, Any], metadata: Mapping[str, Any], factors: np.ndarray | None
) -> None:
  """Raises UserError where the metadata reads back as another model than config.json's.

  Args:
    factors: rope_freqs.weight, which is exact: what it holds is not read back.
  """
  from jaxlm.interop.families import differences, find_family

  where = "--to=gguf"
  spec = spec_of_arch(metadata["general.architecture"], where)
  back = read_config(
    metadata,
    spec,
    where,
    vocab_size=config["vocab_size"],
    tied=bool(config.get("tie_word_embeddings", spec.arch in ("gemma", "gemma2", "gpt2"))),
  )
  if factors is not None:
    back["rope_scaling"] = config["rope_scaling"]
  lost = differences(find_family(config).to_config(config), find_family(back).to_config(back))
  if lost:
    raise UserError(
      f"--to=gguf: arch {spec.arch} can't say this model's {', '.join(lost)}: a reader would take "
      "another model: export to hf"
    )


def read_config(
  fields: Mapping[str, Any],
  spec: Spec,
  where: str,
  *,
  vocab_size: int,
  tied: bool,
  factors: np.ndarray | None = None,
) -> dict[str, Any]:
  """config.json of a file's metadata.

  Args:
    where: the file, for messages.
    vocab_size: rows of the table.
    tied: the file has no output table.
    factors: rope_freqs.weight, if there is one.

  Raises:
    UserError: what is needed is missing, or what is there no family here has.
  """
  config: dict[str, Any] = {
    "architectures": [spec.architecture],
    "model_type": spec.model_type,
    **spec.constants,
  }
  for key, name in spec.keys.items():
    value = fields.get(f"{spec.arch}.{key}")
    if isinstance(value, np.ndarray):
      raise UserError(
        f"{where}: {spec.arch}.{key} differs between layers: no family here has such layers"
      )
    if value is not None:
      config[name] = _short(value) if isinstance(value, float) else value
  config |= {"vocab_size": vocab_size, "tie_word_embeddings": tied}
  for key in ("bos", "eos", "padding"):
    if (value := fields.get(f"tokenizer.ggml.{key}_token_id")) is not None:
      config[f"{key.replace('padding', 'pad')}_token_id"] = int(value)
  if spec.model_type == "gpt2":
    config["scale_attn_weights"] = True
  else:
    _fill(config, spec, where)
    _check_rotated(config, fields, spec, where)
    config["rope_scaling"] = _scaling(fields, spec, where)
    if factors is not None:
      config["rope_scaling"] = _llama3(config, factors, where)
  if spec.model_type == "qwen3":
    config["attention_bias"] = False
  if spec.model_type == "gemma2":
    config["query_pre_attn_scalar"] = _gemma2_scalar(config)
  config["dtype"] = "float32"
  return config


def head_dim_of(config: Mapping[str, Any]) -> int:
  """A head's dims as config.json has them."""
  return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _fill(config: dict[str, Any], spec: Spec, where: str) -> None:
  for key, name in spec.keys.items():
    value = config.get(name)
    if key in _NEEDED and name not in config:
      raise UserError(f"{where}: no field {spec.arch}.{key}: the file is not whole")
    if key in _NEEDED and (type(value) is not int or value < 1):
      raise UserError(f"{where}: {spec.arch}.{key}={value!r} is no positive integer; copy it again")
  heads = config["num_attention_heads"]
  config.setdefault("num_key_value_heads", heads)
  config.setdefault("head_dim", config["hidden_size"] // heads)
  config.setdefault("rope_theta", 10000.0)
  config.setdefault("rms_norm_eps", 1e-6)


def _check_rotated(
  config: Mapping[str, Any], fields: Mapping[str, Any], spec: Spec, where: str
) -> None:
  for key in ("rope.dimension_count", "attention.value_length"):
    value = fields.get(f"{spec.arch}.{key}")
    if value is not None and value != config["head_dim"]:
      raise UserError(
        f"{where}: {spec.arch}.{key}={value} is not the heads' {config['head_dim']} dims: no "
        "family here has such heads"
      )


def _scaling(fields: Mapping[str, Any], spec: Spec, where: str) -> dict[str, Any] | None:
  prefix = f"{spec.arch}.rope.scaling."
  kind, factor = fields.get(f"{prefix}type", "none"), fields.get(f"{prefix}factor")
  for key, value in fields.items():
    expected = _SCALING.get(key.removeprefix(prefix))
    if key.startswith(prefix) and expected is not ... and value != expected:
      raise UserError(f"{where}: {key}={value} is not supported: take safetensors")
  if kind not in ("none", "linear", "yarn"):
    raise UserError(f"{where}: {prefix}type={kind!r} is not known")
  if kind == "none" or factor is None:
    return None
  scaling: dict[str, Any] = {"rope_type": kind, "factor": _short(factor)}
  old = fields.get(f"{prefix}original_context_length")
  if kind == "yarn" and old is not None:
    scaling["original_max_position_embeddings"] = int(old)
  return scaling


def _llama3(config: Mapping[str, Any], factors: np.ndarray, where: str) -> dict[str, Any]:
  """The settings that give the factors in the file: Llama 3.1's and 3.2's are tried."""
  found = factors.reshape(-1)
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
      f"{where}: tensor rope_freqs.weight holds other factors than Llama 3.1's rule gives: take "
      "safetensors"
    )
  return scaling


def _gemma2_scalar(config: Mapping[str, Any]) -> int:
  """query_pre_attn_scalar, which GGUF has no key for: as llama.cpp has it, which knows Gemma 2 27B
  by its 46 layers and takes a head's dims for all others."""
  if config["num_hidden_layers"] == _GEMMA2_27B:
    return config["hidden_size"] // config["num_attention_heads"]
  return config["head_dim"]


def _short(value: float) -> float:
  """The shortest decimal of a float32: 9.99999974e-06 was written for 1e-05."""
  single = np.float32(value)
  return float(str(single)) if math.isfinite(single) else float(value)
