"""Normalisation layers. B batch, T position, D embed; computed in float32."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlm.sharding import constant, param


class RMSNorm(nnx.Module):
  """x / rms(x) * scale over the last dim (Zhang & Sennrich 2019, arXiv:1910.07467)."""

  def __init__(self, dim: int, *, eps: float, dtype: Any, rngs: nnx.Rngs):
    self.eps = eps
    self.scale = param(constant(1.0), rngs.params(), (dim,), ("norm",), dtype)

  def __call__(self, x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
    return (wide * inverse * _last(self.scale[...], x.ndim)).astype(x.dtype)


class LayerNorm(nnx.Module):
  """(x - mean(x)) / std(x) * scale + bias over the last dim (Ba et al. 2016, arXiv:1607.06450)."""

  def __init__(self, dim: int, *, eps: float, dtype: Any, rngs: nnx.Rngs):
    self.eps = eps
    self.scale = param(constant(1.0), rngs.params(), (dim,), ("norm",), dtype)
    self.bias = param(constant(0.0), rngs.params(), (dim,), ("norm",), dtype)

  def __call__(self, x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    wide -= jnp.mean(wide, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
    scale, bias = _last(self.scale[...], x.ndim), _last(self.bias[...], x.ndim)
    return (wide * inverse * scale + bias).astype(x.dtype)


def _last(vector: jax.Array, ndim: int) -> jax.Array:
  """A vector as float32 with leading dims of 1 (rank promotion is an error in our tests)."""
  return vector.astype(jnp.float32).reshape((1,) * (ndim - 1) + vector.shape)
