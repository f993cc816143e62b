"""Config of the encoder (plain data: imports no jax until a model is built)."""

import dataclasses
from typing import TYPE_CHECKING

from jaxlm.errors import UserError
from jaxlm.layers.config import (
  GATED,
  Activation,
  AttentionImpl,
  DType,
  Matmul,
  Positions,
  Remat,
  resolve_dtype,
)
from jaxlm.models.config import ModelConfig

if TYPE_CHECKING:
  from jaxlm.models.base import ModelDef


@dataclasses.dataclass(kw_only=True)
class EncoderConfig(ModelConfig):
  """A bidirectional transformer with a masked-language-model head (Devlin et al. 2019,
  arXiv:1810.04805), of ModernBERT's shape (Warner et al. 2024, arXiv:2412.13663) by default.

  The head is a dense layer with the MLP's nonlinearity and a norm, then the token table and a bias.
  Norms are layer norms.

  Attributes:
    vocab_size, num_layers, embed_dim, mlp_dim, num_heads, max_seq_len: as of DecoderConfig.
    pre_norm: x + f(norm(x)), a norm at the end and none before the first attention (ModernBERT);
      False: norm(x + f(x)) (BERT). The embeddings are normalised in both.
    norm_bias, use_bias: biases of norms; of projections, the head's dense layer among them.
    positions: ROPE or LEARNED. position_offset: rows at the start of the LEARNED table that no
      position has (RoBERTa: 2).
    token_types: kinds of token, for models that tell two texts apart (BERT: 2, of which all tokens
      are of kind 0 unless the call says otherwise); 0: none.
    local_reach: in local layers a token sees so many to either side; None: no layer is local.
    global_every: layers 0, global_every, 2 global_every, … are not local.
    local_rope_theta: RoPE's base in local layers; None: rope_theta.
    dropout: on the embedding and on each residual branch, at training only.
    init_std: of all matrices.
    scan_layers: one compiled body of `scan_block` layers, looped over; False: unrolled.
  """

  num_layers: int = 12
  embed_dim: int = 768
  mlp_dim: int = 1152
  num_heads: int = 12
  max_seq_len: int = 1024
  pre_norm: bool = True
  norm_eps: float = 1e-5
  norm_bias: bool = False
  positions: Positions = Positions.ROPE
  position_offset: int = 0
  token_types: int = 0
  rope_theta: float = 160_000.0
  local_reach: int | None = None
  global_every: int = 3
  local_rope_theta: float | None = 10_000.0
  activation: Activation = Activation.GEGLU_EXACT
  use_bias: bool = False
  dropout: float = 0.0
  init_std: float = 0.02
  vocab_multiple: int = 128
  compute_dtype: DType = DType.AUTO
  param_dtype: DType = DType.FLOAT32
  matmul: Matmul = Matmul.COMPUTE
  scan_layers: bool = True
  scan_block: int = 1
  remat: Remat = Remat.AUTO
  attention: AttentionImpl = AttentionImpl.AUTO

  @property
  def head_size(self) -> int:
    """embed_dim / num_heads."""
    return self.embed_dim // self.num_heads

  @property
  def gated(self) -> bool:
    """Whether the MLP has a gate beside its up projection."""
    return self.activation in GATED

  @property
  def local_layers(self) -> tuple[bool, ...]:
    """For each layer, whether it is local."""
    local = self.local_reach is not None
    return tuple(local and i % self.global_every != 0 for i in range(self.num_layers))

  @property
  def padded_vocab_size(self) -> int:
    """vocab_size rounded up to a multiple of vocab_multiple."""
    return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

  def build(self) -> "ModelDef":
    from jaxlm.models.base import ModelDef
    from jaxlm.models.encoder import Encoder

    return ModelDef(lambda rngs: Encoder(self, rngs=rngs), resolve_dtype(self.compute_dtype))

  def num_params(self) -> int:
    D, F, V = self.embed_dim, self.mlp_dim, self.padded_vocab_size
    norm = 2 * D if self.norm_bias else D
    block = 4 * D * D + (3 if self.gated else 2) * D * F + 2 * norm
    if self.use_bias:
      block += 5 * D + F * (2 if self.gated else 1)
    tables = V * D + self.token_types * D
    if self.positions is Positions.LEARNED:
      tables += (self.max_seq_len + self.position_offset) * D
    head = D * D + (D if self.use_bias else 0) + norm + V
    return tables + self.num_layers * block + head + norm * (2 if self.pre_norm else 1)

  def num_matmul_params(self) -> int:
    """Parameters that a matmul reads for every token: all but input tables, norms and biases."""
    D, F = self.embed_dim, self.mlp_dim
    block = 4 * D * D + (3 if self.gated else 2) * D * F
    return self.num_layers * block + D * D + self.padded_vocab_size * D

  def flops_per_token(self, seq_len: int, *, causal: bool = False) -> float:
    """Forward and backward FLOPs a token: 6 N_matmul + 12 D times the tokens seen, over all layers.

    causal changes nothing: an encoder sees both sides.
    """
    del causal
    near = seq_len if self.local_reach is None else min(2 * self.local_reach + 1, seq_len)
    seen = sum(near if local else seq_len for local in self.local_layers)
    return 6 * self.num_matmul_params() + 12 * self.embed_dim * seen

  def validate(self, path: str) -> None:
    super().validate(path)
    for name in (
      "num_layers",
      "embed_dim",
      "mlp_dim",
      "num_heads",
      "max_seq_len",
      "scan_block",
      "global_every",
      "vocab_multiple",
    ):
      if getattr(self, name) < 1:
        raise UserError(f"{path}.{name}={getattr(self, name)}: must be positive")
    if self.embed_dim % self.num_heads:
      raise UserError(f"{path}.num_heads={self.num_heads}: must divide embed_dim={self.embed_dim}")
    if self.positions not in (Positions.ROPE, Positions.LEARNED):
      raise UserError(f"{path}.positions={self.positions.name}: an encoder has ROPE or LEARNED")
    if self.positions is Positions.ROPE and self.head_size % 2:
      raise UserError(
        f"{path}.num_heads={self.num_heads}: embed_dim / num_heads must be even for positions=ROPE"
      )
    for name in ("position_offset", "token_types"):
      if getattr(self, name) < 0:
        raise UserError(f"{path}.{name}={getattr(self, name)}: must not be negative")
    if self.local_reach is not None and self.local_reach < 0:
      raise UserError(f"{path}.local_reach={self.local_reach}: must not be negative, or none")
    if self.num_layers % self.scan_block:
      raise UserError(
        f"{path}.scan_block={self.scan_block}: must divide num_layers={self.num_layers}"
      )
    if not 0 <= self.dropout < 1:
      raise UserError(f"{path}.dropout={self.dropout}: must be at least 0 and less than 1")

  def validate_mesh(self, path: str, sizes: dict[str, int]) -> None:
    for axis, instead in (
      ("stage", "fsdp and model"),
      ("sequence", "data, fsdp and model"),
      ("expert", "data and fsdp"),
    ):
      if sizes[axis] > 1:
        raise UserError(
          f"config.mesh.{axis}={sizes[axis]}: an encoder goes over no such axis: use "
          f"config.mesh.{instead.replace(' and ', ' or ')}"
        )
    for name, value, axis in (
      ("num_heads", self.num_heads, "model"),
      ("mlp_dim", self.mlp_dim, "model"),
      ("vocab_multiple", self.vocab_multiple, "model"),
      ("embed_dim", self.embed_dim, "fsdp"),
    ):
      if value % sizes[axis]:
        raise UserError(
          f"{path}.{name}={value}: must be divisible by config.mesh.{axis}={sizes[axis]}"
        )
