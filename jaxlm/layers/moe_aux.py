"""What a layer of experts says of its routing. E experts."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class MoeAux(NamedTuple):
  """What a layer says of its routing: float32 scalars, over the tokens of all devices.

  Attributes:
    load_balance: E Σ_e f_e p_e (Fedus et al. 2021, arXiv:2101.03961, without their factor): f the
      experts' shares of the choices, p their mean probabilities. 1 when even, E at worst.
    z_loss: mean squared logsumexp of the router's logits (Zoph et al. 2022, arXiv:2202.08906).
    load_entropy: entropy of f in units of log E: 1 when even, 0 when one expert gets all.
    dropped: the share of choices that found their expert full.
  """

  load_balance: jax.Array
  z_loss: jax.Array
  load_entropy: jax.Array
  dropped: jax.Array


class Sums(NamedTuple):
  """One device's sums over its tokens, with a leading dim of 1 that is spread over the devices."""

  choices_1E: jax.Array
  probs_1E: jax.Array
  z_1: jax.Array
  dropped_1: jax.Array


def overload(bias_E: jax.Array, sums: Sums) -> jax.Array:
  """0, with the sign of each expert's overload as its gradient by the bias.

  The choice of experts has no gradient of its own. An optimizer that goes by signs (AdamW, Lion)
  then moves the bias against the overload, as DeepSeek-V3 does by hand (arXiv:2408.15664), at the
  learning rate instead of a rate of its own.
  """
  choices_E = jnp.sum(sums.choices_1E, axis=0)
  pull = jnp.sum(bias_E * jax.lax.stop_gradient(jnp.sign(choices_E - jnp.mean(choices_E))))
  return pull - jax.lax.stop_gradient(pull)


def summary(sums: Sums, num_tokens: int) -> MoeAux:
  choices_E, probs_E = jnp.sum(sums.choices_1E, axis=0), jnp.sum(sums.probs_1E, axis=0)
  E, total = choices_E.shape[0], jnp.sum(choices_E)
  load_E = choices_E / total
  entropy = -jnp.sum(jax.scipy.special.xlogy(load_E, load_E))
  return MoeAux(
    load_balance=E * jnp.sum(load_E * probs_E / num_tokens),
    z_loss=jnp.sum(sums.z_1) / num_tokens,
    load_entropy=entropy / math.log(max(E, 2)),
    dropped=jnp.sum(sums.dropped_1) / total,
  )
