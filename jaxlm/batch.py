"""The batch that the model trains on."""

import dataclasses

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
  """B sequences of T tokens.

  Attributes:
    inputs: int32 (B, T), token ids.
    targets: int32 (B, T), the id to predict at each input.
    loss_weights: float32 (B, T), 0 where a target does not count (padding).
    segment_ids: int32 (B, T), which document of its row each input belongs to, from 1; 0 is
      padding. Attention never crosses them. None: every row is one document.
    positions: int32 (B, T), the place of each input in its document, from 0.
    prefix: int32 (B, T), 1 where an input is seen by all of its document (prefix-LM); None:
      attention is the model's own.
  """

  inputs: jax.Array
  targets: jax.Array
  loss_weights: jax.Array
  segment_ids: jax.Array | None
  positions: jax.Array
  prefix: jax.Array | None = None
