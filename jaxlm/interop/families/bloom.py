"""BLOOM: ALiBi, a norm of the embeddings, biases everywhere."""

from collections.abc import Mapping
from typing import Any

from jaxlm.interop.families.base import Family, How, Weight, need, refuse
from jaxlm.interop.families.gpt_neox import dense, interleaved, layer_norm
from jaxlm.layers.config import Activation, Norm, Positions
from jaxlm.models.config import DecoderConfig

_LAYER = "transformer.h.{layer}."


def _to_config(hf: Mapping[str, Any]) -> DecoderConfig:
  refuse(hf, apply_residual_connection_post_layernorm=False)
  width = hf.get("hidden_size") or need(hf, "n_embed")
  return DecoderConfig(
    vocab_size=need(hf, "vocab_size"),
    num_layers=hf.get("n_layer") or need(hf, "num_hidden_layers"),
    embed_dim=width,
    mlp_dim=4 * width,
    num_heads=hf.get("n_head") or need(hf, "num_attention_heads"),
    max_seq_len=hf.get("seq_length") or 2048,
    norm=Norm.LAYER,
    norm_eps=float(hf.get("layer_norm_epsilon") or 1e-5),
    embed_norm=True,
    positions=Positions.ALIBI,
    activation=Activation.GELU,
    use_bias=True,
    tie_embeddings=bool(hf.get("tie_word_embeddings", True)),
  )


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
  return {
    "vocab_size": config.vocab_size,
    "n_layer": config.num_layers,
    "hidden_size": config.embed_dim,
    "n_head": config.num_heads,
    "seq_length": config.max_seq_len,
    "layer_norm_epsilon": config.norm_eps,
    "apply_residual_connection_post_layernorm": False,
    "tie_word_embeddings": config.tie_embeddings,
  }


def _weights(config: DecoderConfig) -> list[Weight]:
  tables = [Weight("transformer.word_embeddings.weight", ("embed/table",), How.TABLE)]
  if not config.tie_embeddings:
    tables.append(Weight("lm_head.weight", ("unembed/table",), How.TABLE))
  return [
    *tables,
    *layer_norm("transformer.word_embeddings_layernorm", "embed_norm"),
    *layer_norm("transformer.ln_f", "final_norm"),
    *layer_norm(f"{_LAYER}input_layernorm", "attention_norm"),
    *layer_norm(f"{_LAYER}post_attention_layernorm", "mlp_norm"),
    *interleaved(config, f"{_LAYER}self_attention.query_key_value", bias=True),
    *dense(f"{_LAYER}self_attention.dense", "attention/out", inputs=2),
    *dense(f"{_LAYER}mlp.dense_h_to_4h", "mlp/up"),
    *dense(f"{_LAYER}mlp.dense_4h_to_h", "mlp/down"),
  ]


FAMILIES = (
  Family(
    "bloom", "BloomForCausalLM", _to_config, _to_hf, _weights, prefix="transformer.", ignored="$^"
  ),
)
