"""How long a training step should take, from FLOPs, bytes and what a chip can do (imports no jax).

A roofline: products at a share of the peak, messages at a share of the links' bandwidth. Between
the two bounds (everything at once; one after the other) the expected time lets the messages of
weights and gradients run beside the layers' work, and makes it wait for those of `model` and
`sequence`, whose results the next product needs.
"""

import dataclasses
import math

from jaxlm.config import RunConfig
from jaxlm.layers.config import Remat
from jaxlm.mesh import MESH_AXES
from jaxlm.plan.chips import Chip
from jaxlm.plan.communication import Message, Shapes, messages

# Axes whose messages a layer waits for.
_WAITED_FOR = {"model", "sequence", "stage"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assumptions:
  """What no data sheet tells.

  Attributes:
    matmul: share of the peak in large products. (Large steps reach an MFU of 0.5 to 0.6 in all:
      arXiv:2204.02311 and MaxText's published figures.)
    link: share of a link's bandwidth that large collectives reach.
    memory: share of the memory bandwidth that the update reaches.
    hidden: share of the messages on `model` and `sequence` that hide behind products of the same
      layer.
  """

  matmul: float = 0.7
  link: float = 0.8
  memory: float = 0.8
  hidden: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTime:
  """Seconds of a step.

  Attributes:
    compute: products, with what is computed again, and the idle turns of a pipeline.
    update: the optimizer's reading and writing of the state.
    links: of the messages, by mesh axes.
    beside: messages that may run beside the products. waited: those that may not.
    useful_flops: a device's share of the model's FLOPs, nothing counted twice.
    peak: the device's FLOP/s.
  """

  compute: float
  update: float
  links: dict[tuple[str, ...], float]
  beside: float
  waited: float
  useful_flops: float
  peak: float

  @property
  def expected(self) -> float:
    return max(self.compute, self.beside) + self.waited + self.update

  @property
  def fastest(self) -> float:
    """Everything at once."""
    return max(self.compute + self.update, max(self.links.values(), default=0.0))

  @property
  def slowest(self) -> float:
    """One after the other."""
    return self.compute + self.update + sum(self.links.values())

  def mfu(self, seconds: float | None = None) -> float:
    """Model FLOPs utilisation, attention counted causally, in `seconds` (None: as expected)."""
    return self.useful_flops / ((seconds or self.expected) * self.peak)


def bandwidth(axes: tuple[str, ...], sizes: dict[str, int], chip: Chip) -> float:
  """Bytes/s that a device sends in a ring along these axes, all of the mesh's links working.

  The mesh is laid out with its last axes on neighbouring devices: an axis is fast where it and all
  axes within it fit into the devices that the fast network connects.
  """
  outermost = min(MESH_AXES.index(a) for a in axes)
  span = math.prod(sizes[a] for a in MESH_AXES[outermost:])
  if span > chip.fast_devices:
    return chip.slow_bandwidth
  return chip.link_bandwidth * chip.axis_links


def step_time(
  config: RunConfig, sizes: dict[str, int], chip: Chip, assumed: Assumptions | None = None
) -> StepTime:
  """The time of a step of a decoder config (vocab_size resolved) on axes of these sizes."""
  from jaxlm.plan.memory import memory

  assumed = assumed or Assumptions()
  s = Shapes(config, sizes)
  devices = math.prod(sizes.values())
  tokens = config.global_batch_size * config.data.seq_len
  useful = s.model.flops_per_token(config.data.seq_len, causal=True) * tokens / devices
  parts = config.mesh.pipeline_microbatches
  idle = (parts + sizes["stage"] - 1) / parts
  done = useful + _again(s, tokens / devices)
  m = memory(config, sizes)
  touched = 2 * m.state + 2 * m.grads
  links: dict[tuple[str, ...], float] = {}
  beside = waited = 0.0
  for message in messages(config, sizes):
    seconds = message.total_bytes_sent / (bandwidth(message.axes, sizes, chip) * assumed.link)
    links[message.axes] = links.get(message.axes, 0.0) + seconds
    if _waits(message):
      waited += seconds * (1 - (assumed.hidden if message.layer else 0))
    else:
      beside += seconds
  return StepTime(
    compute=done * idle / (chip.flops * assumed.matmul),
    update=touched / (chip.memory_bandwidth * assumed.memory),
    links=links,
    beside=beside,
    waited=waited,
    useful_flops=useful,
    peak=chip.flops,
  )


def _waits(message: Message) -> bool:
  return bool(_WAITED_FOR & set(message.axes)) and "gradient" not in message.what


def _again(s: Shapes, tokens: float) -> float:
  """FLOPs that rematerialisation computes again: a third of the layers' products for FULL."""
  c = s.model
  D, K = c.embed_dim, c.head_size
  attention = 2 * c.num_heads * K * s.config.data.seq_len  # forward, causal
  qkv = 2 * D * (c.num_heads + 2 * c.kv_heads) * K
  out = 2 * c.num_heads * K * D
  mlp = 2 * (3 if c.gated else 2) * D * c.mlp_dim
  per_layer = {
    Remat.FULL: attention + qkv + out + mlp,
    Remat.QKV: out + mlp,
  }.get(s.remat, 0)
  return c.num_layers * per_layer * tokens
