"""Causal attention of rows whose tokens are spread over the `sequence` mesh axis.

GATHER and RING need zigzag order: with n devices a row is cut into 2n chunks and device i holds
chunks i and 2n-1-i, so that the causal mask leaves every device the same work, 2n+1 blocks
(Llama 3, arXiv:2407.21783, section 3.3.2). `sharding.to_device` lays batches out so. ULYSSES keeps
the natural order.

B batch, T position (a device's or the row's), N kv heads, G query heads per kv head, H = N * G
heads, K head_dim, C chunks, n devices on the axis, P pairs of blocks.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.kernels import blockwise
from jaxlm.kernels.blockwise import Tokens, join_chunks, split_chunks
from jaxlm.kernels.ring import AXIS, ring
from jaxlm.mesh import Context, check_heads, check_tokens
from jaxlm.sharding import active, constrain

# A kernel for one device: kernel(q_BTHK, k_BSNK, v_BSNK, segment_ids_BS, places_T) -> (B, T, H, K),
# where query t stands at places_T[t] among the S keys (None: at t).
Kernel = Callable[..., jax.Array]


def over_sequence(
  q_BTHK: jax.Array,
  k_BTNK: jax.Array,
  v_BTNK: jax.Array,
  segment_ids_BT: jax.Array | None,
  alibi_slopes: np.ndarray | None,
  kernel: Kernel | None = None,
) -> jax.Array:
  """Causal attention as the active layout's `context` says; its `sequence` axis is above 1.

  Args:
    q_BTHK, k_BTNK, v_BTNK: queries, keys and values of the same tokens, in the order of
      layout.zigzag.
    segment_ids_BT: int32, the document of each token, unlike any other's of its row.
    alibi_slopes: float32 (H,), or None.
    kernel: what a device computes its part with; None: the blocks of kernels/blockwise.py. RING
      takes none.

  Returns:
    (B, T, H, K), laid out as the queries.

  Raises:
    UserError: the axis does not divide the tokens, or with ULYSSES the heads.
  """
  layout = active()
  assert layout is not None
  n, model = layout.size(AXIS), layout.size("model")
  T, H = q_BTHK.shape[1:3]
  check_tokens(T, n, layout.context)
  check_heads(H, n, model, layout.context)
  rows = layout.spec(("act_batch", "act_seq"))
  q_axes = ("act_batch", "act_seq", "act_heads", None)
  k_axes = ("act_batch", "act_seq", "act_kv_heads", None)
  q_spec, k_spec = layout.spec(q_axes), layout.spec(k_axes)
  match layout.context:
    case Context.GATHER:
      local = functools.partial(_gathered, n=n, kernel=kernel)
    case Context.RING:
      assert kernel is None
      local = functools.partial(ring, n=n)
    case Context.ULYSSES:
      local = functools.partial(_exchanged, n=n, kernel=kernel)
  heads = q_spec[2] if layout.context is not Context.ULYSSES else ("model", AXIS)
  slopes_H = None if alibi_slopes is None else jnp.asarray(alibi_slopes, jnp.float32)
  if slopes_H is not None:
    slopes_H = jax.sharding.reshard(slopes_H, jax.P(heads))
  out = jax.shard_map(
    local,
    in_specs=(
      q_spec,
      k_spec,
      k_spec,
      None if segment_ids_BT is None else rows,
      None if slopes_H is None else jax.P(heads),
    ),
    out_specs=q_spec,
    check_vma=False,
  )(
    constrain(q_BTHK, *q_axes),
    constrain(k_BTNK, *k_axes),
    constrain(v_BTNK, *k_axes),
    None if segment_ids_BT is None else constrain(segment_ids_BT, "act_batch", "act_seq"),
    slopes_H,
  )
  return out


def _gathered(
  q_BTHK: jax.Array,
  k_BTNK: jax.Array,
  v_BTNK: jax.Array,
  segments_BT: jax.Array | None,
  slopes_H: jax.Array | None,
  *,
  n: int,
  kernel: Kernel | None,
) -> jax.Array:
  """All keys and values on every device: one all-gather, and a reduce-scatter of gradients."""
  i = jax.lax.axis_index(AXIS)
  k, v = _gather_chunks(k_BTNK, n), _gather_chunks(v_BTNK, n)
  segments = None if segments_BT is None else _gather_chunks(segments_BT, n)
  places_CT = blockwise.zigzag_places(i, n, k.shape[2])
  if kernel is not None:
    row = None if segments is None else join_chunks(segments)
    return kernel(q_BTHK, join_chunks(k), join_chunks(v), row, places_CT.reshape(-1))
  return _in_blocks(
    q_BTHK,
    k,
    v,
    Tokens(places_CT, None if segments_BT is None else split_chunks(segments_BT, 2)),
    Tokens(jnp.arange(2 * n * k.shape[2]).reshape(2 * n, -1), segments),
    slopes_H,
    gather_pairs(i, n),
  )


def gather_pairs(i: Any, n: int) -> jax.Array:
  """int32 (2n+1, 2): what device i computes: (own query chunk 0 or 1, key chunk of the row).

  Its chunks are i and 2n-1-i: the first sees i+1 key chunks, the second 2n-i.
  """
  step = jnp.arange(2 * n + 1)
  first = step <= i
  return jnp.stack([jnp.where(first, 0, 1), jnp.where(first, step, step - i - 1)], axis=1)


def _gather_chunks(x_BT: jax.Array, n: int) -> jax.Array:
  """(B, T, ...) of each device -> (2n, B, T / 2, ...), the row's chunks in natural order."""
  both = jax.lax.all_gather(split_chunks(x_BT, 2), AXIS)
  return jnp.concatenate([both[:, 0], both[::-1, 1]])


