"""What a DecoderConfig can not be, and what meshes can not split it."""

from typing import TYPE_CHECKING

from jaxlm.errors import UserError
from jaxlm.layers.config import Latent, Norm, NormPlacement, Positions, RopeKind
from jaxlm.mesh import MESH_AXES

if TYPE_CHECKING:
  from jaxlm.models.config import DecoderConfig


def shape(config: "DecoderConfig", path: str) -> None:
  """Raises UserError for fields that can not go together."""
  for name in ("num_layers", "embed_dim", "mlp_dim", "num_heads", "max_seq_len", "scan_block"):
    if getattr(config, name) < 1:
      raise UserError(f"{path}.{name}={getattr(config, name)}: must be positive")
  if config.vocab_multiple < 1:
    raise UserError(f"{path}.vocab_multiple={config.vocab_multiple}: must be positive")
  if config.head_dim is None and config.embed_dim % config.num_heads:
    raise UserError(
      f"{path}.num_heads={config.num_heads}: must divide embed_dim={config.embed_dim}, "
      f"or set {path}.head_dim"
    )
  if config.kv_heads < 1 or config.num_heads % config.kv_heads:
    raise UserError(
      f"{path}.num_kv_heads={config.kv_heads}: must divide num_heads={config.num_heads}"
    )
  if config.positions is Positions.ROPE and config.head_size % 2:
    raise UserError(f"{path}.head_dim={config.head_size}: must be even for positions=ROPE")
  if config.positions is Positions.ROPE:
    _rope(config, path)
  if config.sliding_window is not None and (config.sliding_window < 1 or not config.window_pattern):
    raise UserError(
      f"{path}.sliding_window={config.sliding_window}: must be positive, and "
      f"{path}.window_pattern={config.window_pattern} have at least one value"
    )
  if config.local_rope_theta is not None and config.sliding_window is None:
    raise UserError(f"{path}.local_rope_theta: needs {path}.sliding_window")
  if config.norm_offset and config.norm is not Norm.RMS:
    raise UserError(f"{path}.norm_offset={config.norm_offset}: needs {path}.norm=RMS")
  if config.qk_norm_whole and (not config.qk_norm or config.norm_offset):
    raise UserError(f"{path}.qk_norm_whole: needs {path}.qk_norm=true and {path}.norm_offset=0")
  if config.parallel_residual and config.norm_placement is not NormPlacement.PRE:
    raise UserError(f"{path}.parallel_residual: needs {path}.norm_placement=PRE")
  for name in ("attention_softcap", "logits_softcap", "attention_scale"):
    value = getattr(config, name)
    if value is not None and value <= 0:
      raise UserError(f"{path}.{name}={value}: must be positive, or none")
  if config.latent is not None:
    _latent(config, path, config.latent)
  if config.num_dense_layers and not (
    config.num_experts and 0 < config.num_dense_layers < config.num_layers
  ):
    raise UserError(
      f"{path}.num_dense_layers={config.num_dense_layers}: must be less than "
      f"num_layers={config.num_layers}, and needs {path}.num_experts"
    )
  if (config.num_layers - config.num_dense_layers) % config.scan_block:
    raise UserError(
      f"{path}.scan_block={config.scan_block}: must divide num_layers={config.num_layers}"
    )
  if not 0 <= config.dropout < 1:
    raise UserError(f"{path}.dropout={config.dropout}: must be at least 0 and less than 1")

  if config.mup is not None:
    config.mup.validate(f"{path}.mup")
    if config.num_experts is not None or config.logits_softcap is not None:
      raise UserError(f"{path}.mup: goes with no experts and no logits_softcap yet: set it to none")

  _experts(config, path)


def _latent(config: "DecoderConfig", path: str, latent: Latent) -> None:
  both = latent.nope_dim + latent.rope_dim
  if config.head_size != both or config.kv_heads != config.num_heads or latent.value_dim > both:
    raise UserError(
      f"{path}.latent: needs head_dim={both} = nope_dim + rope_dim, num_kv_heads=num_heads and a "
      f"value_dim of at most {both}"
    )
  plain = config.sliding_window is None and config.attention_softcap is None and not config.qk_norm
  plain = plain and config.mup is None
  if config.positions is not Positions.ROPE or not plain or any(config.biases[:2]):
    raise UserError(
      f"{path}.latent: goes with positions=ROPE and no biases, windows, soft caps, qk_norm or mup"
    )


