"""Rotary positions in config.json: transformers 4's rope_theta and rope_scaling, and transformers
5's rope_parameters. Both are read, and both are written."""

from collections.abc import Mapping
from typing import Any

from jaxlm.errors import UserError
from jaxlm.layers.config import RopeKind, RopeScaling
from jaxlm.models.config import DecoderConfig

# Field of RopeScaling -> key of rope_parameters.
_KEYS = {
  RopeKind.LINEAR: {"factor": "factor"},
  RopeKind.DYNAMIC: {"factor": "factor"},
  RopeKind.LLAMA3: {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_seq_len": "original_max_position_embeddings",
  },
  RopeKind.YARN: {
    "factor": "factor",
    "original_max_seq_len": "original_max_position_embeddings",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "truncate": "truncate",
    "attention_factor": "attention_factor",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
  },
  RopeKind.LONGROPE: {
    "factor": "factor",
    "original_max_seq_len": "original_max_position_embeddings",
    "attention_factor": "attention_factor",
    "short_factors": "short_factor",
    "long_factors": "long_factor",
  },
}
_FLOATS = {"factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"}


def read_rope(hf: Mapping[str, Any], default_theta: float = 10_000.0) -> dict[str, Any]:
  """The fields rope_theta, rope_scaling and rotary_fraction of a DecoderConfig."""
  parameters = dict(hf.get("rope_scaling") or {}) | dict(hf.get("rope_parameters") or {})
  theta = parameters.get("rope_theta", hf.get("rope_theta"))
  fraction = parameters.get("partial_rotary_factor", hf.get("partial_rotary_factor"))
  return {
    "rope_theta": float(default_theta if theta is None else theta),
    "rope_scaling": read_scaling(hf, parameters),
    "rotary_fraction": 1.0 if fraction is None else float(fraction),
  }


def read_scaling(hf: Mapping[str, Any], parameters: Mapping[str, Any]) -> RopeScaling | None:
  """The RopeScaling of rope_parameters. Raises UserError for a kind that jaxlm does not have."""
  kind = parameters.get("rope_type", parameters.get("type", "default"))
  if kind == "default":
    return None
  kind = {"su": "longrope"}.get(kind, kind)
  if kind not in [one.value for one in RopeKind]:
    raise UserError(
      f"config.json: rope_type={kind!r} is not supported: only default, "
      f"{', '.join(one.value for one in RopeKind)}"
    )
  kind = RopeKind(kind)
  length = int(hf.get("max_position_embeddings") or 2048)
  # Phi-3 has the original length beside, not among, the parameters, and that one counts.
  original = hf.get("original_max_position_embeddings")
  values: dict[str, Any] = {"original_max_seq_len": int(original or length)}
  for field, key in _KEYS[kind].items():
    if parameters.get(key) is not None and not (field == "original_max_seq_len" and original):
      value: Any = parameters[key]
      value = tuple(map(float, value)) if isinstance(value, list | tuple) else value
      values[field] = float(value) if field in _FLOATS else value
  values.setdefault("factor", length / values["original_max_seq_len"])
  return RopeScaling(kind=kind, **values)


def rope_parameters(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
  """transformers 5's dict."""
  out: dict[str, Any] = {"rope_theta": theta, "rope_type": "default"}
  if scaling is not None:
    out["rope_type"] = scaling.kind.value
    for field, key in _KEYS[scaling.kind].items():
      value = getattr(scaling, field)
      if value is not None:
        out[key] = list(value) if isinstance(value, tuple) else value
  return out


def write_rope(config: DecoderConfig) -> dict[str, Any]:
  """Both spellings of the rotary fields."""
  parameters = rope_parameters(config.rope_theta, config.rope_scaling)
  out: dict[str, Any] = {"rope_theta": config.rope_theta}
  if config.rotary_fraction != 1:
    parameters["partial_rotary_factor"] = config.rotary_fraction
    out["partial_rotary_factor"] = config.rotary_fraction
  scaled = config.rope_scaling is not None
  return out | {"rope_parameters": parameters, "rope_scaling": parameters if scaled else None}