def _in_blocks(
  q_BTHK: jax.Array,
  k_RBSNK: jax.Array,
  v_RBSNK: jax.Array,
  queries: Tokens,
  keys: Tokens,
  slopes_H: jax.Array | None,
  pairs_P2: jax.Array,
) -> jax.Array:
  q, slopes = blockwise.by_groups(q_BTHK, slopes_H, queries.places.shape[0], k_RBSNK.shape[3])
  o = blockwise.blockwise(q, k_RBSNK, v_RBSNK, queries, keys, slopes, pairs_P2)
  return join_chunks(o).reshape(q_BTHK.shape)


def _exchanged(
  q_BTHK: jax.Array,
  k_BTNK: jax.Array,
  v_BTNK: jax.Array,
  segments_BT: jax.Array | None,
  slopes_H: jax.Array | None,
  *,
  n: int,
  kernel: Kernel | None,
) -> jax.Array:
  """Tokens for heads and back (arXiv:2309.14509): each device has whole rows of H / n heads."""
  # Fewer kv heads than devices: each is repeated until every device gets one that it needs.
  N = k_BTNK.shape[2]
  repeats = math.lcm(N, n) // N
  if repeats > 1:
    k_BTNK, v_BTNK = (jnp.repeat(x, repeats, axis=2) for x in (k_BTNK, v_BTNK))
  exchange = functools.partial(jax.lax.all_to_all, axis_name=AXIS, tiled=True)
  q, k, v = (exchange(x, split_axis=2, concat_axis=1) for x in (q_BTHK, k_BTNK, v_BTNK))
  if segments_BT is not None:
    segments_BT = jax.lax.all_gather(segments_BT, AXIS, axis=1, tiled=True)
  if kernel is not None:
    o = kernel(q, k, v, segments_BT, None)
  else:
    o = _whole_rows(q, k, v, segments_BT, slopes_H)
  return exchange(o, split_axis=1, concat_axis=2)


def _whole_rows(
  q_BTHK: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None, slopes: Any
) -> jax.Array:
  """Causal attention of whole rows, in chunks of at most blockwise.MAX_KEYS tokens."""
  T = q_BTHK.shape[1]
  chunks = blockwise.num_parts(T)
  rows = None if segments is None else split_chunks(segments, chunks)
  tokens = Tokens(jnp.arange(T).reshape(chunks, -1), rows)
  pairs = np.array([(c, r) for c in range(chunks) for r in range(c + 1)], np.int32)
  k, v = split_chunks(k, chunks), split_chunks(v, chunks)
  return _in_blocks(q_BTHK, k, v, tokens, tokens, slopes, jnp.asarray(pairs))
