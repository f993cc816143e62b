"""From logits to the next token. B batch, V vocab."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxlm.errors import UserError

_COLD = 1e-20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """How a token is chosen.

  Attributes:
    temperature: divides the logits; 0 (and what is below 1e-20, by which float32 can't divide
      them) takes the likeliest token.
    top_k: only the k likeliest count, of equals the first ones; 0: all; 1 is the likeliest token
      (Fan et al. 2018, arXiv:1805.04833).
    top_p: only the fewest likeliest that together reach this probability count; 1: all (nucleus
      sampling, Holtzman et al. 2019, arXiv:1904.09751). Applied after top_k.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0

  def __post_init__(self) -> None:
    if self.temperature < 0:
      raise UserError(f"temperature={self.temperature}: must not be negative")
    if self.top_k < 0:
      raise UserError(f"top_k={self.top_k}: must not be negative; 0 turns it off")
    if not 0 < self.top_p <= 1:
      raise UserError(f"top_p={self.top_p}: must be above 0 and at most 1")


def sample(logits_BV: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
  """int32 (B,), a token for each row; the rows' draws are independent."""
  logits_BV = logits_BV.astype(jnp.float32)
  if sampling.temperature < _COLD or sampling.top_k == 1:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  logits_BV = logits_BV / sampling.temperature
  if sampling.top_k:
    k = min(sampling.top_k, logits_BV.shape[-1])
    # By place and not by value: in bfloat16 several are as likely as the k-th.
    values_BK, places_BK = jax.lax.top_k(logits_BV, k)
    rows_B1 = jnp.arange(logits_BV.shape[0])[:, None]
    logits_BV = jnp.full_like(logits_BV, -jnp.inf).at[rows_B1, places_BK].set(values_BK)
  if sampling.top_p < 1:
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    p_BV = jax.nn.softmax(sorted_BV, axis=-1)
    # A token stays if the likelier ones together have not reached top_p yet: the first always does.
    before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV
    least_B1 = jnp.min(
      jnp.where(before_BV < sampling.top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True
    )
    logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
  return jax.random.categorical(key, logits_BV, axis=-1).astype(jnp.int32)
