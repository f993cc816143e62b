"""What a training step needs of a device's memory, in closed form (imports no jax).

State is exact (tests hold it against the shapes and shardings of a real state); what the step keeps
between its forward and backward pass follows from the rematerialisation; what is alive at once in
a layer is an estimate. Held against a compiled step of 7 B in docs/scaling.md. Attention is taken
to be a kernel that keeps no scores.
"""

import dataclasses
import math

from jaxlm.config import RunConfig
from jaxlm.layers.config import Norm, Positions, Remat
from jaxlm.mesh import Context, Zero
from jaxlm.optim.adamw import AdamWConfig
from jaxlm.optim.lion import LionConfig
from jaxlm.plan.communication import FLOAT32, Shapes

# Float32 values of the optimizer for each parameter; other optimizers are counted as AdamW.
_MOMENTS = {AdamWConfig: 2, LionConfig: 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
  """Bytes on one device.

  Attributes:
    params, optimizer: float32, between steps. (Offloaded optimizer state counts 0.)
    copies: the weights in the compute dtype.
    grads: sums in float32, and those of the microbatch at hand.
    activations: what layers keep for the backward pass; without rematerialisation the gathered
      weights too.
    layer: what is alive within one layer: gathered weights, all that it makes, the gradients.
    logits: with the gradient.
    tables: gathered, and the input table's gradient.
    kv: gathered keys and values (mesh.sequence).
  """

  params: float
  optimizer: float
  copies: float
  grads: float
  activations: float
  layer: float
  logits: float
  tables: float
  kv: float

  @property
  def state(self) -> float:
    """Between steps."""
    return self.params + self.optimizer

  @property
  def total(self) -> float:
    """At the peak: the layers' work and that of the output layer are not alive together."""
    passing = max(self.layer + self.kv, self.logits)
    return self.state + self.copies + self.grads + self.activations + self.tables + passing


def memory(config: RunConfig, sizes: dict[str, int]) -> Memory:
  """The memory of a step of a decoder config (vocab_size resolved) on axes of these sizes."""
  s = Shapes(config, sizes)
  params = params_on_device(config, sizes)
  whole_over_fsdp = params_on_device(config, {**sizes, "fsdp": 1})
  zero1 = config.mesh.zero is Zero.ZERO1
  moments = _MOMENTS.get(type(config.optim), 2)
  used = whole_over_fsdp if zero1 else params
  rest = 0 if s.microbatches == 1 else s.item  # beside the sums in float32
  kept = s.layers * _kept(s)
  if s.remat is Remat.NONE:
    kept += s.layers * s.layer * s.item
  vocab = s.model.padded_vocab_size
  logits = s.rows * s.tokens * vocab / (sizes["model"] * config.objective.loss_chunks)
  block = 2 * s.rows * config.data.seq_len * s.model.kv_heads * s.model.head_size / sizes["model"]
  gathers = sizes["sequence"] > 1 and config.mesh.context is Context.GATHER
  return Memory(
    params=used * FLOAT32,
    optimizer=0.0 if config.mesh.offload_optimizer else params * FLOAT32 * moments,
    copies=used * s.item,
    grads=used * (FLOAT32 + rest),
    activations=kept,
    layer=2 * s.layer * s.item + 2 * _alive(s),
    logits=logits * (s.item + s.item + FLOAT32),
    tables=s.table * s.item + s.table * sizes["model"] * (s.item + FLOAT32),
    kv=block * s.item if gathers else 0.0,
  )


def params_on_device(config: RunConfig, sizes: dict[str, int]) -> int:
  """Parameters on one device, with fsdp splitting them. Norms' scales and biases are whole."""
  s = Shapes(config, sizes)
  c = s.model
  matrices = c.num_matmul_params() + (0 if c.tie_embeddings else c.padded_vocab_size * c.embed_dim)
  layers = c.num_matmul_params() - c.padded_vocab_size * c.embed_dim
  tables = matrices - layers
  has_bias = c.norm is Norm.LAYER and c.norm_bias
  final_norm = c.embed_dim * (2 if has_bias else 1)
  positions = c.max_seq_len * c.embed_dim if c.positions is Positions.LEARNED else 0
  small = c.num_params() - matrices - final_norm - positions
  split, stage = sizes["fsdp"] * sizes["model"], sizes["stage"]
  outside = tables // split + positions // sizes["fsdp"] + final_norm
  return layers // (split * stage) + small // stage + outside


def _kept(s: Shapes) -> float:
  """Bytes that one layer keeps of all rows of a microbatch for the backward pass."""
  c, n, D = s.model, s.sizes["model"], s.model.embed_dim
  heads, kv = c.num_heads * c.head_size, c.kv_heads * c.head_size
  qkv = heads + 2 * kv
  # The kernel's residual is its result in its own layout, beside the result.
  per_token = D / n
  if s.remat in (Remat.QKV, Remat.MINIMAL):
    per_token += (qkv + 2 * heads) / n
  if s.remat is Remat.MINIMAL:
    per_token += (2 * D + (2 if c.gated else 1) * c.mlp_dim) / n
  if s.remat is Remat.NONE:
    return _alive(s)
  return s.rows * s.tokens * per_token * s.item


def _alive(s: Shapes) -> float:
  """Bytes of all that a layer makes: its tokens brought together (twice), residual sums and norms,
  q, k, v before and after their rotation, the attention's result, the MLP's parts."""
  c, n, D = s.model, s.sizes["model"], s.model.embed_dim
  heads, kv = c.num_heads * c.head_size, c.kv_heads * c.head_size
  mlp = (4 if c.gated else 2) * c.mlp_dim
  per_token = 2 * D + (4 * D + 2 * (heads + 2 * kv) + 2 * heads + mlp) / n
  return s.rows * s.tokens * per_token * s.item


def table(m: Memory, available: float) -> str:
  """Lines of what the memory goes to, GiB."""
  parts = dataclasses.asdict(m)
  lines = [f"  {name:<12} {math.ceil(value / 2**20) / 1024:9.2f}" for name, value in parts.items()]
  total = f"  {'at the peak':<12} {m.total / 2**30:9.2f} of {available / 2**30:.0f} GiB"
  return "\n".join([*lines, total])
