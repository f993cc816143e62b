"""Attention: one selector, the reference behind it.

B batch, T query position, S key position, N kv heads, G query heads per kv head, H = N * G heads,
K head_dim.
"""

import contextlib
import contextvars
import importlib.util
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.errors import UserError
from jaxlm.kernels import splash
from jaxlm.kernels.context_parallel import over_sequence
from jaxlm.layers.config import AttentionImpl
from jaxlm.mesh import Context
from jaxlm.sharding import active, constrain, einsum, reshape, spec

# What a masked score is set to: large enough to vanish in the softmax, small enough that a row
# with nothing to attend to (padding) stays finite.
MASKED = -1e30

# Blocks of queries in causal attention without a kernel: 4 leave 5/8 of the scores, and more
# gained nothing on CPUs.
_QUERY_BLOCKS = 4

# How each kernel shows in a compiled program: one that is missing there was silently replaced.
HLO_NAMES = {
  AttentionImpl.CUDNN: "__cudnn$fmha",
  AttentionImpl.MOSAIC: "mosaic_gpu",
  AttentionImpl.SPLASH: "tpu_custom_call",
}

_chosen: contextvars.ContextVar[set[AttentionImpl] | None] = contextvars.ContextVar(
  "chosen", default=None
)


@contextlib.contextmanager
def chosen() -> Iterator[set[AttentionImpl]]:
  """Collects which kernels `attention` chooses in what is traced inside."""
  found: set[AttentionImpl] = set()
  token = _chosen.set(found)
  try:
    yield found
  finally:
    _chosen.reset(token)


