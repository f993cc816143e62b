"""MPT: ALiBi, and no biases at all, in the layer norms neither."""

from collections.abc import Mapping
from typing import Any

from jaxlm.interop.families.base import Family, How, Weight, need, refuse
from jaxlm.interop.families.llama import linear, same
from jaxlm.layers.config import Activation, Norm, Positions
from jaxlm.models.config import DecoderConfig

_LAYER = "transformer.blocks.{layer}."


def _to_config(hf: Mapping[str, Any]) -> DecoderConfig:
  refuse(hf, no_bias=True, expansion_ratio=4, embedding_fraction=1.0)
  attention = hf.get("attn_config") or {}
  about = {"model_type": "mpt (attn_config)"}
  refuse(about | attention, alibi=True, alibi_bias_max=8, qk_ln=False, prefix_lm=False)
  refuse(about | attention, attn_type="multihead_attention", clip_qkv=())
  width = need(hf, "d_model")
  scale = attention.get("softmax_scale")
  return DecoderConfig(
    vocab_size=need(hf, "vocab_size"),
    num_layers=need(hf, "n_layers"),
    embed_dim=width,
    mlp_dim=4 * width,
    num_heads=need(hf, "n_heads"),
    max_seq_len=hf.get("max_seq_len") or 2048,
    norm=Norm.LAYER,
    norm_eps=float(hf.get("layer_norm_epsilon") or 1e-5),
    norm_bias=False,
    positions=Positions.ALIBI,
    activation=Activation.GELU_EXACT,
    attention_scale=None if scale is None else float(scale),
    tie_embeddings=bool(hf.get("tie_word_embeddings", True)),
  )


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
  return {
    "vocab_size": config.vocab_size,
    "n_layers": config.num_layers,
    "d_model": config.embed_dim,
    "n_heads": config.num_heads,
    "max_seq_len": config.max_seq_len,
    "layer_norm_epsilon": config.norm_eps,
    "no_bias": True,
    "attn_config": {"alibi": True, "softmax_scale": config.attention_scale},
    "tie_word_embeddings": config.tie_embeddings,
  }


def _weights(config: DecoderConfig) -> list[Weight]:
  paths = ("attention/q", "attention/k", "attention/v")
  tables = [Weight("transformer.wte.weight", ("embed/table",), How.TABLE)]
  if not config.tie_embeddings:
    tables.append(Weight("lm_head.weight", ("unembed/table",), How.TABLE))
  return [
    *tables,
    same("transformer.norm_f.weight", "final_norm/scale"),
    same(f"{_LAYER}norm_1.weight", "attention_norm/scale"),
    same(f"{_LAYER}norm_2.weight", "mlp_norm/scale"),
    Weight(f"{_LAYER}attn.Wqkv.weight", paths, How.LINEAR),
    linear(f"{_LAYER}attn.out_proj", "attention/out", inputs=2),
    linear(f"{_LAYER}ffn.up_proj", "mlp/up"),
    linear(f"{_LAYER}ffn.down_proj", "mlp/down"),
  ]


FAMILIES = (
  Family(
    "mpt", "MptForCausalLM", _to_config, _to_hf, _weights, prefix="transformer.", ignored="$^"
  ),
)
