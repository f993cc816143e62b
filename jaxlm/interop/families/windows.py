"""Sliding windows in config.json: sliding_window and layer_types."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxlm.errors import UserError
from jaxlm.models.config import DecoderConfig

LOCAL, GLOBAL = "sliding_attention", "full_attention"


def read_windows(hf: Mapping[str, Any], local: Sequence[bool]) -> dict[str, Any]:
  """The fields sliding_window and window_pattern.

  Args:
    local: which layers are local where layer_types does not say so.
  """
  types = hf.get("layer_types")
  if types is not None:
    if unknown := set(types) - {LOCAL, GLOBAL}:
      raise UserError(f"config.json: layer_types={sorted(unknown)} are not supported")
    local = [one == LOCAL for one in types]
  window = hf.get("sliding_window")
  if window is None or not any(local):
    return {"sliding_window": None}
  return {"sliding_window": int(window), "window_pattern": _period(local)}


def _period(local: Sequence[bool]) -> tuple[bool, ...]:
  """The shortest pattern whose repetition this is."""
  n = len(local)
  size = next(
    size for size in range(1, n + 1) if all(local[i] == local[i % size] for i in range(n))
  )
  return tuple(map(bool, local[:size]))


def layer_types(config: DecoderConfig) -> list[str]:
  """Hugging Face's names of the kinds of all layers."""
  return [LOCAL if one else GLOBAL for one in config.local_layers]