def attention(
  q_BTHK: jax.Array,
  k_BSNK: jax.Array,
  v_BSNK: jax.Array,
  *,
  slots_BT: jax.Array | None = None,
  segment_ids_BT: jax.Array | None = None,
  positions_BT: jax.Array | None = None,
  alibi_slopes: np.ndarray | None = None,
  causal: bool = True,
  prefix_BT: jax.Array | None = None,
  reach: jax.Array | int | None = None,
  softcap: float | None = None,
  impl: AttentionImpl = AttentionImpl.AUTO,
) -> jax.Array:
  """Scaled dot-product attention (Vaswani et al. 2017), softmax in float32.

  On a mesh with a `sequence` axis, and without a cache, tokens are spread over that axis: see
  kernels/context_parallel.py for the order that they must be in.

  Args:
    q_BTHK, k_BSNK, v_BSNK: queries, keys and values; N divides H.
    slots_BT: int32, the key slot of each query, when keys come from a cache: it sees the slots up
      to its own. None: T == S and slot t belongs to query t.
    segment_ids_BT: int32, the document of each token, neighbours alike; nothing is seen across
      them.
    positions_BT: int32, places in the document; needed for ALiBi.
    alibi_slopes: float32 (H,), or None.
    causal: False: every query sees all keys of its document, as in an encoder.
    prefix_BT: bool, the tokens that their whole document sees, whatever comes first (prefix-LM,
      Raffel et al. 2020, arXiv:1910.10683).
    reach: of local layers, how many tokens to either side (causal: before it) a query sees at most
      (arXiv:2004.05150); may be a traced scalar, so that scanned layers differ in it.
    softcap: scores become softcap · tanh(score / softcap) (Gemma 2, arXiv:2408.00118); None: no.
    impl: see AttentionImpl.

  Returns:
    (B, T, H, K) in the dtype of the queries.

  Raises:
    UserError: a kernel is asked for where it can't do what is asked.
  """
  layout = active()
  if slots_BT is not None or layout is None or layout.size("sequence") == 1:
    context = None
  else:
    context = layout.context
  if isinstance(reach, int) and reach + 1 >= k_BSNK.shape[1]:
    reach = None
  if context is not None and (reach is not None or softcap is not None):
    raise UserError("config.mesh.sequence: must be 1 for attention with a window or a soft cap")
  # The kernels know the causal mask and no other.
  plain = slots_BT is None and alibi_slopes is None and causal and prefix_BT is None
  plain = plain and reach is None and softcap is None
  if context is not None and not (causal and prefix_BT is None):
    raise UserError(
      f"config.mesh.sequence={layout.size('sequence')}: spreads causal attention alone: use "  # type: ignore[union-attr]
      "config.mesh.data, fsdp or model for an encoder or prefix-LM"
    )
  able = _able(q_BTHK, k_BSNK, packed=segment_ids_BT is not None) if plain else []
  if context is not None:
    able = [kernel for kernel in able if kernel in _SPREAD[context]]
  if impl is AttentionImpl.AUTO:
    impl = able[0] if able else AttentionImpl.XLA
  elif impl is not AttentionImpl.XLA and impl not in able:
    needs = _NEEDS[impl]
    if context is not None and impl not in _SPREAD[context]:
      needs = f"does not go with config.mesh.context={context.name}"
    raise UserError(f"config.model.attention={impl.name} {needs}: use AUTO")
  found = _chosen.get()
  if found is not None:
    found.add(impl)
  kernel = _KERNELS.get(impl)
  if context is not None:
    return over_sequence(q_BTHK, k_BSNK, v_BSNK, segment_ids_BT, alibi_slopes, kernel)
  if kernel is not None:
    return _on_shards(kernel, q_BTHK, k_BSNK, v_BSNK, segment_ids_BT)
  if slots_BT is None:
    gathered = ("act_batch", "act_kv_seq", "act_kv_heads", None)
    k_BSNK, v_BSNK = constrain(k_BSNK, *gathered), constrain(v_BSNK, *gathered)
  T = q_BTHK.shape[1]
  halves_work = slots_BT is None and causal and prefix_BT is None
  blocks = _QUERY_BLOCKS if halves_work and T >= 128 and T % _QUERY_BLOCKS == 0 else 1
  if layout is not None and layout.size("sequence") > 1:
    blocks = 1
  # Of each block of queries, the keys up to its end alone: no scores for most of what the causal
  # mask would hide.
  outs = []
  for first in range(0, T, T // blocks):
    end = T if blocks == 1 else first + T // blocks
    keys = slice(None) if blocks == 1 else slice(end)
    out = _reference(
      q_BTHK[:, first:end],
      k_BSNK[:, keys],
      v_BSNK[:, keys],
      slots_BT,
      segment_ids_BT,
      positions_BT,
      alibi_slopes,
      first=first,
      causal=causal,
      prefix_BT=prefix_BT,
      reach=reach,
      softcap=softcap,
    )
    outs.append(out)
  return outs[0] if blocks == 1 else jnp.concatenate(outs, axis=1)


# The kernels that can work on what each kind of context parallelism leaves a device: whole rows of
# some heads, or some of a row's queries with all its keys.
_SPREAD: dict[Context, tuple[AttentionImpl, ...]] = {
  Context.GATHER: (AttentionImpl.MOSAIC,),
  Context.RING: (),
  Context.ULYSSES: (AttentionImpl.CUDNN, AttentionImpl.MOSAIC, AttentionImpl.SPLASH),
}

_NEEDS = {
  AttentionImpl.CUDNN: (
    "needs an NVIDIA GPU, bfloat16, no ALiBi, window or soft cap, and one document a row "
    "(config.data.attend_across_documents=true)"
  ),
  AttentionImpl.MOSAIC: (
    "needs a Hopper or Blackwell GPU, bfloat16, no ALiBi, window or soft cap, and tokamax "
    "(pip install 'jaxlm[cuda]', Python 3.12 or newer)"
  ),
  AttentionImpl.SPLASH: (
    "needs a TPU, no ALiBi, window or soft cap, and config.data.seq_len a multiple of 128"
  ),
}


def _able(q_BTHK: jax.Array, k_BSNK: jax.Array, *, packed: bool) -> list[AttentionImpl]:
  """The kernels that can do causal attention of these arrays here, the fastest first."""
  if jax.default_backend() == "tpu":
    return [AttentionImpl.SPLASH] if splash.fits(q_BTHK, k_BSNK) else []
  half = q_BTHK.dtype in (jnp.bfloat16, jnp.float16)
  if jax.default_backend() != "gpu" or not half or q_BTHK.shape[-1] % 8:
    return []
  mosaic = [AttentionImpl.MOSAIC] if _has_mosaic(q_BTHK.shape[-1]) else []
  return mosaic if packed else [AttentionImpl.CUDNN, *mosaic]


def _has_mosaic(head_dim: int) -> bool:
  capability = getattr(jax.devices()[0], "compute_capability", "0")
  has_package = importlib.util.find_spec("tokamax") is not None
  return has_package and float(capability) >= 9.0 and head_dim % 64 == 0


def _on_shards(
  kernel: Callable[..., jax.Array],
  q_BTHK: jax.Array,
  k_BSNK: jax.Array,
  v_BSNK: jax.Array,
  segment_ids_BT: jax.Array | None,
) -> jax.Array:
  """A kernel that knows nothing of meshes, on each device's rows and heads."""
  layout = active()
  if layout is None:
    return kernel(q_BTHK, k_BSNK, v_BSNK, segment_ids_BT)
  q_axes, k_axes = ("act_batch", None, "act_heads", None), ("act_batch", None, "act_kv_heads", None)
  q_spec, k_spec, rows = layout.spec(q_axes), layout.spec(k_axes), layout.spec(("act_batch", None))
  if segment_ids_BT is not None:
    segment_ids_BT = constrain(segment_ids_BT, "act_batch", None)
  out = jax.shard_map(
    kernel,
    in_specs=(q_spec, k_spec, k_spec, None if segment_ids_BT is None else rows),
    out_specs=q_spec,
    check_vma=False,
  )(
    constrain(q_BTHK, *q_axes),
    constrain(k_BSNK, *k_axes),
    constrain(v_BSNK, *k_axes),
    segment_ids_BT,
  )
  return constrain(out, "act_batch", "act_seq", "act_heads", None)


def _cudnn(
  q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: None, places_T: None = None
) -> jax.Array:
  """cuDNN's flash attention, named explicitly: JAX's default would be the slow path."""
  return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def _splash(
  q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None, places_T: None = None
) -> jax.Array:
  return splash.splash_attention(q, k, v, segment_ids, residual_name="context")


# Jitted, so that all layers share one kernel: compiled one by one, 24 layers took 170 s.
@jax.jit
def _mosaic(
  q_BTHK: jax.Array,
  k_BSNK: jax.Array,
  v_BSNK: jax.Array,
  segment_ids_BS: jax.Array | None,
  places_T: jax.Array | None = None,
) -> jax.Array:
  """tokamax's flash attention (Mosaic GPU): each query sees keys from its document's first on.

  places_T: int32, each query's place among the keys; None: T = S, and query t stands at t.
  """
  # Its public function takes no such mask; the (T, T) one that it takes is slow.
  from tokamax._src.ops.attention import base
  from tokamax._src.ops.attention.pallas_mosaic_gpu import PallasMosaicGpuFlashAttention

  start_B1T = None if segment_ids_BS is None else first_keys(segment_ids_BS)[:, None]
  if places_T is None:
    mask = base.Mask(k_start=start_B1T, is_causal=True)
  else:
    start_B1T = None if start_B1T is None else start_B1T[:, :, places_T]
    end_B1T = jnp.broadcast_to(places_T[None, None] + 1, (q_BTHK.shape[0], 1, places_T.size))
    mask = base.Mask(k_start=start_B1T, k_end=end_B1T)
  scale = q_BTHK.shape[-1] ** -0.5
  return PallasMosaicGpuFlashAttention()(q_BTHK, k_BSNK, v_BSNK, mask=mask, logits_scale=scale)


# kernel(q_BTHK, k_BSNK, v_BSNK, segment_ids_BS, places_T), on one device's rows and heads.
_KERNELS: dict[AttentionImpl, Callable[..., jax.Array]] = {
  AttentionImpl.CUDNN: _cudnn,
  AttentionImpl.MOSAIC: _mosaic,
  AttentionImpl.SPLASH: _splash,
}


def first_keys(segment_ids_BT: jax.Array) -> jax.Array:
  """int32 (B, T), the place in the row where each token's document begins."""
  changed_BT = segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]
  begins_BT = jnp.where(changed_BT, jnp.arange(1, segment_ids_BT.shape[1])[None], 0)
  starts_BT = jnp.pad(begins_BT, ((0, 0), (1, 0)))
  return jax.lax.cummax(starts_BT, axis=1).astype(jnp.int32)


