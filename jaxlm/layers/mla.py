"""Multi-head latent attention. B batch, T position, D embed, H heads, K query and key dim, R rank
of the latent, S cache slots."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxlm.kernels.attention import attention
from jaxlm.kernels.fp8 import fp8_einsum
from jaxlm.layers.attention import KV, write_cache, write_prefix
from jaxlm.layers.config import AttentionImpl, Latent, Matmul, RopeScaling
from jaxlm.layers.norm import RMSNorm
from jaxlm.layers.positions import rotate
from jaxlm.layers.rotary import scaled_frequencies
from jaxlm.sharding import Initializer, constrain, einsum, gather, param, residual_axes, spec


class LatentAttention(nnx.Module):
  """Keys and values of all heads are made of one small latent a token, which is all that a cache
  holds, and one rotated key that all heads share (DeepSeek-V2, arXiv:2405.04434)."""

  def __init__(
    self,
    *,
    embed_dim: int,
    num_heads: int,
    latent: Latent,
    rope_theta: float,
    rope_scaling: RopeScaling | None,
    scale: float | None,
    norm_eps: float,
    impl: AttentionImpl,
    matmul: Matmul = Matmul.COMPUTE,
    init: Initializer,
    init_out: Initializer,
    dtype: Any,
    param_dtype: Any,
    rngs: nnx.Rngs,
  ):
    D, H, R = embed_dim, num_heads, latent.kv_rank
    K = latent.nope_dim + latent.rope_dim
    self.latent, self.impl, self.dtype = latent, impl, dtype
    self.rope_theta, self.rope_scaling = rope_theta, rope_scaling
    self.query_factor = None if scale is None else scale * K**0.5
    self.einsum = fp8_einsum if matmul is Matmul.FP8 else einsum

    def make(how: Initializer, shape: tuple[int, ...], *axes: str) -> nnx.Param:
      return param(how, rngs.params(), shape, axes, param_dtype)

    def norm(rank: int) -> RMSNorm:
      return RMSNorm(rank, eps=norm_eps, dtype=param_dtype, rngs=rngs)

    if latent.query_rank is None:
      self.q = make(init, (D, H, K), "embed", "heads", "head_dim")
    else:
      self.q_down = make(init, (D, latent.query_rank), "embed", "head_dim")
      self.q_norm = norm(latent.query_rank)
      self.q_up = make(init, (latent.query_rank, H, K), "embed", "heads", "head_dim")
    self.kv_down = make(init, (D, R + latent.rope_dim), "embed", "head_dim")
    self.kv_norm = norm(R)
    up = latent.nope_dim + latent.value_dim
    self.kv_up = make(init, (R, H, up), "embed", "heads", "head_dim")
    self.out = make(init_out, (H, latent.value_dim, D), "heads", "head_dim", "embed")

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
    """As Attention's. A cache is the latents with the shared keys, (B, S, 1, R + rope_dim), and a
    number a slot that stands for the values, and says nothing."""
    assert is_local is None, "latent attention has no local layers"
    latent = self.latent
    residual = residual_axes(x_BTD.shape[1])
    x_BTD = constrain(x_BTD, "act_batch", "act_seq", "act_embed")
    frequencies_k, factor = scaled_frequencies(
      self.rope_theta, latent.rope_dim, self.rope_scaling, positions_BT
    )

    def turn(x_BTHr: jax.Array) -> jax.Array:
      if latent.interleaved:
        x_BTHr = jnp.concatenate([x_BTHr[..., 0::2], x_BTHr[..., 1::2]], axis=-1)
      return rotate(x_BTHr, positions_BT, frequencies_k, factor)

    q_BTHK = self._queries(x_BTD)
    fixed, turned = jnp.split(q_BTHK, [latent.nope_dim], axis=-1)
    q_BTHK = jnp.concatenate([fixed, turn(turned)], axis=-1)
    if self.query_factor is not None:
      q_BTHK *= self.query_factor

    tokens = ("act_batch", "act_seq", None)
    down = gather(self.kv_down[...], self.dtype)
    c_BTR = checkpoint_name(self.einsum("BTD,DR->BTR", x_BTD, down, out=tokens), "qkv")
    c_BTR, shared = jnp.split(c_BTR, [latent.kv_rank], axis=-1)
    c_BS1R = jnp.concatenate([self.kv_norm(c_BTR)[:, :, None], turn(shared[:, :, None])], axis=-1)
    slots_BT, seq = None, "act_seq"
    if cache is not None:
      slots_BT, seq = positions_BT, "act_kv_seq"
      c_BS1R = write_cache(cache[0], c_BS1R, positions_BT, heads=None)
      cache = (c_BS1R, cache[1])
      prefix_BT = write_prefix(prefix_BT, positions_BT, c_BS1R.shape[1])
    k_BSHK, v_BSHK = self._keys_and_values(c_BS1R, seq)
    o_BTHK = attention(
      q_BTHK,
      k_BSHK,
      v_BSHK,
      slots_BT=slots_BT,
      segment_ids_BT=segment_ids_BT,
      positions_BT=positions_BT,
      prefix_BT=prefix_BT,
      impl=self.impl,
    )
    o_BTHK = checkpoint_name(o_BTHK[..., : latent.value_dim], "context")
    out = gather(self.out[...], self.dtype)
    y_BTD = self.einsum("BTHK,HKD->BTD", o_BTHK, out, out=residual)
    return checkpoint_name(y_BTD, "out"), cache

  def _queries(self, x_BTD: jax.Array) -> jax.Array:
    heads = ("act_batch", "act_seq", "act_heads", None)
    if self.latent.query_rank is None:
      q = self.einsum("BTD,DHK->BTHK", x_BTD, gather(self.q[...], self.dtype), out=heads)
      return checkpoint_name(q, "qkv")
    down, up = gather(self.q_down[...], self.dtype), gather(self.q_up[...], self.dtype)
    c_BTR = self.einsum("BTD,DR->BTR", x_BTD, down, out=("act_batch", "act_seq", None))
    q = self.einsum("BTR,RHK->BTHK", self.q_norm(c_BTR), up, out=heads)
    return checkpoint_name(q, "qkv")

  def _keys_and_values(self, c_BS1R: jax.Array, seq: str) -> tuple[jax.Array, jax.Array]:
    """Of every head; values padded to the keys' dim, which all kernels want to be one."""
    latent = self.latent
    c_BSR, shared_BS1r = c_BS1R[:, :, 0, : latent.kv_rank], c_BS1R[..., latent.kv_rank :]
    up, axes = gather(self.kv_up[...], self.dtype), ("act_batch", seq, "act_heads", None)
    kv_BSHK = self.einsum("BSR,RHK->BSHK", c_BSR, up, out=axes)
    fixed, v_BSHK = jnp.split(kv_BSHK, [latent.nope_dim], axis=-1)
    shape = (*fixed.shape[:3], latent.rope_dim)
    shared = jnp.broadcast_to(shared_BS1r, shape, out_sharding=spec(axes))
    k_BSHK = jnp.concatenate([fixed, shared], axis=-1)
    pad = k_BSHK.shape[-1] - latent.value_dim
    return k_BSHK, jnp.pad(v_BSHK, ((0, 0), (0, 0), (0, 0), (0, pad)))
