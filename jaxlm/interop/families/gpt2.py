"""GPT-2: learned positions, layer norms, biases everywhere, matrices with their inputs first."""

from collections.abc import Mapping
from typing import Any

from jaxlm.interop.families.base import Family, How, Weight, choose, need, refuse
from jaxlm.layers.config import Activation, Norm, Positions
from jaxlm.models.config import DecoderConfig

_ACTIVATIONS = {
  "gelu_new": Activation.GELU,
  "gelu_pytorch_tanh": Activation.GELU,
  "gelu": Activation.GELU_EXACT,
}
_LAYER = "transformer.h.{layer}."


def _to_config(hf: Mapping[str, Any]) -> DecoderConfig:
  refuse(
    hf, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False
  )
  width = need(hf, "n_embd")
  return DecoderConfig(
    vocab_size=need(hf, "vocab_size"),
    num_layers=need(hf, "n_layer"),
    embed_dim=width,
    mlp_dim=hf.get("n_inner") or 4 * width,
    num_heads=need(hf, "n_head"),
    max_seq_len=hf.get("n_positions") or 1024,
    norm=Norm.LAYER,
    norm_eps=float(hf.get("layer_norm_epsilon") or 1e-5),
    positions=Positions.LEARNED,
    activation=choose(hf, "activation_function", _ACTIVATIONS, "gelu_new"),
    use_bias=True,
    tie_embeddings=bool(hf.get("tie_word_embeddings", True)),
  )


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
  exact = config.activation is Activation.GELU_EXACT
  return {
    "vocab_size": config.vocab_size,
    "n_layer": config.num_layers,
    "n_embd": config.embed_dim,
    "n_inner": config.mlp_dim,
    "n_head": config.num_heads,
    "n_positions": config.max_seq_len,
    "layer_norm_epsilon": config.norm_eps,
    "activation_function": "gelu" if exact else "gelu_new",
    "tie_word_embeddings": config.tie_embeddings,
  }


def _weights(config: DecoderConfig) -> list[Weight]:
  def norm(name: str, path: str) -> list[Weight]:
    return [
      Weight(f"{name}.weight", (f"{path}/scale",), inputs=0),
      Weight(f"{name}.bias", (f"{path}/bias",), inputs=0),
    ]

  def dense(name: str, paths: tuple[str, ...], inputs: int = 1) -> list[Weight]:
    biases = tuple(f"{path}_bias" for path in paths)
    return [
      Weight(f"{_LAYER}{name}.weight", paths, inputs=inputs),
      Weight(f"{_LAYER}{name}.bias", biases, inputs=0),
    ]

  tables = [
    Weight("transformer.wte.weight", ("embed/table",), How.TABLE),
    Weight("transformer.wpe.weight", ("position_embed/table",)),
  ]
  if not config.tie_embeddings:
    tables.append(Weight("lm_head.weight", ("unembed/table",), How.TABLE))
  return [
    *tables,
    *norm("transformer.ln_f", "final_norm"),
    *norm(f"{_LAYER}ln_1", "attention_norm"),
    *norm(f"{_LAYER}ln_2", "mlp_norm"),
    *dense("attn.c_attn", ("attention/q", "attention/k", "attention/v")),
    *dense("attn.c_proj", ("attention/out",), inputs=2),
    *dense("mlp.c_fc", ("mlp/up",)),
    *dense("mlp.c_proj", ("mlp/down",)),
  ]


FAMILIES = (
  Family(
    "gpt2",
    "GPT2LMHeadModel",
    _to_config,
    _to_hf,
    _weights,
    prefix="transformer.",
    ignored=r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",
  ),
)
