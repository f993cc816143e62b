"""The decoder-only transformer. B batch, T position, D embed, V vocab, L layers, S cache slots."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlm.kernels.cross_entropy import logits
from jaxlm.layers.attention import KV, Attention
from jaxlm.layers.cache import Cache
from jaxlm.layers.config import Norm, Positions, resolve_dtype
from jaxlm.layers.embed import Embed
from jaxlm.layers.mlp import Mlp
from jaxlm.layers.moe import MoeAux, MoeMlp
from jaxlm.layers.norm import LayerNorm, RMSNorm
from jaxlm.layers.stack import Stack
from jaxlm.models.config import DecoderConfig
from jaxlm.sharding import constrain, normal, residual_axes, spec


def _norm(config: DecoderConfig, rngs: nnx.Rngs) -> Any:
  kind = LayerNorm if config.norm is Norm.LAYER else RMSNorm
  return kind(
    config.embed_dim, eps=config.norm_eps, dtype=resolve_dtype(config.param_dtype), rngs=rngs
  )


class Block(nnx.Module):
  """x + attention(norm(x)), then x + mlp(norm(x))."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    dtype, param_dtype = resolve_dtype(config.compute_dtype), resolve_dtype(config.param_dtype)
    init = normal(config.init_std)
    # GPT-2: what is added to the residual stream 2 L times starts smaller by sqrt(2 L).
    init_out = normal(config.init_std / math.sqrt(2 * config.num_layers))
    self.attention_norm = _norm(config, rngs)
    self.attention = Attention(
      embed_dim=config.embed_dim,
      num_heads=config.num_heads,
      kv_heads=config.kv_heads,
      head_dim=config.head_size,
      positions=config.positions,
      rope_theta=config.rope_theta,
      qk_norm=config.qk_norm,
      use_bias=config.use_bias,
      norm_eps=config.norm_eps,
      impl=config.attention,
      matmul=config.matmul,
      init=init,
      init_out=init_out,
      dtype=dtype,
      param_dtype=param_dtype,
      rngs=rngs,
    )
    self.mlp_norm = _norm(config, rngs)
    common: Any = dict(
      embed_dim=config.embed_dim,
      mlp_dim=config.mlp_dim,
      activation=config.activation,
      init=init,
      init_out=init_out,
      dtype=dtype,
      param_dtype=param_dtype,
      rngs=rngs,
    )
    if config.num_experts is None:
      self.mlp = Mlp(matmul=config.matmul, use_bias=config.use_bias, **common)
    else:
      self.moe = MoeMlp(
        num_experts=config.num_experts,
        experts_per_token=config.num_experts_per_token,
        capacity_factor=config.expert_capacity,
        **common,
      )
    self.has_experts = config.num_experts is not None
    self.dropout = config.dropout

  def __call__(
    self,
    x_BTD: jax.Array,
    *,
    segment_ids_BT: jax.Array | None,
    positions_BT: jax.Array,
    cache: KV | None,
    dropout_key: jax.Array | None,
  ) -> tuple[jax.Array, tuple[KV | None, MoeAux | None]]:
    """The residual stream after the block; the cache with its tokens, and what the router says."""
    keys = None if dropout_key is None else jax.random.split(dropout_key)
    # Scopes name the parts in profiles.
    with jax.named_scope("norm"):
      y_BTD = self.attention_norm(x_BTD)
    with jax.named_scope("attention"):
      y_BTD, cache = self.attention(
        y_BTD, segment_ids_BT=segment_ids_BT, positions_BT=positions_BT, cache=cache
      )
    x_BTD += _drop(y_BTD, self.dropout, None if keys is None else keys[0])
    with jax.named_scope("norm"):
      y_BTD = self.mlp_norm(x_BTD)
    aux = None
    with jax.named_scope("mlp"):
      if self.has_experts:
        y_BTD, aux = self.moe(y_BTD)
        y_BTD = constrain(y_BTD, *residual_axes(y_BTD.shape[1]))
      else:
        y_BTD = self.mlp(y_BTD)
    x_BTD += _drop(y_BTD, self.dropout, None if keys is None else keys[1])
    return x_BTD, (cache, aux)


