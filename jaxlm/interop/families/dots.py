"""dots.llm1: Qwen3's attention with DeepSeek-V3's mixture of experts (arXiv:2506.05767): sigmoid
scores, a bias that balances them, groups, shared experts; the first layers have none."""

from collections.abc import Mapping
from typing import Any

from jaxlm.interop.families.base import Family, Weight
from jaxlm.interop.families.deepseek import expert_weights, hf_experts, read_experts
from jaxlm.interop.families.llama import (
  attention,
  attention_bias,
  fields,
  hf_fields,
  norms,
  outer,
)
from jaxlm.interop.families.windows import layer_types, read_windows
from jaxlm.models.config import DecoderConfig

_DEFAULTS = {"sliding_window": 4096}


def _to_config(hf: Mapping[str, Any]) -> DecoderConfig:
  hf = _DEFAULTS | dict(hf)
  first = hf.get("max_window_layers", 62)
  windows = read_windows(hf, [i >= first for i in range(hf["num_hidden_layers"])])
  values = fields(hf) | attention_bias(hf) | windows | read_experts(hf)
  return DecoderConfig(**values, qk_norm=True)


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
  return {
    **hf_fields(config),
    **hf_experts(config),
    "attention_bias": config.biases[0],
    "sliding_window": config.sliding_window,
    "layer_types": layer_types(config),
  }


def _weights(config: DecoderConfig) -> list[Weight]:
  return [*outer(config), *norms(config), *attention(config), *expert_weights(config)]


FAMILIES = (Family("dots1", "Dots1ForCausalLM", _to_config, _to_hf, _weights),)
