"""Tables of vectors."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlm import tree
from jaxlm.layers.embed import Embed
from jaxlm.sharding import normal


def test_gradients_of_a_frequent_id_are_summed_in_the_tables_own_dtype():
  """In bfloat16 a sum of ones stops at 256. Broken by a table cast before rows are taken, in the
  layer or by the cast of the weights once a step."""
  table = Embed(
    4,
    8,
    axis="vocab",
    init=normal(1.0),
    dtype=jnp.bfloat16,
    param_dtype=jnp.float32,
    rngs=nnx.Rngs(0),
  )
  ids = jnp.zeros((2, 500), jnp.int32)
  graph, state = nnx.split(table)

  def total(params):
    narrow = tree.cast_matrices({"embed": params}, jnp.bfloat16)
    nnx.replace_by_pure_dict(state, narrow["embed"])
    out = nnx.merge(graph, state)(ids)
    assert out.dtype == jnp.bfloat16
    return out.astype(jnp.float32).sum()

  grads = jax.grad(total)(nnx.to_pure_dict(state))
  np.testing.assert_array_equal(grads["table"][0], 1000.0)


def test_matrices_are_cast_and_tables_are_not():
  params = {
    "embed": {"table": jnp.ones((2, 2))},
    "position_embed": {"table": jnp.ones((2, 2))},
    "unembed": {"table": jnp.ones((2, 2))},
    "norm": {"scale": jnp.ones(2)},
  }
  dtypes = jax.tree.map(lambda x: str(x.dtype), tree.cast_matrices(params, jnp.bfloat16))
  assert dtypes == {
    "embed": {"table": "float32"},
    "position_embed": {"table": "float32"},
    "unembed": {"table": "bfloat16"},
    "norm": {"scale": "float32"},
  }
