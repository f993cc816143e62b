"""What the devices send one another in a training step, in closed form (imports no jax).

`messages` lists, for a decoder and the sizes of the mesh axes, every kind of large message: its
mesh axis, the collective, the bytes of its result on one device and how often a step sends it. It
describes what XLA makes of the program for TPUs (docs/scaling.md); `collectives.count` counts what
it made of a program at hand. Gradients are taken as all-reduced, of which each device keeps its
part: where the compiler makes a reduce-scatter of that, it is half as much. Left out: sums of
single numbers, of norms' scales and of biases.
"""

import dataclasses
import math
from collections.abc import Iterable

from jaxlm.config import RunConfig
from jaxlm.layers.config import DType, Remat
from jaxlm.mesh import BATCH_AXES, Context, Zero
from jaxlm.models.config import DecoderConfig

FLOAT32 = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Message:
  """A kind of message.

  Attributes:
    axes: the mesh axes whose devices take part together, and group_size, their number.
    kind: a collective, as in collectives.KINDS.
    what: for people.
    result_bytes: of one run on one device.
    runs: in a step.
    layer: whether it belongs to a layer (then it can hide behind the work of the next).
  """

  axes: tuple[str, ...]
  group_size: int
  kind: str
  what: str
  result_bytes: float
  runs: int
  layer: bool = True

  @property
  def total_bytes_sent(self) -> float:
    """Bytes that one device sends in a step."""
    return self.runs * ring_bytes(self.kind, self.group_size, self.result_bytes)


def ring_bytes(kind: str, n: int, result_bytes: float) -> float:
  """Bytes that each of n devices in a ring sends for a result of so many bytes on each.

  All-gather and all-to-all: (n-1)/n of the result; all-reduce: twice that; reduce-scatter: n-1
  results; permute: the result (Thakur, Rabenseifner & Gropp 2005).
  """
  if n == 1:
    return 0.0
  match kind:
    case "all-reduce":
      return 2 * result_bytes * (n - 1) / n
    case "reduce-scatter":
      return result_bytes * (n - 1)
    case "collective-permute":
      return result_bytes
  return result_bytes * (n - 1) / n


@dataclasses.dataclass(frozen=True)
class Shapes:
  """What one device holds of a decoder's step; elements.

  Attributes:
    rows: of a microbatch, on one device. tokens: of such a row, on one device.
    layer: weights of one layer's matrices, split over `model` alone (gathered over fsdp).
    table: the output table, split over `model` alone.
    layers: on one device (of its stage).
    item: bytes of the compute dtype.
    passes: how often a step runs a layer forward: again for the backward pass with remat.
  """

  config: RunConfig
  sizes: dict[str, int]

  @property
  def model(self) -> DecoderConfig:
    assert isinstance(self.config.model, DecoderConfig), "formulas are the decoder's"
    return self.config.model

  @property
  def microbatches(self) -> int:
    return self.config.num_microbatches

  @property
  def rows(self) -> int:
    axes = math.prod(self.sizes[a] for a in BATCH_AXES)
    return self.config.global_batch_size // (self.microbatches * axes)

  @property
  def tokens(self) -> int:
    return self.config.data.seq_len // self.sizes["sequence"]

  @property
  def layers(self) -> int:
    return self.model.num_layers // self.sizes["stage"]

  @property
  def layer(self) -> int:
    c = self.model
    whole = c.num_matmul_params() - c.padded_vocab_size * c.embed_dim
    return whole // (c.num_layers * self.sizes["model"])

  @property
  def table(self) -> int:
    return self.model.padded_vocab_size * self.model.embed_dim // self.sizes["model"]

  @property
  def activation(self) -> int:
    """(rows, tokens, embed_dim)."""
    return self.rows * self.tokens * self.model.embed_dim

  @property
  def item(self) -> int:
    return FLOAT32 if self.model.compute_dtype is DType.FLOAT32 else 2

  @property
  def remat(self) -> Remat:
    return Remat.NONE if self.model.remat is Remat.AUTO else self.model.remat

  @property
  def passes(self) -> int:
    return 1 if self.remat is Remat.NONE else 2


def messages(config: RunConfig, sizes: dict[str, int]) -> list[Message]:
  """The messages of a step. compute_dtype AUTO counts as bfloat16, remat AUTO as NONE.

  Args:
    config: of a decoder, its vocab_size resolved.
    sizes: of all mesh axes (MeshConfig.sizes).
  """
  shapes = Shapes(config, sizes)
  found = [
    *_weights(shapes),
    *_model(shapes),
    *_sequence(shapes),
    *_stage(shapes),
  ]
  return [m for m in found if m.group_size > 1 and m.runs > 0]


def by_axis(found: Iterable[Message]) -> dict[tuple[str, ...], float]:
  """Bytes that one device sends in a step, by mesh axes."""
  sums: dict[tuple[str, ...], float] = {}
  for m in found:
    sums[m.axes] = sums.get(m.axes, 0.0) + m.total_bytes_sent
  return sums


