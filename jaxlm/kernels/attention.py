"""Attention: one selector, the reference behind it.

B batch, T query position, S key position, N kv heads, G query heads per kv head, H = N * G heads,
K head_dim.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.errors import UserError
from jaxlm.layers.config import AttentionImpl
from jaxlm.sharding import active, constrain, einsum, reshape, spec

# What a masked score is set to: large enough to vanish in the softmax, small enough that a row
# with nothing to attend to (padding) stays finite.
MASKED = -1e30


def attention(
  q_BTHK: jax.Array,
  k_BSNK: jax.Array,
  v_BSNK: jax.Array,
  *,
  slots_BT: jax.Array | None = None,
  segment_ids_BT: jax.Array | None = None,
  positions_BT: jax.Array | None = None,
  alibi_slopes: np.ndarray | None = None,
  impl: AttentionImpl = AttentionImpl.AUTO,
) -> jax.Array:
  """Causal scaled dot-product attention (Vaswani et al. 2017), softmax in float32.

  Args:
    q_BTHK, k_BSNK, v_BSNK: queries, keys and values; N divides H.
    slots_BT: int32, the key slot of each query, when keys come from a cache: it sees the slots up
      to its own. None: T == S and slot t belongs to query t.
    segment_ids_BT: int32, the document of each token; nothing is seen across them.
    positions_BT: int32, places in the document; needed for ALiBi.
    alibi_slopes: float32 (H,), or None.
    impl: see AttentionImpl.

  Returns:
    (B, T, H, K) in the dtype of the queries.

  Raises:
    UserError: CUDNN is asked for where it can't do what is asked.
  """
  plain = slots_BT is None and segment_ids_BT is None and alibi_slopes is None
  fits = plain and q_BTHK.dtype in (jnp.bfloat16, jnp.float16) and q_BTHK.shape[-1] % 8 == 0
  on_gpu = jax.default_backend() == "gpu"
  if impl is AttentionImpl.CUDNN and not (fits and on_gpu):
    raise UserError(
      "config.model.attention=CUDNN needs a GPU, bfloat16, no ALiBi and one document a row "
      "(config.data.attend_across_documents=true): use AUTO"
    )
  if fits and on_gpu and impl is not AttentionImpl.XLA:
    return _cudnn(q_BTHK, k_BSNK, v_BSNK)
  return _reference(q_BTHK, k_BSNK, v_BSNK, slots_BT, segment_ids_BT, positions_BT, alibi_slopes)


def _cudnn(q_BTHK: jax.Array, k_BSNK: jax.Array, v_BSNK: jax.Array) -> jax.Array:
  """cuDNN's flash attention, named explicitly: JAX's default would be the slow path."""

  def local(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")

  layout = active()
  if layout is None:
    return local(q_BTHK, k_BSNK, v_BSNK)
  # A query shard needs an offset that this kernel's public form doesn't take: queries are brought
  # together over the sequence axis for the kernel, and spread again after it.
  q_axes, k_axes = ("act_batch", None, "act_heads", None), ("act_batch", None, "act_kv_heads", None)
  out = jax.shard_map(
    local,
    in_specs=(layout.spec(q_axes), layout.spec(k_axes), layout.spec(k_axes)),
    out_specs=layout.spec(q_axes),
    check_vma=False,
  )(constrain(q_BTHK, *q_axes), constrain(k_BSNK, *k_axes), constrain(v_BSNK, *k_axes))
  return constrain(out, "act_batch", "act_seq", "act_heads", None)


def _reference(
  q_BTHK: jax.Array,
  k_BSNK: jax.Array,
  v_BSNK: jax.Array,
  slots_BT: jax.Array | None,
  segment_ids_BT: jax.Array | None,
  positions_BT: jax.Array | None,
  alibi_slopes: np.ndarray | None,
) -> jax.Array:
  (B, T, H, K), (S, N) = q_BTHK.shape, k_BSNK.shape[1:3]
  G = H // N
  q_axes = ("act_batch", "act_seq", "act_kv_heads", None, None)
  q_BTNGK = reshape(q_BTHK, (B, T, N, G, K), *q_axes)
  scores_axes = ("act_batch", "act_kv_heads", None, "act_seq", "act_kv_seq")
  s_BNGTS = einsum("BTNGK,BSNK->BNGTS", q_BTNGK, k_BSNK, out=scores_axes, dtype=jnp.float32)
  s_BNGTS *= K**-0.5

  keys_1S = jnp.arange(S)[None]
  if slots_BT is None:
    queries_BT = constrain(jnp.arange(T)[None], None, "act_seq")
  else:
    queries_BT = slots_BT
  seen_BTS = queries_BT[:, :, None] >= keys_1S[:, None, :]
  if segment_ids_BT is not None:
    key_segments_BS = constrain(segment_ids_BT, "act_batch", "act_kv_seq")
    seen_BTS &= segment_ids_BT[:, :, None] == key_segments_BS[:, None, :]
  if alibi_slopes is not None:
    assert positions_BT is not None, "ALiBi needs positions"
    # A cached key's slot is its position.
    if slots_BT is None:
      key_positions = constrain(positions_BT, "act_batch", "act_kv_seq")
    else:
      key_positions = keys_1S
    distance_BTS = positions_BT[:, :, None] - key_positions[:, None, :]
    slopes_NG = jnp.asarray(alibi_slopes.reshape(N, G), out_sharding=spec(("act_kv_heads", None)))
    s_BNGTS -= slopes_NG[None, :, :, None, None] * distance_BTS[:, None, None].astype(jnp.float32)
  s_BNGTS = jnp.where(seen_BTS[:, None, None], s_BNGTS, MASKED)
  p_BNGTS = jax.nn.softmax(s_BNGTS, axis=-1).astype(v_BSNK.dtype)
  o_BTNGK = einsum("BNGTS,BSNK->BTNGK", p_BNGTS, v_BSNK, out=q_axes)
  return reshape(o_BTNGK, (B, T, H, K), "act_batch", "act_seq", "act_heads", None)
