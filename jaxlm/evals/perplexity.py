"""Loss, perplexity and bits per byte of a text."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.batch import Batch
from jaxlm.models.base import Params
from jaxlm.objectives import LossSum
from jaxlm.sharding import Layout, take, to_device


@dataclasses.dataclass(frozen=True)
class Score:
  """Sums over a text; ratios are taken once, at the end.

  Attributes:
    nll: cross-entropy in nats.
    tokens: targets predicted.
    bytes: UTF-8 bytes that those targets stand for. EOS has none, but its nll counts: knowing
      where a document ends is part of knowing the document.
  """

  nll: float
  tokens: int
  bytes: int

  @property
  def loss(self) -> float:
    """Nats a token."""
    return self.nll / max(self.tokens, 1)

  @property
  def perplexity(self) -> float:
    """exp(loss), a token."""
    return math.exp(min(self.loss, 700.0))

  @property
  def bits_per_byte(self) -> float | None:
    """nll / (ln 2 * bytes), which does not depend on the tokenizer; None where bytes is 0."""
    return self.nll / (math.log(2) * self.bytes) if self.bytes else None

  def to_dict(self) -> dict[str, Any]:
    """All of it as plain JSON values."""
    return {
      "loss": self.loss,
      "perplexity": self.perplexity,
      "bits_per_byte": self.bits_per_byte,
      "nll": self.nll,
      "tokens": self.tokens,
      "bytes": self.bytes,
    }


def make_scoring_step(
  eval_step: Callable[[Params, Batch], LossSum], token_bytes: np.ndarray, layout: Layout
) -> Callable[[Params, Batch], tuple[jax.Array, jax.Array, jax.Array]]:
  """A jitted step(params, batch) -> (nll, tokens, bytes) of the batch, on all hosts.

  Args:
    eval_step: see training.step.make_eval_step.
    token_bytes: int32 (vocab_size,), see tokenizers.base.Tokenizer.token_bytes.
    layout: the mesh.
  """
  table_V1 = jax.device_put(token_bytes.astype(np.int32)[:, None], layout.sharding((None, None)))

  def step(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    sums = eval_step(params, batch)
    bytes_BT = take(table_V1, batch.targets, ("act_batch", "act_seq", None))[..., 0]
    counted_BT = batch.loss_weights > 0
    return sums.nll, jnp.sum(counted_BT), jnp.sum(jnp.where(counted_BT, bytes_BT, 0))

  return jax.jit(step)


def score(
  step: Callable[[Params, Batch], tuple[jax.Array, jax.Array, jax.Array]],
  params: Params,
  batches: Iterable[dict[str, np.ndarray]],
  layout: Layout,
  *,
  use_segments: bool = True,
  count_bytes: bool = True,
) -> Score:
  """The score of all batches, e.g. of data.pipeline.evaluation_batches.

  With masked batches (data.task.MaskedConfig) it is that of the masked tokens, given the others:
  set count_bytes=False, since no code length of the text comes of it.
  """
  nll, tokens, num_bytes = 0.0, 0, 0
  for arrays in batches:
    out = step(params, to_device(arrays, layout, use_segments=use_segments))
    a, b, c = jax.device_get(out)
    nll, tokens, num_bytes = nll + float(a), tokens + int(b), num_bytes + int(c) * count_bytes
  return Score(nll, tokens, num_bytes)