def _message(
  s: Shapes,
  axes: str | tuple[str, ...],
  kind: str,
  what: str,
  elements: float,
  runs: int,
  *,
  item: int | None = None,
  layer: bool = True,
) -> Message:
  """elements: of the whole, each of `item` bytes (None: the compute dtype); the result of a
  reduce-scatter is a part of it."""
  axes = (axes,) if isinstance(axes, str) else axes
  n = math.prod(s.sizes[a] for a in axes)
  return Message(
    axes=axes,
    group_size=n,
    kind=kind,
    what=what,
    result_bytes=elements * (item or s.item) / (n if kind == "reduce-scatter" else 1),
    runs=runs,
    layer=layer,
  )


def _weights(s: Shapes) -> list[Message]:
  """Weights come together over fsdp; their gradients are summed over all axes that split tokens."""
  M, L = s.microbatches, s.layers
  axes = tuple(a for a in ("data", "fsdp", "expert", "sequence") if s.sizes[a] > 1)
  total = L * s.layer + 2 * s.table
  narrow, wide = s.item, FLOAT32

  def sums(what: str, elements: float, item: int, *, layer: bool) -> Message:
    runs = M * L if layer else M
    return _message(s, axes, "all-reduce", what, elements, runs, item=item, layer=layer)

  found = [
    sums("gradients of a layer", s.layer, narrow, layer=True),
    sums("gradient of the output table", s.table, narrow, layer=False),
    # Tokens that the model axis splits too look up the same rows: the whole table is summed.
    *_input_table(s, axes),
  ]
  if s.config.mesh.zero is Zero.ZERO1:
    new = _message(s, "fsdp", "all-gather", "updates", total, 1, item=wide, layer=False)
    return [*found, new]
  return [
    *found,
    _message(s, "fsdp", "all-gather", "weights of a layer", s.layer, M * L * s.passes),
    _message(s, "fsdp", "all-gather", "both tables", 2 * s.table, M, layer=False),
  ]


def _input_table(s: Shapes, axes: tuple[str, ...]) -> list[Message]:
  M, whole = s.microbatches, s.table * s.sizes["model"]
  over = (*axes, "model") if s.sizes["model"] > 1 else axes
  what = "the input table, whole"
  return [
    _message(s, "model", "all-gather", what, whole, M, layer=False),
    _message(
      s, over, "all-reduce", "gradient of the input table", whole, M, item=FLOAT32, layer=False
    ),
  ]


def _model(s: Shapes) -> list[Message]:
  """Megatron's regions with the residual stream split along tokens (arXiv:2205.05198): tokens come
  together before each of the two, and their sums are spread after it; backward the reverse."""
  M, L, A = s.microbatches, s.layers, s.activation
  again_in = 2 if s.passes == 2 else 0
  again_out = 1 if s.remat in (Remat.FULL, Remat.QKV) else 0
  scores = s.rows * s.tokens * FLOAT32 / s.item  # float32
  return [
    _message(s, "model", "all-gather", "tokens of a layer", A, M * L * (4 + again_in)),
    _message(s, "model", "reduce-scatter", "sums of a layer", A, M * L * (4 + again_out)),
    _message(s, "model", "all-gather", "tokens for the loss", A, M, layer=False),
    _message(s, "model", "reduce-scatter", "the loss's gradient", A, M, layer=False),
    _message(s, "model", "all-reduce", "softmax of the logits", scores, 3 * M, layer=False),
  ]


def _sequence(s: Shapes) -> list[Message]:
  c, M, L = s.model, s.microbatches, s.layers
  n = s.sizes["sequence"]
  block = s.rows * s.tokens * c.kv_heads * c.head_size / s.sizes["model"]
  heads = s.rows * s.tokens * c.num_heads * c.head_size / s.sizes["model"]
  match s.config.mesh.context:
    case Context.RING:  # keys and values go round; backward their gradients go with them
      runs = M * L * (n - 1)
      forward = _message(s, "sequence", "collective-permute", "k, v", 2 * block, runs * s.passes)
      back = _message(s, "sequence", "collective-permute", "k, v, dk, dv", 4 * block, runs)
      return [forward, back]
    case Context.ULYSSES:  # q, k, v there, the result back
      whole = 2 * block + 2 * heads
      return [_message(s, "sequence", "all-to-all", "q, k, v, o", whole, M * L * (1 + s.passes))]
  return [
    _message(s, "sequence", "all-gather", "k, v", 2 * block * n, M * L * s.passes),
    _message(s, "sequence", "reduce-scatter", "dk, dv", 2 * block * n, M * L),
  ]


def _stage(s: Shapes) -> list[Message]:
  """Each stage hands its activations on, and gets their gradients back."""
  parts = s.config.mesh.pipeline_microbatches
  part = s.activation / (parts * s.sizes["model"])
  runs = 2 * s.microbatches * (parts + s.sizes["stage"] - 1)
  return [_message(s, "stage", "collective-permute", "activations", part, runs)]
