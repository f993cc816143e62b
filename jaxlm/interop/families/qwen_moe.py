"""Qwen3-MoE: Qwen3 with mixtures of experts."""

from collections.abc import Mapping
from typing import Any

from jaxlm.errors import UserError
from jaxlm.interop.families.base import Family, Weight, need, refuse
from jaxlm.interop.families.llama import (
  LAYER,
  attention,
  attention_bias,
  fields,
  hf_fields,
  linear,
  norms,
  outer,
)
from jaxlm.interop.families.mixtral import experts
from jaxlm.models.config import DecoderConfig

NAMES = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


def _to_config(hf: Mapping[str, Any]) -> DecoderConfig:
  known: dict[str, Any] = {
    "num_experts": hf.get("num_local_experts"),
    "num_experts_per_tok": 8,
  }
  hf = known | dict(hf)
  refuse(hf, decoder_sparse_step=1)
  if hf.get("mlp_only_layers"):
    raise UserError("config.json: mlp_only_layers is not supported: all layers must have experts")
  values = fields(hf) | {"mlp_dim": need(hf, "moe_intermediate_size")}
  return DecoderConfig(
    **values,
    **attention_bias(hf),
    qk_norm=True,
    sliding_window=hf.get("sliding_window") if hf.get("use_sliding_window") else None,
    num_experts=need(hf, "num_experts"),
    num_experts_per_token=need(hf, "num_experts_per_tok"),
    normalize_gates=bool(hf.get("norm_topk_prob", False)),
  )


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
  return hf_fields(config) | {
    "attention_bias": config.biases[0],
    "use_sliding_window": config.sliding_window is not None,
    "sliding_window": config.sliding_window,
    "moe_intermediate_size": config.mlp_dim,
    "num_experts": config.num_experts,
    "num_experts_per_tok": config.num_experts_per_token,
    "norm_topk_prob": config.normalize_gates,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
  }


def _weights(config: DecoderConfig) -> list[Weight]:
  return [
    *outer(config),
    *norms(config),
    *attention(config),
    linear(f"{LAYER}mlp.gate", "moe/router"),
    *experts(config, f"{LAYER}mlp.experts.{{expert}}", NAMES),
  ]


FAMILIES = (Family("qwen3_moe", "Qwen3MoeForCausalLM", _to_config, _to_hf, _weights),)
