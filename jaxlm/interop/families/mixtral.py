"""Mixtral: a Mistral whose MLPs are mixtures of experts."""

from collections.abc import Mapping
from typing import Any

from jaxlm.errors import UserError
from jaxlm.interop.families.base import Family, How, Weight, need
from jaxlm.interop.families.llama import LAYER, attention, fields, hf_fields, linear, norms, outer
from jaxlm.models.config import DecoderConfig


def _to_config(hf: Mapping[str, Any]) -> DecoderConfig:
  hf = {"rope_theta": 1e6, "rms_norm_eps": 1e-5, "num_experts_per_tok": 2} | dict(hf)
  if need(hf, "num_experts_per_tok") < 2:
    raise UserError("config.json: num_experts_per_tok=1 is not supported: its weight would be 1")
  return DecoderConfig(
    **fields(hf),
    sliding_window=hf.get("sliding_window"),
    num_experts=need(hf, "num_local_experts"),
    num_experts_per_token=hf["num_experts_per_tok"],
  )


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
  return hf_fields(config) | {
    "sliding_window": config.sliding_window,
    "num_local_experts": config.num_experts,
    "num_experts_per_tok": config.num_experts_per_token,
  }


def experts(config: DecoderConfig, name: str, names: Mapping[str, str]) -> list[Weight]:
  """The experts' matrices: name of each with {expert}, and of its parts by parameter."""
  return [
    Weight(f"{name}.{part}.weight", (f"moe/{path}",), How.LINEAR, experts=config.num_experts)
    for path, part in names.items()
  ]


def _weights(config: DecoderConfig) -> list[Weight]:
  moe = f"{LAYER}block_sparse_moe"
  return [
    *outer(config),
    *norms(config),
    *attention(config),
    linear(f"{moe}.gate", "moe/router"),
    *experts(config, moe + ".experts.{expert}", {"gate": "w1", "up": "w3", "down": "w2"}),
  ]


FAMILIES = (Family("mixtral", "MixtralForCausalLM", _to_config, _to_hf, _weights),)
