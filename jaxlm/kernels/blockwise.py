"""Attention block by block (FlashAttention's recurrences, arXiv:2205.14135), in plain JAX.

What attention over the sequence axis is made of. Queries lie in C chunks of T tokens, keys in R
chunks of S; a list of P pairs (query chunk, key chunk) says which of the C x R blocks are computed,
one after another. No more than one block of scores exists at a time, in the forward or in the
backward pass, and a pair that is not listed costs nothing.

B batch, N kv heads, G query heads per kv head, K head_dim. Knows nothing of meshes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

# As in kernels/attention.py: vanishes in the softmax, yet a difference of two is no NaN.
MASKED = -1e30

# Keys of a block of scores, at most: longer chunks are taken in parts.
MAX_KEYS = 1024


class Tokens(NamedTuple):
  """What says which keys a query sees: those of its document up to its own place in the row.

  Attributes:
    places: int32 (chunks, tokens), the tokens' places in the row.
    segments: int32 (chunks, B, tokens), their documents; None: one a row.
  """

  places: jax.Array
  segments: jax.Array | None


class Running(NamedTuple):
  """Softmax in the making, float32: weighted values, the largest score so far, the weights' sum."""

  o_CBNGTK: jax.Array
  max_CBNGT: jax.Array
  sum_CBNGT: jax.Array


def split_chunks(x: jax.Array, chunks: int) -> jax.Array:
  """(B, tokens, ...) -> (chunks, B, tokens / chunks, ...)."""
  return jnp.moveaxis(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0)


def join_chunks(x: jax.Array) -> jax.Array:
  """(chunks, B, tokens, ...) -> (B, chunks * tokens, ...): the inverse of split_chunks."""
  return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])


def by_groups(
  q_BTHK: jax.Array, slopes_H: jax.Array | None, chunks: int, N: int
) -> tuple[jax.Array, jax.Array | None]:
  """Queries in chunks, and slopes, with H as (N, G)."""
  B, T, _, K = q_BTHK.shape
  slopes_NG = None if slopes_H is None else slopes_H.reshape(N, -1)
  return split_chunks(q_BTHK.reshape(B, T, N, -1, K), chunks), slopes_NG


def zigzag_places(i: Any, n: int, T: int) -> jax.Array:
  """int32 (2, T), the places in the row of the tokens of device i, in chunks of T."""
  return jnp.stack([i, 2 * n - 1 - i])[:, None] * T + jnp.arange(T)[None]


