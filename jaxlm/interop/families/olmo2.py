"""OLMo 2: norms after attention and MLP, norms of all queries and of all keys together."""

from collections.abc import Mapping
from typing import Any

from jaxlm.interop.families.base import Family
from jaxlm.interop.families.llama import attention_bias, fields, hf_fields, weights
from jaxlm.layers.config import NormPlacement
from jaxlm.models.config import DecoderConfig


def _to_config(hf: Mapping[str, Any]) -> DecoderConfig:
  return DecoderConfig(
    **fields({"rms_norm_eps": 1e-5} | dict(hf)),
    **attention_bias(hf),
    norm_placement=NormPlacement.POST,
    qk_norm=True,
    qk_norm_whole=True,
  )


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
  return hf_fields(config) | {"attention_bias": config.biases[0]}


FAMILIES = (Family("olmo2", "Olmo2ForCausalLM", _to_config, _to_hf, weights),)
