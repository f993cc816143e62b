"""Dropout. B batch, T position, D embed."""

import jax
import jax.numpy as jnp

from jaxlm.sharding import residual_axes, spec


def drop(x_BTD: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Dropout of the residual stream (Srivastava et al. 2014); the same mask on every mesh.

  key None: nothing is dropped.
  """
  if key is None or rate == 0:
    return x_BTD
  where = spec(residual_axes(x_BTD.shape[1]))
  keep = jax.random.bernoulli(key, 1 - rate, x_BTD.shape, out_sharding=where)
  return jnp.where(keep, x_BTD / (1 - rate), 0).astype(x_BTD.dtype)