def _reference(
  q_BTHK: jax.Array,
  k_BSNK: jax.Array,
  v_BSNK: jax.Array,
  slots_BT: jax.Array | None,
  segment_ids_BT: jax.Array | None,
  positions_BT: jax.Array | None,
  alibi_slopes: np.ndarray | None,
  *,
  first: int = 0,
  causal: bool = True,
  prefix_BT: jax.Array | None = None,
  reach: jax.Array | int | None = None,
  softcap: float | None = None,
) -> jax.Array:
  """Attention of queries that stand at first, first + 1, … among the keys (or at their slots).

  Segments, positions and prefixes are those of the row.
  """
  (B, T, H, K), (S, N) = q_BTHK.shape, k_BSNK.shape[1:3]
  G = H // N
  q_axes = ("act_batch", "act_seq", "act_kv_heads", None, None)
  scores_axes = ("act_batch", "act_kv_heads", None, "act_seq", "act_kv_seq")
  if G == 1:  # without a dimension of 1, which costs XLA's CPU products a third
    s_BHTS = einsum(
      "BTHK,BSHK->BHTS", q_BTHK, k_BSNK, out=(*scores_axes[:2], *scores_axes[3:]), dtype=jnp.float32
    )
    s_BNGTS = s_BHTS[:, :, None]
  else:
    q_BTNGK = reshape(q_BTHK, (B, T, N, G, K), *q_axes)
    s_BNGTS = einsum("BTNGK,BSNK->BNGTS", q_BTNGK, k_BSNK, out=scores_axes, dtype=jnp.float32)
  s_BNGTS *= K**-0.5
  if softcap is not None:
    s_BNGTS = softcap * jnp.tanh(s_BNGTS / softcap)

  keys_1S = jnp.arange(S)[None]
  if slots_BT is None:
    queries_BT = constrain(first + jnp.arange(T)[None], None, "act_seq")
  else:
    queries_BT = slots_BT
  distance_BTS = queries_BT[:, :, None] - keys_1S[:, None, :]
  seen_BTS = distance_BTS >= 0 if causal else jnp.ones_like(distance_BTS, bool)
  if prefix_BT is not None:
    prefix_BS = constrain(prefix_BT.astype(bool), "act_batch", "act_kv_seq")
    seen_BTS = seen_BTS | prefix_BS[:, None, :]
  if reach is not None:
    seen_BTS &= jnp.abs(distance_BTS) <= reach
  if segment_ids_BT is not None:
    key_segments_BS = constrain(segment_ids_BT[:, :S], "act_batch", "act_kv_seq")
    seen_BTS &= segment_ids_BT[:, first : first + T, None] == key_segments_BS[:, None, :]
  if alibi_slopes is not None:
    assert positions_BT is not None, "ALiBi needs positions"
    # A cached key's slot is its position.
    if slots_BT is None:
      key_positions = constrain(positions_BT[:, :S], "act_batch", "act_kv_seq")
    else:
      key_positions = keys_1S
    distance_BTS = positions_BT[:, first : first + T, None] - key_positions[:, None, :]
    slopes_NG = jnp.asarray(alibi_slopes.reshape(N, G), out_sharding=spec(("act_kv_heads", None)))
    s_BNGTS -= slopes_NG[None, :, :, None, None] * distance_BTS[:, None, None].astype(jnp.float32)
  s_BNGTS = jnp.where(seen_BTS[:, None, None], s_BNGTS, MASKED)
  p_BNGTS = jax.nn.softmax(s_BNGTS, axis=-1).astype(v_BSNK.dtype)
  if G == 1:
    out = ("act_batch", "act_seq", "act_heads", None)
    return einsum("BHTS,BSHK->BTHK", p_BNGTS[:, :, 0], v_BSNK, out=out)
  o_BTNGK = einsum("BNGTS,BSNK->BTNGK", p_BNGTS, v_BSNK, out=q_axes)
  return reshape(o_BTNGK, (B, T, H, K), "act_batch", "act_seq", "act_heads", None)
