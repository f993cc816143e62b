"""Training objectives. B batch, T position, V vocab."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxlm.batch import Batch
from jaxlm.sharding import constrain


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossSum:
  """Sums over targets, so that shards, microbatches and hosts add up exactly.

  Attributes:
    total: float32 (), what is minimised, summed.
    nll: float32 (), the cross-entropy alone in nats, summed: what perplexity is made of.
    weight: float32 (), the sum of the targets' weights.
  """

  total: jax.Array
  nll: jax.Array
  weight: jax.Array


def next_token_loss(
  logits_BTV: jax.Array,
  batch: Batch,
  *,
  vocab_size: int,
  z_loss: float = 0.0,
  label_smoothing: float = 0.0,
) -> LossSum:
  """Cross-entropy of the targets, summed with their weights, in float32.

  Args:
    logits_BTV: V may be padded beyond vocab_size.
    batch: targets and weights.
    vocab_size: the number of ids that exist.
    z_loss: weight of the mean of log(Z)^2, which keeps logits from drifting (PaLM,
      arXiv:2204.02311, uses 1e-4).
    label_smoothing: the share of each target spread evenly over the vocabulary
      (arXiv:1512.00567).
  """
  logits_BTV = logits_BTV.astype(jnp.float32)
  log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
  # One-hot rather than an index: with the vocabulary sharded it stays local and is summed after.
  hot_BTV = jax.nn.one_hot(batch.targets, logits_BTV.shape[-1], dtype=logits_BTV.dtype)
  hot_BTV = constrain(hot_BTV, "act_batch", "act_seq", "act_vocab")
  target_BT = jnp.sum(logits_BTV * hot_BTV, axis=-1)
  nll_BT = log_z_BT - target_BT
  total_BT = nll_BT
  if label_smoothing:
    exists_V = constrain(jnp.arange(logits_BTV.shape[-1]) < vocab_size, "act_vocab")
    mean_BT = jnp.sum(jnp.where(exists_V[None, None], logits_BTV, 0), axis=-1) / vocab_size
    total_BT += label_smoothing * (target_BT - mean_BT)
  if z_loss:
    total_BT += z_loss * jnp.square(log_z_BT)
  w_BT = batch.loss_weights
  return LossSum(jnp.sum(total_BT * w_BT), jnp.sum(nll_BT * w_BT), jnp.sum(w_BT))
