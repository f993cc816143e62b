"""Configs of the models (plain data: imports no jax until a model is built)."""

import dataclasses
from typing import TYPE_CHECKING

from jaxlm.errors import UserError
from jaxlm.layers.config import (
  GATED,
  Activation,
  AttentionImpl,
  DType,
  Latent,
  Matmul,
  Norm,
  NormPlacement,
  Positions,
  Remat,
  RopeScaling,
  Router,
  resolve_dtype,
)
from jaxlm.models import decoder_checks
from jaxlm.models.mup import Mup, MupConfig, ratios

if TYPE_CHECKING:
  from jaxlm.models.base import ModelDef


@dataclasses.dataclass(kw_only=True)
class ModelConfig:
  """What every model config says of itself. Subclasses build their model.

  vocab_size: ids the model knows; 0 in a config file stands for the data's.
  """

  vocab_size: int

  def build(self) -> "ModelDef":
    """The model as functions of its parameters."""
    raise TypeError(f"{type(self).__name__} must define build()")

  def num_params(self) -> int:
    """The number of parameters, in closed form."""
    raise TypeError(f"{type(self).__name__} must define num_params()")

  def validate(self, path: str) -> None:
    """Raises UserError for an impossible combination."""
    if self.vocab_size < 0:
      raise UserError(
        f"{path}.vocab_size={self.vocab_size}: must be positive, or 0 to take the data's"
      )

  def validate_mesh(self, path: str, sizes: dict[str, int]) -> None:
    """Raises UserError when a dim is not divisible by the mesh axis that shards it."""


