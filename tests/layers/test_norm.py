"""Normalisation against the formula as it is written in the paper, differentiated by JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlm.layers.norm import LayerNorm

D = 24


def reference(x, scale, bias, eps):
  wide = x.astype(jnp.float32)
  centred = wide - wide.mean(-1, keepdims=True)
  variance = jnp.square(centred).mean(-1, keepdims=True)
  return (centred / jnp.sqrt(variance + eps) * scale[None, None] + bias[None, None]).astype(x.dtype)


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_layer_norm_and_its_gradients(offset):
  """A mean far from 0 shows what one pass over the data costs: 30 standard deviations lose three
  digits of seven. Broken by any term left out of the gradient by hand."""
  layer = LayerNorm(D, eps=1e-5, dtype=jnp.float32, rngs=nnx.Rngs(0))
  keys = jax.random.split(jax.random.key(0), 4)
  x = offset + jax.random.normal(keys[0], (3, 5, D))
  dy = jax.random.normal(keys[1], x.shape)
  scale, bias = jax.random.normal(keys[2], (D,)), jax.random.normal(keys[3], (D,))

  graph, state = nnx.split(layer)

  def found(x, scale, bias):
    nnx.replace_by_pure_dict(state, {"scale": scale, "bias": bias})
    return nnx.merge(graph, state)(x)

  expected, pull = jax.vjp(lambda *args: reference(*args, 1e-5), x, scale, bias)
  y, vjp = jax.vjp(found, x, scale, bias)
  tolerance = 1e-5 if offset == 0 else 1e-3
  for a, b in zip((y, *vjp(dy)), (expected, *pull(dy)), strict=True):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


def test_layer_norm_of_a_constant_row_is_finite():
  """Its variance is 0, or by rounding a little less: the root of that would be nan."""
  layer = LayerNorm(D, eps=1e-12, dtype=jnp.float32, rngs=nnx.Rngs(0))
  x = jnp.full((1, 2, D), 1234.567)
  y, vjp = jax.vjp(layer, x)
  assert np.isfinite(y).all() and np.isfinite(vjp(jnp.ones_like(y))[0]).all()
