"""The device mesh and the one table from logical axes to mesh axes (plain data: imports no jax).

Weights and activations are named by *logical* axes everywhere in jaxlm. Only this table says which
mesh axis, if any, shards each of them; a new parallel axis is a name in MESH_AXES and a column in
the table.
"""

import dataclasses
import enum
import math

from jaxlm.errors import UserError

# Outermost (slowest link) first.
MESH_AXES = ("stage", "data", "fsdp", "expert", "sequence", "model")

# The mesh axes over which the rows of a batch are spread.
BATCH_AXES = ("data", "fsdp", "expert")

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
  "experts": "expert",
  "router": None,
  "norm": None,
  "positions": None,
  "layers": None,
  # Activations.
  "act_batch": BATCH_AXES,
  "act_seq": "sequence",
  "act_residual": "sequence",  # tokens of the residual stream, between attention and MLP
  "act_kv_seq": None,
  "act_embed": None,
  "act_heads": "model",
  "act_kv_heads": "model",
  "act_mlp": "model",
  "act_vocab": "model",
}


class Zero(enum.Enum):
  """What the fsdp axis splits (Rajbhandari et al. 2020, arXiv:1910.02054).

  ZERO3: parameters, gradients and optimizer state; each layer's weights are gathered for use.
  ZERO1: the optimizer state alone. Every device holds all parameters: less to send, more memory.
  """

  ZERO3 = "zero3"
  ZERO1 = "zero1"


class Context(enum.Enum):
  """How attention sees the tokens that other devices of the sequence axis hold.

  GATHER: keys and values are gathered; the tokens lie in zigzag order, so that the causal mask
  leaves every device the same work (Llama 3, arXiv:2407.21783). RING: keys and values go round in
  blocks, of which a device holds two at most (arXiv:2310.01889), in zigzag order too. ULYSSES:
  tokens are exchanged for heads (arXiv:2309.14509); the axis must divide the heads.
  """

  GATHER = "gather"
  RING = "ring"
  ULYSSES = "ulysses"


@dataclasses.dataclass(kw_only=True)
class MeshConfig:
  """Sizes of the mesh axes; at most one may be -1, which takes the devices that are left.

  Attributes:
    stage: the layers are split, and microbatches go through the parts one after another.
    data: replicas of the model, each with its own rows of the batch.
    fsdp: the batch is split, and so is what `zero` says.
    expert: the batch is split, and so are the experts of mixture-of-experts layers.
    sequence: each row of the batch is split along its tokens; see `context`.
    model: heads, MLP and vocabulary are split (tensor parallelism), and between them the tokens of
      the residual stream (arXiv:2205.05198).
    microbatches: of the pipeline over `stage`; None: twice the stages.
    offload_optimizer: the optimizer state lies in the host's memory between its uses.
  """

  stage: int = 1
  data: int = 1
  fsdp: int = -1
  expert: int = 1
  sequence: int = 1
  model: int = 1
  zero: Zero = Zero.ZERO3
  context: Context = Context.GATHER
  microbatches: int | None = None
  offload_optimizer: bool = False

  def validate(self, path: str) -> None:
    """Raises UserError when a size is neither positive nor the one -1."""
    sizes = {name: getattr(self, name) for name in MESH_AXES}
    for name, size in sizes.items():
      if size == 0 or size < -1:
        raise UserError(f"{path}.{name}={size}: must be a positive number, or -1 for the rest")
    if self.stage == -1:
      raise UserError(f"{path}.stage=-1: say how many stages; another axis may take the rest")
    if list(sizes.values()).count(-1) > 1:
      raise UserError(f"{path}: only one axis may be -1, got {sizes}")
    if self.context is not Context.GATHER and self.sequence == 1:
      raise UserError(
        f"{path}.context={self.context.name}: needs {path}.sequence above 1; without that axis "
        "every device has all tokens"
      )
    if self.microbatches is not None and self.microbatches < self.stage:
      raise UserError(
        f"{path}.microbatches={self.microbatches}: must be at least {path}.stage={self.stage}"
      )

  @property
  def pipeline_microbatches(self) -> int:
    """Microbatches that go through the stages; 1 without stages."""
    if self.stage == 1:
      return 1
    return 2 * self.stage if self.microbatches is None else self.microbatches

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

  def rules(self, sizes: dict[str, int]) -> dict[str, Rule]:
    """The table for these sizes."""
    changes: dict[str, Rule] = {}
    if self.zero is Zero.ZERO1:
      changes["embed"] = None
    if sizes["stage"] > 1:
      changes["layers"] = "stage"
    if sizes["model"] > 1:
      changes["act_residual"] = ("sequence", "model")
    return {**RULES, **changes}


def check_tokens(seq_len: int, n: int, context: Context) -> None:
  """Raises UserError unless n devices on the sequence axis can share rows of seq_len tokens."""
  if context is not Context.ULYSSES and n > 1 and seq_len % (2 * n):
    raise UserError(
      f"config.data.seq_len={seq_len}: must be divisible by {2 * n} = 2 × config.mesh.sequence={n} "
      f"for config.mesh.context={context.name}"
    )


def check_heads(num_heads: int, n: int, model: int, context: Context) -> None:
  """Raises UserError unless n devices on the sequence axis can share the heads, if they must."""
  if context is Context.ULYSSES and num_heads % (n * model):
    raise UserError(
      f"config.model.num_heads={num_heads}: must be divisible by {n * model} = "
      f"config.mesh.sequence={n} × config.mesh.model={model} for config.mesh.context=ULYSSES; "
      "GATHER and RING take any"
    )
