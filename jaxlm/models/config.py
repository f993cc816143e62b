"""Configs of the models (plain data: imports no jax until a model is built)."""

import dataclasses
from typing import TYPE_CHECKING

from jaxlm.errors import UserError
from jaxlm.layers.config import (
  Activation,
  AttentionImpl,
  DType,
  Matmul,
  Norm,
  Positions,
  Remat,
  resolve_dtype,
)
from jaxlm.mesh import MESH_AXES

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
    qk_norm: RMS norm of queries and keys per head (Dehghani et al. 2023, arXiv:2302.05442).
    use_bias: biases on every projection. Norm LAYER always has its bias.
    dropout: on the embedding and on each residual branch, at training only.
    init_std: of all matrices; those that write to the residual stream have it divided by
      sqrt(2 num_layers), as in GPT-2.
    num_experts: mixture-of-experts layers: each token goes through num_experts_per_token of so many
      MLPs of mlp_dim (Shazeer et al. 2017, arXiv:1701.06538); None: one MLP. Losses of the router
      are in config.objective. Their numbers are in the metrics router_*.
    expert_capacity: room of an expert in units of an even share; what is over is dropped. None:
      nothing is dropped.
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
  positions: Positions = Positions.ROPE
  rope_theta: float = 10_000.0
  activation: Activation = Activation.SWIGLU
  qk_norm: bool = False
  use_bias: bool = False
  tie_embeddings: bool = False
  num_experts: int | None = None
  num_experts_per_token: int = 2
  expert_capacity: float | None = None
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
    return self.activation in (Activation.SWIGLU, Activation.GEGLU)

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
    D, F, H, N, K = self.embed_dim, self.mlp_dim, self.num_heads, self.kv_heads, self.head_size
    norm = D * (2 if self.norm is Norm.LAYER else 1)
    attention = 2 * D * H * K + 2 * D * N * K
    mlp = (3 if self.gated else 2) * D * F
    if self.num_experts is not None:
      mlp = self.num_experts * (mlp + D)
    block = attention + mlp + 2 * norm + (2 * K if self.qk_norm else 0)
    if self.use_bias:
      block += H * K + 2 * N * K + D + F * (2 if self.gated else 1) + D
    tables = self.padded_vocab_size * D * (1 if self.tie_embeddings else 2)
    if self.positions is Positions.LEARNED:
      tables += self.max_seq_len * D
    return tables + self.num_layers * block + norm

  def num_matmul_params(self) -> int:
    """Parameters that a matmul reads for every token: all but input tables, norms and biases."""
    D, F, H, N, K = self.embed_dim, self.mlp_dim, self.num_heads, self.kv_heads, self.head_size
    mlp = (3 if self.gated else 2) * D * F
    if self.num_experts is not None:
      mlp = self.num_experts_per_token * mlp + self.num_experts * D
    block = 2 * D * H * K + 2 * D * N * K + mlp
    return self.num_layers * block + self.padded_vocab_size * D

  def flops_per_token(self, seq_len: int, *, causal: bool = False) -> float:
    """Forward and backward FLOPs a token: 6 N_matmul + 12 L H K T.

    With causal=True attention counts half, 6 L H K T: only what the causal mask leaves.
    Recomputation is not counted.
    """
    attention = 12 * self.num_layers * self.num_heads * self.head_size * seq_len
    return 6 * self.num_matmul_params() + (attention / 2 if causal else attention)

  def validate(self, path: str) -> None:
    super().validate(path)
    for name in ("num_layers", "embed_dim", "mlp_dim", "num_heads", "max_seq_len", "scan_block"):
      if getattr(self, name) < 1:
        raise UserError(f"{path}.{name}={getattr(self, name)}: must be positive")
    if self.vocab_multiple < 1:
      raise UserError(f"{path}.vocab_multiple={self.vocab_multiple}: must be positive")
    if self.head_dim is None and self.embed_dim % self.num_heads:
      raise UserError(
        f"{path}.num_heads={self.num_heads}: must divide embed_dim={self.embed_dim}, "
        f"or set {path}.head_dim"
      )
    if self.kv_heads < 1 or self.num_heads % self.kv_heads:
      raise UserError(
        f"{path}.num_kv_heads={self.kv_heads}: must divide num_heads={self.num_heads}"
      )
    if self.positions is Positions.ROPE and self.head_size % 2:
      raise UserError(f"{path}.head_dim={self.head_size}: must be even for positions=ROPE")
    if self.num_layers % self.scan_block:
      raise UserError(
        f"{path}.scan_block={self.scan_block}: must divide num_layers={self.num_layers}"
      )
    if not 0 <= self.dropout < 1:
      raise UserError(f"{path}.dropout={self.dropout}: must be at least 0 and less than 1")

    self._validate_experts(path)

  def _validate_experts(self, path: str) -> None:
    if self.num_experts is None:
      return
    if not 1 <= self.num_experts_per_token <= self.num_experts:
      raise UserError(
        f"{path}.num_experts_per_token={self.num_experts_per_token}: must be between 1 and "
        f"num_experts={self.num_experts}"
      )
    if not self.gated or self.use_bias:
      raise UserError(
        f"{path}.num_experts={self.num_experts}: experts are gated and have no biases: set "
        f"{path}.activation=SWIGLU and {path}.use_bias=false"
      )
    if self.expert_capacity is not None and self.expert_capacity <= 0:
      raise UserError(f"{path}.expert_capacity={self.expert_capacity}: must be positive")

  def _validate_stages(self, path: str, stages: int) -> None:
    if stages == 1:
      return
    if not self.scan_layers:
      raise UserError(
        f"config.mesh.stage={stages}: needs {path}.scan_layers=true: a stage is a part of the "
        "stacked layers"
      )
    if (self.num_layers // self.scan_block) % stages:
      raise UserError(
        f"{path}.num_layers={self.num_layers}: divided by scan_block={self.scan_block} must be "
        f"divisible by config.mesh.stage={stages}"
      )
    if self.num_experts is not None:
      raise UserError(
        f"config.mesh.stage={stages}: mixture-of-experts layers can not be pipelined yet: use "
        "config.mesh.expert and fsdp"
      )

  def validate_mesh(self, path: str, sizes: dict[str, int]) -> None:
    self._validate_stages(path, sizes["stage"])
    if sizes["expert"] > 1 and (self.num_experts or 0) % sizes["expert"]:
      raise UserError(
        f"{path}.num_experts={self.num_experts}: must be divisible by "
        f"config.mesh.expert={sizes['expert']}"
      )
    if sizes["expert"] > 1 and self.num_experts is None:
      raise UserError(
        f"config.mesh.expert={sizes['expert']}: needs {path}.num_experts; this model has one MLP a "
        "layer: use config.mesh.data or fsdp"
      )
    for name, value, axis in (
      ("num_heads", self.num_heads, "model"),
      ("num_kv_heads", self.kv_heads, "model"),
      ("mlp_dim", self.mlp_dim, "model"),
      ("vocab_multiple", self.vocab_multiple, "model"),
      ("embed_dim", self.embed_dim, "fsdp"),
    ):
      assert axis in MESH_AXES
      if value % sizes[axis]:
        raise UserError(
          f"{path}.{name}={value}: must be divisible by config.mesh.{axis}={sizes[axis]}"
        )