@dataclasses.dataclass(kw_only=True)
class DecoderConfig(ModelConfig):
  """A decoder-only transformer (Vaswani et al. 2017, pre-norm), Llama's shape by default.

  Attributes:
    vocab_size: pieces of the tokenizer. The tables are padded to a multiple of `vocab_multiple`.
    num_layers, embed_dim, mlp_dim, num_heads, num_kv_heads, head_dim: the shape. num_kv_heads <
      num_heads is grouped-query attention (arXiv:2305.13245). head_dim None: embed_dim/num_heads.
    max_seq_len: the longest sequence; sizes the table of LEARNED positions and bounds the rest.
    norm_placement: where a block's norms stand. norm_offset: norms multiply by norm_offset + scale
      (1: Gemma). norm_bias: of norms LAYER. embed_norm: a norm of the embeddings (BLOOM).
    parallel_residual: x + attention(norm(x)) + mlp(mlp_norm(x)) (GPT-NeoX, arXiv:2204.06745).
    rotary_fraction: how much of each head RoPE rotates. rope_scaling: see RopeScaling; None: none.
    sliding_window: a token sees itself and sliding_window - 1 before it (arXiv:2310.06825); None:
      all. window_pattern: which layers have the window, repeated over the layers; the others see
      all. local_rope_theta: RoPE's base (unscaled) in layers with the window; None: rope_theta.
    attention_scale: multiplies scores; None: 1 / sqrt(head_dim).
    attention_softcap, logits_softcap: x -> cap tanh(x / cap) of scores and logits (Gemma 2,
      arXiv:2408.00118); None: none.
    embed_scale: multiplies the embeddings of tokens, in the compute dtype.
    qk_norm: RMS norm of queries and keys per head (Dehghani et al. 2023, arXiv:2302.05442).
      qk_norm_whole: over all heads together (OLMo 2).
    use_bias: biases on every projection. qkv_bias, out_bias, mlp_bias: of some; None: use_bias.
    dropout: on the embedding and on each residual branch, at training only.
    init_std: of all matrices; those that write to the residual stream have it divided by
      sqrt(2 num_layers), as in GPT-2.
    num_experts: mixture-of-experts layers: each token goes through num_experts_per_token of so many
      MLPs of mlp_dim (Shazeer et al. 2017, arXiv:1701.06538); None: one MLP. Losses of the router
      are in config.objective. Their numbers are in the metrics router_*.
    router, normalize_gates, router_scale: a token's weights of its experts are the router's scores,
      divided by their sum if so, times router_scale.
    router_bias: adds a vector to the scores where experts are chosen, not where they are weighted
      (arXiv:2408.15664). No gradient reaches it.
    expert_groups, expert_groups_per_token: a token's experts are of its best groups alone.
    latent: multi-head latent attention, see Latent; None: keys and values of their own.
    num_dense_layers: the first so many layers have one MLP, of dense_mlp_dim (None: mlp_dim).
    num_shared_experts: experts that every token goes through, as one MLP of so many times mlp_dim.
    expert_capacity: room of an expert in units of an even share; what is over is dropped. None:
      nothing is dropped. Of training and its own evaluations: a run that is opened for use
      (evaluate, generate) drops nothing.
    mup: widths are relative to this base (µP, see models/mup.py); None: standard parametrisation.
    scan_layers: one compiled body of `scan_block` layers, looped over; False: unrolled.
  """

  num_layers: int = 12
  embed_dim: int = 768
  mlp_dim: int = 2048
  num_heads: int = 12
  num_kv_heads: int | None = None
  head_dim: int | None = None
  max_seq_len: int = 2048
  norm: Norm = Norm.RMS
  norm_eps: float = 1e-6
  norm_placement: NormPlacement = NormPlacement.PRE
  norm_offset: float = 0.0
  norm_bias: bool = True
  embed_norm: bool = False
  parallel_residual: bool = False
  positions: Positions = Positions.ROPE
  rope_theta: float = 10_000.0
  rotary_fraction: float = 1.0
  rope_scaling: RopeScaling | None = None
  sliding_window: int | None = None
  window_pattern: tuple[bool, ...] = (True,)
  local_rope_theta: float | None = None
  attention_scale: float | None = None
  attention_softcap: float | None = None
  logits_softcap: float | None = None
  embed_scale: float = 1.0
  activation: Activation = Activation.SWIGLU
  qk_norm: bool = False
  qk_norm_whole: bool = False
  latent: Latent | None = None
  use_bias: bool = False
  qkv_bias: bool | None = None
  out_bias: bool | None = None
  mlp_bias: bool | None = None
  tie_embeddings: bool = False
  num_experts: int | None = None
  num_experts_per_token: int = 2
  router: Router = Router.SOFTMAX
  normalize_gates: bool = True
  router_scale: float = 1.0
  router_bias: bool = False
  expert_groups: int = 1
  expert_groups_per_token: int = 1
  num_shared_experts: int = 0
  num_dense_layers: int = 0
  dense_mlp_dim: int | None = None
  expert_capacity: float | None = None
  dropout: float = 0.0
  init_std: float = 0.02
  mup: MupConfig | None = None
  vocab_multiple: int = 128
  compute_dtype: DType = DType.AUTO
  param_dtype: DType = DType.FLOAT32
  matmul: Matmul = Matmul.COMPUTE
  scan_layers: bool = True
  scan_block: int = 1
  remat: Remat = Remat.AUTO
  attention: AttentionImpl = AttentionImpl.AUTO

  @property
  def kv_heads(self) -> int:
    """num_kv_heads, or num_heads where that is None."""
    return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

  @property
  def head_size(self) -> int:
    """head_dim, or embed_dim / num_heads where that is None."""
    return self.embed_dim // self.num_heads if self.head_dim is None else self.head_dim

  @property
  def gated(self) -> bool:
    """Whether the MLP has a gate beside its up projection."""
    return self.activation in GATED

  @property
  def biases(self) -> tuple[bool, bool, bool]:
    """Whether there are biases on queries, keys and values; on attention's output; in the MLP."""
    some = (self.qkv_bias, self.out_bias, self.mlp_bias)
    qkv, out, mlp = (self.use_bias if one is None else one for one in some)
    return qkv, out, mlp

  @property
  def mup_ratios(self) -> Mup:
    """How many times the base's dims the model's are; all 1 without mup."""
    attention_dim = self.num_heads * self.head_size
    return ratios(
      self.mup,
      embed_dim=self.embed_dim,
      attention_dim=attention_dim,
      mlp_dim=self.mlp_dim,
      head_dim=self.head_size,
    )

  @property
  def local_layers(self) -> tuple[bool, ...]:
    """For each layer, whether it has the sliding window."""
    if self.sliding_window is None:
      return (False,) * self.num_layers
    pattern = self.window_pattern
    return tuple(pattern[i % len(pattern)] for i in range(self.num_layers))

  @property
  def dense(self) -> "DecoderConfig":
    """The config of the first num_dense_layers layers."""
    return dataclasses.replace(
      self,
      num_experts=None,
      num_dense_layers=0,
      dense_mlp_dim=None,
      mlp_dim=self.dense_mlp_dim or self.mlp_dim,
    )

  @property
  def padded_vocab_size(self) -> int:
    """vocab_size rounded up to a multiple of vocab_multiple."""
    return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

  def build(self) -> "ModelDef":
    from jaxlm.models.base import ModelDef
    from jaxlm.models.decoder import Decoder

    dtype = resolve_dtype(self.compute_dtype)
    return ModelDef(lambda rngs: Decoder(self, rngs=rngs), dtype)

  def num_params(self) -> int:
    D = self.embed_dim
    norm = D * (2 if self.norm is Norm.LAYER and self.norm_bias else 1)
    tables = self.padded_vocab_size * D * (1 if self.tie_embeddings else 2)
    if self.positions is Positions.LEARNED:
      tables += self.max_seq_len * D
    dense = self.num_dense_layers
    blocks = (self.num_layers - dense) * self._block_params()
    blocks += dense * self.dense._block_params() if dense else 0
    return tables + blocks + norm * (2 if self.embed_norm else 1)

  def _attention_params(self) -> int:
    """The matrices of a layer's attention."""
    D, H, N, K = self.embed_dim, self.num_heads, self.kv_heads, self.head_size
    if self.latent is None:
      return 2 * D * H * K + 2 * D * N * K
    one, rank = self.latent, self.latent.query_rank
    queries = D * H * K if rank is None else (D + H * K) * rank
    keys = D * (one.kv_rank + one.rope_dim) + one.kv_rank * H * (one.nope_dim + one.value_dim)
    return queries + keys + H * one.value_dim * D

  def _block_params(self) -> int:
    D, F, H, N, K = self.embed_dim, self.mlp_dim, self.num_heads, self.kv_heads, self.head_size
    norm = D * (2 if self.norm is Norm.LAYER and self.norm_bias else 1)
    attention = self._attention_params()
    if self.latent is not None:
      attention += self.latent.kv_rank + (self.latent.query_rank or 0)
    mlp = (3 if self.gated else 2) * D * F
    if self.num_experts is not None:
      router = D + (1 if self.router_bias else 0)
      mlp = self.num_experts * (mlp + router) + self.num_shared_experts * mlp
    norms = 4 if self.norm_placement is NormPlacement.BOTH else 2
    block = attention + mlp + norms * norm
    if self.qk_norm:
      block += (H + N) * K if self.qk_norm_whole else 2 * K
    qkv_bias, out_bias, mlp_bias = self.biases
    block += (H * K + 2 * N * K if qkv_bias else 0) + (D if out_bias else 0)
    block += F * (2 if self.gated else 1) + D if mlp_bias else 0
    return block

  def num_matmul_params(self) -> int:
    """Parameters that a matmul reads for every token: all but input tables, norms and biases."""
    D, F = self.embed_dim, self.mlp_dim
    mlp = (3 if self.gated else 2) * D * F
    dense = self.num_dense_layers
    first = dense * (self._attention_params() + (3 if self.gated else 2) * D * self.dense.mlp_dim)
    if self.num_experts is not None:
      active = self.num_experts_per_token + self.num_shared_experts
      mlp = active * mlp + self.num_experts * D
    block = self._attention_params() + mlp
    return first + (self.num_layers - dense) * block + self.padded_vocab_size * D

  def flops_per_token(self, seq_len: int, *, causal: bool = False) -> float:
    """Forward and backward FLOPs a token: 6 N_matmul + 12 L H K T.

    With causal=True attention counts half, 6 L H K T: only what the causal mask leaves. In layers
    with a sliding window W a token sees W others, and W - W^2 / 2T with causal=True.
    Recomputation is not counted.
    """
    W = min(self.sliding_window or seq_len, seq_len)
    everything = seq_len / 2 if causal else seq_len
    window = W - W * W / (2 * seq_len) if causal else W
    num_local = sum(self.local_layers)
    seen = num_local * window + (self.num_layers - num_local) * everything
    # A score and a value, 6 K FLOPs each.
    both = 12 * self.head_size
    if self.latent is not None:
      both = 6 * (self.head_size + self.latent.value_dim)
    return 6 * self.num_matmul_params() + self.num_heads * both * seen

  def validate(self, path: str) -> None:
    super().validate(path)
    decoder_checks.shape(self, path)

  def validate_mesh(self, path: str, sizes: dict[str, int]) -> None:
    decoder_checks.mesh(self, path, sizes)
