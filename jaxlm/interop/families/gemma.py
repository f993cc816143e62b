"""Gemma 1, 2 and 3 (text): norms of 1 + weight, embeddings times sqrt(D), GeGLU; from 2 on, norms
on both sides, soft caps and local layers; in 3, norms of queries and keys and two RoPE bases."""

import math
from collections.abc import Mapping
from typing import Any

from jaxlm.interop.families.base import Family, choose, need, refuse
from jaxlm.interop.families.llama import attention_bias, fields, hf_fields, weights
from jaxlm.interop.families.rope import read_rope, read_scaling, rope_parameters
from jaxlm.interop.families.windows import GLOBAL, LOCAL, layer_types, read_windows
from jaxlm.layers.config import Activation, NormPlacement
from jaxlm.models.config import DecoderConfig

# "gelu" is what the first files said where the tanh form was meant.
_ACTIVATIONS = {"gelu_pytorch_tanh": Activation.GEGLU, "gelu": Activation.GEGLU}


def _common(hf: Mapping[str, Any]) -> dict[str, Any]:
  refuse(hf, use_bidirectional_attention=False)
  hf = {"head_dim": 256, "tie_word_embeddings": True} | dict(hf)
  name = "hidden_activation" if hf.get("hidden_activation") else "hidden_act"
  activation = choose(hf, name, _ACTIVATIONS, "gelu_pytorch_tanh")
  return {
    **fields({**hf, "hidden_act": "silu"}),
    **attention_bias(hf),
    "activation": activation,
    "norm_offset": 1.0,
    "embed_scale": math.sqrt(need(hf, "hidden_size")),
  }


def _hf_common(config: DecoderConfig) -> dict[str, Any]:
  out = hf_fields(config) | {"attention_bias": config.biases[0]}
  return out | {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}


def _capped(hf: Mapping[str, Any]) -> dict[str, Any]:
  scale = float(hf.get("query_pre_attn_scalar") or 256) ** -0.5
  return {
    "norm_placement": NormPlacement.BOTH,
    "attention_scale": scale,
    "attention_softcap": hf.get("attn_logit_softcapping"),
    "logits_softcap": hf.get("final_logit_softcapping"),
  }


def _hf_capped(config: DecoderConfig) -> dict[str, Any]:
  scalar = config.head_size if config.attention_scale is None else config.attention_scale**-2
  near = round(scalar)
  return {
    "query_pre_attn_scalar": near if math.isclose(scalar, near, rel_tol=1e-9) else scalar,
    "attn_logit_softcapping": config.attention_softcap,
    "final_logit_softcapping": config.logits_softcap,
    "sliding_window": config.sliding_window,
    "layer_types": layer_types(config),
  }


def _local(hf: Mapping[str, Any], every: int) -> list[bool]:
  """All layers are local but every so many."""
  return [(i + 1) % every != 0 for i in range(need(hf, "num_hidden_layers"))]


def _gemma(hf: Mapping[str, Any]) -> DecoderConfig:
  return DecoderConfig(**_common(hf))


def _gemma2(hf: Mapping[str, Any]) -> DecoderConfig:
  defaults = {
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
  }
  hf = defaults | dict(hf)
  return DecoderConfig(**_common(hf), **_capped(hf), **read_windows(hf, _local(hf, 2)))


def _gemma2_hf(config: DecoderConfig) -> dict[str, Any]:
  return _hf_common(config) | _hf_capped(config)


def _gemma3(hf: Mapping[str, Any]) -> DecoderConfig:
  hf = {"sliding_window": 4096} | dict(hf)
  both = hf.get("rope_parameters") or {}
  nested = bool(both.get(GLOBAL) or both.get(LOCAL))
  if nested:
    full, local = dict(both.get(GLOBAL) or {}), dict(both.get(LOCAL) or {})
    refuse({"model_type": "gemma3_text (local layers)", **local}, rope_type="default")
    rope = {
      "rope_theta": float(full.get("rope_theta", 1e6)),
      "rope_scaling": read_scaling(hf, full),
      "local_rope_theta": float(local.get("rope_theta", 1e4)),
    }
  else:
    rope = read_rope(hf, 1e6) | {"rotary_fraction": 1.0}  # as in llama.fields
    rope["local_rope_theta"] = float(hf.get("rope_local_base_freq", 1e4))
  windows = read_windows(hf, _local(hf, hf.get("sliding_window_pattern", 6)))
  if windows["sliding_window"] is None:
    rope["local_rope_theta"] = None
  plain = {name: value for name, value in hf.items() if not name.startswith("rope_")}
  return DecoderConfig(**(_common(plain) | _capped(hf) | windows | rope), qk_norm=True)


def _gemma3_hf(config: DecoderConfig) -> dict[str, Any]:
  local = config.rope_theta if config.local_rope_theta is None else config.local_rope_theta
  full = rope_parameters(config.rope_theta, config.rope_scaling)
  return {
    **_hf_common(config),
    **_hf_capped(config),
    "rope_theta": config.rope_theta,
    "rope_local_base_freq": local,
    "rope_scaling": None if config.rope_scaling is None else full,
    "rope_parameters": {GLOBAL: full, LOCAL: rope_parameters(local, None)},
  }


FAMILIES = (
  Family("gemma", "GemmaForCausalLM", _gemma, _hf_common, weights),
  Family("gemma2", "Gemma2ForCausalLM", _gemma2, _gemma2_hf, weights),
  Family("gemma3_text", "Gemma3ForCausalLM", _gemma3, _gemma3_hf, weights),
)
