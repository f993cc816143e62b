"""RoPE's frequencies for sequences longer than those of pretraining. k pairs of dims."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.layers.config import RopeKind, RopeScaling
from jaxlm.layers.positions import frequencies


def scaled_frequencies(
  theta: float, dim: int, scaling: RopeScaling | None, positions_BT: jax.Array
) -> tuple[Any, float]:
  """float32 (dim / 2,) frequencies, and the factor of the rotated queries and keys.

  Two kinds look at positions_BT: DYNAMIC and LONGROPE change all frequencies once any position of
  the call reaches original_max_seq_len. Keys that a cache holds by then keep the old ones.
  """
  plain_k = frequencies(theta, dim)
  if scaling is None:
    return plain_k, 1.0
  match scaling.kind:
    case RopeKind.LINEAR:
      return plain_k / np.float32(scaling.factor), 1.0
    case RopeKind.LLAMA3:
      return _llama3(plain_k, scaling), 1.0
    case RopeKind.YARN:
      return _yarn(plain_k, theta, scaling), attention_factor(scaling)
    case RopeKind.DYNAMIC:
      ratio = jnp.maximum(_length(positions_BT) / scaling.original_max_seq_len, 1.0)
      base = theta * (scaling.factor * ratio - (scaling.factor - 1)) ** (dim / (dim - 2))
      exponents_k = -np.arange(dim // 2, dtype=np.float32) / (dim // 2)
      return base[None] ** exponents_k, 1.0
    case RopeKind.LONGROPE:
      long = _length(positions_BT) > scaling.original_max_seq_len
      short_k, long_k = (
        plain_k / np.asarray(factors, np.float32)
        for factors in (scaling.short_factors, scaling.long_factors)
      )
      return jnp.where(long, long_k, short_k), attention_factor(scaling)


def _length(positions_BT: jax.Array) -> jax.Array:
  return jnp.max(positions_BT).astype(jnp.float32) + 1


def attention_factor(scaling: RopeScaling) -> float:
  """What YARN and LONGROPE multiply rotated queries and keys with."""

  if scaling.attention_factor is not None:
    return scaling.attention_factor
  if scaling.kind is RopeKind.LONGROPE:
    if scaling.factor <= 1:
      return 1.0
    return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_max_seq_len))
  factor = scaling.factor
  if scaling.mscale and scaling.mscale_all_dim:
    return sharpening(factor, scaling.mscale) / sharpening(factor, scaling.mscale_all_dim)
  return sharpening(factor, 1.0)


def sharpening(factor: float, mscale: float) -> float:
  """YARN's growth of scores with the stretch of the sequence."""
  return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _llama3(plain_k: np.ndarray, scaling: RopeScaling) -> np.ndarray:
  """Short wavelengths stay, long ones are stretched, those between are a mixture."""
  turns_k = scaling.original_max_seq_len / (2 * np.pi / plain_k)
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  kept_k = np.clip((turns_k - low) / (high - low), 0, 1)
  return ((1 - kept_k) * plain_k / scaling.factor + kept_k * plain_k).astype(np.float32)


def _yarn(plain_k: np.ndarray, theta: float, scaling: RopeScaling) -> np.ndarray:
  """Pairs of beta_fast turns or more stay, of beta_slow or less are stretched; between, a ramp."""
  dim = 2 * plain_k.size

  def pair(turns: float) -> float:
    length = scaling.original_max_seq_len / (turns * 2 * math.pi)
    return dim * math.log(length) / (2 * math.log(theta))

  low, high = pair(scaling.beta_fast), pair(scaling.beta_slow)
  if scaling.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, dim - 1)
  if low == high:
    high += 0.001
  stretched_k = np.clip((np.arange(plain_k.size, dtype=np.float32) - low) / (high - low), 0, 1)
  mixed = plain_k / scaling.factor * stretched_k + plain_k * (1 - stretched_k)
  return mixed.astype(np.float32)
