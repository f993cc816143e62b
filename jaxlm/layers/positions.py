"""Position encodings. B batch, T position, H heads, K head_dim."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def rope(x_BTHK: jax.Array, positions_BT: jax.Array, theta: float) -> jax.Array:
  """Rotary embedding (Su et al. 2021, arXiv:2104.09864), first and second halves paired.

  Angles are float32: in bfloat16, positions beyond 256 would fall together.
  """
  half = x_BTHK.shape[-1] // 2
  frequencies = theta ** (-np.arange(half, dtype=np.float32) / half)
  angles_BT1k = positions_BT[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None]
  sin, cos = jnp.sin(angles_BT1k), jnp.cos(angles_BT1k)
  first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return rotated.astype(x_BTHK.dtype)


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
