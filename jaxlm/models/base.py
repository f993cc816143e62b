"""A model as pure functions of its parameters, which are nested dicts of plain arrays."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlm.sharding import logical_axes

Params = dict[str, Any]


class ModelDef:
  """What a Flax NNX module computes, without its parameters.

  Parameters travel as nested dicts of arrays, so that neither checkpoints nor optimizers know of
  Flax. Build and use it under an active Layout for sharded parameters.

  Args:
    make: makes the module, which has `features` and `output_table` beside its call for logits.
    compute_dtype: what matrices are multiplied in; None: float32.
  """

  def __init__(self, make: Callable[[nnx.Rngs], nnx.Module], compute_dtype: Any = None):
    self._make = make
    self.compute_dtype = jnp.dtype(jnp.float32 if compute_dtype is None else compute_dtype)
    abstract = nnx.eval_shape(lambda: make(nnx.Rngs(params=jax.random.key(0))))
    self._graphdef, self._state = nnx.split(abstract, nnx.Param)

  def init(self, key: jax.Array) -> Params:
    """New parameters. Under jit on a mesh, each device makes only its own shards."""
    return nnx.to_pure_dict(nnx.state(self._make(nnx.Rngs(params=key)), nnx.Param))

  def bind(self, params: Params) -> Any:
    """The module with these parameters in place."""
    state = jax.tree.map(lambda x: x, self._state)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(self._graphdef, state)

  def logical_axes(self) -> dict[str, Any]:
    """For each parameter, the tuple of its dims' logical names (None without a layout)."""
    return logical_axes(self._state)
