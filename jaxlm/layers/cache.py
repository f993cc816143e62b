"""The key-value cache: an argument and a result of the model, never its state."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxlm.sharding import spec


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
  """Keys and values of the tokens so far, of every layer. L layers, B batch, S slots, N kv heads.

  Attributes:
    k_LBSNK, v_LBSNK: in the compute dtype. The slot of a token is its position.
  """

  k_LBSNK: jax.Array
  v_LBSNK: jax.Array

  @classmethod
  def zeros(
    cls, num_layers: int, batch: int, slots: int, kv_heads: int, head_dim: int, dtype
  ) -> "Cache":
    """An empty cache."""
    shape = (num_layers, batch, slots, kv_heads, head_dim)
    where = spec(("layers", "act_batch", "act_kv_seq", "act_kv_heads", None))
    return cls(
      jnp.zeros(shape, dtype, out_sharding=where), jnp.zeros(shape, dtype, out_sharding=where)
    )