def _rope(config: "DecoderConfig", path: str) -> None:
  rotated = int(config.head_size * config.rotary_fraction)
  if config.latent is not None:
    rotated = config.latent.rope_dim
  if not 0 < config.rotary_fraction <= 1 or rotated < 2 or rotated % 2:
    raise UserError(
      f"{path}.rotary_fraction={config.rotary_fraction}: must leave an even number of "
      f"head_dim={config.head_size} to rotate"
    )
  scaling = config.rope_scaling
  if scaling is None:
    return
  if scaling.factor < 1 or scaling.original_max_seq_len < 1:
    raise UserError(
      f"{path}.rope_scaling: factor={scaling.factor} and "
      f"original_max_seq_len={scaling.original_max_seq_len} must be at least 1"
    )
  if scaling.kind is RopeKind.LONGROPE:
    for name in ("short_factors", "long_factors"):
      if len(getattr(scaling, name)) != rotated // 2:
        raise UserError(f"{path}.rope_scaling.{name}: must have {rotated // 2} numbers")
  if config.local_rope_theta is not None and scaling.kind in (RopeKind.YARN, RopeKind.LONGROPE):
    raise UserError(f"{path}.local_rope_theta: goes with no rope_scaling {scaling.kind.name}")


def _experts(config: "DecoderConfig", path: str) -> None:
  if config.num_experts is None:
    return
  if not 1 <= config.num_experts_per_token <= config.num_experts:
    raise UserError(
      f"{path}.num_experts_per_token={config.num_experts_per_token}: must be between 1 and "
      f"num_experts={config.num_experts}"
    )
  if not config.gated or config.biases[2]:
    raise UserError(
      f"{path}.num_experts={config.num_experts}: experts are gated and have no biases: set "
      f"{path}.activation=SWIGLU and {path}.use_bias=false"
    )
  groups, chosen = config.expert_groups, config.expert_groups_per_token
  if config.num_shared_experts < 0:
    raise UserError(f"{path}.num_shared_experts={config.num_shared_experts}: must not be negative")
  if groups < 1 or not 1 <= chosen <= groups or config.num_experts % groups:
    raise UserError(
      f"{path}.expert_groups={groups}: must divide num_experts={config.num_experts} and be at "
      f"least expert_groups_per_token={chosen}"
    )
  if config.num_experts_per_token > chosen * (config.num_experts // groups):
    raise UserError(
      f"{path}.num_experts_per_token={config.num_experts_per_token}: "
      f"{path}.expert_groups_per_token={chosen} groups do not have so many experts"
    )
  if config.expert_capacity is not None and config.expert_capacity <= 0:
    raise UserError(f"{path}.expert_capacity={config.expert_capacity}: must be positive")


def _stages(config: "DecoderConfig", path: str, stages: int) -> None:
  if stages == 1:
    return
  if not config.scan_layers:
    raise UserError(
      f"config.mesh.stage={stages}: needs {path}.scan_layers=true: a stage is a part of the "
      "stacked layers"
    )
  if (config.num_layers // config.scan_block) % stages:
    raise UserError(
      f"{path}.num_layers={config.num_layers}: divided by scan_block={config.scan_block} must be "
      f"divisible by config.mesh.stage={stages}"
    )
  if len(set(config.local_layers)) > 1:
    raise UserError(
      f"config.mesh.stage={stages}: layers that differ by {path}.window_pattern can not be "
      "pipelined yet: use config.mesh.fsdp and model"
    )
  if config.num_experts is not None:
    raise UserError(
      f"config.mesh.stage={stages}: mixture-of-experts layers can not be pipelined yet: use "
      "config.mesh.expert and fsdp"
    )


def mesh(config: "DecoderConfig", path: str, sizes: dict[str, int]) -> None:
  """Raises UserError for an axis that the model can not be split by. sizes: of all mesh axes."""
  _stages(config, path, sizes["stage"])
  if sizes["sequence"] > 1 and (config.sliding_window or config.attention_softcap):
    raise UserError(
      f"config.mesh.sequence={sizes['sequence']}: must be 1 with {path}.sliding_window or "
      "attention_softcap"
    )
  if sizes["expert"] > 1 and (config.num_experts or 0) % sizes["expert"]:
    raise UserError(
      f"{path}.num_experts={config.num_experts}: must be divisible by "
      f"config.mesh.expert={sizes['expert']}"
    )
  if sizes["expert"] > 1 and config.num_experts is None:
    raise UserError(
      f"config.mesh.expert={sizes['expert']}: needs {path}.num_experts; this model has one MLP a "
      "layer: use config.mesh.data or fsdp"
    )
  for name, value, axis in (
    ("num_heads", config.num_heads, "model"),
    ("num_kv_heads", config.kv_heads, "model"),
    ("mlp_dim", config.mlp_dim, "model"),
    ("dense_mlp_dim", config.dense_mlp_dim or 0, "model"),
    ("vocab_multiple", config.vocab_multiple, "model"),
    ("embed_dim", config.embed_dim, "fsdp"),
  ):
    assert axis in MESH_AXES
    if value % sizes[axis]:
      raise UserError(
        f"{path}.{name}={value}: must be divisible by config.mesh.{axis}={sizes[axis]}"
      )
