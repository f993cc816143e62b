"""Phi-3: a Llama with queries, keys and values in one matrix, gate and up in another; LongRoPE."""

from collections.abc import Mapping
from typing import Any

from jaxlm.interop.families.base import Family, How, Weight, refuse
from jaxlm.interop.families.llama import LAYER, fields, hf_fields, linear, norms, outer
from jaxlm.interop.families.rope import read_rope
from jaxlm.layers.config import RopeKind
from jaxlm.models.config import DecoderConfig


def _to_config(hf: Mapping[str, Any]) -> DecoderConfig:
  refuse(hf, attention_bias=False)
  parameters = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
  kind = parameters.get("rope_type", parameters.get("type", "default"))
  if kind == "default":
    # Only LongRoPE reads it, and it is always written.
    hf = {key: value for key, value in hf.items() if key != "original_max_position_embeddings"}
  elif kind in ("su", "yarn"):
    hf = dict(hf) | {"rope_parameters": {**parameters, "rope_type": "longrope"}}
  values = fields({"rms_norm_eps": 1e-5} | dict(hf))
  values["rotary_fraction"] = read_rope(hf)["rotary_fraction"]
  return DecoderConfig(**values, sliding_window=hf.get("sliding_window"))


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
  out = hf_fields(config) | {"sliding_window": config.sliding_window}
  scaling = config.rope_scaling
  if scaling is not None and scaling.kind is RopeKind.LONGROPE:
    out["original_max_position_embeddings"] = scaling.original_max_seq_len
  return out


def _weights(config: DecoderConfig) -> list[Weight]:
  qkv, gate_up = ("attention/q", "attention/k", "attention/v"), ("mlp/gate", "mlp/up")
  return [
    *outer(config),
    *norms(config),
    Weight(f"{LAYER}self_attn.qkv_proj.weight", qkv, How.LINEAR),
    linear(f"{LAYER}self_attn.o_proj", "attention/out", inputs=2),
    Weight(f"{LAYER}mlp.gate_up_proj.weight", gate_up, How.LINEAR),
    linear(f"{LAYER}mlp.down_proj", "mlp/down"),
  ]


FAMILIES = (Family("phi3", "Phi3ForCausalLM", _to_config, _to_hf, _weights),)
