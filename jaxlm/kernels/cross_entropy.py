"""The output layer and the softmax over the vocabulary as one operation.

B batch, T position, D embed, V padded vocabulary. For a large vocabulary the logits are the
largest array of a step: they are kept in the compute dtype, and what the backward pass makes of
them too, so that its two matrix products run as fast as the others. All sums over the vocabulary
are float32.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.sharding import constrain, einsum

LOGITS = ("act_batch", "act_seq", "act_vocab")

# The logit of the ids that only pad the table: no probability, and finite in bfloat16.
NO_SUCH_ID = -1e9


class TokenScores(NamedTuple):
  """What losses are made of, float32 (B, T) each.

  log_z: log of the sum of exp(logits). target: the target's logit. mean: the mean logit over the
  ids that exist.
  """

  log_z: jax.Array
  target: jax.Array
  mean: jax.Array


def logits(x_BTD: jax.Array, table_VD: jax.Array, vocab_size: int) -> jax.Array:
  """x table^T, (B, T, V) in the dtype of x; NO_SUCH_ID from vocab_size on."""
  return _mask(_product(x_BTD, table_VD), vocab_size)


def _product(x_BTD: jax.Array, table_VD: jax.Array) -> jax.Array:
  return einsum("BTD,VD->BTV", x_BTD, table_VD, out=LOGITS)


def _mask(logits_BTV: jax.Array, vocab_size: int) -> jax.Array:
  size = logits_BTV.shape[-1]
  return (
    logits_BTV if vocab_size == size else jnp.where(_ids(size) < vocab_size, logits_BTV, NO_SUCH_ID)
  )


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def token_scores(
  x_BTD: jax.Array,
  table_VD: jax.Array,
  targets_BT: jax.Array,
  vocab_size: int,
  softcap: float | None = None,
) -> TokenScores:
  """The scores of each position's logits.

  Args:
    x_BTD: the last hidden state, compute dtype.
    table_VD: the output table in the same dtype, its rows padded beyond vocab_size.
    targets_BT: int32 ids below vocab_size.
    vocab_size: the number of ids that exist.
    softcap: logits become cap tanh(logit / cap) (Gemma 2, arXiv:2408.00118); None: no.
  """
  return _scores(_product(x_BTD, table_VD), targets_BT, vocab_size, softcap)


def _ids(size: int) -> jax.Array:
  return constrain(jnp.arange(size)[None, None], None, None, "act_vocab")


def _wide(logits_BTV: jax.Array, vocab_size: int, softcap: float | None) -> jax.Array:
  """The logits as they count, float32."""
  wide_BTV = logits_BTV.astype(jnp.float32)
  if softcap is not None:
    wide_BTV = softcap * jnp.tanh(wide_BTV / softcap)
  return _mask(wide_BTV, vocab_size)


def _scores(
  logits_BTV: jax.Array, targets_BT: jax.Array, vocab_size: int, softcap: float | None
) -> TokenScores:
  # Mask and cap are part of the sums, so that only the bare product is kept for the backward pass.
  wide_BTV = _wide(logits_BTV, vocab_size, softcap)
  ids_11V = _ids(logits_BTV.shape[-1])
  # A comparison rather than an index: with the vocabulary sharded it stays local, and is never
  # written to memory.
  hit_BTV = ids_11V == targets_BT[..., None]
  return TokenScores(
    log_z=_log_z(logits_BTV, vocab_size, softcap),
    target=jnp.sum(jnp.where(hit_BTV, wide_BTV, 0), axis=-1),
    mean=jnp.sum(jnp.where(ids_11V < vocab_size, wide_BTV, 0), axis=-1) / vocab_size,
  )


def _log_z(logits_BTV: jax.Array, vocab_size: int, softcap: float | None) -> jax.Array:
  """log of the sum of exp(logits), float32 (B, T).

  Without the largest taken out first, which would read the logits once more, unless a sum over- or
  underflows: float32 holds exp of -69 to 88, and logits mostly lie well inside.
  """
  sum_BT = jnp.sum(jnp.exp(_wide(logits_BTV, vocab_size, softcap)), axis=-1)
  return jax.lax.cond(
    jnp.all((sum_BT > 1e-30) & (sum_BT < jnp.inf)),
    lambda: jnp.log(sum_BT),
    lambda: jax.nn.logsumexp(_wide(logits_BTV, vocab_size, softcap), axis=-1),
  )


def _forward(
  x_BTD: jax.Array,
  table_VD: jax.Array,
  targets_BT: jax.Array,
  vocab_size: int,
  softcap: float | None,
) -> tuple[TokenScores, tuple[jax.Array, ...]]:
  logits_BTV = _product(x_BTD, table_VD)
  scores = _scores(logits_BTV, targets_BT, vocab_size, softcap)
  return scores, (x_BTD, table_VD, targets_BT, logits_BTV, scores.log_z)


def _backward(
  vocab_size: int, softcap: float | None, kept: tuple[jax.Array, ...], g: TokenScores
) -> tuple[jax.Array, jax.Array, None]:
  x_BTD, table_VD, targets_BT, logits_BTV, log_z_BT = kept
  ids_11V = _ids(logits_BTV.shape[-1])
  wide_BTV = _wide(logits_BTV, vocab_size, softcap)
  p_BTV = jnp.exp(wide_BTV - log_z_BT[..., None])
  d_BTV = g.log_z[..., None] * p_BTV
  d_BTV += jnp.where(ids_11V == targets_BT[..., None], g.target[..., None], 0)
  d_BTV += jnp.where(ids_11V < vocab_size, g.mean[..., None] / vocab_size, 0)
  if softcap is not None:
    d_BTV *= 1 - jnp.square(jnp.tanh(logits_BTV.astype(jnp.float32) / softcap))
  # In the compute dtype: a float32 factor would make both products several times slower.
  d_BTV = d_BTV.astype(x_BTD.dtype)
  d_BTD = einsum("BTV,VD->BTD", d_BTV, table_VD, out=("act_batch", "act_seq", "act_embed"))
  # Transposed, for CPUs: there the left factor is copied, which had better be the small one.
  d_DV = einsum("BTD,BTV->DV", x_BTD, d_BTV, out=(None, "vocab"))
  return d_BTD, d_DV.T, None


token_scores.defvjp(_forward, _backward)
