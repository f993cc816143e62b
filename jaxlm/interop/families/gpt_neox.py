"""GPT-NeoX and Pythia: attention and MLP in parallel, a part of each head rotated."""

from collections.abc import Mapping
from typing import Any

from jaxlm.interop.families.base import Family, How, Weight, choose, need
from jaxlm.interop.families.rope import read_rope, write_rope
from jaxlm.layers.config import Activation, Norm
from jaxlm.models.config import DecoderConfig

_ACTIVATIONS = {
  "gelu": Activation.GELU_EXACT,
  "gelu_new": Activation.GELU,
  "gelu_fast": Activation.GELU,
  "gelu_pytorch_tanh": Activation.GELU,
}
_LAYER = "gpt_neox.layers.{layer}."


def _to_config(hf: Mapping[str, Any]) -> DecoderConfig:
  # The family's own names for what others call rope_theta and partial_rotary_factor.
  hf = {
    "rope_theta": hf.get("rotary_emb_base"),
    "partial_rotary_factor": hf.get("rotary_pct", 0.25),
  } | dict(hf)
  bias = bool(hf.get("attention_bias", True))
  return DecoderConfig(
    vocab_size=need(hf, "vocab_size"),
    num_layers=need(hf, "num_hidden_layers"),
    embed_dim=need(hf, "hidden_size"),
    mlp_dim=need(hf, "intermediate_size"),
    num_heads=need(hf, "num_attention_heads"),
    max_seq_len=hf.get("max_position_embeddings") or 2048,
    norm=Norm.LAYER,
    norm_eps=float(hf.get("layer_norm_eps") or 1e-5),
    parallel_residual=bool(hf.get("use_parallel_residual", True)),
    activation=choose(hf, "hidden_act", _ACTIVATIONS, "gelu"),
    qkv_bias=bias,
    out_bias=bias,
    mlp_bias=True,
    tie_embeddings=bool(hf.get("tie_word_embeddings", False)),
    **read_rope(hf),
  )


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
  return {
    "vocab_size": config.vocab_size,
    "num_hidden_layers": config.num_layers,
    "hidden_size": config.embed_dim,
    "intermediate_size": config.mlp_dim,
    "num_attention_heads": config.num_heads,
    "max_position_embeddings": config.max_seq_len,
    "layer_norm_eps": config.norm_eps,
    "use_parallel_residual": config.parallel_residual,
    "hidden_act": "gelu" if config.activation is Activation.GELU_EXACT else "gelu_new",
    "attention_bias": config.biases[0],
    "tie_word_embeddings": config.tie_embeddings,
    "rotary_emb_base": config.rope_theta,
    "rotary_pct": config.rotary_fraction,
    **write_rope(config),
    "partial_rotary_factor": config.rotary_fraction,
    "rope_parameters": write_rope(config)["rope_parameters"]
    | {"partial_rotary_factor": config.rotary_fraction},
  }


def interleaved(config: DecoderConfig, name: str, *, bias: bool) -> list[Weight]:
  """Queries, keys and values in one tensor: head by head, each head's query, key and value."""
  paths = ("attention/q", "attention/k", "attention/v")
  groups = config.num_heads
  weights = [Weight(f"{name}.weight", paths, How.LINEAR, interleaved=groups)]
  if bias:
    biases = tuple(f"{path}_bias" for path in paths)
    weights.append(Weight(f"{name}.bias", biases, inputs=0, interleaved=groups))
  return weights


def layer_norm(name: str, path: str) -> list[Weight]:
  """A layer norm's scale and bias."""
  return [
    Weight(f"{name}.weight", (f"{path}/scale",), inputs=0),
    Weight(f"{name}.bias", (f"{path}/bias",), inputs=0),
  ]


def dense(name: str, path: str, *, inputs: int = 1, bias: bool = True) -> list[Weight]:
  """A matrix and its bias."""
  weights = [Weight(f"{name}.weight", (path,), How.LINEAR, inputs=inputs)]
  return [*weights, Weight(f"{name}.bias", (f"{path}_bias",), inputs=0)] if bias else weights


def _weights(config: DecoderConfig) -> list[Weight]:
  bias = config.biases[0]
  tables = [Weight("gpt_neox.embed_in.weight", ("embed/table",), How.TABLE)]
  if not config.tie_embeddings:
    tables.append(Weight("embed_out.weight", ("unembed/table",), How.TABLE))
  return [
    *tables,
    *layer_norm("gpt_neox.final_layer_norm", "final_norm"),
    *layer_norm(f"{_LAYER}input_layernorm", "attention_norm"),
    *layer_norm(f"{_LAYER}post_attention_layernorm", "mlp_norm"),
    *interleaved(config, f"{_LAYER}attention.query_key_value", bias=bias),
    *dense(f"{_LAYER}attention.dense", "attention/out", inputs=2, bias=bias),
    *dense(f"{_LAYER}mlp.dense_h_to_4h", "mlp/up"),
    *dense(f"{_LAYER}mlp.dense_4h_to_h", "mlp/down"),
  ]


FAMILIES = (
  Family(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    _to_config,
    _to_hf,
    _weights,
    prefix="gpt_neox.",
    ignored=r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
  ),
)
