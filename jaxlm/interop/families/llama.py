"""Llama 2 and 3 (SmolLM2 is one of them), and what its descendants have in common with it.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/llama
"""

from collections.abc import Mapping
from typing import Any

from jaxlm.interop.families.base import Family, How, Weight, choose, need
from jaxlm.interop.families.rope import read_rope, write_rope
from jaxlm.layers.config import Activation, NormPlacement
from jaxlm.models.config import DecoderConfig

GATED = {
  "silu": Activation.SWIGLU,
  "gelu_pytorch_tanh": Activation.GEGLU,
  "gelu_new": Activation.GEGLU,
  "gelu": Activation.GEGLU_EXACT,
}
_GATED_NAMES = {one: name for name, one in reversed(GATED.items())}


def fields(hf: Mapping[str, Any]) -> dict[str, Any]:
  """Arguments of the DecoderConfig of a Llama; descendants change some of them.

  A family that rotates a part of each head puts rotary_fraction back.
  """
  heads = need(hf, "num_attention_heads")
  return {
    "vocab_size": need(hf, "vocab_size"),
    "num_layers": need(hf, "num_hidden_layers"),
    "embed_dim": need(hf, "hidden_size"),
    "mlp_dim": need(hf, "intermediate_size"),
    "num_heads": heads,
    "num_kv_heads": hf.get("num_key_value_heads") or heads,
    "head_dim": hf.get("head_dim") or need(hf, "hidden_size") // heads,
    "max_seq_len": hf.get("max_position_embeddings") or 2048,
    "norm_eps": float(hf.get("rms_norm_eps") or 1e-6),
    "activation": choose(hf, "hidden_act", GATED, "silu"),
    "tie_embeddings": bool(hf.get("tie_word_embeddings", False)),
    **read_rope(hf),
    # transformers' code of a Llama rotates whole heads whatever partial_rotary_factor says.
    "rotary_fraction": 1.0,
  }


def hf_fields(config: DecoderConfig) -> dict[str, Any]:
  """The reverse of `fields`."""
  return {
    "vocab_size": config.vocab_size,
    "num_hidden_layers": config.num_layers,
    "hidden_size": config.embed_dim,
    "intermediate_size": config.mlp_dim,
    "num_attention_heads": config.num_heads,
    "num_key_value_heads": config.kv_heads,
    "head_dim": config.head_size,
    "max_position_embeddings": config.max_seq_len,
    "rms_norm_eps": config.norm_eps,
    "hidden_act": _GATED_NAMES.get(config.activation, "silu"),
    "tie_word_embeddings": config.tie_embeddings,
    **write_rope(config),
  }


def attention_bias(hf: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of a family whose attention has all its biases or none."""
  has = bool(hf.get("attention_bias", False))
  return {"qkv_bias": has, "out_bias": has}


# ---- weights ----------------------------------------------------------------------------------

LAYER = "model.layers.{layer}."


def linear(name: str, path: str, *, inputs: int = 1) -> Weight:
  """A matrix."""
  return Weight(f"{name}.weight", (path,), How.LINEAR, inputs=inputs)


def same(name: str, path: str) -> Weight:
  """A vector."""
  return Weight(name, (path,), inputs=0)


def outer(config: DecoderConfig, prefix: str = "model.") -> list[Weight]:
  """Tables and the last norm."""
  table = [Weight(f"{prefix}embed_tokens.weight", ("embed/table",), How.TABLE)]
  if not config.tie_embeddings:
    table.append(Weight("lm_head.weight", ("unembed/table",), How.TABLE))
  return [*table, same(f"{prefix}norm.weight", "final_norm/scale")]


def norms(config: DecoderConfig) -> list[Weight]:
  """A block's norms; post_attention_layernorm is by tradition the one before the MLP."""
  if config.norm_placement is NormPlacement.PRE:
    names = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}
  else:
    names = {
      "post_attention_layernorm": "attention_post_norm",
      "post_feedforward_layernorm": "mlp_post_norm",
    }
    if config.norm_placement is NormPlacement.BOTH:
      names |= {
        "input_layernorm": "attention_norm",
        "pre_feedforward_layernorm": "mlp_norm",
      }
  return [same(f"{LAYER}{name}.weight", f"{path}/scale") for name, path in names.items()]


def attention(config: DecoderConfig) -> list[Weight]:
  """A block's attention."""
  qkv_bias, out_bias, _ = config.biases
  weights = []
  for one in "qkv":
    weights.append(linear(f"{LAYER}self_attn.{one}_proj", f"attention/{one}"))
    if qkv_bias:
      weights.append(same(f"{LAYER}self_attn.{one}_proj.bias", f"attention/{one}_bias"))
  weights.append(linear(f"{LAYER}self_attn.o_proj", "attention/out", inputs=2))
  if out_bias:
    weights.append(same(f"{LAYER}self_attn.o_proj.bias", "attention/out_bias"))
  if config.qk_norm:
    for one in "qk":
      weights.append(same(f"{LAYER}self_attn.{one}_norm.weight", f"attention/{one}_norm/scale"))
  return weights


def mlp(config: DecoderConfig) -> list[Weight]:
  """A block's MLP."""
  weights = []
  for one in ("gate", "up", "down"):
    weights.append(linear(f"{LAYER}mlp.{one}_proj", f"mlp/{one}"))
    if config.biases[2]:
      weights.append(same(f"{LAYER}mlp.{one}_proj.bias", f"mlp/{one}_bias"))
  return weights


def weights(config: DecoderConfig) -> list[Weight]:
  """All weights of a Llama."""
  return [*outer(config), *norms(config), *attention(config), *mlp(config)]


def _to_config(hf: Mapping[str, Any]) -> DecoderConfig:
  return DecoderConfig(**fields(hf), **attention_bias(hf), mlp_bias=bool(hf.get("mlp_bias", False)))


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
  qkv_bias, _, mlp_bias = config.biases
  return hf_fields(config) | {"attention_bias": qkv_bias, "mlp_bias": mlp_bias}


FAMILIES = (Family("llama", "LlamaForCausalLM", _to_config, _to_hf, weights),)
