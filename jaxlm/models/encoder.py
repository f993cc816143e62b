"""The encoder: bidirectional, with a masked-language-model head.

B batch, T position, D embed, V vocab, L layers.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlm.kernels.cross_entropy import logits
from jaxlm.layers.attention import Attention
from jaxlm.layers.config import Activation, Positions, resolve_dtype
from jaxlm.layers.dropout import drop
from jaxlm.layers.mlp import Mlp
from jaxlm.layers.norm import LayerNorm
from jaxlm.layers.stack import Stack
from jaxlm.models.encoder_config import EncoderConfig
from jaxlm.models.parts import table
from jaxlm.sharding import constant, constrain, einsum, gather, normal, param, spec

# The output bias rides in the product with the table: a column of its own, against a feature that
# is always 1, so that losses know of a table alone. Eight columns, since matrix units want
# multiples of that; the other seven are 0.
_BIAS_COLUMNS = 8


def _norm(config: EncoderConfig, rngs: nnx.Rngs) -> LayerNorm:
  return LayerNorm(
    config.embed_dim,
    eps=config.norm_eps,
    use_bias=config.norm_bias,
    dtype=resolve_dtype(config.param_dtype),
    rngs=rngs,
  )


class EncoderBlock(nnx.Module):
  """Attention and an MLP on the residual stream, normalised before (pre_norm) or after the sum."""

  def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
    dtype, param_dtype = resolve_dtype(config.compute_dtype), resolve_dtype(config.param_dtype)
    init = normal(config.init_std)
    common: Any = dict(
      embed_dim=config.embed_dim,
      use_bias=config.use_bias,
      matmul=config.matmul,
      init=init,
      init_out=init,
      dtype=dtype,
      param_dtype=param_dtype,
      rngs=rngs,
    )
    self.attention_norm = _norm(config, rngs)
    self.attention = Attention(
      num_heads=config.num_heads,
      kv_heads=config.num_heads,
      head_dim=config.head_size,
      positions=config.positions,
      rope_theta=config.rope_theta,
      qk_norm=False,
      norm_eps=config.norm_eps,
      impl=config.attention,
      causal=False,
      window=None if config.local_reach is None else config.local_reach + 1,
      local_rope_theta=None if config.local_reach is None else config.local_rope_theta,
      **common,
    )
    self.mlp_norm = _norm(config, rngs)
    self.mlp = Mlp(mlp_dim=config.mlp_dim, activation=config.activation, **common)
    self.pre_norm, self.dropout = config.pre_norm, config.dropout

  def __call__(
    self,
    x_BTD: jax.Array,
    *,
    segment_ids_BT: jax.Array | None,
    positions_BT: jax.Array,
    is_first: jax.Array,
    is_local: jax.Array | None,
    dropout_key: jax.Array | None,
  ) -> jax.Array:
    """The residual stream after the block.

    is_first, is_local: bool (), whether this is the first layer, and whether it is local (None: no
      layer differs in that).
    """
    keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)
    y_BTD = x_BTD
    if self.pre_norm:
      # The embeddings are normalised already. (The first norm's scale is there all the same: the
      # layers' parameters are stacked.)
      with jax.named_scope("norm"):
        y_BTD = jnp.where(is_first, x_BTD, self.attention_norm(x_BTD))
    with jax.named_scope("attention"):
      y_BTD, _ = self.attention(
        y_BTD,
        segment_ids_BT=segment_ids_BT,
        positions_BT=positions_BT,
        cache=None,
        is_local=is_local,
      )
    x_BTD += drop(y_BTD, self.dropout, keys[0])
    with jax.named_scope("norm"):
      if not self.pre_norm:
        x_BTD = self.attention_norm(x_BTD)
      y_BTD = self.mlp_norm(x_BTD) if self.pre_norm else x_BTD
    with jax.named_scope("mlp"):
      x_BTD += drop(self.mlp(y_BTD), self.dropout, keys[1])
    if not self.pre_norm:
      with jax.named_scope("norm"):
        x_BTD = self.mlp_norm(x_BTD)
    return x_BTD


class Head(nnx.Module):
  """norm(act(dense(x))): what is multiplied with the token table."""

  def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
    D, param_dtype = config.embed_dim, resolve_dtype(config.param_dtype)
    self.dtype, self.use_bias = resolve_dtype(config.compute_dtype), config.use_bias
    self.exact = config.activation in (Activation.GELU_EXACT, Activation.GEGLU_EXACT)
    init = normal(config.init_std)
    self.dense = param(init, rngs.params(), (D, D), ("embed", "norm"), param_dtype)
    if self.use_bias:
      self.dense_bias = param(constant(0.0), rngs.params(), (D,), ("norm",), param_dtype)
    self.norm = _norm(config, rngs)

  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    dense = gather(self.dense[...], self.dtype)
    y_BTD = einsum("BTD,DE->BTE", x_BTD, dense, out=("act_batch", "act_seq", "act_embed"))
    if self.use_bias:
      y_BTD += self.dense_bias[...].astype(self.dtype)[None, None]
    return self.norm(jax.nn.gelu(y_BTD, approximate=not self.exact))


class Encoder(nnx.Module):
  """Token ids to logits of what each token is."""

  def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
    self.config = config
    param_dtype = resolve_dtype(config.param_dtype)
    self.embed = table(config, config.padded_vocab_size, "vocab", rngs)
    if config.positions is Positions.LEARNED:
      self.position_embed = table(
        config, config.max_seq_len + config.position_offset, "positions", rngs
      )
    if config.token_types:
      self.type_embed = table(config, config.token_types, "positions", rngs)
    self.embed_norm = _norm(config, rngs)
    self.stack = Stack(
      lambda r: EncoderBlock(config, rngs=r),
      config.num_layers,
      scan=config.scan_layers,
      scan_block=config.scan_block,
      remat=config.remat,
      rngs=rngs,
    )
    if config.pre_norm:
      self.final_norm = _norm(config, rngs)
    self.head = Head(config, rngs=rngs)
    self.output_bias = param(
      constant(0.0), rngs.params(), (config.padded_vocab_size,), ("vocab",), param_dtype
    )

  def __call__(self, inputs_BT: jax.Array, **kwargs: Any) -> tuple[jax.Array, None]:
    """Logits (B, T, V) in the compute dtype, V the padded vocabulary, and None (there is no cache).

    Args: see `features`.
    """
    x_BTD, _, _ = self.features(inputs_BT, **kwargs)
    return logits(x_BTD, self.output_table(), self.config.vocab_size), None

  def output_table(self) -> jax.Array:
    """The table whose products with the features are the logits, (V, D + 8) in the compute dtype:
    the token table, and the output bias as a column of its own."""
    table_VD = self.embed.weight()
    bias_V1 = self.output_bias[...].astype(table_VD.dtype)[:, None]
    wide = jnp.pad(bias_V1, ((0, 0), (0, _BIAS_COLUMNS - 1)))
    return jnp.concatenate([table_VD, wide], axis=1)

  def features(
    self,
    inputs_BT: jax.Array,
    *,
    segment_ids_BT: jax.Array | None = None,
    positions_BT: jax.Array | None = None,
    token_types_BT: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
  ) -> tuple[jax.Array, None, None]:
    """What the head makes of every input's last hidden state.

    Args:
      inputs_BT: int32 token ids.
      segment_ids_BT: int32, the document of each input; none sees another's. 0: padding. None: each
        row is one document.
      positions_BT: int32, places in the document; None: 0, 1, 2, …
      token_types_BT: int32 below token_types; None: all 0.
      dropout_key: a key for training with dropout; None: no dropout.

    Returns:
      (B, T, D + 8) in the compute dtype, the last eight 1 and 0 (see output_table). (No cache, and
      nothing that a router says: what a Decoder returns beside.)
    """
    config = self.config
    if positions_BT is None:
      positions_BT = jnp.broadcast_to(
        jnp.arange(inputs_BT.shape[1])[None],
        inputs_BT.shape,
        out_sharding=spec(("act_batch", "act_seq")),
      )
    x_BTD = self.embed(inputs_BT)
    if config.token_types:
      # A batch that says nothing of kinds has ids that are 0 everywhere, in the inputs' layout.
      types = jnp.zeros_like(inputs_BT) if token_types_BT is None else token_types_BT
      x_BTD += self.type_embed(types)
    if config.positions is Positions.LEARNED:
      x_BTD += self.position_embed(positions_BT + config.position_offset)
    x_BTD = self.embed_norm(x_BTD)
    keys = None
    if config.dropout > 0 and dropout_key is not None:
      keys = jax.random.split(dropout_key, config.num_layers + 1)
      x_BTD = drop(x_BTD, config.dropout, keys[-1])

    mixed = any(config.local_layers)

    def apply(block: Any, x_BTD: jax.Array, rows: Any, layer: Any) -> tuple[jax.Array, Any]:
      (segments_BT, positions_BT), (key, (is_first, is_local)) = rows, layer
      x_BTD = block(
        x_BTD,
        segment_ids_BT=segments_BT,
        positions_BT=positions_BT,
        is_first=is_first,
        is_local=is_local if mixed else None,
        dropout_key=key,
      )
      return x_BTD, None

    per_layer = (jnp.arange(config.num_layers) == 0, jnp.asarray(config.local_layers))
    keys = None if keys is None else keys[:-1]
    x_BTD, _ = self.stack(apply, x_BTD, (segment_ids_BT, positions_BT), per_layer, keys=keys)
    with jax.named_scope("head"):
      if config.pre_norm:
        x_BTD = self.final_norm(x_BTD)
      x_BTD = self.head(constrain(x_BTD, "act_batch", "act_seq", "act_embed"))
      one = jnp.arange(_BIAS_COLUMNS) == 0
      ones = jnp.broadcast_to(
        one.astype(x_BTD.dtype)[None, None],
        (*x_BTD.shape[:2], _BIAS_COLUMNS),
        out_sharding=spec(("act_batch", "act_seq", "act_embed")),
      )
      return jnp.concatenate([x_BTD, ones], axis=-1), None, None
