"""Token and position tables. B batch, T position, D embed, V vocab."""

from typing import Any

import jax
from flax import nnx

from jaxlm.sharding import Initializer, gather, param, residual_axes, take


class Embed(nnx.Module):
  """A table of vectors by id."""

  def __init__(
    self,
    size: int,
    embed_dim: int,
    *,
    axis: str,
    init: Initializer,
    dtype: Any,
    param_dtype: Any,
    rngs: nnx.Rngs,
  ):
    self.dtype = dtype
    self.table = param(init, rngs.params(), (size, embed_dim), (axis, "embed"), param_dtype)

  def __call__(self, ids_BT: jax.Array) -> jax.Array:
    """The vectors (B, T, D) of ids (B, T).

    Cast after they are taken: the gradients of a frequent id are thousands of summands, which a
    narrow table would not hold (and float32 has a faster atomic sum on GPUs).
    """
    table = gather(self.table[...], self.table[...].dtype)
    return take(table, ids_BT, residual_axes(ids_BT.shape[1])).astype(self.dtype)

  def weight(self) -> jax.Array:
    """The whole table (V, D) in the compute dtype, for use."""
    return gather(self.table[...], self.dtype)
