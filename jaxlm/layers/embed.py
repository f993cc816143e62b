"""Token and position tables. B batch, T position, D embed, V vocab."""

from typing import Any

import jax
from flax import nnx

from jaxlm.sharding import Initializer, einsum, gather, param, take


class Embed(nnx.Module):
  """A table of vectors by id; `logits` reads it the other way round."""

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
    """The vectors (B, T, D) of ids (B, T)."""
    table_VD = gather(self.table[...], self.dtype)
    return take(table_VD, ids_BT, ("act_batch", "act_seq", "act_embed"))

  def logits(self, x_BTD: jax.Array) -> jax.Array:
    """x table^T, (B, T, V)."""
    table_VD = gather(self.table[...], self.dtype)
    return einsum("BTD,VD->BTV", x_BTD, table_VD, out=("act_batch", "act_seq", "act_vocab"))
