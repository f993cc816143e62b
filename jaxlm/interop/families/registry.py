"""Which family a config.json or a jaxlm config is of."""

import dataclasses
import importlib
import math
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlm.configlib import nearest
from jaxlm.errors import UserError
from jaxlm.interop.families.base import Family
from jaxlm.interop.families.values import check_values
from jaxlm.layers.config import Positions, RopeKind
from jaxlm.models.config import DecoderConfig, ModelConfig

_PACKAGE = "jaxlm.interop.families"
_NO_FAMILIES = ("registry", "transfer", "base", "rope", "windows", "values")

FAMILIES: dict[str, Family] = {
  family.model_type: family
  for module in pkgutil.iter_modules([str(Path(__file__).parent)])
  if module.name not in _NO_FAMILIES
  for family in importlib.import_module(f"{_PACKAGE}.{module.name}").FAMILIES
}

# What says how a model is trained and run, not what it computes.
_OF_THE_RUN = {
  "dropout",
  "init_std",
  "vocab_multiple",
  "compute_dtype",
  "param_dtype",
  "matmul",
  "scan_layers",
  "scan_block",
  "remat",
  "attention",
  "expert_capacity",
}


def find_family(hf: Mapping[str, Any]) -> Family:
  """The family of a config.json.

  Raises:
    UserError: jaxlm has none of its model_type, or a value in it is of a wrong kind.
  """
  model_type = hf.get("model_type")
  if not isinstance(model_type, str) or model_type not in FAMILIES:
    raise UserError(
      f"config.json: model_type={model_type!r} is not supported"
      f"{nearest(str(model_type), FAMILIES)}: only {', '.join(FAMILIES)}"
    )
  check_values(hf)
  return FAMILIES[model_type]


def family_of(config: ModelConfig, model_type: str | None = None) -> Family:
  """The family whose models can compute what this config's do.

  Args:
    model_type: the one that is wanted; None: the first that can (a Phi-3 is a Llama too).

  Raises:
    UserError: there is none, or that one can't; says what the nearest lacks.
  """
  mine, closest = essence(config), None
  wanted = FAMILIES if model_type is None else {"": find_family({"model_type": model_type})}
  for family in wanted.values():
    try:
      theirs = essence(family.to_config({"model_type": family.model_type} | family.to_hf(config)))
    except (UserError, AttributeError):
      continue
    lacks = [name for name in mine if mine[name] != theirs.get(name)]
    if not lacks and mine.keys() == theirs.keys():
      return family
    if closest is None or len(lacks) < len(closest[1]):
      closest = (family.model_type, lacks)
  near = "" if closest is None else f" ({closest[0]} lacks {', '.join(closest[1])})"
  raise UserError(f"config.model: no Hugging Face model type has all that it asks for{near}")


def hf_config(
  config: ModelConfig, dtype: str = "float32", model_type: str | None = None
) -> dict[str, Any]:
  """The config.json of a model, as both transformers 4 and 5 read it.

  Args:
    dtype: of the weights as they are written.
    model_type: see `family_of`; the same for export_tensors.

  Raises:
    UserError: no family can compute what it does.
  """
  family = family_of(config, model_type)
  return {
    "architectures": [family.architecture],
    "model_type": family.model_type,
    "torch_dtype": dtype,
    "dtype": dtype,
    # Of the tokenizer, of which a config knows nothing: a family's own would name ids at random.
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    **family.to_hf(config),
  }


def differences(one: ModelConfig, other: ModelConfig) -> list[str]:
  """The fields in which two configs are of different models; floats are compared as float32."""
  a, b = essence(one), essence(other)
  return [name for name in sorted(a.keys() | b.keys()) if not _alike(a.get(name), b.get(name))]


def _alike(one: Any, other: Any) -> bool:
  if isinstance(one, dict) and isinstance(other, dict):
    return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
  if isinstance(one, float) and isinstance(other, float):
    return math.isclose(one, other, rel_tol=1e-6)
  return one == other


def essence(config: ModelConfig) -> dict[str, Any]:
  """All of a config that changes what its model computes, with defaults worked out."""
  out = {name: value for name, value in vars(config).items() if name not in _OF_THE_RUN}
  out["class"] = type(config).__name__
  if not isinstance(config, DecoderConfig):
    return out
  out |= {"num_kv_heads": config.kv_heads, "head_dim": config.head_size}
  out |= dict(zip(("qkv_bias", "out_bias", "mlp_bias"), config.biases)) | {"use_bias": None}
  local = config.local_layers
  out |= {"window_pattern": local}
  if not any(local):
    out |= {"sliding_window": None, "local_rope_theta": None}
  elif config.local_rope_theta is None and config.rope_scaling is None:
    # With scaling they differ: a base of their own is not scaled.
    out["local_rope_theta"] = config.rope_theta
  out["attention_scale"] = config.attention_scale or config.head_size**-0.5
  if config.positions is not Positions.ROPE:
    out |= dict.fromkeys(("rope_theta", "rope_scaling", "rotary_fraction", "local_rope_theta"))
  elif config.rope_scaling is not None:
    out["rope_scaling"] = dataclasses.asdict(config.rope_scaling)
    if config.rope_scaling.kind is RopeKind.LINEAR:  # reads no length
      out["rope_scaling"]["original_max_seq_len"] = None
  if config.latent is not None:
    out["latent"] = dataclasses.asdict(config.latent)
  if config.num_dense_layers:
    out["dense_mlp_dim"] = config.dense_mlp_dim or config.mlp_dim
  else:
    out["dense_mlp_dim"] = None
  if config.num_experts is None:
    names = ("num_experts_per_token", "router", "normalize_gates", "router_scale", "router_bias")
    out |= dict.fromkeys(("num_dense_layers", "dense_mlp_dim"))
    out |= dict.fromkeys((*names, "expert_groups", "expert_groups_per_token", "num_shared_experts"))
  return out