class Decoder(nnx.Module):
  """Token ids to logits."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    self.config = config
    dtype, param_dtype = resolve_dtype(config.compute_dtype), resolve_dtype(config.param_dtype)

    def table(size: int, axis: str) -> Embed:
      return Embed(
        size,
        config.embed_dim,
        axis=axis,
        init=normal(config.init_std),
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
      )

    self.embed = table(config.padded_vocab_size, "vocab")
    if config.positions is Positions.LEARNED:
      self.position_embed = table(config.max_seq_len, "positions")
    self.stack = Stack(
      lambda r: Block(config, rngs=r),
      config.num_layers,
      scan=config.scan_layers,
      scan_block=config.scan_block,
      remat=config.remat,
      rngs=rngs,
    )
    self.final_norm = _norm(config, rngs)
    if not config.tie_embeddings:
      self.unembed = table(config.padded_vocab_size, "vocab")

  def __call__(
    self,
    inputs_BT: jax.Array,
    *,
    segment_ids_BT: jax.Array | None = None,
    positions_BT: jax.Array | None = None,
    cache: Cache | None = None,
    dropout_key: jax.Array | None = None,
  ) -> tuple[jax.Array, Cache | None]:
    """Logits for every input.

    Args: see `features`.

    Returns:
      Logits (B, T, V) in the compute dtype, V the padded vocabulary (ids that do not exist have
      probability 0), and the cache with the inputs in it, if one was given.
    """
    x_BTD, cache, _ = self.features(
      inputs_BT,
      segment_ids_BT=segment_ids_BT,
      positions_BT=positions_BT,
      cache=cache,
      dropout_key=dropout_key,
    )
    return logits(x_BTD, self.output_table(), self.config.vocab_size), cache

  def output_table(self) -> jax.Array:
    """The table (V, D) whose products with the features are the logits, in the compute dtype."""
    return (self.embed if self.config.tie_embeddings else self.unembed).weight()

  def features(
    self,
    inputs_BT: jax.Array,
    *,
    segment_ids_BT: jax.Array | None = None,
    positions_BT: jax.Array | None = None,
    cache: Cache | None = None,
    dropout_key: jax.Array | None = None,
  ) -> tuple[jax.Array, Cache | None, MoeAux | None]:
    """The last hidden state of every input, normalised.

    Args:
      inputs_BT: int32 token ids.
      segment_ids_BT: int32, the document of each input, or None: each row is one document.
      positions_BT: int32, places in the document; None: 0, 1, 2, …
      cache: keys and values so far. The inputs' own go into the slots of their positions, and
        each input sees the slots up to its own. Give positions with it, and no segment ids.
      dropout_key: a key for training with dropout; None: no dropout.

    Returns:
      (B, T, D) in the compute dtype; the cache with the inputs in it, if one was given; the means
      over layers of what the routers say, for a model with experts.
    """
    config = self.config
    if positions_BT is None:
      positions_BT = jnp.broadcast_to(
        jnp.arange(inputs_BT.shape[1])[None],
        inputs_BT.shape,
        out_sharding=spec(("act_batch", "act_seq")),
      )
    x_BTD = self.embed(inputs_BT)
    if config.positions is Positions.LEARNED:
      x_BTD += self.position_embed(positions_BT)
    keys = None
    if config.dropout > 0 and dropout_key is not None:
      keys = jax.random.split(dropout_key, config.num_layers + 1)
      x_BTD = _drop(x_BTD, config.dropout, keys[-1])

    def apply(block: Any, x_BTD: jax.Array, rows: Any, layer: Any) -> tuple[jax.Array, Any]:
      (segments_BT, positions_BT), (key, kv) = rows, layer
      return block(
        x_BTD, segment_ids_BT=segments_BT, positions_BT=positions_BT, cache=kv, dropout_key=key
      )

    kv_L = None if cache is None else (cache.k_LBSNK, cache.v_LBSNK)
    rows = (segment_ids_BT, positions_BT)
    keys = None if keys is None else keys[:-1]
    x_BTD, outs = self.stack(apply, x_BTD, rows, kv_L, keys=keys)
    kv_L, aux_L = (None, None) if outs is None else outs
    aux = None if aux_L is None else jax.tree.map(jnp.mean, aux_L)
    x_BTD = constrain(self.final_norm(x_BTD), "act_batch", "act_seq", "act_embed")
    return x_BTD, None if cache is None else Cache(*kv_L), aux

  def empty_cache(self, batch: int, slots: int) -> Cache:
    """A cache for `batch` sequences of up to `slots` tokens."""
    c = self.config
    return Cache.zeros(
      c.num_layers, batch, slots, c.kv_heads, c.head_size, resolve_dtype(c.compute_dtype)
    )


def _drop(x_BTD: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Dropout (Srivastava et al. 2014); the same mask on every mesh."""
  if key is None or rate == 0:
    return x_BTD
  where = spec(residual_axes(x_BTD.shape[1]))
  keep = jax.random.bernoulli(key, 1 - rate, x_BTD.shape, out_sharding=where)
  return jnp.where(keep, x_BTD / (1 - rate), 0).astype(x_BTD.dtype)
