"""The decoder-only transformer. B batch, T position, D embed, V vocab, L layers, S cache slots."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlm.kernels.cross_entropy import NO_SUCH_ID, logits
from jaxlm.layers.attention import KV, Attention
from jaxlm.layers.cache import Cache
from jaxlm.layers.config import Norm, NormPlacement, Positions, resolve_dtype
from jaxlm.layers.dropout import drop
from jaxlm.layers.mla import LatentAttention
from jaxlm.layers.mlp import Mlp
from jaxlm.layers.moe import MoeMlp
from jaxlm.layers.moe_aux import MoeAux
from jaxlm.layers.norm import LayerNorm, RMSNorm
from jaxlm.layers.stack import Stack
from jaxlm.models.config import DecoderConfig
from jaxlm.models.parts import table
from jaxlm.sharding import active, constrain, normal, residual_axes, spec


def _norm(config: DecoderConfig, rngs: nnx.Rngs) -> Any:
  common: Any = dict(eps=config.norm_eps, dtype=resolve_dtype(config.param_dtype), rngs=rngs)
  if config.norm is Norm.LAYER:
    return LayerNorm(config.embed_dim, use_bias=config.norm_bias, **common)
  return RMSNorm(config.embed_dim, offset=config.norm_offset, **common)


class Block(nnx.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)); norms may stand after, the two in parallel."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    dtype, param_dtype = resolve_dtype(config.compute_dtype), resolve_dtype(config.param_dtype)
    mup = config.mup_ratios
    init = normal(mup.std(config.init_std, "embed"))
    # GPT-2: what is added to the residual stream 2 L times starts smaller by sqrt(2 L).
    std_out = config.init_std / math.sqrt(2 * config.num_layers)
    scale = config.attention_scale
    if config.mup is not None:
      scale = (scale or config.head_size**-0.5) * mup.score_factor
    placement = config.norm_placement
    self.pre, self.post = placement is not NormPlacement.POST, placement is not NormPlacement.PRE
    self.parallel = config.parallel_residual
    qkv_bias, out_bias, mlp_bias = config.biases
    if self.pre:
      self.attention_norm = _norm(config, rngs)
    heads: Any = dict(
      embed_dim=config.embed_dim,
      num_heads=config.num_heads,
      rope_theta=config.rope_theta,
      norm_eps=config.norm_eps,
      rope_scaling=config.rope_scaling,
      scale=scale,
      impl=config.attention,
      matmul=config.matmul,
      init=init,
      init_out=normal(mup.std(std_out, "attention")),
      dtype=dtype,
      param_dtype=param_dtype,
      rngs=rngs,
    )
    if config.latent is not None:
      self.attention: Any = LatentAttention(latent=config.latent, **heads)
    else:
      self.attention = Attention(
        kv_heads=config.kv_heads,
        head_dim=config.head_size,
        positions=config.positions,
        qk_norm=config.qk_norm,
        use_bias=config.use_bias,
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        qk_norm_whole=config.qk_norm_whole,
        norm_offset=config.norm_offset,
        rotary_fraction=config.rotary_fraction,
        local_rope_theta=config.local_rope_theta,
        window=config.sliding_window,
        softcap=config.attention_softcap,
        **heads,
      )
    if self.post:
      self.attention_post_norm = _norm(config, rngs)
    if self.pre:
      self.mlp_norm = _norm(config, rngs)
    common: Any = dict(
      embed_dim=config.embed_dim,
      mlp_dim=config.mlp_dim,
      activation=config.activation,
      init=init,
      init_out=normal(mup.std(std_out, "mlp")),
      dtype=dtype,
      param_dtype=param_dtype,
      rngs=rngs,
    )
    if config.num_experts is None:
      self.mlp = Mlp(matmul=config.matmul, use_bias=mlp_bias, **common)
    else:
      self.moe = MoeMlp(
        num_experts=config.num_experts,
        experts_per_token=config.num_experts_per_token,
        router_kind=config.router,
        normalize_gates=config.normalize_gates,
        router_scale=config.router_scale,
        router_bias=config.router_bias,
        groups=config.expert_groups,
        groups_per_token=config.expert_groups_per_token,
        capacity_factor=config.expert_capacity,
        **common,
      )
    self.has_shared = config.num_experts is not None and config.num_shared_experts > 0
    if self.has_shared:
      common["mlp_dim"] *= config.num_shared_experts
      self.shared = Mlp(matmul=config.matmul, use_bias=False, **common)
    if self.post:
      self.mlp_post_norm = _norm(config, rngs)
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
    is_local: jax.Array | None = None,
    prefix_BT: jax.Array | None = None,
  ) -> tuple[jax.Array, tuple[KV | None, MoeAux | None]]:
    """The residual stream after the block; the cache with its tokens, and what the router says."""
    keys = None if dropout_key is None else jax.random.split(dropout_key)
    # Scopes name the parts in profiles.
    y_BTD = self._normed("attention_norm", x_BTD)
    with jax.named_scope("attention"):
      y_BTD, cache = self.attention(
        y_BTD,
        segment_ids_BT=segment_ids_BT,
        positions_BT=positions_BT,
        cache=cache,
        is_local=is_local,
        prefix_BT=prefix_BT,
      )
    y_BTD = self._normed("attention_post_norm", y_BTD)
    after_BTD = x_BTD + drop(y_BTD, self.dropout, None if keys is None else keys[0])
    y_BTD = self._normed("mlp_norm", x_BTD if self.parallel else after_BTD)
    aux = None
    with jax.named_scope("mlp"):
      if self.has_experts:
        shared_BTD = self.shared(y_BTD) if self.has_shared else None
        y_BTD, aux = self.moe(y_BTD)
        y_BTD = constrain(y_BTD, *residual_axes(y_BTD.shape[1]))
        if shared_BTD is not None:
          y_BTD += shared_BTD
      else:
        y_BTD = self.mlp(y_BTD)
    y_BTD = self._normed("mlp_post_norm", y_BTD)
    x_BTD = after_BTD + drop(y_BTD, self.dropout, None if keys is None else keys[1])
    return x_BTD, (cache, aux)

  def _normed(self, name: str, x_BTD: jax.Array) -> jax.Array:
    """x after the norm of this name; x itself where the block has none of that name."""
    if not (self.post if name.endswith("_post_norm") else self.pre):
      return x_BTD
    with jax.named_scope("norm"):
      return getattr(self, name)(x_BTD)


class Decoder(nnx.Module):
  """Token ids to logits."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    self.config = config
    self.embed = table(config, config.padded_vocab_size, "vocab", rngs)
    if config.positions is Positions.LEARNED:
      self.position_embed = table(config, config.max_seq_len, "positions", rngs)
    if config.embed_norm:
      self.embed_norm = _norm(config, rngs)
    dense = config.num_dense_layers
    if dense:
      self.dense_stack = Stack(
        lambda r: Block(config.dense, rngs=r),
        dense,
        scan=config.scan_layers,
        scan_block=1,
        remat=config.remat,
        rngs=rngs,
      )
    self.stack = Stack(
      lambda r: Block(config, rngs=r),
      config.num_layers - dense,
      scan=config.scan_layers,
      scan_block=config.scan_block,
      remat=config.remat,
      rngs=rngs,
    )
    self.final_norm = _norm(config, rngs)
    if not config.tie_embeddings:
      self.unembed = table(config, config.padded_vocab_size, "vocab", rngs)

  def __call__(
    self,
    inputs_BT: jax.Array,
    *,
    segment_ids_BT: jax.Array | None = None,
    positions_BT: jax.Array | None = None,
    cache: Cache | None = None,
    dropout_key: jax.Array | None = None,
    prefix_BT: jax.Array | None = None,
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
      prefix_BT=prefix_BT,
    )
    out_BTV = logits(x_BTD, self.output_table(), self.config.vocab_size)
    if (cap := self.config.logits_softcap) is not None:
      # The ids that only pad the table keep probability 0.
      out_BTV = jnp.where(out_BTV <= NO_SUCH_ID, out_BTV, cap * jnp.tanh(out_BTV / cap))
    return out_BTV, cache

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
    prefix_BT: jax.Array | None = None,
  ) -> tuple[jax.Array, Cache | None, MoeAux | None]:
    """The last hidden state of every input, normalised.

    Args:
      inputs_BT: int32 token ids.
      segment_ids_BT: int32, the document of each input, or None: each row is one document.
      positions_BT: int32, places in the document; None: 0, 1, 2, …
      cache: keys and values so far. The inputs' own go into the slots of their positions, and
        each input sees the slots up to its own. Give positions with it, and no segment ids.
      dropout_key: a key for training with dropout; None: no dropout.
      prefix_BT: the inputs that their whole document sees; None: causal throughout. With a cache:
        that the inputs of this call see; those of later calls come after them anyway.

    Returns:
      (B, T, D) in the compute dtype; the cache with the inputs in it, if one was given; the means
      over layers of what the routers say, for a model with experts.
    """
    config = self.config
    if positions_BT is None:
      layout = active()
      assert layout is None or not layout.zigzag, "rows in zigzag order need their positions"
      positions_BT = jnp.broadcast_to(
        jnp.arange(inputs_BT.shape[1])[None],
        inputs_BT.shape,
        out_sharding=spec(("act_batch", "act_seq")),
      )
    x_BTD = self.embed(inputs_BT)
    if config.embed_scale != 1:
      x_BTD *= jnp.asarray(config.embed_scale, x_BTD.dtype)
    if config.positions is Positions.LEARNED:
      x_BTD += self.position_embed(positions_BT)
    if config.embed_norm:
      x_BTD = self.embed_norm(x_BTD)
    keys = None
    if config.dropout > 0 and dropout_key is not None:
      keys = jax.random.split(dropout_key, config.num_layers + 1)
      x_BTD = drop(x_BTD, config.dropout, keys[-1])

    # Layers that differ are told so, so that one compiled body serves all.
    mixed = len(set(config.local_layers)) > 1

    def apply(block: Any, x_BTD: jax.Array, rows: Any, layer: Any) -> tuple[jax.Array, Any]:
      (segments_BT, positions_BT, prefix_BT), (key, own) = rows, layer
      kv, is_local = own if mixed else (own, None)
      return block(
        x_BTD,
        segment_ids_BT=segments_BT,
        positions_BT=positions_BT,
        cache=kv,
        dropout_key=key,
        is_local=is_local,
        prefix_BT=prefix_BT,
      )

    kv_L = None if cache is None else (cache.k_LBSNK, cache.v_LBSNK)
    rows = (segment_ids_BT, positions_BT, prefix_BT)
    keys = None if keys is None else keys[:-1]
    per_layer = (kv_L, jnp.asarray(config.local_layers)) if mixed else kv_L
    first, dense = None, config.num_dense_layers
    if dense:
      early, (per_layer, keys) = (
        jax.tree.map(lambda leaf, at=at: leaf[at], (per_layer, keys))
        for at in (slice(dense), slice(dense, None))
      )
      x_BTD, (first, _) = self.dense_stack(apply, x_BTD, rows, early[0], keys=early[1])
    x_BTD, outs = self.stack(apply, x_BTD, rows, per_layer, keys=keys)
    kv_L, aux_L = (None, None) if outs is None else outs
    if first is not None and kv_L is not None:
      kv_L = (jnp.concatenate([first[0], kv_L[0]]), jnp.concatenate([first[1], kv_L[1]]))
    aux = None if aux_L is None else jax.tree.map(jnp.mean, aux_L)
    x_BTD = constrain(self.final_norm(x_BTD), "act_batch", "act_seq", "act_embed")
    if config.mup is not None:
      x_BTD *= jnp.asarray(config.mup_ratios.logits_factor, x_BTD.dtype)
    return x_BTD, None if cache is None or kv_L is None else Cache(*kv_L), aux

  def empty_cache(self, batch: int, slots: int) -> Cache:
    """A cache for `batch` sequences of up to `slots` tokens."""
    c = self.config
    if c.latent is not None:
      where = spec(("layers", "act_batch", "act_kv_seq", None, None))
      shape, dtype = (c.num_layers, batch, slots, 1), resolve_dtype(c.compute_dtype)
      size = c.latent.kv_rank + c.latent.rope_dim
      latents = jnp.zeros((*shape, size), dtype, out_sharding=where)
      return Cache(latents, jnp.zeros((*shape, 1), dtype, out_sharding=where))
    return Cache.zeros(
      c.num_layers, batch, slots, c.kv_heads, c.head_size, resolve_dtype(c.compute_dtype)
    )