def num_parts(tokens: int) -> int:
  """Into how few equal parts of at most MAX_KEYS tokens can be cut."""
  return next(n for n in range(-(-tokens // MAX_KEYS), tokens + 1) if tokens % n == 0)


def start(q_CBTNGK: jax.Array) -> Running:
  """Nothing seen yet."""
  C, B, T, N, G, K = q_CBTNGK.shape
  rows = (C, B, N, G, T)
  zero = jnp.zeros(rows, jnp.float32)
  return Running(jnp.zeros((*rows, K), jnp.float32), jnp.full(rows, MASKED, jnp.float32), zero)


def attend(
  state: Running,
  q_CBTNGK: jax.Array,
  k_RBSNK: jax.Array,
  v_RBSNK: jax.Array,
  queries: Tokens,
  keys: Tokens,
  slopes_NG: jax.Array | None,
  pairs_P2: jax.Array,
) -> Running:
  """The state after these pairs. slopes_NG: float32, ALiBi's (arXiv:2108.12409)."""
  parts = num_parts(k_RBSNK.shape[2])
  size = k_RBSNK.shape[2] // parts

  def step(state: Running, where: jax.Array) -> tuple[Running, None]:
    c, r, first = where[0], where[1], where[2] * size
    k_BSNK, v_BSNK = _cut(k_RBSNK, r, first, size), _cut(v_RBSNK, r, first, size)
    q_BTNGK = _chunk(q_CBTNGK, c)
    s_BNGTS = _scores(
      q_BTNGK, k_BSNK, _tokens(queries, c), _tokens(keys, r, first, size), slopes_NG
    )
    o, old_max, total = (_chunk(x, c) for x in state)
    # A query that sees nothing in its first blocks sums weights of 1 there; they are scaled away,
    # by exp(MASKED - max) = 0, as soon as it sees a key: itself at the latest.
    new_max = jnp.maximum(old_max, s_BNGTS.max(-1))
    p_BNGTS = jnp.exp(s_BNGTS - new_max[..., None])
    scale = jnp.exp(old_max - new_max)
    o = o * scale[..., None] + jnp.einsum(
      "BNGTS,BSNK->BNGTK", p_BNGTS.astype(v_BSNK.dtype), v_BSNK, preferred_element_type=jnp.float32
    )
    total = total * scale + p_BNGTS.sum(-1)
    new = Running(o, new_max, total)
    return Running(*(_put(x, y, c) for x, y in zip(state, new))), None

  return jax.lax.scan(step, state, _steps(pairs_P2, parts))[0]


def finish(state: Running, dtype: Any) -> tuple[jax.Array, jax.Array]:
  """(C, B, T, N, G, K) in dtype, and the scores' log-sums, float32 (C, B, N, G, T).

  Both carry the name "context" for jax.checkpoint's policies: where it is saved, the forward pass
  does not run again for the backward pass.
  """
  o_CBNGTK = state.o_CBNGTK / state.sum_CBNGT[..., None]
  o_CBTNGK = jnp.moveaxis(o_CBNGTK, 4, 2).astype(dtype)
  lse_CBNGT = state.max_CBNGT + jnp.log(state.sum_CBNGT)
  return checkpoint_name(o_CBTNGK, "context"), checkpoint_name(lse_CBNGT, "context")


class Backward(NamedTuple):
  """What the backward pass needs of each query: gradient, log-sum, and the sum of gradient x o."""

  do_CBTNGK: jax.Array
  lse_CBNGT: jax.Array
  delta_CBNGT: jax.Array


def start_backward(do_CBTNGK: jax.Array, o_CBTNGK: jax.Array, lse_CBNGT: jax.Array) -> Backward:
  """From the result, its log-sums and its gradient."""
  product = do_CBTNGK.astype(jnp.float32) * o_CBTNGK.astype(jnp.float32)
  return Backward(do_CBTNGK, lse_CBNGT, jnp.moveaxis(product.sum(-1), 2, 4))


def attend_backward(
  dq_CBTNGK: jax.Array,
  known: Backward,
  q_CBTNGK: jax.Array,
  k_RBSNK: jax.Array,
  v_RBSNK: jax.Array,
  queries: Tokens,
  keys: Tokens,
  slopes_NG: jax.Array | None,
  pairs_P2: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  """dq with what these pairs add to it, and their (dk, dv); all float32."""
  parts = num_parts(k_RBSNK.shape[2])
  size = k_RBSNK.shape[2] // parts

  def step(grads: Any, where: jax.Array) -> tuple[Any, None]:
    dq, dk, dv = grads
    c, r, first = where[0], where[1], where[2] * size
    k_BSNK, v_BSNK = _cut(k_RBSNK, r, first, size), _cut(v_RBSNK, r, first, size)
    q_BTNGK = _chunk(q_CBTNGK, c)
    do_BTNGK, lse_BNGT, delta_BNGT = (_chunk(x, c) for x in known)
    s_BNGTS = _scores(
      q_BTNGK, k_BSNK, _tokens(queries, c), _tokens(keys, r, first, size), slopes_NG
    )
    p_BNGTS = jnp.exp(s_BNGTS - lse_BNGT[..., None])
    dp_BNGTS = _einsum("BTNGK,BSNK->BNGTS", do_BTNGK, v_BSNK)
    ds_BNGTS = p_BNGTS * (dp_BNGTS - delta_BNGT[..., None]) * q_BTNGK.shape[-1] ** -0.5
    ds_BNGTS = ds_BNGTS.astype(q_BTNGK.dtype)
    dq_new = _einsum("BNGTS,BSNK->BTNGK", ds_BNGTS, k_BSNK)
    dk_new = _einsum("BNGTS,BTNGK->BSNK", ds_BNGTS, q_BTNGK)
    dv_new = _einsum("BNGTS,BTNGK->BSNK", p_BNGTS.astype(do_BTNGK.dtype), do_BTNGK)
    dq = _put(dq, _chunk(dq, c) + dq_new, c)
    dk = _put(dk, _cut(dk, r, first, size) + dk_new, r, first)
    dv = _put(dv, _cut(dv, r, first, size) + dv_new, r, first)
    return (dq, dk, dv), None

  zeros = (jnp.zeros_like(x, jnp.float32) for x in (k_RBSNK, v_RBSNK))
  steps = _steps(pairs_P2, parts)
  (dq, dk, dv), _ = jax.lax.scan(step, (dq_CBTNGK, *zeros), steps)
  return dq, (dk, dv)


@jax.custom_vjp
def blockwise(
  q_CBTNGK: jax.Array,
  k_RBSNK: jax.Array,
  v_RBSNK: jax.Array,
  queries: Tokens,
  keys: Tokens,
  slopes_NG: jax.Array | None,
  pairs_P2: jax.Array,
) -> jax.Array:
  """Causal attention, where each pair of chunks with a key to see must be listed (once).

  Returns:
    (C, B, T, N, G, K) in the dtype of the queries. Differentiable by queries, keys and values.
  """
  return _forward(q_CBTNGK, k_RBSNK, v_RBSNK, queries, keys, slopes_NG, pairs_P2)[0]


def _forward(*args: Any) -> tuple[jax.Array, Any]:
  q_CBTNGK = args[0]
  o_CBTNGK, lse_CBNGT = finish(attend(start(q_CBTNGK), *args), q_CBTNGK.dtype)
  return o_CBTNGK, (args, o_CBTNGK, lse_CBNGT)


def _backward(kept: Any, do_CBTNGK: jax.Array) -> tuple[Any, ...]:
  args, o_CBTNGK, lse_CBNGT = kept
  q, k, v = args[:3]
  known = start_backward(do_CBTNGK, o_CBTNGK, lse_CBNGT)
  dq, (dk, dv) = attend_backward(jnp.zeros_like(q, jnp.float32), known, *args)
  return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None, None, None


blockwise.defvjp(_forward, _backward)


def _scores(
  q_BTNGK: jax.Array, k_BSNK: jax.Array, queries: Tokens, keys: Tokens, slopes_NG: Any
) -> jax.Array:
  s_BNGTS = _einsum("BTNGK,BSNK->BNGTS", q_BTNGK, k_BSNK) * q_BTNGK.shape[-1] ** -0.5
  distance_TS = queries.places[:, None] - keys.places[None, :]
  if slopes_NG is not None:
    # Of a query and a key of one document, the places in the row are as far apart as those in it.
    bias_NGTS = slopes_NG[:, :, None, None] * distance_TS[None, None].astype(jnp.float32)
    s_BNGTS -= bias_NGTS[None]
  seen_BTS = (distance_TS >= 0)[None]
  if queries.segments is not None:
    assert keys.segments is not None
    seen_BTS = seen_BTS & (queries.segments[:, :, None] == keys.segments[:, None, :])
  return jnp.where(seen_BTS[:, None, None], s_BNGTS, MASKED)


def _einsum(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
  return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def _steps(pairs_P2: Any, parts: int) -> jax.Array:
  """int32 (P * parts, 3): query chunk, key chunk, part of the key chunk."""
  pairs = jnp.repeat(jnp.asarray(pairs_P2, jnp.int32), parts, axis=0)
  part = np.tile(np.arange(parts, dtype=np.int32), pairs.shape[0] // parts)
  return jnp.concatenate([pairs, part[:, None]], axis=1)


def _chunk(x: jax.Array, chunk: jax.Array) -> jax.Array:
  return jax.lax.dynamic_index_in_dim(x, chunk, keepdims=False)


def _cut(x_RBS: jax.Array, chunk: jax.Array, first: jax.Array, size: int) -> jax.Array:
  """x[chunk, :, first : first + size]."""
  return jax.lax.dynamic_slice_in_dim(_chunk(x_RBS, chunk), first, size, axis=1)


def _put(x: jax.Array, new: jax.Array, chunk: jax.Array, first: Any = 0) -> jax.Array:
  """x with x[chunk, :, first:…] replaced."""
  where = [chunk, 0, first] + [0] * (x.ndim - 3)
  return jax.lax.dynamic_update_slice(x, new[None], where)


def _tokens(tokens: Tokens, chunk: jax.Array, first: Any = 0, size: int | None = None) -> Tokens:
  size = tokens.places.shape[1] if size is None else size
  places = jax.lax.dynamic_slice_in_dim(_chunk(tokens.places, chunk), first, size)
  segments = None if tokens.segments is None else _cut(tokens.segments, chunk, first, size)
  return Tokens(places, segments)
