"""What a config.json may hold under the keys that families read, before any of them reads it."""

import math
from collections.abc import Mapping
from typing import Any

from jaxlm.errors import UserError

# fmt: off
_POSITIVE = (
  "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
  "num_key_value_heads", "head_dim", "max_position_embeddings",
  "original_max_position_embeddings", "sliding_window_pattern", "moe_intermediate_size",
  "num_experts", "num_local_experts", "num_experts_per_tok", "n_routed_experts", "kv_lora_rank",
  "q_lora_rank", "qk_rope_head_dim", "v_head_dim", "n_embd", "n_embed", "n_layer", "n_head",
  "n_positions", "n_inner", "seq_length", "d_model", "n_layers", "n_heads", "max_seq_len",
  "type_vocab_size", "global_attn_every_n_layers", "local_attention",
)
# Where 0 says something.
_COUNTS = (
  "sliding_window", "max_window_layers", "qk_nope_head_dim", "n_shared_experts", "n_group",
  "topk_group", "first_k_dense_replace", "pad_token_id",
)
_NUMBERS = (
  "rope_theta", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps",
  "rotary_pct", "rotary_emb_base", "partial_rotary_factor", "rope_local_base_freq",
  "query_pre_attn_scalar", "routed_scaling_factor", "attn_logit_softcapping",
  "final_logit_softcapping", "factor", "low_freq_factor", "high_freq_factor", "beta_fast",
  "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "softmax_scale",
)
_NAMES = (
  "rope_type", "type",
)
_LISTS = (
  "layer_types", "short_factor", "long_factor", "mlp_only_layers",
)
_OBJECTS = (
  "rope_scaling", "rope_parameters", "full_attention", "sliding_attention", "attn_config",
)
# fmt: on


def check_values(hf: Mapping[str, Any], path: str = "config.json: ") -> None:
  """Raises UserError for a value of a wrong kind; objects are looked into.

  None is as good as missing. Bounds that depend on other values are the model config's to check.
  """
  for key, value in hf.items():
    if value is None:
      continue
    count = type(value) is int and 0 <= value < 1 << 40
    number = type(value) in (int, float) and math.isfinite(value)
    if key in _POSITIVE and not (count and value > 0):
      raise UserError(f"{path}{key}={value!r}: must be a positive integer")
    if key in _COUNTS and not count and not (key == "pad_token_id" and type(value) is int):
      raise UserError(f"{path}{key}={value!r}: must be an integer, 0 or more")
    if key in _NUMBERS and not (number and value >= 0):
      raise UserError(f"{path}{key}={value!r}: must be a number, 0 or more")
    if key in _NAMES and not isinstance(value, str):
      raise UserError(f"{path}{key}={value!r}: must be a name")
    if key in _LISTS:
      inner = str if key == "layer_types" else int | float
      if not isinstance(value, list | tuple) or not all(isinstance(x, inner) for x in value):
        raise UserError(f"{path}{key}={str(value)[:80]!r}: must be a list")
    if key == "layer_types" and len(value) != hf.get("num_hidden_layers"):
      raise UserError(
        f"{path}layer_types: {len(value)} of them, num_hidden_layers={hf.get('num_hidden_layers')}"
      )
    if key in _OBJECTS:
      if not isinstance(value, Mapping):
        raise UserError(f"{path}{key}={value!r}: must be an object")
      check_values(value, f"{path}{key}.")
