"""Causal self-attention with grouped queries. B batch, T position, D embed, H heads, N kv heads,
K head_dim, S cache slots."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxlm.kernels.attention import attention
from jaxlm.kernels.fp8 import fp8_einsum
from jaxlm.layers.config import AttentionImpl, Matmul, Positions, RopeScaling
from jaxlm.layers.norm import HeadsNorm, RMSNorm
from jaxlm.layers.positions import alibi_slopes, frequencies, rotate
from jaxlm.layers.rotary import scaled_frequencies
from jaxlm.sharding import (
  Initializer,
  constant,
  constrain,
  einsum,
  gather,
  param,
  reshape,
  residual_axes,
  spec,
)

KV = tuple[jax.Array, jax.Array]

# A window that no sequence reaches past.
_EVERYTHING = 2**30


class Attention(nnx.Module):
  """Multi-head attention (Vaswani et al. 2017), grouped-query (arXiv:2305.13245) if N < H.

  What most models have no need of has a default: see DecoderConfig for what each means.

  Attributes:
    qkv_bias, out_bias: None: use_bias.
    window: a query sees itself and the window - 1 keys before it; None: all. A layer that is not
      local (see the call) sees all whatever this says.
    local_rope_theta: RoPE's base in local layers, unscaled; None: as in the others.
    causal: False: a query sees the keys after it too (window - 1 of them, if there is a window).
  """

  def __init__(
    self,
    *,
    embed_dim: int,
    num_heads: int,
    kv_heads: int,
    head_dim: int,
    positions: Positions,
    rope_theta: float,
    qk_norm: bool,
    use_bias: bool,
    norm_eps: float,
    impl: AttentionImpl,
    matmul: Matmul = Matmul.COMPUTE,
    qkv_bias: bool | None = None,
    out_bias: bool | None = None,
    qk_norm_whole: bool = False,
    norm_offset: float = 0.0,
    rotary_fraction: float = 1.0,
    rope_scaling: RopeScaling | None = None,
    local_rope_theta: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    causal: bool = True,
    init: Initializer,
    init_out: Initializer,
    dtype: Any,
    param_dtype: Any,
    rngs: nnx.Rngs,
  ):
    D, H, N, K = embed_dim, num_heads, kv_heads, head_dim
    self.positions, self.rope_theta, self.impl, self.dtype = positions, rope_theta, impl, dtype
    self.num_heads, self.qk_norm = num_heads, qk_norm
    self.qkv_bias = use_bias if qkv_bias is None else qkv_bias
    self.out_bias_used = use_bias if out_bias is None else out_bias
    self.rotary_dim, self.rope_scaling = int(head_dim * rotary_fraction), rope_scaling
    self.local_rope_theta, self.window, self.softcap = local_rope_theta, window, softcap
    # Kernels divide by sqrt(K): another scale goes into the queries.
    self.causal = causal
    self.query_factor = None if scale is None else scale * head_dim**0.5

    self.einsum = fp8_einsum if matmul is Matmul.FP8 else einsum

    def make(how: Initializer, shape: tuple[int, ...], *axes: str) -> nnx.Param:
      return param(how, rngs.params(), shape, axes, param_dtype)

    self.q = make(init, (D, H, K), "embed", "heads", "head_dim")
    self.k = make(init, (D, N, K), "embed", "kv_heads", "head_dim")
    self.v = make(init, (D, N, K), "embed", "kv_heads", "head_dim")
    self.out = make(init_out, (H, K, D), "heads", "head_dim", "embed")
    if self.qkv_bias:
      self.q_bias = make(constant(0.0), (H, K), "heads", "head_dim")
      self.k_bias = make(constant(0.0), (N, K), "kv_heads", "head_dim")
      self.v_bias = make(constant(0.0), (N, K), "kv_heads", "head_dim")
    if self.out_bias_used:
      self.out_bias = make(constant(0.0), (D,), "norm")
    common: Any = dict(eps=norm_eps, dtype=param_dtype, rngs=rngs)
    if qk_norm and qk_norm_whole:
      self.q_norm: Any = HeadsNorm((H, K), "heads", **common)
      self.k_norm: Any = HeadsNorm((N, K), "kv_heads", **common)
    elif qk_norm:
      self.q_norm = RMSNorm(K, offset=norm_offset, **common)
      self.k_norm = RMSNorm(K, offset=norm_offset, **common)

  def __call__(
    self,
    x_BTD: jax.Array,
    *,
    segment_ids_BT: jax.Array | None,
    positions_BT: jax.Array,
    cache: KV | None,
    is_local: jax.Array | None = None,
    prefix_BT: jax.Array | None = None,
  ) -> tuple[jax.Array, KV | None]:
    """Returns (B, T, D) and, if a cache (k, v) was given, that cache with the T tokens in it.

    is_local: bool (), whether this layer has the window and local_rope_theta; None: they are
      every layer's.
    prefix_BT: the tokens that their whole document sees (prefix-LM).
    """
    residual = residual_axes(x_BTD.shape[1])
    x_BTD = constrain(x_BTD, "act_batch", "act_seq", "act_embed")
    q_BTHK, k_BTNK, v_BTNK = self._project(x_BTD)
    if self.qk_norm:
      q_BTHK, k_BTNK = self.q_norm(q_BTHK), self.k_norm(k_BTNK)
    if self.positions is Positions.ROPE:
      frequencies_k, factor = self._frequencies(positions_BT, is_local)
      q_BTHK = rotate(q_BTHK, positions_BT, frequencies_k, factor)
      k_BTNK = rotate(k_BTNK, positions_BT, frequencies_k, factor)
    if self.query_factor is not None:
      q_BTHK *= self.query_factor
    reach: Any = None if self.window is None else self.window - 1
    if reach is not None and is_local is not None:
      reach = jnp.where(is_local, reach, _EVERYTHING)

    if cache is None:
      slots_BT, k_BSNK, v_BSNK = None, k_BTNK, v_BTNK
    else:
      slots_BT = positions_BT
      k_BSNK = write_cache(cache[0], k_BTNK, positions_BT)
      v_BSNK = write_cache(cache[1], v_BTNK, positions_BT)
      cache = (k_BSNK, v_BSNK)
      prefix_BT = write_prefix(prefix_BT, positions_BT, k_BSNK.shape[1])
    o_BTHK = attention(
      q_BTHK,
      k_BSNK,
      v_BSNK,
      slots_BT=slots_BT,
      segment_ids_BT=segment_ids_BT,
      positions_BT=positions_BT,
      alibi_slopes=alibi_slopes(self.num_heads) if self.positions is Positions.ALIBI else None,
      reach=reach,
      softcap=self.softcap,
      causal=self.causal,
      prefix_BT=prefix_BT,
      impl=self.impl,
    )
    o_BTHK = checkpoint_name(o_BTHK, "context")
    out = gather(self.out[...], self.dtype)
    y_BTD = self.einsum("BTHK,HKD->BTD", o_BTHK, out, out=residual)
    if self.out_bias_used:
      y_BTD += self.out_bias[...].astype(self.dtype)[None, None]
    return checkpoint_name(y_BTD, "out"), cache

  def _frequencies(self, positions_BT: jax.Array, is_local: jax.Array | None) -> tuple[Any, float]:
    frequencies_k, factor = scaled_frequencies(
      self.rope_theta, self.rotary_dim, self.rope_scaling, positions_BT
    )
    if self.local_rope_theta is None:
      return frequencies_k, factor
    assert factor == 1, "local_rope_theta goes with no attention factor"
    local_k = frequencies(self.local_rope_theta, self.rotary_dim)
    return local_k if is_local is None else jnp.where(is_local, local_k, frequencies_k), 1.0

  def _project(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values in one product: P = G queries, a key, a value for each kv head."""
    (D, H, K), N = self.q.shape, self.k.shape[1]
    G = H // N
    parts = zip((self.q, self.k, self.v), (G, 1, 1))
    weight_DNPK = jnp.concatenate(
      [
        reshape(gather(part[...], self.dtype), (D, N, size, K), None, "kv_heads", None, None)
        for part, size in parts
      ],
      axis=2,
    )
    axes = ("act_batch", "act_seq", "act_kv_heads", None, None)
    y_BTNPK = self.einsum("BTD,DNPK->BTNPK", x_BTD, weight_DNPK, out=axes)
    y_BTNPK = checkpoint_name(y_BTNPK, "qkv")
    # Split, not sliced: its transpose joins the three gradients, slices would add padded arrays.
    q_BTNGK, k_BTN1K, v_BTN1K = jnp.split(y_BTNPK, (G, G + 1), axis=3)
    q_BTHK = reshape(q_BTNGK, (*x_BTD.shape[:2], H, K), "act_batch", "act_seq", "act_heads", None)
    k_BTNK, v_BTNK = k_BTN1K.squeeze(3), v_BTN1K.squeeze(3)
    if self.qkv_bias:
      q_BTHK += self.q_bias[...].astype(self.dtype)[None, None]
      k_BTNK += self.k_bias[...].astype(self.dtype)[None, None]
      v_BTNK += self.v_bias[...].astype(self.dtype)[None, None]
    return q_BTHK, k_BTNK, v_BTNK


