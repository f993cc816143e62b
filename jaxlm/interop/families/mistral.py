"""Mistral: a Llama whose every layer has a sliding window."""

from collections.abc import Mapping
from typing import Any

from jaxlm.interop.families.base import Family
from jaxlm.interop.families.llama import fields, hf_fields, weights
from jaxlm.models.config import DecoderConfig

_DEFAULTS = {"sliding_window": 4096}


def _to_config(hf: Mapping[str, Any]) -> DecoderConfig:
  hf = _DEFAULTS | dict(hf)
  return DecoderConfig(**fields(hf), sliding_window=hf["sliding_window"])


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
  return hf_fields(config) | {"sliding_window": config.sliding_window}


FAMILIES = (Family("mistral", "MistralForCausalLM", _to_config, _to_hf, weights),)
