"""Training objectives. B batch, T position, D embed, V vocab."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm import sharding
from jaxlm.batch import Batch
from jaxlm.kernels.cross_entropy import token_scores


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossSum:
  """Sums over targets, so that shards, microbatches and hosts add up exactly.

  Attributes:
    total: float32 (), what is minimised, summed.
    nll: float32 (), the cross-entropy alone in nats, summed: what perplexity is made of.
    weight: float32 (), the sum of the targets' weights.
    router: of a model with experts: what its routers say (layers.moe_aux.MoeAux), times the weight.
  """

  total: jax.Array
  nll: jax.Array
  weight: jax.Array
  router: Any = None


@dataclasses.dataclass(frozen=True)
class NextToken:
  """Cross-entropy of the targets, summed with their weights, in float32.

  Attributes:
    vocab_size: the number of ids that exist; the table may be padded beyond it.
    z_loss: weight of the mean of log(Z)^2, which keeps logits from drifting (PaLM,
      arXiv:2204.02311, uses 1e-4).
    label_smoothing: the share of each target spread evenly over the vocabulary
      (arXiv:1512.00567).
    softcap: of the logits (Gemma 2, arXiv:2408.00118); None: no.
    load_balance, router_z_loss: weights of a router's losses, for models with experts.
    chunks: the logits are made in so many parts, one after another, along T (which it must
      divide): a fraction of their memory, for sums that are rounded in another order.
  """

  vocab_size: int
  z_loss: float = 0.0
  label_smoothing: float = 0.0
  softcap: float | None = None
  load_balance: float = 0.0
  router_z_loss: float = 0.0
  chunks: int = 1

  def __call__(
    self, x_BTD: jax.Array, table_VD: jax.Array, batch: Batch, router: Any = None
  ) -> LossSum:
    """The sums for the last hidden states and the output table, both in the compute dtype.

    Args:
      router: layers.moe_aux.MoeAux of a model with experts.

    Differentiate `total`: with chunks, nothing flows through `nll`.
    """
    targets, weights = batch.targets, batch.loss_weights
    if self.chunks == 1:
      total, nll = self._sums(x_BTD, table_VD, targets, weights)
    else:
      total, nll = _sums_in_chunks(self, x_BTD, table_VD, targets, weights)
    weight = jnp.sum(weights)
    if router is not None:
      total += weight * self.load_balance * router.load_balance
      total += weight * self.router_z_loss * router.z_loss
      router = jax.tree.map(lambda x: weight * jax.lax.stop_gradient(x), router)
    return LossSum(total, nll, weight, router)

  def _sums(
    self, x_BTD: jax.Array, table_VD: jax.Array, targets_BT: jax.Array, w_BT: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    scores = token_scores(x_BTD, table_VD, targets_BT, self.vocab_size, self.softcap)
    nll_BT = total_BT = scores.log_z - scores.target
    if self.label_smoothing:
      total_BT += self.label_smoothing * (scores.target - scores.mean)
    if self.z_loss:
      total_BT += self.z_loss * jnp.square(scores.log_z)
    return jnp.sum(total_BT * w_BT), jnp.sum(nll_BT * w_BT)


# The gradients are made beside the sums, chunk by chunk, so that no logits are kept and none are
# computed twice (as in Liger Kernel, arXiv:2410.10989).


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums_in_chunks(
  loss: NextToken, x_BTD: jax.Array, table_VD: jax.Array, targets_BT: jax.Array, w_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
  def add(sums: Any, part: Any) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, sums, loss._sums(part[0], table_VD, *part[1:])), None

  zero = jnp.zeros((), jnp.float32)
  parts = _split((x_BTD, targets_BT, w_BT), loss.chunks)
  return jax.lax.scan(add, (zero, zero), parts)[0]


def _chunks_forward(
  loss: NextToken, x_BTD: jax.Array, table_VD: jax.Array, targets_BT: jax.Array, w_BT: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], Any]:
  one, zero = jnp.ones((), jnp.float32), jnp.zeros((), jnp.float32)

  def add(carry: Any, part: Any) -> tuple[Any, jax.Array]:
    (total, nll), d_VD = carry
    x, targets, w = part
    sums, pull = jax.vjp(lambda x, table: loss._sums(x, table, targets, w), x, table_VD)
    dx, dtable = pull((one, zero))
    return ((total + sums[0], nll + sums[1]), d_VD + dtable.astype(jnp.float32)), dx

  d_VD = jnp.zeros_like(table_VD, jnp.float32)
  parts = _split((x_BTD, targets_BT, w_BT), loss.chunks)
  (sums, d_VD), dx_parts = jax.lax.scan(add, ((zero, zero), d_VD), parts)
  axes = ("act_batch", "act_seq", "act_embed")
  d_BTD = sharding.reshape(jnp.moveaxis(dx_parts, 0, 2), x_BTD.shape, *axes)
  return sums, (d_BTD, d_VD.astype(table_VD.dtype))


def _chunks_backward(loss: NextToken, kept: Any, g: Any) -> tuple[Any, ...]:
  d_BTD, d_VD = kept
  scale = g[0]
  return (d_BTD * scale).astype(d_BTD.dtype), (d_VD * scale).astype(d_VD.dtype), None, None


_sums_in_chunks.defvjp(_chunks_forward, _chunks_backward)


def _split(arrays: tuple[jax.Array, ...], chunks: int) -> tuple[jax.Array, ...]:
  """(B, T, ...) -> (chunks, B, T / chunks, ...): chunk i takes the positions i, i + chunks, …, so
  that a sharded T stays where it is."""

  def split(x: jax.Array) -> jax.Array:
    B, T, *rest = x.shape
    axes = ("act_batch", "act_seq", None, *("act_embed" for _ in rest))
    return jnp.moveaxis(sharding.reshape(x, (B, T // chunks, chunks, *rest), *axes), 2, 0)

  return tuple(split(x) for x in arrays)
