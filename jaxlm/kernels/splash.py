"""Causal flash attention on TPUs, also of rows with several documents: JAX's splash attention.

The kernel is jax.experimental.pallas.ops.tpu.splash_attention. It never makes the (T, T) scores, in
the forward or in the backward pass, and computes nothing for blocks above the diagonal.

B batch, T query position, S key position, N kv heads, H = N * G heads, K head_dim.
"""

from typing import Any

import jax
import jax.numpy as jnp

# The kernel works on blocks of queries and keys; their sizes are multiples of a TPU's 128 lanes.
# 512 is what MaxText trains with (configs/base.yml, sa_block_*); not measured here.
BLOCKS = (512, 256, 128)
LANES = BLOCKS[-1]


def fits(q_BTHK: Any, k_BSNK: Any) -> bool:
  """Whether `splash_attention` can do it: T = S, a multiple of 128; bfloat16 or float32; N | H.

  Args:
    q_BTHK, k_BSNK: arrays, or what has their shape and dtype. As one device sees them: on a mesh,
      dims that are sharded are smaller.
  """
  (_, T, H, _), (_, S, N, _) = q_BTHK.shape, k_BSNK.shape
  return (
    T == S
    and T % LANES == 0
    and H % N == 0
    and q_BTHK.dtype == k_BSNK.dtype
    and q_BTHK.dtype in (jnp.bfloat16, jnp.float32)
  )


def splash_attention(
  q_BTHK: jax.Array,
  k_BSNK: jax.Array,
  v_BSNK: jax.Array,
  segment_ids_BT: jax.Array | None = None,
  *,
  residual_name: str | None = None,
  interpret: bool = False,
) -> jax.Array:
  """Causal scaled dot-product attention, softmax in float32; differentiable once.

  It knows nothing of meshes: on one, call it in jax.shard_map, over batch and heads.

  Args:
    q_BTHK, k_BSNK, v_BSNK: queries, keys and values, for which `fits` holds.
    segment_ids_BT: int32, the document of each token; nothing is seen across them.
    residual_name: what jax.checkpoint policies know the backward pass's residuals by: the result in
      the kernel's own layout and the softmax's log-sums. Where they are saved, jax.checkpoint does
      not run the forward kernel again, for one more (B, T, H, K) kept.
    interpret: run the kernel on any backend, slowly, for tests.

  Returns:
    (B, T, H, K) in the dtype of the queries.

  Raises:
    ValueError: `fits` does not hold.
  """
  if not fits(q_BTHK, k_BSNK):
    raise ValueError(
      f"splash attention needs T = S, a multiple of {LANES}, heads in whole groups, bfloat16 or "
      f"float32; got q {jax.typeof(q_BTHK)}, k {jax.typeof(k_BSNK)}"
    )
  # Pallas takes a while to import, and is needed on TPUs alone.
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  T, H, K = q_BTHK.shape[1:]
  block = next(size for size in BLOCKS if T % size == 0)
  kernel = splash.make_splash_mha_single_device(
    splash.MultiHeadMask([splash.CausalMask((T, T))] * H),
    block_sizes=splash.BlockSizes(
      block_q=block,
      block_kv=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_q_dq=block,
      block_kv_dq=block,
    ),
    residual_checkpoint_name=residual_name,
    interpret=interpret,
  )
  # The kernel has no scale. In bfloat16 the scale itself would be rounded, all scores off by as
  # much; in float32 each query is, once.
  q_BTHK = (q_BTHK.astype(jnp.float32) * K**-0.5).astype(q_BTHK.dtype)
  q_BHTK, k_BNSK, v_BNSK = (x.swapaxes(1, 2) for x in (q_BTHK, k_BSNK, v_BSNK))
  segments = None if segment_ids_BT is None else splash.SegmentIds(segment_ids_BT, segment_ids_BT)
  return jax.vmap(kernel)(q_BHTK, k_BNSK, v_BNSK, segments).swapaxes(1, 2)