def write_cache(
  cache_BSNK: jax.Array,
  new_BTNK: jax.Array,
  positions_BT: jax.Array,
  heads: str | None = "act_kv_heads",
) -> jax.Array:
  """The cache with the new entries in the slots of their positions; slots past the end drop."""
  axes = ("act_batch", "act_kv_seq", heads, None)
  new_BTNK = constrain(new_BTNK, *axes).astype(cache_BSNK.dtype)
  rows_B1 = constrain(jnp.arange(cache_BSNK.shape[0])[:, None], "act_batch", None)
  slots_BT = constrain(positions_BT, "act_batch", "act_kv_seq")
  where = spec(axes)
  return cache_BSNK.at[rows_B1, slots_BT].set(new_BTNK, mode="drop", out_sharding=where)


def write_prefix(
  prefix_BT: jax.Array | None, positions_BT: jax.Array, slots: int
) -> jax.Array | None:
  """bool (B, slots), which of a cache's slots hold tokens of the prefix that is now written."""
  if prefix_BT is None:
    return None
  axes = ("act_batch", "act_kv_seq")
  where, rows_B1 = spec(axes), jnp.arange(prefix_BT.shape[0])[:, None]
  empty_BS = jnp.zeros((prefix_BT.shape[0], slots), bool, out_sharding=where)
  return empty_BS.at[constrain(rows_B1, "act_batch", None), constrain(positions_BT, *axes)].set(
    constrain(prefix_BT.astype(bool), *axes), mode="drop", out_sharding=where
  )
