"""The device mesh and the one table from logical axes to mesh axes (plain data: imports no jax).

Weights and activations are named by *logical* axes everywhere in jaxlm. Only this table says which
mesh axis, if any, shards each of them; a new parallel axis is a name in MESH_AXES and a column in
the table.
"""

import dataclasses
import math

from jaxlm.errors import UserError

# Outermost (slowest link) first.
MESH_AXES = ("data", "fsdp", "sequence", "model")

# The mesh axes over which the rows of a batch are spread.
BATCH_AXES = ("data", "fsdp")

Rule = str | tuple[str, ...] | None

RULES: dict[str, Rule] = {
  # Weights. `embed` on fsdp is ZeRO-3: parameters, gradients and optimizer state are all sharded,
  # and `sharding.gather` brings one layer's weights together just before they are used.
  "vocab": "model",
  "embed": "fsdp",
  "heads": "model",
  "kv_heads": "model",
  "head_dim": None,
  "mlp": "model",
  "experts": None,
  "norm": None,
  "positions": None,
  "layers": None,
  # Activations.
  "act_batch": BATCH_AXES,
  "act_seq": "sequence",
  "act_kv_seq": None,
  "act_embed": None,
  "act_heads": "model",
  "act_kv_heads": "model",
  "act_mlp": "model",
  "act_vocab": "model",
}


@dataclasses.dataclass(kw_only=True)
class MeshConfig:
  """Sizes of the mesh axes; at most one may be -1, which takes the devices that are left.

  Attributes:
    data: replicas of the model, each with its own rows of the batch.
    fsdp: the batch is split, and so are parameters, gradients and optimizer state (ZeRO-3).
    sequence: each row of the batch is split along its tokens.
    model: heads, MLP and vocabulary are split (tensor parallelism).
  """

  data: int = 1
  fsdp: int = -1
  sequence: int = 1
  model: int = 1

  def validate(self, path: str) -> None:
    """Raises UserError when a size is neither positive nor the one -1."""
    sizes = dataclasses.asdict(self)
    for name, size in sizes.items():
      if size == 0 or size < -1:
        raise UserError(f"{path}.{name}={size}: must be a positive number, or -1 for the rest")
    if list(sizes.values()).count(-1) > 1:
      raise UserError(f"{path}: only one axis may be -1, got {sizes}")

  def sizes(self, num_devices: int) -> dict[str, int]:
    """The axis sizes on `num_devices` devices, -1 filled in. Raises UserError if they don't fit."""
    sizes = {name: getattr(self, name) for name in MESH_AXES}
    known = math.prod(size for size in sizes.values() if size != -1)
    for name, size in sizes.items():
      if size == -1:
        sizes[name] = max(1, num_devices // known)
    if math.prod(sizes.values()) != num_devices:
      raise UserError(
        f"config.mesh={sizes} needs {math.prod(sizes.values())} devices but {num_devices} are "
        "there: set one axis to -1, or choose sizes whose product is the number of devices"
      )
    return sizes
