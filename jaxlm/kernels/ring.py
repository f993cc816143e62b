"""Ring attention over the `sequence` mesh axis (arXiv:2310.01889), tokens in zigzag order.

Keys and values go round the devices; a device computes with the block that it has while the next
one travels. No device holds the keys of more than two others at a time, in the backward pass too,
where each block's gradients go round with it.

B batch, T position, N kv heads, G query heads per kv head, H = N * G heads, K head_dim, C chunks
(two a device), n devices on the axis.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.kernels import blockwise
from jaxlm.kernels.blockwise import Tokens, join_chunks, split_chunks

AXIS = "sequence"

# The two chunks of a device: itself, and the pairs of one of its blocks of keys that is an earlier
# or a later device's. (Query chunk, key chunk); 0 is the chunk in the row's first half.
OWN = np.array([(0, 0), (1, 0), (1, 1)], np.int32)
EARLIER = np.array([(1, 0), (0, 0)], np.int32)
LATER = np.array([(1, 0), (1, 1)], np.int32)


def ring(
  q_BTHK: jax.Array,
  k_BTNK: jax.Array,
  v_BTNK: jax.Array,
  segments_BT: jax.Array | None,
  slopes_H: jax.Array | None,
  *,
  n: int,
) -> jax.Array:
  """Causal attention of this device's queries, inside jax.shard_map; (B, T, H, K)."""
  q, slopes_NG = blockwise.by_groups(q_BTHK, slopes_H, 2, k_BTNK.shape[2])
  segments = None if segments_BT is None else split_chunks(segments_BT, 2)
  tokens = Tokens(blockwise.zigzag_places(jax.lax.axis_index(AXIS), n, q.shape[2]), segments)
  o = _ring_chunks(n, q, split_chunks(k_BTNK, 2), split_chunks(v_BTNK, 2), tokens, slopes_NG)
  return join_chunks(o).reshape(q_BTHK.shape)


# By hand: JAX's own backward pass would keep every block that came by, which is all of the row.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring_chunks(n: int, q: Any, k: Any, v: Any, tokens: Tokens, slopes_NG: Any) -> jax.Array:
  return _ring_forward(n, q, k, v, tokens, slopes_NG)[0]


def _ring_forward(n: int, q: Any, k: Any, v: Any, tokens: Tokens, slopes_NG: Any) -> Any:
  def visit(state: Any, block: Any, pairs: Any) -> Any:
    k, v, keys = block
    return blockwise.attend(state, q, k, v, tokens, keys, slopes_NG, pairs)

  state = visit(blockwise.start(q), (k, v, tokens), jnp.asarray(OWN))
  state = _around(n, visit, state, (k, v, tokens))
  o, lse = blockwise.finish(state, q.dtype)
  return o, (q, k, v, tokens, slopes_NG, o, lse)


def _ring_backward(n: int, kept: Any, do: jax.Array) -> tuple[Any, ...]:
  q, k, v, tokens, slopes_NG, o, lse = kept
  known = blockwise.start_backward(do, o, lse)

  def visit(grads: Any, block: Any, pairs: Any) -> Any:
    # A block's own gradients follow it, one step behind: they travel while theirs are computed.
    dq, behind = grads
    k, v, keys = block
    behind = _pass_on(behind, n)
    dq, new = blockwise.attend_backward(dq, known, q, k, v, tokens, keys, slopes_NG, pairs)
    return dq, jax.tree.map(jnp.add, behind, new)

  dq = jnp.zeros_like(q, jnp.float32)
  grads = blockwise.attend_backward(dq, known, q, k, v, tokens, tokens, slopes_NG, jnp.asarray(OWN))
  dq, behind = _around(n, visit, grads, (k, v, tokens))
  dk, dv = _pass_on(behind, n)  # home
  return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_ring_chunks.defvjp(_ring_forward, _ring_backward)


def _around(n: int, visit: Callable[..., Any], carry: Any, own: Any) -> Any:
  """carry = visit(carry, block, pairs) for the block of each other device, the nearest first."""
  own_first = own[2].places[0, 0]

  def visited(carry: Any, block: Any) -> Any:
    pairs = jnp.where(block[2].places[0, 0] < own_first, EARLIER, LATER)
    return visit(carry, block, pairs)

  def step(blocks_and_carry: Any, _: None) -> tuple[Any, None]:
    block, carry = blocks_and_carry
    following = _pass_on(block, n)
    return (following, visited(carry, block)), None

  block = _pass_on(own, n)
  if n > 2:
    (block, carry), _ = jax.lax.scan(step, (block, carry), length=n - 2)
  return visited(carry, block)


def _pass_on(tree: Any, n: int) -> Any:
  """To the next device; what the previous one had."""
  ring = [(i, (i + 1) % n) for i in range(n)]
  return jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, ring), tree)
