"""Position encodings. B batch, T position, H heads, K head_dim."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def rope(x_BTHK: jax.Array, positions_BT: jax.Array, theta: float) -> jax.Array:
  """Rotary embedding (Su et al. 2021, arXiv:2104.09864), first and second halves paired."""
  return rotate(x_BTHK, positions_BT, frequencies(theta, x_BTHK.shape[-1]))


def frequencies(theta: float, dim: int) -> np.ndarray:
  """float32 (dim / 2,), radians a position of each pair of dims."""
  half = dim // 2
  return theta ** (-np.arange(half, dtype=np.float32) / half)


def rotate(
  x_BTHK: jax.Array, positions_BT: jax.Array, frequencies_k: Any, factor: float = 1.0
) -> jax.Array:
  """The first 2 k dims rotated by position times frequency, times factor; the rest as it is.

  Angles are float32: in bfloat16, positions beyond 256 would fall together.
  """
  half = frequencies_k.shape[-1]
  angles_BT1k = positions_BT[:, :, None, None].astype(jnp.float32) * frequencies_k[None, None, None]
  sin, cos = jnp.sin(angles_BT1k), jnp.cos(angles_BT1k)
  if factor != 1:
    sin, cos = sin * factor, cos * factor
  wide = x_BTHK.astype(jnp.float32)
  first, second = wide[..., :half], wide[..., half : 2 * half]
  parts = [first * cos - second * sin, second * cos + first * sin]
  if 2 * half < x_BTHK.shape[-1]:
    parts.append(wide[..., 2 * half :])
  return jnp.concatenate(parts, axis=-1).astype(x_BTHK.dtype)


def alibi_slopes(num_heads: int) -> np.ndarray:
  """float32 (num_heads,), the slope of each head (Press et al. 2021, arXiv:2108.12409).

  For a number of heads that is no power of two: the slopes of the next lower power, then every
  other slope of the next higher one, as in the authors' code.
  """

  def geometric(n: int) -> list[float]:
    start = 2.0 ** (-8.0 / n)
    return [start ** (i + 1) for i in range(n)]

  lower = 2 ** math.floor(math.log2(num_heads))
  slopes = geometric(lower)
  if lower < num_heads:
    slopes += geometric(2 * lower)[0::2][: num_heads - lower]
  return np.asarray(slopes, np.float32)
