"""Qwen2 (biases on queries, keys and values) and Qwen3 (norms of queries and keys)."""

from collections.abc import Mapping
from typing import Any

from jaxlm.interop.families.base import Family
from jaxlm.interop.families.llama import attention_bias, fields, hf_fields, weights
from jaxlm.interop.families.windows import layer_types, read_windows
from jaxlm.models.config import DecoderConfig


def windows(hf: Mapping[str, Any]) -> dict[str, Any]:
  """Layers from max_window_layers on have a window, where use_sliding_window says so."""
  if not hf.get("use_sliding_window", False):
    return {"sliding_window": None}
  first = hf.get("max_window_layers", 28)
  return read_windows(hf, [i >= first for i in range(hf["num_hidden_layers"])])


def hf_windows(config: DecoderConfig) -> dict[str, Any]:
  """The reverse of `windows`."""
  local = config.local_layers
  return {
    "use_sliding_window": any(local),
    "sliding_window": config.sliding_window,
    "max_window_layers": local.index(True) if any(local) else config.num_layers,
    "layer_types": layer_types(config),
  }


def _qwen2(hf: Mapping[str, Any]) -> DecoderConfig:
  return DecoderConfig(**fields(hf), **windows(hf), qkv_bias=True, out_bias=False)


def _qwen2_hf(config: DecoderConfig) -> dict[str, Any]:
  return hf_fields(config) | hf_windows(config)


def _qwen3(hf: Mapping[str, Any]) -> DecoderConfig:
  hf = {"head_dim": 128} | dict(hf)
  return DecoderConfig(**fields(hf), **windows(hf), **attention_bias(hf), qk_norm=True)


def _qwen3_hf(config: DecoderConfig) -> dict[str, Any]:
  return hf_fields(config) | hf_windows(config) | {"attention_bias": config.biases[0]}


FAMILIES = (
  Family("qwen2", "Qwen2ForCausalLM", _qwen2, _qwen2_hf, weights),
  Family("qwen3", "Qwen3ForCausalLM", _qwen3, _qwen3_hf, weights),
)
